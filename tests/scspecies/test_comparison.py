import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from scipy.stats import chi2

import transverse as tv
from transverse.scspecies._decode import GeneDecoder
from transverse.scspecies._fold_changes import inliers, sample_latent, summarize
from transverse.scspecies._similarity import histogram_mode, scale_rows

from .conftest import QUIET, build

MODES = ["own", "context", "target", "both"]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# ---- parts


def test_inliers_are_inside_the_ellipse(rng):
    points = rng.normal(size=(4000, 3)) @ rng.normal(size=(3, 3))
    keep = inliers(points)
    assert keep.mean() == pytest.approx(0.9, abs=0.02)
    centred = points - points.mean(0)
    distance = np.einsum("ij,jk,ik->i", centred, np.linalg.inv(np.cov(points.T)), centred)
    assert (keep == (distance <= chi2.ppf(0.9, 3))).mean() > 0.99
    assert inliers(points, 1.0).all()


def test_inliers_of_small_and_degenerate_groups(rng):
    points = rng.normal(size=(6, 10))  # fewer cells than dimensions: no sample covariance can be inverted
    assert inliers(points).sum() >= 3
    assert inliers(points[:2]).all()
    assert inliers(np.ones((8, 4))).all()
    outlier = np.concatenate([rng.normal(size=(30, 10)), np.full((1, 10), 50.0)])
    assert not inliers(outlier)[-1]


def test_latent_samples_are_normal_and_even(rng):
    means, scales = np.array([[0.0, 5.0], [10, -5]], np.float32), np.array([[1, 2.0], [0.5, 3]], np.float32)
    z, cells = sample_latent(means, scales, 40_001, rng)
    assert np.bincount(cells).tolist() in ([20_000, 20_001], [20_001, 20_000])
    for cell in (0, 1):
        noise = (z[cells == cell] - means[cell]) / scales[cell]
        np.testing.assert_allclose(noise.mean(0), 0, atol=0.03)  # uniform noise would be at 0.5
        np.testing.assert_allclose(noise.std(0), 1, atol=0.03)
        np.testing.assert_allclose((np.abs(noise) < 1).mean(0), 0.683, atol=0.02)


@pytest.mark.parametrize("n", [100, 101])
def test_summary_by_numpy(rng, n):
    context, target = rng.random((n, 300)), rng.random((n, 300))
    table = summarize(torch.from_numpy(context), torch.from_numpy(target), 0.7, 1e-3, rng)
    change = np.log2(target + 1e-3) - np.log2(context + 1e-3)
    np.testing.assert_allclose(table["lfc"], np.median(change, 0), rtol=1e-6)
    np.testing.assert_allclose(table["probability"], (np.abs(change) > 0.7).mean(0))
    np.testing.assert_allclose(table["context_expression"], 1e4 * np.median(context, 0))
    np.testing.assert_allclose(table["target_expression"], 1e4 * np.median(target, 0))


def test_null_is_flat_where_species_differ(rng):
    context = torch.from_numpy(rng.lognormal(0, 0.3, (500, 50)))
    target = context * 2 ** torch.linspace(-4, 4, 50)
    table = summarize(context, target, 1.0, 1e-6, rng)
    np.testing.assert_allclose(table["lfc"], np.linspace(-4, 4, 50), atol=1e-3)
    assert np.abs(table["null_lfc"]).max() < 0.15
    assert np.ptp(table["null_probability"]) < 0.15


def test_histogram_mode_and_scales():
    values = np.concatenate([np.full(500, 3.0) + np.linspace(-0.1, 0.1, 500), np.linspace(-20, 20, 100)])
    assert histogram_mode(values) == pytest.approx(3, abs=0.6)
    assert histogram_mode(np.full(4, 2.0)) == pytest.approx(2, abs=0.5)
    modes = np.array([[1.0, 4.0], [2.0, 2.0]])
    np.testing.assert_allclose(scale_rows(modes, "none"), -modes)
    np.testing.assert_allclose(scale_rows(modes, "max"), [[4, 1], [1, 1]])
    np.testing.assert_allclose(scale_rows(modes, "min_max"), [[1, 0], [1, 1]])


