from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from os import PathLike

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from transverse._groups import dense, group_codes, group_profiles
from transverse._validation import check_finite, examples
from transverse.metrics._conditions import Cells, cells_of_conditions, conditions, on_genes_of_truth
from transverse.metrics._response import top_changes

from ._figure import COLORS, MEAN, draw_boxes, finish, panels, short_names
from ._predictions import Names, choose_predictions, condition_names

_TRUE, _PREDICTED = COLORS[0], COLORS[1]
_SINGLES = [{"marker": marker, "color": color} for marker, color in zip("^vsPX", COLORS[2:7], strict=True)]


def change_boxplot(
    truth: Cells,
    pred: Cells,
    control: Cells,
    *,
    perturbation: Names = None,
    context: Names = None,
    singles: Mapping[str, AnnData] | None = None,
    n_top: int = 20,
    pred_control: Cells | None = None,
    perturbation_key: str = "perturbation",
    context_key: str | None = "cell_type",
    layer: str | None = None,
    allow_shared_controls: bool = False,
    seed: int = 0,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | PathLike | None = None,
) -> Axes:
    """Change of single cells in the genes that respond most, true beside predicted, for one condition.

    A cell's change is its expression minus the mean of the control cells: true cells against those that score, predicted
    ones against those that they start from. Boxes are quartiles with the median, whiskers go from 5 to 95% of the cells,
    and diamonds are the mean changes, which the scores of :func:`transverse.metrics.response_scores` compare. For a
    combination, ``singles`` shows what it owes to either.

    Parameters
    ----------
    truth, pred, control, pred_control, perturbation_key, context_key, layer, allow_shared_controls, seed
        As in :func:`transverse.metrics.response_scores`: treated cells, their prediction, and control cells that do not
        predict.
    perturbation, context
        The condition to draw, by its names in ``pred.obs``; needed where ``pred`` has several.
    singles
        Names and treated cells of up to five other perturbations, such as the singles of a combination; a marker for the
        mean change of each against ``control``. Of cells of several contexts, those of the condition's are taken. Genes
        are put in order.
    n_top
        Number of genes: those with the largest absolute true mean change, largest first.
    ax
        Axes to draw on.
    show
        Show the figure; by default only where scanpy would (``sc.settings.autoshow``) and no axes are given.
    save
        File to write the figure to.

    Returns
    -------
    The axes. The user's objects are not changed.

    Raises
    ------
    KeyError
        If a column, a layer, a perturbation or a context is missing.
    ValueError
        If there is more than one condition, genes, conditions or controls are missing, values are not finite, control
        cells that predict also score, ``n_top`` is not a whole number of at least 1, or ``singles`` has cells of several
        perturbations under one name, none of the condition's context, or more than five names.
    TypeError
        If arrays and AnnData are mixed, or ``singles`` holds something else than AnnData.

    Examples
    --------
    >>> import transverse as tv
    >>> adata = tv.datasets.simulate_responses(n_contexts=1, n_perturbations=2, n_doubles=1, n_genes=30)
    >>> tv.pp.split_responses(adata, by="combination", holdout=["P01+P02"], valid_size=0)
    >>> train, test = adata[adata.obs["split"] == "train"], adata[adata.obs["split"] == "test"]
    >>> is_control = test.obs["perturbation"] == "control"
    >>> pred = tv.baselines.Additive().fit(train).predict(["P01", "P02"])
    >>> singles = {name: train[train.obs["perturbation"] == name] for name in ("P01", "P02")}
    >>> ax = tv.pl.change_boxplot(test[~is_control], pred, test[is_control], n_top=10, singles=singles)
    """
    if control is None:
        raise ValueError("control is needed: a change is taken against it.")
    if not isinstance(n_top, Integral) or isinstance(n_top, bool) or n_top < 1:
        raise ValueError(f"n_top={n_top!r} must be a whole number of at least 1.")
    keys = {"perturbation_key": perturbation_key, "context_key": context_key}
    pred = choose_predictions(pred, perturbation, context, **keys, at_most=1)
    singles = _checked_singles({} if singles is None else singles, truth, pred, layer=layer, **keys)
    options = {"layer": layer, "allow_shared_controls": allow_shared_controls, "seed": seed}
    data = conditions(truth, pred, control, pred_control, **keys, **options)
    _, sides = cells_of_conditions(truth, pred, None, layer=layer, **keys)

    genes = top_changes(data.change, n_top)[0]
    start = {"truth": data.control.mean[0], "pred": data.pred_control[0]}
    changes = {
        name: dense(side.matrix[side.groups[side.of_condition[0]]])[:, genes] - start[name][genes]
        for name, side in sides.items()
    }
    means = {
        name: group_profiles(cells, [], layer).mean[0, genes] - start["truth"][genes] for name, cells in singles.items()
    }

    panel = panels(ax, 1, "figure", size=(max(4.5, 2.6 + 0.36 * len(genes)), 4.0))[0]
    x = np.arange(len(genes))
    panel.axhline(0, color="#808080", linewidth=0.8, zorder=0)
    for name, place, color in (("truth", x - 0.2, _TRUE), ("pred", x + 0.2, _PREDICTED)):
        draw_boxes(panel, list(changes[name].T), place, color=color, width=0.32)
    for (name, mean), style in zip(means.items(), _SINGLES, strict=False):
        panel.scatter(x, mean, s=26, edgecolors="white", linewidths=0.5, zorder=5, label=name, **style)
    panel.set(xlim=(-0.6, len(genes) - 0.4), ylabel="change against mean control")
    panel.set_xticks(x, short_names(data.var_names[genes]), rotation=90 if len(genes) > 8 else 45, fontsize="small")
    if len(genes) <= 8:
        for label in panel.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    if title := condition_names(data.keys)[0]:
        panel.set_title(title, fontsize="medium")
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(
        handles=_handles({name: len(values) for name, values in changes.items()}, list(means)),
        loc="upper left",
        bbox_to_anchor=(1, 1),
        frameon=False,
        fontsize="small",
    )
    finish([panel], ax, show, save)
    return panel


