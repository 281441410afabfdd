"""What is registered and what is refused; what a saved model can do, with its data, with others and without any."""

import subprocess
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import scvi

import transverse as tv
from transverse.uge import UGE

from .conftest import QUIET, TINY, build, dense, same, train
from .helpers import assert_unchanged, is_of, same_state

OBS = ["species", "organ", "drug", "animal"]


def plain(adata):
    """The data without scvi-tools' bookkeeping, as they were before training."""
    return ad.AnnData(adata.X.copy(), obs=adata.obs[OBS].copy(), var=adata.var[["species"]].copy())


@pytest.fixture(scope="module")
def saved(trained, tmp_path_factory):
    """The folder that the model is saved in, without data."""
    folder = tmp_path_factory.mktemp("uge") / "model"
    trained.save(folder)
    return folder


def assert_same(loaded, model, query):
    """All that needs no data of the training."""
    assert same_state(loaded, model)
    assert same(loaded.get_latent_representation(query), model.get_latent_representation(query))
    for key in ("organ", "drug"):
        pd.testing.assert_frame_equal(loaded.predict_labels(key, query), model.predict_labels(key, query))
    for method in ("assignment", "nearest"):
        pd.testing.assert_frame_equal(
            loaded.map_genes("mouse", "rat", method=method), model.map_genes("mouse", "rat", method=method)
        )
    pd.testing.assert_frame_equal(loaded.get_gene_representation(), model.get_gene_representation())
    for via in ("map", "reactome"):
        found, expected = (m.predict_reactome(via=via) for m in (loaded, model))
        assert same(found.X, expected.X) and same(found.layers["measured"], expected.layers["measured"])
        pd.testing.assert_frame_equal(found.var, expected.var)
    pd.testing.assert_frame_equal(loaded.suggest_experiments(), model.suggest_experiments())
    rat = query[is_of(query, "rat"), 5:].copy()
    assert same(loaded.impute(rat, "rat").X, model.impute(rat, "rat").X)
    names = ("species_", "organs_", "drugs_", "var_names_", "training_samples_", "training_conditions_", "units_")
    for name in names:
        assert getattr(loaded, name) == getattr(model, name), name
    for key, values in model.history.items():
        assert loaded.history[key].iloc[:, 0].tolist() == values.iloc[:, 0].tolist()
    assert loaded._model_summary_string == model._model_summary_string


def assert_same_predictions(loaded, model, condition):
    for via in ("map", "reactome", "A", "B", "C"):
        for output in ("change", "decoded"):
            found, expected = (m.predict(*condition, via=via, output=output) for m in (loaded, model))
            np.testing.assert_allclose(found[expected.obs_names].X, expected.X, rtol=1e-6, atol=1e-6)
            assert set(found.obs_names) == set(expected.obs_names)
            one, other = (
                {k: v if k != "source" else list(v) for k, v in p.uns["prediction"].items()} for p in (found, expected)
            )
            assert one == other


# ---- saving and loading


def test_with_data(trained, saved, stacked, held_out):
    loaded = UGE.load(saved, plain(stacked))
    assert_same(loaded, trained, stacked)
    assert_same_predictions(loaded, trained, held_out[0])
    assert same(loaded.get_latent_representation(), trained.get_latent_representation())
    with pytest.raises(ValueError, match="The model was trained on"):
        loaded.predict("rat", "heart", "drug B")
    # it goes on where it was
    loaded.train(max_epochs=1, hold_out=held_out, n_tokens=40, **QUIET)
    assert len(loaded.history["train_loss"]) == len(trained.history["train_loss"]) + 2
    assert not same_state(loaded, trained)


def test_data_saved_with_the_model(trained, stacked, held_out, tmp_path):
    trained.save(tmp_path / "model", save_anndata=True)
    loaded = UGE.load(tmp_path / "model")
    assert loaded.adata is not trained.adata
    assert_same(loaded, trained, stacked)
    assert_same_predictions(loaded, trained, held_out[0])


def test_without_data(trained, saved, stacked, held_out):
    loaded = UGE.load(saved, adata=False)
    assert_same(loaded, trained, stacked)
    for ask in (loaded.get_latent_representation, loaded.predict_labels, lambda: loaded.predict(*held_out[0])):
        with pytest.raises(ValueError, match="The model was loaded without data"):
            ask()


