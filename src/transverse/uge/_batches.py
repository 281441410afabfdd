"""Mini-batches of samples and of genes."""

from __future__ import annotations

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

from ._constants import UGE_KEYS


class BatchSampler(ProcessSampler):
    """Mini-batches of samples of all species, each species with the same genes, and of genes; anew in every epoch.

    A function of seed and epoch; with several processes each takes its share of the same samples.

    Parameters
    ----------
    rows
        Positions of the samples of every species; None for mini-batches of genes alone.
    tokens
        Genes of every species that may be tokens.
    genes
        Genes of every species that have features.
    batch_size
        Samples in a mini-batch, of all species together.
    n_tokens
        Genes of a species in a mini-batch, at most.
    n_genes
        Genes of a species whose features are in a mini-batch, at most; 0 for none.
    n_batches
        Mini-batches of an epoch without samples.
    seed
        Of the order.
    counterparts
        Genes of every species that can stand for a gene, shape ``(n_genes, n_species, n_draws)``; None for none.
    translated
        Share of the blocks of samples that are shown as samples of another species, with counterparts for their genes.
    shuffle
        Whether to shuffle; otherwise all epochs have the same samples, and the first of the tokens, and none is translated.
    num_replicas, rank
        Number of processes and the number of this one; by default those of PyTorch's process group, if any.
    """

    def __init__(
        self,
        rows: list[np.ndarray] | None,
        tokens: list[np.ndarray],
        genes: list[np.ndarray],
        *,
        batch_size: int,
        n_tokens: int,
        n_genes: int,
        n_batches: int = 50,
        counterparts: np.ndarray | None = None,
        translated: float = 0.0,
        seed: int = 0,
        shuffle: bool = True,
        num_replicas: int | None = None,
        rank: int | None = None,
    ):
        super().__init__(range(n_batches), num_replicas=num_replicas, rank=rank, seed=seed, shuffle=shuffle)
        self.rows, self.tokens, self.genes = rows, tokens, genes
        self.n_tokens, self.n_genes = n_tokens, n_genes
        self.counterparts, self.translated = counterparts, translated
        if rows is None:
            self.n_batches = n_batches
        else:
            self.n_batches = max(1, ceil(sum(map(len, rows)) / (batch_size * self.num_replicas)))

    def __iter__(self) -> Iterator[tuple[list, list]]:
        rng = np.random.default_rng([self.seed, self.epoch if self.shuffle else 0])
        batches = [[]] * self.n_batches if self.rows is None else self._dealt(rng)
        for batch in batches:
            samples = [self._block(rng, s, rows) for s, rows in batch]
            genes = [
                (s, self._some(rng, own, self.n_genes)) for s, own in enumerate(self.genes) if self.n_genes and len(own)
            ]
            yield samples, genes

    def _dealt(self, rng: np.random.Generator) -> list[list[tuple[int, np.ndarray]]]:
        """Species and rows of every mini-batch of this process, with the species in proportion."""
        own, place, start = [], [], 0
        for s, rows in enumerate(self.rows):
            order = rng.permutation(rows) if self.shuffle else rows
            mine = np.arange((self.rank - start) % self.num_replicas, len(order), self.num_replicas)
            own += [(s, row) for row in order[mine]]
            place += list((mine + 0.5) / len(order))
            start += len(order)
        chunks = np.array_split(np.argsort(place, kind="stable"), self.n_batches)
        batches = []
        for chunk in chunks:
            found = [own[i] for i in chunk]
            species = sorted({s for s, _ in found})
            batches.append([(s, np.sort(np.array([row for t, row in found if t == s]))) for s in species])
        return batches

    def _block(self, rng: np.random.Generator, species: int, rows: np.ndarray) -> tuple:
        """Rows, the genes to read of them, and the species and genes that they are shown as."""
        tokens = self._some(rng, self.tokens[species], self.n_tokens)
        if self.counterparts is None or not self.shuffle or rng.random() >= self.translated:
            return rows, tokens, species, tokens
        others = np.delete(np.arange(len(self.tokens)), species)
        other = int(rng.choice(others))
        draws = self.counterparts[tokens, other]
        return rows, tokens, other, draws[np.arange(len(draws)), rng.integers(draws.shape[1], size=len(draws))]

    def _some(self, rng: np.random.Generator, genes: np.ndarray, n: int) -> np.ndarray:
        if len(genes) <= n:
            return genes
        return np.sort(rng.choice(genes, n, replace=False)) if self.shuffle else genes[:n]

    def __len__(self) -> int:
        return self.n_batches


