"""``python -m transverse``: labels carried from one species to another, on built-in or on your own data."""

from __future__ import annotations

import argparse
import logging
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd

# The built-in data: small enough for two minutes on two cores, with a cell type that only the target has.
SIMULATION = {"preset": "medium", "n_cells": {"mouse": 2000, "human": 1500}, "target_only_types": 1}
OUTPUT = "context.h5ad, target.h5ad, labels.csv, accuracy.csv, umap.png and model/"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def _whole(low: int):
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < low:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {low}, but got {text!r}")
        return int(text)

    return number


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Command-line arguments; without any, two simulated species."""
    parser = _Parser(
        prog="python -m transverse",
        description="Carry cell-type labels from a context species to a target species with scSpecies. Without "
        "--context and --target, two simulated species with partly shared genes are used.",
        epilog=f"Writes {OUTPUT} to the folder --out.",
    )
    parser.add_argument("--context", type=Path, help=".h5ad of the annotated context species")
    parser.add_argument("--target", type=Path, help=".h5ad of the target species")
    parser.add_argument(
        "--orthologs", type=Path, help="orthologue table (BioMart, HCOP, homologene or two columns); else by gene name"
    )
    for side in ("context", "target"):
        parser.add_argument(
            f"--{side}-counts", default="X", help=f"where the {side}'s raw counts are: X, raw or a layer (default: X)"
        )
    parser.add_argument("--labels-key", default="cell_type", help="context labels in .obs (default: %(default)s)")
    parser.add_argument("--context-batch-key", help="batches of the context in .obs")
    parser.add_argument("--target-batch-key", help="batches of the target in .obs")
    parser.add_argument("--target-labels-key", help="known labels of the target, for the table of accuracies only")
    parser.add_argument("--context-epochs", type=_whole(1), help="training epochs of the context model")
    parser.add_argument("--epochs", type=_whole(1), help="training epochs of scSpecies")
    parser.add_argument("--seed", type=_whole(0), default=0, help="random seed (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("transverse_quickstart"), help="folder for the results (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    if (args.context is None) != (args.target is None):
        parser.error("--context and --target go together")
    own_data_only = ("orthologs", "context_batch_key", "target_batch_key", "target_labels_key")
    for name in own_data_only if args.context is None else ():
        if getattr(args, name) is not None:
            parser.error(f"--{name.replace('_', '-')} needs --context and --target")
    for side in ("context", "target"):
        if args.context is None and getattr(args, f"{side}_counts") != "X":
            parser.error(f"--{side}-counts needs --context and --target")
    for path in filter(None, (args.context, args.target, args.orthologs)):
        if not path.is_file():
            parser.error(f"no such file: {path}")
        if path.resolve() in {(args.out / name).resolve() for name in ("context.h5ad", "target.h5ad", "labels.csv")}:
            parser.error(f"the results would overwrite {path}: choose another --out")
    if args.out.exists() and not args.out.is_dir():
        parser.error(f"--out {args.out} is not a folder")
    return args


@contextmanager
def _prefix(what: object) -> Iterator[None]:
    """Say which file or argument an error is about."""
    try:
        yield
    except (ValueError, KeyError, TypeError, OSError) as error:
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        raise ValueError(f"{what}: {' '.join(str(message).split())}") from error


@contextmanager
def _counts_hint(argument: str) -> Iterator[None]:
    """Name the argument for counts that are elsewhere."""
    try:
        yield
    except ValueError as error:
        if "must hold raw counts" not in str(error):
            raise
        raise ValueError(f"{error} Here: {argument} raw, or the name of the layer.") from error


def read_data(args: argparse.Namespace, simulation: Mapping[str, Any]):
    """Context and target AnnData and the orthologue table; sets the arguments that belong to simulated data."""
    import scanpy as sc

    import transverse as tv

    if args.context is None:
        context, target = tv.datasets.simulate_species(**{"seed": args.seed, **simulation}).values()
        args.context_batch_key = args.target_batch_key = "batch"
        args.labels_key = args.target_labels_key = "cell_type"
        args.context_epochs = args.context_epochs or 30
        args.epochs = args.epochs or 30
        return context, target, target.uns["orthologs"]
    with _prefix(args.context):
        context = with_counts(sc.read_h5ad(args.context), args.context_counts, "--context-counts")
    with _prefix(args.target):
        target = with_counts(sc.read_h5ad(args.target), args.target_counts, "--target-counts")
    table = None
    if args.orthologs is not None:
        with _prefix(args.orthologs):
            table = fitting_orthologs(args.orthologs, context, target)
    return context, target, table


def with_counts(adata, where: str, argument: str):
    """Data with the counts in ``X``, from ``.raw`` with its genes or from a layer."""
    if where == "X":
        return adata
    if where == "raw":
        if adata.raw is None:
            raise ValueError(f"{argument}='raw', but adata.raw is empty.")
        return adata.raw.to_adata()
    if where not in adata.layers:
        layers = ", ".join(repr(name) for name in adata.layers if name is not None) or "none"
        raise ValueError(f"{argument}={where!r} is not in adata.layers. Layers: {layers}.")
    adata.X = adata.layers[where]
    return adata


def fitting_orthologs(path: Path, context, target) -> pd.DataFrame:
    """The orthologue table by the kinds of identifier, of those that the file has, that most genes of the data have."""
    import transverse as tv

    table, most, first_error = None, 0, None
    # pairs of one kind first: only where none fits are the species named differently
    for gene_id in sorted(product(("symbol", "ensembl", "entrez"), repeat=2), key=lambda pair: pair[0] != pair[1]):
        if most and gene_id[0] != gene_id[1]:
            break
        try:
            other = tv.pp.read_orthologs(path, gene_id=gene_id)
        except ValueError as error:  # the file has no such identifiers, or cannot be read at all
            first_error = first_error or error
            continue
        table = other if table is None else table
        try:
            n_groups = tv.pp.match_orthologs(context, target, other).n_groups
        except ValueError:  # no gene in common
            continue
        if n_groups > most:
            table, most = other, n_groups
    if table is None:
        raise first_error
    return table


def check_data(args: argparse.Namespace, context, target, orthologs) -> None:
    """Check everything before the first epoch, and print what was found."""
    import transverse as tv
    from transverse._validation import check_n_neighbors, check_obs_key, check_setup

    with _prefix(args.context or "context"):
        with _counts_hint("--context-counts"):
            check_setup(context, None, batch_key=args.context_batch_key)
        check_obs_key(context, args.labels_key, "--labels-key")
        if context.obs[args.labels_key].isna().all():
            raise ValueError(f"--labels-key={args.labels_key!r} holds no label.")
        check_n_neighbors(25, context.n_obs)
    with _prefix(args.target or "target"):
        with _counts_hint("--target-counts"):
            check_setup(target, None, batch_key=args.target_batch_key)
        if args.target_labels_key is not None:
            check_obs_key(target, args.target_labels_key, "--target-labels-key")
            known = set(context.obs[args.labels_key].dropna().astype(str))
            if known.isdisjoint(target.obs[args.target_labels_key].dropna().astype(str)):
                raise ValueError(
                    f"--target-labels-key={args.target_labels_key!r} has no label in common with the context's "
                    f"{args.labels_key!r}."
                )
    with _prefix("genes"):
        match = tv.pp.match_orthologs(context, target, orthologs)
    print(f"context: {context.n_obs} cells, {context.n_vars} genes")
    print(f"target:  {target.n_obs} cells, {target.n_vars} genes; {match.n_groups} genes in common")
    if match.hint:
        print(f"note: {match.hint}")


def accuracy_table(labels: pd.DataFrame, truth: pd.Series | None, known: set[str]) -> pd.DataFrame:
    """Accuracy on cells whose type the context has, and the share flagged unknown among known and new types."""
    from sklearn.metrics import accuracy_score, balanced_accuracy_score

    unknown = labels["label_or_unknown"] == "unknown"
    if truth is None:
        return pd.DataFrame({"unknown": [unknown.mean()]}, index=["scSpecies"])
    shared = truth.isin(known)
    new = truth.notna() & ~shared
    columns = {
        "scSpecies": "label",
        "smoothed data-level vote": "data_level_label",
        "data-level vote": "plain_data_level_label",
    }
    rows = {}
    for name, column in columns.items():
        predicted = labels.loc[shared, column].astype(str)
        rows[name] = {
            "balanced accuracy": balanced_accuracy_score(truth[shared], predicted),
            "accuracy": accuracy_score(truth[shared], predicted),
        }
    rows["scSpecies"]["unknown (known types)"] = unknown[shared].mean()
    if new.any():
        rows["scSpecies"]["unknown (new types)"] = unknown[new].mean()
    return pd.DataFrame.from_dict(rows, orient="index")


def write_results(args: argparse.Namespace, model, context, target, labels: pd.DataFrame, table: pd.DataFrame) -> None:
    """Write data with representations and labels, tables, figure and model."""
    import matplotlib.pyplot as plt

    import transverse as tv

    context.obsm["X_scSpecies"] = model.get_context_representation()
    target.obsm["X_scSpecies"] = model.get_latent_representation()
    for column in labels:
        target.obs[f"scSpecies_{column}"] = labels[column]
    args.out.mkdir(parents=True, exist_ok=True)
    context.write_h5ad(args.out / "context.h5ad")
    target.write_h5ad(args.out / "target.h5ad")
    labels.to_csv(args.out / "labels.csv", index_label="cell")
    table.to_csv(args.out / "accuracy.csv", index_label="method")
    model.save(str(args.out / "model"), overwrite=True)
    axes = tv.pl.species_umap(
        {"context": context, "target": target},
        {"context": args.labels_key, "target": "scSpecies_label_or_unknown"},
        random_state=args.seed,
        save=args.out / "umap.png",
        show=False,
    )
    plt.close(axes[0].figure)


@contextmanager
def _quiet() -> Iterator[None]:
    level = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def run(args: argparse.Namespace, simulation: Mapping[str, Any]) -> int:
    """Train, transfer, print and write; returns the exit status."""
    start = time.perf_counter()
    print("Loading ...", flush=True)
    import scvi

    import transverse as tv
    from transverse.scspecies import CONTEXT_PLAN, NOVELTY_MIDPOINT, default_epochs

    scvi.settings.seed = args.seed
    try:
        context, target, orthologs = read_data(args, simulation)
        check_data(args, context, target, orthologs)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

    context.obs[args.labels_key] = context.obs[args.labels_key].astype("category")
    quiet = {"enable_progress_bar": sys.stderr.isatty()}
    print("Training the context model ...", flush=True)
    scvi.model.SCVI.setup_anndata(context, batch_key=args.context_batch_key)
    reference = tv.ScSpecies.make_context(context)
    epochs = args.context_epochs or default_epochs(context.n_obs)
    reference.train(epochs, train_size=1.0, plan_kwargs=CONTEXT_PLAN, **quiet)

    print("Aligning the target ...", flush=True)
    tv.ScSpecies.setup_anndata(target, batch_key=args.target_batch_key)
    build = {"orthologs": orthologs, "labels_key": args.labels_key}
    plain = tv.ScSpecies.from_scvi_model(reference, target, n_smooth=1, **build).get_data_level_labels()
    model = tv.ScSpecies.from_scvi_model(reference, target, **build)
    model.train(args.epochs, **quiet)

    print("Transferring the labels ...", flush=True)
    labels = model.transfer_labels()
    flagged = labels["label"].cat.add_categories(["unknown"])
    labels["label_or_unknown"] = flagged.mask(labels["novelty"] > NOVELTY_MIDPOINT, "unknown")
    labels["plain_data_level_label"] = plain["label"]
    truth = None
    if args.target_labels_key is not None:
        truth = target.obs[args.target_labels_key]
        truth = truth.astype(str).where(truth.notna(), np.nan)
    table = accuracy_table(labels, truth, set(context.obs[args.labels_key].dropna().astype(str)))
    print("\n" + table.round(3).to_string(na_rep="") + "\n")
    write_results(args, model, context, target, labels, table)
    print(f"Wrote {OUTPUT} to {args.out.resolve()}")
    print(f"Done in {time.perf_counter() - start:.0f} s.")
    return 0


def main(argv: list[str] | None = None, simulation: Mapping[str, Any] = SIMULATION) -> int:
    """Run the quick start; returns the exit status. ``simulation`` are the arguments of the simulated data."""
    args = parse_args(argv)
    with _quiet():
        return run(args, simulation)


if __name__ == "__main__":
    raise SystemExit(main())
