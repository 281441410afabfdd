"""Training: which weights learn in which stage, which are kept, what is logged, and what is refused."""

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import scvi
import torch
from lightning.pytorch.callbacks import Callback

import transverse as tv
from transverse._training import copy_state
from transverse._training_run import StageRunner
from transverse.deepcellstate import STAGES
from transverse.deepcellstate._pairs import DECODER
from transverse.deepcellstate._stages import choose_stages
from transverse.deepcellstate._training_plan import decoder_losses, mean_pearson

from .conftest import QUIET, SMALL, build, part, same, train, weights_of

NAMES = ("autoencoder", "decoders", "frozen")


def column(model, key):
    return model.history[key].iloc[:, 0].to_numpy(dtype=object)


def numbers(model, key, stage=None):
    values = model.history[key].iloc[:, 0].astype(float)
    return (values if stage is None else values[column(model, "stage") == stage]).to_numpy()


class Recorder(Callback):
    """Of every fit: weights at its start, after the last step of every epoch, and whether Adam begins an epoch with moments."""

    def __init__(self):
        self.start, self.epochs, self.moments, self.adam, self.training = [], [], [], [], []

    def on_train_start(self, trainer, plan):
        self.start.append(copy_state(plan.module))
        self.epochs.append([])
        self.moments.append([])
        self.adam.append(trainer.optimizers[0])

    def on_train_batch_start(self, trainer, plan, batch, i):
        self.training.append(plan.module.training)
        if i == 0:
            self.moments[-1].append(len(trainer.optimizers[0].state) > 0)

    def on_train_batch_end(self, trainer, plan, *args):
        self.epochs[-1][trainer.current_epoch :] = [copy_state(plan.module)]


class Spoil(Callback):
    """Make the weights worse, from an epoch of a stage on."""

    def __init__(self, epoch, decoders=None):
        self.epoch, self.decoders = epoch, decoders

    def on_train_epoch_start(self, trainer, plan):
        if trainer.current_epoch >= self.epoch:
            chosen = plan.module.decoders if self.decoders is None else [plan.module.decoders[i] for i in self.decoders]
            with torch.no_grad():
                for decoder in chosen:
                    for parameter in decoder.parameters():
                        parameter *= -3


def moved(before, after):
    """Which parts of the module have changed, all of their weights."""
    parts = {}
    for name in before:
        if name != "scale":
            key = name.split(".")[0] if name.startswith("encoder") else ".".join(name.split(".")[:2])
            parts.setdefault(key, set()).add(torch.equal(before[name], after[name]))
    assert all(len(found) == 1 for found in parts.values()), parts
    return {key for key, found in parts.items() if found == {False}}


def decoder_weights(state, i):
    return {
        name.removeprefix(f"decoders.{i}."): value for name, value in state.items() if name.startswith(f"decoders.{i}.")
    }


# ---- stages


def test_what_learns_in_which_stage(sig):
    model, recorder = build(sig), Recorder()
    model.train(max_epochs=2, lr=1e-2, early_stopping=False, callbacks=[recorder], **QUIET)
    everything = {"encoder", "decoders.0", "decoders.1", "decoders.2"}
    ends = [epochs[-1] for epochs in recorder.epochs]
    assert moved(recorder.start[0], ends[0]) == {"encoder", "decoders.0"}
    # the others start as copies of the one that learnt for all
    for i in range(3):
        assert same(decoder_weights(recorder.start[1], i), decoder_weights(ends[0], 0))
    assert same(recorder.start[1], {**ends[0], **recorder.start[1]})
    assert moved(recorder.start[1], ends[1]) == everything
    assert same(recorder.start[2], ends[1])
    assert moved(recorder.start[2], ends[2]) == everything - {"encoder"}
    assert same(weights_of(model.module), ends[2])
    assert not same(decoder_weights(ends[2], 0), decoder_weights(ends[2], 1))
    assert all(parameter.requires_grad for parameter in model.module.parameters())
    assert all(recorder.training) and not model.module.training


