from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist
from scipy.stats import rankdata

from transverse._groups import group_profiles

from ._conditions import Cells, Score, conditions

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
    """
    if metric not in get_args(Distance):
        raise ValueError(f"metric={metric!r} must be one of {', '.join(get_args(Distance))}.")
    if control is None:
        raise ValueError("control is needed: changes are compared.")
    options = {"perturbation_key": perturbation_key, "context_key": context_key, "layer": layer}
    data = conditions(
        truth, pred, control, pred_control, allow_shared_controls=allow_shared_controls, seed=seed, **options
    )
    by = list(data.keys.columns)
    if not by:
        raise TypeError("truth and pred must be AnnData: an array is a single condition.")
    others = [truth] if candidates is None else [truth, candidates]
    profiles = [group_profiles(adata[:, data.var_names], by, layer) for adata in others]
    keys = pd.concat([p.keys for p in profiles], ignore_index=True)
    means = np.concatenate([p.mean for p in profiles])
    first = ~keys.duplicated().to_numpy()
    keys, means = keys[first].reset_index(drop=True), means[first]

    values = np.full(len(data.keys), np.nan)
    for i, row in data.keys.iterrows():
        rivals = np.ones(len(keys), dtype=bool) if context_key is None else (keys[context_key] == row[context_key])
        rivals = np.flatnonzero(rivals)
        own = np.flatnonzero((keys.iloc[rivals] == row).all(axis=1))[0]
        if len(rivals) > 1:
            distance = _distance(data.pred_change[i], means[rivals] - data.control.mean[i], metric)
            values[i] = 1 - (rankdata(distance)[own] - 1) / (len(rivals) - 1)
    return data.table([Score("change", "all", "discrimination", values)])


def _distance(change: np.ndarray, changes: np.ndarray, metric: Distance) -> np.ndarray:
    if metric in ("correlation", "cosine") and np.ptp(change) == 0:
        return np.zeros(len(changes))  # it points nowhere: all are tied
    return np.nan_to_num(cdist(change[None], changes, metric=metric)[0], nan=1.0)
