"""What a model says, derived again from its parameters in numpy, and models that several files test."""

import functools
import itertools

import numpy as np
import pandas as pd
import scipy.sparse as sp
import scvi
from scipy.special import logsumexp

import transverse as tv
from transverse.uge import UGE

from .conftest import QUIET, dense

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
# what a network of one narrow layer can learn in a few seconds
PLANTED = {"preset": "tiny", "n_hidden": 32, "n_layers": 1, "n_latent": 32}


def weight(parameter):
    return parameter.detach().cpu().numpy().astype(float)


def names_of(model, species):
    of_gene = np.array(model.species_, dtype=object)[model._gene_species]
    return [name for name, own in zip(model.var_names_, of_gene, strict=True) if own == species]


def genes_of(model, species):
    return np.flatnonzero(model._gene_species == model.species_.index(species))


def vectors(model, species):
    """Gene vectors in the shared space."""
    s = model.species_.index(species)
    projection = model.module.genes.projections[s]
    own = weight(model.module.genes.embedding.weight)[genes_of(model, species)]
    return own @ weight(projection.weight).T + weight(projection.bias)


def predicted(model, species):
    """What the head says of genes: changes organ by organ, organs, level."""
    head = model.module.reactome
    z = vectors(model, species)
    columns = []
    for o in range(len(model.organs_)):
        for k in range(len(model.drugs_) - 1):
            vector = weight(head.drug)[0, k] + weight(head.organ)[o, 0] + weight(head.interaction)[o, k]
            columns.append(z @ vector)
    columns += list((z @ weight(head.profile).T).T) + [z @ weight(head.level)[0]]
    return np.column_stack(columns)


def changes(model, species):
    """Changes on the scale of the data, genes x organs x drugs."""
    n = len(model.organs_), len(model.drugs_) - 1
    return predicted(model, species)[:, : n[0] * n[1]].reshape(-1, *n) * model.units_["change"]


def completed(model, species):
    own = model.features_[genes_of(model, species)].astype(float)
    return np.where(np.isnan(own), predicted(model, species), own)


def similarity(x, y):
    distance = ((x[:, None] - y[None]) ** 2).sum(axis=2)
    return -distance / np.median(distance)


def sinkhorn(s, temperature, n_iterations=50):
    """Log-probabilities, in double precision and on logarithms; from where the best of each row and column is 1."""
    logits = np.asarray(s, dtype=float) / temperature
    b = (logits - logits.max(axis=1, keepdims=True)).max(axis=0)
    for _ in range(n_iterations):
        a = logsumexp(logits - b, axis=1)
        b = logsumexp(logits - a[:, None], axis=0)
    return logits - b - logsumexp(logits - b, axis=1, keepdims=True)


def soft_map(model, species, other, temperature=0.04, n=50):
    """Probabilities of the likeliest genes of another species, dense."""
    p = np.exp(sinkhorn(similarity(completed(model, species), completed(model, other)), temperature))
    n = min(n, p.shape[1])
    edge = np.sort(p, axis=1)[:, -n][:, None]
    p = np.where(p >= edge, p, 0)
    return p / p.sum(axis=1, keepdims=True)


def shared_share(values):
    """Mean product of two organs' changes relative to their mean square, at least 0."""
    pairs = [(values[:, i] * values[:, j]).mean() for i, j in itertools.combinations(range(values.shape[1]), 2)]
    return max(np.mean(pairs) / (values**2).mean(), 0)


def said_and_shared(model, species):
    """What the head says, and what organs have in common of a drug's residuals, shrunk; genes x organs x drugs."""
    said = changes(model, species)
    own = model.features_[genes_of(model, species)][:, : said[0].size].astype(float) * model.units_["change"]
    measured = own.reshape(said.shape)
    there = np.asarray(model.is_measured_)[model.species_.index(species)]
    several = [k for k in range(there.shape[1]) if there[:, k].sum() > 1]
    known = np.nan_to_num(measured[~np.isnan(own).all(axis=1)])
    usual = np.mean([shared_share(known[:, there[:, k], k]) for k in several]) if several else 0.0
    found = said.copy()
    for k in range(there.shape[1]):
        residuals = np.nan_to_num((measured - said)[:, there[:, k], k])
        n = residuals.shape[1]
        if n:
            share = shared_share(residuals) if n > 1 else usual
            found[:, :, k] += (residuals.mean(axis=1) * share / (share + (1 - share) / n))[:, None]
    return found


