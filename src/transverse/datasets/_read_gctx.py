"""Read signatures of the Connectivity Map (L1000) from GCTX files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.utils import make_index_unique

from transverse._validation import examples

from ._gctx_tables import MATRIX, MISSING, join_metadata, read_tables

_BLOCK_BYTES = 2**26
_GAP = 16  # rows between two that are wanted, which are rather read along than skipped
_OBS_IDS = ("id", "sig_id", "inst_id", "cid")
_VAR_IDS = ("id", "pr_gene_id", "gene_id", "rid")
# phases 1 and 2 of L1000 and the 2020 release differ in names
_STANDARD = {
    "perturbation": ("pert_iname", "cmap_name", "pert_id"),
    "cell_type": ("cell_id", "cell_iname", "cell_mfc_name"),
    "dose": ("pert_idose", "pert_dose"),
    "time": ("pert_itime", "pert_time"),
}
_SYMBOLS = ("pr_gene_symbol", "gene_symbol")


def read_gctx(
    path: str | PathLike[str],
    *,
    obs: Mapping[str, object] | Sequence[str] | Sequence[bool] | np.ndarray | None = None,
    genes: Sequence[str] | None = None,
    var_key: str | None = None,
    make_unique: bool = True,
    renames: bool = True,
    obs_metadata: pd.DataFrame | str | PathLike[str] | None = None,
    var_metadata: pd.DataFrame | str | PathLike[str] | None = None,
) -> AnnData:
    r"""Read a GCTX file, such as those of L1000, with signatures as observations and genes as variables.

    Of the matrix only the signatures that are asked for are read, in blocks of at most 64 MB or a row of the file, so
    that a file of many GB need not fit into memory.

    Parameters
    ----------
    path
        GCTX file, which is HDF5: the matrix in ``/0/DATA/0/matrix``, signatures in ``/0/META/COL`` and genes in
        ``/0/META/ROW``.
    obs
        Which signatures to read; None reads all. Either

        - a mapping from columns to allowed values, such as ``{"pert_iname": ["vemurafenib"], "cell_id": ["A375",
          "MCF7"]}``, for signatures that fit all of them, in the order of the file. Columns are those of the file, of
          ``obs_metadata``, and the standard names (see ``renames``).
        - ids of signatures, for these in the order given.
        - a boolean mask over the signatures of the file.
    genes
        Which genes to read, in the order given, by the names that ``var_key`` gives them; None reads all.
    var_key
        Column of genes for ``var_names``. None takes ``pr_gene_symbol`` or ``gene_symbol`` if the file or
        ``var_metadata`` has it, and the ids of rows if not; ``"id"`` stands for these. Where a gene has no symbol, its
        id stands in.
    make_unique
        Append ``-1``, ``-2`` and so on to names of genes that repeat, as :func:`anndata.utils.make_index_unique` does.
        With False they are refused.
    renames
        Add columns with the names that other calls expect, from the first of these that there is:

        - ``perturbation``: ``pert_iname``, ``cmap_name``, ``pert_id``
        - ``cell_type``: ``cell_id``, ``cell_iname``, ``cell_mfc_name``
        - ``dose``: ``pert_idose``, ``pert_dose``
        - ``time``: ``pert_itime``, ``pert_time``

        The original columns stay, and what already bears such a name is left alone.
    obs_metadata, var_metadata
        What is known of signatures and genes beside the file, whose matrix may come with ids only (GSE92742 and
        GSE70138 do): a table, or the path of a tab-separated one (gzip is recognised by its suffix) such as
        ``GSE92742_Broad_LINCS_sig_info.txt.gz`` and ``GSE92742_Broad_LINCS_gene_info.txt.gz``. It is joined by the
        column ``id``, ``sig_id``, ``inst_id`` or ``cid`` (genes: ``id``, ``pr_gene_id``, ``gene_id`` or ``rid``), or
        else by the index of a table and the first column of a file. Its columns take the place of the file's.

    Returns
    -------
    :class:`~anndata.AnnData`, signatures x genes:

    - ``X``: values as stored, float32, dense. Those of level 5 are z-scores (MODZ), :math:`x_{sg} = \sum_r w_r z_{rg}`
      over replicates :math:`r` with weights that sum to one; they are neither clipped nor rescaled.
    - ``obs``: index of signature ids; text as categories
    - ``var``: index of gene names, ``id`` (id of the row in the file) and its other columns
    - ``uns["gctx"]``: ``version``, ``scale`` (in words), ``n_signatures`` and ``n_genes`` of the file

    The value -666, a number or text, stands for a missing one in these files and becomes NaN.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is not HDF5, lacks a part of a GCTX file, has a matrix that fits neither signatures x genes nor
        genes x signatures, or repeats ids; if nothing fits the filter; if ids or genes are not in the file, or not in
        the table that is joined.
    KeyError
        If the filter or ``var_key`` names a column that there is not.

    Notes
    -----
    Most files have signatures in the rows of the HDF5 data set, which some libraries show as columns; both layouts are
    read, and told apart by the numbers of signatures and genes.

    Examples
    --------
    A file with the layout of those of L1000, of which two signatures are read:

    >>> import h5py
    >>> import transverse as tv
    >>> with h5py.File("level5.gctx", "w") as file:
    ...     file["0/DATA/0/matrix"] = [[2.5, -1.0], [0.5, 1.5], [-3.0, 0.0]]
    ...     file["0/META/COL/id"] = ["s1", "s2", "s3"]
    ...     file["0/META/COL/pert_iname"] = ["vemurafenib", "vemurafenib", "sirolimus"]
    ...     file["0/META/COL/cell_id"] = ["A375", "MCF7", "A375"]
    ...     file["0/META/ROW/id"] = ["780", "7157"]
    ...     file["0/META/ROW/pr_gene_symbol"] = ["DDR1", "TP53"]
    >>> sig = tv.datasets.read_gctx("level5.gctx", obs={"pert_iname": ["vemurafenib"], "cell_id": ["A375", "MCF7"]})
    >>> sig.obs_names.tolist(), sig.var_names.tolist(), sig.X.tolist()
    (['s1', 's2'], ['DDR1', 'TP53'], [[2.5, -1.0], [0.5, 1.5]])

    A public file that has ids only, with its tables:

    >>> sig = tv.datasets.read_gctx(
    ...     "GSE92742_Broad_LINCS_Level5_COMPZ.MODZ_n473647x12328.gctx",
    ...     obs={"cell_type": ["PC3", "MCF7"], "pert_type": "trt_cp"},
    ...     obs_metadata="GSE92742_Broad_LINCS_sig_info.txt.gz",
    ...     var_metadata="GSE92742_Broad_LINCS_gene_info.txt.gz",
    ... )  # doctest: +SKIP
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"path: there is no file {str(path)!r}.")
    if not h5py.is_hdf5(path):
        raise ValueError(f"path: {path} is not an HDF5 file, which a GCTX file is. Text files (.gct) are not read.")
    with h5py.File(path, "r", rdcc_nbytes=_BLOCK_BYTES) as file:
        signatures, gene_table, transposed = read_tables(file, path)
        n_signatures, n_genes = len(signatures), len(gene_table)

        rows = np.arange(n_signatures)
        if obs is not None and not isinstance(obs, Mapping):
            rows = _rows_of(obs, signatures.index)
        signatures = signatures.iloc[rows]
        if obs_metadata is not None:
            signatures = join_metadata(signatures, obs_metadata, "obs_metadata", _OBS_IDS)
        if var_metadata is not None:
            gene_table = join_metadata(gene_table, var_metadata, "var_metadata", _VAR_IDS)
        if renames:
            signatures = _add_standard_names(signatures)
        if isinstance(obs, Mapping):
            keep = _matching(signatures, obs)
            rows, signatures = rows[keep], signatures.iloc[keep]

        gene_table, columns = _choose_genes(gene_table, genes, var_key, make_unique)
        values = _read_matrix(file[MATRIX], rows, columns, transposed)
        version = file.attrs.get("version", "")
    adata = AnnData(values, obs=_drop_unused(signatures), var=_drop_unused(gene_table))
    adata.uns["gctx"] = {
        "version": version.decode("latin-1") if isinstance(version, bytes) else str(version),
        "scale": "as stored in the file; z-scores for level 5 (MODZ)",
        "n_signatures": n_signatures,
        "n_genes": n_genes,
    }
    return adata


