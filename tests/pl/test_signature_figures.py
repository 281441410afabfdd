"""Figures of signatures: what is drawn against plain numpy, what is written, and what is refused."""

import warnings
from types import SimpleNamespace

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from matplotlib.colors import to_rgba
from matplotlib.text import Text
from scipy.stats import wilcoxon

import transverse as tv
from transverse.pl._figure import COLORS
from transverse.pl._fit import NAME_STEP, fit_titles, legend_below, name_where_they_fit

N_GENES = 30
strips, scatter, fold = tv.pl.signature_strips, tv.pl.signature_scatter, tv.pl.fold_over_baseline


@pytest.fixture(scope="module")
def sides():
    """Truth, prediction and baseline of held-out drugs; the genes of the prediction are in another order."""
    adata = tv.datasets.simulate_signatures(n_drugs=40, n_genes=N_GENES, n_mechanisms=4, n_latent=3, n_units=3)
    drugs = adata.obs["perturbation"].cat.categories
    is_test = adata.obs["perturbation"].isin(drugs[28:]).to_numpy()
    train, truth = adata[~is_test].copy(), adata[is_test].copy()
    predictions = []
    for method in (tv.baselines.RidgeSignature(10), tv.baselines.CopySource()):
        method.fit(train)
        own = [method.predict(truth[truth.obs["cell_type"] != target].copy(), target) for target in ("C1", "C2")]
        predictions.append(ad.concat(own))
    pred, baseline = predictions
    return truth, pred[:, ::-1].copy(), baseline


NAMES = ["D0029", "D0031"]


def value(adata, perturbation, cell_type, layer=None):
    """The mean signature of a condition, with genes in the order of their names."""
    rows = ((adata.obs["perturbation"] == perturbation) & (adata.obs["cell_type"] == cell_type)).to_numpy()
    part = adata[rows, sorted(adata.var_names)]
    matrix = part.X if layer is None else part.layers[layer]
    return (matrix.toarray() if sp.issparse(matrix) else np.asarray(matrix)).astype(float).mean(0)


def pearson(x, y):
    return np.corrcoef(x, y)[0, 1]


def beside(panel):
    """The texts beside the strips, without their header."""
    header, *texts = panel.texts
    assert header.get_text() == "Pearson"
    return [text.get_text() for text in texts]


def overlapping(texts):
    boxes = [Text.get_window_extent(text) for text in texts if text.get_text()]
    return any(box.overlaps(other) for i, box in enumerate(boxes) for other in boxes[:i])


# signature_strips


def test_strips(sides):
    truth, pred, baseline = sides
    axes = strips(*sides, perturbation=NAMES, show=False)
    conditions = [(name, cell_type) for name in NAMES for cell_type in ("C1", "C2")]
    assert [panel.get_title() for panel in axes] == [" in ".join(pair) for pair in conditions]
    for panel, pair in zip(axes, conditions, strict=True):
        true, predicted, base = (value(side, *pair) for side in (truth, pred, baseline))
        order = np.argsort(true, kind="stable")
        drawn = np.asarray(panel.images[0].get_array())
        np.testing.assert_allclose(drawn, np.stack([base, predicted, true])[:, order], rtol=1e-5, atol=1e-6)
        assert (np.diff(drawn[-1]) >= 0).all()
        assert [text.get_text() for text in panel.get_yticklabels()] == ["baseline", "prediction", "truth"]
        assert beside(panel) == [f"{pearson(true, base):z.2f}", f"{pearson(true, predicted):z.2f}"]
        assert [text.xy[1] for text in panel.texts[1:]] == [0, 1]
        assert [text.get_text() for text in panel.get_xticklabels()] == truth.var_names[order].tolist()
    assert [panel.get_xlabel() for panel in axes] == ["", "", "", "30 genes, sorted by true value"]


def test_strips_share_colours_that_are_symmetric(sides):
    truth, _, _ = sides
    axes = strips(*sides, perturbation=NAMES, cell_type="C1", show=False)
    limit = np.quantile(np.abs([value(truth, name, "C1") for name in NAMES]), 0.99)
    for panel in axes:
        assert panel.images[0].get_clim() == pytest.approx((-limit, limit))
        assert panel.images[0].get_cmap().name == "RdBu_r"
    colorbars = [panel for panel in axes[0].figure.axes if panel not in axes]
    assert [colorbar.get_ylabel() for colorbar in colorbars] == ["value"]
    panel = strips(*sides, perturbation=NAMES[0], cell_type="C1", vmax=50, cmap="PuOr", show=False)[0]
    assert panel.images[0].get_clim() == (-50, 50)
    assert panel.images[0].get_cmap().name == "PuOr"
    assert panel.images[0].colorbar.extend == "neither"
    zero = truth.copy()
    zero.X[:] = 0
    panel = strips(zero, sides[1], perturbation=NAMES[0], cell_type="C1", show=False)[0]
    assert panel.images[0].get_clim() == (-1, 1)
    assert panel.images[0].colorbar.extend == "both"
    assert beside(panel) == ["nan"]


