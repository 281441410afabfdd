"""What the maps between the genes of species are asked."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral

from transverse._species import species_blocks
from transverse._validation import examples

__all__ = ["check_fitted", "check_known", "check_n_top", "species_blocks"]


def check_known(species: str, known: Mapping, argument: str) -> None:
    """Raise a KeyError unless the species was fitted."""
    if species not in known:
        raise KeyError(f"{argument}={species!r} is not a species of the fitted data: {examples(known)}.")


def check_fitted(baseline: object, species: Mapping) -> None:
    """Raise a RuntimeError unless the baseline has data of any species."""
    if not species:
        raise RuntimeError(f"{type(baseline).__name__} is not fitted. Call fit(adata) first.")


def check_n_top(n_top: int) -> None:
    """Raise a ValueError unless ``n_top`` is a whole number of at least 1."""
    if not isinstance(n_top, Integral) or isinstance(n_top, bool) or n_top < 1:
        raise ValueError(f"n_top={n_top!r} must be a whole number of at least 1.")
