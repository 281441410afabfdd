"""Names of points, placed where they do not hide one another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.transforms import Affine2D, Bbox
from sklearn.isotonic import isotonic_regression

from ._figure import root

_FONTSIZE = 7
_LONGEST = 16  # letters; groups of orthologues can have much longer names
_LINE = {"arrowstyle": "-", "linewidth": 0.5, "color": "black", "shrinkA": 0, "shrinkB": 2}


def label_beside(
    axes: Sequence[Axes],
    xys: Sequence[np.ndarray],
    names: Sequence[Sequence[str]],
    *,
    obstacles: Sequence[np.ndarray],
) -> None:
    """Write names beside points, where they hide neither one another nor many of the ``obstacles``.

    For each panel, ``xys`` holds places of shape ``(n_names, 2)`` and ``obstacles`` of shape ``(n_points, 2)``, in data
    coordinates. Earlier names get the better places. Call it when all else is drawn.
    """
    root(axes[0]).draw_without_rendering()  # only the layout tells where points lie
    for ax, xy, own, points in zip(axes, xys, names, obstacles, strict=True):
        scale = 72 / root(ax).dpi
        offsets = _free_offsets(
            ax.transData.transform(xy) * scale, own, ax.transData.transform(points) * scale, _frame(ax)
        )
        for place, name, (offset, is_far) in zip(xy, own, offsets, strict=True):
            ax.annotate(
                name,
                tuple(place),
                xytext=tuple(offset),
                textcoords="offset points",
                ha="center",
                va="center",
                fontsize=_FONTSIZE,
                arrowprops=_LINE if is_far else None,
            ).set_in_layout(False)


def label_above(
    axes: Sequence[Axes], xys: Sequence[np.ndarray], names: Sequence[Sequence[str]], *, base: float
) -> None:
    """Write names upright in a row above ``base`` (data coordinates), in the order of their points' ``x``.

    ``xys`` and ``names`` are those of each panel; long names are cut. All panels get the same upper limit, with room
    for the longest name. Call it when all else is drawn.
    """
    names = [[name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…" for name in own] for own in names]
    longest = max((len(name) for own in names for name in own), default=0)
    if longest == 0:
        return
    root(axes[0]).draw_without_rendering()  # only the layout tells how large the panels are
    for ax, xy, own in zip(axes, xys, names, strict=True):
        frame = _frame(ax)
        low = ax.get_ylim()[0]
        room = (0.62 * _FONTSIZE * longest + 4) / frame.height
        ax.set_ylim(low, low + (base - low) / (1 - min(0.5, room)))
        left, right = ax.get_xlim()
        order = np.argsort(xy[:, 0], kind="stable")
        gap = min(1.3 * _FONTSIZE / frame.width, 1 / (len(order) + 1)) * (right - left)
        for i, x in zip(order, _spread(xy[order, 0], gap, left + gap / 2, right - gap / 2), strict=True):
            ax.annotate(
                own[i],
                tuple(xy[i]),
                xytext=(x, base),
                rotation=90,
                ha="center",
                va="bottom",
                fontsize=_FONTSIZE,
                arrowprops={**_LINE, "relpos": (0.5, 0), "patchA": None},  # a line from below the name
            ).set_in_layout(False)


def _free_offsets(
    anchors: np.ndarray, names: Sequence[str], obstacles: np.ndarray, frame: Bbox
) -> list[tuple[np.ndarray, bool]]:
    """For each name how far from its anchor to write it (points), and whether that needs a line between them."""
    angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    distances = [3, 9, 16, 24, 33, 43, 54, 66, 80]
    direction = np.tile(np.stack([np.cos(angles), np.sin(angles)], axis=1), (len(distances), 1))
    distance = np.repeat(distances, len(angles))
    taken = np.empty((0, 4))
    offsets = []
    for anchor, name in zip(anchors, names, strict=True):
        half = np.array([0.34 * len(name), 0.6]) * _FONTSIZE  # about half of the text's width and height
        offset = direction * (half + distance[:, None])
        low, high = anchor + offset - half, anchor + offset + half
        outside = ((low < frame.min) | (high > frame.max)).any(axis=1)
        overlaps = ((low[:, None] < taken[:, 2:]) & (high[:, None] > taken[:, :2])).all(axis=2).sum(axis=1)
        hidden = ((low[:, None] < obstacles) & (high[:, None] > obstacles)).all(axis=2).sum(axis=1)
        best = np.argmin(distance + 4.0 * np.minimum(hidden, 50) + 1000.0 * (overlaps + outside))
        taken = np.vstack([taken, [*low[best], *high[best]]])
        offsets.append((offset[best], distance[best] > distances[0]))
    return offsets


def _spread(x: np.ndarray, gap: float, low: float, high: float) -> np.ndarray:
    """Places for sorted ``x`` that lie ``gap`` apart and nearest to it (least squares), moved into the limits."""
    if len(x) == 0:
        return x
    steps = gap * np.arange(len(x))
    places = isotonic_regression(x - steps) + steps
    return np.minimum(np.maximum(places, low + steps), high - steps[::-1])


def _frame(ax: Axes) -> Bbox:
    """Where the axes lie in the figure, in points."""
    return ax.get_window_extent().transformed(Affine2D().scale(72 / root(ax).dpi))
