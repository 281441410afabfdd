"""What the data hold: conditions, their cells, their possible partners, and what can be learnt from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd

from transverse._validation import examples
from transverse.pp._perturbations import clean, parts

from ._constants import COMBINATION, SAME_CONTEXT, SAME_PERTURBATION

Pairing = Literal["auto", "perturbation", "context", "mixed"]


@dataclass(frozen=True)
class Condition:
    """A perturbation, or the control, in a context."""

    perturbation: str
    context: str


@dataclass(frozen=True)
class Design:
    """Conditions of some cells.

    Attributes
    ----------
    conditions
        All that occur.
    cells
        Positions of the cells of each.
    strata
        Positions of control cells that can be matched, by stratum: context and batch, or context.
    stratum
        Stratum of every cell of the data; -1 where there is no control.
    is_control_cell
        Whether a cell of the data is a control.
    control
        Name of the control.
    """

    conditions: list[Condition]
    cells: list[np.ndarray]
    strata: list[np.ndarray]
    stratum: np.ndarray
    is_control_cell: np.ndarray
    control: str
    delimiter: str | None = "+"
    _by_context: dict[str, list[int]] = field(init=False, default_factory=dict)
    _by_perturbation: dict[str, list[int]] = field(init=False, default_factory=dict)

    def __post_init__(self):
        for i, condition in enumerate(self.conditions):
            self._by_context.setdefault(condition.context, []).append(i)
            self._by_perturbation.setdefault(condition.perturbation, []).append(i)

    def is_control(self, i: int) -> bool:
        """Whether a condition is the control of its context."""
        return self.conditions[i].perturbation == self.control

    def find(self, perturbation: str, context: str) -> int | None:
        """Position of a condition, or None."""
        found = [i for i in self._by_perturbation.get(perturbation, []) if self.conditions[i].context == context]
        return found[0] if found else None

    def other_perturbations(self, i: int) -> list[int]:
        """Treated conditions of the same context."""
        here = self._by_context[self.conditions[i].context]
        return [j for j in here if j != i and not self.is_control(j)]

    def control_of(self, i: int) -> int | None:
        """The control condition of the same context, or None for the control itself and where there is none."""
        here = self._by_context[self.conditions[i].context]
        return next((j for j in here if j != i and self.is_control(j)), None)

    def other_contexts(self, i: int) -> list[int]:
        """The same perturbation in other contexts."""
        return [j for j in self._by_perturbation[self.conditions[i].perturbation] if j != i]

    def singles_of(self, i: int) -> tuple[int, int] | None:
        """Both singles of a double, where they are measured in its context."""
        singles = parts(self.conditions[i].perturbation, self.delimiter)
        if self.is_control(i) or len(singles) != 2 or singles[0] == singles[1]:
            return None
        left, right = (self.find(single, self.conditions[i].context) for single in singles)
        return None if left is None or right is None else (left, right)

    def all_partners(self, pairing: str, control_share: float) -> dict[int, dict[int, list[int]]]:
        """For every condition with partners, of each kind of pair its possible partners; for a double, both its singles."""
        found = {}
        for i in range(len(self.conditions)):
            kinds: dict[int, list[int]] = {}
            if control_share == 0 and self.is_control(i):
                continue
            if pairing in ("perturbation", "mixed"):
                others = self.other_perturbations(i)
                if control_share > 0 and not others and (control := self.control_of(i)) is not None:
                    others = [control]
                if others:
                    kinds[SAME_CONTEXT] = others
                if (singles := self.singles_of(i)) is not None:
                    kinds[COMBINATION] = list(singles)
            if pairing in ("context", "mixed") and (others := self.other_contexts(i)):
                kinds[SAME_PERTURBATION] = others
            if kinds:
                found[i] = kinds
        return found

    @property
    def n_pairs(self) -> dict[str, int]:
        """Numbers of unordered pairs of treated conditions, by what the partners share, and of doubles with both singles."""
        treated = [i for i in range(len(self.conditions)) if not self.is_control(i)]
        return {
            "perturbation": sum(len(self.other_perturbations(i)) for i in treated) // 2,
            "context": sum(len(self.other_contexts(i)) for i in treated) // 2,
            "combination": sum(self.singles_of(i) is not None for i in treated),
        }


def make_design(
    perturbations: np.ndarray,
    contexts: np.ndarray,
    batches: np.ndarray | None,
    control: str,
    delimiter: str | None,
    cells: np.ndarray,
) -> Design:
    """The design of the cells at positions ``cells``; names are those of all cells, perturbations canonical."""
    names = pd.DataFrame({"perturbation": perturbations[cells], "context": contexts[cells]})
    groups = names.groupby(["perturbation", "context"], sort=True).indices
    controls = cells[perturbations[cells] == control]
    stratum = np.full(len(perturbations), -1)
    strata: list[np.ndarray] = []
    # by context first; by batch within it where the batch has controls of its own
    for by in (
        [{"context": contexts}] if batches is None else [{"context": contexts}, {"context": contexts, "batch": batches}]
    ):
        label = pd.DataFrame(by).groupby(list(by)).ngroup().to_numpy()
        for code in np.unique(label[controls]):
            stratum[label == code] = len(strata)
            strata.append(controls[label[controls] == code])
    conditions = [Condition(*key) for key in groups]
    members = [cells[rows] for rows in groups.values()]
    return Design(conditions, members, strata, stratum, perturbations == control, control, delimiter)


def resolve_pairing(
    design: Design, pairing: Pairing, control_share: float
) -> Literal["perturbation", "context", "mixed"]:
    """What pairs to draw, from what is asked for and what the data allow."""
    if pairing not in ("auto", "perturbation", "context", "mixed"):
        raise ValueError(f"pairing={pairing!r} must be 'auto', 'perturbation', 'context' or 'mixed'.")
    n = design.n_pairs
    treated = [c for i, c in enumerate(design.conditions) if not design.is_control(i)]
    if not treated:
        raise ValueError(f"There are no treated cells to train on, only {design.control!r}.")
    if n["perturbation"] + n["context"] == 0:
        what = examples(f"{c.perturbation} in {c.context}" for c in treated)
        raise ValueError(
            f"There is nothing to transfer: no perturbation was measured in two contexts, and no context has two "
            f"perturbations ({what}). Training needs one of them."
        )
    if pairing == "context" and n["context"] == 0:
        raise ValueError(
            "pairing='context' needs a perturbation that was measured in two contexts. Use 'perturbation'."
        )
    if pairing == "perturbation" and not design.all_partners(pairing, control_share):
        raise ValueError(
            "pairing='perturbation' needs two perturbations in one context, or control cells as partners "
            "(control_share above 0). Use 'context'."
        )
    if pairing in ("auto", "mixed"):
        with_controls = control_share > 0 and len(design.strata) > 0
        if n["context"] == 0:
            return "perturbation"
        return "mixed" if n["perturbation"] > 0 or with_controls else "context"
    return pairing


def canonical_names(names: np.ndarray, control: str, delimiter: str | None) -> np.ndarray:
    """Names of perturbations in canonical form, of which a control is no part."""
    codes, unique = pd.factorize(names)
    return np.array([clean(name, control, delimiter) for name in unique], dtype=object)[codes]
