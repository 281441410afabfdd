"""Shifts carried between contexts, by hand and exact on simulated expectations."""

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import transverse as tv

MeanPerturbation, MeanShift, NearestContext, NoChange = (
    getattr(tv.baselines, name) for name in ("MeanPerturbation", "MeanShift", "NearestContext", "NoChange")
)
CONTEXTS, SINGLES = ["C1", "C2", "C3", "C4"], ["A", "B", "C"]


@pytest.fixture
def screen():
    """Cells, and by hand the mean of every condition; A was not measured in C3."""
    rng = np.random.default_rng(0)
    cells, names, means = [], [], {}
    for context in CONTEXTS:
        for name in ("control", *SINGLES):
            if (name, context) != ("A", "C3"):
                x = rng.uniform(0, 3, (int(rng.integers(2, 9)), 6))
                cells.append(x)
                names += [(name, context)] * len(x)
                means[name, context] = x.mean(0)
    obs = pd.DataFrame(names, columns=["perturbation", "cell_type"], index=[f"cell{i}" for i in range(len(names))])
    return ad.AnnData(np.concatenate(cells), obs=obs.astype("category")), means


def shift(means, name, context):
    return means[name, context] - means["control", context]


def distance(means, a, b):
    return ((means["control", a] - means["control", b]) ** 2).sum()


def simulate(**kwargs):
    params = {"n_perturbations": 6, "n_genes": 120, "n_cells_per_condition": 4, "n_control_cells_per_context": 6}
    return tv.datasets.simulate_responses(**(params | kwargs))


def held_out_scores(baseline, adata, pairs):
    """Scores of the change on the planted expectations (all controls are alike), with the conditions out of the training."""
    labels = adata.obs[["perturbation", "cell_type"]].astype(str).agg("|".join, axis=1)
    held = labels.isin(["|".join(pair) for pair in pairs]).to_numpy()
    is_control = (adata.obs["perturbation"] == "control").to_numpy()
    scoring = is_control & (np.arange(adata.n_obs) % 2 == 0)
    baseline.fit(adata[~held & ~scoring], layer="expected")
    pred = ad.concat([baseline.predict(*pair) for pair in pairs], index_unique="-")
    scores = tv.metrics.response_scores(
        adata[held], pred, adata[scoring], layer="expected", n_top=None, allow_shared_controls=True
    )
    return scores[scores["of"] == "change"].pivot(index=["perturbation", "cell_type"], columns="metric", values="value")


PAIRS = [("P01", "C1"), ("P02", "C1"), ("P03", "C2"), ("P05", "C4")]

# no change


def test_no_change(screen):
    adata, _ = screen
    baseline = NoChange().fit(adata)
    for name in ("A", "B", "A+B", "never seen"):
        pred = baseline.predict(name, "C2")
        np.testing.assert_array_equal(pred.X, pred.layers["control"])
        assert not baseline.predict_change(name, "C2").any()
        assert pred.uns["prediction"]["source"] == []
        assert pred.obs["perturbation"].unique().tolist() == [name]
    scores = held_out_scores(NoChange(), simulate(), PAIRS)
    np.testing.assert_array_equal(scores["pearson"], 0)
    assert (scores["r2"] <= 0).all()


# mean perturbation


@pytest.mark.parametrize("name", ["A", "B", "never seen"])
def test_mean_perturbation(screen, name):
    adata, means = screen
    others = [shift(means, other, "C1") for other in SINGLES if other != name]
    baseline = MeanPerturbation().fit(adata)
    np.testing.assert_allclose(baseline.predict_change(name, "C1"), np.mean(others, axis=0))
    assert baseline.predict(name, "C1").uns["prediction"]["source"] == ["C1"]


def test_mean_perturbation_of_a_new_context(screen):
    adata, means = screen
    controls_only = adata[
        (adata.obs["cell_type"] != "C1").to_numpy() | (adata.obs["perturbation"] == "control").to_numpy()
    ]
    baseline = MeanPerturbation().fit(controls_only)
    found = {c: [shift(means, name, c) for name in SINGLES if (name, c) in means] for c in CONTEXTS[1:]}
    everything = np.mean([one for shifts in found.values() for one in shifts], axis=0)
    for name in ("A", "B", "never seen"):
        np.testing.assert_allclose(baseline.predict_change(name, "C1"), everything)
    np.testing.assert_allclose(baseline.predict_change("A", "C1", source="C3"), np.mean(found["C3"], axis=0))
    assert baseline.predict("A", "C1").uns["prediction"]["source"] == CONTEXTS[1:]


def test_mean_perturbation_with_nothing_else(screen):
    adata, _ = screen
    one = adata[((adata.obs["cell_type"] == "C1") & adata.obs["perturbation"].isin(["A", "control"])).to_numpy()]
    baseline = MeanPerturbation().fit(one)
    with pytest.raises(
        ValueError, match=r"No other perturbation was measured in context='C1', and none in .* \(none\)"
    ):
        baseline.predict("A")
    assert baseline.supports("B")


# mean shift


def test_mean_shift(screen):
    adata, means = screen
    baseline = MeanShift().fit(adata)
    for name, context, sources in (
        ("B", "C1", ["C2", "C3", "C4"]),
        ("A", "C1", ["C2", "C4"]),
        ("A", "C3", ["C1", "C2", "C4"]),
    ):
        expected = np.mean([shift(means, name, c) for c in sources], axis=0)
        np.testing.assert_allclose(baseline.predict_change(name, context), expected)
        assert baseline.predict(name, context).uns["prediction"]["source"] == sources
    expected = (shift(means, "B", "C4") + shift(means, "B", "C3")) / 2
    np.testing.assert_allclose(baseline.predict_change("B", "C1", source=["C4", "C3"]), expected)


