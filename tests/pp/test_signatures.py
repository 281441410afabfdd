"""Signatures: the statistics against written-out ones, planted responses, and what is compared with what."""

import warnings
from contextlib import nullcontext

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal
from scipy import sparse, special, stats

import transverse as tv
from transverse.pp._signature_statistics import moderate, trigamma_inverse

N_GENES = 12
METHODS = ("lfc", "zscore", "moderated")


def make(n=240, seed=0):
    """Cells of three drugs and controls in two cell types, batches, doses and donors; the last two genes are special."""
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame(
        {
            "perturbation": rng.choice(["control", "a", "b", "c"], n, p=[0.4, 0.2, 0.2, 0.2]),
            "cell_type": rng.choice(["T", "B"], n),
            "batch": rng.choice(["b1", "b2"], n, p=[0.6, 0.4]),
            "dose": rng.choice([0.1, 10.0], n),
            "time": rng.choice([6, 24], n),
            "donor": rng.choice(["d1", "d2", "d3"], n),
            "type": "compound",
        },
        index=[f"cell {i}" for i in range(n)],
    )
    is_control = obs["perturbation"] == "control"
    obs.loc[is_control, "dose"] = np.nan
    obs.loc[is_control, "type"] = "vehicle"
    obs["perturbation"] = obs["perturbation"].astype("category")
    counts = rng.poisson(rng.gamma(2, 2, N_GENES), (n, N_GENES))
    counts[:, -2] = 0
    counts[obs["perturbation"] == "a", 0] += rng.poisson(8, int((obs["perturbation"] == "a").sum()))
    counts[:, 1] += 1  # no cell is empty
    logged = np.log1p(counts * 1e4 / counts.sum(1, keepdims=True))
    logged[:, -1] = 0.3
    var = pd.DataFrame({"symbol": [f"s{i}" for i in range(N_GENES)]}, index=[f"g{i}" for i in range(N_GENES)])
    layers = {"counts": sparse.csr_matrix(counts.astype(np.float32))}
    return ad.AnnData(logged, obs=obs, var=var, layers=layers, uns={"kept": [1, 2]})


@pytest.fixture
def adata():
    return make()


def signatures(adata, method="lfc", **kwargs):
    kwargs.setdefault("min_cells", 1)
    return tv.pp.signatures(adata, method=method, **kwargs)


def rows_of(adata, perturbation, cell_type, **where):
    keep = (adata.obs["perturbation"] == perturbation) & (adata.obs["cell_type"] == cell_type)
    for key, value in where.items():
        keep &= adata.obs[key] == value
    return np.asarray(adata.X)[keep.to_numpy()]


def assert_row(sig, name, expected, **kwargs):
    np.testing.assert_allclose(np.asarray(sig[name].X).ravel(), expected, rtol=2e-5, atol=1e-6, **kwargs)


def writable_strings():
    """The strings of pandas 3 are written only if one asks for it, and older versions of anndata have no such setting."""
    if hasattr(ad.settings, "allow_write_nullable_strings"):
        return ad.settings.override(allow_write_nullable_strings=True)
    return nullcontext()


def with_pseudobulk(adata, by):
    """Means of the cells that are alike in all columns of ``by``, by hand."""
    groups = adata.obs.groupby(by, observed=True, dropna=False).indices
    rows = [np.asarray(adata.X)[cells].mean(0) for cells in groups.values()]
    obs = pd.DataFrame([adata.obs[by].iloc[cells[0]] for cells in groups.values()]).reset_index(drop=True)
    obs.index = obs.index.astype(str)
    return ad.AnnData(np.array(rows), obs=obs, var=adata.var.copy())


# statistics


def test_lfc(adata):
    sig = signatures(adata)
    assert sig.obs_names.tolist() == [f"{p}|{c}" for p in "abc" for c in "BT"]
    for name in sig.obs_names:
        p, c = name.split("|")
        assert_row(sig, name, rows_of(adata, p, c).mean(0) - rows_of(adata, "control", c).mean(0))


