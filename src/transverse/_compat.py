"""The one place that knows versions and private corners of scvi-tools."""

from __future__ import annotations

import codecs
import os
import pickle
import re
from collections import OrderedDict
from typing import Any

import numpy as np
import rich.pretty  # noqa: F401  view_anndata_setup of scvi-tools 1.4.2 needs it and does not import it
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data._download import _download
from scvi.model import SCVI
from scvi.model._utils import _init_library_size
from scvi.module._constants import MODULE_KEYS
from scvi.utils._docstrings import devices_dsp

__all__ = [
    "MODULE_KEYS",
    "REGISTRY_KEYS",
    "categories_per_covariate",
    "checked_load",
    "devices_dsp",
    "download",
    "init_library_size",
    "registered_layer",
    "scvi_data_manager",
    "vae_kwargs",
]

init_library_size = _init_library_size
download = _download


def checked_load(path: str | os.PathLike, argument: str) -> dict[str, Any]:
    """A file of PyTorch that holds nothing but tensors, arrays and plain values, which is read without running any code.

    Raises a ValueError, which names the file as the argument, if it is none, cut short or holds anything else.
    """
    try:
        with torch.serialization.safe_globals(_plain_types()):
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
        if unsafe := re.search(r"GLOBAL (\S+)", str(error)):
            what = f"holds objects that could run code when they are read, such as {unsafe[1]}"
        else:
            what = "cannot be read: it was cut short, or is not a file of PyTorch"
        raise ValueError(f"{argument}={str(path)!r} {what}.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{argument}={str(path)!r} holds a {type(found).__name__}, not what was saved.")
    return found


def _plain_types() -> list:
    """Types of Python's and numpy's values, as pickles name them, and of activations, which networks are made with."""
    numpy_own = {np.ndarray, np.dtype, np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0], codecs.encode}
    numpy_own |= {type(np.dtype(code)) for code in "?bhilqBHILQefdOSUMm"}
    activations = {value for value in vars(torch.nn.modules.activation).values() if isinstance(value, type)}
    activations = {value for value in activations if issubclass(value, torch.nn.Module)}
    return [*numpy_own, *activations, OrderedDict, dict, list, set, tuple, slice, bytes, bytearray, complex]


def scvi_data_manager(adata: AnnData, registry: dict[str, Any]) -> AnnDataManager:
    """Register ``adata`` as the data of a :class:`scvi.model.SCVI` with a given registry; writes into it."""
    SCVI.setup_anndata(adata, source_registry=registry, **registry["setup_args"])
    manager = SCVI._get_most_recent_anndata_manager(adata, required=True)
    # the class would keep the data alive for good
    SCVI._setup_adata_manager_store.pop(manager.adata_uuid, None)
    return manager


def registered_layer(manager: AnnDataManager) -> str | None:
    """Name of the layer that a model reads its counts from, or None for ``X``."""
    registry = manager.data_registry[REGISTRY_KEYS.X_KEY]
    return registry["attr_key"] if registry["attr_name"] == "layers" else None


def categories_per_covariate(registry: dict[str, Any]) -> list[int] | None:
    """Number of categories of every extra categorical covariate in a registry, or None without any."""
    state = registry["field_registries"].get(REGISTRY_KEYS.CAT_COVS_KEY, {}).get("state_registry", {})
    counts = state.get("n_cats_per_key")
    return [int(n) for n in counts] if counts else None


def vae_kwargs(model: SCVI) -> dict[str, Any]:
    """Keyword arguments that rebuild ``model.module`` (a :class:`scvi.module.VAE`) with the same shapes.

    The values are plain Python and numpy objects, so that they can be stored with a model of ours.
    """
    params = model.init_params_
    kwargs = {**params["non_kwargs"], **params["kwargs"].get("kwargs", {})}
    # every parameter of SCVI's constructor that is not one of the network
    for name in ("adata", "registry"):
        kwargs.pop(name, None)
    stats = model.summary_stats
    kwargs.update(
        n_input=int(stats.n_vars),
        n_batch=int(stats.n_batch),
        n_labels=int(stats.n_labels),
        n_continuous_cov=int(stats.get("n_extra_continuous_covs", 0)),
        n_cats_per_cov=categories_per_covariate(model.registry),
        use_size_factor_key=bool(model.module.use_size_factor_key),
        use_observed_lib_size=bool(model.module.use_observed_lib_size),
    )
    for name in ("library_log_means", "library_log_vars"):
        value = getattr(model.module, name, None)
        if isinstance(value, torch.Tensor):
            kwargs[name] = value.detach().cpu().numpy()
    return kwargs
