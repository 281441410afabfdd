"""Scores: arrays or AnnData in, tidy tables out."""

from ._ceiling import noise_ceiling
from ._degs import deg_scores
from ._discrimination import perturbation_discrimination
from ._distances import energy_distance
from ._embedding import embedding_scores
from ._gene_map import gene_map_scores
from ._labels import label_scores
from ._response import response_scores
from ._signatures import signature_scores
from ._summary import summarize
from ._variance import variance_ratio

__all__ = [
    "deg_scores",
    "embedding_scores",
    "energy_distance",
    "gene_map_scores",
    "label_scores",
    "noise_ceiling",
    "perturbation_discrimination",
    "response_scores",
    "signature_scores",
    "summarize",
    "variance_ratio",
]
