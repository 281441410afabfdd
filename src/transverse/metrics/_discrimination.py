from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist
from scipy.stats import rankdata

from transverse._groups import find_groups

from ._conditions import Cells, Conditions, Score, conditions

Distance = Literal["correlation", "cosine", "euclidean", "cityblock"]


def perturbation_discrimination(
    truth: Cells,
    pred: Cells,
    control: Cells,
    *,
    candidates: Cells | None = None,
    pred_control: Cells | None = None,
    perturbation_key: str = "perturbation",
    context_key: str | None = "cell_type",
    metric: Distance = "correlation",
    layer: str | None = None,
    allow_shared_controls: bool = False,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Whether a prediction is nearer to its own perturbation than to the others of the same context.

    With :math:`r_i` the rank of the true change of condition :math:`i` among the true changes of all :math:`m` perturbations of its
    context, by their distance from its predicted change (ties share the mean of their ranks),

    .. math::

        D_i = 1 - \frac{r_i - 1}{m - 1} ,

    1 if no other is nearer, 0.5 by chance. A method that predicts the same for every perturbation has a mean of 0.5, however
    well its predictions correlate. It is the score that the Virtual Cell Challenge :cite:p:`Roohani2025` and PerturBench
    :cite:p:`Wu2024` take in place of, or beside, agreement.

    Parameters
    ----------
    truth, pred, control, pred_control, perturbation_key, context_key, layer, allow_shared_controls, seed
        As in :func:`response_scores`. All perturbations in ``truth`` compete, predicted or not.
    candidates
        Treated cells of further perturbations that compete, such as those of the training.
    metric
        Distance between changes.

    Returns
    -------
    Rows as :func:`response_scores` gives them: ``metric="discrimination"``, ``of="change"``. NaN where a context has one
    perturbation only.

    Raises
    ------
    ValueError, KeyError, TypeError
        As :func:`response_scores`, and if the controls are missing or the distance is unknown.

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
    >>> scores = tv.metrics.perturbation_discrimination(truth, pred, controls, candidates=train)
    >>> scores[["perturbation", "metric", "n_cells"]].to_numpy().tolist()
    [['P01', 'discrimination', 20], ['P02', 'discrimination', 20]]
    """
    if metric not in get_args(Distance):
        raise ValueError(f"metric={metric!r} must be one of {', '.join(get_args(Distance))}.")
    if control is None:
        raise ValueError("control is needed: changes are compared.")
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
        candidates=candidates,
    )
    if not len(data.keys.columns):
        raise TypeError("truth and pred must be AnnData: an array is a single condition.")
    return score_discrimination(data, context_key, metric)


def score_discrimination(data: Conditions, context_key: str | None, metric: Distance = "correlation") -> pd.DataFrame:
    """The table of :func:`perturbation_discrimination`."""
    keys = pd.concat([profiles.keys for profiles in data.measured], ignore_index=True)
    means = np.concatenate([profiles.mean for profiles in data.measured])
    first = ~keys.duplicated().to_numpy()
    keys, means = keys[first], means[first]

    values = np.full(len(data.keys), np.nan)
    own = find_groups(keys, data.keys)
    contexts = data.keys.groupby(context_key).indices if context_key else {"": np.arange(len(data.keys))}
    for context, rows in contexts.items():
        rivals = np.arange(len(keys)) if context_key is None else np.flatnonzero(keys[context_key] == context)
        if len(rivals) > 1:
            # the controls that score are those of the context, so the same in all rows
            distance = _distance(data.pred_change[rows], means[rivals] - data.control.mean[rows[0]], metric)
            ranks = rankdata(distance, axis=1)[np.arange(len(rows)), np.searchsorted(rivals, own[rows])]
            values[rows] = 1 - (ranks - 1) / (len(rivals) - 1)
    return data.table([Score("change", "all", "discrimination", values)])


def _distance(predicted: np.ndarray, changes: np.ndarray, metric: Distance) -> np.ndarray:
    """Distances of predicted from true changes, a row for each prediction."""
    distance = cdist(predicted, changes, metric=metric)
    if metric in ("correlation", "cosine"):
        # a change without direction is as far from any as an unrelated one, and a prediction without is tied with all
        pointless = [np.ptp(x, axis=1) == 0 if metric == "correlation" else ~x.any(1) for x in (predicted, changes)]
        distance[pointless[0]] = distance[:, pointless[1]] = 1.0
    return distance
