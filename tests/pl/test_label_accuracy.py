"""Accuracy of labels against chance: bars, intervals, levels of chance, and what is refused."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba
from matplotlib.container import BarContainer, ErrorbarContainer

import transverse as tv
from transverse.pl._figure import COLORS

TRUTH = pd.Series(["liver"] * 5 + ["brain"] * 3 + ["lung"] * 2, index=[f"s{i}" for i in range(10)])
FIRST = ["liver", "liver", "liver", "brain", "lung", "brain", "brain", "brain", "liver", None]
SECOND = ["liver"] * 10
TRAINING = ["liver"] * 6 + ["brain"] * 2 + ["spleen"] * 2


def draw(predictions, truth=TRUTH, **kwargs):
    return tv.pl.label_accuracy(truth, predictions, **{"show": False, **kwargs})


def sets(panel):
    return [container for container in panel.containers if isinstance(container, BarContainer)]


def bars(panel):
    """Heights of the bars of each set of predictions, from left to right."""
    return [[bar.get_height() for bar in own] for own in sets(panel)]


def intervals(panel):
    lines = [own.lines[2][0] for own in panel.containers if isinstance(own, ErrorbarContainer)]
    return [np.array([segment[:, 1] for segment in line.get_segments()]) for line in lines]


def chance(panel):
    segments = panel.collections[-1].get_segments()
    assert all(left[1] == right[1] for left, right in segments)
    return [float(left[1]) for left, _ in segments]


def ticks(panel):
    return [label.get_text() for label in panel.get_xticklabels()]


def wilson(k, n, z=1.959963984540054):
    """The interval's ends as the roots of (k/n - p)² = z² p (1 - p) / n."""
    return np.sort(np.roots([1 + z**2 / n, -(2 * k / n + z**2 / n), (k / n) ** 2]).real)


def test_bars_and_intervals():
    panel = draw({"UGE": FIRST, "majority": SECOND})
    assert ticks(panel) == ["brain (3)", "liver (5)", "lung (2)", "all (10)"]
    right = [[3, 3, 0, 6], [0, 5, 0, 5]]
    n = [3, 5, 2, 10]
    assert bars(panel) == [[k / of for k, of in zip(own, n, strict=True)] for own in right]
    for own, drawn in zip(right, intervals(panel), strict=True):
        np.testing.assert_allclose(drawn, [wilson(k, of) for k, of in zip(own, n, strict=True)], atol=1e-9)
    for i, container in enumerate(sets(panel)):
        assert {bar.get_facecolor() for bar in container.patches} == {to_rgba(COLORS[i])}
        place = [bar.get_x() + bar.get_width() / 2 for bar in container.patches]
        np.testing.assert_allclose(place, np.array([0, 1, 2, 3.35]) + (-0.2, 0.2)[i])
    assert [text.get_text() for text in panel.figure.legends[0].texts] == [
        "UGE",
        "majority",
        "95% confidence interval",
        "chance (shares in the truth)",
    ]
    assert panel.get_ylim() == (0, 1.02) and panel.get_ylabel() == "accuracy"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, [0.3, 0.5, 0.2]),
        (TRAINING, [0.2, 0.6, 0.0]),
        (pd.Series(TRAINING, dtype="category"), [0.2, 0.6, 0.0]),
        (pd.Series([*TRAINING, None], dtype="string"), [0.2, 0.6, 0.0]),
        ({"liver": 0.5, "brain": 0.25, "lung": 0, "spleen": 0.25}, [0.25, 0.5, 0.0]),
        (pd.Series([*TRAINING, "lung", "lung"]).value_counts(normalize=True), [2 / 12, 6 / 12, 2 / 12]),
    ],
)
def test_levels_of_chance(given, expected):
    panel = draw(FIRST, chance=given)
    of_all = np.dot(expected, [0.3, 0.5, 0.2])
    np.testing.assert_allclose(chance(panel), [*expected, of_all])
    np.testing.assert_allclose(
        [segment[:, 0].mean() for segment in panel.collections[-1].get_segments()], [0, 1, 2, 3.35]
    )
    legend = [text.get_text() for text in panel.figure.legends[0].texts]
    assert legend == ["95% confidence interval", f"chance (shares in the {'truth' if given is None else 'training'})"]


def test_chance_is_what_random_draws_reach():
    rng = np.random.default_rng(0)
    truth = rng.choice(["a", "b", "c"], 20_000, p=[0.2, 0.3, 0.5])
    training = rng.choice(["a", "b", "c"], 5000, p=[0.6, 0.3, 0.1])
    panel = draw({"drawn": rng.choice(training, len(truth))}, truth, chance=training)
    np.testing.assert_allclose(bars(panel)[0], chance(panel), atol=0.02)
    for (low, high), level in zip(intervals(panel)[0], chance(panel), strict=True):
        assert low - 0.01 < level < high + 0.01


