"""What the figures share: panels, colours, matrices, and showing and saving."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scanpy as sc
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Normal, Stroke

# Nine colours that most colour-blind readers can tell apart (seaborn's "colorblind" without its grey).
COLORS = "#0173b2 #de8f05 #029e73 #d55e00 #cc78bc #56b4e9 #ca9161 #ece133 #fbafe4".split()
GREY, DARK_GREY = "#e3e3e3", "#4d4d4d"
MISSING = "missing"
_NEUTRAL = {"unknown": DARK_GREY, MISSING: "#9a9a9a"}
MEAN = {"marker": "D", "markersize": 4, "markerfacecolor": "white", "markeredgewidth": 1.2}


def category_colors(categories: Sequence[str], palette: str | Sequence[str] | Mapping[str, str] | None = None) -> dict:
    """Colour of each category; ``"unknown"`` and ``"missing"`` are greys unless a palette is given."""
    if isinstance(palette, Mapping):
        palette = {str(category): value for category, value in palette.items()}
        if missing := [category for category in categories if category not in palette]:
            raise KeyError(f"palette has no colour for {missing[:5]}.")
        return palette
    neutral = {c: color for c, color in _NEUTRAL.items() if c in categories and palette is None}
    others = [category for category in categories if category not in neutral]
    if palette is None:
        choices = (COLORS, sc.pl.palettes.default_20, sc.pl.palettes.default_102)
        palette = next((colors for colors in choices if len(others) <= len(colors)), choices[-1])
    elif isinstance(palette, str):
        colormap = plt.get_cmap(palette, len(others))
        palette = [colormap(i) for i in range(len(others))]
    return {category: palette[i % len(palette)] for i, category in enumerate(others)} | neutral


def check_axes(ax: Axes | Sequence[Axes] | None, n: int, what: str) -> None:
    """Raise a ValueError unless ``ax`` is None or holds ``n`` axes."""
    if ax is not None and len(np.ravel(ax)) != n:
        raise ValueError(f"ax must hold an Axes for each of the {n} {what}, but holds {len(np.ravel(ax))}.")


def panels(
    ax: Axes | Sequence[Axes] | None, n: int, what: str, *, ncols: int | None = None, size: tuple[float, float]
) -> list[Axes]:
    """The ``n`` axes that are given, or those of a new figure, at most ``ncols`` in a row, of ``size`` (inches) each."""
    check_axes(ax, n, what)
    if ncols is not None and ncols < 1:
        raise ValueError(f"ncols={ncols} must be at least 1.")
    if ax is not None:
        return list(np.ravel(ax))
    ncols = min(n, ncols or n)
    nrows = -(-n // ncols)
    figure = plt.figure(figsize=(size[0] * ncols, size[1] * nrows), layout="constrained")
    axes = [figure.add_subplot(nrows, ncols, i + 1) for i in range(n)]
    for panel in axes:
        panel.grid(False)  # scanpy's figure parameters switch it on
    return axes


def finish(
    axes: Sequence[Axes], ax: Axes | Sequence[Axes] | None, show: bool | None, save: str | PathLike | None
) -> None:
    """Save the figure, and show it if asked to; by default where scanpy would and no axes were given."""
    if save is not None:
        root(axes[0]).savefig(save, dpi=300, bbox_inches="tight")
    if show or (show is None and ax is None and sc.settings.autoshow):
        plt.show()


def root(ax: Axes) -> plt.Figure:
    """The figure that axes are part of, also within a sub-figure."""
    return ax.figure.canvas.figure


def draw_matrix(
    ax: Axes,
    matrix: pd.DataFrame,
    texts: Sequence[Sequence[str]] | None,
    *,
    cmap: str,
    label: str,
    vmin: float | None = None,
    vmax: float | None = None,
    extend: Literal["neither", "min", "max", "both"] = "neither",
) -> None:
    """A matrix in colours with its row and column names, a text in each cell, and a colour bar."""
    values = matrix.to_numpy(dtype=float)
    image = ax.imshow(values, cmap=cmap, vmin=vmin, vmax=vmax, aspect="auto")
    ax.set_xticks(range(matrix.shape[1]), matrix.columns, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(matrix.shape[0]), matrix.index)
    ax.spines[:].set_visible(False)
    for axis, n in ((ax.xaxis, matrix.shape[1]), (ax.yaxis, matrix.shape[0])):
        axis.set_ticks(np.arange(1, n) - 0.5, minor=True)
    ax.grid(False)
    ax.grid(which="minor", color="white", linewidth=0.8)
    ax.tick_params(which="minor", length=0)
    if texts is not None:
        rgba = image.to_rgba(values)
        alpha = rgba[..., 3]  # of missing values nothing is drawn
        dark = alpha * (rgba[..., :3] @ (0.299, 0.587, 0.114)) + 1 - alpha < 0.5
        for (i, j), is_dark in np.ndenumerate(dark):
            ax.text(j, i, texts[i][j], ha="center", va="center", fontsize=8, color="white" if is_dark else "black")
    ax.figure.colorbar(image, ax=ax, label=label, fraction=0.05, pad=0.03, extend=extend)


def mark_cell(ax: Axes, i: int, j: int, *, width: float = 2.0, inset: tuple[float, float] = (0.07, 0.07)) -> None:
    """A border of some ``width`` within the cell in row ``i`` and column ``j`` of a matrix, seen on dark cells, too."""
    x, y = inset
    border = Rectangle((j - 0.5 + x, i - 0.5 + y), 1 - 2 * x, 1 - 2 * y, fill=False, edgecolor="black", linewidth=width)
    border.set_path_effects([Stroke(linewidth=width + 1.6, foreground="white"), Normal()])
    ax.add_patch(border)


def short_names(names: Iterable[str], n: int = 16) -> list[str]:
    """Names with at most ``n`` letters; groups of orthologues and identifiers can have much longer ones."""
    return [name if len(name) <= n else f"{name[: n - 1]}…" for name in map(str, names)]


def draw_boxes(
    ax: Axes,
    values: Sequence[np.ndarray],
    positions: Sequence[float],
    *,
    color: str,
    width: float,
    orientation: Literal["vertical", "horizontal"] = "vertical",
) -> None:
    """Boxes of quartiles with the median, whiskers from 5 to 95%, and a white diamond for the mean."""
    line = {"color": color, "linewidth": 1.0}
    ax.boxplot(
        values,
        positions=positions,
        widths=width,
        orientation=orientation,
        whis=(5, 95),
        showfliers=False,
        showmeans=True,
        patch_artist=True,
        manage_ticks=False,
        boxprops={"facecolor": to_rgba(color, 0.3), "edgecolor": color, "linewidth": 1.0},
        medianprops={**line, "linewidth": 1.6},
        whiskerprops=line,
        capprops=line,
        meanprops={**MEAN, "markeredgecolor": color, "zorder": 4},
    )


def matrix_size(matrix: pd.DataFrame) -> tuple[float, float]:
    """Width and height (inches) of a figure whose cells can hold a number."""
    return max(4.0, 2.6 + 0.42 * matrix.shape[1]), max(3.2, 1.8 + 0.36 * matrix.shape[0])
