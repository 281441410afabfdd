"""One call for models, baselines and the noise ceiling: what is trained on what, what is scored, and the table."""

import warnings
from functools import partial

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scvi
from anndata import AnnData

import transverse as tv
from transverse.datasets import simulate_reactomes, simulate_responses, simulate_signatures, simulate_species

SMALL = {"n_perturbations": 5, "n_genes": 80, "n_cells_per_condition": 12, "n_control_cells_per_context": 20}


@pytest.fixture(scope="module")
def cells():
    adata = simulate_responses(n_contexts=3, n_doubles=3, **SMALL)
    tv.pp.split_responses(adata, holdout=[("P01", "C1"), ("P02", "C2"), ("P03", "C3")], valid_size=0)
    return adata


@pytest.fixture(scope="module")
def run(cells):
    """The table and the scores of the baselines."""
    return tv.benchmark(cells, return_scores=True)


@pytest.fixture(scope="module")
def signatures():
    adata = simulate_signatures(n_drugs=60, n_genes=50, n_replicates=2)
    tv.pp.split_responses(adata, by="perturbation", control=None, delimiter=None)
    return adata


def score(table, method, metric, **where):
    rows = table[(table["method"] == method) & (table["metric"] == metric)]
    for column, value in where.items():
        rows = rows[rows[column] == value]
    assert len(rows) == 1
    return rows.iloc[0]


class Recorder:
    """A stand-in for a model: predicts the control cells, and remembers what it was trained on."""

    trained: list = []

    def __init__(self, train, seed=None):
        self.train, self.seed = train, seed
        self.asked = []
        Recorder.trained.append(self)

    def predict(self, perturbation, context):
        self.asked.append((perturbation, context))
        obs = self.train.obs
        cells = self.train[(obs["perturbation"] == "control") & (obs["cell_type"] == context)]
        return AnnData(cells.X.toarray(), obs=cells.obs[[]].assign(control_cell=cells.obs_names), var=cells.var[[]])


@pytest.fixture
def recorded():
    Recorder.trained = []
    return Recorder.trained


def test_models_see_the_training_and_nothing_else(cells, recorded):
    before = cells.copy()
    with pytest.warns(UserWarning, match="does not say which control cells"):
        tv.benchmark(cells, {"mine": Recorder}, baselines={}, seeds=[3, 4])
    assert [model.seed for model in recorded] == [3, 4]
    for model in recorded:
        assert set(model.train.obs_names) == set(cells.obs_names[cells.obs["split"] == "train"])
        assert sorted(model.asked) == [("P01", "C1"), ("P02", "C2"), ("P03", "C3")]
        # what a model does to its data is its own affair
        model.train.X = None
    pd.testing.assert_frame_equal(cells.obs, before.obs)
    np.testing.assert_array_equal(cells.X.toarray(), before.X.toarray())


def test_scores_are_those_of_the_metrics(cells, run):
    table, scores = run
    side, is_control = cells.obs["split"], cells.obs["perturbation"] == "control"
    test, controls = cells[(side == "test") & ~is_control], cells[(side == "test") & is_control]
    baseline = tv.baselines.MeanShift().fit(cells[side == "train"])
    pairs = [("P01", "C1"), ("P02", "C2"), ("P03", "C3")]
    pred = ad.concat([baseline.predict(*pair) for pair in pairs], index_unique="-")
    expected = tv.metrics.response_scores(test, pred, controls)
    mine = scores[scores["method"] == "mean shift"]
    merged = mine.merge(expected, on=["perturbation", "cell_type", "of", "genes", "metric"])
    assert len(merged) == len(expected)
    np.testing.assert_allclose(merged["value_x"], merged["value_y"])
    pearson = expected.query("metric == 'pearson' and of == 'change' and genes == 'all'")["value"]
    row = score(table, "mean shift", "pearson", of="change", genes="all")
    assert row["n"] == 3
    np.testing.assert_allclose(
        [row["mean"], row["median"], row["sd"]], [pearson.mean(), pearson.median(), pearson.std()]
    )
    assert row["ci_low"] <= row["mean"] <= row["ci_high"]
    # the ceiling, from all controls of the contexts
    ceiling = tv.metrics.noise_ceiling(test, cells[is_control])
    wanted = (
        ceiling.query("metric == 'pearson' and of == 'change' and genes == 'all'").groupby("ceiling")["value"].mean()
    )
    np.testing.assert_allclose(row["ceiling_split_half"], wanted["split half"])
    np.testing.assert_allclose(row["ceiling_noise_free"], wanted["noise-free"])
    np.testing.assert_allclose(
        score(table, "noise-free", "pearson", of="change", genes="all")["mean"], wanted["noise-free"]
    )


