"""Rows of registered data in a given order."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scvi.data import AnnDataManager, AnnTorchDataset
from scvi.dataloaders import AnnDataLoader
from torch.utils.data import Dataset, Subset

from ._compat import REGISTRY_KEYS


class OrderedDataset(AnnTorchDataset):
    """Registered data of cells in the order that is asked for, of a backed AnnData too; scvi-tools' own sorts them."""

    def __getitem__(self, indexes):
        """Registered data of cells, by key."""
        if isinstance(indexes, int):
            indexes = [indexes]
        in_order = isinstance(indexes, slice) or not self.adata_manager.adata.isbacked
        if in_order or self.load_sparse_tensor:  # sparse tensors cannot be put in order
            return super().__getitem__(indexes)
        unique, inverse = np.unique(indexes, return_inverse=True)
        return {key: values[inverse] for key, values in super().__getitem__(unique).items()}


class DatasetManager:
    """An AnnDataManager with datasets of another class; everything else is the manager's own.

    Parameters
    ----------
    adata_manager
        Registered data.
    dataset_cls
        Makes a dataset of the manager and the keyword arguments of :class:`scvi.data.AnnTorchDataset`.
    """

    def __init__(self, adata_manager: AnnDataManager, dataset_cls: Callable[..., Dataset] = OrderedDataset):
        self._manager, self._dataset_cls = adata_manager, dataset_cls

    def __getattr__(self, name):
        if name.startswith("_"):  # also keeps copies and worker processes from recursing before _manager exists
            raise AttributeError(name)
        return getattr(self._manager, name)

    def create_torch_dataset(self, indices=None, data_and_attributes=None, load_sparse_tensor=False) -> Dataset:
        """As :meth:`scvi.data.AnnDataManager.create_torch_dataset`."""
        dataset = self._dataset_cls(
            self._manager, getitem_tensors=data_and_attributes, load_sparse_tensor=load_sparse_tensor
        )
        return dataset if indices is None else Subset(dataset, indices)


class OrderedLoader(AnnDataLoader):
    """scvi-tools' loader, of cells in the order that is asked for."""

    def __init__(self, adata_manager: AnnDataManager, *args, **kwargs):
        super().__init__(DatasetManager(adata_manager), *args, **kwargs)


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
