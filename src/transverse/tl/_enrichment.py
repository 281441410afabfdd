"""Whether a list of genes holds more of a gene set than chance would put there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control, hypergeom

from transverse._validation import examples


def enrichment(
    genes: Iterable[str],
    gene_sets: Iterable[str] | Mapping[str, Iterable[str]],
    background: Iterable[str],
) -> pd.DataFrame:
    r"""Test whether genes are enriched for gene sets, by the hypergeometric distribution.

    Of :math:`n` genes drawn at random, without replacement, from a background of :math:`N` genes of which :math:`K` are
    in the set, :math:`k` or more are in the set with probability

    .. math::

        p = P(X \ge k) = \sum_{i = k}^{\min(n, K)} \binom{K}{i} \binom{N - K}{n - i} \Big/ \binom{N}{n}.

    Parameters
    ----------
    genes
        The genes to test, such as the strongest targets of a regulator. Each counts once.
    gene_sets
        One gene set, or several by name. Genes outside the background are ignored.
    background
        All genes that could have been among ``genes``, such as ``adata.var_names``. A background that is larger than that
        makes everything look enriched.

    Returns
    -------
    DataFrame with a row per gene set, in the order given, named by the set (one without a name: ``"gene_set"``):

    - ``n_genes``: :math:`n`
    - ``n_set``: :math:`K`, genes of the set in the background
    - ``overlap``: :math:`k`
    - ``expected``: :math:`n K / N`
    - ``fold_enrichment``: overlap / expected
    - ``p_value``: :math:`p`, one-sided
    - ``p_adjusted``: adjusted for the number of gene sets, by Benjamini and Hochberg
    - ``genes``: list of the genes in the overlap, in the order given

    A set without genes in the background cannot be tested: its ``fold_enrichment``, ``p_value`` and ``p_adjusted`` are
    NaN, and the others are not adjusted for it.

    Raises
    ------
    TypeError
        If genes are given as one string.
    ValueError
        If there are no genes or gene sets, genes are not in the background, or no gene set has a gene in it.

    Examples
    --------
    >>> import transverse as tv
    >>> background = [f"G{i}" for i in range(100)]
    >>> table = tv.tl.enrichment(["G1", "G2", "G50"], {"first ten": background[:10]}, background)
    >>> table["overlap"].to_dict()
    {'first ten': 2}
    """
    for argument, value in {"genes": genes, "gene_sets": gene_sets, "background": background}.items():
        _refuse_string(argument, value)
    genes = list(dict.fromkeys(genes))
    background = dict.fromkeys(background)
    sets = gene_sets if isinstance(gene_sets, Mapping) else {"gene_set": gene_sets}
    if not genes:
        raise ValueError("genes is empty: there is nothing to test.")
    if not sets:
        raise ValueError("gene_sets is empty: there is nothing to test for.")
    if outside := [gene for gene in genes if gene not in background]:
        raise ValueError(
            f"{len(outside)} of the {len(genes)} genes are not in the background: {examples(outside)}. The background must "
            f"have all genes that could have been found; it has, for example: {examples(background)}."
        )
    given, rows = [], []
    for name, members in sets.items():
        _refuse_string(f"gene_sets[{name!r}]", members)
        members = set(members)
        given += sorted(map(str, members))[:5]
        members &= background.keys()
        found = [gene for gene in genes if gene in members]
        rows.append({"n_genes": len(genes), "n_set": len(members), "overlap": len(found), "genes": found})
    table = pd.DataFrame(rows, index=pd.Index(list(sets), dtype=object))
    if not table["n_set"].any():
        raise ValueError(
            f"No gene set has a gene in the background. The sets have, for example: {examples(given[:5])}; the background: "
            f"{examples(background)}. Are the names of one kind?"
        )
    tested = table["n_set"] > 0
    table["expected"] = len(genes) * table["n_set"] / len(background)
    table["fold_enrichment"] = table["overlap"] / table["expected"].where(tested)
    p = hypergeom.sf(table["overlap"] - 1, len(background), table["n_set"], len(genes))
    table["p_value"] = np.where(tested, p, np.nan)
    table["p_adjusted"] = np.nan
    table.loc[tested, "p_adjusted"] = false_discovery_control(table.loc[tested, "p_value"])
    return table[[*(key for key in table if key != "genes"), "genes"]]


def _refuse_string(argument: str, value) -> None:
    if isinstance(value, str):
        raise TypeError(f"{argument} must be a list of genes, but got the string {value!r}.")
