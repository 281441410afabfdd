"""A recipe for sci-Plex: drugs on cancer cell lines."""

from __future__ import annotations

import warnings
from collections import defaultdict
from typing import Literal

import numpy as np
import pandas as pd
from anndata import AnnData

from transverse._validation import examples
from transverse.pp._split_design import TEST, TRAIN

from ._checks import check_choice
from ._recipe_splits import CONTROL, SCIPLEX, Names, Split, check_plan, held_out, is_control, plan_split
from ._recipe_steps import (
    cell_types,
    check_input,
    check_numbers,
    check_scale,
    check_split_options,
    drug_namer,
    filter_counts,
    finish,
    label_cells,
    normalize,
    take,
    treated_names,
)

# by version; the share is the paper's 8,499 of 8,499 + 101,190, and half of what is held out
_MIN_GENES = {3: 500, 4: 300}
_MIN_CELLS = {3: 1000, 4: 200}
_VALID_SHARE = {3: 8499 / 109_689, 4: 0.5}


def prepare_sciplex(
    adata: AnnData,
    version: Literal[3, 4],
    *,
    perturbation_key: str = "product_name",
    control: str = "Vehicle",
    dose_key: str = "dose",
    cell_type_key: str = "cell_type",
    layer: str | None = None,
    dose: float = 10_000.0,
    drug_names: Literal["first_word", "full"] = "first_word",
    min_genes: int | None = None,
    min_cells: int | None = None,
    n_top_genes: int = 2000,
    min_top_genes: int = 50,
    split: Split = "paper",
    holdout: Names | None = None,
    valid: Names | int | None = None,
    valid_share: float | None = None,
    control_share: float = 0.12,
    seed: int = 0,
) -> AnnData:
    r"""Prepare sci-Plex 3 or 4, drugs on cancer cell lines, as the paper of XTransferCDR does :cite:p:`Liu2025`.

    Nothing is downloaded. The steps and their defaults are those of cycleCDR, whose preprocessing the authors of
    XTransferCDR share; the held-out drugs are the paper's. In order: keep the vehicle and one dose; cells with
    `min_genes` detected genes; genes detected in `min_cells` cells; such cells again; counts per cell to the median
    total, then :math:`\log(1 + x)`; `n_top_genes` most variable genes; cells with `min_top_genes` of these detected.

    Parameters
    ----------
    adata
        Raw counts of all cells, cells x genes, in memory or backed. It is not changed.
    version
        3 (Srivatsan et al. 2020: A549, K562 and MCF7, 188 drugs) or 4.
    perturbation_key
        Column of `adata.obs` with the drug. The default is the name in the copies from GEO and chemCPA; scPerturb has
        ``"perturbation"``.
    control
        The label of the vehicle there, as a whole or as its first word; ``"control"`` in scPerturb.
    dose_key
        Column of `adata.obs` with the dose, as numbers or their text; ``"dose_value"`` in scPerturb. The vehicle's is not
        read.
    cell_type_key
        Column of `adata.obs` with the cell line; ``"cell_line"`` in scPerturb.
    layer
        Layer with the counts; `None` is `adata.X`.
    dose
        Which dose to keep, in the unit of the column: 10,000 nM (paper: 10 µM). Treated cells of other doses, or of
        none, are left out.
    drug_names
        ``"first_word"`` calls ``"Flavopiridol HCl"`` by its first word, ``"Flavopiridol"`` (cycleCDR, and how the paper
        names the held-out drugs); ``"full"`` keeps names, for which `holdout` must be given in full too. ``"(+)-JQ1"``
        becomes ``"JQ1"`` either way, as ``"+"`` joins combinations.
    min_genes, min_cells
        `None` is 500 genes and 1,000 cells for version 3, 300 genes and 200 cells for version 4 (cycleCDR). Genes
        without counts go, unless ``min_cells=0``.
    n_top_genes
        How many of the most variable genes to keep, by the default flavour of :func:`scanpy.pp.highly_variable_genes`
        (cycleCDR). They are chosen on all cells, held-out ones too, as there.
    min_top_genes
        Detected genes among these that a cell needs (cycleCDR).
    split
        What is validation. The test is `holdout` in all cell lines either way.
        ``"paper"``: as published, **in which validation leaks**. For version 3, `valid_share` of the cells of each
        training condition: validation cells have drugs that are trained on, so that their score says little of the
        test's. For version 4, `valid_share` of the cells of each *held-out* condition: validation and test are cells
        of the same drugs, so that to choose a model by validation is to choose it on the test.
        ``"disjoint"``: other drugs, `valid`. Recommended; it passes
        ``pp.check_split(result, by="perturbation")``.
    holdout
        Drugs for the test, by the names in the column or in the result, each of which must be there. `None` is the
        paper's: Dacinostat, Givinostat, Belinostat, Hesperadin, Quisinostat, Alvespimycin, Tanespimycin, TAK-901 and
        Flavopiridol for version 3; Dacinostat, CUDC-907, Quisinostat, Panobinostat and Givinostat for version 4.
    valid
        For ``split="disjoint"``: drugs for validation, or how many to draw. `None` draws as many as are held out.
    valid_share
        For ``split="paper"``. `None` is 0.0775 for version 3, from the paper's numbers (8,499 to 101,190; its text says
        1 to 4, which is 0.2), and 0.5 for version 4 (cycleCDR).
    control_share
        Share of each cell line's vehicle cells that leaves training, in equal parts to validation and test (cycleCDR:
        0.12, for version 3 about that, and the same cells for both). No two sides share a cell, and each has one at least.
    seed
        Seed of everything random. The authors' own draws cannot be repeated.

    Returns
    -------
    A new AnnData of the kept cells and the chosen genes, in the order that they had, without other layers:

    - ``X``: log-normalised, float32.
    - ``layers["counts"]``: the counts of these genes.
    - ``obs``: ``perturbation`` (``"control"`` for the vehicle), ``cell_type`` and ``split``, which is train, valid or test,
      categorical; and the columns that there were. One that bears such a name and differs is kept as, say,
      ``"perturbation_original"``.
    - ``var``: as it was, and ``highly_variable``.
    - ``uns["recipe"]``: the settings, and the drugs of the test (``holdout``) and, if any, of validation (``valid``).

    Raises
    ------
    KeyError
        If columns or the layer are missing; all of them are named.
    ValueError
        If the values are no counts, names repeat, labels are missing, doses are no numbers; if no cell has the dose or
        is a control; if none of the paper's drugs, or not all of `holdout` and `valid`, are there; if a cell line has
        too few controls; if filters leave nothing.

    Warns
    -----
    UserWarning
        If some of the paper's drugs are not there; if drugs with different names become one by their first word; if
        filters leave no cells of some of the held-out drugs.

    Examples
    --------
    A copy from scPerturb:

    >>> import scanpy as sc
    >>> import transverse as tv
    >>> adata = tv.datasets.prepare_sciplex(
    ...     sc.read_h5ad("SrivatsanTrapnell2020_sciplex3.h5ad"),
    ...     version=3,
    ...     split="disjoint",
    ...     perturbation_key="perturbation",
    ...     control="control",
    ...     dose_key="dose_value",
    ...     cell_type_key="cell_line",
    ... )  # doctest: +SKIP

    Other data, here simulated, with drugs of one's own held out:

    >>> raw = tv.datasets.simulate_responses(n_contexts=2, n_perturbations=4, n_genes=100, doses=[10, 10_000])
    >>> adata = tv.datasets.prepare_sciplex(
    ...     raw,
    ...     version=3,
    ...     perturbation_key="perturbation",
    ...     control="control",
    ...     layer="counts",
    ...     min_genes=10,
    ...     min_cells=10,
    ...     n_top_genes=50,
    ...     min_top_genes=5,
    ...     split="disjoint",
    ...     holdout=["P01"],
    ... )
    >>> adata.n_vars, adata.uns["recipe"]["holdout"].tolist()
    (50, ['P01'])
    >>> tv.XTransferCDR.setup_anndata(
    ...     adata, perturbation_key="perturbation", control="control", context_key="cell_type"
    ... )
    """
    if version not in SCIPLEX:
        raise ValueError(f"version={version!r} is unknown. Choose 3 or 4.")
    min_genes = _MIN_GENES[version] if min_genes is None else min_genes
    min_cells = _MIN_CELLS[version] if min_cells is None else min_cells
    valid_share = _VALID_SHARE[version] if valid_share is None else valid_share
    check_choice("drug_names", drug_names, ("first_word", "full"))
    check_numbers(min_genes=min_genes, min_cells=min_cells, min_top_genes=min_top_genes)
    check_numbers(low=1, n_top_genes=n_top_genes)
    check_split_options(split, control_share=control_share, valid_share=valid_share)
    columns = {"perturbation_key": perturbation_key, "dose_key": dose_key, "cell_type_key": cell_type_key}
    check_input(adata, columns, {})

    rename = drug_namer(control, drug_names == "first_word")
    labels = label_cells(adata, perturbation_key, control, rename, cell_types(adata, cell_type_key))
    cells = is_control(labels) | _has_dose(adata, dose_key, dose, ~is_control(labels))
    labels = labels[cells]
    if drug_names == "first_word":
        _warn_of_merged(adata.obs[perturbation_key][cells], labels)
    names = treated_names(labels)
    test = held_out(holdout, SCIPLEX[version], names, rename)
    rng_names, rng_cells = np.random.default_rng(seed).spawn(2)
    share = (TRAIN if version == 3 else TEST, valid_share)
    plan = plan_split(split, test, valid, candidates=names, rename=rename, share=share, rng=rng_names)
    check_plan(labels, plan)
    check_scale(adata, layer, counts=True)

    result = filter_counts(take(adata, cells, layer), min_genes, min_cells)
    result = normalize(result, n_top_genes, min_top_genes)
    settings = {
        "name": f"sciplex{version}",
        "dose": float(dose),
        "drug_names": drug_names,
        "min_genes": min_genes,
        "min_cells": min_cells,
        "n_top_genes": n_top_genes,
        "min_top_genes": min_top_genes,
        "split": split,
        "valid_share": valid_share if split == "paper" else None,
        "control_share": control_share,
        "seed": seed,
    }
    return finish(result, labels.loc[result.obs_names], plan, control_share, rng_cells, settings)


