"""How much contexts have to say about another."""

from __future__ import annotations

import numpy as np


def similarity_weights(distances: np.ndarray, bandwidth: float = 1.0) -> np.ndarray:
    r"""Weights :math:`w_i \propto \exp(-d_i^2 / (h \min_j d_j^2))`, which sum to 1.

    Parameters
    ----------
    distances
        Squared distances :math:`d^2`, shape ``(n_contexts,)``. Where some are 0 these share all the weight.
    bandwidth
        :math:`h`.
    """
    distances = np.asarray(distances, dtype=float)
    nearest = distances.min()
    # relative to the nearest, whose weight cannot vanish then
    weights = np.exp((nearest - distances) / (bandwidth * nearest)) if nearest > 0 else (distances == 0).astype(float)
    return weights / weights.sum()
