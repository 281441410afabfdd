"""Heat maps of reactomes: what is drawn where, what is grey, what is named, and what is refused."""

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba
from matplotlib.patches import Rectangle

import transverse as tv
from transverse.pl._figure import COLORS

heatmap = tv.pl.reactome_heatmap
ORGANS, DRUGS = ["liver", "brain", "heart"], ["d2", "d1"]


@pytest.fixture
def reactome():
    """Entries in random order; the rat lacks one, and one gene of the mouse has none."""
    rng = np.random.default_rng(0)
    var = pd.DataFrame([(o, d) for o in ORGANS for d in DRUGS], columns=["organ", "drug"])
    var.index = var["organ"] + "|" + var["drug"]
    var = var.sample(frac=1, random_state=0)
    var["organ"] = pd.Categorical(var["organ"], categories=ORGANS)
    var["drug"] = pd.Categorical(var["drug"], categories=DRUGS)
    species = ["mouse"] * 8 + ["rat"] * 6
    obs = pd.DataFrame({"species": species}, index=[f"{name}_{i}" for i, name in enumerate(species)])
    values = rng.normal(size=(14, 6)).astype(np.float32) * np.linspace(0.1, 2, 14)[:, None].astype(np.float32)
    values[8:, var.index.get_loc("brain|d1")] = np.nan
    values[2] = np.nan
    return ad.AnnData(values, obs=obs, var=var, layers={"se": np.abs(values)})


def drawn(panel):
    return np.ma.filled(panel.images[0].get_array(), np.nan)


def names(panel):
    return [label.get_text() for label in panel.get_yticklabels()]


ORDER = {
    "organ": [f"{o}|{d}" for o in ORGANS for d in DRUGS],
    "drug": [f"{o}|{d}" for d in DRUGS for o in ORGANS],
}


@pytest.mark.parametrize("groupby", ["organ", "drug"])
def test_values_and_order(reactome, groupby):
    before = reactome.copy()
    genes = ["mouse_5", "rat_9", "mouse_1", "rat_13", "mouse_2"]
    axes = heatmap(reactome, genes, groupby=groupby, show=False)
    table = reactome.to_df()[ORDER[groupby]]
    for panel, own in zip(axes, (["mouse_5", "mouse_1", "mouse_2"], ["rat_9", "rat_13"]), strict=True):
        np.testing.assert_array_equal(drawn(panel), table.loc[own])
        assert names(panel) == own
    assert [panel.get_title() for panel in axes] == ["mouse, 3 genes", "rat, 2 genes"]
    groups, levels = (ORGANS, DRUGS) if groupby == "organ" else (DRUGS, ORGANS)
    size = len(levels)
    for panel in axes:
        image = panel.images[0]
        vmin, vmax = image.get_clim()
        assert vmin == -vmax and vmax == pytest.approx(np.nanquantile(np.abs(table.loc[genes]), 0.99))
        assert image.cmap.get_bad().tolist() == list(to_rgba("#b3b3b3"))
        assert [label.get_text() for label in panel.get_xticklabels()] == groups
        assert panel.get_xticks().tolist() == [size * i + (size - 1) / 2 for i in range(len(groups))]
        assert [line.get_xdata()[0] for line in panel.lines] == [size * i - 0.5 for i in range(1, len(groups))]
        strip = [patch for patch in panel.patches if isinstance(patch, Rectangle)]
        assert [patch.get_x() for patch in strip] == [i - 0.5 for i in range(6)]
        assert [patch.get_facecolor() for patch in strip] == [to_rgba(COLORS[i % size]) for i in range(6)]
        assert all(patch.get_y() + patch.get_height() < -0.5 for patch in strip)  # above the first row
        assert panel.get_ylim()[1] <= strip[0].get_y()
    (legend,) = axes[0].figure.legends
    assert [text.get_text() for text in legend.texts] == [*levels, "not measured"]
    np.testing.assert_array_equal(reactome.X, before.X)
    pd.testing.assert_frame_equal(reactome.obs, before.obs)


def test_strongest_genes(reactome):
    axes = heatmap(reactome, n_genes=4, show=False)
    strength = reactome.to_df().abs().mean(axis=1)
    for panel, species in zip(axes, ("mouse", "rat"), strict=True):
        own = strength[(reactome.obs["species"] == species).to_numpy()].dropna().nlargest(4).index
        assert set(names(panel)) == set(own)
        np.testing.assert_array_equal(drawn(panel), reactome.to_df().loc[names(panel), ORDER["organ"]])
    assert len(drawn(heatmap(reactome, species="rat", n_genes=99, show=False)[0])) == 6
    (panel,) = heatmap(reactome, species="rat", n_genes=1, show=False)
    assert names(panel) == [strength[8:].idxmax()]


def test_similar_genes_are_neighbours():
    base = np.random.default_rng(0).normal(size=(2, 6))
    values = np.concatenate([base + 0.01 * i for i in range(4)])
    var = pd.DataFrame({"organ": list("aabbcc"), "drug": list("xyxyxy")}, index=list("123456"))
    r = ad.AnnData(values, obs=pd.DataFrame({"species": "mouse"}, index=[f"g{i}" for i in range(8)]), var=var)
    own = [int(name[1:]) % 2 for name in names(heatmap(r, show=False)[0])]
    assert own in ([0] * 4 + [1] * 4, [1] * 4 + [0] * 4)