def test_history(sig):
    model = train(sig, epochs={"autoencoder": 3, "decoders": 2, "frozen": 4}, patience=10)
    stages = ["autoencoder"] * 3 + ["decoders"] * 2 + ["frozen"] * 4
    logged = {"train_loss", "error_train", "latent_l1_train", "validation_loss", "pearson_validation"}
    assert set(model.history) == logged | {"stage", "restart"}
    assert list(column(model, "stage")) == stages and set(column(model, "restart")) == {0}
    for key, values in model.history.items():
        assert list(values.index) == list(range(9)), key
        if key in logged:
            assert np.isfinite(numbers(model, key)).all(), key
    weight = model.module.latent_l1
    expected = numbers(model, "error_train") + weight * numbers(model, "latent_l1_train")
    np.testing.assert_allclose(numbers(model, "train_loss"), expected, rtol=1e-6)
    # it goes on, without the first stage
    model.train(max_epochs=1, **QUIET)
    assert list(column(model, "stage")) == [*stages, "decoders", "frozen"]
    assert all(list(values.index) == list(range(11)) for values in model.history.values())


def test_training_goes_on(sig):
    model, recorder = train(sig), Recorder()
    first, scale = weights_of(model.module), float(model.module.scale)
    decoders, conditions = model.trained_decoders_, model.training_conditions_
    model.train(max_epochs=1, callbacks=[recorder], **QUIET)
    assert len(recorder.start) == 2 and same(recorder.start[0], first)
    assert all(recorder.training) and not model.module.training
    assert not same(weights_of(model.module), first)
    assert float(model.module.scale) == scale
    assert (model.trained_decoders_, model.training_conditions_) == (decoders, conditions)


@pytest.mark.parametrize("stages", ["frozen", ["decoders", "autoencoder"], ["frozen", "decoders"]], ids=str)
def test_chosen_stages_in_their_own_order(sig, stages):
    model, recorder = build(sig), Recorder()
    model.train(max_epochs=1, stages=stages, callbacks=[recorder], **QUIET)
    chosen = [name for name in NAMES if name in ([stages] if isinstance(stages, str) else stages)]
    assert list(column(model, "stage")) == chosen and len(recorder.start) == len(chosen)
    assert model.trained_decoders_ == ["C1", "C2", "C3"]


def test_defaults_of_stages():
    stages = choose_stages(None, False, None, None, None)
    assert stages == list(STAGES.values()) and [stage.name for stage in stages] == list(NAMES)
    assert [(stage.kind, stage.validation_kind, stage.n_passes) for stage in stages] == [
        ("self", "self", 1),
        ("both", "cross", 2),
        ("cross", "cross", 1),
    ]
    assert [stage.name for stage in choose_stages(None, True, None, None, None)] == ["decoders", "frozen"]
    assert [stage.name for stage in choose_stages(["autoencoder"], True, None, None, None)] == ["autoencoder"]


def test_numbers_for_all_stages_or_by_stage():
    first, second, third = STAGES.values()
    stages = choose_stages(None, False, {"frozen": 7}, 4, {"decoders": 0.1, "autoencoder": 0.2})
    assert [(stage.max_epochs, stage.patience, stage.lr) for stage in stages] == [
        (first.max_epochs, 4, 0.2),
        (second.max_epochs, 4, 0.1),
        (7, 4, third.lr),
    ]


def spied(model):
    """What every fit of the model is given."""
    seen = []

    class Spy(StageRunner):
        def __init__(self, model, training_plan, data_splitter, **kwargs):
            seen.append((training_plan, data_splitter, kwargs))
            super().__init__(model, training_plan=training_plan, data_splitter=data_splitter, **kwargs)

    model._train_runner_cls = Spy
    return seen


