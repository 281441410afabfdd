"""Some cells of an AnnData, in memory or in a file, read in mini-batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from anndata import AnnData

from transverse._groups import dense


@dataclass(frozen=True)
class Cells:
    """Cells at positions ``rows``, in ascending order, with the perturbation and context of each."""

    adata: AnnData
    rows: np.ndarray
    layer: str | None
    perturbations: np.ndarray
    contexts: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def names(self) -> pd.Index:
        """Names of the cells."""
        return self.adata.obs_names[self.rows]

    def where(self, mask: np.ndarray) -> Cells:
        """Those of the cells for which ``mask``, of their number, is true."""
        return replace(self, rows=self.rows[mask], perturbations=self.perturbations[mask], contexts=self.contexts[mask])

    def batches(self, size: int) -> Iterator[np.ndarray]:
        """Profiles, dense float32 of shape ``(n_cells, n_genes)``, in order."""
        matrix = self.adata.X if self.layer is None else self.adata.layers[self.layer]
        for start in range(0, len(self.rows), size):
            yield dense(matrix[self.rows[start : start + size]]).astype(np.float32, copy=False)

    def mean(self, size: int = 8192) -> np.ndarray:
        """Mean profile, float64 of shape ``(n_genes,)``."""
        return sum(x.sum(axis=0, dtype=np.float64) for x in self.batches(size)) / len(self)
