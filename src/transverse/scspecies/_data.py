"""Mini-batches that carry each cell's candidates, without touching the user's AnnData."""

from __future__ import annotations

from math import ceil

import numpy as np
from scvi.data import AnnDataManager, AnnTorchDataset
from scvi.dataloaders import DataSplitter
from torch.utils.data import Subset

from ._constants import SCSPECIES_KEYS


class CandidateDataset(AnnTorchDataset):
    """Registered data of cells, their positions, candidate context cells and whether they are eligible."""

    def __init__(self, adata_manager, candidates: np.ndarray, eligible: np.ndarray, **kwargs):
        super().__init__(adata_manager, **kwargs)
        self.candidates = candidates
        self.eligible = eligible

    def __getitem__(self, indexes):
        if isinstance(indexes, int):
            indexes = [indexes]
        if self.adata_manager.adata.isbacked and not isinstance(indexes, slice):
            # a backed AnnData returns rows in the order of the file
            indexes = np.sort(indexes)
        tensors = super().__getitem__(indexes)
        tensors[SCSPECIES_KEYS.CELL_KEY] = np.arange(len(self.eligible))[indexes]
        tensors[SCSPECIES_KEYS.CANDIDATES_KEY] = self.candidates[indexes]
        tensors[SCSPECIES_KEYS.ELIGIBLE_KEY] = self.eligible[indexes, None]
        return tensors


class _CandidateManager:
    """An AnnDataManager whose datasets are :class:`CandidateDataset`; everything else is the manager's own."""

    def __init__(self, adata_manager: AnnDataManager, candidates: np.ndarray, eligible: np.ndarray):
        self._manager = adata_manager
        self._candidates = candidates
        self._eligible = eligible

    def __getattr__(self, name):
        if name.startswith("_"):  # also keeps copies and worker processes from recursing before _manager exists
            raise AttributeError(name)
        return getattr(self._manager, name)

    def create_torch_dataset(self, indices=None, data_and_attributes=None, load_sparse_tensor=False):
        dataset = CandidateDataset(
            self._manager,
            self._candidates,
            self._eligible,
            getitem_tensors=data_and_attributes,
            load_sparse_tensor=load_sparse_tensor,
        )
        return dataset if indices is None else Subset(dataset, indices)


class CandidateDataSplitter(DataSplitter):
    """scvi-tools' data splitter over mini-batches with candidates."""

    def __init__(self, adata_manager: AnnDataManager, candidates: np.ndarray, eligible: np.ndarray, **kwargs):
        super().__init__(_CandidateManager(adata_manager, candidates, eligible), **kwargs)


def leaves_tiny_batch(n_obs: int, train_size: float, batch_size: int) -> bool:
    """Whether an epoch would end on one or two cells, too few for batch normalisation."""
    n_train = ceil(train_size * n_obs)
    return n_train > batch_size and 0 < n_train % batch_size < 3
