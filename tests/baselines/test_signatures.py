"""Baselines of signatures by hand on random signatures with gaps, exact on planted ones, and what they may not see."""

import re
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import transverse as tv

b = tv.baselines
CopySource, MeanOfSources, MeanSignature, RidgeSignature = (
    getattr(b, name) for name in ("CopySource", "MeanOfSources", "MeanSignature", "RidgeSignature")
)
BASELINES = {
    "copy": CopySource,
    "random copy": lambda: CopySource("random", seed=1),
    "mean": MeanOfSources,
    "similarity": lambda: MeanOfSources("similarity"),
    "mean signature": MeanSignature,
    "ridge": lambda: RidgeSignature(6),
}
EVERY = pytest.mark.parametrize("name", BASELINES)
HELD = ("D03", "D07", "D10")
DRUGS, CELL_TYPES = [f"D{i:02d}" for i in range(12)], ["PC3", "MCF7", "A549", "HT29"]


@pytest.fixture
def grid():
    """Replicated signatures with gaps, in random order, and by hand the mean of every pair."""
    rng = np.random.default_rng(0)
    shared = {drug: rng.normal(0, 1, 15) for drug in DRUGS}
    rows, values = [], []
    for drug in DRUGS:
        for i, cell_type in enumerate(CELL_TYPES):
            gap = rng.uniform() < 0.25 and drug not in HELD
            if gap or (drug, cell_type) == ("D07", "HT29"):
                continue
            for _ in range(int(rng.integers(1, 4))):
                rows.append((drug, cell_type))
                values.append(shared[drug] + rng.normal(0, 0.4 * (i + 1), 15))
    order = rng.permutation(len(rows))
    obs = pd.DataFrame([rows[i] for i in order], columns=["perturbation", "cell_type"]).astype("category")
    obs.index = [f"sig{i}" for i in range(len(rows))]
    adata = ad.AnnData(np.array(values, dtype=np.float32)[order], obs=obs)
    adata.var_names = [f"g{i}" for i in range(15)]
    return adata, means_of(adata)


def means_of(adata):
    x, pairs = np.asarray(adata.X, dtype=float), list(adata.obs.itertuples(index=False, name=None))
    return {pair: np.mean([x[i] for i, one in enumerate(pairs) if one == pair], axis=0) for pair in set(pairs)}


def part(adata, drugs=None, cell_types=None, not_target=None):
    keep = np.ones(adata.n_obs, dtype=bool)
    if drugs is not None:
        keep &= adata.obs["perturbation"].isin(drugs).to_numpy()
    if cell_types is not None:
        keep &= adata.obs["cell_type"].isin(cell_types).to_numpy()
    if not_target is not None:
        keep &= (adata.obs["cell_type"] != not_target).to_numpy()
    return adata[keep]


def split(adata, target="MCF7", drugs=HELD):
    """A training without some drugs in the target, and their signatures elsewhere."""
    held = (adata.obs["perturbation"].isin(drugs) & (adata.obs["cell_type"] == target)).to_numpy()
    return adata[~held], part(adata, drugs, not_target=target)


def agreement(means, source, target, name):
    values = [
        np.corrcoef(means[drug, source], means[drug, target])[0, 1]
        for drug in DRUGS
        if drug != name and (drug, source) in means and (drug, target) in means
    ]
    return np.mean(values) if values else 0.0


def by_drug(pred):
    return dict(zip(pred.obs["perturbation"], pred.X, strict=True))


# by hand


@pytest.mark.parametrize("target", ["MCF7", "PC3"])
def test_by_hand(grid, target):
    adata, means = grid
    train, query = split(adata, target)
    known = {(d, c): s for (d, c), s in means.items() if not (c == target and d in HELD)}
    preds = {name: by_drug(BASELINES[name]().fit(train).predict(query, target)) for name in BASELINES}
    for drug in HELD:
        sources = [c for c in CELL_TYPES if c != target and (drug, c) in means]
        assert len(sources) > 1
        signatures = np.array([means[drug, c] for c in sources])
        weights = np.maximum([agreement(known, c, target, drug) for c in sources], 0)
        expected = {
            "copy": signatures[weights.argmax()],
            "mean": signatures.mean(0),
            "similarity": weights @ signatures / weights.sum(),
            "mean signature": np.mean([s for (_, c), s in known.items() if c == target], axis=0),
        }
        for name, value in expected.items():
            np.testing.assert_allclose(preds[name][drug], value, rtol=1e-5, atol=1e-6)
        assert any(np.allclose(preds["random copy"][drug], signature, atol=1e-6) for signature in signatures)


