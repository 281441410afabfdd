"""Encoders and decoders: their size, and what they compute, derived again with numpy; dropout; the skip connection."""

import inspect

import numpy as np
import pytest
import torch
from torch import nn

from transverse.deepcellstate import PRESETS, DeepCellState, DeepCellStateModule
from transverse.deepcellstate._networks import DenseEncoder, PointwiseDecoder, PointwiseEncoder

EVERY = pytest.mark.parametrize("architecture", ["dense", "pointwise"])
N_GENES, HIDDEN, N_LATENT = 9, (7, 5), 4
NO_DROPOUT = {"input_dropout_rate": 0.0, "decoder_dropout_rate": 0.0}


def make(architecture="dense", n_cell_types=3, **kwargs):
    torch.manual_seed(0)
    return DeepCellStateModule(N_GENES, n_cell_types, architecture, HIDDEN, N_LATENT, **kwargs).double()


def scrambled(architecture, **kwargs):
    """A module in evaluation mode with a skip connection that does something."""
    module = make(architecture, **kwargs).eval()
    for i, decoder in enumerate(module.decoders):
        if decoder.skip is not None:
            decoder.skip.data += torch.linspace(-0.5, 0.8, len(decoder.skip)) + 0.3 * (i + 1)
    return module


def signatures(n=6, n_genes=N_GENES, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, (n, n_genes)))


def n_parameters(module):
    return sum(p.numel() for p in module.parameters())


def linear(n_in, n_out, bias=True):
    return n_in * n_out + bias * n_out


def by_hand(layers, x):
    """Linear maps and leaky ReLU of slope 0.2."""
    for layer in layers:
        if isinstance(layer, nn.Linear):
            x = x @ layer.weight.detach().numpy().T
            x = x if layer.bias is None else x + layer.bias.detach().numpy()
        else:
            assert isinstance(layer, nn.LeakyReLU)
            x = np.where(x > 0, x, 0.2 * x)
    return x


# ---- size


def test_size_of_the_reference():
    with torch.device("meta"):
        encoder = PointwiseEncoder(978, (512, 256), 128)
        decoder = PointwiseDecoder(128, (512, 256), 978, 0.8, True)
        without = PointwiseDecoder(128, (512, 256), 978, 0.8, False)
    of_gene = linear(1, 512) + linear(512, 256)
    assert n_parameters(encoder) == of_gene + linear(978 * 256, 128, bias=False) == 32_179_456
    of_gene = linear(256, 256) + linear(256, 512) + linear(513, 1)
    assert n_parameters(decoder) == linear(128, 978 * 256) + of_gene == 32_495_362
    assert n_parameters(decoder) - n_parameters(without) == 1


def test_size_of_the_dense_reading():
    with torch.device("meta"):
        module = DeepCellStateModule(978, 2)
    encoder = linear(978, 512) + linear(512, 256) + linear(256, 128)
    decoder = linear(128, 256) + linear(256, 512) + linear(512, 978) + 978
    assert n_parameters(module.encoder) == encoder
    assert [n_parameters(one) for one in module.decoders] == [decoder] * 2
    assert n_parameters(module) == encoder + 2 * decoder


@EVERY
def test_decoders_share_no_weights(architecture):
    parameters = [p.data_ptr() for p in make(architecture).parameters()]
    assert len(set(parameters)) == len(parameters)


# ---- values


@pytest.mark.parametrize("use_skip", [True, False])
def test_dense_by_hand(use_skip):
    module = scrambled("dense")
    x = signatures()
    z = by_hand(module.encoder, x.numpy())
    np.testing.assert_allclose(module.inference(x)["z"].detach().numpy(), z, atol=1e-12)
    for i, decoder in enumerate(module.decoders):
        assert [m.out_features for m in decoder.features if isinstance(m, nn.Linear)] == [5, 7]
        y = by_hand([*decoder.features, decoder.readout], z)
        y = np.tanh(y + decoder.skip.detach().numpy() * x.numpy()) if use_skip else np.tanh(y)
        found = module.generative(torch.from_numpy(z), x if use_skip else None, i)["x"]
        np.testing.assert_allclose(found.detach().numpy(), y, atol=1e-12)


