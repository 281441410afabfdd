"""Label baselines against computations by hand on dense matrices, and on real data."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.optimize import minimize

import transverse as tv

CentroidLabels, LogisticLabels, NeighborVote = (
    getattr(tv.baselines, name) for name in ("CentroidLabels", "LogisticLabels", "NeighborVote")
)
BASELINES = [CentroidLabels, LogisticLabels, NeighborVote]


def simulate(n, seed, shared=24, extra=10, species="m"):
    """Counts of three types with their own marker genes; the last genes have no orthologue."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(["B", "NK", "T"], n)
    rate = np.full((n, shared + extra), 2.0)
    for i, name in enumerate(("B", "NK", "T")):
        rate[labels == name, 8 * i : 8 * i + 8] = 12
    counts = rng.poisson(rate * rng.gamma(5, 0.2, (n, 1))).astype(np.float32)
    names = [f"{species}{i}" for i in range(shared + extra)]
    obs = pd.DataFrame({"cell_type": labels}, index=[f"{species}cell{i}" for i in range(n)])
    return ad.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=names))


@pytest.fixture
def species():
    mouse, human = simulate(90, 0), simulate(60, 1, extra=5, species="h")
    return mouse, human, pd.DataFrame({"context": [f"m{i}" for i in range(24)], "target": [f"h{i}" for i in range(24)]})


def log_features(adata, normalize, shared=24):
    x = adata.X.toarray().astype(float)
    if normalize == "none":
        return np.log1p(x[:, :shared])
    total = x.sum(1) if normalize == "total" else x[:, :shared].sum(1)
    return np.log1p(x[:, :shared] / total[:, None] * 1e4)


@pytest.mark.parametrize("normalize", ["total", "shared", "none"])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_vote_by_hand(species, normalize, metric):
    mouse, human, table = species
    x, y = log_features(mouse, normalize), log_features(human, normalize)
    if metric == "cosine":
        distance = 1 - y @ x.T / np.linalg.norm(y, axis=1)[:, None] / np.linalg.norm(x, axis=1)
    else:
        distance = np.linalg.norm(y[:, None] - x, axis=2)
    labels = mouse.obs["cell_type"].to_numpy()
    shares = np.array([[(labels[row] == c).mean() for c in ("B", "NK", "T")] for row in distance.argsort(1)[:, :7]])
    result = NeighborVote(7, metric, normalize).fit(mouse).predict(human, table)
    np.testing.assert_array_equal(result["label"], np.array(["B", "NK", "T"])[shares.argmax(1)])
    np.testing.assert_allclose(result["confidence"], shares.max(1))
    np.testing.assert_allclose(result["novelty"], 1 - shares.max(1))
    assert result.index.equals(human.obs_names)
    assert list(result["label"].cat.categories) == ["B", "NK", "T"]


def test_centroids_by_hand(species):
    mouse, human, table = species
    x, y = log_features(mouse, "total"), log_features(human, "total")
    labels = mouse.obs["cell_type"].to_numpy()
    centroids = [x[labels == c].mean(0) for c in ("B", "NK", "T")]
    r = np.array([[np.corrcoef(cell, c)[0, 1] for c in centroids] for cell in y])
    result = CentroidLabels(temperature=0.1).fit(mouse).predict(human, table)
    np.testing.assert_array_equal(result["label"], np.array(["B", "NK", "T"])[r.argmax(1)])
    np.testing.assert_allclose(result["novelty"], 1 - r.max(1))
    np.testing.assert_allclose(result["confidence"], np.exp(r.max(1) / 0.1) / np.exp(r / 0.1).sum(1))


@pytest.mark.parametrize("weight", ["balanced", None, {"B": 3.0}])
def test_logistic_regression_by_hand(species, weight):
    """The penalised likelihood minimised by scipy."""
    mouse, human, table = species
    mouse = mouse[
        np.r_[np.flatnonzero(mouse.obs["cell_type"] != "B"), np.flatnonzero(mouse.obs["cell_type"] == "B")[:6]]
    ]
    x, y = log_features(mouse, "none"), log_features(human, "none")
    codes = mouse.obs["cell_type"].astype("category").cat.codes.to_numpy()
    per_label = {"balanced": len(codes) / (3 * np.bincount(codes)), None: np.ones(3)}.get(
        weight if not isinstance(weight, dict) else "", np.array([3.0, 1, 1])
    )
    per_cell = per_label[codes]

    def log_chance(parameters, features):
        w, b = parameters[:72].reshape(24, 3), parameters[72:]
        logits = features @ w + b
        return logits - np.log(np.exp(logits).sum(1, keepdims=True))

    def loss(parameters):
        return (parameters[:72] ** 2).sum() / (2 * 0.1) - (
            per_cell * log_chance(parameters, x)[np.arange(len(x)), codes]
        ).sum()

    best = minimize(loss, np.zeros(75), method="L-BFGS-B", options={"maxiter": 2000, "maxfun": 10**6, "gtol": 1e-6})
    expected = np.exp(log_chance(best.x, y))
    result = LogisticLabels(weight, C=0.1, normalize="none").fit(mouse).predict(human, table)
    np.testing.assert_allclose(result["confidence"], expected.max(1), atol=5e-3)
    np.testing.assert_allclose(result["novelty"], 1 - result["confidence"])
    sure = np.sort(expected, 1)[:, -1] - np.sort(expected, 1)[:, -2] > 0.02
    np.testing.assert_array_equal(result["label"][sure], np.array(["B", "NK", "T"])[expected.argmax(1)][sure])


