"""Basal states, effects, and what they say of perturbations, re-derived from the networks and by hand."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import cdist

import transverse as tv
from transverse.pp._perturbations import clean
from transverse.xtransfercdr._additivity import latent_additivity

from .conftest import SMALL, cells, dense, encode, train

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
METHODS = ["get_basal_representation", "get_perturbation_representation", "get_latent_representation"]


def conditions(adata):
    """Canonical perturbation and context of every cell."""
    names = [clean(name, "control", "+") for name in adata.obs["perturbation"].astype(str)]
    return pd.DataFrame({"perturbation": names, "context": adata.obs["cell_type"].astype(str).to_numpy(dtype=object)})


def against_control(model, adata):
    """By hand, with loops: mean effects of conditions minus that of their context's control."""
    effects = encode(model, adata, np.arange(adata.n_obs))[1].astype(float)
    keys = conditions(adata)
    means = {key: effects[rows].mean(0) for key, rows in keys.groupby(["perturbation", "context"]).indices.items()}
    return {(p, c): mean - means["control", c] for (p, c), mean in means.items() if p != "control"}


@pytest.fixture(scope="module")
def on_disk(screen, tmp_path_factory):
    file = tmp_path_factory.mktemp("backed") / "screen.h5ad"
    screen.write_h5ad(file)
    adata = ad.read_h5ad(file, backed="r")
    yield adata
    adata.file.close()


# ---- arrays


def test_representations_are_the_networks(model, screen):
    basal, effects = encode(model, screen, np.arange(screen.n_obs))
    results = [getattr(model, method)() for method in METHODS]
    for result, expected in zip(results, (basal, effects, basal + effects), strict=True):
        assert result.shape == (screen.n_obs, 8)
        assert result.dtype == np.float32
        assert (result >= 0).all()
        np.testing.assert_allclose(result, expected, **CLOSE)
        assert result.std() > 0.1
    np.testing.assert_array_equal(results[2], results[0] + results[1])


@pytest.mark.parametrize("method", METHODS)
def test_indices_in_any_order(model, screen, on_disk, method):
    expected = getattr(model, method)()
    rng = np.random.default_rng(0)
    mask = rng.random(screen.n_obs) < 0.3
    for indices in (
        [5, 3, 3, 100, 0, 5],
        rng.permutation(screen.n_obs),
        np.array([7]),
        range(4, 0, -1),
        pd.Index([9, 2]),
        mask,
        mask.tolist(),
    ):
        rows = np.flatnonzero(indices) if isinstance(indices, np.ndarray) and indices.dtype == bool else list(indices)
        rows = np.flatnonzero(mask) if isinstance(indices, list) and isinstance(indices[0], bool) else rows
        for adata in (None, screen, on_disk):
            result = getattr(model, method)(adata, indices=indices)
            assert result.shape == (len(rows), 8)
            np.testing.assert_allclose(result, expected[rows], **CLOSE)
            small = getattr(model, method)(adata, indices=indices, batch_size=3)
            np.testing.assert_allclose(small, expected[rows], **CLOSE)


def test_batch_sizes_and_forms_of_data(model, screen, on_disk):
    expected = [getattr(model, method)() for method in METHODS]
    as_array = ad.AnnData(dense(screen.X), obs=screen.obs, var=screen.var)
    reordered = screen[:, ::-1].copy()
    for adata in (None, as_array, reordered, on_disk, screen[:]):
        for size in (None, 1000, 7):
            for method, result in zip(METHODS, expected, strict=True):
                np.testing.assert_allclose(getattr(model, method)(adata, batch_size=size), result, **CLOSE)


def test_new_cells(model, screen):
    new = screen[::-2].copy()
    new.obs_names = [f"new{i}" for i in range(new.n_obs)]
    for method in METHODS:
        np.testing.assert_allclose(getattr(model, method)(new), getattr(model, method)()[::-2], **CLOSE)
    by_group = model.get_perturbation_representation(new, groupby="condition")
    expected = pd.DataFrame(model.get_perturbation_representation(new)).groupby(
        [conditions(new)["perturbation"], conditions(new)["context"]]
    )
    np.testing.assert_allclose(by_group.to_numpy(), expected.mean().to_numpy(), **CLOSE)
    with pytest.raises(ValueError, match="1 of the 60 genes that the model was trained on are missing"):
        model.get_basal_representation(screen[:, 1:].copy())


