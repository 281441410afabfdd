"""The loss: every term derived again with numpy, pair by pair, and where its gradient goes."""

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax

from transverse.xtransfercdr import XTransferCDRModule
from transverse.xtransfercdr._constants import COMBINATION, SAME_CONTEXT, SAME_PERTURBATION
from transverse.xtransfercdr._losses import masked_mse, orthogonality, similarity

N_GENES, N_LATENT = 12, 5
TERMS = ("reconstruction", "cross", "basal", "similarity", "orthogonality", "combination")
KINDS = {
    "same_context": [SAME_CONTEXT] * 4,
    "same_perturbation": [SAME_PERTURBATION] * 4,
    "combination": [COMBINATION] * 4,
    "mixed": [SAME_CONTEXT, COMBINATION, SAME_PERTURBATION, SAME_CONTEXT, SAME_PERTURBATION, COMBINATION, SAME_CONTEXT],
}


def make_module(seed=0, n_residual_blocks=1, **kwargs):
    """A small module in double precision and evaluation mode, none of whose batch normalisation is neutral."""
    torch.manual_seed(seed)
    options = {"dropout_rate": 0.0, "output_activation": "softplus"} | kwargs
    module = XTransferCDRModule(N_GENES, (10, 8), N_LATENT, n_residual_blocks, **options).double()
    for m in module.modules():
        if isinstance(m, torch.nn.BatchNorm1d):
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 1.5)
            m.bias.data.normal_()
        elif isinstance(m, torch.nn.Linear) and m.out_features == N_LATENT:
            # no latent unit is dead: what has no gradient must have none for a reason
            m.bias.data += 2
    return module.eval()


def only(**weights):
    """Weights of all terms, 0 but for those that are named."""
    return {f"{term}_weight": weights.get(term, 0.0) for term in TERMS}


def make_batch(kinds, has_control="all", seed=0):
    """A mini-batch as the data loader makes it: left, right, their controls, doubles."""
    rng = np.random.default_rng(seed)
    kinds = np.asarray(kinds)
    n = len(kinds)
    mask = {
        "all": np.ones(2 * n, dtype=bool),
        "none": np.zeros(2 * n, dtype=bool),
        # other pairs on the left than on the right
        "some": np.arange(2 * n) % 3 != 1,
    }[has_control]
    x = rng.gamma(1.0, size=(4 * n + (kinds == COMBINATION).sum(), N_GENES))
    return {
        "X": torch.from_numpy(x),
        "pair_kind": torch.from_numpy(kinds),
        "has_control": torch.from_numpy(mask),
    }


def swapped(batch):
    """The same pairs with left and right exchanged."""
    n = len(batch["pair_kind"])
    x = batch["X"]
    cells, controls, doubles = x[: 2 * n], x[2 * n : 4 * n], x[4 * n :]
    return {
        "X": torch.cat([cells.roll(n, 0), controls.roll(n, 0), doubles]),
        "pair_kind": batch["pair_kind"],
        "has_control": batch["has_control"].roll(n),
    }


def derived(module, batch, symmetric=False):
    """All terms, one pair at a time, from sub-networks that are called one by one."""

    def network(name):
        return lambda x: getattr(module, name)(torch.from_numpy(np.atleast_2d(x))).detach().numpy()[0]

    encode_basal, encode_effect, decode = (network(n) for n in ("basal_encoder", "perturbation_encoder", "decoder"))
    x, kinds, mask = (batch[key].numpy() for key in ("X", "pair_kind", "has_control"))
    n = len(kinds)
    terms = {term: [] for term in TERMS}
    doubles = iter(x[4 * n :])
    for i, kind in enumerate(kinds):
        a, b, control_a, control_b = (x[i + k * n] for k in range(4))
        basal_a, basal_b, effect_a, effect_b = encode_basal(a), encode_basal(b), encode_effect(a), encode_effect(b)

        def error(z, target):
            return np.mean((decode(z) - target) ** 2)

        terms["reconstruction"].append(error(basal_a + effect_a, a) + error(basal_b + effect_b, b))
        if kind == SAME_PERTURBATION:
            terms["cross"].append(error(basal_a + effect_b, a) + error(basal_b + effect_a, b))
            shared_a, shared_b = effect_a, effect_b
        else:
            terms["cross"].append(error(basal_b + effect_a, a) + error(basal_a + effect_b, b))
            shared_a, shared_b = basal_a, basal_b
        # over those that have one, of both sides
        terms["basal"] += [2 * error(basal_a, control_a)] if mask[i] else []
        terms["basal"] += [2 * error(basal_b, control_b)] if mask[i + n] else []
        divergence = rel_entr(softmax(shared_b), softmax(shared_a)).sum()
        if symmetric:
            divergence = (divergence + rel_entr(softmax(shared_a), softmax(shared_b)).sum()) / 2
        terms["similarity"].append(divergence)
        terms["orthogonality"].append((basal_a @ effect_a) ** 2 + (basal_b @ effect_b) ** 2)
        if kind == COMBINATION:
            terms["combination"].append(error(basal_a + effect_a + effect_b, next(doubles)))
    return {term: np.mean(values) if values else 0.0 for term, values in terms.items()}