def test_what_a_fit_is_given(sig):
    model = build(sig)
    seen = spied(model)
    model.train(
        max_epochs={"autoencoder": 2, "decoders": 1, "frozen": 1},
        lr={"decoders": 0.1},
        patience={"decoders": 8},
        batch_size=5,
        plan_kwargs={"weight_decay": 0.01},
        **QUIET,
    )
    grid = model._grid()
    for (plan, data, kwargs), name in zip(seen, NAMES, strict=True):
        stage = STAGES[name]
        lr = 0.1 if name == "decoders" else stage.lr
        assert (plan.lr, plan.weight_decay, plan.train_encoder) == (lr, 0.01, name != "frozen")
        assert kwargs["max_epochs"] == 1 + (name == "autoencoder")
        expected = grid.pairs(model.train_indices, stage.kind)
        if name == "autoencoder":
            expected[:, DECODER] = 0
        np.testing.assert_array_equal(data.train_pairs, expected)
        batches = list(data.train_dataloader())
        assert max(len(batch["X"]) for batch in batches) <= 5
        assert sum(len(batch["X"]) for batch in batches) == stage.n_passes * len(expected)
        if name != "frozen":
            wanted = (stage.monitor, stage.mode, 8 if name == "decoders" else stage.patience, 0)
            keys = ("monitor", "mode", "patience", "min_delta")
            assert tuple(kwargs[f"early_stopping_{key}"] for key in keys) == wanted


def test_optimiser(sig):
    model, recorder = build(sig), Recorder()
    model.train(max_epochs=1, callbacks=[recorder], **QUIET)
    sizes = [sum(p.numel() for p in adam.param_groups[0]["params"]) for adam in recorder.adam]
    encoder = sum(p.numel() for p in model.module.encoder.parameters())
    whole = sum(p.numel() for p in model.module.parameters())
    assert sizes == [whole, whole, whole - encoder]
    for adam, stage in zip(recorder.adam, STAGES.values(), strict=True):
        group = adam.param_groups[0]
        assert type(adam) is torch.optim.Adam
        assert (group["lr"], group["weight_decay"], group["eps"]) == (stage.lr, 0, 1e-8)


@pytest.mark.parametrize("reset", [True, False])
def test_moments_are_forgotten_in_the_second_stage(sig, reset):
    model, recorder = build(sig), Recorder()
    model.train(max_epochs=3, reset_moments=reset, callbacks=[recorder], **QUIET)
    kept, forgotten = [False, True, True], [False, False, False]
    assert recorder.moments == [kept, forgotten if reset else kept, kept]


# ---- chance


def test_same_seed_same_model_other_seed_other_model(sig):
    models = [train(sig, seed=seed) for seed in (0, 0, 1)]
    first, again, other = (weights_of(model.module) for model in models)
    assert same(first, again) and not same(first, other)
    np.testing.assert_array_equal(numbers(models[0], "train_loss"), numbers(models[1], "train_loss"))
    assert models[0].training_conditions_ == models[1].training_conditions_ != models[2].training_conditions_


@pytest.mark.parametrize(
    "network",
    [
        {"architecture": "pointwise"},
        {"architecture": "pointwise", "n_hidden": (5,), "skip": "tied"},
        {"skip": "none", "preset": 3},
        {"n_hidden": [9, 8, 7], "skip": "tied", "preset": 0},
        {"input_dropout_rate": 0.0, "decoder_dropout_rate": 0.0, "latent_l1": 0.1},
    ],
    ids=str,
)
def test_options_of_the_network(sig, network):
    model = train(sig, epochs=1, network=network)
    assert np.isfinite(numbers(model, "train_loss")).all()
    pred = model.predict(part(sig, "C1"), "C2")
    assert np.isfinite(pred.X).all()
    assert f"skip: {network.get('skip', 'separate')}, preset: {network.get('preset', 0)}" in model._model_summary_string


# ---- which signatures


