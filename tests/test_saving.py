"""Saves that are broken off, and folders and files that are no model; of all four models."""

import multiprocessing
import os
import pickle
import re
import shutil
import signal
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import scvi
import torch

from transverse import _saving
from transverse._compat import checked_load

from .cases import CASES, mouse_model


@pytest.fixture(scope="module", params=list(CASES))
def case(request):
    return CASES[request.param]


@pytest.fixture(scope="module")
def old(case):
    return case.trained(epochs=1)


@pytest.fixture(scope="module")
def new(case):
    """Of other cells and other weights."""
    adata = case.data()
    adata.obs_names = [f"new {name}" for name in adata.obs_names]
    return case.trained(adata, seed=1, epochs=1)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Failure(Exception):
    pass


# ---- a save that is broken off


def break_at(monkeypatch, n, error):
    """Raise an error at the n-th call of what a save does with files; returns the number of calls so far."""
    calls = []

    def wrap(function):
        def wrapped(*args, **kwargs):
            calls.append(function)
            if len(calls) == n + 1:
                raise error
            return function(*args, **kwargs)

        return wrapped

    monkeypatch.setattr(torch, "save", wrap(torch.save))
    monkeypatch.setattr(ad.AnnData, "write_h5ad", wrap(ad.AnnData.write_h5ad))
    monkeypatch.setattr(ad.AnnData, "write", wrap(ad.AnnData.write))
    monkeypatch.setattr(_saving.os, "rename", wrap(os.rename))
    monkeypatch.setattr(_saving.os, "replace", wrap(os.replace))
    return calls


