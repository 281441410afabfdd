"""Agreement of true and predicted profiles, a row each."""

from __future__ import annotations

import warnings

import numpy as np
from scipy.stats import ConstantInputWarning, NearConstantInputWarning, pearsonr, rankdata
from sklearn.metrics import explained_variance_score, r2_score, root_mean_squared_error

PROFILE_METRICS = ("r2", "explained_variance", "pearson", "spearman", "rmse")


def profile_scores(truth: np.ndarray, pred: np.ndarray, *, clip: bool = False) -> dict[str, np.ndarray]:
    """Scores of predicted profiles, rows x genes, by metric; see :func:`transverse.metrics.response_scores`."""
    # scikit-learn scores columns
    columns = {"y_true": truth.T, "y_pred": pred.T, "multioutput": "raw_values"}
    scores = {
        "r2": r2_score(**columns, force_finite=False),
        "explained_variance": explained_variance_score(**columns, force_finite=False),
        "pearson": correlation(truth, pred),
        "spearman": correlation(rankdata(truth, axis=1), rankdata(pred, axis=1)),
        "rmse": root_mean_squared_error(**columns),
    }
    for name in ("r2", "explained_variance"):
        # a constant truth has no variance to explain
        scores[name] = np.where(np.isfinite(scores[name]), scores[name], np.nan)
        if clip:
            scores[name] = np.maximum(scores[name], 0)
    return scores


def correlation(truth: np.ndarray, pred: np.ndarray) -> np.ndarray:
    """Pearson correlation of rows: 0 where a prediction is constant, NaN where the truth is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantInputWarning)
        warnings.simplefilter("ignore", NearConstantInputWarning)
        values = np.asarray(pearsonr(truth, pred, axis=1).statistic, dtype=float)
    values = np.where(np.ptp(pred, axis=1) == 0, 0.0, values)
    return np.where(np.ptp(truth, axis=1) == 0, np.nan, values)
