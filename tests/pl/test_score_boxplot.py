"""Box plots of scores: which points, boxes and ceilings are drawn, in which order."""

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from matplotlib.colors import to_rgba

import transverse as tv
from transverse.pl._figure import COLORS

METHODS = {"mine": ("model", 0.7), "mean shift": ("baseline", 0.6), "no change": ("baseline", 0.1)}
PERTURBATIONS = ["P1", "P2", "P3", "P4"]


@pytest.fixture(scope="module")
def scores():
    """Scores of three methods and a ceiling, as a benchmark returns them; the best method is not the first."""
    rng = np.random.default_rng(0)
    rows = []
    for method, (kind, level) in [*reversed(METHODS.items()), ("split half", ("ceiling", 0.9))]:
        for seed in (0, 1):
            for perturbation in PERTURBATIONS:
                for of in ("expression", "change"):
                    for genes in ("all", "top 50"):
                        for metric, sign in (("pearson", 1), ("rmse", -1)):
                            value = sign * (level - (genes != "all") / 10) + rng.normal(0, 0.05) + (sign < 0)
                            rows.append([perturbation, f"C{seed + 1}", of, genes, metric, value, method, kind, seed])
    columns = ["perturbation", "cell_type", "of", "genes", "metric", "value", "method", "kind", "seed"]
    return pd.DataFrame(rows, columns=columns)


def draw(*args, **kwargs):
    return tv.pl.score_boxplot(*args, **{"show": False, **kwargs})


def values_of(scores, method, metric="pearson", of="change", genes="all"):
    is_wanted = (scores["method"] == method) & (scores["metric"] == metric)
    return scores.loc[is_wanted & (scores["of"] == of) & (scores["genes"] == genes), "value"]


def names(panel):
    return [label.get_text() for label in panel.get_yticklabels()]


def points(panel):
    """The points of each row."""
    scattered = [collection for collection in panel.collections if hasattr(collection, "get_sizes")]
    return {name: np.asarray(own.get_offsets()) for name, own in zip(names(panel), scattered, strict=True)}


def ceilings(panel):
    """Where lines of ceilings are, and what stands beside them."""
    segments = [c.get_segments()[0] for c in panel.collections if hasattr(c, "get_segments")]
    found = [text.get_text() for text in panel.texts if not text.get_text().startswith("n = ")]
    return dict(zip(found, [segment[0, 0] for segment in segments], strict=True))


def test_points_and_boxes(scores):
    panel = draw(scores)[0]
    assert names(panel) == list(METHODS)  # the model on top, then by mean
    for i, (name, xy) in enumerate(points(panel).items()):
        expected = values_of(scores, name)
        np.testing.assert_allclose(xy[:, 0], expected)
        assert np.abs(xy[:, 1] - i).max() < 0.5
        box = np.array(panel.patches[i].get_path().vertices)
        np.testing.assert_allclose([box[:, 0].min(), box[:, 0].max()], np.quantile(expected, [0.25, 0.75]))
        color = COLORS[0] if name == "mine" else "#808080"
        assert panel.patches[i].get_edgecolor() == to_rgba(color)
    means = [float(line.get_xdata()[0]) for line in panel.lines if line.get_marker() == "D"]
    np.testing.assert_allclose(means, [values_of(scores, name).mean() for name in METHODS])
    assert panel.get_title() == "Pearson correlation\nchange, all genes"
    assert panel.get_xlabel() == "better →"
    assert [text.get_text() for text in panel.figure.legends[0].texts] == ["model", "baseline", "mean", "ceiling"]


def test_a_panel_for_each_score(scores):
    axes = draw(scores, ["rmse", "pearson"], genes=["top 50", "all"], of="expression", ncols=2)
    titles = [panel.get_title().replace("\n", ", ") for panel in axes]
    scored = ["RMSE", "Pearson correlation"]
    assert titles == [f"{name}, expression, {genes} genes" for name in scored for genes in ("top 50", "all")]
    assert [panel.get_xlabel() for panel in axes] == ["← better"] * 2 + ["better →"] * 2
    np.testing.assert_allclose(points(axes[0])["mine"][:, 0], values_of(scores, "mine", "rmse", "expression", "top 50"))
    assert names(axes[0]) == list(METHODS)  # less is better, and the order is that of the first panel
    is_beside = [not panel.yaxis.get_tick_params()["labelleft"] for panel in axes]
    assert is_beside == [False, True, False, True]


def test_ceilings(scores):
    panel = draw(scores)[0]
    assert ceilings(panel) == {"split half": pytest.approx(values_of(scores, "split half").mean())}
    assert len(panel.patches) == 3  # one alone has nothing to shade
    assert len(draw(scores[scores["kind"] != "ceiling"])[0].texts) == 0


def test_tables_by_name():
    """Tables as the metrics return them, with the noise ceiling's among them."""
    adata = tv.datasets.simulate_responses(
        n_contexts=2, n_perturbations=3, n_genes=80, n_cells_per_condition=20, n_control_cells_per_context=40
    )
    treated, control = (adata[(adata.obs["perturbation"] == "control") == value].copy() for value in (False, True))
    half = np.arange(control.n_obs) % 2 == 0
    true = treated[treated.obs["cell_type"] == "C1"].copy()
    scored = tv.metrics.response_scores(true, true, control[half], pred_control=control[~half], n_top=None)
    ceiling = tv.metrics.noise_ceiling(true, control, n_splits=2, n_top=None)
    tables = {"second": scored.assign(value=scored["value"] - 0.1), "first": scored, "ceiling": ceiling}
    panel = draw(tables)[0]
    assert names(panel) == ["first", "second"]
    is_score = (scored["metric"] == "pearson") & (scored["of"] == "change")
    np.testing.assert_allclose(points(panel)["first"][:, 0], scored.loc[is_score, "value"])
    chosen = ceiling[(ceiling["metric"] == "pearson") & (ceiling["of"] == "change")]
    expected = chosen.groupby("ceiling")["value"].mean()
    assert ceilings(panel) == {name: pytest.approx(expected[name]) for name in ("split half", "noise-free")}
    shaded = panel.patches[-1]
    np.testing.assert_allclose([shaded.get_x(), shaded.get_x() + shaded.get_width()], sorted(expected))
    # a table has them too
    joined = pd.concat([scored.assign(method="first"), ceiling])
    assert ceilings(draw(joined)[0]) == ceilings(panel)
    by_type = draw(joined, groupby="cell_type")[0]
    assert (names(by_type), ceilings(by_type)) == (["C1"], ceilings(panel))


