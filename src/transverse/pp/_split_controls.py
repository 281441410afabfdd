"""Who predicts and who scores: the division of control cells, and of whole animals."""

from __future__ import annotations

import numpy as np

from transverse._validation import examples

from ._split_design import TEST, TRAIN, VALID, Design


def share_counts(n: int, share: float, n_sides: int) -> list[int]:
    """How many of `n` go to each of the held-out sides: `share` of what is left, at least one to each and to training."""
    counts = []
    for still in range(n_sides, 0, -1):
        counts.append(int(np.clip(np.floor(share * n + 0.5), 1, n - still)))
        n -= counts[-1]
    return counts


def divide_controls(design: Design, condition_side: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Of each cell its side: that of its condition, and for controls a random share in contexts with held-out conditions."""
    side = np.where(design.is_control, TRAIN, condition_side[design.condition])
    if design.control is None:
        return side
    # one order of all cells, and one of all animals: what is held out elsewhere does not change a context's division
    position = rng.random(len(side))
    rank = None if design.animal is None else rng.permutation(len(design.animals))
    too_few = []
    for i, context in enumerate(design.contexts):
        here = condition_side[design.condition_context == i]
        sides = [code for code in (TEST, VALID) if (here == code).any()]
        if not sides:
            continue
        cells = np.flatnonzero(design.is_control & (design.context == i))
        if len(cells) <= len(sides):
            name = context if design.has_contexts else "adata"
            too_few.append(f"{name} (has {len(cells)}, needs {len(sides) + 1})")
            continue
        if rank is not None and len(animals := np.unique(design.animal[cells])) > len(sides):
            ordered = animals[np.argsort(rank[animals])]
            of_animal = np.zeros(len(design.animals), dtype=int)
            of_animal[ordered] = _in_order(len(ordered), share, sides)
            side[cells] = of_animal[design.animal[cells]]
        else:
            animal = np.zeros(len(cells), dtype=int) if design.animal is None else design.animal[cells]
            ordered = cells[np.argsort(_spread(position[cells], animal))]
            side[ordered] = _in_order(len(ordered), share, sides)
    if too_few:
        raise ValueError(
            f"Contexts with held-out conditions have too few control cells: {examples(too_few)}. Each needs at least one "
            "to predict from and one to score with for the test, and for validation. Hold out other contexts, or leave "
            "these out of adata; control=None is for data without controls."
        )
    return side


def _in_order(n: int, share: float, sides: list[int]) -> np.ndarray:
    counts = share_counts(n, share, len(sides))
    return np.repeat([*sides, TRAIN], [*counts, n - sum(counts)])


def _spread(position: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Random positions from 0 to 1, even within each group: any first share of the order has this share of each."""
    order = np.lexsort([position, group])
    sizes = np.bincount(group)
    starts = np.cumsum(sizes) - sizes
    spread = np.empty(len(position))
    spread[order] = (np.arange(len(position)) - starts[group[order]] + position[order]) / sizes[group[order]]
    return spread


class Animals:
    """The sides of whole animals, so that training keeps what it needs."""

    def __init__(self, design: Design, share: float, rng: np.random.Generator) -> None:
        n = len(design.animals)
        self.names = design.animals
        treated = ~design.is_control
        self.conditions = np.zeros((n, design.n_conditions), dtype=bool)
        self.conditions[design.animal[treated], design.condition[treated]] = True
        self.treated = np.zeros((n, len(design.contexts)), dtype=bool)
        self.treated[design.animal[treated], design.context[treated]] = True
        self.control = np.zeros_like(self.treated)
        self.control[design.animal[design.is_control], design.context[design.is_control]] = True
        self.has_controls = design.control is not None
        self.only_controls = ~self.treated.any(axis=1)
        self.side = np.zeros(n, dtype=int)
        self.share = share
        self.rng = rng
        self.control_order = [animal for animal in rng.permutation(n) if self.only_controls[animal]]

    def unseen(self) -> np.ndarray:
        """Conditions that are held out and not in training."""
        held = self.conditions[self.side != TRAIN].any(axis=0)
        return np.flatnonzero(held & ~self.conditions[self.side == TRAIN].any(axis=0))

    def draw(self, n: int, to: int) -> list[int]:
        """Move up to `n` random treated animals to a side; first those whose conditions other animals keep in training."""
        order = self.rng.permutation(np.flatnonzero(~self.only_controls))
        drawn: list[int] = []
        for keeps_conditions in (True, False):
            for animal in order:
                if len(drawn) == n or self.side[animal] != TRAIN:
                    continue
                n_unseen = len(self.unseen())
                self.side[animal] = to
                if (not keeps_conditions or len(self.unseen()) == n_unseen) and self._possible():
                    drawn.append(int(animal))
                else:
                    self.side[animal] = TRAIN
        return drawn

    def divide_controls(self) -> None:
        """Move animals that have only controls to the sides whose own animals bring no controls to a context."""
        if not self.has_controls:
            return
        free = self.only_controls & (self.side == TRAIN)
        needs = [(code, context) for code in (TEST, VALID) for context in np.flatnonzero(self._lacking(code))]
        for code, context in needs:  # one for each side and context first, as many as the share is then
            if self._lacking(code)[context]:
                self._move_controls(1, code, context)
        for context in sorted({context for _, context in needs}):
            sides = [code for code, one in needs if one == context]
            here = free & self.control[:, context]
            others = self.control[(self.side == TRAIN) & ~free, context].any()  # these are there to predict from
            if (n := int(here.sum()) + others) > len(sides):
                for code, count in zip(sides, share_counts(n, self.share, len(sides)), strict=True):
                    self._move_controls(count - int((self.side[here] == code).sum()), code, context)

    def _move_controls(self, n: int, code: int, context: int) -> None:
        for animal in self.control_order:
            if n > 0 and self.side[animal] == TRAIN and self.control[animal, context]:
                self.side[animal] = code
                if self._lacking(TRAIN).any():
                    self.side[animal] = TRAIN
                else:
                    n -= 1

    def _lacking(self, code: int) -> np.ndarray:
        """Contexts with held-out conditions (of this side, or for training of any) and none of the side's controls."""
        held = self.side != TRAIN if code == TRAIN else self.side == code
        return self.treated[held].any(axis=0) & ~self.control[self.side == code].any(axis=0)

    def _possible(self) -> bool:
        """Whether training keeps a treated animal, and each side can have its controls."""
        if not self.treated[self.side == TRAIN].any():
            return False
        if not self.has_controls:
            return True
        before = self.side.copy()
        self.divide_controls()
        lacking = any(self._lacking(code).any() for code in (TRAIN, VALID, TEST))
        self.side = before
        return not lacking
