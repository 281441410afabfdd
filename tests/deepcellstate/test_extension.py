"""Decoders for new cell types, models fitted to other data, and that the model they come from stays as it is."""

import copy
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import scvi

import transverse as tv

from .conftest import QUIET, carry, part, same, train, weights_of

FAST = {"max_epochs": 2, **QUIET}


def unlike(one, other):
    return np.abs(one.X - other.X).max() > 1e-3


@pytest.fixture(scope="module", autouse=True)
def untouched(model):
    """Nothing in this file may change the model."""
    before = weights_of(model.module)
    kept = {
        name: copy.deepcopy(getattr(model, name))
        for name in ("cell_types_", "trained_decoders_", "training_conditions_")
    }
    history = {key: values.copy() for key, values in model.history.items()}
    data = model.adata
    yield
    assert same(weights_of(model.module), before) and not model.module.training
    assert all(parameter.requires_grad for parameter in model.module.parameters())
    assert all(getattr(model, name) == value for name, value in kept.items())
    assert model.history.keys() == history.keys()
    for key, values in history.items():
        pd.testing.assert_frame_equal(model.history[key], values)
    assert model.adata is data


@pytest.fixture(scope="module")
def more(sig):
    """The signatures, and those of a new cell type in which drugs do what they do in C2 but for a tenth."""
    new = part(sig, "C2")
    rng = np.random.default_rng(0)
    new.X = new.X + 0.1 * rng.normal(size=new.shape).astype(np.float32)
    new.obs["cell_type"] = "X"
    new.obs_names = [f"{name}_X" for name in new.obs_names]
    both = ad.concat([sig, new])
    return both[rng.permutation(both.n_obs)].copy()


@pytest.fixture(scope="module")
def extended(model, more):
    scvi.settings.seed = 0
    return model.add_cell_type(more, "X", lr=5e-3, max_epochs=3, **QUIET)


# ---- a new cell type


def test_only_the_new_decoder_is_new(model, extended, sig):
    assert extended.cell_types_ == extended.trained_decoders_ == ["C1", "C2", "C3", "X"]
    old, found = weights_of(model.module), weights_of(extended.module)
    assert set(old) == {name for name in found if not name.startswith("decoders.3.")}
    assert same({name: found[name] for name in old}, old)
    for target in ("C1", "C2", "C3"):
        sources = sig[(sig.obs["cell_type"] != target).to_numpy()]
        one, other = (m.predict(sources, target) for m in (model, extended))
        np.testing.assert_array_equal(one.X, other.X)
        pd.testing.assert_frame_equal(one.obs, other.obs)
    pred = extended.predict(part(sig, "C1"), "X")
    np.testing.assert_allclose(pred.X, carry(extended, part(sig, "C1").X, "X"), rtol=1e-5, atol=1e-5)
    assert pred.obs["trained_on"].any()
    assert not extended.module.training and extended.is_trained
    assert all(parameter.requires_grad for parameter in extended.module.parameters())
    assert set(extended.history["stage"].iloc[:, 0]) == {"decoders"}
    assert extended.adata.n_obs == sig.n_obs + part(sig, "C2").n_obs
    with pytest.raises(KeyError, match="target='X' has no decoder"):
        model.predict(part(sig, "C1"), "X")


@pytest.mark.parametrize("init", ["C1", "C3", None])
def test_where_the_new_decoder_starts(model, more, init):
    """By default from that of the cell type it is most like: with steps of no size it stays there."""
    found = model.add_cell_type(more, "X", init=init, lr=1e-30, **FAST)
    first = model.cell_types_.index(init or "C2")
    new, old = (weights_of(m.module.decoders[i]) for m, i in ((found, 3), (model, first)))
    for name in old:
        np.testing.assert_allclose(new[name], old[name], atol=1e-20)


