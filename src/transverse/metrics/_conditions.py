"""True and predicted profiles of the same conditions, from arrays or AnnData, with the controls of either kept apart."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from scvi import settings

from transverse._groups import GroupProfiles, group_codes, group_profiles
from transverse._validation import align_genes, check_finite, examples

Cells = AnnData | np.ndarray | sp.spmatrix | sp.sparray | pd.DataFrame

START = "control"
"""Layer of a prediction that holds the expression of the control cells it starts from."""
CONTROL_CELL = "control_cell"
"""Column of a prediction's ``obs`` with the names of those cells."""


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
    where no controls were given.
    """

    keys: pd.DataFrame
    var_names: pd.Index
    truth: GroupProfiles
    pred: np.ndarray
    control: GroupProfiles | None
    pred_control: np.ndarray | None

    @property
    def change(self) -> np.ndarray:
        """True change, conditions x genes."""
        return self.truth.mean - self.control.mean

    @property
    def pred_change(self) -> np.ndarray:
        """Predicted change, conditions x genes."""
        return self.pred - self.pred_control

    def table(self, scores: Sequence[Score]) -> pd.DataFrame:
        """Scores of all conditions as the tidy table."""
        return tidy(self.keys, scores, self.truth.n_cells)


@dataclass(frozen=True)
class CellsOfConditions:
    """Conditions to be scored, a row each, with true, predicted and perhaps control cells and what tells them apart."""

    keys: pd.DataFrame
    sides: dict[str, tuple[AnnData, list[str]]]
    layer: str | None

    def matrix(self, name: str):
        """Expression of one side, cells x genes."""
        adata = self.sides[name][0]
        return adata.X if name == "pred" or self.layer is None else adata.layers[self.layer]

    def table(self, scores: Sequence[Score]) -> pd.DataFrame:
        """Scores of all conditions as the tidy table."""
        adata, by = self.sides["truth"]
        keys, codes = group_codes(adata, by)
        n_cells = np.bincount(codes)[GroupProfiles(keys, None, None, None).find(self.keys)]
        return tidy(self.keys, scores, n_cells)


def cells_of_conditions(
    truth: Cells,
    pred: Cells,
    control: Cells | None,
    *,
    perturbation_key: str,
    context_key: str | None,
    layer: str | None,
) -> CellsOfConditions:
    """Check everything; means are not taken."""
    given, by, context_by = _checked(truth, pred, control, None, perturbation_key, context_key, layer)
    keys = group_codes(given["pred"], by)[0]
    sides = {"truth": (given["truth"], by), "pred": (given["pred"], by)}
    if control is not None:
        sides["control"] = (given["control"], context_by)
    for name, (adata, side_by) in sides.items():
        groups = GroupProfiles(group_codes(adata, side_by)[0], None, None, None)
        _refuse_missing(groups, keys, name)
    return CellsOfConditions(keys, sides, layer)


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
) -> Conditions:
    """Check everything, then take the means of the conditions that are predicted."""
    given, by, context_by = _checked(truth, pred, control, pred_control, perturbation_key, context_key, layer)
    pred, control, pred_control = given["pred"], given["control"], given["pred_control"]
    if control is not None and not allow_shared_controls:
        _refuse_shared(pred, control, pred_control)
    start = AnnData(pred.layers[START], obs=pred.obs, var=pred.var) if START in pred.layers else None
    if control is not None and start is None and pred_control is None:
        control, pred_control = _halves(control, context_by, seed)

    predicted = group_profiles(pred, by)
    keys = predicted.keys
    true = _select(group_profiles(given["truth"], by, layer), keys, "truth")
    control_means = pred_control_means = None
    if control is not None:
        control_means = _select(group_profiles(control, context_by, layer), keys, "control")
        if start is not None:
            pred_control_means = group_profiles(start, by).mean
        else:
            pred_control_means = _select(group_profiles(pred_control, context_by, layer), keys, "pred_control").mean
    return Conditions(keys, given["truth"].var_names, true, predicted.mean, control_means, pred_control_means)


def _checked(
    truth: Cells,
    pred: Cells,
    control: Cells | None,
    pred_control: Cells | None,
    perturbation_key: str,
    context_key: str | None,
    layer: str | None,
) -> tuple[dict[str, AnnData | None], list[str], list[str]]:
    """All sides as AnnData on the genes of truth; the columns that tell conditions apart, and those for contexts."""
    given = {"truth": truth, "pred": pred, "control": control, "pred_control": pred_control}
    kinds = {name: isinstance(cells, AnnData) for name, cells in given.items() if cells is not None}
    if len(set(kinds.values())) > 1:
        found = ", ".join(f"{name}: {type(given[name]).__name__}" for name in kinds)
        raise TypeError(f"Give AnnData throughout or arrays throughout, but got {found}.")
    by = [key for key in (perturbation_key, context_key) if key is not None]
    context_by = [key for key in (context_key,) if key is not None]
    if not kinds["truth"]:
        if layer is not None:
            raise ValueError(f"layer={layer!r} needs AnnData, but truth is {type(truth).__name__}.")
        given, by, context_by = _as_anndata(given), [], []
    for name, cells in given.items():
        if cells is None:
            continue
        for key in by if name in ("truth", "pred") else context_by:
            if key not in cells.obs:
                argument = "context_key" if key == context_key else "perturbation_key"
                raise KeyError(f"{argument}={key!r} is not in {name}.obs. Columns: {examples(cells.obs.columns, 20)}.")
        if cells.n_obs == 0:
            raise ValueError(f"{name} has no cells.")
        given[name] = align_genes(cells, given["truth"].var_names, name)
        check_finite(given[name], None if name == "pred" else layer, name)
    return given, by, context_by


def _as_anndata(given: dict[str, Cells | None]) -> dict[str, AnnData | None]:
    """Arrays, as one condition; a single profile may have one dimension."""
    wrapped, genes = {}, None
    for name, cells in given.items():
        if cells is None:
            wrapped[name] = None
            continue
        names = cells.columns.astype(str) if isinstance(cells, pd.DataFrame) else None
        matrix = cells if sp.issparse(cells) else np.atleast_2d(np.asarray(cells, dtype=float))
        if matrix.ndim != 2:
            raise ValueError(f"{name} must be cells x genes, but has {matrix.ndim} dimensions.")
        if genes is None:
            genes = matrix.shape[1]
        elif matrix.shape[1] != genes:
            raise ValueError(f"{name} must have the {genes} genes of truth, but has {matrix.shape[1]}.")
        var = pd.DataFrame(index=pd.RangeIndex(genes).astype(str) if names is None else names)
        obs = pd.DataFrame(index=pd.RangeIndex(matrix.shape[0]).astype(str))
        wrapped[name] = AnnData(sp.csr_matrix(matrix) if sp.issparse(matrix) else matrix, obs=obs, var=var)
    return wrapped


def _refuse_shared(pred: AnnData, control: AnnData, pred_control: AnnData | None) -> None:
    used = pd.Index(pred.obs[CONTROL_CELL].astype(str)) if CONTROL_CELL in pred.obs else pd.Index([])
    if pred_control is not None and not _is_unnamed(pred_control):
        used = used.append(pred_control.obs_names)
    shared = control.obs_names[control.obs_names.isin(used)]
    if len(shared):
        raise ValueError(
            f"{len(shared)} of the {control.n_obs} control cells that score are also those that predict: "
            f"{examples(shared)}. Their noise would be in both changes and look like skill. Predict from one half of the "
            "controls and score with the other (pp.split_responses does that), or pass allow_shared_controls=True."
        )


def _is_unnamed(adata: AnnData) -> bool:
    return adata.obs_names.equals(pd.RangeIndex(adata.n_obs).astype(str))


def _halves(control: AnnData, by: Sequence[str], seed: int) -> tuple[AnnData, AnnData]:
    """Control cells in two random halves, within every context."""
    warnings.warn(
        "The prediction does not say which control cells it starts from, so the controls are halved at random: one half "
        "is taken from the truth, the other from the prediction. Pass pred_control to choose.",
        UserWarning,
        stacklevel=settings.warnings_stacklevel,
    )
    first, second = halve(control, by, np.random.default_rng(seed), "control")
    return control[first], control[second]


def halve(adata: AnnData, by: Sequence[str], rng: np.random.Generator, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the cells in two random halves of every group, in order."""
    groups = adata.obs.groupby([adata.obs[key].astype(str) for key in by]).indices if by else {"": range(adata.n_obs)}
    halves = ([], [])
    for group, cells in groups.items():
        cells = rng.permutation(np.asarray(cells))
        if len(cells) < 2:
            raise ValueError(f"{name} must have at least 2 cells of each group to be halved, but {group!r} has 1.")
        halves[0].append(cells[: len(cells) // 2])
        halves[1].append(cells[len(cells) // 2 :])
    return tuple(np.sort(np.concatenate(half)) for half in halves)


def _refuse_missing(groups: GroupProfiles, keys: pd.DataFrame, name: str) -> np.ndarray:
    """Groups that rows of ``keys`` belong to; raises where there is none."""
    where = groups.find(keys)
    if (where < 0).any():
        missing = keys.loc[where < 0, list(groups.keys.columns)].drop_duplicates()
        raise ValueError(
            f"{name} has no cells of {len(missing)} of the predicted {' and '.join(groups.keys.columns)} groups: "
            f"{examples(' | '.join(row) for row in missing.itertuples(index=False))}."
        )
    return where


def _select(profiles: GroupProfiles, keys: pd.DataFrame, name: str) -> GroupProfiles:
    """Profiles of the groups that rows of ``keys`` belong to."""
    where = _refuse_missing(profiles, keys, name)
    columns = (profiles.keys.iloc[where].reset_index(drop=True), profiles.mean[where], profiles.variance[where])
    return GroupProfiles(*columns, profiles.n_cells[where])
