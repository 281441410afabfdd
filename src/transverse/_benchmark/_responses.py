"""Responses of conditions that were held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import anndata as ad
import numpy as np
import pandas as pd
from anndata import AnnData

from transverse import baselines, metrics
from transverse._validation import check_log_normalized, check_obs_key, examples
from transverse.metrics._conditions import START, conditions
from transverse.metrics._degs import score_degs
from transverse.metrics._discrimination import score_discrimination
from transverse.metrics._response import score_conditions
from transverse.metrics._variance import score_variances
from transverse.pp import check_split, split_responses
from transverse.pp._perturbations import clean, parts
from transverse.pp._split_checks import By

from ._methods import Method, fitted, methods_of

BASELINES = {
    "no change": baselines.NoChange,
    "mean perturbation": baselines.MeanPerturbation,
    "mean shift": baselines.MeanShift,
    "similarity-weighted shift": lambda: baselines.MeanShift("similarity"),
    "nearest context": baselines.NearestContext,
    "same condition, other animals": baselines.SameCondition,
    "ridge on PCs": baselines.PCRidge,
    "additive": baselines.Additive,
    "mean of singles": baselines.MeanOfSingles,
    "larger single": baselines.LargerSingle,
    "largest change per gene": baselines.LargestChange,
}


def response_table(
    adata: AnnData,
    models: Mapping,
    baselines: Mapping | None,
    seeds: Sequence[int],
    *,
    splits: str | Sequence[str] | Mapping = "split",
    by: By = "condition",
    perturbation_key: str = "perturbation",
    control: str = "control",
    context_key: str | None = "cell_type",
    animal_key: str | None = None,
    delimiter: str | None = "+",
    layer: str | None = None,
    n_top: int | Sequence[int] = 50,
    energy: bool = False,
    allow_unseen: bool = False,
    identical_cells: str = "refuse",
    n_ceiling_splits: int = 10,
) -> tuple[pd.DataFrame, list[str]]:
    """Scores of every method, split, seed and condition, and the columns that tell conditions apart."""
    if not isinstance(adata, AnnData):
        raise TypeError(f"data must be an AnnData for task='responses', but got {type(adata).__name__}.")
    setup = {"perturbation_key": perturbation_key, "control": control, "context_key": context_key}
    for key in (perturbation_key, context_key):
        if key is not None:
            check_obs_key(adata, key, "perturbation_key" if key == perturbation_key else "context_key")
    check_log_normalized(adata, layer)
    split_options = {"by": by, "animal_key": animal_key, "delimiter": delimiter, "identical_cells": identical_cells}
    labels = split_labels(adata, splits, seeds, {**setup, **split_options}, allow_unseen)
    methods = methods_of(models, BASELINES if baselines is None else baselines)
    keys = {"perturbation_key": perturbation_key, "context_key": context_key}
    options = {**keys, "layer": layer}
    condition = [key for key in keys.values() if key is not None]
    # the two orders of a combination are one condition
    clean_names = {name: clean(name, control, delimiter) for name in adata.obs[perturbation_key].astype(str).unique()}
    names = adata.obs[perturbation_key].astype(str).map(clean_names).to_numpy(dtype=object)
    is_control = names == control

    tables = []
    for (split, seed), side in labels.items():
        test, train = adata[(side == "test") & ~is_control], adata[side == "train"]
        test = test.to_memory() if test.isbacked else test.copy()
        test.obs[perturbation_key] = names[(side == "test") & ~is_control]
        pairs = list(test.obs[condition].astype(str).drop_duplicates().itertuples(index=False, name=None))
        contexts = {pair[1] for pair in pairs} if context_key else {None}
        here = np.ones(adata.n_obs, dtype=bool)
        if context_key is not None:
            here = adata.obs[context_key].astype(str).isin(contexts).to_numpy()
        scoring, all_controls = adata[(side == "test") & is_control], adata[is_control & here]
        candidates = adata[here & ~is_control & (side == "train")]
        in_memory = [part.to_memory() if part.isbacked else part for part in (scoring, all_controls, candidates)]
        scoring, all_controls, candidates = in_memory
        ceiling = metrics.noise_ceiling(
            test, all_controls, n_splits=n_ceiling_splits, seed=seed, n_top=n_top, **options
        )
        tables.append(ceiling.assign(method=ceiling["ceiling"], kind="ceiling", split=split, seed=seed))
        for method in methods:
            model = fitted(method, train, seed, {**setup, "layer": layer}, extra={"delimiter": delimiter})
            if method.optional and not all(model.supports(*_arguments(pair, delimiter)) for pair in pairs):
                continue
            pred = _predictions(method, model, pairs, condition, delimiter)
            # all scores from the same means
            found = conditions(
                test,
                pred,
                scoring,
                None,
                candidates=candidates if candidates.n_obs else None,
                allow_shared_controls=False,
                seed=seed,
                **options,
            )
            scores = [
                score_conditions(found, n_top=n_top),
                score_degs(found, n_top=n_top),
                score_discrimination(found, context_key),
                score_variances(found, perturbation_key, context_key),
            ]
            if energy:
                scores.append(metrics.energy_distance(test, pred, scoring, **options))
            scores = pd.concat(scores, ignore_index=True)
            tables.append(scores.assign(method=method.name, kind=method.kind, split=split, seed=seed))
    scores = pd.concat(tables, ignore_index=True).drop(columns="ceiling")
    return scores, condition


def split_labels(
    adata: AnnData, splits: str | Sequence[str] | Mapping, seeds: Sequence[int], options: dict, allow_unseen: bool
) -> dict[tuple[str, int], np.ndarray]:
    """Side of every cell, for every split and seed; raises before anything is trained if one leaks."""
    if isinstance(splits, Mapping):
        if not splits:
            raise ValueError("splits is empty. See pp.leave_out.")
        return {
            (str(name), seed): split_responses(
                adata,
                holdout=holdout,
                valid_size=0,
                allow_unseen=allow_unseen,
                seed=seed,
                key_added=None,
                **options,
            ).to_numpy(dtype=str)
            for name, holdout in splits.items()
            for seed in seeds
        }
    columns = [splits] if isinstance(splits, str) else list(splits)
    if not columns:
        raise ValueError("splits is empty. Name columns of adata.obs, or pass a mapping, see pp.leave_out.")
    if missing := [column for column in columns if column not in adata.obs]:
        raise KeyError(
            f"splits: {examples(missing)} is not in adata.obs. Call tv.pp.split_responses(adata) first, or pass the holdouts "
            "of tv.pp.leave_out(adata)."
        )
    labels = {}
    for column in columns:
        check_split(adata, column, **options)
        labels |= {(column, seed): adata.obs[column].to_numpy(dtype=str) for seed in seeds}
    return labels


def _arguments(pair: tuple[str, ...], delimiter: str | None) -> tuple:
    singles = list(parts(pair[0], delimiter))
    return (singles if len(singles) > 1 else pair[0], *pair[1:])


def _predictions(
    method: Method, model, pairs: Sequence[tuple[str, ...]], condition: Sequence[str], delimiter: str | None
) -> AnnData:
    """Predictions of all conditions, a row for each control cell and condition."""
    rows = []
    for pair in pairs:
        pred = model.predict(*_arguments(pair, delimiter))
        if not isinstance(pred, AnnData):
            raise TypeError(f"predict of {method.name!r} must return an AnnData, but returned {type(pred).__name__}.")
        # whatever a model calls it
        obs = dict(zip(condition, pair, strict=True))
        layers = {name: pred.layers[name] for name in (START,) if name in pred.layers}
        pred = AnnData(pred.X, obs=pred.obs.assign(**obs), var=pred.var[[]], layers=layers)
        rows.append(pred)
    return ad.concat(rows, index_unique="-") if len(rows) > 1 else rows[0]
