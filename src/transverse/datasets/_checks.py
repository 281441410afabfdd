"""Checks of a simulator's parameters: one text for each kind of number, naming the argument."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real

import numpy as np


def check_whole(key: str, value, low: int = 0) -> None:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Integral) or value < low:
        raise ValueError(f"{key}: expected a whole number of at least {low}, but got {value!r}.")


def check_share(key: str, value) -> None:
    if not isinstance(value, Real) or not 0 <= value <= 1:
        raise ValueError(f"{key}: expected a share from 0 to 1, but got {value!r}.")


def check_positive(key: str, value) -> None:
    if not isinstance(value, Real) or not (np.isfinite(value) and value > 0):
        raise ValueError(f"{key}: expected a positive number, but got {value!r}.")


def check_not_negative(key: str, value) -> None:
    if not isinstance(value, Real) or not (np.isfinite(value) and value >= 0):
        raise ValueError(f"{key}: expected a number of at least 0, but got {value!r}.")


def check_choice(key: str, value, choices: Sequence[str]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{key}: expected one of {', '.join(choices)}, but got {value!r}.")
