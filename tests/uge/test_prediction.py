"""Predictions: derived again from the networks, in the data's units, and of nothing that they may not see."""

import functools

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

import transverse as tv
from transverse.uge import UGE
from transverse.uge._reactome import _intraclass

from .conftest import QUIET, build, dense, same, train
from .helpers import (
    CLOSE,
    assert_unchanged,
    changes,
    genes_of,
    is_of,
    mapped_changes,
    measured_change,
    names_of,
    planted,
    rows_of,
    said_and_shared,
    same_state,
    shared_share,
    soft_map,
    state,
)

WAYS = ("map", "reactome", "A", "B", "C")
ARITHMETIC = ("A", "B", "C")


@pytest.fixture(scope="module")
def condition(held_out):
    return held_out[0]


@pytest.fixture(scope="module")
def nowhere(_stacked):
    """A model that has seen drug A in no heart, and drug B in the rat's heart alone; it has learnt little.

    Tests must not change it.
    """
    hold_out = [("rat", "heart", "drug A"), ("mouse", "heart", "drug A")]
    hold_out += [("rat", organ, "drug B") for organ in ("brain", "kidney", "liver")]
    return train(_stacked, hold_out=hold_out, plan_kwargs={"lr": 1e-3})


@pytest.fixture(scope="module")
def three():
    """Mouse, rat and dog, a condition of the rat held out, and the same one lacking in the dog."""
    data = tv.datasets.simulate_reactomes(
        species=("mouse", "rat", "dog"), n_genes=40, n_organs=4, n_drugs=2, n_animals=3
    )
    hold_out = [("rat", "heart", "drug A"), ("rat", "brain", "drug B"), ("dog", "brain", "drug B")]
    return train(tv.pp.stack_species(data), hold_out=hold_out)


def controls_of(model, species, organ):
    rows = rows_of(model, species, organ, "control")
    return rows, dense(model.adata.X)[rows][:, genes_of(model, species)]


def decoded(model, z, species):
    s = model.species_.index(species)
    genes = genes_of(model, species)
    model.module.eval()
    with torch.no_grad():
        x = model.module.decode(torch.from_numpy(z.astype(np.float32)), torch.from_numpy(genes), s).numpy()
    return x + model.gene_means_[genes]


@functools.cache
def latent(model):
    return model.get_latent_representation().astype(float)


def mean_z(model, *condition):
    rows = rows_of(model, *condition)
    return latent(model)[rows].mean(axis=0) if len(rows) else None


def effect(model, source, organ, drug):
    """Of a drug in an organ, or in the mean of organs that have it."""
    found = {}
    for q in model.organs_:
        treated, control = mean_z(model, source, q, drug), mean_z(model, source, q, "control")
        if treated is not None and control is not None:
            found[q] = treated - control
    return found[organ] if organ in found else np.mean(list(found.values()), axis=0)


def moved(model, via, species, organ, drug, source):
    """Representations after the arithmetic of one source."""
    rows = rows_of(model, species, organ, "control")
    z = latent(model)[rows]
    a = z + effect(model, source, organ, drug)
    if via == "A":
        return a
    shifts = []
    for q in model.organs_:
        there, here = mean_z(model, source, q, "control"), mean_z(model, species, q, "control")
        if there is not None and here is not None:
            shifts.append(here - there)
    own = mean_z(model, species, organ, "control")
    b = mean_z(model, source, organ, drug) + np.mean(shifts, axis=0) + z - own
    return b if via == "B" else (a + b) / 2


# ---- by hand


def test_reactome_by_hand(trained, condition):
    species, organ, drug = condition
    pred = trained.predict(*condition, via="reactome")
    _, x = controls_of(trained, species, organ)
    o, k = trained.organs_.index(organ), trained.drugs_.index(drug) - 1
    np.testing.assert_allclose(pred.X, x + changes(trained, species)[:, o, k], **CLOSE)


MAPPED = {"rtol": 1e-3, "atol": 2e-3}


def test_map_by_hand(trained, condition):
    """What is said of the mouse's genes, as only the mouse has the condition."""
    species, organ, drug = condition
    pred = trained.predict(*condition, via="map")
    _, x = controls_of(trained, species, organ)
    o, k = trained.organs_.index(organ), trained.drugs_.index(drug) - 1
    carried = soft_map(trained, species, "mouse") @ said_and_shared(trained, "mouse")[:, o, k]
    np.testing.assert_allclose(pred.X, x + carried, **MAPPED)
    pd.testing.assert_frame_equal(pred.to_df(), trained.predict(*condition).to_df())


def test_map_where_no_species_has_the_condition(nowhere):
    """The mean over all, the gene's own included."""
    pred = nowhere.predict("rat", "heart", "drug A")
    _, x = controls_of(nowhere, "rat", "heart")
    o = nowhere.organs_.index("heart")
    own = said_and_shared(nowhere, "rat")[:, o, 0]
    carried = soft_map(nowhere, "rat", "mouse") @ said_and_shared(nowhere, "mouse")[:, o, 0]
    np.testing.assert_allclose(pred.X, x + (own + carried) / 2, **MAPPED)