def test_training_mode_and_global_state_do_not_matter(model):
    expected = model.get_latent_representation()
    model.module.train()
    np.testing.assert_array_equal(model.get_latent_representation(), expected)
    assert not model.module.training
    running = {name: value.clone() for name, value in model.module.named_buffers()}
    model.get_latent_representation()
    assert all((value == running[name]).all() for name, value in model.module.named_buffers())


def test_nothing_of_the_users_is_changed(model, screen):
    new = screen[::3].copy()
    for key in [key for key in new.obs if key.startswith("_scvi")]:
        del new.obs[key]
    before, columns = dense(new.X).copy(), new.obs.copy()
    for method in METHODS:
        getattr(model, method)(new)
    model.get_perturbation_representation(new, groupby="condition")
    np.testing.assert_array_equal(dense(new.X), before)
    pd.testing.assert_frame_equal(new.obs[columns.columns], columns)
    # scvi-tools' own bookkeeping is all that was added
    assert all(key.startswith("_scvi") for key in set(new.obs) - set(columns))
    assert not new.obsm


# ---- groups


def test_means_of_conditions_and_perturbations(model, screen):
    effects = pd.DataFrame(encode(model, screen, np.arange(screen.n_obs))[1])
    keys = conditions(screen)
    by_condition = effects.groupby([keys["perturbation"], keys["context"]]).mean()
    found = model.get_perturbation_representation(groupby="condition")
    assert found.shape == (18, 8)
    assert found.index.names == ["perturbation", "context"]
    assert found.index.tolist() == by_condition.index.tolist()
    np.testing.assert_allclose(found.to_numpy(), by_condition.to_numpy(), **CLOSE)
    # both orders of a double are one perturbation
    assert ("P05+P03", "C2") not in found.index
    # contexts weigh equally, whatever their number of cells
    found = model.get_perturbation_representation(groupby="perturbation")
    assert found.index.name == "perturbation"
    assert found.index.tolist() == ["P01", "P02", "P03", "P03+P05", "P04", "P04+P05", "P05", "control"]
    for name in found.index:
        contexts = sorted(set(keys.loc[keys["perturbation"] == name, "context"]))
        np.testing.assert_allclose(
            found.loc[name], np.mean([by_condition.loc[name, c] for c in contexts], axis=0), **CLOSE
        )
    pooled = effects[(keys["perturbation"] == "P03").to_numpy()].mean()
    assert np.abs(found.loc["P03"] - pooled).max() > 1e-3


def test_means_over_chosen_cells(model, screen, on_disk):
    effects = encode(model, screen, np.arange(screen.n_obs))[1]
    first, second = cells(screen, "P03", "C1"), cells(screen, "P03", "C3")[:4]
    # a cell that is named twice counts twice
    indices = np.concatenate([second[::-1], first, first[:1]])
    expected = [effects[[*first, first[0]]].mean(0), effects[second].mean(0)]
    mask = np.isin(np.arange(screen.n_obs), np.concatenate([first, second]))
    for adata in (None, on_disk):
        found = model.get_perturbation_representation(adata, indices=indices, groupby="condition")
        assert found.index.tolist() == [("P03", "C1"), ("P03", "C3")]
        np.testing.assert_allclose(found.to_numpy(), expected, **CLOSE)
        found = model.get_perturbation_representation(adata, indices=mask, groupby="perturbation")
        assert found.index.tolist() == ["P03"]
        by_mask = [effects[first].mean(0), effects[second].mean(0)]
        np.testing.assert_allclose(found.to_numpy()[0], np.mean(by_mask, axis=0), **CLOSE)


def test_groups_without_contexts(one_context):
    adata, model = one_context
    found = model.get_perturbation_representation(groupby="condition")
    assert set(found.index.get_level_values("context")) == {""}
    by_perturbation = model.get_perturbation_representation(groupby="perturbation")
    assert by_perturbation.index.tolist() == ["P02", "P03", "P04", "P05", "control"]
    np.testing.assert_allclose(found.to_numpy(), by_perturbation.to_numpy(), **CLOSE)
    effects = encode(model, adata, cells(adata, "P02"))[1]
    np.testing.assert_allclose(by_perturbation.loc["P02"], effects.mean(0), **CLOSE)
    similarity = model.get_perturbation_similarity()
    assert similarity.index.tolist() == ["P02", "P03", "P04", "P05"]
    with pytest.raises(ValueError, match="No combination was measured in one context with all of its singles"):
        model.get_latent_additivity()


# ---- similarity