def test_gain_is_paired_and_points_to_better(run):
    table, scores = run
    for metric, sign in (("pearson", 1), ("rmse", -1)):
        rows = table[(table["metric"] == metric) & (table["of"] == "change") & (table["genes"] == "all")]
        rivals = rows[rows["kind"] == "baseline"].set_index("method")
        best = (sign * rivals["mean"]).idxmax()
        assert set(rivals["best_baseline"]) == {best}
        assert rivals.loc[best, ["gain", "gain_low", "gain_high"]].tolist() == [0, 0, 0]
        wide = scores[(scores["metric"] == metric) & (scores["of"] == "change") & (scores["genes"] == "all")]
        wide = wide.pivot_table(index=["perturbation", "cell_type"], columns="method", values="value")
        for name, row in rivals.iterrows():
            np.testing.assert_allclose(row["gain"], sign * (wide[name] - wide[best]).mean(), atol=1e-12)
            assert row["gain_low"] <= row["gain"] + 1e-12 and row["gain"] <= row["gain_high"] + 1e-12
            assert row["gain"] <= 1e-12
    assert table.loc[table["metric"].isin(["variance_ratio", "n_deg"]), "gain"].isna().all()
    assert table.loc[table["kind"] == "ceiling", "gain"].isna().all()


def test_only_baselines_that_fit_are_run(cells, run):
    singles = set(run[0]["method"])
    assert "mean shift" in singles and "additive" not in singles
    doubles = tv.benchmark(
        cells, splits=tv.pp.leave_out(cells, by="combination"), by="combination", n_top=10, n_ceiling_splits=1
    )
    methods = set(doubles["method"])
    assert {"additive", "mean of singles", "larger single", "largest change per gene", "no change"} <= methods
    # a double that is held out everywhere was measured nowhere else
    assert not {"mean shift", "nearest context"} & methods
    assert score(doubles, "additive", "pearson", of="change", genes="all")["n"] == 3 * 3
    # a baseline that is asked for is not left out in silence
    with pytest.raises(ValueError, match="not a combination"):
        tv.benchmark(cells, baselines={"additive": tv.baselines.Additive()})


@pytest.mark.slow
def test_additive_and_mean_shift_are_exact_where_they_must_be():
    adata = simulate_responses(n_contexts=3, n_doubles=3, specific_share=0, interaction=0, **SMALL)
    options = {"layer": "expected", "identical_cells": "ignore"}
    by_double = {"splits": tv.pp.leave_out(adata, by="combination"), "by": "combination"}
    options["n_ceiling_splits"] = 2
    table = tv.benchmark(adata, **options, **by_double)
    assert score(table, "additive", "r2", of="change", genes="all")["mean"] == pytest.approx(1, abs=1e-6)
    assert score(table, "mean of singles", "r2", of="change", genes="all")["mean"] < 0.9
    holdouts = tv.pp.leave_out(adata, by="condition", perturbations=["P01", "P02"])
    table = tv.benchmark(adata, splits=holdouts, **options)
    assert score(table, "mean shift", "r2", of="change", genes="all")["mean"] == pytest.approx(1, abs=1e-6)
    assert score(table, "no change", "r2", of="change", genes="all")["mean"] <= 0
    assert score(table, "split half", "r2", of="change", genes="all")["mean"] == pytest.approx(1, abs=1e-6)


