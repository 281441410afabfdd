"""What is trained on: samples, their labels, the features of genes, and which genes are tokens."""

from __future__ import annotations

import copy
from dataclasses import asdict

import numpy as np
import pandas as pd
from scvi import settings

from transverse._compat import registered_layer
from transverse._groups import group_profiles
from transverse._validation import examples

from ._constants import UGE_KEYS
from ._features import FeatureUnits, gene_features


class TrainingDataMixin:
    """The training's view of the model's data."""

    def _names(self, key: str) -> np.ndarray:
        names = np.array(self._categories(key), dtype=object)
        return names[self.adata_manager.get_from_registry(key).ravel().astype(int)]

    @property
    def _gene_species(self) -> np.ndarray:
        return np.asarray(self.init_params_["non_kwargs"]["gene_species"])

    def _split(
        self, kwargs, hold_out, train_size, validation_size, shuffle, validates
    ) -> tuple[np.ndarray, np.ndarray]:
        rows = np.arange(self.adata.n_obs)
        conditions = pd.MultiIndex.from_arrays(self._condition_names())
        out = np.zeros(len(rows), dtype=bool)
        for condition in hold_out:
            here = conditions.isin([tuple(map(str, condition))])
            if not here.any():
                raise ValueError(f"hold_out has {condition}, of which adata has no samples.")
            out |= here
        external = kwargs.pop("external_indexing", None)
        if external is not None:
            if len(external) < 2:
                raise ValueError("external_indexing must have the samples of training and of validation.")
            train, validation = (np.sort(np.asarray(part, dtype=int)) for part in external[:2])
            return train[~out[train]], validation[~out[validation]]
        if validation_size is not None and not 0 <= validation_size < 1:
            raise ValueError(f"validation_size={validation_size} must be at least 0 and below 1.")
        usual = 0.9 if validates else 1.0
        size = (usual if validation_size is None else 1 - validation_size) if train_size is None else train_size
        if not 0 < size <= 1:
            raise ValueError(f"train_size={train_size} must be above 0 and at most 1.")
        if size + (validation_size or 0) > 1 + 1e-9:
            raise ValueError(f"train_size={size} and validation_size={validation_size} are above 1 together.")
        left = rows[~out]
        units = left
        if self.registry["setup_args"]["animal_key"] is not None:
            units = (self._names(UGE_KEYS.SPECIES_KEY) + "|" + self._names(UGE_KEYS.ANIMAL_KEY))[left]
        groups = np.unique(units)
        order = np.random.default_rng(settings.seed or 0).permutation(groups) if shuffle else groups
        n_train = max(1, round(size * len(groups)))
        n_validation = len(groups) - n_train if validation_size is None else round(validation_size * len(groups))
        validation = left[np.isin(units, order[n_train : n_train + n_validation])]
        return left[np.isin(units, order[:n_train])], validation

    def _drug_names(self) -> np.ndarray:
        if self.registry["setup_args"]["drug_key"] is None:
            return np.full(self.adata.n_obs, self.drugs_[0], dtype=object)
        return self._names(UGE_KEYS.DRUG_KEY)

    def _fit_features(self, train: np.ndarray, profile_weight: float, level_weight: float) -> None:
        """Reactomes, organs and levels of all genes from training samples, which labels are known of."""
        arguments = self.registry["setup_args"]
        organs, drugs = self._names(UGE_KEYS.ORGAN_KEY), self._drug_names()
        samples = np.zeros(self.adata.n_obs, dtype=bool)
        samples[train] = True
        samples &= np.isin(organs, self.organs_) & np.isin(drugs, self.drugs_)
        reference = self._reference
        found = gene_features(
            self.adata,
            self._gene_species,
            self.species_,
            self.organs_,
            self.drugs_[1:],
            **{key: arguments[key] for key in ("species_key", "organ_key", "drug_key", "animal_key")},
            control=self.drugs_[0],
            layer=registered_layer(self.adata_manager),
            samples=samples,
            profile_weight=profile_weight,
            level_weight=level_weight,
            units=None if reference is None else FeatureUnits(**copy.deepcopy(reference.units)),
        )
        values, mean, measured = found.values, found.mean, found.is_measured
        if reference is not None:
            values, mean, measured = reference.completed(values, mean, measured)
        known = [name for s, name in enumerate(self.species_) if not np.isnan(mean[self._gene_species == s]).all()]
        if unknown := [name for name in self.species_ if name not in known]:
            raise ValueError(
                f"The training has no control samples of a known organ of {examples(unknown)}: nothing tells what its genes "
                f"do. Label some in obs[{arguments['organ_key']!r}]."
            )
        self.features_, self.gene_means_, self.is_measured_ = values, mean, measured
        self.units_ = asdict(found.units)

    def _remember(self, seen: np.ndarray) -> None:
        """The conditions that are trained on, or choose the best epoch, whether or not they are in an average."""
        conditions = set(zip(*(names[seen] for names in self._condition_names()), strict=True))
        if self.is_trained_:
            conditions |= {tuple(condition) for condition in self.training_conditions_}
        if self.reference_ is not None:
            conditions |= set(self._reference.conditions)
        self.training_conditions_ = sorted(conditions)

    def _condition_names(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Species, organ and drug of every sample."""
        return self._names(UGE_KEYS.SPECIES_KEY), self._names(UGE_KEYS.ORGAN_KEY), self._drug_names()

    def _labels(self, label_species) -> dict[str, np.ndarray]:
        wanted = (
            self.species_
            if label_species is None
            else [label_species]
            if isinstance(label_species, str)
            else list(label_species)
        )
        if unknown := sorted(set(wanted) - set(self.species_)):
            raise KeyError(f"Unknown label_species: {examples(unknown)}. Known: {examples(self.species_)}.")
        learn = np.isin(self._names(UGE_KEYS.SPECIES_KEY), wanted)
        labels = {}
        for key, names, known in (
            (UGE_KEYS.ORGAN_KEY, self._names(UGE_KEYS.ORGAN_KEY), self.organs_),
            (UGE_KEYS.DRUG_KEY, self._drug_names(), self.drugs_),
        ):
            codes = pd.Index(known).get_indexer(names)
            labels[key] = np.where(learn, codes, -1).astype(np.int64)
        return labels

    def _conditions(self) -> np.ndarray | None:
        keys = self.init_params_["non_kwargs"]["condition_keys"]
        if not keys:
            return None
        known = {"organ": (self._names(UGE_KEYS.ORGAN_KEY), self.organs_), "drug": (self._drug_names(), self.drugs_)}
        # one more for those that are not known
        return np.column_stack(
            [pd.Index(names).get_indexer(values) % (len(names) + 1) for values, names in (known[k] for k in keys)]
        )

    def _tokens(self, train: np.ndarray) -> list[np.ndarray]:
        """Genes of every species that vary most over its training samples."""
        n_top = self.init_params_["non_kwargs"]["n_top_genes"]
        profiles = group_profiles(
            self.adata, [self.registry["setup_args"]["species_key"]], registered_layer(self.adata_manager), train
        )
        there = profiles.keys.iloc[:, 0].tolist()
        tokens = []
        for s, name in enumerate(self.species_):
            own = np.flatnonzero(self._gene_species == s)
            if self.reference_ is not None and s < len(self._reference.tokens):
                new = own[own >= len(self._reference.features)]
                tokens.append(np.concatenate([self._reference.tokens[s], new]))
                continue
            variance = profiles.variance[there.index(name)][own]
            tokens.append(own if n_top is None else own[np.sort(np.argsort(-variance, kind="stable")[:n_top])])
        self.tokens_ = tokens
        return tokens
