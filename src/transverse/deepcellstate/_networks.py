"""Encoder and decoder: the reference's, which is the same for every gene, and the paper's dense layers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

Architecture = Literal["dense", "pointwise"]

_SLOPE = 0.2


def hidden_layers(widths: Sequence[int]) -> nn.Sequential:
    """Linear maps from width to width, each followed by a leaky ReLU."""
    return nn.Sequential(*(m for pair in pairwise(widths) for m in (nn.Linear(*pair), nn.LeakyReLU(_SLOPE))))


class DenseEncoder(nn.Sequential):
    """Dense hidden layers and a linear map to the latent space, as the paper's text may be read."""

    def __init__(self, n_genes: int, n_hidden: Sequence[int], n_latent: int):
        super().__init__(*hidden_layers((n_genes, *n_hidden)), nn.Linear(n_hidden[-1], n_latent))


class PointwiseEncoder(nn.Module):
    """Hidden layers that see one gene at a time and are the same for all, and a linear map of all to the latent space."""

    def __init__(self, n_genes: int, n_hidden: Sequence[int], n_latent: int):
        super().__init__()
        self.hidden = hidden_layers((1, *n_hidden))
        self.latent = nn.Linear(n_genes * n_hidden[-1], n_latent, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tensor of shape ``(n_signatures, n_latent)`` from ``(n_signatures, n_genes)``."""
        return self.latent(self.hidden(x.unsqueeze(-1)).flatten(1))


class Decoder(nn.Module):
    r"""What decoders have in common: :math:`\tanh(f(z) + w \odot x + b)` with the input :math:`x` of the skip connection.

    Parameters
    ----------
    n_skip
        Weights of the skip connection, one for all genes (reference) or one for each; 0 for none.
    dropout_rate
        Of the last hidden layer.
    """

    def __init__(self, n_skip: int, dropout_rate: float):
        super().__init__()
        self.dropout_rate = dropout_rate
        # as the weights of a layer of that many inputs, or nought: nothing is copied at first
        self.skip = nn.Parameter(torch.zeros(n_skip)) if n_skip else None

    def forward(self, z: torch.Tensor, x: torch.Tensor | None) -> torch.Tensor:
        """Signatures in ``[-1, 1]``, shape ``(n_signatures, n_genes)``; without ``x`` the skip connection is left out."""
        y = self.readout(F.dropout(self.features(z), self.dropout_rate, self.training))
        if self.skip is not None and x is not None:
            y = y + self.skip * x
        return torch.tanh(y)


class DenseDecoder(Decoder):
    """The dense encoder's mirror image. The skip connection has a weight for each gene."""

    def __init__(self, n_latent: int, n_hidden: Sequence[int], n_genes: int, dropout_rate: float, skip: bool):
        super().__init__(n_genes if skip else 0, dropout_rate)
        widths = (n_latent, *reversed(n_hidden))
        self.features = hidden_layers(widths)
        self.readout = nn.Linear(widths[-1], n_genes)


class PointwiseDecoder(Decoder):
    """A dense map of the latent to some numbers for each gene, and layers on these that are the same for all genes."""

    def __init__(self, n_latent: int, n_hidden: Sequence[int], n_genes: int, dropout_rate: float, skip: bool):
        super().__init__(1 if skip else 0, dropout_rate)
        widths = tuple(reversed(n_hidden))
        self.spread = nn.Linear(n_latent, n_genes * widths[0])
        self.hidden = hidden_layers((widths[0], *widths))
        self.output = nn.Linear(widths[-1], 1)
        self.n_genes = n_genes

    def features(self, z: torch.Tensor) -> torch.Tensor:
        """Features of every gene, shape ``(n_signatures, n_genes, width)``."""
        return self.hidden(self.spread(z).unflatten(1, (self.n_genes, -1)))

    def readout(self, features: torch.Tensor) -> torch.Tensor:
        """A number for every gene."""
        return self.output(features).squeeze(-1)


NETWORKS: dict[str, tuple[type[nn.Module], type[Decoder]]] = {
    "dense": (DenseEncoder, DenseDecoder),
    "pointwise": (PointwiseEncoder, PointwiseDecoder),
}
