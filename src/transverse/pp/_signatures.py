"""Response signatures: how perturbations change expression, a row for each in each cell type."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Literal

import numpy as np
import pandas as pd
from anndata import AnnData

from transverse._validation import check_counts, check_log_normalized, check_no_empty_cells, examples

from ._signature_design import SignatureDesign, read_signature_design
from ._signature_statistics import Observations, Prior, moderate, observe

_SCALES = {
    "lfc": "mean log-normalised expression, treated minus control (natural log where log1p was used)",
    "zscore": "mean log-normalised expression, treated minus control, divided by its standard error (Welch)",
    "moderated": "moderated t statistic (Smyth 2004) of mean log-normalised expression, treated minus control",
}


def signatures(
    adata: AnnData,
    *,
    perturbation_key: str = "perturbation",
    control: str = "control",
    cell_type_key: str = "cell_type",
    method: Literal["lfc", "zscore", "moderated"] = "lfc",
    layer: str | None = None,
    counts: bool = False,
    target_sum: float = 1e4,
    replicate_key: str | None = None,
    batch_key: str | None = None,
    average_over: Sequence[str] = (),
    match_controls_on: Sequence[str] = (),
    pert_type_key: str | None = None,
    min_cells: int = 10,
) -> AnnData:
    r"""Response signatures of perturbations from single cells or bulk samples, a row per perturbation and cell type.

    Treated observations are compared with controls of the same cell type and batch :math:`b`. With :math:`n_b` treated
    observations of mean :math:`\bar x_{bg}` and variance :math:`s^2_{bg}` of gene :math:`g`, and :math:`m_b` controls of
    mean :math:`\bar y_{bg}` and variance :math:`u^2_{bg}`, the methods give

    .. math::

        \text{lfc:}\quad D_g &= \sum_b w_b\, (\bar x_{bg} - \bar y_{bg}), \qquad w_b = \frac{n_b}{\sum_{b'} n_{b'}}, \\
        \text{zscore:}\quad z_g &= D_g \,\Big/ \sqrt{\sum_b w_b^2 \left(s^2_{bg} / n_b + u^2_{bg} / m_b\right)}, \\
        \text{moderated:}\quad \tilde t_g &= D_g \,\Big/\, \tilde s_g \sqrt{\sum_b w_b^2 \left(1 / n_b + 1 / m_b\right)},
        \qquad \tilde s_g^2 = \frac{d_0 s_0^2 + d s_g^2}{d_0 + d},

    where, for a cell type, :math:`s_g^2` is the residual variance over all its conditions and controls in all batches, with
    :math:`d` degrees of freedom, and the prior :math:`d_0, s_0^2` comes from the mean and the spread of
    :math:`\log s_g^2` over genes :cite:p:`Smyth2004`; where they spread no more than chance would have them,
    :math:`d_0 = \infty`.

    Parameters
    ----------
    adata
        Cells or bulk samples x genes, in memory or backed. It is read in blocks and not changed.
    perturbation_key, cell_type_key
        Columns of ``obs``.
    control
        What ``obs[perturbation_key]`` is of controls. They get no signature.
    method
        ``"lfc"``, ``"zscore"`` or ``"moderated"``, as above. The last two grow with the numbers of observations, and treat
        these as independent: cells of one donor or well are not, see ``replicate_key``. The last borrows the variance from
        other conditions and genes, and so can do with one treated observation.
    layer
        Layer to use instead of ``X``: log-normalised expression (natural log, as of log1p), or raw counts with ``counts``.
    counts
        Whether the matrix holds raw counts. They are summed within a replicate, normalised to ``target_sum`` and logged
        (log1p); without ``replicate_key`` this is done for every cell on its own.
    target_sum
        Total of an observation after normalisation, with ``counts``.
    replicate_key
        Column with the replicate (donor, well or plate). The observations then are not the cells but the replicates: means,
        or with ``counts`` sums, of the cells that a replicate has of a condition in a batch. Replicates of the same name in
        different conditions are different observations; where donors give both treated and control samples, and are to be
        compared within, they are batches.
    batch_key
        Column with the batch. Treated observations are compared with controls of their own batch alone.
    average_over
        Columns such as dose and time. Every level (combination of values that occurs) is compared with controls on its own,
        and the signature is the unweighted mean over levels.
    match_controls_on
        Those columns of ``average_over``, such as time, of which controls are taken from the same value too. With the others
        controls are taken whatever their value, which may be missing.
    pert_type_key
        Column with the type of a perturbation (such as compound or shRNA), for a row per perturbation, cell type and type.
        Those of controls do not matter.
    min_cells
        Conditions (perturbation, cell type, type and level) with fewer rows of ``adata`` over all batches are left out.
        Controls are not held to it. Set it to 1 for bulk samples.

    Returns
    -------
    AnnData of signatures x genes, sorted by perturbation and cell type, and named such as ``"drug|PC3"`` (with a type,
    ``"drug|PC3|shRNA"``). Pairs that were not measured have no row. ``X`` is dense float32. ``obs`` has the columns of the
    keys; ``n_cells``, treated cells; ``n_controls``, cells that they were compared with, each counted once;
    ``n_replicates``, treated replicates, with ``replicate_key``, summed over batches and levels; and ``n_averaged``,
    levels. ``var`` is that of ``adata``. ``uns["signatures"]`` has the ``method``, the ``scale`` in words, the
    ``parameters``, the conditions that were ``left_out`` and, if moderated, the ``prior`` of every cell type (``df``
    :math:`d`, ``df_prior`` :math:`d_0`, ``variance`` :math:`s_0^2`).

    Warns
    -----
    UserWarning
        If conditions are left out for ``min_cells``.

    Raises
    ------
    KeyError
        If a column or the layer does not exist.
    TypeError
        If ``adata`` is not an AnnData, or columns are given as a string.
    ValueError
        If an argument is out of range; if values are missing, not log-normalised, or not counts with ``counts``; if names
        repeat; if there is no control at all, in a cell type, or in a batch or level that controls are matched on; if no
        condition has enough cells; with ``"zscore"``, if a side has fewer than two observations in a batch; with
        ``"moderated"``, if a cell type has no replicated condition.

    Notes
    -----
    A gene that is constant on both sides has no standard error; its z-score is 0, and so is that of a gene that is
    constant at two values. Genes that hardly any observation expresses spread the log variances and thus weaken the prior
    of ``"moderated"``: remove them first. Those of variance 0 are left out of it.

    Memory: three to five arrays of conditions x genes, and with ``replicate_key`` one of replicates x genes.

    Examples
    --------
    >>> import transverse as tv
    >>> cells = tv.datasets.simulate_responses(n_contexts=2, n_perturbations=3, n_genes=50, doses=[1, 10])
    >>> sig = tv.pp.signatures(cells, average_over=["dose"])
    >>> sig.shape
    (6, 50)
    >>> sig.obs_names[:2].tolist()
    ['P01|C1', 'P01|C2']
    """
    average_over, match_controls_on = _check(method, counts, target_sum, min_cells, average_over, match_controls_on)
    design = read_signature_design(
        adata,
        perturbation_key=perturbation_key,
        control=control,
        cell_type_key=cell_type_key,
        pert_type_key=pert_type_key,
        average_over=average_over,
        match_controls_on=match_controls_on,
        batch_key=batch_key,
        replicate_key=replicate_key,
        min_cells=min_cells,
    )
    if method != "lfc":
        _check_observations(design, method)
    if counts:
        check_counts(adata, layer)
        check_no_empty_cells(adata, layer)
    else:
        check_log_normalized(adata, layer)
    observed = observe(
        adata,
        layer,
        design.stratum,
        design.replicate,
        target_sum=target_sum if counts else None,
        variances=method != "lfc",
    )
    change, priors = _statistic(method, design, observed)
    totals = design.counts()
    change = (design.of_signature @ change) / totals["n_averaged"].to_numpy()[:, None]
    if replicate_key is not None:
        n = design.of_signature @ design.of_level @ observed.n[: len(design.partner)]
        totals.insert(2, "n_replicates", n.astype(int))

    used = {
        "perturbation_key": perturbation_key,
        "control": control,
        "cell_type_key": cell_type_key,
        "layer": layer,
        "counts": bool(counts),
        "target_sum": float(target_sum) if counts else None,
        "replicate_key": replicate_key,
        "batch_key": batch_key,
        "average_over": np.array(average_over, dtype=object) if average_over else None,
        "match_controls_on": np.array(match_controls_on, dtype=object) if match_controls_on else None,
        "pert_type_key": pert_type_key,
        "min_cells": int(min_cells),
    }
    scale = _SCALES[method] + (f", averaged over {', '.join(average_over)}" if average_over else "")
    uns = {
        "method": method,
        "scale": scale,
        # not every version of anndata can write None
        "parameters": {key: value for key, value in used.items() if value is not None},
        "left_out": as_text(design.left_out),
    }
    if priors:
        uns["prior"] = pd.DataFrame(
            [vars(prior) for prior in priors.values()], index=pd.Index(list(priors), dtype=object), dtype=float
        )
    if len(design.left_out):
        warnings.warn(
            f"{len(design.left_out)} conditions have fewer than min_cells={min_cells} cells and are left out: "
            f"{examples(design.left_out.index)}. uns['signatures']['left_out'] lists them.",
            UserWarning,
            stacklevel=2,
        )
    return as_signatures(change, design.keys, totals, adata.var, uns)


def as_signatures(
    values: np.ndarray, keys: pd.DataFrame, columns: pd.DataFrame, var: pd.DataFrame, uns: dict
) -> AnnData:
    """Signatures as AnnData; ``keys`` become categories and names."""
    obs = pd.concat([as_text(keys.astype("category")), columns], axis=1)
    obs.index = pd.Index(["|".join(row) for row in keys.itertuples(index=False)], dtype=object)
    return AnnData(values.astype(np.float32), obs=obs, var=as_text(var), uns={"signatures": uns})


def as_text(table: pd.DataFrame) -> pd.DataFrame:
    """A copy with text as objects, which every version of anndata can write."""
    table = table.copy()
    table.index = table.index.astype(object)
    for key in table.columns:
        column = table[key]
        if isinstance(column.dtype, pd.StringDtype):
            table[key] = column.astype(object)
        elif isinstance(column.dtype, pd.CategoricalDtype) and isinstance(column.cat.categories.dtype, pd.StringDtype):
            table[key] = column.cat.rename_categories(column.cat.categories.astype(object))
    return table


def _check(
    method: str,
    counts: bool,
    target_sum: float,
    min_cells: int,
    average_over: Sequence[str],
    match_controls_on: Sequence[str],
) -> tuple[list[str], list[str]]:
    """Check the arguments that say nothing of the data."""
    if method not in _SCALES:
        raise ValueError(f"method={method!r} must be one of {', '.join(map(repr, _SCALES))}.")
    if not isinstance(counts, bool | np.bool_):
        raise TypeError(f"counts must be True or False, but got {counts!r}. The layer with counts is named by layer.")
    if not isinstance(target_sum, Real) or not (np.isfinite(target_sum) and target_sum > 0):
        raise ValueError(f"target_sum={target_sum!r} must be a positive number.")
    if not isinstance(min_cells, Integral) or isinstance(min_cells, bool) or min_cells < 1:
        raise ValueError(f"min_cells={min_cells!r} must be a whole number of at least 1.")
    for argument, columns in {"average_over": average_over, "match_controls_on": match_controls_on}.items():
        if isinstance(columns, str):
            raise TypeError(f"{argument} must be a list of columns, but got the string {columns!r}.")
    if extra := [key for key in match_controls_on if key not in average_over]:
        raise ValueError(
            f"match_controls_on must be among average_over={list(average_over)}, but has {examples(extra)}. Controls of the "
            "same plate, donor or batch are taken with batch_key."
        )
    return list(average_over), list(match_controls_on)


def _check_observations(design: SignatureDesign, method: str) -> None:
    """Raise a ValueError if there are too few observations for a variance."""
    n, what = design.n_cells, "cells"
    if design.replicate is not None:
        used = design.replicate >= 0
        first = np.unique(design.replicate[used], return_index=True)[1]
        n, what = np.bincount(design.stratum[used][first], minlength=len(n)), "replicates"
    if method == "zscore":
        treated, controls = n[: len(design.partner)], n[design.partner]
        if (few := np.flatnonzero(np.minimum(treated, controls) < 2)).size:
            names = [f"{design.level_names[design.stratum_level[i]]} ({treated[i]} and {controls[i]})" for i in few]
            raise ValueError(
                f"method='zscore' needs at least two treated and two control {what} in every batch, but these have fewer: "
                f"{examples(names)}. Remove them, or use method='moderated' or 'lfc'."
            )
        return
    types = pd.unique(design.cell_type[: len(design.partner)])
    if lacking := [name for name in types if n[design.cell_type == name].max() < 2]:
        raise ValueError(
            f"method='moderated' needs a condition with at least two {what} in each cell type, but there is none in: "
            f"{examples(lacking)}. Use method='lfc'."
        )


def _statistic(method: str, design: SignatureDesign, observed: Observations) -> tuple[np.ndarray, dict[str, Prior]]:
    """The statistic of every level, levels x genes, and the priors of the cell types."""
    treated, controls = slice(len(design.partner)), design.partner
    n = observed.n
    weights = design.of_level.multiply(n[treated]).tocsr()
    weights = weights.multiply(1 / np.asarray(weights.sum(axis=1))).tocsr()
    change = weights @ (observed.mean[treated] - observed.mean[controls])
    if method == "lfc":
        return change, {}
    squared = weights.multiply(weights).tocsr()
    if method == "zscore":
        error = squared @ (
            observed.variance[treated] / n[treated, None] + observed.variance[controls] / n[controls, None]
        )
        return np.divide(change, np.sqrt(error), out=np.zeros_like(change), where=error > 0), {}
    unscaled = squared @ (1 / n[treated] + 1 / n[controls])
    level_type = design.cell_type[treated][np.unique(design.stratum_level, return_index=True)[1]]
    priors = {}
    for name in np.unique(level_type):
        of_type = np.flatnonzero(design.cell_type == name)
        df = n[of_type] - 1
        residual = df @ observed.variance[of_type] / df.sum()
        try:
            posterior, priors[name] = moderate(residual, float(df.sum()))
        except ValueError as error:
            raise ValueError(f"method='moderated' cannot be used for cell type {name!r}: {error}.") from None
        levels = np.flatnonzero(level_type == name)
        change[levels] /= np.sqrt(unscaled[levels, None] * posterior)
    return change, priors
