"""Genes of two species that do the same."""

from __future__ import annotations

import itertools
from numbers import Integral
from typing import Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from scipy.special import logsumexp
from sklearn.metrics.pairwise import euclidean_distances

from transverse._validation import examples

Method = Literal["assignment", "nearest"]

_TINY = np.finfo(np.float32).tiny


def assignment(similarity: np.ndarray, temperature: float, n_iterations: int = 50) -> np.ndarray:
    r"""Log-probabilities of a soft assignment of rows to columns (Sinkhorn).

    :math:`\log \pi_{ij} = S_{ij} / \tau - a_i - b_j`, with :math:`a` and :math:`b` such that rows and then columns sum to
    the same (1, times rows for each column where there are not as many), in turns: a gene that is close to all others is not the
    match of all of them.

    Parameters
    ----------
    similarity
        :math:`S`, shape ``(n_rows, n_columns)``; in units in which the median is -1.
    temperature
        :math:`\tau`.
    n_iterations
        Turns.
    """
    logits = (similarity / temperature).astype(np.float32)
    logits -= logits.max(axis=1, keepdims=True)
    logits -= logits.max(axis=0)
    # products with a matrix of probabilities, many times faster than sums of exponentials; what is below 1e-38 is 0
    kernel = np.exp(logits)
    columns = np.ones(kernel.shape[1], dtype=np.float32)
    share = np.float32(kernel.shape[0] / kernel.shape[1])
    for _ in range(n_iterations):
        rows = 1 / np.maximum(kernel @ columns, _TINY)
        columns = share / np.maximum(rows @ kernel, _TINY)
    logits += np.log(columns)
    return logits - logsumexp(logits, axis=1, keepdims=True)


