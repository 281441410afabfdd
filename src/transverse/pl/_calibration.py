from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from transverse.metrics._calibration import calibration_bins, calibration_error, check_n_bins

from ._figure import COLORS, finish, panels
from ._tables import align


def calibration(
    confidence: Sequence[float] | pd.Series,
    correct: Sequence[bool] | pd.Series,
    *,
    n_bins: int = 10,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | PathLike | None = None,
) -> Axes:
    r"""Reliability diagram: how often predictions of some confidence are right.

    Cells are put into bins of equal width, closed on the right. The title gives the expected calibration error (Guo et
    al., 2017), :math:`\sum_b \frac{n_b}{n} |acc_b - conf_b|`, with the share of right predictions :math:`acc_b` and the
    mean confidence :math:`conf_b` of a bin.

    Parameters
    ----------
    confidence
        Confidences of the predictions, between 0 and 1.
    correct
        Whether each is right. Two Series are matched by index, everything else by position.
    n_bins
        Number of bins.
    ax
        Axes to draw on.
    show
        Show the figure; by default only where scanpy would (``sc.settings.autoshow``) and no axes are given.
    save
        File to write the figure to.

    Returns
    -------
    The axes: a marker for each bin that has cells, its area growing with their number. The input is not changed.

    Raises
    ------
    ValueError
        If the indices or lengths do not fit, there are no cells, a value is missing or out of range, or ``n_bins`` is
        not a whole number of at least 1.

    Examples
    --------
    With ``model`` and ``human`` of the example of :class:`~transverse.ScSpecies`:

    >>> labels = model.transfer_labels()
    >>> right = labels["label"].astype(str) == human.obs["cell_type"].astype(str)
    >>> ax = tv.pl.calibration(labels["confidence"], right)
    """
    confidence, correct = align(confidence, correct, ("confidence", "correct"))
    confidence, correct = _numbers(confidence, "confidence"), _numbers(correct, "correct")
    if not np.isin(correct, (0, 1)).all():
        raise ValueError("correct must hold True or False (1 or 0) only.")
    check_n_bins(n_bins)

    means = calibration_bins(confidence, correct, n_bins)
    n_cells, error = means["n"], calibration_error(means)

    panel = panels(ax, 1, "figure", size=(4.4, 4.0))[0]
    panel.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=0.8, zorder=1)
    panel.plot(means["confidence"], means["correct"], color=COLORS[0], linewidth=1.0, zorder=2)
    smallest, largest = 15, 300
    points = panel.scatter(
        means["confidence"],
        means["correct"],
        s=smallest + (largest - smallest) * n_cells / n_cells.max(),
        color=COLORS[0],
        edgecolors="white",
        linewidths=0.8,
        zorder=3,
    )
    sizes = points.legend_elements(
        "sizes", num=3, color=COLORS[0], func=lambda s: (s - smallest) / (largest - smallest) * n_cells.max()
    )
    panel.legend(*sizes, title="cells", loc="lower right", frameon=False, labelspacing=1.0)
    panel.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xlabel="mean confidence", ylabel="accuracy")
    panel.set_aspect("equal")
    panel.set_title(f"expected calibration error {error:.3f}", fontsize="medium")
    panel.spines[["top", "right"]].set_visible(False)
    finish([panel], ax, show, save)
    return panel


def _numbers(values: pd.Series, name: str) -> np.ndarray:
    numbers = pd.to_numeric(values).to_numpy(dtype=float, na_value=np.nan)
    if missing := int(np.isnan(numbers).sum()):
        raise ValueError(f"{name} is missing for {missing} cells.")
    if (outside := (numbers < 0) | (numbers > 1)).any():
        raise ValueError(
            f"{name} must be between 0 and 1, but has {', '.join(f'{v:g}' for v in numbers[outside][:5])}."
        )
    return numbers