def mapped_changes(model, species):
    """Mean over the species that have a condition, or over all where none has; genes x organs x drugs."""
    measured = np.asarray(model.is_measured_)
    carried = []
    for other in model.species_:
        own = said_and_shared(model, other)
        if other != species:
            own = np.tensordot(soft_map(model, species, other), own, axes=1)
        carried.append(own)
    found = np.empty_like(carried[0])
    for o, k in np.ndindex(*measured.shape[1:]):
        having = [own for own, there in zip(carried, measured[:, o, k], strict=True) if there] or carried
        found[:, o, k] = np.mean([own[:, o, k] for own in having], axis=0)
    return found


def measured_change(adata, species, organ, drug):
    """Mean of treated less mean of control samples of a species' genes."""
    own = adata[(adata.obs["species"] == species).to_numpy(), (adata.var["species"] == species).to_numpy()]
    organs, drugs = (own.obs[key].astype(str).to_numpy() for key in ("organ", "drug"))
    x = dense(own.X).astype(float)
    there = organs == organ
    return x[there & (drugs == drug)].mean(axis=0) - x[there & (drugs == "control")].mean(axis=0)


def rows_of(model, species=None, organ=None, drug=None):
    """Positions of samples of the model's data that were trained on."""
    obs = model.adata.obs
    keep = obs.index.isin(model.training_samples_)
    for key, value in (("species", species), ("organ", organ), ("drug", drug)):
        if value is not None:
            keep = keep & (obs[key].astype(str) == value).to_numpy()
    return np.flatnonzero(keep)


def is_of(adata, *condition):
    """Which samples are of a species, organ and drug."""
    keys = ("species", "organ", "drug")
    return np.all([adata.obs[key].astype(str) == value for key, value in zip(keys, condition, strict=False)], axis=0)


def state(model):
    return {name: tensor.detach().clone().numpy() for name, tensor in model.module.state_dict().items()}


def same_state(one, other):
    one, other = state(one), state(other)
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def recall(gene_map, simulated, target="rat", k=1):
    """Recall over all genes and over those whose namesake does something else, and what chance gives."""
    truth = simulated[target].uns["gene_map"]
    lists = {"all": truth["source"].tolist(), "diverged": truth["source"][truth["is_diverged"]].tolist()}
    scores = tv.metrics.gene_map_scores(
        gene_map, truth, k=k, genes=lists, n_candidates=simulated[target].n_vars
    ).set_index(["genes", "metric"])
    return scores.loc[("all", f"recall@{k}")], scores.loc[("diverged", f"recall@{k}")]


def assert_unchanged(adata, before):
    """Values and the user's own columns are what they were; scvi-tools registers itself in ``uns`` and in ``obs``."""
    np.testing.assert_array_equal(dense(adata.X), dense(before.X))
    assert sp.issparse(adata.X) == sp.issparse(before.X) and adata.X.dtype == before.X.dtype
    own = [key for key in adata.obs if not key.startswith("_scvi")]
    pd.testing.assert_frame_equal(
        adata.obs[own], before.obs[[key for key in before.obs if not key.startswith("_scvi")]]
    )
    pd.testing.assert_frame_equal(adata.var, before.var)
    assert {key for key in adata.uns if not key.startswith("_scvi")} == {
        key for key in before.uns if not key.startswith("_scvi")
    }
    layers = [[key for key in data.layers if key is not None] for data in (adata, before)]
    assert layers[0] == layers[1]
    for key in layers[0]:
        np.testing.assert_array_equal(dense(adata.layers[key]), dense(before.layers[key]))
    assert (list(adata.obsm), list(adata.varm)) == (list(before.obsm), list(before.varm))


@functools.cache
def planted():
    """Two species with a known map, rats that are never shown, and a model that no label of a rat was shown to.

    Tests must not change them.
    """
    data = tv.datasets.simulate_reactomes(n_genes=100, n_organs=4, n_drugs=2, n_animals=6)
    adata = tv.pp.stack_species(data)
    rats = adata.obs[adata.obs["species"] == "rat"].drop_duplicates("animal")
    unseen = rats.groupby("drug", observed=True)["animal"].apply(lambda names: list(names)[:2]).explode()
    is_unseen = adata.obs["animal"].isin(unseen).to_numpy()
    seen, unseen = adata[~is_unseen].copy(), adata[is_unseen].copy()
    scvi.settings.seed = 0
    UGE.setup_anndata(seen, animal_key="animal")
    model = UGE(seen, **PLANTED)
    model.train(
        max_epochs={"genes": 6, "samples": 8},
        hold_out=[("rat", "heart", "drug A")],
        label_species="mouse",
        n_tokens=100,
        batch_size=12,
        plan_kwargs={"lr": 3e-3},
        **QUIET,
    )
    return data, model, unseen
