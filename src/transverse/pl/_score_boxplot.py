from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from transverse._validation import examples
from transverse.metrics._direction import direction

from ._benchmark import _CEILING, _CEILING_ROW, _FONTSIZE, _PREFERRED, _title
from ._figure import COLORS, MEAN, draw_boxes, finish, panels
from ._tables import check_no_missing, check_table, choose, in_order, split_scores

_BOXES = {"model": COLORS[0], "baseline": "#808080"}
_POINTS = {"s": 8, "color": "black", "linewidths": 0, "alpha": 0.6, "zorder": 3}
_NAMED = ["metric", *_PREFERRED]  # what tells scores apart; a column of cell types is one of conditions here


def score_boxplot(
    scores: pd.DataFrame | Mapping[str, pd.DataFrame],
    metric: str | Sequence[str] = "pearson",
    *,
    of: str | Sequence[str] | None = None,
    genes: str | Sequence[str] | None = None,
    groupby: str = "method",
    over: str | Sequence[str] | None = None,
    order: Sequence[str] | None = None,
    ncols: int = 4,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    save: str | PathLike | None = None,
) -> list[Axes]:
    """Scores of single conditions as points over a box for each method, a panel for each score.

    Boxes are quartiles with the median, whiskers go from 5 to 95%, and diamonds are the means, which
    :func:`transverse.pl.benchmark` draws with their intervals. Boxes of models are blue, those of baselines grey. Noise
    ceilings are dashed lines at their mean; between the lowest and the highest is shaded: a method that comes to lie there
    is as good as the data can tell.

    Parameters
    ----------
    scores
        Rows as :func:`transverse.metrics.response_scores` gives them, with a column ``groupby``, such as the scores that
        :func:`transverse.benchmark` returns with ``return_scores=True``; or several such tables by the name of their
        method. Rows with ``kind="ceiling"``, and those of :func:`transverse.metrics.noise_ceiling`, are ceilings.
    metric
        Scores to draw.
    of
        What the scores are of, ``"change"`` or ``"expression"``. By default the change, where a score is there for it.
    genes
        Which genes the scores are of, such as ``"top 50"``. By default all together, where a score is there for them.
    groupby
        Column to draw a box for each value of.
    over
        Columns that tell conditions apart, such as ``["perturbation", "cell_type"]``: rows of the same one, of several seeds
        or splits, are averaged first. None: every row is a point.
    order
        Groups to draw, from top to bottom. By default those of the highest mean in the first panel on top, models above
        baselines; or the order of the column's categories, if it has one.
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
    The axes, one for each score. ``n`` is written where a group has fewer conditions than another. The tables are not
    changed.

    Raises
    ------
    KeyError
        If a column is missing, or the table does not have a score or a group.
    ValueError
        If a table is empty, no group has a value of a score, groups would mix several methods, or there are not as many
        axes as scores.
    TypeError
        If something else than tables is given.

    Examples
    --------
    >>> import transverse as tv
    >>> adata = tv.datasets.simulate_responses(n_contexts=2, n_perturbations=3, n_genes=30, n_cells_per_condition=20)
    >>> tv.pp.split_responses(adata, valid_size=0)
    >>> _, scores = tv.benchmark(adata, {"mine": tv.baselines.PCRidge(n_components=2)}, n_top=10, return_scores=True)
    >>> axes = tv.pl.score_boxplot(scores, ["pearson", "r2"], genes=["all", "top 10"])
    >>> len(axes)
    4
    """
    table = _joined(scores)
    over = [over] if isinstance(over, str) else list(over or [])
    check_table(table, [groupby, "metric", "value", *over], "scores")
    is_ceiling = _is_ceiling(table)
    ceilings, table = table[is_ceiling], table[~is_ceiling]
    if table.empty:
        raise ValueError("scores has rows of noise ceilings only.")
    check_no_missing(table, groupby, "scores")
    if groupby != "method" and "method" in table and table["method"].nunique() > 1:
        raise ValueError(
            f"Boxes of each {groupby!r} would mix several methods: {examples(in_order(table['method']))}. Choose one of them."
        )
    parts = split_scores(table, metric, {"of": of, "genes": genes, "cells": None}, _PREFERRED)
    units = [_units(part, groupby, over) for part in parts]
    kinds = _kinds(table, groupby)
    order = _order(table, units[0], direction(parts[0]["metric"].iloc[0]), groupby, kinds, order)
    for part, own in zip(parts, units, strict=True):
        if not set(order) & set(own):
            raise ValueError(f"None of {examples(order)} has a value of {part['metric'].iloc[0]!r}.")
    lines = [_ceilings(ceilings, part, groupby) for part in parts]

    n_ceilings = max(map(len, lines))
    height = 1.1 + 0.36 * (len(order) + _CEILING_ROW * n_ceilings)
    width = 2.6 + 0.085 * max(map(len, order)) / max(1, min(ncols, len(parts)))
    axes = panels(ax, len(parts), "scores", ncols=ncols, size=(width, height))
    for i, (panel, part, own, line) in enumerate(zip(axes, parts, units, lines, strict=True)):
        _draw(panel, own, order, kinds, line, n_ceilings)
        panel.set_title(_title(part.filter(_NAMED)), fontsize="medium")
        sign = direction(part["metric"].iloc[0])
        if sign:
            panel.set_xlabel("better →" if sign > 0 else "← better")
        panel.tick_params(axis="y", length=0, labelleft=ax is not None or i % ncols == 0)
    if ax is None:
        axes[0].figure.get_layout_engine().set(w_pad=0.1)  # or the outer ticks of neighbours would touch
        handles = [
            Patch(facecolor=(_BOXES[kind], 0.3), edgecolor=_BOXES[kind], label=kind)
            for kind in _BOXES
            if len(set(kinds.values())) > 1 and kind in kinds.values()
        ]
        handles.append(Line2D([], [], linestyle="", label="mean", **{**MEAN, "markeredgecolor": "black"}))
        handles += [Line2D([], [], label="ceiling", **_CEILING)] if n_ceilings else []
        ncols = len(handles) if len(axes) > 1 else 2
        axes[0].figure.legend(handles=handles, loc="outside lower center", ncols=ncols, frameon=False, fontsize="small")
    finish(axes, ax, show, save)
    return axes


