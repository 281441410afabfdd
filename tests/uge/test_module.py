"""The module: every term of the loss derived again from its own outputs, the parts of the network, and what is hidden."""

import itertools

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from transverse.uge import PRESETS, UGEModule
from transverse.uge._losses import correlation, elastic_similarity, gene_alignment
from transverse.uge._module import LOSSES
from transverse.uge._networks import GeneVectors, ReactomeHead, SampleDecoder, SampleEncoder

from .conftest import build

GENE_SPECIES = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 0])
N_ORGANS, N_DRUGS, N_LATENT, N_HIDDEN = 3, 3, 6, 8  # drugs with the control
N_ENTRIES = N_ORGANS * (N_DRUGS - 1) + N_ORGANS + 1
SAMPLE_TERMS = ("masked", "sample", "organ", "drug", "elastic")
DEFAULT = dict.fromkeys(LOSSES, 1.0) | {"map": 0.1}
WEIGHTS = dict(zip(LOSSES, (1.5, 0.5, 2.0, 3.0, 0.7, 0.25, 1.2), strict=True))


def make(seed=0, gene_species=GENE_SPECIES, **kwargs):
    """A small module in double precision and evaluation mode, of which no part is neutral."""
    torch.manual_seed(seed)
    sizes = {"n_organs": N_ORGANS, "n_drugs": N_DRUGS, "n_hidden": N_HIDDEN, "n_layers": 1, "n_heads": 2}
    module = UGEModule(gene_species, **{**sizes, "n_latent": N_LATENT, "dropout_rate": 0.0} | kwargs).double()
    for parameter in module.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return module.train()


def make_samples(sizes=((0, 4, 3), (1, 3, 4), (2, 2, 2)), unlabelled=1, seed=0, n_bins=None, conditions=None):
    """Blocks of samples: species, samples and tokens of each; ``unlabelled`` of each species have no labels."""
    rng = np.random.default_rng(seed)
    blocks = []
    for species, n, n_tokens in sizes:
        organ, drug = rng.integers(N_ORGANS, size=n), rng.integers(N_DRUGS, size=n)
        organ[:unlabelled] = -1
        drug[n - unlabelled :] = -1
        block = {
            "species": torch.tensor(species),
            "tokens": torch.from_numpy(rng.choice(np.flatnonzero(GENE_SPECIES == species), n_tokens, replace=False)),
            "values": torch.from_numpy(rng.normal(size=(n, n_tokens))),
            "organ": torch.from_numpy(organ),
            "drug": torch.from_numpy(drug),
        }
        if n_bins is not None:
            block["bins"] = torch.from_numpy(rng.integers(n_bins, size=(n, n_tokens)))
        if conditions is not None:
            block["conditions"] = torch.from_numpy(np.column_stack([rng.integers(k, size=n) for k in conditions]))
        blocks.append(block)
    return blocks


def make_genes(sizes=((0, 5), (1, 4), (2, 4)), seed=0, n_entries=N_ENTRIES):
    """Blocks of genes with features, of which one entry is missing in each species, and some others."""
    rng = np.random.default_rng(seed)
    blocks = []
    for species, n in sizes:
        features = rng.normal(size=(n, n_entries))
        features[:, species] = np.nan
        features[rng.random(features.shape) < 0.05] = np.nan
        blocks.append(
            {
                "species": torch.tensor(species),
                "tokens": torch.from_numpy(rng.choice(np.flatnonzero(GENE_SPECIES == species), n, replace=False)),
                "values": torch.from_numpy(features),
            }
        )
    return blocks


def make_batch(**kwargs):
    return {"samples": make_samples(**kwargs), "genes": make_genes()}


def run(module, batch):
    """Outputs of the encoder, of what reads it, and the loss; always with the same values hidden."""
    torch.manual_seed(0)
    inference = module.inference(**module._get_inference_input(batch))
    generative = module.generative(**module._get_generative_input(batch, inference))
    return inference, generative, module.loss(batch, inference, generative)


def numpy_of(tensor):
    return tensor.detach().numpy()


def vectors_of(module, block):
    """Gene vectors of a block, from the weights."""
    s = int(block["species"])
    projection = module.genes.projections[s]
    embedding = numpy_of(module.genes.embedding.weight)[block["tokens"]]
    return embedding @ numpy_of(projection.weight).T + numpy_of(projection.bias)


