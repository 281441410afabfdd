"""Stacked species: the blocks, names and columns, and the way back."""

from contextlib import nullcontext

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from pandas.testing import assert_frame_equal, assert_series_equal

import transverse as tv

stack, unstack = tv.pp.stack_species, tv.pp.unstack_species


def one(n_obs, genes, seed, kind=sp.csr_matrix, samples="s"):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(1, (n_obs, len(genes)))
    obs = pd.DataFrame(
        {
            "organ": pd.Categorical(rng.choice(["brain", "liver"], n_obs), categories=["liver", "brain", "never"]),
            "animal": [f"a{i}" for i in range(n_obs)],
            "weight": rng.normal(size=n_obs),
        },
        index=[f"{samples}{i}" for i in range(n_obs)],
    )
    var = pd.DataFrame({"length": np.arange(len(genes)), "coding": True}, index=genes)
    layers = {"log": kind(np.log1p(counts)), f"only {seed}": kind(counts)}
    return ad.AnnData(kind(counts.astype(np.float32)), obs=obs, var=var, layers=layers, uns={"kept": 1})


@pytest.fixture
def data():
    mouse, rat, dog = (
        one(9, ["Alb", "Ttr", "Gm1"], 0),
        one(7, ["Ttr", "Alb", "Rn1", "Rn2"], 1, kind=np.asarray),
        one(5, ["ALB", "Ttr"], 2, kind=sp.csc_matrix),
    )
    mouse.obs["age"] = np.arange(9)
    mouse.obs["treated"] = np.arange(9) % 2 == 0
    mouse.obs["note"] = [f"n{i}" for i in range(9)]
    rat.obs["organ"] = rat.obs["organ"].cat.rename_categories({"brain": "lung"})
    rat.obs["nothing"] = np.nan
    dog.obs["nothing"] = pd.Categorical(["x"] * 5)
    dog.obs["age"] = np.arange(5, dtype=np.int8)
    dog.var["symbol"] = ["ALB", "TTR"]
    rat.X = rat.X.astype(np.int64)
    return {"mouse": mouse, "rat": rat, "dog": dog}


def layers(adata):
    return [layer for layer in adata.layers if layer is not None]  # newer versions of anndata count X among them


def dense(matrix):
    return matrix.toarray() if sp.issparse(matrix) else np.asarray(matrix)


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name in expected:
        own, other = found[name], expected[name]
        assert_frame_equal(own.obs, other.obs)
        assert_frame_equal(own.var, other.var)
        matrices = {"X": (own.X, other.X)} | {key: (own.layers[key], other.layers[key]) for key in layers(own)}
        for first, second in matrices.values():
            assert type(first) is type(second) and first.dtype == second.dtype
            np.testing.assert_array_equal(dense(first), dense(second))


def writable_strings():
    if hasattr(ad.settings, "allow_write_nullable_strings"):
        return ad.settings.override(allow_write_nullable_strings=True)
    return nullcontext()


def test_blocks(data):
    before = {name: adata.copy() for name, adata in data.items()}
    adata = stack(data)
    assert adata.shape == (21, 9)
    blocks = [dense(block.X) for block in data.values()]
    expected = sp.block_diag(blocks).toarray()
    assert isinstance(adata.X, sp.csr_matrix) and adata.X.dtype == np.float64  # of int64 and float32
    np.testing.assert_array_equal(adata.X.toarray(), expected)
    assert adata.X.nnz == sum(np.count_nonzero(block) for block in blocks)
    assert layers(adata) == ["log"]
    np.testing.assert_array_equal(adata.layers["log"].toarray(), np.log1p(expected))
    species = ["mouse", "rat", "dog"]
    assert list(adata.obs["species"]) == np.repeat(species, [9, 7, 5]).tolist()
    assert list(adata.var["species"]) == np.repeat(species, [3, 4, 2]).tolist()
    for axis in (adata.obs, adata.var):
        assert list(axis["species"].cat.categories) == species
    assert list(adata.uns["stack_species"]["species"]) == species
    assert not set(adata.uns) & {"kept"}
    assert_same(data, before)
    assert all(adata.uns == {"kept": 1} for adata in data.values())