def test_decoder_averages_over_batches_on_shared_genes(model):
    genes = np.array([5, 3, 40])
    z = model.get_latent_representation()[:4]
    result = GeneDecoder(model.module.eval(), genes)(z).numpy()
    expected = []
    with torch.no_grad():
        for batch in range(2):
            codes = torch.full((4, 1), batch)
            px = model.module.generative(torch.from_numpy(z), torch.zeros(4, 1), codes)["px"]
            scale = px.scale.numpy()[:, genes]
            expected.append(scale / scale.sum(1, keepdims=True))
    np.testing.assert_allclose(result, np.mean(expected, 0), rtol=1e-4)
    one = GeneDecoder(model.module, genes, batches=[1])(z).numpy()
    np.testing.assert_allclose(one, expected[1], rtol=1e-4)
    summed = GeneDecoder(model.module, genes, groups=np.array([0, 1, 0]))(z).numpy()
    np.testing.assert_allclose(summed, np.stack([result[:, [0, 2]].sum(1), result[:, 1]], 1), rtol=1e-5)
    # chunks make no difference
    many = np.repeat(z, 200, axis=0)
    np.testing.assert_allclose(GeneDecoder(model.module, genes)(many).numpy()[::200], result, rtol=1e-4)


# ---- fold changes of a model


def truth_of(table, human):
    planted = pd.DataFrame(
        human.varm["true_log_fold_change"], human.var_names, list(human.uns["simulation"]["types"])
    ) / np.log(2)
    return np.array([planted.at[gene, group] for gene, group in zip(table["target_gene"], table["group"], strict=True)])


@pytest.fixture(scope="module")
def diverged():
    """Species with large planted fold changes, and a trained model."""
    from .conftest import train_context

    data = tv.datasets.simulate_species(
        "tiny", divergence=0.6, n_cells={"mouse": 800, "human": 800}, library_size=1500.0, many_to_many=0.0, seed=3
    )
    scvi.settings.seed = 0
    context = train_context(data["mouse"], epochs=60)
    human = data["human"].copy()
    tv.ScSpecies.setup_anndata(human, batch_key="batch")
    model = tv.ScSpecies.from_scvi_model(context, human, human.uns["orthologs"], labels_key="cell_type")
    model.train(60, plan_kwargs={"lr": 4e-3}, **QUIET)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_planted_fold_changes_are_recovered(diverged, mode):
    table = diverged.get_cross_species_lfc(groupby="cell_type", mode=mode, n_samples=500)
    truth = truth_of(table, diverged.adata)
    expressed = (table[["context_expression", "target_expression"]].max(axis=1) > 5).to_numpy()
    for group in table["group"].unique():
        cells = expressed & (table["group"] == group).to_numpy()
        assert np.corrcoef(table["lfc"][cells], truth[cells])[0, 1] > 0.9
    large = expressed & (np.abs(truth) > 1.5)
    assert large.sum() > 50
    assert (np.sign(table["lfc"][large]) == np.sign(truth[large])).mean() > 0.97
    assert table["null_lfc"].abs().max() < 0.2
    assert abs(np.corrcoef(table["null_lfc"], truth)[0, 1]) < 0.2
    assert table["null_probability"].mean() < 0.1 < 0.3 < table["probability"].mean()


def test_table_of_fold_changes(model, species):
    table = model.get_cross_species_lfc(n_samples=50)
    assert list(table.columns) == [
        *("group", "context_gene", "target_gene", "lfc", "probability", "context_expression", "target_expression"),
        *("null_lfc", "null_probability", "n_context_cells", "n_target_cells"),
    ]
    assert table["group"].unique().tolist() == ["T1a", "T1b", "T2a", "T2b"]
    n_pairs = len(model.orthologs_["context"])
    assert len(table) == 4 * n_pairs
    assert table["target_gene"][:n_pairs].tolist() == model.orthologs_["target"]
    assert table["probability"].between(0, 1).all()
    np.testing.assert_allclose(table.groupby("group")["target_expression"].sum(), 1e4, rtol=0.1)
    n_mouse = (species[0].obs["cell_type"] == "T1a").sum()
    assert 0.7 * n_mouse < table["n_context_cells"][0] <= n_mouse
    assert table.attrs == {"delta": 1.0, "mode": "own"}


def test_same_seed_same_fold_changes(model):
    scvi.settings.seed = 5
    first = model.get_cross_species_lfc(groups="T1a", n_samples=40)
    pd.testing.assert_frame_equal(first, model.get_cross_species_lfc(groups=["T1a"], n_samples=40))
    scvi.settings.seed = 6
    assert not first.equals(model.get_cross_species_lfc(groups="T1a", n_samples=40))


