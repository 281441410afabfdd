"""What all baselines of responses share: the fit, the form of a prediction, what it may not see, and every message."""

import re
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import transverse as tv

b = tv.baselines
BASELINES = {
    "no change": b.NoChange,
    "mean perturbation": b.MeanPerturbation,
    "mean shift": b.MeanShift,
    "similarity": lambda: b.MeanShift("similarity"),
    "nearest context": b.NearestContext,
    "ridge, responses": lambda: b.PCRidge(3, embedding="responses"),
    "ridge, genes": lambda: b.PCRidge(3, embedding="genes"),
    "ridge, auto": lambda: b.PCRidge(3),
    "additive": b.Additive,
    "mean of singles": b.MeanOfSingles,
    "larger single": b.LargerSingle,
    "largest change": b.LargestChange,
}
COMBINING = {"additive", "mean of singles", "larger single", "largest change"}
GENES = list("ABCDEFGHIJKL")
SIZES = {("C1", "A"): 2}
EVERY = pytest.mark.parametrize("name", BASELINES)


def screen(contexts=("C1", "C2", "C3"), seed=0):
    """Log-normalised cells in three contexts: controls, four singles, doubles in both orders, unequal numbers."""
    rng = np.random.default_rng(seed)
    rows, blocks = [], []
    for context in contexts:
        base = rng.uniform(0.5, 2, len(GENES))
        for name in ("control", "A", "B", "C", "D", "A+B", "B+A", "C + A"):
            n = SIZES.get((context, name), int(rng.integers(3, 7)))
            rows += [(name, context)] * n
            blocks.append(np.maximum(base + rng.normal(0, 0.5, len(GENES)) + rng.normal(0, 0.3, (n, len(GENES))), 0))
    x = np.concatenate(blocks).astype(np.float32)
    order = rng.permutation(len(x))
    obs = pd.DataFrame(rows, columns=["perturbation", "cell_type"]).iloc[order]
    obs.index = [f"cell{i}" for i in range(len(x))]
    return ad.AnnData(x[order], obs=obs.astype("category"), var=pd.DataFrame(index=GENES))


def rows_of(adata, name, context):
    names = ["A+B", "B+A"] if name == "A+B" else [name]
    return (adata.obs["perturbation"].isin(names) & (adata.obs["cell_type"] == context)).to_numpy()


def shift_of(adata, name, context):
    """By hand: the mean of the condition's cells less that of the controls."""
    x = np.asarray(adata.X, dtype=float)
    return x[rows_of(adata, name, context)].mean(0) - x[rows_of(adata, "control", context)].mean(0)


def asked(name):
    return ("A+B" if name in COMBINING else "A"), "C1"


def dense(x):
    return x.toarray() if sp.issparse(x) else np.asarray(x)


# form


@EVERY
def test_form_of_a_prediction(name, tmp_path):
    adata = screen()
    baseline = BASELINES[name]().fit(adata)
    perturbation, context = asked(name)
    pred = baseline.predict(perturbation, context=context)
    change = baseline.predict_change(perturbation, context)
    cells = adata[rows_of(adata, "control", context)]
    assert change.index.equals(adata.var_names)
    assert change.name == "change"
    assert pred.X.dtype == pred.layers["control"].dtype == np.float32
    np.testing.assert_array_equal(pred.layers["control"], cells.X)
    np.testing.assert_array_equal(pred.X, cells.X + change.to_numpy(np.float32))
    assert pred.obs_names.tolist() == cells.obs_names.tolist() == pred.obs["control_cell"].tolist()
    assert pred.var_names.equals(adata.var_names)
    assert set(pred.obs) == {"perturbation", "cell_type", "control_cell"}
    assert pred.obs["perturbation"].cat.categories.tolist() == [perturbation]
    assert pred.obs["cell_type"].cat.categories.tolist() == [context]
    about = pred.uns["prediction"]
    assert (about["perturbation"], about["context"]) == (perturbation, context)
    assert about["method"] == type(baseline).__name__
    assert set(about["source"]) <= {"C1", "C2", "C3"}
    pred.write_h5ad(tmp_path / "pred.h5ad")
    again = ad.read_h5ad(tmp_path / "pred.h5ad")
    np.testing.assert_array_equal(again.X, pred.X)
    np.testing.assert_array_equal(again.layers["control"], pred.layers["control"])
    assert again.obs["control_cell"].tolist() == pred.obs["control_cell"].tolist()
    assert list(again.uns["prediction"]["source"]) == about["source"]


