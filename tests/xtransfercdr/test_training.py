"""Training: what goes in, what is logged, which weights come out, and what is refused."""

import inspect
import logging
import warnings
from collections import Counter

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import scvi
import torch
from lightning.pytorch.callbacks import Callback

import transverse as tv
from transverse import _training
from transverse._training import KeepBest
from transverse.xtransfercdr import XTransferCDRTrainingPlan, default_epochs
from transverse.xtransfercdr._model import REFERENCE
from transverse.xtransfercdr._pairs import KIND, LEFT, RIGHT, draw_pairs
from transverse.xtransfercdr._training_plan import moving_average

QUIET = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False}
TERMS = ("reconstruction", "cross", "basal", "similarity", "orthogonality", "combination")
WATCHED = ("cross_r2", "basal_norm", "effect_norm")
SIZES = {
    "n_contexts": 2,
    "n_perturbations": 3,
    "n_doubles": 1,
    "n_genes": 24,
    "n_cells_per_condition": 6,
    "n_control_cells_per_context": 8,
}


@pytest.fixture(scope="module")
def responses():
    """Two contexts with the same four perturbations, one of them a double: 64 cells."""
    return tv.datasets.simulate_responses(**SIZES)


def build(adata, seed=0, setup=None, **kwargs):
    adata = adata.copy()
    scvi.settings.seed = seed
    tv.XTransferCDR.setup_anndata(adata, **(setup or {}))
    return tv.XTransferCDR(adata, **{"n_hidden": (12,), "n_latent": 6, **kwargs})


def weights_of(model):
    return {name: tensor.detach().clone() for name, tensor in model.module.state_dict().items()}


def assert_same_weights(one, other, **tolerance):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], msg=lambda m, n=name: f"{n}: {m}", **tolerance)


def differ(one, other):
    return any(not torch.equal(one[name], other[name]) for name in one)


def validation_loss(model):
    """Loss of a trained model over the validation pairs, each counting the same."""
    batches = list(model.trainer.datamodule.val_dataloader())
    model.module.eval()
    with torch.no_grad():
        losses = [model.module(batch)[-1].loss.item() for batch in batches]
    return np.average(losses, weights=[len(batch["pair_kind"]) for batch in batches])


class Recorder(Callback):
    """Weights after every step, and learning rates and modes by epoch."""

    def __init__(self):
        self.weights, self.lr, self.training = [], [], []

    def on_train_epoch_start(self, trainer, plan):
        self.lr.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer, plan, *args):
        self.training.append(plan.module.training)
        self.weights.append({name: t.detach().clone() for name, t in plan.module.state_dict().items()})


@pytest.fixture
def drawn(monkeypatch):
    """All tables of pairs that are drawn, with their epochs."""
    tables = []

    def spy(design, epoch, *args, **kwargs):
        pairs = draw_pairs(design, epoch, *args, **kwargs)
        tables.append((epoch, pairs))
        return pairs

    monkeypatch.setattr("transverse.xtransfercdr._pairs.draw_pairs", spy)
    return tables


# ---- it runs, and learns


@pytest.mark.parametrize(
    ("pairing", "resolved", "combination"),
    [
        ("auto", "mixed", True),
        ("mixed", "mixed", True),
        ("perturbation", "perturbation", True),
        ("context", "context", False),
    ],
)
def test_pairings_and_history(responses, pairing, resolved, combination, caplog):
    model = build(responses)
    with caplog.at_level(logging.INFO, logger="transverse"):
        model.train(2, pairing=pairing, train_size=0.8, check_val_every_n_epoch=1, **QUIET)
    terms = (*(t for t in TERMS if combination or t != "combination"), *WATCHED)
    expected = {f"{term}_{mode}" for term in terms for mode in ("train", "validation")}
    # some validation sets have no cell with both perturbations
    optional = {"combination_validation"}
    assert set(model.history) - optional == (expected | {"train_loss", "validation_loss"}) - optional
    for key, values in model.history.items():
        assert len(values) == 2 and (key in optional or np.isfinite(values.to_numpy(dtype=float)).all()), key
    assert model.is_trained and not model.module.training
    assert len(model.train_indices) == 52 and len(model.validation_indices) == 12
    assert model.pairing_["pairing"] == resolved
    assert model.pairing_["n_perturbation_pairs"] == 12 and model.pairing_["n_context_pairs"] == 4
    assert "Pairs: {" in caplog.text and f"'pairing': '{resolved}'" in caplog.text


def test_logged_loss_is_the_weighted_sum_of_logged_terms(responses):
    weights = dict(zip(TERMS, (1.0, 2.0, 3.0, 5.0, 0.7, 11.0), strict=True))
    model = build(responses, **{f"{term}_weight": weight for term, weight in weights.items()})
    model.train(3, batch_size=1000, train_size=0.6, check_val_every_n_epoch=1, **QUIET)
    for mode in ("train", "validation"):
        loss = model.history[f"{mode}_loss"].iloc[:, 0].astype(float)
        # an epoch's pairs may be without a double
        terms = {t: model.history[f"{t}_{mode}"].iloc[:, 0].reindex(loss.index).astype(float).fillna(0) for t in TERMS}
        np.testing.assert_allclose(loss, sum(weights[t] * terms[t] for t in TERMS), rtol=1e-5)


