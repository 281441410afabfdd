"""Recipes for CRISPR screens: Norman et al. 2019 and Replogle et al. 2022."""

from __future__ import annotations

from typing import Literal

import numpy as np
from anndata import AnnData

from transverse._validation import examples
from transverse.pp._perturbations import parts
from transverse.pp._split_design import TEST

from ._checks import check_choice
from ._recipe_splits import CONTROL, NORMAN, REPLOGLE, Names, Split, check_plan, draw, held_out, plan_split
from ._recipe_steps import (
    cell_types,
    check_input,
    check_n_genes,
    check_numbers,
    check_scale,
    check_split_options,
    fill_genes,
    finish,
    gene_namer,
    is_perturbed,
    keep_genes,
    label_cells,
    symbols_of,
    take,
    top_genes,
    treated_names,
)

_N_TOP_GENES = {"K562": 1141, "RPE1": 945}


def prepare_norman(
    adata: AnnData,
    *,
    perturbation_key: str = "condition",
    control: str = "ctrl",
    delimiter: str = "+",
    gene_key: str | None = "gene_name",
    layer: str | None = None,
    cell_type: str = "K562",
    n_genes: int = 1051,
    train_doubles: bool = False,
    split: Split = "paper",
    holdout: Names | None = None,
    n_holdout: int = 10,
    valid: Names | int | None = None,
    control_share: float = 0.2,
    seed: int = 0,
) -> AnnData:
    """Prepare the single and double perturbations of Norman et al. 2019 as the paper of XTransferCDR does.

    The data :cite:p:`Norman2019` are of CRISPR *activation* in K562 cells. Copies from GEARS call the cells A549, and
    the paper of XTransferCDR :cite:p:`Liu2025` calls them A549 knock-outs; both are wrong, and `cell_type` puts the
    first right. Nothing is downloaded.

    Parameters
    ----------
    adata
        Log-normalised expression, cells x genes, in memory or backed, as GEARS distributes it
        (``perturb_processed.h5ad``). Counts are refused: normalise them first. It is not changed.
    perturbation_key
        Column of `adata.obs` with the perturbation: ``"FOSB+CEBPB"``, ``"KLF1+ctrl"``, ``"ctrl"`` in GEARS' copy. The
        order of a double does not matter. scPerturb has ``"perturbation"``.
    control
        The label of the control there; ``"control"`` in scPerturb.
    delimiter
        What joins a double there; ``"_"`` in scPerturb.
    gene_key
        Column of `adata.var` with the symbols of genes, or `None` for `adata.var_names`.
    layer
        Layer with the expression; `None` is `adata.X`.
    cell_type
        What to call the cells.
    n_genes
        How many genes to keep (paper's code: 1,051): those that are perturbed and measured, and the most variable of the
        others, by the default flavour of :func:`scanpy.pp.highly_variable_genes` on all cells that are kept. How the
        authors came to theirs is not known.
    train_doubles
        Whether doubles that are not held out are trained on. The paper trains on singles only, so that doubles which
        are neither test nor validation are left out of the result; its code has doubles in training.
    split
        The test is `holdout` either way.
        ``"paper"``: no validation, as the paper reports none.
        ``"disjoint"``: other doubles, `valid`, are validation.
        Both pass ``pp.check_split(result, by="combination")``.
    holdout
        Doubles for the test, in any order, each with both singles measured alone. `None` takes FOSB+CEBPB and
        ZBTB10+DLX2 and draws the rest up to `n_holdout`: of its ten doubles the paper names only these, so that **its
        test cannot be rebuilt from its text**.
    n_holdout
        How many doubles are the test if `holdout` is `None` (paper: 10).
    valid
        For ``split="disjoint"``: doubles for validation, or how many to draw. `None` draws as many as are held out.
    control_share
        Share of control cells that leaves training, in equal parts to validation (if any) and test. The paper does not
        say; this is cycleCDR's for Replogle. No two sides share a cell, and each has one at least.
    seed
        Seed of everything random.

    Returns
    -------
    A new AnnData of the kept cells and the chosen genes, in the order that they had, without other layers:

    - ``X``: log-normalised as given, float32.
    - ``obs``: ``perturbation`` (``"CEBPB+FOSB"``, ``"KLF1"``, ``"control"``), ``cell_type`` and ``split``, which is train,
      valid or test, categorical; and the columns that there were. One that bears such a name and differs is kept
      as, say, ``"cell_type_original"``.
    - ``var``: as it was, and ``perturbed`` and ``highly_variable``.
    - ``uns["recipe"]``: the settings, and the doubles of the test (``holdout``) and, if any, of validation (``valid``).

    Raises
    ------
    KeyError
        If columns or the layer are missing; all of them are named.
    ValueError
        If the values are counts, scaled or not finite, names repeat, or labels are missing; if no cell is a control; if
        no perturbed gene is among the genes; if what is to be held out is not there, or is no double whose singles are
        measured alone; if too few doubles, genes or controls are there.

    Warns
    -----
    UserWarning
        If one of the two doubles that the paper names is not there.

    Examples
    --------
    The copy from GEARS:

    >>> import scanpy as sc
    >>> import transverse as tv
    >>> adata = tv.datasets.prepare_norman(sc.read_h5ad("norman/perturb_processed.h5ad"))  # doctest: +SKIP

    Other data, here simulated, whose first genes are called after the perturbations, with a double of one's own held out:

    >>> raw = tv.datasets.simulate_responses(n_contexts=1, n_perturbations=3, n_doubles=3, n_genes=100)
    >>> raw.var_names = ["P01", "P02", "P03", *raw.var_names[3:]]
    >>> adata = tv.datasets.prepare_norman(
    ...     raw,
    ...     perturbation_key="perturbation",
    ...     control="control",
    ...     gene_key=None,
    ...     n_genes=50,
    ...     holdout=["P01+P02"],
    ... )
    >>> adata.n_vars, adata.var_names[adata.var["perturbed"]].tolist()
    (50, ['P01', 'P02', 'P03'])
    >>> tv.XTransferCDR.setup_anndata(
    ...     adata, perturbation_key="perturbation", control="control", context_key="cell_type"
    ... )
    """
    check_numbers(low=1, n_genes=n_genes)
    check_numbers(low=len(NORMAN), n_holdout=n_holdout)
    check_split_options(split, control_share=control_share)
    check_input(adata, {"perturbation_key": perturbation_key}, {"gene_key": gene_key})

    rename = gene_namer(control, delimiter)
    labels = label_cells(adata, perturbation_key, control, rename, np.full(adata.n_obs, cell_type, dtype=object))
    names = treated_names(labels)
    singles = {name for name in names if len(parts(name)) == 1}
    doubles = [name for name in names if name not in singles and singles.issuperset(parts(name))]
    test = held_out(holdout, NORMAN, doubles, rename)
    rng_names, rng_cells = np.random.default_rng(seed).spawn(2)
    if holdout is None:
        others = [name for name in doubles if name not in test]
        test = sorted(test + draw(others, n_holdout - len(test), rng_names, "n_holdout"))
    plan = plan_split(split, test, valid, candidates=doubles, rename=rename, share=None, rng=rng_names)
    kept = {CONTROL, *(names if train_doubles else singles), *plan.test, *plan.valid}
    cells = labels["perturbation"].isin(kept).to_numpy()
    labels = labels[cells]
    check_plan(labels, plan)
    names = treated_names(labels)
    perturbed = is_perturbed(symbols_of(adata, gene_key, names), names)
    _check_n_genes(adata, n_genes, perturbed)
    check_scale(adata, layer, counts=False)

    result = take(adata, cells, layer)
    result = keep_genes(result, perturbed, fill_genes(result, perturbed, n_genes))
    settings = {
        "name": "norman",
        "n_genes": n_genes,
        "train_doubles": train_doubles,
        "split": split,
        "control_share": control_share,
        "seed": seed,
    }
    return finish(result, labels, plan, control_share, rng_cells, settings)


