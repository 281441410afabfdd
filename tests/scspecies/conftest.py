import pytest
import scvi

import transverse as tv

QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


@pytest.fixture(scope="session")
def species():
    """A small pair of species; tests that change the data take copies."""
    data = tv.datasets.simulate_species("tiny", seed=1)
    return data["mouse"], data["human"]


def train_context(mouse, epochs=40, **kwargs):
    scvi.settings.seed = 0
    scvi.model.SCVI.setup_anndata(mouse, batch_key="batch")
    context = tv.ScSpecies.make_context(mouse, n_hidden=128, **kwargs)
    plan = {"n_epochs_kl_warmup": 10, "eps": 1e-8, "lr": 4e-3}
    context.train(epochs, train_size=1.0, plan_kwargs=plan, **QUIET)
    return context


def build(context, human, **kwargs):
    human = human.copy()
    tv.ScSpecies.setup_anndata(human, batch_key="batch")
    kwargs.setdefault("labels_key", "cell_type")
    return tv.ScSpecies.from_scvi_model(context, human, human.uns["orthologs"], **kwargs)


@pytest.fixture(scope="session")
def context(species):
    """A trained context model."""
    return train_context(species[0].copy())


@pytest.fixture(scope="session")
def model(context, species):
    """A trained model; tests must not change it."""
    scvi.settings.seed = 0
    model = build(context, species[1])
    model.train(60, plan_kwargs={"lr": 4e-3}, **QUIET)
    return model