@pytest.mark.parametrize("name", ["mean perturbation", "similarity", "ridge, genes", "additive"])
def test_sparse_backed_layer_and_view_are_the_same(name, tmp_path):
    adata = screen()
    perturbation, context = asked(name)
    expected = BASELINES[name]().fit(adata).predict(perturbation, context)
    layered = ad.AnnData(adata.X * 0 + 0.5, obs=adata.obs, var=adata.var, layers={"log": sp.csc_matrix(adata.X)})
    noise = adata[::-1].copy()
    noise.obs["cell_type"] = "C9"
    variants = [(layered, "log"), (ad.concat([adata, noise], index_unique="-")[: adata.n_obs], None)]
    for fmt in (np.asarray, sp.csr_matrix, sp.csc_matrix):
        other = ad.AnnData(fmt(adata.X), obs=adata.obs, var=adata.var)
        file = tmp_path / f"{fmt.__name__}.h5ad"
        other.write_h5ad(file)
        variants += [(other, None), (ad.read_h5ad(file, backed="r"), None), (other[:].copy(), None)]
    for variant, layer in variants:
        pred = BASELINES[name]().fit(variant, layer=layer).predict(perturbation, context)
        np.testing.assert_allclose(pred.X, expected.X, atol=1e-6)
        np.testing.assert_array_equal(pred.layers["control"], expected.layers["control"])
        if variant.isbacked:
            variant.file.close()


@EVERY
def test_data_are_not_changed(name):
    adata = screen()
    adata.uns["mine"] = {"a": 1}
    before = adata.copy()
    controls = adata[rows_of(adata, "control", "C1")].copy()
    baseline = BASELINES[name]().fit(adata)
    pred = baseline.predict(*asked(name))
    pred.X[:] = -1
    pred.layers["control"][:] = -1
    again = baseline.predict(*asked(name), controls=controls)
    again.layers["control"][:] = -1
    assert (baseline.predict(*asked(name)).layers["control"] >= 0).all()
    change = baseline.predict_change(*asked(name))
    expected = change.copy()
    change.iloc[:] = 99
    pd.testing.assert_series_equal(baseline.predict_change(*asked(name)), expected)
    np.testing.assert_array_equal(adata.X, before.X)
    np.testing.assert_array_equal(controls.X, before.X[rows_of(adata, "control", "C1")])
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    assert dict(adata.uns) == {"mine": {"a": 1}}
    assert not adata.layers


@EVERY
def test_the_predicted_condition_is_never_seen(name):
    """Neither its cells nor how many there are matter, nor that they are there at all."""
    adata = screen()
    perturbation, context = asked(name)
    here = rows_of(adata, perturbation, context)
    changed = adata.copy()
    changed.X[here] = np.random.default_rng(1).uniform(0, 9, (here.sum(), adata.n_vars))
    changed = ad.concat([changed, changed[here]], index_unique="-")[:, GENES]
    preds = [BASELINES[name]().fit(one).predict_change(perturbation, context) for one in (adata, changed, adata[~here])]
    np.testing.assert_array_equal(preds[1], preds[0])
    np.testing.assert_allclose(preds[2], preds[0], atol=1e-12)
    # labels that say the same
    relabelled = changed.copy()
    names = relabelled.obs["perturbation"].astype(str).to_numpy(dtype=object)
    names[rows_of(changed, perturbation, context)] = " + ".join([*perturbation.split("+")[::-1], "control"])
    relabelled.obs["perturbation"] = names
    np.testing.assert_array_equal(BASELINES[name]().fit(relabelled).predict_change(perturbation, context), preds[0])


