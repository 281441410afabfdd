"""Seconds and memory of every step against the number of cells, on one core of a laptop or as many as are given.

    python benchmarks/scale.py
    python benchmarks/scale.py --only scspecies --sizes 5000 20000 --storage memory backed --out results
    python benchmarks/scale.py --only search processes

- ``scspecies``: the whole workflow with as many cells of either species, 4,000 genes, a tenth of the counts above zero; simulated
  in a process of its own and read from a file, into memory or block by block (``backed``)
- ``peer``: the package scspecies 0.1.4 on the same data (needs ``transverse[bench]``), as far as ``--limit`` gigabytes carry it
- ``xtransfercdr``: two contexts, nine perturbations, 4,000 genes
- ``search``: neighbours of the features that :class:`~transverse.ScSpecies` compares, exact, projected and by pynndescent: time,
  memory and recall at 25 of 500 of the cells
- ``floor``: an epoch of every model and stage beside a bare PyTorch loop over the same mini-batches in memory with the same networks,
  loss and optimiser, and the seconds that reading the mini-batches takes
- ``profile``: how an epoch of each divides into kinds of operations
- ``precision``: seconds and loss in single precision, in ``bf16-mixed`` and compiled
- ``processes``: loss curves of one and two processes (Lightning's DDP), over seeds

Every size of every tool runs in a process of its own. The peak is that of the step (Linux; elsewhere that of the process so far)
and counts everything, libraries and data included. An epoch is one after a first that is not counted; the other steps run once.
Growth is the exponent :math:`b` of processor seconds :math:`\\propto n^b` from the size before: 1 is flat per cell. They tell less
than the seconds of the clock about a busy machine, and with one thread are those of an idle one.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stdout
from functools import partial
from itertools import islice
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scvi
import torch
from lightning.pytorch import Callback
from scspecies_speed import PROCESS, EpochClock, simulate

import transverse as tv
from transverse.scspecies._context import shared_features
from transverse.scspecies._neighbors import EXACT_PAIRS, nearest_neighbors

try:
    import resource
except ImportError:  # Windows
    resource = None

N_GENES = 4000
ACCELERATOR = "TRANSVERSE_BENCHMARK_ACCELERATOR"
QUIET = {"accelerator": os.environ.get(ACCELERATOR, "cpu"), "enable_progress_bar": False, "enable_model_summary": False}
WHOLE = {"batch_size": 128, "train_size": 1.0}


def forget_peak() -> None:
    """Let the peak of this process begin anew, where the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def peak_gigabytes() -> float:
    """Most memory that this process has held since :func:`forget_peak`."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20
    except OSError:
        if resource is None:
            return float("nan")
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


class Steps:
    """Seconds and peak memory of named steps."""

    def __init__(self, **about):
        self.about, self.rows = about, []

    def __call__(self, name: str, function: Callable, *args, n: int | None = None, **kwargs):
        """Run a step; ``n``: cells that it goes through, if not all."""
        forget_peak()
        wall, cpu = time.perf_counter(), time.process_time()
        result = function(*args, **kwargs)
        self.add(name, time.perf_counter() - wall, time.process_time() - cpu, n)
        return result

    def add(self, name: str, wall: float, cpu: float, n: int | None = None) -> None:
        """Add a step that was timed."""
        peak = peak_gigabytes()
        self.rows.append({**self.about, "step": name, "seconds": wall, "cpu": cpu, "peak": peak, "n": n})
        about = " ".join(map(str, self.about.values()))
        print(f"{about:30s} {name:34s} {wall:8.1f} s {cpu:8.1f} s cpu {peak:6.2f} GB", file=sys.stderr, flush=True)

    def epoch(self, name: str, model, n: int | None = None, **training) -> None:
        """The second epoch of a training."""
        clock = EpochClock()
        forget_peak()
        model.train(max_epochs=2, callbacks=[clock], **{**QUIET, **training})
        (wall, cpu), (wall_, cpu_) = clock.times[-2:]
        self.add(name, wall_ - wall, cpu_ - cpu, n)


# ---- data


def write_species(folder: Path, n_cells: int) -> None:
    """Context and target with so many cells each."""
    simulate(folder, n_cells, N_GENES, seed=0, n_types=12)


def write_responses(folder: Path, n_cells: int) -> None:
    """Log-normalised cells of two contexts, a tenth of them controls."""
    adata = tv.datasets.simulate_responses(
        n_contexts=2,
        n_perturbations=9,
        n_genes=N_GENES,
        n_cells_per_condition=n_cells // 20,
        n_control_cells_per_context=n_cells // 20,
        library_size=0.16 * N_GENES,
    )
    ad.AnnData(adata.X, obs=adata.obs[["perturbation", "cell_type"]], var=adata.var[[]]).write_h5ad(
        folder / "responses.h5ad"
    )


def read(path: Path, storage: str) -> ad.AnnData:
    """A file in memory, or block by block."""
    return ad.read_h5ad(path, backed="r" if storage == "backed" else None)


# ---- steps


def scspecies_steps(folder: Path, n_cells: int, storage: str, limit: float) -> list[dict]:
    """All of the workflow."""
    steps = Steps(tool="transverse", cells=n_cells, storage=storage)
    context, target = (read(folder / f"{name}.h5ad", storage) for name in ("context", "target"))

    def set_up():
        scvi.model.SCVI.setup_anndata(context, batch_key="batch")
        tv.ScSpecies.setup_anndata(target, batch_key="batch")

    steps("set-up", set_up)
    reference = tv.ScSpecies.make_context(context)
    steps.epoch("context epoch", reference, **WHOLE)
    model = steps(
        "candidates (from_scvi_model)", tv.ScSpecies.from_scvi_model, reference, target, labels_key="cell_type"
    )
    steps.epoch("alignment epoch", model, **WHOLE)
    steps("latent representation", model.get_latent_representation)
    steps("label transfer", model.transfer_labels)
    sampled = 5000 * 12
    steps("fold changes", model.get_cross_species_lfc, groupby="cell_type", n=sampled)
    steps("similarity of types", model.get_cell_type_similarity, groupby="cell_type", n=min(n_cells, 2000 * 12))
    steps("gene relevance", model.get_gene_relevance, groupby="cell_type", n=200 * 12)
    genes = target.var_names[:50].tolist()
    steps("expression, 50 genes", model.get_normalized_expression, gene_list=genes)
    with tempfile.TemporaryDirectory() as saved:
        steps("save", model.save, saved, overwrite=True)
        steps("load", tv.ScSpecies.load, saved, adata=target)
    return steps.rows


def peer_steps(folder: Path, n_cells: int, storage: str, limit: float) -> list[dict]:
    """The package scspecies 0.1.4, with its defaults; an epoch is a call of its own."""
    import mudata
    import muon

    muon.set_options = mudata.set_options  # muon has no longer the option that scspecies sets
    from scspecies.models import scSpecies
    from scspecies.preprocessing import create_mdata

    if resource is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (int(limit * 2**30),) * 2)
    steps = Steps(tool="scspecies 0.1.4", cells=n_cells, storage="memory")
    os.chdir(folder)  # it writes into the working directory
    shared = {"batch_key": "batch", "cell_key": "cell_type", "NCBI_Taxon_ID": 10090}
    context, target = (read(folder / f"{name}.h5ad", "memory") for name in ("context", "target"))

    def set_up():
        data = create_mdata(context, dataset_name="context", min_non_zero_genes=0.0, **shared)
        data.setup_target_adata(target, dataset_name="target", **shared)
        return scSpecies("cpu", data.return_mdata(), str(folder), context_key="context", target_key="target")

    def represent():
        model.get_representation("context", save_intermediate=True, save_libsize=True)

    try:
        with redirect_stdout(open(os.devnull, "w")):
            model = steps("set-up", set_up)  # with the search for candidates
            steps("context epoch", model.train_context, 1, save_model=False)
            represent()
            steps("alignment epoch", model.train_target, 1, save_model=False)
            steps("latent representation", model.get_representation, "target", save_libsize=True)
            steps("label transfer", model.transfer_labels_data, "cell_type", top_neigh=25)
            steps("fold changes", model.compute_logfold_change, samples=5000, target_cell_key="cell_type")
    except MemoryError:
        steps.rows.append({**steps.about, "step": f"out of memory at {limit:.0f} GB"})
    return steps.rows


def xtransfercdr_steps(folder: Path, n_cells: int, storage: str, limit: float) -> list[dict]:
    """Training and predictions."""
    steps = Steps(tool="transverse", cells=n_cells, storage=storage)
    adata = read(folder / "responses.h5ad", storage)
    steps("set-up", tv.XTransferCDR.setup_anndata, adata, control="control")
    model = tv.XTransferCDR(adata)
    steps.epoch("epoch", model, batch_size=32)
    steps("basal representation", model.get_basal_representation)
    steps("perturbation representation", model.get_perturbation_representation)
    steps("prediction", model.predict, "P01", context="C2", allow_leak=True, n=n_cells // 20)
    with tempfile.TemporaryDirectory() as saved:
        steps("save", model.save, saved, overwrite=True)
        steps("load", tv.XTransferCDR.load, saved, adata=adata)
    return steps.rows


STEPS = {
    "scspecies": (write_species, scspecies_steps),
    "peer": (write_species, peer_steps),
    "xtransfercdr": (write_responses, xtransfercdr_steps),
}


def prepare(threads: int) -> None:
    """Settings of a process."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(threads)
    scvi.settings.seed = 0


