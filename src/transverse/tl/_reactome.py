"""Reactomes: how the genes of several species change with every drug in every organ."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Literal, get_args

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from transverse._reactome import (
    Reactome,
    check_design,
    condition_profiles,
    join_reactomes,
    species_reactome,
    stacked_reactome,
)
from transverse._species import species_blocks
from transverse._validation import check_counts, check_log_normalized, check_no_empty_cells, examples
from transverse.pp._signatures import as_text
from transverse.pp._stack_species import stack_var

Method = Literal["difference", "standardized"]
Normalize = Literal["total", "given"]

_SCALES = {
    "difference": "mean log expression, treated minus control",
    "standardized": "mean log expression, treated minus control, divided by its standard error",
}


def reactome(
    data: AnnData | MuData | Mapping[str, AnnData],
    *,
    species: Sequence[str] | None = None,
    species_key: str = "species",
    organ_key: str = "organ",
    drug_key: str = "drug",
    control: str = "control",
    animal_key: str | None = None,
    layer: str | None = None,
    normalize: Normalize = "total",
    target_sum: float = 1e4,
    min_samples: int = 2,
    method: Method = "difference",
    l1_normalize: bool = False,
) -> AnnData:
    r"""How every gene of every species changes with each drug in each organ :cite:p:`Belgadi2024`.

    For gene :math:`g`, organ :math:`o` and drug :math:`k`, with treated samples :math:`T_{ok}` and controls :math:`C_o` of
    the same species and organ,

    .. math::
        \Delta_{gok} &= \bar y_{g, T_{ok}} - \bar y_{g, C_o}, \\
        \mathrm{SE}_{gok} &= \sqrt{s^2_{g, T_{ok}} / |T_{ok}| + s^2_{g, C_o} / |C_o|}, \\
        y_{ig} &= \log\Bigl(1 + S\, x_{ig} \Big/ \sum\nolimits_{g'} x_{ig'}\Bigr),

    where :math:`\bar y` and :math:`s^2` are mean and variance over samples, :math:`x` are counts, and the sum is over the
    genes of the species. The paper has the entries, 10 organs x 3 drugs, but gives no formula: this one is ours, and so is
    the standard error.

    Parameters
    ----------
    data
        Samples of several species (or of one): stacked (:func:`~transverse.pp.stack_species`), a mapping of species to
        data, or a MuData with a modality each; in memory or backed. They are read block by block and not changed.
    species
        Species to take, in this order. By default all.
    species_key
        Column of ``obs`` and ``var`` of stacked data with the species.
    organ_key, drug_key
        Columns of ``obs``.
    control
        What ``obs[drug_key]`` is of controls.
    animal_key
        Column of ``obs`` with the animal. The samples that an animal has of an organ and a drug are then averaged first, and
        animals take the place of samples in all of the above and in ``min_samples``, as samples of one animal are not
        independent.
    layer
        Layer to use instead of ``X``.
    normalize
        ``"total"``: the matrix holds raw counts. ``"given"``: it holds log expression :math:`y`, which is taken as it is.
    target_sum
        :math:`S`.
    min_samples
        Fewest treated samples, and fewest controls, that an entry needs.
    method
        ``X`` is :math:`\Delta` (``"difference"``) or :math:`\Delta / \mathrm{SE}` (``"standardized"``), in which genes of
        low counts, and so of large errors, weigh less. It is 0 for a gene that is constant on both sides.
    l1_normalize
        Divide the values of every gene by the sum of their absolute values over its measured entries: the gene's share of
        change in each entry. A gene that does not change stays 0.

    Returns
    -------
    AnnData of all genes x all entries that a species has, sorted and named ``"organ|drug"``. ``X`` is dense float32, natural
    log unless standardised or normalised, and NaN where the species of the gene lacks the entry. ``layers`` are
    ``"difference"`` (:math:`\Delta`) and ``"se"`` (its standard error; NaN for an entry on a single sample), whatever the
    method, and ``"mask"``, whether it is measured. ``obs`` has ``species``, ``gene`` (the name within the species) and the
    columns of ``var`` of the data; ``var`` has ``organ`` and ``drug``; ``varm["n_treated"]`` and ``varm["n_control"]``,
    entries x species, are numbers of samples or animals, 0 where not measured. ``uns["reactome"]`` has the ``method``, the
    ``scale`` in words, the ``parameters`` and what was ``left_out``.

    Warns
    -----
    UserWarning
        If organs and drugs are left out, as they have too few samples or controls, or if entries are on a single sample.

    Raises
    ------
    KeyError
        If a column, the layer or a species does not exist.
    ValueError
        If the matrix does not hold what ``normalize`` says; samples are empty; a column is missing in some samples; a
        species has no control, or no entry with enough samples; stacked samples have values at genes of other species;
        names of genes repeat; or an argument is out of range.
    TypeError
        If ``data`` is of another type.

    Notes
    -----
    The paper's "L1 norm reactome vector" can be read in three ways: as the vector of a gene divided by its L1 norm, which is
    ``l1_normalize``; as the L1 norms of a gene's vector under every drug, which are
    ``np.abs(r[:, r.var["drug"] == drug].X).sum(1)``; or as an L1 loss, which is a matter of a model. Where species lack
    different entries, norms are over different entries; take ``r[:, r.layers["mask"].all(0)]`` and normalise that to compare
    them.

    Entries of an organ share its controls, so that their errors are correlated. Where an animal is its own control, as in
    blood before and after a drug, the standard error does not know of it and is too large.

    Memory: two arrays of conditions x genes, and four of genes x entries.

    Examples
    --------
    >>> import transverse as tv
    >>> data = tv.datasets.simulate_reactomes(n_genes=50, n_animals=3)
    >>> r = tv.tl.reactome(data, layer="counts")
    >>> r.shape
    (100, 30)
    >>> r.var_names[:2].tolist(), bool(r.layers["mask"].all())
    (['brain|drug A', 'brain|drug B'], True)
    """
    _check_arguments(normalize, target_sum, min_samples, method, organ_key, drug_key)
    columns = {"organ_key": organ_key, "drug_key": drug_key}
    if animal_key is not None:
        columns["animal_key"] = animal_key
    blocks = species_blocks(data, species_key)
    names = _chosen(species, blocks)
    target = float(target_sum) if normalize == "total" else None
    if isinstance(data, AnnData):
        _check_samples(data, columns, layer, normalize, "data")
        values = stacked_reactome(
            data,
            species=names,
            species_key=species_key,
            **columns,
            control=control,
            layer=layer,
            target_sum=target,
            min_samples=min_samples,
        )
        genes = as_text(data.var)
        if values.gene_species.min() < 0:
            values, genes = _only_taken(values, genes)
        genes["species"] = pd.Categorical.from_codes(values.gene_species, categories=pd.Index(names, dtype=object))
        if "gene" not in genes:
            genes["gene"] = pd.Series(genes.index, index=genes.index, dtype=object)
    else:
        blocks = {name: blocks[name] for name in names}
        for name, block in blocks.items():
            _check_samples(block, columns, layer, normalize, name)
        parts = {}
        for name, block in blocks.items():
            options = {"animal_key": animal_key, "layer": layer, "target_sum": target}
            profiles = condition_profiles(block, [organ_key, drug_key], **options)
            parts[name] = species_reactome(profiles, control, min_samples, name)
        values = join_reactomes(parts)
        tables = {name: block.var for name, block in blocks.items()}
        genes = stack_var(tables, "species", "gene", "outer", "repeated", ":")
    genes = genes[["species", "gene", *genes.columns.drop(["species", "gene"])]]
    _warn(values)
    parameters = {
        "species": np.array(names, dtype=object),
        "species_key": species_key,
        **columns,
        "control": control,
        "layer": layer,
        "normalize": normalize,
        "target_sum": target,
        "min_samples": int(min_samples),
        "l1_normalize": bool(l1_normalize),
    }
    # not every version of anndata can write None
    parameters = {key: value for key, value in parameters.items() if value is not None}
    return _as_anndata(values, genes, method, l1_normalize, parameters)


def _check_arguments(
    normalize: str, target_sum: float, min_samples: int, method: str, organ_key: str, drug_key: str
) -> None:
    for argument, value, known in (("normalize", normalize, Normalize), ("method", method, Method)):
        if value not in get_args(known):
            raise ValueError(f"{argument}={value!r} must be one of {', '.join(map(repr, get_args(known)))}.")
    if not isinstance(target_sum, Real) or not (np.isfinite(target_sum) and target_sum > 0):
        raise ValueError(f"target_sum={target_sum!r} must be a positive number.")
    if not isinstance(min_samples, Integral) or isinstance(min_samples, bool) or min_samples < 1:
        raise ValueError(f"min_samples={min_samples!r} must be a whole number of at least 1.")
    if method == "standardized" and min_samples < 2:
        raise ValueError(
            "method='standardized' needs min_samples of at least 2: a single sample has no standard error."
        )
    if organ_key == drug_key:
        raise ValueError(f"organ_key and drug_key are both {organ_key!r}, but must be two columns.")


def _chosen(species: Sequence[str] | None, blocks: Mapping[str, AnnData]) -> list[str]:
    if species is None:
        return list(blocks)
    species = [species] if isinstance(species, str) else list(dict.fromkeys(species))
    if not species:
        raise ValueError(f"species must name at least one, but is empty. Known: {examples(blocks)}.")
    if unknown := [name for name in species if name not in blocks]:
        raise KeyError(f"species not in the data: {examples(unknown)}. Known: {examples(blocks)}.")
    return species


def _check_samples(
    adata: AnnData, columns: Mapping[str, str], layer: str | None, normalize: Normalize, name: str
) -> None:
    if adata.n_obs == 0 or adata.n_vars == 0:
        raise ValueError(f"{name!r} is empty: it has {adata.n_obs} samples and {adata.n_vars} genes.")
    check_design(adata, columns, name)
    if normalize == "given":
        check_log_normalized(adata, layer, name)
    else:
        check_counts(adata, layer, name)
        check_no_empty_cells(adata, layer, name)


def _only_taken(values: Reactome, genes: pd.DataFrame) -> tuple[Reactome, pd.DataFrame]:
    """Without the genes of species that were not asked for."""
    taken = values.gene_species >= 0
    parts = {"gene_species": values.gene_species, "change": values.change, "error": values.error}
    others = {key: value for key, value in vars(values).items() if key not in parts}
    return Reactome(**others, **{key: value[taken] for key, value in parts.items()}), genes[taken].copy()


def _warn(values: Reactome) -> None:
    left_out = _names_of_left_out(values)
    if left_out:
        warnings.warn(
            f"{len(left_out)} entries are left out, as they have too few samples or controls: {examples(left_out)}. "
            "uns['reactome']['left_out'] lists them.",
            UserWarning,
            stacklevel=3,
        )
    single = values.is_measured & (np.minimum(values.n_treated, values.n_control) < 2)
    if single.any():
        shown = [f"{values.species[i]}: {'|'.join(values.entries[j])}" for i, j in np.argwhere(single)]
        warnings.warn(
            f"{len(shown)} of the {int(values.is_measured.sum())} entries rest on a single sample and have no standard error: "
            f"{examples(shown)}. min_samples=2 leaves them out.",
            UserWarning,
            stacklevel=3,
        )


def _names_of_left_out(values: Reactome) -> list[str]:
    return [f"{name}: {'|'.join(entry)}" for name, entries in values.left_out.items() for entry in entries]


def _as_anndata(values: Reactome, genes: pd.DataFrame, method: Method, l1_normalize: bool, parameters: dict) -> AnnData:
    change, mask = values.change, values.is_measured[values.gene_species]
    if method == "standardized":
        safe = np.where(values.error > 0, values.error, 1)
        change = np.where(mask & ~(values.error > 0), 0, change / safe)
    scale = _SCALES[method]
    if l1_normalize:
        norm = np.nansum(np.abs(change), axis=1, keepdims=True)
        change = change / np.where(norm > 0, norm, 1)
        scale += ", divided by the gene's L1 norm"
    var = values.entries.to_frame(index=False).set_axis(["organ", "drug"], axis=1).astype("category")
    var = as_text(var)
    var.index = pd.Index(["|".join(entry) for entry in values.entries], dtype=object)
    numbers = {
        key: pd.DataFrame(n.T, index=var.index, columns=pd.Index(values.species, dtype=object))
        for key, n in (("n_treated", values.n_treated), ("n_control", values.n_control))
    }
    layers = {
        "difference": values.change.astype(np.float32),
        "se": values.error.astype(np.float32),
        "mask": mask,
    }
    uns = {
        "method": method,
        "scale": scale,
        "parameters": parameters,
        "left_out": np.array(_names_of_left_out(values), dtype=object),
    }
    return AnnData(change.astype(np.float32), obs=genes, var=var, varm=numbers, layers=layers, uns={"reactome": uns})