@EVERY
def test_order_of_cells_and_of_calls_does_not_matter(name):
    adata = screen()
    expected = BASELINES[name]().fit(adata).predict_change(*asked(name))
    baseline = BASELINES[name]().fit(adata[::-1])
    for other in ("B", "A+B", "A+C"):
        for context in ("C3", "C1"):
            baseline.supports(other, context)
    np.testing.assert_allclose(baseline.predict_change(*asked(name)), expected, atol=1e-12)
    np.testing.assert_allclose(
        baseline.fit(screen(seed=5)).fit(adata).predict_change(*asked(name)), expected, atol=1e-12
    )


def test_a_new_fit_forgets_the_old_one():
    first, second = screen(), screen(seed=5)
    for name, make in BASELINES.items():
        perturbation, context = asked(name)
        keep = [~rows_of(one, perturbation, context) for one in (first, second)]
        baseline = make().fit(first[keep[0]])
        baseline.predict_change(perturbation, context)
        baseline.fit(second[keep[1]])
        expected = make().fit(second[keep[1]]).predict_change(perturbation, context)
        np.testing.assert_array_equal(baseline.predict_change(perturbation, context), expected)


@pytest.mark.parametrize("double", ["A+B", "B+A", " B + A", ["A", "B"], ("B", "A"), np.array(["B", "A"]), ["B+A"]])
@pytest.mark.parametrize("make", [b.MeanShift, b.Additive, b.NoChange])
def test_a_combination_in_any_form(make, double):
    baseline = make().fit(screen())
    pred = baseline.predict(double, "C1")
    np.testing.assert_array_equal(pred.X, baseline.predict("A+B", "C1").X)
    # the result goes by the name that was asked for
    assert pred.obs["perturbation"].unique().tolist() == [double if isinstance(double, str) else "+".join(double)]
    assert pred.uns["prediction"]["perturbation"] == "A+B"


def test_both_orders_are_one_condition():
    adata = screen()
    shifts = [shift_of(adata, "A+B", context) for context in ("C2", "C3")]
    change = b.MeanShift().fit(adata).predict_change("A+B", "C1")
    np.testing.assert_allclose(change, np.mean(shifts, axis=0), atol=1e-12)
    # cells count, not labels
    swapped = adata.copy()
    swapped.obs["perturbation"] = adata.obs["perturbation"].astype(str).replace({"B+A": "A+B"})
    np.testing.assert_allclose(b.MeanShift().fit(swapped).predict_change("A+B", "C1"), change, atol=1e-12)


def test_a_control_within_a_combination_does_not_count():
    adata = screen()
    expected = b.MeanShift().fit(adata).predict_change("A", "C1")
    names = adata.obs["perturbation"].astype(str)
    for label in ("A+control", "control+A"):
        adata.obs["perturbation"] = names.replace({"A": label, "D": "control"})
        baseline = b.MeanShift().fit(adata)
        assert baseline.predict("A", "C1").n_obs == rows_of(adata, "control", "C1").sum()
    adata.obs["perturbation"] = names.replace({"A": "A+control"})
    baseline = b.MeanShift().fit(adata)
    for asked_for in ("A", "A+control", ["control", "A"]):
        np.testing.assert_array_equal(baseline.predict_change(asked_for, "C1"), expected)


