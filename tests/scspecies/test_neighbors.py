import numpy as np
import pytest
import scipy.sparse as sp
import torch
from sklearn.decomposition import PCA
from sklearn.metrics import pairwise_distances

from transverse.scspecies import _neighbors as neighbors
from transverse.scspecies._neighbors import SmoothedFeatures, nearest_neighbors, smoothing_weights, transform_counts
from transverse.scspecies._votes import eligible_cells, vote


@pytest.fixture
def features():
    rng = np.random.default_rng(0)
    return [sp.csr_matrix(rng.poisson(0.7, size=(n, 30)).astype(np.float32)) for n in (700, 150)]


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("max_memory", [1, 256 * 2**20])
def test_exact_search_equals_all_pairs(features, metric, max_memory):
    context, target = features
    index, distance = nearest_neighbors(context, target, 9, metric=metric, max_memory=max_memory)
    full = pairwise_distances(target, context, metric=metric)
    np.testing.assert_allclose(distance, np.sort(full, axis=1)[:, :9], atol=1e-3)
    np.testing.assert_allclose(np.take_along_axis(full, index, axis=1), distance, atol=1e-3)


@pytest.fixture(scope="module")
def low_rank():
    """Cells along few directions, and a little noise in all."""
    rng = np.random.default_rng(0)
    basis = rng.normal(size=(20, 400))
    return [
        np.asarray(rng.normal(size=(n, 20)) @ basis + 0.3 * rng.normal(size=(n, 400)), dtype=np.float32)
        for n in (900, 300)
    ]


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("max_memory", [1, 256 * 2**20])
def test_projected_search_finds_what_the_exact_one_finds(low_rank, metric, max_memory, monkeypatch):
    monkeypatch.setattr(neighbors, "N_DIRECTIONS", 24)
    monkeypatch.setattr(neighbors, "N_RANKED", 40)
    context, target = low_rank
    index, distance = nearest_neighbors(
        context, target, 5, metric=metric, method="projected", max_memory=max_memory, seed=1
    )
    exact, expected = nearest_neighbors(context, target, 5, metric=metric, method="exact")
    assert index.dtype == exact.dtype and distance.dtype == expected.dtype
    assert np.mean([len(set(a) & set(b)) / 5 for a, b in zip(exact, index, strict=True)]) > 0.99
    # the distances are those of the cells that were found, in order
    full = pairwise_distances(target, context, metric=metric)
    np.testing.assert_allclose(np.take_along_axis(full, index, axis=1), distance, rtol=1e-3, atol=1e-3)
    assert (np.diff(distance, axis=1) >= 0).all()
    again, _ = nearest_neighbors(context, target, 5, metric=metric, method="projected", seed=1)
    np.testing.assert_array_equal(index, again)


def test_projected_search_takes_cells_without_counts_and_sparse_rows(low_rank):
    context, target = (np.maximum(part, 0) for part in low_rank)
    context[3] = target[7] = 0
    dense = nearest_neighbors(context, target, 5, method="projected")
    sparse = nearest_neighbors(sp.csr_matrix(context), sp.csr_matrix(target), 5, method="projected")
    np.testing.assert_array_equal(dense[0], sparse[0])
    np.testing.assert_allclose(dense[1][7], 1)
    assert np.isfinite(dense[1]).all() and not (dense[0][np.arange(300) != 7] == 3).any()
    context, target = context[:30, :50], np.delete(target, 7, axis=0)[:, :50]
    few, exact = (nearest_neighbors(context, target, 25, method=method)[0] for method in ("projected", "exact"))
    np.testing.assert_array_equal(few, exact)


