"""Signatures of one perturbation and cell type made into one."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData

from transverse._groups import group_codes
from transverse._validation import check_finite, check_obs_key, check_unique_var_names

from ._signature_statistics import group_sums, read_blocks
from ._signatures import as_signatures


def average_signatures(
    adata: AnnData,
    *,
    perturbation_key: str = "perturbation",
    cell_type_key: str = "cell_type",
    pert_type_key: str | None = None,
    layer: str | None = None,
) -> AnnData:
    """Average signatures over doses, times and duplicates, to a row per perturbation and cell type.

    The mean is unweighted, as DeepCellState takes it of the signatures of L1000 :cite:p:`Umarov2021`.

    Parameters
    ----------
    adata
        Signatures x genes, in memory or backed, such as :func:`transverse.datasets.read_gctx` or :func:`signatures` give
        them. It is not changed.
    perturbation_key, cell_type_key
        Columns of ``obs``.
    pert_type_key
        Column with the type of a perturbation, for a row per perturbation, cell type and type.
    layer
        Layer to average instead of ``X``.

    Returns
    -------
    AnnData of signatures x genes, sorted and named as :func:`signatures` does: ``X`` dense float32, on the scale of the
    input; ``obs`` with the columns of the keys, those numeric columns that are constant within every row's signatures, and
    ``n_averaged``, how many these are; ``var`` that of ``adata``; and ``uns["signatures"]`` with ``method``, ``scale`` and
    ``parameters``.

    Raises
    ------
    KeyError
        If a column or the layer does not exist.
    TypeError
        If ``adata`` is not an AnnData.
    ValueError
        If values or columns are missing or infinite, names of genes repeat, or there is no signature or gene.

    Examples
    --------
    >>> import transverse as tv
    >>> sig = tv.datasets.simulate_signatures(n_drugs=5, n_cell_types=2, n_genes=30, n_mechanisms=2, n_replicates=3)
    >>> average = tv.pp.average_signatures(sig)
    >>> sig.shape, average.shape
    ((30, 30), (10, 30))
    >>> average.obs["n_averaged"].unique().tolist()
    [3]
    """
    if not isinstance(adata, AnnData):
        raise TypeError(f"adata must be an AnnData, but got {type(adata).__name__}.")
    if adata.n_obs == 0 or adata.n_vars == 0:
        raise ValueError(f"adata is empty: it has {adata.n_obs} signatures and {adata.n_vars} genes.")
    by = {"perturbation_key": perturbation_key, "cell_type_key": cell_type_key, "pert_type_key": pert_type_key}
    by = {argument: key for argument, key in by.items() if key is not None}
    for argument, key in by.items():
        check_obs_key(adata, key, argument)
    if len(set(by.values())) < len(by):
        raise ValueError(
            f"A column of adata.obs can be used for one thing only, but these were given: {[*by.values()]}."
        )
    keys, codes = group_codes(adata, list(by.values()))
    check_unique_var_names(adata)
    check_finite(adata, layer)
    n_averaged = np.bincount(codes)
    (totals,) = group_sums(read_blocks(adata, layer), codes, (len(keys), adata.n_vars))
    columns = _constant(adata.obs.drop(columns=[*by.values(), "n_averaged"], errors="ignore"), codes)
    columns["n_averaged"] = n_averaged
    uns = {"method": "mean of signatures", "scale": "that of the input"}
    uns["parameters"] = by if layer is None else by | {"layer": layer}
    return as_signatures(totals / n_averaged[:, None], keys, columns, adata.var, uns)


def _constant(obs: pd.DataFrame, codes: np.ndarray) -> pd.DataFrame:
    """The numeric columns that are constant within every group, a row for each group."""
    first = np.unique(codes, return_index=True)[1]
    numeric = obs.select_dtypes(["number", "bool"])
    kept = [key for key in numeric if (numeric[key].groupby(codes).nunique(dropna=False) == 1).all()]
    return numeric[kept].iloc[first].reset_index(drop=True)
