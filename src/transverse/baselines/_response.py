"""What the baselines of responses share: mean profiles of all conditions, and predictions in the models' form."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Self

import numpy as np
import pandas as pd
from anndata import AnnData

from transverse._groups import group_profiles
from transverse._validation import (
    align_genes,
    check_log_normalized,
    check_obs_key,
    check_unique_var_names,
    examples,
)
from transverse.pp._perturbations import canonical, parts


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
            Its value for control cells.
        context_key
            Column with the cellular context, such as cell type or line. None if there is only one.
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
            If there are no control cells at all, values are raw counts, missing or infinite, or gene names repeat.
        """
        if not isinstance(adata, AnnData):
            raise TypeError(f"adata must be an AnnData, but got {type(adata).__name__}.")
        check_obs_key(adata, perturbation_key, "perturbation_key")
        if context_key is not None:
            check_obs_key(adata, context_key, "context_key")
        check_unique_var_names(adata)
        check_log_normalized(adata, layer)
        names = adata.obs[perturbation_key].astype(str)
        is_control = (names == control).to_numpy()
        if not is_control.any():
            raise ValueError(
                f"No cell has control={control!r} in adata.obs[{perturbation_key!r}]. Values: {examples(names.unique())}."
            )
        self.perturbation_key, self.context_key, self.control = perturbation_key, context_key, control
        self.delimiter, self.var_names = delimiter, adata.var_names.copy()
        by = [perturbation_key] if context_key is None else [perturbation_key, context_key]
        profiles = group_profiles(adata, by, layer)
        contexts = profiles.keys[context_key] if context_key else pd.Series([""] * len(profiles.keys))
        self._control_means: dict[str, np.ndarray] = {}
        sums: dict[tuple[str, str], list] = {}
        for name, context, mean, n in zip(
            profiles.keys[perturbation_key], contexts, profiles.mean, profiles.n_cells, strict=True
        ):
            if name == control:
                self._control_means[context] = mean
            else:
                sums.setdefault((canonical(name, delimiter), context), []).append((mean, n))
        # a combination may be written in two orders
        means = {
            key: np.average([m for m, _ in rows], axis=0, weights=[n for _, n in rows]) for key, rows in sums.items()
        }
        self._shifts = {
            (name, context): mean - self._control_means[context]
            for (name, context), mean in means.items()
            if context in self._control_means
        }
        cells = adata[is_control]
        cells = cells.to_memory() if adata.isbacked else cells.copy()
        matrix = cells.X if layer is None else cells.layers[layer]
        columns = [] if context_key is None else [context_key]
        self._control_cells = AnnData(
            matrix, obs=cells.obs[columns].astype(str), var=pd.DataFrame(index=self.var_names)
        )
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
            Context to predict; may be left out if there is only one.
        source
            Contexts to carry the effect from, all others by default. The predicted context itself is refused.
        controls
            Control cells to start from, by default those of the context in the training. Genes are put in order.

        Returns
        -------
        AnnData with a row for each control cell:

        - ``X``: predicted expression, on the scale of the training data, float32; not clipped at 0
        - ``layers["control"]``: expression of the control cell itself
        - ``obs``: perturbation, context, and the name of the control cell (``control_cell``)
        - ``uns["prediction"]``: what was predicted, by what, and from which contexts

        Raises
        ------
        ValueError
            If the baseline cannot predict this condition from what it was fitted on, an array has other genes, or it has not
            been fitted.
        KeyError
            If the perturbation or a context is unknown.
        """
        name, context, sources = self._resolve(perturbation, context, source)
        cells = self._cells_of(context, controls)
        shift, used = self._shift(name, context, sources)
        start = cells.X.toarray() if hasattr(cells.X, "toarray") else np.asarray(cells.X)
        start = start.astype(np.float32)
        obs = {self.perturbation_key: name, "control_cell": cells.obs_names.to_numpy()}
        if self.context_key is not None:
            obs[self.context_key] = context
        obs = pd.DataFrame(obs, index=cells.obs_names.copy())
        for key in (self.perturbation_key, self.context_key):
            if key is not None:
                obs[key] = obs[key].astype("category")
        pred = AnnData(start + shift.astype(np.float32), obs=obs, var=pd.DataFrame(index=self.var_names.copy()))
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
        """The shift that :meth:`predict` adds to every control cell, by gene; arguments and errors as there."""
        shift, _ = self._shift(*self._resolve(perturbation, context, source))
        return pd.Series(shift, index=self.var_names, name="change")

    def supports(self, perturbation: str | Sequence[str], context: str | None = None) -> bool:
        """Whether the condition can be predicted from what the baseline was fitted on."""
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
        known = {part for name, _ in self._shifts for part in (name, *parts(name, self.delimiter))}
        name = canonical(perturbation, self.delimiter)
        if name == self.control:
            raise ValueError(f"perturbation={perturbation!r} is the control.")
        contexts = list(self._control_means)
        if context is None:
            if len(contexts) > 1:
                raise ValueError(f"context is needed, one of {examples(contexts)}.")
            context = contexts[0]
        if context not in self._control_means:
            raise KeyError(f"context={context!r} has no control cells. Contexts that have: {examples(contexts)}.")
        self._check_perturbation(name, known)
        if source is None:
            return name, context, [other for other in contexts if other != context]
        sources = [source] if isinstance(source, str) else list(source)
        if unknown := [other for other in sources if other not in self._control_means]:
            raise KeyError(f"source has unknown contexts: {examples(unknown)}. Known: {examples(contexts)}.")
        if context in sources:
            raise ValueError(f"source has {context!r}, the context that is predicted: it would be shown the answer.")
        return name, context, sources

    def _check_perturbation(self, name: str, known: set[str]) -> None:
        unknown = [part for part in parts(name, self.delimiter) if part not in known]
        if unknown and name not in known:
            raise KeyError(f"Unknown perturbation: {examples(unknown)}. Known: {examples(sorted(known))}.")

    def _cells_of(self, context: str, controls: AnnData | None) -> AnnData:
        if controls is not None:
            if controls.n_obs == 0:
                raise ValueError("controls has no cells.")
            return align_genes(controls, self.var_names, "controls")
        if self.context_key is None:
            return self._control_cells
        return self._control_cells[(self._control_cells.obs[self.context_key] == context).to_numpy()]

    def _measured(self, name: str, contexts: Iterable[str]) -> list[str]:
        """Contexts, of those given, in which a perturbation was measured."""
        return [context for context in contexts if (name, context) in self._shifts]

    def _elsewhere(self, name: str, context: str, sources: Sequence[str]) -> list[str]:
        """Contexts to carry from; raises where there is none."""
        found = self._measured(name, sources)
        if not found:
            raise ValueError(
                f"{name!r} was not measured with controls in any context but {context!r}, or in none of source="
                f"{examples(sources)}: {type(self).__name__} has nothing to carry over."
            )
        return found

    def _distances(self, context: str, others: Sequence[str]) -> np.ndarray:
        """Squared Euclidean distance between the mean control profile of a context and of others."""
        return np.array([((self._control_means[context] - self._control_means[o]) ** 2).sum() for o in others])
