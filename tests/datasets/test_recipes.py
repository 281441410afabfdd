"""Recipes: what remains is what the papers' steps leave, held-out responses stay out of training, input stays as it was."""

import functools

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp

from transverse.datasets import prepare_norman, prepare_replogle, prepare_sciplex
from transverse.datasets._recipe_splits import REPLOGLE
from transverse.pp import check_split

NINE = "Alvespimycin Belinostat Dacinostat Flavopiridol Givinostat Hesperadin Quisinostat TAK-901 Tanespimycin".split()
# as they are written in the data
DRUGS = [
    "Alvespimycin (17-DMAG) HCl",
    "Belinostat (PXD101)",
    "Dacinostat (LAQ824)",
    "Flavopiridol HCl",
    "Givinostat (ITF2357)",
    "Hesperadin",
    "Quisinostat (JNJ-26481585) 2HCl",
    "TAK-901",
    "Tanespimycin (17-AAG)",
    "(+)-JQ1",
    "CUDC-907",
    "Panobinostat (LBH589)",
    *(f"Drug{i} salt" for i in range(12)),
]
LINES = ["A549", "K562", "MCF7"]
N_GENES = 90
SMALL = {"min_genes": 25, "min_cells": 150, "n_top_genes": 38, "min_top_genes": 8}


def table(labels, lines, n):
    rows = [(label, line) for label in labels for line in lines for _ in range(n)]
    return pd.DataFrame(rows, columns=["label", "line"])


def counts(rng, n_cells, n_genes=N_GENES):
    """Counts with shallow cells, rare genes and one gene without any."""
    rate = rng.gamma(0.6, 2, n_genes)
    rate[:6] *= 0.05
    rate[6] = 0
    return rng.poisson(rate * rng.choice([0.15, 1, 2], (n_cells, 1))).astype(np.float32)


@functools.cache
def _sciplex(dtype="category"):
    rng = np.random.default_rng(0)
    obs = pd.concat(
        [
            table(DRUGS, LINES, 8).assign(dose=10_000.0),
            table(DRUGS[:4], LINES, 4).assign(dose=100.0),
            table(["Vehicle"], LINES, 40).assign(dose=0.0),
        ],
        ignore_index=True,
    )
    obs = obs.sample(frac=1, random_state=0).rename(columns={"label": "product_name", "line": "cell_type"})
    obs.index = [f"cell{i}" for i in range(len(obs))]
    obs = obs.astype({"product_name": dtype, "cell_type": dtype})
    obs["n_genes"] = 7  # a column that scanpy's filters would overwrite
    var = pd.DataFrame(index=[f"G{i}" for i in range(N_GENES)])
    adata = ad.AnnData(sp.csr_matrix(counts(rng, len(obs))), obs=obs, var=var)
    adata.uns["source"] = "GEO"
    return adata


def logs(rng, n_cells, n_genes):
    values = counts(rng, n_cells, n_genes) + rng.poisson(0.3, (n_cells, n_genes))
    values /= values.sum(axis=1, keepdims=True) / 100
    return sp.csr_matrix(np.log1p(values).astype(np.float32))


SINGLES = ["CEBPB", "FOSB", "DLX2", "ZBTB10", "KLF1", "AHR", "CBL", "CNN1", "ETS2", "NOGENE"]
DOUBLES = [
    *("FOSB+CEBPB", "ZBTB10+DLX2", "KLF1+AHR", "CBL+CNN1", "AHR+CBL", "ETS2+KLF1", "CNN1+FOSB", "DLX2+AHR"),
    *("KLF1+CBL", "CEBPB+ETS2", "FOSB+AHR", "CNN1+KLF1", "ETS2+CBL", "FOSB+KLF1", "LONELY+KLF1"),
]


def canonical(name):
    return "+".join(sorted(name.split("+")))


def crispr(labels, genes, cell_type, n=6, n_control=60):
    """Data as GEARS writes them: symbols in a column, half of the singles with the control first."""
    rng = np.random.default_rng(1)
    obs = pd.concat([table(labels, [cell_type], n), table(["ctrl"], [cell_type], n_control)], ignore_index=True)
    obs = obs.sample(frac=1, random_state=1).rename(columns={"label": "condition", "line": "cell_type"})
    obs.index = [f"cell{i}" for i in range(len(obs))]
    obs["control"] = (obs["condition"] == "ctrl").astype(int)
    obs = obs.astype({"condition": "category", "cell_type": "category"})
    var = pd.DataFrame({"gene_name": genes}, index=[f"ENSG{i:05d}" for i in range(len(genes))])
    return ad.AnnData(logs(rng, len(obs), len(genes)), obs=obs, var=var)


