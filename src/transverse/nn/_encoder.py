"""Access to the hidden layers of scvi-tools' encoder."""

from __future__ import annotations

import torch
from scvi.nn import FCLayers
from torch import nn


def encoder_linear_inputs(layers: FCLayers) -> list[int]:
    """Input width of the linear map of every hidden layer, covariates included."""
    return [next(m for m in block if isinstance(m, nn.Linear)).in_features for block in layers.fc_layers]


def encoder_inputs(layers: FCLayers, x: torch.Tensor, *categories: torch.Tensor) -> torch.Tensor:
    """Input of the first linear map of ``layers``: ``x``, then the one-hot covariates of more than one category.

    Parameters
    ----------
    layers
        Hidden layers of a :class:`scvi.nn.Encoder` (``encoder.encoder``).
    x
        Tensor of shape ``(n_cells, n_features)``: genes and continuous covariates.
    *categories
        Category codes of shape ``(n_cells, 1)``, one for each entry of ``layers.n_cat_list``.

    Returns
    -------
    Tensor of shape ``(n_cells, n_inputs)``.
    """
    one_hot = [
        nn.functional.one_hot(codes.squeeze(-1).long(), n_cat).to(x.dtype)
        for n_cat, codes in zip(layers.n_cat_list, categories, strict=False)
        if n_cat > 1
    ]
    return torch.cat((x, *one_hot), dim=-1)


def run_layers(layers: FCLayers, x: torch.Tensor, *categories: torch.Tensor, start: int = 0, stop: int | None = None):
    """Run the hidden layers ``start`` to ``stop`` of ``layers``.

    Covariates enter at the first layer only, which is what makes the later layers independent of the data set.

    Parameters
    ----------
    layers
        Hidden layers of a :class:`scvi.nn.Encoder` (``encoder.encoder``).
    x
        Tensor of shape ``(n_cells, n_features)``: the input of layer ``start``.
    *categories
        Category codes of shape ``(n_cells, 1)``, one for each entry of ``layers.n_cat_list``.
    start, stop
        Range of layers, as in a slice.

    Returns
    -------
    Tensor of shape ``(n_cells, n_hidden)``.
    """
    if start == 0:
        x = encoder_inputs(layers, x, *categories)
    for block in layers.fc_layers[start:stop]:
        for layer in block:
            if layer is not None:
                x = layer(x)
    return x