def test_delimiter():
    adata = screen()
    joined = adata.copy()
    joined.obs["perturbation"] = adata.obs["perturbation"].astype(str).str.replace("+", "_")
    expected = b.Additive().fit(adata).predict_change("A+B", "C1")
    np.testing.assert_array_equal(b.Additive().fit(joined, delimiter="_").predict_change(["B", "A"], "C1"), expected)
    plain = b.MeanShift().fit(adata, delimiter=None)
    np.testing.assert_allclose(
        plain.predict_change("C + A", "C1"), np.mean([shift_of(adata, "C + A", c) for c in ("C2", "C3")], axis=0)
    )
    x = np.asarray(adata.X, dtype=float)
    one = [
        x[((adata.obs["perturbation"] == "A+B") & (adata.obs["cell_type"] == c)).to_numpy()].mean(0)
        - x[rows_of(adata, "control", c)].mean(0)
        for c in ("C2", "C3")
    ]
    np.testing.assert_allclose(plain.predict_change("A+B", "C1"), np.mean(one, axis=0))
    with pytest.raises(ValueError, match="'A', 'B'.* is a combination, but delimiter=None"):
        plain.predict(["A", "B"], "C1")


# contexts and controls


def test_one_context_needs_no_name():
    adata = screen(["C1"])
    expected = shift_of(adata, "A", "C1") + shift_of(adata, "B", "C1")
    with_key = b.Additive().fit(adata)
    pred = with_key.predict("A+B")
    np.testing.assert_allclose(with_key.predict_change("A+B"), expected)
    assert pred.obs["cell_type"].unique().tolist() == ["C1"]
    adata.obs = adata.obs[["perturbation"]]
    without = b.Additive().fit(adata, context_key=None)
    pred = without.predict(["A", "B"])
    np.testing.assert_allclose(without.predict_change("A+B"), expected)
    assert set(pred.obs) == {"perturbation", "control_cell"}
    assert pred.n_obs == rows_of(screen(["C1"]), "control", "C1").sum()
    with pytest.raises(KeyError, match="context='C1' is unknown: the baseline was fitted with context_key=None"):
        without.predict("A+B", "C1")


def test_without_contexts_all_cells_are_one():
    adata = screen()
    x, names = np.asarray(adata.X, dtype=float), adata.obs["perturbation"]
    baseline = b.Additive().fit(adata, context_key=None)
    control = x[names == "control"].mean(0)
    expected = x[names == "A"].mean(0) + x[names == "C"].mean(0) - 2 * control
    np.testing.assert_allclose(baseline.predict_change("C+A"), expected)
    assert baseline.predict("C+A").n_obs == (names == "control").sum()


@pytest.mark.parametrize("source", ["C3", ["C3"], ("C3", "C3"), pd.Index(["C3"])])
def test_source(source):
    adata = screen()
    for make in (b.MeanShift, b.NearestContext, lambda: b.MeanShift("similarity")):
        baseline = make().fit(adata)
        np.testing.assert_allclose(baseline.predict_change("A", "C1", source=source), shift_of(adata, "A", "C3"))
        assert baseline.predict("A", "C1", source=source).uns["prediction"]["source"] == ["C3"]


def test_numbers_as_labels():
    adata = screen()
    expected = b.MeanShift().fit(adata).predict_change("A", "C1", source="C2")
    adata.obs["context"] = adata.obs["cell_type"].cat.rename_categories({"C1": 1, "C2": 2, "C3": 3})
    codes = {"control": 0, "A": 1, "B": 2, "C": 3, "D": 4, "A+B": 5, "B+A": 6, "C + A": 7}
    for categorical in (True, False):
        adata.obs["code"] = [codes[name] for name in adata.obs["perturbation"]]
        if categorical:
            adata.obs["code"] = adata.obs["code"].astype("category")
        baseline = b.MeanShift().fit(adata, perturbation_key="code", control=0, context_key="context")
        for arguments in ((1, 1, 2), ("1", "1", ["2"]), ([np.int64(1)], np.int64(1), [2])):
            pred = baseline.predict(*arguments[:2], source=arguments[2])
            assert pred.obs["code"].unique().tolist() == ["1"]
            np.testing.assert_array_equal(
                baseline.predict_change(*arguments[:2], source=arguments[2]).to_numpy(), expected.to_numpy()
            )