def similarity_of(features: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Negative squared distances, in units of their median."""
    similarity = -euclidean_distances(features, other, squared=True)
    return similarity / (-np.median(similarity) or 1.0)


class GeneMapMixin:
    """Gene vectors, and what they say of genes."""

    @torch.inference_mode()
    def get_gene_representation(self, species: str | None = None) -> pd.DataFrame:
        """Vectors of genes in the space that all species share.

        Parameters
        ----------
        species
            Species; by default all.

        Returns
        -------
        Table of shape ``(n_genes, n_latent)``, by name of the gene.

        Examples
        --------
        >>> model.get_gene_representation("rat").shape
        (50, 256)
        """
        self._check_if_trained(warn=False)
        wanted = range(len(self.species_)) if species is None else [self._species_of(species)]
        names = np.array(self.var_names_, dtype=object)
        of_gene = self._gene_species
        self.module.eval()
        rows = [np.flatnonzero(of_gene == s) for s in wanted]
        vectors = [self._vectors(genes, s).cpu().numpy() for genes, s in zip(rows, wanted, strict=True)]
        return pd.DataFrame(np.concatenate(vectors), index=names[np.concatenate(rows)])

    def map_genes(
        self,
        source: str,
        target: str,
        n_top: int = 10,
        *,
        method: Method = "assignment",
        temperature: float = 0.02,
        genes: list[str] | None = None,
    ) -> pd.DataFrame:
        r"""The target genes that do most likely the same as each source gene.

        Genes are compared by what they do, :math:`f_g = (\Delta_g, h_g, m_g)`: changes in every organ and under every drug, organs,
        and level, in the units and with the weights of the training; what was not measured in the species is what the model
        says, :math:`\hat f_g`. :math:`S_{gg'} = -\lVert f_g - f_{g'} \rVert^2`, in units of its median.

        Parameters
        ----------
        source, target
            Species.
        n_top
            Number of target genes for a source gene.
        method
            ``"assignment"`` (ours): all genes compete for each other, see
            :func:`~transverse.uge._gene_map.assignment`. ``"nearest"``: the largest :math:`S`.
        temperature
            Of the assignment.
        genes
            Source genes to map; by default all. All compete in any case.

        Returns
        -------
        Table with the columns ``source``, ``target``, ``score`` (:math:`S`), ``probability`` (of the assignment; NaN for
        ``"nearest"``), ``rank`` (1 is best) and ``is_mutual_best``, as :func:`transverse.metrics.gene_map_scores` takes it.

        Raises
        ------
        KeyError
            If a species or a gene is unknown.
        ValueError
            If the species are the same, or an argument is out of range.

        Examples
        --------
        >>> gene_map = model.map_genes("mouse", "rat", n_top=3)
        >>> gene_map.columns.tolist()
        ['source', 'target', 'score', 'probability', 'rank', 'is_mutual_best']
        >>> scores = tv.metrics.gene_map_scores(gene_map, data["rat"].uns["gene_map"], k=1)
        """
        self._check_if_trained(warn=False)
        s, t = self._species_of(source), self._species_of(target)
        if s == t:
            raise ValueError(f"source and target are both {source!r}.")
        if method not in ("assignment", "nearest"):
            raise ValueError(f"method={method!r} must be 'assignment' or 'nearest'.")
        if not temperature > 0:
            raise ValueError(f"temperature={temperature!r} must be positive.")
        if not isinstance(n_top, Integral) or n_top < 1:
            raise ValueError(f"n_top={n_top!r} must be a whole number of at least 1.")
        names = [np.array(self.var_names_, dtype=object)[self._gene_species == i] for i in (s, t)]
        if genes is not None and (unknown := [gene for gene in genes if gene not in set(names[0])]):
            raise KeyError(
                f"Unknown genes of {source!r}: {examples(unknown)}. Known, for example: {examples(names[0])}."
            )
        features = [self._completed_features(i) for i in (s, t)]
        similarity = similarity_of(*features)
        scores = assignment(similarity, temperature) if method == "assignment" else similarity
        rows = np.arange(len(names[0])) if genes is None else pd.Index(names[0]).get_indexer(list(genes))
        n_top = min(n_top, len(names[1]))
        best = np.argsort(-scores[rows], axis=1, kind="stable")[:, :n_top]
        mutual = scores.argmax(axis=0)[best] == rows[:, None]
        mutual &= np.arange(n_top) == 0
        picked = rows[:, None], best
        return pd.DataFrame(
            {
                "source": np.repeat(names[0][rows], n_top),
                "target": names[1][best].ravel(),
                "score": similarity[picked].ravel(),
                "probability": (
                    np.exp(scores[picked]) if method == "assignment" else np.full(best.shape, np.nan)
                ).ravel(),
                "rank": np.tile(np.arange(1, n_top + 1), len(rows)),
                "is_mutual_best": mutual.ravel(),
            }
        )

    def _soft_map(self, species: int, other: int, temperature: float = 0.04, n_neighbors: int = 50) -> sp.csr_matrix:
        """Probabilities of the genes of another species for each gene of one, those of the likeliest, which sum to 1."""
        key = ("map", species, other, temperature, n_neighbors)
        if key not in self._derived:
            features = [self._completed_features(s) for s in (species, other)]
            scores = assignment(similarity_of(*features), temperature)
            n = min(n_neighbors, scores.shape[1])
            best = np.sort(np.argpartition(-scores, n - 1, axis=1)[:, :n], axis=1)
            p = np.exp(np.take_along_axis(scores, best, axis=1))
            p /= p.sum(axis=1, keepdims=True)
            starts = np.arange(0, best.size + 1, n)
            self._derived[key] = sp.csr_matrix((p.ravel(), best.ravel(), starts), shape=scores.shape)
        return self._derived[key]

    def _counterparts(self, n_draws: int = 20) -> np.ndarray:
        """Genes of every species that can stand for each gene, as often as is probable; (genes, species, draws)."""
        rng = np.random.default_rng(0)
        genes = [np.flatnonzero(self._gene_species == s) for s in range(len(self.species_))]
        drawn = np.zeros((len(self._gene_species), len(genes), n_draws), dtype=np.int64)
        for s, t in itertools.permutations(range(len(genes)), 2):
            shares = self._soft_map(s, t, 0.02, 10)
            best = shares.indices.reshape(shares.shape[0], -1)
            edges = shares.data.reshape(best.shape).cumsum(axis=1)
            at = rng.random((len(best), n_draws)) * edges[:, -1:]
            picked = np.minimum((at[:, :, None] > edges[:, None, :]).sum(axis=2), best.shape[1] - 1)
            drawn[genes[s], t] = genes[t][np.take_along_axis(best, picked, axis=1)]
        return drawn

    def _species_of(self, species: str) -> int:
        if str(species) not in self.species_:
            raise KeyError(f"Unknown species {species!r}. Known: {examples(self.species_)}.")
        return self.species_.index(str(species))

    def _vectors(self, genes: np.ndarray, species: int) -> torch.Tensor:
        return self.module.genes(torch.from_numpy(genes).to(self.module.device), species)

    def _completed_features(self, species: int) -> np.ndarray:
        """What was measured, and what the head says where nothing was."""
        own = self.features_[self._gene_species == species]
        return np.where(np.isnan(own), self._predicted_features(species), own)

    @torch.inference_mode()
    def _predicted_features(self, species: int) -> np.ndarray:
        """What the head says of all genes of a species, (genes, features), in the units of training."""
        self.module.eval()
        return self.module.reactome(self._vectors(np.flatnonzero(self._gene_species == species), species)).cpu().numpy()
