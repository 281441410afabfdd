"""Predictions that are drawn: which conditions, and what they are called."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData

from transverse._groups import group_codes
from transverse._validation import column_names, examples
from transverse.metrics._conditions import Cells

from ._tables import choose, in_order

Names = str | Sequence[str] | None


def choose_predictions(
    pred: Cells,
    perturbation: Names,
    context: Names,
    *,
    perturbation_key: str,
    context_key: str | None,
    at_most: int | None = None,
) -> Cells:
    """Predictions of the conditions that are wanted, all if neither is named; raises if they are more than ``at_most``."""
    wanted = {"perturbation": (perturbation_key, perturbation), "context": (context_key, context)}
    if at_most is not None and at_most < 1:
        raise ValueError(f"max_panels={at_most} must be at least 1.")
    for argument, (key, names) in wanted.items():
        if names is not None and (key is None or not isinstance(pred, AnnData)):
            found = f"{argument}_key=None" if key is None else f"pred is {type(pred).__name__}"
            raise ValueError(f"{argument}={names!r} cannot be chosen, since {found}.")
    if not isinstance(pred, AnnData):
        return pred
    wanted = {argument: (key, names) for argument, (key, names) in wanted.items() if key is not None}
    for argument, (key, _) in wanted.items():
        if key not in pred.obs:
            raise KeyError(f"{argument}_key={key!r} is not in pred.obs. Columns: {column_names(pred.obs)}.")
    keys, codes = group_codes(pred, [key for key, _ in wanted.values()], "pred")
    keep = np.ones(len(keys), dtype=bool)
    for argument, (key, names) in wanted.items():
        if names is not None:
            names = str(names) if np.isscalar(names) else [str(name) for name in names]
            keep &= keys[key].isin(choose(names, in_order(keys[key]), argument, "pred")).to_numpy()
    if len(keys) and not keep.any():
        raise ValueError(
            f"pred has no cells of perturbation={perturbation!r} in context={context!r}. Its conditions: "
            f"{examples(condition_names(keys))}."
        )
    if at_most is not None and keep.sum() > at_most:
        arguments = " and ".join(f"{argument}=" for argument in wanted)
        or_more = " or raise max_panels" if at_most > 1 else ""
        raise ValueError(
            f"pred has {keep.sum()} conditions, and at most {at_most} can be drawn. Choose with {arguments}{or_more}. "
            f"Conditions: {examples(condition_names(keys[keep]))}."
        )
    return pred if keep.all() else pred[keep[codes]]


def condition_names(keys: pd.DataFrame) -> list[str]:
    """What to call conditions, such as ``"A in T cell"``; no name for the one of arrays."""
    return [" in ".join(row) for row in keys.to_numpy()]
