"""How well genes of one species were mapped to those of another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral

import numpy as np
import pandas as pd

from transverse._validation import examples

from ._expected_rank import expected_hit, expected_reciprocal_rank

_ROWS = 1024


def gene_map_scores(
    gene_map: pd.DataFrame | np.ndarray,
    truth: pd.DataFrame | pd.Series | Mapping[str, str | Sequence[str]],
    *,
    k: int | Sequence[int] = (1, 10),
    genes: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    n_candidates: int | None = None,
) -> pd.DataFrame:
    r"""Scores of a map of genes against the true orthologues, beside what chance gives.

    For every source gene :math:`g` with true targets, the place :math:`r_g` of the best of these in the list of its
    candidates counts, infinite where none is in the list:

    .. math::
        \text{recall@}k = \frac{1}{|G|} \sum_{g \in G} [r_g \le k], \qquad
        \text{mrr} = \frac{1}{|G|} \sum_{g \in G} \frac{1}{r_g}.

    Ties are not broken: each score is its mean over all orders of the tied candidates. Chance is the mean over all orders of
    all candidates: for :math:`t` true ones of :math:`N`,
    :math:`1 - \binom{N - t}{k} / \binom{N}{k}` for recall, which is :math:`k / N` for a single one.

    Parameters
    ----------
    gene_map
        Either a long table, as ``map_genes`` returns it, with the columns ``source``, ``target`` and ``score`` (higher is
        better), ``rank`` (1 is best) or both: then the rank is the order, and neighbours in it of equal score are tied. Or
        a wide table or array of scores, source genes x target genes; the genes of an array are their positions. Candidates
        whose score is missing are not in the list.
    truth
        True targets of the source genes: a table with the columns ``source`` and ``target``, a mapping from a source gene
        to its target or targets, or a Series of targets by source gene. Where a gene has several, any of them is a hit.
    k
        Lengths of the lists for recall.
    genes
        Source genes to score, or several such lists by name; by default all that have a true target. Genes without one are
        left out.
    n_candidates
        Number of target genes that were to choose from, for ``chance``. By default the target genes of a wide table, and the
        distinct ones of a long table, which are too few if it holds short lists only.

    Returns
    -------
    A row per score with the columns ``genes`` (name of the list, ``"all"`` by default), ``metric``, ``value``, ``chance``
    and ``n`` (number of genes scored). The metrics are ``recall@k`` for each ``k``, ``mrr``, ``n_genes`` (genes scored) and
    ``n_unmapped`` (those of them that ``gene_map`` has no candidates for, which count as misses). The input is not changed.

    Raises
    ------
    ValueError
        If the map is empty, holds a pair twice or no source gene of ``truth``, if ``truth`` is empty, or ``k`` or
        ``n_candidates`` is out of range.
    KeyError
        If a table lacks a column.
    TypeError
        If an argument has another type.

    Examples
    --------
    >>> import pandas as pd
    >>> import transverse as tv
    >>> gene_map = pd.DataFrame({"source": ["Alb", "Alb"], "target": ["TTR", "ALB"], "rank": [1, 2]})
    >>> scores = tv.metrics.gene_map_scores(gene_map, {"Alb": "ALB"}, k=1)
    >>> scores["metric"].tolist(), scores["value"].tolist()
    (['recall@1', 'mrr', 'n_genes', 'n_unmapped'], [0.0, 0.5, 1.0, 0.0])
    """
    lengths = [k] if isinstance(k, Integral) else list(k)
    for length in lengths:
        _check_positive(length, "k")
    if not lengths:
        raise ValueError("k must name at least one length, but is empty.")
    pairs = true_pairs(truth)
    sources = pd.Index(pairs["source"].unique())
    lists = _gene_lists(genes, sources)
    if isinstance(gene_map, pd.DataFrame) and {"source", "target"} & set(gene_map.columns):
        table = _long_table(gene_map)
        mapped, candidates = pd.Index(table["source"].unique()), pd.Index(table["target"].unique())
    else:
        table = None
        wide = _wide_table(gene_map)
        mapped, candidates = wide.index[wide.notna().any(axis=1)], wide.columns
    if n_candidates is not None:
        _check_positive(n_candidates, "n_candidates")
        if n_candidates < len(candidates):
            raise ValueError(
                f"n_candidates={n_candidates} is fewer than the {len(candidates)} target genes of gene_map."
            )
    if not sources.isin(mapped).any():
        raise ValueError(
            f"gene_map has none of the source genes of truth. It has: {examples(mapped)}; truth: {examples(sources)}."
        )

    ties = _ties_long(table, pairs) if table is not None else _ties_wide(wide, pairs)
    ties = ties.reindex(sources, fill_value=0)
    n_listed = pairs["target"].isin(candidates) if n_candidates is None else pd.Series(True, index=pairs.index)
    n_true = n_listed.groupby(pairs["source"]).sum().reindex(sources).to_numpy()
    n_all = np.full(len(sources), n_candidates or len(candidates))
    n_true = np.minimum(n_true, n_all)
    values, chances = {}, {}
    for scores, cases in ((values, ties.to_numpy().T), (chances, (np.zeros_like(n_all), n_all, n_true))):
        scores.update({f"recall@{length}": expected_hit(*cases, length) for length in lengths})
        scores["mrr"] = expected_reciprocal_rank(*cases)

    rows = []
    for name, wanted in lists.items():
        chosen = sources.isin(wanted)
        n = int(chosen.sum())
        for metric, value in values.items():
            rows.append((name, metric, float(value[chosen].mean()), float(chances[metric][chosen].mean()), n))
        rows.append((name, "n_genes", float(n), np.nan, n))
        rows.append((name, "n_unmapped", float((~sources[chosen].isin(mapped)).sum()), np.nan, n))
    return pd.DataFrame(rows, columns=["genes", "metric", "value", "chance", "n"])


def _check_positive(value: int, name: str) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r} must be a whole number of at least 1.")


def true_pairs(truth: object) -> pd.DataFrame:
    """Each true pair once, as columns ``source`` and ``target``."""
    if isinstance(truth, pd.DataFrame):
        if missing := [column for column in ("source", "target") if column not in truth]:
            raise KeyError(
                f"truth lacks the columns {missing}. It has: {examples(truth.columns, 20)}. Rename them, for example "
                "truth.rename(columns={'context': 'source'})."
            )
        pairs = truth[["source", "target"]]
    elif isinstance(truth, pd.Series):
        pairs = pd.DataFrame({"source": truth.index, "target": truth.to_numpy()})
    elif isinstance(truth, Mapping):
        targets = [sorted(value) if isinstance(value, set | frozenset) else value for value in truth.values()]
        pairs = pd.DataFrame({"source": list(truth), "target": pd.Series(targets, dtype=object)})
    else:
        raise TypeError(
            "truth must be a DataFrame with the columns source and target, a Series or a mapping, but got "
            f"{type(truth).__name__}."
        )
    pairs = pairs.astype(object).explode("target").dropna().drop_duplicates(ignore_index=True)
    if pairs.empty:
        raise ValueError("truth is empty: it has no row with both a source and a target gene.")
    return pairs


def _gene_lists(genes: object, sources: pd.Index) -> dict[str, list]:
    if genes is None:
        return {"all": list(sources)}
    if isinstance(genes, str):
        raise TypeError(
            f"genes must be a list of source genes or a mapping of such lists, but got the string {genes!r}."
        )
    lists = {name: list(wanted) for name, wanted in (genes if isinstance(genes, Mapping) else {"all": genes}).items()}
    for name, wanted in lists.items():
        if not sources.isin(wanted).any():
            raise ValueError(
                f"None of the genes of {name!r} has a true target. genes: {examples(wanted)}; truth: {examples(sources)}."
            )
    return lists


def _long_table(gene_map: pd.DataFrame) -> pd.DataFrame:
    """The map sorted by source gene and place, without candidates that have none."""
    if missing := [column for column in ("source", "target") if column not in gene_map]:
        raise KeyError(f"gene_map lacks the columns {missing}. It has: {examples(gene_map.columns, 20)}.")
    keys = [column for column in ("rank", "score") if column in gene_map]
    if not keys:
        raise KeyError(f"gene_map lacks a column rank or score. It has: {examples(gene_map.columns, 20)}.")
    if gene_map.empty:
        raise ValueError("gene_map is empty.")
    table = gene_map[["source", "target", *keys]].astype({"source": object, "target": object})
    for key in keys:
        if not pd.api.types.is_numeric_dtype(table[key]):
            raise TypeError(f"The column {key!r} of gene_map must hold numbers, but its type is {table[key].dtype}.")
    if (repeated := table.duplicated(["source", "target"])).any():
        shown = (f"{s} -> {t}" for s, t in table.loc[repeated, ["source", "target"]].to_numpy())
        raise ValueError(f"gene_map must hold each pair once, but these repeat: {examples(shown)}.")
    table = table.dropna(subset=["source", "target", keys[0]])
    place = table[keys[0]].to_numpy(dtype=float) * (1 if keys[0] == "rank" else -1)
    return table.iloc[np.lexsort((place, pd.factorize(table["source"])[0]))].reset_index(drop=True)


def _wide_table(gene_map: object) -> pd.DataFrame:
    if not isinstance(gene_map, pd.DataFrame | np.ndarray):
        raise TypeError(
            "gene_map must be a long table with the columns source and target, or a wide table or array of scores, but got "
            f"{type(gene_map).__name__}."
        )
    if gene_map.ndim != 2 or 0 in gene_map.shape:
        raise ValueError(f"gene_map must have the shape (source genes, target genes), but has {gene_map.shape}.")
    wide = pd.DataFrame(gene_map)
    if not all(pd.api.types.is_numeric_dtype(dtype) for dtype in wide.dtypes.unique()):
        raise TypeError(
            "gene_map must hold numbers, source genes x target genes, or have the columns source and target; its columns "
            f"are: {examples(wide.columns)}."
        )
    for names, axis in ((wide.index, "source"), (wide.columns, "target")):
        if not names.is_unique:
            raise ValueError(f"The {axis} genes of gene_map repeat: {examples(names[names.duplicated()].unique())}.")
    return wide


def _ties_long(table: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """Of each source gene's first tied candidates that hold a true one: how many are better, tied, and true."""
    source = table["source"].to_numpy()
    new_source = np.append(True, source[1:] != source[:-1])
    new_tie = ~np.logical_or.reduce(
        [table[key].to_numpy()[1:] == table[key].to_numpy()[:-1] for key in ("rank", "score") if key in table]
    )
    tie = np.cumsum(new_source | np.append(True, new_tie)) - 1
    place = np.arange(len(table)) - np.flatnonzero(new_source)[np.cumsum(new_source) - 1]
    is_true = pd.MultiIndex.from_frame(table[["source", "target"]]).isin(pd.MultiIndex.from_frame(pairs))
    frame = pd.DataFrame({"source": source, "tie": tie, "place": place, "is_true": is_true})
    frame = frame.groupby("tie").agg(
        source=("source", "first"), better=("place", "min"), size=("place", "size"), n_true=("is_true", "sum")
    )
    return frame[frame["n_true"] > 0].drop_duplicates("source").set_index("source")


