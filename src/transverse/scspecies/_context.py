"""What is taken from a context model: its fitness for the method, and its cells' representations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from scvi.model import SCVI
from scvi.module import VAE

from transverse._validation import check_obs_key
from transverse.nn import encoder_linear_inputs


def check_context_model(model: SCVI, n_outer_layers: int) -> None:
    """Raise a ValueError unless ``model`` is a trained SCVI model whose inner encoder reads no covariates."""
    if not isinstance(model, SCVI) or not isinstance(model.module, VAE):
        raise TypeError(f"The context must be a scvi.model.SCVI model, but got {type(model).__name__}.")
    if not model.is_trained:
        raise ValueError("The context model is not trained. Call its train() first.")
    if model.adata is None:
        raise ValueError("The context model has no AnnData. Load it with one: scvi.model.SCVI.load(path, adata=...).")
    if model.minified_data_type is not None:
        raise ValueError("The context model is minified: its counts are gone. Load it with the full AnnData.")
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
                f"Columns: {', '.join(map(repr, model.adata.obs.columns))}."
            )
        return [registered]
    keys = [labels_key] if isinstance(labels_key, str) else list(labels_key)
    for key in keys:
        check_obs_key(model.adata, key, "labels_key (of the context)")
    return keys


def encode_cells(module, vae: VAE, loader) -> dict[str, torch.Tensor]:
    """Intermediate representation, posterior mean and standard deviation of all cells of a data loader."""
    parts = []
    with torch.inference_mode():
        for tensors in loader:
            parts.append({k: v.cpu() for k, v in module.encode(vae, tensors).items()})
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
