"""Predictors without a network, called as the models are."""

from ._combinations import Additive, LargerSingle, LargestChange, MeanOfSingles
from ._gene_maps import ReactomeCorrelation
from ._labels import CentroidLabels, LogisticLabels, NeighborVote
from ._ridge import PCRidge
from ._same_symbol import SameSymbol
from ._shifts import MeanPerturbation, MeanShift, NearestContext, NoChange, SameCondition
from ._signatures import CopySource, MeanOfSources, MeanSignature, RidgeSignature

__all__ = [
    "Additive",
    "CentroidLabels",
    "CopySource",
    "LargerSingle",
    "LargestChange",
    "LogisticLabels",
    "MeanOfSingles",
    "MeanOfSources",
    "MeanPerturbation",
    "MeanShift",
    "MeanSignature",
    "NearestContext",
    "NeighborVote",
    "NoChange",
    "PCRidge",
    "ReactomeCorrelation",
    "RidgeSignature",
    "SameCondition",
    "SameSymbol",
]
