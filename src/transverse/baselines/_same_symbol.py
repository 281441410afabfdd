"""Genes of two species that have the same name."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from anndata import AnnData

from transverse._validation import examples

from ._species import check_fitted, check_known, check_n_top, species_blocks


class SameSymbol:
    """Genes of equal name, but for their case.

    Where a target gene has exactly the source's name it is the only one. The score is always 1.

    Parameters
    ----------
    symbol_key
        Column of ``var`` with the names to compare; by default the names of the genes (``var_names``).

    Examples
    --------
    >>> import transverse as tv
    >>> data = tv.datasets.simulate_reactomes(n_genes=50, n_organs=4, n_animals=3)
    >>> gene_map = tv.baselines.SameSymbol(symbol_key="symbol").fit(data)
    >>> gene_map.map_genes("mouse", "rat").columns.tolist()
    ['source', 'target', 'score', 'rank']
    """

    def __init__(self, symbol_key: str | None = None):
        self.symbol_key = symbol_key
        self._symbols: dict[str, pd.Series] = {}

    def fit(
        self,
        adata: AnnData | Mapping[str, AnnData],
        *,
        species_key: str = "species",
        organ_key: str | None = None,
        drug_key: str | None = None,
        control: str | None = None,
        layer: str | None = None,
    ) -> SameSymbol:
        """Take the names of the genes; the expression is not read.

        Parameters
        ----------
        adata
            A mapping from species to data, each with its own genes, or stacked data with the species of each sample in
            ``obs[species_key]`` and of each gene in ``var[species_key]``.
        species_key
            That column.
        organ_key, drug_key, control, layer
            Not used; taken so that all gene maps are called alike.

        Returns
        -------
        The baseline itself.

        Raises
        ------
        ValueError
            If gene names repeat within a species, or the species of samples and genes differ.
        KeyError
            If a column does not exist.
        TypeError
            If ``adata`` is of another type.

        Examples
        --------
        >>> names = tv.baselines.SameSymbol().fit(data)
        >>> len(names.map_genes("mouse", "rat"))  # by var_names, which no two of these species share
        0
        """
        symbols = {}
        for name, block in species_blocks(adata, species_key).items():
            if self.symbol_key is None:
                symbols[name] = pd.Series(block.var_names, index=block.var_names, dtype=object)
                continue
            if self.symbol_key not in block.var:
                raise KeyError(
                    f"symbol_key={self.symbol_key!r} is not in the var of {name!r}. Columns: "
                    f"{examples(block.var.columns, 20)}."
                )
            symbols[name] = block.var[self.symbol_key].astype(object).dropna()
        self._symbols = symbols
        return self

    def map_genes(self, source: str, target: str, n_top: int = 10) -> pd.DataFrame:
        """Target genes of the same name for each source gene that has any.

        Parameters
        ----------
        source, target
            Species.
        n_top
            Most target genes for a source gene.

        Returns
        -------
        A row per pair with the columns ``source``, ``target``, ``score`` and ``rank`` (1 is best), in the order of the
        source genes.

        Raises
        ------
        RuntimeError
            If the baseline was not fitted.
        KeyError
            If a species is not known.
        ValueError
            If ``n_top`` is not a whole number of at least 1.

        Examples
        --------
        >>> table = gene_map.map_genes("mouse", "rat")
        >>> table["score"].unique().tolist(), int(table["rank"].max())
        ([1.0], 1)
        """
        check_n_top(n_top)
        sides = []
        check_fitted(self, self._symbols)
        for argument, species in (("source", source), ("target", target)):
            check_known(species, self._symbols, argument)
            names = self._symbols[species]
            text = names.astype(str).to_numpy()
            sides.append(pd.DataFrame({argument: names.index, f"{argument}_symbol": text}))
            sides[-1]["key"] = sides[-1][f"{argument}_symbol"].str.casefold()
        pairs = sides[0].assign(order=np.arange(len(sides[0]))).merge(sides[1], on="key")
        exact = (pairs["source_symbol"] == pairs["target_symbol"]).to_numpy()
        has_exact = pairs["order"].isin(pairs["order"][exact]).to_numpy()
        pairs = pairs[exact | ~has_exact].sort_values("order", kind="stable", ignore_index=True)
        pairs["rank"] = pairs.groupby("order").cumcount() + 1
        pairs["score"] = 1.0
        return pairs.loc[pairs["rank"] <= n_top, ["source", "target", "score", "rank"]].reset_index(drop=True)

    def scores(self, source: str, target: str) -> pd.DataFrame:
        """Scores of all pairs, source genes x target genes: 1 for those of the same name, NaN for all others.

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

        Examples
        --------
        >>> gene_map.scores("mouse", "rat").shape
        (50, 50)
        """
        pairs = self.map_genes(source, target, n_top=2**31)
        index, columns = self._symbols[source].index, self._symbols[target].index
        values = np.full((len(index), len(columns)), np.nan, dtype=np.float32)
        values[index.get_indexer(pairs["source"]), columns.get_indexer(pairs["target"])] = 1.0
        return pd.DataFrame(values, index=index, columns=columns)
