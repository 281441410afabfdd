from __future__ import annotations

from dataclasses import replace

from transverse._training import OnePassAdamPlan


class ScSpeciesTrainingPlan(OnePassAdamPlan):
    r"""Training with a schedule for the alignment weight beside that of the KL divergence.

    Parameters
    ----------
    module
        A :class:`~transverse.scspecies.ScSpeciesVAE`.
    min_alignment_weight, max_alignment_weight
        :math:`\eta` in the first epoch and after the warm-up.
    n_epochs_alignment_warmup
        Epochs over which the weight rises linearly.
    min_kl_weight, max_kl_weight, n_epochs_kl_warmup
        The same for :math:`\beta`; 0.1 to 1 over ten epochs in the paper.
    lr, eps, weight_decay
        Of Adam; the paper trains with PyTorch's defaults.
    **kwargs
        Keyword arguments of :class:`scvi.train.TrainingPlan`.
    """

    def __init__(
        self,
        module,
        *,
        min_alignment_weight: float = 10.0,
        max_alignment_weight: float = 25.0,
        n_epochs_alignment_warmup: int = 10,
        min_kl_weight: float = 0.1,
        max_kl_weight: float = 1.0,
        n_epochs_kl_warmup: int = 10,
        lr: float = 1e-3,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        **kwargs,
    ):
        self.min_alignment_weight = min_alignment_weight
        self.max_alignment_weight = max_alignment_weight
        self.n_epochs_alignment_warmup = n_epochs_alignment_warmup
        super().__init__(
            module,
            min_kl_weight=min_kl_weight,
            max_kl_weight=max_kl_weight,
            n_epochs_kl_warmup=n_epochs_kl_warmup,
            lr=lr,
            eps=eps,
            weight_decay=weight_decay,
            **kwargs,
        )

    @property
    def alignment_weight(self) -> float:
        """Weight of the alignment term in the current epoch."""
        span = self.max_alignment_weight - self.min_alignment_weight
        progress = min(1.0, self.current_epoch / max(self.n_epochs_alignment_warmup, 1))
        return self.min_alignment_weight + span * progress

    def training_step(self, batch, batch_idx):
        """Take one optimisation step with the weights of the current epoch."""
        self.loss_kwargs.update(alignment_weight=self.alignment_weight, epoch=self.current_epoch)
        return super().training_step(batch, batch_idx)

    def on_save_checkpoint(self, checkpoint) -> None:
        """Keep which candidates were chosen."""
        checkpoint["choices"] = self.module.choices

    def on_load_checkpoint(self, checkpoint) -> None:
        """Go on with them."""
        self.module.choices = checkpoint["choices"]

    def compute_and_log_metrics(self, loss_output, metrics, mode: str) -> None:
        """Log the terms of the loss; the alignment outside of inference mode, in which processes cannot average it."""
        alignment = loss_output.extra_metrics
        super().compute_and_log_metrics(replace(loss_output, extra_metrics={}), metrics, mode)
        self.log_dict(
            {f"{key}_{mode}": value for key, value in alignment.items()},
            on_step=self.on_step,
            on_epoch=self.on_epoch,
            batch_size=loss_output.n_obs_minibatch,
            sync_dist=self.use_sync_dist,
        )
