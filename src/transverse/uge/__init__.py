"""UGE: genes and samples of several species in one space, by how genes respond to drugs."""

from ._constants import PRESETS
from ._model import UGE
from ._module import LOSSES, UGEModule
from ._training_plan import UGETrainingPlan

__all__ = ["LOSSES", "PRESETS", "UGE", "UGEModule", "UGETrainingPlan"]
