import numpy as np
import pytest
import torch
from scvi.nn import Encoder, FCLayers
from torch import nn

from transverse.nn import encoder_inputs, latent_relevance, run_layers

N_CELLS, N_LATENT = 24, 4
NORMS = ["none", "batch", "layer"]


def make_encoder(norm="none", n_input=8, n_cat_list=None, n_layers=2, inject_covariates=False, **kwargs):
    """A scvi encoder in double precision, with non-trivial biases and running statistics."""
    torch.manual_seed(0)
    encoder = Encoder(
        n_input,
        N_LATENT,
        n_cat_list=n_cat_list,
        n_layers=n_layers,
        n_hidden=16,
        use_batch_norm=norm == "batch",
        use_layer_norm=norm == "layer",
        inject_covariates=inject_covariates,
        **kwargs,
    ).double()
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    if norm == "batch":
        for _ in range(200):
            encoder(make_genes(n_input, 64), *(torch.randint(n, (64, 1)) for n in n_cat_list or []))
    return encoder.eval()


def make_genes(n_genes, n_cells=N_CELLS):
    return torch.log1p(torch.poisson(2 * torch.rand(n_cells, n_genes, dtype=torch.float64)))


def linear_maps(layers, mean_encoder):
    """Weights (from, to) and biases as numpy arrays."""
    linear = [m for block in layers.fc_layers for m in block if isinstance(m, nn.Linear)] + [mean_encoder]
    return [
        (m.weight.detach().numpy().T, np.zeros(m.out_features) if m.bias is None else m.bias.detach().numpy())
        for m in linear
    ]


def equation_29(maps, x, gamma, d):
    """Relevance of the inputs ``x`` of one cell for latent dimension ``d`` of a ReLU network, and the latent mean."""
    activations = [x]
    for weight, bias in maps[:-1]:
        activations.append(np.maximum(activations[-1] @ weight + bias, 0))
    mean = activations[-1] @ maps[-1][0] + maps[-1][1]
    relevance = np.where(np.arange(len(mean)) == d, mean, 0)
    for (weight, _), a in zip(reversed(maps), reversed(activations), strict=True):
        share = a[:, None] * (weight + gamma * np.maximum(weight, 0))
        total = share.sum(0)
        below = np.zeros(len(a))
        for k in np.flatnonzero(relevance):
            below += share[:, k] / total[k] * relevance[k]
        relevance = below
    return relevance, mean[d]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("rule", "gamma"), [("gamma", 0.15), ("gamma", 1.0), ("epsilon", 0.0)])
def test_relevance_is_equation_29(bias, rule, gamma):
    torch.manual_seed(0)
    layers = FCLayers(6, 9, n_layers=2, n_hidden=9, use_batch_norm=False, inject_covariates=False, bias=bias).double()
    mean_encoder = nn.Linear(9, N_LATENT, bias=bias).double()
    x = make_genes(6, 12)
    result = latent_relevance(layers, mean_encoder, x, rule=rule, gamma=gamma, epsilon=1e-10).numpy()

    maps = linear_maps(layers, mean_encoder)
    *hidden, (weight, offset) = maps
    signs = set()
    for i, cell in enumerate(x.numpy()):
        for d in range(N_LATENT):
            expected, mean = equation_29(maps, cell, gamma, d)
            if mean < 0:
                # a negative mean is explained as the positive mean of the mirrored dimension
                mirrored, opposite = equation_29([*hidden, (-weight, -offset)], cell, gamma, d)
                assert opposite == -mean
                expected = -mirrored
            np.testing.assert_allclose(result[i, d], expected, rtol=1e-5, atol=1e-9)
            signs.add(np.sign(mean))
    assert signs >= {-1, 1}


