from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from transverse._validation import examples
from transverse.metrics._direction import direction

from ._figure import COLORS, finish, panels
from ._tables import check_table, choose, in_order

_KINDS = ("model", "baseline", "ceiling")
_POINTS = {
    "model": {"color": COLORS[0], "marker": "o", "s": 30},
    "baseline": {"color": "#808080", "marker": "s", "s": 22},
}
_BEST = {"color": "#808080", "linewidth": 0.8, "linestyle": "-"}
_CEILING = {"color": COLORS[3], "linewidth": 1.0, "linestyle": "--"}
_CEILING_ROW = 0.8  # height of a ceiling's name, in rows
_FONTSIZE = 7

# columns that tell scores of the same name apart, with the value that is drawn by default where a score has it
_PREFERRED = {"of": "change", "genes": "all", "cells": "shared"}
_RESPONSES = [("pearson", "change"), ("r2", "change"), ("r2", "expression"), ("discrimination", "change")]
_SIGNATURES = [("pearson", "signature"), ("rmse", "signature")]
_LABELS = [("balanced_accuracy", None), ("ARI", None), ("unknown_auroc", None)]
_NAMES = {
    "r2": "R²",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "rmse": "RMSE",
    "mrr": "mean reciprocal rank",
    "macro_f1": "macro F1",
    "deg_overlap": "overlap of DEGs",
    "deg_direction": "direction of DEGs",
    "n_deg": "number of DEGs",
    "confidence_auroc": "AUROC of confidence",
    "unknown_auroc": "AUROC of unknown cells",
}


def benchmark(
    table: pd.DataFrame,
    metric: str | Sequence[str] | None = None,
    *,
    of: str | Sequence[str] | None = None,
    genes: str | Sequence[str] | None = None,
    cells: str | Sequence[str] | None = None,
    ncols: int = 4,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    save: str | PathLike | None = None,
) -> list[Axes]:
    """Methods beside baselines and noise ceilings, a panel for each score.

    Points are means, lines their confidence intervals: round and blue for models, square and grey for baselines. Ceilings
    are dashed lines, the strongest baseline is a thin grey one. The best of the first panel stand on top, models above
    baselines. ``n`` is written where a method has fewer values of a score than another.

    Parameters
    ----------
    table
        What :func:`transverse.benchmark` returns. Missing scores are left out.
    metric
        Scores to draw. By default those of the following that the table has: for responses Pearson correlation and R²
        of the change, R² of the expression, and discrimination; for signatures Pearson correlation and RMSE; for labels
        balanced accuracy, ARI and the AUROC of unknown cells; for genes recall and mean reciprocal rank.
    of
        What the scores are of, such as ``"expression"``. By default the change, where a score is there for it.
    genes
        Which genes the scores are of, such as ``"top 50"``. By default all together, where a score is there for them.
    cells
        Which cells the scores are of, ``"shared"`` or ``"all"``. By default the shared ones, where a score is there for
        them.
    ncols
        Panels in a row.
    ax
        Axes to draw on, one for each score; these get no legend.
    show
        Show the figure; by default only where scanpy would (``sc.settings.autoshow``) and no axes are given.
    save
        File to write the figure to.

    Returns
    -------
    The axes, one for each score. The table is not changed.

    Raises
    ------
    KeyError
        If a column is missing, or the table does not have a score.
    ValueError
        If the table is empty, has a method twice or something else than models, baselines and ceilings, no method has a
        value of a score, or there are not as many axes as scores.

    Examples
    --------
    >>> import transverse as tv
    >>> adata = tv.datasets.simulate_responses(n_contexts=2, n_perturbations=3, n_genes=30, n_cells_per_condition=20)
    >>> tv.pp.split_responses(adata, valid_size=0)
    >>> table = tv.benchmark(adata, {"mine": tv.baselines.PCRidge(n_components=2)}, n_top=10)
    >>> axes = tv.pl.benchmark(table)
    >>> axes = tv.pl.benchmark(table, ["pearson", "rmse"], genes=["all", "top 10"])
    >>> len(axes)
    4
    """
    check_table(table, ["method", "kind", "metric", "mean", "ci_low", "ci_high", "n"])
    if unknown := [kind for kind in in_order(table["kind"]) if kind not in _KINDS]:
        raise ValueError(f"Unknown kinds in the table: {examples(unknown)}. Known: {examples(_KINDS)}.")
    chosen = {"of": of, "genes": genes, "cells": cells}
    chosen = {column: wanted for column, wanted in chosen.items() if wanted is not None}
    check_table(table, list(chosen))
    chosen = {column: choose(wanted, in_order(table[column]), column) for column, wanted in chosen.items()}
    scores = _scores(table, metric, chosen)
    order = _order(scores)

    n_ceilings = max((rows["kind"] == "ceiling").sum() for rows in scores)
    height = 1.1 + 0.25 * (len(order) + _CEILING_ROW * n_ceilings)
    width = 2.4 + 0.085 * max(map(len, order)) / max(1, min(ncols, len(scores)))
    axes = panels(ax, len(scores), "scores", ncols=ncols, size=(width, height))
    for i, (panel, rows) in enumerate(zip(axes, scores, strict=True)):
        _draw(panel, rows, order, n_ceilings)
        is_beside = i > 0 and panel.figure is axes[i - 1].figure and _bottom(panel) == _bottom(axes[i - 1])
        panel.tick_params(axis="y", length=0, labelleft=not is_beside)
    if ax is None:
        handles = _handles(scores)
        ncols = len(handles) if len(axes) > 1 else 2
        axes[0].figure.legend(handles=handles, loc="outside lower center", ncols=ncols, frameon=False, fontsize="small")
    finish(axes, ax, show, save)
    return axes


