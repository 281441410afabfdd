"""Mean, median, spread and interval of scores."""

import numpy as np
import pandas as pd
import pytest

import transverse as tv

summarize = tv.metrics.summarize


def table(values, **columns):
    return pd.DataFrame({"metric": "r2", "value": values, **columns})


def test_figures_by_hand():
    values = np.array([0.3, -0.2, 0.9, 0.4, 0.4])
    row = summarize(table(values, of="change", genes="all")).iloc[0]
    assert row[["of", "genes", "metric"]].tolist() == ["change", "all", "r2"]
    assert row["mean"] == pytest.approx(1.8 / 5) and row["median"] == pytest.approx(0.4) and row["n"] == 5
    assert row["sd"] == pytest.approx(np.sqrt(((values - 0.36) ** 2).sum() / 4))
    assert values.min() <= row["ci_low"] < row["mean"] < row["ci_high"] <= values.max()


@pytest.mark.parametrize(("level", "quantile"), [(0.95, 1.95996), (0.8, 1.28155)])
def test_interval_is_near_the_normal_one(level, quantile):
    values = np.random.default_rng(0).normal(2, 3, 400)
    row = summarize(table(values), level=level, n_resamples=8000).iloc[0]
    # the bootstrap's standard error divides by n
    error = quantile * values.std() / np.sqrt(400)
    assert row["ci_low"] == pytest.approx(values.mean() - error, abs=0.02)
    assert row["ci_high"] == pytest.approx(values.mean() + error, abs=0.02)


def test_interval_of_two_values_is_exact():
    """Means of resamples are 0, 0.5 and 1, with a quarter, a half and a quarter of the probability."""
    wide, narrow = (summarize(table([0.0, 1.0]), level=level).iloc[0] for level in (0.9, 0.4))
    assert wide[["ci_low", "ci_high"]].tolist() == [0, 1] and narrow[["ci_low", "ci_high"]].tolist() == [0.5, 0.5]


def test_coverage():
    rng = np.random.default_rng(0)
    scores = table(rng.normal(1, 2, 300 * 25), trial=np.repeat(np.arange(300), 25))
    found = summarize(scores, "trial", n_resamples=400)
    assert len(found) == 300
    covered = (found["ci_low"] < 1) & (found["ci_high"] > 1)
    # the percentile interval of 25 values falls somewhat short of 95%
    assert 0.88 < covered.mean() < 0.98


def test_many_values_are_drawn_in_parts():
    values = np.random.default_rng(0).normal(size=60_000)
    row = summarize(table(values), n_resamples=150).iloc[0]
    assert row["ci_high"] - row["ci_low"] == pytest.approx(2 * 1.96 / np.sqrt(60_000), rel=0.25)


def test_seed():
    scores = table(np.random.default_rng(0).normal(size=30))
    first, again, other = (summarize(scores, seed=s, n_resamples=50) for s in (1, 1, 2))
    pd.testing.assert_frame_equal(first, again)
    assert first["ci_low"][0] != other["ci_low"][0]


def test_groups_keep_their_order():
    scores = pd.concat(
        [
            table([1.0, 2], of="change", genes="all", method="b"),
            table([3.0, 5], of="change", genes="all", method="a"),
            table([7.0], of="expression", genes="all", method="b"),
            table([9.0], of="change", genes="all", method="b").assign(metric="rmse"),
        ]
    )
    found = summarize(scores, by="method")
    columns = ["method", "of", "genes", "metric", "mean"]
    assert found[columns].to_numpy().tolist() == [
        ["b", "change", "all", "r2", 1.5],
        ["a", "change", "all", "r2", 4.0],
        ["b", "expression", "all", "r2", 7.0],
        ["b", "change", "all", "rmse", 9.0],
    ]
    pd.testing.assert_frame_equal(summarize(scores, by=["method", "of", "method"]), found)
    scores["method"] = pd.Categorical(scores["method"], ["unused", "a", "b"])
    assert summarize(scores, by="method")[columns].astype(str).to_numpy().tolist() == (
        found[columns].astype(str).to_numpy().tolist()
    )
    # all that tells scores apart keeps them apart
    assert summarize(scores)["mean"].tolist() == [2.75, 7, 9]
    apart = table([1.0, 2, 3, 4], cells=["all", "all", "novel", "novel"], ceiling=["x", "y", "x", "y"])
    assert summarize(apart)["mean"].tolist() == [1, 2, 3, 4]


