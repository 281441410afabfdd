from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from sklearn.decomposition import PCA
from sklearn.metrics import pairwise_distances_chunked

from transverse._groups import group_codes

from ._conditions import Cells, Score, cells_of_conditions

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
    is left between truth and prediction: 0 for perfect predictions, 1 for the controls themselves.

    Raises
    ------
    ValueError, KeyError, TypeError
        As :func:`response_scores`, and if a side has fewer than two cells or an argument is out of range.
    """
    if metric not in get_args(CellMetric):
        raise ValueError(f"metric={metric!r} must be one of {', '.join(get_args(CellMetric))}.")
    if max_cells < 2:
        raise ValueError(f"max_cells={max_cells} must be at least 2.")
    data = cells_of_conditions(
        truth, pred, control, perturbation_key=perturbation_key, context_key=context_key, layer=layer
    )
    rng = np.random.default_rng(seed)
    drawn = {name: _draw(adata, by, data.keys, rng, max_cells, name) for name, (adata, by) in data.sides.items()}
    matrices = {name: [_dense(data.matrix(name), rows) for rows in parts] for name, parts in drawn.items()}
    if n_components is not None:
        matrices = _project(matrices, n_components, seed)
    between = [_energy(*pair, metric, unbiased) for pair in zip(matrices["truth"], matrices["pred"], strict=True)]
    scores = [Score("cells", "all", "energy_distance", between)]
    if "control" in matrices:
        pairs = zip(matrices["truth"], matrices["control"], strict=True)
        to_control = np.array([_energy(*pair, metric, unbiased) for pair in pairs])
        left = np.divide(between, to_control, out=np.full(len(between), np.nan), where=to_control > 0)
        scores += [Score("cells", "all", "energy_distance_control", to_control)]
        scores += [Score("cells", "all", "energy_distance_left", left)]
    return data.table(scores)


def _draw(adata: AnnData, by: list[str], keys: pd.DataFrame, rng, max_cells: int, name: str) -> list[np.ndarray]:
    """Positions of at most ``max_cells`` cells for every row of ``keys``."""
    groups, codes = group_codes(adata, by)
    wanted = pd.MultiIndex.from_frame(keys[by]) if by else [()] * len(keys)
    index = pd.MultiIndex.from_frame(groups) if by else None
    rows = []
    for key in wanted:
        cells = np.flatnonzero(codes == (index.get_loc(key) if by else 0))
        if len(cells) < 2:
            raise ValueError(f"{name} must have at least 2 cells of a condition, but {' | '.join(key)!r} has 1.")
        rows.append(np.sort(rng.choice(cells, max_cells, replace=False)) if len(cells) > max_cells else cells)
    return rows


def _dense(matrix, rows: np.ndarray) -> np.ndarray:
    block = matrix[rows]
    return np.asarray(block.toarray() if sp.issparse(block) else block, dtype=float)


def _project(matrices: dict[str, list[np.ndarray]], n_components: int, seed: int) -> dict[str, list[np.ndarray]]:
    observed = np.concatenate([cells for name in matrices if name != "pred" for cells in matrices[name]])
    limit = min(observed.shape)
    if not 1 <= n_components <= limit:
        raise ValueError(f"n_components={n_components} must be between 1 and {limit}, the smaller of cells and genes.")
    pca = PCA(n_components, random_state=seed).fit(observed)
    return {name: [pca.transform(cells) for cells in parts] for name, parts in matrices.items()}


def _energy(first: np.ndarray, second: np.ndarray, metric: CellMetric, unbiased: bool) -> float:
    within = 0.0
    for cells in (first, second):
        # a cell's distance to itself is 0, so leaving those pairs out changes the number of pairs only
        pairs = len(cells) / (len(cells) - 1) if unbiased else 1
        within += _mean_distance(cells, cells, metric) * pairs
    return 2 * _mean_distance(first, second, metric) - within


def _mean_distance(first: np.ndarray, second: np.ndarray, metric: CellMetric) -> float:
    total = sum(block.sum() for block in pairwise_distances_chunked(first, second, metric=metric))
    return total / (len(first) * len(second))
