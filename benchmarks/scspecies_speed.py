"""Speed and memory of scSpecies: beside a plain SCVI of the same network, and beside the package scspecies 0.1.4.

    pip install "transverse[bench]"
    python benchmarks/scspecies_speed.py
    python benchmarks/scspecies_speed.py --cells 20000 --genes 4000 --epochs 2 --out speed.csv
    python benchmarks/scspecies_speed.py --skip-reference
    python benchmarks/scspecies_speed.py --measure calls --cells 2000 --genes 2000

Context and target are simulated: about a tenth of the counts are above zero, 80 % of the genes have a one-to-one
orthologue, three batches each. Every tool runs on the CPU in a process of its own, with the same number of threads. The
processes take turns, one at a time, so that other load on the machine hits all alike. Set-up and the first epoch of every
turn are left out. Wall time suffers from other load, processor time much less: read the ratios of both.

Calls after training (label transfer, fold changes, similarity of cell types) run once, without a warm-up, each in a process
of its own that has trained both models for one epoch; the processes of the two tools alternate. Both tools get the same
definition: a library encoder, dispersions by batch, orthologues and other genes normalised apart, the same cells and types,
known labels of the target. Hidden layers have 300 and 200 units in scspecies, 300 and 300 in transverse.

- Label transfer: the 250 nearest context cells of every target cell ranked by likelihood, 25 vote.
- Fold changes: ``--lfc-samples`` latent variables of the target's cells for each type, decoded by both species and averaged
  over all batches. scspecies rounds their number down to a multiple of the cells. Under ZINB it multiplies the proportions
  by one minus the dropout probability, so that only NB has one definition.
- Similarity: for every pair of types, ``--similarity`` target and context cells. scspecies draws the context cells anew for
  every target cell, transverse for every mini-batch.

The representations of all cells are part of the set-up in scspecies; in transverse only those of the context are, the
target's cells are encoded within the call.
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
from dataclasses import dataclass
from functools import partial
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
# the width of scspecies' last hidden layer, whose product with the genes is most of the decoder's work
N_HIDDEN = 300
CALLS = (
    "label transfer, NB",
    "label transfer, ZINB",
    "fold changes, NB",
    "fold changes, ZINB",
    "similarity, NB",
    "similarity, ZINB",
)
QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "batch_size": BATCH_SIZE, "train_size": 1.0}

# A step takes a number of epochs, runs one more, and returns the wall and processor seconds of all but the first; that of a
# call ignores the number and runs once.
Seconds = list[tuple[float, float]]
Step = Callable[[int], Seconds]


def now() -> tuple[float, float]:
    """Wall and processor time of this process, in seconds."""
    return time.perf_counter(), time.process_time()


def differences(times: list[tuple[float, float]]) -> Seconds:
    """Seconds between successive readings of the clocks."""
    return [(b[0] - a[0], b[1] - a[1]) for a, b in zip(times[:-1], times[1:], strict=True)]


@dataclass
class Sizes:
    """Sizes of the calls, the same for both tools."""

    lfc_samples: int
    similarity: tuple[int, int]


class EpochClock(Callback):
    """Reads the clocks at the end of every training epoch."""

    def __init__(self):
        self.times = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.times.append(now())


def simulate(folder: Path, n_cells: int, n_genes: int, seed: int, n_types: int = 6) -> str:
    """Write context and target, whose orthologues share their names, and return a line that describes them."""
    n_shared = int(0.8 * n_genes)
    data = tv.datasets.simulate_species(
        "easy",
        species=("context", "target"),
        n_cells=n_cells,
        n_shared_genes=n_shared,
        n_specific_genes=n_genes - n_shared,
        n_types=n_types,
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


def once(function: Callable) -> Step:
    """The step of a single call."""

    def step(epochs: int) -> Seconds:
        with redirect_stdout(io.StringIO()):
            begin = now()
            function()
            return differences([begin, now()])

    return step


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


def scspecies_model(folder: Path, likelihood: str = "zinb"):
    """The package scspecies 0.1.4 with its defaults, its context trained for an epoch."""
    import mudata
    import muon

    muon.set_options = mudata.set_options  # muon has no longer the option that scspecies sets
    from scspecies.models import scSpecies
    from scspecies.preprocessing import create_mdata

    os.chdir(folder)  # it writes into the working directory
    context, target = read(folder)
    # one taxon for both, so that it matches names of genes and needs no network
    shared = {"batch_key": "batch", "cell_key": "cell_type", "NCBI_Taxon_ID": 10090}
    distribution = {"context_data_distr": likelihood, "target_data_distr": likelihood}
    with redirect_stdout(io.StringIO()):
        data = create_mdata(context, dataset_name="context", min_non_zero_genes=0.0, **shared)
        data.setup_target_adata(target, dataset_name="target", **shared)
        mdata = data.return_mdata()
        model = scSpecies("cpu", mdata, str(folder), context_key="context", target_key="target", **distribution)
        model.train_context(1, save_model=False)
        model.get_representation("context", save_intermediate=True, save_libsize=True)
    return model


def scspecies_steps(folder: Path) -> dict[str, Step]:
    """Training of scspecies: 25 candidates for the upper 20 % of the cells."""
    model = scspecies_model(folder)

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


def transverse_calls(folder: Path, likelihood: str, sizes: Sizes) -> dict[str, Callable]:
    """Calls of a ScSpecies that is set up as scspecies is."""
    context, target = read(folder)
    scvi.model.SCVI.setup_anndata(context, batch_key="batch")
    reference = tv.ScSpecies.make_context(context, n_hidden=N_HIDDEN, gene_likelihood=likelihood)
    reference.train(1, **QUIET)
    tv.ScSpecies.setup_anndata(target, batch_key="batch")
    model = tv.ScSpecies.from_scvi_model(
        reference, target, labels_key="cell_type", split_softmax=True, use_observed_lib_size=False
    )
    model.train(1, agreement_quantile=0.8, **QUIET)
    n_target, n_context = sizes.similarity
    return {
        "label transfer": partial(model.transfer_labels, vote="likelihood", n_candidates=250, n_neighbors=25),
        "fold changes": partial(
            model.get_cross_species_lfc, groupby="cell_type", mode="target", n_samples=sizes.lfc_samples
        ),
        "similarity": partial(
            model.get_cell_type_similarity, groupby="cell_type", n_target=n_target, n_context=n_context
        ),
    }


def scspecies_calls(folder: Path, likelihood: str, sizes: Sizes) -> dict[str, Callable]:
    """Calls of scspecies, its representations at hand."""
    model = scspecies_model(folder, likelihood)
    for name, adata in zip(("context", "target"), read(folder), strict=True):
        if model.mdata.mod[name].shape != adata.shape:  # it leaves out rare types
            raise ValueError(
                f"scspecies kept {model.mdata.mod[name].shape} of {adata.shape} in {name}: use more cells."
            )
    with redirect_stdout(io.StringIO()):
        model.train_target(1, save_model=False)
        model.get_representation("target", save_libsize=True)
    return {
        "label transfer": partial(model.transfer_labels_data, "cell_type", top_neigh=25),
        "fold changes": partial(model.compute_logfold_change, samples=sizes.lfc_samples, target_cell_key="cell_type"),
        "similarity": partial(model.return_similarity_df, *sizes.similarity),
    }


# Steps of every process, in the order of their turns.
PARTS = {"SCVI": scvi_steps, "transverse": transverse_steps, "scspecies": scspecies_steps}
CALL_PARTS = {"transverse": transverse_calls, "scspecies": scspecies_calls}
_steps: dict[str, Step] = {}


def prepare(threads: int) -> None:
    """Settings of a process."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(threads)
    scvi.settings.seed = 0


