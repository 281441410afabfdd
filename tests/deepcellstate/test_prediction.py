"""Predictions: derived again from the networks, in the input's units, and of nothing that they may not see."""

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import transverse as tv

from .conftest import QUIET, SMALL, build, carry, dense, encode, part, train

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
DRUGS = ["D0001", "D0002", "D0004", "D0007", "D0010"]


@pytest.fixture(scope="module")
def query(sig):
    """Signatures to predict C2 from, in random order, some drugs with one source and some with two."""
    adata = sig[(sig.obs["cell_type"] != "C2").to_numpy()]
    return adata[np.random.default_rng(0).permutation(adata.n_obs)].copy()


@pytest.fixture(scope="module")
def pred(model, query):
    return model.predict(query, "C2")


def rows_of(adata, drug, cell_type=None):
    here = (adata.obs["perturbation"] == drug).to_numpy()
    if cell_type is not None:
        here = here & (adata.obs["cell_type"] == cell_type).to_numpy()
    return dense(adata.X)[here]


def by_source(adata, drug):
    """Signatures of a drug, an array for each cell type."""
    found = [rows_of(adata, drug, c) for c in sorted(adata.obs["cell_type"].unique())]
    return [x for x in found if len(x)]


def drugs_of(adata):
    return sorted(adata.obs["perturbation"].astype(str).unique())


# ---- by hand


def test_mean_over_sources(model, query, pred):
    assert pred.obs["perturbation"].tolist() == drugs_of(query)
    assert set(pred.obs["n_sources"]) == {1, 2}
    for i, drug in enumerate(drugs_of(query)):
        single = np.array([carry(model, x, "C2")[0] for x in by_source(query, drug)], dtype=float)
        assert pred.obs["n_sources"].iloc[i] == len(single)
        np.testing.assert_allclose(pred.X[i], single.mean(0), **CLOSE)
        if len(single) > 1:
            np.testing.assert_allclose(pred.layers["std"][i], single.std(0, ddof=1), **CLOSE)
            assert single.std(0).max() > 0.05
        else:
            assert np.isnan(pred.layers["std"][i]).all()


def test_from_the_mean_profile(model, query, pred):
    found = model.predict(query, "C2", aggregate="profile")
    assert "std" not in found.layers
    pd.testing.assert_frame_equal(found.obs, pred.obs)
    for i, drug in enumerate(drugs_of(query)):
        profile = np.mean(by_source(query, drug), axis=0)
        np.testing.assert_allclose(found.X[i], carry(model, profile, "C2")[0], **CLOSE)
    assert np.abs(found.X - pred.X).max() > 0.01


def test_from_each_signature(model, query):
    found = model.predict(query, "C2", aggregate=None)
    np.testing.assert_allclose(found.X, carry(model, query.X, "C2"), **CLOSE)
    assert found.obs_names.tolist() == [f"{name}|C2" for name in query.obs_names]
    assert found.obs["perturbation"].tolist() == query.obs["perturbation"].tolist()
    assert found.obs["source"].tolist() == query.obs["cell_type"].tolist()
    assert set(found.obs["n_sources"]) == {1} and set(found.obs["cell_type"]) == {"C2"}
    assert "std" not in found.layers


@pytest.mark.parametrize("target", ["C1", "C3"])
def test_every_decoder(model, sig, target):
    sources = sig[(sig.obs["cell_type"] != target).to_numpy()].copy()
    found = model.predict(sources, target, aggregate=None)
    np.testing.assert_allclose(found.X, carry(model, sources.X, target), **CLOSE)
    other = {"C1": "C3", "C3": "C1"}[target]
    assert np.abs(found.X - carry(model, sources.X, other)).max() > 0.05


