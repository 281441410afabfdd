"""The energy distance, against double loops and what is known of it."""

from itertools import product

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import transverse as tv

score = tv.metrics.energy_distance


def pick(table, metric="energy_distance"):
    return table[table["metric"] == metric]["value"].to_numpy()


def loop(first, second, metric="euclidean", unbiased=True):
    def distance(a, b):
        squared = sum((u - v) ** 2 for u, v in zip(a.tolist(), b.tolist(), strict=True))
        return squared if metric == "sqeuclidean" else squared**0.5

    def within(cells):
        pairs = [distance(a, b) for (i, a), (j, b) in product(enumerate(cells), repeat=2) if not unbiased or i != j]
        return sum(pairs) / len(pairs)

    between = [distance(a, b) for a, b in product(first, second)]
    return 2 * sum(between) / len(between) - within(first) - within(second)


def cells_of(adata, **where):
    rows = np.ones(adata.n_obs, dtype=bool)
    for key, value in where.items():
        rows &= (adata.obs[key] == value).to_numpy()
    return np.asarray(adata.X, dtype=float)[rows]


@pytest.mark.parametrize("kind", ["dense", "csr", "csc", "layer", "view", "backed dense", "backed sparse"])
@pytest.mark.parametrize(("metric", "unbiased"), [("euclidean", True), ("euclidean", False), ("sqeuclidean", True)])
def test_against_double_loop(screen, as_kind, unchanged, kind, metric, unbiased):
    layer = "values" if kind == "layer" else None
    truth, control = as_kind(screen.truth, kind, "truth"), as_kind(screen.control, kind, "control")
    pred = as_kind(screen.pred, "dense" if layer else kind, "pred")
    with unchanged(*(side for side in (truth, pred, control) if not side.isbacked)):
        found = score(truth, pred, control, metric=metric, unbiased=unbiased, layer=layer)
    assert list(found.columns) == ["perturbation", "cell_type", "of", "genes", "metric", "value", "n_cells"]
    assert set(found["of"]) == {"cells"} and set(found["genes"]) == {"all"}
    between, to_control, n = [], [], []
    for p, c in found[["perturbation", "cell_type"]].drop_duplicates().itertuples(index=False):
        y = cells_of(screen.truth, perturbation=p, cell_type=c)
        between.append(loop(y, cells_of(screen.pred, perturbation=p, cell_type=c), metric, unbiased))
        to_control.append(loop(y, cells_of(screen.control, cell_type=c), metric, unbiased))
        n.append(len(y))
    np.testing.assert_allclose(pick(found), between, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(pick(found, "energy_distance_control"), to_control, rtol=1e-9, atol=1e-9)
    # the share is of distances that stay above 0
    share = []
    for p, c in found[["perturbation", "cell_type"]].drop_duplicates().itertuples(index=False):
        y = cells_of(screen.truth, perturbation=p, cell_type=c)
        left = loop(y, cells_of(screen.pred, perturbation=p, cell_type=c), metric, False)
        share.append(left / loop(y, cells_of(screen.control, cell_type=c), metric, False))
    np.testing.assert_allclose(pick(found, "energy_distance_left"), share, rtol=1e-9)
    np.testing.assert_array_equal(found["n_cells"], n * 3)


def test_genes_in_another_order_and_arrays(screen):
    wanted = score(screen.truth, screen.pred, screen.control)
    found = score(screen.truth, screen.pred[:, ::-1], screen.control[:, ::-1])
    pd.testing.assert_frame_equal(found, wanted)
    y, x = (cells_of(side, perturbation="P1", cell_type="A") for side in (screen.truth, screen.pred))
    value = pick(wanted)[0]
    names = list(screen.truth.var_names)
    frame = pd.DataFrame(x, columns=names)[names[::-1]]
    np.testing.assert_allclose(pick(score(pd.DataFrame(y, columns=names), frame)), value)
    np.testing.assert_allclose(pick(score(sp.csr_matrix(y), sp.csr_array(x))), value)
    only = score(y, x)
    np.testing.assert_allclose(pick(only), value)
    assert set(only["metric"]) == {"energy_distance"} and list(only["n_cells"]) == [len(y)]


def test_without_contexts(screen):
    found = score(screen.truth, screen.pred, screen.control, context_key=None)
    assert list(found.columns[:2]) == ["perturbation", "of"]
    y, x = (cells_of(side, perturbation="P2") for side in (screen.truth, screen.pred))
    np.testing.assert_allclose(pick(found)[1], loop(y, x))
    np.testing.assert_allclose(pick(found, "energy_distance_control")[1], loop(y, cells_of(screen.control)))


def test_many_cells_in_blocks():
    rng = np.random.default_rng(0)
    y, x = rng.normal(100, 1, (2200, 3)), rng.normal(100.5, 1, (150, 3))

    def mean_distance(a, b):
        return np.mean([np.sqrt(((b - row) ** 2).sum(1)).mean() for row in a])

    wanted = 2 * mean_distance(y, x) - mean_distance(y, y) - mean_distance(x, x)
    np.testing.assert_allclose(pick(score(y, x, unbiased=False, max_cells=3000)), wanted, rtol=1e-9)


def test_unbiased_of_equal_distributions_is_zero_at_any_number():
    rng = np.random.default_rng(0)
    biased = []
    for n in (3, 12, 48):
        obs = pd.DataFrame({"perturbation": np.repeat([f"P{i}" for i in range(150)], n).astype(str)})
        obs.index = obs.index.astype(str)
        truth, pred = (ad.AnnData(rng.normal(size=(150 * n, 5)), obs=obs) for _ in range(2))
        values = pick(score(truth, pred, context_key=None))
        assert abs(values.mean()) < min(0.12, 4 * values.std() / np.sqrt(150))
        biased.append(pick(score(truth, pred, context_key=None, unbiased=False)).mean())
    # each cell's distance to itself weighs 1 / n
    assert biased[0] > 3 * biased[1] > 9 * biased[2] > 0


def test_squared_distance_sees_the_means_only():
    rng = np.random.default_rng(0)
    y, x = rng.normal(size=(20, 6)), rng.normal(0.5, 3, size=(9, 6))
    gap = 2 * ((y.mean(0) - x.mean(0)) ** 2).sum()
    np.testing.assert_allclose(pick(score(y, x, metric="sqeuclidean", unbiased=False)), gap)
    noise = 2 * sum(cells.var(0, ddof=1).sum() / len(cells) for cells in (y, x))
    np.testing.assert_allclose(pick(score(y, x, metric="sqeuclidean")), gap - noise)
    # the same mean, another spread
    wide = y.mean(0) + 3 * (y - y.mean(0))
    np.testing.assert_allclose(pick(score(y, wide, metric="sqeuclidean", unbiased=False)), 0, atol=1e-9)
    assert pick(score(y, wide, unbiased=False)) > 1


def test_share_that_is_left():
    rng = np.random.default_rng(0)
    y, c = rng.normal(2, 1, (150, 8)), rng.normal(0, 1, (150, 8))
    left = "energy_distance_left"
    assert 0 < pick(score(y, rng.normal(2, 1, (150, 8)), c), left) < 0.02
    np.testing.assert_allclose(pick(score(y, y, c), left), 0, atol=1e-9)
    np.testing.assert_allclose(pick(score(y, c, c), left), 1)
    half = pick(score(y, rng.normal(1, 1, (150, 8)), c), left)
    assert 0.05 < half < 0.6
    # controls that are the true cells leave nothing to share, and those of equal distribution nothing to gain
    assert np.isnan(pick(score(y, c, y), left))
    same = [rng.normal(2, 1, (150, 8)) for _ in range(2)]
    assert 0.7 < pick(score(y, *same), left) < 1.4


def test_components():
    rng = np.random.default_rng(0)
    y, x, c = rng.normal(1, 1, (15, 6)), rng.normal(0.5, 1, (9, 6)), rng.normal(0, 1, (12, 6))
    wanted = score(y, x, c)["value"]
    # all components: a rotation
    np.testing.assert_allclose(score(y, x, c, n_components=6)["value"], wanted)
    observed = np.concatenate([y, c])
    axes = np.linalg.svd(observed - observed.mean(0), full_matrices=False)[2][:2]
    found = score(y, x, c, n_components=2)
    np.testing.assert_allclose(pick(found), loop(y @ axes.T, x @ axes.T))
    np.testing.assert_allclose(pick(found, "energy_distance_control"), loop(y @ axes.T, c @ axes.T))
    for n in (0, 7, 2.5):
        with pytest.raises(ValueError, match=f"n_components={n} must be a whole number between 1 and 6"):
            score(y, x, c, n_components=n)


def test_cells_are_drawn_by_seed():
    rng = np.random.default_rng(0)
    y, x = rng.normal(size=(60, 4)), rng.normal(1, 1, size=(50, 4))
    draws = [pick(score(y, x, max_cells=20, seed=seed))[0] for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    # 20 different cells of either
    few = [np.repeat(np.arange(3.0), 20)[:, None], np.repeat(np.arange(3.0), 20)[:, None] + 10]
    assert pick(score(few[0], few[1], max_cells=60)) == pytest.approx(loop(few[0], few[1]))
    every = pick(score(y, x))
    assert abs(np.mean([pick(score(y, x, max_cells=20, seed=s)) for s in range(60)]) - every) < 0.1 * every
    assert score(y, x, max_cells=20)["n_cells"].tolist() == [60]


def test_conditions(screen):
    some = screen.pred[(screen.pred.obs["perturbation"] == "P2").to_numpy()]
    found, every = score(screen.truth, some), score(screen.truth, screen.pred)
    pd.testing.assert_frame_equal(found, every[every["perturbation"] == "P2"].reset_index(drop=True))
    truth = screen.truth[(screen.truth.obs["perturbation"] != "P2").to_numpy()]
    with pytest.raises(ValueError, match=r"truth has no cells of 2 of the predicted .* groups: 'P2 \| A', 'P2 \| B'"):
        score(truth, screen.pred)
    control = screen.control[(screen.control.obs["cell_type"] == "A").to_numpy()]
    with pytest.raises(ValueError, match="control has no cells of 1 of the predicted cell_type groups: 'B'"):
        score(screen.truth, screen.pred, control)


def test_errors(screen):
    with pytest.raises(ValueError, match="metric='cosine' must be one of sqeuclidean, euclidean"):
        score(screen.truth, screen.pred, metric="cosine")
    for wrong in (1, 2.5):
        with pytest.raises(ValueError, match=f"max_cells={wrong} must be a whole number of at least 2"):
            score(screen.truth, screen.pred, max_cells=wrong)
    first = (
        ~screen.pred.obs["perturbation"].duplicated().to_numpy() | (screen.pred.obs["perturbation"] == "P3").to_numpy()
    )
    context = screen.pred.obs["cell_type"][first].iloc[0]
    name = screen.pred.obs["perturbation"][first].iloc[0]
    where = {"perturbation": name, "cell_type": context}
    alone = screen.pred[first & (screen.pred.obs[list(where)] == pd.Series(where)).all(axis=1).to_numpy()]
    alone = alone[:1]
    with pytest.raises(ValueError, match=rf"pred must have at least 2 cells of a condition, but has 1 of '{name} \| "):
        score(screen.truth, alone)
    with pytest.raises(ValueError, match="pred must have at least 2 cells of a condition, but has 1.$"):
        score(np.ones((3, 2)), np.ones(2))
    with pytest.raises(TypeError, match="Give AnnData throughout or arrays throughout"):
        score(screen.truth, np.ones((2, 12)))
    with pytest.raises(ValueError, match="genes of truth are missing in pred"):
        score(screen.truth, screen.pred[:, 1:])
