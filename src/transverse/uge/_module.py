from __future__ import annotations

from collections.abc import Sequence

import torch
from scvi.module.base import BaseModuleClass, LossOutput, auto_move_data
from torch import nn
from torch.nn import functional as F

from ._constants import UGE_KEYS
from ._losses import correlation, elastic_similarity, gene_alignment, reactome_error
from ._networks import GeneVectors, ReactomeHead, SampleDecoder, SampleEncoder, head

LOSSES = ("masked", "sample", "organ", "drug", "elastic", "map", "reactome")


class UGEModule(BaseModuleClass):
    r"""Genes and samples of several species in one space.

    Parameters
    ----------
    gene_species
        Species of every gene, as a number.
    n_organs, n_drugs
        Organs, and drugs with the control, which is the first.
    n_hidden, n_layers, n_heads, n_feedforward, dropout_rate
        Of the transformer (paper: 256, 4, 8; the last two are not given). ``n_feedforward`` is four times the width by default.
    n_latent
        Width of the shared space (256).
    n_bins
        Bins of the values; None for continuous values.
    condition_sizes
        Numbers of categories of conditions that are tokens as well.
    mask_rate
        Share of the values of a sample that are hidden in training, and to be told.
    elastic_threshold, rectify
        Of :func:`~transverse.uge._losses.elastic_similarity`.
    temperature, target_temperature, n_neighbors
        Of :func:`~transverse.uge._losses.gene_alignment`.
    factor_penalty
        Weight of the squares of gene vectors and of those of organs and drugs, which keeps the reactome's rank low (ours).
    organ_penalty
        How many times more those of the :math:`b_o` weigh, what an organ does under any drug: of few drugs it would be what
        these happen to have in common, and be expected of the next (ours).
    weights
        Weights of the terms of :meth:`loss`, by name; by default 1, but 0.1 of ``"map"``. 0 switches a term off.

    Examples
    --------
    Three genes of each of two species, and two samples of the first:

    >>> import torch
    >>> import transverse as tv
    >>> module = tv.uge.UGEModule(
    ...     [0, 0, 0, 1, 1, 1], n_organs=2, n_drugs=2, n_hidden=8, n_layers=1, n_heads=2, n_latent=4
    ... )
    >>> block = {"species": torch.tensor(0), "tokens": torch.arange(3), "values": torch.rand(2, 3)}
    """

    def __init__(
        self,
        gene_species: Sequence[int],
        n_organs: int,
        n_drugs: int,
        n_hidden: int = 256,
        n_layers: int = 4,
        n_heads: int = 8,
        n_feedforward: int | None = None,
        dropout_rate: float = 0.1,
        n_latent: int = 256,
        n_bins: int | None = None,
        condition_sizes: Sequence[int] = (),
        mask_rate: float = 0.4,
        elastic_threshold: float = 0.3,
        rectify: bool = True,
        temperature: float = 0.1,
        target_temperature: float = 0.1,
        n_neighbors: int = 10,
        factor_penalty: float = 0.1,
        organ_penalty: float = 10.0,
        weights: dict[str, float] | None = None,
    ):
        super().__init__()
        self.genes = GeneVectors(torch.as_tensor(gene_species), n_latent, n_latent)
        self.reactome = ReactomeHead(n_latent, n_organs, n_drugs - 1)
        self.encoder = SampleEncoder(
            n_latent,
            n_hidden,
            n_layers,
            n_heads,
            n_feedforward or 4 * n_hidden,
            dropout_rate,
            n_bins,
            tuple(condition_sizes),
        )
        n_species = len(self.genes.projections)
        self.sample_projections = nn.ModuleList(nn.Linear(n_hidden, n_latent) for _ in range(n_species))
        for projection in self.sample_projections:  # a sample is at first where its genes are
            nn.init.zeros_(projection.weight)
            nn.init.zeros_(projection.bias)
        self.value_decoder = head(n_hidden, n_hidden, 1)
        self.sample_decoder = SampleDecoder(n_latent, n_hidden)
        self.organ_head = head(n_latent, n_hidden, n_organs)
        self.drug_head = head(n_latent, n_hidden, n_drugs)
        self.mask_rate = mask_rate
        self.elastic = {"threshold": elastic_threshold, "rectify": rectify}
        self.alignment = {
            "temperature": temperature,
            "target_temperature": target_temperature,
            "n_neighbors": n_neighbors,
        }
        self.factor_penalty, self.organ_penalty = factor_penalty, organ_penalty
        self.weights = dict.fromkeys(LOSSES, 1.0) | {"map": 0.1} | (weights or {})

    def _get_inference_input(self, tensors: dict, **kwargs) -> dict:
        return {"samples": tensors.get(UGE_KEYS.SAMPLES_KEY, ())}

    def inference(self, samples: Sequence[dict[str, torch.Tensor]]) -> dict[str, list[torch.Tensor]]:
        """Encode mini-batches of samples, each of one species.

        Parameters
        ----------
        samples
            For each species, ``species`` (its number), ``tokens`` (genes, shape ``(n_tokens,)``), ``values`` (shape
            ``(n_samples, n_tokens)``) and, if there are any, ``conditions``.

        Returns
        -------
        Lists over species: ``hidden`` (whether a value was hidden), ``genes`` (representations of the genes in their samples,
        ``(n_samples, n_tokens, n_hidden)``) and ``z`` (those of the samples in the shared space, ``(n_samples, n_latent)``).

        Examples
        --------
        >>> outputs = module.inference([block])
        >>> tuple(outputs["z"][0].shape), tuple(outputs["genes"][0].shape)
        ((2, 4), (2, 3, 8))
        """
        outputs: dict[str, list] = {"hidden": [], "genes": [], "z": []}
        for block in samples:
            values = block[UGE_KEYS.VALUES_KEY]
            hidden = None
            if self.training and self.mask_rate > 0:
                hidden = torch.rand(values.shape, device=values.device) < self.mask_rate
            z, genes = self.encode(block, hidden)
            for key, value in (("hidden", hidden), ("genes", genes), ("z", z)):
                outputs[key].append(value)
        return outputs

    @auto_move_data
    def encode(self, block: dict, hidden: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Representations of samples of one species in the shared space, and of their genes.

        Examples
        --------
        >>> z, genes = module.encode(block)
        >>> tuple(z.shape), tuple(genes.shape)
        ((2, 4), (2, 3, 8))
        """
        species = int(block[UGE_KEYS.SPECIES_KEY])
        vectors = self.genes(block[UGE_KEYS.TOKENS_KEY], species)
        bins, conditions = block.get(UGE_KEYS.BINS_KEY), block.get(UGE_KEYS.CONDITIONS_KEY)
        encoded, start = self.encoder(vectors, block[UGE_KEYS.VALUES_KEY], hidden, bins, conditions)
        return start + self.sample_projections[species](encoded[:, 0]), encoded[:, 1:]

    @auto_move_data
    def decode(self, z: torch.Tensor, genes: torch.Tensor, species: int) -> torch.Tensor:
        """Values of genes of a species, ``(n_samples, n_genes)``, from representations of samples.

        Examples
        --------
        >>> z, _ = module.encode(block)
        >>> tuple(module.decode(z, torch.arange(3), 0).shape)
        (2, 3)
        """
        return self.sample_decoder(self.genes(genes, species), z)

    def _get_generative_input(self, tensors: dict, inference_outputs: dict, **kwargs) -> dict:
        return {"samples": tensors.get(UGE_KEYS.SAMPLES_KEY, ()), **inference_outputs}

    def generative(self, samples, hidden, genes, z) -> dict[str, list[torch.Tensor]]:
        """What the values of the tokens should be, from their representations (``masked``) and the sample's (``sample``).

        Examples
        --------
        >>> outputs = module.generative([block], **module.inference([block]))
        >>> tuple(outputs["masked"][0].shape), tuple(outputs["sample"][0].shape)
        ((2, 3), (2, 3))
        """
        return {
            "masked": [self.value_decoder(x).squeeze(-1) for x in genes],
            "sample": [
                self.decode(x, block[UGE_KEYS.TOKENS_KEY], int(block[UGE_KEYS.SPECIES_KEY]))
                for x, block in zip(z, samples, strict=True)
            ],
        }

    def loss(self, tensors: dict, inference_outputs: dict, generative_outputs: dict) -> LossOutput:
        r"""Weighted sum of the terms.

        .. math::

            L = \lambda_1 L_\mathrm{masked} + \lambda_2 L_\mathrm{sample} + \lambda_3 L_\mathrm{organ} + \lambda_4 L_\mathrm{drug}
              + \lambda_5 L_\mathrm{ECS} + \lambda_6 L_\mathrm{map} + \lambda_7 L_\mathrm{reactome}

        Mean squared errors of the hidden values from the genes' representations and of all values from the sample's;
        cross-entropies of organ and drug, of samples with a label (a negative number is none);
        :func:`~transverse.uge._losses.elastic_similarity` over samples; and, of genes,
        :func:`~transverse.uge._losses.gene_alignment` and
        :func:`~transverse.uge._losses.reactome_error` with the penalty on the squares of both factors. A mini-batch without
        samples, or without genes, leaves their terms out, and so does one without hidden values, or species that share fewer
        than two changes.

        Examples
        --------
        >>> labels = {"organ": torch.tensor([0, 1]), "drug": torch.tensor([0, 0])}
        >>> _, _, output = module({"samples": [block | labels]})
        >>> sorted(output.extra_metrics)
        ['drug', 'elastic', 'masked', 'organ', 'sample']
        """
        terms = {}
        samples = tensors.get(UGE_KEYS.SAMPLES_KEY, ())
        if len(samples):
            terms |= self._sample_terms(samples, inference_outputs, generative_outputs)
        if UGE_KEYS.GENES_KEY in tensors:
            terms |= self._gene_terms(tensors[UGE_KEYS.GENES_KEY])
        n = sum(len(block[UGE_KEYS.VALUES_KEY]) for block in samples) or 1
        used = [self.weights[name] * term for name, term in terms.items() if self.weights[name] != 0]
        total = torch.stack(used).sum() if used else torch.zeros((), device=self.device, requires_grad=True)
        return LossOutput(
            loss=total, n_obs_minibatch=n, extra_metrics={name: term.detach() for name, term in terms.items()}
        )

    def _sample_terms(self, samples, inference_outputs, generative_outputs) -> dict[str, torch.Tensor]:
        values = [block[UGE_KEYS.VALUES_KEY] for block in samples]
        hidden = inference_outputs["hidden"]
        masked = [
            (predicted - value)[at]
            for predicted, value, at in zip(generative_outputs["masked"], values, hidden, strict=True)
            if at is not None
        ]
        sample = [
            (predicted - value).flatten() for predicted, value in zip(generative_outputs["sample"], values, strict=True)
        ]
        z = torch.cat(inference_outputs["z"])
        terms = {}
        if masked:  # in validation nothing is hidden
            errors = torch.cat(masked)
            terms["masked"] = errors.square().sum() / max(len(errors), 1)
        return terms | {
            "sample": torch.cat(sample).square().mean(),
            "organ": _labelled(self.organ_head(z), torch.cat([block[UGE_KEYS.ORGAN_KEY] for block in samples])),
            "drug": _labelled(self.drug_head(z), torch.cat([block[UGE_KEYS.DRUG_KEY] for block in samples])),
            "elastic": elastic_similarity(z, **self.elastic),
        }

    def _gene_terms(self, blocks: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        z = [self.genes(block[UGE_KEYS.TOKENS_KEY], int(block[UGE_KEYS.SPECIES_KEY])) for block in blocks]
        features = [block[UGE_KEYS.VALUES_KEY] for block in blocks]
        n_entries = features[0].shape[1]
        errors = [
            reactome_error(self.reactome(x), observed) + self.factor_penalty * x.square().sum(1).mean() / n_entries
            for x, observed in zip(z, features, strict=True)
        ]
        terms = {
            "reactome": sum(errors) / len(errors)
            + self.factor_penalty * self.reactome.squares(self.organ_penalty) / n_entries
        }
        n_changes = self.reactome.interaction.shape[0] * self.reactome.interaction.shape[1]
        pairs = [(i, j) for i in range(len(z)) for j in range(i + 1, len(z))]
        changes = [values[:, :n_changes] for values in features]
        aligned = []
        for i, j in pairs:
            shared = ~(changes[i].isnan().any(dim=0) | changes[j].isnan().any(dim=0))
            if shared.sum() > 1:  # or there is no correlation
                similarity = correlation(changes[i], changes[j])
                aligned.append(gene_alignment(z[i], z[j], similarity, **self.alignment))
        return terms | ({"map": sum(aligned) / len(aligned)} if aligned else {})


def _labelled(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy over the samples that have a label."""
    known = labels >= 0
    return F.cross_entropy(scores[known], labels[known]) if known.any() else scores.sum() * 0.0
