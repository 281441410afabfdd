"""What is registered and what is refused; what a saved model can do, with its data, with others and without any."""

import subprocess
import sys
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import scvi

import transverse as tv

from .conftest import QUIET, build, part, same, train, weights_of


def plain(sig):
    """The data without scvi-tools' bookkeeping, as they were before training."""
    return ad.AnnData(sig.X.copy(), obs=sig.obs[["perturbation", "cell_type"]].copy(), var=sig.var[[]].copy())


def assert_same(loaded, model, query):
    for options in ({}, {"aggregate": "profile"}, {"aggregate": None, "use_skip": False}):
        pred, expected = (one.predict(query, "C2", **options) for one in (loaded, model))
        np.testing.assert_array_equal(pred.X, expected.X)
        pd.testing.assert_frame_equal(pred.obs, expected.obs)
        assert {k: v for k, v in pred.uns["prediction"].items() if k != "missing_genes"} == {
            k: v for k, v in expected.uns["prediction"].items() if k != "missing_genes"
        }
    np.testing.assert_array_equal(loaded.get_latent_representation(query), model.get_latent_representation(query))


@pytest.fixture(scope="module")
def query(sig):
    return plain(part(sig, ["C1", "C3"]))


# ---- saving and loading


def test_with_data(model, saved, sig, query):
    loaded = tv.DeepCellState.load(saved, plain(sig))
    assert_same(loaded, model, query)
    np.testing.assert_array_equal(loaded.get_latent_representation(), model.get_latent_representation())
    assert (loaded.cell_types_, loaded.trained_decoders_) == (model.cell_types_, model.trained_decoders_)
    assert [tuple(c) for c in loaded.training_conditions_] == [tuple(c) for c in model.training_conditions_]
    assert float(loaded.module.scale) == float(model.module.scale)
    for key, values in model.history.items():
        assert loaded.history[key].iloc[:, 0].tolist() == values.iloc[:, 0].tolist()
    # it goes on where it was
    loaded.train(max_epochs=1, **QUIET)
    assert loaded.history["stage"].iloc[:, 0].tolist()[-2:] == ["decoders", "frozen"]
    assert not same(weights_of(loaded.module), weights_of(model.module))


def test_data_saved_with_the_model(model, query, tmp_path):
    model.save(tmp_path / "model", save_anndata=True)
    loaded = tv.DeepCellState.load(tmp_path / "model")
    assert loaded.adata is not model.adata
    assert_same(loaded, model, query)
    np.testing.assert_array_equal(loaded.get_latent_representation(), model.get_latent_representation())


def test_without_data(model, saved, sig, query):
    loaded = tv.DeepCellState.load(saved, adata=False)
    assert_same(loaded, model, query)
    with pytest.raises(ValueError, match="The model was loaded without data: pass adata="):
        loaded.get_latent_representation()
    tuned, expected = (
        m.fine_tune(plain(sig), "C2", train_encoder=False, max_epochs=1, batch_size=64, **QUIET)
        for m in (loaded, model)
    )
    assert tuned.cell_types_ == expected.cell_types_
    assert same(weights_of(tuned.module.encoder), weights_of(model.module.encoder))


def test_prefixes_and_overwriting(model, sig, query, tmp_path):
    model.save(tmp_path / "model", prefix="a_")
    with pytest.raises(ValueError, match="already exists"):
        model.save(tmp_path / "model")
    model.save(tmp_path / "model", overwrite=True, prefix="b_")
    for prefix in ("a_", "b_"):
        for data in (plain(sig), plain(sig)[:, ::-1].copy(), False):
            assert_same(tv.DeepCellState.load(tmp_path / "model", data, prefix=prefix), model, query)


def test_genes_are_put_in_order(model, saved, sig, query):
    """Also for the training, which goes on."""
    reordered = plain(sig)[:, np.random.default_rng(0).permutation(24)].copy()
    extra = np.random.default_rng(0).normal(0, 99, (sig.n_obs, 2)).astype(np.float32)
    more = ad.AnnData(
        np.hstack([extra, reordered.X]), obs=reordered.obs, var=pd.DataFrame(index=["A", "B", *reordered.var_names])
    )
    trained = []
    for data in (plain(sig), reordered, more):
        names, before = data.var_names.tolist(), data.X.copy()
        loaded = tv.DeepCellState.load(saved, data)
        assert_same(loaded, model, query)
        np.testing.assert_array_equal(loaded.get_latent_representation(), model.get_latent_representation())
        assert data.var_names.tolist() == names
        np.testing.assert_array_equal(data.X, before)
        scvi.settings.seed = 0
        loaded.train(max_epochs=1, **QUIET)
        trained.append(weights_of(loaded.module))
    assert same(trained[0], trained[1]) and same(trained[0], trained[2])
    with pytest.raises(ValueError, match="1 of the 24 genes.*are missing in adata: 'G0001'"):
        tv.DeepCellState.load(saved, plain(sig)[:, 1:].copy())


