from __future__ import annotations

from typing import NamedTuple

import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

from transverse._training import OnePassAdamPlan, copy_state

from ._constants import DEEPCELLSTATE_KEYS
from ._module import DeepCellStateModule


class Agreement(NamedTuple):
    """Agreement of predictions of one decoder with the truth, over a mini-batch."""

    decoder: int
    loss: torch.Tensor
    pearson: torch.Tensor
    n_pairs: int
    n_targets: int


def agreement(module: DeepCellStateModule, batch: dict[str, torch.Tensor]) -> Agreement:
    """Loss of the pairs, and the Pearson correlation of each target with the mean prediction from its sources."""
    _, generated, output = module(batch)
    group = batch[DEEPCELLSTATE_KEYS.GROUP_KEY]
    n = int(group.max()) + 1
    zeros = generated["x"].new_zeros(n, generated["x"].shape[1])
    predicted, target = (
        # in the same way for the target, which is the same in all of its pairs
        zeros.index_add(0, group, values) / torch.bincount(group, minlength=n)[:, None]
        for values in (generated["x"], batch[DEEPCELLSTATE_KEYS.TARGET_KEY])
    )
    predicted, target = (values - values.mean(dim=1, keepdim=True) for values in (predicted, target))
    pearson = torch.nn.functional.cosine_similarity(predicted, target, dim=1).mean()
    return Agreement(int(batch[DEEPCELLSTATE_KEYS.DECODER_KEY]), output.loss, pearson, len(group), n)


class DeepCellStateTrainingPlan(OnePassAdamPlan):
    """Adam, and the validation as the reference scores it.

    Parameters
    ----------
    module
        A :class:`~transverse.deepcellstate.DeepCellStateModule`.
    lr, weight_decay, eps
        Of Adam.
    reset_moments
        Forget the moments of Adam at the start of every epoch.
    train_encoder
        Whether the encoder learns, or its weights stay as they are.
    **kwargs
        Keyword arguments of :class:`scvi.train.TrainingPlan`.

    Examples
    --------
    Its arguments go to :meth:`~transverse.DeepCellState.train`; with ``adata`` of the example of :class:`~transverse.DeepCellState`:

    >>> model = tv.DeepCellState(adata)
    >>> model.train(max_epochs=1, plan_kwargs={"weight_decay": 1e-4})
    """

    def __init__(
        self,
        module: DeepCellStateModule,
        *,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        eps: float = 1e-8,
        reset_moments: bool = False,
        train_encoder: bool = True,
        **kwargs,
    ):
        super().__init__(module, lr=lr, weight_decay=weight_decay, eps=eps, **kwargs)
        self.reset_moments, self.train_encoder = reset_moments, train_encoder
        self.decoder_losses: list[tuple[int, float, int]] = []

    def configure_optimizers(self):
        """Adam on what is to learn."""
        self.module.encoder.requires_grad_(self.train_encoder)
        return super().configure_optimizers()

    def on_train_epoch_start(self) -> None:
        """A new turn for all decoders."""
        if self.reset_moments:
            self.optimizers().optimizer.state.clear()

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Loss of a mini-batch of pairs with one decoder."""
        _, _, output = self.forward(batch, loss_kwargs=self.loss_kwargs)
        values = {f"{name}_train": value for name, value in output.extra_metrics.items()}
        self._log(values, output.n_obs_minibatch)
        self._log({"train_loss": output.loss.detach()}, output.n_obs_minibatch, prog_bar=True)
        return output.loss

    def on_validation_epoch_start(self) -> None:
        """Collect the losses of decoders anew."""
        self.decoder_losses = []

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        """Log the loss over pairs and the correlation over targets."""
        found = agreement(self.module, batch)
        self.decoder_losses.append((found.decoder, float(found.loss), found.n_pairs))
        self._log({"validation_loss": found.loss}, found.n_pairs)
        self._log({"pearson_validation": found.pearson}, found.n_targets)

    def _log(self, values: dict[str, torch.Tensor], batch_size: int, **options) -> None:
        self.log_dict(
            values,
            batch_size=batch_size,
            on_step=self.on_step,
            on_epoch=self.on_epoch,
            sync_dist=self.use_sync_dist,
            **options,
        )


class KeepBestDecoders(Callback):
    """Keeps every decoder as it was at its own lowest validation loss, the start included; for a frozen encoder.

    Training stops when no decoder has become better for a number of epochs.

    Parameters
    ----------
    patience
        That number.
    """

    def __init__(self, patience: int):
        self.patience = patience
        self.best: dict[int, float] = {}
        self._states: dict[int, dict[str, torch.Tensor]] = {}
        self._waited: dict[int, int] = {}

    @torch.no_grad()
    def on_fit_start(self, trainer, pl_module) -> None:
        """Decoders as they come from the stage before."""
        if self.best:  # of a training that goes on
            return
        losses = decoder_losses(pl_module.module, trainer.datamodule.val_dataloader())
        pl_module.module.train()
        self._compare(losses, pl_module.module)

    def on_validation_epoch_end(self, trainer, pl_module) -> None:
        """Keep what became better."""
        self._compare(_means(pl_module.decoder_losses), pl_module.module)
        if all(waited >= self.patience for waited in self._waited.values()):
            trainer.should_stop = True

    def _compare(self, losses: dict[int, float], module: DeepCellStateModule) -> None:
        for i, loss in losses.items():
            self._waited[i] = self._waited.get(i, 0) + 1
            if i not in self.best or loss < self.best[i]:
                self.best[i], self._waited[i] = loss, 0
                self._states[i] = copy_state(module.decoders[i])

    def state_dict(self) -> dict:
        """What a training goes on from."""
        return {"best": self.best, "states": self._states, "waited": self._waited}

    def load_state_dict(self, state_dict: dict) -> None:
        """Go on from it."""
        self.best, self._states, self._waited = (state_dict[key] for key in ("best", "states", "waited"))

    def on_fit_end(self, trainer, pl_module) -> None:
        """Put the best decoders back."""
        for i, state in self._states.items():
            pl_module.module.decoders[i].load_state_dict(state)


def decoder_losses(module: DeepCellStateModule, loader: DataLoader) -> dict[int, float]:
    """Mean validation loss over the pairs of every decoder."""
    return _means([(found.decoder, float(found.loss), found.n_pairs) for found in evaluate(module, loader)])


def mean_pearson(module: DeepCellStateModule, loader: DataLoader) -> float:
    """Mean correlation over the targets of a validation."""
    return _means([(0, float(found.pearson), found.n_targets) for found in evaluate(module, loader)])[0]


@torch.no_grad()
def evaluate(module: DeepCellStateModule, loader: DataLoader) -> list[Agreement]:
    """Agreement over all mini-batches; leaves the module in evaluation mode."""
    module.eval()
    batches = ({key: tensor.to(module.device) for key, tensor in batch.items()} for batch in loader)
    return [agreement(module, batch) for batch in batches]


def _means(values: list[tuple[int, float, int]]) -> dict[int, float]:
    """Weighted means by decoder, over the mini-batches of all processes, of tuples of decoder, value and weight."""
    if torch.distributed.is_initialized():
        of_process = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(of_process, values)
        values = [value for some in of_process for value in some]
    return {
        i: sum(value * n for j, value, n in values if j == i) / sum(n for j, _, n in values if j == i)
        for i in sorted({i for i, _, _ in values})
    }
