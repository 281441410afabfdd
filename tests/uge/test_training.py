"""Training: which weights learn in which stage, what is trained and validated on, what is kept, and what is refused."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import scvi
import torch
from lightning.pytorch.callbacks import Callback

from transverse._training import copy_state
from transverse.uge import UGE
from transverse.uge._batches import BatchSampler

from .conftest import QUIET, build, dense, same, train
from .helpers import assert_unchanged, is_of, same_state, state

SHORT = {"max_epochs": 1, "n_tokens": 40}


class Recorder(Callback):
    """Of every fit: weights at its start and its end, and how many steps and epochs it had."""

    def __init__(self):
        self.start, self.end, self.steps, self.training = [], [], [], []

    def on_train_start(self, trainer, plan):
        self.start.append(copy_state(plan.module))

    def on_train_end(self, trainer, plan):
        self.end.append(copy_state(plan.module))
        self.steps.append((trainer.global_step, trainer.current_epoch))

    def on_train_batch_start(self, trainer, plan, batch, i):
        self.training.append(plan.module.training)


class Spoil(Callback):
    """Make the weights worse after some epochs of the stage of samples; keeps those before."""

    def __init__(self, epoch):
        self.epoch, self.kept = epoch, []

    def on_validation_start(self, trainer, plan):
        if trainer.sanity_checking:
            return
        if trainer.current_epoch >= self.epoch:
            with torch.no_grad():
                for parameter in plan.module.parameters():
                    parameter *= 3
        self.kept.append(copy_state(plan.module))


class Stop(Exception):
    pass


def moved(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


def columns_of(model, key):
    return model.history[key].iloc[:, 0].tolist()


@pytest.fixture
def caught(stacked, monkeypatch):
    """What the training hands to the first of its stages, without training."""

    def ask(adata=stacked, setup=None, network=None, seed=0, **kwargs):
        model = build(adata, seed=seed, setup=setup, **(network or {}))

        def stop(*args, **options):
            raise Stop(*args)

        monkeypatch.setattr(UGE, "_data_splitter_cls", staticmethod(stop))
        with pytest.raises(Stop) as found:
            model.train(**SHORT | kwargs, **QUIET)
        _, _, training, validation, _, _, options = found.value.args
        return model, np.asarray(training), np.asarray(validation), options

    return ask


# ---- stages


def test_what_learns_in_which_stage(stacked):
    model, recorder = build(stacked), Recorder()
    model.train(**SHORT, callbacks=[recorder], **QUIET)
    assert len(recorder.start) == 2 and all(recorder.training) and not model.module.training
    of_genes = {name for name in recorder.start[0] if name.startswith(("genes.", "reactome."))} - {"genes.species"}
    assert moved(recorder.start[0], recorder.end[0]) == of_genes
    assert moved(recorder.end[0], recorder.start[1]) == set()
    everything = set(recorder.start[1]) - {"genes.species"}
    assert moved(recorder.start[1], recorder.end[1]) == everything
    assert moved(recorder.end[1], copy_state(model.module)) == set()
    assert all(parameter.requires_grad for parameter in model.module.parameters())


@pytest.mark.parametrize("stage", ["genes", "samples"])
def test_one_stage_alone(stacked, stage):
    model, recorder = build(stacked), Recorder()
    model.train(**SHORT, stages=[stage], callbacks=[recorder], **QUIET)
    assert len(recorder.start) == 1 and model.is_trained_
    assert set(columns_of(model, "stage")) == {stage}
    assert ("masked_train" in model.history) == (stage == "samples")


def test_the_name_of_a_stage(caught):
    """As that of a species whose labels are learnt, it need be no list."""
    assert "counterparts" in caught(stages="samples")[3]


def test_the_stages_are_in_order(stacked):
    recorder = Recorder()
    model = build(stacked)
    model.train(**SHORT, stages=["samples", "genes"], callbacks=[recorder], **QUIET)
    assert columns_of(model, "stage") == ["genes", "samples"]


@pytest.mark.parametrize(
    ("max_epochs", "expected"),
    [
        (2, (2, 2)),
        ({"genes": 1, "samples": 3}, (1, 3)),
        ({"samples": 2}, (30, 2)),
        ({"genes": 2}, (2, 30)),
        (None, (30, 30)),
    ],
    ids=str,
)
def test_epochs(stacked, monkeypatch, max_epochs, expected):
    seen = []
    runner = UGE._train_runner_cls

    def shortened(*args, max_epochs, **kwargs):
        seen.append(max_epochs)
        return runner(*args, max_epochs=1, limit_train_batches=1, **kwargs)

    monkeypatch.setattr(UGE, "_train_runner_cls", staticmethod(shortened))
    build(stacked).train(max_epochs=max_epochs, n_tokens=40, **QUIET)
    assert tuple(seen) == expected


def test_no_epochs_are_not_thirty(stacked, monkeypatch):
    monkeypatch.setattr(UGE, "_train_runner_cls", None)
    with pytest.raises(ValueError, match="max_epochs"):
        build(stacked).train(max_epochs=0, **QUIET)


def test_history(stacked):
    model = train(stacked, max_epochs={"genes": 1, "samples": 2})
    assert columns_of(model, "stage") == ["genes"] + ["samples"] * 2
    assert list(model.history["train_loss"].index) == list(range(3))
    for term in ("masked", "sample", "organ", "drug", "elastic"):
        assert list(model.history[f"{term}_train"].index) == [1, 2]
    assert len(model.history["reactome_train"]) == 3
    # it goes on
    model.train(**SHORT, **QUIET)
    assert columns_of(model, "stage") == ["genes"] + ["samples"] * 2 + ["genes", "samples"]
    assert list(model.history["train_loss"].index) == list(range(5))
    for key, table in model.history.items():
        if key not in ("stage",):
            assert np.isfinite(table.iloc[:, 0].astype(float)).all(), key


def test_training_goes_on(stacked):
    model, recorder = train(stacked, **SHORT), Recorder()
    before = copy_state(model.module)
    model.train(**SHORT, callbacks=[recorder], **QUIET)
    assert moved(before, recorder.start[0]) == set() and model.is_trained_


def test_losses_fall(stacked):
    model = train(stacked, max_epochs={"genes": 1, "samples": 4}, plan_kwargs={"lr": 3e-3})
    for key in ("reactome_train", "sample_train", "organ_train"):
        values = columns_of(model, key)
        assert values[-1] < values[0], key


# ---- chance


def test_a_seed_is_a_model(stacked):
    options = {"train_size": 0.8, "early_stopping": True, "max_epochs": 1}
    one, other, third = (train(stacked, seed=seed, **options) for seed in (3, 3, 4))
    assert same_state(one, other) and not same_state(one, third)
    assert same(one.get_latent_representation(), other.get_latent_representation())
    assert columns_of(one, "train_loss") == columns_of(other, "train_loss")
    assert one.training_samples_ == other.training_samples_ != third.training_samples_


def test_a_model_without_a_seed(stacked):
    scvi.settings.seed = None
    UGE.setup_anndata(stacked, animal_key="animal")
    model = UGE(stacked, preset="tiny", n_latent=8)
    model.train(**SHORT, train_size=0.8, **QUIET)
    assert np.isfinite(model.get_latent_representation()).all()


@pytest.mark.filterwarnings("ignore:Training will be faster when sparse matrix is formatted as CSR")
def test_formats(stacked, tmp_path):
    """Dense, sparse either way, and both from files: the same model, to the last bit."""
    options = SHORT | {"stages": ["samples"]}
    expected = train(stacked, **options)
    denser, csc = stacked.copy(), stacked.copy()
    denser.X = dense(stacked.X)
    csc.X = sp.csc_matrix(stacked.X)
    for data in (denser, csc):
        model = train(data, **options)
        assert same_state(model, expected) and same(model.features_, expected.features_)
    for name, data in (("sparse", stacked), ("dense", denser)):
        data.write_h5ad(tmp_path / f"{name}.h5ad")
        backed = ad.read_h5ad(tmp_path / f"{name}.h5ad", backed="r")
        scvi.settings.seed = 0
        UGE.setup_anndata(backed, animal_key="animal")
        model = UGE(backed, preset="tiny", n_latent=16)
        model.train(**options, **QUIET)
        assert same_state(model, expected)
        assert same(model.get_latent_representation(), expected.get_latent_representation())
        backed.file.close()


def test_names_of_samples_and_animals_do_not_matter(stacked):
    other = stacked.copy()
    other.obs_names = [f"s{i}" for i in range(other.n_obs)]
    other.obs["animal"] = "x" + other.obs["animal"].astype(str)
    assert same_state(*(train(data, **SHORT, stages=["samples"]) for data in (stacked, other)))


# ---- what is trained on


def animals(adata, rows):
    return set(adata.obs["animal"].iloc[rows].astype(str))


@pytest.mark.parametrize("train_size", [0.25, 0.5, 0.9])
def test_animals_are_on_one_side(caught, stacked, train_size):
    model, training, validation, _ = caught(train_size=train_size)
    assert not animals(stacked, training) & animals(stacked, validation)
    assert len(animals(stacked, training)) == round(24 * train_size)
    assert set(training) | set(validation) == set(range(96)) and len(training) + len(validation) == 96
    assert (np.diff(training) > 0).all()
    assert set(model.training_samples_) == set(stacked.obs_names[training])


def test_samples_where_there_are_no_animals(caught, stacked):
    _, training, validation, _ = caught(setup={"animal_key": None}, train_size=0.75)
    assert (len(training), len(validation)) == (72, 24)
    assert animals(stacked, training) & animals(stacked, validation)


def test_animals_of_two_species_may_have_the_same_name(caught, stacked):
    stacked.obs["animal"] = stacked.obs["animal"].astype(str).str.split("_").str[1]
    assert stacked.obs["animal"].nunique() == 12
    _, training, validation, _ = caught(train_size=0.5)
    names = (stacked.obs["species"].astype(str) + stacked.obs["animal"]).to_numpy()
    assert not set(names[training]) & set(names[validation])
    assert len(set(names[training])) == 12
    # and those of one name are not always together
    assert {name[5:] for name in names[training] if name.startswith("mouse")} != {
        name[3:] for name in names[training] if name.startswith("rat")
    }


def test_a_split_is_that_of_the_seed(stacked):
    """Not of the global generators, whatever was drawn in between."""
    model = build(stacked)
    found = []
    for _ in range(2):
        found.append(model._split({}, (), 0.5, None, True, False))
        np.random.rand(3)
    assert all(same(one, other) for one, other in zip(*found, strict=True))


def test_sizes_of_both_sides(caught, stacked):
    _, training, validation, _ = caught(train_size=0.5, validation_size=0.25)
    assert (len(animals(stacked, training)), len(animals(stacked, validation))) == (12, 6)
    assert not animals(stacked, training) & animals(stacked, validation)
    _, training, validation, _ = caught()
    assert (len(training), len(validation)) == (96, 0)
    _, training, validation, _ = caught(early_stopping=True)
    assert len(animals(stacked, training)) == 22 and len(animals(stacked, validation)) == 2


def test_the_size_of_the_validation_alone(caught, stacked):
    _, training, validation, _ = caught(validation_size=0.25)
    assert (len(animals(stacked, training)), len(animals(stacked, validation))) == (18, 6)


@pytest.mark.parametrize(
    "sizes", [{"train_size": 0.7, "validation_size": 0.9}, {"train_size": 0.5, "validation_size": -1}]
)
def test_sizes_that_do_not_add_up(caught, sizes):
    with pytest.raises(ValueError, match="validation_size"):
        caught(**sizes)


def test_without_shuffling(caught, stacked):
    """Animals by name, those of one species after the other."""
    found = [caught(train_size=0.75, shuffle_set_split=False, seed=seed)[1] for seed in (0, 1)]
    np.testing.assert_array_equal(*found)
    names = sorted({f"{s}|{a}" for s, a in zip(stacked.obs["species"], stacked.obs["animal"], strict=True)})
    assert animals(stacked, found[0]) == {name.split("|")[1] for name in names[:18]}
    shuffled = [caught(train_size=0.75, seed=seed)[1] for seed in (0, 1)]
    assert not np.array_equal(*shuffled)


def test_a_split_of_the_users(caught, stacked):
    rows = np.random.default_rng(0).permutation(96)
    split = {"external_indexing": [rows[:60], rows[60:80], rows[80:]]}
    model, training, validation, _ = caught(datasplitter_kwargs=split)
    np.testing.assert_array_equal(training, np.sort(rows[:60]))
    np.testing.assert_array_equal(validation, np.sort(rows[60:80]))
    assert set(model.training_samples_) == set(stacked.obs_names[rows[:60]])
    # what is held out is held out of it
    condition = ("rat", "heart", "drug A")
    _, training, validation, _ = caught(datasplitter_kwargs=split, hold_out=[condition])
    out = set(np.flatnonzero(is_of(stacked, *condition)))
    assert set(training) == set(rows[:60]) - out and set(validation) == set(rows[60:80]) - out
    assert list(split) == ["external_indexing"]


def test_held_out_samples_are_on_no_side(caught, stacked):
    hold_out = [("rat", "heart", "drug A"), ("mouse", "liver", "control")]
    out = np.any([is_of(stacked, *condition) for condition in hold_out], axis=0)
    for options in ({}, {"train_size": 0.5}, {"early_stopping": True}):
        _, training, validation, _ = caught(hold_out=hold_out, **options)
        assert not out[training].any() and not out[validation].any()
        assert len(training) + len(validation) == 96 - out.sum()


def test_indices_of_a_model(stacked):
    model = train(stacked, **SHORT, train_size=0.75)
    assert len(model.train_indices) == 72 and len(model.validation_indices) == 24
    assert set(stacked.obs_names[model.train_indices]) == set(model.training_samples_)


@pytest.mark.parametrize("size", [0, -0.5, 1.5])
def test_sizes_are_refused(stacked, size):
    with pytest.raises(ValueError, match=f"train_size={size} must be above 0 and at most 1"):
        build(stacked).train(train_size=size, **QUIET)


@pytest.mark.parametrize(
    ("hold_out", "message"),
    [
        ([("rat", "tail", "drug A")], r"hold_out has \('rat', 'tail', 'drug A'\), of which adata has no samples"),
        ([("cow", "heart", "drug A")], r"hold_out has \('cow', 'heart', 'drug A'\)"),
        ([("rat", "heart", "drug A"), ("rat", "heart", "drug Z")], r"hold_out has \('rat', 'heart', 'drug Z'\)"),
        (("rat", "heart", "drug A"), "hold_out has rat, of which adata has no samples"),
    ],
)
def test_unknown_conditions_are_refused(stacked, hold_out, message):
    with pytest.raises(ValueError, match=message):
        build(stacked).train(hold_out=hold_out, **QUIET)


def test_a_species_without_labelled_controls_is_refused(stacked):
    """Its controls are there, but of no known organ."""
    organs = stacked.obs["organ"].astype(str)
    of_rat = (stacked.obs["species"] == "rat") & (stacked.obs["drug"] == "control")
    stacked.obs["organ"] = organs.mask(of_rat, "unknown")
    with pytest.raises(ValueError, match="no control samples of a known organ of 'rat'.*'organ'"):
        train(stacked)
    with pytest.raises(ValueError, match="no control samples of a known organ of 'rat'"):
        train(stacked, hold_out=[("mouse", "heart", "drug A")])


# ---- early stopping


def test_the_best_weights_are_kept(stacked):
    model, spoil = build(stacked), Spoil(3)
    model.train(
        max_epochs={"genes": 1, "samples": 6},
        n_tokens=40,
        train_size=0.75,
        early_stopping=True,
        callbacks=[spoil],
        **QUIET,
    )
    losses = np.array(columns_of(model, "validation_loss"), dtype=float)
    losses = losses[~np.isnan(losses)]
    assert len(losses) == len(spoil.kept) == 6 and losses.argmin() < 3
    assert moved(spoil.kept[losses.argmin()], copy_state(model.module)) == set()
    for key in ("sample", "organ", "drug", "elastic"):
        assert len(model.history[f"{key}_validation"]) == 6
    assert columns_of(model, "stage") == ["genes"] + ["samples"] * 6


def test_it_stops(stacked):
    model = build(stacked)
    model.train(
        max_epochs={"genes": 1, "samples": 20},
        n_tokens=40,
        train_size=0.75,
        early_stopping=True,
        early_stopping_patience=2,
        callbacks=[Spoil(2)],
        **QUIET,
    )
    assert columns_of(model, "stage").count("samples") == 4


def test_early_stopping_needs_samples_to_validate_on(stacked):
    with pytest.raises(ValueError, match="early_stopping|validat"):
        build(stacked).train(**SHORT, train_size=1.0, early_stopping=True, **QUIET)


# ---- arguments


def test_arguments_of_mini_batches(caught):
    model, _, _, options = caught(batch_size=7, n_tokens=11, genes_per_batch=13)
    assert (options["batch_size"], options["n_tokens"], options["n_genes"]) == (7, 11, 13)
    assert [len(genes) for genes in options["genes"]] == [60, 60]
    assert "translated" not in options  # of samples, which there are none of in the first stage
    _, _, _, options = caught(stages=["samples"], translated=0.25)
    assert options["translated"] == 0.25 and options["counterparts"].shape[:2] == (120, 2)
    _, _, _, options = caught(stages=["samples"], translated=0)
    assert "counterparts" not in options


def test_tokens_are_the_genes_that_vary(caught, stacked):
    model, training, _, options = caught(network={"n_top_genes": 12}, train_size=0.5)
    x = dense(stacked.X)[training].astype(float)
    species = stacked.obs["species"].to_numpy()[training]
    for s, name in enumerate(("mouse", "rat")):
        variance = x[species == name].var(axis=0, ddof=1)
        own = np.flatnonzero(stacked.var["species"] == name)
        assert set(options["tokens"][s]) == set(own[np.argsort(-variance[own])[:12]])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"translated": 0.0}, {"translated": 1.0}),
        ({"profile_weight": 0.5}, {"profile_weight": 1.5}),
        ({"network": {"value_mode": "binned"}}, {"network": {"value_mode": "binned", "n_bins": 5}}),
        ({"network": {"weights": {"elastic": 0}}}, {"network": {}}),
        ({"network": {"mask_rate": 0.0}}, {"network": {"mask_rate": 0.8}}),
    ],
    ids=str,
)
def test_arguments_make_a_difference(stacked, one, other):
    models = [train(stacked, **SHORT, stages=["samples"], **options) for options in (one, other)]
    assert np.abs(models[0].get_latent_representation() - models[1].get_latent_representation()).max() > 1e-6


@pytest.mark.parametrize(
    "network",
    [{"value_mode": "binned", "n_bins": 9}, {"condition_keys": ["organ"]}, {"condition_keys": ("drug", "organ")}],
    ids=str,
)
def test_kinds_of_tokens_are_trained(stacked, network):
    model, recorder = build(stacked, **network), Recorder()
    model.train(**SHORT, stages=["samples"], callbacks=[recorder], **QUIET)
    new = {name for name in recorder.start[0] if name.startswith(("encoder.value", "encoder.conditions"))}
    assert new and new <= moved(recorder.start[0], recorder.end[0])
    n = len(network.get("condition_keys", ()))
    assert len(model.module.encoder.conditions) == n
    assert np.isfinite(model.get_latent_representation()).all()


def test_conditions_of_samples(stacked):
    """As numbers of their categories, and one more for those that are not known."""
    stacked.obs["organ"] = stacked.obs["organ"].astype(str).where(np.arange(96) % 7 != 0, "unknown")
    model = build(stacked, condition_keys=["drug", "organ"])
    drug, organ = model._conditions().T
    assert [model.drugs_[i] for i in drug] == stacked.obs["drug"].astype(str).tolist()
    assert [([*model.organs_, "unknown"])[i] for i in organ] == stacked.obs["organ"].tolist()
    assert [e.num_embeddings for e in model.module.encoder.conditions] == [4, 5]


def test_the_users_callbacks_and_arguments_stay(stacked):
    callbacks, splitter, plan = [Recorder()], {"num_workers": 0}, {"lr": 1e-3}
    train(
        stacked,
        **SHORT,
        train_size=0.8,
        early_stopping=True,
        callbacks=callbacks,
        datasplitter_kwargs=splitter,
        plan_kwargs=plan,
    )
    assert len(callbacks) == 1 and splitter == {"num_workers": 0} and plan == {"lr": 1e-3}


def test_nothing_of_the_users_data_is_changed(stacked):
    before = stacked.copy()
    scvi.settings.seed = 0
    UGE.setup_anndata(stacked, animal_key="animal")
    model = UGE(stacked, preset="tiny", n_latent=8)
    assert_unchanged(stacked, before)
    model.train(**SHORT, hold_out=[("rat", "heart", "drug A")], **QUIET)
    model.predict("rat", "heart", "drug A", via="C")
    model.get_latent_representation()
    assert model.adata is stacked
    assert_unchanged(stacked, before)


def test_without_drugs(stacked):
    controls = stacked[(stacked.obs["drug"] == "control").to_numpy()].copy()
    model = train(controls, setup={"drug_key": None, "animal_key": "animal"}, max_epochs=1)
    assert model.drugs_ == ["control"] and model.is_measured_.shape == (2, 4, 0)
    assert {condition[2] for condition in model.training_conditions_} == {"control"}
    assert model.map_genes("mouse", "rat").shape == (600, 6)
    assert len(model.predict_labels("organ")) == 32
    for ask, message in (
        (lambda: model.predict_labels("drug"), "There is only one drug, 'control': nothing to tell apart"),
        (model.predict_reactome, "The model was set up without drugs: there is no reactome"),
        (model.suggest_experiments, "The model was set up without drugs: there is nothing to suggest"),
    ):
        with pytest.raises(ValueError, match=message):
            ask()
    with pytest.raises(KeyError, match="Unknown drug 'drug A'. Known: none"):
        model.predict("rat", "heart", "drug A")
    rat = controls[is_of(controls, "rat"), controls.var_names[65:]].copy()
    assert np.isfinite(model.impute(rat, "rat").X).all()


@pytest.mark.parametrize(
    "options", [{"stages": ["gene"]}, {"stages": []}, {"max_epochs": {"gene": 1, "samples": 1, "genes": 1}}]
)
def test_unknown_stages_are_refused(stacked, options):
    with pytest.raises(ValueError, match="stages|gene"):
        build(stacked).train(**{"max_epochs": 1} | options, **QUIET)


def test_a_training_that_fails_leaves_the_model_usable(stacked, held_out):
    """What went wrong is told; what was trained before stays."""
    model = train(stacked, hold_out=held_out, max_epochs=1)
    before = state(model)

    class Fail(Callback):
        def on_train_start(self, trainer, plan):
            raise Stop

    with pytest.raises(Stop):
        model.train(**SHORT, hold_out=held_out, callbacks=[Fail()], **QUIET)
    assert all(np.array_equal(before[name], value) for name, value in state(model).items())


def test_a_training_that_fails_is_not_the_end_of_the_earlier(stacked, held_out):
    model = train(stacked, hold_out=held_out, max_epochs=1)
    n = len(model.history["train_loss"])

    class Fail(Callback):
        def on_train_start(self, trainer, plan):
            raise Stop

    with pytest.raises(Stop):
        model.train(**SHORT, hold_out=held_out, callbacks=[Fail()], **QUIET)
    assert model.is_trained_ and len(model.history["train_loss"]) == n
    assert len(model.predict_labels()) == 96


# ---- two processes

RANK = """
import sys
import numpy as np, scvi, torch
import transverse as tv
from transverse.uge import _batches

