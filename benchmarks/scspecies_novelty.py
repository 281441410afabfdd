"""Cells of types that the context lacks: how well the novelty of scSpecies finds them, and how sure its labels are.

    pip install "transverse[bench]"
    python benchmarks/scspecies_novelty.py --data ../shared/data
    python benchmarks/scspecies_novelty.py --simulated medium --seeds 10 11 12 13 14
    python benchmarks/scspecies_novelty.py --data ../shared/data --skip-reference

Area under the ROC curve for telling target cells without a counterpart in the context from all others: DC, MK and HSC of
the human PBMC, or two types that only the simulated target has (where the context has one that the target lacks). Beside
the novelty of ScSpecies and the two signals that it is made of: one minus the agreement of the 25 data-level neighbours
(normalised counts, single cells), one minus the largest probability of SCANVI's query mapping, and the likelihood ratio of
the package scspecies 0.1.4, the mean of its best 25 candidates.

The expected calibration error (ten bins) of the confidence is taken over all target cells, where a label on a cell without
a counterpart is wrong, and over the cells that have one. The constants behind novelty and confidence were chosen on the
simulated presets with seeds 0 to 4: those runs are no test of them.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import logging
import os
import tempfile
import time
import warnings
from contextlib import redirect_stdout
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scvi
import torch
from scspecies_labels import read_real, scanvi_query, trained_scspecies
from sklearn.metrics import roc_auc_score

import transverse as tv

SIZES = {"n_cells": {"mouse": 2000, "human": 1500}, "context_only_types": 1, "target_only_types": 2}


def read_simulated(preset: str, seed: int):
    """Simulated species with two target-only types and one context-only type, and their orthologues."""
    data = tv.datasets.simulate_species(preset, seed=seed, **SIZES)
    mouse, human = data["mouse"], data["human"]
    for adata in (mouse, human):
        adata.obs["label"] = adata.obs["cell_type"].astype(str).astype("category")
    pairs = tv.pp.match_orthologs(mouse, human, human.uns["orthologs"]).pairs[["context", "target"]]
    return mouse, human, pairs


def reference_ratio(mouse, human, pairs, seed: int, epochs: int) -> np.ndarray:
    """Mean log-likelihood ratio of the best 25 of scspecies' 250 candidates, 40 % of the cells aligned."""
    import mudata
    import muon

    muon.set_options = mudata.set_options  # muon has no longer the option that scspecies sets
    from scspecies.models import scSpecies
    from scspecies.preprocessing import create_mdata

    # the same genes as the others: the orthologues under one name
    names = pd.Series(human.var_names, index=human.var_names)
    names[pairs["target"]] = pairs["context"].to_numpy()
    context, target = (ad.AnnData(x.X.copy(), obs=x.obs[["batch", "label"]].copy()) for x in (mouse, human))
    context.var_names, target.var_names = mouse.var_names, names.to_numpy().astype(str)
    shared = {"batch_key": "batch", "NCBI_Taxon_ID": 10090}  # one taxon: it then matches names and needs no network
    home = os.getcwd()
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        os.chdir(folder)  # it writes into the working directory
        try:
            data = create_mdata(context, dataset_name="context", cell_key="label", min_non_zero_genes=0.0, **shared)
            data.setup_target_adata(target, dataset_name="target", **shared)
            model = scSpecies(
                "cpu",
                data.return_mdata(),
                folder,
                context_key="context",
                target_key="target",
                random_seed=seed,
                top_percent=40,
            )
            model.train_context(epochs, save_model=False)
            model.get_representation("context", save_intermediate=True, save_libsize=True)
            model.train_target(epochs, save_model=False)
            model.get_representation("target", save_libsize=True)
            ratios, _ = model.similarity_metric_on_latent_space()
            names = model.mdata.mod["target"].obs_names.str.removesuffix("_target")
        finally:
            os.chdir(home)
    best = pd.Series(np.sort(ratios, axis=1)[:, :25].mean(1), index=names)
    return best.reindex(target.obs_names).to_numpy()


