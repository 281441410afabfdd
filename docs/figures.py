"""Figures of the documentation.

``python docs/figures.py`` draws the schemes of the methods into ``docs/_static/methods``; they are committed. The figures of the
benchmark page are drawn from the tables in ``docs/user_guide`` whenever the documentation is built (``conf.py``).
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.ticker import MaxNLocator

HERE = Path(__file__).parent
TABLES = HERE / "user_guide"

# Okabe and Ito's colours, which colour-blind readers can tell apart
BLUE, ORANGE, GREEN, RED, SKY, PINK = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7"
GREY, DARK, LIGHT = "#999999", "#333333", "#E6E6E6"
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "transverse",
}
# As wide as a phone's screen, in points: a point of the figure is a pixel there, so that its text stays legible.
WIDTH = 5.0


def save(figure: Figure, path: Path) -> None:
    """Write an SVG that is the same in every run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, facecolor="white", metadata={"Date": None})


# -- Schemes of the methods -------------------------------------------------------------------------------------------
def canvas(height: float) -> tuple[Figure, Axes]:
    """A figure whose axes count in hundredths of its width."""
    figure = Figure(figsize=(WIDTH, WIDTH * height / 100))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, 100), ylim=(0, height), aspect="equal")
    ax.axis("off")
    return figure, ax


def text(ax: Axes, x: float, y: float, what: str, **kwargs) -> None:
    ax.text(x, y, what, **{"ha": "center", "va": "center", "color": DARK, **kwargs})


def arrow(
    ax: Axes, start: tuple[float, float], end: tuple[float, float], color: str = DARK, bend: float = 0.0, **kwargs
):
    ax.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=13,
            linewidth=1.8,
            color=color,
            connectionstyle=f"arc3,rad={bend}",
            shrinkA=0,
            shrinkB=0,
            **kwargs,
        )
    )


