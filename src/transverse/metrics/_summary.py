from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import numpy as np
import pandas as pd

from transverse._validation import examples

SCORE_COLUMNS = ("of", "genes", "cells", "metric", "ceiling")


def summarize(
    scores: pd.DataFrame,
    by: str | Sequence[str] | None = None,
    *,
    over: str | Sequence[str] | None = None,
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Mean, median, spread and confidence interval of scores over conditions.

    The interval is the bootstrap's percentile interval of the mean. What is drawn anew is the unit ``over``: rows of the same
    unit, such as a condition under several seeds, are averaged first, since they are not independent.

    Parameters
    ----------
    scores
        Table of any of the metrics, or several joined.
    by
        Further columns to group by, such as ``"method"`` or ``"cell_type"``. Those of ``"of"``, ``"genes"``, ``"cells"``,
        ``"metric"`` and ``"ceiling"`` that the table has are always among them.
    over
        Columns that tell independent units apart, such as ``["perturbation", "cell_type"]``. None: every row is one.
    level
        Level of the interval.
    n_resamples
        Resamples of the bootstrap.
    seed
        Its seed.

    Returns
    -------
    A row for each group: ``mean``, ``median``, ``sd`` (over the units, ``ddof=1``), ``ci_low``, ``ci_high`` and ``n``, the number
    of units with a score. Missing scores are left out. The interval is NaN with fewer than two units.

    Raises
    ------
    ValueError
        If the table is empty or ``level`` or ``n_resamples`` is out of range.
    KeyError
        If a column does not exist.

    Examples
    --------
    >>> import pandas as pd
    >>> import transverse as tv
    >>> scores = pd.DataFrame(
    ...     {"method": "mine", "perturbation": ["P01", "P01", "P02"], "metric": "pearson", "value": [0.5, 0.7, 0.8]}
    ... )
    >>> summary = tv.metrics.summarize(scores, by="method", over="perturbation")
    >>> summary[["method", "metric", "mean", "n"]].round(2).to_numpy().tolist()
    [['mine', 'pearson', 0.7, 2]]
    """
    by = [by] if isinstance(by, str) else list(by or [])
    over = [over] if isinstance(over, str) else list(over or [])
    if missing := [column for column in (*by, *over, "metric", "value") if column not in scores]:
        raise KeyError(f"scores has no column {examples(missing)}. It has: {examples(scores.columns, 20)}.")
    if scores.empty:
        raise ValueError("scores is empty.")
    if not 0 < level < 1:
        raise ValueError(f"level={level!r} must be between 0 and 1.")
    if not isinstance(n_resamples, Integral) or n_resamples < 1:
        raise ValueError(f"n_resamples={n_resamples!r} must be a whole number of at least 1.")
    by = list(dict.fromkeys([*by, *(column for column in SCORE_COLUMNS if column in scores)]))
    options = {"observed": True, "sort": False, "dropna": False}
    if over:
        units = scores.groupby(list(dict.fromkeys([*by, *over])), **options)["value"].mean().reset_index()
    else:
        units = scores
    rows = []
    for key, values in units.groupby(by, **options)["value"]:
        values = values.dropna().to_numpy(dtype=float)
        low, high = interval(values, level, n_resamples, seed)
        rows.append(
            {
                **dict(zip(by, key, strict=True)),
                "mean": values.mean() if len(values) else np.nan,
                "median": np.median(values) if len(values) else np.nan,
                "sd": values.std(ddof=1) if len(values) > 1 else np.nan,
                "ci_low": low,
                "ci_high": high,
                "n": len(values),
            }
        )
    return pd.DataFrame(rows)


def interval(values: np.ndarray, level: float, n_resamples: int, seed: int) -> tuple[float, float]:
    """Bootstrap percentile interval of the mean; NaN with fewer than two values."""
    if len(values) < 2:
        return np.nan, np.nan
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    rng, n = np.random.default_rng(seed), len(values)
    means = []
    # some 30 MB at a time
    for size in _batches(n_resamples, max(1, 2**22 // n)):
        means.append(values[rng.integers(0, n, (size, n))].mean(1))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _batches(n: int, size: int) -> list[int]:
    return [min(size, n - start) for start in range(0, n, size)]
