"""One UMAP of several species: what is drawn where, in which colour, and that nothing else changes."""

from types import SimpleNamespace

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import torch
from matplotlib.colors import to_rgb, to_rgba

import transverse as tv


@pytest.fixture(scope="module")
def species():
    """Two species whose types lie in one place of a shared space."""
    data = tv.datasets.simulate_species("tiny", n_cells={"mouse": 80, "human": 50})
    rng = np.random.default_rng(0)
    for adata in data.values():
        centres = 8 * np.eye(4)[adata.obs["cell_type"].cat.codes]
        adata.obsm["X_scSpecies"] = centres + rng.normal(size=centres.shape)
    return data


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")
    torch.set_num_threads(1)  # scanpy's neighbour graph lets torch use more


@pytest.fixture(scope="module")
def axes(species):
    return tv.pl.species_umap(species, "cell_type", show=False)


def draw(species, color="cell_type", **kwargs):
    return tv.pl.species_umap(species, color, **{"show": False, **kwargs})


def points(panel, which):
    """Coordinates of the grey (0) or coloured (1) points, in a fixed order."""
    xy = np.asarray(panel.collections[which].get_offsets())
    return xy[np.lexsort(xy.T)]


def legend(panel):
    box = panel.get_legend()
    return {
        text.get_text(): to_rgba(handle.get_color()) for text, handle in zip(box.texts, box.legend_handles, strict=True)
    }


def test_a_panel_for_each_species(species, axes):
    assert isinstance(axes, list)
    assert [panel.get_title() for panel in axes] == ["mouse", "human"]
    assert [len(points(panel, 1)) for panel in axes] == [80, 50]
    assert [len(points(panel, 0)) for panel in axes] == [50, 80]


def test_coordinates_are_shared(axes):
    mouse, human = axes
    np.testing.assert_array_equal(points(mouse, 1), points(human, 0))
    np.testing.assert_array_equal(points(human, 1), points(mouse, 0))
    assert len(set(mouse.collections[0].get_facecolors().ravel()[:3])) == 1  # grey


def test_colors_are_those_of_the_categories(species, axes):
    colors = legend(axes[-1])
    assert list(colors) == ["T1a", "T1b", "T2a", "T2b"]
    assert len(set(colors.values())) == 4
    for panel, adata in zip(axes, species.values(), strict=True):
        drawn = pd.Series([tuple(c) for c in panel.collections[1].get_facecolors()]).value_counts()
        assert drawn.to_dict() == {colors[c]: n for c, n in adata.obs["cell_type"].value_counts().items()}


def test_the_same_seed_gives_the_same_figure(species, axes):
    for one, two in zip(axes, draw(species), strict=True):
        np.testing.assert_array_equal(one.collections[1].get_offsets(), two.collections[1].get_offsets())
    assert not np.array_equal(points(axes[0], 1), points(draw(species, random_state=1)[0], 1))


def test_a_column_for_each_species(species):
    human = species["human"].copy()
    human.obs["found"] = human.obs["cell_type"].cat.rename_categories({"T2b": "unknown"})
    human.obs.loc[human.obs_names[:5], "found"] = np.nan
    axes = draw({"mouse": species["mouse"], "human": human}, {"mouse": "cell_type", "human": "found"})
    colors = legend(axes[-1])
    assert list(colors) == ["T1a", "T1b", "T2a", "T2b", "unknown", "missing"]
    greys = [to_rgb(colors[name]) for name in ("unknown", "missing")]
    assert all(len(set(grey)) == 1 for grey in greys)  # neither is a category of its own
    assert len(set(colors.values())) == 6
    drawn = {tuple(c) for c in axes[1].collections[1].get_facecolors()}
    assert colors["unknown"] in drawn
    assert colors["T2b"] not in drawn


def test_three_species_and_one(species):
    third = species["human"][:20].copy()
    axes = draw({**species, "hamster": third})
    assert [panel.get_title() for panel in axes] == ["mouse", "human", "hamster"]
    assert [len(points(panel, 0)) for panel in axes] == [70, 100, 130]
    _, ax = plt.subplots()
    assert draw({"mouse": species["mouse"]}, ax=ax) == [ax]
    assert len(points(ax, 0)) == 0


@pytest.mark.parametrize(
    "palette",
    [
        {"T1a": "red", "T1b": "green", "T2a": "blue", "T2b": "black", "other": "white"},
        ["red", "green", "blue", "black"],
    ],
    ids=["mapping", "list"],
)
def test_palette(species, palette):
    expected = {"T1a": "red", "T1b": "green", "T2a": "blue", "T2b": "black"}
    assert legend(draw(species, palette=palette)[-1]) == {k: to_rgba(c) for k, c in expected.items()}


