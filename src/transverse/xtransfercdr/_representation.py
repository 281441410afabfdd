from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from scvi.utils import track

from transverse._validation import check_obs_key

from ._additivity import latent_additivity
from ._cell_access import CellAccessMixin


class RepresentationMixin(CellAccessMixin):
    """Basal states and effects of cells, and what they say of perturbations."""

    def get_basal_representation(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
    ) -> np.ndarray:
        r"""Basal state :math:`S = E_S(x)` of cells: what they are without their perturbation.

        Parameters
        ----------
        adata
            Data with the genes of the training data, in any order, and on its scale; by default the training data. Labels are
            not needed.
        indices
            Cells to use; by default all.
        batch_size
            Cells in a mini-batch; does not change the result.

        Returns
        -------
        Array of shape ``(n_cells, n_latent)``, non-negative.

        Raises
        ------
        RuntimeError
            If the model is not trained.

        Examples
        --------
        >>> model.get_basal_representation(indices=range(10)).shape
        (10, 32)
        """
        return self._representations(adata, indices, batch_size)[0]

    def get_perturbation_representation(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
        groupby: Literal["cell", "perturbation", "condition"] = "cell",
    ) -> np.ndarray | pd.DataFrame:
        r"""Effect :math:`P = E_P(x)` of the perturbation of cells, or its mean over the cells of a perturbation.

        Parameters
        ----------
        adata, indices, batch_size
            As in :meth:`get_basal_representation`.
        groupby
            ``"cell"``, or the mean over the cells of each ``"perturbation"``, or of each ``"condition"``, a perturbation in
            a context. Means of a perturbation weigh its contexts equally.

        Returns
        -------
        Array of shape ``(n_cells, n_latent)``, non-negative; or a table of shape ``(n_groups, n_latent)``, whose index
        has the perturbation, or perturbation and context.

        Raises
        ------
        RuntimeError
            If the model is not trained.

        Examples
        --------
        >>> effects = model.get_perturbation_representation(groupby="perturbation")
        >>> effects.shape
        (6, 32)
        >>> effects.index.tolist()
        ['P01', 'P02', 'P02+P03', 'P03', 'P04', 'control']
        """
        if groupby not in ("cell", "perturbation", "condition"):
            raise ValueError(f"groupby={groupby!r} must be 'cell', 'perturbation' or 'condition'.")
        if groupby != "cell" and adata is not None:
            for argument in ("perturbation_key", "context_key"):
                if (key := self._setup_arguments[argument]) is not None:
                    check_obs_key(adata, key, argument)
        effects = self._representations(adata, indices, batch_size)[1]
        if groupby == "cell":
            return effects
        cells = self._all_cells(adata)
        chosen = slice(None) if indices is None else np.asarray(indices)
        names = {"perturbation": cells.perturbations, "context": cells.contexts}
        by = [pd.Index(values[chosen], name=key) for key, values in names.items()]
        means = pd.DataFrame(effects).groupby(by).mean()
        return means if groupby == "condition" else means.groupby(level="perturbation").mean()

    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
    ) -> np.ndarray:
        r"""What the decoder makes a cell of, :math:`S + P`; arguments as in :meth:`get_basal_representation`.

        Returns
        -------
        Array of shape ``(n_cells, n_latent)``.

        Examples
        --------
        >>> adata.obsm["X_XTransferCDR"] = model.get_latent_representation()
        >>> adata.obsm["X_XTransferCDR"].shape
        (390, 32)
        """
        basal, effects = self._representations(adata, indices, batch_size)
        return basal + effects

    def get_perturbation_similarity(
        self,
        groupby: Literal["perturbation", "condition"] = "perturbation",
        metric: Literal["cosine", "pearson"] = "cosine",
    ) -> pd.DataFrame:
        r"""How alike the mean effects of perturbations are.

        Parameters
        ----------
        groupby
            As in :meth:`get_perturbation_representation`, over the training data. The mean effect of the control is taken
            from every other first.
        metric
            ``"cosine"`` or ``"pearson"``, over the latent units.

        Returns
        -------
        Symmetric table with perturbations, or conditions as ``"perturbation | context"``, in both directions, without the
        control. Drawn by :func:`transverse.pl.similarity_heatmap`.

        Examples
        --------
        >>> similarity = model.get_perturbation_similarity()
        >>> similarity.columns.tolist()
        ['P01', 'P02', 'P02+P03', 'P03', 'P04']
        >>> ax = tv.pl.similarity_heatmap(similarity)
        """
        if groupby not in ("perturbation", "condition"):
            raise ValueError(f"groupby={groupby!r} must be 'perturbation' or 'condition'.")
        if metric not in ("cosine", "pearson"):
            raise ValueError(f"metric={metric!r} must be 'cosine' or 'pearson'.")
        means = self._effects_against_control(groupby)
        values = means.to_numpy()
        if metric == "pearson":
            values = values - values.mean(axis=1, keepdims=True)
        norm = np.linalg.norm(values, axis=1, keepdims=True)
        unit = np.divide(values, norm, out=np.zeros_like(values), where=norm > 0)
        labels = means.index if groupby == "perturbation" else [" | ".join(pair) for pair in means.index]
        return pd.DataFrame(unit @ unit.T, index=pd.Index(labels), columns=pd.Index(labels))

    def _effects_against_control(self, groupby: str) -> pd.DataFrame:
        """Mean effects of perturbations or conditions minus that of the context's control; contexts without are left out."""
        control = self._setup_arguments["control"]
        means = self.get_perturbation_representation(groupby="condition")
        shifts = {}
        for context, group in means.groupby(level="context"):
            group = group.droplevel("context")
            if control in group.index:
                shifts[context] = group.drop(index=control) - group.loc[control]
        table = pd.concat(shifts, names=["context"]).swaplevel().sort_index()
        return table.groupby(level="perturbation").mean() if groupby == "perturbation" else table

    def get_latent_additivity(self) -> pd.DataFrame:
        r"""Whether effects of combinations are the sum of those of their singles, as predictions assume.

        For every combination that was measured beside all its singles in one context, the mean effect
        :math:`\bar P^{ab}` over its cells beside :math:`\bar P^a + \bar P^b`, both against the mean effect of the context's
        control cells.

        Returns
        -------
        A row for each combination and context:

        - ``cosine``: between measured and sum
        - ``best_single``: the highest cosine of the combination with one of its singles alone
        - ``cosine_others``: the mean cosine with sums of as many other singles of the context; what to expect by chance
        - ``length_ratio``: length of the measured effect in that of the sum; below 1 where effects saturate

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError
            If no combination was measured beside its singles.

        Examples
        --------
        >>> table = model.get_latent_additivity()
        >>> table.columns.tolist()
        ['perturbation', 'context', 'cosine', 'best_single', 'cosine_others', 'length_ratio']
        """
        table = self._effects_against_control("condition")
        return latent_additivity(table, self._setup_arguments["delimiter"])

    def _representations(
        self, adata: AnnData | None, indices: Sequence[int] | None, batch_size: int | None
    ) -> tuple[np.ndarray, np.ndarray]:
        self._check_if_trained(warn=False)
        cells = self._all_cells(adata)
        indices = cells.rows if indices is None else np.asarray(indices)
        if indices.dtype == bool:
            if len(indices) != len(cells):
                raise ValueError(f"indices has {len(indices)} entries for {len(cells)} cells.")
            indices = np.flatnonzero(indices)
        if not len(indices):
            raise ValueError("indices names no cells.")
        # rows of a backed file come in the order of the file
        unique, inverse = np.unique(indices, return_inverse=True)
        size = batch_size or 512
        n_batches = -(-len(unique) // size)
        batches = replace(cells, rows=cells.rows[unique]).batches(size)
        batches = track(batches, total=n_batches, description="Encoding...", disable=n_batches < 100)
        encoded = [self._encode(x) for x in batches]
        basal, effects = (np.concatenate(part) for part in zip(*encoded, strict=True))
        return basal[inverse], effects[inverse]