def test_mini_batches_count_by_their_pairs(responses):
    """What is logged of an epoch is the mean over its pairs, whatever the mini-batches."""
    model = build(responses)
    model.train(2, batch_size=5, train_size=0.8, check_val_every_n_epoch=1, pairing="context", **QUIET)
    np.testing.assert_allclose(float(model.history["validation_loss"].iloc[-1, 0]), validation_loss(model), rtol=1e-5)
    assert len({len(batch["pair_kind"]) for batch in model.trainer.datamodule.val_dataloader()}) == 2


def test_it_learns(responses):
    model = build(responses)
    model.train(15, batch_size=16, plan_kwargs={"lr": 0.01}, **QUIET)
    for term in ("train_loss", "reconstruction_train", "cross_train", "basal_train"):
        values = model.history[term].to_numpy(dtype=float).ravel()
        assert values[-3:].mean() < 0.6 * values[:3].mean(), term
    assert float(model.history["cross_r2_train"].iloc[-1, 0]) > float(model.history["cross_r2_train"].iloc[0, 0])


def test_same_seed_same_model_other_seed_other_model(responses):
    found = []
    for seed in (0, 0, 1):
        model = build(responses, seed)
        model.train(2, keep="best", **QUIET)
        found.append((weights_of(model), model.history["train_loss"].to_numpy(dtype=float)))
    assert_same_weights(found[0][0], found[1][0], rtol=0, atol=0)
    np.testing.assert_array_equal(found[0][1], found[1][1])
    assert differ(found[0][0], found[2][0])


@pytest.mark.parametrize(
    "options",
    [
        {"architecture": "plain"},
        {"n_hidden": (12, 10), "n_residual_blocks": 2},
        {"n_hidden": [12, 10, 8], "dropout_rate": 0.0},
        {"output_activation": "softplus"},
        {"output_activation": "linear"},
        {"symmetric_similarity": True, "input_noise": 0.0, "latent_noise": 0.0},
    ],
    ids=str,
)
def test_options_of_the_network(responses, options):
    model = build(responses, **options)
    model.train(1, **QUIET)
    assert np.isfinite(float(model.history["train_loss"].iloc[0, 0]))


@pytest.mark.parametrize("term", TERMS)
def test_ablations(responses, term):
    model = build(responses, **{f"{term}_weight": 0.0})
    model.train(1, batch_size=1000, **QUIET)
    history = {key: float(values.iloc[0, 0]) for key, values in model.history.items()}
    # still watched
    assert history[f"{term}_train"] > 0
    weights = dict.fromkeys(TERMS, 1.0) | {"orthogonality": 0.5, term: 0.0}
    assert history["train_loss"] == pytest.approx(sum(weights[t] * history[f"{t}_train"] for t in TERMS), rel=1e-5)


def test_small_data_and_mini_batches(responses):
    """A pair is two cells, so that batch normalisation works with a single one."""
    model = build(responses[responses.obs["perturbation"].isin(["P01", "control"])][:6])
    model.train(2, batch_size=1, **QUIET)
    assert len(model.history["train_loss"]) == 2


def test_one_context(responses):
    adata = responses[responses.obs["cell_type"] == "C1"].copy()
    del adata.obs["cell_type"]
    model = build(adata, setup={"context_key": None})
    model.train(1, **QUIET)
    assert model.pairing_["pairing"] == "perturbation"


# ---- which pairs


def test_new_pairs_in_every_epoch(responses, drawn):
    model = build(responses)
    model.train(3, train_size=0.8, check_val_every_n_epoch=1, **QUIET)
    train = [(epoch, pairs) for epoch, pairs in drawn if np.isin(pairs[:, LEFT], model.train_indices).all()]
    validation = [(epoch, pairs) for epoch, pairs in drawn if np.isin(pairs[:, LEFT], model.validation_indices).all()]
    assert len(train) == len(validation) == 3
    assert [epoch for epoch, _ in train] == [0, 1, 2]
    assert not np.array_equal(train[0][1], train[1][1])
    # validated on the same ones
    assert [epoch for epoch, _ in validation] == [0, 0, 0]
    np.testing.assert_array_equal(validation[0][1], validation[2][1])


def test_without_resampling(responses, drawn):
    build(responses).train(3, resample=False, **QUIET)
    assert len(drawn) == 3
    for _, pairs in drawn[1:]:
        np.testing.assert_array_equal(pairs, drawn[0][1])


def test_pairs_are_of_the_seed(responses, drawn):
    for seed in (0, 0, 1):
        build(responses, seed).train(1, **QUIET)
    tables = [pairs for _, pairs in drawn]
    np.testing.assert_array_equal(tables[0], tables[1])
    assert not np.array_equal(tables[0], tables[2])


