"""Data-level neighbours on orthologous genes: features and the search (scSpecies paper, section 5.2.2)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Literal

import numpy as np
import scipy.sparse as sp
import torch
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.metrics import pairwise_distances
from sklearn.neighbors import VALID_METRICS

# Past this many pairs of cells it is quicker to compare them all in fewer dimensions first.
EXACT_PAIRS = 2 * 10**8
# Directions that cells are compared in at first, and how many of the nearest are then compared in full.
N_DIRECTIONS, N_RANKED = 192, 300
# Context cells that a target cell is compared with at first, and target cells that are compared at a time.
N_NEAR, GROUP = 32_000, 4096


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


class SmoothedFeatures:
    """Features averaged over each cell's nearest cells of its own species, computed when rows are asked for.

    The average of a cell and its like carries far less sampling noise than the cell alone, while the species' own graph
    is built on all of its genes: with few orthologues, or many that have diverged, this is what makes the search work.

    Parameters
    ----------
    features
        Features of shape ``(n_cells, n_features)``.
    weights
        Sparse matrix of shape ``(n_cells, n_cells)`` whose rows sum to one.
    """

    def __init__(self, features: sp.csr_matrix, weights: sp.csr_matrix):
        self.features = features
        self.weights = weights
        self.shape = features.shape

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        return (self.weights[rows] @ self.features).toarray()

    def mean(self) -> np.ndarray:
        """Mean over the cells, of shape ``(n_features,)``."""
        return np.asarray(self.weights.mean(axis=0) @ self.features).ravel()


def smoothing_weights(counts: sp.csr_matrix, n_neighbors: int, n_components: int = 30, seed: int = 0) -> sp.csr_matrix:
    """Weights that average every cell with its nearest cells of the same species.

    Parameters
    ----------
    counts
        Log-normalised counts of all genes, of shape ``(n_cells, n_genes)``.
    n_neighbors
        Cells to average over, the cell itself included.
    n_components
        Principal components in which the nearest are found.
    seed
        Seed of the decomposition and of pynndescent.

    Returns
    -------
    Sparse matrix of shape ``(n_cells, n_cells)`` with ``n_neighbors`` equal weights in every row.
    """
    n_cells = counts.shape[0]
    n_neighbors = min(n_neighbors, n_cells)
    n_components = min(n_components, min(counts.shape) - 1)
    if n_components > 0:
        scores = PCA(n_components, svd_solver="arpack", random_state=seed).fit_transform(counts)
    else:
        scores = counts.toarray()
    index, _ = nearest_neighbors(scores, scores, n_neighbors, metric="euclidean", seed=seed)
    indptr = np.arange(0, n_cells * n_neighbors + 1, n_neighbors)
    values = np.full(n_cells * n_neighbors, 1 / n_neighbors, dtype=np.float32)
    return sp.csr_matrix((values, index.ravel(), indptr), shape=(n_cells, n_cells))


def nearest_neighbors(
    context: sp.csr_matrix | np.ndarray | SmoothedFeatures,
    target: sp.csr_matrix | np.ndarray | SmoothedFeatures,
    n_neighbors: int,
    *,
    metric: str = "cosine",
    method: Literal["auto", "exact", "projected", "pynndescent"] = "auto",
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
        ``"cosine"``, ``"euclidean"``, or any other metric of :func:`sklearn.metrics.pairwise_distances`, which takes longer;
        with ``method="pynndescent"`` any metric of that package.
    method
        ``"exact"`` compares in chunks with every context cell. ``"projected"`` compares along the 192 directions in which
        the context varies most with the context cells of the nearest clusters, 32,000 or more, and the 300 nearest of them
        (or eight times the neighbours) in full: for cosine and Euclidean distances. ``"pynndescent"`` builds an index. ``"auto"`` takes the first for up to two hundred million
        pairs of cells or fewer than 384 features, then the second where the metric allows, else the third past ten times as many.
    seed
        Seed of the projection and of pynndescent.
    max_memory
        Bytes that the chunks of the searches may take.

    Returns
    -------
    Indices of shape ``(n_target, n_neighbors)``, int64, nearest first, and the distances, float32.
    """
    n_context, n_target = context.shape[0], target.shape[0]
    if method == "auto":
        method = _choose_method(n_context * n_target, context.shape[1], metric)
    if method == "projected":
        if metric not in ("cosine", "euclidean"):
            raise ValueError(f"method='projected' takes the metrics 'cosine' and 'euclidean', but not {metric!r}.")
        return _projected_neighbors(context, target, n_neighbors, metric, seed, max_memory)
    if method == "pynndescent":
        from pynndescent import NNDescent

        # pynndescent builds ten times slower on sparse input
        index = NNDescent(
            _dense(context, slice(None)), metric=metric, n_neighbors=max(30, n_neighbors), random_state=seed
        )
        indices, distances = index.query(_dense(target, slice(None)), k=n_neighbors, epsilon=0.2)
        return indices.astype(np.int64), distances.astype(np.float32)
    if method != "exact":
        raise ValueError(f"method must be 'auto', 'exact', 'projected' or 'pynndescent', but got {method!r}.")
    if not callable(metric) and metric not in VALID_METRICS["brute"]:
        raise ValueError(
            f"Unknown metric {metric!r} for method='exact'. Known: {', '.join(sorted(VALID_METRICS['brute']))}."
        )

    row_bytes = 4 * max(context.shape[1], 1)
    context_chunk = max(256, max_memory // (4 * row_bytes))
    target_chunk = max(64, max_memory // (2 * (row_bytes + 4 * min(context_chunk, n_context))))
    distances = np.full((n_target, n_neighbors), np.inf, dtype=np.float32)
    indices = np.zeros((n_target, n_neighbors), dtype=np.int64)
    for offset in range(0, n_context, context_chunk):
        references = _rows(context, slice(offset, offset + context_chunk), metric)
        for start in range(0, n_target, target_chunk):
            rows = slice(start, start + target_chunk)
            queries = _rows(target, rows, metric)
            distance = _distances(queries, references, metric)
            distance, index = torch.topk(distance, min(n_neighbors, distance.shape[1]), dim=1, largest=False)
            distance = torch.cat([torch.from_numpy(distances[rows]), distance], dim=1)
            index = torch.cat([torch.from_numpy(indices[rows]), index + offset], dim=1)
            distance, order = torch.topk(distance, n_neighbors, dim=1, largest=False)
            distances[rows], indices[rows] = distance.numpy(), torch.gather(index, 1, order).numpy()
    return indices, distances.clip(min=0)


def _choose_method(n_pairs: int, n_features: int, metric) -> str:
    if n_pairs <= EXACT_PAIRS:
        return "exact"
    if metric in ("cosine", "euclidean") and n_features >= 2 * N_DIRECTIONS:
        return "projected"
    return "exact" if n_pairs <= 10 * EXACT_PAIRS else "pynndescent"


def inner_products(context, target, chosen: np.ndarray, max_memory: int = 256 * 2**20) -> np.ndarray:
    """Inner products of target cells with chosen context cells (``(n_target, k)``), float32."""
    chosen, products = chosen.astype(np.int32), np.empty(chosen.shape, dtype=np.float32)
    size = max(64, max_memory // (4 * context.shape[1]))
    for start in range(0, context.shape[0], size):
        references = _dense(context, slice(start, start + size))
        for first in range(0, len(chosen), 1024):
            rows = slice(first, first + 1024)
            _compiled()(_dense(target, rows), references, chosen[rows], start, products[rows])
    return products


def dense_blocks(matrix, max_memory: int = 128 * 2**20) -> Iterator[np.ndarray]:
    """Rows of a matrix, dense, a block at a time."""
    size = max(64, max_memory // (4 * matrix.shape[1]))
    return (_dense(matrix, slice(start, start + size)) for start in range(0, matrix.shape[0], size))


@cache
def _compiled():
    """Inner products of chosen pairs of rows, compiled: a product of all pairs is mostly waste, a gather mostly copies."""
    import numba

    @numba.njit(parallel=True, fastmath=True)
    def inner_products(queries, references, candidates, start, scores):
        for i in numba.prange(len(queries)):
            for j in range(candidates.shape[1]):
                k = candidates[i, j] - start
                if 0 <= k < len(references):
                    total = np.float32(0)
                    for g in range(queries.shape[1]):
                        total += queries[i, g] * references[k, g]
                    scores[i, j] = total

    return inner_products


def _projected_neighbors(
    context, target, n_neighbors: int, metric: str, seed: int, max_memory: int
) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours among the nearest along a few directions.

    Both comparisons are by inner products: that of the projections is not of their angles, for what they leave out of a cell
    is the same for all candidates.
    """
    n_context = context.shape[0]
    rng = np.random.default_rng(seed)
    sample = np.sort(rng.permutation(n_context)[:5000])
    n_directions = min(N_DIRECTIONS, len(sample), context.shape[1])
    svd = TruncatedSVD(n_directions, n_iter=3, random_state=seed).fit(_rows(context, sample, metric).numpy())
    directions = torch.from_numpy(np.ascontiguousarray(svd.components_.T, dtype=np.float32))
    size = max(64, max_memory // (4 * context.shape[1]))
    projected, norms = zip(
        *(_project(matrix, directions, metric, size // 2) for matrix in (context, target)), strict=True
    )
    n_ranked = min(n_context, max(N_RANKED, 8 * n_neighbors))
    whole = _rows(context, slice(None), metric) if n_context <= size else None
    distances = np.empty((target.shape[0], n_neighbors), dtype=np.float32)
    indices = np.empty(distances.shape, dtype=np.int64)
    for rows, near in _vicinities(*projected, max(N_NEAR, 4 * n_ranked), seed):
        along, half_norm = projected[0][near], norms[0][near] / 2
        candidates = torch.cat(
            [
                torch.topk(block @ along.T - half_norm, n_ranked, dim=1, sorted=False).indices
                for block in projected[1][rows].split(max(16, max_memory // (8 * len(near))))
            ]
        )
        candidates = candidates.sort(dim=1).values  # ties go to the first, and memory is read in order
        ranked, candidates = torch.unique(candidates, return_inverse=True)
        cells, candidates = near[ranked], candidates.to(torch.int32).numpy()
        queries, scores = _rows(target, rows, metric).numpy(), torch.empty(candidates.shape)
        for start in range(0, len(cells), size):
            chunk = cells[start : start + size]
            references = _rows(context, chunk.numpy(), metric) if whole is None else whole[chunk]
            _compiled()(queries, references.numpy(), candidates, start, scores.numpy())
        candidates = torch.from_numpy(candidates).long()
        best = torch.topk(scores - half_norm[ranked][candidates], n_neighbors, dim=1)
        distance = (norms[1][rows][:, None] - 2 * best.values).clamp(min=0)  # squared, of unit length for the angle
        distances[rows] = (distance.sqrt() if metric == "euclidean" else distance / 2).numpy()
        indices[rows] = cells[torch.gather(candidates, 1, best.indices)].numpy()
    return indices, distances


def _project(matrix, directions: torch.Tensor, metric: str, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Coordinates of rows along directions, and their squared lengths: 1 where only the angle counts."""
    along, norms = [], []
    for start in range(0, matrix.shape[0], size):
        block = _rows(matrix, slice(start, start + size), metric)
        along.append(block @ directions)
        norms.append(block.square().sum(1) if metric == "euclidean" else torch.ones(len(block)))
    return torch.cat(along), torch.cat(norms)


def _vicinities(
    context: torch.Tensor, target: torch.Tensor, n_near: int, seed: int
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Groups of target cells, and the context cells to compare them with, both in ascending order.

    Those of the nearest clusters of the context, as many as have ``n_near`` cells together: what a target cell costs then does
    not grow with the context.
    """
    n_context, n_target = len(context), len(target)
    if n_context <= n_near:
        for rows in np.array_split(np.arange(n_target), -(-n_target // GROUP)):
            yield rows, torch.arange(n_context)
        return
    n_clusters = -(-8 * n_context // n_near)
    kmeans = MiniBatchKMeans(n_clusters, batch_size=4096, n_init=1, random_state=seed)
    sample = np.random.default_rng(seed).permutation(n_context)[: 1000 * n_clusters]
    kmeans.fit(context[sample].numpy())
    cluster = torch.from_numpy(kmeans.predict(context.numpy()))
    of_target = kmeans.predict(target.numpy())
    centers = torch.from_numpy(kmeans.cluster_centers_)
    sizes = torch.bincount(cluster, minlength=n_clusters)
    for group in np.unique(of_target):
        order = torch.cdist(centers[group : group + 1], centers)[0].argsort()
        n_taken = int((sizes[order].cumsum(0) < n_near).sum()) + 1
        near = torch.isin(cluster, order[:n_taken]).nonzero().squeeze(1)
        rows = np.flatnonzero(of_target == group)
        for part in np.array_split(rows, -(-len(rows) // GROUP)):
            yield part, near


def _rows(matrix, rows: slice | np.ndarray, metric: str) -> torch.Tensor:
    dense = torch.from_numpy(_dense(matrix, rows))
    if metric != "cosine":
        return dense
    norms = dense.norm(dim=1, keepdim=True).clamp(min=1e-12)
    if isinstance(matrix, np.ndarray):  # the caller's own values
        return dense / norms
    return dense.div_(norms)


def _distances(queries: torch.Tensor, references: torch.Tensor, metric) -> torch.Tensor:
    if metric == "cosine":  # of rows that _rows has normalised
        return 1 - queries @ references.T
    if metric == "euclidean":
        return torch.cdist(queries, references)
    return torch.from_numpy(pairwise_distances(queries.numpy(), references.numpy(), metric=metric).astype(np.float32))


def _dense(matrix, rows: slice | np.ndarray) -> np.ndarray:
    block = matrix[rows]
    block = block.toarray() if sp.issparse(block) else np.asarray(block)
    return np.ascontiguousarray(block, dtype=np.float32)