def test_projected_search_in_the_vicinity_of_each_cell(monkeypatch):
    rng = np.random.default_rng(0)
    centers = 4 * rng.normal(size=(10, 30))
    context, target = (
        (centers[rng.integers(10, size=n)] + rng.normal(size=(n, 30))).astype(np.float32) for n in (800, 300)
    )
    for name, value in (("N_NEAR", 200), ("N_RANKED", 40), ("GROUP", 16)):
        monkeypatch.setattr(neighbors, name, value)
    groups = list(neighbors._vicinities(torch.from_numpy(context), torch.from_numpy(target), 200, seed=0))
    assert sorted(np.concatenate([rows for rows, _ in groups])) == list(range(300))
    assert max(len(rows) for rows, _ in groups) <= 16
    for rows, near in groups:
        assert 200 <= len(near) < 500 and (np.diff(near) > 0).all() and (np.diff(rows) > 0).all()
    for metric in ("cosine", "euclidean"):
        index, distance = nearest_neighbors(context, target, 5, metric=metric, method="projected")
        exact, expected = nearest_neighbors(context, target, 5, metric=metric, method="exact")
        assert np.mean([len(set(a) & set(b)) / 5 for a, b in zip(exact, index, strict=True)]) > 0.97
        np.testing.assert_allclose(np.median(distance - expected), 0, atol=1e-5)


def test_the_method_is_chosen_by_size_features_and_metric():
    choose, pairs = neighbors._choose_method, neighbors.EXACT_PAIRS
    assert choose(pairs, 3000, "cosine") == "exact"
    assert choose(pairs + 1, 3000, "cosine") == choose(pairs + 1, 3000, "euclidean") == "projected"
    assert choose(pairs + 1, 30, "euclidean") == choose(pairs + 1, 3000, "manhattan") == "exact"
    assert choose(10 * pairs + 1, 30, "euclidean") == choose(10 * pairs + 1, 3000, "manhattan") == "pynndescent"


def test_projected_search_of_other_metrics_is_refused(low_rank):
    with pytest.raises(ValueError, match="'projected' takes the metrics 'cosine' and 'euclidean', but not 'manhattan'"):
        nearest_neighbors(*low_rank, 5, metric="manhattan", method="projected")
    with pytest.raises(
        ValueError, match="method must be 'auto', 'exact', 'projected' or 'pynndescent', but got 'best'"
    ):
        nearest_neighbors(*low_rank, 5, method="best")


@pytest.mark.slow  # the search itself is quick, its compilation takes minutes
def test_pynndescent_finds_nearly_the_same(features):
    context, target = features
    exact, _ = nearest_neighbors(context, target, 25, method="exact")
    approximate, _ = nearest_neighbors(context, target, 25, method="pynndescent", seed=1)
    recall = np.mean([len(set(a) & set(b)) / 25 for a, b in zip(exact, approximate, strict=True)])
    assert recall > 0.95


def test_more_neighbours_than_the_first_chunk_holds():
    points = np.arange(600, dtype=np.float32)[:, None]
    index, _ = nearest_neighbors(points, points[:1], 400, metric="euclidean", max_memory=1)
    np.testing.assert_array_equal(np.sort(index[0]), np.arange(400))


@pytest.mark.parametrize("metric", ["correlation", "manhattan", "chebyshev"])
def test_any_metric_of_scikit_learn(features, metric):
    index, distance = nearest_neighbors(*features, 5, metric=metric, max_memory=20_000)
    expected = pairwise_distances(features[1].toarray(), features[0].toarray(), metric=metric)
    np.testing.assert_allclose(distance, np.sort(expected, axis=1)[:, :5], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(expected, index, 1), distance, rtol=1e-4, atol=1e-5)


def test_unknown_metric_and_normalization(features):
    with pytest.raises(ValueError, match="Unknown metric 'nonsense'.*cosine.*euclidean"):
        nearest_neighbors(*features, 3, metric="nonsense", method="exact")
    with pytest.raises(ValueError, match="expected 'library' or 'none'"):
        transform_counts(features[0], "nonsense")


def test_transform_counts(features):
    counts = features[0]
    before = counts.copy()
    total = np.asarray(counts.sum(1)).ravel()
    np.testing.assert_allclose(
        transform_counts(counts).toarray(), np.log1p(counts.toarray() / total[:, None] * 1e4), rtol=1e-5
    )
    np.testing.assert_allclose(
        transform_counts(counts, library=2 * total).toarray(),
        np.log1p(counts.toarray() / (2 * total[:, None]) * 1e4),
        rtol=1e-5,
    )
    np.testing.assert_allclose(transform_counts(counts, "none").toarray(), np.log1p(counts.toarray()), rtol=1e-6)
    assert (counts != before).nnz == 0