@pytest.mark.parametrize("baseline", BASELINES)
def test_planted_types_are_found(species, baseline):
    mouse, human, table = species
    result = baseline().fit(mouse).predict(human, table)
    assert (result["label"].astype(str) == human.obs["cell_type"]).mean() == 1
    scores = tv.metrics.label_scores(human.obs["cell_type"], result).set_index("metric")["value"]
    assert scores["balanced_accuracy"] == 1
    assert result["confidence"].between(0, 1).all()


@pytest.mark.parametrize("baseline", BASELINES)
def test_form_of_the_input_does_not_matter(species, baseline, tmp_path):
    mouse, human, table = species
    expected = baseline().fit(mouse).predict(human, table)
    before = mouse.copy(), human.copy()
    dense = mouse.copy(), human.copy()
    for adata in dense:
        adata.X = adata.X.toarray()
    pd.testing.assert_frame_equal(baseline().fit(dense[0]).predict(dense[1], table), expected)
    layered = mouse.copy(), human.copy()
    for adata in layered:
        adata.layers["counts"], adata.X = adata.X, adata.X * 0.5
    result = baseline().fit(layered[0], layer="counts").predict(layered[1], table, layer="counts")
    pd.testing.assert_frame_equal(result, expected)
    backed = []
    for name, adata in (("mouse", mouse), ("human", human)):
        adata.copy().write_h5ad(tmp_path / f"{name}.h5ad")  # writing makes strings categorical
        backed.append(ad.read_h5ad(tmp_path / f"{name}.h5ad", backed="r"))
    pd.testing.assert_frame_equal(baseline().fit(backed[0]).predict(backed[1], table), expected)
    # the order of the target's genes, and more genes
    turned = human[:, ::-1].copy()
    pd.testing.assert_frame_equal(baseline().fit(mouse).predict(turned, table), expected)
    renamed = human.copy()
    renamed.var_names = [name.replace("h", "M") for name in human.var_names]
    by_name = baseline(normalize="none").fit(mouse)
    assert by_name.predict(renamed)["label"].notna().all()
    with_column = human.copy()
    with_column.var["mouse_gene"] = [*table["context"], *[None] * 5]
    pd.testing.assert_frame_equal(baseline().fit(mouse).predict(with_column, "mouse_gene"), expected)
    for kept, used in zip(before, (mouse, human), strict=True):
        np.testing.assert_array_equal(kept.X.toarray(), used.X.toarray())
        pd.testing.assert_frame_equal(kept.obs, used.obs)
        pd.testing.assert_frame_equal(kept.var, used.var)
    # what was fitted is a copy
    changed = mouse.copy()
    fitted = baseline().fit(changed)
    changed.X.data[:] = 1
    pd.testing.assert_frame_equal(fitted.predict(human, table), expected)


@pytest.mark.parametrize("baseline", BASELINES)
def test_cells_without_labels_are_left_out(species, baseline):
    mouse, human, table = species
    missing = np.arange(90) % 4 == 0
    some = mouse.copy()
    some.obs["cell_type"] = pd.Categorical(some.obs["cell_type"].where(~missing), categories=["T", "NK", "B", "never"])
    result = baseline().fit(some).predict(human, table)
    assert list(result["label"].cat.categories) == ["T", "NK", "B"]
    kept = mouse[~missing].copy()
    kept.obs["cell_type"] = some.obs["cell_type"][~missing]
    pd.testing.assert_frame_equal(result, baseline().fit(kept).predict(human, table))


