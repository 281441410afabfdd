"""GCTX files: what was written comes back, in both layouts, and only what is asked for is read."""

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest

from transverse.datasets import _read_gctx, read_gctx

N_SIG, N_GENES = 40, 12
SYMBOLS = ["TP53", "MYC", "ESR1", "EGFR", "JUN", "FOS", "RB1", "ATM", "CDK4", "KRAS", "AKT1", "NRAS"]


def columns():
    """Metadata of signatures as a file holds it: bytes in Latin-1, and -666 for what is missing."""
    number = np.arange(N_SIG)
    dose = np.array(["10 µM", "500 nM", "-666"])[number % 3]
    return {
        "id": np.array([f"SIG{i:02d}:24H" for i in number]),
        "pert_iname": np.array(["vemurafenib", "ß-estradiol", "DMSO", "sirolimus"])[number % 4],
        "cell_id": np.array(["PC3", "MCF7", "A375", "HT29", "HA1E"])[number // 4 % 5],
        "pert_idose": dose,
        "pert_itime": np.array(["6 h", "24 h"])[number % 2],
        "is_gold": (number % 2).astype(np.int32),
        "cc_q75": np.where(number == 3, -666, 0.1 * (number % 5)).astype(np.float32),
        "n_rep": np.where(number == 4, -666, number % 4 + 1).astype(np.int64),
    }


def rows():
    return {
        "id": np.array([str(5000 + 7 * i) for i in range(N_GENES)]),
        "pr_gene_symbol": np.array(SYMBOLS),
        "pr_gene_title": np.array(["-666" if i == 2 else f"gene number {i}" for i in range(N_GENES)]),
        "is_lm": (np.arange(N_GENES) < 6).astype(np.int32),
    }


def matrix():
    return np.random.default_rng(0).normal(0, 2, (N_SIG, N_GENES)).astype(np.float32)


def write(path, values=None, col=None, row=None, transposed=False, vlen=None, **settings):
    values = matrix() if values is None else values
    with h5py.File(path, "w") as file:
        file.attrs["version"] = np.bytes_("GCTX1.0")
        file.create_dataset("0/DATA/0/matrix", data=values.T if transposed else values, **settings)
        for group, table in (("COL", columns() if col is None else col), ("ROW", rows() if row is None else row)):
            group = file.create_group(f"0/META/{group}")
            for name, content in table.items():
                if content.dtype.kind == "U" and vlen:
                    dtype = h5py.string_dtype(vlen)
                    group.create_dataset(name, data=[text.encode(vlen) for text in content], dtype=dtype)
                else:
                    content = np.char.encode(content, "latin-1") if content.dtype.kind == "U" else content
                    group.create_dataset(name, data=content)
    return path


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "small.gctx")


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("settings", [{}, {"chunks": (5, 3), "compression": "gzip"}])
def test_what_was_written_comes_back(tmp_path, transposed, settings):
    settings = dict(settings)
    adata = read_gctx(write(tmp_path / "x.gctx", transposed=transposed, **settings))
    np.testing.assert_array_equal(adata.X, matrix())
    assert adata.X.dtype == np.float32
    assert adata.X.flags.c_contiguous
    assert adata.obs_names.tolist() == columns()["id"].tolist()
    assert adata.var_names.tolist() == SYMBOLS
    assert adata.var["id"].tolist() == rows()["id"].tolist()
    assert adata.obs["pert_iname"].tolist() == columns()["pert_iname"].tolist()
    assert adata.uns["gctx"] == {
        "version": "GCTX1.0",
        "scale": "as stored in the file; z-scores for level 5 (MODZ)",
        "n_signatures": N_SIG,
        "n_genes": N_GENES,
    }


def test_text_and_missing_values(path):
    adata = read_gctx(path)
    assert adata.obs["pert_idose"].cat.categories.tolist() == ["10 µM", "500 nM"]
    assert adata.obs["pert_idose"].isna().to_numpy().nonzero()[0].tolist() == list(range(2, N_SIG, 3))
    assert "ß-estradiol" in adata.obs["pert_iname"].cat.categories
    assert np.isnan(adata.obs["cc_q75"].iloc[3])
    assert adata.obs["cc_q75"].isna().sum() == adata.obs["n_rep"].isna().sum() == 1
    assert adata.obs["is_gold"].dtype == np.int32
    assert adata.var["pr_gene_title"].isna().to_numpy().nonzero()[0].tolist() == [2]