def test_sources_count_alike_whatever_their_replicates(model, query):
    """Three signatures in C1 and one in C3 are two sources."""
    rng = np.random.default_rng(0)
    chosen = part(query, drug=DRUGS)
    more = [chosen]
    for i in range(2):
        copy = part(chosen, "C1")
        copy.X = copy.X + rng.normal(0, 1, copy.shape).astype(np.float32)
        copy.obs_names = [f"{name}_{i}" for name in copy.obs_names]
        more.append(copy)
    several = ad.concat(more)
    several = several[rng.permutation(several.n_obs)].copy()
    found = {how: model.predict(several, "C2", aggregate=how) for how in ("mean", "profile")}
    for i, drug in enumerate(drugs_of(several)):
        sources = by_source(several, drug)
        single = np.array([carry(model, x, "C2").astype(float).mean(0) for x in sources])
        np.testing.assert_allclose(found["mean"].X[i], single.mean(0), **CLOSE)
        if len(sources) > 1:
            np.testing.assert_allclose(found["mean"].layers["std"][i], single.std(0, ddof=1), **CLOSE)
        profile = np.mean([x.astype(float).mean(0) for x in sources], axis=0)
        np.testing.assert_allclose(found["profile"].X[i], carry(model, profile[None], "C2")[0], **CLOSE)
        assert found["mean"].obs["n_sources"].iloc[i] == found["profile"].obs["n_sources"].iloc[i] == len(sources)
    assert len(model.predict(several, "C2", aggregate=None)) == several.n_obs


@pytest.mark.parametrize("aggregate", ["mean", "profile", None])
def test_without_the_skip_connection(model, query, aggregate):
    c1 = part(query, "C1")
    found = model.predict(c1, "C2", use_skip=False, aggregate=aggregate)
    expected = carry(model, c1.X, "C2", use_skip=False)
    expected = expected if aggregate is None else expected[np.argsort(c1.obs["perturbation"].astype(str).to_numpy())]
    np.testing.assert_allclose(found.X, expected, **CLOSE)
    assert np.abs(found.X - model.predict(c1, "C2", aggregate=aggregate).X).max() > 0.01
    assert found.uns["prediction"]["use_skip"] is False


# ---- units


def test_units_are_those_of_the_input(model, query, pred):
    scale = float(model.module.scale)
    assert scale > 2 and pred.uns["prediction"]["divisor"] == scale
    assert 1 < np.abs(pred.X).max() < scale
    tenfold = query.copy()
    tenfold.X = 10 * tenfold.X
    found = model.predict(tenfold, "C2", scale=10 * scale)
    np.testing.assert_allclose(found.X, 10 * pred.X, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.layers["std"], 10 * pred.layers["std"], rtol=1e-4, atol=1e-4)
    # and not those of the training
    assert np.abs(model.predict(tenfold, "C2").X - 10 * pred.X).max() > 0.1


def test_scale_of_the_data(model, query):
    data = query.copy()
    data.X[4, 3] = -77
    found = model.predict(data, "C2", scale="data", aggregate=None)
    assert found.uns["prediction"]["divisor"] == 77
    np.testing.assert_allclose(found.X, carry(model, data.X, "C2", scale=77), **CLOSE)
    # of the model's genes
    more = ad.concat(
        [data, ad.AnnData(np.full((data.n_obs, 1), 999.0), obs=data.obs[[]], var=pd.DataFrame(index=["X"]))], axis=1
    )
    more.obs = data.obs
    np.testing.assert_array_equal(model.predict(more, "C2", scale="data", aggregate=None).X, found.X)
    number = model.predict(data, "C2", scale=np.float32(77), aggregate=None)
    np.testing.assert_array_equal(number.X, found.X)


@pytest.mark.parametrize("scale", ["largest", 0, -1.0, np.nan, np.inf, None])
def test_scales_that_are_refused(model, query, scale):
    with pytest.raises(ValueError, match="must be 'model', 'data' or a positive number"):
        model.predict(query, "C2", scale=scale)
    nothing = query.copy()
    nothing.X[:] = 0
    with pytest.raises(ValueError, match="with 'data' not all values may be 0"):
        model.predict(nothing, "C2", scale="data")


# ---- sources


def test_some_sources(model, query):
    expected = model.predict(part(query, "C3"), "C2")
    for sources in ("C3", ["C3"], np.array(["C3"])):
        found = model.predict(query, "C2", sources=sources)
        np.testing.assert_array_equal(found.X, expected.X)
        pd.testing.assert_frame_equal(found.obs, expected.obs)
    np.testing.assert_array_equal(model.predict(query, "C2", sources=["C3", "C1"]).X, model.predict(query, "C2").X)
    with pytest.raises(KeyError, match="adata has no signatures of the sources 'C5'; it has 'C1', 'C3'"):
        model.predict(query, "C2", sources=["C1", "C5"])


