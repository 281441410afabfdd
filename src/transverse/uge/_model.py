from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Literal

from anndata import AnnData
from scvi.data import AnnDataManager
from scvi.data.fields import CategoricalObsField, LayerField
from scvi.utils import setup_anndata_dsp

from transverse._compat import REGISTRY_KEYS
from transverse._model_base import GeneAlignedModel
from transverse._species import species_blocks
from transverse._validation import check_columns, check_log_normalized, examples

from ._arithmetic import ArithmeticMixin
from ._batches import BatchSplitter
from ._constants import PRESETS, UGE_KEYS
from ._experiments import ExperimentMixin
from ._extension import ExtensionMixin
from ._fitting import FittingMixin
from ._gene_map import GeneMapMixin
from ._module import LOSSES, UGEModule
from ._reactome import ReactomeMixin
from ._samples import SampleMixin
from ._training_data import TrainingDataMixin
from ._training_plan import UGETrainingPlan


class UGE(
    FittingMixin,
    TrainingDataMixin,
    GeneMapMixin,
    ReactomeMixin,
    SampleMixin,
    ArithmeticMixin,
    ExperimentMixin,
    ExtensionMixin,
    GeneAlignedModel,
):
    r"""UGE :cite:p:`Belgadi2024`: genes and samples of several species in one space, by how genes respond to drugs.

    Every gene of every species has a vector of its own in a shared space; a head that all species share tells from it what the gene
    does in each organ and under each drug (its *reactome*), so that genes that do the same come to the same place, whatever they
    are called. A transformer takes the genes of a sample, as these vectors with their values, to a representation of the sample.

    Parameters
    ----------
    adata
        Stacked data (:func:`transverse.pp.stack_species`) registered by :meth:`setup_anndata`.
    registry
        Registry of such data, for a model without data.
    preset
        Size of the transformer: ``"paper"`` (256 wide, 4 layers, 8 heads), ``"small"`` or ``"tiny"``, for a CPU.
    n_latent
        Width of the shared space.
    n_top_genes
        Genes of a species that may be tokens: those that vary most. None for all.
    value_mode
        What is shown of a gene in a sample: its log expression relative to the mean of its species (``"continuous"``), or
        the bin among the sample's genes (``"binned"``, scGPT).
    n_bins
        Bins, with ``value_mode="binned"``.
    condition_keys
        Columns of the setup whose category is a token as well: ``"organ"``, ``"drug"``. None by default: a condition that is
        shown cannot be predicted, and what a drug does is to be seen in the values.
    weights
        Weights of the terms of the loss, see :meth:`~transverse.uge.UGEModule.loss`; by default 1, but 0.1 of ``"map"``.
    gene_species
        Number of the species of every gene; from ``adata`` where there is one.
    **kwargs
        Further keyword arguments of :class:`~transverse.uge.UGEModule`.

    Examples
    --------
    With few epochs, to be quick:

    >>> import transverse as tv
    >>> data = tv.datasets.simulate_reactomes(n_genes=50, n_organs=3, n_drugs=2, n_animals=3)
    >>> adata = tv.pp.stack_species(data)
    >>> tv.UGE.setup_anndata(adata, animal_key="animal")
    >>> model = tv.UGE(adata, preset="tiny")
    >>> model.train(max_epochs=2, hold_out=[("rat", "brain", "drug A")])
    >>> adata.obsm["X_UGE"] = model.get_latent_representation()
    >>> gene_map = model.map_genes("mouse", "rat")
    >>> pred = model.predict("rat", "brain", "drug A")
    >>> pred.shape  # control samples x genes of the rat
    (3, 50)
    """

    _module_cls = UGEModule
    _training_plan_cls = UGETrainingPlan
    _data_splitter_cls = BatchSplitter

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        preset: Literal["paper", "small", "tiny"] = "paper",
        n_latent: int = 256,
        n_top_genes: int | None = 2000,
        value_mode: Literal["continuous", "binned"] = "continuous",
        n_bins: int = 51,
        condition_keys: Sequence[str] = (),
        weights: Mapping[str, float] | None = None,
        gene_species: Sequence[int] | None = None,
        **kwargs,
    ):
        super().__init__(adata, registry)
        if preset not in PRESETS:
            raise ValueError(f"preset={preset!r} must be one of {', '.join(map(repr, PRESETS))}.")
        if value_mode not in ("continuous", "binned"):
            raise ValueError(f"value_mode={value_mode!r} must be 'continuous' or 'binned'.")
        for name, value, least in (("n_latent", n_latent, 1), ("n_top_genes", n_top_genes, 1), ("n_bins", n_bins, 2)):
            if value is not None and value < least:
                raise ValueError(f"{name}={value} must be at least {least}.")
        if unknown := sorted(set(weights or {}) - set(LOSSES)):
            raise ValueError(f"Unknown terms in weights: {examples(unknown)}. There are: {examples(LOSSES, 10)}.")
        arguments = self.registry["setup_args"]
        self.species_ = self._categories(UGE_KEYS.SPECIES_KEY)
        unlabeled, control = str(arguments["unlabeled_category"]), str(arguments["control"])
        self.organs_ = [name for name in self._categories(UGE_KEYS.ORGAN_KEY) if name != unlabeled]
        drugs = [control] if arguments["drug_key"] is None else self._categories(UGE_KEYS.DRUG_KEY)
        self.drugs_ = [control, *(name for name in drugs if name not in (control, unlabeled))]
        if adata is not None:
            of_gene = adata.var[arguments["species_key"]].astype(str)
            # a local, so that it is saved with the other arguments: a model without data needs it
            gene_species = [self.species_.index(name) for name in of_gene]
        if gene_species is None:
            raise ValueError("gene_species is needed where there is no adata: the number of every gene's species.")
        sizes = {"organ": len(self.organs_) + 1, "drug": len(self.drugs_) + 1}
        if unknown := [key for key in condition_keys if key not in sizes]:
            raise ValueError(f"Unknown condition_keys: {examples(unknown)}. There are: 'organ', 'drug'.")
        self.module = self._module_cls(
            gene_species=gene_species,
            n_organs=len(self.organs_),
            n_drugs=len(self.drugs_),
            n_latent=n_latent,
            n_bins=n_bins if value_mode == "binned" else None,
            condition_sizes=[sizes[key] for key in condition_keys],
            weights=dict(weights or {}),
            **{**PRESETS[preset], **kwargs},
        )
        self.reference_ = None
        self.trained_stages_: list[str] = []
        self.unlearnt_: dict[str, list[str]] = {"organ": [], "drug": []}
        self._derived: dict = {}  # what was computed from the trained model, for the next time
        self.var_names_ = [str(name) for name in self.get_var_names()]
        self._model_summary_string = (
            f"UGE model: {len(self.var_names_)} genes of {examples(self.species_)}, {len(self.organs_)} organs, "
            f"{len(self.drugs_) - 1} drugs, preset: {preset}, n_latent: {n_latent}, value_mode: {value_mode}."
        )
        self.init_params_ = self._get_init_params(locals())

    @classmethod
    @setup_anndata_dsp.dedent
    def setup_anndata(
        cls,
        adata: AnnData,
        species_key: str = "species",
        organ_key: str = "organ",
        drug_key: str | None = "drug",
        control: str = "control",
        animal_key: str | None = None,
        layer: str | None = None,
        unlabeled_category: str = "unknown",
        **kwargs,
    ):
        """%(summary)s.

        Parameters
        ----------
        %(param_adata)s
            Samples of several species, each with genes of its own, as :func:`transverse.pp.stack_species` stacks them.
        species_key
            Column of ``obs`` and of ``var`` with the species.
        organ_key
            Column with the organ.
        drug_key
            Column with the drug; None if all samples are controls.
        control
            Its value for control samples.
        animal_key
            Column with the animal; samples of one are averaged where they are of one condition.
        %(param_layer)s
            Expression is log-normalised.
        unlabeled_category
            Organ, or drug, of samples for which it is not known. They enter no average, and no label is learnt from them.

        Raises
        ------
        KeyError
            If a column or the layer does not exist.
        ValueError
            If there are fewer than two species, samples and genes are of different ones, a species has no control samples,
            expression is raw counts, missing or infinite, or names repeat.

        Examples
        --------
        >>> tv.UGE.setup_anndata(adata, species_key="species", organ_key="organ", drug_key="drug", animal_key="animal")
        """
        setup_method_args = cls._get_setup_method_args(**locals())
        keys = {
            "species_key": species_key,
            "organ_key": organ_key,
            "drug_key": drug_key,
            "animal_key": animal_key,
        }
        check_columns(adata, {argument: [key] for argument, key in keys.items()}, optional=("drug_key", "animal_key"))
        if "source_registry" not in kwargs:  # data like those of a model: what there must be was asked of these
            _check_species(adata, species_key, drug_key, str(control))
        check_log_normalized(adata, layer)
        cls._register(adata, setup_method_args, **kwargs)

    @classmethod
    def _register(cls, adata: AnnData, setup_method_args: dict, **kwargs) -> None:
        arguments = setup_method_args["setup_args"]
        columns = {
            UGE_KEYS.SPECIES_KEY: "species_key",
            UGE_KEYS.ORGAN_KEY: "organ_key",
            UGE_KEYS.DRUG_KEY: "drug_key",
            UGE_KEYS.ANIMAL_KEY: "animal_key",
        }
        fields = [LayerField(REGISTRY_KEYS.X_KEY, arguments["layer"], is_count_data=False)]
        fields += [CategoricalObsField(name, arguments[argument]) for name, argument in columns.items()]
        adata_manager = AnnDataManager(fields=fields, setup_method_args=setup_method_args)
        with warnings.catch_warnings():  # an animal gives few samples, and is no class to be learnt
            warnings.filterwarnings("ignore", message="Category .* in adata.obs")
            adata_manager.register_fields(adata, **kwargs)
        cls.register_manager(adata_manager)


def _check_species(adata: AnnData, species_key: str, drug_key: str | None, control: str) -> None:
    """Raise unless samples and genes are of the same two species or more, each with control samples."""
    blocks = species_blocks(adata, species_key)
    if len(blocks) < 2:
        raise ValueError(f"adata has only one species, {next(iter(blocks))!r}: genes are aligned between two or more.")
    if drug_key is not None:
        without = [name for name, block in blocks.items() if not (block.obs[drug_key].astype(str) == control).any()]
        if without:
            raise ValueError(
                f"These species have no samples with control={control!r} in obs[{drug_key!r}]: {examples(without)}."
            )
