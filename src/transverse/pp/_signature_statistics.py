"""Sums over groups of cells, block by block, and what signatures make of the means and variances."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from scipy.special import digamma, polygamma

from transverse._groups import dense
from transverse._validation import iter_rows

_BLOCK_VALUES = 2**23  # of 8 bytes: 64 MB, were the block dense


@dataclass(frozen=True)
class Observations:
    """Number, mean and variance (``ddof=1``; None if not asked for) of the observations of every stratum."""

    n: np.ndarray
    mean: np.ndarray
    variance: np.ndarray | None


@dataclass(frozen=True)
class Prior:
    """What limma takes from all genes: residual degrees of freedom, those of the prior, and the prior variance."""

    df: float
    df_prior: float
    variance: float


def read_blocks(
    adata: AnnData, layer: str | None, target_sum: float | None = None
) -> Iterator[sp.csr_matrix | np.ndarray]:
    """Blocks of rows as float64; with ``target_sum`` they are counts, which are normalised to it row by row and logged."""
    size = min(8192, max(1, _BLOCK_VALUES // adata.n_vars))
    for block in iter_rows(adata, layer, size):
        block = block.astype(float)
        yield block if target_sum is None else log_normalise(block, target_sum)


def log_normalise(counts: sp.csr_matrix | np.ndarray, target_sum: float) -> sp.csr_matrix | np.ndarray:
    """log1p of counts per ``target_sum``, row by row."""
    scale = target_sum / np.asarray(counts.sum(axis=1)).ravel()
    if sp.issparse(counts):
        return (sp.diags(scale, format="csr") @ counts).log1p()
    return np.log1p(counts * scale[:, None])


def group_sums(
    blocks: Iterable[sp.csr_matrix | np.ndarray], codes: np.ndarray, shape: tuple[int, int], squares: bool = False
) -> list[np.ndarray]:
    """Sums, and sums of squares, of the rows of every group, groups x genes; rows of code -1 are in none."""
    totals = [np.zeros(shape) for _ in range(1 + squares)]
    start = 0
    for block in blocks:
        of_row = codes[start : start + block.shape[0]]
        start += block.shape[0]
        rows = np.flatnonzero(of_row >= 0)
        groups, local = np.unique(of_row[rows], return_inverse=True)
        member = sp.csr_matrix((np.ones(len(rows)), (local, rows)), shape=(len(groups), block.shape[0]))
        totals[0][groups] += dense(member @ block)
        if squares:
            totals[1][groups] += dense(member @ (block.multiply(block) if sp.issparse(block) else block**2))
    return totals


def observe(
    adata: AnnData,
    layer: str | None,
    strata: np.ndarray,
    replicates: np.ndarray | None,
    *,
    target_sum: float | None,
    variances: bool,
) -> Observations:
    """Observations of every stratum, which are the cells, or the replicates where those are given.

    ``strata`` and ``replicates`` are codes of cells from 0 up, without gaps; those of a cell that is not used are -1. A
    replicate is of one stratum. With ``target_sum`` the matrix holds counts.
    """
    n_strata = strata.max() + 1
    if replicates is None:
        blocks = read_blocks(adata, layer, target_sum)
    else:
        of_replicate = np.full(replicates.max() + 1, -1)
        of_replicate[replicates[replicates >= 0]] = strata[replicates >= 0]
        (profiles,) = group_sums(read_blocks(adata, layer), replicates, (len(of_replicate), adata.n_vars))
        if target_sum is None:
            profiles /= np.bincount(replicates[replicates >= 0])[:, None]
        else:
            profiles = log_normalise(profiles, target_sum)
        strata, blocks = of_replicate, [profiles]
    n = np.bincount(strata[strata >= 0], minlength=n_strata)
    totals = group_sums(blocks, strata, (n_strata, adata.n_vars), squares=variances)
    mean = totals[0]
    mean /= n[:, None]
    if not variances:
        return Observations(n, mean, None)
    squares = totals[1]
    deviations = squares - n[:, None] * mean**2
    # what is left of a constant gene is rounding
    deviations[deviations <= 4 * np.finfo(float).eps * n[:, None] * squares] = 0
    return Observations(n, mean, deviations / np.maximum(n - 1, 1)[:, None])


def moderate(variance: np.ndarray, df: float) -> tuple[np.ndarray, Prior]:
    """Empirical Bayes estimates of the variances of genes, and the prior (Smyth 2004, section 6.2).

    Variances of 0 have no logarithm and tell the prior nothing, but are moderated like the others.
    """
    logs = np.log(variance[variance > 0])
    if len(logs) < 2:
        raise ValueError(f"the variance of {len(logs)} genes is above 0, and the prior needs at least two")
    e = logs - digamma(df / 2) + np.log(df / 2)
    excess = e.var(ddof=1) - polygamma(1, df / 2)
    if excess <= 0:
        prior = Prior(df, np.inf, float(np.exp(e.mean())))
        return np.full(len(variance), prior.variance), prior
    half = trigamma_inverse(excess)
    prior = Prior(df, 2 * half, float(np.exp(e.mean() + digamma(half) - np.log(half))))
    return (prior.df_prior * prior.variance + df * variance) / (prior.df_prior + df), prior


def trigamma_inverse(x: float) -> float:
    r""":math:`y` with :math:`\psi'(y) = x`, by Newton's method on :math:`1 / \psi'`, which is nearly linear."""
    if x > 1e7:  # beyond these bounds the first term of the series is exact to rounding
        return float(1 / np.sqrt(x))
    if x < 1e-6:
        return float(1 / x)
    y = 0.5 + 1 / x
    for _ in range(50):
        trigamma = polygamma(1, y)
        step = trigamma * (1 - trigamma / x) / polygamma(2, y)
        y += step
        if -step / y < 1e-10:
            break
    return float(y)
