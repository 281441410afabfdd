"""Figures of results; scanpy's habits: ``show``, ``save``, ``ax``."""

from ._species_umap import species_umap

__all__ = ["species_umap"]
