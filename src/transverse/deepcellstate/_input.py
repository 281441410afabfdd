"""Signatures of the user's, in the order of the model's genes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData

from transverse._groups import dense
from transverse._validation import check_finite, check_obs_key, check_unique_var_names, examples


@dataclass(frozen=True)
class Signatures:
    """Rows of an AnnData, in ascending order, as the encoder takes them.

    ``obs`` has a row for each, with the columns that the model was set up with. Genes that are not there are 0.
    """

    adata: AnnData
    rows: np.ndarray
    layer: str | None
    genes: np.ndarray
    obs: pd.DataFrame

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, mask: np.ndarray) -> Signatures:
        """Those for which ``mask``, of their number, is true."""
        return Signatures(self.adata, self.rows[mask], self.layer, self.genes, self.obs[mask])

    def batches(self, size: int) -> Iterator[np.ndarray]:
        """Signatures, dense float32 of shape ``(n_signatures, n_genes)``, in order."""
        matrix = self.adata.X if self.layer is None else self.adata.layers[self.layer]
        there = self.genes >= 0
        for start in range(0, len(self.rows), size):
            block = dense(matrix[self.rows[start : start + size]])
            x = np.zeros((len(block), len(self.genes)), dtype=np.float32)
            x[:, there] = block[:, self.genes[there]]
            yield x

    def largest(self) -> float:
        """Largest absolute value."""
        return max((float(np.abs(x).max(initial=0)) for x in self.batches(8192)), default=0.0)


def read_signatures(
    adata: AnnData, var_names: Sequence[str], keys: Sequence[str], layer: str | None, name: str = "adata"
) -> tuple[Signatures, list[str]]:
    """Signatures of the user's, checked, and the genes that they lack; with a warning if there are any.

    Parameters
    ----------
    adata
        Signatures.
    var_names
        Genes of the model.
    keys
        Columns that ``obs`` must have.
    layer
        Where the values are.
    name
        What to call ``adata`` in messages.
    """
    if not isinstance(adata, AnnData):
        raise TypeError(f"{name} must be an AnnData, but got {type(adata).__name__}.")
    if adata.n_obs == 0:
        raise ValueError(f"{name} has no signatures.")
    check_unique_var_names(adata, name)
    for key in keys:
        check_obs_key(adata, key, "key")
        if (missing := adata.obs[key].isna()).any():
            raise ValueError(f"{name}.obs[{key!r}] is missing for {int(missing.sum())} signatures.")
    check_finite(adata, layer, name)
    genes = pd.Index(adata.var_names).get_indexer(pd.Index(var_names))
    lacking = [str(gene) for gene in np.asarray(var_names, dtype=object)[genes < 0]]
    if len(lacking) == len(var_names):
        raise ValueError(
            f"{name} has none of the model's genes, such as {examples(var_names)}; its own are, for example, "
            f"{examples(adata.var_names)}."
        )
    if lacking:
        warnings.warn(
            f"{len(lacking)} of the model's {len(var_names)} genes are missing in {name} and are taken as 0: {examples(lacking)}.",
            UserWarning,
            stacklevel=4,
        )
    obs = pd.DataFrame({key: adata.obs[key].astype(str).to_numpy(dtype=object) for key in keys}, index=adata.obs_names)
    return Signatures(adata, np.arange(adata.n_obs), layer, genes, obs), lacking
