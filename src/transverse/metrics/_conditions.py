"""True and predicted profiles of the same conditions, from arrays or AnnData, with the controls of either kept apart."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from scvi import settings

from transverse._groups import GroupProfiles, find_groups, group_codes, group_profiles
from transverse._validation import align_genes, check_finite, check_unique_var_names, column_names, examples

Cells = AnnData | np.ndarray | sp.spmatrix | sp.sparray | pd.DataFrame | pd.Series

START = "control"
"""Layer of a prediction that holds the expression of the control cells it starts from."""
CONTROL_NAMES = ("control_cell", "control_sample")
"""Columns of a prediction's ``obs`` that may hold the names of those cells, or samples."""


class Score(NamedTuple):
    """A score of all conditions: what it is of, on which genes, its name, and a value for each condition."""

    of: str
    genes: str
    metric: str
    value: np.ndarray


def tidy(keys: pd.DataFrame, scores: Sequence[Score], n_cells: np.ndarray) -> pd.DataFrame:
    """A row for each score and condition."""
    n, m = len(scores), len(keys)
    columns = {name: np.tile(keys[name].to_numpy(), n) for name in keys}
    for name in ("of", "genes", "metric"):
        columns[name] = np.repeat(np.array([getattr(score, name) for score in scores], dtype=object), m)
    columns["value"] = np.concatenate([np.asarray(score.value, dtype=float) for score in scores])
    columns["n_cells"] = np.tile(n_cells, n)
    return pd.DataFrame(columns)


@dataclass(frozen=True)
class Conditions:
    """Conditions to be scored, a row each, with their mean profiles.

    ``control`` and ``pred_control`` are the controls that the change of truth and prediction is taken against; None
    where no controls were given. ``measured`` are the conditions of the truth and of further candidates, scored or not.
    """

    keys: pd.DataFrame
    var_names: pd.Index
    truth: GroupProfiles
    pred: GroupProfiles
    control: GroupProfiles | None
    pred_control: np.ndarray | None
    measured: Sequence[GroupProfiles] = ()

    @cached_property
    def change(self) -> np.ndarray:
        """True change, conditions x genes."""
        return self.truth.mean - self.control.mean

    @cached_property
    def pred_change(self) -> np.ndarray:
        """Predicted change, conditions x genes."""
        return self.pred.mean - self.pred_control

    def table(self, scores: Sequence[Score]) -> pd.DataFrame:
        """Scores of all conditions as the tidy table."""
        return tidy(self.keys, scores, self.truth.n_cells)


class CellGroups(NamedTuple):
    """One side's expression, cells x genes, the positions of every group's cells, and the group of every condition."""

    matrix: np.ndarray | sp.spmatrix
    groups: list[np.ndarray]
    of_condition: np.ndarray


def cells_of_conditions(
    truth: Cells,
    pred: Cells,
    control: Cells | None,
    *,
    perturbation_key: str,
    context_key: str | None,
    layer: str | None,
) -> tuple[pd.DataFrame, dict[str, CellGroups]]:
    """Check everything, then find the cells of the conditions that are predicted; means are not taken."""
    given = {"truth": truth, "pred": pred, "control": control}
    given, by, context_by = checked(given, perturbation_key, context_key, layer)
    keys, sides = group_codes(given["pred"], by)[0], {}
    for name, adata in given.items():
        groups, codes = group_codes(adata, context_by if name == "control" else by)
        where = _refuse_missing(groups, keys, name)
        cells = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
        matrix = adata.X if name == "pred" or layer is None else adata.layers[layer]
        sides[name] = CellGroups(matrix, cells, where)
    return keys, sides


