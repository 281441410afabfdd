"""Mini-batches that carry each cell's candidates, without touching the user's AnnData."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from math import ceil

import numpy as np
from scvi import settings
from scvi.data import AnnDataManager
from scvi.dataloaders import DataSplitter
from torch.utils.data import DataLoader

from transverse._rows import DatasetManager, OrderedDataset
from transverse._training import ProcessSampler

from ._constants import SCSPECIES_KEYS


class CandidateDataset(OrderedDataset):
    """Registered data of cells, their positions, candidate context cells and whether they are eligible."""

    def __init__(self, adata_manager, candidates: np.ndarray, eligible: np.ndarray, **kwargs):
        super().__init__(adata_manager, **kwargs)
        self.candidates = candidates
        self.eligible = eligible

    def __getitem__(self, indexes):
        if isinstance(indexes, int):
            indexes = [indexes]
        if self.load_sparse_tensor and self.adata_manager.adata.isbacked and not isinstance(indexes, slice):
            indexes = np.sort(indexes)  # as they come
        tensors = super().__getitem__(indexes)
        tensors[SCSPECIES_KEYS.CELL_KEY] = np.arange(len(self.eligible))[indexes]
        tensors[SCSPECIES_KEYS.CANDIDATES_KEY] = self.candidates[indexes]
        tensors[SCSPECIES_KEYS.ELIGIBLE_KEY] = self.eligible[indexes, None]
        return tensors


class ShareSampler(ProcessSampler):
    """Mini-batches of the cells of one process, of equal size to one cell and as many as in every other process.

    A process keeps its cells through all epochs, for it remembers which context cells it has chosen for them. Every cell
    belongs to one process.

    Parameters
    ----------
    n_cells
        Cells of all processes.
    batch_size
        Cells in a mini-batch, at most.
    **kwargs
        Keyword arguments of :class:`torch.utils.data.DistributedSampler`.
    """

    def __init__(self, n_cells: int, batch_size: int, **kwargs):
        super().__init__(range(n_cells), **kwargs)
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[np.ndarray]:
        own = np.random.default_rng(self.seed).permutation(len(self.dataset))[self.rank :: self.num_replicas]
        if self.shuffle:
            own = np.random.default_rng([self.seed, self.epoch]).permutation(own)
        yield from np.array_split(own, len(self))

    def __len__(self) -> int:
        return ceil(ceil(len(self.dataset) / self.num_replicas) / self.batch_size)


class CandidateDataSplitter(DataSplitter):
    """scvi-tools' data splitter over mini-batches with candidates; with several processes, each has cells of its own."""

    def __init__(self, adata_manager: AnnDataManager, candidates: np.ndarray, eligible: np.ndarray, **kwargs):
        dataset_cls = partial(CandidateDataset, candidates=candidates, eligible=eligible)
        with warnings.catch_warnings():
            # mini-batches are of equal size
            warnings.filterwarnings("ignore", message="Last batch will have a small size")
            super().__init__(DatasetManager(adata_manager, dataset_cls), **kwargs)

    def train_dataloader(self) -> DataLoader:
        """Cells to train on, in another order in every epoch."""
        return self._share(self.train_idx, shuffle=True)

    def val_dataloader(self) -> DataLoader | None:
        """Cells to validate on, if any."""
        return self._share(self.val_idx, shuffle=False) if len(self.val_idx) else None

    def test_dataloader(self) -> DataLoader | None:
        """Cells to test on, if any."""
        return self._share(self.test_idx, shuffle=False) if len(self.test_idx) else None

    def _share(self, cells: np.ndarray, shuffle: bool) -> DataLoader:
        kwargs = dict(self.data_loader_kwargs)
        for name in ("distributed_sampler", "drop_last", "drop_dataset_tail"):
            kwargs.pop(name, None)
        sampler = ShareSampler(len(cells), kwargs.pop("batch_size"), shuffle=shuffle, seed=settings.seed or 0)
        dataset = self.adata_manager.create_torch_dataset(indices=cells)
        return DataLoader(dataset, sampler=sampler, batch_size=None, pin_memory=self.pin_memory, **kwargs)
