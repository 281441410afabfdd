"""Changes of expression of the genes of one or several species over organs and drugs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from ._groups import GroupProfiles, group_codes
from ._validation import check_obs_key, examples
from .pp._signature_statistics import group_sums, log_normalise, read_blocks

_ROWS = 1024


@dataclass(frozen=True)
class SpeciesReactome:
    """Changes of the genes of one species.

    ``change`` and its standard ``error`` are of shape (genes, entries), with an entry for every organ and drug (rows of
    ``entries``, sorted) that has enough samples; the error is NaN where a side has a single one. ``n_treated`` and
    ``n_control`` are numbers of samples or animals. ``left_out`` are organs and drugs with too few of them.
    """

    entries: pd.MultiIndex
    change: np.ndarray
    error: np.ndarray
    n_treated: np.ndarray
    n_control: np.ndarray
    left_out: pd.MultiIndex


@dataclass(frozen=True)
class Reactome:
    """Changes of the genes of several species, one below the other.

    ``change`` and ``error`` are of shape (all genes, entries), float64 and NaN where the species of the gene lacks the entry;
    ``entries`` are all that any species has, sorted. ``gene_species`` has the position among ``species`` for every gene.
    ``n_treated`` and ``n_control`` are of shape (species, entries) and 0 for an entry that is not measured. ``left_out``
    has what too few samples are of, by species.
    """

    species: list[str]
    gene_species: np.ndarray
    entries: pd.MultiIndex
    change: np.ndarray
    error: np.ndarray
    n_treated: np.ndarray
    n_control: np.ndarray
    left_out: dict[str, pd.MultiIndex]

    @property
    def is_measured(self) -> np.ndarray:
        """Whether a species has an entry, species x entries."""
        return self.n_treated > 0


def check_design(adata: AnnData, columns: Mapping[str, str], name: str) -> None:
    """Raise unless columns of ``obs``, by the argument that names them, are there and complete."""
    for argument, key in columns.items():
        check_obs_key(adata, key, argument)
        if (missing := adata.obs[key].isna().to_numpy()).any():
            raise ValueError(
                f"obs[{key!r}] ({argument}) of {name!r} is missing for {int(missing.sum())} samples: "
                f"{examples(adata.obs_names[missing])}. Fill it in or remove the samples."
            )


def condition_profiles(
    adata: AnnData,
    by: Sequence[str],
    *,
    animal_key: str | None = None,
    layer: str | None = None,
    target_sum: float | None = None,
    samples: np.ndarray | None = None,
) -> GroupProfiles:
    """Mean and variance of the log expression in every condition (what occurs of the columns ``by``), block by block.

    With ``target_sum`` the matrix holds counts, which are normalised to it and logged (log1p). With ``animal_key`` the
    samples that an animal has of a condition are averaged first, and animals counted. Only ``samples``, a mask, are used;
    a condition that keeps none has mean 0 and number 0.
    """
    keys, codes = group_codes(adata, by)
    if samples is not None:
        codes = np.where(samples, codes, -1)
    blocks = None
    if animal_key is not None:
        unit = adata.obs.groupby([codes, adata.obs[animal_key].astype(str).to_numpy()]).ngroup().to_numpy()
        unit = np.where(codes >= 0, unit, -1)
        if np.bincount(unit[unit >= 0], minlength=1).max() > 1:
            order = np.argsort(unit, kind="stable")[(unit < 0).sum() :]
            first = np.flatnonzero(np.diff(unit[order], prepend=-1))
            codes, blocks = codes[order[first]], _means_of_units(adata, layer, target_sum, order, first)
    if blocks is None:
        blocks = read_blocks(adata, layer, target_sum)
    total, squares = group_sums(blocks, codes, (len(keys), adata.n_vars), squares=True)
    n = np.bincount(codes[codes >= 0], minlength=len(keys))
    mean = total / np.maximum(n, 1)[:, None]
    deviations = squares - n[:, None] * mean**2
    # what is left of a constant gene is rounding
    deviations[deviations <= 4 * np.finfo(float).eps * n[:, None] * squares] = 0
    return GroupProfiles(keys, mean, deviations / np.maximum(n - 1, 1)[:, None], n)


def _means_of_units(
    adata: AnnData, layer: str | None, target_sum: float | None, order: np.ndarray, first: np.ndarray
) -> Iterator[sp.csr_matrix | np.ndarray]:
    """Means over the rows of every unit, which are consecutive in ``order`` and start at ``first``; whole units at a time."""
    matrix = adata.X if layer is None else adata.layers[layer]
    size = np.diff(first, append=len(order))
    step = max(1, _ROWS // size.max())
    for start in range(0, len(first), step):
        sizes = size[start : start + step]
        rows = order[first[start] : first[start] + sizes.sum()]
        by_row = np.argsort(rows)  # a file gives rows in its own order only
        block = matrix[rows[by_row]]
        block = (sp.csr_matrix(block) if sp.issparse(block) else np.asarray(block)).astype(float)
        if target_sum is not None:
            block = log_normalise(block, target_sum)
        of_row = np.repeat(np.arange(len(sizes)), sizes)[by_row]
        weights = (1 / sizes)[of_row]
        yield sp.csr_matrix((weights, (of_row, np.arange(len(rows)))), shape=(len(sizes), len(rows))) @ block


def species_reactome(profiles: GroupProfiles, control: str, min_samples: int, name: str) -> SpeciesReactome:
    r"""Changes against the controls of the same organ, from profiles of one species by organ and drug.

    With mean :math:`\bar y`, variance :math:`s^2` and number :math:`n` of the samples of a condition,

    .. math::
        \Delta_{gok} = \bar y_{gok} - \bar y_{go0}, \qquad
        \mathrm{SE}_{gok} = \sqrt{s^2_{gok} / n_{ok} + s^2_{go0} / n_{o0}}.

    Raises a ValueError if there are no controls, or no entry has ``min_samples`` samples and controls.
    """
    organ, drug = profiles.keys.to_numpy().T
    n = profiles.n_cells
    if not (n[drug == control] > 0).any():
        raise ValueError(
            f"{name!r} has no controls: control={control!r} is not in obs[{profiles.keys.columns[1]!r}], which has "
            f"{examples(sorted(set(drug[n > 0])))}."
        )
    treated = np.flatnonzero((drug != control) & (n > 0))
    of_organ = {organ[i]: i for i in np.flatnonzero((drug == control) & (n > 0))}
    controls = np.array([of_organ.get(organ[i], -1) for i in treated], dtype=int)
    enough = (controls >= 0) & (n[treated] >= min_samples) & (n[controls] >= min_samples)
    if not enough.any():
        raise ValueError(
            f"{name!r} has no entry with at least min_samples={min_samples} samples of a drug and {min_samples} controls of "
            "the same organ."
        )
    names = pd.MultiIndex.from_frame(profiles.keys)
    left_out = names[treated[~enough]]
    treated, controls = treated[enough], controls[enough]
    error = np.full((len(treated), profiles.mean.shape[1]), np.nan)
    several = np.minimum(n[treated], n[controls]) > 1
    t, c = treated[several], controls[several]
    error[several] = np.sqrt(profiles.variance[t] / n[t, None] + profiles.variance[c] / n[c, None])
    change = profiles.mean[treated] - profiles.mean[controls]
    return SpeciesReactome(names[treated], change.T, error.T, n[treated], n[controls], left_out)


def join_reactomes(parts: Mapping[str, SpeciesReactome], gene_species: np.ndarray | None = None) -> Reactome:
    """Several species on all of their entries; genes one species after the other, or in the order of ``gene_species``."""
    if gene_species is None:
        gene_species = np.repeat(np.arange(len(parts)), [len(part.change) for part in parts.values()])
    entries = pd.MultiIndex.from_tuples(sorted(set().union(*(part.entries for part in parts.values()))))
    entries.names = next(iter(parts.values())).entries.names
    change, error = np.full((2, len(gene_species), len(entries)), np.nan)
    n_treated, n_control = np.zeros((2, len(parts), len(entries)), dtype=int)
    for i, part in enumerate(parts.values()):
        own, columns = np.flatnonzero(gene_species == i), entries.get_indexer(part.entries)
        change[np.ix_(own, columns)] = part.change
        error[np.ix_(own, columns)] = part.error
        n_treated[i, columns] = part.n_treated
        n_control[i, columns] = part.n_control
    left_out = {name: part.left_out for name, part in parts.items()}
    return Reactome(list(parts), gene_species, entries, change, error, n_treated, n_control, left_out)


def stacked_reactome(
    adata: AnnData,
    *,
    species_key: str,
    organ_key: str,
    drug_key: str,
    control: str,
    species: Sequence[str] | None = None,
    animal_key: str | None = None,
    layer: str | None = None,
    target_sum: float | None = None,
    min_samples: int = 1,
    samples: np.ndarray | None = None,
) -> Reactome:
    """The reactome of stacked data (:func:`~transverse.pp.stack_species`), which are read once, block by block.

    ``species`` are those to take, by default all in the order of the genes. For the others see :func:`condition_profiles`
    and :func:`species_reactome`. The columns must be complete, and the matrix what ``target_sum`` says.
    """
    of_gene = adata.var[species_key].astype(str).to_numpy()
    species = list(pd.unique(of_gene)) if species is None else list(species)
    used = adata.obs[species_key].astype(str).isin(species).to_numpy()
    by = [species_key, organ_key, drug_key]
    options = {"animal_key": animal_key, "layer": layer, "target_sum": target_sum}
    profiles = condition_profiles(adata, by, samples=used if samples is None else used & samples, **options)
    of_condition = profiles.keys[species_key].to_numpy()
    parts = {}
    for name in species:
        rows, genes = of_condition == name, of_gene == name
        for values in (profiles.mean, profiles.variance):
            if (elsewhere := values[rows][:, ~genes].any(axis=0)).any():
                raise ValueError(
                    f"Samples of {name!r} have values at genes of other species: "
                    f"{examples(adata.var_names[~genes][elsewhere])}. Stack the species with pp.stack_species."
                )
        own = GroupProfiles(
            profiles.keys.loc[rows, [organ_key, drug_key]],
            profiles.mean[np.ix_(rows, genes)],
            profiles.variance[np.ix_(rows, genes)],
            profiles.n_cells[rows],
        )
        parts[name] = species_reactome(own, control, min_samples, name)
    codes = pd.Index(species).get_indexer(of_gene)
    return join_reactomes(parts, np.asarray(codes, dtype=int))
