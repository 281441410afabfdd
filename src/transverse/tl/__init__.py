"""Analyses over models and results."""

from ._align_species import SpeciesAlignment, align_species
from ._enrichment import enrichment

__all__ = ["SpeciesAlignment", "align_species", "enrichment"]
