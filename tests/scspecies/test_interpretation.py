import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from sklearn.metrics import davies_bouldin_score

import transverse as tv
from transverse.nn import latent_relevance
from transverse.scspecies import PrototypeTracker
from transverse.scspecies._prototypes import prototype_scores

from .conftest import QUIET, build, train_context

# ---- relevance


def test_planted_markers_have_the_highest_relevance(model, species):
    table = model.get_gene_relevance(context_adata=species[0])
    assert set(table["species"]) == {"context", "target"}
    for side, adata in zip(("context", "target"), species, strict=True):
        for group in ("T1a", "T1b", "T2a", "T2b"):
            part = table[(table["species"] == side) & (table["group"] == group)].set_index("gene")
            assert list(part.index) == list(adata.var_names)
            assert sorted(part["rank"]) == list(range(1, len(part) + 1))
            np.testing.assert_array_equal(part.sort_values("rank")["absolute_relevance"].diff().dropna() <= 0, True)
            markers = adata.var["marker_of"].isin([group, group[:2]]).to_numpy()
            top = (part["rank"] <= 10).to_numpy()
            assert markers[top].mean() > 2 * markers.mean()
            assert part["rank"][markers].mean() < part["rank"][~markers].mean()


@pytest.mark.slow
def test_one_planted_gene_ranks_first(species):
    mouse, human = species[0].copy(), species[1].copy()
    orthologs = human.uns["orthologs"].drop_duplicates("context", keep=False).drop_duplicates("target", keep=False)
    measured = orthologs[orthologs["context"].isin(mouse.var_names) & orthologs["target"].isin(human.var_names)]
    pair = measured.iloc[0]
    for adata, gene in ((mouse, pair["context"]), (human, pair["target"])):
        counts = adata.X.toarray()
        counts[:, adata.var_names.get_loc(gene)] = np.where(adata.obs["cell_type"] == "T1a", 60, 0)
        adata.X = counts
    scvi.settings.seed = 0
    model = build(train_context(mouse, 40), human)
    model.train(40, plan_kwargs={"lr": 4e-3}, **QUIET)
    table = model.get_gene_relevance(context_adata=mouse, groupby="cell_type")
    first = table[(table["rank"] == 1) & (table["group"] == "T1a")].set_index("species")["gene"]
    assert first["target"] == pair["target"]
    assert first["context"] == pair["context"]
    row = table[(table["gene"] == pair["target"]) & (table["group"] == "T1a")].iloc[0]
    assert row["ortholog"] == pair["context"]
    # in the types that lack it, it is not there to be relevant
    assert (table[(table["gene"] == pair["target"]) & (table["group"] != "T1a")]["absolute_relevance"] == 0).all()


