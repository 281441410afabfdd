"""XTransferCDR beside every baseline of responses, and beside the noise.

    python benchmarks/xtransfercdr.py --data ../shared/data
    python benchmarks/xtransfercdr.py --only saturated ablation speed --out results

Real data (see the README of the data folder), by the protocol of ``benchmarks/baselines.py``: seeds start the networks and
divide the control cells, of which one half predicts and the other scores.

- ``ifnb``: the response of human PBMC to interferon beta, one cell type held out at a time
- ``doubles``: double perturbations of K562 from their singles
- ``glioma``: single perturbations carried between three glioma lines, in which nothing responds: the negative control

Simulated data:

- ``saturated``: perturbations that set the level of a gene, whatever it was in a context, so that no shift seen in other
  contexts is right; every perturbation held out in one context
- ``ablation``: the same without one term of the loss at a time, and with other choices of ours and of the paper
- ``speed``: an epoch beside a bare PyTorch loop over tensors in memory with the same networks and mini-batches, and the peak
  memory with a sparse matrix of 50,000 x 2,000
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import scanpy as sc
import scvi
import torch
from anndata import AnnData
from baselines import DOUBLES, RESPONSE_SCORES, run, wide

import transverse as tv
from transverse.xtransfercdr import REFERENCE

THREADS = 1
QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}


class Prediction:
    """A trained model that predicts with options of its own."""

    def __init__(self, model: tv.XTransferCDR, **options):
        self.model, self.options = model, options

    def predict(self, *args) -> AnnData:
        return self.model.predict(*args, **self.options)


def methods(keys: dict, **variants: dict) -> dict[str, Callable]:
    """XTransferCDR as ``tv.benchmark`` takes it: trained once a split and seed, and asked in several ways.

    Each variant has options of ``model``, ``train`` and ``predict``; where the first two are those of the variant before
    it, the model is not trained again.
    """
    last = {}

    def make(name: str) -> Callable:
        options = variants[name]

        def method(train: AnnData, seed: int) -> Prediction:
            settings = repr([options.get("model"), options.get("train")])
            cells = tuple(train.obs_names)
            if last.get("key") != (settings, cells, seed):
                scvi.settings.seed = seed
                tv.XTransferCDR.setup_anndata(train, **keys)
                model = tv.XTransferCDR(train, **options.get("model", {}))
                torch.set_num_threads(THREADS)  # scanpy, by way of numba, has raised it
                start = time.process_time()
                model.train(**QUIET, **options.get("train", {}))
                print(
                    f"  {name}, seed {seed}: trained in {time.process_time() - start:.0f} s",
                    file=sys.stderr,
                    flush=True,
                )
                last.update(key=(settings, cells, seed), model=model)
            return Prediction(last["model"], **options.get("predict", {}))

        return method

    return {name: make(name) for name in variants}


def table_of(adata: AnnData, models: dict, seeds: list[int], **options) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The scores that are shown, with the gain over the best baseline and the spread over seeds; and all of them."""
    table = tv.benchmark(adata, models, seeds=seeds, **options)
    shown = wide(table, RESPONSE_SCORES, ["of", "genes", "metric"]).set_index("method")
    change = table[(table["of"] == "change") & (table["genes"] == "all")].set_index("method")
    for name, metric in {"Pearson": "pearson", "R2": "r2"}.items():
        rows = change[change["metric"] == metric].reindex(shown.index)
        shown[f"sd over seeds, {name}"] = rows["sd_seeds"].round(3)
        low_to_high = rows["gain_low"].map("{:+.3f}".format) + " to " + rows["gain_high"].map("{:+.3f}".format)
        gain = rows["gain"].map("{:+.3f}".format) + " (" + low_to_high + ") over " + rows["best_baseline"].astype(str)
        shown[f"gain, {name}"] = gain.where(rows["kind"] == "model", "")
    return shown.reset_index(), table


OUTPUTS = {
    "XTransferCDR": {},
    "XTransferCDR, decoded change alone": {"predict": {"output": "change"}},
    "XTransferCDR, decoded": {"predict": {"output": "decoded"}},
}


def ifnb(folder: Path, seeds: list[int]) -> dict[str, pd.DataFrame]:
    """One cell type held out at a time."""
    adata = sc.read_h5ad(folder / "human_pbmc_ifnb.h5ad")
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    keys = {"perturbation_key": "group_id", "control": "ctrl", "context_key": "cluster_id"}
    splits = tv.pp.leave_out(adata, by="context", **keys)
    return {"ifnb": table_of(adata, methods(keys, **OUTPUTS), seeds, splits=splits, **keys)[0]}