def test_the_new_decoder_learns(model, more, extended):
    other = model.add_cell_type(more, "X", init="C1", lr=5e-3, **FAST)
    for found, first in ((extended, 1), (other, 0)):
        new, old = weights_of(found.module.decoders[3]), weights_of(model.module.decoders[first])
        assert not any(np.array_equal(new[name], old[name]) for name in old)
    assert unlike(*(m.predict(part(more, "C1"), "X") for m in (extended, other)))


def test_the_encoder_learns_along(model, more):
    found = model.add_cell_type(more, "X", train_encoder=True, lr=5e-3, **FAST)
    old, new = weights_of(model.module), weights_of(found.module)
    changed = {name.rsplit(".", 1)[0].split(".")[0] for name in old if not np.array_equal(old[name], new[name])}
    assert changed == {"encoder"}
    assert all(not np.array_equal(old[name], new[name]) for name in old if name.startswith("encoder"))


def test_it_learns_from_pairs_of_the_new_cell_type(model, more, monkeypatch):
    tables = []
    splitter = type(model)._data_splitter_cls

    class Spy(splitter):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            tables.append((self.train_pairs, self.validation_pairs, self.batch_size))

    monkeypatch.setattr(type(model), "_data_splitter_cls", Spy)
    found = model.add_cell_type(more, "X", train_size=0.7, batch_size=9, **FAST)
    ((train_pairs, validation_pairs, batch_size),) = tables
    cell_types, names = (more.obs[key].astype(str).to_numpy() for key in ("cell_type", "perturbation"))
    for pairs, kinds in ((train_pairs, {True, False}), (validation_pairs, {False})):
        assert set(cell_types[pairs[:, 1]]) == {"X"} and set(pairs[:, 2]) == {3}
        np.testing.assert_array_equal(names[pairs[:, 0]], names[pairs[:, 1]])
        assert set(pairs[:, 0] == pairs[:, 1]) == kinds
    assert not set(names[train_pairs[:, 1]]) & set(names[validation_pairs[:, 1]])
    assert batch_size == 9 and "pearson_validation" in found.history


def test_a_new_cell_type_of_few_drugs(model, more):
    """Too few to keep some for validation: the whole of the epochs."""
    drugs = sorted(set(part(more, "C1").obs["perturbation"]) & set(part(more, "X").obs["perturbation"]))[:5]
    few = part(more, ["C1", "X"], drugs)
    found = model.add_cell_type(few, "X", max_epochs=4, **QUIET)
    assert "validation_loss" not in found.history and len(found.history["train_loss"]) == 4
    assert found.trained_decoders_ == ["C1", "C2", "C3", "X"]
    assert {name for name, c in found.training_conditions_ if c == "X"} == set(drugs)


def test_sources_may_be_new_as_well(model, more):
    data = more.copy()
    data.obs["cell_type"] = data.obs["cell_type"].astype(str).replace({"C1": "Y", "C2": "Z"}).to_numpy(dtype=object)
    found = model.add_cell_type(part(data, ["X", "Y", "Z"]), "X", **FAST)
    assert found.cell_types_[:3] == ["C1", "C2", "C3"] and set(found.cell_types_[3:]) == {"X", "Y", "Z"}
    assert found.trained_decoders_[:3] == ["C1", "C2", "C3"] and found.trained_decoders_[3:] == ["X"]
    with pytest.raises(KeyError, match="The decoder of target='Y' was not trained"):
        found.predict(part(data, "X"), "Y")
    assert model.add_cell_type(part(data, ["X", "Y", "Z"]), "Y", **FAST).trained_decoders_[3:] == ["Y"]
    # one after the other
    both = found.add_cell_type(data, "Y", **FAST)
    assert set(both.trained_decoders_) == {"C1", "C2", "C3", "X", "Y"}
    np.testing.assert_array_equal(both.predict(part(data, "C3"), "X").X, found.predict(part(data, "C3"), "X").X)


