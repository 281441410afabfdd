"""Simulated data with known truth, readers of public formats, and recipes that prepare public data."""

from transverse.datasets._read_gctx import read_gctx
from transverse.datasets._recipe_crispr import prepare_norman, prepare_replogle
from transverse.datasets._recipe_sciplex import prepare_sciplex
from transverse.datasets._simulate_reactomes import simulate_reactomes
from transverse.datasets._simulate_responses import simulate_responses
from transverse.datasets._simulate_signatures import simulate_signatures
from transverse.datasets._simulate_species import simulate_species

__all__ = [
    "prepare_norman",
    "prepare_replogle",
    "prepare_sciplex",
    "read_gctx",
    "simulate_reactomes",
    "simulate_responses",
    "simulate_signatures",
    "simulate_species",
]
