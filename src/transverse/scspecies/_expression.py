from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData
from scvi import settings
from scvi.model.base import RNASeqMixin

from transverse._compat import REGISTRY_KEYS
from transverse._validation import examples

from ._context import COVARIATE_KEYS
from ._decode import CHUNK, GeneDecoder
from ._fold_changes import sample_latent

Species = Literal["context", "target"]


class ExpressionMixin(RNASeqMixin):
    """Expression, observed or not, of either species at the latent states of the other."""

    def get_normalized_expression(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        transform_batch: Sequence[int | str] | int | str | None = None,
        gene_list: Sequence[str] | None = None,
        library_size: float | Literal["latent"] = 1,
        *args,
        transform_to: Species = "target",
        source: Species = "target",
        return_numpy: bool = False,
        **kwargs,
    ) -> pd.DataFrame | np.ndarray:
        r"""Decoded expression :math:`\rho` of cells, as their own species or as the other would have it.

        Parameters
        ----------
        adata
            Target data with the genes of the training data; by default the training data.
        indices
            Cells to use, of the species ``source``; by default all.
        transform_batch
            Batches of the decoding species to condition on. By default a target cell's own batch in the target, and the
            average over all batches where the other species decodes or context cells are decoded.
        gene_list
            Genes to return, of the decoding species; by default all.
        library_size
            Scale of the result: expected counts in so many. ``"latent"`` only for target cells in the target.
        *args, **kwargs
            Further arguments of :meth:`scvi.model.SCVI.get_normalized_expression`, for target cells in the target.
        transform_to
            Species whose decoder is used: ``"context"`` gives the expression that the context's species would show in the
            same latent state.
        source
            Species of the cells: ``"context"`` takes the context's cells, in the order of its AnnData.
        return_numpy
            Return an array instead of a DataFrame.

        Returns
        -------
        Cells in rows, genes of the decoding species in columns; rows sum to ``library_size`` over all genes.

        Raises
        ------
        KeyError
            If a gene or a batch is unknown.
        ValueError
            If a species is neither ``"context"`` nor ``"target"``, or an argument does not fit the species.

        Examples
        --------
        >>> model.get_normalized_expression(library_size=1e4).shape
        (150, 280)
        >>> model.get_normalized_expression(transform_to="context", gene_list=mouse.var_names[:5]).shape
        (150, 5)
        """
        self._check_if_trained(warn=False)
        for name, value in (("transform_to", transform_to), ("source", source)):
            if value not in ("context", "target"):
                raise ValueError(f"{name} must be 'context' or 'target', but got {value!r}.")
        if source == transform_to == "target":
            return super().get_normalized_expression(
                adata, indices, transform_batch, gene_list, library_size, *args, return_numpy=return_numpy, **kwargs
            )
        if args or kwargs:
            raise ValueError(
                f"{examples(kwargs) if kwargs else 'These arguments'} only apply to target cells in the target."
            )
        if isinstance(library_size, str):
            raise ValueError("library_size must be a number unless target cells are decoded in the target.")
        genes = self.context_["var_names"] if transform_to == "context" else self.var_names_
        positions = None
        if gene_list is not None:
            positions = pd.Index(genes).get_indexer(list(gene_list))
            if (positions < 0).any():
                missing = np.asarray(list(gene_list), dtype=object)[positions < 0]
                raise KeyError(f"gene_list has genes that the {transform_to} lacks: {examples(missing)}.")
        latent, names = self._latent_states(source, adata, indices)
        rng = np.random.default_rng(settings.seed)
        covariates = self._covariates_like(transform_to, len(latent), self._validate_anndata(adata), rng)
        decoder = GeneDecoder(self._vae(transform_to), batches=self._batch_codes(transform_to, transform_batch))
        blocks = [
            decoder(
                latent[start : start + CHUNK], {k: v[start : start + CHUNK] for k, v in covariates.items()}
            ).numpy()[:, slice(None) if positions is None else positions]
            for start in range(0, len(latent), CHUNK)
        ]
        result = np.concatenate(blocks) * library_size
        if return_numpy:
            return result
        columns = pd.Index(genes if positions is None else list(gene_list))
        return pd.DataFrame(result, index=pd.Index(names), columns=columns)

    def sample_homologous(
        self,
        n_samples: int = 500,
        groupby: str | None = None,
        groups: Sequence[str] | None = None,
        *,
        adata: AnnData | None = None,
        source: Species = "context",
        context_groups: Sequence | None = None,
    ) -> dict[str, AnnData]:
        """Simulated cells of both species that correspond: row by row, counts drawn at one latent state.

        Parameters
        ----------
        n_samples
            Cells of each group.
        groupby, groups, context_groups
            As in :meth:`get_cross_species_lfc`.
        adata
            Target data; by default the training data.
        source
            Species whose cells the latent states are sampled from.

        Returns
        -------
        ``"context"`` and ``"target"``: counts as CSR float32 on all genes of the species, ``.obs`` with the ``group`` and a
        ``batch`` drawn at random, ``.obsm["X_scSpecies"]`` with the latent states, which both share.

        Examples
        --------
        >>> cells = model.sample_homologous(n_samples=20, groupby="cell_type", groups=["T1a", "T2a"])
        >>> {name: sample.n_obs for name, sample in cells.items()}
        {'context': 40, 'target': 40}
        """
        self._check_if_trained(warn=False)
        if source not in ("context", "target"):
            raise ValueError(f"source must be 'context' or 'target', but got {source!r}.")
        if n_samples < 1:
            raise ValueError(f"n_samples must be at least 1, but got {n_samples}.")
        data = self._validate_anndata(adata)
        members = self._group_members(data, groupby, groups, (source,), context_groups)
        cells = self._context_cells() if source == "context" else self._target_cells(data)
        rng = np.random.default_rng(settings.seed)
        latent = [
            sample_latent(cells["mean"][index[source]], cells["scale"][index[source]], n_samples, rng)[0]
            for index in members.values()
        ]
        z, group = np.concatenate(latent), np.repeat(list(members), n_samples)
        names = pd.Index([f"sample_{i}" for i in range(len(z))])
        result = {}
        for side in ("context", "target"):
            counts, batch = self._sample_counts(side, z, data, rng)
            genes = self.context_["var_names"] if side == "context" else self.var_names_
            obs = pd.DataFrame(
                {"group": pd.Categorical(group, list(members)), "batch": pd.Categorical(batch)}, index=names
            )
            result[side] = AnnData(
                counts, obs=obs, var=pd.DataFrame(index=pd.Index(genes)), obsm={"X_scSpecies": z.copy()}
            )
        return result

    @torch.inference_mode()
    def _sample_counts(self, side: Species, z: np.ndarray, data: AnnData, rng) -> tuple[sp.csr_matrix, np.ndarray]:
        """Counts drawn from the likelihood of a species, and the batches that were drawn for them."""
        vae = self._vae(side)
        names = self._batch_names(side)
        batch = rng.integers(len(names), size=len(z))
        if side == "context":
            library = self.context_["library"]
        else:
            library = np.concatenate([self.module.library(t).exp().cpu() for t in self._make_data_loader(data)]).ravel()
        library = np.log(library[rng.integers(len(library), size=len(z))])[:, None]
        covariates = self._covariates_like(side, len(z), data, rng)
        generator_state = torch.random.get_rng_state()
        torch.manual_seed(int(rng.integers(2**31)))  # the distributions of torch take no generator
        blocks = []
        try:
            for start in range(0, len(z), CHUNK):
                rows = slice(start, start + CHUNK)
                tensors = {key: torch.as_tensor(v[rows], device=vae.device) for key, v in covariates.items()}
                outputs = vae.generative(
                    z=torch.as_tensor(z[rows], device=vae.device),
                    library=torch.as_tensor(library[rows], dtype=torch.float32, device=vae.device),
                    batch_index=torch.as_tensor(batch[rows, None], device=vae.device),
                    cont_covs=tensors.get(REGISTRY_KEYS.CONT_COVS_KEY),
                    cat_covs=tensors.get(REGISTRY_KEYS.CAT_COVS_KEY),
                    y=torch.zeros((len(z[rows]), 1), device=vae.device),
                )
                blocks.append(sp.csr_matrix(outputs["px"].sample().cpu().numpy().astype(np.float32)))
        finally:
            torch.random.set_rng_state(generator_state)
        return sp.vstack(blocks, format="csr"), np.asarray(names, dtype=object)[batch]

    def _vae(self, side: Species):
        vae = self.module.context if side == "context" else self.module
        return vae.eval()

    def _latent_states(self, source: Species, adata: AnnData | None, indices) -> tuple[np.ndarray, np.ndarray]:
        if source == "target":
            names = self._validate_anndata(adata).obs_names.to_numpy()
            chosen = slice(None) if indices is None else np.asarray(indices)
            return self.get_latent_representation(adata, indices), names[chosen]
        names, chosen = np.asarray(self.context_["cell_names"], dtype=object), slice(None)
        if indices is not None:
            chosen = np.asarray(indices)
        return self.get_context_representation()[chosen], names[chosen]

    def _batch_names(self, side: Species) -> list[str]:
        registry = self.context_["registry"] if side == "context" else self.registry
        return registry["field_registries"][REGISTRY_KEYS.BATCH_KEY]["state_registry"]["categorical_mapping"].tolist()

    def _batch_codes(self, side: Species, batches) -> list[int] | None:
        if batches is None:
            return None
        names = self._batch_names(side)
        batches = [batches] if isinstance(batches, str | int) else list(batches)
        codes = range(len(names))
        if missing := [batch for batch in batches if batch not in names and batch not in codes]:
            raise KeyError(f"transform_batch {examples(missing)} is no batch of the {side}. Known: {examples(names)}.")
        return [names.index(batch) if batch in names else batch for batch in batches]

    def _covariates_like(self, side: Species, n: int, data: AnnData, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Extra covariates of ``n`` random cells of a species: decoded profiles are averages over them."""
        if side == "context":
            known = {key: self.context_[key] for key in COVARIATE_KEYS if key in self.context_}
        else:
            manager = self.get_anndata_manager(data, required=True)
            keys = [key for key in COVARIATE_KEYS if key in manager.data_registry]
            dtypes = {REGISTRY_KEYS.CAT_COVS_KEY: np.int64, REGISTRY_KEYS.CONT_COVS_KEY: np.float32}
            known = {key: np.asarray(manager.get_from_registry(key), dtype=dtypes[key]) for key in keys}
        if not known:
            return {}
        rows = rng.integers(len(next(iter(known.values()))), size=n)
        return {key: values[rows] for key, values in known.items()}