def _scores(table: pd.DataFrame, metric: str | Sequence[str] | None, chosen: dict[str, list]) -> list[pd.DataFrame]:
    """The rows of each panel."""
    known = in_order(table["metric"])
    if metric is not None:
        wanted = [(name, None) for name in choose(metric, known, "metric")]
    else:
        wanted = [score for score in _default(table, known) if score[0] in known] or [(name, None) for name in known]
        if "of" in chosen:
            wanted = [(name, None) for name in dict.fromkeys(name for name, _ in wanted)]
    columns = [column for column in ("metric", *_PREFERRED, "cell_type") if column in table]
    scores = []
    for name, of in wanted:
        rows = named = table[table["metric"] == name]
        fixed = chosen if of is None else {**chosen, "of": [of]}
        for column, values in fixed.items():
            rows = rows[rows[column].isin(values)]
        if metric is not None and rows.empty:
            has = "; ".join(f"{column}: {examples(in_order(named[column]))}" for column in chosen)
            raise KeyError(f"The table has {name!r}, but not for what was chosen. It has {has}.")
        for column, value in _PREFERRED.items():
            if column in table and column not in fixed and (is_preferred := rows[column] == value).any():
                rows = rows[is_preferred]
        rows = rows[np.isfinite(rows["mean"].astype(float))]
        has_method = (rows["kind"] != "ceiling").any()
        if metric is not None and not has_method:
            raise ValueError(f"No method has a value of {name!r}.")
        if has_method:
            parts = [part for _, part in rows.groupby(columns, sort=False, dropna=False, observed=True)]
            parts = [part for part in parts if (part["kind"] != "ceiling").any()]
            scores += sorted(
                parts, key=lambda part: [values.index(part[key].iloc[0]) for key, values in chosen.items()]
            )
    if not scores:
        raise ValueError(f"The table has no value to draw. Its scores: {examples(known, 20)}.")
    for rows in scores:
        if (twice := rows["method"].duplicated()).any():
            raise ValueError(
                f"The table has several rows of {examples(rows.loc[twice, 'method'])} for {_title(rows)!r}. Draw each "
                "benchmark apart, or rename the methods."
            )
    return scores


def _default(table: pd.DataFrame, known: Sequence[str]) -> list[tuple[str, str | None]]:
    """Scores to draw, and what they are of."""
    if "cells" in table:
        return _LABELS
    if "of" in table:
        return _SIGNATURES if (table["of"] == "signature").any() else _RESPONSES
    return [(name, None) for name in known if name.startswith("recall@") or name == "mrr"]


def _order(scores: Sequence[pd.DataFrame]) -> list[str]:
    """All methods, models first, and by their means in the first panel."""
    methods = pd.concat(scores).drop_duplicates("method").set_index("method")["kind"]
    first = scores[0].set_index("method")["mean"] * direction(scores[0]["metric"].iloc[0])
    order = []
    for kind in ("model", "baseline"):
        names = pd.Series(first.reindex(methods.index[methods == kind]), dtype=float)
        order += names.sort_values(ascending=False, kind="stable").index.tolist()
    return order


