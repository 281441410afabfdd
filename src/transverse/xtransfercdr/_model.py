from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from math import ceil
from os import PathLike
from typing import Literal

import numpy as np
from anndata import AnnData
from scvi.data import AnnDataManager
from scvi.data.fields import CategoricalObsField, LayerField
from scvi.utils import setup_anndata_dsp

from transverse._compat import REGISTRY_KEYS, devices_dsp, registered_layer
from transverse._model_base import GeneAlignedModel
from transverse._training import KeepBest
from transverse._training_run import training_run
from transverse._validation import check_columns, check_log_normalized, examples, iter_rows

from ._constants import XTRANSFERCDR_KEYS
from ._design import Design, Pairing, make_design, resolve_pairing
from ._module import XTransferCDRModule
from ._networks import Activation, Architecture, check_network
from ._pairs import PairDataSplitter
from ._prediction import PredictionMixin
from ._representation import RepresentationMixin
from ._training_plan import XTransferCDRTrainingPlan, moving_average

logger = logging.getLogger(__name__)

#: Arguments of the constructor and of :meth:`XTransferCDR.train` that follow the reference implementation.
REFERENCE: dict[str, dict] = {
    "model": {"n_hidden": (1024, 512, 256), "n_latent": 128, "n_residual_blocks": 3, "dropout_rate": 0.2},
    "train": {
        "max_epochs": 60,
        "batch_size": 512,
        "control_share": 0.0,
        "resample": False,
        "weight_averaging": None,
        "plan_kwargs": {"lr": 2e-4, "lr_factor": 0.5},
    },
}


