from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Literal, get_args

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from transverse._groups import group_profiles
from transverse._validation import align_genes, check_finite
from transverse.metrics._conditions import Cells, conditions
from transverse.metrics._response import score_conditions, top_changes, top_sizes

from ._figure import COLORS, finish, panels, short_names
from ._labels import label_beside
from ._predictions import Names, choose_predictions, condition_names

Of = Literal["change", "expression"]

_SPREAD = "std"
_ALL = {"color": "#9a9a9a", "s": 9, "linewidths": 0, "rasterized": True}
_TOP = {"color": COLORS[3], "s": 14, "linewidths": 0, "zorder": 3}
_IDENTITY = {"color": "black", "linestyle": "--", "linewidth": 0.8}


def prediction_scatter(
    truth: Cells,
    pred: Cells,
    control: Cells | None = None,
    *,
    of: Of | None = None,
    perturbation: Names = None,
    context: Names = None,
    n_top: int | None = 50,
    n_names: int = 10,
    pred_control: Cells | None = None,
    perturbation_key: str = "perturbation",
    context_key: str | None = "cell_type",
    layer: str | None = None,
    allow_shared_controls: bool = False,
    seed: int = 0,
    max_panels: int = 12,
    ncols: int = 4,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    save: str | PathLike | None = None,
) -> list[Axes]:
    """Predicted against true mean of every gene, a panel for each condition.

    Titles give R² and the Pearson correlation over all genes, and over those of the largest true change, which are in
    colour: the scores of :func:`transverse.metrics.response_scores`. On the dashed line a prediction is right. Of
    expression nearly all predictions look good, since cells of a context resemble each other: look at the change.

    Parameters
    ----------
    truth, pred, control, pred_control, perturbation_key, context_key, layer, allow_shared_controls, seed
        As in :func:`transverse.metrics.response_scores`: treated cells, predictions of some of their conditions, and
        control cells that do not predict.
    of
        ``"change"`` against the control cells, or ``"expression"``. By default the change if there are controls.
    perturbation, context
        Conditions to draw, by their names in ``pred.obs``; by default all of ``pred``.
    n_top
        How many genes with the largest true absolute change to colour and to score apart; None for none. Needs controls,
        and more genes than that.
    n_names
        How many of the genes with the largest true absolute change to name. Needs controls.
    max_panels
        More conditions than that are refused.
    ncols
        Panels in a row.
    ax
        Axes to draw on, one for each condition; these get no legend.
    show
        Show the figure; by default only where scanpy would (``sc.settings.autoshow``) and no axes are given.
    save
        File to write the figure to.

    Returns
    -------
    The axes, one for each condition, sorted by name. Where ``pred.layers["std"]`` holds a spread of the predictions, its
    mean over cells is drawn to both sides of the coloured genes. The user's objects are not changed.

    Raises
    ------
    KeyError
        If a column, a layer, a perturbation or a context is missing.
    ValueError
        If genes, conditions or controls are missing, values are not finite, control cells that predict also score, there
        are more conditions than ``max_panels``, or not as many axes as conditions.
    TypeError
        If arrays and AnnData are mixed.

    Examples
    --------
    >>> pred = model.predict("TGFBR2", context="T98G")  # doctest: +SKIP
    >>> axes = tv.pl.prediction_scatter(test, pred, test_controls)  # doctest: +SKIP
    """
    of = ("expression" if control is None else "change") if of is None else of
    if of not in get_args(Of):
        raise ValueError(f"of={of!r} must be one of {', '.join(get_args(Of))}.")
    if of == "change" and control is None:
        raise ValueError("control is needed: a change is taken against it.")
    if n_names < 0:
        raise ValueError(f"n_names={n_names} must not be negative.")
    top_sizes(n_top)
    keys = {"perturbation_key": perturbation_key, "context_key": context_key}
    pred = choose_predictions(pred, perturbation, context, **keys, at_most=max_panels)
    options = {"layer": layer, "allow_shared_controls": allow_shared_controls, "seed": seed}
    data = conditions(truth, pred, control, pred_control, **keys, **options)
    scores = score_conditions(data, n_top=n_top)
    scores = scores[scores["of"] == of]
    spread = _spread(pred, data.var_names, [key for key in keys.values() if key is not None])

    x, y = (data.change, data.pred_change) if of == "change" else (data.truth.mean, data.pred.mean)
    has_top = scores["genes"].nunique() > 1
    order = np.empty((len(x), 0), dtype=int) if control is None else top_changes(data.change, x.shape[1])
    top, named = order[:, : n_top if has_top else 0], order[:, :n_names]
    names = condition_names(data.keys)
    axes = panels(ax, len(x), "conditions", ncols=ncols, size=(3.4, 3.9))
    for i, panel in enumerate(axes):
        if of == "change":
            panel.axhline(0, color="#bdbdbd", linewidth=0.7, zorder=0)
            panel.axvline(0, color="#bdbdbd", linewidth=0.7, zorder=0)
        panel.axline((0, 0), slope=1, zorder=1, **_IDENTITY)
        others = np.setdiff1d(np.arange(x.shape[1]), top[i])
        panel.scatter(x[i, others], y[i, others], **_ALL)
        panel.scatter(x[i, top[i]], y[i, top[i]], **_TOP)
        drawn = [x[i], y[i]]
        if spread is not None and has_top:
            low, high = (y[i, top[i]] + sign * spread[i, top[i]] for sign in (-1, 1))
            panel.vlines(x[i, top[i]], low, high, color=COLORS[3], linewidth=0.8, alpha=0.6, zorder=2)
            drawn += [low, high]
        low, high = min(map(np.min, drawn)), max(map(np.max, drawn))
        margin = 0.08 * max(high - low, 1e-6)
        limits = (low - margin, high + margin)
        panel.set(xlim=limits, ylim=limits, aspect="equal", xlabel=f"true mean {of}", ylabel=f"predicted mean {of}")
        panel.locator_params(nbins=5)
        title = [names[i]] if names[i] else []
        panel.set_title("\n".join([*title, *_score_lines(scores, i)]), fontsize="medium")
        panel.spines[["top", "right"]].set_visible(False)
    if ax is None:
        handles = _handles(n_top if has_top else None)
        ncols = len(handles) if len(axes) > 1 and ncols > 1 else 2
        axes[0].figure.legend(handles=handles, loc="outside lower center", ncols=ncols, frameon=False, fontsize="small")
    points = [np.column_stack(pair) for pair in zip(x, y, strict=True)]
    label_beside(
        axes,
        [own[genes] for own, genes in zip(points, named, strict=True)],
        [short_names(data.var_names[genes]) for genes in named],
        # names keep clear of the line, too
        obstacles=[
            np.vstack([own, np.linspace(*panel.get_xlim(), 80)[:, None].repeat(2, axis=1)])
            for own, panel in zip(points, axes, strict=True)
        ],
    )
    for panel in axes:
        for text in panel.texts:
            text.set_path_effects([withStroke(linewidth=1.5, foreground="white")])
    finish(axes, ax, show, save)
    return axes