def test_an_extended_model_is_saved(extended, more, tmp_path):
    extended.save(tmp_path / "model")
    query = part(more, "C1")
    expected = extended.predict(query, "X")
    for data in (more.copy(), False):
        loaded = tv.DeepCellState.load(tmp_path / "model", data)
        np.testing.assert_array_equal(loaded.predict(query, "X").X, expected.X)
        pd.testing.assert_frame_equal(loaded.predict(query, "X").obs, expected.obs)
        assert loaded.cell_types_ == extended.cell_types_


def test_names_that_are_numbers(sig):
    numbered = sig.copy()
    for key, start in (("cell_type", 1), ("perturbation", 1)):
        numbered.obs[key] = numbered.obs[key].astype(str).str[start:].astype(int)
    model = train(numbered, epochs=1)
    new = part(numbered, "2")
    new.obs["cell_type"] = 7
    new.obs_names = [f"{name}_7" for name in new.obs_names]
    both = ad.concat([numbered, new])
    found = model.add_cell_type(both, 7, **FAST)
    assert found.cell_types_ == found.trained_decoders_ == ["1", "2", "3", "7"]
    assert found.summary_stats.n_perturbation == model.summary_stats.n_perturbation
    assert model.fine_tune(numbered, 2, **FAST).cell_types_ == ["1", "2", "3"]


def test_add_cell_type_refuses(model, more, sig):
    for options, error, message in (
        ({"cell_type": "C2"}, ValueError, "cell_type='C2' has a decoder already.*fine_tune"),
        ({"cell_type": "V"}, ValueError, r"adata has no signatures of 'V' in obs\['cell_type'\], which has '"),
        ({"init": "V"}, KeyError, "init='V' has no decoder. Cell types with one: 'C1', 'C2', 'C3'"),
        ({"adata": sig.X}, TypeError, "adata must be an AnnData, but got ndarray"),
        ({"adata": part(more, "X")}, ValueError, "has only one cell type, 'X'"),
    ):
        with pytest.raises(error, match=message):
            model.add_cell_type(**{"adata": more, "cell_type": "X"} | options, **FAST)


@pytest.mark.filterwarnings("ignore:These cell types share no perturbation with another. 'X'")
def test_a_new_cell_type_that_shares_no_drug_is_refused(model, more):
    """It would learn to copy itself, and could not be asked for."""
    data = more.copy()
    names = data.obs["perturbation"].astype(str).to_numpy(dtype=object)
    names[(data.obs["cell_type"] == "X").to_numpy()] += "_new"
    data.obs["perturbation"] = names
    with pytest.raises(ValueError, match="No perturbation of cell_type='X' in adata was measured in another cell type"):
        model.add_cell_type(data, "X", **FAST)


# ---- other data


@pytest.fixture(scope="module")
def assay(sig):
    """A few drugs by another assay: its own units, and a shift of some genes in C2."""
    few = part(sig, drug=[f"D00{i:02d}" for i in range(1, 13)])
    few.X = 0.5 * few.X
    few.X[(few.obs["cell_type"] == "C2").to_numpy(), :8] += 2
    return few


@pytest.fixture(scope="module")
def tuned(model, assay):
    scvi.settings.seed = 0
    return model.fine_tune(assay, "C2", lr=1e-3, **FAST)


def test_encoder_and_decoder_of_the_target_learn(model, assay, tuned):
    old, new = weights_of(model.module), weights_of(tuned.module)
    assert old.keys() == new.keys()
    parts = {name for name in old if not np.array_equal(old[name], new[name])}
    assert parts == {name for name in old if name.startswith(("encoder.", "decoders.1."))}
    alone = weights_of(model.fine_tune(assay, "C2", train_encoder=False, lr=1e-3, **FAST).module)
    assert {name for name in old if not np.array_equal(old[name], alone[name])} == {
        name for name in old if name.startswith("decoders.1.")
    }
    assert tuned.trained_decoders_ == ["C1", "C2", "C3"] and not tuned.module.training
    assert set(tuned.history["stage"].iloc[:, 0]) == {"fine_tune"} and len(tuned.history["train_loss"]) == 2