def test_whole_perturbations_are_left_to_the_validation(sig):
    model = train(sig, epochs=1, train_size=0.8)
    names = sig.obs["perturbation"].astype(str).to_numpy()
    trained, validated = (set(names[rows]) for rows in (model.train_indices, model.validation_indices))
    assert len(trained) == 24 and len(validated) == 6 and not trained & validated
    conditions = {tuple(row) for row in model.training_conditions_}
    labels = sig.obs[["perturbation", "cell_type"]].astype(str).itertuples(index=False, name=None)
    assert conditions == {label for label in labels if label[0] in trained}


def rows_by(sig, validation_drugs, rest=()):
    names = sig.obs["perturbation"].astype(str)
    validation, out = np.flatnonzero(names.isin(validation_drugs)), np.flatnonzero(names.isin(rest))
    return [np.setdiff1d(np.arange(sig.n_obs), np.union1d(validation, out)), validation, out]


def test_signatures_of_ones_own_choice(sig):
    rows = rows_by(sig, ["D0002", "D0003", "D0004"], ["D0005"])
    model = build(sig)
    seen = spied(model)
    model.train(max_epochs=1, datasplitter_kwargs={"external_indexing": [rows[0][::-1], *rows[1:]]}, **QUIET)
    for found, expected in zip((model.train_indices, model.validation_indices, model.test_indices), rows, strict=True):
        np.testing.assert_array_equal(found, expected)
    for _, data, _ in seen:
        assert np.isin(data.train_pairs[:, :DECODER], rows[0]).all()
        assert np.isin(data.validation_pairs[:, :DECODER], rows[1]).all()
    assert not {"D0002", "D0005"} & {name for name, _ in model.training_conditions_}


def test_what_is_not_trained_on_changes_nothing(sig):
    """Neither the weights nor the scale, however large it is."""
    rows = rows_by(sig, ["D0002", "D0003"], ["D0005"])
    found = []
    for change in (False, True):
        adata = sig.copy()
        if change:
            adata.X[np.concatenate(rows[1:])] *= -100
        model = train(adata, early_stopping=False, datasplitter_kwargs={"external_indexing": rows})
        found.append(weights_of(model.module))
        assert float(model.module.scale) == np.abs(sig.X[rows[0]]).max()
    assert same(*found)
    assert np.abs(adata.X).max() > 10 * found[0]["scale"]


@pytest.mark.parametrize("kind", ["array", "csr", "layer"])
def test_scale_is_the_largest_absolute_value(sig, kind):
    adata = sig.copy()
    adata.X[3, 2] = -50
    setup = {}
    if kind == "csr":
        adata.X = sp.csr_matrix(adata.X)
    elif kind == "layer":
        adata.layers["other"], setup = adata.X.copy(), {"layer": "other"}
        adata.X[:] = 0
    rows = [np.arange(adata.n_obs), np.array([], dtype=int), np.array([], dtype=int)]
    model = train(adata, epochs=1, setup=setup, stages="decoders", datasplitter_kwargs={"external_indexing": rows})
    assert float(model.module.scale) == 50


def test_sparse_and_backed_data_train_the_same_model(sig, tmp_path):
    expected = weights_of(train(sig).module)
    sparse = sig.copy()
    sparse.X = sp.csr_matrix(sparse.X)
    sparse.write_h5ad(tmp_path / "sparse.h5ad")
    sig.write_h5ad(tmp_path / "dense.h5ad")
    assert same(weights_of(train(sparse).module), expected)
    for name in ("sparse", "dense"):
        backed = ad.read_h5ad(tmp_path / f"{name}.h5ad", backed="r")
        scvi.settings.seed = 0
        tv.DeepCellState.setup_anndata(backed)
        model = tv.DeepCellState(backed, **SMALL)
        model.train(max_epochs=2, lr=5e-3, **QUIET)
        assert same(weights_of(model.module), expected)
        backed.file.close()


