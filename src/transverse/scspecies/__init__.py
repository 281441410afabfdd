"""scSpecies: a pretrained scVI model of one species carried to another."""

from ._context import CONTEXT_PLAN, default_epochs
from ._model import ScSpecies
from ._module import ScSpeciesVAE
from ._novelty import NOVELTY_MIDPOINT
from ._prototypes import PrototypeTracker
from ._training_plan import ScSpeciesTrainingPlan

__all__ = [
    "CONTEXT_PLAN",
    "NOVELTY_MIDPOINT",
    "PrototypeTracker",
    "ScSpecies",
    "ScSpeciesTrainingPlan",
    "ScSpeciesVAE",
    "default_epochs",
]