@pytest.mark.parametrize(("baseline", "most_novel"), [(CentroidLabels, 2), (LogisticLabels, 1), (NeighborVote, 1)])
def test_cells_without_shared_counts_have_no_label(species, baseline, most_novel):
    mouse, human, table = species
    counts = human.X.toarray()
    counts[3, :24] = 0
    human.X = sp.csr_matrix(counts)
    assert counts[3].sum() > 0
    result = baseline().fit(mouse).predict(human, table)
    assert pd.isna(result["label"].iloc[3])
    assert result.iloc[3][["confidence", "novelty"]].tolist() == [0, most_novel]
    others = np.arange(60) != 3
    rest = baseline().fit(mouse).predict(human[others].copy(), table)
    pd.testing.assert_frame_equal(result[others], rest)
    # nor do such context cells vote
    empty = mouse.X.toarray()
    empty[:5, :24] = 0
    poor = mouse.copy()
    poor.X = sp.csr_matrix(empty)
    expected = baseline().fit(mouse[5:].copy()).predict(human, table)
    pd.testing.assert_frame_equal(baseline().fit(poor).predict(human, table), expected)


def test_given_expression_is_used_as_it_is(species):
    mouse, human, table = species
    given = []
    for adata in (mouse, human):
        x = np.log1p(adata.X.toarray().astype(float) / adata.X.sum(1).A1[:, None] * 1e4)
        given.append(ad.AnnData(x, obs=adata.obs, var=adata.var))
    for baseline in BASELINES:
        result = baseline(normalize="given").fit(given[0]).predict(given[1], table)
        pd.testing.assert_frame_equal(result, baseline().fit(mouse).predict(human, table))
    given[0].X -= 3  # negative values are fine
    CentroidLabels(normalize="given").fit(given[0]).predict(given[1], table)


def test_sums_of_orthologues(species):
    mouse, human, table = species
    split = mouse.copy()
    half = sp.csr_matrix(np.random.default_rng(0).binomial(split.X[:, 0].toarray().astype(int), 0.5).astype(np.float32))
    twin = ad.AnnData(sp.hstack([split.X[:, :1] - half, split.X[:, 1:], half], format="csr"), obs=mouse.obs)
    twin.var_names = [*mouse.var_names, "twin"]
    many = pd.concat([table, pd.DataFrame({"context": ["twin"], "target": ["h0"]})])
    for baseline in BASELINES:
        result = baseline().fit(twin).predict(human, many, policy="sum")
        expected = baseline().fit(mouse).predict(human, table)
        np.testing.assert_allclose(result[["confidence", "novelty"]], expected[["confidence", "novelty"]], atol=1e-6)


def test_ties_go_to_the_first_label():
    x = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], dtype=np.float32)
    context = ad.AnnData(x, obs=pd.DataFrame({"cell_type": list("baab")}, index=list("wxyz")))
    context.var_names = ["g", "h"]
    target = ad.AnnData(np.array([[5, 0]], np.float32), obs=pd.DataFrame(index=["t"]), var=context.var)
    result = NeighborVote(2).fit(context).predict(target)
    assert result.loc["t", "label"] == "a"
    assert result.loc["t", "confidence"] == 0.5


@pytest.mark.filterwarnings("error", "ignore::DeprecationWarning")
def test_errors(species):
    mouse, human, table = species
    for baseline in BASELINES:
        with pytest.raises(RuntimeError, match=f"{baseline.__name__} is not fitted. Call fit"):
            baseline().predict(human, table)
        with pytest.raises(KeyError, match="labels_key='type' is not in adata.obs. Columns: 'cell_type'"):
            baseline().fit(mouse, "type")
        with pytest.raises(TypeError, match="adata must be an AnnData, but got ndarray"):
            baseline().fit(mouse.X.toarray())
        with pytest.raises(ValueError, match="normalize must be one of total, shared, none, given, but got 'log'"):
            baseline(normalize="log")
        with pytest.raises(ValueError, match="target_sum=0 must be a positive number"):
            baseline(target_sum=0)
        fitted = baseline().fit(mouse)
        with pytest.raises(TypeError, match="target must be an AnnData"):
            fitted.predict(human.obs, table)
        with pytest.raises(KeyError, match="layer='counts' is not in target.layers"):
            fitted.predict(human, table, layer="counts")
        with pytest.raises(ValueError, match="0 genes are shared by context and target"):
            fitted.predict(human)
        halves = human.copy()
        halves.X = halves.X * 0.5
        with pytest.raises(ValueError, match="target.X must hold raw counts, but has fractions"):
            fitted.predict(halves, table)
        with pytest.raises(ValueError, match="adata.X must hold raw counts, but has fractions"):
            baseline().fit(halves)
        empty = human.copy()
        empty.X[2] = 0
        with pytest.raises(ValueError, match="1 cells of target have no counts"):
            fitted.predict(empty, table)
        with pytest.raises(ValueError, match="policy='sum' sums counts, but normalize='given' has none"):
            baseline(normalize="given").fit(mouse).predict(human, table, policy="sum")
        repeated = mouse.copy()
        repeated.var_names = ["m0", *mouse.var_names[:-1]]
        with pytest.raises(ValueError, match="adata.var_names must be unique, but these repeat: 'm0'"):
            baseline().fit(repeated)
        unlabelled = mouse.copy()
        unlabelled.obs["cell_type"] = np.nan
        with pytest.raises(ValueError, match="needs at least . labels, but .* has 0: none"):
            baseline().fit(unlabelled)
        silent = mouse.X.toarray()
        silent[(mouse.obs["cell_type"] == "NK").to_numpy(), :24] = 0
        poor = ad.AnnData(silent, obs=mouse.obs, var=mouse.var)
        with pytest.raises(ValueError, match="No context cell of 'NK' has counts on the 24 shared genes"):
            baseline().fit(poor).predict(human, table)
        nan = ad.AnnData(np.where(silent == 2, np.nan, silent), obs=mouse.obs, var=mouse.var)
        with pytest.raises(ValueError, match=r"adata.X has missing or infinite values \(NaN or inf\)"):
            baseline(normalize="given").fit(nan)
    with pytest.raises(ValueError, match="LogisticLabels needs at least 2 labels, but .* has 1: 'T'"):
        LogisticLabels().fit(mouse[mouse.obs["cell_type"] == "T"].copy())
    with pytest.raises(ValueError, match="n_neighbors=91 must be between 1 and the number of context cells, 90"):
        NeighborVote(91).fit(mouse)
    with pytest.raises(ValueError, match="metric must be one of cosine, euclidean, manhattan, but got 'dice'"):
        NeighborVote(metric="dice")
    with pytest.raises(ValueError, match="temperature=0 must be a positive number"):
        CentroidLabels(0)