def test_few_signatures_are_all_trained_on(sig):
    adata = part(sig, drug=[f"D000{i}" for i in range(1, 7)])
    model = train(adata, early_stopping=True)
    assert len(model.train_indices) == adata.n_obs and len(model.validation_indices) == 0
    # nothing to stop by
    assert "validation_loss" not in model.history and len(model.history["train_loss"]) == 6
    with pytest.raises(ValueError, match="n_restarts needs perturbations for validation"):
        build(adata).train(max_epochs=1, n_restarts=2, **QUIET)


def test_decoders_that_could_not_learn(sig):
    adata = sig[((sig.obs["cell_type"] != "C3") | (sig.obs["perturbation"] == "D0002")).to_numpy()].copy()
    names = adata.obs["perturbation"].astype(str).to_numpy(dtype=object)
    names[(adata.obs["cell_type"] == "C3").to_numpy()] = "other"
    adata.obs["perturbation"] = names
    with pytest.warns(UserWarning, match="share no perturbation with another: 'C3'. Their decoders cannot learn"):
        model = train(adata, epochs=1)
    assert model.cell_types_ == ["C1", "C2", "C3"] and model.trained_decoders_ == ["C1", "C2"]
    # trained on all the same, in the first stage
    assert ("other", "C3") in {tuple(row) for row in model.training_conditions_}
    with pytest.raises(KeyError, match="The decoder of target='C3' was not trained.*Trained: 'C1', 'C2'"):
        model.predict(part(adata, "C1"), "C3")


# ---- which weights are kept


@pytest.mark.parametrize(("stage", "key"), [("autoencoder", "validation_loss"), ("decoders", "pearson_validation")])
def test_best_weights_of_a_stage(sig, stage, key):
    sign = 1 if key == "validation_loss" else -1
    model, recorder, start = build(sig, preset=0), Recorder(), 0
    if stage == "decoders":
        start = 20
        model.train(
            max_epochs=start, lr=1e-2, early_stopping=False, check_val_every_n_epoch=1, stages="autoencoder", **QUIET
        )
    options = {"lr": 1e-2, "patience": 10, "train_size": 0.7, "callbacks": [Spoil(4), recorder]}
    model.train(max_epochs=6, stages=stage, **options, **QUIET)
    values = sign * numbers(model, key)[start:]
    best = int(values.argmin())
    assert len(values) == 6 and 0 < best < 4
    kept, expected = weights_of(model.module), recorder.epochs[0][best]
    if stage == "autoencoder":
        expected = {
            name: kept[name] if name.startswith(("decoders.1", "decoders.2")) else expected[name] for name in kept
        }
    assert same(kept, expected)
    found = mean_pearson(model.module, model.trainer.datamodule.val_dataloader())
    np.testing.assert_allclose(found, numbers(model, "pearson_validation")[start + best], rtol=1e-5)


def test_best_weights_of_the_first_stage_are_those_of_all_decoders(sig):
    model = build(sig)
    model.train(max_epochs=4, stages="autoencoder", lr=1e-2, patience=10, callbacks=[Spoil(2)], **QUIET)
    for decoder in model.module.decoders[1:]:
        assert same(weights_of(decoder), weights_of(model.module.decoders[0]))


def frozen(model, **kwargs):
    """Train the last stage, and the losses of every decoder at its start and after each epoch."""
    losses = []

    class Losses(Callback):
        def on_fit_start(self, trainer, plan):
            losses.append(decoder_losses(plan.module, trainer.datamodule.val_dataloader()))
            plan.module.train()

        def on_validation_epoch_start(self, trainer, plan):
            losses.append(decoder_losses(plan.module, trainer.datamodule.val_dataloader()))

    callbacks = [*kwargs.pop("callbacks", []), Losses()]
    model.train(**{"stages": "frozen", "train_size": 0.7, "callbacks": callbacks} | kwargs, **QUIET)
    return pd.DataFrame(losses), decoder_losses(model.module, model.trainer.datamodule.val_dataloader())