@functools.cache
def _norman():
    labels = [f"{name}+ctrl" if i % 2 else f"ctrl+{name}" for i, name in enumerate(SINGLES)] + DOUBLES
    genes = [name for name in SINGLES if name != "NOGENE"] + [f"H{i}" for i in range(70)]
    return crispr(labels, genes, "A549")


TARGETS = [*REPLOGLE["K562"][:6], *(f"T{i}" for i in range(14)), "GONE1", "GONE2"]


@functools.cache
def _replogle():
    genes = [name for name in TARGETS if not name.startswith("GONE")] + [f"H{i}" for i in range(60)]
    return crispr([f"{name}+ctrl" for name in TARGETS], genes, "K562", n=7)


some_missing = pytest.mark.filterwarnings("ignore:.*held-out perturbations are not in the data")


def numbers(adata, by=("perturbation", "split")):
    return adata.obs.groupby(list(by), observed=True).size()


def sides(adata):
    """Of each treatment the sides that its cells are on."""
    return adata.obs.groupby("perturbation", observed=True)["split"].agg(lambda split: set(split)).to_dict()


def assert_unchanged(adata, before):
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    pd.testing.assert_frame_equal(adata.var, before.var)
    assert type(adata.X) is type(before.X)
    np.testing.assert_array_equal(adata.X.toarray(), before.X.toarray())
    assert set(adata.uns) == set(before.uns)
    assert {key for key in adata.layers if key} == {key for key in before.layers if key}


def sciplex_by_hand(adata, min_genes, min_cells, n_top_genes, min_top_genes):
    """The steps of the paper's preprocessing in plain numpy, but for scanpy's choice of genes."""
    treated = adata.obs["product_name"] != "Vehicle"
    cells = np.flatnonzero(~treated | (adata.obs["dose"] == 10_000))
    x = adata.X.toarray()[cells]
    names = adata.var_names.to_numpy()
    for genes in (False, True, False):
        if genes:
            keep = (x > 0).sum(axis=0) >= min_cells
            x, names = x[:, keep], names[keep]
        else:
            keep = (x > 0).sum(axis=1) >= min_genes
            x, cells = x[keep], cells[keep]
    total = x.sum(axis=1, keepdims=True)
    y = np.log1p(x / total * np.median(total))
    top = sc.pp.highly_variable_genes(ad.AnnData(y), n_top_genes=n_top_genes, inplace=False)[
        "highly_variable"
    ].to_numpy()
    x, y = x[:, top], y[:, top]
    keep = (x > 0).sum(axis=1) >= min_top_genes
    return x[keep], y[keep], adata.obs_names[cells[keep]], names[top]


def sciplex(dtype="category"):
    return _sciplex(dtype).copy()


def norman():
    return _norman().copy()


def replogle():
    return _replogle().copy()


def test_sciplex_steps():
    adata = sciplex()
    before = adata.copy()
    result = prepare_sciplex(adata, 3, **SMALL)
    x, y, cells, genes = sciplex_by_hand(adata, **SMALL)
    assert 0 < len(cells) < adata.n_obs  # each step leaves something out
    assert result.obs_names.tolist() == cells.tolist()
    assert result.var_names.tolist() == genes.tolist()
    assert result.n_vars == 38
    np.testing.assert_array_equal(result.layers["counts"].toarray(), x)
    np.testing.assert_allclose(result.X.toarray(), y, rtol=1e-5)
    assert result.X.dtype == np.float32
    assert sp.issparse(result.X)
    assert_unchanged(adata, before)
    given = adata.obs.loc[cells]
    np.testing.assert_array_equal(result.obs["dose"], given["dose"])
    assert (result.obs["n_genes"] == 7).all()
    words = given["product_name"].astype(str).str.split(" ").str[0]
    expected = words.replace({"Vehicle": "control", "(+)-JQ1": "JQ1"})
    assert result.obs["perturbation"].astype(str).tolist() == expected.tolist()
    assert result.obs["cell_type"].astype(str).tolist() == given["cell_type"].astype(str).tolist()
    assert "cell_type_original" not in result.obs
    assert set(result.uns) == {"recipe", "log1p"}


