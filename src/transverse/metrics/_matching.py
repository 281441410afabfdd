"""Columns of the same cells, matched by their index or by position."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from transverse._validation import examples


def as_column(values: Sequence | pd.Series, name: str) -> pd.Series:
    """``values`` as a Series; raises unless they have one dimension."""
    if isinstance(values, str | bytes | dict | pd.DataFrame) or np.ndim(values) != 1:
        raise TypeError(f"{name} must be a Series or a sequence with one value per cell, but got {_what(values)}.")
    if not isinstance(values, pd.Series | pd.Index | pd.Categorical | pd.api.extensions.ExtensionArray):
        values = np.asarray(values)
    return values if isinstance(values, pd.Series) else pd.Series(values)


def _what(values: object) -> str:
    shape = f" of shape {np.shape(values)}" if isinstance(values, np.ndarray | pd.DataFrame) else ""
    return f"{type(values).__name__}{shape}"


def match_cells(values: pd.Series, index: pd.Index | None, n_cells: int, names: tuple[str, str]) -> pd.Series:
    """``values`` in the order of ``index``, or as they are where that is None.

    Parameters
    ----------
    values
        The column.
    index
        The cells of the other column; None matches by position.
    n_cells
        Number of cells of the other column.
    names
        What to call the column and the other one in messages.
    """
    if len(values) != n_cells:
        raise ValueError(f"{names[0]} has {len(values)} values and {names[1]} has {n_cells}; they must be as many.")
    if index is None or values.index.equals(index):
        return values
    if not (index.is_unique and values.index.is_unique):
        raise ValueError(f"The indices of {names[0]} and {names[1]} differ and repeat, so they cannot be matched.")
    if len(extra := values.index.difference(index, sort=False)):
        raise ValueError(
            f"{names[0]} and {names[1]} must have the same index, but these of {names[0]} are not in {names[1]}: "
            f"{examples(extra)}. Pass arrays to match them by position."
        )
    return values.reindex(index)
