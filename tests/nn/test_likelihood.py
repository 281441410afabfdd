import numpy as np
import pytest
import torch
from scipy import stats
from scvi.distributions import NegativeBinomial, ZeroInflatedNegativeBinomial

from transverse.nn import _likelihood, candidate_log_likelihood, nb_log_likelihood, zinb_log_likelihood


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    n_cells, n_genes, n_profiles = 7, 40, 11

    def rand(*shape):
        return torch.rand(*shape, generator=generator)

    scale = torch.softmax(3 * rand(n_profiles, n_genes), -1)
    return {
        "x": torch.poisson(2 * rand(n_cells, n_genes), generator=generator),
        "library": 20 + 80 * rand(n_cells, 1),
        "scale": scale,
        "theta": 0.2 + 3 * rand(n_genes),
        "theta_cells": 0.2 + 3 * rand(n_cells, n_genes),
        "zi_logits": 4 * rand(n_profiles, n_genes) - 2,
        "candidates": torch.randint(n_profiles, (n_cells, 5), generator=generator),
    }


def test_nb_is_scipys_negative_binomial(problem):
    mu = problem["library"] * problem["scale"][:7]
    theta = problem["theta"]
    expected = stats.nbinom.logpmf(problem["x"].numpy(), theta.numpy(), (theta / (theta + mu)).numpy()).sum(1)
    result = nb_log_likelihood(problem["x"], mu, theta)
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-4)


@pytest.mark.parametrize("theta_key", ["theta", "theta_cells"])
def test_sums_and_gradients_equal_scvi(problem, theta_key):
    def run(function):
        mu = (problem["library"] * problem["scale"][:7]).clone().requires_grad_()
        theta = problem[theta_key].clone().requires_grad_()
        logits = problem["zi_logits"][:7].clone().requires_grad_()
        total = function(problem["x"], mu, theta, logits)
        total.sum().backward()
        return total, mu.grad, theta.grad, logits.grad

    pairs = [
        (
            lambda x, m, t, _: nb_log_likelihood(x, m, t),
            lambda x, m, t, _: NegativeBinomial(mu=m, theta=t).log_prob(x).sum(-1),
        ),
        (
            zinb_log_likelihood,
            lambda x, m, t, u: ZeroInflatedNegativeBinomial(mu=m, theta=t, zi_logits=u).log_prob(x).sum(-1),
        ),
    ]
    for ours, theirs in pairs:
        for a, b in zip(run(ours), run(theirs), strict=True):
            if b is not None:
                torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("theta_key", ["theta", "theta_cells"])
@pytest.mark.parametrize("likelihood", ["nb", "zinb"])
@pytest.mark.parametrize("chunk", [None, 3, 64])
@pytest.mark.parametrize("repeats", [1, 2])
def test_candidate_scores_differ_from_the_full_likelihood_by_a_constant_per_cell(
    problem, theta_key, likelihood, chunk, repeats
):
    # with twice as many pairs there are more than four for each profile
    x, library, candidates = problem["x"], problem["library"], problem["candidates"].repeat(1, repeats)
    logits = problem["zi_logits"] if likelihood == "zinb" else None
    theta = problem["theta"]
    cell_theta = theta
    if theta_key == "theta_cells":
        # two batches: profiles 0 to 4 belong to the first, 5 to 10 to the second, and so do their cells
        batch = torch.arange(7) % 2
        candidates = candidates % 5 + 5 * batch.unsqueeze(1)
        theta = problem["theta_cells"][(torch.arange(11) >= 5).long()]
        cell_theta = problem["theta_cells"][batch]
    scores = candidate_log_likelihood(x, library, problem["scale"], theta, candidates, logits, chunk=chunk)
    full = torch.empty_like(scores)
    for j in range(candidates.shape[1]):
        mu = library * problem["scale"][candidates[:, j]]
        if likelihood == "nb":
            px = NegativeBinomial(mu=mu, theta=cell_theta)
        else:
            px = ZeroInflatedNegativeBinomial(mu=mu, theta=cell_theta, zi_logits=logits[candidates[:, j]])
        full[:, j] = px.log_prob(x).sum(-1)
    offset = full - scores
    torch.testing.assert_close(offset, offset[:, :1].expand_as(offset), rtol=1e-4, atol=1e-3)
    best = full.gather(1, scores.argmax(1, keepdim=True)).squeeze(1)  # among equal candidates any may be the first
    torch.testing.assert_close(best, full.max(1).values)


@pytest.mark.parametrize("zero_inflated", [False, True])
def test_means_and_dispersions_of_nearly_zero(zero_inflated):
    """As scvi-tools keeps their logarithms finite."""
    x = torch.tensor([[3.0, 0.0, 2.0, 0.0]], dtype=torch.double)
    mu = torch.tensor([[0.0, 0.0, 5.0, 1e-9]], dtype=torch.double)
    theta = torch.tensor([2.0, 1e-9, 1e-9, 1e-9], dtype=torch.double)
    logits = torch.tensor([[-1.0, 0.5, 0.0, 2.0]], dtype=torch.double)
    if zero_inflated:
        found = zinb_log_likelihood(x, mu, theta, logits)
        expected = ZeroInflatedNegativeBinomial(mu=mu, theta=theta, zi_logits=logits).log_prob(x).sum(-1)
    else:
        found = nb_log_likelihood(x, mu, theta)
        expected = NegativeBinomial(mu=mu, theta=theta).log_prob(x).sum(-1)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("zero_inflated", [False, True])
@pytest.mark.parametrize("n_candidates", [1, 5])
def test_candidates_in_blocks_of_the_cache(problem, monkeypatch, zero_inflated, n_candidates):
    """Several blocks of candidates, or of cells, are scored as all at once; profiles of 0 are, too."""
    scale = problem["scale"].clone()
    scale[:, 3] = 0
    candidates = problem["candidates"][:, :n_candidates]
    arguments = [problem["x"], problem["library"], scale, problem["theta"], candidates]
    logits = problem["zi_logits"] if zero_inflated else None
    whole = candidate_log_likelihood(*arguments, logits, chunk=100)
    monkeypatch.setattr(_likelihood, "CACHED", 2 * scale.shape[1])
    blocks = candidate_log_likelihood(*arguments, logits)
    assert torch.isfinite(whole).all()
    torch.testing.assert_close(blocks, whole)
    # more candidates than profiles, whose logarithms are then taken once
    many = [*arguments[:-1], candidates.repeat(1, 10)]
    torch.testing.assert_close(candidate_log_likelihood(*many, logits), whole.repeat(1, 10))


def test_all_zero_cell_is_scored():
    x = torch.zeros(1, 3)
    scale = torch.tensor([[0.2, 0.3, 0.5], [0.98, 0.01, 0.01]])
    theta = torch.tensor([1.0, 1.0, 1.0])
    scores = candidate_log_likelihood(x, torch.ones(1, 1), scale, theta, torch.tensor([[0, 1]]))
    expected = [stats.nbinom.logpmf(0, 1.0, 1 / (1 + s.numpy())).sum() for s in scale]
    np.testing.assert_allclose((scores[0, 0] - scores[0, 1]).item(), expected[0] - expected[1], rtol=1e-4)