def test_every_filter_leaves_something_out():
    loose = {"min_genes": 1, "min_cells": 1, "n_top_genes": 60, "min_top_genes": 0}
    full = prepare_sciplex(sciplex(), 3, **loose)
    for key in ("min_genes", "min_top_genes"):
        assert prepare_sciplex(sciplex(), 3, **{**loose, key: SMALL[key]}).n_obs < full.n_obs
    rare = set(full.var_names) - set(prepare_sciplex(sciplex(), 3, **{**loose, "min_cells": 150}).var_names)
    assert {"G0", "G1", "G2"} & rare


def test_sciplex_defaults_are_the_papers():
    with pytest.raises(ValueError, match=r"No cell has min_genes=500 detected genes \(most: \d+\)"):
        prepare_sciplex(sciplex(), 3)
    with pytest.raises(ValueError, match="No cell has min_genes=300"):
        prepare_sciplex(sciplex(), 4)
    with pytest.raises(ValueError, match=r"No gene is detected in min_cells=1000 cells \(most: \d+\)"):
        prepare_sciplex(sciplex(), 3, min_genes=1)
    with pytest.raises(ValueError, match="n_top_genes=2000, but there are only"):
        prepare_sciplex(sciplex(), 4, min_genes=1)


def test_sciplex3_paper_split():
    result = prepare_sciplex(sciplex(), 3, valid_share=0.25, control_share=0.3, **SMALL)
    assert result.obs["split"].cat.categories.tolist() == ["train", "valid", "test"]
    found = sides(result)
    assert {name for name, on in found.items() if "test" in on} == {*NINE, "control"}
    assert all(found[name] == {"test"} for name in NINE)
    # a quarter of the cells of each training condition, rounded
    n = result.obs.groupby(["perturbation", "cell_type", "split"], observed=True).size().unstack(fill_value=0)
    training = n.drop([*NINE, "control"], level="perturbation")
    expected = np.ceil(0.25 * training.sum(axis=1) - 0.5)
    np.testing.assert_array_equal(training["valid"], expected)
    controls = n.loc["control"]
    np.testing.assert_array_equal(controls["valid"], controls["test"])
    np.testing.assert_array_equal(controls["test"], np.round(0.15 * controls.sum(axis=1)))
    assert result.uns["recipe"]["holdout"].tolist() == NINE
    with pytest.raises(ValueError, match="leak"):  # as documented
        check_split(result, by="condition")


@some_missing
def test_sciplex4_paper_split_halves_the_held_out_cells():
    result = prepare_sciplex(sciplex(), 4, **SMALL)
    five = {"CUDC-907", "Dacinostat", "Givinostat", "Panobinostat", "Quisinostat"}
    found = sides(result)
    assert {name for name, on in found.items() if on != {"train"}} == {*five, "control"}
    n = result.obs.groupby(["perturbation", "cell_type", "split"], observed=True).size().unstack(fill_value=0)
    held = n.loc[sorted(five)]
    assert (held["test"] - held["valid"]).isin([0, 1]).all()
    assert (held["train"] == 0).all()


def test_sciplex_disjoint_split():
    result = prepare_sciplex(sciplex(), 3, split="disjoint", **SMALL)
    check_split(result, by="perturbation")
    found = sides(result)
    valid = {name for name, on in found.items() if on == {"valid"}}
    assert len(valid) == 9
    assert valid == set(result.uns["recipe"]["valid"])
    assert {name for name, on in found.items() if on == {"test"}} == set(NINE)
    assert "valid_share" not in result.uns["recipe"]
    named = prepare_sciplex(sciplex(), 3, split="disjoint", valid=["(+)-JQ1", "Drug3"], holdout="Hesperadin", **SMALL)
    assert {name: on for name, on in sides(named).items() if on != {"train"}} == {
        "JQ1": {"valid"},
        "Drug3": {"valid"},
        "Hesperadin": {"test"},
        "control": {"train", "valid", "test"},
    }
    none = prepare_sciplex(sciplex(), 3, split="disjoint", valid=0, **SMALL)
    assert set(none.obs["split"]) == {"train", "test"}
    check_split(none, by="perturbation")


