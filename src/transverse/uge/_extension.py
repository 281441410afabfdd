"""New genes, species, organs and drugs for a trained model, which itself stays as it is."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from os import PathLike
from typing import Self

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData
from torch import nn

from transverse._groups import dense
from transverse._species import species_blocks
from transverse._validation import check_columns, check_log_normalized, examples

from ._constants import UGE_KEYS

_SPECIES_LAYERS = ("genes.projections", "sample_projections")
_TOKENS = "encoder.conditions."


@dataclass(frozen=True)
class Reference:
    """What a model that was extended knew, with its numbers of genes, species, organs and drugs, which stay the first.

    ``shapes`` are those of its parameters.
    """

    shapes: dict[str, tuple[int, ...]]
    features: np.ndarray
    means: np.ndarray
    is_measured: np.ndarray
    conditions: list[tuple[str, str, str]]
    tokens: list[np.ndarray]
    units: dict

    def completed(self, values: np.ndarray, mean: np.ndarray, measured: np.ndarray) -> tuple[np.ndarray, ...]:
        """Features, means and what was measured of more genes and conditions, with these where there are any."""
        n_genes = len(self.features)
        _, n_organs, n_drugs = self.is_measured.shape
        _, all_organs, all_drugs = measured.shape
        entries = np.arange(all_organs * all_drugs).reshape(all_organs, all_drugs)[:n_organs, :n_drugs].ravel()
        organs = all_organs * all_drugs + np.arange(n_organs)
        columns = np.concatenate([entries, organs, [values.shape[1] - 1]])
        values, mean, measured = values.copy(), mean.copy(), measured.copy()
        old = values[:n_genes, columns]
        values[:n_genes, columns] = np.where(np.isnan(self.features), old, self.features)
        mean[:n_genes] = self.means
        measured[: len(self.is_measured), :n_organs, :n_drugs] |= self.is_measured
        return values, mean, measured


class ExtensionMixin:
    """A model of more genes, species, organs or drugs from a trained one."""

    @classmethod
    def load_query_data(cls, adata: AnnData, reference_model: Self | str | PathLike) -> Self:
        """Add genes, species, organs or drugs to a trained model, with all that it has learnt frozen.

        What is new gets parameters of its own, and only these are trained: the vectors of new genes, the projections of a new
        species, the vectors of new organs and drugs in the head of reactomes and their rows in the classifiers. So a new drug
        can be learnt from a few samples of one organ (few-shot), and a new species without those of the others. In most cases
        ``train(stages=["genes"])`` is enough. The stage of samples teaches the classifiers new organs and drugs; give samples of the
        known ones as well, or the new are told in their place.

        Parameters
        ----------
        adata
            Stacked, log-normalised samples of what is new, with the columns of the reference's setup; a new drug or organ with
            control samples of the same organ. Samples of a known species need all of its genes. Samples of what is known may be
            there as well; what the reference knows of genes is kept.
        reference_model
            Trained model, or the folder that it was saved in. It is not changed.

        Returns
        -------
        An untrained model of all genes, whose ``adata`` has the samples of ``adata`` and the genes of both; missing values of
        species that a sample is not of are 0.

        Raises
        ------
        KeyError
            If a column or the layer does not exist.
        ValueError
            If the reference is not trained, a gene is of another species than in the reference, genes are missing, or values
            are not log-normalised.

        Examples
        --------
        Samples of a new drug, here those of a known one under another name:

        >>> new = adata[adata.obs["drug"].isin(["control", "drug B"])].copy()
        >>> new.obs["drug"] = new.obs["drug"].astype(str).replace("drug B", "drug C")
        >>> extended = tv.UGE.load_query_data(new, model)
        >>> extended.train(max_epochs=1, stages=["genes"])
        >>> extended.predict_reactome("rat").var["drug"].unique().tolist()
        ['drug A', 'drug B', 'drug C']
        """
        if isinstance(reference_model, str | PathLike):
            reference = cls.load(str(reference_model), adata=False)
        else:
            reference = reference_model
        if not reference.is_trained_:
            raise ValueError("reference_model is not trained: train it before it is extended.")
        arguments = reference.registry["setup_args"]
        keys = {key: arguments[key] for key in ("species_key", "organ_key", "drug_key", "animal_key") if arguments[key]}
        check_columns(adata, {argument: [key] for argument, key in keys.items()})
        species_blocks(adata, keys["species_key"], genes_suffice=True)
        check_log_normalized(adata, arguments["layer"])
        _check_controls(adata, arguments, reference.drugs_)
        padded = _with_genes_of(reference, adata, keys["species_key"], arguments["layer"])
        for argument, registered in (
            ("species_key", UGE_KEYS.SPECIES_KEY),
            ("organ_key", UGE_KEYS.ORGAN_KEY),
            ("drug_key", UGE_KEYS.DRUG_KEY),
        ):
            if argument in keys:
                values, known = padded.obs[keys[argument]].astype(str), reference._categories(registered)
                new = sorted(set(values) - set(known))
                padded.obs[keys[argument]] = pd.Categorical(values, categories=[*known, *new])
        cls._register(
            padded, {key: reference.registry[key] for key in ("model_name", "setup_method_name", "setup_args")}
        )
        options = reference.init_params_["non_kwargs"]
        kept = ("preset", "n_latent", "n_top_genes", "value_mode", "n_bins", "condition_keys", "weights")
        model = cls(padded, **{key: options[key] for key in kept}, **reference.init_params_["kwargs"]["kwargs"])
        of_both = (model, reference)
        sizes = [(len(m.var_names_), len(m.species_), len(m.organs_), len(m.drugs_)) for m in of_both]
        if sizes[0] == sizes[1]:
            raise ValueError(
                "adata has no new genes, species, organs or drugs: there is nothing to add to the reference."
            )
        _copy_parameters(reference.module, model.module)
        model.unlearnt_ = {
            "organ": [name for name in model.organs_ if name not in reference.organs_] + reference.unlearnt_["organ"],
            "drug": [name for name in model.drugs_ if name not in reference.drugs_] + reference.unlearnt_["drug"],
        }
        model.trained_stages_ = list(reference.trained_stages_)
        known = Reference(
            {name: tuple(value.shape) for name, value in reference.module.named_parameters()},
            reference.features_,
            reference.gene_means_,
            np.asarray(reference.is_measured_),
            list(reference.training_conditions_),
            list(reference.tokens_),
            copy.deepcopy(reference.units_),
        )
        # a file of plain values can be read safely
        model.reference_ = vars(known)
        return model

    @property
    def _reference(self) -> Reference | None:
        return None if self.reference_ is None else Reference(**self.reference_)

    def _freeze(self) -> list:
        """Keep what the reference has learnt from changing; returns the hooks to remove."""
        hooks = []
        for name, parameter in self.module.named_parameters():
            shape = self._reference.shapes.get(name)
            if shape is None:
                continue
            new = torch.ones_like(parameter)
            new[_part(_known_shape(name, shape, parameter))] = 0
            if name.startswith(_TOKENS):
                new[-1] = 0
            if not new.any():
                parameter.requires_grad_(False)
            else:
                hooks.append(parameter.register_hook(lambda gradient, new=new: gradient * new.to(gradient.device)))
        return hooks


def _check_controls(adata: AnnData, arguments: dict, drugs: list[str]) -> None:
    """Raise unless every new drug has control samples of the same species and an organ that it was given in."""
    if arguments["drug_key"] is None:
        return
    keys = [arguments[key] for key in ("species_key", "organ_key", "drug_key")]
    obs = adata.obs[keys].astype(str).set_axis(["species", "organ", "drug"], axis=1)
    control = set(obs.loc[obs["drug"] == drugs[0], ["species", "organ"]].itertuples(index=False, name=None))
    for drug in sorted(set(obs["drug"]) - {*drugs, str(arguments["unlabeled_category"])}):
        given = set(obs.loc[obs["drug"] == drug, ["species", "organ"]].itertuples(index=False, name=None))
        if not given & control:
            raise ValueError(
                f"There are no control samples ({drugs[0]!r}) of the organs that the new drug {drug!r} was given in: "
                f"{examples(sorted(' of '.join(pair[::-1]) for pair in given))}."
            )


def _with_genes_of(reference, adata: AnnData, species_key: str, layer: str | None) -> AnnData:
    """The samples with the genes of the reference and their own, in this order; what they lack is 0."""
    known = pd.Index(reference.var_names_)
    of_known = pd.Series(np.array(reference.species_, dtype=object)[reference._gene_species], index=known)
    own = pd.Series(adata.var[species_key].astype(str).to_numpy(dtype=object), index=adata.var_names)
    both = own.index.intersection(known)
    if len(other := both[(own[both] != of_known[both]).to_numpy()]):
        raise ValueError(f"These genes are of another species in the reference: {examples(other)}.")
    here = set(adata.obs[species_key].astype(str))
    lacking = of_known.index[of_known.isin(here).to_numpy() & ~known.isin(own.index)]
    if len(lacking):
        raise ValueError(
            f"adata lacks {len(lacking)} genes of species that it has samples of: {examples(lacking)}. Give all genes of the "
            "reference's species; impute(adata, species) predicts missing ones."
        )
    names = known.append(own.index.difference(known, sort=False))
    where = own.index.get_indexer(names)
    matrix = adata.X if layer is None else adata.layers[layer]
    matrix = matrix[:] if not isinstance(matrix, np.ndarray) and not sp.issparse(matrix) else matrix
    x = sp.csc_matrix(matrix) if sp.issparse(matrix) else dense(matrix)
    place = np.flatnonzero(where >= 0)
    scatter = sp.csr_matrix(
        (np.ones(len(place), dtype=x.dtype), (where[place], place)), shape=(adata.n_vars, len(names))
    )
    x = (x @ scatter).tocsr() if sp.issparse(x) else np.asarray(x @ scatter)
    var = pd.DataFrame({species_key: pd.concat([of_known, own])[lambda s: ~s.index.duplicated()].reindex(names)})
    var[species_key] = var[species_key].astype("category")
    obs = adata.obs.copy()
    return AnnData(x, obs=obs, var=var) if layer is None else AnnData(obs=obs, var=var, layers={layer: x})


def _known_shape(name: str, shape: tuple[int, ...], parameter: torch.Tensor) -> tuple[int, ...]:
    """What keeps its place in a larger parameter: all, but the token of unknown conditions, which is the last."""
    if name.startswith(_TOKENS) and shape[0] < len(parameter):
        return (shape[0] - 1, *shape[1:])
    return tuple(shape)


def _part(shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Where in a parameter of an extended model that of its reference is, which has this shape."""
    return tuple(slice(0, size) for size in shape)


def _copy_parameters(source: nn.Module, target: nn.Module) -> None:
    """Put what was learnt first in parameters that may be larger; a new species starts from the mean of the others."""
    old = dict(source.named_parameters())
    with torch.no_grad():
        for name, parameter in target.named_parameters():
            if name in old:
                value = old[name].to(parameter.device)
                part = _part(_known_shape(name, value.shape, parameter))
                parameter[part] = value[part]
                if name.startswith(_TOKENS):
                    parameter[-1] = value[-1]
                continue
            layer, rest = next(
                (layer, name.removeprefix(layer + ".").split(".", 1)[1])
                for layer in _SPECIES_LAYERS
                if name.startswith(layer + ".")
            )
            of_species = [
                value for key, value in old.items() if key.startswith(layer + ".") and key.endswith("." + rest)
            ]
            parameter.copy_(torch.stack(of_species).mean(dim=0))