def vectors_of_conditions(head):
    """The vector of every entry of the head: organ by organ and in it drug by drug, organs, the level."""
    drug, organ, both = numpy_of(head.drug)[0], numpy_of(head.organ)[:, 0], numpy_of(head.interaction)
    changes = [drug[k] + organ[o] + both[o, k] for o in range(len(organ)) for k in range(len(drug))]
    return np.array([*changes, *numpy_of(head.profile), *numpy_of(head.level)])


def cross_entropy(scores, labels):
    losses = [-log_softmax(row)[label] for row, label in zip(scores, labels, strict=True) if label >= 0]
    return np.mean(losses) if losses else 0.0


def derived(module, batch, inference, generative):
    """All terms with numpy, value by value."""
    terms = {}
    if samples := batch.get("samples"):
        masked, all_values = [], []
        for block, at, of_genes, of_sample in zip(
            samples, inference["hidden"], generative["masked"], generative["sample"], strict=True
        ):
            x = block["values"].numpy()
            for i, j in np.ndindex(x.shape):
                all_values.append((numpy_of(of_sample)[i, j] - x[i, j]) ** 2)
                if at is not None and at[i, j]:
                    masked.append((numpy_of(of_genes)[i, j] - x[i, j]) ** 2)
        if masked:
            terms["masked"] = np.mean(masked)
        terms["sample"] = np.mean(all_values)
        z = torch.cat(inference["z"])
        for key in ("organ", "drug"):
            scores = numpy_of(getattr(module, f"{key}_head")(z))
            terms[key] = cross_entropy(scores, np.concatenate([block[key].numpy() for block in samples]))
        z = numpy_of(z)
        z = z / np.linalg.norm(z, axis=1, keepdims=True)
        cosines = np.maximum((z @ z.T)[~np.eye(len(z), dtype=bool)], 0)
        terms["elastic"] = -np.mean((cosines - 0.3) ** 2)
    if genes := batch.get("genes"):
        head = vectors_of_conditions(module.reactome)
        z = [vectors_of(module, block) for block in genes]
        features = [block["values"].numpy() for block in genes]
        n_entries = features[0].shape[1]
        squares = sum(
            (10.0 if name == "organ" else 1.0) * (numpy_of(p) ** 2).sum()
            for name, p in module.reactome.named_parameters()
        )
        of_species = [
            np.nanmean((x @ head.T - f) ** 2) + 0.1 * np.mean((x**2).sum(axis=1)) / n_entries
            for x, f in zip(z, features, strict=True)
        ]
        terms["reactome"] = np.mean(of_species) + 0.1 * squares / n_entries
        if len(genes) > 1:
            n_changes = N_ORGANS * (N_DRUGS - 1)
            pairs = []
            for i, j in itertools.combinations(range(len(genes)), 2):
                r = correlation(*(torch.from_numpy(features[k][:, :n_changes]) for k in (i, j)))
                pairs.append(gene_alignment(torch.from_numpy(z[i]), torch.from_numpy(z[j]), r).item())
            terms["map"] = np.mean(pairs)
    return terms


def assert_terms(output, expected):
    assert output.extra_metrics.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(output.extra_metrics[name].item(), value, rtol=1e-9, err_msg=name)


# ---- terms and total


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("unlabelled", [0, 1, 2])
def test_every_term_and_the_total(training, unlabelled):
    module = make(weights=WEIGHTS).train(training)
    batch = make_batch(unlabelled=unlabelled)
    inference, generative, output = run(module, batch)
    expected = derived(module, batch, inference, generative)
    assert expected.keys() == set(LOSSES) - (set() if training else {"masked"})  # nothing is hidden but in training
    assert_terms(output, expected)
    np.testing.assert_allclose(output.loss.item(), sum(WEIGHTS[name] * expected[name] for name in expected), rtol=1e-9)
    assert output.n_obs_minibatch == 9
    assert all(not value.requires_grad and value.ndim == 0 for value in output.extra_metrics.values())


def test_default_weights():
    *_, output = run(make(), make_batch())
    expected = sum(DEFAULT[name] * value.item() for name, value in output.extra_metrics.items())
    np.testing.assert_allclose(output.loss.item(), expected, rtol=1e-12)


