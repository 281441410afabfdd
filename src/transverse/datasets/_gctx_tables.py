"""Tables of signatures and genes in GCTX files and beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from transverse._validation import examples

MATRIX = "0/DATA/0/matrix"
MISSING = -666
_COL, _ROW = "0/META/COL", "0/META/ROW"


def read_tables(file: h5py.File, path) -> tuple[pd.DataFrame, pd.DataFrame, bool]:
    """Signatures, genes, and whether the data set has genes in its rows."""
    for part in (MATRIX, _COL, _ROW, f"{_COL}/id", f"{_ROW}/id"):
        if part not in file:
            found: list[str] = []
            file.visit(found.append)
            raise ValueError(f"path: {path} is not a GCTX file: it lacks '/{part}'. It has: {examples(found)}.")
    signatures, genes = _read_table(file[_COL], path), _read_table(file[_ROW], path)
    shape, expected = file[MATRIX].shape, (len(signatures), len(genes))
    if shape not in (expected, expected[::-1]):
        raise ValueError(
            f"path: the matrix of {path} must be signatures x genes or genes x signatures; the metadata have "
            f"{expected[0]} signatures and {expected[1]} genes, but its shape is {shape}."
        )
    return signatures, genes, shape != expected


def _read_table(group: h5py.Group, path) -> pd.DataFrame:
    columns = {name: _decode(item) for name, item in group.items() if isinstance(item, h5py.Dataset)}
    index = _ids(columns.pop("id"))
    if not index.is_unique:
        repeated = examples(index[index.duplicated()].unique())
        raise ValueError(f"path: ids in '{group.name}' of {path} must be unique, but these repeat: {repeated}.")
    for name, values in columns.items():
        if len(values) != len(index):
            raise ValueError(f"path: '{group.name}/{name}' of {path} has {len(values)} values, but 'id' {len(index)}.")
    return _tidy(pd.DataFrame(columns, index=index))


def _ids(values) -> pd.Index:
    """Identifiers as text: Entrez ids may be numbers in one place and text in another."""
    return pd.Index(
        [
            str(int(value)) if isinstance(value, (float, np.floating)) and value == value // 1 else str(value).strip()
            for value in values
        ],
        dtype=object,
    )


def _decode(item: h5py.Dataset) -> np.ndarray:
    values = np.atleast_1d(item[()]).ravel()
    if values.dtype.kind == "S":
        return np.char.decode(values, "latin-1").astype(object)
    if values.dtype.kind == "O":
        encoding = h5py.check_string_dtype(item.dtype).encoding
        return np.array([_text(value, encoding) for value in values], dtype=object)
    return values


def _text(value: bytes | str, encoding: str) -> str:
    if isinstance(value, str):
        return value
    try:
        return value.decode("utf-8" if encoding == "utf-8" else "latin-1")
    except UnicodeDecodeError:  # declared UTF-8, but written as Latin-1 all the same
        return value.decode("latin-1")


def _tidy(table: pd.DataFrame) -> pd.DataFrame:
    """NaN for what is missing, and text as categories."""
    tidy = {}
    for name, values in table.items():
        if isinstance(values.dtype, pd.CategoricalDtype):
            values = values.astype(values.cat.categories.dtype)
        if pd.api.types.is_bool_dtype(values):
            tidy[name] = values
        elif pd.api.types.is_numeric_dtype(values):
            tidy[name] = values.where(values != MISSING) if (values == MISSING).any() else values
        else:
            text = np.array([str(value).strip() for value in values], dtype=object)
            gone = values.isna().to_numpy() | np.isin(text, [str(MISSING), f"{MISSING}.0"])
            tidy[name] = pd.Categorical(np.where(gone, None, text))
    return pd.DataFrame(tidy, index=table.index)


def join_metadata(table: pd.DataFrame, metadata, argument: str, id_columns: Sequence[str]) -> pd.DataFrame:
    is_file = not isinstance(metadata, pd.DataFrame)
    if is_file:
        if not Path(metadata).is_file():
            raise FileNotFoundError(f"{argument}: there is no file {str(metadata)!r}.")
        metadata = pd.read_csv(metadata, sep="\t", low_memory=False, encoding="latin-1")
    named = [name for name in id_columns if name in metadata]
    by = named[0] if named else metadata.columns[0] if is_file else None
    known = _ids(metadata.index if by is None else metadata[by])
    where = "its index" if by is None else f"its column {by!r}"
    if not known.is_unique:
        repeated = examples(known[known.duplicated()].unique())
        raise ValueError(f"{argument}: ids in {where} must be unique, but these repeat: {repeated}.")
    rows = known.get_indexer(table.index)
    if (rows < 0).any():
        raise ValueError(
            f"{argument}: {int((rows < 0).sum())} of {len(table)} ids of the file are not in {where}: "
            f"{examples(table.index[rows < 0])}. It has, for example: {examples(known)}."
        )
    joined = _tidy(metadata.iloc[rows].set_axis(table.index, axis=0).drop(columns="id", errors="ignore"))
    return pd.concat([table.drop(columns=[name for name in table if name in joined]), joined], axis=1)