def _draw(panel: Axes, rows: pd.DataFrame, order: Sequence[str], n_ceilings: int) -> None:
    bottom, top = len(order) - 0.5, -0.5
    ceilings, methods = (rows[(rows["kind"] == "ceiling") == is_ceiling] for is_ceiling in (True, False))
    best = _best(rows)
    if best is not None:
        panel.vlines(best, bottom, top, zorder=1, **_BEST)
    for kind, style in _POINTS.items():
        own = methods[methods["kind"] == kind]
        y = [order.index(name) for name in own["method"]]
        panel.hlines(y, own["ci_low"], own["ci_high"], color=style["color"], linewidth=1.6, zorder=3)
        panel.scatter(own["mean"], y, linewidths=0, zorder=4, **style)
    values = [*rows["mean"], *methods["ci_low"], *methods["ci_high"]]
    low, high = np.nanmin(values), np.nanmax(values)
    margin = 0.06 * max(high - low, 0.05 * max(abs(low), abs(high)), 1e-6)
    low, high = low - margin, high + margin

    outline = [withStroke(linewidth=2.5, foreground="white")]
    text = {"textcoords": "offset points", "fontsize": _FONTSIZE, "path_effects": outline, "zorder": 5}
    for i, (name, value) in enumerate(ceilings.sort_values("mean")[["method", "mean"]].itertuples(index=False)):
        y = top - _CEILING_ROW * (i + 0.5)
        is_right = value > (low + high) / 2
        panel.vlines(value, bottom, y - 0.3 * _CEILING_ROW, zorder=2, **_CEILING)
        side = {"xytext": (-3 if is_right else 3, 0), "ha": "right" if is_right else "left", "va": "center_baseline"}
        panel.annotate(name, (value, y), color=_CEILING["color"], **side, **text)
    for name, value, n in methods[["method", "mean", "n"]].itertuples(index=False):
        if n < methods["n"].max():
            place = {"xytext": (0, 4), "ha": "center", "va": "bottom"}
            panel.annotate(f"n = {n:g}", (value, order.index(name)), **place, **text)
    panel.set(xlim=(low, high), ylim=(bottom, top - _CEILING_ROW * n_ceilings))
    panel.set_yticks(range(len(order)), order)
    panel.locator_params(axis="x", nbins=4)
    panel.set_title(_title(rows), fontsize="medium")
    sign = direction(rows["metric"].iloc[0])
    if sign:
        panel.set_xlabel("better →" if sign > 0 else "← better")
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines.left.set_bounds(bottom, top)


def _best(rows: pd.DataFrame) -> float | None:
    """Mean of the strongest baseline, if the table names one."""
    names = rows["best_baseline"].dropna().unique() if "best_baseline" in rows else []
    means = rows.loc[rows["method"].isin(names), "mean"]
    return None if means.empty else float(means.iloc[0])


def _title(rows: pd.DataFrame) -> str:
    """The score, and below what it is of."""
    row = rows.iloc[0]
    of = [str(row["of"])] if "of" in row else []
    of += [f"{row['genes']} genes"] if "genes" in row else []
    of += [{"shared": "cells of shared types"}.get(row["cells"], f"{row['cells']} cells")] if "cells" in row else []
    if "cell_type" in row and pd.notna(row["cell_type"]):
        of = [str(row["cell_type"])]
    return "\n".join(
        [_NAMES.get(row["metric"], str(row["metric"]).replace("_", " ")), *([", ".join(of)] if of else [])]
    )


def _handles(scores: Sequence[pd.DataFrame]) -> list[Line2D]:
    """What a legend shows, of what is drawn."""
    kinds = set(pd.concat(scores)["kind"])
    handles = [
        Line2D([], [], color=style["color"], marker=style["marker"], markersize=5, linewidth=1.6, label=kind)
        for kind, style in _POINTS.items()
        if kind in kinds
    ]
    if any(_best(rows) is not None for rows in scores):
        handles.append(Line2D([], [], label="strongest baseline", **_BEST))
    return handles + ([Line2D([], [], label="ceiling", **_CEILING)] if "ceiling" in kinds else [])


def _bottom(panel: Axes) -> float:
    return round(panel.get_position().y0, 6)
