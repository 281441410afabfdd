"""Simulated signatures: the truth is what made them, and their difficulty is what the presets promise."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from sklearn.decomposition import PCA
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge

from transverse.datasets import simulate_signatures

TINY = {"n_drugs": 40, "n_genes": 50, "n_mechanisms": 5}
MODERATE = {"n_drugs": 400, "n_cell_types": 2, "n_genes": 200}


def grid(adata, values):
    """Drugs x cell types x genes of a complete screen with one replicate."""
    sizes = adata.uns["simulation"]
    return values.reshape(sizes["n_drugs"], sizes["n_cell_types"], -1)


def pearson(a, b):
    """Mean over rows of the correlation."""
    a, b = (values - values.mean(1, keepdims=True) for values in (a, b))
    return np.mean((a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1)))


def held_out(source, target, model, n_components=20, n_folds=5):
    """Predictions of held-out drugs from the principal components of the source."""
    fold = np.arange(len(source)) % n_folds
    predicted = np.zeros_like(target)
    for k in range(n_folds):
        train = fold != k
        pca = PCA(n_components, random_state=0).fit(source[train])
        left, right = pca.transform(source[train]), pca.transform(source[~train])
        scale = left.std(0)[0]
        mean = target[train].mean(0)
        predicted[~train] = model.fit(left / scale, target[train] - mean).predict(right / scale) + mean
    return predicted


def test_layout():
    adata = simulate_signatures(**TINY, n_replicates=2)
    assert adata.shape == (40 * 3 * 2, 50)
    assert isinstance(adata.X, np.ndarray)
    assert adata.X.dtype == np.float32
    assert adata.layers["expected"].dtype == np.float32
    assert adata.obs_names[:3].tolist() == ["D0001_C1_1", "D0001_C1_2", "D0001_C2_1"]
    assert adata.obs_names.is_unique
    assert adata.var_names[[0, -1]].tolist() == ["G0001", "G0050"]
    obs = adata.obs
    assert obs["cell_type"].cat.categories.tolist() == ["C1", "C2", "C3"]
    assert obs["replicate"].cat.categories.tolist() == ["1", "2"]
    assert obs["mechanism"].cat.categories.tolist() == ["M01", "M02", "M03", "M04", "M05"]
    by_drug = obs.groupby("perturbation", observed=True)
    assert len(by_drug) == 40
    assert (by_drug["mechanism"].nunique() == 1).all()
    assert (by_drug["strength"].nunique() == 1).all()
    assert (by_drug["mechanism"].first().value_counts() == 8).all()
    assert not by_drug["mechanism"].first().cat.codes.is_monotonic_increasing
    assert (obs["strength"] > 0).all()


def test_scale_and_noise():
    adata = simulate_signatures(**TINY, noise=0.7)
    assert adata.layers["expected"].std() == pytest.approx(1, abs=1e-4)
    assert (adata.X - adata.layers["expected"]).std() == pytest.approx(0.7, rel=0.03)
    exact = simulate_signatures(**TINY, noise=0)
    np.testing.assert_array_equal(exact.X, exact.layers["expected"])
    np.testing.assert_array_equal(exact.X, adata.layers["expected"])


def test_replicates_differ_in_noise_only():
    adata = simulate_signatures(**TINY, n_replicates=2)
    first, second = (adata[adata.obs["replicate"] == name] for name in ("1", "2"))
    np.testing.assert_array_equal(first.layers["expected"], second.layers["expected"])
    noise = [np.ravel(part.X - part.layers["expected"]) for part in (first, second)]
    assert abs(np.corrcoef(*noise)[0, 1]) < 0.05


@pytest.mark.parametrize("preset", ["linear", "nonlinear"])
def test_shared_share(preset):
    none, some, whole = (
        simulate_signatures(preset, **MODERATE, shared_share=share, noise=0, gene_sd=0) for share in (0, 0.5, 1)
    )
    first, second = (grid(whole, whole.X)[:, c] for c in (0, 1))
    np.testing.assert_array_equal(first, second)
    for adata, share in ((none, 0), (some, 0.5)):
        first, second = (grid(adata, adata.X)[:, c] for c in (0, 1))
        assert np.corrcoef(np.ravel(first), np.ravel(second))[0, 1] == pytest.approx(share, abs=0.07)


def test_linear_cell_types_decode_the_latent_exactly():
    adata = simulate_signatures("linear", **TINY)
    for name in ("C1", "C2", "C3"):
        rows = (adata.obs["cell_type"] == name).to_numpy()
        latent, expected = adata.obsm["true_latent"][rows], adata.layers["expected"][rows]
        fitted = latent @ np.linalg.lstsq(latent, expected, rcond=None)[0]
        np.testing.assert_allclose(fitted, expected, atol=1e-4)


def test_nonlinearity_is_a_share_of_the_variance():
    explained = []
    for amount in (0, 0.5, 1):
        adata = simulate_signatures(
            n_drugs=2000, n_cell_types=1, n_genes=50, shared_share=0, nonlinearity=amount, gene_sd=0
        )
        latent, expected = adata.obsm["true_latent"], adata.layers["expected"]
        residual = expected - latent @ np.linalg.lstsq(latent, expected, rcond=None)[0]
        explained.append(1 - residual.var() / expected.var())
    np.testing.assert_allclose(explained, [1, 0.5, 0], atol=0.12)


def test_drugs_of_a_family_are_alike():
    adata = simulate_signatures(n_drugs=200, n_cell_types=1, n_genes=100, n_mechanisms=10, mechanism_share=0.8)
    correlation = np.corrcoef(adata.layers["expected"])
    family = adata.obs["mechanism"].to_numpy()
    same = family[:, None] == family
    np.fill_diagonal(same, False)
    assert correlation[same].mean() > correlation[~same].mean() + 0.4
    # Without deviations of their own or of strength, the drugs of a family are one.
    adata = simulate_signatures(**TINY, mechanism_share=1, strength_sd=0)
    for _, rows in adata.obs.groupby(["mechanism", "cell_type"], observed=True).indices.items():
        assert np.ptp(adata.layers["expected"][rows], axis=0).max() < 1e-5


def test_strength():
    adata = simulate_signatures("linear", n_drugs=1000, n_cell_types=1, n_genes=50)
    assert np.mean(adata.obs["strength"] ** 2) == pytest.approx(1, rel=0.1)
    assert np.log(adata.obs["strength"]).std() == pytest.approx(0.3, rel=0.1)
    size = np.linalg.norm(adata.layers["expected"], axis=1)
    assert np.corrcoef(np.log(size), np.log(adata.obs["strength"]))[0, 1] > 0.5


def test_nonlinear_is_between_copying_and_the_expectation():
    adata = simulate_signatures(**MODERATE)
    source, target = (grid(adata, adata.X)[:, c] for c in (0, 1))
    expected = grid(adata, adata.layers["expected"])[:, 1]
    copied, ceiling = pearson(source, target), pearson(expected, target)
    ridge = pearson(held_out(source, target, Ridge(alpha=1.0)), target)
    kernel = pearson(held_out(source, target, KernelRidge(kernel="rbf", gamma=0.03, alpha=0.03)), target)
    assert 0.25 < copied < 0.35
    assert 0.75 < ceiling < 0.9
    assert copied + 0.15 < ridge < ceiling - 0.2
    assert ridge + 0.05 < kernel < ceiling


def test_linear_is_solved_by_ridge():
    adata = simulate_signatures("linear", **MODERATE)
    source, target = (grid(adata, adata.X)[:, c] for c in (0, 1))
    expected = grid(adata, adata.layers["expected"])[:, 1]
    ridge = pearson(held_out(source, target, Ridge(alpha=1.0)), target)
    assert 0.2 < pearson(source, target) < 0.35
    assert pearson(expected, target) - 0.03 < ridge < pearson(expected, target)


def test_missing_pairs():
    adata = simulate_signatures(**TINY, missing_share=0.25, n_replicates=2)
    counts = adata.obs.groupby("perturbation", observed=True)["cell_type"].nunique()
    assert len(counts) == 40
    assert adata.n_obs == 2 * 90
    assert set(counts) == {2, 3}
    full = simulate_signatures(**TINY, n_replicates=2)[adata.obs_names]
    np.testing.assert_array_equal(full.layers["expected"], adata.layers["expected"])


def test_every_drug_keeps_two_cell_types():
    adata = simulate_signatures(**TINY, n_cell_types=5, missing_share=1)
    counts = adata.obs.groupby("perturbation", observed=True)["cell_type"].nunique()
    assert (counts == 2).all()
    assert adata.obs["cell_type"].nunique() == 5
    assert simulate_signatures(**TINY, n_cell_types=2, missing_share=1).n_obs == 80
    assert simulate_signatures(**TINY, n_cell_types=1, missing_share=1).n_obs == 40


@pytest.mark.parametrize(
    "options",
    [
        {"n_latent": 1, "n_units": 1},
        {"n_mechanisms": 1, "mechanism_share": 1, "strength_sd": 0},
        {"n_drugs": 2, "n_mechanisms": 2},
        {"noise": 0, "gene_sd": 0},
    ],
)
def test_extremes_are_finite(options):
    adata = simulate_signatures(**(TINY | options))
    assert np.isfinite(adata.X).all()


def test_seed():
    first, again, other = (simulate_signatures(**TINY, missing_share=0.2, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.X, again.X)
    pd.testing.assert_frame_equal(first.obs, again.obs)
    assert first.shape == other.shape
    assert (first.X != other.X).any()


def test_global_generator_is_left_alone():
    np.random.seed(0)
    before = np.random.get_state()
    simulate_signatures(**TINY, missing_share=0.2)
    after = np.random.get_state()
    np.testing.assert_array_equal(before[1], after[1])
    assert before[2:] == after[2:]


def test_h5ad(tmp_path):
    adata = simulate_signatures(**TINY)
    adata.write_h5ad(tmp_path / "signatures.h5ad")
    read = ad.read_h5ad(tmp_path / "signatures.h5ad")
    np.testing.assert_array_equal(read.X, adata.X)
    np.testing.assert_array_equal(read.layers["expected"], adata.layers["expected"])
    pd.testing.assert_frame_equal(
        read.obs, adata.obs, check_dtype=False, check_index_type=False, check_categorical=False
    )
    assert read.uns["simulation"] == adata.uns["simulation"]


def test_presets_give_defaults_only():
    assert simulate_signatures(**TINY).uns["simulation"]["nonlinearity"] == 1
    assert simulate_signatures("linear", **TINY).uns["simulation"]["nonlinearity"] == 0
    mixed = simulate_signatures("linear", **TINY, nonlinearity=0.4)
    assert mixed.uns["simulation"]["nonlinearity"] == 0.4
    assert mixed.uns["simulation"]["preset"] == "linear"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "easy"}, "preset: expected one of linear, nonlinear, but got 'easy'"),
        ({"preset": ["linear"]}, "preset: expected one of linear, nonlinear"),
        ({"n_drugs": 1}, "n_drugs: expected a whole number of at least 2, but got 1"),
        ({"n_cell_types": 0}, "n_cell_types: expected a whole number of at least 1, but got 0"),
        ({"n_genes": 1}, "n_genes: expected a whole number of at least 2, but got 1"),
        ({"n_mechanisms": 0}, "n_mechanisms: expected a whole number of at least 1, but got 0"),
        (
            {"n_drugs": 20, "n_mechanisms": 21},
            r"n_mechanisms: expected at most as many mechanisms as drugs \(20\), but got 21",
        ),
        ({"n_latent": 2.0}, "n_latent: expected a whole number of at least 1, but got 2.0"),
        ({"n_units": False}, "n_units: expected a whole number of at least 1, but got False"),
        ({"n_replicates": 0}, "n_replicates: expected a whole number of at least 1, but got 0"),
        ({"seed": None}, "seed: expected a whole number of at least 0, but got None"),
        ({"mechanism_share": 1.2}, "mechanism_share: expected a share from 0 to 1, but got 1.2"),
        ({"shared_share": -1}, "shared_share: expected a share from 0 to 1, but got -1"),
        ({"nonlinearity": "much"}, "nonlinearity: expected a share from 0 to 1, but got 'much'"),
        ({"missing_share": np.nan}, "missing_share: expected a share from 0 to 1, but got nan"),
        ({"strength_sd": -1}, "strength_sd: expected a number of at least 0, but got -1"),
        ({"gene_sd": np.inf}, "gene_sd: expected a number of at least 0, but got inf"),
        ({"noise": "none"}, "noise: expected a number of at least 0, but got 'none'"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        simulate_signatures(**options)
