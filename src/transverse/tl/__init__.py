"""Analyses over models and results."""

from ._align_species import SpeciesAlignment, align_species
from ._enrichment import enrichment
from ._reactome import reactome
from ._reactome_map import gene_map, reactome_similarity

__all__ = [
    "SpeciesAlignment",
    "align_species",
    "enrichment",
    "gene_map",
    "reactome",
    "reactome_similarity",
]