def in_process(function: Callable, *args):
    """Call a function in a process of its own; None if it was killed."""
    with ProcessPoolExecutor(**PROCESS) as pool:
        try:
            return pool.submit(function, *args).result()
        except BrokenProcessPool:
            return None


def steps_in_process(task: str, threads: int, *args) -> list[dict]:
    """The steps of a task, with a given number of threads."""
    prepare(threads)
    return STEPS[task][1](*args)


def of_sizes(task: str, args: argparse.Namespace) -> pd.DataFrame:
    """Steps of a tool at all sizes."""
    rows = []
    for n_cells in args.sizes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            in_process(STEPS[task][0], folder, n_cells)
            for storage in args.storage if task != "peer" else ["memory"]:
                found = in_process(steps_in_process, task, args.threads, folder, n_cells, storage, args.limit)
                if found is None:
                    found = [{"tool": task, "cells": n_cells, "storage": storage, "step": "killed: out of memory"}]
                rows += found
    return scaled(pd.DataFrame(rows))


def scaled(table: pd.DataFrame) -> pd.DataFrame:
    """Processor seconds per 1,000 cells, and their growth, of every step."""
    if "seconds" not in table:
        return table
    table["s per 1,000 cells"] = 1000 * table["cpu"] / table["n"].fillna(table["cells"])
    by = ["tool", "storage", "step"]
    before = table.groupby(by)[["cpu", "cells"]].shift()
    growth = np.log(table["cpu"] / before["cpu"]) / np.log(table["cells"] / before["cells"])
    growth = growth.where((table["cpu"] > 0.5) & table["n"].isna() & before["cpu"].gt(0.5))
    order = list(dict.fromkeys(table["step"]))
    table = table.assign(growth=growth, order=table["step"].map(order.index)).sort_values(["order", "storage", "cells"])
    columns = ["tool", "step", "storage", "cells", "seconds", "cpu", "s per 1,000 cells", "growth", "peak"]
    return table[columns].rename(columns={"cpu": "processor s", "peak": "peak, GB"}).round(2)


