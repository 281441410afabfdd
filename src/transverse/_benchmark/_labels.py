"""Labels carried to another species or data set."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from numbers import Integral

import numpy as np
import pandas as pd
import scanpy as sc
import scvi
from anndata import AnnData
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from transverse import baselines, metrics
from transverse._validation import check_counts, check_obs_key, examples

from ._methods import Method, methods_of

BASELINES = {
    "neighbour vote": baselines.NeighborVote,
    "logistic regression": baselines.LogisticLabels,
    "nearest centroid": baselines.CentroidLabels,
}

# of a type, for a classifier of the target's own labels
FEWEST_CELLS = 10


def label_table(
    data: Mapping[str, AnnData] | Sequence[AnnData],
    models: Mapping,
    baselines: Mapping | None,
    seeds: Sequence[int],
    *,
    labels_key: str = "cell_type",
    target_labels_key: str | None = None,
    orthologs=None,
    policy: str = "one2one",
    context_batch_key: str | None = None,
    batch_key: str | None = None,
    layer: str | None = None,
    unknown: str = "unknown",
    n_draws: int = 200,
) -> tuple[pd.DataFrame, list[str]]:
    """Scores of every method, seed and draw of the target's cells; draw 0 is the cells as they are."""
    context, target = _pair(data)
    target_labels_key = target_labels_key or labels_key
    check_obs_key(context, labels_key, "labels_key")
    check_obs_key(target, target_labels_key, "target_labels_key")
    for name, adata in (("the context", context), ("the target", target)):
        check_counts(adata, layer, name)
    if not isinstance(n_draws, Integral) or n_draws < 0:
        raise ValueError(f"n_draws={n_draws!r} must be a whole number of at least 0.")
    methods = methods_of(models, BASELINES if baselines is None else baselines)
    known = sorted(set(context.obs[labels_key].dropna().astype(str)))
    truth = target.obs[target_labels_key]
    truth = truth.astype(object).where(truth.notna(), None)
    has_truth = truth.notna().to_numpy()
    truth = truth[has_truth].astype(str)
    if not set(truth) & set(known):
        raise ValueError(
            f"No label of the target is in the context. Target: {examples(set(truth))}; context: {examples(known)}."
        )
    # no method gets to see the labels that it should predict
    unlabelled = target.copy()
    del unlabelled.obs[target_labels_key]
    setup = {
        "labels_key": labels_key,
        "orthologs": orthologs,
        "policy": policy,
        "context_batch_key": context_batch_key,
        "batch_key": batch_key,
        "layer": layer,
    }
    rng = np.random.default_rng(0)
    draws = [np.arange(len(truth)), *(rng.integers(len(truth), size=len(truth)) for _ in range(n_draws))]

    tables = []
    ceiling = _own_labels(target[has_truth], truth, layer)
    if ceiling is not None:
        tables += _scores(truth, ceiling, draws, known, unknown, method="own labels", kind="ceiling", seed=seeds[0])
    for method in methods:
        for seed in seeds:
            predicted = _predict(method, context, unlabelled.copy(), seed, setup)
            if isinstance(predicted, pd.DataFrame | pd.Series):
                missing = target.obs_names[~target.obs_names.isin(predicted.index)]
                if len(missing):
                    raise ValueError(f"{method.name!r} gave no label to {len(missing)} cells: {examples(missing)}.")
                predicted = predicted.loc[target.obs_names]
            elif len(predicted) != target.n_obs:
                raise ValueError(f"{method.name!r} gave {len(predicted)} labels for {target.n_obs} cells.")
            predicted = predicted[has_truth]
            about = {"method": method.name, "kind": method.kind, "seed": seed}
            tables += _scores(truth, predicted, draws, known, unknown, **about)
    return pd.concat(tables, ignore_index=True).assign(split="target"), ["draw"]


def _pair(data) -> tuple[AnnData, AnnData]:
    pair = list(data.values()) if isinstance(data, Mapping) else list(data) if not isinstance(data, AnnData) else [data]
    if len(pair) != 2 or not all(isinstance(adata, AnnData) for adata in pair):
        raise TypeError("data must be the context's and the target's AnnData for task='labels', a pair or a mapping.")
    return pair[0], pair[1]


def _scores(truth, predicted, draws, known, unknown, **about) -> list[pd.DataFrame]:
    tables = []
    truth = truth.reset_index(drop=True)
    if isinstance(predicted, pd.DataFrame | pd.Series):
        predicted = predicted.reset_index(drop=True)
    else:
        predicted = pd.Series(np.asarray(predicted, dtype=object))
    for draw, cells in enumerate(draws):
        cells_truth = truth.iloc[cells].reset_index(drop=True)
        cells_predicted = predicted.iloc[cells].reset_index(drop=True)
        scores = metrics.label_scores(cells_truth, cells_predicted, known=known, unknown=unknown)
        tables.append(scores.assign(draw=draw, **about))
    return tables


def _predict(method: Method, context: AnnData, target: AnnData, seed: int, setup: dict):
    """Labels of the target's cells: a table as of ``transfer_labels``, a Series or an array."""
    make, layer = method.make, setup["layer"]
    if method.kind == "model":
        scvi.settings.seed = seed
    if inspect.isclass(make) and hasattr(make, "from_scvi_model"):
        context = context.copy()
        scvi.model.SCVI.setup_anndata(context, layer=layer, batch_key=setup["context_batch_key"])
        reference = make.make_context(context)
        reference.train()
        make.setup_anndata(target, layer=layer, batch_key=setup["batch_key"])
        options = {"orthologs": setup["orthologs"], "labels_key": setup["labels_key"], "policy": setup["policy"]}
        model = make.from_scvi_model(reference, target, **options)
        model.train()
        return model.transfer_labels()
    if hasattr(make, "fit"):
        baseline = copy.deepcopy(make).fit(context, setup["labels_key"], layer=layer)
        return baseline.predict(target, setup["orthologs"], policy=setup["policy"], layer=layer)
    return make(context.copy(), target, seed)


def _own_labels(target: AnnData, truth: pd.Series, layer: str | None) -> np.ndarray | None:
    """Labels by a classifier that is trained on the target's own, in three folds; None where types are too small."""
    labels = truth.to_numpy(dtype=object)
    names, counts = np.unique(labels.astype(str), return_counts=True)
    enough = np.isin(labels.astype(str), names[counts >= FEWEST_CELLS])
    if len(np.unique(labels[enough].astype(str))) < 2:
        return None
    expression = AnnData(target.X if layer is None else target.layers[layer], obs=target.obs[[]]).copy()
    sc.pp.normalize_total(expression, target_sum=1e4)
    sc.pp.log1p(expression)
    model = LogisticRegression(class_weight="balanced", max_iter=1000)
    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    predicted = np.full(len(labels), None, dtype=object)
    predicted[enough] = cross_val_predict(model, expression.X[enough], labels[enough].astype(str), cv=folds)
    return predicted