def terms_of(output):
    return {term: float(output.extra_metrics.get(term, 0.0)) for term in TERMS}


# ---- terms and total


@pytest.mark.parametrize("symmetric", [False, True], ids=["one_way", "symmetric"])
@pytest.mark.parametrize("has_control", ["all", "some", "none"])
@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS)
def test_every_term_and_the_total(kinds, has_control, symmetric):
    weights = dict(zip(TERMS, (1.0, 2.0, 3.0, 5.0, 0.7, 11.0), strict=True))
    module = make_module(symmetric_similarity=symmetric, **only(**weights))
    batch = make_batch(kinds, has_control)
    expected = derived(module, batch, symmetric)
    *_, output = module(batch)
    assert (output.extra_metrics["combination"] != 0) == (COMBINATION in kinds)
    found = terms_of(output)
    for term in TERMS:
        np.testing.assert_allclose(found[term], expected[term], rtol=1e-10, err_msg=term)
    if has_control == "none":
        assert found["basal"] == 0
    np.testing.assert_allclose(output.loss.item(), sum(weights[t] * expected[t] for t in TERMS), rtol=1e-10)
    assert output.n_obs_minibatch == len(kinds)


def test_default_weights_are_the_references():
    module = make_module()
    batch = make_batch(KINDS["mixed"])
    *_, output = module(batch)
    terms = terms_of(output)
    expected = sum(terms.values()) - 0.5 * terms["orthogonality"]
    np.testing.assert_allclose(output.loss.item(), expected, rtol=1e-12)


@pytest.mark.parametrize("term", TERMS)
def test_a_weight_multiplies_its_term_alone(term):
    batch = make_batch(KINDS["mixed"], "some")
    *_, one = make_module()(batch)
    *_, three = make_module(**{f"{term}_weight": 3.0})(batch)
    *_, alone = make_module(**only(**{term: 1.0}))(batch)
    *_, without = make_module(**{f"{term}_weight": 0.0})(batch)
    value = terms_of(one)[term]
    default = 0.5 if term == "orthogonality" else 1.0
    np.testing.assert_allclose(alone.loss.item(), value, rtol=1e-12)
    np.testing.assert_allclose((three.loss - one.loss).item(), (3 - default) * value, rtol=1e-9)
    np.testing.assert_allclose((one.loss - without.loss).item(), default * value, rtol=1e-9)
    # all terms are watched, also those that are off
    assert terms_of(without) == terms_of(three) == terms_of(one)


@pytest.mark.parametrize("kind", [SAME_CONTEXT, SAME_PERTURBATION, COMBINATION])
def test_swapping_left_and_right(kind):
    batch = make_batch([kind] * 5, "some")
    module = make_module()
    *_, output = module(batch)
    *_, other = module(swapped(batch))
    terms, after = terms_of(output), terms_of(other)
    # the combination starts from the left basal state, and the divergence goes one way
    one_sided = {"similarity", "combination"} if kind == COMBINATION else {"similarity"}
    for term in TERMS:
        if term in one_sided:
            assert abs(terms[term] - after[term]) > 1e-6 * abs(terms[term])
        else:
            np.testing.assert_allclose(after[term], terms[term], rtol=1e-12, err_msg=term)
    module.symmetric_similarity = True
    *_, output = module(batch)
    *_, other = module(swapped(batch))
    np.testing.assert_allclose(terms_of(output)["similarity"], terms_of(other)["similarity"], rtol=1e-12)


