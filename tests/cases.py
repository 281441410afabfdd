"""The four models, as the tests of what they have in common meet them: tiny data, a model of them, and its results."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import anndata as ad
import numpy as np
import scvi

import transverse as tv

QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


@cache
def _species():
    data = tv.datasets.simulate_species("tiny", n_cells=80, seed=1)
    return data["mouse"], data["human"]


@cache
def mouse_model():
    """The context that every scSpecies model here is made with."""
    scvi.settings.seed = 0
    mouse = _species()[0].copy()
    scvi.model.SCVI.setup_anndata(mouse, batch_key="batch")
    context = tv.ScSpecies.make_context(mouse, n_hidden=16)
    context.train(2, **QUIET)
    return context


def _human():
    mouse_model()  # trained before a seed is set for the model
    human = _species()[1].copy()
    human.obs = human.obs[["batch", "cell_type"]].copy()
    return human


def _of_context(adata, **kwargs):
    orthologs = _species()[1].uns["orthologs"]
    return tv.ScSpecies.from_scvi_model(
        mouse_model(), adata, orthologs, labels_key="cell_type", n_neighbors=5, **kwargs
    )


def _labels(model, **kwargs):
    table = model.transfer_labels(n_candidates=20, n_neighbors=5, **kwargs)
    return {"labels": table["label"].astype(str).to_numpy(), "novelty": table["novelty"].to_numpy()}


@cache
def _responses():
    adata = tv.datasets.simulate_responses(
        n_contexts=2, n_perturbations=3, n_genes=30, n_cells_per_condition=8, n_control_cells_per_context=12
    )
    return ad.AnnData(adata.X.copy(), obs=adata.obs[["perturbation", "cell_type"]].copy(), var=adata.var[[]].copy())


def _response(model, **kwargs):
    arguments = model.registry["setup_args"]
    obs, context_key = model.adata.obs, arguments["context_key"]
    perturbation = min(set(obs[arguments["perturbation_key"]].astype(str)) - {str(arguments["control"])})
    context = None if context_key is None else min(obs[context_key].astype(str))
    return {"prediction": model.predict(perturbation, context, allow_leak=True, **kwargs).X}


@cache
def _signatures():
    adata = tv.datasets.simulate_signatures(n_drugs=20, n_genes=12, n_mechanisms=5)
    return ad.AnnData(adata.X.copy(), obs=adata.obs[["perturbation", "cell_type"]].copy(), var=adata.var[[]].copy())


def _signature(model, **kwargs):
    cell_types = model.adata.obs[model.registry["setup_args"]["cell_type_key"]].astype(str)
    source, target = sorted(set(cell_types))[:2]
    of = cell_types == source
    pred = model.predict(model.adata[of.to_numpy()].to_memory(), target, allow_leak=True, **kwargs)
    return {"prediction": pred.X}


@cache
def _reactomes():
    data = tv.datasets.simulate_reactomes(n_genes=24, n_organs=3, n_drugs=2, n_animals=2)
    adata = tv.pp.stack_species(data)
    columns = ["species", "organ", "drug", "animal"]
    return ad.AnnData(adata.X.copy(), obs=adata.obs[columns].copy(), var=adata.var[["species"]].copy())


def _sample_labels(model, **kwargs):
    found = {key: model.predict_labels(key, **kwargs) for key in ("organ", "drug")}
    return {key: table.select_dtypes("number").to_numpy() for key, table in found.items()}


@dataclass(frozen=True)
class Case:
    """A model: what its data are, how it is set up, made and trained, and what it tells."""

    cls: type
    make_data: Callable
    keys: dict[str, str]  # argument of the setup: its column
    results: Callable
    build: Callable
    train: dict = field(default_factory=dict)
    counts: bool = False
    setup: dict = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.cls.__name__

    def data(self) -> ad.AnnData:
        """A copy of the data, with nothing of scvi-tools in it."""
        return self.make_data().copy()

    def model(self, adata=None, seed=0, setup=None, **kwargs):
        """An untrained model."""
        adata = self.data() if adata is None else adata
        self.cls.setup_anndata(adata, **{**self.keys, **self.setup, **(setup or {})})
        scvi.settings.seed = seed
        return self.build(adata, **kwargs)

    def trained(self, adata=None, seed=0, epochs=2, setup=None, network=None, **kwargs):
        """A model after a few epochs."""
        model = self.model(adata, seed, setup, **(network or {}))
        self.fit(model, epochs, seed, **kwargs)
        return model

    def fit(self, model, epochs=2, seed=0, **kwargs):
        """Train a model."""
        scvi.settings.seed = seed
        model.train(**{**self.train, "max_epochs": epochs, **QUIET, **kwargs})

    def all_results(self, model, **kwargs) -> dict[str, np.ndarray]:
        """Representation and predictions."""
        return {"latent": model.get_latent_representation(**kwargs), **self.results(model, **kwargs)}


CASES = {
    case.name: case
    for case in (
        Case(tv.ScSpecies, _human, {"batch_key": "batch"}, _labels, _of_context, counts=True),
        Case(
            tv.XTransferCDR,
            _responses,
            {"perturbation_key": "perturbation", "context_key": "cell_type"},
            _response,
            lambda adata, **kwargs: tv.XTransferCDR(adata, **{"n_latent": 4, "n_hidden": (8,), **kwargs}),
        ),
        Case(
            tv.DeepCellState,
            _signatures,
            {"perturbation_key": "perturbation", "cell_type_key": "cell_type"},
            _signature,
            lambda adata, **kwargs: tv.DeepCellState(adata, **{"n_latent": 4, "n_hidden": (8,), **kwargs}),
            {"train_size": 0.8},
        ),
        Case(
            tv.UGE,
            _reactomes,
            {"species_key": "species", "organ_key": "organ", "drug_key": "drug"},
            _sample_labels,
            lambda adata, **kwargs: tv.UGE(adata, **{"preset": "tiny", "n_latent": 8, **kwargs}),
            {"n_tokens": 16},
            setup={"animal_key": "animal"},
        ),
    )
}