def test_defaults_are_the_papers(model, assay, monkeypatch):
    class Stop(Exception):
        pass

    def stop(self, stage, splitter, plan, options, restart=0):
        raise Stop(stage, splitter, options)

    monkeypatch.setattr(type(model), "_fit_stage", stop)
    with pytest.raises(Stop) as caught:
        model.fine_tune(assay, "C2")
    stage, splitter, options = caught.value.args
    assert (stage.max_epochs, stage.lr, stage.train_encoder, options["early_stopping"]) == (50, 1e-5, True, False)
    cell_types = assay.obs["cell_type"].astype(str).to_numpy()
    pairs = splitter.train_pairs
    assert splitter.batch_size == 1 and not len(splitter.validation_pairs)
    # no pairs of a signature with itself, and every one of the target
    assert set(cell_types[pairs[:, 1]]) == {"C2"} and set(cell_types[pairs[:, 0]]) == {"C1", "C3"}


def test_preset_of_the_new_model(model, assay, more, tuned, tmp_path):
    def rates(m):
        return m.module.input_dropout_rate, m.module.latent_l1, {d.dropout_rate for d in m.module.decoders}

    second = train(assay, epochs=1, network={"preset": 2})
    assert rates(second) == (0.5, 1e-7, {0.8})
    assert rates(second.fine_tune(assay, "C2", **FAST)) == rates(tuned) == (0.1, 0, {0.5})
    third = model.fine_tune(assay, "C2", preset=3, **FAST)
    assert rates(third) == (0.5, 1e-4, {0.9})
    # also where the model had rates of its own, which a new cell type does not change
    own = train(assay, epochs=1, network={"input_dropout_rate": 0.33, "decoder_dropout_rate": 0.44, "latent_l1": 0.1})
    assert rates(own.fine_tune(assay, "C2", **FAST)) == (0.1, 0, {0.5})
    assert rates(own) == rates(own.add_cell_type(more, "X", **FAST)) == (0.33, 0.1, {0.44})
    third.save(tmp_path / "model")
    loaded = tv.DeepCellState.load(tmp_path / "model", adata=False)
    assert rates(loaded) == rates(third)
    query = part(assay, "C1")
    np.testing.assert_array_equal(loaded.predict(query, "C2").X, third.predict(query, "C2").X)


def test_scale_of_the_new_model(model, assay):
    largest = float(np.abs(assay.X).max())
    assert largest != float(model.module.scale)
    for scale, expected in (("model", float(model.module.scale)), ("data", largest), (7, 7.0)):
        found = model.fine_tune(assay, "C2", scale=scale, **FAST)
        assert float(found.module.scale) == pytest.approx(expected, rel=1e-6)
        pred = found.predict(part(assay, "C1"), "C2")
        assert pred.uns["prediction"]["divisor"] == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="scale='large' must be 'model', 'data' or a positive number"):
        model.fine_tune(assay, "C2", scale="large", **FAST)


def score(truth, pred, metric="mse"):
    return np.mean((pred.X - truth) ** 2)


def test_it_fits_the_other_assay(model, assay):
    """Held-out drugs are predicted better, and units of the output are the assay's."""
    names = assay.obs["perturbation"].astype(str).to_numpy()
    held = np.isin(names, np.unique(names)[::3])
    found = model.fine_tune(assay[~held].copy(), "C2", lr=2e-3, max_epochs=30, batch_size=4, **QUIET)
    truth = part(assay[held], "C2")
    sources = part(assay[held], ["C1", "C3"], truth.obs["perturbation"].to_numpy())
    true = tv.metrics.signature_scores
    scores = [true(truth, m.predict(sources, "C2")).query("metric == 'rmse'")["value"].mean() for m in (model, found)]
    assert scores[1] < 0.8 * scores[0], scores
    pred = found.predict(sources, "C2")
    assert pred.X[:, :8].mean() > 0.8


def test_conditions_of_both(model, assay, tuned):
    labels = {tuple(row) for row in assay.obs[["perturbation", "cell_type"]].astype(str).to_numpy()}
    before = {tuple(row) for row in model.training_conditions_}
    assert {tuple(row) for row in tuned.training_conditions_} == labels | before
    assert labels - before


