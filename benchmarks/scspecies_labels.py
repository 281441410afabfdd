"""Label transfer between species: scSpecies beside neighbour votes, logistic regression and SCANVI query mapping.

    python benchmarks/scspecies_labels.py --data ../shared/data
    python benchmarks/scspecies_labels.py --data ../shared/data --shared-genes 100
    python benchmarks/scspecies_labels.py --simulated medium

The real task carries labels from mouse immune cells to human PBMC (see the README of the data folder). Scores are taken
over the target cells whose type the context has; balanced accuracy is the mean recall of those types. Every method sees
the same orthologues; labels of the target are used for scoring only.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import scanpy as sc
import scvi
import torch
from anndata import AnnData

import transverse as tv

# the schedules of the paper
CONTEXT_PLAN = {"n_epochs_kl_warmup": 10, "min_kl_weight": 0.1, "eps": 1e-8, "weight_decay": 0.0}
QUIET = {"accelerator": "cpu", "enable_progress_bar": False}

MOUSE_LABELS = {"B cell": "B", "T cell": "T", "NK cell": "NK", "Monocyte": "monocyte", "Granulocyte": "granulocyte"}
HUMAN_LABELS = {
    "B": "B",
    "T_CD4": "T",
    "T_CD8": "T",
    "NK": "NK",
    "Mono_CD14": "monocyte",
    "Mono_CD16": "monocyte",
    "DC": "DC",
    "MK": "MK",
    "HSC": "HSC",
}


def read_real(folder: Path, n_top_genes: int = 2000) -> tuple[AnnData, AnnData, pd.DataFrame]:
    """Mouse immune cells, human PBMC and their one-to-one orthologues; HVG and every orthologue are kept."""
    mouse, human = sc.read_h5ad(folder / "mouse_immune.h5ad"), sc.read_h5ad(folder / "human_pbmc.h5ad")
    mouse.obs["label"] = mouse.obs["cell_type"].astype(str).map(MOUSE_LABELS).astype("category")
    human.obs["label"] = human.obs["cell_type"].astype(str).map(HUMAN_LABELS).astype("category")
    mouse.obs["batch"] = "mouse"
    human.obs["batch"] = human.obs["donor"].astype(str)
    sc.pp.filter_genes(mouse, min_cells=3)
    table = tv.pp.read_orthologs(folder / "orthologs_human_mouse.csv.gz", context_species="mouse")
    pairs = tv.pp.match_orthologs(mouse, human, table).pairs[["context", "target"]]
    genes = sc.pp.highly_variable_genes(mouse, n_top_genes=n_top_genes, flavor="seurat_v3", inplace=False)
    keep = genes["highly_variable"].to_numpy() | mouse.var_names.isin(pairs["context"])
    return mouse[:, keep].copy(), human, pairs


def read_simulated(preset: str, seed: int) -> tuple[AnnData, AnnData, pd.DataFrame]:
    """Simulated mouse and human cells with their orthologue table."""
    data = tv.datasets.simulate_species(preset, seed=seed)
    mouse, human = data["mouse"], data["human"]
    for adata in (mouse, human):
        adata.obs["label"] = adata.obs["cell_type"].astype(str).astype("category")
    pairs = tv.pp.match_orthologs(mouse, human, human.uns["orthologs"]).pairs[["context", "target"]]
    return mouse, human, pairs


def shared_counts(mouse: AnnData, human: AnnData, pairs: pd.DataFrame) -> tuple[AnnData, AnnData]:
    """Counts of both species on the one-to-one orthologues, under the context's gene names."""
    left, right = mouse[:, pairs["context"]].copy(), human[:, pairs["target"]].copy()
    right.var_names = left.var_names
    return left, right


def baseline(mouse, human, pairs, method) -> np.ndarray:
    """Labels by a baseline of the package."""
    return method.fit(mouse, "label").predict(human, pairs)["label"].to_numpy().astype(str)


def scanvi_query(mouse, human, pairs, epochs: int) -> scvi.model.SCANVI:
    """SCANVI on the context with scArches query mapping of the target, on one-to-one orthologues."""
    left, right = shared_counts(mouse, human, pairs)
    scvi.model.SCVI.setup_anndata(left, batch_key="batch", labels_key="label")
    arches = {"use_layer_norm": "both", "use_batch_norm": "none", "encode_covariates": True, "n_layers": 2}
    reference = scvi.model.SCVI(left, **arches)
    reference.train(epochs, plan_kwargs={"n_epochs_kl_warmup": 10}, **QUIET)
    reference = scvi.model.SCANVI.from_scvi_model(reference, unlabeled_category="unlabelled")
    reference.train(20, n_samples_per_label=100, **QUIET)
    right.obs["label"] = "unlabelled"
    query = scvi.model.SCANVI.load_query_data(right, reference)
    query.train(epochs, plan_kwargs={"weight_decay": 0.0}, **QUIET)
    return query


