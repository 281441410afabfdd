"""The context model: how to build one, whether one fits, and what is taken from it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData
from scvi.dataloaders import AnnDataLoader
from scvi.model import SCVI
from scvi.model.base import BaseModelClass
from scvi.module import VAE

from transverse._compat import REGISTRY_KEYS, registered_layer, scvi_data_manager
from transverse._validation import align_genes, check_counts, check_obs_key, column_names, examples, iter_rows
from transverse.nn import encoder_linear_inputs

from ._module import ScSpeciesVAE
from ._neighbors import SmoothedFeatures, smoothing_weights, transform_counts

# Covariates beside the batch.
COVARIATE_KEYS = (REGISTRY_KEYS.CAT_COVS_KEY, REGISTRY_KEYS.CONT_COVS_KEY)

# Keyword arguments of a training plan that trains a context as the paper does; scvi-tools' own schedule raises the KL
# weight over 400 epochs.
CONTEXT_PLAN = {"n_epochs_kl_warmup": 10, "min_kl_weight": 0.1, "eps": 1e-8, "weight_decay": 0.0}


def default_epochs(n_cells: int, batch_size: int = 128, min_steps: int = 500) -> int:
    """Epochs of the paper (30 for more than 10,000 cells, 60 otherwise), and at least so many steps of the optimiser."""
    return max(30 if n_cells > 10_000 else 60, ceil(min_steps / ceil(n_cells / batch_size)))


def make_context(
    adata: AnnData,
    n_hidden: int = 256,
    n_latent: int = 10,
    n_layers: int = 2,
    gene_likelihood: Literal["nb", "zinb"] = "nb",
    dispersion: Literal["gene", "gene-batch"] = "gene-batch",
    clip_activation: bool = True,
    **kwargs,
) -> SCVI:
    """Build a model of the context species: a :class:`scvi.model.SCVI` with the paper's architecture.

    Layer normalisation, two hidden layers, ten latent dimensions, and covariates that enter the first layer only. The
    paper's hidden layers have 300 and 200 units; those of SCVI are of one width.

    Parameters
    ----------
    adata
        Context data, registered with ``scvi.model.SCVI.setup_anndata``.
    n_hidden, n_latent, n_layers, gene_likelihood, dispersion
        As in :class:`scvi.model.SCVI`. The paper's likelihood is ``"zinb"``; ``"nb"`` carries labels over as well and takes
        two thirds of the time.
    clip_activation
        Clip the activations to [0, 6] as in the paper; the published package does not.
    **kwargs
        Further arguments of :class:`scvi.model.SCVI` and :class:`scvi.module.VAE`.

    Returns
    -------
    An untrained model.

    Examples
    --------
    >>> scvi.model.SCVI.setup_anndata(mouse, batch_key="batch")
    >>> context = tv.ScSpecies.make_context(mouse, n_latent=8)
    >>> context.train(max_epochs=2)
    >>> context.get_latent_representation().shape
    (150, 8)
    """
    defaults: dict[str, Any] = {
        "encode_covariates": True,
        "deeply_inject_covariates": False,
        "use_batch_norm": "none",
        "use_layer_norm": "both",
    }
    if clip_activation:
        activation = {"activation_fn": torch.nn.ReLU6}
        defaults.update(extra_encoder_kwargs=activation, extra_decoder_kwargs=dict(activation))
    return SCVI(
        adata,
        n_hidden=n_hidden,
        n_latent=n_latent,
        n_layers=n_layers,
        gene_likelihood=gene_likelihood,
        dispersion=dispersion,
        **{**defaults, **kwargs},
    )


def check_context_model(model: SCVI, n_outer_layers: int) -> None:
    """Raise a ValueError unless ``model`` is a trained SCVI model whose inner encoder reads no covariates."""
    if not isinstance(model, SCVI) or not isinstance(model.module, VAE):
        raise TypeError(f"The context must be a scvi.model.SCVI model, but got {type(model).__name__}.")
    if not model.is_trained:
        raise ValueError("The context model is not trained. Call its train() first.")
    if model.adata is None:
        raise ValueError("The context model has no AnnData. Load it with one: scvi.model.SCVI.load(path, adata=...).")
    if (minified := model.minified_data_type) is not None:
        raise ValueError(
            f"The context model is minified ({minified}): its counts are gone. Load it with the full data."
        )
    check_counts(model.adata, registered_layer(model.adata_manager), "the context's AnnData")
    module = model.module
    if module.latent_distribution != "normal":
        raise ValueError(f"The context's latent_distribution must be 'normal', but is {module.latent_distribution!r}.")
    if module.n_layers < n_outer_layers + 1:
        raise ValueError(
            f"The context's encoder has n_layers={module.n_layers}, but needs at least {n_outer_layers + 1}: "
            f"{n_outer_layers} that the target learns anew and one that is carried over. "
            "ScSpecies.make_context() builds a fitting model."
        )
    widths = encoder_linear_inputs(module.z_encoder.encoder)[n_outer_layers:]
    if any(width != module.n_hidden for width in widths):
        raise ValueError(
            "The context's inner encoder layers read its batch or other covariates, so they cannot serve another data "
            "set. Train the context with deeply_inject_covariates=False, as ScSpecies.make_context() does."
        )


def context_labels(obs: pd.DataFrame, keys: Sequence[str]) -> dict[str, dict]:
    """Labels of the context's cells as plain lists and arrays (missing labels get code -1)."""
    labels = {}
    for key in keys:
        categorical = pd.Categorical(obs[key])
        if len(categorical.categories) == 0:
            raise ValueError(f"labels_key={key!r} of the context holds no label.")
        labels[key] = {
            "categories": [str(c) for c in categorical.categories],
            "codes": np.asarray(categorical.codes, dtype=np.int64),
        }
    return labels


