from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Literal, get_args

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from scipy.stats import wilcoxon

from transverse._validation import examples

from ._figure import COLORS, MEAN, finish, panels
from ._fit import fit_titles, legend_below
from ._predictions import Names
from ._scatter import IDENTITY, ZERO
from ._signatures import match_signatures

Kind = Literal["scatter", "histogram"]

_BETTER, _WORSE, _BASELINE = COLORS[0], COLORS[3], "#808080"
_LABELS = {"model": "Pearson of the model", "baseline": "Pearson of the baseline"}
_TICKS = {"nbins": 6, "steps": [1, 2, 5, 10]}  # of one decimal, which take less room
_SMALLEST = 1e-99  # a p value below is not written


def fold_over_baseline(
    truth: AnnData,
    pred: AnnData,
    baseline: AnnData,
    *,
    kind: Kind = "scatter",
    perturbation: Names = None,
    cell_type: Names = None,
    perturbation_key: str = "perturbation",
    cell_type_key: str | None = "cell_type",
    layer: str | None = None,
    ncols: int = 4,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    save: str | PathLike | None = None,
) -> list[Axes]:
    """Pearson correlation of a model's and a baseline's signatures with the truth, a panel for each cell type.

    Titles give DeepCellState's fold increase :cite:p:`Umarov2021`, the mean of the model over that of the baseline, not
    the mean of the ratios: single correlations come close to 0. It is left out where the baseline's mean is not positive.
    Below are the share of signatures of which the model is better, and the two-sided p value of Wilcoxon's signed-rank test
    over the signatures; the paper's t test is not paired, though the signatures are.

    Parameters
    ----------
    truth
        Signatures, perturbations x genes. Several of one perturbation and cell type (doses, times, replicates) are
        averaged.
    pred
        Predictions of the model, likewise, of some of these perturbations and cell types.
    baseline
        Predictions of the baseline, of at least the same.
    kind
        ``"scatter"``, a point for each signature, those above the dashed line better predicted by the model; or
        ``"histogram"`` of either.
    perturbation, cell_type
        Signatures to draw, by their names in ``pred.obs``; by default all of ``pred``.
    perturbation_key, cell_type_key
        Columns of ``obs`` of all; None for the second to draw one panel.
    layer
        Layer of the truth to use instead of ``X``.
    ncols
        Panels in a row.
    ax
        Axes to draw on, one for each cell type; these get no legend.
    show
        Show the figure; by default only where scanpy would (``sc.settings.autoshow``) and no axes are given.
    save
        File to write the figure to.

    Returns
    -------
    The axes, one for each cell type, sorted by name. The user's objects are not changed.

    Raises
    ------
    KeyError
        If a column, the layer, a perturbation or a cell type is missing.
    ValueError
        If genes or signatures are missing, values are not finite, a true signature is constant, or there are not as many axes
        as cell types.
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
    >>> axes = tv.pl.fold_over_baseline(truth, pred, copy)
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind={kind!r} must be one of {', '.join(get_args(Kind))}.")
    keys = {"perturbation_key": perturbation_key, "cell_type_key": cell_type_key}
    chosen = {"perturbation": perturbation, "cell_type": cell_type}
    data = match_signatures(truth, {"pred": pred, "baseline": baseline}, **chosen, **keys, layer=layer)
    model, base = (data.scores(side)["pearson"].to_numpy() for side in ("pred", "baseline"))
    if (constant := np.isnan(model)).any():
        names = np.array(data.names)[constant]
        raise ValueError(
            f"truth has the same value for all genes in {len(names)} signatures, which nothing correlates with: "
            f"{examples(names)}. Remove them first."
        )
    cell_types = np.zeros(len(model)) if cell_type_key is None else data.keys[cell_type_key].to_numpy()
    parts = {name: (model[own], base[own]) for name in np.unique(cell_types) for own in [cell_types == name]}

    axes = panels(ax, len(parts), "cell types", ncols=ncols, size=(3.3, 3.8) if kind == "scatter" else (3.3, 3.1))
    values = np.concatenate([model, base])
    margin = 0.05 * max(np.ptp(values), 0.1)
    limits = (values.min() - margin, values.max() + margin)
    bins = np.linspace(*limits, int(np.clip(2 * np.sqrt(len(model) / len(parts)), 8, 40)) + 1)
    for panel, (name, part) in zip(axes, parts.items(), strict=True):
        if kind == "scatter":
            _draw_points(panel, *part, limits)
        else:
            _draw_histograms(panel, *part, bins)
        panel.spines[["top", "right"]].set_visible(False)
        number = f"{len(part[0])} signature{'s' if len(part[0]) > 1 else ''}"
        first = number if cell_type_key is None else f"{name}, {number}"
        panel.set_title("\n".join([first, *_summary(*part)]), fontsize="medium")
    if ax is None:
        legend_below(axes, _handles(kind))
    fit_titles(axes)
    finish(axes, ax, show, save)
    return axes


def _draw_points(panel: Axes, model: np.ndarray, base: np.ndarray, limits: tuple[float, float]) -> None:
    panel.axhline(0, **ZERO)
    panel.axvline(0, **ZERO)
    panel.axline((0, 0), slope=1, zorder=1, **IDENTITY)
    better = model > base
    for own, color in ((~better, _WORSE), (better, _BETTER)):
        panel.scatter(base[own], model[own], s=12, color=color, alpha=0.7, linewidths=0, zorder=2)
    panel.plot(
        base.mean(), model.mean(), linestyle="", zorder=4, **{**MEAN, "markersize": 7, "markeredgecolor": "black"}
    )
    panel.set(xlim=limits, ylim=limits, aspect="equal", xlabel=_LABELS["baseline"], ylabel=_LABELS["model"])
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(MaxNLocator(**_TICKS))


def _draw_histograms(panel: Axes, model: np.ndarray, base: np.ndarray, bins: np.ndarray) -> None:
    for values, color in ((base, _BASELINE), (model, _BETTER)):
        panel.hist(values, bins, color=color, alpha=0.35)
        panel.hist(values, bins, color=color, histtype="step", linewidth=1.2)
        panel.axvline(values.mean(), color=color, linestyle="--", linewidth=1.2)
    panel.set(xlim=(bins[0], bins[-1]), xlabel="Pearson with the truth", ylabel="signatures")
    panel.xaxis.set_major_locator(MaxNLocator(**_TICKS))
    panel.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))


def _summary(model: np.ndarray, base: np.ndarray) -> list[str]:
    """Ratio of the means; share of signatures that improve, and whether that may be chance."""
    means = f"mean {model.mean():z.2f} over {base.mean():z.2f}"
    fold = f"{model.mean() / base.mean():z.2f}-fold: {means}" if base.mean() > 0 else means
    difference = model - base
    difference = difference[difference != 0]
    p = wilcoxon(difference).pvalue if len(difference) else 1.0
    written = f"p < {_SMALLEST:g}" if p < _SMALLEST else f"p = {p:.2g}"
    return [fold, f"{(model > base).mean():.0%} improved, {written}"]


def _handles(kind: Kind) -> list[Line2D | Patch]:
    """What a legend shows."""
    if kind == "histogram":
        names = {"baseline": _BASELINE, "model": _BETTER}
        patches = [Patch(facecolor=(color, 0.35), edgecolor=color, label=name) for name, color in names.items()]
        return [*patches, Line2D([], [], color="black", linestyle="--", linewidth=1.2, label="mean")]
    dot = {"marker": "o", "linestyle": "", "markersize": 4}
    return [
        Line2D([], [], color=_BETTER, label="model better", **dot),
        Line2D([], [], color=_WORSE, label="baseline better", **dot),
        Line2D([], [], linestyle="", label="mean", **{**MEAN, "markersize": 7, "markeredgecolor": "black"}),
        Line2D([], [], label="equal", **IDENTITY),
    ]
