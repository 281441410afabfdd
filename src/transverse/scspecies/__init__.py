"""scSpecies: a pretrained scVI model of one species carried to another."""

from ._model import ScSpecies
from ._module import ScSpeciesVAE
from ._training_plan import ScSpeciesTrainingPlan

__all__ = ["ScSpecies", "ScSpeciesTrainingPlan", "ScSpeciesVAE"]
