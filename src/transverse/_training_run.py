"""A training as its user sees it: it can be interrupted, and go on from a file where it was broken off."""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only
from scvi import settings
from scvi.train import TrainRunner

from ._compat import checked_load
from ._validation import examples

# What of a training's arguments makes no difference to its result, or cannot be compared.
_FREE = {"self", "checkpoint_path", "accelerator", "devices", "enable_progress_bar", "progress_bar_refresh_rate"}
# Attributes of a model that stages of training leave to the next, where it has them.
_CARRIED = ("is_trained_", "history_", "trained_stages_", "training_conditions_")


def training_run(train: Callable) -> Callable:
    """Decorate ``train`` of a model, so that Ctrl-C ends it gently and ``checkpoint_path`` lets it go on later.

    The first Ctrl-C ends the training after the mini-batch: what follows a training is done still, and then a
    KeyboardInterrupt is raised that says in which epoch. A second stops at once. Elsewhere than in the main thread, where
    signals never arrive, under a handler of the user's, and with several processes, which would wait for one another,
    Ctrl-C does what it does without us.
    """
    signature = inspect.signature(train)

    @functools.wraps(train)
    def wrapper(self, *args, **kwargs):
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        with Run(self, bound.arguments) as self._run:
            try:
                train(self, *args, **kwargs)
            finally:
                self._run = None

    return wrapper


class Run:
    """One call of ``train``: its stages, what interrupts it, and its file.

    Parameters
    ----------
    model
        The model.
    arguments
        Arguments of the call by name.
    """

    def __init__(self, model, arguments: dict[str, Any]):
        self.model = model
        self.trainer = None
        self.stage = ""
        self.interrupted: str | None = None  # where
        self.done: list[str] = []  # stages
        path = arguments.get("checkpoint_path")
        self.path = None if path is None else Path(path)
        self.saved: dict[str, Any] = {}
        if self.path is None:
            return
        self.identity = _identity(model, arguments)
        if not self.path.parent.is_dir():
            raise ValueError(f"checkpoint_path={str(self.path)!r}: there is no folder {str(self.path.parent)!r}.")
        if self.path.exists():
            self._read()

    def _read(self) -> None:
        """What the file says, and the model as it was when the stage of the file began."""
        self.saved = checked_load(self.path, "checkpoint_path").get("transverse", {})
        known = self.saved.get("identity", {})
        names = dict.fromkeys([*self.identity, *known])
        if differing := [name for name in names if known.get(name) != self.identity.get(name)]:
            name = differing[0]
            raise ValueError(
                f"checkpoint_path={str(self.path)!r} is of another training: {examples(differing)} differ "
                f"({name}: {known.get(name, 'none')} there, {self.identity.get(name, 'none')} here). "
                "Go on with the same data and arguments, or name another file."
            )
        self.done = list(self.saved["done"])
        for key, value in self.saved["carried"].items():
            setattr(self.model, key, unpack(value))

    def __enter__(self) -> Run:
        self._handles = (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        )
        if self._handles:
            signal.signal(signal.SIGINT, self._interrupt)
        return self

    def _interrupt(self, signum, frame) -> None:
        """First, or a second time, or outside of a training's epochs."""
        trainer = self.trainer
        if trainer is None or self.interrupted or trainer.world_size > 1:
            signal.default_int_handler(signum, frame)
        self.interrupted = self._where()
        trainer.should_stop = True

    def _where(self) -> str:
        stage = "" if self.stage == StageRunner.only else f" of the stage {self.stage!r}"
        return f"in epoch {self.trainer.current_epoch + 1} of {self.trainer.max_epochs}{stage}"

    def __exit__(self, kind, error, traceback) -> None:
        if self._handles:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if kind is None and not self.interrupted:
            if self.path is not None and rank_zero_only.rank == 0:
                self.path.unlink(missing_ok=True)
            return
        kept = f" Call train() with the same arguments to go on from {str(self.path)!r}." if self.path else ""
        if kind is None:
            raise KeyboardInterrupt(
                f"Training was interrupted {self.interrupted}. The model keeps the weights that it had then: it can be used, "
                f"saved and trained further.{kept}"
            )
        # Lightning turns a KeyboardInterrupt within an epoch into an exit from Python
        if issubclass(kind, SystemExit) and self.trainer is not None and self.trainer.interrupted:
            self.model.module.eval()
            raise KeyboardInterrupt(
                f"Training was broken off {self._where()}, perhaps within a step.{kept or ' Train again.'}"
            ) from error

    def is_past(self, stage: str) -> bool:
        """Whether a stage is over: in the training that this one goes on from, or because of an interruption."""
        return stage in self.done or self.interrupted is not None


