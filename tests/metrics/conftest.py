"""A small screen, in all the forms that the scores of responses take, and a check that inputs stay as they were."""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

GENES = [f"G{i:02d}" for i in range(12)]


def build(seed=0, contexts=("A", "B"), perturbations=("P1", "P2", "P3"), genes=GENES):
    """Non-negative cells of every condition: true, predicted, and the controls of either; shuffled."""
    rng = np.random.default_rng(seed)
    base = {c: rng.gamma(2, 1, len(genes)) for c in contexts}
    effect = {p: rng.normal(0, 1, len(genes)) for p in perturbations}

    def cells(name, groups, shift):
        rows, obs = [], []
        for group in groups:
            n = int(rng.integers(3, 8))
            rows.append(rng.normal(base[group[-1]] + shift(*group), 1, (n, len(genes))))
            obs += [group] * n
        order = rng.permutation(len(obs))
        columns = ["perturbation", "cell_type"] if len(groups[0]) == 2 else ["cell_type"]
        obs = pd.DataFrame(obs, columns=columns).iloc[order]
        obs.index = [f"{name}{i}" for i in range(len(obs))]
        matrix = np.maximum(np.concatenate(rows)[order], 0).astype(np.float32)
        return ad.AnnData(matrix, obs=obs, var=pd.DataFrame(index=list(genes)))

    conditions = [(p, c) for p in perturbations for c in contexts]
    alone = [(c,) for c in contexts]
    return SimpleNamespace(
        truth=cells("true", conditions, lambda p, c: effect[p]),
        pred=cells("pred", conditions, lambda p, c: 0.6 * effect[p] + 0.3),
        control=cells("scores", alone, lambda c: 0),
        pred_control=cells("predicts", alone, lambda c: 0),
    )


def convert(adata, kind, path):
    """The same cells as ``kind``; with "layer", only the layer "values" holds them."""
    adata = adata.copy()
    if kind == "csr":
        adata.X = sp.csr_matrix(adata.X)
    elif kind == "csc":
        adata.X = sp.csc_matrix(adata.X)
    elif kind == "layer":
        adata.layers["values"] = sp.csr_matrix(adata.X)
        adata.X = np.full(adata.shape, 99.0)
    elif kind == "view":
        padded = ad.concat([adata, adata], keys=["kept", "dropped"], index_unique="-", label="copy")
        return padded[(padded.obs["copy"] == "kept").to_numpy()]
    elif kind.startswith("backed"):
        if kind == "backed sparse":
            adata.X = sp.csr_matrix(adata.X)
        with writable_strings():
            adata.write_h5ad(path)
        return ad.read_h5ad(path, backed="r")
    return adata


def writable_strings():
    """The strings of pandas 3 are written only if one asks for it, and older versions of anndata have no such setting."""
    if hasattr(ad.settings, "allow_write_nullable_strings"):
        return ad.settings.override(allow_write_nullable_strings=True)
    return nullcontext()


def array(matrix):
    return matrix.toarray() if sp.issparse(matrix) else np.asarray(matrix)


def assert_same(left, right):
    np.testing.assert_array_equal(array(left.X), array(right.X))
    pd.testing.assert_frame_equal(left.obs, right.obs)
    pd.testing.assert_frame_equal(left.var, right.var)
    # where anndata counts X among the layers, its key is None
    names = {name for name in left.layers if name is not None}
    assert names == {name for name in right.layers if name is not None}
    for name in names:
        np.testing.assert_array_equal(array(left.layers[name]), array(right.layers[name]))
    assert dict(left.uns) == dict(right.uns)


@contextmanager
def stays(*adatas):
    before = [adata.copy() for adata in adatas]
    yield
    for left, right in zip(adatas, before, strict=True):
        assert_same(left, right)


@pytest.fixture
def make_screen():
    return build


@pytest.fixture
def screen():
    return build()


@pytest.fixture
def as_kind(tmp_path):
    def of(adata, kind, name="cells"):
        return convert(adata, kind, tmp_path / f"{name}.h5ad")

    return of


@pytest.fixture
def unchanged():
    return stays
