"""Importance of genes, targets of regulators and agreement in the latent space, re-derived by hand and with known truth."""

import copy
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import scvi
import torch
from scipy.stats import pearsonr

import transverse as tv
from transverse.deepcellstate import DeepCellState
from transverse.deepcellstate._importance import ascend, integrated_gradients
from transverse.deepcellstate._interpretation import InterpretationMixin

if issubclass(DeepCellState, InterpretationMixin):
    Model = DeepCellState
else:

    class Model(InterpretationMixin, DeepCellState):
        pass


SMALL = {"n_subsets": 12, "subset_size": 8, "n_best": 3}
METHODS = ["subsets", "integrated_gradients"]
INFORMATIVE = [4, 17, 30]  # of the planted data
TRAINING = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "logger": False}


def plain(adata):
    """A copy in memory, without what a model registered."""
    return ad.AnnData(np.array(adata.X), obs=adata.obs[["perturbation", "cell_type"]].copy(), var=adata.var[[]].copy())


def units(model):
    """The network in double precision: predictions from inputs, in units of the scale."""
    module = copy.deepcopy(model.module).double().eval()

    def network(x, decoder, use_skip=True):
        encoded = module.inference(x)
        return module.generative(encoded["z"], encoded["x"] if use_skip else None, decoder)["x"]

    return network


@pytest.fixture(scope="module")
def signatures():
    """Three cell types, of which some drugs were measured in two only; two replicates of the first drugs."""
    adata = tv.datasets.simulate_signatures(n_drugs=16, n_genes=30, n_mechanisms=4, missing_share=0.15, seed=1)
    again = adata[:6].copy()
    again.X = again.X + np.random.default_rng(0).normal(0, 0.3, again.shape).astype(np.float32)
    again.obs_names = [f"{name}_again" for name in again.obs_names]
    adata = ad.concat([adata, again])
    # neither sorted nor in blocks
    return plain(adata[np.random.default_rng(1).permutation(adata.n_obs)])


@pytest.fixture(scope="module")
def model(signatures):
    scvi.settings.seed = 0
    Model.setup_anndata(signatures)
    model = Model(signatures, n_hidden=(16, 12), n_latent=6, preset=0)
    model.train({"autoencoder": 2, "decoders": 4, "frozen": 1}, lr=1e-2, batch_size=16, **TRAINING)
    with torch.no_grad():  # what so short a training leaves near nought
        for i, decoder in enumerate(model.module.decoders):
            decoder.skip.copy_(torch.linspace(-0.3, 0.6, 30).roll(i))
    return model


def plant(n_drugs, n_genes=40):
    """C2 is a function of three genes of the others, whose other genes are noise as large."""
    rng = np.random.default_rng(0)
    latent = rng.normal(0, 0.3, (n_drugs, 3))
    mixing = rng.normal(0, 0.6, (n_genes, 3))
    x = rng.normal(0, 0.3, (3, n_drugs, n_genes))
    x[:, :, INFORMATIVE] = latent
    x[1] = np.tanh(latent @ mixing.T)
    obs = pd.DataFrame(
        {
            "perturbation": np.tile([f"D{i}" for i in range(n_drugs)], 3),
            "cell_type": np.repeat(["C1", "C2", "C3"], n_drugs),
        },
        index=[f"S{i}" for i in range(3 * n_drugs)],
    )
    adata = ad.AnnData(x.reshape(-1, n_genes).astype(np.float32), obs=obs)
    adata.var_names = [f"G{i}" for i in range(n_genes)]
    adata.uns["mixing"] = mixing
    return adata


@pytest.fixture(scope="module")
def planted():
    return plant(40)


def hand_set(adata, mixing, informative, skip="none", scale=1.0):
    """A model that predicts ``tanh(mixing @ x[informative])`` in every cell type."""
    Model.setup_anndata(adata)
    k = len(informative)
    model = Model(adata, n_hidden=(2 * k,), n_latent=k, skip=skip, preset=0)
    both = np.vstack([np.eye(k), -np.eye(k)])  # a leaky ReLU of slope 0.2 and of its mirror image: 1.2 times the input
    back = np.hstack([np.eye(k), -np.eye(k)]) / 1.2
    read = np.zeros((2 * k, adata.n_vars))
    read[:, informative] = both
    module = model.module
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module.encoder[0].weight.copy_(torch.tensor(read))
        module.encoder[2].weight.copy_(torch.tensor(back))
        for decoder in module.decoders:
            decoder.features[0].weight.copy_(torch.tensor(both))
            decoder.readout.weight.copy_(torch.tensor(mixing @ back))
        module.scale.fill_(scale)
    model.trained_decoders_, model.is_trained_ = list(model.cell_types_), True
    module.eval()
    return model