@pytest.mark.parametrize("dtype", [object, "category", "string"])
def test_types_of_labels(dtype):
    truth, first = TRUTH.astype(dtype), pd.Series(FIRST, index=TRUTH.index).astype(dtype)
    for predictions in (first, first[::-1], first.to_frame("label"), {"UGE": first}, {"UGE": first.to_frame("label")}):
        panel = draw(predictions, truth, chance=pd.Series(TRAINING).astype(dtype))
        assert bars(panel) == [[1, 0.6, 0, 0.6]]
        assert ticks(panel) == ["brain (3)", "liver (5)", "lung (2)", "all (10)"]
    assert bars(draw(FIRST, truth)) == bars(draw(first, truth.to_list())) == [[1, 0.6, 0, 0.6]]


def test_order_of_categories_and_one_label():
    truth = TRUTH.astype(pd.CategoricalDtype(["lung", "absent", "liver", "brain"]))
    assert ticks(draw(SECOND, truth)) == ["lung (2)", "liver (5)", "brain (3)", "all (10)"]
    assert bars(draw(["a", "a"], ["a", "a"])) == [[1, 1]]
    assert ticks(draw([1, 2, 2], [10, 2, 1], palette=["red"])) == ["1 (1)", "2 (1)", "10 (1)", "all (3)"]


def test_palette_and_own_axes():
    _, ax = plt.subplots()
    panel = draw({"a": FIRST, "b": SECOND}, palette={"a": "red", "b": "blue"}, ax=ax)
    assert [own.patches[0].get_facecolor() for own in sets(panel)] == [to_rgba("red"), to_rgba("blue")]
    assert not panel.figure.legends and panel.get_legend() is None
    assert {text.get_text() for text in ax.legend().texts} == {"a", "b", "chance"}


def test_input_is_left_alone():
    table = pd.DataFrame({"label": pd.Categorical(FIRST), "confidence": 0.5}, index=TRUTH.index[::-1])
    predictions, shares = {"UGE": table, "other": SECOND}, {"liver": 0.5, "brain": 0.5, "lung": 0.0}
    before = table.copy(), TRUTH.copy(), dict(shares)
    draw(predictions, chance=shares)
    pd.testing.assert_frame_equal(table, before[0])
    pd.testing.assert_series_equal(TRUTH, before[1])
    assert list(predictions) == ["UGE", "other"] and predictions["UGE"] is table and shares == before[2]


def test_other_spelling_is_told():
    with pytest.warns(UserWarning, match="UGE has no label of truth. It has: 'Liver'; truth: 'liver', 'brain', 'lung'"):
        panel = draw({"UGE": ["Liver"] * 10})
    assert bars(panel) == [[0, 0, 0, 0]]


def test_labels_of_nothing_are_wrong():
    assert bars(draw([None] * 10)) == [[0, 0, 0, 0]]


def test_errors():
    with pytest.raises(ValueError, match="predictions must have at least one set of labels"):
        draw({})
    with pytest.raises(ValueError, match="UGE has 1 values and truth has 10"):
        draw({"UGE": ["liver"]})
    with pytest.raises(ValueError, match="predictions and truth are empty"):
        draw([], [])
    with pytest.raises(ValueError, match="these of UGE are not in truth: 's9'"):
        draw({"UGE": TRUTH}, TRUTH.rename({"s9": "other"}))
    with pytest.raises(ValueError, match="truth is missing for 2 samples: 's8', 's9'"):
        draw(TRUTH, TRUTH.where(TRUTH != "lung"))
    with pytest.raises(ValueError, match="truth is missing for 2 samples: 's8', 's9'"):
        draw(TRUTH, TRUTH.where(TRUTH != "lung").astype("category"))
    with pytest.raises(KeyError, match="UGE lacks the column 'label'. It has: 'organ'"):
        draw({"UGE": TRUTH.to_frame("organ")})
    with pytest.raises(KeyError, match="chance has no share of 'brain', 'lung'; one that the training lacks is 0"):
        draw(FIRST, chance={"liver": 1.0})
    with pytest.raises(ValueError, match="chance must have shares between 0 and 1, but has 'liver: 60', 'brain: -1'"):
        draw(FIRST, chance={"liver": 60, "brain": -1, "lung": 0.5})
    with pytest.raises(ValueError, match="between 0 and 1, but has 'liver: nan'"):
        draw(FIRST, chance={"liver": np.nan, "brain": 0.5, "lung": 0.5})
    with pytest.raises(ValueError, match="chance must have shares that sum to 1 at most, but they sum to 1.1"):
        draw(FIRST, chance={"liver": 0.5, "brain": 0.3, "lung": 0.3})
    with pytest.raises(ValueError, match="chance must map labels to numbers"):
        draw(FIRST, chance={"liver": "half", "brain": 0.3, "lung": 0.2})
    with pytest.raises(ValueError, match="chance has no labels: all of its values are missing"):
        draw(FIRST, chance=[None, None])
    with pytest.raises(ValueError, match="chance has no label of truth. It has: '6', '2'; truth: 'brain', 'liver'"):
        draw(FIRST, chance=pd.Series(TRAINING).value_counts())
    with pytest.raises(KeyError, match=r"palette has no colour for \['b'\]"):
        draw({"a": FIRST, "b": SECOND}, palette={"a": "red"})
    assert not plt.get_fignums()
