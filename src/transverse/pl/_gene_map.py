from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from os import PathLike

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import Normal, Stroke
from matplotlib.path import Path

from transverse._validation import examples
from transverse.metrics._gene_map import true_pairs

from ._figure import COLORS, draw_matrix, finish, mark_cell, panels, root, short_names
from ._fit import NAME_SIZE, NAME_STEP, legend_below, settle, text_scale
from ._tables import check_no_missing, check_table, choose

_LONGEST = 14  # letters of a name in a cell
_CELL = (1.25, 0.235)  # inches
_LETTER = 0.62  # width of a letter, of its size
_NO_TRUTH = "#8c8c8c"
# drawn, and not a letter, which many fonts lack
_TICK = Path([(-0.9, 0.05), (-0.3, -0.6), (0.9, 0.8)], [Path.MOVETO, Path.LINETO, Path.LINETO])
_RIGHT = {"marker": _TICK, "facecolors": "none", "edgecolors": COLORS[2]}


def gene_map(
    table: pd.DataFrame,
    genes: str | Sequence[str] | None = None,
    *,
    n_genes: int = 20,
    n_top: int | None = 5,
    names: Mapping[str, str] | pd.Series | None = None,
    truth: pd.DataFrame | pd.Series | Mapping[str, str | Sequence[str]] | None = None,
    vmax: float | None = None,
    cmap: str = "Blues",
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | PathLike | None = None,
) -> Axes:
    """The target genes that source genes (rows) were mapped to, the best ones first.

    Colour is how probable a candidate is, or its score where the map has no probabilities.

    Parameters
    ----------
    table
        A map of genes, as ``map_genes`` and :func:`transverse.tl.gene_map` return it: a row for each pair with the columns
        ``"source"``, ``"target"``, ``"rank"`` (1 is best), ``"score"`` or ``"probability"``, and ``"is_mutual_best"`` if
        these are to be marked.
    genes
        Source genes to draw, from top to bottom.
    n_genes
        Without ``genes``: how many to draw at most, those whose best candidate is most probable, or of the highest score.
    n_top
        Candidates of each to draw; None for all in the table.
    names
        What to call source and target genes, by their names in the table, such as ``adata.var["gene"]`` of a stack. Others
        are called as in the table.
    truth
        True targets, as in :func:`transverse.metrics.gene_map_scores`. Candidates that are right get a tick; source genes
        without a true target are written in grey.
    vmax
        Value of the darkest colour. By default 1 for probabilities, and the highest score that is drawn.
    cmap
        Colormap.
    ax
        Axes to draw on; these get no legend.
    show
        Show the figure; by default only where scanpy would (``sc.settings.autoshow``) and no axes are given.
    save
        File to write the figure to.

    Returns
    -------
    The axes. A border marks pairs of which each is the other's best. The table is not changed.

    Raises
    ------
    KeyError
        If a column or a gene is missing.
    ValueError
        If the table is empty, lacks a name, has two candidates of one rank or values out of range, ``truth`` is empty, or an
        argument is out of range.
    TypeError
        If ``table``, ``names`` or ``truth`` has another type.

    Examples
    --------
    >>> table = model.map_genes("mouse", "rat", n_top=5)  # doctest: +SKIP
    >>> ax = tv.pl.gene_map(table, names=adata.var["gene"])  # doctest: +SKIP
    """
    _check_whole("n_genes", n_genes)
    if n_top is not None:
        _check_whole("n_top", n_top)
    if vmax is not None and not np.isfinite(vmax):
        raise ValueError(f"vmax={vmax!r} must be a finite number.")
    pairs, column = _pairs(table)
    shown = _shown_names(names)
    true = None if truth is None else true_pairs(truth).astype(str)
    if n_top is not None and (pairs := pairs[pairs["rank"] <= n_top]).empty:
        raise ValueError(f"The table has no candidate of the first {n_top} ranks.")
    if genes is None:
        best = pairs.sort_values("rank", kind="stable").drop_duplicates("source")
        best = best.sort_index().sort_values("value", ascending=False, kind="stable")
        genes = best["source"].iloc[:n_genes].tolist()
    else:
        genes = choose(genes if isinstance(genes, str) else list(map(str, genes)), pairs["source"].unique(), "genes")
    pairs = pairs[pairs["source"].isin(genes)]
    values, targets, mutual = (
        pairs.pivot(index="source", columns="rank", values=key).reindex(
            genes, columns=range(1, pairs["rank"].max() + 1)
        )
        for key in ("value", "target", "is_mutual_best")
    )
    if (drawn := values.to_numpy(dtype=float))[~np.isnan(drawn)].size == 0:
        raise ValueError(f"The table has no {column} of the genes that are to be drawn: {examples(genes)}.")
    vmin = 0.0 if column == "probability" else float(np.nanmin(drawn))
    if vmax is None:
        vmax = 1.0 if column == "probability" else float(np.nanmax(drawn))
    if vmax < vmin or (column == "probability" and vmax == 0):
        raise ValueError(f"vmax={vmax:g} must be above the lowest value, {vmin:g}.")

    rows, texts = (
        [short_names((shown.get(name, name) for name in own), _LONGEST) for own in table]
        for table in ([genes], targets.astype(object).where(targets.notna(), "").to_numpy())
    )
    size = (1.9 * text_scale() + _CELL[0] * values.shape[1], 1.0 * text_scale() + _CELL[1] * len(genes))
    panel = panels(ax, 1, "figure", size=size)[0]
    draw_matrix(panel, values, texts, cmap=cmap, label=column, vmin=vmin, vmax=vmax)
    panel.set_xticks(range(values.shape[1]), values.columns, rotation=0, ha="center")
    panel.set_yticks(range(len(genes)), rows[0], fontsize=NAME_SIZE)
    panel.tick_params(axis="both", length=0)
    panel.set(xlabel="rank of the target gene", ylabel="source gene")
    mutual = mutual.eq(True).to_numpy()
    for i, j in np.argwhere(mutual):
        mark_cell(panel, i, j)
    handles = [Patch(facecolor="none", edgecolor="black", linewidth=2, label="each the other's best")] * mutual.any()
    if true is not None:
        handles += _mark_right(panel, targets, true)
    if ax is None and handles:
        legend_below([panel], handles)
    _fit_texts(panel, values.shape)
    finish([panel], ax, show, save)
    return panel
