"""Gene vectors, the transformer over gene tokens, and what reads its output."""

from __future__ import annotations

import torch
from torch import nn


class GeneVectors(nn.Module):
    r"""A vector for every gene, and an affine map of each species into the shared space, :math:`z_g = P_s^\top e_g`.

    Parameters
    ----------
    species
        Species of every gene, as a number, shape ``(n_genes,)``.
    n_hidden
        Width of a gene's own vector :math:`e_g`.
    n_latent
        Width of the shared space.
    """

    def __init__(self, species: torch.Tensor, n_hidden: int, n_latent: int):
        super().__init__()
        self.register_buffer("species", species)
        self.embedding = nn.Embedding(len(species), n_hidden)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.projections = nn.ModuleList(nn.Linear(n_hidden, n_latent) for _ in range(int(species.max()) + 1))
        for projection in self.projections:  # the same for all species at first
            nn.init.eye_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(self, genes: torch.Tensor, species: int) -> torch.Tensor:
        """Vectors in the shared space, shape ``(n_genes, n_latent)``, of genes of one species."""
        return self.projections[species](self.embedding(genes))


class ReactomeHead(nn.Module):
    r"""What a gene does in every organ and under every drug, linear in its vector.

    .. math::

        \hat\Delta_{gok} = z_g^\top (a_k + b_o + c_{ok}), \qquad
        \hat h_{go} = z_g^\top p_o, \qquad \hat m_g = z_g^\top l,

    the change under drug :math:`k` in organ :math:`o`, the deviation of the organ from the gene's mean, and that mean, all of
    control samples but the first and in units of their spread over genes. The :math:`c_{ok}` of an organ and drug that were measured
    together nowhere stays 0.

    Parameters
    ----------
    n_latent
        Width of the shared space.
    n_organs, n_drugs
        Organs, and drugs without the control.
    """

    def __init__(self, n_latent: int, n_organs: int, n_drugs: int):
        super().__init__()
        shapes = {
            "drug": (1, n_drugs, n_latent),
            "organ": (n_organs, 1, n_latent),
            "interaction": (n_organs, n_drugs, n_latent),
            "profile": (n_organs, n_latent),
            "level": (1, n_latent),
        }
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(0.1 * torch.randn(shape)))
        nn.init.zeros_(self.interaction)

    @property
    def conditions(self) -> torch.Tensor:
        """Vectors of organ and drug, :math:`a_k + b_o + c_{ok}`, shape ``(n_organs, n_drugs, n_latent)``."""
        return self.drug + self.organ + self.interaction

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Changes, organ by organ and within it drug by drug; organs; and the level. Shape ``(n_genes, n_entries)``."""
        vectors = torch.cat([self.conditions.flatten(0, 1), self.profile, self.level])
        return z @ vectors.T

    def squares(self, organ_penalty: float = 1.0) -> torch.Tensor:
        """Sum of all squares, those of :math:`b_o` times a factor."""
        return sum(
            (organ_penalty if name == "organ" else 1.0) * parameter.square().sum()
            for name, parameter in self.named_parameters()
        )


class SampleEncoder(nn.Module):
    r"""Transformer over the genes of a sample; no order of genes.

    The sample's own token starts from :math:`u_i = \frac{\sqrt{M}}{|V_i|} \sum_{g \in V_i} x_{ig} z_g` (ours), the values that are
    shown on the vectors of their genes: genes that do the same, of whatever species, move it in the same way.

    Parameters
    ----------
    n_latent
        Width of gene vectors.
    n_hidden, n_layers, n_heads, n_feedforward
        Of the transformer.
    dropout_rate
        Of its layers, but not of the attention's weights.
    n_bins
        Bins of the values; None for continuous values.
    condition_sizes
        Numbers of categories of conditions that are tokens as well.
    """

    def __init__(
        self,
        n_latent: int,
        n_hidden: int,
        n_layers: int,
        n_heads: int,
        n_feedforward: int,
        dropout_rate: float,
        n_bins: int | None = None,
        condition_sizes: tuple[int, ...] = (),
    ):
        super().__init__()
        self.gene = nn.Linear(n_latent, n_hidden)
        self.value: nn.Module
        if n_bins is None:
            self.value = nn.Sequential(
                nn.Linear(1, n_hidden), nn.ReLU(), nn.Linear(n_hidden, n_hidden), nn.LayerNorm(n_hidden)
            )
        else:
            self.value = nn.Embedding(n_bins, n_hidden)
        self.n_bins = n_bins
        self.conditions = nn.ModuleList(nn.Embedding(size, n_hidden) for size in condition_sizes)
        self.hidden_value = nn.Parameter(0.02 * torch.randn(n_hidden))
        self.sample = nn.Parameter(0.02 * torch.randn(n_hidden))
        self.pool = nn.Linear(n_latent, n_hidden, bias=False)
        layer = nn.TransformerEncoderLayer(
            n_hidden, n_heads, n_feedforward, dropout_rate, activation="gelu", batch_first=True
        )
        # weights that are dropped have to be there: without, attention is several times faster and its memory linear
        layer.self_attn.dropout = 0.0
        # nested tensors are for padding, which there is none of
        self.layers = nn.TransformerEncoder(layer, n_layers, enable_nested_tensor=False)

    def forward(
        self,
        genes: torch.Tensor,
        values: torch.Tensor,
        hidden: torch.Tensor | None = None,
        bins: torch.Tensor | None = None,
        conditions: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Representations of the sample, in the first place, and of its genes; and where the sample started from.

        Parameters
        ----------
        genes
            Gene vectors, shape ``(n_tokens, n_latent)``, the same for all samples.
        values
            Values of the genes, relative to their means, shape ``(n_samples, n_tokens)``.
        hidden
            Which values not to show, of the same shape.
        bins
            Numbers of the values' bins, of the same shape, where tokens have these.
        conditions
            Categories of conditions, shape ``(n_samples, n_conditions)``.

        Returns
        -------
        Tensors of shape ``(n_samples, 1 + n_tokens, n_hidden)`` and :math:`u`, ``(n_samples, n_latent)``.
        """
        encoded = self.value(values.unsqueeze(-1) if self.n_bins is None else bins)
        if hidden is not None:
            encoded = torch.where(hidden.unsqueeze(-1), self.hidden_value, encoded)
        tokens = self.gene(genes) + encoded
        for i, embedding in enumerate(self.conditions):
            tokens = tokens + embedding(conditions[:, i]).unsqueeze(1)
        shown, n_shown = values.to(genes.dtype), values.shape[1]
        if hidden is not None:
            shown = shown.masked_fill(hidden, 0.0)
            n_shown = (~hidden).sum(dim=1, keepdim=True).clamp(min=1)
        start = shown @ genes * values.shape[1] ** 0.5 / n_shown
        first = self.sample + self.pool(start)
        return self.layers(torch.cat([first.unsqueeze(1), tokens], dim=1)), start


class SampleDecoder(nn.Module):
    r"""Value of any gene in a sample from the sample's vector, :math:`\hat x_{ig} = (A z_g + q(z_g))^\top W s_i + r(z_g)`.

    Parameters
    ----------
    n_latent, n_hidden
        Widths of the shared space and of the query.
    """

    def __init__(self, n_latent: int, n_hidden: int):
        super().__init__()
        self.linear = nn.Linear(n_latent, n_hidden + 1)
        self.query = nn.Sequential(nn.Linear(n_latent, n_hidden), nn.GELU(), nn.Linear(n_hidden, n_hidden + 1))
        self.key = nn.Linear(n_latent, n_hidden, bias=False)

    def forward(self, genes: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
        """Values, shape ``(n_samples, n_genes)``."""
        query = self.linear(genes) + self.query(genes)
        return self.key(samples) @ query[:, :-1].T / query.shape[1] ** 0.5 + query[:, -1]


def head(n_input: int, n_hidden: int, n_output: int) -> nn.Sequential:
    """A hidden layer, and scores."""
    return nn.Sequential(nn.Linear(n_input, n_hidden), nn.GELU(), nn.LayerNorm(n_hidden), nn.Linear(n_hidden, n_output))