def test_fold_changes_of_users_groups(model, species):
    clusters = np.where(species[1].obs["cell_type"].astype(str).str.startswith("T1"), "one", "two")
    human = model.adata.copy()
    human.obs["cluster"] = clusters
    by_target = model.get_cross_species_lfc(human, "cluster", mode="target", n_samples=40)
    assert by_target["group"].unique().tolist() == ["one", "two"]
    assert (by_target["n_context_cells"] == 0).all()
    context = np.where(species[0].obs["cell_type"].astype(str).str.startswith("T1"), "one", "three")
    both = model.get_cross_species_lfc(human, "cluster", context_groups=context, n_samples=40)
    assert both["group"].unique().tolist() == ["one"]
    with pytest.raises(KeyError, match="'cluster' is none of the context's label columns.*cell_type.*context_groups"):
        model.get_cross_species_lfc(human, "cluster")
    with pytest.raises(ValueError, match="7 entries for 400 context cells"):
        model.get_cross_species_lfc(human, "cluster", context_groups=["a"] * 7)
    with pytest.raises(ValueError, match="no group of groupby='cluster' in common.*'x'.*'one', 'two'"):
        model.get_cross_species_lfc(human, "cluster", context_groups=["x"] * 400)


def test_fold_changes_are_written(context, species):
    human = species[1].copy()
    tv.ScSpecies.setup_anndata(human, batch_key="batch")
    model = tv.ScSpecies.from_scvi_model(context, human, human.uns["orthologs"], labels_key="cell_type", policy="sum")
    model.train(1, **QUIET)
    table = model.get_cross_species_lfc(n_samples=20, key_added="lfc")
    several = table[table["target_gene"].str.contains(";")]
    assert len(several)
    assert table.attrs["delta"] == 1
    pd.testing.assert_frame_equal(human.uns["lfc"], table, check_dtype=False)
    wide = human.varm["lfc"]
    row = several.iloc[0]
    for gene in row["target_gene"].split(";"):
        assert wide.at[gene, row["group"]] == row["lfc"]
    unshared = human.var_names[~human.var["is_shared"].to_numpy()]
    assert wide.loc[unshared].isna().all(axis=None)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"mode": "all"}, "'own', 'context', 'target' or 'both'"),
        ({"n_samples": 1}, "n_samples=1"),
        ({"delta": -1}, "delta=-1"),
        ({"epsilon": 0}, "epsilon=0"),
        ({"confidence": 0}, "confidence=0"),
    ],
)
def test_bad_arguments_of_fold_changes(model, kwargs, message):
    with pytest.raises(ValueError, match=message):
        model.get_cross_species_lfc(**kwargs)


def test_unknown_group_of_fold_changes(model):
    with pytest.raises(KeyError, match="'T9' are not in both species. Known: 'T1a', 'T1b'"):
        model.get_cross_species_lfc(groups=["T9"])


# ---- similarity and single cells


def test_similarity_of_types(model):
    matrix = model.get_cell_type_similarity(groupby="cell_type", n_target=60, n_context=20)
    assert matrix.shape == (4, 4)
    # so small a model mixes siblings up, as T2a and T2b
    assert matrix.idxmax(axis=1).str[:2].tolist() == matrix.index.str[:2].tolist()
    assert (
        matrix.loc[["T1a", "T1b"], ["T1a", "T1b"]].min(axis=1) > matrix.loc[["T1a", "T1b"], ["T2a", "T2b"]].max(axis=1)
    ).all()
    scaled = model.get_cell_type_similarity(groupby="cell_type", scale="min_max", n_target=60, n_context=20)
    np.testing.assert_allclose(scaled.max(axis=1), 1)
    np.testing.assert_allclose(scaled.min(axis=1), 0)
    small = model.get_cell_type_similarity(n_target=1, n_context=1)
    assert np.isfinite(small.to_numpy()).all()
    with pytest.raises(ValueError, match="'none', 'max' or 'min_max'"):
        model.get_cell_type_similarity(scale="log")
    with pytest.raises(ValueError, match="n_target=0"):
        model.get_cell_type_similarity(n_target=0)
    with pytest.raises(KeyError, match="groupby='nothing'"):
        model.get_cell_type_similarity(groupby="nothing")