def test_map_where_two_other_species_have_the_condition(three):
    o, k = three.organs_.index("heart"), 0
    carried = [soft_map(three, "rat", s) @ said_and_shared(three, s)[:, o, k] for s in ("mouse", "dog")]
    _, x = controls_of(three, "rat", "heart")
    pred = three.predict("rat", "heart", "drug A", via="map")
    np.testing.assert_allclose(pred.X, x + np.mean(carried, axis=0), **MAPPED)
    # and where the dog lacks it, the mouse's alone
    o, k = three.organs_.index("brain"), 1
    _, x = controls_of(three, "rat", "brain")
    pred = three.predict("rat", "brain", "drug B", via="map")
    carried = soft_map(three, "rat", "mouse") @ said_and_shared(three, "mouse")[:, o, k]
    np.testing.assert_allclose(pred.X, x + carried, **MAPPED)


def test_what_organs_share_of_a_drug(trained, nowhere):
    """More than the head says is carried over; none of a drug that was measured in no organ, and all organs alike."""
    for model in (trained, nowhere):
        for s, species in enumerate(model.species_):
            shared = said_and_shared(model, species) - changes(model, species)
            np.testing.assert_allclose(model._drug_residuals(s), shared[:, 0], **CLOSE)
            np.testing.assert_allclose(shared, shared[:, :1].repeat(shared.shape[1], axis=1), atol=1e-9)
            if model is nowhere:  # the head leaves something to say
                assert (np.abs(shared).max(axis=(0, 1)) > 0.05).all()


@pytest.mark.parametrize("n", [2, 3, 5])
def test_the_share_of_organs(n):
    """All of what is the same in all, none of what has nothing in common, and what is in between."""
    rng = np.random.default_rng(0)
    common, own = rng.normal(size=(4000, 1)), rng.normal(size=(4000, n))
    assert _intraclass(np.repeat(common, n, axis=1)) == pytest.approx(1)
    assert _intraclass(own) < 0.05 and _intraclass(-np.eye(n) + 1 / n) == 0 and _intraclass(np.zeros((5, n))) == 0
    assert _intraclass(common + own) == pytest.approx(0.5, abs=0.05)
    np.testing.assert_allclose(_intraclass(2 * common + own), shared_share(2 * common + own))


@pytest.mark.parametrize("via", ARITHMETIC)
@pytest.mark.parametrize("output", ["change", "decoded"])
def test_arithmetic_by_hand(trained, condition, via, output):
    species, organ, _ = condition
    pred = trained.predict(*condition, via=via, output=output)
    expected = decoded(trained, moved(trained, via, *condition, "mouse"), species)
    if output == "change":
        rows, x = controls_of(trained, species, organ)
        expected = x + expected - decoded(trained, latent(trained)[rows], species)
    np.testing.assert_allclose(pred.X, expected, **CLOSE)
    assert list(pred.uns["prediction"]["source"]) == ["mouse"]


def test_ways_and_outputs_differ(trained, condition):
    found = [trained.predict(*condition, via=via).X for via in WAYS]
    found += [trained.predict(*condition, via=via, output="decoded").X for via in ARITHMETIC]
    for i, x in enumerate(found):
        for y in found[i + 1 :]:
            assert np.abs(x - y).max() > 1e-4
    # of the head's predictions there is no other output
    for via in ("map", "reactome"):
        assert same(trained.predict(*condition, via=via, output="decoded").X, trained.predict(*condition, via=via).X)


def test_the_effect_of_other_organs_where_the_source_lacks_the_organ(nowhere):
    pred = nowhere.predict("rat", "heart", "drug A", via="A", output="decoded")
    expected = decoded(nowhere, moved(nowhere, "A", "rat", "heart", "drug A", "mouse"), "rat")
    np.testing.assert_allclose(pred.X, expected, **CLOSE)
    organs = [q for q in nowhere.organs_ if q != "heart"]
    by_organ = [mean_z(nowhere, "mouse", q, "drug A") - mean_z(nowhere, "mouse", q, "control") for q in organs]
    z = latent(nowhere)[rows_of(nowhere, "rat", "heart", "control")]
    np.testing.assert_allclose(pred.X, decoded(nowhere, z + np.mean(by_organ, axis=0), "rat"), **CLOSE)
    for via in ("B", "C"):
        with pytest.raises(ValueError, match=f"via='{via}' needs samples of 'drug A' in 'heart' of 'mouse'"):
            nowhere.predict("rat", "heart", "drug A", via=via)


@pytest.mark.parametrize("via", ARITHMETIC)
def test_sources_are_averaged(three, via):
    by_source = [moved(three, via, "rat", "heart", "drug A", name) for name in ("mouse", "dog")]
    pred = three.predict("rat", "heart", "drug A", via=via, output="decoded")
    np.testing.assert_allclose(pred.X, decoded(three, np.mean(by_source, axis=0), "rat"), **CLOSE)
    assert list(pred.uns["prediction"]["source"]) == ["mouse", "dog"]
    for name, z in zip(("mouse", "dog"), by_source, strict=True):
        pred = three.predict("rat", "heart", "drug A", via=via, output="decoded", source=name)
        np.testing.assert_allclose(pred.X, decoded(three, z, "rat"), **CLOSE)
        assert list(pred.uns["prediction"]["source"]) == [name]