def resolve_labels_keys(model: SCVI, labels_key: str | Sequence[str] | None) -> list[str]:
    """Label columns of the context, by default the one that its model was set up with."""
    if labels_key is None:
        registered = model.adata_manager.get_state_registry("labels").original_key
        if registered not in model.adata.obs or registered.startswith("_scvi"):
            raise ValueError(
                "labels_key is needed: the column of the context's .obs with the labels to transfer. "
                f"Columns: {column_names(model.adata.obs)}."
            )
        return [registered]
    keys = [labels_key] if isinstance(labels_key, str) else list(labels_key)
    for key in keys:
        check_obs_key(model.adata, key, "labels_key (of the context)")
    return keys


@torch.inference_mode()
def encode_cells(module: ScSpeciesVAE, loader: Iterable[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Representations of the context's cells, their library sizes, and their extra covariates by registry key.

    ``"intermediate"``, ``"mean"`` and ``"scale"`` as :meth:`ScSpeciesVAE.encode` has them, ``"library"`` the total counts.
    """
    module.eval()
    parts = []
    for tensors in loader:
        covariates = {key: tensors[key] for key in COVARIATE_KEYS if tensors.get(key) is not None}
        library = tensors[REGISTRY_KEYS.X_KEY].sum(1)
        parts.append({**module.encode(module.context, tensors), "library": library, **covariates})
    return {key: torch.cat([part[key].cpu() for part in parts]) for key in parts[0]}


def shared_features(
    model: BaseModelClass, matrix: sp.csr_matrix, normalization: str, n_smooth: int, seed: int
) -> sp.csr_matrix | SmoothedFeatures:
    """Log-transformed counts of a model's cells on the orthologous genes, of shape ``(n_cells, n_groups)``."""
    shared, own = [], []
    for block in iter_rows(model.adata, registered_layer(model.adata_manager)):
        block = sp.csr_matrix(block, dtype=np.float32)
        library = np.asarray(block.sum(axis=1)).ravel()
        shared.append(transform_counts(block @ matrix, normalization, library))
        if n_smooth > 1:
            own.append(transform_counts(block))
    features = sp.vstack(shared, format="csr")
    if n_smooth <= 1:
        return features
    return SmoothedFeatures(features, smoothing_weights(sp.vstack(own, format="csr"), n_smooth, seed=seed))


def context_loader(adata: AnnData, context: dict[str, Any], indices: np.ndarray) -> Iterable[dict[str, torch.Tensor]]:
    """Mini-batches of some of the context's cells as its model was trained on them; the user's object stays as it is.

    Parameters
    ----------
    adata
        The context's data, in memory or backed. No more of them is copied, or read from a file, than the cells.
    context
        What a model keeps of it: ``"registry"``, ``"var_names"`` and ``"cell_names"``.
    indices
        Cells, in ascending order.

    Raises
    ------
    ValueError
        Unless ``adata`` has the cells and the genes that the context model was trained on.
    """
    if not isinstance(adata, AnnData):
        raise TypeError(f"context_adata must be the context's AnnData, but got {type(adata).__name__}.")
    if adata.obs_names.tolist() != context["cell_names"]:
        raise ValueError(
            f"context_adata must hold the cells that the context model was trained on, in their order: {adata.n_obs} cells "
            f"such as {examples(adata.obs_names[:2])}, but the model knows {len(context['cell_names'])} such as "
            f"{examples(context['cell_names'][:2])}."
        )
    cells = adata[indices]
    cells = align_genes(cells.to_memory() if adata.isbacked else cells.copy(), context["var_names"], "context_adata")
    # registering writes into .obs, .obsm and .uns
    layers = {key: values for key, values in cells.layers.items() if key}
    cells = AnnData(cells.X, obs=cells.obs.copy(), var=cells.var[[]], layers=layers)
    return AnnDataLoader(scvi_data_manager(cells, context["registry"]), shuffle=False)