def test_pairs_of_every_kind_count_the_same():
    """The loss of a mixed batch is the mean of the losses of its pairs."""
    kinds = KINDS["mixed"]
    batch = make_batch(kinds)
    module = make_module(combination_weight=0.0)
    *_, output = module(batch)
    n = len(kinds)
    single = []
    for i, kind in enumerate(kinds):
        rows = [i + k * n for k in range(4)]
        rows += [4 * n + kinds[:i].count(COMBINATION)] if kind == COMBINATION else []
        tensors = {
            "X": batch["X"][rows],
            "pair_kind": batch["pair_kind"][[i]],
            "has_control": torch.ones(2, dtype=torch.bool),
        }
        single.append(module(tensors)[-1].loss.item())
    np.testing.assert_allclose(output.loss.item(), np.mean(single), rtol=1e-10)


def test_what_is_watched():
    batch = make_batch(KINDS["mixed"], "some")
    module = make_module()
    inference, generative, output = module(batch)
    n = len(KINDS["mixed"])
    cells, decoded = batch["X"][: 2 * n].numpy(), generative["x"].detach().numpy()
    cross = np.mean((decoded[4 * n : 6 * n] - cells) ** 2)
    metrics = output.extra_metrics
    np.testing.assert_allclose(float(metrics["cross_r2"]), 1 - cross / cells.var(axis=0).mean(), rtol=1e-10)
    for name in ("basal", "effect"):
        norm = np.linalg.norm(inference[name].detach().numpy(), axis=1).mean()
        np.testing.assert_allclose(float(metrics[f"{name}_norm"]), norm, rtol=1e-10)
    for name, value in metrics.items():
        assert value.ndim == 0 and not value.requires_grad, name


# ---- the terms that are not reconstructions


def test_similarity_is_the_divergence_of_right_from_left():
    rng = np.random.default_rng(0)
    left, right = 3 * rng.normal(size=(2, 6, 5))
    p, q = softmax(left, axis=1), softmax(right, axis=1)
    forth, back = rel_entr(q, p).sum(axis=1).mean(), rel_entr(p, q).sum(axis=1).mean()
    assert abs(forth - back) > 0.1
    left, right = torch.from_numpy(left), torch.from_numpy(right)
    np.testing.assert_allclose(float(similarity(left, right)), forth, rtol=1e-12)
    np.testing.assert_allclose(float(similarity(right, left)), back, rtol=1e-12)
    np.testing.assert_allclose(float(similarity(left, right, symmetric=True)), (forth + back) / 2, rtol=1e-12)
    # the softmax sees differences between units alone
    np.testing.assert_allclose(float(similarity(left, left + 3)), 0, atol=1e-12)
    assert float(similarity(left[:0], right[:0])) == 0
    assert float(similarity(1e4 * left, -1e4 * right)) < np.inf


def test_orthogonality_is_the_squared_scalar_product():
    basal, effect = np.random.default_rng(0).gamma(1.0, size=(2, 6, 5))
    expected = np.mean([(s @ p) ** 2 for s, p in zip(basal, effect, strict=True)])
    np.testing.assert_allclose(float(orthogonality(torch.from_numpy(basal), torch.from_numpy(effect))), expected)
    disjoint = torch.tensor([[1.0, 2.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 3.0, 4.0]])
    assert float(orthogonality(*disjoint)) == 0


def test_masked_error():
    predicted, observed = np.random.default_rng(0).normal(size=(2, 6, 5))
    mask = np.array([True, False, False, True, True, False])
    expected = np.mean((predicted[mask] - observed[mask]) ** 2)
    # what is masked does not count, whatever it is
    observed[~mask] = np.nan
    predicted = torch.from_numpy(predicted).requires_grad_()
    error = masked_mse(predicted, torch.from_numpy(observed), torch.from_numpy(mask))
    np.testing.assert_allclose(error.item(), expected)
    error.backward()
    assert (predicted.grad[torch.from_numpy(mask)] != 0).all() and (predicted.grad[~torch.from_numpy(mask)] == 0).all()
    assert float(masked_mse(predicted, torch.from_numpy(observed), torch.zeros(6, dtype=torch.bool))) == 0