def test_prefixes_and_overwriting(trained, stacked, tmp_path):
    trained.save(tmp_path / "model", prefix="a_")
    with pytest.raises(ValueError, match="already exists"):
        trained.save(tmp_path / "model")
    trained.save(tmp_path / "model", overwrite=True, prefix="b_")
    for prefix in ("a_", "b_"):
        for data in (plain(stacked), plain(stacked)[:, ::-1].copy(), False):
            loaded = UGE.load(tmp_path / "model", data, prefix=prefix)
            assert same(loaded.get_latent_representation(stacked), trained.get_latent_representation())


def test_genes_are_put_in_order(trained, saved, stacked, held_out):
    """Also for the training, which goes on."""
    order = np.random.default_rng(0).permutation(stacked.n_vars)
    reordered = plain(stacked)[:, order].copy()
    extra = sp.csr_matrix(np.full((stacked.n_obs, 2), 99, np.float32))
    more = ad.AnnData(
        sp.hstack([extra, reordered.X]).tocsr(),
        obs=reordered.obs,
        var=pd.DataFrame(
            {"species": ["mouse", "rat", *reordered.var["species"]]}, index=["A", "B", *reordered.var_names]
        ),
    )
    models = []
    for data in (plain(stacked), reordered, more):
        before = data.copy()
        loaded = UGE.load(saved, data)
        assert_same(loaded, trained, stacked)
        assert_same_predictions(loaded, trained, held_out[0])
        assert same(loaded.get_latent_representation(), trained.get_latent_representation())
        assert_unchanged(data, before)
        scvi.settings.seed = 0
        loaded.train(max_epochs=1, n_tokens=40, hold_out=held_out, stages=["samples"], **QUIET)
        models.append(loaded)
    assert same_state(models[0], models[1]) and same_state(models[0], models[2])
    with pytest.raises(
        ValueError, match="3 of the 120 genes that the model was trained on are missing in adata: 'mouse_g"
    ):
        UGE.load(saved, plain(stacked)[:, 3:].copy())


def test_samples_of_another_order(trained, saved, stacked, held_out):
    order = np.random.default_rng(1).permutation(stacked.n_obs)
    loaded = UGE.load(saved, plain(stacked)[order].copy())
    assert_same_predictions(loaded, trained, held_out[0])


def test_fewer_samples(trained, saved, stacked, held_out):
    """Predictions start from the control samples that there are."""
    rows = np.flatnonzero(is_of(stacked, "rat", "heart", "control"))
    keep = np.setdiff1d(np.arange(stacked.n_obs), rows[:2])
    loaded = UGE.load(saved, plain(stacked)[keep].copy())
    pred = loaded.predict(*held_out[0])
    assert set(pred.obs_names) == set(stacked.obs_names[rows[2:]])
    assert same(pred.X, trained.predict(*held_out[0])[pred.obs_names].X)


def test_samples_of_new_categories_are_refused(saved, stacked):
    other = plain(stacked)
    other.obs["organ"] = other.obs["organ"].astype(str).replace("liver", "tail")
    with pytest.raises(ValueError, match="tail"):
        UGE.load(saved, other)


@pytest.mark.parametrize(
    "network",
    [
        {"value_mode": "binned", "n_bins": 9, "n_top_genes": 30},
        {"condition_keys": ["drug", "organ"], "weights": {"map": 0, "elastic": 0.3}},
        {"n_hidden": 32, "n_layers": 1, "dropout_rate": 0.3, "mask_rate": 0.2, "n_latent": 8},
    ],
    ids=str,
)
def test_networks_come_back(stacked, network, tmp_path):
    model = train(stacked, max_epochs=1, network=network, stages=["samples"])
    model.save(tmp_path / "model")
    for data in (False, plain(stacked)):
        loaded = UGE.load(tmp_path / "model", data)
        assert_same(loaded, model, stacked)
        for name in ("mask_rate", "weights", "elastic", "alignment", "factor_penalty"):
            assert getattr(loaded.module, name) == getattr(model.module, name)
        assert loaded.module.encoder.n_bins == model.module.encoder.n_bins
        assert all(same(one, other) for one, other in zip(loaded.tokens_, model.tokens_, strict=True))


