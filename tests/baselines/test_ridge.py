"""The bilinear ridge: by hand in normal equations, and exact on data that follow it."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import transverse as tv

PCRidge = tv.baselines.PCRidge
CONTEXTS = ["C1", "C2", "C3"]


def cells_of(shifts, genes, seed=0, sd=0.0):
    """Cells whose conditions have exactly these shifts (name, context) -> (genes,)."""
    rng = np.random.default_rng(seed)
    contexts = sorted({c for _, c in shifts})
    base = {c: rng.uniform(20, 22, len(genes)) for c in contexts}
    rows, cells = [], []
    for (name, c), shift in ({("control", c): 0 * base[c] for c in contexts} | shifts).items():
        for _ in range(int(rng.integers(1, 4))):
            cells.append(base[c] + shift + rng.normal(0, sd, len(genes)))
            rows.append((name, c))
    obs = pd.DataFrame(rows, columns=["perturbation", "cell_type"], index=[f"cell{i}" for i in range(len(rows))])
    return ad.AnnData(np.array(cells), obs=obs, var=pd.DataFrame(index=genes))


def without(adata, name, context):
    return adata[~((adata.obs["perturbation"] == name) & (adata.obs["cell_type"] == context)).to_numpy()]


def normal_equations(p, y, alpha, query):
    """Ridge with an intercept that is not penalised."""
    p_mean, y_mean = p.mean(0), y.mean(0)
    w = np.linalg.solve((p - p_mean).T @ (p - p_mean) + alpha * np.eye(p.shape[1]), (p - p_mean).T @ (y - y_mean))
    return y_mean + (query - p_mean) @ w


def random_shifts(names, contexts, n_genes, seed=0):
    rng = np.random.default_rng(seed)
    return {(name, c): rng.normal(0, 1, n_genes) for name in names for c in contexts}


GENES = [f"G{i}" for i in range(30)]


@pytest.mark.parametrize("k", [1, 4, 50])
@pytest.mark.parametrize("alpha", [0.1, 10.0])
@pytest.mark.parametrize("embedding", ["responses", "genes", "auto"])
@pytest.mark.parametrize("new_context", [False, True])
def test_by_hand(k, alpha, embedding, new_context):
    """Perturbations are named by genes, so that both embeddings can be had."""
    names, name, context = [*GENES[:7], "G1+G5"], "G3", "C2"
    shifts = random_shifts(names, CONTEXTS, len(GENES))
    del shifts["G4", "C3"]
    kept = {pair: s for pair, s in shifts.items() if pair[1] != context or (pair[0] != name and not new_context)}
    adata = cells_of(shifts, GENES)
    adata = adata[[(p == "control" or (p, c) in kept) for p, c in adata.obs.to_numpy()]]

    y = np.array(list(kept.values()))
    centred = (y - y.mean(0)).T
    g, d, _ = np.linalg.svd(centred, full_matrices=False)
    g, d = g[:, :k], d[:k]

    def embed(pair):
        if embedding == "genes":
            return sum((g * d)[GENES.index(gene)] for gene in pair[0].split("+"))
        others = [kept[pair[0], c] for c in ("C1", "C3") if c != pair[1] and (pair[0], c) in kept]
        return g.T @ np.mean(others, axis=0) if others else None

    training = [p for p in kept if embed(p) is not None]
    own = [p for p in training if p[1] == context]
    training = own if len(own) > k else training
    y = np.array([kept[p] for p in training])
    outside = y.mean(0) - g @ (g.T @ y.mean(0))
    expected = normal_equations(np.array([embed(p) for p in training]), y @ g, alpha, embed((name, context)))
    expected = outside + g @ expected
    baseline = PCRidge(k, alpha, embedding).fit(adata)
    np.testing.assert_allclose(baseline.predict_change(name, context), expected, atol=1e-6)
    # a second call takes what the first has kept
    np.testing.assert_allclose(baseline.predict_change(name, context), expected, atol=1e-6)
    assert baseline.predict(name, context).uns["prediction"]["source"] == sorted({p[1] for p in training})


def test_exact_from_responses():
    """In the predicted context a linear map of what happens in the others, plus a mean."""
    rng = np.random.default_rng(0)
    names, rank = [f"P{i:02d}" for i in range(20)], 4
    latent = rng.normal(size=(len(names), rank))
    shifts = {}
    for c in CONTEXTS:
        decode, mean = rng.normal(size=(rank, len(GENES))), rng.normal(size=len(GENES))
        shifts |= {(name, c): mean + latent[i] @ decode for i, name in enumerate(names)}
    adata = cells_of(shifts, GENES)
    for name in names[:3]:
        train = without(adata, name, "C2")
        change = PCRidge(18, alpha=1e-9).fit(train).predict_change(name, "C2")
        np.testing.assert_allclose(change, shifts[name, "C2"], atol=1e-5)
        assert np.abs(PCRidge(18, alpha=1e4).fit(train).predict_change(name, "C2") - shifts[name, "C2"]).max() > 0.5
        assert np.abs(PCRidge(2, alpha=1e-9).fit(train).predict_change(name, "C2") - shifts[name, "C2"]).max() > 0.1


def test_exact_from_responses_in_a_new_context():
    """Contexts that scale effects by the same amount each: the map learnt elsewhere holds for a new one."""
    rng = np.random.default_rng(1)
    names, rank = [f"P{i:02d}" for i in range(15)], 3
    effects = rng.normal(size=(len(names), rank)) @ rng.normal(size=(rank, len(GENES)))
    shifts = {(name, c): effects[i] for c in CONTEXTS for i, name in enumerate(names)}
    adata = cells_of(shifts, GENES)
    train = adata[((adata.obs["cell_type"] != "C1") | (adata.obs["perturbation"] == "control")).to_numpy()]
    baseline = PCRidge(5, alpha=1e-9).fit(train)
    for name in names:
        np.testing.assert_allclose(baseline.predict_change(name, "C1"), shifts[name, "C1"], atol=1e-5)


def test_exact_from_genes():
    """Any linear function of the genes' own coordinates is recovered, for genes that no perturbation has hit."""
    rank = 3
    rng = np.random.default_rng(0)
    h, _ = np.linalg.qr(rng.normal(size=(len(GENES), rank)))
    w = rng.normal(size=(rank, rank))
    mean = rng.normal(size=len(GENES))
    true = {gene: mean + 5 * (h[i] @ w) @ h.T for i, gene in enumerate(GENES)}
    known = GENES[:20]
    adata = cells_of({(gene, "C1"): true[gene] for gene in known}, GENES)
    for embedding in ("genes", "auto"):
        baseline = PCRidge(10, 1e-9, embedding).fit(adata)
        for gene in GENES[20:]:
            np.testing.assert_allclose(baseline.predict_change(gene), true[gene], atol=1e-5)
            assert baseline.predict(gene).obs["perturbation"].unique().tolist() == [gene]
        # coordinates of a combination add up
        double = mean + (true["G1"] - mean) + (true["G25"] - mean)
        np.testing.assert_allclose(baseline.predict_change(["G25", "G1"]), double, atol=1e-5)
    one_context = adata.copy()
    del one_context.obs["cell_type"]
    change = PCRidge(10, 1e-9).fit(one_context, context_key=None).predict_change("G21")
    np.testing.assert_allclose(change, true["G21"], atol=1e-5)


