from __future__ import annotations

import math

import torch
from scvi.train import TrainingPlan


class UGETrainingPlan(TrainingPlan):
    """AdamW, with a warm-up of the learning rate and a fall along a cosine.

    Parameters
    ----------
    module
        A :class:`~transverse.uge.UGEModule`.
    lr
        Learning rate (paper: 1e-4 for all).
    gene_lr
        Of gene vectors and the reactome; by default ``lr``.
    weight_decay
        Of AdamW; gene vectors and the reactome have the penalty of the loss instead.
    warmup_share
        Share of the steps in which the learning rate rises; it falls to 0 in the rest. None keeps it constant.
    **kwargs
        Keyword arguments of :class:`scvi.train.TrainingPlan`.

    Examples
    --------
    Its arguments go to :meth:`~transverse.UGE.train`; with ``adata`` of the example of :class:`~transverse.UGE`:

    >>> model = tv.UGE(adata, preset="tiny")
    >>> model.train(max_epochs=1, stages=["samples"], plan_kwargs={"lr": 1e-4, "warmup_share": None})
    """

    def __init__(
        self,
        module,
        *,
        lr: float = 5e-4,
        gene_lr: float | None = None,
        weight_decay: float = 0.01,
        warmup_share: float | None = 0.05,
        **kwargs,
    ):
        super().__init__(module, lr=lr, weight_decay=weight_decay, **kwargs)
        self.gene_lr, self.warmup_share = gene_lr if gene_lr is not None else lr, warmup_share

    def configure_optimizers(self):
        """Two groups of parameters and one schedule."""
        of_genes = {id(p) for part in (self.module.genes, self.module.reactome) for p in part.parameters()}
        learning = [p for p in self.module.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in learning if id(p) in of_genes], "lr": self.gene_lr, "weight_decay": 0.0},
            {"params": [p for p in learning if id(p) not in of_genes]},
        ]
        groups = [group for group in groups if group["params"]]
        optimizer = torch.optim.AdamW(groups, lr=self.lr, weight_decay=self.weight_decay)
        if self.warmup_share is None:
            return {"optimizer": optimizer}
        n_steps = self.trainer.estimated_stepping_batches
        n_warmup = max(1, round(self.warmup_share * n_steps))

        def factor(step: int) -> float:
            if step < n_warmup:
                return (step + 1) / n_warmup
            return 0.5 * (1 + math.cos(math.pi * (step - n_warmup) / max(1, n_steps - n_warmup)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: dict, batch_idx: int) -> torch.Tensor:
        """Loss of a mini-batch of samples and genes."""
        return self._step(batch, "train")

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        """Log the loss of a mini-batch of samples."""
        self._step(batch, "validation")

    def _step(self, batch: dict, mode: str) -> torch.Tensor:
        _, _, output = self.forward(batch, loss_kwargs=self.loss_kwargs)
        options = {"on_step": self.on_step, "on_epoch": self.on_epoch, "sync_dist": self.use_sync_dist}
        options["batch_size"] = output.n_obs_minibatch
        self.log(f"{mode}_loss", output.loss.detach(), prog_bar=mode == "train", **options)
        self.log_dict({f"{name}_{mode}": value for name, value in output.extra_metrics.items()}, **options)
        return output.loss
