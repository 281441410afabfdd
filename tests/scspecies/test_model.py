import subprocess
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import scvi
import torch
from lightning.pytorch.callbacks import Callback
from scvi import REGISTRY_KEYS
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

import transverse as tv
from transverse.scspecies import _module, _transfer

from .conftest import QUIET, build, train_context

# ---- what the method promises


def test_labels_are_carried_over(model, species):
    truth = species[1].obs["cell_type"].astype(str)
    labels = model.transfer_labels()
    assert list(labels.index) == list(species[1].obs_names)
    assert balanced_accuracy_score(truth, labels["label"].astype(str)) > 0.95
    # so few cells and steps leave the model itself behind the neighbours, but far above chance (0.25)
    for vote in ("likelihood", "latent"):
        assert balanced_accuracy_score(truth, model.transfer_labels(vote=vote)["label"].astype(str)) > 0.65


def test_both_species_share_one_latent_space(model, species):
    latent, context = model.get_latent_representation(), model.get_context_representation()
    assert latent.shape == (300, 10)
    assert context.shape == (400, 10)
    classifier = KNeighborsClassifier(25).fit(context, species[0].obs["cell_type"].astype(str))
    assert classifier.score(latent, species[1].obs["cell_type"].astype(str)) > 0.85


@pytest.mark.slow
def test_alignment_is_what_brings_the_species_together(context, species):
    scvi.settings.seed = 0
    model = build(context, species[1])
    plan = {"min_alignment_weight": 0.0, "max_alignment_weight": 0.0, "lr": 4e-3}
    model.train(60, plan_kwargs=plan, **QUIET)
    predicted = model.transfer_labels(vote="latent")["label"].astype(str)
    assert balanced_accuracy_score(species[1].obs["cell_type"].astype(str), predicted) < 0.7


def test_only_the_targets_own_parts_learn(context, species):
    model = build(context, species[1])
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    model.train(2, **QUIET)
    changed = {name for name, value in model.module.state_dict().items() if not torch.equal(value, before[name])}
    frozen = ("context.", "context_", "z_encoder.encoder.fc_layers.Layer 1", "z_encoder.mean_", "z_encoder.var_")
    assert not [name for name in changed if name.startswith(frozen)]
    assert any(name.startswith("z_encoder.encoder.fc_layers.Layer 0") for name in changed)
    assert any(name.startswith("decoder.") for name in changed)
    assert "px_r" in changed


def test_inner_encoder_is_the_contexts(model, context):
    for name in ("mean_encoder.weight", "var_encoder.bias", "encoder.fc_layers.Layer 1.0.weight"):
        ours = dict(model.module.z_encoder.named_parameters())[name]
        torch.testing.assert_close(ours, dict(context.module.z_encoder.named_parameters())[name])
        assert not ours.requires_grad


def test_frozen_part_has_no_dropout_in_training(context, species):
    model = build(context, species[1])
    model.module.train()
    dropouts = [m for m in model.module.z_encoder.encoder.fc_layers[1] if isinstance(m, torch.nn.Dropout)]
    assert dropouts and not any(m.training for m in dropouts)
    assert model.module.z_encoder.encoder.fc_layers[0].training
    model = build(context, species[1], frozen_eval=False)
    model.module.train()
    assert model.module.z_encoder.encoder.fc_layers[1].training


def test_context_representation_is_the_context_models_own(model, context):
    np.testing.assert_allclose(model.get_context_representation(), context.get_latent_representation(), atol=1e-5)


def test_intermediate_representation_leads_to_the_latent_one(model):
    hidden = torch.from_numpy(model.get_intermediate_representation())
    assert hidden.shape == (300, 128)
    inner = model.module.z_encoder.encoder.fc_layers[1]
    with torch.no_grad():
        for layer in inner:
            hidden = hidden if layer is None else layer(hidden)
        latent = model.module.z_encoder.mean_encoder(hidden)
    np.testing.assert_allclose(latent.numpy(), model.get_latent_representation(), atol=1e-4)
    assert model.get_intermediate_representation(context=True).shape == (400, 128)


def test_target_labels_never_enter_training(context, species):
    human = species[1].copy()
    results = []
    for labels in (human.obs["cell_type"].astype(str).to_numpy(), np.full(human.n_obs, "nothing")):
        human.obs["cell_type"] = labels
        scvi.settings.seed = 0
        model = build(context, human)
        model.train(3, **QUIET)
        results.append(model.get_latent_representation())
    np.testing.assert_array_equal(*results)


def test_same_seed_same_model_other_seed_other_model(context, species):
    latents = []
    for seed in (0, 0, 1):
        scvi.settings.seed = seed
        model = build(context, species[1])
        model.train(2, **QUIET)
        latents.append(model.get_latent_representation())
    np.testing.assert_array_equal(latents[0], latents[1])
    assert np.abs(latents[0] - latents[2]).max() > 1e-3


def test_results_do_not_depend_on_the_batch_size(model):
    np.testing.assert_allclose(
        model.get_latent_representation(batch_size=7), model.get_latent_representation(), atol=1e-5
    )
    small, large = model.transfer_labels(batch_size=7), model.transfer_labels(batch_size=300)
    assert (small["label"] == large["label"]).mean() > 0.99
    np.testing.assert_allclose(small["novelty"], large["novelty"], atol=1e-2)