def test_names(data):
    adata = stack(data)
    ttr = ["mouse:Ttr", "rat:Ttr", "dog:Ttr"]
    assert adata.var_names.tolist() == ["mouse:Alb", ttr[0], "Gm1", ttr[1], "rat:Alb", "Rn1", "Rn2", "ALB", ttr[2]]
    assert adata.var["gene"].tolist() == ["Alb", "Ttr", "Gm1", "Ttr", "Alb", "Rn1", "Rn2", "ALB", "Ttr"]
    assert adata.obs_names.tolist() == [
        f"{s}:s{i}" for s, n in (("mouse", 9), ("rat", 7), ("dog", 5)) for i in range(n)
    ]
    every = stack(data, prefix="all", delimiter="_", gene_key="name", species_key="organism")
    assert every.var_names.tolist()[2:4] == ["mouse_Gm1", "rat_Ttr"]
    assert every.var["name"].tolist() == adata.var["gene"].tolist()
    assert {"organism"} == (set(every.obs) - set(adata.obs))
    assert_same(unstack(every, "organism"), unstack(adata))
    apart = {"mouse": one(3, ["a"], 0, samples="m"), "rat": one(3, ["b"], 1, samples="r")}
    assert stack(apart).obs_names.tolist() == ["m0", "m1", "m2", "r0", "r1", "r2"]
    assert stack(apart).var_names.tolist() == ["a", "b"]
    assert stack(apart, prefix="all").obs_names.tolist()[0] == "mouse:m0"
    assert_same(unstack(stack(apart, prefix="all", layers=[])), unstack(stack(apart, layers=[])))


def test_a_name_with_the_prefix_of_its_own():
    apart = {"mouse": one(2, ["a"], 0, samples="mouse:s"), "rat": one(2, ["b"], 1, samples="r")}
    again = unstack(stack(apart))
    assert again["mouse"].obs_names.tolist() == ["mouse:s0", "mouse:s1"]
    again = unstack(stack(apart, prefix="all"))
    assert again["mouse"].obs_names.tolist() == ["mouse:s0", "mouse:s1"]
    with pytest.raises(
        ValueError, match="names of genes repeat even with the species .* 'mouse:a'. Use another delimiter"
    ):
        stack({"mouse": one(2, ["a"], 0), "rat": one(2, ["a", "mouse:a"], 1)})


def test_columns(data):
    obs, var = stack(data).obs, stack(data).var
    assert list(obs) == ["species", "organ", "animal", "weight", "age", "treated", "note", "nothing"]
    assert list(obs["organ"].cat.categories) == ["liver", "brain", "never", "lung"]
    organs = pd.concat([adata.obs["organ"].astype(str) for adata in data.values()])
    assert obs["organ"].tolist() == organs.tolist()
    assert obs["age"].dtype == float and obs["age"].isna().tolist() == [False] * 9 + [True] * 7 + [False] * 5
    assert str(obs["treated"].dtype) == "boolean" and obs["treated"].isna().sum() == 12
    assert obs["note"].tolist()[:9] == [f"n{i}" for i in range(9)] and obs["note"].isna().sum() == 12
    assert obs["nothing"].tolist()[16:] == ["x"] * 5 and obs["nothing"].isna().sum() == 16
    assert obs["animal"].dtype == object and obs["weight"].dtype == float
    assert var["length"].dtype == int and var["coding"].dtype == bool
    assert var["symbol"].isna().tolist() == [True] * 7 + [False] * 2
    inner = stack(data, join_obs="inner", join_var="inner")
    assert list(inner.obs) == ["species", "organ", "animal", "weight"]
    assert list(inner.var) == ["species", "gene", "length", "coding"]