def _has_dose(adata: AnnData, dose_key: str, dose: float, treated: np.ndarray) -> np.ndarray:
    """Which treated cells had this dose."""
    given = adata.obs[dose_key].astype(object)
    doses = pd.to_numeric(given, errors="coerce")
    if (wrong := (doses.isna() & given.notna()).to_numpy() & treated).any():
        raise ValueError(
            f"adata.obs[{dose_key!r}] (dose_key) must have numbers, but has: {examples(given[wrong].unique())}."
        )
    cells = treated & np.isclose(doses.to_numpy(dtype=float), dose)
    if not cells.any():
        found = np.sort(doses[treated].dropna().unique())
        raise ValueError(
            f"No treated cell has dose={dose:g} in adata.obs[{dose_key!r}], which has: "
            f"{examples(f'{one:g}' for one in found)}. Give the dose in the unit of the column."
        )
    return cells


def _warn_of_merged(given: pd.Series, labels: pd.DataFrame) -> None:
    """Warn of different drugs that have one name in the result."""
    merged = defaultdict(list)
    for name, label in sorted(set(zip(labels["perturbation"], given.astype(str), strict=True))):
        merged[name].append(label)
    if found := [f"{name} ({', '.join(of)})" for name, of in merged.items() if name != CONTROL and len(of) > 1]:
        warnings.warn(
            f"Drugs become one by their first word: {examples(found)}. If they are different, pass drug_names='full'.",
            UserWarning,
            stacklevel=3,
        )