@pytest.mark.parametrize("vlen", ["utf-8", "latin-1"])
def test_strings_of_any_length(tmp_path, vlen):
    path = tmp_path / "x.gctx"
    if vlen == "latin-1":  # HDF5 knows ASCII and UTF-8 only; what is written as ASCII may be Latin-1
        write(path)
        with h5py.File(path, "a") as file:
            for group in ("0/META/COL", "0/META/ROW"):
                for name, item in list(file[group].items()):
                    if item.dtype.kind == "S":
                        content = item[()]
                        del file[f"{group}/{name}"]
                        file.create_dataset(
                            f"{group}/{name}", data=content.astype(object), dtype=h5py.string_dtype("ascii")
                        )
    else:
        write(path, vlen=vlen)
    fixed = read_gctx(write(tmp_path / "fixed.gctx"))
    adata = read_gctx(path)
    pd.testing.assert_frame_equal(adata.obs, fixed.obs)
    pd.testing.assert_frame_equal(adata.var, fixed.var)


def test_missing_values_of_the_matrix(tmp_path):
    values = matrix()
    values[3, 4] = -666
    adata = read_gctx(write(tmp_path / "x.gctx", values))
    assert np.argwhere(np.isnan(adata.X)).tolist() == [[3, 4]]


def test_square_matrix_has_signatures_in_rows(tmp_path):
    col = {name: content[:N_GENES] for name, content in columns().items()}
    adata = read_gctx(write(tmp_path / "x.gctx", matrix()[:N_GENES], col=col))
    np.testing.assert_array_equal(adata.X, matrix()[:N_GENES])


def test_standard_names(path):
    adata = read_gctx(path)
    for standard, original in {
        "perturbation": "pert_iname",
        "cell_type": "cell_id",
        "dose": "pert_idose",
        "time": "pert_itime",
    }.items():
        pd.testing.assert_series_equal(adata.obs[standard], adata.obs[original], check_names=False)
    plain = read_gctx(path, renames=False)
    assert list(plain.obs) == [name for name in sorted(columns()) if name != "id"]
    renamed = columns()
    renamed["cell_type"] = renamed["cell_id"][::-1]
    adata = read_gctx(write(path, col=renamed))
    assert adata.obs["cell_type"].tolist() == renamed["cell_type"].tolist()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("block", [None, 100, 1])
def test_filters_equal_the_subset_of_the_whole(tmp_path, monkeypatch, transposed, block):
    if block:
        monkeypatch.setattr(_read_gctx, "_BLOCK_BYTES", block)
    path = write(tmp_path / "x.gctx", transposed=transposed, chunks=(7, 5))
    whole = read_gctx(path)
    mask = (whole.obs["cell_id"].isin(["PC3", "A375"]) & (whole.obs["pert_iname"] == "vemurafenib")).to_numpy()
    few = np.array([i for i in range(N_SIG) if i % 2 == 1 and i % 5 in (1, 3) and i != 3])
    ids = whole.obs_names[[31, 2, 39, 0, 17]]
    genes = ["KRAS", "TP53", "FOS"]
    for obs, expected in (
        ({"pert_iname": ["vemurafenib"], "cell_id": ["PC3", "A375"]}, whole.obs_names[mask]),
        ({"perturbation": "vemurafenib", "cell_type": ("PC3", "A375")}, whole.obs_names[mask]),
        (mask, whole.obs_names[mask]),
        (mask.tolist(), whole.obs_names[mask]),
        (pd.Series(mask, index=whole.obs_names), whole.obs_names[mask]),
        (list(ids), ids),
        (ids, ids),
        (ids[0], ids[:1]),
        ({"is_gold": 1, "cc_q75": [0.1, 0.3]}, whole.obs_names[few]),
        ({}, whole.obs_names),
    ):
        part = read_gctx(path, obs=obs, genes=genes)
        assert part.obs_names.tolist() == expected.tolist()
        assert part.var_names.tolist() == genes
        np.testing.assert_array_equal(part.X, whole[part.obs_names, genes].X)
        assert part.obs["pert_iname"].tolist() == whole.obs.loc[part.obs_names, "pert_iname"].tolist()
        assert part.var["id"].tolist() == whole.var.loc[genes, "id"].tolist()
        assert set(part.obs["cell_id"].cat.categories) == set(part.obs["cell_id"])


