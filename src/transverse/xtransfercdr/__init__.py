"""XTransferCDR: a perturbation's effect carried to another cellular context."""

from ._model import REFERENCE, XTransferCDR, default_epochs
from ._module import XTransferCDRModule
from ._training_plan import KeepBest, XTransferCDRTrainingPlan

__all__ = ["REFERENCE", "KeepBest", "XTransferCDR", "XTransferCDRModule", "XTransferCDRTrainingPlan", "default_epochs"]