def test_cell_types_and_drugs_that_were_never_seen(model, query):
    c1 = part(query, "C1")
    c1.obs["cell_type"] = "new"
    c1.obs["perturbation"] = [f"new{i:02d}" for i in range(c1.n_obs)]
    found = model.predict(c1, "C2")
    np.testing.assert_allclose(found.X, carry(model, c1.X, "C2"), **CLOSE)
    assert found.obs["perturbation"].tolist() == c1.obs["perturbation"].tolist()
    assert not found.obs["trained_on"].any()
    assert model.predict(c1, "C2", aggregate=None).obs["source"].unique().tolist() == ["new"]


def test_cell_types_with_numbers_for_names(sig):
    adata = sig.copy()
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(str).str[1].astype(int)
    numbered = train(adata, epochs=1)
    assert numbered.cell_types_ == ["1", "2", "3"]
    sources = adata[(adata.obs["cell_type"] != 2).to_numpy()]
    found = numbered.predict(sources, 2, sources=[1])
    np.testing.assert_array_equal(found.X, numbered.predict(sources, "2", sources="1").X)
    assert found.obs["cell_type"].unique().tolist() == ["2"]


# ---- what it may not see


def test_the_target_itself_is_refused(model, sig):
    with pytest.raises(ValueError, match="adata has 24 signatures of target='C2' itself.*shown the answer.*allow_leak"):
        model.predict(sig, "C2")
    # unless they are not among the sources
    found = model.predict(sig, "C2", sources=["C1", "C3"])
    assert found.uns["prediction"]["leak"] == "none"
    leaked = model.predict(sig, "C2", allow_leak=True, aggregate=None)
    assert leaked.uns["prediction"]["leak"] == "signatures of the target"
    np.testing.assert_allclose(leaked.X, carry(model, sig.X, "C2"), **CLOSE)
    assert model.predict(sig, "C2", sources="C1", allow_leak=True).uns["prediction"]["leak"] == "none"


def test_whether_the_answer_was_in_the_training(model, query, sig):
    conditions = {tuple(row) for row in model.training_conditions_}
    for target in ("C2", "C3"):
        sources = sig[(sig.obs["cell_type"] != target).to_numpy()]
        for aggregate in ("mean", None):
            found = model.predict(sources, target, aggregate=aggregate).obs
            expected = [(drug, target) in conditions for drug in found["perturbation"]]
            assert found["trained_on"].tolist() == expected and len(set(expected)) == 2


# ---- genes, formats and sizes


def test_genes_that_are_missing_more_or_in_another_order(model, query, pred):
    gone = ["G0003", "G0011"]
    zeroed = query.copy()
    zeroed.X[:, zeroed.var_names.isin(gone)] = 0
    expected = model.predict(zeroed, "C2")
    rng = np.random.default_rng(0)
    names = rng.permutation(query.var_names.difference(gone))
    fewer = query[:, names].copy()
    more = ad.AnnData(
        np.hstack([rng.normal(0, 99, (query.n_obs, 2)), fewer.X]).astype(np.float32),
        obs=query.obs,
        var=pd.DataFrame(index=["A", "B", *names]),
    )
    for data in (fewer, more):
        before = data.copy()
        with pytest.warns(
            UserWarning, match="2 of the model's 24 genes are missing in adata and are taken as 0: 'G0003', 'G0011'"
        ):
            found = model.predict(data, "C2")
        np.testing.assert_array_equal(found.X, expected.X)
        assert list(found.var_names) == list(query.var_names)
        assert list(found.uns["prediction"]["missing_genes"]) == gone
        np.testing.assert_array_equal(data.X, before.X)
        with pytest.warns(UserWarning, match="missing in adata"):
            np.testing.assert_array_equal(model.get_latent_representation(data), encode(model, zeroed.X))
    reordered = query[:, ::-1].copy()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing in adata")
        np.testing.assert_array_equal(model.predict(reordered, "C2").X, pred.X)
    assert list(pred.uns["prediction"]["missing_genes"]) == []
    strange = query.copy()
    strange.var_names = [f"ENSG{i}" for i in range(24)]
    with pytest.raises(ValueError, match="adata has none of the model's genes, such as 'G0001'.*its own are.*'ENSG0'"):
        model.predict(strange, "C2")


