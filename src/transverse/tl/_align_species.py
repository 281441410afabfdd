from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from anndata import AnnData
from anndata import concat as concat_anndata
from mudata import MuData
from scvi import settings
from scvi.model import SCVI

from transverse._validation import check_obs_key, examples
from transverse.scspecies import CONTEXT_PLAN, ScSpecies, default_epochs

_MANIFEST = "species.json"


@dataclass
class SpeciesAlignment:
    """Models that carry one context species to any number of target species; made by :func:`align_species`.

    Parameters
    ----------
    context
        Name of the context species.
    context_model
        Its model.
    models
        Names of the target species and their models, all in the latent space of the context.

    Examples
    --------
    >>> import transverse as tv
    >>> data = tv.datasets.simulate_species("tiny", n_cells=150)
    >>> alignment = tv.tl.align_species(
    ...     data,
    ...     context="mouse",
    ...     labels_key="cell_type",
    ...     orthologs=data["human"].uns["orthologs"],
    ...     batch_key="batch",
    ...     context_train_kwargs={"max_epochs": 3},  # by default as many as the data need
    ...     train_kwargs={"max_epochs": 3},
    ... )
    >>> alignment.context, list(alignment.models)
    ('mouse', ['human'])
    """

    context: str
    context_model: SCVI
    models: dict[str, ScSpecies]

    def joint(self, use_rep: str = "X_scSpecies", label: str = "scSpecies_label") -> AnnData:
        """Latent representations of all species, for :func:`scanpy.pp.neighbors` and :func:`scanpy.pl.umap`.

        Parameters
        ----------
        use_rep
            Key of ``.obsm`` for the representation.
        label
            Column of ``.obs`` for the labels: the context's own, and those transferred to the targets.

        Returns
        -------
        All cells without genes; ``.obs`` has ``species``, the labels and, for targets, their ``confidence`` and ``novelty``.

        Examples
        --------
        >>> joint = alignment.joint()
        >>> joint.obsm["X_scSpecies"].shape
        (300, 10)
        >>> joint.obs["species"].value_counts().to_dict()
        {'mouse': 150, 'human': 150}
        """
        first = next(iter(self.models.values()))
        labels = first._labels(None)
        known = pd.Categorical.from_codes(labels["codes"], categories=labels["categories"])
        index = pd.Index(first.context_["cell_names"])
        parts = {self.context: (pd.DataFrame({label: known}, index=index), first.get_context_representation())}
        for name, model in self.models.items():
            table = model.transfer_labels()[["label", "confidence", "novelty"]].rename(columns={"label": label})
            parts[name] = (table, model.get_latent_representation())
        adatas = {name: AnnData(obs=obs, obsm={use_rep: latent}) for name, (obs, latent) in parts.items()}
        joint = concat_anndata(adatas, label="species", index_unique="-", join="outer")
        joint.obs[label] = joint.obs[label].astype("category")
        joint.obs["species"] = joint.obs["species"].cat.set_categories(list(parts))
        return joint

    def save(self, dir_path: str | os.PathLike, overwrite: bool = False, **kwargs) -> None:
        """Save all models, each into a folder of its own.

        Parameters
        ----------
        dir_path
            Folder, made if it is not there.
        overwrite
            Replace what an earlier call left there.
        **kwargs
            Further arguments of :meth:`scvi.model.SCVI.save`, e.g. ``save_anndata=True``.

        Raises
        ------
        FileExistsError
            If the folder is there already and ``overwrite`` is off.

        Examples
        --------
        >>> alignment.save("alignment", save_anndata=True)
        >>> alignment.save("alignment", overwrite=True)  # without the data, which then go to the call of load
        """
        folder = Path(dir_path)
        if folder.exists() and not overwrite:
            raise FileExistsError(f"{folder} exists already. Give another folder, or overwrite=True.")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _MANIFEST).unlink(missing_ok=True)
        models = {self.context: self.context_model, **self.models}
        folders = {name: f"model_{i}" for i, name in enumerate(models)}
        for name, model in models.items():
            model.save(str(folder / folders[name]), overwrite=overwrite, **kwargs)
        # last, so that a folder without it is known to be incomplete
        (folder / _MANIFEST).write_text(json.dumps({"context": self.context, "folders": folders}, indent=2))

    @classmethod
    def load(
        cls, dir_path: str | os.PathLike, mdata: MuData | Mapping[str, AnnData] | None = None, **kwargs
    ) -> SpeciesAlignment:
        """Load what :meth:`save` has written.

        Parameters
        ----------
        dir_path
            The folder.
        mdata
            Data of every species; by default what was saved with the models.
        **kwargs
            Further arguments of :meth:`scvi.model.SCVI.load`.

        Raises
        ------
        FileNotFoundError
            If the folder holds no complete alignment.
        KeyError
            If ``mdata`` lacks one of the species.

        Examples
        --------
        >>> alignment.save("alignment", save_anndata=True)
        >>> again = tv.tl.SpeciesAlignment.load("alignment")
        >>> list(again.models)
        ['human']
        """
        folder = Path(dir_path)
        if not (folder / _MANIFEST).is_file():
            raise FileNotFoundError(f"{folder} holds no complete alignment: there is no {_MANIFEST} in it.")
        manifest = json.loads((folder / _MANIFEST).read_text())
        data = None if mdata is None else _modalities(mdata)
        loaded = {}
        for name, sub in manifest["folders"].items():
            if data is not None and name not in data:
                raise KeyError(f"mdata has no species {name!r}, only {examples(data)}.")
            model = SCVI if name == manifest["context"] else ScSpecies
            loaded[name] = model.load(str(folder / sub), None if data is None else data[name], **kwargs)
        context_model = loaded.pop(manifest["context"])
        return cls(manifest["context"], context_model, loaded)


