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
        if not len(self.keys.columns):
            return np.zeros(len(values), dtype=int)
        return pd.MultiIndex.from_frame(self.keys).get_indexer(pd.MultiIndex.from_frame(values[self.keys.columns]))


def group_codes(adata: AnnData, by: Sequence[str]) -> tuple[pd.DataFrame, np.ndarray]:
    """The groups of cells that occur, a row each and as strings, and the group of every cell."""
    for key in by:
        check_obs_key(adata, key, "groupby")
        if (missing := adata.obs[key].isna()).any():
            raise ValueError(
                f"adata.obs[{key!r}] is missing for {int(missing.sum())} cells: "
                f"{examples(adata.obs_names[missing.to_numpy()])}. Fill it in or remove the cells."
            )
    if not by:
        return pd.DataFrame(index=range(1)), np.zeros(adata.n_obs, dtype=int)
    values = pd.DataFrame({key: adata.obs[key].astype(str).to_numpy(dtype=object) for key in by})
    grouped = values.groupby(list(by), sort=True)
    codes = grouped.ngroup().to_numpy()
    keys = values.iloc[np.unique(codes, return_index=True)[1]].reset_index(drop=True)
    return keys, codes


def group_profiles(adata: AnnData, by: Sequence[str], layer: str | None = None) -> GroupProfiles:
    """Means and variances (``ddof=1``) of groups of cells, block by block, from a backed file too."""
    keys, codes = group_codes(adata, by)
    n_cells = np.bincount(codes, minlength=len(keys))
    total, squares = np.zeros((2, len(keys), adata.n_vars))
    start = 0
    for block in iter_rows(adata, layer):
        part = codes[start : start + block.shape[0]]
        start += block.shape[0]
        member = sp.csr_matrix((np.ones(len(part)), (part, np.arange(len(part)))), shape=(len(keys), len(part)))
        block = block.astype(float)
        total += _dense(member @ block)
        squares += _dense(member @ (block.multiply(block) if sp.issparse(block) else block**2))
    mean = total / np.maximum(n_cells, 1)[:, None]
    # rounding can leave a tiny negative number where a gene is constant
    variance = np.maximum(squares - n_cells[:, None] * mean**2, 0) / np.maximum(n_cells - 1, 1)[:, None]
    return GroupProfiles(keys, mean, variance, n_cells)


def _dense(matrix) -> np.ndarray:
    return matrix.toarray() if sp.issparse(matrix) else np.asarray(matrix)
