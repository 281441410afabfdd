"""The training plan: learning rates over the steps, groups of parameters, and what is logged."""

import itertools
import math

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from transverse.uge import UGEModule, UGETrainingPlan
from transverse.uge._module import LOSSES

from .conftest import QUIET, build


def make_module():
    torch.manual_seed(0)
    return UGEModule([0, 1, 0, 1], 2, 2, n_hidden=8, n_layers=1, n_heads=2, n_latent=4)


class Steps:
    """Stands for a trainer of so many steps."""

    def __init__(self, n):
        self.estimated_stepping_batches = n


def optimizers(n_steps, module=None, **kwargs):
    plan = UGETrainingPlan(module or make_module(), **kwargs)
    trainer = Steps(n_steps)
    plan._trainer = trainer
    return plan.configure_optimizers()


def rates(n_steps, **kwargs):
    """Learning rates of both groups in every step."""
    found = optimizers(n_steps, **kwargs)
    optimizer, schedule = found["optimizer"], found["lr_scheduler"]["scheduler"]
    rows = []
    for _ in range(n_steps):
        rows.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return np.array(rows)


def formula(n_steps, share):
    n = max(1, round(share * n_steps))
    rising = [(i + 1) / n for i in range(min(n, n_steps))]
    falling = [(1 + math.cos(math.pi * i / (n_steps - n))) / 2 for i in range(n_steps - n)]
    return np.array(rising + falling)


# ---- the schedule


@pytest.mark.parametrize(("n_steps", "share"), [(100, 0.05), (40, 0.25), (7, 0.05), (1, 0.05), (10, 1.0), (10, 0.0)])
def test_rates_rise_and_fall(n_steps, share):
    found = rates(n_steps, lr=2e-3, gene_lr=3e-2, warmup_share=share)
    expected = formula(n_steps, share)
    np.testing.assert_allclose(found, np.outer(expected, [3e-2, 2e-3]), rtol=1e-10)
    n = max(1, round(share * n_steps))
    assert found[n - 1, 1] == 2e-3 and (found > 0).all()
    assert (np.diff(found[:n, 1]) > 0).all() and (np.diff(found[n:, 1]) < 0).all()


def test_rates_fall_to_nothing():
    found = optimizers(50, lr=1.0)
    for _ in range(50):
        found["optimizer"].step()
        found["lr_scheduler"]["scheduler"].step()
    assert [group["lr"] for group in found["optimizer"].param_groups] == pytest.approx([0, 0], abs=1e-12)
    assert found["lr_scheduler"]["interval"] == "step"


def test_defaults():
    np.testing.assert_allclose(rates(100), np.outer(formula(100, 0.05), [5e-4, 5e-4]))


def test_no_schedule():
    found = optimizers(10, lr=2e-3, gene_lr=1e-2, warmup_share=None)
    assert set(found) == {"optimizer"}
    assert [group["lr"] for group in found["optimizer"].param_groups] == [1e-2, 2e-3]


# ---- groups of parameters


@pytest.mark.parametrize("gene_lr", [None, 0.03])
@pytest.mark.parametrize("weight_decay", [0.01, 0.2])
def test_groups_of_parameters(weight_decay, gene_lr):
    module = make_module()
    optimizer = optimizers(10, module, lr=1e-3, gene_lr=gene_lr, weight_decay=weight_decay, warmup_share=None)[
        "optimizer"
    ]
    assert isinstance(optimizer, torch.optim.AdamW)
    of_genes, others = optimizer.param_groups
    names = {id(p): name for name, p in module.named_parameters()}
    found = [{names[id(p)] for p in group["params"]} for group in (of_genes, others)]
    assert found[0] == {name for name in names.values() if name.startswith(("genes.", "reactome."))}
    assert found[1] == set(names.values()) - found[0]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)
    assert (of_genes["lr"], of_genes["weight_decay"]) == (gene_lr or 1e-3, 0.0)
    assert (others["lr"], others["weight_decay"]) == (1e-3, weight_decay)


def test_a_gene_rate_of_0_is_one():
    optimizer = optimizers(10, lr=1e-3, gene_lr=0.0, warmup_share=None)["optimizer"]
    assert [group["lr"] for group in optimizer.param_groups] == [0.0, 1e-3]


def test_frozen_parameters_are_in_no_group():
    module = make_module()
    for part in (module.genes, module.reactome):
        part.requires_grad_(False)
    optimizer = optimizers(10, module, warmup_share=None)["optimizer"]
    (group,) = optimizer.param_groups
    assert group["weight_decay"] == 0.01
    learning = {id(p) for p in module.parameters() if p.requires_grad}
    assert {id(p) for p in group["params"]} == learning
    assert len(learning) < sum(1 for _ in module.parameters())


