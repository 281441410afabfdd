"""Encoder and decoder: the reference's, with residual blocks, and the paper's plain stack."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import nn

Architecture = Literal["residual", "plain"]
Activation = Literal["relu", "softplus", "linear"]

_ACTIVATIONS = {"relu": nn.ReLU, "softplus": nn.Softplus, "linear": nn.Identity}


def hidden_layer(n_in: int, n_out: int, dropout_rate: float) -> nn.Sequential:
    """Linear map, batch normalisation, dropout and ReLU, in the reference's order."""
    return nn.Sequential(nn.Linear(n_in, n_out), nn.BatchNorm1d(n_out), nn.Dropout(dropout_rate), nn.ReLU())


class ResidualBlock(nn.Module):
    """Two hidden layers whose output is added to their input; nothing follows the sum."""

    def __init__(self, width: int, dropout_rate: float):
        super().__init__()
        self.layers = nn.Sequential(hidden_layer(width, width, dropout_rate), hidden_layer(width, width, dropout_rate))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tensor of the shape of ``x``: ``(n_cells, width)``."""
        return self.layers(x) + x


def make_encoder(
    n_input: int,
    n_hidden: Sequence[int],
    n_latent: int,
    n_residual_blocks: int,
    dropout_rate: float,
    architecture: Architecture,
) -> nn.Sequential:
    """Network from ``(n_cells, n_input)`` to non-negative ``(n_cells, n_latent)``.

    ``"residual"``: hidden layers, residual blocks after the second of them (or after the only one), and a linear map
    with ReLU. ``"plain"``: hidden layers all along, the latent one too, no blocks.
    """
    layers = [hidden_layer(*widths, dropout_rate) for widths in pairwise((n_input, *n_hidden))]
    if architecture == "plain":
        return nn.Sequential(*layers, hidden_layer(n_hidden[-1], n_latent, dropout_rate))
    at = min(2, len(n_hidden))
    layers[at:at] = [ResidualBlock(n_hidden[at - 1], dropout_rate) for _ in range(n_residual_blocks)]
    return nn.Sequential(*layers, nn.Linear(n_hidden[-1], n_latent), nn.ReLU())


def make_decoder(
    n_latent: int,
    n_hidden: Sequence[int],
    n_output: int,
    n_residual_blocks: int,
    dropout_rate: float,
    architecture: Architecture,
    activation: Activation,
) -> nn.Sequential:
    """The encoder's mirror image, from ``(n_cells, n_latent)`` to ``(n_cells, n_output)``."""
    widths = tuple(reversed(n_hidden))
    layers = [hidden_layer(*pair, dropout_rate) for pair in pairwise((n_latent, *widths))]
    if architecture == "residual":
        at = len(widths) - min(2, len(widths)) + 1
        layers[at:at] = [ResidualBlock(widths[at - 1], dropout_rate) for _ in range(n_residual_blocks)]
    return nn.Sequential(*layers, nn.Linear(widths[-1], n_output), _ACTIVATIONS[activation]())


def check_network(n_hidden, n_latent, n_residual_blocks, architecture, dropout_rate, output_activation) -> None:
    sizes = {"n_hidden": n_hidden, "n_latent": [n_latent]}
    for name, widths in sizes.items():
        if not widths or min(widths) < 1:
            raise ValueError(f"{name} must be positive, but got {widths if name == 'n_hidden' else n_latent}.")
    if n_residual_blocks < 0:
        raise ValueError(f"n_residual_blocks={n_residual_blocks} must not be negative.")
    if not 0 <= dropout_rate < 1:
        raise ValueError(f"dropout_rate={dropout_rate} must be at least 0 and below 1.")
    for name, value, known in (
        ("architecture", architecture, ("residual", "plain")),
        ("output_activation", output_activation, ("relu", "softplus", "linear")),
    ):
        if value not in known:
            raise ValueError(f"{name}={value!r} must be one of {', '.join(map(repr, known))}.")
