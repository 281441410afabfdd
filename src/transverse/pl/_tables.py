"""Checks of the tables and columns that figures are drawn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from transverse._validation import examples


def check_table(table: pd.DataFrame, columns: Sequence[str], name: str = "table") -> None:
    """Raise unless ``table`` is a data frame with rows and all of ``columns``."""
    if not isinstance(table, pd.DataFrame):
        raise TypeError(f"{name} must be a pandas.DataFrame, but got {type(table).__name__}.")
    if missing := [column for column in columns if column not in table]:
        raise KeyError(f"{name} lacks the columns {missing}. It has: {examples(table.columns, 20)}.")
    if table.empty:
        raise ValueError(f"{name} is empty: its shape is {table.shape}.")


def check_no_missing(table: pd.DataFrame, column: str, name: str = "table") -> None:
    """Raise a ValueError if a column has missing values."""
    if n_missing := int(table[column].isna().sum()):
        raise ValueError(f"{name}[{column!r}] is missing in {n_missing} of {len(table)} rows.")


def in_order(values: pd.Series) -> list:
    """Values that occur: in the order of their categories where they have one, else of their appearance."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        return list(values.cat.remove_unused_categories().cat.categories)
    return list(values.dropna().unique())


def label_order(labels: pd.Series) -> list[str]:
    """Labels that occur, as strings: categories in their order, others sorted."""
    labels = labels if isinstance(labels.dtype, pd.CategoricalDtype) else labels.astype("category")
    return list(dict.fromkeys(str(label) for label in in_order(labels)))


def choose(wanted: str | Sequence[str] | None, known: Sequence[str], argument: str, where: str = "the table") -> list:
    """What is ``wanted``, all that is ``known`` if that is None; raises where it is not known."""
    if wanted is None:
        return list(known)
    wanted = [wanted] if isinstance(wanted, str) else list(dict.fromkeys(wanted))
    if not wanted:
        raise ValueError(f"{argument} must name at least one, but is empty. Known: {examples(known)}.")
    if unknown := [item for item in wanted if item not in known]:
        raise KeyError(f"{argument} not in {where}: {examples(unknown)}. Known: {examples(known)}.")
    return wanted


def split_scores(
    table: pd.DataFrame,
    metric: str | Sequence[str],
    chosen: Mapping[str, str | Sequence[str] | None],
    preferred: Mapping[str, str],
) -> list[pd.DataFrame]:
    """Rows of each score that is wanted, without missing values, in the order of what was asked for.

    ``chosen`` holds what is wanted of columns that tell scores of one name apart. Where that is None, it is the column's
    ``preferred`` value if the score is there for it, else all.
    """
    check_table(table, [column for column, wanted in chosen.items() if wanted is not None])
    columns = [column for column in chosen if column in table]
    scores = []
    for name in choose(metric, in_order(table["metric"]), "metric"):
        rows = table[(table["metric"] == name) & np.isfinite(table["value"].astype(float))]
        if rows.empty:
            raise ValueError(f"The table has no value of {name!r}.")
        parts = [rows]
        for column in columns:
            known = in_order(rows[column])
            wanted = chosen[column]
            if wanted is None and preferred.get(column) in known:
                wanted = preferred[column]
            wanted = choose(wanted, known, f"{column} of {name!r}")
            parts = [part[part[column] == value] for part in parts for value in wanted]
        parts = [part for part in parts if len(part)]
        if not parts:
            raise KeyError(f"The table has {name!r}, but not for all at once of what was chosen.")
        scores += parts
    return scores


def align(first: Sequence, second: Sequence, names: tuple[str, str]) -> tuple[pd.Series, pd.Series]:
    """Two columns of the same cells, matched by index if both are Series and by position otherwise."""
    by_index = isinstance(first, pd.Series) and isinstance(second, pd.Series)
    columns = []
    for values, name in zip((first, second), names, strict=True):
        if not isinstance(values, pd.Series | pd.Index | pd.Categorical):
            values = np.asarray(values)
        if np.ndim(values) != 1:
            raise ValueError(f"{name} must have one dimension, but has {np.ndim(values)}.")
        columns.append(pd.Series(values))
    first, second = columns
    if len(first) != len(second):
        raise ValueError(f"{names[0]} has {len(first)} values and {names[1]} has {len(second)}; they must be as many.")
    if len(first) == 0:
        raise ValueError(f"{names[0]} and {names[1]} are empty.")
    if not by_index:
        return first.reset_index(drop=True), second.reset_index(drop=True)
    if not first.index.equals(second.index):
        if not (first.index.is_unique and second.index.is_unique):
            raise ValueError(f"The indices of {names[0]} and {names[1]} differ and repeat, so they cannot be matched.")
        if len(extra := first.index.difference(second.index, sort=False)):
            raise ValueError(
                f"{names[0]} and {names[1]} must have the same index, but these of {names[0]} are not in {names[1]}: "
                f"{examples(extra)}. Pass arrays to match them by position."
            )
        first = first.reindex(second.index)
    return first, second
