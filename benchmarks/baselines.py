"""What can be predicted with no network at all, beside what can be predicted at best.

    python benchmarks/baselines.py --data ../shared/data
    python benchmarks/baselines.py --data ../shared/data --only responses --seeds 0 1 2

Runs the baselines of every task on small real data (see the README of the data folder), each beside the noise ceiling, and
prints a table for each. ``--out FOLDER`` also writes them, for the documentation, as CSV files.

- ``ifnb``: the response of human PBMC to interferon beta, one cell type, or one of the two donors, held out at a time
- ``doubles``: double perturbations of K562 from their singles
- ``glioma``: single perturbations carried between three glioma lines, in which nothing responds: the negative control
- ``l1000``: drug signatures, one cell line held out at a time
- ``labels``: cell types from mouse immune cells to human PBMC
- ``organs``: organs, and genes by their organ profiles, from mouse to human

Seeds divide the control cells: one half predicts, the other scores.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from scspecies_labels import read_real
from threadpoolctl import threadpool_limits

import transverse as tv

DOUBLES = ["KLF1+MAP2K6", "KLF1+TGFBR2", "MAP2K3+MAP2K6", "MAP2K3+SLC38A2", "MAPK1+TGFBR2"]
RESPONSE_SCORES = {
    "R2": ("expression", "all", "r2"),
    "Pearson of change": ("change", "all", "pearson"),
    "R2 of change": ("change", "all", "r2"),
    "top-50 Pearson of change": ("change", "top 50", "pearson"),
    "discrimination": ("change", "all", "discrimination"),
    "significant genes": ("change", "significant", "n_deg"),
}


def wide(table: pd.DataFrame, scores: dict, columns: list[str]) -> pd.DataFrame:
    """A row for each method, and for each score its mean and confidence interval."""
    methods = table["method"].drop_duplicates()
    result = pd.DataFrame({"method": methods, "kind": table.loc[methods.index, "kind"]}).set_index("method")
    for name, key in scores.items():
        rows = table[np.logical_and.reduce([table[c] == k for c, k in zip(columns, key, strict=True)])]
        rows = rows.set_index("method").reindex(result.index)
        if rows["mean"].notna().any():
            result[name] = [_cell(row) for row in rows.itertuples()]
    return result.reset_index()


def _cell(row) -> str:
    if pd.isna(row.mean):
        return ""
    digits = 3 if abs(row.mean) < 10 else 0
    text = f"{row.mean:.{digits}f}"
    return text if pd.isna(row.ci_low) else f"{text} [{row.ci_low:.{digits}f}, {row.ci_high:.{digits}f}]"


def responses(adata: AnnData, seeds: list[int], **options) -> pd.DataFrame:
    """Table of the response baselines."""
    return wide(tv.benchmark(adata, seeds=seeds, **options), RESPONSE_SCORES, ["of", "genes", "metric"])


def ifnb(folder: Path, seeds: list[int]) -> dict[str, pd.DataFrame]:
    """One cell type held out at a time, or one donor."""
    adata = sc.read_h5ad(folder / "human_pbmc_ifnb.h5ad")
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    keys = {"perturbation_key": "group_id", "control": "ctrl", "context_key": "cluster_id"}
    by_type = responses(adata, seeds, splits=tv.pp.leave_out(adata, by="context", **keys), **keys)
    adata.obs["donor"] = adata.obs["sample_id"].astype(str).str[-3:]
    by_donor = {"by": "animal", "animal_key": "donor", **keys}
    by_donor = responses(adata, seeds[:1], splits=tv.pp.leave_out(adata, **by_donor), **by_donor)
    return {"ifnb": by_type, "ifnb_donors": by_donor}


def doubles(folder: Path, seeds: list[int]) -> dict[str, pd.DataFrame]:
    """The five doubles of K562 whose singles were both measured, from singles and the other doubles."""
    adata = sc.read_h5ad(folder / "crispr_four_lines.h5ad")
    adata = adata[adata.obs["cell_type"] == "k562"].copy()
    return {"doubles": responses(adata, seeds, splits={"doubles": DOUBLES}, by="combination")}


def glioma(folder: Path, seeds: list[int]) -> dict[str, pd.DataFrame]:
    """One glioma line held out at a time; and what shared controls would have made of it."""
    adata = sc.read_h5ad(folder / "crispr_four_lines.h5ad")
    adata = adata[adata.obs["cell_type"] != "k562"].copy()
    honest = responses(adata, seeds, splits=tv.pp.leave_out(adata, by="context"))

    # the trap: the same control cells predict and score
    scores = []
    treated, controls = adata[adata.obs["perturbation"] != "control"], adata[adata.obs["perturbation"] == "control"]
    baseline = tv.baselines.MeanPerturbation().fit(adata)
    for line in adata.obs["cell_type"].unique():
        here = treated[treated.obs["cell_type"] == line]
        for name in here.obs["perturbation"].unique():
            truth = here[here.obs["perturbation"] == name]
            pred = baseline.predict(name, line)
            scores.append(tv.metrics.response_scores(truth, pred, controls, allow_shared_controls=True))
    trap = tv.metrics.summarize(pd.concat(scores), over=["perturbation", "cell_type"]).assign(
        method="mean perturbation, controls shared", kind="trap"
    )
    keep = {name: key for name, key in RESPONSE_SCORES.items() if name in honest}
    trap = wide(trap, keep, ["of", "genes", "metric"])
    return {"glioma": pd.concat([honest, trap], ignore_index=True).fillna("")}


def l1000(folder: Path, seeds: list[int]) -> dict[str, pd.DataFrame]:
    """One cell line held out at a time."""
    adata = tv.datasets.read_gctx(folder / "l1000_modz.gctx")
    adata = adata[adata.obs["perturbation"].notna() & adata.obs["cell_type"].notna()].copy()
    options = {"control": None, "delimiter": None}
    table = tv.benchmark(
        adata,
        task="signatures",
        splits=tv.pp.leave_out(adata, by="context", **options),
        seeds=seeds[:1],
        baselines=SIGNATURE_BASELINES,
    )
    scores = {name: ("signature", "all", name.lower()) for name in ("Pearson", "Spearman", "RMSE", "R2")}
    return {"l1000": wide(table, scores, ["of", "genes", "metric"])}


SIGNATURE_BASELINES = {
    "copy of a random source": tv.baselines.CopySource("random"),
    "copy of the most similar source": tv.baselines.CopySource("similar"),
    "mean of the sources": tv.baselines.MeanOfSources(),
    "mean signature, drug ignored": tv.baselines.MeanSignature(),
    "ridge": tv.baselines.RidgeSignature(),
}


def labels(folder: Path, seeds: list[int]) -> dict[str, pd.DataFrame]:
    """Mouse immune cells to human PBMC."""
    mouse, human, pairs = read_real(folder)
    vote, logistic = tv.baselines.NeighborVote, tv.baselines.LogisticLabels
    baselines = {
        "neighbour vote, raw counts": vote(normalize="none"),
        "neighbour vote": vote(),
        "logistic regression": logistic(),
        "nearest centroid": tv.baselines.CentroidLabels(),
    }
    options = {"labels_key": "label", "orthologs": pairs, "seeds": seeds[:1], "baselines": baselines}
    table = tv.benchmark((mouse, human), task="labels", **options)
    table = table[table["cell_type"].isna()]
    scores = {
        "balanced accuracy": ("shared", "balanced_accuracy"),
        "macro F1": ("shared", "macro_f1"),
        "ARI": ("shared", "ARI"),
        "AMI": ("shared", "AMI"),
        "calibration error": ("shared", "calibration_error"),
        "AUROC of unknown": ("all", "unknown_auroc"),
    }
    return {"labels": wide(table, scores, ["cells", "metric"])}


def read_organs(folder: Path) -> dict[str, AnnData]:
    """Bulk counts of every species; genes go by the human's identifier."""
    counts = pd.read_csv(folder / "tetrapod_organs_counts.txt.gz", sep="\t", index_col=0).T
    counts = counts[counts.sum(axis=1) > 0]
    obs = counts.index.to_series().str.split("_", expand=True).iloc[:, :2].set_axis(["species", "organ"], axis=1)
    adata = AnnData(counts.to_numpy(dtype=np.float32), obs=obs, var=pd.DataFrame(index=counts.columns))
    return {name: adata[adata.obs["species"] == name].copy() for name in adata.obs["species"].unique()}


