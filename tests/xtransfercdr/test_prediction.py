"""What a prediction is made of, re-derived from the networks, and what it may not be made of."""

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import transverse as tv
from transverse.xtransfercdr._sources import UNKNOWN

from .conftest import SMALL, STRONG, cells, decode, dense, encode, indexing, make_screen, mean_effect, train

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
UNIFORM_SUM = {"source_weights": "uniform", "combine": "sum"}


def controls_of(adata, context):
    return adata[cells(adata, "control", context)].copy()


def about(pred):
    return pred.uns["prediction"]


def decoded(model, adata, effect, context="C1", rows=None):
    """D(S) and D(S + P) of the control cells of a context."""
    state, _ = encode(model, adata, cells(adata, "control", context) if rows is None else rows)
    return decode(model, state), decode(model, state + effect)


def similarities(adata, context, others, bandwidth=1.0, mean=None):
    """By hand: exp(-d / (h * nearest d)) of the mean control cells."""
    means = {c: dense(adata[cells(adata, "control", c)].X).astype(float).mean(0) for c in ("C1", "C2", "C3")}
    mean = means[context] if mean is None else mean
    d = np.array([0.0 if other == context else ((means[other] - mean) ** 2).sum() for other in others])
    if not d.min():
        return (d == 0) / (d == 0).sum()
    weights = np.exp((d.min() - d) / (bandwidth * d.min()))
    return weights / weights.sum()


def snapshot(adata):
    """A copy of everything in an object."""
    x = dense(adata.X).copy()
    layers = {key: dense(value).copy() for key, value in adata.layers.items() if key is not None}
    return x, adata.obs.copy(), adata.var.copy(), layers, sorted(adata.uns), sorted(adata.obsm)


def assert_unchanged(adata, before):
    after = snapshot(adata)
    np.testing.assert_array_equal(after[0], before[0])
    pd.testing.assert_frame_equal(after[1], before[1])
    pd.testing.assert_frame_equal(after[2], before[2])
    assert after[3].keys() == before[3].keys()
    for key in after[3]:
        np.testing.assert_array_equal(after[3][key], before[3][key])
    assert after[4:] == before[4:]


# ---- form


@pytest.mark.parametrize("output", ["decoded", "change"])
def test_a_prediction_by_hand(model, screen, output):
    effect = mean_effect(model, screen, "P01", ["C2", "C3"])
    before, after = decoded(model, screen, effect)
    start = dense(controls_of(screen, "C1").X)
    pred = model.predict("P01", "C1", output=output, source_weights="uniform")
    np.testing.assert_allclose(pred.X, after if output == "decoded" else start + after - before, **CLOSE)
    np.testing.assert_array_equal(pred.layers["control"], start)
    np.testing.assert_allclose(pred.layers["decoded_control"], before, **CLOSE)
    assert {pred.X.dtype, pred.layers["control"].dtype, pred.layers["decoded_control"].dtype} == {np.dtype("float32")}
    # it is not about nothing, and both outputs are not one
    assert np.abs(after - before).max() > 0.5
    assert np.abs(start - before).max() > 0.5


def observed(adata, name, context, sources):
    """Weighted mean of the changes that were seen in other contexts."""
    weights = similarities(adata, context, sources)
    shifts = [mean_profile(adata, name, c) - mean_profile(adata, "control", c) for c in sources]
    return np.average(shifts, axis=0, weights=weights)


def mean_profile(adata, name, context):
    return dense(adata.X[cells(adata, name, context)]).mean(axis=0, dtype=float)


def test_decoded_and_observed_change_are_combined(model, screen):
    change = model.predict("P01", "C1", output="change")
    control = change.layers["control"]
    seen = observed(screen, "P01", "C1", ["C2", "C3"])
    for options, weight in (
        ({}, 0.5),
        ({"output": "combined", "observed_weight": 0.2}, 0.2),
        ({"observed_weight": 1}, 1),
    ):
        pred = model.predict("P01", "C1", **options)
        np.testing.assert_allclose(
            pred.X, control + (1 - weight) * (change.X - control) + weight * seen, rtol=1e-3, atol=1e-4
        )
        assert (about(pred)["output"], about(pred)["observed_weight"]) == ("combined", weight)
    np.testing.assert_array_equal(model.predict("P01", "C1", observed_weight=0).X, change.X)
    assert about(change)["observed_weight"] == 0


def test_observed_changes_of_singles_are_combined_as_the_decoded_ones(model, screen):
    parts = np.stack(
        [mean_profile(screen, one, "C1") - mean_profile(screen, "control", "C1") for one in ("P03", "P05")]
    )
    parts *= np.array([[2.0], [0.5]])
    largest = np.take_along_axis(parts, np.abs(parts).argmax(0)[None], 0)[0]
    for combine, seen in (("sum", parts.sum(0)), ("largest", largest)):
        options = {"source": "C1", "combine": combine, "strengths": [2, 0.5], "observed_weight": 1}
        pred = model.predict(["P03", "P05"], "C1", **options)
        np.testing.assert_allclose(pred.X, pred.layers["control"] + seen, rtol=1e-3, atol=1e-4)


def test_observed_changes_of_given_cells(model, screen):
    there = screen[np.concatenate([cells(screen, "P01", "C2"), cells(screen, "P01", "C3")])].copy()
    pred = model.predict("P01", "C1", reference=there, observed_weight=1)
    seen = observed(screen, "P01", "C1", ["C2", "C3"])
    np.testing.assert_allclose(pred.X, pred.layers["control"] + seen, rtol=1e-3, atol=1e-4)
    # held against controls of their own
    moved = screen[np.concatenate([cells(screen, "P01", "C2"), cells(screen, "control", "C3")])].copy()
    moved.obs["cell_type"] = "elsewhere"
    pred = model.predict("P01", "C1", reference=moved, observed_weight=1)
    seen = mean_profile(screen, "P01", "C2") - mean_profile(screen, "control", "C3")
    np.testing.assert_allclose(pred.X, pred.layers["control"] + seen, rtol=1e-3, atol=1e-4)
    # and without any, there is the decoded change alone
    alone = moved[moved.obs["perturbation"] == "P01"].copy()
    pred = model.predict("P01", "C1", reference=alone)
    np.testing.assert_array_equal(pred.X, model.predict("P01", "C1", reference=alone, output="change").X)
    assert about(pred)["observed_weight"] == 0


