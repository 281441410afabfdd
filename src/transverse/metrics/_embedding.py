"""How well an embedding keeps cell types apart."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse as sp
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import davies_bouldin_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from transverse._validation import check_obs_key, examples

from ._matching import as_column, match_cells


def embedding_scores(
    embedding: AnnData | np.ndarray | pd.DataFrame,
    labels: str | Sequence[str] | pd.Series,
    *,
    use_rep: str | None = None,
    before: str | np.ndarray | pd.DataFrame | None = None,
    groups: str | Sequence[str] | pd.Series | None = None,
    batches: str | Sequence[str] | pd.Series | None = None,
    n_splits: int = 5,
    max_cells: int = 10_000,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Scores of an embedding that joins data sets: are types still apart, are batches mixed?

    The Davies-Bouldin index compares the spread of clusters :math:`s_i` (mean Euclidean distance to the centroid
    :math:`m_i`) with the distance of their centroids,

    .. math::
        \mathrm{DB} = \frac{1}{K} \sum_{i=1}^{K} \max_{j \neq i} \frac{s_i + s_j}{\lVert m_i - m_j \rVert}.

    Low is well separated: wanted of types, not of batches.

    ALCS, the accuracy loss of cell type self-projection :cite:p:`Song2023`, tells whether
    an integration has blended types that were apart within a data set: the accuracy :math:`A` of a classifier that predicts
    the types of held-out cells of the same data set :math:`s`, from the features before integration and from the embedding,

    .. math::
        \mathrm{ALCS}_s = A_s^\text{before} - A_s^\text{after}.

    The classifier is logistic regression on features that were standardised on the training cells; the accuracy is the
    share of right predictions in stratified cross-validation, with the same folds before and after.

    Parameters
    ----------
    embedding
        Array of shape ``(n_cells, n_dimensions)``, or an AnnData with the embedding in ``obsm[use_rep]``.
    labels
        Cell types: a Series or an array, or a column of ``obs`` if an AnnData is given. Cells without one are left out.
    use_rep
        Key of ``obsm``, if an AnnData is given.
    before
        Features before integration of shape ``(n_cells, n_features)``, for example principal components that were computed
        for each species alone; or a key of ``obsm``. Without them there is no ALCS.
    groups
        Data set (species) of each cell, as ``labels``. By default all cells are one group, ``"all"``.
    batches
        Batch of each cell, as ``labels``.
    n_splits
        Number of folds. Types with fewer cells in a group are left out of its self-projection.
    max_cells
        Number of cells of each group that self-projection uses; a random choice where there are more.
    seed
        Seed of that choice and of the folds.

    Returns
    -------
    A row per score with the columns ``metric``, ``group``, ``value`` and ``n`` (number of cells scored). The value is NaN
    where fewer than two types are left. The metrics:

    - ``davies_bouldin`` of the labels, and ``davies_bouldin_batches`` if there are ``batches``: of all cells, and of each
      group if there are ``groups``
    - ``self_projection_after``, and with ``before`` also ``self_projection_before`` and ``alcs``: of each group, and
      their mean (group ``"mean"``)

    Series are matched by index among one another, and to the cells of an AnnData by name. The input is not changed.

    Raises
    ------
    ValueError
        If shapes or indices do not fit, an embedding has missing or infinite values, or a number is out of range.
    KeyError
        If a key is not in ``obs`` or ``obsm``.
    TypeError
        If ``use_rep`` is missing for an AnnData or given for an array.

    Examples
    --------
    >>> import numpy as np
    >>> import transverse as tv
    >>> labels = np.repeat(["B", "NK", "T"], 20)
    >>> before = np.random.default_rng(0).normal(size=(60, 10)) + 5 * (labels == "T")[:, None]
    >>> embedding = before[:, :2]
    >>> scores = tv.metrics.embedding_scores(embedding, labels, before=before)
    >>> scores["metric"].unique().tolist()
    ['davies_bouldin', 'self_projection_before', 'self_projection_after', 'alcs']

    In an object with the cells of two species:

    >>> import anndata as ad
    >>> both = ad.AnnData(obsm={"X_scSpecies": embedding, "X_pca": before})
    >>> both.obs["cell_type"], both.obs["species"] = labels, ["mouse", "human"] * 30
    >>> scores = tv.metrics.embedding_scores(both, "cell_type", use_rep="X_scSpecies", before="X_pca", groups="species")
    >>> scores["group"].unique().tolist()
    ['all', 'human', 'mouse', 'mean']
    """
    for name, value, least in (("n_splits", n_splits, 2), ("max_cells", max_cells, 2)):
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name}={value!r} must be a whole number of at least {least}.")
    adata = embedding if isinstance(embedding, AnnData) else None
    if (adata is None) != (use_rep is None):
        raise TypeError(
            "use_rep must name a key of adata.obsm if embedding is an AnnData, and must be None if it is an array; got "
            f"use_rep={use_rep!r} and {type(embedding).__name__}."
        )
    after = _features(
        adata, use_rep if adata is not None else embedding, "use_rep" if adata is not None else "embedding"
    )
    n_cells = len(after)
    if before is not None:
        before = _features(adata, before, "before")
        if len(before) != n_cells:
            raise ValueError(f"before has {len(before)} cells and the embedding has {n_cells}; they must be as many.")
    index = adata.obs_names if adata is not None else None
    index = embedding.index if isinstance(embedding, pd.DataFrame) else index
    columns = {}
    for name, values in {"labels": labels, "groups": groups, "batches": batches}.items():
        if values is not None:
            columns[name] = _column(adata, values, name, index, n_cells)
            index = columns[name].index if index is None and isinstance(values, pd.Series) else index
    keep = np.logical_and.reduce([column.notna().to_numpy() for column in columns.values()])
    if not keep.any():
        raise ValueError(f"No cell has values in all of {', '.join(columns)}: nothing is left to score.")
    labels, group_of, batches = (
        columns[name][keep].astype(str).to_numpy() if name in columns else None
        for name in ("labels", "groups", "batches")
    )
    after, before = after[keep], None if before is None else before[keep]
    names = ["all"] if group_of is None else sorted(set(group_of))
    cells = {name: np.arange(len(labels)) if group_of is None else np.flatnonzero(group_of == name) for name in names}

    rows = []
    everywhere = {"all": np.arange(len(labels)), **cells}
    for metric, clusters in (("davies_bouldin", labels), ("davies_bouldin_batches", batches)):
        if clusters is not None:
            rows += [(metric, name, _davies_bouldin(after[i], clusters[i]), len(i)) for name, i in everywhere.items()]
    for name, index in cells.items():
        chosen, folds = _folds(labels, index, n_splits, max_cells, seed)
        accuracy = {
            when: _self_projection(features[chosen], labels[chosen], folds)
            for when, features in (("before", before), ("after", after))
            if features is not None
        }
        rows += [(f"self_projection_{when}", name, value, len(chosen)) for when, value in accuracy.items()]
        if before is not None:
            rows.append(("alcs", name, accuracy["before"] - accuracy["after"], len(chosen)))
    table = pd.DataFrame(rows, columns=["metric", "group", "value", "n"])
    projected = table[table["metric"].isin(["self_projection_before", "self_projection_after", "alcs"])]
    means = projected.groupby("metric", sort=False).agg(value=("value", "mean"), n=("n", "sum")).reset_index()
    return pd.concat([table, means.assign(group="mean")[table.columns]], ignore_index=True)


