"""Match the genes of two data sets by an orthologue table, a ``.var`` column, or their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from typing import get_args

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from ._ortholog_match import OrthologMatch, Policy
from ._read_orthologs import ENSEMBL_GENE, examples, identifiers

_LOW_SHARE = 0.1


def match_orthologs(
    context: AnnData | Sequence[str] | pd.Index,
    target: AnnData | Sequence[str] | pd.Index,
    orthologs: pd.DataFrame | Mapping[str, str | Sequence[str]] | str | None = None,
    *,
    policy: Policy = "one2one",
    min_genes: int | None = None,
) -> OrthologMatch:
    r"""Match the genes of two data sets.

    Parameters
    ----------
    context, target
        The two data sets, or their gene names. Names must be unique.
    orthologs
        Which genes are orthologues; many-to-many is allowed. One of

        - a table with the columns `context` and `target` (else its first two) and optionally `score` (higher is
          better), see :func:`read_orthologs`;
        - a mapping from a context gene to a target gene, or to several;
        - the name of a column of `.var`. In both data sets: genes of equal value are orthologues (a shared group id).
          In the target's only: it names each gene's context gene. In the context's only: it names each gene's target
          gene. Missing and empty values are skipped;
        - `None`: equal names, then, among the genes left on both sides, names that are equal but for their case.

        Where an Ensembl gene id is not found as it stands, it is looked up without its version
        (``ENSG00000000003.15``).
    policy
        What to do where a gene has several orthologues, once genes that are not measured are left out:

        - ``"one2one"``: keep the pairs of which each gene occurs in no other.
        - ``"best"``: one pair per gene, chosen greedily: highest score, then names equal but for their case, then the
          order of the table.
        - ``"sum"``: genes that are linked, directly or through others, form one group, of which the counts are summed.
    min_genes
        Fewest groups to accept. `None` accepts any match that is not empty.

    Returns
    -------
    The match, an :class:`OrthologMatch`. The inputs are not changed.

    Raises
    ------
    ValueError
        If gene names are repeated, the table is empty, an argument is unknown, or too few genes are shared.
    KeyError
        If no data set has the column of `.var`.
    TypeError
        If gene names are not strings, or `orthologs` is of another type.

    Notes
    -----
    With :math:`X` (cells x genes) and :math:`M` of :meth:`OrthologMatch.context_matrix`, the shared features of the
    context are :math:`X M`, in the same column order as those of the target.

    Examples
    --------
    >>> import transverse as tv
    >>> match = tv.pp.match_orthologs(["Cd3e", "Lyz1", "Lyz2"], ["CD3E", "LYZ"], {"Cd3e": "CD3E", "Lyz2": "LYZ"})
    >>> match.n_groups
    2
    """
    if policy not in get_args(Policy):
        raise ValueError(f"policy must be one of {', '.join(get_args(Policy))}, but got {policy!r}.")
    context_genes, target_genes = _gene_names(context, "context"), _gene_names(target, "target")

    table = None
    if orthologs is None:
        source, edges = "names", _edges_by_name(context_genes, target_genes)
    elif isinstance(orthologs, str):
        source = f".var[{orthologs!r}]"
        table, edges = _edges_by_column(context, target, context_genes, target_genes, orthologs)
    else:
        source, table = "table", _as_table(orthologs)
        edges = _edges_by_table(table, context_genes, target_genes)
    # names that differ in their version only are the same gene: the pair counts once, with its best score
    edges = edges.groupby(["context_index", "target_index"], sort=False, as_index=False)["score"].max()

    pairs = _apply_policy(edges, context_genes, target_genes, policy)
    n_table_pairs = len(edges) if table is None else len(table)
    match = OrthologMatch(pairs, context_genes, target_genes, policy, source, n_table_pairs, len(edges))

    needed = max(1, min_genes or 1)
    # a small gene panel beside a whole transcriptome is no sign of a mistake: the larger share counts
    if match.n_groups < needed or max(match.context_share, match.target_share) < _LOW_SHARE:
        match = replace(match, hint=_hint(match, table))
    if match.n_groups < needed:
        raise ValueError(_too_few(match, table, needed))
    return match


def _gene_names(data: AnnData | Sequence[str] | pd.Index, side: str) -> pd.Index:
    accepted = AnnData | Sequence | pd.Index | pd.Series | pd.api.extensions.ExtensionArray | np.ndarray
    if not isinstance(data, accepted) or isinstance(data, str | bytes):
        raise TypeError(f"{side} must be an AnnData or a sequence of gene names, but got {type(data).__name__}.")
    names = pd.Index(np.asarray(data.var_names if isinstance(data, AnnData) else data, dtype=object), dtype=object)
    others = [name for name in names if not isinstance(name, str)]
    if others:
        raise TypeError(
            f"The gene names of {side} must be strings, but got {type(others[0]).__name__}: {examples(others)}."
        )
    if not len(names):
        raise ValueError(f"{side} has no genes.")
    if not names.is_unique:
        repeated = names[names.duplicated()].unique()
        raise ValueError(
            f"The gene names of {side} must be unique, but these are repeated: {examples(repeated)}. "
            "Make them unique, for example with `adata.var_names_make_unique()`, which renames all but the first of each; Ensembl ids as names lose none."
        )
    return names


def _as_table(orthologs: object) -> pd.DataFrame:
    """`context`, `target` (no missing values) and `score`, each pair once."""
    score = None
    if isinstance(orthologs, pd.DataFrame):
        if {"context", "target"} <= set(orthologs.columns):
            sides = orthologs["context"], orthologs["target"]
        elif orthologs.shape[1] < 2:
            raise ValueError(
                "The orthologue table needs two columns (context gene, target gene), but it has "
                f"{orthologs.shape[1]}: {examples(orthologs.columns)}."
            )
        else:
            sides = orthologs.iloc[:, 0], orthologs.iloc[:, 1]
        if "score" in orthologs:
            try:
                score = pd.to_numeric(orthologs["score"]).to_numpy(dtype=float, na_value=np.nan)
            except (TypeError, ValueError) as error:
                raise ValueError(f"The column 'score' of the orthologue table must be numeric: {error}.") from error
    elif isinstance(orthologs, Mapping):
        # a set has no order of its own that would be the same in every run
        genes = [sorted(value) if isinstance(value, Set) else value for value in orthologs.values()]
        long = pd.DataFrame({"context": list(orthologs), "target": genes}, dtype=object).explode("target")
        sides = long["context"], long["target"]
    else:
        raise TypeError(
            "orthologs must be a DataFrame, a mapping from context gene to target gene(s), the name of a .var column, "
            f"or None, but got {type(orthologs).__name__}."
        )
    names = {"context": identifiers(sides[0]).to_numpy(), "target": identifiers(sides[1]).to_numpy()}
    table = pd.DataFrame(names, dtype=object).assign(score=np.nan if score is None else score)
    table = table.dropna(subset=["context", "target"])
    if table.empty:
        raise ValueError("The orthologue table is empty: it has no row with both a context and a target gene.")
    return table.groupby(["context", "target"], sort=False, as_index=False)["score"].max()


def _without_version(names: pd.Series | pd.Index) -> pd.Series:
    names = pd.Series(np.asarray(names, dtype=object), dtype=object)
    is_ensembl = names.str.fullmatch(ENSEMBL_GENE, na=False).to_numpy(dtype=bool)
    return names.where(~is_ensembl, names.str.split(".").str[0])


def _join(left: pd.Series, right: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Positions in `left` and in `right` of equal values, many to many, in the order of `left`."""
    sides = [
        pd.DataFrame({"key": key.to_numpy(), name: np.arange(len(key))}) for key, name in ((left, "l"), (right, "r"))
    ]
    joined = sides[0].dropna().merge(sides[1].dropna(), on="key")
    return joined["l"].to_numpy(np.int64), joined["r"].to_numpy(np.int64)


