"""Encoders and decoder: their layers, their size, and what they compute, derived again with numpy."""

import numpy as np
import pytest
import torch
from torch import nn

from transverse.xtransfercdr import XTransferCDRModule
from transverse.xtransfercdr._networks import ResidualBlock, hidden_layer, make_decoder, make_encoder

REFERENCE = {"n_genes": 2000, "n_hidden": (1024, 512, 256), "n_latent": 128, "n_residual_blocks": 3}


def n_parameters(module):
    return sum(p.numel() for p in module.parameters())


def linear(n_in, n_out):
    return n_in * n_out + n_out


def hidden(n_in, n_out):
    """A linear map, and the scale and shift of batch normalisation."""
    return linear(n_in, n_out) + 2 * n_out


def leaves(module):
    return [m for m in module.modules() if not list(m.children())]


def types(module):
    return [type(m).__name__ for m in leaves(module)]


def shapes(module):
    return [(m.in_features, m.out_features) for m in leaves(module) if isinstance(m, nn.Linear)]


def scrambled(module, seed=0):
    """The module in double precision and evaluation mode, with nothing left at 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double().eval()
    for m in module.modules():
        if isinstance(m, nn.BatchNorm1d):
            for tensor in (m.weight.data, m.bias.data, m.running_mean):
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
            m.running_var.copy_(torch.rand(m.running_var.shape, generator=generator) + 0.5)
    return module


def by_hand(layers, x):
    """Linear maps, batch normalisation, dropout and ReLU of a sequence, in evaluation mode."""
    for layer in layers:
        if isinstance(layer, nn.Linear):
            x = x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        elif isinstance(layer, nn.BatchNorm1d):
            scale = layer.weight.detach().numpy() / np.sqrt(layer.running_var.numpy() + layer.eps)
            x = (x - layer.running_mean.numpy()) * scale + layer.bias.detach().numpy()
        elif isinstance(layer, nn.ReLU):
            x = np.maximum(x, 0)
        else:
            assert isinstance(layer, nn.Dropout)
    return x


# ---- size


def test_size_of_the_reference():
    module = XTransferCDRModule(**REFERENCE)
    blocks = 3 * 2 * hidden(512, 512)
    encoder = hidden(2000, 1024) + hidden(1024, 512) + blocks + hidden(512, 256) + linear(256, 128)
    decoder = hidden(128, 256) + hidden(256, 512) + blocks + hidden(512, 1024) + linear(1024, 2000)
    assert n_parameters(module.basal_encoder) == n_parameters(module.perturbation_encoder) == encoder
    assert n_parameters(module.decoder) == decoder
    assert n_parameters(module) == 2 * encoder + decoder
    assert round(encoder / 1e6, 2) == 4.32
    assert round(n_parameters(module) / 1e6, 2) == 12.97


def test_size_of_the_papers_plain_stack():
    module = XTransferCDRModule(**REFERENCE, architecture="plain")
    # no blocks, and the latent layer is a hidden one
    encoder = hidden(2000, 1024) + hidden(1024, 512) + hidden(512, 256) + hidden(256, 128)
    decoder = hidden(128, 256) + hidden(256, 512) + hidden(512, 1024) + linear(1024, 2000)
    assert n_parameters(module.basal_encoder) == n_parameters(module.perturbation_encoder) == encoder
    assert n_parameters(module.decoder) == decoder
    assert n_parameters(module) == 2 * encoder + decoder


def test_encoders_share_no_weights():
    module = XTransferCDRModule(10, (8,), 4)
    parameters = [p for part in module.children() for p in part.parameters()]
    assert len({p.data_ptr() for p in parameters}) == len(parameters)
    assert not torch.equal(module.basal_encoder[0][0].weight, module.perturbation_encoder[0][0].weight)


# ---- layers


HIDDEN = ["Linear", "BatchNorm1d", "Dropout", "ReLU"]


def test_order_of_layers():
    options = {"n_hidden": (9, 8, 7), "n_latent": 5, "n_residual_blocks": 3, "dropout_rate": 0.3}
    encoder = make_encoder(12, architecture="residual", **options)
    decoder = make_decoder(n_output=12, architecture="residual", activation="relu", **options)
    assert types(hidden_layer(3, 2, 0.3)) == HIDDEN
    # neither batch normalisation nor dropout on what is latent, and on what is decoded
    assert types(encoder) == types(decoder) == HIDDEN * 9 + ["Linear", "ReLU"]
    assert [type(m).__name__ for m in encoder] == ["Sequential"] * 2 + ["ResidualBlock"] * 3 + [
        "Sequential",
        "Linear",
        "ReLU",
    ]
    assert {m.p for m in leaves(encoder) if isinstance(m, nn.Dropout)} == {0.3}
    plain = make_encoder(12, architecture="plain", **options)
    assert types(plain) == HIDDEN * 4
    assert types(make_decoder(n_output=12, architecture="plain", activation="relu", **options)) == HIDDEN * 3 + [
        "Linear",
        "ReLU",
    ]


@pytest.mark.parametrize("architecture", ["residual", "plain"])
@pytest.mark.parametrize("n_blocks", [0, 1, 3])
@pytest.mark.parametrize("n_hidden", [(9,), (9, 8), (9, 8, 7), (9, 8, 7, 6)], ids=str)
def test_decoder_mirrors_encoder(n_hidden, n_blocks, architecture):
    encoder = make_encoder(12, n_hidden, 5, n_blocks, 0.1, architecture)
    decoder = make_decoder(5, n_hidden, 12, n_blocks, 0.1, architecture, "relu")
    assert shapes(decoder) == [(n_out, n_in) for n_in, n_out in reversed(shapes(encoder))]
    # blocks follow the second hidden layer, or the only one
    width = n_hidden[min(2, len(n_hidden)) - 1]
    blocks = [(width, width)] * 2 * (n_blocks if architecture == "residual" else 0)
    at = min(2, len(n_hidden))
    widths = list(zip((12, *n_hidden), (*n_hidden, 5), strict=True))
    assert shapes(encoder) == widths[:at] + blocks + widths[at:]
    x = torch.rand(4, 12)
    assert encoder.eval()(x).shape == (4, 5)
    assert decoder.eval()(encoder(x)).shape == (4, 12)


# ---- values


def test_residual_block_adds_its_input():
    block = scrambled(ResidualBlock(6, 0.5))
    h = np.random.default_rng(0).normal(size=(7, 6))
    v = by_hand(leaves(block), h)
    assert (v > 0).any() and (v >= 0).all()
    output = block(torch.from_numpy(h)).detach().numpy()
    np.testing.assert_allclose(output, v + h, atol=1e-12)
    # nothing follows the sum
    assert output.min() < 0


@pytest.mark.parametrize("architecture", ["residual", "plain"])
def test_networks_by_hand(architecture):
    module = scrambled(
        XTransferCDRModule(12, (9, 8, 7), 5, n_residual_blocks=2, architecture=architecture, output_activation="linear")
    )
    x = np.random.default_rng(1).normal(size=(6, 12))

    def expected(network, x):
        for part in network:
            if not isinstance(part, nn.Identity):
                y = by_hand(leaves(part), x)
                x = x + y if isinstance(part, ResidualBlock) else y
        return x

    outputs = module.inference(torch.from_numpy(x))
    basal, effect = expected(module.basal_encoder, x), expected(module.perturbation_encoder, x)
    np.testing.assert_allclose(outputs["basal"].detach().numpy(), basal, atol=1e-10)
    np.testing.assert_allclose(outputs["effect"].detach().numpy(), effect, atol=1e-10)
    decoded = module.generative(torch.from_numpy(basal + effect))["x"].detach().numpy()
    np.testing.assert_allclose(decoded, expected(module.decoder, basal + effect), atol=1e-10)


@pytest.mark.parametrize("architecture", ["residual", "plain"])
def test_what_is_latent_is_not_negative(architecture):
    module = XTransferCDRModule(12, (9, 8), 5, architecture=architecture)
    x = 10 * torch.randn(50, 12)
    for mode in (True, False):
        outputs = module.train(mode).inference(x)
        assert (outputs["basal"] >= 0).all() and (outputs["basal"] > 0).any()
        assert (outputs["effect"] >= 0).all() and (outputs["effect"] > 0).any()


def test_output_activations():
    z = 5 * torch.randn(40, 5)
    outputs = {}
    for activation in ("relu", "softplus", "linear"):
        torch.manual_seed(0)
        module = XTransferCDRModule(12, (9,), 5, output_activation=activation).eval()
        outputs[activation] = module.generative(z)["x"].detach().numpy()
    assert outputs["linear"].min() < 0
    np.testing.assert_array_equal(outputs["relu"], np.maximum(outputs["linear"], 0))
    np.testing.assert_allclose(outputs["softplus"], np.logaddexp(outputs["linear"], 0), atol=1e-5)
    assert (outputs["softplus"] > 0).all()
