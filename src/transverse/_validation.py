"""Checks of what users hand in, before any work is done. Messages say what was expected and what was found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Integral

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

_LARGEST = 1e15


def examples(items: Iterable, n: int = 5) -> str:
    """Up to ``n`` items for a message."""
    items = list(items)
    if not items:
        return "none"
    shown = ", ".join(repr(str(item)) for item in items[:n])
    return shown + (f", ... ({len(items)} in all)" if len(items) > n else "")


def column_names(table: pd.DataFrame) -> str:
    """Columns of a table for a message, without those that scvi-tools adds."""
    return examples((name for name in table.columns if not str(name).startswith("_scvi_")), 20)


def check_obs_key(adata: AnnData, key: str, argument: str) -> None:
    """Raise a KeyError unless ``adata.obs`` has the column ``key``, or a TypeError if it is no name."""
    if not isinstance(key, str):
        raise TypeError(
            f"{argument}={key!r} must be the name of a column of adata.obs, not of the type {type(key).__name__}."
        )
    if key not in adata.obs:
        raise KeyError(f"{argument}={key!r} is not in adata.obs. Columns: {column_names(adata.obs)}.")


def check_unique_var_names(adata: AnnData, name: str = "adata") -> None:
    """Raise a ValueError if gene names repeat."""
    _check_unique(adata, "var_names", name)


def _check_unique(adata: AnnData, axis: str, name: str) -> None:
    names = getattr(adata, axis)
    if not names.is_unique:
        hint = ""
        if axis == "var_names":
            hint = " It renames all but the first of each; where genes are matched by name, Ensembl ids as names lose none."
        raise ValueError(
            f"{name}.{axis} must be unique, but these repeat: {examples(names[names.duplicated()].unique())}. "
            f"Call {name}.{axis}_make_unique() first.{hint}"
        )


def align_genes(adata: AnnData, var_names: Sequence[str], name: str = "adata") -> AnnData:
    """``adata`` with the genes that a model was trained on, in the model's order.

    Returns the object itself if nothing has to change, a copy in memory if genes were reordered or are more than
    needed, and raises a ValueError if genes are missing.
    """
    if adata.n_vars == len(var_names) and np.array_equal(adata.var_names, var_names):
        return adata
    check_unique_var_names(adata, name)
    missing = pd.Index(var_names).difference(adata.var_names, sort=False)
    if len(missing):
        raise ValueError(
            f"{len(missing)} of the {len(var_names)} genes that the model was trained on are missing in {name}: "
            f"{examples(missing)}. {name} has, for example: {examples(adata.var_names)}."
        )
    if adata.isbacked:  # a view of a file can be neither copied nor subset again
        adata = adata.to_memory()
    return adata[:, list(var_names)].copy()


def iter_rows(adata: AnnData, layer: str | None = None, size: int = 8192) -> Iterator[sp.csr_matrix | np.ndarray]:
    """Blocks of rows of ``adata.X`` or a layer, in order; reads a backed file block by block."""
    matrix = adata.X if layer is None else adata.layers[layer]
    for start in range(0, adata.n_obs, size):
        block = matrix[start : start + size]
        yield sp.csr_matrix(block) if sp.issparse(block) else np.asarray(block)


def check_counts(adata: AnnData, layer: str | None = None, name: str = "adata") -> None:
    """Raise a ValueError unless the matrix holds raw counts: finite, non-negative and integer."""
    where = _where(adata, layer, name, "raw counts")
    for block in iter_rows(adata, layer):
        values = block.data if sp.issparse(block) else block
        if not np.issubdtype(values.dtype, np.number) and values.dtype != bool:
            raise ValueError(f"{where} must hold numbers, but its type is {values.dtype}.")
        if not np.isfinite(values).all():
            raise ValueError(f"{where} must hold raw counts, but has missing or infinite values (NaN or inf).")
        if values.size and values.min() < 0:
            raise ValueError(f"{where} must hold raw counts, but has negative values (smallest: {values.min():g}).")
        if np.issubdtype(values.dtype, np.floating) and not np.array_equal(values, np.floor(values)):
            found = pd.unique(np.asarray(values)[values != np.floor(values)].ravel())[:5]
            raise ValueError(
                f"{where} must hold raw counts, but has fractions such as {', '.join(f'{v:.4g}' for v in found)}. "
                "If these are normalised values, use the raw counts (often adata.layers['counts'] or adata.raw)."
            )


def check_finite(adata: AnnData, layer: str | None = None, name: str = "adata") -> None:
    """Raise a ValueError if values are missing or infinite."""
    where = _where(adata, layer, name)
    for block in iter_rows(adata, layer):
        values = block.data if sp.issparse(block) else block
        if not np.issubdtype(values.dtype, np.number) and values.dtype != bool:
            raise ValueError(f"{where} must hold numbers, but its type is {values.dtype}.")
        if not np.isfinite(values).all():
            raise ValueError(f"{where} has missing or infinite values (NaN or inf). Remove or fill them first.")
        if values.size and max(-float(values.min()), float(values.max())) > _LARGEST:
            raise ValueError(f"{where} has values beyond {_LARGEST:g}, whose squares are infinite in single precision.")


def _where(adata: AnnData, layer: str | None, name: str, what: str = "values") -> str:
    """What to call the matrix in a message; raises if there is none."""
    if layer is not None and layer not in adata.layers:
        raise KeyError(f"layer={layer!r} is not in {name}.layers. Layers: {examples(k for k in adata.layers if k)}.")
    if layer is None and adata.X is None:
        raise ValueError(f"{name}.X is empty. Put the {what} there or name a layer that has them.")
    return f"{name}.X" if layer is None else f"{name}.layers[{layer!r}]"


def check_log_normalized(adata: AnnData, layer: str | None = None, name: str = "adata") -> None:
    """Raise a ValueError if the matrix is not finite, or holds raw counts where log-normalised values are needed."""
    check_finite(adata, layer, name)
    if adata.n_obs == 0 or adata.n_vars == 0:
        raise ValueError(f"{name} is empty: it has {adata.n_obs} cells and {adata.n_vars} genes.")
    where = _where(adata, layer, name)
    counts = True
    largest = 0.0
    for block in iter_rows(adata, layer):
        values = block.data if sp.issparse(block) else block
        if counts and values.size:
            counts = bool((values >= 0).all() and np.array_equal(values, np.floor(values)))
            largest = max(largest, float(values.max()))
    # one and nought alone may be anything
    if counts and largest > 1:
        raise ValueError(
            f"{where} must hold log-normalised values, but has whole numbers up to {largest:g}, which look like raw counts. "
            "Call sc.pp.normalize_total(adata, target_sum=1e4) and sc.pp.log1p(adata) first, or name a layer that has them."
        )


def check_no_empty_cells(adata: AnnData, layer: str | None = None, name: str = "adata") -> None:
    """Raise a ValueError if a cell has no counts: its library size would be the logarithm of zero."""
    empty = np.concatenate([np.asarray(block.sum(axis=1)).ravel() == 0 for block in iter_rows(adata, layer)])
    if empty.any():
        raise ValueError(
            f"{int(empty.sum())} cells of {name} have no counts on these genes: {examples(adata.obs_names[empty])}. "
            "Remove them, e.g. with sc.pp.filter_cells(adata, min_counts=1)."
        )


def check_columns(adata: AnnData, columns: Mapping[str, Sequence[str | None]], optional: Sequence[str] = ()) -> None:
    """Check data for a model, and that columns of ``obs``, by the argument that names them, are there and complete.

    Arguments that are ``optional`` may name None.
    """
    if not isinstance(adata, AnnData):
        raise TypeError(f"adata must be an AnnData, but got {type(adata).__name__}.")
    if adata.n_obs == 0 or adata.n_vars == 0:
        raise ValueError(f"adata is empty: it has {adata.n_obs} cells and {adata.n_vars} genes.")
    for argument, keys in columns.items():
        for key in keys:
            if key is None and argument in optional:
                continue
            check_obs_key(adata, key, argument)
            if (missing := adata.obs[key].isna()).any():
                raise ValueError(
                    f"adata.obs[{key!r}] ({argument}) is missing for {int(missing.sum())} cells: "
                    f"{examples(adata.obs_names[missing.to_numpy()])}. Fill it in or remove the cells."
                )
            types = sorted({type(value).__name__ for value in adata.obs[key].unique()})
            if len(types) > 1 and not pd.api.types.is_numeric_dtype(adata.obs[key]):
                raise ValueError(
                    f"adata.obs[{key!r}] ({argument}) mixes values of the types {examples(types)}. Make them text first: "
                    f"adata.obs[{key!r}] = adata.obs[{key!r}].astype(str)."
                )
    check_unique_var_names(adata)
    _check_unique(adata, "obs_names", "adata")  # results are joined to cells by name


def check_setup(
    adata: AnnData,
    layer: str | None,
    *,
    batch_key: str | None = None,
    categorical: Sequence[str] = (),
    continuous: Sequence[str] = (),
) -> None:
    """Check everything that a count model registers, before it registers anything."""
    for argument, columns in {
        "categorical_covariate_keys": categorical,
        "continuous_covariate_keys": continuous,
    }.items():
        if isinstance(columns, str):
            raise TypeError(f"{argument} must be a list of columns, but got the string {columns!r}.")
    check_columns(
        adata,
        {
            "batch_key": [] if batch_key is None else [batch_key],
            "categorical_covariate_keys": categorical,
            "continuous_covariate_keys": continuous,
        },
    )
    for key in continuous:
        if not pd.api.types.is_numeric_dtype(adata.obs[key]):
            raise ValueError(
                f"adata.obs[{key!r}] (continuous_covariate_keys) must be numeric, but its type is {adata.obs[key].dtype}."
            )
        if not (finite := np.isfinite(adata.obs[key].to_numpy(dtype=float))).all():
            raise ValueError(
                f"adata.obs[{key!r}] (continuous_covariate_keys) must be finite, but is infinite for "
                f"{int((~finite).sum())} cells: {examples(adata.obs_names[~finite])}."
            )
    check_counts(adata, layer)
    check_no_empty_cells(adata, layer)


def check_n_neighbors(n_neighbors: int, n_cells: int) -> None:
    """Raise a ValueError unless there are as many context cells as neighbours."""
    if not isinstance(n_neighbors, Integral) or isinstance(n_neighbors, bool):
        raise ValueError(f"n_neighbors={n_neighbors!r} must be a whole number.")
    if not 1 <= n_neighbors <= n_cells:
        raise ValueError(f"n_neighbors={n_neighbors} must be between 1 and the number of context cells, {n_cells}.")