@pytest.mark.parametrize("aggregate", ["mean", "profile", None])
def test_batch_size_does_not_matter(model, query, aggregate):
    expected = model.predict(query, "C2", aggregate=aggregate)
    for size in (1, 7, query.n_obs):
        found = model.predict(query, "C2", aggregate=aggregate, batch_size=size)
        np.testing.assert_allclose(found.X, expected.X, **CLOSE)
        if aggregate == "mean":
            np.testing.assert_allclose(found.layers["std"], expected.layers["std"], **CLOSE)
        np.testing.assert_allclose(
            model.get_latent_representation(query, batch_size=size), model.get_latent_representation(query), **CLOSE
        )


def test_formats(model, query, pred, tmp_path):
    query.write_h5ad(tmp_path / "dense.h5ad")
    sparse = query.copy()
    sparse.X = sp.csr_matrix(query.X)
    sparse.write_h5ad(tmp_path / "sparse.h5ad")
    column = query.copy()
    column.X = sp.csc_matrix(query.X)
    double = query.copy()
    double.X = query.X.astype(np.float64)
    whole = ad.concat([query, query[:3].copy()], index_unique="-")
    view = whole[: query.n_obs]
    backed = [ad.read_h5ad(tmp_path / f"{name}.h5ad", backed="r") for name in ("dense", "sparse")]
    part_of_file = backed[0][np.arange(query.n_obs)]
    for data in (sparse, column, double, view, *backed, part_of_file):
        for aggregate in ("mean", "profile"):
            found = model.predict(data, "C2", aggregate=aggregate, batch_size=9)
            expected = pred if aggregate == "mean" else model.predict(query, "C2", aggregate=aggregate)
            np.testing.assert_allclose(found.X, expected.X, **CLOSE)
        assert found.obs_names.tolist() == pred.obs_names.tolist()
        np.testing.assert_allclose(model.get_latent_representation(data), encode(model, query.X), **CLOSE)
    for data in backed:
        data.file.close()


def test_layer(sig):
    adata = sig.copy()
    adata.layers["z"] = adata.X.copy()
    adata.X = np.random.default_rng(0).normal(size=adata.shape).astype(np.float32)
    of_layer = train(adata, epochs=1, setup={"layer": "z"})
    of_x = train(sig, epochs=1)
    found, expected = (m.predict(part(adata, "C1"), "C2") for m in (of_layer, of_x))
    np.testing.assert_array_equal(found.X, of_x.predict(part(sig, "C1"), "C2").X)
    assert np.abs(found.X - expected.X).max() > 0.01
    with pytest.raises(KeyError, match="layer='z' is not in adata.layers"):
        of_layer.predict(part(sig, "C1"), "C2")


# ---- kinds of perturbation


def test_kinds_of_perturbation(sig):
    """The same name as a drug and as a knock-down is two perturbations."""
    down = sig.copy()
    down.X = -down.X
    down.obs_names = [f"{name}_down" for name in down.obs_names]
    both = ad.concat([sig, down])
    both.obs["kind"] = np.repeat(["trt_cp", "trt_sh"], sig.n_obs)
    typed = train(both, epochs=1, setup={"perturbation_type_key": "kind"}, train_size=0.5)
    sources = part(both, "C1")
    sources = sources[np.random.default_rng(0).permutation(sources.n_obs)].copy()
    found = typed.predict(sources, "C2")
    assert found.n_obs == sources.n_obs
    keys = list(zip(found.obs["perturbation"], found.obs["kind"], strict=True))
    assert keys == sorted(keys) and list(found.obs)[:3] == ["perturbation", "kind", "cell_type"]
    assert found.obs_names[:2].tolist() == [f"{drug}|{kind}|C2" for drug, kind in keys[:2]]
    order = {key: i for i, key in enumerate(zip(sources.obs["perturbation"], sources.obs["kind"], strict=True))}
    expected = sources.X[[order[key] for key in keys]]
    np.testing.assert_allclose(found.X, carry(typed, expected, "C2"), **CLOSE)
    conditions = {tuple(row) for row in typed.training_conditions_}
    assert found.obs["trained_on"].tolist() == [(*key, "C2") in conditions for key in keys]
    # a drug is trained on without its knock-down
    of_one = [key for key in keys if sum((key[0], kind, "C2") in conditions for kind in ("trt_cp", "trt_sh")) == 1]
    assert of_one
    with pytest.raises(KeyError, match="'kind' is not in adata.obs"):
        typed.predict(part(sig, "C1"), "C2")


