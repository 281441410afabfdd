import numpy as np
import pytest
import scipy.sparse as sp
import scvi

import transverse as tv
from transverse.uge import UGE

QUIET = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False}
TINY = {"preset": "tiny", "n_latent": 16}
SETUP = {"animal_key": "animal"}


def build(adata, seed=0, setup=None, **network):
    """A model of a copy of the data."""
    adata = adata.copy()
    scvi.settings.seed = seed
    UGE.setup_anndata(adata, **(SETUP if setup is None else setup))
    return UGE(adata, **TINY | network)


def train(adata, epochs=None, seed=0, setup=None, network=None, **kwargs):
    """A model of a few steps."""
    model = build(adata, seed, setup, **(network or {}))
    model.train(**{"max_epochs": epochs or {"genes": 2, "samples": 1}, "n_tokens": 40} | kwargs, **QUIET)
    return model


def dense(x):
    return x.toarray() if sp.issparse(x) else np.asarray(x)


def same(one, other):
    """Whether arrays are the same to the last bit, NaN and NaN being the same."""
    return one.shape == other.shape and one.dtype == other.dtype and np.array_equal(one, other, equal_nan=True)


@pytest.fixture(scope="session")
def simulated():
    """Mouse and rat, 60 genes, four organs, two drugs, by species; tests must not change them."""
    return tv.datasets.simulate_reactomes(n_genes=60, n_organs=4, n_drugs=2, n_animals=4)


@pytest.fixture(scope="session")
def _stacked(simulated):
    return tv.pp.stack_species(simulated)


@pytest.fixture
def stacked(_stacked):
    """The stacked data, a copy."""
    return _stacked.copy()


@pytest.fixture(scope="session")
def held_out():
    """The one species, organ and drug that the trained model has not seen."""
    return [("rat", "heart", "drug A")]


@pytest.fixture(scope="session")
def trained(_stacked, held_out):
    """A model of a few steps; tests must not change it."""
    return train(_stacked, hold_out=held_out)
