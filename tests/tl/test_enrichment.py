"""Enrichment for gene sets, against counting and other tests of scipy."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from scipy.special import comb
from scipy.stats import false_discovery_control, fisher_exact

import transverse as tv

BACKGROUND = [f"G{i:03}" for i in range(978)]
COLUMNS = ["n_genes", "n_set", "overlap", "expected", "fold_enrichment", "p_value", "p_adjusted", "genes"]


def test_by_counting():
    background, genes, members = list("abcdef"), ["a", "b", "c"], {"a", "b", "f"}
    row = tv.tl.enrichment(genes, members, background).loc["gene_set"]
    draws = [len(members.intersection(draw)) for draw in combinations(background, 3)]
    assert row["p_value"] == pytest.approx(np.mean(np.array(draws) >= 2))
    assert row["expected"] == pytest.approx(np.mean(draws))
    assert row["genes"] == ["a", "b"]


def test_a_case_of_fifty_targets_among_the_landmark_genes():
    """DeepCellState's figure script leaves out the binomial coefficient and comes to 1.9e-9."""
    table = tv.tl.enrichment(BACKGROUND[:50], [*BACKGROUND[44:94], "elsewhere"], BACKGROUND)
    row = table.loc["gene_set"]
    assert (row["n_genes"], row["n_set"], row["overlap"]) == (50, 50, 6)
    k = np.arange(6, 51)
    assert row["p_value"] == pytest.approx((comb(50, k) * comb(928, 50 - k)).sum() / comb(978, 50))
    assert row["p_value"] == pytest.approx(0.037, abs=5e-4)
    share = 50 / 978
    assert (share**k * (1 - share) ** (50 - k)).sum() == pytest.approx(1.9e-9, rel=0.02)
    assert row["fold_enrichment"] == pytest.approx(6 / (50 / 978 * 50))


def test_several_sets():
    rng = np.random.default_rng(0)
    genes = list(rng.permutation(BACKGROUND)[:40])
    sets = {f"set {i}": rng.permutation(BACKGROUND)[: 20 + 30 * i] for i in range(5)}
    sets["enriched"] = set(genes[:10]) | set(BACKGROUND[:20])
    sets["all"] = BACKGROUND
    table = tv.tl.enrichment(genes, sets, pd.Index(BACKGROUND))
    assert table.columns.tolist() == COLUMNS
    assert table.index.tolist() == list(sets)
    for name, row in table.iterrows():
        members = set(sets[name])
        a = len(members.intersection(genes))
        others = len(members) - a
        exact = fisher_exact([[a, 40 - a], [others, 978 - 40 - others]], alternative="greater").pvalue
        assert row["p_value"] == pytest.approx(exact)
        assert row["genes"] == [gene for gene in genes if gene in members]
        assert row["overlap"] == len(row["genes"]) == pytest.approx(row["fold_enrichment"] * row["expected"])
    np.testing.assert_allclose(table["p_adjusted"], false_discovery_control(table["p_value"]))
    assert table["p_adjusted"].idxmin() == "enriched"
    assert table.loc["all", "p_value"] == 1


def test_no_overlap_and_repeated_genes():
    row = tv.tl.enrichment(["a", "b", "a"], ["c", "c"], ["a", "b", "c", "c", "d"]).iloc[0]
    assert (row["n_genes"], row["n_set"], row["overlap"], row["p_value"], row["genes"]) == (2, 1, 0, 1.0, [])
    assert row["fold_enrichment"] == 0 and row["expected"] == 0.5


def test_a_set_outside_the_background_is_not_tested():
    sets = {"in": BACKGROUND[:20], "out": ["X"], "empty": [], "other": BACKGROUND[5:40]}
    table = tv.tl.enrichment(BACKGROUND[:10], sets, BACKGROUND)
    untested = table.loc[["out", "empty"]]
    assert untested[["fold_enrichment", "p_value", "p_adjusted"]].isna().all(axis=None)
    assert (untested[["n_set", "overlap", "expected"]] == 0).all(axis=None)
    alone = tv.tl.enrichment(BACKGROUND[:10], {key: sets[key] for key in ("in", "other")}, BACKGROUND)
    pd.testing.assert_frame_equal(table.loc[["in", "other"]], alone)


def test_iterators_are_read_once():
    table = tv.tl.enrichment(iter("ab"), iter("bc"), iter("abcd"))
    assert table["overlap"].tolist() == [1]


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        (("TP53", ["a"], ["a"]), TypeError, "genes must be a list of genes, but got the string 'TP53'"),
        ((["a"], "a", ["a"]), TypeError, "gene_sets must be a list of genes"),
        (
            (["a"], {"s": "abc"}, ["a"]),
            TypeError,
            r"gene_sets\['s'\] must be a list of genes, but got the string 'abc'",
        ),
        ((["a"], ["a"], "abc"), TypeError, "background must be a list"),
        (([], ["a"], ["a"]), ValueError, "genes is empty"),
        ((["a"], {}, ["a"]), ValueError, "gene_sets is empty"),
        ((["a", "x", "y"], ["a"], ["a", "b"]), ValueError, "2 of the 3 genes are not in the background: 'x', 'y'. The"),
        ((["a"], ["a"], []), ValueError, "1 of the 1 genes are not in the background: 'a'"),
        (
            (["a"], ["ENSG1"], ["a"]),
            ValueError,
            "No gene set has a gene in the background. .*'ENSG1'; the background: 'a'",
        ),
        ((["a"], [], ["a"]), ValueError, "No gene set has a gene in the background"),
    ],
)
def test_refusals(arguments, error, match):
    with pytest.raises(error, match=match):
        tv.tl.enrichment(*arguments)
