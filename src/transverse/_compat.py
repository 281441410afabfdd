"""The one place that knows versions and private corners of scvi-tools."""

from __future__ import annotations

from typing import Any

import rich.pretty  # noqa: F401  scvi-tools 1.4.2 uses rich.pretty in view_anndata_setup without importing it
import torch
from scvi import REGISTRY_KEYS
from scvi.model import SCVI
from scvi.model._utils import _init_library_size, get_max_epochs_heuristic, use_distributed_sampler
from scvi.module._constants import MODULE_KEYS
from scvi.utils._docstrings import devices_dsp

__all__ = [
    "MODULE_KEYS",
    "REGISTRY_KEYS",
    "devices_dsp",
    "get_max_epochs_heuristic",
    "init_library_size",
    "use_distributed_sampler",
    "vae_kwargs",
]

init_library_size = _init_library_size


def vae_kwargs(model: SCVI) -> dict[str, Any]:
    """Keyword arguments that rebuild ``model.module`` (a :class:`scvi.module.VAE`) with the same shapes.

    The values are plain Python and numpy objects, so that they can be stored with a model of ours.
    """
    params = model.init_params_
    kwargs = {**params["non_kwargs"], **params["kwargs"].get("kwargs", {})}
    stats = model.summary_stats
    n_cats_per_cov = None
    if REGISTRY_KEYS.CAT_COVS_KEY in model.adata_manager.data_registry:
        n_cats_per_cov = [
            int(n) for n in model.adata_manager.get_state_registry(REGISTRY_KEYS.CAT_COVS_KEY).n_cats_per_key
        ]
    kwargs.update(
        n_input=int(stats.n_vars),
        n_batch=int(stats.n_batch),
        n_labels=int(stats.n_labels),
        n_continuous_cov=int(stats.get("n_extra_continuous_covs", 0)),
        n_cats_per_cov=n_cats_per_cov,
        use_size_factor_key=bool(model.module.use_size_factor_key),
        use_observed_lib_size=bool(model.module.use_observed_lib_size),
    )
    for name in ("library_log_means", "library_log_vars"):
        value = getattr(model.module, name, None)
        if isinstance(value, torch.Tensor):
            kwargs[name] = value.detach().cpu().numpy()
    return kwargs
