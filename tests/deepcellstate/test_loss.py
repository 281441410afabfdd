"""The loss and the validation score of a mini-batch, derived again with numpy, and where the gradient goes."""

import numpy as np
import pytest
import torch

from transverse.deepcellstate import DeepCellStateModule
from transverse.deepcellstate._training_plan import agreement

EVERY = pytest.mark.parametrize("architecture", ["dense", "pointwise"])


def make(architecture="dense", scale=1.0, **kwargs):
    torch.manual_seed(0)
    options = {"skip": "separate", "input_dropout_rate": 0.0, "decoder_dropout_rate": 0.0} | kwargs
    module = DeepCellStateModule(8, 3, architecture, (7, 5), 4, **options).double()
    for decoder in module.decoders:
        if decoder.skip is not None:
            decoder.skip.data += 0.7
    module.scale.fill_(scale)
    return module


def make_batch(decoder=1, group=(0, 0, 1, 2, 2, 2), seed=0):
    """A mini-batch as the data loader makes it: the pairs of a group have one target."""
    rng = np.random.default_rng(seed)
    targets = rng.uniform(-2, 2, (max(group) + 1, 8))[list(group)]
    return {
        "X": torch.from_numpy(rng.uniform(-2, 2, (len(group), 8))),
        "target": torch.from_numpy(targets),
        "decoder": torch.tensor(decoder),
        "group": torch.tensor(group),
    }


def network(module, x, decoder):
    """Latent and output from sub-networks that are called one by one."""
    x = torch.from_numpy(x)
    z = module.encoder(x)
    return z.detach().numpy(), module.decoders[decoder](z, x if module.skip != "none" else None).detach().numpy()


# ---- the loss


@EVERY
@pytest.mark.parametrize("skip", ["tied", "separate", "none"])
@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("latent_l1", [0.3, 1e-4, 0.0])
def test_both_terms_and_the_total(architecture, skip, scale, latent_l1):
    module = make(architecture, scale, skip=skip, latent_l1=latent_l1)
    for decoder in range(3):
        batch = make_batch(decoder)
        z, y = network(module, batch["X"].numpy() / scale, decoder)
        error = np.mean((y - batch["target"].numpy() / scale) ** 2)
        l1 = np.abs(z).sum() / len(z)
        *_, output = module(batch)
        np.testing.assert_allclose(output.extra_metrics["error"].item(), error, rtol=1e-10)
        np.testing.assert_allclose(output.extra_metrics["latent_l1"].item(), l1, rtol=1e-10)
        np.testing.assert_allclose(output.loss.item(), error + latent_l1 * l1, rtol=1e-10)
        assert output.n_obs_minibatch == 6


def test_units_are_those_of_the_scale():
    batch = make_batch()
    large = {**batch, "X": 10 * batch["X"], "target": 10 * batch["target"]}
    one, other, unscaled = make()(batch)[-1], make(scale=10.0)(large)[-1], make()(large)[-1]
    np.testing.assert_allclose(other.loss.item(), one.loss.item(), rtol=1e-6)
    assert unscaled.loss > 10 * one.loss


def test_what_is_watched_has_no_gradient():
    for value in make()(make_batch())[-1].extra_metrics.values():
        assert value.ndim == 0 and not value.requires_grad


# ---- gradients


def with_gradient(module):
    return {name for name, p in module.named_parameters() if p.grad is not None and (p.grad != 0).any()}


@EVERY
@pytest.mark.parametrize("decoder", [0, 2])
def test_a_mini_batch_teaches_the_encoder_and_its_decoder(architecture, decoder):
    module = make(architecture)
    module(make_batch(decoder))[-1].loss.backward()
    learning = ("encoder.", f"decoders.{decoder}.")
    assert with_gradient(module) == {name for name, _ in module.named_parameters() if name.startswith(learning)}
    assert all(p.grad is None for i, d in enumerate(module.decoders) if i != decoder for p in d.parameters())


@EVERY
def test_the_norm_teaches_the_encoder_alone(architecture):
    gradients = []
    for weight in (0.0, 0.5):
        module = make(architecture, latent_l1=weight)
        module(make_batch(0))[-1].loss.backward()
        gradients.append({name: p.grad for name, p in module.named_parameters() if p.grad is not None})
    without, with_norm = gradients
    changed = {name for name in without if not torch.allclose(without[name], with_norm[name], rtol=1e-12)}
    assert changed == {name for name in without if name.startswith("encoder.")}


def test_a_weight_of_0_leaves_the_norm_out():
    """Where the latent is infinite, 0 times its norm would be no number."""
    found = make(latent_l1=0.0).loss(
        {"target": torch.zeros(2, 8).double()},
        {"z": torch.full((2, 4), torch.inf).double()},
        {"x": torch.ones(2, 8).double()},
    )
    assert found.loss.item() == 1


# ---- validation of a mini-batch


@EVERY
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_agreement(architecture, scale):
    """Pearson correlation of each target with the mean over its sources, and the loss of the pairs."""
    module, batch = make(architecture, scale).eval(), make_batch(2)
    _, y = network(module, batch["X"].numpy() / scale, 2)
    found = agreement(module, batch)
    expected = [
        np.corrcoef(y[rows].mean(0), batch["target"][rows[0]].numpy())[0, 1] for rows in ([0, 1], [2], [3, 4, 5])
    ]
    np.testing.assert_allclose(found.pearson.item(), np.mean(expected), rtol=1e-8)
    assert (found.decoder, found.n_pairs, found.n_targets) == (2, 6, 3)
    assert found.loss.item() == module(batch)[-1].loss.item()
    # in whatever order the pairs come
    order = [5, 2, 0, 4, 1, 3]
    mixed = {key: value[order] if value.ndim else value for key, value in batch.items()}
    np.testing.assert_allclose(agreement(module, mixed).pearson.item(), np.mean(expected), rtol=1e-8)


def test_agreement_with_what_does_not_change():
    """A constant target agrees with nothing."""
    batch = make_batch(group=(0, 1))
    second = {key: value[[1]] if value.ndim else value for key, value in batch.items()} | {"group": torch.tensor([0])}
    batch["target"][0] = 0.5
    module = make().eval()
    assert agreement(module, batch).pearson.item() == pytest.approx(agreement(module, second).pearson.item() / 2)