class BatchDataset(Dataset):
    """What mini-batches hold.

    Parameters
    ----------
    adata_manager
        Registered data.
    features
        Of the genes, (genes, features).
    centers
        What values are relative to, (genes,).
    labels
        Organ and drug of every sample as numbers, negative where unknown or not to learn from.
    conditions
        Categories of conditions that are tokens, (samples, conditions); None for none.
    n_bins
        Bins of the values; None for continuous values.
    """

    def __init__(
        self,
        adata_manager: AnnDataManager,
        features: np.ndarray,
        centers: np.ndarray,
        labels: dict[str, np.ndarray],
        conditions: np.ndarray | None = None,
        n_bins: int | None = None,
    ):
        self.rows = adata_manager.create_torch_dataset(data_and_attributes=[REGISTRY_KEYS.X_KEY])
        self.features, self.centers = torch.from_numpy(features), torch.from_numpy(centers.astype(np.float32))
        self.labels, self.conditions, self.n_bins = labels, conditions, n_bins

    def __getitem__(self, batch: tuple[list, list]) -> dict[str, list]:
        samples, genes = batch
        tensors: dict[str, list] = {}
        if samples:
            tensors[UGE_KEYS.SAMPLES_KEY] = [self._samples(*block) for block in samples]
        if genes:
            tensors[UGE_KEYS.GENES_KEY] = [
                {
                    UGE_KEYS.SPECIES_KEY: torch.tensor(species),
                    UGE_KEYS.TOKENS_KEY: torch.from_numpy(own),
                    UGE_KEYS.VALUES_KEY: self.features[own],
                }
                for species, own in genes
            ]
        return tensors

    def _samples(
        self, rows: np.ndarray, tokens: np.ndarray, shown_species: int, shown: np.ndarray
    ) -> dict[str, torch.Tensor]:
        tokens = torch.from_numpy(tokens)
        x = read_rows(self.rows, rows)[:, tokens]
        block = {
            UGE_KEYS.SPECIES_KEY: torch.tensor(shown_species),
            UGE_KEYS.TOKENS_KEY: torch.from_numpy(shown),
            UGE_KEYS.VALUES_KEY: x - self.centers[tokens],
            UGE_KEYS.ORGAN_KEY: torch.from_numpy(self.labels[UGE_KEYS.ORGAN_KEY][rows]),
            UGE_KEYS.DRUG_KEY: torch.from_numpy(self.labels[UGE_KEYS.DRUG_KEY][rows]),
        }
        if self.n_bins is not None:
            block[UGE_KEYS.BINS_KEY] = bin_values(x, self.n_bins)
        if self.conditions is not None:
            block[UGE_KEYS.CONDITIONS_KEY] = torch.from_numpy(self.conditions[rows])
        return block

    def __len__(self) -> int:
        return len(self.rows)


def bin_values(x: torch.Tensor, n_bins: int) -> torch.Tensor:
    """Number of the bin of every value of a sample: 0 for 0, the others by the quantiles of the sample's other values.

    Parameters
    ----------
    x
        Not negative, shape ``(n_samples, n_genes)``.
    n_bins
        Bins with that for 0.
    """
    x, there = x.float(), x > 0
    quantiles = torch.linspace(0, 1, n_bins)[1:-1]
    edges = torch.nanquantile(x.masked_fill(~there, torch.nan), quantiles, dim=1).T.contiguous()
    return torch.where(there, 1 + torch.searchsorted(edges, x.contiguous(), right=True), 0)


class BatchSplitter(DataSplitter):
    """Loaders of mini-batches for a stage of training.

    Parameters
    ----------
    adata_manager
        Registered data.
    dataset
        What mini-batches hold.
    train, validation
        Positions of the samples.
    sample_species
        Species of every sample, as a number.
    with_samples
        Whether mini-batches have samples, or genes alone.
    options
        Keyword arguments of :class:`BatchSampler`.
    **kwargs
        Keyword arguments of :class:`torch.utils.data.DataLoader`.
    """

    def __init__(
        self,
        adata_manager: AnnDataManager,
        dataset: BatchDataset,
        train: np.ndarray,
        validation: np.ndarray,
        sample_species: np.ndarray,
        with_samples: bool,
        options: dict,
        **kwargs,
    ):
        rest = np.setdiff1d(np.arange(len(sample_species)), np.concatenate([train, validation]))
        super().__init__(adata_manager, external_indexing=[train, validation, rest], **kwargs)
        self.setup()
        self.dataset, self.sample_species, self.with_samples, self.options = (
            dataset,
            sample_species,
            with_samples,
            options,
        )

    def train_dataloader(self) -> DataLoader:
        """Mini-batches of the training."""
        return self._loader(self.train_idx, self.options)

    def val_dataloader(self) -> DataLoader | None:
        """Mini-batches of the validation, without genes, always the same."""
        if not (self.with_samples and len(self.val_idx)):
            return None
        return self._loader(self.val_idx, {**self.options, "n_genes": 0, "shuffle": False})

    def test_dataloader(self) -> None:
        """Nothing is tested in training."""

    def state_dict(self) -> dict:
        """What was drawn before the first epoch."""
        counterparts = self.options.get("counterparts")
        return {} if counterparts is None else {"counterparts": torch.from_numpy(counterparts)}

    def load_state_dict(self, state_dict: dict) -> None:
        """Go on with it."""
        self.options |= {key: tensor.cpu().numpy() for key, tensor in state_dict.items()}

    def _loader(self, samples: np.ndarray, options: dict) -> DataLoader:
        rows = None
        if self.with_samples:
            n_species = int(self.sample_species.max()) + 1
            rows = [samples[self.sample_species[samples] == s] for s in range(n_species)]
        sampler = BatchSampler(rows, seed=settings.seed or 0, **options)
        kwargs = {key: value for key, value in self.data_loader_kwargs.items() if key != "distributed_sampler"}
        return DataLoader(self.dataset, sampler=sampler, batch_size=None, pin_memory=self.pin_memory, **kwargs)
