"""Refuse splits in which something that is held out can also be seen in training."""

from __future__ import annotations

from collections import defaultdict
from typing import Literal, get_args

import numpy as np
import pandas as pd
from anndata import AnnData

from transverse._validation import check_obs_key, examples

from ._split_cells import check_cells
from ._split_design import SPLITS, TEST, TRAIN, VALID, Design, labels, on_several, read_design, sides_of

By = Literal["perturbation", "condition", "context", "combination", "animal"]
IdenticalCells = Literal["refuse", "ignore"]


def check_split(
    adata: AnnData,
    key: str = "split",
    *,
    by: By | None = "condition",
    perturbation_key: str = "perturbation",
    control: str | None = "control",
    context_key: str | None = "cell_type",
    animal_key: str | None = None,
    cell_key: str | None = None,
    delimiter: str | None = "+",
    identical_cells: IdenticalCells = "refuse",
) -> pd.DataFrame:
    """Check that nothing that is held out can be seen in training, and count the cells of each side.

    Parameters
    ----------
    adata
        Cells, bulk samples or signatures, in memory or backed. It is not changed.
    key
        Column of `adata.obs` with the labels ``"train"``, ``"valid"`` and ``"test"``, such as :func:`split_responses`
        writes. ``"valid"`` may be absent.
    by
        What was held out, as in :func:`split_responses`. It decides what is a leak:

        - ``"condition"``: a condition (a perturbation in a context) on more than one side;
        - ``"context"``: this, and treated cells of a held-out context on another side;
        - ``"perturbation"``: this, and a held-out perturbation on another side in any context, alone or within a
          combination;
        - ``"combination"``: this, and a held-out combination on another side in any context and in any order;
        - ``"animal"``: an animal on more than one side. Conditions may be on both;
        - `None`: nothing is known; a condition on more than one side, and an animal, if `animal_key` is given.
    perturbation_key
        Column of `adata.obs` with the perturbation: the label of the control, singles and combinations.
    control
        The label of the control, or `None` if there are no controls.
    context_key
        Column of `adata.obs` with the context, or `None` if there is one context only.
    animal_key
        Column of `adata.obs` with the animal or donor. Unless `by` is ``"animal"`` or `None`, treated cells of one
        animal may be on several sides; only its control cells of one context may not, where the context has enough
        control animals to keep them apart.
    cell_key
        Column of `adata.obs` that tells cells apart, such as a barcode. Cells with equal values are one cell.
    delimiter
        What joins the parts of a combination; `None` if there are no combinations.
    identical_cells
        ``"refuse"`` raises if two cells on different sides have the same profile in `adata.X`. Profiles of fewer than
        10 non-zero values are not compared. ``"ignore"`` compares none.

    Returns
    -------
    A row per perturbation, context and side that has cells: the columns `perturbation` (in canonical order, the
    control included), `context` (unless `context_key` is `None`), `split` and `n_cells`.

    Raises
    ------
    KeyError
        If a column is missing.
    ValueError
        If a label is unknown or missing; if there is nothing to train on or to test; if a cell (by its name, its
        `cell_key` or its profile), an animal, a condition, or what `by` holds out is on more than one side; or if a
        context that is tested lacks control cells to predict from (``"train"``) or to score with (``"test"``).

    Examples
    --------
    >>> import transverse as tv
    >>> adata = tv.datasets.simulate_responses(
    ...     n_contexts=2, n_perturbations=2, n_doubles=1, n_genes=30, n_cells_per_condition=20
    ... )
    >>> tv.pp.split_responses(adata, by="context", holdout=["C2"], valid_size=0)
    >>> table = tv.pp.check_split(adata, by="context")
    >>> table[table["split"] == "test"][["perturbation", "context", "n_cells"]].to_numpy().tolist()
    [['P01', 'C2', 20], ['P01+P02', 'C2', 20], ['P02', 'C2', 20], ['control', 'C2', 75]]
    """
    check_choices(by, identical_cells, animal_key, context_key)
    keys = {"perturbation_key": perturbation_key, "control": control, "context_key": context_key}
    design = read_design(adata, **keys, animal_key=animal_key, delimiter=delimiter)
    side = _read_sides(adata, key)
    check_sides(adata, design, side, f"adata.obs[{key!r}]", by, cell_key, identical_cells)
    return _summary(design, side)


def check_choices(by: str | None, identical_cells: str, animal_key: str | None, context_key: str | None) -> None:
    """Check the arguments that are choices, and that the column is given which a choice needs."""
    if by is not None and by not in get_args(By):
        raise ValueError(f"by={by!r} is unknown. Choose one of {examples(get_args(By))}.")
    if identical_cells not in get_args(IdenticalCells):
        raise ValueError(f"identical_cells={identical_cells!r} is unknown. Choose 'refuse' or 'ignore'.")
    if by == "animal" and animal_key is None:
        raise ValueError("by='animal' needs animal_key, the column of adata.obs with the animal of each cell.")
    if by == "context" and context_key is None:
        raise ValueError("by='context' needs context_key, the column of adata.obs with the context of each cell.")


def check_by(by: str | None, context_key: str | None) -> None:
    """Check that `by` can hold something out."""
    if by is None:
        raise ValueError(f"by=None is for check_split only. Choose one of {examples(get_args(By))}.")
    if by == "condition" and context_key is None:
        raise ValueError(
            "by='condition' needs context_key: each held-out perturbation stays in training in another context. "
            "If there is one context only, hold out by='perturbation'."
        )


def check_sides(
    adata: AnnData,
    design: Design,
    side: np.ndarray,
    where: str,
    by: str | None,
    cell_key: str | None,
    identical_cells: str,
) -> None:
    """Raise a ValueError that names the leak, if there is one. `side` is 0, 1 or 2 for each cell, as in `SPLITS`."""
    _check_nothing_missing(design, side, where)
    _check_conditions(design, side, where, by)
    _check_animals(design, side, where, by)
    _check_controls(design, side, where)
    check_cells(adata, side, where, cell_key, identical_cells)