def test_history_and_schedules(context, species):
    model = build(context, species[1])
    plan = {"n_epochs_alignment_warmup": 2, "n_epochs_kl_warmup": 2}
    weights = []

    class Spy(model._training_plan_cls):
        def training_step(self, batch, batch_idx):
            weights.append((self.current_epoch, self.alignment_weight, float(self.kl_weight)))
            return super().training_step(batch, batch_idx)

    model._training_plan_cls = Spy
    model.train(4, plan_kwargs=plan, **QUIET)
    seen = pd.DataFrame(weights, columns=["epoch", "alignment", "kl"]).groupby("epoch").first()
    np.testing.assert_allclose(seen["alignment"], [10, 17.5, 25, 25])
    np.testing.assert_allclose(seen["kl"], [0.1, 0.55, 1, 1])
    assert len(model.history["alignment_loss_train"]) == 4
    assert (model.history["alignment_loss_train"].to_numpy() > 0).all()


# ---- options


@pytest.mark.parametrize(
    "options",
    [
        {"gene_likelihood": "zinb"},
        {"gene_likelihood": "nb", "dispersion": "gene"},
        {"dispersion": "gene-cell"},
        {"use_observed_lib_size": False},
        {"split_softmax": True},
        {"align_average": "all"},
        {"rescore_every": 1},
        {"candidate_latent": "sample"},
        {"policy": "sum"},
        {"policy": "best"},
        {"n_neighbors": 1},
        {"normalization": "none", "n_smooth": 1},
        {"metric": "euclidean"},
    ],
    ids=str,
)
def test_options(context, species, options):
    model = build(context, species[1], **options)
    model.train(2, **QUIET)
    latent = model.get_latent_representation()
    assert np.isfinite(latent).all()
    assert np.isfinite(model.transfer_labels()["novelty"]).all()


@pytest.mark.parametrize(
    "options",
    [
        {"clip_activation": False, "gene_likelihood": "zinb", "dispersion": "gene"},
        {"n_layers": 3},
        {"use_observed_lib_size": False},
        {"use_batch_norm": "both", "use_layer_norm": "none"},
        {"encode_covariates": False, "deeply_inject_covariates": True},
        {"log_variational": False},
    ],
    ids=str,
)
def test_contexts(species, options):
    model = build(train_context(species[0].copy(), epochs=3, **options), species[1])
    model.train(2, **QUIET)
    assert np.isfinite(model.get_latent_representation()).all()


def test_alignment_term_by_hand(context, species):
    model = build(context, species[1])
    module = model.module.eval()
    tensors = {
        "X": torch.from_numpy(species[1].X[:20].toarray()),
        "batch": torch.from_numpy(species[1].obs["batch"].cat.codes.to_numpy()[:20, None].astype(np.int64)),
        "candidates": torch.from_numpy(model.neighbors_[:20]),
        "eligible": torch.arange(20).unsqueeze(1) < 8,
    }
    outputs = module.inference(tensors["X"], tensors["batch"])
    total = 0.0
    for j in range(8):
        best, best_score = None, -np.inf
        for i in model.neighbors_[j]:
            z = module.context_mean[i : i + 1]
            px = module.generative(z, outputs["library"][j : j + 1], tensors["batch"][j : j + 1])["px"]
            score = px.log_prob(tensors["X"][j : j + 1]).sum().item()
            if score > best_score:
                best, best_score = i, score
        total += (outputs["intermediate"][j] - module.context_intermediate[best]).square().sum().item()
    np.testing.assert_allclose(module._alignment(tensors, outputs).item(), total / 8, rtol=1e-3)
    module.align_average = "all"
    np.testing.assert_allclose(module._alignment(tensors, outputs).item(), total / 20, rtol=1e-3)
    tensors["eligible"][:] = False
    assert module._alignment(tensors, outputs).item() == 0


def test_choices_are_kept_between_the_epochs_in_which_a_cell_is_due(context, species):
    model = build(context, species[1], rescore_every=3)
    module, scored = model.module, []
    choose = module.best_candidates

    def spy(tensors, library):
        scored.append((module.epoch_seen, tensors["cell"].tolist()))
        return choose(tensors, library)

    loss = module.loss

    def loss_spy(*args, epoch=0, **kwargs):
        module.epoch_seen = epoch
        return loss(*args, epoch=epoch, **kwargs)

    module.best_candidates, module.loss = spy, loss_spy
    model.train(4, agreement_quantile=0.0, **QUIET)
    by_epoch = {epoch: sorted(c for e, cells in scored for c in cells if e == epoch) for epoch in range(4)}
    assert by_epoch[0] == list(range(300))
    for epoch in (1, 2, 3):
        assert by_epoch[epoch] == [cell for cell in range(300) if (cell + epoch) % 3 == 0]
    assert module.choices is None


@pytest.mark.parametrize("likelihood", ["nb", "zinb"])
@pytest.mark.parametrize("dispersion", ["gene", "gene-batch", "gene-cell"])
def test_best_candidate_is_the_full_likelihoods(context, species, likelihood, dispersion):
    model = build(context, species[1], gene_likelihood=likelihood, dispersion=dispersion)
    module = model.module.eval()
    x = torch.from_numpy(species[1].X[:30].toarray())
    batch = torch.from_numpy(species[1].obs["batch"].cat.codes.to_numpy()[:30, None].astype(np.int64))
    candidates = torch.from_numpy(model.neighbors_[:30])
    library = torch.log(x.sum(1, keepdim=True))
    full = torch.stack(
        [
            module.generative(module.context_mean[candidates[:, k]], library, batch)["px"].log_prob(x).sum(-1)
            for k in range(candidates.shape[1])
        ],
        dim=1,
    )
    tensors = {"X": x, "batch": batch, "candidates": candidates}
    scores = module.candidate_scores(tensors, library, candidates)
    torch.testing.assert_close(scores - scores[:, :1], full - full[:, :1], rtol=1e-3, atol=2e-2)
    expected = torch.gather(candidates, 1, full.argmax(1, keepdim=True)).squeeze(1)
    assert torch.equal(module.best_candidates(tensors, library), expected)


