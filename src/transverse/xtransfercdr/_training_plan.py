from __future__ import annotations

from collections import defaultdict
from math import ceil
from typing import Any

import torch
from lightning.pytorch.callbacks import WeightAveraging

from transverse._training import Means, OnePassAdamPlan

from ._constants import COMBINATION, XTRANSFERCDR_KEYS


class XTransferCDRTrainingPlan(OnePassAdamPlan):
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

    Examples
    --------
    Its arguments go to :meth:`~transverse.XTransferCDR.train`; with ``adata`` of the example of :class:`~transverse.XTransferCDR`:

    >>> model = tv.XTransferCDR(adata)
    >>> model.train(max_epochs=2, plan_kwargs={"lr": 1e-3, "lr_factor": 0.5, "lr_step_epochs": 1})
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
        self._terms = defaultdict(Means)

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Loss of a mini-batch of pairs."""
        return self._step(batch, "train")

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        """Log the loss of a mini-batch of pairs."""
        self._step(batch, "validation")

    def on_train_epoch_end(self) -> None:
        """Log the terms of the training."""
        self._log_terms("train")

    def on_validation_epoch_end(self) -> None:
        """Log the terms of the validation."""
        self._log_terms("validation")

    def _step(self, batch: dict[str, torch.Tensor], mode: str) -> torch.Tensor:
        _, _, output = self.forward(batch, loss_kwargs=self.loss_kwargs)
        n_pairs = output.n_obs_minibatch
        options = {"on_step": self.on_step, "on_epoch": self.on_epoch, "sync_dist": self.use_sync_dist}
        self.log(f"{mode}_loss", output.loss.detach(), prog_bar=mode == "train", batch_size=n_pairs, **options)
        values = dict(output.extra_metrics)
        combination = values.pop("combination")
        n_doubles = int((batch[XTRANSFERCDR_KEYS.KIND_KEY] == COMBINATION).sum())
        self._terms[mode].add(values, n_pairs)
        self._terms[f"combination_{mode}"].add({"combination": combination}, n_doubles)
        return output.loss

    def _log_terms(self, mode: str) -> None:
        # once an epoch: to log each of them in every step takes as long as a small network
        values = self._terms[mode].pop()
        found = self._terms[f"combination_{mode}"].pop()
        if self.log_combination:
            # processes wait for one another here, also one whose pairs have no combination
            values["combination"] = found.get("combination", torch.zeros((), device=self.device))
        self.log_dict({f"{name}_{mode}": value for name, value in values.items()}, sync_dist=self.use_sync_dist)

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

    def average(averaged: list[torch.Tensor], current: list[torch.Tensor], n_averaged: torch.Tensor | int) -> None:
        share = min(decay, (1 + int(n_averaged)) / (10 + int(n_averaged)))
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, 1 - share)
        else:  # numbers of mini-batches
            torch._foreach_copy_(averaged, current)

    return WeightAveraging(multi_avg_fn=average)