def test_options_of_pairs_arrive(responses, drawn):
    names = responses.obs["perturbation"].astype(str).to_numpy()
    build(responses).train(1, control_share=0.0, balance=False, **QUIET)
    pairs = drawn[-1][1]
    assert not (names[pairs[:, [LEFT, RIGHT]]] == "control").any()
    assert len(pairs) == (names != "control").sum()
    build(responses).train(1, control_share=1.0, pairing="perturbation", **QUIET)
    pairs = drawn[-1][1]
    within = pairs[:, KIND] == 0
    assert (names[pairs[within][:, [LEFT, RIGHT]]] == "control").any(axis=1).all()


def test_controls_are_of_the_batch(responses, drawn):
    build(responses, setup={"batch_key": "replicate"}).train(2, **QUIET)
    replicate = responses.obs["replicate"].astype(str).to_numpy()
    context = responses.obs["cell_type"].astype(str).to_numpy()
    for _, pairs in drawn:
        cells, controls = pairs[:, [0, 1]], pairs[:, [3, 4]]
        assert (replicate[cells] == replicate[controls]).all() and (context[cells] == context[controls]).all()


def test_names_need_not_be_canonical(responses, drawn):
    adata = responses.copy()
    names = adata.obs["perturbation"].astype(str).to_numpy(dtype=object)
    double = next(name for name in names if "+" in name)
    rows = np.flatnonzero(names == double)
    names[rows[::2]] = "+".join(reversed(double.split("+")))
    names[names == "P03"] = "control+P03"
    adata.obs["perturbation"] = names
    build(adata).train(2, **QUIET)
    build(responses).train(2, **QUIET)
    for (_, one), (_, other) in zip(drawn[:2], drawn[2:], strict=True):
        np.testing.assert_array_equal(one, other)


def test_cells_outside_are_in_no_pair(responses, drawn):
    held_out = (responses.obs["perturbation"] == "P02") & (responses.obs["cell_type"] == "C2")
    train, rest = np.flatnonzero(~held_out)[::-1], np.flatnonzero(held_out)
    # a control and another perturbation to be paired with
    others = np.flatnonzero((responses.obs["perturbation"] == "control") & (responses.obs["cell_type"] == "C2"))[:3]
    validation, train = np.concatenate([rest, others]), np.setdiff1d(train, others)
    test = train[-5:]
    train = train[:-5]
    model = build(responses)
    splits = [train, validation, test]
    model.train(2, check_val_every_n_epoch=1, datasplitter_kwargs={"external_indexing": splits}, **QUIET)
    assert len(drawn) == 4
    counts = Counter()
    for _, pairs in drawn:
        cells = set(pairs[:, :KIND].ravel()) - {-1}
        where = [name for name, split in (("train", train), ("validation", validation)) if cells <= set(split)]
        assert len(where) == 1
        counts.update(where)
    assert counts == {"train": 2, "validation": 2}
    np.testing.assert_array_equal(np.sort(model.train_indices), np.sort(train))
    assert model.training_cells_ == responses.obs_names[np.sort(train)].tolist()


def test_validation_cells_do_not_change_the_weights(responses):
    """Neither their profiles nor their being there."""
    validation = np.arange(0, responses.n_obs, 6)
    splits = [np.setdiff1d(np.arange(responses.n_obs), validation), validation, np.array([], dtype=int)]
    found = []
    for change in (False, True):
        adata = responses.copy()
        if change:
            x = adata.X.toarray()
            x[validation] = x[validation][::-1] + 1
            adata.X = x
        model = build(adata)
        kwargs = {"datasplitter_kwargs": {"external_indexing": list(splits)}}
        model.train(2, check_val_every_n_epoch=1, **kwargs, **QUIET)
        found.append(weights_of(model))
    assert_same_weights(*found, rtol=0, atol=0)


# ---- which weights are kept


@pytest.mark.parametrize("averaging", [None, 0.9])
def test_best_weights_are_put_back(responses, averaging):

    class Spoil(Callback):
        """So that the last epoch is not the best."""

        def on_train_epoch_start(self, trainer, plan):
            if trainer.current_epoch == 5:
                with torch.no_grad():
                    for parameter in plan.module.parameters():
                        parameter *= 3

    options = {"train_size": 0.8, "weight_averaging": averaging, "callbacks": [Spoil()]}
    model = build(responses)
    model.train(7, keep="best", **options, **QUIET)
    losses = model.history["validation_loss"].to_numpy(dtype=float).ravel()
    assert len(losses) == 7 and 0 < losses.argmin() < 5
    assert validation_loss(model) == pytest.approx(losses.min(), rel=1e-5)
    keeper = next(c for c in model.trainer.callbacks if isinstance(c, KeepBest))
    assert keeper.epoch == losses.argmin() and keeper.best == pytest.approx(losses.min())
    last = build(responses)
    last.train(7, keep="last", check_val_every_n_epoch=1, **options, **QUIET)
    np.testing.assert_allclose(last.history["validation_loss"].to_numpy(dtype=float).ravel(), losses, rtol=1e-6)
    assert validation_loss(last) == pytest.approx(losses[-1], rel=1e-5)
    assert differ(weights_of(model), weights_of(last))


