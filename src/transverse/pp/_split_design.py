"""What was measured: the conditions, controls and animals of perturbation data, read from ``adata.obs``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from anndata import AnnData

from transverse._validation import check_obs_key, column_names, examples

from ._perturbations import clean, parts

SPLITS = ("train", "valid", "test")
TRAIN, VALID, TEST = range(3)


@dataclass(frozen=True, eq=False)
class Design:
    """The conditions of a data set: its distinct pairs of a treatment and a context."""

    perturbations: list[str]
    """Names of the treatments in canonical order of their parts, sorted; without the control."""
    contexts: list[str]
    """Names of the contexts, sorted."""
    perturbation: np.ndarray
    """Of each cell: which perturbation, -1 for a control."""
    context: np.ndarray
    """Of each cell: which context."""
    animal: np.ndarray | None
    """Of each cell: which animal."""
    animals: list[str]
    """Names of the animals, sorted."""
    control: str | None
    delimiter: str | None
    has_contexts: bool

    @cached_property
    def is_control(self) -> np.ndarray:
        return self.perturbation < 0

    @cached_property
    def _conditions(self) -> tuple[np.ndarray, np.ndarray]:
        codes = self.perturbation.astype(np.int64) * len(self.contexts) + self.context
        found, inverse = np.unique(codes[~self.is_control], return_inverse=True)
        of_cell = np.full(len(codes), -1)
        of_cell[~self.is_control] = inverse
        return found, of_cell

    @property
    def condition(self) -> np.ndarray:
        """Of each cell: which condition, -1 for a control."""
        return self._conditions[1]

    @cached_property
    def condition_perturbation(self) -> np.ndarray:
        """Of each condition: its perturbation."""
        return self._conditions[0] // len(self.contexts)

    @cached_property
    def condition_context(self) -> np.ndarray:
        """Of each condition: its context."""
        return self._conditions[0] % len(self.contexts)

    @property
    def n_conditions(self) -> int:
        return len(self._conditions[0])

    @cached_property
    def parts(self) -> list[frozenset[str]]:
        """Of each perturbation: the single perturbations in it."""
        return [frozenset(parts(name, self.delimiter)) for name in self.perturbations]

    @cached_property
    def combinations(self) -> list[str]:
        return [name for name in self.perturbations if len(parts(name, self.delimiter)) > 1]

    @cached_property
    def known_combinations(self) -> list[str]:
        """Combinations of which every single is measured alone, in some context."""
        measured = set(self.perturbations)
        return [name for name in self.combinations if measured.issuperset(parts(name, self.delimiter))]

    def pair(self, condition: int) -> tuple[str, str]:
        """The names of a condition."""
        perturbation = self.perturbations[self.condition_perturbation[condition]]
        return perturbation, self.contexts[self.condition_context[condition]]

    def pair_name(self, condition: int) -> str:
        """A condition in words."""
        perturbation, context = self.pair(condition)
        return f"{perturbation} in {context}" if self.has_contexts else perturbation

    def clean(self, name: str | Sequence[str]) -> str:
        """The canonical name of a perturbation, see :func:`clean`."""
        return clean(name, self.control, self.delimiter)


def labels(adata: AnnData, key: str, argument: str, hint: str = "") -> tuple[np.ndarray, list[str]]:
    """A column as codes and names (as text, sorted); refuses missing columns and values."""
    if hint and key not in adata.obs:
        raise KeyError(f"{argument}={key!r} is not in adata.obs. Columns: {column_names(adata.obs)}. {hint}")
    check_obs_key(adata, key, argument)
    column = adata.obs[key]
    if (missing := column.isna().to_numpy()).any():
        raise ValueError(
            f"adata.obs[{key!r}] ({argument}) is missing for {int(missing.sum())} cells: "
            f"{examples(adata.obs_names[missing])}. Fill it in or remove the cells."
        )
    codes, values = pd.factorize(column)
    return _regroup(codes, [str(value) for value in values])


def _regroup(codes: np.ndarray, names: list[str]) -> tuple[np.ndarray, list[str]]:
    found, inverse = np.unique(np.asarray(names, dtype=object), return_inverse=True)
    return inverse[codes], found.tolist()


def read_design(
    adata: AnnData,
    *,
    perturbation_key: str,
    control: str | None,
    context_key: str | None,
    animal_key: str | None,
    delimiter: str | None,
) -> Design:
    """Read the conditions from ``adata.obs``, and refuse what cannot be read."""
    if not isinstance(adata, AnnData):
        raise TypeError(f"adata must be an AnnData, but got {type(adata).__name__}.")
    if adata.n_obs == 0:
        raise ValueError("adata has no cells.")
    if delimiter is not None and (not isinstance(delimiter, str) or not delimiter):
        raise ValueError(f"delimiter={delimiter!r} must be text such as '+', or None if there are no combinations.")
    codes, names = labels(adata, perturbation_key, "perturbation_key")
    if control is not None:
        control = str(control)
        if control not in names:
            raise ValueError(
                f"control={control!r} is not in adata.obs[{perturbation_key!r}], which has: {examples(names)}. "
                "Name the label of the control cells, or pass control=None if there are none."
            )
    codes, names = _regroup(codes, [clean(name, control, delimiter) for name in names])
    treated = [name for name in names if name != control]
    if not treated:
        raise ValueError(f"adata.obs[{perturbation_key!r}] has no perturbation but the control {control!r}.")
    position = {name: i for i, name in enumerate(treated)}
    perturbation = np.array([position.get(name, -1) for name in names])[codes]
    if context_key is None:
        context, contexts = np.zeros(adata.n_obs, dtype=int), ["all"]
    else:
        hint = "Name the column, or pass context_key=None if there is one context only."
        context, contexts = labels(adata, context_key, "context_key", hint)
    animal, animals = (None, []) if animal_key is None else labels(adata, animal_key, "animal_key")
    return Design(
        treated,
        contexts,
        perturbation,
        context,
        animal,
        animals,
        control,
        delimiter,
        has_contexts=context_key is not None,
    )


def sides_of(codes: np.ndarray, side: np.ndarray, n: int) -> np.ndarray:
    """Of each of `n` things: whether it has cells on each of the three sides; codes below 0 are left out."""
    found = np.zeros((n, len(SPLITS)), dtype=bool)
    found[codes[codes >= 0], side[codes >= 0]] = True
    return found


def on_several(names: list[str], found: np.ndarray) -> list[str]:
    """The names of what has cells on more than one side, with these sides."""
    several = np.flatnonzero(found.sum(axis=1) > 1)
    return [f"{names[i]} ({' and '.join(np.array(SPLITS)[found[i]])})" for i in several]