def test_unused_categories_are_no_conditions():
    adata = screen()
    part = adata[(adata.obs["perturbation"] != "D").to_numpy()].copy()
    part.obs["perturbation"] = part.obs["perturbation"].cat.add_categories(["Z"])
    part.obs["cell_type"] = part.obs["cell_type"].cat.add_categories(["C9"])
    baseline = b.MeanShift().fit(part)
    np.testing.assert_array_equal(
        baseline.predict_change("A", "C1"), b.MeanShift().fit(adata).predict_change("A", "C1")
    )
    with pytest.raises(KeyError, match="Unknown perturbation: 'Z'"):
        baseline.predict("Z", "C1")
    with pytest.raises(KeyError, match="context='C9' has no control cells"):
        baseline.predict("A", "C9")


def test_contexts_without_controls_are_left_out():
    adata = screen()
    part = adata[~rows_of(adata, "control", "C2")]
    with pytest.warns(UserWarning, match="treated cells but no control cells, and are left out: 'C2'") as caught:
        baseline = b.MeanShift().fit(part)
    assert caught[0].filename == __file__
    np.testing.assert_allclose(baseline.predict_change("A", "C1"), shift_of(adata, "A", "C3"))
    with pytest.raises(KeyError, match="context='C2' has no control cells. Contexts that have: 'C1', 'C3'"):
        baseline.predict("A", "C2")
    with pytest.raises(KeyError, match="source has unknown contexts: 'C2'. Known: 'C1', 'C3'"):
        baseline.predict("A", "C1", source="C2")
    # a context with controls only is what predictions are for
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)  # of other packages
        held_out = adata[((adata.obs["cell_type"] != "C2") | rows_of(adata, "control", "C2")).to_numpy()]
        change = b.MeanShift().fit(held_out).predict_change("A", "C2")
    np.testing.assert_allclose(change, np.mean([shift_of(adata, "A", c) for c in ("C1", "C3")], axis=0))


@pytest.mark.parametrize("fmt", [np.asarray, sp.csr_matrix, sp.csc_matrix])
@pytest.mark.parametrize("on_disk", [False, True])
def test_own_controls(fmt, on_disk, tmp_path):
    adata = screen()
    baseline = b.MeanShift().fit(adata)
    rng = np.random.default_rng(3)
    x = rng.uniform(0, 3, (4, len(GENES) + 1)).astype(np.float32)
    names = ["extra", *GENES[::-1]]
    controls = ad.AnnData(fmt(x), obs=pd.DataFrame(index=list("wxyz")), var=pd.DataFrame(index=names))
    for part in (controls, controls[:, GENES].copy()):
        if on_disk:
            part.write_h5ad(tmp_path / "controls.h5ad")
            part = ad.read_h5ad(tmp_path / "controls.h5ad", backed="r")
        pred = baseline.predict("A", "C1", controls=part)
        np.testing.assert_array_equal(pred.layers["control"], x[:, :0:-1])
        np.testing.assert_array_equal(pred.X, x[:, :0:-1] + baseline.predict_change("A", "C1").to_numpy(np.float32))
        assert pred.obs["control_cell"].tolist() == pred.obs_names.tolist() == list("wxyz")
        assert pred.var_names.tolist() == GENES
        if on_disk:
            part.file.close()


def test_own_controls_are_read_from_the_layer():
    adata = screen()
    adata.layers["log"] = adata.X.copy()
    adata.X = adata.X * 0 + 0.25
    baseline = b.MeanShift().fit(adata, layer="log")
    controls = adata[rows_of(adata, "control", "C1")]
    np.testing.assert_array_equal(
        baseline.predict("A", "C1", controls=controls[:, GENES[::-1]]).X, baseline.predict("A", "C1").X
    )
    del adata.layers["log"]
    with pytest.raises(KeyError, match="layer='log' is not in controls.layers"):
        baseline.predict("A", "C1", controls=adata[rows_of(adata, "control", "C1")])


