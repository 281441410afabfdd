from __future__ import annotations

import numpy as np
import pandas as pd

from ._conditions import Cells, Conditions, Score, conditions, tidy


def variance_ratio(
    truth: Cells,
    pred: Cells,
    control: Cells | None = None,
    *,
    pred_control: Cells | None = None,
    perturbation_key: str = "perturbation",
    context_key: str | None = "cell_type",
    layer: str | None = None,
    allow_shared_controls: bool = False,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Predicted over true variance: among the cells of a condition, and among the conditions of a context.

    .. math::

        V_i = \frac{\sum_g \mathrm{Var}(\hat x_{ig})}{\sum_g \mathrm{Var}(x_{ig})}, \qquad
        V = \frac{\sum_g \mathrm{Var}_i(\hat y_{ig} - \hat c_{g})}{\sum_g \mathrm{Var}_i(y_{ig} - c_{g})}

    with sample variances (``ddof=1``) over the cells of condition :math:`i`, and over the mean profiles of a context's
    conditions. The second, ``variance_ratio_between``, tells mode collapse: a method that predicts the same response to
    every perturbation has 0. Noise of the true means counts as variance, so a perfect prediction stays somewhat below 1.

    Parameters
    ----------
    truth, pred, control, pred_control, perturbation_key, context_key, layer, allow_shared_controls, seed
        As in :func:`response_scores`. Without controls the second ratio is of the profiles themselves, which is the same
        if all predictions of a context start from the same control cells.

    Returns
    -------
    Rows as :func:`response_scores` gives them, ``of="cells"`` and ``metric="variance_ratio"`` for every condition, NaN with
    less than two true or predicted cells; and one row a context with ``of="change"`` and ``metric="variance_ratio_between"``,
    in which the perturbation is ``"all"``, NaN with less than two conditions.

    Raises
    ------
    ValueError, KeyError, TypeError
        As :func:`response_scores`.

    Examples
    --------
    >>> import anndata as ad
    >>> import transverse as tv
    >>> adata = tv.datasets.simulate_responses(n_contexts=2, n_perturbations=3, n_genes=30, n_cells_per_condition=20)
    >>> tv.pp.split_responses(adata, holdout=[("P01", "C2"), ("P02", "C2")], valid_size=0)
    >>> train, test = adata[adata.obs["split"] == "train"], adata[adata.obs["split"] == "test"]
    >>> is_control = test.obs["perturbation"] == "control"
    >>> truth, controls = test[~is_control], test[is_control]
    >>> baseline = tv.baselines.MeanShift().fit(train)
    >>> pred = ad.concat([baseline.predict(name, context="C2") for name in ("P01", "P02")], index_unique="-")
    >>> scores = tv.metrics.variance_ratio(truth, pred, controls)
    >>> scores[["perturbation", "metric"]].to_numpy().tolist()
    [['P01', 'variance_ratio'], ['P02', 'variance_ratio'], ['all', 'variance_ratio_between']]
    """
    data = conditions(
        truth,
        pred,
        control,
        pred_control,
        perturbation_key=perturbation_key,
        context_key=context_key,
        layer=layer,
        allow_shared_controls=allow_shared_controls,
        seed=seed,
    )
    return score_variances(data, perturbation_key, context_key)


def score_variances(data: Conditions, perturbation_key: str, context_key: str | None) -> pd.DataFrame:
    """The table of :func:`variance_ratio`."""
    by = list(data.keys.columns)
    enough = (data.pred.n_cells > 1) & (data.truth.n_cells > 1)
    within = np.where(enough, _ratio(data.pred.variance.sum(1), data.truth.variance.sum(1)), np.nan)
    tables = [data.table([Score("cells", "all", "variance_ratio", within)])]
    if by:
        true, predicted = data.truth.mean, data.pred.mean
        if data.control is not None:
            true, predicted = data.change, data.pred_change
        groups = data.keys.groupby(context_key).indices if context_key else {"": np.arange(len(data.keys))}
        for rows in groups.values():
            between = np.nan
            if len(rows) > 1:
                variances = [change[rows].var(0, ddof=1).sum() for change in (predicted, true)]
                # rounding of equal means is no variance
                rounding = 1e-24 * (data.truth.mean[rows] ** 2).sum()
                between = _ratio(*(0.0 if variance <= rounding else variance for variance in variances))
            keys = data.keys.iloc[rows[:1]].assign(**{perturbation_key: "all"})
            score = Score("change", "all", "variance_ratio_between", [between])
            tables.append(tidy(keys, [score], data.truth.n_cells[rows].sum(keepdims=True)))
    return pd.concat(tables, ignore_index=True)


def _ratio(pred, truth):
    return np.divide(pred, truth, out=np.full(np.shape(truth), np.nan), where=np.asarray(truth) > 0)
