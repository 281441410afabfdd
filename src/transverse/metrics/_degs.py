from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control, ttest_ind_from_stats

from ._conditions import Cells, Conditions, Score, conditions
from ._response import top_changes, top_sizes


def deg_scores(
    truth: Cells,
    pred: Cells,
    control: Cells,
    *,
    pred_control: Cells | None = None,
    perturbation_key: str = "perturbation",
    context_key: str | None = "cell_type",
    n_top: int | Sequence[int] = (20, 50),
    fdr: float = 0.05,
    layer: str | None = None,
    allow_shared_controls: bool = False,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Agreement on the genes that respond and on their direction, per condition.

    With :math:`T_n` and :math:`P_n` the :math:`n` genes of largest absolute true and predicted change on mean profiles:

    - ``deg_overlap``: :math:`|T_n \cap P_n| / n`, where genes that are predicted not to change are not in :math:`P_n`. By
      chance :math:`n / G` with :math:`G` genes.
    - ``deg_direction``: share of :math:`T_n` whose predicted change has the true sign. A predicted change of 0 has none.
      By chance a half.

    and, among genes that differ between treated and control cells at a false discovery rate (Welch's t test,
    Benjamini and Hochberg), ``genes="significant"``:

    - ``n_deg``: how many there are. With none, there is no response to predict.
    - ``deg_direction`` as above, NaN with none.
    - ``deg_overlap`` with as many of the largest predicted changes.

    Parameters
    ----------
    truth, pred, control, pred_control, perturbation_key, context_key, layer, allow_shared_controls, seed
        As in :func:`response_scores`. The test needs at least two treated and control cells that score; its scores are NaN
        with less.
    n_top
        Numbers of genes; those that all genes do not exceed are left out.
    fdr
        False discovery rate of the test.

    Returns
    -------
    Rows as :func:`response_scores` gives them, ``of="change"``.

    Raises
    ------
    ValueError, KeyError, TypeError
        As :func:`response_scores`, and if ``fdr`` is not between 0 and 1.

    Examples
    --------
    >>> import transverse as tv
    >>> adata = tv.datasets.simulate_responses(n_contexts=2, n_perturbations=3, n_genes=30, n_cells_per_condition=20)
    >>> tv.pp.split_responses(adata, holdout=[("P01", "C2"), ("P02", "C2")], valid_size=0)
    >>> train, test = adata[adata.obs["split"] == "train"], adata[adata.obs["split"] == "test"]
    >>> is_control = test.obs["perturbation"] == "control"
    >>> truth, controls = test[~is_control], test[is_control]
    >>> pred = tv.baselines.MeanShift().fit(train).predict("P01", context="C2")
    >>> scores = tv.metrics.deg_scores(truth, pred, controls, n_top=5)
    >>> scores[["genes", "metric"]].drop_duplicates("genes").to_numpy().tolist()
    [['top 5', 'deg_overlap'], ['significant', 'n_deg']]
    """
    sizes = top_sizes(n_top)
    if not 0 < fdr < 1:
        raise ValueError(f"fdr={fdr!r} must be between 0 and 1.")
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
    if data.control is None:
        raise ValueError("control is needed: genes respond relative to it.")
    return score_degs(data, n_top=sizes, fdr=fdr)


def score_degs(data: Conditions, *, n_top: int | Sequence[int] = (20, 50), fdr: float = 0.05) -> pd.DataFrame:
    """The table of :func:`deg_scores`."""
    change, predicted = data.change, data.pred_change
    scores = []
    for n in (n for n in top_sizes(n_top) if n < change.shape[1]):
        true_top = top_changes(change, n)
        overlap = [_overlap(row, genes) for row, genes in zip(predicted, true_top, strict=True)]
        direction = [_same_sign(change[i, g], predicted[i, g]) for i, g in enumerate(true_top)]
        scores += [Score("change", f"top {n}", "deg_overlap", overlap)]
        scores += [Score("change", f"top {n}", "deg_direction", direction)]
    tested, significant = _significant(data, fdr)
    overlap = np.full(len(change), np.nan)
    direction = overlap.copy()
    for i, genes in enumerate(significant):
        if tested[i] and genes.any():
            direction[i] = _same_sign(change[i, genes], predicted[i, genes])
            overlap[i] = _overlap(predicted[i], np.flatnonzero(genes))
    n_deg = np.where(tested, significant.sum(1), np.nan)
    found = {"n_deg": n_deg, "deg_overlap": overlap, "deg_direction": direction}
    return data.table(scores + [Score("change", "significant", metric, values) for metric, values in found.items()])


def _overlap(predicted: np.ndarray, genes: np.ndarray) -> float:
    """Share of ``genes`` among as many of the largest predicted changes."""
    largest = top_changes(predicted[None], len(genes))[0]
    return len(np.intersect1d(largest[predicted[largest] != 0], genes)) / len(genes)


def _same_sign(truth: np.ndarray, pred: np.ndarray) -> float:
    return float(np.mean(np.sign(truth) * np.sign(pred) > 0))


def _significant(data: Conditions, fdr: float) -> tuple[np.ndarray, np.ndarray]:
    """Conditions with a test, and genes that differ between their treated and control cells, conditions x genes."""
    truth, control = data.truth, data.control
    with np.errstate(divide="ignore", invalid="ignore"):
        p = ttest_ind_from_stats(
            truth.mean,
            np.sqrt(truth.variance),
            truth.n_cells[:, None],
            control.mean,
            np.sqrt(control.variance),
            control.n_cells[:, None],
            equal_var=False,
        ).pvalue
    # no test of genes that are constant on both sides: they differ if the constants do, by more than rounding
    constant = (truth.variance == 0) & (control.variance == 0)
    p = np.where(constant, np.isclose(truth.mean, control.mean, rtol=1e-9, atol=0), p)
    return (truth.n_cells > 1) & (control.n_cells > 1), false_discovery_control(p, axis=1) < fdr
