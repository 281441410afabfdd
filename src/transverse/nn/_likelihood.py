r"""Count likelihoods that spend time only where it is needed.

:class:`scvi.distributions.NegativeBinomial` evaluates three log-gamma functions for every entry of a mini-batch.
For a count of zero they cancel, and nine in ten counts are zero; :math:`\log\Gamma(x + 1)` has no gradient at all.
The functions below are the same likelihoods with those terms left out where they are zero.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

EPS = 1e-8


def _count_terms(x: torch.Tensor, mu: torch.Tensor, theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Terms of the NB log-likelihood that vanish at ``x = 0``, summed per cell, and the mask of non-zero counts."""
    nonzero = x > 0
    rows = nonzero.nonzero()[:, 0]
    x_nz = x[nonzero]
    theta_nz = theta.expand_as(x)[nonzero]
    mu_nz = mu[nonzero]
    terms = (
        torch.lgamma(x_nz + theta_nz)
        - torch.lgamma(theta_nz)
        - torch.lgamma(x_nz + 1)
        + x_nz * (torch.log(mu_nz + EPS) - torch.log(theta_nz + mu_nz + EPS))
    )
    return torch.zeros(x.shape[0], dtype=terms.dtype, device=x.device).index_add(0, rows, terms), nonzero


def nb_log_likelihood(x: torch.Tensor, mu: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    r"""Log-likelihood of counts under a negative binomial, summed over genes.

    .. math::
        \log p(x) = \sum_g \theta_g \log\frac{\theta_g}{\theta_g + \mu_g}
        + \sum_{g: x_g > 0} \left[ \log\frac{\Gamma(x_g + \theta_g)}{\Gamma(\theta_g)\,\Gamma(x_g + 1)}
        + x_g \log\frac{\mu_g}{\theta_g + \mu_g} \right]

    Parameters
    ----------
    x
        Counts of shape ``(n_cells, n_genes)``.
    mu
        Means, same shape.
    theta
        Inverse dispersions of shape ``(n_genes,)`` or ``(n_cells, n_genes)``.

    Returns
    -------
    Tensor of shape ``(n_cells,)``, in nats; equal to ``NegativeBinomial(mu=mu, theta=theta).log_prob(x).sum(-1)``.
    """
    counts, _ = _count_terms(x, mu, theta)
    zeros = theta * (torch.log(theta + EPS) - torch.log(theta + mu + EPS))
    return zeros.sum(-1) + counts


def zinb_log_likelihood(
    x: torch.Tensor, mu: torch.Tensor, theta: torch.Tensor, zi_logits: torch.Tensor
) -> torch.Tensor:
    r"""Log-likelihood of counts under a zero-inflated negative binomial, summed over genes.

    With :math:`u` the logit of the dropout probability and
    :math:`q_g = -u_g + \theta_g \log\frac{\theta_g}{\theta_g + \mu_g}`, a zero contributes
    :math:`\mathrm{softplus}(q_g) - \mathrm{softplus}(-u_g)` and a count :math:`q_g - \mathrm{softplus}(-u_g)` plus the
    terms of :func:`nb_log_likelihood` for non-zero counts.

    Parameters and returned shape as in :func:`nb_log_likelihood`; ``zi_logits`` has shape ``(n_cells, n_genes)``.
    """
    counts, nonzero = _count_terms(x, mu, theta)
    q = theta * (torch.log(theta + EPS) - torch.log(theta + mu + EPS)) - zi_logits
    # softplus(q) = q + softplus(-q): a product with a mask is quicker than torch.where
    zeros = (~nonzero).to(q.dtype) * F.softplus(-q)
    return (q + zeros - F.softplus(-zi_logits)).sum(-1) + counts


def candidate_log_likelihood(
    x: torch.Tensor,
    library: torch.Tensor,
    scale: torch.Tensor,
    theta: torch.Tensor,
    candidates: torch.Tensor,
    zi_logits: torch.Tensor | None = None,
    chunk: int | None = None,
) -> torch.Tensor:
    r"""Log-likelihood of every cell under each of its candidates' decoded profiles, up to a constant per cell.

    With :math:`\mu = \ell\rho`, :math:`r = \rho / \theta` and :math:`\theta` free of the candidate, only

    .. math::
        \sum_{g: x_g > 0} x_g \log r_g - \sum_g (x_g + \theta_g) \log(1 + \ell r_g)

    of the negative binomial's log-likelihood depends on the candidate: every log-gamma term, and every term in
    :math:`x` and :math:`\theta` alone, drops out of a comparison. The zero-inflated likelihood keeps its softplus
    terms as well. Differences between candidates are those of the full likelihood.

    Parameters
    ----------
    x
        Counts of shape ``(n_cells, n_genes)``.
    library
        Library sizes (not their logarithms) of shape ``(n_cells, 1)``.
    scale
        Decoded proportions of shape ``(n_profiles, n_genes)``.
    theta
        Inverse dispersions of shape ``(n_genes,)``, or ``(n_profiles, n_genes)`` if they differ between batches: a cell
        and its candidates must then share them.
    candidates
        Rows of ``scale``, of shape ``(n_cells, n_candidates)``.
    zi_logits
        Logits of the dropout probability, shaped like ``scale``, for the zero-inflated likelihood.
    chunk
        Cells evaluated at a time; by default one on a CPU, where the candidates of a cell fit its cache, and 64 elsewhere.
        Does not change the result.

    Returns
    -------
    Tensor of shape ``(n_cells, n_candidates)``, in nats.
    """
    chunk = (1 if x.device.type == "cpu" else 64) if chunk is None else chunk
    ratio = scale / theta
    softplus = None if zi_logits is None else F.softplus(-zi_logits).sum(1)
    scores = torch.empty(candidates.shape, dtype=x.dtype, device=x.device)
    for start in range(0, len(x), chunk):
        rows = slice(start, start + chunk)
        index, counts = candidates[rows], x[rows]
        theta_rows = theta if theta.ndim == 1 else theta[index[:, 0]]
        flat = index.reshape(-1)
        log_rate = ratio.index_select(0, flat).view(*index.shape, -1).mul_(library[rows].unsqueeze(-1))
        log_rate.add_(1).log_()
        counts_term = _count_weighted_log(ratio, index, counts)
        if zi_logits is None:
            scores[rows] = counts_term - _dot(log_rate, counts + theta_rows)
            continue
        nonzero = (counts > 0).to(x.dtype)
        u = zi_logits.index_select(0, flat).view(*index.shape, -1)
        # q = -theta log(1 + l r) - u; a zero adds softplus(q), a count q
        q = torch.addcmul(u, log_rate, theta_rows.view(-1, 1, theta_rows.shape[-1])).neg_()
        score = counts_term - _dot(log_rate, counts) + _dot(q, nonzero) + _dot(F.softplus(q), 1 - nonzero)
        scores[rows] = score - softplus[index]
    return scores


def _dot(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Products of ``(n_cells, n_candidates, n_genes)`` with ``(n_cells, n_genes)``, summed over genes."""
    if len(values) == 1:
        return torch.mv(values[0], weights[0]).unsqueeze(0)
    return torch.bmm(values, weights.unsqueeze(-1)).squeeze(-1)


def _count_weighted_log(ratio: torch.Tensor, index: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Sums over genes of counts times the logarithm of the candidates' ratios."""
    if len(index) == 1:
        genes = counts[0].nonzero().squeeze(1)
        return torch.mv(torch.log(ratio[index[0].unsqueeze(1), genes] + EPS), counts[0, genes]).unsqueeze(0)
    return _dot(torch.log(ratio[index] + EPS), counts)