def conditions(
    truth: Cells,
    pred: Cells,
    control: Cells | None,
    pred_control: Cells | None,
    *,
    perturbation_key: str,
    context_key: str | None,
    layer: str | None,
    allow_shared_controls: bool,
    seed: int,
    candidates: Cells | None = None,
) -> Conditions:
    """Check everything, then take the means of the conditions that are predicted."""
    if control is None and pred_control is not None:
        raise ValueError("pred_control was given without control, which the true change is taken against.")
    given = {"truth": truth, "pred": pred, "control": control, "pred_control": pred_control, "candidates": candidates}
    given, by, context_by = checked(given, perturbation_key, context_key, layer)
    pred, control, pred_control = given["pred"], given.get("control"), given.get("pred_control")
    if control is not None and not allow_shared_controls:
        _refuse_shared_names(pred, control, pred_control)

    predicted = group_profiles(pred, by)
    keys = predicted.keys
    measured = [group_profiles(given[name], by, layer) for name in ("truth", "candidates") if name in given]
    true = select_groups(measured[0], keys, "truth")
    if control is None:
        return Conditions(keys, given["truth"].var_names, true, predicted, None, None, measured)

    scoring = None
    if pred_control is not None:
        start = select_groups(group_profiles(pred_control, context_by, layer), keys, "pred_control").mean
    elif START in pred.layers:
        check_finite(pred, START, "pred")
        start = group_profiles(pred, by, START).mean
    else:
        scoring, starting = _halves(control, context_by, seed)
        start = select_groups(group_profiles(control, context_by, layer, starting), keys, "control").mean
    control_means = select_groups(group_profiles(control, context_by, layer, scoring), keys, "control")
    if not allow_shared_controls:
        _refuse_shared_means(control_means, start)
    return Conditions(keys, given["truth"].var_names, true, predicted, control_means, start, measured)


def checked(
    given: dict[str, Cells | None], perturbation_key: str, context_key: str | None, layer: str | None
) -> tuple[dict[str, AnnData], list[str], list[str]]:
    """Sides that were given, as AnnData on the genes of truth; columns that tell conditions apart, and contexts."""
    for name in ("truth", "pred"):
        if name in given and given[name] is None:
            raise TypeError(f"{name} is needed, but is None.")
    given = {name: cells for name, cells in given.items() if cells is not None}
    if len({isinstance(cells, AnnData) for cells in given.values()}) > 1:
        found = ", ".join(f"{name}: {type(cells).__name__}" for name, cells in given.items())
        raise TypeError(f"Give AnnData throughout or arrays throughout, but got {found}.")
    by = [key for key in (perturbation_key, context_key) if key is not None]
    context_by = [key for key in (context_key,) if key is not None]
    if not isinstance(given["truth"], AnnData):
        if layer is not None:
            raise ValueError(f"layer={layer!r} needs AnnData, but truth is {type(given['truth']).__name__}.")
        given, by, context_by = as_anndata(given), [], []
    var_names = given["truth"].var_names
    check_unique_var_names(given["truth"], "truth")
    for name, cells in given.items():
        side_by = context_by if name in ("control", "pred_control") else by
        for key in side_by:
            if key not in cells.obs:
                argument = "context_key" if key == context_key else "perturbation_key"
                raise KeyError(f"{argument}={key!r} is not in {name}.obs. Columns: {column_names(cells.obs)}.")
        if cells.n_obs == 0:
            raise ValueError(f"{name} has no cells.")
        group_codes(cells, side_by, name)
        given[name] = on_genes_of_truth(cells, var_names, name)
        check_finite(given[name], None if name == "pred" else layer, name)
    return given, by, context_by


def on_genes_of_truth(cells: AnnData, var_names: pd.Index, name: str) -> AnnData:
    """``cells`` with the genes of truth, in its order."""
    if len(missing := var_names.difference(cells.var_names, sort=False)):
        raise ValueError(
            f"{len(missing)} of the {len(var_names)} genes of truth are missing in {name}: {examples(missing)}. "
            f"{name} has, for example: {examples(cells.var_names)}."
        )
    return align_genes(cells, var_names, name)


def as_anndata(given: dict[str, Cells]) -> dict[str, AnnData]:
    """Arrays, as one condition; a single profile may have one dimension. Genes that truth names are found by name."""
    matrices, names = {}, {}
    for name, cells in given.items():
        cells = cells.to_frame().T if isinstance(cells, pd.Series) else cells
        names[name] = cells.columns.astype(str) if isinstance(cells, pd.DataFrame) else None
        matrix = sp.csr_matrix(cells) if sp.issparse(cells) else np.atleast_2d(np.asarray(cells, dtype=float))
        if matrix.ndim != 2:
            raise ValueError(f"{name} must be cells x genes, but has {matrix.ndim} dimensions.")
        matrices[name] = matrix
    n_genes = matrices["truth"].shape[1]
    genes = pd.RangeIndex(n_genes).astype(str) if names["truth"] is None else names["truth"]
    wrapped = {}
    for name, matrix in matrices.items():
        own = genes if names["truth"] is None or names[name] is None else names[name]
        if matrix.shape[1] != len(own):
            raise ValueError(f"{name} must have the {n_genes} genes of truth, but has {matrix.shape[1]}.")
        obs = pd.DataFrame(index=pd.RangeIndex(matrix.shape[0]).astype(str))
        wrapped[name] = AnnData(matrix, obs=obs, var=pd.DataFrame(index=own))
    return wrapped


