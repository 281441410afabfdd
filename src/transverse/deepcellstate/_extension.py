"""Decoders for new cell types, and models that fit a small set of other data."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Literal, Self

import anndata as ad
import numpy as np
import pandas as pd
from anndata import AnnData

from transverse._validation import examples

from ._stages import choose_stages
from ._training_plan import decoder_losses

logger = logging.getLogger(__name__)


class ExtensionMixin:
    """Models that begin where a trained one has come to. The model itself stays as it is."""

    def add_cell_type(
        self,
        adata: AnnData,
        cell_type: str,
        *,
        init: str | None = None,
        train_encoder: bool = False,
        max_epochs: int = 99,
        lr: float | None = None,
        train_size: float | None = None,
        batch_size: int = 128,
        **trainer_kwargs,
    ) -> Self:
        """A model with a decoder for one more cell type.

        The new decoder starts as a copy of one there is, and learns from pairs of ``adata``.

        Parameters
        ----------
        adata
            Signatures of the new cell type, and of the same perturbations in others, which may be new as well. Genes that
            are missing are taken as 0.
        cell_type
            The new cell type, by its name in ``adata.obs``.
        init
            Cell type whose decoder to start from. By default the one that predicts the new signatures best, by its loss.
        train_encoder
            Whether the encoder learns along. The other decoders stay as they are, and fit it less and less then.
        max_epochs, lr, train_size, batch_size
            As in :meth:`train`, of its second stage.
        **trainer_kwargs
            Further keyword arguments of :meth:`train` for :class:`scvi.train.Trainer`, such as ``accelerator``.

        Returns
        -------
        The new model. Its data are those of ``adata``.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        KeyError
            If ``init`` has no decoder, or a column is not there.
        ValueError
            If the cell type has a decoder already, or ``adata`` has nothing of it to learn from.

        Examples
        --------
        Signatures of a new cell type, here those of a known one under another name:

        >>> new = adata.copy()
        >>> new.obs["cell_type"] = new.obs["cell_type"].astype(str).replace("C3", "C4")
        >>> extended = model.add_cell_type(new, "C4", max_epochs=2)
        >>> pred = extended.predict(adata[adata.obs["cell_type"] == "C1"], target="C4")
        >>> pred.obs["cell_type"].unique().tolist()
        ['C4']
        """
        self._check_if_trained(warn=False)
        cell_type = str(cell_type)
        if cell_type in self.trained_decoders_:
            raise ValueError(f"cell_type={cell_type!r} has a decoder already. To train it further, call fine_tune().")
        if init is not None:
            self._decoder_of(init, "init")
        (stage,) = choose_stages(["decoders"], True, max_epochs, None, lr)
        stage = replace(stage, train_encoder=train_encoder)
        model = self._on(adata, target=cell_type)
        new = model.cell_types_.index(cell_type)
        grid = model._grid()
        train, validation = model._split(grid, {}, train_size, None, True)
        pairs = {"decoders": [new], "batch_size": batch_size}
        splitter = model._splitter(stage, grid, train, validation, **pairs)
        if not len(grid.pairs(train, "cross", [new])):
            raise ValueError(
                f"No perturbation of cell_type={cell_type!r} in adata was measured in another cell type to train on."
            )
        first = init or self._most_alike(model, splitter)
        logger.info("The decoder of %s starts from that of %s.", cell_type, first)
        model.module.decoders[new].load_state_dict(self.module.decoders[self.cell_types_.index(first)].state_dict())
        options = {"early_stopping": bool(len(splitter.validation_pairs)), **trainer_kwargs}
        model._fit_stage(stage, splitter, {}, options)
        model._remember(grid, train, decoders=[new])
        return model

    def fine_tune(
        self,
        adata: AnnData,
        target: str,
        *,
        preset: int = 0,
        scale: Literal["model", "data"] | float = "model",
        train_encoder: bool = True,
        max_epochs: int = 50,
        lr: float = 1e-5,
        batch_size: int = 1,
        **trainer_kwargs,
    ) -> Self:
        """A model that is fitted to a small set of other data, such as another assay's.

        Encoder and decoder of the target go on learning from pairs of ``adata``, with the defaults of the paper's transfer to
        external data.

        Parameters
        ----------
        adata
            Signatures of the target and of the same perturbations in other cell types, which may be new. Genes that are
            missing are taken as 0.
        target
            Cell type to predict; it must have a decoder.
        preset
            Regularisation of the new model, see :class:`~transverse.deepcellstate.DeepCellStateModule`.
        scale
            What ``adata`` is divided by, which the new model keeps: the scale of this one, the largest absolute value
            of ``adata`` (``"data"``), or a number.
        train_encoder
            Whether the encoder learns as well.
        max_epochs, lr, batch_size
            Epochs, learning rate of Adam, and pairs in a mini-batch.
        **trainer_kwargs
            Further keyword arguments of :meth:`train` for :class:`scvi.train.Trainer`, such as ``accelerator``.

        Returns
        -------
        The new model. Its data are those of ``adata``.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        KeyError
            If the target has no decoder, or a column is not there.
        ValueError
            If no perturbation of ``adata`` has signatures in the target and in another cell type.

        Examples
        --------
        >>> few = adata[:15].copy()  # five perturbations
        >>> tuned = model.fine_tune(few, "C2", max_epochs=2)
        >>> tuned.predict(few[few.obs["cell_type"] != "C2"], target="C2").n_obs
        5
        """
        self._check_if_trained(warn=False)
        decoder = self._decoder_of(target)
        (stage,) = choose_stages(["frozen"], True, max_epochs, None, lr)
        stage = replace(stage, name="fine_tune", train_encoder=train_encoder)
        model = self._on(adata, target=str(target), preset=preset)
        model.module.scale.fill_(
            self._divisor(model._read(None)[0], scale) if scale != "model" else float(self.module.scale)
        )
        grid = model._grid()
        rows = np.arange(len(grid.cell_types))
        splitter = model._splitter(stage, grid, rows, rows[:0], decoders=[decoder], batch_size=batch_size)
        if not len(splitter.train_pairs):
            raise ValueError(f"No perturbation in adata was measured in target={target!r} and in another cell type.")
        model._fit_stage(stage, splitter, {}, {"early_stopping": False, **trainer_kwargs})
        model._remember(grid, rows, decoders=[decoder])
        return model

    def predict_leave_one_out(self, adata: AnnData, target: str, **kwargs) -> AnnData:
        """Predict every perturbation of a small set by a model that is fine-tuned on the others.

        Parameters
        ----------
        adata, target
            As in :meth:`fine_tune`.
        **kwargs
            Further keyword arguments of :meth:`fine_tune`.

        Returns
        -------
        Predictions as of :meth:`predict`, a row for each perturbation that has signatures in the target and in another
        cell type.

        Raises
        ------
        ValueError
            If there are fewer than two such perturbations.

        Examples
        --------
        >>> few = adata[:9].copy()  # three perturbations
        >>> pred = model.predict_leave_one_out(few, "C2", max_epochs=2)
        >>> pred.n_obs
        3
        """
        self._check_if_trained(warn=False)
        self._decoder_of(target)
        by, cell_type_key = self._keys
        labels = self._read(adata)[0].obs
        adata = adata.to_memory()  # few, and parts of a file's view cannot be taken
        names = labels[by].agg("|".join, axis=1).to_numpy()
        of_target = (labels[cell_type_key] == str(target)).to_numpy()
        both = sorted(set(names[of_target]) & set(names[~of_target]))
        if len(both) < 2:
            raise ValueError(
                f"adata needs at least two perturbations in target={target!r} and in another cell type, but has {examples(both)}."
            )
        predictions = []
        for name in both:
            model = self.fine_tune(adata[names != name].copy(), target, **kwargs)
            predictions.append(model.predict(adata[(names == name) & ~of_target].copy(), target))
        pred = ad.concat(predictions)
        for key in (*by, cell_type_key):
            pred.obs[key] = pred.obs[key].astype(object).astype("category")
        pred.uns["prediction"] = {
            **predictions[0].uns["prediction"],
            "fine_tuned": "on the other perturbations of adata",
        }
        return pred

    def _on(self, adata: AnnData, target: str, **changes) -> Self:
        """A copy of the model with other data, whose cell types and perturbations may be new."""
        signatures, _ = self._read(adata)
        by, cell_type_key = self._keys
        if target not in set(signatures.obs[cell_type_key]):
            raise ValueError(
                f"adata has no signatures of {target!r} in obs[{cell_type_key!r}], which has "
                f"{examples(signatures.obs[cell_type_key].unique())}."
            )
        arguments = dict(self.registry["setup_args"])
        x = np.concatenate(list(signatures.batches(8192)))
        # as they are: names may be numbers, and are then among the registered categories as such
        obs = signatures.adata.obs[list(signatures.obs)].copy()
        obs.index = obs.index.astype(object)
        own = AnnData(x, obs=obs, var=pd.DataFrame(index=pd.Index(self.var_names_, dtype=object)))
        if arguments["layer"] is not None:
            own.layers[arguments["layer"]] = own.X
        cls = type(self)
        cls.setup_anndata(own, source_registry=self.registry, extend_categories=True, **arguments)
        kwargs = self._network_arguments()
        if "preset" in changes:
            kwargs |= {"input_dropout_rate": None, "latent_l1": None, "decoder_dropout_rate": None}
        model = cls(own, **{**kwargs, **changes})
        state = model.module.state_dict()
        model.module.load_state_dict({**state, **self.module.state_dict()})
        model.trained_decoders_ = list(self.trained_decoders_)
        model.training_conditions_ = list(self.training_conditions_)
        return model

    def _most_alike(self, model: Self, splitter) -> str:
        """The trained decoder that predicts the new cell type's signatures with the lowest loss."""
        new = splitter.train_pairs[0, 2]
        losses = {}
        for name in self.trained_decoders_:
            decoder = self.module.decoders[self.cell_types_.index(name)]
            model.module.decoders[new].load_state_dict(decoder.state_dict())
            losses[name] = decoder_losses(model.module, splitter.whole_targets(splitter.train_pairs))[int(new)]
        return min(losses, key=losses.get)
