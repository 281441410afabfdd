from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from os import PathLike

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from scipy.stats import binomtest

from transverse._validation import examples

from ._figure import GREY, category_colors, finish, panels, short_names
from ._fit import legend_below
from ._tables import align, label_order

Labels = Sequence[str] | pd.Series | pd.DataFrame

_ALL = "all"
_GAP = 0.35  # between the last label and all, of the distance between labels
_GROUP = 0.8  # width of the bars of a label
_CHANCE = {"color": "black", "linestyle": (0, (3, 1.5)), "linewidth": 1.4}
_ERROR = {"color": "#4d4d4d", "linewidth": 1.0}


def label_accuracy(
    truth: Sequence[str] | pd.Series,
    predictions: Mapping[str, Labels] | Labels,
    *,
    chance: Sequence[str] | pd.Series | Mapping[str, float] | None = None,
    palette: str | Sequence[str] | Mapping[str, str] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | PathLike | None = None,
) -> Axes:
    r"""Share of right predictions of each true label, and of all, beside what chance gives.

    Chance draws labels by their shares :math:`q` in the training, as in :cite:p:`Belgadi2024`: it is right for :math:`q_l`
    of the samples of label :math:`l`, and for :math:`\sum_l p_l q_l` of all, where the share of the label is :math:`p_l`.

    Parameters
    ----------
    truth
        True labels. They keep the order of their categories, and are sorted where they have none.
    predictions
        Predicted labels of the same samples, or several such by name; for each either labels or a table with the column
        ``"label"``, as ``predict_labels`` returns it. Series and tables are matched to a Series by index, everything else
        by position. A missing label is wrong.
    chance
        Labels of the training samples, of which missing ones are left out; or the share of each label, as a mapping or
        a Series of numbers. By default the shares in ``truth``, which are not known to a predictor.
    palette
        Colours of the predictions: a list, the name of a colormap, or a mapping from their names.
    ax
        Axes to draw on; these get no legend, for which ``ax.legend()`` finds what is drawn.
    show
        Show the figure; by default only where scanpy would (``sc.settings.autoshow``) and no axes are given.
    save
        File to write the figure to.

    Returns
    -------
    The axes, with the number of samples beside each label. Lines on bars are Wilson's 95% confidence interval of a share; it
    takes the samples to be independent, and is too short where several are of one animal. The labels are not changed.

    Raises
    ------
    KeyError
        If a table has no column ``"label"``, or a mapping has no share of a true label or no colour of a prediction.
    ValueError
        If indices or lengths do not fit, true labels are missing, there are no predictions, ``chance`` has no labels or none
        of ``truth``, or shares are not between 0 and 1 or sum to more than 1.

    Warns
    -----
    UserWarning
        If predictions have no label in common with the truth, as where these are spelt in another way.

    Examples
    --------
    With ``model``, ``adata`` and ``data`` of the example of :class:`~transverse.UGE`:

    >>> mouse, rat = data["mouse"], data["rat"]
    >>> table = model.predict_labels("organ", adata[adata.obs["species"] == "rat"])
    >>> vote = tv.baselines.NeighborVote(n_neighbors=5, normalize="given").fit(mouse, "organ")
    >>> predictions = {"UGE": table, "neighbours": vote.predict(rat, orthologs=rat.uns["gene_map"])}
    >>> ax = tv.pl.label_accuracy(rat.obs["organ"], predictions, chance=mouse.obs["organ"])
    """
    is_named = isinstance(predictions, Mapping)
    sets = {str(name): own for name, own in predictions.items()} if is_named else {"predictions": predictions}
    if not sets:
        raise ValueError("predictions must have at least one set of labels, but is empty.")
    right = {}
    for name, own in sets.items():
        right[name] = _is_right(own, truth, name)
    truth, _ = align(truth, truth, ("truth", "truth"))
    labels = label_order(truth)
    of_label = [(truth.astype(str) == label).to_numpy() for label in labels]
    rows = [*of_label, np.ones(len(truth), dtype=bool)]
    n = np.array([own.sum() for own in rows])
    shares = n[:-1] / len(truth) if chance is None else _shares(chance, labels)
    levels = np.append(shares, shares @ n[:-1] / len(truth))
    colors = category_colors(list(sets), palette)

    x = np.append(np.arange(len(labels)), len(labels) + _GAP)
    width = _GROUP / len(sets)
    size = (1.4 + (len(x) + _GAP) * max(0.42, 0.16 * len(sets) + 0.14), 3.8)
    panel = panels(ax, 1, "figure", size=size)[0]
    for i, (name, own) in enumerate(right.items()):
        counts = np.array([own[row].sum() for row in rows])
        accuracy = counts / n
        low, high = _wilson(counts, n)
        place = x + (i - (len(sets) - 1) / 2) * width
        panel.bar(place, accuracy, 0.92 * width, color=colors[name], label=name)
        panel.errorbar(
            place,
            accuracy,
            [accuracy - low, high - accuracy],
            fmt="none",
            ecolor=_ERROR["color"],
            capsize=2,
            elinewidth=1,
        )
    panel.hlines(levels, x - 0.46, x + 0.46, zorder=4, label="chance", **_CHANCE)
    panel.axvline(len(labels) - 0.5 + _GAP / 2, color=GREY, linewidth=0.8, zorder=0)
    names = [f"{name} ({count})" for name, count in zip(short_names([*labels, _ALL], 24), n, strict=True)]
    panel.set_xticks(x, names, rotation=45, ha="right", rotation_mode="anchor")
    panel.tick_params(axis="x", length=0)
    panel.set(xlim=(-0.6, x[-1] + 0.6), ylim=(0, 1.02), xlabel="true label (samples)", ylabel="accuracy")
    panel.spines[["top", "right"]].set_visible(False)
    if ax is None:
        handles = [Patch(color=colors[name], label=name) for name in sets] if is_named else []
        handles += [
            Line2D([], [], label="95% confidence interval", **_ERROR),
            Line2D([], [], label=_source(chance), **_CHANCE),
        ]
        legend_below([panel], handles)
    finish([panel], ax, show, save)
    return panel


