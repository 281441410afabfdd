"""Text that has to fit: titles between those of neighbours, names along an axis, and legends below."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec

from ._figure import root

NAME_SIZE = 7
NAME_STEP = 1.25 * NAME_SIZE
"""Points that a name along an axis needs, so that it does not touch the next one."""


def settle(axes: Sequence[Axes]) -> None:
    """Lay the figure out until the axes stay where they are: a constrained layout takes several passes."""
    before = None
    for _ in range(6):
        _lay_out(root(axes[0]))
        bounds = np.array([ax.get_window_extent().bounds for ax in axes])
        if before is not None and np.abs(bounds - before).max() < 0.5:
            return
        before = bounds


def _lay_out(figure: Figure) -> None:
    """What a drawing does to the axes of a figure before it draws them, which takes most of the time."""
    if (engine := figure.get_layout_engine()) is not None:
        engine.execute(figure)
    for ax in figure.axes:
        locator = ax.get_axes_locator()
        ax.apply_aspect(locator(ax, None) if locator else None)


def fit_titles(axes: Sequence[Axes]) -> None:
    """Shrink the titles, all alike, until each one ends before those beside it and before the edge of the figure.

    Call it when all else is drawn, but for what depends on the layout.
    """
    figure = root(axes[0])
    settle(axes)
    grids = {_grid(ax) for ax in axes} - {None}
    beside = [ax for ax in figure.axes if _grid(ax) in grids and ax.get_label() != "<colorbar>"]
    factor = 1.0
    for ax in axes:
        box, width = ax.get_window_extent(), ax.title.get_window_extent().width
        centre, around = (box.x0 + box.x1) / 2, ax.figure.bbox
        room = [2 * (centre - around.x0), 2 * (around.x1 - centre)]
        for other in {*axes, *beside} - {ax}:
            own = other.get_window_extent()
            if own.y0 < box.y1 and own.y1 > box.y0:
                room.append(abs((own.x0 + own.x1) / 2 - centre))
        gap = 0.6 * ax.title.get_fontsize() * figure.dpi / 72
        if width > 0:
            factor = min(factor, max(min(room) - gap, 1) / width)
    for ax in axes:
        ax.title.set_fontsize(factor * ax.title.get_fontsize())


def _grid(ax: Axes) -> GridSpec | None:
    """The grid that axes are part of; a colour bar puts them into one of their own within it."""
    place = ax.get_subplotspec()
    return None if place is None else place.get_topmost_subplotspec().get_gridspec()


def legend_below(axes: Sequence[Axes], handles: Sequence[Artist]) -> None:
    """A legend below the panels of a figure of our own, in as many columns as fit; the figure grows with its rows."""
    figure = root(axes[0])
    for ncols in range(len(handles), 0, -1):
        options = {"frameon": False, "fontsize": "small"}
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=ncols, **options)
        box = legend.get_window_extent()
        if ncols == 1 or box.width <= figure.bbox.width:
            break
        legend.remove()
    nrows = -(-len(handles) // ncols)
    figure.set_figheight(figure.get_figheight() + (1 - 1 / nrows) * box.height / figure.dpi)


def text_scale() -> float:
    """Size of text relative to matplotlib's default, by which the room for it grows."""
    return plt.rcParams["font.size"] / 10


def name_where_they_fit(
    axes: Sequence[Axes], x: Sequence[Sequence[str]], y: Sequence[Sequence[str]] | None = None
) -> list[bool]:
    """Name the columns of each panel, and its rows if ``y`` is given, where no name would touch the next one.

    Returns which panels have got names. Call it when all else is drawn.
    """
    settle(axes)
    named = [_fits(ax, len(names), y is not None) for ax, names in zip(axes, x, strict=True)]
    for i, ax in enumerate(axes):
        if named[i]:
            ax.set_xticks(range(len(x[i])), x[i], rotation=90, fontsize=NAME_SIZE)
            if y is not None:
                ax.set_yticks(range(len(y[i])), y[i], fontsize=NAME_SIZE)
    settle(axes)  # names take room themselves
    for i, ax in enumerate(axes):
        if named[i] and not _fits(ax, len(x[i]), y is not None):
            named[i] = False
            ax.set_xticks([])
            if y is not None:
                ax.set_yticks([])
    return named


def _fits(ax: Axes, n: int, both: bool) -> bool:
    box = ax.get_window_extent()
    room = min(box.width, box.height) if both else box.width
    return room * 72 / root(ax).dpi >= NAME_STEP * n