@pytest.mark.parametrize("metric", ["cosine", "pearson"])
@pytest.mark.parametrize("groupby", ["perturbation", "condition"])
def test_similarity(model, screen, metric, groupby):
    table = model.get_perturbation_similarity(groupby, metric=metric)
    shifts = against_control(model, screen)
    if groupby == "condition":
        vectors = {" | ".join(key): shift for key, shift in sorted(shifts.items())}
    else:
        names = sorted({name for name, _ in shifts})
        vectors = {name: np.mean([v for (p, _), v in shifts.items() if p == name], axis=0) for name in names}
    assert table.index.tolist() == table.columns.tolist() == list(vectors)
    assert not any(label.startswith("control") for label in table.index)
    values = np.stack(list(vectors.values()))
    expected = 1 - cdist(values, values, "cosine" if metric == "cosine" else "correlation")
    np.testing.assert_allclose(table.to_numpy(), expected, atol=1e-4)
    np.testing.assert_allclose(np.diag(table), 1, atol=1e-6)
    np.testing.assert_allclose(table.to_numpy(), table.to_numpy().T, atol=1e-7)
    assert table.to_numpy().min() < 0.9


def test_similarity_can_be_drawn(model):
    table = model.get_perturbation_similarity()
    assert tv.pl.similarity_heatmap(table, show=False) is not None


# ---- additivity


def planted_table():
    """Two contexts; a double that is the sum of its singles, one that saturates, one without its singles."""
    effects = {
        ("A", "C1"): [2.0, 0.0, 0.0],
        ("B", "C1"): [0.0, 1.0, 0.0],
        ("D", "C1"): [0.0, 0.0, 3.0],
        ("E", "C1"): [1.0, 0.0, 1.0],
        ("A+B", "C1"): [2.0, 1.0, 0.0],
        ("D+E", "C1"): [0.0, 0.0, 2.0],
        ("A+Z", "C1"): [1.0, 1.0, 1.0],
        ("A", "C2"): [1.0, 0.0, 0.0],
        ("B", "C2"): [0.0, 0.0, 0.0],
        ("A+B", "C2"): [-3.0, 0.0, 0.0],
        ("A+B+D", "C1"): [2.0, 1.0, 3.0],
        ("A+D", "C2"): [1.0, 0.0, 0.0],
    }
    index = pd.MultiIndex.from_tuples(effects, names=["perturbation", "context"])
    return pd.DataFrame(list(effects.values()), index=index).sort_index()


def test_additivity_by_hand():
    table = latent_additivity(planted_table(), "+").set_index(["perturbation", "context"])
    assert table.columns.tolist() == ["cosine", "best_single", "cosine_others", "length_ratio"]
    # doubles and triples with all their singles there, in no other context
    assert sorted(table.index) == [("A+B", "C1"), ("A+B", "C2"), ("A+B+D", "C1"), ("D+E", "C1")]
    # exactly the sum; the best single is A; the only other pair is D and E: (1, 0, 4)
    expected = {
        ("A+B", "C1"): [1.0, 2 / np.sqrt(5), 2 / np.sqrt(5 * 17), 1.0],
        # the sum is (1, 0, 4); the measured one as good as D; the other pair, A and B, has nothing of it
        ("D+E", "C1"): [4 / np.sqrt(17), 1.0, 0.0, 2 / np.sqrt(17)],
        # three times the sum, the other way round; B has no effect; no other singles
        ("A+B", "C2"): [-1.0, 0.0, np.nan, 3.0],
        # no other three singles either
        ("A+B+D", "C1"): [1.0, 3 / np.sqrt(14), np.nan, 1.0],
    }
    for key, values in expected.items():
        np.testing.assert_allclose(table.loc[key].to_numpy(dtype=float), values, atol=1e-12)


def test_additivity_of_singles_without_effects():
    table = planted_table()
    table.loc[[("A", "C2")]] = 0.0
    row = latent_additivity(table, "+").set_index(["perturbation", "context"]).loc[("A+B", "C2")]
    assert (row["cosine"], row["best_single"]) == (0, 0)
    assert np.isnan(row["length_ratio"])


def test_additivity_compares_with_all_or_some_others():
    rng = np.random.default_rng(0)
    names = [f"P{i:02d}" for i in range(12)]
    index = pd.MultiIndex.from_product([[*names, "P00+P01"], ["C1"]], names=["perturbation", "context"])
    table = pd.DataFrame(rng.normal(size=(13, 4)), index=index)
    measured = table.loc[("P00+P01", "C1")].to_numpy()
    singles = table.iloc[2:12].to_numpy()
    sums = np.array([singles[i] + singles[j] for i in range(10) for j in range(i + 1, 10)])
    cosines = 1 - cdist(sums, measured[None], "cosine").ravel()
    np.testing.assert_allclose(latent_additivity(table, "+")["cosine_others"].item(), cosines.mean())
    some = latent_additivity(table, "+", n_others=10)["cosine_others"].item()
    assert some != cosines.mean()
    assert cosines.min() <= some <= cosines.max()


