"""Genes of two species that respond alike."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Literal, get_args

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.spatial.distance import cdist

from transverse._validation import examples

from ._reactome import reactome
from ._shared_features import Normalize, check_normalize
from ._species import check_fitted, check_known, check_n_top, species_blocks

Metric = Literal["pearson", "euclidean"]

_ROWS = 512


class ReactomeCorrelation:
    r"""Genes that respond alike: similarity of their reactomes (Chen et al., 2024).

    The reactome of gene :math:`g` holds, for organ :math:`o` and drug :math:`k`, the change of its mean log expression,

    .. math::
        \Delta_{g,o,k} = \frac{1}{|T_{o,k}|} \sum_{i \in T_{o,k}} y_{ig} - \frac{1}{|C_o|} \sum_{i \in C_o} y_{ig},

    over the treated samples :math:`T` and the controls :math:`C` of the same species; :math:`y` is
    :math:`\log(1 + \text{counts} \cdot S / \text{total})`. The paper names the entries but gives no formula: this one is ours.
    Without drugs, the mean log expression in each organ takes its place. Only entries that both species have are compared.

    Parameters
    ----------
    metric
        ``"pearson"``: correlation of two genes' entries. ``"euclidean"``: minus their distance, which also tells genes of
        high and low level apart.
    standardize
        Bring each entry to mean 0 and variance 1 over the genes of a species, so that no organ or drug outweighs the others
        and the scale of a species does not matter. None does so where there are no drugs: entries of a reactome are
        differences already, on which it was a little worse.
    normalize
        ``"total"`` for raw counts, or ``"given"`` to take the matrix as it is, for expression that is logarithmic already.
    target_sum
        :math:`S`, the total of a sample's normalised counts.
    min_samples
        Fewest samples that an entry needs: of the drug in the organ, and of the organ's controls.

    Raises
    ------
    ValueError
        If an argument is not understood.

    Examples
    --------
    >>> import transverse as tv
    >>> data = tv.datasets.simulate_reactomes(n_genes=50, n_organs=4, n_animals=3)
    >>> gene_map = tv.baselines.ReactomeCorrelation(normalize="given").fit(data)
    >>> table = gene_map.map_genes("mouse", "rat", n_top=5)
    >>> table.shape
    (250, 4)
    """

    def __init__(
        self,
        metric: Metric = "pearson",
        standardize: bool | None = None,
        *,
        normalize: Normalize = "total",
        target_sum: float = 1e6,
        min_samples: int = 1,
    ):
        if metric not in get_args(Metric):
            raise ValueError(f"metric must be one of {', '.join(get_args(Metric))}, but got {metric!r}.")
        check_normalize(normalize, target_sum)
        if normalize not in ("total", "given"):
            raise ValueError(f"normalize must be 'total' or 'given', but got {normalize!r}.")
        if not isinstance(min_samples, Integral) or isinstance(min_samples, bool) or min_samples < 1:
            raise ValueError(f"min_samples={min_samples!r} must be a whole number of at least 1.")
        self.metric = metric
        self.standardize = standardize
        self.normalize = normalize
        self.target_sum = target_sum
        self.min_samples = min_samples
        self.reactomes_: dict[str, pd.DataFrame] = {}
        """After :meth:`fit`, the reactome of each species: genes x (organ, drug), or genes x organs."""

    def fit(
        self,
        adata: AnnData | Mapping[str, AnnData],
        *,
        species_key: str = "species",
        organ_key: str = "organ",
        drug_key: str | None = "drug",
        control: str = "control",
        layer: str | None = None,
    ) -> ReactomeCorrelation:
        """Compute the reactome of each species, into ``reactomes_``.

        Parameters
        ----------
        adata
            A mapping from species to data, each with its own genes, or stacked data with the species of each sample in
            ``obs[species_key]`` and of each gene in ``var[species_key]``.
        species_key
            That column.
        organ_key, drug_key
            Columns of ``obs`` with the organ and the drug of each sample. Without drugs (None) the organ means are the
            profile.
        control
            The value of ``drug_key`` that means no drug.
        layer
            Layer with the counts; ``X`` by default.

        Returns
        -------
        The baseline itself. The data are not changed.

        Raises
        ------
        ValueError
            If the matrix does not hold what is expected, a species has no controls, or no entry has enough samples.
        KeyError
            If a column or the layer does not exist.
        TypeError
            If ``adata`` is of another type.

        Warns
        -----
        UserWarning
            If entries rest on a single sample.

        Examples
        --------
        >>> gene_map = tv.baselines.ReactomeCorrelation().fit(data, layer="counts")
        >>> list(gene_map.reactomes_)
        ['mouse', 'rat']
        """
        arguments = {"organ_key": organ_key, "drug_key": drug_key, "control": control, "layer": layer}
        arguments |= {"normalize": self.normalize, "target_sum": self.target_sum, "min_samples": self.min_samples}
        blocks = species_blocks(adata, species_key)
        self.reactomes_ = {name: reactome(block, name, **arguments) for name, block in blocks.items()}
        return self

    def map_genes(self, source: str, target: str, n_top: int = 10) -> pd.DataFrame:
        """The most similar target genes of each source gene.

        Parameters
        ----------
        source, target
            Species.
        n_top
            Number of target genes for a source gene.

        Returns
        -------
        A row per pair with the columns ``source``, ``target``, ``score`` (higher is more similar) and ``rank`` (1 is best),
        in the order of the source genes. Genes whose similarity is not defined, as the correlation of a gene that is the
        same everywhere, are absent.

        Raises
        ------
        RuntimeError
            If the baseline was not fitted.
        KeyError
            If a species is not known.
        ValueError
            If the species have too few entries in common, or ``n_top`` is not a whole number of at least 1.

        Examples
        --------
        >>> table = gene_map.map_genes("mouse", "rat", n_top=1)
        >>> scores = tv.metrics.gene_map_scores(table, data["rat"].uns["gene_map"], k=1)
        >>> scores["metric"].tolist()
        ['recall@1', 'mrr', 'n_genes', 'n_unmapped']
        """
        check_n_top(n_top)
        profiles = self._profiles(source, target)
        genes = [self.reactomes_[name].index.to_numpy() for name in (source, target)]
        n_top = min(n_top, len(genes[1]))
        parts = []
        for start in range(0, len(genes[0]), _ROWS):
            rows = slice(start, start + _ROWS)
            scores = np.nan_to_num(self._similarity(profiles[0][rows], profiles[1]), nan=-np.inf)
            top = np.sort(np.argpartition(-scores, n_top - 1, axis=1)[:, :n_top], axis=1)
            top = np.take_along_axis(
                top, np.argsort(-np.take_along_axis(scores, top, axis=1), axis=1, kind="stable"), axis=1
            )
            parts.append(
                pd.DataFrame(
                    {
                        "source": np.repeat(genes[0][rows], n_top),
                        "target": genes[1][top.ravel()],
                        "score": np.take_along_axis(scores, top, axis=1).ravel(),
                        "rank": np.tile(np.arange(1, n_top + 1), len(top)),
                    }
                )
            )
        table = pd.concat(parts, ignore_index=True)
        return table[np.isfinite(table["score"])].reset_index(drop=True)

    def scores(self, source: str, target: str) -> pd.DataFrame:
        """Similarities of all pairs, source genes x target genes; NaN where not defined.

        Parameters
        ----------
        source, target
            Species.

        Raises
        ------
        RuntimeError
            If the baseline was not fitted.
        KeyError
            If a species is not known.
        ValueError
            If the species have too few entries in common.

        Examples
        --------
        >>> gene_map.scores("mouse", "rat").shape
        (50, 50)
        """
        profiles = self._profiles(source, target)
        values = np.empty((len(profiles[0]), len(profiles[1])))
        for start in range(0, len(values), _ROWS):
            rows = slice(start, start + _ROWS)
            values[rows] = self._similarity(profiles[0][rows], profiles[1])
        return pd.DataFrame(
            values, index=self.reactomes_[source].index.copy(), columns=self.reactomes_[target].index.copy()
        )

    def _profiles(self, source: str, target: str) -> tuple[np.ndarray, np.ndarray]:
        """Profiles on the common entries, ready for :meth:`_similarity`."""
        check_fitted(self, self.reactomes_)
        check_known(source, self.reactomes_, "source")
        check_known(target, self.reactomes_, "target")
        tables = self.reactomes_[source], self.reactomes_[target]
        common = [entry for entry in tables[0] if entry in tables[1]]
        if len(common) < (needed := 2 if self.metric == "pearson" else 1):
            raise ValueError(
                f"{source!r} and {target!r} have {len(common)} entries in common, but metric={self.metric!r} needs at least "
                f"{needed}. {source!r} has: {examples(tables[0])}; {target!r}: {examples(tables[1])}."
            )
        profiles = [table[common].to_numpy() for table in tables]
        standardize = tables[0].columns.nlevels == 1 if self.standardize is None else self.standardize
        if standardize:
            profiles = [_standardize(values, axis=0, of_constant=1.0) for values in profiles]
        if self.metric == "pearson":
            profiles = [_standardize(values, axis=1, of_constant=np.nan) for values in profiles]
        return profiles[0], profiles[1]

    def _similarity(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        if self.metric == "euclidean":
            return -cdist(source, target)
        # so that genes of equal profiles are tied, whatever the order in which the product was summed
        return np.round(source @ target.T / target.shape[1], 12)


def _standardize(values: np.ndarray, axis: int, of_constant: float) -> np.ndarray:
    centered = values - values.mean(axis=axis, keepdims=True)
    spread = centered.std(axis=axis, keepdims=True)
    scale = np.abs(values).max(axis=axis, keepdims=True)
    return centered / np.where(spread > 1e-10 * scale, spread, of_constant)
