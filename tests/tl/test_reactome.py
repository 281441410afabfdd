"""Reactomes, their similarity and gene maps, against plain numpy and planted truth."""

import warnings

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from pandas.testing import assert_frame_equal
from scipy.stats import false_discovery_control

import transverse as tv
from transverse._reactome import stacked_reactome

ORGANS, DRUGS = ["blood", "brain", "liver"], ["d1", "d2"]
ENTRIES = [f"{organ}|{drug}" for organ in ORGANS for drug in DRUGS]
reactome, similarity, gene_map = tv.tl.reactome, tv.tl.reactome_similarity, tv.tl.gene_map


def samples(species, n_genes, seed, without=()):
    """Counts of 3 to 5 samples of every organ and drug, in random order, of few animals with several samples each."""
    rng = np.random.default_rng(seed)
    rows = [(o, d) for o in ORGANS for d in ("control", *DRUGS) for _ in range(rng.integers(3, 6))]
    rows = [rows[i] for i in rng.permutation(len(rows)) if rows[i] not in without]
    obs = pd.DataFrame(rows, columns=["organ", "drug"], index=[f"{species}_s{i}" for i in range(len(rows))])
    # two samples of an animal and condition are not adjacent
    obs["animal"] = [f"{drug}{rng.integers(3)}" for drug in obs["drug"]]
    rate = rng.lognormal(2, 1, (3, 3, n_genes))
    rate[..., -1] = 0
    which = [[ORGANS.index(o), ["control", *DRUGS].index(d)] for o, d in rows]
    counts = np.stack([rng.poisson(rate[o, d]) for o, d in which]).astype(np.float32)
    var = pd.DataFrame({"symbol": [f"S{i}" for i in range(n_genes)]}, index=[f"{species}_g{i}" for i in range(n_genes)])
    obs["species"] = species
    return ad.AnnData(sp.csr_matrix(counts), obs=obs, var=var, uns={"kept": 1})


@pytest.fixture
def data():
    return {"mouse": samples("mouse", 12, 0), "rat": samples("rat", 9, 1, without=[("brain", "d2")])}


def log_expression(adata, target_sum=1e4):
    counts = adata.X.toarray().astype(float)
    return np.log1p(counts / counts.sum(1, keepdims=True) * target_sum)


def by_hand(adata, target_sum=1e4, animals=False):
    """Change, standard error and numbers of samples by entry, one condition after the other."""
    y, found = log_expression(adata, target_sum), {}
    for organ in ORGANS:
        groups = {}
        for drug in ("control", *DRUGS):
            own = ((adata.obs["organ"] == organ) & (adata.obs["drug"] == drug)).to_numpy()
            groups[drug] = y[own]
            if animals:
                names = adata.obs["animal"][own]
                groups[drug] = np.array([y[own][names == name].mean(0) for name in names.unique()])
        for drug in DRUGS:
            t, c = groups[drug], groups["control"]
            if len(t):
                error = (
                    np.sqrt(t.var(0, ddof=1) / len(t) + c.var(0, ddof=1) / len(c))
                    if min(len(t), len(c)) > 1
                    else np.nan
                )
                found[f"{organ}|{drug}"] = t.mean(0) - c.mean(0), error, len(t), len(c)
    return found


def part(r, species):
    return r[(r.obs["species"] == species).to_numpy()]


def unchanged(data, before):
    for name, adata in data.items():
        np.testing.assert_array_equal(adata.X.toarray(), before[name].X.toarray())
        assert_frame_equal(adata.obs, before[name].obs)
        assert_frame_equal(adata.var, before[name].var)
        assert adata.uns == {"kept": 1}


