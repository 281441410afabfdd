"""Where the effect of a perturbation is taken from, and whether that shows the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from transverse._similarity import similarity_weights
from transverse._validation import examples

from ._cells import Cells

SourceWeights = Literal["similarity", "uniform", "cells"]

# the context of cells that do not tell theirs
UNKNOWN = "unknown"


@dataclass(frozen=True)
class EffectTable:
    """Mean effects of conditions.

    Attributes
    ----------
    conditions
        Perturbation and context of each.
    means
        Array of shape ``(n_conditions, n_latent)``.
    shifts
        Mean expression against control cells of the context, shape ``(n_conditions, n_genes)``; NaN without any.
    n_cells
        Cells of each.
    """

    conditions: list[tuple[str, str]]
    means: np.ndarray
    shifts: np.ndarray
    n_cells: np.ndarray

    def contexts_of(self, name: str) -> list[str]:
        """Contexts in which a perturbation is known."""
        return [context for perturbation, context in self.conditions if perturbation == name]

    def take(
        self,
        name: str,
        contexts: Sequence[str],
        distances: Mapping[str, float],
        weights: SourceWeights,
        bandwidth: float,
    ) -> Effect:
        """The effect of a perturbation from its contexts; without a distance to all of them, similarity is uniform."""
        rows = [self.conditions.index((name, context)) for context in contexts]
        shares = np.ones(len(rows))
        if weights == "cells":
            shares = self.n_cells[rows].astype(float)
        elif weights == "similarity" and all(context in distances for context in contexts):
            shares = similarity_weights(np.array([distances[context] for context in contexts]), bandwidth)
        return Effect(name, list(contexts), shares / shares.sum(), self.means[rows], self.shifts[rows])


@dataclass(frozen=True)
class Effect:
    """The effect of one part of a perturbation: of each context its weight, mean effect and observed shift."""

    name: str
    contexts: list[str]
    weights: np.ndarray
    means: np.ndarray
    shifts: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """Weighted mean, shape ``(n_latent,)``."""
        return self.weights @ self.means

    @property
    def shift(self) -> np.ndarray | None:
        """Weighted mean of the observed shifts, shape ``(n_genes,)``; None where there is none."""
        seen = np.isfinite(self.shifts).all(axis=1) & (self.weights > 0)
        return np.average(self.shifts[seen], axis=0, weights=self.weights[seen]) if seen.any() else None


def choose_parts(
    table: EffectTable,
    name: str,
    singles: Sequence[str],
    context: str,
    sources: Sequence[str] | None,
    allow_leak: bool,
) -> dict[str, list[str]]:
    """Contexts to take each part from: the whole perturbation where it was measured elsewhere, else each of its singles.

    The predicted context may lend singles to a combination, but not the perturbation itself, unless that is asked for.
    """
    shown = (
        f"{f'{context!r} only, ' if context else ''}the context that is predicted: the prediction would be shown the answer. "
        "Pass allow_leak=True if that is what you want; the result then says so."
    )
    if sources is not None and context in sources and len(singles) == 1 and not allow_leak:
        raise ValueError(f"The effect of {name!r} is known from {shown.replace(' only', '')}")

    def usable(part: str, own: bool) -> list[str]:
        found = [c for c in table.contexts_of(part) if sources is None or c in sources]
        return [c for c in found if own or c != context]

    own = allow_leak and (sources is None or context in sources)
    if whole := usable(name, own):
        return {name: whole}
    chosen = {single: usable(single, own=len(singles) > 1) for single in singles}
    if lacking := [single for single, contexts in chosen.items() if not contexts]:
        if context in table.contexts_of(name) and (sources is None or context in sources):
            raise ValueError(f"The effect of {name!r} is known from {shown}")
        measured = sorted({c for single in lacking for c in table.contexts_of(single)})
        raise ValueError(
            f"Nothing to take the effect of {examples(lacking)} from"
            f"{'' if sources is None else f' in source {examples(sources)}'}: it was measured in {examples(measured)}. "
            "Name other contexts as source=, or pass cells that had it as reference=."
        )
    return chosen


def leak_of(chosen: Mapping[str, Sequence[str]], name: str, context: str, same_cell: bool) -> str:
    """What of the answer the prediction was shown."""
    if name not in chosen:
        return "none"
    if context in chosen[name]:
        return "same cell" if same_cell else "same condition, other cells"
    return UNKNOWN if UNKNOWN in chosen[name] else "none"


def observed_change(effects: Sequence[Effect], scales: Sequence[float], combine: str) -> np.ndarray | None:
    """What the parts were seen to do where their effect is taken from, shape ``(n_genes,)``; None where it is unknown."""
    shifts = [effect.shift for effect in effects]
    if any(shift is None for shift in shifts):
        return None
    changes = np.stack([scale * shift for scale, shift in zip(scales, shifts, strict=True)])
    if combine == "sum":
        return changes.sum(axis=0)
    return np.take_along_axis(changes, np.abs(changes).argmax(axis=0)[None], axis=0)[0]


def carriers(cells: Cells, name: str, contexts: Sequence[str]) -> Cells:
    """The cells that an effect is taken from."""
    found = cells.where((cells.perturbations == name) & np.isin(cells.contexts.astype(str), contexts))
    if lacking := sorted(set(contexts) - set(found.contexts)):
        raise ValueError(
            f"The data of the model have no cells of {name!r} in {examples(lacking)}. Load it with the training data, or pass "
            "such cells as reference=."
        )
    return found
