from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from os import PathLike

import numpy as np
import scanpy as sc
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba_array
from matplotlib.lines import Line2D

from transverse._groups import dense
from transverse.metrics._conditions import CellGroups, Cells, cells_of_conditions

from ._figure import COLORS, GREY, check_axes, finish, panels
from ._predictions import Names, choose_predictions, condition_names

_NAMES = {"control": "control", "truth": "true", "pred": "predicted"}
_COLORS = {"control": "#808080", "truth": COLORS[0], "pred": COLORS[1]}
_FEWEST = 10


def prediction_umap(
    truth: Cells,
    pred: Cells,
    control: Cells | None = None,
    *,
    perturbation: Names = None,
    context: Names = None,
    per_condition: bool = False,
    perturbation_key: str = "perturbation",
    context_key: str | None = "cell_type",
    layer: str | None = None,
    n_comps: int = 50,
    n_neighbors: int = 15,
    max_cells: int = 5000,
    size: float | None = None,
    random_state: int = 0,
    max_panels: int = 12,
    ncols: int = 4,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    save: str | PathLike | None = None,
) -> list[Axes]:
    """One UMAP of true, predicted and control cells.

    All cells share the principal components, the neighbour graph and the coordinates. A good prediction lies among the
    true cells and away from the controls; where true cells lie among the controls, the condition has no effect to predict.

    Parameters
    ----------
    truth, pred, control, perturbation_key, context_key, layer
        As in :func:`transverse.metrics.response_scores`: treated cells, predictions of some of their conditions, and
        control cells of their contexts. Nothing is subtracted, so the controls may be those that predict.
    perturbation, context
        Conditions to draw, by their names in ``pred.obs``; by default all of ``pred``.
    per_condition
        A panel for each condition, with the same coordinates, over all other cells in light grey.
    n_comps
        Principal components, at most; fewer where there are fewer cells or genes.
    n_neighbors
        Neighbours of a cell in the graph.
    max_cells
        At most so many true, predicted and control cells each, drawn at random.
    size
        Size of the points, in square points; by default smaller for more cells.
    random_state
        Seed of the draw, the components, the graph and UMAP.
    max_panels
        More conditions than that are refused if each gets a panel.
    ncols
        Panels in a row.
    ax
        Axes to draw on, one for each panel.
    show
        Show the figure; by default only where scanpy would (``sc.settings.autoshow``) and no axes are given.
    save
        File to write the figure to.

    Returns
    -------
    The axes, one, or one for each condition, sorted by name. The user's objects are not changed.

    Raises
    ------
    KeyError
        If a column, a layer, a perturbation or a context is missing.
    ValueError
        If genes, conditions or controls are missing, values are not finite, there are fewer than 10 cells, more conditions
        than ``max_panels``, or not as many axes as panels, or a number is not a whole one or too small.
    TypeError
        If arrays and AnnData are mixed.

    Examples
    --------
    >>> import transverse as tv
    >>> adata = tv.datasets.simulate_responses(n_contexts=2, n_perturbations=3, n_genes=30, n_cells_per_condition=20)
    >>> tv.pp.split_responses(adata, holdout=[("P01", "C2")], valid_size=0)
    >>> train, test = adata[adata.obs["split"] == "train"], adata[adata.obs["split"] == "test"]
    >>> is_control = test.obs["perturbation"] == "control"
    >>> pred = tv.baselines.MeanShift().fit(train).predict("P01", context="C2")
    >>> axes = tv.pl.prediction_umap(test[~is_control], pred, test[is_control])
    """
    numbers = {
        "n_comps": (n_comps, 1),
        "n_neighbors": (n_neighbors, 2),
        "max_cells": (max_cells, 1),
        "ncols": (ncols, 1),
    }
    for name, (value, least) in numbers.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name}={value!r} must be a whole number of at least {least}.")
    keys = {"perturbation_key": perturbation_key, "context_key": context_key}
    pred = choose_predictions(pred, perturbation, context, **keys, at_most=max_panels if per_condition else None)
    conditions, sides = cells_of_conditions(truth, pred, control, layer=layer, **keys)
    names = condition_names(conditions)
    n_panels = len(names) if per_condition else 1
    check_axes(ax, n_panels, "panels")
    rng = np.random.default_rng(random_state)
    # controls first, so that they are drawn below
    drawn = {name: _draw(sides[name], max_cells, rng) for name in _NAMES if name in sides}
    side = np.repeat(list(drawn), [len(cells) for _, cells in drawn.values()])
    if len(side) < _FEWEST:
        raise ValueError(f"A UMAP needs at least {_FEWEST} cells, but there are {len(side)}.")
    group = np.concatenate([groups for groups, _ in drawn.values()])
    joint = AnnData(np.concatenate([cells for _, cells in drawn.values()]))
    sc.pp.pca(joint, n_comps=max(1, min(n_comps, *(n - 1 for n in joint.shape))), random_state=random_state)
    sc.pp.neighbors(joint, n_neighbors=n_neighbors, use_rep="X_pca", random_state=random_state)
    sc.tl.umap(joint, random_state=random_state)
    xy = joint.obsm["X_umap"]
    size = min(14.0, 40_000 / joint.n_obs) if size is None else size
    colors = to_rgba_array([_COLORS[name] for name in side])

    axes = panels(ax, n_panels, "panels", ncols=ncols, size=(3.9, 3.8))
    for i, panel in enumerate(axes):
        own = np.ones(len(side), dtype=bool)
        if per_condition:
            own = group == np.repeat(
                [sides[name].of_condition[i] for name in drawn], [len(c) for _, c in drawn.values()]
            )
        # true and predicted cells in a random order, so that neither hides the other
        treated = rng.permutation(np.flatnonzero(own & (side != "control")))
        points = {"s": size, "linewidths": 0, "rasterized": True}
        panel.scatter(*xy[~own].T, c=GREY, **points)
        for cells in (np.flatnonzero(own & (side == "control")), treated):
            panel.scatter(*xy[cells].T, c=colors[cells], **points)
        panel.set(xlabel="UMAP1", ylabel="UMAP2", xticks=[], yticks=[])
        title = names[i] if per_condition or len(names) == 1 else f"{len(names)} conditions"
        panel.set_title(title, fontsize="medium")
        panel.spines[["top", "right"]].set_visible(False)
    labels = {_NAMES[name]: _COLORS[name] for name in reversed(list(drawn))}
    if len(axes) > 1:
        labels["other cells"] = GREY
    axes[min(ncols, len(axes)) - 1].legend(
        handles=[Line2D([], [], marker="o", linestyle="", color=color, label=name) for name, color in labels.items()],
        loc="center left",
        bbox_to_anchor=(1, 0.5),
        frameon=False,
    )
    finish(axes, ax, show, save)
    return axes


def _draw(side: CellGroups, max_cells: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Group and expression of the cells of all conditions, or of as many as may be drawn."""
    groups = np.unique(side.of_condition)  # truth may have more
    cells = np.concatenate([side.groups[group] for group in groups])
    group = np.repeat(groups, [len(side.groups[group]) for group in groups])
    chosen = rng.choice(len(cells), max_cells, replace=False) if len(cells) > max_cells else np.arange(len(cells))
    chosen = chosen[np.argsort(cells[chosen])]  # a file is read in order
    return group[chosen], dense(side.matrix[cells[chosen]]).astype(np.float32)