@pytest.fixture(scope="module")
def true_model(planted):
    return hand_set(planted, planted.uns["mixing"], INFORMATIVE)


def pairs_by_hand(adata, target, decoder, seed):
    """Row of every signature of a target, of its source, and the generator that goes on from there."""
    names, types = (adata.obs[key].astype(str).to_numpy() for key in ("perturbation", "cell_type"))
    found, i = [], 0
    for row in range(adata.n_obs):
        sources = [k for k in range(adata.n_obs) if names[k] == names[row] and types[k] != target]
        if types[row] == target and sources:
            rng = np.random.default_rng([seed, decoder, i])
            found.append((row, sources[rng.integers(len(sources))], rng))
            i += 1
    return found


# ---- importance


@pytest.mark.parametrize("method", METHODS)
def test_importance_finds_the_genes_that_predict(planted, true_model, method):
    options = {"n_subsets": 60, "subset_size": 10, "n_best": 6}
    found = true_model.get_gene_importance(targets="C2", method=method, **options)
    assert found.shape == (40, 1)
    assert list(found.index) == list(planted.var_names)
    assert set(found["C2"].nlargest(3).index) == {f"G{i}" for i in INFORMATIVE}
    others = found["C2"].drop([f"G{i}" for i in INFORMATIVE])
    assert found.attrs["n_signatures"] == {"C2": 40}
    if method == "subsets":
        assert found.attrs["chance"] == 1.5
        assert found["C2"].nsmallest(37).max() < found["C2"].nlargest(3).min() / 1.5
        # what says nothing is taken as it comes, as the kept subsets still have 10 genes each
        assert found["C2"].sum() == pytest.approx(60)
        assert others.mean() == pytest.approx(1.5, rel=0.2)
    else:
        assert "chance" not in found.attrs
        assert (others == 0).all()
        truth = planted[planted.obs["cell_type"] == "C2"].X
        # what is shared out: the length of the prediction, which is the truth
        assert found["C2"].sum() >= np.linalg.norm(truth, axis=1).mean() - 1e-3


@pytest.fixture(scope="module")
def learnt():
    """A network that learnt from many drugs to predict C2; by a bare loop, for speed."""
    torch.manual_seed(0)
    adata = plant(200)
    Model.setup_anndata(adata)
    model = Model(adata, n_hidden=(32,), n_latent=8, preset=0)
    x = torch.tensor(adata.X).reshape(3, 200, 40)
    optimizer = torch.optim.Adam(model.module.parameters(), 3e-3)
    network = model._network(1, True)
    for _ in range(150):
        optimizer.zero_grad()
        (network(torch.cat([x[0], x[2]])) - torch.cat([x[1], x[1]])).square().mean().backward()
        optimizer.step()
    optimizer.zero_grad()
    model.trained_decoders_, model.is_trained_ = ["C2"], True
    return model


@pytest.mark.parametrize("method", METHODS)
def test_importance_of_what_was_learnt(learnt, method):
    found = learnt.get_gene_importance(method=method, n_subsets=40, subset_size=10, n_best=4, n_steps=10)
    assert list(found) == ["C2"]
    assert set(found["C2"].nlargest(3).index) == {f"G{i}" for i in INFORMATIVE}


