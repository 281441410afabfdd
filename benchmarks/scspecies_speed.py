"""Speed and memory of scSpecies: beside a plain SCVI of the same network, and beside the package scspecies 0.1.4.

    pip install "transverse[bench]"
    python benchmarks/scspecies_speed.py
    python benchmarks/scspecies_speed.py --cells 20000 --genes 4000 --epochs 2 --out speed.csv
    python benchmarks/scspecies_speed.py --skip-reference

Context and target are simulated: about a tenth of the counts are above zero, 80 % of the genes have a one-to-one
orthologue, three batches each. Every tool runs on the CPU in a process of its own, with the same number of threads. The
processes take turns, one at a time, so that other load on the machine hits all alike. Set-up and the first epoch of every
turn are left out. Wall time suffers from other load, processor time much less: read the ratios of both.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, redirect_stdout
from math import ceil
from multiprocessing import get_context
from pathlib import Path

import anndata as ad
import pandas as pd
import scvi
import torch
from lightning.pytorch import Callback

import transverse as tv

try:
    import resource
except ImportError:  # Windows
    resource = None

BATCH_SIZE = 128
QUANTILES = (0.8, 0.6, 0.0)  # the most memory last: the peak of a process never falls
REFERENCE_STEP = "alignment epoch, upper 20 %"
QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "batch_size": BATCH_SIZE, "train_size": 1.0}

# A step takes a number of epochs, runs one more, and returns the wall and processor seconds of all but the first.
Seconds = list[tuple[float, float]]
Step = Callable[[int], Seconds]


def now() -> tuple[float, float]:
    """Wall and processor time of this process, in seconds."""
    return time.perf_counter(), time.process_time()


def differences(times: list[tuple[float, float]]) -> Seconds:
    """Seconds between successive readings of the clocks."""
    return [(b[0] - a[0], b[1] - a[1]) for a, b in zip(times[:-1], times[1:], strict=True)]


class EpochClock(Callback):
    """Reads the clocks at the end of every training epoch."""

    def __init__(self):
        self.times = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.times.append(now())


def simulate(folder: Path, n_cells: int, n_genes: int, seed: int) -> str:
    """Write context and target, whose orthologues share their names, and return a line that describes them."""
    n_shared = int(0.8 * n_genes)
    data = tv.datasets.simulate_species(
        "easy",
        species=("context", "target"),
        n_cells=n_cells,
        n_shared_genes=n_shared,
        n_specific_genes=n_genes - n_shared,
        n_types=6,
        n_batches=3,
        size_ratio=4.0,
        many_to_many=0.0,
        unmeasured_share=0.0,
        library_size=0.16 * n_genes,
        seed=seed,
    )
    density = []
    for name, full in data.items():
        names = full.var_names.to_series()
        if name == "target":
            names = names.mask(full.var["ortholog"] != "", full.var["ortholog"])
        adata = ad.AnnData(full.X, obs=full.obs[["batch", "cell_type"]])
        adata.var_names = names.to_numpy().astype(str)
        adata.write_h5ad(folder / f"{name}.h5ad")
        density.append(f"{adata.X.nnz / (adata.n_obs * adata.n_vars):.1%}")
    return (
        f"{n_cells} + {n_cells} cells x {n_genes} genes, {n_shared} orthologues, "
        f"{density[0]} and {density[1]} of the counts above zero"
    )


def read(folder: Path) -> tuple[ad.AnnData, ad.AnnData]:
    """Context and target."""
    return ad.read_h5ad(folder / "context.h5ad"), ad.read_h5ad(folder / "target.h5ad")


def scvi_steps(folder: Path) -> dict[str, Step]:
    """Training of a plain SCVI on the target, with the network and likelihood of ScSpecies."""
    _, target = read(folder)
    scvi.model.SCVI.setup_anndata(target, batch_key="batch")
    model = tv.ScSpecies.make_context(target)

    def training(epochs: int) -> Seconds:
        clock = EpochClock()
        model.train(epochs + 1, callbacks=[clock], **QUIET)
        return differences(clock.times)

    return {"training epoch": training}


def transverse_steps(folder: Path) -> dict[str, Step]:
    """ScSpecies with 25 candidates: its defaults for several shares of aligned cells, and the paper's choices."""
    context, target = read(folder)
    scvi.model.SCVI.setup_anndata(context, batch_key="batch")
    reference = tv.ScSpecies.make_context(context)
    reference.train(1, **QUIET)
    tv.ScSpecies.setup_anndata(target, batch_key="batch")

    def alignment(quantile: float, **kwargs) -> Step:
        model = tv.ScSpecies.from_scvi_model(reference, target, labels_key="cell_type", **kwargs)

        def step(epochs: int) -> Seconds:
            clock = EpochClock()
            model.train(epochs + 1, agreement_quantile=quantile, callbacks=[clock], **QUIET)
            return differences(clock.times)

        return step

    steps = {f"alignment epoch, quantile {quantile}": alignment(quantile) for quantile in QUANTILES}
    steps["alignment epoch, quantile 0.8, ZINB"] = alignment(0.8, gene_likelihood="zinb")
    steps["alignment epoch, quantile 0.8, ZINB, chosen in every step"] = alignment(
        0.8, gene_likelihood="zinb", rescore_every=1
    )
    return steps


