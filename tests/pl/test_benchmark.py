"""Methods beside baselines and ceilings: what is drawn is what the table says."""

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_rgb

import transverse as tv

METHODS = {"net": "model", "small net": "model", "no change": "baseline", "shift": "baseline", "ridge": "baseline"}
RESPONSES = [
    *(("change", genes, metric) for genes in ("all", "top 50") for metric in ("r2", "pearson", "rmse")),
    *(("expression", genes, "r2") for genes in ("all", "top 50")),
    *(("change", genes, "deg_overlap") for genes in ("top 50", "significant")),
    *(("change", "all", "discrimination"), ("cells", "all", "variance_ratio")),
]
MEANS = [0.3, 0.5, 0.0, 0.4, 0.45]  # of Pearson correlation; in the order of METHODS


def make(scores, columns, ceilings, seed=0):
    """A table as ``tv.benchmark`` makes it."""
    rng = np.random.default_rng(seed)
    rows = []
    for score in scores:
        about = dict(zip(columns, score, strict=True))
        for name, value in ceilings.items():
            if about["metric"] in ("r2", "pearson", "rmse", "ARI"):
                rows.append({"method": name, "kind": "ceiling", **about, "mean": value, "n": 20})
        means = MEANS if about["metric"] == "pearson" else rng.permutation(MEANS)
        for (name, kind), mean in zip(METHODS.items(), means, strict=True):
            low, high = mean - rng.uniform(0.01, 0.1), mean + rng.uniform(0.01, 0.1)
            row = {"method": name, "kind": kind, **about, "mean": mean, "ci_low": low, "ci_high": high, "n": 20}
            rows.append({**row, "best_baseline": "ridge"})
    return pd.DataFrame(rows, columns=["method", "kind", *columns, "mean", "ci_low", "ci_high", "n", "best_baseline"])


@pytest.fixture
def table():
    return make(RESPONSES, ["of", "genes", "metric"], {"split half": 0.6, "noise-free": 0.8})


@pytest.fixture
def labels():
    scores = [
        (cells, metric, None) for metric in ("balanced_accuracy", "ARI", "accuracy") for cells in ("shared", "all")
    ]
    scores = [score for score in scores if score[:2] != ("all", "balanced_accuracy")]
    scores += [("shared", "recall", cell_type) for cell_type in ("B cell", "T cell")]
    scores += [("all", "unknown_auroc", None)]
    return make(scores, ["cells", "metric", "cell_type"], {"own labels": 0.9})


def draw(table, *args, **kwargs):
    return tv.pl.benchmark(table, *args, show=False, **kwargs)


def titles(axes):
    return [panel.get_title().replace("\n", ": ") for panel in axes]


def names(panel):
    return [panel.yaxis.get_major_formatter()(y) for y in panel.get_yticks()]  # also where they are not written


def drawn(panel):
    """Means, interval, and colour of each method that is drawn."""
    points, lines = (
        [collection for collection in panel.collections if isinstance(collection, kind)]
        for kind in (PathCollection, LineCollection)
    )
    found = {}
    for collection in points:
        for x, y in collection.get_offsets():
            found[names(panel)[int(y)]] = [x, None, None, tuple(collection.get_facecolor()[0, :3])]
    for collection in lines:
        for (x0, y0), (x1, y1) in filter(len, collection.get_segments()):  # without an interval there is none
            if y0 == y1:
                found[names(panel)[int(y0)]][1:3] = [x0, x1]
                assert tuple(collection.get_color()[0, :3]) == found[names(panel)[int(y0)]][3]
    return found


def upright(panel, style):
    """Places of upright lines, dashed or solid."""
    return [
        collection.get_segments()[0][0, 0]
        for collection in panel.collections
        if isinstance(collection, LineCollection)
        and len(collection.get_segments()) == 1
        and collection.get_segments()[0][0, 0] == collection.get_segments()[0][1, 0]
        and (collection.get_linestyle()[0][1] is None) == (style == "solid")
    ]


def texts(panel):
    return [text.get_text() for text in panel.texts]