def _joined(scores: pd.DataFrame | Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """One table; those of a mapping with their names as method."""
    if not isinstance(scores, Mapping):
        return scores
    if not scores:
        raise ValueError("scores must hold at least one table, but is empty.")
    for name, table in scores.items():
        check_table(table, ["metric", "value"], f"scores[{name!r}]")
    return pd.concat([table.assign(method=str(name)) for name, table in scores.items()], ignore_index=True)


def _is_ceiling(table: pd.DataFrame) -> np.ndarray:
    """Rows of a benchmark's ceilings, and those of ``noise_ceiling``."""
    is_ceiling = np.zeros(len(table), dtype=bool)
    if "kind" in table:
        is_ceiling |= (table["kind"] == "ceiling").to_numpy(dtype=bool, na_value=False)
    if "ceiling" in table:
        is_ceiling |= table["ceiling"].notna().to_numpy()
    return is_ceiling


def _units(rows: pd.DataFrame, groupby: str, over: Sequence[str]) -> dict[str, np.ndarray]:
    """The points of each group."""
    rows = rows.assign(**{groupby: rows[groupby].astype(str)})
    if over:
        rows = rows.groupby([groupby, *over], observed=True, sort=False, dropna=False)["value"].mean().reset_index()
    return {str(name): own.to_numpy(dtype=float) for name, own in rows.groupby(groupby, sort=False)["value"]}


def _kinds(table: pd.DataFrame, groupby: str) -> dict[str, str]:
    """Whether a group is a model or a baseline; a model where the table does not say."""
    kinds = {str(name): "model" for name in in_order(table[groupby])}
    if "kind" in table and groupby == "method":
        first = table.drop_duplicates(groupby)
        kinds |= {str(name): kind for name, kind in zip(first[groupby], first["kind"], strict=True) if kind in _BOXES}
    return kinds


def _order(
    table: pd.DataFrame,
    first: Mapping[str, np.ndarray],
    sign: int,
    groupby: str,
    kinds: Mapping[str, str],
    order: Sequence[str] | None,
) -> list[str]:
    """Groups from top to bottom."""
    known = [str(name) for name in in_order(table[groupby])]
    if order is not None:
        return choose(order, known, "order", "scores")
    if isinstance(table[groupby].dtype, pd.CategoricalDtype):
        return known
    means = {name: sign * first[name].mean() if name in first else -np.inf for name in known}
    return sorted(known, key=lambda name: (kinds[name] != "model", -means[name]))


def _ceilings(ceilings: pd.DataFrame, part: pd.DataFrame, groupby: str) -> dict[str, float]:
    """Mean of every ceiling of the score that ``part`` has."""
    for column in _NAMED:
        if column in ceilings and column in part:
            ceilings = ceilings[ceilings[column] == part[column].iloc[0]]
    names = ceilings["method" if "method" in ceilings else groupby]
    if "ceiling" in ceilings:
        names = ceilings["ceiling"].where(ceilings["ceiling"].notna(), names)
    means = {name: own.mean() for name, own in ceilings["value"].groupby(names.astype(str), sort=False)}
    return {name: float(mean) for name, mean in sorted(means.items(), key=lambda item: item[1]) if np.isfinite(mean)}


def _draw(
    panel: Axes,
    units: Mapping[str, np.ndarray],
    order: Sequence[str],
    kinds: Mapping[str, str],
    ceilings: Mapping[str, float],
    n_ceilings: int,
) -> None:
    bottom, top = len(order) - 0.5, -0.5
    rng = np.random.default_rng(0)  # points are moved across the box only
    drawn = [name for name in order if name in units]
    most = max(len(units[name]) for name in drawn)
    text = {"textcoords": "offset points", "fontsize": _FONTSIZE, "zorder": 5}
    text["path_effects"] = [withStroke(linewidth=2.5, foreground="white")]
    for name in drawn:
        values, y, color = units[name], order.index(name), _BOXES[kinds[name]]
        panel.scatter(values, y + rng.uniform(-0.2, 0.2, len(values)), **_POINTS)
        draw_boxes(panel, [values], [y], color=color, width=0.56, orientation="horizontal")
        if len(values) < most:
            place = {"xytext": (0, 9), "ha": "center", "va": "bottom"}
            panel.annotate(f"n = {len(values)}", (float(np.median(values)), y), **place, **text)
    every = [*np.concatenate([units[name] for name in drawn]), *ceilings.values()]
    low, high = min(every), max(every)
    margin = 0.06 * max(high - low, 1e-6)
    low, high = low - margin, high + margin
    if len(ceilings) > 1:
        panel.axvspan(min(ceilings.values()), max(ceilings.values()), color=_CEILING["color"], alpha=0.08, linewidth=0)
    for i, (name, value) in enumerate(ceilings.items()):
        y = top - _CEILING_ROW * (i + 0.5)
        is_right = value > (low + high) / 2
        panel.vlines(value, bottom, y - 0.3 * _CEILING_ROW, zorder=1, **_CEILING)
        side = {"xytext": (-3 if is_right else 3, 0), "ha": "right" if is_right else "left", "va": "center_baseline"}
        panel.annotate(name, (value, y), color=_CEILING["color"], **side, **text)
    panel.set(xlim=(low, high), ylim=(bottom, top - _CEILING_ROW * n_ceilings))
    panel.set_yticks(range(len(order)), order)
    panel.locator_params(axis="x", nbins=4)
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines.left.set_bounds(bottom, top)