def test_own_controls_that_are_refused():
    adata = screen()
    baseline = b.MeanShift().fit(adata)
    controls = adata[rows_of(adata, "control", "C1")].copy()
    with pytest.raises(TypeError, match="controls must be an AnnData, but got ndarray"):
        baseline.predict("A", "C1", controls=controls.X)
    with pytest.raises(ValueError, match="controls has no cells"):
        baseline.predict("A", "C1", controls=controls[:0])
    with pytest.raises(ValueError, match=r"only cells with 'control' in obs\['perturbation'\], but has .*'B'"):
        baseline.predict("A", "C1", controls=adata[(adata.obs["cell_type"] == "C1").to_numpy()])
    with pytest.raises(ValueError, match=r"only cells with 'C1' in obs\['cell_type'\], but has 'C2'"):
        baseline.predict("A", "C1", controls=adata[rows_of(adata, "control", "C2")])
    with pytest.raises(ValueError, match="1 of the 12 genes .* missing in controls: 'L'"):
        baseline.predict("A", "C1", controls=controls[:, GENES[:-1]])
    raw = ad.AnnData(np.round(controls.X * 5), obs=controls.obs, var=controls.var)
    with pytest.raises(ValueError, match="controls.X must hold log-normalised values, .* look like raw counts"):
        baseline.predict("A", "C1", controls=raw)
    controls.X[0, 0] = np.nan
    with pytest.raises(ValueError, match="controls.X has missing or infinite values"):
        baseline.predict("A", "C1", controls=controls)


# what can be predicted