def test_what_is_drawn_is_the_table(table):
    axes = draw(table)
    chosen = [("change", "pearson"), ("change", "r2"), ("expression", "r2"), ("change", "discrimination")]
    for panel, (of, metric) in zip(axes, chosen, strict=True):
        rows = table[(table["of"] == of) & (table["metric"] == metric) & (table["genes"] == "all")].set_index("method")
        found = drawn(panel)
        assert set(found) == set(METHODS)
        for name, (mean, low, high, color) in found.items():
            assert (mean, low, high) == tuple(rows.loc[name, ["mean", "ci_low", "ci_high"]])
            assert (color == to_rgb("#0173b2")) == (METHODS[name] == "model")
            assert (len(set(color)) == 1) == (METHODS[name] == "baseline")  # grey
        assert upright(panel, "solid") == [rows.loc["ridge", "mean"]]
        assert upright(panel, "dashed") == sorted(rows.loc[rows["kind"] == "ceiling", "mean"])
        assert texts(panel) == ([] if metric == "discrimination" else ["split half", "noise-free"])
        low, high = panel.get_xlim()
        numbers = rows[["mean", "ci_low", "ci_high"]].to_numpy(dtype=float)
        assert low < np.nanmin(numbers)
        assert np.nanmax(numbers) < high


def test_order(table):
    expected = ["small net", "net", "ridge", "shift", "no change"]
    for panel in draw(table):
        assert names(panel) == expected  # that of the first panel's means, models first, in all panels
        assert panel.get_ylim()[0] > panel.get_ylim()[1]  # from the top
    first = table[(table["metric"] == "rmse") & (table["genes"] == "all")].set_index("method")["mean"]
    for panel in draw(table, ["rmse", "pearson"]):
        assert names(panel)[:2] == first[["net", "small net"]].sort_values().index.tolist()
        assert names(panel)[2:] == first[["no change", "shift", "ridge"]].sort_values().index.tolist()


def test_scores_and_titles(table):
    assert titles(draw(table)) == [
        "Pearson correlation: change, all genes",
        "R²: change, all genes",
        "R²: expression, all genes",
        "discrimination: change, all genes",
    ]


@pytest.mark.parametrize(
    ("metric", "chosen", "expected"),
    [
        ("pearson", {}, ["Pearson correlation: change, all genes"]),
        (["rmse", "r2", "rmse"], {}, ["RMSE: change, all genes", "R²: change, all genes"]),
        ("r2", {"of": "expression", "genes": "top 50"}, ["R²: expression, top 50 genes"]),
        ("r2", {"of": ["expression", "change"]}, ["R²: expression, all genes", "R²: change, all genes"]),
        ("r2", {"genes": ["top 50", "all"]}, ["R²: change, top 50 genes", "R²: change, all genes"]),
        # of what there is, where it is not there for the change, or for all genes
        ("variance_ratio", {}, ["variance ratio: cells, all genes"]),
        ("deg_overlap", {}, [f"overlap of DEGs: change, {genes} genes" for genes in ("top 50", "significant")]),
        (
            ["deg_overlap", "rmse"],
            {"genes": "top 50"},
            ["overlap of DEGs: change, top 50 genes", "RMSE: change, top 50 genes"],
        ),
        # what the defaults have of it
        (None, {"of": "expression"}, ["R²: expression, all genes"]),
        (None, {"genes": "significant", "of": "change"}, None),
        (
            None,
            {"genes": "top 50"},
            ["Pearson correlation: change, top 50 genes", "R²: change, top 50 genes", "R²: expression, top 50 genes"],
        ),
    ],
)
def test_choices(table, metric, chosen, expected):
    if expected is None:
        with pytest.raises(ValueError, match="has no value to draw. Its scores: 'r2', 'pearson'"):
            draw(table, metric, **chosen)
    else:
        assert titles(draw(table, metric, **chosen)) == expected


def test_signatures():
    scores = [("signature", genes, metric) for genes in ("all", "top 20") for metric in ("r2", "pearson", "rmse")]
    axes = draw(make(scores, ["of", "genes", "metric"], {"replicates": 0.7}))
    assert titles(axes) == ["Pearson correlation: signature, all genes", "RMSE: signature, all genes"]
    assert texts(axes[0]) == ["replicates"]