def test_a_source_without_the_organ_lends_the_mean_of_its_others(three):
    by_source = [moved(three, "A", "rat", "brain", "drug B", name) for name in ("mouse", "dog")]
    pred = three.predict("rat", "brain", "drug B", via="A", output="decoded")
    np.testing.assert_allclose(pred.X, decoded(three, np.mean(by_source, axis=0), "rat"), **CLOSE)


@pytest.mark.parametrize("via", ["B", "C"])
def test_sources_without_the_organ_are_left_out(three, via):
    pred = three.predict("rat", "brain", "drug B", via=via)
    assert same(pred.X, three.predict("rat", "brain", "drug B", via=via, source="mouse").X)
    assert list(pred.uns["prediction"]["source"]) == ["mouse"]


def test_batch_size_does_not_matter(trained, condition):
    for via in WAYS:
        x = trained.predict(*condition, via=via).X
        trained._derived.pop("latent", None)
        np.testing.assert_allclose(trained.predict(*condition, via=via, batch_size=3).X, x, rtol=1e-5, atol=1e-5)
        trained._derived.pop("latent", None)


# ---- what comes back


@pytest.mark.parametrize("via", WAYS)
def test_layout(trained, condition, via):
    species, organ, drug = condition
    pred = trained.predict(*condition, via=via)
    rows, x = controls_of(trained, species, organ)
    assert pred.shape == (4, 60) == (len(rows), 60) and pred.X.dtype == np.float32 and isinstance(pred.X, np.ndarray)
    assert pred.var_names.tolist() == names_of(trained, species)
    assert pred.obs_names.tolist() == pred.obs["control_sample"].tolist() == trained.adata.obs_names[rows].tolist()
    np.testing.assert_array_equal(pred.layers["control"], x)
    assert set(pred.obs) == {"control_sample", "species", "organ", "drug"}
    for key, value in zip(("species", "organ", "drug"), condition, strict=True):
        assert set(pred.obs[key]) == {value}
    assert set(pred.var["species"]) == {species}
    about = dict(pred.uns["prediction"])
    source = list(about.pop("source"))
    assert about == {
        "method": "UGE",
        "species": species,
        "organ": organ,
        "drug": drug,
        "via": via,
        "output": "change",
        "scale": "that of the data",
        "leak": "none",
    }
    assert source == (["mouse"] if via in ARITHMETIC else [])


def test_a_prediction_is_a_file(trained, condition, tmp_path):
    pred = trained.predict(*condition, via="C")
    pred.write_h5ad(tmp_path / "pred.h5ad")
    back = ad.read_h5ad(tmp_path / "pred.h5ad")
    np.testing.assert_array_equal(back.X, pred.X)
    assert back.uns["prediction"]["leak"] == "none" and back.uns["prediction"]["via"] == "C"


def test_a_prediction_goes_with_metrics():
    data, model, unseen = planted()
    rat = of_rat(unseen)
    truth, control = (rat[is_of(rat, "rat", "heart", drug)].copy() for drug in ("drug A", "control"))
    pred = model.predict("rat", "heart", "drug A")
    keys = {"perturbation_key": "drug", "context_key": "organ", "n_top": 20}
    scores = tv.metrics.response_scores(truth, pred, control, **keys)
    scores = scores.set_index(["of", "genes", "metric"])["value"]
    assert scores["expression", "all", "r2"] > 0.9 and scores["change", "all", "pearson"] > 0.1


def test_names_that_are_numbers(simulated):
    """Columns may hold numbers, which are asked for as such or as text."""
    stacked = tv.pp.stack_species(simulated)
    stacked.obs["organ"] = stacked.obs["organ"].cat.codes.to_numpy()
    stacked.obs["drug"] = stacked.obs["drug"].astype(str).map({"control": 0, "drug A": 1, "drug B": 2}).to_numpy()
    setup = {"animal_key": "animal", "control": 0}
    model = train(stacked, setup=setup, hold_out=[("rat", 1, 2)], max_epochs=1, stages=["genes"])
    assert model.organs_ == ["0", "1", "2", "3"] and model.drugs_ == ["0", "1", "2"]
    found = [model.predict("rat", *names, via="map").X for names in ((1, 2), ("1", "2"))]
    assert same(*found)
    with pytest.raises(ValueError, match="was trained on 'rat', 1, 1"):
        model.predict("rat", 1, 1)


# ---- the prediction may not see what it predicts


def spoilt(stacked, rows, seed=0, scale=3.0):
    """The data with other values at the genes of the samples' species."""
    stacked = stacked.copy()
    x = dense(stacked.X)
    species = stacked.obs["species"].astype(str).to_numpy()
    rng = np.random.default_rng(seed)
    for i in np.flatnonzero(rows):
        genes = (stacked.var["species"] == species[i]).to_numpy()
        x[i, genes] += scale * rng.random(genes.sum()).astype(np.float32) + 3
    stacked.X = sp.csr_matrix(x)
    return stacked