def test_seed():
    one, same, other = (prepare_sciplex(sciplex(), 3, seed=seed, **SMALL).obs["split"] for seed in (0, 0, 1))
    pd.testing.assert_series_equal(one, same)
    assert (one != other).any()


def test_columns_of_scperturb_and_full_names():
    adata = sciplex("str")
    renamed = {"product_name": "perturbation", "dose": "dose_value", "cell_type": "cell_line"}
    other = adata.copy()
    other.obs = other.obs.rename(columns=renamed)
    other.obs["perturbation"] = other.obs["perturbation"].replace({"Vehicle": "control"})
    other.obs["dose_value"] = (
        other.obs["dose_value"].map("{:.1f}".format).where(other.obs["perturbation"] != "control", "none")
    )
    other.layers["raw"] = other.X
    other.X = other.X * 0.5
    keys = {"perturbation_key": "perturbation", "dose_key": "dose_value", "cell_type_key": "cell_line"}
    result = prepare_sciplex(other, 3, control="control", layer="raw", **keys, **SMALL)
    expected = prepare_sciplex(adata, 3, **SMALL)
    np.testing.assert_array_equal(result.X.toarray(), expected.X.toarray())
    for key in ("perturbation", "cell_type", "split"):
        assert result.obs[key].tolist() == expected.obs[key].tolist()
    assert "Flavopiridol HCl" in set(result.obs["perturbation_original"])
    full = prepare_sciplex(adata, 3, drug_names="full", holdout="Flavopiridol HCl", **SMALL)
    assert set(full.obs.loc[full.obs["split"] == "test", "perturbation"]) == {"Flavopiridol HCl", "control"}


def test_drugs_with_one_first_word():
    adata = sciplex("str")
    adata.obs["product_name"] = adata.obs["product_name"].replace({"Drug4 salt": "Drug5 acid"})
    with pytest.warns(UserWarning, match=r"become one by their first word: 'Drug5 \(Drug5 acid, Drug5 salt\)'"):
        result = prepare_sciplex(adata, 3, **SMALL)
    assert "Drug4" not in set(result.obs["perturbation"])
    full = prepare_sciplex(adata, 3, drug_names="full", holdout="Hesperadin", **SMALL)
    assert {"Drug5 acid", "Drug5 salt"} <= set(full.obs["perturbation"])


@pytest.mark.parametrize("kind", ["dense", "backed", "backed dense", "integers", "view"])
def test_kinds_of_matrices(tmp_path, kind):
    adata = sciplex()
    expected = prepare_sciplex(adata, 3, **SMALL)
    if "dense" in kind:
        adata.X = adata.X.toarray()
    if kind == "integers":
        adata.X = adata.X.astype(np.int64)
    if kind == "view":
        adata = ad.concat([adata, adata], index_unique="-")[: adata.n_obs]
    if "backed" in kind:
        adata.write_h5ad(tmp_path / "raw.h5ad")
        adata = ad.read_h5ad(tmp_path / "raw.h5ad", backed="r")
    result = prepare_sciplex(adata, 3, **SMALL)
    x = result.X if kind.endswith("dense") else result.X.toarray()
    np.testing.assert_allclose(x, expected.X.toarray(), rtol=1e-5)
    assert result.obs["split"].tolist() == expected.obs["split"].tolist()
    assert not result.isbacked


def test_norman():
    adata = norman()
    before = adata.copy()
    result = prepare_norman(adata, n_genes=40)
    assert_unchanged(adata, before)
    assert set(result.obs["cell_type"]) == {"K562"}
    assert set(result.obs["cell_type_original"]) == {"A549"}
    assert (result.obs["perturbation"].eq("control") == result.obs["control"].eq(1)).all()
    given = [canonical(name) for name in DOUBLES]
    test = set(result.uns["recipe"]["holdout"])
    assert len(test) == 10
    assert {"CEBPB+FOSB", "DLX2+ZBTB10"} <= test < set(given) - {"KLF1+LONELY"}
    assert sides(result) == {
        **{name: {"train"} for name in SINGLES},
        **{name: {"test"} for name in test},
        "control": {"train", "test"},
    }
    assert numbers(result)["control"].to_dict() == {"train": 48, "test": 12}
    check_split(result, by="combination")
    labels = adata.obs.loc[result.obs_names, "condition"].astype(str)
    cleaned = ["+".join(sorted(set(label.split("+")) - {"ctrl"})) or "control" for label in labels]
    assert result.obs["perturbation"].astype(str).tolist() == cleaned


