"""Means and variances of groups of cells, against loops."""

from contextlib import nullcontext

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from transverse._groups import find_groups, group_codes, group_profiles


def make(n=40, n_genes=6, seed=0):
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame(
        {
            "drug": pd.Categorical(rng.choice(["b", "a", "c"], n), ["c", "b", "unused", "a"]),
            "line": rng.choice([10, 9], n),
        },
        index=[f"cell {i}" for i in range(n)],
    )
    matrix = rng.gamma(2, size=(n, n_genes)) * (rng.random((n, n_genes)) > 0.4)
    return ad.AnnData(matrix.astype(np.float32), obs=obs)


def writable_strings():
    """The strings of pandas 3 are written only if one asks for it, and older versions of anndata have no such setting."""
    if hasattr(ad.settings, "allow_write_nullable_strings"):
        return ad.settings.override(allow_write_nullable_strings=True)
    return nullcontext()


def by_hand(adata, by, matrix):
    groups = {}
    for i in range(adata.n_obs):
        groups.setdefault(tuple(str(adata.obs[key].iloc[i]) for key in by), []).append(i)
    keys = sorted(groups)
    rows = [np.asarray(matrix, dtype=float)[groups[key]] for key in keys]
    variance = [((x - x.mean(0)) ** 2).sum(0) / max(len(x) - 1, 1) for x in rows]
    return keys, np.stack([x.mean(0) for x in rows]), np.stack(variance), [len(x) for x in rows]


@pytest.mark.parametrize("by", [["drug"], ["drug", "line"], ["line", "drug"], []])
@pytest.mark.parametrize("form", ["dense", "csr", "csc", "layer", "integers", "backed dense", "backed sparse"])
def test_against_loops(tmp_path, by, form):
    adata = make()
    matrix = np.asarray(adata.X)
    if form == "integers":
        matrix = adata.X = np.round(matrix * 10).astype(np.int32)
    elif form == "layer":
        adata.layers["values"], adata.X = sp.csr_matrix(matrix), np.zeros(adata.shape)
    elif form in ("csr", "backed sparse"):
        adata.X = sp.csr_matrix(matrix)
    elif form == "csc":
        adata.X = sp.csc_matrix(matrix)
    if form.startswith("backed"):
        with writable_strings():
            adata.write_h5ad(tmp_path / "cells.h5ad")
        adata = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    found = group_profiles(adata, by, "values" if form == "layer" else None)
    keys, mean, variance, n_cells = by_hand(adata, by, matrix)
    assert [tuple(row) for row in found.keys.to_numpy()] == keys
    assert list(found.keys.columns) == by
    np.testing.assert_allclose(found.mean, mean)
    np.testing.assert_allclose(found.variance, variance, atol=1e-12)
    np.testing.assert_array_equal(found.n_cells, n_cells)


def test_many_blocks():
    adata = make(n=20_000, n_genes=3)
    found = group_profiles(adata, ["drug"])
    _, mean, variance, n_cells = by_hand(adata, ["drug"], adata.X)
    np.testing.assert_allclose(found.mean, mean)
    np.testing.assert_allclose(found.variance, variance)
    np.testing.assert_array_equal(found.n_cells, n_cells)


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix])
def test_some_cells(form):
    adata = make()
    taken = np.flatnonzero((adata.obs["drug"] != "b").to_numpy())[::2]
    wanted = group_profiles(adata[taken], ["drug"])
    adata.X = form(adata.X)
    found = group_profiles(adata, ["drug"], cells=taken)
    assert found.keys["drug"].tolist() == ["a", "b", "c"]
    assert found.n_cells[1] == 0 and not found.mean[1].any() and not found.variance[1].any()
    np.testing.assert_allclose(found.mean[[0, 2]], wanted.mean)
    np.testing.assert_allclose(found.variance[[0, 2]], wanted.variance)
    np.testing.assert_array_equal(found.n_cells[[0, 2]], wanted.n_cells)


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix])
def test_constant_genes_have_no_variance(form):
    adata = make(n=4000)
    matrix = np.tile([0.1, 1 / 3, 1e7 / 3, 0, -2.7, 1.0], (4000, 1))
    matrix[:, 5] += 1e-3 * np.arange(4000) % 2
    adata.X = form(matrix)
    found = group_profiles(adata, ["drug"])
    assert (found.variance[:, :5] == 0).all() and (found.variance[:, 5] > 0).all()
    alone = group_profiles(adata[:1], ["drug"])
    assert (alone.variance == 0).all() and alone.n_cells == [1]


def test_codes_and_find():
    adata = make()
    keys, codes = group_codes(adata, ["line", "drug"])
    assert keys["line"].tolist() == ["10"] * 3 + ["9"] * 3 and keys["drug"].tolist() == list("abcabc")
    labels = adata.obs[["line", "drug"]].astype(str)
    assert (keys.iloc[codes].to_numpy() == labels.to_numpy()).all()
    wanted = pd.DataFrame({"drug": ["c", "a", "d"], "other": 0, "line": ["9", "10", "9"]})
    assert find_groups(keys, wanted).tolist() == [5, 0, -1]
    assert group_profiles(adata, ["drug"]).find(wanted).tolist() == [2, 0, -1]
    keys, codes = group_codes(adata, [])
    assert len(keys) == 1 and not codes.any() and find_groups(keys, wanted).tolist() == [0, 0, 0]


def test_the_input_stays(tmp_path):
    adata = make()
    before = adata.copy()
    group_profiles(adata, ["drug", "line"])
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    np.testing.assert_array_equal(adata.X, before.X)


def test_errors():
    adata = make()
    with pytest.raises(KeyError, match="'dose' is not in adata.obs"):
        group_codes(adata, ["dose"])
    adata.obs.loc["cell 3", "drug"] = None
    with pytest.raises(ValueError, match=r"adata.obs\['drug'\] is missing for 1 cells: 'cell 3'"):
        group_profiles(adata, ["drug"])
    with pytest.raises(ValueError, match=r"truth.obs\['drug'\] is missing for 1 cells"):
        group_codes(adata, ["drug"], "truth")