@pytest.mark.parametrize("bandwidth", [0.3, 1.0, 5.0])
@pytest.mark.parametrize(("name", "sources"), [("B", ["C1", "C3", "C4"]), ("A", ["C1", "C4"])])
def test_similarity(screen, bandwidth, name, sources):
    adata, means = screen
    distances = np.array([distance(means, "C2", c) for c in sources])
    weights = np.exp(-distances / (bandwidth * distances.min()))
    expected = weights @ [shift(means, name, c) for c in sources] / weights.sum()
    baseline = MeanShift("similarity", bandwidth=bandwidth).fit(adata)
    np.testing.assert_allclose(baseline.predict_change(name, "C2"), expected)


def test_bandwidth_reaches_from_the_nearest_to_all(screen):
    adata, _ = screen
    for context in CONTEXTS:
        near = MeanShift("similarity", bandwidth=1e-6).fit(adata).predict_change("B", context)
        np.testing.assert_allclose(near, NearestContext().fit(adata).predict_change("B", context))
        far = MeanShift("similarity", bandwidth=1e9).fit(adata).predict_change("B", context)
        np.testing.assert_allclose(far, MeanShift().fit(adata).predict_change("B", context), atol=1e-6)


# nearest context


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("name", ["A", "B"])
def test_nearest_context(screen, context, name):
    adata, means = screen
    sources = [c for c in CONTEXTS if c != context and (name, c) in means]
    nearest = min(sources, key=lambda c: distance(means, context, c))
    baseline = NearestContext().fit(adata)
    np.testing.assert_allclose(baseline.predict_change(name, context), shift(means, name, nearest))
    assert baseline.predict(name, context).uns["prediction"]["source"] == [nearest]


def test_twins(screen):
    """Of two contexts with the same controls, each has the other's shift, whatever the third does."""
    adata, means = screen
    twin = adata[(adata.obs["cell_type"] == "C1").to_numpy()].copy()
    twin.obs["cell_type"] = "twin"
    both = ad.concat([adata, twin], index_unique="-")
    for make in (NearestContext, lambda: MeanShift("similarity")):
        change = make().fit(both).predict_change("B", "twin")
        np.testing.assert_allclose(change, shift(means, "B", "C1"))
    same = simulate(n_contexts=4, n_context_groups=2, group_share=1.0, specific_share=0.8)
    np.testing.assert_allclose(held_out_scores(NearestContext(), same, PAIRS)["r2"], 1, atol=1e-6)
    assert held_out_scores(MeanShift(), same, PAIRS)["r2"].mean() < 0.8


# against planted truth


def test_mean_shift_is_exact_where_effects_are_shared():
    scores = held_out_scores(MeanShift(), simulate(specific_share=0.0), PAIRS)
    np.testing.assert_allclose(scores["r2"], 1, atol=1e-6)
    np.testing.assert_allclose(scores["pearson"], 1, atol=1e-6)
    assert (held_out_scores(MeanShift(), simulate(specific_share=0.5), PAIRS)["r2"] < 0.9).all()
    assert held_out_scores(MeanPerturbation(), simulate(specific_share=0.0), PAIRS)["r2"].max() < 0.5


def test_similarity_is_better_where_contexts_come_in_groups():
    gains = []
    for seed in range(3):
        adata = simulate(n_contexts=6, n_context_groups=3, specific_share=0.6, group_share=0.9, seed=seed)
        uniform, similar, nearest = (
            held_out_scores(make, adata, PAIRS)["r2"].mean()
            for make in (MeanShift(), MeanShift("similarity"), NearestContext())
        )
        gains.append(similar - uniform)
        assert nearest > uniform
    assert min(gains) > 0.05


def test_arguments():
    with pytest.raises(ValueError, match="weights='equal' must be 'uniform' or 'similarity'"):
        MeanShift("equal")
    for bandwidth in (0, -1, np.nan):
        with pytest.raises(ValueError, match=f"bandwidth={bandwidth} must be positive"):
            MeanShift("similarity", bandwidth=bandwidth)


def test_no_warnings(screen):
    adata, _ = screen
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)  # of other packages
        for make in (NoChange, MeanPerturbation, MeanShift, lambda: MeanShift("similarity"), NearestContext):
            make().fit(adata).predict("B", "C1")


def test_the_same_condition_of_other_animals():
    adata = tv.datasets.simulate_responses(n_contexts=2, n_perturbations=3, n_genes=60, n_replicates=3)
    options = {"by": "animal", "animal_key": "replicate"}
    tv.pp.split_responses(adata, holdout=["R1"], valid_size=0, **options)
    train = adata[adata.obs["split"] == "train"]
    here = (train.obs["cell_type"] == "C1").to_numpy()
    x, names = train.X.toarray()[here], train.obs["perturbation"][here]
    expected = x[names == "P01"].mean(0) - x[names == "control"].mean(0)
    baseline = tv.baselines.SameCondition().fit(train)
    np.testing.assert_allclose(baseline.predict_change("P01", "C1"), expected, atol=1e-4)
    table = tv.benchmark(adata, **options, n_ceiling_splits=1)
    assert "same condition, other animals" in set(table["method"])
    # with any other split it has nothing to say
    held_out = adata[~((adata.obs["perturbation"] == "P01") & (adata.obs["cell_type"] == "C1"))]
    with pytest.raises(ValueError, match="'P01' in context='C1' is not in the training: see by='animal'"):
        tv.baselines.SameCondition().fit(held_out).predict("P01", "C1")