def test_norman_genes():
    adata = norman()
    result = prepare_norman(adata, n_genes=40)
    perturbed = [name for name in SINGLES if name != "NOGENE"]
    assert result.n_vars == 40
    assert result.var.loc[result.var["perturbed"], "gene_name"].tolist() == perturbed
    # the others are those that rank first by dispersion among the cells that are kept
    kept = adata[result.obs_names]
    ranked = sc.pp.highly_variable_genes(kept.copy(), inplace=False)["dispersions_norm"].fillna(-np.inf)
    others = ranked[~adata.var["gene_name"].isin(perturbed)]
    assert set(result.var_names[~result.var["perturbed"]]) == set(others.nlargest(31).index)
    assert (result.var["highly_variable"] == ~result.var["perturbed"]).all()
    np.testing.assert_array_equal(result.X.toarray(), kept[:, result.var_names].X.toarray())


def test_norman_doubles():
    adata = norman()
    named = prepare_norman(adata, holdout=["CEBPB+FOSB", "AHR+KLF1"], train_doubles=True, n_genes=40)
    found = sides(named)
    assert {name for name, on in found.items() if on == {"test"}} == {"AHR+KLF1", "CEBPB+FOSB"}
    assert {name for name, on in found.items() if "+" in name} == {canonical(name) for name in DOUBLES}
    assert named.n_obs == adata.n_obs
    disjoint = prepare_norman(adata, n_holdout=3, split="disjoint", n_genes=40)
    check_split(disjoint, by="combination")
    found = sides(disjoint)
    assert sum(on == {"test"} for on in found.values()) == sum(on == {"valid"} for on in found.values()) == 3
    assert all(on == {"train"} for name, on in found.items() if "+" not in name and name != "control")
    draws = {
        tuple(prepare_norman(adata, n_genes=40, n_holdout=4, seed=i).uns["recipe"]["holdout"]) for i in (0, 0, 1, 2)
    }
    assert 1 < len(draws) < 4


def test_norman_with_other_names():
    adata = norman()
    other = adata.copy()
    label = other.obs["condition"].astype(str)
    label = label.str.replace("+ctrl", "", regex=False).str.replace("ctrl+", "", regex=False)
    other.obs["perturbation"] = label.replace({"ctrl": "control"}).str.replace("+", "_", regex=False)
    other.obs["split"] = "mine"
    other.var_names = other.var["gene_name"].tolist()
    keys = {"perturbation_key": "perturbation", "control": "control", "delimiter": "_", "gene_key": None}
    result = prepare_norman(other, n_genes=40, **keys)
    expected = prepare_norman(adata, n_genes=40)
    for key in ("perturbation", "split"):
        assert result.obs[key].tolist() == expected.obs[key].tolist()
    assert "FOSB_CEBPB" in set(result.obs["perturbation_original"])
    assert set(result.obs["split_original"]) == {"mine"}
    for holdout in ("FOSB_CEBPB", "CEBPB+FOSB", [("FOSB", "CEBPB")]):
        assert prepare_norman(other, n_genes=40, holdout=holdout, **keys).uns["recipe"]["holdout"].tolist() == [
            "CEBPB+FOSB"
        ]


@some_missing
def test_replogle():
    adata = replogle()
    before = adata.copy()
    result = prepare_replogle(adata, "K562", n_top_genes=25)
    assert_unchanged(adata, before)
    measured = [name for name in TARGETS if not name.startswith("GONE")]
    assert set(result.obs["perturbation"]) == {*measured, "control"}
    assert result.uns["recipe"]["not_measured"].tolist() == ["GONE1", "GONE2"]
    kept = adata[result.obs_names]
    top = sc.pp.highly_variable_genes(kept.copy(), n_top_genes=25, inplace=False)["highly_variable"]
    assert result.var_names.tolist() == adata.var_names[top | adata.var["gene_name"].isin(measured)].tolist()
    assert set(result.var.loc[result.var["perturbed"], "gene_name"]) == set(measured)
    assert result.var_names[result.var["highly_variable"]].tolist() == adata.var_names[top].tolist()
    np.testing.assert_array_equal(result.X.toarray(), kept[:, result.var_names].X.toarray())
    # of 7 cells of each held-out knock-down 3 are validation; a tenth of 60 controls is on each side
    n = numbers(result).unstack(fill_value=0)
    held = set(REPLOGLE["K562"][:6])
    assert set(n.index[n["test"] > 0]) == {*held, "control"}
    assert (n.loc[sorted(held), ["train", "valid", "test"]] == [0, 3, 4]).all(axis=None)
    assert n.loc["control"].to_dict() == {"train": 48, "valid": 6, "test": 6}


