from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from scvi import settings
from scvi.data import AnnDataManager
from scvi.data.fields import CategoricalJointObsField, CategoricalObsField, LayerField, NumericalJointObsField
from scvi.model import SCVI
from scvi.utils import setup_anndata_dsp

from transverse._compat import (
    REGISTRY_KEYS,
    categories_per_covariate,
    init_library_size,
    vae_kwargs,
)
from transverse._model_base import GeneAlignedModel
from transverse._validation import check_n_neighbors, check_setup
from transverse.pp import match_orthologs

from ._builder import ScSpeciesBuilder, check_context_dir
from ._comparison import ComparisonMixin
from ._context import (
    COVARIATE_KEYS,
    check_context_model,
    context_labels,
    encode_cells,
    make_context,
    resolve_labels_keys,
    shared_features,
)
from ._data import CandidateDataSplitter
from ._expression import ExpressionMixin
from ._fitting import FittingMixin
from ._inference import InferenceMixin
from ._interpretation import InterpretationMixin
from ._module import ScSpeciesVAE
from ._neighbors import nearest_neighbors
from ._novelty import centered_distance
from ._training_plan import ScSpeciesTrainingPlan


class ScSpecies(FittingMixin, ExpressionMixin, ComparisonMixin, InterpretationMixin, InferenceMixin, GeneAlignedModel):
    r"""scSpecies :cite:p:`Schaechter2025`: a scVI model of one species carried to another.

    A model trained on an annotated *context* species lends the inner layers of its encoder to a new model of the
    *target* species. Those layers stay frozen; the target learns its own outer encoder layers and decoder, so the two
    species need not share all their genes. Cells of the target whose nearest context cells on orthologous genes agree
    in their label are pulled, in the intermediate representation, towards the one of those neighbours under which their
    counts are most likely. All other cells follow by their likeness to them.

    Models are made with :meth:`from_scvi_model`, not by calling the class.

    Parameters
    ----------
    adata
        Target data, registered by :meth:`setup_anndata`.
    registry
        Registry of a saved model that is loaded without data.
    context_kwargs
        Keyword arguments that rebuild the context's :class:`scvi.module.VAE`.
    n_context_cells
        Number of context cells.
    n_outer_layers
        Encoder layers that the target learns anew.
    is_shared
        Boolean array of shape ``(n_genes,)``: target genes with an orthologue in the context.
    gene_likelihood, dispersion, use_observed_lib_size
        Of the target's decoder, as in :class:`scvi.model.SCVI`; ``None`` takes the context's.
    **kwargs
        Keyword arguments of :class:`~transverse.scspecies.ScSpeciesVAE`.

    Examples
    --------
    With few epochs, to be quick; by default there are as many as the data need:

    >>> import scvi
    >>> import transverse as tv
    >>> data = tv.datasets.simulate_species("tiny", n_cells=150)
    >>> mouse, human = data["mouse"], data["human"]
    >>> scvi.model.SCVI.setup_anndata(mouse, batch_key="batch")
    >>> context = tv.ScSpecies.make_context(mouse)
    >>> context.train(max_epochs=5)
    >>> tv.ScSpecies.setup_anndata(human, batch_key="batch")
    >>> model = tv.ScSpecies.from_scvi_model(context, human, human.uns["orthologs"], labels_key="cell_type")
    >>> model.train(max_epochs=5)
    >>> human.obsm["X_scSpecies"] = model.get_latent_representation()
    >>> mouse.obsm["X_scSpecies"] = model.get_context_representation()
    >>> labels = model.transfer_labels()
    >>> labels.columns[:3].tolist()
    ['label', 'confidence', 'novelty']

    Notes
    -----
    See the :doc:`user guide </user_guide/scspecies>` for the equations, what is assumed, and measured limits.
    """

    _module_cls = ScSpeciesVAE
    _training_plan_cls = ScSpeciesTrainingPlan
    _data_splitter_cls = CandidateDataSplitter

    make_context = staticmethod(make_context)

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        context_kwargs: dict[str, Any] | None = None,
        n_context_cells: int = 0,
        n_outer_layers: int = 1,
        is_shared: np.ndarray | None = None,
        gene_likelihood: Literal["nb", "zinb"] | None = None,
        dispersion: Literal["gene", "gene-batch", "gene-cell"] | None = None,
        use_observed_lib_size: bool | None = None,
        **kwargs,
    ):
        if context_kwargs is None:
            raise TypeError(
                "ScSpecies needs a context model: use ScSpecies.from_scvi_model(context_model, adata, ...)."
            )
        super().__init__(adata, registry)
        module_kwargs = {key: context_kwargs[key] for key in _INHERITED if key in context_kwargs}
        chosen = {"gene_likelihood": gene_likelihood, "dispersion": dispersion}
        module_kwargs.update({key: value for key, value in chosen.items() if value is not None})
        if use_observed_lib_size is not None:
            module_kwargs["use_observed_lib_size"] = use_observed_lib_size
        if module_kwargs["gene_likelihood"] not in ("nb", "zinb"):
            raise ValueError(f"gene_likelihood must be 'nb' or 'zinb', but got {module_kwargs['gene_likelihood']!r}.")
        if module_kwargs["dispersion"] not in ("gene", "gene-batch", "gene-cell"):
            raise ValueError(
                f"dispersion must be 'gene', 'gene-batch' or 'gene-cell', but got {module_kwargs['dispersion']!r}."
            )
        stats = self.summary_stats
        if not module_kwargs["use_observed_lib_size"]:
            shape = (1, stats.n_batch)
            means, variances = np.zeros(shape, np.float32), np.ones(shape, np.float32)
            if adata is not None:  # otherwise they come with the saved weights
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
            n_cats_per_cov=categories_per_covariate(self.registry),
            encode_covariates=True,
            deeply_inject_covariates=False,
            **{**module_kwargs, **kwargs},
        )
        self._model_summary_string = (
            f"ScSpecies model: {stats.n_vars} target genes ({0 if is_shared is None else int(np.sum(is_shared))} with an "
            f"orthologue), {n_context_cells} context cells, n_latent: {self.module.n_latent}, "
            f"gene_likelihood: {self.module.gene_likelihood}, dispersion: {self.module.dispersion}."
        )
        self.var_names_ = [str(name) for name in self.get_var_names()]
        self.init_params_ = self._get_init_params(locals())

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
        """%(summary)s.

        Labels of the target are not registered: they never enter training.

        Parameters
        ----------
        %(param_adata)s
        %(param_layer)s
        %(param_batch_key)s
        %(param_cat_cov_keys)s
        %(param_cont_cov_keys)s

        Raises
        ------
        KeyError
            If a key is not in ``adata``.
        ValueError
            If gene names repeat, the matrix does not hold raw counts, cells have no counts, or covariates are missing.

        Examples
        --------
        >>> tv.ScSpecies.setup_anndata(human, batch_key="batch")
        """
        setup_method_args = cls._get_setup_method_args(**locals())
        categorical, continuous = categorical_covariate_keys or [], continuous_covariate_keys or []
        check_setup(adata, layer, batch_key=batch_key, categorical=categorical, continuous=continuous)
        fields = [
            LayerField(REGISTRY_KEYS.X_KEY, layer, is_count_data=False),  # checked above, sparse arrays too
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
        n_smooth: int = 15,
        metric: str = "cosine",
        method: Literal["auto", "exact", "projected", "pynndescent"] = "auto",
        n_outer_layers: int = 1,
        **kwargs,
    ) -> ScSpecies:
        r"""Build a model of the target species from a trained model of the context species.

        Searches the ``n_neighbors`` context cells nearest to every target cell on the orthologous genes (equation 11)
        and encodes the context; nothing is trained yet.

        Parameters
        ----------
        context_model
            A trained :class:`scvi.model.SCVI` with its AnnData: at least two encoder layers, and no batch or other
            covariate injected into the inner ones. :meth:`make_context` builds one.
        adata
            Target data, registered by :meth:`setup_anndata`.
        orthologs
            Orthologues of context and target genes: a table, a mapping or the name of a ``.var`` column; ``None``
            matches gene names. See :func:`transverse.pp.match_orthologs`.
        labels_key
            Column, or columns, of the context's ``.obs`` with labels to transfer. The first one decides which cells
            agree well enough for alignment. By default the labels that the context model was set up with.
        policy
            What to do with genes that have several orthologues.
        n_neighbors
            Neighbours, and candidates for alignment, of each target cell (:math:`k`; paper: 25).
        normalization
            Of the counts before the cosine distance: ``"library"`` takes ``log1p`` of counts per 10,000, ``"none"``
            ``log1p`` of raw counts, as the paper does. The first was better in every comparison that we made.
        n_smooth
            Average the log-transformed counts of every cell over this many nearest cells of its own species before the
            search (ours). 1 searches with single cells, as the paper does, and finds far fewer right neighbours where
            few orthologues are known or many have diverged.
        metric, method
            Distance and way of the neighbour search. ``"exact"`` compares all cells. ``"projected"`` compares those of
            the nearest clusters along the 192 directions in which the context varies most, and the nearest 300 in full, for
            cosine and Euclidean distances. ``"pynndescent"`` builds an index. ``"auto"`` takes the second past two hundred million pairs of cells.
        n_outer_layers
            Encoder layers that the target learns anew (paper: 1).
        **kwargs
            Keyword arguments of the class and of :class:`~transverse.scspecies.ScSpeciesVAE`.

        Returns
        -------
        An untrained model.

        Raises
        ------
        ValueError
            If the context model does not fit (the message says why), no genes are shared, or there are fewer context
            cells than ``n_neighbors``.

        Examples
        --------
        >>> tv.ScSpecies.setup_anndata(human, batch_key="batch")
        >>> model = tv.ScSpecies.from_scvi_model(
        ...     context, human, human.uns["orthologs"], labels_key=["cell_type", "sibling_pair"], n_neighbors=10
        ... )
        >>> model.get_data_level_labels("sibling_pair")["label"].cat.categories.tolist()
        ['T1', 'T2']
        """
        check_context_model(context_model, n_outer_layers)
        keys = resolve_labels_keys(context_model, labels_key)
        check_n_neighbors(n_neighbors, context_model.adata.n_obs)
        labels = context_labels(context_model.adata.obs, keys)
        match = match_orthologs(context_model.adata, adata, orthologs, policy=policy)
        is_shared = np.zeros(adata.n_vars, dtype=bool)
        is_shared[match.pairs["target_index"].to_numpy()] = True
        model = cls(
            adata,
            context_kwargs=vae_kwargs(context_model),
            n_context_cells=context_model.adata.n_obs,
            n_outer_layers=n_outer_layers,
            is_shared=is_shared,
            **kwargs,
        )
        model.module.context.load_state_dict(context_model.module.state_dict())
        context_cells = encode_cells(model.module, context_model._make_data_loader(context_model.adata))
        model.module.set_context_cells(context_cells)
        seed = settings.seed or 0
        features = [
            shared_features(context_model, match.context_matrix(), normalization, n_smooth, seed),
            shared_features(model, match.target_matrix(), normalization, n_smooth, seed),
        ]
        found = nearest_neighbors(*features, n_neighbors, metric=metric, method=method, seed=seed)
        model.neighbors_ = found[0]
        model.neighbor_distance_ = None
        if n_smooth > 1:  # single cells are too noisy for their distance to say much
            means = [part.mean() for part in features]
            model.neighbor_distance_ = centered_distance(*features, *found, metric, *means)
        model.context_labels_ = labels
        model.orthologs_ = {key: match.pairs[key].tolist() for key in ("context", "target", "group")}
        model.context_ = {
            "registry": context_model.registry,
            "var_names": context_model.adata.var_names.tolist(),
            "cell_names": context_model.adata.obs_names.tolist(),
            **{key: context_cells[key].numpy() for key in ("library", *COVARIATE_KEYS) if key in context_cells},
        }
        model.cell_names_ = adata.obs_names.tolist()
        model.eligible_ = model.novelty_reference_ = model.alignment_ = None
        return model

    @classmethod
    def builder(
        cls, context_dir: str | os.PathLike, *, context_adata: AnnData | None = None, **kwargs
    ) -> ScSpeciesBuilder:
        """What stands for this class where models are built from data and hyperparameters alone.

        Parameters
        ----------
        context_dir
            Folder of a trained context, saved with ``context.save(context_dir, save_anndata=True)``.
        context_adata
            Its data, if they were not saved with it.
        **kwargs
            Keyword arguments of :meth:`from_scvi_model`, such as ``orthologs`` and ``labels_key``.

        Returns
        -------
        A callable that takes the target's AnnData and further keyword arguments of :meth:`from_scvi_model`, with a
        ``setup_anndata`` of its own.

        Raises
        ------
        ValueError
            If there is no saved model, or none with data.

        Examples
        --------
        >>> context.save("context", save_anndata=True)
        >>> orthologs = human.uns["orthologs"]
        >>> builder = tv.ScSpecies.builder("context", orthologs=orthologs, labels_key="cell_type")
        >>> builder.setup_anndata(human, batch_key="batch")
        >>> model = builder(human, n_neighbors=10)
        >>> scvi.autotune.run_autotune(builder, human, ...)  # doctest: +SKIP
        """
        return ScSpeciesBuilder(cls, check_context_dir(context_dir, context_adata), context_adata, kwargs)


# What the target's network takes over from the context's.
_INHERITED = (
    "n_hidden",
    "n_latent",
    "n_layers",
    "dropout_rate",
    "log_variational",
    "gene_likelihood",
    "dispersion",
    "use_observed_lib_size",
    "use_batch_norm",
    "use_layer_norm",
    "var_activation",
    "extra_encoder_kwargs",
    "extra_decoder_kwargs",
)
