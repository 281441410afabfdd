"""What is known of a gene: its responses, its organs and its level, in units that can be compared."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from anndata import AnnData

from transverse._groups import GroupProfiles
from transverse._reactome import condition_profiles, species_reactome


@dataclass
class FeatureUnits:
    """What features are relative to, so that those of other samples can be put beside them.

    ``change`` is the root mean square of all changes, ``profile`` that of deviations of organs. ``organs`` are those that a
    gene's mean is over; ``level`` has mean and standard deviation of the genes' means, and ``organ_means`` the genes' mean
    deviation in every organ, by species.
    """

    change: float
    profile: float
    organs: list[str]
    level: dict[str, tuple[float, float]] = field(default_factory=dict)
    organ_means: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class GeneFeatures:
    r"""Features of all genes.

    ``values`` are of shape (genes, organs x drugs + organs + 1): changes :math:`\Delta_{gok}` in units of their root mean
    square, deviations of an organ's control mean from the gene's mean over organs, centred in every species, and that mean,
    standardised in every species; the last two times a weight. NaN where nothing was measured. ``mean`` are the genes' means,
    on the scale of the data; ``is_measured``, species x organs x drugs, says of which changes there are.
    """

    values: np.ndarray
    mean: np.ndarray
    is_measured: np.ndarray
    units: FeatureUnits


def gene_features(
    adata: AnnData,
    gene_species: np.ndarray,
    species: list[str],
    organs: list[str],
    drugs: list[str],
    *,
    species_key: str,
    organ_key: str,
    drug_key: str | None,
    control: str,
    animal_key: str | None,
    layer: str | None,
    samples: np.ndarray,
    profile_weight: float,
    level_weight: float,
    units: FeatureUnits | None = None,
) -> GeneFeatures:
    """Features from some samples of stacked, log-normalised data; ``drugs`` are without the control.

    ``units`` are those of other samples, to which what is missing of species and organs is added; by default those of these
    samples. A species without controls of a known organ has NaN throughout.
    """
    by = [species_key, organ_key, *([drug_key] if drug_key is not None else [])]
    profiles = condition_profiles(adata, by, animal_key=animal_key, layer=layer, samples=samples)
    keys = profiles.keys
    n_genes = len(gene_species)
    controls = np.full((n_genes, len(organs)), np.nan)
    is_control = np.ones(len(keys), dtype=bool) if drug_key is None else (keys[drug_key] == control).to_numpy()
    for i in np.flatnonzero(is_control & (profiles.n_cells > 0)):
        own = gene_species == species.index(keys[species_key].iloc[i])
        controls[own, organs.index(keys[organ_key].iloc[i])] = profiles.mean[i, own]
    changes = np.full((n_genes, len(organs), len(drugs)), np.nan)
    measured = np.zeros((len(species), len(organs), len(drugs)), dtype=bool)
    for s, name in enumerate(species if drugs else []):
        rows, genes = (keys[species_key] == name).to_numpy() & (profiles.n_cells > 0), gene_species == s
        with_controls = set(keys.loc[rows & is_control, organ_key])
        if not keys.loc[rows & ~is_control, organ_key].isin(with_controls).any():
            continue
        own = GroupProfiles(
            keys.loc[rows, [organ_key, drug_key]],
            profiles.mean[np.ix_(rows, genes)],
            profiles.variance[np.ix_(rows, genes)],
            profiles.n_cells[rows],
        )
        part = species_reactome(own, control, 1, name)
        for (organ, drug), change in zip(part.entries, part.change.T, strict=True):
            changes[genes, organs.index(organ), drugs.index(drug)] = change
            measured[s, organs.index(organ), drugs.index(drug)] = True
    there = {name: ~np.isnan(controls[gene_species == s]).all(axis=0) for s, name in enumerate(species)}
    if units is None:
        shared = np.all([there[name] for name in species], axis=0)
        change_scale = float(np.sqrt(np.nanmean(changes**2))) if measured.any() else 1.0
        units = FeatureUnits(change_scale or 1.0, np.nan, [organs[o] for o in np.flatnonzero(shared)])
    mean, profile = _levels(controls, gene_species, species, organs, there, units)
    level = np.full(n_genes, np.nan)
    for s, name in enumerate(species):
        genes = gene_species == s
        if not there[name].any():
            continue
        center, spread = units.level.setdefault(
            name, (float(np.nanmean(mean[genes])), float(np.nanstd(mean[genes])) or 1.0)
        )
        level[genes] = (mean[genes] - center) / spread
    if np.isnan(units.profile):
        units.profile = float(np.sqrt(np.nanmean(profile**2))) or 1.0
    values = np.column_stack(
        [changes.reshape(n_genes, -1) / units.change, profile_weight * profile / units.profile, level_weight * level]
    )
    return GeneFeatures(values.astype(np.float32), mean, measured, units)


def _levels(controls, gene_species, species, organs, there, units) -> tuple[np.ndarray, np.ndarray]:
    """Mean of every gene over organs, and how its organs deviate from it, centred in every species."""
    mean, profile = np.full(len(controls), np.nan), np.full(controls.shape, np.nan)
    over = np.isin(organs, units.organs)
    for s, name in enumerate(species):
        genes, own = np.flatnonzero(gene_species == s), there[name]
        if not own.any() or not len(genes):
            continue
        # the same organs in all species, so that a species' mean does not differ for want of one
        mean[genes] = controls[np.ix_(genes, over & own if (over & own).any() else own)].mean(axis=1)
        deviations = controls[genes] - mean[genes, None]
        centers = units.organ_means.setdefault(name, {})
        for o in np.flatnonzero(own):
            center = centers.setdefault(organs[o], float(deviations[:, o].mean()))
            profile[genes, o] = deviations[:, o] - center
    return mean, profile
