from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ._figure import COLORS, finish, panels
from ._tables import check_table, choose, in_order

# The same colours again with another line, rather than more colours that are hard to tell apart. A thin yellow line
# would hardly be seen on paper.
_LINE_COLORS = [color for color in COLORS if color != "#ece133"]
_STYLES = [{"color": color, "linestyle": style} for style in ("-", "--", ":", "-.") for color in _LINE_COLORS]


def prototype_curves(
    table: pd.DataFrame,
    target_types: str | Sequence[str] | None = None,
    *,
    smooth: bool = True,
    ncols: int = 4,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    save: str | PathLike | None = None,
) -> list[Axes]:
    r"""How likely the target's prototypes are under the context's during training, a panel for each target type.

    Each curve is a context type, with the same colour and line in all panels; the one of the target type's name is
    thick. It should end lowest.

    Parameters
    ----------
    table
        Columns ``"step"``, ``"target_type"``, ``"context_type"`` and ``"negative_log_likelihood"``: of the target
        type's prototype under the target's decoder, at the context prototype's place in the latent space.
    target_types
        Target types to draw, by default all.
    smooth
        Draw a moving average: at the :math:`k`-th recorded step, counted from 0, the mean of the last
        :math:`\min(5 + \min(k, 5) + 0.1 k, 6000)` (rounded down) recorded values, or of all where there are fewer.
    ncols
        Panels in a row.
    ax
        Axes to draw on, one for each target type.
    show
        Show the figure; by default only where scanpy would (``sc.settings.autoshow``) and no axes are given.
    save
        File to write the figure to.

    Returns
    -------
    The axes, one for each target type; the x-axis is step + 1, on a logarithmic scale. The table is not changed.

    Raises
    ------
    KeyError
        If a column or a target type is missing.
    ValueError
        If the table is empty, a step is negative, or there are not as many axes as target types.

    Examples
    --------
    With ``tracker`` of the example of :class:`~transverse.scspecies.PrototypeTracker`:

    >>> axes = tv.pl.prototype_curves(tracker.table, ["T1a", "T2a"])
    >>> len(axes)
    2
    """
    check_table(table, ["step", "target_type", "context_type", "negative_log_likelihood"])
    target_types = choose(target_types, in_order(table["target_type"]), "target_types")
    if table["step"].min() < 0:
        raise ValueError(f"step must not be negative, but has {table['step'].min()}.")
    context_types = in_order(table["context_type"])
    styles = {name: _STYLES[i % len(_STYLES)] for i, name in enumerate(context_types)}

    axes = panels(ax, len(target_types), "target types", ncols=ncols, size=(3.6, 3.2))
    for panel, target_type in zip(axes, target_types, strict=True):
        rows = table[table["target_type"] == target_type].sort_values("step", kind="stable")
        for name in context_types:
            curve = rows[rows["context_type"] == name]
            y = curve["negative_log_likelihood"].to_numpy(dtype=float)
            own = name == target_type
            panel.plot(
                curve["step"] + 1,
                _moving_average(y) if smooth else y,
                label=name,
                linewidth=3.0 if own else 1.2,
                zorder=3 if own else 2,
                **styles[name],
            )
        panel.set(xscale="log", xlabel="step + 1", ylabel="negative log-likelihood", title=target_type)
        panel.spines[["top", "right"]].set_visible(False)
    last_of_first_row = axes[min(ncols, len(axes)) - 1]
    lines = last_of_first_row.lines
    legend = last_of_first_row.legend(
        title="context type\n(thick: same name)",
        loc="upper left",
        bbox_to_anchor=(1, 1),
        frameon=False,
        fontsize="small",
        alignment="left",
        ncols=-(-len(lines) // 10),  # no taller than the panel
    )
    for handle in legend.legend_handles:
        handle.set_linewidth(1.8)
    finish(axes, ax, show, save)
    return axes


def _moving_average(values: np.ndarray) -> np.ndarray:
    k = np.arange(len(values))
    window = np.minimum(5 + np.minimum(k, 5) + 0.1 * k, 6000).astype(int)
    start = np.maximum(k + 1 - window, 0)
    total = np.concatenate([[0.0], np.cumsum(values)])
    return (total[k + 1] - total[start]) / (k + 1 - start)
