from __future__ import annotations

from os import PathLike

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ._figure import draw_matrix, finish, mark_cell, matrix_size, panels
from ._tables import check_table

_MOST_WITH_NUMBERS = 15
_BEST, _OTHER = {"width": 2.0, "inset": (0.07, 0.07)}, {"width": 0.8, "inset": (0.05, 0.05)}


def similarity_heatmap(
    matrix: pd.DataFrame,
    *,
    mark_top: int = 2,
    vmin: float | None = None,
    vmax: float | None = None,
    cmap: str = "Blues",
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | PathLike | None = None,
) -> Axes:
    """Similarity of the target's types (rows) to the context's (columns).

    Parameters
    ----------
    matrix
        Similarities, higher where types are more similar; missing ones stay blank. Numbers are written into the cells
        if there are at most 15 rows and columns.
    mark_top
        How many of each row's highest similarities to mark: the best with a bold border and number, the others with a
        thin border.
    vmin, vmax
        Ends of the colour scale; by default the lowest and the highest similarity. One pair that is very unlike can take most
        of the scale: set ``vmin`` then.
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
    The axes. The matrix is not changed.

    Raises
    ------
    ValueError
        If the matrix is empty, holds something else than finite or missing numbers, ``mark_top`` is negative, or ``vmin``
        is not below ``vmax``.

    Examples
    --------
    With ``model`` of the example of :class:`~transverse.ScSpecies`:

    >>> similarity = model.get_cell_type_similarity(groupby="cell_type", scale="max")
    >>> ax = tv.pl.similarity_heatmap(similarity)
    """
    check_table(matrix, [], "matrix")
    try:
        values = matrix.to_numpy(dtype=float, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise ValueError("matrix must hold numbers only.") from error
    if np.isinf(values).any() or np.isnan(values).all():
        raise ValueError("matrix must hold finite numbers; single ones may be missing, but none may be infinite.")
    if mark_top < 0:
        raise ValueError(f"mark_top={mark_top} must not be negative.")
    lowest, highest = np.nanmin(values), np.nanmax(values)
    low, high = lowest if vmin is None else vmin, highest if vmax is None else vmax
    # without limits of the user's, all values may be the same
    if (vmin is not None or vmax is not None) and not (np.isfinite([low, high]).all() and low < high):
        raise ValueError(f"vmin={low:g} must be below vmax={high:g}, and both finite.")

    extend = {0: "neither", 1: "min", 2: "max", 3: "both"}[(lowest < low) + 2 * (highest > high)]
    panel = panels(ax, 1, "matrix", size=matrix_size(matrix))[0]
    texts = _texts(values) if max(matrix.shape) <= _MOST_WITH_NUMBERS else None
    draw_matrix(panel, matrix, texts, cmap=cmap, label="similarity", vmin=low, vmax=high, extend=extend)
    for i, row in enumerate(values):
        order = np.argsort(-row, kind="stable")[:mark_top]  # missing ones are sorted to the end
        for rank, j in enumerate(order[~np.isnan(row[order])]):
            mark_cell(panel, i, j, **(_BEST if rank == 0 else _OTHER))
            if texts is not None and rank == 0:
                panel.texts[i * matrix.shape[1] + j].set_fontweight("bold")
    panel.set(xlabel="context type", ylabel="target type")
    finish([panel], ax, show, save)
    return panel


def _texts(values: np.ndarray) -> list[list[str]]:
    """Numbers with as many decimals as tell them apart."""
    largest = np.nanmax(np.abs(values))
    decimals = int(np.clip(np.ceil(1.5 - np.log10(largest)), 0, 4)) if largest > 0 else 0
    return [["" if np.isnan(value) else f"{value:z.{decimals}f}" for value in row] for row in values]
