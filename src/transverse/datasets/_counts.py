"""Simulated counts."""

from __future__ import annotations

import numpy as np
from scipy import sparse

_CHUNK = 2000


def negative_binomial(rng, rate, row, library, inverse_dispersion) -> sparse.csr_matrix:
    """Gamma-Poisson counts in chunks of cells, so that no dense cells x genes matrix is held."""
    chunks = []
    for start in range(0, len(row), _CHUNK):
        part = slice(start, start + _CHUNK)
        mean = rate[row[part]]
        mean *= library[part, None]
        mean *= rng.standard_gamma(inverse_dispersion, mean.shape)
        mean /= inverse_dispersion
        chunks.append(sparse.csr_matrix(rng.poisson(mean).astype(np.float32)))
    return sparse.vstack(chunks, format="csr")
