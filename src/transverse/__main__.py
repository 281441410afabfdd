"""``python -m transverse``: labels carried from one species to another, on built-in or on your own data."""

from __future__ import annotations

import argparse
import logging
import sys
import time
import warnings
from pathlib import Path

import pandas as pd


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Command-line arguments; without any, two simulated species."""
    parser = argparse.ArgumentParser(
        prog="python -m transverse",
        description="Carry cell-type labels from a context species to a target species with scSpecies. Without "
        "--context and --target, two simulated species with partly shared genes are used.",
    )
    parser.add_argument("--context", type=Path, help=".h5ad of the annotated context species, raw counts in X")
    parser.add_argument("--target", type=Path, help=".h5ad of the target species, raw counts in X")
    parser.add_argument("--orthologs", type=Path, help="orthologue table (BioMart, HCOP, homologene or two columns)")
    parser.add_argument("--labels-key", default="cell_type", help="context labels in .obs (default: %(default)s)")
    parser.add_argument("--context-batch-key", help="batches of the context in .obs")
    parser.add_argument("--target-batch-key", help="batches of the target in .obs")
    parser.add_argument("--target-labels-key", help="known labels of the target, for the table of accuracies only")
    parser.add_argument("--context-epochs", type=int, help="training epochs of the context model")
    parser.add_argument("--epochs", type=int, help="training epochs of scSpecies")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("transverse_quickstart"), help="folder for the results (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    if (args.context is None) != (args.target is None):
        parser.error("--context and --target go together")
    if args.orthologs is not None and args.context is None:
        parser.error("--orthologs needs --context and --target")
    for path in (args.context, args.target, args.orthologs):
        if path is not None and not path.exists():
            parser.error(f"no such file: {path}")
    return args


def read_data(args: argparse.Namespace):
    """Context and target AnnData and the orthologue table, and the simulation's column names where it is simulated."""
    import scanpy as sc

    import transverse as tv

    if args.context is not None:
        table = None if args.orthologs is None else tv.pp.read_orthologs(args.orthologs)
        return sc.read_h5ad(args.context), sc.read_h5ad(args.target), table
    data = tv.datasets.simulate_species(
        "medium", n_cells={"mouse": 2000, "human": 1500}, target_only_types=1, seed=args.seed
    )
    args.context_batch_key = args.target_batch_key = "batch"
    args.labels_key = args.target_labels_key = "cell_type"
    args.context_epochs = 30 if args.context_epochs is None else args.context_epochs
    args.epochs = 30 if args.epochs is None else args.epochs
    return data["mouse"], data["human"], data["human"].uns["orthologs"]


def accuracy_table(labels: pd.DataFrame, truth: pd.Series | None, known: set[str]) -> pd.DataFrame:
    """Accuracy on cells whose type the context has, and the share flagged unknown among known and new types."""
    from sklearn.metrics import accuracy_score, balanced_accuracy_score

    rows = {}
    columns = {"scSpecies": "label", "smoothed data-level vote": "data_level_label", "data-level vote": "plain_vote"}
    for name, column in columns.items():
        predicted = labels[column].astype(str)
        row: dict[str, float] = {}
        if truth is not None:
            shared = truth.isin(known).to_numpy()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # labels that the target does not have
                row["balanced accuracy"] = balanced_accuracy_score(truth[shared], predicted[shared])
            row["accuracy"] = accuracy_score(truth[shared], predicted[shared])
            if column == "label":
                unknown = (labels["label_or_unknown"] == "unknown").to_numpy()
                row["unknown, known types"] = unknown[shared].mean()
                if (~shared).any():
                    row["unknown, new types"] = unknown[~shared].mean()
        elif column == "label":
            row["unknown"] = (labels["label_or_unknown"] == "unknown").mean()
        rows[name] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def main(argv: list[str] | None = None) -> int:
    """Run the quick start; returns the exit status."""
    args = parse_args(argv)
    warnings.filterwarnings("ignore")
    logging.disable(logging.INFO)
    start = time.perf_counter()
    print("loading ...", flush=True)
    import matplotlib

    matplotlib.use("Agg")
    import scvi

    import transverse as tv
    from transverse._validation import check_obs_key, check_setup
    from transverse.scspecies._context import CONTEXT_PLAN, default_epochs

    scvi.settings.seed = args.seed
    try:
        context, target, orthologs = read_data(args)
        print(f"context: {context.n_obs} cells x {context.n_vars} genes, target: {target.n_obs} x {target.n_vars}")
        # everything is checked before the first epoch
        print(tv.pp.match_orthologs(context, target, orthologs).report(), flush=True)
        if args.target_labels_key is not None and args.target_labels_key not in target.obs:
            raise KeyError(f"--target-labels-key {args.target_labels_key!r} is not in the target's .obs.")
        check_setup(context, None, batch_key=args.context_batch_key)
        check_obs_key(context, args.labels_key, "--labels-key")
        tv.ScSpecies.setup_anndata(target, batch_key=args.target_batch_key)
    except (ValueError, KeyError, TypeError, OSError) as error:
        print(f"error: {error.args[0] if error.args else error}", file=sys.stderr)
        return 2

    quiet = {"enable_progress_bar": sys.stderr.isatty()}
    print("training the context model ...", flush=True)
    scvi.model.SCVI.setup_anndata(context, batch_key=args.context_batch_key)
    reference = tv.ScSpecies.make_context(context)
    reference.train(
        args.context_epochs or default_epochs(context.n_obs), train_size=1.0, plan_kwargs=CONTEXT_PLAN, **quiet
    )
    print("aligning the target ...", flush=True)
    build = {"orthologs": orthologs, "labels_key": args.labels_key}
    plain = tv.ScSpecies.from_scvi_model(reference, target, n_smooth=1, **build).get_data_level_labels()
    model = tv.ScSpecies.from_scvi_model(reference, target, **build)
    model.train(args.epochs, **quiet)

    labels = model.transfer_labels()
    flagged = model.transfer_labels(unknown_threshold="auto")
    labels["label_or_unknown"] = flagged["label"]
    labels["plain_vote"] = plain["label"]
    truth = target.obs[args.target_labels_key].astype(str) if args.target_labels_key else None
    table = accuracy_table(labels, truth, set(context.obs[args.labels_key].dropna().astype(str)))
    print("\n" + table.round(3).to_string(na_rep="") + "\n")

    args.out.mkdir(parents=True, exist_ok=True)
    context.obsm["X_scSpecies"] = model.get_context_representation()
    target.obsm["X_scSpecies"] = model.get_latent_representation()
    for column in ("confidence", "novelty", "data_level_label", "data_level_agreement"):
        target.obs[f"scSpecies_{column}"] = labels[column]
    context.write_h5ad(args.out / "context.h5ad")
    target.write_h5ad(args.out / "target.h5ad")
    labels.to_csv(args.out / "labels.csv")
    table.to_csv(args.out / "accuracy.csv")
    model.save(str(args.out / "model"), overwrite=True)

    target.obs["scSpecies_label"] = labels["label_or_unknown"].astype("category")
    species = {"context": context, "target": target}
    colors = {"context": args.labels_key, "target": "scSpecies_label"}
    tv.pl.species_umap(species, colors, random_state=args.seed, save=args.out / "umap.png", show=False)
    print(f"Wrote context.h5ad, target.h5ad, labels.csv, accuracy.csv, umap.png and model/ to {args.out.resolve()}")
    print(f"Done in {time.perf_counter() - start:.0f} s.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
