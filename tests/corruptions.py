"""Ways in which data and arguments can be wrong, and what must hold of a call with them."""

import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

import transverse as tv

PACKAGE = str(Path(tv.__file__).parent)
OURS = (ValueError, KeyError, TypeError, RuntimeError)


def dense(x) -> np.ndarray:
    return x.toarray() if sp.issparse(x) else np.array(x)


# ---- of the data: functions of an AnnData, the keys of the model by argument, and a random generator


def _values(change: Callable) -> Callable:
    def corrupt(adata, keys, rng):
        if adata.X is None:
            return
        x = dense(adata.X)
        if x.size:
            x = change(x.astype(np.float64), rng)
        adata.X = sp.csr_matrix(x) if rng.random() < 0.5 and x.dtype != object else x

    return corrupt


def _put(value):
    def change(x, rng):
        for _ in range(rng.integers(1, 4)):
            x[rng.integers(x.shape[0]), rng.integers(x.shape[1])] = value
        return x.astype(np.float32)

    return change


def _key(keys, rng):
    return list(keys.values())[rng.integers(len(keys))]


def _column(change: Callable) -> Callable:
    def corrupt(adata, keys, rng):
        key = _key(keys, rng)
        if key in adata.obs and adata.n_obs:
            adata.obs[key] = change(adata.obs[key].astype(object), rng)

    return corrupt


def _some(column, rng, value):
    column = column.copy()
    column.iloc[rng.integers(len(column), size=rng.integers(1, 4))] = value
    return column


def _drop(adata, keys, rng):
    adata.obs = adata.obs.drop(columns=_key(keys, rng), errors="ignore")


def _drop_var(adata, keys, rng):
    if len(adata.var.columns):
        adata.var = adata.var.drop(columns=adata.var.columns[rng.integers(len(adata.var.columns))])


def _repeat_names(axis):
    def corrupt(adata, keys, rng):
        names = list(getattr(adata, axis))
        if len(names) > 1:
            names[rng.integers(1, len(names))] = names[0]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                setattr(adata, axis, names)

    return corrupt


def _subset(rows, columns):
    def corrupt(adata, keys, rng):
        n, g = adata.shape
        cells = rng.permutation(n)[: rows if rows is None else min(rows, n)]
        genes = rng.permutation(g)[: columns if columns is None else min(columns, g)]
        part = adata[np.sort(cells), np.sort(genes)].copy()
        adata._init_as_actual(part)

    return corrupt


def _without(which):
    """No control at all, or none in one of the groups; or nothing but control."""

    def corrupt(adata, keys, rng):
        columns = [key for key in keys.values() if key in adata.obs and "control" in set(adata.obs[key].astype(str))]
        if not columns:
            return
        control = (adata.obs[columns[0]].astype(str) == "control").to_numpy()
        keep = ~control if which == "control" else control
        if which == "control here":
            others = [key for key in keys.values() if key in adata.obs and key != columns[0]]
            group = adata.obs[others[rng.integers(len(others))]].astype(str).to_numpy() if others else control
            keep = ~(control & (group == group[rng.integers(len(group))]))
        adata._init_as_actual(adata[keep].copy())

    return corrupt


def _no_matrix(adata, keys, rng):
    adata.X = None


def _names(kind):
    def corrupt(adata, keys, rng):
        if kind == "genes":
            adata.var_names = [f"unknown{i}" for i in range(adata.n_vars)]
        elif kind == "case":
            adata.var_names = adata.var_names.str.swapcase()
        else:
            order = rng.permutation(adata.n_vars)
            adata._init_as_actual(adata[:, order].copy())

    return corrupt


def _other_case(x, rng):
    """Counts where log-normalised values are needed, and the reverse."""
    return np.log1p(x / max(x.sum(), 1) * 1e4).astype(np.float32) if rng.random() < 0.5 else np.floor(np.abs(x) * 9)


def _empty_rows(x, rng):
    x[rng.integers(x.shape[0], size=rng.integers(1, 4))] = 0
    return x.astype(np.float32)


def _empty_columns(x, rng):
    x[:, rng.integers(x.shape[1], size=rng.integers(1, 4))] = 0
    return x.astype(np.float32)