def test_cells_without_a_control_do_not_count():
    batch = make_batch(KINDS["mixed"], "some")
    module = make_module()
    n = len(KINDS["mixed"])
    other = batch | {"X": batch["X"].clone()}
    without = torch.cat([torch.zeros(2 * n, dtype=torch.bool), ~batch["has_control"]])
    other["X"][: 4 * n][without] = 1e6
    assert module(other)[-1].loss.item() == module(batch)[-1].loss.item()


# ---- what is put together


def support(outputs, row):
    """Rows of S and of P, by pair and side, that a decoded row depends on."""
    generative, basal, effect = outputs
    grads = torch.autograd.grad(generative[row].sum(), (basal, effect), retain_graph=True, allow_unused=True)
    return [set() if g is None else set(g.abs().sum(dim=1).nonzero().flatten().tolist()) for g in grads]


@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS)
def test_which_basal_states_and_effects_are_decoded_together(kinds):
    module = make_module()
    batch = make_batch(kinds)
    n = len(kinds)
    inference = module.inference(**module._get_inference_input(batch))
    z = module._get_generative_input(batch, inference)["z"]
    outputs = module.generative(z)["x"], inference["basal"], inference["effect"]
    doubles = [i for i, kind in enumerate(kinds) if kind == COMBINATION]
    assert len(z) == 6 * n + len(doubles)
    for i, kind in enumerate(kinds):
        for own, other in ((i, i + n), (i + n, i)):
            assert support(outputs, own) == [{own}, set()]
            assert support(outputs, 2 * n + own) == [{own}, {own}]
            # the left target needs the right basal state, or the right effect
            crossed = [{own}, {other}] if kind == SAME_PERTURBATION else [{other}, {own}]
            assert support(outputs, 4 * n + own) == crossed
    for row, i in enumerate(doubles):
        assert support(outputs, 6 * n + row) == [{i}, {i, i + n}]


# ---- noise


def spy(module):
    """Inputs of the sub-networks, by name, as they are called."""
    seen = {}
    for name in ("basal_encoder", "perturbation_encoder", "decoder"):
        getattr(module, name).register_forward_pre_hook(
            lambda _, inputs, name=name: seen.setdefault(name, inputs[0].detach().clone())
        )
    return seen


def test_no_noise_in_evaluation():
    module = make_module()
    seen = spy(module)
    batch = make_batch(KINDS["mixed"])
    inference, _, output = module(batch)
    cells = batch["X"][: 2 * len(KINDS["mixed"])]
    assert torch.equal(seen["basal_encoder"], cells) and torch.equal(seen["perturbation_encoder"], cells)
    assert torch.equal(inference["basal"], inference["noisy_basal"])
    assert torch.equal(inference["effect"], inference["noisy_effect"])
    assert module(batch)[-1].loss.item() == output.loss.item()


def test_noise_in_training():
    module = make_module(input_noise=0.2, latent_noise=0.05).train()
    seen = spy(module)
    batch = make_batch([SAME_CONTEXT] * 300)
    inference, generative, output = module(batch)
    n, cells = 300, batch["X"][:600]
    # one draw for both encoders
    assert torch.equal(seen["basal_encoder"], seen["perturbation_encoder"])
    noise = (seen["basal_encoder"] - cells).numpy()
    np.testing.assert_allclose([noise.mean(), noise.std()], [0, 0.2], atol=0.01)
    for name in ("basal", "effect"):
        noise = (inference[f"noisy_{name}"] - inference[name]).detach().numpy()
        np.testing.assert_allclose([noise.mean(), noise.std()], [0, 0.05], atol=0.003)
    # what is decoded has the noise, and what is compared with has not
    decoded = generative["x"].detach().numpy()
    basal, effect = (inference[name].detach().numpy() for name in ("basal", "effect"))
    terms = terms_of(output)
    np.testing.assert_allclose(terms["reconstruction"], 2 * np.mean((decoded[2 * n : 4 * n] - cells.numpy()) ** 2))
    np.testing.assert_allclose(terms["orthogonality"], 2 * np.mean((basal * effect).sum(axis=1) ** 2))
    divergence = rel_entr(softmax(basal[n:], axis=1), softmax(basal[:n], axis=1)).sum(axis=1).mean()
    np.testing.assert_allclose(terms["similarity"], divergence)
    # every call draws anew
    assert not torch.equal(module.inference(cells)["noisy_basal"], inference["noisy_basal"])


