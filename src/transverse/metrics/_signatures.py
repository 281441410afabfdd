from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData

from transverse._groups import dense, group_codes, group_profiles
from transverse._validation import check_finite, check_unique_var_names, column_names, examples

from ._conditions import Cells, Score, as_anndata, on_genes_of_truth, tidy
from ._profiles import profile_scores
from ._response import top_changes, top_sizes


def signature_scores(
    truth: Cells,
    pred: Cells,
    *,
    perturbation_key: str = "perturbation",
    cell_type_key: str | None = "cell_type",
    n_top: int | Sequence[int] | None = None,
    layer: str | None = None,
    clip: bool = False,
) -> pd.DataFrame:
    """Agreement of predicted with true response signatures, per perturbation and cell type.

    Scores over genes as in :func:`response_scores`, of signatures, which are changes already: the Pearson correlation per
    profile is DeepCellState's main figure :cite:p:`Umarov2021`.

    Parameters
    ----------
    truth
        Signatures, perturbations x genes. Several of one perturbation and cell type (doses, times, replicates) are
        averaged.
    pred
        Predictions, likewise. Two arrays are matched by row, and by the names of genes if both are DataFrames.
    perturbation_key, cell_type_key
        Columns of ``obs`` of both.
    n_top
        Numbers of genes with the largest absolute true value, which are scored apart.
    layer
        Layer of the truth to use instead of ``X``.
    clip
        Raise negative R2 and explained variance to 0.

    Returns
    -------
    Rows as :func:`response_scores` gives them, ``of="signature"``; ``n_cells`` is the number of averaged true signatures.

    Raises
    ------
    ValueError
        If genes or signatures are missing, shapes differ or values are not finite.
    KeyError
        If a column or layer does not exist.
    TypeError
        If an array and an AnnData are mixed.

    Examples
    --------
    >>> import transverse as tv
    >>> sig = tv.datasets.simulate_signatures(n_drugs=10, n_cell_types=2, n_genes=30, n_mechanisms=3)
    >>> source, target = sig[sig.obs["cell_type"] == "C1"], sig[sig.obs["cell_type"] == "C2"]
    >>> pred = tv.baselines.CopySource().fit(source).predict(source, target="C2")
    >>> scores = tv.metrics.signature_scores(target, pred, n_top=10)
    >>> scores["metric"].unique().tolist()
    ['r2', 'explained_variance', 'pearson', 'spearman', 'rmse']
    """
    sizes = top_sizes(n_top)
    if isinstance(truth, AnnData) != isinstance(pred, AnnData):
        found = f"{type(truth).__name__} and {type(pred).__name__}"
        raise TypeError(f"truth and pred must both be AnnData or both arrays, but are {found}.")
    if isinstance(truth, AnnData):
        keys, true, predicted, n = _matched(truth, pred, perturbation_key, cell_type_key, layer)
    else:
        if layer is not None:
            raise ValueError(f"layer={layer!r} needs AnnData, but truth is {type(truth).__name__}.")
        given = as_anndata({"truth": truth, "pred": pred})
        check_unique_var_names(given["truth"], "truth")
        given["pred"] = on_genes_of_truth(given["pred"], given["truth"].var_names, "pred")
        true, predicted = (dense(adata.X).astype(float) for adata in given.values())
        if len(true) != len(predicted):
            raise ValueError(f"truth and pred must have as many rows, but have {len(true)} and {len(predicted)}.")
        if not (np.isfinite(true).all() and np.isfinite(predicted).all()):
            raise ValueError("truth or pred has missing or infinite values (NaN or inf). Remove or fill them first.")
        keys, n = pd.DataFrame({"row": np.arange(len(true))}), np.ones(len(true), dtype=int)
    scores = []
    for size in (None, *(n for n in sizes if n < true.shape[1])):
        columns = np.arange(true.shape[1])[None].repeat(len(true), 0) if size is None else top_changes(true, size)
        pair = (np.take_along_axis(values, columns, 1) for values in (true, predicted))
        genes = "all" if size is None else f"top {size}"
        found = profile_scores(*pair, clip=clip)
        scores += [Score("signature", genes, metric, values) for metric, values in found.items()]
    return tidy(keys, scores, n)


def _matched(
    truth: AnnData, pred: AnnData, perturbation_key: str, cell_type_key: str | None, layer: str | None
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray, np.ndarray]:
    by = [key for key in (perturbation_key, cell_type_key) if key is not None]
    for name, adata in (("truth", truth), ("pred", pred)):
        for key in by:
            if key not in adata.obs:
                raise KeyError(f"{key!r} is not in {name}.obs. Columns: {column_names(adata.obs)}.")
        if adata.n_obs == 0:
            raise ValueError(f"{name} has no signatures.")
        group_codes(adata, by, name)
        check_finite(adata, layer if name == "truth" else None, name)
    check_unique_var_names(truth, "truth")
    pred = on_genes_of_truth(pred, truth.var_names, "pred")
    predicted, true = group_profiles(pred, by), group_profiles(truth, by, layer)
    where = true.find(predicted.keys)
    if (where < 0).any():
        missing = predicted.keys[where < 0].itertuples(index=False)
        raise ValueError(
            f"truth has no signatures of {int((where < 0).sum())} predicted conditions: "
            f"{examples(' | '.join(row) for row in missing)}."
        )
    return predicted.keys, true.mean[where], predicted.mean, true.n_cells[where]