def test_genes_that_the_other_assay_lacks(model, assay):
    fewer = assay[:, [*assay.var_names[:2:-1]]].copy()
    zeroed = assay.copy()
    zeroed.X[:, :3] = 0
    zeroed_model = fitted(model, zeroed)
    with pytest.warns(UserWarning, match="3 of the model's 24 genes are missing in adata.*'G0001', 'G0002', 'G0003'"):
        found = fitted(model, fewer)
    assert same(weights_of(found.module), weights_of(zeroed_model.module))
    assert list(found.get_var_names()) == list(model.get_var_names())
    assert fewer.n_vars == 21 and not [key for key in fewer.uns if key.startswith("_scvi")]


def fitted(model, data):
    scvi.settings.seed = 0
    return model.fine_tune(data, "C2", lr=1e-3, **FAST)


def test_formats_of_the_other_data(model, assay, tuned, tmp_path):
    expected = weights_of(tuned.module)
    sparse = assay.copy()
    sparse.X = sp.csr_matrix(sparse.X)
    sparse.write_h5ad(tmp_path / "sparse.h5ad")
    backed = ad.read_h5ad(tmp_path / "sparse.h5ad", backed="r")
    before = assay.copy()
    for data in (sparse, backed, assay[np.arange(assay.n_obs)], assay[:, ::-1]):
        assert same(weights_of(fitted(model, data).module), expected)
    backed.file.close()
    np.testing.assert_array_equal(assay.X, before.X)
    pd.testing.assert_frame_equal(assay.obs, before.obs)
    assert set(assay.uns) == set(before.uns)


def test_layer_of_the_other_data(sig, assay):
    data = sig.copy()
    data.layers["z"] = data.X.copy()
    data.X = np.zeros_like(data.X)
    model = train(data, epochs=1, setup={"layer": "z"})
    other = assay.copy()
    other.layers["z"], other.X = other.X.copy(), np.full_like(other.X, 99)
    expected = train(sig, epochs=1)
    assert same(weights_of(fitted(model, other).module), weights_of(fitted(expected, assay).module))


@pytest.mark.filterwarnings("ignore:These cell types share no perturbation")
def test_fine_tune_refuses(model, assay):
    for options, error, message in (
        ({"target": "C9"}, KeyError, "target='C9' has no decoder"),
        ({"preset": 9}, ValueError, "preset=9 must be one of 0, 1, 2, 3"),
        ({"adata": part(assay, ["C1", "C3"])}, ValueError, "adata has no signatures of 'C2'"),
        ({"adata": assay.X}, TypeError, "adata must be an AnnData"),
        ({"adata": assay[:, :2].copy()[:0]}, ValueError, "adata has no signatures"),
    ):
        with pytest.raises(error, match=message):
            model.fine_tune(**{"adata": assay, "target": "C2"} | options, **FAST)
    other = assay.copy()
    names = other.obs["perturbation"].astype(str).to_numpy(dtype=object)
    names[(other.obs["cell_type"] == "C2").to_numpy()] += "_2"
    other.obs["perturbation"] = names
    with pytest.raises(
        ValueError, match="No perturbation in adata was measured in target='C2' and in another cell type"
    ):
        model.fine_tune(other, "C2", **FAST)
    missing = assay.copy()
    del missing.obs["cell_type"]
    with pytest.raises(KeyError, match="'cell_type' is not in adata.obs"):
        model.fine_tune(missing, "C2", **FAST)


# ---- each drug from the others


@pytest.fixture(scope="module")
def little(assay):
    return part(assay, drug=["D0001", "D0004", "D0007", "D0010"])


def one_by_one(model, data, **kwargs):
    scvi.settings.seed = 0
    return model.predict_leave_one_out(data, "C2", lr=1e-2, **{"max_epochs": 1} | kwargs, **QUIET)