def test_seeds_of_a_condition_are_averaged_first():
    scores = table([0.0, 0, 0, 3, 9, np.nan], perturbation=["P1"] * 3 + ["P2"] + ["P3"] * 2, seed=[0, 1, 2, 0, 0, 1])
    found = summarize(scores, over="perturbation").iloc[0]
    assert found["mean"] == pytest.approx(4) and found["median"] == 3 and found["n"] == 3
    assert found["sd"] == pytest.approx(np.sqrt((16 + 1 + 25) / 2))
    assert summarize(scores).iloc[0]["n"] == 5
    # the same score again and again is not more information
    rng = np.random.default_rng(0)
    once = table(rng.normal(size=20), perturbation=[f"P{i}" for i in range(20)])
    often = pd.concat([once.assign(seed=s) for s in range(10)])
    pd.testing.assert_frame_equal(summarize(often, over=["perturbation"]), summarize(once))
    assert summarize(often)["sd"][0] < summarize(once)["sd"][0]
    assert summarize(often)["ci_low"][0] > summarize(once)["ci_low"][0]


def test_over_and_by_may_share_columns():
    scores = table([1.0, 3, 5, 5], perturbation=["P1", "P1", "P2", "P3"], cell_type=["A", "A", "A", "B"])
    found = summarize(scores, by="cell_type", over=["perturbation", "cell_type"])
    assert found[["cell_type", "mean", "n"]].to_numpy().tolist() == [["A", 3.5, 2], ["B", 5.0, 1]]


def test_missing_scores_and_single_units():
    found = summarize(table([np.nan, 2.0, np.nan])).iloc[0]
    assert found["mean"] == found["median"] == 2 and found["n"] == 1
    assert found[["sd", "ci_low", "ci_high"]].isna().all()
    found = summarize(table([np.nan, np.nan])).iloc[0]
    assert found["n"] == 0 and found[["mean", "median", "sd", "ci_low", "ci_high"]].isna().all()
    found = summarize(table([0.1, 0.1, 0.1])).iloc[0]
    assert found["ci_low"] == found["ci_high"] == 0.1
    by_missing = summarize(table([1.0, 2.0], method=["a", None]), by="method")
    assert by_missing["mean"].tolist() == [1, 2]


def test_tables_of_all_metrics(screen, make_screen):
    scores = pd.concat(
        [
            tv.metrics.response_scores(screen.truth, screen.pred),
            tv.metrics.energy_distance(screen.truth, screen.pred),
            tv.metrics.variance_ratio(screen.truth, screen.pred),
        ]
    )
    before = scores.copy()
    found = summarize(scores, by="cell_type", over=["perturbation", "cell_type"])
    pd.testing.assert_frame_equal(scores, before)
    assert len(found) == 2 * (5 + 1 + 2)
    assert set(found["n"][found["metric"] != "variance_ratio_between"]) == {3}


def test_errors():
    scores = table([1.0, 2.0])
    with pytest.raises(KeyError, match="scores has no column 'method', 'seed'. It has: 'metric', 'value'"):
        summarize(scores, by="method", over="seed")
    with pytest.raises(KeyError, match="scores has no column 'value'"):
        summarize(scores.drop(columns="value"))
    with pytest.raises(ValueError, match="scores is empty"):
        summarize(scores[:0])
    for level in (0, 1, 95):
        with pytest.raises(ValueError, match="level=.* must be between 0 and 1"):
            summarize(scores, level=level)
    for n in (0, 10.5):
        with pytest.raises(ValueError, match="n_resamples=.* must be a whole number of at least 1"):
            summarize(scores, n_resamples=n)