def test_palette_by_name(species):
    assert len(set(legend(draw(species, palette="viridis")[-1]).values())) == 4


@pytest.mark.parametrize("n", [9, 15, 40])
def test_many_categories(species, n, tmp_path):
    mouse = species["mouse"].copy()
    mouse.obs["type"] = pd.Categorical([f"type {i % n}" for i in range(80)], categories=[f"type {i}" for i in range(n)])
    panel = draw({"mouse": mouse}, "type", save=tmp_path / "figure.png")[0]
    colors = legend(panel)
    assert list(colors) == [f"type {i}" for i in range(n)]  # the categories' own order
    assert len(set(colors.values())) == n
    figure = panel.figure
    figure.canvas.draw()
    box = panel.get_legend().get_window_extent()
    assert box.y0 >= 0
    assert box.y1 <= figure.bbox.y1
    assert box.x1 <= figure.bbox.x1


def test_own_axes(species):
    figure, own = plt.subplots(1, 2)
    assert draw(species, ax=own) == list(own)
    assert plt.get_fignums() == [figure.number]
    assert [panel.get_title() for panel in own] == ["mouse", "human"]


@pytest.mark.parametrize("suffix", ["png", "pdf"])
def test_save(species, tmp_path, suffix):
    path = tmp_path / f"figure.{suffix}"
    draw(species, save=path)
    assert path.stat().st_size > 1000


@pytest.mark.parametrize(
    ("show", "own_axes", "autoshow", "expected"),
    [
        (False, False, True, 0),
        (True, False, False, 1),
        (True, True, False, 1),
        (None, False, True, 1),
        (None, False, False, 0),
        (None, True, True, 0),
    ],
)
def test_show(species, monkeypatch, show, own_axes, autoshow, expected):
    calls = []
    monkeypatch.setattr(plt, "show", lambda *args, **kwargs: calls.append(1))
    monkeypatch.setattr(sc, "settings", SimpleNamespace(autoshow=autoshow))
    small = {name: adata[:20] for name, adata in species.items()}
    draw(small, show=show, ax=plt.subplots(1, 2)[1] if own_axes else None)
    assert len(calls) == expected


def test_size(species):
    assert draw(species, size=3)[0].collections[1].get_sizes().tolist() == [3]


def test_other_representation(species):
    copies = {name: adata.copy() for name, adata in species.items()}
    for adata in copies.values():
        adata.obsm["X_other"] = pd.DataFrame(adata.obsm.pop("X_scSpecies"), index=adata.obs_names)
    np.testing.assert_array_equal(points(draw(copies, use_rep="X_other")[0], 1), points(draw(species)[0], 1))


@pytest.fixture(scope="module")
def stack():
    """Samples of two species as one object, with a common representation."""
    data = tv.datasets.simulate_reactomes(n_genes=30, n_organs=3, n_animals=2)
    adata = tv.pp.stack_species(data)
    centres = 8 * np.eye(3)[adata.obs["organ"].astype("category").cat.codes]
    adata.obsm["X_UGE"] = centres + np.random.default_rng(0).normal(size=centres.shape)
    return adata


@pytest.mark.parametrize("dtype", [object, "category", "string"])
def test_a_stack(stack, dtype):
    adata = stack.copy()
    adata.obs = adata.obs.astype({"species": dtype, "organ": dtype})
    before = adata.copy()
    axes = draw(adata, "organ", use_rep="X_UGE")
    apart = draw({name: adata[adata.obs["species"] == name] for name in ("mouse", "rat")}, "organ", use_rep="X_UGE")
    assert [panel.get_title() for panel in axes] == ["mouse", "rat"]
    for panel, expected in zip(axes, apart, strict=True):
        for which in (0, 1):
            np.testing.assert_array_equal(points(panel, which), points(expected, which))
        assert len(points(panel, 1)) == adata.n_obs / 2
    organs = legend(axes[-1])
    assert set(organs) == set(adata.obs["organ"]) and len(set(organs.values())) == 3
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    np.testing.assert_array_equal(adata.obsm["X_UGE"], before.obsm["X_UGE"])
    assert not adata.obsp and list(adata.uns) == list(before.uns)