def test_every_training_runs_in_training_mode(context, species):
    model = build(context, species[1])
    modes = []
    loss = model.module.loss

    def spy(*args, **kwargs):
        modes.append((model.module.training, model.module.z_encoder.encoder.fc_layers[0].training))
        return loss(*args, **kwargs)

    model.module.loss = spy
    for _ in range(2):
        model.train(1, **QUIET)
        model.transfer_labels()
    assert len(modes) == 6
    assert all(mode == (True, True) for mode in modes)


def test_covariates_reach_the_decoder(context, species):
    human = species[1].copy()
    human.obs["sex"] = np.where(np.arange(human.n_obs) % 2, "f", "m")
    human.obs["age"] = np.linspace(-1, 1, human.n_obs)
    tv.ScSpecies.setup_anndata(
        human, batch_key="batch", categorical_covariate_keys=["sex"], continuous_covariate_keys=["age"]
    )
    model = tv.ScSpecies.from_scvi_model(context, human, human.uns["orthologs"], labels_key="cell_type")
    model.train(2, **QUIET)
    module = model.module.eval()
    loader = model._make_data_loader(human, batch_size=20)
    tensors = next(iter(loader))
    candidates = torch.from_numpy(model.neighbors_[:20, :3])
    library = module.library(tensors)
    full = torch.stack(
        [
            module.generative(
                module.context_mean[candidates[:, k]],
                library,
                tensors["batch"],
                cont_covs=tensors["extra_continuous_covs"],
                cat_covs=tensors["extra_categorical_covs"],
            )["px"]
            .log_prob(tensors["X"])
            .sum(-1)
            for k in range(3)
        ],
        dim=1,
    )
    scores = module.candidate_scores(tensors, library, candidates)
    torch.testing.assert_close(scores - scores[:, :1], full - full[:, :1], rtol=1e-3, atol=2e-2)
    assert np.isfinite(model.transfer_labels()["confidence"]).all()


def test_early_stopping_and_validation(context, species):
    model = build(context, species[1])
    model.train(3, early_stopping=True, **QUIET)
    assert "elbo_validation" in model.history
    assert len(model.validation_indices) == 30


def test_no_batch_of_one_is_left(context, species):
    """Batches are of equal size, to one cell."""
    model = build(context, species[1][:257])
    sizes = []
    callback = Callback()
    callback.on_train_batch_start = lambda trainer, plan, batch, i: sizes.append(len(batch[REGISTRY_KEYS.X_KEY]))
    model.train(1, batch_size=128, callbacks=[callback], **QUIET)
    assert sorted(sizes) == [85, 86, 86]


# ---- label transfer


def test_vote_table_by_hand(model, species):
    table = model.transfer_labels(n_candidates=60, n_neighbors=11)
    latent, context = model.get_latent_representation(), model.get_context_representation()
    codes = species[0].obs["cell_type"].cat.codes.to_numpy()
    categories = species[0].obs["cell_type"].cat.categories
    module = model.module.eval()
    for j in (0, 17, 123):
        nearest = np.argsort(np.linalg.norm(context - latent[j], axis=1))[:60]
        x = torch.from_numpy(species[1].X[j].toarray())
        batch = torch.tensor([[species[1].obs["batch"].cat.codes.iloc[j]]], dtype=torch.long)
        library = torch.log(x.sum(1, keepdim=True))
        with torch.no_grad():

            def log_prob(z, library=library, batch=batch, x=x):
                return module.generative(torch.from_numpy(z)[None], library, batch)["px"].log_prob(x).sum().item()

            scores = np.array([log_prob(context[i]) for i in nearest])
            own = log_prob(latent[j])
        best = nearest[np.argsort(-scores)[:11]]
        ratio = own - scores[:11].mean()
        shares = np.bincount(codes[best], minlength=len(categories)) / 11
        data = np.bincount(codes[model.neighbors_[j]], minlength=len(categories)) / model.neighbors_.shape[1]
        mean = 0.45 * shares + 0.55 * data
        row = table.iloc[j]
        assert row["label"] == categories[mean.argmax()]
        np.testing.assert_allclose(row["log_likelihood_ratio"], ratio, rtol=1e-2, atol=2e-2)
        reference = model.novelty_reference_
        signal = (np.log1p(max(ratio, 0)) - reference["ratio"][0]) / reference["ratio"][1]
        distance = (model.neighbor_distance_[j] - reference["distance"][0]) / reference["distance"][1]
        np.testing.assert_allclose(row["novelty"], max(signal, 0.5 * distance), rtol=2e-2, atol=5e-2)
        known = 1 / (1 + np.exp((row["novelty"] - 2.4) / 0.35))
        np.testing.assert_allclose(row["confidence"], (mean**2).max() / (mean**2).sum() * known, atol=1e-6)
        np.testing.assert_allclose(row["data_level_agreement"], data.max(), atol=1e-6)
        assert row["data_level_label"] == categories[data.argmax()]


def test_labels_of_some_cells_are_those_of_all(model):
    table = model.transfer_labels()
    pd.testing.assert_frame_equal(model.transfer_labels(indices=[5, 2, 70]), table.iloc[[5, 2, 70]], atol=1e-2)
    mask = np.arange(len(table)) % 40 == 3
    pd.testing.assert_frame_equal(model.transfer_labels(indices=mask), table[mask], atol=1e-2)