def test_strips_of_several_baselines_and_of_none(sides):
    truth, pred, baseline = sides
    chosen = {"perturbation": NAMES[0], "cell_type": "C2", "show": False}
    panel = strips(truth, pred, {"the same": pred, "a baseline with a very long name": baseline}, **chosen)[0]
    rows = [text.get_text() for text in panel.get_yticklabels()]
    assert rows == ["the same", "a baseline with a very …", "prediction", "truth"]
    true, predicted, base = (value(side, NAMES[0], "C2") for side in (truth, pred, baseline))
    drawn = np.asarray(panel.images[0].get_array())
    expected = np.stack([predicted, base, predicted, true])[:, np.argsort(true, kind="stable")]
    np.testing.assert_allclose(drawn, expected, rtol=1e-5, atol=1e-6)
    assert beside(panel) == [f"{pearson(true, other):z.2f}" for other in (predicted, base, predicted)]
    panel = strips(truth, pred, **chosen)[0]
    assert [text.get_text() for text in panel.get_yticklabels()] == ["prediction", "truth"]


def test_strips_of_some_genes(sides):
    truth, pred, _ = sides
    chosen = {"perturbation": NAMES, "cell_type": "C1", "show": False}
    for panel, name in zip(strips(*sides, n_genes=6, **chosen), NAMES, strict=True):
        true, predicted = (value(side, name, "C1") for side in (truth, pred))
        top = np.argsort(-np.abs(true), kind="stable")[:6]
        top = top[np.argsort(true[top])]
        assert [text.get_text() for text in panel.get_xticklabels()] == truth.var_names[top].tolist()
        np.testing.assert_allclose(panel.images[0].get_array()[-1], true[top], rtol=1e-5)
        assert beside(panel)[1] == f"{pearson(true, predicted):z.2f}"  # of all genes
    assert panel.get_xlabel() == "6 of 30 genes, sorted by true value"
    genes = ["G0009", "G0002", "G0009", "G0030"]
    for panel, name in zip(strips(*sides, genes=genes, **chosen), NAMES, strict=True):
        true = value(truth, name, "C1")
        columns = np.array([1, 8, 29])
        columns = columns[np.argsort(true[columns])]
        assert [text.get_text() for text in panel.get_xticklabels()] == truth.var_names[columns].tolist()
    assert strips(*sides, genes="G0009", **chosen)[0].images[0].get_array().shape == (3, 1)
    assert strips(*sides, n_genes=99, **chosen)[0].images[0].get_array().shape == (3, N_GENES)


@pytest.mark.parametrize(("n_genes", "size", "named"), [(45, 10, True), (45, 14, True), (200, 10, False)])
def test_strips_name_genes_where_the_names_fit(n_genes, size, named):
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"perturbation": ["A", "B"], "cell_type": ["C1", "C1"]}, index=["A", "B"])
    var = pd.DataFrame(index=[f"A_LONG_NAME_OF_GENE_{i}" for i in range(n_genes)])
    truth, pred = (ad.AnnData(rng.normal(size=(2, n_genes)), obs=obs, var=var) for _ in range(2))
    with plt.rc_context({"font.size": size}):
        axes = strips(truth, pred, {"similarity-weighted mean": pred}, show=False)
        axes[0].figure.canvas.draw()
    for panel in axes:
        labels = panel.get_xticklabels()
        assert len(labels) == (n_genes if named else 0)
        assert all(text.get_text() == "A_LONG_NAME_OF_…" for text in labels)
        assert not overlapping(labels)


def test_strips_in_a_grid_and_on_narrow_axes(sides):
    chosen = {"perturbation": ["D0029", "D0030", "D0031"], "cell_type": "C1", "show": False}
    axes = strips(*sides, ncols=2, **chosen)
    places = [panel.get_subplotspec() for panel in axes]
    # a colour bar puts them into a grid of its own, unless the layout is constrained
    assert [(place.rowspan.start, place.colspan.start) for place in places] == [(0, 0), (0, 1), (1, 0)]
    assert [bool(panel.get_xlabel()) for panel in axes] == [False, True, True]
    own = plt.subplots(3, 1, figsize=(2, 6))[1]
    axes = strips(*sides, ax=own, **chosen)
    assert [bool(panel.get_xlabel()) for panel in axes] == [False, False, True]
    assert all(len(panel.get_xticks()) == 0 for panel in axes)
    axes[0].figure.canvas.draw()
    colorbar = axes[0].figure.axes[-1].get_window_extent()
    for panel in axes:
        assert not any(Text.get_window_extent(text).overlaps(colorbar) for text in panel.texts)


def test_strips_errors(sides):
    truth, pred, baseline = sides
    chosen = {"perturbation": NAMES[0], "cell_type": "C1"}
    with pytest.raises(ValueError, match="Give genes or n_genes, not both"):
        strips(*sides, genes="G0001", n_genes=3, **chosen)
    for n_genes in (0, 2.5, True):
        with pytest.raises(ValueError, match=f"n_genes={n_genes} must be a whole number of at least 1"):
            strips(*sides, n_genes=n_genes, **chosen)
    for vmax in (0, -1, np.nan, np.inf):
        with pytest.raises(ValueError, match=f"vmax={vmax} must be positive"):
            strips(*sides, vmax=vmax, **chosen)
    with pytest.raises(KeyError, match="genes not in truth: 'TP53'. It has: 'G0001', "):
        strips(*sides, genes=["G0001", "TP53"], **chosen)
    with pytest.raises(ValueError, match="genes must name at least one"):
        strips(*sides, genes=[], **chosen)
    with pytest.raises(ValueError, match="baseline must hold at least one baseline, but is empty"):
        strips(truth, pred, {}, **chosen)
    with pytest.raises(TypeError, match=r"baseline\['mean'\] must be an AnnData of signatures, but got ndarray"):
        strips(truth, pred, {"mean": baseline.X}, **chosen)
    part = baseline[(baseline.obs["perturbation"] != NAMES[0]).to_numpy()].copy()
    with pytest.raises(
        ValueError, match=r"baseline\['copy'\] has no signatures of 1 of the 1 predicted cond.*: 'D0029 in C1'"
    ):
        strips(truth, pred, {"copy": part}, **chosen)
    strips(truth, pred, {"copy": part}, perturbation=NAMES[1], show=False)  # what is not drawn may be missing
    plt.close("all")
    assert not plt.get_fignums()


