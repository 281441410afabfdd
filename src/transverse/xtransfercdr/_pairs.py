"""Pairs of cells, drawn anew for every epoch, and mini-batches of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from math import ceil

import numpy as np
import torch
from scvi import settings
from scvi.data import AnnDataManager
from scvi.dataloaders import DataSplitter
from torch.utils.data import DataLoader, Dataset

from transverse._compat import REGISTRY_KEYS
from transverse._rows import read_rows
from transverse._training import ProcessSampler

from ._constants import COMBINATION, SAME_CONTEXT, XTRANSFERCDR_KEYS
from ._design import Design

# columns of a table of pairs: positions of cells, -1 for none, and what the partners share
LEFT, RIGHT, DOUBLE, LEFT_CONTROL, RIGHT_CONTROL, KIND = range(6)


def draw_pairs(
    design: Design,
    epoch: int,
    seed: int,
    *,
    pairing: str,
    control_share: float = 0.5,
    balance: bool = True,
    n_multiple: int = 1,
) -> np.ndarray:
    """Pairs of an epoch, in random order; a function of its arguments alone.

    As many pairs as there are cells with a possible partner, rounded up to a multiple of ``n_multiple``. With ``balance``
    every condition has an equal share of them, and goes through all of its cells, over epochs, before one comes again.
    Partners and controls go through theirs within the epoch.

    Parameters
    ----------
    design
        Cells and conditions.
    epoch, seed
        Number of the epoch and seed of the whole training.
    pairing
        ``"perturbation"``, ``"context"`` or ``"mixed"``.
    control_share
        Share of the pairs of one context in which a control cell is the partner of a treated one. 0 leaves control cells
        out of pairs.
    balance
        Equal shares for conditions; otherwise every cell brings one pair.
    n_multiple
        Number of processes among which the pairs will be divided.

    Returns
    -------
    Array of shape ``(n_pairs, 6)`` with the positions of the left and right cell, a cell with both perturbations and the
    two matched controls (-1 where there is none), and the kind of the pair.
    """
    partners = design.all_partners(pairing, control_share)
    sizes = np.array([len(design.cells[i]) for i in partners])
    quotas, begun = _quotas(sizes, ceil(sizes.sum() / n_multiple) * n_multiple, epoch, balance)
    rng = np.random.default_rng([seed, epoch])
    # conditions first, then their cells
    conditions = np.full((quotas.sum(), 3), -1)
    kinds = np.empty(len(conditions), dtype=int)
    cells = np.full_like(conditions, -1)
    stop = 0
    for (i, possible), quota, start in zip(partners.items(), quotas, begun, strict=True):
        rows = np.arange(stop, stop := stop + quota)
        kinds[rows] = rng.choice(list(possible), size=quota)
        own = np.where(kinds[rows] == COMBINATION, DOUBLE, LEFT)
        cells[rows, own] = _in_turn(design.cells[i], start, quota, (seed, i))
        conditions[rows, own] = i
        for kind, others in possible.items():
            of_kind = rows[kinds[rows] == kind]
            if kind == COMBINATION:  # the two singles make the pair, in either order
                conditions[of_kind, LEFT : RIGHT + 1] = rng.permuted(np.tile(others, (len(of_kind), 1)), axis=1)
            else:
                conditions[of_kind, RIGHT] = rng.choice(others, size=len(of_kind))
        control = design.control_of(i)
        if control_share > 0 and control is not None and SAME_CONTEXT in possible:
            of_kind = rows[kinds[rows] == SAME_CONTEXT]
            if len(design.other_perturbations(i)):
                of_kind = of_kind[rng.random(len(of_kind)) < control_share]
            conditions[of_kind, RIGHT] = control
    _fill(cells, conditions, design.cells, rng)
    pairs = np.column_stack([cells, _matched_controls(cells, design, rng), kinds])
    return pairs[rng.permutation(len(pairs))]


def _quotas(sizes: np.ndarray, n_pairs: int, epoch: int, balance: bool) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of every condition in an epoch, and in all epochs before it."""
    if balance:
        # rounded cumulative shares: what an epoch takes from a condition, the next gives back
        bounds = np.arange(len(sizes) + 1)
        begun, ended = (np.diff(e * n_pairs * bounds // len(sizes)) for e in (epoch, epoch + 1))
        return ended - begun, begun
    quotas = sizes + (n_pairs - sizes.sum() + np.arange(len(sizes))) // len(sizes)
    return quotas, epoch * quotas


def _in_turn(cells: np.ndarray, start: int, n: int, key: tuple[int, ...]) -> np.ndarray:
    """Elements ``start`` to ``start + n`` of an endless sequence of permutations of ``cells``."""
    first, last = start // len(cells), (start + n) // len(cells)
    turns = [np.random.default_rng([*key, turn]).permutation(cells) for turn in range(first, last + 1)]
    return np.concatenate(turns)[start - first * len(cells) :][:n]


def _fill(cells: np.ndarray, groups: np.ndarray, members: list[np.ndarray], rng: np.random.Generator) -> None:
    """Put cells of the right group wherever one is missing, each as often as the others, to one."""
    empty = np.flatnonzero((cells == -1) & (groups >= 0))
    empty = empty[np.argsort(groups.flat[empty], kind="stable")]
    found, counts = np.unique(groups.flat[empty], return_counts=True)
    stop = 0
    for group, n in zip(found, counts, strict=True):
        turns = [rng.permutation(members[group]) for _ in range(ceil(n / len(members[group])))]
        # the last turn is cut short: without a shuffle it would always be the late positions that miss it
        cells.flat[empty[stop : stop + n]] = rng.permutation(np.concatenate(turns)[:n])
        stop += n


def _matched_controls(cells: np.ndarray, design: Design, rng: np.random.Generator) -> np.ndarray:
    """A control from the stratum of the left and right cells; a control cell is its own."""
    partners = cells[:, LEFT : RIGHT + 1]
    controls = np.where(design.is_control_cell[partners], partners, -1)
    _fill(controls, design.stratum[partners], design.strata, rng)
    return controls


class PairSampler(ProcessSampler):
    """Mini-batches of pairs: tables as of :func:`draw_pairs`, of equal size to one pair.

    With several processes, each takes its share of the same pairs.

    Parameters
    ----------
    design, seed, options
        Passed on to :func:`draw_pairs`.
    batch_size
        Pairs in a mini-batch, at most.
    resample
        Draw new pairs in every epoch; otherwise those of the first, in the same order.
    num_replicas, rank
        Number of processes and the number of this one; by default those of PyTorch's process group, if any.
    """

    def __init__(
        self,
        design: Design,
        seed: int,
        batch_size: int,
        resample: bool = True,
        num_replicas: int | None = None,
        rank: int | None = None,
        **options,
    ):
        self.design, self.batch_size, self.resample, self.options = design, batch_size, resample, options
        partners = design.all_partners(options["pairing"], options.get("control_share", 0.5))
        self.n_pairs = sum(len(design.cells[i]) for i in partners)
        super().__init__(range(self.n_pairs), num_replicas=num_replicas, rank=rank, seed=seed)

    def __iter__(self) -> Iterator[np.ndarray]:
        epoch = self.epoch if self.resample else 0
        pairs = draw_pairs(self.design, epoch, self.seed, n_multiple=self.num_replicas, **self.options)
        yield from np.array_split(pairs[self.rank :: self.num_replicas], len(self))

    def __len__(self) -> int:
        return ceil(ceil(self.n_pairs / self.num_replicas) / self.batch_size)


class PairDataset(Dataset):
    """Mini-batches of profiles from a table of pairs."""

    def __init__(self, adata_manager: AnnDataManager):
        self.rows = adata_manager.create_torch_dataset(data_and_attributes=[REGISTRY_KEYS.X_KEY])

    def __getitem__(self, pairs: np.ndarray) -> dict[str, torch.Tensor]:
        """Left, right, their controls and doubles one below the other, and what belongs to pairs and cells."""
        controls = pairs[:, [LEFT_CONTROL, RIGHT_CONTROL]].T.ravel()
        cells = pairs[:, [LEFT, RIGHT]].T.ravel()
        doubles = pairs[pairs[:, KIND] == COMBINATION, DOUBLE]
        # without a control, the cell itself holds the place
        wanted = np.concatenate([cells, np.where(controls < 0, cells, controls), doubles])
        x = read_rows(self.rows, wanted)
        return {
            REGISTRY_KEYS.X_KEY: x,
            XTRANSFERCDR_KEYS.KIND_KEY: torch.from_numpy(pairs[:, KIND].copy()),
            XTRANSFERCDR_KEYS.HAS_CONTROL_KEY: torch.from_numpy(controls >= 0),
        }

    def __len__(self) -> int:
        return len(self.rows)


class PairDataSplitter(DataSplitter):
    """scvi-tools' split of cells into training, validation and test, as loaders of pairs.

    Parameters
    ----------
    adata_manager
        Registered data.
    make_design
        Function from positions of cells to their :class:`~transverse.xtransfercdr._design.Design`.
    pair_options
        Keyword arguments of :func:`draw_pairs` and ``resample``.
    **kwargs
        Keyword arguments of :class:`scvi.dataloaders.DataSplitter` and :class:`torch.utils.data.DataLoader`.
    """

    def __init__(self, adata_manager: AnnDataManager, make_design, pair_options: dict, **kwargs):
        with warnings.catch_warnings():
            # it counts cells, but mini-batches of pairs are of equal size
            warnings.filterwarnings("ignore", message="Last batch will have a small size")
            super().__init__(adata_manager, **kwargs)
        self.make_design, self.pair_options = make_design, pair_options

    def train_dataloader(self) -> DataLoader:
        """Pairs of the training cells, anew in every epoch."""
        return self._loader(self.train_idx)

    def val_dataloader(self) -> DataLoader | None:
        """Pairs of the validation cells, always the same."""
        return self._loader(self.val_idx, resample=False) if len(self.val_idx) else None

    def test_dataloader(self) -> DataLoader | None:
        """Pairs of the test cells, always the same."""
        return self._loader(self.test_idx, resample=False) if len(self.test_idx) else None

    def _loader(self, cells: np.ndarray, **options) -> DataLoader:
        kwargs = dict(self.data_loader_kwargs)
        kwargs.pop("distributed_sampler", None)
        sampler = PairSampler(
            self.make_design(np.sort(cells)),
            settings.seed or 0,
            kwargs.pop("batch_size"),
            **{**self.pair_options, **options},
        )
        dataset = PairDataset(self.adata_manager)
        return DataLoader(dataset, sampler=sampler, batch_size=None, pin_memory=self.pin_memory, **kwargs)
