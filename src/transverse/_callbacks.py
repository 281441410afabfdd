"""Callbacks of training that several models use."""

from __future__ import annotations

from typing import Literal

import torch
from lightning.pytorch.callbacks import Callback


class KeepBest(Callback):
    """Keeps the weights of the epoch with the best validation, and puts them back after training.

    Of averaged weights, if it comes before the callback that averages them.

    Parameters
    ----------
    monitor
        What to validate by.
    mode
        Whether the lowest (``"min"``) or the highest (``"max"``) is the best.
    """

    def __init__(self, monitor: str = "validation_loss", mode: Literal["min", "max"] = "min"):
        self.monitor, self.sign = monitor, {"min": 1, "max": -1}[mode]
        self.best: float | None = None
        self.epoch: int | None = None
        self._state: dict[str, torch.Tensor] | None = None
        self._validated: dict[str, torch.Tensor] | None = None

    def on_validation_epoch_end(self, trainer, pl_module) -> None:
        """Copy the weights that were validated: an average is taken out of the model before its loss is known."""
        self._validated = copy_state(pl_module.module)

    def on_validation_end(self, trainer, pl_module) -> None:
        """Keep the copy if it is better."""
        value = trainer.callback_metrics.get(self.monitor)
        if value is not None and (self.best is None or self.sign * float(value) < self.sign * self.best):
            self.best, self.epoch, self._state = float(value), trainer.current_epoch, self._validated
        self._validated = None

    def on_fit_end(self, trainer, pl_module) -> None:
        """Put the best weights back, after any average was."""
        if self._state is not None:
            pl_module.module.load_state_dict(self._state)


def copy_state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights and statistics, copied to the CPU."""
    return {key: tensor.detach().cpu().clone() for key, tensor in module.state_dict().items()}