def everything(model, condition, adata):
    """All that a model says, of samples that are the same."""
    found = {f"weights {name}": value for name, value in state(model).items()}
    found |= {f"via {via}": model.predict(*condition, via=via).X for via in WAYS}
    found |= {f"decoded {via}": model.predict(*condition, via=via, output="decoded").X for via in ARITHMETIC}
    found |= {f"map {i}": model._soft_map(i, 1 - i).toarray() for i in (0, 1)}
    found["table"] = model.map_genes("mouse", "rat", n_top=60)[["score", "probability"]].to_numpy()
    found |= {"features": model.features_, "means": model.gene_means_, "measured": model.is_measured_}
    found |= {f"tokens {i}": tokens for i, tokens in enumerate(model.tokens_)}
    found |= {f"reactome {via}": model.predict_reactome(via=via).X for via in ("map", "reactome")}
    found["reactome measured"] = model.predict_reactome().layers["measured"]
    found["latent"] = model.get_latent_representation(adata)
    for key in ("organ", "drug"):
        found[f"labels {key}"] = model.predict_labels(key, adata).filter(like="p(").to_numpy()
    found["experiments"] = model.suggest_experiments(ambiguity_weight=0)[["gain", "variance"]].to_numpy()
    return found


def assert_nothing_differs(one, other):
    assert one.keys() == other.keys()
    assert [key for key in one if not same(one[key], other[key])] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "training",
    [
        {},
        {"train_size": 0.7, "early_stopping": True, "max_epochs": 1},
        {
            "label_species": "mouse",
            "translated": 1.0,
            "max_epochs": 1,
            "network": {"value_mode": "binned", "n_top_genes": 25},
        },
    ],
    ids=["plain", "early stopping", "binned"],
)
def test_wild_values_of_held_out_samples_change_nothing(stacked, held_out, condition, training):
    """To the last bit: weights, features, tokens, maps, predictions and labels of others."""
    rows = is_of(stacked, *condition)
    others = stacked[~rows].copy()
    models = [train(data, hold_out=held_out, **training) for data in (stacked, spoilt(stacked, rows))]
    assert np.abs(dense(models[0].adata.X) - dense(models[1].adata.X)).max() > 3
    found = [everything(model, condition, others) for model in models]
    assert_nothing_differs(*found)
    # and what they are is that of a model trained with them
    if not training:
        seen = train(spoilt(stacked, rows), max_epochs=1)
        assert not same_state(seen, models[0])
        assert np.abs(seen.predict(*condition, via="map", allow_leak=True).X - found[0]["via map"]).max() > 0.1


def test_a_model_without_the_samples_is_the_same(stacked, held_out, condition):
    """But for the animals' other samples, nothing is left of what was held out."""
    rest = stacked[~is_of(stacked, *condition)].copy()
    models = [train(data, hold_out=held, max_epochs=1) for data, held in ((stacked, held_out), (rest, ()))]
    assert_nothing_differs(*(everything(model, condition, rest) for model in models))


@pytest.mark.parametrize(
    "hold_out", [[("rat", "heart", "drug A"), ("mouse", "brain", "drug B")], [["rat", "heart", "drug A"]]]
)
def test_what_is_held_out(stacked, hold_out):
    model = train(stacked, hold_out=hold_out, stages=["genes"], max_epochs=1)
    conditions = {tuple(map(str, row)) for row in stacked.obs[["species", "organ", "drug"]].to_numpy()}
    assert {tuple(row) for row in model.training_conditions_} == conditions - set(map(tuple, hold_out))
    out = np.any([is_of(stacked, *condition) for condition in hold_out], axis=0)
    assert set(model.training_samples_) == set(stacked.obs_names[~out])
    for condition in conditions:
        if condition[2] == "control":
            continue
        if list(condition) in list(map(list, hold_out)):
            assert model.predict(*condition).uns["prediction"]["leak"] == "none"
        else:
            with pytest.raises(ValueError, match="The model was trained on"):
                model.predict(*condition)


def test_what_was_trained_on_is_refused_or_said(trained):
    for condition in (("rat", "heart", "drug B"), ("mouse", "liver", "drug A"), ("rat", "liver", "drug A")):
        for via in WAYS:
            with pytest.raises(
                ValueError, match=f"The model was trained on '{condition[0]}', '{condition[1]}'.*hold_out"
            ):
                trained.predict(*condition, via=via)
            pred = trained.predict(*condition, via=via, allow_leak=True)
            assert pred.uns["prediction"]["leak"] == "trained on"


def test_a_permission_to_leak_is_not_a_leak(trained, condition):
    for via in WAYS:
        pred = trained.predict(*condition, via=via, allow_leak=True)
        assert pred.uns["prediction"]["leak"] == "none"
        assert same(pred.X, trained.predict(*condition, via=via).X)


def test_conditions_without_controls_count_as_trained_on(stacked):
    """They are in no reactome, but the samples' values and labels are learnt."""
    keep = ~is_of(stacked, "rat", "heart", "control")
    model = train(stacked[keep].copy(), hold_out=[("rat", "heart", "drug B")], max_epochs=1)
    assert not model.is_measured_[1, model.organs_.index("heart")].any()
    with pytest.raises(ValueError, match="The model was trained on 'rat', 'heart', 'drug A'"):
        model.predict("rat", "heart", "drug A")
    for options in ({"drug": "drug A", "allow_leak": True}, {"drug": "drug B"}):
        with pytest.raises(ValueError, match="The training has no control samples of 'heart' in 'rat' to start from"):
            model.predict("rat", "heart", **options)


