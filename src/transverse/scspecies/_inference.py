from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi import settings
from scvi.model.base import VAEMixin

from transverse._compat import REGISTRY_KEYS
from transverse._validation import check_n_neighbors, check_setup, examples

from ._neighbors import nearest_neighbors
from ._novelty import NOVELTY_MIDPOINT, novelty_reference, novelty_score
from ._transfer import (
    Vote,
    label_shares,
    label_table,
    likelihood_ratios,
    rank_candidates,
    warn_of_poor_alignment,
)
from ._votes import vote


class InferenceMixin(VAEMixin):
    """Representations of both species, and labels, from a trained model."""

    def _check_values(self, adata: AnnData) -> None:
        arguments, fields = self.registry["setup_args"], self.registry["field_registries"]
        batch_key, categorical = arguments["batch_key"], arguments["categorical_covariate_keys"] or []
        continuous = arguments["continuous_covariate_keys"] or []
        check_setup(adata, arguments["layer"], batch_key=batch_key, categorical=categorical, continuous=continuous)
        known = {key: fields[REGISTRY_KEYS.CAT_COVS_KEY]["state_registry"]["mappings"][key] for key in categorical}
        if batch_key is not None:
            known[batch_key] = fields[REGISTRY_KEYS.BATCH_KEY]["state_registry"]["categorical_mapping"]
        for key, names in known.items():
            if unknown := sorted(map(str, set(adata.obs[key].unique()) - set(names))):
                raise ValueError(
                    f"adata.obs[{key!r}] has values that the model was not trained on: {examples(unknown)}. "
                    f"Known: {examples(names)}."
                )

    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
        **kwargs,
    ) -> np.ndarray:
        r"""Latent representation of target cells: the posterior mean :math:`\mu`.

        Parameters
        ----------
        adata
            Target data with the genes of the training data; by default the training data.
        indices
            Cells to use; by default all.
        batch_size
            Cells in a mini-batch; does not change the result.
        **kwargs
            Further arguments of :meth:`scvi.model.SCVI.get_latent_representation`, e.g. ``give_mean=False``.

        Returns
        -------
        Array of shape ``(n_cells, n_latent)``, in the space of :meth:`get_context_representation`.

        Examples
        --------
        >>> model.get_latent_representation().shape
        (150, 10)
        >>> model.get_latent_representation(indices=[0, 1], give_mean=False).shape  # a sample
        (2, 10)
        """
        self._check_if_trained(warn=False)
        return super().get_latent_representation(adata, indices, batch_size=batch_size, **kwargs)

    def get_context_representation(self) -> np.ndarray:
        r"""Latent representation of the context cells: the posterior mean :math:`\mu` under the context model.

        Returns
        -------
        Array of shape ``(n_context_cells, n_latent)``, in the order of the context's AnnData.

        Examples
        --------
        >>> model.get_context_representation().shape
        (150, 10)
        """
        return self.module.context_mean.cpu().numpy().copy()

    @torch.inference_mode()
    def get_intermediate_representation(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
        context: bool = False,
    ) -> np.ndarray:
        """Output of the outer encoder layers, where the two species are aligned.

        Parameters
        ----------
        adata, indices, batch_size
            As in :meth:`get_latent_representation`.
        context
            Return the context cells' representations instead.

        Returns
        -------
        Array of shape ``(n_cells, n_hidden)``.

        Examples
        --------
        >>> model.get_intermediate_representation().shape
        (150, 256)
        >>> model.get_intermediate_representation(context=True).shape
        (150, 256)
        """
        if context:
            return self.module.context_intermediate.cpu().numpy().copy()
        self._check_if_trained(warn=False)
        loader = self._make_data_loader(self._validate_anndata(adata), indices=indices, batch_size=batch_size)
        encoded = [self.module.encode(self.module, tensors)["intermediate"].cpu() for tensors in loader]
        return torch.cat(encoded).numpy()

    def get_data_level_labels(self, labels_key: str | None = None) -> pd.DataFrame:
        """Majority label of the data-level neighbours: what is known before any training (equation 13).

        Parameters
        ----------
        labels_key
            Which of the context's label columns; by default the first.

        Returns
        -------
        One row per target cell: ``label``, and ``agreement``, the share of the neighbours with it (equation 14).

        Examples
        --------
        >>> model.get_data_level_labels().columns.tolist()
        ['label', 'agreement']
        """
        labels = self._labels(labels_key)
        codes, agreement = vote(labels["codes"][self.neighbors_], len(labels["categories"]))
        label = pd.Categorical.from_codes(codes, categories=labels["categories"])
        return pd.DataFrame({"label": label, "agreement": agreement}, index=pd.Index(self.cell_names_))

    def _labels(self, labels_key: str | None) -> dict[str, Any]:
        labels_key = next(iter(self.context_labels_)) if labels_key is None else labels_key
        if labels_key not in self.context_labels_:
            raise KeyError(f"labels_key={labels_key!r} is not one of the context's: {list(self.context_labels_)}.")
        return self.context_labels_[labels_key]

    def transfer_labels(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        *,
        labels_key: str | None = None,
        vote: Vote = "combined",
        n_candidates: int = 200,
        n_neighbors: int = 25,
        unknown_threshold: float | Literal["auto"] | None = None,
        batch_size: int | None = None,
        key_added: str | None = None,
    ) -> pd.DataFrame:
        r"""Labels of target cells, carried over from the context.

        For each target cell the ``n_candidates`` context cells nearest in the latent space are ranked by the likelihood
        of the cell's counts under their decoded latent means, and the best ``n_neighbors`` vote.

        Parameters
        ----------
        adata
            Target data with the genes of the training data; by default the training data. Cells that were not trained
            on have no data-level neighbours: the likelihood alone votes on them.
        indices
            Cells to return; by default all.
        labels_key
            Which of the context's label columns; by default the first.
        vote
            ``"likelihood"`` is the paper's vote, ``"latent"`` that of the nearest in the latent space. ``"combined"``
            (ours, the default) takes 0.45 of the likelihood's shares and 0.55 of those of the data-level neighbours, which
            therefore decide where both are unanimous. It is right more often, and varies less between seeds, than either.
        n_candidates
            Context cells to rank (paper: 200; fewer if the context has fewer).
        n_neighbors
            Context cells that vote (paper: 25).
        unknown_threshold
            Cells whose novelty is above it get the label ``"unknown"``. ``"auto"`` is 2.4, above which more than half of
            the cells of simulated species had no counterpart.
        batch_size
            Cells in a mini-batch; does not change the result.
        key_added
            Write the columns into ``adata.obs`` as ``key_added`` (the label) and ``f"{key_added}_..."``.

        Returns
        -------
        One row per cell:

        - ``label``
        - ``confidence``: probability that the label is right, calibrated on simulated species: the sharpened share of the
          votes times the probability that the cell has a counterpart at all
        - ``novelty``: how badly the context explains the cell, in spreads above what is usual among aligned cells. The
          larger of two signals: the logarithm of ``log_likelihood_ratio``, and one half of the centred distance to the
          data-level neighbours
        - ``log_likelihood_ratio``: log-likelihood (nats) that the cell loses when the nearest context cells explain it
          instead of its own latent variable
        - ``data_level_label``, ``data_level_agreement``: the vote of the data-level neighbours alone

        Raises
        ------
        RuntimeError
            If the model is not trained.
        KeyError
            If the context has no such labels.

        Examples
        --------
        >>> labels = model.transfer_labels(unknown_threshold="auto", key_added="scSpecies")
        >>> [key for key in human.obs if key.startswith("scSpecies")][:3]
        ['scSpecies', 'scSpecies_confidence', 'scSpecies_novelty']
        """
        self._check_if_trained(warn=False)
        if vote not in ("combined", "likelihood", "latent"):
            raise ValueError(f"vote must be 'combined', 'likelihood' or 'latent', but got {vote!r}.")
        if key_added is not None and indices is not None:
            raise ValueError("key_added writes a column for all cells: leave indices out.")
        labels = self._labels(labels_key)
        n_context = len(self.module.context_mean)
        check_n_neighbors(n_neighbors, n_context)
        data = self._validate_anndata(adata)
        cells = np.arange(data.n_obs) if indices is None else np.arange(data.n_obs)[np.asarray(indices)]
        loader = self._make_data_loader(data, indices=cells, batch_size=batch_size)
        self.module.eval()
        ranked = rank_candidates(self.module, loader, min(max(n_candidates, n_neighbors), n_context), n_neighbors)
        trained_on = data is self.adata and data.obs_names.tolist() == self.cell_names_
        neighbors = self.neighbors_[cells] if trained_on else None
        distance = self.neighbor_distance_[cells] if trained_on and self.neighbor_distance_ is not None else None
        novelty = novelty_score(ranked["ratio"], distance, self.novelty_reference_)
        table = label_table(ranked, neighbors, labels, data.obs_names[cells], vote, novelty)
        if unknown_threshold is not None:
            threshold = NOVELTY_MIDPOINT if unknown_threshold == "auto" else float(unknown_threshold)
            table["label"] = table["label"].cat.add_categories(["unknown"])
            table.loc[table["novelty"] > threshold, "label"] = "unknown"
        if key_added is not None:
            target = data if adata is None else adata
            for column in table:
                target.obs[key_added if column == "label" else f"{key_added}_{column}"] = table[column]
        return table

    @torch.inference_mode()
    def query_cell(self, cell: str | int, adata: AnnData | None = None) -> pd.DataFrame:
        r"""Compare one target cell with every cell of the context.

        Parameters
        ----------
        cell
            Name, or position, of the target cell.
        adata
            Target data with the genes of the training data; by default the training data.

        Returns
        -------
        One row per context cell, the most similar first: ``log_likelihood_ratio``
        :math:`\log p(x \mid \mu_j) - \log p(x \mid \mu_i)`, what the cell loses (nats) when that context cell explains it
        instead of its own latent variable; ``latent_distance``, Euclidean; and every label column of the context.

        Raises
        ------
        KeyError
            If the cell is not in the data.

        Examples
        --------
        >>> found = model.query_cell(human.obs_names[0])
        >>> found.columns.tolist()
        ['log_likelihood_ratio', 'latent_distance', 'cell_type']
        """
        self._check_if_trained(warn=False)
        data = self._validate_anndata(adata)
        if isinstance(cell, str):
            if cell not in data.obs_names:
                raise KeyError(
                    f"cell={cell!r} is not in adata.obs_names, which has for example {examples(data.obs_names)}."
                )
            cell = data.obs_names.get_loc(cell)
        elif not -data.n_obs <= cell < data.n_obs:
            raise KeyError(f"cell={cell} is out of range: adata has {data.n_obs} cells.")
        self.module.eval()
        tensors = next(iter(self._make_data_loader(data, indices=[int(cell) % data.n_obs])))
        tensors = {key: value.to(self.module.device) for key, value in tensors.items()}
        context = self.module.context_mean
        mean = self.module.encode(self.module, tensors)["mean"]
        ratios = likelihood_ratios(self.module, tensors, mean, torch.arange(len(context), device=mean.device)[None])
        order = torch.argsort(ratios[0], stable=True).cpu().numpy()
        table = {
            "log_likelihood_ratio": ratios[0].cpu().numpy()[order],
            "latent_distance": torch.cdist(mean, context)[0].cpu().numpy()[order],
        }
        for key, labels in self.context_labels_.items():
            table[key] = pd.Categorical.from_codes(labels["codes"][order], categories=labels["categories"])
        return pd.DataFrame(table, index=pd.Index(self.context_["cell_names"])[order])

    def _review_alignment(self, n_cells: int = 1000) -> None:
        """Set the scale of the novelty, and warn if the latent space seems worse than the data-level neighbours."""
        rng = np.random.default_rng(settings.seed)
        aligned = rng.permutation(np.flatnonzero(self.eligible_))[:n_cells]
        cells = np.union1d(aligned, rng.permutation(len(self.eligible_))[:n_cells])
        k = min(25, len(self.module.context_mean))
        self.module.eval()
        ranked = rank_candidates(self.module, self._make_data_loader(self.adata, indices=cells), k, k)
        known = self.eligible_[cells] if len(aligned) else np.ones(len(cells), dtype=bool)
        distance = None if self.neighbor_distance_ is None else self.neighbor_distance_[cells][known]
        self.novelty_reference_ = novelty_reference(ranked["ratio"][known], distance)

        labels = self._labels(None)
        codes, n_labels = labels["codes"], len(labels["categories"])
        data_level = label_shares(codes[self.neighbors_[cells]], n_labels)
        latent = label_shares(codes[ranked["latent"]], n_labels)
        context = self.module.context_mean
        own = rng.permutation(len(context))[:n_cells]
        nearest = nearest_neighbors(
            context.cpu().numpy(), context[own].cpu().numpy(), min(k + 1, len(context)), metric="euclidean"
        )
        context_labels = label_shares(codes[nearest[0][:, 1:]], n_labels).argmax(1)
        self.alignment_ = {
            "context_agreement": float((context_labels == codes[own]).mean()),
            "aligned_agreement": float((data_level.argmax(1) == latent.argmax(1))[known].mean()),
            "latent_share": float(latent.max(1).mean()),
            "data_level_share": float(data_level.max(1).mean()),
        }
        warn_of_poor_alignment(**self.alignment_)
