"""Representations of samples, and what they are of."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral
from typing import Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from transverse._compat import registered_layer
from transverse._groups import dense
from transverse._validation import check_log_normalized, check_obs_key, check_unique_var_names, examples

from ._batches import bin_values
from ._constants import UGE_KEYS


def check_batch_size(batch_size: int) -> None:
    """Raise unless it is a number of samples."""
    if not isinstance(batch_size, Integral) or batch_size < 1:
        raise ValueError(f"batch_size={batch_size!r} must be a whole number, at least 1.")


class SampleMixin:
    """Samples of any of the species, of the training or not."""

    def get_latent_representation(self, adata: AnnData | None = None, batch_size: int = 64) -> np.ndarray:
        """Representations of samples in the space that all species share.

        Parameters
        ----------
        adata
            Samples, with their species in ``obs``; by default those of the model. Genes that are missing are no tokens.
        batch_size
            Samples in a mini-batch; does not change the result.

        Returns
        -------
        Array of shape ``(n_samples, n_latent)``, float32.

        Examples
        --------
        >>> model.get_latent_representation(adata[adata.obs["species"] == "rat"]).shape
        (27, 256)
        """
        self._check_if_trained(warn=False)
        adata = self._samples(adata)
        return self._latent(adata, np.arange(adata.n_obs), batch_size)

    def predict_labels(
        self, key: Literal["organ", "drug"] = "organ", adata: AnnData | None = None, batch_size: int = 64
    ) -> pd.DataFrame:
        """Organ or drug of samples.

        Parameters
        ----------
        key
            What to predict.
        adata, batch_size
            As in :meth:`get_latent_representation`.

        Returns
        -------
        Table by sample: ``label``, ``confidence`` (probability of the label, not calibrated in species that no labels
        were learnt from), ``second`` and ``margin`` to it, and one column ``p(...)`` for each category.

        Examples
        --------
        >>> table = model.predict_labels("organ", adata[adata.obs["species"] == "rat"])
        >>> table.columns.tolist()
        ['label', 'confidence', 'second', 'margin', 'p(brain)', 'p(heart)', 'p(kidney)']
        """
        self._check_if_trained(warn=False)
        if key not in ("organ", "drug"):
            raise ValueError(f"key={key!r} must be 'organ' or 'drug'.")
        self._check_stage("samples", "its classifiers know nothing")
        names = list(self.organs_ if key == "organ" else self.drugs_)
        if len(names) < 2:
            raise ValueError(f"There is only one {key}, {names[0]!r}: nothing to tell apart.")
        head = self.module.organ_head if key == "organ" else self.module.drug_head
        z = self.get_latent_representation(adata, batch_size)
        with torch.inference_mode():
            scores = head(torch.from_numpy(z).to(self.module.device))
            if new := [names.index(name) for name in self.unlearnt_[key]]:
                scores[:, new] = -torch.inf
            p = scores.softmax(dim=1).cpu().numpy()
        order = np.argsort(-p, axis=1, kind="stable")
        rows, names = np.arange(len(p)), np.array(names, dtype=object)
        table = {
            "label": names[order[:, 0]],
            "confidence": p[rows, order[:, 0]],
            "second": names[order[:, 1]],
            "margin": p[rows, order[:, 0]] - p[rows, order[:, 1]],
        }
        table |= {f"p({name})": p[:, i] for i, name in enumerate(names)}
        return pd.DataFrame(table, index=self._samples(adata).obs_names)

    def impute(self, adata: AnnData, species: str, batch_size: int = 64) -> AnnData:
        """Expression of the genes that samples lack, from those that they have.

        Parameters
        ----------
        adata
            Log-normalised samples of one species; the column of species may be missing.
        species
            Which.
        batch_size
            Samples in a mini-batch; does not change the result.

        Returns
        -------
        AnnData of the samples and all genes of the species: ``X`` as measured, and as predicted where
        ``var["is_imputed"]``; ``layers["predicted"]`` has the prediction of all genes.

        Examples
        --------
        >>> full = model.impute(data["rat"][:, :40], "rat")
        >>> full.shape, int(full.var["is_imputed"].sum())
        ((27, 50), 10)
        """
        self._check_if_trained(warn=False)
        self._check_stage("samples", "it has no decoder")
        s = self._species_of(species)
        if not isinstance(adata, AnnData):
            raise TypeError(f"adata must be an AnnData, but got {type(adata).__name__}.")
        key = self.registry["setup_args"]["species_key"]
        if key in adata.obs and (other := sorted(set(adata.obs[key].astype(str)) - {str(species)})):
            raise ValueError(f"adata has samples of other species than {species!r} in obs[{key!r}]: {examples(other)}.")
        if adata.isbacked:
            adata = adata.to_memory()
        named = AnnData(adata.X, obs=adata.obs.copy(), var=adata.var) if self._layer is None else adata.copy()
        named.obs[key] = str(species)
        z = self.get_latent_representation(named, batch_size)
        genes = np.flatnonzero(self._gene_species == s)
        predicted = self._decoded(z, genes, s, batch_size)
        names = pd.Index(np.array(self.var_names_, dtype=object)[genes])
        where = pd.Index(adata.var_names).get_indexer(names)
        x = predicted.copy()
        matrix = adata.X if self._layer is None else adata.layers[self._layer]
        x[:, where >= 0] = dense(matrix)[:, where[where >= 0]]
        var = pd.DataFrame({"is_imputed": where < 0}, index=names)
        return AnnData(x, obs=adata.obs.copy(), var=var, layers={"predicted": predicted})

    def _check_stage(self, stage: str, why: str) -> None:
        if stage not in self.trained_stages_:
            raise ValueError(
                f"The model was not trained in the stage {stage!r}: {why}. Train it with stages=[{stage!r}]."
            )

    def _samples(self, adata: AnnData | None) -> AnnData:
        if adata is None or adata is self.adata:
            if self.adata is None:
                raise ValueError("The model was loaded without data: pass adata=.")
            return self.adata
        if not isinstance(adata, AnnData):
            raise TypeError(f"adata must be an AnnData, but got {type(adata).__name__}.")
        if adata.n_obs == 0:
            raise ValueError("adata has no samples.")
        check_unique_var_names(adata)
        key = self.registry["setup_args"]["species_key"]
        check_obs_key(adata, key, "species_key")
        if unknown := sorted(set(adata.obs[key].astype(str)) - set(self.species_)):
            raise ValueError(
                f"adata has samples of unknown species: {examples(unknown)}. Known: {examples(self.species_)}."
            )
        check_log_normalized(adata, self._layer)
        return adata

    @property
    def _layer(self) -> str | None:
        return registered_layer(self.adata_manager) if self.adata is not None else self.registry["setup_args"]["layer"]

    def _latent(self, adata: AnnData, rows: np.ndarray, batch_size: int) -> np.ndarray:
        """Representations of some samples, sorted."""
        z = np.empty((len(rows), self.module.genes.embedding.embedding_dim), dtype=np.float32)
        for at, block in self._blocks(adata, rows, batch_size):
            z[at] = self._encoded(block)
        return z

    def _blocks(
        self, adata: AnnData, of: np.ndarray, batch_size: int
    ) -> Iterator[tuple[np.ndarray, dict[str, torch.Tensor]]]:
        """Places in ``of`` of samples of one species, and what the encoder takes of them."""
        check_batch_size(batch_size)
        species = adata.obs[self.registry["setup_args"]["species_key"]].astype(str).to_numpy()
        where = pd.Index(adata.var_names).get_indexer(pd.Index(self.var_names_))
        matrix = adata.X if self._layer is None else adata.layers[self._layer]
        for s, name in enumerate(self.species_):
            tokens = self.tokens_[s][where[self.tokens_[s]] >= 0]
            rows = np.flatnonzero(species[of] == name)
            if len(rows) and not len(tokens):
                raise ValueError(f"adata has none of the genes of {name!r} that the model takes as tokens.")
            for start in range(0, len(rows), batch_size):
                chosen = rows[start : start + batch_size]
                x = torch.from_numpy(dense(matrix[of[chosen]])[:, where[tokens]].astype(np.float32))
                yield chosen, self._block(s, tokens, x)

    def _block(self, species: int, tokens: np.ndarray, x: torch.Tensor) -> dict[str, torch.Tensor]:
        centers = torch.from_numpy(self.gene_means_[tokens].astype(np.float32))
        n_bins = self.module.encoder.n_bins
        block = {
            UGE_KEYS.SPECIES_KEY: torch.tensor(species),
            UGE_KEYS.TOKENS_KEY: torch.from_numpy(tokens),
            UGE_KEYS.VALUES_KEY: x - centers,
        }
        if n_bins is not None:
            block[UGE_KEYS.BINS_KEY] = bin_values(x, n_bins)
        if len(self.module.encoder.conditions):  # those of new samples are not known
            sizes = [embedding.num_embeddings for embedding in self.module.encoder.conditions]
            block[UGE_KEYS.CONDITIONS_KEY] = torch.tensor(sizes).sub(1).expand(len(x), -1)
        return block

    @torch.inference_mode()
    def _encoded(self, block: dict[str, torch.Tensor]) -> np.ndarray:
        self.module.eval()
        return self.module.encode(block)[0].cpu().numpy()

    @torch.inference_mode()
    def _decoded(self, z: np.ndarray, genes: np.ndarray, species: int, batch_size: int) -> np.ndarray:
        """Expression on the scale of the data, (samples, genes), from representations."""
        self.module.eval()
        tensor = torch.from_numpy(genes)
        parts = [
            self.module.decode(torch.from_numpy(z[i : i + batch_size].astype(np.float32)), tensor, species)
            .cpu()
            .numpy()
            for i in range(0, len(z), batch_size)
        ]
        return np.concatenate(parts) + self.gene_means_[genes].astype(np.float32)