# ---- search


def search_rows(threads: int, folder: Path, n_cells: int, most: dict[str, int]) -> list[dict]:
    """Exact and approximate neighbours of a target's features in those of a context."""
    prepare(threads)
    context, target = (read(folder / f"{name}.h5ad", "memory") for name in ("context", "target"))
    match = tv.pp.match_orthologs(context, target)
    features = []
    for adata, matrix in ((context, match.context_matrix()), (target, match.target_matrix())):
        scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
        features.append(shared_features(scvi.model.SCVI(adata), matrix, "library", 15, 0))
    some = np.arange(0, n_cells, max(1, n_cells // 500))
    # numba compiles at first
    for method in ("projected", "pynndescent"):
        nearest_neighbors(features[0][:500], features[1][:500], 25, method=method)
    rows, (exact, _) = [], nearest_neighbors(features[0], features[1][some], 25, method="exact")
    for method in ("exact", "projected", "pynndescent"):
        if n_cells > most[method]:
            continue
        forget_peak()
        before, wall, cpu = peak_gigabytes(), time.perf_counter(), time.process_time()
        found = nearest_neighbors(*features, 25, method=method)[0][some]
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        row = {
            "cells": n_cells,
            "method": method,
            "seconds": wall,
            "cpu": cpu,
            "GB beside the data": peak_gigabytes() - before,
        }
        row["recall at 25"] = np.mean([len(np.intersect1d(*pair)) / 25 for pair in zip(exact, found, strict=True)])
        rows.append(row)
        print(row, file=sys.stderr, flush=True)
    return rows


def search(args: argparse.Namespace) -> dict[str, pd.DataFrame]:
    """Both ways at all sizes."""
    rows = []
    for n_cells in args.search_sizes:
        with tempfile.TemporaryDirectory() as folder:
            in_process(write_species, Path(folder), n_cells)
            most = {"exact": args.exact_up_to, "projected": n_cells, "pynndescent": args.pynndescent_up_to}
            rows += in_process(search_rows, args.threads, Path(folder), n_cells, most)
    table = pd.DataFrame(rows)
    auto = np.where(table["cells"] ** 2 <= EXACT_PAIRS, "exact", "projected")
    return {"search": table.assign(auto=np.where(table["method"] == auto, "x", "")).round(2)}


# ---- the floor


class Floor(Callback):
    """At the end of a fit, the same mini-batches again in a bare loop."""

    def __init__(self, about: dict, rows: list[dict]):
        self.about, self.rows, self.epochs = about, rows, []

    def on_train_epoch_start(self, trainer, plan):
        self.start = time.process_time()
        self.epochs.append(0.0)

    def on_train_batch_end(self, trainer, plan, *args):
        self.epochs[-1] = time.process_time() - self.start  # without the validation

    def on_fit_end(self, trainer, plan):
        epoch, self.epochs = min(self.epochs[1:]), []
        start = time.process_time()
        batches = list(trainer.train_dataloader)
        loading = time.process_time() - start
        found = plan.configure_optimizers()
        optimizer = found["optimizer"] if isinstance(found, dict) else found
        plan.module.train()
        seconds = []
        for _ in range(2):
            start = time.process_time()
            if getattr(plan, "reset_moments", False):  # the method does so in every epoch
                optimizer.state.clear()
            for tensors in batches:
                _, _, output = plan.forward(tensors, loss_kwargs=plan.loss_kwargs)
                optimizer.zero_grad()
                output.loss.backward()
                optimizer.step()
            seconds.append(time.process_time() - start)
        row = {
            **self.about,
            "mini-batches": len(batches),
            "epoch": epoch,
            "bare loop": min(seconds),
            "reading": loading,
        }
        self.rows.append({**row, "ratio": epoch / min(seconds)})
        print(self.rows[-1], file=sys.stderr, flush=True)


def small_trainings() -> Iterator[tuple[str, Callable]]:
    """Names of all models, and of the context of scSpecies, with their training on small simulations."""
    context, target = tv.datasets.simulate_species(
        "easy", n_cells=4000, n_shared_genes=1600, n_specific_genes=400
    ).values()
    scvi.model.SCVI.setup_anndata(context, batch_key="batch")
    reference = tv.ScSpecies.make_context(context)
    yield "SCVI (make_context)", partial(reference.train, **WHOLE)
    reference.train(3, **QUIET, **WHOLE)
    tv.ScSpecies.setup_anndata(target, batch_key="batch")
    model = tv.ScSpecies.from_scvi_model(reference, target, target.uns["orthologs"], labels_key="cell_type")
    yield "ScSpecies", partial(model.train, **WHOLE)

    adata = tv.datasets.simulate_responses(n_genes=2000, n_cells_per_condition=100, n_control_cells_per_context=300)
    tv.XTransferCDR.setup_anndata(adata)
    yield "XTransferCDR", tv.XTransferCDR(adata).train

    adata = tv.datasets.simulate_signatures(n_drugs=300, n_genes=978)
    tv.DeepCellState.setup_anndata(adata)
    yield "DeepCellState", tv.DeepCellState(adata).train

    adata = tv.pp.stack_species(tv.datasets.simulate_reactomes())
    tv.UGE.setup_anndata(adata, animal_key="animal")
    yield "UGE", tv.UGE(adata, preset="tiny").train


def floor_rows(threads: int) -> list[dict]:
    """All models on simulations, at their defaults."""
    prepare(threads)
    rows: list[dict] = []
    for name, train in small_trainings():
        train(max_epochs=3, callbacks=[Floor({"model": name}, rows)], **QUIET)
    return rows


def floor(args: argparse.Namespace) -> dict[str, pd.DataFrame]:
    """Processor seconds of an epoch."""
    return {"floor": pd.DataFrame(in_process(floor_rows, args.threads)).round(2)}


# ---- where the time goes

KINDS = {
    "products of matrices": ("mm", "bmm", "baddbmm", "addmm", "addmv_", "mv", "_scaled_dot_product"),
    "random numbers": ("bernoulli_", "normal_", "uniform_", "randperm", "random_"),
    "gamma functions": ("lgamma", "digamma"),
    "selection, sorting": ("index", "_index", "gather", "scatter", "nonzero", "topk", "sort", "_unique"),
    "copies": ("copy_", "cat", "fill_", "zero_"),
    "optimiser": ("_fused_adam", "lerp_", "addcdiv_", "addcmul_"),
}


class Profile(Callback):
    """Shares of an epoch by kind of operation."""

    def __init__(self, rows: list[dict]):
        self.rows = rows

    def on_train_epoch_start(self, trainer, plan):
        if trainer.current_epoch == 1:
            self.profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
            self.profile.start()

    def on_train_epoch_end(self, trainer, plan):
        if trainer.current_epoch == 1:
            self.profile.stop()
            self.rows += [(event.key, event.self_cpu_time_total) for event in self.profile.key_averages()]


def kind_of(operation: str) -> str:
    """Kind of an operation of PyTorch by its name."""
    if not operation.startswith("aten::"):
        return "reading" if operation.startswith("enumerate(DataLoader)") else "Python, bookkeeping"
    name = operation.removeprefix("aten::")
    found = (kind for kind, starts in KINDS.items() if any(name == s or name.startswith(s + "_") for s in starts))
    return next(found, "element by element")


def profile_rows(threads: int) -> list[dict]:
    """Shares of the time of the second epoch."""
    prepare(threads)
    rows = []
    for name, train in small_trainings():
        operations: list[tuple[str, float]] = []
        train(max_epochs=2, callbacks=[Profile(operations)], **QUIET)
        table = pd.DataFrame(operations, columns=["operation", "time"])
        shares = table.groupby(table["operation"].map(kind_of))["time"].sum() / table["time"].sum()
        rows.append({"model": name, **shares})
    return rows


def profile(args: argparse.Namespace) -> dict[str, pd.DataFrame]:
    """Shares of the time by kind of operation, the largest first."""
    table = pd.DataFrame(in_process(profile_rows, args.threads)).set_index("model").fillna(0)
    return {"profile": table[table.mean().sort_values(ascending=False).index].round(2).reset_index()}


# ---- bf16 and compile

VARIANTS = {
    "float32": {},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "compile": {"plan_kwargs": {"compile": True}},
}


def precision_rows(threads: int, variant: str, skip: int) -> list[dict]:
    """Seconds of a variant in four epochs, and where the loss ends, for one of the trainings."""
    prepare(threads)
    name, train = next(islice(small_trainings(), skip, None))
    clock = EpochClock()
    loss = {}

    class Loss(Callback):
        def on_fit_end(self, trainer, plan):
            loss["loss"] = float(
                trainer.callback_metrics.get("train_loss_epoch", trainer.callback_metrics["train_loss"])
            )

    start = time.perf_counter()
    train(max_epochs=4, callbacks=[clock, Loss()], **QUIET, **VARIANTS[variant])
    seconds = {"seconds": time.perf_counter() - start, "last epoch": clock.times[-1][0] - clock.times[-2][0]}
    return [{"model": name, "variant": variant, **seconds, **loss}]


def precision(args: argparse.Namespace) -> dict[str, pd.DataFrame]:
    """All trainings in single, in mixed precision and compiled."""
    rows = []
    for skip in range(5):
        for variant in args.variants:
            rows += in_process(precision_rows, args.threads, variant, skip)
            print(rows[-1], file=sys.stderr, flush=True)
    return {"precision": pd.DataFrame(rows).round(3)}


# ---- several processes


def train_in_processes(model_name: str, seed: int, devices: int, epochs: int, out: Path) -> None:
    """Train on as many processes, each with its share of a mini-batch, and write the losses of the epochs."""
    prepare(1)
    scvi.settings.seed = seed
    options = {**QUIET, "max_epochs": epochs, "devices": devices, "logger": None, "check_val_every_n_epoch": 1}
    options |= {"strategy": "ddp_find_unused_parameters_true"} if devices > 1 else {}
    if model_name == "ScSpecies":
        data = tv.datasets.simulate_species("easy", n_cells=3000)
        context, adata = data.values()
        scvi.model.SCVI.setup_anndata(context, batch_key="batch")
        reference = tv.ScSpecies.make_context(context)
        reference.train(20, **QUIET, devices=1)
        tv.ScSpecies.setup_anndata(adata, batch_key="batch")
        model = tv.ScSpecies.from_scvi_model(reference, adata, adata.uns["orthologs"], labels_key="cell_type")
        options |= {"train_size": 0.9, "batch_size": 128 // devices}
    else:
        adata = tv.datasets.simulate_responses()
        tv.XTransferCDR.setup_anndata(adata)
        model = tv.XTransferCDR(adata)
        options |= {"train_size": 0.9, "batch_size": 32 // devices}
    model.train(**{key: value for key, value in options.items() if value is not None})
    if model.trainer.global_rank == 0:
        history = {key: table.iloc[:, 0].astype(float).tolist() for key, table in model.history.items()}
        out.write_text(json.dumps({key: history[key] for key in ("train_loss", "validation_loss")}))


def processes(args: argparse.Namespace, epochs: int = 15) -> dict[str, pd.DataFrame]:
    """Losses of one and two processes, the mean over seeds and its standard deviation."""
    rows = []
    for model_name in ("ScSpecies", "XTransferCDR"):
        for seed in args.seeds:
            for devices in (1, 2):
                with tempfile.TemporaryDirectory() as folder:
                    out = Path(folder) / "history.json"
                    call = [__file__, "--process", model_name, str(seed), str(devices), str(epochs), str(out)]
                    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
                    subprocess.run([sys.executable, *call], check=True, env=environment, capture_output=True)
                    history = json.loads(out.read_text())
                for epoch in sorted({0, 1, 4, 9, epochs - 1}):
                    losses = {key: values[epoch] for key, values in history.items()}
                    rows.append({"model": model_name, "epoch": epoch + 1, "processes": devices, "seed": seed, **losses})
    table = pd.DataFrame(rows).melt(["model", "epoch", "processes", "seed"], var_name="loss")
    groups = table.groupby(["model", "loss", "epoch", "processes"], sort=False)["value"]
    text = groups.mean().map("{:.3f}".format) + " (" + groups.std().map("{:.3f}".format) + ")"
    return {"processes": text.unstack().add_prefix("processes: ").reset_index()}


TASKS: dict[str, Callable[[argparse.Namespace], dict[str, pd.DataFrame]]] = {
    "scspecies": lambda args: {"scspecies": of_sizes("scspecies", args)},
    "peer": lambda args: {"peer": of_sizes("peer", args)},
    "xtransfercdr": lambda args: {"xtransfercdr": of_sizes("xtransfercdr", args)},
    "search": search,
    "floor": floor,
    "profile": profile,
    "precision": precision,
    "processes": processes,
}


def main() -> None:
    """Run the tasks and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[5_000, 20_000, 100_000], help="cells of either species"
    )
    parser.add_argument("--search-sizes", type=int, nargs="+", default=[5_000, 10_000, 20_000, 100_000])
    parser.add_argument("--exact-up-to", type=int, default=100_000, help="cells of the search")
    parser.add_argument("--pynndescent-up-to", type=int, default=20_000)
    parser.add_argument("--storage", nargs="+", choices=["memory", "backed"], default=["memory"])
    parser.add_argument("--limit", type=float, default=16, help="gigabytes that the peer may take")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the processes")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--accelerator", default="cpu", help="cpu, gpu or mps; for all but search, floor and processes")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), help="of precision")
    parser.add_argument("--out", type=Path, help="folder for the tables as CSV files")
    parser.add_argument("--process", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.process:
        model_name, seed, devices, epochs, out = args.process
        return train_in_processes(model_name, int(seed), int(devices), int(epochs), Path(out))
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[variable] = str(args.threads)  # read by the processes when they start
    os.environ[ACCELERATOR] = args.accelerator
    for task in args.only:
        start = time.perf_counter()
        for name, table in TASKS[task](args).items():
            print(f"\n{name} ({time.perf_counter() - start:.0f} s)\n{table.to_string(index=False)}", flush=True)
            if args.out:
                args.out.mkdir(parents=True, exist_ok=True)
                table.to_csv(args.out / f"{name}.csv", index=False)


if __name__ == "__main__":
    main()
