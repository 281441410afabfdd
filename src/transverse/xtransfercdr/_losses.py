"""The terms of the loss that are not reconstructions. Means over pairs."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def orthogonality(basal: torch.Tensor, effect: torch.Tensor) -> torch.Tensor:
    r"""Squared scalar product of basal state and effect, :math:`\frac{1}{B} \sum_i \langle S_i, P_i \rangle^2`.

    Both are non-negative, so that zero means disjoint supports.

    Parameters
    ----------
    basal, effect
        Tensors of shape ``(n_cells, n_latent)``.
    """
    return (basal * effect).sum(dim=1).square().mean()


def similarity(left: torch.Tensor, right: torch.Tensor, symmetric: bool = False) -> torch.Tensor:
    r"""Kullback-Leibler divergence between the softmax of two representations.

    :math:`\frac{1}{B} \sum_i \mathrm{KL}(\mathrm{softmax}(R_i) \,\|\, \mathrm{softmax}(L_i))`, with gradients through
    both sides.

    Parameters
    ----------
    left, right
        Tensors of shape ``(n_pairs, n_latent)``.
    symmetric
        Mean of both directions (ours).
    """
    if not len(left):
        return left.new_zeros(())
    p, q = F.log_softmax(left, dim=1), F.log_softmax(right, dim=1)
    divergence = F.kl_div(p, q, reduction="batchmean", log_target=True)
    if symmetric:
        divergence = (divergence + F.kl_div(q, p, reduction="batchmean", log_target=True)) / 2
    return divergence


def masked_mse(predicted: torch.Tensor, observed: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean squared error over genes and the cells in ``mask``; 0 without any."""
    if not mask.any():
        return predicted.new_zeros(())
    return F.mse_loss(predicted[mask], observed[mask])
