"""Label transfer: candidates in the latent space, their likelihoods, and the vote."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from scvi import settings
from sklearn.neighbors import KDTree

from transverse._compat import REGISTRY_KEYS

from ._module import ScSpeciesVAE
from ._novelty import label_confidence
from ._votes import vote_counts

Vote = Literal["combined", "likelihood", "latent"]

# Weight of the data-level neighbours in the combined vote: above one half, so that they decide where both are unanimous.
DATA_LEVEL_SHARE = 0.55
# Below, or by more than, these the aligned latent space is reported as poor.
MIN_ALIGNED_AGREEMENT = 0.9
MAX_LOST_SHARE = 0.03
# Counts above zero of cells that are held to be ranked together (128 MiB), and cells that are ranked at a time.
HELD_COUNTS, BLOCK = 2**24, 2048


@torch.inference_mode()
def rank_candidates(
    module: ScSpeciesVAE, loader: Iterable[dict[str, torch.Tensor]], n_candidates: int, n_neighbors: int
) -> dict[str, np.ndarray]:
    r"""Nearest context cells of every cell of a loader, by distance and by likelihood.

    The ``n_candidates`` context cells nearest in Euclidean distance of the posterior means are scored by the likelihood
    of the cell's counts under their decoded means, and the best ``n_neighbors`` are kept (paper, section 5.2.4).

    Returns
    -------
    ``"latent"`` and ``"likelihood"``: the ``n_neighbors`` nearest by distance and the best by likelihood, context
    indices of shape ``(n_cells, n_neighbors)``; ``"ratio"`` of shape ``(n_cells,)``: the mean over the nearest by distance
    of :math:`\log p(x \mid \mu_j) - \log p(x \mid \mu_i)`, the log-likelihood (nats) that the cell loses when it is
    explained by a context cell instead of its own latent variable.
    """
    nearest, parts = _nearest(module.context_mean, n_candidates), []
    for counts, tensors in _held(module, loader):
        order = _alike(tensors)
        ranked = []
        for rows in np.array_split(order, -(-len(order) // BLOCK)):
            batch = {key: value[rows].to(module.device) for key, value in tensors.items()}
            batch[REGISTRY_KEYS.X_KEY] = torch.from_numpy(counts[rows].toarray()).to(module.device)
            mean = batch.pop("mean")
            candidates = nearest(mean)
            ratios = likelihood_ratios(module, batch, mean, candidates)
            best = torch.topk(ratios, n_neighbors, largest=False)
            ranked.append(
                {
                    "latent": candidates[:, :n_neighbors].cpu().numpy(),
                    "likelihood": torch.gather(candidates, 1, best.indices).cpu().numpy(),
                    "ratio": ratios[:, :n_neighbors].mean(1).cpu().numpy().astype(np.float64),
                }
            )
        back = np.argsort(order)
        parts.append({key: np.concatenate([part[key] for part in ranked])[back] for key in ranked[0]})
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _held(
    module: ScSpeciesVAE, loader: Iterable[dict[str, torch.Tensor]]
) -> Iterator[tuple[sp.csr_matrix, dict[str, torch.Tensor]]]:
    """Cells of a loader with their latent means, as many together as have up to ``HELD_COUNTS`` counts above zero."""
    held, n_counts = [], 0
    for tensors in loader:
        mean = module.encode(module, tensors)["mean"].cpu()
        tensors = {key: value.cpu() for key, value in tensors.items()}
        counts = sp.csr_matrix(tensors.pop(REGISTRY_KEYS.X_KEY).numpy())
        if held and n_counts + counts.nnz > HELD_COUNTS:
            yield _join(held)
            held, n_counts = [], 0
        held.append((counts, {**tensors, "mean": mean}))
        n_counts += counts.nnz
    if held:
        yield _join(held)


def _join(held: list[tuple[sp.csr_matrix, dict[str, torch.Tensor]]]) -> tuple[sp.csr_matrix, dict[str, torch.Tensor]]:
    counts, tensors = zip(*held, strict=True)
    return sp.vstack(counts, format="csr"), {key: torch.cat([part[key] for part in tensors]) for key in tensors[0]}


def _alike(tensors: dict[str, torch.Tensor]) -> np.ndarray:
    """An order in which successive cells have many candidates in common, each of which is then decoded once for all.

    By batch and categories, and within them by the leaves of a tree over the latent means.
    """
    mean = tensors["mean"].numpy()
    rank = np.argsort(KDTree(mean, leaf_size=256).get_arrays()[1])
    keys = (REGISTRY_KEYS.BATCH_KEY, REGISTRY_KEYS.CAT_COVS_KEY)
    conditions = [column for key in keys if key in tensors for column in tensors[key].numpy().T]
    return np.lexsort((rank, *conditions))


def _nearest(context_mean: torch.Tensor, n_candidates: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Search for the nearest context cells, nearest first: by a tree, but on a GPU among all of them."""
    if context_mean.device.type != "cpu":
        return lambda mean: torch.topk(torch.cdist(mean, context_mean), n_candidates, largest=False).indices
    tree = KDTree(context_mean.numpy())
    return lambda mean: torch.from_numpy(tree.query(mean.numpy(), n_candidates, return_distance=False))


