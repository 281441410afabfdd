"""What the baselines of responses share: mean profiles of all conditions, and predictions in the models' form."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Self

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from transverse._groups import group_codes, group_profiles
from transverse._validation import (
    align_genes,
    check_log_normalized,
    check_obs_key,
    check_unique_var_names,
    examples,
    iter_rows,
)
from transverse.pp._perturbations import clean, parts


class ResponseBaseline(ABC):
    """A predictor of responses that adds a shift to control cells.

    Parameters of :meth:`fit` and :meth:`predict` are those of the models.
    """

    def fit(
        self,
        adata: AnnData,
        *,
        perturbation_key: str = "perturbation",
        control: str = "control",
        context_key: str | None = "cell_type",
        layer: str | None = None,
        delimiter: str | None = "+",
    ) -> Self:
        """Take the mean profile of every condition, and keep the control cells.

        Parameters
        ----------
        adata
            Cells of the training, log-normalised: treated and control. Cells that are to be predicted must not be among
            them, see :func:`transverse.pp.split_responses`. Read block by block from a backed file.
        perturbation_key
            Column of ``obs`` with the perturbation.
        control
            Its value for control cells. A control within a combination does not count: ``"A+control"`` is ``"A"``.
        context_key
            Column with the cellular context, such as cell type or line. None if there is only one. Contexts without control
            cells are left out, with a warning.
        layer
            Layer with the expression instead of ``X``.
        delimiter
            What joins the parts of a combination, in any order. None if there are no combinations.

        Returns
        -------
        The baseline itself. ``adata`` is not changed.

        Raises
        ------
        KeyError
            If a column or the layer does not exist.
        ValueError
            If there are no control cells at all, expression is raw counts, missing or infinite, a column has missing values,
            or gene names repeat.
        TypeError
            If ``adata`` is not an AnnData.

        Examples
        --------
        >>> import transverse as tv
        >>> adata = tv.datasets.simulate_responses(
        ...     n_contexts=2, n_perturbations=3, n_genes=30, n_control_cells_per_context=20
        ... )
        >>> tv.pp.split_responses(adata, holdout=[("P01", "C2")], valid_size=0)
        >>> baseline = tv.baselines.MeanShift().fit(adata[adata.obs["split"] == "train"])
        """
        if not isinstance(adata, AnnData):
            raise TypeError(f"adata must be an AnnData, but got {type(adata).__name__}.")
        check_obs_key(adata, perturbation_key, "perturbation_key")
        if context_key is not None:
            check_obs_key(adata, context_key, "context_key")
        check_unique_var_names(adata)
        control = str(control)
        by = [perturbation_key] if context_key is None else [perturbation_key, context_key]
        keys, codes = group_codes(adata, by)
        names = np.array([clean(name, control, delimiter) for name in keys[perturbation_key]], dtype=object)
        is_control = (names == control)[codes]
        if not is_control.any():
            raise ValueError(
                f"No cell has control={control!r} in adata.obs[{perturbation_key!r}]. "
                f"Values: {examples(keys[perturbation_key].unique())}."
            )
        check_log_normalized(adata, layer)
        self.perturbation_key, self.context_key, self.control = perturbation_key, context_key, control
        self.delimiter, self.layer, self.var_names = delimiter, layer, adata.var_names.copy()
        profiles = group_profiles(adata, by, layer)
        contexts = [""] * len(keys) if context_key is None else keys[context_key].tolist()
        # several labels may be one condition: a combination in two orders, a single with and without a control
        groups: dict[tuple[str, str], list[int]] = {}
        for row, pair in enumerate(zip(names, contexts, strict=True)):
            groups.setdefault(pair, []).append(row)
        means = {
            pair: np.average(profiles.mean[rows], axis=0, weights=profiles.n_cells[rows])
            for pair, rows in groups.items()
        }
        self._control_means = {context: mean for (name, context), mean in means.items() if name == control}
        self._shifts = {
            (name, context): mean - self._control_means[context]
            for (name, context), mean in means.items()
            if name != control and context in self._control_means
        }
        if lacking := sorted({context for _, context in means} - set(self._control_means)):
            warnings.warn(
                f"These contexts have treated cells but no control cells, and are left out: {examples(lacking)}.",
                stacklevel=2,
            )
        self._known = {part for name, _ in self._shifts for part in (name, *parts(name, delimiter))}
        self._control_contexts = np.array(contexts, dtype=object)[codes][is_control]
        self._control_names = adata.obs_names[is_control]
        self._control_cells = _rows(adata, layer, is_control)
        self._cache: dict = {}
        return self

    def predict(
        self,
        perturbation: str | Sequence[str],
        context: str | None = None,
        *,
        source: str | Sequence[str] | None = None,
        controls: AnnData | None = None,
    ) -> AnnData:
        """Predict what a perturbation does to the control cells of a context.

        Parameters
        ----------
        perturbation
            Its name, or several for a combination, ``["A", "B"]`` or ``"A+B"``.
        context
            Context to predict, with control cells in the training; may be left out if there is only one.
        source
            Contexts to carry the effect from, all others by default. The predicted context itself is refused.
        controls
            Control cells of the context to start from, by default those in the training. Read from the layer that
            :meth:`fit` was given, if any; genes are put in order.

        Returns
        -------
        AnnData with a row for each control cell:

        - ``X``: predicted expression, on the scale of the training data, float32; not clipped at 0
        - ``layers["control"]``: expression of the control cell itself
        - ``obs``: perturbation, as it was asked for, context, and the name of the control cell (``control_cell``)
        - ``uns["prediction"]``: what was predicted, by what, and from which contexts

        Raises
        ------
        ValueError
            If the baseline cannot predict this condition from what it was fitted on or has not been fitted, or ``controls``
            lacks genes, is raw counts, or has cells that are treated or of another context.
        KeyError
            If the perturbation or a context is unknown, or ``controls`` lacks the layer.

        Examples
        --------
        >>> import transverse as tv
        >>> adata = tv.datasets.simulate_responses(
        ...     n_contexts=2, n_perturbations=3, n_genes=30, n_control_cells_per_context=20
        ... )
        >>> tv.pp.split_responses(adata, holdout=[("P01", "C2")], valid_size=0)
        >>> baseline = tv.baselines.MeanShift().fit(adata[adata.obs["split"] == "train"])
        >>> pred = baseline.predict("P01", context="C2")
        >>> pred.shape  # control cells x genes
        (10, 30)
        """
        asked = list(perturbation) if pd.api.types.is_list_like(perturbation) else [perturbation]
        name, context, sources = self._resolve(perturbation, context, source)
        cells, cell_names = self._cells_of(context, controls)
        shift, used = self._shift(name, context, sources)
        start = (cells.toarray() if sp.issparse(cells) else cells).astype(np.float32)
        # under the name that was asked for: it is that of the data which the prediction is held against
        label = perturbation if isinstance(perturbation, str) else (self.delimiter or "").join(map(str, asked))
        obs = {self.perturbation_key: label, "control_cell": cell_names.to_numpy()}
        if self.context_key is not None:
            obs[self.context_key] = context
        # text as objects, which every version of anndata can write
        obs = pd.DataFrame(obs, index=cell_names.astype(object), dtype=object)
        for key in (self.perturbation_key, self.context_key):
            if key is not None:
                obs[key] = obs[key].astype("category")
        pred = AnnData(start + shift.astype(np.float32), obs=obs, var=pd.DataFrame(index=self.var_names.astype(object)))
        pred.layers["control"] = start
        pred.uns["prediction"] = {
            "method": type(self).__name__,
            "perturbation": name,
            "context": context,
            "source": list(used),
            "scale": "that of the training data",
        }
        return pred

    def predict_change(
        self,
        perturbation: str | Sequence[str],
        context: str | None = None,
        *,
        source: str | Sequence[str] | None = None,
    ) -> pd.Series:
        """The shift that :meth:`predict` adds to every control cell, by gene; arguments and errors as there.

        Examples
        --------
        >>> import transverse as tv
        >>> adata = tv.datasets.simulate_responses(
        ...     n_contexts=2, n_perturbations=3, n_genes=30, n_control_cells_per_context=20
        ... )
        >>> tv.pp.split_responses(adata, holdout=[("P01", "C2")], valid_size=0)
        >>> baseline = tv.baselines.MeanShift().fit(adata[adata.obs["split"] == "train"])
        >>> baseline.predict_change("P01", context="C2").shape
        (30,)
        """
        shift, _ = self._shift(*self._resolve(perturbation, context, source))
        return pd.Series(shift.copy(), index=self.var_names, name="change")

    def supports(self, perturbation: str | Sequence[str], context: str | None = None) -> bool:
        """Whether the condition can be predicted from what the baseline was fitted on.

        Examples
        --------
        >>> import transverse as tv
        >>> adata = tv.datasets.simulate_responses(
        ...     n_contexts=2, n_perturbations=3, n_genes=30, n_control_cells_per_context=20
        ... )
        >>> tv.pp.split_responses(adata, holdout=[("P01", "C2")], valid_size=0)
        >>> baseline = tv.baselines.MeanShift().fit(adata[adata.obs["split"] == "train"])
        >>> baseline.supports("P01", "C2"), baseline.supports("P99", "C2")
        (True, False)
        """
        try:
            self.predict_change(perturbation, context)
        except (KeyError, ValueError):
            return False
        return True

    @abstractmethod
    def _shift(self, name: str, context: str, sources: Sequence[str]) -> tuple[np.ndarray, Iterable[str]]:
        """The shift (genes,) and the contexts that it was taken from."""

    def _resolve(
        self, perturbation: str | Sequence[str], context: str | None, source: str | Sequence[str] | None
    ) -> tuple[str, str, list[str]]:
        """Names checked: perturbation, context, and the contexts to carry from."""
        if not hasattr(self, "_shifts"):
            raise ValueError(f"{type(self).__name__} has not been fitted. Call fit(adata) first.")
        several = pd.api.types.is_list_like(perturbation)
        name = [str(one) for one in perturbation] if several else str(perturbation)
        name = clean(name, self.control, self.delimiter)
        if name == self.control:
            raise ValueError(f"perturbation={perturbation!r} is the control.")
        contexts = list(self._control_means)
        if context is None:
            if len(contexts) > 1:
                raise ValueError(f"context is needed, one of {examples(contexts)}.")
            context = contexts[0]
        elif self.context_key is None:
            raise KeyError(f"context={context!r} is unknown: the baseline was fitted with context_key=None.")
        context = str(context)
        if context not in self._control_means:
            raise KeyError(f"context={context!r} has no control cells. Contexts that have: {examples(contexts)}.")
        self._check_perturbation(name)
        if source is None:
            return name, context, [other for other in contexts if other != context]
        sources = source if pd.api.types.is_list_like(source) else [source]
        sources = list(dict.fromkeys(str(other) for other in sources))
        if context in sources:
            raise ValueError(f"source has {context!r}, the context that is predicted: it would be shown the answer.")
        if unknown := [other for other in sources if other not in self._control_means]:
            raise KeyError(f"source has unknown contexts: {examples(unknown)}. Known: {examples(contexts)}.")
        return name, context, sources

    def _check_perturbation(self, name: str) -> None:
        unknown = [part for part in parts(name, self.delimiter) if part not in self._known]
        if unknown and name not in self._known:
            raise KeyError(f"Unknown perturbation: {examples(unknown)}. Known: {examples(sorted(self._known))}.")

    def _cells_of(self, context: str, controls: AnnData | None) -> tuple[sp.csr_matrix | np.ndarray, pd.Index]:
        """Expression and names of the control cells to start from."""
        if controls is None:
            here = self._control_contexts == context
            return self._control_cells[here], self._control_names[here]
        if not isinstance(controls, AnnData):
            raise TypeError(f"controls must be an AnnData, but got {type(controls).__name__}.")
        if controls.n_obs == 0:
            raise ValueError("controls has no cells.")
        for key, expected in ((self.perturbation_key, self.control), (self.context_key, context)):
            if key in controls.obs and len(other := controls.obs[key][controls.obs[key].astype(str) != expected]):
                raise ValueError(
                    f"controls must have only cells with {expected!r} in obs[{key!r}], but has {examples(other.unique())}."
                )
        controls = align_genes(controls, self.var_names, "controls")
        check_log_normalized(controls, self.layer, "controls")
        return _rows(controls, self.layer, np.ones(controls.n_obs, dtype=bool)), controls.obs_names

    def _measured(self, name: str, contexts: Iterable[str]) -> list[str]:
        """Contexts, of those given, in which a perturbation was measured."""
        return [context for context in contexts if (name, context) in self._shifts]

    def _elsewhere(self, name: str, sources: Sequence[str]) -> list[str]:
        """Contexts to carry from; raises where there is none."""
        found = self._measured(name, sources)
        if not found:
            raise ValueError(
                f"{name!r} was not measured in any context to carry from ({examples(sources)}): {type(self).__name__} has "
                "nothing to carry over."
            )
        return found

    def _distances(self, context: str, others: Sequence[str]) -> np.ndarray:
        """Squared Euclidean distance between the mean control profile of a context and of others."""
        return np.array([((self._control_means[context] - self._control_means[o]) ** 2).sum() for o in others])


def _rows(adata: AnnData, layer: str | None, keep: np.ndarray) -> sp.csr_matrix | np.ndarray:
    """Some rows of the matrix in memory, sparse where it is."""
    blocks, start = [], 0
    for block in iter_rows(adata, layer):
        blocks.append(block[keep[start : start + block.shape[0]]])
        start += block.shape[0]
    return sp.vstack(blocks, format="csr") if sp.issparse(blocks[0]) else np.concatenate(blocks)