# ------------------------------------------------------------------------------------------------------ real data

TO_SHARED = {
    "B cell": "B",
    "T cell": "T",
    "NK cell": "NK",
    "Monocyte": "monocyte",
    "Granulocyte": "granulocyte",
    "T_CD4": "T",
    "T_CD8": "T",
    "Mono_CD14": "monocyte",
    "Mono_CD16": "monocyte",
}


@pytest.mark.slow
def test_mouse_immune_cells_to_human_blood(real_data_dir):
    mouse = ad.read_h5ad(real_data_dir / "mouse_immune.h5ad")
    human = ad.read_h5ad(real_data_dir / "human_pbmc.h5ad")
    for adata in (mouse, human):
        adata.obs["label"] = adata.obs["cell_type"].astype(str).replace(TO_SHARED)
    table = tv.pp.read_orthologs(real_data_dir / "orthologs_human_mouse.csv.gz", context_species="mouse")
    expected = [
        # balanced accuracy, ARI of the shared cells, AUROC of cells without a counterpart
        (NeighborVote(normalize="none"), 0.932, 0.928, 0.644),
        (NeighborVote(), 0.967, 0.973, 0.561),
        (NeighborVote(normalize="shared"), 0.970, 0.971, 0.564),
        (LogisticLabels(), 0.982, 0.965, 0.674),
        (LogisticLabels(normalize="shared"), 0.978, 0.956, 0.692),
        (CentroidLabels(), 0.970, 0.892, 0.324),
        (CentroidLabels(normalize="shared"), 0.969, 0.891, 0.330),
    ]
    for baseline, accuracy, rand, novelty in expected:
        result = baseline.fit(mouse, "label").predict(human, table)
        scores = tv.metrics.label_scores(human.obs["label"], result)
        found = scores[scores["cell_type"].isna()].set_index(["metric", "cells"])["value"].to_dict()
        assert found["balanced_accuracy", "shared"] == pytest.approx(accuracy, abs=0.004)
        assert found["ARI", "shared"] == pytest.approx(rand, abs=0.006)
        assert found["unknown_auroc", "all"] == pytest.approx(novelty, abs=0.01)


def test_mouse_organs_to_other_vertebrates(real_data_dir):
    counts = pd.read_csv(real_data_dir / "tetrapod_organs_counts.txt.gz", sep="\t", index_col=0).T
    adata = ad.AnnData(counts.astype(np.float32))
    adata.obs[["species", "organ"]] = [name.split("_")[:2] for name in adata.obs_names]
    data = {name: adata[adata.obs["species"] == name].copy() for name in ("Mouse", "Human", "Opossum", "Chicken")}
    settings = {"target_sum": 1e6}
    for baseline in (CentroidLabels(**settings), NeighborVote(1, **settings), LogisticLabels(**settings)):
        baseline.fit(data["Mouse"], "organ")
        for name, right in (("Human", 17 / 18), ("Opossum", 1), ("Chicken", 1)):
            result = baseline.predict(data[name])
            assert (result["label"].astype(str) == data[name].obs["organ"]).mean() == pytest.approx(right)
