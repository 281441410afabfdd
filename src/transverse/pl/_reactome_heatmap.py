from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from os import PathLike
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import pdist

from transverse._groups import dense
from transverse._validation import examples

from ._figure import category_colors, check_axes, finish, panels, root, short_names
from ._fit import NAME_SIZE, NAME_STEP, fit_titles, legend_below, settle, text_scale
from ._tables import check_no_missing, choose, in_order

_NOT_MEASURED = "#b3b3b3"
_MOST_NAMED = 90  # genes for whose names there is room in a figure of our own
_ROW = 1.1 * NAME_STEP / 72
_STRIP = 0.13  # height of the strip of colours, inches
_SHARE = 0.99  # of the values, within the colours


def reactome_heatmap(
    reactome: AnnData,
    genes: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    species: str | Sequence[str] | None = None,
    *,
    n_genes: int = 40,
    groupby: Literal["organ", "drug"] = "organ",
    layer: str | None = None,
    vmax: float | None = None,
    cmap: str = "RdBu_r",
    palette: str | Sequence[str] | Mapping[str, str] | None = None,
    ncols: int | None = None,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    save: str | PathLike | None = None,
) -> list[Axes]:
    """Reactomes of genes: how they change (colours) in each organ and with each drug, a panel for each species.

    All panels have the same entries in the same order, grouped by organ, with a strip that tells the drugs. Grey is what
    was not measured.

    Parameters
    ----------
    reactome
        What :func:`transverse.tl.reactome` returns, genes x entries, NaN where not measured.
    genes
        Genes to draw, by their names in ``reactome.obs_names``, from top to bottom; or such a list for each species. Pairs
        of a gene map are beside one another if their sources are given for one species and their targets for the other.
    species
        Species to draw, in this order. By default those of the genes, and all if there are none.
    n_genes
        Without ``genes``: how many to draw of each species, those of the largest mean absolute value over the measured
        entries. They are ordered so that similar ones are neighbours.
    groupby
        What entries are grouped by: ``"organ"``, then the strip tells the drugs; or ``"drug"``, then the organs.
    layer
        Layer to use instead of ``X``.
    vmax
        Value of the darkest colours, positive and negative. By default 99% of the absolute values that are drawn are below.
    cmap
        Colormap, a diverging one: its middle is 0.
    palette
        Colours of the strip: a list, the name of a colormap, or a mapping from drugs (or organs).
    ncols
        Panels in a row. By default all.
    ax
        Axes to draw on, one for each species; these get no legend.
    show
        Show the figure; by default only where scanpy would (``sc.settings.autoshow``) and no axes are given.
    save
        File to write the figure to.

    Returns
    -------
    The axes, one for each species. Genes are named where the names fit. The reactome is not changed.

    Raises
    ------
    KeyError
        If a column, the layer, a species or a gene is missing.
    ValueError
        If a gene is not of the species that it is given for, there are no genes or values to draw, values are infinite, an
        argument is out of range, or not as many axes as species are given.
    TypeError
        If the reactome is not an AnnData.

    Examples
    --------
    >>> import transverse as tv
    >>> r = tv.tl.reactome(tv.datasets.simulate_reactomes(n_genes=50, n_animals=3), layer="counts")
    >>> axes = tv.pl.reactome_heatmap(r)
    >>> table = tv.tl.gene_map(r, "mouse", "rat", n_top=1, n_permutations=20)
    >>> best = table[table["is_mutual_best"]].nsmallest(10, "p_value")
    >>> axes = tv.pl.reactome_heatmap(r, {"mouse": best["source"], "rat": best["target"]})
    >>> len(axes)
    2
    """
    _check(reactome, n_genes, groupby, layer, vmax)
    other = "drug" if groupby == "organ" else "organ"
    values = dense(reactome.X if layer is None else reactome.layers[layer]).astype(float)
    if np.isinf(values).any():
        raise ValueError("The reactome has infinite values.")
    rows = _rows(reactome, values, genes, species, int(n_genes))
    groups, levels = (in_order(reactome.var[key]) for key in (groupby, other))
    codes = [
        pd.Categorical(reactome.var[key], categories=own).codes for key, own in ((groupby, groups), (other, levels))
    ]
    order = np.lexsort(codes[::-1])
    group, level = (own[order] for own in codes)
    drawn = {name: values[own][:, order] for name, own in rows.items()}
    sizes = np.abs(np.concatenate([own.ravel() for own in drawn.values()]))
    if np.isnan(sizes).all():
        raise ValueError(f"None of the genes of {examples(rows)} has a measured value.")
    if vmax is None:
        vmax = float(np.nanquantile(sizes, _SHARE)) or 1.0

    colors = category_colors(levels, palette)
    check_axes(ax, len(rows), "species")
    axes = panels(ax, len(rows), "species", ncols=ncols, size=_size(reactome.n_vars, max(map(len, rows.values()))))
    colormap = plt.get_cmap(cmap).with_extremes(bad=_NOT_MEASURED)
    for panel, (name, matrix) in zip(axes, drawn.items(), strict=True):
        image = panel.imshow(
            np.ma.masked_invalid(matrix), cmap=colormap, vmin=-vmax, vmax=vmax, aspect="auto", interpolation="nearest"
        )
        panel.set_title(f"{name}, {matrix.shape[0]} genes")
        panel.set_yticks([])
        panel.spines[:].set_visible(False)
        _name_groups(panel, group, groups)
    extend = "both" if np.nanmax(sizes) > vmax else "neither"
    axes[0].figure.colorbar(
        image, ax=axes, label=_label(reactome, layer), extend=extend, fraction=0.03, pad=0.02, aspect=25
    )
    if ax is None:
        handles = [Patch(color=colors[name], label=short_names([name], 24)[0]) for name in levels]
        if np.isnan(sizes).any():
            handles.append(Patch(color=_NOT_MEASURED, label="not measured"))
        legend_below(axes, handles)
    _draw_strips(axes, [colors[levels[code]] for code in level])
    _name_genes(axes, [reactome.obs_names[own] for own in rows.values()])
    fit_titles(axes)
    finish(axes, ax, show, save)
    return axes


