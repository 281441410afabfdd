"""Predicted against true values of genes: what the scatter plots of responses and of signatures share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from transverse._groups import dense, group_profiles
from transverse._validation import align_genes, check_finite
from transverse.metrics._conditions import Cells

from ._figure import COLORS, short_names
from ._fit import legend_below, settle
from ._labels import label_beside

IDENTITY = {"color": "black", "linestyle": "--", "linewidth": 0.8}
ZERO = {"color": "#bdbdbd", "linewidth": 0.7, "zorder": 0}

_SPREAD = "std"
_ALL = {"color": "#9a9a9a", "s": 9, "linewidths": 0, "rasterized": True}
_TOP = {"color": COLORS[3], "s": 14, "linewidths": 0, "zorder": 3}
_BAR = {"color": COLORS[3], "linewidth": 0.8, "alpha": 0.6}


def spread_of(pred: Cells, var_names: pd.Index, keys: pd.DataFrame) -> np.ndarray | None:
    """Mean spread of the predictions of each condition, a row of ``keys``, if they have one; 0 where one has none."""
    if not isinstance(pred, AnnData) or _SPREAD not in pred.layers:
        return None
    pred = align_genes(pred, var_names, "pred")
    spread = dense(pred.layers[_SPREAD])
    # of a single source there is no spread, but NaN
    spread = np.where(np.isnan(spread).all(axis=1, keepdims=True), 0, spread)
    pred = AnnData(pred.X, obs=pred.obs[list(keys.columns)], var=pred.var[[]], layers={_SPREAD: spread})
    check_finite(pred, _SPREAD, "pred")
    profiles = group_profiles(pred, list(keys.columns), _SPREAD)
    return profiles.mean[profiles.find(keys)]


def draw_against_truth(
    panel: Axes, true: np.ndarray, predicted: np.ndarray, top: np.ndarray, spread: np.ndarray | None, *, lines: bool
) -> None:
    """A point for each gene, those of the columns ``top`` in colour and with their spread; lines at 0 if asked for."""
    if lines:
        panel.axhline(0, **ZERO)
        panel.axvline(0, **ZERO)
    panel.axline((0, 0), slope=1, zorder=1, **IDENTITY)
    others = np.setdiff1d(np.arange(len(true)), top)
    panel.scatter(true[others], predicted[others], **_ALL)
    panel.scatter(true[top], predicted[top], **_TOP)
    drawn = [true, predicted]
    if spread is not None and len(top):
        low, high = (predicted[top] + sign * spread[top] for sign in (-1, 1))
        panel.vlines(true[top], low, high, zorder=2, **_BAR)
        drawn += [low, high]
    low, high = min(map(np.min, drawn)), max(map(np.max, drawn))
    margin = 0.08 * max(high - low, 1e-6)
    limits = (low - margin, high + margin)
    panel.set(xlim=limits, ylim=limits, aspect="equal")
    panel.locator_params(nbins=5)
    panel.spines[["top", "right"]].set_visible(False)


def name_genes(
    axes: Sequence[Axes],
    true: np.ndarray,
    predicted: np.ndarray,
    named: np.ndarray,
    var_names: pd.Index,
    *,
    top: np.ndarray,
    spread: np.ndarray | None,
) -> None:
    """Write the names of genes (the columns ``named`` of each panel) beside their points, when all else is drawn.

    ``top`` and ``spread`` are those that were drawn.
    """
    points = [np.column_stack(pair) for pair in zip(true, predicted, strict=True)]
    bars = [np.empty((0, 2)) for _ in axes]
    if spread is not None:
        for i, genes in enumerate(top):
            steps = predicted[i, genes] + np.linspace(-1, 1, 9)[:, None] * spread[i, genes]
            bars[i] = np.column_stack([np.tile(true[i, genes], len(steps)), steps.ravel()])
    settle(axes)
    label_beside(
        axes,
        [own[genes] for own, genes in zip(points, named, strict=True)],
        [short_names(var_names[genes]) for genes in named],
        # names keep clear of the line and of bars, too
        obstacles=[
            np.vstack([own, bar, np.linspace(*panel.get_xlim(), 80)[:, None].repeat(2, axis=1)])
            for own, bar, panel in zip(points, bars, axes, strict=True)
        ],
    )
    for panel in axes:
        for text in panel.texts:
            text.set_path_effects([withStroke(linewidth=1.5, foreground="white")])


def scatter_legend(axes: Sequence[Axes], *, top: str | None, spread: str | None = None) -> None:
    """A legend below the panels; ``top`` and ``spread`` are what the coloured points and their bars are called."""
    dot = {"marker": "o", "linestyle": "", "markersize": 4}
    handles = [Line2D([], [], color=_ALL["color"], label="gene", **dot)]
    if top is not None:
        handles.append(Line2D([], [], color=_TOP["color"], label=top, **dot))
    if spread is not None:
        bar = {"marker": "|", "linestyle": "", "markersize": 9}
        handles.append(Line2D([], [], color=_BAR["color"], alpha=_BAR["alpha"], label=spread, **bar))
    legend_below(axes, [*handles, Line2D([], [], label="true = predicted", **IDENTITY)])
