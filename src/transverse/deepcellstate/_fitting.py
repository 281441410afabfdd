"""A stage of training after another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from scvi import settings

from transverse._training import KeepBest
from transverse._validation import examples

from ._pairs import DECODER, Grid, PairDataSplitter, split
from ._stages import Stage, stage_key
from ._training_plan import KeepBestDecoders


class FittingMixin:
    """Fits of the module, one for each stage, that share a history."""

    def _split(
        self, grid: Grid, kwargs: dict, train_size: float | None, validation_size: float | None, shuffle: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        external = kwargs.pop("external_indexing", None)
        if external is not None:
            train, validation = (np.sort(np.asarray(rows, dtype=int)) for rows in [*external, [], []][:2])
            if wrong := np.intersect1d(train, validation).tolist():
                raise ValueError(
                    f"Signatures are both in training and in validation: {examples(self.adata.obs_names[wrong])}."
                )
        else:
            train, validation = split(grid, train_size, validation_size, shuffle, settings.seed or 0)
        known = np.union1d(train, validation)
        if len(validation) and not len(grid.pairs(validation, "cross", sources=known)):
            raise ValueError(
                f"None of the {len(validation)} signatures for validation has its perturbation in another cell type."
            )
        if not len(grid.pairs(train, "cross")):
            raise ValueError(
                "No perturbation of the training was measured in two cell types: there is nothing to learn."
            )
        return train, validation

    def _splitter(
        self, stage: Stage, grid: Grid, train: np.ndarray, validation: np.ndarray, **kwargs
    ) -> PairDataSplitter:
        """Pairs of a stage."""
        return self._data_splitter_cls(
            self.adata_manager,
            grid,
            train,
            validation,
            kind=stage.kind,
            validation_kind=stage.validation_kind,
            shared=stage.shared,
            n_passes=stage.n_passes,
            **kwargs,
        )

    def _fit_stage(self, stage: Stage, splitter: PairDataSplitter, plan: dict, options: dict, restart: int = 0) -> None:
        """One fit of Lightning."""
        options = dict(options)
        callbacks = list(options.pop("callbacks", None) or [])
        if options.pop("early_stopping"):
            options.setdefault("check_val_every_n_epoch", 1)
            if stage.name == "frozen":
                callbacks.append(KeepBestDecoders(stage.patience))
            else:
                callbacks.append(KeepBest(stage.monitor, stage.mode))
                options |= {
                    "early_stopping": True,
                    "early_stopping_monitor": stage.monitor,
                    "early_stopping_mode": stage.mode,
                    "early_stopping_patience": stage.patience,
                    "early_stopping_min_delta": 0.0,
                }
        self.module.train()
        runner = self._train_runner_cls(
            self,
            training_plan=self._training_plan_cls(
                self.module,
                **{"lr": stage.lr, **plan},
                train_encoder=stage.train_encoder,
            ),
            data_splitter=splitter,
            max_epochs=stage.max_epochs,
            callbacks=callbacks,
            stage=stage_key(stage, restart),
            **options,
        )
        n_before, names = self._n_epochs(), self._take_names()
        try:
            runner()
        finally:
            if names:
                self.history_ |= names
        self.module.encoder.requires_grad_(True)
        if stage.shared:
            for decoder in self.module.decoders[1:]:
                decoder.load_state_dict(self.module.decoders[0].state_dict())
        self._name_stage(stage.name, restart, n_before)

    def _n_epochs(self) -> int:
        history = self.history_
        return len(history["train_loss"]) if isinstance(history, dict) and "train_loss" in history else 0

    def _take_names(self) -> dict[str, pd.DataFrame]:
        """The names of stages out of the history: loggers take all that is in it for numbers."""
        history = self.history_ if isinstance(self.history_, dict) else {}
        return {key: history.pop(key) for key in ("stage", "restart") if key in history}

    def _name_stage(self, name: str, restart: int, n_before: int) -> None:
        if not isinstance(self.history_, dict):  # a logger of the user's
            return
        index = pd.RangeIndex(n_before, self._n_epochs(), name="epoch")
        for key, value in {"stage": name, "restart": restart}.items():
            new = pd.DataFrame({key: value}, index=index, dtype=object)
            self.history_[key] = pd.concat([self.history_[key], new]) if key in self.history_ else new

    def _start_again(self, start: dict[str, torch.Tensor], restart: int) -> None:
        """Other random weights, from the seed of scvi-tools and the number of the restart; of a trained model its own."""
        if self.trained_decoders_:
            self.module.load_state_dict(start)
            return
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed((settings.seed or 0) + restart)
            stats = self.summary_stats
            module = self._module_cls(n_genes=stats.n_vars, n_cell_types=stats.n_cell_type, **self._network_arguments())
        module.scale.copy_(self.module.scale)
        self.module.load_state_dict(module.state_dict())

    def _remember(self, grid: Grid, train: np.ndarray, decoders: Sequence[int] | None = None) -> None:
        """What was trained on, for predictions to say so."""
        self.module.eval()
        found = {self.cell_types_[i] for i in np.unique(grid.pairs(train, "cross", decoders)[:, DECODER])}
        self.trained_decoders_ = [name for name in self.cell_types_ if name in found or name in self.trained_decoders_]
        by, cell_type_key = self._keys
        labels = self.adata.obs[[*by, cell_type_key]].iloc[train].astype(str)
        new = {tuple(row) for row in labels.itertuples(index=False, name=None)}
        self.training_conditions_ = sorted(new | {tuple(row) for row in self.training_conditions_})

    def _network_arguments(self) -> dict:
        """Arguments that the networks were made with."""
        arguments = {**self.init_params_["non_kwargs"], **self.init_params_["kwargs"].get("kwargs", {})}
        return {key: value for key, value in arguments.items() if key not in ("adata", "registry")}
