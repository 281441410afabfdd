"""Find cells that are on several sides of a split."""

from __future__ import annotations

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from transverse._validation import examples, iter_rows

from ._split_design import SPLITS, labels, on_several, sides_of

# two profiles of few values may well be equal by chance
_MIN_VALUES = 10


def check_cells(adata: AnnData, side: np.ndarray, where: str, cell_key: str | None, identical_cells: str) -> None:
    """Raise a ValueError if one cell is on several sides: by its name, its `cell_key` or its profile."""
    codes, names = pd.factorize(adata.obs_names)
    if leaks := on_several([str(name) for name in names], sides_of(codes, side, len(names))):
        raise ValueError(
            f"Cells of one name are on several sides of {where}: {examples(leaks)}. If they are one cell, keep it once; "
            "if they are not, call adata.obs_names_make_unique()."
        )
    if cell_key is not None:
        codes, names = labels(adata, cell_key, "cell_key")
        if leaks := on_several(names, sides_of(codes, side, len(names))):
            raise ValueError(
                f"Cells of one adata.obs[{cell_key!r}] (cell_key) are on several sides of {where}: {examples(leaks)}. "
                "Keep each cell once, or name a column that tells cells apart."
            )
    if identical_cells == "refuse" and adata.X is not None:
        codes = _profiles(adata)
        if leaks := _copies(codes, side, adata.obs_names):
            raise ValueError(
                f"Cells with identical profiles in adata.X are on several sides of {where}: {examples(leaks)}. "
                "Remove the copies, or pass identical_cells='ignore' if they are not copies."
            )


def _copies(codes: np.ndarray, side: np.ndarray, obs_names: pd.Index) -> list[str]:
    compared = np.flatnonzero(codes >= 0)
    keys, first = np.unique(codes[compared] * len(SPLITS) + side[compared], return_index=True)
    profiles = pd.Series(keys // len(SPLITS))
    copied = profiles[profiles.duplicated(keep=False)]
    cells = compared[first[copied.index]]
    names = pd.Series([f"{obs_names[i]} ({SPLITS[side[i]]})" for i in cells], dtype=object)
    return [" = ".join(group) for _, group in names.groupby(copied.to_numpy())]


def _profiles(adata: AnnData) -> np.ndarray:
    """Of each cell a code that equal profiles share, -1 for profiles that are not compared."""
    # Two random projections in double precision: equal rows give equal bits since a sparse product adds in order
    weights = np.random.default_rng(0).standard_normal((adata.n_vars, 2))
    hashes = []
    for block in iter_rows(adata):
        block = sp.csr_matrix(block)  # a dense product may add in an order that differs from row to row
        if not block.has_canonical_format:
            block = block.copy()
            block.sum_duplicates()
        n_values = np.asarray((block != 0).sum(axis=1)).ravel()
        hashes.append(np.column_stack([n_values, block @ weights]))
    table = pd.DataFrame(np.vstack(hashes))
    codes = table.groupby([0, 1, 2], sort=False, dropna=False).ngroup().to_numpy()
    return np.where((table[0] >= _MIN_VALUES) & np.isfinite(table[[1, 2]]).all(axis=1), codes, -1)