# ---- what comes back


def test_form_is_that_of_a_baseline(pred, query, sig):
    baseline = tv.baselines.CopySource().fit(sig).predict(query, "C2")
    assert pred.obs_names.tolist() == baseline.obs_names.tolist()
    assert pred.var_names.tolist() == baseline.var_names.tolist()
    for column in baseline.obs:
        assert pred.obs[column].tolist() == baseline.obs[column].tolist()
        assert pred.obs[column].dtype == baseline.obs[column].dtype
    assert set(baseline.uns["prediction"]) <= set(pred.uns["prediction"])
    assert pred.X.dtype == pred.layers["std"].dtype == baseline.X.dtype == np.float32
    about = pred.uns["prediction"]
    assert (about["method"], about["target"], about["aggregate"]) == ("DeepCellState", "C2", "mean")
    assert (about["scale"], about["leak"], about["use_skip"]) == ("that of the input", "none", True)


def test_scores(pred, sig):
    truth = part(sig, "C2")
    there = pred[pred.obs["perturbation"].isin(truth.obs["perturbation"])].copy()
    scores = tv.metrics.signature_scores(truth, there, n_top=5)
    assert scores["value"].notna().all() and scores["perturbation"].nunique() == there.n_obs


@pytest.mark.filterwarnings("ignore:1 of the model's 24 genes are missing")
@pytest.mark.parametrize("aggregate", ["mean", "profile", None])
def test_it_can_be_written(model, query, aggregate, tmp_path):
    pred = model.predict(query[:, 1:].copy(), "C2", aggregate=aggregate)
    pred.write_h5ad(tmp_path / "pred.h5ad")
    back = ad.read_h5ad(tmp_path / "pred.h5ad")
    np.testing.assert_array_equal(back.X, pred.X)
    assert back.obs.astype(str).equals(pred.obs.astype(str))
    assert list(back.uns["prediction"]["missing_genes"]) == ["G0001"]
    assert back.uns["prediction"]["target"] == "C2"


def test_nothing_of_the_users_is_changed(model, query):
    data = query.copy()
    data.obsm["other"] = np.ones((data.n_obs, 2))
    before = data.copy()
    for aggregate in ("mean", "profile", None):
        model.predict(data, "C2", aggregate=aggregate, scale="data")
    model.get_latent_representation(data)
    np.testing.assert_array_equal(data.X, before.X)
    pd.testing.assert_frame_equal(data.obs, before.obs)
    for name in ("obsm", "layers", "uns", "obsp", "varm"):
        assert set(getattr(data, name)) == set(getattr(before, name))
    assert not model.module.training


def test_no_dropout_whatever_mode_the_network_was_left_in(model, query, pred):
    z = model.get_latent_representation(query)
    for call, expected in (
        (lambda: model.predict(query, "C2").X, pred.X),
        (lambda: model.get_latent_representation(query), z),
    ):
        model.module.train()
        np.testing.assert_array_equal(call(), expected)
        assert not model.module.training


# ---- latent