def test_gene_vectors_do_not_decay_and_others_do():
    """A step without any gradient to speak of."""
    module = make_module()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimizer = optimizers(10, module, lr=0.1, weight_decay=0.5, warmup_share=None)["optimizer"]
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in module.named_parameters():
        factor = 1.0 if name.startswith(("genes.", "reactome.")) else 1 - 0.1 * 0.5
        torch.testing.assert_close(parameter.detach(), factor * before[name])


# ---- in a training


class Recorder(Callback):
    """Of every fit: learning rates and weight decays in every step, and the genes and samples of every mini-batch."""

    def __init__(self):
        self.rates, self.decays, self.batches, self.logged = [], [], [], []

    def on_train_start(self, trainer, plan):
        for found in (self.rates, self.batches):
            found.append([])
        self.decays.append([group["weight_decay"] for group in trainer.optimizers[0].param_groups])

    def on_train_batch_start(self, trainer, plan, batch, i):
        self.rates[-1].append([group["lr"] for group in trainer.optimizers[0].param_groups])
        self.batches[-1].append(batch)

    def on_train_epoch_end(self, trainer, plan):
        self.logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def fit(adata, **kwargs):
    model, recorder = build(adata), Recorder()
    options = {"max_epochs": {"genes": 1, "samples": 2}, "n_tokens": 10, "genes_per_batch": 20} | kwargs
    model.train(callbacks=[recorder], **options, **QUIET)
    return model, recorder


def test_rates_of_the_stages(stacked):
    _, recorder = fit(stacked)
    genes, samples = (np.array(found) for found in recorder.rates)
    np.testing.assert_allclose(genes, np.outer(formula(50, 0.05), [1e-2, 1e-2]))
    np.testing.assert_allclose(samples, np.outer(formula(6, 0.05), [1e-3, 5e-4]))  # two epochs of three mini-batches
    assert recorder.decays == [[0.0, 0.01], [0.0, 0.01]]


def test_arguments_of_the_plan(stacked):
    plan = {"lr": 3e-4, "gene_lr": 2e-3, "warmup_share": None, "weight_decay": 0.2}
    _, recorder = fit(stacked, stages=["samples"], plan_kwargs=plan)
    (found,) = recorder.rates
    np.testing.assert_allclose(found, np.tile([2e-3, 3e-4], (6, 1)))
    assert recorder.decays == [[0.0, 0.2]]


def test_mini_batches_of_epochs_differ(stacked):
    _, recorder = fit(stacked, stages=["samples"])
    (batches,) = recorder.batches
    assert len(batches) == 6
    assert all(sum(len(block["values"]) for block in batch["samples"]) == 32 for batch in batches)
    values = [torch.cat([block["values"].flatten() for block in batch["samples"]]) for batch in batches]
    genes = [torch.cat([block["tokens"] for block in batch["genes"]]) for batch in batches]
    for i, j in itertools.combinations(range(6), 2):
        assert not torch.equal(values[i], values[j]) and not torch.equal(genes[i], genes[j])


def test_what_is_logged(stacked):
    validation = np.arange(0, 96, 5)
    split = {"external_indexing": [np.setdiff1d(np.arange(96), validation), validation]}
    _, recorder = fit(stacked, early_stopping=True, datasplitter_kwargs=split)
    genes, samples = recorder.logged[0], recorder.logged[-1]
    assert set(genes) == {"train_loss", "reactome_train", "map_train"}
    of_samples = [name for name in LOSSES if name not in ("map", "reactome")]
    of_validation = [name for name in of_samples if name != "masked"]  # nothing is hidden there
    expected = {f"{name}_train" for name in LOSSES} | {f"{name}_validation" for name in of_validation}
    assert set(samples) == expected | {"train_loss", "validation_loss"}
    np.testing.assert_allclose(
        samples["validation_loss"], sum(samples[f"{n}_validation"] for n in of_validation), rtol=1e-5
    )
    assert all(np.isfinite(value) for value in samples.values())


def test_history_has_the_terms_of_samples(stacked):
    model, _ = fit(stacked, early_stopping=True)
    assert {f"{name}_train" for name in LOSSES} | {"train_loss", "validation_loss"} <= set(model.history)
    assert len(model.history["train_loss"]) == 3
    assert model.history["validation_loss"].notna().to_numpy().any()


def test_validation_without_early_stopping(stacked):
    _, recorder = fit(stacked, train_size=0.8, check_val_every_n_epoch=1)
    assert np.isfinite(recorder.logged[-1]["validation_loss"])


@pytest.mark.slow
def test_validation_of_few_samples_at_a_time(stacked):
    _, recorder = fit(stacked, stages=["samples"], batch_size=1, early_stopping=True)
    assert np.isfinite(recorder.logged[-1]["validation_loss"])


def test_all_terms_of_genes_may_be_off(stacked):
    model = build(stacked, weights={"map": 0.0, "reactome": 0.0})
    model.train(max_epochs=1, n_tokens=10, **QUIET)
    assert model.is_trained_
