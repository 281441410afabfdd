"""Figures of results; scanpy's habits: ``show``, ``save``, ``ax``."""

from ._ablation import ablation
from ._benchmark import benchmark
from ._calibration import calibration
from ._change_boxplot import change_boxplot
from ._fold_over_baseline import fold_over_baseline
from ._gene_map import gene_map
from ._label_accuracy import label_accuracy
from ._label_confusion import label_confusion
from ._latent_agreement import latent_agreement
from ._lfc_volcano import lfc_volcano
from ._prediction_scatter import prediction_scatter
from ._prediction_umap import prediction_umap
from ._prototype_curves import prototype_curves
from ._reactome_heatmap import reactome_heatmap
from ._relevance_scatter import relevance_scatter
from ._score_boxplot import score_boxplot
from ._signature_scatter import signature_scatter
from ._signature_strips import signature_strips
from ._similarity_heatmap import similarity_heatmap
from ._species_umap import species_umap

__all__ = [
    "ablation",
    "benchmark",
    "calibration",
    "change_boxplot",
    "fold_over_baseline",
    "gene_map",
    "label_accuracy",
    "label_confusion",
    "latent_agreement",
    "lfc_volcano",
    "prediction_scatter",
    "prediction_umap",
    "prototype_curves",
    "reactome_heatmap",
    "relevance_scatter",
    "score_boxplot",
    "signature_scatter",
    "signature_strips",
    "similarity_heatmap",
    "species_umap",
]
