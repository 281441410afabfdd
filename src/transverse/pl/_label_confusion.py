from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Literal

import pandas as pd
from matplotlib.axes import Axes
from sklearn.metrics import confusion_matrix

from transverse._validation import examples

from ._figure import draw_matrix, finish, matrix_size, panels
from ._tables import align, label_order

_NONE = "none"
_SCALE = {"true": "% of the true label", "pred": "% of the predicted label", "all": "% of all cells", None: "cells"}


def label_confusion(
    predicted: Sequence[str] | pd.Series,
    truth: Sequence[str] | pd.Series,
    *,
    normalize: Literal["true", "pred", "all"] | None = "true",
    unknown: str = "unknown",
    cmap: str = "Blues",
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | PathLike | None = None,
) -> Axes:
    """Predicted labels (columns) against true ones (rows).

    Labels keep the order of their categories, and are sorted where they have none. True labels that are never
    predicted, such as types that the context lacks, come last. Cells of the matrix that hold nothing stay blank.

    Parameters
    ----------
    predicted
        Predicted labels. Missing ones are counted in a column ``"none"``.
    truth
        True labels of the same cells. Two Series are matched by index, everything else by position.
    normalize
        Percentages of each true label (rows), of each predicted label (columns) or of all cells; counts if None.
    unknown
        The label of cells that were given none of the context's; always the last row and column.
    cmap
        Colormap.
    ax
        Axes to draw on.
    show
        Show the figure; by default only where scanpy would (``sc.settings.autoshow``) and no axes are given.
    save
        File to write the figure to.

    Returns
    -------
    The axes. The labels are not changed.

    Raises
    ------
    ValueError
        If the indices or lengths do not fit, true labels are missing, missing predictions cannot be told from a label
        ``"none"``, there are no cells, or ``normalize`` is not known.

    Examples
    --------
    With ``model`` and ``human`` of the example of :class:`~transverse.ScSpecies`:

    >>> labels = model.transfer_labels()
    >>> ax = tv.pl.label_confusion(labels["label"], human.obs["cell_type"])
    """
    if normalize not in _SCALE:
        raise ValueError(f"normalize={normalize!r} must be one of {list(_SCALE)}.")
    predicted, truth = align(predicted, truth, ("predicted", "truth"))
    if (missing := truth.isna()).any():
        raise ValueError(f"truth is missing for {missing.sum()} cells: {examples(truth.index[missing])}.")
    predicted_order, truth_order = label_order(predicted), label_order(truth)
    if predicted.isna().any():
        if _NONE in {*predicted_order, *truth_order}:
            raise ValueError(f"predicted has missing labels, which would be counted as {_NONE!r}, but that is a label.")
        predicted_order.append(_NONE)
        predicted = predicted.astype(object).where(predicted.notna(), _NONE)

    never_last = sorted(truth_order, key=lambda label: label not in predicted_order)
    last = {_NONE: 1, unknown: 2}
    columns = sorted(dict.fromkeys([*never_last, *predicted_order]), key=lambda label: last.get(label, 0))
    counts = confusion_matrix(truth.astype(str), predicted.astype(str), labels=columns, normalize=normalize)
    matrix = pd.DataFrame(counts, index=columns, columns=columns).loc[[c for c in columns if c in truth_order]]
    if normalize is not None:
        matrix = matrix * 100

    panel = panels(ax, 1, "matrix", size=matrix_size(matrix))[0]
    texts = [[_text(value, normalize) for value in row] for row in matrix.to_numpy()]
    vmax = 100 if normalize in ("true", "pred") else None
    draw_matrix(panel, matrix, texts, cmap=cmap, label=_SCALE[normalize], vmin=0, vmax=vmax)
    panel.set(xlabel="predicted label", ylabel="true label")
    finish([panel], ax, show, save)
    return panel


def _text(value: float, normalize: str | None) -> str:
    if value == 0:
        return ""
    if normalize is None:
        return f"{value:.0f}"
    return "<1" if value < 1 else f"{value:.0f}"