@pytest.mark.parametrize("use_skip", [True, False])
def test_pointwise_by_hand(use_skip):
    """Gene by gene, with the same weights for all."""
    module = scrambled("pointwise")
    x = signatures()
    latent = module.encoder.latent.weight.detach().numpy()
    z = np.zeros((len(x), N_LATENT))
    for g in range(N_GENES):
        z += by_hand(module.encoder.hidden, x[:, [g]].numpy()) @ latent[:, 5 * g : 5 * g + 5].T
    np.testing.assert_allclose(module.inference(x)["z"].detach().numpy(), z, atol=1e-12)
    for i, decoder in enumerate(module.decoders):
        spread = by_hand([decoder.spread], z)
        assert [m.out_features for m in decoder.hidden if isinstance(m, nn.Linear)] == [5, 7]
        for g in range(N_GENES):
            y = by_hand([*decoder.hidden, decoder.output], spread[:, 5 * g : 5 * g + 5])[:, 0]
            y = np.tanh(y + decoder.skip.item() * x[:, g].numpy()) if use_skip else np.tanh(y)
            found = module.generative(torch.from_numpy(z), x if use_skip else None, i)["x"]
            np.testing.assert_allclose(found[:, g].detach().numpy(), y, atol=1e-12)


def test_pointwise_layers_are_the_same_function_of_every_gene():
    module = scrambled("pointwise")
    x, order = signatures(), torch.randperm(N_GENES)
    hidden = module.encoder.hidden(x.unsqueeze(-1))
    assert hidden.shape == (6, N_GENES, 5)
    torch.testing.assert_close(module.encoder.hidden(x[:, order].unsqueeze(-1)), hidden[:, order])
    # what a gene is told of the others, it is told by the latent
    changed = x.clone()
    changed[:, 0] += 1
    after = module.encoder.hidden(changed.unsqueeze(-1))
    assert torch.equal(after[:, 1:], hidden[:, 1:]) and not torch.equal(after[:, 0], hidden[:, 0])
    assert not torch.equal(module.inference(changed)["z"], module.inference(x)["z"])
    decoder = module.decoders[0]
    features = decoder.features(torch.randn(6, N_LATENT, dtype=torch.double))
    assert features.shape == (6, N_GENES, 7)
    torch.testing.assert_close(decoder.readout(features[:, order]), decoder.readout(features)[:, order])


def test_latent_layers():
    assert PointwiseEncoder(3, (4,), 2).latent.bias is None
    assert DenseEncoder(3, (4,), 2)[-1].bias is not None
    for architecture in ("dense", "pointwise"):
        # no activation: below 0, and by more than a leaky ReLU would leave
        z = make(architecture).eval().inference(10 * signatures(50))["z"]
        assert z.min() < -0.5 * z.max()


@EVERY
@pytest.mark.parametrize("n_hidden", [(6,), (6, 5), (7, 6, 5)], ids=str)
def test_shapes(architecture, n_hidden):
    module = DeepCellStateModule(N_GENES, 4, architecture, n_hidden, 3)
    for n in (1, 5):
        for mode in (True, False):
            outputs = module.train(mode).inference(torch.randn(n, N_GENES))
            assert outputs["z"].shape == (n, 3) and outputs["x"].shape == (n, N_GENES)
            for i in range(4):
                assert module.generative(outputs["z"], outputs["x"], i)["x"].shape == (n, N_GENES)


@EVERY
def test_outputs_are_between_minus_one_and_one(architecture):
    module = scrambled(architecture)
    found = module.generative(1e4 * torch.randn(50, N_LATENT).double(), 1e4 * signatures(50), 1)["x"]
    assert found.abs().max() == 1 and found.min() < -0.9 and found.max() > 0.9


# ---- skip connection


@EVERY
def test_nothing_is_copied_at_first(architecture):
    module = make(architecture).eval()
    z, x = torch.randn(6, N_LATENT).double(), signatures()
    for i, decoder in enumerate(module.decoders):
        assert decoder.skip.shape == ((1,) if architecture == "pointwise" else (N_GENES,))
        assert torch.equal(module.generative(z, x, i)["x"], module.generative(z, None, i)["x"])
        # and yet it learns
        module.generative(z, x, i)["x"].sum().backward()
        assert (decoder.skip.grad != 0).all()


@EVERY
def test_without_skip(architecture):
    module = make(architecture, skip="none").eval()
    assert all(decoder.skip is None for decoder in module.decoders)
    assert not [name for name, _ in module.named_parameters() if "skip" in name]
    z = torch.randn(6, N_LATENT).double()
    assert torch.equal(module.generative(z, signatures(), 0)["x"], module.generative(z, None, 0)["x"])


