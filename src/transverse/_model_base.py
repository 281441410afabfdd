"""What all models share beyond scvi-tools' base class."""

from __future__ import annotations

from typing import Any, Self

from anndata import AnnData
from scvi.model.base import BaseModelClass

from ._rows import OrderedLoader
from ._saving import check_overwritten, read_saved, replace_saved, staging_folder
from ._training_run import Run, StageRunner, pack, unpack
from ._validation import align_genes


class GeneAlignedModel(BaseModelClass):
    """A model that puts the genes of any data it is given in its own order; ``var_names_`` holds them."""

    _data_loader_cls = OrderedLoader
    _train_runner_cls = StageRunner
    _run: Run | None = None

    def save(
        self,
        dir_path: str,
        prefix: str | None = None,
        overwrite: bool = False,
        save_anndata: bool = False,
        save_kwargs: dict | None = None,
        **anndata_write_kwargs,
    ) -> None:
        """Save the model: all at once, or not at all.

        The files are written beside the folder and put in place when they are complete, so that a save that is broken off
        leaves what was there before.

        Parameters
        ----------
        dir_path
            Folder to save in, which is made.
        prefix
            Put before the names of the files.
        overwrite
            Replace a model that the folder has under the same prefix. By default, a folder that exists is refused.
        save_anndata
            Save the data with the model.
        save_kwargs
            Keyword arguments of :func:`torch.save`.
        **anndata_write_kwargs
            Keyword arguments of :meth:`anndata.AnnData.write_h5ad`.

        Raises
        ------
        ValueError
            If the folder exists and ``overwrite=False``, or holds other data, which would be loaded with the model.

        Examples
        --------
        >>> model.save("model", save_anndata=True)
        >>> model.save("model", overwrite=True)  # without the data, which then go to the call of load
        """
        check_overwritten(dir_path, prefix, overwrite, None if save_anndata else self.adata)
        with staging_folder(dir_path) as folder:
            super().save(
                folder,
                prefix=prefix,
                overwrite=True,
                save_anndata=save_anndata,
                save_kwargs=save_kwargs,
                **anndata_write_kwargs,
            )
            replace_saved(folder, dir_path)

    @classmethod
    def load(cls, dir_path: str, adata: AnnData | None = None, *args, weights_only: bool = True, **kwargs) -> Self:
        """Load a model saved with :meth:`save`; see :meth:`scvi.model.SCVI.load`.

        Genes of ``adata`` in another order, or more genes than the model knows, are put right in a copy; missing genes
        are refused.

        Parameters
        ----------
        dir_path
            Folder of the model.
        adata
            Data that the model was trained on. Without it, data saved with the model; ``False`` loads the model alone.
        *args
            Further arguments of :meth:`scvi.model.SCVI.load`.
        weights_only
            Refuse a file that holds more than weights, arrays and plain values, which is all that a model needs. Such a file
            could run code on this machine when it is read: give False for files that you made yourself alone.
        **kwargs
            Further arguments of :meth:`scvi.model.SCVI.load`: ``accelerator``, ``device``, ``prefix``.

        Returns
        -------
        The model.

        Raises
        ------
        ValueError
            If the folder has no such model, or one of another class; if its file was cut short, or could run code; or if
            ``adata`` lacks genes of the model.

        Examples
        --------
        >>> model.save("model", save_anndata=True)
        >>> again = type(model).load("model")  # or by the name of the class, tv.ScSpecies.load("model")
        >>> again.is_trained
        True
        """
        names = read_saved(dir_path, kwargs.get("prefix"), cls.__name__, weights_only, kwargs.get("backup_url"))
        if isinstance(adata, AnnData):
            adata = align_genes(adata, names)
        model = super().load(dir_path, adata, *args, **kwargs)
        model.history_ = unpack(model.history_)
        return model

    def _get_user_attributes(self) -> list[tuple[str, Any]]:
        """Attributes to save, as plain values: those can be read safely, and by any version of pandas."""
        return [(name, pack(value)) for name, value in super()._get_user_attributes()]

    def _check_values(self, adata: AnnData) -> None:
        """Raise a ValueError if data are not of the kind that the model was trained on."""

    def _validate_anndata(self, adata: AnnData | None = None, copy_if_view: bool = True) -> AnnData:
        names = getattr(self, "var_names_", None)
        if adata is not None and names is not None:
            adata = align_genes(adata, names)
            if adata is not self.adata:
                self._check_values(adata)
        return super()._validate_anndata(adata, copy_if_view=copy_if_view)

    def _categories(self, key: str) -> list[str]:
        """Categories of a registered column, as text, in the order of their numbers."""
        return [str(name) for name in self.registry["field_registries"][key]["state_registry"]["categorical_mapping"]]