def in_both(data):
    names, of_target = data.obs["perturbation"].astype(str), (data.obs["cell_type"] == "C2").to_numpy()
    return sorted(set(names[of_target]) & set(names[~of_target]))


def test_each_drug_from_a_model_of_the_others(model, little):
    pred = one_by_one(model, little)
    drugs = in_both(little)
    assert pred.obs["perturbation"].tolist() == drugs and 2 <= len(drugs)
    assert pred.obs_names.tolist() == [f"{drug}|C2" for drug in drugs]
    assert "on the other perturbations" in pred.uns["prediction"]["fine_tuned"]
    scvi.settings.seed = 0
    for i, drug in enumerate(drugs):
        others = little[(little.obs["perturbation"] != drug).to_numpy()].copy()
        found = model.fine_tune(others, "C2", lr=1e-2, max_epochs=1, **QUIET)
        query = part(little, ["C1", "C3"], drug)
        np.testing.assert_allclose(pred.X[i], found.predict(query, "C2").X[0], rtol=1e-4, atol=1e-4)
        assert pred.obs["n_sources"].iloc[i] == query.n_obs
    assert unlike(pred, model.predict(part(little, ["C1", "C3"], drugs), "C2"))
    assert tv.metrics.signature_scores(part(little, "C2"), pred)["value"].notna().all()


def test_a_drugs_own_signature_in_the_target_is_not_seen(model, little):
    before = one_by_one(model, little)
    drugs = in_both(little)
    changed = little.copy()
    rows = ((changed.obs["perturbation"] == drugs[0]) & (changed.obs["cell_type"] == "C2")).to_numpy()
    changed.X[rows] = -3 * changed.X[rows] + 1
    after = one_by_one(model, changed)
    np.testing.assert_array_equal(after.X[0], before.X[0])
    for i in range(1, len(drugs)):
        assert np.abs(after.X[i] - before.X[i]).max() > 1e-4


def test_scale_is_not_that_of_the_drug_left_out(model, little):
    drug = in_both(little)[0]
    loud = little.copy()
    rows = ((loud.obs["perturbation"] == drug) & (loud.obs["cell_type"] == "C2")).to_numpy()
    loud.X[rows, 0] = 500
    one, other = (one_by_one(model, data, scale="data") for data in (little, loud))
    np.testing.assert_array_equal(one.X[0], other.X[0])


def test_each_drug_where_genes_are_missing_and_from_a_file(model, little, tmp_path):
    fewer = little[:, 2:].copy()
    with pytest.warns(UserWarning, match="2 of the model's 24 genes are missing"):
        pred = one_by_one(model, fewer)
    assert pred.n_vars == 24 and list(pred.uns["prediction"]["missing_genes"]) == ["G0001", "G0002"]
    pred.write_h5ad(tmp_path / "pred.h5ad")
    little.write_h5ad(tmp_path / "little.h5ad")
    backed = ad.read_h5ad(tmp_path / "little.h5ad", backed="r")
    expected = one_by_one(model, little)
    for data in (backed, backed[np.arange(little.n_obs)]):
        np.testing.assert_array_equal(one_by_one(model, data).X, expected.X)
    backed.file.close()


def test_leave_one_out_refuses(model, little):
    with pytest.raises(
        ValueError, match="at least two perturbations in target='C2' and in another cell type, but has 'D"
    ):
        one_by_one(model, part(little, drug=in_both(little)[:1]))
    with pytest.raises(ValueError, match="but has none"):
        one_by_one(model, part(little, ["C1", "C3"]))
    with pytest.raises(KeyError, match="target='C9' has no decoder"):
        model.predict_leave_one_out(little, "C9")
    with pytest.raises(TypeError, match="adata must be an AnnData"):
        model.predict_leave_one_out(little.X, "C2")


def test_nothing_is_said_of_complete_data(model, assay):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fine_tune(assay, "C2", **FAST)
    assert not [w for w in caught if "genes" in str(w.message) or "share no perturbation" in str(w.message)]
