"""Transfer learning across species, cell types and perturbations, built on scvi-tools."""

from importlib.metadata import version

from . import datasets, pl, pp, tl
from .scspecies import ScSpecies

__version__ = version("transverse")

__all__ = ["ScSpecies", "datasets", "pl", "pp", "tl"]
