"""Scores of signatures, against their formulas."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import transverse as tv

score = tv.metrics.signature_scores


def ranks(x):
    return np.array([(x < v).sum() + ((x == v).sum() + 1) / 2 for v in x])


def pearson(x, y):
    x, y = x - x.mean(), y - y.mean()
    return (x @ y) / np.sqrt((x @ x) * (y @ y))


def by_hand(y, p):
    e, spread = y - p, ((y - y.mean()) ** 2).sum()
    return {
        "r2": 1 - (e @ e) / spread,
        "explained_variance": 1 - ((e - e.mean()) ** 2).sum() / spread,
        "pearson": pearson(y, p),
        "spearman": pearson(ranks(y), ranks(p)),
        "rmse": np.sqrt((e @ e) / len(e)),
    }


def signatures(seed, repeats=1):
    rng = np.random.default_rng(seed)
    conditions = [(p, c) for p in ("D1", "D2", "D3") for c in ("L1", "L2")] * repeats
    order = rng.permutation(len(conditions))
    obs = pd.DataFrame(conditions, columns=["perturbation", "cell_type"]).iloc[order]
    obs.index = [f"s{seed} {i}" for i in range(len(obs))]
    return ad.AnnData(rng.normal(size=(len(obs), 10)), obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(10)]))


def mean(adata, p, c):
    rows = (adata.obs["perturbation"] == p) & (adata.obs["cell_type"] == c)
    return np.asarray(adata.X)[rows.to_numpy()].mean(0)


@pytest.mark.parametrize("kind", ["dense", "csr", "layer", "view", "backed dense", "backed sparse"])
def test_against_formulas(as_kind, unchanged, kind):
    plain_truth, plain_pred = signatures(0, repeats=3), signatures(1, repeats=2)
    truth = as_kind(plain_truth, kind, "truth")
    pred = as_kind(plain_pred[:, ::-1], "dense" if kind == "layer" else kind, "pred")
    with unchanged(*(side for side in (truth, pred) if not side.isbacked)):
        found = score(truth, pred, n_top=(3, 6, 10, 99), layer="values" if kind == "layer" else None)
    assert list(found.columns) == ["perturbation", "cell_type", "of", "genes", "metric", "value", "n_cells"]
    assert set(found["of"]) == {"signature"} and set(found["genes"]) == {"all", "top 3", "top 6"}
    assert set(found["n_cells"]) == {3} and len(found) == 6 * 3 * 5
    for row in found.itertuples():
        y, p = (mean(side, row.perturbation, row.cell_type) for side in (plain_truth, plain_pred))
        n = 10 if row.genes == "all" else int(row.genes.split()[1])
        genes = sorted(range(10), key=lambda g: -abs(y[g]))[:n]
        assert row.value == pytest.approx(by_hand(y[genes], p[genes])[row.metric])


def test_clip_and_constants():
    truth, pred = signatures(0), signatures(1)
    plain, clipped = score(truth, pred), score(truth, pred, clip=True)
    variance = plain["metric"].isin(["r2", "explained_variance"])
    assert (plain["value"][variance] < 0).any()
    np.testing.assert_array_equal(clipped["value"], plain["value"].where(~variance, plain["value"].clip(lower=0)))
    y = np.array([0.1, 0.5, -1])
    found = score(np.stack([y, np.zeros(3)]), np.stack([np.zeros(3), y])).set_index(["metric", "row"])["value"]
    assert found["pearson", 0] == found["spearman", 0] == 0
    assert found[["pearson", "spearman", "r2", "explained_variance"]].isna().groupby("row").sum().tolist() == [0, 4]


def test_conditions_that_are_not_predicted_are_ignored():
    truth, pred = signatures(0, repeats=2), signatures(1)
    some = pred[(pred.obs["perturbation"] == "D2").to_numpy()]
    every = score(truth, pred)
    pd.testing.assert_frame_equal(score(truth, some), every[every["perturbation"] == "D2"].reset_index(drop=True))
    with pytest.raises(ValueError, match=r"truth has no signatures of 2 predicted conditions: 'D2 \| L1', 'D2 \| L2'"):
        score(truth[(truth.obs["perturbation"] != "D2").to_numpy()], pred)


def test_without_cell_types():
    truth, pred = signatures(0), signatures(1)
    found = score(truth, pred, cell_type_key=None)
    assert list(found.columns)[:2] == ["perturbation", "of"] and set(found["n_cells"]) == {2}
    means = [np.asarray(side.X)[(side.obs["perturbation"] == "D1").to_numpy()].mean(0) for side in (truth, pred)]
    assert found["value"][found["metric"] == "r2"].iloc[0] == pytest.approx(by_hand(*means)["r2"])


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix, pd.DataFrame, lambda x: x.tolist()])
def test_arrays_are_matched_by_row(form):
    truth, pred = np.random.default_rng(0).normal(size=(2, 4, 7))
    found = score(form(truth), form(pred), n_top=3)
    assert list(found.columns) == ["row", "of", "genes", "metric", "value", "n_cells"] and set(found["n_cells"]) == {1}
    for row in found[found["genes"] == "all"].itertuples():
        assert row.value == pytest.approx(by_hand(truth[row.row], pred[row.row])[row.metric])
    one = score(truth[0], pred[0])
    np.testing.assert_allclose(one["value"], found[(found["genes"] == "all") & (found["row"] == 0)]["value"])


def test_genes_of_data_frames_are_matched_by_name():
    truth, pred = np.random.default_rng(0).normal(size=(2, 4, 5))
    names = list("abcde")
    frame = pd.DataFrame(pred, columns=names).assign(extra=9.0)[["e", "extra", "a", "c", "b", "d"]]
    pd.testing.assert_frame_equal(score(pd.DataFrame(truth, columns=names), frame), score(truth, pred))
    with pytest.raises(ValueError, match="1 of the 5 genes of truth are missing in pred: 'a'"):
        score(pd.DataFrame(truth, columns=names), frame.drop(columns="a"))


def test_errors():
    truth, pred = signatures(0), signatures(1)
    with pytest.raises(
        TypeError, match="truth and pred must both be AnnData or both arrays, but are AnnData and ndarray"
    ):
        score(truth, pred.X)
    with pytest.raises(ValueError, match="pred must have the 3 genes of truth, but has 4"):
        score(np.ones((2, 3)), np.ones((2, 4)))
    with pytest.raises(ValueError, match="truth and pred must have as many rows, but have 2 and 3"):
        score(np.ones((2, 3)), np.ones((3, 3)))
    with pytest.raises(ValueError, match="missing or infinite values"):
        score(np.ones((2, 3)), np.array([[1, 2, np.nan]] * 2))
    with pytest.raises(ValueError, match="layer='z' needs AnnData, but truth is ndarray"):
        score(np.ones((2, 3)), np.ones((2, 3)), layer="z")
    with pytest.raises(KeyError, match="'drug' is not in truth.obs. Columns: 'perturbation', 'cell_type'"):
        score(truth, pred, perturbation_key="drug")
    with pytest.raises(KeyError, match="layer='z' is not in truth.layers"):
        score(truth, pred, layer="z")
    with pytest.raises(ValueError, match="pred has no signatures"):
        score(truth, pred[:0])
    with pytest.raises(ValueError, match="1 of the 10 genes of truth are missing in pred: 'G0'"):
        score(truth, pred[:, 1:])
    with pytest.raises(ValueError, match="n_top must be whole numbers"):
        score(truth, pred, n_top=0)
    bad = pred.copy()
    bad.X[0, 0] = np.inf
    with pytest.raises(ValueError, match="pred.X has missing or infinite values"):
        score(truth, bad)
    bad = pred.copy()
    bad.obs["cell_type"] = bad.obs["cell_type"].astype(object)
    bad.obs.iloc[0, 1] = None
    with pytest.raises(ValueError, match=r"pred.obs\['cell_type'\] is missing for 1 cells"):
        score(truth, bad)