def scspecies_steps(folder: Path) -> dict[str, Step]:
    """The package scspecies 0.1.4 with its defaults: 25 candidates for the upper 20 % of the cells."""
    import mudata
    import muon

    muon.set_options = mudata.set_options  # muon has no longer the option that scspecies sets
    from scspecies.models import scSpecies
    from scspecies.preprocessing import create_mdata

    os.chdir(folder)  # it writes into the working directory
    context, target = read(folder)
    # one taxon for both, so that it matches names of genes and needs no network
    shared = {"batch_key": "batch", "cell_key": "cell_type", "NCBI_Taxon_ID": 10090}
    with redirect_stdout(io.StringIO()):
        data = create_mdata(context, dataset_name="context", min_non_zero_genes=0.0, **shared)
        data.setup_target_adata(target, dataset_name="target", **shared)
        mdata = data.return_mdata()
        model = scSpecies("cpu", mdata, str(folder), context_key="context", target_key="target")
        model.train_context(1, save_model=False)
        model.get_representation("context", save_intermediate=True)

    def one_by_one(train: Callable) -> Step:
        # it has no callbacks: a call trains a single epoch, and copies the counts into a dense array (about 1 % of it)
        def step(epochs: int) -> Seconds:
            times = []
            with redirect_stdout(io.StringIO()):
                for _ in range(epochs + 1):
                    train(1, save_model=False)
                    times.append(now())
            return differences(times)

        return step

    return {
        "context epoch": one_by_one(model.train_context),
        REFERENCE_STEP: one_by_one(model.train_target),
    }


# Steps of every process, in the order of their turns: label transfer, fold changes and similarities can join them.
PARTS = {"SCVI": scvi_steps, "transverse": transverse_steps, "scspecies": scspecies_steps}
_steps: dict[str, Step] = {}