def test_form_of_a_prediction(model, screen, tmp_path):
    pred = model.predict("P03+P05", context="C1", source_weights="cells", n_samples=2)
    names = screen.obs_names[cells(screen, "control", "C1")].tolist()
    assert pred.obs_names.tolist() == names == pred.obs["control_cell"].tolist()
    assert pred.var_names.tolist() == screen.var_names.tolist()
    assert set(pred.obs) == {"perturbation", "cell_type", "control_cell"}
    assert pred.obs["perturbation"].cat.categories.tolist() == ["P03+P05"]
    assert pred.obs["cell_type"].cat.categories.tolist() == ["C1"]
    assert {key for key in pred.layers if key is not None} == {"control", "decoded_control", "std"}
    expected = {
        "method": "XTransferCDR",
        "perturbation": "P03+P05",
        "context": "C1",
        "source": ["C2", "C3"],
        "parts": ["P03+P05"],
        "basal": "control",
        "output": "combined",
        "observed_weight": 0.5,
        "scale": "that of the training data",
        "leak": "none",
        "in_training": False,
    }
    assert about(pred).items() >= expected.items()
    pred.write_h5ad(tmp_path / "pred.h5ad")
    again = ad.read_h5ad(tmp_path / "pred.h5ad")
    np.testing.assert_array_equal(again.X, pred.X)
    for layer in ("control", "decoded_control", "std"):
        np.testing.assert_array_equal(again.layers[layer], pred.layers[layer])
    assert again.obs["control_cell"].tolist() == names
    assert again.obs["perturbation"].unique().tolist() == ["P03+P05"]
    for key, value in about(pred).items():
        found = about(again)[key]
        assert (list(found) if isinstance(value, list) else found) == value


def test_reference_cells_are_named_too(model, screen, tmp_path):
    pred = model.predict("P01", "C1", basal="reference", source="C2")
    names = screen.obs_names[cells(screen, "P01", "C2")].tolist()
    assert set(pred.obs) == {"perturbation", "cell_type", "reference_cell"}
    assert pred.obs_names.tolist() == names == pred.obs["reference_cell"].tolist()
    assert about(pred)["basal"] == "reference"
    pred.write_h5ad(tmp_path / "pred.h5ad")


DOUBLES = ["P03+P05", "P05+P03", " P05 + P03", ["P03", "P05"], ("P05", "P03"), np.array(["P05", "P03"]), ["P05+P03"]]


@pytest.mark.parametrize("double", DOUBLES, ids=str)
def test_a_combination_in_any_form(model, double):
    pred = model.predict(double, "C1")
    np.testing.assert_array_equal(pred.X, model.predict("P03+P05", "C1").X)
    # the result goes by the name that was asked for
    assert pred.obs["perturbation"].unique().tolist() == [double if isinstance(double, str) else "+".join(double)]
    assert about(pred)["perturbation"] == "P03+P05"


@pytest.mark.parametrize("name", ["P01+control", ["control", "P01"], ["P01"]])
def test_a_control_within_a_combination_does_not_count(model, name):
    np.testing.assert_array_equal(model.predict(name, "C1").X, model.predict("P01", "C1").X)


# ---- where the effect comes from


@pytest.mark.parametrize("bandwidth", [0.5, 1.0, 8.0])
def test_similar_contexts_weigh_more(model, screen, bandwidth):
    weights = similarities(screen, "C1", ["C2", "C3"], bandwidth)
    assert 0.01 < weights.min() < 0.499
    _, after = decoded(model, screen, mean_effect(model, screen, "P03", ["C2", "C3"], weights))
    pred = model.predict("P03", "C1", output="decoded", bandwidth=bandwidth)
    np.testing.assert_allclose(pred.X, after, **CLOSE)


def test_weights_by_cells_and_uniform(model, screen):
    for kind, weights in (("cells", [4, 10]), ("uniform", [1, 1])):
        _, after = decoded(model, screen, mean_effect(model, screen, "P03", ["C2", "C3"], weights))
        pred = model.predict("P03", "C1", output="decoded", source_weights=kind)
        np.testing.assert_allclose(pred.X, after, **CLOSE)


@pytest.mark.parametrize("source", ["C3", ["C3"], ("C3", "C3"), pd.Index(["C3"])], ids=str)
def test_source(model, screen, source):
    pred = model.predict("P03", "C1", source=source, output="decoded")
    _, after = decoded(model, screen, mean_effect(model, screen, "P03", ["C3"]))
    np.testing.assert_allclose(pred.X, after, **CLOSE)
    assert about(pred)["source"] == ["C3"]


def test_a_combination_measured_elsewhere_is_taken_whole(model, screen):
    pred = model.predict("P05+P03", "C1", output="decoded", **UNIFORM_SUM)
    _, after = decoded(model, screen, mean_effect(model, screen, "P03+P05", ["C2", "C3"]))
    np.testing.assert_allclose(pred.X, after, **CLOSE)
    assert about(pred)["parts"] == ["P03+P05"]
    assert about(pred)["source"] == ["C2", "C3"]
    # a source without it lends the singles, here the predicted context
    pred = model.predict("P05+P03", "C1", source="C1", output="decoded", **UNIFORM_SUM)
    effect = sum(mean_effect(model, screen, single, ["C1"]) for single in ("P03", "P05"))
    np.testing.assert_allclose(pred.X, decoded(model, screen, effect)[1], **CLOSE)
    assert about(pred)["parts"] == ["P05", "P03"]
    assert about(pred)["leak"] == "none"


@pytest.mark.parametrize("weights", ["uniform", "similarity"])
def test_the_predicted_context_may_lend_singles(model, screen, weights):
    """And nothing but singles: the double was measured there too, and nowhere else."""
    shares = [1, 1, 1] if weights == "uniform" else [1, 0, 0]
    np.testing.assert_array_equal(similarities(screen, "C1", ["C1", "C2", "C3"]), [1, 0, 0])
    effect = sum(mean_effect(model, screen, single, ["C1", "C2", "C3"], shares) for single in ("P04", "P05"))
    before, after = decoded(model, screen, effect)
    pred = model.predict("P04+P05", "C1", output="change", combine="sum", source_weights=weights)
    np.testing.assert_allclose(pred.X, dense(controls_of(screen, "C1").X) + after - before, **CLOSE)
    found = about(pred)
    assert (found["parts"], found["source"]) == (["P04", "P05"], ["C1", "C2", "C3"])
    assert (found["leak"], found["in_training"]) == ("none", True)


def test_the_larger_of_the_decoded_changes(model, screen):
    singles = [mean_effect(model, screen, single, ["C1", "C2", "C3"]) for single in ("P04", "P05")]
    before, first = decoded(model, screen, singles[0])
    second = decoded(model, screen, singles[1])[1]
    larger = np.where(np.abs(first - before) >= np.abs(second - before), first, second)
    pred = model.predict("P04+P05", "C1", combine="largest", source_weights="uniform", output="decoded")
    np.testing.assert_allclose(pred.X, larger, **CLOSE)
    assert about(pred)["combine"] == "largest"
    assert ((larger == first) & (first != second)).any()
    assert ((larger == second) & (first != second)).any()