def test_samples_of_unknown_drug_do_not_count(stacked):
    """Of nothing known to be it."""
    stacked.obs["drug"] = stacked.obs["drug"].astype(str).mask(is_of(stacked, "rat", "heart", "drug A"), "unknown")
    model = train(stacked, max_epochs=1)
    assert ("rat", "heart", "unknown") in model.training_conditions_
    assert model.drugs_ == ["control", "drug A", "drug B"]
    assert model.predict("rat", "heart", "drug A").uns["prediction"]["leak"] == "none"
    assert not model.is_measured_[1, model.organs_.index("heart"), 0]


@pytest.mark.parametrize("via", ARITHMETIC)
def test_the_conditions_own_samples_are_in_no_mean(trained, stacked, via, tmp_path):
    """Even where they were trained on, and the leak is allowed."""
    condition = ("rat", "brain", "drug B")
    trained.save(tmp_path / "model")
    loaded = UGE.load(tmp_path / "model", spoilt(stacked, is_of(stacked, *condition)))
    found = loaded.predict(*condition, via=via, allow_leak=True)
    assert same(found.X, trained.predict(*condition, via=via, allow_leak=True).X)
    # those of the source are
    loaded = UGE.load(tmp_path / "model", spoilt(stacked, is_of(stacked, "mouse", "brain", "drug B")))
    assert np.abs(loaded.predict(*condition, via=via, allow_leak=True).X - found.X).max() > 1e-3


def test_samples_that_were_not_trained_on_are_in_no_mean(stacked):
    """Those of the validation, of the source too; nor does a prediction start from one."""
    rows = np.arange(stacked.n_obs)
    out = np.zeros(stacked.n_obs, dtype=bool)
    for condition in (("mouse", "heart", "drug A"), ("mouse", "heart", "control"), ("rat", "heart", "control")):
        out[np.flatnonzero(is_of(stacked, *condition))[:2]] = True
    split = {"external_indexing": [rows[~out], rows[out]]}
    models = [
        train(data, hold_out=[("rat", "heart", "drug A")], datasplitter_kwargs=split, stages=["samples"])
        for data in (stacked, spoilt(stacked, out))
    ]
    for via in WAYS:
        found = [model.predict("rat", "heart", "drug A", via=via) for model in models]
        assert same(found[0].X, found[1].X) and found[0].n_obs == 2
        assert not set(found[0].obs_names) & set(stacked.obs_names[out])


def test_what_was_seen_in_an_earlier_training_is_not_forgotten(stacked, held_out, condition):
    model = train(stacked, max_epochs=1)
    model.train(max_epochs=1, hold_out=held_out, n_tokens=40, stages=["genes"], **QUIET)
    with pytest.raises(ValueError, match="The model was trained on"):
        model.predict(*condition)
    assert model.predict(*condition, allow_leak=True).uns["prediction"]["leak"] == "trained on"


def test_a_training_that_is_refused_changes_nothing(stacked, held_out, condition):
    model = train(stacked, hold_out=held_out, max_epochs=1)
    before = everything(model, condition, stacked)
    with pytest.raises(KeyError, match="Unknown label_species"):
        model.train(label_species="cow", **QUIET)
    assert_nothing_differs(everything(model, condition, stacked), before)


def test_conditions_that_were_validated_on_are_refused(stacked, condition):
    out = is_of(stacked, *condition)
    rows = np.arange(stacked.n_obs)
    split = {"external_indexing": [rows[~out], rows[out]]}
    model = train(stacked, datasplitter_kwargs=split, early_stopping=True, max_epochs=1)
    with pytest.raises(ValueError, match="trained on|validated on|validation"):
        model.predict(*condition)


# ---- how good it is


@pytest.mark.parametrize("via", WAYS)
def test_planted_changes(via):
    """What a held-out condition does, noise aside."""
    data, model, _ = planted()
    truth = data["rat"].uns["true_reactome"]
    pred = model.predict("rat", "heart", "drug A", via=via)
    change = (pred.X - pred.layers["control"]).mean(axis=0)
    assert np.corrcoef(change, truth.loc[pred.var_names, "heart|drug A"])[0, 1] > 0.35


# ---- samples in another order