def _is_right(predicted: Labels, truth: Sequence[str] | pd.Series, name: str) -> np.ndarray:
    """Whether each label is right; raises where they do not fit the truth."""
    if isinstance(predicted, pd.DataFrame):
        if "label" not in predicted:
            raise KeyError(f"{name} lacks the column 'label'. It has: {examples(predicted.columns, 20)}.")
        predicted = predicted["label"]
    predicted, truth = align(predicted, truth, (name, "truth"))
    if (missing := truth.isna()).any():
        raise ValueError(f"truth is missing for {missing.sum()} samples: {examples(truth.index[missing])}.")
    known = predicted.notna().to_numpy()
    true, labels = (values.astype(str).to_numpy(dtype=object) for values in (truth, predicted))
    if known.any() and not np.isin(labels[known].astype(str), true.astype(str)).any():
        warnings.warn(
            f"{name} has no label of truth. It has: {examples(dict.fromkeys(labels[known]))}; truth: "
            f"{examples(dict.fromkeys(true))}. Are the labels spelt alike?",
            UserWarning,
            stacklevel=3,
        )
    return known & (labels == true)


def _shares(chance: Sequence[str] | pd.Series | Mapping[str, float], labels: Sequence[str]) -> np.ndarray:
    """Share of each label in the training."""
    if isinstance(chance, Mapping) or (isinstance(chance, pd.Series) and pd.api.types.is_float_dtype(chance)):
        given = {str(label): share for label, share in chance.items()}
        if lacking := [label for label in labels if label not in given]:
            raise KeyError(
                f"chance has no share of {examples(lacking)}; one that the training lacks is 0. It has: {examples(given)}."
            )
        try:
            shares = pd.Series(given, dtype=float)
        except (TypeError, ValueError) as error:
            raise ValueError(f"chance must map labels to numbers: {error}.") from error
        if wrong := [f"{label}: {share:g}" for label, share in shares.items() if not 0 <= share <= 1]:
            raise ValueError(f"chance must have shares between 0 and 1, but has {examples(wrong)}.")
        if (total := shares.sum()) > 1 + 1e-6:
            raise ValueError(f"chance must have shares that sum to 1 at most, but they sum to {total:.3g}.")
        return shares[list(labels)].to_numpy()
    drawn, _ = align(chance, chance, ("chance", "chance"))
    drawn = drawn.dropna().astype(str)
    if drawn.empty:
        raise ValueError("chance has no labels: all of its values are missing.")
    shares = np.array([(drawn == label).mean() for label in labels])
    if not shares.any():
        raise ValueError(
            f"chance has no label of truth. It has: {examples(drawn.unique())}; truth: {examples(labels)}. Are the labels "
            "spelt alike?"
        )
    return shares


def _wilson(counts: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the 95% confidence interval of each share, which hold the share itself."""
    ends = [binomtest(int(k), int(of)).proportion_ci(method="wilson") for k, of in zip(counts, n, strict=True)]
    return np.minimum([end.low for end in ends], counts / n), np.maximum([end.high for end in ends], counts / n)


def _source(chance: object) -> str:
    return f"chance (shares in the {'truth' if chance is None else 'training'})"
