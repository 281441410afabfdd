"""Figures of predicted responses: points, boxes and coordinates against plain numpy."""

from types import SimpleNamespace

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import torch
from matplotlib.colors import to_rgba
from matplotlib.text import Text
from sklearn.metrics import r2_score

import transverse as tv
from transverse.pl._figure import COLORS

PAIRS = [("P01", "C1"), ("P01", "C2"), ("P01+P02", "C1")]
FUNCTIONS = [tv.pl.prediction_scatter, tv.pl.change_boxplot, tv.pl.prediction_umap]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    yield
    torch.set_num_threads(1)  # scanpy's neighbour graph lets torch use more


@pytest.fixture(scope="module")
def adata():
    return tv.datasets.simulate_responses(
        n_contexts=2,
        n_perturbations=3,
        n_doubles=3,
        n_genes=80,
        n_cells_per_condition=20,
        n_control_cells_per_context=40,
    )


@pytest.fixture(scope="module")
def sides(adata):
    """True cells, predictions and scoring controls; the genes of the prediction are in another order."""
    pairs = pd.MultiIndex.from_frame(adata.obs[["perturbation", "cell_type"]].astype(str))
    is_control = (adata.obs["perturbation"] == "control").to_numpy()
    scores = is_control & (np.arange(adata.n_obs) % 2 == 0)
    preds = []
    for perturbation, context in PAIRS:
        train = adata[~scores & (pairs != (perturbation, context))].copy()
        baseline = tv.baselines.Additive() if "+" in perturbation else tv.baselines.MeanShift()
        preds.append(baseline.fit(train).predict(perturbation, context))
    pred = ad.concat(preds, index_unique="-")
    return adata[~is_control].copy(), pred[:, ::-1].copy(), adata[scores].copy()


@pytest.fixture(scope="module")
def umap_axes(sides):
    axes = tv.pl.prediction_umap(*sides, per_condition=True, show=False)
    plt.close("all")
    return axes


def cells(adata, perturbation, context, layer=None):
    """Expression of the cells of a condition, genes in the order of the truth; no perturbation for controls."""
    rows = (adata.obs["cell_type"] == context).to_numpy()
    if perturbation is not None:
        rows = rows & (adata.obs["perturbation"] == perturbation).to_numpy()
    part = adata[rows, sorted(adata.var_names)]
    matrix = part.X if layer is None else part.layers[layer]
    return (matrix.toarray() if hasattr(matrix, "toarray") else np.asarray(matrix)).astype(float)


def changes(sides, perturbation, context):
    """True and predicted change of each cell."""
    truth, pred, control = sides
    true = cells(truth, perturbation, context) - cells(control, None, context).mean(0)
    start = cells(pred, perturbation, context, "control").mean(0)
    return true, cells(pred, perturbation, context) - start


def unordered(panel, which):
    xy = np.asarray(panel.collections[which].get_offsets())
    return xy[np.lexsort(xy.T)]


def rows_sorted(xy):
    return xy[np.lexsort(xy.T)]


def scatter(sides, **kwargs):
    return tv.pl.prediction_scatter(*sides, **{"show": False, **kwargs})


def boxplot(sides, perturbation="P01+P02", **kwargs):
    return tv.pl.change_boxplot(*sides, perturbation=perturbation, **{"show": False, **kwargs})


# prediction_scatter


