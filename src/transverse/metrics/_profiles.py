"""Agreement of true and predicted profiles, a row each."""

from __future__ import annotations

import warnings

import numpy as np
from scipy.stats import ConstantInputWarning, NearConstantInputWarning, pearsonr, rankdata


def profile_scores(truth: np.ndarray, pred: np.ndarray, *, clip: bool = False) -> dict[str, np.ndarray]:
    """Scores of predicted profiles, rows x genes, by metric; see :func:`transverse.metrics.response_scores`."""
    if truth.shape[1] < 2:
        raise ValueError(f"Profiles need at least 2 genes to be scored, but have {truth.shape[1]}.")
    error = truth - pred
    # a constant truth has no variance to explain
    variance = np.where(np.ptp(truth, axis=1) == 0, np.nan, truth.var(axis=1))
    scores = {
        "r2": 1 - (error**2).mean(axis=1) / variance,
        "explained_variance": 1 - error.var(axis=1) / variance,
        "pearson": correlation(truth, pred),
        "spearman": correlation(rankdata(truth, axis=1), rankdata(pred, axis=1)),
        "rmse": np.sqrt((error**2).mean(axis=1)),
    }
    if clip:
        scores |= {name: np.maximum(scores[name], 0) for name in ("r2", "explained_variance")}
    return scores


def correlation(truth: np.ndarray, pred: np.ndarray) -> np.ndarray:
    """Pearson correlation of rows: 0 where a prediction is constant, NaN where the truth is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantInputWarning)
        warnings.simplefilter("ignore", NearConstantInputWarning)
        values = np.asarray(pearsonr(truth, pred, axis=1).statistic, dtype=float)
    values = np.where(np.ptp(pred, axis=1) == 0, 0.0, values)
    return np.where(np.ptp(truth, axis=1) == 0, np.nan, values)