@pytest.mark.parametrize(
    "network", [{"architecture": "pointwise", "skip": "tied"}, {"skip": "none", "latent_l1": 0.2}], ids=str
)
def test_networks_come_back(sig, query, network, tmp_path):
    model = train(sig, epochs=1, network=network)
    model.save(tmp_path / "model")
    loaded = tv.DeepCellState.load(tmp_path / "model", adata=False)
    assert_same(loaded, model, query)
    assert loaded.module.latent_l1 == model.module.latent_l1 and loaded.module.skip == network["skip"]
    assert type(loaded.module.encoder) is type(model.module.encoder)


def test_columns_of_other_names(sig, tmp_path):
    adata = plain(sig)
    adata.obs.columns = ["drug", "line"]
    adata.obs["kind"] = "trt_cp"
    adata.layers["z"], adata.X = adata.X.copy(), np.zeros_like(adata.X)
    setup = {"perturbation_key": "drug", "cell_type_key": "line", "perturbation_type_key": "kind", "layer": "z"}
    model = train(adata, epochs=1, setup=setup)
    model.save(tmp_path / "model")
    query = adata[(adata.obs["line"] == "C1").to_numpy()].copy()
    expected = model.predict(query, "C2")
    assert list(expected.obs)[:3] == ["drug", "kind", "line"]
    for data in (adata, False):
        loaded = tv.DeepCellState.load(tmp_path / "model", data)
        np.testing.assert_array_equal(loaded.predict(query, "C2").X, expected.X)
        found = loaded.fine_tune(adata, "C2", max_epochs=1, batch_size=64, **QUIET).predict(query, "C2")
        assert list(found.obs) == list(expected.obs)


@pytest.mark.slow
def test_in_another_process(model, saved, query, tmp_path):
    query.write_h5ad(tmp_path / "query.h5ad")
    code = (
        "import sys, anndata, torch, transverse as tv; torch.set_num_threads(1);"
        "query = anndata.read_h5ad(sys.argv[2] + '/query.h5ad');"
        "model = tv.DeepCellState.load(sys.argv[1], adata=False);"
        "model.predict(query, 'C2').write_h5ad(sys.argv[2] + '/pred.h5ad')"
    )
    subprocess.run([sys.executable, "-c", code, str(saved), str(tmp_path)], check=True, capture_output=True)
    pred, expected = ad.read_h5ad(tmp_path / "pred.h5ad"), model.predict(query, "C2")
    np.testing.assert_allclose(pred.X, expected.X, rtol=1e-5, atol=1e-5)
    assert pred.obs["trained_on"].tolist() == expected.obs["trained_on"].tolist()


# ---- setup


def test_what_is_registered(sig, capsys):
    model = build(sig)
    stats = model.summary_stats
    assert (stats.n_vars, stats.n_perturbation, stats.n_cell_type, stats.n_perturbation_type) == (24, 30, 3, 1)
    model.view_anndata_setup()
    shown = capsys.readouterr().out
    assert "DeepCellState.setup_anndata" in shown and "perturbation_key" in shown
    assert "30 perturbations, decoders: 'C1', 'C2', 'C3'" in model._model_summary_string
    adata = sig.copy()
    tv.DeepCellState.setup_anndata(adata)
    np.testing.assert_array_equal(adata.X, sig.X)
    assert set(sig.obs) <= set(adata.obs)


def cut(sig, how):
    adata = plain(sig)
    names, cell_types = (adata.obs[key].astype(str).to_numpy(dtype=object) for key in ("perturbation", "cell_type"))
    if how == "one cell type":
        adata = adata[cell_types == "C1"].copy()
    elif how == "nothing shared":
        adata.obs["perturbation"] = names + "_" + cell_types
    elif how == "no drug":
        names[:7] = None
        adata.obs["perturbation"] = names
    elif how == "no cell type":
        cell_types[3] = np.nan
        adata.obs["cell_type"] = cell_types
    elif how == "nan":
        adata.X[2, 2] = np.nan
    elif how == "inf in sparse":
        adata.X = sp.csr_matrix(adata.X)
        adata.X[2, 2] = -np.inf
    elif how == "genes":
        adata.var_names = ["G0002", *adata.var_names[1:]]
    elif how == "signatures":
        adata.obs_names = ["a", "a", *adata.obs_names[2:]]
    elif how == "empty":
        adata = adata[:0].copy()
    elif how == "no genes":
        adata = adata[:, :0].copy()
    elif how == "no matrix":
        adata = ad.AnnData(None, obs=adata.obs, var=adata.var)
    return adata


