"""Split perturbation data for training, validation and test, so that nothing held out can be seen in training."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence
from numbers import Integral

import numpy as np
import pandas as pd
from anndata import AnnData

from transverse._validation import examples

from ._split_checks import By, IdenticalCells, check_by, check_choices, check_sides
from ._split_controls import Animals, divide_controls
from ._split_design import SPLITS, TEST, TRAIN, VALID, Design, read_design
from ._split_draw import condition_units, draw, drawable_units, given_units, n_controls, n_units, unit_name

Holdout = str | Iterable[str | Sequence[str]] | Mapping[str, str | Sequence[str]]

_NEEDS = {
    "condition": "each perturbation must stay in training in another context",
    "context": "treated cells of another context must stay in training",
    "perturbation": "another perturbation must stay in training",
    "combination": "every single of a combination must be measured, and something must stay in training",
    "animal": "treated cells of another animal must stay in training, and each context that is tested needs control "
    "cells of other animals on each side",
}


def split_responses(
    adata: AnnData,
    by: By = "condition",
    *,
    holdout: Holdout | None = None,
    valid: Holdout | None = None,
    test_size: float = 0.2,
    valid_size: float = 0.1,
    perturbation_key: str = "perturbation",
    control: str | None = "control",
    context_key: str | None = "cell_type",
    animal_key: str | None = None,
    cell_key: str | None = None,
    control_test_share: float = 0.5,
    delimiter: str | None = "+",
    allow_unseen: bool = False,
    identical_cells: IdenticalCells = "refuse",
    seed: int = 0,
    key_added: str | None = "split",
) -> pd.Series | None:
    """Label each cell as training, validation or test, so that nothing held out can be seen in training.

    Control cells are divided too: the cells that a prediction starts from must not be those that it is scored against,
    or their noise is shared and looks like skill.

    Parameters
    ----------
    adata
        Cells, bulk samples or signatures, in memory or backed. Nothing is written to it if an error is raised.
    by
        What is held out. A *condition* is a perturbation in a context.

        - ``"condition"``: conditions. Each perturbation stays in training in another context. A combination is a
          perturbation of its own: with ``("A", "K562")`` held out, ``"A+B"`` may be in training in K562.
        - ``"context"``: all treated cells of a context. Only controls of it remain in training.
        - ``"perturbation"``: perturbations, in all contexts. A combination that contains one goes with it, to the test
          if it contains one of the test.
        - ``"combination"``: combinations, in all contexts and any order. Each of their singles stays in training.
        - ``"animal"``: animals with all their cells, controls included. Their conditions may be in training through
          other animals, and a warning names those that are not. Where the animals of a side bring no controls of their
          own to a context, animals that have only control cells are divided by `control_test_share`.
    holdout
        What to hold out for the test: one or a list of perturbations, (perturbation, context) pairs, contexts,
        combinations or animals, as fits `by`. For ``by="condition"`` also a mapping from contexts to perturbations.
        `None` draws at random.
    valid
        The same for validation. `None` draws at random from what is left; ``valid_size=0`` leaves validation out.
    test_size, valid_size
        Where they are drawn: a share of the units that may be drawn (rounded; at least one for the test), or how many.
        For validation, a share takes no more than training can spare. For ``by="perturbation"`` single perturbations
        are drawn, so more conditions may be held out than this share. For ``by="condition"`` contexts lose equal shares,
        as nearly as whole conditions allow. Contexts with fewer than two control cells are never drawn from.
    perturbation_key
        Column of `adata.obs` with the perturbation: the label of the control, singles (``"A"``) and combinations
        (``"A+B"``, in any order). Doses that share a label are held out together.
    control
        The label of the control, or `None` if there are no controls, as in signatures. A control within a combination
        does not count: ``"A+control"`` is ``"A"``.
    context_key
        Column of `adata.obs` with the context, or `None` if there is one context only.
    animal_key
        Column of `adata.obs` with the animal or donor. Needed for ``by="animal"``. Otherwise control cells are divided
        by whole animals where a context has enough of them, else by cell with equal shares of each animal.
    cell_key
        Column of `adata.obs` that tells cells apart, such as a barcode; see :func:`check_split`.
    control_test_share
        Share of the control cells (or control animals) labelled ``"test"`` in each context that has test conditions;
        where there are validation conditions, this share of the rest is labelled ``"valid"``. At least one goes to each
        side. All other controls are ``"train"``.
    delimiter
        What joins the parts of a combination; `None` if there are no combinations.
    allow_unseen
        Accept in `holdout` and `valid` conditions of a perturbation that is then not in training at all, and
        combinations of singles that are not measured. They are never drawn at random. With ``by="context"`` and
        ``by="animal"`` it silences the warning of what is not in training.
    identical_cells
        Whether cells with identical profiles on different sides are refused; see :func:`check_split`.
    seed
        Seed of everything random. What is held out in other contexts does not change how a context's controls are
        divided.
    key_added
        Column of `adata.obs` for the result. `None` returns it instead.

    Returns
    -------
    `None`, or with ``key_added=None`` a categorical Series with the categories ``"train"``, ``"valid"`` and ``"test"``,
    a value per cell.

    Raises
    ------
    KeyError
        If a column is missing.
    ValueError
        If an argument does not fit the data; if not enough can be held out; if a context with held-out conditions has
        fewer than two control cells (three with validation); if a held-out condition's perturbation or a combination's
        single is not in training (see `allow_unseen`); or if :func:`check_split` finds a leak.

    Warns
    -----
    UserWarning
        If contexts cannot be drawn from for lack of controls, or if conditions of held-out animals, or perturbations of
        held-out contexts, are not in training.

    Examples
    --------
    >>> import transverse as tv
    >>> adata = tv.datasets.simulate_responses(
    ...     n_contexts=2, n_perturbations=2, n_doubles=1, n_genes=30, n_cells_per_condition=20
    ... )
    >>> tv.pp.split_responses(adata)
    >>> tv.pp.split_responses(adata, by="combination", holdout=["P01+P02"], valid_size=0)
    >>> tv.pp.split_responses(adata, holdout=[("P01", "C2"), ("P02", "C1")], valid_size=0)
    >>> train = adata[adata.obs["split"] == "train"]
    >>> sorted(train.obs["perturbation"][train.obs["cell_type"] == "C2"].unique())
    ['P01+P02', 'P02', 'control']
    """
    check_by(by, context_key)
    check_choices(by, identical_cells, animal_key, context_key)
    if not 0 < control_test_share < 1:
        raise ValueError(f"control_test_share={control_test_share!r} must be above 0 and below 1.")
    for name, size in {"test_size": test_size, "valid_size": valid_size}.items():
        n_units(size, 1, name)  # to refuse what is no size, also where it is not used
    taken = [perturbation_key, context_key, animal_key, cell_key]
    if key_added is not None and key_added in taken:
        raise ValueError(
            f"key_added={key_added!r} would overwrite a column that the split rests on. Choose another name."
        )
    keys = {"perturbation_key": perturbation_key, "control": control, "context_key": context_key}
    design = read_design(adata, **keys, animal_key=animal_key, delimiter=delimiter)
    rngs = np.random.default_rng(seed).spawn(2)
    chosen = {"holdout": holdout, "valid": valid, "test_size": test_size, "valid_size": valid_size}
    if by == "animal":
        side = _split_animals(design, control_test_share, rngs[0], **chosen)
    else:
        condition_side = _split_conditions(design, by, allow_unseen, rngs[0], **chosen)
        side = divide_controls(design, condition_side, control_test_share, rngs[1])
    check_sides(adata, design, side, "the split", by, cell_key, identical_cells)
    if by in ("context", "animal") and not allow_unseen:
        _warn_unseen(design, by, side)
    labels = pd.Series(pd.Categorical.from_codes(side, SPLITS), index=adata.obs_names, name=key_added)
    if key_added is None:
        return labels
    adata.obs[key_added] = labels.array
    return None


def _split_conditions(
    design: Design,
    by: str,
    allow_unseen: bool,
    rng: np.random.Generator,
    *,
    holdout: Holdout | None,
    valid: Holdout | None,
    test_size: float,
    valid_size: float,
) -> np.ndarray:
    """Of each condition its side."""
    units = condition_units(design, by)
    given = _given(design, by, holdout, valid, units)
    side = np.full(design.n_conditions, TRAIN)
    for code in (VALID, TEST):  # a combination of a perturbation of each goes to the test
        for unit in given.get(code, []):
            side[units[unit]] = code
    if emptied := [unit for unit in given.get(VALID, []) if not (side[units[unit]] == VALID).any()]:
        raise ValueError(
            f"Nothing is left of these in valid, since holdout takes all of it: {examples(map(unit_name, emptied))}."
        )
    if not allow_unseen:
        _check_seen(design, by, side, given)
    if TEST not in given or (VALID not in given and valid_size > 0):
        free = drawable_units(design, by, units)
        _warn_of_few_controls(design)
        for code, size, argument in ((TEST, test_size, "test_size"), (VALID, valid_size, "valid_size")):
            if code not in given:
                n = n_units(size, len(free), argument)
                used = _flat(given)
                candidates = {unit: free[unit] for unit in free if unit not in used}
                given[code] = draw(design, by, side, candidates, n, code, rng)
                _check_drawn(len(given[code]), n, size, argument, by)
    return side


def _split_animals(
    design: Design,
    share: float,
    rng: np.random.Generator,
    *,
    holdout: Holdout | None,
    valid: Holdout | None,
    test_size: float,
    valid_size: float,
) -> np.ndarray:
    """Of each cell its side, the same for all cells of an animal."""
    animals = Animals(design, share, rng)
    position = {name: i for i, name in enumerate(design.animals)}
    given = _given(design, "animal", holdout, valid, position)
    for code, names in given.items():
        animals.side[[position[name] for name in names]] = code
    n_treated = int((~animals.only_controls).sum())
    for code, size, argument in ((TEST, test_size, "test_size"), (VALID, valid_size, "valid_size")):
        if code not in given:
            n = n_units(size, n_treated, argument)
            _check_drawn(len(animals.draw(n, code)), n, size, argument, "animal")
    animals.divide_controls()
    return animals.side[design.animal]


def _given(
    design: Design, by: str, holdout: Holdout | None, valid: Holdout | None, known: Iterable[Hashable]
) -> dict[int, list[Hashable]]:
    given = {}
    for code, argument, value in ((TEST, "holdout", holdout), (VALID, "valid", valid)):
        if value is not None:
            given[code] = given_units(design, by, value, argument, known)
    if len(given) == 2 and (both := [unit_name(unit) for unit in given[VALID] if unit in given[TEST]]):
        raise ValueError(f"holdout and valid both have {examples(both)}. Name each {by} once.")
    return given


def _flat(given: dict[int, list[Hashable]]) -> set[Hashable]:
    return {unit for units in given.values() for unit in units}


def _check_seen(design: Design, by: str, side: np.ndarray, given: dict[int, list[Hashable]]) -> None:
    if by == "condition":
        trained = {design.perturbations[i] for i in design.condition_perturbation[side == TRAIN]}
        if unseen := [unit for unit in _flat(given) if unit[0] not in trained]:
            raise ValueError(
                f"These held-out conditions have a perturbation that is in training in no context: "
                f"{examples(sorted(map(unit_name, unseen)))}. Leave the perturbation in training in another context, or "
                "pass allow_unseen=True."
            )
    elif by == "combination" and (unknown := sorted(_flat(given) - set(design.known_combinations))):
        raise ValueError(
            f"These held-out combinations have singles that are not measured alone: {examples(unknown)}. "
            "Leave them out, or pass allow_unseen=True."
        )


def _check_drawn(n_drawn: int, n: int, size: float, argument: str, by: str) -> None:
    # a share for validation is a wish: often training cannot spare it once the test is held out
    if n_drawn < n and (argument == "test_size" or isinstance(size, Integral)):
        raise ValueError(
            f"{argument}={size!r} asks for {n} {by}s, but only {n_drawn} can be held out: {_NEEDS[by]}"
            f"{'' if by == 'animal' else ', and each context with held-out conditions needs control cells on each side'}."
        )


def _warn_of_few_controls(design: Design) -> None:
    few = n_controls(design)[np.unique(design.condition_context)] < 2
    if few.any():
        names = np.array(design.contexts, dtype=object)[np.unique(design.condition_context)[few]]
        warnings.warn(
            f"Nothing is drawn from contexts with fewer than 2 control cells: {examples(names)}.",
            UserWarning,
            stacklevel=4,
        )


def _warn_unseen(design: Design, by: str, side: np.ndarray) -> None:
    codes = design.condition if by == "animal" else design.perturbation
    treated = ~design.is_control
    unseen = np.setdiff1d(codes[treated & (side != TRAIN)], codes[treated & (side == TRAIN)])
    if len(unseen):
        what = "Conditions of held-out animals" if by == "animal" else "Perturbations of held-out contexts"
        names = [design.pair_name(i) if by == "animal" else design.perturbations[i] for i in unseen]
        warnings.warn(f"{what} that are not in training: {examples(names)}.", UserWarning, stacklevel=3)