def test_round_trip(data, tmp_path):
    expected = {name: adata.copy() for name, adata in data.items()}
    for name, adata in expected.items():
        del adata.layers[f"only {list(data).index(name)}"]
    adata = stack(data)
    assert_same(unstack(adata), expected)
    with writable_strings():
        adata.write_h5ad(tmp_path / "stacked.h5ad")
    for backed in (None, "r"):
        read = ad.read_h5ad(tmp_path / "stacked.h5ad", backed=backed)
        assert_same(unstack(read), expected)
    shuffled = adata[np.random.default_rng(0).permutation(21)].copy()
    again = unstack(shuffled)
    for name in expected:
        assert_frame_equal(again[name].obs.loc[expected[name].obs_names], expected[name].obs)


def test_what_changed_since_is_kept(data):
    adata = stack(data)
    adata.obs["late"] = np.arange(21)
    adata.layers["late"] = adata.X * 2
    adata.obs["organ"] = adata.obs["organ"].cat.rename_categories({"liver": "Leber"})
    adata = adata[adata.obs["animal"] != "a0", adata.var["gene"] != "Ttr"].copy()
    again = unstack(adata)
    assert again["mouse"].obs_names.tolist() == [f"s{i}" for i in range(1, 9)]
    assert again["rat"].obs["late"].tolist() == list(range(10, 16))
    assert again["dog"].var_names.tolist() == ["ALB"]
    np.testing.assert_array_equal(dense(again["rat"].layers["late"]), dense(data["rat"].X)[1:, 1:] * 2)
    assert "Leber" in set(again["mouse"].obs["organ"]) and again["mouse"].obs["organ"].notna().all()


def test_without_a_record(data):
    adata = stack(data)
    del adata.uns["stack_species"]
    again = unstack(adata)
    assert list(again) == list(data)
    assert again["rat"].var_names.tolist() == ["rat:Ttr", "rat:Alb", "Rn1", "Rn2"]
    np.testing.assert_array_equal(dense(again["rat"].X), dense(data["rat"].X))
    again["rat"].X.data[:] = 0
    np.testing.assert_array_equal(dense(unstack(adata)["rat"].X), dense(data["rat"].X))  # was a copy


@pytest.mark.filterwarnings("ignore:var_names are not", "ignore:From 0.4 .update", "ignore:Cannot join columns")
def test_forms_of_the_input(data, tmp_path):
    expected = stack(data)
    sparse = {name: adata.copy() for name, adata in data.items()}
    for adata in sparse.values():
        adata.X = dense(adata.X)
        adata.layers["log"] = sp.csr_matrix(adata.layers["log"])
    backed = {}
    for name, adata in data.items():
        with writable_strings():
            adata.write_h5ad(tmp_path / f"{name}.h5ad")
        backed[name] = ad.read_h5ad(tmp_path / f"{name}.h5ad", backed="r")
    mdata = mudata.MuData({name: adata.copy() for name, adata in data.items()})
    for form in (sparse, backed, mdata, {name: adata[:] for name, adata in data.items()}):
        found = stack(form)
        assert (found.X != expected.X).nnz == 0 and (found.layers["log"] != expected.layers["log"]).nnz == 0
        assert found.obs_names.equals(expected.obs_names)
        # a file has categories for text
        assert_frame_equal(found.var, expected.var, check_categorical=False)
        assert_series_equal(
            found.obs["organ"].astype(str), expected.obs["organ"].astype(str)
        )  # views drop what is unused


def test_blocks_of_rows(data, monkeypatch):
    expected = stack(data)
    rows = tv._validation.iter_rows
    monkeypatch.setattr("transverse.pp._stack_species.iter_rows", lambda adata, layer: rows(adata, layer, 2))
    assert (stack(data).X != expected.X).nnz == 0
    assert len(unstack(expected)) == 3


def test_layers_and_no_matrix(data):
    assert layers(stack(data, layers=[])) == []
    assert layers(stack(data, layers=["log"])) == ["log"]
    for adata in data.values():
        adata.X = None
    adata = stack(data)
    assert adata.X is None and layers(adata) == ["log"]
    assert unstack(adata)["rat"].X is None