def test_only_the_cells_asked_for_are_ranked(model, monkeypatch):
    ranked = []
    module = type(model.module)
    scores = module.candidate_scores
    monkeypatch.setattr(
        module, "candidate_scores", lambda *args, **kw: ranked.append(len(args[3])) or scores(*args, **kw)
    )
    model.transfer_labels(indices=[5, 2, 70])
    assert sum(ranked) == 3


@pytest.mark.parametrize("likelihood", ["nb", "zinb"])
def test_labels_in_parts_are_those_at_once(context, species, monkeypatch, likelihood):
    human = species[1].copy()
    human.obs["sex"] = np.where(np.arange(human.n_obs) % 3, "f", "m")
    human.obs["age"] = np.random.default_rng(0).normal(size=human.n_obs).round()
    tv.ScSpecies.setup_anndata(
        human, batch_key="batch", categorical_covariate_keys=["sex"], continuous_covariate_keys=["age"]
    )
    model = tv.ScSpecies.from_scvi_model(
        context, human, human.uns["orthologs"], labels_key="cell_type", gene_likelihood=likelihood
    )
    model.train(2, **QUIET)
    latent, expected = model.get_latent_representation(), model.transfer_labels(n_candidates=40)
    query = model.query_cell(7)
    decoded = []
    profile_scores = type(model.module).profile_scores
    monkeypatch.setattr(_transfer, "HELD_COUNTS", 6000)
    monkeypatch.setattr(_transfer, "BLOCK", 13)
    monkeypatch.setattr(_module, "_DECODED", 20 * human.n_vars)
    monkeypatch.setattr(
        type(model.module), "profile_scores", lambda *args: decoded.append(len(args[3])) or profile_scores(*args)
    )
    result = model.transfer_labels(n_candidates=40)
    assert max(decoded) <= 20
    assert result.index.equals(expected.index)
    assert (result["label"] == expected["label"]).mean() > 0.99
    columns = ["novelty", "log_likelihood_ratio", "data_level_agreement"]
    np.testing.assert_allclose(result[columns], expected[columns], rtol=1e-2, atol=1e-2)
    pd.testing.assert_frame_equal(model.query_cell(7)[[]].sort_index(), query[[]].sort_index())
    ratios = [table["log_likelihood_ratio"].sort_index() for table in (model.query_cell(7), query)]
    np.testing.assert_allclose(*ratios, rtol=1e-3, atol=1e-2)
    context_latent = model.get_context_representation()
    loader = model._make_data_loader(model.adata)
    nearest = _transfer.rank_candidates(model.module, loader, 40, 5)["latent"]
    distance = np.linalg.norm(latent[:, None] - context_latent[None], axis=2)
    np.testing.assert_allclose(
        np.take_along_axis(distance, nearest, 1), np.sort(distance, axis=1)[:, :5], rtol=1e-4, atol=1e-5
    )


def test_unknown_and_key_added(context, species):
    human = species[1].copy()
    tv.ScSpecies.setup_anndata(human, batch_key="batch")
    model = tv.ScSpecies.from_scvi_model(context, human, human.uns["orthologs"], labels_key="cell_type")
    model.train(5, **QUIET)
    plain = model.transfer_labels()
    threshold = plain["novelty"].quantile(0.9)
    flagged = model.transfer_labels(unknown_threshold=threshold, key_added="pred")
    unknown = (flagged["label"] == "unknown").to_numpy()
    np.testing.assert_array_equal(unknown, plain["novelty"] > threshold)
    assert (flagged["label"][~unknown].astype(str) == plain["label"][~unknown].astype(str)).all()
    assert (human.obs["pred"].astype(str) == flagged["label"].astype(str)).all()
    np.testing.assert_array_equal(human.obs["pred_confidence"], flagged["confidence"])
    automatic = model.transfer_labels(unknown_threshold="auto")
    np.testing.assert_array_equal((automatic["label"] == "unknown"), plain["novelty"] > 2.4)


@pytest.mark.slow
def test_novel_cells_have_high_novelty_and_low_confidence():
    data = tv.datasets.simulate_species("tiny", target_only_types=1, seed=2)
    mouse, human = data["mouse"], data["human"]
    model = build(train_context(mouse), human)
    model.train(60, plan_kwargs={"lr": 4e-3}, **QUIET)
    labels = model.transfer_labels(unknown_threshold="auto")
    new = ~human.obs["cell_type"].isin(mouse.obs["cell_type"]).to_numpy()
    assert roc_auc_score(new, labels["novelty"]) > 0.9
    assert labels["confidence"][new].mean() < 0.5 < 0.8 < labels["confidence"][~new].mean()
    assert (labels["label"] == "unknown")[new].mean() > 0.5
    assert (labels["label"] == "unknown")[~new].mean() < 0.25


def test_several_label_columns(context, species):
    model = build(context, species[1], labels_key=["cell_type", "sibling_pair"])
    model.train(2, **QUIET)
    pairs = model.transfer_labels(labels_key="sibling_pair")["label"]
    assert set(pairs.cat.categories) == set(species[0].obs["sibling_pair"])
    with pytest.raises(KeyError, match="not one of the context's.*cell_type.*sibling_pair"):
        model.transfer_labels(labels_key="age")


def test_unlabelled_context_cells_do_not_vote(species):
    mouse = species[0].copy()
    mouse.obs["some"] = mouse.obs["cell_type"].astype(str).where(np.arange(mouse.n_obs) % 2 == 0, None)
    model = build(train_context(mouse, epochs=3), species[1], labels_key="some")
    model.train(3, **QUIET)
    assert set(model.transfer_labels()["label"].astype(str)) <= set(mouse.obs["cell_type"].astype(str))


