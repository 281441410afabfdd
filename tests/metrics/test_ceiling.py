"""The noise ceiling, where signal and noise are known."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import transverse as tv

score = tv.metrics.noise_ceiling


def pick(table, ceiling="split half", metric="pearson", of="change", genes="all"):
    rows = (table["ceiling"] == ceiling) & (table["metric"] == metric) & (table["of"] == of) & (table["genes"] == genes)
    return table[rows]["value"].to_numpy()


def simulate(seed, signal=0.5, n=20, n_control=60, n_perturbations=4, n_genes=800):
    """Normal cells of unit variance, a base that all share, and independent changes with variance ``signal``²."""
    rng = np.random.default_rng(seed)
    base, effects = rng.normal(0, 2, n_genes), signal * rng.normal(size=(n_perturbations, n_genes))
    obs = pd.DataFrame({"perturbation": np.repeat([f"P{i}" for i in range(n_perturbations)], n).astype(str)})
    obs["cell_type"] = "A"
    obs.index = [f"cell {i}" for i in range(len(obs))]
    truth = ad.AnnData(base + np.repeat(effects, n, 0) + rng.normal(size=(len(obs), n_genes)), obs=obs)
    names = [f"control {i}" for i in range(n_control)]
    control = ad.AnnData(
        base + rng.normal(size=(n_control, n_genes)), obs=pd.DataFrame({"cell_type": "A"}, index=names)
    )
    return truth, control, effects


@pytest.mark.parametrize("signal", [0.15, 0.5])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_reliability(signal, seed):
    n, n_control = 20, 60
    truth, control, effects = simulate(seed, signal, n, n_control)
    found = score(truth, control, n_splits=20, n_top=None, seed=seed)
    noise = 1 / n + 1 / n_control
    half = signal**2 / (signal**2 + 2 * noise)
    whole = signal / np.sqrt(signal**2 + noise)
    assert pick(found).mean() == pytest.approx(half, abs=0.05)
    measured = truth.X.reshape(4, n, -1).mean(1) - control.X.mean(0)
    true = [np.corrcoef(effect, change)[0, 1] for effect, change in zip(effects, measured, strict=True)]
    free = pick(found, "noise-free")
    assert free.mean() == pytest.approx(whole, abs=0.05)
    np.testing.assert_allclose(free, true, atol=0.1 if signal < 0.5 else 0.03)
    r = pick(found)
    np.testing.assert_allclose(free, np.sqrt(2 * r / (1 + r)))


def test_noise_has_no_ceiling():
    found = [score(*simulate(seed, 0)[:2], n_splits=10, n_top=None, seed=seed) for seed in range(4)]
    assert abs(np.concatenate([pick(table) for table in found]).mean()) < 0.02
    free = np.concatenate([pick(table, "noise-free") for table in found])
    r = np.concatenate([pick(table) for table in found])
    assert (r < 0).any() and (free[r < 0] == 0).all() and (free >= 0).all()
    # expression looks well all the same
    assert all((pick(table, of="expression") > 0.9).all() for table in found)


def mean_of_halvings(screen, n_splits, seed, n_top):
    """The same halvings, each scored as any prediction."""
    rng = np.random.default_rng(seed)
    tables = []
    for _ in range(n_splits):
        halves = []
        for side, by in ((screen.truth, ["perturbation", "cell_type"]), (screen.control, ["cell_type"])):
            taken = np.zeros(side.n_obs, dtype=bool)
            for _, cells in sorted(side.obs.groupby(by).indices.items()):
                taken[rng.permutation(cells)[: len(cells) // 2]] = True
            halves.append((side[taken], side[~taken]))
        (pred, truth), (pred_control, control) = halves
        tables.append(tv.metrics.response_scores(truth, pred, control, pred_control=pred_control, n_top=n_top))
    return tables[0].assign(value=np.mean([table["value"] for table in tables], 0))


@pytest.mark.parametrize("kind", ["dense", "csr", "layer", "view", "backed dense", "backed sparse"])
def test_halves_are_scored_like_predictions(screen, as_kind, unchanged, kind):
    layer = "values" if kind == "layer" else None
    truth, control = as_kind(screen.truth, kind, "truth"), as_kind(screen.control[:, ::-1], kind, "control")
    with unchanged(*(side for side in (truth, control) if not side.isbacked)):
        found = score(truth, control, n_splits=3, seed=7, n_top=4, layer=layer)
    half = found[found["ceiling"] == "split half"].drop(columns="ceiling")
    pd.testing.assert_frame_equal(half, mean_of_halvings(screen, 3, 7, 4))
    free = found[found["ceiling"] == "noise-free"]
    assert free[["of", "genes", "metric"]].drop_duplicates().to_numpy().tolist() == [["change", "all", "pearson"]]
    assert len(free) == 6


def test_the_prediction_layer_of_the_truth_does_not_matter(screen):
    plain = score(screen.truth, screen.control, n_splits=2)
    screen.truth.layers["control"] = np.zeros(screen.truth.shape)
    screen.truth.obs["control_cell"] = screen.control.obs_names[0]
    pd.testing.assert_frame_equal(score(screen.truth, screen.control, n_splits=2), plain)


def test_options_and_seed(screen):
    found = score(screen.truth, screen.control, n_splits=2, n_top=[3, 5], clip=True)
    assert set(found["genes"]) == {"all", "top 3", "top 5"}
    assert (found["value"][found["metric"] == "r2"] >= 0).all()
    chosen = {p: list(screen.truth.var_names[:4]) for p in ("P1", "P2", "P3")}
    assert set(score(screen.truth, screen.control, n_splits=1, top_genes=chosen)["genes"]) == {"all", "chosen"}
    first, again, other = (score(screen.truth, screen.control, n_splits=2, seed=s) for s in (1, 1, 2))
    pd.testing.assert_frame_equal(first, again)
    assert not np.allclose(pick(first), pick(other))


def test_without_contexts_and_other_columns(screen):
    found = score(screen.truth, screen.control, context_key=None, n_splits=1)
    assert list(found.columns) == ["perturbation", "of", "genes", "metric", "value", "n_cells", "ceiling"]
    truth, control = screen.truth.copy(), screen.control.copy()
    # a name that was once used inside
    truth.obs = truth.obs.rename(columns={"perturbation": "condition"})
    named = score(truth, control, perturbation_key="condition", context_key=None, n_splits=1)
    assert named["condition"].tolist() == found["perturbation"].tolist()
    np.testing.assert_array_equal(named["value"], found["value"])


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix, pd.DataFrame])
def test_arrays(form):
    truth, control, _ = simulate(0, n_perturbations=1)
    wanted = score(truth, control, n_splits=2, seed=3)
    found = score(form(truth.X), form(control.X), n_splits=2, seed=3)
    pd.testing.assert_frame_equal(found, wanted.drop(columns=["perturbation", "cell_type"]))


def test_summary_keeps_the_ceilings_apart(screen):
    found = tv.metrics.summarize(score(screen.truth, screen.control, n_splits=1))
    rows = found[(found["metric"] == "pearson") & (found["of"] == "change") & (found["genes"] == "all")]
    assert sorted(rows["ceiling"]) == ["noise-free", "split half"] and (rows["n"] == 6).all()


def test_errors(screen):
    truth, control = screen.truth, screen.control
    for n in (0, 2.5, "3"):
        with pytest.raises(ValueError, match="n_splits=.* must be a whole number of at least 1"):
            score(truth, control, n_splits=n)
    with pytest.raises(ValueError, match="control is needed: without it"):
        score(truth, None)
    with pytest.raises(TypeError, match="noise_ceiling passes on n_top, top_genes and clip, but got 'pred_control'"):
        score(truth, control, pred_control=control)
    with pytest.raises(TypeError, match="Give AnnData throughout or arrays throughout, but got truth: AnnData"):
        score(truth, np.ones((4, 12)))
    first = ~truth.obs.duplicated().to_numpy()
    with pytest.raises(
        ValueError,
        match=r"truth must have at least 2 cells of each perturbation and cell_type to be halved, but some have 1: 'P1 \| A'",
    ):
        score(truth[first], control)
    with pytest.raises(ValueError, match="control must have at least 2 cells of each cell_type to be halved"):
        score(truth, control[~control.obs.duplicated().to_numpy()])
    with pytest.raises(ValueError, match="control has no cells of 1 of the predicted cell_type groups: 'B'"):
        score(truth, control[(control.obs["cell_type"] == "A").to_numpy()])
    with pytest.raises(KeyError, match="perturbation_key='drug' is not in truth.obs"):
        score(truth, control, perturbation_key="drug")
    with pytest.raises(KeyError, match="layer='counts' is not in truth.layers"):
        score(truth, control, layer="counts")
    with pytest.raises(ValueError, match="n_top must be whole numbers"):
        score(truth, control, n_top=1)
    with pytest.raises(ValueError, match="genes of truth are missing in control"):
        score(truth, control[:, 1:])