def test_every_decoder_is_kept_at_its_own_best(sig):
    model, recorder = train(sig, epochs=3, stages=["autoencoder", "decoders"], train_size=0.7), Recorder()
    spoil = [Spoil(2, [0]), Spoil(4, [2]), recorder]
    losses, final = frozen(model, max_epochs=6, patience=10, lr=1e-2, callbacks=spoil)
    best = losses.to_numpy().argmin(0)
    assert len(losses) == 7 and len(set(best)) > 1 and best[0] < 3 and best[2] < 5
    states = [recorder.start[0], *recorder.epochs[0]]
    for i in range(3):
        assert same(weights_of(model.module.decoders[i]), decoder_weights(states[best[i]], i))
        assert final[i] == pytest.approx(losses[i].min())
    # what is logged of all is the mean over pairs
    pairs = model.trainer.datamodule.validation_pairs[:, DECODER]
    expected = losses.iloc[1:].to_numpy() @ (np.bincount(pairs) / len(pairs))
    np.testing.assert_allclose(numbers(model, "validation_loss", "frozen"), expected, rtol=1e-5)


def test_the_start_is_kept_where_nothing_is_better(sig):
    model = train(sig, epochs=3, stages=["autoencoder", "decoders"], train_size=0.7)
    before = weights_of(model.module)
    losses, _ = frozen(model, max_epochs=10, patience=2, callbacks=[Spoil(0)])
    assert len(losses) == 3
    assert same(weights_of(model.module), before)


def test_patience(sig):
    """With weights that do not change; the last stage has its start to compare with."""
    model = build(sig, skip="none")
    model.train(max_epochs=20, lr=1e-30, patience={"autoencoder": 4, "decoders": 3, "frozen": 2}, **QUIET)
    counts = pd.Series(column(model, "stage")).value_counts()
    assert dict(counts) == {"autoencoder": 5, "decoders": 4, "frozen": 2}


def test_without_early_stopping_the_last_weights_are_kept(sig):
    model, recorder = build(sig, skip="none"), Recorder()
    options = {"lr": 1e-2, "patience": 1, "check_val_every_n_epoch": 1, "callbacks": [Spoil(2), recorder]}
    model.train(max_epochs=4, early_stopping=False, **options, **QUIET)
    assert len(model.history["train_loss"]) == len(model.history["pearson_validation"]) == 12
    assert same(weights_of(model.module), recorder.epochs[-1][-1])


def test_validation_is_the_score_of_predictions(sig):
    """The mean correlation over the validation, as anybody would score what the model predicts."""
    model = train(sig, epochs=3, stages=["autoencoder", "decoders"], train_size=0.6, patience=9)
    truth = sig[model.validation_indices].copy()
    scores = []
    for target in ("C1", "C2", "C3"):
        rest = truth[truth.obs["cell_type"] != target].copy()
        pred = model.predict(rest, target)
        there = part(truth, target).obs["perturbation"].astype(str)
        scores.append(tv.metrics.signature_scores(truth, pred[pred.obs["perturbation"].isin(there)].copy()))
    scores = pd.concat(scores).query("metric == 'pearson'")
    assert len(scores) > 20
    best = numbers(model, "pearson_validation", "decoders").max()
    np.testing.assert_allclose(scores["value"].mean(), best, rtol=1e-5)


# ---- several trainings


def test_the_best_of_several_trainings(sig, monkeypatch):
    model, recorder, kept = build(sig), Recorder(), []
    values = iter([0.2, 0.7, 0.5])

    def score(module, loader):
        kept.append(copy_state(module))
        return next(values)

    monkeypatch.setattr("transverse.deepcellstate._model.mean_pearson", score)
    model.train(max_epochs=1, n_restarts=3, lr=1e-2, callbacks=[recorder], **QUIET)
    assert len(kept) == 3 and same(weights_of(model.module), kept[1])
    starts = recorder.start[::3]
    assert not same(starts[0], starts[1]) and not same(starts[1], starts[2])
    assert len({float(state["scale"]) for state in starts}) == 1
    assert list(column(model, "restart")) == [0] * 3 + [1] * 3 + [2] * 3
    assert list(column(model, "stage")) == list(NAMES) * 3
    assert not model.module.training


