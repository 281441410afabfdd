"""Trainings that are interrupted, and go on; of all four models."""

import multiprocessing
import os
import signal
import threading

import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from transverse._training_run import pack, unpack

from .cases import CASES

#: What makes the trainings keep as much as there is to be kept between epochs.
OPTIONS = {
    "ScSpecies": {"train_size": 0.8, "check_val_every_n_epoch": 1, "batch_size": 16},
    "XTransferCDR": {"train_size": 0.8, "keep": "best", "plan_kwargs": {"lr_factor": 0.5}, "batch_size": 16},
    "DeepCellState": {"patience": 9, "batch_size": 16},
    "UGE": {"train_size": 0.7, "early_stopping": True, "batch_size": 8},
}
N_EPOCHS = 3


@pytest.fixture(scope="module", params=list(CASES))
def case(request):
    return CASES[request.param]


@pytest.fixture(autouse=True)
def python_handles_ctrl_c():
    """A shell that starts the tests in the background has Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class At(Callback):
    """Does something at a mini-batch, counted over all epochs and stages."""

    def __init__(self, step, action, when="on_train_batch_end"):
        self.step, self.action, self.n = step, action, 0
        setattr(self, when, self._count)

    def _count(self, *args):
        if self.n == self.step or self.step is None:
            self.action()
        self.n += 1


class Lost(Exception):
    """The machine fails."""


def lose():
    raise Lost


@pytest.fixture(scope="module")
def counter(case):
    return At(-1, lose)


@pytest.fixture(scope="module")
def unbroken(case, counter):
    return case.trained(epochs=N_EPOCHS, callbacks=[counter], **OPTIONS[case.name])


def press_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def weights(model):
    return {key: value.clone() for key, value in model.module.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


# ---- Ctrl-C


@pytest.mark.slow
@pytest.mark.parametrize("step", [0, 7])
def test_ctrl_c_leaves_a_usable_model_and_says_where(case, step, tmp_path):
    model = case.model()
    start = weights(model)
    with pytest.raises(
        KeyboardInterrupt, match=r"interrupted in epoch \d of 3.*\. The model keeps the weights"
    ) as error:
        case.fit(model, N_EPOCHS, callbacks=[At(step, press_ctrl_c)], **OPTIONS[case.name])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if step == 0:
        stage = {"DeepCellState": " of the stage 'autoencoder, restart 0'", "UGE": " of the stage 'genes'"}.get(
            case.name, ""
        )
        assert f"in epoch 1 of 3{stage}." in str(error.value)
    assert model.is_trained_ and not model.module.training and not same(start, weights(model))
    assert len(model.history["train_loss"]) >= 1
    latent = model.get_latent_representation()
    assert np.isfinite(latent).all()
    if case.name != "UGE" or "samples" in model.trained_stages_:
        results = case.results(model)
        assert all(values.dtype == object or np.isfinite(values).all() for values in results.values())
    model.save(tmp_path / "model", save_anndata=True)
    loaded = case.cls.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.get_latent_representation(), latent)
    case.fit(model, 1)


@pytest.mark.slow
def test_ctrl_c_at_random_points(case):
    """Twenty of them, in epochs, validations and between stages."""
    rng = np.random.default_rng(0)
    hooks = [
        "on_train_batch_start",
        "on_train_batch_end",
        "on_validation_batch_end",
        "on_train_epoch_end",
        "on_fit_end",
    ]
    interrupted = 0
    for _ in range(20):
        hook = hooks[rng.integers(len(hooks))]
        step = int(rng.integers({"on_fit_end": 1, "on_train_epoch_end": 3}.get(hook, 8)))
        model = case.model()
        try:
            case.fit(model, N_EPOCHS, callbacks=[At(step, press_ctrl_c, hook)], **OPTIONS[case.name])
        except KeyboardInterrupt:
            interrupted += 1
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert model.is_trained_ and not model.module.training
        assert np.isfinite(model.get_latent_representation()).all()
    assert interrupted >= 10


def test_a_second_ctrl_c_stops_at_once(case):
    model = case.model()

    def twice():
        press_ctrl_c()
        press_ctrl_c()

    with pytest.raises(KeyboardInterrupt, match=r"broken off in epoch 1 of 3.*, perhaps within a step. Train again"):
        case.fit(model, N_EPOCHS, callbacks=[At(1, twice)], **OPTIONS[case.name])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not model.is_trained_ and not model.module.training
    case.fit(model, 1)
    assert np.isfinite(model.get_latent_representation()).all()


def test_a_handler_of_the_users_and_other_threads_are_left_alone(case):
    seen = []
    before = signal.signal(signal.SIGINT, lambda *args: seen.append(1))
    try:
        model = case.model()
        case.fit(model, 1, callbacks=[At(0, press_ctrl_c)])
        assert seen == [1]
    finally:
        signal.signal(signal.SIGINT, before)
    model = case.model()
    thread = threading.Thread(target=lambda: case.fit(model, 1))
    thread.start()
    thread.join()
    assert model.is_trained_


def test_errors_of_the_users_pass_as_they_are(case):
    model = case.model()
    with pytest.raises(Lost):
        case.fit(model, 1, callbacks=[At(0, lose)])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# ---- going on


def test_a_file_makes_no_difference(case, unbroken, tmp_path, caplog):
    model = case.trained(epochs=N_EPOCHS, checkpoint_path=tmp_path / "run.ckpt", **OPTIONS[case.name])
    assert same(weights(model), weights(unbroken))
    assert not list(tmp_path.iterdir())
    assert not [record for record in caplog.records if "weights_only" in record.getMessage()]  # at every epoch


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_a_training_goes_on_to_the_same_result(case, unbroken, counter, share, tmp_path):
    path = tmp_path / "run.ckpt"
    step = round(share * (counter.n - 1))
    model = case.model()
    with pytest.raises(Lost):
        case.fit(model, N_EPOCHS, callbacks=[At(step, lose)], checkpoint_path=path, **OPTIONS[case.name])
    assert path.is_file()
    other = case.model()
    torch.rand(3), np.random.rand(3)  # the state of the generators is the file's
    case.fit(other, N_EPOCHS, checkpoint_path=path, **OPTIONS[case.name])
    assert same(weights(other), weights(unbroken))
    assert not path.exists()
    assert other.history.keys() == unbroken.history.keys()
    for key, table in unbroken.history.items():
        assert other.history[key].index.tolist() == table.index.tolist(), key
        assert other.history[key].iloc[:, 0].tolist() == table.iloc[:, 0].tolist(), key
    np.testing.assert_array_equal(other.get_latent_representation(), unbroken.get_latent_representation())


def test_an_interrupted_training_goes_on(case, unbroken, tmp_path):
    path = tmp_path / "run.ckpt"
    model = case.model()
    with pytest.raises(KeyboardInterrupt, match=r"go on from .*run.ckpt"):
        case.fit(model, N_EPOCHS, callbacks=[At(6, press_ctrl_c)], checkpoint_path=path, **OPTIONS[case.name])
    other = case.model()
    case.fit(other, N_EPOCHS, checkpoint_path=path, **OPTIONS[case.name])
    assert same(weights(other), weights(unbroken))


def test_another_training_does_not_go_on(case, tmp_path):
    path = tmp_path / "run.ckpt"
    with pytest.raises(Lost):
        case.fit(case.model(), N_EPOCHS, callbacks=[At(1, lose)], checkpoint_path=path, **OPTIONS[case.name])
    kept = path.read_bytes()
    options = {**OPTIONS[case.name], "checkpoint_path": path}
    with pytest.raises(
        ValueError, match=r"is of another training: 'max_epochs' differ \(max_epochs: 3 there, 5 here\)"
    ):
        case.fit(case.model(), 5, **options)
    with pytest.raises(ValueError, match="is of another training: 'scvi.settings.seed' differ"):
        case.fit(case.model(), N_EPOCHS, seed=1, **options)
    adata = case.data()
    adata.obs_names = [f"other {name}" for name in adata.obs_names]
    with pytest.raises(ValueError, match="is of another training: 'cells and genes' differ"):
        case.fit(case.model(adata), N_EPOCHS, **options)
    with pytest.raises(ValueError, match="there is no folder"):
        case.fit(case.model(), N_EPOCHS, checkpoint_path=tmp_path / "none" / "run.ckpt")
    path.write_bytes(kept[: len(kept) // 2])
    with pytest.raises(ValueError, match="cannot be read: it was cut short, or is not a file of PyTorch"):
        case.fit(case.model(), N_EPOCHS, **options)
    torch.save({"weights": [1.0]}, path)
    with pytest.raises(ValueError, match="is of another training"):
        case.fit(case.model(), N_EPOCHS, **options)


def test_deepcellstate_keeps_one_training(tmp_path):
    with pytest.raises(ValueError, match="leave n_restarts at 1, or checkpoint_path out"):
        CASES["DeepCellState"].trained(n_restarts=2, checkpoint_path=tmp_path / "run.ckpt")


def train_and_die(name, epochs, path, n):
    """Killed at the n-th of the ends of mini-batches, and of what is done with the file."""
    calls = iter(range(n + 1))

    def count(*args):
        if next(calls, None) == n:
            os.kill(os.getpid(), signal.SIGKILL)

    replace, save = os.replace, torch.save
    os.replace = lambda *args: (count(), replace(*args), count())
    torch.save = lambda *args, **kwargs: (save(*args, **kwargs), count())
    CASES[name].fit(CASES[name].model(), epochs, checkpoint_path=path, callbacks=[At(None, count)], **OPTIONS[name])


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process of its own takes seconds to start without os.fork")
@pytest.mark.parametrize("name", CASES)
def test_killed_at_random_points(name, tmp_path):
    """Twenty times, by SIGKILL: the file is whole or absent, and in the end the training is the unbroken one."""
    case, epochs, path = CASES[name], 10, tmp_path / "run.ckpt"
    expected = case.trained(epochs=epochs, **OPTIONS[name])
    fork, rng = multiprocessing.get_context("fork"), np.random.default_rng(0)
    for _ in range(20):
        process = fork.Process(target=train_and_die, args=(name, epochs, path, int(rng.integers(12))))
        process.start()
        process.join(120)
        assert process.exitcode == -signal.SIGKILL or not path.exists()
        if path.exists():
            assert torch.load(path, weights_only=True)["transverse"]["identity"]["model"] == name
    model = case.model()
    case.fit(model, epochs, checkpoint_path=path, **OPTIONS[name])
    assert same(weights(model), weights(expected))


def test_tables_are_packed_and_unpacked():
    index = pd.RangeIndex(3, name="epoch")
    tables = {
        "loss": pd.DataFrame({"loss": [1.0, np.nan, 3.0]}, index=index, dtype=object),
        "stage": pd.DataFrame({"stage": ["a", "b", "b"]}, index=index, dtype=object),
        "n": {"inner": pd.DataFrame({"n": [1, 2, 3]}, index=index), "list": [1, "a", None]},
    }
    found = unpack(pack(tables))
    for key in ("loss", "stage"):
        pd.testing.assert_frame_equal(found[key], tables[key], check_index_type=False)
    pd.testing.assert_frame_equal(found["n"]["inner"], tables["n"]["inner"], check_index_type=False)
    assert found["n"]["list"] == [1, "a", None]
