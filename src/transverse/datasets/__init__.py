"""Simulated data with known truth, and readers of public formats."""

from transverse.datasets._read_gctx import read_gctx
from transverse.datasets._simulate_reactomes import simulate_reactomes
from transverse.datasets._simulate_responses import simulate_responses
from transverse.datasets._simulate_signatures import simulate_signatures
from transverse.datasets._simulate_species import simulate_species

__all__ = ["read_gctx", "simulate_reactomes", "simulate_responses", "simulate_signatures", "simulate_species"]
