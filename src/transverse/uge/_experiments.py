"""Which organs and drugs to measure next."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from scipy.special import entr

from ._gene_map import assignment, similarity_of


class ExperimentMixin:
    """Suggestions of experiments."""

    def suggest_experiments(
        self,
        n: int = 5,
        species: str | Sequence[str] | None = None,
        *,
        ambiguity_weight: float = 1.0,
        noise: float | None = None,
    ) -> pd.DataFrame:
        r"""Organs and drugs that, measured next, would tell most about all that was not measured.

        The change under drug :math:`k` in organ :math:`o` of species :math:`s` is taken as a sum of what belongs to the drug, the
        organ, both together, and the species in addition, independent and of variances :math:`v_a, v_b, v_c, v_s` over genes,
        as the model has found them:

        .. math::

            \mathrm{cov}[(s,o,k), (s',o',k')] = v_a [k{=}k'] + v_b [o{=}o'] + v_c [o{=}o', k{=}k'] + v_s [s{=}s', o{=}o', k{=}k'].

        Given what was measured, with the variance :math:`v_n` of a measurement's noise, an experiment :math:`i` reduces the
        remaining variance of all by :math:`\sum_j \mathrm{cov}_{ij}^2 / (\mathrm{var}_i + v_n)`. The best is chosen, taken as
        measured, and so on: a batch does not measure the same thing twice. The paper has the idea only; this is ours.

        Parameters
        ----------
        n
            How many to suggest.
        species
            Species in which experiments are possible; by default all.
        ambiguity_weight
            How much more genes count that the model cannot map to one gene of another species: a gene has weight 1 + this times
            the entropy of its assignment, relative to its largest. 0: all count alike.
        noise
            :math:`v_n`, in units of the mean square of all changes; by default that of the residuals of the model.

        Returns
        -------
        Table in order of choice: ``species``, ``organ``, ``drug``, ``gain`` (share of the variance that remained before the first
        choice), ``variance`` (share of it that is this experiment's own), in how many organs the drug and with how many drugs
        the organ was measured in any species (``n_organs_of_drug``, ``n_drugs_of_organ``), the species that have it
        (``measured_in``), and the ``reason`` in words. Fewer rows where less is left to measure.

        Raises
        ------
        ValueError
            If the model has no drugs, or an argument is out of range.
        KeyError
            If a species is unknown.
        """
        self._check_if_trained(warn=False)
        if len(self.drugs_) < 2:
            raise ValueError("The model was set up without drugs: there is nothing to suggest.")
        if not isinstance(n, int) or n < 1:
            raise ValueError(f"n={n!r} must be a whole number of at least 1.")
        if not ambiguity_weight >= 0:
            raise ValueError(f"ambiguity_weight={ambiguity_weight!r} must not be negative.")
        wanted = self.species_ if species is None else [species] if isinstance(species, str) else list(species)
        wanted = [self._species_of(name) for name in wanted]
        measured = np.asarray(self.is_measured_)
        cells = np.argwhere(np.ones_like(measured))
        variances = self._variances(ambiguity_weight)
        if noise is not None:
            if not noise > 0:
                raise ValueError(f"noise={noise!r} must be positive.")
            variances["noise"] = float(noise)
        covariance = condition_covariance(cells, variances)
        observed = measured[tuple(cells.T)]
        covariance = condition_on(covariance, np.flatnonzero(observed), variances["noise"])
        total = np.trace(covariance)
        possible = ~observed & np.isin(cells[:, 0], wanted)
        rows = []
        while len(rows) < n and possible.any():
            variance = np.diagonal(covariance)
            gains = np.where(possible, (covariance**2).sum(axis=1) / (variance + variances["noise"]), -np.inf)
            i = int(gains.argmax())
            s, o, k = cells[i]
            rows.append(
                {
                    "species": self.species_[s],
                    "organ": self.organs_[o],
                    "drug": self.drugs_[k + 1],
                    "gain": gains[i] / total if total > 0 else 0.0,
                    "variance": variance[i] / total if total > 0 else 0.0,
                    "n_organs_of_drug": int(measured[:, :, k].any(axis=0).sum()),
                    "n_drugs_of_organ": int(measured[:, o].any(axis=0).sum()),
                    "measured_in": ", ".join(self.species_[j] for j in np.flatnonzero(measured[:, o, k])),
                }
            )
            rows[-1]["reason"] = _reason(rows[-1], rows[:-1], len(self.organs_), len(self.drugs_) - 1)
            possible[i] = False
            covariance = condition_on(covariance, np.array([i]), variances["noise"])
        return pd.DataFrame(
            rows,
            columns=[
                "species",
                "organ",
                "drug",
                "gain",
                "variance",
                "n_organs_of_drug",
                "n_drugs_of_organ",
                "measured_in",
                "reason",
            ],
        )

    @torch.inference_mode()
    def _variances(self, ambiguity_weight: float) -> dict[str, float]:
        """Mean squares over genes of the parts of a change, in units of the mean square of all changes."""
        self.module.eval()
        n_changes = len(self.organs_) * (len(self.drugs_) - 1)
        z = [self._vectors(np.flatnonzero(self._gene_species == s), s) for s in range(len(self.species_))]
        weights = np.concatenate(self._ambiguity(ambiguity_weight))
        vectors = torch.cat(z)
        w = torch.from_numpy(weights / weights.sum()).to(vectors)
        second = vectors.T @ (vectors * w[:, None])
        head = self.module.reactome

        def mean_square(parameter: torch.Tensor, rows: np.ndarray | None = None) -> float:
            flat = parameter.reshape(-1, parameter.shape[-1])
            if rows is not None:
                flat = flat[torch.from_numpy(rows).to(flat.device)]
            return float(((flat @ second) * flat).sum(dim=1).mean()) if len(flat) else 0.0

        known = np.asarray(self.is_measured_).any(axis=0)
        residual = np.full(len(weights), np.nan)
        for s in range(len(self.species_)):
            own = np.flatnonzero(self._gene_species == s)
            error = self.features_[own][:, :n_changes] - self._predicted_features(s)[:, :n_changes]
            residual[own] = np.nanmean(error**2, axis=1)
        order = np.concatenate([np.flatnonzero(self._gene_species == s) for s in range(len(self.species_))])
        remaining = float(np.average(residual[order], weights=weights))
        return {
            "drug": mean_square(head.drug),
            "organ": mean_square(head.organ),
            "both": mean_square(head.interaction, np.flatnonzero(known.ravel())),
            # what no other species shares cannot be told from noise without more data: half and half
            "species": remaining / 2,
            "noise": remaining / 2,
        }

    def _ambiguity(self, weight: float) -> list[np.ndarray]:
        """Weights of the genes of every species, 1 and more for genes that could be mapped to many."""
        sizes = [int((self._gene_species == s).sum()) for s in range(len(self.species_))]
        if weight == 0:
            return [np.ones(size) for size in sizes]
        features = [self._predicted_features(s) for s in range(len(self.species_))]
        weights = []
        for s, own in enumerate(features):
            entropies = []
            for t, other in enumerate(features):
                if s != t:
                    p = np.exp(assignment(similarity_of(own, other), 0.02))
                    entropies.append(entr(p).sum(axis=1) / np.log(len(other)))
            weights.append(1 + weight * np.mean(entropies, axis=0))
        return weights


def condition_covariance(cells: np.ndarray, variances: dict[str, float]) -> np.ndarray:
    """Covariance of changes, shape ``(n_cells, n_cells)``; ``cells`` are species, organ and drug as numbers."""
    species, organ, drug = ((column[:, None] == column) for column in cells.T)
    both = organ & drug
    return (
        variances["drug"] * drug
        + variances["organ"] * organ
        + variances["both"] * both
        + variances["species"] * (both & species)
    ).astype(float)


def condition_on(covariance: np.ndarray, observed: np.ndarray, noise: float) -> np.ndarray:
    """Covariance that is left after noisy measurements of some."""
    if not len(observed):
        return covariance
    between = covariance[:, observed]
    inner = covariance[np.ix_(observed, observed)] + noise * np.eye(len(observed))
    return covariance - between @ np.linalg.solve(inner, between.T)


def _reason(row: dict, before: list[dict], n_organs: int, n_drugs: int) -> str:
    """Why an experiment is worth making, in words."""
    if row["measured_in"]:
        found = f"measured in {row['measured_in']}, not in {row['species']}"
    else:
        found = "measured in no species"
    drug = sum(other["drug"] == row["drug"] for other in before)
    also = f", and {drug} suggested before" if drug else ""
    return (
        f"{found}; {row['drug']} in {row['n_organs_of_drug']} of {n_organs} organs{also}; "
        f"{row['organ']} with {row['n_drugs_of_organ']} of {n_drugs} drugs"
    )
