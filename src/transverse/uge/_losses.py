"""Terms of the loss."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def elastic_similarity(z: torch.Tensor, threshold: float = 0.3, rectify: bool = True) -> torch.Tensor:
    r"""Elastic similarity (ECS) of samples, :math:`-\frac{1}{B(B-1)} \sum_{i \ne j} (\cos(z_i, z_j) - \beta)^2`.

    It is lowest where no pair is at the threshold :math:`\beta`: pairs above it are drawn together, pairs below it apart.
    Rectified, negative similarities count as 0, and such pairs are left where they are.

    Parameters
    ----------
    z
        Representations, shape ``(n_samples, n_latent)``.
    threshold
        :math:`\beta`; not given in the paper.
    rectify
        Whether to set negative similarities to 0, as scGPT does.
    """
    n = len(z)
    if n < 2:
        return z.new_zeros(())
    z = F.normalize(z, dim=1)
    similarity = z @ z.T
    if rectify:
        similarity = similarity.relu()
    terms = (similarity - threshold).square()
    return -(terms.sum() - terms.diagonal().sum()) / (n * (n - 1))


def soft_targets(similarity: torch.Tensor, temperature: float, n_neighbors: int) -> torch.Tensor:
    """Softmax over the largest similarities of each row, 0 elsewhere.

    Parameters
    ----------
    similarity
        Shape ``(n_rows, n_columns)``.
    temperature
        Of the softmax.
    n_neighbors
        How many of a row to keep.
    """
    # in mixed precision some devices take the softmax in single precision, others do not
    similarity = similarity.to(torch.promote_types(similarity.dtype, torch.float32))
    kept = similarity.topk(min(n_neighbors, similarity.shape[1]), dim=1)
    weights = torch.zeros_like(similarity)
    return weights.scatter(1, kept.indices, (kept.values / temperature).softmax(dim=1))


def gene_alignment(
    z: torch.Tensor,
    other: torch.Tensor,
    similarity: torch.Tensor,
    temperature: float = 0.1,
    target_temperature: float = 0.1,
    n_neighbors: int = 10,
) -> torch.Tensor:
    r"""Cross-entropy of the similarity of genes between their reactomes and between their representations.

    .. math::

        L_\mathrm{map} = -\frac{1}{2 |G|} \sum_g \sum_{g'} \mathrm{softmax}_{g'}(R_{gg'} / \tau_R)
            \log \mathrm{softmax}_{g'}(\cos(z_g, z_{g'}) / \tau) + \text{the same from } g' \text{ to } g,

    with the targets restricted to the most similar genes.

    Parameters
    ----------
    z, other
        Representations of genes of two species, shapes ``(n_genes, n_latent)`` and ``(n_other_genes, n_latent)``.
    similarity
        :math:`R` of their reactomes, shape ``(n_genes, n_other_genes)``.
    temperature, target_temperature
        :math:`\tau` and :math:`\tau_R`.
    n_neighbors
        Genes of the other species to keep as targets of a gene.
    """
    logits = F.normalize(z, dim=1) @ F.normalize(other, dim=1).T / temperature
    terms = [
        -(soft_targets(r, target_temperature, n_neighbors) * scores.log_softmax(dim=1)).sum(dim=1).mean()
        for r, scores in ((similarity, logits), (similarity.T, logits.T))
    ]
    return (terms[0] + terms[1]) / 2


def reactome_error(predicted: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
    """Mean squared error over the entries that were measured; NaN where one was not.

    Parameters
    ----------
    predicted, observed
        Shape ``(n_genes, n_entries)``.
    """
    measured = ~observed.isnan()
    error = torch.where(measured, predicted - torch.nan_to_num(observed), 0.0).square()
    return error.sum() / measured.sum().clamp(min=1)


def correlation(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Pearson correlation of every row of ``x`` with every row of ``y``, over the entries that all of them have."""
    shared = ~(x.isnan().any(dim=0) | y.isnan().any(dim=0))
    x, y = (F.normalize(v[:, shared] - v[:, shared].mean(dim=1, keepdim=True), dim=1) for v in (x, y))
    return x @ y.T
