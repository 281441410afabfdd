from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from os import PathLike

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.transforms import Bbox

from transverse._validation import examples
from transverse.metrics._response import top_changes

from ._figure import finish, panels, root, short_names
from ._fit import NAME_STEP, fit_titles, name_where_they_fit, text_scale
from ._predictions import Names
from ._signatures import Signatures, match_signatures

_LONGEST = 24
_MOST_NAMED = 45  # genes for whose names there is room in a figure of our own
_SHARE = 0.99  # of the true values, within the colours


def signature_strips(
    truth: AnnData,
    pred: AnnData,
    baseline: AnnData | Mapping[str, AnnData] | None = None,
    *,
    perturbation: Names = None,
    cell_type: Names = None,
    genes: str | Sequence[str] | None = None,
    n_genes: int | None = None,
    vmax: float | None = None,
    cmap: str = "RdBu_r",
    perturbation_key: str = "perturbation",
    cell_type_key: str | None = "cell_type",
    layer: str | None = None,
    max_panels: int = 12,
    ncols: int = 1,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    save: str | PathLike | None = None,
) -> list[Axes]:
    """Signatures as strips of colours: baselines, the prediction and the truth below one another.

    A panel for each signature, a column for each gene, sorted by the true value: the figure in which DeepCellState
    :cite:p:`Umarov2021` shows a prediction. Beside each strip is its Pearson correlation with the truth, over all genes
    whichever are drawn, as :func:`transverse.metrics.signature_scores` has it. The colours are the same in all panels.

    Parameters
    ----------
    truth
        Signatures, perturbations x genes. Several of one perturbation and cell type (doses, times, replicates) are
        averaged.
    pred
        Predictions, likewise, of some of these perturbations and cell types.
    baseline
        Predictions to compare with, of at least the same perturbations and cell types; several by their names, from top to
        bottom.
    perturbation, cell_type
        Signatures to draw, by their names in ``pred.obs``; by default all of ``pred``.
    genes
        Genes to draw. By default all.
    n_genes
        Instead, how many genes of the largest true absolute value to draw, those of each signature.
    vmax
        Value of the darkest colours, positive and negative. By default 99% of the true absolute values that are drawn are
        below.
    cmap
        Colormap, a diverging one: its middle is 0.
    perturbation_key, cell_type_key
        Columns of ``obs`` of all; None for the second if there is one cell type.
    layer
        Layer of the truth to use instead of ``X``.
    max_panels
        More signatures than that are refused.
    ncols
        Panels in a row.
    ax
        Axes to draw on, one for each signature.
    show
        Show the figure; by default only where scanpy would (``sc.settings.autoshow``) and no axes are given.
    save
        File to write the figure to.

    Returns
    -------
    The axes, one for each signature, sorted by name. Genes are named where the names fit. The user's objects are not
    changed.

    Raises
    ------
    KeyError
        If a column, the layer, a perturbation, a cell type or a gene is missing.
    ValueError
        If genes or signatures are missing, values are not finite, there are no baselines in a mapping, both ``genes`` and
        ``n_genes`` are given, there are more signatures than ``max_panels``, or not as many axes as signatures.
    TypeError
        If something else than AnnData is given.

    Examples
    --------
    >>> import transverse as tv
    >>> sig = tv.datasets.simulate_signatures(n_drugs=20, n_genes=30, n_mechanisms=5)
    >>> is_test, is_target = sig.obs["perturbation"].isin(["D0001", "D0002"]), sig.obs["cell_type"] == "C2"
    >>> train, truth, sources = sig[~is_test], sig[is_test & is_target], sig[is_test & ~is_target]
    >>> pred = tv.baselines.RidgeSignature().fit(train).predict(sources, target="C2")
    >>> copy = tv.baselines.CopySource().fit(train).predict(sources, target="C2")
    >>> axes = tv.pl.signature_strips(truth, pred, copy, perturbation="D0001")
    """
    if genes is not None and n_genes is not None:
        raise ValueError("Give genes or n_genes, not both.")
    if n_genes is not None and (not isinstance(n_genes, Integral) or isinstance(n_genes, bool) or n_genes < 1):
        raise ValueError(f"n_genes={n_genes!r} must be a whole number of at least 1.")
    if vmax is not None and not (np.isfinite(vmax) and vmax > 0):
        raise ValueError(f"vmax={vmax!r} must be positive.")
    baselines = _baselines(baseline)
    keys = {"perturbation_key": perturbation_key, "cell_type_key": cell_type_key}
    chosen = {"perturbation": perturbation, "cell_type": cell_type}
    sides = {side: adata for side, (_, adata) in baselines.items()} | {"pred": pred}
    data = match_signatures(truth, sides, **chosen, **keys, layer=layer, at_most=max_panels)
    columns = _columns(data, genes, n_genes)
    scores = [data.scores(side)["pearson"] for side in sides]

    n, n_drawn = len(columns), columns.shape[1]
    strips = np.stack([*(data.predicted[side] for side in sides), data.true], axis=1)
    strips = np.take_along_axis(strips, columns[:, None], axis=2)
    if vmax is None:
        vmax = float(np.quantile(np.abs(strips[:, -1]), _SHARE)) or 1.0
    rows = short_names([*(name for name, _ in baselines.values()), "prediction", "truth"], _LONGEST)
    axes = panels(ax, n, "signatures", ncols=ncols, size=_size(n_drawn, rows))
    for i, panel in enumerate(axes):
        image = panel.imshow(strips[i], cmap=cmap, vmin=-vmax, vmax=vmax, aspect="auto")
        panel.set_title(data.names[i], fontsize="medium")
        panel.set_xticks([])
        panel.set_yticks(range(len(rows)), rows)
        panel.set_yticks(np.arange(1, len(rows)) - 0.5, minor=True)
        panel.tick_params(axis="y", which="both", length=0)
        panel.grid(which="minor", axis="y", color="white", linewidth=2)
        panel.spines[:].set_visible(False)
        beside = {"textcoords": "offset points", "fontsize": "small", "ha": "left"}
        panel.annotate("Pearson", (1, 1), xycoords="axes fraction", xytext=(4, 3), va="bottom", **beside)
        place = {"xycoords": ("axes fraction", "data"), "xytext": (4, 0), "va": "center_baseline"}
        for row, own in enumerate(scores):
            panel.annotate(f"{own[i]:z.2f}", (1, row), **place, **beside)
    for panel in _lowest(axes):
        panel.set_xlabel(_label(n_drawn, len(data.var_names)))
    _draw_colorbar(axes, image, extend="both" if np.abs(strips).max() > vmax else "neither")
    fit_titles(axes)
    name_where_they_fit(axes, [short_names(data.var_names[own]) for own in columns])
    finish(axes, ax, show, save)
    return axes


