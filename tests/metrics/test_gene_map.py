"""Scores of gene maps, against enumeration of all orders of tied candidates."""

import itertools

import numpy as np
import pandas as pd
import pytest

import transverse as tv

gene_map_scores = tv.metrics.gene_map_scores


def lookup(scores, column="value", genes="all"):
    return scores[scores["genes"] == genes].set_index("metric")[column].to_dict()


def enumerate_orders(row, is_true, lengths):
    """Mean hits and reciprocal rank of the first true candidate, over all ways of breaking ties."""
    listed = np.flatnonzero(~np.isnan(row))
    groups = [[i for i in listed if row[i] == v] for v in sorted(set(row[listed]), reverse=True)]
    hits, reciprocal, n = np.zeros(len(lengths)), 0.0, 0
    for orders in itertools.product(*(list(itertools.permutations(g)) for g in groups)):
        order = [i for group in orders for i in group]
        place = next((p for p, i in enumerate(order, 1) if is_true[i]), np.inf)
        hits += [place <= k for k in lengths]
        reciprocal += 1 / place
        n += 1
    return hits / n, reciprocal / n


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["wide", "array", "score", "rank"])
def test_expected_scores_over_all_orders(seed, kind):
    rng = np.random.default_rng(seed)
    lengths = (1, 2, 3, 6)
    values = rng.integers(0, 3, size=(12, 6)).astype(float)
    values[rng.uniform(size=values.shape) < 0.15] = np.nan
    is_true = rng.uniform(size=values.shape) < 0.35
    is_true[np.flatnonzero(~is_true.any(axis=1)), 0] = True
    s, t = np.nonzero(is_true)
    expected = [enumerate_orders(row, true, lengths) for row, true in zip(values, is_true, strict=True)]
    truth = pd.DataFrame({"source": s, "target": t})
    if kind == "array":
        gene_map = values
    else:
        wide = pd.DataFrame(values, index=[f"s{i}" for i in range(12)], columns=[f"t{i}" for i in range(6)])
        truth = pd.DataFrame({"source": [f"s{i}" for i in s], "target": [f"t{i}" for i in t]})
        gene_map = wide
        if kind != "wide":
            gene_map = wide.rename_axis("source").reset_index().melt("source", var_name="target", value_name="score")
            gene_map = gene_map.sample(frac=1, random_state=seed, ignore_index=True)
            if kind == "rank":
                gene_map["rank"] = gene_map.pop("score").rsub(3)
    before = gene_map.copy()
    scores = gene_map_scores(gene_map, truth, k=lengths)
    np.testing.assert_array_equal(np.asarray(gene_map).astype(str), np.asarray(before).astype(str))
    found = lookup(scores)
    for i, k in enumerate(lengths):
        assert found[f"recall@{k}"] == pytest.approx(np.mean([hit[i] for hit, _ in expected]))
    assert found["mrr"] == pytest.approx(np.mean([reciprocal for _, reciprocal in expected]))
    assert found["n_genes"] == 12

    # chance: all six candidates in any order
    chance = lookup(scores, "chance")
    orders = [enumerate_orders(np.zeros(6), true, lengths) for true in is_true]
    for i, k in enumerate(lengths):
        assert chance[f"recall@{k}"] == pytest.approx(np.mean([hit[i] for hit, _ in orders]))
    assert chance["mrr"] == pytest.approx(np.mean([reciprocal for _, reciprocal in orders]))
    assert np.isnan(chance["n_genes"])


def test_constant_scores_are_worth_chance():
    n = 500
    scores = gene_map_scores(np.ones((n, n)), {i: i for i in range(n)}, k=(1, 10))
    for metric in ("recall@1", "recall@10", "mrr"):
        assert lookup(scores)[metric] == pytest.approx(lookup(scores, "chance")[metric], rel=1e-12)
    assert lookup(scores)["recall@10"] == pytest.approx(10 / n, rel=1e-12)
    assert lookup(scores)["mrr"] == pytest.approx((1 / np.arange(1, n + 1)).sum() / n, rel=1e-12)


def test_equal_scores_are_tied_whatever_their_rank():
    table = pd.DataFrame({"source": "a", "target": list("wxyz"), "score": [3, 2, 2, 2.0], "rank": [1, 2, 3, 4]})
    assert lookup(gene_map_scores(table, {"a": "x"}, k=2))["recall@2"] == pytest.approx(1 / 3)
    # the rank alone is taken at its word, and decides where a low score is good
    assert lookup(gene_map_scores(table.drop(columns="score"), {"a": "x"}, k=2))["recall@2"] == 1
    distance = table.assign(score=[0.1, 0.2, 0.3, 0.4])
    assert lookup(gene_map_scores(distance, {"a": "w"}, k=1))["recall@1"] == 1
    assert lookup(gene_map_scores(distance.drop(columns="rank"), {"a": "z"}, k=1))["recall@1"] == 1


def test_lists_of_genes_misses_and_candidates():
    table = pd.DataFrame({"source": ["a", "a", "b"], "target": ["A", "B", "C"], "rank": [1, 2, 1]})
    truth = {"a": "A", "b": ["B", "X"], "c": "C", "d": None}
    scores = gene_map_scores(table, truth, k=1, genes={"first": ["a"], "rest": ["b", "c", "no truth"]})
    assert lookup(scores, genes="first") == {"recall@1": 1, "mrr": 1, "n_genes": 1, "n_unmapped": 0}
    assert lookup(scores, genes="rest") == {"recall@1": 0, "mrr": 0, "n_genes": 2, "n_unmapped": 1}
    assert lookup(scores, "chance", "rest")["recall@1"] == pytest.approx(1 / 3)
    assert scores["n"].tolist() == [1] * 4 + [2] * 4
    everything = gene_map_scores(table, truth, k=1)
    assert lookup(everything)["recall@1"] == pytest.approx(1 / 3)
    assert lookup(everything)["n_genes"] == 3
    # 100 targets were to choose from, two of them right for b
    chance = lookup(gene_map_scores(table, truth, k=1, n_candidates=100), "chance")
    assert chance["recall@1"] == pytest.approx((0.01 + 0.02 + 0.01) / 3)
    pd.testing.assert_frame_equal(gene_map_scores(table, truth, k=1, genes=["a", "b", "c"]), everything)


