"""What all four models promise (one contract): any storage of the data, any names, the same results, saved and loaded."""

import ast
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

import transverse as tv

from .cases import CASES, QUIET


@pytest.fixture(scope="module", params=list(CASES))
def case(request):
    return CASES[request.param]


@pytest.fixture(scope="module")
def model(case):
    """A trained model; tests must not change it."""
    return case.trained()


@pytest.fixture(scope="module")
def results(case, model):
    return case.all_results(model)


def assert_results(found, expected, rtol=1e-5, atol=1e-5):
    """All of one model's results are another's; the labels exactly."""
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        if values.dtype == object:
            assert found[key].tolist() == values.tolist(), key
        else:
            np.testing.assert_allclose(found[key], values, rtol=rtol, atol=atol, err_msg=key)


def same_weights(one, other):
    return all(torch.equal(value, other.module.state_dict()[key]) for key, value in one.module.state_dict().items())


def dense(x):
    return x.toarray() if sp.issparse(x) else np.asarray(x)


# ---- training


def test_training_and_history(case, model, results):
    assert model.is_trained_ and not model.module.training
    loss = model.history["train_loss"].iloc[:, 0].astype(float)
    assert len(loss) >= 2 and np.isfinite(loss).all() and loss.index.tolist() == list(range(len(loss)))
    assert results["latent"].ndim == 2 and len(results["latent"]) == model.adata.n_obs
    for key, values in results.items():
        assert values.dtype == object or np.isfinite(values).all(), key
    model.view_anndata_setup()
    repr(model)


def test_a_seed_is_a_model(case, model):
    assert same_weights(case.trained(), model)
    assert not same_weights(case.trained(seed=1), model)


def test_untrained_models_refuse_to_predict(case):
    with pytest.raises((RuntimeError, ValueError), match="train"):
        case.results(case.model())


def test_results_do_not_depend_on_the_batch_size(case, model, results):
    for batch_size in (1, 7):
        assert_results(case.all_results(model, batch_size=batch_size), results, rtol=1e-3, atol=1e-3)


def test_nothing_of_the_users_is_changed(case):
    adata = case.data()
    before = adata.copy()
    case.all_results(case.trained(adata))
    assert set(adata.obs) - set(before.obs) <= {"_scvi_batch", "_scvi_labels"} | {
        name for name in adata.obs if name.startswith("_scvi_")
    }
    pd.testing.assert_frame_equal(adata.obs[list(before.obs)], before.obs)
    pd.testing.assert_frame_equal(adata.var, before.var)
    assert adata.X.dtype == before.X.dtype and np.array_equal(dense(adata.X), dense(before.X))
    assert not adata.layers.keys() - before.layers.keys()
    assert [key for key in adata.obsm if not key.startswith("_scvi_")] == list(before.obsm)


# ---- storage of the data

STORAGES = {
    "dense": lambda x: dense(x),
    "csr": lambda x: sp.csr_matrix(x),
    "csc": lambda x: sp.csc_matrix(x),
    "csr array": lambda x: sp.csr_array(x),
    "fortran": lambda x: np.asfortranarray(dense(x)),
    "float64": lambda x: x.astype(np.float64),
}
COUNTS = {
    "int32": lambda x: x.astype(np.int32),
    "int64": lambda x: dense(x).astype(np.int64),
    "uint16": lambda x: dense(x).astype(np.uint16),
}


