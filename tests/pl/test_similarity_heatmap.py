"""Similarity of types: the matrix, its numbers, and the marks on each row's best."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import transverse as tv


@pytest.fixture
def matrix():
    values = np.random.default_rng(0).permutation(20).reshape(4, 5) / 20
    return pd.DataFrame(values, index=[f"human {i}" for i in range(4)], columns=[f"mouse {i}" for i in range(5)])


def draw(matrix, **kwargs):
    return tv.pl.similarity_heatmap(matrix, show=False, **kwargs)


def marks(axes):
    """Row, column and width of the borders."""
    centre = [(p.get_y() + p.get_height() / 2, p.get_x() + p.get_width() / 2, p.get_linewidth()) for p in axes.patches]
    return [(round(i), round(j), width) for i, j, width in centre]


def test_matrix_and_labels(matrix):
    axes = draw(matrix)
    np.testing.assert_array_equal(axes.images[0].get_array(), matrix)
    assert [text.get_text() for text in axes.get_xticklabels()] == list(matrix.columns)
    assert [text.get_text() for text in axes.get_yticklabels()] == list(matrix.index)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("context type", "target type")
    assert axes.images[0].colorbar.ax.get_ylabel() == "similarity"


@pytest.mark.parametrize("mark_top", [0, 1, 2, 3, 99])
def test_marks(matrix, mark_top):
    axes = draw(matrix, mark_top=mark_top)
    order = np.argsort(-matrix.to_numpy(), axis=1)[:, :mark_top]
    assert [(i, j) for i, j, _ in marks(axes)] == [(i, j) for i in range(4) for j in order[i]]
    if mark_top > 1:
        widths = np.reshape([width for *_, width in marks(axes)], order.shape)
        assert (widths[:, :1] > widths[:, 1:]).all()
    bold = [i for i, text in enumerate(axes.texts) if text.get_fontweight() == "bold"]
    assert bold == ([5 * i + order[i, 0] for i in range(4)] if mark_top else [])


@pytest.mark.parametrize(
    ("factor", "expected"), [(1, "0.95"), (10, "9.5"), (100, "95"), (-1000, "-950"), (0.01, "0.0095"), (0, "0")]
)
def test_numbers(matrix, factor, expected):
    axes = draw(factor * matrix)
    place = int(np.argmax(matrix.to_numpy()))
    assert axes.texts[place].get_text() == expected


def test_no_negative_zero():
    assert [text.get_text() for text in draw(pd.DataFrame([[-0.3, -90.0]])).texts] == ["0", "-90"]


@pytest.mark.parametrize(("shape", "n_texts"), [((15, 15), 225), ((16, 2), 0), ((2, 16), 0)])
def test_numbers_in_small_matrices_only(shape, n_texts):
    axes = draw(pd.DataFrame(np.random.default_rng(0).normal(size=shape)))
    assert len(axes.texts) == n_texts
    assert len(axes.patches) == 2 * shape[0]


def test_missing_values_are_blank_and_not_marked(matrix):
    matrix.iloc[0] = [np.nan, 0.2, np.nan, np.nan, np.nan]
    matrix.iloc[1, 0] = np.nan
    axes = draw(matrix)
    assert [text.get_text() for text in axes.texts[:5]] == ["", "0.20", "", "", ""]
    assert [(i, j) for i, j, _ in marks(axes) if i == 0] == [(0, 1)]
    assert (1, 0) not in [(i, j) for i, j, _ in marks(axes)]


@pytest.mark.parametrize(
    ("limits", "expected", "extend"),
    [
        ({}, (0.0, 0.95), "neither"),
        ({"vmin": 0.5}, (0.5, 0.95), "min"),
        ({"vmax": 0.5}, (0.0, 0.5), "max"),
        ({"vmin": 0.2, "vmax": 0.6}, (0.2, 0.6), "both"),
        ({"vmin": -1, "vmax": 1}, (-1, 1), "neither"),
    ],
)
def test_limits_of_the_colours(matrix, limits, expected, extend):
    image = draw(matrix, **limits).images[0]
    assert image.get_clim() == pytest.approx(expected)
    assert image.colorbar.extend == extend


def test_errors(matrix):
    for limits in ({"vmin": 2}, {"vmax": -1}, {"vmin": 0.5, "vmax": 0.5}, {"vmin": np.nan}, {"vmax": np.inf}):
        with pytest.raises(ValueError, match="must be below vmax=.*, and both finite"):
            draw(matrix, **limits)
    with pytest.raises(TypeError, match="matrix must be a pandas.DataFrame, but got ndarray"):
        draw(matrix.to_numpy())
    with pytest.raises(ValueError, match="matrix is empty"):
        draw(matrix.iloc[:0])
    with pytest.raises(ValueError, match="matrix is empty"):
        draw(matrix.iloc[:, :0])
    with pytest.raises(ValueError, match="must hold numbers only"):
        draw(matrix.astype(object).where(matrix < 0.9, "high"))
    for value in (np.inf, -np.inf):
        with pytest.raises(ValueError, match="none may be infinite"):
            draw(matrix.where(matrix < 0.9, value))
    with pytest.raises(ValueError, match="must hold finite numbers"):
        draw(matrix * np.nan)
    with pytest.raises(ValueError, match="mark_top=-1"):
        draw(matrix, mark_top=-1)
    assert not plt.get_fignums()