def organs(folder: Path, seeds: list[int]) -> dict[str, pd.DataFrame]:
    """Organs of human, opossum and chicken from those of the mouse; genes of mouse and human by their organ profiles."""
    data = read_organs(folder)
    vote = tv.baselines.NeighborVote(n_neighbors=1)
    baselines = {
        "nearest neighbour": vote,
        "logistic regression": tv.baselines.LogisticLabels(),
        "nearest centroid": tv.baselines.CentroidLabels(),
    }
    zero_shot = []
    for target in ("Human", "Opossum", "Chicken"):
        options = {"labels_key": "organ", "seeds": seeds[:1], "baselines": baselines}
        table = tv.benchmark((data["Mouse"], data[target]), task="labels", **options)
        table = wide(table[table["cell_type"].isna()], {f"Mouse to {target}": ("all", "accuracy")}, ["cells", "metric"])
        zero_shot.append(table.set_index(["method", "kind"]))
    truth = pd.DataFrame({"source": data["Mouse"].var_names, "target": data["Human"].var_names})
    # names are hidden: they do not enter profiles
    pair = {name: data[name] for name in ("Mouse", "Human")}
    correlation, distance = (tv.baselines.ReactomeCorrelation(metric) for metric in ("pearson", "euclidean"))
    baselines = {"correlation of organ profiles": correlation, "distance of organ profiles": distance}
    table = tv.benchmark(pair, task="genes", truth=truth, drug_key=None, seeds=seeds[:1], baselines=baselines)
    scores = {name: ("all", name) for name in ("recall@1", "recall@10", "mrr")}
    return {
        "organs": pd.concat(zero_shot, axis=1).reset_index(),
        "organ_genes": wide(table, scores, ["genes", "metric"]),
    }


TASKS: dict[str, Callable[[Path, list[int]], dict[str, pd.DataFrame]]] = {
    "ifnb": ifnb,
    "doubles": doubles,
    "glioma": glioma,
    "l1000": l1000,
    "labels": labels,
    "organs": organs,
}


def run(tasks: dict[str, Callable], args: argparse.Namespace) -> None:
    """Run the tasks that were asked for, print their tables and write them."""
    for task in args.only:
        start = time.perf_counter()
        with threadpool_limits(args.threads):
            tables = tasks[task](args.data, args.seeds)
        for name, table in tables.items():
            print(f"\n{name} ({time.perf_counter() - start:.0f} s)\n{table.to_string(index=False)}", flush=True)
            if args.out:
                args.out.mkdir(parents=True, exist_ok=True)
                table.to_csv(args.out / f"{name}.csv", index=False)


def main() -> None:
    """Run all tasks and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the real data")
    parser.add_argument("--only", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder for the tables as CSV files")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    run(TASKS, args)


if __name__ == "__main__":
    main()
