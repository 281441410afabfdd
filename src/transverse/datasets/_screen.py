"""What simulated screens have in common: numbered names, and which pairs of a grid are measured."""

from __future__ import annotations

import numpy as np


def numbered(prefix: str, n: int, width: int) -> list[str]:
    """Names from 1 to n, of one length."""
    width = max(width, len(str(n)))
    return [f"{prefix}{i:0{width}d}" for i in range(1, n + 1)]


def measured_pairs(rng: np.random.Generator, keep: np.ndarray, missing_share: float) -> np.ndarray:
    """Leave out a share of the pairs at random, or as many as may be left out; `keep` are those that may not."""
    measured = np.ones(keep.shape, dtype=bool)
    free = rng.permutation(np.flatnonzero(~keep))
    measured.flat[free[: round(missing_share * keep.size)]] = False
    return measured
