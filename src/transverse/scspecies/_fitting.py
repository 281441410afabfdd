from __future__ import annotations

import warnings
from os import PathLike

import torch
from scvi import settings

from transverse._compat import devices_dsp
from transverse._training_run import training_run

from ._context import default_epochs
from ._votes import eligible_cells, vote


class FittingMixin:
    """Training of the target, aligned with the context."""

    @training_run
    @devices_dsp.dedent
    def train(
        self,
        max_epochs: int | None = None,
        agreement_quantile: float | None = None,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        train_size: float | None = None,
        validation_size: float | None = None,
        shuffle_set_split: bool = True,
        batch_size: int = 128,
        early_stopping: bool = False,
        checkpoint_path: str | PathLike | None = None,
        datasplitter_kwargs: dict | None = None,
        plan_kwargs: dict | None = None,
        **trainer_kwargs,
    ):
        r"""Train the outer encoder, library encoder and decoder of the target, aligned with the context.

        Parameters
        ----------
        max_epochs
            Epochs; by default 30 for more than 10,000 cells and 60 otherwise, as in the paper, and for small data as many
            as make 500 steps of the optimiser.
        agreement_quantile
            :math:`p`: within each data-level label, the ``1 - p`` share of cells with the highest agreement among their
            neighbours is aligned. By default 0.8 for more than 10,000 cells and 0.6 otherwise, as in the paper.
        %(param_accelerator)s
        %(param_devices)s
        train_size
            Share of the cells to train on. By default all of them, or 0.9 with early stopping.
        validation_size
            Share of the cells held out to monitor the loss; by default the rest.
        shuffle_set_split
            Whether to shuffle the cells before splitting them.
        batch_size
            Cells in a mini-batch.
        early_stopping
            Stop when the monitored loss no longer falls; see :class:`scvi.train.Trainer`.
        checkpoint_path
            File to keep the state of the training in, written anew at the start of every epoch. If it exists, a training of the
            same data and arguments goes on from it, to the result of one that was not broken off; at the end it is removed.
        datasplitter_kwargs
            Keyword arguments of :class:`scvi.dataloaders.DataSplitter`.
        plan_kwargs
            Keyword arguments of :class:`~transverse.scspecies.ScSpeciesTrainingPlan`: schedules of the KL and alignment
            weights, and the optimiser's settings.
        **trainer_kwargs
            Keyword arguments of :class:`scvi.train.Trainer`.

        Examples
        --------
        >>> model = tv.ScSpecies.from_scvi_model(context, human, human.uns["orthologs"], labels_key="cell_type")
        >>> model.train(max_epochs=2, agreement_quantile=0.5)
        >>> len(model.history["train_loss"])
        2
        """
        if self.adata is None or self.adata.obs_names.tolist() != self.cell_names_:
            raise ValueError(
                "Training needs the target cells that the neighbours were searched for. "
                "For other cells, build a model with ScSpecies.from_scvi_model()."
            )
        n_obs = self.adata.n_obs
        max_epochs = default_epochs(n_obs, batch_size) if max_epochs is None else max_epochs
        if agreement_quantile is None:
            agreement_quantile = 0.8 if n_obs > 10_000 else 0.6
        if not 0 <= agreement_quantile < 1:
            raise ValueError(f"agreement_quantile must be in [0, 1), but got {agreement_quantile}.")
        labels = next(iter(self.context_labels_.values()))
        codes, agreement = vote(labels["codes"][self.neighbors_], len(labels["categories"]))
        self.eligible_ = eligible_cells(codes, agreement, agreement_quantile, seed=settings.seed or 0)
        train_size = (0.9 if early_stopping else 1.0) if train_size is None else train_size
        splitter = self._data_splitter_cls(
            self.adata_manager,
            self.neighbors_,
            self.eligible_,
            train_size=train_size,
            validation_size=validation_size,
            shuffle_set_split=shuffle_set_split,
            batch_size=batch_size,
            **(datasplitter_kwargs or {}),
        )
        runner = self._train_runner_cls(
            self,
            training_plan=self._training_plan_cls(self.module, **(plan_kwargs or {})),
            data_splitter=splitter,
            max_epochs=max_epochs,
            accelerator=accelerator,
            devices=devices,
            early_stopping=early_stopping,
            **trainer_kwargs,
        )
        # Lightning leaves the mode as it finds it, and inference, loading and earlier training all end in evaluation mode
        self.module.train()
        self.module.choices = torch.full((n_obs,), -1)
        try:
            with warnings.catch_warnings():
                # the frozen context is in evaluation mode on purpose
                warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")
                runner()
        finally:
            self.module.choices = None
        self._review_alignment()