def test_several_trainings_are_told_apart_by_the_correlation_in_validation(sig, caplog):
    model = build(sig)
    with caplog.at_level(logging.INFO, logger="transverse"):
        model.train(max_epochs=2, n_restarts=3, lr=1e-2, train_size=0.7, **QUIET)
    said = [m for m in caplog.messages if m.startswith("Training ")]
    values = [float(m.rsplit(" ", 1)[1].rstrip(".")) for m in said]
    assert len(set(values)) == 3 and "3 of 3: mean correlation in validation" in said[2]
    found = mean_pearson(model.module, model.trainer.datamodule.val_dataloader())
    assert found == pytest.approx(max(values), abs=1e-4)
    one = train(sig, lr=1e-2, train_size=0.7)
    assert mean_pearson(one.module, one.trainer.datamodule.val_dataloader()) == pytest.approx(values[0], abs=1e-4)


def test_a_trained_model_starts_again_from_its_weights(sig):
    model, recorder = train(sig, epochs=1), Recorder()
    before = weights_of(model.module)
    model.train(max_epochs=1, n_restarts=2, callbacks=[recorder], **QUIET)
    assert same(recorder.start[0], before) and same(recorder.start[2], before)


# ---- planted truth


@pytest.mark.slow
def test_it_learns_what_cell_types_do_with_a_drug():
    adata = tv.datasets.simulate_signatures(n_drugs=300, n_cell_types=2, n_genes=50, n_mechanisms=15, n_latent=4)
    drugs = adata.obs["perturbation"].cat.categories
    held = drugs[::6]
    is_held = adata.obs["perturbation"].isin(held).to_numpy()
    train_data, truth = adata[~is_held].copy(), adata[is_held].copy()
    model = build(train_data, n_hidden=(128, 64), n_latent=32, preset=0)
    model.train(max_epochs={"autoencoder": 15, "decoders": 15, "frozen": 5}, lr=2e-3, batch_size=64, **QUIET)
    sources = part(truth, "C1")
    scores = {}
    for name, method in {"model": model, "copy": tv.baselines.CopySource().fit(train_data)}.items():
        found = tv.metrics.signature_scores(part(truth, "C2"), method.predict(sources, target="C2"))
        scores[name] = found.query("metric == 'pearson'")["value"].mean()
    assert scores["model"] > scores["copy"] + 0.1, scores


# ---- several processes

RANK = """
import sys
import numpy as np
import scvi
import torch
import transverse as tv
from transverse.deepcellstate import _pairs

torch.set_num_threads(1)


if __name__ == "__main__":
    folder = sys.argv[1]
    scvi.settings.seed = 3
    adata = tv.datasets.simulate_signatures(n_drugs=30, n_genes=12, n_mechanisms=5)
    tv.DeepCellState.setup_anndata(adata)
    model = tv.DeepCellState(adata, n_hidden=(8,), n_latent=4)
    seen = []

    def read(self, pairs, read=_pairs.PairDataset.__getitem__):
        seen.append(np.array(pairs))
        return read(self, pairs)

    _pairs.PairDataset.__getitem__ = read
    model.train(
        max_epochs=2, lr=1e-2, batch_size=5, train_size=0.8, n_restarts=2, accelerator="cpu", devices=2,
        enable_progress_bar=False, strategy="ddp_find_unused_parameters_true",
    )
    weights = torch.cat([t.flatten().double() for t in model.module.state_dict().values()]).numpy()
    grid = model._grid()
    np.savez(
        f"{folder}/{model.trainer.global_rank}.npz", weights=weights, pairs=np.concatenate(seen),
        expected=grid.pairs(model.train_indices, "both"), train=model.train_indices,
    )
"""