def test_repeated_conditions_are_averaged(scores):
    panel = draw(scores, over="perturbation")[0]
    rows = scores[(scores["method"] == "mine") & (scores["metric"] == "pearson") & (scores["of"] == "change")]
    expected = rows[rows["genes"] == "all"].groupby("perturbation")["value"].mean()
    np.testing.assert_allclose(points(panel)["mine"][:, 0], expected)
    assert len(points(draw(scores)[0])["mine"]) == 8


def test_groups_and_their_order(scores):
    one = scores[scores["method"].isin(["mine", "split half"])]
    panel = draw(one, groupby="perturbation")[0]
    means = values_of(scores, "mine").groupby(scores["perturbation"]).mean().sort_values(ascending=False)
    assert names(panel) == means.index.tolist()
    assert list(ceilings(panel)) == ["split half"]
    assert names(draw(one, groupby="perturbation", order=["P3", "P1"])[0]) == ["P3", "P1"]
    categories = pd.Categorical(one["perturbation"], [*reversed(PERTURBATIONS), "absent"])
    assert names(draw(one.assign(perturbation=categories), groupby="perturbation")[0]) == PERTURBATIONS[::-1]


def test_missing_scores(scores):
    lacking = scores.copy()
    lacking.loc[values_of(scores, "mine").index[:3], "value"] = np.nan
    panel = draw(lacking)[0]
    assert len(points(panel)["mine"]) == 5
    assert [text.get_text() for text in panel.texts] == ["n = 5", "split half"]


def test_axes_show_save_and_input(scores, tmp_path, monkeypatch):
    before = scores.copy()
    calls = []
    monkeypatch.setattr(plt, "show", lambda *args, **kwargs: calls.append(1))
    monkeypatch.setattr(sc, "settings", SimpleNamespace(autoshow=True))
    figure, own = plt.subplots(1, 2)
    axes = draw(scores, ["pearson", "rmse"], ax=own, show=None, save=tmp_path / "figure.png")
    assert axes == list(own)
    assert not calls
    assert not figure.legends
    assert (tmp_path / "figure.png").stat().st_size > 1000
    draw(scores, show=None)
    assert len(calls) == 1
    pd.testing.assert_frame_equal(scores, before)


def test_errors(scores):
    with pytest.raises(TypeError, match="scores must be a pandas.DataFrame, but got list"):
        draw([scores])
    with pytest.raises(TypeError, match=r"scores\['mine'\] must be a pandas.DataFrame, but got int"):
        draw({"mine": 3})
    with pytest.raises(ValueError, match="at least one table, but is empty"):
        draw({})
    with pytest.raises(ValueError, match="scores is empty"):
        draw(scores.iloc[:0])
    with pytest.raises(KeyError, match=r"scores lacks the columns \['model'\]"):
        draw(scores, groupby="model")
    with pytest.raises(KeyError, match=r"scores lacks the columns \['donor'\]"):
        draw(scores, over=["perturbation", "donor"])
    with pytest.raises(KeyError, match="metric not in the table: 'r2'. Known: 'pearson', 'rmse'"):
        draw(scores, "r2")
    with pytest.raises(KeyError, match="genes of 'pearson' not in the table: 'top 20'. Known: 'all', 'top 50'"):
        draw(scores, genes="top 20")
    with pytest.raises(KeyError, match=r"table lacks the columns \['genes'\]"):
        draw(scores.drop(columns="genes"), genes="all")
    with pytest.raises(KeyError, match="order not in scores: 'yours'"):
        draw(scores, order=["yours"])
    with pytest.raises(ValueError, match="noise ceilings only"):
        draw(scores[scores["kind"] == "ceiling"])
    with pytest.raises(ValueError, match=r"scores\['method'\] is missing in 1 of 192 rows"):
        draw(scores.assign(method=scores["method"].where(scores.index > 0)))
    with pytest.raises(ValueError, match="each 'seed' would mix several methods: 'no change', 'mean shift', 'mine'"):
        draw(scores, groupby="seed")
    with pytest.raises(ValueError, match="no value of 'rmse'"):
        draw(scores.assign(value=scores["value"].where(scores["metric"] != "rmse")), ["pearson", "rmse"])
    only = (scores["method"] != "mine") | (scores["metric"] != "rmse")
    with pytest.raises(ValueError, match="None of 'mine' has a value of 'rmse'"):
        draw(scores[only], "rmse", order=["mine"])
    split = scores[(scores["of"] == "change") | (scores["genes"] == "all")]
    with pytest.raises(KeyError, match="has 'pearson', but not for all at once"):
        draw(split, of="expression", genes="top 50")
    with pytest.raises(ValueError, match="an Axes for each of the 1 scores, but holds 2"):
        draw(scores, ax=plt.subplots(1, 2)[1])
    plt.close("all")
    with pytest.raises(ValueError, match="ncols=0"):
        draw(scores, ncols=0)
    assert not plt.get_fignums()