def test_new_cells_of_the_target(model, species):
    new = tv.datasets.simulate_species("tiny", seed=1, n_cells={"human": 200})["human"]
    assert model.get_latent_representation(new).shape == (200, 10)
    table = model.transfer_labels(new)
    assert table["data_level_label"].isna().all()
    assert balanced_accuracy_score(new.obs["cell_type"].astype(str), table["label"].astype(str)) > 0.55


def test_data_level_labels_need_no_training(context, species):
    model = build(context, species[1], n_smooth=1)
    table = model.get_data_level_labels()
    assert balanced_accuracy_score(species[1].obs["cell_type"].astype(str), table["label"].astype(str)) > 0.7


def test_smoothing_helps_where_few_genes_are_shared(context, species):
    human = species[1].copy()
    table = human.uns["orthologs"].sample(25, random_state=0)
    tv.ScSpecies.setup_anndata(human, batch_key="batch")
    truth = human.obs["cell_type"].astype(str)
    score = {}
    for n_smooth in (1, 15):
        model = tv.ScSpecies.from_scvi_model(context, human, table, labels_key="cell_type", n_smooth=n_smooth)
        score[n_smooth] = balanced_accuracy_score(truth, model.get_data_level_labels()["label"].astype(str))
    assert score[15] > score[1] + 0.05


def test_inherited_methods(model):
    expression = model.get_normalized_expression(library_size=1e4)
    assert expression.shape == (300, 280)
    np.testing.assert_allclose(expression.sum(1), 1e4, rtol=1e-3)
    assert model.get_elbo() < 0
    model.view_anndata_setup()


# ---- saving


def test_save_and_load(model, species, tmp_path):
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match="already exists"):
        model.save(tmp_path / "model")
    loaded = tv.ScSpecies.load(tmp_path / "model", species[1].copy())
    np.testing.assert_array_equal(loaded.get_latent_representation(), model.get_latent_representation())
    np.testing.assert_array_equal(loaded.get_context_representation(), model.get_context_representation())
    pd.testing.assert_frame_equal(
        loaded.transfer_labels(unknown_threshold="auto"), model.transfer_labels(unknown_threshold="auto")
    )
    loaded.train(1, **QUIET)
    assert len(loaded.history["train_loss"]) == 61


def test_load_without_data(model, species, tmp_path):
    model.save(tmp_path / "model", prefix="a_")
    loaded = tv.ScSpecies.load(tmp_path / "model", adata=False, prefix="a_")
    np.testing.assert_array_equal(loaded.get_context_representation(), model.get_context_representation())
    np.testing.assert_array_equal(
        loaded.get_latent_representation(species[1].copy()), model.get_latent_representation()
    )


@pytest.mark.slow
def test_load_in_another_process(model, species, tmp_path):
    model.save(tmp_path / "model")
    human = species[1].copy()
    human.write_h5ad(tmp_path / "human.h5ad")
    code = (
        "import sys, anndata, numpy, transverse as tv, torch; torch.set_num_threads(1);"
        "adata = anndata.read_h5ad(sys.argv[1] + '/human.h5ad');"
        "model = tv.ScSpecies.load(sys.argv[1] + '/model', adata);"
        "numpy.save(sys.argv[1] + '/latent.npy', model.get_latent_representation());"
        "model.transfer_labels().to_csv(sys.argv[1] + '/labels.csv')"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True)
    np.testing.assert_allclose(np.load(tmp_path / "latent.npy"), model.get_latent_representation(), atol=1e-6)
    labels = pd.read_csv(tmp_path / "labels.csv", index_col=0)
    assert (labels["label"].to_numpy() == model.transfer_labels()["label"].astype(str).to_numpy()).all()


def test_genes_are_put_in_order(model, species, tmp_path):
    model.save(tmp_path / "model")
    shuffled = species[1][:, np.random.default_rng(0).permutation(280)].copy()
    extra = ad.concat(
        [shuffled, ad.AnnData(sp.csr_matrix((300, 2)), shuffled.obs, pd.DataFrame(index=["a", "b"]))], axis=1
    )
    extra.obs = shuffled.obs
    for data in (shuffled, extra):
        loaded = tv.ScSpecies.load(tmp_path / "model", data)
        np.testing.assert_allclose(loaded.get_latent_representation(), model.get_latent_representation(), atol=1e-5)
    np.testing.assert_allclose(model.get_latent_representation(shuffled), model.get_latent_representation(), atol=1e-5)
    with pytest.raises(ValueError, match="1 of the 280 genes.*are missing"):
        model.get_latent_representation(species[1][:, 1:].copy())
    with pytest.raises(ValueError, match="1 of the 280 genes.*are missing"):
        tv.ScSpecies.load(tmp_path / "model", species[1][:, 1:].copy())


def test_sparse_dense_integer_and_backed_data_give_the_same(context, model, species, tmp_path):
    model.save(tmp_path / "model")
    species[1].write_h5ad(tmp_path / "human.h5ad")
    dense = species[1].copy()
    dense.X = dense.X.toarray()
    ints = species[1].copy()
    ints.X = ints.X.astype(np.int64).tocsc()
    for human in (dense, ints, ad.read_h5ad(tmp_path / "human.h5ad", backed="r")):
        tv.ScSpecies.setup_anndata(human, batch_key="batch")
        fresh = tv.ScSpecies.from_scvi_model(context, human, species[1].uns["orthologs"], labels_key="cell_type")
        np.testing.assert_array_equal(fresh.neighbors_, model.neighbors_)
        fresh.train(1, **QUIET)
        loaded = tv.ScSpecies.load(tmp_path / "model", human)
        np.testing.assert_allclose(loaded.get_latent_representation(), model.get_latent_representation(), atol=1e-5)
        labels, expected = loaded.transfer_labels(), model.transfer_labels()
        assert (labels["label"] == expected["label"]).mean() > 0.99