class StageRunner(TrainRunner):
    """scvi-tools' runner for a stage of a training, that heeds interruptions and keeps a file to go on from.

    Parameters
    ----------
    model, *args, **kwargs
        As of :class:`scvi.train.TrainRunner`.
    stage
        Name of the stage, different from those of the others.
    """

    only = "training"  # the name of a stage that has no others

    def __init__(self, model, *args, stage: str = only, **kwargs):
        self.run, self.stage = model._run, stage
        saved = self.run.saved if self.run is not None else {}
        goes_on = saved.get("stage") == stage and stage not in self.run.done
        if goes_on:
            kwargs["ckpt_path"] = str(self.run.path)
        super().__init__(model, *args, **kwargs)
        if self.run is not None and self.run.path is not None:
            # last, when all others have done what they do at the start of an epoch
            self.trainer.callbacks.append(Checkpoint(self.run, stage, saved if goes_on else None))

    def __call__(self) -> None:
        """Run the stage."""
        if self.run is None:
            return super().__call__()
        self.run.trainer, self.run.stage = self.trainer, self.stage
        super().__call__()
        self.run.done.append(self.stage)


class Checkpoint(Callback):
    """Writes all that a training goes on from to its file, when an epoch starts.

    Its mini-batches must be a function of the seed and the number of the epoch: the first is drawn before. Beside what
    Lightning keeps, the file has the states of the random number generators, the history, and what the stages before left
    in the model.

    Parameters
    ----------
    run
        The training.
    stage
        Name of the stage.
    saved
        What the file says, if this stage goes on from it.
    """

    def __init__(self, run: Run, stage: str, saved: dict[str, Any] | None):
        self.run, self.stage, self.saved = run, stage, saved
        model = run.model
        self.carried = {key: pack(getattr(model, key)) for key in _CARRIED if hasattr(model, key)}
        self.done = list(run.done)

    def on_train_start(self, trainer, pl_module) -> None:
        """Take the history up."""
        data = getattr(trainer.logger, "history", None) if trainer.is_global_zero else None
        if self.saved and isinstance(data, dict):
            data.update(unpack(self.saved["history"]))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx: int) -> None:
        """Write the file, or go on with the random numbers of the file, before the first mini-batch of an epoch."""
        if batch_idx:
            return
        if self.saved:
            _set_random_state(self.saved["random"])
            self.saved = None
            return
        temporary = self.run.path.with_name(f".{self.run.path.name}.{os.environ.get('LOCAL_RANK', 0)}.saving")
        trainer.save_checkpoint(temporary, weights_only=False)
        if trainer.is_global_zero:
            os.replace(temporary, self.run.path)

    def on_save_checkpoint(self, trainer, pl_module, checkpoint: dict[str, Any]) -> None:
        """Add what Lightning does not keep, and put the loop back to the end of the epoch before."""
        for progress in checkpoint["loops"]["fit_loop"]["epoch_progress"].values():
            progress |= dict.fromkeys(("ready", "started"), progress["processed"])
        history = getattr(trainer.logger, "history", None)
        checkpoint["transverse"] = {
            "identity": self.run.identity,
            "stage": self.stage,
            "done": self.done,
            "carried": self.carried,
            "history": pack(history if isinstance(history, dict) else {}),
            "random": _random_state(),
        }


def _identity(model, arguments: dict[str, Any]) -> dict[str, str]:
    """What a training is told apart by: the model's class and network, data, seed and arguments, as text."""
    adata = model.adata
    names = "\n".join([*map(str, adata.obs_names), "", *map(str, adata.var_names)]) if adata is not None else ""
    shapes = [(name, tuple(tensor.shape)) for name, tensor in model.module.state_dict().items()]
    found = {
        "model": type(model).__name__,
        "network": hashlib.sha256(repr(shapes).encode()).hexdigest()[:12],
        "cells and genes": hashlib.sha256(names.encode()).hexdigest()[:12],
        "scvi.settings.seed": repr(settings.seed),
    }
    for name, value in {**arguments, **arguments.get("trainer_kwargs", {})}.items():
        if name not in _FREE and isinstance(value, (str, int, float, bool, type(None))):
            found[name] = repr(value)
    return found


def pack(value: Any) -> Any:
    """Tables as plain lists, and any mapping as a dict: a file of plain values can be read without running any code."""
    if isinstance(value, dict):
        return {key: pack(item) for key, item in value.items()}
    if isinstance(value, pd.DataFrame):
        return {
            "index": value.index.tolist(),
            "name": value.index.name,
            "columns": value.columns.tolist(),
            "values": value.astype(object).to_numpy().tolist(),
            "types": [str(kind) for kind in value.dtypes],
        }
    return list(value) if isinstance(value, list) else value


def unpack(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if value.keys() != {"index", "name", "columns", "values", "types"}:
        return {key: unpack(item) for key, item in value.items()}
    index = pd.Index(value["index"], name=value["name"])
    table = pd.DataFrame(value["values"], index=index, columns=value["columns"], dtype=object)
    return table.astype(dict(zip(value["columns"], value["types"], strict=True)))


def _random_state() -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state()
    state = {"torch": torch.get_rng_state(), "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *rest]}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"].cpu())
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.cpu().numpy().astype(np.uint32), *rest))
    if "cuda" in state and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([tensor.cpu() for tensor in state["cuda"]])