@pytest.mark.parametrize("decay", [0.99, 0.3])
def test_weights_are_the_moving_average_of_those_of_all_steps(responses, decay):
    model, recorder = build(responses), Recorder()
    model.train(3, weight_averaging=decay, batch_size=16, callbacks=[recorder], **QUIET)
    assert len(recorder.weights) == 12
    expected = {name: tensor.clone() for name, tensor in recorder.weights[0].items()}
    for n, weights in enumerate(recorder.weights[1:], start=1):
        share = min(decay, (1 + n) / (10 + n))
        for name, value in weights.items():
            if value.is_floating_point():  # running statistics of batch normalisation as well
                expected[name] = share * expected[name] + (1 - share) * value
    expected = {name: value for name, value in expected.items() if value.is_floating_point()}
    assert any("running_mean" in name for name in expected)
    found = weights_of(model)
    assert_same_weights({name: found[name] for name in expected}, expected, rtol=1e-5, atol=1e-6)
    assert differ(expected, recorder.weights[-1])


def test_without_averaging_the_last_weights_are_kept(responses):
    model, recorder = build(responses), Recorder()
    model.train(2, weight_averaging=None, callbacks=[recorder], **QUIET)
    assert_same_weights(weights_of(model), recorder.weights[-1], rtol=0, atol=0)


def test_averaging_changes_nothing_of_the_steps(responses):
    """Training goes on from the current weights, also after a validation."""
    options = {"train_size": 0.8, "check_val_every_n_epoch": 1, **QUIET}
    recorders = [Recorder(), Recorder()]
    for recorder, averaging in zip(recorders, (None, 0.9), strict=True):
        build(responses).train(3, weight_averaging=averaging, callbacks=[recorder], **options)
    for one, other in zip(*(recorder.weights for recorder in recorders), strict=True):
        assert_same_weights(one, other, rtol=0, atol=0)


def test_moving_average():
    update = moving_average(0.9)._kwargs["multi_avg_fn"]

    def average(averaged, current, n):
        averaged = [averaged.clone(), 2 * averaged]
        update(averaged, [current, 2 * current], n)
        torch.testing.assert_close(averaged[1], 2 * averaged[0])
        return averaged[0]

    for n in (1, 5, torch.tensor(80), torch.tensor(1000)):
        torch.testing.assert_close(
            average(torch.tensor([2.0, -1.0]), torch.tensor([2.0, -1.0]), n), torch.tensor([2.0, -1.0])
        )
    # short of many steps, it looks back over about a tenth of them
    for n, share in [(1, 2 / 11), (8, 0.5), (torch.tensor(20), 0.7), (torch.tensor(80), 0.9), (10**6, 0.9)]:
        torch.testing.assert_close(average(torch.tensor(1.0), torch.tensor(0.0), n), torch.tensor(share))
    # counts are not averaged
    assert average(torch.tensor(3), torch.tensor(7), 5) == 7


def test_best_of_averaged_weights_by_hand(responses):
    """The copy that is kept is of the weights that were validated."""
    kept = []

    class Spy(KeepBest):
        def on_validation_end(self, trainer, plan):
            kept.append(self._validated)
            super().on_validation_end(trainer, plan)

    model = build(responses)
    model.train(3, train_size=0.8, weight_averaging=0.9, callbacks=[Spy()], check_val_every_n_epoch=1, **QUIET)
    losses = model.history["validation_loss"].to_numpy(dtype=float).ravel()
    assert len(kept) == 3
    for weights, loss in zip(kept, losses, strict=True):
        model.module.load_state_dict(weights)
        assert validation_loss(model) == pytest.approx(loss, rel=1e-5)


def test_early_stopping(responses):
    model = build(responses)
    kwargs = {"early_stopping_patience": 2, "early_stopping_min_delta": 1e9}
    model.train(20, early_stopping=True, **kwargs, **QUIET)
    assert 2 <= len(model.history["train_loss"]) <= 4
    # a tenth of the cells is kept for it
    assert len(model.train_indices) == 58 and len(model.validation_indices) == 6


def test_training_goes_on(responses):
    model, recorder = build(responses), Recorder()
    model.train(2, **QUIET)
    first = weights_of(model)
    model.train(3, callbacks=[recorder], **QUIET)
    assert len(model.history["train_loss"]) == 5
    assert list(model.history["train_loss"].index) == list(range(5))
    assert differ(first, weights_of(model))
    # inference had left the module in evaluation mode
    assert recorder.training and all(recorder.training)
    assert not model.module.training


# ---- optimiser


def test_optimiser_is_adam_with_an_l2_penalty(responses):
    model = build(responses)
    model.train(1, **QUIET)
    optimizer = model.trainer.optimizers[0]
    assert type(optimizer) is torch.optim.Adam
    group = optimizer.param_groups[0]
    lr = inspect.signature(XTransferCDRTrainingPlan).parameters["lr"].default
    assert (group["lr"], group["weight_decay"], group["eps"]) == (lr, 5e-4, 1e-8)
    assert sum(p.numel() for p in group["params"]) == sum(p.numel() for p in model.module.parameters())


