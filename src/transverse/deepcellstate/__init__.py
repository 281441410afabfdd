"""DeepCellState: a perturbation's response in one cell type from its response in another."""

from ._constants import PRESETS
from ._model import DeepCellState
from ._module import DeepCellStateModule
from ._stages import STAGES, Stage
from ._training_plan import DeepCellStateTrainingPlan

__all__ = ["PRESETS", "STAGES", "DeepCellState", "DeepCellStateModule", "DeepCellStateTrainingPlan", "Stage"]
