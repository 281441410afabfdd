"""UGE beside maps by name and by raw reactomes, votes of orthologues, raw shifts and random order.

    python benchmarks/uge.py --data ../shared/data
    python benchmarks/uge.py --only simulated experiments --seeds 0 --out results

Simulated reactomes (``tv.datasets.simulate_reactomes``: mouse and rat, 600 genes, 10 organs, 3 drugs, 30 % of the genes diverged
from their namesakes; the noise-free changes are known):

- ``simulated``: one training for each seed, with six conditions of the rat held out and 2 of 12 rats of every treatment never
  shown, and labels learnt from the mouse alone. Genes mapped, organ and drug of the rats that were never shown, changes under
  the conditions held out
- ``losses``: without each term of the loss, and without showing samples as the other species
- ``extension``: a drug that is new, from two organs; a species that is new
- ``experiments``: error of the predicted reactome after each batch of experiments, suggested or in random order

Real data (see the README of the data folder), with the names of genes hidden from the model:

- ``organs``: six organs of human and mouse; one sample of each organ of the target is labelled, or all but one organ
- ``rodents``: organs of the mouse (one mean each), and liver, spleen and blood of the rat

And:

- ``memory``: seconds and peak memory of a training step against genes of a sample
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
from baselines import read_organs, run
from sklearn.neighbors import KNeighborsClassifier

import transverse as tv
from transverse.uge._gene_map import assignment, similarity_of

QUIET = {"enable_progress_bar": False, "accelerator": "cpu", "enable_model_summary": False}
SIZE = {"preset": "tiny", "n_latent": 64}
EPOCHS = {"genes": 10, "samples": 20}
K = (1, 10)


def trained(adata: AnnData, seed: int, setup: dict | None = None, size: dict | None = None, **training) -> tv.UGE:
    """A model of stacked data."""
    scvi.settings.seed = seed
    tv.UGE.setup_anndata(adata, **(setup or {}))
    model = tv.UGE(adata, **{**SIZE, **(size or {})})
    start = time.process_time()
    model.train(**{"max_epochs": EPOCHS, **QUIET, **training})
    print(f"  seed {seed}: {time.process_time() - start:.0f} s of training", file=sys.stderr, flush=True)
    return model


def summary(rows: list[dict]) -> pd.DataFrame:
    """Mean over seeds, and the standard deviation over them."""
    scores = pd.DataFrame(rows)
    by = [key for key in scores if scores[key].dtype == object or key == "added"]
    values = [key for key in scores if key not in (*by, "seed")]
    groups = scores.groupby(by, sort=False)[values]
    mean, sd = groups.mean(), groups.std()
    table = mean.map("{:.3f}".format)
    if scores["seed"].nunique() > 1:
        table = table + " (" + sd.map("{:.3f}".format) + ")"
    return table.where(mean.notna(), "").reset_index()


class Simulation:
    """Two species, with conditions held out and animals never shown."""

    def __init__(self, seed: int, **options):
        self.seed = seed
        self.data = tv.datasets.simulate_reactomes(seed=seed, **options)
        self.adata = tv.pp.stack_species(self.data)
        self.rat, self.mouse = self.data["rat"], self.data["mouse"]
        rng = np.random.default_rng(seed)
        obs = self.adata.obs
        animals = obs[obs["species"] == "rat"].drop_duplicates("animal")
        hidden = (
            animals.groupby("drug", observed=True)["animal"].apply(lambda x: list(rng.permutation(x)[:2])).explode()
        )
        self.is_hidden = obs["animal"].isin(hidden).to_numpy()
        organs, drugs = self.rat.obs["organ"].cat.categories, [d for d in obs["drug"].cat.categories if d != "control"]
        self.hold_out = [("rat", o, drugs[i % len(drugs)]) for i, o in enumerate(rng.choice(organs, 6, replace=False))]

    @property
    def truth(self) -> pd.DataFrame:
        return self.rat.uns["gene_map"]

    def training(self) -> AnnData:
        """The data without the animals that are never shown."""
        return self.adata[~self.is_hidden].copy()

    def trained(self, size: dict | None = None, **training) -> tv.UGE:
        """A model of them."""
        options = {"hold_out": self.hold_out, "label_species": "mouse", **training}
        return trained(self.training(), self.seed, {"animal_key": "animal"}, size, **options)


def recall(gene_map: pd.DataFrame, sim: Simulation) -> dict[str, float]:
    """Recall over all genes and over the diverged ones."""
    diverged = sim.truth.loc[sim.truth["is_diverged"], "source"].tolist()
    genes = {"all": sim.truth["source"].tolist(), "diverged": diverged}
    scores = tv.metrics.gene_map_scores(gene_map, sim.truth, k=K, genes=genes, n_candidates=sim.rat.n_vars)
    scores = scores[scores["metric"].str.startswith("recall")]
    return {f"{row.metric}, {row.genes}": row.value for row in scores.itertuples()}


def maps(sim: Simulation, model: tv.UGE) -> list[dict]:
    """Genes of the mouse mapped to those of the rat."""
    is_rat = np.array([name in sim.rat.var_names for name in model.var_names_])
    names = np.array(model.var_names_, dtype=object)
    features = [np.nan_to_num(model.features_[of]) for of in (~is_rat, is_rat)]
    n = len(model.organs_) * (len(model.drugs_) - 1)

    def table(scores: np.ndarray) -> pd.DataFrame:
        return pd.DataFrame(scores, index=names[~is_rat], columns=names[is_rat])

    changes = [x[:, :n] for x in features]
    correlation = np.corrcoef(*changes)[: len(changes[0]), len(changes[0]) :]
    symbols = pd.Series(sim.rat.var_names, index=sim.rat.var["symbol"].str.upper())
    by_name = pd.DataFrame(
        {"source": sim.mouse.var_names, "target": symbols[sim.mouse.var["symbol"].str.upper()].to_numpy()}
    )
    found = {
        "UGE": model.map_genes("mouse", "rat", n_top=max(K)),
        "UGE, nearest": model.map_genes("mouse", "rat", n_top=max(K), method="nearest"),
        "the same symbol": by_name.assign(rank=1),
        "correlation of raw reactomes": table(correlation),
        "raw reactomes, assignment": table(assignment(correlation - 1, 0.02)),
        "raw reactomes, organs and level, assignment": table(assignment(similarity_of(*features), 0.02)),
    }
    return [{"method": name, "seed": sim.seed, **recall(gene_map, sim)} for name, gene_map in found.items()]


def labels(sim: Simulation, model: tv.UGE) -> list[dict]:
    """Organ and drug of the rats that were never shown, from labels of the mouse."""
    query = sim.adata[sim.is_hidden].copy()
    counterpart = sim.truth.set_index("source")["target"].reindex(sim.mouse.var_names)
    symbol = pd.Series(sim.rat.var_names, index=sim.rat.var["symbol"].str.upper())[sim.mouse.var["symbol"].str.upper()]
    best = model.map_genes("mouse", "rat", n_top=1).set_index("source")["target"].reindex(sim.mouse.var_names)
    rng = np.random.default_rng(sim.seed)
    rows: dict[str, dict] = {}
    for key in ("organ", "drug"):
        truth, known = query.obs[key].astype(str).to_numpy(), sim.mouse.obs[key].astype(str).to_numpy()
        found = model.predict_labels(key, query)
        predicted = {"UGE": found["label"].to_numpy(), "chance": rng.choice(known, len(truth))}
        predicted["majority"] = np.full(len(truth), pd.Series(known).mode()[0])
        maps = {"counterparts known": counterpart, "symbols": symbol, "genes as UGE maps them": best}
        for name, genes in maps.items():
            x, y = sim.mouse.X, query.to_df()[genes].to_numpy()
            x, y = x - x.mean(axis=0), y - np.asarray(sim.rat[:, genes.to_numpy()].X).mean(axis=0)
            vote = KNeighborsClassifier(15, metric="correlation").fit(x, known)
            predicted[f"15 neighbours, {name}"] = vote.predict(y)
        for name, labels in predicted.items():
            row = rows.setdefault(name, {"method": name, "seed": sim.seed})
            row[f"{key}, accuracy"] = float((labels == truth).mean())
    return list(rows.values())


def changes(sim: Simulation, model: tv.UGE) -> list[dict]:
    """Changes of the rat under the conditions that were held out; scores against the noise-free change, and r2 of expression."""
    genes, means = sim.rat.var_names, {}
    for name, adata in sim.data.items():
        shown = ~adata.obs["animal"].isin(sim.adata.obs.loc[sim.is_hidden, "animal"]).to_numpy()
        frame = pd.DataFrame(np.asarray(adata.X)[shown], columns=adata.var_names)
        keys = [adata.obs.loc[shown, key].astype(str).to_numpy() for key in ("organ", "drug")]
        means[name] = frame.groupby(keys).mean()
    source = sim.truth.set_index("target")["source"].reindex(genes)
    symbol = pd.Series(sim.mouse.var_names, index=sim.mouse.var["symbol"].str.upper())[
        sim.rat.var["symbol"].str.upper()
    ]
    best = model.map_genes("rat", "mouse", n_top=1).set_index("source")["target"].reindex(genes)
    out = {(o, k) for _, o, k in sim.hold_out}
    organs = means["rat"].index.get_level_values(0).unique()
    rows: dict[tuple, list] = {}
    for _, organ, drug in sim.hold_out:
        control = means["rat"].loc[(organ, "control")].to_numpy()
        there = [o for o in organs if (o, drug) not in out]
        own = np.mean([means["rat"].loc[(o, drug)] - means["rat"].loc[(o, "control")] for o in there], axis=0)
        theirs = means["mouse"].loc[(organ, drug)] - means["mouse"].loc[(organ, "control")]
        found = {
            "no change: the organ's controls": np.zeros(len(genes)),
            "shift of the rat's other organs": own,
            "shift of the mouse, by symbol": theirs[symbol.to_numpy()].to_numpy(),
            "shift of the mouse, as UGE maps genes": theirs[best.to_numpy()].to_numpy(),
            "shift of the mouse, counterparts known": theirs[source.to_numpy()].to_numpy(),
        }
        for via in ("map", "reactome", "A", "B", "C"):
            pred = model.predict("rat", organ, drug, via=via)
            found[f"UGE, via {via}"] = np.asarray(pred[:, genes].X - pred[:, genes].layers["control"]).mean(axis=0)
        true = sim.rat.uns["true_reactome"].loc[genes, f"{organ}|{drug}"].to_numpy()
        treated = means["rat"].loc[(organ, drug)].to_numpy()
        for name, change in found.items():
            pearson = np.corrcoef(change, true)[0, 1] if change.any() else np.nan
            r2 = 1 - ((true - change) ** 2).sum() / ((true - true.mean()) ** 2).sum()
            expression = np.corrcoef(control + change, treated)[0, 1] ** 2
            rows.setdefault(name, []).append((pearson, r2, expression))
    columns = ["change, Pearson", "change, R2", "expression, r2"]
    return [
        {"method": name, "seed": sim.seed, **dict(zip(columns, np.mean(values, axis=0), strict=True))}
        for name, values in rows.items()
    ]


def simulated(_: Path, seeds: list[int]) -> dict[str, pd.DataFrame]:
    """Maps, labels and changes from one training for each seed."""
    tables: dict[str, list] = {"maps": [], "labels": [], "changes": []}
    for seed in seeds:
        sim = Simulation(seed)
        model = sim.trained()
        for name, scores in (("maps", maps), ("labels", labels), ("changes", changes)):
            tables[name] += scores(sim, model)
    return {name: summary(rows) for name, rows in tables.items()}


def losses(_: Path, seeds: list[int]) -> dict[str, pd.DataFrame]:
    """Without each term, on half the genes and for fewer epochs."""
    variants = {"all terms": {}} | {
        f"no {name}": {"weights": {name: 0.0}} for name in tv.uge.LOSSES if name != "reactome"
    }
    variants["map with weight 1"] = {"weights": {"map": 1.0}}
    rows = []
    for seed in seeds:
        sim = Simulation(seed, n_genes=300)
        for name, size in {**variants, "samples of their own species only": {}}.items():
            training = {"max_epochs": {"genes": 10, "samples": 8}}
            training |= {"translated": 0.0} if name.startswith("samples") else {}
            model = sim.trained(size, **training)
            scores = {**changes_of(changes(sim, model)), **labels(sim, model)[0]}
            maps_ = maps(sim, model)[:2]
            scores |= {"recall@1": maps_[0]["recall@1, all"], "recall@1, nearest": maps_[1]["recall@1, all"]}
            rows.append({**scores, "method": name})
    return {"losses": summary(rows)}


def changes_of(rows: list[dict]) -> dict[str, float]:
    """Correlation of the change by way of predicting it."""
    return {row["method"][5:]: row["change, Pearson"] for row in rows if row["method"].startswith("UGE")}


def correlations(model: tv.UGE, species: str, truth: pd.DataFrame, entries: list[str]) -> float:
    """Mean over entries of the correlation over genes."""
    predicted = model.predict_reactome(species)
    predicted = pd.DataFrame(np.asarray(predicted.X), index=predicted.obs_names, columns=predicted.var_names)
    return float(np.mean([predicted[entry].corr(truth[entry]) for entry in entries]))


def extension(_: Path, seeds: list[int]) -> dict[str, pd.DataFrame]:
    """A new drug from two organs of the mouse, and a new species, with all else frozen."""
    rows = []
    for seed in seeds:
        data = tv.datasets.simulate_reactomes(seed=seed, species=("mouse", "rat", "human"))
        adata = tv.pp.stack_species(data)
        obs, genes = adata.obs, adata.var["species"]
        known = adata[(obs["species"] != "human") & (obs["drug"] != "drug C"), genes != "human"].copy()
        epochs = {"genes": 10, "samples": 10}
        model = trained(known, seed, {"animal_key": "animal"}, label_species="mouse", max_epochs=epochs)
        organs = sorted(obs["organ"].cat.categories)
        shown, rest = organs[:2], organs[2:]
        of_shots = (obs["species"] == "mouse") & obs["organ"].isin(shown) & obs["drug"].isin(["control", "drug C"])
        few = tv.UGE.load_query_data(adata[of_shots, genes != "human"].copy(), model)
        few.train(max_epochs=10, stages=["genes"], **QUIET)
        reactome = tv.tl.reactome({"mouse": data["mouse"]}, animal_key="animal", layer="counts")
        shift = reactome[:, [f"{organ}|drug C" for organ in shown]].X.mean(axis=1)
        for species in ("mouse", "rat"):
            truth, entries = data[species].uns["true_reactome"], [f"{organ}|drug C" for organ in rest]
            about = {"what": f"new drug in the {species}'s other organs, Pearson of change", "seed": seed}
            rows.append({**about, "method": "UGE", "value": correlations(few, species, truth, entries)})
            if species == "mouse":
                value = np.mean([np.corrcoef(shift, truth.loc[reactome.obs_names, e])[0, 1] for e in entries])
                rows.append({**about, "method": "mean of the organs shown", "value": value})
        human = adata[obs["species"] == "human", genes == "human"].copy()
        new = tv.UGE.load_query_data(human[human.obs["drug"] != "drug C"].copy(), model)
        new.train(max_epochs=10, stages=["genes"], **QUIET)
        gene_map = new.map_genes("mouse", "human", n_top=10)
        found = tv.metrics.gene_map_scores(gene_map, data["human"].uns["gene_map"], k=K, n_candidates=600)
        value = found.set_index("metric").loc["recall@1", "value"]
        rows.append({"what": "new species, recall@1", "seed": seed, "method": "UGE", "value": value})
        label = new.predict_labels("organ")["label"]
        value = float((label.to_numpy() == new.adata.obs["organ"].astype(str).to_numpy()).mean())
        rows.append({"what": "new species, organ (labels of the mouse)", "seed": seed, "method": "UGE", "value": value})
    return {"extension": summary(rows)}


def experiments(
    _: Path, seeds: list[int], n_start: int = 6, batch: int = 4, n_batches: int = 4
) -> dict[str, pd.DataFrame]:
    """Error of the predicted changes of both species, all organs and drugs, after each batch."""
    rows = []
    for seed in seeds:
        data = tv.datasets.simulate_reactomes(seed=seed, n_genes=300)
        adata = tv.pp.stack_species(data)
        obs = adata.obs[["species", "organ", "drug"]].astype(str)
        cells = obs[obs["drug"] != "control"].drop_duplicates().sort_values(list(obs)).apply(tuple, axis=1).tolist()
        rng = np.random.default_rng(seed)
        first = [cells[i] for i in rng.permutation(len(cells))]
        # every organ and drug at least once, in any species
        start: list[tuple] = []
        for cell in first:
            if {cell[1], cell[2]} - {name for other in start for name in other}:
                start.append(cell)
        start += [cell for cell in first if cell not in start][: max(0, n_start - len(start))]
        orders = {"suggested": None, "suggested, all genes alike": None}
        orders |= {f"random {i}": [c for c in map(tuple, rng.permutation(cells)) if c not in start] for i in range(2)}
        for name, order in orders.items():
            measured = list(start)
            for step in range(n_batches + 1):
                keep = (obs["drug"] == "control") | obs.apply(tuple, axis=1).isin(measured)
                model = trained(
                    adata[keep.to_numpy()].copy(),
                    seed,
                    {"animal_key": "animal"},
                    stages=["genes"],
                    max_epochs=6,
                    genes_per_batch=300,
                )
                errors = []
                for species in data:
                    found = model.predict_reactome(species)
                    truth = data[species].uns["true_reactome"].loc[found.obs_names, found.var_names]
                    errors.append(
                        np.mean((np.asarray(found.X) - truth.to_numpy()) ** 2) / np.mean(truth.to_numpy() ** 2)
                    )
                rows.append({"order": name.split(" ")[0] if order else name, "added": step * batch, "seed": seed})
                rows[-1]["error"] = float(np.mean(errors))
                if order is None:
                    weight = 0.0 if name.endswith("alike") else 1.0
                    chosen = model.suggest_experiments(batch, ambiguity_weight=weight)
                    measured += list(chosen[["species", "organ", "drug"]].itertuples(index=False, name=None))
                else:
                    measured += order[step * batch : (step + 1) * batch]
    table = summary(rows).pivot(index="added", columns="order", values="error").reset_index()
    return {"experiments": table}


def hidden_names(blocks: dict[str, AnnData], seed: int) -> dict[str, AnnData]:
    """Log-normalised data of which genes have numbers in random order; their names are in ``var["name"]``."""
    rng, named = np.random.default_rng(seed), {}
    for species, adata in blocks.items():
        adata = adata[:, rng.permutation(adata.n_vars)].copy()
        adata.var["name"] = adata.var_names
        adata.var_names = [f"{species} {i}" for i in range(adata.n_vars)]
        adata.obs = adata.obs[["organ"]].copy()
        named[species] = adata
    return named


def organ_scores(adata: AnnData, source: str, seed: int, partly: np.ndarray, epochs: int) -> tuple[np.ndarray, AnnData]:
    """Whether organs are right of samples of the target that the model has not seen; it has seen those in ``partly``."""
    keep = (adata.obs["species"] == source).to_numpy() | partly
    model = trained(
        adata[keep].copy(),
        seed,
        {"drug_key": None},
        label_species=source,
        max_epochs={"genes": 10, "samples": epochs},
        genes_per_batch=512,
    )
    query = adata[~keep].copy()
    return (
        model.predict_labels("organ", query)["label"].to_numpy() == query.obs["organ"].astype(str)
    ).to_numpy(), query


def organs(folder: Path, seeds: list[int], epochs: int = 25, n_genes: int = 1500) -> dict[str, pd.DataFrame]:
    """Human and mouse: labels from the genes that vary most in each species, maps of all genes."""
    data = read_organs(folder)
    blocks, varying = {}, {}
    for name in ("Human", "Mouse"):
        adata = data[name].copy()
        sc.pp.normalize_total(adata, target_sum=1e4)
        sc.pp.log1p(adata)
        blocks[name.lower()] = adata
        top = np.argsort(-adata.X.var(axis=0), kind="stable")[:n_genes]
        varying[name.lower()] = adata[:, np.sort(top)].copy()
    rows, recalls = [], []
    for seed in seeds:
        named = hidden_names(varying, seed)
        adata, rng = tv.pp.stack_species(named), np.random.default_rng(seed)
        organ, of = adata.obs["organ"].astype(str).to_numpy(), adata.obs["species"].astype(str).to_numpy()
        whole = tv.pp.stack_species(hidden_names(blocks, seed))
        for source, target in (("human", "mouse"), ("mouse", "human")):
            about = {"direction": f"{source} to {target}", "seed": seed}
            one = [rng.choice(np.flatnonzero((of == target) & (organ == name))) for name in np.unique(organ)]
            partly = np.isin(np.arange(adata.n_obs), one)
            right, query = organ_scores(adata, source, seed, partly, epochs)
            rows.append({**about, "method": "UGE, one sample of each organ labelled", "accuracy": right.mean()})
            left_out = [
                organ_scores(adata, source, seed, (of == target) & (organ != name), epochs)[0]
                for name in np.unique(organ)
            ]
            accuracy = np.concatenate(left_out).mean()
            rows.append({**about, "method": "UGE, an organ never labelled nor shown", "accuracy": accuracy})
            votes = votes_of(blocks, source, target, query)
            rows += [{**about, "method": name, "accuracy": value} for name, value in votes.items()]
            recalls += [{**about, **scores} for scores in organ_maps(whole, blocks, source, target, seed)]
    return {"organ_labels": summary(rows), "organ_genes": summary(recalls)}


def organ_maps(whole: AnnData, blocks: dict[str, AnnData], source: str, target: str, seed: int) -> list[dict]:
    """Recall of the true counterparts, with organs of all samples known."""
    model = trained(whole.copy(), seed, {"drug_key": None}, stages=["genes"], max_epochs=10)
    names, found = whole.var["name"], {}
    for method in ("assignment", "nearest"):
        table = model.map_genes(source, target, n_top=10, method=method)
        hit = (names[table["source"]].to_numpy() == names[table["target"]].to_numpy()).reshape(-1, 10)
        found[f"UGE, {method}"] = hit[:, 0].mean(), hit.any(axis=1).mean()
    profiles = {n: b.to_df().groupby(b.obs["organ"].astype(str).to_numpy()).mean().T for n, b in blocks.items()}
    x, y = (profiles[n].loc[blocks["human"].var_names].to_numpy() for n in (source, target))
    standard = [(v - v.mean(axis=0)) / v.std(axis=0) for v in (x, y)]
    raw = {
        "correlation of organ profiles": np.corrcoef(x, y)[: len(x), len(x) :],
        "distance of organ profiles": similarity_of(*standard),
    }
    for name, score in raw.items():
        place = (score > np.diagonal(score)[:, None]).sum(axis=1)
        found[name] = (place < 1).mean(), (place < 10).mean()
    return [{"method": name, "recall@1": one, "recall@10": ten} for name, (one, ten) in found.items()]


def votes_of(blocks: dict[str, AnnData], source: str, target: str, query: AnnData) -> dict[str, float]:
    """The nearest neighbour among the source's samples with orthologues known, the majority and chance."""
    train, test = (
        blocks[source],
        blocks[target][query.obs_names],
    )
    known, truth = train.obs["organ"].astype(str).to_numpy(), test.obs["organ"].astype(str).to_numpy()
    x, y = train.to_df(), test.to_df()[train.var_names]
    vote = KNeighborsClassifier(1, metric="correlation").fit(x.to_numpy(), known)
    share = pd.Series(known).value_counts(normalize=True)
    return {
        "nearest neighbour, orthologues known": (vote.predict(y.to_numpy()) == truth).mean(),
        "majority": (share.index[0] == truth).mean(),
        "chance": share.reindex(truth).fillna(0).mean(),
    }


