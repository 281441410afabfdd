"""Pairs of signatures of one perturbation, and mini-batches of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

import numpy as np
import torch
from scvi import settings
from scvi.data import AnnDataManager
from scvi.dataloaders import DataSplitter
from torch.utils.data import DataLoader, Dataset

from transverse._compat import REGISTRY_KEYS
from transverse._rows import read_rows
from transverse._training import ProcessSampler

from ._constants import DEEPCELLSTATE_KEYS

Kind = Literal["self", "cross", "both"]

# columns of a table of pairs: positions of signatures, and the decoder
SOURCE, TARGET, DECODER = range(3)


@dataclass(frozen=True)
class Grid:
    """Perturbation and cell type of every signature, as numbers."""

    perturbations: np.ndarray
    cell_types: np.ndarray

    def pairs(
        self,
        rows: np.ndarray,
        kind: Kind,
        decoders: Sequence[int] | None = None,
        sources: np.ndarray | None = None,
    ) -> np.ndarray:
        """Pairs for some signatures to be predicted, shape ``(n_pairs, 3)``, sorted by decoder and target.

        Parameters
        ----------
        rows
            Positions of the targets.
        kind
            A signature with itself (``"self"``), with those of the same perturbation in other cell types (``"cross"``),
            or ``"both"``.
        decoders
            Cell types to be targets; by default all.
        sources
            Positions of the signatures to predict from, by default the targets.
        """
        targets = rows if decoders is None else rows[np.isin(self.cell_types[rows], decoders)]
        order = rows if sources is None else sources
        order = order[np.argsort(self.perturbations[order], kind="stable")]
        names = self.perturbations[order]
        first = np.searchsorted(names, self.perturbations[targets])
        n = np.searchsorted(names, self.perturbations[targets], side="right") - first
        # of every target all signatures of its perturbation: a run of ``order``
        target = np.repeat(targets, n)
        source = order[np.repeat(first, n) + np.arange(len(target)) - np.repeat(np.cumsum(n) - n, n)]
        crossing = self.cell_types[source] != self.cell_types[target]
        keep = {"self": source == target, "cross": crossing, "both": crossing | (source == target)}[kind]
        pairs = np.column_stack([source, target, self.cell_types[target]])[keep]
        return pairs[np.lexsort((pairs[:, TARGET], pairs[:, DECODER]))]

    @property
    def shared(self) -> np.ndarray:
        """Whether the perturbation of a signature was measured in another cell type as well."""
        pairs = np.unique(np.column_stack([self.perturbations, self.cell_types]), axis=0)
        return (np.bincount(pairs[:, 0]) > 1)[self.perturbations]


class TurnSampler(ProcessSampler):
    """Mini-batches of shuffled pairs, one decoder after the other.

    In every epoch all decoders have their turn, in random order, and go through their pairs once or several times. A
    function of seed and epoch; with several processes each takes its share of every mini-batch.

    Parameters
    ----------
    pairs
        Table as of :meth:`Grid.pairs`.
    batch_size
        Pairs in a mini-batch, at most.
    seed
        Of the order.
    n_passes
        How often a decoder goes through its pairs in its turn.
    num_replicas, rank
        Number of processes and the number of this one; by default those of PyTorch's process group, if any.
    """

    def __init__(
        self,
        pairs: np.ndarray,
        batch_size: int,
        seed: int = 0,
        n_passes: int = 1,
        num_replicas: int | None = None,
        rank: int | None = None,
    ):
        super().__init__(pairs, num_replicas=num_replicas, rank=rank, seed=seed)
        self.turns = [pairs[pairs[:, DECODER] == i] for i in np.unique(pairs[:, DECODER])]
        self.batch_size, self.n_passes = batch_size * self.num_replicas, n_passes

    def __iter__(self) -> Iterator[np.ndarray]:
        rng = np.random.default_rng([self.seed, self.epoch])
        for i in rng.permutation(len(self.turns)):
            for _ in range(self.n_passes):
                shuffled = self.turns[i][rng.permutation(len(self.turns[i]))]
                for batch in np.array_split(shuffled, self._n_batches(shuffled)):
                    own = batch[self.rank :: self.num_replicas]
                    # of fewer pairs than processes
                    yield own if len(own) else batch

    def __len__(self) -> int:
        return self.n_passes * sum(self._n_batches(turn) for turn in self.turns)

    def _n_batches(self, pairs: np.ndarray) -> int:
        # none so small that a process would be left without a pair
        return max(1, min(ceil(len(pairs) / self.batch_size), len(pairs) // self.num_replicas))


class WholeTargetSampler(ProcessSampler):
    """Mini-batches in which every target has all of its sources, always the same; for validation."""

    def __init__(self, pairs: np.ndarray, batch_size: int, num_replicas: int | None = None, rank: int | None = None):
        super().__init__(pairs, num_replicas=num_replicas, rank=rank)
        batches = []
        for i in np.unique(pairs[:, DECODER]):
            own = pairs[pairs[:, DECODER] == i]
            starts = np.flatnonzero(np.diff(own[:, TARGET], prepend=-1))
            # a mini-batch ends with the last target that begins within its share of the pairs
            batches += [b for b in np.split(own, starts[np.diff(starts // batch_size, prepend=0) > 0]) if len(b)]

        # a process that there is nothing for goes through all: each still counts the same
        self.batches = batches[self.rank :: self.num_replicas] or batches

    def __iter__(self) -> Iterator[np.ndarray]:
        yield from self.batches

    def __len__(self) -> int:
        return len(self.batches)


class PairDataset(Dataset):
    """Mini-batches of signatures from tables of pairs of one decoder."""

    def __init__(self, adata_manager: AnnDataManager):
        self.rows = adata_manager.create_torch_dataset(data_and_attributes=[REGISTRY_KEYS.X_KEY])

    def __getitem__(self, pairs: np.ndarray) -> dict[str, torch.Tensor]:
        """Sources, targets, the decoder, and the position of every target."""
        x = read_rows(self.rows, pairs[:, [SOURCE, TARGET]].T.ravel())
        return {
            REGISTRY_KEYS.X_KEY: x[: len(pairs)],
            DEEPCELLSTATE_KEYS.TARGET_KEY: x[len(pairs) :],
            DEEPCELLSTATE_KEYS.DECODER_KEY: torch.tensor(pairs[0, DECODER]),
            DEEPCELLSTATE_KEYS.GROUP_KEY: torch.from_numpy(np.unique(pairs[:, TARGET], return_inverse=True)[1]),
        }

    def __len__(self) -> int:
        return len(self.rows)


class PairDataSplitter(DataSplitter):
    """Loaders of pairs for a stage of the training, of signatures that were split before.

    Parameters
    ----------
    adata_manager
        Registered data.
    grid
        What the signatures are of.
    train, validation
        Positions of the signatures to train on and of those to predict in the validation.
    kind, validation_kind
        Pairs to train and to validate on.
    shared
        Whether all go through the first decoder, which learns for all cell types.
    decoders
        Cell types to be targets; by default all.
    n_passes
        Of :class:`TurnSampler`.
    batch_size
        Pairs in a mini-batch.
    **kwargs
        Keyword arguments of :class:`torch.utils.data.DataLoader`.
    """

    def __init__(
        self,
        adata_manager: AnnDataManager,
        grid: Grid,
        train: np.ndarray,
        validation: np.ndarray,
        *,
        kind: Kind,
        validation_kind: Kind,
        shared: bool = False,
        decoders: Sequence[int] | None = None,
        n_passes: int = 1,
        batch_size: int = 128,
        **kwargs,
    ):
        rest = np.setdiff1d(np.arange(len(grid.cell_types)), np.concatenate([train, validation]))
        super().__init__(adata_manager, external_indexing=[train, validation, rest], **kwargs)
        self.setup()
        self.train_pairs = grid.pairs(train, kind, decoders)
        # what was measured of a perturbation elsewhere is the input of its prediction
        known = np.union1d(train, validation)
        self.validation_pairs = grid.pairs(validation, validation_kind, decoders, known)
        if shared:
            for pairs in (self.train_pairs, self.validation_pairs):
                pairs[:, DECODER] = 0
        self.n_passes, self.batch_size = n_passes, batch_size

    def train_dataloader(self) -> DataLoader:
        """Pairs of the training, in another order in every epoch."""
        return self._loader(TurnSampler(self.train_pairs, self.batch_size, settings.seed or 0, self.n_passes))

    def val_dataloader(self) -> DataLoader | None:
        """Pairs of the validation, if any."""
        if not len(self.validation_pairs):
            return None
        return self.whole_targets(self.validation_pairs)

    def whole_targets(self, pairs: np.ndarray) -> DataLoader:
        """Pairs in the order of their targets, those of a target together."""
        return self._loader(WholeTargetSampler(pairs, 512))

    def test_dataloader(self) -> None:
        """Nothing is tested in training."""

    def _loader(self, sampler: ProcessSampler) -> DataLoader:
        kwargs = {key: value for key, value in self.data_loader_kwargs.items() if key != "distributed_sampler"}
        dataset = PairDataset(self.adata_manager)
        return DataLoader(dataset, sampler=sampler, batch_size=None, pin_memory=self.pin_memory, **kwargs)


def split(
    grid: Grid, train_size: float | None, validation_size: float | None, shuffle: bool, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the signatures to train on and of those to predict in the validation.

    Of whole perturbations; with fewer than 20 of these, of perturbations in single cell types, if these are 20. Only such are
    left out as were measured in another cell type, and, of single cell types, as have others of it to learn from.
    """
    rows = np.arange(len(grid.perturbations))
    names, possible, default = grid.perturbations, grid.shared, 0.95
    of_types = len(np.unique(names[possible])) < 20
    if of_types:
        pairs = np.column_stack([grid.perturbations, grid.cell_types])
        pairs, names = np.unique(pairs, axis=0, return_inverse=True)
        names = names.ravel()
        n_of_type = np.bincount(np.unique(pairs[names[possible]], axis=0)[:, 1], minlength=grid.cell_types.max() + 1)
        possible = possible & (n_of_type[grid.cell_types] > 1)
        default = 0.9 if len(np.unique(names[possible])) >= 20 else 1.0
    train_size = default if train_size is None else train_size
    if not 0 < train_size <= 1:
        raise ValueError(f"train_size={train_size} must be above 0 and at most 1.")
    if validation_size is not None and not 0 <= validation_size <= 1 - train_size + 1e-9:
        raise ValueError(
            f"validation_size={validation_size} must be between 0 and what train_size={train_size} leaves."
        )
    groups = np.unique(names[possible])
    n_train = max(1, round(train_size * len(groups)))
    order = np.random.default_rng(seed).permutation(groups) if shuffle else groups
    if of_types:  # one of each cell type is trained on in any case
        first = np.unique(pairs[order, 1], return_index=True)[1]
        order = np.concatenate([order[first], np.delete(order, first)])
        n_train = max(n_train, len(first))
    n_validation = len(groups) - n_train if validation_size is None else round(validation_size * len(groups))
    out, validation = order[n_train:], order[n_train : n_train + n_validation]
    return rows[~np.isin(names, out)], rows[np.isin(names, validation)]