def test_forms_of_truth():
    table = pd.DataFrame({"source": ["a", "b", "b"], "target": ["A", "C", "B"], "score": [1.0, 0.9, 0.5]})
    pairs = pd.DataFrame({"source": ["a", "b", "b", "b", "e"], "target": ["A", "B", "C", "C", None]})
    expected = gene_map_scores(table, pairs)
    assert lookup(expected)["recall@1"] == 1
    for truth in (
        {"a": "A", "b": ["B", "C"]},
        {"a": {"A"}, "b": {"B", "C"}},
        pd.Series(["A", "B", "C"], index=["a", "b", "b"]),
        pd.Series({"a": "A", "b": ("B", "C")}),
    ):
        pd.testing.assert_frame_equal(gene_map_scores(table, truth), expected)


def test_missing_candidates_are_not_in_the_list():
    wide = pd.DataFrame([[np.nan, 1.0], [np.nan, np.nan]], index=["a", "b"], columns=["A", "B"])
    found = lookup(gene_map_scores(wide, {"a": "A", "b": "B"}))
    assert found == {"recall@1": 0, "recall@10": 0, "mrr": 0, "n_genes": 2, "n_unmapped": 1}
    assert lookup(gene_map_scores(wide, {"a": "B"}))["mrr"] == 1
    low = pd.DataFrame([[-np.inf, 1.0]], index=["a"], columns=["A", "B"])
    assert lookup(gene_map_scores(low, {"a": "A"}))["mrr"] == 0.5


def test_blocks_of_rows(monkeypatch):
    rng = np.random.default_rng(0)
    values, truth = rng.integers(0, 9, size=(50, 40)), {i: int(rng.integers(40)) for i in range(50)}
    expected = gene_map_scores(values, truth)
    monkeypatch.setattr("transverse.metrics._gene_map._ROWS", 7)
    pd.testing.assert_frame_equal(gene_map_scores(values, truth), expected)


def test_errors():
    table = pd.DataFrame({"source": ["a", "b"], "target": ["A", "B"], "score": [1.0, 1.0]})
    truth = {"a": "A"}
    with pytest.raises(
        ValueError, match="gene_map has none of the source genes of truth. It has: 'a', 'b'; truth: 'x'"
    ):
        gene_map_scores(table, {"x": "A"})
    with pytest.raises(KeyError, match=r"gene_map lacks the columns \['target'\]. It has: 'source', 'score'"):
        gene_map_scores(table.drop(columns="target"), truth)
    with pytest.raises(KeyError, match="gene_map lacks a column rank or score"):
        gene_map_scores(table.drop(columns="score"), truth)
    with pytest.raises(TypeError, match="The column 'score' of gene_map must hold numbers"):
        gene_map_scores(table.assign(score="high"), truth)
    with pytest.raises(ValueError, match="gene_map must hold each pair once, but these repeat: 'a -> A'"):
        gene_map_scores(pd.concat([table, table.iloc[:1]]), truth)
    with pytest.raises(ValueError, match="gene_map is empty"):
        gene_map_scores(table.iloc[:0], truth)
    with pytest.raises(TypeError, match="gene_map must be a long table .* but got list"):
        gene_map_scores([[1, 2]], truth)
    with pytest.raises(ValueError, match=r"gene_map must have the shape .* but has \(2,\)"):
        gene_map_scores(np.ones(2), truth)
    with pytest.raises(TypeError, match="gene_map must hold numbers"):
        gene_map_scores(pd.DataFrame({"A": ["x"]}, index=["a"]), truth)
    with pytest.raises(ValueError, match="The target genes of gene_map repeat: 'A'"):
        gene_map_scores(pd.DataFrame([[1, 2]], index=["a"], columns=["A", "A"]), truth)
    with pytest.raises(KeyError, match=r"truth lacks the columns \['source'\]. It has: 'context', 'target'.*rename"):
        gene_map_scores(table, pd.DataFrame({"context": ["a"], "target": ["A"]}))
    with pytest.raises(TypeError, match="truth must be a DataFrame .* but got list"):
        gene_map_scores(table, ["a"])
    with pytest.raises(ValueError, match="truth is empty"):
        gene_map_scores(table, {"a": None})
    with pytest.raises(TypeError, match="genes must be a list of source genes .* string 'a'"):
        gene_map_scores(table, truth, genes="a")
    with pytest.raises(ValueError, match="None of the genes of 'diverged' has a true target. genes: 'b'; truth: 'a'"):
        gene_map_scores(table, truth, genes={"diverged": ["b"]})
    with pytest.raises(ValueError, match="n_candidates=1 is fewer than the 2 target genes of gene_map"):
        gene_map_scores(table, truth, n_candidates=1)
    for k in (0, [1, 2.5], True):
        with pytest.raises(ValueError, match="k=.* must be a whole number of at least 1"):
            gene_map_scores(table, truth, k=k)
    with pytest.raises(ValueError, match="k must name at least one length"):
        gene_map_scores(table, truth, k=())
