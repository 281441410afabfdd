"""Signatures that are drawn: true ones beside predictions of the same perturbations and cell types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData

from transverse._groups import group_codes, group_profiles
from transverse._validation import check_finite, check_unique_var_names, column_names, examples
from transverse.metrics import signature_scores
from transverse.metrics._conditions import on_genes_of_truth

from ._predictions import Names, condition_names
from ._tables import choose


@dataclass(frozen=True)
class Signatures:
    """Signatures of the same conditions, a row each, and genes, a column each; ``predicted`` are those of every side."""

    keys: pd.DataFrame
    var_names: pd.Index
    true: np.ndarray
    predicted: dict[str, np.ndarray]

    @property
    def names(self) -> list[str]:
        """What to call the conditions."""
        return condition_names(self.keys)

    def scores(self, side: str) -> pd.DataFrame:
        """Scores of a side's predictions over all genes, a row for each condition and a column for each metric."""
        table = signature_scores(self.true, self.predicted[side])
        return table.pivot(index="row", columns="metric", values="value")


def match_signatures(
    truth: AnnData,
    sides: Mapping[str, AnnData],
    *,
    perturbation: Names,
    cell_type: Names,
    perturbation_key: str,
    cell_type_key: str | None,
    layer: str | None,
    at_most: int | None = None,
) -> Signatures:
    """Check everything, then average the signatures of each condition that is chosen of ``pred``, one of the sides.

    Conditions come in sorted order; more than ``at_most`` are refused.
    """
    if at_most is not None and at_most < 1:
        raise ValueError(f"max_panels={at_most} must be at least 1.")
    columns = {"perturbation": perturbation_key, "cell_type": cell_type_key}
    columns = {argument: key for argument, key in columns.items() if key is not None}
    by, given = list(columns.values()), {"truth": truth, **sides}
    for name, adata in given.items():
        if not isinstance(adata, AnnData):
            raise TypeError(f"{name} must be an AnnData of signatures, but got {type(adata).__name__}.")
    check_unique_var_names(truth, "truth")
    for name, adata in given.items():
        for argument, key in columns.items():
            if key not in adata.obs:
                found = column_names(adata.obs)
                raise KeyError(f"{argument}_key={key!r} is not in {name}.obs. Columns: {found}.")
        if adata.n_obs == 0:
            raise ValueError(f"{name} has no signatures.")
        group_codes(adata, by, name)
        given[name] = on_genes_of_truth(adata, truth.var_names, name)
        check_finite(given[name], layer if name == "truth" else None, name)
    keys = _chosen(group_codes(given["pred"], by)[0], {"perturbation": perturbation, "cell_type": cell_type}, columns)
    if at_most is not None and len(keys) > at_most:
        raise ValueError(
            f"pred has {len(keys)} signatures, and at most {at_most} can be drawn. Choose with "
            f"{' and '.join(f'{argument}=' for argument in columns)} or raise max_panels. "
            f"Signatures: {examples(condition_names(keys))}."
        )
    profiles = {name: group_profiles(adata, by, layer if name == "truth" else None) for name, adata in given.items()}
    places = {name: own.find(keys) for name, own in profiles.items()}
    for name, where in places.items():
        if (where < 0).any():
            raise ValueError(
                f"{name} has no signatures of {int((where < 0).sum())} of the {len(keys)} predicted conditions: "
                f"{examples(condition_names(keys[where < 0]))}."
            )
    means = {name: own.mean[places[name]] for name, own in profiles.items()}
    return Signatures(keys, truth.var_names, means.pop("truth"), means)


def _chosen(keys: pd.DataFrame, wanted: Mapping[str, Names], columns: Mapping[str, str]) -> pd.DataFrame:
    """Conditions that are wanted, all if neither perturbations nor cell types are named."""
    keep = np.ones(len(keys), dtype=bool)
    for argument, names in wanted.items():
        if names is None:
            continue
        if argument not in columns:
            raise ValueError(f"{argument}={names!r} cannot be chosen, since {argument}_key=None.")
        names = str(names) if np.isscalar(names) else [str(name) for name in names]
        own = keys[columns[argument]]
        keep &= own.isin(choose(names, list(own.unique()), argument, "pred")).to_numpy()
    if not keep.any():
        raise ValueError(
            f"pred has no signature of perturbation={wanted['perturbation']!r} in cell_type={wanted['cell_type']!r}. "
            f"Its signatures: {examples(condition_names(keys))}."
        )
    return keys[keep].reset_index(drop=True)