@pytest.mark.slow
def test_nothing_can_be_predicted_where_nothing_happens():
    adata = simulate_responses(n_contexts=3, effect_sd=1e-9, **(SMALL | {"n_control_cells_per_context": 40}))
    table = tv.benchmark(adata, splits=tv.pp.leave_out(adata, by="context"), seeds=range(2), n_ceiling_splits=3)
    for method in ("mean perturbation", "mean shift", "split half"):
        assert abs(score(table, method, "pearson", of="change", genes="all")["mean"]) < 0.12


def test_seeds_divide_the_controls(cells):
    options = {"splits": {"one": [("P01", "C1")]}, "seeds": [0, 1], "n_ceiling_splits": 1}
    table, scores = tv.benchmark(cells, return_scores=True, **options)
    rows = scores.query("method == 'mean shift' and metric == 'pearson' and of == 'change' and genes == 'all'")
    assert len(rows) == 2 and rows["value"].nunique() == 2
    row = score(table, "mean shift", "pearson", of="change", genes="all")
    assert row["n"] == 1 and np.isnan(row["ci_low"])
    np.testing.assert_allclose(row["sd_seeds"], rows["value"].std())
    again = tv.benchmark(cells, **options)
    pd.testing.assert_frame_equal(table, again)


class ToyModel:
    """What the benchmark needs of a scvi-tools model."""

    calls: list = []

    @classmethod
    def setup_anndata(cls, adata, **keys):
        cls.calls.append(("setup", keys))
        adata.uns["set_up"] = True

    def __init__(self, adata):
        assert adata.uns["set_up"]
        self.adata = adata

    def train(self):
        self.calls.append(("train", int(np.random.randint(1 << 30))))
        self.baseline = tv.baselines.MeanShift().fit(self.adata)

    def predict(self, perturbation, context):
        return self.baseline.predict(perturbation, context)


def test_a_model_class_is_set_up_and_trained(cells):
    ToyModel.calls = []
    baselines = {"mean shift": tv.baselines.MeanShift()}
    table = tv.benchmark(cells, ToyModel, seeds=[7], baselines=baselines, n_ceiling_splits=1)
    keys = {"perturbation_key": "perturbation", "control": "control", "context_key": "cell_type"}
    assert ToyModel.calls[0] == ("setup", keys)
    scvi.settings.seed = 7
    assert ToyModel.calls[1] == ("train", int(np.random.randint(1 << 30)))
    mine = score(table, "ToyModel", "pearson", of="change", genes="all")
    assert mine["kind"] == "model"
    assert mine["mean"] == score(table, "mean shift", "pearson", of="change", genes="all")["mean"]


def test_backed_and_layer_give_the_same(cells, tmp_path):
    models = {"mine": lambda train, seed: tv.baselines.MeanShift("similarity").fit(train)}
    options = {"n_ceiling_splits": 1, "baselines": {"mean shift": tv.baselines.MeanShift()}}
    expected = tv.benchmark(cells, models, **options)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    pd.testing.assert_frame_equal(tv.benchmark(backed, models, **options), expected)
    moved = cells.copy()
    moved.layers["log"], moved.X = moved.X, None
    models = {"mine": tv.baselines.MeanShift("similarity")}
    pd.testing.assert_frame_equal(tv.benchmark(moved, models, layer="log", **options), expected)


def test_unseen_perturbations_of_a_single_context():
    adata = simulate_responses(n_contexts=1, **SMALL)
    options = {"by": "perturbation", "context_key": None}
    table = tv.benchmark(adata, splits=tv.pp.leave_out(adata, **options), n_ceiling_splits=1, **options)
    baselines = set(table.loc[table["kind"] == "baseline", "method"])
    assert baselines == {"no change", "mean perturbation"}
    assert score(table, "mean perturbation", "pearson", of="change", genes="all")["n"] == 5
    # perturbations that are named by genes have an embedding
    genes = dict(zip([f"P{i:02d}" for i in range(1, 6)], adata.var_names, strict=False))
    adata.obs["perturbation"] = adata.obs["perturbation"].astype(str).replace(genes)
    table = tv.benchmark(adata, splits=tv.pp.leave_out(adata, **options), n_ceiling_splits=1, **options)
    assert "ridge on PCs" in set(table["method"])


