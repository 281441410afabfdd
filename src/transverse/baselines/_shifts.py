"""Shifts carried between contexts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from transverse._similarity import similarity_weights
from transverse._validation import examples

from ._response import ResponseBaseline


class NoChange(ResponseBaseline):
    """The control cells themselves: nothing happens.

    Its R2 on expression says how much of that score comes for free; on the change every correlation is 0.

    Examples
    --------
    >>> import transverse as tv
    >>> adata = tv.datasets.simulate_responses(
    ...     n_contexts=2, n_perturbations=3, n_genes=30, n_control_cells_per_context=20
    ... )
    >>> tv.pp.split_responses(adata, holdout=[("P01", "C2")], valid_size=0)
    >>> train = adata[adata.obs["split"] == "train"]
    >>> pred = tv.baselines.NoChange().fit(train).predict("P01", context="C2")
    >>> bool((pred.X == pred.layers["control"]).all())
    True
    """

    def _shift(self, name: str, context: str, sources: Sequence[str]) -> tuple[np.ndarray, Iterable[str]]:
        return np.zeros(len(self.var_names)), []

    def _check_perturbation(self, name: str) -> None:
        """Any perturbation will do."""


class MeanPerturbation(ResponseBaseline):
    r"""What perturbations do on average, whichever it is.

    The mean shift over all *other* perturbations of the context; where it has none, over all conditions of the source
    contexts. Beating it takes knowledge of the perturbation: where perturbations have much in common it correlates well. Its
    discrimination is below chance, since it holds every perturbation but the one that is asked for.

    Examples
    --------
    >>> import transverse as tv
    >>> adata = tv.datasets.simulate_responses(
    ...     n_contexts=2, n_perturbations=3, n_genes=30, n_control_cells_per_context=20
    ... )
    >>> tv.pp.split_responses(adata, holdout=[("P01", "C2")], valid_size=0)
    >>> train = adata[adata.obs["split"] == "train"]
    >>> pred = tv.baselines.MeanPerturbation().fit(train).predict("P01", context="C2")
    >>> pred.shape  # control cells x genes
    (10, 30)
    """

    def _shift(self, name: str, context: str, sources: Sequence[str]) -> tuple[np.ndarray, Iterable[str]]:
        shifts = [shift for (other, c), shift in self._shifts.items() if c == context and other != name]
        if shifts:
            return np.mean(shifts, axis=0), [context]
        found = [(c, shift) for (_, c), shift in self._shifts.items() if c in sources]
        if not found:
            raise ValueError(
                f"No other perturbation was measured in context={context!r}, and none in the contexts to carry from "
                f"({examples(sources)})."
            )
        return np.mean([shift for _, shift in found], axis=0), sorted({c for c, _ in found})

    def _check_perturbation(self, name: str) -> None:
        """Any perturbation will do."""


class SameCondition(ResponseBaseline):
    """The shift of the very condition in the training, from other animals.

    For data that are split by animal (``pp.split_responses(adata, by="animal")``), in which the condition itself is in the
    training: what a model adds to having measured it in another donor. Elsewhere it has nothing to say.

    Examples
    --------
    >>> import transverse as tv
    >>> adata = tv.datasets.simulate_responses(n_contexts=2, n_perturbations=3, n_genes=30, n_replicates=4)
    >>> tv.pp.split_responses(adata, by="animal", animal_key="replicate", holdout=["R4"], valid_size=0)
    >>> train, test = adata[adata.obs["split"] == "train"], adata[adata.obs["split"] == "test"]
    >>> controls = test[(test.obs["perturbation"] == "control") & (test.obs["cell_type"] == "C2")]
    >>> pred = tv.baselines.SameCondition().fit(train).predict("P01", context="C2", controls=controls)
    >>> pred.n_obs == controls.n_obs
    True
    """

    def _shift(self, name: str, context: str, sources: Sequence[str]) -> tuple[np.ndarray, Iterable[str]]:
        if (name, context) not in self._shifts:
            raise ValueError(
                f"{name!r} in context={context!r} is not in the training: see by='animal' of split_responses."
            )
        return self._shifts[name, context], [context]


class MeanShift(ResponseBaseline):
    r"""The perturbation's mean shift in other contexts.

    .. math::

        \hat y_c = \bar c_c + \sum_{c' \neq c} w_{c'} (\bar y_{c'} - \bar c_{c'}), \qquad
        w_{c'} \propto 1 \quad \text{or} \quad w_{c'} \propto \exp\left(- d_{c c'}^2 / (h \min_{c''} d_{c c''}^2)\right)

    with the squared Euclidean distance :math:`d^2` between mean control profiles. Weighted by similarity it is the strongest
    baseline on real data where contexts differ in kind.

    Parameters
    ----------
    weights
        ``"uniform"``, or ``"similarity"`` of the contexts.
    bandwidth
        :math:`h`: a context as many times as far as the nearest weighs less the smaller it is.

    Examples
    --------
    >>> import transverse as tv
    >>> adata = tv.datasets.simulate_responses(
    ...     n_contexts=2, n_perturbations=3, n_genes=30, n_control_cells_per_context=20
    ... )
    >>> tv.pp.split_responses(adata, holdout=[("P01", "C2")], valid_size=0)
    >>> train = adata[adata.obs["split"] == "train"]
    >>> pred = tv.baselines.MeanShift(weights="similarity").fit(train).predict("P01", context="C2")
    >>> pred.shape  # control cells x genes
    (10, 30)
    """

    def __init__(self, weights: Literal["uniform", "similarity"] = "uniform", bandwidth: float = 1.0):
        if weights not in ("uniform", "similarity"):
            raise ValueError(f"weights={weights!r} must be 'uniform' or 'similarity'.")
        if not bandwidth > 0:
            raise ValueError(f"bandwidth={bandwidth!r} must be positive.")
        self.weights, self.bandwidth = weights, bandwidth

    def _shift(self, name: str, context: str, sources: Sequence[str]) -> tuple[np.ndarray, Iterable[str]]:
        sources = self._elsewhere(name, sources)
        weights = None
        if self.weights == "similarity":
            weights = similarity_weights(self._distances(context, sources), self.bandwidth)
        return np.average([self._shifts[name, c] for c in sources], axis=0, weights=weights), sources


class NearestContext(ResponseBaseline):
    """The perturbation's shift in the most similar other context in which it was measured.

    Similar by the Euclidean distance of mean control profiles.

    Examples
    --------
    >>> import transverse as tv
    >>> adata = tv.datasets.simulate_responses(
    ...     n_contexts=2, n_perturbations=3, n_genes=30, n_control_cells_per_context=20
    ... )
    >>> tv.pp.split_responses(adata, holdout=[("P01", "C2")], valid_size=0)
    >>> train = adata[adata.obs["split"] == "train"]
    >>> pred = tv.baselines.NearestContext().fit(train).predict("P01", context="C2")
    >>> pred.shape  # control cells x genes
    (10, 30)
    """

    def _shift(self, name: str, context: str, sources: Sequence[str]) -> tuple[np.ndarray, Iterable[str]]:
        sources = self._elsewhere(name, sources)
        nearest = sources[int(self._distances(context, sources).argmin())]
        return self._shifts[name, nearest], [nearest]
