"""Training in two stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Literal

import numpy as np
import pandas as pd

from transverse._compat import devices_dsp
from transverse._training import KeepBest
from transverse._training_run import training_run
from transverse._validation import examples

from ._batches import BatchDataset, BatchSplitter
from ._constants import UGE_KEYS

StageName = Literal["genes", "samples"]


class FittingMixin:
    """Gene vectors first, and then all."""

    @training_run
    @devices_dsp.dedent
    def train(
        self,
        max_epochs: int | Mapping[StageName, int] | None = None,
        stages: Sequence[StageName] = ("genes", "samples"),
        hold_out: Sequence[tuple[str, str, str]] = (),
        label_species: str | Sequence[str] | None = None,
        profile_weight: float = 0.8,
        level_weight: float = 2.5,
        translated: float = 0.5,
        n_tokens: int = 256,
        genes_per_batch: int = 2048,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        train_size: float | None = None,
        validation_size: float | None = None,
        shuffle_set_split: bool = True,
        batch_size: int = 32,
        early_stopping: bool = False,
        checkpoint_path: str | PathLike | None = None,
        datasplitter_kwargs: dict | None = None,
        plan_kwargs: dict | None = None,
        **trainer_kwargs,
    ):
        """Train gene vectors on the reactomes, and then all on samples and reactomes.

        Parameters
        ----------
        max_epochs
            Epochs, or a dict of them by stage. By default 30 of 50 mini-batches in the stage of genes, and 30 in that of
            samples (paper: 100).
        stages
            ``"genes"``: gene vectors and the head of reactomes, without the transformer. ``"samples"``: all terms.
        hold_out
            Species, organ and drug of samples that enter neither training nor any average.
        label_species
            Species whose labels of organ and drug are learnt from; by default all. Name the source to predict labels of
            another species from it alone.
        profile_weight, level_weight
            Weight in the reactome's features of how a gene differs between organs, and of its level, beside each change, which
            has weight 1 (ours). They count for what genes are alike.
        translated
            Share of the mini-batches of a species' samples that are shown as another species' (ours): with the values and the
            labels that they have, and in place of each gene one that the model maps it to, drawn by its probability. It
            has the transformer treat genes that do the same alike.
        n_tokens
            Genes of a species in a mini-batch of samples, drawn anew for each.
        genes_per_batch
            Genes of a species whose reactome is in a mini-batch.
        %(param_accelerator)s
        %(param_devices)s
        train_size
            Share of the samples to train on: of animals, if the setup has an animal key. By default all, or 0.9 with
            ``early_stopping``. Reactomes are those of the training samples.
        validation_size
            Share of the samples to validate on; by default the rest.
        shuffle_set_split
            Whether to shuffle before splitting.
        batch_size
            Samples in a mini-batch.
        early_stopping
            Stop the stage of samples when the validation loss no longer falls, and keep its best weights.
        checkpoint_path
            File to keep the state of the training in, written anew at the start of every epoch. If it exists, a training of the
            same data and arguments goes on from it, to the result of one that was not broken off; at the end it is removed.
        datasplitter_kwargs
            Keyword arguments of the data loader, and ``external_indexing``.
        plan_kwargs
            Keyword arguments of :class:`~transverse.uge.UGETrainingPlan`. By default ``lr=1e-2`` in the stage of genes and for
            what is new of a model that was extended, else 5e-4 and ``gene_lr=1e-3``.
        **trainer_kwargs
            Keyword arguments of :class:`scvi.train.Trainer`.

        Examples
        --------
        >>> model = tv.UGE(adata, preset="tiny")
        >>> model.train(
        ...     max_epochs={"genes": 1, "samples": 1}, label_species="mouse", hold_out=[("rat", "brain", "drug A")]
        ... )
        >>> model.is_trained
        True
        """
        stages = [stages] if isinstance(stages, str) else list(stages)
        epochs = _epochs(max_epochs, stages)
        for name, value in (("n_tokens", n_tokens), ("genes_per_batch", genes_per_batch), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        if not 0 <= translated <= 1:
            raise ValueError(f"translated={translated} must be between 0 and 1.")
        labels = self._labels(label_species)
        loader_kwargs = dict(datasplitter_kwargs or {})
        train, validation = self._split(
            loader_kwargs, hold_out, train_size, validation_size, shuffle_set_split, early_stopping
        )
        if early_stopping and "samples" in stages and not len(validation):
            raise ValueError("early_stopping needs samples to validate on: choose a train_size below 1.")
        self._fit_features(train, profile_weight, level_weight)
        self._remember(np.concatenate([train, validation]))
        self.training_samples_ = self.adata.obs_names[train].tolist()
        species = self.adata_manager.get_from_registry(UGE_KEYS.SPECIES_KEY).ravel().astype(int)
        dataset = BatchDataset(
            self.adata_manager,
            self.features_,
            self.gene_means_,
            labels,
            self._conditions(),
            self.module.encoder.n_bins,
        )
        options = {
            "tokens": self._tokens(train),
            "genes": [np.flatnonzero(self._gene_species == s) for s in range(len(self.species_))],
            "batch_size": batch_size,
            "n_tokens": n_tokens,
            "n_genes": genes_per_batch,
        }
        for stage in ("genes", "samples"):
            if stage not in stages or self._run.is_past(stage):
                continue
            stage_kwargs = dict(trainer_kwargs)
            callbacks = list(stage_kwargs.pop("callbacks", None) or [])
            if stage == "genes" or not len(validation):  # nothing to validate on
                stage_kwargs.pop("check_val_every_n_epoch", None)
            if stage == "samples" and early_stopping:
                callbacks.append(KeepBest())
                stage_kwargs |= {"early_stopping": True, "early_stopping_monitor": "validation_loss"}
                stage_kwargs.setdefault("check_val_every_n_epoch", 1)
            if stage == "samples" and translated > 0:
                options |= {"translated": translated, "counterparts": self._counterparts()}
            splitter = self._data_splitter_cls(
                self.adata_manager, dataset, train, validation, species, stage == "samples", options, **loader_kwargs
            )
            stage_kwargs |= {"max_epochs": epochs[stage], "accelerator": accelerator, "devices": devices}
            self._run_stage(stage, splitter, plan_kwargs or {}, callbacks=callbacks, **stage_kwargs)
            if stage == "samples":
                self._learnt(labels, train)

    def _run_stage(self, stage: StageName, splitter: BatchSplitter, plan_kwargs: dict, **trainer_kwargs) -> None:
        """Train, and put the history behind that of what was trained before."""
        plan: dict = {"lr": 1e-2} if stage == "genes" else {"lr": 5e-4, "gene_lr": 1e-3}
        hooks = []
        if self.reference_ is not None:  # there is little to be learnt, of few samples
            plan["lr"] = 1e-2
            hooks = self._freeze()
        plan |= plan_kwargs
        if self.reference_ is not None:  # weights decay without a gradient, too
            plan["weight_decay"] = 0.0
        self.module.train()
        runner = self._train_runner_cls(
            self,
            training_plan=self._training_plan_cls(self.module, **plan),
            data_splitter=splitter,
            stage=stage,
            **trainer_kwargs,
        )
        before, was_trained = self.history_ if isinstance(self.history_, dict) else {}, self.is_trained_
        self.is_trained_ = False  # or what is new in the history of this stage is left out
        self._derived.clear()
        try:
            runner()
        finally:
            self._derived.clear()
            if was_trained and not self.is_trained_:  # it failed; what was trained before is there still
                self.is_trained_, self.history_ = True, before
            for hook in hooks:
                hook.remove()
        self._join_history(before, stage)
        self.trained_stages_ = [*self.trained_stages_, stage]

    def _learnt(self, labels: dict[str, np.ndarray], train: np.ndarray) -> None:
        """Forget of organs and drugs that they are new."""
        for key, names in (("organ", self.organs_), ("drug", self.drugs_)):
            seen = {names[i] for i in np.unique(labels[key][train]) if i >= 0}
            self.unlearnt_[key] = [name for name in self.unlearnt_[key] if name not in seen]

    def _join_history(self, before: dict[str, pd.DataFrame], stage: str) -> None:
        """Put the history of a stage behind that of the stages before, and name it."""
        if not isinstance(self.history_, dict) or "train_loss" not in self.history_:  # another's logger, or process
            return
        start = len(before.get("stage", ()))
        epochs = pd.RangeIndex(start, start + len(self.history_["train_loss"]), name="epoch")
        new = {key: table.set_axis(table.index + start) for key, table in self.history_.items()}
        new["stage"] = pd.DataFrame({"stage": stage}, index=epochs, dtype=object)
        self.history_ = before | {key: pd.concat([before[key], x]) if key in before else x for key, x in new.items()}


def _epochs(max_epochs, stages: list[str]) -> dict[str, int]:
    """Epochs by stage."""
    epochs = {"genes": 30, "samples": 30}
    if not stages or (unknown := sorted(set(stages) - set(epochs))):
        raise ValueError(
            f"stages={stages} must be of 'genes' and 'samples'" + (f", not {unknown[0]!r}." if stages else ".")
        )
    if isinstance(max_epochs, Mapping):
        if unknown := sorted(set(max_epochs) - set(epochs)):
            raise ValueError(f"max_epochs has unknown stages: {examples(unknown)}. There are: 'genes', 'samples'.")
        epochs |= max_epochs
    elif max_epochs is not None:
        epochs = dict.fromkeys(epochs, max_epochs)
    if wrong := [stage for stage in stages if epochs[stage] < 1]:
        raise ValueError(
            f"max_epochs={max_epochs} must be at least 1 in the stage {wrong[0]!r}; leave it out of stages."
        )
    return epochs
