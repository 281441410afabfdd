"""How well labels were carried over to the cells of a target."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from scipy.stats import rankdata
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, f1_score, recall_score, roc_auc_score

from transverse._validation import examples

from ._calibration import calibration_bins, calibration_error, check_n_bins
from ._matching import as_column, match_cells


def label_scores(
    truth: Sequence[str] | pd.Series,
    predicted: Sequence[str] | pd.Series | pd.DataFrame,
    *,
    known: Iterable[str] | None = None,
    confidence: Sequence[float] | pd.Series | None = None,
    novelty: Sequence[float] | pd.Series | None = None,
    unknown: str = "unknown",
    n_bins: int = 10,
) -> pd.DataFrame:
    r"""Scores of labels that were carried over to target cells.

    A type is *shared* if it occurs in ``truth`` and is known to the context; *shared cells* are those whose true type is
    shared. A prediction is right if it equals the true label; a missing one is wrong. With :math:`n_c` cells of type
    :math:`c`, :math:`r_c` of them right, and :math:`p_c` shared cells that were predicted to be :math:`c`,

    .. math::
        \text{balanced accuracy} = \frac{1}{|C|} \sum_{c \in C} \frac{r_c}{n_c}, \qquad
        \text{macro F1} = \frac{1}{|C|} \sum_{c \in C} \frac{2 r_c}{n_c + p_c},

    over the shared types :math:`C`. The calibration error (Guo et al., 2017) is
    :math:`\sum_b \frac{n_b}{n} |acc_b - conf_b|` over bins of equal width, closed on the right, as
    :func:`transverse.pl.calibration` draws them.

    Parameters
    ----------
    truth
        True labels of the target cells. Cells without one are left out.
    predicted
        Predicted labels, or the table that ``transfer_labels`` or a label baseline returns: then its columns ``label``,
        ``confidence`` and ``novelty`` are used. Series are matched by index, everything else by position.
    known
        Labels that the context has. By default the categories of ``predicted`` where it is categorical, as our own tables
        are, and else the labels that occur in it, without ``unknown``. Pass them where a label may be known and yet never
        predicted: by default it would not count as shared.
    confidence
        How sure each prediction is, between 0 and 1. May be missing where the prediction is, and then counts as 0.
    novelty
        How little each cell resembles the context; higher is more novel, on any scale.
    unknown
        The label that says that a cell has no counterpart.
    n_bins
        Number of bins of the calibration error.

    Returns
    -------
    A row per score with the columns ``metric``, ``cells`` (``"shared"`` or ``"all"``: which cells it rests on),
    ``cell_type`` (of a recall, else missing), ``value`` and ``n`` (number of cells scored). The value is NaN where a score
    is undefined, for example for want of a cell without a counterpart. The metrics:

    - ``balanced_accuracy`` and ``macro_f1`` of the shared cells; ``accuracy`` of the shared and of all cells
    - ``ARI`` and ``AMI``, the adjusted Rand index and adjusted mutual information of the shared and of all cells.
      Missing predictions are one class
    - ``calibration_error``, and ``confidence_auroc``: the confidence of right against that of wrong predictions, of the
      shared and of all cells; if there are confidences
    - ``unknown_auroc``: the novelty of cells whose type is not known against that of the others; if there is one
    - ``unknown_recall``: share of the cells whose type is not known that are predicted ``unknown``, and
      ``false_unknown_rate``: share of the shared cells that are; if the label ``unknown`` occurs in ``predicted``
    - ``recall`` of each shared type

    Raises
    ------
    ValueError
        If indices or lengths do not fit, there are no true labels, a confidence or a novelty is missing, a confidence is out
        of range, or ``n_bins`` is not a whole number of at least 1.
    KeyError
        If the table has no column ``label``.
    TypeError
        If an argument has another type or shape.

    Warns
    -----
    UserWarning
        If no type is shared.

    Examples
    --------
    >>> import transverse as tv
    >>> scores = tv.metrics.label_scores(["T", "T", "B", "DC"], ["T", "B", "B", "T"])
    >>> float(scores.set_index("metric")["value"]["balanced_accuracy"])
    0.75
    """
    check_n_bins(n_bins)
    truth, columns = _matched_columns(truth, predicted, confidence, novelty)
    known = _known_labels(known, columns["label"], unknown)
    has_truth = truth.notna().to_numpy()
    if not has_truth.any():
        raise ValueError("truth has no labels: all of its values are missing, or it is empty.")
    columns = {name: values[has_truth] for name, values in columns.items()}
    numbers = {
        name: _numbers(columns[name], name, columns["label"].isna().to_numpy() if name == "confidence" else None)
        for name in ("confidence", "novelty")
        if name in columns
    }

    truth = truth[has_truth].to_numpy(dtype=object)
    label = columns["label"].astype(object)
    label = label.where(label.notna(), None).to_numpy()
    types = list(dict.fromkeys(truth))
    shared_types = [name for name in _sorted(types) if name in known]
    if not shared_types:
        warnings.warn(
            f"No type of truth is known to the context. truth has: {examples(_sorted(types))}; known: "
            f"{examples(_sorted(known))}. Are the labels spelt alike?",
            UserWarning,
            stacklevel=2,
        )
    # sklearn compares labels of one kind only
    codes = {name: code for code, name in enumerate([*shared_types, *(t for t in types if t not in known)])}
    truth_codes, label_codes = _codes(truth, codes), _codes(label, codes)
    correct, shared = truth_codes == label_codes, truth_codes < len(shared_types)
    says_unknown = np.array([name == unknown for name in label])

    rows = []

    def add(metric, cells, value, n, cell_type=None):
        rows.append((metric, cells, cell_type, float(value) if n else np.nan, int(n)))

    n, n_shared = len(truth), int(shared.sum())
    scored = {"labels": range(len(shared_types)), "zero_division": 0}
    recalls = np.full(len(shared_types), np.nan)
    macro_f1 = np.nan
    if n_shared:
        recalls = recall_score(truth_codes[shared], label_codes[shared], average=None, **scored)
        macro_f1 = f1_score(truth_codes[shared], label_codes[shared], average="macro", **scored)
    add("balanced_accuracy", "shared", recalls.mean() if n_shared else np.nan, n_shared)
    add("macro_f1", "shared", macro_f1, n_shared)
    for cells, rows_of in (("shared", shared), ("all", np.ones(n, dtype=bool))):
        pair, count = (truth_codes[rows_of], label_codes[rows_of]), int(rows_of.sum())
        add("accuracy", cells, correct[rows_of].mean() if count else np.nan, count)
        add("ARI", cells, adjusted_rand_score(*pair) if count else np.nan, count)
        add("AMI", cells, adjusted_mutual_info_score(*pair) if count else np.nan, count)
        if "confidence" in numbers:
            sure, right = numbers["confidence"][rows_of], correct[rows_of]
            add("calibration_error", cells, calibration_error(calibration_bins(sure, right, n_bins)), count)
            add("confidence_auroc", cells, _auroc(right, sure), count)
    if "novelty" in numbers:
        add("unknown_auroc", "all", _auroc(~shared, numbers["novelty"]), n)
    if says_unknown.any():
        add("unknown_recall", "all", says_unknown[~shared].mean() if n > n_shared else np.nan, n - n_shared)
        add("false_unknown_rate", "shared", says_unknown[shared].mean() if n_shared else np.nan, n_shared)
    for cell_type, recall in zip(shared_types, recalls, strict=True):
        add("recall", "shared", recall, (truth == cell_type).sum(), cell_type)
    return pd.DataFrame(rows, columns=["metric", "cells", "cell_type", "value", "n"])


def _matched_columns(truth, predicted, confidence, novelty) -> tuple[pd.Series, dict[str, pd.Series]]:
    """The true labels, and the predicted label, confidence and novelty of the same cells in the same order."""
    given = {"confidence": confidence, "novelty": novelty}
    if isinstance(predicted, pd.DataFrame):
        if "label" not in predicted:
            raise KeyError(f"predicted lacks the column 'label'. It has: {examples(predicted.columns, 20)}.")
        for name, values in given.items():
            given[name] = predicted.get(name) if values is None else values
        predicted = predicted["label"]
    index = next((c.index for c in (truth, predicted) if isinstance(c, pd.Series)), None)
    truth = as_column(truth, "truth")
    columns = {}
    for name, values in {"label": predicted, **given}.items():
        if values is None:
            continue
        shown = "predicted" if name == "label" else name
        by_index = index if isinstance(values, pd.Series) else None
        columns[name] = match_cells(as_column(values, shown), by_index, len(truth), (shown, "truth"))
    return truth, columns


def _known_labels(known, label: pd.Series, unknown: str) -> list:
    if isinstance(known, str):
        raise TypeError(f"known must be a list of labels, but got the string {known!r}.")
    if known is None:
        known = label.cat.categories if isinstance(label.dtype, pd.CategoricalDtype) else label.dropna().unique()
        known = [name for name in known if name != unknown]
    return list(dict.fromkeys(pd.Series(list(known), dtype=object).dropna()))


def _numbers(values: pd.Series, name: str, may_be_missing: np.ndarray | None = None) -> np.ndarray:
    try:
        numbers = pd.to_numeric(values).to_numpy(dtype=float, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must hold numbers: {error}.") from error
    if may_be_missing is not None:
        numbers = np.where(np.isnan(numbers) & may_be_missing, 0.0, numbers)
    if missing := int(np.isnan(numbers).sum()):
        raise ValueError(f"{name} is missing for {missing} cells.")
    if name == "confidence" and ((outside := (numbers < 0) | (numbers > 1)).any()):
        raise ValueError(
            f"{name} must be between 0 and 1, but has {', '.join(f'{v:g}' for v in numbers[outside][:5])}."
        )
    return numbers


def _sorted(labels: Iterable) -> list:
    return sorted(labels, key=str)


def _codes(labels: np.ndarray, codes: dict) -> np.ndarray:
    """Labels as numbers; those not in ``codes`` follow, and None is -1."""
    codes = dict(codes)
    return np.array([-1 if name is None else codes.setdefault(name, len(codes)) for name in labels], dtype=int)


def _auroc(positive: np.ndarray, score: np.ndarray) -> float:
    if positive.all() or not positive.any():
        return np.nan
    return roc_auc_score(positive, rankdata(score))  # ranks: infinite scores are ordered too