@pytest.mark.slow
def test_all_calls_are_the_same_from_a_file(model, species, tmp_path):
    for adata, name in zip(species, ("mouse", "human"), strict=True):
        shuffled = adata[:, np.random.default_rng(0).permutation(adata.n_vars)].copy()
        shuffled.write_h5ad(tmp_path / f"{name}.h5ad")
        adata.write_h5ad(tmp_path / f"{name}_in_order.h5ad")
    model.save(tmp_path / "model")
    files = {path.stem: ad.read_h5ad(path, backed="r") for path in tmp_path.glob("*.h5ad")}
    genes = model.var_names_[5:8]
    for suffix in ("_in_order", ""):  # other orders of genes are read into memory
        mouse, human = files[f"mouse{suffix}"], files[f"human{suffix}"]
        loaded = tv.ScSpecies.load(tmp_path / "model", human)
        calls = {
            "latent": lambda m, _: m.get_latent_representation(),
            "intermediate": lambda m, _: m.get_intermediate_representation(),
            "labels": lambda m, _: m.transfer_labels().select_dtypes("number"),
            "fold changes": lambda m, _: m.get_cross_species_lfc(groupby="cell_type", n_samples=50)[["lfc"]],
            "similarity": lambda m, _: m.get_cell_type_similarity(groupby="cell_type", n_target=20, n_context=5),
            "relevance": lambda m, x: m.get_gene_relevance(groupby="cell_type", context_adata=x, n_cells=9)[
                ["relevance"]
            ],
            "Davies-Bouldin": lambda m, x: m.get_davies_bouldin(context_adata=x)[["davies_bouldin"]],
            "expression": lambda m, _: m.get_normalized_expression(gene_list=genes),
            "context's expression": lambda m, _: m.get_normalized_expression(transform_to="context")[::40],
            "query": lambda m, _: m.query_cell(7)[["log_likelihood_ratio"]],
        }
        for name, call in calls.items():
            scvi.settings.seed = 0
            expected = np.asarray(call(model, species[0]))
            scvi.settings.seed = 0
            np.testing.assert_allclose(np.asarray(call(loaded, mouse)), expected, rtol=1e-3, atol=1e-4, err_msg=name)


def test_a_context_from_a_file_is_the_same(context, model, species, tmp_path):
    species[0].write_h5ad(tmp_path / "mouse.h5ad")
    context.save(tmp_path / "context")
    from_file = scvi.model.SCVI.load(tmp_path / "context", ad.read_h5ad(tmp_path / "mouse.h5ad", backed="r"))
    found = build(from_file, species[1])
    np.testing.assert_array_equal(found.neighbors_, model.neighbors_)
    np.testing.assert_allclose(found.neighbor_distance_, model.neighbor_distance_, rtol=1e-4)
    np.testing.assert_allclose(found.get_context_representation(), model.get_context_representation(), atol=1e-5)


def test_training_from_a_file_is_the_same(context, species, tmp_path):
    species[1].write_h5ad(tmp_path / "human.h5ad")
    found = []
    for human in (species[1].copy(), ad.read_h5ad(tmp_path / "human.h5ad", backed="r")):
        tv.ScSpecies.setup_anndata(human, batch_key="batch")
        scvi.settings.seed = 0
        trained = tv.ScSpecies.from_scvi_model(context, human, species[1].uns["orthologs"], labels_key="cell_type")
        trained.train(2, **QUIET)
        # cells in an order of one's own
        order = np.random.default_rng(0).permutation(300)[:200]
        latent = trained.get_latent_representation(indices=order)
        np.testing.assert_allclose(latent, trained.get_latent_representation()[order], atol=1e-5)
        found.append(latent)
    np.testing.assert_allclose(*found, atol=1e-4)


def test_backed_batches_keep_cells_and_candidates_together(model, species, tmp_path):
    species[1].write_h5ad(tmp_path / "human.h5ad")
    backed = ad.read_h5ad(tmp_path / "human.h5ad", backed="r")
    tv.ScSpecies.setup_anndata(backed, batch_key="batch")
    manager = tv.ScSpecies._get_most_recent_anndata_manager(backed)
    splitter = tv.ScSpecies._data_splitter_cls(
        manager, model.neighbors_, model.eligible_, train_size=1.0, batch_size=64
    )
    splitter.setup()
    seen = []
    for tensors in splitter.train_dataloader():
        cells = tensors["cell"].numpy()
        seen.extend(cells)
        np.testing.assert_array_equal(tensors["X"].numpy(), species[1].X[cells].toarray())
        np.testing.assert_array_equal(tensors["candidates"].numpy(), model.neighbors_[cells])
        np.testing.assert_array_equal(tensors["eligible"].numpy()[:, 0], model.eligible_[cells])
    assert sorted(seen) == list(range(300))


