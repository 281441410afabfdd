r"""What a ranking with ties is worth on average over all ways of breaking them.

The true items of a query are among ``size`` items that are tied, ``better`` items above them; ``n_true`` of the tied are
true. The first true one is at place :math:`a + J`, with :math:`J` the smallest of a random draw:

.. math::
    P(J \ge j) = \binom{m - j + 1}{t} \Big/ \binom{m}{t}

for :math:`a` better, :math:`m` tied and :math:`t` true items. A random order of all :math:`N` candidates is the case
:math:`a = 0, m = N`.
"""

from __future__ import annotations

import numpy as np


def expected_hit(better: np.ndarray, size: np.ndarray, n_true: np.ndarray, k: int) -> np.ndarray:
    """Probability that a true item is among the best ``k``; 0 where no item is true."""
    better, size, n_true = (np.asarray(values, dtype=float) for values in (better, size, n_true))
    drawn = np.clip(k - better, 0, size)
    missed = np.ones_like(size)
    for i in range(int(n_true.max(initial=0))):
        left = np.maximum(size - drawn - i, 0) / np.maximum(size - i, 1)
        missed = np.where(i < n_true, missed * left, missed)
    return 1 - missed


def expected_reciprocal_rank(better: np.ndarray, size: np.ndarray, n_true: np.ndarray) -> np.ndarray:
    """Mean of 1 / place of the first true item; 0 where no item is true."""
    cases, back = np.unique(np.stack([better, size, n_true], axis=1).astype(np.int64), axis=0, return_inverse=True)
    values = np.zeros(len(cases))
    for row, (a, m, t) in enumerate(cases):
        if t:
            j = np.arange(1, m - t + 2)
            here = t / (m - j + 1)  # probability of the place, given that it is none of the earlier ones
            reached = np.concatenate([[1.0], np.cumprod(1 - here[:-1])])
            values[row] = (reached * here / (a + j)).sum()
    return values[back.ravel()]