def test_energy_distance_on_request():
    adata = simulate_responses(n_contexts=3, specific_share=0, effect_sd=2.0, effect_share=0.5, **SMALL)
    table = tv.benchmark(adata, splits={"one": [("P01", "C1")]}, energy=True, n_ceiling_splits=1)
    assert score(table, "no change", "energy_distance_left")["mean"] == pytest.approx(1, abs=0.2)
    assert score(table, "mean shift", "energy_distance_left")["mean"] < 0.7


def test_refusals(cells):
    with pytest.raises(ValueError, match="task='drugs' must be one of responses, signatures, labels, genes"):
        tv.benchmark(cells, task="drugs")
    with pytest.raises(TypeError, match="task='responses' has no option 'labels_key'"):
        tv.benchmark(cells, labels_key="cell_type")
    for seeds in ([], [0.5], ["a"]):
        with pytest.raises(ValueError, match="seeds must be whole numbers"):
            tv.benchmark(cells, seeds=seeds)
    with pytest.raises(ValueError, match="level=95 must be between 0 and 1"):
        tv.benchmark(cells, level=95)
    with pytest.raises(ValueError, match="n_resamples=0 must be a whole number"):
        tv.benchmark(cells, n_resamples=0)
    with pytest.raises(TypeError, match="data must be an AnnData for task='responses', but got dict"):
        tv.benchmark({"a": cells})
    with pytest.raises(KeyError, match="perturbation_key='drug' is not in adata.obs"):
        tv.benchmark(cells, perturbation_key="drug")
    with pytest.raises(KeyError, match="'fold' is not in adata.obs. Call tv.pp.split_responses"):
        tv.benchmark(cells, splits="fold")
    for empty in ({}, []):
        with pytest.raises(ValueError, match="splits is empty"):
            tv.benchmark(cells, splits=empty)
    with pytest.raises(ValueError, match="must hold log-normalised values, but has whole numbers"):
        tv.benchmark(cells, layer="counts")
    with pytest.raises(ValueError, match="nothing to run"):
        tv.benchmark(cells, baselines={})
    with pytest.raises(ValueError, match="model and a baseline have the same name: 'mean shift'"):
        tv.benchmark(cells, {"mean shift": Recorder})
    with pytest.raises(TypeError, match=r"models\['mine'\] must be a model class"):
        tv.benchmark(cells, {"mine": 3})
    with pytest.raises(TypeError, match=r"baselines\['mine'\] must be a baseline"):
        tv.benchmark(cells, baselines={"mine": 3})
    with pytest.raises(ValueError, match="models have the same name"):
        tv.benchmark(cells, [ToyModel, ToyModel])
    with pytest.raises(TypeError, match="predict of 'mine' must return an AnnData, but returned int"):
        tv.benchmark(cells, {"mine": lambda train, seed: type("Bad", (), {"predict": lambda *_: 1})()})


def test_a_split_that_leaks_is_refused_before_anything_is_trained(cells, recorded):
    leaky = cells.copy()
    treated = np.flatnonzero((leaky.obs["perturbation"] == "P01") & (leaky.obs["cell_type"] == "C1"))
    leaky.obs.iloc[treated[0], leaky.obs.columns.get_loc("split")] = "train"
    with pytest.raises(ValueError, match="P01.*C1"):
        tv.benchmark(leaky, {"mine": Recorder}, splits=["split"])
    assert not recorded


def test_signatures(signatures, tmp_path):
    table, scores = tv.benchmark(signatures, task="signatures", by="perturbation", return_scores=True)
    names, side = signatures.obs["perturbation"].astype(str), signatures.obs["split"]
    held_out = sorted(set(names[side == "test"]))
    rows = scores.query("method == 'copy of the source' and metric == 'pearson'")
    assert sorted(set(rows["perturbation"])) == held_out
    baseline = tv.baselines.MeanOfSources().fit(signatures[side == "train"])
    expected = []
    for target in ("C1", "C2", "C3"):
        sources = signatures[names.isin(held_out) & (signatures.obs["cell_type"] != target)]
        pred = baseline.predict(sources, target)
        expected.append(tv.metrics.signature_scores(signatures[side == "test"], pred))
    expected = pd.concat(expected).query("metric == 'pearson'")
    row = score(table, "mean of the sources", "pearson")
    np.testing.assert_allclose(row["mean"], expected["value"].mean())
    assert row["n"] == len(expected) == 3 * len(held_out)
    # replicates are the ceiling: they share the signal
    assert row["ceiling_replicates"] > row["mean"]
    signatures.write_h5ad(tmp_path / "signatures.h5ad")
    backed = ad.read_h5ad(tmp_path / "signatures.h5ad", backed="r")
    pd.testing.assert_frame_equal(tv.benchmark(backed, task="signatures", by="perturbation"), table)
    with pytest.raises(TypeError, match="data must be an AnnData for task='signatures'"):
        tv.benchmark([signatures], task="signatures")