def _spread(pred: Cells, var_names: pd.Index, by: Sequence[str]) -> np.ndarray | None:
    """Mean spread of the predictions of each condition, if they have one."""
    if not isinstance(pred, AnnData) or _SPREAD not in pred.layers:
        return None
    pred = align_genes(pred, var_names, "pred")
    check_finite(pred, _SPREAD, "pred")
    return group_profiles(pred, by, _SPREAD).mean


def _score_lines(scores: pd.DataFrame, i: int) -> list[str]:
    """A line for each set of genes with the scores of condition ``i``."""
    lines = []
    for genes in scores["genes"].unique():
        r2, pearson = (
            scores.loc[(scores["genes"] == genes) & (scores["metric"] == metric), "value"].to_numpy()[i]
            for metric in ("r2", "pearson")
        )
        lines.append(f"{genes} genes: R² {r2:z.2f}, Pearson {pearson:z.2f}")
    return lines


def _handles(n_top: int | None) -> list[Line2D]:
    """What a legend shows, of what is drawn."""
    dot = {"marker": "o", "linestyle": "", "markersize": 4}
    handles = [Line2D([], [], color=_ALL["color"], label="gene", **dot)]
    if n_top is not None:
        handles.append(Line2D([], [], color=_TOP["color"], label=f"top {n_top} by true change", **dot))
    return [*handles, Line2D([], [], label="true = predicted", **_IDENTITY)]
