"""Which units are held out: those that were given, or random ones that leave training what it needs."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from numbers import Integral, Real

import numpy as np

from transverse._validation import examples

from ._split_design import SPLITS, TEST, TRAIN, VALID, Design

Units = dict[Hashable, np.ndarray]


def condition_units(design: Design, by: str) -> Units:
    """What can be held out: each unit's name, or pair of names, and its conditions."""
    everything = np.arange(design.n_conditions)
    if by == "condition":
        return {design.pair(i): everything[i : i + 1] for i in everything}
    if by == "context":
        found = {name: np.flatnonzero(design.condition_context == i) for i, name in enumerate(design.contexts)}
        return {name: conditions for name, conditions in found.items() if len(conditions)}
    order = np.argsort(design.condition_perturbation, kind="stable")
    counts = np.bincount(design.condition_perturbation, minlength=len(design.perturbations))
    of_perturbation = np.split(order, np.cumsum(counts)[:-1])
    alone = dict(zip(design.perturbations, of_perturbation, strict=True))
    if by == "combination":
        return {name: alone[name] for name in design.combinations}
    # a perturbation is seen wherever it is a part of what was given
    containing: dict[str, set[int]] = {}
    for i, singles in enumerate(design.parts):
        for single in singles:
            containing.setdefault(single, set()).add(i)
    units = {}
    named = dict(zip(design.perturbations, design.parts, strict=True))
    for name, singles in {**{name: {name} for name in containing}, **named}.items():
        within = sorted(set.intersection(*(containing[single] for single in singles)))
        units[name] = np.sort(np.concatenate([of_perturbation[i] for i in within]))
    return units


def given_units(design: Design, by: str, given: object, argument: str, known: Iterable[Hashable]) -> list[Hashable]:
    """The units that were named in `holdout` or `valid`, each once; refuses those that are not `known`."""
    if isinstance(given, Mapping):
        if by != "condition":
            raise ValueError(f"{argument} can map contexts to perturbations with by='condition' only, not by={by!r}.")
        given = [(one, ctx) for ctx, many in given.items() for one in ([many] if isinstance(many, str) else many)]
    if isinstance(given, str) or not isinstance(given, Iterable):
        given = [given]
    items = list(given)
    if by == "condition":
        if len(items) == 2 and all(isinstance(item, str) for item in items):  # one pair, not a list of pairs
            items = [tuple(items)]
        if wrong := [item for item in items if not isinstance(item, list | tuple) or len(item) != 2]:
            raise ValueError(
                f"{argument} must hold (perturbation, context) pairs with by='condition', but has {examples(wrong)}. "
                "To hold out something else, choose another by."
            )
        units = [(design.clean(str(perturbation)), str(context)) for perturbation, context in items]
    elif by in ("perturbation", "combination"):
        units = [design.clean(item if isinstance(item, list | tuple) else str(item)) for item in items]
    else:
        units = [str(item) for item in items]
    units = list(dict.fromkeys(units))
    if not units:
        raise ValueError(f"{argument} is empty. Name at least one {by}, or pass None.")
    names = [unit[0] if by == "condition" else unit for unit in units]
    if by not in ("context", "animal") and design.control is not None and design.control in names:
        raise ValueError(
            f"{argument} has the control {design.control!r}, which cannot be held out: control cells are divided by "
            "control_test_share."
        )
    known = dict.fromkeys(known)
    if unknown := [unit_name(unit) for unit in units if unit not in known]:
        raise ValueError(
            f"{argument} has {by}s that are not in adata: {examples(unknown)}. "
            f"adata has, for example: {examples(map(unit_name, known))}."
        )
    return units


def unit_name(unit: Hashable) -> str:
    """A unit in words."""
    return " in ".join(unit) if isinstance(unit, tuple) else str(unit)


def n_units(size: float, n: int, argument: str) -> int:
    """How many of `n` units a share or a number is."""
    number = isinstance(size, Real) and not isinstance(size, bool)
    least = 1 if argument == "test_size" else 0
    if number and isinstance(size, Integral) and size >= least:
        return int(size)
    if number and not isinstance(size, Integral) and 0 <= size < 1 and (size > 0 or least == 0):
        return max(least, int(np.floor(size * n + 0.5)))
    raise ValueError(f"{argument}={size!r} must be a share below 1, or a whole number of at least {least}.")


def drawable_units(design: Design, by: str, units: Units) -> Units:
    """The units that may be drawn at random."""
    names: Iterable[Hashable] = units
    if by == "condition":
        n_contexts = np.bincount(design.condition_perturbation)
        names = [name for name, found in units.items() if n_contexts[design.condition_perturbation[found[0]]] > 1]
    elif by == "perturbation":
        names = sorted({single for singles in design.parts for single in singles})
    elif by == "combination":
        names = design.known_combinations
    enough = n_controls(design) >= 2
    return {name: units[name] for name in names if enough[design.condition_context[units[name]]].all()}


def n_controls(design: Design) -> np.ndarray:
    """Of each context: how many control cells it has; without limit if there are no controls at all."""
    if design.control is None:
        return np.full(len(design.contexts), np.inf)
    return np.bincount(design.context[design.is_control], minlength=len(design.contexts))


def draw(
    design: Design, by: str, side: np.ndarray, units: Units, n: int, to: int, rng: np.random.Generator
) -> list[Hashable]:
    """Move up to `n` random units' conditions to a side, in place, and return the units.

    Training keeps at least one condition and, with ``by="condition"``, each perturbation in another context. A context
    keeps at least one control for training and for each held-out side.
    """
    perturbation, context = design.condition_perturbation, design.condition_context
    controls = n_controls(design)
    used = np.zeros((len(design.contexts), len(SPLITS)), dtype=bool)
    used[context, side] = True
    n_train = np.bincount(perturbation[side == TRAIN], minlength=len(design.perturbations))
    other = VALID if to == TEST else TEST
    names = list(units)
    strata: dict[str | None, list[Hashable]] = {}
    for i in rng.permutation(len(names)):
        strata.setdefault(names[i][1] if by == "condition" else None, []).append(names[i])
    size = {stratum: len(members) for stratum, members in strata.items()}
    taken = dict.fromkeys(strata, 0)
    drawn = []
    while len(drawn) < n and strata:
        # Webster's apportionment: as near to equal shares of the contexts as whole conditions can be
        stratum = min(strata, key=lambda one: (taken[one] + 0.5) / size[one])
        unit = strata[stratum].pop()
        if not strata[stratum]:
            del strata[stratum]
        leaving = units[unit][side[units[unit]] == TRAIN]
        moved = units[unit][side[units[unit]] < to]  # what is in the test already is not for validation
        where = np.unique(context[moved])
        if (
            len(leaving) == 0
            or len(leaving) == n_train.sum()
            or (by == "condition" and n_train[perturbation[leaving[0]]] < 2)
            or (controls[where] < 2 + used[where, other]).any()
        ):
            continue
        np.subtract.at(n_train, perturbation[leaving], 1)
        side[moved] = to
        used[where, to] = True
        taken[stratum] += 1
        drawn.append(unit)
    return drawn
