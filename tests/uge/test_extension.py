"""Genes, species, organs and drugs that are added: what stays as it was, what is learnt, and what is refused."""

import functools
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import scvi
import torch

import transverse as tv
from transverse.uge import UGE

from .conftest import QUIET, SETUP, TINY, build, dense, same, train
from .helpers import (
    CLOSE,
    PLANTED,
    assert_unchanged,
    changes,
    is_of,
    measured_change,
    names_of,
    recall,
    same_state,
    state,
)

KINDS = ("drug", "organ", "genes", "species", "all")


@functools.cache
def whole():
    """Mouse, rat and dog; tests must not change it."""
    data = tv.datasets.simulate_reactomes(
        species=("mouse", "rat", "dog"), n_genes=50, n_organs=4, n_drugs=2, n_animals=4, organ_specificity=0.2
    )
    return data, tv.pp.stack_species(data)


def known_genes():
    """All of mouse and rat but five of each."""
    _, adata = whole()
    genes = [adata.var_names[adata.var["species"] == s][:45] for s in ("mouse", "rat")]
    return genes[0].append(genes[1])


def reference_data():
    """Mouse and rat without drug B, the liver and some genes."""
    _, adata = whole()
    keep = (adata.obs["species"] != "dog") & (adata.obs["drug"] != "drug B") & (adata.obs["organ"] != "liver")
    return adata[keep.to_numpy(), known_genes()].copy()


def query_data(kind):
    """Samples of what is new, and no more than it takes."""
    _, adata = whole()
    obs, var = adata.obs, adata.var
    of_two = (obs["species"] != "dog").to_numpy()
    genes = var.index.isin(known_genes())
    if kind == "drug":  # few-shot: in one organ, with its controls
        return adata[of_two & ((obs["organ"] == "heart") & (obs["drug"] != "drug A")).to_numpy(), genes].copy()
    if kind == "organ":
        return adata[of_two & ((obs["organ"] == "liver") & (obs["drug"] != "drug B")).to_numpy(), genes].copy()
    if kind == "genes":
        return adata[
            of_two & ((obs["organ"] != "liver") & (obs["drug"] != "drug B")).to_numpy(), var["species"] != "dog"
        ].copy()
    if kind == "species":
        rows = ((obs["species"] == "dog") & (obs["organ"] != "liver") & (obs["drug"] != "drug B")).to_numpy()
        return adata[rows, var["species"] == "dog"].copy()
    return adata.copy()


@functools.cache
def reference():
    """Tests must not change it."""
    return train(reference_data(), hold_out=[("rat", "brain", "drug A")])


def extend(model, adata, seed=0, **kwargs):
    scvi.settings.seed = seed
    extended = UGE.load_query_data(adata, model)
    extended.train(**{"max_epochs": {"genes": 1, "samples": 2}, "n_tokens": 40} | kwargs, **QUIET)
    return extended


@functools.cache
def extended(kind):
    """Tests must not change them."""
    return extend(reference(), query_data(kind))


def old_part(model, of):
    """What was there in the reference, of every parameter."""
    sizes = {name: value.shape for name, value in of.module.named_parameters()}
    return {
        name: value.detach()[tuple(slice(0, n) for n in sizes[name])].numpy().copy()
        for name, value in model.module.named_parameters()
        if name in sizes
    }


def changed_parts(model, of):
    before = {name: value.detach().numpy() for name, value in of.module.named_parameters()}
    after = old_part(model, of)
    assert after.keys() == before.keys()
    return [name for name in before if not same(after[name], before[name])]