torch.set_num_threads(1)
folder = sys.argv[1]
seen = []
whole = _batches.BatchDataset._samples

def read(self, rows, *rest):
    seen.extend(rows.tolist())
    return whole(self, rows, *rest)

if __name__ == "__main__":
    adata = tv.pp.stack_species(tv.datasets.simulate_reactomes(n_genes=40, n_organs=3, n_drugs=2, n_animals=3))
    scvi.settings.seed = 0
    tv.UGE.setup_anndata(adata, animal_key="animal")
    model = tv.UGE(adata, preset="tiny", n_latent=8)
    _batches.BatchDataset._samples = read
    model.train(
        max_epochs=1, n_tokens=20, batch_size=8, accelerator="cpu", devices=2, enable_progress_bar=False,
        strategy="ddp_find_unused_parameters_true",
    )
    weights = torch.cat([t.flatten().double() for t in model.module.state_dict().values()]).numpy()
    np.savez(f"{folder}/{model.trainer.global_rank}.npz", weights=weights, seen=seen, n=adata.n_obs)
"""


@pytest.mark.slow
def test_two_processes_train_one_model(in_two_processes):
    one, other = in_two_processes(RANK)
    np.testing.assert_array_equal(one["weights"], other["weights"])
    # each reads a part of the samples, and both together all of them, once
    seen = [set(rank["seen"].tolist()) for rank in (one, other)]
    assert not seen[0] & seen[1] and seen[0] | seen[1] == set(range(int(one["n"])))


def test_samplers_are_those_of_the_seed(stacked):
    """The order of samples does not hang on the global generators."""
    rows = [np.arange(40), np.arange(40, 96)]
    genes = [np.arange(60), np.arange(60, 120)]
    options = {"batch_size": 10, "n_tokens": 20, "n_genes": 10, "seed": 5}
    found = []
    for seed in (0, 1):
        np.random.seed(seed)
        torch.manual_seed(seed)
        found.append([block[0].tolist() for batch, _ in BatchSampler(rows, genes, genes, **options) for block in batch])
    assert found[0] == found[1]
    pd.testing.assert_index_equal(pd.Index(sorted(sum(found[0], []))), pd.RangeIndex(96), exact=False)


@pytest.mark.parametrize(
    "options",
    [
        {"n_tokens": 0},
        {"batch_size": 0},
        {"translated": 2.0},
        {"max_epochs": -1},
        {"max_epochs": {"genes": 0, "samples": 1}},
        {"datasplitter_kwargs": {"external_indexing": [np.arange(96)]}},
    ],
    ids=lambda options: next(iter(options)),
)
def test_arguments_out_of_range_are_refused(stacked, options):
    with pytest.raises(ValueError, match=next(iter(options.get("datasplitter_kwargs", options)))):
        build(stacked).train(**SHORT | options, **QUIET)


@pytest.mark.parametrize(
    "options", [{"n_latent": 0}, {"n_top_genes": 0}, {"value_mode": "binned", "n_bins": 1}], ids=str
)
def test_sizes_of_models_are_refused(stacked, options):
    with pytest.raises(ValueError, match=list(options)[-1]):
        build(stacked, **options)