def test_transform_counts_of_an_empty_cell():
    result = transform_counts(sp.csr_matrix([[0, 0], [1, 3]]))
    assert np.isfinite(result.toarray()).all()
    assert result[0].nnz == 0


def test_vote_counts_the_majority_and_its_share():
    codes = np.array([[0, 1, 1, 2], [2, 2, 2, 2], [0, 1, 0, 1], [-1, -1, -1, 1], [-1, -1, -1, -1]])
    label, share = vote(codes, 3)
    np.testing.assert_array_equal(label, [1, 2, 0, 1, -1])
    np.testing.assert_allclose(share, [0.5, 1, 0.5, 0.25, 0])


def test_weighted_vote():
    label, share = vote(np.array([[0, 1, 1]]), 2, np.array([[3.0, 1.0, 1.0]]))
    assert label[0] == 0
    np.testing.assert_allclose(share, [0.6])


def test_weights_are_each_cells_own():
    codes = np.array([[0, 1], [1, 0], [0, 1]])
    label, share = vote(codes, 2, np.array([[0.3, 0.1], [0.0, 0.0], [2, 6]]))
    np.testing.assert_array_equal(label, [0, -1, 1])
    np.testing.assert_allclose(share, [0.75, 0, 0.75])


def test_one_cell_of_a_label_is_eligible_at_least_and_at_most():
    labels = np.repeat([0, 1], [4, 8])
    agreement = np.tile([0.4, 0.9, 0.1, 0.2], 3)
    chosen = eligible_cells(labels, agreement, 0.9)
    assert chosen[:4].tolist() == [False, True, False, False] and chosen[4:].sum() == 1
    ties = np.ones(12)
    np.testing.assert_array_equal(eligible_cells(labels, ties, 0.5, seed=3), eligible_cells(labels, ties, 0.5, seed=3))


def test_eligible_cells_are_the_best_of_their_label():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [100, 50, 1])
    agreement = rng.random(151)
    chosen = eligible_cells(labels, agreement, 0.8)
    for label, n in ((0, 20), (1, 10), (2, 1)):
        of_label = labels == label
        assert chosen[of_label].sum() == n
        assert agreement[of_label & chosen].min() >= np.sort(agreement[of_label])[-n]


def test_eligible_ties_are_broken_at_random_not_by_position():
    agreement = np.ones(1000)
    chosen = [eligible_cells(np.zeros(1000, int), agreement, 0.5, seed=seed) for seed in (0, 1)]
    assert chosen[0].sum() == chosen[1].sum() == 500
    assert (chosen[0] != chosen[1]).any()
    assert 150 < chosen[0][:500].sum() < 350


def test_unlabelled_cells_are_not_eligible():
    assert not eligible_cells(np.array([-1, -1, 0]), np.array([1.0, 1.0, 0.2]), 0.0)[:2].any()


def test_smoothing_averages_over_the_nearest_of_the_own_species():
    rng = np.random.default_rng(0)
    counts = sp.csr_matrix(rng.poisson(1.0, size=(60, 20)).astype(np.float32))
    weights = smoothing_weights(counts, 5, n_components=19)
    scores = PCA(19, svd_solver="full").fit_transform(counts.toarray())
    full = pairwise_distances(scores)
    for i in (0, 30, 59):
        assert set(weights[i].indices) == set(np.argsort(full[i])[:5])
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-6)
    features = sp.csr_matrix(rng.random((60, 7)).astype(np.float32))
    smoothed = SmoothedFeatures(features, weights)
    np.testing.assert_allclose(smoothed[3:9], (weights @ features).toarray()[3:9], rtol=1e-6)
    exact, _ = nearest_neighbors(smoothed, smoothed, 3)
    expected, _ = nearest_neighbors((weights @ features).toarray(), (weights @ features).toarray(), 3)
    np.testing.assert_array_equal(exact, expected)


def test_smoothing_with_fewer_cells_than_neighbours():
    weights = smoothing_weights(sp.csr_matrix(np.eye(4, dtype=np.float32)), 15)
    np.testing.assert_allclose(weights.toarray(), 0.25)