@some_missing
def test_replogle_disjoint():
    result = prepare_replogle(replogle(), "K562", n_top_genes=25, split="disjoint", valid=4)
    check_split(result, by="perturbation")
    found = sides(result)
    assert {name for name, on in found.items() if on == {"test"}} == set(REPLOGLE["K562"][:6])
    assert sum(on == {"valid"} for on in found.values()) == 4
    own = prepare_replogle(replogle(), "K562", n_top_genes=25, holdout=["T1", "T2+ctrl"])
    assert own.uns["recipe"]["holdout"].tolist() == ["T1", "T2"]


def test_replogle_names():
    assert {line: len(set(names)) for line, names in REPLOGLE.items()} == {"K562": 39, "RPE1": 98}
    with pytest.warns(UserWarning, match=r"33 of the 39 held-out perturbations are not in the data: 'FAU', .*other 6"):
        prepare_replogle(replogle(), "K562", n_top_genes=25)
    adata = replogle()
    adata.obs["cell_type"] = "hTERT RPE-1"
    with pytest.warns(UserWarning, match="of the 98"):
        result = prepare_replogle(adata, "RPE1", n_top_genes=25)
    assert set(result.obs["cell_type"]) == {"RPE1"}
    assert set(result.obs["cell_type_original"]) == {"hTERT RPE-1"}


@some_missing
@pytest.mark.parametrize("split", ["paper", "disjoint"])
@pytest.mark.parametrize(
    "prepare",
    [
        lambda split: prepare_sciplex(sciplex(), 3, split=split, **SMALL),
        lambda split: prepare_norman(norman(), n_genes=40, n_holdout=5, split=split),
        lambda split: prepare_replogle(replogle(), "K562", n_top_genes=25, split=split),
    ],
)
def test_file(tmp_path, prepare, split):
    result = prepare(split)
    result.write_h5ad(tmp_path / "x.h5ad")
    read = ad.read_h5ad(tmp_path / "x.h5ad")
    for key in ("perturbation", "cell_type", "split"):
        assert read.obs[key].tolist() == result.obs[key].tolist()
        assert isinstance(read.obs[key].dtype, pd.CategoricalDtype)
    np.testing.assert_array_equal(read.X.toarray(), result.X.toarray())
    assert set(read.uns["recipe"]) == set(result.uns["recipe"])
    for key, value in result.uns["recipe"].items():
        np.testing.assert_array_equal(read.uns["recipe"][key], value)
        assert value is not None
    assert read.uns["recipe"]["split"] == split
    # training sees no cell of what is tested
    test = set(read.obs.loc[read.obs["split"] == "test", "perturbation"]) - {"control"}
    train = set(read.obs.loc[read.obs["split"] == "train", "perturbation"])
    assert test == set(read.uns["recipe"]["holdout"])
    assert not test & train
    for _, cells in read.obs[read.obs["perturbation"] == "control"].groupby("cell_type", observed=True):
        assert set(cells["split"]) == set(read.obs["split"])


def changed(make, **columns):
    adata = make()
    adata.obs = adata.obs.assign(**columns)
    return adata


def is_vehicle(obs):
    return obs["product_name"] == "Vehicle"


def without(make, *columns):
    adata = make()
    adata.obs = adata.obs.drop(columns=list(columns))
    return adata


def relabelled(make, key, names):
    return changed(make, **{key: lambda obs: obs[key].astype(str).replace(names)})


def scaled(make, factor):
    adata = make()
    adata.X = adata.X * factor
    return adata


def repeated(make, axis):
    adata = make()
    names = getattr(adata, axis).tolist()
    setattr(adata, axis, [names[1], *names[1:]])
    return adata


def only(make, key, *names):
    adata = make()
    return adata[adata.obs[key].isin(names)].copy()


