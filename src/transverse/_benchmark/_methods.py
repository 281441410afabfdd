"""What can be benchmarked: baselines, scvi-tools models, and functions that train either."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import scvi

from transverse._validation import examples


@dataclass(frozen=True)
class Method:
    """A method to run. An optional one is left out where it does not fit the data."""

    name: str
    kind: str
    make: Any
    optional: bool = False


def methods_of(models: Mapping[str, Any], baselines: Mapping[str, Any]) -> list[Method]:
    """All methods, models first. Values of ``baselines`` that are classes or functions make a baseline that may not fit."""
    if both := sorted(set(models) & set(baselines)):
        raise ValueError(f"A model and a baseline have the same name: {examples(both)}. Rename the model.")
    for name, model in models.items():
        if not (callable(model) or hasattr(model, "fit")):
            raise TypeError(
                f"models[{name!r}] must be a model class, an object with fit, or a function (train, seed) that returns a "
                f"trained model, but is {type(model).__name__}."
            )
    methods = [Method(name, "model", model) for name, model in models.items()]
    for name, baseline in baselines.items():
        if hasattr(baseline, "fit") and not inspect.isclass(baseline):
            methods.append(Method(name, "baseline", baseline))
        elif callable(baseline):
            methods.append(Method(name, "baseline", baseline(), optional=True))
        else:
            raise TypeError(f"baselines[{name!r}] must be a baseline or make one, but is {type(baseline).__name__}.")
    if not methods:
        raise ValueError("There is nothing to run: models and baselines are empty.")
    return methods


def fitted(method: Method, train, seed: int, setup: dict[str, Any], extra: dict[str, Any] | None = None):
    """The method trained on ``train``, with scvi-tools' seed set; ``extra`` is for baselines only."""
    make = method.make
    if method.kind == "model":
        scvi.settings.seed = seed
    if inspect.isclass(make) and hasattr(make, "setup_anndata"):
        train = in_memory(train)
        # what is not given is left to the model, but no drugs are not its default
        given = {key: value for key, value in setup.items() if value is not None or key == "drug_key"}
        make.setup_anndata(train, **given)
        model = make(train)
        model.train()
        return model
    if hasattr(make, "fit"):
        return copy.deepcopy(make).fit(train, **setup, **(extra or {}))
    return make(in_memory(train), seed)


def in_memory(data):
    """A copy of an AnnData, also of a part of a backed one, or of several by name."""
    if isinstance(data, Mapping):
        return {name: in_memory(adata) for name, adata in data.items()}
    return data.to_memory() if data.isbacked else data.copy()


def as_mapping(models: Any) -> dict[str, Any]:
    """Models by name, from a mapping, a single one or several."""
    if models is None:
        return {}
    if isinstance(models, Mapping):
        return {str(name): model for name, model in models.items()}
    several = models if isinstance(models, Sequence) and not isinstance(models, str) else [models]
    named = {_name(model): model for model in several}
    if len(named) < len(several):
        raise ValueError("models have the same name. Pass a mapping from names to models.")
    return named


def _name(model: Callable | object) -> str:
    return getattr(model, "__name__", type(model).__name__)
