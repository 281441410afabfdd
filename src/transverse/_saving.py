"""Folders of saved models: written whole, and looked at before they are loaded."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import torch
from anndata import AnnData
from anndata.io import read_elem
from scvi.model.base._constants import SAVE_KEYS

from ._compat import checked_load, download
from ._validation import examples

_PARTS = (SAVE_KEYS.MODEL_STATE_DICT_KEY, SAVE_KEYS.VAR_NAMES_KEY, SAVE_KEYS.ATTR_DICT_KEY)


def check_overwritten(dir_path: str, prefix: str | None, overwrite: bool, adata: AnnData | None) -> None:
    """Raise a ValueError if a model may not be saved there.

    Parameters
    ----------
    dir_path, prefix, overwrite
        As of ``save``.
    adata
        Data of the model if they are not saved with it: those that the folder has from before must be the same.
    """
    folder = Path(dir_path)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"dir_path={str(dir_path)!r} is a file. Name a folder for the model.")
    if folder.exists() and not overwrite:
        raise ValueError(f"dir_path={str(dir_path)!r} already exists. Name another folder, or pass overwrite=True.")
    data = folder / f"{prefix or ''}{SAVE_KEYS.ADATA_FNAME}"
    if adata is None or not data.exists():
        return
    with h5py.File(data) as file:
        same = all(
            np.array_equal(read_elem(file[axis]).index.astype(str), names.astype(str))
            for axis, names in (("obs", adata.obs_names), ("var", adata.var_names))
        )
    if not same:
        raise ValueError(
            f"{str(data)!r} holds other data than the model's, and would be loaded with it. Pass save_anndata=True to "
            "replace them, or save to another folder."
        )


@contextmanager
def staging_folder(dir_path: str) -> Iterator[str]:
    """A folder beside another, to write in; removed at the end."""
    target = Path(dir_path).absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".saving", dir=target.parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def replace_saved(source: str, dir_path: str) -> None:
    """Put the complete files of a folder in the place of those of another.

    The file of the model goes first and comes last: a folder has either one that belongs to its data, or none. What is
    replaced stays beside the folder until all is in place, and is put back if that fails.
    """
    target = Path(dir_path).absolute()
    new = sorted(Path(source).iterdir(), key=lambda file: file.name.endswith(SAVE_KEYS.MODEL_FNAME))
    if not target.exists():
        # a temporary folder is its owner's alone
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(source, 0o777 & ~umask)
        try:
            os.rename(source, target)
            return
        except OSError:
            if not target.is_dir():
                raise
    if len(new) == 1:
        os.replace(new[0], target / new[0].name)
        return
    replaced = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".replaced", dir=target.parent))
    names = [file.name for file in new]
    try:
        for name in reversed(names):
            if (target / name).exists():
                os.rename(target / name, replaced / name)
        for name in names:
            os.rename(Path(source) / name, target / name)
    except BaseException:
        # what is new goes, and what was there is whole again
        for name in reversed(names):
            if not (Path(source) / name).exists():
                (target / name).unlink()
        for name in names:
            if (replaced / name).exists():
                os.rename(replaced / name, target / name)
        replaced.rmdir()
        raise
    shutil.rmtree(replaced)


def read_saved(
    dir_path: str, prefix: str | None, model_name: str, weights_only: bool = True, backup_url: str | None = None
) -> list[str]:
    """Gene names of a saved model, after a look at what its folder holds; downloaded first if it is not there.

    Raises a ValueError if there is no such model, or one of another class, or the file is cut short or could run code.
    """
    folder = Path(dir_path)
    path = folder / f"{prefix or ''}{SAVE_KEYS.MODEL_FNAME}"
    if backup_url and not path.is_file():
        download(backup_url, str(folder), path.name)  # to look at it as well
    if not path.is_file():
        raise ValueError(_missing(folder, path))
    if weights_only:
        try:
            saved = checked_load(path, "dir_path")
        except ValueError as error:
            advice = (
                " Models of other classes may; of your own files, weights_only=False tells."
                if "run code" in str(error)
                else ""
            )
            raise ValueError(f"{error}{advice}") from error
    else:
        saved = torch.load(path, map_location="cpu", weights_only=False, mmap=True)
    if not isinstance(saved, dict) or (missing := [key for key in _PARTS if key not in saved]):
        parts = examples(missing) if isinstance(saved, dict) else examples(_PARTS)
        raise ValueError(f"{str(path)!r} is not a model of scvi-tools: it lacks {parts}.")
    found = saved[SAVE_KEYS.ATTR_DICT_KEY].get("registry_", {}).get("model_name")
    if found != model_name:
        raise ValueError(
            f"{str(path)!r} holds a model of the class {found}, not {model_name}. Load it with {found}.load()."
        )
    return [str(name) for name in saved[SAVE_KEYS.VAR_NAMES_KEY]]


def _missing(folder: Path, path: Path) -> str:
    """Why there is no model, and where one may be."""
    parent = folder.absolute().parent
    beside = sorted(path for kind in ("replaced", "saving") for path in parent.glob(f".{folder.name}.*.{kind}"))
    broken = f" A save was broken off: its files are in {examples(beside)}." if beside else ""
    if not folder.is_dir():
        return f"dir_path={str(folder)!r} is not a folder.{broken}"
    suffix = SAVE_KEYS.MODEL_FNAME
    prefixes = sorted(file.name.removesuffix(suffix) for file in folder.glob(f"*{suffix}") if file.name != suffix)
    others = f" It has models with the prefixes: {examples(prefixes)}." if prefixes else ""
    held = examples(sorted(file.name for file in folder.iterdir()))
    return f"dir_path={str(folder)!r} has no file {path.name!r}: it holds {held}.{others}{broken}"