@pytest.mark.parametrize("animals", [False, True])
def test_by_hand(data, animals, monkeypatch):
    monkeypatch.setattr("transverse._reactome._ROWS", 5)
    before = {name: adata.copy() for name, adata in data.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if animals else "error")
        r = reactome(data, animal_key="animal" if animals else None, min_samples=1, target_sum=500)
    assert r.var_names.tolist() == ENTRIES and r.X.dtype == np.float32
    assert r.var["organ"].tolist() == np.repeat(ORGANS, 2).tolist() and r.var["drug"].tolist() == DRUGS * 3
    assert r.obs_names.tolist() == [*data["mouse"].var_names, *data["rat"].var_names]
    assert r.obs["species"].tolist() == ["mouse"] * 12 + ["rat"] * 9
    assert r.obs["gene"].tolist() == r.obs_names.tolist() and r.obs["symbol"].iloc[0] == "S0"
    for name, adata in data.items():
        own, expected = part(r, name), by_hand(adata, 500, animals)
        for j, entry in enumerate(ENTRIES):
            numbers = r.varm["n_treated"].loc[entry, name], r.varm["n_control"].loc[entry, name]
            if entry not in expected:
                assert (name, entry, numbers) == ("rat", "brain|d2", (0, 0))
                assert np.isnan(own.X[:, j]).all() and np.isnan(own.layers["se"][:, j]).all()
                assert not own.layers["mask"][:, j].any()
                continue
            change, error, *n = expected[entry]
            assert list(numbers) == n
            assert own.layers["mask"][:, j].all()
            np.testing.assert_allclose(own.X[:, j], change, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(
                own.layers["se"][:, j], np.broadcast_to(error, change.shape), rtol=1e-5, atol=1e-6
            )
    np.testing.assert_array_equal(r.X, r.layers["difference"])
    unchanged(data, before)


def test_standardized_and_l1(data):
    plain = reactome(data)
    standard = reactome(data, method="standardized")
    with np.errstate(invalid="ignore"):
        expected = plain.X / plain.layers["se"]
    expected[[11, 20]] = np.where(plain.layers["mask"][[11, 20]], 0, np.nan)  # genes without counts
    np.testing.assert_allclose(standard.X, expected, rtol=1e-4)
    for r, own in (
        (reactome(data, l1_normalize=True), plain.X),
        (reactome(data, method="standardized", l1_normalize=True), expected),
    ):
        norm = np.nansum(np.abs(own), axis=1, keepdims=True)
        np.testing.assert_allclose(r.X, own / np.where(norm > 0, norm, 1), rtol=1e-4)
        np.testing.assert_allclose(np.nansum(np.abs(r.X), axis=1)[:11], 1, rtol=1e-5)
        np.testing.assert_array_equal(r.layers["difference"], plain.X)
        np.testing.assert_array_equal(r.layers["se"], plain.layers["se"])
    assert r.uns["reactome"]["method"] == "standardized"
    assert r.uns["reactome"]["scale"] == (
        "mean log expression, treated minus control, divided by its standard error, divided by the gene's L1 norm"
    )
    assert plain.uns["reactome"]["scale"] == "mean log expression, treated minus control"


def test_as_the_baseline(data):
    baseline = tv.baselines.ReactomeCorrelation(standardize=False, target_sum=1e4).fit(data)
    r = reactome(data)
    for name, table in baseline.reactomes_.items():
        assert len(table.columns) == (6 if name == "mouse" else 5)
        own = part(r, name)[:, ["|".join(entry) for entry in table.columns]]
        np.testing.assert_allclose(own.X, table, rtol=1e-5, atol=1e-6)
    expected = baseline.scores("mouse", "rat")
    found = similarity(r, "mouse", "rat")
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.index.equals(expected.index) and found.columns.equals(expected.columns)


def assert_equal_reactomes(found, expected):
    np.testing.assert_allclose(found.X, expected.X, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.layers["se"], expected.layers["se"], rtol=1e-4, atol=1e-6)
    assert found.obs_names.tolist() == expected.obs_names.tolist()
    assert found.var_names.tolist() == expected.var_names.tolist()
    for key in ("n_treated", "n_control"):
        assert_frame_equal(found.varm[key], expected.varm[key], check_index_type=False, check_column_type=False)


@pytest.mark.parametrize("animal_key", [None, "animal"])
@pytest.mark.filterwarnings("ignore:.* left out", "ignore:.* rest on a single sample", "ignore:From 0.4 .update")
def test_forms_of_the_input(data, tmp_path, animal_key):
    expected = reactome(data, animal_key=animal_key, min_samples=1)
    stacked = tv.pp.stack_species(data)
    stacked.write_h5ad(tmp_path / "stacked.h5ad")
    dense = stacked.copy()
    dense.X = dense.X.toarray()
    dense.write_h5ad(tmp_path / "dense.h5ad")
    renamed = stacked.copy()
    renamed.obs = renamed.obs.rename(columns={"species": "organism"})
    renamed.var = renamed.var.rename(columns={"species": "organism"}).drop(columns="gene")
    given = {name: ad.AnnData(log_expression(adata), obs=adata.obs, var=adata.var) for name, adata in data.items()}
    backed = {}
    for name, adata in data.items():
        adata.write_h5ad(tmp_path / f"{name}.h5ad")
        backed[name] = ad.read_h5ad(tmp_path / f"{name}.h5ad", backed="r")
    order = np.random.default_rng(0).permutation(stacked.n_obs)
    mdata = mudata.MuData({name: adata.copy() for name, adata in data.items()})
    for form, arguments in (
        (stacked, {}),
        (dense, {}),
        (stacked[order], {}),
        (ad.read_h5ad(tmp_path / "stacked.h5ad", backed="r"), {}),
        (ad.read_h5ad(tmp_path / "dense.h5ad", backed="r"), {}),
        (renamed, {"species_key": "organism"}),
        (given, {"normalize": "given"}),
        (backed, {}),
        (mdata, {}),
        ({name: adata[::-1] for name, adata in data.items()}, {}),
    ):
        found = reactome(form, animal_key=animal_key, min_samples=1, **arguments)
        assert_equal_reactomes(found, expected)
        assert found.obs["gene"].tolist() == expected.obs["gene"].tolist()
        assert found.obs["species"].tolist() == expected.obs["species"].tolist()
    assert "species" not in renamed.var


def test_genes_of_one_name(data):
    for adata in data.values():
        adata.var_names = [f"g{i}" for i in range(adata.n_vars)]
    expected = reactome(tv.pp.stack_species(data))
    found = reactome(data)
    assert_frame_equal(found.obs, expected.obs)
    assert found.obs_names[0] == "mouse:g0" and found.obs["gene"].iloc[0] == "g0"


def test_chosen_species(data):
    every = reactome(data)
    stacked = tv.pp.stack_species(data)
    for form in (data, stacked):
        one = reactome(form, species=["rat"])
        np.testing.assert_array_equal(one.X, part(every, "rat")[:, one.var_names].X)
        assert "brain|d2" not in one.var_names
        assert one.obs["species"].cat.categories.tolist() == ["rat"]
    back = reactome(data, species=["rat", "mouse"])
    assert back.obs["species"].cat.categories.tolist() == ["rat", "mouse"]
    assert reactome(stacked, species=["rat", "mouse"]).obs["species"].cat.categories.tolist() == ["rat", "mouse"]


def test_too_few_samples(data):
    mouse = data["mouse"]
    own = np.flatnonzero((mouse.obs["organ"] == "liver") & (mouse.obs["drug"] == "d1"))[1:]
    data["mouse"] = mouse[np.setdiff1d(np.arange(mouse.n_obs), own)].copy()
    with pytest.warns(
        UserWarning, match="1 entries are left out, as they have too few samples or controls: 'mouse: liver|d1'"
    ):
        r = reactome(data)
    assert r.uns["reactome"]["left_out"].tolist() == ["mouse: liver|d1"]
    assert np.isnan(part(r, "mouse")[:, "liver|d1"].X).all() and not np.isnan(part(r, "rat")[:, "liver|d1"].X).any()
    assert r.varm["n_treated"].loc["liver|d1", "mouse"] == 0
    with pytest.warns(
        UserWarning, match="1 of the 11 entries rest on a single sample .*: 'mouse: liver|d1'. min_samples=2"
    ):
        r = reactome(data, min_samples=1)
    own = part(r, "mouse")[:, "liver|d1"]
    assert np.isnan(own.layers["se"]).all() and not np.isnan(own.X).any() and own.layers["mask"].all()
    assert r.varm["n_treated"].loc["liver|d1", "mouse"] == 1
    without = data["mouse"][
        ~((data["mouse"].obs["organ"] == "liver") & (data["mouse"].obs["drug"] == "control")).to_numpy()
    ]
    with pytest.warns(UserWarning, match="2 entries are left out.*'mouse: liver|d1', 'mouse: liver|d2'"):
        r = reactome({"mouse": without.copy()}, min_samples=1)
    assert r.var_names.tolist() == ENTRIES[:4]


def test_written_and_read(data, tmp_path):
    r = reactome(data)
    r.write_h5ad(tmp_path / "r.h5ad")
    again = ad.read_h5ad(tmp_path / "r.h5ad")
    assert_equal_reactomes(again, r)
    assert again.uns["reactome"]["parameters"]["target_sum"] == 1e4
    tables = [gene_map(each, "mouse", "rat", n_permutations=3) for each in (again, r)]
    assert_frame_equal(*tables, check_dtype=False)


def test_arrays_for_a_model(data):
    """A condition that is withheld is in no mean: the reactome is that of the data without it."""
    stacked = tv.pp.stack_species(data)
    withheld = (
        (stacked.obs["species"] == "rat") & (stacked.obs["organ"] == "liver") & (stacked.obs["drug"] == "d1")
    ).to_numpy()
    keys = {"species_key": "species", "organ_key": "organ", "drug_key": "drug", "control": "control", "target_sum": 1e4}
    found = stacked_reactome(stacked, samples=~withheld, **keys)
    stacked.X[np.flatnonzero(withheld)] *= 7
    again = stacked_reactome(stacked, samples=~withheld, **keys)
    np.testing.assert_array_equal(found.change, again.change)
    assert found.species == ["mouse", "rat"] and found.change.shape == (21, 6)
    assert not found.is_measured[1, list(found.entries).index(("liver", "d1"))]
    np.testing.assert_array_equal(np.isnan(found.change), ~found.is_measured[found.gene_species])
    expected = reactome(stacked[~withheld].copy())
    np.testing.assert_allclose(found.change, expected.X, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.error, expected.layers["se"], rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------------------------------------------- similarity


def fake(mouse, rat):
    """A reactome of these values."""
    values = np.concatenate([mouse, rat])
    n = values.shape[1]
    obs = pd.DataFrame(
        {"species": ["mouse"] * len(mouse) + ["rat"] * len(rat)},
        index=[f"m{i}" for i in range(len(mouse))] + [f"r{i}" for i in range(len(rat))],
    )
    var = pd.DataFrame({"organ": [f"o{j // 3}" for j in range(n)], "drug": [f"k{j % 3}" for j in range(n)]})
    var.index = var["organ"] + "|" + var["drug"]
    return ad.AnnData(values, obs=obs, var=var)


@pytest.fixture
def scattered():
    """Values of which some are missing, at random, in every gene."""
    rng = np.random.default_rng(0)
    mouse, rat = rng.normal(size=(8, 12)), rng.normal(size=(6, 12))
    for values in (mouse, rat):
        values[rng.random(values.shape) < 0.25] = np.nan
    mouse[1] = 2.0  # constant
    mouse[2] = 0.0
    mouse[3, 4:] = np.nan  # too few
    rat[4], rat[5] = rat[0], -3 * rat[0] + 1
    return fake(mouse, rat)


@pytest.mark.parametrize("metric", ["pearson", "cosine"])
def test_similarity_of_shared_entries(scattered, metric, monkeypatch):
    monkeypatch.setattr("transverse.tl._reactome_map._ROWS", 3)
    before = scattered.X.copy()
    found = similarity(scattered, "mouse", "rat", metric=metric)
    mouse, rat = scattered.X[:8], scattered.X[8:]
    for i, first in enumerate(mouse):
        for j, second in enumerate(rat):
            shared = ~np.isnan(first) & ~np.isnan(second)
            a, b = first[shared], second[shared]
            constant = (metric == "pearson" and i == 1) or i == 2
            if shared.sum() < 5 or constant:
                assert np.isnan(found.iloc[i, j])
            elif metric == "pearson":
                assert found.iloc[i, j] == pytest.approx(np.corrcoef(a, b)[0, 1])
            else:
                assert found.iloc[i, j] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert found.iloc[3].isna().all() and found.iloc[1].isna().all() == (metric == "pearson")
    np.testing.assert_array_equal(found["r0"], found["r4"])
    np.testing.assert_array_equal(scattered.X, before)
    assert similarity(scattered, "mouse", "rat", metric=metric, min_entries=12).isna().to_numpy()[4:, :5].any()
    own = similarity(scattered, "rat", "rat", metric=metric)
    assert np.diag(own) == pytest.approx(1) and own.equals(own.T)


def test_gene_map_by_hand(scattered, monkeypatch):
    scores = similarity(scattered, "mouse", "rat")
    expected = gene_map(scattered, "mouse", "rat", n_top=3, n_permutations=0)
    monkeypatch.setattr("transverse.tl._reactome_map._ROWS", 3)
    table = gene_map(scattered, "mouse", "rat", n_top=3, n_permutations=0)
    assert_frame_equal(table, expected)
    assert list(table) == ["source", "target", "score", "rank", "is_mutual_best", "p_value", "p_adjusted"]
    assert table[["p_value", "p_adjusted"]].isna().all().all()
    sources = [name for name in scores.index if scores.loc[name].notna().any()]
    assert table["source"].unique().tolist() == sources and "m1" not in sources
    for name, rows in table.groupby("source"):
        own = scores.loc[name].dropna().sort_values(ascending=False, kind="stable")[:3]
        assert rows["score"].tolist() == own.tolist() == scores.loc[name, rows["target"]].tolist()
        assert rows["rank"].tolist() == list(range(1, len(own) + 1))
    filled = scores.fillna(-9).to_numpy()
    best = {(i, j) for i, j in enumerate(filled.argmax(1)) if filled[:, j].argmax() == i and filled[i, j] > -9}
    found = table.loc[table["is_mutual_best"], ["source", "target"]].to_numpy()
    assert {(int(s[1:]), int(t[1:])) for s, t in found} == best and best
    assert len(gene_map(scattered, "mouse", "rat", n_top=99, n_permutations=0)) == scores.notna().to_numpy().sum()


@pytest.mark.parametrize("null", ["labels", "entries"])
def test_p_values_by_hand(null, monkeypatch):
    rng = np.random.default_rng(1)
    mouse, rat = rng.normal(size=(7, 12)), rng.normal(size=(5, 12))
    rat[:, 4] = np.nan
    r = fake(mouse, rat)
    state = np.random.get_state()[1].copy()
    table = gene_map(r, "mouse", "rat", n_top=2, null=null, n_permutations=11, seed=3)
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    rng = np.random.default_rng(3)
    best = []
    for _ in range(11):
        permuted = np.full_like(rat, np.nan)
        if null == "labels":
            organs, drugs = rng.permutation(4), rng.permutation(3)
            for j in range(12):
                permuted[:, j] = rat[:, 3 * organs[j // 3] + drugs[j % 3]]
        else:
            measured = [j for j in range(12) if j != 4]
            permuted[:, measured] = rat[:, rng.permutation(measured)]
        best += similarity(fake(mouse, permuted), "mouse", "rat").max(axis=1).tolist()
    expected = [(1 + sum(b >= score for b in best)) / (1 + 7 * 11) for score in table["score"]]
    np.testing.assert_allclose(table["p_value"], expected)
    first = table["rank"] == 1
    np.testing.assert_allclose(table["p_adjusted"][first], false_discovery_control(table["p_value"][first]))
    assert table["p_adjusted"][~first].isna().all()
    other = gene_map(r, "mouse", "rat", n_top=2, null=null, n_permutations=11, seed=4)
    assert (other["p_value"] != table["p_value"]).any()


def test_labels_of_entries_that_are_not_there():
    rng = np.random.default_rng(2)
    r = fake(rng.normal(size=(6, 12)), rng.normal(size=(6, 12)))[:, [0, 1, 2, 3, 5, 6, 7, 8, 10, 11]].copy()
    table = gene_map(r, "mouse", "rat", n_permutations=5)
    assert table["p_value"].between(0, 1).all()


# ------------------------------------------------------------------------------------------------- planted truth


@pytest.fixture(scope="module")
def simulated():
    return tv.datasets.simulate_reactomes(n_genes=300, missing=0.1, seed=0)


@pytest.fixture(scope="module")
def measured(simulated):
    return reactome(simulated, layer="counts")


def test_true_reactome(simulated, measured):
    for name, adata in simulated.items():
        own, truth = part(measured, name), adata.uns["true_reactome"]
        assert own.obs["gene"].tolist() == truth.index.tolist()
        assert own.var_names.tolist() == truth.columns.tolist()
        mask = own.layers["mask"][0]
        lacking = set(adata.uns["simulation"]["missing"])
        assert set(own.var_names[~mask]) == lacking and (len(lacking) > 0) == (name == "rat")
        responds = (adata.var["module"] != "none").to_numpy()
        r = [np.corrcoef(a, b)[0, 1] for a, b in zip(own.X[:, mask], truth.to_numpy()[:, mask], strict=True)]
        assert np.mean(np.array(r)[responds]) > 0.8
        # the standard errors are those of what was measured, apart from Student's heavier tails
        z = (own.layers["difference"] - truth.to_numpy())[:, mask] / own.layers["se"][:, mask]
        assert 0.95 < z.std() < 1.25


def test_mapping_finds_counterparts(simulated, measured):
    truth = simulated["rat"].uns["gene_map"]
    table = gene_map(measured, "mouse", "rat", n_permutations=20)
    scores = tv.metrics.gene_map_scores(table, truth, n_candidates=300).set_index("metric")
    assert scores.loc["recall@1", "value"] > 0.2 > 20 * scores.loc["recall@1", "chance"]
    assert scores.loc["recall@10", "value"] > 0.5
    wide = similarity(measured, "mouse", "rat")
    again = tv.metrics.gene_map_scores(wide, truth).set_index("metric")["value"]
    np.testing.assert_allclose(again[["recall@1", "recall@10"]], scores["value"][["recall@1", "recall@10"]])
    best = table[table["rank"] == 1]
    right = truth.set_index("source")["target"][best["source"]].to_numpy() == best["target"].to_numpy()
    found = (best["p_adjusted"] < 0.05).to_numpy()
    responds = (simulated["mouse"].var["module"] != "none")[best["source"]].to_numpy()
    assert right[found].mean() > right[~found].mean() + 0.2
    assert found[responds].mean() > 0.3 and responds[found].mean() > 0.85
    assert right[best["is_mutual_best"]].mean() > right.mean() + 0.1


def test_null_is_calibrated():
    """Between species of nothing in common, p values are what they say; those of permuted entries are not."""
    rates = {"labels": [], "entries": []}
    for seed in range(6):
        first, second = (tv.datasets.simulate_reactomes(n_genes=120, n_animals=6, seed=s) for s in (seed, 100 + seed))
        r = reactome({"mouse": first["mouse"], "rat": second["rat"]}, layer="counts")
        for null, found in rates.items():
            p = gene_map(r, "mouse", "rat", n_top=1, null=null, n_permutations=50, seed=seed)["p_value"]
            found.append([(p < 0.05).mean(), (p < 0.2).mean()])
    labels, entries = (np.mean(found, axis=0) for found in rates.values())
    assert 0.02 < labels[0] < 0.09 and 0.12 < labels[1] < 0.28
    assert entries[0] > 0.12


# --------------------------------------------------------------------------------------------------------- errors


def test_reactome_errors(data):
    stacked = tv.pp.stack_species(data)
    with pytest.raises(TypeError, match="adata must be an AnnData or a mapping from species to AnnData, but got list"):
        reactome([data["mouse"]])
    with pytest.raises(ValueError, match="adata has no species"):
        reactome({})
    with pytest.raises(KeyError, match="species_key='organism' is not in adata.obs"):
        reactome(stacked, species_key="organism")
    with pytest.raises(KeyError, match="organ_key='tissue' is not in adata.obs"):
        reactome(data, organ_key="tissue")
    with pytest.raises(KeyError, match="animal_key='donor' is not in adata.obs"):
        reactome(stacked, animal_key="donor")
    with pytest.raises(KeyError, match="layer='counts' is not in mouse.layers"):
        reactome(data, layer="counts")
    with pytest.raises(KeyError, match="species not in the data: 'dog'. Known: 'mouse', 'rat'"):
        reactome(data, species=["dog"])
    with pytest.raises(ValueError, match="species must name at least one"):
        reactome(data, species=[])
    with pytest.raises(ValueError, match="'mouse' has no controls: control='DMSO' is not in .* 'control', 'd1', 'd2'"):
        reactome(data, control="DMSO")
    with pytest.raises(
        ValueError, match="'mouse' has no entry with at least min_samples=99 samples of a drug and 99 controls"
    ):
        reactome(stacked, min_samples=99)
    for argument, value, match in (
        ("normalize", "none", "normalize='none' must be one of 'total', 'given'"),
        ("method", "ratio", "method='ratio' must be one of 'difference', 'standardized'"),
        ("target_sum", 0, "target_sum=0 must be a positive number"),
        ("min_samples", 1.5, "min_samples=1.5 must be a whole number of at least 1"),
        ("drug_key", "organ", "organ_key and drug_key are both 'organ'"),
    ):
        with pytest.raises(ValueError, match=match):
            reactome(data, **{argument: value})
    with pytest.raises(ValueError, match="method='standardized' needs min_samples of at least 2"):
        reactome(data, method="standardized", min_samples=1)
    with pytest.raises(ValueError, match="mouse.X must hold log-normalised values"):
        reactome(data, normalize="given")
    missing = data["rat"].copy()
    missing.obs.loc["rat_s3", "drug"] = None
    with pytest.raises(ValueError, match=r"obs\['drug'\] \(drug_key\) of 'rat' is missing for 1 samples: 'rat_s3'"):
        reactome({"rat": missing})
    halves = data["rat"].copy()
    halves.X = halves.X * 0.5
    with pytest.raises(ValueError, match="rat.X must hold raw counts, but has fractions"):
        reactome({"rat": halves})
    empty = data["rat"].copy()
    empty.X = empty.X.multiply(np.arange(empty.n_obs)[:, None] > 0).tocsr()
    with pytest.raises(ValueError, match="1 cells of rat have no counts on these genes: 'rat_s0'"):
        reactome({"rat": empty})
    with pytest.raises(ValueError, match="'rat' is empty: it has 0 samples"):
        reactome({"rat": data["rat"][:0].copy()})
    elsewhere = stacked.copy()
    elsewhere.X = elsewhere.X + sp.csr_matrix(([1.0], ([0], [20])), shape=elsewhere.shape)
    with pytest.raises(ValueError, match="Samples of 'mouse' have values at genes of other species: 'rat_g8'"):
        reactome(elsewhere)


def test_map_errors(scattered):
    with pytest.raises(TypeError, match="reactome must be an AnnData, as tl.reactome returns it, but got DataFrame"):
        similarity(scattered.to_df(), "mouse", "rat")
    with pytest.raises(KeyError, match="source='dog' is not a species of the reactome: 'mouse', 'rat'"):
        similarity(scattered, "dog", "rat")
    with pytest.raises(KeyError, match="target='dog' is not a species of the reactome"):
        gene_map(scattered, "mouse", "dog")
    with pytest.raises(ValueError, match="source and target are both 'rat'"):
        gene_map(scattered, "rat", "rat")
    with pytest.raises(ValueError, match="metric='kendall' must be one of 'pearson', 'cosine'"):
        similarity(scattered, "mouse", "rat", metric="kendall")
    with pytest.raises(ValueError, match="null='none' must be one of 'labels', 'entries'"):
        gene_map(scattered, "mouse", "rat", null="none")
    for argument, value, least in (
        ("n_top", 0, 1),
        ("n_permutations", -1, 0),
        ("min_entries", 1, 2),
        ("n_top", 2.0, 1),
    ):
        with pytest.raises(ValueError, match=f"{argument}={value} must be a whole number of at least {least}"):
            gene_map(scattered, "mouse", "rat", **{argument: value})
    assert similarity(scattered, "mouse", "rat", metric="cosine", min_entries=1).notna().any().all()
    apart = scattered.copy()
    apart.X[:8, :6] = np.nan
    apart.X[8:, 9:] = np.nan
    with pytest.raises(
        ValueError, match=r"'mouse' and 'rat' share 3 entries, but min_entries=5. 'mouse' has: 'o2\|k0'"
    ):
        similarity(apart, "mouse", "rat")
    apart.X[0, 0] = np.inf
    with pytest.raises(ValueError, match="The reactome of 'mouse' has infinite values"):
        similarity(apart, "mouse", "rat")
    del apart.obs["species"]
    with pytest.raises(KeyError, match="reactome.obs has no column 'species'"):
        similarity(apart, "mouse", "rat")
    del scattered.var["organ"]
    with pytest.raises(KeyError, match="reactome.var has no column 'organ', which null='labels' needs"):
        gene_map(scattered, "mouse", "rat")
    assert gene_map(scattered, "mouse", "rat", null="entries", n_permutations=2)["p_value"].notna().all()