def test_signatures_of_a_cell_type_that_was_never_seen(signatures):
    splits = tv.pp.leave_out(signatures, by="context", control=None, delimiter=None)
    table = tv.benchmark(signatures, task="signatures", splits=splits)
    assert score(table, "ridge", "pearson")["n"] == 60 * 3
    assert score(table, "ridge", "pearson")["mean"] > 0.2


@pytest.fixture(scope="module")
def species():
    return simulate_species("tiny", target_only_types=1)


def test_labels(species):
    mouse, human = species["mouse"], species["human"]
    seen = {}

    def perfect(context, target, seed):
        seen["target"] = target
        return human.obs["cell_type"].astype(str).to_numpy()

    def reversed_rows(context, target, seed):
        return pd.Series(human.obs["cell_type"].astype(str), index=human.obs_names)[::-1]

    before = human.obs.copy()
    models = {"perfect": perfect, "reversed": reversed_rows}
    options = {"task": "labels", "orthologs": human.uns["orthologs"], "n_draws": 10}
    table = tv.benchmark(species, models, **options)
    assert "cell_type" not in seen["target"].obs
    pd.testing.assert_frame_equal(human.obs, before)
    for name in models:
        row = score(table, name, "balanced_accuracy")
        assert row["mean"] == 1 and row["ci_low"] == 1 and row["gain"] >= 0
    vote = tv.baselines.NeighborVote().fit(mouse).predict(human, human.uns["orthologs"])
    known = mouse.obs["cell_type"].cat.categories
    expected = tv.metrics.label_scores(human.obs["cell_type"], vote, known=known)
    expected = expected.set_index(["metric", "cells"])["value"].sort_index()
    row = score(table, "neighbour vote", "balanced_accuracy")
    np.testing.assert_allclose(row["mean"], expected["balanced_accuracy", "shared"])
    assert row["ci_low"] <= row["mean"] <= row["ci_high"] and row["ci_low"] < row["ci_high"]
    assert row["n"] == (human.obs["cell_type"].isin(known)).sum()
    np.testing.assert_allclose(
        score(table, "neighbour vote", "unknown_auroc")["mean"], expected["unknown_auroc", "all"]
    )
    assert row["ceiling_own_labels"] > 0.9
    assert {"T1a", "T2b"} <= set(table.loc[table["metric"] == "recall", "cell_type"])


def test_labels_refuse(species):
    mouse, human = species["mouse"], species["human"]
    options = {"task": "labels", "orthologs": human.uns["orthologs"], "n_draws": 0}
    with pytest.raises(TypeError, match="a pair or a mapping"):
        tv.benchmark(mouse, **options)
    with pytest.raises(KeyError, match="target_labels_key='truth' is not in adata.obs"):
        tv.benchmark(species, target_labels_key="truth", **options)
    with pytest.raises(ValueError, match="n_draws=-1 must be a whole number"):
        tv.benchmark(species, **(options | {"n_draws": -1}))
    other = human.copy()
    other.obs["cell_type"] = "elsewhere"
    with pytest.raises(ValueError, match="No label of the target is in the context. Target: 'elsewhere'"):
        tv.benchmark((mouse, other), **options)
    with pytest.raises(ValueError, match="'short' gave 1 labels for 300 cells"):
        tv.benchmark(species, {"short": lambda *_: ["T1a"]}, **options)
    first = pd.Series(["T1a"], index=human.obs_names[:1])
    with pytest.raises(ValueError, match="'few' gave no label to 299 cells"):
        tv.benchmark(species, {"few": lambda *_: first}, **options)
    logged = human.copy()
    logged.X = logged.X.log1p()
    with pytest.raises(ValueError, match="the target.X must hold raw counts"):
        tv.benchmark((mouse, logged), **options)


