from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ._figure import COLORS, finish, panels
from ._labels import label_above
from ._tables import check_table, choose, in_order

_UP, _DOWN, _NOT_CALLED = COLORS[3], COLORS[0], "#bdbdbd"


def lfc_volcano(
    table: pd.DataFrame,
    groups: str | Sequence[str] | None = None,
    *,
    delta: float | None = None,
    probability: float = 0.9,
    n_top: int = 7,
    ncols: int = 4,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    save: str | PathLike | None = None,
) -> list[Axes]:
    r"""Fold changes between species against their probability, a panel for each group of cells.

    Genes with :math:`|LFC| > \delta` at a probability above the threshold are in colour: red-like if higher in the
    target species (up), blue-like if lower (down).

    Parameters
    ----------
    table
        What ``ScSpecies.get_cross_species_lfc`` returns. Of its columns ``"group"``, ``"target_gene"``, ``"lfc"``
        (median log2 fold change, positive if higher in the target) and ``"probability"`` (of :math:`|LFC| > \delta`)
        are used.
    groups
        Groups to draw, by default all.
    delta
        Smallest fold change that counts (log2); by default the one of the table, ``table.attrs["delta"]``, else 1. The
        table's probabilities were computed with its own.
    probability
        Smallest probability that counts.
    n_top
        Genes to name in each direction: those called with the largest fold changes.
    ncols
        Panels in a row.
    ax
        Axes to draw on, one for each group.
    show
        Show the figure; by default only where scanpy would (``sc.settings.autoshow``) and no axes are given.
    save
        File to write the figure to.

    Returns
    -------
    The axes, one for each group. The table is not changed.

    Raises
    ------
    KeyError
        If a column or a group is missing.
    ValueError
        If the table is empty, a threshold is out of range, or there are not as many axes as groups.

    Examples
    --------
    With ``model`` of the example of :class:`~transverse.ScSpecies`:

    >>> lfc = model.get_cross_species_lfc()
    >>> axes = tv.pl.lfc_volcano(lfc, ["T1a", "T2a"])
    >>> len(axes)
    2
    """
    check_table(table, ["group", "target_gene", "lfc", "probability"])
    groups = choose(groups, in_order(table["group"]), "groups")
    delta = float(table.attrs.get("delta", 1.0) if delta is None else delta)
    if not delta >= 0:
        raise ValueError(f"delta={delta:g} must not be negative.")
    if not 0 <= probability <= 1:
        raise ValueError(f"probability={probability} must be between 0 and 1.")
    if n_top < 0:
        raise ValueError(f"n_top={n_top} must not be negative.")

    axes = panels(ax, len(groups), "groups", ncols=ncols, size=(3.8, 3.8))
    # one scale, so that panels can be compared
    limit = 1.05 * max(0.1, 1.5 * delta, table.loc[table["group"].isin(groups), "lfc"].abs().max())
    named = []
    for panel, group in zip(axes, groups, strict=True):
        rows = table[table["group"] == group]
        called = (rows["lfc"].abs() > delta) & (rows["probability"] > probability)
        up, down = (rows[called & (rows["lfc"] > 0)], rows[called & (rows["lfc"] < 0)])
        for points, color, size in ((rows[~called], _NOT_CALLED, 6), (down, _DOWN, 12), (up, _UP, 12)):
            panel.scatter(points["lfc"], points["probability"], s=size, c=color, linewidths=0)
        panel.vlines([-delta, delta], -0.03, 1.03, color="black", linestyle="--", linewidth=0.7, zorder=0)
        panel.hlines(probability, -limit, limit, color="black", linestyle="--", linewidth=0.7, zorder=0)
        panel.set(xlim=(-limit, limit), ylim=(-0.03, 1.05), yticks=np.linspace(0, 1, 6))
        panel.set(xlabel="log2 fold change\n(right: higher in target)", ylabel=f"P(|LFC| > {delta:g})")
        panel.set_title(f"{group}\n{len(up)} up, {len(down)} down", fontsize="medium")
        panel.spines[["top", "right"]].set_visible(False)
        panel.spines.left.set_bounds(-0.03, 1.0)  # the names stand above
        named.append(pd.concat([up.nlargest(n_top, "lfc"), down.nsmallest(n_top, "lfc")]))
    label_above(
        axes,
        [top[["lfc", "probability"]].to_numpy(dtype=float) for top in named],
        [top["target_gene"].astype(str).tolist() for top in named],
        base=1.07,
    )
    finish(axes, ax, show, save)
    return axes
