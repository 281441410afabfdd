"""Combinations from their singles."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence

import numpy as np

from transverse.pp._perturbations import parts

from ._response import ResponseBaseline


class _FromSingles(ResponseBaseline):
    """Each single's shift in the context itself, or where it was not measured there its mean shift in the sources."""

    @abstractmethod
    def _combine(self, shifts: np.ndarray) -> np.ndarray:
        """The shift of the combination from those of its singles, singles x genes."""

    def _shift(self, name: str, context: str, sources: Sequence[str]) -> tuple[np.ndarray, Iterable[str]]:
        singles = parts(name, self.delimiter)
        if len(singles) < 2:
            raise ValueError(f"{name!r} is not a combination: {type(self).__name__} combines singles.")
        shifts, used = [], set()
        for single in singles:
            where = self._measured(single, [context]) or self._elsewhere(single, sources)
            shifts.append(np.mean([self._shifts[single, c] for c in where], axis=0))
            used.update(where)
        return self._combine(np.array(shifts)), sorted(used)


class Additive(_FromSingles):
    r"""The sum of the singles' shifts, :math:`\delta_{AB} = \delta_A + \delta_B`, on the scale of the data.

    On log-normalised data effects multiply.

    Examples
    --------
    >>> import transverse as tv
    >>> adata = tv.datasets.simulate_responses(n_contexts=1, n_perturbations=2, n_doubles=1, n_genes=30)
    >>> tv.pp.split_responses(adata, by="combination", holdout=["P01+P02"], valid_size=0)
    >>> baseline = tv.baselines.Additive().fit(adata[adata.obs["split"] == "train"])
    >>> pred = baseline.predict(["P01", "P02"])
    >>> pred.shape  # control cells x genes
    (75, 30)
    """

    def _combine(self, shifts: np.ndarray) -> np.ndarray:
        return shifts.sum(axis=0)


class MeanOfSingles(_FromSingles):
    r"""The mean of the singles' shifts, :math:`\delta_{AB} = (\delta_A + \delta_B) / 2`.

    Examples
    --------
    >>> import transverse as tv
    >>> adata = tv.datasets.simulate_responses(n_contexts=1, n_perturbations=2, n_doubles=1, n_genes=30)
    >>> tv.pp.split_responses(adata, by="combination", holdout=["P01+P02"], valid_size=0)
    >>> baseline = tv.baselines.MeanOfSingles().fit(adata[adata.obs["split"] == "train"])
    >>> pred = baseline.predict(["P01", "P02"])
    >>> pred.shape  # control cells x genes
    (75, 30)
    """

    def _combine(self, shifts: np.ndarray) -> np.ndarray:
        return shifts.mean(axis=0)


class LargerSingle(_FromSingles):
    """The shift of the single whose shift is the larger, by its Euclidean norm.

    Examples
    --------
    >>> import transverse as tv
    >>> adata = tv.datasets.simulate_responses(n_contexts=1, n_perturbations=2, n_doubles=1, n_genes=30)
    >>> tv.pp.split_responses(adata, by="combination", holdout=["P01+P02"], valid_size=0)
    >>> baseline = tv.baselines.LargerSingle().fit(adata[adata.obs["split"] == "train"])
    >>> pred = baseline.predict(["P01", "P02"])
    >>> pred.shape  # control cells x genes
    (75, 30)
    """

    def _combine(self, shifts: np.ndarray) -> np.ndarray:
        return shifts[np.linalg.norm(shifts, axis=1).argmax()]


class LargestChange(_FromSingles):
    r"""For every gene the larger of the singles' shifts: :math:`\delta_{AB,g} = \delta_{i^*,g}`, :math:`i^* = \arg\max_i |\delta_{i,g}|`.

    Examples
    --------
    >>> import transverse as tv
    >>> adata = tv.datasets.simulate_responses(n_contexts=1, n_perturbations=2, n_doubles=1, n_genes=30)
    >>> tv.pp.split_responses(adata, by="combination", holdout=["P01+P02"], valid_size=0)
    >>> baseline = tv.baselines.LargestChange().fit(adata[adata.obs["split"] == "train"])
    >>> pred = baseline.predict(["P01", "P02"])
    >>> pred.shape  # control cells x genes
    (75, 30)
    """

    def _combine(self, shifts: np.ndarray) -> np.ndarray:
        return np.take_along_axis(shifts, np.abs(shifts).argmax(axis=0)[None], axis=0)[0]