DATA = {
    "NaN": _values(_put(np.nan)),
    "infinite": _values(_put(np.inf)),
    "negative": _values(_put(-1.0)),
    "fraction": _values(_put(0.5)),
    "huge": _values(_put(1e30)),
    "empty rows": _values(_empty_rows),
    "empty columns": _values(_empty_columns),
    "all zero": _values(lambda x, rng: np.zeros_like(x, dtype=np.float32)),
    "other scale": _values(_other_case),
    "dense or sparse": _values(lambda x, rng: x.astype(np.float32)),
    "text": _values(lambda x, rng: x.astype(str).astype(object)),
    "bool": _values(lambda x, rng: x > 0),
    "int8": _values(lambda x, rng: np.clip(x, -100, 100).astype(np.int8)),
    "no matrix": _no_matrix,
    "no column": _drop,
    "no column of var": _drop_var,
    "missing values": _column(lambda column, rng: _some(column, rng, np.nan)),
    "None": _column(lambda column, rng: _some(column, rng, None)),
    "all missing": _column(lambda column, rng: pd.Series(np.nan, index=column.index)),
    "empty text": _column(lambda column, rng: _some(column, rng, "")),
    "mixed types": _column(lambda column, rng: _some(column, rng, 7)),
    "one group": _column(lambda column, rng: pd.Series(column.iloc[0], index=column.index)),
    "all different": _column(lambda column, rng: pd.Series([f"g{i}" for i in range(len(column))], index=column.index)),
    "numbers": _column(lambda column, rng: pd.Series(rng.random(len(column)), index=column.index)),
    "dates": _column(lambda column, rng: pd.Series(pd.date_range("2020", periods=len(column)), index=column.index)),
    "bools": _column(lambda column, rng: pd.Series(rng.random(len(column)) < 0.5, index=column.index)),
    "a group of one": _column(lambda column, rng: _some(column, rng, "alone")),
    "obs_names repeat": _repeat_names("obs_names"),
    "var_names repeat": _repeat_names("var_names"),
    "no cells": _subset(0, None),
    "no genes": _subset(None, 0),
    "one cell": _subset(1, None),
    "two cells": _subset(2, None),
    "one gene": _subset(None, 1),
    "few genes": _subset(None, 5),
    "no control": _without("control"),
    "no control here": _without("control here"),
    "nothing but control": _without("treated"),
    "other genes": _names("genes"),
    "other case": _names("case"),
    "other order": _names("order"),
}
#: What is no AnnData, or an argument of the wrong kind.
ARGUMENTS = {
    "unknown": lambda value: "no such thing",
    "empty": lambda value: "",
    "number": lambda value: 3,
    "list": lambda value: [value],
    "None": lambda value: None,
    "bytes": lambda value: b"x",
}


def snapshot(adata: ad.AnnData) -> dict:
    """All of an object, to compare it by."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "X": None if adata.X is None else dense(adata.X).copy(),
            "type": type(adata.X),
            "obs": adata.obs.copy(),
            "var": adata.var.copy(),
            "uns": sorted(adata.uns),
            "obsm": sorted(adata.obsm),
            "layers": sorted(key for key in adata.layers if key),
        }


def changes(before: dict, after: dict, ignore_scvi: bool) -> list[str]:
    """What of an object has changed; with ``ignore_scvi``, but for what scvi-tools registers."""
    found = []
    if (before["X"] is None) != (after["X"] is None) or before["type"] != after["type"]:
        found.append("X")
    elif before["X"] is not None:
        same = before["X"].dtype == after["X"].dtype and before["X"].shape == after["X"].shape
        if not same or before["X"].tobytes() != after["X"].tobytes() and not (before["X"] == after["X"]).all():
            found.append("X")
    for key in ("obs", "var"):
        one, other = before[key], after[key]
        if ignore_scvi:
            other = other[[name for name in other if name in one or not str(name).startswith("_scvi")]]
        if not (one.index.equals(other.index) and list(one) == list(other) and one.equals(other)):
            found.append(key)
    for key in ("uns", "obsm", "layers"):
        other = [name for name in after[key] if not (ignore_scvi and name.startswith("_scvi"))]
        if before[key] != other:
            found.append(key)
    return found


def foreign(error: BaseException) -> str | None:
    """Where an error comes from if it is not one of ours: raised elsewhere, or of a kind that says nothing."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    if isinstance(error, OURS) and frame.filename.startswith(PACKAGE) and str(error):
        return None
    return f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno} ({frame.name}): {str(error)[:100]}"


def attempt(case, names: list[str], seed: int, argument: str | None = None, model=None) -> tuple[str, str | None]:
    """Corrupt data and use them; returns what happened and, if it must not, what was wrong.

    Without a model the data are set up, trained on and predicted from; with one they are new data for it.
    """
    rng = np.random.default_rng(seed)
    adata = case.data()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            DATA[name](adata, case.keys, rng)
        setup = {}
        if argument is not None:
            key = list(case.keys)[rng.integers(len(case.keys))]
            setup[key] = ARGUMENTS[argument](case.keys[key])
        before = snapshot(adata)
        registered = False
        try:
            if model is None:
                case.cls.setup_anndata(adata, **{**case.keys, **case.setup, **setup})
                registered = True
                made = case.build(adata)
                case.fit(made, 1)
                results = case.all_results(made)
            else:
                results = {"latent": model.get_latent_representation(adata)}
        except Exception as error:  # noqa: BLE001
            wrong = foreign(error)
            outcome = "refused"
        else:
            wrong, outcome = None, "worked"
            for key, values in results.items():
                if values.dtype != object and not np.isfinite(values).all():
                    wrong = f"{key} is not finite"
        changed = changes(before, snapshot(adata), ignore_scvi=registered or model is not None)
    if changed:
        wrong = f"{wrong or ''} changed: {changed} ({outcome})"
    return outcome, wrong