def test_species_column_that_is_there(data):
    for name, adata in data.items():
        adata.obs["species"] = name
        adata.var["gene"] = adata.var_names
    again = unstack(stack(data))
    for name, adata in data.items():
        assert_frame_equal(again[name].obs, adata.obs)
        assert_frame_equal(again[name].var, adata.var)


def test_simulated(tmp_path):
    data = tv.datasets.simulate_reactomes(n_genes=40, n_animals=2)
    adata = stack(data)
    assert_same(unstack(adata), data)
    with writable_strings():
        adata.write_h5ad(tmp_path / "stacked.h5ad")
    assert_same(unstack(ad.read_h5ad(tmp_path / "stacked.h5ad")), data)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda d: {"mouse": d["mouse"]}, ValueError, "at least two species to stack, but data has 'mouse'"),
        (lambda d: {}, ValueError, "at least two species to stack, but data has none"),
        (lambda d: list(d.values()), TypeError, "data must be a mapping .* but got list"),
        (lambda d: d | {"rat": d["rat"].obs}, TypeError, r"data\['rat'\] must be an AnnData, but got DataFrame"),
        (lambda d: {1: d["mouse"], "1": d["rat"]}, ValueError, "names of species must differ as text"),
        (
            lambda d: d | {"rat": d["rat"][:, :0].copy()},
            ValueError,
            r"data\['rat'\] is empty: it has 7 samples and 0 genes",
        ),
        (lambda d: d | {"rat": d["rat"][:0].copy()}, ValueError, r"data\['rat'\] is empty: it has 0 samples"),
    ],
)
def test_refused_data(data, change, error, match):
    with pytest.raises(error, match=match):
        stack(change(data))


def test_errors(data):
    mouse, rat = data["mouse"], data["rat"]
    for argument, value in (("join_obs", "left"), ("join_var", None), ("prefix", "none")):
        with pytest.raises(ValueError, match=f"{argument}={value!r} must be one of '"):
            stack(data, **{argument: value})
    with pytest.raises(ValueError, match="delimiter='' must be a string of at least one letter"):
        stack(data, delimiter="")
    with pytest.raises(ValueError, match="species_key and gene_key are both 'x'"):
        stack(data, species_key="x", gene_key="x")
    with pytest.raises(TypeError, match="layers must be a list of layers, but got the string 'log'"):
        stack(data, layers="log")
    with pytest.raises(
        KeyError, match="'only 0', which is not in the layers of 'rat', 'dog'. Layers of 'rat': 'log', 'only 1'"
    ):
        stack(data, layers=["only 0"])

    def changed(**tables):
        other = rat.copy()
        for key, value in tables.items():
            setattr(other, key, value)
        return {"mouse": mouse, "rat": other}

    with pytest.raises(ValueError, match=r"data\['rat'\].var_names must be unique, but these repeat: 'a'"):
        stack(changed(var_names=["a", "a", "b", "c"]))
    with pytest.raises(ValueError, match=r"data\['rat'\].obs_names must be unique, but these repeat: 's'"):
        stack(changed(obs_names=["s"] * 2 + list("abcde")))
    with pytest.raises(
        ValueError, match=r"data\['rat'\].obs\['species'\] must be 'rat' throughout, but has 'Rattus', 'nan'"
    ):
        stack(changed(obs=rat.obs.assign(species=["rat"] * 5 + ["Rattus", np.nan])))
    with pytest.raises(ValueError, match=r"data\['rat'\].var\['organism'\] must be 'rat' throughout, but has '10116'"):
        stack(changed(var=rat.var.assign(organism=10116)), species_key="organism")
    with pytest.raises(ValueError, match=r"data\['rat'\].var has a column 'gene' that is not the names of the genes"):
        stack(changed(var=rat.var.assign(gene="x")))
    with pytest.raises(
        ValueError, match=r"obs\['weight'\] holds different things: float64 in 'mouse', object in 'rat'"
    ):
        stack(changed(obs=rat.obs.assign(weight="heavy").astype({"weight": object})))
    with pytest.raises(
        ValueError, match=r"obs\['organ'\] holds different things: category in 'mouse', category in 'rat'"
    ):
        stack(changed(obs=rat.obs.assign(organ=pd.Categorical([1] * 7))))
    with pytest.raises(ValueError, match="X is empty in 'rat', but not in the others"):
        stack(changed(X=None))
    with pytest.raises(TypeError, match=r"data\['rat'\].X must hold numbers, but its type is "):
        stack({"mouse": mouse, "rat": ad.AnnData(np.full((2, 2), "a", dtype=object))})