def test_contributions_of_either_sign():
    torch.manual_seed(0)
    layers = FCLayers(
        5, 9, n_layers=2, n_hidden=9, use_batch_norm=False, inject_covariates=False, activation_fn=nn.LeakyReLU
    ).double()
    mean_encoder = nn.Linear(9, N_LATENT).double()
    x = torch.randn(12, 5, dtype=torch.float64)
    result = latent_relevance(layers, mean_encoder, x, gamma=0.3, epsilon=1e-12).numpy()

    maps = linear_maps(layers, mean_encoder)
    for i, cell in enumerate(x.numpy()):
        activations, outputs = [cell], []
        for weight, bias in maps:
            outputs.append(activations[-1] @ weight + bias)
            activations.append(np.where(outputs[-1] > 0, outputs[-1], 0.01 * outputs[-1]))
        relevance = np.diag(outputs[-1])
        for (weight, _), a, out in zip(reversed(maps), reversed(activations[:-1]), reversed(outputs), strict=True):
            z = a[:, None] * weight
            z += 0.3 * np.where(out > 0, np.maximum(z, 0), np.minimum(z, 0))
            relevance = relevance @ (z / z.sum(0)).T
        np.testing.assert_allclose(result[i], relevance, rtol=1e-5, atol=1e-8)


# without the emphasis on one sign sums come closer to zero, where the default stabiliser costs more than 2 %
@pytest.mark.parametrize(("rule", "epsilon"), [("gamma", 1e-6), ("epsilon", 1e-9)])
@pytest.mark.parametrize("norm", NORMS)
def test_relevance_is_conserved(norm, rule, epsilon):
    # the biases have no part in it: relevance starts at the mean, biases included, and none of it is lost
    encoder = make_encoder(norm, n_input=10, n_cat_list=[2, 1, 3])
    x = make_genes(10)
    x[:, -2:] = torch.randn(N_CELLS, 2)  # continuous covariates
    batch, other = torch.randint(2, (N_CELLS, 1)), torch.randint(3, (N_CELLS, 1))
    categories = (batch, torch.zeros_like(batch), other)
    with torch.no_grad():
        mean = encoder(x, *categories)[0]
    inputs = encoder_inputs(encoder.encoder, x, *categories)
    result = latent_relevance(encoder.encoder, encoder.mean_encoder, inputs, rule=rule, epsilon=epsilon)
    assert result.shape == (N_CELLS, N_LATENT, 15)
    assert result.isfinite().all() and not result.requires_grad
    clear = mean.abs() > 0.02
    assert clear.sum() > 0.7 * clear.numel()
    torch.testing.assert_close(result.sum(-1)[clear], mean[clear], rtol=0.01 if norm == "none" else 0.02, atol=0)


@pytest.mark.parametrize("activation", [nn.ReLU6, nn.LeakyReLU, nn.Softplus, nn.GELU, None])
def test_activations_pass_relevance_on(activation):
    kwargs = {"use_activation": False} if activation is None else {"activation_fn": activation}
    encoder = make_encoder(**kwargs)
    x = make_genes(8)
    result = latent_relevance(encoder.encoder, encoder.mean_encoder, x, epsilon=1e-9)
    torch.testing.assert_close(result.sum(-1), encoder(x)[0].detach(), rtol=0.01, atol=1e-3)


