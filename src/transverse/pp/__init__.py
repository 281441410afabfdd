"""Preparing data: orthologues, and what the models expect of their input."""

from ._ortholog_match import OrthologMatch
from ._orthologs import match_orthologs
from ._read_orthologs import read_orthologs

__all__ = ["OrthologMatch", "match_orthologs", "read_orthologs"]
