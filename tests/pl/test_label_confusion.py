"""Predicted against true labels: counts, percentages, the order of labels, and what is refused."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import transverse as tv

TRUTH = ["T", "B", "B", "hepatocyte", "T", "B", "NK", "hepatocyte", "T"]
PREDICTED = ["T", "B", "T", "unknown", "T", "B", "NK", "DC", "unknown"]


def draw(predicted=PREDICTED, truth=TRUTH, **kwargs):
    return tv.pl.label_confusion(predicted, truth, show=False, **kwargs)


def drawn(axes):
    """The matrix as drawn, with its labels."""
    columns, rows = ([text.get_text() for text in axis.get_ticklabels()] for axis in (axes.xaxis, axes.yaxis))
    return pd.DataFrame(np.asarray(axes.images[0].get_array()), index=rows, columns=columns)


def texts(axes):
    return np.reshape([text.get_text() for text in axes.texts], drawn(axes).shape)


def test_counts_and_order():
    table = drawn(draw(normalize=None))
    assert list(table.index) == ["B", "NK", "T", "hepatocyte"]  # sorted, the one that is never predicted at the bottom
    assert list(table.columns) == ["B", "NK", "T", "hepatocyte", "DC", "unknown"]
    for row in table.index:
        for column in table.columns:
            pairs = [1 for p, t in zip(PREDICTED, TRUTH, strict=True) if (p, t) == (column, row)]
            assert table.loc[row, column] == len(pairs)


@pytest.mark.parametrize(
    ("normalize", "axis", "label"),
    [("true", 1, "% of the true label"), ("pred", 0, "% of the predicted label"), ("all", None, "% of all cells")],
)
def test_percentages(normalize, axis, label):
    counts = drawn(draw(normalize=None))
    total = counts.to_numpy().sum(axis=axis, keepdims=True)
    expected = 100 * counts / np.broadcast_to(np.maximum(total, 1), counts.shape)
    axes = draw(normalize=normalize)
    pd.testing.assert_frame_equal(drawn(axes), expected)
    colorbar = axes.images[0].colorbar
    assert colorbar.ax.get_ylabel() == label
    assert axes.images[0].get_clim() == (0, 100 if axis is not None else expected.to_numpy().max())


def test_texts():
    table = drawn(draw(normalize=None))
    assert texts(draw(normalize=None)).tolist() == [
        [str(n) if n else "" for n in row] for row in table.to_numpy(dtype=int)
    ]
    assert texts(draw())[0].tolist() == ["67", "", "33", "", "", ""]
    many = ["A"] * 999 + ["B"]
    assert texts(draw(many, ["A"] * 1000))[0].tolist() == ["100", "<1"]


def test_texts_are_legible():
    axes = draw(["A"] * 9 + ["B"], ["A"] * 10)
    assert [text.get_color() for text in axes.texts] == ["white", "black"]


def test_categories_keep_their_order():
    truth = pd.Categorical(TRUTH, ["T", "hepatocyte", "absent", "NK", "B"])
    predicted = pd.Categorical(PREDICTED, ["unknown", "NK", "T", "DC", "B", "other"])
    table = drawn(draw(predicted, truth))
    assert list(table.index) == ["T", "NK", "B", "hepatocyte"]
    assert list(table.columns) == ["T", "NK", "B", "hepatocyte", "DC", "unknown"]


def test_unknown():
    table = drawn(draw(["z", "?", "?"], ["?", "z", "b"], unknown="?"))
    assert list(table.index) == ["z", "b", "?"]
    assert list(table.columns) == ["z", "b", "?"]
    assert "unknown" not in drawn(draw(TRUTH, TRUTH)).columns


@pytest.mark.parametrize("as_categories", [False, True])
@pytest.mark.parametrize("missing", [None, np.nan])
def test_missing_predictions(missing, as_categories):
    predicted = pd.Series(["T", missing, missing, "unknown"], dtype=object)
    if as_categories:
        predicted = predicted.astype("category")
    table = drawn(draw(predicted, ["T", "T", "B", "B"], normalize=None))
    assert list(table.columns) == ["T", "B", "none", "unknown"]
    assert table["none"].to_dict() == {"T": 1, "B": 1}
    with pytest.raises(ValueError, match="counted as 'none', but that is a label"):
        draw(["none", None], ["T", "T"])


def test_series_are_matched_by_index():
    truth = pd.Series(TRUTH, index=[f"cell{i}" for i in range(len(TRUTH))])
    predicted = pd.Series(PREDICTED, index=truth.index)
    expected = drawn(draw(normalize=None))
    pd.testing.assert_frame_equal(drawn(draw(predicted[::-1], truth, normalize=None)), expected)
    pd.testing.assert_frame_equal(drawn(draw(predicted.to_numpy(), truth, normalize=None)), expected)
    repeated = ["cell"] * len(TRUTH)
    same = draw(predicted.set_axis(repeated), truth.set_axis(repeated), normalize=None)
    pd.testing.assert_frame_equal(drawn(same), expected)


def test_numbers_are_labels_too():
    assert list(drawn(draw([10, 2, 9], [10, 9, 2])).columns) == ["2", "9", "10"]


def test_errors():
    with pytest.raises(ValueError, match="predicted has 2 values and truth has 1"):
        draw(["B", "T"], ["B"])
    with pytest.raises(ValueError, match="are empty"):
        draw([], [])
    with pytest.raises(ValueError, match="truth must have one dimension, but has 2"):
        draw(["B"], [["B"]])
    one = pd.Series(["B", "T"], index=["a", "b"])
    with pytest.raises(ValueError, match="these of predicted are not in truth: 'a'"):
        draw(one, one.set_axis(["b", "c"]))
    with pytest.raises(ValueError, match="differ and repeat"):
        draw(one, one.set_axis(["a", "a"]))
    with pytest.raises(ValueError, match="truth is missing for 1 cells: 'b'"):
        draw(one, one.where(one != "T"))
    with pytest.raises(ValueError, match="normalize='rows' must be one of"):
        draw(normalize="rows")
    assert not plt.get_fignums()