RANK = """
import sys
import numpy as np
import scvi
import torch
import transverse as tv
from transverse.scspecies import _data

torch.set_num_threads(1)
QUIET = {"accelerator": "cpu", "enable_progress_bar": False}

if __name__ == "__main__":
    folder = sys.argv[1]
    scvi.settings.seed = 3
    mouse, human = tv.datasets.simulate_species("tiny", seed=1, n_cells={"mouse": 90, "human": 83}).values()
    scvi.model.SCVI.setup_anndata(mouse, batch_key="batch")
    context = tv.ScSpecies.make_context(mouse, n_hidden=16)
    context.train(1, devices=1, **QUIET)
    tv.ScSpecies.setup_anndata(human, batch_key="batch")
    model = tv.ScSpecies.from_scvi_model(context, human, human.uns["orthologs"], labels_key="cell_type")
    seen = []

    def read(self, cells, read=_data.CandidateDataset.__getitem__):
        seen.append(np.array(cells))
        return read(self, cells)

    _data.CandidateDataset.__getitem__ = read
    model.train(
        3, batch_size=8, train_size=0.8, check_val_every_n_epoch=1, devices=2,
        strategy="ddp_find_unused_parameters_true", num_sanity_val_steps=0, **QUIET,
    )
    batches = [cells for cells in seen if len(cells) <= 8]
    training = [np.isin(cells, model.train_indices).all() for cells in batches]
    validation = [np.isin(cells, model.validation_indices).all() for cells in batches]
    logged = {key: float(value) for key, value in model.trainer.callback_metrics.items()}
    np.savez(
        f"{folder}/{model.trainer.global_rank}.npz",
        weights=torch.cat([t.flatten().double() for t in model.module.state_dict().values()]).numpy(),
        sizes=[len(cells) for cells, of in zip(batches, training) if of],
        train=np.concatenate([cells for cells, of in zip(batches, training) if of]),
        validation=np.concatenate([cells for cells, of in zip(batches, validation) if of]),
        expected=np.sort(model.train_indices), expected_validation=np.sort(model.validation_indices),
        logged=[logged[key] for key in sorted(logged)], names=sorted(logged),
    )
"""


@pytest.mark.slow
def test_two_processes_share_the_cells(in_two_processes):
    one, other = in_two_processes(RANK)
    for key in ("weights", "expected", "logged", "names"):
        np.testing.assert_array_equal(one[key], other[key])
    assert "alignment_loss_validation" in one["names"] and "alignment_loss_train" in one["names"]
    n = len(one["expected"])
    shares = []
    for rank in (one, other):
        epochs = np.array_split(rank["train"], 3)
        # the same cells in every epoch, each once, in another order
        assert all(set(epoch) == set(epochs[0]) and len(set(epoch)) == len(epoch) for epoch in epochs)
        assert not np.array_equal(epochs[0], epochs[1])
        assert abs(len(epochs[0]) - n / 2) < 1 and rank["sizes"].max() - rank["sizes"].min() <= 1
        shares.append(set(epochs[0]))
    assert len(one["sizes"]) == len(other["sizes"])
    assert not shares[0] & shares[1] and shares[0] | shares[1] == set(one["expected"])
    # the validation loss is over every cell once
    seen = np.concatenate([rank["validation"].reshape(3, -1)[0] for rank in (one, other)])
    np.testing.assert_array_equal(np.sort(seen), one["expected_validation"])


def test_counts_in_a_layer(context, species):
    human = species[1].copy()
    human.layers["counts"] = human.X.copy()
    human.X = human.X.log1p()
    tv.ScSpecies.setup_anndata(human, layer="counts", batch_key="batch")
    scvi.settings.seed = 0
    model = tv.ScSpecies.from_scvi_model(context, human, human.uns["orthologs"], labels_key="cell_type")
    expected = build(context, species[1])
    np.testing.assert_array_equal(model.neighbors_, expected.neighbors_)


# ---- bad input


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda a: None, KeyError, "batch_key='nothing' is not in adata.obs.*cell_type"),
        (lambda a: a.obs.assign(nothing=None), ValueError, "missing for 300 cells"),
    ],
)
def test_setup_refuses_bad_batches(species, spoil, error, message):
    human = species[1].copy()
    if (obs := spoil(human)) is not None:
        human.obs = obs
    before = human.copy()
    with pytest.raises(error, match=message):
        tv.ScSpecies.setup_anndata(human, batch_key="nothing")
    assert list(human.obs) == list(before.obs)
    assert list(human.uns) == list(before.uns)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.log1p(), "must hold raw counts, but has fractions"),
        (lambda x: -x, "negative values"),
        (lambda x: x * np.nan, "missing or infinite"),
        (lambda x: sp.csr_matrix(x.shape), "300 cells of adata have no counts"),
    ],
)
def test_setup_refuses_what_is_not_counts(species, change, message):
    human = species[1].copy()
    human.X = sp.csr_matrix(change(human.X))
    columns = list(human.obs)
    with pytest.raises(ValueError, match=message):
        tv.ScSpecies.setup_anndata(human, batch_key="batch")
    assert list(human.obs) == columns


def test_setup_refuses_other_faults(species):
    with pytest.raises(TypeError, match="must be an AnnData, but got DataFrame"):
        tv.ScSpecies.setup_anndata(pd.DataFrame())
    human = species[1].copy()
    with pytest.raises(KeyError, match="layer='counts' is not in adata.layers"):
        tv.ScSpecies.setup_anndata(human, layer="counts")
    with pytest.raises(ValueError, match="must be numeric"):
        tv.ScSpecies.setup_anndata(human, continuous_covariate_keys=["batch"])
    human.var_names = ["same"] * 2 + list(human.var_names[2:])
    with pytest.raises(ValueError, match="these repeat: 'same'.*var_names_make_unique"):
        tv.ScSpecies.setup_anndata(human)
    with pytest.raises(ValueError, match="adata is empty"):
        tv.ScSpecies.setup_anndata(species[1][:0].copy())