def test_how_combinations_are_combined_by_default(model, one_context):
    """By the sum where training had doubles beside their singles, else gene by gene."""
    for fitted, double, context, expected in (
        (model, "P04+P05", "C1", "sum"),
        (one_context[1], "P03+P04", None, "largest"),
    ):
        pred = fitted.predict(double, context)
        assert about(pred)["combine"] == expected
        np.testing.assert_array_equal(pred.X, fitted.predict(double, context, combine=expected).X)
        other = {"sum": "largest", "largest": "sum"}[expected]
        assert np.abs(pred.X - fitted.predict(double, context, combine=other).X).max() > 1e-3
    assert about(model.predict("P03+P05", "C1"))["combine"] == about(model.predict("P01", "C1"))["combine"] == "none"


def test_strengths(model, screen):
    parts = [mean_effect(model, screen, single, ["C1", "C2", "C3"]) for single in ("P04", "P05")]
    pred = model.predict("P04+P05", "C1", strengths=[0.5, 2], output="decoded", **UNIFORM_SUM)
    np.testing.assert_allclose(pred.X, decoded(model, screen, 0.5 * parts[0] + 2 * parts[1])[1], **CLOSE)
    for strengths in (0, [0.0], np.array([0])):
        pred = model.predict("P01", "C1", strengths=strengths)
        np.testing.assert_array_equal(pred.X, pred.layers["control"])
    pred = model.predict("P01", "C1", strengths=3, output="decoded", source="C2")
    _, after = decoded(model, screen, 3 * mean_effect(model, screen, "P01", ["C2"]))
    np.testing.assert_allclose(pred.X, after, **CLOSE)


def test_strengths_go_with_the_order_that_was_asked(model):
    first = model.predict(["P04", "P05"], "C1", strengths=[0.5, 2], combine="sum").X
    np.testing.assert_allclose(model.predict(["P05", "P04"], "C1", strengths=[2, 0.5], combine="sum").X, first, **CLOSE)


# ---- where it starts


def test_reference_cells_are_reconstructed(model, screen):
    state, own = encode(model, screen, cells(screen, "P01"))
    for output in ("change", "decoded"):
        pred = model.predict("P01", "C1", basal="reference", output=output)
        np.testing.assert_allclose(pred.X, decode(model, state + own), **CLOSE)
        for layer in ("control", "decoded_control"):
            np.testing.assert_allclose(pred.layers[layer], decode(model, state), **CLOSE)
        assert about(pred)["leak"] == "none"
    pred = model.predict("P01", "C1", basal="reference", strengths=[0.5])
    np.testing.assert_allclose(pred.X, decode(model, state + 0.5 * own), **CLOSE)


def test_a_combination_starts_from_cells_of_its_first_part(model, screen):
    rows = cells(screen, "P04", "C1")
    state, own = encode(model, screen, rows)
    second = mean_effect(model, screen, "P05", ["C1"])
    for strengths in (None, [2, 0.5]):
        a, b = strengths or (1, 1)
        pred = model.predict(
            "P04+P05", "C1", basal="reference", source="C1", output="decoded", combine="sum", strengths=strengths
        )
        assert pred.obs["reference_cell"].tolist() == screen.obs_names[rows].tolist()
        np.testing.assert_allclose(pred.X, decode(model, state + a * own + b * second), **CLOSE)
        np.testing.assert_allclose(pred.layers["decoded_control"], decode(model, state), **CLOSE)
    # the whole, where it was measured elsewhere, is its own first part
    pred = model.predict("P03+P05", "C1", basal="reference")
    assert sorted(pred.obs["reference_cell"]) == sorted(screen.obs_names[cells(screen, "P03+P05")])


# ---- spread


def test_spread_over_reference_cells(model, screen):
    """The standard deviation over all carriers, by their weight, is what many draws come to."""
    state, _ = encode(model, screen, cells(screen, "control", "C1"))
    for kind, shares in (("cells", [1 / 14, 1 / 14]), ("uniform", [1 / 8, 1 / 20])):
        carried = [encode(model, screen, cells(screen, "P03", context))[1] for context in ("C2", "C3")]
        weights = np.repeat(shares, [4, 10])
        outputs = np.array([decode(model, state[:3] + effect) for effect in np.concatenate(carried)], dtype=float)
        mean = np.average(outputs, axis=0, weights=weights)
        expected = np.sqrt(np.average((outputs - mean) ** 2, axis=0, weights=weights))
        pred = model.predict("P03", "C1", source_weights=kind, n_samples=600, controls=controls_of(screen, "C1")[:3])
        assert pred.layers["std"].shape == pred.shape
        assert (pred.layers["std"] >= 0).all()
        assert expected.max() > 0.1
        np.testing.assert_allclose(pred.layers["std"], expected, atol=0.1 * expected.max())


def test_spread_comes_from_the_contexts_that_weigh(model, screen):
    narrow = model.predict("P03", "C1", n_samples=5, bandwidth=1e-3)
    nearest = ["C2", "C3"][int(similarities(screen, "C1", ["C2", "C3"], 1e-3).argmax())]
    pred = model.predict("P03", "C1", n_samples=5, source=nearest)
    # other cells are drawn, of the same context
    np.testing.assert_allclose(narrow.layers["std"].mean(), pred.layers["std"].mean(), rtol=0.3)
    np.testing.assert_allclose(narrow.X, pred.X, **CLOSE)


def test_spread_of_combinations(model):
    for combine in ("sum", "largest"):
        none = model.predict("P04+P05", "C1", n_samples=20, strengths=[0, 0], combine=combine)
        np.testing.assert_allclose(none.layers["std"], 0, atol=1e-6)
        assert model.predict("P04+P05", "C1", n_samples=20, combine=combine).layers["std"].max() > 0.1


