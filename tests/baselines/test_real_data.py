"""What the baselines reach on real data, within the spread between divisions of the control cells."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc

import transverse as tv


def means(table, method):
    rows = table[(table["method"] == method) & (table["genes"] == "all")]
    return rows.set_index(["of", "metric"])["mean"]


@pytest.mark.slow
def test_interferon_in_a_held_out_cell_type(real_data_dir):
    adata = ad.read_h5ad(real_data_dir / "human_pbmc_ifnb.h5ad")
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    keys = {"perturbation_key": "group_id", "control": "ctrl", "context_key": "cluster_id"}
    table = tv.benchmark(adata, splits=tv.pp.leave_out(adata, by="context", **keys), n_ceiling_splits=3, **keys)
    expected = {
        "no change": (0.719, 0.0, -0.02),
        "mean shift": (0.880, 0.809, 0.466),
        "nearest context": (0.928, 0.848, 0.688),
        "similarity-weighted shift": (0.933, 0.862, 0.713),
        "split half": (0.973, 0.857, 0.710),
    }
    for method, values in expected.items():
        found = means(table, method)
        found = [found["expression", "r2"], found["change", "pearson"], found["change", "r2"]]
        np.testing.assert_allclose(found, values, atol=0.03)


def test_shared_controls_make_noise_look_like_skill(real_data_dir):
    adata = ad.read_h5ad(real_data_dir / "crispr_four_lines.h5ad")
    adata = adata[adata.obs["cell_type"] != "k562"].copy()
    is_control = (adata.obs["perturbation"] == "control").to_numpy()
    rng = np.random.default_rng(0)
    scores = {"shared": [], "apart": []}
    for line in adata.obs["cell_type"].unique():
        here = (adata.obs["cell_type"] == line).to_numpy()
        predicting = np.zeros(adata.n_obs, dtype=bool)
        cells = rng.permutation(np.flatnonzero(here & is_control))
        predicting[cells[: len(cells) // 2]] = True
        for name, train, control in (
            ("shared", here, here & is_control),
            ("apart", here & (~is_control | predicting), here & is_control & ~predicting),
        ):
            baseline = tv.baselines.MeanPerturbation().fit(adata[train])
            for perturbation in adata.obs["perturbation"][here & ~is_control].unique():
                truth = adata[here & (adata.obs["perturbation"] == perturbation).to_numpy()]
                pred = baseline.predict(perturbation, line)
                scores[name].append(
                    tv.metrics.response_scores(truth, pred, adata[control], allow_shared_controls=name == "shared")
                )
    pearson = {
        name: pd.concat(tables).query("of == 'change' and genes == 'all' and metric == 'pearson'")["value"].mean()
        for name, tables in scores.items()
    }
    assert pearson["shared"] == pytest.approx(0.63, abs=0.03)
    assert abs(pearson["apart"]) < 0.15


@pytest.mark.slow
def test_signatures_of_a_held_out_line(real_data_dir):
    adata = tv.datasets.read_gctx(real_data_dir / "l1000_modz.gctx")
    splits = tv.pp.leave_out(adata, by="context", control=None, delimiter=None)
    few = dict(list(splits.items())[::6])
    table, scores = tv.benchmark(
        adata, task="signatures", splits=few, n_ceiling_splits=2, n_resamples=10, return_scores=True
    )
    pearson = scores.query("metric == 'pearson' and genes == 'all'").groupby("method")["value"].mean()
    # over all lines: mean of the sources 0.289, drug ignored 0.256, ridge 0.298, one source 0.110
    assert 0.2 < pearson["mean of the sources"] < 0.4
    assert abs(pearson["ridge"] - pearson["mean of the sources"]) < 0.03
    assert pearson["copy of the source"] < pearson["mean signature"] < pearson["mean of the sources"] + 0.03
