"""Samples of several species, each with its own genes, as one object."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from mudata import MuData

from transverse._groups import dense
from transverse._species import species_blocks
from transverse._validation import check_unique_var_names, examples, iter_rows

from ._signatures import as_text
from ._stack_tables import Join, describe_table, join_tables, restore_table, unique_names

Prefix = Literal["repeated", "all"]

_KEY = "stack_species"


def stack_species(
    data: Mapping[str, AnnData] | MuData,
    *,
    species_key: str = "species",
    gene_key: str = "gene",
    layers: Sequence[str] | None = None,
    join_obs: Join = "outer",
    join_var: Join = "outer",
    prefix: Prefix = "repeated",
    delimiter: str = ":",
) -> AnnData:
    r"""Put samples of several species, each with its own genes, into one object.

    No orthologues are needed: a gene belongs to one species. With :math:`X_s` of shape (samples, genes) of species
    :math:`s`, the result is the block matrix

    .. math::
        X = \begin{pmatrix} X_1 & & \\ & X_2 & \\ & & \ddots \end{pmatrix},

    sparse, in which a sample has entries at the genes of its own species only.

    Parameters
    ----------
    data
        A mapping of names of species to data, in memory or backed, or a MuData with a modality each. They are read block
        by block and not changed. Their samples are taken to be different ones, even of the same names.
    species_key
        Column of ``obs`` and of ``var`` that the species is written to. Where it is there already, it must say the same.
    gene_key
        Column of ``var`` that the gene's own name is written to.
    layers
        Layers to stack; by default those that all species have.
    join_obs, join_var
        Columns of ``obs`` and of ``var`` to keep: those of any species (``"outer"``; missing in the others), or those that
        all have (``"inner"``).
    prefix
        Which genes get the species before their name: ``"repeated"``, those whose name occurs in several species, each
        time; or ``"all"``, so that the name of a gene does not depend on what it is stacked with. Samples get it all or
        none: with ``"all"``, or if a name occurs in several species.
    delimiter
        What stands between species and name: with ``":"`` the gene Alb becomes ``"mouse:Alb"`` and ``"rat:Alb"``.

    Returns
    -------
    AnnData of all samples x all genes, in the order of the species. ``X`` and the layers are CSR, of the common type of
    all species; ``X`` is None if it is in all. ``obs[species_key]`` and ``var[species_key]`` are categorical. Columns that
    a species lacks are missing there, for which whole numbers become floats, booleans nullable ones and text categories.
    ``uns["stack_species"]`` has the ``species``, the ``parameters``, and as JSON (``"record"``) what
    :func:`unstack_species` needs. ``obsm``, ``varm``, ``obsp``, ``varp``, ``raw`` and ``uns`` are not taken over.

    Raises
    ------
    ValueError
        If there are fewer than two species; a species has no samples or no genes, or names that repeat; ``X`` is empty in
        some species only; a column ``species_key`` or ``gene_key`` is there and says something else; a column holds
        different things in two species; names cannot be made unique; or an argument is not understood.
    KeyError
        If a species lacks a layer that is asked for.
    TypeError
        If ``data`` is not a mapping of AnnData or a MuData, or a matrix does not hold numbers.

    Examples
    --------
    >>> import transverse as tv
    >>> data = tv.datasets.simulate_reactomes(n_genes=50, n_animals=2)
    >>> adata = tv.pp.stack_species(data)
    >>> adata.shape, adata.var["species"].value_counts().to_dict()
    ((160, 100), {'mouse': 50, 'rat': 50})
    """
    blocks = _blocks(data)
    for argument, value, known in (
        ("join_obs", join_obs, get_args(Join)),
        ("join_var", join_var, get_args(Join)),
        ("prefix", prefix, get_args(Prefix)),
    ):
        if value not in known:
            raise ValueError(f"{argument}={value!r} must be one of {', '.join(map(repr, known))}.")
    for argument, value in {"species_key": species_key, "gene_key": gene_key, "delimiter": delimiter}.items():
        if not isinstance(value, str) or not value:
            raise ValueError(f"{argument}={value!r} must be a string of at least one letter.")
    if species_key == gene_key:
        raise ValueError(f"species_key and gene_key are both {species_key!r}, but must be two columns.")
    layers = _layers(blocks, layers)
    for name, block in blocks.items():
        _check_block(name, block, species_key, gene_key)
    has_x = [block.X is not None for block in blocks.values()]
    if any(has_x) != all(has_x):
        without = [name for name, has in zip(blocks, has_x, strict=True) if not has]
        raise ValueError(f"X is empty in {examples(without)}, but not in the others. Fill it in, or empty it in all.")

    genes = {name: block.var for name, block in blocks.items()}
    var = stack_var(genes, species_key, gene_key, join_var, prefix, delimiter)
    obs_names = {name: block.obs_names for name, block in blocks.items()}
    repeat = pd.Index(np.concatenate([names.to_numpy(dtype=object) for names in obs_names.values()])).has_duplicates
    prefix_samples = prefix == "all" or repeat
    names = unique_names(obs_names, "all" if prefix_samples else "repeated", delimiter, "samples")
    obs = _with_species({name: block.obs for name, block in blocks.items()}, names, species_key, join_obs, "obs")

    x = _stack_matrix(blocks, None) if all(has_x) else None
    stacked = {layer: _stack_matrix(blocks, layer) for layer in layers}
    parameters = {
        "species_key": species_key,
        "gene_key": gene_key,
        "layers": np.array(layers, dtype=object),
        "join_obs": join_obs,
        "join_var": join_var,
        "prefix": prefix,
        "delimiter": delimiter,
    }
    record = {
        "prefix_samples": bool(prefix_samples),
        "species": {name: _describe(block, layers) for name, block in blocks.items()},
    }
    uns = {"species": np.array(list(blocks), dtype=object), "parameters": parameters, "record": json.dumps(record)}
    return AnnData(x, obs=obs, var=var, layers=stacked, uns={_KEY: uns})


def unstack_species(adata: AnnData, species_key: str = "species") -> dict[str, AnnData]:
    """Take stacked species apart again: the inverse of :func:`stack_species`.

    Parameters
    ----------
    adata
        Samples and genes of several species, of which samples have values at the genes of their own species only. It is
        not changed.
    species_key
        Column of ``obs`` and of ``var`` with the species.

    Returns
    -------
    Dictionary of species to AnnData, copies in memory, in the order of the samples, with ``X`` and layers. What
    :func:`stack_species` has written down is undone: names, columns and their types, categories, and the formats and types
    of matrices are those that the species had. Columns and layers that came later are kept, samples and genes that were
    removed stay so. Without its record, as in data that were stacked otherwise, names and columns stay what they are.

    Raises
    ------
    KeyError
        If ``obs`` or ``var`` lacks the column.
    ValueError
        If the species of samples and genes differ or are missing, or samples have values at genes of other species.
    TypeError
        If ``adata`` is not an AnnData.

    Examples
    --------
    >>> import transverse as tv
    >>> data = tv.datasets.simulate_reactomes(n_genes=50, n_animals=2)
    >>> again = tv.pp.unstack_species(tv.pp.stack_species(data))
    >>> bool((again["rat"].X == data["rat"].X).all())
    True
    """
    if not isinstance(adata, AnnData):
        raise TypeError(f"adata must be an AnnData, but got {type(adata).__name__}.")
    blocks = species_blocks(adata, species_key)
    written = adata.uns.get(_KEY)
    record = json.loads(written["record"]) if written else {"species": {}}
    known = {axis: {c for own in record["species"].values() for c in own[axis]["columns"]} for axis in ("obs", "var")}
    if written:
        known["obs"] |= {written["parameters"]["species_key"]}
        known["var"] |= {written["parameters"][key] for key in ("species_key", "gene_key")}
    keys = [None] * (adata.X is not None) + _names_of_layers(adata)
    for key in keys:
        inside = sum(_count(block, key) for block in blocks.values())
        if (outside := _count(adata, key) - inside) > 0:
            where = "X" if key is None else f"layers[{key!r}]"
            raise ValueError(f"adata.{where} has {outside} values of samples at genes of other species.")

    result = {}
    for name, block in blocks.items():
        own = record["species"].get(name)
        obs, var = block.obs.copy(), block.var.copy()
        if own is not None:
            start = name + written["parameters"]["delimiter"]
            obs_names, var_names = block.obs_names, pd.Index(var[written["parameters"]["gene_key"]], dtype=object)
            if record["prefix_samples"]:
                obs_names = pd.Index([old.removeprefix(start) for old in obs_names], dtype=object)
            obs = restore_table(obs, own["obs"], known["obs"], obs_names)
            var = restore_table(var, own["var"], known["var"], var_names)
        matrices = {key: _as(block.X if key is None else block.layers[key], own, key) for key in keys}
        x = matrices.pop(None, None)
        result[name] = AnnData(x, obs=obs, var=var, layers=matrices)
    return result


def stack_var(
    tables: Mapping[str, pd.DataFrame], species_key: str, gene_key: str, join: Join, prefix: Prefix, delimiter: str
) -> pd.DataFrame:
    """The genes of all species, one after the other, with unique names."""
    names = unique_names({name: table.index for name, table in tables.items()}, prefix, delimiter, "genes")
    others = {name: table.drop(columns=gene_key, errors="ignore") for name, table in tables.items()}
    var = _with_species(others, names, species_key, join, "var")
    own = [table.index.astype(str).to_numpy(dtype=object) for table in tables.values()]
    var.insert(1, gene_key, pd.Series(np.concatenate(own), index=names, dtype=object))
    return var


def _blocks(data: object) -> dict[str, AnnData]:
    if isinstance(data, MuData):
        data = dict(data.mod)
    if not isinstance(data, Mapping):
        raise TypeError(f"data must be a mapping of species to AnnData, or a MuData, but got {type(data).__name__}.")
    for name, block in data.items():
        if not isinstance(block, AnnData):
            raise TypeError(f"data[{name!r}] must be an AnnData, but got {type(block).__name__}.")
    blocks = {str(name): block for name, block in data.items()}
    if len(blocks) < len(data):
        raise ValueError(f"The names of species must differ as text, but are {examples(data)}.")
    if len(blocks) < 2:
        raise ValueError(f"There must be at least two species to stack, but data has {examples(blocks)}.")
    return blocks


def _layers(blocks: Mapping[str, AnnData], layers: Sequence[str] | None) -> list[str]:
    if layers is None:
        first, *others = (_names_of_layers(block) for block in blocks.values())
        return [layer for layer in first if all(layer in other for other in others)]
    if isinstance(layers, str):
        raise TypeError(f"layers must be a list of layers, but got the string {layers!r}.")
    for layer in layers:
        if lacking := [name for name, block in blocks.items() if layer not in block.layers]:
            raise KeyError(
                f"layers names {layer!r}, which is not in the layers of {examples(lacking)}. Layers of {lacking[0]!r}: "
                f"{examples(_names_of_layers(blocks[lacking[0]]))}."
            )
    return list(dict.fromkeys(layers))


def _names_of_layers(adata: AnnData) -> list[str]:
    return [layer for layer in adata.layers if layer is not None]  # newer versions of anndata count X among them


def _check_block(name: str, block: AnnData, species_key: str, gene_key: str) -> None:
    if block.n_obs == 0 or block.n_vars == 0:
        raise ValueError(f"data[{name!r}] is empty: it has {block.n_obs} samples and {block.n_vars} genes.")
    check_unique_var_names(block, f"data[{name!r}]")
    if not block.obs_names.is_unique:
        raise ValueError(
            f"data[{name!r}].obs_names must be unique, but these repeat: "
            f"{examples(block.obs_names[block.obs_names.duplicated()].unique())}. Call obs_names_make_unique() first."
        )
    for axis, table in (("obs", block.obs), ("var", block.var)):
        if species_key in table and (other := table[species_key].astype(str).to_numpy() != name).any():
            found = pd.unique(table[species_key].astype(str)[other])
            raise ValueError(
                f"data[{name!r}].{axis}[{species_key!r}] must be {name!r} throughout, but has {examples(found)}. Name the "
                "species as the column does, or write the species to another column with species_key."
            )
    if gene_key in block.var and (block.var[gene_key].astype(str).to_numpy() != block.var_names.astype(str)).any():
        raise ValueError(
            f"data[{name!r}].var has a column {gene_key!r} that is not the names of the genes. Keep these in another one "
            "with gene_key."
        )


def _with_species(
    tables: Mapping[str, pd.DataFrame], names: pd.Index, species_key: str, join: Join, axis: str
) -> pd.DataFrame:
    others = {name: table.drop(columns=species_key, errors="ignore") for name, table in tables.items()}
    joined = as_text(join_tables(others, names, join, axis))
    codes = np.repeat(np.arange(len(tables)), [len(table) for table in tables.values()])
    categories = pd.Index(list(tables), dtype=object)
    joined.insert(0, species_key, pd.Categorical.from_codes(codes, categories=categories))
    return joined


def _stack_matrix(blocks: Mapping[str, AnnData], layer: str | None) -> sp.csr_matrix:
    """The block matrix, put together from blocks of rows; a dense one is never made."""
    n_vars = sum(block.n_vars for block in blocks.values())
    data, indices, lengths, offset = [], [], [], 0
    for name, block in blocks.items():
        for rows in iter_rows(block, layer):
            if rows.dtype != bool and not np.issubdtype(rows.dtype, np.number):
                where = "X" if layer is None else f"layers[{layer!r}]"
                raise TypeError(f"data[{name!r}].{where} must hold numbers, but its type is {rows.dtype}.")
            rows = sp.csr_matrix(rows)
            data.append(rows.data)
            indices.append(rows.indices.astype(np.int64 if n_vars > np.iinfo(np.int32).max else np.int32) + offset)
            lengths.append(np.diff(rows.indptr))
        offset += block.n_vars
    lengths = np.concatenate(lengths)
    indptr = np.append(0, np.cumsum(lengths, dtype=np.int64))
    shape = (len(lengths), n_vars)
    stacked = sp.csr_matrix((np.concatenate(data), np.concatenate(indices), indptr), shape=shape)
    stacked.sort_indices()
    return stacked


def _matrix(block: AnnData, key: str | None) -> Any:
    return block.X if key is None else block.layers[key]


def _count(adata: AnnData, key: str | None) -> int:
    return sum(
        int(rows.count_nonzero()) if sp.issparse(rows) else int(np.count_nonzero(rows))
        for rows in iter_rows(adata, key)
    )


def _describe(block: AnnData, layers: Sequence[str]) -> dict[str, Any]:
    keys = [None] * (block.X is not None) + list(layers)
    return {
        "obs": describe_table(block.obs),
        "var": describe_table(block.var),
        "matrices": {key or "": _format(_matrix(block, key)) for key in keys},
    }


def _format(matrix: Any) -> list[str]:
    form = getattr(matrix, "format", None)
    return [form if form in ("csr", "csc") else "csr" if sp.issparse(matrix) else "dense", str(matrix.dtype)]


def _as(matrix: Any, own: Mapping[str, Any] | None, key: str | None) -> Any:
    form, dtype = (own or {"matrices": {}})["matrices"].get(key or "", [None, None])
    if form is None:
        return matrix.copy()
    if form == "dense":
        return dense(matrix).astype(dtype)
    return {"csr": sp.csr_matrix, "csc": sp.csc_matrix}[form](matrix).astype(dtype)
