"""Maps of genes: names and colours of cells, marks, the choice of genes, and what is refused."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba
from matplotlib.patches import Rectangle

import transverse as tv
from transverse.pl._figure import COLORS

CANDIDATES = {  # the targets of each source gene, from rank 1, and how probable they are
    "m1": (["r1", "r2", "r3"], [0.5, 0.3, 0.1]),
    "m2": (["r2", "r1", "r5"], [0.9, 0.05, 0.01]),
    "m3": (["r1", "r4", "r2"], [0.2, 0.2, 0.1]),
    "m4": (["r4", "r3"], [0.7, 0.3]),
}
MUTUAL = [("m1", "r1"), ("m2", "r2"), ("m4", "r4")]


@pytest.fixture
def table():
    """The map in random order; m4 has no third candidate."""
    rows = [
        (source, target, -1 / p, p, i + 1, (source, target) in MUTUAL)
        for source, pairs in CANDIDATES.items()
        for i, (target, p) in enumerate(zip(*pairs, strict=True))
    ]
    columns = ["source", "target", "score", "probability", "rank", "is_mutual_best"]
    return pd.DataFrame(rows, columns=columns).sample(frac=1, random_state=0)


def draw(table, genes=None, **kwargs):
    return tv.pl.gene_map(table, genes, **{"show": False, **kwargs})


def rows(panel):
    return [label.get_text() for label in panel.get_yticklabels()]


def colours(panel):
    return np.ma.filled(np.ma.asarray(panel.images[0].get_array(), dtype=float), np.nan)


def texts(panel):
    shape = colours(panel).shape
    cells = {tuple(map(round, text.get_position())): text.get_text() for text in panel.texts}
    return [[cells[j, i] for j in range(shape[1])] for i in range(shape[0])]


def bordered(panel):
    """Source and target of the cells with a border, by what stands there."""
    found = []
    for patch in panel.patches:
        assert isinstance(patch, Rectangle) and not patch.get_fill()
        x, y = patch.get_x() + patch.get_width() / 2, patch.get_y() + patch.get_height() / 2
        assert 0 < patch.get_width() < 1 and 0 < patch.get_height() < 1
        found.append((rows(panel)[round(y)], texts(panel)[round(y)][round(x)]))
    return sorted(found)


def ticked(panel):
    points = panel.collections[0].get_offsets() if panel.collections else []
    return sorted((rows(panel)[round(y)], texts(panel)[round(y)][round(x)]) for x, y in points)


def legend(panel):
    return [text.get_text() for own in panel.figure.legends for text in own.texts]


def test_names_and_colours(table):
    panel = draw(table)
    genes = ["m2", "m4", "m1", "m3"]  # by the probability of the best
    assert rows(panel) == genes
    assert texts(panel) == [CANDIDATES[gene][0] + [""] * (3 - len(CANDIDATES[gene][0])) for gene in genes]
    expected = [CANDIDATES[gene][1] + [np.nan] * (3 - len(CANDIDATES[gene][1])) for gene in genes]
    np.testing.assert_array_equal(colours(panel), expected)
    assert panel.images[0].get_clim() == (0, 1)
    assert panel.images[0].colorbar.ax.get_ylabel() == "probability"
    assert [label.get_text() for label in panel.get_xticklabels()] == ["1", "2", "3"]
    assert bordered(panel) == sorted(MUTUAL)
    assert legend(panel) == ["each the other's best"]


def test_scores_where_there_are_no_probabilities(table):
    for own in (table.drop(columns="probability"), table.assign(probability=np.nan)):
        panel = draw(own, n_top=2)
        genes = ["m2", "m4", "m1", "m3"]
        expected = [[-1 / p for p in CANDIDATES[gene][1][:2]] for gene in genes]
        assert rows(panel) == genes
        np.testing.assert_allclose(colours(panel), expected)
        np.testing.assert_allclose(panel.images[0].get_clim(), (np.min(expected), np.max(expected)))
        assert panel.images[0].colorbar.ax.get_ylabel() == "score"
    only = table.drop(columns="score")
    np.testing.assert_array_equal(colours(draw(only)), colours(draw(table)))


def test_one_missing_value_leaves_its_name_legible(table):
    own = table.assign(probability=table["probability"].where(table["target"] != "r5"))
    panel = draw(own, "m2", cmap="Greys_r")  # small values are black
    assert np.isnan(colours(panel)).tolist() == [[False, False, True]]
    assert [text.get_text() for text in panel.texts] == ["r2", "r1", "r5"]
    assert [text.get_color() for text in panel.texts] == ["black", "white", "black"]


@pytest.mark.parametrize("genes", [["m3", "m1"], np.array(["m3", "m1"]), pd.Series(["m3", "m1", "m3"])])
def test_chosen_genes(table, genes):
    panel = draw(table, genes)
    assert rows(panel) == ["m3", "m1"]
    assert texts(panel) == [CANDIDATES["m3"][0], CANDIDATES["m1"][0]]
    assert rows(draw(table, "m4")) == ["m4"]
    assert texts(draw(table, "m4")) == [["r4", "r3"]]  # as many columns as there are candidates


def test_how_many(table):
    assert rows(draw(table, n_genes=2)) == ["m2", "m4"]
    assert texts(draw(table, n_genes=2, n_top=1)) == [["r2"], ["r4"]]
    assert colours(draw(table, n_top=None)).shape == (4, 3)
    long = pd.DataFrame({"source": [f"m{i}" for i in range(30)], "target": "r", "rank": 1, "score": np.arange(30)})
    assert rows(draw(long)) == [f"m{i}" for i in range(29, 9, -1)]
    ties = long.assign(score=1.0)
    assert rows(draw(ties, n_genes=3)) == ["m0", "m1", "m2"]
    # a candidate in between that is absent leaves its cell empty
    assert texts(draw(table[~((table["source"] == "m2") & (table["rank"] == 2))], "m2")) == [["r2", "", "r5"]]


@pytest.mark.parametrize("kind", ["mapping", "series", "category"])
def test_symbols(table, kind):
    names = {"m1": "Alb", "r1": "ALB", "r2": None, "r3": "a_gene_of_a_very_long_name", "other": "X"}
    if kind != "mapping":
        names = pd.Series(names, dtype=object if kind == "series" else "category")
    panel = draw(table, ["m1", "m2"], names=names)
    assert rows(panel) == ["Alb", "m2"]
    assert texts(panel) == [["ALB", "r2", "a_gene_of_a_very_…"], ["r2", "ALB", "r5"]]


TRUTH = {"m1": ["r2", "r3"], "m2": "r2", "m3": "r9"}


@pytest.mark.parametrize(
    "truth",
    [
        TRUTH,
        pd.DataFrame({"source": ["m1", "m1", "m2", "m3"], "target": ["r2", "r3", "r2", "r9"]}),
        pd.DataFrame({"source": ["m1", "m1", "m2", "m3"], "target": ["r2", "r3", "r2", "r9"]}, dtype="category"),
        pd.Series(["r2", "r3", "r2", "r9"], index=["m1", "m1", "m2", "m3"], dtype="string"),
    ],
)
def test_right_candidates(table, truth):
    panel = draw(table, truth=truth)
    expected = [("m1", "r2"), ("m1", "r3"), ("m2", "r2")]
    assert ticked(panel) == expected
    bold = [text.get_text() for text in panel.texts if text.get_fontweight() == "bold"]
    assert sorted(bold) == ["r2", "r2", "r3"]
    grey = {label.get_text() for label in panel.get_yticklabels() if label.get_color() == "#8c8c8c"}
    assert grey == {"m4"}
    assert legend(panel) == ["each the other's best", "true target", "true target not known"]
    assert panel.collections[0].get_edgecolor()[0].tolist() == list(to_rgba(COLORS[2]))
    assert legend(draw(table, "m3", truth=truth)) == []  # nothing to explain
    assert legend(draw(table.drop(columns="is_mutual_best"), "m2", truth=truth)) == ["true target"]


@pytest.mark.parametrize("dtype", [object, "category", "string"])
def test_types_of_names(table, dtype):
    own = table.astype({"source": dtype, "target": dtype})
    panel = draw(own, truth=TRUTH)
    expected = draw(table, truth=TRUTH)
    assert rows(panel) == rows(expected) and texts(panel) == texts(expected)
    np.testing.assert_array_equal(colours(panel), colours(expected))
    assert ticked(panel) == ticked(expected)


@pytest.mark.parametrize("dtype", [object, "boolean", int])
def test_types_of_marks(table, dtype):
    own = table.astype({"is_mutual_best": dtype, "rank": float})
    if dtype is not int:
        own["is_mutual_best"] = own["is_mutual_best"].where(own["is_mutual_best"].astype(bool))  # missing is no mark
    assert bordered(draw(own)) == sorted(MUTUAL)


def test_colour_scale(table):
    panel = draw(table, vmax=0.5, cmap="Greens")
    assert panel.images[0].get_clim() == (0, 0.5) and panel.images[0].cmap.name == "Greens"
    same = table.drop(columns="probability").assign(score=2.0)
    assert np.unique(colours(draw(same, n_top=2))).tolist() == [2.0]


def test_input_is_left_alone(table):
    names, truth = pd.Series({"m1": "Alb"}), pd.DataFrame({"source": ["m1"], "target": ["r1"]})
    before = [given.copy() for given in (table, names, truth)]
    draw(table, names=names, truth=truth)
    pd.testing.assert_frame_equal(table, before[0])
    pd.testing.assert_series_equal(names, before[1])
    pd.testing.assert_frame_equal(truth, before[2])


def test_map_of_the_tools():
    data = tv.datasets.simulate_reactomes(n_genes=60, n_animals=3)
    reactome = tv.tl.reactome(data, layer="counts")
    table = tv.tl.gene_map(reactome, "mouse", "rat", n_top=5, n_permutations=0)
    symbols = pd.concat([own.var["symbol"] for own in data.values()])
    panel = draw(table, names=symbols)
    best = table[table["rank"] == 1].sort_values("score", ascending=False, kind="stable")[:20]
    assert rows(panel) == symbols[best["source"]].tolist()
    assert [row[0] for row in texts(panel)] == symbols[best["target"]].tolist()
    assert len(panel.patches) == best["is_mutual_best"].sum()
    baseline = tv.baselines.ReactomeCorrelation().fit({name: own.copy() for name, own in data.items()}, layer="counts")
    assert not draw(baseline.map_genes("mouse", "rat", n_top=5)).patches  # which has no such column


def test_twenty_by_five_is_legible():
    rng = np.random.default_rng(0)
    names = [f"ENSRNOG{i:011d}" for i in rng.integers(0, 9999, 100)]
    table = pd.DataFrame({"source": np.repeat([f"ENSMUSG{i:011d}" for i in range(20)], 5), "target": names})
    table = table.assign(rank=np.tile(range(1, 6), 20), probability=rng.uniform(size=100), is_mutual_best=True)
    panel = draw(table, table["source"], truth=table)
    renderer = panel.figure.canvas.get_renderer()
    panel.figure.draw_without_rendering()
    marks = panel.collections[0]
    places = marks.get_offset_transform().transform(marks.get_offsets())
    assert [text.get_text() for text in panel.texts] == names  # none is cut
    for k, text in enumerate(panel.texts):
        assert text.get_fontsize() >= 6
        box = text.get_window_extent(renderer)
        left, bottom, right, top = panel.transData.transform(
            [[k % 5 - 0.5, k // 5 + 0.5], [k % 5 + 0.5, k // 5 - 0.5]]
        ).ravel()
        assert left < places[k, 0] < box.x0 and box.x1 < right and bottom < box.y0 and box.y1 < top
    labels = [label.get_window_extent(renderer) for label in panel.get_yticklabels()]
    assert all(low.y1 < high.y0 for high, low in zip(labels, labels[1:], strict=False))


def test_small_axes(table):
    figure, ax = plt.subplots(figsize=(2.2, 0.5))
    panel = draw(table, ax=ax)
    assert not figure.legends and rows(panel) == []
    width = panel.get_window_extent().width / 3
    assert all(text.get_window_extent().width < width for text in panel.texts)


def test_errors(table):
    for argument in ("n_genes", "n_top"):
        for value in (0, 1.5, True):
            with pytest.raises(ValueError, match=f"{argument}={value} must be a whole number of at least 1"):
                draw(table, **{argument: value})
    with pytest.raises(TypeError, match="table must be a pandas.DataFrame, but got dict"):
        draw(table.to_dict())
    with pytest.raises(ValueError, match="table is empty"):
        draw(table[:0])
    with pytest.raises(KeyError, match=r"table lacks the columns \['target'\]"):
        draw(table.drop(columns="target"))
    with pytest.raises(KeyError, match="table lacks a column 'probability' or 'score'. It has: 'source'"):
        draw(table.drop(columns=["score", "probability"]))
    with pytest.raises(ValueError, match=r"table\['target'\] is missing in 3 of 11 rows"):
        draw(table.assign(target=table["target"].where(table["target"] != "r1")))
    for wrong in (0, 1.5):
        with pytest.raises(
            ValueError, match=rf"table\['rank'\] must hold whole numbers of at least 1, but has '{wrong}"
        ):
            draw(table.assign(rank=table["rank"].where(table["rank"] != 2, wrong)))
    with pytest.raises(ValueError, match=r"table\['score'\] must hold numbers"):
        draw(table.assign(score="high"))
    with pytest.raises(ValueError, match=r"table\['score'\] has infinite values"):
        draw(table.assign(score=np.inf))
    with pytest.raises(ValueError, match="table has no value in 'probability' and 'score'"):
        draw(table.assign(score=np.nan, probability=np.nan))
    with pytest.raises(ValueError, match=r"table\['probability'\] must be between 0 and 1, but has '1.4'"):
        draw(table.assign(probability=table["probability"].replace(0.7, 1.4)))
    with pytest.raises(ValueError, match=r"table\['is_mutual_best'\] must hold True or False only"):
        draw(table.assign(is_mutual_best="yes"))
    with pytest.raises(ValueError, match="one candidate for each rank of a source gene, but has several: 'm2, rank 1'"):
        draw(pd.concat([table, table[(table["source"] == "m2") & (table["rank"] == 1)]]))
    with pytest.raises(ValueError, match="The table has no candidate of the first 1 ranks"):
        draw(table[table["rank"] > 1], n_top=1)
    with pytest.raises(KeyError, match="genes not in the table: 'x'. Known: 'm"):
        draw(table, ["m1", "x"])
    with pytest.raises(ValueError, match="genes must name at least one, but is empty"):
        draw(table, [])
    with pytest.raises(ValueError, match=r"table\['probability'\] has no value of the genes to be drawn: 'm2'"):
        draw(table.assign(probability=table["probability"].where(table["source"] != "m2")), "m2")
    for vmax, low in ((0, "0"), (-1, "0")):
        with pytest.raises(ValueError, match=f"vmax={vmax} must be above the value of the lightest colour, {low}"):
            draw(table, vmax=vmax)
    with pytest.raises(ValueError, match="vmax=nan must be a finite number"):
        draw(table, vmax=np.nan)
    with pytest.raises(TypeError, match="names must be a mapping or a Series, but got list"):
        draw(table, names=["Alb"])
    with pytest.raises(ValueError, match="The index of names must be unique, but these repeat: 'm1'"):
        draw(table, names=pd.Series(["Alb", "Apoa1"], index=["m1", "m1"]))
    with pytest.raises(KeyError, match=r"truth lacks the columns \['target'\]"):
        draw(table, truth=pd.DataFrame({"source": ["m1"]}))
    with pytest.raises(ValueError, match="truth is empty"):
        draw(table, truth={})
    assert not plt.get_fignums()