def test_columns_of_other_names(stacked, trained, held_out, tmp_path):
    adata = plain(stacked)
    adata.obs.columns = ["kind", "tissue", "treatment", "individual"]
    adata.obs["treatment"] = adata.obs["treatment"].astype(str).replace("control", "vehicle")
    adata.var.columns = ["kind"]
    adata.layers["log"], adata.X = adata.X.copy(), 0.5 * adata.X
    setup = {
        "species_key": "kind",
        "organ_key": "tissue",
        "drug_key": "treatment",
        "animal_key": "individual",
        "control": "vehicle",
        "layer": "log",
    }
    model = train(adata, setup=setup, hold_out=held_out)
    assert same_state(model, trained) and model.drugs_ == ["vehicle", "drug A", "drug B"]
    model.save(tmp_path / "model")
    for data in (adata, False):
        loaded = UGE.load(tmp_path / "model", data)
        assert same(loaded.get_latent_representation(adata), trained.get_latent_representation())
        assert list(loaded.predict_reactome().obs) == ["kind"]
    loaded = UGE.load(tmp_path / "model", adata)
    pred = loaded.predict(*held_out[0], via="C")
    assert set(pred.obs) == {"control_sample", "kind", "tissue", "treatment"} and list(pred.var) == ["kind"]
    assert same(pred.X, trained.predict(*held_out[0], via="C").X)


def test_without_drugs(stacked, tmp_path):
    controls = plain(stacked[(stacked.obs["drug"] == "control").to_numpy()])
    del controls.obs["drug"]
    model = train(controls, setup={"drug_key": None, "animal_key": "animal"})
    model.save(tmp_path / "model")
    for data in (controls, False):
        loaded = UGE.load(tmp_path / "model", data)
        assert same(loaded.get_latent_representation(controls), model.get_latent_representation())
        pd.testing.assert_frame_equal(loaded.map_genes("mouse", "rat"), model.map_genes("mouse", "rat"))
        assert loaded.drugs_ == ["control"] and loaded.training_conditions_ == model.training_conditions_


@pytest.mark.slow
def test_in_another_process(trained, saved, stacked, held_out, tmp_path):
    plain(stacked).write_h5ad(tmp_path / "data.h5ad")
    code = (
        "import sys, anndata, torch, numpy as np, transverse as tv; torch.set_num_threads(1);"
        "data = anndata.read_h5ad(sys.argv[2] + '/data.h5ad');"
        "model = tv.UGE.load(sys.argv[1], data);"
        "np.save(sys.argv[2] + '/z.npy', model.get_latent_representation());"
        "model.predict('rat', 'heart', 'drug A', via='C').write_h5ad(sys.argv[2] + '/pred.h5ad');"
        "model.map_genes('mouse', 'rat').to_csv(sys.argv[2] + '/map.csv', index=False)"
    )
    subprocess.run([sys.executable, "-c", code, str(saved), str(tmp_path)], check=True, capture_output=True)
    np.testing.assert_allclose(np.load(tmp_path / "z.npy"), trained.get_latent_representation(), rtol=1e-5, atol=1e-5)
    pred, expected = ad.read_h5ad(tmp_path / "pred.h5ad"), trained.predict(*held_out[0], via="C")
    np.testing.assert_allclose(pred.X, expected.X, rtol=1e-5, atol=1e-5)
    found = pd.read_csv(tmp_path / "map.csv")
    assert (found["target"] == trained.map_genes("mouse", "rat")["target"]).mean() > 0.99


def test_what_is_saved_is_plain(trained):
    """Objects that any version of pandas and numpy reads."""
    for name, value in vars(trained).items():
        if name.endswith("_") and not name.startswith("_") and name != "history_":
            assert not isinstance(value, pd.DataFrame | pd.Series | pd.Index), name


def test_a_registry_makes_a_model_without_data(trained):
    """Of the same shape; whose genes are whose must be said."""
    model = UGE(registry=trained.registry, gene_species=list(trained._gene_species), **TINY)
    for (name, one), (other, two) in zip(
        model.module.named_parameters(), trained.module.named_parameters(), strict=True
    ):
        assert name == other and one.shape == two.shape
    assert model.species_ == trained.species_ and model.adata is None


