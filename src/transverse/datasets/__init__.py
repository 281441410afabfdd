"""Simulated data with known truth, and readers of public formats."""

from transverse.datasets._simulate_species import simulate_species

__all__ = ["simulate_species"]