@pytest.mark.parametrize("term", LOSSES)
def test_a_weight_multiplies_its_term_alone(term):
    batch = make_batch()
    *_, one = run(make(), batch)
    *_, three = run(make(weights={term: 3.0}), batch)
    *_, without = run(make(weights={term: 0.0}), batch)
    *_, alone = run(make(weights=dict.fromkeys(LOSSES, 0.0) | {term: 1.0}), batch)
    value = one.extra_metrics[term].item()
    assert value != 0
    np.testing.assert_allclose((three.loss - one.loss).item(), (3 - DEFAULT[term]) * value, rtol=1e-8)
    np.testing.assert_allclose((one.loss - without.loss).item(), DEFAULT[term] * value, rtol=1e-8)
    assert alone.loss.item() == value
    # what is off is still watched
    assert without.extra_metrics == three.extra_metrics == one.extra_metrics


@pytest.mark.parametrize("term", LOSSES)
def test_the_gradient_without_a_term_is_that_of_the_others(term):
    batch = make_batch()

    def gradient(**weights):
        module = make(weights=weights)
        run(module, batch)[-1].loss.backward()
        return torch.cat(
            [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in module.parameters()]
        )

    full, rest = gradient(), gradient(**{term: 0.0})
    alone = gradient(**dict.fromkeys(LOSSES, 0.0) | {term: 1.0})
    assert alone.norm() > 0
    torch.testing.assert_close(full - rest, DEFAULT[term] * alone, rtol=1e-8, atol=1e-10)


def test_a_term_that_is_off_may_be_infinite():
    batch = make_batch()
    for name in ("masked", "sample"):
        module = make(weights={name: 0.0})
        inference, generative, _ = run(module, batch)
        generative[name] = [1e200 * value for value in generative[name]]
        output = module.loss(batch, inference, generative)
        assert torch.isinf(output.extra_metrics[name]) and torch.isfinite(output.loss)


def test_unknown_weights_are_refused(stacked):
    with pytest.raises(ValueError, match=r"Unknown terms in weights: 'contrast', 'sampel'\. There are: 'masked', 'sam"):
        build(stacked, weights={"sampel": 1.0, "organ": 1.0, "contrast": 0.0})


@pytest.mark.parametrize("term", LOSSES)
def test_weights_of_a_model_reach_its_module(stacked, term):
    weights = build(stacked, weights={term: 0.0}).module.weights
    assert weights == DEFAULT | {term: 0.0}


def test_options_reach_their_terms():
    batch = make_batch()
    options = {"elastic_threshold": 0.6, "rectify": False, "temperature": 0.3, "target_temperature": 0.2}
    module = make(**options, n_neighbors=2, factor_penalty=0.0)
    inference, _, output = run(module, batch)
    z = torch.cat(inference["z"])
    torch.testing.assert_close(output.extra_metrics["elastic"], elastic_similarity(z, 0.6, False))
    assert elastic_similarity(z, 0.6, False) != elastic_similarity(z, 0.6)
    changes = [block["values"][:, : N_ORGANS * (N_DRUGS - 1)] for block in batch["genes"]]
    z = [torch.from_numpy(vectors_of(module, block)) for block in batch["genes"]]
    pairs = [
        gene_alignment(z[i], z[j], correlation(changes[i], changes[j]), 0.3, 0.2, 2)
        for i, j in ((0, 1), (0, 2), (1, 2))
    ]
    torch.testing.assert_close(output.extra_metrics["map"], sum(pairs) / 3)
    head = vectors_of_conditions(module.reactome)
    errors = [
        np.nanmean((x.numpy() @ head.T - block["values"].numpy()) ** 2)
        for x, block in zip(z, batch["genes"], strict=True)
    ]
    np.testing.assert_allclose(output.extra_metrics["reactome"].item(), np.mean(errors))


# ---- mini-batches that lack something


def test_without_samples_there_are_the_terms_of_genes_alone():
    module, genes = make(), make_genes()
    inference, generative, output = run(module, {"genes": genes})
    assert inference == {"hidden": [], "genes": [], "z": []} and generative == {"masked": [], "sample": []}
    assert_terms(output, derived(module, {"genes": genes}, inference, generative))
    assert output.n_obs_minibatch == 1
    output.loss.backward()
    learning = {name.split(".")[0] for name, p in module.named_parameters() if p.grad is not None}
    assert learning == {"genes", "reactome"}


