"""Fold changes between species: which cells stand for a group, samples of their latent states, and the summary."""

from __future__ import annotations

import numpy as np
import torch
from scipy.stats import chi2
from sklearn.covariance import LedoitWolf

_CHUNK = 256


def inliers(means: np.ndarray, confidence: float = 0.9) -> np.ndarray:
    r"""Cells inside the ellipse that holds a share of a normal distribution fitted to them.

    Cells with a squared Mahalanobis distance above :math:`\chi^2_{d; confidence}` are left out. The covariance is shrunk
    (Ledoit-Wolf), so that it can be inverted however few cells there are; up to two cells are all kept.

    Parameters
    ----------
    means
        Posterior means of shape ``(n_cells, n_latent)``.
    confidence
        Share of the distribution inside the ellipse (paper: 0.9); 1 keeps all cells.

    Returns
    -------
    Boolean array of shape ``(n_cells,)``, true for at least half of the cells.
    """
    n_cells, n_latent = means.shape
    if confidence >= 1 or n_cells <= 2:
        return np.ones(n_cells, dtype=bool)
    distance = LedoitWolf().fit(means).mahalanobis(means)
    # half of the cells stay even where the normal distribution does not fit
    return distance <= max(chi2.ppf(confidence, n_latent), np.median(distance))


def sample_latent(
    means: np.ndarray, scales: np.ndarray, n_samples: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    r"""Samples of a group's mixture of posteriors :math:`\frac1n \sum_i q(z \mid x_i)` (equation 27).

    Every cell is drawn equally often, give or take one.

    Returns
    -------
    Latent variables of shape ``(n_samples, n_latent)``, float32, and the cell of each.
    """
    n_cells = len(means)
    cells = np.concatenate([rng.permutation(n_cells) for _ in range(-(-n_samples // n_cells))])[:n_samples]
    noise = rng.standard_normal((n_samples, means.shape[1]), dtype=np.float32)
    return means[cells] + scales[cells] * noise, cells


def summarize(
    context: torch.Tensor, target: torch.Tensor, delta: float, epsilon: float, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    r"""Summary of samples of two expression profiles, gene by gene.

    :math:`r_g = \log_2 (\rho_{T,g} + \varepsilon) - \log_2 (\rho_{C,g} + \varepsilon)` within each sample (equation 24 with
    the opposite sign). The null compares each species with itself, its samples permuted.

    Parameters
    ----------
    context, target
        Proportions of shape ``(n_samples, n_genes)``.
    delta
        Fold change, log2, that counts as different.
    epsilon
        Offset that keeps the fold changes of hardly expressed genes small.

    Returns
    -------
    Arrays of shape ``(n_genes,)``.
    """
    n_samples, n_genes = target.shape
    order = torch.from_numpy(rng.permutation(n_samples))
    columns = {name: np.empty(n_genes) for name in SUMMARY}
    for start in range(0, n_genes, _CHUNK):
        genes = slice(start, start + _CHUNK)
        rho = {"context": context[:, genes], "target": target[:, genes]}
        log = {name: torch.log2(values + epsilon) for name, values in rho.items()}
        change = log["target"] - log["context"]
        null = torch.cat([values[order] - values for values in log.values()])
        columns["lfc"][genes] = _median(change)
        columns["probability"][genes] = _share_above(change, delta)
        for name, values in rho.items():
            columns[f"{name}_expression"][genes] = 1e4 * _median(values)
        columns["null_lfc"][genes] = _median(null)
        columns["null_probability"][genes] = _share_above(null, delta)
    return columns


SUMMARY = ("lfc", "probability", "context_expression", "target_expression", "null_lfc", "null_probability")


def _share_above(values: torch.Tensor, delta: float) -> np.ndarray:
    """Share of every column whose absolute value is above ``delta``."""
    return torch.count_nonzero(values.abs() > delta, dim=0).numpy() / len(values)


def _median(values: torch.Tensor) -> np.ndarray:
    """Medians of columns; one partition of contiguous values is many times quicker than ``np.median``."""
    rows = values.T.contiguous().numpy()
    n = rows.shape[1]
    rows.partition(n // 2, axis=1)
    upper = rows[:, n // 2].astype(np.float64)
    return upper if n % 2 else (upper + rows[:, : n // 2].max(axis=1)) / 2