def test_scatter_points_and_scores(sides):
    n_top = 10
    axes = scatter(sides, n_top=n_top)
    assert len(axes) == 3
    for panel, (perturbation, context) in zip(axes, PAIRS, strict=True):
        true, predicted = (values.mean(0) for values in changes(sides, perturbation, context))
        top = np.argsort(-np.abs(true), kind="stable")[:n_top]
        others = np.setdiff1d(np.arange(len(true)), top)
        xy = np.column_stack([true, predicted])
        np.testing.assert_allclose(unordered(panel, 0), rows_sorted(xy[others]), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(np.asarray(panel.collections[1].get_offsets()), xy[top], rtol=1e-5, atol=1e-6)
        lines = [f"{perturbation} in {context}"]
        for genes, columns in (("all", slice(None)), (f"top {n_top}", top)):
            r2 = r2_score(true[columns], predicted[columns])
            pearson = np.corrcoef(true[columns], predicted[columns])[0, 1]
            lines.append(f"{genes} genes: R² {r2:z.2f}, Pearson {pearson:z.2f}")
        assert panel.get_title().split("\n") == lines
        assert panel.get_xlim() == panel.get_ylim()
        assert panel.get_xlabel() == "true mean change"


@pytest.mark.parametrize("with_controls", [True, False])
def test_scatter_of_expression(sides, with_controls):
    truth, pred, control = sides
    args = (truth, pred, control) if with_controls else (truth, pred)
    panel = tv.pl.prediction_scatter(*args, of="expression", perturbation="P01", context="C2", n_top=10, show=False)[0]
    xy = np.column_stack([cells(side, "P01", "C2").mean(0) for side in (truth, pred)])
    drawn = np.concatenate([points.get_offsets() for points in panel.collections[:2]])
    np.testing.assert_allclose(rows_sorted(drawn), rows_sorted(xy), rtol=1e-5, atol=1e-6)
    title = panel.get_title().split("\n")
    assert title[1].startswith(f"all genes: R² {r2_score(*xy.T):z.2f}, ")
    assert len(title) == (3 if with_controls else 2)
    assert len(panel.texts) == (10 if with_controls else 0)  # no change, no genes to name
    assert panel.get_ylabel() == "predicted mean expression"


def test_scatter_agrees_with_the_scores(sides):
    scores = tv.metrics.response_scores(*sides, n_top=10).set_index(
        ["perturbation", "cell_type", "of", "genes", "metric"]
    )
    for panel, pair in zip(scatter(sides, n_top=10), PAIRS, strict=True):
        r2, pearson = (scores.loc[(*pair, "change", "top 10", metric), "value"] for metric in ("r2", "pearson"))
        assert panel.get_title().endswith(f"top 10 genes: R² {r2:z.2f}, Pearson {pearson:z.2f}")


def test_scatter_names_the_largest_true_changes(sides):
    for panel, (perturbation, context) in zip(scatter(sides, n_names=4), PAIRS, strict=True):
        true, predicted = (values.mean(0) for values in changes(sides, perturbation, context))
        order = np.argsort(-np.abs(true), kind="stable")[:4]
        assert [text.get_text() for text in panel.texts] == sides[0].var_names[order].tolist()
        for text, gene in zip(panel.texts, order, strict=True):
            assert text.xy == pytest.approx((true[gene], predicted[gene]), abs=1e-5)
    panel = scatter(sides, perturbation="P01", context="C1", n_names=20)[0]
    panel.figure.canvas.draw()
    boxes = [Text.get_window_extent(text) for text in panel.texts]
    assert not any(box.overlaps(other) for i, box in enumerate(boxes) for other in boxes[:i])


def test_scatter_cuts_long_names(sides):
    copies = [side.copy() for side in sides]
    for side in copies:
        side.var_names = [f"a_very_long_identifier_of_{name}" for name in side.var_names]
    assert {text.get_text() for text in scatter(copies)[0].texts} == {"a_very_long_ide…"}


@pytest.mark.parametrize("n_top", [None, 80])
def test_scatter_without_top_genes(sides, n_top):
    panel = scatter(sides, n_top=n_top)[0]
    assert [len(points.get_offsets()) for points in panel.collections[:2]] == [80, 0]
    assert "top" not in panel.get_title()
    assert len(panel.figure.legends[0].texts) == 2


def test_scatter_draws_the_spread_of_a_prediction(sides):
    truth, pred, control = sides
    pred = pred.copy()
    pred.layers["std"] = np.random.default_rng(0).uniform(0.1, 0.5, pred.shape)
    panel = scatter((truth, pred, control), perturbation="P01", context="C1", n_top=5)[0]
    true, predicted = (values.mean(0) for values in changes(sides, "P01", "C1"))
    top = np.argsort(-np.abs(true), kind="stable")[:5]
    spread = cells(pred, "P01", "C1", "std").mean(0)[top]
    segments = np.array(panel.collections[2].get_segments())
    np.testing.assert_allclose(segments[:, 0], np.column_stack([true[top], predicted[top] - spread]), atol=1e-5)
    np.testing.assert_allclose(segments[:, 1], np.column_stack([true[top], predicted[top] + spread]), atol=1e-5)
    pred.layers["std"][0, 0] = np.nan
    with pytest.raises(ValueError, match=r"pred.layers\['std'\] has missing or infinite values"):
        scatter((truth, pred, control))


def test_scatter_of_arrays_and_of_one_context(sides):
    truth, pred, control = (cells(side, name, "C1") for side, name in zip(sides, ("P01", "P01", None), strict=True))
    start = cells(sides[1], "P01", "C1", "control")
    panel = tv.pl.prediction_scatter(truth, pred, control, pred_control=start, show=False)[0]
    expected = scatter(sides, perturbation="P01", context="C1")[0]
    assert panel.get_title() == expected.get_title().removeprefix("P01 in C1\n")
    one = [side[side.obs["cell_type"] == "C1"] for side in sides]
    assert scatter(one, context_key=None)[0].get_title() == expected.get_title().replace("P01 in C1", "P01")


def test_scatter_with_other_scores(sides):
    names = ["rmse", "squared_pearson", "spearman", "explained_variance", "pearson", "r2"]
    panel = scatter(sides, perturbation="P01", context="C2", n_top=10, scores=names)[0]
    true, predicted = (values.mean(0) for values in changes(sides, "P01", "C2"))
    for line, columns in zip(
        panel.get_title().split("\n")[1:], (slice(None), np.argsort(-np.abs(true), kind="stable")[:10]), strict=True
    ):
        y, p = true[columns], predicted[columns]
        expected = {
            "RMSE": np.sqrt(np.mean((y - p) ** 2)),
            "Pearson²": np.corrcoef(y, p)[0, 1] ** 2,
            "Spearman": pd.Series(y).corr(pd.Series(p), method="spearman"),
            "explained variance": 1 - np.var(y - p) / np.var(y),
            "Pearson": np.corrcoef(y, p)[0, 1],
            "R²": r2_score(y, p),
        }
        assert line.split(": ")[1] == ", ".join(f"{name} {value:z.2f}" for name, value in expected.items())
    (panel,) = scatter(sides, perturbation="P01", context="C2", n_top=None, scores="squared_pearson")
    assert panel.get_title().split("\n")[1] == f"all genes: Pearson² {np.corrcoef(true, predicted)[0, 1] ** 2:z.2f}"


@pytest.fixture(scope="module")
def organs():
    """Samples of a stacked species, and predictions as UGE makes them: a row for each control sample it starts from."""
    data = tv.datasets.simulate_reactomes(n_genes=40, n_organs=2, n_drugs=2, n_animals=4)
    stack = tv.pp.stack_species(data)
    rat = stack[stack.obs["species"] == "rat", stack.var["species"] == "rat"].copy()
    rat.X = np.log1p(rat.layers["counts"].toarray() / 100)
    is_control = (rat.obs["drug"] == "control").to_numpy()
    scores = is_control & rat.obs["animal"].isin(rat.obs["animal"][is_control].unique()[:2]).to_numpy()
    preds = []
    for organ in rat.obs["organ"].cat.categories:
        start = rat[is_control & ~scores & (rat.obs["organ"] == organ).to_numpy()]
        obs = pd.DataFrame({"control_sample": start.obs_names, "species": "rat"}, index=start.obs_names)
        obs = obs.assign(organ=pd.Categorical([organ] * len(obs)), drug=pd.Categorical(["drug A"] * len(obs)))
        x = np.asarray(start.X) + np.random.default_rng(0).normal(size=40)
        preds.append(ad.AnnData(x, obs=obs, var=pd.DataFrame(index=rat.var_names), layers={"control": start.X.copy()}))
    return rat[~is_control], ad.concat(preds), rat[scores]


KEYS = {"perturbation_key": "drug", "context_key": "organ"}


@pytest.mark.parametrize("of", ["change", "expression"])
def test_scatter_of_samples(organs, of):
    truth, pred, control = organs
    axes = tv.pl.prediction_scatter(*organs, of=of, n_top=5, scores=["r2", "squared_pearson"], **KEYS, show=False)
    for panel, organ in zip(axes, sorted(pred.obs["organ"].unique()), strict=True):
        of_organ = [(side.obs["organ"] == organ).to_numpy() for side in organs]
        treated = of_organ[0] & (truth.obs["drug"] == "drug A").to_numpy()
        true, predicted = truth.X[treated].mean(0), pred.X[of_organ[1]].mean(0)
        if of == "change":
            true, predicted = (
                true - control.X[of_organ[2]].mean(0),
                predicted - pred.layers["control"][of_organ[1]].mean(0),
            )
        drawn = np.concatenate([points.get_offsets() for points in panel.collections[:2]])
        np.testing.assert_allclose(rows_sorted(drawn), rows_sorted(np.column_stack([true, predicted])), atol=1e-5)
        title = panel.get_title().split("\n")
        assert title[0] == f"drug A in {organ}"
        squared = np.corrcoef(true, predicted)[0, 1] ** 2
        assert title[1] == f"all genes: R² {r2_score(true, predicted):z.2f}, Pearson² {squared:z.2f}"


def test_scatter_refuses_control_samples_that_predict(organs):
    truth, pred, control = organs
    used = pred.obs["control_sample"].iloc[0]
    extra = truth[:1].copy()
    extra.obs_names = [used]
    shared = ad.concat([control, extra])
    with pytest.raises(ValueError, match=f"1 of the 5 control cells that score are also those that predict: '{used}'"):
        tv.pl.prediction_scatter(truth, pred, shared, **KEYS, show=False)


def test_scatter_errors(sides):
    truth, pred, control = sides
    with pytest.raises(ValueError, match="of='changes' must be one of change, expression"):
        scatter(sides, of="changes")
    with pytest.raises(ValueError, match="control is needed"):
        scatter((truth, pred), of="change")
    with pytest.raises(ValueError, match="n_top must be whole numbers of at least 2"):
        scatter(sides, n_top=1)
    with pytest.raises(ValueError, match="n_names=-1"):
        scatter(sides, n_names=-1)
    with pytest.raises(ValueError, match="scores must be of r2, explained_variance, .*, but 'R2' is not known"):
        scatter(sides, scores=["r2", "R2"])
    with pytest.raises(ValueError, match="scores must be of r2, .*, but it is empty"):
        scatter(sides, scores=[])
    with pytest.raises(
        ValueError, match="pred has 3 conditions, and at most 2 can be drawn. Choose with perturbation= and"
    ):
        scatter(sides, max_panels=2)
    with pytest.raises(ValueError, match="max_panels=0"):
        scatter(sides, max_panels=0)
    with pytest.raises(ValueError, match="an Axes for each of the 3 conditions, but holds 2"):
        scatter(sides, ax=plt.subplots(1, 2)[1])
    plt.close("all")
    with pytest.raises(ValueError, match="ncols=0"):
        scatter(sides, ncols=0)
    assert not plt.get_fignums()


# change_boxplot


def drawn_boxes(panel):
    """Quartiles of the boxes, in the order they were drawn."""
    edges = [np.array(patch.get_path().vertices)[:, 1] for patch in panel.patches]
    return np.array([[edge.min(), edge.max()] for edge in edges])


def test_boxplot_of_true_and_predicted_cells(sides):
    n_top = 12
    panel = boxplot(sides, n_top=n_top)
    true, predicted = changes(sides, "P01+P02", "C1")
    top = np.argsort(-np.abs(true.mean(0)), kind="stable")[:n_top]
    assert [label.get_text() for label in panel.get_xticklabels()] == sides[0].var_names[top].tolist()
    expected = np.concatenate([np.quantile(values[:, top], [0.25, 0.75], axis=0).T for values in (true, predicted)])
    np.testing.assert_allclose(drawn_boxes(panel), expected, rtol=1e-5, atol=1e-5)
    diamonds = [line for line in panel.lines if line.get_marker() == "D"]
    means = [mean for values in (true, predicted) for mean in values[:, top].mean(0)]
    for line, mean, place in zip(diamonds, means, [*range(n_top)] * 2, strict=True):
        assert float(line.get_ydata()[0]) == pytest.approx(mean, abs=1e-5)
        assert abs(float(line.get_xdata()[0]) - place) < 0.5
    assert panel.get_title() == "P01+P02 in C1"
    legend = [text.get_text() for text in panel.get_legend().texts]
    assert legend == [f"true, {len(true)} cells", f"predicted, {len(predicted)} cells", "mean"]


def test_boxplot_whiskers_hold_nine_tenths(sides):
    panel = boxplot(sides, n_top=1)
    true, _ = changes(sides, "P01+P02", "C1")
    values = true[:, np.argmax(np.abs(true.mean(0)))]
    low, high = np.percentile(values, [5, 95])
    ends = [float(line.get_ydata()[0]) for line in panel.lines if len(set(line.get_ydata())) == 1]
    # a whisker ends at the last cell within
    for end in (values[values >= low].min(), values[values <= high].max()):
        assert any(drawn == pytest.approx(end, abs=1e-5) for drawn in ends)


def test_boxplot_singles(adata, sides):
    singles = {name: adata[adata.obs["perturbation"] == name, ::-1] for name in ("P01", "P02")}
    panel = boxplot(sides, singles=singles, n_top=8)
    true, _ = changes(sides, "P01+P02", "C1")
    top = np.argsort(-np.abs(true.mean(0)), kind="stable")[:8]
    control = cells(sides[2], None, "C1").mean(0)
    for points, name in zip(panel.collections, singles, strict=True):
        expected = (cells(adata, name, "C1").mean(0) - control)[top]  # of the condition's context only
        np.testing.assert_allclose(points.get_offsets(), np.column_stack([np.arange(8), expected]), atol=1e-5)
    assert [text.get_text() for text in panel.get_legend().texts][3:] == ["P01, true mean", "P02, true mean"]


def test_boxplot_of_all_genes(sides):
    few = [side[:, sorted(side.var_names)[:6]].copy() for side in sides]
    assert len(boxplot(few, n_top=20).get_xticklabels()) == 6


def test_boxplot_errors(adata, sides):
    truth, pred, control = sides
    with pytest.raises(ValueError, match="control is needed"):
        boxplot((truth, pred, None))
    with pytest.raises(
        ValueError, match=r"pred has 3 conditions, and at most 1 can be drawn. Choose .* context=. Cond"
    ):
        boxplot(sides, None)
    with pytest.raises(ValueError, match="n_top=0 must be a whole number of at least 1"):
        boxplot(sides, n_top=0)
    part = {"P01": adata[(adata.obs["perturbation"] == "P01") & (adata.obs["cell_type"] == "C2")]}
    with pytest.raises(ValueError, match=r"singles\['P01'\] has no cells of 'C1', but of 'C2'"):
        boxplot(sides, singles=part)
    with pytest.raises(ValueError, match=r"singles\['all'\] must be of one perturbation, but has 'P01', "):
        boxplot(sides, singles={"all": truth})
    with pytest.raises(TypeError, match=r"singles\['P01'\] must be an AnnData, but got ndarray"):
        boxplot(sides, singles={"P01": np.ones((2, 80))})
    with pytest.raises(ValueError, match=r"1 of the 80 genes of truth are missing in singles\['P01'\]"):
        boxplot(sides, singles={"P01": adata[adata.obs["perturbation"] == "P01", 1:]})
    with pytest.raises(ValueError, match="singles may have at most 5 names, but has 6"):
        boxplot(sides, singles=dict.fromkeys("abcdef", truth))
    assert not plt.get_fignums()


# prediction_umap


def side_points(panel, color):
    """Coordinates of the points of one colour."""
    found = [np.empty((0, 2))]
    for points in panel.collections[1:]:
        if len(xy := np.asarray(points.get_offsets())):
            found.append(xy[(points.get_facecolors() == to_rgba(color)).all(axis=1)])
    return np.concatenate(found)


def test_umap_has_the_cells_of_each_condition(sides, umap_axes):
    truth, pred, control = sides
    assert [panel.get_title() for panel in umap_axes] == ["P01 in C1", "P01 in C2", "P01+P02 in C1"]
    n_all = pred.n_obs + control.n_obs + 3 * 20
    for panel, (perturbation, context) in zip(umap_axes, PAIRS, strict=True):
        n = [len(cells(side, perturbation, context)) for side in (truth, pred)] + [len(cells(control, None, context))]
        assert [len(side_points(panel, color)) for color in (COLORS[0], COLORS[1], "#808080")] == n
        assert len(panel.collections[0].get_offsets()) == n_all - sum(n)
    labels = [text.get_text() for text in umap_axes[-1].get_legend().texts]
    assert labels == ["predicted", "true", "control", "other cells"]


def test_umap_coordinates_are_shared(umap_axes):
    whole = [rows_sorted(np.concatenate([points.get_offsets() for points in panel.collections])) for panel in umap_axes]
    np.testing.assert_array_equal(whole[0], whole[1])
    np.testing.assert_array_equal(whole[0], whole[2])
    # the same controls under either perturbation of a context
    controls = [rows_sorted(side_points(umap_axes[i], "#808080")) for i in (0, 2)]
    np.testing.assert_array_equal(*controls)


def test_umap_separates_what_is_far_apart(sides):
    truth, pred, control = sides
    far = pred.copy()
    far.X = far.X + 5.0
    panel = tv.pl.prediction_umap(truth, far, control, context="C1", perturbation="P01", show=False)[0]
    true, predicted = side_points(panel, COLORS[0]), side_points(panel, COLORS[1])
    between = np.linalg.norm(true.mean(0) - predicted.mean(0))
    assert between > 2 * np.linalg.norm(true - true.mean(0), axis=1).mean()
    assert panel.get_title() == "P01 in C1"


def test_umap_of_all_conditions_is_the_same_for_a_seed(sides, umap_axes):
    panel = tv.pl.prediction_umap(*sides, show=False)[0]
    assert panel.get_title() == "3 conditions"
    assert len(panel.collections[0].get_offsets()) == 0
    drawn = rows_sorted(np.concatenate([points.get_offsets() for points in panel.collections]))
    first = rows_sorted(np.concatenate([points.get_offsets() for points in umap_axes[0].collections]))
    np.testing.assert_array_equal(drawn, first)
    assert [text.get_text() for text in panel.get_legend().texts] == ["predicted", "true", "control"]


def test_umap_draws_cells_at_random(sides):
    truth, pred, _ = sides
    panel = tv.pl.prediction_umap(truth, pred, max_cells=15, size=3, show=False)[0]
    assert [len(side_points(panel, color)) for color in COLORS[:2]] == [15, 15]
    assert panel.collections[2].get_sizes().tolist() == [3]
    assert [text.get_text() for text in panel.get_legend().texts] == ["predicted", "true"]


def test_umap_errors(sides):
    truth, pred, control = sides
    for name in ("n_comps", "n_neighbors", "max_cells", "ncols"):
        with pytest.raises(ValueError, match=f"{name}=0 must be a whole number"):
            tv.pl.prediction_umap(*sides, **{name: 0})
    with pytest.raises(ValueError, match="needs at least 10 cells, but there are 4"):
        tv.pl.prediction_umap(truth, pred, max_cells=2)
    with pytest.raises(ValueError, match="pred has 3 conditions, and at most 2 can be drawn"):
        tv.pl.prediction_umap(*sides, per_condition=True, max_panels=2)
    with pytest.raises(ValueError, match="an Axes for each of the 3 panels, but holds 1"):
        tv.pl.prediction_umap(*sides, per_condition=True, ax=plt.subplots()[1])


# what all three have in common


def draw(function, sides, **kwargs):
    chosen = {"perturbation": "P01", "context": "C1", "show": False, **kwargs}
    if function is tv.pl.change_boxplot:
        chosen["n_top"] = 5  # fewer boxes are drawn sooner
    return np.ravel(function(*sides, **chosen))[0]


def data_of(panel):
    """What is drawn, as numbers."""
    points = [np.asarray(collection.get_offsets()) for collection in panel.collections]
    return np.concatenate(
        [*points, *(np.column_stack(line.get_data()) for line in panel.lines if len(line.get_xdata()))]
    )


@pytest.mark.parametrize("function", FUNCTIONS)
def test_choice_of_conditions(sides, function):
    truth, pred, control = sides
    only = pred[((pred.obs["perturbation"] == "P01") & (pred.obs["cell_type"] == "C1")).to_numpy()].copy()
    expected = draw(function, (truth, only, control), perturbation=None, context=None)
    np.testing.assert_array_equal(data_of(draw(function, sides)), data_of(expected))
    with pytest.raises(KeyError, match="perturbation not in pred: 'P09'. Known: 'P01', 'P01.P02'"):
        draw(function, sides, perturbation="P09")
    with pytest.raises(KeyError, match="context not in pred: 'C9'"):
        draw(function, sides, context=["C1", "C9"])
    with pytest.raises(
        ValueError, match=r"no cells of perturbation='P01\+P02' in context='C2'. Its conditions: 'P01 in"
    ):
        draw(function, sides, perturbation="P01+P02", context="C2")
    with pytest.raises(ValueError, match="context='C1' cannot be chosen, since context_key=None"):
        draw(function, sides, context_key=None)
    arrays = [cells(side, None, "C1") for side in sides]
    with pytest.raises(ValueError, match="perturbation='P01' cannot be chosen, since pred is ndarray"):
        draw(function, arrays, context=None)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_bad_input(sides, function):
    truth, pred, control = sides
    with pytest.raises(KeyError, match="perturbation_key='drug' is not in pred.obs. Columns: 'perturbation'"):
        draw(function, sides, perturbation_key="drug")
    with pytest.raises(KeyError, match="context_key='line' is not in pred.obs"):
        draw(function, sides, context_key="line")
    with pytest.raises(KeyError, match="context_key='cell_type' is not in truth.obs"):
        draw(function, (ad.AnnData(truth.X, truth.obs[["perturbation"]], truth.var), pred, control))
    with pytest.raises(KeyError, match="layer='scaled' is not in truth.layers"):
        draw(function, sides, layer="scaled")
    with pytest.raises(ValueError, match="2 of the 80 genes of truth are missing in pred: 'G0001', 'G0002'"):
        draw(function, (truth, pred[:, sorted(pred.var_names)[2:]].copy(), control))
    with pytest.raises(ValueError, match="truth has no cells of 1 of the predicted perturbation and cell_type groups"):
        draw(function, (truth[truth.obs["perturbation"] != "P01"].copy(), pred, control))
    with pytest.raises(ValueError, match="control has no cells of 1 of the predicted cell_type groups: 'C1'"):
        draw(function, (truth, pred, control[control.obs["cell_type"] != "C1"].copy()))
    with pytest.raises(ValueError, match="pred has no cells"):
        draw(function, (truth, pred[:0].copy(), control), perturbation=None, context=None)
    broken = pred.copy()
    broken.X[:, 0] = np.nan
    with pytest.raises(ValueError, match="pred.X has missing or infinite values"):
        draw(function, (truth, broken, control))
    with pytest.raises(TypeError, match="pred is needed, but is None"):
        draw(function, (truth, None, control), perturbation=None, context=None)
    assert not plt.get_fignums()  # no empty figure stays behind


@pytest.mark.parametrize("function", FUNCTIONS[:2])
def test_controls_that_predict_do_not_score(adata, sides, function):
    truth, pred, control = sides
    used = adata[adata.obs_names.isin(pred.obs["control_cell"])].copy()
    with pytest.raises(ValueError, match="control cells that score are also those that predict"):
        draw(function, (truth, pred, used))
    draw(function, (truth, pred, used), allow_shared_controls=True)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("kind", ["layer", "dense", "backed"])
def test_sparse_dense_layer_and_backed_are_alike(sides, function, kind, tmp_path):
    truth, pred, control = (side.copy() for side in sides)
    expected = data_of(draw(function, sides))
    if kind == "backed":
        truth.write_h5ad(tmp_path / "truth.h5ad")
        truth = ad.read_h5ad(tmp_path / "truth.h5ad", backed="r")
    for side in (truth, control):
        if kind == "layer":
            side.layers["expression"] = side.X.copy()
            side.X = side.X * 0
        elif kind == "dense":
            side.X = side.X.toarray()
    drawn = draw(function, (truth, pred, control), layer="expression" if kind == "layer" else None)
    np.testing.assert_allclose(data_of(drawn), expected, rtol=1e-5, atol=1e-5)
    if kind == "backed":
        truth.file.close()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_objects_axes_show_and_save(sides, function, tmp_path, monkeypatch):
    before = [side.copy() for side in sides]
    state = np.random.get_state()[1].copy()
    calls = []
    monkeypatch.setattr(plt, "show", lambda *args, **kwargs: calls.append(1))
    monkeypatch.setattr(sc, "settings", SimpleNamespace(autoshow=True))
    figure, own = plt.subplots()
    assert draw(function, sides, ax=own, show=None, save=tmp_path / "figure.pdf") is own
    assert (tmp_path / "figure.pdf").stat().st_size > 1000
    assert plt.get_fignums() == [figure.number]
    assert not calls
    assert isinstance(draw(function, sides, show=None), plt.Axes)
    assert len(calls) == 1
    for side, copy in zip(sides, before, strict=True):
        pd.testing.assert_frame_equal(side.obs, copy.obs)
        pd.testing.assert_frame_equal(side.var, copy.var)
        assert list(side.uns) == list(copy.uns)
        assert list(side.obsm) == list(copy.obsm)
        assert not side.obsp
        difference = side.X != copy.X
        assert (difference.nnz if hasattr(difference, "nnz") else difference.sum()) == 0
    np.testing.assert_array_equal(np.random.get_state()[1], state)


def test_panels_in_a_grid(sides):
    places = [panel.get_subplotspec() for panel in scatter(sides, ncols=2)]
    assert [(place.rowspan.start, place.colspan.start) for place in places] == [(0, 0), (0, 1), (1, 0)]