@pytest.mark.parametrize(
    ("how", "setup", "error", "message"),
    [
        ("", {"perturbation_key": "drug"}, KeyError, "perturbation_key='drug' is not in adata.obs. Columns: 'perturb"),
        ("", {"cell_type_key": "line"}, KeyError, "cell_type_key='line' is not in adata.obs"),
        ("", {"perturbation_type_key": "kind"}, KeyError, "perturbation_type_key='kind' is not in adata.obs"),
        ("", {"layer": "z"}, KeyError, "layer='z' is not in adata.layers"),
        ("one cell type", {}, ValueError, r"adata.obs\['cell_type'\] has only one cell type, 'C1'"),
        (
            "nothing shared",
            {},
            ValueError,
            "No perturbation was measured in two cell types: .*'D0001_C1'.*'perturbation' the",
        ),
        ("no drug", {}, ValueError, r"adata.obs\['perturbation'\] \(perturbation_key\) is missing for 7 cells: '"),
        ("no cell type", {}, ValueError, r"adata.obs\['cell_type'\] \(cell_type_key\) is missing for 1 cells: '"),
        ("nan", {}, ValueError, "adata.X has missing or infinite values"),
        ("inf in sparse", {}, ValueError, "adata.X has missing or infinite values"),
        ("genes", {}, ValueError, "adata.var_names must be unique, but these repeat: 'G0002'"),
        ("signatures", {}, ValueError, "adata.obs_names must be unique, but these repeat: 'a'"),
        ("empty", {}, ValueError, "adata is empty: it has 0 cells and 24 genes"),
        ("no genes", {}, ValueError, "adata is empty: it has 72 cells and 0 genes"),
        ("no matrix", {}, ValueError, "adata.X is empty"),
    ],
)
@pytest.mark.filterwarnings("ignore:Variable names are not unique", "ignore:Observation names are not unique")
def test_setup_refuses_and_changes_nothing(sig, how, setup, error, message):
    adata = cut(sig, how)
    before = adata.copy()
    with pytest.raises(error, match=message):
        tv.DeepCellState.setup_anndata(adata, **setup)
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    pd.testing.assert_frame_equal(adata.var, before.var)
    assert set(adata.uns) == set(before.uns) and not adata.layers
    if adata.X is not None:
        one, other = (x.toarray() if sp.issparse(x) else x for x in (adata.X, before.X))
        np.testing.assert_array_equal(one, other)


def test_setup_refuses_what_is_no_anndata(sig):
    with pytest.raises(TypeError, match="adata must be an AnnData, but got ndarray"):
        tv.DeepCellState.setup_anndata(sig.X)


def test_kinds_that_share_only_a_name_share_nothing(sig):
    adata = plain(sig)
    adata.obs["kind"] = "k_" + adata.obs["cell_type"].astype(str)
    with pytest.raises(ValueError, match="No perturbation was measured in two cell types"):
        tv.DeepCellState.setup_anndata(adata, perturbation_type_key="kind")
    tv.DeepCellState.setup_anndata(adata)


def test_cell_types_that_share_nothing_are_named(sig):
    adata = plain(sig)
    names = adata.obs["perturbation"].astype(str).to_numpy(dtype=object)
    lone = (adata.obs["cell_type"] == "C3").to_numpy()
    names[lone] += "_3"
    adata.obs["perturbation"] = names
    adata.obs["kind"] = "drug"
    for setup in ({}, {"perturbation_type_key": "kind"}):
        with pytest.warns(
            UserWarning, match="These cell types share no perturbation with another: 'C3'. Their decoders"
        ):
            tv.DeepCellState.setup_anndata(adata, **setup)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="These cell types")
        tv.DeepCellState.setup_anndata(plain(sig))


def test_values_may_be_of_any_kind(sig):
    """Whole numbers, and no sign that they are signatures."""
    adata = plain(sig)
    adata.X = np.round(adata.X * 10).astype(np.int32)
    model = train(adata, epochs=1)
    assert float(model.module.scale) == np.abs(adata.X).max()
    assert np.isfinite(model.predict(part(adata, "C1"), "C2").X).all()