@pytest.mark.parametrize("bias", [True, False])
def test_batch_norm_is_merged_into_the_linear_map(bias):
    encoder = make_encoder("batch", bias=bias)
    merged = make_encoder("none")
    merged.mean_encoder = encoder.mean_encoder
    for block, plain in zip(encoder.encoder.fc_layers, merged.encoder.fc_layers, strict=True):
        linear, norm = block[0], block[1]
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        offset = (0 if linear.bias is None else linear.bias) - norm.running_mean
        plain[0].weight.data = linear.weight.data * scale.data[:, None]
        plain[0].bias.data = (offset * scale + norm.bias).data
    x = make_genes(8)
    result = latent_relevance(encoder.encoder, encoder.mean_encoder, x)
    torch.testing.assert_close(result, latent_relevance(merged.encoder, merged.mean_encoder, x), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("norm", NORMS)
def test_irrelevant_inputs_get_no_relevance(norm):
    encoder = make_encoder(norm)
    encoder.encoder.fc_layers[0][0].weight.data[:, 5] = 0
    x = make_genes(8)
    x[:, 2] = 0
    relevance = latent_relevance(encoder.encoder, encoder.mean_encoder, x)
    assert (relevance[..., [2, 5]] == 0).all()
    assert (relevance[x[:, 0] > 0][..., 0] != 0).any()


@pytest.mark.parametrize("norm", NORMS)
def test_the_gene_that_drives_a_dimension_comes_first(norm):
    encoder = make_encoder(norm, n_input=30)
    linear = [block[0] for block in encoder.encoder.fc_layers] + [encoder.mean_encoder]
    for module in linear:
        module.weight.data *= 0.05
    for module, (to, source) in zip(linear, [(3, 17), (7, 3), (2, 7)], strict=True):
        module.weight.data[to, source] = 2.0
    x = make_genes(30) + 0.5
    relevance = latent_relevance(encoder.encoder, encoder.mean_encoder, x).abs().mean(0)
    assert relevance[2].argmax() == 17
    assert relevance[2, 17] > 3 * relevance[2].sort().values[-2]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_works_without_gradients(mode, norm):
    encoder = make_encoder(norm, n_cat_list=[2]).requires_grad_(False)
    x, batch = make_genes(8), torch.randint(2, (N_CELLS, 1))
    expected = latent_relevance(encoder.encoder, encoder.mean_encoder, encoder_inputs(encoder.encoder, x, batch))
    with mode():
        inputs = encoder_inputs(encoder.encoder, x, batch)
        result = latent_relevance(encoder.encoder, encoder.mean_encoder, inputs)
        assert not torch.is_grad_enabled()
    assert not result.is_inference()
    torch.testing.assert_close(result, expected, rtol=0, atol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_modules_are_left_alone(norm):
    encoder = make_encoder(norm)
    x = make_genes(8)
    expected = latent_relevance(encoder.encoder, encoder.mean_encoder, x)
    encoder.train()
    encoder.encoder.fc_layers[1].eval()
    modes = [module.training for module in encoder.modules()]
    parameters = dict(encoder.named_parameters())
    state = {key: value.clone() for key, value in encoder.state_dict().items()}
    original = x.clone()

    # dropout and batch statistics play no part, whatever the caller's mode
    torch.testing.assert_close(latent_relevance(encoder.encoder, encoder.mean_encoder, x), expected, rtol=0, atol=0)

    assert [module.training for module in encoder.modules()] == modes
    assert all(parameters[name] is value for name, value in encoder.named_parameters())
    torch.testing.assert_close(dict(encoder.state_dict()), state, rtol=0, atol=0)
    assert all(value.grad is None and value.requires_grad for value in parameters.values())
    for module in encoder.modules():
        assert not (module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)
    assert torch.equal(x, original) and not x.requires_grad and x.grad is None


def test_single_precision_and_one_layer():
    encoder = make_encoder(n_layers=1).float()
    result = latent_relevance(encoder.encoder, encoder.mean_encoder, make_genes(8).float())
    assert result.dtype == torch.float32
    assert result.shape == (N_CELLS, N_LATENT, 8)


def test_encoder_inputs_are_what_the_first_layer_reads():
    encoder = make_encoder(n_cat_list=[2, 1, 3])
    x = make_genes(8)
    categories = [torch.randint(n, (N_CELLS, 1)) for n in (2, 1, 3)]
    inputs = encoder_inputs(encoder.encoder, x, *categories)
    assert inputs.shape == (N_CELLS, 13)
    assert torch.equal(inputs[:, 8:].sum(1), torch.full((N_CELLS,), 2.0, dtype=torch.float64))
    first = encoder.encoder.fc_layers[0]
    hidden = first[3](first[0](inputs))
    torch.testing.assert_close(run_layers(encoder.encoder, x, *categories, stop=1), hidden)
    torch.testing.assert_close(run_layers(encoder.encoder, x, *categories), encoder.encoder(x, *categories))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"rule": "zplus"}, "'gamma' or 'epsilon', not 'zplus'"),
        ({"gamma": -0.1}, "`gamma` must not be negative, but is -0.1"),
        ({"epsilon": 0.0}, "`epsilon` must be positive, but is 0.0"),
    ],
)
def test_wrong_settings(kwargs, message):
    encoder = make_encoder()
    with pytest.raises(ValueError, match=message):
        latent_relevance(encoder.encoder, encoder.mean_encoder, make_genes(8), **kwargs)


def test_inputs_without_covariates():
    encoder = make_encoder(n_cat_list=[2])
    with pytest.raises(ValueError, match=r"shape \(n_cells, 10\).*has shape \(24, 8\)"):
        latent_relevance(encoder.encoder, encoder.mean_encoder, make_genes(8))


def test_covariates_in_later_layers():
    encoder = make_encoder(n_cat_list=[2], inject_covariates=True)
    with pytest.raises(ValueError, match="first layer of the encoder only"):
        latent_relevance(encoder.encoder, encoder.mean_encoder, make_genes(10))
