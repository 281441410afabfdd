"""Similarity of groups of cells between species: likelihood ratios at drawn context cells, and their mode."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import torch

from ._module import ScSpeciesVAE
from ._transfer import likelihood_ratios


@torch.inference_mode()
def similarity_samples(
    module: ScSpeciesVAE,
    loader: Iterable[dict[str, torch.Tensor]],
    types: Sequence[np.ndarray],
    n_context: int,
    rng: np.random.Generator,
) -> list[np.ndarray]:
    """Log-likelihood ratios of cells at context cells of every type.

    Parameters
    ----------
    types
        Context cells of each type.
    n_context
        Most context cells of a type, drawn anew for every mini-batch.

    Returns
    -------
    For every type an array of shape ``(n_cells, n_drawn)``, in nats; lower is more similar.
    """
    parts = []
    for tensors in loader:
        tensors = {key: value.to(module.device) for key, value in tensors.items()}
        drawn = [rng.permutation(cells)[:n_context] for cells in types]
        candidates = torch.as_tensor(np.concatenate(drawn), device=module.device)
        mean = module.encode(module, tensors)["mean"]
        parts.append(likelihood_ratios(module, tensors, mean, candidates.expand(len(mean), -1)).cpu().numpy())
    ratios = np.concatenate(parts)
    return np.split(ratios, np.cumsum([min(len(cells), n_context) for cells in types])[:-1], axis=1)


def histogram_mode(values: np.ndarray) -> float:
    """Middle of the fullest bin of a histogram with Freedman-Diaconis bins."""
    counts, edges = np.histogram(values, bins="fd")
    fullest = counts.argmax()
    return float((edges[fullest] + edges[fullest + 1]) / 2)


def scale_rows(modes: np.ndarray, scale: Literal["none", "max", "min_max"]) -> np.ndarray:
    """Similarities from the modes of ratios, of shape ``(n_groups, n_types)``; higher is more similar."""
    if scale == "max":
        return modes.max(1, keepdims=True) / modes
    if scale == "min_max":
        low, high = modes.min(1, keepdims=True), modes.max(1, keepdims=True)
        return np.divide(high - modes, high - low, out=np.ones_like(modes), where=high > low)
    return -modes