def test_unstack_errors(data):
    adata = stack(data)
    with pytest.raises(TypeError, match="adata must be an AnnData, but got dict"):
        unstack(data)
    with pytest.raises(KeyError, match="species_key='organism' is not in adata.obs"):
        unstack(adata, "organism")
    with pytest.raises(ValueError, match="must name the same species, but these are in one of them only: 'dog'"):
        unstack(adata[:, adata.var["species"] != "dog"].copy())
    elsewhere = sp.csr_matrix(([1.0], ([0], [8])), shape=adata.shape)
    adata.layers["log"] = adata.layers["log"] + elsewhere
    with pytest.raises(ValueError, match=r"adata.layers\['log'\] has 1 values of samples at genes of other species"):
        unstack(adata)


DAY = pd.Timestamp("2024-02-01")


@pytest.mark.parametrize(
    ("first", "second", "kind"),
    [
        ([1, 2], None, "float64"),
        ([1.5, np.nan], [1, 2], "float64"),
        (pd.array([1, None], dtype="Int64"), None, "Int64"),
        (pd.array([1, None], dtype="Int64"), [3, 4], "Int64"),
        ([True, False], [False, True], "bool"),
        (pd.array([True, None], dtype="boolean"), [False, True], "boolean"),
        ([np.nan, np.nan], None, "float64"),
        ([np.nan, np.nan], ["a", "b"], "category"),
        (["a", np.nan], pd.Categorical(["b", "a"]), "category"),
        (pd.Categorical([2, 1], ordered=True), pd.Categorical([1, 2], ordered=True), "category"),
        ([DAY, DAY], None, "datetime64"),
    ],
)
def test_types_of_columns(first, second, kind):
    apart = {"mouse": one(2, ["a"], 0), "rat": one(2, ["b"], 1)}
    for name, values in (("mouse", first), ("rat", second)):
        if values is not None:
            apart[name].obs["x"] = values
    adata = stack(apart)
    assert str(adata.obs["x"].dtype).startswith(kind)
    together = [*first, *([np.nan] * 2 if second is None else second)]
    for found, value in zip(adata.obs["x"], together, strict=True):
        assert (pd.isna(found) and pd.isna(value)) or found == value
    for name, table in unstack(adata).items():
        assert_frame_equal(table.obs, apart[name].obs)


def test_order_of_categories():
    apart = {"mouse": one(2, ["a"], 0), "rat": one(2, ["b"], 1)}
    for categories, ordered in ((["low", "high"], True), (["high", "low"], False)):
        apart["mouse"].obs["dose"] = pd.Categorical(["low", "high"], categories=["low", "high"], ordered=True)
        apart["rat"].obs["dose"] = pd.Categorical(["high", "low"], categories=categories, ordered=True)
        dose = stack(apart).obs["dose"].cat
        assert list(dose.categories) == ["low", "high"] and dose.ordered == ordered
        assert_frame_equal(unstack(stack(apart))["rat"].obs, apart["rat"].obs)


def test_values_that_no_longer_fit_their_type():
    apart = {"mouse": one(2, ["a"], 0), "rat": one(2, ["b"], 1)}
    adata = stack(apart)
    adata.obs["weight"] = ["heavy", "light", "heavy", "light"]
    assert unstack(adata)["rat"].obs["weight"].tolist() == ["heavy", "light"]