def doubles(folder: Path, seeds: list[int]) -> dict[str, pd.DataFrame]:
    """The five doubles of K562 whose singles were both measured."""
    adata = sc.read_h5ad(folder / "crispr_four_lines.h5ad")
    adata = adata[adata.obs["cell_type"] == "k562"].copy()
    variants = OUTPUTS | {
        "XTransferCDR, sum": {"predict": {"combine": "sum"}},
        "XTransferCDR, sum, decoded": {"predict": {"combine": "sum", "output": "decoded"}},
    }
    return {
        "doubles": table_of(adata, methods({}, **variants), seeds, splits={"doubles": DOUBLES}, by="combination")[0]
    }


def glioma(folder: Path, seeds: list[int]) -> dict[str, pd.DataFrame]:
    """One glioma line held out at a time."""
    adata = sc.read_h5ad(folder / "crispr_four_lines.h5ad")
    adata = adata[adata.obs["cell_type"] != "k562"].copy()
    splits = tv.pp.leave_out(adata, by="context")
    return {"glioma": table_of(adata, methods({}, **OUTPUTS), seeds, splits=splits)[0]}


def simulate(seed: int = 0) -> tuple[AnnData, dict]:
    """Six contexts that share nothing beyond genes, six perturbations that set levels, each held out in one context."""
    adata = tv.datasets.simulate_responses(
        n_contexts=6,
        n_context_groups=6,
        n_perturbations=6,
        n_genes=400,
        effect_share=0.3,
        specific_share=0.0,
        saturation=1.0,
        context_sd=0.8,
        seed=seed,
    )
    return adata, {"conditions": [(f"P{i:02d}", f"C{i}") for i in range(1, 7)]}


def saturated(folder: Path, seeds: list[int]) -> dict[str, pd.DataFrame]:
    """Effects that no shift expresses."""
    adata, splits = simulate()
    return {"saturated": table_of(adata, methods({}, **OUTPUTS), seeds, splits=splits)[0]}


ABLATIONS = {
    "full": {},
    "no cross-transfer": {"model": {"cross_weight": 0.0}},
    "no orthogonality": {"model": {"orthogonality_weight": 0.0}},
    "no similarity": {"model": {"similarity_weight": 0.0}},
    "no basal reconstruction": {"model": {"basal_weight": 0.0}},
    "no self-reconstruction": {"model": {"reconstruction_weight": 0.0}},
    "no noise": {"model": {"input_noise": 0.0, "latent_noise": 0.0}},
    "pairs of contexts only": {"train": {"pairing": "context"}},
    "static pairs (reference)": {"train": {"resample": False}},
    "no weight averaging": {"train": {"weight_averaging": None}},
}
# without what is ours: pairs of two perturbations, control cells as targets only, weights of the last step
PAPER = {
    "pairing": "perturbation",
    "control_share": 0.0,
    "weight_averaging": None,
    "plan_kwargs": {"lr": 1e-3, "lr_factor": 0.5},
}
for left_out in ("", "cross", "orthogonality", "similarity"):
    ABLATIONS["paper's training" + f", no {left_out}" * bool(left_out)] = {
        "train": PAPER,
        "model": {f"{left_out}_weight": 0.0} if left_out else {},
    }


def ablation(folder: Path, seeds: list[int]) -> dict[str, pd.DataFrame]:
    """One thing left out or changed at a time, on the saturated simulation."""
    adata, splits = simulate()
    # of the network: nothing observed is mixed in
    variants = {}
    for name, options in ABLATIONS.items():
        variants[name] = {**options, "predict": {"output": "change"}}
        variants[f"{name}, decoded"] = {**options, "predict": {"output": "decoded"}}
    table = tv.benchmark(adata, methods({}, **variants), seeds=seeds, splits=splits, baselines={})
    rows = []
    for name in ABLATIONS:
        row = {"variant": name}
        for column, method, of, genes, metric in (
            ("Pearson of change", name, "change", "all", "pearson"),
            ("R2 of change", name, "change", "all", "r2"),
            ("top-50 Pearson of change", name, "change", "top 50", "pearson"),
            ("decoded: R2", f"{name}, decoded", "expression", "all", "r2"),
            ("decoded: top-50 R2", f"{name}, decoded", "expression", "top 50", "r2"),
        ):
            keys = {"method": method, "of": of, "genes": genes, "metric": metric}
            found = table[np.logical_and.reduce([table[key] == value for key, value in keys.items()])].iloc[0]
            row[column] = f"{found['mean']:.3f} ({found['sd_seeds']:.3f})"
        rows.append(row)
    return {"ablation": pd.DataFrame(rows)}


def bare_loop(model: tv.XTransferCDR, batches: list[dict[str, torch.Tensor]], lr: float) -> float:
    """Seconds of processor time of an epoch in plain PyTorch, with mini-batches that are ready in memory."""
    module = model.module.train()
    optimizer = torch.optim.Adam(module.parameters(), lr=lr, weight_decay=5e-4)
    start = time.process_time()
    for tensors in batches:
        _, _, output = module(tensors)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    return time.process_time() - start