@pytest.mark.parametrize("k", [1, 3, 6, 100])
@pytest.mark.parametrize("alpha", [1e-3, 0.1, 3.0])
def test_ridge_by_hand(grid, k, alpha):
    adata, means = grid
    train, query = split(adata)
    held = [("D03", "MCF7"), ("D07", "MCF7"), ("D10", "MCF7")]
    known = {pair: s for pair, s in means.items() if pair not in held}
    others = np.array([signature for (_, c), signature in known.items() if c != "MCF7"])
    centre = others.mean(0)
    v = np.linalg.svd(others - centre, full_matrices=False)[2][:k]
    pred = by_drug(RidgeSignature(k, alpha).fit(train).predict(query, "MCF7"))
    for drug in HELD:
        sources = [c for c in CELL_TYPES if c != "MCF7" and (drug, c) in means]
        x, y = [], []
        for other in DRUGS:
            found = [known[other, c] for c in sources if (other, c) in known]
            if (other, "MCF7") in known and found:
                x.append(v @ (np.mean(found, axis=0) - centre))
                y.append(known[other, "MCF7"])
        x, y = np.array(x), np.array(y)
        s = v @ (np.mean([means[drug, c] for c in sources], axis=0) - centre)
        dx = x - x.mean(0)
        penalty = alpha * (dx**2).sum() / len(v) * np.eye(len(v))
        t = y.mean(0) + (s - x.mean(0)) @ np.linalg.solve(dx.T @ dx + penalty, dx.T @ (y - y.mean(0)))
        np.testing.assert_allclose(pred[drug], t, rtol=1e-4, atol=1e-5)


def test_ridge_of_an_unseen_cell_type(grid):
    """Trained on the cell types that are known, each from the others."""
    adata, means = grid
    train = part(adata, not_target="MCF7")
    known = {pair: s for pair, s in means.items() if pair[1] != "MCF7"}
    everything = np.array(list(known.values()))
    centre = everything.mean(0)
    v = np.linalg.svd(everything - centre, full_matrices=False)[2][:6]
    x, y = [], []
    for (drug, cell_type), signature in known.items():
        found = [s for (d, c), s in known.items() if d == drug and c != cell_type]
        if found:
            x.append(v @ (np.mean(found, axis=0) - centre))
            y.append(signature)
    x, y = np.array(x), np.array(y)
    dx = x - x.mean(0)
    w = np.linalg.solve(dx.T @ dx + 0.1 * (dx**2).sum() / 6 * np.eye(6), dx.T @ (y - y.mean(0)))
    s = v @ (np.mean([s for (d, _), s in known.items() if d == "D03"], axis=0) - centre)
    expected = y.mean(0) + (s - x.mean(0)) @ w
    baseline = RidgeSignature(6).fit(train)
    np.testing.assert_allclose(by_drug(baseline.predict(train, "MCF7"))["D03"], expected, rtol=1e-4, atol=1e-5)
    # one signature of the target is not enough to learn from, and is not seen either
    one = adata[((adata.obs["cell_type"] != "MCF7") | (adata.obs["perturbation"] == "D03")).to_numpy()].copy()
    preds = []
    for _ in range(2):
        preds.append(by_drug(RidgeSignature(6).fit(one).predict(train, "MCF7"))["D03"])
        one.X[(one.obs["cell_type"] == "MCF7").to_numpy()] = 50
    np.testing.assert_array_equal(*preds)


