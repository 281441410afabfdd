import numpy as np
import pytest
import scipy.sparse as sp
from scipy.spatial.distance import cdist

from transverse.scspecies._neighbors import dense_blocks, inner_products
from transverse.scspecies._novelty import centered_distance, label_confidence, novelty_reference, novelty_score
from transverse.scspecies._transfer import warn_of_poor_alignment


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "manhattan"])
def test_centered_distance_by_scipy(metric):
    rng = np.random.default_rng(0)
    context, target = rng.random((40, 12)) + 5, rng.random((30, 12)) + 9
    neighbors = rng.integers(40, size=(30, 4))
    found = cdist(target, context, {"manhattan": "cityblock"}.get(metric, metric))
    found = np.take_along_axis(found, neighbors, 1).astype(np.float32)
    means = context.mean(0), target.mean(0)
    result = centered_distance(context, target, neighbors, found, metric, *means)
    full = cdist(target - means[1], context - means[0], "cosine")
    np.testing.assert_allclose(result, np.take_along_axis(full, neighbors, 1).mean(1), rtol=1e-3)
    assert result.dtype == np.float32


def test_products_in_blocks():
    rng = np.random.default_rng(0)
    context, target = rng.random((300, 7), dtype=np.float32), rng.random((50, 7), dtype=np.float32)
    chosen = rng.integers(300, size=(50, 4))
    expected = np.take_along_axis(target @ context.T, chosen, 1)
    np.testing.assert_allclose(inner_products(context, target, chosen, max_memory=1), expected, rtol=1e-5)
    blocks = list(dense_blocks(sp.csr_matrix(context), max_memory=1))
    assert len(blocks) > 1
    np.testing.assert_array_equal(np.concatenate(blocks), context)


def test_centered_distance_of_a_cell_that_is_average():
    context, target = np.eye(3), np.array([[1.0, 1, 1], [2, 0, 1], [0, 2, 1]])
    neighbors = np.zeros((3, 1), int)
    found = cdist(target, context, "cosine")[:, :1]
    result = centered_distance(context, target, neighbors, found, "cosine", context.mean(0), target.mean(0))
    np.testing.assert_allclose(result[0], 1, atol=1e-3)  # nothing special about it, and no division by zero
    assert result[1] < result[2]


def test_novelty_is_standardised_on_known_cells():
    ratio = np.array([0.0, 1, 2, 3, 4])
    distance = np.linspace(0.1, 0.5, 5)
    reference = novelty_reference(ratio, distance)
    np.testing.assert_allclose(reference["ratio"][0], np.log(3))
    np.testing.assert_allclose(reference["distance"], (0.3, np.quantile(distance, 0.84) - 0.3))
    zero = novelty_score(np.array([2.0, 2.0]), np.array([0.3, 0.1]), reference)
    np.testing.assert_allclose(zero, 0, atol=1e-12)
    far = novelty_score(np.array([2.0]), np.array([0.3 + 6 * reference["distance"][1]]), reference)
    np.testing.assert_allclose(far, 3)
    assert novelty_score(np.array([50.0]), None, reference) > 2
    # less than nothing is not less novel than nothing
    np.testing.assert_array_equal(*(novelty_score(np.array([r]), None, reference) for r in (-5.0, 0.0)))
    assert novelty_reference(np.zeros(9), None)["ratio"][1] > 0


def test_confidence():
    shares = np.array([[1.0, 0, 0], [0.6, 0.4, 0], [0.6, 0.4, 0], [0, 0, 0]])
    confidence = label_confidence(shares, np.array([-10.0, -10, 2.4, 0]))
    np.testing.assert_allclose(confidence, [1, 0.36 / 0.52, 0.18 / 0.52, 0], atol=1e-9)
    assert label_confidence(shares[:1], np.array([1e9])) == pytest.approx(0)


def test_warning_of_poor_alignment():
    with pytest.warns(UserWarning, match="80% of the aligned cells.*90%.*95% unanimous.*96%.*context itself, 70%"):
        warn_of_poor_alignment(0.7, 0.8, 0.95, 0.96)
    with pytest.warns(UserWarning, match="100% of the aligned cells.*85% unanimous.*99%"):
        warn_of_poor_alignment(1.0, 1.0, 0.85, 0.99)


@pytest.mark.filterwarnings("error")
def test_no_warning_of_good_alignment():
    warn_of_poor_alignment(0.5, 0.97, 0.94, 0.96)
