"""Genes of simulated reactomes: what they do, whose symbol they bear, what is measured, and checks of parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from transverse._validation import examples

from ._checks import check_not_negative, check_positive, check_share, check_whole

GENE_SPREAD = 0.5  # standard deviation of the log of a gene's response strength and inverse dispersion

_WHOLE = ("n_organs", "n_drugs", "n_animals", "n_genes", "n_modules")
_SHARES = (
    "module_mixing",
    "response_share",
    "organ_specificity",
    "diverged_share",
    "response_divergence",
    "organ_divergence",
)
_POSITIVE = ("library_size", "inverse_dispersion")
_NOT_NEGATIVE = ("response_sd", "organ_effect_sd", "species_sd", "animal_sd", "base_sd", "library_sd")


@dataclass(frozen=True)
class Genes:
    """What a species' genes do, in the order that all species share: a gene and its counterparts at one position."""

    baseline: np.ndarray  # genes
    profile: np.ndarray  # genes x organs
    response: np.ndarray  # genes x organs x drugs
    strength: np.ndarray  # genes
    module: np.ndarray  # genes; -1 for those that do not respond


def draw_genes(rng: np.random.Generator, params: dict) -> Genes:
    n, n_modules, n_organs, n_drugs = (params[key] for key in ("n_genes", "n_modules", "n_organs", "n_drugs"))
    main = rng.integers(0, n_modules, n)
    other = _unit(rng.normal(size=(n, n_modules)))
    other[np.arange(n), main] = np.abs(other[np.arange(n), main])  # lest it cancel the module
    mixing = params["module_mixing"]
    loading = _unit(np.sqrt(1 - mixing) * np.eye(n_modules)[main] + np.sqrt(mixing) * other)
    responds = np.zeros(n, dtype=bool)
    responds[rng.permutation(n)[: round(params["response_share"] * n)]] = True
    strength = params["response_sd"] * rng.lognormal(-(GENE_SPREAD**2) / 2, GENE_SPREAD, n) * responds

    specific = params["organ_specificity"]
    effect = np.sqrt(1 - specific) * rng.normal(size=(n_modules, 1, n_drugs))
    effect = effect + np.sqrt(specific) * rng.normal(size=(n_modules, n_organs, n_drugs))
    response = strength[:, None, None] * np.tensordot(loading, effect, axes=1)

    # As many organ modules as organs, so that no two organs have to look alike.
    profile = params["organ_effect_sd"] * _unit(rng.normal(size=(n, n_organs))) @ rng.normal(size=(n_organs, n_organs))
    return Genes(rng.normal(0, params["base_sd"], n), profile, response, strength, np.where(responds, main, -1))


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def diverge(rng: np.random.Generator, params: dict, shared: Genes) -> Genes:
    """The counterparts in a target: correlated with the source's genes by one minus the divergence."""
    keep = 1 - params["response_divergence"]
    response = keep * shared.response + np.sqrt(1 - keep**2) * shared.strength[:, None, None] * rng.normal(
        size=shared.response.shape
    )
    keep = 1 - params["organ_divergence"]
    profile = keep * shared.profile + np.sqrt(1 - keep**2) * params["organ_effect_sd"] * rng.normal(
        size=shared.profile.shape
    )
    baseline = shared.baseline + rng.normal(0, params["species_sd"], len(shared.baseline))
    return Genes(baseline, profile, response, shared.strength, shared.module)


def draw_namesakes(rng: np.random.Generator, share: float, module: np.ndarray) -> np.ndarray:
    """For each gene, whose symbol its counterpart bears: its own, or another diverged gene's of another module."""
    namesake = np.arange(len(module))
    diverged = rng.permutation(len(module))[: round(share * len(module))]
    if len(diverged):
        diverged = diverged[np.argsort(module[diverged], kind="stable")]
        # Sorted by module and turned by the largest one, as few genes as can be stay within their module.
        largest = np.unique(module[diverged], return_counts=True)[1].max()
        namesake[diverged] = np.roll(diverged, largest if largest < len(diverged) else 1)
    return namesake


def missing_cells(missing, organs: list[str], drugs: list[str], species: list[str], stream) -> dict[str, list]:
    """What each species lacks, as pairs of organ and drug; nothing for the source."""
    known = [(organ, drug) for organ in organs for drug in drugs]
    absent = {species[0]: []}
    if isinstance(missing, (int, float, np.number)) and not isinstance(missing, bool):
        if not 0 <= missing <= 1:
            raise ValueError(f"missing: expected a share from 0 to 1, or pairs of organ and drug, but got {missing!r}.")
        for name, part in zip(species[1:], stream.spawn(len(species) - 1), strict=True):
            lost = np.random.default_rng(part).permutation(len(known))[: round(missing * len(known))]
            absent[name] = [known[i] for i in sorted(lost)]
        return absent
    if isinstance(missing, (str, bool)) or not isinstance(missing, Sequence):
        raise ValueError(f"missing: expected a share, or a list of pairs (organ, drug), but got {missing!r}.")
    pairs = [tuple(pair) if isinstance(pair, (tuple, list)) else pair for pair in missing]
    unknown = [pair for pair in pairs if pair not in known]
    if unknown:
        raise ValueError(
            f"missing: expected pairs of an organ ({examples(organs, 20)}) and a drug ({examples(drugs, 20)}), "
            f"but got {examples(unknown)}."
        )
    repeated = [pair for i, pair in enumerate(pairs) if pair in pairs[:i]]
    if repeated:
        raise ValueError(f"missing: expected each pair once, but these repeat: {examples(repeated)}.")
    return absent | dict.fromkeys(species[1:], pairs)


def check_parameters(params: dict) -> None:
    for key in _WHOLE:
        check_whole(key, params[key], 2 if key == "n_genes" else 1)
    for key in _SHARES:
        check_share(key, params[key])
    for key in _POSITIVE:
        check_positive(key, params[key])
    for key in _NOT_NEGATIVE:
        check_not_negative(key, params[key])
    if round(params["diverged_share"] * params["n_genes"]) == 1:
        raise ValueError(
            f"diverged_share: {params['diverged_share']!r} of {params['n_genes']} genes is a single gene, which has "
            "nothing to change its namesake with; expected none or at least two. Choose 0 or a larger share."
        )
