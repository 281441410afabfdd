"""The holdouts of a run that leaves out one thing after another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from anndata import AnnData

from transverse._validation import examples

from ._split_checks import By, check_by, check_choices
from ._split_design import Design, read_design
from ._split_draw import condition_units, given_units


def leave_out(
    adata: AnnData,
    by: By = "condition",
    *,
    perturbation_key: str = "perturbation",
    control: str | None = "control",
    context_key: str | None = "cell_type",
    animal_key: str | None = None,
    delimiter: str | None = "+",
    perturbations: str | Iterable[str | Sequence[str]] | None = None,
    contexts: str | Iterable[str] | None = None,
    allow_unseen: bool = False,
) -> dict[str, list[str] | list[tuple[str, str]]]:
    """List the holdouts of a leave-one-out run, for :func:`split_responses`.

    Parameters
    ----------
    adata
        Cells, bulk samples or signatures, in memory or backed. It is not changed.
    by
        What is left out at a time. The table says what each entry holds, and with which `by` it goes to
        :func:`split_responses`.

        ==================  ===================================================  ==================
        `by`                an entry for each                                    `by` of the split
        ==================  ===================================================  ==================
        ``"condition"``     (perturbation, context) pair                         ``"condition"``
        ``"context"``       context: the pairs of all its perturbations          ``"condition"``
        ``"perturbation"``  single perturbation, alone or in combinations        ``"perturbation"``
        ``"combination"``   combination of which every single is measured alone  ``"combination"``
        ``"animal"``        animal with treated cells                            ``"animal"``
        ==================  ===================================================  ==================
    perturbation_key, control, context_key, animal_key, delimiter
        As in :func:`split_responses`.
    perturbations
        Only these are left out. With ``by="context"`` the others of the context stay in training.
    contexts
        Only conditions of these contexts are left out; for perturbations, combinations and animals: only those that
        occur in them.
    allow_unseen
        Also list conditions whose perturbation is measured in no other context, and combinations of singles that are
        not measured. Pass it to :func:`split_responses` too. By default such conditions are skipped with
        ``by="condition"`` and refused with ``by="context"``, where skipping would leave them in training.

    Returns
    -------
    Names (such as ``"TGFBR2 in K562"``, ``"K562"`` or ``"MAPK1+TGFBR2"``) and what to pass as `holdout`.

    Raises
    ------
    KeyError
        If a column is missing.
    ValueError
        If an argument does not fit the data, if nothing can be left out, or if a context has perturbations that are
        measured in no other (see `allow_unseen`).

    Examples
    --------
    >>> import transverse as tv
    >>> adata = tv.datasets.simulate_responses(
    ...     n_contexts=2, n_perturbations=2, n_doubles=1, n_genes=30, n_cells_per_condition=20
    ... )
    >>> for name, holdout in tv.pp.leave_out(adata, by="context").items():
    ...     tv.pp.split_responses(adata, holdout=holdout, key_added=f"split_{name}")
    >>> for name, holdout in tv.pp.leave_out(adata, by="combination").items():
    ...     tv.pp.split_responses(adata, by="combination", holdout=holdout, valid_size=0, key_added=f"split_{name}")
    >>> [key for key in adata.obs if key.startswith("split")]
    ['split_C1', 'split_C2', 'split_P01+P02']
    """
    check_by(by, context_key)
    check_choices(by, "refuse", animal_key, context_key)
    keys = {"perturbation_key": perturbation_key, "control": control, "context_key": context_key}
    design = read_design(adata, **keys, animal_key=animal_key, delimiter=delimiter)
    if contexts is not None and not design.has_contexts:
        raise ValueError("contexts needs context_key, the column of adata.obs with the context of each cell.")
    units = condition_units(design, "perturbation")
    only = None if perturbations is None else given_units(design, "perturbation", perturbations, "perturbations", units)
    here = np.ones(design.n_conditions, dtype=bool)
    if contexts is not None:
        wanted = given_units(design, "context", contexts, "contexts", design.contexts)
        here = np.isin(np.array(design.contexts)[design.condition_context], wanted)
    if by == "perturbation":
        singles = sorted({single for one in design.parts for single in one})
        found = {name: [name] for name in only or singles if here[units[name]].any()}
    elif by == "combination":
        names = design.combinations if allow_unseen else design.known_combinations
        found = {name: [name] for name in names if (only is None or name in only) and here[units[name]].any()}
    else:
        if only is not None:
            here &= np.isin(np.array(design.perturbations)[design.condition_perturbation], only)
        found = _of_conditions(design, by, here, allow_unseen)
    if not found:
        raise ValueError(f"There is nothing to leave out with by={by!r}: {_NOTHING[by]}.")
    return found


_NOTHING = {
    "condition": "no selected perturbation is measured in two contexts (see allow_unseen)",
    "context": "no selected context has a selected perturbation",
    "perturbation": "no selected perturbation is measured in a selected context",
    "combination": "there is no selected combination of which every single is measured alone (see allow_unseen)",
    "animal": "no animal has cells of a selected condition",
}


def _of_conditions(design: Design, by: str, selected: np.ndarray, allow_unseen: bool) -> dict[str, list]:
    if by == "animal":
        cells = ~design.is_control
        cells[cells] = selected[design.condition[cells]]
        return {design.animals[i]: [design.animals[i]] for i in np.unique(design.animal[cells])}
    elsewhere = np.bincount(design.condition_perturbation)[design.condition_perturbation] > 1
    if by == "condition":
        kept = np.flatnonzero(selected & (elsewhere | allow_unseen))
        return {design.pair_name(i): [design.pair(i)] for i in kept}
    if not allow_unseen and (unseen := np.flatnonzero(selected & ~elsewhere)).size:
        raise ValueError(
            f"These conditions have a perturbation that is measured in no other context: "
            f"{examples(map(design.pair_name, unseen))}. Choose among the others with perturbations=[...], which leaves "
            "these in training, or pass allow_unseen=True here and to split_responses."
        )
    found: dict[str, list] = {}
    for i in np.flatnonzero(selected):
        found.setdefault(design.contexts[design.condition_context[i]], []).append(design.pair(i))
    return dict(sorted(found.items()))
