from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral

import numpy as np
import pandas as pd

from transverse._validation import examples

from ._conditions import Cells, Conditions, Score, conditions
from ._profiles import profile_scores


def response_scores(
    truth: Cells,
    pred: Cells,
    control: Cells | None = None,
    *,
    pred_control: Cells | None = None,
    perturbation_key: str = "perturbation",
    context_key: str | None = "cell_type",
    n_top: int | Sequence[int] | None = 50,
    top_genes: Mapping[tuple[str, str], Sequence[str]] | Mapping[str, Sequence[str]] | None = None,
    layer: str | None = None,
    clip: bool = False,
    allow_shared_controls: bool = False,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Agreement of predicted with true responses, per condition, on mean profiles.

    With the mean over the treated cells of a condition :math:`\bar y`, over its predictions :math:`\hat y`, over the
    control cells that score :math:`\bar c` and over those that predict :math:`\hat c` (genes :math:`g`), expression
    compares :math:`\bar y` with :math:`\hat y`, and change :math:`\bar y - \bar c` with :math:`\hat y - \hat c`:

    .. math::

        R^2 = 1 - \frac{\sum_g (y_g - \hat y_g)^2}{\sum_g (y_g - \langle y \rangle)^2}, \qquad
        EV = 1 - \frac{\mathrm{Var}_g(y_g - \hat y_g)}{\mathrm{Var}_g(y_g)},

    the Pearson and Spearman correlation and the root mean squared error over genes. These are the scores of
    XTransferCDR's evaluation :cite:p:`Liu2025`, and the same on the change. Scores of expression are dominated by what
    cells of a context have in common: predicting no change at all often reaches an :math:`R^2` above 0.9.

    Parameters
    ----------
    truth
        Treated cells, cells x genes, on the scale of the prediction. AnnData with ``perturbation_key`` and
        ``context_key`` in ``obs``; an array is one condition, and with one dimension a single profile. Genes of a
        DataFrame or Series are matched by name, those of an array by position.
    pred
        Predictions of them, as ``predict`` of a model or baseline returns them, or several joined by
        :func:`anndata.concat`. Their conditions are scored; others in ``truth`` are not.
    control
        Control cells that score: the true change is taken against them. None scores expression only.
    pred_control
        Control cells that the predicted change is taken against. Not needed where ``pred.layers["control"]`` holds
        them, and taken instead of those if given. With neither, the control cells are halved at random within their context, with a warning.
    perturbation_key, context_key
        Columns of ``obs``. No contexts if ``context_key`` is None.
    n_top
        Numbers of genes with the largest true absolute change, which are scored apart; the paper's code takes 50,
        without a test. None for none; a number that all genes do not exceed is left out. Needs controls.
    top_genes
        Genes to score instead, by condition: ``{(perturbation, context): genes}``, or ``{perturbation: genes}``;
        for arrays ``{(): genes}``.
    layer
        Layer of truth and controls to use instead of ``X``. Predictions are in their ``X``.
    clip
        Raise negative values of R2 and explained variance to 0, as some tables in the literature do.
    allow_shared_controls
        Accept control cells that both predict and score. Their noise is then in both changes: on data without any
        effect, a prediction of no merit reaches a correlation of 0.6.
    seed
        Seed of the halving.

    Returns
    -------
    A row for each condition, ``of`` (``"expression"``, ``"change"``), ``genes`` (``"all"``, ``"top 50"``) and ``metric``
    (``"r2"``, ``"explained_variance"``, ``"pearson"``, ``"spearman"``, ``"rmse"``), with ``value`` and ``n_cells``, the
    number of treated cells. A constant prediction has a correlation of 0. Scores of a constant truth are NaN, but for
    the error. See :func:`summarize` for mean, median and spread.

    Raises
    ------
    ValueError
        If genes, conditions or controls are missing, values are not finite, or control cells that predict also score.
    KeyError
        If a column, layer or gene does not exist.
    TypeError
        If arrays and AnnData are mixed.

    Examples
    --------
    >>> import transverse as tv
    >>> adata = tv.datasets.simulate_responses(n_contexts=2, n_perturbations=3, n_genes=30, n_cells_per_condition=20)
    >>> tv.pp.split_responses(adata, holdout=[("P01", "C2"), ("P02", "C2")], valid_size=0)
    >>> train, test = adata[adata.obs["split"] == "train"], adata[adata.obs["split"] == "test"]
    >>> is_control = test.obs["perturbation"] == "control"
    >>> truth, controls = test[~is_control], test[is_control]
    >>> pred = tv.baselines.MeanShift().fit(train).predict("P01", context="C2")
    >>> scores = tv.metrics.response_scores(truth, pred, controls, n_top=10)
    >>> scores.columns.tolist()
    ['perturbation', 'cell_type', 'of', 'genes', 'metric', 'value', 'n_cells']
    >>> scores[["of", "genes"]].drop_duplicates().to_numpy().tolist()
    [['expression', 'all'], ['expression', 'top 10'], ['change', 'all'], ['change', 'top 10']]
    """
    top_sizes(n_top)
    data = conditions(
        truth,
        pred,
        control,
        pred_control,
        perturbation_key=perturbation_key,
        context_key=context_key,
        layer=layer,
        allow_shared_controls=allow_shared_controls,
        seed=seed,
    )
    return score_conditions(data, n_top=n_top, top_genes=top_genes, clip=clip)


def score_conditions(
    data: Conditions,
    *,
    n_top: int | Sequence[int] | None = 50,
    top_genes: Mapping | None = None,
    clip: bool = False,
) -> pd.DataFrame:
    """The table of :func:`response_scores`."""
    pairs = {"expression": (data.truth.mean, data.pred.mean)}
    if data.control is not None:
        pairs["change"] = (data.change, data.pred_change)
    subsets = _subsets(data, top_sizes(n_top), top_genes)
    scores = [
        Score(of, genes, metric, values)
        for of, pair in pairs.items()
        for genes, columns in subsets.items()
        for metric, values in _subset_scores(*pair, columns, clip).items()
    ]
    return data.table(scores)


def top_sizes(n_top: int | Sequence[int] | None) -> list[int]:
    """``n_top`` as a list of different whole numbers of at least 2."""
    sizes = [] if n_top is None else list(n_top) if isinstance(n_top, Iterable) else [n_top]
    if wrong := [n for n in sizes if not isinstance(n, Integral) or isinstance(n, bool) or n < 2]:
        raise ValueError(f"n_top must be whole numbers of at least 2, but has {examples(wrong)}.")
    return list(dict.fromkeys(int(n) for n in sizes))


def top_changes(change: np.ndarray, n: int) -> np.ndarray:
    """Columns of the ``n`` largest absolute values of every row, largest first; earlier genes first where they tie."""
    return np.argsort(-np.abs(change), axis=1, kind="stable")[:, :n]


def _subsets(
    data: Conditions, sizes: Sequence[int], top_genes: Mapping | None
) -> dict[str, Sequence[np.ndarray] | None]:
    """Genes that are scored, by their name in the table: None for all, else the columns of every condition."""
    subsets: dict[str, Sequence[np.ndarray] | None] = {"all": None}
    if top_genes is not None:
        return subsets | {"chosen": [_chosen(top_genes, row, data.var_names) for row in data.keys.to_numpy()]}
    if data.control is not None:
        subsets |= {f"top {n}": top_changes(data.change, n) for n in sizes if n < len(data.var_names)}
    return subsets


def _chosen(top_genes: Mapping, condition: np.ndarray, var_names: pd.Index) -> np.ndarray:
    names = top_genes.get(tuple(condition), top_genes.get(condition[0]) if len(condition) else None)
    if names is None:
        raise KeyError(f"top_genes has no genes for {' | '.join(condition)!r}. It has: {examples(top_genes)}.")
    names = list(dict.fromkeys(names))
    columns = var_names.get_indexer(names)
    if (columns < 0).any():
        unknown = [name for name, column in zip(names, columns, strict=True) if column < 0]
        raise KeyError(f"top_genes of {' | '.join(condition)!r} are not in the data: {examples(unknown)}.")
    if len(columns) < 2:
        raise ValueError(f"top_genes of {' | '.join(condition)!r} must be at least 2, but got {len(columns)}.")
    return columns


def _subset_scores(
    truth: np.ndarray, pred: np.ndarray, columns: Sequence[np.ndarray] | None, clip: bool
) -> dict[str, np.ndarray]:
    if columns is None:
        return profile_scores(truth, pred, clip=clip)
    if isinstance(columns, np.ndarray):
        return profile_scores(np.take_along_axis(truth, columns, 1), np.take_along_axis(pred, columns, 1), clip=clip)
    rows = [profile_scores(truth[i, c][None], pred[i, c][None], clip=clip) for i, c in enumerate(columns)]
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
