"""What every gene does in each organ and under each drug, measured or not."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData


class ReactomeMixin:
    """Reactomes that the head, and the genes of other species, tell."""

    def predict_reactome(self, species: str | None = None, *, via: Literal["map", "reactome"] = "map") -> AnnData:
        r"""What every gene does in each organ under each drug, measured there or not.

        .. math::

            \hat\Delta_{gok} = z_g^\top (a_k + b_o + c_{ok})

        Parameters
        ----------
        species
            Species; by default all.
        via
            ``"reactome"``: as above. ``"map"``: its mean over the genes that a gene is mapped to and the species that have the
            condition, as in :meth:`predict`; the gene itself is one of them if its species has it.

        Returns
        -------
        AnnData of genes x (organ, drug): ``X`` predicted changes, natural log as the data, ``layers["measured"]`` those of the
        training samples, NaN where there are none; ``obs`` has the species of the gene, ``var`` organ, drug and, for each
        species, whether it was measured (``measured_in_...``).

        Examples
        --------
        >>> r = model.predict_reactome("rat")
        >>> r.shape, "measured" in r.layers
        ((50, 6), True)
        >>> r.var_names[~r.var["measured_in_rat"]].tolist()
        ['brain|drug A']
        """
        self._check_if_trained(warn=False)
        if len(self.drugs_) < 2:
            raise ValueError("The model was set up without drugs: there is no reactome.")
        wanted = range(len(self.species_)) if species is None else [self._species_of(species)]
        genes = np.concatenate([np.flatnonzero(self._gene_species == s) for s in wanted])
        if via not in ("map", "reactome"):
            raise ValueError(f"via={via!r} must be 'map' or 'reactome'.")
        changes = self._predicted_changes if via == "reactome" else self._mapped_changes
        predicted = np.concatenate([changes(s) for s in wanted]).reshape(len(genes), -1)
        n = predicted.shape[1]
        arguments = self.registry["setup_args"]
        entries = pd.MultiIndex.from_product([self.organs_, self.drugs_[1:]])
        organs, drugs = (entries.get_level_values(i).to_numpy(dtype=object) for i in (0, 1))
        var = pd.DataFrame({"organ": organs, "drug": drugs}, index=pd.Index(organs + "|" + drugs, dtype=object))
        for s in wanted:
            var[f"measured_in_{self.species_[s]}"] = self.is_measured_[s].ravel()
        of_gene = np.array(self.species_, dtype=object)[self._gene_species[genes]]
        obs = pd.DataFrame(
            {arguments["species_key"]: pd.Categorical(of_gene)},
            index=pd.Index(np.array(self.var_names_, dtype=object)[genes], dtype=object),
        )
        measured = self.features_[genes, :n] * np.float32(self.units_["change"])
        return AnnData(predicted.astype(np.float32), obs=obs, var=var, layers={"measured": measured})

    @torch.inference_mode()
    def _predicted_changes(self, species: int) -> np.ndarray:
        """Changes on the scale of the data, (genes, organs, drugs)."""
        n_organs, n_drugs = len(self.organs_), len(self.drugs_) - 1
        features = self._predicted_features(species)[:, : n_organs * n_drugs]
        return features.reshape(-1, n_organs, n_drugs) * self.units_["change"]

    def _drug_residuals(self, species: int) -> np.ndarray:
        """What all organs share of a drug's changes that the head does not say, (genes, drugs); on the scale of the data."""
        n_organs, n_drugs = len(self.organs_), len(self.drugs_) - 1
        measured = self.features_[self._gene_species == species][:, : n_organs * n_drugs] * np.float32(
            self.units_["change"]
        )
        changes = measured.reshape(-1, n_organs, n_drugs)
        measured_genes = ~np.isnan(measured).all(axis=1)
        residuals = np.nan_to_num(changes - self._predicted_changes(species))
        there = np.asarray(self.is_measured_[species])
        # of drugs measured in one organ, as much is shared as of the changes of the others
        known = np.nan_to_num(changes[measured_genes])
        shares = [_intraclass(known[:, there[:, k], k]) for k in range(n_drugs) if there[:, k].sum() > 1]
        usual = float(np.mean(shares)) if shares else 0.0
        shared = np.zeros((len(residuals), n_drugs), dtype=np.float32)
        for k in range(n_drugs):
            own = residuals[:, there[:, k], k]
            if n := own.shape[1]:
                share = _intraclass(own) if n > 1 else usual
                shared[:, k] = n * share / (1 + (n - 1) * share) * own.mean(axis=1)
        return shared

    def _mapped_changes(self, species: int) -> np.ndarray:
        """Changes of a species' genes and of those that they are mapped to, averaged; on the scale of the data."""
        changes = []
        for other in range(len(self.species_)):
            change = self._predicted_changes(other) + self._drug_residuals(other)[:, None, :]
            if other != species:
                flat = self._soft_map(species, other) @ change.reshape(len(change), -1)
                change = flat.reshape(-1, *change.shape[1:])
            changes.append(change)
        measured = np.asarray(self.is_measured_, dtype=float)
        weights = np.where(measured.any(axis=0), measured, 1.0)
        return np.einsum("sgok,sok->gok", np.stack(changes), weights / weights.sum(axis=0))


def _intraclass(values: np.ndarray) -> float:
    """Share of the variance that the columns have in common (intraclass correlation about 0), at least 0."""
    n = values.shape[1]
    total = (values**2).mean()
    products = (values.sum(axis=1) ** 2 - (values**2).sum(axis=1)).mean() / (n * (n - 1))
    return float(max(products / total, 0.0)) if total > 0 else 0.0
