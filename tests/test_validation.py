"""Checks of user input: every message, and valid input in every form passes."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from transverse import _validation as v

FORMATS = {"dense": np.asarray, "csr": sparse.csr_matrix, "csc": sparse.csc_matrix}


def counts(dtype="float32", n_cells=11, n_genes=6):
    values = np.random.default_rng(0).poisson(1.0, (n_cells, n_genes))
    values[:, 0] += 1  # no empty cell
    return values.astype(dtype)


def make(values=None, fmt=np.asarray):
    adata = ad.AnnData(fmt(counts() if values is None else values))
    adata.var_names = list("abcdef")[: adata.n_vars]
    adata.obs_names = [f"cell{i}" for i in range(adata.n_obs)]
    adata.obs["batch"] = pd.Categorical(np.where(np.arange(adata.n_obs) % 2, "x", "y"))
    adata.obs["age"] = np.arange(adata.n_obs, dtype=float)
    return adata


def backed(adata, folder):
    adata.write_h5ad(folder / "data.h5ad")
    return ad.read_h5ad(folder / "data.h5ad", backed="r")


def dense(block):
    return block.toarray() if sparse.issparse(block) else block


def with_value(value, fmt=np.asarray):
    values = counts()
    values[3, 2] = value
    return make(values, fmt)


# examples


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([], "none"),
        (["a"], "'a'"),
        ("abcde", "'a', 'b', 'c', 'd', 'e'"),
        (range(6), "'0', '1', '2', '3', '4', ... (6 in all)"),
        (iter("ab"), "'a', 'b'"),
    ],
)
def test_examples(items, expected):
    assert v.examples(items) == expected


def test_examples_shows_n():
    assert v.examples("abc", 2) == "'a', 'b', ... (3 in all)"


# names


def test_obs_key():
    v.check_obs_key(make(), "batch", "batch_key")
    with pytest.raises(KeyError, match="batch_key='donor' is not in adata.obs. Columns: 'batch', 'age'."):
        v.check_obs_key(make(), "donor", "batch_key")
    adata = make()
    adata.obs["_scvi_batch"] = 0
    with pytest.raises(KeyError, match="Columns: 'batch', 'age'\\."):
        v.check_obs_key(adata, "donor", "batch_key")
    with pytest.raises(KeyError, match="Columns: none."):
        v.check_obs_key(ad.AnnData(counts()), "donor", "batch_key")


def test_unique_var_names():
    adata = make()
    v.check_unique_var_names(adata)
    adata.var_names = list("aabbbc")
    with pytest.raises(ValueError, match=r"mouse.var_names .* repeat: 'a', 'b'\. Call mouse.var_names_make_unique\(\)"):
        v.check_unique_var_names(adata, "mouse")


# genes of a model


@pytest.mark.parametrize("names", [list("abcdef"), pd.Index(list("abcdef")), np.array(list("abcdef"))])
def test_align_genes_equal_is_the_same_object(names):
    adata = make()
    assert v.align_genes(adata, names) is adata


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("names", ["fedcba", "ca"], ids=["reordered", "extra"])
@pytest.mark.parametrize("kind", ["memory", "view", "backed", "backed view"])
def test_align_genes_reorders_and_drops(fmt, names, kind, tmp_path):
    original = make(fmt=fmt)
    adata = backed(original, tmp_path) if "backed" in kind else original
    adata = adata[2:9] if "view" in kind else adata
    aligned = v.align_genes(adata, list(names))
    assert aligned.var_names.tolist() == list(names)
    assert not aligned.is_view
    assert not aligned.isbacked
    assert adata.var_names.tolist() == list("abcdef")
    rows = slice(2, 9) if "view" in kind else slice(None)
    np.testing.assert_array_equal(dense(aligned.X), dense(original[rows, list(names)].X))


def test_align_genes_missing():
    with pytest.raises(
        ValueError,
        match=r"2 of the 3 genes .* trained on are missing in human: 'y', 'x'\. human has, for example: 'a', .*\(6 in all",
    ):
        v.align_genes(make(), ["y", "a", "x"], "human")


def test_align_genes_duplicates():
    adata = make()
    adata.var_names = list("aabcde")
    with pytest.raises(ValueError, match="adata.var_names must be unique, but these repeat: 'a'"):
        v.align_genes(adata, list("abcde"))


# rows


@pytest.mark.parametrize("size", [1, 4, 11, 100])
@pytest.mark.parametrize("layer", [None, "counts"])
@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("on_disk", [False, True], ids=["memory", "backed"])
def test_iter_rows(on_disk, fmt, layer, size, tmp_path):
    values = counts()
    adata = make(values if layer is None else values * 0 + 1, fmt)
    if layer is not None:
        adata.layers[layer] = fmt(values)
    adata = backed(adata, tmp_path) if on_disk else adata
    blocks = list(v.iter_rows(adata, layer, size))
    assert [block.shape[0] for block in blocks] == [min(size, 11 - start) for start in range(0, 11, size)]
    kind = np.ndarray if fmt is np.asarray else sparse.csr_matrix
    assert all(isinstance(block, kind) for block in blocks)
    np.testing.assert_array_equal(np.vstack([dense(block) for block in blocks]), values)


def test_iter_rows_of_a_view():
    adata = make(fmt=sparse.csr_matrix)
    blocks = list(v.iter_rows(adata[::-2], size=2))
    np.testing.assert_array_equal(np.vstack([block.toarray() for block in blocks]), counts()[::-2])


# counts


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8", "float32", "float64", "bool"])
@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_valid_counts(dtype, fmt, tmp_path):
    values = counts(dtype)
    layered = make(np.full(values.shape, 0.5, "float32"))
    layered.layers["counts"] = fmt(values)
    for adata, layer in ((make(values, fmt), None), (layered, "counts"), (backed(make(values, fmt), tmp_path), None)):
        v.check_counts(adata, layer)
        v.check_no_empty_cells(adata, layer)
        v.check_setup(adata, layer, batch_key="batch", categorical=["batch"], continuous=["age"])


def test_cells_without_entries_are_counts():
    v.check_counts(make(sparse.csr_matrix((3, 6), dtype="float32"), lambda x: x))


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, r"adata.X must hold raw counts, but has missing or infinite values \(NaN or inf\)"),
        (np.inf, "has missing or infinite values"),
        (-2, r"adata.X must hold raw counts, but has negative values \(smallest: -2\)"),
        (0.25, r"adata.X must hold raw counts, but has fractions such as 0.25\. If .* normalised .*layers\['counts'\]"),
    ],
)
def test_not_counts(fmt, value, message, tmp_path):
    for adata in (with_value(value, fmt), backed(with_value(value, fmt), tmp_path)):
        with pytest.raises(ValueError, match=message):
            v.check_counts(adata)
        with pytest.raises(ValueError, match=message):
            v.check_setup(adata, None)


def test_not_counts_names_the_layer():
    adata = make()
    adata.layers["norm"] = np.log1p(adata.X)
    with pytest.raises(
        ValueError, match=r"human.layers\['norm'\] must hold raw counts, but has fractions such as 1.099, 1.386"
    ):
        v.check_counts(adata, "norm", "human")


def test_at_most_five_fractions():
    values = np.ones((4, 6), dtype="float32")
    values[:2] = [np.arange(6) + 0.5] * 2
    with pytest.raises(ValueError, match=r"such as 0.5, 1.5, 2.5, 3.5, 4.5\. "):
        v.check_counts(make(values))


def test_not_numbers():
    with pytest.raises(ValueError, match="adata.X must hold numbers, but its type is <U1"):
        v.check_counts(make(np.full((4, 6), "1")))


def test_problem_in_a_later_block():
    values = np.ones((8200, 2), dtype="float32")
    values[-1, 1] = 0.5
    with pytest.raises(ValueError, match="fractions such as 0.5"):
        v.check_counts(make(values, sparse.csr_matrix))


def test_no_matrix_or_layer():
    empty = ad.AnnData(obs=pd.DataFrame(index=["cell"]), var=pd.DataFrame(index=["gene"]))
    with pytest.raises(ValueError, match="mouse.X is empty. Put the raw counts there or name a layer"):
        v.check_counts(empty, name="mouse")
    with pytest.raises(KeyError, match="layer='counts' is not in mouse.layers. Layers: none."):
        v.check_counts(make(), "counts", "mouse")
    adata = make()
    adata.layers["raw"] = adata.X.copy()
    with pytest.raises(KeyError, match="layer='counts' is not in adata.layers. Layers: 'raw'."):
        v.check_counts(adata, "counts")


# values


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "bool"])
@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_finite(dtype, fmt, tmp_path):
    values = -counts("float64") if "float" in dtype else counts()
    adata = make(np.full((11, 6), np.nan))
    adata.layers["z"] = fmt(values.astype(dtype))
    v.check_finite(adata, "z")
    v.check_finite(make(values.astype(dtype), fmt))
    v.check_finite(backed(make(values.astype(dtype), fmt), tmp_path))


@pytest.mark.parametrize("check", [v.check_finite, v.check_log_normalized])
@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite(check, fmt, value, tmp_path):
    message = r"human.X has missing or infinite values \(NaN or inf\). Remove or fill them first"
    for adata in (with_value(value, fmt), backed(with_value(value, fmt), tmp_path)):
        with pytest.raises(ValueError, match=message):
            check(adata, name="human")
    adata = make()
    adata.layers["z"] = with_value(value, fmt).X
    with pytest.raises(ValueError, match=r"adata.layers\['z'\] has missing or infinite values"):
        check(adata, "z")


@pytest.mark.parametrize("check", [v.check_finite, v.check_log_normalized])
def test_finite_needs_a_matrix(check):
    empty = ad.AnnData(obs=pd.DataFrame(index=["cell"]), var=pd.DataFrame(index=["gene"]))
    with pytest.raises(ValueError, match="mouse.X is empty. Put the values there or name a layer that has them"):
        check(empty, name="mouse")
    with pytest.raises(KeyError, match="layer='z' is not in mouse.layers. Layers: none."):
        check(make(), "z", "mouse")


@pytest.mark.parametrize("check", [v.check_finite, v.check_log_normalized])
def test_not_finite_in_a_later_block(check):
    values = np.full((8200, 2), 0.5, dtype="float32")
    values[-1, 1] = np.nan
    with pytest.raises(ValueError, match="missing or infinite"):
        check(make(values, sparse.csr_matrix))


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize(
    "values",
    [
        np.log1p(counts()),
        np.log1p(counts()) - 1,  # centred, as residuals are
        -counts(),  # whole, but never counts
        np.minimum(counts(), 1),  # may be anything
        counts() * 0,
    ],
    ids=["log", "centred", "negative", "binary", "zero"],
)
def test_log_normalized(fmt, values, tmp_path):
    adata = make()
    adata.layers["log"] = fmt(values)
    v.check_log_normalized(adata, "log")
    for one in (make(values, fmt), backed(make(values, fmt), tmp_path)):
        v.check_log_normalized(one)


@pytest.mark.parametrize("dtype", ["int32", "float32", "float64"])
@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_counts_are_not_log_normalized(dtype, fmt, tmp_path):
    values = counts(dtype)
    largest = int(values.max())
    for adata in (make(values, fmt), backed(make(values, fmt), tmp_path)):
        with pytest.raises(
            ValueError,
            match=rf"human.X must hold log-normalised values, but has whole numbers up to {largest}, which look like raw "
            r"counts. Call sc.pp.normalize_total\(adata, target_sum=1e4\) and sc.pp.log1p\(adata\) first, or name a layer",
        ):
            v.check_log_normalized(adata, name="human")
    adata = make(np.log1p(counts()))
    adata.layers["counts"] = fmt(values)
    with pytest.raises(ValueError, match=r"adata.layers\['counts'\] must hold log-normalised values"):
        v.check_log_normalized(adata, "counts")


def test_a_fraction_in_a_later_block_is_enough():
    values = np.full((8200, 2), 3, dtype="float32")
    with pytest.raises(ValueError, match="whole numbers up to 3"):
        v.check_log_normalized(make(values))
    values[-1, 1] = 0.5
    v.check_log_normalized(make(values))


def test_log_normalized_needs_cells_and_genes():
    for adata, shape in ((make()[:0], "0 cells and 6 genes"), (make()[:, :0], "11 cells and 0 genes")):
        with pytest.raises(ValueError, match=f"human is empty: it has {shape}"):
            v.check_log_normalized(adata, name="human")


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_empty_cells(fmt):
    values = counts()
    v.check_no_empty_cells(make(values, fmt))
    values[[2, 5]] = 0
    with pytest.raises(
        ValueError, match="2 cells of human have no counts on these genes: 'cell2', 'cell5'. Remove them"
    ):
        v.check_no_empty_cells(make(values, fmt), name="human")
    with pytest.raises(ValueError, match="2 cells of adata have no counts"):
        v.check_setup(make(values, fmt), None)


# all of it


def test_setup_leaves_the_object_alone():
    adata = make(fmt=sparse.csr_matrix)
    before = adata.copy()
    v.check_setup(adata, None, batch_key="batch", categorical=["batch"], continuous=["age"])
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    assert (adata.X != before.X).nnz == 0
    assert not adata.uns


def test_setup_needs_data():
    with pytest.raises(TypeError, match="adata must be an AnnData, but got ndarray"):
        v.check_setup(counts(), None)
    for adata, shape in ((make()[:0], "0 cells and 6 genes"), (make()[:, :0], "11 cells and 0 genes")):
        with pytest.raises(ValueError, match=f"adata is empty: it has {shape}"):
            v.check_setup(adata, None)


@pytest.mark.parametrize(
    ("kwargs", "argument"),
    [
        ({"batch_key": "donor"}, "batch_key"),
        ({"categorical": ["batch", "donor"]}, "categorical_covariate_keys"),
        ({"continuous": ["donor"]}, "continuous_covariate_keys"),
    ],
)
def test_setup_columns(kwargs, argument):
    with pytest.raises(KeyError, match=f"{argument}='donor' is not in adata.obs. Columns: 'batch', 'age'"):
        v.check_setup(make(), None, **kwargs)
    adata = make()
    adata.obs["donor"] = np.arange(11.0)
    adata.obs.loc[["cell1", "cell4"], "donor"] = np.nan
    with pytest.raises(ValueError, match=rf"'donor'\] \({argument}\) is missing for 2 cells: 'cell1', 'cell4'. Fill"):
        v.check_setup(adata, None, **kwargs)


@pytest.mark.parametrize("argument", ["categorical", "continuous"])
def test_setup_wants_lists_of_columns(argument):
    with pytest.raises(
        TypeError, match=f"{argument}_covariate_keys must be a list of columns, but got the string 'age'"
    ):
        v.check_setup(make(), None, **{argument: "age"})


def test_setup_continuous():
    with pytest.raises(
        ValueError, match=r"'batch'\] \(continuous_covariate_keys\) must be numeric, but its type is cat"
    ):
        v.check_setup(make(), None, continuous=["batch"])
    adata = make()
    adata.obs["age"] = adata.obs["age"].replace(3, np.inf)
    with pytest.raises(ValueError, match=r"'age'\] \(continuous_covariate_keys\) must be finite, .* 1 cells: 'cell3'"):
        v.check_setup(adata, None, continuous=["age"])


@pytest.mark.parametrize("axis", ["obs_names", "var_names"])
def test_setup_unique_names(axis):
    adata = make()
    names = getattr(adata, axis).tolist()
    setattr(adata, axis, [names[1], *names[1:]])
    with pytest.raises(
        ValueError, match=rf"adata.{axis} .* repeat: '{names[1]}'. Call adata.{axis}_make_unique\(\) first"
    ):
        v.check_setup(adata, None)


def test_setup_layer():
    with pytest.raises(KeyError, match="layer='counts' is not in adata.layers"):
        v.check_setup(make(), "counts")


# neighbours


@pytest.mark.parametrize("n", [1, 10, np.int64(3)])
def test_n_neighbors(n):
    v.check_n_neighbors(n, 10)


@pytest.mark.parametrize("n", [0, -1, 11])
def test_n_neighbors_out_of_range(n):
    with pytest.raises(ValueError, match=f"n_neighbors={n} must be between 1 and the number of context cells, 10"):
        v.check_n_neighbors(n, 10)


@pytest.mark.parametrize("n", [2.5, True, "3", None])
def test_n_neighbors_is_whole(n):
    with pytest.raises(ValueError, match=f"n_neighbors={n!r} must be a whole number"):
        v.check_n_neighbors(n, 10)