def test_auto_takes_responses_where_it_can():
    names = GENES[:6]
    shifts = random_shifts(names, CONTEXTS, len(GENES), seed=2)
    del shifts["G0", "C2"], shifts["G0", "C3"], shifts["G1", "C1"]
    baselines = {e: PCRidge(3, embedding=e).fit(cells_of(shifts, GENES)) for e in ("auto", "responses", "genes")}
    for name, chosen in (("G1", "responses"), ("G9", "genes"), ("G1+G2", "genes")):
        expected = baselines[chosen].predict_change(name, "C1")
        np.testing.assert_array_equal(baselines["auto"].predict_change(name, "C1"), expected)
    # its only measurement is the one that is asked for
    np.testing.assert_array_equal(
        baselines["auto"].predict_change("G0", "C1"), baselines["genes"].predict_change("G0", "C1")
    )
    with pytest.raises(ValueError, match="'G0' was not measured in any context to carry from"):
        baselines["responses"].predict("G0", "C1")


def test_sources_are_respected():
    shifts = random_shifts([f"P{i}" for i in range(6)], CONTEXTS, len(GENES))
    adata = cells_of(shifts, GENES)
    part = adata[(adata.obs["cell_type"] != "C3").to_numpy()]
    baseline = PCRidge(3).fit(without(adata, "P1", "C1"))
    baseline.predict_change("P1", "C1")
    expected = PCRidge(3).fit(without(part, "P1", "C1")).predict_change("P1", "C1")
    np.testing.assert_allclose(baseline.predict_change("P1", "C1", source="C2"), expected, atol=1e-9)