def _rows_of(obs, ids: pd.Index) -> np.ndarray:
    wanted = np.atleast_1d(np.asarray(obs, dtype=None if len(obs) else object))
    if wanted.dtype == bool:
        if wanted.shape != ids.shape:
            raise ValueError(f"obs: expected a mask over {len(ids)} signatures, but got one of shape {wanted.shape}.")
        return _some(np.flatnonzero(wanted), "obs: the mask has no signature; expected at least one that is True.")
    wanted = pd.Index(wanted.astype(str), dtype=object)
    return _positions(wanted, ids, "obs", "ids of signatures")


def _positions(wanted: pd.Index, known: pd.Index, argument: str, what: str) -> np.ndarray:
    rows = known.get_indexer(wanted)
    if (rows < 0).any():
        raise ValueError(
            f"{argument}: {int((rows < 0).sum())} of {len(wanted)} {what} are not in the file: "
            f"{examples(wanted[rows < 0])}. It has, for example: {examples(known)}."
        )
    if not wanted.is_unique:
        raise ValueError(f"{argument}: expected each once, but these repeat: {examples(wanted[wanted.duplicated()])}.")
    return _some(rows, f"{argument}: expected at least one of the {what}, but got none.")


def _some(rows: np.ndarray, message: str) -> np.ndarray:
    if not len(rows):
        raise ValueError(message)
    return rows