@EVERY
@pytest.mark.parametrize("key", ["cell_type", None])
def test_supports_agrees_with_predict(name, key):
    adata = screen()
    drop = rows_of(adata, "A", "C2") | rows_of(adata, "A", "C3") | rows_of(adata, "control", "C2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        baseline = BASELINES[name]().fit(adata[~drop], context_key=key)
    found = set()
    for perturbation in ("A", "B", "A+B", ["C", "B"], "C+D", "E", "Z", "A+Z", "control", "Z+control"):
        for context in ("C1", "C2", "C3", "C9") if key else (None, "C1"):
            try:
                baseline.predict(perturbation, context)
                worked = True
            except (KeyError, ValueError):
                worked = False
            assert baseline.supports(perturbation, context) is worked
            found.add(worked)
    assert False in found
    assert (True in found) or (
        key is None and name in {"mean shift", "similarity", "nearest context", "ridge, responses"}
    )


@EVERY
def test_messages_of_predict(name):
    baseline = BASELINES[name]()
    with pytest.raises(ValueError, match=rf"{type(baseline).__name__} has not been fitted. Call fit\(adata\) first"):
        baseline.predict("A", "C1")
    assert not baseline.supports("A", "C1")
    baseline.fit(screen())
    perturbation, _ = asked(name)
    with pytest.raises(ValueError, match="context is needed, one of 'C1', 'C2', 'C3'"):
        baseline.predict(perturbation)
    with pytest.raises(KeyError, match="context='C9' has no control cells. Contexts that have: 'C1', 'C2', 'C3'"):
        baseline.predict(perturbation, "C9")
    with pytest.raises(ValueError, match="perturbation='control' is the control"):
        baseline.predict("control", "C1")
    with pytest.raises(KeyError, match="source has unknown contexts: 'C8', 'C9'. Known: 'C1', 'C2', 'C3'"):
        baseline.predict(perturbation, "C1", source=["C8", "C2", "C9"])
    with pytest.raises(ValueError, match="source has 'C1', the context that is predicted"):
        baseline.predict_change(perturbation, "C1", source=["C1", "C2"])
    if name not in {"no change", "mean perturbation"}:
        for unknown in ("Z", "Y+Z", ["A", "Z"]):
            with pytest.raises(KeyError, match=r"Unknown perturbation: '[YZ]'.* Known: 'A', 'A\+B', 'A\+C', 'B', 'C'"):
                baseline.predict(unknown, "C1")


@pytest.mark.parametrize("name", ["mean shift", "similarity", "nearest context", "ridge, responses"])
def test_nothing_to_carry_over(name):
    baseline = BASELINES[name]().fit(screen())
    known = type(baseline).__name__
    message = rf"'B\+C' was not measured in any context to carry from \('C2', 'C3'\): {known} has nothing to carry over"
    with pytest.raises(KeyError, match="Unknown"):
        baseline.predict("B+Z", "C1")
    with pytest.raises(ValueError, match=message):
        baseline.predict("C+B", "C1")
    with pytest.raises(ValueError, match=r"carry from \(none\)"):
        baseline.predict("A", "C1", source=[])
    with pytest.raises(ValueError, match=r"carry from \(none\)"):
        BASELINES[name]().fit(screen(["C1"])).predict("A")


# what is refused before any work


def test_messages_of_fit():
    adata = screen()
    fit = b.MeanShift().fit
    with pytest.raises(TypeError, match="adata must be an AnnData, but got ndarray"):
        fit(adata.X)
    with pytest.raises(
        KeyError, match="perturbation_key='drug' is not in adata.obs. Columns: 'perturbation', 'cell_type'"
    ):
        fit(adata, perturbation_key="drug")
    with pytest.raises(KeyError, match="context_key='line' is not in adata.obs"):
        fit(adata, context_key="line")
    with pytest.raises(KeyError, match="layer='log' is not in adata.layers"):
        fit(adata, layer="log")
    message = r"No cell has control='DMSO' in adata.obs\['perturbation'\]. Values: 'A', 'A\+B', .*\(8 in all\)"
    with pytest.raises(ValueError, match=message):
        fit(adata, control="DMSO")
    repeated = adata.copy()
    repeated.var_names = ["A", *GENES[:-1]]
    with pytest.raises(ValueError, match="var_names must be unique"):
        fit(repeated)
    for value, message in ((np.nan, "missing or infinite"), (np.inf, "missing or infinite")):
        wrong = adata.copy()
        wrong.X[3, 2] = value
        with pytest.raises(ValueError, match=message):
            fit(wrong)
    with pytest.raises(ValueError, match=r"adata.X must hold log-normalised .*normalize_total\(adata"):
        fit(ad.AnnData(np.round(adata.X * 10), obs=adata.obs, var=adata.var))
    for key in ("perturbation", "cell_type"):
        wrong = adata.copy()
        values = wrong.obs[key].astype(object).to_numpy(copy=True)
        values[[2, 5]] = None
        wrong.obs[key] = pd.Categorical(values)
        with pytest.raises(ValueError, match=re.escape(f"adata.obs['{key}'] is missing for 2 cells: 'cell2', 'cell5'")):
            fit(wrong)


def test_a_fit_that_fails_leaves_the_last_one():
    adata = screen()
    baseline = b.MeanShift().fit(adata)
    expected = baseline.predict("A", "C1").X
    for kwargs in ({"control": "DMSO"}, {"layer": "log"}, {"context_key": "line"}):
        with pytest.raises((KeyError, ValueError)):
            baseline.fit(adata, **kwargs)
    np.testing.assert_array_equal(baseline.predict("A", "C1").X, expected)


def test_controls_alone_can_be_fitted():
    adata = screen()
    controls = adata[(adata.obs["perturbation"] == "control").to_numpy()]
    assert b.NoChange().fit(controls).predict("A", "C1").n_obs == rows_of(adata, "control", "C1").sum()
    with pytest.raises(KeyError, match="Unknown perturbation: 'A'. Known: none"):
        b.MeanShift().fit(controls).predict("A", "C1")


def test_a_control_that_holds_the_delimiter():
    adata = screen()
    expected = b.MeanShift().fit(adata).predict_change("A", "C1")
    adata.obs["perturbation"] = adata.obs["perturbation"].astype(str).replace({"control": "no+guide"})
    baseline = b.MeanShift().fit(adata, control="no+guide")
    np.testing.assert_array_equal(baseline.predict_change("A", "C1"), expected)
    with pytest.raises(ValueError, match="is the control"):
        baseline.predict("no+guide", "C1")