def _read_sides(adata: AnnData, key: str) -> np.ndarray:
    check_obs_key(adata, key, "key")
    codes, found = labels(adata, key, "key")
    if unknown := [label for label in found if label not in SPLITS]:
        raise ValueError(
            f"adata.obs[{key!r}] has unknown labels: {examples(unknown)}. Each cell must be one of {examples(SPLITS)}."
        )
    return np.array([SPLITS.index(label) for label in found])[codes]


def _check_nothing_missing(design: Design, side: np.ndarray, where: str) -> None:
    for code, name in ((TRAIN, "training"), (TEST, "test")):
        cells = side == code
        if not cells.any():
            raise ValueError(f"{where} has no {name} cells: no cell is labelled {SPLITS[code]!r}.")
        if design.is_control[cells].all():
            raise ValueError(f"{where} has no {name} cells but controls: no treated cell is labelled {SPLITS[code]!r}.")


def _check_conditions(design: Design, side: np.ndarray, where: str, by: str | None) -> None:
    if by == "animal":
        return
    if by in (None, "condition", "combination"):
        found = sides_of(design.condition, side, design.n_conditions)
        if (found.sum(axis=1) > 1).any():
            leaks = on_several([design.pair_name(i) for i in range(design.n_conditions)], found)
            raise ValueError(
                f"Held-out conditions leak in {where}: {examples(leaks)}. "
                "Each condition must be on one side only (unless whole animals are held out: by='animal')."
            )
    if by == "context":
        treated = np.where(design.is_control, -1, design.context)
        if leaks := on_several(design.contexts, sides_of(treated, side, len(design.contexts))):
            raise ValueError(
                f"Held-out contexts leak in {where}: {examples(leaks)}. "
                "All treated cells of a context must be on one side; only its controls may be on several."
            )
    if by in ("perturbation", "combination"):
        found = sides_of(design.perturbation, side, len(design.perturbations))
        if by == "combination":
            found[[len(one) < 2 for one in design.parts]] = False
        if leaks := on_several(design.perturbations, found):
            raise ValueError(
                f"Held-out {by}s leak in {where}: {examples(leaks)}. "
                f"With by={by!r} each must be on one side in all contexts, in whatever order it is written."
            )
        if by == "perturbation" and (leaks := _within_combinations(design, found)):
            raise ValueError(
                f"Held-out perturbations leak in {where} through combinations: {examples(leaks)}. "
                "A combination that contains a held-out perturbation must not be in training."
            )


def _within_combinations(design: Design, found: np.ndarray) -> list[str]:
    leaks = []
    for held, others in ((TEST, (TRAIN, VALID)), (VALID, (TRAIN,))):
        containing = defaultdict(set)
        for i in np.flatnonzero(found[:, others].any(axis=1)):
            for part in design.parts[i]:
                containing[part].add(i)
        for i in np.flatnonzero(found[:, held]):
            for j in sorted(set.intersection(*(containing[part] for part in design.parts[i]))):
                other = SPLITS[next(code for code in others if found[j, code])]
                leaks.append(f"{design.perturbations[i]} ({SPLITS[held]}) within {design.perturbations[j]} ({other})")
    return leaks


def _check_animals(design: Design, side: np.ndarray, where: str, by: str | None) -> None:
    if design.animal is None:
        return
    n = len(design.animals)
    if by in (None, "animal"):
        if leaks := on_several(design.animals, sides_of(design.animal, side, n)):
            raise ValueError(
                f"Animals are on several sides of {where}: {examples(leaks)}. All cells of an animal must be on one side."
            )
        return
    # in a crossed design each animal has conditions of every kind: only the controls can be kept apart
    leaks = []
    for i, context in enumerate(design.contexts):
        cells = design.is_control & (design.context == i)
        found = sides_of(design.animal[cells], side[cells], n)
        if found.any(axis=1).sum() >= found.any(axis=0).sum():
            suffix = f" in {context}" if design.has_contexts else ""
            leaks += on_several([name + suffix for name in design.animals], found)
    if leaks:
        raise ValueError(
            f"Control cells of one animal are on several sides of {where}: {examples(leaks)}. "
            "There are enough control animals to keep each on one side."
        )


def _check_controls(design: Design, side: np.ndarray, where: str) -> None:
    if design.control is None:
        return
    n = len(design.contexts)
    held = sides_of(np.where(design.is_control, -1, design.context), side, n)
    controls = sides_of(np.where(design.is_control, design.context, -1), side, n)
    lacking = []
    for i, context in enumerate(design.contexts):
        name = context if design.has_contexts else "adata"
        used = [code for code in (TEST, VALID) if held[i, code]]
        needed = [*used, TRAIN] if used else []
        lacking += [f"{name} (no control is {SPLITS[code]!r})" for code in needed if not controls[i, code]]
    if lacking:
        raise ValueError(
            f"Contexts with held-out conditions lack control cells in {where}: {examples(lacking)}. "
            "Controls labelled 'train' predict and those of the held-out side score; they must not be the same cells."
        )


def _summary(design: Design, side: np.ndarray) -> pd.DataFrame:
    names = np.array([*design.perturbations, design.control], dtype=object)  # -1, a control, is the last
    table = pd.DataFrame({"perturbation": names[design.perturbation]})
    if design.has_contexts:
        table["context"] = np.array(design.contexts, dtype=object)[design.context]
    table["split"] = pd.Categorical.from_codes(side, SPLITS)
    return table.groupby(list(table), observed=True).size().rename("n_cells").reset_index()