def speed(folder: Path, seeds: list[int]) -> dict[str, pd.DataFrame]:
    """Processor time of an epoch, ours and bare, taking turns; and peak memory in a process of its own."""
    from transverse.xtransfercdr._pairs import PairDataset, PairSampler

    rows = []
    adata = tv.datasets.simulate_responses(n_genes=2000, n_cells_per_condition=40, n_control_cells_per_context=100)
    for name, options in {"default": ({}, 32), "reference's networks": (REFERENCE["model"], 256)}.items():
        settings, batch_size = options
        tv.XTransferCDR.setup_anndata(adata)
        model = tv.XTransferCDR(adata, **settings)
        train = {**QUIET, "batch_size": batch_size}
        ours, without, bare = [], [], []
        # the first epoch of a fit pays for starting it: two lengths, and their difference
        for turn in range(3):
            seconds = {}
            for averaging in (0.998, None):
                for epochs in (1, 2):
                    start = time.process_time()
                    model.train(max_epochs=epochs, weight_averaging=averaging, **train)
                    seconds[averaging, epochs] = time.process_time() - start
            ours.append(seconds[0.998, 2] - seconds[0.998, 1])
            without.append(seconds[None, 2] - seconds[None, 1])
            design = model._design(np.arange(adata.n_obs))
            sampler = PairSampler(design, turn, batch_size, pairing="mixed")
            dataset = PairDataset(model.adata_manager)
            bare.append(bare_loop(model, [dataset[pairs] for pairs in sampler], 1e-3))
        rows.append(
            {
                "networks": name,
                "pairs in a mini-batch": batch_size,
                "bare loop, s": round(min(bare), 2),
                "ours, s": round(min(ours), 2),
                "ratio": round(min(ours) / min(bare), 2),
                "ours without weight averaging, s": round(min(without), 2),
                "ratio without": round(min(without) / min(bare), 2),
            }
        )
    script = Path(__file__).resolve()
    memory = []
    for n_cells in (5_000, 50_000):
        result = subprocess.run([sys.executable, str(script), "--memory", str(n_cells)], capture_output=True, text=True)
        if result.returncode:
            raise RuntimeError(result.stderr)
        memory.append(read_row(result.stdout))
    return {"speed": pd.DataFrame(rows), "memory": pd.DataFrame(memory)}


def read_row(text: str) -> dict[str, float]:
    """The last line of the output, ``name=value`` pairs."""
    pairs = (word.split("=") for word in text.strip().splitlines()[-1].split())
    return {name: float(value) for name, value in pairs}


def peak_memory() -> float:
    """Peak memory of this process, GB; that of getrusage begins with what the process that started it had."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 2**20


def memory(n_cells: int) -> None:
    """One epoch of the reference's networks and all calls on sparse cells x 2,000 genes; prints the peak memory."""
    import scipy.sparse as sp

    rng = np.random.default_rng(0)
    blocks = [sp.random(1000, 2000, 0.1, "csr", np.float32, rng) for _ in range(n_cells // 1000)]
    adata = AnnData(sp.vstack(blocks, format="csr"))
    adata.X.data += 0.5
    adata.obs["perturbation"] = rng.choice(["control", *(f"P{i}" for i in range(50))], n_cells)
    adata.obs["cell_type"] = rng.choice(["A", "B", "C"], n_cells)
    before = peak_memory()
    tv.XTransferCDR.setup_anndata(adata)
    model = tv.XTransferCDR(adata, **REFERENCE["model"])
    seconds = {}
    for name, call in {
        "epoch": lambda: model.train(max_epochs=1, batch_size=512, **QUIET),
        "representation": model.get_basal_representation,
        "prediction": lambda: model.predict("P1", "A"),
    }.items():
        start = time.perf_counter()
        call()
        seconds[name] = time.perf_counter() - start
    peak = peak_memory()
    times = " ".join(f"{name}_s={value:.1f}" for name, value in seconds.items())
    print(f"cells={n_cells} data_GB={before:.2f} peak_GB={peak:.2f} {times}")


TASKS: dict[str, Callable[[Path, list[int]], dict[str, pd.DataFrame]]] = {
    "ifnb": ifnb,
    "doubles": doubles,
    "glioma": glioma,
    "saturated": saturated,
    "ablation": ablation,
    "speed": speed,
}


def main() -> None:
    """Run the tasks and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the real data")
    parser.add_argument("--only", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--variants", nargs="+", choices=list(ABLATIONS), help="rows of the ablation; by default all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder for the tables as CSV files")
    parser.add_argument("--memory", type=int, metavar="CELLS", help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    global THREADS
    THREADS = args.threads
    torch.set_num_threads(THREADS)
    for name in set(ABLATIONS) - set(args.variants or ABLATIONS):
        del ABLATIONS[name]
    if args.memory:
        memory(args.memory)
        return
    run(TASKS, args)


if __name__ == "__main__":
    main()