def best_of_subsets(model, adata, genes, use_skip, seed):
    """Importance for C2 by a loop over signatures, where only ``genes`` (positions in the model) are there."""
    counts, pairs = np.zeros(30), pairs_by_hand(adata, "C2", 1, seed)
    for row, source, rng in pairs:
        subsets = [genes[np.argsort(keys)[:8]] for keys in rng.random((12, len(genes)))]
        x = np.zeros((12, 30), dtype=np.float32)
        for values, subset in zip(x, subsets, strict=True):
            values[subset] = adata.X[source, np.searchsorted(genes, subset)]
        obs = pd.DataFrame([adata.obs.iloc[source][["perturbation", "cell_type"]]] * 12, index=map(str, range(12)))
        inputs = ad.AnnData(x, obs=obs, var=pd.DataFrame(index=model.var_names_))
        pred = model.predict(inputs, target="C2", aggregate=None, use_skip=use_skip).X[:, genes]
        scores = [pearsonr(values, adata.X[row]).statistic for values in pred]
        for kept in np.argsort(scores)[-3:]:
            counts[subsets[kept]] += 1
    return counts / len(pairs), len(pairs)


@pytest.mark.parametrize(("use_skip", "seed"), [(True, 0), (False, 0), (True, 3)])
def test_subsets_by_a_loop(model, signatures, use_skip, seed):
    found = model.get_gene_importance(**SMALL, use_skip=use_skip, seed=seed)
    assert list(found) == model.trained_decoders_ == ["C1", "C2", "C3"]
    expected, n = best_of_subsets(model, signatures, np.arange(30), use_skip, seed)
    assert found.attrs["n_signatures"]["C2"] == n
    np.testing.assert_allclose(found["C2"], expected)
    assert found.attrs["chance"] == pytest.approx(3 * 8 / 30)
    np.testing.assert_allclose(found.sum(), 24)


@pytest.mark.parametrize("use_skip", [True, False])
def test_integrated_gradients_one_at_a_time(model, signatures, use_skip):
    found = model.get_gene_importance(method="integrated_gradients", n_steps=20, use_skip=use_skip)
    network, scale = units(model), float(model.module.scale)
    for decoder, target in enumerate(["C1", "C2", "C3"]):
        sizes = []
        for row, source, _ in pairs_by_hand(signatures, target, decoder, 0):
            y = torch.tensor(signatures.X[row], dtype=torch.double)
            x = torch.tensor(signatures.X[source], dtype=torch.double)

            def f(x, y=y, decoder=decoder):
                """In the units of the signatures, for inputs in these."""
                return scale * network(x[None] / scale, decoder, use_skip)[0] @ y / y.norm()

            steps = [(k + 0.5) / 20 for k in range(20)]
            gradients = [torch.autograd.functional.jacobian(f, share * x) for share in steps]
            sizes.append((x * torch.stack(gradients).mean(0)).abs().numpy())
        np.testing.assert_allclose(found[target], np.mean(sizes, axis=0), rtol=1e-3, atol=1e-5)
        assert found.attrs["n_signatures"][target] == len(sizes)


def test_attributions_are_complete(model, signatures):
    x = torch.tensor(signatures.X) / model.module.scale
    y = torch.nn.functional.normalize(x.flip(0), dim=1)
    network = model._network(0, True)
    found = integrated_gradients(network, x, y, 2000, 4096)
    with torch.no_grad():
        change = ((network(x) - network(torch.zeros_like(x))) * y).sum(1)
    assert change.abs().mean() > 0.05
    np.testing.assert_allclose(found.sum(1), change, atol=1e-4)
    few = integrated_gradients(network, x, y, 1, 7)
    assert (few.sum(1) - change).abs().max() > 10 * (found.sum(1) - change).abs().max()


def test_the_other_architecture(signatures):
    adata = plain(signatures)
    Model.setup_anndata(adata)
    model = Model(adata, architecture="pointwise", n_hidden=(4, 3), n_latent=3)
    model.trained_decoders_, model.is_trained_ = ["C1"], True
    model.module.eval()
    x = torch.tensor(adata.X)
    network = model._network(0, True)
    found = integrated_gradients(network, x, torch.ones_like(x), 500, 512)
    with torch.no_grad():
        change = (network(x) - network(torch.zeros_like(x))).sum(1)
    np.testing.assert_allclose(found.sum(1), change, atol=1e-3)
    assert model.get_gene_importance(**SMALL).shape == (30, 1)
    assert model.get_regulator_targets(model.var_names_[2], "C1", n_top=3)["is_target"].sum() == 3


def test_attributions_of_a_linear_network():
    rng = np.random.default_rng(0)
    weights, x, v = (torch.tensor(rng.normal(size=size)) for size in ((6, 6), (3, 6), (3, 6)))
    found = integrated_gradients(lambda inputs: inputs @ weights + 1, x, v, 4, 5)
    np.testing.assert_allclose(found, x * (v @ weights.T))


