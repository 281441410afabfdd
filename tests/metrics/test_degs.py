"""Overlap and direction of the genes that respond, and the test that finds them."""

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.stats

import transverse as tv

score = tv.metrics.deg_scores


def pick(table, metric, genes):
    return table[(table["metric"] == metric) & (table["genes"] == genes)]["value"].to_numpy()


def welch(a, b):
    """Two-sided p values of Welch's t test of columns, the t distribution integrated numerically."""
    va, vb = a.var(0, ddof=1) / len(a), b.var(0, ddof=1) / len(b)
    t = (a.mean(0) - b.mean(0)) / np.sqrt(va + vb)
    df = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    # t = sqrt(df) tan(angle) turns the density into cos(angle)^(df - 1)
    edges = np.linspace(0, np.pi / 2, 20001)
    middle = (edges[1:] + edges[:-1]) / 2
    return np.array(
        [(np.cos(middle) ** (d - 1) * (middle > np.arctan(abs(x) / np.sqrt(d)))).sum() / (np.cos(middle) ** (d - 1)).sum()
         for x, d in zip(t, df, strict=True)]
    )  # fmt: skip


def benjamini_hochberg(p, level):
    """The k smallest, k the largest rank whose p value is below its share of the level."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    passing = [k for k in range(1, len(p) + 1) if p[order[k - 1]] < level * k / len(p)]
    return set(order[: max(passing, default=0)])


def largest(change, n):
    return set(sorted(range(len(change)), key=lambda g: -abs(change[g]))[:n])


def by_hand(y, x, c, k, n, fdr):
    dy, dx = y.mean(0) - c.mean(0), x.mean(0) - k.mean(0)
    top, found = largest(dy, n), benjamini_hochberg(welch(y, c), fdr)

    def overlap(genes):
        return len({g for g in largest(dx, len(genes)) if dx[g] != 0} & genes) / len(genes) if genes else np.nan

    def direction(genes):
        return np.mean([dy[g] * dx[g] > 0 for g in genes]) if genes else np.nan

    return [overlap(top), direction(top), len(found), overlap(found), direction(found)]


def test_welch_by_hand_is_right():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 6)), rng.normal(1, 2, size=(7, 6))
    np.testing.assert_allclose(welch(a, b), scipy.stats.ttest_ind(a, b, equal_var=False).pvalue, atol=2e-4)


@pytest.mark.parametrize("kind", ["dense", "csr", "layer", "backed dense", "backed sparse"])
@pytest.mark.parametrize("fdr", [0.05, 0.4])
def test_against_computation_by_hand(screen, as_kind, unchanged, kind, fdr):
    layer = "values" if kind == "layer" else None
    truth, control = as_kind(screen.truth, kind, "truth"), as_kind(screen.control, kind, "control")
    pred_control = as_kind(screen.pred_control, kind, "pred_control")
    with unchanged(screen.pred):
        found = score(truth, screen.pred, control, pred_control=pred_control, n_top=4, fdr=fdr, layer=layer)
    assert list(found.columns) == ["perturbation", "cell_type", "of", "genes", "metric", "value", "n_cells"]
    assert set(found["of"]) == {"change"} and set(found["genes"]) == {"top 4", "significant"}
    wanted = []
    for p, c in found[["perturbation", "cell_type"]].drop_duplicates().itertuples(index=False):
        sides = [screen.truth, screen.pred, screen.control, screen.pred_control]
        cells = [
            np.asarray(
                side.X[((side.obs.get("perturbation", p) == p) & (side.obs["cell_type"] == c)).to_numpy()], dtype=float
            )
            for side in sides
        ]
        wanted.append(by_hand(*cells, n=4, fdr=fdr))
    columns = [("deg_overlap", "top 4"), ("deg_direction", "top 4"), ("n_deg", "significant")]
    columns += [("deg_overlap", "significant"), ("deg_direction", "significant")]
    np.testing.assert_allclose(np.stack([pick(found, *column) for column in columns], 1), wanted)
    assert np.sum([row[2] for row in wanted]) > 0


def planted(rng, n=40, n_genes=200, n_deg=20):
    """Cells with a known set of genes that respond, up and down."""
    effect = np.zeros(n_genes)
    effect[:n_deg] = np.where(np.arange(n_deg) % 3 == 0, -3, 3)
    return rng.normal(effect, 1, (n, n_genes)), rng.normal(0, 1, (n, n_genes)), effect


def test_planted_genes_are_found():
    found_true, found_false = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        y, c, effect = planted(rng)
        perfect = score(y, effect, c, pred_control=np.zeros(200), n_top=20, fdr=0.1)
        assert pick(perfect, "deg_overlap", "top 20") == 1
        assert pick(perfect, "deg_direction", "top 20") == pick(perfect, "deg_direction", "top 20") == 1
        n = pick(perfect, "n_deg", "significant")[0]
        found_true.append(pick(perfect, "deg_overlap", "significant")[0] * n)
        found_false.append(max(n - 20, 0) / n)
        opposite = score(y, -effect, c, pred_control=np.zeros(200), n_top=20)
        assert pick(opposite, "deg_overlap", "top 20") == 1 and pick(opposite, "deg_direction", "top 20") == 0
    np.testing.assert_allclose(found_true, 20)
    assert 0.01 < np.mean(found_false) < 0.15


def test_nothing_is_significant_in_noise():
    rng = np.random.default_rng(0)
    y, c = rng.normal(size=(2, 15, 300))
    found = score(y, rng.normal(size=300), c, pred_control=np.zeros(300), fdr=0.01, n_top=None)
    assert set(found["genes"]) == {"significant"}
    assert pick(found, "n_deg", "significant") == 0
    assert np.isnan([pick(found, m, "significant")[0] for m in ("deg_overlap", "deg_direction")]).all()


def test_chance():
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"perturbation": [f"P{i}" for i in range(300)]}, index=[f"cell {i}" for i in range(300)])
    truth, pred = (ad.AnnData(rng.normal(size=(300, 100)), obs=obs) for _ in range(2))
    control, pred_control = (ad.AnnData(np.zeros((1, 100))) for _ in range(2))
    found = score(truth, pred, control, pred_control=pred_control, n_top=20, context_key=None)
    assert abs(pick(found, "deg_overlap", "top 20").mean() - 20 / 100) < 0.02
    assert abs(pick(found, "deg_direction", "top 20").mean() - 0.5) < 0.03


def test_no_predicted_change_scores_nothing():
    rng = np.random.default_rng(0)
    y, c, _ = planted(rng)
    k = rng.normal(size=(30, 200))
    found = score(y, k, c, pred_control=k.mean(0), n_top=(20, 50))
    for genes in ("top 20", "top 50", "significant"):
        assert pick(found, "deg_overlap", genes) == pick(found, "deg_direction", genes) == 0
    # nor does a gene without a change in either
    found = score([5.0, 0, 0, 0, 0], [1.0, 0, 0, 0, 0], np.zeros(5), pred_control=np.zeros(5), n_top=2)
    assert pick(found, "deg_overlap", "top 2") == pick(found, "deg_direction", "top 2") == 0.5


def test_numbers_that_all_genes_do_not_exceed_are_left_out(screen):
    found = score(screen.truth, screen.pred, screen.control, pred_control=screen.pred_control, n_top=[3, 11, 12, 50])
    assert list(found["genes"].unique()) == ["top 3", "top 11", "significant"]


def test_constant_genes():
    """Rounding of the mean of many equal values is not a difference."""
    rng = np.random.default_rng(0)
    y, c = rng.normal(size=(23, 6)), rng.normal(size=(3001, 6))
    y[:, :2], c[:, :2] = [0.1, 1e6 / 3], [0.1, 1e6 / 3]
    y[:, 2], c[:, 2] = 0.1, 0.3
    y[:, 3], c[:, 3] = 2.5, 0
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        found = score(y, np.arange(6.0), c, pred_control=np.zeros(6), n_top=None, fdr=1e-6)
    # those whose constants differ, among the largest two predicted changes: none of 4 and 5
    assert pick(found, "n_deg", "significant") == 2
    assert pick(found, "deg_overlap", "significant") == 0
    assert pick(found, "deg_direction", "significant") == 0.5


def test_no_test_with_one_cell():
    rng = np.random.default_rng(0)
    many, one = rng.normal(size=(5, 8)), rng.normal(5, size=(1, 8))
    for y, c in ((many, one), (one, many), (one, one + 1)):
        found = score(y, rng.normal(size=8), c, pred_control=rng.normal(size=8), n_top=3)
        assert np.isnan(found.loc[found["genes"] == "significant", "value"]).all()
        assert found.loc[found["genes"] == "top 3", "value"].notna().all()


def test_halving_and_shared_controls(screen):
    with pytest.warns(UserWarning, match="halved at random"):
        first = score(screen.truth, screen.pred, screen.control, n_top=4, seed=1)
        again = score(screen.truth, screen.pred, screen.control, n_top=4, seed=1)
    pd.testing.assert_frame_equal(first, again)
    with pytest.raises(ValueError, match="control cells that score are also those that predict"):
        score(screen.truth, screen.pred, screen.control, pred_control=screen.control)
    score(screen.truth, screen.pred, screen.control, pred_control=screen.control, allow_shared_controls=True)


def test_errors(screen):
    sides = (screen.truth, screen.pred, screen.control)
    for fdr in (0, 1, -0.1, np.nan):
        with pytest.raises(ValueError, match="fdr=.* must be between 0 and 1"):
            score(*sides, fdr=fdr)
    with pytest.raises(ValueError, match="control is needed: genes respond relative to it"):
        score(screen.truth, screen.pred, None)
    with pytest.raises(ValueError, match="n_top must be whole numbers of at least 2, but has '1'"):
        score(*sides, n_top=[1, 5])
    with pytest.raises(ValueError, match="1 of the 12 genes of truth are missing in pred: 'G11'"):
        score(screen.truth, screen.pred[:, :-1], screen.control)
    renamed = ad.AnnData(screen.pred.X, obs=screen.pred.obs.assign(perturbation="new"), var=screen.pred.var)
    with pytest.raises(ValueError, match="truth has no cells of 2 of the predicted"):
        score(screen.truth, renamed, screen.control, pred_control=screen.pred_control)
