"""Checks of what users hand in, before any work is done. Messages say what was expected and what was found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import scipy.sparse as sp
from anndata import AnnData


def examples(items: Iterable, n: int = 5) -> str:
    """Up to ``n`` items for a message."""
    items = list(items)
    shown = ", ".join(repr(str(item)) for item in items[:n])
    return shown + (f", ... ({len(items)} in all)" if len(items) > n else "")


def check_obs_key(adata: AnnData, key: str, argument: str) -> None:
    """Raise a KeyError unless ``adata.obs`` has the column ``key``."""
    if key not in adata.obs:
        raise KeyError(f"{argument}={key!r} is not in adata.obs. Columns: {examples(adata.obs.columns, 20)}.")


def check_unique_var_names(adata: AnnData, name: str = "adata") -> None:
    """Raise a ValueError if gene names repeat."""
    names = adata.var_names
    if not names.is_unique:
        raise ValueError(
            f"{name}.var_names must be unique, but these repeat: {examples(names[names.duplicated()].unique())}. "
            f"Call {name}.var_names_make_unique() first."
        )


def iter_rows(adata: AnnData, layer: str | None = None, size: int = 8192) -> Iterator[sp.csr_matrix | np.ndarray]:
    """Blocks of rows of ``adata.X`` or a layer, in order; reads a backed file block by block."""
    matrix = adata.X if layer is None else adata.layers[layer]
    for start in range(0, adata.n_obs, size):
        block = matrix[start : start + size]
        yield sp.csr_matrix(block) if sp.issparse(block) else np.asarray(block)


def check_counts(adata: AnnData, layer: str | None = None, name: str = "adata") -> None:
    """Raise a ValueError unless the matrix holds raw counts: finite, non-negative and integer."""
    if layer is not None and layer not in adata.layers:
        raise KeyError(f"layer={layer!r} is not in {name}.layers. Layers: {examples(k for k in adata.layers if k)}.")
    where = f"{name}.X" if layer is None else f"{name}.layers[{layer!r}]"
    if layer is None and adata.X is None:
        raise ValueError(f"{where} is empty. Put the raw counts there or name a layer that has them.")
    for block in iter_rows(adata, layer):
        values = block.data if sp.issparse(block) else block
        if not np.issubdtype(values.dtype, np.number) and values.dtype != bool:
            raise ValueError(f"{where} must hold numbers, but its type is {values.dtype}.")
        if not np.isfinite(values).all():
            raise ValueError(f"{where} must hold raw counts, but has missing or infinite values (NaN or inf).")
        if values.size and values.min() < 0:
            raise ValueError(f"{where} must hold raw counts, but has negative values (smallest: {values.min():g}).")
        if np.issubdtype(values.dtype, np.floating) and not np.array_equal(values, np.floor(values)):
            found = np.asarray(values)[values != np.floor(values)].ravel()[:5]
            raise ValueError(
                f"{where} must hold raw counts, but has fractions such as {', '.join(f'{v:.4g}' for v in found)}. "
                "If these are normalised values, use the raw counts (often adata.layers['counts'] or adata.raw)."
            )


def check_no_empty_cells(adata: AnnData, layer: str | None = None, name: str = "adata") -> None:
    """Raise a ValueError if a cell has no counts: its library size would be the logarithm of zero."""
    empty = np.concatenate([np.asarray(block.sum(axis=1)).ravel() == 0 for block in iter_rows(adata, layer)])
    if empty.any():
        raise ValueError(
            f"{int(empty.sum())} cells of {name} have no counts on these genes: {examples(adata.obs_names[empty])}. "
            "Remove them, e.g. with sc.pp.filter_cells(adata, min_counts=1)."
        )