def _checked_singles(
    singles: Mapping[str, AnnData],
    truth: Cells,
    pred: Cells,
    *,
    perturbation_key: str,
    context_key: str | None,
    layer: str | None,
) -> dict[str, AnnData]:
    """The singles' cells of the condition's context, on the genes of truth."""
    if len(singles) > len(_SINGLES):
        raise ValueError(
            f"singles may have at most {len(_SINGLES)} names, but has {len(singles)}: {examples(singles)}."
        )
    checked = {}
    for name, cells in singles.items():
        what = f"singles[{name!r}]"
        if not isinstance(cells, AnnData):
            raise TypeError(f"{what} must be an AnnData, but got {type(cells).__name__}.")
        if not (isinstance(truth, AnnData) and isinstance(pred, AnnData)):
            raise TypeError(f"{what} is AnnData, so truth and pred must be too.")
        if context_key is not None and context_key in cells.obs and pred.n_obs:
            context = str(pred.obs[context_key].iloc[0])
            here = cells.obs[context_key].astype(str) == context
            if not here.any():
                raise ValueError(
                    f"{what} has no cells of {context!r}, but of {examples(cells.obs[context_key].unique())}."
                )
            cells = cells if here.all() else cells[here.to_numpy()]
        if cells.n_obs == 0:
            raise ValueError(f"{what} has no cells.")
        if perturbation_key in cells.obs and len(found := group_codes(cells, [perturbation_key], what)[0]) > 1:
            raise ValueError(f"{what} must be of one perturbation, but has {examples(found[perturbation_key])}.")
        checked[name] = on_genes_of_truth(cells, truth.var_names, what)
        check_finite(checked[name], layer, what)
    return checked


def _handles(n_cells: Mapping[str, int], singles: Sequence[str]) -> list[Patch | Line2D]:
    """What a legend shows, of what is drawn."""
    boxes = (("true", "truth", _TRUE), ("predicted", "pred", _PREDICTED))
    handles = [
        Patch(facecolor=(color, 0.3), edgecolor=color, label=f"{name}, {n_cells[side]} cells")
        for name, side, color in boxes
    ]
    handles.append(Line2D([], [], linestyle="", label="mean", **{**MEAN, "markeredgecolor": "black"}))
    return handles + [
        Line2D([], [], linestyle="", markersize=5, label=f"{name}, true mean", **style)
        for name, style in zip(singles, _SINGLES, strict=False)
    ]
