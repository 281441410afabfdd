from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from os import PathLike

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.path import Path
from matplotlib.patheffects import Normal, Stroke

from transverse._validation import examples
from transverse.metrics._gene_map import true_pairs

from ._figure import COLORS, draw_matrix, finish, mark_cell, panels, root, short_names
from ._fit import NAME_SIZE, NAME_STEP, legend_below, settle, text_scale
from ._tables import check_no_missing, check_table, choose

_LONGEST = 18  # letters of a name, as many as an identifier of Ensembl
_ROW = 0.235  # height of a cell, inches
_LETTER = 0.7  # width of a letter, of its size; a little more if bold capitals
_SIDE = 14  # room for a tick to the left of a name, and for none to the right, points
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
    With ``model`` and ``adata`` of the example of :class:`~transverse.UGE`:

    >>> table = model.map_genes("mouse", "rat", n_top=5)
    >>> ax = tv.pl.gene_map(table, names=adata.var["gene"])
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
    genes = _chosen(pairs, genes, int(n_genes))
    pairs = pairs[pairs["source"].isin(genes)]
    ranks = range(1, pairs["rank"].max() + 1)
    values, targets, mutual = (
        pairs.pivot(index="source", columns="rank", values=key).reindex(genes, columns=ranks)
        for key in ("value", "target", "is_mutual_best")
    )
    limits = _limits(values, column, vmax)
    targets = targets.astype(object).where(targets.notna(), "")
    pairs = set() if true is None else set(zip(true["source"], true["target"], strict=True))
    is_right = np.array([[(gene, target) in pairs for target in targets.loc[gene]] for gene in genes])
    is_known = np.ones(len(genes), dtype=bool) if true is None else np.isin(genes, true["source"].to_list())

    rows, *texts = (
        short_names((shown.get(name, name) for name in own), _LONGEST) for own in (genes, *targets.to_numpy())
    )
    panel = panels(ax, 1, "figure", size=_size(rows, texts))[0]
    draw_matrix(panel, values, texts, cmap=cmap, label=column, vmin=limits[0], vmax=limits[1])
    panel.set_xticks(range(len(ranks)), ranks, rotation=0, ha="center")
    panel.set_yticks(range(len(genes)), rows, fontsize=NAME_SIZE)
    panel.tick_params(axis="both", length=0)
    panel.set(xlabel="rank of the target gene", ylabel="source gene")
    mutual = np.argwhere(mutual.eq(True).to_numpy())
    if ax is None and (handles := _handles(len(mutual) > 0, is_right.any(), not is_known.all())):
        legend_below([panel], handles)
    for text, right in zip(panel.texts, is_right.ravel(), strict=True):
        text.set(fontsize=NAME_SIZE, fontweight="bold" if right else "normal")
    width, height = _fit_texts(panel, values.shape)
    for i, j in mutual:
        mark_cell(panel, i, j, width=1.6, inset=(1.8 / width, 1.6 / height))
    _tick(panel, is_right, 0.55 * _SIDE / width)
    for label, known in zip(panel.get_yticklabels(), is_known, strict=False):  # none if there is no room
        if not known:
            label.set_color(_NO_TRUTH)
    finish([panel], ax, show, save)
    return panel


def _check_whole(argument: str, value: int) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{argument}={value!r} must be a whole number of at least 1.")


