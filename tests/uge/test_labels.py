"""Representations and labels of samples: by hand, of species without labels, and of data of any kind."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from transverse.uge._batches import bin_values

from .conftest import build, dense, same, train
from .helpers import CLOSE, assert_unchanged, genes_of, is_of, planted, same_state


def of_species(data, species):
    return data[(data.obs["species"] == species).to_numpy(), (data.var["species"] == species).to_numpy()].copy()


def encode(model, x, genes, species, bins=None, conditions=None):
    """Representations from the network itself."""
    s = model.species_.index(species)
    values = torch.from_numpy(dense(x) - model.gene_means_[genes]).float()
    block = {"species": torch.tensor(s), "tokens": torch.from_numpy(genes), "values": values}
    block |= {} if bins is None else {"bins": bins}
    block |= {} if conditions is None else {"conditions": conditions}
    model.module.eval()
    with torch.no_grad():
        return model.module.encode(block)[0].numpy()


def probabilities(model, z, key):
    head = model.module.organ_head if key == "organ" else model.module.drug_head
    with torch.no_grad():
        scores = head(torch.from_numpy(z)).double().numpy()
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


# ---- representations


def test_representations_by_hand(trained, stacked):
    found = trained.get_latent_representation()
    assert found.shape == (96, 16) and found.dtype == np.float32
    for species in ("mouse", "rat"):
        genes, rows = genes_of(trained, species), is_of(stacked, species)
        np.testing.assert_allclose(found[rows], encode(trained, stacked.X[rows][:, genes], genes, species), **CLOSE)
    assert same(trained.get_latent_representation(stacked), found)


def test_genes_that_are_no_tokens_have_no_influence(stacked):
    model = train(stacked, network={"n_top_genes": 20}, max_epochs={"genes": 1, "samples": 1})
    before = model.get_latent_representation()
    for s, species in enumerate(("mouse", "rat")):
        own = stacked[is_of(stacked, species)]
        variance = dense(own.X).astype(float).var(axis=0, ddof=1)
        genes = genes_of(model, species)
        assert set(model.tokens_[s]) == set(genes[np.argsort(-variance[genes])[:20]])
    changed = stacked.copy()
    changed.X = dense(changed.X)
    changed.X[:, np.setdiff1d(np.arange(120), np.concatenate(model.tokens_))] += 7.5
    np.testing.assert_array_equal(model.get_latent_representation(changed), before)
    fewer = stacked[:, np.sort(np.concatenate(model.tokens_))].copy()
    np.testing.assert_allclose(model.get_latent_representation(fewer), before, rtol=1e-5, atol=1e-5)


def test_genes_of_other_species_have_no_influence(trained, stacked):
    changed = stacked.copy()
    changed.X = dense(changed.X)
    for species, other in (("mouse", "rat"), ("rat", "mouse")):
        changed.X[np.ix_(is_of(stacked, species), genes_of(trained, other))] = 5.5
    np.testing.assert_array_equal(trained.get_latent_representation(changed), trained.get_latent_representation())


@pytest.mark.parametrize("n_kept", [1, 30])
def test_missing_genes_are_no_tokens(trained, simulated, n_kept):
    mouse = simulated["mouse"]
    kept = np.sort(np.random.default_rng(0).permutation(60)[:n_kept])
    query = mouse[:, kept].copy()
    where = np.array([trained.var_names_.index(name) for name in query.var_names])
    order = np.argsort(where)
    expected = encode(trained, query.X[:, order], where[order], "mouse")
    np.testing.assert_allclose(trained.get_latent_representation(query), expected, **CLOSE)
    assert np.abs(expected - trained.get_latent_representation(mouse)).max() > 0.01


def test_binned_representations_by_hand(stacked):
    model = train(stacked, network={"value_mode": "binned", "n_bins": 7}, max_epochs=1)
    genes = genes_of(model, "rat")
    x = stacked.X[is_of(stacked, "rat")][:, genes]
    bins = bin_values(torch.from_numpy(dense(x)), 7)
    assert bins.max() == 6
    found = model.get_latent_representation()[is_of(stacked, "rat")]
    np.testing.assert_allclose(found, encode(model, x, genes, "rat", bins=bins), **CLOSE)


def test_conditions_of_samples_are_not_shown(stacked):
    """Tokens of organ and drug are in training; what is asked about later has those of the unknown."""
    model = train(stacked, network={"condition_keys": ["drug", "organ"]}, max_epochs=1)
    genes, rows = genes_of(model, "mouse"), is_of(stacked, "mouse")
    conditions = torch.tensor([[3, 4]]).expand(rows.sum(), -1)
    expected = encode(model, stacked.X[rows][:, genes], genes, "mouse", conditions=conditions)
    found = model.get_latent_representation()
    np.testing.assert_allclose(found[rows], expected, **CLOSE)
    bare = ad.AnnData(stacked.X, obs=stacked.obs[["species"]], var=stacked.var)
    np.testing.assert_array_equal(model.get_latent_representation(bare), found)
    shown = encode(model, stacked.X[rows][:, genes], genes, "mouse", conditions=conditions * 0)
    assert np.abs(shown - expected).max() > 1e-3


# ---- the table


@pytest.mark.parametrize("key", ["organ", "drug"])
def test_labels_by_hand(trained, key):
    found = trained.predict_labels(key)
    names = trained.organs_ if key == "organ" else trained.drugs_
    assert found.columns.tolist() == ["label", "confidence", "second", "margin", *(f"p({name})" for name in names)]
    assert found.index.equals(trained.adata.obs_names)
    p = probabilities(trained, trained.get_latent_representation(), key)
    np.testing.assert_allclose(found.filter(like="p("), p, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.filter(like="p(").sum(axis=1), 1, rtol=1e-5)
    order = np.argsort(-p, axis=1)
    assert found["label"].tolist() == [names[i] for i in order[:, 0]]
    assert found["second"].tolist() == [names[i] for i in order[:, 1]]
    best = np.sort(p, axis=1)[:, ::-1]
    np.testing.assert_allclose(found["confidence"], best[:, 0], rtol=1e-4)
    np.testing.assert_allclose(found["margin"], best[:, 0] - best[:, 1], rtol=1e-3, atol=1e-5)


def test_drugs_start_with_the_control(trained):
    assert trained.drugs_ == ["control", "drug A", "drug B"]
    assert set(trained.predict_labels("drug")["label"]) <= set(trained.drugs_)


def test_equal_probabilities_go_to_the_first(trained, monkeypatch):
    monkeypatch.setattr(trained.module.organ_head, "forward", lambda z: torch.zeros(len(z), 4))
    found = trained.predict_labels("organ")
    assert set(found["label"]) == {trained.organs_[0]} and set(found["second"]) == {trained.organs_[1]}
    assert (found["margin"] == 0).all() and (found["confidence"] == 0.25).all()


# ---- planted labels


def test_planted_labels_of_a_species_without_labels():
    """Rats that were never shown; no label of a rat was."""
    _, model, unseen = planted()
    rats = unseen[is_of(unseen, "rat")].copy()
    found = {key: model.predict_labels(key, rats) for key in ("organ", "drug")}
    accuracy = {key: (table["label"] == rats.obs[key].astype(str)).mean() for key, table in found.items()}
    assert accuracy["organ"] > 0.8 and accuracy["drug"] > 0.5, accuracy
    wrong = found["organ"]["label"] != rats.obs["organ"].astype(str)
    assert found["organ"]["confidence"].mean() > 0.6 and wrong.mean() < 0.2


def test_planted_labels_of_the_training():
    _, model, _ = planted()
    found = model.predict_labels("organ")
    for species in ("mouse", "rat"):
        rows = is_of(model.adata, species)
        assert (found["label"][rows] == model.adata.obs["organ"][rows].astype(str)).mean() > 0.8


def test_organs_of_species_are_together():
    """A sample is nearer to the mean of its organ in the other species than to that of other organs."""
    _, model, _ = planted()
    z, obs = model.get_latent_representation(), model.adata.obs
    organs = obs["organ"].astype(str).to_numpy()
    for species, other in (("mouse", "rat"), ("rat", "mouse")):
        means = np.stack([z[is_of(model.adata, other, q)].mean(axis=0) for q in model.organs_])
        own = z[is_of(model.adata, species)]
        distance = ((own[:, None] - means) ** 2).sum(axis=2)
        nearest = np.array(model.organs_)[distance.argmin(axis=1)]
        assert (nearest == organs[is_of(model.adata, species)]).mean() > 0.7


# ---- labels that may not be seen


def relabelled(stacked, drugs):
    """Some rats of no known organ, and what their drug is said to be."""
    adata = stacked.copy()
    rows = np.flatnonzero(is_of(adata, "rat", "liver"))[::2]
    adata.obs["organ"] = adata.obs["organ"].astype(str)
    adata.obs["drug"] = adata.obs["drug"].astype(str)
    organ, drug = (adata.obs.columns.get_loc(key) for key in ("organ", "drug"))
    adata.obs.iloc[rows, organ] = "unknown"
    if drugs is not None:
        adata.obs.iloc[rows, drug] = np.resize(drugs, len(rows))
    return adata, rows


def test_labels_of_other_species_are_not_learnt(stacked):
    """The drug of samples that are in no average: what it is said to be changes nothing, unless labels are learnt of all."""
    first, _ = relabelled(stacked, None)
    second, _ = relabelled(stacked, ["drug B", "control", "drug A"])
    assert not first.obs["drug"].equals(second.obs["drug"])
    one, other = (train(data, label_species="mouse", stages=["samples"]) for data in (first, second))
    assert same_state(one, other) and same(one.features_, other.features_)
    pd.testing.assert_frame_equal(one.predict_labels("drug", stacked), other.predict_labels("drug", stacked))
    assert not same_state(*(train(data, stages=["samples"]) for data in (first, second)))


def test_unknown_labels_are_no_category(stacked):
    adata, rows = relabelled(stacked, ["unknown"])
    model = train(adata, max_epochs=1)
    assert model.organs_ == ["brain", "heart", "kidney", "liver"] and model.drugs_ == ["control", "drug A", "drug B"]
    organ, drug = model._labels(None).values()
    assert (organ[rows] == -1).all() and (drug[rows] == -1).all()
    known = np.setdiff1d(np.arange(adata.n_obs), rows)
    assert [model.organs_[i] for i in organ[known]] == adata.obs["organ"].iloc[known].tolist()
    assert [model.drugs_[i] for i in drug[known]] == adata.obs["drug"].iloc[known].tolist()
    for key in ("organ", "drug"):
        assert not any("unknown" in column for column in model.predict_labels(key))
    assert len(model.predict_labels("organ")) == adata.n_obs


def test_the_name_of_the_unknown(stacked):
    """It is an argument; without it, the name is a category like others."""
    adata, rows = relabelled(stacked, None)
    adata.obs["organ"] = adata.obs["organ"].replace("unknown", "?")
    options = {"max_epochs": 1, "stages": ["genes"]}
    model = train(adata, setup={"animal_key": "animal", "unlabeled_category": "?"}, **options)
    assert model.organs_ == ["brain", "heart", "kidney", "liver"]
    assert train(adata, **options).organs_ == ["?", "brain", "heart", "kidney", "liver"]


@pytest.mark.parametrize(
    ("label_species", "expected"),
    [
        (None, {"mouse", "rat"}),
        ("mouse", {"mouse"}),
        (["rat"], {"rat"}),
        (("mouse", "rat"), {"mouse", "rat"}),
        ([], set()),
    ],
)
def test_whose_labels_are_learnt(stacked, label_species, expected):
    model = build(stacked)
    for codes in model._labels(label_species).values():
        assert set(stacked.obs["species"][codes >= 0].astype(str)) == expected


def test_no_labels_at_all_are_learnt(stacked):
    """The classifiers are what they were."""
    model = build(stacked)
    before = {name: value.clone() for name, value in model.module.state_dict().items() if "_head." in name}
    trained_model = train(stacked, label_species=[], plan_kwargs={"weight_decay": 0.0}, max_epochs=1)
    after = trained_model.module.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_unknown_species_of_labels(stacked):
    for names in ("cow", ["mouse", "cow"]):
        with pytest.raises(KeyError, match="Unknown label_species: 'cow'. Known: 'mouse', 'rat'"):
            train(stacked, label_species=names)


# ---- data of any kind


@pytest.mark.parametrize("labels", [False, True], ids=["latent", "labels"])
def test_formats(trained, simulated, stacked, labels, tmp_path):
    """Genes in any order, more of them, species apart or together, dense, sparse or in a file, of either precision."""

    def ask(query):
        if not labels:
            return trained.get_latent_representation(query)
        found = trained.predict_labels("organ", query)
        assert found.index.equals(rat.obs_names)
        return found.filter(like="p(").to_numpy()

    rat = simulated["rat"]
    expected = ask(rat)
    shuffled = rat[:, np.random.default_rng(0).permutation(60)].copy()
    csr, csc, double = rat.copy(), rat.copy(), rat.copy()
    csr.X, csc.X, double.X = sp.csr_matrix(rat.X), sp.csc_matrix(rat.X), rat.X.astype(np.float64)
    whole = stacked[rat.obs_names].copy()
    bare = ad.AnnData(rat.X.copy(), obs=rat.obs[["species"]].astype(str), var=rat.var[[]])
    queries = [shuffled, csr, csc, double, whole, bare, rat[:], whole[:, whole.var["species"] == "rat"]]
    for query in queries:
        before = query.copy()
        np.testing.assert_allclose(ask(query), expected, rtol=1e-5, atol=1e-5)
        assert_unchanged(query, before)
    for data in (rat, csr):
        data.write_h5ad(tmp_path / "data.h5ad")
        backed = ad.read_h5ad(tmp_path / "data.h5ad", backed="r")
        np.testing.assert_allclose(ask(backed), expected, rtol=1e-5, atol=1e-5)
        backed.file.close()


def test_species_in_any_order(trained, stacked):
    """A row is that of the sample in its place."""
    order = np.random.default_rng(0).permutation(stacked.n_obs)
    query = stacked[order].copy()
    np.testing.assert_allclose(
        trained.get_latent_representation(query), trained.get_latent_representation()[order], rtol=1e-5, atol=1e-5
    )
    found = trained.predict_labels("organ", query)
    pd.testing.assert_frame_equal(found.loc[stacked.obs_names], trained.predict_labels("organ"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_batch_size_does_not_matter(trained, batch_size):
    expected = trained.get_latent_representation()
    np.testing.assert_allclose(trained.get_latent_representation(batch_size=batch_size), expected, rtol=1e-4, atol=1e-5)
    found = trained.predict_labels("organ", batch_size=batch_size)
    pd.testing.assert_frame_equal(found, trained.predict_labels("organ"), rtol=1e-3, atol=1e-5)


def test_nothing_is_random(trained):
    """Neither dropout nor hidden values, whatever the mode that the network is in."""
    expected = trained.get_latent_representation()
    trained.module.train()
    np.testing.assert_array_equal(trained.get_latent_representation(), expected)
    assert not trained.module.training and not torch.from_numpy(expected).requires_grad


def test_a_layer(stacked):
    adata = stacked.copy()
    adata.layers["log"], adata.X = adata.X.copy(), sp.csr_matrix(adata.shape, dtype=np.float32)
    model = train(adata, setup={"animal_key": "animal", "layer": "log"}, stages=["samples"])
    expected = train(stacked, stages=["samples"])
    assert same_state(model, expected)
    assert same(model.get_latent_representation(adata), expected.get_latent_representation())
    for via in ("map", "A"):
        condition = ("rat", "heart", "drug A")
        found = [m.predict(*condition, via=via, allow_leak=True) for m in (model, expected)]
        assert same(found[0].X, found[1].X) and same(found[0].layers["control"], found[1].layers["control"])
    rat = of_species(adata, "rat")[:, 5:60].copy()
    plain = ad.AnnData(rat.layers["log"], obs=rat.obs, var=rat.var)
    assert same(model.impute(rat, "rat").X, expected.impute(plain, "rat").X)
    with pytest.raises(KeyError, match="layer='log' is not in adata.layers"):
        model.get_latent_representation(stacked)


# ---- what is refused


def refused(simulated, how):
    query = simulated["rat"].copy()
    if how == "counts":
        query.X = query.layers["counts"]
    elif how == "nan":
        query.X[1, 1] = np.nan
    elif how == "inf in sparse":
        query.X = sp.csr_matrix(query.X)
        query.X.data[3] = np.inf
    elif how == "species":
        query.obs["species"] = ["cow", *["rat"] * (query.n_obs - 1)]
    elif how == "no species":
        del query.obs["species"]
    elif how == "genes":
        query.var_names = [f"g{i}" for i in range(60)]
    elif how == "other genes":
        query = simulated["mouse"].copy()
        query.obs["species"] = "rat"
    elif how == "twice":
        query.var_names = [query.var_names[1], *query.var_names[1:]]
    elif how == "empty":
        query = query[:0].copy()
    elif how == "no genes":
        query = query[:, :0].copy()
    elif how == "missing species":
        query.obs["species"] = np.array(["rat"] * 3 + [None] * (query.n_obs - 3), dtype=object)
    return query


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("counts", ValueError, "adata.X must hold log-normalised values.*raw counts.*normalize_total"),
        ("nan", ValueError, r"adata.X has missing or infinite values \(NaN or inf\)"),
        ("inf in sparse", ValueError, "adata.X has missing or infinite values"),
        ("species", ValueError, "adata has samples of unknown species: 'cow'. Known: 'mouse', 'rat'"),
        ("missing species", ValueError, "adata has samples of unknown species: '(nan|None)'"),
        ("no species", KeyError, "species_key='species' is not in adata.obs"),
        ("genes", ValueError, "adata has none of the genes of 'rat' that the model takes as tokens"),
        ("other genes", ValueError, "adata has none of the genes of 'rat' that the model takes as tokens"),
        ("twice", ValueError, "adata.var_names must be unique, but these repeat: 'rat_g"),
        ("empty", ValueError, "adata has no samples"),
        ("no genes", ValueError, "adata is empty|none of the genes"),
    ],
)
def test_data_are_refused(trained, simulated, how, error, message):
    for ask in (trained.get_latent_representation, lambda x: trained.predict_labels("organ", x)):
        with pytest.raises(error, match=message):
            ask(refused(simulated, how))


def test_arguments_are_refused(trained, simulated):
    for ask in (trained.get_latent_representation, lambda x: trained.predict_labels("organ", x)):
        with pytest.raises(TypeError, match="adata must be an AnnData, but got ndarray"):
            ask(simulated["rat"].X)
    with pytest.raises(ValueError, match="key='animal' must be 'organ' or 'drug'"):
        trained.predict_labels("animal")
    for batch_size in (0, -1, 2.5, None):
        with pytest.raises(ValueError, match=f"batch_size={batch_size} must be a whole number, at least 1"):
            trained.get_latent_representation(batch_size=batch_size)


def test_labels_of_gene_vectors_alone_are_refused(stacked):
    model = train(stacked, stages=["genes"], max_epochs=1)
    with pytest.raises((RuntimeError, ValueError), match="samples"):
        model.predict_labels("organ")


def test_one_organ_is_nothing_to_tell_apart(stacked):
    hearts = stacked[(stacked.obs["organ"] == "heart").to_numpy()].copy()
    model = train(hearts, max_epochs=1)
    with pytest.raises(ValueError, match="There is only one organ, 'heart': nothing to tell apart"):
        model.predict_labels("organ")
    assert len(model.predict_labels("drug")) == hearts.n_obs
    assert model.map_genes("mouse", "rat", n_top=1).shape[0] == 60
