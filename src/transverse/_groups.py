"""Sums over groups of cells, without a dense copy of the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from ._validation import check_obs_key, examples, iter_rows


@dataclass(frozen=True)
class GroupProfiles:
    """Mean, variance and number of cells of every group; rows of ``keys`` are the groups, in sorted order."""

    keys: pd.DataFrame
    mean: np.ndarray
    variance: np.ndarray
    n_cells: np.ndarray

    def find(self, values: pd.DataFrame) -> np.ndarray:
        """Positions of rows of ``values`` (with the columns of ``keys``) among the groups; -1 where there is none."""
        return find_groups(self.keys, values)


def find_groups(keys: pd.DataFrame, values: pd.DataFrame) -> np.ndarray:
    """Positions of rows of ``values`` among those of ``keys``, by the columns of ``keys``; -1 where there is none."""
    if not len(keys.columns):
        return np.zeros(len(values), dtype=int)
    return pd.MultiIndex.from_frame(keys).get_indexer(pd.MultiIndex.from_frame(values[keys.columns]))


def group_codes(adata: AnnData, by: Sequence[str], name: str = "adata") -> tuple[pd.DataFrame, np.ndarray]:
    """The groups of cells that occur, a row each and as strings, and the group of every cell."""
    for key in by:
        check_obs_key(adata, key, "groupby")
        if (missing := adata.obs[key].isna()).any():
            raise ValueError(
                f"{name}.obs[{key!r}] is missing for {int(missing.sum())} cells: "
                f"{examples(adata.obs_names[missing.to_numpy()])}. Fill it in or remove the cells."
            )
    if not by:
        return pd.DataFrame(index=range(1)), np.zeros(adata.n_obs, dtype=int)
    values = pd.DataFrame({key: adata.obs[key].astype(str).to_numpy(dtype=object) for key in by})
    grouped = values.groupby(list(by), sort=True)
    codes = grouped.ngroup().to_numpy()
    keys = values.iloc[np.unique(codes, return_index=True)[1]].reset_index(drop=True)
    return keys, codes


def group_profiles(
    adata: AnnData, by: Sequence[str], layer: str | None = None, cells: np.ndarray | None = None
) -> GroupProfiles:
    """Means and variances (``ddof=1``) of groups of cells, block by block, from a backed file too.

    With ``cells``, their positions, only these are taken; groups stay, and one without any is 0.
    """
    keys, codes = group_codes(adata, by)
    taken = np.ones(adata.n_obs, dtype=bool) if cells is None else np.isin(np.arange(adata.n_obs), cells)
    n_cells = np.bincount(codes[taken], minlength=len(keys))
    total, squares = np.zeros((2, len(keys), adata.n_vars))
    start = 0
    for block in iter_rows(adata, layer):
        rows = slice(start, start + block.shape[0])
        start += block.shape[0]
        shape = (len(keys), block.shape[0])
        member = sp.csr_matrix((taken[rows].astype(float), (codes[rows], np.arange(block.shape[0]))), shape=shape)
        block = block.astype(float)
        total += dense(member @ block)
        squares += dense(member @ (block.multiply(block) if sp.issparse(block) else block**2))
    mean = total / np.maximum(n_cells, 1)[:, None]
    deviations = squares - n_cells[:, None] * mean**2
    # what is left of a constant gene is rounding
    deviations[deviations <= 4 * np.finfo(float).eps * n_cells[:, None] * squares] = 0
    variance = deviations / np.maximum(n_cells - 1, 1)[:, None]
    return GroupProfiles(keys, mean, variance, n_cells)


def dense(matrix) -> np.ndarray:
    """A matrix, sparse or not, as an array."""
    return matrix.toarray() if sp.issparse(matrix) else np.asarray(matrix)
