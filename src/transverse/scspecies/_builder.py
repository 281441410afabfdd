"""Models of the target with a context that lies in a folder, for searches of hyperparameters."""

from __future__ import annotations

import os

from anndata import AnnData
from scvi.model import SCVI


class ScSpeciesBuilder:
    """Builds models of one class with the same context; made by :meth:`transverse.ScSpecies.builder`.

    Takes the place of a model's class where one is built from data and hyperparameters alone, as
    :func:`scvi.autotune.run_autotune` does in other processes: they read the context from its folder.
    """

    def __init__(self, model_cls: type, context_dir: str, context_adata: AnnData | None, kwargs: dict):
        self.model_cls, self.context_dir, self.context_adata, self.kwargs = (
            model_cls,
            context_dir,
            context_adata,
            kwargs,
        )
        self.__name__ = model_cls.__name__

    def __call__(self, adata: AnnData, **kwargs):
        """An untrained model of ``adata``, which :meth:`setup_anndata` has registered.

        Parameters
        ----------
        adata
            Target data.
        **kwargs
            Keyword arguments of :meth:`transverse.ScSpecies.from_scvi_model`; they come before those of the builder.
        """
        context = SCVI.load(self.context_dir, adata=self.context_adata)
        return self.model_cls.from_scvi_model(context, adata, **{**self.kwargs, **kwargs})

    def setup_anndata(self, adata: AnnData, **kwargs) -> None:
        """Register the target data, as :meth:`transverse.ScSpecies.setup_anndata`."""
        self.model_cls.setup_anndata(adata, **kwargs)

    def _get_most_recent_anndata_manager(self, adata: AnnData, required: bool = False):
        return self.model_cls._get_most_recent_anndata_manager(adata, required=required)


def check_context_dir(context_dir: str | os.PathLike, context_adata: AnnData | None) -> str:
    """The absolute path of a saved context, refused where there is none, or none with data."""
    folder = os.path.abspath(context_dir)
    if not os.path.exists(os.path.join(folder, "model.pt")):
        raise ValueError(f"context_dir={str(context_dir)!r} holds no saved model: save the context there first.")
    if context_adata is None and not os.path.exists(os.path.join(folder, "adata.h5ad")):
        raise ValueError(
            f"context_dir={str(context_dir)!r} holds no data: save the context with save_anndata=True, or pass context_adata."
        )
    return folder