# ---- what stays


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_learnt_is_frozen(kind):
    """To the last bit in both stages, while what is new moves."""
    assert changed_parts(extended(kind), reference()) == []
    scvi.settings.seed = 0
    start = UGE.load_query_data(query_data(kind), reference())
    moved = {
        name
        for (name, one), (_, other) in zip(
            start.module.named_parameters(), extended(kind).module.named_parameters(), strict=True
        )
        if not torch.equal(one, other)
    }
    expected = {
        "drug": {"reactome.drug", "reactome.interaction", "drug_head.3.weight", "drug_head.3.bias"},
        "organ": {
            "reactome.organ",
            "reactome.interaction",
            "reactome.profile",
            "organ_head.3.weight",
            "organ_head.3.bias",
        },
        "genes": {"genes.embedding.weight"},
        "species": {"genes.embedding.weight"}
        | {f"{part}.2.{kind}" for part in ("genes.projections", "sample_projections") for kind in ("weight", "bias")},
    }
    expected["all"] = set().union(*expected.values())
    assert moved == expected[kind]


@pytest.mark.parametrize("stage", ["genes", "samples"])
def test_each_stage_is_frozen(stage):
    model = extend(reference(), query_data("all"), stages=[stage], plan_kwargs={"lr": 0.1})
    assert changed_parts(model, reference()) == []


def test_weight_decay_of_the_users_leaves_what_is_frozen():
    model = extend(reference(), query_data("drug"), plan_kwargs={"weight_decay": 0.5})
    assert changed_parts(model, reference()) == []


