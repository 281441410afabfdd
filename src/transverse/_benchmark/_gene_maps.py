"""Genes of one species mapped to those of another."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData

from transverse import baselines, metrics
from transverse._validation import examples
from transverse.baselines._species import species_blocks
from transverse.metrics._conditions import halve
from transverse.pp import stack_species

from ._methods import fitted, in_memory, methods_of


def gene_map_table(
    data: Mapping[str, AnnData] | AnnData,
    models: Mapping,
    baselines: Mapping | None,
    seeds: Sequence[int],
    *,
    truth: pd.DataFrame | None = None,
    source: str | None = None,
    target: str | None = None,
    species_key: str = "species",
    organ_key: str = "organ",
    drug_key: str | None = "drug",
    control: str = "control",
    normalize: str = "total",
    symbol_key: str | None = None,
    genes: Mapping[str, Sequence[str]] | None = None,
    k: int | Sequence[int] = (1, 10),
    n_top: int = 50,
    layer: str | None = None,
) -> tuple[pd.DataFrame, list[str]]:
    """Scores of every method, seed and source gene."""
    species = list(species_blocks(data, species_key))
    source = source or species[0]
    target = target or next((name for name in species if name != source), None)
    if unknown := [name for name in (source, target) if name not in species]:
        raise KeyError(f"Unknown species: {examples(unknown)}. Known: {examples(species)}.")
    if truth is None:
        raise ValueError("truth is needed for task='genes': a table with the columns 'source' and 'target'.")
    setup = {"species_key": species_key, "organ_key": organ_key, "drug_key": drug_key, "control": control}
    methods = methods_of(models, _baselines(normalize, symbol_key, drug_key) if baselines is None else baselines)
    n_candidates = species_blocks(data, species_key)[target].n_vars

    def per_gene(gene_map, truth, n_candidates, **about) -> pd.DataFrame:
        each = {gene: [gene] for gene in pd.unique(truth["source"])}
        table = metrics.gene_map_scores(gene_map, truth, k=k, genes=each, n_candidates=n_candidates)
        table = table[~table["metric"].isin(["n_genes", "n_unmapped"])].rename(columns={"genes": "gene"})
        groups = {"all": each} | {name: set(names) for name, names in (genes or {}).items()}
        parts = [table[table["gene"].isin(set(names))].assign(genes=name) for name, names in groups.items()]
        return pd.concat(parts).assign(split=f"{source} to {target}", **about)

    tables = []
    for method in methods:
        for seed in seeds:
            train, own_layer = data, layer
            if inspect.isclass(method.make) and hasattr(method.make, "setup_anndata"):
                train, own_layer = _for_models(data, species_key, layer, normalize)
            model = fitted(method, train, seed, {**setup, "layer": own_layer})
            gene_map = model.map_genes(source, target, n_top=n_top)
            if method.optional and gene_map.empty:
                continue  # no symbol in common
            about = {"method": method.name, "kind": method.kind, "seed": seed}
            tables.append(per_gene(gene_map, truth, n_candidates, **about))
    chance = tables[0].assign(value=tables[0]["chance"], method="chance", kind="baseline")
    tables += [chance, *_halves(data, source, target, setup, normalize, layer, n_top, seeds[0], per_gene)]
    return pd.concat(tables, ignore_index=True), ["gene"]


def _for_models(data, species_key: str, layer: str | None, normalize: str) -> tuple[AnnData, str | None]:
    """Stacked, log-normalised data, as a model takes them."""
    adata = in_memory(data) if isinstance(data, AnnData) else stack_species(data, species_key=species_key)
    if normalize == "total":
        sc.pp.normalize_total(adata, target_sum=1e4, layer=layer)
        sc.pp.log1p(adata, layer=layer)
    return adata, layer


def _baselines(normalize: str, symbol_key: str | None, drug_key: str | None) -> dict:
    correlation, distance = (
        baselines.ReactomeCorrelation(metric, normalize=normalize) for metric in ("pearson", "euclidean")
    )
    what = "reactomes" if drug_key is not None else "organ profiles"
    return {
        "same symbol": lambda: baselines.SameSymbol(symbol_key),
        f"correlation of {what}": correlation,
        f"distance of {what}": distance,
    }


def _halves(data, source, target, setup, normalize, layer, n_top, seed, per_gene) -> list[pd.DataFrame]:
    """Genes of one species mapped to themselves, between two halves of its samples."""
    blocks = species_blocks(data, setup["species_key"])
    by = [key for key in (setup["organ_key"], setup["drug_key"]) if key is not None]
    tables = []
    for name in (source, target):
        adata = blocks[name]
        sizes = adata.obs.groupby(by, observed=True)[by[0]].transform("size")
        adata = adata[(sizes > 1).to_numpy()]
        if not adata.n_obs:
            continue
        first, second = halve(adata, by, np.random.default_rng(seed), name)
        metric = "pearson" if setup["drug_key"] is not None else "euclidean"
        baseline = baselines.ReactomeCorrelation(metric, normalize=normalize)
        options = {key: value for key, value in setup.items() if key != "species_key"}
        baseline.fit({"first": adata[first].copy(), "second": adata[second].copy()}, layer=layer, **options)
        identity = pd.DataFrame({"source": adata.var_names, "target": adata.var_names})
        gene_map = baseline.map_genes("first", "second", n_top=n_top)
        about = {"method": f"halves of {name}", "kind": "ceiling", "seed": seed}
        table = per_gene(gene_map, identity, adata.n_vars, **about)
        tables.append(table[table["genes"] == "all"])
    return tables