def start(part: str, folder: Path, threads: int) -> list[str]:
    """Set up a part in its process, and return the names of its steps."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(threads)
    scvi.settings.seed = 0
    _steps.update(PARTS[part](folder))
    return list(_steps)


def take_turn(step: str, epochs: int) -> Seconds:
    """Run one of the steps of this process."""
    return _steps[step](epochs)


def peak_memory() -> float:
    """Most memory, in MiB, that this process has held so far."""
    if resource is None:
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def measure(args: argparse.Namespace, parts: list[str]) -> tuple[pd.DataFrame, float]:
    """One row per measured epoch, and the memory of a process that has only imported everything."""
    rows = []
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        process = {"max_workers": 1, "mp_context": get_context("spawn")}
        pools = {part: stack.enter_context(ProcessPoolExecutor(**process)) for part in parts}
        with ProcessPoolExecutor(**process) as pool:
            imported = pool.submit(peak_memory).result()
            print(pool.submit(simulate, folder, args.cells, args.genes, args.seed).result(), flush=True)
        steps = {part: pool.submit(start, part, folder, args.threads).result() for part, pool in pools.items()}
        for repeat in range(args.repeats):
            for part, pool in pools.items():
                for step in steps[part]:
                    seconds = pool.submit(take_turn, step, args.epochs).result()
                    peak = pool.submit(peak_memory).result()
                    n_steps = args.cells / BATCH_SIZE
                    n_steps = int(n_steps) if part == "scspecies" else ceil(n_steps)  # it drops the last mini-batch
                    row = {"repeat": repeat, "part": part, "step": step, "mini-batches": n_steps, "peak MiB": peak}
                    rows += [{**row, "wall": wall, "cpu": cpu} for wall, cpu in seconds]
                    print(f"repeat {repeat}  {part:10s}  {step:28s}  {seconds[-1][0]:.2f} s", flush=True)
    return pd.DataFrame(rows), imported


def summarize(table: pd.DataFrame) -> pd.DataFrame:
    """Seconds per epoch of every step, and its ratios to an epoch of SCVI and to one of scspecies."""
    groups = table.groupby(["part", "step"], sort=False)
    wall, cpu = groups["wall"].median(), groups["cpu"].median()

    def low_high(seconds: pd.Series) -> str:
        return f"{seconds.min():.2f}-{seconds.max():.2f}"

    def in_both(wall_ratio: pd.Series, cpu_ratio: pd.Series, digits: int) -> pd.Series:
        return wall_ratio.map(f"{{:.{digits}f}}".format) + cpu_ratio.map(f" ({{:.{digits}f}})".format)

    summary = pd.DataFrame(
        {
            "epochs": groups.size(),
            "mini-batches": groups["mini-batches"].first(),
            "wall s": wall.map("{:.2f}".format),
            "min-max": groups["wall"].agg(low_high),
            "cpu s": cpu.map("{:.2f}".format),
            "min-max cpu": groups["cpu"].agg(low_high),
            # of the first turn: by the later ones, other steps have left their own
            "peak MiB": groups["peak MiB"].first().map("{:.0f}".format),
            "/ SCVI": in_both(wall / wall["SCVI"].iloc[0], cpu / cpu["SCVI"].iloc[0], 2),
        }
    )
    if "scspecies" in wall.index:
        reference = ("scspecies", REFERENCE_STEP)
        ratio = in_both(wall[reference] / wall, cpu[reference] / cpu, 1)
        summary["scspecies /"] = ratio.where(ratio.index.get_level_values("part") == "transverse", "")
    return summary.reset_index()


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=5000, help="of either species")
    parser.add_argument("--genes", type=int, default=2000, help="of either species")
    parser.add_argument("--epochs", type=int, default=3, help="measured in every turn, after one that is not")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3, help="turns of every step")
    parser.add_argument("--seed", type=int, default=0, help="of the simulation")
    parser.add_argument("--skip-reference", action="store_true", help="leave scspecies out")
    parser.add_argument("--out", type=Path, help="CSV file for every measured epoch")
    args = parser.parse_args()
    parts = list(PARTS)
    if args.skip_reference:
        parts.remove("scspecies")
    elif missing := [name for name in ("scspecies", "muon") if importlib.util.find_spec(name) is None]:
        print(f'Without the reference: {" and ".join(missing)} not found. Install: pip install "transverse[bench]"')
        parts.remove("scspecies")
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[variable] = str(args.threads)  # read by the processes when they start
    table, imported = measure(args, parts)
    if args.out:
        table.to_csv(args.out, index=False)
    print(f"\n{args.threads} thread(s), mini-batches of {BATCH_SIZE}, seconds per epoch: median, and lowest to highest")
    print(summarize(table).to_string(index=False))
    print(
        f"Ratios of wall (processor) time. Peak: of the process up to that step, {imported:.0f} MiB of it imports. "
        "Targets: alignment / SCVI at most 1.5, scspecies / alignment at least 4."
    )


if __name__ == "__main__":
    main()
