"""Transfer learning across species, cell types and perturbations, built on scvi-tools."""

from importlib.metadata import version

from . import baselines, datasets, metrics, pl, pp, tl
from ._benchmark import benchmark
from .deepcellstate import DeepCellState
from .scspecies import ScSpecies
from .uge import UGE
from .xtransfercdr import XTransferCDR

__version__ = version("transverse")

__all__ = [
    "DeepCellState",
    "ScSpecies",
    "UGE",
    "XTransferCDR",
    "baselines",
    "benchmark",
    "datasets",
    "metrics",
    "pl",
    "pp",
    "tl",
]
