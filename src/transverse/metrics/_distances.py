from __future__ import annotations

from numbers import Integral
from typing import Literal, get_args

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA

from transverse._groups import dense

from ._conditions import CellGroups, Cells, Score, cells_of_conditions, tidy

CellMetric = Literal["sqeuclidean", "euclidean"]


def energy_distance(
    truth: Cells,
    pred: Cells,
    control: Cells | None = None,
    *,
    perturbation_key: str = "perturbation",
    context_key: str | None = "cell_type",
    metric: CellMetric = "euclidean",
    unbiased: bool = True,
    n_components: int | None = None,
    max_cells: int = 2000,
    layer: str | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Energy distance between the distributions of true and predicted cells, per condition.

    .. math::

        E = 2\,\langle d(x, \hat x) \rangle - \langle d(x, x') \rangle - \langle d(\hat x, \hat x') \rangle

    over pairs of true cells :math:`x`, predicted cells :math:`\hat x`, and pairs of cells of the same kind (Székely and
    Rizzo, 2013), as scPerturb :cite:p:`Peidli2024` brought it to perturbations. It compares whole distributions: their
    means, spread and shape.

    Parameters
    ----------
    truth, pred, perturbation_key, context_key, layer
        As in :func:`response_scores`, but cells instead of their means: at least two each.
    control
        Control cells of the contexts, if the distance is to be held against theirs.
    metric
        Distance between cells. With ``"sqeuclidean"``, scPerturb's, :math:`E` is twice the squared distance of the means and
        sees nothing else.
    unbiased
        Pairs of the same kind are pairs of different cells; the estimate then does not grow as cells get fewer, and may
        fall below 0. If False every cell is also paired with itself, as pertpy does.
    n_components
        Take distances on so many principal components of the true (and control) cells; None on genes.
    max_cells
        At most so many cells a condition and side, drawn at random.
    seed
        Seed of that draw and of the components.

    Returns
    -------
    Rows as :func:`response_scores` gives them, ``of="cells"``: ``energy_distance``, and with controls
    ``energy_distance_control`` (from the true cells to the controls) and ``energy_distance_left``, the share of that which
    is left between truth and prediction: 0 for the true cells themselves, 1 for the controls. The share is of the biased
    distances, which stay above 0, lest it explode where the controls hardly differ from the true cells.

    Raises
    ------
    ValueError, KeyError, TypeError
        As :func:`response_scores`, and if a side has fewer than two cells or an argument is out of range.

    Examples
    --------
    >>> import transverse as tv
    >>> adata = tv.datasets.simulate_responses(n_contexts=2, n_perturbations=3, n_genes=30, n_cells_per_condition=20)
    >>> tv.pp.split_responses(adata, holdout=[("P01", "C2"), ("P02", "C2")], valid_size=0)
    >>> train, test = adata[adata.obs["split"] == "train"], adata[adata.obs["split"] == "test"]
    >>> is_control = test.obs["perturbation"] == "control"
    >>> truth, controls = test[~is_control], test[is_control]
    >>> pred = tv.baselines.MeanShift().fit(train).predict("P01", context="C2")
    >>> scores = tv.metrics.energy_distance(truth, pred, controls, n_components=10)
    >>> scores["metric"].tolist()
    ['energy_distance', 'energy_distance_control', 'energy_distance_left']
    """
    if metric not in get_args(CellMetric):
        raise ValueError(f"metric={metric!r} must be one of {', '.join(get_args(CellMetric))}.")
    if not isinstance(max_cells, Integral) or max_cells < 2:
        raise ValueError(f"max_cells={max_cells!r} must be a whole number of at least 2.")
    keys, sides = cells_of_conditions(
        truth, pred, control, perturbation_key=perturbation_key, context_key=context_key, layer=layer
    )
    rng = np.random.default_rng(seed)
    sides = {name: _Cells(side, keys, rng, max_cells, name) for name, side in sides.items()}
    if n_components is not None:
        _project(sides, n_components, seed)

    def distances(name: str, unbiased: bool) -> np.ndarray:
        values = 2 * across[name]
        for side in (sides["truth"], sides[name]):
            n = np.array([len(side.drawn[group]) for group in side.of_condition])
            # a cell's distance to itself is 0, so leaving those pairs out changes the number of pairs only
            values = values - within[side] * (n / (n - 1) if unbiased else 1)
        return values

    within = {side: side.within(metric) for side in sides.values()}
    across = {
        name: np.array([_mean_distance(sides["truth"].of(i), side.of(i), metric) for i in range(len(keys))])
        for name, side in sides.items()
        if name != "truth"
    }
    scores = [Score("cells", "all", "energy_distance", distances("pred", unbiased))]
    if "control" in sides:
        scores += [Score("cells", "all", "energy_distance_control", distances("control", unbiased))]
        total = distances("control", False)
        # controls that are the true cells leave rounding
        differ = total > 1e-9 * across["control"]
        left = np.divide(distances("pred", False), total, out=np.full(len(total), np.nan), where=differ)
        scores += [Score("cells", "all", "energy_distance_left", left)]
    return tidy(keys, scores, sides["truth"].n_cells)


class _Cells:
    """One side's cells of every condition, at most ``max_cells`` of each group."""

    def __init__(self, side: CellGroups, keys: pd.DataFrame, rng: np.random.Generator, max_cells: int, name: str):
        self.matrix, groups, self.of_condition = side
        self.n_cells = np.array([len(groups[group]) for group in self.of_condition])
        if (self.n_cells < 2).any():
            alone = " | ".join(keys.iloc[np.argmax(self.n_cells < 2)])
            of = f" of {alone!r}" if alone else ""
            raise ValueError(f"{name} must have at least 2 cells of a condition, but has 1{of}.")
        self.drawn = {}
        for group in np.unique(self.of_condition):
            cells = groups[group]
            self.drawn[group] = np.sort(rng.choice(cells, max_cells, False)) if len(cells) > max_cells else cells
        self.pca = None

    def of(self, i: int) -> np.ndarray:
        """Expression, or components, of the cells of condition ``i``."""
        return self.of_group(self.of_condition[i])

    def of_group(self, group: int) -> np.ndarray:
        block = dense(self.matrix[self.drawn[group]]).astype(float)
        return block if self.pca is None else self.pca.transform(block)

    def within(self, metric: CellMetric) -> np.ndarray:
        """Mean distance between the cells of every condition, each with itself too."""
        means = {}
        for group in self.drawn:
            cells = self.of_group(group)
            means[group] = _mean_distance(cells, cells, metric)
        return np.array([means[group] for group in self.of_condition])


def _project(sides: dict[str, _Cells], n_components: int, seed: int) -> None:
    """Replace expression by the principal components of the true and control cells."""
    observed = [side.of_group(group) for name, side in sides.items() if name != "pred" for group in side.drawn]
    observed = np.concatenate(observed)
    limit = min(observed.shape)
    if not isinstance(n_components, Integral) or not 1 <= n_components <= limit:
        raise ValueError(
            f"n_components={n_components!r} must be a whole number between 1 and {limit}, the smaller of cells and genes."
        )
    pca = PCA(n_components, random_state=seed).fit(observed)
    for side in sides.values():
        side.pca = pca


def _mean_distance(first: np.ndarray, second: np.ndarray, metric: CellMetric, size: int = 2048) -> float:
    """Mean over all pairs, cells with themselves among them."""
    same = first is second
    center = second.mean(0)  # distances stay, rounding shrinks
    first, second = first - center, second - center
    norms = (second**2).sum(1)
    total = 0.0
    for start in range(0, len(first), size):
        block = first[start : start + size]
        squared = np.maximum((block**2).sum(1)[:, None] + norms - 2 * block @ second.T, 0)
        if same:
            squared[np.arange(len(block)), start + np.arange(len(block))] = 0
        total += (squared if metric == "sqeuclidean" else np.sqrt(squared)).sum()
    return total / (len(first) * len(second))
