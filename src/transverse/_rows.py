"""Rows of registered data in a given order."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import Dataset

from ._compat import REGISTRY_KEYS


def read_rows(dataset: Dataset, rows: np.ndarray) -> torch.Tensor:
    """Values at ``rows``, which may repeat and come in any order, shape ``(n_rows, n_genes)``.

    Every row is read once and in the order of the file, which is what a backed AnnData returns.

    Parameters
    ----------
    dataset
        As :meth:`scvi.data.AnnDataManager.create_torch_dataset` makes it, with the values as ``X``.
    rows
        Positions.
    """
    unique, inverse = np.unique(rows, return_inverse=True)
    return torch.from_numpy(dataset[unique][REGISTRY_KEYS.X_KEY])[torch.from_numpy(inverse)]