def align_species(
    mdata: MuData | Mapping[str, AnnData],
    context: str,
    labels_key: str,
    *,
    orthologs: pd.DataFrame | Mapping | str | None = None,
    batch_key: str | Mapping[str, str | None] | None = None,
    layer: str | None = None,
    context_model: SCVI | None = None,
    context_kwargs: Mapping[str, Any] | None = None,
    context_train_kwargs: Mapping[str, Any] | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    train_kwargs: Mapping[str, Any] | None = None,
    unknown_threshold: float | Literal["auto"] | None = None,
    key_added: str = "scSpecies",
) -> SpeciesAlignment:
    """Align any number of species with one annotated context species, by scSpecies :cite:p:`Schaechter2025`.

    The context's model is trained once; every other species gets a model of its own, aligned with the context on the genes
    that it shares with *it*. Two targets meet in the context's latent space, however few genes they share with each other.

    Parameters
    ----------
    mdata
        Raw counts of every species, a modality each; or a mapping of names to AnnData.
    context
        The species whose labels are known.
    labels_key
        Column of the context's ``.obs`` with the labels.
    orthologs
        Orthologues of the context's and a target's genes, as :meth:`~transverse.ScSpecies.from_scvi_model` takes them. A
        mapping whose keys are the target species gives each its own.
    batch_key
        Column of ``.obs`` with the batches, or a mapping of species to columns.
    layer
        Layer with the counts, by default ``.X``.
    context_model
        A trained model of the context, instead of training one.
    context_kwargs, context_train_kwargs
        Arguments of :meth:`~transverse.ScSpecies.make_context` and of the context's training, by default for 60 epochs, 30
        with more than 10,000 cells, and for as many with few cells as make 500 steps of the optimiser.
    model_kwargs, train_kwargs
        Arguments of :meth:`~transverse.ScSpecies.from_scvi_model` and :meth:`~transverse.ScSpecies.train`.
    unknown_threshold
        As in :meth:`~transverse.ScSpecies.transfer_labels`.
    key_added
        Prefix of what is written.

    Returns
    -------
    The models. Every modality gets ``.obsm[f"X_{key_added}"]``, and every target the columns of
    :meth:`~transverse.ScSpecies.transfer_labels` as ``.obs[f"{key_added}_label"]``, ``.obs[f"{key_added}_confidence"]`` and so on.

    Raises
    ------
    KeyError
        If a species or a column is missing.
    ValueError
        If there is no target species, or the data do not fit.

    Examples
    --------
    >>> import scanpy as sc
    >>> import transverse as tv
    >>> data = tv.datasets.simulate_species("tiny", n_cells=150)
    >>> alignment = tv.tl.align_species(
    ...     data,
    ...     context="mouse",
    ...     labels_key="cell_type",
    ...     orthologs=data["human"].uns["orthologs"],
    ...     batch_key="batch",
    ...     context_train_kwargs={"max_epochs": 3},  # by default as many as the data need
    ...     train_kwargs={"max_epochs": 3},
    ... )
    >>> joint = alignment.joint()
    >>> sc.pp.neighbors(joint, use_rep="X_scSpecies")
    >>> sc.tl.umap(joint)
    >>> axes = sc.pl.umap(joint, color=["species", "scSpecies_label"], show=False)
    """
    data = _modalities(mdata)
    if context not in data:
        raise KeyError(f"context={context!r} is not a species of mdata, which has {examples(data)}.")
    targets = [name for name in data if name != context]
    if not targets:
        raise ValueError(f"mdata has no species beside the context {context!r}.")
    check_obs_key(data[context], labels_key, f"labels_key (of {context!r})")
    batches = _batch_keys(data, batch_key)
    tables = _tables(targets, orthologs)

    if context_model is None:
        SCVI.setup_anndata(data[context], layer=layer, batch_key=batches[context])
        context_model = ScSpecies.make_context(data[context], **(context_kwargs or {}))
        train = {
            "max_epochs": default_epochs(data[context].n_obs),
            "train_size": 1.0,
            "plan_kwargs": dict(CONTEXT_PLAN),
        }
        context_model.train(**{**train, **(context_train_kwargs or {})})
    models = {}
    for name in targets:
        _reseed()
        ScSpecies.setup_anndata(data[name], layer=layer, batch_key=batches[name])
        models[name] = ScSpecies.from_scvi_model(
            context_model, data[name], tables[name], labels_key, **(model_kwargs or {})
        )
    # every species has passed the checks by now
    for model in models.values():
        _reseed()
        model.train(**(train_kwargs or {}))

    for name, model in models.items():
        adata = data[name]
        adata.obsm[f"X_{key_added}"] = model.get_latent_representation()
        table = model.transfer_labels(unknown_threshold=unknown_threshold)
        for column in table:
            adata.obs[f"{key_added}_{column}"] = table[column]
    data[context].obsm[f"X_{key_added}"] = next(iter(models.values())).get_context_representation()
    return SpeciesAlignment(context, context_model, models)