def test_zscore_is_welchs(adata):
    sig = signatures(adata, "zscore")
    for name in sig.obs_names:
        p, c = name.split("|")
        with np.errstate(invalid="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = stats.ttest_ind(rows_of(adata, p, c), rows_of(adata, "control", c), equal_var=False).statistic
        found[-2:] = 0  # constant
        assert_row(sig, name, found)
    assert abs(sig["a|T"].X[0, 0]) > 3


def test_zscore_of_a_gene_constant_at_two_values(adata):
    adata.X[:, -1] = np.where(adata.obs["perturbation"] == "a", 0.1, 0.3)
    assert signatures(adata, "zscore").X[0, -1] == 0
    assert signatures(adata).X[0, -1] == pytest.approx(-0.2)


def limma(groups, treated, control):
    """The moderated t statistic of a contrast of two groups in a one-way layout, and the prior, with other means."""
    df = sum(len(rows) - 1 for rows in groups.values())
    s2 = sum(((rows - rows.mean(0)) ** 2).sum(0) for rows in groups.values()) / df
    logs = np.log(s2[s2 > 1e-20])
    mean = logs.mean() - special.digamma(df / 2) + np.log(df / 2)
    spread = logs.var(ddof=1) - special.polygamma(1, df / 2)
    if spread > 0:
        # bisection in place of Newton's method
        low, high = 1e-6, 1e6
        for _ in range(200):
            middle = np.sqrt(low * high)
            low, high = (middle, high) if special.polygamma(1, middle) > spread else (low, middle)
        d0 = 2 * low
        s02 = np.exp(mean + special.digamma(d0 / 2) - np.log(d0 / 2))
        post = (d0 * s02 + df * s2) / (d0 + df)
    else:
        d0, s02 = np.inf, np.exp(mean)
        post = np.full_like(s2, s02)
    x, y = groups[treated], groups[control]
    return (x.mean(0) - y.mean(0)) / np.sqrt(post * (1 / len(x) + 1 / len(y))), df, d0, s02


def test_moderated_is_limmas(adata):
    sig = signatures(adata, "moderated")
    for c in "BT":
        groups = {p: rows_of(adata, p, c) for p in ("control", "a", "b", "c")}
        for p in "abc":
            expected, *prior = limma(groups, p, "control")
            expected[-1] = 0  # a constant gene has no rounding
            assert_row(sig, f"{p}|{c}", expected)
        np.testing.assert_allclose(sig.uns["signatures"]["prior"].loc[c], prior, rtol=1e-6)
    assert sig.uns["signatures"]["prior"]["df_prior"].between(0, 1e3).all()


def test_moderated_with_equal_variances_has_an_infinite_prior():
    rng = np.random.default_rng(1)
    x = rng.normal(1, 0.5, (40, 30))
    x[:20] = 1 + (x[:20] - x[:20].mean(0)) / x[:20].std(0, ddof=1)  # variance 1 on both sides
    x[20:] = 1 + (x[20:] - x[20:].mean(0)) / x[20:].std(0, ddof=1)
    x[:20, 0] += 1
    obs = pd.DataFrame(
        {"perturbation": ["a"] * 20 + ["control"] * 20, "cell_type": "T"}, index=list(map(str, range(40)))
    )
    sig = signatures(ad.AnnData(x, obs=obs), "moderated")
    prior = sig.uns["signatures"]["prior"].loc["T"]
    assert prior["df_prior"] == np.inf
    assert prior["variance"] == pytest.approx(np.exp(-special.digamma(19) + np.log(19)))
    assert sig.X[0, 0] == pytest.approx(1 / np.sqrt(prior["variance"] / 10), rel=1e-5)


@pytest.mark.parametrize(("d0", "s02", "df"), [(6.0, 0.3, 4), (2.5, 2.0, 30)])
def test_planted_prior_is_found(d0, s02, df):
    rng = np.random.default_rng(0)
    variance = d0 * s02 / rng.chisquare(d0, 20_000)
    sample = variance * rng.chisquare(df, 20_000) / df
    posterior, prior = moderate(sample, df)
    assert prior.df_prior == pytest.approx(d0, rel=0.06)
    assert prior.variance == pytest.approx(s02, rel=0.03)
    assert ((posterior - variance) ** 2 / variance**2).mean() < ((sample - variance) ** 2 / variance**2).mean()
    # genes without variance tell the prior nothing
    zeros = np.concatenate([sample, np.zeros(5000)])
    assert moderate(zeros, df)[1] == prior
    assert (moderate(zeros, df)[0][-5000:] > 0).all()


@pytest.mark.parametrize("x", [1e-9, 1e-7, 1e-3, 0.1, 1.0, 30.0, 1e5, 1e9])
def test_trigamma_inverse(x):
    assert special.polygamma(1, trigamma_inverse(x)) == pytest.approx(x, rel=1e-6)


def test_moderated_can_do_with_one_treated_observation(adata):
    only = np.flatnonzero((adata.obs["perturbation"] == "a") & (adata.obs["cell_type"] == "T"))
    adata = adata[~adata.obs_names.isin(adata.obs_names[only[1:]])].copy()
    sig = signatures(adata, "moderated")
    groups = {p: rows_of(adata, p, "T") for p in ("control", "a", "b", "c")}
    assert_row(sig, "a|T", np.append(limma(groups, "a", "control")[0][:-1], 0))


# planted truth


@pytest.mark.parametrize("how", ["log-normalised", "counts", "pseudobulk"])
def test_planted_responses(how):
    kwargs = {"n_contexts": 2, "n_perturbations": 4, "n_genes": 150, "replicate_sd": 0.05, "effect_share": 0.3}
    adata = tv.datasets.simulate_responses(**kwargs, n_cells_per_condition=80, missing_share=0.2)
    options = {"log-normalised": {}, "counts": {"layer": "counts", "counts": True}}
    options["pseudobulk"] = options["counts"] | {"replicate_key": "replicate"}
    measured = adata.obs.loc[adata.obs["perturbation"] != "control", ["perturbation", "cell_type"]].drop_duplicates()
    assert len(measured) < 8
    for method in METHODS:
        sig = tv.pp.signatures(adata, method=method, **options[how])
        assert len(sig) == len(measured)
        truth = [
            adata.varm["true_effects"][f"{c}|{p}"]
            for p, c in zip(sig.obs["perturbation"], sig.obs["cell_type"], strict=True)
        ]
        found = [np.corrcoef(x, y)[0, 1] for x, y in zip(sig.X, truth, strict=True)]
        # two replicates leave little to a standard error of their own
        assert np.mean(found) > (0.55 if (how, method) == ("pseudobulk", "zscore") else 0.85), (method, found)


# what is compared with what


@pytest.mark.parametrize("method", METHODS)
def test_batches(adata, method):
    adata.X[adata.obs["batch"] == "b2", :-2] += 2  # which controls of the same batch undo
    sig = signatures(adata, method, batch_key="batch")
    for name in sig.obs_names:
        p, c = name.split("|")
        pairs = [(rows_of(adata, p, c, batch=b), rows_of(adata, "control", c, batch=b)) for b in ("b1", "b2")]
        n = np.array([len(x) for x, _ in pairs])
        w = n / n.sum()
        change = sum(wb * (x.mean(0) - y.mean(0)) for wb, (x, y) in zip(w, pairs, strict=True))
        if method == "zscore":
            terms = [x.var(0, ddof=1) / len(x) + y.var(0, ddof=1) / len(y) for x, y in pairs]
            change[:-2] /= np.sqrt(w[0] ** 2 * terms[0] + w[1] ** 2 * terms[1])[:-2]
        elif method == "moderated":
            groups = {(q, b): rows_of(adata, q, c, batch=b) for q in ("control", "a", "b", "c") for b in ("b1", "b2")}
            _, df, d0, s02 = limma(groups, (p, "b1"), ("control", "b1"))
            s2 = sum(((x - x.mean(0)) ** 2).sum(0) for x in groups.values()) / df
            unscaled = sum(wb**2 * (1 / len(x) + 1 / len(y)) for wb, (x, y) in zip(w, pairs, strict=True))
            change /= np.sqrt((d0 * s02 + df * s2) / (d0 + df) * unscaled)
        change[-2:] = 0
        assert_row(sig, name, change)
    control = adata.obs["perturbation"] == "control"
    expected = [int((control & (adata.obs["cell_type"] == c)).sum()) for c in sig.obs["cell_type"]]
    assert sig.obs["n_controls"].tolist() == expected


def test_controls_of_a_batch_without_treated_cells_are_not_used(adata):
    adata.obs.loc[(adata.obs["perturbation"] == "a") & (adata.obs["batch"] == "b2"), "batch"] = "b1"
    sig = signatures(adata, batch_key="batch")
    assert_row(sig, "a|T", rows_of(adata, "a", "T").mean(0) - rows_of(adata, "control", "T", batch="b1").mean(0))
    assert sig.obs.loc["a|T", "n_controls"] == len(rows_of(adata, "control", "T", batch="b1"))


@pytest.mark.parametrize("method", METHODS)
def test_replicates_of_log_normalised_cells(adata, method):
    sig = signatures(adata, method, replicate_key="donor")
    bulk = with_pseudobulk(adata, ["perturbation", "cell_type", "donor"])
    np.testing.assert_allclose(sig.X, signatures(bulk, method).X, rtol=1e-4, atol=1e-6)
    assert (sig.obs["n_replicates"] == 3).all()
    cells = signatures(adata)
    assert_frame_equal(sig.obs.drop(columns="n_replicates"), cells.obs)
    assert sig.obs.columns.tolist() == [
        "perturbation",
        "cell_type",
        "n_cells",
        "n_controls",
        "n_replicates",
        "n_averaged",
    ]


def test_replicates_in_batches_and_levels(adata):
    kwargs = {"batch_key": "batch", "average_over": ["time"], "match_controls_on": ["time"]}
    sig = signatures(adata, replicate_key="donor", **kwargs)
    bulk = with_pseudobulk(adata, ["perturbation", "cell_type", "donor", "batch", "time"])
    by_hand = signatures(bulk, **kwargs)
    np.testing.assert_allclose(sig.X, by_hand.X, rtol=1e-4, atol=1e-6)
    assert sig.obs["n_replicates"].tolist() == by_hand.obs["n_cells"].tolist()


def test_pseudobulk_of_counts(adata):
    sig = signatures(adata, layer="counts", counts=True, replicate_key="donor", target_sum=1e3)
    counts = adata.layers["counts"].toarray()

    def profile(p, c):
        of = ((adata.obs["perturbation"] == p) & (adata.obs["cell_type"] == c)).to_numpy()
        sums = np.array([counts[of & (adata.obs["donor"] == d).to_numpy()].sum(0) for d in ("d1", "d2", "d3")])
        return np.log1p(sums / sums.sum(1, keepdims=True) * 1e3).mean(0)

    assert_row(sig, "b|T", profile("b", "T") - profile("control", "T"))


def test_counts_of_cells(adata):
    counts = adata.layers["counts"].toarray()
    adata.layers["logged"] = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)
    sig = signatures(adata, "zscore", layer="counts", counts=True)
    np.testing.assert_allclose(sig.X, signatures(adata, "zscore", layer="logged").X, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_averaging_over_levels(adata, method):
    sig = signatures(adata, method, average_over=["dose", "time"], match_controls_on=["time"])
    for name in sig.obs_names:
        p, c = name.split("|")
        levels, controls = [], {}
        for time in (6, 24):
            for dose in (0.1, 10.0):
                y = rows_of(adata, "control", c, time=time)
                x = rows_of(adata, p, c, time=time, dose=dose)
                value = x.mean(0) - y.mean(0)
                if method == "zscore":
                    value[:-2] /= np.sqrt(x.var(0, ddof=1) / len(x) + y.var(0, ddof=1) / len(y))[:-2]
                elif method == "moderated":
                    groups = {t: rows_of(adata, "control", c, time=t) for t in (6, 24)}
                    groups |= {
                        (q, t, d): rows_of(adata, q, c, time=t, dose=d)
                        for q in "abc"
                        for t in (6, 24)
                        for d in (0.1, 10.0)
                    }
                    value = limma(groups, (p, time, dose), time)[0]
                value[-2:] = 0
                levels.append(value)
                controls[time] = len(y)
        assert_row(sig, name, np.mean(levels, 0))
        assert sig.obs.loc[name, "n_averaged"] == 4
        assert sig.obs.loc[name, "n_controls"] == sum(controls.values())
        assert sig.obs.loc[name, "n_cells"] == len(rows_of(adata, p, c))
    assert sig.uns["signatures"]["scale"].endswith("averaged over dose, time")


def test_one_level_of_few_cells_is_left_out_of_the_average(adata):
    few = (adata.obs["perturbation"] == "a") & (adata.obs["cell_type"] == "T") & (adata.obs["dose"] == 10)
    drop = adata.obs_names[few][2:]
    adata = adata[~adata.obs_names.isin(drop)].copy()
    with pytest.warns(UserWarning, match=r"1 conditions have fewer than min_cells=3 cells .*'a\|T\|10.0'"):
        sig = signatures(adata, average_over=["dose"], min_cells=3)
    expected = rows_of(adata, "a", "T", dose=0.1).mean(0) - rows_of(adata, "control", "T").mean(0)
    assert_row(sig, "a|T", expected)
    assert sig.obs.loc["a|T", "n_averaged"] == 1
    left_out = sig.uns["signatures"]["left_out"]
    assert left_out.to_dict("records") == [{"perturbation": "a", "cell_type": "T", "dose": "10.0", "n_cells": 2}]


def test_the_type_of_a_perturbation_is_part_of_the_key(adata):
    flip = (adata.obs["perturbation"] == "a") & (adata.obs["dose"] == 10)
    adata.obs.loc[flip, "type"] = "shRNA"
    adata.obs.loc[adata.obs["perturbation"] == "control", "type"] = None
    sig = signatures(adata, pert_type_key="type")
    assert len(sig) == 8
    expected = rows_of(adata, "a", "T", type="shRNA").mean(0) - rows_of(adata, "control", "T").mean(0)
    assert_row(sig, "a|T|shRNA", expected)
    assert sig.obs["type"].tolist()[:4] == ["compound", "shRNA"] * 2
    assert "n_replicates" not in sig.obs


def test_min_cells(adata):
    few = np.flatnonzero((adata.obs["perturbation"] == "a") & (adata.obs["cell_type"] == "T"))
    adata = adata[np.setdiff1d(np.arange(adata.n_obs), few[5:])].copy()
    with pytest.warns(UserWarning, match="1 conditions have fewer than min_cells=6") as record:
        sig = signatures(adata, min_cells=6)
    assert len(record) == 1
    assert record[0].filename == __file__
    assert "a|T" not in sig.obs_names and "a|B" in sig.obs_names
    assert sig.uns["signatures"]["left_out"].index.tolist() == ["a|T"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(signatures(adata, min_cells=5).uns["signatures"]["left_out"]) == 0


def test_the_warning_lists_five():
    adata = make(60)
    adata.obs["perturbation"] = [f"p{i:02}" if i < 9 else ["q", "control"][i % 2] for i in range(60)]
    adata.obs["cell_type"] = "T"
    with pytest.warns(UserWarning, match=r"9 conditions .*'p04\|T', \.\.\. \(9 in all\)"):
        signatures(adata, min_cells=2)


def test_what_is_left_out_does_not_need_controls(adata):
    adata.obs.loc[adata.obs_names[:2], ["perturbation", "cell_type"]] = ["a", "NK"]
    with pytest.warns(UserWarning, match=r"a\|NK"):
        assert len(signatures(adata, "moderated", min_cells=3)) == 6


# input and output


@pytest.mark.parametrize("kwargs", [{}, {"replicate_key": "donor"}, {"layer": "counts", "counts": True}], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_sparse_dense_and_backed_are_equal(adata, tmp_path, monkeypatch, method, kwargs):
    adata.X = adata.X.astype(np.float32)
    forms = {"dense": adata, "csr": adata.copy(), "csc": adata.copy()}
    forms["csr"].X, forms["csc"].X = sparse.csr_matrix(adata.X), sparse.csc_matrix(adata.X)
    for name in ("dense", "csr"):
        with writable_strings():
            forms[name].write_h5ad(tmp_path / f"{name}.h5ad")
        forms[f"backed {name}"] = ad.read_h5ad(tmp_path / f"{name}.h5ad", backed="r")
    expected = signatures(adata, method, batch_key="batch", **kwargs)
    # many blocks
    monkeypatch.setattr("transverse.pp._signature_statistics._BLOCK_VALUES", 7 * N_GENES)
    for name, form in forms.items():
        found = signatures(form, method, batch_key="batch", **kwargs)
        assert isinstance(found.X, np.ndarray) and found.X.dtype == np.float32 and not found.isbacked
        np.testing.assert_allclose(found.X, expected.X, rtol=1e-5, atol=1e-6, err_msg=name)
        assert_frame_equal(found.obs, expected.obs)


def test_the_input_is_not_changed(adata):
    before = adata.copy()
    for method in METHODS:
        sig = signatures(adata, method, replicate_key="donor", average_over=["time"], pert_type_key="type")
        sig.var["new"] = 1
    signatures(adata, layer="counts", counts=True)
    assert_frame_equal(adata.obs, before.obs)
    assert_frame_equal(adata.var, before.var)
    np.testing.assert_array_equal(adata.X, before.X)
    np.testing.assert_array_equal(adata.layers["counts"].toarray(), before.layers["counts"].toarray())
    assert adata.uns == before.uns


def test_a_view_gives_the_same(adata):
    keep = adata.obs["cell_type"] == "T"
    np.testing.assert_allclose(signatures(adata[keep]).X, signatures(adata[keep].copy()).X)


@pytest.mark.parametrize("method", METHODS)
def test_round_trip(adata, tmp_path, method):
    few = np.flatnonzero((adata.obs["perturbation"] == "a") & (adata.obs["cell_type"] == "T"))
    adata = adata[np.setdiff1d(np.arange(adata.n_obs), few[2:])].copy()
    adata.var["family"] = pd.Categorical(["x", "y"] * (N_GENES // 2))
    options = [
        {"min_cells": 3, "pert_type_key": "type", "average_over": ["time"], "match_controls_on": ["time"]},
        {"layer": "counts", "counts": True, "replicate_key": "donor", "batch_key": None},
    ]
    for kwargs in options:
        if method == "zscore":
            kwargs["min_cells"] = 3
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            sig = signatures(adata, method, **kwargs)
        sig.write_h5ad(tmp_path / "sig.h5ad")
        again = ad.read_h5ad(tmp_path / "sig.h5ad")
        np.testing.assert_array_equal(again.X, sig.X)
        assert_frame_equal(again.obs, sig.obs, check_dtype=False, check_categorical=False, check_index_type=False)
        assert again.var_names.tolist() == adata.var_names.tolist()
        assert again.var["symbol"].tolist() == adata.var["symbol"].tolist()
        assert again.var["family"].tolist() == adata.var["family"].tolist()
        uns, written = sig.uns["signatures"], again.uns["signatures"]
        assert written["method"] == method and written["scale"] == uns["scale"]
        assert written["parameters"].keys() == uns["parameters"].keys()
        assert written["parameters"]["min_cells"] == uns["parameters"]["min_cells"]
        assert written["left_out"].index.tolist() == uns["left_out"].index.tolist()
        assert ("prior" in written) == (method == "moderated")
    # text as objects, with pandas 3 too
    left_out = sig.uns["signatures"]["left_out"]
    for text in (sig.obs["perturbation"].cat.categories, sig.obs_names, sig.var_names, sig.var["symbol"]):
        assert text.dtype == object
    assert sig.var["family"].cat.categories.dtype == left_out["perturbation"].dtype == left_out.index.dtype == object


def test_signatures_go_on_to_baselines_and_scores(adata):
    sig = signatures(adata)
    pred = tv.baselines.CopySource().fit(sig).predict(sig[sig.obs["cell_type"] == "T"].copy(), target="B")
    assert len(tv.metrics.signature_scores(sig, pred))


# refusals

BAD_ARGUMENTS = [
    ({"method": "t"}, ValueError, "method='t' must be one of 'lfc', 'zscore', 'moderated'"),
    ({"counts": "counts"}, TypeError, "counts must be True or False, but got 'counts'"),
    ({"target_sum": 0}, ValueError, "target_sum=0 must be a positive number"),
    ({"target_sum": np.inf}, ValueError, "target_sum=inf must be a positive number"),
    ({"min_cells": 0}, ValueError, "min_cells=0 must be a whole number of at least 1"),
    ({"min_cells": 2.5}, ValueError, "min_cells=2.5 must be a whole number"),
    ({"min_cells": True}, ValueError, "min_cells=True must be a whole number"),
    ({"average_over": "dose"}, TypeError, "average_over must be a list of columns, but got the string 'dose'"),
    ({"match_controls_on": "time"}, TypeError, "match_controls_on must be a list of columns"),
    ({"match_controls_on": ["time"]}, ValueError, r"match_controls_on must be among average_over=\[\], but has 'time'"),
    ({"perturbation_key": "drug"}, KeyError, "perturbation_key='drug' is not in adata.obs"),
    ({"cell_type_key": "line"}, KeyError, "cell_type_key='line' is not in adata.obs"),
    ({"batch_key": "plate"}, KeyError, "batch_key='plate' is not in adata.obs"),
    ({"replicate_key": "well"}, KeyError, "replicate_key='well' is not in adata.obs"),
    ({"average_over": ["hours"]}, KeyError, "average_over='hours' is not in adata.obs"),
    ({"pert_type_key": "kind"}, KeyError, "pert_type_key='kind' is not in adata.obs"),
    ({"layer": "logged"}, KeyError, "layer='logged' is not in adata.layers"),
    ({"control": "DMSO"}, ValueError, r"No cell has control='DMSO' in adata.obs\['perturbation'\]. Values: 'a', 'b'"),
    ({"batch_key": "cell_type"}, ValueError, "can be used for one thing only"),
    ({"average_over": ["dose"], "match_controls_on": ["dose"]}, ValueError, r"\(match_controls_on\) is missing for"),
    ({"min_cells": 1000}, ValueError, r"No condition has min_cells=1000 cells; the largest, '.\|.', has \d+. Lower"),
    ({"layer": "counts"}, ValueError, "must hold log-normalised values, but has whole numbers"),
    ({"counts": True}, ValueError, "must hold raw counts, but has fractions"),
]


@pytest.mark.parametrize(("kwargs", "error", "match"), BAD_ARGUMENTS, ids=lambda x: str(x)[:40])
def test_bad_arguments(adata, kwargs, error, match):
    with pytest.raises(error, match=match):
        signatures(adata, **kwargs)


def drop(adata, **where):
    keep = np.ones(adata.n_obs, dtype=bool)
    hit = ~keep
    for i, (key, value) in enumerate(where.items()):
        hit = (adata.obs[key] == value).to_numpy() & (hit if i else keep)
    return adata[~hit].copy()


def test_bad_data(adata):
    with pytest.raises(TypeError, match="adata must be an AnnData, but got DataFrame"):
        signatures(adata.obs)
    with pytest.raises(ValueError, match="adata is empty"):
        signatures(adata[:0])
    with pytest.raises(ValueError, match=r"All cells are controls: adata.obs\['perturbation'\] is 'control'"):
        signatures(adata[adata.obs["perturbation"] == "control"].copy())
    for axis in ("obs", "var"):
        double = adata.copy()
        names = getattr(double, f"{axis}_names").tolist()
        setattr(double, f"{axis}_names", [names[1], *names[1:]])
        with pytest.raises(ValueError, match=f"adata.{axis}_names must be unique, but these repeat: '{names[1]}'"):
            signatures(double)
    for key, argument in {"batch": "batch_key", "donor": "replicate_key", "perturbation": "perturbation_key"}.items():
        lacking = adata.copy()
        lacking.obs.loc[lacking.obs_names[3], key] = np.nan
        with pytest.raises(ValueError, match=rf"adata.obs\['{key}'\] \({argument}\) is missing for 1 cells: 'cell 3'"):
            signatures(lacking, **{argument: key})
    lacking = adata.copy()
    lacking.obs["dose"] = np.nan
    with pytest.raises(ValueError, match=r"adata.obs\['dose'\] \(average_over\) is missing for \d+ treated cells"):
        signatures(lacking, average_over=["dose"])
    bad = adata.copy()
    bad.X[3, 2] = np.nan
    with pytest.raises(ValueError, match=r"adata.X has missing or infinite values"):
        signatures(bad)
    bad.layers["counts"] = adata.layers["counts"].copy()
    bad.layers["counts"].data[0] = -1
    with pytest.raises(ValueError, match="has negative values"):
        signatures(bad, layer="counts", counts=True)
    bad.layers["counts"] = adata.layers["counts"].toarray()
    bad.layers["counts"][4] = 0
    with pytest.raises(ValueError, match="1 cells of adata have no counts on these genes: 'cell 4'"):
        signatures(bad, layer="counts", counts=True)


def test_missing_controls(adata):
    with pytest.raises(ValueError, match=r"These cell types have treated cells but no controls .*: 'T'\. Add controls"):
        signatures(drop(adata, perturbation="control", cell_type="T"), batch_key="batch")
    lacking = drop(adata, perturbation="control", cell_type="T", batch="b2")
    with pytest.raises(ValueError, match="no controls .*: 'cell_type T, batch b2'. Remove the cells, or match"):
        signatures(lacking, batch_key="batch")
    assert len(signatures(lacking)) == 6
    lacking = drop(adata, perturbation="control", cell_type="B", time=24)
    with pytest.raises(ValueError, match="no controls .*: 'cell_type B, time 24'"):
        signatures(lacking, average_over=["time"], match_controls_on=["time"])
    assert len(signatures(lacking, average_over=["time"])) == 6


def test_too_few_observations(adata):
    bulk = with_pseudobulk(adata, ["perturbation", "cell_type"])
    assert len(signatures(bulk)) == 6
    with pytest.raises(ValueError, match=r"at least two treated and two control cells .*: 'a\|B \(1 and 1\)'"):
        signatures(bulk, "zscore")
    with pytest.raises(ValueError, match="needs a condition with at least two cells in each cell type.*: 'B', 'T'"):
        signatures(bulk, "moderated")
    adata.obs["donor"] = "d1"
    with pytest.raises(ValueError, match=r"two control replicates .*: 'a\|B \(1 and 1\)'"):
        signatures(adata, "zscore", replicate_key="donor")
    with pytest.raises(ValueError, match="at least two replicates in each cell type"):
        signatures(adata, "moderated", replicate_key="donor")
    with pytest.raises(ValueError, match="cannot be used for cell type 'B': the variance of 0 genes is above 0"):
        signatures(adata[:, -2:].copy(), "moderated")


# averages of signatures


@pytest.fixture
def many():
    rng = np.random.default_rng(0)
    sig = tv.datasets.simulate_signatures(
        n_drugs=4, n_cell_types=3, n_genes=6, n_mechanisms=2, n_replicates=3, missing_share=0.3
    )
    sig.obs["dose"] = rng.choice([1.0, 10.0], len(sig))
    sig.obs["type"] = np.where(sig.obs["replicate"] == "3", "shRNA", "compound")
    return sig


def test_average_signatures(many):
    before = many.copy()
    mean = tv.pp.average_signatures(many)
    expected = pd.DataFrame(many.X, index=many.obs_names).groupby(
        [many.obs["perturbation"].astype(str), many.obs["cell_type"].astype(str)]
    )
    np.testing.assert_allclose(mean.X, expected.mean().to_numpy(), rtol=1e-5, atol=1e-6)
    assert mean.obs_names.tolist() == ["|".join(key) for key in expected.mean().index]
    assert mean.obs.columns.tolist() == ["perturbation", "cell_type", "strength", "n_averaged"]
    assert (mean.obs["n_averaged"] == 3).all() and len(mean) < 12
    assert mean.X.dtype == np.float32 and mean.var["responsiveness"].equals(many.var["responsiveness"])
    assert mean.uns["signatures"]["scale"] == "that of the input"
    assert_frame_equal(many.obs, before.obs)
    np.testing.assert_array_equal(many.X, before.X)
    again = tv.pp.average_signatures(mean)
    np.testing.assert_array_equal(again.X, mean.X)
    assert (again.obs["n_averaged"] == 1).all()


def test_average_signatures_by_type_of_a_layer_sparse_and_backed(many, tmp_path):
    kwargs = {"pert_type_key": "type", "layer": "expected"}
    expected = tv.pp.average_signatures(many, **kwargs)
    assert sorted(set(expected.obs["n_averaged"])) == [1, 2]
    assert expected.obs_names[0].count("|") == 2
    many.layers["expected"] = sparse.csr_matrix(many.layers["expected"])
    with writable_strings():
        many.write_h5ad(tmp_path / "many.h5ad")
    for form in (many, ad.read_h5ad(tmp_path / "many.h5ad", backed="r")):
        found = tv.pp.average_signatures(form, **kwargs)
        np.testing.assert_allclose(found.X, expected.X, rtol=1e-6)
        found.write_h5ad(tmp_path / "mean.h5ad")
        again = ad.read_h5ad(tmp_path / "mean.h5ad")
        assert again.uns["signatures"]["parameters"]["layer"] == "expected"
        assert again.obs["type"].tolist() == expected.obs["type"].tolist()


def test_duplicate_rows_are_what_averaging_is_for(many):
    many.obs_names = ["twice"] * len(many)
    assert len(tv.pp.average_signatures(many)) < len(many)


def test_average_signatures_refuses(many):
    average = tv.pp.average_signatures
    with pytest.raises(TypeError, match="adata must be an AnnData"):
        average(many.to_df())
    with pytest.raises(ValueError, match="adata is empty: it has 0 signatures"):
        average(many[:0])
    with pytest.raises(KeyError, match="pert_type_key='kind' is not in adata.obs"):
        average(many, pert_type_key="kind")
    with pytest.raises(KeyError, match="layer='z' is not in adata.layers"):
        average(many, layer="z")
    with pytest.raises(ValueError, match="can be used for one thing only"):
        average(many, pert_type_key="cell_type")
    lacking = many.copy()
    lacking.obs.loc[lacking.obs_names[0], "perturbation"] = np.nan
    with pytest.raises(ValueError, match=r"adata.obs\['perturbation'\] is missing for 1 cells"):
        average(lacking)
    lacking = many.copy()
    lacking.X[0, 0] = np.nan
    with pytest.raises(ValueError, match="adata.X has missing or infinite values"):
        average(lacking)
    many.var_names = ["g"] * many.n_vars
    with pytest.raises(ValueError, match="adata.var_names must be unique"):
        average(many)