def test_query_of_one_cell(model, species):
    name = species[1].obs_names[17]
    table = model.query_cell(name)
    pd.testing.assert_frame_equal(table, model.query_cell(17))
    assert sorted(table.index) == sorted(species[0].obs_names)
    assert table["log_likelihood_ratio"].is_monotonic_increasing
    np.testing.assert_array_equal(
        table["cell_type"].astype(str), species[0].obs.loc[table.index, "cell_type"].astype(str)
    )
    pair = table["cell_type"].astype(str).str[:2]
    assert (pair[:20] == species[1].obs["sibling_pair"].iloc[17]).mean() > 0.9 > (pair == pair.iloc[0]).mean()
    latent, context = model.get_latent_representation(), model.get_context_representation()
    best = species[0].obs_names.get_loc(table.index[0])
    np.testing.assert_allclose(table["latent_distance"].iloc[0], np.linalg.norm(latent[17] - context[best]), rtol=1e-3)
    ratio = model.transfer_labels(n_candidates=25)["log_likelihood_ratio"].iloc[17]
    nearest = table.sort_values("latent_distance")["log_likelihood_ratio"][:25]
    np.testing.assert_allclose(ratio, nearest.mean(), rtol=1e-2, atol=1e-2)
    with pytest.raises(KeyError, match="cell='nobody'"):
        model.query_cell("nobody")
    with pytest.raises(KeyError, match="cell=300 is out of range: adata has 300 cells"):
        model.query_cell(300)
    assert model.query_cell(-1).equals(model.query_cell(299))


# ---- expression in either species


def test_expression_in_the_other_species(model, species):
    mouse, human = species
    as_context = model.get_normalized_expression(transform_to="context", library_size=1e4)
    assert as_context.shape == (300, 300)
    assert list(as_context.columns) == list(mouse.var_names)
    assert list(as_context.index) == list(human.obs_names)
    np.testing.assert_allclose(as_context.sum(axis=1), 1e4, rtol=1e-4)
    # the marker genes of a context type are high in target cells of that type
    label = human.obs["cell_type"].astype(str).to_numpy()
    types = list(mouse.uns["simulation"]["types"])
    expected = np.exp(mouse.varm["true_log_mean"])
    for i, name in enumerate(types):
        profile = np.log1p(as_context[label == name].mean())
        correlation = [np.corrcoef(profile, np.log1p(expected[:, j]))[0, 1] for j in range(len(types))]
        assert np.argmax(correlation) // 2 == i // 2  # siblings are alike
    back = model.get_normalized_expression(source="context", transform_to="target")
    assert back.shape == (400, 280)
    assert list(back.index) == list(mouse.obs_names)


def test_expression_in_a_species_own_decoder(model, context, species):
    own = model.get_normalized_expression(source="context", transform_to="context", transform_batch="mouse_batch_2")
    expected = context.get_normalized_expression(transform_batch="mouse_batch_2", n_samples=200)
    assert np.corrcoef(np.log(own).to_numpy().ravel(), np.log(expected).to_numpy().ravel())[0, 1] > 0.98
    target = model.get_normalized_expression(n_samples=1)
    assert target.shape == (300, 280)


def test_some_genes_cells_and_batches(model, species):
    genes = list(species[0].var_names[[7, 2]])
    part = model.get_normalized_expression(
        transform_to="context", gene_list=genes, indices=[4, 1], transform_batch=["mouse_batch_1"]
    )
    whole = model.get_normalized_expression(transform_to="context", transform_batch=0)
    pd.testing.assert_frame_equal(part, whole.iloc[[4, 1]][genes])
    array = model.get_normalized_expression(source="context", indices=[3], return_numpy=True)
    assert isinstance(array, np.ndarray)
    assert array.shape == (1, 280)


@pytest.mark.parametrize(
    "kwargs, error, message",
    [
        ({"transform_to": "mouse"}, ValueError, "transform_to must be 'context' or 'target', but got 'mouse'"),
        ({"source": "mouse"}, ValueError, "source must be"),
        ({"transform_to": "context", "library_size": "latent"}, ValueError, "library_size must be a number"),
        ({"transform_to": "context", "n_samples": 3}, ValueError, "'n_samples' only apply to target cells"),
        ({"transform_to": "context", "gene_list": ["TP53"]}, KeyError, "the context lacks: 'TP53'"),
        ({"transform_to": "context", "transform_batch": 2}, KeyError, "'2' is no batch of the context"),
        ({"transform_to": "context", "transform_batch": [0, -1]}, KeyError, "'-1' is no batch of the context"),
        (
            {"transform_to": "context", "transform_batch": "b"},
            KeyError,
            "'b' is no batch of the context.*mouse_batch_1",
        ),
    ],
)
def test_bad_arguments_of_expression(model, kwargs, error, message):
    with pytest.raises(error, match=message):
        model.get_normalized_expression(**kwargs)


