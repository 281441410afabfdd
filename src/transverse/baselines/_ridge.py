"""The bilinear ridge on principal components."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Literal

import numpy as np
from sklearn.linear_model import Ridge

from transverse._validation import examples
from transverse.pp._perturbations import parts

from ._response import ResponseBaseline


class PCRidge(ResponseBaseline):
    r"""Ridge regression from an embedding of perturbations to principal components of the responses.

    With the shifts of the training :math:`Y` (genes x conditions), their mean :math:`b`, their first :math:`K` principal
    directions :math:`G` (genes x :math:`K`) and embeddings of the perturbations :math:`P` (conditions x :math:`K`), centred,

    .. math::

        \hat W = \arg\min_W \lVert Y - b - G W P^T \rVert^2 + \alpha \lVert W \rVert^2, \qquad \hat y = b + G \hat W p ,

    the linear model of Ahlmann-Eltze et al. :cite:p:`AhlmannEltze2025`, whom no deep method beat. It is trained on the
    other perturbations of the predicted context if that has at least two, otherwise on all conditions of the source
    contexts.

    Parameters
    ----------
    n_components
        :math:`K`; less where there are fewer conditions.
    alpha
        Penalty; 0.1 is the authors' choice.
    embedding
        What stands for a perturbation: ``"responses"``, its mean shift in the source contexts on :math:`G`; or ``"genes"``, the
        principal component scores of the gene of its name, summed over the parts of a combination, for perturbations that
        were not measured anywhere. ``"auto"`` takes the first where it can.
    """

    def __init__(
        self,
        n_components: int = 10,
        alpha: float = 0.1,
        embedding: Literal["auto", "responses", "genes"] = "auto",
    ):
        if not isinstance(n_components, Integral) or n_components < 1:
            raise ValueError(f"n_components={n_components!r} must be a whole number of at least 1.")
        if not alpha > 0:
            raise ValueError(f"alpha={alpha!r} must be positive.")
        if embedding not in ("auto", "responses", "genes"):
            raise ValueError(f"embedding={embedding!r} must be 'auto', 'responses' or 'genes'.")
        self.n_components, self.alpha, self.embedding = n_components, alpha, embedding

    def _shift(self, name: str, context: str, sources: Sequence[str]) -> tuple[np.ndarray, Iterable[str]]:
        by_responses = self.embedding == "responses" or (
            self.embedding == "auto" and bool(self._measured(name, sources))
        )
        if by_responses:
            self._elsewhere(name, context, sources)
        else:
            self._check_genes(name)
        # never the condition itself, should it be in the training
        known = [pair for pair in self._shifts if pair != (name, context) and pair[1] in {context, *sources}]
        if len(known) < 2:
            raise ValueError(f"{type(self).__name__} needs at least two measured conditions beside the predicted one.")
        responses = np.array([self._shifts[pair] for pair in known])
        _, singular, directions = np.linalg.svd(responses - responses.mean(axis=0), full_matrices=False)
        directions = directions[: self.n_components]
        scores = (directions * singular[: self.n_components, None]).T  # genes x K

        def embed(pair: tuple[str, str]) -> np.ndarray | None:
            if not by_responses:
                genes = self.var_names.get_indexer(parts(pair[0], self.delimiter))
                return scores[genes].sum(axis=0) if (genes >= 0).all() else None
            others = self._measured(pair[0], [c for c in sources if c != pair[1]])
            return directions @ np.mean([self._shifts[pair[0], c] for c in others], axis=0) if others else None

        embedded = [(pair, vector) for pair in known if (vector := embed(pair)) is not None]
        own = [(pair, vector) for pair, vector in embedded if pair[1] == context]
        training = own if len(own) > 1 else [(pair, vector) for pair, vector in embedded if pair[1] != context]
        if len(training) < 2:
            raise ValueError(
                f"{type(self).__name__} needs at least two training perturbations that it can embed, in {context!r} or in "
                f"the other contexts, but has {len(training)}."
            )
        shifts = np.array([self._shifts[pair] for pair, _ in training])
        ridge = Ridge(alpha=self.alpha).fit(np.array([vector for _, vector in training]), shifts @ directions.T)
        # the part of the mean outside the components is kept
        mean = shifts.mean(axis=0)
        mean = mean - directions.T @ (directions @ mean)
        shift = mean + directions.T @ ridge.predict(embed((name, context))[None])[0]
        return shift, sorted({pair[1] for pair, _ in training})

    def _check_genes(self, name: str) -> None:
        if missing := [gene for gene in parts(name, self.delimiter) if gene not in self.var_names]:
            raise ValueError(f"{name!r} has no embedding: {examples(missing)} is not the name of a measured gene.")

    def _check_perturbation(self, name: str, known: set[str]) -> None:
        """An unknown name may be that of a gene."""
        if self.embedding == "responses" or any(gene not in self.var_names for gene in parts(name, self.delimiter)):
            super()._check_perturbation(name, known)