@pytest.mark.parametrize("error", [Failure, KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_broken_save_changes_nothing(case, old, new, tmp_path, monkeypatch, error, overwrite):
    folder = tmp_path / "model"
    if overwrite:
        old.save(folder, save_anndata=True)
    before = contents(folder) if overwrite else None
    n = 0
    while True:
        with monkeypatch.context() as patch:
            calls = break_at(patch, n, error)
            try:
                new.save(folder, save_anndata=True, overwrite=overwrite)
            except (Failure, KeyboardInterrupt, OSError):
                pass
        if len(calls) <= n:
            break
        if overwrite:
            assert contents(folder) == before, calls[-1]
        else:
            assert not folder.exists(), calls[-1]
        assert [path.name for path in tmp_path.iterdir()] == (["model"] if overwrite else []), calls[-1]
        n += 1
    assert n >= 3
    loaded = case.cls.load(folder)
    assert loaded.adata.obs_names.tolist() == new.adata.obs_names.tolist()
    np.testing.assert_array_equal(loaded.get_latent_representation(), new.get_latent_representation())


def save_and_die(model, folder, n):
    """Killed at the n-th of what a save does with files, in the first save or a later one."""
    calls = iter(range(n + 1))

    def wrap(function):
        def wrapped(*args, **kwargs):
            if next(calls) == n:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return wrapped

    torch.save, ad.AnnData.write = wrap(torch.save), wrap(ad.AnnData.write)
    os.rename, os.replace, shutil.rmtree = wrap(os.rename), wrap(os.replace), wrap(shutil.rmtree)
    while True:
        model.save(folder, overwrite=True, save_anndata=True)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process of its own takes seconds to start without os.fork")
def test_killed_while_saving(case, old, new, tmp_path):
    """At twenty points: the folder has the old model, or the new one, or refuses; both are somewhere whole."""
    folder, found = tmp_path / "model", []
    fork = multiprocessing.get_context("fork")
    for n in range(20):
        old.save(folder, overwrite=True, save_anndata=True)
        process = fork.Process(target=save_and_die, args=(new, folder, n))
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        try:
            loaded = case.cls.load(folder)
        except ValueError as error:
            assert re.search(r"has no file 'model.pt'.*A save was broken off: its files are in", str(error))
            assert len(list(tmp_path.glob(".model.*/model.pt"))) == 2
            found.append("refused")
        else:
            weights = loaded.module.state_dict()
            is_old = all(torch.equal(value, weights[key]) for key, value in old.module.state_dict().items())
            assert loaded.adata.obs_names[0].startswith("new ") != is_old
            found.append("old" if is_old else "new")
        for part in tmp_path.glob(".model.*"):
            shutil.rmtree(part)
    assert set(found) == {"old", "new", "refused"}


def test_data_of_another_model_are_not_left_with_it(case, old, new, tmp_path):
    folder = tmp_path / "model"
    old.save(folder, save_anndata=True)
    before = contents(folder)
    with pytest.raises(ValueError, match="holds other data than the model's, and would be loaded with it"):
        new.save(folder, overwrite=True)
    assert contents(folder) == before
    old.save(folder, overwrite=True)
    assert case.cls.load(folder).adata.obs_names.tolist() == old.adata.obs_names.tolist()
    new.save(folder, overwrite=True, save_anndata=True)
    assert case.cls.load(folder).adata.obs_names.tolist() == new.adata.obs_names.tolist()


def test_other_files_of_the_folder_stay(old, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    old.save(folder, overwrite=True, save_anndata=True)
    old.save(folder, overwrite=True, save_anndata=True)
    assert sorted(contents(folder)) == ["adata.h5ad", "model.pt", "notes.txt"]
    assert (folder / "notes.txt").read_text() == "mine"
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file. Name a folder for the model"):
        old.save(tmp_path / "file", overwrite=True)


# ---- what is no model


def test_truncated_and_foreign_folders_are_refused(case, old, tmp_path):
    folder = tmp_path / "model"
    with pytest.raises(ValueError, match=r"dir_path='.*model' is not a folder"):
        case.cls.load(folder)
    folder.mkdir()
    with pytest.raises(ValueError, match=r"has no file 'model.pt': it holds none"):
        case.cls.load(folder)
    (folder / "model.pt").write_text("no model")
    with pytest.raises(ValueError, match="cannot be read: it was cut short, or is not a file of PyTorch"):
        case.cls.load(folder)
    old.save(folder, overwrite=True)
    whole = (folder / "model.pt").read_bytes()
    rng = np.random.default_rng(0)
    for length in [0, 1, len(whole) - 1, *rng.integers(2, len(whole) - 1, size=20)]:
        (folder / "model.pt").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="cannot be read: it was cut short, or is not a file of PyTorch"):
            case.cls.load(folder, case.data())
    torch.save([1, 2], folder / "model.pt")
    with pytest.raises(ValueError, match="holds a list, not what was saved"):
        case.cls.load(folder)
    torch.save({"state_dict": {}}, folder / "model.pt")
    with pytest.raises(
        ValueError, match="is not a model of scvi-tools: it lacks 'model_state_dict', 'var_names', 'attr_dict'"
    ):
        case.cls.load(folder)


def test_models_of_another_class_are_refused(case, old, tmp_path):
    old.save(tmp_path / "model")
    for other in CASES.values():
        if other is not case:
            with pytest.raises(ValueError, match=f"holds a model of the class {case.name}, not {other.name}"):
                other.cls.load(tmp_path / "model")
    mouse_model().save(tmp_path / "scvi")
    with pytest.raises(ValueError, match="Models of other classes may"):
        case.cls.load(tmp_path / "scvi")
    with pytest.raises(ValueError, match=f"holds a model of the class SCVI, not {case.name}. Load it with SCVI.load"):
        case.cls.load(tmp_path / "scvi", weights_only=False)


def test_a_broken_save_is_named(case, old, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / ".model.abc.saving").mkdir()
    (tmp_path / ".model.abc.replaced").mkdir()
    with pytest.raises(ValueError, match=r"A save was broken off: its files are in '.*abc.replaced', '.*abc.saving'"):
        case.cls.load(tmp_path / "model")


# ---- files that run code


class Attack:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("where", ["attr_dict", "model_state_dict", "var_names", "file"])
def test_no_code_of_a_file_is_run(case, old, tmp_path, where):
    folder = tmp_path / "model"
    old.save(folder)
    saved = torch.load(folder / "model.pt", weights_only=False)
    attack = Attack(tmp_path / "attacked")
    if where == "attr_dict":
        saved["attr_dict"]["history_"] = attack
    elif where == "model_state_dict":
        saved["model_state_dict"]["bias"] = attack
    elif where == "var_names":
        saved["var_names"] = attack
    torch.save(attack if where == "file" else saved, folder / "model.pt")
    with pytest.raises(ValueError, match=r"holds objects that could run code when they are read, such as posix.mkdir"):
        case.cls.load(folder, case.data())
    (folder / "model.pt").write_bytes(pickle.dumps(attack))
    with pytest.raises(ValueError, match="cannot be read|could run code"):
        case.cls.load(folder, case.data())
    assert not (tmp_path / "attacked").exists()


def test_a_downloaded_file_is_looked_at_too(case, old, tmp_path, monkeypatch):
    def download(url, folder, name):
        Path(folder).mkdir()
        shutil.copy(url, Path(folder) / name)

    monkeypatch.setattr(_saving, "download", download)
    source = tmp_path / "source.pt"
    torch.save({"attr_dict": Attack(tmp_path / "attacked")}, source)
    with pytest.raises(ValueError, match="could run code when they are read, such as posix.mkdir"):
        case.cls.load(tmp_path / "model", case.data(), backup_url=str(source))
    assert not (tmp_path / "attacked").exists()
    old.save(tmp_path / "saved")
    loaded = case.cls.load(tmp_path / "other", case.data(), backup_url=str(tmp_path / "saved" / "model.pt"))
    np.testing.assert_array_equal(loaded.get_latent_representation(), old.get_latent_representation())


def test_what_is_saved_is_plain(case, old, tmp_path):
    """Nothing but tensors, arrays and values of Python: another version of pandas reads it as well."""
    old.save(tmp_path / "model")
    saved = checked_load(tmp_path / "model" / "model.pt", "dir_path")
    assert saved["attr_dict"]["history_"].keys() == old.history.keys()
    names = torch.serialization.get_unsafe_globals_in_checkpoint(tmp_path / "model" / "model.pt")
    roots = {name.split(".")[0] for name in names}
    assert roots <= {"builtins", "numpy", "_codecs", "torch"}
    assert not [
        name for name in names if name.startswith("torch.") and not name.startswith("torch.nn.modules.activation.")
    ]


# ---- saves of an earlier version

SAVES = Path(__file__).parent / "saves"


def test_saves_of_an_earlier_version(case):
    """Kept as ``python -m tests.test_saving`` wrote them, with the representations that the models had."""
    folders = sorted(SAVES.glob(f"*/{case.name}"))
    assert folders
    for folder in folders:
        model = case.cls.load(folder)
        np.testing.assert_allclose(
            model.get_latent_representation(), np.load(folder / "latent.npy"), rtol=1e-4, atol=1e-4
        )
        assert len(model.history["train_loss"]) >= 1
        case.fit(model, 1)


def write_saves(version: str) -> None:
    for case in CASES.values():
        model = case.trained(epochs=1)
        folder = SAVES / version / case.name
        model.save(folder, save_anndata=True, compression="gzip")
        np.save(folder / "latent.npy", model.get_latent_representation())


if __name__ == "__main__":
    scvi.settings.verbosity = 30
    write_saves(sys.argv[1])