def prepare_replogle(
    adata: AnnData,
    line: Literal["K562", "RPE1"],
    *,
    perturbation_key: str = "condition",
    control: str = "ctrl",
    delimiter: str = "+",
    gene_key: str | None = "gene_name",
    cell_type_key: str | None = "cell_type",
    layer: str | None = None,
    n_top_genes: int | None = None,
    split: Split = "paper",
    holdout: Names | None = None,
    valid: Names | int | None = None,
    valid_share: float = 0.5,
    control_share: float = 0.2,
    seed: int = 0,
) -> AnnData:
    """Prepare the CRISPR interference screens of Replogle et al. 2022 as the paper of XTransferCDR does.

    Nothing is downloaded. The steps and their defaults are those of cycleCDR, whose preprocessing the authors of
    XTransferCDR :cite:p:`Liu2025` share: perturbations whose gene is not measured are left out, and the genes are those
    that are perturbed and the `n_top_genes` most variable ones.

    Parameters
    ----------
    adata
        Log-normalised expression of one cell line, cells x genes, in memory or backed, as GEARS distributes it
        (``perturb_processed.h5ad`` of ``replogle_k562_essential`` and ``replogle_rpe1_essential``). Counts and z-scores
        are refused. It is not changed.
    line
        ``"K562"`` or ``"RPE1"``: which defaults apply, and the label of the cell type in the result.
    perturbation_key
        Column of `adata.obs` with the perturbation: ``"SARS+ctrl"`` and ``"ctrl"`` in GEARS' copy. scPerturb has
        ``"perturbation"``.
    control
        The label of the control there; ``"control"`` in scPerturb.
    delimiter
        What joins parts of a label there.
    gene_key
        Column of `adata.var` with the symbols of genes, or `None` for `adata.var_names`.
    cell_type_key
        Column of `adata.obs` with the cell line, which must be `line` for all cells, whatever its case and dashes;
        ``"cell_line"`` in scPerturb. `None` checks nothing.
    layer
        Layer with the expression; `None` is `adata.X`.
    n_top_genes
        How many of the most variable genes to keep beside the perturbed ones, by the default flavour of
        :func:`scanpy.pp.highly_variable_genes`. `None` is 1,141 for K562 and 945 for RPE1 (cycleCDR). They are chosen on
        all cells that are kept, held-out ones too, as there.
    split
        ``"paper"``: as published, **in which validation leaks**: of the cells of each held-out knock-down,
        `valid_share` is validation and the rest the test, so that to choose a model by validation is to choose it on
        the test.
        ``"disjoint"``: all cells of `holdout` are the test and those of other knock-downs, `valid`, validation.
        Recommended; it passes ``pp.check_split(result, by="perturbation")``.
    holdout
        Knock-downs to hold out, each of which must be there. `None` is cycleCDR's 39 for K562 and 98 for RPE1; the paper
        of XTransferCDR names none, but its validation and test of one size fit that preprocessing.
    valid
        For ``split="disjoint"``: knock-downs for validation, or how many to draw. `None` draws as many as are held out.
    valid_share
        For ``split="paper"``: share of the held-out cells that is validation (cycleCDR: half).
    control_share
        Share of control cells that leaves training, in equal parts to validation and test (cycleCDR). No two sides share
        a cell, and each has one at least.
    seed
        Seed of everything random. The authors' own draws of cells cannot be repeated.

    Returns
    -------
    A new AnnData of the kept cells and the chosen genes, in the order that they had, without other layers:

    - ``X``: log-normalised as given, float32.
    - ``obs``: ``perturbation`` (``"SARS"``, ``"control"``), ``cell_type`` (`line`) and ``split``, which is train, valid or
      test, categorical; and the columns that there were. One that bears such a name and differs is kept as, say,
      ``"cell_type_original"``.
    - ``var``: as it was, and ``perturbed`` and ``highly_variable``.
    - ``uns["recipe"]``: the settings, and the knock-downs of the test (``holdout``), of validation (``valid``) and those
      left out (``not_measured``), if any.

    Raises
    ------
    KeyError
        If columns or the layer are missing; all of them are named.
    ValueError
        If the values are counts, scaled or not finite, names repeat, or labels are missing; if the cells are of another
        line or of several; if no cell is a control; if no perturbed gene is among the genes; if none of cycleCDR's
        knock-downs, or not all of `holdout` and `valid`, are there; if too few genes or controls are there.

    Warns
    -----
    UserWarning
        If some of cycleCDR's knock-downs are not there.

    Examples
    --------
    The copy from GEARS:

    >>> import scanpy as sc
    >>> import transverse as tv
    >>> k562 = tv.datasets.prepare_replogle(
    ...     sc.read_h5ad("replogle_k562_essential/perturb_processed.h5ad"), line="K562", split="disjoint"
    ... )  # doctest: +SKIP

    Other data, here simulated, whose first genes are called after the perturbations, with knock-downs of one's own held out:

    >>> raw = tv.datasets.simulate_responses(n_contexts=1, n_perturbations=4, n_genes=100)
    >>> raw.var_names = ["P01", "P02", "P03", "P04", *raw.var_names[4:]]
    >>> k562 = tv.datasets.prepare_replogle(
    ...     raw,
    ...     line="K562",
    ...     perturbation_key="perturbation",
    ...     control="control",
    ...     gene_key=None,
    ...     cell_type_key=None,
    ...     n_top_genes=50,
    ...     split="disjoint",
    ...     holdout=["P01"],
    ... )
    >>> k562.obs["split"][k562.obs["perturbation"] == "P01"].unique().tolist()
    ['test']
    """
    check_choice("line", line, tuple(REPLOGLE))
    n_top_genes = _N_TOP_GENES[line] if n_top_genes is None else n_top_genes
    check_numbers(low=1, n_top_genes=n_top_genes)
    check_split_options(split, control_share=control_share, valid_share=valid_share)
    columns = {"perturbation_key": perturbation_key, "cell_type_key": cell_type_key}
    check_input(adata, columns, {"gene_key": gene_key})
    if cell_type_key is not None:
        _check_line(np.unique(cell_types(adata, cell_type_key)), line, cell_type_key)

    rename = gene_namer(control, delimiter)
    labels = label_cells(adata, perturbation_key, control, rename, np.full(adata.n_obs, line, dtype=object))
    symbols = symbols_of(adata, gene_key, treated_names(labels))
    measured = set(symbols)
    dropped = [name for name in treated_names(labels) if not measured.issuperset(parts(name))]
    cells = ~labels["perturbation"].isin(dropped).to_numpy()
    labels = labels[cells]
    names = treated_names(labels)
    test = held_out(holdout, REPLOGLE[line], names, rename)
    rng_names, rng_cells = np.random.default_rng(seed).spawn(2)
    plan = plan_split(split, test, valid, candidates=names, rename=rename, share=(TEST, valid_share), rng=rng_names)
    check_plan(labels, plan)
    check_n_genes(adata, n_top_genes, "n_top_genes")
    check_scale(adata, layer, counts=False)

    perturbed = is_perturbed(symbols, names)
    result = take(adata, cells, layer)
    result = keep_genes(result, perturbed, top_genes(result, n_top_genes))
    settings = {
        "name": f"replogle_{line}",
        "n_top_genes": n_top_genes,
        "not_measured": dropped,
        "split": split,
        "valid_share": valid_share if split == "paper" else None,
        "control_share": control_share,
        "seed": seed,
    }
    return finish(result, labels, plan, control_share, rng_cells, settings)


def _check_n_genes(adata: AnnData, n_genes: int, perturbed: np.ndarray) -> None:
    check_n_genes(adata, n_genes, "n_genes")
    if n_genes < (n := int(perturbed.sum())):
        raise ValueError(f"n_genes={n_genes} leaves no room for the {n} perturbed genes. Raise n_genes.")


def _check_line(found: np.ndarray, line: str, cell_type_key: str) -> None:
    def plain(name: str) -> str:
        return "".join(filter(str.isalnum, name)).lower()

    if other := [name for name in found if plain(line) not in plain(name)]:
        raise ValueError(
            f"line={line!r}, but adata.obs[{cell_type_key!r}] (cell_type_key) has: {examples(other)}. Take the cells of "
            "the line only, or pass cell_type_key=None if the column is wrong."
        )
