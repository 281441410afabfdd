"""Parts of simulated responses: checked parameters, baselines, effects, and which of them are measured."""

from __future__ import annotations

from math import comb

import numpy as np

from ._checks import check_choice, check_not_negative, check_positive, check_share, check_whole
from ._screen import measured_pairs

SCALE = 1e4
_AT_LEAST_ONE = (
    "n_contexts",
    "n_context_groups",
    "n_perturbations",
    "n_cells_per_condition",
    "n_control_cells_per_context",
    "n_replicates",
)
_SHARES = ("effect_share", "specific_share", "group_share", "saturation", "interaction", "missing_share")
_NOT_NEGATIVE = ("effect_sd", "base_sd", "context_sd", "replicate_sd", "library_sd")
_STEADY_SHARE = 0.1


def check_parameters(params: dict) -> dict:
    for key in _AT_LEAST_ONE:
        check_whole(key, params[key], 1)
    check_whole("n_genes", params["n_genes"], 10)
    for key in ("n_doubles", "seed"):
        check_whole(key, params[key])
    for key in _SHARES:
        check_share(key, params[key])
    for key in _NOT_NEGATIVE:
        check_not_negative(key, params[key])
    for key in ("library_size", "inverse_dispersion"):
        check_positive(key, params[key])
    check_choice("noise", params["noise"], ("nb", "poisson"))

    if params["n_context_groups"] > params["n_contexts"]:
        raise ValueError(
            f"n_context_groups: expected at most as many groups as contexts ({params['n_contexts']}), "
            f"but got {params['n_context_groups']}."
        )
    n_pairs = comb(params["n_perturbations"], 2)
    if params["n_doubles"] > n_pairs:
        raise ValueError(
            f"n_doubles: expected at most {n_pairs}, the pairs of {params['n_perturbations']} single perturbations, "
            f"but got {params['n_doubles']}."
        )
    return params | {"doses": _check_doses(params["doses"])}


def _check_doses(doses) -> np.ndarray:
    if doses is None:
        return np.zeros(0)
    try:
        values = np.asarray(doses, dtype=float)
    except (TypeError, ValueError):
        values = np.zeros(0)
    valid = values.ndim == 1 and values.size and np.isfinite(values).all() and (values > 0).all()
    if isinstance(doses, str) or not valid or len(np.unique(values)) < len(values):
        raise ValueError(f"doses: expected None or distinct positive numbers, but got {doses!r}.")
    return np.sort(values)


def baselines(rng: np.random.Generator, params: dict, groups: np.ndarray) -> np.ndarray:
    """Contexts x genes, log1p of expected counts per 10,000."""
    n_genes, share = params["n_genes"], params["group_share"]
    common = rng.normal(0, params["base_sd"], n_genes)
    of_group = rng.normal(size=(groups[-1] + 1, n_genes))[groups]
    own = rng.normal(size=(len(groups), n_genes))
    log_rate = common + params["context_sd"] * (np.sqrt(share) * of_group + np.sqrt(1 - share) * own)
    log_rate -= np.logaddexp.reduce(log_rate, axis=1)[:, None]
    return np.log1p(SCALE * np.exp(log_rate))


def single_effects(rngs: dict, params: dict, groups: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    """Contexts x singles x genes, at the full dose, bounded so that a double of them has no negative expectation."""
    n_genes, n_perturbations = params["n_genes"], params["n_perturbations"]
    n_steady = int(np.ceil(_STEADY_SHARE * n_genes))
    pool = np.sort(np.argsort(baseline.mean(0), kind="stable")[: n_genes - n_steady])
    specific, of_group = params["specific_share"], params["group_share"]
    parts = {
        "shared": (1 - specific, np.zeros_like(groups)),
        "group": (specific * of_group, groups),
        "own": (specific * (1 - of_group), np.arange(len(groups))),
    }
    effects = np.zeros((len(groups), n_perturbations, n_genes))
    for name, (variance_share, level) in parts.items():
        shape = (level[-1] + 1, n_perturbations, len(pool))
        rank = rngs[name].random(shape).argsort(-1).argsort(-1)
        changed = rank < round(params["effect_share"] * variance_share * len(pool))
        effects[..., pool] += (changed * rngs[name].normal(0, params["effect_sd"], shape))[level]
    # The lowest baseline over contexts, for a bound that differed would make a shared shift differ.
    bounded = np.maximum(effects, -baseline.min(0) / 2)
    deviation = (baseline - baseline.mean(0))[:, None]
    return bounded - params["saturation"] * np.where(effects != 0, deviation, 0)


def with_doubles(
    effects: np.ndarray, pairs: np.ndarray, z: np.ndarray, interaction: float, baseline: np.ndarray
) -> np.ndarray:
    """Effects of singles, and after them of the doubles, pairs of their rows."""
    first, second = effects[:, pairs[:, 0]], effects[:, pairs[:, 1]]
    doubles = np.sqrt(1 - interaction) * (first + second) + np.sqrt(interaction) * np.hypot(first, second) * z
    return np.concatenate([effects, np.maximum(doubles, -baseline.min(0))], axis=1)


def measured_conditions(rng: np.random.Generator, params: dict, pairs: np.ndarray) -> np.ndarray:
    """Perturbations, singles before doubles, x contexts: a double is measured wherever both its singles are."""
    n_contexts = params["n_contexts"]
    keep = np.zeros((params["n_perturbations"], n_contexts), dtype=bool)
    context = rng.integers(n_contexts, size=len(pairs))
    for column in pairs.T:
        keep[column, context] = True
    alone = np.flatnonzero(~keep.any(1))
    keep[alone, rng.integers(n_contexts, size=len(alone))] = True
    singles = measured_pairs(rng, keep, params["missing_share"])
    return np.concatenate([singles, singles[pairs[:, 0]] & singles[pairs[:, 1]]])
