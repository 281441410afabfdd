"""Signatures of perturbations, or cell types, that were held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import anndata as ad
import numpy as np
import pandas as pd
from anndata import AnnData

from transverse import baselines, metrics
from transverse._groups import group_codes
from transverse._validation import check_finite, check_obs_key
from transverse.metrics._conditions import halve
from transverse.pp._split_checks import By

from ._methods import fitted, in_memory, methods_of
from ._responses import split_labels

BASELINES = {
    "copy of the source": baselines.CopySource,
    "mean of the sources": baselines.MeanOfSources,
    "similarity-weighted mean": lambda: baselines.MeanOfSources("similarity"),
    "mean signature": baselines.MeanSignature,
    "ridge": baselines.RidgeSignature,
}


def signature_table(
    adata: AnnData,
    models: Mapping,
    baselines: Mapping | None,
    seeds: Sequence[int],
    *,
    splits: str | Sequence[str] | Mapping = "split",
    by: By = "condition",
    perturbation_key: str = "perturbation",
    cell_type_key: str = "cell_type",
    delimiter: str | None = None,
    layer: str | None = None,
    n_top: int | Sequence[int] | None = None,
    allow_unseen: bool = False,
    identical_cells: str = "refuse",
    n_ceiling_splits: int = 10,
) -> tuple[pd.DataFrame, list[str]]:
    """Scores of every method, split, seed and signature, and the columns that tell signatures apart."""
    if not isinstance(adata, AnnData):
        raise TypeError(f"data must be an AnnData for task='signatures', but got {type(adata).__name__}.")
    condition = [perturbation_key, cell_type_key]
    for key, argument in zip(condition, ("perturbation_key", "cell_type_key"), strict=True):
        check_obs_key(adata, key, argument)
    check_finite(adata, layer, "data")
    options = {"by": by, "delimiter": delimiter, "identical_cells": identical_cells}
    setup = {"perturbation_key": perturbation_key, "control": None, "context_key": cell_type_key}
    labels = split_labels(adata, splits, seeds, {**setup, **options}, allow_unseen)
    methods = methods_of(models, BASELINES if baselines is None else baselines)
    setup = {"perturbation_key": perturbation_key, "cell_type_key": cell_type_key, "layer": layer}
    scoring = {"perturbation_key": perturbation_key, "cell_type_key": cell_type_key, "n_top": n_top}
    tables = []
    for (split, seed), side in labels.items():
        test, train = in_memory(adata[side == "test"]), adata[side == "train"]
        names, cell_types = (adata.obs[key].astype(str).to_numpy() for key in condition)
        tables += [
            scores.assign(method="replicates", kind="ceiling", split=split, seed=seed)
            for scores in _replicates(test, condition, layer, n_ceiling_splits, seed, scoring)
        ]
        for method in methods:
            model = fitted(method, train, seed, setup)
            predictions = []
            for target in np.unique(cell_types[side == "test"]):
                wanted = np.unique(names[(side == "test") & (cell_types == target)])
                # all that was measured of these perturbations elsewhere, in the training or not, is given
                sources = adata[np.isin(names, wanted) & (cell_types != target)]
                if sources.n_obs:
                    predictions.append(model.predict(in_memory(sources), target=target))
            if not predictions:
                raise ValueError("No held-out signature has its perturbation in another cell type to predict from.")
            scores = metrics.signature_scores(test, ad.concat(predictions), layer=layer, **scoring)
            tables.append(scores.assign(method=method.name, kind=method.kind, split=split, seed=seed))
    return pd.concat(tables, ignore_index=True), condition


def _replicates(test: AnnData, condition, layer, n_splits: int, seed: int, scoring: dict) -> list[pd.DataFrame]:
    """Scores of one half of a condition's signatures as the prediction of the other, where it has several."""
    keys, codes = group_codes(test, condition)
    repeated = test[np.bincount(codes, minlength=len(keys))[codes] > 1]
    if not repeated.n_obs:
        return []
    rng, tables = np.random.default_rng(seed), []
    for _ in range(n_splits):
        first, second = halve(repeated, condition, rng, "test")
        pred = repeated[first]
        pred = AnnData(pred.X if layer is None else pred.layers[layer], obs=pred.obs, var=pred.var)
        tables.append(metrics.signature_scores(repeated[second], pred, layer=layer, **scoring))
    return [tables[0].assign(value=np.mean([table["value"] for table in tables], axis=0))]
