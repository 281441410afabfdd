"""Gene maps by name and by response, against computations by hand, and on real organs."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import transverse as tv

SameSymbol, ReactomeCorrelation = tv.baselines.SameSymbol, tv.baselines.ReactomeCorrelation
ORGANS, DRUGS = ["blood", "brain", "liver"], ["control", "d1", "d2"]


def samples(species, n_genes, seed, per_condition=3, rate=None):
    """Counts of samples of every organ and drug, in random order."""
    rng = np.random.default_rng(seed)
    rate = np.random.default_rng(7).lognormal(3, 1, (len(ORGANS), len(DRUGS), n_genes)) if rate is None else rate
    rows = [(o, d) for o in range(3) for d in range(3) for _ in range(per_condition)]
    rows = [rows[i] for i in rng.permutation(len(rows))]
    counts = np.stack([rng.poisson(rate[o, d]) for o, d in rows]).astype(np.float32)
    obs = pd.DataFrame(
        {"organ": [ORGANS[o] for o, _ in rows], "drug": [DRUGS[d] for _, d in rows], "species": species},
        index=[f"{species}{i}" for i in range(len(rows))],
    )
    genes = pd.DataFrame({"species": species}, index=[f"{species}_gene{i}" for i in range(n_genes)])
    return ad.AnnData(sp.csr_matrix(counts), obs=obs, var=genes)


@pytest.fixture
def data():
    return {"mouse": samples("mouse", 40, 0), "rat": samples("rat", 35, 1)}


def stacked(data):
    first, second = data.values()
    counts = sp.block_diag([first.X, second.X], format="csr")
    return ad.AnnData(counts, obs=pd.concat([first.obs, second.obs]), var=pd.concat([first.var, second.var]))


def deltas(adata, scale=1e6):
    x = adata.X.toarray().astype(float)
    y = np.log1p(x / x.sum(1, keepdims=True) * scale)
    organ, drug = adata.obs["organ"], adata.obs["drug"]

    def mean(o, d):
        return y[((organ == o) & (drug == d)).to_numpy()].mean(0)

    return np.stack([mean(o, d) - mean(o, "control") for o in ORGANS for d in ("d1", "d2")], axis=1)


def standardize(values, axis):
    return (values - values.mean(axis, keepdims=True)) / values.std(axis, keepdims=True)


def by_hand(first, second, metric, standard):
    if standard:
        first, second = standardize(first, 0), standardize(second, 0)
    if metric == "pearson":
        return np.array([[np.corrcoef(a, b)[0, 1] for b in second] for a in first])
    return np.array([[-np.linalg.norm(a - b) for b in second] for a in first])


@pytest.mark.parametrize("metric", ["pearson", "euclidean"])
@pytest.mark.parametrize("standard", [True, False, None])
def test_reactomes_by_hand(data, metric, standard, monkeypatch):
    monkeypatch.setattr("transverse.baselines._gene_maps._ROWS", 7)
    before = {name: adata.copy() for name, adata in data.items()}
    baseline = ReactomeCorrelation(metric, standard).fit(data)
    table = baseline.reactomes_["mouse"]
    assert list(table.columns) == [(o, d) for o in ORGANS for d in ("d1", "d2")]
    np.testing.assert_allclose(table, deltas(data["mouse"]), atol=1e-9)
    expected = by_hand(deltas(data["mouse"]), deltas(data["rat"]), metric, standard)
    scores = baseline.scores("mouse", "rat")
    np.testing.assert_allclose(scores, expected, atol=1e-9)
    assert scores.index.equals(data["mouse"].var_names) and scores.columns.equals(data["rat"].var_names)

    gene_map = baseline.map_genes("mouse", "rat", n_top=4)
    assert list(gene_map.columns) == ["source", "target", "score", "rank"]
    assert gene_map["source"].tolist() == np.repeat(data["mouse"].var_names, 4).tolist()
    assert gene_map["rank"].tolist() == [1, 2, 3, 4] * 40
    order = np.argsort(-expected, axis=1)[:, :4]
    assert gene_map["target"].tolist() == data["rat"].var_names[order.ravel()].tolist()
    np.testing.assert_allclose(gene_map["score"], -np.sort(-expected, axis=1)[:, :4].ravel(), atol=1e-9)
    assert len(baseline.map_genes("mouse", "rat", n_top=99)) == 40 * 35
    for name, adata in data.items():
        np.testing.assert_array_equal(adata.X.toarray(), before[name].X.toarray())
        pd.testing.assert_frame_equal(adata.obs, before[name].obs)
        pd.testing.assert_frame_equal(adata.var, before[name].var)


def test_form_of_the_input_does_not_matter(data):
    expected = ReactomeCorrelation().fit(data).map_genes("mouse", "rat")
    pd.testing.assert_frame_equal(ReactomeCorrelation().fit(stacked(data)).map_genes("mouse", "rat"), expected)
    shuffled = stacked(data)[np.random.default_rng(0).permutation(54)].copy()
    result = ReactomeCorrelation().fit(shuffled).map_genes("mouse", "rat")
    pd.testing.assert_frame_equal(result, expected)
    dense = {name: adata.copy() for name, adata in data.items()}
    for adata in dense.values():
        adata.layers["counts"] = adata.X.toarray()
        adata.X = adata.X * 0.5
        adata.obs = adata.obs.rename(columns={"organ": "tissue", "drug": "treatment"})
        adata.obs["treatment"] = adata.obs["treatment"].replace("control", "vehicle").astype("category")
    keys = {"organ_key": "tissue", "drug_key": "treatment", "control": "vehicle", "layer": "counts"}
    pd.testing.assert_frame_equal(ReactomeCorrelation().fit(dense, **keys).map_genes("mouse", "rat"), expected)
    for adata in dense.values():
        x = adata.layers["counts"].astype(float)
        adata.X = np.log1p(x / x.sum(1, keepdims=True) * 1e6)
    keys["layer"] = None
    result = ReactomeCorrelation(normalize="given").fit(dense, **keys).map_genes("mouse", "rat")
    pd.testing.assert_frame_equal(result, expected)


@pytest.mark.parametrize("metric", ["pearson", "euclidean"])
@pytest.mark.parametrize("drug_key", ["drug", None])
def test_identical_reactomes_map_perfectly(metric, drug_key):
    mouse = samples("mouse", 300, 0)
    order = np.random.default_rng(1).permutation(300)
    rat = mouse[::-1, order].copy()
    rat.var_names = [f"rat_{i}" for i in range(300)]
    truth = dict(zip(mouse.var_names[order], rat.var_names, strict=True))
    baseline = ReactomeCorrelation(metric).fit({"mouse": mouse, "rat": rat}, drug_key=drug_key)
    for gene_map in (baseline.map_genes("mouse", "rat"), baseline.scores("mouse", "rat")):
        scores = tv.metrics.gene_map_scores(gene_map, truth, k=1).set_index("metric")["value"]
        assert scores["recall@1"] == scores["mrr"] == 1


def test_organ_means_without_drugs(data):
    baseline = ReactomeCorrelation().fit(data, drug_key=None)
    x = data["rat"].X.toarray().astype(float)
    y = np.log1p(x / x.sum(1, keepdims=True) * 1e6)
    expected = np.stack([y[(data["rat"].obs["organ"] == o).to_numpy()].mean(0) for o in ORGANS], axis=1)
    table = baseline.reactomes_["rat"]
    assert list(table.columns) == ORGANS
    np.testing.assert_allclose(table, expected)


def test_entries_of_both_species_only(data):
    obs = data["mouse"].obs
    data["mouse"] = data["mouse"][~((obs["organ"] == "liver") & (obs["drug"] == "control")).to_numpy()].copy()
    obs = data["rat"].obs
    data["rat"] = data["rat"][~((obs["organ"] == "brain") & (obs["drug"] == "d1")).to_numpy()].copy()
    baseline = ReactomeCorrelation(standardize=False).fit(data)
    assert set(baseline.reactomes_["mouse"]) == {(o, d) for o in ("blood", "brain") for d in ("d1", "d2")}
    assert ("brain", "d1") not in baseline.reactomes_["rat"]
    common = [("blood", "d1"), ("blood", "d2"), ("brain", "d2")]
    first, second = (baseline.reactomes_[name][common].to_numpy() for name in ("mouse", "rat"))
    np.testing.assert_allclose(baseline.scores("mouse", "rat"), by_hand(first, second, "pearson", False), atol=1e-9)


def test_few_samples(data):
    obs = data["mouse"].obs
    d1 = np.flatnonzero((obs["organ"] == "liver") & (obs["drug"] == "d1"))[1:]
    data["mouse"] = data["mouse"][np.setdiff1d(np.arange(len(obs)), d1)].copy()
    with pytest.warns(UserWarning, match="1 of the 6 entries of 'mouse' rest on a single sample: 'liver / d1'"):
        baseline = ReactomeCorrelation().fit(data)
    assert baseline.reactomes_["mouse"].shape[1] == 6
    assert ReactomeCorrelation(min_samples=2).fit(data).reactomes_["mouse"].shape[1] == 5
    with pytest.raises(ValueError, match="'mouse' has no entry with at least min_samples=4 samples of a drug and 4"):
        ReactomeCorrelation(min_samples=4).fit(data)


def test_genes_that_never_change_are_absent(data):
    given = {}
    for name, adata in data.items():
        x = adata.X.toarray()
        x[:, 2] = 1
        given[name] = ad.AnnData(x, obs=adata.obs, var=adata.var)
    baseline = ReactomeCorrelation(standardize=False, normalize="given").fit(given)
    scores = baseline.scores("mouse", "rat")
    assert scores.iloc[2].isna().all() and scores.iloc[:, 2].isna().all()
    assert scores.drop(index="mouse_gene2", columns="rat_gene2").notna().all().all()
    gene_map = baseline.map_genes("mouse", "rat", n_top=35)
    assert "mouse_gene2" not in set(gene_map["source"]) and "rat_gene2" not in set(gene_map["target"])
    assert gene_map["score"].notna().all()
    distance = ReactomeCorrelation("euclidean", standardize=False, normalize="given").fit(given).scores("mouse", "rat")
    assert distance.iloc[2, 2] == 0


def test_genes_of_equal_response_are_tied(data):
    genes = pd.DataFrame(index=[*data["rat"].var_names, "twin"])
    twins = ad.AnnData(data["rat"].X[:, [*range(35), 0]], obs=data["rat"].obs, var=genes)
    for metric in ("pearson", "euclidean"):
        scores = ReactomeCorrelation(metric).fit({"mouse": data["mouse"], "rat": twins}).scores("mouse", "rat")
        np.testing.assert_array_equal(scores["twin"], scores["rat_gene0"])


@pytest.mark.filterwarnings("error", "ignore::DeprecationWarning")
def test_reactome_errors(data):
    baseline = ReactomeCorrelation()
    with pytest.raises(RuntimeError, match="ReactomeCorrelation is not fitted"):
        baseline.map_genes("mouse", "rat")
    with pytest.raises(KeyError, match="organ_key='tissue' is not in adata.obs"):
        baseline.fit(data, organ_key="tissue")
    with pytest.raises(ValueError, match="'mouse' has no controls: control='DMSO' is not in .* 'control', 'd1', 'd2'"):
        baseline.fit(data, control="DMSO")
    with pytest.raises(TypeError, match="adata must be an AnnData or a mapping from species to AnnData, but got list"):
        baseline.fit([data["mouse"]])
    with pytest.raises(TypeError, match=r"adata\['mouse'\] must be an AnnData, but got DataFrame"):
        baseline.fit({"mouse": data["mouse"].obs})
    with pytest.raises(ValueError, match="adata has no species"):
        baseline.fit({})
    with pytest.raises(KeyError, match="species_key='organism' is not in adata.obs"):
        baseline.fit(stacked(data), species_key="organism")
    both = stacked(data)
    both.obs["organism"] = both.obs["species"]
    with pytest.raises(KeyError, match="species_key='organism' is not in adata.var, .* A mapping from species"):
        baseline.fit(both, species_key="organism")
    both.var["organism"] = both.var["species"].replace("rat", "Rat")
    with pytest.raises(ValueError, match="must name the same species, but these are in one of them only: 'Rat', 'rat'"):
        baseline.fit(both, species_key="organism")
    both.var["organism"] = both.var["species"].where(np.arange(75) > 0)
    with pytest.raises(ValueError, match=r"adata.var\['organism'\] .* is missing for 1: 'mouse_gene0'"):
        baseline.fit(both, species_key="organism")
    missing = {"mouse": data["mouse"].copy()}
    missing["mouse"].obs.loc["mouse3", "drug"] = None
    with pytest.raises(ValueError, match=r"obs\['drug'\] \(drug_key\) of 'mouse' is missing for 1 samples: 'mouse3'"):
        baseline.fit(missing)
    halves = {"mouse": data["mouse"].copy()}
    halves["mouse"].X = halves["mouse"].X * 0.5
    with pytest.raises(ValueError, match="adata of 'mouse'.X must hold raw counts, but has fractions"):
        baseline.fit(halves)
    repeated = {"mouse": data["mouse"].copy()}
    repeated["mouse"].var_names = ["a", "a", *data["mouse"].var_names[2:]]
    with pytest.raises(ValueError, match="adata of 'mouse'.var_names must be unique, but these repeat: 'a'"):
        baseline.fit(repeated)
    fitted = ReactomeCorrelation().fit(data)
    with pytest.raises(KeyError, match="source='dog' is not a species of the fitted data: 'mouse', 'rat'"):
        fitted.map_genes("dog", "rat")
    with pytest.raises(KeyError, match="target='dog' is not a species of the fitted data"):
        fitted.scores("mouse", "dog")
    with pytest.raises(ValueError, match="n_top=0 must be a whole number of at least 1"):
        fitted.map_genes("mouse", "rat", n_top=0)
    other = data["rat"].copy()
    other.obs["drug"] = other.obs["drug"].replace({"d1": "x", "d2": "y"})
    with pytest.raises(ValueError, match="'mouse' and 'rat' have 0 entries in common, but metric='pearson' needs at"):
        ReactomeCorrelation().fit({"mouse": data["mouse"], "rat": other}).scores("mouse", "rat")
    with pytest.raises(ValueError, match="metric must be one of pearson, euclidean, but got 'cosine'"):
        ReactomeCorrelation("cosine")
    with pytest.raises(ValueError, match="normalize must be 'total' or 'given', but got 'none'"):
        ReactomeCorrelation(normalize="none")
    with pytest.raises(ValueError, match="min_samples=0 must be a whole number of at least 1"):
        ReactomeCorrelation(min_samples=0)


# ---------------------------------------------------------------------------------------------------------- names


def named(genes, **columns):
    return ad.AnnData(np.ones((2, len(genes)), np.float32), var=pd.DataFrame(columns, index=genes))


def test_same_symbols():
    mouse, human = named(["Alb", "Ttr", "Gm1", "Sox2"]), named(["TTR", "ALB", "LYZ", "Sox2", "SOX2"])
    baseline = SameSymbol().fit({"mouse": mouse, "human": human})
    gene_map = baseline.map_genes("mouse", "human")
    expected = [("Alb", "ALB", 1.0, 1), ("Ttr", "TTR", 1.0, 1), ("Sox2", "Sox2", 1.0, 1)]
    assert list(gene_map.itertuples(index=False, name=None)) == expected
    back = baseline.map_genes("human", "mouse")
    assert back["target"].tolist() == ["Ttr", "Alb", "Sox2", "Sox2"]
    scores = baseline.scores("mouse", "human")
    assert scores.shape == (4, 5)
    assert scores.stack().dropna().index.tolist() == [(s, t) for s, t, _, _ in expected]
    truth = {"Alb": "ALB", "Ttr": "TTR", "Gm1": "LYZ"}
    for result in (gene_map, scores):
        found = tv.metrics.gene_map_scores(result, truth, k=1, n_candidates=5).set_index("metric")["value"]
        assert found.to_dict() == pytest.approx({"recall@1": 2 / 3, "mrr": 2 / 3, "n_genes": 3, "n_unmapped": 1})


def test_several_genes_of_one_symbol():
    mouse = named(["m1", "m2"], symbol=["Abc", None])
    human = named(["h1", "h2", "h3"], symbol=["ABC", "abc", "nan"])
    baseline = SameSymbol("symbol").fit({"mouse": mouse, "human": human})
    gene_map = baseline.map_genes("mouse", "human")
    assert list(gene_map.itertuples(index=False, name=None)) == [("m1", "h1", 1.0, 1), ("m1", "h2", 1.0, 2)]
    assert baseline.map_genes("mouse", "human", n_top=1)["target"].tolist() == ["h1"]
    # neither is better than the other
    found = tv.metrics.gene_map_scores(gene_map, {"m1": "h2"}, k=1).set_index("metric")["value"]
    assert found["recall@1"] == 0.5


def test_permuted_symbols_are_no_hit(data):
    first = samples("mouse", 50, 0)
    second = samples("rat", 50, 1)
    first.var["symbol"] = [f"Gene{i}" for i in range(50)]
    second.var["symbol"] = [f"GENE{(i + 1) % 50}" for i in range(50)]
    for adata in ({"mouse": first, "rat": second}, stacked({"mouse": first, "rat": second})):
        gene_map = SameSymbol("symbol").fit(adata, organ_key="organ").map_genes("mouse", "rat")
        assert len(gene_map) == 50
        truth = dict(zip(first.var_names, second.var_names, strict=True))
        assert tv.metrics.gene_map_scores(gene_map, truth)["value"].tolist()[:3] == [0, 0, 0]
        shifted = dict(zip(first.var_names, np.roll(second.var_names, 1), strict=True))
        assert tv.metrics.gene_map_scores(gene_map, shifted)["value"].tolist()[:3] == [1, 1, 1]


def test_symbol_errors(data):
    with pytest.raises(RuntimeError, match="SameSymbol is not fitted"):
        SameSymbol().map_genes("mouse", "rat")
    with pytest.raises(KeyError, match="symbol_key='name' is not in the var of 'mouse'. Columns: 'species'"):
        SameSymbol("name").fit(data)
    with pytest.raises(KeyError, match="target='dog' is not a species of the fitted data: 'mouse', 'rat'"):
        SameSymbol().fit(data).map_genes("mouse", "dog")
    with pytest.raises(ValueError, match="n_top=2.5 must be a whole number"):
        SameSymbol().fit(data).map_genes("mouse", "rat", n_top=2.5)


# ------------------------------------------------------------------------------------------------------ real data


def test_organs_of_mouse_and_human(real_data_dir):
    counts = pd.read_csv(real_data_dir / "tetrapod_organs_counts.txt.gz", sep="\t", index_col=0).T
    adata = ad.AnnData(counts.astype(np.float32))
    adata.obs[["species", "organ"]] = [name.split("_")[:2] for name in adata.obs_names]
    data = {name: adata[adata.obs["species"] == name].copy() for name in ("Mouse", "Human")}
    truth = {gene: gene for gene in adata.var_names}

    def recalls(metric, data):
        baseline = ReactomeCorrelation(metric).fit(data, drug_key=None)
        gene_map = baseline.map_genes(*data)
        scores = tv.metrics.gene_map_scores(gene_map, truth, n_candidates=5636).set_index("metric")["value"]
        return scores[["recall@1", "recall@10"]].tolist()

    assert recalls("pearson", data) == pytest.approx([0.003, 0.032], abs=0.001)
    assert recalls("euclidean", data) == pytest.approx([0.019, 0.093], abs=0.001)
