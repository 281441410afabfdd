"""What all models share beyond scvi-tools' base class."""

from __future__ import annotations

from typing import Self

from anndata import AnnData
from scvi.model.base import BaseModelClass

from ._compat import saved_var_names
from ._rows import OrderedLoader
from ._validation import align_genes


class GeneAlignedModel(BaseModelClass):
    """A model that puts the genes of any data it is given in its own order; ``var_names_`` holds them."""

    _data_loader_cls = OrderedLoader

    @classmethod
    def load(cls, dir_path: str, adata: AnnData | None = None, *args, **kwargs) -> Self:
        """Load a model saved with :meth:`save`; see :meth:`scvi.model.SCVI.load`.

        Genes of ``adata`` in another order, or more genes than the model knows, are put right in a copy; missing genes
        are refused.

        Parameters
        ----------
        dir_path
            Folder of the model.
        adata
            Data that the model was trained on. Without it, data saved with the model; ``False`` loads the model alone.
        *args, **kwargs
            Further arguments of :meth:`scvi.model.SCVI.load`: ``accelerator``, ``device``, ``prefix``.

        Notes
        -----
        The file is scvi-tools' own format, which is read by unpickling: load only models from sources that you trust.
        """
        names = saved_var_names(dir_path, kwargs.get("prefix")) if isinstance(adata, AnnData) else None
        if names:
            adata = align_genes(adata, names)
        return super().load(dir_path, adata, *args, **kwargs)

    def _validate_anndata(self, adata: AnnData | None = None, copy_if_view: bool = True) -> AnnData:
        names = getattr(self, "var_names_", None)
        if adata is not None and names is not None:
            adata = align_genes(adata, names)
        return super()._validate_anndata(adata, copy_if_view=copy_if_view)

    def _categories(self, key: str) -> list[str]:
        """Categories of a registered column, as text, in the order of their numbers."""
        return [str(name) for name in self.registry["field_registries"][key]["state_registry"]["categorical_mapping"]]