def trained_scspecies(mouse, human, pairs, epochs: int | None) -> tv.ScSpecies:
    """ScSpecies with its defaults."""
    context, target = mouse.copy(), human.copy()
    scvi.model.SCVI.setup_anndata(context, batch_key="batch")
    reference = tv.ScSpecies.make_context(context)
    reference.train(60 if epochs is None else epochs, train_size=1.0, plan_kwargs=CONTEXT_PLAN, **QUIET)
    tv.ScSpecies.setup_anndata(target, batch_key="batch")
    model = tv.ScSpecies.from_scvi_model(reference, target, orthologs=pairs, labels_key="label")
    model.train(epochs, **QUIET)
    return model


def scspecies(mouse, human, pairs, epochs: int | None) -> dict[str, np.ndarray]:
    """ScSpecies with its defaults, and the two votes that its default combines."""
    model = trained_scspecies(mouse, human, pairs, epochs)
    return {
        "scSpecies": model.transfer_labels()["label"].to_numpy().astype(str),
        "scSpecies, likelihood vote": model.transfer_labels(vote="likelihood")["label"].to_numpy().astype(str),
        "scSpecies, its data-level vote": model.get_data_level_labels()["label"].to_numpy().astype(str),
        "scSpecies, latent kNN": model.transfer_labels(vote="latent")["label"].to_numpy().astype(str),
    }


def scores(truth: np.ndarray, predicted: np.ndarray, known: set[str]) -> dict[str, float]:
    """Balanced accuracy on the shared types, and ARI and AMI on the same cells."""
    table = tv.metrics.label_scores(truth, predicted, known=known)
    table = table[table["cells"] == "shared"].set_index(["metric", "cell_type"])["value"]
    overall = table[table.index.get_level_values("cell_type").isna()].droplevel("cell_type")
    recalls = {f"recall {label}": float(value) for label, value in table["recall"].items()}
    return {"BAS": overall["balanced_accuracy"], "ARI": overall["ARI"], "AMI": overall["AMI"], **recalls}


def run_seed(args: argparse.Namespace, seed: int) -> list[dict]:
    """All methods on one seed."""
    scvi.settings.seed = seed
    if args.simulated:
        mouse, human, pairs = read_simulated(args.simulated, seed)
    else:
        mouse, human, pairs = read_real(args.data)
    if args.shared_genes:
        pairs = pairs.sample(args.shared_genes, random_state=seed)
    truth, known = human.obs["label"].to_numpy().astype(str), set(mouse.obs["label"].astype(str))
    baselines = {
        f"vote k={k}, {name}": tv.baselines.NeighborVote(k, normalize=normalize)
        for k in (1, 25)
        for name, normalize in (("raw", "none"), ("normalised", "total"))
    }
    baselines["logistic regression"] = tv.baselines.LogisticLabels(normalize="shared")
    methods = {name: lambda method=method: baseline(mouse, human, pairs, method) for name, method in baselines.items()}
    if not args.skip_scanvi:
        methods["SCANVI query mapping"] = lambda: np.asarray(
            scanvi_query(mouse, human, pairs, args.scanvi_epochs).predict()
        ).astype(str)
    methods["scSpecies"] = lambda: scspecies(mouse, human, pairs, args.epochs)
    rows = []
    for name, method in methods.items():
        scvi.settings.seed = seed
        start = time.perf_counter()
        result = method()
        seconds = time.perf_counter() - start
        for label, predicted in (result if isinstance(result, dict) else {name: result}).items():
            row = {"seed": seed, "genes": len(pairs), "method": label, **scores(truth, predicted, known)}
            rows.append({**row, "seconds": seconds})
            print(f"seed {seed}  {label:32s} BAS {row['BAS']:.3f}  ARI {row['ARI']:.3f}  {seconds:.0f} s", flush=True)
    return rows


def main() -> None:
    """Run all seeds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the real data")
    parser.add_argument("--simulated", choices=["easy", "medium", "hard"], help="simulated data instead")
    parser.add_argument("--shared-genes", type=int, help="only so many random orthologues are known")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--epochs", type=int, help="epochs of the context and of scSpecies (default: the model's)")
    parser.add_argument("--scanvi-epochs", type=int, default=100)
    parser.add_argument("--skip-scanvi", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="CSV file for the scores of every seed")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.INFO)
    torch.set_num_threads(args.threads)
    table = pd.DataFrame([row for seed in args.seeds for row in run_seed(args, seed)])
    if args.out:
        table.to_csv(args.out, index=False)
    columns = ["BAS", "ARI", "AMI", *[c for c in table if c.startswith("recall")]]
    summary = table.groupby("method", sort=False)[columns].agg(["mean", "std"])
    summary.columns = [f"{name} {'sd' if stat == 'std' else stat}" for name, stat in summary.columns]
    recall_sd = [c for c in summary if c.startswith("recall") and c.endswith("sd")]
    print(f"\n{len(args.seeds)} seeds, {table['genes'].iloc[0]} shared genes")
    print(summary.drop(columns=recall_sd).round(3).to_string())
    print("\nlowest BAS of any seed:", table.groupby("method", sort=False)["BAS"].min().round(3).to_dict())


if __name__ == "__main__":
    main()