def test_order_of_samples_does_not_matter(trained, stacked, condition, tmp_path):
    trained.save(tmp_path / "model")
    order = np.random.default_rng(0).permutation(stacked.n_obs)
    loaded = UGE.load(tmp_path / "model", stacked[order].copy())
    for via in WAYS:
        pred, found = trained.predict(*condition, via=via), loaded.predict(*condition, via=via)
        assert set(found.obs_names) == set(pred.obs_names)
        np.testing.assert_allclose(found[pred.obs_names].X, pred.X, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Training will be faster when sparse matrix is formatted as CSR")
def test_formats_of_the_data(trained, stacked, condition, tmp_path):
    """Dense, column by column, and from a file."""
    trained.save(tmp_path / "model")
    stacked.write_h5ad(tmp_path / "data.h5ad")
    denser, columns = stacked.copy(), stacked.copy()
    denser.X = dense(stacked.X)
    columns.X = sp.csc_matrix(stacked.X)
    for data in (denser, columns, ad.read_h5ad(tmp_path / "data.h5ad", backed="r")):
        loaded = UGE.load(tmp_path / "model", data)
        for via in WAYS:
            np.testing.assert_allclose(
                loaded.predict(*condition, via=via).X, trained.predict(*condition, via=via).X, rtol=1e-5, atol=1e-5
            )


# ---- what is refused


def test_predictions_refuse(trained, condition):
    for options, error, message in (
        ({"species": "cow"}, KeyError, "Unknown species 'cow'. Known: 'mouse', 'rat'"),
        ({"organ": "tail"}, KeyError, "Unknown organ 'tail'. Known: 'brain', 'heart', 'kidney', 'liver'"),
        ({"drug": "drug Z"}, KeyError, "Unknown drug 'drug Z'. Known: 'drug A', 'drug B'"),
        ({"drug": "control"}, KeyError, "Unknown drug 'control'. Known: 'drug A', 'drug B'"),
        ({"via": "D"}, ValueError, "via='D' must be one of 'map', 'reactome', 'A', 'B', 'C'"),
        ({"output": "latent"}, ValueError, "output='latent' must be 'change' or 'decoded'"),
        ({"via": "A", "source": "cow"}, KeyError, "Unknown species 'cow'"),
        ({"via": "A", "source": "rat"}, ValueError, "The training has no samples of 'drug A' in rat to carry over"),
    ):
        with pytest.raises(error, match=message):
            trained.predict(**dict(zip(("species", "organ", "drug"), condition, strict=True)) | options)


@pytest.mark.parametrize("via", ["map", "A"])
def test_batch_sizes_are_refused(trained, condition, via):
    with pytest.raises(ValueError, match="batch_size=0 must be a whole number"):
        trained.predict(*condition, via=via, batch_size=0)


def test_nothing_to_carry_over(stacked):
    """No other species has the drug; the head says something all the same."""
    hold_out = [("mouse", q, "drug B") for q in ("brain", "heart", "kidney", "liver")] + [("rat", "heart", "drug B")]
    model = train(stacked, hold_out=hold_out, max_epochs=1)
    for via in ARITHMETIC:
        with pytest.raises(
            ValueError, match="The training has no samples of 'drug B' in another species to carry over"
        ):
            model.predict("rat", "heart", "drug B", via=via)
        with pytest.raises(ValueError, match="The training has no samples of 'drug B' in mouse to carry over"):
            model.predict("rat", "heart", "drug B", via=via, source="mouse")
    for via in ("map", "reactome"):
        assert np.isfinite(model.predict("rat", "heart", "drug B", via=via).X).all()


def test_no_organ_in_common(stacked):
    """What a species adds cannot be told; what a drug does, can."""
    organs = stacked.obs["organ"].astype(str)
    of_rat = (stacked.obs["species"] == "rat").to_numpy()
    keep = (
        np.where(of_rat, organs.isin(["brain", "heart"]), organs.isin(["kidney", "liver"]))
        | ((stacked.obs["species"] == "mouse") & (organs == "heart") & (stacked.obs["drug"] != "control")).to_numpy()
    )
    model = train(stacked[keep].copy(), hold_out=[("rat", "heart", "drug A")], max_epochs=1)
    for via in ("B", "C"):
        with pytest.raises(ValueError, match="'rat' and 'mouse' have control samples of no organ in common"):
            model.predict("rat", "heart", "drug A", via=via)
    pred = model.predict("rat", "heart", "drug A", via="A", output="decoded")
    np.testing.assert_allclose(
        pred.X, decoded(model, moved(model, "A", "rat", "heart", "drug A", "mouse"), "rat"), **CLOSE
    )


@pytest.mark.filterwarnings("ignore:Mean of empty slice:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
def test_a_source_without_controls_of_the_drugs_organs(stacked):
    drop = is_of(stacked, "mouse", "heart", "control") | is_of(stacked, "rat", "heart", "drug A")
    for organ in ("brain", "kidney", "liver"):
        drop |= is_of(stacked, "mouse", organ, "drug A")
    model = train(stacked[~drop].copy(), max_epochs=1)
    with pytest.raises(ValueError, match="controls?|carry over"):
        model.predict("rat", "heart", "drug A", via="A")


def test_an_untrained_model_predicts_nothing(stacked, condition):
    model = build(stacked)
    for ask in (
        lambda: model.predict(*condition),
        model.predict_reactome,
        lambda: model.impute(stacked, "rat"),
        model.predict_labels,
        model.get_latent_representation,
        model.suggest_experiments,
    ):
        with pytest.raises(RuntimeError, match="untrained"):
            ask()


def test_without_data_there_is_nothing_to_start_from(trained, condition, tmp_path):
    trained.save(tmp_path / "model")
    loaded = UGE.load(tmp_path / "model", adata=False)
    for via in WAYS:
        with pytest.raises(ValueError, match="The model was loaded without data"):
            loaded.predict(*condition, via=via)
    assert same(loaded.predict_reactome().X, trained.predict_reactome().X)


# ---- reactomes


@pytest.mark.parametrize("via", ["map", "reactome"])
@pytest.mark.parametrize("fixture", ["trained", "nowhere", "three"])
def test_reactomes_by_hand(request, fixture, via):
    model = request.getfixturevalue(fixture)
    of_species = mapped_changes if via == "map" else changes
    expected = [of_species(model, species).reshape(len(genes_of(model, species)), -1) for species in model.species_]
    np.testing.assert_allclose(model.predict_reactome(via=via).X, np.concatenate(expected), **MAPPED)


def test_a_species_reactome_is_its_part(trained):
    for via in ("map", "reactome"):
        whole = trained.predict_reactome(via=via)
        for species in ("mouse", "rat"):
            own = trained.predict_reactome(species, via=via)
            assert own.obs_names.tolist() == names_of(trained, species)
            assert set(own.obs["species"]) == {species}
            assert same(own.X, whole[own.obs_names].X)
            assert same(own.layers["measured"], whole[own.obs_names].layers["measured"])


def test_layout_of_a_reactome(trained, held_out):
    found = trained.predict_reactome()
    assert found.shape == (120, 8) and found.X.dtype == np.float32
    assert found.obs_names.tolist() == names_of(trained, "mouse") + names_of(trained, "rat")
    assert found.obs["species"].tolist() == ["mouse"] * 60 + ["rat"] * 60
    pairs = [(o, k) for o in trained.organs_ for k in trained.drugs_[1:]]
    assert list(zip(found.var["organ"], found.var["drug"], strict=True)) == pairs
    assert found.var_names.tolist() == [f"{o}|{k}" for o, k in pairs]
    assert found.var["measured_in_mouse"].all() and found.var["measured_in_mouse"].dtype == bool
    assert found.var_names[~found.var["measured_in_rat"].to_numpy()].tolist() == ["heart|drug A"]
    assert "measured_in_rat" not in trained.predict_reactome("mouse").var
    pd.testing.assert_frame_equal(found.var, trained.predict_reactome(via="map").var)


def test_measured_changes_by_hand(trained, stacked, held_out):
    found = trained.predict_reactome()
    for species in ("mouse", "rat"):
        own = found[names_of(trained, species)]
        for organ, drug in zip(found.var["organ"], found.var["drug"], strict=True):
            column = own[:, f"{organ}|{drug}"].layers["measured"].ravel()
            if (species, organ, drug) in held_out:
                assert np.isnan(column).all()
            else:
                np.testing.assert_allclose(column, measured_change(stacked, species, organ, drug), **CLOSE)


def test_predicted_changes_are_like_the_measured(trained):
    found = trained.predict_reactome(via="reactome")
    there = ~np.isnan(found.layers["measured"])
    assert np.corrcoef(found.X[there], found.layers["measured"][there])[0, 1] > 0.5


def test_planted_reactomes():
    """A held-out entry, against what is true without noise."""
    data, model, _ = planted()
    truth = data["rat"].uns["true_reactome"]
    for via in ("map", "reactome"):
        found = model.predict_reactome("rat", via=via).to_df()
        assert np.corrcoef(found["heart|drug A"], truth.loc[found.index, "heart|drug A"])[0, 1] > 0.3


def test_predictions_are_reactomes_on_controls(trained, condition):
    species, organ, drug = condition
    for via in ("map", "reactome"):
        pred = trained.predict(*condition, via=via)
        change = trained.predict_reactome(species, via=via)[:, f"{organ}|{drug}"].X.ravel()
        np.testing.assert_allclose(pred.X - pred.layers["control"], np.tile(change, (pred.n_obs, 1)), atol=1e-5)


def test_reactomes_refuse(trained):
    with pytest.raises(ValueError, match="via='A' must be 'map' or 'reactome'"):
        trained.predict_reactome(via="A")
    with pytest.raises(KeyError, match="Unknown species 'cow'"):
        trained.predict_reactome("cow")


# ---- genes that were not measured


def of_rat(data, names=None):
    rat = data[:, (data.var["species"] == "rat").to_numpy()] if "species" in data.var else data
    return rat[(rat.obs["species"] == "rat").to_numpy(), slice(None) if names is None else names].copy()


def test_imputation_by_hand(trained, simulated):
    names = np.array(names_of(trained, "rat"), dtype=object)
    kept = np.random.default_rng(0).permutation(60)[:45]
    query = of_rat(simulated["rat"], names[kept])[:10].copy()
    before = query.copy()
    found = trained.impute(query, "rat")
    assert found.var_names.tolist() == names.tolist() and found.obs_names.equals(query.obs_names)
    assert found.var["is_imputed"].dtype == bool and set(found.var_names[found.var["is_imputed"]]) == set(names) - set(
        names[kept]
    )
    assert same(found[:, query.var_names].X, query.X)
    expected = decoded(trained, trained.get_latent_representation(query), "rat")
    np.testing.assert_allclose(found.layers["predicted"], expected, **CLOSE)
    missing = found.var["is_imputed"].to_numpy()
    assert same(np.ascontiguousarray(found.X[:, missing]), np.ascontiguousarray(found.layers["predicted"][:, missing]))
    pd.testing.assert_frame_equal(found.obs, query.obs)
    assert_unchanged(query, before)
    np.testing.assert_allclose(trained.impute(query, "rat", batch_size=3).X, found.X, rtol=1e-5, atol=1e-5)


def test_imputation_takes_any_data(trained, simulated, tmp_path):
    """Without the column of species, with other genes, in any order and format."""
    names = names_of(trained, "rat")
    query = of_rat(simulated["rat"], names[5:])
    expected = trained.impute(query, "rat")
    plain = query.copy()
    del plain.obs["species"]
    shuffled = query[:, ::-1].copy()
    more = ad.concat(
        [
            query,
            ad.AnnData(np.full((query.n_obs, 2), 9, np.float32), obs=query.obs[[]], var=pd.DataFrame(index=["x", "y"])),
        ],
        axis=1,
        merge="first",
    )
    more.obs = query.obs.copy()
    sparse = query.copy()
    sparse.X = sp.csr_matrix(sparse.X)
    query.write_h5ad(tmp_path / "query.h5ad")
    backed = ad.read_h5ad(tmp_path / "query.h5ad", backed="r")
    for data in (plain, shuffled, more, sparse, backed, query[:]):
        found = trained.impute(data, "rat")
        assert found.var_names.tolist() == names and found.obs_names.equals(query.obs_names)
        np.testing.assert_allclose(found.X, expected.X, rtol=1e-5, atol=1e-5)
    assert "species" not in plain.obs


def test_imputation_takes_sparse_files(trained, simulated, tmp_path):
    query = of_rat(simulated["rat"], names_of(trained, "rat")[5:])
    query.X = sp.csr_matrix(query.X)
    query.write_h5ad(tmp_path / "query.h5ad")
    found = trained.impute(ad.read_h5ad(tmp_path / "query.h5ad", backed="r"), "rat")
    np.testing.assert_allclose(found.X, trained.impute(query, "rat").X, rtol=1e-5, atol=1e-5)


def test_nothing_to_impute(trained, simulated):
    query = of_rat(simulated["rat"])
    found = trained.impute(query, "rat")
    assert not found.var["is_imputed"].any()
    assert same(found[:, query.var_names].X, query.X)


def test_planted_imputation():
    """Genes of animals that were never shown, better than by the genes' means."""
    data, model, unseen = planted()
    query = of_rat(unseen)
    hidden = query.var_names[np.random.default_rng(0).permutation(100)[:30]]
    found = model.impute(query[:, ~query.var_names.isin(hidden)].copy(), "rat")
    assert set(found.var_names[found.var["is_imputed"]]) == set(hidden)
    truth = dense(query[:, hidden].X)
    mean = dense(of_rat(model.adata)[:, hidden].X).mean(axis=0)
    error = ((found[:, hidden].X - truth) ** 2).mean()
    assert error < 0.85 * ((truth - mean) ** 2).mean()
    assert np.corrcoef((found[:, hidden].X - mean).ravel(), (truth - mean).ravel())[0, 1] > 0.4


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_imputation_refuses(trained, simulated):
    query = of_rat(simulated["rat"])
    counts = query.copy()
    counts.X = counts.layers["counts"]
    missing = query.copy()
    missing.X[3, 3] = np.nan
    twice = query.copy()
    twice.var_names = [twice.var_names[1], *twice.var_names[1:]]
    bare = ad.AnnData(query.X, var=query.var)
    for data, species, error, message in (
        (query, "cow", KeyError, "Unknown species 'cow'. Known: 'mouse', 'rat'"),
        (bare, "mouse", ValueError, "adata has none of the genes of 'mouse'"),
        (counts, "rat", ValueError, "must hold log-normalised values.*look like raw counts"),
        (missing, "rat", ValueError, "has missing or infinite values"),
        (twice, "rat", ValueError, "var_names must be unique"),
        (query[:0].copy(), "rat", ValueError, "adata has no samples"),
    ):
        with pytest.raises(error, match=message):
            trained.impute(data, species)


def test_imputation_refuses_other_types(trained, simulated):
    with pytest.raises(TypeError, match="adata must be an AnnData, but got ndarray"):
        trained.impute(simulated["rat"].X, "rat")


def test_imputation_refuses_samples_of_another_species(trained, stacked):
    with pytest.raises(ValueError, match="species"):
        trained.impute(stacked, "rat")


# ---- the user's data


def test_the_users_data_are_not_changed(trained, stacked, simulated, condition):
    before, own = trained.adata.copy(), simulated["rat"].copy()
    for via in WAYS:
        trained.predict(*condition, via=via)
    trained.predict_reactome()
    trained.map_genes("mouse", "rat")
    trained.impute(simulated["rat"], "rat")
    trained.predict_labels("organ", simulated["rat"])
    trained.predict_labels("drug")
    trained.get_latent_representation(simulated["rat"])
    assert_unchanged(trained.adata, before)
    assert_unchanged(simulated["rat"], own)
    assert set(simulated["rat"].uns) == set(own.uns)