@EVERY
def test_unseen_cell_type(grid, name):
    adata, means = grid
    train = part(adata, not_target="MCF7")
    pred = by_drug(BASELINES[name]().fit(train).predict(part(train, ["D03"]), "MCF7"))["D03"]
    signatures = np.array([means["D03", c] for c in sorted(CELL_TYPES) if ("D03", c) in means and c != "MCF7"])
    expected = {
        "copy": signatures[0],
        "mean": signatures.mean(0),
        "similarity": signatures.mean(0),
        "mean signature": np.mean([s for (_, c), s in means.items() if c != "MCF7"], axis=0),
    }
    if name in expected:
        np.testing.assert_allclose(pred, expected[name], rtol=1e-5, atol=1e-6)
    assert np.isfinite(pred).all()


# form


@EVERY
def test_form_of_a_prediction(grid, name, tmp_path):
    adata, means = grid
    train, query = split(adata)
    pred = BASELINES[name]().fit(train).predict(query, "MCF7")
    assert pred.X.dtype == np.float32
    assert pred.obs["perturbation"].tolist() == ["D03", "D07", "D10"]
    assert pred.obs["cell_type"].tolist() == ["MCF7"] * 3
    assert pred.obs_names.tolist() == ["D03|MCF7", "D07|MCF7", "D10|MCF7"]
    assert pred.var_names.equals(adata.var_names)
    counts = [sum(d == drug and c != "MCF7" for d, c in means) for drug in HELD]
    assert pred.obs["n_sources"].tolist() == counts
    pred.write_h5ad(tmp_path / "pred.h5ad")
    again = ad.read_h5ad(tmp_path / "pred.h5ad")
    np.testing.assert_array_equal(again.X, pred.X)
    assert again.uns["prediction"]["target"] == "MCF7"
    assert again.uns["prediction"]["method"] == type(BASELINES[name]()).__name__
    scores = tv.metrics.signature_scores(part(adata, list(HELD), ["MCF7"]), pred)
    assert set(scores["perturbation"]) == set(HELD)


@pytest.mark.parametrize("name", ["similarity", "mean signature", "ridge"])
def test_any_form_of_the_data_is_the_same(grid, name, tmp_path):
    adata, _ = grid
    train, query = split(adata)
    expected = BASELINES[name]().fit(train).predict(query, "MCF7").X
    before = adata.copy()
    for fmt, layer in ((np.asarray, None), (sp.csr_matrix, "z"), (sp.csc_matrix, None)):
        forms = []
        for i, one in enumerate((train, query)):
            x = fmt(one.X)
            form = ad.AnnData(x if layer is None else x * 0, obs=one.obs, var=one.var)
            if layer:
                form.layers[layer] = x
            path = tmp_path / f"{fmt.__name__}{layer}{i}.h5ad"
            form.write_h5ad(path)
            forms.append((form, ad.read_h5ad(path, backed="r")))
        for fit_on, predict_from in zip(*forms, strict=True):
            baseline = BASELINES[name]().fit(fit_on, layer=layer)
            np.testing.assert_allclose(baseline.predict(predict_from, "MCF7").X, expected, atol=1e-5)
        reordered = forms[1][0][::-1, ::-1]
        np.testing.assert_allclose(baseline.predict(reordered, "MCF7").X, expected, atol=1e-5)
        for form in forms:
            form[1].file.close()
    np.testing.assert_array_equal(adata.X, before.X)
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    assert not adata.uns


@EVERY
def test_other_rows_do_not_matter(grid, name):
    adata, _ = grid
    train, _ = split(adata)
    elsewhere = part(adata, not_target="MCF7")
    baseline = BASELINES[name]().fit(train)
    everything = by_drug(baseline.predict(elsewhere, "MCF7"))
    for drug in DRUGS:
        for one in (baseline, BASELINES[name]().fit(train[::-1])):
            alone = by_drug(one.predict(part(elsewhere, [drug])[::-1], "MCF7"))[drug]
            np.testing.assert_allclose(alone, everything[drug], rtol=1e-4, atol=1e-5)


def test_replicates_weigh_as_one(grid):
    adata, _ = grid
    train, query = split(adata)
    repeated = ad.concat([train, train[train.obs["cell_type"] == "PC3"]], index_unique="-")
    for name, make in BASELINES.items():
        a, c = make().fit(train).predict(query, "MCF7").X, make().fit(repeated).predict(query, "MCF7").X
        np.testing.assert_allclose(a, c, atol=1e-5, err_msg=name)


