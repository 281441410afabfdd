from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from scipy.stats import pearsonr, spearmanr

from ._figure import finish, panels
from ._labels import label_beside
from ._tables import check_table, choose, in_order


def relevance_scatter(
    table: pd.DataFrame,
    groups: str | Sequence[str] | None = None,
    *,
    value: str = "relevance",
    ncols: int = 4,
    n_top: int = 5,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    save: str | PathLike | None = None,
) -> list[Axes]:
    """Relevance of orthologous genes in the context against that in the target, a panel for each group of cells.

    The scales of the species differ, and only ranks should be compared between them. Titles give the correlations of
    Spearman and Pearson over the orthologues; colour is the logarithm of one plus the product of both expressions.

    Parameters
    ----------
    table
        What ``ScSpecies.get_gene_relevance`` returns when it is given the context: columns ``"species"`` (``"context"``
        or ``"target"``), ``"group"``, ``"gene"``, ``"ortholog"`` (the gene's partner in the other species, ``""`` if it
        has none; of several, joined by ``;``, each makes a point), ``"relevance"``, ``"absolute_relevance"`` and
        ``"expression"``.
    groups
        Groups to draw, by default all that both species have.
    value
        Column to draw.
    ncols
        Panels in a row.
    n_top
        Genes to name, by their name in the target: those with the highest ranks of ``"absolute_relevance"``, summed
        over the two species.
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
        If a column is missing, or one of the species lacks a group.
    ValueError
        If the table is empty, has no rows of one species, no group of both or fewer than two orthologues in a group, if
        a gene of the context repeats, or if there are not as many axes as groups.

    Examples
    --------
    With ``model`` and ``mouse`` of the example of :class:`~transverse.ScSpecies`:

    >>> relevance = model.get_gene_relevance(groupby="cell_type", context_adata=mouse)
    >>> axes = tv.pl.relevance_scatter(relevance)
    >>> len(axes)
    4
    """
    check_table(table, ["species", "group", "gene", "ortholog", value, "absolute_relevance", "expression"])
    species = {name: table[table["species"] == name] for name in ("context", "target")}
    if species["context"].empty:
        raise ValueError("table has no context rows: pass context_adata= to get_gene_relevance.")
    if species["target"].empty:
        raise ValueError("table has no target rows.")
    in_context = set(species["context"]["group"])
    shared = [group for group in in_order(species["target"]["group"]) if group in in_context]
    if not shared:
        raise ValueError("table has no group that both species have.")
    groups = choose(groups, shared, "groups")
    if n_top < 0:
        raise ValueError(f"n_top={n_top} must not be negative.")
    pairs = {group: _pairs(species, group, value) for group in groups}

    axes = panels(ax, len(groups), "groups", ncols=ncols, size=(3.7, 3.6))
    vmax = max(frame["color"].max() for frame in pairs.values())
    for panel, (group, frame) in zip(axes, pairs.items(), strict=True):
        frame = frame.sort_values("color", kind="stable")  # the highly expressed on top
        for line in (panel.axhline, panel.axvline):
            line(0, color="#bdbdbd", linewidth=0.7, zorder=0)
        points = panel.scatter(
            frame["x"], frame["y"], c=frame["color"], vmin=0, vmax=vmax, s=14, cmap="viridis_r", linewidths=0
        )
        panel.margins(0.12)
        name = value.replace("_", " ")
        panel.set(xlabel=f"{name}\nin the context", ylabel=f"{name}\nin the target")
        spearman, pearson = spearmanr(frame["x"], frame["y"])[0], pearsonr(frame["x"], frame["y"])[0]
        panel.set_title(f"{group}\nSpearman {spearman:.2f}, Pearson {pearson:.2f}", fontsize="medium")
        panel.spines[["top", "right"]].set_visible(False)
    axes[0].figure.colorbar(points, ax=axes, label="log(1 + product of the expressions)", shrink=0.8)
    top = [frame.nlargest(n_top, "top") for frame in pairs.values()]
    label_beside(
        axes,
        [frame[["x", "y"]].to_numpy() for frame in top],
        [frame["gene"].tolist() for frame in top],
        obstacles=[frame[["x", "y"]].to_numpy() for frame in pairs.values()],
    )
    finish(axes, ax, show, save)
    return axes


def _pairs(species: dict[str, pd.DataFrame], group: str, value: str) -> pd.DataFrame:
    """The orthologues of a group: value in the context (x) and the target (y), colour, and what makes a top gene."""
    context, target = (species[name][species[name]["group"] == group] for name in ("context", "target"))
    target = target.assign(ortholog=target["ortholog"].str.split(";")).explode("ortholog")
    # one context row a gene, or the pairs would multiply
    pairs = target.merge(
        context, left_on="ortholog", right_on="gene", suffixes=("_target", "_context"), validate="many_to_one"
    )
    if len(pairs) < 2:
        raise ValueError(f"Group {group!r} has {len(pairs)} genes with an orthologue in both species; it needs two.")
    product = pairs["expression_context"] * pairs["expression_target"]
    ranks = pairs["absolute_relevance_context"].rank() + pairs["absolute_relevance_target"].rank()
    return pd.DataFrame(
        {
            "gene": pairs["gene_target"].astype(str),
            "x": pairs[f"{value}_context"].astype(float),
            "y": pairs[f"{value}_target"].astype(float),
            "color": np.log1p(product),
            "top": ranks,
        }
    )