def test_labels(labels):
    shared = "cells of shared types"
    everything = [f"balanced accuracy: {shared}", f"ARI: {shared}", "AUROC of unknown cells: all cells"]
    assert titles(draw(labels)) == everything
    assert titles(draw(labels, "ARI", cells="all")) == ["ARI: all cells"]
    assert titles(draw(labels, "recall")) == ["recall: B cell", "recall: T cell"]
    labels.loc[labels["metric"] == "unknown_auroc", ["mean", "ci_low", "ci_high"]] = np.nan
    assert titles(draw(labels)) == everything[:2]
    with pytest.raises(ValueError, match="No method has a value of 'unknown_auroc'"):
        draw(labels, "unknown_auroc")


def test_genes():
    scores = [(genes, metric) for genes in ("all", "mine") for metric in ("recall@1", "recall@5", "mrr")]
    table = make(scores, ["genes", "metric"], {})
    expected = [f"{metric}: all genes" for metric in ("recall@1", "recall@5", "mean reciprocal rank")]
    assert titles(draw(table)) == expected
    assert titles(draw(table, "mrr", genes="mine")) == ["mean reciprocal rank: mine genes"]


def test_other_scores_only():
    assert titles(draw(make([("speed",)], ["metric"], {}))) == ["speed"]


def test_which_side_is_better(table):
    higher, lower, neither = draw(table, ["pearson", "rmse", "variance_ratio"])
    assert higher.get_xlabel() == "better →"
    assert lower.get_xlabel() == "← better"
    assert neither.get_xlabel() == ""


def test_fewer_values_are_marked(table):
    table.loc[(table["method"] == "shift") & (table["metric"] == "pearson"), "n"] = 7
    first, second = draw(table, ["pearson", "rmse"])
    (mark,) = [text for text in first.texts if text.get_text().startswith("n = ")]
    assert mark.get_text() == "n = 7"
    assert mark.xy == (0.4, names(first).index("shift"))
    assert texts(second) == ["split half", "noise-free"]


def test_missing_values(table):
    is_pearson = table["metric"] == "pearson"
    table.loc[is_pearson & (table["method"] == "shift"), ["mean", "ci_low", "ci_high"]] = np.nan
    table.loc[is_pearson & (table["method"] == "ridge"), ["ci_low", "ci_high"]] = np.nan
    table.loc[is_pearson & (table["method"] == "noise-free"), "mean"] = np.nan
    first, second = draw(table, ["pearson", "rmse"])
    assert set(drawn(first)) == {"net", "small net", "no change", "ridge"}
    assert set(drawn(second)) == set(METHODS)
    assert drawn(first)["ridge"][:3] == [0.45, None, None]
    assert texts(first) == ["split half"]
    assert names(first) == ["small net", "net", "ridge", "no change", "shift"]  # unknown in the first panel: last
    assert names(draw(table, "pearson")[0]) == ["small net", "net", "ridge", "no change"]


def test_one_method(table):
    only = table[(table["method"] == "net")].drop(columns="best_baseline")
    (panel,) = draw(only, "pearson")
    assert list(drawn(panel)) == ["net"]
    assert upright(panel, "solid") == upright(panel, "dashed") == []
    assert [text.get_text() for text in panel.figure.legends[0].get_texts()] == ["model"]


def test_names_of_methods_are_written_once_a_row(table):
    axes = draw(table, ["pearson", "r2", "rmse"], ncols=2)
    assert [panel.yaxis.get_tick_params()["labelleft"] for panel in axes] == [True, False, True]
    places = [panel.get_subplotspec() for panel in axes]
    assert [(place.rowspan.start, place.colspan.start) for place in places] == [(0, 0), (0, 1), (1, 0)]


def test_legend(table):
    figure = draw(table)[0].figure
    found = [text.get_text() for text in figure.legends[0].get_texts()]
    assert found == ["model", "baseline", "strongest baseline", "ceiling"]


@pytest.mark.parametrize("ceilings", [(0.6, 0.61), (0.0, 0.01), (0.2, 0.9)])
def test_texts_do_not_overlap(table, ceilings):
    for name, value in zip(("split half", "noise-free"), ceilings, strict=True):
        table.loc[table["method"] == name, "mean"] = value
    table.loc[table["method"].isin(["shift", "ridge"]), "n"] = 7
    axes = draw(table)
    axes[0].figure.canvas.draw()
    for panel in axes:
        boxes = [text.get_window_extent() for text in (*panel.texts, panel.title, *panel.get_xticklabels())]
        assert not any(one.overlaps(two) for i, one in enumerate(boxes) for two in boxes[:i])
        lowest, highest = sorted(panel.get_window_extent().intervaly)
        assert all(lowest <= box.y0 and box.y1 <= highest for box in boxes[: len(panel.texts)])