def rodents(folder: Path, seeds: list[int], epochs: int = 25, n_genes: int = 4000) -> dict[str, pd.DataFrame]:
    """Rat samples among 17 organs of the mouse; one sample of liver and of spleen is labelled in the rat, none of blood.

    Genes of the mouse go by Ensembl identifiers and those of the rat by symbols, and there is no table between them: nothing that
    needs orthologues can be run.
    """
    fpkm = pd.read_csv(folder / "mouse_organs_fpkm.csv.gz", index_col=0).select_dtypes("number")
    rat = pd.read_csv(folder / "rat_organs_norm.csv.gz", index_col=0)
    meta = pd.read_csv(folder / "rat_organs_meta.csv", index_col=0).loc[rat.columns]
    blocks = {}
    for name, table, organ in (("mouse", fpkm, fpkm.columns.str.lower()), ("rat", rat, meta["organ"].to_numpy())):
        obs = pd.DataFrame({"organ": list(organ)}, index=[f"{name} {i}" for i in range(table.shape[1])])
        adata = AnnData(table.T.to_numpy(dtype=np.float32), obs=obs, var=pd.DataFrame(index=table.index))
        adata = adata[:, ~adata.var_names.duplicated()].copy()
        sc.pp.normalize_total(adata, target_sum=1e4)
        sc.pp.log1p(adata)
        top = np.argsort(-adata.X.var(axis=0), kind="stable")[:n_genes]
        blocks[name] = adata[:, np.sort(top)].copy()
    rows = []
    for seed in seeds:
        adata = tv.pp.stack_species(hidden_names(blocks, seed))
        organ = adata.obs["organ"].astype(str)
        of_rat = (adata.obs["species"] == "rat").to_numpy()
        rng = np.random.default_rng(seed)
        labelled = [rng.choice(np.flatnonzero(of_rat & (organ == name).to_numpy())) for name in ("liver", "spleen")]
        keep = ~of_rat | np.isin(np.arange(adata.n_obs), labelled)
        model = trained(
            adata[keep].copy(),
            seed,
            {"drug_key": None},
            label_species="mouse",
            max_epochs={"genes": 10, "samples": epochs},
            genes_per_batch=512,
        )
        query = adata[~keep].copy()
        found = model.predict_labels("organ", query)
        truth = query.obs["organ"].astype(str).to_numpy()
        for name in ("liver", "spleen", "wbc"):
            label = found.loc[truth == name, "label"].astype(str)
            right = label.isin({"wbc": ["bone.marrow", "spleen", "thymus"]}.get(name, [name]))
            shares = label.value_counts(normalize=True)
            text = ", ".join(f"{key} {value:.0%}" for key, value in shares.items())
            rows.append({"organ": name, "seed": seed, "n": len(label), "accuracy": right.mean(), "called": text})
    table = pd.DataFrame(rows)
    return {"rodents": table}


