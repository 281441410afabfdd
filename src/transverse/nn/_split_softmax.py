from __future__ import annotations

import torch
from torch import nn


class SplitSoftmax(nn.Module):
    r"""Two softmax functions side by side, over the genes with and without an orthologue.

    .. math::
        \rho_{hom} = \frac{H}{N} \operatorname{softmax}(y_{hom}), \qquad
        \rho_{non} = \frac{N - H}{N} \operatorname{softmax}(y_{non})

    so that :math:`\sum_g \rho_g = 1` and the two groups of genes do not compete (scSpecies, reference implementation).

    Parameters
    ----------
    is_shared
        Boolean tensor of shape ``(n_genes,)``: whether a gene has an orthologue in the context.
    """

    def __init__(self, is_shared: torch.Tensor):
        super().__init__()
        is_shared = torch.as_tensor(is_shared, dtype=torch.bool)
        n_genes, n_shared = is_shared.numel(), int(is_shared.sum())
        self.register_buffer("is_shared", is_shared)
        log_share = torch.full((n_genes,), 0.0)
        if 0 < n_shared < n_genes:
            log_share[is_shared] = torch.log(torch.tensor(n_shared / n_genes))
            log_share[~is_shared] = torch.log(torch.tensor(1 - n_shared / n_genes))
        self.register_buffer("log_share", log_share)

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        """Map logits of shape ``(..., n_genes)`` to proportions that sum to one."""
        shared = logits.masked_fill(~self.is_shared, -torch.inf)
        other = logits.masked_fill(self.is_shared, -torch.inf)
        log_norm = torch.where(
            self.is_shared,
            torch.logsumexp(shared, dim=-1, keepdim=True),
            torch.logsumexp(other, dim=-1, keepdim=True),
        )
        return torch.exp(logits - log_norm + self.log_share)
