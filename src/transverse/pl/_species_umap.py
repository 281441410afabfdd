from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba_array

from transverse._validation import column_names

from ._figure import GREY, MISSING, category_colors, check_axes, finish, panels
from ._tables import check_no_missing, in_order


def species_umap(
    adatas: Mapping[str, AnnData] | AnnData,
    color: str | Mapping[str, str],
    *,
    use_rep: str = "X_scSpecies",
    species_key: str | None = "species",
    palette: str | Sequence[str] | Mapping[str, str] | None = None,
    size: float | None = None,
    random_state: int = 0,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    save: str | PathLike | None = None,
) -> list[Axes]:
    """One UMAP of several species, a panel for each, with shared coordinates and colours.

    Each panel shows the cells of its species in colour over those of all others in grey. Samples, or genes, of several
    species can be drawn as well.

    Parameters
    ----------
    adatas
        Species names and their data, with a representation in one common space. Or one object with all of them, such as
        :func:`transverse.pp.stack_species` returns.
    color
        Column of ``.obs`` with categories to colour by, or a column for each species.
    use_rep
        Key of ``.obsm`` with the common representation, of shape ``(n_cells, n_latent)``.
    species_key
        Of one object with all species: the column of ``.obs`` that tells them apart, or None to draw all in one panel. Not
        used otherwise.
    palette
        Colours of the categories: a mapping, a list, or the name of a colormap. By default nine that colour-blind
        readers can tell apart, and scanpy's for more categories; ``"unknown"`` is dark grey, a missing label a lighter one.
    size
        Size of the points, in square points; by default smaller for more cells.
    random_state
        Seed of the neighbour graph and of UMAP.
    ax
        Axes to draw on, one for each species.
    show
        Show the figure; by default only where scanpy would (``sc.settings.autoshow``) and no axes are given.
    save
        File to write the figure to.

    Returns
    -------
    The axes, one for each species. The user's objects are not changed.

    Raises
    ------
    KeyError
        If a representation, a column or the colour of a category is missing.
    ValueError
        If there are no cells, the species of a cell is missing, a column holds numbers and not categories, the representations differ in width, or
        there are not as many axes as species.

    Examples
    --------
    With ``mouse`` and ``human`` of the example of :class:`~transverse.ScSpecies`:

    >>> axes = tv.pl.species_umap({"mouse": mouse, "human": human}, color="cell_type")

    Samples of a stack, ``adata`` of the example of :class:`~transverse.UGE`: those of each species by their organ, and all in one
    panel by their species:

    >>> axes = tv.pl.species_umap(adata, "organ", use_rep="X_UGE")
    >>> axes = tv.pl.species_umap(adata, "species", use_rep="X_UGE", species_key=None)
    >>> len(axes)
    1
    """
    titles = True
    if isinstance(adatas, AnnData):
        titles = species_key is not None
        adatas = _by_species(adatas, species_key)
    labels = _checked_labels(adatas, color, use_rep)
    categories = list(dict.fromkeys(c for column in labels.values() for c in column.cat.categories))
    colors = category_colors(categories, palette)
    check_axes(ax, len(adatas), "species")

    joint = AnnData(obsm={use_rep: np.concatenate([np.asarray(adata.obsm[use_rep]) for adata in adatas.values()])})
    sc.pp.neighbors(joint, use_rep=use_rep, random_state=random_state)
    sc.tl.umap(joint, random_state=random_state)
    xy = joint.obsm["X_umap"]
    species = np.repeat(list(adatas), [adata.n_obs for adata in adatas.values()])
    point_colors = to_rgba_array([colors[label] for column in labels.values() for label in column])
    size = min(30.0, 40_000 / joint.n_obs) if size is None else size

    axes = panels(ax, len(adatas), "species", size=(4.5, 4.2))
    for panel, name in zip(axes, adatas, strict=True):
        own = species == name
        panel.scatter(*xy[~own].T, s=size, c=GREY, linewidths=0, rasterized=True)
        # in a random order, so that no category hides the others
        order = np.random.default_rng(random_state).permutation(np.flatnonzero(own))
        panel.scatter(*xy[order].T, s=size, c=point_colors[order], linewidths=0, rasterized=True)
        panel.set(title=name if titles else "", xlabel="UMAP1", ylabel="UMAP2", xticks=[], yticks=[])
    handles = [plt.Line2D([], [], marker="o", linestyle="", color=colors[c], label=c) for c in categories]
    # columns of at most 16 rows, so that the legend is no taller than the panel
    axes[-1].legend(
        handles=handles, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, ncols=-(-len(handles) // 16)
    )
    finish(axes, ax, show, save)
    return axes


def _by_species(adata: AnnData, species_key: str | None) -> dict[str, AnnData]:
    """The cells of each species; raises where it is missing."""
    if adata.n_obs == 0:
        raise ValueError("adatas has no cells.")
    if species_key is None:
        return {"adatas": adata}
    if species_key not in adata.obs:
        raise KeyError(f"species_key={species_key!r} is not in adatas.obs. Columns: {column_names(adata.obs)}.")
    check_no_missing(adata.obs, species_key, "adatas.obs")
    of_cell = adata.obs[species_key]
    return {str(name): adata[(of_cell == name).to_numpy(dtype=bool)] for name in in_order(of_cell)}


def _checked_labels(
    adatas: Mapping[str, AnnData], color: str | Mapping[str, str], use_rep: str
) -> dict[str, pd.Series]:
    """Labels of each species, categories that occur only; raises where something does not fit."""
    if len(adatas) == 0:
        raise ValueError("adatas must hold the data of at least one species, but is empty.")
    labels = {}
    for name, adata in adatas.items():
        if use_rep not in adata.obsm:
            raise KeyError(f"use_rep={use_rep!r} is not in the .obsm of {name!r}. Keys: {list(adata.obsm)}.")
        if not isinstance(color, str) and name not in color:
            raise KeyError(f"color names no column for {name!r}. It has: {list(color)}.")
        column = color if isinstance(color, str) else color[name]
        if column not in adata.obs:
            raise KeyError(f"color={column!r} is not in the .obs of {name!r}. Columns: {column_names(adata.obs)}.")
        if pd.api.types.is_float_dtype(adata.obs[column]):
            raise ValueError(f"color={column!r} of {name!r} must hold categories, but holds numbers.")
        values = adata.obs[column].astype("category").cat.remove_unused_categories()
        values = values.cat.rename_categories(values.cat.categories.astype(str))
        if values.isna().any():
            values = values.cat.add_categories(MISSING).fillna(MISSING)
        labels[name] = values
    widths = {name: adata.obsm[use_rep].shape[1] for name, adata in adatas.items()}
    if len(set(widths.values())) > 1:
        raise ValueError(f"The representations must be of one width, but are {widths}.")
    return labels
