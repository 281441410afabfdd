"""The reliability diagram: bins, their means, and the expected calibration error."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import transverse as tv


def draw(*args, **kwargs):
    return tv.pl.calibration(*args, show=False, **kwargs)


def points(axes):
    return np.asarray(axes.collections[0].get_offsets())


def error(axes):
    return float(axes.get_title().removeprefix("expected calibration error "))


@pytest.fixture
def cells():
    rng = np.random.default_rng(0)
    confidence = rng.beta(4, 1.5, 500)
    return confidence, rng.uniform(size=500) < confidence**2


@pytest.mark.parametrize("n_bins", [1, 7, 10])
def test_bins_and_error(cells, n_bins):
    confidence, correct = cells
    expected, sizes, total = [], [], 0
    for b in range(n_bins):
        inside = (confidence > b / n_bins) & (confidence <= (b + 1) / n_bins)
        if inside.any():
            expected.append([confidence[inside].mean(), correct[inside].mean()])
            sizes.append(inside.sum())
            total += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    axes = draw(confidence, correct, n_bins=n_bins)
    np.testing.assert_allclose(points(axes), expected)
    assert error(axes) == pytest.approx(total, abs=0.0005)
    drawn = axes.collections[0].get_sizes()
    np.testing.assert_array_equal(np.argsort(drawn, kind="stable"), np.argsort(sizes, kind="stable"))


def test_the_diagonal_is_perfect():
    confidence = np.repeat([0.25, 0.75], 4)
    axes = draw(confidence, [1, 0, 0, 0, 1, 1, 1, 0])
    assert error(axes) == 0
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [[0, 0], [1, 1]])
    np.testing.assert_allclose(points(axes), [[0.25, 0.25], [0.75, 0.75]])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_borders_belong_to_the_lower_bin(dtype):
    confidence = (np.arange(11) / 10).astype(dtype)
    np.testing.assert_allclose(
        points(draw(confidence, np.ones(11)))[:, 0], [0.05, *np.arange(2, 11) / 10], rtol=1e-6
    )  # 0 and 0.1 share the first


def test_legend_gives_numbers_of_cells():
    confidence = np.repeat([0.35, 0.65, 0.95], [100, 200, 400])
    axes = draw(confidence, np.ones(700))
    legend = axes.get_legend()
    shown = {
        int(re.search(r"\d+", text.get_text())[0]): handle
        for text, handle in zip(legend.texts, legend.legend_handles, strict=True)
    }
    area = dict(zip([100, 200, 400], axes.collections[0].get_sizes(), strict=True))
    assert {100, 200, 400} & set(shown)
    for n in {100, 200, 400} & set(shown):
        assert shown[n].get_markersize() ** 2 == pytest.approx(area[n])


def test_series_are_matched_by_index(cells):
    confidence, correct = pd.Series(cells[0]), pd.Series(cells[1])
    expected = points(draw(*cells))
    np.testing.assert_allclose(points(draw(confidence[::-1], correct)), expected)
    np.testing.assert_allclose(points(draw(confidence, correct.astype("boolean"))), expected)
    np.testing.assert_allclose(points(draw(confidence, correct.astype(object))), expected)
    np.testing.assert_allclose(points(draw(list(cells[0]), list(cells[1]))), expected)


def test_errors():
    with pytest.raises(ValueError, match="confidence has 2 values and correct has 1"):
        draw([0.1, 0.2], [True])
    with pytest.raises(ValueError, match="are empty"):
        draw([], [])
    with pytest.raises(ValueError, match="confidence must be between 0 and 1, but has 1.5, -0.1"):
        draw([0.5, 1.5, -0.1], [True] * 3)
    with pytest.raises(ValueError, match="confidence is missing for 1 cells"):
        draw([0.5, np.nan], [True, False])
    with pytest.raises(ValueError, match="correct is missing for 1 cells"):
        draw([0.5, 0.5], pd.Series([True, pd.NA], dtype="boolean"))
    with pytest.raises(ValueError, match="correct must be between 0 and 1, but has 2"):
        draw([0.5], [2])
    with pytest.raises(ValueError, match="correct must hold True or False"):
        draw([0.5], [0.5])
    with pytest.raises(ValueError, match="these of confidence are not in correct: 'b'"):
        draw(pd.Series([0.5], index=["b"]), pd.Series([True], index=["a"]))
    for n_bins in (0, 2.5, "10"):
        with pytest.raises(ValueError, match="n_bins=.* must be a whole number of at least 1"):
            draw([0.5], [True], n_bins=n_bins)
    assert not plt.get_fignums()