# signature_scatter


def test_scatter(sides):
    truth, pred, _ = sides
    axes = scatter(truth, pred, perturbation=NAMES, n_names=4, show=False)
    conditions = [(name, cell_type) for name in NAMES for cell_type in ("C1", "C2")]
    for panel, pair in zip(axes, conditions, strict=True):
        true, predicted = (value(side, *pair) for side in (truth, pred))
        top = np.argsort(-np.abs(true), kind="stable")[:4]
        xy = np.column_stack([true, predicted])
        others = np.setdiff1d(np.arange(N_GENES), top)
        np.testing.assert_allclose(panel.collections[0].get_offsets(), xy[others], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(panel.collections[1].get_offsets(), xy[top], rtol=1e-5, atol=1e-6)
        assert len(panel.collections) == 2
        rmse = np.sqrt(((true - predicted) ** 2).mean())
        title = f"{pair[0]} in {pair[1]}\nPearson {pearson(true, predicted):z.2f}, RMSE {rmse:.2f}"
        assert panel.get_title() == title
        assert [text.get_text() for text in panel.texts] == truth.var_names[top].tolist()
        for text, gene in zip(panel.texts, top, strict=True):
            assert text.xy == pytest.approx(xy[gene], abs=1e-5)
        assert panel.get_xlim() == panel.get_ylim()
        assert (panel.get_xlabel(), panel.get_ylabel()) == ("true value", "predicted value")
        assert any(
            line.get_linestyle() == "--" and line.get_slope() == 1 for line in panel.lines if hasattr(line, "get_slope")
        )
    legend = [text.get_text() for text in axes[0].figure.legends[0].texts]
    assert legend == ["gene", "top 4 by true value", "true = predicted"]


def test_scatter_agrees_with_the_scores(sides):
    truth, pred, _ = sides
    scores = tv.metrics.signature_scores(truth, pred).set_index(["perturbation", "cell_type", "metric"])["value"]
    panel = scatter(truth, pred, perturbation="D0033", cell_type="C2", show=False)[0]
    r, rmse = (scores["D0033", "C2", metric] for metric in ("pearson", "rmse"))
    assert panel.get_title().split("\n")[1] == f"Pearson {r:z.2f}, RMSE {rmse:.2f}"


def test_scatter_draws_the_spread_over_sources(sides):
    truth, pred, _ = sides
    pred = pred.copy()
    pred.layers["std"] = np.random.default_rng(0).uniform(0.1, 0.5, pred.shape)
    panel = scatter(truth, pred, perturbation=NAMES[1], cell_type="C2", n_names=5, show=False)[0]
    true, predicted = (value(side, NAMES[1], "C2") for side in (truth, pred))
    top = np.argsort(-np.abs(true), kind="stable")[:5]
    spread = value(pred, NAMES[1], "C2", "std")[top]
    segments = np.array(panel.collections[2].get_segments())
    np.testing.assert_allclose(segments[:, 0], np.column_stack([true[top], predicted[top] - spread]), atol=1e-5)
    np.testing.assert_allclose(segments[:, 1], np.column_stack([true[top], predicted[top] + spread]), atol=1e-5)
    legend = [text.get_text() for text in panel.figure.legends[0].texts]
    assert legend == ["gene", "top 5 by true value", "± standard deviation", "true = predicted"]
    without = scatter(truth, pred, perturbation=NAMES[1], cell_type="C2", n_names=0, show=False)[0]
    assert [len(points.get_offsets()) for points in without.collections] == [N_GENES, 0]
    assert not without.texts
    assert [text.get_text() for text in without.figure.legends[0].texts] == ["gene", "true = predicted"]
    pred.layers["std"][0, 0] = -0.1
    with pytest.raises(ValueError, match=r"pred.layers\['std'\] has negative values"):
        scatter(truth, pred, perturbation=[pred.obs["perturbation"].iloc[0]])
    pred.layers["std"][0, 0] = np.nan
    with pytest.raises(ValueError, match=r"pred.layers\['std'\] has missing or infinite values"):
        scatter(truth, pred, perturbation=NAMES)


def test_scatter_draws_no_spread_where_a_prediction_has_a_single_source(sides):
    truth, pred, _ = sides
    pred = pred.copy()
    alone = (pred.obs["perturbation"] == NAMES[0]).to_numpy()
    pred.layers["std"] = np.where(alone[:, None], np.nan, 0.2) * np.ones(pred.shape)
    for name, length in zip(NAMES, (0, 0.4), strict=True):
        panel = scatter(truth, pred, perturbation=name, cell_type="C2", n_names=5, show=False)[0]
        segments = np.array(panel.collections[2].get_segments())
        np.testing.assert_allclose(np.ptp(segments[..., 1], axis=1), length, atol=1e-6)


def test_scatter_names_do_not_overlap(sides):
    truth, pred, _ = sides
    panel = scatter(truth, pred, perturbation=NAMES[0], cell_type="C1", n_names=15, show=False)[0]
    panel.figure.canvas.draw()
    assert len(panel.texts) == 15
    assert not overlapping(panel.texts)


@pytest.mark.parametrize("n_names", [-1, 1.5, True])
def test_scatter_errors(sides, n_names):
    with pytest.raises(ValueError, match=f"n_names={n_names} must be a whole number of at least 0"):
        scatter(*sides[:2], n_names=n_names)
    assert not plt.get_fignums()


# fold_over_baseline


def correlations(sides, cell_type):
    """Perturbations of a cell type, and their correlation in the model and in the baseline."""
    truth, pred, baseline = sides
    names = sorted(pred.obs["perturbation"][(pred.obs["cell_type"] == cell_type).to_numpy()].astype(str))
    pairs = [
        [pearson(value(truth, name, cell_type), value(side, name, cell_type)) for name in names]
        for side in (pred, baseline)
    ]
    return np.array(pairs)


def lines_of(sides, cell_type):
    model, base = correlations(sides, cell_type)
    mean = f"mean {model.mean():z.2f} over {base.mean():z.2f}"
    share, p = (model > base).mean(), wilcoxon(model, base).pvalue
    return [
        f"{cell_type}, {len(model)} signatures",
        f"{model.mean() / base.mean():z.2f}-fold: {mean}",
        f"{share:.0%} improved, p = {p:.2g}",
    ]


def test_fold_points(sides):
    axes = fold(*sides, show=False)
    for panel, cell_type in zip(axes, ("C1", "C2"), strict=True):
        model, base = correlations(sides, cell_type)
        for points, own, color in zip(
            panel.collections, (model <= base, model > base), (COLORS[3], COLORS[0]), strict=True
        ):
            np.testing.assert_allclose(points.get_offsets(), np.column_stack([base, model])[own], atol=1e-6)
            assert own.sum() == 0 or points.get_facecolors()[0][:3] == pytest.approx(to_rgba(color)[:3])
        (mean,) = [line for line in panel.lines if line.get_marker() == "D"]
        assert np.ravel(mean.get_data()) == pytest.approx([base.mean(), model.mean()], abs=1e-6)
        assert panel.get_title().split("\n") == lines_of(sides, cell_type)
        assert panel.get_xlim() == panel.get_ylim() == axes[0].get_xlim()
        assert (panel.get_xlabel(), panel.get_ylabel()) == ("Pearson of the baseline", "Pearson of the model")
    legend = [text.get_text() for text in axes[0].figure.legends[0].texts]
    assert legend == ["model better", "baseline better", "mean", "equal"]


def test_fold_agrees_with_the_scores(sides):
    truth, pred, baseline = sides
    means = []
    for side in (pred, baseline):
        scores = tv.metrics.signature_scores(truth, side).query("metric == 'pearson' and cell_type == 'C1'")
        means.append(scores["value"].mean())
    title = fold(*sides, cell_type="C1", show=False)[0].get_title()
    assert f"\n{means[0] / means[1]:.2f}-fold: mean {means[0]:.2f} over {means[1]:.2f}\n" in title


def test_fold_histograms(sides):
    axes = fold(*sides, kind="histogram", show=False)
    for panel, cell_type in zip(axes, ("C1", "C2"), strict=True):
        model, base = correlations(sides, cell_type)
        bars = [patch for patch in panel.patches if hasattr(patch, "get_height")]
        n = len(bars) // 2
        edges = [bar.get_x() for bar in bars[:n]] + [bars[n - 1].get_x() + bars[n - 1].get_width()]
        for own, values, color in ((bars[:n], base, "#808080"), (bars[n:], model, COLORS[0])):
            assert [bar.get_height() for bar in own] == np.histogram(values, edges)[0].tolist()
            assert own[0].get_facecolor() == to_rgba(color, 0.35)
            assert sum(bar.get_height() for bar in own) == len(values)
        assert [line.get_xdata()[0] for line in panel.lines] == pytest.approx([base.mean(), model.mean()], abs=1e-6)
        assert panel.get_title().split("\n") == lines_of(sides, cell_type)
        assert panel.get_xlim() == axes[0].get_xlim()
    legend = [text.get_text() for text in axes[0].figure.legends[0].texts]
    assert legend == ["baseline", "model", "mean"]


def test_fold_without_cell_types(sides):
    one = [side[(side.obs["cell_type"] == "C1").to_numpy()].copy() for side in sides]
    title = fold(*one, cell_type_key=None, show=False)[0].get_title().split("\n")
    assert title == ["12 signatures", *lines_of(sides, "C1")[1:]]
    assert (
        fold(*sides, perturbation=NAMES[0], cell_type="C1", show=False)[0].get_title().startswith("C1, 1 signature\n")
    )


def test_fold_without_a_ratio_or_a_difference(sides):
    truth, pred, baseline = sides
    opposite = baseline.copy()
    opposite.X = -opposite.X
    title = fold(truth, pred, opposite, cell_type="C1", show=False)[0].get_title().split("\n")[1]
    model, base = correlations((truth, pred, opposite), "C1")
    assert title == f"mean {model.mean():z.2f} over {base.mean():z.2f}"
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        title = fold(truth, pred, pred, cell_type="C1", show=False)[0].get_title()
    assert title.endswith("\n0% improved, p = 1")
    assert "\n1.00-fold: " in title


def test_fold_writes_no_p_value_of_zero(sides, monkeypatch):
    module = fold.__globals__
    monkeypatch.setitem(module, "wilcoxon", lambda difference: SimpleNamespace(pvalue=0.0))
    assert fold(*sides, cell_type="C1", show=False)[0].get_title().endswith("improved, p < 1e-99")


def test_fold_errors(sides):
    truth, pred, baseline = sides
    with pytest.raises(ValueError, match="kind='violin' must be one of scatter, histogram"):
        fold(*sides, kind="violin")
    with pytest.raises(TypeError, match="baseline must be an AnnData of signatures, but got dict"):
        fold(truth, pred, {"copy": baseline})
    part = baseline[(baseline.obs["cell_type"] == "C2").to_numpy()].copy()
    with pytest.raises(
        ValueError, match="baseline has no signatures of 12 of the 24 predicted conditions: 'D0029 in C1'"
    ):
        fold(truth, pred, part)
    constant = truth.copy()
    constant.X[(truth.obs["perturbation"] == NAMES[0]).to_numpy()] = 2.0
    with pytest.raises(ValueError, match="truth has the same value for all genes in 2 signatures, .*: 'D0029 in C1', "):
        fold(constant, pred, baseline)
    assert not plt.get_fignums()


# latent_agreement


@pytest.fixture
def agreement():
    rng = np.random.default_rng(0)
    first = rng.normal(size=(9, 12))
    values = np.corrcoef(first, first + 1.2 * rng.normal(size=first.shape))[:9, 9:]
    names = [f"drug {i}" for i in range(9)]
    return pd.DataFrame(values, index=pd.Index(names, name="C1"), columns=pd.Index(names, name="C2"))


def test_agreement(agreement):
    panel = tv.pl.latent_agreement(agreement, show=False)
    values = agreement.to_numpy()
    np.testing.assert_array_equal(panel.images[0].get_array(), values)
    limit = np.abs(values).max()
    assert panel.images[0].get_clim() == (-limit, limit)
    n = len(values)
    same = np.mean([values[i, i] for i in range(n)])
    other = np.mean([values[i, j] for i in range(n) for j in range(n) if i != j])
    share = np.mean([values[i].argmax() == i for i in range(n)])
    assert 0 < share < 1
    assert panel.get_title().split("\n") == [
        f"same perturbation {same:z.2f}, others {other:z.2f}",
        f"largest in its row: {share:.0%} (chance 11%)",
    ]
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("9 perturbations in C2", "9 perturbations in C1")
    for labels in (panel.get_xticklabels(), panel.get_yticklabels()):
        assert [text.get_text() for text in labels] == list(agreement.index)
    assert panel.images[0].colorbar.ax.get_ylabel() == "Pearson correlation"


def test_agreement_matches_columns_by_name(agreement):
    expected = tv.pl.latent_agreement(agreement, show=False)
    panel = tv.pl.latent_agreement(agreement.iloc[:, ::-1], show=False)
    np.testing.assert_array_equal(panel.images[0].get_array(), expected.images[0].get_array())
    assert panel.get_title() == expected.get_title()
    assert [text.get_text() for text in panel.get_xticklabels()] == list(agreement.index)


def test_agreement_of_equal_values_is_chance():
    names = list("abcd")
    panel = tv.pl.latent_agreement(pd.DataFrame(0.5, index=names, columns=names), show=False)
    assert panel.get_title().split("\n")[1] == "largest in its row: 25% (chance 25%)"
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("4 perturbations", "4 perturbations")
    panel = tv.pl.latent_agreement(pd.DataFrame(0, index=names, columns=names), show=False)
    assert panel.images[0].get_clim() == (-1, 1)


@pytest.mark.parametrize(("n", "size", "named"), [(45, 10, True), (45, 14, True), (120, 10, False)])
def test_agreement_names_perturbations_where_the_names_fit(n, size, named):
    names = [f"a long name of a drug {i}" for i in range(n)]
    table = pd.DataFrame(np.random.default_rng(0).uniform(-1, 1, (n, n)), index=names, columns=names)
    with plt.rc_context({"font.size": size}):
        panel = tv.pl.latent_agreement(table, show=False)
        panel.figure.canvas.draw()
    for labels in (panel.get_xticklabels(), panel.get_yticklabels()):
        assert len(labels) == (n if named else 0)
        assert not overlapping(labels)
    small = tv.pl.latent_agreement(table, ax=plt.subplots(figsize=(2, 2))[1], show=False)
    assert not len(small.get_xticks())
    assert not len(small.get_yticks())


def test_agreement_errors(agreement):
    def draw(table):
        return tv.pl.latent_agreement(table)

    with pytest.raises(TypeError, match="agreement must be a pandas.DataFrame, but got ndarray"):
        draw(agreement.to_numpy())
    with pytest.raises(ValueError, match="agreement is empty"):
        draw(agreement.iloc[:0])
    with pytest.raises(ValueError, match="at least two perturbations, but has one"):
        draw(agreement.iloc[:1, :1])
    with pytest.raises(ValueError, match="same perturbations .*, but 2 are only in its columns: 'drug 0', 'drug 1'"):
        draw(agreement.iloc[2:])
    with pytest.raises(ValueError, match="same perturbations .*, but 1 are only in its rows: 'drug 8'"):
        draw(agreement.iloc[:, :-1])
    for axis in ("rows", "columns"):
        repeated = agreement.rename(**{"index" if axis == "rows" else axis: {"drug 1": "drug 0"}})
        with pytest.raises(ValueError, match=f"agreement has {axis} that repeat: 'drug 0'"):
            draw(repeated)
    bad = agreement.copy()
    bad.iloc[2, 5] = np.nan
    with pytest.raises(ValueError, match="missing or infinite values in 1 of its rows: 'drug 2'"):
        draw(bad)
    with pytest.raises(ValueError, match="must hold correlations, from -1 to 1, but its values go from "):
        draw(3 * agreement)
    with pytest.raises(ValueError, match="must hold numbers only"):
        draw(agreement.astype(str) + "x")
    with pytest.raises(ValueError, match="an Axes for each of the 1 matrix, but holds 2"):
        tv.pl.latent_agreement(agreement, ax=plt.subplots(1, 2)[1])
    plt.close("all")


# what the three of signatures have in common


def draw(function, sides, **kwargs):
    chosen = {"perturbation": NAMES, "cell_type": "C1", "show": False, **kwargs}
    return function(*(sides[:2] if function is scatter else sides), **chosen)


FUNCTIONS = pytest.mark.parametrize("function", [strips, scatter, fold])


def data_of(axes):
    """What is drawn, as numbers."""
    images = [np.ravel(image.get_array()) for panel in axes for image in panel.images]
    points = [np.ravel(own.get_offsets()) for panel in axes for own in panel.collections]
    return np.concatenate([*images, *points])


@FUNCTIONS
@pytest.mark.usefixtures("no_layout")
def test_choice_of_signatures(sides, function):
    truth, pred, baseline = sides
    chosen = pred.obs["perturbation"].isin(NAMES) & (pred.obs["cell_type"] == "C1")
    expected = draw(function, (truth, pred[chosen.to_numpy()].copy(), baseline), perturbation=None, cell_type=None)
    np.testing.assert_array_equal(data_of(draw(function, sides, perturbation=NAMES[::-1])), data_of(expected))
    with pytest.raises(KeyError, match="perturbation not in pred: 'aspirin'. Known: 'D0029', 'D0030', "):
        draw(function, sides, perturbation=["D0029", "aspirin"])
    with pytest.raises(KeyError, match="cell_type not in pred: 'C3'. Known: 'C1', 'C2'"):
        draw(function, sides, cell_type="C3")
    with pytest.raises(ValueError, match="perturbation must name at least one, but is empty"):
        draw(function, sides, perturbation=[])
    with pytest.raises(ValueError, match="cell_type='C1' cannot be chosen, since cell_type_key=None"):
        draw(function, sides, cell_type_key=None)
    gap = pred[~((pred.obs["perturbation"] == "D0029") & (pred.obs["cell_type"] == "C1")).to_numpy()].copy()
    with pytest.raises(
        ValueError, match="no signature of perturbation='D0029' in cell_type='C1'. Its signatures: 'D0029 in C2'"
    ):
        draw(function, (truth, gap, baseline), perturbation="D0029")


@FUNCTIONS
def test_bad_input(sides, function):
    truth, pred, baseline = sides
    for i, name in enumerate(("truth", "pred", "baseline")):
        if name == "baseline" and function is scatter:
            continue

        def replaced(other, i=i):
            return [other if j == i else side for j, side in enumerate(sides)]

        own = sides[i]
        with pytest.raises(TypeError, match=f"{name} must be an AnnData of signatures, but got ndarray"):
            draw(function, replaced(own.X))
        with pytest.raises(ValueError, match=f"{name} has no signatures"):
            draw(function, replaced(own[:0].copy()))
        for key in ("perturbation", "cell_type"):
            without = own.copy()
            del without.obs[key]
            with pytest.raises(KeyError, match=rf"{key}_key='{key}' is not in {name}.obs. Columns: "):
                draw(function, replaced(without))
            unknown = own.copy()
            unknown.obs[key] = unknown.obs[key].astype(object)
            unknown.obs.iloc[0, list(unknown.obs).index(key)] = None
            with pytest.raises(ValueError, match=rf"{name}.obs\['{key}'\] is missing for 1 cells"):
                draw(function, replaced(unknown))
        broken = own.copy()
        broken.X[-1, 0] = np.nan
        with pytest.raises(ValueError, match=f"{name}.X has missing or infinite values"):
            draw(function, replaced(broken))
        if name != "truth":
            fewer = own[:, sorted(own.var_names)[2:]].copy()
            with pytest.raises(ValueError, match=f"2 of the 30 genes of truth are missing in {name}: 'G0001', 'G0002'"):
                draw(function, replaced(fewer))
    with pytest.raises(TypeError, match="pred must be an AnnData of signatures, but got NoneType"):
        draw(function, (truth, None, baseline))
    rows = (truth.obs["perturbation"] != NAMES[0]).to_numpy()
    with pytest.raises(ValueError, match="truth has no signatures of 1 of the 2 predicted conditions: 'D0029 in C1'"):
        draw(function, (truth[rows].copy(), pred, baseline))
    with pytest.raises(KeyError, match="layer='z' is not in truth.layers. Layers: 'expected'"):
        draw(function, sides, layer="z")
    repeated = truth.copy()
    repeated.var_names = ["G0001", *repeated.var_names[:-1]]
    with pytest.raises(ValueError, match="truth.var_names must be unique, but these repeat: 'G0001'"):
        draw(function, (repeated, pred, baseline))
    with pytest.raises(ValueError, match="Profiles need at least 2 genes"):
        draw(function, [side[:, ["G0001"]].copy() for side in sides])
    with pytest.raises(ValueError, match="ncols=0"):
        draw(function, sides, ncols=0)
    if function is not fold:
        with pytest.raises(ValueError, match="pred has 2 signatures, and at most 1 can be drawn. Choose with perturb"):
            draw(function, sides, max_panels=1)
        with pytest.raises(ValueError, match="max_panels=0 must be at least 1"):
            draw(function, sides, max_panels=0)
    assert not plt.get_fignums()  # no empty figure stays behind
    n, what = (1, "cell types") if function is fold else (2, "signatures")
    with pytest.raises(ValueError, match=f"an Axes for each of the {n} {what}, but holds 3"):
        draw(function, sides, ax=plt.subplots(1, 3)[1])


@pytest.fixture
def no_layout(monkeypatch):
    """To lay a figure out is most of the time, and does not change what is drawn in it."""
    monkeypatch.setattr("transverse.pl._fit._lay_out", lambda figure: None)


@FUNCTIONS
@pytest.mark.usefixtures("no_layout")
@pytest.mark.parametrize("kind", ["layer", "sparse", "view", "backed", "replicates"])
def test_forms_of_signatures_are_alike(sides, function, kind, tmp_path):
    truth, pred, baseline = (side.copy() for side in sides)
    expected = data_of(draw(function, sides))
    if kind == "layer":
        truth.layers["z"] = truth.X.copy()
        truth.X[:] = 0
    elif kind == "sparse":
        truth.X, pred.X = sp.csr_matrix(truth.X), sp.csc_matrix(pred.X)
    elif kind == "view":
        truth, pred, baseline = (side[::-1] for side in (truth, pred, baseline))
    elif kind == "backed":
        truth.write_h5ad(tmp_path / "truth.h5ad")
        truth = ad.read_h5ad(tmp_path / "truth.h5ad", backed="r")
    else:
        low, high = truth.copy(), truth.copy()
        low.X, high.X = truth.X - 0.5, truth.X + 0.5
        truth = ad.concat([low, high], index_unique="-")
    found = data_of(draw(function, (truth, pred, baseline), layer="z" if kind == "layer" else None))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    if kind == "backed":
        truth.file.close()


@pytest.fixture(params=["strips", "scatter", "points", "histogram", "agreement"])
def case(request, sides, agreement):
    """A figure of one panel, as a function of the other arguments, and its input."""
    chosen = {"perturbation": NAMES[0], "cell_type": "C1"}
    function, args, options = {
        "strips": (strips, sides, chosen),
        "scatter": (scatter, sides[:2], chosen),
        "points": (fold, sides, {"cell_type": "C1"}),
        "histogram": (fold, sides, {"cell_type": "C1", "kind": "histogram"}),
        "agreement": (tv.pl.latent_agreement, (agreement,), {}),
    }[request.param]
    return lambda **kwargs: np.ravel(function(*args, **{**options, **kwargs}))[0], args


def copies_of(args):
    return [arg.copy() for arg in args]


def assert_same(args, copies):
    for arg, copy in zip(args, copies, strict=True):
        if isinstance(arg, pd.DataFrame):
            pd.testing.assert_frame_equal(arg, copy)
            continue
        np.testing.assert_array_equal(arg.X, copy.X)
        for frame in ("obs", "var"):
            pd.testing.assert_frame_equal(getattr(arg, frame), getattr(copy, frame))
        for key in ("layers", "uns", "obsm"):
            assert list(getattr(arg, key)) == list(getattr(copy, key))


def test_objects_own_axes_and_save(case, tmp_path):
    function, args = case
    before, state = copies_of(args), np.random.get_state()[1].copy()
    figure, own = plt.subplots()
    assert function(ax=own, show=False, save=tmp_path / "figure.pdf") is own
    assert (tmp_path / "figure.pdf").stat().st_size > 1000
    assert plt.get_fignums() == [figure.number]
    assert own.has_data()
    assert not figure.legends
    function(show=False, save=tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000
    assert_same(args, before)
    np.testing.assert_array_equal(np.random.get_state()[1], state)


def test_subfigure(case, tmp_path):
    function, _ = case
    subfigure = plt.figure(figsize=(9, 4)).subfigures(1, 2)[0]
    panel = function(ax=subfigure.subplots(), show=False, save=tmp_path / "figure.png")
    assert (tmp_path / "figure.png").exists()
    subfigure.figure.canvas.draw()
    assert panel.title.get_window_extent().x1 <= subfigure.bbox.x1


@pytest.mark.parametrize(
    ("show", "own_axes", "autoshow", "expected"),
    [
        (False, False, True, 0),
        (True, True, False, 1),
        (None, False, True, 1),
        (None, False, False, 0),
        (None, True, True, 0),
    ],
)
def test_show(case, monkeypatch, show, own_axes, autoshow, expected):
    function, _ = case
    calls = []
    monkeypatch.setattr(plt, "show", lambda *args, **kwargs: calls.append(1))
    monkeypatch.setattr(sc, "settings", SimpleNamespace(autoshow=autoshow))
    function(show=show, ax=plt.subplots()[1] if own_axes else None)
    assert len(calls) == expected


# text that fits


def test_titles_of_responses_fit_at_a_larger_font():
    adata = tv.datasets.simulate_responses(
        n_contexts=2,
        n_perturbations=2,
        n_doubles=0,
        n_genes=60,
        n_cells_per_condition=10,
        n_control_cells_per_context=20,
    )
    is_control = (adata.obs["perturbation"] == "control").to_numpy()
    scores = is_control & (np.arange(adata.n_obs) % 2 == 0)
    train, preds = adata[~scores].copy(), []
    for name in ("P01", "P02"):
        for context in ("C1", "C2"):
            held = (train.obs["perturbation"] == name) & (train.obs["cell_type"] == context)
            preds.append(tv.baselines.MeanShift().fit(train[~held.to_numpy()].copy()).predict(name, context))
    args = adata[~is_control].copy(), ad.concat(preds, index_unique="-"), adata[scores].copy()
    sizes = []
    for size in (10, 14):
        with plt.rc_context({"font.size": size}):
            axes = tv.pl.prediction_scatter(*args, show=False)
            axes[0].figure.canvas.draw()
        assert len(axes) == 4
        assert not overlapping([panel.title for panel in axes])
        sizes.append({panel.title.get_fontsize() for panel in axes})
    assert sizes[0] == {10}
    (larger,) = sizes[1]
    assert 8 < larger < 14


@pytest.mark.parametrize("function", [scatter, fold])
def test_titles_of_signatures_fit_at_a_larger_font(sides, function):
    long = [side.copy() for side in sides]
    for side in long:
        side.obs["cell_type"] = "epithelial cells of " + side.obs["cell_type"].astype(str).astype(object)
    with plt.rc_context({"font.size": 14}):
        axes = draw(function, long, cell_type=None)
        axes[0].figure.canvas.draw()
    assert len(axes) > 1
    assert not overlapping([panel.title for panel in axes])
    for panel in axes:
        title = panel.title.get_window_extent()
        assert title.x0 >= 0
        assert title.x1 <= panel.figure.bbox.x1


def test_titles_that_fit_stay_as_they_are():
    axes = np.ravel(plt.subplots(2, 2, figsize=(8, 6))[1])
    for ax in axes:
        ax.set_title("short", fontsize=11)
    fit_titles(axes)
    assert {ax.title.get_fontsize() for ax in axes} == {11}
    axes[0].set_title("long " * 20, fontsize=11)
    fit_titles(axes[:1])  # keeps clear of its neighbour, which is not among those to fit
    box = axes[0].title.get_window_extent()
    assert box.x1 <= axes[1].get_window_extent().x0 + axes[1].get_window_extent().width / 2
    assert axes[1].title.get_fontsize() == 11
    assert 0 < axes[0].title.get_fontsize() < 11


def test_titles_need_not_keep_clear_of_colour_bars(agreement):
    panel = tv.pl.latent_agreement(agreement, ax=plt.subplots(figsize=(6, 5))[1], show=False)
    assert panel.title.get_fontsize() == 10


@pytest.mark.parametrize(("share", "named"), [(0.5, True), (0.95, False)])
def test_names_must_fit_beside_the_room_that_they_take(share, named):
    ax = plt.figure(figsize=(3, 3), layout="constrained").add_subplot()
    ax.set(xticks=[], yticks=[])
    ax.figure.canvas.draw()
    n = int(share * ax.get_window_extent().width * 72 / ax.figure.dpi / NAME_STEP)
    ax.imshow(np.zeros((n, n)))
    names = ["a long name"] * n
    assert name_where_they_fit([ax], [names], [names]) == [named]
    assert len(ax.get_xticks()) == len(ax.get_yticks()) == (n if named else 0)


def test_legend_takes_as_many_rows_as_it_needs():
    heights = []
    for width, ncols in ((9, 3), (2.2, 2), (1.1, 1)):
        figure = plt.figure(figsize=(width, 3), layout="constrained")
        ax = figure.add_subplot()
        handles = ax.plot(np.eye(3))
        for handle, label in zip(handles, ("one", "two", "three"), strict=True):
            handle.set_label(label)
        legend_below([ax], handles)
        (legend,) = figure.legends
        figure.canvas.draw()
        assert len({round(text.get_window_extent().x0) for text in legend.texts}) == ncols
        assert legend.get_window_extent().width <= figure.bbox.width
        heights.append(figure.get_figheight())
    assert heights[0] == 3
    assert sorted(heights) == heights