def masks_of(module, x):
    """What the encoder and the skip connection see in training."""
    seen = []
    handle = module.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    skipped = module.train().inference(x)["x"]
    handle.remove()
    return seen[0], skipped


@EVERY
@pytest.mark.parametrize("skip", ["tied", "separate"])
def test_mask_of_the_skip_connection(architecture, skip):
    module = make(architecture, skip=skip, input_dropout_rate=0.4)
    x = signatures(300)
    encoded, skipped = masks_of(module, x)
    assert torch.equal(encoded, skipped) == (skip == "tied")
    for seen in (encoded, skipped):
        # what is left is larger by what is gone
        kept = seen != 0
        torch.testing.assert_close(seen[kept], x[kept] / 0.6)
        assert abs(kept.double().mean().item() - 0.6) < 0.03
    if skip == "separate":
        both = ((encoded != 0) & (skipped != 0)).double().mean().item()
        assert abs(both - 0.36) < 0.03


# ---- dropout


@EVERY
def test_dropout_of_the_last_hidden_layer(architecture):
    module = make(architecture, decoder_dropout_rate=0.7)
    decoder, seen = module.decoders[1], []
    readout = decoder.readout if architecture == "dense" else decoder.output
    readout.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    z = torch.randn(400, N_LATENT).double()
    module.eval().generative(z, None, 1)
    module.train().generative(z, None, 1)
    full, dropped = seen
    assert full.shape[-1] == 7
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], full[kept] / 0.3)
    assert abs(kept.double().mean().item() - 0.3) < 0.03


@EVERY
def test_chance_is_of_training_alone(architecture):
    module = scrambled(architecture)
    x = signatures()

    def outputs():
        encoded = module.inference(x)
        return module.generative(encoded["z"], encoded["x"], 0)["x"]

    assert torch.equal(outputs(), outputs())
    assert torch.equal(module.inference(x)["x"], x)
    module.train()
    assert not torch.equal(outputs(), outputs())
    module = scrambled(architecture, **NO_DROPOUT)
    expected = outputs()
    module.train()
    assert torch.equal(outputs(), expected)


def rates(module):
    assert len({decoder.dropout_rate for decoder in module.decoders}) == 1
    return module.input_dropout_rate, module.latent_l1, module.decoders[0].dropout_rate


@pytest.mark.parametrize(
    ("preset", "expected"),
    [(0, (0.1, 0, 0.5)), (1, (0.2, 1e-8, 0.8)), (2, (0.5, 1e-7, 0.8)), (3, (0.5, 1e-4, 0.9))],
)
def test_presets(preset, expected):
    assert tuple(PRESETS[preset].values()) == expected
    assert rates(make(preset=preset)) == expected
    # what is given wins, 0 too
    assert rates(make(preset=preset, input_dropout_rate=0.0)) == (0, *expected[1:])
    assert rates(make(preset=preset, latent_l1=0.0)) == (expected[0], 0, expected[2])
    assert rates(make(preset=preset, decoder_dropout_rate=0.25)) == (*expected[:2], 0.25)


def test_defaults_of_the_model_are_those_of_its_module():
    of_module, of_model = (inspect.signature(cls).parameters for cls in (DeepCellStateModule, DeepCellState))
    for name in ("architecture", "n_hidden", "n_latent", "skip", "preset"):
        assert of_model[name].default == of_module[name].default


# ---- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "conv"}, "architecture='conv' must be one of 'dense', 'pointwise'"),
        ({"skip": True}, "skip=True must be one of 'tied', 'separate', 'none'"),
        ({"preset": 4}, "preset=4 must be one of 0, 1, 2, 3"),
        ({"n_hidden": ()}, r"n_hidden must be positive widths, but got \(\)"),
        ({"n_hidden": [8, 0]}, r"n_hidden must be positive widths, but got \(8, 0\)"),
        ({"n_latent": 0}, "n_latent=0 must be positive"),
        ({"latent_l1": -1e-9}, "latent_l1=-1e-09 must not be negative"),
        ({"latent_l1": np.nan}, "latent_l1=nan must not be negative"),
        ({"input_dropout_rate": 1.0}, "input_dropout_rate=1.0 must be at least 0 and below 1"),
        ({"decoder_dropout_rate": -0.1}, "decoder_dropout_rate=-0.1 must be at least 0 and below 1"),
    ],
    ids=str,
)
def test_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DeepCellStateModule(**{"n_genes": 5, "n_cell_types": 2, "n_hidden": (4,), "n_latent": 2} | options)
