"""What a model that was saved can do, with its data, with other data and without any."""

import subprocess
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import transverse as tv

from .conftest import QUIET, cells, dense

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
ASKED = [("P01", "C1", {"n_samples": 3}), ("P05+P03", "C1", {}), ("P04+P05", "C1", {"combine": "sum"})]


def plain(screen):
    """The data without scvi-tools' bookkeeping, as they were before training."""
    return ad.AnnData(screen.X.copy(), obs=screen.obs[["perturbation", "cell_type"]].copy(), var=screen.var[[]].copy())


def assert_same(loaded, model, options=None):
    for name, context, kwargs in ASKED:
        pred, expected = (one.predict(name, context, **kwargs, **(options or {})) for one in (loaded, model))
        np.testing.assert_allclose(pred.X, expected.X, **CLOSE)
        for layer in expected.layers:
            if layer is not None:
                np.testing.assert_allclose(pred.layers[layer], expected.layers[layer], **CLOSE)
        pd.testing.assert_frame_equal(pred.obs, expected.obs)
        assert pred.uns["prediction"] == expected.uns["prediction"]


def test_with_data(model, saved, screen):
    loaded = tv.XTransferCDR.load(saved, plain(screen))
    assert_same(loaded, model)
    for method in ("get_basal_representation", "get_perturbation_representation", "get_latent_representation"):
        np.testing.assert_array_equal(getattr(loaded, method)(), getattr(model, method)())
    pd.testing.assert_frame_equal(loaded.get_perturbation_similarity(), model.get_perturbation_similarity())
    pd.testing.assert_frame_equal(loaded.get_latent_additivity(), model.get_latent_additivity())
    assert loaded.pairing_ == model.pairing_
    assert list(loaded.history) == list(model.history)
    loaded.train(1, **QUIET)
    assert np.abs(loaded.predict("P01", "C1").X - model.predict("P01", "C1").X).max() > 0


def test_folders_prefixes_and_overwriting(model, screen, tmp_path):
    model.save(tmp_path / "model", prefix="a_")
    with pytest.raises(ValueError, match="already exists"):
        model.save(tmp_path / "model")
    model.save(tmp_path / "model", overwrite=True, prefix="b_")
    for prefix in ("a_", "b_"):
        assert_same(tv.XTransferCDR.load(tmp_path / "model", plain(screen), prefix=prefix), model)
        reordered = plain(screen)[:, ::-1].copy()
        assert_same(tv.XTransferCDR.load(tmp_path / "model", reordered, prefix=prefix), model)


def test_data_saved_with_the_model(model, screen, tmp_path):
    model.save(tmp_path / "model", save_anndata=True)
    loaded = tv.XTransferCDR.load(tmp_path / "model")
    assert loaded.adata is not model.adata
    assert_same(loaded, model)


def test_without_data(model, saved, screen):
    loaded = tv.XTransferCDR.load(saved, adata=False)
    with pytest.raises(ValueError, match="The model was loaded without data.*controls=.*reference="):
        loaded.predict("P01", "C1")
    controls = plain(screen)[cells(screen, "control", "C1")].copy()
    given = {"controls": controls}
    for name in ("P01", "P03+P05", "P04+P05"):
        pred, expected = loaded.predict(name, "C1", **given), model.predict(name, "C1", **given)
        np.testing.assert_allclose(pred.X, expected.X, **CLOSE)
        np.testing.assert_allclose(pred.X, model.predict(name, "C1").X, rtol=1e-4, atol=1e-5)
        assert pred.uns["prediction"] == expected.uns["prediction"]
    with pytest.raises(ValueError, match="The model was loaded without data.*reference="):
        loaded.predict("P01", "C1", n_samples=2, **given)
    reference = plain(screen)[cells(screen, "P01")].copy()
    preds = [one.predict("P01", "C1", n_samples=2, reference=reference, **given) for one in (loaded, model)]
    np.testing.assert_allclose(preds[0].layers["std"], preds[1].layers["std"], **CLOSE)
    with pytest.raises(KeyError, match="Unknown perturbation: 'Z'"):
        loaded.predict("Z", "C1", **given)
    with pytest.raises(ValueError, match="shown the answer"):
        loaded.predict("P02", "C1", **given)


def test_representation_without_data(model, saved, screen):
    loaded = tv.XTransferCDR.load(saved, adata=False)
    some = plain(screen)[::3].copy()
    for method in ("get_basal_representation", "get_perturbation_representation", "get_latent_representation"):
        np.testing.assert_allclose(getattr(loaded, method)(some), getattr(model, method)()[::3], **CLOSE)
    table = loaded.get_perturbation_representation(plain(screen), groupby="condition")
    pd.testing.assert_frame_equal(table, model.get_perturbation_representation(groupby="condition"))


def test_representation_of_no_data_is_refused_with_a_reason(saved):
    loaded = tv.XTransferCDR.load(saved, adata=False)
    for method in ("get_basal_representation", "get_perturbation_similarity"):
        with pytest.raises(ValueError, match="without data"):
            getattr(loaded, method)()