def test_latent_representation(model, sig, query):
    z = model.get_latent_representation()
    assert z.shape == (sig.n_obs, 6) and z.dtype == np.float32
    np.testing.assert_allclose(z, encode(model, sig.X), **CLOSE)
    found = model.get_latent_representation(query)
    np.testing.assert_allclose(found, encode(model, query.X), **CLOSE)
    # columns are not needed
    bare = ad.AnnData(query.X, obs=query.obs[[]], var=query.var[[]])
    np.testing.assert_array_equal(model.get_latent_representation(bare), found)
    assert np.abs(z).max() > 0.01


# ---- what is refused


def changed(query, how):
    data = query.copy()
    if how == "nan":
        data.X[3, 2] = np.nan
    elif how == "inf":
        data.X = sp.csr_matrix(data.X)
        data.X[3, 2] = np.inf
    elif how == "no column":
        del data.obs["perturbation"]
    elif how == "no cell type":
        del data.obs["cell_type"]
    elif how == "no label":
        data.obs["perturbation"] = data.obs["perturbation"].astype(object)
        data.obs.loc[data.obs_names[:2], "perturbation"] = None
    elif how == "genes":
        data.var_names = ["G0002", *data.var_names[1:]]
    elif how == "empty":
        data = data[:0].copy()
    elif how == "array":
        data = data.X
    return data


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("nan", ValueError, "adata.X has missing or infinite values"),
        ("inf", ValueError, "adata.X has missing or infinite values"),
        ("no column", KeyError, "'perturbation' is not in adata.obs. Columns: 'cell_type'"),
        ("no cell type", KeyError, "'cell_type' is not in adata.obs. Columns: 'perturbation'"),
        ("no label", ValueError, r"adata.obs\['perturbation'\] is missing for 2 signatures"),
        ("genes", ValueError, "adata.var_names must be unique, but these repeat: 'G0002'"),
        ("empty", ValueError, "adata has no signatures"),
        ("array", TypeError, "adata must be an AnnData, but got ndarray"),
    ],
)
def test_data_that_are_refused(model, query, how, error, message):
    with pytest.raises(error, match=message):
        model.predict(changed(query, how), "C2")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"target": "C9"},
            KeyError,
            "target='C9' has no decoder. Cell types with one: 'C1', 'C2', 'C3'.*add_cell_type",
        ),
        ({"aggregate": "median"}, ValueError, "aggregate='median' must be 'mean', 'profile' or None"),
        ({"batch_size": 0}, ValueError, "batch_size=0 must be a whole number, at least 1"),
        ({"batch_size": 1.5}, ValueError, "batch_size=1.5 must be a whole number"),
    ],
    ids=str,
)
def test_options_that_are_refused(model, query, options, error, message):
    with pytest.raises(error, match=message):
        model.predict(query, **{"target": "C2"} | options)


def test_untrained_models_do_not_predict(sig, query):
    untrained = build(sig)
    for call in (
        lambda: untrained.predict(query, "C2"),
        untrained.get_latent_representation,
        lambda: untrained.fine_tune(sig, "C2"),
        lambda: untrained.add_cell_type(sig, "C9"),
        lambda: untrained.predict_leave_one_out(sig, "C2"),
    ):
        with pytest.raises(RuntimeError, match="train"):
            call()


def test_latent_refuses(model, query):
    with pytest.raises(ValueError, match="batch_size=0"):
        model.get_latent_representation(batch_size=0)
    with pytest.raises(ValueError, match="missing or infinite"):
        model.get_latent_representation(changed(query, "nan"))


# ---- beside baselines


def test_benchmark():
    adata = tv.datasets.simulate_signatures(n_drugs=40, n_genes=20, n_mechanisms=8, n_cell_types=2)
    tv.pp.split_responses(adata, by="perturbation", control=None, delimiter=None)

    def factory(data, seed):
        tv.DeepCellState.setup_anndata(data)
        fitted = tv.DeepCellState(data, **SMALL)
        fitted.train(max_epochs=1, **QUIET)
        return fitted

    table = tv.benchmark(adata, {"DeepCellState": factory}, task="signatures", by="perturbation")
    row = table[(table["method"] == "DeepCellState") & (table["metric"] == "pearson")]
    assert row["kind"].unique().tolist() == ["model"] and np.isfinite(row["mean"]).all()
    assert {"copy of the source", "ridge"} <= set(table["method"])