@torch.inference_mode()
def likelihood_ratios(
    module: ScSpeciesVAE, tensors: dict[str, torch.Tensor], mean: torch.Tensor, candidates: torch.Tensor
) -> torch.Tensor:
    r"""Log-likelihood (nats) that cells lose at context cells :math:`\log p(x \mid \mu_j) - \log p(x \mid \mu_i)`.

    Parameters
    ----------
    tensors
        Mini-batch on the module's device.
    mean
        Posterior means of its cells.
    candidates
        Context cells of shape ``(n_cells, n_candidates)``.

    Returns
    -------
    Tensor of the shape of ``candidates``; lower is more similar.
    """
    library = module.library(tensors)
    own = torch.arange(len(mean), device=mean.device).unsqueeze(1)
    own = module.profile_scores(tensors, library, mean, tensors, own)
    return own - module.candidate_scores(tensors, library, candidates)


def label_shares(codes: np.ndarray, n_labels: int) -> np.ndarray:
    """Share of the neighbours with each label, of shape ``(n_cells, n_labels)``; zeros where none has a label."""
    counts = vote_counts(codes, n_labels)
    total = counts.sum(axis=1, keepdims=True)
    return np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)


def label_table(
    ranked: dict[str, np.ndarray],
    data_level: np.ndarray | None,
    labels: dict,
    index: pd.Index,
    vote: Vote,
    novelty: np.ndarray,
) -> pd.DataFrame:
    """Labels and scores of every cell; see :meth:`transverse.ScSpecies.transfer_labels` for the votes.

    Parameters
    ----------
    ranked
        Result of :func:`rank_candidates`.
    data_level
        Data-level neighbours of shape ``(n_cells, k)``, or None for cells that were not searched for.
    labels
        ``{"categories": list, "codes": array of shape (n_context,)}``.
    index
        Names of the cells.
    vote
        Whose shares decide.
    novelty
        Novelty of every cell.
    """
    categories, codes = np.asarray(labels["categories"], dtype=object), labels["codes"]
    shares = label_shares(codes[ranked["latent" if vote == "latent" else "likelihood"]], len(categories))
    data_shares = np.zeros_like(shares) if data_level is None else label_shares(codes[data_level], len(categories))
    if vote == "combined" and data_level is not None:
        shares = (1 - DATA_LEVEL_SHARE) * shares + DATA_LEVEL_SHARE * data_shares

    def best(shares):
        first = shares.argmax(axis=1)
        top = shares[np.arange(len(shares)), first]
        return pd.Categorical.from_codes(np.where(top > 0, first, -1), categories=categories), top

    label, _ = best(shares)
    data_label, agreement = best(data_shares)
    return pd.DataFrame(
        {
            "label": label,
            "confidence": label_confidence(shares, novelty),
            "novelty": novelty,
            "log_likelihood_ratio": ranked["ratio"],
            "data_level_label": data_label,
            "data_level_agreement": np.nan if data_level is None else agreement,
        },
        index=index,
    )


def warn_of_poor_alignment(
    context_agreement: float, aligned_agreement: float, latent_share: float, data_level_share: float
) -> None:
    """Warn where the aligned latent space seems to tell types apart worse than the neighbours it was aligned by.

    Without labels of the target that cannot be known, but two figures betray it: cells that were aligned end up among
    others than their neighbours, or the latent vote is less unanimous than that of the neighbours.
    """
    if aligned_agreement >= MIN_ALIGNED_AGREEMENT and latent_share >= data_level_share - MAX_LOST_SHARE:
        return
    warnings.warn(
        "The aligned latent space looks worse than the neighbours on orthologous genes that it started from: "
        f"{aligned_agreement:.0%} of the aligned cells have the label of their neighbours there (expected: at least "
        f"{MIN_ALIGNED_AGREEMENT:.0%}), and the votes are {latent_share:.0%} unanimous in the latent space against "
        f"{data_level_share:.0%} before. In the context itself, {context_agreement:.0%} of the cells have the label of their "
        "neighbours in the latent space. Compare transfer_labels(vote='latent') with get_data_level_labels(). Longer "
        "training, of the context too, more cells or more orthologues may help.",
        UserWarning,
        stacklevel=settings.warnings_stacklevel,
    )