def _check(reactome: AnnData, n_genes: int, groupby: str, layer: str | None, vmax: float | None) -> None:
    if not isinstance(reactome, AnnData):
        raise TypeError(f"reactome must be an AnnData, as tl.reactome returns it, but got {type(reactome).__name__}.")
    if groupby not in ("organ", "drug"):
        raise ValueError(f"groupby={groupby!r} must be 'organ' or 'drug'.")
    for axis, table, key in (
        ("obs", reactome.obs, "species"),
        ("var", reactome.var, "organ"),
        ("var", reactome.var, "drug"),
    ):
        if key not in table:
            raise KeyError(f"reactome.{axis} has no column {key!r}. Columns: {examples(table.columns, 20)}.")
        check_no_missing(table, key, f"reactome.{axis}")
    if layer is not None and layer not in reactome.layers:
        raise KeyError(
            f"layer={layer!r} is not in reactome.layers. Layers: {examples(k for k in reactome.layers if k)}."
        )
    if not isinstance(n_genes, Integral) or isinstance(n_genes, bool) or n_genes < 1:
        raise ValueError(f"n_genes={n_genes!r} must be a whole number of at least 1.")
    if vmax is not None and not (np.isfinite(vmax) and vmax > 0):
        raise ValueError(f"vmax={vmax!r} must be positive.")
    if 0 in reactome.shape:
        raise ValueError(f"reactome is empty: its shape is {reactome.shape}.")


def _rows(
    reactome: AnnData,
    values: np.ndarray,
    genes: Sequence[str] | Mapping[str, Sequence[str]] | None,
    species: str | Sequence[str] | None,
    n_genes: int,
) -> dict[str, np.ndarray]:
    """Rows of the genes to draw, from top to bottom, for each species."""
    of_gene = reactome.obs["species"].astype(str).to_numpy()
    known = [str(name) for name in in_order(reactome.obs["species"])]
    if genes is None:
        chosen = choose(species, known, "species", "the reactome")
        return {name: _strongest(values, np.flatnonzero(of_gene == name), n_genes) for name in chosen}
    if not isinstance(genes, Mapping):
        rows = _find(reactome, genes)
        own = [name for name in known if name in of_gene[rows]] if species is None else species
        chosen = choose(own, known, "species", "the reactome")
        result = {name: rows[of_gene[rows] == name] for name in chosen}
    else:
        chosen = choose(list(genes) if species is None else species, known, "species", "the reactome")
        if lacking := [name for name in chosen if name not in genes]:
            raise KeyError(f"genes has no list for {examples(lacking)}, only for {examples(genes)}.")
        result = {name: _find(reactome, genes[name]) for name in chosen}
        for name, rows in result.items():
            if (others := of_gene[rows] != name).any():
                raise ValueError(f"Genes that are not of {name!r}: {examples(reactome.obs_names[rows[others]])}.")
    if empty := [name for name, rows in result.items() if not len(rows)]:
        raise ValueError(f"There are no genes to draw of {examples(empty)}.")
    return result


