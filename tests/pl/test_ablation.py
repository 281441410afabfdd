"""The table of an ablation as a figure: means, deviations over seeds, and the difference to the full model."""

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scanpy as sc

import transverse as tv

VARIANTS = {"no cross": 0.5, "full": 0.8, "no similarity": 0.85}
METRICS = ["r2", "explained_variance", "pearson"]


@pytest.fixture(scope="module")
def table():
    """Three variants, three seeds, four conditions; as the scores of responses are."""
    rng = np.random.default_rng(0)
    rows = [
        (variant, seed, f"P{i}", of, genes, metric, sign * level + rng.normal(0, 0.05))
        for variant, level in VARIANTS.items()
        for seed in range(3)
        for i in range(4)
        for of in ("expression", "change")
        for genes in ("all", "top 50")
        for metric, sign in [("spearman", 1), *((metric, 1) for metric in METRICS), ("rmse", -1)]
    ]
    return pd.DataFrame(rows, columns=["variant", "seed", "perturbation", "of", "genes", "metric", "value"])


def draw(table, **kwargs):
    return tv.pl.ablation(table, **{"show": False, **kwargs})


def expected(table, metric, of="change", genes="all"):
    """Mean of each seed, variants x seeds."""
    rows = table[(table["metric"] == metric) & (table["of"] == of) & (table["genes"] == genes)]
    return rows.groupby(["variant", "seed"])["value"].mean().unstack()


def test_numbers_and_colours(table):
    panel = draw(table)
    rows = ["full", "no cross", "no similarity"]
    assert [label.get_text() for label in panel.get_yticklabels()] == rows
    columns = [label.get_text() for label in panel.get_xticklabels()]
    names = ["R²", "explained\nvariance", "Pearson\ncorrelation"]
    assert columns == [f"{name}\nchange\n{genes} genes" for name in names for genes in ("all", "top 50")]
    image = panel.images[0]
    texts = np.array([text.get_text() for text in panel.texts]).reshape(3, 6)
    for j, (metric, genes) in enumerate((metric, genes) for metric in METRICS for genes in ("all", "top 50")):
        seeds = expected(table, metric, genes=genes).loc[rows]
        mean, sd = seeds.mean(axis=1), seeds.std(axis=1, ddof=1)
        np.testing.assert_allclose(image.get_array()[:, j], mean - mean["full"], atol=1e-12)
        assert texts[:, j].tolist() == [f"{mean[name]:.3f}\n± {sd[name]:.3f}" for name in rows]
    assert image.get_clim()[0] == -image.get_clim()[1] == pytest.approx(-np.abs(image.get_array()).max())
    assert panel.get_xlabel() == "mean ± standard deviation over 3 seeds"


def test_one_seed_has_no_deviation(table):
    panel = draw(table[table["seed"] == 0], metric="pearson", genes="all")
    seeds = expected(table, "pearson")[0]
    assert [text.get_text() for text in panel.texts] == [
        f"{seeds[name]:.3f}" for name in ("full", "no cross", "no similarity")
    ]
    assert panel.get_xlabel() == ""


def test_less_of_an_error_is_better(table):
    panel = draw(table, metric="rmse", of="expression", genes="all")
    mean = expected(table, "rmse", "expression").mean(axis=1)
    difference = panel.images[0].get_array()[:, 0]
    np.testing.assert_allclose(difference, [0, mean["full"] - mean["no cross"], mean["full"] - mean["no similarity"]])


def test_chosen_scores_and_reference(table):
    panel = draw(table, full="no cross", metric=["pearson", "r2"], of=["change", "expression"], genes="top 50")
    assert [label.get_text().split("\n")[-2] for label in panel.get_xticklabels()] == ["change", "expression"] * 2
    assert panel.get_yticklabels()[0].get_text() == "no cross"
    seeds = expected(table, "pearson", genes="top 50")
    difference = seeds.mean(axis=1) - seeds.loc["no cross"].mean()
    np.testing.assert_allclose(panel.images[0].get_array()[:, 0], difference[["no cross", "full", "no similarity"]])


