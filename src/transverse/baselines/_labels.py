"""Labels carried from a context to a target with no network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from scipy.special import softmax
from sklearn import config_context
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from transverse._validation import check_n_neighbors, check_obs_key, check_unique_var_names, examples, iter_rows
from transverse.pp._ortholog_match import Policy
from transverse.pp._orthologs import match_orthologs

from ._shared_features import Normalize, check_expression, check_normalize, has_signal, log_expression, stack

_WORKING_MEMORY = 256  # MiB of distances at a time


class _LabelBaseline(ABC):
    """What the label baselines share: matching of genes, normalisation, and the table of results."""

    # novelty of a cell of which nothing is known
    _most_novel = 1.0
    _fewest_labels = 1

    def __init__(self, *, normalize: Normalize = "total", target_sum: float = 1e4):
        check_normalize(normalize, target_sum)
        self.normalize = normalize
        self.target_sum = target_sum
        self.categories_: list | None = None

    def fit(self, adata: AnnData, labels_key: str = "cell_type", *, layer: str | None = None) -> _LabelBaseline:
        """Take the labelled cells of the context.

        Which genes are shared is known only when there is a target, so the classifier itself is fitted by :meth:`predict`.
        A copy of the labelled cells is kept.

        Parameters
        ----------
        adata
            The context, with raw counts unless ``normalize="given"``.
        labels_key
            Column of ``adata.obs``. Cells without a label are left out.
        layer
            Layer with the counts; ``X`` by default.

        Returns
        -------
        The baseline itself.

        Raises
        ------
        ValueError
            If the matrix does not hold what is expected, gene names repeat, or there are too few labels or cells.
        KeyError
            If the column or the layer does not exist.
        TypeError
            If ``adata`` is no AnnData.

        Examples
        --------
        >>> import transverse as tv
        >>> mouse = tv.datasets.simulate_species("tiny", n_cells=100)["mouse"]
        >>> baseline = tv.baselines.NeighborVote(n_neighbors=10).fit(mouse, labels_key="cell_type")
        """
        check_expression(adata, layer, self.normalize, "adata")
        check_unique_var_names(adata)
        check_obs_key(adata, labels_key, "labels_key")
        labels = adata.obs[labels_key].astype("category").cat.remove_unused_categories()
        labelled = labels.notna().to_numpy()
        categories = list(labels.cat.categories)
        if len(categories) < self._fewest_labels:
            raise ValueError(
                f"{type(self).__name__} needs at least {self._fewest_labels} labels, but adata.obs[{labels_key!r}] has "
                f"{len(categories)}: {examples(categories)}."
            )
        self._check_n_cells(int(labelled.sum()))
        size = 8192
        blocks = iter_rows(adata, layer, size)
        self._expression = stack(block[labelled[i * size : (i + 1) * size]] for i, block in enumerate(blocks))
        self._codes = labels.cat.codes.to_numpy()[labelled].astype(int)
        self._genes = AnnData(sp.csr_matrix((0, adata.n_vars)), var=adata.var.copy())
        self.categories_ = categories
        return self

    def predict(
        self,
        target: AnnData,
        orthologs: pd.DataFrame | Mapping[str, str | Sequence[str]] | str | None = None,
        *,
        policy: Policy = "one2one",
        layer: str | None = None,
    ) -> pd.DataFrame:
        """Labels of the target's cells.

        Parameters
        ----------
        target
            Cells of another species or data set, with raw counts unless ``normalize="given"``.
        orthologs
            Which genes correspond, see :func:`transverse.pp.match_orthologs`; by default those of equal name.
        policy
            What to do where a gene has several orthologues.
        layer
            Layer with the counts; ``X`` by default.

        Returns
        -------
        A row per cell, indexed by ``target.obs_names``, with the columns ``label`` (categorical, of the context's labels),
        ``confidence`` and ``novelty``. A cell with no counts on the shared genes has no label, confidence 0 and the highest
        novelty that there is. Neither data set is changed.

        Raises
        ------
        RuntimeError
            If the baseline was not fitted.
        ValueError
            If the matrix does not hold what is expected, or too few genes are shared.
        KeyError
            If the layer does not exist.
        TypeError
            If ``target`` is no AnnData.

        Examples
        --------
        >>> import transverse as tv
        >>> data = tv.datasets.simulate_species("tiny", n_cells=100)
        >>> mouse, human = data["mouse"], data["human"]
        >>> baseline = tv.baselines.NeighborVote(n_neighbors=10).fit(mouse, labels_key="cell_type")
        >>> labels = baseline.predict(human, orthologs=human.uns["orthologs"])
        >>> labels["label"].cat.categories.tolist()
        ['T1a', 'T1b', 'T2a', 'T2b']
        """
        if self.categories_ is None:
            raise RuntimeError(
                f"{type(self).__name__} is not fitted. Call fit(adata, labels_key) with the context first."
            )
        if self.normalize == "given" and policy == "sum":
            raise ValueError(
                "policy='sum' sums counts, but normalize='given' has none. Use policy='one2one' or 'best'."
            )
        check_expression(target, layer, self.normalize, "target")
        match = match_orthologs(self._genes, target, orthologs, policy=policy)
        arguments = {"normalize": self.normalize, "target_sum": self.target_sum}
        context = log_expression([self._expression], match.context_matrix(), **arguments)
        expression = log_expression(iter_rows(target, layer), match.target_matrix(), **arguments)
        usable, scored = has_signal(context), has_signal(expression)
        codes = self._codes[usable]
        if len(missing := np.setdiff1d(np.arange(len(self.categories_)), codes)):
            raise ValueError(
                f"No context cell of {examples(self.categories_[code] for code in missing)} has counts on the "
                f"{match.n_groups} shared genes. Use a table with more orthologues or remove these cells."
            )
        self._check_n_cells(len(codes))

        label = np.full(target.n_obs, -1)
        confidence, novelty = np.zeros(target.n_obs), np.full(target.n_obs, self._most_novel)
        if scored.any():
            label[scored], confidence[scored], novelty[scored] = self._classify(
                context[usable], codes, expression[scored]
            )
        label = pd.Categorical.from_codes(label, categories=self.categories_)
        return pd.DataFrame(
            {"label": label, "confidence": confidence, "novelty": novelty}, index=target.obs_names.copy()
        )

    def _check_n_cells(self, n_cells: int) -> None:
        """Raise a ValueError if there are too few context cells."""
        check_n_neighbors(1, n_cells)

    @abstractmethod
    def _classify(self, context, codes: np.ndarray, target) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Code of the label, confidence and novelty of each target cell."""


class NeighborVote(_LabelBaseline):
    r"""Vote of the nearest context cells on the shared genes.

    The label is the most frequent one among the :math:`k` nearest, the first of equally frequent ones in the order of the
    labels; the confidence is its share :math:`v`, and the novelty :math:`1 - v`. With ``normalize="none"`` and the cosine
    distance this is the data-level search of scSpecies.

    Parameters
    ----------
    n_neighbors
        Context cells that vote.
    metric
        Distance: ``"cosine"``, ``"euclidean"`` or ``"manhattan"``.
    normalize
        What the distance is taken of: ``"total"``, log1p of counts divided by the cell's total over ALL its genes;
        ``"shared"``, by its total over the shared genes; ``"none"``, log1p of raw counts, as the paper has it; ``"given"``,
        the matrix as it is, for data that are already logarithmic.
    target_sum
        Total of a cell's normalised counts.

    Raises
    ------
    ValueError
        If an argument is not understood.

    Examples
    --------
    >>> import transverse as tv
    >>> data = tv.datasets.simulate_species("tiny", n_cells=100)
    >>> mouse, human = data["mouse"], data["human"]
    >>> baseline = tv.baselines.NeighborVote(n_neighbors=10).fit(mouse, "cell_type")
    >>> labels = baseline.predict(human, orthologs=human.uns["orthologs"])
    >>> labels.columns.tolist()
    ['label', 'confidence', 'novelty']
    """

    def __init__(
        self, n_neighbors: int = 25, metric: str = "cosine", normalize: Normalize = "total", target_sum: float = 1e4
    ):
        super().__init__(normalize=normalize, target_sum=target_sum)
        if metric not in (metrics := ("cosine", "euclidean", "manhattan")):
            raise ValueError(f"metric must be one of {', '.join(metrics)}, but got {metric!r}.")
        self.n_neighbors = n_neighbors
        self.metric = metric

    def _check_n_cells(self, n_cells):
        check_n_neighbors(self.n_neighbors, n_cells)

    def _classify(self, context, codes, target):
        classifier = KNeighborsClassifier(self.n_neighbors, metric=self.metric, algorithm="brute")
        with config_context(working_memory=_WORKING_MEMORY):
            shares = classifier.fit(context, codes).predict_proba(target)
        return shares.argmax(axis=1), shares.max(axis=1), 1 - shares.max(axis=1)


class LogisticLabels(_LabelBaseline):
    r"""Multinomial logistic regression on the shared genes.

    The confidence is the highest probability :math:`p`, and the novelty :math:`1 - p`.

    Parameters
    ----------
    class_weight
        ``"balanced"`` gives every label the same weight, None every cell.
    C
        Inverse strength of the L2 penalty.
    max_iter
        Most iterations.
    normalize, target_sum
        As in :class:`NeighborVote`.

    Raises
    ------
    ValueError
        If an argument is not understood.

    Examples
    --------
    >>> import transverse as tv
    >>> data = tv.datasets.simulate_species("tiny", n_cells=100)
    >>> mouse, human = data["mouse"], data["human"]
    >>> baseline = tv.baselines.LogisticLabels().fit(mouse, "cell_type")
    >>> labels = baseline.predict(human, orthologs=human.uns["orthologs"])
    >>> labels.columns.tolist()
    ['label', 'confidence', 'novelty']
    """

    _fewest_labels = 2

    def __init__(
        self,
        class_weight: str | Mapping | None = "balanced",
        C: float = 1.0,
        max_iter: int = 1000,
        normalize: Normalize = "total",
        target_sum: float = 1e4,
    ):
        super().__init__(normalize=normalize, target_sum=target_sum)
        self.class_weight = class_weight
        self.C = C
        self.max_iter = max_iter

    def _classify(self, context, codes, target):
        weight = self.class_weight
        if isinstance(weight, Mapping):
            weight = {code: weight.get(name, 1.0) for code, name in enumerate(self.categories_)}
        classifier = LogisticRegression(C=self.C, class_weight=weight, max_iter=self.max_iter)
        chance = classifier.fit(context, codes).predict_proba(target)
        return chance.argmax(axis=1), chance.max(axis=1), 1 - chance.max(axis=1)


class CentroidLabels(_LabelBaseline):
    r"""The label whose mean expression correlates best with the cell's.

    With :math:`r_c` the Pearson correlation over the shared genes of a cell and the mean of label :math:`c`, the label is
    :math:`\arg\max_c r_c`, the novelty is the distance :math:`1 - \max_c r_c`, from 0 to 2, and the confidence is that label's
    share of :math:`\exp(r_c / \tau)` (ours; it tells how far ahead the best is). The correlation with a constant profile is
    0.

    Parameters
    ----------
    temperature
        :math:`\tau`; the default was chosen on simulated species.
    normalize, target_sum
        As in :class:`NeighborVote`.

    Raises
    ------
    ValueError
        If an argument is not understood.

    Examples
    --------
    >>> import transverse as tv
    >>> data = tv.datasets.simulate_species("tiny", n_cells=100)
    >>> mouse, human = data["mouse"], data["human"]
    >>> baseline = tv.baselines.CentroidLabels().fit(mouse, "cell_type")
    >>> labels = baseline.predict(human, orthologs=human.uns["orthologs"])
    >>> labels.columns.tolist()
    ['label', 'confidence', 'novelty']
    """

    _most_novel = 2.0

    def __init__(self, temperature: float = 0.005, normalize: Normalize = "total", target_sum: float = 1e4):
        super().__init__(normalize=normalize, target_sum=target_sum)
        if not temperature > 0:
            raise ValueError(f"temperature={temperature!r} must be a positive number.")
        self.temperature = temperature

    def _classify(self, context, codes, target):
        members = sp.csr_matrix((np.ones(len(codes)), (codes, np.arange(len(codes)))))
        centroids = members @ context
        centroids = centroids.toarray() if sp.issparse(centroids) else centroids
        centroids /= np.bincount(codes)[:, None]
        centroids -= centroids.mean(axis=1, keepdims=True)
        # centred centroids make the cell's own mean drop out of the product, so that cells stay sparse
        products = np.asarray(target @ centroids.T)
        squares = target.multiply(target) if sp.issparse(target) else target**2
        n_genes = target.shape[1]
        mean = np.asarray(target.mean(axis=1)).ravel()
        norm = np.sqrt(np.maximum(np.asarray(squares.mean(axis=1)).ravel() - mean**2, 0) * n_genes)
        scale = norm[:, None] * np.linalg.norm(centroids, axis=1)
        correlation = np.divide(products, scale, out=np.zeros_like(products), where=scale > 1e-12)
        best = correlation.max(axis=1)
        confidence = softmax(correlation / self.temperature, axis=1).max(axis=1)
        return correlation.argmax(axis=1), confidence, np.clip(1 - best, 0, 2)
