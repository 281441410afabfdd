"""Parameters of simulated species: presets, what is filled in from them, and checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd

from ._checks import check_not_negative, check_positive, check_share, check_whole


@dataclass(frozen=True)
class _Settings:
    """Parameters of a simulation; pairs are (context, every other species)."""

    n_cells: tuple[int, int] = (4000, 3000)
    n_shared_genes: int = 1000
    n_specific_genes: tuple[int, int] = (500, 400)
    n_types: int = 8
    n_batches: tuple[int, int] = (3, 3)
    context_only_types: int = 0
    target_only_types: int = 0
    divergence: float = 1.0
    species_sd: float = 1.8
    type_shift_share: float = 0.1
    type_shift_sd: float = 1.0
    marker_turnover: float = 0.22
    marker_share: float = 0.15
    marker_sd: float = 1.0
    sibling_share: float = 0.05
    size_ratio: float = 28 / 3
    many_to_many: float = 0.1
    unmeasured_share: float = 0.03
    library_size: tuple[float, float] = (2500.0, 1200.0)
    library_sd: float = 0.35
    batch_sd: float = 0.2
    base_sd: float = 1.2
    inverse_dispersion: float = 1.3


_MEDIUM = _Settings()
_PRESETS = {
    "tiny": _Settings(
        n_cells=(400, 300),
        n_shared_genes=200,
        n_specific_genes=(100, 80),
        n_types=4,
        n_batches=(2, 2),
        divergence=0.2,
        marker_share=0.3,
        sibling_share=0.3,
        size_ratio=3.0,
        library_size=(450.0, 350.0),
        inverse_dispersion=3.0,
    ),
    "easy": replace(
        _MEDIUM,
        divergence=0.2,
        sibling_share=0.06,
        library_size=(3200.0, 2400.0),
        base_sd=1.6,
        inverse_dispersion=2.2,
    ),
    "medium": _MEDIUM,
    "hard": replace(
        _MEDIUM,
        divergence=1.2,
        marker_turnover=0.32,
        inverse_dispersion=1.1,
        context_only_types=1,
        target_only_types=1,
    ),
}
_PER_SPECIES = ("n_cells", "n_specific_genes", "n_batches", "library_size")
_AT_LEAST_ONE = ("n_cells", "n_shared_genes", "n_types", "n_batches")
_WHOLE = (*_AT_LEAST_ONE, "n_specific_genes", "context_only_types", "target_only_types")
_SHARES = ("type_shift_share", "marker_turnover", "marker_share", "sibling_share", "many_to_many", "unmeasured_share")
_POSITIVE = ("size_ratio", "library_size", "inverse_dispersion")
_NOT_NEGATIVE = ("divergence", "species_sd", "type_shift_sd", "marker_sd", "library_sd", "batch_sd", "base_sd")


def check_species(species: Sequence[str]) -> list[str]:
    if isinstance(species, str) or len(species) < 2:
        raise ValueError(f"species: expected at least two names, the context first, but got {species!r}.")
    species = list(species)
    if any(not isinstance(name, str) or not name or "/" in name for name in species):
        raise ValueError(f"species: expected non-empty strings without '/', but got {species!r}.")
    if len({name.casefold() for name in species}) < len(species):
        raise ValueError(f"species: expected names that differ in more than case, but got {species!r}.")
    return species


def resolve_parameters(arguments: dict, species: list[str]) -> dict:
    """Fill what was left None from the preset, expand what is set by species, and check all of it."""
    preset = arguments["preset"]
    if preset not in _PRESETS:
        raise ValueError(f"preset: expected one of {', '.join(_PRESETS)}, but got {preset!r}.")
    params = asdict(_PRESETS[preset]) | {key: value for key, value in arguments.items() if value is not None}
    for key in _PER_SPECIES:
        params[key] = _by_species(key, arguments[key], getattr(_PRESETS[preset], key), species)
    n_shared = _PRESETS[preset].n_shared_genes
    params["n_shared_genes"] = _by_species(
        "n_shared_genes", arguments["n_shared_genes"], (n_shared, n_shared), species[1:]
    )

    for key in _WHOLE:
        for value in _values(params[key]):
            check_whole(key, value, 1 if key in _AT_LEAST_ONE else 0)
    for key in _SHARES:
        check_share(key, params[key])
    for key in _POSITIVE:
        for value in _values(params[key]):
            check_positive(key, value)
    for key in _NOT_NEGATIVE:
        check_not_negative(key, params[key])
    return params


def _values(value) -> list:
    return list(value.values()) if isinstance(value, dict) else [value]


def _by_species(key: str, value, default: tuple, species: list[str]) -> dict:
    """Expand a number, or a partial mapping of species to numbers, to every species."""
    expanded = {name: default[min(i, 1)] for i, name in enumerate(species)}
    if value is None:
        return expanded
    if not isinstance(value, Mapping):
        return dict.fromkeys(species, value)
    unknown = [name for name in value if name not in expanded]
    if unknown:
        raise ValueError(f"{key}: expected the species {species!r} as keys, but got {unknown[:5]!r}.")
    return expanded | dict(value)


def cell_types(params: dict, species: list[str]) -> pd.DataFrame:
    """Types of all species, a row each: sibling pair, relative size, and the only species that has it, if one."""
    n = params["n_types"]
    size = params["size_ratio"] ** -np.linspace(0, 1, n) if n > 1 else np.ones(1)
    rows = [(f"T{i // 2 + 1}{'ab'[i % 2]}", f"T{i // 2 + 1}", size[i], "") for i in range(n)]
    for i, name in enumerate(species):
        n_only = params["target_only_types" if i else "context_only_types"]
        own = [f"{name}_only_{j + 1}" for j in range(n_only)]
        rows += [(label, label, float(np.median(size)), name) for label in own]
    types = pd.DataFrame(rows, columns=["name", "pair", "size", "only_in"])
    for name in species:
        n_here = int(present_types(types, name).sum())
        if n_here > params["n_cells"][name]:
            raise ValueError(
                f"n_cells: expected at least one cell for each of the {n_here} cell types of {name!r}, "
                f"but got {params['n_cells'][name]}."
            )
    return types


def present_types(types: pd.DataFrame, species: str) -> np.ndarray:
    return types["only_in"].isin(["", species]).to_numpy()
