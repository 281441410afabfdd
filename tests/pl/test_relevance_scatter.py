"""Relevance of orthologues in two species: which genes are paired, coloured and named."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

import transverse as tv

N, N_SHARED = 60, 40


@pytest.fixture
def table():
    """The first 40 genes are orthologues; the species list theirs in different orders."""
    rng = np.random.default_rng(0)
    tables = []
    for group in ("B cell", "T cell"):
        base = rng.normal(size=N)
        for species, own, other in (("context", "gene", "GENE"), ("target", "GENE", "gene")):
            number = rng.permutation(N)
            relevance = base[number] + rng.normal(0, 0.5, N)
            tables.append(
                pd.DataFrame(
                    {
                        "species": species,
                        "group": group,
                        "gene": [f"{own}{i}" for i in number],
                        "ortholog": [f"{other}{i}" if i < N_SHARED else "" for i in number],
                        "relevance": relevance,
                        "absolute_relevance": np.abs(relevance) + rng.uniform(0, 0.2, N),
                        "expression": rng.gamma(1, 2, N),
                    }
                )
            )
    return pd.concat(tables, ignore_index=True)


def draw(table, *args, **kwargs):
    return tv.pl.relevance_scatter(table, *args, show=False, **kwargs)


def pairs(table, group, column):
    """Values in the context and in the target, by number of the gene."""
    values = []
    for species in ("context", "target"):
        rows = table[(table["species"] == species) & (table["group"] == group)]
        lookup = dict(zip(rows["gene"].str[4:].astype(int), rows[column], strict=True))
        values.append([lookup[i] for i in range(N_SHARED)])
    return np.array(values)


@pytest.mark.parametrize("value", ["relevance", "absolute_relevance"])
def test_points_colors_and_titles(table, value):
    for panel, group in zip(draw(table, value=value), ["B cell", "T cell"], strict=True):
        x, y = pairs(table, group, value)
        color = np.log1p(pairs(table, group, "expression").prod(axis=0))
        order = np.argsort(color)  # the highly expressed are drawn last
        np.testing.assert_allclose(panel.collections[0].get_offsets(), np.column_stack([x, y])[order])
        np.testing.assert_allclose(panel.collections[0].get_array(), color[order])
        ranks = [np.argsort(np.argsort(v)) for v in (x, y)]
        spearman, pearson = np.corrcoef(*ranks)[0, 1], np.corrcoef(x, y)[0, 1]
        assert panel.get_title() == f"{group}\nSpearman {spearman:.2f}, Pearson {pearson:.2f}"
        assert panel.get_xlabel() == f"{value.replace('_', ' ')}\nin the context"
        assert panel.get_ylabel() == f"{value.replace('_', ' ')}\nin the target"


def test_one_colour_scale(table):
    axes = draw(table)
    highest = max(np.log1p(pairs(table, group, "expression").prod(axis=0)).max() for group in ("B cell", "T cell"))
    assert [panel.collections[0].get_clim() for panel in axes] == [(0, pytest.approx(highest))] * 2
    assert len(axes[0].figure.axes) == 3  # one colour bar


@pytest.mark.parametrize("n_top", [0, 5, 100])
def test_names(table, n_top):
    for panel, group in zip(draw(table, n_top=n_top), ["B cell", "T cell"], strict=True):
        ranks = [np.argsort(np.argsort(-v)) for v in pairs(table, group, "absolute_relevance")]
        rank = np.sort(ranks[0] + ranks[1])[: min(n_top, N_SHARED)]
        named = [int(text.get_text().removeprefix("GENE")) for text in panel.texts]
        np.testing.assert_array_equal([ranks[0][i] + ranks[1][i] for i in named], rank)
        x, y = pairs(table, group, "relevance")
        for text, i in zip(panel.texts, named, strict=True):
            assert text.xy == pytest.approx((x[i], y[i]))


def test_names_do_not_overlap(table):
    for panel in draw(table, n_top=10):
        panel.figure.canvas.draw()
        boxes = [Text.get_window_extent(text) for text in panel.texts]
        frame = panel.get_window_extent()
        for i, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[:i])
            assert frame.x0 <= box.x0
            assert box.x1 <= frame.x1


def test_groups_of_one_species_are_left_out(table):
    only_target = table[table["species"] == "target"].assign(group="NK cell")
    both = pd.concat([only_target, table])
    assert [panel.get_title().split("\n")[0] for panel in draw(both)] == ["B cell", "T cell"]
    with pytest.raises(KeyError, match="'NK cell'. Known: 'B cell', 'T cell'"):
        draw(both, "NK cell")


def test_several_genes_may_share_an_orthologue(table):
    target = table["species"].eq("target") & table["gene"].eq("GENE50")
    table.loc[target, "ortholog"] = "gene0"
    assert len(draw(table)[0].collections[0].get_offsets()) == N_SHARED + 1


def test_a_gene_may_have_several_orthologues(table):
    target = table["species"].eq("target") & table["gene"].eq("GENE50")
    table.loc[target, "ortholog"] = "gene50;gene51"
    points = draw(table, "B cell")[0].collections[0].get_offsets()
    assert len(points) == N_SHARED + 2
    rows = table[table["group"] == "B cell"].set_index("gene")["relevance"]
    for gene in ("gene50", "gene51"):
        assert (rows[gene], rows["GENE50"]) in set(map(tuple, np.asarray(points)))


def test_errors(table):
    with pytest.raises(ValueError, match=r"no context rows: pass context_adata= to get_gene_relevance"):
        draw(table[table["species"] == "target"])
    with pytest.raises(ValueError, match="no target rows"):
        draw(table[table["species"] == "context"])
    apart = table.assign(group=table["group"] + " of " + table["species"])
    with pytest.raises(ValueError, match="no group that both species have"):
        draw(apart)
    with pytest.raises(KeyError, match=r"lacks the columns \['ortholog', 'expression'\]"):
        draw(table.drop(columns=["ortholog", "expression"]))
    with pytest.raises(KeyError, match=r"lacks the columns \['z_score'\]"):
        draw(table, value="z_score")
    with pytest.raises(ValueError, match="Group 'B cell' has 0 genes with an orthologue"):
        draw(table.assign(ortholog=""))
    with pytest.raises(ValueError, match="not unique in right"):
        draw(pd.concat([table, table]))
    with pytest.raises(ValueError, match="n_top=-1"):
        draw(table, n_top=-1)
    assert not plt.get_fignums()
