from __future__ import annotations

from os import PathLike

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from transverse._validation import examples

from ._figure import finish, panels, short_names
from ._fit import NAME_STEP, fit_titles, name_where_they_fit, text_scale
from ._tables import check_table

_SIDE = (3.4, 6.0)  # least and most inches of the matrix


def latent_agreement(
    agreement: pd.DataFrame,
    *,
    cmap: str = "RdBu_r",
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | PathLike | None = None,
) -> Axes:
    """Correlation of the latent vectors of perturbations in one cell type (rows) with those in another (columns).

    Where the latent space holds what a perturbation does in any cell type, the diagonal stands out, however little the
    signatures themselves resemble each other: the figure of DeepCellState :cite:p:`Umarov2021`. The title gives the mean
    of the diagonal and of the rest, and the share of rows that are largest on the diagonal; a row with several largest
    values counts in part, so that a matrix of equal values has the share of chance, one over the number of rows.

    Parameters
    ----------
    agreement
        What ``DeepCellState.get_latent_agreement`` returns, of latent vectors or, to compare, of the signatures that go in:
        square, Pearson correlations without missing ones, the same perturbations as rows and as columns, with the cell
        types as names of the index and of the columns. It is drawn in the order of its rows.
    cmap
        Colormap, a diverging one: its middle is 0.
    ax
        Axes to draw on.
    show
        Show the figure; by default only where scanpy would (``sc.settings.autoshow``) and no axes are given.
    save
        File to write the figure to.

    Returns
    -------
    The axes. Perturbations are named where the names fit. The table is not changed.

    Raises
    ------
    ValueError
        If there are fewer than two perturbations, they repeat, rows and columns are not of the same, or values are not
        correlations.
    TypeError
        If something else than a DataFrame is given.

    Examples
    --------
    With ``model`` of the example of :class:`~transverse.DeepCellState`:

    >>> agreement = model.get_latent_agreement("C1", "C2")
    >>> ax = tv.pl.latent_agreement(agreement)
    """
    values = _checked(agreement)
    n = len(values)
    own = np.diagonal(values)
    rest = values[~np.eye(n, dtype=bool)]
    is_largest = values == values.max(axis=1, keepdims=True)
    share = (np.diagonal(is_largest) / is_largest.sum(axis=1)).mean()

    side = float(np.clip(1.05 * NAME_STEP * n / 72, *_SIDE))
    panel = panels(ax, 1, "matrix", size=(side + 1 + 1.5 * text_scale(), side + 1 + 0.9 * text_scale()))[0]
    limit = np.abs(values).max() or 1.0
    image = panel.imshow(values, cmap=cmap, vmin=-limit, vmax=limit)
    panel.grid(False)
    panel.set_xticks([])
    panel.set_yticks([])
    panel.figure.colorbar(image, ax=panel, label="Pearson correlation", fraction=0.05, pad=0.03)
    panel.set_title(
        f"same perturbation {own.mean():z.2f}, others {rest.mean():z.2f}\n"
        f"largest in its row: {_percent(share)} (chance {_percent(1 / n)})",
        fontsize="medium",
    )
    panel.set(xlabel=_label(agreement.columns.name, n), ylabel=_label(agreement.index.name, n))
    fit_titles([panel])
    names = short_names(agreement.index)
    name_where_they_fit([panel], [names], [names])
    finish([panel], ax, show, save)
    return panel


def _checked(agreement: pd.DataFrame) -> np.ndarray:
    """The matrix, its columns in the order of its rows."""
    check_table(agreement, [], "agreement")
    for axis, names in (("rows", agreement.index), ("columns", agreement.columns)):
        if names.has_duplicates:
            raise ValueError(f"agreement has {axis} that repeat: {examples(names[names.duplicated()].unique())}.")
    for axis, one, other in (
        ("rows", agreement.index, agreement.columns),
        ("columns", agreement.columns, agreement.index),
    ):
        if len(extra := one.difference(other, sort=False)):
            raise ValueError(
                f"agreement must have the same perturbations as rows and as columns, but {len(extra)} are only in its "
                f"{axis}: {examples(extra)}."
            )
    if len(agreement) < 2:
        raise ValueError("agreement needs at least two perturbations, but has one.")
    try:
        values = agreement.iloc[:, agreement.columns.get_indexer(agreement.index)].to_numpy(
            dtype=float, na_value=np.nan
        )
    except (TypeError, ValueError) as error:
        raise ValueError("agreement must hold numbers only.") from error
    if (missing := ~np.isfinite(values).all(axis=1)).any():
        raise ValueError(
            f"agreement has missing or infinite values in {int(missing.sum())} of its rows: "
            f"{examples(agreement.index[missing])}. Remove these perturbations, as rows and as columns."
        )
    if np.abs(values).max() > 1 + 1e-6:
        found = f"{values.min():.4g} to {values.max():.4g}"
        raise ValueError(f"agreement must hold correlations, from -1 to 1, but its values go from {found}.")
    return values


def _label(cell_type: str | None, n: int) -> str:
    return f"{n} perturbations" + ("" if cell_type is None else f" in {cell_type}")


def _percent(share: float) -> str:
    """A share in percent, with a decimal where it is small."""
    return f"{share:.1%}" if 0 < share < 0.1 else f"{share:.0%}"
