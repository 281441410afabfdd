"""Preparing data: orthologues, splits, and what the models expect of their input."""

from ._average_signatures import average_signatures
from ._leave_out import leave_out
from ._ortholog_match import OrthologMatch
from ._orthologs import match_orthologs
from ._read_orthologs import read_orthologs
from ._signatures import signatures
from ._split_checks import check_split
from ._splits import split_responses
from ._stack_species import stack_species, unstack_species

__all__ = [
    "OrthologMatch",
    "average_signatures",
    "check_split",
    "leave_out",
    "match_orthologs",
    "read_orthologs",
    "signatures",
    "split_responses",
    "stack_species",
    "unstack_species",
]
