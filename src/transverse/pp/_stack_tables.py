"""Tables of several species below one another, and back."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

import numpy as np
import pandas as pd

from transverse._validation import examples

Join = Literal["outer", "inner"]


def unique_names(
    names: Mapping[str, pd.Index], prefix: Literal["repeated", "all"], delimiter: str, what: str
) -> pd.Index:
    """Names of all species one after the other, those in several (or all) as ``species + delimiter + name``."""
    together = np.concatenate([index.astype(str).to_numpy(dtype=object) for index in names.values()])
    species = np.repeat(np.array(list(names), dtype=object), [len(index) for index in names.values()])
    change = np.ones(len(together), dtype=bool) if prefix == "all" else pd.Index(together).duplicated(keep=False)
    result = pd.Index(np.where(change, species + delimiter + together, together), dtype=object)
    if not result.is_unique:
        raise ValueError(
            f"The names of {what} repeat even with the species before them: "
            f"{examples(result[result.duplicated()].unique())}. Use another delimiter, or prefix='all'."
        )
    return result


def join_tables(tables: Mapping[str, pd.DataFrame], index: pd.Index, join: Join, axis: str) -> pd.DataFrame:
    """Tables below one another with the columns of all (or that all share), of types that h5ad files can hold.

    Categories are those of all species. Where a species lacks a column, whole numbers become floats, booleans nullable
    ones and text categories, as these can be missing.
    """
    columns = list(dict.fromkeys(column for table in tables.values() for column in table.columns))
    if join == "inner":
        columns = [column for column in columns if all(column in table for table in tables.values())]
    joined = {}
    for column in columns:
        parts = {name: _present(table, column) for name, table in tables.items()}
        dtype = _common_dtype(parts, tables, column, axis)
        values = [
            pd.Series(np.full(len(tables[name]), np.nan), dtype=dtype) if part is None else part.astype(dtype)
            for name, part in parts.items()
        ]
        joined[column] = pd.concat(values, ignore_index=True).set_axis(index)
    return pd.DataFrame(joined, index=index, columns=_as_columns(columns))


def _as_columns(names: Collection[str]) -> pd.Index:
    """Text, as the version of pandas has it; an empty index has no type of its own."""
    return pd.Index(list(names), dtype=None if names else object)


def _present(table: pd.DataFrame, column: str) -> pd.Series | None:
    """A column, unless all of it is missing: then its type says nothing."""
    return table[column] if column in table and table[column].notna().any() else None


def _common_dtype(
    parts: Mapping[str, pd.Series | None], tables: Mapping[str, pd.DataFrame], column: str, axis: str
) -> Any:
    present = {name: part for name, part in parts.items() if part is not None}
    if not present:
        dtype = next(table[column].dtype for table in tables.values() if column in table)
        return np.float64 if pd.api.types.is_object_dtype(dtype) else dtype
    kinds = {_kind(part.dtype) for part in present.values()}
    complete = len(present) == len(parts)
    dtypes = [part.dtype for part in present.values()]
    if kinds == {"text"} and complete:
        return object
    if kinds <= {"category", "text"} and len({_kind_of_values(dtype) for dtype in dtypes}) == 1:
        return _common_categories(list(present.values()))
    if kinds == {"number"}:
        if any(pd.api.types.is_extension_array_dtype(dtype) for dtype in dtypes):
            return pd.concat([part.iloc[:0] for part in present.values()]).dtype
        common = np.result_type(*dtypes)
        return np.result_type(common, np.float64) if not complete and common.kind in "iu" else common
    if kinds == {"boolean"}:
        return "bool" if complete and all(isinstance(dtype, np.dtype) for dtype in dtypes) else "boolean"
    if len(set(dtypes)) == 1:
        return dtypes[0]
    raise ValueError(
        f"{axis}[{column!r}] holds different things: "
        f"{', '.join(f'{part.dtype} in {name!r}' for name, part in present.items())}. Convert it to one type, or remove it."
    )


def _kind(dtype: Any) -> str:
    if isinstance(dtype, pd.CategoricalDtype):
        return "category"
    if pd.api.types.is_bool_dtype(dtype):
        return "boolean"
    if pd.api.types.is_numeric_dtype(dtype):
        return "number"
    return "text" if pd.api.types.is_object_dtype(dtype) or isinstance(dtype, pd.StringDtype) else str(dtype)


def _kind_of_values(dtype: Any) -> str:
    return _kind(dtype.categories.dtype if isinstance(dtype, pd.CategoricalDtype) else dtype)


def _common_categories(parts: list[pd.Series]) -> pd.CategoricalDtype:
    own = [
        part.cat.categories
        if isinstance(part.dtype, pd.CategoricalDtype)
        else pd.Index(sorted(part.dropna().unique(), key=str), dtype=object)
        for part in parts
    ]
    ordered = all(
        isinstance(part.dtype, pd.CategoricalDtype) and part.cat.ordered and categories.equals(own[0])
        for part, categories in zip(parts, own, strict=True)
    )
    categories = own[0]
    for other in own[1:]:
        categories = categories.append(other)
    categories = categories.unique()
    if isinstance(categories.dtype, pd.StringDtype):
        categories = categories.astype(object)
    return pd.CategoricalDtype(categories, ordered=ordered)


def describe_table(table: pd.DataFrame) -> dict[str, Any]:
    """What it takes to make the table again from the joined one, for JSON."""
    return {"columns": {str(key): _describe(table[key].dtype) for key in table.columns}, "index": _index(table.index)}


def _describe(dtype: Any) -> dict[str, Any]:
    if not isinstance(dtype, pd.CategoricalDtype):
        return {"dtype": str(dtype)}
    categories = dtype.categories
    return {
        "dtype": "category",
        "categories": categories.to_list(),
        "of": str(categories.dtype),
        "ordered": bool(dtype.ordered),
    }


def _index(index: pd.Index) -> dict[str, Any]:
    return {"name": index.name, "dtype": str(index.dtype)}


def restore_table(table: pd.DataFrame, record: Mapping[str, Any], known: set[str], names: pd.Index) -> pd.DataFrame:
    """The part of a species with the columns, types and order it had; columns that no species had, ``known``, stay."""
    own = {column: _restore(table[column], how) for column, how in record["columns"].items() if column in table}
    own |= {column: table[column] for column in table.columns if column not in known}
    index = names.astype(record["index"]["dtype"]).rename(record["index"]["name"])
    restored = pd.DataFrame(own, index=table.index, columns=_as_columns(own))
    return restored.set_axis(index)


def _restore(values: pd.Series, how: Mapping[str, Any]) -> pd.Series:
    if how["dtype"] == "category":
        known = pd.Index(how["categories"], dtype=how["of"])
        # what was changed since must not get lost
        new = pd.Index(values.dropna().unique(), dtype=object).difference(known.astype(object), sort=False)
        categories = known if new.empty else known.append(new)
        return values.astype(object).astype(pd.CategoricalDtype(categories, ordered=how["ordered"]))
    if values.isna().all():
        values = pd.Series(np.nan, index=values.index)
    try:
        return values.astype(how["dtype"])
    except (TypeError, ValueError):
        return values