def test_rows_follow_the_categories(table):
    ordered = table.assign(variant=pd.Categorical(table["variant"], ["no similarity", "no cross", "absent", "full"]))
    rows = [label.get_text() for label in draw(ordered).get_yticklabels()]
    assert rows == ["full", "no similarity", "no cross"]


def test_scores_without_further_columns(table):
    simple = table[(table["of"] == "change") & (table["genes"] == "all")]
    simple = simple.groupby(["variant", "seed", "metric"], as_index=False)["value"].mean()
    panel = draw(simple)
    assert [label.get_text() for label in panel.get_xticklabels()] == [
        "R²",
        "explained\nvariance",
        "Pearson\ncorrelation",
    ]
    wide = simple.pivot(index=["variant", "seed"], columns="metric", values="value").reset_index()
    with pytest.raises(KeyError, match=r"must be in long form.*table.melt\(\['variant', 'seed'\], var_name='metric'\)"):
        draw(wide)
    melted = wide.melt(["variant", "seed"], var_name="metric")
    np.testing.assert_allclose(draw(melted).images[0].get_array(), panel.images[0].get_array())


def test_text_is_seen_on_its_colour(table):
    panel = draw(table)
    darkest = np.argmax(np.abs(panel.images[0].get_array()))
    assert panel.texts[darkest].get_color() == "white"
    assert panel.texts[0].get_color() == "black"


def test_axes_show_save_and_input(table, tmp_path, monkeypatch):
    before = table.copy()
    calls = []
    monkeypatch.setattr(plt, "show", lambda *args, **kwargs: calls.append(1))
    monkeypatch.setattr(sc, "settings", SimpleNamespace(autoshow=True))
    _, own = plt.subplots()
    assert draw(table, ax=own, show=None, save=tmp_path / "figure.png") is own
    assert not calls
    assert (tmp_path / "figure.png").stat().st_size > 1000
    draw(table, show=None)
    assert len(calls) == 1
    pd.testing.assert_frame_equal(table, before)


def test_errors(table):
    with pytest.raises(TypeError, match="table must be a pandas.DataFrame, but got dict"):
        draw(table.to_dict())
    with pytest.raises(KeyError, match=r"table lacks the columns \['variant'\]"):
        draw(table.drop(columns="variant"))
    with pytest.raises(ValueError, match="table is empty"):
        draw(table.iloc[:0])
    with pytest.raises(ValueError, match=r"table\['seed'\] is missing in 1 of 720 rows"):
        draw(table.assign(seed=table["seed"].where(table.index > 0)))
    with pytest.raises(ValueError, match="no variant full='all'. It has: 'no cross', 'full', 'no similarity'"):
        draw(table, full="all")
    with pytest.raises(ValueError, match="no variant but 'full'"):
        draw(table[table["variant"] == "full"])
    with pytest.raises(KeyError, match="metric not in the table: 'ARI'"):
        draw(table, metric="ARI")
    with pytest.raises(ValueError, match="Neither more nor less is better of 'n_deg'"):
        draw(table.replace({"metric": {"pearson": "n_deg"}}), metric="n_deg")
    with pytest.raises(ValueError, match="no value of 'R² change all genes' for the variants 'no cross'"):
        draw(table[(table["variant"] != "no cross") | (table["metric"] != "r2")])
    with pytest.raises(ValueError, match=r"'no cross' with seed 0 has 3 values of 'R² change all genes', but .* has 4"):
        draw(table[(table["variant"] != "no cross") | (table["perturbation"] != "P0") | (table["seed"] != 0)])
    with pytest.raises(ValueError, match="an Axes for each of the 1 table, but holds 2"):
        draw(table, ax=plt.subplots(1, 2)[1])
