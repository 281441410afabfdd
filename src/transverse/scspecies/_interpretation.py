from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi import settings
from scvi.module import VAE
from scvi.utils import track
from sklearn.metrics import davies_bouldin_score

from transverse._compat import REGISTRY_KEYS
from transverse._validation import check_obs_key
from transverse.nn import latent_relevance, run_layers

from ._context import context_loader


class InterpretationMixin:
    """Which genes, and which layers, carry what tells cells apart."""

    def get_gene_relevance(
        self,
        adata: AnnData | None = None,
        groupby: str | None = None,
        *,
        context_adata: AnnData | None = None,
        context_groups: Sequence | None = None,
        rule: Literal["gamma", "epsilon"] = "gamma",
        gamma: float = 0.15,
        epsilon: float = 1e-6,
        n_cells: int = 200,
        silent: bool = True,
    ) -> pd.DataFrame:
        r"""Relevance of genes for the latent variables of groups of cells, by layer-wise relevance propagation.

        The posterior mean :math:`\mu_d` of every latent dimension is handed down through the encoder to its inputs
        (equations 28 and 29; :func:`transverse.nn.latent_relevance` has the rules), and the relevance of every gene is
        averaged over latent dimensions and cells. Batches and other covariates take part, but are not returned. Nothing is
        trained anew: layer normalisation passes relevance on. For the paper's variant, train a context without
        normalisation and clipping: ``make_context(adata, use_layer_norm="none", clip_activation=False)``.

        Parameters
        ----------
        adata
            Target data with the genes of the training data; by default the training data.
        groupby
            Column of the target's ``.obs``, and one of the context's label columns; by default the first of the
            context's. Target cells without such a column get the labels of :meth:`transfer_labels`.
        context_adata
            The context's data: adds the context's genes, under its own encoder. The model does not keep its counts.
        context_groups
            Groups of the context's cells in their order, where ``groupby`` is none of the context's label columns.
        rule, gamma, epsilon
            The LRP-:math:`\gamma` rule (paper: :math:`\gamma = 0.15`) or the LRP-:math:`\epsilon` rule, and their constants.
        n_cells
            Most cells of a group to average over, drawn at random.
        silent
            Show no progress bar.

        Returns
        -------
        One row per species, group and gene:

        - ``species``: ``"target"`` or ``"context"``; ``group``; ``gene``
        - ``ortholog``: the gene's orthologue in the other species (several joined by ``;``), or empty
        - ``relevance``: mean over cells and latent dimensions of the signed relevance, in units of :math:`\mu`
        - ``absolute_relevance``: the same of its absolute value
        - ``rank``: 1 for the largest absolute relevance in its species and group
        - ``expression``: mean counts per 10,000 in the same cells

        Compare species by ranks, not by values: genes that one species lacks take their share of the relevance.

        Raises
        ------
        ValueError
            If the context's data are not the ones that the context model was trained on, or an argument is out of range.

        Examples
        --------
        >>> relevance = model.get_gene_relevance(groupby="cell_type", context_adata=mouse, n_cells=20)
        >>> top = relevance[relevance["rank"] <= 5]
        >>> sorted(top["species"].unique())
        ['context', 'target']
        """
        self._check_if_trained(warn=False)
        if n_cells < 1:
            raise ValueError(f"n_cells must be at least 1, but got {n_cells}.")
        data = self._validate_anndata(adata)
        kwargs = {"rule": rule, "gamma": gamma, "epsilon": epsilon}
        if any(isinstance(layer, torch.nn.BatchNorm1d) for layer in self.module.z_encoder.modules()):
            warnings.warn(
                "The encoder has batch normalisation: once it is merged into the linear layers, relevance of opposite signs "
                "can grow large and cancel. Prefer a context with layer normalisation, as make_context() builds it.",
                UserWarning,
                stacklevel=settings.warnings_stacklevel,
            )
        rng = np.random.default_rng(settings.seed)
        groups = self._target_groups(data, groupby, groupby if groupby in self.context_labels_ else None)
        sides = {"target": (self.module, self.var_names_, groups, lambda index: self._make_data_loader(data, index))}
        if context_adata is not None:
            context_loader(context_adata, self.context_, [0])  # refuses data that do not fit before any work
            groups = self._context_groups(groupby, context_groups)
            sides["context"] = (
                self.module.context,
                self.context_["var_names"],
                groups,
                lambda index: context_loader(context_adata, self.context_, index),
            )
        tables = []
        for side, (vae, genes, groups, loader) in sides.items():
            partners = self._orthologs_of(side, genes)
            for group in track(list(groups.cat.categories), description=f"Relevance ({side})...", disable=silent):
                index = np.sort(rng.permutation(np.flatnonzero(groups == group))[:n_cells])
                table = self._relevance_table(vae, loader(index), kwargs)
                table.insert(0, "species", side)
                table.insert(1, "group", group)
                table.insert(2, "gene", genes)
                table.insert(3, "ortholog", partners)
                tables.append(table)
        return pd.concat(tables, ignore_index=True)

    def _relevance_table(self, vae: VAE, loader: Iterable[dict[str, torch.Tensor]], kwargs: dict) -> pd.DataFrame:
        """Averages over the cells of a loader, a row per gene."""
        total = {}
        n_cells, n_genes = 0, vae.n_input
        encoder = vae.z_encoder
        for tensors in loader:
            tensors = {key: value.to(self.module.device) for key, value in tensors.items() if value is not None}
            inputs = self.module.encoder_inputs(vae, tensors)
            relevance = latent_relevance(encoder.encoder, encoder.mean_encoder, inputs, **kwargs)[..., :n_genes]
            x = tensors[REGISTRY_KEYS.X_KEY]
            sums = {
                "relevance": relevance.mean(1).sum(0),
                "absolute_relevance": relevance.abs().mean(1).sum(0),
                "expression": (1e4 * x / x.sum(1, keepdim=True).clamp(min=1)).sum(0),
            }
            for key, value in sums.items():
                total[key] = total.get(key, 0) + value.cpu().double().numpy()
            n_cells += len(x)
        table = pd.DataFrame({key: values / n_cells for key, values in total.items()})
        rank = table["absolute_relevance"].rank(ascending=False, method="first").astype(int)
        table.insert(2, "rank", rank)
        return table

    def _orthologs_of(self, side: str, genes: Sequence[str]) -> list[str]:
        other = "target" if side == "context" else "context"
        pairs = pd.DataFrame(self.orthologs_)
        joined = pairs.drop_duplicates([side, other]).groupby(side)[other].agg(";".join)
        return joined.reindex(genes, fill_value="").tolist()

    @torch.inference_mode()
    def get_davies_bouldin(
        self,
        adata: AnnData | None = None,
        groupby: str | Sequence[str] | None = None,
        *,
        context_adata: AnnData | None = None,
        n_cells: int = 2000,
    ) -> pd.DataFrame:
        """Davies-Bouldin index of groups of cells at every stage of the encoder, from the counts to the latent space.

        Lower means that groups are compact and apart: along the encoder it should fall for cell types and rise for batches.

        Parameters
        ----------
        adata
            Target data with the genes of the training data; by default the training data.
        groupby
            Column, or columns, of ``.obs`` of every species; by default the first label column and the batch, as far as a
            species has them.
        context_adata
            The context's data: adds its rows.
        n_cells
            Most cells to use, drawn at random.

        Returns
        -------
        One row per species, layer and column: ``species``, ``layer`` (``"data"``: log-normalised counts, ``"hidden 1"`` and
        on, ``"latent"``), ``groupby``, ``davies_bouldin``. Columns with fewer than two groups are left out.

        Examples
        --------
        >>> table = model.get_davies_bouldin(context_adata=mouse)
        >>> table["layer"].unique().tolist()
        ['data', 'hidden 1', 'hidden 2', 'latent']
        """
        self._check_if_trained(warn=False)
        data = self._validate_anndata(adata)
        sides = {"target": (data, self.module, self.registry, lambda index: self._make_data_loader(data, index))}
        if context_adata is not None:
            sides["context"] = (
                context_adata,
                self.module.context,
                self.context_["registry"],
                lambda index: context_loader(context_adata, self.context_, index),
            )
        rng = np.random.default_rng(settings.seed)
        rows = []
        for side, (source, vae, registry, loader) in sides.items():
            batch_key = registry["field_registries"][REGISTRY_KEYS.BATCH_KEY]["state_registry"]["original_key"]
            if groupby is None:
                keys = [key for key in (next(iter(self.context_labels_)), batch_key) if key in source.obs]
            else:
                keys = [groupby] if isinstance(groupby, str) else list(groupby)
                for key in keys:
                    check_obs_key(source, key, f"groupby (of the {side})")
            index = np.sort(rng.permutation(source.n_obs)[:n_cells])
            for layer, values in self._layer_outputs(vae, loader(index)).items():
                for key in keys:
                    labels = source.obs[key].iloc[index]
                    known = labels.notna().to_numpy()
                    codes = pd.factorize(labels[known])[0]
                    if 2 <= len(np.unique(codes)) < known.sum():
                        score = davies_bouldin_score(values[known], codes)
                        rows.append({"species": side, "layer": layer, "groupby": key, "davies_bouldin": score})
        return pd.DataFrame(rows, columns=["species", "layer", "groupby", "davies_bouldin"])

    def _layer_outputs(self, vae: VAE, loader: Iterable[dict[str, torch.Tensor]]) -> dict[str, np.ndarray]:
        """Log-normalised counts, hidden layers and latent means of the cells of a loader."""
        self.module.eval()
        parts = []
        for tensors in loader:
            tensors = {key: value.to(self.module.device) for key, value in tensors.items() if value is not None}
            x = tensors[REGISTRY_KEYS.X_KEY]
            part = {"data": torch.log1p(1e4 * x / x.sum(1, keepdim=True).clamp(min=1))}
            hidden = self.module.encoder_inputs(vae, tensors)
            for i in range(vae.n_layers):
                hidden = run_layers(vae.z_encoder.encoder, hidden, start=i, stop=i + 1)
                part[f"hidden {i + 1}"] = hidden
            part["latent"] = self.module.encode(vae, tensors)["mean"]
            parts.append({key: value.cpu() for key, value in part.items()})
        return {key: torch.cat([part[key] for part in parts]).numpy() for key in parts[0]}