def test_a_registry_alone_is_refused(trained):
    with pytest.raises(ValueError, match="gene_species"):
        UGE(registry=trained.registry, **TINY)


# ---- setup


def test_what_is_registered(stacked, capsys):
    model = build(stacked)
    stats = model.summary_stats
    assert (stats.n_vars, stats.n_species, stats.n_organ, stats.n_drug, stats.n_animal) == (120, 2, 4, 3, 24)
    model.view_anndata_setup()
    shown = capsys.readouterr().out
    assert "UGE.setup_anndata" in shown and "organ_key" in shown
    repr(model)
    shown = capsys.readouterr().out
    assert "UGE model" in shown and "Training status: Not Trained" in shown
    assert "120 genes of 'mouse', 'rat', 4 organs, 2 drugs" in model._model_summary_string
    model.view_anndata_setup(model.adata)


def test_setup_changes_nothing_of_the_users(stacked):
    before = stacked.copy()
    UGE.setup_anndata(stacked, animal_key="animal")
    assert_unchanged(stacked, before)
    assert set(before.obs) <= set(stacked.obs)


def test_setup_without_animals_and_drugs(stacked):
    model = build(stacked, setup={"drug_key": None, "organ_key": "organ"})
    assert model.drugs_ == ["control"] and model.organs_ == ["brain", "heart", "kidney", "liver"]
    assert model.module.reactome.interaction.shape == (4, 0, 16)
    assert model.summary_stats.n_drug == 1 and model.summary_stats.n_animal == 1


def spoil(stacked, how):
    adata = plain(stacked)
    if how == "one species":
        adata = adata[is_of(adata, "rat"), (adata.var["species"] == "rat").to_numpy()].copy()
    elif how == "samples of one":
        adata = adata[is_of(adata, "rat")].copy()
    elif how == "genes of one":
        adata = adata[:, (adata.var["species"] == "rat").to_numpy()].copy()
    elif how == "no controls":
        adata = adata[~(is_of(adata, "rat") & (adata.obs["drug"] == "control").to_numpy())].copy()
    elif how == "counts":
        adata.X = stacked.layers["counts"].copy()
    elif how == "nan":
        adata.X.data[7] = np.nan
    elif how == "inf":
        adata.X = dense(adata.X)
        adata.X[2, 2] = np.inf
    elif how == "genes":
        adata.var_names = [adata.var_names[1], *adata.var_names[1:]]
    elif how == "samples":
        adata.obs_names = [adata.obs_names[1], *adata.obs_names[1:]]
    elif how == "empty":
        adata = adata[:0].copy()
    elif how == "no genes":
        adata = adata[:, :0].copy()
    elif how == "no X":
        adata = ad.AnnData(obs=adata.obs, var=adata.var)
    elif how in OBS:
        del adata.obs[how]
    elif how == "species of genes":
        del adata.var["species"]
    elif how.startswith("missing "):
        key = how.removeprefix("missing ")
        adata.obs[key] = adata.obs[key].astype(object).mask(np.arange(adata.n_obs) < 2)
    elif how == "gene of no species":
        adata.var["species"] = adata.var["species"].astype(object).mask(np.arange(adata.n_vars) == 5)
    elif how == "array":
        return adata.X
    elif how == "dict":
        return {"mouse": adata}
    return adata


