"""DeepCellState beside copies of the source, means and ridge regression, and beside the noise.

    python benchmarks/deepcellstate.py --data ../shared/data
    python benchmarks/deepcellstate.py --only simulated parts --folds 1 --out results

Simulated signatures (``tv.datasets.simulate_signatures``: 1,500 drugs, three cell types, 978 genes; noise-free signatures are
known, so that the best possible score is, too). Scores are mean Pearson correlations over genes:

- ``simulated``: held-out drugs, in folds; one cell type from another, and from both others
- ``families``: held-out families of drugs
- ``unseen_source``: from a cell type that the training has nothing of
- ``reduced``: 70 % fewer profiles of the source, of the target, or of both
- ``latent``: width of the latent space
- ``parts``: without parts of the network and of its regularisation
- ``architectures``: dense and pointwise layers, narrow and on fewer genes

Real data (see the README of the data folder):

- ``l1000``: three drugs in many cell lines, one line held out at a time, as in ``benchmarks/baselines.py``

And:

- ``speed``: an epoch beside a bare PyTorch loop over tensors in memory, and 10,000 predictions
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import scvi
import torch
from anndata import AnnData
from baselines import SIGNATURE_BASELINES, run, wide

import transverse as tv

THREADS = 1
QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}
BASELINES = {
    "copy of the source": lambda: tv.baselines.CopySource("random"),
    "mean of the sources": tv.baselines.MeanOfSources,
    "mean signature, drug ignored": tv.baselines.MeanSignature,
    "ridge": tv.baselines.RidgeSignature,
}


def trained(train: AnnData, seed: int, name: str = "DeepCellState", **options) -> tv.DeepCellState:
    """A model of the training signatures; ``options`` are of the constructor, but ``training``."""
    scvi.settings.seed = seed
    training = options.pop("training", {})
    tv.DeepCellState.setup_anndata(train)
    model = tv.DeepCellState(train, **options)
    torch.set_num_threads(THREADS)
    start = time.process_time()
    model.train(**QUIET, **training)
    print(f"  {name}, seed {seed}: {time.process_time() - start:.0f} s", file=sys.stderr, flush=True)
    return model


class Simulation:
    """Simulated signatures, and drugs in folds."""

    def __init__(self, n_folds: int = 5, by: str = "perturbation", **options):
        self.adata = tv.datasets.simulate_signatures(**options)
        self.drugs = self.adata.obs["perturbation"].astype(str).to_numpy()
        self.cell_types = self.adata.obs["cell_type"].astype(str).to_numpy()
        groups = self.adata.obs[by].astype(str).to_numpy()
        names = np.unique(groups)
        fold = dict(zip(names, np.random.default_rng(0).permutation(len(names)) % n_folds, strict=True))
        self.fold = np.array([fold[name] for name in groups])

    def training(self, fold: int, cell_types: Iterable[str] | None = None) -> AnnData:
        """Signatures of the other folds."""
        keep = self.fold != fold
        if cell_types is not None:
            keep &= np.isin(self.cell_types, list(cell_types))
        adata = self.adata[keep].copy()
        adata.obs["cell_type"] = adata.obs["cell_type"].cat.remove_unused_categories()
        return adata

    def held_out(self, fold: int, *cell_types: str) -> AnnData:
        """Signatures of the fold in some cell types."""
        return self.adata[(self.fold == fold) & np.isin(self.cell_types, cell_types)].copy()


def pearson(truth: AnnData, pred: AnnData) -> float:
    """Mean over signatures of the correlation over genes."""
    scores = tv.metrics.signature_scores(truth, pred)
    return float(scores.loc[scores["metric"] == "pearson", "value"].mean())


def best_possible(truth: AnnData) -> float:
    """The score of the noise-free signatures."""
    return pearson(truth, AnnData(truth.layers["expected"], obs=truth.obs, var=truth.var))


def scores_of(
    sim: Simulation, fold: int, train: AnnData, sources: Iterable[str], target: str, models: dict[str, Callable]
) -> dict[str, float]:
    """Scores of models and baselines for one target."""
    truth, given = sim.held_out(fold, target), sim.held_out(fold, *sources)
    scores = {name: pearson(truth, model(train, fold).predict(given, target)) for name, model in models.items()}
    for name, baseline in BASELINES.items():
        scores[name] = pearson(truth, baseline().fit(train).predict(given, target))
    return scores | {"noise-free signatures": best_possible(truth)}


def mean_table(rows: list[dict]) -> pd.DataFrame:
    """Mean over folds, with the standard deviation over them, and the ratio to the copy."""
    scores = pd.DataFrame(rows)
    by = [key for key in ("task", "variant") if key in scores]
    values = [key for key in scores if key not in (*by, "fold")]
    mean, sd = (getattr(scores.groupby(by, sort=False)[values], what)() for what in ("mean", "std"))
    table = mean.map("{:.3f}".format)
    if scores["fold"].nunique() > 1:
        table = table + " (" + sd.map("{:.3f}".format) + ")"
    if {"DeepCellState", "copy of the source"} <= set(values):
        table.insert(1, "fold over the copy", (mean["DeepCellState"] / mean["copy of the source"]).map("{:.2f}".format))
    return table.reset_index()


def one_model(**options) -> dict[str, Callable]:
    """DeepCellState, trained once for equal training data."""
    last = {}

    def method(train: AnnData, seed: int) -> tv.DeepCellState:
        key = (tuple(train.obs_names), seed)
        if last.get("key") != key:
            last.update(key=key, model=trained(train, seed, **options))
        return last["model"]

    return {"DeepCellState": method}


def simulated(folder: Path, folds: int) -> dict[str, pd.DataFrame]:
    """Held-out drugs, with both presets of the simulation."""
    rows = []
    for preset, n in {"nonlinear": folds, "linear": min(folds, 2)}.items():
        sim, models = Simulation(preset=preset), one_model()
        for fold in range(n):
            three = sim.training(fold)
            for task, sources in {"one source": ["C1"], "two sources": ["C1", "C3"]}.items():
                scores = scores_of(sim, fold, three, sources, "C2", models)
                rows.append({"task": f"{preset}, three cell types, {task}", "fold": fold, **scores})
            if preset == "linear":
                continue
            two = sim.training(fold, ["C1", "C2"])
            scores = scores_of(sim, fold, two, ["C1"], "C2", one_model())
            rows.append({"task": f"{preset}, two cell types", "fold": fold, **scores})
    return {"simulated": mean_table(rows)}


def families(folder: Path, folds: int) -> dict[str, pd.DataFrame]:
    """Held-out families, beside held-out drugs."""
    rows = []
    for name, by in {"drugs": "perturbation", "families": "mechanism"}.items():
        sim = Simulation(by=by)
        for fold in range(folds):
            scores = scores_of(sim, fold, sim.training(fold, ["C1", "C2"]), ["C1"], "C2", one_model())
            rows.append({"task": f"held-out {name}", "fold": fold, **scores})
    return {"families": mean_table(rows)}


def unseen_source(folder: Path, folds: int) -> dict[str, pd.DataFrame]:
    """From C1, with and without C1 in the training."""
    sim, rows = Simulation(), []
    for fold in range(folds):
        for task, cell_types in {"C1 in the training": None, "C1 unseen": ["C2", "C3"]}.items():
            scores = scores_of(sim, fold, sim.training(fold, cell_types), ["C1"], "C2", one_model())
            rows.append({"task": task, "fold": fold, **scores})
    return {"unseen_source": mean_table(rows)}


def reduced(folder: Path, folds: int) -> dict[str, pd.DataFrame]:
    """C2 from C1, with 70 % fewer training profiles."""
    sim, rows = Simulation(), []
    for fold in range(folds):
        full = sim.training(fold, ["C1", "C2"])
        names = np.unique(full.obs["perturbation"].astype(str))
        few = np.random.default_rng(fold).choice(names, round(0.3 * len(names)), replace=False)
        lost = ~full.obs["perturbation"].isin(few).to_numpy()
        for task, cell_types in {
            "all profiles": [],
            "70 % fewer of the source": ["C1"],
            "70 % fewer of the target": ["C2"],
            "70 % fewer of both": ["C1", "C2"],
        }.items():
            train = full[~(lost & full.obs["cell_type"].isin(cell_types).to_numpy())].copy()
            rows.append({"task": task, "fold": fold, **scores_of(sim, fold, train, ["C1"], "C2", one_model())})
    return {"reduced": mean_table(rows)}


def variants(sim: Simulation, options: dict[str, dict], folds: int) -> pd.DataFrame:
    """Models with other arguments, of two cell types."""
    rows = []
    for fold in range(folds):
        train = sim.training(fold, ["C1", "C2"])
        for name, changes in options.items():
            model = trained(train, fold, name, **changes)
            score = pearson(sim.held_out(fold, "C2"), model.predict(sim.held_out(fold, "C1"), "C2"))
            print(f"  {name}: {score:.4f}", file=sys.stderr, flush=True)
            rows.append({"variant": name, "fold": fold, "C2 from C1": score})
    return mean_table(rows)


def latent(folder: Path, folds: int) -> dict[str, pd.DataFrame]:
    """Width of the latent space."""
    return {"latent": variants(Simulation(), {str(n): {"n_latent": n} for n in (8, 16, 32, 64, 128)}, folds)}


NOTHING = {"skip": "none", "input_dropout_rate": 0.0, "decoder_dropout_rate": 0.0, "latent_l1": 0.0}
PARTS = {
    "default": {},
    "preset 0": {"preset": 0},
    "preset 1": {"preset": 1},
    "preset 2": {"preset": 2},
    "preset 3": {"preset": 3},
    "no skip connection": {"skip": "none"},
    "tied masks": {"skip": "tied"},
    "no input dropout": {"input_dropout_rate": 0.0},
    "no decoder dropout": {"decoder_dropout_rate": 0.0},
    "no skip, dropout and L1": NOTHING,
    "no autoencoder stage": {"training": {"stages": ["decoders", "frozen"]}},
    "no frozen stage": {"training": {"stages": ["autoencoder", "decoders"]}},
}


def parts(folder: Path, folds: int) -> dict[str, pd.DataFrame]:
    """Without parts of the network, its regularisation and its training."""
    return {"parts": variants(Simulation(), PARTS, folds)}


def architectures(folder: Path, folds: int) -> dict[str, pd.DataFrame]:
    """Dense and pointwise layers of the same narrow widths, where the latter are affordable on a CPU."""
    sim = Simulation(n_drugs=600, n_genes=200)
    options = {
        "dense": {"n_hidden": (64, 32), "n_latent": 64},
        "pointwise": {"n_hidden": (64, 32), "n_latent": 64, "architecture": "pointwise"},
        "dense, default widths": {},
    }
    return {"architectures": variants(sim, options, folds)}


def l1000(folder: Path, folds: int) -> dict[str, pd.DataFrame]:
    """A drug in a fifth of the lines held out at a time, of lines with another drug for a decoder to learn from."""
    adata = tv.datasets.read_gctx(folder / "l1000_modz.gctx")
    adata = adata[adata.obs["perturbation"].notna() & adata.obs["cell_type"].notna()].copy()
    adata = tv.pp.average_signatures(adata)
    conditions = adata.obs[["perturbation", "cell_type"]].astype(str)
    lines = conditions.groupby("cell_type").size()
    lines = lines.index[lines > 1].to_numpy()
    fold = dict(zip(lines, np.random.default_rng(0).permutation(len(lines)) % 5, strict=True))
    conditions["fold"] = conditions["cell_type"].map(fold)
    splits = {
        f"{drug}, {int(i)}": list(held[["perturbation", "cell_type"]].itertuples(index=False, name=None))
        for (drug, i), held in conditions.dropna().groupby(["perturbation", "fold"])
    }
    models = {"DeepCellState": lambda train, seed: trained(train, seed)}
    table = tv.benchmark(adata, models, task="signatures", splits=splits, seeds=[0], baselines=SIGNATURE_BASELINES)
    scores = {name: ("signature", "all", name.lower()) for name in ("Pearson", "Spearman", "RMSE", "R2")}
    return {"l1000": wide(table, scores, ["of", "genes", "metric"])}


def bare_loop(model: tv.DeepCellState, batches: list[dict[str, torch.Tensor]]) -> float:
    """Seconds of processor time of an epoch in plain PyTorch, with mini-batches that are ready in memory."""
    module = model.module.train()
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    start = time.process_time()
    for tensors in batches:
        _, _, output = module(tensors)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    return time.process_time() - start


def speed(folder: Path, folds: int) -> dict[str, pd.DataFrame]:
    """Processor time of an epoch, ours and bare, taking turns; and of predictions."""
    from transverse.deepcellstate._pairs import PairDataset, TurnSampler

    adata = tv.datasets.simulate_signatures()
    tv.DeepCellState.setup_anndata(adata)
    model = tv.DeepCellState(adata)
    options = {**QUIET, "early_stopping": False, "stages": ["decoders"], "train_size": 1.0}
    grid = model._grid()
    pairs = grid.pairs(np.arange(adata.n_obs), "both")
    ours, bare = [], []
    torch.set_num_threads(THREADS)
    # the first epoch of a fit pays for starting it: two lengths, and their difference
    for turn in range(3):
        seconds = {}
        for epochs in (1, 2):
            start = time.process_time()
            model.train(max_epochs=epochs, **options)
            seconds[epochs] = time.process_time() - start
        ours.append(seconds[2] - seconds[1])
        dataset = PairDataset(model.adata_manager)
        bare.append(bare_loop(model, [dataset[rows] for rows in TurnSampler(pairs, 128, turn, n_passes=2)]))
    many = adata[np.random.default_rng(0).integers(adata.n_obs, size=10_000)].copy()
    many.obs_names_make_unique()
    many.obs["perturbation"] = [f"D{i}" for i in range(many.n_obs)]
    start = time.perf_counter()
    pred = model.predict(many, "C1", allow_leak=True)
    seconds = time.perf_counter() - start
    row = {
        "bare loop, s": round(min(bare), 2),
        "ours, s": round(min(ours), 2),
        "ratio": round(min(ours) / min(bare), 2),
        f"{pred.n_obs} predictions, s": round(seconds, 2),
    }
    return {"speed": pd.DataFrame([row])}


TASKS: dict[str, Callable[[Path, int], dict[str, pd.DataFrame]]] = {
    "simulated": simulated,
    "families": families,
    "unseen_source": unseen_source,
    "reduced": reduced,
    "latent": latent,
    "parts": parts,
    "architectures": architectures,
    "l1000": l1000,
    "speed": speed,
}


def main() -> None:
    """Run the tasks and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the real data")
    parser.add_argument("--only", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--folds", type=int, default=5, help="how many of the five folds to run")
    parser.add_argument("--few-folds", type=int, default=1, help="the same for all tasks but the first")
    parser.add_argument("--variants", nargs="+", choices=list(PARTS), help="rows of the parts; by default all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder for the tables as CSV files")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    global THREADS
    THREADS = args.threads
    torch.set_num_threads(THREADS)
    for name in set(PARTS) - set(args.variants or PARTS):
        del PARTS[name]
    tasks = {}
    for name, task in TASKS.items():
        n = args.folds if name == "simulated" else args.few_folds
        tasks[name] = lambda folder, _, task=task, n=n: task(folder, n)
    args.seeds = None
    run(tasks, args)


if __name__ == "__main__":
    main()