@pytest.mark.filterwarnings("ignore:Observation names are not unique", "ignore:Variable names are not unique")
@pytest.mark.parametrize(
    ("make", "settings", "error", "match"),
    [
        (lambda: without(sciplex, "dose", "product_name"), {}, KeyError,
         r"perturbation_key='product_name', dose_key='dose' in adata.obs.*adata.obs has: 'cell_type', 'n_genes'"),
        (lambda: sciplex().obs, {}, TypeError, "must be an AnnData, but got DataFrame"),
        (sciplex, {"layer": "raw"}, KeyError, "layer='raw' is not in adata.layers"),
        (lambda: repeated(sciplex, "var_names"), {}, ValueError, "adata.var_names must be unique.*'G1'"),
        (lambda: repeated(sciplex, "obs_names"), {}, ValueError, "adata.obs_names must be unique.*'cell1'"),
        (lambda: scaled(sciplex, 0.5), {}, ValueError, "must hold raw counts, but has fractions"),
        (sciplex, {"dose": 10.0}, ValueError, "No treated cell has dose=10 .*which has: '100', '10000'.*unit"),
        (lambda: changed(sciplex, dose="high"), {}, ValueError, "must have numbers, but has: 'high'"),
        (sciplex, {"control": "DMSO"}, ValueError, "control='DMSO' is not in adata.obs.*Alvespimycin"),
        (lambda: only(sciplex, "product_name", "Vehicle"), {}, ValueError, "no perturbation but the control 'Vehicle'"),
        (lambda: relabelled(sciplex, "product_name", {"TAK-901": "control"}), {}, ValueError, "has 'control' beside"),
        (lambda: changed(sciplex, product_name=np.nan), {}, ValueError, "is missing for"),
        (lambda: only(sciplex, "product_name", "Vehicle", "CUDC-907", "Drug1 salt"), {}, ValueError,
         "None of the 9 held-out perturbations is in the data: 'Alvespimycin'.*'Tanespimycin'.*have: 'CUDC-907', 'Drug1'"),
        (sciplex, {"holdout": ["Hesperadin", "Aspirin"]}, ValueError, "holdout has 'Aspirin', which cannot be held out"),
        (sciplex, {"holdout": []}, ValueError, "holdout is empty"),
        (sciplex, {"valid": 3}, ValueError, "valid=3 is for split='disjoint'"),
        (sciplex, {"split": "disjoint", "valid": ["Hesperadin"]}, ValueError, "valid has 'Hesperadin', which cannot"),
        (sciplex, {"split": "disjoint", "valid": 16}, ValueError, "16 perturbations are to be drawn, but .* only 15"),
        (sciplex, {"split": "disjoint", "valid": 15}, ValueError, "Nothing is left to train on"),
        (sciplex, {"split": "disjoint", "valid": -1}, ValueError, "valid=-1 must be at least 0"),
        (lambda: changed(sciplex, cell_type=lambda obs: obs["cell_type"].astype(str).where(~is_vehicle(obs), "A549")),
         {}, ValueError, r"at least 3 control cells.*'K562 \(0\)', 'MCF7 \(0\)'"),
        (sciplex, {"min_top_genes": 39}, ValueError, "No cell has min_top_genes=39 detected genes"),
        (sciplex, {"split": "random"}, ValueError, "split: expected one of paper, disjoint"),
        (sciplex, {"drug_names": "short"}, ValueError, "drug_names: expected one of first_word, full"),
        (sciplex, {"control_share": 1}, ValueError, "control_share=1 must be above 0 and below 1"),
        (sciplex, {"valid_share": 0}, ValueError, "valid_share=0 must be above 0"),
        (sciplex, {"version": 2}, ValueError, "version=2 is unknown"),
        (sciplex, {"n_top_genes": 0}, ValueError, "n_top_genes: expected a whole number of at least 1"),
    ],
)  # fmt: skip
def test_sciplex_refuses(make, settings, error, match):
    with pytest.raises(error, match=match):
        prepare_sciplex(make(), **{"version": 3, **SMALL, **settings})