def test_the_reference_is_not_changed():
    first = reference()
    before, history = state(first), {key: table.copy() for key, table in first.history.items()}
    data = first.adata.copy()
    extend(first, query_data("all"), max_epochs=1)
    assert all(np.array_equal(before[name], value) for name, value in state(first).items())
    assert all(parameter.requires_grad for parameter in first.module.parameters())
    assert (first.organs_, first.drugs_, first.species_) == (
        ["brain", "heart", "kidney"],
        ["control", "drug A"],
        ["mouse", "rat"],
    )
    for key, table in first.history.items():
        pd.testing.assert_frame_equal(table, history[key])
    assert_unchanged(first.adata, data)


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_reference_says_is_said_as_before(kind):
    """Of its samples, genes and conditions."""
    model, first = extended(kind), reference()
    data = reference_data()
    # tokens that are new are shown as well, but in data that lack them
    np.testing.assert_allclose(
        model.get_latent_representation(data), first.get_latent_representation(), rtol=1e-5, atol=1e-6
    )
    for key, names in (("organ", first.organs_), ("drug", first.drugs_)):
        columns = [f"p({name})" for name in names]
        found, expected = (m.predict_labels(key, data)[columns] for m in (model, first))
        # a new class takes its share, of all alike
        found = found.div(found.sum(axis=1), axis=0)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    z, before = model.get_gene_representation(), first.get_gene_representation()
    pd.testing.assert_frame_equal(z.loc[before.index], before)
    found, expected = (m.predict_reactome(via="reactome") for m in (model, first))
    np.testing.assert_allclose(found[expected.obs_names, expected.var_names].X, expected.X, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_measured_of_genes_is_kept(kind):
    model, first = extended(kind), reference()
    n_old = len(first.var_names_)
    assert model.var_names_[:n_old] == first.var_names_
    found = model.predict_reactome()[first.var_names_]
    expected = first.predict_reactome()
    for species in ("mouse", "rat"):
        rows = expected.obs_names[expected.obs["species"] == species]
        before = expected[rows].layers["measured"]
        after = found[rows, expected.var_names].layers["measured"]
        there = ~np.isnan(before)
        np.testing.assert_allclose(after[there], before[there], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(model.gene_means_[:n_old], first.gene_means_)
    assert (model.units_["change"], model.units_["profile"], model.units_["organs"]) == (
        first.units_["change"],
        first.units_["profile"],
        first.units_["organs"],
    )


def test_other_values_of_what_is_known_are_not_learnt():
    """Controls of the heart come with the new drug, but what the heart is stays."""
    query = query_data("drug")
    spoilt = query.copy()
    spoilt.X = dense(query.X)
    controls = (query.obs["drug"] == "control").to_numpy()
    of_heart = spoilt.X[controls]
    spoilt.X[controls] = np.where(of_heart > 0, of_heart + 2, 0)
    model, first = extend(reference(), spoilt, stages=["genes"]), reference()
    n = len(first.features_)
    kept = [i for i, name in enumerate(model.predict_reactome().var_names) if name.endswith("drug A")]
    np.testing.assert_array_equal(
        model.features_[:n, kept][~np.isnan(first.features_[:, :3])],
        first.features_[:, :3][~np.isnan(first.features_[:, :3])],
    )
    np.testing.assert_array_equal(model.features_[:n, -4:], first.features_[:, -4:])
    changed = ~np.isclose(extended("drug").features_[:n], model.features_[:n], rtol=0, atol=0, equal_nan=True)
    assert {model.predict_reactome().var_names[i] for i in np.flatnonzero(changed.any(axis=0))} == {"heart|drug B"}


@pytest.mark.parametrize("kind", KINDS)
def test_categories_are_appended(kind):
    model, first = extended(kind), reference()
    new = {
        "organ": (["liver"], [], []),
        "drug": ([], ["drug B"], []),
        "species": ([], [], ["dog"]),
        "genes": ([], [], []),
        "all": (["liver"], ["drug B"], ["dog"]),
    }[kind]
    assert model.organs_ == first.organs_ + new[0]
    assert model.drugs_ == first.drugs_ + new[1]
    assert model.species_ == first.species_ + new[2]
    assert model.is_measured_.shape == (len(model.species_), len(model.organs_), len(model.drugs_) - 1)
    added = [name for name in query_data(kind).var_names if name not in first.var_names_]
    assert model.var_names_ == first.var_names_ + added
    assert [len(names_of(model, s)) for s in ("mouse", "rat")] == ([50, 50] if kind in ("genes", "all") else [45, 45])


@pytest.mark.parametrize(("organ", "drug"), [("aorta", "drug 0"), ("zygote", "drug Z")])
def test_categories_are_appended_whatever_their_names(organ, drug):
    query = query_data("all")
    query.obs["organ"] = query.obs["organ"].astype(str).replace("liver", organ)
    query.obs["drug"] = query.obs["drug"].astype(str).replace("drug B", drug)
    model = UGE.load_query_data(query, reference())
    assert model.organs_ == ["brain", "heart", "kidney", organ] and model.drugs_ == ["control", "drug A", drug]


@pytest.mark.parametrize("kind", KINDS)
def test_samples_and_genes_of_the_new_model(kind):
    query = query_data(kind)
    before = query.copy()
    model = UGE.load_query_data(query, reference())
    assert_unchanged(query, before)
    assert not [key for key in query.uns if key.startswith("_scvi")] and "_scvi" not in "".join(query.obs)
    assert model.adata is not query and model.adata.obs_names.equals(query.obs_names)
    assert model.adata.var_names.tolist() == model.var_names_
    x = model.adata[:, query.var_names].X
    np.testing.assert_array_equal(dense(x), dense(query.X))
    rest = ~model.adata.var_names.isin(query.var_names)
    assert not dense(model.adata.X)[:, rest].any() and sp.issparse(model.adata.X)
    of_gene = pd.concat([reference().adata.var["species"].astype(str), query.var["species"].astype(str)])
    assert (model.adata.var["species"].astype(str) == of_gene[~of_gene.index.duplicated()]).all()


# ---- what is learnt


def test_a_new_drug_is_measured_where_it_was_given():
    model = extended("drug")
    measured = model.is_measured_
    heart = model.organs_.index("heart")
    assert measured[:, heart, 1].all() and measured[:, :, 1].sum() == 2
    np.testing.assert_array_equal(measured[:, :, 0], np.asarray(reference().is_measured_)[:, :, 0])
    found = model.predict_reactome()
    for species in ("mouse", "rat"):
        names = names_of(model, species)
        query = query_data("drug")[:, names]
        expected = measured_change(query, species, "heart", "drug B")
        np.testing.assert_allclose(found[names, "heart|drug B"].layers["measured"].ravel(), expected, **CLOSE)
        for organ in ("brain", "kidney"):
            assert np.isnan(found[names, f"{organ}|drug B"].layers["measured"]).all()


@pytest.mark.slow
def test_a_new_drug_from_few_samples():
    """Of one organ, it is told in others, and not before."""
    data, _ = whole()
    scores = []
    for options in ({"max_epochs": 5}, {"max_epochs": 1, "plan_kwargs": {"lr": 0.0}}):
        model = extend(planted_reference(), query_data("drug"), stages=["genes"], **options)
        found = model.predict_reactome(via="reactome").to_df()
        score = {"heart": [], "others": []}
        for species in ("mouse", "rat"):
            truth = data[species].uns["true_reactome"].loc[names_of(model, species)]
            for organ in ("brain", "heart", "kidney"):
                own = np.corrcoef(found.loc[truth.index, f"{organ}|drug B"], truth[f"{organ}|drug B"])[0, 1]
                score["heart" if organ == "heart" else "others"].append(own)
        scores.append({key: np.mean(values) for key, values in score.items()})
    learnt, before = scores
    assert learnt["heart"] > 0.5 and learnt["others"] > 0.2, scores
    assert learnt["heart"] > before["heart"] + 0.3 and learnt["others"] > before["others"] + 0.2, scores


@functools.cache
def planted_reference():
    return train(reference_data(), network=PLANTED, stages=["genes"], max_epochs=6)


@pytest.mark.parametrize("target", ["rat", "dog"])
def test_genes_of_a_new_species_are_mapped(target):
    """From its own samples alone, with those of the others gone."""
    data, _ = whole()
    model = extend(planted_reference(), query_data("species"), max_epochs=4, stages=["genes"])
    truth = data["dog"].uns["gene_map"]
    if target == "rat":  # counterparts of counterparts
        to_mouse = data["rat"].uns["gene_map"].set_index("source")["target"]
        truth = pd.DataFrame({"source": to_mouse[truth["source"]].to_numpy(), "target": truth["target"]})
        truth = truth[truth["source"].isin(names_of(model, "rat"))]
        found = model.map_genes("rat", "dog")
    else:
        truth = truth[truth["source"].isin(names_of(model, "mouse"))]
        found = model.map_genes("mouse", "dog")
    scores = tv.metrics.gene_map_scores(found, truth, k=(1, 10), n_candidates=50).set_index("metric")["value"]
    assert scores["recall@1"] > 6 / 50 and scores["recall@10"] > 0.5


def test_new_genes_are_mapped():
    data, _ = whole()
    model = extend(planted_reference(), query_data("genes"), max_epochs=4, stages=["genes"])
    new = [name for name in names_of(model, "mouse") if name not in planted_reference().var_names_]
    truth = data["rat"].uns["gene_map"]
    scores = tv.metrics.gene_map_scores(model.map_genes("mouse", "rat"), truth, k=10, genes=new, n_candidates=50)
    assert len(new) == 5 and scores["value"].iloc[0] >= 0.6
    every, _ = recall(model.map_genes("mouse", "rat"), data, k=10)
    assert every["value"] > 0.5
    # and what the head says of them is what they do
    found = model.predict_reactome("mouse", via="reactome")[new]
    there = ~np.isnan(found.layers["measured"])
    assert np.corrcoef(found.X[there], found.layers["measured"][there])[0, 1] > 0.6


def test_new_genes_that_were_measured_in_fewer_organs():
    """In the heart alone, where the reference knows two organs more."""
    query = query_data("genes")
    query = query[(query.obs["organ"] == "heart").to_numpy()].copy()
    model = extend(reference(), query, stages=["genes"])
    for via in ("reactome", "map"):
        assert np.isfinite(model.predict_reactome(via=via).X).all(), via
    assert np.isfinite(model.predict("rat", "heart", "drug A", allow_leak=True).X).all()


def test_a_new_species_starts_from_the_mean_of_the_others():
    model = UGE.load_query_data(query_data("species"), reference())
    old, new = dict(reference().module.named_parameters()), dict(model.module.named_parameters())
    for part in ("genes.projections", "sample_projections"):
        for kind in ("weight", "bias"):
            mean = (old[f"{part}.0.{kind}"] + old[f"{part}.1.{kind}"]) / 2
            np.testing.assert_allclose(new[f"{part}.2.{kind}"].detach(), mean.detach(), rtol=1e-6, atol=1e-8)


def test_a_new_species_is_in_predictions():
    model = extended("species")
    found = model.predict_labels("organ", query_data("species"))
    assert len(found) == query_data("species").n_obs and np.isfinite(found["confidence"]).all()
    pred = model.predict("dog", "heart", "drug A", via="map", allow_leak=True)
    assert pred.uns["prediction"]["leak"] == "trained on" and pred.var_names.tolist() == names_of(model, "dog")
    assert changes(model, "dog").shape == (50, 3, 1)


def test_new_classes_are_never_told_before_the_stage_of_samples():
    for data in (query_data("all"), reference_data()):
        model = extend(reference(), query_data("all"), stages=["genes"], max_epochs=1)
        for key, new in (("organ", "liver"), ("drug", "drug B")):
            found = model.predict_labels(key, data)
            assert new not in set(found["label"]) and found[f"p({new})"].max() < 1e-3


@functools.cache
def sure_reference():
    """One that tells organs well."""
    options = {"max_epochs": {"genes": 4, "samples": 6}, "n_tokens": 45, "batch_size": 12, "plan_kwargs": {"lr": 3e-3}}
    model = train(reference_data(), network=PLANTED, **options)
    assert (model.predict_labels("organ")["label"] == model.adata.obs["organ"].astype(str)).mean() > 0.9
    return model


@pytest.mark.slow
def test_new_classes_are_learnt_in_the_stage_of_samples():
    """Beside the old ones, of which there are samples too."""
    _, adata = whole()
    keep = (adata.obs["species"] != "dog") & (adata.obs["drug"] != "drug B")
    query = adata[keep.to_numpy(), known_genes()].copy()
    options = {"max_epochs": {"genes": 1, "samples": 20}, "plan_kwargs": {"lr": 1e-2}, "batch_size": 16}
    model = extend(sure_reference(), query, **options)
    found, organs = model.predict_labels("organ")["label"], query.obs["organ"].astype(str)
    right = (found == organs).groupby(organs).mean()
    assert right["liver"] > 0.5 and right.drop("liver").mean() > 0.7, right


def test_a_new_class_of_few_samples():
    model = extend(sure_reference(), query_data("organ"), max_epochs={"genes": 1, "samples": 30})
    assert (model.predict_labels("organ")["label"] == "liver").mean() > 0.5


# ---- tokens of conditions, and tokens of the reference


@functools.cache
def conditioned():
    return train(reference_data(), network={"condition_keys": ["drug", "organ"]}, max_epochs={"genes": 1, "samples": 2})


def query_with_unknown():
    query = query_data("drug")
    drugs = query.obs["drug"].astype(str).to_numpy(dtype=object)
    drugs[np.flatnonzero(drugs == "drug B")[::2]] = "unknown"
    query.obs["drug"] = drugs
    return query


def test_tokens_of_new_conditions_are_learnt_and_that_of_the_unknown_is_kept():
    model, first = extend(conditioned(), query_with_unknown(), max_epochs={"genes": 1, "samples": 3}), conditioned()
    before, after = (m.module.encoder.conditions[0].weight.detach().numpy() for m in (first, model))
    assert len(before) == 3 and len(after) == 4
    np.testing.assert_array_equal(after[:2], before[:2])
    np.testing.assert_array_equal(after[3], before[2])
    assert np.abs(after[2] - before[2]).max() > 1e-6
    data = reference_data()
    np.testing.assert_array_equal(model.get_latent_representation(data), first.get_latent_representation())


def test_tokens_of_conditions_are_kept_where_all_are_known():
    model, first = extend(conditioned(), query_data("species"), stages=["samples"]), conditioned()
    for i in (0, 1):
        one, other = (m.module.encoder.conditions[i].weight.detach().numpy() for m in (first, model))
        np.testing.assert_array_equal(other, one)


def test_genes_that_are_tokens_stay(kind="drug"):
    first = train(reference_data(), network={"n_top_genes": 15}, max_epochs=1)
    model = extend(first, query_data(kind), stages=["genes"], max_epochs=1)
    for s in (0, 1):
        assert set(first.tokens_[s]) <= set(model.tokens_[s])
    data = reference_data()
    np.testing.assert_allclose(
        model.get_latent_representation(data), first.get_latent_representation(), rtol=1e-5, atol=1e-6
    )


# ---- what may not be seen


def test_what_the_reference_was_trained_on_is_remembered():
    model = extended("all")
    seen = {tuple(row) for row in reference().training_conditions_}
    assert seen <= {tuple(row) for row in model.training_conditions_}
    for condition in (("rat", "heart", "drug A"), ("mouse", "heart", "drug B"), ("dog", "liver", "drug B")):
        with pytest.raises(ValueError, match="The model was trained on"):
            model.predict(*condition)
    first = extended("drug")
    # the query has no brain, but the reference was trained on the mouse's
    assert ("mouse", "brain", "drug A") in {tuple(row) for row in first.training_conditions_}
    with pytest.raises(ValueError, match="The model was trained on 'mouse', 'brain', 'drug A'"):
        first.predict("mouse", "brain", "drug A")
    with pytest.raises(ValueError, match="has no control samples of 'brain' in 'rat' to start from"):
        first.predict("rat", "brain", "drug A")


@pytest.mark.slow
def test_held_out_conditions_of_the_query():
    """Neither features nor what is remembered have them, whatever their values."""
    query = query_data("all")
    hold_out = [("rat", "heart", "drug B"), ("rat", "brain", "drug A")]
    out = np.any([is_of(query, *condition) for condition in hold_out], axis=0)
    spoilt = query.copy()
    spoilt.X = dense(query.X)
    spoilt.X[out] *= 3
    spoilt.X = sp.csr_matrix(spoilt.X)
    one, other = (extend(reference(), data, hold_out=hold_out, max_epochs=1) for data in (query, spoilt))
    assert same_state(one, other) and same(one.features_, other.features_)
    for condition in hold_out:
        assert one.predict(*condition).uns["prediction"]["leak"] == "none"
        assert same(one.predict(*condition, via="A").X, other.predict(*condition, via="A").X)


# ---- formats, layers, folders


@pytest.mark.filterwarnings("ignore:Training will be faster when sparse matrix is formatted as CSR")
def test_formats_of_the_query(tmp_path):
    expected = extended("drug")
    query = query_data("drug")
    denser, csc = query.copy(), query.copy()
    denser.X = dense(query.X)
    csc.X = sp.csc_matrix(query.X)
    queries = [denser, csc, query[:]]
    for name, data in (("sparse", query), ("dense", denser)):
        data.write_h5ad(tmp_path / f"{name}.h5ad")
        queries.append(ad.read_h5ad(tmp_path / f"{name}.h5ad", backed="r"))
    for data in queries:
        scvi.settings.seed = 0
        model = UGE.load_query_data(data, reference())
        np.testing.assert_array_equal(dense(model.adata.X), dense(expected.adata.X))
        assert model.adata.X.dtype == query.X.dtype


def test_order_of_the_querys_genes_does_not_matter():
    query = query_data("drug")
    shuffled = query[:, np.random.default_rng(0).permutation(query.n_vars)].copy()
    assert same_state(extend(reference(), shuffled), extended("drug"))


def test_a_layer(tmp_path):
    data, query = reference_data(), query_data("drug")
    for adata in (data, query):
        adata.layers["log"], adata.X = adata.X.copy(), 0.5 * adata.X
    first = train(data, setup={**SETUP, "layer": "log"}, hold_out=[("rat", "brain", "drug A")])
    assert same_state(first, reference())
    model = extend(first, query)
    assert same_state(model, extended("drug"))
    assert same(model.get_latent_representation(), extended("drug").get_latent_representation())
    with pytest.raises(KeyError, match="layer='log' is not in adata.layers"):
        UGE.load_query_data(query_data("drug"), first)
    model.save(tmp_path / "model", save_anndata=True)
    loaded = UGE.load(tmp_path / "model")
    assert same(loaded.get_latent_representation(), model.get_latent_representation())


def test_a_folder(tmp_path):
    reference().save(tmp_path / "model")
    scvi.settings.seed = 0
    model = UGE.load_query_data(query_data("drug"), str(tmp_path / "model"))
    assert changed_parts(model, reference()) == []
    model.train(max_epochs={"genes": 1, "samples": 2}, n_tokens=40, **QUIET)
    assert changed_parts(model, reference()) == []
    assert model.drugs_ == extended("drug").drugs_ and same(model.features_, extended("drug").features_)


def test_a_path(tmp_path):
    reference().save(tmp_path / "model")
    assert UGE.load_query_data(query_data("drug"), Path(tmp_path / "model")).drugs_ == extended("drug").drugs_


def test_the_new_model_is_of_the_same_kind():
    """All arguments are the reference's."""
    options = {"value_mode": "binned", "n_bins": 9, "n_top_genes": 30, "mask_rate": 0.2, "weights": {"elastic": 0.3}}
    first = train(reference_data(), network=options, max_epochs=1, stages=["genes"])
    model = UGE.load_query_data(query_data("all"), first)
    assert model.module.encoder.n_bins == 9 and model.module.mask_rate == 0.2
    assert model.module.weights == first.module.weights
    assert model.module.genes.embedding.embedding_dim == TINY["n_latent"]
    assert len(model.module.encoder.layers.layers) == len(first.module.encoder.layers.layers)


@pytest.mark.parametrize("kind", ["drug", "all"])
def test_an_extended_model_is_saved(kind, tmp_path):
    model, query = extended(kind), query_data(kind)
    model.save(tmp_path / "model", save_anndata=True)
    for data in (False, model.adata.copy(), None):
        loaded = UGE.load(tmp_path / "model", data)
        assert same_state(loaded, model)
        assert same(loaded.get_latent_representation(query), model.get_latent_representation(query))
        pd.testing.assert_frame_equal(loaded.map_genes("mouse", "rat"), model.map_genes("mouse", "rat"))
        assert same(loaded.predict_reactome().X, model.predict_reactome().X)
        assert (loaded.organs_, loaded.drugs_, loaded.species_) == (model.organs_, model.drugs_, model.species_)
        assert loaded.training_conditions_ == model.training_conditions_
    # it goes on, and what is frozen stays so
    loaded.train(max_epochs=1, n_tokens=40, **QUIET)
    assert changed_parts(loaded, reference()) == [] and not same_state(loaded, model)


def test_one_extension_after_the_other():
    """What was new is frozen with the rest."""
    first = extended("drug")
    model = extend(first, query_data("species"))
    assert changed_parts(model, first) == [] and changed_parts(model, reference()) == []
    assert model.species_ == ["mouse", "rat", "dog"] and model.drugs_ == ["control", "drug A", "drug B"]
    conditions = {tuple(row) for row in model.training_conditions_}
    assert {("mouse", "heart", "drug B"), ("mouse", "brain", "drug A"), ("dog", "brain", "drug A")} <= conditions
    n = len(first.var_names_)
    there = ~np.isnan(first.features_)
    np.testing.assert_array_equal(model.features_[:n][there], first.features_[there])


@pytest.mark.slow
def test_training_goes_on():
    model = extend(reference(), query_data("all"), max_epochs=1)
    model.train(max_epochs=1, n_tokens=40, **QUIET)
    assert changed_parts(model, reference()) == []


def test_a_training_that_fails_leaves_no_hook():
    """Gradients that are held back are let go."""
    model = UGE.load_query_data(query_data("all"), reference())

    class Stop(Exception):
        pass

    from lightning.pytorch.callbacks import Callback

    class Fail(Callback):
        def on_train_start(self, trainer, plan):
            raise Stop

    with pytest.raises(Stop):
        model.train(max_epochs=1, callbacks=[Fail()], **QUIET)
    assert not any(parameter._backward_hooks for parameter in model.module.parameters())


# ---- what is refused


def refused(how):
    query = query_data("drug")
    if how == "missing genes":
        return query[:, 7:].copy()
    if how == "species of a gene":
        query.var["species"] = query.var["species"].astype(str)
        query.var.loc[query.var_names[3], "species"] = "rat"
    elif how == "counts":
        query.X = query.layers["counts"]
    elif how == "nan":
        query.X.data[5] = np.nan
    elif how in ("organ", "drug", "animal"):
        del query.obs[how]
    elif how == "species of samples":
        del query.obs["species"]
    elif how == "species of genes":
        del query.var["species"]
    elif how == "missing drug":
        query.obs["drug"] = query.obs["drug"].astype(object).mask(np.arange(query.n_obs) < 3)
    elif how == "samples":
        query.obs_names = [query.obs_names[1], *query.obs_names[1:]]
    elif how == "genes":
        query.var_names = [query.var_names[1], *query.var_names[1:]]
    elif how == "empty":
        return query[:0].copy()
    elif how == "array":
        return query.X
    elif how == "samples without genes":
        query.obs["species"] = query.obs["species"].astype(str).replace("rat", "cow")
    return query


@pytest.mark.filterwarnings("ignore:Variable names are not unique", "ignore:Observation names are not unique")
@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("missing genes", ValueError, "adata lacks 7 genes of species that it has samples of: 'mouse_g.*impute"),
        ("species of a gene", ValueError, "These genes are of another species in the reference: 'mouse_g"),
        ("counts", ValueError, "adata.X must hold log-normalised values.*raw counts"),
        ("nan", ValueError, "adata.X has missing or infinite values"),
        ("organ", KeyError, "organ_key='organ' is not in adata.obs"),
        ("drug", KeyError, "drug_key='drug' is not in adata.obs"),
        ("animal", KeyError, "animal_key='animal' is not in adata.obs"),
        ("species of samples", KeyError, "species_key='species' is not in adata.obs"),
        ("species of genes", KeyError, "species_key='species' is not in adata.var"),
        ("missing drug", ValueError, r"adata.obs\['drug'\] \(drug_key\) is missing for 3 cells"),
        ("samples", ValueError, "adata.obs_names must be unique"),
        ("genes", ValueError, "adata.var_names must be unique"),
        ("empty", ValueError, "adata is empty"),
        ("array", TypeError, "adata must be an AnnData"),
        ("samples without genes", ValueError, r"must name the same species, but these are in one of them only: 'cow'"),
    ],
)
def test_queries_are_refused(how, error, message):
    with pytest.raises(error, match=message):
        UGE.load_query_data(refused(how), reference())


def test_references_are_refused(tmp_path):
    with pytest.raises(ValueError, match="reference_model is not trained: train it before it is extended"):
        UGE.load_query_data(query_data("drug"), build(reference_data()))


def test_an_untrained_extension_is_asked_nothing():
    model = UGE.load_query_data(query_data("drug"), reference())
    for ask in (model.get_latent_representation, lambda: model.map_genes("mouse", "rat"), model.predict_reactome):
        with pytest.raises(RuntimeError, match="untrained"):
            ask()


def test_a_new_species_without_controls_is_refused():
    query = query_data("species")
    query = query[(query.obs["drug"] != "control").to_numpy()].copy()
    with pytest.raises(ValueError, match="control samples? .*'dog'"):
        extend(reference(), query)


def test_a_new_drug_without_controls_is_refused():
    query = query_data("drug")
    query = query[(query.obs["drug"] != "control").to_numpy()].copy()
    with pytest.raises(ValueError, match="control"):
        extend(reference(), query)


def test_nothing_new_is_refused_or_nothing_to_train():
    with pytest.raises(ValueError, match="new"):
        extend(reference(), reference_data())
