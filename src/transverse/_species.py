"""Data of several species, apart or stacked."""

from __future__ import annotations

from collections.abc import Mapping

from anndata import AnnData
from mudata import MuData

from ._validation import check_obs_key, check_unique_var_names, examples


def species_blocks(
    adata: AnnData | MuData | Mapping[str, AnnData], species_key: str, genes_suffice: bool = False
) -> dict[str, AnnData]:
    """Samples and genes of each species.

    Parameters
    ----------
    adata
        A mapping from species to data, a MuData with a modality each, or stacked data with ``species_key`` in ``obs`` and
        in ``var``.
    species_key
        Column that names the species of a sample and of a gene.
    genes_suffice
        Whether stacked data may have genes of a species that there are no samples of.
    """
    if isinstance(adata, MuData):
        adata = dict(adata.mod)
    if isinstance(adata, Mapping):
        blocks = dict(adata)
        for name, block in blocks.items():
            if not isinstance(block, AnnData):
                raise TypeError(f"adata[{name!r}] must be an AnnData, but got {type(block).__name__}.")
    elif isinstance(adata, AnnData):
        check_obs_key(adata, species_key, "species_key")
        if species_key not in adata.var:
            raise KeyError(
                f"species_key={species_key!r} is not in adata.var, so the species of the genes is unknown. Columns: "
                f"{examples(adata.var.columns, 20)}. A mapping from species to AnnData is taken too."
            )
        of_sample, of_gene = adata.obs[species_key], adata.var[species_key]
        for axis, column, names in (("obs", of_sample, adata.obs_names), ("var", of_gene, adata.var_names)):
            if (missing := column.isna().to_numpy()).any():
                raise ValueError(
                    f"adata.{axis}[{species_key!r}] (species_key) is missing for {int(missing.sum())}: "
                    f"{examples(names[missing])}."
                )
        only = set(of_sample.astype(str)) - set(of_gene.astype(str))
        if not genes_suffice:
            only |= set(of_gene.astype(str)) - set(of_sample.astype(str))
        if only:
            raise ValueError(
                f"adata.obs[{species_key!r}] and adata.var[{species_key!r}] must name the same species, but these are in "
                f"one of them only: {examples(sorted(only))}."
            )
        blocks = {
            name: adata[(of_sample == name).to_numpy(), (of_gene == name).to_numpy()] for name in of_sample.unique()
        }
    else:
        raise TypeError(
            f"adata must be an AnnData or a mapping from species to AnnData, but got {type(adata).__name__}."
        )
    if not blocks:
        raise ValueError("adata has no species: the mapping is empty.")
    for name, block in blocks.items():
        check_unique_var_names(block, f"adata of {name!r}")
    return {str(name): block for name, block in blocks.items()}