def test_pairs_and_species(reactome):
    pairs = pd.DataFrame({"source": ["mouse_1", "mouse_0", "mouse_1"], "target": ["rat_9", "rat_10", "rat_8"]})
    axes = heatmap(reactome, {"rat": pairs["target"], "mouse": pairs["source"]}, show=False)
    assert [panel.get_title() for panel in axes] == ["rat, 3 genes", "mouse, 3 genes"]
    assert names(axes[0]) == ["rat_9", "rat_10", "rat_8"] and names(axes[1]) == ["mouse_1", "mouse_0", "mouse_1"]
    (panel,) = heatmap(reactome, ["mouse_1", "rat_9"], "rat", show=False)
    assert names(panel) == ["rat_9"]
    axes = heatmap(reactome, species=["rat", "mouse"], ncols=1, show=False)
    assert [panel.get_title().split(",")[0] for panel in axes] == ["rat", "mouse"]
    assert axes[0].get_position().y0 > axes[1].get_position().y1


def test_colours_and_layers(reactome):
    axes = heatmap(reactome, vmax=3, layer="se", palette=["red", "blue"], cmap="PuOr", show=False)
    assert axes[0].images[0].get_clim() == (-3, 3) and axes[0].images[0].cmap.name == "PuOr"
    assert axes[0].patches[1].get_facecolor() == to_rgba("blue")
    bar = axes[0].figure.axes[-1]
    assert bar.get_ylabel() == "standard error of the change"
    reactome.uns["reactome"] = {"method": "standardized", "parameters": {"l1_normalize": True}}
    label = heatmap(reactome, palette={"d1": "red", "d2": "blue"}, show=False)[0].figure.axes[-1].get_ylabel()
    assert label == "change / standard error, share of the gene's"
    reactome.X = np.zeros(reactome.shape)
    axes = heatmap(reactome, show=False)
    assert axes[0].images[0].get_clim() == (-1, 1)
    assert "not measured" not in [text.get_text() for text in axes[0].figure.legends[0].texts]


def test_own_axes_and_file(reactome, tmp_path):
    figure, axes = plt.subplots(1, 2, figsize=(9, 1))
    returned = heatmap(reactome, ax=axes, save=tmp_path / "figure.png")
    assert returned == list(axes) and not figure.legends
    assert (tmp_path / "figure.png").stat().st_size > 0
    assert all(names(panel) == [] for panel in axes)  # too low for eight names
    assert not set(plt.get_fignums()) - {figure.number}


def test_names_stay_apart():
    data = tv.datasets.simulate_reactomes(n_genes=150, n_animals=2, missing=0.1)
    r = tv.tl.reactome(data, layer="counts")
    for n in (60, 120):
        axes = heatmap(r, n_genes=n, show=False)
        renderer = axes[0].figure.canvas.get_renderer()
        for panel in axes:
            labels = panel.get_yticklabels()
            assert len(labels) == (n if n < 100 else 0)
            boxes = sorted((label.get_window_extent(renderer) for label in labels), key=lambda box: box.y0)
            assert all(low.y1 <= high.y0 + 0.5 for low, high in zip(boxes, boxes[1:], strict=False))


def test_errors(reactome):
    with pytest.raises(TypeError, match="reactome must be an AnnData, .* but got DataFrame"):
        heatmap(reactome.to_df())
    with pytest.raises(ValueError, match="groupby='gene' must be 'organ' or 'drug'"):
        heatmap(reactome, groupby="gene")
    with pytest.raises(KeyError, match="layer='x' is not in reactome.layers. Layers: 'se'"):
        heatmap(reactome, layer="x")
    for value in (0, 1.5, True):
        with pytest.raises(ValueError, match=f"n_genes={value} must be a whole number of at least 1"):
            heatmap(reactome, n_genes=value)
    with pytest.raises(ValueError, match="vmax=-1 must be positive"):
        heatmap(reactome, vmax=-1)
    with pytest.raises(KeyError, match="species not in the reactome: 'dog'. Known: 'mouse', 'rat'"):
        heatmap(reactome, species="dog")
    with pytest.raises(KeyError, match="genes not in the reactome: 'x'. It has: 'mouse_0'"):
        heatmap(reactome, ["mouse_1", "x"])
    with pytest.raises(ValueError, match="genes must name at least one"):
        heatmap(reactome, [])
    with pytest.raises(ValueError, match="There are no genes to draw of 'rat'"):
        heatmap(reactome, ["mouse_1"], ["mouse", "rat"])
    with pytest.raises(ValueError, match="Genes that are not of 'rat': 'mouse_1'"):
        heatmap(reactome, {"rat": ["rat_9", "mouse_1"]})
    with pytest.raises(KeyError, match="genes has no list for 'mouse', only for 'rat'"):
        heatmap(reactome, {"rat": ["rat_9"]}, species=["rat", "mouse"])
    with pytest.raises(ValueError, match="None of the genes of 'mouse' has a measured value"):
        heatmap(reactome, "mouse_2")
    with pytest.raises(KeyError, match="palette has no colour for \\['d2'\\]"):
        heatmap(reactome, palette={"d1": "red"})
    with pytest.raises(ValueError, match="ax must hold an Axes for each of the 2 species, but holds 1"):
        heatmap(reactome, ax=plt.figure().add_subplot())
    other = reactome.copy()
    other.X[0, 0] = np.inf
    with pytest.raises(ValueError, match="The reactome has infinite values"):
        heatmap(other)
    with pytest.raises(ValueError, match="reactome is empty"):
        heatmap(reactome[:0])
    other.obs["species"] = [np.nan, *reactome.obs["species"][1:]]
    with pytest.raises(ValueError, match=r"reactome.obs\['species'\] is missing in 1 of 14 rows"):
        heatmap(other)
    for axis, key in (("obs", "species"), ("var", "organ")):
        other = reactome.copy()
        del getattr(other, axis)[key]
        with pytest.raises(KeyError, match=f"reactome.{axis} has no column '{key}'"):
            heatmap(other)
