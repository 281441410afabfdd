from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from os import PathLike

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes

from transverse.metrics._response import top_changes

from ._figure import finish, panels
from ._fit import fit_titles
from ._predictions import Names
from ._scatter import draw_against_truth, name_genes, scatter_legend, spread_of
from ._signatures import match_signatures


def signature_scatter(
    truth: AnnData,
    pred: AnnData,
    *,
    perturbation: Names = None,
    cell_type: Names = None,
    n_names: int = 10,
    perturbation_key: str = "perturbation",
    cell_type_key: str | None = "cell_type",
    layer: str | None = None,
    max_panels: int = 12,
    ncols: int = 4,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    save: str | PathLike | None = None,
) -> list[Axes]:
    """Predicted against true value of every gene, a panel for each signature.

    Titles give the Pearson correlation and the root mean squared error over all genes, the scores of
    :func:`transverse.metrics.signature_scores`. On the dashed line a prediction is right. Genes of the largest true
    absolute value are in colour and named.

    Parameters
    ----------
    truth
        Signatures, perturbations x genes. Several of one perturbation and cell type (doses, times, replicates) are
        averaged.
    pred
        Predictions, likewise, of some of these perturbations and cell types.
    perturbation, cell_type
        Signatures to draw, by their names in ``pred.obs``; by default all of ``pred``.
    n_names
        How many of the genes with the largest true absolute value to name.
    perturbation_key, cell_type_key
        Columns of ``obs`` of both; None for the second if there is one cell type.
    layer
        Layer of the truth to use instead of ``X``.
    max_panels
        More signatures than that are refused.
    ncols
        Panels in a row.
    ax
        Axes to draw on, one for each signature; these get no legend.
    show
        Show the figure; by default only where scanpy would (``sc.settings.autoshow``) and no axes are given.
    save
        File to write the figure to.

    Returns
    -------
    The axes, one for each signature, sorted by name. Where ``pred.layers["std"]`` holds a spread of the predictions, such
    as that over several source cell types, it is drawn to both sides of the named genes. The user's objects are not
    changed.

    Raises
    ------
    KeyError
        If a column, the layer, a perturbation or a cell type is missing.
    ValueError
        If genes or signatures are missing, values are not finite, a spread is negative, there are more signatures than
        ``max_panels``, or not as many axes as signatures.
    TypeError
        If something else than AnnData is given.

    Examples
    --------
    >>> import transverse as tv
    >>> sig = tv.datasets.simulate_signatures(n_drugs=20, n_genes=30, n_mechanisms=5)
    >>> is_test, is_target = sig.obs["perturbation"].isin(["D0001", "D0002"]), sig.obs["cell_type"] == "C2"
    >>> train, truth, sources = sig[~is_test], sig[is_test & is_target], sig[is_test & ~is_target]
    >>> pred = tv.baselines.RidgeSignature().fit(train).predict(sources, target="C2")
    >>> axes = tv.pl.signature_scatter(truth, pred, perturbation=["D0001", "D0002"])
    >>> len(axes)
    2
    """
    if not isinstance(n_names, Integral) or isinstance(n_names, bool) or n_names < 0:
        raise ValueError(f"n_names={n_names!r} must be a whole number of at least 0.")
    keys = {"perturbation_key": perturbation_key, "cell_type_key": cell_type_key}
    chosen = {"perturbation": perturbation, "cell_type": cell_type}
    data = match_signatures(truth, {"pred": pred}, **chosen, **keys, layer=layer, at_most=max_panels)
    scores = data.scores("pred")
    spread = spread_of(pred, data.var_names, data.keys)
    if spread is not None and (spread < 0).any():
        raise ValueError("pred.layers['std'] has negative values, but a spread is at least 0.")

    predicted, named = data.predicted["pred"], top_changes(data.true, int(n_names))
    axes = panels(ax, len(data.true), "signatures", ncols=ncols, size=(3.4, 3.7))
    for i, panel in enumerate(axes):
        own = None if spread is None else spread[i]
        draw_against_truth(panel, data.true[i], predicted[i], named[i], own, lines=True)
        panel.set(xlabel="true value", ylabel="predicted value")
        title = f"{data.names[i]}\nPearson {scores['pearson'][i]:z.2f}, RMSE {scores['rmse'][i]:.2f}"
        panel.set_title(title, fontsize="medium")
    if ax is None:
        n = np.shape(named)[1]
        bars = "± standard deviation" if spread is not None and n else None
        scatter_legend(axes, top=f"top {n} by true value" if n else None, spread=bars)
    fit_titles(axes)
    name_genes(axes, data.true, predicted, named, data.var_names, top=named, spread=spread)
    finish(axes, ax, show, save)
    return axes
