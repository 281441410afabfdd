r"""Count likelihoods that spend time only where it is needed.

:class:`scvi.distributions.NegativeBinomial` evaluates three log-gamma functions for every entry of a mini-batch.
For a count of zero they cancel, and nine in ten counts are zero; :math:`\log\Gamma(x + 1)` has no gradient at all.
The functions below are the same likelihoods with those terms left out where they are zero.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

EPS = 1e-8
# Values of 4 bytes that a fast cache of a CPU holds beside others.
CACHED = 2**18


def _count_terms(x: torch.Tensor, mu: torch.Tensor, theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Terms of the NB log-likelihood that vanish at ``x = 0``, summed per cell, and the mask of non-zero counts."""
    nonzero = x > 0
    rows, genes = nonzero.nonzero(as_tuple=True)
    flat = rows * x.shape[1] + genes
    x_nz, mu_nz = x.reshape(-1).index_select(0, flat), mu.reshape(-1).index_select(0, flat)
    if theta.ndim == 1:
        theta_nz, lgamma_nz = (values.index_select(0, genes) for values in (theta, torch.lgamma(theta)))
    else:
        theta_nz = theta.reshape(-1).index_select(0, flat)
        lgamma_nz = torch.lgamma(theta_nz)
    terms = (
        torch.lgamma(x_nz + theta_nz)
        - lgamma_nz
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
        Cells evaluated at a time, with all of their candidates; by default 64, but on a CPU as many candidates of one cell
        as fit its cache. Does not change the result.

    Returns
    -------
    Tensor of shape ``(n_cells, n_candidates)``, in nats.
    """
    n_cells, n_candidates = candidates.shape
    n_columns = n_candidates
    if chunk is None and x.device.type == "cpu":
        n_rows = max(1, CACHED // x.shape[1])
        chunk, n_columns = (n_rows, 1) if n_candidates == 1 else (1, min(n_rows, n_candidates))
    chunk = 64 if chunk is None else chunk
    ratio = scale / theta
    # where cells share their candidates, the logarithms of all profiles are fewer than those at each cell's counts
    logs = torch.log(ratio + EPS) if candidates.numel() > 4 * len(ratio) else None
    softplus = None if zi_logits is None else F.softplus(-zi_logits).sum(1)
    scores = torch.empty(candidates.shape, dtype=x.dtype, device=x.device)
    # memory that is used again is several times quicker than new memory
    work = ratio.new_empty((1 if zi_logits is None else 2, min(chunk, n_cells) * n_columns, x.shape[1]))
    for start in range(0, n_cells, chunk):
        rows = slice(start, start + chunk)
        counts = x[rows]
        theta_rows = theta if theta.ndim == 1 else theta[candidates[rows, 0]]
        weights = counts + theta_rows
        if zi_logits is not None:
            nonzero = (counts > 0).unsqueeze(1)
            most = torch.zeros_like(nonzero, dtype=x.dtype).masked_fill_(nonzero, torch.inf)
            # the sigmoid of 30 is one, and that of far larger values slow
            added = 30 * nonzero.to(x.dtype)
        for first in range(0, n_candidates, n_columns):
            columns = slice(first, first + n_columns)
            index = candidates[rows, columns]
            flat = index.reshape(-1)

            def select(table, buffer, flat=flat, shape=index.shape):
                return torch.index_select(table, 0, flat, out=work[buffer, : len(flat)]).view(*shape, -1)

            score = _count_weighted_log(ratio, index, counts) if logs is None else _dot(select(logs, 0), counts)
            log_rate = select(ratio, 0).mul_(library[rows].unsqueeze(-1)).log1p_()
            if zi_logits is None:
                scores[rows, columns] = score.sub_(_dot(log_rate, weights))
                continue
            score -= _dot(log_rate, counts).add_(softplus[index])
            # with v = u + theta log(1 + l r), a count adds -v and a zero softplus(-v) = log(1 + exp(-|v|)) - min(v, 0)
            v = select(zi_logits, 1).addcmul_(log_rate, theta_rows.view(-1, 1, theta_rows.shape[-1]))
            score -= torch.minimum(v, most, out=log_rate).sum(-1)
            scores[rows, columns] = score.add_(_sum_log1p_exp_neg(v.abs_().add_(added)))
    return scores


def _dot(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Products of ``(n_cells, n_candidates, n_genes)`` with ``(n_cells, n_genes)``, summed over genes."""
    if len(values) == 1:
        return torch.mv(values[0], weights[0]).unsqueeze(0)
    if values.shape[1] == 1:
        return torch.sum(values[:, 0] * weights, dim=1, keepdim=True)
    return torch.bmm(values, weights.unsqueeze(-1)).squeeze(-1)


def _count_weighted_log(ratio: torch.Tensor, index: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Sums over genes of counts times the logarithm of the candidates' ratios."""
    if len(index) == 1:
        genes = counts[0].nonzero().squeeze(1)
        return torch.mv(torch.log(ratio[index[0].unsqueeze(1), genes] + EPS), counts[0, genes]).unsqueeze(0)
    return _dot(torch.log(ratio[index] + EPS), counts)


def _sum_log1p_exp_neg(values: torch.Tensor, n_factors: int = 16) -> torch.Tensor:
    r"""Sums over genes of :math:`\log(1 + e^{-v}) = -\log\sigma(v)` for :math:`v \ge 0`; overwrites the values.

    A logarithm costs more than the rest: products of ``n_factors`` values, each at least one half, share one.
    """
    values = values.sigmoid_()
    split = values.shape[-1] // n_factors * n_factors
    products = values[..., :split].unflatten(-1, (n_factors, -1)).prod(-2)
    return -(products.log_().sum(-1) + values[..., split:].log().sum(-1))
