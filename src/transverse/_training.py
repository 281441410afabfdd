"""What several models use in training."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from lightning.pytorch.callbacks import Callback
from scvi.train import TrainingPlan
from torch.utils.data import DistributedSampler

# What is less is set to 0 once in so many steps, in which it could not fall below 1e-38.
TINY, CLEARED_EVERY = 1e-30, 100


class OnePassAdamPlan(TrainingPlan):
    """A training plan for CPUs too: Adam goes over all weights in one pass, and no weight becomes a denormal number.

    Weights of a unit that is never active decay to numbers of less than 1e-38, with which matrix products are ten times slower.
    """

    def get_optimizer_creator(self):
        """Adam with the arguments of the plan, or the optimiser that was asked for."""
        if self.optimizer_name != "Adam" or self.device.type != "cpu":
            return super().get_optimizer_creator()
        return partial(torch.optim.Adam, lr=self.lr, eps=self.eps, weight_decay=self.weight_decay, fused=True)

    def on_train_batch_end(self, outputs, batch, batch_idx: int) -> None:
        """Set to 0 now and then what would decay to denormal numbers before the next time."""
        if self.global_step % CLEARED_EVERY == 0:
            clear_tiny(self.optimizers(use_pl_optimizer=False))


@torch.no_grad()
def clear_tiny(optimizer: torch.optim.Optimizer) -> None:
    """Set weights, and what the optimiser remembers of them, to 0 where they are less than ``TINY``."""
    for group in optimizer.param_groups:
        for weight in group["params"]:
            for tensor in (weight, *optimizer.state.get(weight, {}).values()):
                if torch.is_tensor(tensor) and tensor.shape == weight.shape:
                    tensor.masked_fill_(tensor.abs() < TINY, 0)


class ProcessSampler(DistributedSampler):
    """A distributed sampler that, where PyTorch has no process group, is that of a single process."""

    def __init__(self, dataset, num_replicas: int | None = None, rank: int | None = None, **kwargs):
        if num_replicas is None and not torch.distributed.is_initialized():
            num_replicas, rank = 1, 0
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, **kwargs)


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

    def state_dict(self) -> dict:
        """What a training goes on from."""
        return {"best": self.best, "epoch": self.epoch, "state": self._state}

    def load_state_dict(self, state_dict: dict) -> None:
        """Go on from it."""
        self.best, self.epoch, self._state = (state_dict[key] for key in ("best", "epoch", "state"))

    def on_fit_end(self, trainer, pl_module) -> None:
        """Put the best weights back, after any average was."""
        if self._state is not None:
            pl_module.module.load_state_dict(self._state)


class Means:
    """Weighted means of what is added, by name."""

    def __init__(self):
        self._names: list[str] = []
        self._total: torch.Tensor | None = None
        self._weight = 0

    def add(self, values: dict[str, torch.Tensor], weight: int) -> None:
        """Add values, always of the same names."""
        if not weight:
            return
        values = {name: value.detach() for name, value in values.items()}
        total = weight * torch.stack(list(values.values()))
        self._names, self._weight = list(values), self._weight + weight
        self._total = total if self._total is None else self._total + total

    def pop(self) -> dict[str, torch.Tensor]:
        """The means since the last time; nothing if nothing was added."""
        means = {} if self._total is None else dict(zip(self._names, self._total / self._weight, strict=True))
        self._total, self._weight = None, 0
        return means


def copy_state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights and statistics, copied to the CPU."""
    return {key: tensor.detach().cpu().clone() for key, tensor in module.state_dict().items()}
