"""Scores of transferred labels and of embeddings, against computations by hand."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import transverse as tv

label_scores, embedding_scores = tv.metrics.label_scores, tv.metrics.embedding_scores


def pick(table, metric, cells=None):
    rows = table[(table["metric"] == metric) & ((table["cells"] == cells) if cells else True)]
    assert len(rows) == 1
    return rows["value"].iloc[0]


def comb2(n):
    return n * (n - 1) / 2


def rand_index(a, b):
    table = pd.crosstab(np.asarray(a), np.asarray(b)).to_numpy()
    index, left, right = comb2(table).sum(), comb2(table.sum(0)).sum(), comb2(table.sum(1)).sum()
    expected = left * right / comb2(table.sum())
    return (index - expected) / ((left + right) / 2 - expected)


def mutual_information(a, b):
    """Adjusted mutual information; its expectation is the mean over many permutations."""
    a, b = np.unique(a, return_inverse=True)[1], np.unique(b, return_inverse=True)[1]

    def entropy(p):
        p = p[p > 0] / p.sum()
        return -(p * np.log(p)).sum()

    def information(b):
        table = np.zeros((a.max() + 1, b.max() + 1))
        np.add.at(table, (a, b), 1)
        return entropy(table.sum(0)) + entropy(table.sum(1)) - entropy(table.ravel())

    rng = np.random.default_rng(0)
    expected = np.mean([information(rng.permutation(b)) for _ in range(4000)])
    mean = (entropy(np.bincount(a)) + entropy(np.bincount(b))) / 2
    return (information(b) - expected) / (mean - expected)


def auroc(positive, score):
    positive, score = np.asarray(positive, bool), np.asarray(score)
    pairs = score[positive][:, None] - score[~positive]
    return ((pairs > 0) + 0.5 * (pairs == 0)).mean()


def ece(confidence, correct, n_bins):
    total = 0
    for b in range(n_bins):
        inside = (confidence > b / n_bins) & (confidence <= (b + 1) / n_bins)
        if inside.any():
            total += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    return total


@pytest.fixture
def cells():
    rng = np.random.default_rng(0)
    truth = rng.choice(["B", "T", "NK", "DC", "MK"], 300, p=[0.4, 0.3, 0.15, 0.1, 0.05])
    guess = rng.choice(["B", "T", "NK", "granulocyte", "unknown"], 300)
    predicted = np.where(rng.uniform(size=300) < 0.6, truth, guess)
    predicted = np.where(np.isin(predicted, ["DC", "MK"]), guess, predicted)
    index = pd.Index([f"cell{i}" for i in range(300)])
    table = pd.DataFrame(
        {
            "label": pd.Categorical(predicted, ["B", "NK", "T", "granulocyte", "unknown"]),
            "confidence": rng.beta(4, 1.5, 300),
            "novelty": np.round(rng.normal(size=300) + np.isin(truth, ["DC", "MK"]), 1),
        },
        index=index,
    )
    return pd.Series(truth, index=index), table


def test_every_score_by_hand(cells):
    truth, table = cells
    before = table.copy(deep=True), truth.copy(deep=True)
    scores = label_scores(truth, table, n_bins=7)
    pd.testing.assert_frame_equal(table, before[0])
    pd.testing.assert_series_equal(truth, before[1])
    t, p = truth.to_numpy(), table["label"].astype(str).to_numpy()
    shared, right = np.isin(t, ["B", "T", "NK"]), t == p
    recalls = {c: right[t == c].mean() for c in ("B", "NK", "T")}
    f1 = [2 * right[t == c].sum() / ((t == c).sum() + (p[shared] == c).sum()) for c in ("B", "NK", "T")]
    assert pick(scores, "balanced_accuracy") == pytest.approx(np.mean(list(recalls.values())))
    assert pick(scores, "macro_f1") == pytest.approx(np.mean(f1))
    for name, of in (("shared", shared), ("all", np.ones(300, bool))):
        assert pick(scores, "accuracy", name) == pytest.approx(right[of].mean())
        assert pick(scores, "ARI", name) == pytest.approx(rand_index(t[of], p[of]))
        assert pick(scores, "AMI", name) == pytest.approx(mutual_information(t[of], p[of]), abs=2e-3)
        sure = table["confidence"].to_numpy()[of]
        assert pick(scores, "calibration_error", name) == pytest.approx(ece(sure, right[of], 7))
        assert pick(scores, "confidence_auroc", name) == pytest.approx(auroc(right[of], sure))
    assert pick(scores, "unknown_auroc") == pytest.approx(auroc(~shared, table["novelty"]))
    assert pick(scores, "unknown_recall") == pytest.approx((p[~shared] == "unknown").mean())
    assert pick(scores, "false_unknown_rate") == pytest.approx((p[shared] == "unknown").mean())
    rows = scores[scores["metric"] == "recall"].set_index("cell_type")
    assert rows["value"].to_dict() == pytest.approx(recalls)
    assert rows["n"].to_dict() == {c: (t == c).sum() for c in recalls}
    assert scores["n"].dtype.kind == "i"
    assert scores["value"].dtype == float
    assert set(scores.loc[scores["cells"] == "all", "n"]) == {300, (~shared).sum()}


def test_cells_are_matched_by_index_or_position(cells):
    truth, table = cells
    expected = label_scores(truth, table)
    shuffled = table.sample(frac=1, random_state=1)
    pd.testing.assert_frame_equal(label_scores(truth, shuffled), expected)
    apart = {name: table[name].sample(frac=1, random_state=2) for name in ("confidence", "novelty")}
    pd.testing.assert_frame_equal(label_scores(truth, shuffled["label"], **apart), expected)
    pd.testing.assert_frame_equal(label_scores(truth.to_numpy(), table["label"], **apart), expected)
    known = ["B", "NK", "T", "granulocyte"]
    arrays = {name: list(table[name]) for name in ("confidence", "novelty")}
    pd.testing.assert_frame_equal(
        label_scores(list(truth), table["label"].astype(str).to_numpy(), known=known, **arrays), expected
    )
    # given columns win over those of the table
    halved = label_scores(truth, table, confidence=table["confidence"] / 2)
    assert pick(halved, "calibration_error", "all") != pick(expected, "calibration_error", "all")


def test_what_is_known():
    truth = ["T", "T", "B", "NK"]
    assert pick(label_scores(truth, ["T", "B", "B", "T"]), "balanced_accuracy") == 0.75
    assert pick(label_scores(truth, ["T", "B", "B", "T"], known=["T", "B", "NK"]), "balanced_accuracy") == 0.5
    # a type that the context has but nobody was given is known all the same
    categorical = pd.Categorical(["T", "B", "B", "T"], categories=["B", "NK", "T"])
    assert pick(label_scores(truth, categorical), "balanced_accuracy") == 0.5
    categorical = pd.Categorical(["T", "B", "B", "unknown"], categories=["B", "T", "unknown"])
    scores = label_scores(truth, categorical)
    assert pick(scores, "balanced_accuracy") == 0.75
    assert pick(scores, "unknown_recall") == 1
    # nor is "unknown" a type that the context has
    scores = label_scores(["T", "unknown", "unknown"], ["T", "unknown", "T"])
    assert (pick(scores, "balanced_accuracy"), pick(scores, "unknown_recall")) == (1, 0.5)
    scores = label_scores(truth, ["T", "novel", "B", "novel"], unknown="novel")
    assert (pick(scores, "unknown_recall"), pick(scores, "false_unknown_rate")) == (1, pytest.approx(1 / 3))
    assert not {"unknown_recall", "false_unknown_rate"} & set(label_scores(truth, ["T", "B", "B", "T"])["metric"])


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA])
def test_missing_predictions_are_wrong(missing):
    truth = pd.Series(["T", "T", "B", "B"], dtype=object)
    predicted = pd.Series(["T", missing, "B", "B"], dtype=object)
    scores = label_scores(truth, predicted, confidence=[1.0, np.nan, 1.0, 1.0])
    assert pick(scores, "balanced_accuracy") == 0.75
    assert pick(scores, "accuracy", "all") == 0.75
    assert pick(scores, "calibration_error", "all") == 0  # confidence 0, and wrong
    assert pick(scores, "confidence_auroc", "all") == 1
    assert pick(scores, "ARI", "all") == pytest.approx(rand_index(list("TTBB"), list("T-BB")))
    assert scores.loc[scores["metric"] == "recall", "value"].tolist() == [1, 0.5]
    category = predicted.astype("category")
    pd.testing.assert_frame_equal(label_scores(truth, category, confidence=[1.0, np.nan, 1.0, 1.0]), scores)


def test_cells_without_truth_are_left_out(cells):
    truth, table = cells
    some = truth.astype(object).where(np.arange(300) % 3 > 0)
    kept = some.notna()
    pd.testing.assert_frame_equal(label_scores(some, table), label_scores(truth[kept], table[kept]))


def test_undefined_scores_are_nan():
    scores = label_scores(["T", "B"], ["T", "B"], confidence=[0.9, 0.8], novelty=[1, np.inf])
    for metric in ("unknown_auroc",):
        assert np.isnan(pick(scores, metric))
    assert np.isnan(pick(scores, "confidence_auroc", "all"))  # nothing is wrong
    assert np.isnan(pick(label_scores(["T", "B"], ["T", "unknown"], known=["T", "B"]), "unknown_recall"))
    with pytest.warns(UserWarning, match="No type of truth is known to the context. truth has: 'B', 'T'; known: 't'"):
        scores = label_scores(["T", "B"], ["t", "unknown"], novelty=[1, 2], confidence=[0.5, 0.5])
    undefined = scores[scores["cells"] == "shared"]
    assert undefined["value"].isna().all() and (undefined["n"] == 0).all()
    assert pick(scores, "unknown_recall") == 0.5
    # infinite novelty is the highest
    assert pick(label_scores(["T", "DC"], ["T", "T"], novelty=[5, np.inf]), "unknown_auroc") == 1


def test_label_errors(cells):
    truth, table = cells
    with pytest.raises(KeyError, match="predicted lacks the column 'label'. It has: 'confidence', 'novelty'"):
        label_scores(truth, table.drop(columns="label"))
    with pytest.raises(ValueError, match="predicted has 299 values and truth has 300"):
        label_scores(truth, table.iloc[1:])
    with pytest.raises(ValueError, match="these of predicted are not in truth: 'x0', .*(300 in all).*Pass arrays"):
        label_scores(truth, table.set_axis([f"x{i}" for i in range(300)]))
    with pytest.raises(ValueError, match="differ and repeat"):
        label_scores(truth, table.set_axis(["x"] * 300))
    with pytest.raises(ValueError, match="truth has no labels"):
        label_scores([None, np.nan], ["T", "T"])
    with pytest.raises(ValueError, match="truth has no labels"):
        label_scores([], [])
    with pytest.raises(ValueError, match="confidence must be between 0 and 1, but has 1.5"):
        label_scores(["T", "B"], ["T", "B"], confidence=[0.5, 1.5])
    with pytest.raises(ValueError, match="confidence is missing for 1 cells"):
        label_scores(["T", "B"], ["T", "B"], confidence=[0.5, np.nan])
    with pytest.raises(ValueError, match="novelty is missing for 1 cells"):
        label_scores(["T", "B"], ["T", "B"], novelty=[0.5, np.nan])
    with pytest.raises(TypeError, match="novelty must hold numbers"):
        label_scores(["T", "B"], ["T", "B"], novelty=["a", "b"])
    with pytest.raises(TypeError, match="known must be a list of labels, but got the string 'T'"):
        label_scores(["T", "B"], ["T", "B"], known="T")
    with pytest.raises(TypeError, match="truth must be a Series or a sequence .* ndarray of shape"):
        label_scores(np.zeros((2, 2)), ["T", "B"])
    for n_bins in (0, 2.5, True):
        with pytest.raises(ValueError, match="n_bins=.* must be a whole number of at least 1"):
            label_scores(["T"], ["T"], n_bins=n_bins)


# ---------------------------------------------------------------------------------------------------- embeddings


@pytest.fixture
def embedded():
    rng = np.random.default_rng(0)
    labels = np.repeat(["a", "b", "c"], [60, 50, 40])
    species = np.tile(["mouse", "human"], 75)
    centers = {"a": [0, 0, 0], "b": [6, 0, 0], "c": [0, 6, 0]}
    before = np.stack([centers[c] for c in labels]) + rng.normal(size=(150, 3))
    after = before.copy()
    blended = (species == "mouse") & (labels == "c")
    after[blended] = rng.normal(size=(blended.sum(), 3)) + centers["a"]  # mouse c among mouse a
    index = [f"cell{i}" for i in range(150)]
    obs = pd.DataFrame({"cell_type": labels, "species": species, "batch": rng.choice(["1", "2"], 150)}, index=index)
    return ad.AnnData(np.zeros((150, 1), np.float32), obs=obs, obsm={"X_new": after, "X_pca": before})


def davies_bouldin(x, labels):
    names = np.unique(labels)
    middle = [x[labels == c].mean(0) for c in names]
    spread = [np.linalg.norm(x[labels == c] - m, axis=1).mean() for c, m in zip(names, middle, strict=True)]
    return np.mean(
        [
            max((spread[i] + spread[j]) / np.linalg.norm(middle[i] - middle[j]) for j in range(len(names)) if j != i)
            for i in range(len(names))
        ]
    )


def value(table, metric, group):
    return table.set_index(["metric", "group"])["value"].to_dict()[metric, group]


def test_embedding_scores(embedded):
    keys = {"before": "X_pca", "groups": "species", "batches": "batch"}
    original = embedded.copy()
    scores = embedding_scores(embedded, "cell_type", use_rep="X_new", **keys)
    pd.testing.assert_frame_equal(original.obs, embedded.obs)
    np.testing.assert_array_equal(original.obsm["X_new"], embedded.obsm["X_new"])
    obs, after = embedded.obs, embedded.obsm["X_new"]
    for group in ("all", "mouse", "human"):
        of = np.ones(150, bool) if group == "all" else (obs["species"] == group).to_numpy()
        for metric, key in (("davies_bouldin", "cell_type"), ("davies_bouldin_batches", "batch")):
            assert value(scores, metric, group) == pytest.approx(davies_bouldin(after[of], obs[key].to_numpy()[of]))
    # three types far apart; c and a blended in the mouse only
    assert value(scores, "self_projection_before", "mouse") > 0.98
    assert value(scores, "alcs", "human") == pytest.approx(0, abs=0.02)
    assert 0.1 < value(scores, "alcs", "mouse") < 0.5
    for group in ("mouse", "human", "mean"):
        assert value(scores, "alcs", group) == pytest.approx(
            value(scores, "self_projection_before", group) - value(scores, "self_projection_after", group)
        )
    assert value(scores, "alcs", "mean") == pytest.approx(
        (value(scores, "alcs", "mouse") + value(scores, "alcs", "human")) / 2
    )
    assert scores.loc[scores["group"] == "mean", "n"].unique() == [150]

    # arrays and Series in another order give the same
    shuffled = obs.sample(frac=1, random_state=0)
    frame = pd.DataFrame(after, index=obs.index)
    arguments = {"groups": shuffled["species"], "batches": shuffled["batch"].to_numpy()}
    arguments["batches"] = obs["batch"].to_numpy()
    again = embedding_scores(frame, shuffled["cell_type"], before=embedded.obsm["X_pca"], **arguments)
    pd.testing.assert_frame_equal(again, scores)
    again = embedding_scores(after, obs["cell_type"], before=embedded.obsm["X_pca"], **arguments)
    pd.testing.assert_frame_equal(again, scores)


def test_self_projection_does_not_depend_on_scale(embedded):
    after = embedded.obsm["X_new"]
    labels = embedded.obs["cell_type"]
    plain, scaled = (embedding_scores(x, labels) for x in (after, after * [1e-3, 5, 1e3]))
    assert value(plain, "self_projection_after", "all") == pytest.approx(value(scaled, "self_projection_after", "all"))
    assert set(plain["metric"]) == {"davies_bouldin", "self_projection_after"}
    assert set(plain["group"]) == {"all", "mean"}


def test_rare_types_and_missing_labels_are_left_out(embedded):
    labels = embedded.obs["cell_type"].astype(object).copy()
    labels.iloc[:3] = "rare"
    labels.iloc[3:10] = None
    scores = embedding_scores(embedded.obsm["X_new"], labels).set_index(["metric", "group"])
    assert scores.loc[("davies_bouldin", "all"), "n"] == 143
    assert scores.loc[("self_projection_after", "all"), "n"] == 140
    few = embedding_scores(embedded.obsm["X_new"], labels, max_cells=100)
    assert few.set_index("metric").loc["self_projection_after", "n"].max() <= 100
    pd.testing.assert_frame_equal(few, embedding_scores(embedded.obsm["X_new"], labels, max_cells=100))
    one = embedding_scores(embedded.obsm["X_new"], ["a"] * 150)
    assert one["value"].isna().all()


def test_chance_level_of_self_projection():
    rng = np.random.default_rng(0)
    scores = embedding_scores(rng.normal(size=(2000, 4)), rng.choice(["a", "b"], 2000))
    assert value(scores, "self_projection_after", "all") == pytest.approx(0.5, abs=0.05)


def test_embedding_errors(embedded):
    x, labels = embedded.obsm["X_new"], embedded.obs["cell_type"]
    with pytest.raises(TypeError, match="use_rep must name a key of adata.obsm if embedding is an AnnData"):
        embedding_scores(embedded, "cell_type")
    with pytest.raises(TypeError, match="must be None if it is an array"):
        embedding_scores(x, labels, use_rep="X_new")
    with pytest.raises(KeyError, match="use_rep='X_umap' is not in adata.obsm. Keys: 'X_new', 'X_pca'"):
        embedding_scores(embedded, "cell_type", use_rep="X_umap")
    with pytest.raises(KeyError, match="labels='type' is not in adata.obs"):
        embedding_scores(embedded, "type", use_rep="X_new")
    with pytest.raises(TypeError, match="groups='species' names a column of obs, but embedding is no AnnData"):
        embedding_scores(x, labels, groups="species")
    with pytest.raises(TypeError, match="before='X_pca' names a key of obsm, but embedding is no AnnData"):
        embedding_scores(x, labels, before="X_pca")
    with pytest.raises(ValueError, match="before has 3 cells and the embedding has 150"):
        embedding_scores(x, labels, before=x[:3])
    with pytest.raises(ValueError, match="labels has 149 values and embedding has 150"):
        embedding_scores(x, labels[1:])
    with pytest.raises(ValueError, match=r"embedding must have the shape \(n_cells, n_dimensions\), but has \(150,\)"):
        embedding_scores(x[:, 0], labels)
    with pytest.raises(TypeError, match="embedding must hold numbers"):
        embedding_scores(x.astype(str), labels)
    with pytest.raises(ValueError, match="embedding has missing or infinite values in 1 of 150 cells"):
        embedding_scores(np.where(np.arange(150)[:, None] == 3, np.nan, x), labels)
    with pytest.raises(ValueError, match="No cell has values in all of labels"):
        embedding_scores(x, [None] * 150)
    for name in ("n_splits", "max_cells"):
        with pytest.raises(ValueError, match=f"{name}=1 must be a whole number of at least 2"):
            embedding_scores(x, labels, **{name: 1})


def test_confidences_of_0_and_1_and_on_borders_have_their_bins():
    """Bins are closed on the right, 0 belongs to the first; a share of votes that rounding lifts is on its border."""
    found = label_scores(
        list("aaaa"),
        pd.DataFrame({"label": list("abab"), "confidence": [0.0, 0.1 + 0.2 - 1e-17, 0.3, 1.0]}),
        n_bins=10,
    )
    # bins: {0.0}, {0.3, 0.3}, {1.0}; right: 1, 0 and 1, 0
    expected = (1 * abs(1 - 0) + 2 * abs(0.5 - 0.3) + 1 * abs(0 - 1)) / 4
    np.testing.assert_allclose(pick(found, "calibration_error", "all"), expected)
    one = label_scores(["a"], pd.DataFrame({"label": ["a"], "confidence": [0.4]}), n_bins=1)
    np.testing.assert_allclose(pick(one, "calibration_error", "all"), 0.6)


def test_every_score_says_of_which_cells_it_is():
    predicted = pd.DataFrame(
        {"label": ["a", "a", "unknown"], "confidence": [0.9, 0.6, 0.7], "novelty": [0.1, 0.3, 0.8]}
    )
    table = label_scores(list("aac"), predicted, known=["a", "b"])
    of = table.groupby("metric")["cells"].agg(set)
    for metric in ("balanced_accuracy", "macro_f1", "false_unknown_rate", "recall"):
        assert of[metric] == {"shared"}, metric
    assert of["unknown_auroc"] == of["unknown_recall"] == {"all"}
    assert table["cells"].notna().all()
