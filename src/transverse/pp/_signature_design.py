"""Which cells are compared with which: the strata of treated and control cells, read from ``adata.obs``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from transverse._groups import find_groups
from transverse._validation import check_columns, check_obs_key, examples


@dataclass(frozen=True)
class SignatureDesign:
    """Treated strata come first, control strata after them.

    A signature (row of the result) is the mean of its levels (such as doses), and a level is compared with controls in
    each of its strata (batches).
    """

    keys: pd.DataFrame
    """A row for every signature: perturbation, cell type and, if there is one, type of perturbation."""
    level_signature: np.ndarray
    """Of every level: its signature."""
    level_names: list[str]
    stratum_level: np.ndarray
    """Of every treated stratum: its level."""
    partner: np.ndarray
    """Of every treated stratum: the stratum of its controls."""
    cell_type: np.ndarray
    """Of every stratum: its cell type."""
    stratum: np.ndarray
    """Of every cell: its stratum, or -1 if it is not used."""
    replicate: np.ndarray | None
    """Of every cell: its replicate within the stratum, numbered over all strata."""
    left_out: pd.DataFrame
    """Conditions with too few cells, and how many they have."""

    @property
    def n_cells(self) -> np.ndarray:
        """Cells of every stratum."""
        return np.bincount(self.stratum[self.stratum >= 0], minlength=len(self.cell_type))

    @property
    def of_level(self) -> sp.csr_matrix:
        """Levels x treated strata, 1 where a stratum is of a level."""
        return indicator(self.stratum_level, len(self.level_signature))

    @property
    def of_signature(self) -> sp.csr_matrix:
        """Signatures x levels, 1 where a level is of a signature."""
        return indicator(self.level_signature, len(self.keys))

    def counts(self) -> pd.DataFrame:
        """Treated cells, control cells (each once) and levels of every signature."""
        n_cells, n_treated = self.n_cells, len(self.partner)
        signature = self.level_signature[self.stratum_level]
        compared = np.unique(np.column_stack([signature, self.partner]), axis=0)
        n_controls = np.bincount(compared[:, 0], n_cells[compared[:, 1]])
        return pd.DataFrame(
            {
                "n_cells": np.bincount(signature, n_cells[:n_treated]).astype(int),
                "n_controls": n_controls.astype(int),
                "n_averaged": np.bincount(self.level_signature),
            }
        )


def indicator(codes: np.ndarray, n_groups: int) -> sp.csr_matrix:
    """Groups x members, 1 where a member is of a group."""
    return sp.csr_matrix((np.ones(len(codes)), (codes, np.arange(len(codes)))), shape=(n_groups, len(codes)))


def read_signature_design(
    adata: AnnData,
    *,
    perturbation_key: str,
    control: str,
    cell_type_key: str,
    pert_type_key: str | None,
    average_over: Sequence[str],
    match_controls_on: Sequence[str],
    batch_key: str | None,
    replicate_key: str | None,
    min_cells: int,
) -> SignatureDesign:
    """Read the design, or raise an error that says what is missing."""
    of_signature = [key for key in (perturbation_key, cell_type_key, pert_type_key) if key is not None]
    batch = [] if batch_key is None else [batch_key]
    columns = [*of_signature, *average_over, *batch]
    if len(set(columns)) < len(columns):
        raise ValueError(f"A column of adata.obs can be used for one thing only, but these were given: {columns}.")
    check_columns(
        adata,
        {
            "perturbation_key": [perturbation_key],
            "cell_type_key": [cell_type_key],
            "match_controls_on": match_controls_on,
            "batch_key": batch,
            "replicate_key": [] if replicate_key is None else [replicate_key],
        },
    )
    names = adata.obs[perturbation_key].astype(str).to_numpy(dtype=object)
    treated = names != control
    if treated.all():
        raise ValueError(
            f"No cell has control={control!r} in adata.obs[{perturbation_key!r}]. Values: {examples(np.unique(names))}."
        )
    if not treated.any():
        raise ValueError(f"All cells are controls: adata.obs[{perturbation_key!r}] is {control!r} throughout.")
    # controls need no dose and no type
    for argument, keys in {"average_over": average_over, "pert_type_key": of_signature[2:]}.items():
        for key in keys:
            check_obs_key(adata, key, argument)
            if (missing := adata.obs[key].isna().to_numpy() & treated).any():
                raise ValueError(
                    f"adata.obs[{key!r}] ({argument}) is missing for {int(missing.sum())} treated cells: "
                    f"{examples(adata.obs_names[missing])}. Fill it in or remove the cells."
                )
    used = list(dict.fromkeys([*columns, *([] if replicate_key is None else [replicate_key])]))
    table = pd.DataFrame({key: adata.obs[key].astype(str).to_numpy(dtype=object) for key in used})

    level_keys = [*of_signature, *average_over]
    levels, level = _groups(table[treated], level_keys)
    n_cells = np.bincount(level)
    enough = n_cells >= min_cells
    if not enough.any():
        largest = int(n_cells.argmax())
        raise ValueError(
            f"No condition has min_cells={min_cells} cells; the largest, {_name(levels, largest)!r}, has "
            f"{n_cells[largest]}. Lower min_cells (bulk samples need min_cells=1)."
        )
    cells = np.flatnonzero(treated)[enough[level]]
    levels_kept, level = _groups(table.iloc[cells], level_keys)
    keys, level_signature = _groups(levels_kept, of_signature)
    treated_strata, stratum_treated = _groups(table.iloc[cells], [*level_keys, *batch])
    control_strata, stratum_control = _groups(table[~treated], [cell_type_key, *match_controls_on, *batch])
    partner = find_groups(control_strata, treated_strata)
    _refuse_unmatched(
        control_strata, treated_strata, partner, cell_type_key, f"adata.obs[{perturbation_key!r}] is {control!r}"
    )

    stratum = np.full(adata.n_obs, -1)
    stratum[cells] = stratum_treated
    stratum[~treated] = stratum_control + len(treated_strata)
    replicate = None
    if replicate_key is not None:
        replicate = np.full(adata.n_obs, -1)
        of_cell = pd.DataFrame({"stratum": stratum, "replicate": table[replicate_key]})[stratum >= 0]
        replicate[stratum >= 0] = _groups(of_cell, ["stratum", "replicate"])[1]
    left_out = levels[~enough].assign(n_cells=n_cells[~enough])
    left_out.index = pd.Index([_name(levels, i) for i in np.flatnonzero(~enough)], dtype=object)
    return SignatureDesign(
        keys=keys,
        level_signature=level_signature,
        level_names=[_name(levels_kept, i) for i in range(len(levels_kept))],
        stratum_level=find_groups(levels_kept, treated_strata),
        partner=partner + len(treated_strata),
        cell_type=np.concatenate([treated_strata[cell_type_key], control_strata[cell_type_key]]),
        stratum=stratum,
        replicate=replicate,
        left_out=left_out,
    )


def _groups(table: pd.DataFrame, by: list[str]) -> tuple[pd.DataFrame, np.ndarray]:
    """The groups of rows that occur, in sorted order, and the group of every row."""
    codes = table.groupby(by, sort=True).ngroup().to_numpy()
    return table[by].iloc[np.unique(codes, return_index=True)[1]].reset_index(drop=True), codes


def _name(keys: pd.DataFrame, row: int) -> str:
    return "|".join(keys.iloc[row])


def _refuse_unmatched(
    controls: pd.DataFrame,
    treated: pd.DataFrame,
    partner: np.ndarray,
    cell_type_key: str,
    control: str,
) -> None:
    """Raise a ValueError if treated cells have no controls; ``control`` says in words what these are."""
    lacking = treated.loc[partner < 0, controls.columns].drop_duplicates()
    if not len(lacking):
        return
    whole = np.setdiff1d(lacking[cell_type_key], controls[cell_type_key])
    if len(whole):
        raise ValueError(
            f"These cell types have treated cells but no controls ({control}): {examples(whole)}. Add controls or remove "
            "the cell types."
        )
    rows = [", ".join(f"{key} {value}" for key, value in zip(lacking, row, strict=True)) for row in lacking.to_numpy()]
    raise ValueError(
        f"These have treated cells but no controls ({control}): {examples(rows)}. Remove the cells, or match controls on "
        "less (batch_key, match_controls_on)."
    )
