"""What is known of a gene: its responses, its organs and its level, in units that can be compared."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from anndata import AnnData

from transverse._groups import GroupProfiles
from transverse._reactome import condition_profiles, species_reactome


@dataclass(frozen=True)
class GeneFeatures:
    r"""Features of all genes, and the units that they are in.

    ``values`` are of shape (genes, organs x drugs + organs + 1): changes :math:`\Delta_{gok}` in units of their root mean
    square (``change_scale``), deviations of an organ's control mean from the gene's mean over organs, and that mean, centred
    in every species and in units of their standard deviation times a weight. NaN where nothing was measured. ``control`` has
    the control means, (genes, organs), and ``mean`` the means over organs, on the scale of the data.
    """

    values: np.ndarray
    change_scale: float
    control: np.ndarray
    mean: np.ndarray
    is_measured: np.ndarray


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
) -> GeneFeatures:
    """Features from some samples of stacked, log-normalised data; ``drugs`` are without the control."""
    by = [species_key, organ_key, *([drug_key] if drug_key is not None else [])]
    profiles = condition_profiles(adata, by, animal_key=animal_key, layer=layer, samples=samples)
    n_genes = len(gene_species)
    controls = np.full((n_genes, len(organs)), np.nan)
    is_control = (
        np.ones(len(profiles.keys), dtype=bool) if drug_key is None else (profiles.keys[drug_key] == control).to_numpy()
    )
    for i in np.flatnonzero(is_control & (profiles.n_cells > 0)):
        name, organ = profiles.keys.iloc[i][:2]
        own = gene_species == species.index(name)
        if organ in organs:
            controls[own, organs.index(organ)] = profiles.mean[i, own]
    changes = np.full((n_genes, len(organs), len(drugs)), np.nan)
    measured = np.zeros((len(species), len(organs), len(drugs)), dtype=bool)
    for s, name in enumerate(species if drugs else []):
        rows, genes = (
            (profiles.keys[species_key] == name).to_numpy() & profiles.keys[organ_key].isin(organs).to_numpy(),
            gene_species == s,
        )
        own = GroupProfiles(
            profiles.keys.loc[rows, [organ_key, drug_key]],
            profiles.mean[np.ix_(rows, genes)],
            profiles.variance[np.ix_(rows, genes)],
            profiles.n_cells[rows],
        )
        part = species_reactome(own, control, 1, name)
        for (organ, drug), change in zip(part.entries, part.change.T, strict=True):
            changes[genes, organs.index(organ), drugs.index(drug)] = change
            measured[s, organs.index(organ), drugs.index(drug)] = True
    scale = float(np.sqrt(np.nanmean(changes**2))) if measured.any() else 1.0
    mean = np.nanmean(controls, axis=1)
    profile = controls - mean[:, None]
    level = mean.copy()
    for s in range(len(species)):
        genes = gene_species == s
        profile[genes] -= np.nanmean(profile[genes], axis=0)
        level[genes] = (mean[genes] - np.nanmean(mean[genes])) / (np.nanstd(mean[genes]) or 1.0)
    profile /= np.sqrt(np.nanmean(profile**2)) or 1.0
    values = np.column_stack(
        [changes.reshape(n_genes, -1) / scale, profile_weight * profile, level_weight * level]
    ).astype(np.float32)
    return GeneFeatures(values, scale, controls, mean, measured)