def test_the_class_alone_is_a_model(species):
    """Set up, trained on a context of its own, and asked for labels."""
    quiet = {"accelerator": "cpu", "enable_progress_bar": False}

    class Short(tv.ScSpecies):
        @staticmethod
        def make_context(adata):
            reference = tv.ScSpecies.make_context(adata, n_hidden=16)
            reference.train = partial(reference.train, 2, **quiet)
            return reference

        def train(self):
            super().train(2, **quiet)

    before = species["mouse"].copy()
    options = {"orthologs": species["human"].uns["orthologs"], "n_draws": 0, "batch_key": "batch"}
    table = tv.benchmark(species, {"short": Short}, task="labels", **options)
    assert 0 <= score(table, "short", "balanced_accuracy")["mean"] <= 1
    assert list(species["mouse"].obs) == list(before.obs)


@pytest.mark.slow
def test_scspecies_runs_as_a_model(species):
    def short(context, target, seed):
        context = context.copy()
        scvi.model.SCVI.setup_anndata(context, batch_key="batch")
        quiet = {"accelerator": "cpu", "enable_progress_bar": False}
        reference = tv.ScSpecies.make_context(context, n_hidden=32)
        reference.train(20, **quiet)
        tv.ScSpecies.setup_anndata(target, batch_key="batch")
        orthologs = species["human"].uns["orthologs"]
        model = tv.ScSpecies.from_scvi_model(reference, target, orthologs=orthologs, labels_key="cell_type")
        model.train(10, **quiet)
        return model.transfer_labels()

    options = {"orthologs": species["human"].uns["orthologs"], "n_draws": 0}
    table = tv.benchmark(species, {"short": short}, task="labels", **options)
    assert score(table, "short", "balanced_accuracy")["mean"] > 0.5
    assert np.isfinite(score(table, "short", "calibration_error", cells="shared")["mean"])


def test_genes():
    data = simulate_reactomes(n_genes=80, n_organs=5)
    truth = data["rat"].uns["gene_map"]
    diverged = truth.loc[truth["is_diverged"], "source"].tolist()

    class Perfect:
        def map_genes(self, source, target, n_top):
            return truth.assign(score=1.0, rank=1)[["source", "target", "score", "rank"]]

    table = tv.benchmark(
        data,
        {"perfect": lambda data, seed: Perfect()},
        task="genes",
        truth=truth,
        layer="counts",
        symbol_key="symbol",
        genes={"diverged": diverged},
    )
    assert score(table, "perfect", "recall@1", genes="all")["mean"] == 1
    assert score(table, "same symbol", "recall@1", genes="diverged")["mean"] == 0
    symbol = score(table, "same symbol", "recall@1", genes="all")
    assert symbol["mean"] == pytest.approx(1 - len(diverged) / 80) and symbol["n"] == 80
    assert score(table, "chance", "recall@1", genes="all")["mean"] == pytest.approx(1 / 80)
    correlation = tv.baselines.ReactomeCorrelation().fit(data, layer="counts")
    expected = tv.metrics.gene_map_scores(correlation.map_genes("mouse", "rat", n_top=50), truth, n_candidates=80)
    expected = expected.set_index("metric")["value"]
    for metric in ("recall@1", "recall@10", "mrr"):
        row = score(table, "correlation of reactomes", metric, genes="all")
        np.testing.assert_allclose(row["mean"], expected[metric])
    assert 0 < row["ceiling_halves_of_mouse"] < 1
    with pytest.raises(ValueError, match="truth is needed for task='genes'"):
        tv.benchmark(data, task="genes")
    with pytest.raises(KeyError, match="Unknown species: 'dog'. Known: 'mouse', 'rat'"):
        tv.benchmark(data, task="genes", truth=truth, target="dog")


def test_no_warning_that_a_user_could_not_act_on(cells):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)  # of other packages
        tv.benchmark(cells, n_ceiling_splits=1)