def test_in_another_process(model, saved, screen, tmp_path):
    plain(screen).write_h5ad(tmp_path / "cells.h5ad")
    code = (
        "import sys, anndata, numpy, torch, transverse as tv; torch.set_num_threads(1);"
        "adata = anndata.read_h5ad(sys.argv[2] + '/cells.h5ad');"
        "model = tv.XTransferCDR.load(sys.argv[1], adata);"
        "model.predict('P05+P03', 'C1', n_samples=3).write_h5ad(sys.argv[2] + '/pred.h5ad');"
        "numpy.save(sys.argv[2] + '/basal.npy', model.get_basal_representation());"
        "alone = tv.XTransferCDR.load(sys.argv[1], adata=False);"
        "controls = adata[((adata.obs['perturbation'] == 'control') & (adata.obs['cell_type'] == 'C1')).to_numpy()].copy();"
        "numpy.save(sys.argv[2] + '/alone.npy', alone.predict('P05+P03', 'C1', controls=controls).X)"
    )
    subprocess.run([sys.executable, "-c", code, str(saved), str(tmp_path)], check=True, capture_output=True)
    pred, expected = ad.read_h5ad(tmp_path / "pred.h5ad"), model.predict("P05+P03", "C1", n_samples=3)
    np.testing.assert_allclose(pred.X, expected.X, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.load(tmp_path / "alone.npy"), expected.X, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(pred.layers["std"], expected.layers["std"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.load(tmp_path / "basal.npy"), model.get_basal_representation(), **CLOSE)
    assert list(pred.uns["prediction"]["source"]) == ["C2", "C3"]


def test_genes_are_put_in_order(model, saved, screen):
    reordered = plain(screen)[:, np.random.default_rng(0).permutation(60)].copy()
    more = ad.AnnData(
        sp.hstack([sp.csr_matrix(np.ones((screen.n_obs, 2), dtype=np.float32)), reordered.X]).tocsr(),
        obs=reordered.obs,
        var=pd.DataFrame(index=["more", "most", *reordered.var_names]),
    )
    for data in (reordered, more):
        names, before = data.var_names.tolist(), dense(data.X).copy()
        loaded = tv.XTransferCDR.load(saved, data)
        assert_same(loaded, model)
        assert loaded.predict("P01", "C1").var_names.tolist() == screen.var_names.tolist()
        np.testing.assert_allclose(loaded.get_basal_representation(data), model.get_basal_representation(), **CLOSE)
        assert data.var_names.tolist() == names
        np.testing.assert_array_equal(dense(data.X), before)
    with pytest.raises(ValueError, match=f"1 of the 60 genes.*are missing in adata: '{screen.var_names[0]}'"):
        tv.XTransferCDR.load(saved, plain(screen)[:, 1:].copy())
    wrong = plain(screen)
    wrong.var_names = [wrong.var_names[1], *wrong.var_names[1:]]
    with pytest.raises(ValueError, match="var_names must be unique"):
        tv.XTransferCDR.load(saved, wrong)


def test_other_data_than_those_of_the_training(model, saved, screen):
    """Effects are those of the training; the cells that are started from are those of the data."""
    others = plain(screen)
    others.obs_names = [f"other{i}" for i in range(others.n_obs)]
    others.X = others.X * np.float32(0.9)
    loaded = tv.XTransferCDR.load(saved, others)
    pred = loaded.predict("P01", "C1", source_weights="uniform")
    rows = cells(screen, "control", "C1")
    assert pred.obs["control_cell"].tolist() == [f"other{i}" for i in rows]
    np.testing.assert_array_equal(pred.layers["control"], dense(others[rows].X))
    expected = model.predict("P01", "C1", controls=others[rows].copy(), source_weights="uniform")
    np.testing.assert_allclose(pred.X, expected.X, **CLOSE)
    assert pred.uns["prediction"]["in_training"] is False
    # a part of the training data without control cells of the context
    part = plain(screen)[np.setdiff1d(np.arange(screen.n_obs), rows)].copy()
    loaded = tv.XTransferCDR.load(saved, part)
    with pytest.raises(ValueError, match="adata has no control cells of context='C1'. Pass some as controls="):
        loaded.predict("P01", "C1")
    assert loaded.predict("P01", "C1", controls=plain(screen)[rows].copy()).n_obs == len(rows)


@pytest.mark.parametrize("options", [{"n_samples": 2}, {"basal": "reference"}], ids=str)
def test_data_without_the_reference_cells_are_refused_with_a_reason(saved, screen, options):
    part = plain(screen)[np.setdiff1d(np.arange(screen.n_obs), cells(screen, "P01"))].copy()
    loaded = tv.XTransferCDR.load(saved, part)
    assert loaded.predict("P01", "C1").n_obs == 12
    with pytest.raises(ValueError, match="'P01'.*reference="):
        loaded.predict("P01", "C1", **options)
