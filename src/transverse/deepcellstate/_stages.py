"""The stages of training and their defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Literal

from transverse._validation import examples

from ._pairs import Kind

StageName = Literal["autoencoder", "decoders", "frozen"]


@dataclass(frozen=True)
class Stage:
    """A stage: its pairs, its learning rate and when it ends.

    Parameters
    ----------
    name
        What the history calls it.
    kind, validation_kind
        Pairs to learn from and to validate by.
    monitor, mode
        What is validated, and whether less or more of it is better.
    shared
        Whether one decoder learns for all cell types.
    train_encoder
        Whether the encoder learns.
    n_passes
        How often a decoder goes through its pairs in an epoch.
    max_epochs, patience
        At most so many epochs, and so many without improvement.
    lr
        Of Adam.

    Examples
    --------
    >>> import transverse as tv
    >>> list(tv.deepcellstate.STAGES)
    ['autoencoder', 'decoders', 'frozen']
    >>> stage = tv.deepcellstate.STAGES["decoders"]
    >>> stage.monitor, stage.max_epochs, stage.patience
    ('pearson_validation', 99, 3)
    """

    name: StageName
    kind: Kind
    validation_kind: Kind
    monitor: str
    mode: Literal["min", "max"]
    shared: bool
    train_encoder: bool
    n_passes: int
    max_epochs: int
    patience: int
    lr: float


STAGES: dict[StageName, Stage] = {
    stage.name: stage
    for stage in (
        Stage("autoencoder", "self", "self", "validation_loss", "min", True, True, 1, 30, 10, 1e-3),
        Stage("decoders", "both", "cross", "pearson_validation", "max", False, True, 2, 99, 3, 1e-3),
        Stage("frozen", "cross", "cross", "validation_loss", "min", False, False, 1, 100, 5, 5e-4),
    )
}


def stage_key(stage: Stage, restart: int) -> str:
    """What tells the stage apart from those of other restarts."""
    return f"{stage.name}, restart {restart}"


def choose_stages(
    names: Sequence[str] | None,
    trained: bool,
    max_epochs: int | Mapping[str, int] | None,
    patience: int | Mapping[str, int] | None,
    lr: float | Mapping[str, float] | None,
) -> list[Stage]:
    """The stages to go through, with what the user wants otherwise."""
    if names is None:
        names = [name for name in STAGES if not (trained and STAGES[name].shared)]
    if isinstance(names, str):
        names = [names]
    if not len(names):
        raise ValueError(f"stages must name at least one of {examples(STAGES)}.")
    given = {"max_epochs": max_epochs, "patience": patience, "lr": lr}
    for unknown in (names, *(value for value in given.values() if isinstance(value, Mapping))):
        if wrong := [name for name in unknown if name not in STAGES]:
            raise ValueError(f"Unknown stages: {examples(wrong)}. There are: {examples(STAGES)}.")
    stages = []
    for name in STAGES:  # in their own order
        if name not in names:
            continue
        changes = {}
        for key, value in given.items():
            value = value.get(name) if isinstance(value, Mapping) else value
            if value is None:
                continue
            whole = key != "lr"
            if not value > 0 or (whole and not isinstance(value, Integral)):
                raise ValueError(
                    f"{key} of the stage {name!r} must be positive{' and whole' if whole else ''}, but is {value!r}."
                )
            changes[key] = value
        stages.append(replace(STAGES[name], **changes))
    return stages