def test_own_axes(table):
    figure, own = plt.subplots(1, 3)
    axes = draw(table, ["pearson", "r2"], ax=own[1:])
    assert axes == list(own[1:])
    assert plt.get_fignums() == [figure.number]
    assert not figure.legends
    assert draw(table, "pearson", ax=own[0]) == [own[0]]
    with pytest.raises(ValueError, match="an Axes for each of the 4 scores, but holds 3"):
        draw(table, ax=own)
    subfigure = plt.figure().subfigures(1, 2)[0]
    draw(table, "pearson", ax=subfigure.subplots())


@pytest.mark.parametrize("suffix", ["png", "pdf"])
def test_save(table, tmp_path, suffix):
    draw(table, save=tmp_path / f"figure.{suffix}")
    assert (tmp_path / f"figure.{suffix}").stat().st_size > 1000


@pytest.mark.parametrize(
    ("show", "own_axes", "autoshow", "expected"),
    [(True, True, False, 1), (None, False, True, 1), (None, True, True, 0)],
)
def test_show(table, monkeypatch, show, own_axes, autoshow, expected):
    calls = []
    monkeypatch.setattr(plt, "show", lambda *args, **kwargs: calls.append(1))
    monkeypatch.setattr(sc, "settings", SimpleNamespace(autoshow=autoshow))
    tv.pl.benchmark(table, "r2", show=show, ax=plt.subplots()[1] if own_axes else None)
    assert len(calls) == expected


def test_the_table_is_left_alone(table):
    before = table.copy()
    axes = draw(table, genes=["all", "top 50"])
    assert isinstance(axes, list)
    pd.testing.assert_frame_equal(table, before)
    shuffled = table.sample(frac=1, random_state=0).set_index("kind", drop=False)
    assert drawn(draw(shuffled, "r2")[0]) == drawn(draw(table, "r2")[0])


def test_categories(table):
    for column in ("method", "kind", "of", "genes", "metric", "best_baseline"):
        table[column] = table[column].astype("category")
    assert names(draw(table)[0]) == ["small net", "net", "ridge", "shift", "no change"]


def test_errors(table, labels):
    with pytest.raises(TypeError, match="table must be a pandas.DataFrame, but got dict"):
        draw(table.to_dict())
    with pytest.raises(KeyError, match=r"table lacks the columns \['kind', 'n'\]"):
        draw(table.drop(columns=["kind", "n"]))
    with pytest.raises(ValueError, match="table is empty"):
        draw(table.iloc[:0])
    with pytest.raises(KeyError, match="metric not in the table: 'mse'. Known: 'r2', 'pearson', 'rmse'"):
        draw(table, ["pearson", "mse"])
    with pytest.raises(ValueError, match="metric must name at least one"):
        draw(table, [])
    with pytest.raises(KeyError, match="of not in the table: 'changes'. Known: 'change', 'expression', 'cells'"):
        draw(table, of="changes")
    with pytest.raises(KeyError, match="genes not in the table: 'top 5'"):
        draw(table, genes="top 5")
    with pytest.raises(KeyError, match=r"lacks the columns \['cells'\]"):
        draw(table, cells="all")
    with pytest.raises(KeyError, match=r"lacks the columns \['genes'\]"):
        draw(labels, genes="all")
    with pytest.raises(KeyError, match="has 'discrimination', but not for .* It has genes: 'all'"):
        draw(table, "discrimination", genes="top 50")
    with pytest.raises(ValueError, match="several rows of 'net', 'small net'"):
        draw(pd.concat([table, table[table["kind"] == "model"]]))
    with pytest.raises(
        ValueError, match="Unknown kinds in the table: 'network'. Known: 'model', 'baseline', 'ceiling'"
    ):
        draw(table.replace({"kind": {"model": "network"}}))
    with pytest.raises(ValueError, match="has no value to draw"):
        draw(table.assign(mean=np.nan))
    with pytest.raises(ValueError, match="ncols=0"):
        draw(table, ncols=0)
    assert not plt.get_fignums()
