"""Expression of cells of two species on the genes that they share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from transverse._validation import check_counts, check_finite, check_no_empty_cells

Normalize = Literal["total", "shared", "none", "given"]


def check_normalize(normalize: str, target_sum: float) -> None:
    """Raise a ValueError unless both are understood."""
    if normalize not in get_args(Normalize):
        raise ValueError(f"normalize must be one of {', '.join(get_args(Normalize))}, but got {normalize!r}.")
    if not target_sum > 0:
        raise ValueError(f"target_sum={target_sum!r} must be a positive number.")


def check_expression(adata: AnnData, layer: str | None, normalize: Normalize, name: str) -> None:
    """Raise unless the matrix holds what ``normalize`` takes: raw counts, or finite numbers for ``"given"``."""
    if not isinstance(adata, AnnData):
        raise TypeError(f"{name} must be an AnnData, but got {type(adata).__name__}.")
    if adata.n_obs == 0 or adata.n_vars == 0:
        raise ValueError(f"{name} is empty: it has {adata.n_obs} cells and {adata.n_vars} genes.")
    if normalize == "given":
        check_finite(adata, layer, name)
    else:
        check_counts(adata, layer, name)
        check_no_empty_cells(adata, layer, name)


def stack(blocks: Iterable[sp.csr_matrix | np.ndarray]) -> sp.csr_matrix | np.ndarray:
    """Blocks of rows as one matrix; sparse stays sparse."""
    blocks = list(blocks)
    return sp.vstack(blocks, format="csr") if sp.issparse(blocks[0]) else np.concatenate(blocks)


def log_expression(
    blocks: Iterable[sp.csr_matrix | np.ndarray],
    genes: sp.csr_matrix | None,
    normalize: Normalize,
    target_sum: float,
) -> sp.csr_matrix | np.ndarray:
    """Log expression of blocks of cells on shared genes.

    Parameters
    ----------
    blocks
        Counts (or, for ``"given"``, expression as it shall be used) of shape ``(n_rows, n_genes)``.
    genes
        0/1 matrix (genes x shared genes); None takes all genes.
    normalize
        Which total a cell's counts are divided by: that of all its genes, of its shared genes, or none.
    target_sum
        What the total becomes.

    Returns
    -------
    float64 matrix (cells x shared genes).
    """
    parts = []
    for block in blocks:
        block = block.astype(np.float64)
        shared = block if genes is None else block @ genes
        if normalize in ("total", "shared"):
            total = np.asarray((block if normalize == "total" else shared).sum(axis=1)).ravel()
            factor = np.divide(target_sum, total, out=np.zeros_like(total), where=total > 0)
            shared = sp.diags(factor) @ shared if sp.issparse(shared) else factor[:, None] * shared
        if normalize != "given":
            shared = np.log1p(shared)
        parts.append(sp.csr_matrix(shared) if sp.issparse(shared) else shared)
    return stack(parts)


def has_signal(features: sp.csr_matrix | np.ndarray) -> np.ndarray:
    """Which cells have a value other than zero."""
    return np.asarray((features != 0).sum(axis=1)).ravel() > 0
