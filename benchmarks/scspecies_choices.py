"""What the defaults of scSpecies are worth: each choice that paper and code leave open, changed alone.

    python benchmarks/scspecies_choices.py --data ../shared/data
    python benchmarks/scspecies_choices.py --simulated medium

Prints balanced accuracy on the shared types for the default (combined) vote, for the paper's likelihood vote and for the
nearest in the latent space, mean over the seeds with the standard deviation.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path

import pandas as pd
import scvi
import torch
from scspecies_labels import CONTEXT_PLAN, QUIET, read_real, read_simulated, scores

import transverse as tv

# name: (make_context, from_scvi_model, train)
CHOICES: dict[str, tuple[dict, dict, dict]] = {
    "default": ({}, {}, {}),
    "single cells searched": ({}, {"n_smooth": 1}, {}),
    "raw log1p searched, single cells": ({}, {"n_smooth": 1, "normalization": "none"}, {}),
    "candidates chosen in every step": ({}, {"rescore_every": 1}, {}),
    "candidates sampled": ({}, {"rescore_every": 1, "candidate_latent": "sample"}, {}),
    "all cells aligned": ({}, {}, {"agreement_quantile": 0.0}),
    "average over all cells": ({}, {"align_average": "all"}, {}),
    "frozen part with dropout": ({}, {"frozen_eval": False}, {}),
    "split softmax": ({}, {"split_softmax": True}, {}),
    "library size inferred": ({}, {"use_observed_lib_size": False}, {}),
    "zero-inflated": ({"gene_likelihood": "zinb"}, {}, {}),
    "activation not clipped": ({"clip_activation": False}, {}, {}),
    "raw counts encoded": ({"log_variational": False}, {}, {}),
}


def run(name: str, seed: int, args: argparse.Namespace) -> list[dict]:
    """Scores of one choice on one seed, by vote."""
    of_context, of_model, of_training = CHOICES[name]
    scvi.settings.seed = seed
    mouse, human, pairs = read_simulated(args.simulated, seed) if args.simulated else read_real(args.data)
    truth, known = human.obs["label"].to_numpy().astype(str), set(mouse.obs["label"].astype(str))
    scvi.model.SCVI.setup_anndata(mouse, batch_key="batch")
    context = tv.ScSpecies.make_context(mouse, **of_context)
    context.train(args.epochs, train_size=1.0, plan_kwargs=CONTEXT_PLAN, **QUIET)
    tv.ScSpecies.setup_anndata(human, batch_key="batch")
    model = tv.ScSpecies.from_scvi_model(context, human, orthologs=pairs, labels_key="label", **of_model)
    model.train(args.epochs, **of_training, **QUIET)
    rows = []
    for vote in ("combined", "likelihood", "latent"):
        labels = model.transfer_labels(vote=vote)["label"].to_numpy().astype(str)
        rows.append({"choice": name, "seed": seed, "vote": vote, "BAS": scores(truth, labels, known)["BAS"]})
    print(f"seed {seed}  {name:34s}", "  ".join(f"{row['vote']} {row['BAS']:.3f}" for row in rows), flush=True)
    return rows


def main() -> None:
    """Run all choices and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the real data")
    parser.add_argument("--simulated", choices=["easy", "medium", "hard"], help="simulated data instead")
    parser.add_argument("--choices", nargs="+", choices=list(CHOICES), default=list(CHOICES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="CSV file for the scores of every seed")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.INFO)
    torch.set_num_threads(args.threads)
    table = pd.DataFrame([row for name in args.choices for seed in args.seeds for row in run(name, seed, args)])
    if args.out:
        table.to_csv(args.out, index=False)
    summary = table.groupby(["choice", "vote"], sort=False)["BAS"].agg(["mean", "std"]).unstack("vote")
    print(f"\nbalanced accuracy over {len(args.seeds)} seeds\n{summary.round(3).to_string()}")


if __name__ == "__main__":
    main()
