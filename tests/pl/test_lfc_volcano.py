"""Fold changes against their probability: which genes are called, coloured and named."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.text import Text

import transverse as tv


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    lfc = rng.normal(0, 3, 200)
    return pd.DataFrame(
        {
            "group": np.repeat(["B cell", "T cell"], 100),
            "context_gene": [f"Gene{i}" for i in range(100)] * 2,
            "target_gene": [f"GENE{i}" for i in range(100)] * 2,
            "lfc": lfc,
            "probability": np.clip(np.abs(lfc) / 3 + rng.normal(0, 0.1, 200), 0, 1),
        }
    )


def draw(table, *args, **kwargs):
    return tv.pl.lfc_volcano(table, *args, show=False, **kwargs)


def points(panel):
    """Points that are not called, down and up, as drawn."""
    return [np.asarray(collection.get_offsets()) for collection in panel.collections[:3]]


def calls(rows, delta=1.0, probability=0.9):
    lfc, chance = rows["lfc"].to_numpy(), rows["probability"].to_numpy()
    called = (np.abs(lfc) > delta) & (chance > probability)
    return [np.column_stack([lfc, chance])[mask] for mask in (~called, called & (lfc < 0), called & (lfc > 0))]


def thresholds(panel):
    """Places of the dashed lines: x of the upright ones, y of the other."""
    upright, level = (collection.get_segments() for collection in panel.collections[3:5])
    return {segment[0, 0] for segment in upright}, {segment[0, 1] for segment in level}


def test_points_and_titles(table):
    for panel, (group, rows) in zip(draw(table), table.groupby("group"), strict=True):
        expected = calls(rows)
        for found, wanted in zip(points(panel), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)
        assert panel.get_title() == f"{group}\n{len(expected[2])} up, {len(expected[1])} down"
        assert len(expected[1]) > 7
        assert "higher in target" in panel.get_xlabel()


def test_colors(table):
    other, down, up = (collection.get_facecolors()[0, :3] for collection in draw(table)[0].collections[:3])
    assert up[0] > up[2]  # red-like
    assert down[2] > down[0]  # blue-like
    assert len(set(other)) == 1  # grey
    assert to_rgb("#d55e00") == tuple(up)


@pytest.mark.parametrize(("delta", "probability"), [(0.5, 0.6), (2.0, 0.95), (0.0, 0.0)])
def test_thresholds(table, delta, probability):
    panel = draw(table, "T cell", delta=delta, probability=probability)[0]
    for found, wanted in zip(points(panel), calls(table[100:], delta, probability), strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert thresholds(panel) == ({-delta, delta}, {probability})


def test_thresholds_are_not_included():
    lfc = [1.0, -1.0, 1.1, -1.1]
    table = pd.DataFrame({"group": "B", "target_gene": list("abcd"), "lfc": lfc, "probability": [1, 1, 0.9, 0.91]})
    assert draw(table)[0].get_title() == "B\n0 up, 1 down"


def test_delta_of_the_table(table):
    table.attrs["delta"] = 2.0
    assert thresholds(draw(table)[0])[0] == {-2.0, 2.0}
    assert draw(table)[0].get_ylabel() == "P(|LFC| > 2)"
    assert thresholds(draw(table, delta=0.5)[0])[0] == {-0.5, 0.5}
    assert table.attrs == {"delta": 2.0}


@pytest.mark.parametrize("n_top", [0, 3, 7, 1000])
def test_names(table, n_top):
    for panel, (_, rows) in zip(draw(table, n_top=n_top), table.groupby("group"), strict=True):
        called = rows[(rows["lfc"].abs() > 1) & (rows["probability"] > 0.9)].sort_values("lfc")
        down, up = called[called["lfc"] < 0], called[called["lfc"] > 0]
        expected = pd.concat([down[:n_top], up[max(len(up) - n_top, 0) :]])
        assert [text.get_text() for text in panel.texts] == expected["target_gene"].tolist()
        np.testing.assert_array_equal(
            np.reshape([text.xy for text in panel.texts], (-1, 2)), expected[["lfc", "probability"]].to_numpy()
        )


@pytest.mark.parametrize("own_axes", [False, True])
def test_names_do_not_overlap(table, own_axes):
    table["probability"] = 1.0
    axes = draw(table, ax=plt.subplots(1, 2, figsize=(9, 4))[1] if own_axes else None)
    axes[0].figure.canvas.draw()
    for panel in axes:
        boxes = sorted([Text.get_window_extent(text) for text in panel.texts], key=lambda box: box.x0)  # less the lines
        assert len(boxes) == 14
        assert all(one.x1 <= two.x0 for one, two in zip(boxes[:-1], boxes[1:], strict=True))
        frame = panel.get_window_extent()
        assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and box.y1 <= frame.y1 for box in boxes)
        highest = panel.transData.transform((0, 1))[1]
        assert all(box.y0 > highest for box in boxes)


def test_long_names_are_cut(table):
    table["target_gene"] = table["target_gene"].replace("GENE1", ";".join(f"H4C{i}" for i in range(16)))
    table.loc[1, ["lfc", "probability"]] = [9.0, 1.0]
    panel = draw(table)[0]
    assert panel.texts[-1].get_text() == "H4C0;H4C1;H4C2;…"
    assert panel.get_ylim()[1] < 1.9


def test_panels_share_their_scale(table):
    table.loc[0, "lfc"] = 25
    one, two = draw(table)
    assert one.get_xlim() == two.get_xlim()
    assert one.get_ylim() == two.get_ylim()
    assert one.get_xlim()[1] > 25
    assert one.get_xlim()[0] == -one.get_xlim()[1]


def test_missing_values_are_not_called(table):
    table.loc[:9, "lfc"] = np.nan
    table.loc[10:19, "probability"] = np.nan
    up = calls(table[20:100])[2]
    np.testing.assert_array_equal(points(draw(table)[0])[2], up)


def test_errors(table):
    with pytest.raises(KeyError, match=r"lacks the columns \['lfc', 'probability'\]"):
        draw(table.drop(columns=["lfc", "probability"]))
    with pytest.raises(ValueError, match="delta=-1 must not be negative"):
        draw(table, delta=-1)
    with pytest.raises(ValueError, match="probability=90 must be between 0 and 1"):
        draw(table, probability=90)
    with pytest.raises(ValueError, match="n_top=-1"):
        draw(table, n_top=-1)
    assert not plt.get_fignums()
