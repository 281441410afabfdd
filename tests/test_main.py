"""``python -m transverse``: what it refuses, what it writes, what it prints."""

import logging
import runpy
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

import transverse as tv
from transverse.__main__ import fitting_orthologs, main

SHORT = ["--epochs", "2", "--context-epochs", "2"]
SIMULATION = {"preset": "tiny", "target_only_types": 1}
FILES = ["accuracy.csv", "context.h5ad", "labels.csv", "model", "target.h5ad", "umap.png"]
LABELS = [
    "label",
    "confidence",
    "novelty",
    "log_likelihood_ratio",
    "data_level_label",
    "data_level_agreement",
    "label_or_unknown",
]


def run(argv, *more):
    """Status of a run on one thread: scanpy's neighbour graph, drawn at its end, lets torch use more afterwards."""
    torch.set_num_threads(1)
    try:
        return main(argv, *more)
    finally:
        torch.set_num_threads(1)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Own data in files; without training nothing may change them."""
    folder = tmp_path_factory.mktemp("own")
    data = tv.datasets.simulate_species("tiny")
    data["human"].uns.pop("orthologs").to_csv(folder / "orthologs.csv", index=False)
    for name, adata in data.items():
        adata.write_h5ad(folder / f"{name}.h5ad")
    return folder


def own(files, out, *more, context="mouse.h5ad", target="human.h5ad"):
    pair = ["--context", str(files / context), "--target", str(files / target)]
    return [*pair, "--orthologs", str(files / "orthologs.csv"), "--out", str(out), *SHORT, *more]


def refused(argv, capsys):
    """Message of a refused run, which is one line."""
    try:
        status = main(argv)
    except SystemExit as error:  # argparse
        status = error.code
    assert status == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    return message


@pytest.fixture(scope="module")
def built_in(tmp_path_factory):
    """Folder of a run on built-in data."""
    out = tmp_path_factory.mktemp("run") / "new" / "out"
    assert run(["--out", str(out), *SHORT], SIMULATION) == 0
    return out


def test_help(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["transverse", "--help"])
    monkeypatch.delitem(sys.modules, "transverse.__main__")
    with pytest.raises(SystemExit) as exit_:
        runpy.run_module("transverse", run_name="__main__")
    printed = capsys.readouterr()
    assert exit_.value.code == 0
    assert printed.out.startswith("usage: python -m transverse")
    for option in ("--context", "--target", "--orthologs", "--labels-key", "--seed", "--out"):
        assert option in printed.out
    assert not printed.err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--context", __file__], "--context and --target go together"),
        (["--target", __file__], "--context and --target go together"),
        (["--orthologs", __file__], "--orthologs needs --context and --target"),
        (["--target-labels-key", "type"], "--target-labels-key needs --context and --target"),
        (["--context", __file__, "--target", "none.h5ad"], "no such file: none.h5ad"),
        (["--context", "none.h5ad", "--target", __file__], "no such file: none.h5ad"),
        (["--epochs", "0"], "argument --epochs: expected a whole number of at least 1, but got '0'"),
        (["--context-epochs", "many"], "argument --context-epochs: expected a whole number of at least 1"),
        (["--seed", "-1"], "argument --seed: expected"),
        (["--out", __file__], "is not a folder"),
        (["--colour", "red"], "unrecognized arguments: --colour red"),
    ],
)
def test_arguments(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refused(argv, capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--labels-key", "type"], "mouse.h5ad: --labels-key='type' is not in adata.obs. Columns: 'cell_type'"),
        (["--context-batch-key", "donor"], "mouse.h5ad: batch_key='donor' is not in adata.obs"),
        (["--target-batch-key", "donor"], "human.h5ad: batch_key='donor' is not in adata.obs"),
        (["--target-labels-key", "type"], "human.h5ad: --target-labels-key='type' is not in adata.obs"),
        (["--target-labels-key", "batch"], "has no label in common with the context's 'cell_type'"),
    ],
)
def test_columns(files, more, message, capsys, tmp_path):
    out = tmp_path / "out"
    assert message in refused(own(files, out, *more), capsys)
    assert not out.exists()


@pytest.mark.parametrize("side", ["context", "target"])
def test_normalised_counts(files, side, capsys, tmp_path):
    name = {"context": "mouse.h5ad", "target": "human.h5ad"}[side]
    adata = ad.read_h5ad(files / name)
    adata.X = adata.X / 2
    adata.write_h5ad(tmp_path / "normalised.h5ad")
    message = refused(own(files, tmp_path / "out", **{side: tmp_path / "normalised.h5ad"}), capsys)
    assert "normalised.h5ad: adata.X must hold raw counts, but has fractions such as 0.5" in message
    assert not (tmp_path / "out").exists()


def test_unreadable_files(files, capsys, tmp_path):
    bad = tmp_path / "bad.h5ad"
    bad.write_text("no data\nat all\n")
    out = tmp_path / "out"
    assert "bad.h5ad: " in refused(own(files, out, context=bad), capsys)
    assert "bad.h5ad: " in refused(own(files, out, "--orthologs", str(bad)), capsys)
    assert not out.exists()


def test_no_gene_in_common(files, capsys, tmp_path):
    argv = own(files, tmp_path / "out")
    del argv[4:6]  # the orthologues: names of the two species differ
    assert "error: genes: " in refused(argv, capsys)
    assert not (tmp_path / "out").exists()


def test_own_files_are_not_overwritten(files, capsys, tmp_path):
    (tmp_path / "target.h5ad").write_bytes((files / "human.h5ad").read_bytes())
    message = refused(own(files, tmp_path, target=tmp_path / "target.h5ad"), capsys)
    assert "the results would overwrite" in message
    assert [path.name for path in tmp_path.iterdir()] == ["target.h5ad"]


def test_built_in_files(built_in):
    assert sorted(path.name for path in built_in.iterdir()) == FILES
    labels = pd.read_csv(built_in / "labels.csv", index_col="cell")
    context, target = (ad.read_h5ad(built_in / f"{name}.h5ad") for name in ("context", "target"))
    assert context.obsm["X_scSpecies"].shape == (400, 10)
    assert target.obsm["X_scSpecies"].shape == (300, 10)
    assert labels.index.tolist() == target.obs_names.tolist()
    for column in LABELS:
        written = target.obs[f"scSpecies_{column}"]
        if written.dtype == "category":
            assert written.tolist() == labels[column].tolist()
        else:
            np.testing.assert_allclose(written, labels[column], rtol=1e-5)
    assert set(labels["label"]) <= {"T1a", "T1b", "T2a", "T2b"}
    changed = labels["label_or_unknown"] != labels["label"]
    assert set(labels["label_or_unknown"][changed]) <= {"unknown"}


def test_built_in_model_loads(built_in):
    target = ad.read_h5ad(built_in / "target.h5ad")
    model = tv.ScSpecies.load(str(built_in / "model"), adata=target)
    np.testing.assert_allclose(model.get_latent_representation(), target.obsm["X_scSpecies"], rtol=1e-4, atol=1e-5)


def test_built_in_table(built_in):
    table = pd.read_csv(built_in / "accuracy.csv", index_col="method")
    labels = pd.read_csv(built_in / "labels.csv", index_col="cell")
    truth = ad.read_h5ad(built_in / "target.h5ad").obs["cell_type"].astype(str)
    known = ~truth.str.startswith("human_only")
    assert table.index.tolist() == ["scSpecies", "smoothed data-level vote", "data-level vote"]
    for name, column in zip(table.index, ("label", "data_level_label", "plain_data_level_label"), strict=True):
        right = labels[column] == truth
        assert table.loc[name, "accuracy"] == pytest.approx(right[known].mean())
        recall = right[known].groupby(truth[known]).mean().mean()
        assert table.loc[name, "balanced accuracy"] == pytest.approx(recall)
    unknown = labels["label_or_unknown"] == "unknown"
    assert table.loc["scSpecies", "unknown (known types)"] == pytest.approx(unknown[known].mean())
    assert table.loc["scSpecies", "unknown (new types)"] == pytest.approx(unknown[~known].mean())


def test_the_same_seed_gives_the_same_labels_and_overwrites(built_in, tmp_path, capsys):
    before = pd.read_csv(built_in / "labels.csv")
    (built_in / "labels.csv").write_text("old")
    (built_in / "notes.txt").write_text("mine")
    disabled, seed = logging.root.manager.disable, ["--seed", "0"]
    assert run(["--out", str(built_in), *SHORT, *seed], SIMULATION) == 0
    pd.testing.assert_frame_equal(pd.read_csv(built_in / "labels.csv"), before)
    assert (built_in / "notes.txt").read_text() == "mine"
    (built_in / "notes.txt").unlink()
    assert logging.root.manager.disable == disabled
    printed = capsys.readouterr()
    table = pd.read_csv(built_in / "accuracy.csv", index_col="method")
    for name in table.index:
        line = next(line for line in printed.out.splitlines() if line.startswith(name))
        assert f"{table.loc[name, 'balanced accuracy']:.3f}".rstrip("0") in line
    assert "genes in common" in printed.out
    assert str(built_in) in printed.out
    assert "error" not in printed.err


def test_own_files(files, tmp_path, capsys):
    keys = ["--context-batch-key", "batch", "--target-batch-key", "batch", "--target-labels-key", "cell_type"]
    assert run(own(files, tmp_path, *keys, "--seed", "3")) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    table = pd.read_csv(tmp_path / "accuracy.csv", index_col="method")
    assert table.loc["data-level vote", "balanced accuracy"] > 0.8
    target = ad.read_h5ad(tmp_path / "target.h5ad")
    assert "X_scSpecies" in target.obsm
    assert target.obs["scSpecies_label"].isin(["T1a", "T1b", "T2a", "T2b"]).all()
    assert "balanced accuracy" in capsys.readouterr().out


def test_own_files_without_known_labels(files, tmp_path, capsys):
    # labels that are numbers, and some missing
    context = ad.read_h5ad(files / "mouse.h5ad")
    context.obs["cluster"] = context.obs.pop("cell_type").cat.codes.astype(float)
    context.obs.loc[context.obs_names[:10], "cluster"] = np.nan
    context.write_h5ad(tmp_path / "mouse.h5ad")
    out = tmp_path / "out"
    assert run(own(files, out, "--labels-key", "cluster", context=tmp_path / "mouse.h5ad")) == 0
    table = pd.read_csv(out / "accuracy.csv", index_col="method")
    labels = pd.read_csv(out / "labels.csv")
    assert table.columns.tolist() == ["unknown"]
    assert table.loc["scSpecies", "unknown"] == pytest.approx((labels["label_or_unknown"] == "unknown").mean())
    assert "accuracy " not in capsys.readouterr().out


@pytest.mark.slow
def test_counts_elsewhere(files, tmp_path, capsys):
    """In a layer, or in raw with more genes; the message for normalised values says how to name the place."""
    mouse, human = (ad.read_h5ad(files / f"{name}.h5ad") for name in ("mouse", "human"))
    mouse.layers["counts"] = mouse.X.copy()
    human.raw = human.copy()
    human = human[:, :50].copy()
    for name, adata in {"mouse": mouse, "human": human}.items():
        adata.X = adata.X.astype(np.float32)
        adata.X.data = np.log1p(adata.X.data)
        adata.write_h5ad(tmp_path / f"{name}.h5ad")
    places = {"context": str(tmp_path / "mouse.h5ad"), "target": str(tmp_path / "human.h5ad")}
    argv = own(files, tmp_path / "out", **places)
    assert refused(argv, capsys).endswith("Here: --context-counts raw, or the name of the layer.\n")
    argv += ["--context-counts", "counts"]
    assert refused(argv, capsys).endswith("Here: --target-counts raw, or the name of the layer.\n")
    message = refused([*argv, "--target-counts", "rough"], capsys)
    assert "--target-counts='rough' is not in adata.layers. Layers: none." in message
    assert "adata.raw is empty" in refused([*argv, "--context-counts", "raw"], capsys)
    assert run([*argv, "--target-counts", "raw"]) == 0
    assert ad.read_h5ad(tmp_path / "out" / "target.h5ad").n_vars == human.raw.n_vars
    for argument in ("--context-counts", "--target-counts"):
        assert "needs --context and --target" in refused([argument, "raw"], capsys)


@pytest.mark.slow
def test_identifiers_of_the_data_are_looked_up_in_the_table(files, tmp_path, capsys):
    """BioMart has symbols and Ensembl ids; the data of both species have ids, with versions or without."""
    mouse, human = (ad.read_h5ad(files / f"{name}.h5ad") for name in ("mouse", "human"))
    table = pd.read_csv(files / "orthologs.csv")
    ids = {}
    for prefix, column in (("ENSMUSG", "context"), ("ENSG", "target")):
        ids |= {gene: f"{prefix}{i:011d}" for i, gene in enumerate(table[column].unique())}
    mart = pd.DataFrame(
        {
            "Gene stable ID": table["context"].map(ids),
            "Gene name": table["context"],
            "Human gene stable ID": table["target"].map(ids),
            "Human gene name": table["target"],
        }
    )
    mart.to_csv(tmp_path / "mart.txt", sep="\t", index=False)
    mart.filter(like="stable ID").to_csv(tmp_path / "ids.txt", sep="\t", index=False)
    mouse.var_names = [ids.get(gene, gene) + ".2" for gene in mouse.var_names]
    human.var_names = [ids.get(gene, gene) for gene in human.var_names]
    for name, adata in {"mouse": mouse, "human": human}.items():
        adata.write_h5ad(tmp_path / f"{name}.h5ad")
    pair = ["--context", str(tmp_path / "mouse.h5ad"), "--target", str(tmp_path / "human.h5ad")]
    out = ["--out", str(tmp_path / "out"), *SHORT]
    of_ids = fitting_orthologs(tmp_path / "ids.txt", mouse, human)
    assert of_ids.equals(tv.pp.read_orthologs(tmp_path / "ids.txt", gene_id="ensembl"))
    by_symbol = human.copy()
    by_symbol.var_names = [{new: old for old, new in ids.items()}.get(gene, gene) for gene in human.var_names]
    mixed = fitting_orthologs(tmp_path / "mart.txt", mouse, by_symbol)
    assert mixed.equals(tv.pp.read_orthologs(tmp_path / "mart.txt", gene_id=("ensembl", "symbol")))
    assert run([*pair, "--orthologs", str(tmp_path / "mart.txt"), *out]) == 0
    printed = capsys.readouterr().out
    assert run([*own(files, tmp_path / "other")]) == 0
    in_common = "genes in common"
    assert [line for line in printed.splitlines() if in_common in line] == [
        line for line in capsys.readouterr().out.splitlines() if in_common in line
    ]