@pytest.mark.slow
def test_two_processes_train_one_model(in_two_processes):
    one, other = in_two_processes(RANK)
    for key in ("train", "weights", "expected"):
        np.testing.assert_array_equal(one[key], other[key])
    # each reads a part of the training, and both together all of it
    shares = [{tuple(pair) for pair in rank["pairs"]} for rank in (one, other)]
    expected = {tuple(pair) for pair in one["expected"]}
    assert expected <= shares[0] | shares[1]


# ---- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": "third"}, "Unknown stages: 'third'. There are: 'autoencoder', 'decoders', 'frozen'"),
        ({"stages": []}, "stages must name at least one of 'autoencoder'"),
        ({"max_epochs": {"first": 3}}, "Unknown stages: 'first'"),
        ({"max_epochs": 0}, "max_epochs of the stage 'autoencoder' must be positive and whole, but is 0"),
        ({"max_epochs": {"frozen": 1.5}}, "max_epochs of the stage 'frozen' must be positive and whole, but is 1.5"),
        ({"patience": {"decoders": -1}}, "patience of the stage 'decoders' must be positive and whole, but is -1"),
        ({"lr": {"frozen": 0.0}}, "lr of the stage 'frozen' must be positive, but is 0.0"),
        ({"lr": np.nan}, "lr of the stage 'autoencoder' must be positive, but is nan"),
        ({"n_restarts": 0}, "n_restarts=0 must be a whole number of at least 1"),
        ({"n_restarts": 1.5}, "n_restarts=1.5 must be a whole number"),
        ({"batch_size": 0}, "batch_size=0 must be a whole number of pairs, at least 1"),
        ({"batch_size": 2.5}, "batch_size=2.5 must be a whole number"),
        ({"train_size": 0}, "train_size=0 must be above 0 and at most 1"),
        ({"train_size": 1.5}, "train_size=1.5 must be above 0"),
        ({"train_size": 0.8, "validation_size": 0.5}, "validation_size=0.5 must be between 0 and what train_size=0.8"),
        ({"train_size": 1.0, "n_restarts": 2}, "n_restarts needs perturbations for validation"),
    ],
    ids=str,
)
def test_train_refuses(sig, options, message):
    model = build(sig)
    before = weights_of(model.module)
    with pytest.raises(ValueError, match=message):
        model.train(**{"max_epochs": 1} | options, **QUIET)
    assert not model.is_trained and model.trained_decoders_ == [] and same(weights_of(model.module), before)


def test_train_refuses_rows_without_pairs(sig):
    names, cell_types = (sig.obs[key].astype(str) for key in ("perturbation", "cell_type"))
    drugs = [name for name in names.unique() if (names == name).sum() == 3]
    everything = np.arange(sig.n_obs)
    a, b = (np.flatnonzero(names == name) for name in drugs[:2])
    one_type = np.flatnonzero(cell_types == "C1")
    for rows, message in (
        (
            [np.setdiff1d(everything, a), a[:1]],
            "None of the 1 signatures for validation has its perturbation in another",
        ),
        ([one_type, a[1:]], "No perturbation of the training was measured in two cell types"),
        ([np.union1d(a, b), a[:1]], "both in training and in validation: 'D"),
    ):
        rest = np.setdiff1d(everything, np.concatenate(rows))
        with pytest.raises(ValueError, match=message):
            build(sig).train(max_epochs=1, datasplitter_kwargs={"external_indexing": [*rows, rest]}, **QUIET)


def test_train_refuses_signatures_of_nothing(sig):
    adata = sig.copy()
    adata.X[:] = 0
    with pytest.raises(ValueError, match="All training signatures are 0"):
        train(adata, epochs=1)
