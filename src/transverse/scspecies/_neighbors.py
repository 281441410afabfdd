"""Data-level neighbours on orthologous genes: the search, the vote, and which cells are sure enough to align.

Pure functions over arrays; equations of the scSpecies paper, sections 5.2.2 and 5.2.3.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import scipy.sparse as sp
import torch
from sklearn.preprocessing import normalize

# Past this many context cells the index of pynndescent is quicker than comparing with every one of them on a CPU.
EXACT_LIMIT = 200_000


def transform_counts(
    counts: sp.csr_matrix, normalization: Literal["library", "none"] = "library", library: np.ndarray | None = None
) -> sp.csr_matrix:
    """Log-transform counts on orthologous genes for the neighbour search.

    Parameters
    ----------
    counts
        Counts of shape ``(n_cells, n_shared)``.
    normalization
        ``"library"`` divides by the cell's total and multiplies by 10,000 before ``log1p``; ``"none"`` takes ``log1p``
        of the raw counts, as the paper does.
    library
        Total counts per cell of shape ``(n_cells,)``; by default the total over the genes of ``counts``.

    Returns
    -------
    Sparse matrix of the same shape, float32.
    """
    result = sp.csr_matrix(counts, dtype=np.float32, copy=True)
    if normalization == "library":
        total = np.asarray(result.sum(axis=1)).ravel() if library is None else np.asarray(library, dtype=np.float64)
        factor = np.divide(1e4, total, out=np.zeros(total.shape, dtype=np.float64), where=total > 0)
        result.data *= np.repeat(factor, np.diff(result.indptr)).astype(np.float32)
    elif normalization != "none":
        raise ValueError(f"Unknown normalization {normalization!r}: expected 'library' or 'none'.")
    np.log1p(result.data, out=result.data)
    return result


def nearest_neighbors(
    context: sp.csr_matrix | np.ndarray,
    target: sp.csr_matrix | np.ndarray,
    n_neighbors: int,
    *,
    metric: str = "cosine",
    method: Literal["auto", "exact", "pynndescent"] = "auto",
    seed: int = 0,
    max_memory: int = 256 * 2**20,
) -> tuple[np.ndarray, np.ndarray]:
    """Nearest context cells of every target cell (equation 11).

    Parameters
    ----------
    context, target
        Features of shape ``(n_context, n_features)`` and ``(n_target, n_features)``.
    n_neighbors
        Neighbours for each target cell.
    metric
        ``"cosine"`` or ``"euclidean"``; with ``method="pynndescent"`` any metric of that package.
    method
        ``"exact"`` compares in chunks with every context cell; ``"pynndescent"`` builds an index; ``"auto"`` takes the
        first up to 200,000 context cells.
    seed
        Seed of pynndescent.
    max_memory
        Bytes that a chunk of the exact search may take.

    Returns
    -------
    Indices of shape ``(n_target, n_neighbors)``, int64, nearest first, and the distances, float32.
    """
    if method == "auto":
        method = "exact" if context.shape[0] <= EXACT_LIMIT and metric in ("cosine", "euclidean") else "pynndescent"
    if method == "pynndescent":
        from pynndescent import NNDescent

        # pynndescent builds ten times slower on sparse input
        dense = [m.toarray() if sp.issparse(m) else np.asarray(m, dtype=np.float32) for m in (context, target)]
        index = NNDescent(dense[0], metric=metric, n_neighbors=max(30, n_neighbors), random_state=seed)
        indices, distances = index.query(dense[1], k=n_neighbors, epsilon=0.2)
        return indices.astype(np.int64), distances.astype(np.float32)
    if metric == "cosine":
        context, target = normalize(context), normalize(target)
    elif metric != "euclidean":
        raise ValueError(f"The exact search knows the metrics 'cosine' and 'euclidean', but got {metric!r}.")
    return _exact_neighbors(context, target, n_neighbors, metric == "cosine", max_memory)


def _exact_neighbors(context, target, n_neighbors, is_cosine, max_memory):
    n_context, n_target = context.shape[0], target.shape[0]
    width = max(context.shape[1], 1)
    context_chunk = int(np.clip(max_memory // (8 * width), 256, max(n_context, 256)))
    target_chunk = int(np.clip(max_memory // (4 * (width + context_chunk)), 64, max(n_target, 64)))
    indices = np.empty((n_target, n_neighbors), dtype=np.int64)
    distances = np.empty((n_target, n_neighbors), dtype=np.float32)
    for start in range(0, n_target, target_chunk):
        rows = slice(start, start + target_chunk)
        queries = _dense(target[rows])
        best_distance = best_index = None
        for offset in range(0, n_context, context_chunk):
            references = _dense(context[offset : offset + context_chunk])
            if is_cosine:
                distance = 1 - queries @ references.T
            else:
                distance = torch.cdist(queries, references)
            k = min(n_neighbors, distance.shape[1])
            distance, index = torch.topk(distance, k, dim=1, largest=False)
            index = index + offset
            if best_distance is not None:
                distance, index = torch.cat([best_distance, distance], 1), torch.cat([best_index, index], 1)
                distance, order = torch.topk(distance, min(n_neighbors, distance.shape[1]), dim=1, largest=False)
                index = torch.gather(index, 1, order)
            best_distance, best_index = distance, index
        indices[rows], distances[rows] = best_index.numpy(), best_distance.clamp_min(0).numpy()
    return indices, distances


def _dense(matrix) -> torch.Tensor:
    dense = matrix.toarray() if sp.issparse(matrix) else np.asarray(matrix)
    return torch.from_numpy(np.ascontiguousarray(dense, dtype=np.float32))


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
    order = np.lexsort((np.random.default_rng(seed).random(len(labels)), -np.asarray(agreement), labels))
    sorted_labels = np.asarray(labels)[order]
    _, first, counts = np.unique(sorted_labels, return_index=True, return_counts=True)
    rank = np.arange(len(labels)) - np.repeat(first, counts)
    keep = rank < np.maximum(np.round((1 - quantile) * np.repeat(counts, counts)), 1)
    eligible = np.zeros(len(labels), dtype=bool)
    eligible[order] = keep & (sorted_labels >= 0)
    return eligible
