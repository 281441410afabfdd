from __future__ import annotations

from math import ceil
from typing import Any

import torch
from lightning.pytorch.callbacks import WeightAveraging
from scvi.train import TrainingPlan

from ._constants import COMBINATION, XTRANSFERCDR_KEYS


class XTransferCDRTrainingPlan(TrainingPlan):
    """Adam with a step schedule, and every term of the loss in the history.

    Parameters
    ----------
    module
        A :class:`~transverse.xtransfercdr.XTransferCDRModule`.
    lr, weight_decay, eps
        Of Adam; the weight decay is an L2 penalty, as in the reference (2e-4, 5e-4, PyTorch's 1e-8).
    lr_factor
        The learning rate is multiplied by it after every ``lr_step_epochs`` (reference: 0.5); 1 keeps the rate.
    lr_step_epochs
        By default 8 of 60 epochs, as in the reference, in proportion to the epochs of this training.
    log_combination
        Whether the history has the term of combinations, a mean over those of an epoch. The model sets it where there are any.
    **kwargs
        Keyword arguments of :class:`scvi.train.TrainingPlan`.
    """

    def __init__(
        self,
        module,
        *,
        lr: float = 2e-3,
        weight_decay: float = 5e-4,
        eps: float = 1e-8,
        lr_factor: float = 1.0,
        lr_step_epochs: int | None = None,
        log_combination: bool = False,
        **kwargs,
    ):
        super().__init__(module, lr=lr, weight_decay=weight_decay, eps=eps, lr_factor=lr_factor, **kwargs)
        self.lr_step_epochs = lr_step_epochs
        self.log_combination = log_combination

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Loss of a mini-batch of pairs."""
        return self._step(batch, "train")

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        """Log the loss of a mini-batch of pairs."""
        self._step(batch, "validation")

    def _step(self, batch: dict[str, torch.Tensor], mode: str) -> torch.Tensor:
        _, _, output = self.forward(batch, loss_kwargs=self.loss_kwargs)
        values = {f"{name}_{mode}": value for name, value in output.extra_metrics.items()}
        combination = values.pop(f"combination_{mode}")
        options = {"on_step": self.on_step, "on_epoch": self.on_epoch, "sync_dist": self.use_sync_dist}
        n_pairs = output.n_obs_minibatch
        self.log_dict(values, batch_size=n_pairs, **options)
        self.log(f"{mode}_loss", output.loss.detach(), prog_bar=mode == "train", batch_size=n_pairs, **options)
        if self.log_combination:  # in every step, also those without any: processes wait for one another here
            n_doubles = int((batch[XTRANSFERCDR_KEYS.KIND_KEY] == COMBINATION).sum())
            self.log(f"combination_{mode}", combination, batch_size=n_doubles, **options)
        return output.loss

    def configure_optimizers(self) -> dict[str, Any]:
        """Adam and its schedule."""
        config = super().configure_optimizers()
        if "lr_scheduler" not in config and self.lr_factor != 1:
            every = self.lr_step_epochs or ceil(self.trainer.max_epochs * 8 / 60)
            schedule = torch.optim.lr_scheduler.StepLR(config["optimizer"], every, gamma=self.lr_factor)
            config["lr_scheduler"] = {"scheduler": schedule, "interval": "epoch"}
        return config


def moving_average(decay: float) -> WeightAveraging:
    """Callback that trains on the current weights and validates and ends on their exponential moving average.

    The average looks back over about a tenth of the steps made, and ``1 / (1 - decay)`` at most, so that short trainings
    forget their start as well. Statistics of batch normalisation are averaged with the weights.
    """

    def average(averaged: torch.Tensor, current: torch.Tensor, n_averaged: torch.Tensor | int) -> torch.Tensor:
        share = min(decay, (1 + int(n_averaged)) / (10 + int(n_averaged)))
        return share * averaged + (1 - share) * current

    return WeightAveraging(avg_fn=average)