@pytest.mark.filterwarnings("ignore:Variable names are not unique", "ignore:Observation names are not unique")
@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("one species", ValueError, "adata has only one species, 'rat': genes are aligned between two or more"),
        ("samples of one", ValueError, "must name the same species, but these are in one of them only: 'mouse'"),
        ("genes of one", ValueError, "must name the same species, but these are in one of them only: 'mouse'"),
        ("no controls", ValueError, r"no samples with control='control' in obs\['drug'\]: 'rat'"),
        ("counts", ValueError, "adata.X must hold log-normalised values.*raw counts.*normalize_total"),
        ("nan", ValueError, r"adata.X has missing or infinite values \(NaN or inf\)"),
        ("inf", ValueError, r"adata.X has missing or infinite values \(NaN or inf\)"),
        ("genes", ValueError, "adata.var_names must be unique, but these repeat: 'mouse_g"),
        ("samples", ValueError, "adata.obs_names must be unique, but these repeat: 'mouse_a"),
        ("empty", ValueError, "adata is empty: it has 0 cells"),
        ("no genes", ValueError, "adata is empty: it has 96 cells and 0 genes"),
        ("no X", ValueError, "adata.X is empty"),
        ("species", KeyError, "species_key='species' is not in adata.obs. Columns: 'organ', 'drug', 'animal'"),
        ("organ", KeyError, "organ_key='organ' is not in adata.obs"),
        ("drug", KeyError, "drug_key='drug' is not in adata.obs"),
        ("animal", KeyError, "animal_key='animal' is not in adata.obs"),
        ("species of genes", KeyError, "species_key='species' is not in adata.var"),
        ("missing species", ValueError, r"adata.obs\['species'\] \(species_key\) is missing for 2 cells: '"),
        ("missing organ", ValueError, r"adata.obs\['organ'\] \(organ_key\) is missing for 2 cells: '"),
        ("missing drug", ValueError, r"adata.obs\['drug'\] \(drug_key\) is missing for 2 cells: '"),
        ("missing animal", ValueError, r"adata.obs\['animal'\] \(animal_key\) is missing for 2 cells: '"),
        ("gene of no species", ValueError, r"adata.var\['species'\] \(species_key\) is missing for 1: '"),
        ("array", TypeError, "adata must be an AnnData, but got csr_matrix"),
        ("dict", TypeError, "adata must be an AnnData, but got dict"),
    ],
)
def test_setup_refuses(stacked, how, error, message):
    adata = spoil(stacked, how)
    before = adata.copy()
    with pytest.raises(error, match=message):
        UGE.setup_anndata(adata, animal_key="animal")
    if isinstance(adata, ad.AnnData):
        assert set(adata.uns) == set(before.uns) and set(adata.obs) == set(before.obs)


def test_setup_refuses_arguments(stacked):
    for options, error, message in (
        ({"layer": "log"}, KeyError, "layer='log' is not in adata.layers. Layers: 'counts', 'expected'"),
        ({"layer": "counts"}, ValueError, r"adata.layers\['counts'\] must hold log-normalised values"),
        ({"control": "vehicle"}, ValueError, r"control='vehicle' in obs\['drug'\]: 'mouse', 'rat'"),
        ({"species_key": "organ"}, KeyError, "species_key='organ' is not in adata.var"),
    ):
        with pytest.raises(error, match=message):
            UGE.setup_anndata(stacked, **options)


def test_a_model_needs_setup(stacked):
    with pytest.raises(ValueError, match="setup|set up"):
        UGE(stacked)


def test_models_refuse_arguments(stacked):
    for options, message in (
        ({"preset": "huge"}, "preset='huge' must be one of 'paper', 'small', 'tiny'"),
        ({"value_mode": "ranks"}, "value_mode='ranks' must be 'continuous' or 'binned'"),
        (
            {"weights": {"mapping": 1, "masked": 1}},
            "Unknown terms in weights: 'mapping'. There are: 'masked', 'sample'",
        ),
        ({"condition_keys": ["animal"]}, "Unknown condition_keys: 'animal'. There are: 'organ', 'drug'"),
    ):
        with pytest.raises(ValueError, match=message):
            build(stacked, **options)


def test_models_of_the_same_data(simulated):
    """Maps do not depend on which species comes first."""
    other = tv.pp.stack_species({"rat": simulated["rat"], "mouse": simulated["mouse"]})
    model = train(other, stages=["genes"], max_epochs=1)
    assert model.species_ == ["rat", "mouse"] and set(model.var_names_[:60]) == set(simulated["rat"].var_names)
    found = model.map_genes("mouse", "rat", n_top=1)
    expected = train(tv.pp.stack_species(simulated), stages=["genes"], max_epochs=1).map_genes("mouse", "rat", n_top=1)
    assert found["source"].tolist() == expected["source"].tolist()
    assert (found["target"] == expected["target"]).mean() > 0.98
    np.testing.assert_allclose(found["score"], expected["score"], rtol=1e-3)