def _edges(context_index: np.ndarray, target_index: np.ndarray, score: float | np.ndarray = np.nan) -> pd.DataFrame:
    return pd.DataFrame({"context_index": context_index, "target_index": target_index, "score": score}).astype(
        {"context_index": np.int64, "target_index": np.int64, "score": float}
    )


def _edges_by_name(context_genes: pd.Index, target_genes: pd.Index) -> pd.DataFrame:
    found = target_genes.get_indexer(context_genes)
    exact = np.flatnonzero(found >= 0)
    rest_context = np.flatnonzero(found < 0)
    rest_target = np.setdiff1d(np.arange(len(target_genes)), found)
    left, right = _join(
        _without_version(context_genes[rest_context]).str.casefold(),
        _without_version(target_genes[rest_target]).str.casefold(),
    )
    return _edges(np.append(exact, rest_context[left]), np.append(found[exact], rest_target[right]))


def _edges_by_table(table: pd.DataFrame, context_genes: pd.Index, target_genes: pd.Index) -> pd.DataFrame:
    sides = [_locate(table["context"], context_genes), _locate(table["target"], target_genes)]
    rows = sides[0].merge(sides[1], on="row", suffixes=("_context", "_target")).sort_values("row", kind="stable")
    return _edges(
        rows["gene_context"].to_numpy(), rows["gene_target"].to_numpy(), table["score"].to_numpy()[rows["row"]]
    )