class XTransferCDR(PredictionMixin, RepresentationMixin, GeneAlignedModel):
    r"""XTransferCDR :cite:p:`Liu2025`: a perturbation's effect carried to another cellular context.

    Two encoders take a cell apart into a basal state :math:`S` and the effect :math:`P` of its perturbation; one decoder
    puts them together, :math:`\hat x = D(S + P)`. Swapping them between cells, in training, makes them separable, so
    that the effect seen in one context can be added to the basal state of another, and the effects of several
    perturbations to each other.

    Parameters
    ----------
    adata
        Data registered by :meth:`setup_anndata`.
    registry
        Registry of a saved model that is loaded without data.
    n_hidden
        Widths of the hidden layers, from the genes to the latent space (reference: ``(1024, 512, 256)``).
    n_latent
        Width of both latent spaces (reference: 128).
    n_residual_blocks
        Residual blocks in each network (reference: 3).
    architecture
        ``"residual"`` (reference) or ``"plain"`` (the paper's description).
    dropout_rate
        Of all hidden layers.
    output_activation
        Last activation of the decoder. ``"linear"`` for expression with negative values.
    **kwargs
        Keyword arguments of :class:`~transverse.xtransfercdr.XTransferCDRModule`: noise, and a weight for each term of
        the loss.

    Examples
    --------
    With few epochs, to be quick; by default there are as many as the data need:

    >>> import transverse as tv
    >>> adata = tv.datasets.simulate_responses(
    ...     n_contexts=3,
    ...     n_perturbations=4,
    ...     n_doubles=1,
    ...     n_genes=50,
    ...     n_cells_per_condition=20,
    ...     n_control_cells_per_context=30,
    ... )
    >>> tv.XTransferCDR.setup_anndata(
    ...     adata, perturbation_key="perturbation", control="control", context_key="cell_type"
    ... )
    >>> model = tv.XTransferCDR(adata)
    >>> model.train(max_epochs=2)
    >>> pred = model.predict("P01", context="C2")
    >>> pred.shape
    (30, 50)
    >>> adata.obsm["X_basal"] = model.get_basal_representation()
    >>> adata.obsm["X_perturbation"] = model.get_perturbation_representation()

    Notes
    -----
    See the :doc:`user guide </user_guide/xtransfercdr>` for the equations, what is ours, and measured limits.
    """

    _module_cls = XTransferCDRModule
    _training_plan_cls = XTransferCDRTrainingPlan
    _data_splitter_cls = PairDataSplitter

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        n_hidden: Sequence[int] = (128,),
        n_latent: int = 32,
        n_residual_blocks: int = 0,
        architecture: Architecture = "residual",
        dropout_rate: float = 0.1,
        output_activation: Activation = "relu",
        **kwargs,
    ):
        super().__init__(adata, registry)
        n_hidden = [int(width) for width in n_hidden]
        check_network(n_hidden, n_latent, n_residual_blocks, architecture, dropout_rate, output_activation)
        if adata is not None:
            _check_activation(self.adata, registered_layer(self.adata_manager), output_activation)
        self.module = self._module_cls(
            n_genes=self.summary_stats.n_vars,
            n_hidden=n_hidden,
            n_latent=n_latent,
            n_residual_blocks=n_residual_blocks,
            architecture=architecture,
            dropout_rate=dropout_rate,
            output_activation=output_activation,
            **kwargs,
        )
        self.var_names_ = [str(name) for name in self.get_var_names()]
        self.effects_ = self.control_means_ = self.training_cells_ = self.pairing_ = None
        self._model_summary_string = (
            f"XTransferCDR model: {self.summary_stats.n_vars} genes, {self.summary_stats.n_perturbation} perturbations with "
            f"the control, {self.summary_stats.n_context} contexts, n_hidden: {tuple(n_hidden)}, n_latent: {n_latent}, "
            f"architecture: {architecture}, residual blocks: {n_residual_blocks}."
        )
        self.init_params_ = self._get_init_params(locals())

    @classmethod
    @setup_anndata_dsp.dedent
    def setup_anndata(
        cls,
        adata: AnnData,
        perturbation_key: str = "perturbation",
        control: str = "control",
        context_key: str | None = "cell_type",
        layer: str | None = None,
        batch_key: str | None = None,
        delimiter: str | None = "+",
        **kwargs,
    ):
        """%(summary)s.

        Parameters
        ----------
        %(param_adata)s
        perturbation_key
            Column of ``obs`` with the perturbation: the control, singles (``"A"``) and combinations (``"A+B"``, in any
            order). Doses or times that should count as different need names of their own.
        control
            Its value for control cells. A control within a combination does not count: ``"A+control"`` is ``"A"``.
        context_key
            Column with the cellular context, such as cell type or line. None if there is only one.
        %(param_layer)s
            Expression is log-normalised.
        batch_key
            Column with the batch or plate, within which control cells are matched where it has any of the context. The
            batch is not modelled.
        delimiter
            What joins the parts of a combination. None if there are no combinations.

        Raises
        ------
        KeyError
            If a column or the layer does not exist.
        ValueError
            If there are no control or no treated cells, expression is raw counts, missing or infinite, a column has
            missing values, or names of genes or cells repeat.

        Examples
        --------
        >>> tv.XTransferCDR.setup_anndata(
        ...     adata, perturbation_key="perturbation", control="control", context_key="cell_type"
        ... )
        """
        setup_method_args = cls._get_setup_method_args(**locals())
        keys = {"perturbation_key": perturbation_key, "context_key": context_key, "batch_key": batch_key}
        check_columns(adata, {argument: [key] for argument, key in keys.items()}, optional=("context_key", "batch_key"))
        _check_control(adata, perturbation_key, str(control))
        check_log_normalized(adata, layer)
        fields = [
            LayerField(REGISTRY_KEYS.X_KEY, layer, is_count_data=False),
            CategoricalObsField(XTRANSFERCDR_KEYS.PERTURBATION_KEY, perturbation_key),
            CategoricalObsField(XTRANSFERCDR_KEYS.CONTEXT_KEY, context_key),
            CategoricalObsField(REGISTRY_KEYS.BATCH_KEY, batch_key),
        ]
        adata_manager = AnnDataManager(fields=fields, setup_method_args=setup_method_args)
        adata_manager.register_fields(adata, **kwargs)
        cls.register_manager(adata_manager)

    @training_run
    @devices_dsp.dedent
    def train(
        self,
        max_epochs: int | None = None,
        pairing: Pairing = "auto",
        control_share: float = 0.5,
        balance: bool = True,
        resample: bool = True,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        train_size: float | None = None,
        validation_size: float | None = None,
        shuffle_set_split: bool = True,
        batch_size: int = 32,
        early_stopping: bool = False,
        keep: Literal["last", "best"] = "last",
        weight_averaging: float | None = 0.998,
        checkpoint_path: str | PathLike | None = None,
        datasplitter_kwargs: dict | None = None,
        plan_kwargs: dict | None = None,
        **trainer_kwargs,
    ):
        r"""Train both encoders and the decoder on pairs of cells.

        Parameters
        ----------
        max_epochs
            Epochs; one draws as many pairs as there are cells. By default as many as make 2000 steps of the optimiser, and
            10 at least. (The reference's 60 epochs make about 6000 steps on its data, and would make few on small data.)
        pairing
            What the two cells of a pair share: ``"perturbation"`` pairs two perturbations of one context (the paper's),
            ``"context"`` one perturbation in two contexts (the reference's mode for drugs), ``"mixed"`` draws both.
            ``"auto"`` is mixed, as far as the data allow; what was chosen is logged, and kept in ``pairing_``.
        control_share
            Share of the pairs within a context in which a treated cell is paired with a control cell, whose perturbation
            is then the control (ours). Such pairs train what predictions are made of: the basal state of a control cell,
            and the effect of a treated one; contexts with nothing but control cells are trained on too. 0, as in the
            paper, shows control cells only as what the basal state should decode to.
        balance
            Draw all conditions equally often; otherwise as often as they have cells.
        resample
            Draw new pairs in every epoch; otherwise keep the first ones, as the reference does.
        %(param_accelerator)s
        %(param_devices)s
        train_size
            Share of the cells to train on. By default all of them, or 0.9 with ``early_stopping`` or ``keep="best"``.
        validation_size
            Share of the cells to validate on; by default the rest. For conditions of your own choice, pass
            ``datasplitter_kwargs={"external_indexing": [train, validation, test]}``.
        shuffle_set_split
            Whether to shuffle the cells before splitting them.
        batch_size
            Pairs in a mini-batch.
        early_stopping
            Stop when the validation loss no longer falls; see :class:`scvi.train.Trainer`.
        keep
            Keep the weights of the last epoch (reference), or of the one with the lowest validation loss.
        weight_averaging
            Decay, per step, of an exponential moving average of the weights, which is what is validated and kept (ours).
            Single cells are noisy targets, and the weights of the last step follow the last few. None keeps those.
        checkpoint_path
            File to keep the state of the training in, written anew at the start of every epoch. If it exists, a training of the
            same data and arguments goes on from it, to the result of one that was not broken off; at the end it is removed.
        datasplitter_kwargs
            Keyword arguments of :class:`scvi.dataloaders.DataSplitter` and the data loader.
        plan_kwargs
            Keyword arguments of :class:`~transverse.xtransfercdr.XTransferCDRTrainingPlan`.
        **trainer_kwargs
            Keyword arguments of :class:`scvi.train.Trainer`.

        Raises
        ------
        ValueError
            If the data allow no pairs, with one perturbation in one context, or not those that were asked for.

        Examples
        --------
        >>> model = tv.XTransferCDR(adata)
        >>> model.train(max_epochs=2, pairing="perturbation")
        >>> len(model.history["train_loss"])
        2
        """
        if keep not in ("last", "best"):
            raise ValueError(f"keep={keep!r} must be 'last' or 'best'.")
        if not 0 <= control_share <= 1:
            raise ValueError(f"control_share={control_share!r} must be between 0 and 1.")
        if weight_averaging is not None and not 0 < weight_averaging < 1:
            raise ValueError(f"weight_averaging={weight_averaging!r} must be above 0 and below 1, or None.")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size={batch_size!r} must be a whole number of pairs, at least 1.")
        n_obs = self.adata.n_obs
        validates = early_stopping or keep == "best"
        options = {"pairing": pairing, "control_share": control_share, "balance": balance, "resample": resample}
        splitter = self._data_splitter_cls(
            self.adata_manager,
            self._design,
            options,
            train_size=(0.9 if validates else 1.0) if train_size is None else train_size,
            validation_size=validation_size,
            shuffle_set_split=shuffle_set_split,
            batch_size=batch_size,
            **(datasplitter_kwargs or {}),
        )
        splitter.setup()
        design = self._design(np.sort(splitter.train_idx))
        options["pairing"] = resolve_pairing(design, pairing, control_share)
        self._check_validation(splitter.val_idx, options, validates)
        self._report_pairing(design, options)
        max_epochs = default_epochs(n_obs, batch_size) if max_epochs is None else max_epochs
        callbacks = list(trainer_kwargs.pop("callbacks", None) or [])
        if keep == "best":
            callbacks.append(KeepBest())
            trainer_kwargs.setdefault("check_val_every_n_epoch", 1)
        if weight_averaging is not None:
            callbacks.append(moving_average(weight_averaging))
        trainer_kwargs.setdefault("early_stopping_monitor", "validation_loss")
        runner = self._train_runner_cls(
            self,
            training_plan=self._training_plan_cls(
                self.module, **{"log_combination": self.pairing_["n_combinations"] > 0, **(plan_kwargs or {})}
            ),
            data_splitter=splitter,
            max_epochs=max_epochs,
            accelerator=accelerator,
            devices=devices,
            early_stopping=early_stopping,
            callbacks=callbacks,
            **trainer_kwargs,
        )
        # Lightning leaves the mode as it finds it, and inference and earlier training end in evaluation mode
        self.module.train()
        runner()
        self._store_effects()

    def _design(self, cells: np.ndarray) -> Design:
        """Conditions of some cells of the training data."""
        names = self._names()
        arguments = self._setup_arguments
        batches = None if arguments["batch_key"] is None else names["batch"]
        return make_design(
            names["perturbation"], names["context"], batches, arguments["control"], arguments["delimiter"], cells
        )

    def _check_validation(self, cells: np.ndarray, options: dict, needed: bool) -> None:
        if needed and not len(cells):
            raise ValueError(
                "early_stopping and keep='best' need cells for validation, but there are none: train_size must be below 1."
            )
        if len(cells) and not self._design(np.sort(cells)).all_partners(options["pairing"], options["control_share"]):
            raise ValueError(
                f"The {len(cells)} validation cells make no pairs with pairing={options['pairing']!r}. Hold out more of them, "
                "from conditions that can be paired."
            )

    def _report_pairing(self, design: Design, options: dict) -> None:
        """Say what will be paired, and what the data do not allow."""
        partners = design.all_partners(options["pairing"], options["control_share"])
        numbers = design.n_pairs
        self.pairing_ = {
            **options,
            "n_conditions": len(partners),
            "n_perturbation_pairs": numbers["perturbation"],
            "n_context_pairs": numbers["context"],
            "n_combinations": numbers["combination"] if options["pairing"] != "context" else 0,
        }
        logger.info("Pairs: %s", self.pairing_)
        lost = [
            f"{condition.perturbation} in {condition.context}" if condition.context else condition.perturbation
            for i, condition in enumerate(design.conditions)
            if i not in partners and not design.is_control(i)
        ]
        if lost:
            warnings.warn(
                f"{len(lost)} conditions have no partner with pairing={options['pairing']!r} and "
                f"control_share={options['control_share']} and are not trained on: {examples(lost)}.",
                UserWarning,
                stacklevel=3,
            )
        contexts = {c.context for c in design.conditions}
        if lacking := sorted(contexts - {c.context for i, c in enumerate(design.conditions) if design.is_control(i)}):
            warnings.warn(
                f"These contexts have treated cells but no control cells: {examples(lacking)}. They are trained on without "
                "a target for the basal state, and cannot be predicted from their own controls.",
                UserWarning,
                stacklevel=3,
            )


def default_epochs(n_pairs: int, batch_size: int, n_steps: int = 2000) -> int:
    """Epochs of training: as many as make ``n_steps`` steps of the optimiser, and 10 at least."""
    return max(10, ceil(n_steps / ceil(n_pairs / batch_size)))


def _check_control(adata: AnnData, perturbation_key: str, control: str) -> None:
    names = adata.obs[perturbation_key].astype(str)
    if not (names == control).any():
        raise ValueError(
            f"No cell has control={control!r} in adata.obs[{perturbation_key!r}]. Values: {examples(names.unique())}."
        )
    if (names == control).all():
        raise ValueError(f"All cells are {control!r} in adata.obs[{perturbation_key!r}]: there is no perturbation.")


def _check_activation(adata: AnnData, layer: str | None, output_activation: Activation) -> None:
    if output_activation != "linear" and any(block.size and block.min() < 0 for block in iter_rows(adata, layer)):
        raise ValueError(
            f"The data have negative values, which a decoder with output_activation={output_activation!r} cannot reach. "
            "Use log-normalised expression that was not scaled, or output_activation='linear'."
        )