def test_additivity_of_a_repeated_part():
    index = pd.MultiIndex.from_tuples([("A", "C1"), ("A+A", "C1")], names=["perturbation", "context"])
    row = latent_additivity(pd.DataFrame([[1.0, 0.0], [3.0, 0.0]], index=index), "+").iloc[0]
    assert (row["cosine"], row["length_ratio"]) == (1, 1.5)


def test_additivity_without_combinations():
    table = planted_table()
    message = "No combination was measured in one context with all of its singles: there is nothing to compare"
    for delimiter in (None, "_"):
        with pytest.raises(ValueError, match=message):
            latent_additivity(table, delimiter)
    with pytest.raises(ValueError, match=message):
        latent_additivity(table.loc[["A", "A+Z", "A+D"]], "+")
    underscored = table.rename(index=lambda name: name.replace("+", "_"), level="perturbation")
    pd.testing.assert_series_equal(
        latent_additivity(underscored, "_")["cosine"], latent_additivity(table, "+")["cosine"]
    )


def test_additivity_of_the_model(model, screen):
    shifts = against_control(model, screen)
    table = model.get_latent_additivity().set_index(["perturbation", "context"])
    assert sorted(table.index) == [("P03+P05", "C2"), ("P03+P05", "C3"), ("P04+P05", "C1")]
    for (name, context), row in table.iterrows():
        measured, singles = shifts[name, context], [shifts[part, context] for part in name.split("+")]
        total = sum(singles)
        cosine = [v @ measured / np.linalg.norm(v) / np.linalg.norm(measured) for v in (total, *singles)]
        expected = [cosine[0], max(cosine[1:]), np.linalg.norm(measured) / np.linalg.norm(total)]
        np.testing.assert_allclose(row[["cosine", "best_single", "length_ratio"]].to_numpy(float), expected, rtol=1e-3)


def test_additivity_needs_controls_in_the_context(screen):
    """Effects are held against those of control cells: where there are none, there is nothing to hold them against."""
    adata = screen[np.setdiff1d(np.arange(screen.n_obs), cells(screen, "control", "C3"))].copy()
    with pytest.warns(UserWarning, match="no control cells: 'C3'"):
        model = train(adata)
    assert sorted(set(model.get_latent_additivity()["context"])) == ["C1", "C2"]


# ---- what is refused


def test_untrained_models_are_refused(screen):
    adata = screen.copy()
    tv.XTransferCDR.setup_anndata(adata)
    model = tv.XTransferCDR(adata, **SMALL)
    for method in (*METHODS, "get_perturbation_similarity", "get_latent_additivity"):
        with pytest.raises(RuntimeError, match="[Tt]rain"):
            getattr(model, method)()


def test_arguments_that_are_refused(model):
    with pytest.raises(ValueError, match="groupby='context' must be 'cell', 'perturbation' or 'condition'"):
        model.get_perturbation_representation(groupby="context")
    for groupby in ("cell", "context"):
        with pytest.raises(ValueError, match=f"groupby='{groupby}' must be 'perturbation' or 'condition'"):
            model.get_perturbation_similarity(groupby)
    with pytest.raises(ValueError, match="metric='spearman' must be 'cosine' or 'pearson'"):
        model.get_perturbation_similarity(metric="spearman")


def test_cells_need_no_labels_that_the_model_knows(model, screen):
    expected = model.get_basal_representation()
    new = ad.AnnData(screen.X, obs=pd.DataFrame(index=screen.obs_names), var=screen.var)
    np.testing.assert_allclose(model.get_basal_representation(new), expected, **CLOSE)
    with pytest.raises(KeyError, match="perturbation_key='perturbation' is not in adata.obs"):
        model.get_perturbation_representation(new, groupby="condition")
    new.obs["perturbation"], new.obs["cell_type"] = "new", "elsewhere"
    before = new.obs.copy()
    means = model.get_perturbation_representation(new, groupby="condition")
    np.testing.assert_allclose(
        means.loc[("new", "elsewhere")], model.get_perturbation_representation().mean(0), **CLOSE
    )
    pd.testing.assert_frame_equal(new.obs, before)
    assert not new.uns