def _pairs(table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Source, target, rank, value and mark of each pair, checked, and what the value is."""
    check_table(table, ["source", "target", "rank"])
    has = [column for column in ("probability", "score") if column in table]
    if not has:
        raise KeyError(f"table lacks a column 'probability' or 'score'. It has: {examples(table.columns, 20)}.")
    for column in ("source", "target", "rank"):
        check_no_missing(table, column)
    numbers = {column: _numbers(table, column) for column in ("rank", *has)}
    rank = numbers["rank"]
    if (wrong := (rank < 1) | (rank % 1 != 0)).any():
        raise ValueError(f"table['rank'] must hold whole numbers of at least 1, but has {examples(rank[wrong])}.")
    # a map without an assignment has a column of probabilities, but none in it
    column = next((name for name in has if not np.isnan(numbers[name]).all()), None)
    if column is None:
        raise ValueError(f"table has no value in {' and '.join(map(repr, has))}.")
    value = numbers[column]
    if column == "probability" and (wrong := (value < 0) | (value > 1 + 1e-6)).any():
        raise ValueError(f"table['probability'] must be between 0 and 1, but has {examples(value[wrong])}.")
    pairs = pd.DataFrame(
        {
            "source": table["source"].astype(str).to_numpy(dtype=object),
            "target": table["target"].astype(str).to_numpy(dtype=object),
            "rank": rank.astype(int),
            "value": value,
            "is_mutual_best": _marks(table),
        }
    )
    if (repeated := pairs.duplicated(["source", "rank"])).any():
        of = pairs[repeated].drop_duplicates("source")
        found = examples(f"{source}, rank {rank}" for source, rank in zip(of["source"], of["rank"], strict=True))
        raise ValueError(f"table must have one candidate for each rank of a source gene, but has several: {found}.")
    return pairs, column


def _numbers(table: pd.DataFrame, column: str) -> np.ndarray:
    try:
        numbers = pd.to_numeric(table[column]).to_numpy(dtype=float, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise ValueError(f"table[{column!r}] must hold numbers: {error}.") from error
    if np.isinf(numbers).any():
        raise ValueError(f"table[{column!r}] has infinite values.")
    return numbers


def _marks(table: pd.DataFrame) -> np.ndarray:
    """Which pairs are mutual bests; none if the table does not say."""
    if "is_mutual_best" not in table:
        return np.zeros(len(table), dtype=bool)
    marks = table["is_mutual_best"]
    if not marks.dropna().isin([True, False]).all():
        raise ValueError("table['is_mutual_best'] must hold True or False only.")
    return marks.eq(True).fillna(False).to_numpy(dtype=bool)


def _shown_names(names: Mapping[str, str] | pd.Series | None) -> dict[str, str]:
    """What to call genes; those whose name is missing are called as they are."""
    if names is None:
        return {}
    if not isinstance(names, Mapping | pd.Series):
        raise TypeError(f"names must be a mapping or a Series, but got {type(names).__name__}.")
    if isinstance(names, pd.Series) and not names.index.is_unique:
        repeated = names.index[names.index.duplicated()].unique()
        raise ValueError(f"The index of names must be unique, but these repeat: {examples(repeated)}.")
    return {str(gene): str(name) for gene, name in names.items() if pd.notna(name)}


def _chosen(pairs: pd.DataFrame, genes: str | Sequence[str] | None, n_genes: int) -> list[str]:
    """Source genes that are asked for, or those with the best candidates, the best first."""
    if genes is not None:
        wanted = genes if isinstance(genes, str) else [str(gene) for gene in genes]
        return choose(wanted, list(pairs["source"].unique()), "genes")
    best = pairs.sort_values("rank", kind="stable").drop_duplicates("source").sort_index()
    return best.sort_values("value", ascending=False, kind="stable")["source"].iloc[:n_genes].tolist()


def _limits(values: pd.DataFrame, column: str, vmax: float | None) -> tuple[float, float]:
    """Values of the lightest and of the darkest colour."""
    drawn = values.to_numpy(dtype=float)
    if np.isnan(drawn).all():
        raise ValueError(f"table[{column!r}] has no value of the genes to be drawn: {examples(values.index)}.")
    low, high = (0.0, 1.0) if column == "probability" else (float(np.nanmin(drawn)), float(np.nanmax(drawn)))
    if vmax is not None and vmax <= low:
        raise ValueError(f"vmax={vmax!r} must be above the value of the lightest colour, {low:.3g}.")
    return low, high if vmax is None else vmax


def _size(rows: Sequence[str], texts: Sequence[Sequence[str]]) -> tuple[float, float]:
    """Width and height (inches) of a figure in which all names fit."""
    n, inner = len(texts[0]), max(len(text) for own in texts for text in own)
    points = _LETTER * NAME_SIZE * (max(map(len, rows)) + n * inner) + 2 * n * _SIDE
    return points / 72 + 1.6 * text_scale(), _ROW * len(rows) + text_scale()


def _tick(panel: Axes, is_right: np.ndarray, inset: float) -> None:
    """A tick at the left of the cells of right candidates."""
    i, j = np.nonzero(is_right)
    if len(i):
        ticks = panel.scatter(j - 0.5 + inset, i, s=24, linewidths=1.6, zorder=4, **_RIGHT)
        ticks.set_path_effects([Stroke(linewidth=3.4, foreground="white"), Normal()])


def _handles(has_mutual: bool, has_right: bool, lacks_truth: bool) -> list[Line2D | Patch]:
    """What a legend shows, of what is drawn."""
    handles = []
    if has_mutual:
        handles.append(Patch(facecolor="none", edgecolor="black", linewidth=1.6, label="each the other's best"))
    if has_right:
        look = {"markerfacecolor": "none", "markeredgecolor": _RIGHT["edgecolors"], "markeredgewidth": 1.6}
        handles.append(Line2D([], [], marker=_TICK, linestyle="", markersize=6, label="true target", **look))
    if lacks_truth:
        handles.append(Patch(color=_NO_TRUTH, label="true target not known"))
    return handles


def _fit_texts(panel: Axes, shape: tuple[int, int]) -> tuple[float, float]:
    """Let names be no wider than their cells, and rows have names if there is room; width and height of a cell, points."""
    settle([panel])
    box, points = panel.get_window_extent(), 72 / root(panel).dpi
    width, height = box.width * points / shape[1], box.height * points / shape[0]
    room = max(width - 2 * _SIDE, 0.5 * width)
    for text in panel.texts:
        taken = text.get_window_extent().width * points
        text.set_fontsize(NAME_SIZE * min(1, room / max(taken, 1), height / NAME_STEP))
    if height < NAME_STEP:
        panel.set_yticks([])
    return width, height