def test_table_is_the_average_over_cells_and_dimensions(model, species):
    group = np.flatnonzero(species[1].obs["cell_type"] == "T2b")
    table = model.get_gene_relevance(groupby="cell_type", n_cells=1000, rule="epsilon", epsilon=1e-4)
    part = table[table["group"] == "T2b"].set_index("gene")
    tensors = next(iter(model._make_data_loader(model.adata, indices=group, batch_size=1000)))
    inputs = model.module.encoder_inputs(model.module, tensors)
    encoder = model.module.z_encoder
    relevance = latent_relevance(encoder.encoder, encoder.mean_encoder, inputs, rule="epsilon", epsilon=1e-4).numpy()
    np.testing.assert_allclose(part["relevance"], relevance[:, :, :280].mean((0, 1)), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(part["absolute_relevance"], np.abs(relevance[:, :, :280]).mean((0, 1)), rtol=1e-3)
    counts = tensors["X"].numpy()
    np.testing.assert_allclose(part["expression"], (1e4 * counts / counts.sum(1, keepdims=True)).mean(0), rtol=1e-4)


NORMS = {"none": ("none", "none"), "layer": ("none", "both"), "batch": ("both", "none")}


@pytest.mark.parametrize("norm", NORMS)
def test_relevance_is_conserved_in_either_encoder(species, norm):
    batch_norm, layer_norm = NORMS[norm]
    mouse = species[0].copy()
    context = train_context(mouse, 8, use_batch_norm=batch_norm, use_layer_norm=layer_norm)
    model = build(context, species[1])
    model.train(8, **QUIET)
    sides = {"target": (model.module, model), "context": (model.module.context, None)}
    for vae, owner in sides.values():
        if owner is None:
            from transverse.scspecies._context import context_loader

            tensors = next(iter(context_loader(mouse, model.context_, np.arange(100))))
        else:
            tensors = next(iter(owner._make_data_loader(owner.adata, indices=np.arange(100))))
        inputs = model.module.encoder_inputs(vae, tensors)
        relevance = latent_relevance(vae.z_encoder.encoder, vae.z_encoder.mean_encoder, inputs, epsilon=1e-9)
        with torch.no_grad():
            mean = model.module.eval().encode(vae, tensors)["mean"]
        large = mean.abs() > 0.05 * mean.abs().max()
        ratio = (relevance.sum(-1) / mean)[large].numpy()
        np.testing.assert_allclose(ratio, 1, atol=0.01 if norm == "none" else 0.02)


def test_relevance_without_normalisation_or_clipping(species):
    context = train_context(species[0].copy(), 2, use_layer_norm="none", clip_activation=False)
    layers = [type(m).__name__ for m in context.module.z_encoder.encoder.fc_layers.modules()]
    assert "LayerNorm" not in layers
    assert "ReLU6" not in layers
    assert context.module.log_variational
    model = build(context, species[1])
    model.train(2, **QUIET)
    assert np.isfinite(model.get_gene_relevance(n_cells=5)["relevance"]).all()


def test_batch_normalisation_is_warned_of(species):
    context = train_context(species[0].copy(), 1, use_batch_norm="both", use_layer_norm="none")
    model = build(context, species[1])
    model.train(1, **QUIET)
    with pytest.warns(UserWarning, match="batch normalisation"):
        model.get_gene_relevance(n_cells=3)


def test_context_data_are_checked_and_left_alone(model, species):
    mouse = species[0].copy()
    obs, uns = mouse.obs.copy(), dict(mouse.uns)
    model.get_gene_relevance(context_adata=mouse, n_cells=3)
    pd.testing.assert_frame_equal(mouse.obs, obs)
    assert mouse.uns.keys() == uns.keys()
    mixed = mouse[:, np.random.default_rng(0).permutation(mouse.n_vars)].copy()
    pd.testing.assert_frame_equal(
        model.get_gene_relevance(context_adata=mixed, n_cells=3),
        model.get_gene_relevance(context_adata=mouse, n_cells=3),
    )
    with pytest.raises(ValueError, match="cells that the context model was trained on.*300 cells"):
        model.get_gene_relevance(context_adata=species[1])
    with pytest.raises(ValueError, match="1 of the 300 genes.*missing in context_adata"):
        model.get_gene_relevance(context_adata=mouse[:, 1:].copy())
    with pytest.raises(TypeError, match="context_adata must be the context's AnnData, but got str"):
        model.get_gene_relevance(context_adata="mouse")
    with pytest.raises(ValueError, match="n_cells must be at least 1"):
        model.get_gene_relevance(n_cells=0)


# ---- layers


def test_davies_bouldin_by_scikit_learn(model, species):
    table = model.get_davies_bouldin(context_adata=species[0])
    assert table["layer"].unique().tolist() == ["data", "hidden 1", "hidden 2", "latent"]
    scores = table.set_index(["species", "layer", "groupby"])["davies_bouldin"]
    latent, labels = model.get_latent_representation(), species[1].obs["cell_type"]
    np.testing.assert_allclose(scores["target", "latent", "cell_type"], davies_bouldin_score(latent, labels), rtol=1e-3)
    intermediate = model.get_intermediate_representation()
    batch = species[1].obs["batch"]
    np.testing.assert_allclose(
        scores["target", "hidden 1", "batch"], davies_bouldin_score(intermediate, batch), rtol=1e-3
    )
    latent, labels = model.get_context_representation(), species[0].obs["cell_type"]
    np.testing.assert_allclose(
        scores["context", "latent", "cell_type"], davies_bouldin_score(latent, labels), rtol=1e-3
    )
    log = np.log1p(1e4 * species[1].X.toarray() / species[1].X.sum(1))
    expected = davies_bouldin_score(np.asarray(log), species[1].obs["cell_type"])
    np.testing.assert_allclose(scores["target", "data", "cell_type"], expected, rtol=1e-3)
    # along the encoder, types part and batches mix
    assert scores["target", "latent", "cell_type"] < scores["target", "data", "cell_type"]
    assert scores["target", "latent", "batch"] > scores["target", "data", "batch"]
    assert len(model.get_davies_bouldin(groupby=["batch"], n_cells=50)) == 4
    with pytest.raises(KeyError, match="groupby"):
        model.get_davies_bouldin(groupby="nothing")


# ---- prototypes


@pytest.mark.parametrize("likelihood, dispersion", [("nb", "gene-batch"), ("zinb", "gene"), ("nb", "gene-cell")])
def test_prototypes_are_tracked(species, context, likelihood, dispersion):
    model = build(context, species[1], gene_likelihood=likelihood, dispersion=dispersion)
    tracker = PrototypeTracker(model, species[0], "cell_type", every_n_steps=2)
    assert tracker.table.empty
    model.train(6, callbacks=[tracker], plan_kwargs={"lr": 4e-3}, **QUIET)
    table = tracker.table
    assert table["step"].unique().tolist() == [2, 4, 6, 8, 10, 12, 14, 16, 18]
    assert len(table) == 9 * 16
    assert np.isfinite(table["negative_log_likelihood"]).all()
    last = table[table["step"] == 18].pivot(
        index="target_type", columns="context_type", values="negative_log_likelihood"
    )
    assert last.idxmin(axis=1).str[:2].tolist() == ["T1", "T1", "T2", "T2"]


def test_prototype_scores_by_hand(context, species):
    human = species[1].copy()
    human.obs["batch"] = "one"  # then the average batch is that of every cell
    model = build(context, human)
    model.train(2, **QUIET)
    tracker = PrototypeTracker(model, species[0], "cell_type")
    scores = prototype_scores(model.module, tracker._target, tracker._latent)
    median = np.median(human[human.obs["cell_type"] == "T2a"].X.toarray(), axis=0).astype(np.float32)
    np.testing.assert_array_equal(tracker._target["counts"][2], median)
    module = model.module.eval()
    x = torch.from_numpy(median)[None]
    for i in range(4):
        with torch.no_grad():
            outputs = module.generative(
                tracker._latent[i][None], x.sum(1, keepdim=True).log(), torch.zeros(1, 1, dtype=torch.long)
            )
        np.testing.assert_allclose(scores[2, i], -outputs["px"].log_prob(x).sum(), rtol=1e-4)


def test_tracking_leaves_training_as_it_is(species, context):
    results = []
    for track in (False, True):
        scvi.settings.seed = 0
        model = build(context, species[1])
        callbacks = [PrototypeTracker(model, species[0])] if track else []
        scvi.settings.seed = 0
        model.train(3, callbacks=callbacks, **QUIET)
        results.append(model.get_latent_representation())
        assert not callbacks or callbacks[0].target_types == ["T1a", "T1b", "T2a", "T2b"]
    np.testing.assert_allclose(*results, atol=1e-6)
    with pytest.raises(ValueError, match="every_n_steps"):
        PrototypeTracker(model, species[0], every_n_steps=0)


# ---- alignment of the latent variables themselves


@pytest.mark.slow
def test_alignment_in_the_latent_space(species, context):
    scvi.settings.seed = 0
    model = build(context, species[1], alignment="latent")
    inner = dict(model.module.z_encoder.named_parameters())["encoder.fc_layers.Layer 1.0.weight"]
    before = inner.detach().clone()
    assert inner.requires_grad
    assert not torch.equal(inner, context.module.z_encoder.encoder.fc_layers[1][0].weight)
    model.train(60, plan_kwargs={"lr": 4e-3}, **QUIET)
    assert not torch.equal(inner, before)
    label = model.transfer_labels(vote="latent")["label"].astype(str).to_numpy()
    assert (label == species[1].obs["cell_type"].astype(str)).mean() > 0.8
    frozen = model.module.context.z_encoder.encoder.fc_layers[1][0].weight
    assert torch.equal(frozen, context.module.z_encoder.encoder.fc_layers[1][0].weight)


def test_latent_alignment_term_by_hand(species, context):
    model = build(context, species[1], alignment="latent")
    module = model.module.eval()
    z = torch.randn(3, 10)
    outputs = {"z": z, "intermediate": torch.randn(3, 128), "library": torch.ones(3, 1)}
    candidates = torch.tensor([[4], [7], [9]])
    tensors = {"candidates": candidates, "eligible": torch.tensor([[True], [False], [True]]), "cell": torch.arange(3)}
    tensors["X"] = torch.ones(3, 280)
    expected = (z - module.context_mean[candidates[:, 0]]).square().sum(1)[[0, 2]].mean()
    torch.testing.assert_close(module._alignment(tensors, outputs), expected)


@pytest.mark.parametrize("name", ["alignment", "align_average", "candidate_latent"])
def test_unknown_choices_of_the_module(species, context, name):
    with pytest.raises(ValueError, match=f"{name} must be .* but got 'nonsense'"):
        build(context, species[1], **{name: "nonsense"})


@pytest.mark.parametrize("metric", ["correlation", "manhattan"])
def test_any_distance_in_the_search(species, context, metric):
    model = build(context, species[1], metric=metric)
    label = model.get_data_level_labels()["label"].astype(str).to_numpy()
    assert (label == species[1].obs["cell_type"].astype(str)).mean() > 0.9
    assert tv.ScSpecies is type(model)