def test_only_what_is_asked_for_is_read(tmp_path, monkeypatch):
    values = np.random.default_rng(1).normal(size=(2000, N_GENES)).astype(np.float32)
    col = {"id": np.array([f"S{i}" for i in range(2000)])}
    path = write(tmp_path / "x.gctx", values, col=col)
    read, plain = [], h5py.Dataset.__getitem__

    def spy(self, key, **settings):
        result = plain(self, key, **settings)
        if self.name.endswith("matrix"):
            read.append(result.size)
        return result

    monkeypatch.setattr(h5py.Dataset, "__getitem__", spy)
    adata = read_gctx(path, obs=["S1990", "S5", "S7", "S1000"], genes=["MYC", "EGFR"])
    np.testing.assert_array_equal(adata.X, values[[1990, 5, 7, 1000]][:, [1, 3]])
    assert sum(read) == (1 + 3 + 1) * 3

    read.clear()
    monkeypatch.setattr(_read_gctx, "_BLOCK_BYTES", 100 * N_GENES * 4)
    np.testing.assert_array_equal(read_gctx(path).X, values)
    assert len(read) == 20
    assert max(read) == 100 * N_GENES


def test_var_key(path):
    adata = read_gctx(path, var_key="id", genes=["5007", "5000"])
    assert adata.var_names.tolist() == ["5007", "5000"]
    assert adata.var["pr_gene_symbol"].tolist() == ["MYC", "TP53"]
    without = {name: content for name, content in rows().items() if name != "pr_gene_symbol"}
    adata = read_gctx(write(path, row=without))
    assert adata.var_names.tolist() == rows()["id"].tolist()


def test_repeated_and_missing_symbols(path):
    row = rows()
    row["pr_gene_symbol"] = np.array(["TP53", "MYC", "TP53", "-666", *SYMBOLS[4:]])
    write(path, row=row)
    adata = read_gctx(path)
    assert adata.var_names[:4].tolist() == ["TP53", "MYC", "TP53-1", "5021"]
    with pytest.raises(ValueError, match="must be unique, but these repeat: 'TP53'.*make_unique=True"):
        read_gctx(path, make_unique=False)
    with pytest.raises(ValueError, match="must be unique, but these repeat: 'TP53'"):
        read_gctx(path, make_unique=False, genes=["TP53"])
    assert read_gctx(path, make_unique=False, genes=["JUN", "MYC"]).var_names.tolist() == ["JUN", "MYC"]


def bare(path):
    """A file that holds ids only, and the tables that come beside it."""
    col, row = columns(), rows()
    write(path, col={"id": col["id"]}, row={"id": row["id"]})
    siginfo = pd.DataFrame(col).rename(columns={"id": "sig_id"})
    geneinfo = pd.DataFrame(row).rename(columns={"id": "pr_gene_id"})
    return siginfo.sample(frac=1, random_state=0), geneinfo.astype({"pr_gene_id": int})[::-1]


