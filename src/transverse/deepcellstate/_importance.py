"""Which inputs a network's predictions rest on: the best of random subsets, and integrated gradients."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional as F

Network = Callable[[torch.Tensor], torch.Tensor]


def draw_subsets(rng: np.random.Generator, n_subsets: int, subset_size: int, allowed: np.ndarray) -> np.ndarray:
    """Random subsets of the genes that are ``allowed``, as a mask of shape ``(n_subsets, n_genes)``."""
    genes = np.flatnonzero(allowed)
    smallest = rng.random((n_subsets, len(genes))).argpartition(subset_size - 1, axis=1)[:, :subset_size]
    subsets = np.zeros((n_subsets, len(allowed)), dtype=bool)
    np.put_along_axis(subsets, genes[smallest], True, axis=1)
    return subsets


def subset_scores(
    network: Network,
    source: torch.Tensor,
    truth: torch.Tensor,
    subsets: np.ndarray,
    scored: np.ndarray,
    batch_size: int,
) -> np.ndarray:
    """Pearson correlation of the truth with the prediction from each subset of the source's genes, all others being 0.

    Parameters
    ----------
    network
        Predictions from inputs, both of shape ``(n, n_genes)``.
    source, truth
        Signatures, shape ``(n_signatures, n_genes)``.
    subsets
        Masks, shape ``(n_signatures, n_subsets, n_genes)``.
    scored
        Mask of the genes to correlate over, shape ``(n_genes,)``.
    batch_size
        Predictions to make at once, of whatever signatures.

    Returns
    -------
    Array of shape ``(n_signatures, n_subsets)``; 0 for a prediction that is constant.
    """
    n_signatures, n_subsets, n_genes = subsets.shape
    masks = torch.from_numpy(subsets.reshape(-1, n_genes))
    where = torch.from_numpy(np.flatnonzero(scored)).to(source.device)
    scores = []
    with torch.inference_mode():
        truth = _centred(truth[:, where])
        for batch in torch.arange(n_signatures * n_subsets).split(batch_size):
            row = (batch // n_subsets).to(source.device)
            predicted = network(source[row] * masks[batch].to(source.device))
            scores.append(F.cosine_similarity(_centred(predicted[:, where]), truth[row], dim=1).cpu())
    return torch.cat(scores).numpy().reshape(n_signatures, n_subsets)


def count_best(scores: np.ndarray, subsets: np.ndarray, n_best: int) -> np.ndarray:
    """In how many of its ``n_best`` subsets every gene is, for each signature, shape ``(n_signatures, n_genes)``."""
    # rounded, for what differs by the arithmetic alone to keep its order
    order = np.argsort(-np.round(scores.astype(float), 5), axis=1, kind="stable")[:, :n_best]
    return np.take_along_axis(subsets, order[:, :, None], axis=1).sum(axis=1)


@torch.inference_mode(False)
def integrated_gradients(
    network: Network, x: torch.Tensor, direction: torch.Tensor, n_steps: int, batch_size: int
) -> torch.Tensor:
    r"""Attribution of :math:`f(x) = D(x)^\top v` to the inputs, along the straight path from 0, by the midpoint rule.

    .. math::

        a_i = x_i \frac{1}{m} \sum_{k=1}^{m} \frac{\partial f}{\partial x_i} \left(\frac{k - 1/2}{m} x\right),
        \qquad \sum_i a_i \to f(x) - f(0).

    Parameters
    ----------
    network
        :math:`D`, of inputs of shape ``(n, n_genes)``.
    x, direction
        Inputs, and :math:`v` of each, shape ``(n_inputs, n_genes)``.
    n_steps
        Points on the path, :math:`m`.
    batch_size
        Gradients to take at once, of whatever inputs.

    Returns
    -------
    Tensor of shape ``(n_inputs, n_genes)``.
    """
    total = torch.zeros_like(x)
    for batch in torch.arange(len(x) * n_steps, device=x.device).split(batch_size):
        row = batch // n_steps
        share = (batch % n_steps + 0.5) / n_steps
        gradient = input_gradient(lambda inputs, v=direction[row]: (network(inputs) * v).sum(), x[row] * share[:, None])
        total.index_add_(0, row, gradient)
    return x * total / n_steps


def input_gradient(f: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Gradient of a scalar by the inputs alone; parameters keep theirs."""
    with torch.enable_grad():
        x = x.clone().requires_grad_()
        return torch.autograd.grad(f(x), x)[0]


@torch.inference_mode(False)
def ascend(
    network: Network, start: torch.Tensor, genes: torch.Tensor, *, n_steps: int, step_size: float, penalty: float
) -> torch.Tensor:
    r"""Inputs for which the output of a gene is high, for each of several genes :math:`r`.

    .. math::

        x \leftarrow x + \eta \frac{\nabla f}{\lVert \nabla f \rVert_2},
        \qquad f(x) = D(x)_r - \frac{\lambda}{G} \sum_g x_g

    Parameters
    ----------
    network
        :math:`D`, of inputs of shape ``(n, n_genes)``.
    start
        Where to start, shape ``(n_genes,)``.
    genes
        Positions of the genes.
    n_steps, step_size, penalty
        Number of steps, their length :math:`\eta`, and :math:`\lambda`.

    Returns
    -------
    Tensor of shape ``(len(genes), n_genes)``.
    """
    x, genes = start.repeat(len(genes), 1), genes.clone()
    own = torch.arange(len(genes), device=x.device)
    for _ in range(n_steps):
        gradient = input_gradient(lambda inputs: (network(inputs)[own, genes] - penalty * inputs.mean(dim=1)).sum(), x)
        x = x + step_size * F.normalize(gradient, dim=1)
    return x


def _centred(x: torch.Tensor) -> torch.Tensor:
    return x - x.mean(dim=1, keepdim=True)