def _matching(signatures: pd.DataFrame, obs: Mapping) -> np.ndarray:
    keep = np.ones(len(signatures), dtype=bool)
    for column, allowed in obs.items():
        if column not in signatures:
            raise KeyError(
                f"obs: there is no column {column!r} of signatures. Columns: {examples(signatures.columns, 30)}."
            )
        values = signatures[column]
        allowed = [allowed] if isinstance(allowed, str) or np.isscalar(allowed) else list(allowed)
        sought = allowed
        if pd.api.types.is_float_dtype(values) and all(isinstance(value, (int, float, np.number)) for value in allowed):
            sought = np.asarray(allowed, dtype=values.dtype).tolist()  # 0.1 is another number in single precision
        known = set(values.dropna().unique())
        unknown = [value for value, number in zip(allowed, sought, strict=True) if number not in known]
        if not allowed:
            raise ValueError(f"obs: expected values of {column!r}, but got none. Known: {examples(sorted(known))}.")
        if unknown:
            raise ValueError(
                f"obs: {column!r} has no value {examples(unknown)}. Known values: {examples(sorted(known))}."
            )
        keep &= values.isin(sought).to_numpy()
    return _some(
        np.flatnonzero(keep),
        f"obs: every value is known, but no signature fits all of {', '.join(map(repr, obs))} at once. Ask for fewer.",
    )


def _add_standard_names(signatures: pd.DataFrame) -> pd.DataFrame:
    signatures = signatures.copy()
    for standard, names in _STANDARD.items():
        source = next((name for name in names if name in signatures), None)
        if standard not in signatures and source is not None:
            signatures[standard] = signatures[source]
    return signatures


def _drop_unused(table: pd.DataFrame) -> pd.DataFrame:
    used = {name: table[name].cat.remove_unused_categories() for name in table.columns[table.dtypes == "category"]}
    return table.assign(**used)


def _choose_genes(
    table: pd.DataFrame, genes, var_key: str | None, make_unique: bool
) -> tuple[pd.DataFrame, np.ndarray]:
    """Genes that are asked for, named, and where they are in the file."""
    if var_key is None:
        var_key = next((name for name in _SYMBOLS if name in table), "id")
    if var_key != "id" and var_key not in table:
        raise KeyError(f"var_key={var_key!r} is not a column of genes. Columns: {examples(['id', *table], 30)}.")
    ids = pd.Series(table.index, index=table.index, dtype=object)
    names = ids if var_key == "id" else table[var_key].astype(object).where(table[var_key].notna(), ids)
    names = pd.Index(names.astype(str), dtype=object)
    if make_unique:
        names = pd.Index(make_index_unique(names), dtype=object)
    table = table.set_axis(names.rename(None), axis=0)
    table.insert(0, "id", ids.to_numpy())
    if genes is not None:
        wanted = pd.Index([genes] if isinstance(genes, str) else [str(name) for name in genes], dtype=object)
        repeated = names[names.duplicated()].intersection(wanted)
    else:
        wanted, repeated = None, names[names.duplicated()].unique()
    if len(repeated):
        raise ValueError(
            f"var_key: names of genes in {var_key!r} must be unique, but these repeat: {examples(repeated)}. "
            "Set make_unique=True or var_key='id'."
        )
    if wanted is None:
        return table, np.arange(len(table))
    first = ~names.duplicated()
    columns = np.flatnonzero(first)[_positions(wanted, names[first], "genes", f"genes (named by {var_key!r})")]
    return table.iloc[columns], columns


def _read_matrix(data: h5py.Dataset, rows: np.ndarray, columns: np.ndarray, transposed: bool) -> np.ndarray:
    values = np.empty((len(rows), len(columns)), dtype=np.float32)
    out, outer, inner = (values.T, columns, rows) if transposed else (values, rows, columns)
    order = np.argsort(outer, kind="stable")
    outer = outer[order]
    left, right = inner.min(), inner.max() + 1
    n_block = max(1, _BLOCK_BYTES // ((right - left) * data.dtype.itemsize))
    start = 0
    while start < len(outer):
        stop = np.searchsorted(outer, outer[start] + n_block)
        gaps = np.flatnonzero(np.diff(outer[start:stop]) > _GAP)
        stop = start + gaps[0] + 1 if len(gaps) else stop
        first = outer[start]
        block = data[first : outer[stop - 1] + 1, left:right]
        out[order[start:stop]] = block[np.ix_(outer[start:stop] - first, inner - left)]
        start = stop
    values[values == MISSING] = np.nan
    return values