ADVICE = (
    "Their noise would be in both changes and look like skill. Predict from one half of the controls and score with the "
    "other (pp.split_responses does that), or pass allow_shared_controls=True."
)


def _refuse_shared_names(pred: AnnData, control: AnnData, pred_control: AnnData | None) -> None:
    used = pd.Index([name for key in CONTROL_NAMES if key in pred.obs for name in pred.obs[key].astype(str)])
    # names that are numbers from 0 tell nothing
    if pred_control is not None and not pred_control.obs_names.equals(pd.RangeIndex(pred_control.n_obs).astype(str)):
        used = used.append(pred_control.obs_names)
    shared = control.obs_names[control.obs_names.isin(used)]
    if len(shared):
        raise ValueError(
            f"{len(shared)} of the {control.n_obs} control cells that score are also those that predict: "
            f"{examples(shared)}. {ADVICE}"
        )


def _refuse_shared_means(control: GroupProfiles, start: np.ndarray) -> None:
    """For cells without names: different cells do not have the same mean, unless they have no noise."""
    noisy = np.where(control.n_cells > 1, control.variance.any(1), control.mean.any(1))
    equal = noisy & np.isclose(control.mean, start, rtol=1e-6, atol=0).all(1)
    if equal.any():
        raise ValueError(
            f"The control cells that score and those that predict have the same mean in {int(equal.sum())} of "
            f"{len(equal)} conditions, so they are the same cells. {ADVICE}"
        )


def _halves(control: AnnData, by: Sequence[str], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Control cells in two random halves, within every context."""
    warnings.warn(
        "The prediction does not say which control cells it starts from, so the controls are halved at random: one half "
        "is taken from the truth, the other from the prediction. Pass pred_control to choose.",
        UserWarning,
        stacklevel=settings.warnings_stacklevel,
    )
    return halve(control, by, np.random.default_rng(seed), "control")


def halve(adata: AnnData, by: Sequence[str], rng: np.random.Generator, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the cells in two random halves of every group, in order."""
    keys, codes = group_codes(adata, by, name)
    n_cells = np.bincount(codes, minlength=len(keys))
    if (n_cells < 2).any():
        alone = keys[n_cells < 2].itertuples(index=False)
        of = f" of each {' and '.join(by)}" if by else ""
        found = f": {examples(' | '.join(row) for row in alone)}" if by else ""
        raise ValueError(f"{name} must have at least 2 cells{of} to be halved, but some have 1{found}.")
    halves = ([], [])
    for cells in np.split(np.argsort(codes, kind="stable"), np.cumsum(n_cells)[:-1]):
        cells = rng.permutation(cells)
        halves[0].append(cells[: len(cells) // 2])
        halves[1].append(cells[len(cells) // 2 :])
    return tuple(np.sort(np.concatenate(half)) for half in halves)


def _refuse_missing(groups: pd.DataFrame, keys: pd.DataFrame, name: str) -> np.ndarray:
    """Groups that rows of ``keys`` belong to; raises where there is none."""
    where = find_groups(groups, keys)
    if (where < 0).any():
        missing = keys.loc[where < 0, list(groups.columns)].drop_duplicates()
        raise ValueError(
            f"{name} has no cells of {len(missing)} of the predicted {' and '.join(groups.columns)} groups: "
            f"{examples(' | '.join(row) for row in missing.itertuples(index=False))}."
        )
    return where


def select_groups(profiles: GroupProfiles, keys: pd.DataFrame, name: str) -> GroupProfiles:
    """Profiles of the groups that rows of ``keys`` belong to."""
    where = _refuse_missing(profiles.keys, keys, name)
    columns = (profiles.keys.iloc[where].reset_index(drop=True), profiles.mean[where], profiles.variance[where])
    return GroupProfiles(*columns, profiles.n_cells[where])