def start(part: str, folder: Path, threads: int) -> list[str]:
    """Set up a part in its process, and return the names of its steps."""
    prepare(threads)
    _steps.update(PARTS[part](folder))
    return list(_steps)


def start_call(part: str, step: str, folder: Path, threads: int, sizes: Sizes) -> None:
    """Set up the step of a call in its process."""
    prepare(threads)
    name, likelihood = step.split(", ")
    _steps[step] = once(CALL_PARTS[part](folder, likelihood.lower(), sizes)[name])


def take_turn(step: str, epochs: int) -> Seconds:
    """Run one of the steps of this process."""
    return _steps[step](epochs)


def peak_memory() -> float:
    """Most memory, in MiB, that this process has held so far."""
    if resource is None:
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


PROCESS = {"max_workers": 1, "mp_context": get_context("spawn")}


def measure_epochs(args: argparse.Namespace, parts: list[str], folder: Path) -> list[dict]:
    """One row per measured epoch."""
    rows = []
    with ExitStack() as stack:
        pools = {part: stack.enter_context(ProcessPoolExecutor(**PROCESS)) for part in parts}
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
    return rows


def measure_calls(args: argparse.Namespace, parts: list[str], folder: Path) -> list[dict]:
    """One row per call, every one in a fresh process."""
    rows = []
    sizes = Sizes(args.lfc_samples, tuple(args.similarity))
    for repeat in range(args.call_repeats):
        for step in CALLS:
            for part in (part for part in CALL_PARTS if part in parts):
                with ProcessPoolExecutor(**PROCESS) as pool:
                    pool.submit(start_call, part, step, folder, args.threads, sizes).result()
                    before = pool.submit(peak_memory).result()
                    [(wall, cpu)] = pool.submit(take_turn, step, 0).result()
                    peak = pool.submit(peak_memory).result()
                row = {"repeat": repeat, "part": part, "step": step, "set-up MiB": before, "peak MiB": peak}
                rows.append({**row, "wall": wall, "cpu": cpu})
                print(f"repeat {repeat}  {part:10s}  {step:28s}  {wall:.2f} s  {cpu:.2f} s cpu", flush=True)
    return rows


