from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData
from scvi import settings
from scvi.data import AnnDataManager
from scvi.data.fields import CategoricalJointObsField, CategoricalObsField, LayerField, NumericalJointObsField
from scvi.model import SCVI
from scvi.model.base import BaseModelClass, RNASeqMixin, UnsupervisedTrainingMixin, VAEMixin
from scvi.train import TrainRunner
from scvi.utils import setup_anndata_dsp

from transverse._compat import REGISTRY_KEYS, init_library_size, use_distributed_sampler, vae_kwargs
from transverse._validation import check_counts, check_no_empty_cells, check_obs_key, check_unique_var_names, iter_rows
from transverse.pp import match_orthologs

from ._context import check_context_model, context_labels, encode_cells, resolve_labels_keys
from ._data import CandidateDataSplitter
from ._module import ScSpeciesVAE
from ._neighbors import eligible_cells, nearest_neighbors, transform_counts, vote
from ._training_plan import ScSpeciesTrainingPlan


class ScSpecies(RNASeqMixin, VAEMixin, UnsupervisedTrainingMixin, BaseModelClass):
    """Prototype."""

    _module_cls = ScSpeciesVAE
    _training_plan_cls = ScSpeciesTrainingPlan
    _data_splitter_cls = CandidateDataSplitter
    _train_runner_cls = TrainRunner

    def __init__(
        self,
        adata: AnnData,
        context_kwargs: dict[str, Any],
        n_context_cells: int,
        n_outer_layers: int = 1,
        gene_likelihood: Literal["nb", "zinb"] | None = None,
        dispersion: Literal["gene", "gene-batch", "gene-cell"] | None = None,
        use_observed_lib_size: bool | None = None,
        is_shared: np.ndarray | None = None,
        **kwargs,
    ):
        super().__init__(adata)
        context_kwargs = dict(context_kwargs)
        stats = self.summary_stats
        n_cats_per_cov = (
            self.adata_manager.get_state_registry(REGISTRY_KEYS.CAT_COVS_KEY).n_cats_per_key
            if REGISTRY_KEYS.CAT_COVS_KEY in self.adata_manager.data_registry
            else None
        )
        inherited = (
            "n_hidden", "n_latent", "n_layers", "dropout_rate", "log_variational", "use_batch_norm", "use_layer_norm",
            "extra_encoder_kwargs", "extra_decoder_kwargs", "var_activation", "gene_likelihood", "dispersion",
            "use_observed_lib_size",
        )
        module_kwargs = {key: context_kwargs[key] for key in inherited if key in context_kwargs}
        chosen = {
            "gene_likelihood": gene_likelihood, "dispersion": dispersion, "use_observed_lib_size": use_observed_lib_size
        }
        module_kwargs.update({key: value for key, value in chosen.items() if value is not None})
        module_kwargs.update(encode_covariates=True, deeply_inject_covariates=False)
        module_kwargs.update(kwargs)
        if not module_kwargs.get("use_observed_lib_size", True):
            means, variances = init_library_size(self.adata_manager, stats.n_batch)
            module_kwargs.update(library_log_means=means, library_log_vars=variances)
        self.module = self._module_cls(
            n_input=stats.n_vars,
            context_kwargs=context_kwargs,
            n_context_cells=n_context_cells,
            n_outer_layers=n_outer_layers,
            is_shared=is_shared,
            n_batch=stats.n_batch,
            n_labels=stats.n_labels,
            n_continuous_cov=stats.get("n_extra_continuous_covs", 0),
            n_cats_per_cov=n_cats_per_cov,
            **module_kwargs,
        )
        self._model_summary_string = "ScSpecies"
        self.init_params_ = self._get_init_params(locals())

    @staticmethod
    def make_context(
        adata: AnnData,
        n_hidden: int = 256,
        n_latent: int = 10,
        n_layers: int = 2,
        gene_likelihood: Literal["zinb", "nb"] = "zinb",
        dispersion: Literal["gene", "gene-batch"] = "gene-batch",
        clip_activation: bool = True,
        **kwargs,
    ) -> SCVI:
        defaults: dict[str, Any] = {
            "encode_covariates": True,
            "deeply_inject_covariates": False,
            "use_batch_norm": "none",
            "use_layer_norm": "both",
        }
        if clip_activation:
            defaults["extra_encoder_kwargs"] = {"activation_fn": torch.nn.ReLU6}
            defaults["extra_decoder_kwargs"] = {"activation_fn": torch.nn.ReLU6}
        return SCVI(
            adata, n_hidden=n_hidden, n_latent=n_latent, n_layers=n_layers, gene_likelihood=gene_likelihood,
            dispersion=dispersion, **{**defaults, **kwargs},
        )

    @classmethod
    @setup_anndata_dsp.dedent
    def setup_anndata(
        cls,
        adata: AnnData,
        layer: str | None = None,
        batch_key: str | None = None,
        categorical_covariate_keys: list[str] | None = None,
        continuous_covariate_keys: list[str] | None = None,
        **kwargs,
    ):
        """%(summary)s."""
        setup_method_args = cls._get_setup_method_args(**locals())
        check_unique_var_names(adata)
        for name, key in [("batch_key", batch_key)]:
            if key is not None:
                check_obs_key(adata, key, name)
        check_counts(adata, layer)
        check_no_empty_cells(adata, layer)
        fields = [
            LayerField(REGISTRY_KEYS.X_KEY, layer, is_count_data=True),
            CategoricalObsField(REGISTRY_KEYS.BATCH_KEY, batch_key),
            CategoricalObsField(REGISTRY_KEYS.LABELS_KEY, None),
            CategoricalJointObsField(REGISTRY_KEYS.CAT_COVS_KEY, categorical_covariate_keys),
            NumericalJointObsField(REGISTRY_KEYS.CONT_COVS_KEY, continuous_covariate_keys),
        ]
        adata_manager = AnnDataManager(fields=fields, setup_method_args=setup_method_args)
        adata_manager.register_fields(adata, **kwargs)
        cls.register_manager(adata_manager)

    @classmethod
    def from_scvi_model(
        cls,
        context_model: SCVI,
        adata: AnnData,
        orthologs: pd.DataFrame | Mapping | str | None = None,
        labels_key: str | Sequence[str] | None = None,
        *,
        policy: Literal["one2one", "best", "sum"] = "one2one",
        n_neighbors: int = 25,
        normalization: Literal["library", "none"] = "library",
        metric: str = "cosine",
        n_outer_layers: int = 1,
        **kwargs,
    ) -> ScSpecies:
        check_context_model(context_model, n_outer_layers)
        keys = resolve_labels_keys(context_model, labels_key)
        match = match_orthologs(context_model.adata, adata, orthologs, policy=policy)
        is_shared = np.zeros(adata.n_vars, dtype=bool)
        is_shared[match.pairs["target_index"].to_numpy()] = True
        model = cls(
            adata, context_kwargs=vae_kwargs(context_model), n_context_cells=context_model.adata.n_obs,
            n_outer_layers=n_outer_layers, is_shared=is_shared, **kwargs,
        )
        module = model.module
        module.context.load_state_dict(context_model.module.state_dict())
        module.eval()
        encoded = encode_cells(module, module.context, context_model._make_data_loader(context_model.adata))
        for name in ("mean", "scale", "intermediate"):
            getattr(module, f"context_{name}").copy_(encoded[name])
        context_shared = _shared_features(context_model, match.context_matrix(), normalization)
        target_shared = _shared_features(model, match.target_matrix(), normalization)
        model.neighbors_, _ = nearest_neighbors(context_shared, target_shared, n_neighbors, metric=metric)
        model.labels_ = context_labels(context_model.adata.obs, keys)
        return model

    def data_level(self, k=None, key=None):
        labels = self.labels_[key or next(iter(self.labels_))]
        return vote(labels["codes"][self.neighbors_[:, :k]], len(labels["categories"]))

    def train(
        self, max_epochs: int | None = None, *, agreement_quantile: float | None = None, accelerator="auto",
        devices="auto", train_size: float | None = 1.0, validation_size=None, shuffle_set_split=True, batch_size=128,
        early_stopping=False, plan_kwargs=None, datasplitter_kwargs=None, eligible=None, **trainer_kwargs,
    ):
        n_obs = self.adata.n_obs
        if max_epochs is None:
            max_epochs = 30 if n_obs > 10_000 else 60
        if agreement_quantile is None:
            agreement_quantile = 0.8 if n_obs > 10_000 else 0.6
        codes, agreement = self.data_level()
        if eligible is None:
            eligible = eligible_cells(codes, agreement, agreement_quantile, seed=settings.seed or 0)
        splitter = self._data_splitter_cls(
            self.adata_manager, self.neighbors_, eligible, train_size=train_size, validation_size=validation_size,
            batch_size=batch_size, shuffle_set_split=shuffle_set_split,
            distributed_sampler=use_distributed_sampler(trainer_kwargs.get("strategy")), **(datasplitter_kwargs or {}),
        )
        plan = self._training_plan_cls(self.module, **(plan_kwargs or {}))
        trainer_kwargs.setdefault("early_stopping", early_stopping)
        runner = self._train_runner_cls(
            self, training_plan=plan, data_splitter=splitter, max_epochs=max_epochs, accelerator=accelerator,
            devices=devices, **trainer_kwargs,
        )
        return runner()

    @torch.inference_mode()
    def _rank(self, n_candidates=200, batch_size=512):
        """latents, candidate idx (n,200), distances, scores, own score."""
        self.module.eval()
        m = self.module
        out = []
        for tensors in self._make_data_loader(self.adata, batch_size=batch_size):
            enc = m.encode(m, tensors)
            library, ql = m._library(tensors["X"], tensors["batch"], None, None)
            if ql is not None:
                library = ql.mean
            d, c = torch.topk(torch.cdist(enc["mean"], m.context_mean), n_candidates, largest=False)
            s = m.candidate_scores(tensors, library, c)
            own = m.profile_scores(tensors, library, enc["mean"], tensors, torch.arange(len(c))[:, None])
            out.append([enc["mean"], c, d, s, own, enc["scale"]])
        return [torch.cat(o).numpy() for o in zip(*out)]


def _shared_features(model: BaseModelClass, matrix: sp.csr_matrix, normalization: str) -> sp.csr_matrix:
    layer = model.adata_manager.data_registry[REGISTRY_KEYS.X_KEY]["attr_key"] or None
    layer = None if layer == "None" else layer
    blocks = []
    for block in iter_rows(model.adata, layer):
        block = sp.csr_matrix(block, dtype=np.float32)
        blocks.append(transform_counts(block @ matrix, normalization, np.asarray(block.sum(axis=1)).ravel()))
    return sp.vstack(blocks, format="csr")
