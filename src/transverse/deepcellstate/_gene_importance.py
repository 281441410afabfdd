from __future__ import annotations

import warnings
from collections.abc import Sequence
from numbers import Integral
from typing import Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi import settings
from scvi.utils import track

from transverse._validation import examples

from ._importance import Network, count_best, draw_subsets, integrated_gradients, subset_scores
from ._input import Signatures
from ._pairs import SOURCE, TARGET, Grid

# passes through the network after which a progress bar is shown
_LONG = 10_000


class GeneImportanceMixin:
    """Which genes of the source predictions rest on."""

    def get_gene_importance(
        self,
        adata: AnnData | None = None,
        targets: str | Sequence[str] | None = None,
        *,
        method: Literal["subsets", "integrated_gradients"] = "subsets",
        n_subsets: int = 100,
        subset_size: int = 100,
        n_best: int = 10,
        n_steps: int = 50,
        use_skip: bool = True,
        batch_size: int = 512,
        seed: int = 0,
    ) -> pd.DataFrame:
        r"""How much the predictions of a cell type rest on each gene of the source.

        For every signature :math:`y` of a target that has its perturbation in other cell types too, the signature :math:`x`
        of one of these is drawn at random. A gene then counts by one of two methods.

        ``"subsets"`` (paper): of random subsets of the genes, those are kept from which alone, all other inputs being 0, the
        prediction correlates best with the truth. The importance of gene :math:`g` is the number of kept subsets that it
        is in, as the mean over the :math:`n` signatures,

        .. math::

            I_g = \frac{1}{n} \sum_{i=1}^{n} \sum_{S \in \mathrm{best}_i} [g \in S].

        ``"integrated_gradients"`` :cite:p:`Sundararajan2017`: what a gene adds to the length of the prediction in the
        direction of the truth, on the straight path from an input of 0 to :math:`x`,

        .. math::

            I_g = \frac{1}{n} \sum_{i=1}^{n} \lvert a_{ig} \rvert, \qquad
            a_g = x_g \int_0^1 \frac{\partial f}{\partial x_g}(\alpha x)\, d\alpha, \qquad
            f(x) = \frac{D_t(E(x))^\top y}{\lVert y \rVert},

        where the attributions :math:`a` of a signature sum to :math:`f(x) - f(0)`.

        Parameters
        ----------
        adata
            Signatures, by default those of the model. Those of cell types that have no decoder serve as sources. Missing genes
            are taken as 0, with a warning.
        targets
            Cell types to predict. By default all that have a trained decoder and, in ``adata``, such signatures.
        method
            One of the two. Subsets are the paper's, and ask what a part of the genes can predict by itself; integrated
            gradients share out the whole prediction, with no chance in it but that of the sources.
        n_subsets, subset_size, n_best
            Subsets of a signature, genes in each, and how many of them to keep.
        n_steps
            Points on the path of integrated gradients.
        use_skip
            Whether the skip connection takes part. By it a gene copies itself: what counts then is also that the gene responds
            alike in source and target. Without it, only what passes the latent space counts.
        batch_size
            Inputs in a mini-batch, of one signature or several; does not change the result.
        seed
            Of the choice of sources and subsets.

        Returns
        -------
        DataFrame of genes, in the model's order, by targets; NaN for genes that are missing in ``adata``. Genes and targets
        compare: with subsets the unit is one kept subset, from 0 to ``n_best``, and a gene that says nothing has
        ``n_best * subset_size / n_genes`` of them, of the genes that are there (``.attrs["chance"]``); with integrated
        gradients the unit is that of the signatures, so that strong ones count more. ``.attrs["n_signatures"]`` has the
        number of signatures of each target. Signatures whose values are all the same are left out. A random choice of
        subsets scatters about the chance level, by about ``sqrt(chance / n_signatures)``.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        KeyError
            If a target has no trained decoder, or a column is not there.
        ValueError
            If a target has no signatures to predict, subsets have not fewer genes than there are, not fewer subsets are kept
            than drawn, or an argument is out of range.

        Warns
        -----
        UserWarning
            If genes are missing, or if integrated gradients are off by more than 5% for want of steps.

        Examples
        --------
        >>> importance = model.get_gene_importance(n_subsets=20, subset_size=10, n_best=2)
        >>> importance.shape
        (50, 3)
        >>> top = importance["C2"].nlargest(10).index
        >>> table = tv.tl.enrichment(top, {"some genes": adata.var_names[:20]}, importance.index)
        """
        self._check_if_trained(warn=False)
        if method not in ("subsets", "integrated_gradients"):
            raise ValueError(f"method={method!r} must be 'subsets' or 'integrated_gradients'.")
        check_whole(n_subsets=n_subsets, subset_size=subset_size, n_best=n_best, n_steps=n_steps, batch_size=batch_size)
        check_whole(0, seed=seed)
        if method == "subsets" and n_best >= n_subsets:
            raise ValueError(f"n_best={n_best} must be fewer than n_subsets={n_subsets}: else all subsets are kept.")
        wanted = None if targets is None else check_names(targets, "targets")
        for target in wanted or ():
            self._decoder_of(target, "targets")
        signatures, _ = self._read(adata)
        there = signatures.genes >= 0
        if method == "subsets" and subset_size >= there.sum():
            raise ValueError(f"subset_size={subset_size} must be below the number of genes, {there.sum()}.")
        signatures = signatures.where(
            np.concatenate([np.ptp(x[:, there], axis=1) > 0 for x in signatures.batches(8192)])
        )
        drawn = self._draw_sources(signatures, wanted, seed)
        table = pd.DataFrame(index=pd.Index(self.var_names_, dtype=object))
        errors = {}
        self.module.eval()
        for target, (pairs, rngs) in drawn.items():
            network = self._network(self._decoder_of(target), use_skip)
            per_signature = n_subsets if method == "subsets" else n_steps
            size = max(1, batch_size // per_signature)
            total, error = np.zeros(len(there)), np.zeros(2)
            starts = range(0, len(pairs), size)
            for start in track(starts, f"Importance ({target})", disable=len(pairs) * per_signature < _LONG):
                part = slice(start, start + size)
                source, truth = (self._units(_rows(signatures, pairs[part, side])) for side in (SOURCE, TARGET))
                if method == "subsets":
                    subsets = np.stack([draw_subsets(rng, n_subsets, subset_size, there) for rng in rngs[part]])
                    scores = subset_scores(network, source, truth, subsets, there, batch_size)
                    total += count_best(scores, subsets, n_best).sum(axis=0)
                else:
                    attribution, found = _attributions(network, source, truth, n_steps, batch_size)
                    total += np.abs(attribution).sum(axis=0) * float(self.module.scale)
                    error += found
            table[target] = np.where(there, total / len(pairs), np.nan)
            errors[target] = error[0] / error[1] if error[1] else 0.0
        table.attrs = {"method": method, "n_signatures": {t: len(pairs) for t, (pairs, _) in drawn.items()}}
        if method == "subsets":
            table.attrs["chance"] = n_best * subset_size / int(there.sum())
        elif max(errors.values()) > 0.05:
            warnings.warn(
                f"With n_steps={n_steps} the attributions miss what they should sum to by {max(errors.values()):.0%}: "
                "raise n_steps.",
                UserWarning,
                stacklevel=settings.warnings_stacklevel,
            )
        return table

    def _network(self, decoder: int, use_skip: bool) -> Network:
        """Predictions of a cell type from inputs, both in units of the scale."""

        def network(x: torch.Tensor) -> torch.Tensor:
            encoded = self.module.inference(x)
            return self.module.generative(encoded["z"], encoded["x"] if use_skip else None, decoder)["x"]

        return network

    def _units(self, x: np.ndarray) -> torch.Tensor:
        """Signatures in units of the scale, where the module is."""
        return torch.from_numpy(x / np.float32(float(self.module.scale))).to(self.module.device)

    def _draw_sources(
        self, signatures: Signatures, targets: Sequence[str] | None, seed: int
    ) -> dict[str, tuple[np.ndarray, list[np.random.Generator]]]:
        """For each target its signatures, each with one of the same perturbation elsewhere, and a generator for each."""
        by, cell_type_key = self._keys
        perturbations = signatures.obs.reset_index(drop=True).groupby(by, sort=True).ngroup().to_numpy()
        cell_types = pd.Index(self.cell_types_).get_indexer(signatures.obs[cell_type_key])  # -1: no decoder
        grid = Grid(perturbations, cell_types)
        drawn = {}
        for target in self.trained_decoders_ if targets is None else targets:
            decoder = self._decoder_of(target)
            pairs = grid.pairs(np.arange(len(signatures)), "cross", np.array([decoder]))
            if len(pairs):
                first, n = np.unique(pairs[:, TARGET], return_index=True, return_counts=True)[1:]
                # one for each signature: neither other targets nor the size of mini-batches change what is drawn
                rngs = [np.random.default_rng([seed, decoder, i]) for i in range(len(first))]
                chosen = [start + rng.integers(k) for start, k, rng in zip(first, n, rngs, strict=True)]
                drawn[target] = pairs[chosen], rngs
        if lacking := [target for target in targets or () if target not in drawn]:
            raise ValueError(
                f"adata has no signature of the targets {examples(lacking)} that has its perturbation in another cell type too."
            )
        if not drawn:
            raise ValueError(
                "adata has no signature of a cell type with a trained decoder that has its perturbation in another cell type "
                f"too. Trained: {examples(self.trained_decoders_, 20)}; adata has signatures of "
                f"{examples(sorted(set(signatures.obs[cell_type_key])), 20)}."
            )
        return drawn


def _attributions(
    network: Network, source: torch.Tensor, truth: torch.Tensor, n_steps: int, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Integrated gradients, and sums over signatures of how far they are off and of what they should sum to."""
    direction = torch.nn.functional.normalize(truth, dim=1)
    attribution = integrated_gradients(network, source, direction, n_steps, batch_size)
    with torch.inference_mode():
        change = ((network(source) - network(torch.zeros_like(source[:1]))) * direction).sum(dim=1)
        sums = torch.stack([(attribution.sum(dim=1) - change).abs().sum(), change.abs().sum()])
    return attribution.cpu().numpy(), sums.cpu().numpy()


def _rows(signatures: Signatures, rows: np.ndarray) -> np.ndarray:
    """Signatures at positions that may repeat and come in any order."""
    unique, inverse = np.unique(rows, return_inverse=True)
    chosen = np.zeros(len(signatures), dtype=bool)
    chosen[unique] = True
    return next(signatures.where(chosen).batches(len(unique)))[inverse]


def check_names(given: str | Sequence[str], argument: str) -> list[str]:
    """Names, each once."""
    names = list(dict.fromkeys([given] if isinstance(given, str) else map(str, given)))
    if not names:
        raise ValueError(f"{argument} is empty: name at least one.")
    return names


def check_whole(least: int = 1, **numbers) -> None:
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            raise ValueError(f"{name}={value!r} must be a whole number, at least {least}.")