def run_seed(args: argparse.Namespace, seed: int) -> tuple[list[dict], dict]:
    """Areas under the curve of all methods, and the calibration of the confidence, on one seed."""
    scvi.settings.seed = seed
    mouse, human, pairs = read_simulated(args.simulated, seed) if args.simulated else read_real(args.data)
    truth = human.obs["label"].to_numpy().astype(str)
    unknown = ~np.isin(truth, mouse.obs["label"].astype(str))

    model = trained_scspecies(mouse, human, pairs, None)
    table = model.transfer_labels()
    scores = {
        "scSpecies, novelty": table["novelty"].to_numpy(),
        "  its likelihood ratio": table["log_likelihood_ratio"].to_numpy(),
        "  its data-level distance": model.neighbor_distance_,
        "1 - neighbour agreement": tv.baselines.NeighborVote()
        .fit(mouse, "label")
        .predict(human, pairs)["novelty"]
        .to_numpy(),
    }
    if not args.skip_scanvi:
        scvi.settings.seed = seed
        probabilities = scanvi_query(mouse, human, pairs, args.scanvi_epochs).predict(soft=True)
        scores["1 - max probability of SCANVI"] = 1 - probabilities.to_numpy().max(1)
    if not args.skip_reference:
        start = time.perf_counter()
        scores["scspecies 0.1.4, likelihood ratio"] = reference_ratio(mouse, human, pairs, seed, args.reference_epochs)
        print(f"seed {seed}  scspecies 0.1.4 took {time.perf_counter() - start:.0f} s", flush=True)
    rows = []
    for method, score in scores.items():
        row = {"seed": seed, "method": method, "AUROC": roc_auc_score(unknown, score)}
        for label in sorted(set(truth[unknown])):
            cells = ~unknown | (truth == label)
            row[f"AUROC {label}"] = roc_auc_score(unknown[cells], score[cells])
        rows.append(row)
        print(f"seed {seed}  {method:34s} AUROC {row['AUROC']:.3f}", flush=True)

    flagged = model.transfer_labels(unknown_threshold="auto")["label"].to_numpy() == "unknown"
    quality = tv.metrics.label_scores(
        truth, table.reset_index(drop=True), known=mouse.obs["label"].astype(str).unique()
    )
    quality = quality[quality["cell_type"].isna()].set_index(["metric", "cells"])["value"]
    calibration = {
        "seed": seed,
        "accuracy": quality["accuracy", "all"],
        "confidence": table["confidence"].mean(),
        "ECE": quality["calibration_error", "all"],
        "ECE, known": quality["calibration_error", "shared"],
        "AUROC of right": quality["confidence_auroc", "all"],
        "unknown flagged": flagged[unknown].mean(),
        "known flagged": flagged[~unknown].mean(),
    }
    print(
        f"seed {seed}  ECE {calibration['ECE']:.3f}, of cells with a counterpart {calibration['ECE, known']:.3f}",
        flush=True,
    )
    return rows, calibration


def main() -> None:
    """Run all seeds and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the real data")
    parser.add_argument("--simulated", choices=["easy", "medium", "hard"], help="simulated data instead")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--scanvi-epochs", type=int, default=100)
    parser.add_argument("--reference-epochs", type=int, default=60, help="of scspecies, context and target")
    parser.add_argument("--skip-scanvi", action="store_true")
    parser.add_argument("--skip-reference", action="store_true", help="leave scspecies 0.1.4 out")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="CSV file for the areas of every seed")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(args.threads)
    if not args.skip_reference:
        if missing := [name for name in ("scspecies", "muon") if importlib.util.find_spec(name) is None]:
            print(f'Without the reference: {" and ".join(missing)} not found. Install: pip install "transverse[bench]"')
            args.skip_reference = True
    results = [run_seed(args, seed) for seed in args.seeds]
    table = pd.DataFrame([row for rows, _ in results for row in rows])
    calibration = pd.DataFrame([row for _, row in results]).set_index("seed")
    if args.out:
        table.to_csv(args.out, index=False)
    areas = [column for column in table if column.startswith("AUROC")]
    groups = table.groupby("method", sort=False)
    summary = groups[areas].mean()
    summary.insert(1, "sd", groups["AUROC"].std())
    summary.insert(2, "lowest", groups["AUROC"].min())
    print(f"\nArea under the curve, mean of {len(args.seeds)} seeds\n{summary.round(3).to_string()}")
    print(f"\nConfidence of scSpecies\n{calibration.agg(['mean', 'std', 'min', 'max']).round(3).to_string()}")


if __name__ == "__main__":
    main()