def test_without_genes_there_are_the_terms_of_samples_alone():
    module = make()
    batch = {"samples": make_samples()}
    inference, generative, output = run(module, batch)
    assert_terms(output, derived(module, batch, inference, generative))
    assert set(output.extra_metrics) == set(SAMPLE_TERMS)
    output.loss.backward()
    assert all(p.grad is None for p in module.reactome.parameters())
    assert (module.genes.embedding.weight.grad != 0).any()


def test_genes_of_one_species_are_not_mapped():
    module, genes = make(), make_genes(sizes=((1, 4),))
    inference, generative, output = run(module, {"genes": genes})
    assert_terms(output, derived(module, {"genes": genes}, inference, generative))
    assert set(output.extra_metrics) == {"reactome"}


@pytest.mark.parametrize("key", ["organ", "drug"])
def test_samples_without_labels_teach_no_labels(key):
    batch = {"samples": make_samples()}
    for block in batch["samples"]:
        block[key] = torch.full_like(block[key], -1)
    module = make(weights=dict.fromkeys(LOSSES, 0.0) | {key: 1.0})
    *_, output = run(module, batch)
    assert output.loss.item() == 0
    output.loss.backward()  # there is a gradient, and it is 0
    assert all((p.grad == 0).all() for p in getattr(module, f"{key}_head").parameters())
    assert all(p.grad is None or (p.grad == 0).all() for p in module.parameters())
    # one that has a label is enough
    batch["samples"][1][key][0] = 2
    inference, _, output = run(module, batch)
    scores = numpy_of(getattr(module, f"{key}_head")(inference["z"][1]))
    np.testing.assert_allclose(output.loss.item(), -log_softmax(scores[0])[2])


def test_labels_are_learnt_from_labelled_samples_alone():
    module, batch = make(), {"samples": make_samples(unlabelled=1)}
    inference, generative, _ = run(module, batch)
    for z in inference["z"]:
        z.retain_grad()
    inference["z"] = [z.detach().requires_grad_() for z in inference["z"]]
    module.weights = dict.fromkeys(LOSSES, 0.0) | {"organ": 1.0}
    module.loss(batch, inference, generative).loss.backward()
    for z, block in zip(inference["z"], batch["samples"], strict=True):
        np.testing.assert_array_equal((z.grad != 0).any(dim=1).numpy(), block["organ"].numpy() >= 0)


def test_a_batch_of_which_nothing_is_hidden_has_a_loss():
    module = make(mask_rate=1e-12).train()
    *_, output = run(module, make_batch())
    assert torch.isfinite(output.loss)
    output.loss.backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in module.parameters())


def test_all_terms_of_a_batch_may_be_off():
    module = make(weights={"map": 0.0, "reactome": 0.0})
    *_, output = run(module, {"genes": make_genes()})
    assert torch.is_tensor(output.loss) and output.loss.item() == 0


@pytest.mark.parametrize("shared", ["no drugs", "no entries"])
def test_genes_that_cannot_be_compared_are_not_aligned(shared):
    genes = make_genes(sizes=((0, 5), (1, 4)))
    n_drugs = N_DRUGS
    if shared == "no drugs":
        n_drugs = 1
        for block in genes:
            block["values"] = block["values"][:, -N_ORGANS - 1 :]
    else:  # species that have no organ and drug in common
        genes[0]["values"][:, :3] = torch.nan
        genes[1]["values"][:, 3 : N_ORGANS * (N_DRUGS - 1)] = torch.nan
    module = make(n_drugs=n_drugs, n_neighbors=2, weights=dict.fromkeys(LOSSES, 0.0) | {"map": 1.0})
    *_, output = run(module, {"genes": genes})
    if torch.is_tensor(output.loss) and output.loss.requires_grad:
        output.loss.backward()
    gradient = module.genes.embedding.weight.grad
    assert gradient is None or (gradient == 0).all()


# ---- what is hidden


def test_values_are_hidden_in_training_alone():
    module = make(mask_rate=0.4)
    samples = make_samples(sizes=((0, 400, 5), (1, 400, 4)))
    assert module.eval().inference(samples)["hidden"] == [None, None]
    hidden = module.train().inference(samples)["hidden"]
    assert [h.shape for h in hidden] == [(400, 5), (400, 4)]
    for h in hidden:
        np.testing.assert_allclose(h.double().mean(dim=0).numpy(), 0.4, atol=0.1)
        np.testing.assert_allclose(h.double().mean().item(), 0.4, atol=0.04)
    assert not torch.equal(module.inference(samples)["hidden"][0], hidden[0])  # anew each time
    assert make(mask_rate=0.0).train().inference(samples)["hidden"] == [None, None]


