import numpy as np
import pytest
import scipy.sparse as sp
import scvi
import torch

import transverse as tv

QUIET = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False}
SMALL = {"n_hidden": (16, 8), "n_latent": 6, "preset": 0}


def build(adata, seed=0, setup=None, **network):
    """A model of a copy of the data."""
    adata = adata.copy()
    scvi.settings.seed = seed
    tv.DeepCellState.setup_anndata(adata, **(setup or {}))
    return tv.DeepCellState(adata, **SMALL | network)


def train(adata, epochs=2, seed=0, setup=None, network=None, **kwargs):
    """A model of a few steps."""
    model = build(adata, seed, setup, **(network or {}))
    model.train(**{"max_epochs": epochs, "lr": 5e-3} | kwargs, **QUIET)
    return model


def weights_of(module):
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def dense(x):
    return x.toarray() if sp.issparse(x) else np.asarray(x)


def part(adata, cell_type=None, drug=None):
    """Signatures of some cell types and drugs."""
    keep = np.ones(adata.n_obs, dtype=bool)
    for key, wanted in (("cell_type", cell_type), ("perturbation", drug)):
        if wanted is not None:
            keep &= adata.obs[key].astype(str).isin(np.atleast_1d(wanted)).to_numpy()
    return adata[keep].copy()


def encode(model, x):
    """Latent states of signatures as they are, from the network itself."""
    model.module.eval()
    with torch.no_grad():
        return model.module.encoder(torch.from_numpy(np.float32(dense(x)) / model.module.scale.numpy())).numpy()


def carry(model, x, target, use_skip=True, scale=None):
    """Signatures in another cell type, from the networks themselves."""
    model.module.eval()
    scale = np.float32(model.module.scale if scale is None else scale)
    x = torch.from_numpy(np.float32(dense(x)) / scale)
    with torch.no_grad():
        decoder = model.module.decoders[model.cell_types_.index(target)]
        return decoder(model.module.encoder(x), x if use_skip else None).numpy() * scale


@pytest.fixture(scope="session")
def sig():
    """Signatures of 30 drugs, most of them in all of three cell types; tests must not change them."""
    adata = tv.datasets.simulate_signatures(
        n_drugs=30, n_genes=24, n_mechanisms=6, n_latent=4, noise=0.2, missing_share=0.2
    )
    del adata.layers["expected"]
    return adata


@pytest.fixture(scope="session")
def model(sig):
    """A model trained on them; tests must not change it."""
    return train(sig, epochs=8)


@pytest.fixture(scope="session")
def saved(model, tmp_path_factory):
    """The folder that the model is saved in, without data."""
    folder = tmp_path_factory.mktemp("deepcellstate") / "model"
    model.save(folder)
    return folder
