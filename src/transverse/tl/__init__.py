"""Analyses over models and results."""

from ._align_species import SpeciesAlignment, align_species

__all__ = ["SpeciesAlignment", "align_species"]