def test_random_choice(grid):
    adata, means = grid
    train, query = split(adata)
    preds = [CopySource("random", seed=seed).fit(train).predict(query, "MCF7").X for seed in range(20)]
    np.testing.assert_array_equal(CopySource("random").fit(train).predict(query, "MCF7").X, preds[0])
    sources = [c for c in CELL_TYPES if c != "MCF7" and ("D03", c) in means]
    chosen = {next(c for c in sources if np.allclose(means["D03", c], pred[0], atol=1e-5)) for pred in preds}
    assert chosen == set(sources)
    # drugs do not all have the same choice
    one_source_each = np.array([[np.allclose(p[i], preds[0][i]) for i in range(3)] for p in preds])
    assert (one_source_each.any(1) & ~one_source_each.all(1)).any()


def test_numbers_as_labels(grid):
    adata, _ = grid
    train, query = split(adata)
    expected = MeanOfSources("similarity").fit(train).predict(query, "MCF7").X
    adata.obs["line"] = adata.obs["cell_type"].cat.rename_categories({c: i for i, c in enumerate(sorted(CELL_TYPES))})
    adata.obs["dose"] = [int(drug[1:]) for drug in adata.obs["perturbation"]]
    train, query = split(adata)
    baseline = MeanOfSources("similarity").fit(train, perturbation_key="dose", cell_type_key="line")
    target = sorted(CELL_TYPES).index("MCF7")
    pred = baseline.predict(query, target)
    assert set(pred.obs["dose"]) == {"3", "7", "10"}
    np.testing.assert_allclose(pred[["3|2", "7|2", "10|2"]].X, expected, atol=1e-6)
    with pytest.raises(ValueError, match="adata has signatures of target='2'"):
        baseline.predict(adata, target)


# exact on what they assume


def simulate(**kwargs):
    params = {"n_drugs": 80, "n_cell_types": 3, "n_genes": 60, "n_mechanisms": 10, "noise": 0.0, "n_latent": 5}
    return tv.datasets.simulate_signatures("linear", **(params | kwargs))


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_ridge_is_exact_where_the_map_is_linear(missing):
    adata = simulate(missing_share=missing)
    drugs = adata.obs["perturbation"].cat.categories[::7]
    train, query = split(adata, "C2", drugs)
    # gaps change which sources a drug has: with one source the map is the same for all
    query = part(query, cell_types=["C1"])
    pred = RidgeSignature(50, alpha=1e-10).fit(train).predict(query, "C2")
    truth = {
        d: s for d, c, s in zip(adata.obs["perturbation"], adata.obs["cell_type"], adata.X, strict=True) if c == "C2"
    }
    found = [drug for drug in pred.obs["perturbation"] if drug in truth]
    assert len(found) > 2
    for drug in found:
        np.testing.assert_allclose(by_drug(pred)[drug], truth[drug], atol=1e-3)
    worse = by_drug(RidgeSignature(3, alpha=1e-10).fit(train).predict(query, "C2"))
    assert np.abs(worse[found[0]] - truth[found[0]]).max() > 0.05


def test_copies_are_exact_where_cell_types_are_alike():
    adata = simulate(shared_share=1.0)
    train, query = split(adata, "C2", adata.obs["perturbation"].cat.categories[:9])
    truth = part(adata, query.obs["perturbation"].unique(), ["C2"]).X
    for make in (CopySource, MeanOfSources, lambda: MeanOfSources("similarity"), lambda: CopySource("random")):
        np.testing.assert_allclose(make().fit(train).predict(query, "C2").X, truth, atol=1e-6)
    different = simulate(shared_share=0.3)
    train, query = split(different, "C2", adata.obs["perturbation"].cat.categories[:9])
    truth = part(different, query.obs["perturbation"].unique(), ["C2"]).X
    assert np.abs(MeanOfSources().fit(train).predict(query, "C2").X - truth).max() > 0.5