def _baselines(baseline: AnnData | Mapping[str, AnnData] | None) -> dict[str, tuple[str, AnnData]]:
    """Name and predictions of each baseline, by what to call it in a message."""
    if baseline is None:
        return {}
    if not isinstance(baseline, Mapping):
        return {"baseline": ("baseline", baseline)}
    if not baseline:
        raise ValueError("baseline must hold at least one baseline, but is empty.")
    return {f"baseline[{name!r}]": (str(name), adata) for name, adata in baseline.items()}


def _columns(data: Signatures, genes: str | Sequence[str] | None, n_genes: int | None) -> np.ndarray:
    """Columns of the genes that are drawn, for each signature, sorted by the true value from low to high."""
    if genes is None:
        columns = top_changes(data.true, data.true.shape[1] if n_genes is None else int(n_genes))
    else:
        names = pd.Index([genes] if isinstance(genes, str) else list(dict.fromkeys(genes)))
        if not len(names):
            raise ValueError("genes must name at least one, but is empty.")
        own = data.var_names.get_indexer(names)
        if (own < 0).any():
            raise KeyError(f"genes not in truth: {examples(names[own < 0])}. It has: {examples(data.var_names)}.")
        columns = np.tile(own, (len(data.true), 1))
    order = np.argsort(np.take_along_axis(data.true, columns, axis=1), axis=1, kind="stable")
    return np.take_along_axis(columns, order, axis=1)


def _size(n_drawn: int, rows: Sequence[str]) -> tuple[float, float]:
    """Width and height (inches) of a panel, with room for what is written around it."""
    named = n_drawn <= _MOST_NAMED
    strip = max(5.0, 1.05 * NAME_STEP * n_drawn / 72 if named else 0.0)
    width = strip + text_scale() * (1.9 + 0.085 * max(map(len, rows)))
    return width, 0.25 * len(rows) + 0.55 * text_scale() + (0.7 if named else 0.0)


def _lowest(axes: Sequence[Axes]) -> list[Axes]:
    """Panels with none below them."""
    places = [ax.get_position() for ax in axes]
    is_below = [[a.x0 < b.x1 and a.x1 > b.x0 and a.y1 <= b.y0 for a in places] for b in places]
    return [ax for ax, below in zip(axes, is_below, strict=True) if not any(below)]


def _draw_colorbar(axes: Sequence[Axes], image: AxesImage, extend: str) -> None:
    figure = axes[0].figure
    box = Bbox.union([ax.get_window_extent() for ax in axes])
    options = {"aspect": float(np.clip(box.height / figure.dpi / 0.15, 5, 25)), "fraction": 0.05, "extend": extend}
    if root(axes[0]).get_layout_engine() is None:
        # nothing else keeps it clear of the numbers beside the strips
        options["pad"] = min(0.4, 48 * text_scale() * figure.dpi / 72 / box.width)
    figure.colorbar(image, ax=axes, label="value", **options)


def _label(n_drawn: int, n_genes: int) -> str:
    number = f"{n_genes} genes" if n_drawn == n_genes else f"{n_drawn} of {n_genes} genes"
    return f"{number}, sorted by true value"
