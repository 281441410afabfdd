"""Ranks of a prediction's own perturbation among the others of its context."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import transverse as tv

score = tv.metrics.perturbation_discrimination


def distance(a, b, metric):
    if metric == "euclidean":
        return np.sqrt(((a - b) ** 2).sum())
    if metric == "cityblock":
        return np.abs(a - b).sum()
    if metric == "correlation":
        a, b = a - a.mean(), b - b.mean()
    return 1 - (a @ b) / np.sqrt((a @ a) * (b @ b))


def mean(adata, **where):
    rows = np.ones(adata.n_obs, dtype=bool)
    for key, value in where.items():
        rows &= (adata.obs[key] == value).to_numpy()
    return np.asarray(adata.X, dtype=float)[rows].mean(0)


def profiles(changes, contexts=None, prefix="P"):
    """One cell a perturbation, named in order."""
    changes = np.asarray(changes, dtype=float)
    obs = pd.DataFrame({"perturbation": [f"{prefix}{i}" for i in range(len(changes))]})
    obs["cell_type"] = "A" if contexts is None else contexts
    obs.index = [f"cell {i}" for i in range(len(obs))]
    return ad.AnnData(changes, obs=obs)


def zeros(n, contexts=("A",)):
    obs = pd.DataFrame({"cell_type": list(contexts)}, index=[f"control {c}" for c in contexts])
    return ad.AnnData(np.zeros((len(contexts), n)), obs=obs)


def exact(truth, pred, **kwargs):
    """Scores of changes; controls are 0."""
    contexts = sorted(set(truth.obs["cell_type"]))
    control = zeros(truth.n_vars, contexts)
    pred_control = control.copy()
    pred_control.obs_names = [f"other {c}" for c in contexts]
    return score(truth, pred, control, pred_control=pred_control, **kwargs)


@pytest.mark.parametrize("metric", ["correlation", "cosine", "euclidean", "cityblock"])
@pytest.mark.parametrize("kind", ["dense", "csr", "layer", "backed dense", "backed sparse"])
def test_against_computation_by_hand(screen, as_kind, unchanged, metric, kind):
    layer = "values" if kind == "layer" else None
    truth, control = as_kind(screen.truth, kind, "truth"), as_kind(screen.control, kind, "control")
    pred_control = as_kind(screen.pred_control, kind, "pred_control")
    pred = screen.pred[(screen.pred.obs["perturbation"] != "P2").to_numpy(), ::-1].copy()
    with unchanged(pred):
        found = score(truth, pred, control, pred_control=pred_control, metric=metric, layer=layer)
    assert list(found.columns) == ["perturbation", "cell_type", "of", "genes", "metric", "value", "n_cells"]
    assert found[["of", "genes", "metric"]].drop_duplicates().to_numpy().tolist() == [
        ["change", "all", "discrimination"]
    ]
    assert len(found) == 4
    for row in found.itertuples():
        dx = mean(screen.pred, perturbation=row.perturbation, cell_type=row.cell_type)
        dx = dx - mean(screen.pred_control, cell_type=row.cell_type)
        # all three compete, though two are predicted
        gaps = {}
        for p in ("P1", "P2", "P3"):
            dy = mean(screen.truth, perturbation=p, cell_type=row.cell_type) - mean(
                screen.control, cell_type=row.cell_type
            )
            gaps[p] = distance(dx, dy, metric)
        nearer = sum(gap < gaps[row.perturbation] for gap in gaps.values())
        assert row.value == pytest.approx(1 - nearer / 2)
        own = (screen.truth.obs["perturbation"] == row.perturbation) & (screen.truth.obs["cell_type"] == row.cell_type)
        assert row.n_cells == own.sum()


def test_ranks():
    truth = profiles([[0, 1, 0], [0, 2, 0], [0, 4, 0], [0, 8, 0]])
    # distances from 4.4: 3.4, 2.4, 0.4, 3.6
    pred = profiles([[0, 4.4, 0]] * 4)
    np.testing.assert_allclose(exact(truth, pred, metric="euclidean")["value"], [1 / 3, 2 / 3, 1, 0])
    np.testing.assert_allclose(exact(truth, truth.copy(), metric="euclidean")["value"], 1)


def test_ties_share_the_mean_of_their_ranks():
    truth = profiles([[1.0, 0], [-1, 0], [3, 0], [0, 3]])
    # P0 and P1 tie first, P2 and P3 last
    pred = profiles([[0.0, 0]] * 4)
    np.testing.assert_allclose(exact(truth, pred, metric="euclidean")["value"], [5 / 6, 5 / 6, 1 / 6, 1 / 6])


@pytest.mark.parametrize("metric", ["correlation", "cosine", "euclidean", "cityblock"])
def test_the_same_prediction_for_all_has_a_mean_of_a_half(metric):
    rng = np.random.default_rng(0)
    truth = profiles(rng.normal(size=(7, 5)))
    for change in (rng.normal(size=5), np.zeros(5), truth.X.mean(0)):
        found = exact(truth, profiles([change] * 7), metric=metric)["value"]
        assert found.mean() == pytest.approx(0.5)


def test_changes_without_direction():
    rng = np.random.default_rng(0)
    changes = rng.normal(size=(5, 6))
    truth = profiles(changes)
    np.testing.assert_allclose(exact(truth, profiles(np.zeros((5, 6))))["value"], 0.5)
    np.testing.assert_allclose(exact(truth, profiles(np.full((5, 6), 0.3)))["value"], 0.5)
    # a shift of all genes alike has a direction for the cosine, though none for the correlation
    flat = exact(truth, profiles(np.full((5, 6), 0.3)), metric="cosine")["value"]
    order = np.argsort(-changes.sum(1) / np.linalg.norm(changes, axis=1))
    np.testing.assert_allclose(flat.to_numpy()[order], np.linspace(1, 0, 5))
    # a true change of nothing is as far as an unrelated one
    truth.X[2] = 0
    found = exact(truth, profiles([changes[0], -changes[0]] + [changes[0]] * 3))["value"]
    nearer = sum(distance(changes[0], changes[i], "correlation") < 1 for i in (0, 1, 3, 4))
    assert found[2] == pytest.approx(1 - nearer / 4)


def test_contexts_do_not_compete():
    rng = np.random.default_rng(0)
    changes = rng.normal(size=(3, 6))
    truth = ad.concat([profiles(changes), profiles(changes[::-1], "B")], index_unique="-")
    pred = ad.concat([profiles(changes), profiles(changes, "B")], index_unique="-")
    found = exact(truth, pred)
    values = found.set_index(["perturbation", "cell_type"])["value"]
    assert (values[:, "A"] == 1).all()
    # P0 of B predicts P2's change, and so on; P1 is right
    assert values["P1", "B"] == 1 and values["P0", "B"] < 1 and values["P2", "B"] < 1
    alone = ad.concat([profiles(changes), profiles(changes[:1], "B")], index_unique="-")
    found = exact(alone, alone.copy()).set_index("cell_type")["value"]
    assert np.isnan(found["B"]) and (found["A"] == 1).all()


def test_without_contexts():
    rng = np.random.default_rng(0)
    truth, control = profiles(rng.normal(size=(4, 6))), zeros(6)
    other = control.copy()
    other.obs_names = ["other"]
    found = score(truth, truth.copy(), control, pred_control=other, context_key=None)
    assert "cell_type" not in found and (found["value"] == 1).all()


def test_candidates():
    truth = profiles([[0.0, 1], [0, 3]])
    pred = profiles([[0.0, 1.4], [0, 1.4]])
    np.testing.assert_allclose(exact(truth, pred, metric="euclidean")["value"], [1, 0])
    # 1.5 and 1.3 are nearer, -9 is farther, the last is of another context
    more = profiles([[0.0, 1.5], [0, 1.3], [0, -9], [0, 1.4]], contexts=["A", "A", "A", "B"], prefix="Q")
    found = exact(truth, pred, candidates=more, metric="euclidean")
    np.testing.assert_allclose(found["value"], [1 - 2 / 4, 1 - 3 / 4])
    assert set(found["perturbation"]) == {"P0", "P1"}
    # a candidate that the truth has already is the truth's
    again = profiles([[0.0, 100], [0, 100]])
    np.testing.assert_allclose(exact(truth, pred, candidates=again, metric="euclidean")["value"], [1, 0])
    reordered = more.copy()
    reordered.var_names = ["1", "0"]
    reordered = ad.AnnData(more.X[:, ::-1].copy(), obs=more.obs, var=reordered.var)
    pd.testing.assert_frame_equal(exact(truth, pred, candidates=reordered, metric="euclidean"), found)
    with pytest.raises(ValueError, match="1 of the 2 genes of truth are missing in candidates: '1'"):
        exact(truth, pred, candidates=more[:, :1])
    del more.obs["perturbation"]
    with pytest.raises(KeyError, match="perturbation_key='perturbation' is not in candidates.obs"):
        exact(truth, pred, candidates=more)


def test_errors(screen):
    sides = (screen.truth, screen.pred, screen.control)
    with pytest.raises(ValueError, match="metric='l2' must be one of correlation, cosine, euclidean, cityblock"):
        score(*sides, metric="l2")
    with pytest.raises(ValueError, match="control is needed: changes are compared"):
        score(*sides[:2], None)
    rng = np.random.default_rng(0)
    y, x, c, k = rng.normal(size=(4, 5))
    with pytest.raises(TypeError, match="truth and pred must be AnnData: an array is a single condition"):
        score(y, x, c, pred_control=k)
    with pytest.raises(ValueError, match="control cells that score are also those that predict"):
        score(*sides, pred_control=screen.control)
    with pytest.raises(ValueError, match="truth has no cells of 2 of the predicted"):
        score(
            screen.truth[(screen.truth.obs["perturbation"] != "P1").to_numpy()],
            *sides[1:],
            pred_control=screen.pred_control,
        )
    with pytest.warns(UserWarning, match="halved at random"):
        pd.testing.assert_frame_equal(score(*sides, seed=3), score(*sides, seed=3))