def test_homologous_samples_correspond(model, species):
    scvi.settings.seed = 1
    samples = model.sample_homologous(60)
    mouse, human = samples["context"], samples["target"]
    assert mouse.shape == (240, 300)
    assert human.shape == (240, 280)
    assert list(mouse.var_names) == list(species[0].var_names)
    np.testing.assert_array_equal(mouse.obsm["X_scSpecies"], human.obsm["X_scSpecies"])
    assert mouse.X.dtype == np.float32
    np.testing.assert_array_equal(mouse.X.data, np.round(mouse.X.data))
    assert mouse.obs["group"].value_counts().to_dict() == dict.fromkeys(["T1a", "T1b", "T2a", "T2b"], 60)
    # counts are those of the real cells: depth, and the profile of the type
    assert mouse.X.sum(1).mean() == pytest.approx(species[0].X.sum(1).mean(), rel=0.15)
    assert human.X.sum(1).mean() == pytest.approx(species[1].X.sum(1).mean(), rel=0.15)
    for simulated, real in ((mouse, species[0]), (human, species[1])):
        for group in ("T1a", "T2b"):
            profile = np.asarray(simulated[simulated.obs["group"] == group].X.mean(0)).ravel()
            truth = np.asarray(real[real.obs["cell_type"] == group].X.mean(0)).ravel()
            assert np.corrcoef(np.log1p(profile), np.log1p(truth))[0, 1] > 0.85
    again = model.sample_homologous(60)
    assert (again["target"].X != human.X).nnz == 0
    scvi.settings.seed = 2
    assert (model.sample_homologous(60)["target"].X != human.X).nnz > 0
    assert model.sample_homologous(3, groups=["T2a"], source="target")["context"].n_obs == 3
    with pytest.raises(ValueError, match="source must be"):
        model.sample_homologous(3, source="both")
    with pytest.raises(ValueError, match="n_samples must be at least 1"):
        model.sample_homologous(0)


def test_covariates_of_both_species_are_averaged_over(species):
    mouse, human = species[0].copy(), species[1].copy()
    for adata in (mouse, human):
        adata.obs["donor"] = pd.Categorical(np.where(np.arange(adata.n_obs) % 2, "a", "b"))
        adata.obs["age"] = np.linspace(-1, 1, adata.n_obs)
    keys = {"categorical_covariate_keys": ["donor"], "continuous_covariate_keys": ["age"], "batch_key": "batch"}
    scvi.model.SCVI.setup_anndata(mouse, **keys)
    reference = tv.ScSpecies.make_context(mouse, n_hidden=32)
    reference.train(1, train_size=1.0, **QUIET)
    tv.ScSpecies.setup_anndata(human, **keys)
    model = tv.ScSpecies.from_scvi_model(reference, human, human.uns["orthologs"], labels_key="cell_type")
    model.train(1, **QUIET)
    assert np.isfinite(model.get_cross_species_lfc(n_samples=30)["lfc"]).all()
    assert model.get_normalized_expression(transform_to="context").shape == (300, 300)
    assert model.sample_homologous(5)["target"].n_obs == 20
    relevance = model.get_gene_relevance(context_adata=mouse, n_cells=5)
    assert set(relevance["gene"]) == set(mouse.var_names) | set(human.var_names)


def test_results_survive_saving(model, species, tmp_path):
    model.save(str(tmp_path / "model"), overwrite=True)
    loaded = tv.ScSpecies.load(str(tmp_path / "model"), species[1].copy(), accelerator="cpu")
    pd.testing.assert_frame_equal(
        loaded.get_cross_species_lfc(n_samples=30), model.get_cross_species_lfc(n_samples=30), rtol=1e-4
    )
    pd.testing.assert_frame_equal(
        loaded.get_gene_relevance(context_adata=species[0], n_cells=10),
        model.get_gene_relevance(context_adata=species[0], n_cells=10),
        rtol=1e-3,
        atol=1e-5,
    )
    pd.testing.assert_frame_equal(loaded.query_cell(0), model.query_cell(0), rtol=1e-3, atol=1e-4)


def test_untrained_model_is_asked_in_vain(context, species):
    model = build(context, species[1])
    for call in (
        model.get_cross_species_lfc,
        model.get_cell_type_similarity,
        lambda: model.query_cell(0),
        lambda: model.get_normalized_expression(transform_to="context"),
        model.sample_homologous,
        model.get_gene_relevance,
        model.get_davies_bouldin,
    ):
        with pytest.raises(RuntimeError, match="[Tt]rain"):
            call()