def _features(adata: AnnData | None, values: object, name: str) -> np.ndarray:
    if isinstance(values, str):
        if adata is None:
            raise TypeError(f"{name}={values!r} names a key of obsm, but embedding is no AnnData. Pass an array.")
        if values not in adata.obsm:
            raise KeyError(f"{name}={values!r} is not in adata.obsm. Keys: {examples(adata.obsm.keys(), 20)}.")
        values = adata.obsm[values]
    values = values.toarray() if sp.issparse(values) else np.asarray(values)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"{name} must have the shape (n_cells, n_dimensions), but has {values.shape}.")
    if not np.issubdtype(values.dtype, np.number):
        raise TypeError(f"{name} must hold numbers, but its type is {values.dtype}.")
    if not (finite := np.isfinite(values).all(axis=1)).all():
        raise ValueError(f"{name} has missing or infinite values in {int((~finite).sum())} of {len(values)} cells.")
    return values


def _column(adata: AnnData | None, values: object, name: str, index: pd.Index | None, n_cells: int) -> pd.Series:
    if isinstance(values, str):
        if adata is None:
            raise TypeError(f"{name}={values!r} names a column of obs, but embedding is no AnnData. Pass an array.")
        check_obs_key(adata, values, name)
        return adata.obs[values]
    by_index = index if isinstance(values, pd.Series) else None
    return match_cells(as_column(values, name), by_index, n_cells, (name, "embedding"))


def _davies_bouldin(features: np.ndarray, clusters: np.ndarray) -> float:
    if not 2 <= len(set(clusters)) < len(clusters):
        return np.nan
    return float(davies_bouldin_score(features, clusters))


def _folds(labels: np.ndarray, cells: np.ndarray, n_splits: int, max_cells: int, seed: int) -> tuple[np.ndarray, list]:
    """Cells of types that have enough of them, and the folds of these; no folds where fewer than two types are left."""
    if len(cells) > max_cells:
        cells = np.sort(np.random.default_rng(seed).choice(cells, max_cells, replace=False))
    types, n = np.unique(labels[cells], return_counts=True)
    enough = types[n >= n_splits]
    cells = cells[np.isin(labels[cells], enough)]
    if len(enough) < 2:
        return cells, []
    splitter = StratifiedKFold(n_splits, shuffle=True, random_state=seed)
    return cells, list(splitter.split(cells, labels[cells]))


def _self_projection(features: np.ndarray, labels: np.ndarray, folds: list) -> float:
    if not folds:
        return np.nan
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return float((cross_val_predict(classifier, features, labels, cv=folds) == labels).mean())