MEMORY = """
import resource, sys, time
import numpy as np, torch
torch.set_num_threads(int(sys.argv[4]))
from transverse.uge import PRESETS, UGEModule
n, preset, batch = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
device = "cuda" if torch.cuda.is_available() else "cpu"
module = UGEModule([0] * n + [1] * n, 10, 4, **PRESETS[preset]).to(device)
block = {
    "species": torch.tensor(0),
    "tokens": torch.arange(n, device=device),
    "values": torch.randn(batch, n, device=device),
    "organ": torch.zeros(batch, dtype=torch.long, device=device),
    "drug": torch.zeros(batch, dtype=torch.long, device=device),
}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
def step(dtype=None):
    with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
        _, _, out = module({"samples": [block]})
    out.loss.backward()
    module.zero_grad()
    if device == "cuda":
        torch.cuda.synchronize()
def timed(dtype=None):
    step(dtype)
    start = time.perf_counter()
    for _ in range(3):
        step(dtype)
    return (time.perf_counter() - start) / 3
seconds = timed()
peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20 - before
bf16 = timed(torch.bfloat16) if device == "cuda" else float("nan")
print(seconds, peak, bf16)
"""


def memory(_: Path, seeds: list[int]) -> dict[str, pd.DataFrame]:
    """A training step of eight samples, in a process of its own."""
    rows = []
    for preset in ("tiny", "paper"):
        for n in (256, 512, 1024, 2048, 3000):
            call = [sys.executable, "-c", MEMORY, str(n), preset, "8", str(torch.get_num_threads())]
            seconds, peak, bf16 = map(float, subprocess.check_output(call, text=True).split()[-3:])
            rows.append({"preset": preset, "genes": n, "s a step": round(seconds, 2), "peak, GB": round(peak, 2)})
            if not np.isnan(bf16):
                rows[-1]["s a step, bf16"] = round(bf16, 3)
    return {"memory": pd.DataFrame(rows)}


TASKS: dict[str, Callable[[Path, list[int]], dict[str, pd.DataFrame]]] = {
    "simulated": simulated,
    "losses": losses,
    "extension": extension,
    "experiments": experiments,
    "organs": organs,
    "rodents": rodents,
    "memory": memory,
}


def main() -> None:
    """Run the tasks and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the real data")
    parser.add_argument("--only", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder for the tables as CSV files")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(args.threads)
    run(TASKS, args)


if __name__ == "__main__":
    main()
