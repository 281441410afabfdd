"""Combinations from their singles, by hand and exact on simulated expectations."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import transverse as tv

NAMES = ("Additive", "MeanOfSingles", "LargerSingle", "LargestChange")
Additive, MeanOfSingles, LargerSingle, LargestChange = BASELINES = [getattr(tv.baselines, name) for name in NAMES]


def largest_change(shifts):
    return np.array([max(column, key=abs) for column in np.transpose(shifts)])


BY_HAND = {
    Additive: lambda shifts: sum(shifts),
    MeanOfSingles: lambda shifts: sum(shifts) / len(shifts),
    LargerSingle: lambda shifts: max(shifts, key=lambda shift: (shift**2).sum()),
    LargestChange: largest_change,
}
EVERY = pytest.mark.parametrize("make", BASELINES, ids=NAMES)


@pytest.fixture
def screen():
    """Cells, and the shift of every condition; D was not measured in C1, and no double in C2."""
    rng = np.random.default_rng(1)
    cells, names, means = [], [], {}
    for context in ("C1", "C2", "C3"):
        for name in ("control", "A", "B", "C", "D", "A+B", "B+A"):
            if (name, context) == ("D", "C1") or ("+" in name and context == "C2"):
                continue
            x = rng.uniform(0, 3, (int(rng.integers(2, 9)), 8))
            cells.append(x)
            names += [(name, context)] * len(x)
            means[name, context] = x.mean(0)
    obs = pd.DataFrame(names, columns=["perturbation", "cell_type"], index=[f"cell{i}" for i in range(len(names))])
    shifts = {pair: mean - means["control", pair[1]] for pair, mean in means.items()}
    return ad.AnnData(np.concatenate(cells), obs=obs), shifts


@EVERY
@pytest.mark.parametrize("double", ["A+B", "B+A", ["A", "B"], "A+C", ["C", "B"]])
@pytest.mark.parametrize("context", ["C1", "C2", "C3"])
def test_by_hand(screen, make, double, context):
    adata, shifts = screen
    singles = double.split("+") if isinstance(double, str) else double
    baseline = make().fit(adata)
    expected = BY_HAND[make]([shifts[single, context] for single in singles])
    np.testing.assert_allclose(baseline.predict_change(double, context), expected)
    assert baseline.predict(double, context).uns["prediction"]["source"] == [context]


@EVERY
def test_triples(screen, make):
    adata, shifts = screen
    expected = BY_HAND[make]([shifts[single, "C2"] for single in "ABC"])
    for triple in ("C+A+B", ["B", "C", "A"], ["C", "B+A"]):
        np.testing.assert_allclose(make().fit(adata).predict_change(triple, "C2"), expected)


@EVERY
def test_a_single_from_other_contexts(screen, make):
    adata, shifts = screen
    baseline = make().fit(adata)
    for source, others in ((None, ["C2", "C3"]), ("C3", ["C3"])):
        d = np.mean([shifts["D", c] for c in others], axis=0)
        expected = BY_HAND[make]([shifts["A", "C1"], d])
        np.testing.assert_allclose(baseline.predict_change("D+A", "C1", source=source), expected)
        assert baseline.predict("D+A", "C1", source=source).uns["prediction"]["source"] == ["C1", *others]


@EVERY
def test_only_singles_matter(screen, make):
    adata, _ = screen
    expected = make().fit(adata).predict_change("A+B", "C1")
    without = adata[~adata.obs["perturbation"].str.contains("+", regex=False).to_numpy()]
    np.testing.assert_allclose(make().fit(without).predict_change("A+B", "C1"), expected)


@EVERY
def test_what_cannot_be_combined(screen, make):
    adata, _ = screen
    baseline = make().fit(adata)
    for single in ("A", ["A"]):
        with pytest.raises(ValueError, match=f"'A' is not a combination: {make.__name__} combines singles"):
            baseline.predict(single, "C1")
    assert not baseline.supports("A", "C1")
    with pytest.raises(ValueError, match=r"'D' was not measured in any context to carry from \(none\)"):
        baseline.predict("A+D", "C1", source=[])
    with pytest.raises(KeyError, match="Unknown perturbation: 'Z'"):
        baseline.predict("A+Z", "C1")
    with pytest.raises(ValueError, match=r"'A\+B' is not a combination"):
        make().fit(adata, delimiter=None).predict("A+B", "C1")


def change_scores(baseline, adata):
    """Scores of the change of all doubles in C1, on the planted expectations (all controls are alike)."""
    doubles = [name for name in adata.obs["perturbation"].cat.categories if "+" in name]
    held = (adata.obs["perturbation"].isin(doubles) & (adata.obs["cell_type"] == "C1")).to_numpy()
    is_control = (adata.obs["perturbation"] == "control").to_numpy()
    scoring = is_control & (np.arange(adata.n_obs) % 2 == 0)
    baseline.fit(adata[~held & ~scoring], layer="expected")
    pred = ad.concat([baseline.predict(double, "C1") for double in doubles], index_unique="-")
    scores = tv.metrics.response_scores(
        adata[held], pred, adata[scoring], layer="expected", n_top=None, allow_shared_controls=True
    )
    return scores[(scores["of"] == "change") & (scores["metric"] == "r2")]["value"]


def test_additive_is_exact_where_effects_add_up():
    params = {"n_contexts": 2, "n_perturbations": 6, "n_doubles": 6, "n_genes": 120, "n_cells_per_condition": 4}
    params["n_control_cells_per_context"] = 6
    additive = tv.datasets.simulate_responses(interaction=0.0, **params)
    np.testing.assert_allclose(change_scores(Additive(), additive), 1, atol=1e-6)
    for make in (MeanOfSingles, LargerSingle):
        assert change_scores(make(), additive).mean() < 0.95
    interacting = tv.datasets.simulate_responses(interaction=0.5, **params)
    assert (change_scores(Additive(), interacting) < 0.95).all()
    # singles change genes of their own but for a few
    assert 0.8 < change_scores(LargestChange(), additive).mean() < 1 - 1e-6
