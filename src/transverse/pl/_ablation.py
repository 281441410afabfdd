from __future__ import annotations

import textwrap
from collections.abc import Sequence
from os import PathLike

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from transverse._validation import examples
from transverse.metrics._direction import direction

from ._benchmark import _PREFERRED, _title
from ._figure import draw_matrix, finish, panels
from ._tables import check_no_missing, check_table, in_order, split_scores

_METRICS = ("r2", "explained_variance", "pearson")
_COLUMNS = ("variant", "seed", "metric", "value")


def ablation(
    table: pd.DataFrame,
    *,
    full: str = "full",
    metric: str | Sequence[str] | None = None,
    of: str | Sequence[str] | None = None,
    genes: str | Sequence[str] | None = None,
    cmap: str = "PuOr",
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | PathLike | None = None,
) -> Axes:
    """What a model loses without its parts: variants (rows) by scores (columns).

    Numbers are the mean over seeds and, with several, the standard deviation over them (``ddof=1``), of the score's mean over
    conditions. Colour is the difference to the full model, turned so that below 0 is worse. It is in the units of the score:
    draw scores of different units, such as an error and a correlation, apart.

    Parameters
    ----------
    table
        Long form: a row for each variant, seed, score and, as :func:`transverse.metrics.response_scores` gives them,
        condition. Columns ``"variant"``, ``"seed"``, ``"metric"`` and ``"value"``; ``"of"`` and ``"genes"``, where there,
        tell scores apart. Every variant and seed must have as many values of a score, since others cannot be compared.
    full
        The variant that the others are held against, which is the first row.
    metric
        Scores to draw. By default those of R², explained variance and Pearson correlation that the table has, else all.
    of
        What the scores are of. By default the change, where a score is there for it.
    genes
        Which genes the scores are of, such as ``"all"`` or ``"top 50"``. By default each.
    cmap
        Diverging colormap.
    ax
        Axes to draw on.
    show
        Show the figure; by default only where scanpy would (``sc.settings.autoshow``) and no axes are given.
    save
        File to write the figure to.

    Returns
    -------
    The axes. The table is not changed.

    Raises
    ------
    KeyError
        If a column is missing, as where scores have columns of their own, or the table does not have a score.
    ValueError
        If the table is empty, has no variant ``full`` or no other, a variant or seed has more values of a score than another,
        or of a score neither more nor less is better.

    Examples
    --------
    >>> import pandas as pd
    >>> import transverse as tv
    >>> rows = [("full", 0, 0.82), ("full", 1, 0.80), ("no cross", 0, 0.61), ("no cross", 1, 0.66)]
    >>> table = pd.DataFrame(rows, columns=["variant", "seed", "value"]).assign(metric="pearson")
    >>> ax = tv.pl.ablation(table)
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['full', 'no cross']
    """
    _check_long(table)
    variants = in_order(table["variant"])
    if full not in variants:
        raise ValueError(f"The table has no variant full={full!r}. It has: {examples(variants)}.")
    variants = [full, *(name for name in variants if name != full)]
    if len(variants) == 1:
        raise ValueError(f"The table has no variant but {full!r} to hold against it.")
    if metric is None:
        known = in_order(table["metric"])
        metric = [name for name in _METRICS if name in known] or known
    parts = split_scores(table, metric, {"of": of, "genes": genes}, {"of": "change"})
    if neither := [part["metric"].iloc[0] for part in parts if direction(part["metric"].iloc[0]) == 0]:
        raise ValueError(f"Neither more nor less is better of {examples(dict.fromkeys(neither))}.")
    columns = [_over_seeds(part, variants) for part in parts]

    labels = [_label(part) for part in parts]
    better = [direction(part["metric"].iloc[0]) for part in parts]
    # adding nought spares the reader a nought with a minus
    difference = pd.DataFrame(
        {
            i: sign * (own["mean"] - own.loc[full, "mean"]) + 0.0
            for i, (own, sign) in enumerate(zip(columns, better, strict=True))
        }
    ).loc[variants]
    texts = [[_text(*own.loc[name, ["mean", "std"]]) for own in columns] for name in variants]
    limit = max(float(np.abs(difference.to_numpy()).max()), 1e-6)

    size = (max(4.2, 2.6 + 0.85 * len(parts)), 1.6 + 0.5 * len(variants))
    panel = panels(ax, 1, "table", size=size)[0]
    label = f"difference to {full}\n(below 0: worse)"
    draw_matrix(panel, difference, texts, cmap=cmap, label=label, vmin=-limit, vmax=limit)
    panel.set_xticks(range(len(parts)), labels, rotation=0, ha="center", fontsize="small")
    panel.tick_params(axis="x", labeltop=True, length=0, labelbottom=False)
    panel.tick_params(axis="y", length=0)
    if (most := max(own["count"].max() for own in columns)) > 1:
        least = min(own["count"].min() for own in columns)
        n_seeds = f"{most}" if least == most else f"{least} to {most}"
        panel.set_xlabel(f"mean ± standard deviation over {n_seeds} seeds")
    finish([panel], ax, show, save)
    return panel


def _check_long(table: pd.DataFrame) -> None:
    if isinstance(table, pd.DataFrame) and {"variant", "seed"} <= set(table.columns) and "metric" not in table:
        raise KeyError(
            "table must be in long form, with columns 'metric' and 'value', a row for each score, but has "
            f"{examples(table.columns, 20)}. If scores have columns of their own, call "
            "table.melt(['variant', 'seed'], var_name='metric') first."
        )
    check_table(table, _COLUMNS)
    for key in ("variant", "seed"):
        check_no_missing(table, key)


def _over_seeds(rows: pd.DataFrame, variants: Sequence[str]) -> pd.DataFrame:
    """Mean and standard deviation of a score over seeds, a row for each variant."""
    own = rows.groupby(["variant", "seed"], observed=True, sort=False)["value"]
    n = own.count()
    score = _label(rows).replace("\n", " ")
    if lacking := [name for name in variants if name not in n.index.get_level_values("variant")]:
        raise ValueError(f"The table has no value of {score!r} for the variants {examples(lacking)}.")
    if n.nunique() > 1:
        (variant, seed), (other, other_seed) = n.idxmin(), n.idxmax()
        raise ValueError(
            f"{variant!r} with seed {seed} has {n.min()} values of {score!r}, but {other!r} with seed {other_seed} has "
            f"{n.max()}. Means over different conditions cannot be compared."
        )
    return own.mean().groupby("variant", observed=True).agg(["mean", "std", "count"])


def _label(rows: pd.DataFrame) -> str:
    """Name of a score, in narrow lines."""
    return "\n".join(
        line
        for part in _title(rows.filter(["metric", *_PREFERRED])).replace(", ", "\n").split("\n")
        for line in textwrap.wrap(part, 12)
    )


def _text(mean: float, sd: float) -> str:
    return f"{mean:z.3f}" if np.isnan(sd) else f"{mean:z.3f}\n± {sd:.3f}"
