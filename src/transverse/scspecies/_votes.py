"""Votes of neighbours, and which cells are sure enough to align (scSpecies paper, sections 5.2.2 and 5.2.3)."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp


def vote(neighbor_codes: np.ndarray, n_labels: int, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Majority label of each row and its share (the agreement score, equation 14).

    Parameters
    ----------
    neighbor_codes
        Label codes of shape ``(n_cells, k)``; negative codes (unlabelled neighbours) do not vote.
    n_labels
        Number of labels.
    weights
        Weights of the votes, of shape ``(n_cells, k)``.

    Returns
    -------
    Codes of shape ``(n_cells,)`` (the smallest code among ties, -1 where nobody votes) and shares of shape
    ``(n_cells,)`` in ``[0, 1]``.
    """
    votes = vote_counts(neighbor_codes, n_labels, weights)
    codes = votes.argmax(axis=1)
    top = votes[np.arange(len(votes)), codes]
    total = votes.sum(axis=1) if weights is not None else np.full(len(votes), neighbor_codes.shape[1])
    share = np.divide(top, total, out=np.zeros(len(votes)), where=total > 0)
    return np.where(top > 0, codes, -1), share


def vote_counts(neighbor_codes: np.ndarray, n_labels: int, weights: np.ndarray | None = None) -> np.ndarray:
    """Votes for every label, of shape ``(n_cells, n_labels)``."""
    n_cells, k = neighbor_codes.shape
    rows = np.repeat(np.arange(n_cells), k)
    values = np.ones(n_cells * k) if weights is None else np.asarray(weights, dtype=float).ravel()
    codes = neighbor_codes.ravel()
    valid = codes >= 0
    counts = sp.coo_matrix((values[valid], (rows[valid], codes[valid])), shape=(n_cells, n_labels))
    return counts.toarray()


def eligible_cells(labels: np.ndarray, agreement: np.ndarray, quantile: float, seed: int = 0) -> np.ndarray:
    r"""Cells whose neighbours agree well enough for alignment, the set :math:`\mathbb{J}(p)`.

    Within each preliminary label the cells are ranked by agreement, and the best ``1 - quantile`` share is taken. The
    paper's rule (agreement strictly above the quantile) leaves no cell of a label on which at least that many cells
    agree fully; ranking with random tie-breaks does not.

    Parameters
    ----------
    labels
        Preliminary label codes of shape ``(n_cells,)``; cells with a negative code are never eligible.
    agreement
        Agreement scores of shape ``(n_cells,)``.
    quantile
        :math:`p` in ``[0, 1)``.
    seed
        Seed of the tie-breaks.

    Returns
    -------
    Boolean array of shape ``(n_cells,)``; at least one cell of every label that occurs.
    """
    labels, agreement = np.asarray(labels), np.asarray(agreement)
    order = np.lexsort((np.random.default_rng(seed).random(len(labels)), -agreement, labels))
    _, first, counts = np.unique(labels[order], return_index=True, return_counts=True)
    rank = np.arange(len(labels)) - np.repeat(first, counts)
    eligible = np.zeros(len(labels), dtype=bool)
    eligible[order] = rank < np.maximum(np.round((1 - quantile) * np.repeat(counts, counts)), 1)
    return eligible & (labels >= 0)