def test_draws_follow_the_seed_and_leave_the_prediction(model):
    plain = model.predict("P01", "C1")
    first, second, other = (model.predict("P01", "C1", n_samples=4, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.layers["std"], second.layers["std"])
    assert np.abs(first.layers["std"] - other.layers["std"]).max() > 1e-3
    for pred in (first, other):
        np.testing.assert_array_equal(pred.X, plain.X)
        assert pred.layers["std"].dtype == np.float32
        assert pred.layers["std"].max() > 0
    assert "std" not in plain.layers
    state = np.random.get_state()[1].copy()
    model.predict("P01", "C1", n_samples=4)
    np.testing.assert_array_equal(np.random.get_state()[1], state)


# ---- the user's own cells


def test_own_controls(model, screen, tmp_path):
    controls = controls_of(screen, "C1")[:5].copy()
    expected = model.predict("P03", "C1")[:5]
    anonymous = ad.AnnData(controls.X, obs=pd.DataFrame(index=list("vwxyz")), var=controls.var)
    extra = sp.csr_matrix(np.random.default_rng(0).random((5, 2), dtype=np.float32))
    names = ["more", *screen.var_names[::-1], "most"]
    reordered = ad.AnnData(
        sp.hstack([extra[:, :1], anonymous.X[:, ::-1], extra[:, 1:]]).tocsr(),
        obs=anonymous.obs,
        var=pd.DataFrame(index=names),
    )
    reordered.write_h5ad(tmp_path / "more.h5ad")
    anonymous.write_h5ad(tmp_path / "controls.h5ad")
    on_disk = [ad.read_h5ad(tmp_path / f"{name}.h5ad", backed="r") for name in ("more", "controls")]
    as_array = ad.AnnData(dense(controls.X), obs=controls.obs, var=controls.var)
    mean = dense(controls.X).astype(float).mean(0)
    weights = similarities(screen, "C1", ["C2", "C3"], mean=mean)
    effect = mean_effect(model, screen, "P03", ["C2", "C3"], weights)
    before, after = decoded(model, screen, effect, rows=cells(screen, "control", "C1")[:5])
    for one in (controls, as_array, anonymous, reordered, *on_disk):
        pred = model.predict("P03", "C1", controls=one, output="change")
        # similarity is that of the cells that are given
        np.testing.assert_allclose(pred.X, dense(controls.X) + after - before, **CLOSE)
        np.testing.assert_array_equal(pred.layers["control"], expected.layers["control"])
        assert pred.obs_names.tolist() == pred.obs["control_cell"].tolist() == one.obs_names.tolist()
        assert pred.var_names.tolist() == screen.var_names.tolist()
        uniform = model.predict("P03", "C1", controls=one, source_weights="uniform").X
        np.testing.assert_allclose(uniform, model.predict("P03", "C1", source_weights="uniform")[:5].X, **CLOSE)
    for one in on_disk:
        one.file.close()


def test_a_context_that_was_never_seen(model, screen):
    x = dense(controls_of(screen, "C2").X)
    rng = np.random.default_rng(0)
    x = np.maximum(x + rng.normal(0, 0.3, x.shape[1]), 0).astype(np.float32)
    new = ad.AnnData(x, obs=pd.DataFrame({"cell_type": "C9"}, index=[f"new{i}" for i in range(12)]), var=screen.var)
    weights = similarities(screen, "C9", ["C1", "C2", "C3"], mean=x.astype(float).mean(0))
    assert weights.argmax() == 1
    effect = mean_effect(model, screen, "P03", ["C1", "C2", "C3"], weights)
    module = model.module
    pred = model.predict("P03", "C9", controls=new, output="change")
    assert not module.training
    state, _ = encode(model, new, np.arange(12))
    np.testing.assert_allclose(pred.X, x + decode(model, state + effect) - decode(model, state), **CLOSE)
    assert pred.obs["cell_type"].unique().tolist() == ["C9"]
    found = about(pred)
    assert (found["context"], found["source"], found["leak"]) == ("C9", ["C1", "C2", "C3"], "none")
    assert found["in_training"] is False
    with pytest.raises(
        KeyError, match="context='C9' has no control cells in the training.*'C1', 'C2', 'C3'.*controls="
    ):
        model.predict("P03", "C9")


def test_own_reference(model, screen, tmp_path):
    rows = np.concatenate([cells(screen, "P03"), cells(screen, "P01")])
    reference = screen[np.sort(rows)].copy()
    expected = model.predict("P03", "C1")
    reordered = reference[:, ::-1].copy()
    reordered.write_h5ad(tmp_path / "reference.h5ad")
    on_disk = ad.read_h5ad(tmp_path / "reference.h5ad", backed="r")
    for one in (reference, reordered, on_disk):
        pred = model.predict("P03", "C1", reference=one)
        np.testing.assert_allclose(pred.X, expected.X, **CLOSE)
        assert about(pred) == about(expected)
    on_disk.file.close()
    # cells that are given replace those of the training, of all contexts
    few = screen[cells(screen, "P03", "C3")[:2]].copy()
    pred = model.predict("P03", "C1", reference=few, output="decoded")
    effect = encode(model, few, np.arange(2))[1].mean(0)
    np.testing.assert_allclose(pred.X, decoded(model, screen, effect)[1], **CLOSE)
    assert about(pred)["source"] == ["C3"]
    # and are what is drawn from, and started from
    assert model.predict("P03", "C1", reference=few, n_samples=20).layers["std"].max() > 0
    np.testing.assert_allclose(model.predict("P03", "C1", reference=few[:1], n_samples=3).layers["std"], 0, atol=1e-6)
    pred = model.predict("P03", "C1", reference=few, basal="reference")
    assert pred.obs_names.tolist() == few.obs_names.tolist()


def test_reference_without_columns(model, screen):
    few = screen[cells(screen, "P03", "C3")]
    bare = ad.AnnData(few.X, obs=pd.DataFrame(index=few.obs_names), var=few.var)
    pred = model.predict("P03", "C1", reference=bare)
    np.testing.assert_allclose(pred.X, model.predict("P03", "C1", source="C3", output="change").X, **CLOSE)
    # whether these are cells of the predicted condition cannot be told
    assert (about(pred)["leak"], about(pred)["source"]) == ("unknown", [UNKNOWN])
    assert about(model.predict("P04", "C1", reference=bare))["leak"] == "unknown"
    with_context = ad.AnnData(few.X, obs=few.obs[["cell_type"]], var=few.var)
    found = about(model.predict("P03", "C1", reference=with_context))
    assert (found["leak"], found["source"]) == ("none", ["C3"])
    with_perturbation = ad.AnnData(few.X, obs=few.obs[["perturbation"]], var=few.var)
    assert about(model.predict("P03", "C1", reference=with_perturbation))["leak"] == "unknown"


def test_a_perturbation_that_was_never_seen(model, screen):
    few = screen[cells(screen, "P04", "C2")].copy()
    few.obs["perturbation"] = "new"
    few.obs["cell_type"] = "C8"
    pred = model.predict("new", "C1", reference=few, output="decoded")
    np.testing.assert_allclose(pred.X, decoded(model, screen, encode(model, few, np.arange(10))[1].mean(0))[1], **CLOSE)
    found = about(pred)
    assert (found["leak"], found["in_training"], found["source"]) == ("none", False, ["C8"])
    # in a combination with one that was seen, in given cells as well
    both = ad.concat([few, screen[cells(screen, "P03", "C1")]])
    pred = model.predict(["new", "P03"], "C1", reference=both, combine="sum", output="decoded")
    effect = encode(model, few, np.arange(10))[1].mean(0) + mean_effect(model, screen, "P03", ["C1"])
    np.testing.assert_allclose(pred.X, decoded(model, screen, effect)[1], **CLOSE)
    assert about(pred)["parts"] == ["new", "P03"]
    with pytest.raises(KeyError, match="Unknown perturbation: 'new'. Known in the training: 'P01'.*as reference="):
        model.predict("new", "C1")
    with pytest.raises(KeyError, match="Unknown perturbation: 'P03'. Known in reference: 'new'"):
        model.predict("P03", "C1", reference=few)


# ---- one context


def test_data_of_one_context(one_context, tmp_path):
    adata, model = one_context
    assert "cell_type" not in adata.obs
    state, _ = encode(model, adata, cells(adata, "control"))
    effect = sum(encode(model, adata, cells(adata, name))[1].mean(0) for name in ("P02", "P05"))
    pred = model.predict(["P05", "P02"], combine="sum", output="decoded")
    np.testing.assert_allclose(pred.X, decode(model, state + effect), **CLOSE)
    assert set(pred.obs) == {"perturbation", "control_cell"}
    assert pred.obs["perturbation"].unique().tolist() == ["P05+P02"]
    assert (about(pred)["leak"], about(pred)["in_training"]) == ("none", False)
    pred.write_h5ad(tmp_path / "pred.h5ad")
    with pytest.raises(KeyError, match="context='C1' is unknown: the model was set up with context_key=None"):
        model.predict("P02+P05", "C1")
    leaky = model.predict("P02", allow_leak=True)
    assert about(leaky)["leak"] == "same condition, other cells"
    assert about(leaky)["in_training"] is True
    with pytest.raises(ValueError, match="the prediction would be shown the answer"):
        model.predict("P02")


def test_refusal_in_one_context_names_no_context(one_context):
    with pytest.raises(ValueError, match="'P02'") as error:
        one_context[1].predict("P02")
    assert "''" not in str(error.value)


def test_the_only_context_needs_no_name(screen):
    adata = screen[(screen.obs["cell_type"] == "C1").to_numpy()].copy()
    model = train(adata)
    pred = model.predict("P02+P05")
    assert pred.obs["cell_type"].unique().tolist() == ["C1"]
    np.testing.assert_array_equal(pred.X, model.predict("P02+P05", "C1").X)


# ---- the same in any form


@pytest.mark.parametrize("options", [{}, {"basal": "reference"}, {"output": "decoded"}], ids=str)
def test_the_batch_size_does_not_matter(model, options):
    for name in ("P01", "P04+P05"):
        samples = {} if "basal" in options else {"n_samples": 3}
        preds = [model.predict(name, "C1", batch_size=size, **samples, **options) for size in (512, 5, 1)]
        for pred in preds[1:]:
            np.testing.assert_allclose(pred.X, preds[0].X, **CLOSE)
            for layer in preds[0].layers:
                if layer is not None:
                    np.testing.assert_allclose(pred.layers[layer], preds[0].layers[layer], **CLOSE)
            pd.testing.assert_frame_equal(pred.obs, preds[0].obs)


def test_dense_sparse_and_layer_are_the_same():
    screen = make_screen()
    preds = []
    for form in (np.asarray, sp.csr_matrix, sp.csc_matrix, "layer"):
        adata = screen.copy()
        if form == "layer":
            adata.layers["log"] = adata.X.copy()
            adata.X = adata.X * 0
        else:
            adata.X = form(dense(adata.X))
        model = train(adata, setup={"layer": "log"} if form == "layer" else None)
        preds.append(model.predict("P01", "C1", n_samples=2))
        if form == "layer":
            controls = adata[cells(adata, "control", "C1")].copy()[:, ::-1].copy()
            np.testing.assert_array_equal(model.predict("P01", "C1", controls=controls).X, preds[-1].X)
            del controls.layers["log"]
            with pytest.raises(KeyError, match="layer='log' is not in controls.layers"):
                model.predict("P01", "C1", controls=controls)
    for pred in preds[1:]:
        np.testing.assert_allclose(pred.X, preds[0].X, **CLOSE)
        np.testing.assert_allclose(pred.layers["std"], preds[0].layers["std"], **CLOSE)


def test_backed_data_are_the_same(model, saved, screen, tmp_path):
    order = np.random.default_rng(0).permutation(screen.n_obs)
    shuffled = screen[order].copy()
    for key in [key for key in shuffled.obs if key.startswith("_scvi")]:
        del shuffled.obs[key]
    for name, x in (("sparse", shuffled.X), ("dense", dense(shuffled.X))):
        ad.AnnData(x, obs=shuffled.obs, var=screen.var).write_h5ad(tmp_path / f"{name}.h5ad")
        on_disk = ad.read_h5ad(tmp_path / f"{name}.h5ad", backed="r")
        loaded = tv.XTransferCDR.load(saved, on_disk)
        for perturbation, options in (
            ("P01", {"n_samples": 20, "batch_size": 5}),
            ("P04+P05", {}),
            ("P01", {"basal": "reference"}),
        ):
            pred = loaded.predict(perturbation, "C1", **options)
            # rows come in the order of the data
            expected = model.predict(perturbation, "C1", **options)[pred.obs_names]
            assert pred.obs_names.tolist() == [n for n in shuffled.obs_names if n in set(expected.obs_names)]
            np.testing.assert_allclose(pred.X, expected.X, **CLOSE)
            np.testing.assert_array_equal(pred.obs["perturbation"], expected.obs["perturbation"])
        on_disk.file.close()


# ---- what a prediction may not see


@pytest.mark.parametrize("name", ["P03", "P04+P05"])
def test_cells_of_the_asked_condition_do_not_matter(name):
    """Whatever they become after training, and if they are gone: the answer is not looked up in them."""
    adata = make_screen()
    model = train(adata)
    options = [{}, {"n_samples": 3}, {"source": ["C2", "C3"]}, {"source": ["C2", "C3"], "basal": "reference"}]
    before = [model.predict(name, "C1", **one) for one in options]
    here = cells(adata, name, "C1")
    x = dense(adata.X)
    x[here] = np.random.default_rng(1).uniform(0, 9, (len(here), adata.n_vars))
    adata.X = sp.csr_matrix(x)
    assert np.abs(dense(model.adata.X)[here] - x[here]).max() == 0
    for one, expected in zip(options, before, strict=True):
        pred = model.predict(name, "C1", **one)
        np.testing.assert_array_equal(pred.X, expected.X)
        np.testing.assert_array_equal(pred.layers["control"], expected.layers["control"])
        if "std" in expected.layers:
            np.testing.assert_array_equal(pred.layers["std"], expected.layers["std"])
        assert about(pred)["leak"] == "none"


def test_the_asked_condition_never_lends(model, screen):
    """In any context and by any weights, unless that is asked for, and then the result says so."""
    measured = {(p, c) for p, c in zip(model.effects_["perturbation"], model.effects_["context"], strict=True)}
    assert len(measured) == 15
    for name, context in sorted(measured):
        for weights in ("similarity", "uniform", "cells"):
            try:
                found = about(model.predict(name, context, source_weights=weights))
            except ValueError as error:
                assert "the prediction would be shown the answer" in str(error)
                assert {c for p, c in measured if p == name} == {context}
                continue
            assert found["leak"] == "none"
            if found["parts"] == [name]:
                assert context not in found["source"]
            else:
                assert name == "P04+P05"
    assert ("P01", "C1") not in measured


@pytest.mark.parametrize("basal", ["control", "reference"])
def test_a_leak_that_was_asked_for_is_told(model, screen, basal):
    leak = "same cell" if basal == "reference" else "same condition, other cells"
    pred = model.predict("P03", "C1", allow_leak=True, basal=basal, output="decoded", source_weights="uniform")
    assert (about(pred)["leak"], about(pred)["source"]) == (leak, ["C1", "C2", "C3"])
    if basal == "control":
        effect = mean_effect(model, screen, "P03", ["C1", "C2", "C3"])
        np.testing.assert_allclose(pred.X, decoded(model, screen, effect)[1], **CLOSE)
    for name, own in (("P03", "C1"), ("P02", "C1"), ("P04+P05", "C1"), ("P03+P05", "C2")):
        found = about(model.predict(name, own, allow_leak=True, basal=basal, source=own))
        assert (found["leak"], found["source"], found["parts"]) == (leak, [own], [name])
        assert found["in_training"] is True
    # nothing of the answer is shown by other contexts
    assert about(model.predict("P03", "C1", allow_leak=True, basal=basal, source="C2"))["leak"] == "none"
    assert about(model.predict("P01", "C1", allow_leak=True, basal=basal))["leak"] == "none"


def test_the_predicted_context_is_refused_as_source(model):
    message = "effect of 'P03' is known from 'C1'.*the context that is predicted.*allow_leak=True"
    for source in ("C1", ["C1"], ("C1", "C1")):
        with pytest.raises(ValueError, match=message):
            model.predict("P03", "C1", source=source)
    with pytest.raises(ValueError, match="effect of 'P02' is known from 'C1' only.*shown the answer"):
        model.predict("P02", "C1")


def test_the_predicted_context_is_refused_among_sources(model):
    with pytest.raises(ValueError, match="C1"):
        model.predict("P03", "C1", source=["C1", "C2"])


def test_a_repeated_part_is_no_way_around_the_guard(model):
    try:
        found = about(model.predict("P03+P03", "C1"))
    except ValueError:
        return
    assert "C1" not in found["source"]


def test_reference_cells_of_the_asked_condition_are_refused(model, screen):
    here = screen[cells(screen, "P03", "C1")].copy()
    for options in ({}, {"basal": "reference"}, {"n_samples": 2}):
        with pytest.raises(ValueError, match="effect of 'P03' is known from 'C1' only.*shown the answer"):
            model.predict("P03", "C1", reference=here, **options)
    found = about(model.predict("P03", "C1", reference=here, allow_leak=True))
    assert (found["leak"], found["source"]) == ("same condition, other cells", ["C1"])
    found = about(model.predict("P03", "C1", reference=here, allow_leak=True, basal="reference"))
    assert found["leak"] == "same cell"
    # beside cells of another context they are passed over
    both = screen[cells(screen, "P03")].copy()
    assert about(model.predict("P03", "C1", reference=both))["source"] == ["C2", "C3"]
    # of what was never trained on, too
    both.obs["perturbation"] = "new"
    with pytest.raises(ValueError, match="effect of 'new' is known from 'C1' only"):
        model.predict("new", "C1", reference=both[(both.obs["cell_type"] == "C1").to_numpy()])
    found = about(model.predict("new", "C1", reference=both))
    # it is known, but not from the training
    assert (found["source"], found["in_training"]) == (["C2", "C3"], False)


def test_in_training(model):
    for name, context, expected in (
        ("P03", "C1", True),
        ("P01", "C1", False),
        ("P05+P03", "C1", False),
        ("P05+P03", "C2", True),
        ("P04+P05", "C1", True),
        ("P04+P05", "C2", False),
    ):
        assert about(model.predict(name, context))["in_training"] is expected


def test_cells_outside_the_training_lend_nothing(split, screen):
    model, trained = split
    adata = model.adata
    conditions = list(zip(model.effects_["perturbation"], model.effects_["context"], strict=True))
    assert set(model.training_cells_) == set(adata.obs_names[trained])
    assert ("P03", "C3") not in conditions
    assert "P01" not in model.effects_["perturbation"]
    for (name, context), n, mean in zip(conditions, model.effects_["n_cells"], model.effects_["mean"], strict=True):
        rows = cells(adata, name, context)
        rows = rows[trained[rows]]
        assert n == len(rows)
        np.testing.assert_allclose(mean, encode(model, adata, rows)[1].mean(0), **CLOSE)
    for context, mean in model.control_means_.items():
        rows = cells(adata, "control", context)
        np.testing.assert_allclose(mean, dense(adata[rows[trained[rows]]].X).mean(0), **CLOSE)
    # the control cells that predictions start from, and the cells that are drawn or reconstructed
    pred = model.predict("P04", "C1", n_samples=2, source="C2")
    rows = cells(adata, "control", "C1")
    assert pred.obs_names.tolist() == adata.obs_names[rows[trained[rows]]].tolist()
    rows = cells(adata, "P04", "C2")
    pred = model.predict("P04", "C1", source="C2", basal="reference")
    assert pred.obs_names.tolist() == adata.obs_names[rows[trained[rows]]].tolist()
    assert about(model.predict("P03", "C1"))["source"] == ["C2"]
    found = about(model.predict("P03", "C3"))
    assert (found["source"], found["in_training"]) == (["C1", "C2"], False)
    with pytest.raises(KeyError, match="Unknown perturbation: 'P01'"):
        model.predict("P01", "C1")
    with pytest.raises(ValueError, match="Nothing to take the effect of 'P03' from in source 'C3'"):
        model.predict("P03", "C1", source="C3")


def test_expression_outside_the_training_does_not_matter(split, screen):
    model, trained = split
    adata = screen.copy()
    x = dense(adata.X)
    x[~trained] = np.random.default_rng(1).uniform(0, 9, ((~trained).sum(), adata.n_vars))
    adata.X = sp.csr_matrix(x)
    other = train(adata, epochs=2, datasplitter_kwargs=indexing(trained))
    for name, context in (("P03", "C3"), ("P04", "C1"), ("P04+P05", "C1")):
        preds = [one.predict(name, context, n_samples=3) for one in (model, other)]
        np.testing.assert_array_equal(preds[0].X, preds[1].X)
        np.testing.assert_array_equal(preds[0].layers["std"], preds[1].layers["std"])


# ---- what is refused before any work


OPTIONS = [
    ({"basal": "left"}, ValueError, "basal='left' must be one of 'control', 'reference'"),
    ({"observed_weight": 1.5}, ValueError, "observed_weight=1.5 must be between 0 and 1"),
    ({"source_weights": "best"}, ValueError, "source_weights='best' must be one of 'similarity', 'uniform', 'cells'"),
    ({"output": "x"}, ValueError, "output='x' must be one of 'combined', 'change', 'decoded'"),
    ({"combine": "mean"}, ValueError, "combine='mean' must be one of 'auto', 'sum', 'largest'"),
    ({"n_samples": 1}, ValueError, "n_samples=1 must be 0, or at least 2 to have a spread"),
    ({"n_samples": -2}, ValueError, "n_samples=-2 must be 0"),
    ({"n_samples": 2, "basal": "reference"}, ValueError, "n_samples has no use with basal='reference'"),
    ({"bandwidth": 0}, ValueError, "bandwidth=0 must be positive"),
    ({"bandwidth": -1.0}, ValueError, "bandwidth=-1.0 must be positive"),
    ({"bandwidth": np.nan}, ValueError, "bandwidth=nan must be positive"),
    ({"batch_size": 0}, ValueError, "batch_size=0 must be"),
    ({"source": "C9"}, KeyError, "source has unknown contexts: 'C9'. Known: 'C1', 'C2', 'C3'"),
    ({"source": ["C8", "C2", "C9"]}, KeyError, "source has unknown contexts: 'C8', 'C9'. Known"),
    ({"source": []}, ValueError, "Nothing to take the effect of 'P01' from in source none.*measured in 'C2', 'C3'"),
    ({"strengths": [1, 2]}, ValueError, "strengths must have one number for each of 'P01', but has 2"),
    ({"strengths": []}, ValueError, "strengths must have one number for each of 'P01', but has 0"),
    ({"strengths": [np.nan]}, ValueError, r"strengths must be finite, but got \[nan\]"),
    ({"strengths": np.inf}, ValueError, r"strengths must be finite, but got \[inf\]"),
    ({"perturbation": "control"}, ValueError, "perturbation='control' is the control"),
    ({"perturbation": ["control", "control"]}, ValueError, r"perturbation=\['control', 'control'\] is the control"),
    ({"perturbation": "Z"}, KeyError, r"Unknown perturbation: 'Z'. Known in the training: 'P01', .*\(7 in all\)"),
    ({"perturbation": "Z+P01+Y"}, KeyError, "Unknown perturbation: 'Z', 'Y'. Known"),
    ({"context": None}, ValueError, "context is needed, one of 'C1', 'C2', 'C3'"),
    ({"context": "C9"}, KeyError, "context='C9' has no control cells in the training. .*'C1', 'C2', 'C3'.*controls="),
    (
        {"perturbation": "P02", "context": "C2", "source": "C3"},
        ValueError,
        "from in source 'C3': it was measured in 'C1'",
    ),
    (
        {"perturbation": "P01+P02", "source": "C2"},
        ValueError,
        "Nothing to take the effect of 'P02' from in source 'C2': it was measured in 'C1'. Name other contexts",
    ),
]


@pytest.mark.parametrize(("options", "error", "message"), OPTIONS, ids=lambda value: str(value)[:40])
def test_arguments_that_are_refused(model, screen, monkeypatch, options, error, message):
    before = snapshot(screen)

    def work(*args):
        raise AssertionError("the networks were run")

    monkeypatch.setattr(model, "_encode", work)
    monkeypatch.setattr(model, "_decode", work)
    with pytest.raises(error, match=message):
        model.predict(**{"perturbation": "P01", "context": "C1", **options})
    assert_unchanged(screen, before)


def test_a_whole_that_was_measured_in_the_predicted_context_only():
    """What can be done is said: its parts were measured nowhere, so that a leak is all there is."""
    adata = make_screen()
    drop = np.concatenate([cells(adata, "P04"), cells(adata, "P05")])
    adata = adata[np.setdiff1d(np.arange(adata.n_obs), drop)].copy()
    model = train(adata)
    assert about(model.predict("P04+P05", "C1", allow_leak=True))["leak"] == "same condition, other cells"
    with pytest.raises(ValueError, match="'P04.P05' .*allow_leak"):
        model.predict("P04+P05", "C1")


def refused_cells(screen, argument, rows):
    """Cells that no model should accept, with the message, ``{}`` being the argument."""
    good = screen[rows].copy()
    raw = ad.AnnData(np.round(dense(good.X) * 3), obs=good.obs, var=good.var)
    missing = good.copy()
    missing.X = dense(missing.X)
    missing.X[0, 0] = np.nan
    names = good.copy()
    names.obs["perturbation"] = pd.Categorical([None, *good.obs["perturbation"].astype(str)[1:]])
    repeated = good.copy()
    repeated.var_names = [screen.var_names[0], *screen.var_names[:-1]]
    return [
        (dense(good.X), TypeError, "{} must be an AnnData, but got ndarray"),
        (good[:0], ValueError, "{} has no cells"),
        (good[:, 1:], ValueError, "1 of the 60 genes that the model was trained on are missing in {}: "),
        (repeated, ValueError, "{}.var_names must be unique"),
        (raw, ValueError, "{}.X must hold log-normalised values, .* look like raw counts"),
        (missing, ValueError, "{}.X has missing or infinite values"),
        (names, ValueError, r"{}.obs\['perturbation'\] is missing for 1 cells"),
    ]


def test_own_controls_that_are_refused(model, screen):
    for cells_, error, message in refused_cells(screen, "controls", cells(screen, "control", "C1")):
        with pytest.raises(error, match=message.format("controls")):
            model.predict("P01", "C1", controls=cells_)
    mixed = screen[(screen.obs["cell_type"] == "C1").to_numpy()]
    with pytest.raises(ValueError, match=r"only cells with 'control' in obs\['perturbation'\], but has 'P02', 'P03'"):
        model.predict("P01", "C1", controls=mixed)
    with pytest.raises(ValueError, match=r"only cells with 'C1' in obs\['cell_type'\], but has 'C2'"):
        model.predict("P01", "C1", controls=controls_of(screen, "C2"))
    with pytest.raises(ValueError, match=r"only cells with 'C9' in obs\['cell_type'\], but has 'C2'"):
        model.predict("P01", "C9", controls=controls_of(screen, "C2"))


def test_own_reference_that_is_refused(model, screen):
    for cells_, error, message in refused_cells(screen, "reference", cells(screen, "P03", "C2")):
        with pytest.raises(error, match=message.format("reference")):
            model.predict("P03", "C1", reference=cells_)
    bare = screen[cells(screen, "P03", "C2")].copy()
    del bare.obs["perturbation"]
    with pytest.raises(ValueError, match=r"reference needs obs\['perturbation'\], to tell which .* 'P03', 'P04'"):
        model.predict("P03+P04", "C1", reference=bare)
    with pytest.raises(KeyError, match="source has unknown contexts: 'C3'. Known: 'C2'"):
        model.predict("P03", "C1", reference=bare, source="C3")


def test_an_untrained_model_is_refused(screen):
    adata = screen.copy()
    tv.XTransferCDR.setup_anndata(adata)
    model = tv.XTransferCDR(adata, **SMALL)
    with pytest.raises(RuntimeError, match="[Tt]rain"):
        model.predict("P01", "C1")


def test_contexts_without_controls(screen):
    """They lend effects, with uniform weights for want of a distance, and are predicted from the user's control cells."""
    adata = screen[np.setdiff1d(np.arange(screen.n_obs), cells(screen, "control", "C3"))].copy()
    with pytest.warns(UserWarning, match="no control cells: 'C3'"):
        model = train(adata)
    pred = model.predict("P03", "C1", output="decoded")
    _, after = decoded(model, adata, mean_effect(model, adata, "P03", ["C2", "C3"]))
    np.testing.assert_allclose(pred.X, after, **CLOSE)
    with pytest.raises(KeyError, match="context='C3' has no control cells in the training"):
        model.predict("P03", "C3")
    found = about(model.predict("P03", "C3", controls=controls_of(screen, "C3")))
    assert (found["source"], found["leak"]) == (["C1", "C2"], "none")


def test_nothing_of_the_users_is_changed(model, screen):
    controls, reference = controls_of(screen, "C1"), screen[cells(screen, "P03")].copy()
    reordered = controls[:, ::-1].copy()
    given = [screen, controls, reference, reordered]
    before = [snapshot(one) for one in given]
    stored = {key: np.copy(value) for key, value in model.effects_.items()}
    for options in (
        {"controls": controls, "reference": reference, "n_samples": 2},
        {"controls": reordered, "reference": reference[:, ::-1]},
        {"reference": reference, "basal": "reference"},
        {},
    ):
        pred = model.predict("P03", "C1", **options)
        # what is returned is not what was given
        pred.X[:] = -1
        for layer in ("control", "decoded_control"):
            pred.layers[layer][:] = -1
        about(pred)["source"].clear()
    for one, state in zip(given, before, strict=True):
        assert_unchanged(one, state)
    for key, value in stored.items():
        np.testing.assert_array_equal(model.effects_[key], value)


def test_predictions_leave_the_module_in_evaluation_mode(model):
    model.module.train()
    first = model.predict("P01", "C1").X
    assert not model.module.training
    np.testing.assert_array_equal(model.predict("P01", "C1").X, first)


# ---- beside the rest of the package


def test_scores_of_a_prediction(model, screen):
    truth, control = screen[cells(screen, "P03", "C1")], screen[cells(screen, "control", "C1")]
    pred = model.predict("P03", "C1")
    half = model.predict("P03", "C1", controls=control[:6].copy())
    with pytest.raises(ValueError, match="control cells that score are also those that predict"):
        tv.metrics.response_scores(truth, pred, control)
    scores = tv.metrics.response_scores(truth, half, control[6:], n_top=20)
    assert set(scores["of"]) == {"expression", "change"}
    assert np.isfinite(scores["value"]).all()
    value = scores.query("of == 'change' and genes == 'all' and metric == 'pearson'")["value"].item()
    change = dense(truth.X).mean(0) - dense(control[6:].X).mean(0)
    np.testing.assert_allclose(value, np.corrcoef(change, (half.X - half.layers["control"]).mean(0))[0, 1], rtol=1e-4)


def test_benchmark():
    adata = tv.datasets.simulate_responses(
        n_contexts=3, n_perturbations=3, n_genes=40, n_cells_per_condition=8, n_control_cells_per_context=16
    )
    tv.pp.split_responses(adata, holdout=[("P01", "C1"), ("P02", "C2")], valid_size=0)
    asked = []

    def fit(train_cells, seed):
        assert "test" not in set(train_cells.obs["split"].astype(str))
        model = train(train_cells.copy(), epochs=2)
        asked.append(model)
        return model

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=RuntimeWarning)  # scores of so few cells
        table = tv.benchmark(
            adata,
            {"XTransferCDR": fit},
            baselines={"mean shift": tv.baselines.MeanShift},
            n_resamples=20,
            n_ceiling_splits=2,
        )
    rows = table[table["method"] == "XTransferCDR"]
    assert len(asked) == 1
    assert (rows["kind"] == "model").all()
    assert rows.query("of == 'change' and genes == 'all' and metric == 'pearson'")["n"].item() == 2
    assert np.isfinite(rows.query("of == 'expression' and genes == 'all'")["mean"]).all()


