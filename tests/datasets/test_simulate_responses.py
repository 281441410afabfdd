"""Simulated responses: what is stored as truth is what made the cells, and every argument does what it says."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from transverse.datasets import simulate_responses

TINY = {"n_perturbations": 4, "n_genes": 60, "n_cells_per_condition": 6, "n_control_cells_per_context": 8}


def effects(adata):
    """Planted effects, contexts x perturbations x genes."""
    table = adata.varm["true_effects"].T
    return table.to_numpy().reshape(len(adata.uns["simulation"]["contexts"]), -1, table.shape[1])


def expected(adata, perturbation, context, dose=None):
    """The planted expectation of a condition, which all its cells have in common."""
    obs = adata.obs
    cells = (obs["perturbation"] == perturbation) & (obs["cell_type"] == context)
    if dose is not None:
        cells &= obs["dose"] == dose
    rows = np.unique(adata.layers["expected"][cells.to_numpy()], axis=0)
    assert len(rows) == 1
    return rows[0].astype(float)


def correlation(a, b):
    return np.corrcoef(np.ravel(a), np.ravel(b))[0, 1]


def pairs_of(adata):
    return set(zip(adata.obs["cell_type"].astype(str), adata.obs["perturbation"].astype(str), strict=True))


def test_layout():
    adata = simulate_responses(**TINY, n_doubles=2)
    assert adata.shape == (4 * (6 * 6 + 8), 60)
    perturbations = adata.obs["perturbation"].cat.categories
    assert perturbations[:5].tolist() == ["control", "P01", "P02", "P03", "P04"]
    assert all(set(name.split("+")) <= set(perturbations[1:5]) for name in perturbations[5:])
    assert perturbations.is_unique
    assert adata.obs["cell_type"].cat.categories.tolist() == ["C1", "C2", "C3", "C4"]
    assert adata.obs["replicate"].cat.categories.tolist() == ["R1", "R2"]
    assert "dose" not in adata.obs
    sizes = adata.obs.groupby(["cell_type", "perturbation"], observed=True).size()
    assert (sizes.xs("control", level=1) == 8).all()
    assert (sizes.drop("control", level=1) == 6).all()
    replicates = adata.obs.groupby(["cell_type", "perturbation", "replicate"], observed=True).size()
    assert set(replicates) == {3, 4}
    assert adata.obs_names.is_unique
    assert adata.var_names.is_unique
    assert not adata.obs["perturbation"].cat.codes.is_monotonic_increasing
    assert not adata.obs["cell_type"].cat.codes.is_monotonic_increasing


def test_counts_and_their_logs():
    adata = simulate_responses(**TINY)
    for matrix in (adata.X, adata.layers["counts"]):
        assert sparse.issparse(matrix)
        assert matrix.format == "csr"
        assert matrix.dtype == np.float32
    counts = adata.layers["counts"].toarray()
    assert (counts == np.round(counts)).all()
    assert counts.min() >= 0
    np.testing.assert_allclose(
        adata.X.toarray(), np.log1p(1e4 * counts / counts.sum(1, keepdims=True)), rtol=1e-5, atol=1e-5
    )
    assert counts.sum() == pytest.approx(adata.obs["library_size"].sum(), rel=0.05)


def test_cells_without_counts_are_zero():
    adata = simulate_responses(**TINY, library_size=0.5)
    empty = adata.layers["counts"].sum(1).A1 == 0
    assert empty.any()
    assert np.isfinite(adata.X.data).all()
    assert adata.X[empty].nnz == 0


def test_baseline_and_effects_make_the_expectation():
    adata = simulate_responses(**TINY, n_doubles=2)
    np.testing.assert_allclose(np.expm1(adata.varm["true_baseline"]).sum(0), 1e4)
    for c, context in enumerate(["C1", "C2", "C3", "C4"]):
        control = expected(adata, "control", context)
        np.testing.assert_allclose(control, adata.varm["true_baseline"][:, c], atol=1e-6)
        for name in adata.obs["perturbation"].cat.categories[1:]:
            change = expected(adata, name, context) - control
            np.testing.assert_allclose(change, adata.varm["true_effects"][f"{context}|{name}"], atol=2e-6)


def test_responsive_genes():
    adata = simulate_responses(n_cells_per_condition=1, n_control_cells_per_context=1)
    changed = effects(adata) != 0
    np.testing.assert_array_equal(adata.var["is_responsive"], changed.any((0, 1)))
    assert changed.mean() == pytest.approx(0.09, rel=0.1)
    highest = np.argsort(adata.varm["true_baseline"].mean(1))[-50:]
    assert not adata.var["is_responsive"].iloc[highest].any()
    values = effects(adata)[changed]
    assert values.std() == pytest.approx(0.7, rel=0.1)
    assert simulate_responses(**TINY, effect_share=0).var["is_responsive"].sum() == 0


def test_composition_stays_near_ten_thousand():
    adata = simulate_responses(n_cells_per_condition=1, n_control_cells_per_context=1)
    total = np.expm1(adata.layers["expected"]).sum(1)
    assert 0.95e4 < total.min() < total.max() < 1.1e4


def test_nothing_specific_is_the_same_shift_everywhere():
    adata = simulate_responses(**TINY, n_doubles=2, interaction=0.5, specific_share=0)
    values = effects(adata)
    assert (values[0] != 0).any()
    np.testing.assert_array_equal(values, np.broadcast_to(values[0], values.shape))


def test_saturated_effects_set_a_level():
    options = {**TINY, "specific_share": 0}
    plain, adata = simulate_responses(**options), simulate_responses(**options, saturation=1)
    baseline = adata.varm["true_baseline"].T
    np.testing.assert_array_equal(baseline, plain.varm["true_baseline"].T)
    changed = effects(plain) != 0
    treated = baseline[:, None] + effects(adata)
    np.testing.assert_allclose(treated[changed].reshape(4, -1).std(0), 0, atol=1e-6)
    np.testing.assert_array_equal(effects(adata)[~changed], 0)
    assert treated.min() > 0
    half = effects(simulate_responses(**options, saturation=0.5))
    np.testing.assert_allclose(half, (effects(plain) + effects(adata)) / 2, atol=1e-6)


def test_all_specific_is_uncorrelated_between_groups():
    adata = simulate_responses(
        n_perturbations=20, specific_share=1, n_cells_per_condition=1, n_control_cells_per_context=1
    )
    values = effects(adata)
    for a, b in ((0, 2), (0, 3), (1, 2), (1, 3)):
        assert abs(correlation(values[a], values[b])) < 0.05
        changed = (values[a] != 0) & (values[b] != 0)
        assert changed.mean() < 0.02
    alone = simulate_responses(
        n_perturbations=20, specific_share=1, group_share=0, n_cells_per_condition=1, n_control_cells_per_context=1
    )
    values = effects(alone)
    assert abs(correlation(values[0], values[1])) < 0.05


@pytest.mark.parametrize("share", [0.2, 0.7])
def test_shares_of_variance(share):
    adata = simulate_responses(
        n_perturbations=40,
        n_genes=2000,
        specific_share=share,
        group_share=0.5,
        n_cells_per_condition=1,
        n_control_cells_per_context=1,
        base_sd=0,
        context_sd=0,
        effect_sd=0.3,
    )
    values = effects(adata)
    assert correlation(values[0], values[1]) == pytest.approx(1 - share / 2, abs=0.04)
    assert correlation(values[0], values[2]) == pytest.approx(1 - share, abs=0.04)


def test_contexts_of_a_group_are_more_alike():
    adata = simulate_responses(n_cells_per_condition=1, n_control_cells_per_context=1)
    np.testing.assert_array_equal(adata.uns["simulation"]["context_groups"], [0, 0, 1, 1])
    for values in (adata.varm["true_baseline"].T, effects(adata)):
        within = [correlation(values[a], values[b]) for a, b in ((0, 1), (2, 3))]
        between = [correlation(values[a], values[b]) for a, b in ((0, 2), (0, 3), (1, 2), (1, 3))]
        assert min(within) > max(between) + 0.1


def test_doubles_are_additive_without_interaction():
    adata = simulate_responses(**TINY, n_doubles=6)
    for context in ("C1", "C4"):
        control = expected(adata, "control", context)
        for name in adata.obs["perturbation"].cat.categories[5:]:
            left, right = (expected(adata, single, context) for single in name.split("+"))
            np.testing.assert_allclose(expected(adata, name, context), left + right - control, atol=2e-6)
    assert len(adata.obs["perturbation"].cat.categories) == 1 + 4 + 6


@pytest.mark.parametrize("interaction", [0.3, 1.0])
def test_interaction_is_a_share_of_the_variance(interaction):
    sizes = {"n_cells_per_condition": 1, "n_control_cells_per_context": 1, "effect_sd": 0.2, "base_sd": 0.2}
    plain, other = (simulate_responses(n_doubles=30, interaction=i, **sizes) for i in (0, interaction))
    added, values = effects(plain)[:, 10:], effects(other)[:, 10:]
    np.testing.assert_array_equal(effects(plain)[:, :10], effects(other)[:, :10])
    np.testing.assert_array_equal(added == 0, values == 0)
    assert values.std() == pytest.approx(added.std(), rel=0.1)
    assert correlation(added, values) == pytest.approx(np.sqrt(1 - interaction), abs=0.05)


def test_expectations_are_never_negative():
    adata = simulate_responses(**TINY, n_doubles=6, interaction=0.5, effect_sd=10, effect_share=0.5)
    assert adata.layers["expected"].min() == 0
    assert effects(adata)[:, :4].min() < -1
    # Sums stay exact at the bound.
    adata = simulate_responses(**TINY, n_doubles=6, effect_sd=10, effect_share=0.5)
    singles = effects(adata)[:, :4]
    names = adata.obs["perturbation"].cat.categories[5:]
    for i, name in enumerate(names):
        left, right = (int(single[1:]) - 1 for single in name.split("+"))
        np.testing.assert_allclose(effects(adata)[:, 4 + i], singles[:, left] + singles[:, right], atol=1e-12)


def test_doses_are_monotone_up_to_the_true_effect():
    adata = simulate_responses(**TINY, n_doubles=1, doses=[10, 0.1, 1])
    assert sorted(adata.obs["dose"].unique()) == [0, 0.1, 1, 10]
    assert ((adata.obs["dose"] == 0) == (adata.obs["perturbation"] == "control")).all()
    half = adata.uns["true_half_doses"]["half_dose"]
    assert half.between(0.1, 10).all()
    control = expected(adata, "control", "C2")
    for name in ("P01", "P02", "P03", "P04"):
        low, mid, high = (expected(adata, name, "C2", dose) - control for dose in (0.1, 1, 10))
        full = adata.varm["true_effects"][f"C2|{name}"].to_numpy()
        np.testing.assert_allclose(high, full, atol=2e-6)
        changed = full != 0
        assert (np.abs(low[changed]) < np.abs(mid[changed])).all()
        assert (np.abs(mid[changed]) < np.abs(high[changed])).all()
        curve = (1 / (1 + half[name])) / (10 / (10 + half[name]))
        np.testing.assert_allclose(mid, curve * full, atol=2e-6)
    double = adata.obs["perturbation"].cat.categories[5]
    left, right = (expected(adata, single, "C2", 1) for single in double.split("+"))
    np.testing.assert_allclose(expected(adata, double, "C2", 1), left + right - control, atol=2e-6)
    sizes = adata.obs.groupby(["cell_type", "perturbation", "dose"], observed=True).size()
    assert (sizes.drop("control", level=1) == 6).all()


def test_a_single_dose_has_the_full_effect():
    one, none = simulate_responses(**TINY, doses=[3]), simulate_responses(**TINY)
    np.testing.assert_array_equal(one.layers["expected"], none.layers["expected"])
    assert set(one.obs["dose"]) == {0, 3}


@pytest.mark.parametrize("noise", ["nb", "poisson"])
def test_counts_follow_the_model(noise):
    adata = simulate_responses(
        n_contexts=1,
        n_context_groups=1,
        n_perturbations=1,
        n_genes=60,
        n_cells_per_condition=1,
        n_control_cells_per_context=6000,
        library_sd=0,
        library_size=6000,
        noise=noise,
    )
    control = (adata.obs["perturbation"] == "control").to_numpy()
    counts = adata.layers["counts"].toarray()[control]
    mean = np.expm1(adata.varm["true_baseline"][:, 0]) * 0.6
    np.testing.assert_allclose(counts.mean(0), mean, rtol=0.06)
    variance = mean + mean**2 / adata.var["inverse_dispersion"].to_numpy()
    np.testing.assert_allclose(counts.var(0), variance, rtol=0.25)
    assert np.isinf(adata.var["inverse_dispersion"]).all() == (noise == "poisson")


def test_mean_changes_follow_the_planted_effects():
    adata = simulate_responses(
        n_contexts=2,
        n_perturbations=3,
        n_genes=300,
        n_cells_per_condition=400,
        n_control_cells_per_context=800,
    )
    labels = adata.obs["cell_type"].astype(str) + "|" + adata.obs["perturbation"].astype(str)
    for label, effect in adata.varm["true_effects"].items():
        treated, control = (adata.X[(labels == name).to_numpy()].mean(0).A1 for name in (label, label[:3] + "control"))
        assert correlation(treated - control, effect) > 0.9
        target = adata.layers["expected"][(labels == label).to_numpy()][0]
        assert correlation(treated, target) > 0.98


def test_missing_pairs():
    adata = simulate_responses(**TINY, n_doubles=3, missing_share=0.5)
    pairs = pairs_of(adata)
    singles = {pair for pair in pairs if "+" not in pair[1] and pair[1] != "control"}
    assert len(singles) == 8
    assert {perturbation for _, perturbation in pairs} == set(adata.obs["perturbation"].cat.categories)
    for context in ("C1", "C2", "C3", "C4"):
        assert (context, "control") in pairs
        for name in adata.obs["perturbation"].cat.categories[5:]:
            both = all((context, single) in pairs for single in name.split("+"))
            assert ((context, name) in pairs) == both
    # Truth is there for what is not measured too.
    assert adata.varm["true_effects"].shape[1] == 4 * 7
    full = simulate_responses(**TINY, n_doubles=3)
    pd.testing.assert_frame_equal(full.varm["true_effects"], adata.varm["true_effects"])


def test_every_perturbation_keeps_a_context():
    adata = simulate_responses(**TINY, missing_share=1)
    assert len(pairs_of(adata)) == 4 + 4
    adata = simulate_responses(**TINY, n_doubles=6, missing_share=1)
    assert set(adata.obs["perturbation"]) == set(adata.obs["perturbation"].cat.categories)


def test_replicates_are_shared_by_treated_and_control_cells():
    adata = simulate_responses(
        n_contexts=1,
        n_context_groups=1,
        n_perturbations=1,
        n_genes=100,
        n_cells_per_condition=1000,
        n_control_cells_per_context=1000,
        replicate_sd=0.4,
    )
    assert len(np.unique(adata.layers["expected"], axis=0)) == 2
    shift = []
    for perturbation in ("control", "P01"):
        first, second = (
            adata[(adata.obs["perturbation"] == perturbation) & (adata.obs["replicate"] == name)].layers["counts"]
            for name in ("R1", "R2")
        )
        shift.append(np.log(second.mean(0).A1) - np.log(first.mean(0).A1))
    assert correlation(*shift) > 0.9
    assert np.std(shift[0]) == pytest.approx(0.4 * np.sqrt(2), rel=0.25)


def test_seed():
    first, again, other = (simulate_responses(**TINY, n_doubles=1, doses=[1, 2], seed=seed) for seed in (3, 3, 4))
    assert (first.X != again.X).nnz == 0
    pd.testing.assert_frame_equal(first.obs, again.obs)
    pd.testing.assert_frame_equal(first.varm["true_effects"], again.varm["true_effects"])
    np.testing.assert_array_equal(first.layers["expected"], again.layers["expected"])
    assert first.X.shape != other.X.shape or (first.X != other.X).nnz > 0


def test_parts_have_their_own_random_streams():
    plain = simulate_responses(**TINY)
    for change in ({"specific_share": 1}, {"n_doubles": 2}, {"missing_share": 0.5}, {"library_size": 100}):
        other = simulate_responses(**TINY, **change)
        np.testing.assert_array_equal(plain.varm["true_baseline"], other.varm["true_baseline"])
        if "specific_share" not in change:
            np.testing.assert_array_equal(effects(plain), effects(other)[:, :4])


def test_global_generator_is_left_alone():
    np.random.seed(0)
    before = np.random.get_state()
    simulate_responses(**TINY, n_doubles=1, doses=[1, 2], missing_share=0.3)
    after = np.random.get_state()
    np.testing.assert_array_equal(before[1], after[1])
    assert before[2:] == after[2:]


@pytest.mark.parametrize("options", [{}, {"n_doubles": 2, "doses": [1.0, 5.0], "missing_share": 0.3}])
def test_h5ad(tmp_path, options):
    adata = simulate_responses(**TINY, **options)
    adata.write_h5ad(tmp_path / "responses.h5ad")
    read = ad.read_h5ad(tmp_path / "responses.h5ad")
    assert (read.X != adata.X).nnz == 0
    loose = {"check_dtype": False, "check_index_type": False, "check_column_type": False, "check_categorical": False}
    pd.testing.assert_frame_equal(read.obs, adata.obs, **loose)
    for key in [name for name in adata.uns if name.startswith("true_")]:
        pd.testing.assert_frame_equal(read.uns[key], adata.uns[key], **loose)
    assert set(read.uns["simulation"]) == set(adata.uns["simulation"])
    np.testing.assert_array_equal(read.uns["simulation"]["doses"], adata.uns["simulation"]["doses"])


def test_parameters_are_stored():
    params = simulate_responses(**TINY, doses=(5, 1), seed=2).uns["simulation"]
    assert params["n_genes"] == 60
    assert params["seed"] == 2
    assert params["specific_share"] == 0.4
    assert params["contexts"].tolist() == ["C1", "C2", "C3", "C4"]
    assert params["perturbations"].tolist() == ["P01", "P02", "P03", "P04"]
    np.testing.assert_array_equal(params["doses"], [1, 5])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_contexts": 0}, "n_contexts: expected a whole number of at least 1, but got 0"),
        ({"n_context_groups": 1.5}, "n_context_groups: expected a whole number of at least 1, but got 1.5"),
        ({"n_context_groups": 5}, r"n_context_groups: expected at most as many groups as contexts \(4\), but got 5"),
        ({"n_perturbations": "3"}, "n_perturbations: expected a whole number of at least 1, but got '3'"),
        ({"n_cells_per_condition": 0}, "n_cells_per_condition: expected a whole number of at least 1, but got 0"),
        ({"n_control_cells_per_context": -1}, "n_control_cells_per_context: expected a whole number of at least 1"),
        ({"n_replicates": True}, "n_replicates: expected a whole number of at least 1, but got True"),
        ({"n_genes": 9}, "n_genes: expected a whole number of at least 10, but got 9"),
        ({"n_doubles": -1}, "n_doubles: expected a whole number of at least 0, but got -1"),
        (
            {"n_doubles": 7, "n_perturbations": 4},
            "n_doubles: expected at most 6, the pairs of 4 single perturbations, but got 7",
        ),
        ({"seed": -1}, "seed: expected a whole number of at least 0, but got -1"),
        ({"effect_share": 1.1}, "effect_share: expected a share from 0 to 1, but got 1.1"),
        ({"specific_share": -0.1}, "specific_share: expected a share from 0 to 1, but got -0.1"),
        ({"group_share": np.nan}, "group_share: expected a share from 0 to 1, but got nan"),
        ({"saturation": 2}, "saturation: expected a share from 0 to 1, but got 2"),
        ({"interaction": 2}, "interaction: expected a share from 0 to 1, but got 2"),
        ({"missing_share": "half"}, "missing_share: expected a share from 0 to 1, but got 'half'"),
        ({"effect_sd": -1}, "effect_sd: expected a number of at least 0, but got -1"),
        ({"base_sd": None}, "base_sd: expected a number of at least 0, but got None"),
        ({"context_sd": np.inf}, "context_sd: expected a number of at least 0, but got inf"),
        ({"replicate_sd": -1}, "replicate_sd: expected a number of at least 0"),
        ({"library_sd": -1}, "library_sd: expected a number of at least 0"),
        ({"library_size": 0}, "library_size: expected a positive number, but got 0"),
        ({"inverse_dispersion": "1"}, "inverse_dispersion: expected a positive number, but got '1'"),
        ({"noise": "normal"}, "noise: expected one of nb, poisson, but got 'normal'"),
        ({"doses": []}, r"doses: expected None or distinct positive numbers, but got \[\]"),
        ({"doses": [0, 1]}, r"doses: expected None or distinct positive numbers, but got \[0, 1\]"),
        ({"doses": [1, 1]}, r"doses: expected None or distinct positive numbers, but got \[1, 1\]"),
        ({"doses": [1, np.inf]}, r"doses: expected None or distinct positive numbers, but got \[1, inf\]"),
        ({"doses": ["low"]}, r"doses: expected None or distinct positive numbers, but got \['low'\]"),
        ({"doses": 3}, "doses: expected None or distinct positive numbers, but got 3"),
        ({"doses": "12"}, "doses: expected None or distinct positive numbers, but got '12'"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        simulate_responses(**options)
