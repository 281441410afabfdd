"""Which target cells have no counterpart in the context, and how sure a transferred label is.

Constants were chosen on simulated species; see the user guide for how, and for what they reach on real cells.
"""

from __future__ import annotations

import numpy as np

from ._neighbors import dense_blocks, inner_products

# Weight of the data-level distance beside the likelihood ratio.
DISTANCE_WEIGHT = 0.5
# Votes are raised to this power before they are normalised.
VOTE_SHARPNESS = 2.0
# Novelty at which a cell is as likely without a counterpart as with one, and how fast the odds turn.
NOVELTY_MIDPOINT = 2.4
NOVELTY_WIDTH = 0.35

_TINY = 1e-8


def centered_distance(
    context,
    target,
    neighbors: np.ndarray,
    distances: np.ndarray,
    metric,
    context_mean: np.ndarray,
    target_mean: np.ndarray,
) -> np.ndarray:
    r"""Mean cosine distance of cells to their data-level neighbours, every gene centred within its species.

    Centring takes away what all cells of a species share, so that the distance tells how well the neighbours match what is
    special about the cell. With means :math:`m_C, m_T` of context cell :math:`c` and target cell :math:`t`,

    .. math::
        (c - m_C)^\top (t - m_T) = c^\top t - c^\top m_T - m_C^\top t + m_C^\top m_T,

    of which the first term follows from a cosine or Euclidean distance, and the others are of single cells.

    Parameters
    ----------
    context, target
        Features of shape ``(n_context, n_features)`` and ``(n_target, n_features)``.
    neighbors
        Context cells of shape ``(n_target, k)``.
    distances
        Their distances, of the same shape, and
    metric
        in which metric they are.
    context_mean, target_mean
        Mean features of either species.

    Returns
    -------
    Array of shape ``(n_target,)``, float32, in ``[0, 2]``.
    """
    of_context, of_target = _moments(context, context_mean, target_mean), _moments(target, target_mean, context_mean)
    near = {name: values[neighbors] for name, values in of_context.items()}
    cell = {name: values[:, None] for name, values in of_target.items()}
    if metric == "cosine":
        products = (1 - distances) * np.sqrt(near["square"] * cell["square"])
    elif metric == "euclidean":
        products = (near["square"] + cell["square"] - distances.astype(np.float64) ** 2) / 2
    else:
        products = inner_products(context, target, neighbors)
    centered = products - near["other"] - cell["other"] + context_mean @ target_mean
    return (1 - centered / (near["norm"] * cell["norm"])).mean(1).clip(0, 2).astype(np.float32)


def _moments(matrix, mean: np.ndarray, other_mean: np.ndarray) -> dict[str, np.ndarray]:
    """Of every cell: its squared length, its product with the other species' mean, and its length when centred."""
    means = np.stack([mean, other_mean], axis=1).astype(np.float32)
    square, products = [], []
    for block in dense_blocks(matrix):
        square.append(np.einsum("ij,ij->i", block, block))
        products.append(block @ means)
    square, products = np.concatenate(square).astype(np.float64), np.concatenate(products).astype(np.float64)
    centered = square - 2 * products[:, 0] + mean @ mean
    # rounding leaves something of a cell that is the average
    norm = np.sqrt(np.maximum(centered, 1e-5 * square + _TINY))
    return {"square": square, "other": products[:, 1], "norm": norm}


def novelty_reference(ratio: np.ndarray, distance: np.ndarray | None) -> dict[str, tuple[float, float]]:
    """Median, and distance from there to the 84th percentile, of the signals of cells that are taken to be known."""
    signals = {"ratio": _log_ratio(ratio)}
    if distance is not None:
        signals["distance"] = distance
    reference = {}
    for name, values in signals.items():
        median, upper = np.quantile(values, [0.5, 0.84])
        reference[name] = (float(median), float(max(upper - median, 0.05)))
    return reference


def novelty_score(
    ratio: np.ndarray, distance: np.ndarray | None, reference: dict[str, tuple[float, float]]
) -> np.ndarray:
    r"""Novelty of cells in spreads above what is usual among aligned cells.

    :math:`\max(u, w\,v)`, with :math:`u` the standardised logarithm of the likelihood ratio, :math:`v` the standardised
    data-level distance and :math:`w` its weight. Without a distance, :math:`u` alone.
    """
    median, spread = reference["ratio"]
    score = (_log_ratio(ratio) - median) / spread
    if distance is None or "distance" not in reference:
        return score
    median, spread = reference["distance"]
    return np.maximum(score, DISTANCE_WEIGHT * (distance - median) / spread)


def _log_ratio(ratio: np.ndarray) -> np.ndarray:
    # below zero, where the context explains a cell better than its own latent variable does, nothing is novel
    return np.log1p(np.maximum(ratio, 0.0))


def label_confidence(shares: np.ndarray, novelty: np.ndarray) -> np.ndarray:
    r"""Probability that the label with the most votes is right.

    :math:`\frac{\max_l s_l^a}{\sum_l s_l^a} \cdot \operatorname{sigmoid}\left(\frac{m - \text{novelty}}{b}\right)`: the sharpened
    share of the votes :math:`s_l`, times the probability that the cell's type is in the context at all.

    Parameters
    ----------
    shares
        Shares of the votes of shape ``(n_cells, n_labels)``; rows without votes are zero.
    novelty
        Of shape ``(n_cells,)``.
    """
    sharp = shares**VOTE_SHARPNESS
    total = sharp.sum(axis=1)
    top = np.divide(sharp.max(axis=1), total, out=np.zeros(len(sharp)), where=total > 0)
    odds = np.clip((novelty - NOVELTY_MIDPOINT) / NOVELTY_WIDTH, -50, 50)
    return top / (1 + np.exp(odds))