@pytest.mark.parametrize("how", ["frame", "index", "file", "gzip"])
def test_metadata_beside_the_file(tmp_path, how):
    whole = read_gctx(write(tmp_path / "whole.gctx"))
    path = tmp_path / "bare.gctx"
    siginfo, geneinfo = bare(path)
    extra = siginfo.iloc[[0]].assign(sig_id="elsewhere")
    siginfo = pd.concat([siginfo, extra])
    if how == "index":
        siginfo, geneinfo = siginfo.set_index("sig_id"), geneinfo.set_index("pr_gene_id")
    if how in ("file", "gzip"):
        suffix = "txt.gz" if how == "gzip" else "txt"
        tables = {"sig": siginfo, "gene": geneinfo}
        for name, table in tables.items():
            table.to_csv(tmp_path / f"{name}.{suffix}", sep="\t", index=False, encoding="latin-1")
        siginfo, geneinfo = (tmp_path / f"{name}.{suffix}" for name in tables)
    adata = read_gctx(path, obs_metadata=siginfo, var_metadata=geneinfo)
    assert adata.var_names.tolist() == whole.var_names.tolist()
    np.testing.assert_array_equal(adata.X, whole.X)
    shared = [name for name in whole.obs if name in adata.obs]
    assert len(shared) == whole.obs.shape[1]
    pd.testing.assert_frame_equal(adata.obs[shared], whole.obs, check_dtype=False)
    part = read_gctx(path, obs={"cell_type": "MCF7"}, genes=["JUN"], obs_metadata=siginfo, var_metadata=geneinfo)
    assert part.obs_names.equals(whole.obs_names[whole.obs["cell_id"] == "MCF7"])
    np.testing.assert_array_equal(part.X, whole[part.obs_names, ["JUN"]].X)


def test_names_of_the_2020_release(path):
    siginfo, geneinfo = bare(path)
    siginfo = siginfo.rename(columns={"pert_iname": "cmap_name", "cell_id": "cell_iname"})
    geneinfo = geneinfo.rename(columns={"pr_gene_id": "gene_id", "pr_gene_symbol": "gene_symbol"})
    adata = read_gctx(path, obs_metadata=siginfo, var_metadata=geneinfo)
    assert adata.obs["perturbation"].tolist() == columns()["pert_iname"].tolist()
    assert adata.obs["cell_type"].tolist() == columns()["cell_id"].tolist()
    assert adata.var_names.tolist() == SYMBOLS


def test_metadata_of_a_part_is_enough_for_the_part(path):
    siginfo, _ = bare(path)
    ids = siginfo["sig_id"].tolist()[:3]
    adata = read_gctx(path, obs=ids, obs_metadata=siginfo.iloc[:3])
    assert adata.obs_names.tolist() == ids
    before = siginfo.copy()
    read_gctx(path, obs_metadata=siginfo)
    pd.testing.assert_frame_equal(siginfo, before)


def test_round_trip(path, tmp_path):
    adata = read_gctx(path)
    adata.write_h5ad(tmp_path / "x.h5ad")
    back = ad.read_h5ad(tmp_path / "x.h5ad")
    np.testing.assert_array_equal(back.X, adata.X)
    assert back.var_names.equals(adata.var_names)
    pd.testing.assert_frame_equal(back.obs, adata.obs, check_index_type=False)
    assert back.uns["gctx"]["n_genes"] == N_GENES


def test_files_that_are_no_gctx(tmp_path):
    with pytest.raises(FileNotFoundError, match="path: there is no file"):
        read_gctx(tmp_path / "none.gctx")
    text = tmp_path / "x.gct"
    text.write_text("#1.3\n")
    with pytest.raises(ValueError, match="is not an HDF5 file"):
        read_gctx(text)
    path = tmp_path / "x.gctx"
    with h5py.File(path, "w") as file:
        file["X"] = np.zeros(3)
    with pytest.raises(ValueError, match="lacks '/0/DATA/0/matrix'. It has: 'X'"):
        read_gctx(path)
    for part in ("0/META/COL", "0/META/ROW/id"):
        with h5py.File(write(path), "a") as file:
            del file[part]
        with pytest.raises(ValueError, match=f"lacks '/{part}'"):
            read_gctx(path)


def test_shapes_that_do_not_fit(path):
    write(path, matrix()[:, :5])
    with pytest.raises(ValueError, match=r"40 signatures and 12 genes, but its shape is \(40, 5\)"):
        read_gctx(path)
    write(path, col=columns() | {"cell_id": columns()["cell_id"][:7]})
    with pytest.raises(ValueError, match="'/0/META/COL/cell_id' of .* has 7 values, but 'id' 40"):
        read_gctx(path)
    ids = columns()["id"]
    ids[3] = ids[0]
    write(path, col=columns() | {"id": ids})
    with pytest.raises(ValueError, match="must be unique, but these repeat: 'SIG00:24H'"):
        read_gctx(path)