# ---- what the method promises


@pytest.fixture(scope="module")
def planted():
    """Effects that all contexts share, three conditions held out, and a model trained on the rest for 300 steps."""
    adata = tv.datasets.simulate_responses(
        n_contexts=3,
        n_perturbations=6,
        n_genes=100,
        n_cells_per_condition=20,
        n_control_cells_per_context=60,
        specific_share=0,
        **STRONG,
    )
    held_out = [("P01", "C1"), ("P02", "C2"), ("P03", "C3")]
    rows = np.concatenate([cells(adata, *one) for one in held_out])
    training = adata[np.setdiff1d(np.arange(adata.n_obs), rows)].copy()
    return adata, held_out, train(training, epochs=20, network={"n_hidden": (128,), "n_latent": 32})


def test_planted_effects_are_found_in_contexts_that_never_showed_them(planted):
    adata, held_out, model = planted
    for name, context in held_out:
        pred = model.predict(name, context)
        assert about(pred)["in_training"] is False
        change = (pred.X - pred.layers["control"]).mean(0)
        effects = adata.varm["true_effects"]
        agreement = {
            p: np.corrcoef(change, effects[f"{context}|{p}"])[0, 1] for p in adata.uns["simulation"]["perturbations"]
        }
        own = agreement.pop(name)
        assert own > 0.75
        assert max(agreement.values()) < own - 0.2


def test_effects_are_in_the_perturbation_not_in_the_basal_state(planted):
    adata, _, model = planted
    training = model.adata
    basal, effects = model.get_basal_representation(), model.get_perturbation_representation()
    shares, decoded_shares = [], []
    for context in ("C1", "C2", "C3"):
        control = cells(training, "control", context)
        for name in adata.uns["simulation"]["perturbations"]:
            if len(rows := cells(training, name, context)):
                moved = [np.linalg.norm(z[rows].mean(0) - z[control].mean(0)) for z in (basal, effects)]
                shares.append(moved[0] / moved[1])
                # of the decoded change as well, what the basal state alone does
                at = decode(model, basal[control].mean(0, keepdims=True))
                state = decode(model, basal[rows].mean(0, keepdims=True)) - at
                both = decode(model, (basal + effects)[rows].mean(0, keepdims=True)) - at
                decoded_shares.append(np.linalg.norm(state) / np.linalg.norm(both))
    assert len(shares) == 15
    assert np.median(shares) < 0.4
    assert np.median(decoded_shares) < 0.4
