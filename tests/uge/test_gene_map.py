"""Genes mapped between species: the assignment, the table, planted counterparts, and what the maps do not depend on."""

import functools

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import linear_sum_assignment

import transverse as tv
from transverse.uge import PRESETS, UGE
from transverse.uge._gene_map import assignment, similarity_of

from .conftest import QUIET, build, train
from .helpers import (
    CLOSE,
    changes,
    completed,
    genes_of,
    names_of,
    planted,
    predicted,
    recall,
    similarity,
    sinkhorn,
    soft_map,
    vectors,
)

COLUMNS = ["source", "target", "score", "probability", "rank", "is_mutual_best"]


def points(shape=(12, 15), n=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(shape[0], n)), rng.normal(size=(shape[1], n))


# ---- the assignment


@pytest.mark.parametrize("shape", [(12, 12), (12, 15), (15, 12), (1, 5), (5, 1)], ids=str)
@pytest.mark.parametrize("temperature", [0.02, 0.1, 1.0])
@pytest.mark.parametrize("n_iterations", [1, 3, 50])
def test_assignment_is_sinkhorn(shape, temperature, n_iterations):
    s = -((points(shape)[0][:, None] - points(shape)[1][None]) ** 2).sum(axis=2)
    s /= -np.median(s)
    found, expected = assignment(s, temperature, n_iterations), sinkhorn(s, temperature, n_iterations)
    assert found.shape == shape
    likely = expected > -60
    np.testing.assert_allclose(found[likely], expected[likely], rtol=1e-5, atol=1e-4)
    assert (found[~likely] < -50).all()
    np.testing.assert_allclose(np.exp(found.astype(float)).sum(axis=1), 1, rtol=1e-5)