@pytest.mark.parametrize(
    ("settings", "error", "found"),
    [
        ({"obs": {"cell": ["PC3"]}}, KeyError, "no column 'cell'.*'cell_id'"),
        ({"obs": {"cell_id": ["PC3", "VCAP"]}}, ValueError, "'cell_id' has no value 'VCAP'. Known values: 'A375'"),
        ({"obs": {"cell_id": []}}, ValueError, "expected values of 'cell_id', but got none"),
        ({"obs": {"n_rep": [9]}}, ValueError, "'n_rep' has no value '9'. Known values: '1.0'"),
        ({"obs": {"pert_iname": "vemurafenib", "is_gold": 1}}, ValueError, "no signature fits all"),
        ({"obs": ["SIG01:24H", "SIG99"]}, ValueError, "1 of 2 ids of signatures are not in the file: 'SIG99'.*SIG00"),
        ({"obs": ["SIG01:24H"] * 2}, ValueError, "obs: expected each once"),
        ({"obs": []}, ValueError, "obs: expected at least one"),
        ({"obs": [True, False]}, ValueError, "a mask over 40 signatures"),
        ({"obs": np.zeros(N_SIG, dtype=bool)}, ValueError, "the mask has no signature"),
        ({"genes": ["TP53", "tp53"]}, ValueError, "1 of 2 genes .* not in the file: 'tp53'.*'TP53', 'MYC'"),
        ({"genes": []}, ValueError, "genes: expected at least one"),
        ({"genes": ["MYC", "MYC"]}, ValueError, "genes: expected each once"),
        ({"var_key": "symbol"}, KeyError, "'symbol' is not a column of genes.*'pr_gene_symbol'"),
        ({"obs_metadata": "none.txt"}, FileNotFoundError, "obs_metadata: there is no file"),
    ],
)
def test_refused(path, settings, error, found):
    with pytest.raises(error, match=found):
        read_gctx(path, **settings)


def test_metadata_refused(path):
    siginfo, geneinfo = bare(path)
    siginfo, last = siginfo.iloc[:-1], siginfo["sig_id"].iloc[-1]
    with pytest.raises(ValueError, match=f"obs_metadata: 1 of 40 ids .* not in its column 'sig_id': '{last}'"):
        read_gctx(path, obs_metadata=siginfo)
    with pytest.raises(ValueError, match="var_metadata: 2 of 12 ids .* not in its index"):
        read_gctx(path, var_metadata=geneinfo.set_index("pr_gene_id").iloc[2:])
    with pytest.raises(ValueError, match="obs_metadata: ids in its column 'sig_id' must be unique"):
        read_gctx(path, obs_metadata=pd.concat([siginfo, siginfo.iloc[[0]]]))


def test_real_file(real_data_dir):
    path = real_data_dir / "l1000_modz.gctx"
    adata = read_gctx(path)
    assert adata.shape == (272, 978)
    assert adata.obs["cell_type"].nunique() == 65
    lines = adata.obs.groupby("perturbation", observed=True)["cell_type"].nunique()
    assert lines.to_dict() == {"atorvastatin": 57, "vemurafenib": 61, "venlafaxine": 13}
    assert "10 µM" in adata.obs["dose"].cat.categories
    assert {"RHEB", "ATF1"} <= set(adata.var_names)
    assert np.isfinite(adata.X).all()
    assert 0.8 < adata.X.std() < 3
    part = read_gctx(path, obs={"pert_iname": ["vemurafenib"], "cell_id": ["A375", "MCF7"]}, genes=["RHEB", "ATF1"])
    assert set(part.obs["cell_id"]) == {"A375", "MCF7"}
    np.testing.assert_array_equal(part.X, adata[part.obs_names, ["RHEB", "ATF1"]].X)