def _locate(values: pd.Series, genes: pd.Index) -> pd.DataFrame:
    found = genes.get_indexer(pd.Index(values.to_numpy(dtype=object), dtype=object))
    exact, rest = np.flatnonzero(found >= 0), np.flatnonzero(found < 0)
    left, right = _join(_without_version(values.iloc[rest]), _without_version(genes))
    return pd.DataFrame({"row": np.append(exact, rest[left]), "gene": np.append(found[exact], right)})


def _edges_by_column(
    context: object, target: object, context_genes: pd.Index, target_genes: pd.Index, column: str
) -> tuple[pd.DataFrame | None, pd.DataFrame]:
    values = {}
    for side, data in (("context", context), ("target", target)):
        if isinstance(data, AnnData) and column in data.var:
            values[side] = identifiers(data.var[column])
    if not values:
        listed = "; ".join(
            f"columns of {side}.var: {examples(data.var.columns)}"
            if isinstance(data, AnnData)
            else f"{side} is a sequence of names and has no .var"
            for side, data in (("context", context), ("target", target))
        )
        raise KeyError(
            f"orthologs={column!r} is a .var column of neither context nor target ({listed}). "
            "To read a table from a file use read_orthologs."
        )
    if len(values) == 2:
        return None, _edges(*_join(_without_version(values["context"]), _without_version(values["target"])))
    # the genes of the side that has the column, each beside the other side's gene that it names
    if "context" in values:
        names = {"context": context_genes.to_numpy(), "target": values["context"].to_numpy()}
    else:
        names = {"context": values["target"].to_numpy(), "target": target_genes.to_numpy()}
    table = _as_table(pd.DataFrame(names, dtype=object))
    return table, _edges_by_table(table, context_genes, target_genes)


def _apply_policy(edges: pd.DataFrame, context_genes: pd.Index, target_genes: pd.Index, policy: str) -> pd.DataFrame:
    context, target = edges["context_index"].to_numpy(), edges["target_index"].to_numpy()
    alone = (np.bincount(context, minlength=1)[context] == 1) & (np.bincount(target, minlength=1)[target] == 1)
    if policy == "sum":
        kept = edges
        # genes of both sides are the nodes of one graph
        n_context, n_genes = len(context_genes), len(context_genes) + len(target_genes)
        graph = coo_matrix((np.ones(len(edges), dtype=bool), (context, n_context + target)), shape=(n_genes, n_genes))
        component = connected_components(graph, directed=False)[1][context]
        first = kept["context_index"].groupby(component).transform("min")
    else:
        kept = edges[alone | _is_best(edges, alone, context_genes, target_genes)] if policy == "best" else edges[alone]
        first = kept["context_index"]
    # groups in the order of the context's genes
    kept = kept.assign(group=np.unique(first, return_inverse=True)[1].astype(np.int64))
    kept = kept.sort_values(["group", "context_index", "target_index"], ignore_index=True)
    names = {
        "context": context_genes[kept["context_index"]].to_list(),
        "target": target_genes[kept["target_index"]].to_list(),
    }
    return pd.DataFrame(names).join(kept[["context_index", "target_index", "group"]])


