from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from os import PathLike

import numpy as np
from anndata import AnnData
from scvi.data import AnnDataManager
from scvi.data.fields import CategoricalObsField, LayerField
from scvi.utils import setup_anndata_dsp

from transverse._compat import REGISTRY_KEYS, devices_dsp, registered_layer
from transverse._groups import dense
from transverse._model_base import GeneAlignedModel
from transverse._training import copy_state
from transverse._training_run import training_run
from transverse._validation import check_columns, check_finite, examples, iter_rows

from ._constants import DEEPCELLSTATE_KEYS
from ._extension import ExtensionMixin
from ._fitting import FittingMixin
from ._interpretation import InterpretationMixin
from ._module import DeepCellStateModule, Skip
from ._networks import Architecture
from ._pairs import Grid, PairDataSplitter
from ._prediction import PredictionMixin
from ._stages import STAGES, StageName, choose_stages, stage_key
from ._training_plan import DeepCellStateTrainingPlan, mean_pearson

logger = logging.getLogger(__name__)


class DeepCellState(FittingMixin, ExtensionMixin, InterpretationMixin, PredictionMixin, GeneAlignedModel):
    r"""DeepCellState :cite:p:`Umarov2021`: a perturbation's response in one cell type from its response in another.

    An encoder that all cell types share takes a response signature to a latent state of the perturbation; a decoder of
    each cell type turns it into the signature there, :math:`\hat x_c = D_c(E(x_{c'}))`. The encoder never learns where a
    signature comes from, and may be given those of cell types that were not in the training.

    Parameters
    ----------
    adata
        Signatures registered by :meth:`setup_anndata`.
    registry
        Registry of such data, for a model without data.
    architecture
        ``"dense"``, layers over all genes as the paper's text may be read, or ``"pointwise"``, as the reference is built:
        layers that see one gene at a time. The latter has 64 million parameters with one decoder of 978 genes, and wants a
        GPU.
    n_hidden, n_latent, skip, preset
        See :class:`~transverse.deepcellstate.DeepCellStateModule`.
    **kwargs
        Further keyword arguments of :class:`~transverse.deepcellstate.DeepCellStateModule`: ``input_dropout_rate``,
        ``latent_l1``, ``decoder_dropout_rate``.

    Examples
    --------
    With few epochs, to be quick:

    >>> import transverse as tv
    >>> adata = tv.datasets.simulate_signatures(n_drugs=20, n_genes=50, n_mechanisms=10)
    >>> tv.DeepCellState.setup_anndata(adata)
    >>> model = tv.DeepCellState(adata)
    >>> model.train(max_epochs=2)
    >>> pred = model.predict(adata[adata.obs["cell_type"] == "C1"], target="C2")
    >>> pred.shape
    (20, 50)

    Notes
    -----
    See the :doc:`user guide </user_guide/deepcellstate>` for the equations, what is ours, and measured limits.
    """

    _module_cls = DeepCellStateModule
    _training_plan_cls = DeepCellStateTrainingPlan
    _data_splitter_cls = PairDataSplitter

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        architecture: Architecture = "dense",
        n_hidden: Sequence[int] = (512, 256),
        n_latent: int = 128,
        skip: Skip = "separate",
        preset: int = 0,
        **kwargs,
    ):
        super().__init__(adata, registry)
        n_hidden = [int(width) for width in n_hidden]
        self.module = self._module_cls(
            n_genes=self.summary_stats.n_vars,
            n_cell_types=self.summary_stats.n_cell_type,
            architecture=architecture,
            n_hidden=n_hidden,
            n_latent=n_latent,
            skip=skip,
            preset=preset,
            **kwargs,
        )
        self.var_names_ = [str(name) for name in self.get_var_names()]
        self.cell_types_ = self._categories(DEEPCELLSTATE_KEYS.CELL_TYPE_KEY)
        self.trained_decoders_: list[str] = []
        self.training_conditions_: list[list[str]] = []
        self._model_summary_string = (
            f"DeepCellState model: {self.summary_stats.n_vars} genes, {self.summary_stats.n_perturbation} perturbations, "
            f"decoders: {examples(self.cell_types_)}, architecture: {architecture}, n_hidden: {tuple(n_hidden)}, "
            f"n_latent: {n_latent}, skip: {skip}, preset: {preset}."
        )
        self.init_params_ = self._get_init_params(locals())

    @classmethod
    @setup_anndata_dsp.dedent
    def setup_anndata(
        cls,
        adata: AnnData,
        perturbation_key: str = "perturbation",
        cell_type_key: str = "cell_type",
        perturbation_type_key: str | None = None,
        layer: str | None = None,
        **kwargs,
    ):
        """%(summary)s.

        Parameters
        ----------
        %(param_adata)s
            Rows are response signatures, of any scale about 0: log fold changes or z-scores, see
            :func:`transverse.pp.signatures` and :func:`transverse.datasets.read_gctx`. The grid of perturbations and cell
            types may have gaps. Several signatures of one pair are all trained on; average them first with
            :func:`transverse.pp.average_signatures`, as the paper does with doses and times.
        perturbation_key
            Column of ``obs`` with the perturbation.
        cell_type_key
            Column with the cell type or line.
        perturbation_type_key
            Column with the kind of perturbation, such as drug or knock-down, where the same name may stand for several.
        %(param_layer)s

        Raises
        ------
        KeyError
            If a column or the layer does not exist.
        ValueError
            If there is only one cell type, no perturbation was measured in two, values or columns are missing or infinite,
            or names of genes or signatures repeat.

        Examples
        --------
        >>> tv.DeepCellState.setup_anndata(adata, perturbation_key="perturbation", cell_type_key="cell_type")
        """
        setup_method_args = cls._get_setup_method_args(**locals())
        keys = {
            "perturbation_key": perturbation_key,
            "cell_type_key": cell_type_key,
            "perturbation_type_key": perturbation_type_key,
        }
        check_columns(adata, {argument: [key] for argument, key in keys.items()}, optional=("perturbation_type_key",))
        check_finite(adata, layer)
        _check_grid(adata, *keys.values())
        fields = [
            LayerField(REGISTRY_KEYS.X_KEY, layer, is_count_data=False),
            CategoricalObsField(DEEPCELLSTATE_KEYS.PERTURBATION_KEY, perturbation_key),
            CategoricalObsField(DEEPCELLSTATE_KEYS.CELL_TYPE_KEY, cell_type_key),
            CategoricalObsField(DEEPCELLSTATE_KEYS.PERTURBATION_TYPE_KEY, perturbation_type_key),
        ]
        adata_manager = AnnDataManager(fields=fields, setup_method_args=setup_method_args)
        with warnings.catch_warnings():
            # of cells; a perturbation in a few cell types is a few signatures
            warnings.filterwarnings("ignore", message=".*has fewer than 3 cells")
            adata_manager.register_fields(adata, **kwargs)
        cls.register_manager(adata_manager)

    @training_run
    @devices_dsp.dedent
    def train(
        self,
        max_epochs: int | Mapping[StageName, int] | None = None,
        stages: Sequence[StageName] | None = None,
        n_restarts: int = 1,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        train_size: float | None = None,
        validation_size: float | None = None,
        shuffle_set_split: bool = True,
        batch_size: int = 128,
        early_stopping: bool = True,
        patience: int | Mapping[StageName, int] | None = None,
        lr: float | Mapping[StageName, float] | None = None,
        reset_moments: bool = False,
        checkpoint_path: str | PathLike | None = None,
        datasplitter_kwargs: dict | None = None,
        plan_kwargs: dict | None = None,
        **trainer_kwargs,
    ):
        """Train the encoder and the decoders, in stages.

        1. ``"autoencoder"``: one decoder, with the encoder, reproduces the signatures of all cell types; the others start
           as copies of it.
        2. ``"decoders"``: in every epoch the decoders, in random order, take turns of two passes. Each predicts the signatures
           of its cell type from themselves and from those of the same perturbation in the others; the encoder learns along.
        3. ``"frozen"``: the encoder stays as it is, and every decoder learns to predict from other cell types.

        A stage ends when its validation no longer improves, and leaves its best weights to the next: of the reconstruction
        in the first, of the mean correlation as :func:`transverse.metrics.signature_scores` has it in the second, and of each
        decoder's own loss in the third. ``history`` goes on over stages; ``history["stage"]`` has their names.

        Parameters
        ----------
        max_epochs
            Epochs of every stage, at most, or a dict of them by stage. By default 30, 99 and 100 (reference: 100, 99, 100).
        stages
            Names of the stages to go through. By default all, or the last two if the model is trained already.
        n_restarts
            Train so many times, from other weights, and keep the best by the mean correlation in validation.
        %(param_accelerator)s
        %(param_devices)s
        train_size
            Share of the perturbations to train on, of those that were measured in several cell types. By default 0.95
            (reference). With fewer than 20 perturbations, share of the perturbations in single cell types, by default 0.9;
            with fewer than 20 of these, all are trained on, and early stopping is off.
        validation_size
            Share to validate on; by default the rest. For signatures of your own choice, pass
            ``datasplitter_kwargs={"external_indexing": [train, validation, test]}``.
        shuffle_set_split
            Whether to shuffle before splitting.
        batch_size
            Pairs in a mini-batch.
        early_stopping
            Whether to end stages early, and to keep their best weights rather than the last.
        patience
            Epochs without improvement after which a stage ends, or a dict of them by stage; by default 10, 3 and 5, as in
            the reference.
        lr
            Learning rate, or a dict of them by stage. By default 1e-3, 1e-3 and 5e-4 (reference, with its pointwise layers: 1e-4,
            1e-4, 1e-5).
        reset_moments
            Whether Adam forgets its moments at the start of each epoch of the second stage, as in the reference; it was a little
            worse.
        checkpoint_path
            File to keep the state of the training in, written anew at the start of every epoch. If it exists, a training of the
            same data and arguments goes on from it, to the result of one that was not broken off; at the end it is removed.
        datasplitter_kwargs
            Keyword arguments of the data loader, and ``external_indexing``.
        plan_kwargs
            Keyword arguments of :class:`~transverse.deepcellstate.DeepCellStateTrainingPlan`.
        **trainer_kwargs
            Keyword arguments of :class:`scvi.train.Trainer`.

        Raises
        ------
        ValueError
            If a stage is unknown, a number is out of range, or the validation has no perturbation of two cell types.

        Examples
        --------
        >>> model = tv.DeepCellState(adata)
        >>> model.train(max_epochs={"autoencoder": 1, "decoders": 2}, stages=["autoencoder", "decoders"])
        >>> model.history["stage"].squeeze().tolist()
        ['autoencoder', 'decoders', 'decoders']
        """
        chosen = choose_stages(stages, self.is_trained_, max_epochs, patience, lr)
        if not isinstance(n_restarts, int) or n_restarts < 1:
            raise ValueError(f"n_restarts={n_restarts!r} must be a whole number of at least 1.")
        if n_restarts > 1 and checkpoint_path is not None:
            raise ValueError("checkpoint_path keeps one training: leave n_restarts at 1, or checkpoint_path out.")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size={batch_size!r} must be a whole number of pairs, at least 1.")
        loader_kwargs = dict(datasplitter_kwargs or {})
        grid = self._grid()
        train, validation = self._split(grid, loader_kwargs, train_size, validation_size, shuffle_set_split)
        if not len(validation):
            if n_restarts > 1:
                raise ValueError("n_restarts needs perturbations for validation, to tell which training is the best.")
            early_stopping = False
        if not self.is_trained_:
            self._fit_scale(train)
        options = {"accelerator": accelerator, "devices": devices, "early_stopping": early_stopping, **trainer_kwargs}
        plan = dict(plan_kwargs or {})
        best, start = None, copy_state(self.module)
        for restart in range(n_restarts):
            if self._run.interrupted:
                break
            if restart:
                self._start_again(start, restart)
            for stage in chosen:
                if self._run.is_past(stage_key(stage, restart)):
                    continue
                splitter = self._splitter(stage, grid, train, validation, batch_size=batch_size, **loader_kwargs)
                resets = reset_moments and stage.name == "decoders"
                self._fit_stage(stage, splitter, {"reset_moments": resets, **plan}, options, restart)
            if n_restarts > 1:
                cross = self._splitter(STAGES["frozen"], grid, train, validation)
                value = mean_pearson(self.module, cross.val_dataloader())
                logger.info("Training %d of %d: mean correlation in validation %.4f.", restart + 1, n_restarts, value)
                if best is None or value > best[0]:
                    best = value, copy_state(self.module)
        if best is not None:
            self.module.load_state_dict(best[1])
        self._remember(grid, train)

    def _grid(self) -> Grid:
        """What the signatures of the model's data are of."""
        manager = self.adata_manager
        codes = {
            key: manager.get_from_registry(key).ravel().astype(np.int64)
            for key in (
                DEEPCELLSTATE_KEYS.PERTURBATION_KEY,
                DEEPCELLSTATE_KEYS.PERTURBATION_TYPE_KEY,
                DEEPCELLSTATE_KEYS.CELL_TYPE_KEY,
            )
        }
        n_types = self.summary_stats.n_perturbation_type
        names = codes[DEEPCELLSTATE_KEYS.PERTURBATION_KEY] * n_types + codes[DEEPCELLSTATE_KEYS.PERTURBATION_TYPE_KEY]
        return Grid(names, codes[DEEPCELLSTATE_KEYS.CELL_TYPE_KEY])

    def _fit_scale(self, rows: np.ndarray) -> None:
        """The largest absolute value of the training signatures, which becomes 1."""
        wanted = np.zeros(self.adata.n_obs, dtype=bool)
        wanted[rows] = True
        start, largest = 0, 0.0
        for block in iter_rows(self.adata, registered_layer(self.adata_manager)):
            taken = dense(block[wanted[start : (start := start + block.shape[0])]])
            largest = max(largest, float(np.abs(taken).max(initial=0)))
        if largest == 0:
            raise ValueError("All training signatures are 0.")
        self.module.scale.fill_(largest)


def _check_grid(adata: AnnData, perturbation_key: str, cell_type_key: str, perturbation_type_key: str | None) -> None:
    by = [perturbation_key] + ([perturbation_type_key] if perturbation_type_key else [])
    labels = adata.obs[[*by, cell_type_key]].astype(str)
    cell_types = labels[cell_type_key].unique()
    if len(cell_types) < 2:
        raise ValueError(
            f"adata.obs[{cell_type_key!r}] has only one cell type, {cell_types[0]!r}: responses are carried between two or more."
        )
    n = labels.groupby(by)[cell_type_key].transform("nunique")
    if n.max() < 2:
        raise ValueError(
            f"No perturbation was measured in two cell types: of {examples(labels[perturbation_key].unique())} each has one. Is "
            f"{perturbation_key!r} the right column?"
        )
    lone = sorted(set(cell_types) - set(labels.loc[n > 1, cell_type_key]))
    if lone:
        warnings.warn(
            f"These cell types share no perturbation with another: {examples(lone)}. Their decoders cannot learn to predict.",
            UserWarning,
            stacklevel=4,
        )