@pytest.mark.parametrize(
    ("make", "settings", "error", "match"),
    [
        (lambda: without(norman, "condition"), {"gene_key": "symbol"}, KeyError,
         r"perturbation_key='condition' in adata.obs; gene_key='symbol' in adata.var. adata.obs has: .*'gene_name'"),
        (norman, {"gene_key": None}, ValueError, "None of the perturbed genes .* is in adata.var_names.*'ENSG00000'"),
        (norman, {"holdout": "KLF1"}, ValueError, "holdout has 'KLF1', which cannot be held out"),
        (norman, {"holdout": "KLF1+LONELY"}, ValueError, "holdout has 'KLF1.LONELY', which cannot be held out"),
        (norman, {"n_holdout": 30}, ValueError, "n_holdout: 28 perturbations are to be drawn, but there are only 12"),
        (norman, {"n_holdout": 1}, ValueError, "n_holdout: expected a whole number of at least 2"),
        (norman, {"n_genes": 5}, ValueError, "n_genes=5 leaves no room for the 9 perturbed genes"),
        (norman, {"n_genes": 1051}, ValueError, "n_genes=1051, but there are only 79 genes"),
        (lambda: only(norman, "condition", "ctrl", "KLF1+ctrl", "ctrl+KLF1"), {}, ValueError,
         r"None of the 2 held-out perturbations is in the data: 'CEBPB\+FOSB', 'DLX2\+ZBTB10'"),
    ],
)  # fmt: skip
def test_norman_refuses(make, settings, error, match):
    with pytest.raises(error, match=match):
        prepare_norman(make(), **{"n_genes": 40, **settings})


def test_scales_are_refused():
    adata = norman()
    adata.layers["counts"] = adata.X.copy()
    adata.layers["counts"].data = np.ceil(adata.layers["counts"].data)
    adata.layers["z"] = adata.X.toarray() - 1
    with pytest.raises(ValueError, match=r"layers\['counts'\] must hold log-normalised values, but has whole numbers"):
        prepare_norman(adata, n_genes=40, layer="counts")
    with pytest.raises(ValueError, match=r"has negative values \(smallest: -1\), as z-scores have"):
        prepare_norman(adata, n_genes=40, layer="z")
    with pytest.raises(ValueError, match="whole numbers"):
        prepare_replogle(adata, "K562", cell_type_key=None, holdout="KLF1", layer="counts", n_top_genes=25)


@some_missing
@pytest.mark.parametrize(
    ("make", "settings", "error", "match"),
    [
        (replogle, {"line": "HeLa"}, ValueError, "line: expected one of K562, RPE1"),
        (replogle, {"line": "RPE1"}, ValueError, "line='RPE1', but adata.obs.'cell_type'. .* has: 'K562'"),
        (lambda: changed(replogle, cell_type=["K562", "RPE1"] * 107), {}, ValueError, "has: 'RPE1'"),
        (replogle, {"cell_type_key": "cell_line"}, KeyError, "cell_type_key='cell_line' in adata.obs"),
        (replogle, {"holdout": "GONE1"}, ValueError, "holdout has 'GONE1', which cannot be held out"),
        (lambda: only(replogle, "condition", "ctrl", "T1+ctrl"), {}, ValueError, "None of the 39 .*have: 'T1'"),
        (replogle, {"n_top_genes": None}, ValueError, "n_top_genes=1141, but there are only 80 genes"),
    ],
)  # fmt: skip
def test_replogle_refuses(make, settings, error, match):
    with pytest.raises(error, match=match):
        prepare_replogle(make(), **{"line": "K562", "n_top_genes": 25, **settings})


def test_few_controls_and_drugs_that_filters_take():
    adata = sciplex()
    shallow = adata.obs["product_name"].astype(str).isin(["Hesperadin"]).to_numpy()
    x = adata.X.toarray()
    x[shallow, 20:] = 0
    adata.X = sp.csr_matrix(x)
    with pytest.warns(
        UserWarning, match="No cell is left after filtering of 1 of 9 held-out perturbations: 'Hesperadin'"
    ):
        result = prepare_sciplex(adata, 3, **SMALL)
    assert "Hesperadin" not in result.uns["recipe"]["holdout"]
    with pytest.raises(ValueError, match="No cell is left after filtering of 1 of 1"):
        prepare_sciplex(adata, 3, holdout="Hesperadin", **SMALL)
    few = np.flatnonzero((adata.obs["product_name"] == "Vehicle") & (adata.obs["cell_type"] == "K562"))[3:]
    keep = np.setdiff1d(np.arange(adata.n_obs), few)
    with pytest.raises(ValueError, match=r"at least 3 control cells after filtering.*'K562 \([012]\)'"):
        prepare_sciplex(adata[keep], 3, holdout="TAK-901", **{**SMALL, "min_genes": 30})
