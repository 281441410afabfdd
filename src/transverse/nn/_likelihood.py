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
    return (torch.where(nonzero, q, F.softplus(q)) - F.softplus(-zi_logits)).sum(-1) + counts


def candidate_log_likelihood(
    x: torch.Tensor,
    library: torch.Tensor,
    scale: torch.Tensor,
    theta: torch.Tensor,
    candidates: torch.Tensor,
    zi_logits: torch.Tensor | None = None,
    max_pairs: int = 256,
) -> torch.Tensor:
    r"""Log-likelihood of every cell under each of its candidates' decoded profiles, up to a constant per cell.

    With :math:`\mu = \ell\rho` and :math:`\theta` free of the candidate, only

    .. math::
        \sum_g x_g \log \rho_g - (x_g + \theta_g) \log(\theta_g + \ell\rho_g)

    of the negative binomial's log-likelihood depends on the candidate: every log-gamma term, and every term in
    :math:`x` and :math:`\theta` alone, drops out of a comparison. The zero-inflated likelihood keeps its two softplus
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
        Inverse dispersions of shape ``(n_genes,)`` or ``(n_cells, n_genes)``.
    candidates
        Rows of ``scale``, of shape ``(n_cells, n_candidates)``.
    zi_logits
        Logits of the dropout probability, shaped like ``scale``, for the zero-inflated likelihood.
    max_pairs
        Pairs of cell and candidate evaluated at a time; bounds the memory, not the result.

    Returns
    -------
    Tensor of shape ``(n_cells, n_candidates)``, in nats.
    """
    n_cells, n_candidates = candidates.shape
    theta = theta.expand_as(x)
    # x log(rho) is a matrix product over the profiles, which many cells share
    log_scale = torch.log(scale + EPS / library.mean())
    scores = torch.gather(x @ log_scale.T, 1, candidates)
    chunk = max(1, max_pairs // n_candidates)
    for start in range(0, n_cells, chunk):
        rows = slice(start, start + chunk)
        log_rate = scale[candidates[rows]].mul_(library[rows].unsqueeze(-1))
        theta_rows = theta[rows].unsqueeze(1)
        log_rate.add_(theta_rows + EPS).log_()
        if zi_logits is None:
            scores[rows] -= torch.bmm(log_rate, (x[rows] + theta[rows]).unsqueeze(-1)).squeeze(-1)
            continue
        u = zi_logits[candidates[rows]]
        q = theta_rows * (torch.log(theta_rows + EPS) - log_rate) - u
        is_zero = (x[rows] == 0).unsqueeze(1)
        scores[rows] += (torch.where(is_zero, F.softplus(q), q) - F.softplus(-u)).sum(-1)
        scores[rows] -= torch.bmm(log_rate, x[rows].unsqueeze(-1)).squeeze(-1)
    return scores