def _reseed() -> None:
    """Start every model from the user's seed, so that it does not depend on the species before it."""
    if settings.seed is not None:
        settings.seed = settings.seed


def _modalities(mdata: MuData | Mapping[str, AnnData]) -> dict[str, AnnData]:
    data = dict(mdata.mod) if isinstance(mdata, MuData) else mdata
    if not isinstance(data, Mapping) or not all(isinstance(adata, AnnData) for adata in data.values()):
        raise TypeError("mdata must be a MuData, or a mapping of species to AnnData.")
    return dict(data)


def _batch_keys(data: dict[str, AnnData], batch_key: str | Mapping[str, str | None] | None) -> dict[str, str | None]:
    keys = batch_key if isinstance(batch_key, Mapping) else dict.fromkeys(data, batch_key)
    if unknown := [name for name in keys if name not in data]:
        raise KeyError(f"batch_key names {examples(unknown)}, but the species are {examples(data)}.")
    for name, key in keys.items():
        if key is not None:
            check_obs_key(data[name], key, f"batch_key (of {name!r})")
    return {name: keys.get(name) for name in data}


def _tables(targets: list[str], orthologs) -> dict[str, Any]:
    by_species = isinstance(orthologs, Mapping) and any(name in orthologs for name in targets)
    if not by_species:
        return dict.fromkeys(targets, orthologs)
    if missing := [name for name in targets if name not in orthologs]:
        raise KeyError(f"orthologs has no entry for {examples(missing)}, only for {examples(orthologs)}.")
    return {name: orthologs[name] for name in targets}
