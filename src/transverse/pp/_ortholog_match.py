"""Which genes of two data sets correspond, and how their counts become shared features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.sparse import csr_matrix

from ._read_orthologs import examples

if TYPE_CHECKING:
    import pandas as pd

Policy = Literal["one2one", "best", "sum"]


@dataclass(frozen=True, repr=False, eq=False)
class OrthologMatch:
    """Which genes of a context and a target data set correspond; made by :func:`match_orthologs`.

    A *group* is one shared feature: a pair of genes under the policies ``"one2one"`` and ``"best"``, one or more genes
    of each side under ``"sum"``. Printing the object shows :meth:`report`.

    Examples
    --------
    >>> import transverse as tv
    >>> mouse, human = ["Cd3e", "Lyz1", "Lyz2", "Xist"], ["CD3E", "LYZ", "TRAC"]
    >>> table = {"Cd3e": "CD3E", "Lyz1": "LYZ", "Lyz2": "LYZ"}
    >>> match = tv.pp.match_orthologs(mouse, human, table, policy="best")
    >>> match.pairs["context"].tolist(), match.pairs["target"].tolist()
    (['Cd3e', 'Lyz1'], ['CD3E', 'LYZ'])
    """

    pairs: pd.DataFrame
    """One row per matched pair, ordered by `group`, then `context_index`: the gene names `context` and `target`, their
    positions `context_index` and `target_index` (int64), and `group` (int64, 0 to `n_groups` - 1)."""
    context_genes: pd.Index
    """All genes of the context data set."""
    target_genes: pd.Index
    """All genes of the target data set."""
    policy: Policy
    """What was done where one gene has several orthologues."""
    source: str
    """What the match rests on: ``"table"``, ``".var['column']"`` or ``"names"``."""
    n_table_pairs: int
    """Distinct pairs in the table. With no table: pairs of equal names or equal values."""
    n_measured_pairs: int
    """Pairs of which both data sets measure their gene."""
    hint: str = ""
    """What may be wrong, if so few genes match that something seems to be; else empty."""

    @property
    def n_groups(self) -> int:
        """Number of shared features.

        Examples
        --------
        >>> match.n_groups
        2
        """
        return int(self.pairs["group"].max()) + 1 if len(self.pairs) else 0

    @property
    def n_dropped_pairs(self) -> int:
        """Number of pairs with both genes measured that the policy left out.

        Examples
        --------
        >>> match.n_dropped_pairs
        1
        """
        return self.n_measured_pairs - len(self.pairs)

    @property
    def unmatched_context(self) -> pd.Index:
        """Genes of the context data set that are in no group, in their order.

        Examples
        --------
        >>> match.unmatched_context.tolist()
        ['Lyz2', 'Xist']
        """
        return self.context_genes.delete(self.pairs["context_index"].unique())

    @property
    def unmatched_target(self) -> pd.Index:
        """Genes of the target data set that are in no group, in their order.

        Examples
        --------
        >>> match.unmatched_target.tolist()
        ['TRAC']
        """
        return self.target_genes.delete(self.pairs["target_index"].unique())

    @property
    def context_share(self) -> float:
        """Share of the context's genes that are in a group.

        Examples
        --------
        >>> match.context_share
        0.5
        """
        return 1 - len(self.unmatched_context) / len(self.context_genes)

    @property
    def target_share(self) -> float:
        """Share of the target's genes that are in a group.

        Examples
        --------
        >>> round(match.target_share, 2)
        0.67
        """
        return 1 - len(self.unmatched_target) / len(self.target_genes)

    def context_matrix(self) -> csr_matrix:
        """0/1 matrix (context genes x groups, float32): ``X_context @ matrix`` holds each group's summed counts.

        Examples
        --------
        >>> match.context_matrix().toarray().astype(int).tolist()
        [[1, 0], [0, 1], [0, 0], [0, 0]]
        """
        return self._matrix("context_index", len(self.context_genes))

    def target_matrix(self) -> csr_matrix:
        """0/1 matrix (target genes x groups, float32): ``X_target @ matrix`` holds each group's summed counts.

        Examples
        --------
        >>> match.target_matrix().toarray().astype(int).tolist()
        [[1, 0], [0, 1], [0, 0]]
        """
        return self._matrix("target_index", len(self.target_genes))

    def _matrix(self, column: str, n_genes: int) -> csr_matrix:
        # a gene with several orthologues in its group has several rows, but counts once
        entries = self.pairs[[column, "group"]].drop_duplicates()
        ones = np.ones(len(entries), dtype=np.float32)
        return csr_matrix((ones, (entries[column], entries["group"])), shape=(n_genes, self.n_groups))

    def report(self) -> str:
        """Say in a few lines what was matched and what was not.

        Examples
        --------
        >>> print(match.report())
        OrthologMatch by table, policy 'best': 2 shared features
          table pairs: 3; both genes measured: 3; dropped by the policy: 1
          context genes matched: 2 of 4 (50.0%); unmatched: Lyz2, Xist
          target genes matched: 2 of 3 (66.7%); unmatched: TRAC
        """
        what = "table pairs" if self.source == "table" else "candidate pairs"
        lines = [
            f"OrthologMatch by {self.source}, policy {self.policy!r}: {self.n_groups:,} shared features",
            f"  {what}: {self.n_table_pairs:,}; both genes measured: {self.n_measured_pairs:,}; "
            f"dropped by the policy: {self.n_dropped_pairs:,}",
        ]
        for side, genes, unmatched, share in (
            ("context", self.context_genes, self.unmatched_context, self.context_share),
            ("target", self.target_genes, self.unmatched_target, self.target_share),
        ):
            lines.append(
                f"  {side} genes matched: {len(genes) - len(unmatched):,} of {len(genes):,} ({share:.1%}); "
                f"unmatched: {examples(unmatched)}"
            )
        if self.hint:
            lines.append(f"  hint: {self.hint}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.report()