def test_the_same_draw_is_decoded_everywhere():
    module = make_module().train()
    kinds = KINDS["mixed"]
    n = len(kinds)
    seen = spy(module)
    inference, *_ = module(make_batch(kinds))
    basal, effect, z = inference["noisy_basal"], inference["noisy_effect"], seen["decoder"]
    left, right = slice(0, n), slice(n, 2 * n)
    swap = torch.tensor(kinds)[:, None] == SAME_PERTURBATION
    doubles = torch.tensor(kinds) == COMBINATION
    expected = [
        basal,
        basal + effect,
        torch.where(swap, basal[left] + effect[right], basal[right] + effect[left]),
        torch.where(swap, basal[right] + effect[left], basal[left] + effect[right]),
        (basal[left] + effect[left] + effect[right])[doubles],
    ]
    # in one pass, for batch normalisation
    torch.testing.assert_close(z, torch.cat(expected), rtol=0, atol=1e-12)


def test_noise_can_be_off():
    module = make_module(input_noise=0.0, latent_noise=0.0).train()
    seen = spy(module)
    batch = make_batch(KINDS["mixed"])
    inference, *_ = module(batch)
    assert torch.equal(seen["basal_encoder"], batch["X"][: 2 * len(KINDS["mixed"])])
    assert torch.equal(inference["noisy_basal"], inference["basal"])
    assert torch.equal(inference["noisy_effect"], inference["effect"])


# ---- gradients


def gradients(module, batch):
    """Which sub-networks get a gradient, and that of S and P, by cell."""
    module.zero_grad()
    inference = module.inference(**module._get_inference_input(batch))
    for name in ("basal", "effect"):
        inference[name].retain_grad()
    generative = module.generative(**module._get_generative_input(batch, inference))
    module.loss(batch, inference, generative).loss.backward()
    parts = {
        name
        for name, part in module.named_children()
        if any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())
    }
    grads = (inference[name].grad for name in ("basal", "effect"))
    return parts, *(np.zeros(len(inference["basal"])) if g is None else g.abs().sum(dim=1).numpy() for g in grads)


BASAL, EFFECT, DECODER = "basal_encoder", "perturbation_encoder", "decoder"


@pytest.mark.parametrize(
    ("term", "kinds", "parts"),
    [
        *[(term, kinds, {BASAL, EFFECT, DECODER}) for term in ("reconstruction", "cross") for kinds in KINDS],
        *[("basal", kinds, {BASAL, DECODER}) for kinds in KINDS],
        ("similarity", "same_context", {BASAL}),
        ("similarity", "combination", {BASAL}),
        ("similarity", "same_perturbation", {EFFECT}),
        ("similarity", "mixed", {BASAL, EFFECT}),
        *[("orthogonality", kinds, {BASAL, EFFECT}) for kinds in KINDS],
        ("combination", "combination", {BASAL, EFFECT, DECODER}),
        ("combination", "mixed", {BASAL, EFFECT, DECODER}),
    ],
)
def test_what_a_term_alone_trains(term, kinds, parts):
    module = make_module(**only(**{term: 1.0}))
    assert gradients(module, make_batch(KINDS[kinds]))[0] == parts


@pytest.mark.parametrize("term", TERMS)
def test_an_ablated_term_gives_no_gradient(term):
    """The gradient without a term is that of the others."""
    batch = make_batch(KINDS["mixed"])
    others = {other: 1.0 for other in TERMS if other != term}

    def gradient(**weights):
        module = make_module(**only(**weights))
        module(batch)[-1].loss.backward()
        return torch.cat(
            [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in module.parameters()]
        )

    full, rest, alone = gradient(**others, **{term: 1.0}), gradient(**others), gradient(**{term: 1.0})
    assert alone.norm() > 0
    torch.testing.assert_close(full - rest, alone, rtol=1e-8, atol=1e-9)


def test_an_ablated_term_may_be_infinite():
    module = make_module(orthogonality_weight=0.0)
    batch = make_batch(KINDS["mixed"])
    inference = module.inference(**module._get_inference_input(batch))
    generative = module.generative(**module._get_generative_input(batch, inference))
    huge = {name: 1e160 * tensor for name, tensor in inference.items()}
    output = module.loss(batch, huge, generative)
    assert torch.isinf(output.extra_metrics["orthogonality"])
    assert torch.isfinite(output.loss)