def _find(reactome: AnnData, genes: str | Sequence[str]) -> np.ndarray:
    genes = [genes] if isinstance(genes, str) else list(genes)
    if not genes:
        raise ValueError("genes must name at least one, but is empty.")
    rows = reactome.obs_names.get_indexer(genes)
    if (rows < 0).any():
        absent = [gene for gene, row in zip(genes, rows, strict=True) if row < 0]
        raise KeyError(f"genes not in the reactome: {examples(absent)}. It has: {examples(reactome.obs_names)}.")
    return rows


def _strongest(values: np.ndarray, rows: np.ndarray, n: int) -> np.ndarray:
    """Of these rows, those of the largest mean absolute value, with similar ones beside one another."""
    own = np.abs(values[rows])
    measured = ~np.isnan(own)
    mean = np.nansum(own, axis=1) / np.maximum(measured.sum(axis=1), 1)
    mean[~measured.any(axis=1)] = -1
    rows = rows[np.argsort(-mean, kind="stable")[:n]]
    if len(rows) < 3:
        return rows
    return rows[leaves_list(linkage(pdist(np.nan_to_num(values[rows])), "average", optimal_ordering=True))]


def _name_groups(panel: Axes, group: np.ndarray, names: Sequence[str]) -> None:
    """Names of the groups of columns below, and white lines between these."""
    ends = np.flatnonzero(np.diff(group, append=-1))
    starts = np.append(0, ends[:-1] + 1)
    for start in starts[1:]:
        panel.axvline(start - 0.5, color="white", linewidth=1.5)
    labels = short_names([names[group[start]] for start in starts])
    room = panel.get_window_extent().width / root(panel).dpi * (ends - starts + 1).min() / len(group)
    turned = room < 0.1 * text_scale() * max(map(len, labels))
    how = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if turned else {}
    panel.set_xticks((starts + ends) / 2, labels, fontsize="small", **how)
    panel.tick_params(axis="both", length=0)
    panel.grid(False)


def _name_genes(axes: Sequence[Axes], names: Sequence[Sequence[str]]) -> None:
    """Names of the rows, in the panels where no name would touch the next one."""
    for panel, own in zip(axes, names, strict=True):
        bottom, top = panel.get_ylim()
        row = panel.get_window_extent().height * 72 / root(panel).dpi / (bottom - top)
        if row >= NAME_STEP:
            panel.set_yticks(range(len(own)), short_names(own), fontsize=NAME_SIZE)


def _draw_strips(axes: Sequence[Axes], colors: Sequence[str]) -> None:
    """A strip of a colour for each column, above the rows."""
    settle(axes)
    for panel in axes:
        height = panel.get_window_extent().height / root(panel).dpi
        share = min(0.3, _STRIP / height)
        bottom, top = panel.get_ylim()
        rows = bottom - top
        thick = rows * share / (1 - share)
        panel.set_ylim(bottom, top - 1.25 * thick)
        for i, color in enumerate(colors):
            panel.add_patch(
                Rectangle((i - 0.5, top - 1.25 * thick), 1, thick, facecolor=color, edgecolor="white", linewidth=0.5)
            )


def _label(reactome: AnnData, layer: str | None) -> str:
    if layer is not None:
        return {"difference": "change", "se": "standard error of the change"}.get(layer, layer)
    about = reactome.uns.get("reactome", {})
    label = "change / standard error" if about.get("method") == "standardized" else "change"
    return f"{label}, share of the gene's" if about.get("parameters", {}).get("l1_normalize") else label


def _size(n_entries: int, n_rows: int) -> tuple[float, float]:
    """Width and height (inches) of a panel."""
    width = max(3.0, 0.14 * n_entries) + text_scale() * 1.4
    rows = n_rows * _ROW if n_rows <= _MOST_NAMED else 9.0
    return width, max(1.2, rows) + 0.2 + text_scale() * 1.2