def _is_best(edges: pd.DataFrame, alone: np.ndarray, context_genes: pd.Index, target_genes: pd.Index) -> np.ndarray:
    open_edges = edges[~alone]
    context, target = open_edges["context_index"].to_numpy(), open_edges["target_index"].to_numpy()
    same = context_genes[context].str.casefold() == target_genes[target].str.casefold()
    # last key first; lexsort is stable, so the order of the table decides the rest
    order = np.lexsort((~np.asarray(same, dtype=bool), -open_edges["score"].fillna(-np.inf).to_numpy()))
    best = np.zeros(len(edges), dtype=bool)
    position = np.flatnonzero(~alone)
    used_context: set[int] = set()
    used_target: set[int] = set()
    for i, c, t in zip(order.tolist(), context[order].tolist(), target[order].tolist(), strict=True):
        if c not in used_context and t not in used_target:
            used_context.add(c)
            used_target.add(t)
            best[position[i]] = True
    return best


def _kind(names: pd.Series | pd.Index) -> str:
    names = pd.Series(np.asarray(names, dtype=object), dtype=object)
    if names.str.fullmatch(ENSEMBL_GENE).mean() > 0.5:
        return "Ensembl ids"
    return "Entrez ids" if names.str.fullmatch(r"\d+").mean() > 0.5 else "symbols"


def _hint(match: OrthologMatch, table: pd.DataFrame | None) -> str:
    kinds = {"context": _kind(match.context_genes), "target": _kind(match.target_genes)}
    if table is None:
        if match.source != "names":
            return "compare the column's values in the two data sets."
        if kinds["context"] != kinds["target"]:
            return (
                f"the context's genes look like {kinds['context']}, the target's like {kinds['target']}: use one kind "
                "of identifier in both, or give an orthologue table that names them so."
            )
        return "if the data sets are of two species, give an orthologue table (see read_orthologs)."
    swapped = table.rename(columns={"context": "target", "target": "context"})
    n_swapped = len(_edges_by_table(swapped, match.context_genes, match.target_genes))
    if n_swapped > match.n_measured_pairs:
        return (
            f"context and target seem to be swapped in the table: {n_swapped:,} pairs have both genes measured if its "
            f"two columns are exchanged, {match.n_measured_pairs:,} as they are."
        )
    for side, kind in kinds.items():
        if (in_table := _kind(table[side])) != kind:
            return (
                f"the {side}'s genes look like {kind}, those of the table's {side} column like {in_table}: use one "
                "kind of identifier in both (read_orthologs takes gene_id=)."
            )
    return ""


def _too_few(match: OrthologMatch, table: pd.DataFrame | None, needed: int) -> str:
    lines = [
        f"{match.n_groups} genes are shared by context and target (by {match.source}, policy {match.policy!r}), "
        f"but at least {needed} are needed; {match.n_measured_pairs} pairs had both genes measured.",
        f"  genes of context: {examples(match.context_genes)}",
        f"  genes of target: {examples(match.target_genes)}",
    ]
    if table is not None:
        lines += [f"  genes of the table, {side}: {examples(table[side].unique())}" for side in ("context", "target")]
    if match.n_dropped_pairs and match.policy != "sum":
        lines.append(f"  the policy dropped {match.n_dropped_pairs} pairs: policy='best' or 'sum' keeps more.")
    if match.hint:
        lines.append(f"  hint: {match.hint}")
    return "\n".join(lines)
