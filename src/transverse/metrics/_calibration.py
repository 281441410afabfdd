"""How far confidences are from the share of predictions that are right."""

from __future__ import annotations

from numbers import Integral

import numpy as np
import pandas as pd


def check_n_bins(n_bins: int) -> None:
    """Raise a ValueError unless ``n_bins`` is a whole number of at least 1."""
    if not isinstance(n_bins, Integral) or isinstance(n_bins, bool) or n_bins < 1:
        raise ValueError(f"n_bins={n_bins!r} must be a whole number of at least 1.")


def calibration_bins(confidence: np.ndarray, correct: np.ndarray, n_bins: int) -> pd.DataFrame:
    """Confidence, accuracy and number of cells of every bin that has cells.

    Bins are of equal width and closed on the right; 0 belongs to the first.

    Parameters
    ----------
    confidence
        Numbers between 0 and 1 of shape ``(n_cells,)``.
    correct
        0 or 1 for each cell.
    n_bins
        Number of bins.

    Returns
    -------
    A row per bin, by confidence, with the means ``confidence`` and ``correct``, and the number of cells ``n``.
    """
    # a share of votes often lies on a border, which floating-point numbers miss
    bins = np.clip(np.ceil(confidence * n_bins - 1e-6).astype(int) - 1, 0, n_bins - 1)
    frame = pd.DataFrame({"bin": bins, "confidence": confidence, "correct": correct}).groupby("bin")
    return frame.mean().assign(n=frame.size())


def calibration_error(bins: pd.DataFrame) -> float:
    """Expected calibration error of the bins of :func:`calibration_bins`; NaN if there are none."""
    if bins.empty:
        return np.nan
    return float(np.average((bins["correct"] - bins["confidence"]).abs(), weights=bins["n"]))