@pytest.mark.parametrize("color", ["species", "organ", "drug"])
def test_all_species_in_one_panel(stack, color):
    (panel,) = draw(stack, color, use_rep="X_UGE", species_key=None)
    assert panel.get_title() == "" and len(points(panel, 0)) == 0
    colors = legend(panel)
    drawn = pd.Series([tuple(c) for c in panel.collections[1].get_facecolors()]).value_counts()
    assert drawn.to_dict() == {colors[name]: n for name, n in stack.obs[color].value_counts().items()}


def test_genes_of_a_stack(stack):
    vectors = pd.DataFrame(np.random.default_rng(1).normal(size=(stack.n_vars, 5)), index=stack.var_names)
    genes = ad.AnnData(obs=stack.var, obsm={"X_UGE": vectors.to_numpy()})
    (panel,) = draw(genes, "species", use_rep="X_UGE", species_key=None)
    assert len(points(panel, 1)) == 60 and list(legend(panel)) == ["mouse", "rat"]
    mouse, rat = draw(genes, "module", use_rep="X_UGE")
    np.testing.assert_array_equal(points(mouse, 1), points(rat, 0))
    assert set(legend(rat)) == set(stack.var["module"])


def test_errors_of_a_stack(stack):
    with pytest.raises(KeyError, match="species_key='taxon' is not in adatas.obs. Columns: .*'organ'"):
        draw(stack, "organ", use_rep="X_UGE", species_key="taxon")
    with pytest.raises(KeyError, match="use_rep='X_scSpecies' is not in the .obsm of 'mouse'. Keys: .*X_UGE"):
        draw(stack, "organ")
    with pytest.raises(KeyError, match="color='tissue' is not in the .obs of 'adatas'"):
        draw(stack, "tissue", use_rep="X_UGE", species_key=None)
    with pytest.raises(ValueError, match="adatas has no cells"):
        draw(stack[:0], "organ", use_rep="X_UGE")
    with pytest.raises(ValueError, match="an Axes for each of the 2 species, but holds 1"):
        draw(stack, "organ", use_rep="X_UGE", ax=plt.figure().add_subplot())
    plt.close("all")
    lacking = stack.copy()
    lacking.obs["species"] = lacking.obs["species"].where(np.arange(stack.n_obs) > 1)
    with pytest.raises(ValueError, match=rf"adatas.obs\['species'\] is missing in 2 of {stack.n_obs} rows"):
        draw(lacking, "organ", use_rep="X_UGE")
    assert not plt.get_fignums()


def test_objects_are_left_alone(species):
    before = {name: adata.copy() for name, adata in species.items()}
    state = np.random.get_state()[1].copy()
    draw(species)
    for name, adata in species.items():
        pd.testing.assert_frame_equal(adata.obs, before[name].obs)
        assert list(adata.obsm) == list(before[name].obsm)
        np.testing.assert_array_equal(adata.obsm["X_scSpecies"], before[name].obsm["X_scSpecies"])
        assert list(adata.uns) == list(before[name].uns)
        assert not adata.obsp
    np.testing.assert_array_equal(np.random.get_state()[1], state)


def test_errors(species):
    with pytest.raises(ValueError, match="at least one species, but is empty"):
        draw({})
    with pytest.raises(KeyError, match=r"use_rep='X_other' is not in the .obsm of 'mouse'. Keys: \['X_scSpecies'\]"):
        draw(species, use_rep="X_other")
    with pytest.raises(KeyError, match="color='type' is not in the .obs of 'mouse'. Columns: .*cell_type"):
        draw(species, "type")
    with pytest.raises(KeyError, match=r"color names no column for 'human'. It has: \['mouse'\]"):
        draw(species, {"mouse": "cell_type"})
    with pytest.raises(ValueError, match="color='library_size' of 'mouse' must hold categories, but holds numbers"):
        draw(species, "library_size")
    with pytest.raises(KeyError, match=r"palette has no colour for \['T2a', 'T2b'\]"):
        draw(species, palette={"T1a": "red", "T1b": "green"})
    with pytest.raises(ValueError, match="an Axes for each of the 2 species, but holds 3"):
        draw(species, ax=plt.subplots(1, 3)[1])
    narrow = species["human"].copy()
    narrow.obsm["X_scSpecies"] = narrow.obsm["X_scSpecies"][:, :2]
    with pytest.raises(ValueError, match="one width, but are {'mouse': 4, 'human': 2}"):
        draw({**species, "human": narrow})
    plt.close("all")
    with pytest.raises(KeyError):
        draw(species, "type")
    assert not plt.get_fignums()  # no empty figure stays behind