@pytest.mark.parametrize("storage", [*STORAGES, *COUNTS, "backed", "view", "layer"])
def test_storage_makes_no_difference(case, model, results, storage, tmp_path):
    """Neither to a training nor to results."""
    if storage in COUNTS and not case.counts:
        pytest.skip("the model's data are no counts")
    adata, setup = case.data(), {}
    if storage == "backed":
        adata.write_h5ad(tmp_path / "data.h5ad")
        adata = ad.read_h5ad(tmp_path / "data.h5ad", backed="r")
    elif storage == "view":
        double = ad.concat([adata, adata[::-1]], index_unique="-", merge="same")
        double.var = adata.var
        adata = double[: adata.n_obs]
        assert adata.is_view
    elif storage == "layer":
        adata.layers["values"], adata.X = adata.X.copy(), None
        setup = {"layer": "values"}
    else:
        adata.X = {**STORAGES, **COUNTS}[storage](adata.X)
    if storage == "view":
        adata = adata.copy()  # scvi-tools registers no view
        adata.obs_names = model.adata.obs_names
    other = case.trained(adata, setup=setup)
    assert_results(case.all_results(other), results, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("storage", ["dense", "csc", "backed", "view"])
def test_new_data_in_any_storage(case, model, results, storage, tmp_path):
    adata = case.data()
    if storage == "backed":
        adata.write_h5ad(tmp_path / "data.h5ad")
        adata = ad.read_h5ad(tmp_path / "data.h5ad", backed="r")
    elif storage == "view":
        adata = adata[:]
    else:
        adata.X = STORAGES[storage](adata.X)
    latent = model.get_latent_representation(adata)
    np.testing.assert_allclose(latent, results["latent"], rtol=1e-4, atol=1e-4)


# ---- genes


def test_genes_in_another_order_and_more_of_them(case, model, results):
    adata = case.data()
    order = np.random.default_rng(0).permutation(adata.n_vars)
    extra = ad.AnnData(np.ones((adata.n_obs, 2), np.float32), obs=adata.obs, var=pd.DataFrame(index=["zzz1", "zzz2"]))
    if "species" in adata.var:
        extra.var["species"] = adata.var["species"].iloc[0]
    more = ad.concat([adata[:, order], extra], axis=1, merge="first")
    more.obs = adata.obs.copy()
    np.testing.assert_allclose(model.get_latent_representation(more), results["latent"], rtol=1e-4, atol=1e-4)


def test_missing_genes_are_refused(case, model):
    adata = case.data()[:, 2:].copy()
    if case.name == "UGE":  # reads whatever genes there are
        assert np.isfinite(model.get_latent_representation(adata)).all()
        return
    if case.name == "DeepCellState":  # takes them as 0, and says so
        with pytest.warns(UserWarning, match=r"2 of the model's \d+ genes are missing in adata and are taken as 0"):
            model.get_latent_representation(adata)
        return
    with pytest.raises(ValueError, match=r"2 of the \d+ genes that the model was trained on are missing"):
        model.get_latent_representation(adata)


# ---- names and groups


def renamed(case, how):
    """The data with other types of names, and the setup that goes with them."""
    adata, setup = case.data(), {}
    adata.var_names = adata.var_names if case.name == "ScSpecies" else [f"gène {name} β" for name in adata.var_names]
    adata.obs_names = [f"ячейка {i}" for i in range(adata.n_obs)]
    for argument, key in case.keys.items():
        if key == "species":
            continue  # is in var as well
        column = adata.obs[key].astype(str)
        control = "control" if "control" in set(column) else None
        if how == "string":
            adata.obs[key] = column.astype("string")
        elif how == "integer":
            numbers = {name: i for i, name in enumerate(sorted(set(column), key=lambda name: (name != control, name)))}
            adata.obs[key] = column.map(numbers).astype(int)
            if control:
                setup["control"] = "0"
        elif how == "unicode":
            adata.obs[key] = pd.Categorical([f"Ж {name} / 細胞" if name != control else name for name in column])
        elif how == "unused":
            names = sorted(set(column))
            adata.obs[key] = pd.Categorical(column, categories=["!", *names, "~"])
        new = f"{key} µ"
        adata.obs[new] = adata.obs.pop(key)
        setup[argument] = new
    return adata, setup


@pytest.mark.parametrize("how", ["string", "integer", "unicode", "unused"])
def test_names_of_any_type(case, results, how, tmp_path):
    adata, setup = renamed(case, how)
    model = case.trained(adata, setup=setup)
    found = case.all_results(model)
    if how == "string":  # others may change the order of the names, which the seed goes with
        assert_results(found, results, rtol=1e-3, atol=1e-3)
    for key, values in found.items():
        assert values.shape[0] == results[key].shape[0]
        assert values.dtype == object or np.isfinite(values).all()
    model.save(tmp_path / "model", save_anndata=True)
    assert_results(case.all_results(case.cls.load(tmp_path / "model")), found)


def test_a_group_of_one_and_a_last_batch_of_one(case):
    adata = case.data()
    key = list(case.keys.values())[-1]
    column = adata.obs[key].astype(str)
    alone = np.flatnonzero((column != "control").to_numpy())[0]
    column.iloc[alone] = "alone"
    adata.obs[key] = pd.Categorical(column)
    model = case.model(adata)
    case.fit(
        model, epochs=1, **({} if case.name == "DeepCellState" else {"train_size": 1.0}), batch_size=adata.n_obs - 1
    )
    assert all(np.isfinite(weight).all() for weight in model.module.state_dict().values() if weight.is_floating_point())
    assert np.isfinite(model.get_latent_representation()).all()


# ---- saving and loading


@pytest.fixture(scope="module")
def saved(case, model, tmp_path_factory):
    folder = tmp_path_factory.mktemp(case.name) / "model"
    model.save(folder)
    return folder


def test_load_with_data(case, model, saved, results):
    loaded = case.cls.load(saved, case.data())
    assert same_weights(loaded, model)
    assert_results(case.all_results(loaded), results)
    for key, table in model.history.items():
        assert loaded.history[key].iloc[:, 0].tolist() == table.iloc[:, 0].tolist()


def test_load_data_saved_with_it(case, model, results, tmp_path):
    model.save(str(tmp_path / "model"), save_anndata=True)
    assert_results(case.all_results(case.cls.load(str(tmp_path / "model"))), results)


def test_load_without_data(case, model, saved, results):
    loaded = case.cls.load(saved, adata=False)
    assert loaded.adata is None and same_weights(loaded, model)
    latent = loaded.get_latent_representation(case.data())
    np.testing.assert_allclose(latent, results["latent"], rtol=1e-5, atol=1e-5)


def test_prefix_and_overwrite(case, model, results, tmp_path):
    folder = tmp_path / "a" / "model"
    model.save(folder, prefix="one_")
    with pytest.raises(ValueError, match="already exists. Name another folder, or pass overwrite=True"):
        model.save(folder)
    model.save(folder, prefix="two_", overwrite=True)
    assert sorted(path.name for path in folder.iterdir()) == ["one_model.pt", "two_model.pt"]
    assert not [path for path in folder.parent.iterdir() if path != folder]
    with pytest.raises(ValueError, match="has no file 'model.pt'.* models with the prefixes: 'one_', 'two_'"):
        case.cls.load(folder, case.data())
    for prefix in ("one_", "two_"):
        loaded = case.cls.load(folder, case.data(), prefix=prefix)
        np.testing.assert_array_equal(loaded.get_latent_representation(), results["latent"])


def test_training_goes_on_after_loading(case, model, saved):
    loaded = case.cls.load(saved, case.data())
    case.fit(loaded, epochs=1)
    assert len(loaded.history["train_loss"]) > len(model.history["train_loss"])
    assert not same_weights(loaded, model)


@pytest.mark.slow
def test_load_in_another_process(tmp_path):
    """All models in one, which takes its time to start."""
    for name, case in CASES.items():
        case.trained().save(tmp_path / name, save_anndata=True)
    script = (
        "import sys, numpy, torch, transverse\n"
        "torch.set_num_threads(1)\n"
        "for name in sys.argv[2:]:\n"
        "    model = getattr(transverse, name).load(f'{sys.argv[1]}/{name}')\n"
        "    numpy.save(f'{sys.argv[1]}/{name}.npy', model.get_latent_representation())\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path), *CASES], check=True, capture_output=True, cwd=tmp_path)
    for name, case in CASES.items():
        expected = case.trained().get_latent_representation()
        np.testing.assert_allclose(np.load(tmp_path / f"{name}.npy"), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_package_needs_no_network():
    """Neither at import nor in the smallest use."""
    script = (
        "import socket\n"
        "def refuse(*args, **kwargs): raise AssertionError('network')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        "import transverse as tv\n"
        "adata = tv.datasets.simulate_responses(n_contexts=2, n_perturbations=2, n_genes=20, n_cells_per_condition=5)\n"
        "tv.XTransferCDR.setup_anndata(adata)\n"
        "model = tv.XTransferCDR(adata, n_latent=4, n_hidden=(8,))\n"
        f"model.train(1, **{QUIET!r})\n"
        "model.get_latent_representation()\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_the_package_does_not_evaluate_text():
    """No file of ours calls ``eval``, ``exec``, a shell, or pickle."""
    names = {"eval", "exec", "compile", "__import__", "system", "popen"}
    modules = {"pickle", "subprocess", "marshal", "shelve", "socket", "urllib", "requests", "http"}
    # to tell pickle's errors, and to look where data are read from
    allowed = {("_compat.py", "pickle")}
    for path in Path(tv.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = node.func
                name = called.id if isinstance(called, ast.Name) else None
                name = called.attr if isinstance(called, ast.Attribute) and called.attr in ("system", "popen") else name
                assert name not in names, f"{path.name}:{node.lineno} calls {name}"
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                for module in found:
                    root = module.split(".")[0]
                    assert root not in modules or (path.name, root) in allowed, f"{path.name} imports {module}"
