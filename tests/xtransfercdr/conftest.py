import numpy as np
import pytest
import scipy.sparse as sp
import scvi
import torch

import transverse as tv
from transverse.pp._perturbations import clean

QUIET = {"accelerator": "cpu", "enable_progress_bar": False}
SMALL = {"n_hidden": (16,), "n_latent": 8, "dropout_rate": 0.0}
# effects so strong that a few steps give every condition a latent effect of its own
STRONG = {"noise": "poisson", "library_size": 20000.0, "effect_sd": 1.5, "effect_share": 0.3}


def make_screen():
    """Cells of five singles and two doubles in three contexts, some conditions missing, in unequal numbers.

    P01 is not measured in C1, P02 only there; the double P03+P05, under both of its names, is not measured in C1, and
    P04+P05 only there.
    """
    adata = tv.datasets.simulate_responses(
        n_contexts=3,
        n_perturbations=5,
        n_doubles=2,
        n_genes=60,
        n_cells_per_condition=10,
        n_control_cells_per_context=12,
        **STRONG,
    )
    assert set(adata.obs["perturbation"].cat.categories) >= {"P03+P05", "P04+P05"}
    names = adata.obs["perturbation"].astype(str).to_numpy(dtype=object)
    contexts = adata.obs["cell_type"].astype(str).to_numpy(dtype=object)
    dropped = ((names == "P01") | (names == "P03+P05")) & (contexts == "C1")
    dropped |= ((names == "P02") | (names == "P04+P05")) & (contexts != "C1")
    dropped[np.flatnonzero((names == "P03") & (contexts == "C2"))[:6]] = True
    names[np.flatnonzero(names == "P03+P05")[::2]] = "P05+P03"
    adata.obs["perturbation"] = names
    adata = adata[~dropped].copy()
    del adata.layers["counts"], adata.layers["expected"]
    return adata


def train(adata, epochs=1, network=SMALL, setup=None, **kwargs):
    """A model of a few steps; writes scvi-tools' bookkeeping into ``adata``."""
    scvi.settings.seed = 0
    tv.XTransferCDR.setup_anndata(adata, **(setup or {}))
    model = tv.XTransferCDR(adata, **network)
    model.train(max_epochs=epochs, plan_kwargs={"lr": 3e-3}, **QUIET, **kwargs)
    return model


def dense(x):
    return x.toarray() if sp.issparse(x) else np.asarray(x)


def cells(adata, name, context=None):
    """Positions of the cells of a condition, whichever way its name is written."""
    names = np.array([clean(one, "control", "+") for one in adata.obs["perturbation"].astype(str)])
    here = names == name
    if context is not None:
        here &= (adata.obs["cell_type"].astype(str) == context).to_numpy()
    return np.flatnonzero(here)


def encode(model, adata, rows):
    """Basal states and effects of some cells, from the networks themselves."""
    model.module.eval()
    x = torch.from_numpy(dense(adata[rows].X).astype(np.float32))
    with torch.no_grad():
        return model.module.basal_encoder(x).numpy(), model.module.perturbation_encoder(x).numpy()


def decode(model, z):
    model.module.eval()
    with torch.no_grad():
        return model.module.decoder(torch.from_numpy(np.asarray(z, dtype=np.float32))).numpy()


def mean_effect(model, adata, name, contexts, weights=None):
    """Weighted mean over contexts of the mean effect of a perturbation."""
    means = [encode(model, adata, cells(adata, name, context))[1].mean(0) for context in contexts]
    return np.average(means, axis=0, weights=weights)


@pytest.fixture(scope="session")
def screen():
    """Data that the model was trained on; tests must not change them."""
    return make_screen()


@pytest.fixture(scope="session")
def model(screen):
    """A trained model; tests must not change it."""
    return train(screen, epochs=15)


@pytest.fixture(scope="session")
def saved(model, tmp_path_factory):
    """The folder that the model is saved in, without data."""
    folder = tmp_path_factory.mktemp("xtransfercdr") / "model"
    model.save(folder)
    return folder


@pytest.fixture(scope="session")
def one_context(screen):
    """Cells of C1 without doubles, and a model of them that knows of no contexts."""
    adata = screen[((screen.obs["cell_type"] == "C1") & (screen.obs["perturbation"] != "P04+P05")).to_numpy()].copy()
    adata.obs = adata.obs[["perturbation"]]
    return adata, train(adata, epochs=15, setup={"context_key": None})


@pytest.fixture(scope="session")
def split(screen):
    """A model trained on a part of the cells, and whether each was in it.

    Left to the validation: all cells of P03 in C3 and of the whole P01, half the controls, half of P04 in C2.
    """
    adata = screen.copy()
    trained = np.ones(adata.n_obs, dtype=bool)
    trained[cells(adata, "P03", "C3")] = trained[cells(adata, "P01")] = False
    trained[cells(adata, "control")[::2]] = trained[cells(adata, "P04", "C2")[::2]] = False
    return train(adata, epochs=2, datasplitter_kwargs=indexing(trained)), trained


def indexing(trained):
    return {"external_indexing": [np.flatnonzero(trained), np.flatnonzero(~trained), np.array([], dtype=int)]}