def _ties_wide(wide: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """The same of a wide table, a block of source genes at a time."""
    row = wide.index.get_indexer(pd.Index(pairs["source"]))
    column = wide.columns.get_indexer(pd.Index(pairs["target"]))
    row, column = row[(row >= 0) & (column >= 0)], column[(row >= 0) & (column >= 0)]
    parts = []
    rows = np.unique(row)
    for start in range(0, len(rows), _ROWS):
        block = rows[start : start + _ROWS]
        scores = wide.iloc[block].to_numpy(dtype=float, na_value=np.nan)
        here = np.isin(row, block)
        at = np.searchsorted(block, row[here])
        of_true = scores[at, column[here]]
        best = np.full(len(block), -np.inf)
        np.fmax.at(best, at, of_true)
        listed = np.bincount(at, ~np.isnan(of_true), minlength=len(block)) > 0
        parts.append(
            pd.DataFrame(
                {
                    "better": (scores > best[:, None]).sum(axis=1),
                    "size": (scores == best[:, None]).sum(axis=1),
                    "n_true": np.bincount(at, of_true == best[at], minlength=len(block)).astype(int),
                },
                index=wide.index[block],
            )[listed]
        )
    if not parts:
        return pd.DataFrame({"better": [], "size": [], "n_true": []}, dtype=int)
    return pd.concat(parts)