def box(ax: Axes, x: float, y: float, width: float, height: float, color: str = LIGHT, **kwargs) -> None:
    style = {"facecolor": "none", "edgecolor": color, "linewidth": 1.2, **kwargs}
    ax.add_patch(FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=2", **style))


def scheme_scspecies() -> Figure:
    """Labelled cells of one species, unlabelled ones of another, and both in one space."""
    figure, ax = canvas(62)
    rng = np.random.default_rng(3)
    shapes = {"B": (BLUE, "o"), "T": (ORANGE, "s"), "NK": (GREEN, "^")}

    def clouds(centres: Mapping[str, tuple[float, float]], spread: float, n: int, hide: bool) -> None:
        for label, (x, y) in centres.items():
            color, marker = shapes.get(label, (DARK, "x"))
            points = rng.normal((x, y), spread, (n, 2))
            ax.scatter(*points.T, s=22, c=GREY if hide else color, marker="o" if hide else marker, linewidths=1.2)

    box(ax, 2, 33, 36, 27)
    text(ax, 20, 56.5, "mouse: labelled", fontweight="bold")
    context = {"B": (9.5, 45), "T": (20, 47.5), "NK": (30.5, 45)}
    clouds(context, 1.4, 12, False)
    for label, (x, _) in context.items():
        text(ax, x, 37, label, color=shapes[label][0], fontweight="bold")

    box(ax, 2, 2, 36, 27)
    text(ax, 20, 25.5, "human: no labels", fontweight="bold")
    clouds({"B": (11, 16), "T": (20, 11), "NK": (30, 17), "new": (28, 7)}, 1.6, 9, True)

    arrow(ax, (39.5, 46), (49, 39))
    arrow(ax, (39.5, 16), (49, 23))

    box(ax, 50, 2, 48, 58, BLUE)
    text(ax, 74, 55.5, "one latent space", fontweight="bold")
    shared = {"B": (62, 42), "T": (80, 44), "NK": (66, 25)}
    clouds(shared, 1.9, 20, False)
    for label, (x, y) in shared.items():
        text(ax, x, y - 7.8, label, color=shapes[label][0], fontweight="bold")
    clouds({"new": (85, 23)}, 2.0, 9, False)
    text(ax, 85, 16.5, "unknown", fontweight="bold")
    text(ax, 74, 7, "labels for human cells,\nwith a confidence", fontsize=9.5)
    return figure


def scheme_xtransfercdr() -> Figure:
    """Contexts by perturbations: what was measured, and the one that is asked for."""
    figure, ax = canvas(62)
    columns = {"control": 36, "drug A": 58, "drug B": 80}
    rows = {"cell line 1": 46, "cell line 2": 33, "cell line 3": 20}
    for label, x in columns.items():
        text(ax, x, 56, label, fontweight="bold")
    for label, y in rows.items():
        text(ax, 24, y, label, ha="right")
    for (row, y), color in zip(rows.items(), (SKY, GREEN, PINK), strict=True):
        for column, x in columns.items():
            asked = row == "cell line 3" and column == "drug B"
            if row == "cell line 3" and column == "drug A":
                text(ax, x, y, "–", color=GREY)
                continue
            rng = np.random.default_rng(len(row) + int(x))
            shift = {"control": (0, 0), "drug A": (0, 2.2), "drug B": (2.2, -1)}[column]
            points = rng.normal((x + shift[0], y + shift[1]), 1.5, (14, 2))
            ax.add_patch(
                Rectangle(
                    (x - 9, y - 5.5),
                    18,
                    11,
                    facecolor="#FFF6E0" if asked else "none",
                    edgecolor=ORANGE if asked else LIGHT,
                    linestyle="--" if asked else "-",
                    linewidth=2 if asked else 1.2,
                )
            )
            if asked:
                text(ax, x, y, "?", color=RED, fontsize=20, fontweight="bold")
            else:
                ax.scatter(*points.T, s=16, c=color, edgecolors=DARK, linewidths=0.4)
    arrow(ax, (91, 46), (91, 21), RED, -0.35)
    arrow(ax, (45.5, 14), (71, 14), RED, 0.18)
    text(ax, 58, 4.2, "its own controls + the effect seen elsewhere", color=RED)
    return figure


def scheme_deepcellstate() -> Figure:
    """Signatures of a drug as strips, through one latent state, to the strip of another cell type."""
    figure, ax = canvas(62)
    rng = np.random.default_rng(1)
    colormap = mpl.colormaps["RdBu_r"]
    common = rng.normal(size=12)

    def strip(x: float, y: float, own: int, label: str, asked: bool = False) -> None:
        values = common * 0.8 + np.random.default_rng(own).normal(size=12) * 0.7
        for i, value in enumerate(values):
            color = colormap(0.5 + np.clip(value, -2, 2) / 4)
            ax.add_patch(Rectangle((x + i * 2.4, y), 2.4, 6, facecolor=color, edgecolor="white", linewidth=0.4))
        if asked:
            ax.add_patch(
                Rectangle((x - 0.8, y - 0.8), 30.4, 7.6, facecolor="none", edgecolor=RED, linestyle="--", linewidth=2)
            )
        text(ax, x + 14.4, y + 9.4, label)

    text(ax, 17, 57.5, "signature of a drug", fontweight="bold")
    strip(2, 40, 10, "in A375")
    strip(2, 22, 20, "in PC3")
    text(ax, 17, 12.5, "a colour for each gene:\nup (red) or down (blue)", fontsize=9.5)
    arrow(ax, (33, 43), (41, 36.5))
    arrow(ax, (33, 25), (41, 31.5))
    text(ax, 37, 48.5, "encoder", fontsize=9.5)
    ax.add_patch(Circle((50, 34), 8.3, facecolor="#FFF6E0", edgecolor=ORANGE, linewidth=1.8))
    text(ax, 50, 34, "state of\nthe drug", fontsize=9.5)
    arrow(ax, (59, 34), (66, 34), RED)
    text(ax, 62.5, 48.5, "decoder", fontsize=9.5)
    text(ax, 83, 57.5, "asked for", fontweight="bold", color=RED)
    strip(68.5, 31, 30, "in MCF7", asked=True)
    text(ax, 83, 20, "where the drug was\nnot measured,\nbut others were", fontsize=9.5)
    return figure


def scheme_uge() -> Figure:
    """Reactomes of genes of two species, and which correspond."""
    figure, ax = canvas(62)
    colormap = mpl.colormaps["PuOr_r"]
    patterns = {
        "a": (1.6, 1.2, -0.4, -1.5, 0.2, 0.9),
        "b": (-1.2, 0.3, 1.7, 0.2, -1.4, 0.2),
        "c": (0.1, -1.6, 0.4, 1.4, 1.1, -1.2),
    }
    sides = {
        "mouse": (23, [("Gene1", "a"), ("Gene2", "b"), ("Gene3", "c")]),
        "rat": (59, [("Gene1", "c"), ("Gene8", "a"), ("Gene2", "b")]),
    }
    rows = (38, 27, 16)
    ends: dict[str, dict[str, float]] = {}
    for side, (species, (x, genes)) in enumerate(sides.items()):
        text(ax, x + 9, 57, species, fontweight="bold")
        text(ax, x + 9, 50.5, "drugs and organs", fontsize=9.5)
        for y, (gene, pattern) in zip(rows, genes, strict=True):
            values = np.array(patterns[pattern]) + np.random.default_rng(side + y).normal(size=6) * 0.2
            for i, value in enumerate(values):
                color = colormap(0.5 + np.clip(value, -2, 2) / 4)
                ax.add_patch(Rectangle((x + i * 3, y), 3, 7, facecolor=color, edgecolor="white", linewidth=0.4))
            outside = x - 2 if side == 0 else x + 20
            text(ax, outside, y + 3.5, gene, ha="right" if side == 0 else "left", fontstyle="italic")
            ends.setdefault(pattern, {})[species] = y + 3.5
    missing = sides["rat"][0] + 5 * 3
    ax.add_patch(Rectangle((missing, rows[-1]), 3, 29, facecolor="#FFF6E0", edgecolor=RED, linestyle="--", linewidth=2))
    text(ax, missing + 1.5, 30.5, "?", color=RED, fontsize=15, fontweight="bold")
    for pattern, color in zip("abc", (BLUE, GREEN, PINK), strict=True):
        y = ends[pattern]
        ax.plot((42, 58), (y["mouse"], y["rat"]), color=color, linewidth=2.4, solid_capstyle="round")
    text(ax, 50, 8.5, "lines: genes that respond alike, whatever their name", fontsize=9.5)
    text(ax, 50, 3, "?: a drug that was not tried there", fontsize=9.5, color=RED)
    return figure


SCHEMES = {
    "scspecies": scheme_scspecies,
    "xtransfercdr": scheme_xtransfercdr,
    "deepcellstate": scheme_deepcellstate,
    "uge": scheme_uge,
}


def draw_schemes(folder: Path = HERE / "_static" / "methods") -> None:
    with mpl.rc_context(STYLE):
        for name, draw in SCHEMES.items():
            save(draw(), folder / f"{name}.svg")


# -- Figures of the benchmarks ----------------------------------------------------------------------------------------
VALUE = re.compile(r"^([-+]?[\d.]+)(?: \[([-+]?[\d.]+), ([-+]?[\d.]+)\]| \(([\d.]+)\))?$")
MODEL, BASELINE, CEILING = "model", "baseline", "ceiling"
LOOK = {
    MODEL: {"color": BLUE, "marker": "o", "label": "model of this package"},
    BASELINE: {"color": DARK, "marker": "D", "label": "for comparison"},
    CEILING: {"color": RED, "marker": "|", "label": "ceiling: what the noise allows"},
    "trap": {"color": PINK, "marker": "X", "label": "a cheat, for comparison"},
}


def read(name: str) -> pd.DataFrame:
    """A table of the user guide as text, its first column as the index."""
    return pd.read_csv(TABLES / f"{name}.csv", dtype=str, keep_default_na=False, index_col=0)


def number(entry: str) -> tuple[float, float, float]:
    """Value, lower and upper end: those of the interval in brackets, or a standard deviation to either side."""
    if not (match := VALUE.match(entry.strip())):
        raise ValueError(f"{entry!r} is neither a number nor one with an interval or a standard deviation.")
    value, low, high, sd = (None if part is None else float(part) for part in match.groups())
    if sd is not None:
        return value, value - sd, value + sd
    return value, value if low is None else low, value if high is None else high


def entries(table: pd.DataFrame, column: str, kinds: Mapping[str, str]) -> list[tuple[str, str, float, float, float]]:
    """Rows with a value: name, kind, value and both ends."""
    return [(name, kinds[name], *number(entry)) for name, entry in table[column].items() if entry]


def dots(
    panels: Mapping[str, list[tuple[str, str, float, float, float]]],
    source: str,
    spread: str,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """A panel below another, a row for each method: its value and spread, the number at the right."""
    order = list(LOOK)
    panels = {title: sorted(rows, key=lambda row: order.index(row[1])) for title, rows in panels.items()}
    names = {title: [textwrap.fill(row[0], 27) for row in rows] for title, rows in panels.items()}
    # the place of every row, in inches: a name of several lines takes more
    places = {title: np.cumsum([0.16 + 0.15 * (name.count("\n") + 1) for name in names[title]]) for title in panels}
    heights = [places[title][-1] for title in panels]
    kinds = [kind for kind in LOOK if any(row[1] == kind for rows in panels.values() for row in rows)]
    looks = {LOOK[kind]["label"]: (LOOK[kind]["color"], LOOK[kind]["marker"]) for kind in kinds}
    figure, axes, below = frame(heights, 0.44, 0.85, looks, spread, 0.55)
    for ax, (title, rows) in zip(axes, panels.items(), strict=True):
        ys = places[title] - np.diff(places[title], prepend=0) / 2
        for y, (_, kind, value, low, high) in zip(ys, rows, strict=True):
            color, marker, is_line = LOOK[kind]["color"], LOOK[kind]["marker"], kind == CEILING
            if is_line:
                ax.axvline(value, color=RED, linewidth=1, linestyle=":", zorder=0)
            ax.plot((low, high), (y, y), color=color, linewidth=1.8, solid_capstyle="butt")
            ax.plot(
                value, y, marker, color=color, markersize=11 if is_line else 6, markeredgewidth=2 if is_line else 0.5
            )
            weight = "bold" if kind == MODEL else "normal"
            digits = f"{value:.3f}".replace("-", "\N{MINUS SIGN}")
            ax.text(1.03, y, digits, transform=ax.get_yaxis_transform(), va="center", fontsize=9.5, fontweight=weight)
        ax.set_yticks(ys, names[title], fontsize=9.5)
        for tick, (_, kind, *_) in zip(ax.get_yticklabels(), rows, strict=True):
            tick.set_color(LOOK[kind]["color"])
            tick.set_fontweight("bold" if kind == MODEL else "normal")
        ax.set_ylim(places[title][-1] + 0.03, -0.03)
        if limits is not None:
            ax.set_xlim(*limits)
        ax.xaxis.set_major_locator(MaxNLocator(4))
        if ax.get_xlim()[0] < 0 < ax.get_xlim()[1]:
            ax.axvline(0, color=GREY, linewidth=0.8, zorder=0)
        ax.tick_params(axis="y", length=0)
        ax.tick_params(axis="x", labelsize=9.5)
        ax.spines["left"].set_visible(False)
        heading(ax, title)
    legend(below, looks, spread, source)
    return figure


def frame(
    heights: list[float],
    left: float,
    right: float,
    looks: Mapping[str, tuple[str, str]],
    spread: str,
    gap: float,
) -> tuple[Figure, list[Axes], Axes]:
    """Axes one below another, of heights in inches, with the same sides, and one for the legend below them."""
    foot = 0.2 * (len(looks) + len(wrap_spread(spread)) + 1) + 0.1
    total = sum(heights) + gap * (len(heights) + 0.25) + foot
    figure = Figure(figsize=(WIDTH, total))
    axes, top = [], total
    for height in heights:
        top -= gap * 0.6
        axes.append(figure.add_axes((left, (top - height) / total, right - left, height / total)))
        axes[-1].grid(color=LIGHT, linewidth=0.7, axis="x" if gap < 0.8 else "both")
        axes[-1].set_axisbelow(True)
        top -= height + gap * 0.4
    return figure, axes, figure.add_axes((0, 0, 1, foot / total))


def heading(ax: Axes, title: str) -> None:
    """A title that starts at the left of the figure."""
    box = ax.get_position()
    height = ax.figure.get_figheight()
    ax.figure.text(0.015, box.y1 + 0.13 / height, title, fontsize=11, fontweight="bold", va="center")


def wrap_spread(spread: str) -> list[str]:
    return textwrap.wrap(f"Lines: {spread}.", 66)


def legend(ax: Axes, looks: Mapping[str, tuple[str, str]], spread: str, source: str) -> None:
    """What the marks mean, what the lines are, and which script made the numbers."""
    rows = wrap_spread(spread)
    ax.axis("off")
    ax.set(xlim=(0, 1), ylim=(len(looks) + len(rows) + 1.2, -0.3))
    for y, (label, (color, marker)) in enumerate(looks.items()):
        ax.plot(0.03, y + 0.3, marker, color=color, markersize=9 if marker == "|" else 6, markeredgewidth=1.5)
        ax.text(0.055, y + 0.3, label, color=color, va="center", fontsize=9.5)
    for y, row in enumerate(rows):
        ax.text(0.015, len(looks) + y + 0.3, row, va="center", fontsize=9.5)
    ax.text(
        0.015, len(looks) + len(rows) + 0.3, source, va="center", fontsize=9, color="#555555", family="DejaVu Sans Mono"
    )


INTERVAL = "95 % intervals over conditions"
SEEDS = "standard deviation over seeds"


def of_kind(table: pd.DataFrame) -> dict[str, str]:
    return table["kind"].to_dict()


def model_if(table: pd.DataFrame, start: str, **others: str) -> dict[str, str]:
    """Rows whose name starts so are of this package, the others are not."""
    return {name: others.get(name, MODEL if name.startswith(start) else BASELINE) for name in table.index}


def responses(task: str, drop: tuple[str, ...] = ()) -> Figure:
    table = read(f"xtransfercdr/{task}").drop(index=list(drop))
    kinds = of_kind(table)
    columns = ("Pearson of change", "R2 of change")
    panels = {f"{column.replace('R2', 'R²')}": entries(table, column, kinds) for column in columns}
    return dots(panels, f"benchmarks/xtransfercdr.py --only {task}", INTERVAL)


def glioma() -> Figure:
    table = read("xtransfercdr/glioma")
    kinds = of_kind(table)
    rows = entries(table, "Pearson of change", kinds)
    trap = read("baselines/glioma").query("kind == 'trap'")
    rows += [("mean perturbation, controls shared", "trap", *number(trap["Pearson of change"].iloc[0]))]
    return dots({"Pearson of change": rows}, "benchmarks/xtransfercdr.py, baselines.py --only glioma", INTERVAL)


def species_labels() -> Figure:
    table = read("scspecies/labels")
    own = read("baselines/labels")
    kinds = model_if(table, "scSpecies")
    panels = {}
    for title, column in (("balanced accuracy", "balanced accuracy"), ("adjusted Rand index", "ARI")):
        ceiling = ("classifier trained on the target's own labels", CEILING, *number(own.loc["own labels", column]))
        panels[title] = [*entries(table, column, kinds), ceiling]
    return dots(panels, "benchmarks/scspecies_labels.py, baselines.py", f"{SEEDS}; of the ceiling, a 95 % interval")


def simulated_species() -> Figure:
    table = read("scspecies/simulated")
    panels = {"balanced accuracy": entries(table, "balanced accuracy", model_if(table, "scSpecies"))}
    return dots(panels, "benchmarks/scspecies_labels.py --simulated medium", SEEDS, (0.35, 1.05))


def unknown_cells() -> Figure:
    table = read("scspecies/unknown")
    kinds = {name: MODEL if name.startswith(("scSpecies", "its")) else BASELINE for name in table.index}
    panels = {
        "human blood, 38 of 1,200 cells": entries(table, "real", kinds),
        "simulated species": entries(table, "simulated", kinds),
    }
    return dots(panels, "benchmarks/scspecies_novelty.py", SEEDS, (0.4, 1.05))


def lines(
    series: Mapping[str, tuple[list[float], list[tuple[float, float, float]], str, str]],
    source: str,
    spread: str,
    xlabel: str,
    ylabel: str,
    decorate: Callable[[Axes], None] = lambda ax: None,
    height: float = 2.8,
) -> Figure:
    """Curves with their spread."""
    looks = {name: (color, marker) for name, (_, _, color, marker) in series.items()}
    figure, (ax,), below = frame([height], 0.14, 0.96, looks, spread, 0.9)
    for x, values, color, marker in series.values():
        y, low, high = np.array(values).T
        ax.errorbar(x, y, (y - low, high - y), color=color, marker=marker, linewidth=1.8, markersize=6, capsize=3)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    decorate(ax)
    legend(below, looks, spread, source)
    return figure


def few_orthologues() -> Figure:
    table = read("scspecies/few_orthologues")
    n = [int(column.split()[0]) for column in table]
    looks = zip((DARK, ORANGE, GREEN, BLUE), "Dsv^", strict=True)
    looks = dict(zip(table.index, looks, strict=True)) | {"scSpecies": (BLUE, "o")}
    series = {name: (n, [number(entry) for entry in row], *looks[name]) for name, row in table.iterrows()}

    def decorate(ax: Axes) -> None:
        ax.set_xscale("log")
        ax.set_xticks(n, [f"{value}" for value in n])
        ax.minorticks_off()

    source = "benchmarks/scspecies_labels.py --shared-genes"
    return lines(series, source, SEEDS, "orthologues that are known", "balanced accuracy", decorate)


def signatures() -> Figure:
    table = read("deepcellstate/simulated")
    panels = {}
    rows = {"nonlinear": "nonlinear, three cell types, one source", "linear": "linear, three cell types, one source"}
    for title, row in rows.items():
        values = table.loc[row].drop("fold over the copy")
        kinds = {"DeepCellState": MODEL, "noise-free signatures": CEILING}
        panels[f"{title} responses: Pearson correlation"] = [
            (name, kinds.get(name, BASELINE), *number(entry)) for name, entry in values.items()
        ]
    return dots(panels, "benchmarks/deepcellstate.py", "standard deviation over folds", (-0.05, 1))


def l1000() -> Figure:
    table = read("deepcellstate/l1000")
    panels = {"Pearson correlation": entries(table, "Pearson", of_kind(table))}
    return dots(panels, "benchmarks/deepcellstate.py --only l1000", "95 % intervals over signatures")


def gene_maps() -> Figure:
    table = read("uge/maps")
    kinds = model_if(table, "UGE")
    panels = {
        "right at first place, all genes": entries(table, "recall@1, all", kinds),
        "right at first place, genes whose namesake has diverged": entries(table, "recall@1, diverged", kinds),
    }
    return dots(panels, "benchmarks/uge.py --only simulated", SEEDS, (-0.03, 0.8))


def rat_labels() -> Figure:
    table = read("uge/labels")
    kinds = model_if(table, "UGE")
    panels = {
        "organ, accuracy": entries(table, "organ, accuracy", kinds),
        "drug, accuracy": entries(table, "drug, accuracy", kinds),
    }
    return dots(panels, "benchmarks/uge.py --only simulated", SEEDS, (0, 1.05))


def untried_drugs() -> Figure:
    table = read("uge/changes")
    kinds = model_if(table, "UGE")
    panels = {
        "Pearson of change": entries(table, "change, Pearson", kinds),
        "R² of change": entries(table, "change, R2", kinds),
    }
    return dots(panels, "benchmarks/uge.py --only simulated", SEEDS)


def experiments() -> Figure:
    table = read("uge/experiments")
    looks = {"random": (DARK, "D"), "suggested": (BLUE, "o")}
    added = [float(value) for value in table.index]
    series = {name: (added, [number(entry) for entry in table[name]], *look) for name, look in looks.items()}
    source = "benchmarks/uge.py --only experiments"
    return lines(series, source, SEEDS, "conditions added", "error, relative")


def real_organs() -> Figure:
    table = read("uge/organ_labels")
    panels = {}
    for direction in ("mouse to human", "human to mouse"):
        part = table.loc[direction].set_index("method")
        panels[f"organ, accuracy: {direction}"] = entries(part, "accuracy", model_if(part, "UGE"))
    return dots(panels, "benchmarks/uge.py --only organs", SEEDS, (0, 1.05))


def time() -> Figure:
    ours, peer, gpu = read("scale/scspecies"), read("scale/peer"), read("scale/gpu")
    looks = {
        "transverse, a CPU thread": (BLUE, "o"),
        "transverse, an H100": (GREEN, "s"),
        "scspecies 0.1.4, a CPU thread": (DARK, "D"),
    }
    spread = "a single run of each"
    figure, axes, below = frame([2.3, 2.3], 0.16, 0.96, looks, spread, 0.9)
    for ax, step in zip(axes, ("alignment epoch", "label transfer"), strict=True):
        for (color, marker), table in zip(looks.values(), (ours, gpu, peer), strict=True):
            steps = table["step"] if "step" in table else table.index.to_series()
            part = table[(steps == step).to_numpy()]
            ax.plot(
                part["cells"].astype(int),
                part["seconds"].astype(float),
                marker,
                color=color,
                linestyle="-",
                markersize=6,
            )
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xticks([5_000, 20_000, 100_000], ["5,000", "20,000", "100,000"])
        ax.minorticks_off()
        ax.yaxis.set_major_formatter("{x:g}")
        ax.set_ylabel("seconds")
        heading(ax, step)
    axes[1].set_xlabel("cells of either species, 4,000 genes")
    legend(below, looks, spread, "benchmarks/scale.py --only scspecies, peer")
    return figure


BENCHMARKS = {
    "labels": species_labels,
    "few_orthologues": few_orthologues,
    "simulated_species": simulated_species,
    "unknown_cells": unknown_cells,
    "ifnb": lambda: responses("ifnb"),
    "doubles": lambda: responses("doubles"),
    "saturated": lambda: responses("saturated"),
    "glioma": glioma,
    "signatures": signatures,
    "l1000": l1000,
    "gene_maps": gene_maps,
    "rat_labels": rat_labels,
    "untried_drugs": untried_drugs,
    "experiments": experiments,
    "real_organs": real_organs,
    "time": time,
}


def draw_benchmarks(folder: Path = HERE / "_generated") -> None:
    """Draw every figure of the benchmark page from the tables of the user guide."""
    with mpl.rc_context(STYLE):
        for name, draw in BENCHMARKS.items():
            save(draw(), folder / f"{name}.svg")


if __name__ == "__main__":
    draw_schemes()
    draw_benchmarks()
