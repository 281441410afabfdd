"""Figures of results; scanpy's habits: ``show``, ``save``, ``ax``."""

from ._benchmark import benchmark
from ._calibration import calibration
from ._label_confusion import label_confusion
from ._lfc_volcano import lfc_volcano
from ._prototype_curves import prototype_curves
from ._relevance_scatter import relevance_scatter
from ._similarity_heatmap import similarity_heatmap
from ._species_umap import species_umap

__all__ = [
    "benchmark",
    "calibration",
    "label_confusion",
    "lfc_volcano",
    "prototype_curves",
    "relevance_scatter",
    "similarity_heatmap",
    "species_umap",
]