def in_both(wall_ratio: pd.Series, cpu_ratio: pd.Series, digits: int) -> pd.Series:
    """Ratios of wall time, and in brackets of processor time."""
    return wall_ratio.map(f"{{:.{digits}f}}".format) + cpu_ratio.map(f" ({{:.{digits}f}})".format)


def seconds_columns(groups) -> dict[str, pd.Series]:
    """Median, lowest and highest wall and processor time of every step."""

    def low_high(seconds: pd.Series) -> str:
        return f"{seconds.min():.2f}-{seconds.max():.2f}"

    return {
        "wall s": groups["wall"].median().map("{:.2f}".format),
        "min-max": groups["wall"].agg(low_high),
        "cpu s": groups["cpu"].median().map("{:.2f}".format),
        "min-max cpu": groups["cpu"].agg(low_high),
    }


def summarize_epochs(table: pd.DataFrame) -> pd.DataFrame:
    """Seconds per epoch of every step, and its ratios to an epoch of SCVI and to one of scspecies."""
    groups = table.groupby(["part", "step"], sort=False)
    wall, cpu = groups["wall"].median(), groups["cpu"].median()
    summary = pd.DataFrame(
        {
            "epochs": groups.size(),
            "mini-batches": groups["mini-batches"].first(),
            **seconds_columns(groups),
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


def summarize_calls(table: pd.DataFrame) -> pd.DataFrame:
    """Seconds per call, and how many times those of scspecies are for the same call."""
    groups = table.groupby(["part", "step"], sort=False)
    summary = pd.DataFrame({"calls": groups.size(), **seconds_columns(groups)})
    for column in ("set-up MiB", "peak MiB"):
        summary[column] = groups[column].max().map("{:.0f}".format)
    wall, cpu = groups["wall"].median(), groups["cpu"].median()
    if "scspecies" in wall.index:
        ratio = in_both(wall["scspecies"] / wall["transverse"], cpu["scspecies"] / cpu["transverse"], 1)
        ratio = pd.concat({"transverse": ratio})
        summary["scspecies /"] = ratio.reindex(summary.index).fillna("")
    return summary.reset_index()


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=5000, help="of either species")
    parser.add_argument("--genes", type=int, default=2000, help="of either species")
    parser.add_argument("--measure", nargs="+", choices=["epochs", "calls"], default=["epochs", "calls"])
    parser.add_argument("--epochs", type=int, default=3, help="measured in every turn, after one that is not")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3, help="turns of every step")
    parser.add_argument("--call-repeats", type=int, default=1, help="of every call after training")
    parser.add_argument("--lfc-samples", type=int, default=2000, help="latent variables of each type for fold changes")
    parser.add_argument(
        "--similarity", type=int, nargs=2, default=[100, 20], metavar=("TARGET", "CONTEXT"), help="cells of each type"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the simulation")
    parser.add_argument("--skip-reference", action="store_true", help="leave scspecies out")
    parser.add_argument("--out", type=Path, help="CSV file for every measured epoch and call")
    args = parser.parse_args()
    parts = list(PARTS)
    if args.skip_reference:
        parts.remove("scspecies")
    elif missing := [name for name in ("scspecies", "muon") if importlib.util.find_spec(name) is None]:
        print(f'Without the reference: {" and ".join(missing)} not found. Install: pip install "transverse[bench]"')
        parts.remove("scspecies")
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[variable] = str(args.threads)  # read by the processes when they start
    epochs, calls = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with ProcessPoolExecutor(**PROCESS) as pool:
            imported = pool.submit(peak_memory).result()
            print(pool.submit(simulate, folder, args.cells, args.genes, args.seed).result(), flush=True)
        if "epochs" in args.measure:
            epochs = measure_epochs(args, parts, folder)
        if "calls" in args.measure:
            calls = measure_calls(args, parts, folder)
    if args.out:
        pd.DataFrame(epochs + calls).to_csv(args.out, index=False)
    print(f"\n{args.threads} thread(s), mini-batches of {BATCH_SIZE}; median, and lowest to highest")
    if epochs:
        print(f"\nSeconds per epoch\n{summarize_epochs(pd.DataFrame(epochs)).to_string(index=False)}")
        print("Targets: alignment / SCVI at most 1.5, scspecies / alignment at least 4.")
    if calls:
        n_target, n_context = args.similarity
        print(
            f"\nSeconds per call: fold changes with {args.lfc_samples} samples of each type, similarity of {n_target} target "
            f"and {n_context} context cells of each type\n{summarize_calls(pd.DataFrame(calls)).to_string(index=False)}"
        )
        print("Target: scspecies / transverse at least 20.")
    print(f"Ratios of wall (processor) time. Peak: of the process up to that step, {imported:.0f} MiB of it imports.")


if __name__ == "__main__":
    main()