def test_the_similar_source_is_chosen(grid):
    """A cell type that repeats the target is found, and outweighs one that does the opposite."""
    adata, _ = grid
    twin, opposite = part(adata, cell_types=["MCF7"]).copy(), part(adata, cell_types=["MCF7"]).copy()
    twin.obs["cell_type"], opposite.obs["cell_type"] = "twin", "opposite"
    opposite.X = -opposite.X
    everything = ad.concat([opposite, twin, part(adata, cell_types=["MCF7"])], index_unique="-")
    train, query = split(everything)
    truth = means_of(twin)
    for make in (CopySource, lambda: MeanOfSources("similarity")):
        pred = by_drug(make().fit(train).predict(query, "MCF7"))
        for drug, value in pred.items():
            np.testing.assert_allclose(value, truth[drug, "twin"], atol=1e-6)


# leaks


@EVERY
@pytest.mark.parametrize("n_of_target", [None, 1, 2, 3])
def test_the_predicted_signature_is_never_seen(grid, name, n_of_target):
    adata, _ = grid
    of_target = [d for d in DRUGS if ((adata.obs["perturbation"] == d) & (adata.obs["cell_type"] == "MCF7")).any()]
    kept = ["D03", *[d for d in of_target if d != "D03"]][:n_of_target]
    keep = (adata.obs["cell_type"] != "MCF7") | adata.obs["perturbation"].isin(kept)
    adata = adata[keep.to_numpy()].copy()
    query = part(adata, ["D03"], not_target="MCF7")
    pair = ((adata.obs["perturbation"] == "D03") & (adata.obs["cell_type"] == "MCF7")).to_numpy()
    assert pair.any()
    changed = adata.copy()
    changed.X[pair] = np.random.default_rng(1).normal(0, 30, (pair.sum(), adata.n_vars))
    preds = [BASELINES[name]().fit(one).predict(query, "MCF7").X for one in (adata, changed)]
    np.testing.assert_array_equal(*preds)
    held_out = BASELINES[name]().fit(adata[~pair]).predict(query, "MCF7").X
    np.testing.assert_allclose(held_out, preds[0], atol=1e-5)


@EVERY
def test_rows_of_the_target_are_refused(grid, name):
    adata, _ = grid
    baseline = BASELINES[name]().fit(adata)
    for one in (adata, part(adata, cell_types=["MCF7"])):
        with pytest.raises(
            ValueError, match="adata has signatures of target='MCF7': the baseline would be shown the answer"
        ):
            baseline.predict(one, "MCF7")


def test_ridge_of_all_drugs_decomposes_once(grid, monkeypatch):
    """Asking for what is in the training too costs no further decomposition."""
    adata, _ = grid
    from transverse.baselines import _signatures

    fits = []

    class Counted(_signatures.PCA):
        def fit(self, x, y=None):
            fits.append(len(x))
            return super().fit(x, y)

    monkeypatch.setattr(_signatures, "PCA", Counted)
    RidgeSignature(6).fit(split(adata)[0]).predict(part(adata, not_target="MCF7"), "MCF7")
    assert len(fits) == 1


# odd signatures


def test_constant_signatures(grid):
    """Without warnings, and they agree with nothing."""
    adata, _ = grid
    train, query = split(adata)
    train = train.copy()
    for value in (0.0, 2.0):
        train.X[(train.obs["cell_type"] == "PC3").to_numpy()] = value
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", DeprecationWarning)  # of other packages
            for name, make in BASELINES.items():
                pred = make().fit(train).predict(query, "MCF7")
                assert np.isfinite(pred.X).all(), name
        weighted = by_drug(MeanOfSources("similarity").fit(train).predict(query, "MCF7"))
        without = by_drug(MeanOfSources("similarity").fit(train).predict(part(query, not_target="PC3"), "MCF7"))
        assert "D03" in without
        for drug, signature in without.items():
            np.testing.assert_allclose(weighted[drug], signature, atol=1e-6)


def test_sources_that_the_training_lacks(grid):
    adata, _ = grid
    train, query = split(adata)
    query = query.copy()
    query.obs["cell_type"] = query.obs["cell_type"].astype(str).replace({"PC3": "new1", "A549": "new2", "HT29": "new3"})
    for name, make in BASELINES.items():
        assert np.isfinite(make().fit(train).predict(query, "MCF7").X).all(), name


# messages