def test_too_few_steps_are_reported(planted, true_model):
    strong = hand_set(planted, 8 * planted.uns["mixing"], INFORMATIVE)
    with pytest.warns(UserWarning, match="With n_steps=1 .* raise n_steps"):
        strong.get_gene_importance(targets="C2", method="integrated_gradients", n_steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        true_model.get_gene_importance(targets="C2", method="integrated_gradients")


@pytest.mark.parametrize("method", METHODS)
def test_a_gene_that_copies_itself(planted, method):
    """A skip connection lets a gene count that the latent space ignores; without it, it does not."""
    adata = plain(planted)
    adata.X[:, 0] *= 15
    adata.X[adata.obs["cell_type"] == "C2", 0] = adata.X[adata.obs["cell_type"] == "C1", 0]
    adata = adata[adata.obs["cell_type"] != "C3"].copy()
    model = hand_set(adata, 0.2 * planted.uns["mixing"], INFORMATIVE, skip="separate")
    with torch.no_grad():
        for decoder in model.module.decoders:
            decoder.skip[0] = 0.5
    options = {"targets": "C2", "method": method, "n_subsets": 60, "subset_size": 10, "n_best": 6}
    with_skip, without = (model.get_gene_importance(use_skip=skip, **options)["C2"] for skip in (True, False))
    assert with_skip.idxmax() == "G0"
    assert with_skip["G0"] > 1.5 * with_skip.drop("G0").max()
    assert set(without.nlargest(3).index) == {f"G{i}" for i in INFORMATIVE}
    assert without["G0"] < (2 if method == "subsets" else 1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_importance_does_not_depend_on_batches_targets_or_the_global_state(model, signatures, method):
    options = {**SMALL, "method": method, "n_steps": 10}
    expected = model.get_gene_importance(**options)
    same = np.testing.assert_array_equal if method == "subsets" else np.testing.assert_allclose
    tolerance = {} if method == "subsets" else {"rtol": 1e-4, "atol": 1e-6}
    for size in (7, 24, 100_000):
        np.random.seed(size)
        torch.manual_seed(size)
        found = model.get_gene_importance(**options, batch_size=size)
        same(found, expected, **tolerance)
        assert found.attrs == expected.attrs
    pd.testing.assert_frame_equal(model.get_gene_importance(**options), expected)
    for targets in ("C3", ["C3", "C1"], ["C3", "C3"]):
        found = model.get_gene_importance(targets=targets, **options)
        assert list(found) == list(dict.fromkeys([targets] if isinstance(targets, str) else targets))
        same(found, expected[list(found)], **tolerance)
    with torch.inference_mode():
        same(model.get_gene_importance(**options), expected, **tolerance)
    assert not np.allclose(model.get_gene_importance(**options, seed=1), expected)


@pytest.mark.parametrize("method", METHODS)
def test_importance_of_other_objects(model, signatures, tmp_path, method):
    options = {**SMALL, "method": method, "n_steps": 10, "targets": ["C1", "C3"]}
    expected = model.get_gene_importance(**options)
    file = tmp_path / "signatures.h5ad"
    plain(signatures).write_h5ad(file)
    sparse = plain(signatures)
    sparse.X = sp.csr_matrix(sparse.X)
    names = ["new", *reversed(model.var_names_)]
    values = np.column_stack([np.ones(signatures.n_obs), signatures.X[:, ::-1]])
    extra = ad.AnnData(values, obs=plain(signatures).obs, var=pd.DataFrame(index=names))
    before = extra.copy()
    for adata in (signatures, ad.read_h5ad(file, backed="r"), sparse, extra):
        pd.testing.assert_frame_equal(model.get_gene_importance(adata, **options), expected, atol=1e-5)
    np.testing.assert_array_equal(extra.X, before.X)
    pd.testing.assert_frame_equal(extra.obs, before.obs)
    assert not extra.uns
    # cell types without a decoder are sources
    renamed = plain(signatures)
    renamed.obs["cell_type"] = renamed.obs["cell_type"].astype(str).replace({"C2": "other"})
    pd.testing.assert_frame_equal(model.get_gene_importance(renamed, **options), expected, atol=1e-5)
    assert list(model.get_gene_importance(renamed, **SMALL)) == ["C1", "C3"]


def test_importance_leaves_the_model_as_it_is(model):
    before = copy.deepcopy(model.module.state_dict())
    for method in METHODS:
        model.get_gene_importance(method=method, **SMALL, n_steps=10)
    model.get_regulator_targets(model.var_names_[0], "C1", n_top=5)
    assert all(torch.equal(value, before[key]) for key, value in model.module.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.module.parameters())


def test_missing_genes(model, signatures):
    few = plain(signatures)[:, 5:].copy()
    zeroed = plain(signatures)
    zeroed.X[:, :5] = 0
    lost, there = model.var_names_[:5], model.var_names_[5:]
    options = {"method": "integrated_gradients", "n_steps": 10}
    with pytest.warns(UserWarning, match="5 of the model's 30 genes are missing"):
        found = model.get_gene_importance(few, **options)
    assert found.loc[lost].isna().all(axis=None)
    np.testing.assert_allclose(found.loc[there], model.get_gene_importance(zeroed, **options).loc[there], rtol=1e-5)
    with pytest.warns(UserWarning, match="5 of the model's 30 genes are missing"):
        found = model.get_gene_importance(few, targets="C2", **SMALL)
    assert found.loc[lost].isna().all(axis=None)
    assert found.attrs["chance"] == pytest.approx(3 * 8 / 25)
    # neither drawn nor correlated over
    np.testing.assert_allclose(found.loc[there, "C2"], best_of_subsets(model, few, np.arange(5, 30), True, 0)[0][5:])
    with (
        pytest.warns(UserWarning),
        pytest.raises(ValueError, match="subset_size=25 must be below the number of genes, 25"),
    ):
        model.get_gene_importance(few, n_subsets=12, subset_size=25, n_best=3)


@pytest.mark.parametrize("method", METHODS)
def test_constant_signatures_are_left_out(model, signatures, method):
    options = {**SMALL, "method": method, "n_steps": 10}
    kept = plain(signatures)
    blank = kept[:5].copy()
    blank.X[:] = 0
    blank.obs_names = [f"blank{i}" for i in range(5)]
    found = model.get_gene_importance(ad.concat([kept, blank]), **options)
    pd.testing.assert_frame_equal(found, model.get_gene_importance(**options))
    kept.X[:] = 0
    with pytest.raises(ValueError, match="adata has no signature of a cell type with a trained decoder"):
        model.get_gene_importance(kept, **options)


@pytest.mark.parametrize(
    ("error", "match", "arguments"),
    [
        (ValueError, "method='lrp' must be", {"method": "lrp"}),
        (ValueError, "subset_size=30 must be below the number of genes, 30", {"subset_size": 30}),
        (ValueError, "n_best=12 must be fewer than n_subsets=12", {"n_best": 12}),
        (ValueError, "n_best=0 must be a whole number, at least 1", {"n_best": 0}),
        (ValueError, "n_subsets=2.5 must be", {"n_subsets": 2.5}),
        (ValueError, "subset_size=True must be", {"subset_size": True}),
        (ValueError, "n_steps=0 must be", {"n_steps": 0, "method": "integrated_gradients"}),
        (ValueError, "batch_size=0 must be", {"batch_size": 0}),
        (ValueError, "seed=-1 must be a whole number, at least 0", {"seed": -1}),
        (ValueError, "targets is empty", {"targets": []}),
        (KeyError, "targets='C9' has no decoder. Cell types with one: 'C1', 'C2', 'C3'", {"targets": ["C1", "C9"]}),
    ],
)
def test_importance_refuses(model, error, match, arguments):
    with pytest.raises(error, match=match):
        model.get_gene_importance(**{**SMALL, **arguments})


def test_importance_refuses_signatures_without_a_pair(model, signatures):
    one = signatures[signatures.obs["cell_type"] == "C1"]
    with pytest.raises(ValueError, match=r"adata has no signature of a cell type .* adata has signatures of 'C1'"):
        model.get_gene_importance(one, **SMALL)
    two = signatures[signatures.obs["cell_type"] != "C3"]
    with pytest.raises(ValueError, match="no signature of the targets 'C3' that has its perturbation in another"):
        model.get_gene_importance(two, ["C1", "C3"], **SMALL)
    assert list(model.get_gene_importance(two, **SMALL)) == ["C1", "C2"]
    with pytest.raises(KeyError, match="'cell_type' is not in adata.obs"):
        model.get_gene_importance(
            ad.AnnData(signatures.X, obs=signatures.obs[["perturbation"]], var=signatures.var), **SMALL
        )


def test_untrained_models_are_refused(signatures):
    adata = plain(signatures)
    Model.setup_anndata(adata)
    fresh = Model(adata, n_hidden=(4,), n_latent=2)
    for call in (
        lambda: fresh.get_gene_importance(**SMALL),
        lambda: fresh.get_regulator_targets(fresh.var_names_[0], "C1"),
        lambda: fresh.get_latent_agreement("C1", "C2"),
    ):
        with pytest.raises(RuntimeError):
            call()


def test_a_model_without_data(model, signatures, tmp_path):
    model.save(tmp_path / "model")
    alone = Model.load(tmp_path / "model", adata=False)
    with pytest.raises(ValueError, match="The model was loaded without data"):
        alone.get_gene_importance(**SMALL)
    pd.testing.assert_frame_equal(alone.get_gene_importance(signatures, **SMALL), model.get_gene_importance(**SMALL))


# ---- regulators


@pytest.mark.parametrize("use_skip", [True, False])
def test_regulators_by_hand(model, use_skip):
    options = {"n_steps": 6, "step_size": 0.5, "penalty": 3.0, "start_range": 0.01, "n_top": 4}
    regulators = [model.var_names_[i] for i in (20, 3, 11)]
    found = model.get_regulator_targets(regulators, "C2", **options, use_skip=use_skip, seed=5)
    assert list(found) == ["regulator", "gene", "output", "input", "rank", "is_target"]
    assert list(found["regulator"].unique()) == regulators
    assert len(found) == 90 and (found.groupby("regulator").size() == 30).all()
    network = units(model)
    start = torch.tensor(np.random.default_rng(5).uniform(-0.01, 0.01, 30).astype(np.float32)).double()
    for regulator in regulators:
        own, x = model.var_names_.index(regulator), start
        for _ in range(6):
            x = x.detach().requires_grad_()
            (network(x[None], 1, use_skip)[0, own] - 3 * x.mean()).backward()
            x = x + 0.5 * x.grad / x.grad.norm()
        output = network(x[None], 1, use_skip)[0].detach().numpy()
        table = found[found["regulator"] == regulator]
        by_gene = table.set_index("gene").loc[model.var_names_]
        np.testing.assert_allclose(by_gene["input"], x.detach(), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(by_gene["output"], output, rtol=1e-3, atol=1e-4)
        assert table["rank"].tolist() == list(range(30))
        assert table["gene"].iloc[0] == regulator
        assert table["output"].iloc[1:].is_monotonic_decreasing
        assert table["is_target"].tolist() == [False] + 4 * [True] + 25 * [False]


def test_steps_up_a_linear_gradient():
    rng = np.random.default_rng(0)
    weights, start = (torch.tensor(rng.normal(size=size)) for size in ((6, 6), 6))
    genes = torch.tensor([4, 0])
    found = ascend(lambda x: x @ weights, start, genes, n_steps=3, step_size=0.5, penalty=2.0)
    for x, gene in zip(found, genes, strict=True):
        slope = weights[:, gene] - 2 / 6
        np.testing.assert_allclose(x, start + 1.5 * slope / slope.norm())
    # nowhere to go
    still = ascend(lambda x: 0 * x, start, genes, n_steps=3, step_size=0.5, penalty=0.0)
    np.testing.assert_array_equal(still, start.repeat(2, 1))


def test_regulators_have_their_targets(planted):
    """Genes that follow the same latent variables as a regulator are its targets, and enrichment finds them."""
    mixing = 0.1 * planted.uns["mixing"]
    sets = {}
    for k, first in enumerate((10, 20)):
        mixing[first : first + 6] = np.eye(3)[k]
        sets[f"G{first}"] = [f"G{i}" for i in range(first + 1, first + 6)]
    model = hand_set(plain(planted), mixing, INFORMATIVE, scale=3.0)
    table = model.get_regulator_targets(list(sets), "C1", n_top=5)
    assert table["is_target"].sum() == 10
    for regulator, rows in table[table["rank"] > 0].groupby("regulator"):
        assert set(rows.loc[rows["is_target"], "gene"]) == set(sets[regulator])
        enriched = tv.tl.enrichment(rows.loc[rows["is_target"], "gene"], sets, rows["gene"])
        assert enriched.loc[regulator, "overlap"] == 5
        assert enriched.loc[regulator, "p_value"] < 1e-5
        assert enriched["p_value"].drop(regulator).item() > 0.5
        assert rows["output"].abs().max() <= 1  # in units of the scale
    own = table[table["rank"] == 0].set_index("regulator")["output"]
    assert (own > 0.9).all()


def test_a_regulator_does_not_depend_on_others_or_batches(model):
    names = model.var_names_[:5]
    together = model.get_regulator_targets(names, "C1", n_top=3)
    close = {"rtol": 1e-3, "atol": 1e-5}
    for size in (1, 2):
        pd.testing.assert_frame_equal(
            model.get_regulator_targets(names, "C1", n_top=3, batch_size=size), together, **close
        )
    alone = model.get_regulator_targets(names[3], "C1", n_top=3)
    part = together[together["regulator"] == names[3]].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, part, **close)
    pd.testing.assert_frame_equal(model.get_regulator_targets([names[3]] * 2, "C1", n_top=3), alone)
    with torch.inference_mode():
        pd.testing.assert_frame_equal(model.get_regulator_targets(names, "C1", n_top=3), together)
    assert not np.allclose(
        model.get_regulator_targets(names[3], "C1", n_top=3, start_range=0.5)["input"], alone["input"]
    )


@pytest.mark.parametrize(
    ("error", "match", "arguments"),
    [
        (KeyError, "does not have the genes 'nope'; it has, for example, ", {"gene": ["nope"]}),
        (KeyError, "cell_type='C9' has no decoder", {"cell_type": "C9"}),
        (ValueError, "gene is empty", {"gene": []}),
        (ValueError, "n_top=30 must be below the number of genes, 30", {"n_top": 30}),
        (ValueError, "n_top=0 must be", {"n_top": 0}),
        (ValueError, "n_steps=0 must be", {"n_steps": 0}),
        (ValueError, "step_size=0 must be a positive number", {"step_size": 0}),
        (ValueError, "step_size=nan must be", {"step_size": np.nan}),
        (ValueError, "penalty=-1 must be a number of at least 0", {"penalty": -1}),
        (ValueError, "start_range='x' must be", {"start_range": "x"}),
        (ValueError, "seed=None must be", {"seed": None}),
        (ValueError, "batch_size=0 must be", {"batch_size": 0}),
    ],
)
def test_regulators_refuse(model, error, match, arguments):
    with pytest.raises(error, match=match):
        model.get_regulator_targets(**{"gene": model.var_names_[0], "cell_type": "C1", "n_top": 5, **arguments})


# ---- agreement


@pytest.mark.parametrize("of", ["latent", "input"])
def test_agreement_by_hand(model, signatures, of, tmp_path):
    values = model.get_latent_representation() if of == "latent" else signatures.X
    names, types = (signatures.obs[key].astype(str).to_numpy() for key in ("perturbation", "cell_type"))
    common = sorted(set(names[types == "C3"]) & set(names[types == "C1"]))
    assert 2 < len(common) < len(set(names))
    expected = np.empty((len(common), len(common)))
    for i, one in enumerate(common):
        for j, other in enumerate(common):
            a = values[(types == "C3") & (names == one)].mean(0)
            b = values[(types == "C1") & (names == other)].mean(0)
            expected[i, j] = np.corrcoef(a, b)[0, 1]
    found = model.get_latent_agreement("C3", "C1", of=of)
    assert list(found.index) == list(found.columns) == common
    assert (found.index.name, found.columns.name) == ("C3", "C1")
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(model.get_latent_agreement("C1", "C3", of=of), found.T, atol=1e-6)
    np.testing.assert_allclose(model.get_latent_agreement("C3", "C1", of=of, batch_size=3), found, atol=1e-5)
    file = tmp_path / "signatures.h5ad"
    plain(signatures).write_h5ad(file)
    backed = ad.read_h5ad(file, backed="r")
    np.testing.assert_allclose(model.get_latent_agreement("C3", "C1", backed, of=of), found, atol=1e-6)
    tv.pl.latent_agreement(found, show=False)


def test_agreement_of_a_latent_that_cell_types_share(planted, true_model):
    """The latent has what C1 and C3 share and nothing else: the same drug correlates fully; signatures do not."""
    found = true_model.get_latent_agreement("C1", "C3")
    np.testing.assert_allclose(np.diagonal(found), 1, atol=1e-5)
    assert np.diagonal(true_model.get_latent_agreement("C1", "C3", of="input")).mean() < 0.5


def test_agreement_of_cell_types_without_a_decoder_and_missing_genes(model, signatures):
    other = plain(signatures)[:, 4:].copy()
    other.obs["cell_type"] = other.obs["cell_type"].astype(str).replace({"C1": "new", "C3": "newer"})
    zeroed = plain(signatures)
    zeroed.X[:, :4] = 0
    with pytest.warns(UserWarning, match="4 of the model's 30 genes are missing"):
        found = model.get_latent_agreement("newer", "new", other)
    np.testing.assert_allclose(found, model.get_latent_agreement("C3", "C1", zeroed), atol=1e-6)
    with pytest.warns(UserWarning, match="4 of the model's 30 genes are missing"):
        found = model.get_latent_agreement("newer", "new", other, of="input")
    row = other[(other.obs["cell_type"] == "newer") & (other.obs["perturbation"] == found.index[0])].X.mean(0)
    column = other[(other.obs["cell_type"] == "new") & (other.obs["perturbation"] == found.columns[1])].X.mean(0)
    assert found.iloc[0, 1] == pytest.approx(pearsonr(row, column).statistic, abs=1e-5)


def test_agreement_of_perturbations_with_types(signatures):
    adata = plain(signatures)
    adata.obs["type"] = np.where(adata.obs["perturbation"].astype(str) < "D0008", "drug", "knock-down")
    Model.setup_anndata(adata, perturbation_type_key="type")
    model = Model(adata, n_hidden=(4,), n_latent=3)
    model.train({"autoencoder": 1, "decoders": 1, "frozen": 1}, **TRAINING)
    found = model.get_latent_agreement("C1", "C2")
    assert list(found.index) == sorted(found.index)
    assert {tuple(name.split("|")) for name in found.index} <= set(
        adata.obs[["perturbation", "type"]].itertuples(index=False, name=None)
    )
    assert {name.split("|")[1] for name in found.index} == {"drug", "knock-down"}
    assert list(model.get_gene_importance(**SMALL)) == ["C1", "C2", "C3"]


def test_agreement_with_a_signature_of_one_value(model, signatures):
    blank = plain(signatures)
    blank.X[(blank.obs["cell_type"] == "C1") & (blank.obs["perturbation"] == "D0002")] = 0
    found = model.get_latent_agreement("C1", "C2", blank, of="input")
    assert found.loc["D0002"].isna().all()
    assert found.drop("D0002").notna().all(axis=None)


@pytest.mark.parametrize(
    ("error", "match", "arguments"),
    [
        (
            KeyError,
            "cell_type='C9': adata has no signatures of it. It has those of 'C1', 'C2', 'C3'",
            {"cell_type": "C9"},
        ),
        (KeyError, "other='C9'", {"other": "C9"}),
        (ValueError, "must be two cell types, but both are 'C1'", {"other": "C1"}),
        (ValueError, "of='output' must be", {"of": "output"}),
        (ValueError, "batch_size=-1 must be", {"batch_size": -1}),
    ],
)
def test_agreement_refuses(model, error, match, arguments):
    with pytest.raises(error, match=match):
        model.get_latent_agreement(**{"cell_type": "C1", "other": "C2", **arguments})


def test_agreement_needs_two_perturbations(model, signatures):
    names = signatures.obs["perturbation"].astype(str)
    few = signatures[(signatures.obs["cell_type"] == "C1") | (names == "D0002")]
    with pytest.raises(ValueError, match="at least two perturbations in common, but have 1 of .* and 1"):
        model.get_latent_agreement("C1", "C2", few)