def test_a_context_without_its_counts_is_refused(species, tmp_path):
    mouse = species[0].copy()
    scvi.model.SCVI.setup_anndata(mouse, batch_key="batch")
    made = tv.ScSpecies.make_context(mouse, n_hidden=16)
    made.train(1, **QUIET)
    made.save(tmp_path / "context")
    with pytest.raises(ValueError, match=r"has no AnnData. Load it with one"):
        build(scvi.model.SCVI.load(tmp_path / "context", adata=False), species[1])
    mouse.obsm["X_latent_qzm"], mouse.obsm["X_latent_qzv"] = made.get_latent_representation(return_dist=True)
    made.minify_adata()
    with pytest.raises(ValueError, match=r"is minified \(.*\): its counts are gone"):
        build(made, species[1])


def test_the_column_of_labels_that_the_context_was_set_up_with(species):
    mouse = species[0].copy()
    scvi.model.SCVI.setup_anndata(mouse, batch_key="batch", labels_key="cell_type")
    made = tv.ScSpecies.make_context(mouse, n_hidden=16)
    made.train(1, **QUIET)
    labels = build(made, species[1], labels_key=None).get_data_level_labels()["label"]
    assert set(labels.cat.categories) == set(mouse.obs["cell_type"])


def test_unfit_contexts_are_refused_with_the_reason(context, species):
    mouse = species[0].copy()
    scvi.model.SCVI.setup_anndata(mouse, batch_key="batch")
    with pytest.raises(ValueError, match="is not trained"):
        build(tv.ScSpecies.make_context(mouse), species[1])
    with pytest.raises(TypeError, match="must be a scvi.model.SCVI model, but got str"):
        build("model", species[1])
    quick = {"max_epochs": 1, **QUIET}
    for options, message in [
        ({"n_layers": 1}, "n_layers=1, but needs at least 2"),
        ({"deeply_inject_covariates": True}, "inner encoder layers read its batch"),
        ({"latent_distribution": "ln"}, "must be 'normal', but is 'ln'"),
    ]:
        other = tv.ScSpecies.make_context(mouse, n_hidden=16, **options)
        other.train(**quick)
        with pytest.raises(ValueError, match=message):
            build(other, species[1])
    with pytest.raises(ValueError, match="needs at least 3"):
        build(context, species[1], n_outer_layers=2)
    with pytest.raises(KeyError, match=r"labels_key \(of the context\)='age'"):
        build(context, species[1], labels_key="age")
    with pytest.raises(ValueError, match="labels_key is needed"):
        build(context, species[1], labels_key=None)
    without_labels = species[0].copy()
    without_labels.obs["none"] = pd.Categorical([None] * without_labels.n_obs)
    scvi.model.SCVI.setup_anndata(without_labels, batch_key="batch")
    other = tv.ScSpecies.make_context(without_labels, n_hidden=16)
    other.train(**quick)
    with pytest.raises(ValueError, match="labels_key='none' of the context holds no label"):
        build(other, species[1], labels_key="none")
    with pytest.raises(ValueError, match="n_neighbors=500 must be between 1 and"):
        build(context, species[1], n_neighbors=500)
    with pytest.raises(ValueError, match="gene_likelihood must be 'nb' or 'zinb'"):
        build(context, species[1], gene_likelihood="poisson")
    with pytest.raises(ValueError, match="dispersion must be"):
        build(context, species[1], dispersion="gene-label")


def test_no_shared_genes(context, species):
    human = species[1].copy()
    tv.ScSpecies.setup_anndata(human, batch_key="batch")
    with pytest.raises(ValueError, match="(?s)Mouse.*Human|Human.*Mouse"):
        tv.ScSpecies.from_scvi_model(context, human, labels_key="cell_type")


def test_calls_that_cannot_work(context, species, model):
    untrained = build(context, species[1])
    for method in (untrained.get_latent_representation, untrained.transfer_labels):
        with pytest.raises(RuntimeError, match="[Tt]rain"):
            method()
    with pytest.raises(TypeError, match="from_scvi_model"):
        tv.ScSpecies(untrained.adata)
    with pytest.raises(ValueError, match=r"agreement_quantile must be in \[0, 1\)"):
        untrained.train(1, agreement_quantile=1.0)
    with pytest.raises(ValueError, match="vote must be 'combined'"):
        model.transfer_labels(vote="loud")
    with pytest.raises(ValueError, match="n_neighbors=401 must be between"):
        model.transfer_labels(n_neighbors=401)
    with pytest.raises(ValueError, match="leave indices out"):
        model.transfer_labels(indices=[0, 1], key_added="x")


def test_training_on_other_cells_is_refused(model, species, tmp_path):
    model.save(tmp_path / "model")
    loaded = tv.ScSpecies.load(tmp_path / "model", species[1][:100].copy())
    assert loaded.get_latent_representation().shape == (100, 10)
    with pytest.raises(ValueError, match="neighbours were searched for"):
        loaded.train(1, **QUIET)


def test_nothing_of_the_users_is_changed(context, species):
    human = species[1].copy()
    counts = human.X.copy()
    columns, keys = list(human.obs), (list(human.obsm), list(human.layers), list(human.var))
    tv.ScSpecies.setup_anndata(human, batch_key="batch")
    model = tv.ScSpecies.from_scvi_model(context, human, human.uns["orthologs"], labels_key="cell_type")
    model.train(1, **QUIET)
    model.transfer_labels()
    assert (human.X != counts).nnz == 0
    # scvi-tools' own bookkeeping is all that was added
    assert [c for c in human.obs if c not in columns] == ["_scvi_batch", "_scvi_labels"]
    assert (list(human.obsm), list(human.layers), list(human.var)) == keys
