"""Curves of the prototypes' likelihood: what is drawn, smoothed, thick, and in which colour."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

import transverse as tv

TYPES = ["B cell", "T cell", "NK cell"]


def make(n_steps=40, targets=TYPES[:2], contexts=TYPES, every=1):
    steps = every * np.arange(n_steps)
    index = pd.MultiIndex.from_product([steps, targets, contexts], names=["step", "target_type", "context_type"])
    values = np.random.default_rng(0).normal(500, 20, len(index))
    return pd.DataFrame({"negative_log_likelihood": values}, index=index).reset_index()


def draw(table, *args, **kwargs):
    return tv.pl.prototype_curves(table, *args, show=False, **kwargs)


def values(table, target, context):
    rows = table[(table["target_type"] == target) & (table["context_type"] == context)]
    return rows["negative_log_likelihood"].to_numpy()


def smoothed(y):
    result = []
    for k in range(len(y)):
        window = int(min(5 + min(k, 5) + 0.1 * k, 6000))
        result.append(np.mean(y[max(0, k + 1 - window) : k + 1]))
    return result


@pytest.mark.parametrize(("n_steps", "every"), [(1, 1), (40, 1), (300, 10)])
@pytest.mark.parametrize("smooth", [True, False])
def test_curves(smooth, n_steps, every):
    table = make(n_steps, every=every)
    axes = draw(table.sample(frac=1, random_state=0), smooth=smooth)
    titles = [panel.get_title() for panel in axes]
    assert sorted(titles) == TYPES[:2]
    for panel in axes:
        assert panel.get_xscale() == "log"
        for line in panel.lines:
            y = values(table, panel.get_title(), line.get_label())
            np.testing.assert_array_equal(line.get_xdata(), every * np.arange(n_steps) + 1)
            np.testing.assert_allclose(line.get_ydata(), smoothed(y) if smooth else y)


def test_the_longest_window():
    table = make(70_000, ["B cell"], ["B cell"])
    drawn = draw(table)[0].lines[0].get_ydata()
    assert drawn[-1] == pytest.approx(table["negative_log_likelihood"][-6000:].mean())
    assert drawn[50_000] == pytest.approx(table["negative_log_likelihood"][50_001 - 5010 : 50_001].mean())


def test_the_type_of_the_same_name_is_thick():
    for panel in draw(make()):
        widths = {line.get_label(): line.get_linewidth() for line in panel.lines}
        assert widths[panel.get_title()] > 2 * max(w for name, w in widths.items() if name != panel.get_title())
    panel = draw(make(targets=["hepatocyte"]))[0]
    assert len({line.get_linewidth() for line in panel.lines}) == 1


@pytest.mark.parametrize("n_types", [3, 12, 30])
def test_styles_are_the_same_in_all_panels(n_types):
    names = [f"type {i}" for i in range(n_types)]
    first, second = (
        {line.get_label(): (to_hex(line.get_color()), line.get_linestyle()) for line in panel.lines}
        for panel in draw(make(5, contexts=names))
    )
    assert first == second
    assert list(first) == names
    assert len(set(first.values())) == n_types


def test_styles_do_not_depend_on_what_is_drawn():
    table = make()
    table = table[(table["target_type"] == "T cell") | (table["context_type"] != "B cell")]
    panel = draw(table)[0]
    alone = draw(table, "B cell")[0]
    assert [line.get_color() for line in panel.lines] == [line.get_color() for line in alone.lines]


def test_one_legend():
    axes = draw(make(targets=TYPES), ncols=2)
    assert [panel.get_legend() is not None for panel in axes] == [False, True, False]  # beside the first row
    legend = axes[1].get_legend()
    assert [text.get_text() for text in legend.texts] == TYPES
    assert len({handle.get_linewidth() for handle in legend.legend_handles}) == 1
    assert [handle.get_color() for handle in legend.legend_handles] == [line.get_color() for line in axes[0].lines]


@pytest.mark.parametrize("n_types", [10, 30])
def test_the_legend_is_no_taller_than_its_panel(n_types):
    panel = draw(make(5, contexts=[f"type {i}" for i in range(n_types)]))[-1]
    panel.figure.canvas.draw()
    assert panel.get_legend().get_window_extent().height <= panel.get_window_extent().height


def test_errors():
    table = make()
    with pytest.raises(KeyError, match=r"lacks the columns \['step', 'context_type'\]"):
        draw(table.drop(columns=["step", "context_type"]))
    with pytest.raises(ValueError, match="step must not be negative, but has -1"):
        draw(table.assign(step=table["step"] - 1))
    with pytest.raises(KeyError, match="target_types not in the table: 'NK cell'"):
        draw(table, "NK cell")
    assert not plt.get_fignums()
