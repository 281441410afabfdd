"""XTransferCDR: a perturbation's effect carried to another cellular context."""

from ._model import REFERENCE, XTransferCDR, default_epochs
from ._module import XTransferCDRModule
from ._training_plan import XTransferCDRTrainingPlan

__all__ = ["REFERENCE", "XTransferCDR", "XTransferCDRModule", "XTransferCDRTrainingPlan", "default_epochs"]
