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
    other perturbations of the predicted context if those are more than :math:`K`, as the authors do, otherwise on those and
    all conditions of the source contexts.

    Parameters
    ----------
    n_components
        :math:`K`; less where there are fewer conditions. The authors take 10, which is too few where perturbations act on
        genes of their own: what is outside of the components cannot be predicted.
    alpha
        Penalty; 0.1 is the authors' choice.
    embedding
        What stands for a perturbation: ``"responses"``, its mean shift in the source contexts on :math:`G`; or ``"genes"``, the
        principal component scores of the gene of its name, summed over the parts of a combination, for perturbations that
        were not measured anywhere. ``"auto"`` takes the first where it can.

    Examples
    --------
    >>> import transverse as tv
    >>> adata = tv.datasets.simulate_responses(
    ...     n_contexts=2, n_perturbations=3, n_genes=30, n_control_cells_per_context=20
    ... )
    >>> tv.pp.split_responses(adata, holdout=[("P01", "C2")], valid_size=0)
    >>> train = adata[adata.obs["split"] == "train"]
    >>> pred = tv.baselines.PCRidge(n_components=5).fit(train).predict("P01", context="C2")
    >>> pred.shape  # control cells x genes
    (10, 30)
    """

    def __init__(
        self,
        n_components: int = 50,
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
            self._elsewhere(name, sources)
        else:
            self._check_genes(name)
        # never the condition itself, should it be in the training
        excluded = (name, context) if (name, context) in self._shifts else None
        key = (context, tuple(sources), by_responses, excluded)
        if key in self._cache:
            basis, ridge, mean, used = self._cache[key]
        else:
            basis = self._basis(frozenset({context, *sources}), excluded)
            ridge, mean, used = self._train(context, sources, by_responses, excluded, basis)
            if excluded is None:
                self._cache[key] = basis, ridge, mean, used
        embedding = self._embed((name, context), sources, by_responses, basis)
        # of a single component scikit-learn drops the axis
        scores = ridge.predict(embedding[None]).reshape(-1)
        return mean + scores @ basis[0], used

    def _basis(self, contexts: frozenset[str], excluded: tuple[str, str] | None) -> tuple[np.ndarray, np.ndarray]:
        """Principal directions of the responses, K x genes, and scores of the genes, genes x K."""
        if (contexts, excluded) in self._cache:
            return self._cache[contexts, excluded]
        responses = np.array(
            [shift for pair, shift in self._shifts.items() if pair[1] in contexts and pair != excluded]
        )
        if len(responses) < 2:
            raise ValueError(f"{type(self).__name__} needs at least two measured conditions beside the predicted one.")
        _, singular, directions = np.linalg.svd(responses - responses.mean(axis=0), full_matrices=False)
        directions = directions[: self.n_components].copy()  # all of them would stay in memory
        basis = directions, (directions * singular[: self.n_components, None]).T
        if excluded is None:
            self._cache[contexts, None] = basis
        return basis

    def _embed(
        self, pair: tuple[str, str], sources: Sequence[str], by_responses: bool, basis: tuple[np.ndarray, np.ndarray]
    ) -> np.ndarray | None:
        """What stands for a perturbation in a context, (K,); None if there is nothing."""
        directions, scores = basis
        if not by_responses:
            genes = self.var_names.get_indexer(parts(pair[0], self.delimiter))
            return scores[genes].sum(axis=0) if (genes >= 0).all() else None
        others = self._measured(pair[0], [c for c in sources if c != pair[1]])
        return directions @ np.mean([self._shifts[pair[0], c] for c in others], axis=0) if others else None

    def _train(
        self,
        context: str,
        sources: Sequence[str],
        by_responses: bool,
        excluded: tuple[str, str] | None,
        basis: tuple[np.ndarray, np.ndarray],
    ) -> tuple[Ridge, np.ndarray, list[str]]:
        """The regression, the part of the mean response outside the components (genes,), and the contexts of the training."""
        own, elsewhere = [], []
        for pair in self._shifts:
            if pair == excluded or pair[1] not in {context, *sources}:
                continue
            if (vector := self._embed(pair, sources, by_responses, basis)) is not None:
                (own if pair[1] == context else elsewhere).append((pair, vector))
        # with fewer perturbations than components, what the context teaches alone does not reach a new one
        training = own if len(own) > self.n_components else own + elsewhere
        if len(training) < 2:
            raise ValueError(
                f"{type(self).__name__} needs at least two training perturbations that it can embed, in {context!r} or in "
                f"the other contexts, but has {len(training)}."
            )
        shifts = np.array([self._shifts[pair] for pair, _ in training])
        vectors = np.array([vector for _, vector in training])
        directions = basis[0]
        ridge = Ridge(alpha=self.alpha, solver="svd").fit(vectors, shifts @ directions.T)
        mean = shifts.mean(axis=0)
        return ridge, mean - (mean @ directions.T) @ directions, sorted({pair[1] for pair, _ in training})

    def _check_genes(self, name: str) -> None:
        if missing := [gene for gene in parts(name, self.delimiter) if gene not in self.var_names]:
            elsewhere = "was not measured in another context, and " if self.embedding == "auto" else ""
            raise ValueError(f"{name!r} has no embedding: it {elsewhere}names no measured gene ({examples(missing)}).")

    def _check_perturbation(self, name: str) -> None:
        """An unknown name may be that of a gene."""
        if self.embedding == "responses" or any(gene not in self.var_names for gene in parts(name, self.delimiter)):
            super()._check_perturbation(name)