def test_the_masked_error_is_of_hidden_values_alone():
    module, batch = make().train(), {"samples": make_samples()}
    inference, generative, output = run(module, batch)
    generative["masked"] = [
        torch.where(at, predicted, torch.full_like(predicted, 1e6))
        for predicted, at in zip(generative["masked"], inference["hidden"], strict=True)
    ]
    assert module.loss(batch, inference, generative).extra_metrics["masked"] == output.extra_metrics["masked"]


@pytest.mark.parametrize("n_bins", [None, 5])
def test_hidden_values_have_no_influence(n_bins):
    module, rng = make(n_bins=n_bins), np.random.default_rng(0)
    (block,) = make_samples(sizes=((0, 3, 5),), n_bins=n_bins)
    hidden = torch.tensor([[1, 0, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    other = dict(block)
    other["values"] = torch.where(hidden, torch.from_numpy(rng.normal(size=(3, 5), scale=9)), block["values"])
    if n_bins is not None:
        other["bins"] = torch.where(hidden, torch.from_numpy(rng.integers(n_bins, size=(3, 5))), block["bins"])
        assert not torch.equal(other["bins"], block["bins"])
    for found, expected in zip(module.encode(other, hidden), module.encode(block, hidden), strict=True):
        assert torch.equal(found, expected)
    # those that are shown have
    z, genes = module.encode(block, ~hidden)
    other_z, other_genes = module.encode(other, ~hidden)
    for i in (0, 2):
        assert not torch.allclose(z[i], other_z[i]) and not torch.allclose(genes[i], other_genes[i])
    assert not torch.allclose(module.encode(block)[0], module.encode(block, hidden)[0])


# ---- the encoder


def make_encoder(n_bins=None, conditions=(), seed=0):
    torch.manual_seed(seed)
    encoder = SampleEncoder(N_LATENT, N_HIDDEN, 2, 2, 16, 0.0, n_bins, conditions).double().eval()
    for parameter in encoder.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return encoder


def make_input(n=4, n_tokens=7, seed=0):
    rng = np.random.default_rng(seed)
    genes, values = (
        torch.from_numpy(rng.normal(size=(n_tokens, N_LATENT))),
        torch.from_numpy(rng.normal(size=(n, n_tokens))),
    )
    return genes, values, torch.from_numpy(rng.random((n, n_tokens)) < 0.4)


@pytest.mark.parametrize("hides", [True, False])
@pytest.mark.parametrize("n_bins", [None, 4])
def test_the_order_of_genes_is_nothing(n_bins, hides):
    encoder = make_encoder(n_bins)
    genes, values, hidden = make_input()
    hidden = hidden if hides else None
    bins = torch.from_numpy(np.random.default_rng(1).integers(4, size=values.shape)) if n_bins else None
    order = torch.from_numpy(np.random.default_rng(2).permutation(len(genes)))

    def permuted(x):
        return None if x is None else x[:, order]

    encoded, start = encoder(genes, values, hidden, bins)
    other, other_start = encoder(genes[order], permuted(values), permuted(hidden), permuted(bins))
    assert encoded.shape == (4, 8, N_HIDDEN) and start.shape == (4, N_LATENT)
    torch.testing.assert_close(other_start, start, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(other[:, 0], encoded[:, 0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(other[:, 1:], encoded[:, 1:][:, order], rtol=1e-9, atol=1e-12)
    # genes and values belong together
    mixed, _ = encoder(genes[order], values, hidden, bins)
    assert not torch.allclose(mixed[:, 0], encoded[:, 0], atol=1e-3)


def test_a_sample_is_encoded_by_itself():
    encoder = make_encoder()
    genes, values, hidden = make_input()
    encoded, start = encoder(genes, values, hidden)
    for i in range(len(values)):
        one, one_start = encoder(genes, values[[i]], hidden[[i]])
        torch.testing.assert_close(one[0], encoded[i])
        torch.testing.assert_close(one_start[0], start[i])


@pytest.mark.parametrize("n_tokens", [1, 7])
@pytest.mark.parametrize("hides", ["none", "some", "all"])
def test_where_a_sample_starts(hides, n_tokens):
    genes, values, hidden = make_input(n_tokens=n_tokens)
    hidden = {"none": None, "some": hidden, "all": torch.ones_like(hidden)}[hides]
    if hides == "some":
        hidden[0] = True  # a sample of which nothing is shown
    _, start = make_encoder()(genes, values, hidden)
    expected = np.zeros((len(values), N_LATENT))
    for i, x in enumerate(values.numpy()):
        shown = [g for g in range(n_tokens) if hidden is None or not hidden[i, g]]
        for g in shown:
            expected[i] += np.sqrt(n_tokens) / len(shown) * x[g] * genes[g].numpy()
    np.testing.assert_allclose(start.numpy(), expected, rtol=1e-10, atol=1e-14)


def test_continuous_tokens_know_the_values():
    encoder = make_encoder()
    genes, values, _ = make_input()
    encoded, _ = encoder(genes, values)
    more = values.clone()
    more[0, 3] += 1
    other, _ = encoder(genes, more)
    assert not torch.allclose(other[0], encoded[0]) and torch.equal(other[1:], encoded[1:])
    # a gene's token is a layer of its vector and its value's own; sample and genes go through the transformer together
    with torch.no_grad():
        tokens = encoder.gene(genes) + encoder.value(values.unsqueeze(-1))
        first = encoder.sample + encoder.pool(encoder(genes, values)[1])
        expected = encoder.layers(torch.cat([first[:, None], tokens], dim=1))
    torch.testing.assert_close(encoded, expected)


def test_binned_tokens_know_the_bins_and_the_start_the_values():
    encoder = make_encoder(n_bins=4)
    assert encoder.value.num_embeddings == 4
    genes, values, hidden = make_input()
    bins = torch.from_numpy(np.random.default_rng(1).integers(3, size=values.shape))
    encoded, start = encoder(genes, values, None, bins)
    other, other_start = encoder(genes, values, None, bins + 1)
    assert not torch.allclose(other[:, 1:], encoded[:, 1:]) and torch.equal(other_start, start)
    other, other_start = encoder(genes, 2 * values, None, bins)
    torch.testing.assert_close(other_start, 2 * start)
    assert not torch.allclose(other[:, 0], encoded[:, 0])


def test_conditions_matter():
    encoder = make_encoder(conditions=(3, 2))
    genes, values, hidden = make_input()
    conditions = torch.tensor([[0, 1], [2, 0], [1, 1], [0, 0]])
    encoded, start = encoder(genes, values, hidden, None, conditions)
    for column in range(2):
        changed = conditions.clone()
        changed[2, column] = 0
        other, other_start = encoder(genes, values, hidden, None, changed)
        assert not torch.allclose(other[2, 0], encoded[2, 0]) and not torch.allclose(other[2, 1:], encoded[2, 1:])
        assert torch.equal(other[[0, 1, 3]], encoded[[0, 1, 3]]) and torch.equal(other_start, start)


@pytest.mark.parametrize("options", [{}, {"n_bins": 4}, {"condition_sizes": (3, 2)}])
def test_a_module_of_every_kind_of_token(options):
    module = make(**options).train()
    batch = make_batch(n_bins=options.get("n_bins"), conditions=options.get("condition_sizes"))
    inference, generative, output = run(module, batch)
    assert_terms(output, derived(module, batch, inference, generative))
    output.loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in module.parameters())
    assert (module.encoder.hidden_value.grad != 0).any()
    for embedding in module.encoder.conditions:
        assert (embedding.weight.grad != 0).any()
    if options.get("condition_sizes"):
        z = module.eval().encode(batch["samples"][0])[0]
        batch["samples"][0]["conditions"] = (batch["samples"][0]["conditions"] + 1) % 2
        assert not torch.allclose(module.encode(batch["samples"][0])[0], z)


# ---- samples in the shared space


def test_a_sample_is_at_first_where_its_genes_are():
    torch.manual_seed(0)
    module = UGEModule(GENE_SPECIES, N_ORGANS, N_DRUGS, N_HIDDEN, 1, 2, n_latent=N_LATENT).eval()
    for block in make_samples():
        block["values"] = block["values"].float()
        z, _ = module.encode(block)
        embedding = numpy_of(module.genes.embedding.weight)[block["tokens"]]
        expected = block["values"].numpy() @ embedding / np.sqrt(len(embedding))
        np.testing.assert_allclose(numpy_of(z), expected, rtol=1e-4, atol=1e-6)


def test_species_have_projections_of_their_own():
    module = make()
    (block,) = make_samples(sizes=((1, 3, 4),))
    z, genes = module.encode(block)
    vectors = torch.from_numpy(vectors_of(module, block))
    encoded, start = module.encoder(vectors, block["values"])
    torch.testing.assert_close(z, start + module.sample_projections[1](encoded[:, 0]))
    torch.testing.assert_close(genes, encoded[:, 1:])
    for s in (0, 2):
        module.sample_projections[s].weight.data += 1
        module.genes.projections[s].weight.data += 1
    assert torch.equal(module.encode(block)[0], z)
    assert not torch.allclose(module.encode(block | {"species": torch.tensor(2)})[0], z)


def test_gene_vectors_are_at_first_their_own():
    torch.manual_seed(0)
    genes = GeneVectors(torch.from_numpy(GENE_SPECIES), N_LATENT, N_LATENT)
    everything = torch.arange(len(GENE_SPECIES))
    assert len(genes.projections) == 3
    for s in range(3):
        assert torch.equal(genes.projections[s].weight, torch.eye(N_LATENT))
        assert (genes.projections[s].bias == 0).all()
        torch.testing.assert_close(genes(everything, s), genes.embedding.weight, rtol=0, atol=0)
    # later species may part
    with torch.no_grad():
        genes.projections[1].weight[0, 1], genes.projections[1].bias[2] = 2.0, -1.0
    expected = numpy_of(genes.embedding.weight)[:4]
    assert torch.equal(genes(everything[:4], 0), genes.embedding.weight[:4])
    expected = expected + np.column_stack([2 * expected[:, 1], *np.zeros((5, 4))]) - np.eye(6)[2]
    np.testing.assert_allclose(numpy_of(genes(everything[:4], 1)), expected, rtol=1e-5, atol=1e-7)


def test_gene_vectors_have_a_species_each():
    """No gene has parameters of another: what a batch of one species teaches leaves the others where they are."""
    module = make(weights={"map": 0.0})
    run(module, {"genes": make_genes(sizes=((1, 4),))})[-1].loss.backward()
    moved = (module.genes.embedding.weight.grad != 0).any(dim=1).numpy()
    np.testing.assert_array_equal(moved, GENE_SPECIES == 1)


# ---- what reads the vectors


def test_the_head_entry_by_entry():
    torch.manual_seed(0)
    n_organs, n_drugs = 3, 2
    head = ReactomeHead(N_LATENT, n_organs, n_drugs).double()
    assert (head.interaction == 0).all()
    torch.nn.init.normal_(head.interaction)
    a, b, c, p, l = (numpy_of(getattr(head, name)) for name in ("drug", "organ", "interaction", "profile", "level"))
    z = np.random.default_rng(0).normal(size=(5, N_LATENT))
    found = numpy_of(head(torch.from_numpy(z)))
    assert found.shape == (5, n_organs * n_drugs + n_organs + 1)
    for g, x in enumerate(z):
        expected = [x @ (a[0, k] + b[o, 0] + c[o, k]) for o in range(n_organs) for k in range(n_drugs)]
        expected += [x @ p[o] for o in range(n_organs)] + [x @ l[0]]
        np.testing.assert_allclose(found[g], expected, rtol=1e-10)
    assert head.conditions.shape == (n_organs, n_drugs, N_LATENT)
    np.testing.assert_allclose(numpy_of(head.conditions)[2, 1], a[0, 1] + b[2, 0] + c[2, 1])
    np.testing.assert_allclose(head.squares().item(), sum((part**2).sum() for part in (a, b, c, p, l)))


def test_a_head_without_drugs():
    head = ReactomeHead(N_LATENT, 3, 0)
    assert head(torch.zeros(5, N_LATENT)).shape == (5, 4)


def test_what_was_measured_nowhere_stays_0():
    """The interaction of an organ and drug that no species has gets no gradient; that of any other one does."""
    module, genes = make(), make_genes()
    torch.nn.init.zeros_(module.reactome.interaction)
    for block in genes:
        block["values"][:, 1] = torch.nan
    run(module, {"genes": genes})[-1].loss.backward()
    moved = (module.reactome.interaction.grad != 0).any(dim=2).flatten().numpy()
    np.testing.assert_array_equal(moved, np.arange(N_ORGANS * (N_DRUGS - 1)) != 1)


def test_the_decoder_value_by_value():
    torch.manual_seed(0)
    decoder = SampleDecoder(N_LATENT, N_HIDDEN).double()
    rng = np.random.default_rng(0)
    genes, samples = rng.normal(size=(5, N_LATENT)), rng.normal(size=(3, N_LATENT))
    found = numpy_of(decoder(torch.from_numpy(genes), torch.from_numpy(samples)))
    assert found.shape == (3, 5)
    key = numpy_of(decoder.key.weight)
    for g, z in enumerate(genes):
        query = numpy_of(decoder.linear(torch.from_numpy(z)) + decoder.query(torch.from_numpy(z)))
        for i, s in enumerate(samples):
            expected = query[:-1] @ (key @ s) / np.sqrt(N_HIDDEN + 1) + query[-1]
            np.testing.assert_allclose(found[i, g], expected, rtol=1e-10)
    # linear in the sample, up to what it says of the gene alone
    at = {k: numpy_of(decoder(torch.from_numpy(genes), torch.from_numpy(k * samples))) for k in (0.0, 2.0)}
    np.testing.assert_allclose(at[2.0] - at[0.0], 2 * (found - at[0.0]), rtol=1e-9)


def test_decode_takes_genes_of_a_species():
    module = make()
    genes, z = torch.tensor([4, 1]), torch.from_numpy(np.random.default_rng(0).normal(size=(3, N_LATENT)))
    vectors = torch.from_numpy(vectors_of(module, {"species": 1, "tokens": genes.numpy()}))
    torch.testing.assert_close(module.decode(z, genes, 1), module.sample_decoder(vectors, z))
    # in training the tokens' values are decoded from the sample's vector, and each from the gene's own
    (block,) = make_samples(sizes=((1, 3, 4),))
    inference, generative, _ = run(module, {"samples": [block]})
    torch.testing.assert_close(generative["sample"][0], module.decode(inference["z"][0], block["tokens"], 1))
    torch.testing.assert_close(generative["masked"][0], module.value_decoder(inference["genes"][0])[..., 0])


# ---- presets


def test_the_papers_preset():
    assert PRESETS["paper"] == {"n_hidden": 256, "n_layers": 4, "n_heads": 8}
    module = UGEModule([0] * 10, 10, 4, **PRESETS["paper"])
    transformer = module.encoder.layers
    assert len(transformer.layers) == 4
    width, inner = 256, 1024
    for layer in transformer.layers:
        assert (layer.self_attn.num_heads, layer.self_attn.embed_dim) == (8, width)
        assert (layer.linear1.in_features, layer.linear1.out_features) == (width, inner)
        assert layer.dropout.p == 0.1
    attention, norms = 4 * (width**2 + width), 2 * 2 * width
    feedforward = 2 * width * inner + inner + width
    assert sum(p.numel() for p in transformer.parameters()) == 4 * (attention + norms + feedforward)
    # gene, value (two layers and a norm), hidden value, sample, start
    tokens = (width**2 + width) + (2 * width + width**2 + width + 2 * width) + 2 * width + width**2
    assert sum(p.numel() for p in module.encoder.parameters()) == 4 * (attention + norms + feedforward) + tokens
    assert module.genes.embedding.weight.shape == (10, 256)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_of_a_model(stacked, preset):
    encoder = build(stacked, preset=preset).module.encoder
    expected = PRESETS[preset]
    layer = encoder.layers.layers[0]
    found = {
        "n_hidden": len(encoder.sample),
        "n_layers": len(encoder.layers.layers),
        "n_heads": layer.self_attn.num_heads,
    }
    assert found == expected
    assert layer.linear1.out_features == 4 * expected["n_hidden"]


def test_a_preset_can_be_overridden(stacked):
    module = build(stacked, n_layers=1, n_feedforward=24, mask_rate=0.1, factor_penalty=0.5).module
    assert len(module.encoder.layers.layers) == 1 and module.encoder.layers.layers[0].linear1.out_features == 24
    assert (module.mask_rate, module.factor_penalty) == (0.1, 0.5)
    with pytest.raises(ValueError, match=r"preset='huge' must be one of 'paper', 'small', 'tiny'\."):
        build(stacked, preset="huge")
