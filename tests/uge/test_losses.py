"""Terms of the loss: derived again with numpy, pair by pair, and where a step along their gradient leads."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from transverse.uge._losses import correlation, elastic_similarity, gene_alignment, reactome_error, soft_targets


def draw(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def cosine(x, y):
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


def two_samples(similarity):
    """Two vectors of different lengths, with this cosine."""
    return torch.tensor([[2.0, 0.0], [3 * similarity, 3 * np.sqrt(1 - similarity**2)]], dtype=torch.double)


def step(loss, *tensors, size=0.1):
    """The tensors after a step down the gradient of their loss, and the gradients."""
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    loss(*leaves).backward()
    return [(leaf - size * leaf.grad).detach() for leaf in leaves], [leaf.grad for leaf in leaves]


# ---- elastic similarity


@pytest.mark.parametrize("rectify", [True, False])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.8])
@pytest.mark.parametrize("n", [2, 3, 9])
def test_elastic_similarity_pair_by_pair(n, threshold, rectify):
    z = draw(n, 4)
    pairs = [cosine(z[i].numpy(), z[j].numpy()) for i in range(n) for j in range(n) if i != j]
    if n == 9:
        assert min(pairs) < 0
    if rectify:
        pairs = np.maximum(pairs, 0)
    expected = -np.mean((np.array(pairs) - threshold) ** 2)
    np.testing.assert_allclose(elastic_similarity(z, threshold, rectify).item(), expected, rtol=1e-10)


def test_elastic_similarity_of_the_defaults():
    z = draw(5, 4)
    assert elastic_similarity(z) == elastic_similarity(z, 0.3, True) != elastic_similarity(z, 0.3, False)


@pytest.mark.parametrize("threshold", [0.3, 0.6])
@pytest.mark.parametrize("gap", [0.2, 0.02, -0.02, -0.2, -0.8])
def test_pairs_above_the_threshold_are_drawn_together_and_others_apart(threshold, gap):
    similarity = threshold + gap
    after, _ = step(lambda z: elastic_similarity(z, threshold, rectify=False), two_samples(similarity))
    moved = cosine(*after[0].numpy()) - similarity
    assert np.sign(moved) == np.sign(gap)
    assert abs(moved) > 1e-4


def test_descent_ends_at_the_same_place_or_opposite():
    for similarity, end in ((0.5, 1.0), (0.1, -1.0)):
        z = two_samples(similarity)
        for _ in range(600):
            (z,), _ = step(lambda z: elastic_similarity(z, 0.3, rectify=False), z, size=1.0)
        np.testing.assert_allclose(cosine(*z.numpy()), end, atol=1e-3)


def test_negative_pairs_are_left_alone_when_rectified():
    _, (grad,) = step(elastic_similarity, two_samples(-0.4))
    assert (grad == 0).all()
    _, (grad,) = step(lambda z: elastic_similarity(z, rectify=False), two_samples(-0.4))
    assert (grad != 0).any()
    # of three samples, the third of which is opposite to the others, the pair of the others alone has a gradient
    z = torch.tensor([[1.0, 0.2, 0.0], [1.0, -0.2, 0.1], [-1.0, 0.0, 0.0]], dtype=torch.double)
    _, (grad,) = step(elastic_similarity, z)
    np.testing.assert_array_equal((grad != 0).any(dim=1).numpy(), [True, True, False])
    # positive ones are drawn together and apart as they are without
    for similarity in (0.5, 0.1):
        grads = [
            step(lambda z, r=rectify: elastic_similarity(z, rectify=r), two_samples(similarity))[1][0]
            for rectify in (True, False)
        ]
        torch.testing.assert_close(*grads)


@pytest.mark.parametrize("rectify", [True, False])
def test_elastic_similarity_knows_directions_alone(rectify):
    z = draw(6, 4)
    lengths = torch.from_numpy(np.random.default_rng(1).uniform(0.1, 50, (6, 1)))
    torch.testing.assert_close(elastic_similarity(lengths * z, 0.3, rectify), elastic_similarity(z, 0.3, rectify))
    _, (grad,) = step(lambda z: elastic_similarity(z, 0.3, rectify), z)
    np.testing.assert_allclose((grad * z).sum(dim=1).numpy(), 0, atol=1e-12)


def test_elastic_similarity_of_no_pair():
    for n in (0, 1):
        found = elastic_similarity(draw(n, 4))
        assert found.item() == 0 and found.ndim == 0


def test_elastic_similarity_at_the_origin():
    z = draw(3, 4)
    z[1] = 0
    _, (grad,) = step(elastic_similarity, z)
    assert torch.isfinite(grad).all()


# ---- soft targets


@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("k", [1, 3, 7])
def test_soft_targets_row_by_row(k, temperature):
    similarity = draw(5, 7)
    found = soft_targets(similarity, temperature, k).numpy()
    for row, weights in zip(similarity.numpy(), found, strict=True):
        best = np.argsort(-row)[:k]
        np.testing.assert_allclose(weights[best], softmax(row[best] / temperature), rtol=1e-10)
        assert np.count_nonzero(np.delete(weights, best)) == 0
    np.testing.assert_allclose(found.sum(axis=1), 1)
    assert ((found > 0).sum(axis=1) == k).all()


def test_soft_targets_of_half_precision_are_in_single():
    similarity = torch.tensor([[0.9, 0.1, 0.5]], dtype=torch.bfloat16)
    found = soft_targets(similarity, 0.1, 2)
    assert found.dtype == torch.float32 and torch.equal(found, soft_targets(similarity.float(), 0.1, 2))


def test_soft_targets_of_more_neighbors_than_there_are():
    similarity = draw(4, 3)
    np.testing.assert_allclose(soft_targets(similarity, 0.2, 10).numpy(), softmax(similarity.numpy() / 0.2, axis=1))


def test_soft_targets_with_ties():
    similarity = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.9, 0.1, 0.9, 0.1], [0.9, 0.1, 0.1, 0.1]])
    found = soft_targets(similarity, 0.1, 2).numpy()
    # as many as asked for, whichever they are, and the same for those that are the same
    assert ((found > 0).sum(axis=1) == 2).all()
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(found[0][found[0] > 0], 0.5)
    np.testing.assert_allclose(found[1], [0.5, 0, 0.5, 0])
    assert found[2][0] > 0.99


def test_soft_targets_of_a_low_temperature():
    found = soft_targets(draw(6, 8), 1e-4, 8)
    np.testing.assert_allclose(found.numpy(), np.eye(8)[draw(6, 8).argmax(dim=1)], atol=1e-12)


# ---- alignment of genes


def alignment_by_loop(z, other, similarity, temperature, target_temperature, k):
    """Cross-entropies gene by gene, one way and the other."""
    cosines = np.array([[cosine(a, b) for b in other] for a in z])
    sides = []
    for r, c in ((similarity, cosines), (similarity.T, cosines.T)):
        entropies = []
        for of_gene, scores in zip(r, c, strict=True):
            best = np.argsort(-of_gene)[:k]
            target = softmax(of_gene[best] / target_temperature)
            entropies.append(-target @ log_softmax(scores / temperature)[best])
        sides.append(np.mean(entropies))
    return sides


@pytest.mark.parametrize("k", [2, 4, 30])
@pytest.mark.parametrize("temperatures", [(0.1, 0.1), (0.5, 0.05)])
def test_alignment_gene_by_gene(temperatures, k):
    z, other, similarity = draw(6, 5), draw(9, 5, seed=1), draw(6, 9, seed=2).tanh()
    one, back = alignment_by_loop(z.numpy(), other.numpy(), similarity.numpy(), *temperatures, k)
    found = gene_alignment(z, other, similarity, *temperatures, k)
    np.testing.assert_allclose(found.item(), (one + back) / 2, rtol=1e-10)
    assert abs(one - back) > 1e-3  # so that either alone would be noticed
    # the same from the other side
    torch.testing.assert_close(gene_alignment(other, z, similarity.T, *temperatures, k), found)


def test_alignment_of_the_defaults():
    z, other, similarity = draw(6, 5), draw(15, 5, seed=1), draw(6, 15, seed=2).tanh()
    expected = np.mean(alignment_by_loop(z.numpy(), other.numpy(), similarity.numpy(), 0.1, 0.1, 10))
    np.testing.assert_allclose(gene_alignment(z, other, similarity).item(), expected, rtol=1e-10)


def test_alignment_draws_counterparts_together():
    n = 8
    z, other = draw(n, 6), draw(n, 6, seed=1)
    counterpart = np.random.default_rng(2).permutation(n)
    similarity = torch.full((n, n), -1.0, dtype=torch.double)
    similarity[torch.arange(n), torch.from_numpy(counterpart)] = 1.0

    def loss(z, other):
        return gene_alignment(z, other, similarity)

    def found(z, other):
        return np.array([[cosine(a, b) for b in other.numpy()] for a in z.numpy()])

    before = found(z, other)
    (z, other), grads = step(loss, z, other, size=0.05)
    closer = found(z, other) - before
    assert (closer[np.arange(n), counterpart] > 0).all()
    assert all((grad != 0).any(dim=1).all() for grad in grads)
    for _ in range(200):
        (z, other), _ = step(loss, z, other, size=0.5)
    np.testing.assert_array_equal(found(z, other).argmax(axis=1), counterpart)


def test_alignment_is_lowest_where_similarities_agree():
    """Where both similarities and temperatures are the same, the cross-entropy is the entropy, and nothing moves."""
    z, other = draw(5, 4), draw(7, 4, seed=1)
    similarity = torch.from_numpy(np.array([[cosine(a, b) for b in other.numpy()] for a in z.numpy()]))
    _, grads = step(lambda z, other: gene_alignment(z, other, similarity, 0.3, 0.3, 99), z, other)
    for grad in grads:
        np.testing.assert_allclose(grad.numpy(), 0, atol=1e-12)


# ---- errors of the reactome


def with_holes(*shape, share=0.3, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape)
    x[rng.random(shape) < share] = np.nan
    return x


def test_error_over_what_was_measured():
    predicted, observed = draw(6, 5), with_holes(6, 5, seed=1)
    expected = np.nanmean((predicted.numpy() - observed) ** 2)
    assert np.isnan(observed).any()
    np.testing.assert_allclose(reactome_error(predicted, torch.from_numpy(observed)).item(), expected, rtol=1e-12)


def test_error_has_a_gradient_where_something_was_measured():
    observed = torch.from_numpy(with_holes(6, 5))
    predicted = draw(6, 5, seed=1)
    _, (grad,) = step(lambda x: reactome_error(x, observed), predicted)
    measured = ~observed.isnan()
    expected = 2 * (predicted - observed) / measured.sum()
    np.testing.assert_allclose(grad[measured].numpy(), expected[measured].numpy(), rtol=1e-12)
    assert (grad[~measured] == 0).all()


def test_error_of_one_entry():
    observed = torch.full((3, 4), torch.nan, dtype=torch.double)
    observed[1, 2] = 2
    assert reactome_error(torch.full((3, 4), 5.0, dtype=torch.double), observed).item() == 9


def test_error_of_nothing_measured():
    observed = torch.full((3, 4), torch.nan, dtype=torch.double)
    assert reactome_error(draw(3, 4), observed).item() == 0
    _, (grad,) = step(lambda x: reactome_error(x, observed), draw(3, 4))
    assert (grad == 0).all()


# ---- correlation


def test_correlation_over_entries_that_all_genes_have():
    x, y = np.random.default_rng(0).normal(size=(5, 9)), np.random.default_rng(1).normal(size=(4, 9))
    x[:, 2] = np.nan  # a species lacks an entry,
    y[:, 5] = np.nan
    y[1, 7] = np.nan  # or a gene
    kept = [i for i in range(9) if i not in (2, 5, 7)]
    expected = [[np.corrcoef(a[kept], b[kept])[0, 1] for b in y] for a in x]
    found = correlation(torch.from_numpy(x), torch.from_numpy(y)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_correlation_with_what_does_not_change():
    x = draw(3, 6)
    x[1] = 0.25
    found = correlation(x, draw(2, 6, seed=1))
    assert (found[1] == 0).all() and torch.isfinite(found).all()


def test_correlation_of_nothing_shared():
    x, y = draw(3, 4), draw(2, 4, seed=1)
    x[:, :2] = torch.nan
    y[:, 2:] = torch.nan
    found = correlation(x, y)
    assert found.shape == (3, 2) and (found == 0).all()


def test_correlation_knows_neither_unit_nor_level():
    x, y = draw(3, 6), draw(4, 6, seed=1)
    torch.testing.assert_close(correlation(5 * x + 2, 0.1 * y - 1), correlation(x, y))
    torch.testing.assert_close(correlation(-x, y), -correlation(x, y))
    torch.testing.assert_close(correlation(y, x), correlation(x, y).T)
