from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Literal, get_args

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from transverse._validation import examples
from transverse.metrics._conditions import Cells, conditions
from transverse.metrics._response import score_conditions, top_changes, top_sizes

from ._figure import finish, panels
from ._fit import fit_titles
from ._predictions import Names, choose_predictions, condition_names
from ._scatter import draw_against_truth, name_genes, scatter_legend, spread_of

Of = Literal["change", "expression"]

_SCORES = {
    "r2": "R²",
    "explained_variance": "explained variance",
    "pearson": "Pearson",
    "squared_pearson": "Pearson²",
    "spearman": "Spearman",
    "rmse": "RMSE",
}


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
    scores: str | Sequence[str] = ("r2", "pearson"),
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

    Titles give scores over all genes, and over those of the largest true change, which are in colour: those of
    :func:`transverse.metrics.response_scores`, by default R² and the Pearson correlation. On the dashed line a prediction is right. Of
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
    scores
        What titles give: ``"r2"`` (of determination: 1 minus the error's share of the variance), ``"explained_variance"``,
        ``"pearson"``, ``"squared_pearson"``, ``"spearman"`` or ``"rmse"``. The square of the Pearson correlation, the
        score of :cite:p:`Belgadi2024`, does not see a change that is too small throughout, nor one of the wrong sign.
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
        If genes, conditions or controls are missing, values are not finite, control cells that predict also score, a score
        is not known, there are more conditions than ``max_panels``, or not as many axes as conditions.
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
    >>> axes = tv.pl.prediction_scatter(test[~is_control], pred, test[is_control], n_top=10)

    Predictions of bulk samples of a species, the drug for the perturbation and the organ for the context, with ``model`` and
    ``data`` of the example of :class:`~transverse.UGE`:

    >>> pred, rat = model.predict("rat", "brain", "drug A"), data["rat"]
    >>> keys = {"perturbation_key": "drug", "context_key": "organ"}
    >>> axes = tv.pl.prediction_scatter(
    ...     rat[rat.obs["drug"] != "control"], pred, scores=["r2", "squared_pearson"], **keys
    ... )
    """
    of = ("expression" if control is None else "change") if of is None else of
    if of not in get_args(Of):
        raise ValueError(f"of={of!r} must be one of {', '.join(get_args(Of))}.")
    if of == "change" and control is None:
        raise ValueError("control is needed: a change is taken against it.")
    if n_names < 0:
        raise ValueError(f"n_names={n_names} must not be negative.")
    top_sizes(n_top)
    scores = [scores] if isinstance(scores, str) else list(dict.fromkeys(scores))
    if not scores or (unknown := [name for name in scores if name not in _SCORES]):
        found = f"{examples(unknown)} is not known" if scores else "it is empty"
        raise ValueError(f"scores must be of {', '.join(_SCORES)}, but {found}.")
    keys = {"perturbation_key": perturbation_key, "context_key": context_key}
    pred = choose_predictions(pred, perturbation, context, **keys, at_most=max_panels)
    options = {"layer": layer, "allow_shared_controls": allow_shared_controls, "seed": seed}
    data = conditions(truth, pred, control, pred_control, **keys, **options)
    table = score_conditions(data, n_top=n_top)
    table = table[table["of"] == of]
    spread = spread_of(pred, data.var_names, data.keys)

    x, y = (data.change, data.pred_change) if of == "change" else (data.truth.mean, data.pred.mean)
    has_top = table["genes"].nunique() > 1
    order = np.empty((len(x), 0), dtype=int) if control is None else top_changes(data.change, x.shape[1])
    top, named = order[:, : n_top if has_top else 0], order[:, :n_names]
    names = condition_names(data.keys)
    axes = panels(ax, len(x), "conditions", ncols=ncols, size=(3.4, 3.9))
    for i, panel in enumerate(axes):
        own = None if spread is None else spread[i]
        draw_against_truth(panel, x[i], y[i], top[i], own, lines=of == "change")
        panel.set(xlabel=f"true mean {of}", ylabel=f"predicted mean {of}")
        title = [names[i]] if names[i] else []
        panel.set_title("\n".join([*title, *_score_lines(table, scores, i)]), fontsize="medium")
    if ax is None:
        scatter_legend(axes, top=f"top {n_top} by true change" if has_top else None)
    fit_titles(axes)
    name_genes(axes, x, y, named, data.var_names, top=top, spread=spread)
    finish(axes, ax, show, save)
    return axes


def _score_lines(table: pd.DataFrame, scores: Sequence[str], i: int) -> list[str]:
    """A line for each set of genes with the scores of condition ``i``."""
    lines = []
    for genes in table["genes"].unique():
        written = []
        for name in scores:
            is_square = name == "squared_pearson"
            own = (table["genes"] == genes) & (table["metric"] == ("pearson" if is_square else name))
            value = table.loc[own, "value"].to_numpy()[i]
            written.append(f"{_SCORES[name]} {value**2 if is_square else value:z.2f}")
        lines.append(f"{genes} genes: {', '.join(written)}")
    return lines