def test_similarity_trains_what_the_partners_share():
    kinds = np.array(KINDS["mixed"])
    _, basal, effect = gradients(make_module(**only(similarity=1.0)), make_batch(kinds))
    swaps_effect = np.tile(kinds == SAME_PERTURBATION, 2)
    np.testing.assert_array_equal(basal > 0, ~swaps_effect)
    np.testing.assert_array_equal(effect > 0, swaps_effect)


def test_basal_term_trains_cells_with_a_control():
    batch = make_batch(KINDS["mixed"], "some")
    _, basal, effect = gradients(make_module(**only(basal=1.0)), batch)
    np.testing.assert_array_equal(basal > 0, batch["has_control"].numpy())
    assert (effect == 0).all()
    # without any the term is a constant, beside others that are not
    module = make_module(**only(basal=1.0, reconstruction=1.0))
    parts, *_ = gradients(module, make_batch(KINDS["mixed"], "none"))
    assert parts == {BASAL, EFFECT, DECODER}


def test_combination_term_trains_both_effects_and_the_left_basal_state():
    kinds = np.array(KINDS["mixed"])
    _, basal, effect = gradients(make_module(**only(combination=1.0)), make_batch(kinds))
    double = kinds == COMBINATION
    np.testing.assert_array_equal(basal > 0, np.concatenate([double, np.zeros_like(double)]))
    np.testing.assert_array_equal(effect > 0, np.tile(double, 2))


@pytest.mark.parametrize(
    ("weights", "partners_meet"),
    [
        ({"reconstruction": 1.0, "basal": 1.0, "orthogonality": 1.0}, False),
        ({"cross": 1.0}, True),
        ({"similarity": 1.0}, True),
    ],
    ids=["without_cross", "cross", "similarity"],
)
@pytest.mark.parametrize("kinds", ["same_context", "same_perturbation"])
def test_partners_meet_in_cross_and_similarity_alone(kinds, weights, partners_meet):
    """What a cell is taught depends on its partner's profile only where something is swapped or compared."""
    module = make_module(**only(**weights))
    batch = make_batch(KINDS[kinds])
    other = batch | {"X": batch["X"].clone()}
    n = len(KINDS[kinds])
    other["X"][n] += 1.0  # the right cell of the first pair
    before, after = gradients(module, batch)[1:], gradients(module, other)[1:]
    left_changed = any(abs(b[0] - a[0]) > 1e-9 for b, a in zip(before, after, strict=True))
    assert left_changed == partners_meet
    for b, a in zip(before, after, strict=True):  # other pairs never know
        np.testing.assert_allclose(b[1:n], a[1:n], atol=1e-12)
        np.testing.assert_allclose(b[n + 1 :], a[n + 1 :], atol=1e-12)


@pytest.mark.parametrize("crossed", [False, True])
@pytest.mark.parametrize("kind", [SAME_CONTEXT, SAME_PERTURBATION])
def test_a_cells_error_reaches_its_partner_through_the_cross_term_alone(kind, crossed):
    n = 3
    module = make_module(**only(reconstruction=1.0, cross=float(crossed)))
    batch = make_batch([kind] * n)
    inference = module.inference(**module._get_inference_input(batch))
    for name in ("basal", "effect"):
        inference[name].retain_grad()
    generative = module.generative(**module._get_generative_input(batch, inference))
    # right cells that are reconstructed without error learn nothing of it
    target = batch["X"].clone()
    target[n : 2 * n] = generative["x"][3 * n : 4 * n].detach()
    module.loss(batch | {"X": target}, inference, generative).loss.backward()
    grads = {name: inference[name].grad.abs().sum(dim=1) for name in ("basal", "effect")}
    swapped, kept = ("effect", "basal") if kind == SAME_PERTURBATION else ("basal", "effect")
    assert (grads[swapped][:n] > 0).all() and (grads[kept][:n] > 0).all()
    # only the left cell's crossed reconstruction needs this part of the right one
    assert ((grads[swapped][n:] > 0) == crossed).all()
    assert ((grads[kept][n:] > 0) == crossed).all()


def test_controls_and_doubles_are_never_encoded():
    module = make_module()
    seen = spy(module)
    batch = make_batch(KINDS["mixed"])
    module(batch)
    assert len(seen["basal_encoder"]) == len(seen["perturbation_encoder"]) == 2 * len(KINDS["mixed"])