def test_one_decomposition_for_all_held_out_conditions(monkeypatch):
    calls, svd = [], np.linalg.svd

    def counted(a, *args, **kwargs):
        if a.shape[1] == len(GENES):  # the ridge has its own, of the components
            calls.append(a)
        return svd(a, *args, **kwargs)

    monkeypatch.setattr(np.linalg, "svd", counted)
    names = [f"P{i}" for i in range(8)]
    shifts = random_shifts(names, CONTEXTS, len(GENES))
    for c, name in zip(CONTEXTS, names, strict=False):
        del shifts[name, c]
    baseline = PCRidge(3).fit(cells_of(shifts, GENES))
    for c, name in zip(CONTEXTS, names, strict=False):
        assert baseline.supports(name, c)
        baseline.predict(name, c)
    assert len(calls) == 1
    baseline.predict("P7", "C1")
    assert len(calls) == 2


def test_messages():
    for k in (0, -1, 2.5, "10"):
        with pytest.raises(ValueError, match=f"n_components={k!r} must be a whole number of at least 1"):
            PCRidge(k)
    for alpha in (0, -1, np.nan):
        with pytest.raises(ValueError, match=f"alpha={alpha!r} must be positive"):
            PCRidge(alpha=alpha)
    with pytest.raises(ValueError, match="embedding='pca' must be 'auto', 'responses' or 'genes'"):
        PCRidge(embedding="pca")
    names = ["P1", "P2", "G1", "G2", "G3"]
    adata = cells_of(random_shifts(names, ["C1"], len(GENES)), GENES)
    with pytest.raises(
        ValueError, match=r"'P1' has no embedding: it was not measured in another .* measured gene \('P1'\)"
    ):
        PCRidge().fit(adata).predict("P1")
    with pytest.raises(ValueError, match=r"'G1\+P2' has no embedding: it names no measured gene \('P2'\)"):
        PCRidge(embedding="genes").fit(adata).predict("P2+G1")
    with pytest.raises(KeyError, match="Unknown perturbation: 'P9'"):
        PCRidge().fit(adata).predict("P9")
    with pytest.raises(KeyError, match="Unknown perturbation: 'G7'"):
        PCRidge(embedding="responses").fit(adata).predict("G7")
    few = cells_of(random_shifts(["G1", "G2"], ["C1"], len(GENES)), GENES)
    with pytest.raises(ValueError, match="PCRidge needs at least two measured conditions beside the predicted one"):
        PCRidge().fit(few).predict("G1")
    assert PCRidge().fit(few).supports("G5")
    few = cells_of(random_shifts(["P1", "P2", "G1"], ["C1"], len(GENES)), GENES)
    with pytest.raises(ValueError, match="at least two training perturbations that it can embed, in 'C1' .* but has 1"):
        PCRidge().fit(few).predict("G5")
