"""Planted fold changes between simulated species: how well scSpecies recovers them, and what its null shows.

    python benchmarks/scspecies_fold_changes.py
    python benchmarks/scspecies_fold_changes.py --preset easy --seeds 0 1 2 3 4

For every way of drawing latent states, and for the plain comparison that needs no network (log ratio of the pooled
proportions of each type's cells, one count added), the correlation of the median fold change with the planted one over the
one-to-one orthologues of a type, averaged over types; the share of right signs among planted changes of more than twofold;
the slope of the estimate on the truth; and the null's probability of a twofold change beside that of the comparison. All
genes, and those with an expected count of more than ``--expressed`` in 10,000 in either species.
"""

from __future__ import annotations

import argparse
import logging
import warnings

import numpy as np
import pandas as pd
import scvi
import torch
from scspecies_labels import CONTEXT_PLAN, QUIET

import transverse as tv

MODES = ("own", "context", "target", "both")


def trained(preset: str, seed: int, sizes: dict[str, int]) -> tuple[tv.ScSpecies, dict]:
    """Simulated species and a model with default settings."""
    scvi.settings.seed = seed
    data = tv.datasets.simulate_species(preset, n_cells=sizes, many_to_many=0.0, seed=seed)
    mouse, human = data["mouse"], data["human"]
    scvi.model.SCVI.setup_anndata(mouse, batch_key="batch")
    context = tv.ScSpecies.make_context(mouse)
    context.train(60, train_size=1.0, plan_kwargs=CONTEXT_PLAN, **QUIET)
    tv.ScSpecies.setup_anndata(human, batch_key="batch")
    model = tv.ScSpecies.from_scvi_model(context, human, human.uns["orthologs"], labels_key="cell_type")
    model.train(**QUIET)
    return model, data


def pooled(data: dict, table: pd.DataFrame) -> np.ndarray:
    """Log2 ratio of pooled proportions among the orthologous genes, one count added to every gene."""
    counts = {}
    for name, side in (("mouse", "context"), ("human", "target")):
        adata = data[name]
        genes = table.loc[table["group"] == table["group"].iloc[0], f"{side}_gene"]
        shared = adata[:, genes]
        rows = {
            g: np.asarray(shared[shared.obs["cell_type"] == g].X.sum(0)).ravel() + 1 for g in table["group"].unique()
        }
        counts[name] = np.concatenate([row / row.sum() for row in rows.values()])
    return np.log2(counts["human"] / counts["mouse"])


def scores(table: pd.DataFrame, truth: np.ndarray, genes: np.ndarray) -> dict[str, float]:
    """Agreement of a table's fold changes with the truth on some rows."""
    part, truth = table[genes], truth[genes]
    lfc = part["lfc"].to_numpy()
    by_type = [np.corrcoef(lfc[rows], truth[rows])[0, 1] for rows in part.groupby("group").indices.values()]
    large = np.abs(truth) > 1
    return {
        "r": np.mean(by_type),
        "lowest r": np.min(by_type),
        "signs": (np.sign(lfc) == np.sign(truth))[large].mean(),
        "slope": np.polyfit(truth, lfc, 1)[0],
    }


def run_seed(args: argparse.Namespace, seed: int) -> list[dict]:
    """All modes on one seed."""
    model, data = trained(args.preset, seed, {"mouse": args.cells, "human": args.cells})
    human = data["human"]
    types = list(human.uns["simulation"]["types"])
    planted = pd.DataFrame(human.varm["true_log_fold_change"], human.var_names, types) / np.log(2)
    level = pd.DataFrame(human.varm["true_log_mean"], human.var_names, types)
    rows = []
    for mode in (*MODES, "pooled counts"):
        scvi.settings.seed = seed
        table = model.get_cross_species_lfc(groupby="cell_type", mode="own" if mode == "pooled counts" else mode)
        if mode == "pooled counts":
            table["lfc"] = pooled(data, table)
            table[["probability", "null_probability"]] = np.nan
        cells = list(zip(table["target_gene"], table["group"], strict=True))
        truth = np.array([planted.at[cell] for cell in cells])
        target = np.exp(np.array([level.at[cell] for cell in cells]))
        highest = np.maximum(target, target / 2**truth)
        row = {"seed": seed, "mode": mode, **scores(table, truth, np.ones(len(table), bool))}
        row |= {f"{k}, expressed": v for k, v in scores(table, truth, highest > args.expressed).items()}
        row |= {"P": table["probability"].mean(), "null P": table["null_probability"].mean()}
        row["null |lfc|"] = table["null_lfc"].abs().max()
        rows.append(row)
        print(f"seed {seed}  {mode:14s}  r {row['r']:.3f}  expressed {row['r, expressed']:.3f}", flush=True)
    return rows


def main() -> None:
    """Run all seeds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=["easy", "medium", "hard"], default="medium")
    parser.add_argument("--cells", type=int, default=2000, help="of either species")
    parser.add_argument("--expressed", type=float, default=1.0, help="expected count in 10,000")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(args.threads)
    table = pd.DataFrame([row for seed in args.seeds for row in run_seed(args, seed)])
    summary = table.drop(columns="seed").groupby("mode", sort=False).agg(["mean", "std"])
    summary.columns = [f"{name} {'sd' if stat == 'std' else ''}".strip() for name, stat in summary.columns]
    print(f"\n{args.preset}, {len(args.seeds)} seeds\n{summary.T.round(3).to_string()}")


if __name__ == "__main__":
    main()