def test_assignment_has_rows_and_columns_that_sum_to_1():
    s = similarity(*points((20, 20)))
    p = np.exp(assignment(s, 0.1, 2000))
    np.testing.assert_allclose(p.sum(axis=0), 1, rtol=1e-3)
    wide = np.exp(assignment(similarity(*points((10, 25))), 0.5, 90))
    np.testing.assert_allclose(wide.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(wide.sum(axis=0), 10 / 25, rtol=1e-2)


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:divide by zero:RuntimeWarning")
@pytest.mark.parametrize("shape", [(20, 140), (20, 400), (200, 20)], ids=str)
def test_assignment_of_few_genes_to_many(shape):
    s = similarity(*points(shape))
    np.testing.assert_allclose(np.exp(assignment(s, 0.02)), np.exp(sinkhorn(s, 0.02)), atol=1e-3)


def test_hubs_are_shared_out():
    """A gene that is nearest to all others is the match of one at most."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 6))
    x = 3 * x / np.linalg.norm(x, axis=1, keepdims=True)
    other = np.vstack([x + rng.normal(0, 0.5, x.shape), np.zeros((1, 6))])
    s = similarity(x, other)
    s[:, -1] = s[:, :-1].max(axis=1) + 0.01
    assert (s.argmax(axis=1) == 20).all()
    p = np.exp(assignment(s, 0.02))
    assert (p.argmax(axis=1) == 20).sum() <= 2
    assert (p.argmax(axis=1) == np.arange(20)).mean() > 0.8


@pytest.mark.parametrize("axis", [0, 1])
def test_what_is_close_to_all_is_no_closer(axis):
    """What is added to all similarities of a gene does not change the assignment."""
    s = similarity(*points((15, 15)))
    shift = np.random.default_rng(1).normal(0, 0.3, 15)
    moved = s + (shift if axis == 0 else shift[:, None])
    np.testing.assert_allclose(
        np.exp(assignment(moved, 0.2, 500)), np.exp(assignment(s, 0.2, 500)), rtol=1e-2, atol=1e-4
    )


@pytest.mark.parametrize("temperature", [1e-2, 1e-3])
def test_a_cold_assignment_finds_a_planted_permutation(temperature):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 10))
    order = rng.permutation(40)
    s = similarity(x, x[order] + rng.normal(0, 0.05, x.shape))
    scores = assignment(s, temperature)
    assert not np.isnan(scores).any()
    np.testing.assert_array_equal(order[scores.argmax(axis=1)], np.arange(40))
    np.testing.assert_array_equal(scores.argmax(axis=1), linear_sum_assignment(-s)[1])


@pytest.mark.parametrize("temperature", [1e-6, 1e-3, 0.02, 10.0])
@pytest.mark.parametrize("shape", [(60, 60), (30, 60)], ids=str)
def test_an_assignment_is_always_one(temperature, shape):
    p = np.exp(assignment(similarity(*points(shape, seed=3)), temperature).astype(float))
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-5)


def test_similarity_has_a_median_of_minus_1():
    x, y = points()
    found = similarity_of(x, y)
    np.testing.assert_allclose(found, similarity(x, y), rtol=1e-6)
    assert np.median(found) == pytest.approx(-1)
    assert (similarity_of(np.ones((3, 2)), np.ones((4, 2))) == 0).all()


# ---- the table


def table_by_hand(model, source, target, scores, s, n_top, with_probability):
    names = names_of(model, source), names_of(model, target)
    best_of_target = scores.argmax(axis=0)
    rows = []
    for i, name in enumerate(names[0]):
        order = sorted(range(len(names[1])), key=lambda j: -scores[i, j])[:n_top]
        for rank, j in enumerate(order, 1):
            p = np.exp(scores[i, j]) if with_probability else np.nan
            rows.append((name, names[1][j], s[i, j], p, rank, rank == 1 and best_of_target[j] == i))
    return pd.DataFrame(rows, columns=COLUMNS)


@pytest.mark.parametrize(("source", "target"), [("mouse", "rat"), ("rat", "mouse")])
@pytest.mark.parametrize("method", ["assignment", "nearest"])
def test_the_table_by_hand(trained, source, target, method):
    found = trained.map_genes(source, target, n_top=4, method=method, temperature=0.05)
    s = similarity(completed(trained, source), completed(trained, target))
    scores = sinkhorn(s, 0.05) if method == "assignment" else s
    expected = table_by_hand(trained, source, target, scores, s, 4, method == "assignment")
    assert found.columns.tolist() == COLUMNS and found.index.equals(pd.RangeIndex(240))
    # genes whose scores are all but equal may change places
    same = found["target"].to_numpy() == expected["target"].to_numpy()
    assert same.mean() > 0.97
    assert found["source"].tolist() == expected["source"].tolist()
    assert found["rank"].tolist() == expected["rank"].tolist()
    np.testing.assert_allclose(found["score"][same], expected["score"][same], rtol=1e-3, atol=1e-4)
    if method == "nearest":
        assert found["probability"].isna().all()
    else:
        np.testing.assert_allclose(found["probability"][same], expected["probability"][same], rtol=1e-2, atol=1e-5)
    agree = found["is_mutual_best"].to_numpy() == expected["is_mutual_best"].to_numpy()
    assert agree.mean() > 0.97 and found["is_mutual_best"].sum() > 5


def test_defaults_of_the_table(trained):
    found = trained.map_genes("mouse", "rat")
    assert found.groupby("source", sort=False).size().eq(10).all() and found["source"].nunique() == 60
    pd.testing.assert_frame_equal(found, trained.map_genes("mouse", "rat", 10, method="assignment", temperature=0.02))
    assert found["source"].drop_duplicates().tolist() == names_of(trained, "mouse")
    assert set(found["target"]) <= set(names_of(trained, "rat"))


def test_types_of_the_table(trained):
    for method in ("assignment", "nearest"):
        found = trained.map_genes("mouse", "rat", n_top=2, method=method)
        assert found["rank"].dtype.kind == "i" and found["is_mutual_best"].dtype == bool
        assert found["score"].dtype.kind == found["probability"].dtype.kind == "f"
        assert all(isinstance(name, str) for name in [*found["source"], *found["target"]])
        assert not found.drop(columns="probability").isna().any(axis=None)


def test_ranks_follow_probabilities_and_all_add_up(trained):
    found = trained.map_genes("mouse", "rat", n_top=60)
    by_gene = found.groupby("source", sort=False)
    np.testing.assert_allclose(by_gene["probability"].sum(), 1, rtol=1e-4)
    assert by_gene["probability"].apply(lambda p: (np.diff(p) <= 0).all()).all()
    assert by_gene["target"].nunique().eq(60).all()
    nearest = trained.map_genes("mouse", "rat", n_top=60, method="nearest").groupby("source", sort=False)
    assert nearest["score"].apply(lambda s: (np.diff(s) <= 0).all()).all()


def test_nearest_mutual_bests_are_mutual(trained):
    pairs = []
    for source, target in (("mouse", "rat"), ("rat", "mouse")):
        found = trained.map_genes(source, target, method="nearest")
        mutual = found[found["is_mutual_best"]]
        assert mutual["rank"].eq(1).all() and mutual["target"].is_unique
        pairs.append({frozenset(pair) for pair in mutual[["source", "target"]].to_numpy()})
    assert pairs[0] == pairs[1] and len(pairs[0]) > 5


def test_mutual_best_by_best_of_both(trained):
    """Of the assignment: the row that the column has most of, and the column that the row has most of."""
    whole = trained.map_genes("mouse", "rat", n_top=60).pivot(index="source", columns="target", values="probability")
    first = trained.map_genes("mouse", "rat", n_top=1)
    for row in first.itertuples():
        assert whole.loc[row.source].idxmax() == row.target
        assert row.is_mutual_best == (whole[row.target].idxmax() == row.source)


def test_some_genes_have_the_rows_of_all(trained):
    whole = trained.map_genes("mouse", "rat", n_top=3)
    genes = [names_of(trained, "mouse")[i] for i in (41, 3, 17)]
    for wanted in (genes, pd.Index(genes), np.array(genes, dtype=object), tuple(genes)):
        found = trained.map_genes("mouse", "rat", n_top=3, genes=wanted)
        expected = pd.concat([whole[whole["source"] == gene] for gene in genes], ignore_index=True)
        pd.testing.assert_frame_equal(found, expected)
    assert trained.map_genes("mouse", "rat", genes=[]).empty


def test_more_genes_than_there_are(trained):
    assert len(trained.map_genes("mouse", "rat", n_top=1000)) == 60 * 60


def test_the_temperature_sharpens(trained):
    best = [
        trained.map_genes("mouse", "rat", n_top=1, temperature=t)["probability"].mean() for t in (1e-3, 0.02, 0.2, 50)
    ]
    assert best[0] > 0.8 and np.all(np.diff(best) < 0) and best[-1] < 0.05


def test_maps_do_not_disturb_one_another(trained):
    """What is kept of maps for predictions is not that of another temperature or direction."""
    before = trained.map_genes("mouse", "rat")
    trained.map_genes("rat", "mouse", temperature=1.0)
    trained._soft_map(0, 1)
    pd.testing.assert_frame_equal(trained.map_genes("mouse", "rat"), before)


def test_what_was_not_measured_is_what_the_head_says(trained, held_out):
    """The rat's held-out entry, of which the model itself knows nothing."""
    own = trained.features_[genes_of(trained, "rat")]
    missing = np.isnan(own).all(axis=0)
    assert missing.sum() == 1 and not np.isnan(trained.features_[genes_of(trained, "mouse")]).any()
    found = trained._completed_features(1)
    np.testing.assert_allclose(found, completed(trained, "rat"), **CLOSE)
    np.testing.assert_array_equal(found[:, ~missing], own[:, ~missing])
    np.testing.assert_allclose(found[:, missing], predicted(trained, "rat")[:, missing], **CLOSE)


# ---- the soft map


@pytest.mark.parametrize(("species", "other"), [(0, 1), (1, 0)])
@pytest.mark.parametrize(("temperature", "n"), [(0.04, 50), (0.02, 10), (1.0, 1), (0.04, 500)])
def test_soft_map(trained, species, other, temperature, n):
    found = trained._soft_map(species, other, temperature, n)
    np.testing.assert_allclose(np.asarray(found.sum(axis=1)).ravel(), 1, rtol=1e-5)
    assert (np.diff(found.indptr) == min(n, 60)).all() and found.has_sorted_indices
    expected = soft_map(trained, *(trained.species_[i] for i in (species, other)), temperature, n)
    close = np.isclose(found.toarray(), expected, rtol=2e-2, atol=2e-4).all(axis=1)
    assert close.mean() > 0.95  # the edge may be between two genes that are all but alike


def test_soft_map_is_forgotten_in_training(simulated, stacked):
    model = train(stacked, stages=["genes"], hold_out=[("rat", "heart", "drug A")])
    first = model._soft_map(0, 1)
    assert model._soft_map(0, 1) is first
    changed = model.predict_reactome("mouse")
    model.train(max_epochs=1, stages=["genes"], **QUIET)
    second = model._soft_map(0, 1)
    assert second is not first
    np.testing.assert_allclose(second.toarray(), soft_map(model, "mouse", "rat"), rtol=2e-2, atol=1e-3)
    assert np.abs(model.predict_reactome("mouse").X - changed.X).max() > 1e-4


def test_counterparts_are_drawn_by_probability(trained):
    draws = trained._counterparts(2000)
    mouse, rat = genes_of(trained, "mouse"), genes_of(trained, "rat")
    assert draws.shape == (120, 2, 2000)
    for own, other, s, t in ((mouse, rat, 0, 1), (rat, mouse, 1, 0)):
        assert np.isin(draws[own, t], other).all()
        p = trained._soft_map(s, t, 0.02, 10).toarray()
        shares = np.stack([np.bincount(np.searchsorted(other, row), minlength=60) / 2000 for row in draws[own, t]])
        assert np.abs(shares - p).max() < 0.06
        assert not shares[p == 0].any()


# ---- gene vectors


def test_vectors_by_hand(trained):
    tables = []
    for species in ("mouse", "rat"):
        found = trained.get_gene_representation(species)
        assert found.index.tolist() == names_of(trained, species) and found.shape == (60, 16)
        np.testing.assert_allclose(found, vectors(trained, species), **CLOSE)
        assert set(found.dtypes) == {np.dtype("float32")}
        tables.append(found)
    pd.testing.assert_frame_equal(trained.get_gene_representation(), pd.concat(tables))


def test_vectors_say_what_genes_do(trained):
    """The reactome is linear in them, with the same factors for all species."""
    z = trained.get_gene_representation()
    x = pd.concat(
        [pd.DataFrame(changes(trained, s).reshape(60, -1), index=names_of(trained, s)) for s in ("mouse", "rat")]
    )
    factors, *_ = np.linalg.lstsq(z.to_numpy(float), x.loc[z.index].to_numpy(), rcond=None)
    np.testing.assert_allclose(z.to_numpy(float) @ factors, x.loc[z.index], **CLOSE)


# ---- planted counterparts


@pytest.mark.slow
def test_planted_counterparts():
    """Also where a gene of the same name does something else, and more than by raw reactomes."""
    data, model, _ = planted()
    every, diverged = recall(model.map_genes("mouse", "rat"), data)
    assert every["value"] > 0.2 > 10 * every["chance"] and diverged["value"] > 0.2
    assert recall(model.map_genes("mouse", "rat"), data, k=10)[0]["value"] > 0.6
    nearest, _ = recall(model.map_genes("mouse", "rat", method="nearest"), data)
    assert every["value"] >= nearest["value"] > 0.15
    seen = tv.pp.unstack_species(model.adata)
    raw = tv.baselines.ReactomeCorrelation(normalize="given").fit(seen)
    assert every["value"] > recall(raw.map_genes("mouse", "rat"), data)[0]["value"] + 0.05
    symbols = data["rat"].var["symbol"].str.upper().reset_index().set_index("symbol").iloc[:, 0]
    truth = data["rat"].uns["gene_map"]
    named = pd.DataFrame(
        {
            "source": data["mouse"].var_names,
            "target": symbols[data["mouse"].var["symbol"].str.upper()].to_numpy(),
            "rank": 1,
        }
    )
    assert recall(named, data)[1]["value"] == 0
    # a probability says how often it is right
    first = model.map_genes("mouse", "rat", n_top=1).merge(truth, on="source")
    right = first["target_x"] == first["target_y"]
    assert first["probability"][right].mean() > first["probability"][~right].mean() + 0.1
    assert right[first["is_mutual_best"]].mean() > right.mean()


def test_back_and_forth():
    data, model, _ = planted()
    truth = data["rat"].uns["gene_map"].rename(columns={"source": "target", "target": "source"})
    back = tv.metrics.gene_map_scores(model.map_genes("rat", "mouse"), truth, k=1, n_candidates=100)
    assert back["value"].iloc[0] > 0.2


def test_a_longer_list_scores_like_metrics_take_it():
    data, model, _ = planted()
    scores = tv.metrics.gene_map_scores(
        model.map_genes("mouse", "rat", n_top=100), data["rat"].uns["gene_map"], k=[1, 100]
    )
    scores = scores.set_index("metric")["value"]
    assert scores["recall@100"] == 1 and scores["n_unmapped"] == 0


# ---- names and order of genes


def test_names_and_order_of_genes_carry_nothing(stacked):
    """With all reactomes measured a map is that of other names, translated."""
    rng = np.random.default_rng(0)
    other = stacked[:, rng.permutation(stacked.n_vars)].copy()
    numbers = rng.permutation(stacked.n_vars)
    new = {name: f"G{number:03d}" for name, number in zip(other.var_names, numbers, strict=True)}
    old = {value: key for key, value in new.items()}
    other.var_names = [new[name] for name in other.var_names]
    other.var = other.var[["species"]]
    found = []
    for data in (stacked, other):
        model = train(data, stages=["genes"], max_epochs=1)
        assert not np.isnan(model.features_).any()
        table = model.map_genes("mouse", "rat", n_top=5)
        if data is other:
            table = table.assign(source=table["source"].map(old), target=table["target"].map(old))
        found.append(table.sort_values(["source", "rank"], ignore_index=True))
    assert found[0]["source"].tolist() == found[1]["source"].tolist()
    same = (found[0]["target"] == found[1]["target"]).to_numpy()
    assert same.mean() > 0.99
    for key in ("score", "probability"):
        np.testing.assert_allclose(found[0][key][same], found[1][key][same], rtol=1e-2, atol=1e-4)


# ---- more than two species


@functools.cache
def three_species():
    data = tv.datasets.simulate_reactomes(
        species=("mouse", "rat", "dog"), n_genes=60, n_organs=4, n_drugs=2, n_animals=4
    )
    return data, train(tv.pp.stack_species(data), stages=["genes"])


def test_every_pair_of_species():
    data, model = three_species()
    for target in ("rat", "dog"):
        every, _ = recall(model.map_genes("mouse", target), data, target)
        assert every["value"] > 8 * every["chance"]
    found = model.map_genes("dog", "rat", n_top=1)
    to_mouse = {t: data[t].uns["gene_map"].set_index("target")["source"] for t in ("rat", "dog")}
    right = to_mouse["dog"][found["source"]].to_numpy() == to_mouse["rat"][found["target"]].to_numpy()
    assert right.mean() > 8 / 60
    assert model.get_gene_representation().shape == (180, 16)


# ---- what is refused


def test_maps_refuse(trained):
    for options, error, message in (
        ({"source": "cow"}, KeyError, "Unknown species 'cow'. Known: 'mouse', 'rat'"),
        ({"target": "cow"}, KeyError, "Unknown species 'cow'. Known: 'mouse', 'rat'"),
        ({"target": "mouse"}, ValueError, "source and target are both 'mouse'"),
        ({"method": "best"}, ValueError, "method='best' must be 'assignment' or 'nearest'"),
        ({"temperature": 0}, ValueError, "temperature=0 must be positive"),
        ({"temperature": -1.0}, ValueError, "temperature=-1.0 must be positive"),
        ({"temperature": np.nan}, ValueError, "temperature=nan must be positive"),
        ({"n_top": 0}, ValueError, "n_top=0 must be a whole number of at least 1"),
        ({"n_top": 2.5}, ValueError, "n_top=2.5 must be a whole number of at least 1"),
        ({"genes": ["Alb"]}, KeyError, "Unknown genes of 'mouse': 'Alb'. Known, for example: 'mouse_g"),
        ({"genes": [names_of(trained, "rat")[0]]}, KeyError, "Unknown genes of 'mouse': 'rat_g"),
    ):
        with pytest.raises(error, match=message):
            trained.map_genes(**{"source": "mouse", "target": "rat"} | options)
    with pytest.raises(KeyError, match="Unknown species 'cow'. Known: 'mouse', 'rat'"):
        trained.get_gene_representation("cow")


def test_unknown_genes_are_listed_up_to_five(trained):
    with pytest.raises(KeyError, match=r"'g0', 'g1', 'g2', 'g3', 'g4', \.\.\. \(9 in all\)"):
        trained.map_genes("mouse", "rat", genes=[f"g{i}" for i in range(9)])


def test_an_untrained_model_maps_nothing(stacked):
    model = build(stacked)
    for ask in (lambda: model.map_genes("mouse", "rat"), model.get_gene_representation):
        with pytest.raises(RuntimeError, match="untrained"):
            ask()


def test_counts_of_numpy(trained):
    found = trained.map_genes("mouse", "rat", n_top=np.int64(2))
    pd.testing.assert_frame_equal(found, trained.map_genes("mouse", "rat", n_top=2))


# ---- the benchmark


@pytest.fixture
def small(monkeypatch):
    """UGE as a benchmark makes it, of a size for tests."""
    monkeypatch.setitem(PRESETS, "paper", PRESETS["tiny"])
    whole = UGE.train
    monkeypatch.setattr(UGE, "train", lambda self: whole(self, max_epochs=1, stages=["genes"], **QUIET))
    return tv.UGE


def test_the_benchmark_takes_the_class(small, simulated, stacked):
    before = stacked.copy()
    truth = simulated["rat"].uns["gene_map"]
    table = tv.benchmark(stacked, {"UGE": small}, task="genes", truth=truth, normalize="given", n_resamples=10, k=1)
    means = table[table["metric"] == "recall@1"].set_index("method")["mean"]
    assert means["UGE"] > 5 * means["chance"] and means["UGE"] > means["correlation of reactomes"]
    pd.testing.assert_frame_equal(stacked.obs, before.obs)


def test_the_benchmark_takes_the_class_with_a_mapping(small, simulated):
    truth = simulated["rat"].uns["gene_map"]
    table = tv.benchmark(simulated, {"UGE": small}, task="genes", truth=truth, normalize="given", n_resamples=10, k=1)
    assert "UGE" in set(table["method"])


def test_the_benchmark_without_drugs(small, simulated, stacked):
    controls = stacked[(stacked.obs["drug"] == "control").to_numpy()].copy()
    del controls.obs["drug"]
    truth = simulated["rat"].uns["gene_map"]
    table = tv.benchmark(
        controls, {"UGE": small}, task="genes", truth=truth, drug_key=None, normalize="given", n_resamples=10, k=1
    )
    assert "UGE" in set(table["method"])


def test_the_benchmark_takes_a_function(simulated, stacked):
    def mine(data, seed):
        data = tv.pp.stack_species(data)
        return train(data, seed=seed, stages=["genes"], max_epochs=1)

    truth = simulated["rat"].uns["gene_map"]
    table = tv.benchmark(
        simulated, {"UGE": mine}, task="genes", truth=truth, baselines={}, normalize="given", n_resamples=10, k=1
    )
    assert table.set_index(["method", "metric"]).loc[("UGE", "recall@1"), "mean"] > 5 / 60
