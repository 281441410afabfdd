"""From scores of every unit to the table that a benchmark returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from transverse.metrics._direction import direction
from transverse.metrics._summary import interval

Estimate = Callable[[np.ndarray], tuple[float, float, float]]


@dataclass(frozen=True)
class MeanOfUnits:
    """Mean over units, with a bootstrap interval over them."""

    level: float
    n_resamples: int
    seed: int = 0

    def __call__(self, values: np.ndarray) -> tuple[float, float, float]:
        """Estimate and interval of values by unit."""
        values = values[np.isfinite(values)]
        if not len(values):
            return np.nan, np.nan, np.nan
        return float(values.mean()), *interval(values, self.level, self.n_resamples, self.seed)


@dataclass(frozen=True)
class FirstOfDraws:
    """The first value, with the quantiles of the others, which come from data drawn anew."""

    level: float

    def __call__(self, values: np.ndarray) -> tuple[float, float, float]:
        """Estimate and interval of values by draw."""
        draws = values[1:][np.isfinite(values[1:])]
        if len(draws) < 2:
            return float(values[0]), np.nan, np.nan
        tail = (1 - self.level) / 2
        return float(values[0]), *(float(q) for q in np.quantile(draws, [tail, 1 - tail]))


def summary_table(scores: pd.DataFrame, over: Sequence[str], estimate: Estimate, by: Sequence[str]) -> pd.DataFrame:
    """A row for every method and score.

    ``scores`` has a row for every method, score, split, seed and unit: ``by`` tells scores apart, and ``over`` units. Seeds and splits of the
    same unit are averaged first.
    """
    options = {"observed": True, "dropna": False, "sort": False}
    kinds = scores.drop_duplicates("method").set_index("method")["kind"]
    units = scores.groupby([*by, "method", *over], **options)["value"].mean().reset_index()
    over_seeds = scores.groupby([*by, "method", "seed"], **options)["value"].mean().reset_index()
    rows = []
    for key, group in units.groupby(list(by), **options):
        labels = dict(zip(by, key, strict=True))
        same = np.logical_and.reduce([_equal(over_seeds[column], value) for column, value in labels.items()])
        seeds = over_seeds[same].groupby("method", sort=False)["value"].std(ddof=1)
        wide = group.pivot_table(index=list(over), columns="method", values="value", dropna=False, observed=True)
        best = _best_baseline(wide, kinds, direction(labels["metric"]), estimate)
        ceilings = {
            "ceiling_" + name.replace(" ", "_").replace("-", "_"): estimate(wide[name].to_numpy())[0]
            for name in wide
            if kinds[name] == "ceiling"
        }
        for name in kinds.index[kinds.index.isin(wide.columns)]:
            values = wide[name].to_numpy(dtype=float)
            mean, low, high = estimate(values)
            row = {"method": name, "kind": kinds[name], **labels, "mean": mean, "ci_low": low, "ci_high": high}
            row |= {"median": np.nanmedian(values), "sd": _sd(values)} if np.isfinite(values).any() else {}
            row |= {"sd_seeds": seeds.get(name, np.nan), "n": int(np.isfinite(values).sum()), **ceilings}
            if best is not None and kinds[name] != "ceiling":
                # adding nought spares the reader a nought with a minus
                difference = direction(labels["metric"]) * (wide[name] - wide[best]).to_numpy(dtype=float) + 0.0
                gain = estimate(difference)
                row |= dict(zip(("gain", "gain_low", "gain_high"), gain, strict=True), best_baseline=best)
            rows.append(row)
    table = pd.DataFrame(rows)
    last = [column for column in table if column.startswith("ceiling_")]
    return table[[column for column in table if column not in last] + last]


def _best_baseline(wide: pd.DataFrame, kinds: pd.Series, sign: int, estimate: Estimate) -> str | None:
    """The strongest baseline of those that have the most units scored."""
    rivals = [name for name in wide if kinds[name] == "baseline" and wide[name].notna().any()]
    if not sign or not rivals:
        return None
    n_scored = wide[rivals].notna().sum()
    rivals = [name for name in rivals if n_scored[name] == n_scored.max()]
    return max(rivals, key=lambda name: sign * estimate(wide[name].to_numpy(dtype=float))[0])


def _sd(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(values.std(ddof=1)) if len(values) > 1 else np.nan


def _equal(column: pd.Series, value) -> np.ndarray:
    return column.isna().to_numpy() if pd.isna(value) else (column == value).to_numpy()
