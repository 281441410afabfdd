"""Genes of simulated species: programmes of expression, how a target diverges from the context, and orthology."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

# Spread of the log-odds between two paralogues: once the same in every type, once different from type to type.
_PARALOG_SD = 0.7
# Baselines end here, in natural log over the median gene: a wide shift would give a tenth of all counts to one gene.
_CEILING = 4.0


@dataclass
class Genes:
    """Genes of one species: names, natural-log profile (genes x types), programme and ancestral group (-1: none)."""

    names: np.ndarray
    log_profile: np.ndarray
    marker_of: np.ndarray
    group: np.ndarray
    unmeasured: np.ndarray


@dataclass
class Pool:
    """Ancestral genes of the context; the first ``n_pairs`` have two paralogues in the context."""

    genes: Genes
    programme: _Programme
    n_pairs: int


@dataclass
class _Programme:
    """Natural-log effects on genes: baseline, of sibling pairs (genes x pairs) and of types (genes x types)."""

    base: np.ndarray
    by_pair: pd.DataFrame
    by_type: pd.DataFrame

    @classmethod
    def draw(cls, rng, n_genes: int, params: dict, types: pd.DataFrame) -> _Programme:
        def effects(labels, share: float) -> pd.DataFrame:
            shape = n_genes, len(labels)
            values = rng.normal(0, params["marker_sd"], shape) * (rng.random(shape) < share)
            return pd.DataFrame(values, columns=labels)

        return cls(
            rng.normal(0, params["base_sd"], (n_genes, 1)).clip(max=_CEILING),
            effects(types["pair"].unique(), params["marker_share"]),
            effects(types["name"].tolist(), params["sibling_share"]),
        )

    def diverged(self, rng, rows: np.ndarray, params: dict) -> _Programme:
        """Of the genes ``rows``, with a share of the effects moved to new values and the baseline shifted."""

        def moved(effects: pd.DataFrame) -> pd.DataFrame:
            old = effects.to_numpy()[rows]
            new = rng.normal(0, params["marker_sd"], old.shape)
            turned = (rng.random(old.shape) < params["marker_turnover"]) & (old != 0)
            return pd.DataFrame(old + params["divergence"] * turned * (new - old), columns=effects.columns)

        shift = params["divergence"] * params["species_sd"] * rng.normal(size=(len(rows), 1))
        return _Programme((self.base[rows] + shift).clip(max=_CEILING), moved(self.by_pair), moved(self.by_type))

    def log_profile(self, types: pd.DataFrame) -> np.ndarray:
        return self.base + self.by_pair[types["pair"]].to_numpy() + self.by_type[types["name"]].to_numpy()

    def marker_of(self) -> np.ndarray:
        """Name the type, or sibling pair, whose programme raises each gene most; empty where none does."""
        raised = np.hstack([self.by_pair, self.by_type])
        labels = np.array([*self.by_pair.columns, *self.by_type.columns], dtype=object)
        return np.where(raised.max(1) > 0, labels[raised.argmax(1)], "").astype(object)


def _split(rng, n_pairs: int, n_types: int) -> np.ndarray:
    """Log shares (2 n_pairs x types) of two paralogues in the expression of their group, consecutive rows a pair."""
    log_odds = rng.normal(0, _PARALOG_SD, (n_pairs, 1)) + rng.normal(0, _PARALOG_SD, (n_pairs, n_types))
    shares = np.stack([-np.logaddexp(0, -log_odds), -np.logaddexp(0, log_odds)], axis=1)
    return shares.reshape(2 * n_pairs, n_types)


def _name_genes(rng, species: str, n_genes: int, params: dict) -> tuple[np.ndarray, np.ndarray]:
    """Names of measured and unmeasured genes; the numbers are permuted, so that they carry nothing across species."""
    n_unmeasured = int(np.ceil(params["unmeasured_share"] * n_genes))
    numbers = rng.permutation(n_genes + n_unmeasured) + 1
    names = np.array([f"{species.capitalize()}{number:05d}" for number in numbers], dtype=object)
    return names[:n_genes], names[n_genes:]


def _n_groups(n_shared: int, params: dict) -> int:
    """How many groups of each kind (1:2, 2:1, 2:2); one of each takes five genes of either species."""
    return min(round(params["many_to_many"] * n_shared / 5), n_shared // 5)


def context_pool(rng, params: dict, types: pd.DataFrame, context: str) -> Pool:
    largest = max(params["n_shared_genes"].values())
    n_genes = largest + params["n_specific_genes"][context]
    n_pairs = max(2 * _n_groups(n, params) for n in params["n_shared_genes"].values())
    programme = _Programme.draw(rng, n_genes - n_pairs, params, types)

    copies = np.where(np.arange(n_genes - n_pairs) < n_pairs, 2, 1)
    group = np.repeat(np.arange(n_genes - n_pairs), copies)
    profile = programme.log_profile(types)[group]
    profile[: 2 * n_pairs] += _split(rng, n_pairs, len(types))

    names, unmeasured = _name_genes(rng, context, n_genes, params)
    order = rng.permutation(n_genes)
    genes = Genes(names, profile[order], programme.marker_of()[group][order], group[order], unmeasured)
    return Pool(genes, programme, n_pairs)


def diverge(rng, params: dict, types: pd.DataFrame, pool: Pool, context: str, name: str) -> tuple[Genes, pd.DataFrame]:
    """Genes of one target species and its orthologue table to the context."""
    n_shared, n_specific = params["n_shared_genes"][name], params["n_specific_genes"][name]
    n_each = _n_groups(n_shared, params)
    pairs = rng.permutation(pool.n_pairs)[: 2 * n_each]
    singles = pool.n_pairs + rng.permutation(len(pool.programme.base) - pool.n_pairs)
    n_singles = n_shared - 4 * n_each
    if n_singles > len(singles):
        raise ValueError(
            f"n_specific_genes: {context!r} needs at least {n_singles - len(singles)} more genes of its own for the "
            f"{n_shared} genes that {name!r} shares with it."
        )
    singles = singles[:n_singles]
    doubled = np.concatenate([pairs[:n_each], singles[:n_each]])  # two genes in the target: 2:2, then 1:2
    single = np.concatenate([pairs[n_each:], singles[n_each:]])  # one gene in the target: 2:1, then 1:1
    groups = np.concatenate([doubled, single])

    # The shift belongs to the group: the paralogues' sum follows the shared programme as a single gene does.
    programme = pool.programme.diverged(rng, groups, params)
    by_type = len(groups), len(types)
    shift = rng.normal(0, params["type_shift_sd"], by_type) * (rng.random(by_type) < params["type_shift_share"])
    profile = programme.log_profile(types) + params["divergence"] * shift

    copies = np.where(np.arange(len(groups)) < len(doubled), 2, 1)
    profile = np.repeat(profile, copies, axis=0)
    profile[: 2 * len(doubled)] += _split(rng, len(doubled), len(types))

    own = _Programme.draw(rng, n_specific, params, types)
    names, unmeasured = _name_genes(rng, name, n_shared + n_specific, params)
    order = rng.permutation(n_shared + n_specific)
    genes = Genes(
        names=names,
        log_profile=np.vstack([profile, own.log_profile(types)])[order],
        marker_of=np.concatenate([np.repeat(programme.marker_of(), copies), own.marker_of()])[order],
        group=np.concatenate([np.repeat(groups, copies), np.full(n_specific, -1)])[order],
        unmeasured=unmeasured,
    )
    return genes, _ortholog_table(rng, params, pool.genes, genes, n_shared)


def _ortholog_table(rng, params: dict, context: Genes, target: Genes, n_shared: int) -> pd.DataFrame:
    shared = np.intersect1d(context.group, target.group)
    table = pd.merge(
        pd.DataFrame({"context": context.names, "group": context.group}),
        pd.DataFrame({"target": target.names, "group": target.group}),
        on="group",
    )[["context", "target"]]

    # Rows without a measured partner touch no shared gene, so that the orthology of measured genes stays as planted.
    n_rows = int(np.ceil(params["unmeasured_share"] * n_shared))
    context_own = rng.permutation(context.names[~np.isin(context.group, shared)])
    target_own = rng.permutation(target.names[~np.isin(target.group, shared)])
    n_rows = min(n_rows, len(context.unmeasured), len(target.unmeasured))
    third = n_rows // 3
    left, right = context.unmeasured[:n_rows].copy(), target.unmeasured[:n_rows].copy()
    left[: min(third, len(context_own))] = context_own[:third]
    right[n_rows - min(third, len(target_own)) :] = target_own[:third]
    table = pd.concat([table, pd.DataFrame({"context": left, "target": right})])
    return table.iloc[rng.permutation(len(table))].reset_index(drop=True)