def test_arguments():
    with pytest.raises(ValueError, match="choice='best' must be 'similar' or 'random'"):
        CopySource("best")
    with pytest.raises(ValueError, match="weights='equal' must be 'uniform' or 'similarity'"):
        MeanOfSources("equal")
    for k in (0, 2.5, "10"):
        with pytest.raises(ValueError, match=f"n_components={k!r} must be a whole number of at least 1"):
            RidgeSignature(k)
    for alpha in (0, -1, np.nan):
        with pytest.raises(ValueError, match=f"alpha={alpha!r} must be positive"):
            RidgeSignature(alpha=alpha)


@EVERY
def test_messages(grid, name):
    adata, _ = grid
    baseline = BASELINES[name]()
    train, query = split(adata)
    with pytest.raises(ValueError, match=rf"{type(baseline).__name__} has not been fitted. Call fit\(adata\) first"):
        baseline.predict(query, "MCF7")
    with pytest.raises(TypeError, match="adata must be an AnnData, but got ndarray"):
        baseline.fit(np.asarray(train.X))
    with pytest.raises(
        KeyError, match="perturbation_key='drug' is not in adata.obs. Columns: 'perturbation', 'cell_type'"
    ):
        baseline.fit(train, perturbation_key="drug")
    with pytest.raises(KeyError, match="cell_type_key='line' is not in adata.obs"):
        baseline.fit(train, cell_type_key="line")
    with pytest.raises(KeyError, match="layer='z' is not in adata.layers"):
        baseline.fit(train, layer="z")
    with pytest.raises(ValueError, match="adata has no signatures"):
        baseline.fit(train[:0])
    baseline.fit(train)
    with pytest.raises(TypeError, match="adata must be an AnnData, but got ndarray"):
        baseline.predict(np.asarray(query.X), "MCF7")
    with pytest.raises(ValueError, match="adata has no signatures"):
        baseline.predict(query[:0], "MCF7")
    with pytest.raises(ValueError, match="1 of the 15 genes .* missing in adata: 'g0'"):
        baseline.predict(query[:, 1:], "MCF7")
    with pytest.raises(KeyError, match="cell_type_key='cell_type' is not in adata.obs"):
        baseline.predict(ad.AnnData(query.X, obs=query.obs[["perturbation"]], var=query.var), "MCF7")
    for one, call in ((train, baseline.fit), (query, lambda x: baseline.predict(x, "MCF7"))):
        wrong = one.copy()
        wrong.X[1, 1] = np.nan
        with pytest.raises(ValueError, match="adata.X has missing or infinite values"):
            call(wrong)
        wrong = one.copy()
        wrong.obs["perturbation"] = wrong.obs["perturbation"].where(np.arange(wrong.n_obs) != 1)
        with pytest.raises(ValueError, match=re.escape("adata.obs['perturbation'] is missing for 1 cells")):
            call(wrong)


def test_nothing_to_learn_from(grid):
    adata, _ = grid
    train, query = part(adata, cell_types=["MCF7"]), part(adata, cell_types=["PC3"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)  # of other packages
        with pytest.raises(ValueError, match="Fewer than two training .* nothing to learn target='MCF7' from"):
            RidgeSignature().fit(train).predict(query, "MCF7")
        only = part(train, ["D03"])
        with pytest.raises(ValueError, match="no signature beside that of 'D03' in target='MCF7'"):
            MeanSignature().fit(only).predict(part(query, ["D03"]), "MCF7")
    np.testing.assert_allclose(
        MeanOfSources().fit(train).predict(part(query, ["D03"]), "MCF7").X[0],
        part(query, ["D03"]).X.mean(0),
        atol=1e-6,
    )


def test_ridge_from_an_unknown_source_learns_from_all_others_to_the_target(grid):
    adata, _ = grid
    known = [drug for drug in DRUGS if drug not in HELD]
    train, query = part(adata, known), part(adata, HELD, ["PC3"])
    query.obs["cell_type"] = "new line"
    pred = RidgeSignature(6).fit(train).predict(query, "MCF7")
    # the target's own training signatures count, and what they are is nothing like the sources
    shifted = train.copy()
    shifted.X[(shifted.obs["cell_type"] == "MCF7").to_numpy()] += 5
    moved = RidgeSignature(6).fit(shifted).predict(query, "MCF7")
    np.testing.assert_allclose(moved.X, pred.X + 5, atol=1e-4)