@pytest.mark.parametrize(
    ("epochs", "plan", "expected"),
    [
        (4, {}, [1] * 4),
        # 8 of 60 epochs are 2 of 15
        (15, {"lr_factor": 0.5}, [0.5 ** (epoch // 2) for epoch in range(15)]),
        (6, {"lr_factor": 0.1, "lr_step_epochs": 4}, [1, 1, 1, 1, 0.1, 0.1]),
        (3, {"lr_factor": 0.5}, [1, 0.5, 0.25]),
    ],
    ids=str,
)
def test_learning_rate_by_epoch(responses, epochs, plan, expected):
    recorder = Recorder()
    build(responses).train(epochs, plan_kwargs={"lr": 0.02, **plan}, callbacks=[recorder], **QUIET)
    np.testing.assert_allclose(recorder.lr, 0.02 * np.array(expected))


def test_reference(responses, drawn):
    """Network and training as the reference implementation has them."""
    model, recorder = build(responses, **REFERENCE["model"]), Recorder()
    encoder = [m.out_features for m in model.module.basal_encoder.modules() if isinstance(m, torch.nn.Linear)]
    assert encoder == [1024, 512, *[512] * 6, 256, 128]
    assert {m.p for m in model.module.modules() if isinstance(m, torch.nn.Dropout)} == {0.2}
    assert model.module.input_noise == model.module.latent_noise == 0.1
    assert list(model.module.weights.values()) == [1, 1, 1, 1, 0.5, 1]
    model.train(**REFERENCE["train"] | {"max_epochs": 2}, callbacks=[recorder], **QUIET)
    # the last weights, and frozen pairs of treated cells
    assert_same_weights(weights_of(model), recorder.weights[-1], rtol=0, atol=0)
    np.testing.assert_array_equal(drawn[0][1], drawn[1][1])
    treated = np.flatnonzero(responses.obs["perturbation"] != "control")
    assert np.isin(drawn[0][1][:, [LEFT, RIGHT]], treated).all()

    class Trainer:
        max_epochs = REFERENCE["train"]["max_epochs"]

    plan = XTransferCDRTrainingPlan(model.module, **REFERENCE["train"]["plan_kwargs"])
    plan._trainer = Trainer()
    config = plan.configure_optimizers()
    schedule = config["lr_scheduler"]["scheduler"]
    assert (Trainer.max_epochs, schedule.step_size, schedule.gamma) == (60, 8, 0.5)
    assert config["optimizer"].param_groups[0]["lr"] == 2e-4


def test_epochs_by_default(responses):
    # 64 pairs are two steps, and 2000 steps are wanted
    assert default_epochs(64, 32) == 1000
    assert default_epochs(65, 32) == 667
    assert default_epochs(100_000, 32) == 10
    assert default_epochs(1, 32) == 2000

    class Stop(Exception):
        pass

    def runner(model, **kwargs):
        raise Stop(kwargs)

    model = build(responses)
    model._train_runner_cls = runner
    for options, epochs, n_train in [
        ({}, 1000, 64),
        ({"batch_size": 64}, 2000, 64),
        ({"max_epochs": 7, "keep": "best"}, 7, 58),
        ({"max_epochs": 7, "early_stopping": True}, 7, 58),
        ({"max_epochs": 7, "early_stopping": True, "train_size": 0.5}, 7, 32),
    ]:
        with pytest.raises(Stop) as caught:
            model.train(**options)
        found = caught.value.args[0]
        assert found["max_epochs"] == epochs and found["data_splitter"].n_train == n_train


# ---- going on from a checkpoint


@pytest.mark.parametrize("averaging", [None, 0.9])
def test_resumed_training_is_the_unbroken_one(responses, tmp_path, averaging, drawn):
    """With no noise and no dropout, whose random numbers no checkpoint has."""
    path = tmp_path / "training.ckpt"

    class Save(Callback):
        def on_train_epoch_end(self, trainer, plan):
            if trainer.current_epoch == 1:
                trainer.save_checkpoint(path)

    network = {"dropout_rate": 0.0, "input_noise": 0.0, "latent_noise": 0.0}
    options = {"weight_averaging": averaging, "batch_size": 16, "plan_kwargs": {"lr_factor": 0.5, "lr_step_epochs": 1}}
    unbroken = build(responses, **network)
    unbroken.train(4, callbacks=[Save()], **options, **QUIET)
    assert [epoch for epoch, _ in drawn] == [0, 1, 2, 3]
    drawn.clear()
    resumed = build(responses, **network)
    resumed.train(4, ckpt_path=str(path), **options, **QUIET)
    # its own pairs for every epoch
    assert [epoch for epoch, _ in drawn] == [2, 3]
    assert_same_weights(weights_of(resumed), weights_of(unbroken), rtol=0, atol=0)


# ---- several processes

RANK = """
import sys
import numpy as np
import scvi
import torch
import transverse as tv
from transverse.xtransfercdr import _pairs

torch.set_num_threads(1)


if __name__ == "__main__":
    folder = sys.argv[1]
    scvi.settings.seed = 3
    adata = tv.datasets.simulate_responses(**SIZES)
    tv.XTransferCDR.setup_anndata(adata)
    model = tv.XTransferCDR(adata, n_hidden=(12,), n_latent=6)
    seen = []

    def read(self, pairs, read=_pairs.PairDataset.__getitem__):
        seen.append(np.array(pairs))
        return read(self, pairs)

    _pairs.PairDataset.__getitem__ = read
    model.train(
        2, batch_size=5, train_size=0.8, keep="best", accelerator="cpu", devices=2, enable_progress_bar=False,
        strategy="ddp_find_unused_parameters_true",
    )
    weights = torch.cat([t.flatten().double() for t in model.module.state_dict().values()]).numpy()
    design = model._design(np.sort(model.train_indices))
    expected = [_pairs.draw_pairs(design, epoch, 3, pairing="mixed", n_multiple=2) for epoch in range(2)]
    np.savez(
        f"{folder}/{model.trainer.global_rank}.npz", weights=weights, pairs=np.concatenate(seen), expected=expected,
        sizes=[len(p) for p in seen], train=model.train_indices, validation=model.validation_indices,
    )
"""


@pytest.mark.slow
def test_two_processes_share_the_pairs(in_two_processes):
    one, other = in_two_processes(RANK.replace("SIZES", repr(SIZES)))
    for key in ("train", "validation", "weights", "sizes"):
        np.testing.assert_array_equal(one[key], other[key])
    pairs = []
    for rank in (one, other):
        training = np.isin(rank["pairs"][:, LEFT], rank["train"])
        assert np.isin(rank["pairs"][~training][:, LEFT], rank["validation"]).all() and not training.all()
        pairs.append(rank["pairs"][training].reshape(2, -1, 6))
    for epoch, expected in enumerate(one["expected"]):
        first, second = (Counter(map(tuple, share[epoch])) for share in pairs)
        assert first + second == Counter(map(tuple, expected))
        assert not first & second


# ---- what it says


def without(adata, *conditions):
    """Data without some conditions."""
    names = adata.obs["perturbation"].astype(str) + " in " + adata.obs["cell_type"].astype(str)
    return adata[~names.isin(conditions)].copy()


def said(model, **options):
    """Warnings of ours."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.train(1, **options, **QUIET)
    return [str(w.message) for w in caught if str(w.message).startswith(("These contexts", *map(str, range(10))))]


def test_nothing_is_said_of_complete_data(responses):
    assert said(build(responses)) == []
    # controls alone need no partner
    assert said(build(responses), control_share=0.0) == []


def test_conditions_without_partners_are_named(responses):
    adata = without(responses, "P03 in C2")
    assert said(build(adata)) == []
    assert said(build(adata), pairing="context") == [
        "1 conditions have no partner with pairing='context' and control_share=0.5 and are not trained on: 'P03 in C1'."
    ]
    others = [
        f"{name} in C2" for name in responses.obs["perturbation"].cat.categories if name not in ("control", "P01")
    ]
    adata = without(responses, *others)
    assert said(build(adata), pairing="perturbation") == []
    messages = said(build(adata), pairing="perturbation", control_share=0.0)
    assert len(messages) == 1 and "control_share=0.0 and are not trained on: 'P01 in C2'" in messages[0]


def test_contexts_without_controls_are_named(responses):
    model = build(without(responses, "control in C2"))
    with pytest.warns(UserWarning, match="These contexts have treated cells but no control cells: 'C2'"):
        model.train(1, **QUIET)
    assert np.isfinite(float(model.history["basal_train"].iloc[0, 0]))


def test_mini_batches_of_equal_size_are_not_warned_of(responses):
    """scvi-tools warns of a last mini-batch of one cell, which there never is."""
    model = build(responses[:63])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Last batch will have a small size")
        model.train(1, batch_size=31, **QUIET)


# ---- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": "first"}, "keep='first' must be 'last' or 'best'"),
        ({"control_share": -0.1}, "control_share=-0.1 must be between 0 and 1"),
        ({"control_share": 1.5}, "control_share=1.5 must be between 0 and 1"),
        ({"control_share": np.nan}, "control_share=nan must be between 0 and 1"),
        ({"weight_averaging": 1.0}, "weight_averaging=1.0 must be above 0 and below 1, or None"),
        ({"weight_averaging": 0}, "weight_averaging=0 must be above 0"),
        ({"batch_size": 0}, "batch_size=0 must be a whole number of pairs"),
        ({"batch_size": 2.5}, "batch_size=2.5 must be a whole number of pairs"),
        ({"pairing": "cell"}, "pairing='cell' must be 'auto', 'perturbation', 'context' or 'mixed'"),
        ({"train_size": 0.8, "validation_size": 0.5}, "train_size"),
    ],
    ids=str,
)
def test_train_refuses(responses, options, message):
    model = build(responses)
    before = weights_of(model)
    with pytest.raises(ValueError, match=message):
        model.train(1, **options, **QUIET)
    assert not model.is_trained and model.pairing_ is None
    assert not differ(before, weights_of(model))


def test_train_refuses_data_without_pairs(responses):
    p01 = responses.obs["perturbation"].isin(["P01", "control"])
    c1 = responses.obs["cell_type"] == "C1"
    with pytest.raises(ValueError, match="There is nothing to transfer.*'P01 in C1'"):
        build(responses[p01 & c1]).train(1, **QUIET)
    with pytest.raises(ValueError, match="pairing='context' needs a perturbation that was measured in two contexts"):
        build(responses[c1]).train(1, pairing="context", **QUIET)
    with pytest.raises(ValueError, match="pairing='perturbation' needs two perturbations in one context"):
        build(responses[p01]).train(1, pairing="perturbation", control_share=0, **QUIET)


@pytest.mark.parametrize("options", [{"keep": "best"}, {"early_stopping": True}], ids=str)
@pytest.mark.parametrize("split", ["train_size", "external_indexing"])
def test_train_refuses_to_validate_on_nothing(responses, options, split):
    everything, none = np.arange(responses.n_obs), np.array([], dtype=int)
    options |= {
        "train_size": {"train_size": 1.0},
        "external_indexing": {"datasplitter_kwargs": {"external_indexing": [everything, none, none]}},
    }[split]
    with pytest.raises(ValueError, match="validat"):
        build(responses).train(1, **options, **QUIET)


def test_train_refuses_training_cells_without_pairs(responses):
    """The whole data have pairs, the cells to train on have none."""
    one = (responses.obs["perturbation"] == "P01") & (responses.obs["cell_type"] == "C1")
    train, validation = np.flatnonzero(one), np.flatnonzero(~one)
    splits = [train, validation, np.array([], dtype=int)]
    model = build(responses)
    with pytest.raises(ValueError, match="nothing to transfer"):
        model.train(1, datasplitter_kwargs={"external_indexing": splits}, **QUIET)


def test_train_refuses_validation_cells_without_pairs(responses):
    """``keep="best"`` would silently keep the last weights."""
    one = (responses.obs["perturbation"] == "P01") & (responses.obs["cell_type"] == "C1")
    splits = [np.flatnonzero(~one), np.flatnonzero(one), np.array([], dtype=int)]
    model = build(responses)
    with pytest.raises(ValueError, match="validat"):
        model.train(1, keep="best", datasplitter_kwargs={"external_indexing": splits}, **QUIET)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_hidden": ()}, r"n_hidden must be positive, but got \[\]"),
        ({"n_hidden": (8, 0)}, r"n_hidden must be positive, but got \[8, 0\]"),
        ({"n_latent": 0}, "n_latent must be positive, but got 0"),
        ({"n_residual_blocks": -1}, "n_residual_blocks=-1 must not be negative"),
        ({"dropout_rate": 1.0}, "dropout_rate=1.0 must be at least 0 and below 1"),
        ({"dropout_rate": -0.1}, "dropout_rate=-0.1 must be at least 0"),
        ({"architecture": "mlp"}, "architecture='mlp' must be one of 'residual', 'plain'"),
        ({"output_activation": "tanh"}, "output_activation='tanh' must be one of 'relu', 'softplus', 'linear'"),
    ],
    ids=str,
)
def test_constructor_refuses(responses, options, message):
    with pytest.raises(ValueError, match=message):
        build(responses, **options)


def test_constructor_refuses_weights_that_leave_no_loss(responses):
    with pytest.raises(ValueError, match="weight"):
        build(responses, **{f"{term}_weight": 0.0 for term in TERMS})


@pytest.mark.parametrize("kind", [sp.csr_matrix, np.asarray])
def test_negative_expression_needs_a_linear_output(responses, kind):
    adata = responses.copy()
    x = adata.X.toarray()
    adata.X = kind(x - x.mean(axis=0))
    for activation in ("relu", "softplus"):
        with pytest.raises(ValueError, match=f"negative values, which a decoder with output_activation='{activation}'"):
            build(adata, output_activation=activation)
    build(adata, output_activation="linear").train(1, **QUIET)


@pytest.mark.parametrize(
    ("setup", "error", "message"),
    [
        ({"perturbation_key": "drug"}, KeyError, "perturbation_key='drug' is not in adata.obs.*perturbation"),
        ({"context_key": "line"}, KeyError, "context_key='line' is not in adata.obs"),
        ({"batch_key": "plate"}, KeyError, "batch_key='plate' is not in adata.obs"),
        ({"layer": "log"}, KeyError, "layer='log' is not in adata.layers"),
        ({"layer": "counts"}, ValueError, "must hold log-normalised values, but has whole numbers up to"),
        ({"control": "DMSO"}, ValueError, "No cell has control='DMSO' in adata.obs.*Values: .*'control'"),
        ({"perturbation_key": "same"}, ValueError, "All cells are 'control' in adata.obs.*there is no perturbation"),
        ({"perturbation_key": "gaps"}, ValueError, r"\(perturbation_key\) is missing for 1 cells: 'cell_000004'"),
        ({"context_key": "gaps"}, ValueError, r"\(context_key\) is missing for 1 cells"),
        ({"batch_key": "gaps"}, ValueError, r"\(batch_key\) is missing for 1 cells"),
    ],
    ids=str,
)
def test_setup_refuses_arguments(responses, setup, error, message):
    adata = responses.copy()
    gaps = adata.obs["perturbation"].astype(object).to_numpy().copy()
    gaps[3] = None
    adata.obs["gaps"], adata.obs["same"] = gaps, "control"
    obs, uns = adata.obs.copy(), list(adata.uns)
    with pytest.raises(error, match=message):
        tv.XTransferCDR.setup_anndata(adata, **setup)
    pd.testing.assert_frame_equal(adata.obs, obs)
    assert list(adata.uns) == uns


def test_setup_refuses_data(responses):
    with pytest.raises(TypeError, match="must be an AnnData, but got DataFrame"):
        tv.XTransferCDR.setup_anndata(responses.obs)
    with pytest.raises(ValueError, match="adata is empty"):
        tv.XTransferCDR.setup_anndata(responses[:0].copy())
    for value in (np.nan, np.inf):
        adata = responses.copy()
        adata.X.data[0] = value
        with pytest.raises(ValueError, match="missing or infinite values"):
            tv.XTransferCDR.setup_anndata(adata)
    for axis in ("var_names", "obs_names"):
        adata = responses.copy()
        setattr(adata, axis, ["same", "same", *getattr(adata, axis)[2:]])
        with pytest.raises(ValueError, match=f"adata.{axis} must be unique, but these repeat: 'same'"):
            tv.XTransferCDR.setup_anndata(adata)


# ---- data of other kinds, and what is left of them


def test_layers_types_and_files_give_the_same(responses, tmp_path):
    expected = build(responses)
    expected.train(2, **QUIET)
    expected = weights_of(expected)
    dense, layer = responses.copy(), responses.copy()
    dense.X = dense.X.toarray().astype(np.float64)
    layer.layers["log"] = layer.X.copy()
    layer.X = layer.X * 0
    for adata, setup in ((dense, {}), (layer, {"layer": "log"})):
        model = build(adata, setup=setup)
        model.train(2, **QUIET)
        assert_same_weights(weights_of(model), expected, rtol=0, atol=0)
    responses.write_h5ad(tmp_path / "responses.h5ad")
    backed = ad.read_h5ad(tmp_path / "responses.h5ad", backed="r")
    scvi.settings.seed = 0
    tv.XTransferCDR.setup_anndata(backed)
    model = tv.XTransferCDR(backed, n_hidden=(12,), n_latent=6)
    model.train(2, **QUIET)
    assert_same_weights(weights_of(model), expected, rtol=0, atol=0)
    assert backed.isbacked


def test_nothing_of_the_users_is_changed(responses):
    adata = responses.copy()
    before = adata.copy()
    tv.XTransferCDR.setup_anndata(adata, batch_key="replicate")
    model = tv.XTransferCDR(adata, n_hidden=(12,), n_latent=6)
    n = adata.n_obs
    splits = [np.arange(n - 20), np.arange(n - 20, n), np.array([], dtype=int)]
    arguments = {
        "callbacks": [Recorder()],
        "plan_kwargs": {"lr": 1e-3},
        "datasplitter_kwargs": {"external_indexing": splits},
    }
    sizes = {key: len(value) for key, value in arguments.items()}
    model.train(1, keep="best", **arguments, **QUIET)
    assert {key: len(value) for key, value in arguments.items()} == sizes
    np.testing.assert_array_equal(splits[0], np.arange(n - 20))
    assert (adata.X != before.X).nnz == 0
    # scvi-tools' own bookkeeping is all that was added
    added = [column for column in adata.obs if column not in before.obs]
    assert added and all(column.startswith("_scvi_") for column in added)
    pd.testing.assert_frame_equal(adata.obs[list(before.obs)], before.obs)
    assert all(key.startswith("_scvi_") for key in adata.uns if key not in before.uns)
    for part in ("obsm", "varm", "layers", "obsp", "var"):
        assert list(getattr(adata, part)) == list(getattr(before, part)), part


def test_weights_of_a_unit_that_is_never_active_become_zero(responses, monkeypatch):
    model = build(responses)
    norm, output = model.module.decoder[0][1], model.module.decoder[1]
    assert isinstance(norm, torch.nn.BatchNorm1d)
    with torch.no_grad():
        norm.weight[3], norm.bias[3] = 0.0, -1.0  # below zero, whatever comes
        output.weight[:, 3] = 1e-35
        output.weight[:, 4] = 1e-20
    monkeypatch.setattr(_training, "CLEARED_EVERY", 1)
    model.train(2, weight_averaging=None, **QUIET)
    optimizer = model.trainer.optimizers[0]
    for tensor in (output.weight, optimizer.state[output.weight]["exp_avg"]):
        assert (tensor[:, 3] == 0).all()
        assert (tensor[:, 4] != 0).any()
