"""Predicted over true variance, among cells and among conditions."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import transverse as tv

score = tv.metrics.variance_ratio


def pick(table, metric="variance_ratio"):
    return table[table["metric"] == metric].reset_index(drop=True)


def cells_of(adata, **where):
    rows = np.ones(adata.n_obs, dtype=bool)
    for key, value in where.items():
        rows &= (adata.obs[key] == value).to_numpy()
    return np.asarray(adata.X, dtype=float)[rows]


def variance(rows):
    rows = np.asarray(rows)
    return (((rows - rows.mean(0)) ** 2).sum(0) / (len(rows) - 1)).sum()


@pytest.mark.parametrize("kind", ["dense", "csr", "layer", "view", "backed dense", "backed sparse"])
@pytest.mark.parametrize("controls", [True, False])
def test_against_computation_by_hand(screen, as_kind, unchanged, kind, controls):
    layer = "values" if kind == "layer" else None
    truth, control = as_kind(screen.truth, kind, "truth"), as_kind(screen.control, kind, "control")
    pred_control = as_kind(screen.pred_control, kind, "pred_control")
    pred = as_kind(screen.pred[:, ::-1], "dense" if layer else kind, "pred")
    sides = {"control": control, "pred_control": pred_control} if controls else {}
    with unchanged(*(side for side in (truth, pred) if not side.isbacked)):
        found = score(truth, pred, layer=layer, **sides)
    assert list(found.columns) == ["perturbation", "cell_type", "of", "genes", "metric", "value", "n_cells"]
    within, between = pick(found), pick(found, "variance_ratio_between")
    assert set(within["of"]) == {"cells"} and set(between["of"]) == {"change"}
    assert len(within) == 6 and list(between["cell_type"]) == ["A", "B"] and set(between["perturbation"]) == {"all"}
    for row in within.itertuples():
        where = {"perturbation": row.perturbation, "cell_type": row.cell_type}
        y, x = cells_of(screen.truth, **where), cells_of(screen.pred, **where)
        assert row.value == pytest.approx(variance(x) / variance(y)) and row.n_cells == len(y)
    for row in between.itertuples():
        means = [
            [cells_of(side, perturbation=p, cell_type=row.cell_type).mean(0) for p in ("P1", "P2", "P3")]
            for side in (screen.pred, screen.truth)
        ]
        assert row.value == pytest.approx(variance(means[0]) / variance(means[1]))
        assert row.n_cells == len(cells_of(screen.truth, cell_type=row.cell_type))


def test_between_is_of_the_change(screen):
    """Every prediction from other control cells: the cells' own differences are not the perturbations'."""
    pred = screen.pred.copy()
    rng = np.random.default_rng(0)
    pred.layers["control"] = (
        rng.normal(size=pred.shape) + 5 * pred.obs["perturbation"].str[1:].astype(int).to_numpy()[:, None]
    )
    pred.X = pred.layers["control"] + 1.5
    between = pick(score(screen.truth, pred, screen.control), "variance_ratio_between")
    np.testing.assert_allclose(between["value"], 0, atol=1e-12)
    assert (pick(score(screen.truth, pred), "variance_ratio_between")["value"] > 1).all()


def test_mode_collapse(screen):
    pred = screen.pred.copy()
    pred.X = np.tile(np.arange(12.0), (pred.n_obs, 1))
    found = score(screen.truth, pred)
    np.testing.assert_allclose(found["value"], 0, atol=1e-12)
    perfect = score(screen.truth, screen.truth.copy())
    np.testing.assert_allclose(perfect["value"], 1)


def test_without_contexts(screen):
    found = score(screen.truth, screen.pred, context_key=None)
    assert "cell_type" not in found and len(pick(found, "variance_ratio_between")) == 1
    y, x = (
        [cells_of(side, perturbation=p).mean(0) for p in ("P1", "P2", "P3")] for side in (screen.truth, screen.pred)
    )
    np.testing.assert_allclose(pick(found, "variance_ratio_between")["value"], variance(x) / variance(y))


def test_single_cells_and_single_conditions(screen):
    first = ~screen.pred.obs.duplicated().to_numpy()
    found = score(screen.truth, screen.pred[first])
    assert pick(found)["value"].isna().all() and pick(found, "variance_ratio_between")["value"].notna().all()
    first = ~screen.truth.obs.duplicated().to_numpy()
    assert pick(score(screen.truth[first], screen.pred))["value"].isna().all()
    one = (screen.pred.obs["perturbation"] == "P1").to_numpy()
    found = score(screen.truth, screen.pred[one])
    assert pick(found, "variance_ratio_between")["value"].isna().all() and pick(found)["value"].notna().all()
    flat = screen.truth.copy()
    flat.X = np.full(flat.shape, 0.1)
    assert score(flat, screen.pred)["value"].isna().all()


def test_arrays():
    rng = np.random.default_rng(0)
    y, x = rng.normal(size=(5, 4)), rng.normal(size=(7, 4))
    found = score(y, x)
    assert found["metric"].tolist() == ["variance_ratio"]
    np.testing.assert_allclose(found["value"], variance(x) / variance(y))
    assert score(y, x[0])["value"].isna().all()
    frame = pd.DataFrame(x, columns=list("abcd")).assign(extra=rng.normal(100, 100, 7))
    named = score(pd.DataFrame(y, columns=list("abcd")), frame)
    np.testing.assert_allclose(named["value"], variance(x) / variance(y))


def test_controls(screen):
    sides = (screen.truth, screen.pred, screen.control)
    with pytest.raises(ValueError, match="control cells that score are also those that predict"):
        score(*sides, pred_control=screen.control)
    score(*sides, pred_control=screen.control, allow_shared_controls=True)
    with pytest.warns(UserWarning, match="halved at random"):
        pd.testing.assert_frame_equal(score(*sides, seed=2), score(*sides, seed=2))
    with pytest.raises(ValueError, match="genes of truth are missing in pred"):
        score(screen.truth, screen.pred[:, 1:])


def test_small_variances_and_two_conditions_of_two_cells():
    """Nothing below 1, or of the fewest cells and conditions that have a variance, is left out."""
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"perturbation": ["P1", "P1", "P2", "P2"], "cell_type": "T"}, index=list("abcd"))
    var = pd.DataFrame(index=["g1", "g2", "g3"])
    x, y = 0.1 * rng.normal(size=(2, 4, 3)) + np.array([0, 0, 1, 1])[:, None]
    truth, pred = (AnnData(values, obs=obs.copy(), var=var.copy()) for values in (x, y))
    found = score(truth, pred)
    np.testing.assert_allclose(pick(found)["value"], [variance(y[r]) / variance(x[r]) for r in (slice(2), slice(2, 4))])
    means = [np.stack([values[:2].mean(0), values[2:].mean(0)]) for values in (y, x)]
    np.testing.assert_allclose(pick(found, "variance_ratio_between")["value"], variance(means[0]) / variance(means[1]))
