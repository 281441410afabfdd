"""Read orthologue tables as Ensembl BioMart, HCOP and homologene export them."""

from __future__ import annotations

import csv
import gzip
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Iterable
    from os import PathLike

GeneId = Literal["symbol", "ensembl", "entrez"]

# "nan" is a gene of the fruit fly, so the words for "missing" are compared with their case
MISSING = ("", "-", "NA", "NaN", "<NA>")
ENSEMBL_GENE = r"ENS[A-Z]*G\d+(?:\.\d+)?"

_FORMATS = (
    "Ensembl BioMart ('Gene name', 'Human gene name', ...), "
    "HCOP or wide homologene ('human_symbol', 'mouse_symbol', ...), "
    "homologene.data (group, taxid, gene id, symbol, ...; no header), "
    "or two columns with a header (such as 'context', 'target') and optionally 'score'"
)
# one species, many spellings: everything is compared as a taxid where the name is known
_TAXIDS = {
    "9606": ("human", "homo sapiens"),
    "10090": ("mouse", "mus musculus"),
    "10116": ("rat", "rattus norvegicus", "norway rat"),
    "9598": ("chimpanzee", "chimp", "pan troglodytes"),
    "9544": ("macaque", "rhesus macaque", "rhesus monkey", "macaca mulatta"),
    "9615": ("dog", "canis lupus familiaris"),
    "9913": ("cow", "cattle", "bos taurus"),
    "9823": ("pig", "sus scrofa"),
    "9031": ("chicken", "gallus gallus"),
    "8364": ("xenopus", "frog", "tropical clawed frog", "xenopus tropicalis"),
    "7955": ("zebrafish", "danio rerio"),
    "7227": ("fruitfly", "fruit fly", "fly", "drosophila melanogaster"),
    "6239": ("worm", "c. elegans", "caenorhabditis elegans"),
    "4932": ("yeast", "saccharomyces cerevisiae"),
}
_ALIASES = {name: taxid for taxid, names in _TAXIDS.items() for name in names}
# BioMart does not name the species that was queried; its stable ids do
_ENSEMBL_SPECIES = {"ENSG": "human", "ENSMUSG": "mouse", "ENSRNOG": "rat", "ENSDARG": "zebrafish"}
_UNNAMED = "<query species>"

_BIOMART_QUERY = {
    "gene name": "symbol",
    "gene stable id": "ensembl",
    "gene stable id version": "ensembl",
    "ncbi gene (formerly entrezgene) id": "entrez",
}
_BIOMART_HOMOLOG = re.compile(r"(?P<species>.+) gene (?P<kind>name|stable ID)", re.IGNORECASE)
_WIDE = re.compile(r"(?P<species>.+?)_(?P<kind>symbol|entrez|ensembl)(?:_gene)?(?:_id)?", re.IGNORECASE)


def read_orthologs(
    path: str | PathLike[str],
    *,
    context_species: str | int | None = None,
    target_species: str | int | None = None,
    gene_id: GeneId | tuple[GeneId, GeneId] = "symbol",
) -> pd.DataFrame:
    r"""Read an orthologue table.

    The format is recognised by its columns, the separator (tab or comma) by the first line, and gzip by its content.

    Parameters
    ----------
    path
        File of one of these formats:

        - Ensembl BioMart: columns such as ``Gene name``, ``Human gene name``, ``Gene stable ID``,
          ``Human gene stable ID``.
        - HCOP: ``human_symbol``, ``mouse_symbol``, ``human_ensembl_gene``, ..., ``support``; also its file of all
          species, which has a column ``ortholog_species``.
        - homologene, one row per pair: ``hid``, ``human_symbol``, ``human_entrez``, ``mouse_symbol``, ...
        - homologene.data of the NCBI: group, taxid, gene id, symbol, ..., with no header.
        - Two columns under a header line, optionally with a third named ``score``. The names of the columns stand for
          the species.
    context_species, target_species
        Which species becomes which column: a common or scientific name, or a taxid; case does not matter. One of them
        is enough when the file has two species; with neither, a file of two species keeps its order. BioMart does not
        name the species that was queried: where its stable ids do not tell it either, a name that no other column
        carries stands for it.
    gene_id
        Which identifier to take: of both species, or of the context's and the target's. Two plain columns are taken as they
        are.

    Returns
    -------
    One row per distinct pair, in the order of the file, with the columns ``context`` and ``target`` (strings) and,
    where the file has evidence, ``score`` (float, higher is better, the highest of repeated rows):

    - BioMart: percent identity (mean of the two directions, where both are there), plus 100 for high confidence.
    - HCOP: number of sources that support the pair.
    - Two columns and ``score``: as given.

    Raises
    ------
    ValueError
        If the format is not recognised, if a species or the identifier is not in the file, or if the file has more
        than two species and no choice was made.

    Examples
    --------
    A file as HCOP has it:

    >>> import pandas as pd
    >>> import transverse as tv
    >>> hcop = pd.DataFrame(
    ...     {"human_symbol": ["CD3E", "LYZ"], "mouse_symbol": ["Cd3e", "Lyz2"], "support": ["Ensembl,HGNC", "Ensembl"]}
    ... )
    >>> hcop.to_csv("human_mouse_hcop.txt.gz", sep="\t", index=False)
    >>> table = tv.pp.read_orthologs("human_mouse_hcop.txt.gz", context_species="mouse", target_species="human")
    >>> table.to_numpy().tolist()
    [['Cd3e', 'CD3E', 2.0], ['Lyz2', 'LYZ', 1.0]]
    """
    gene_ids = (gene_id, gene_id) if isinstance(gene_id, str) else tuple(gene_id)
    if len(gene_ids) != 2 or not set(gene_ids) <= set(get_args(GeneId)):
        raise ValueError(
            f"gene_id must be one of {', '.join(get_args(GeneId))}, or a pair of them, but got {gene_id!r}."
        )
    table = _recognise(*_read_strings(path), path)
    context, target = _choose_species(table, context_species, target_species, path)
    return _pairs(table, context, target, gene_ids, path)


@dataclass
class _Table:
    """The rows of a file, and where each species' identifiers are: species -> kind of identifier -> column."""

    rows: pd.DataFrame
    columns: dict[str, dict[str, str]]
    layout: Literal["plain", "biomart", "wide", "hcop_all", "long"]
    query: str | None = field(default=None)


def examples(values: Iterable[object], n: int = 5) -> str:
    """Name the first `n` values, and how many there are in all if there are more."""
    values = list(values)
    more = f", ... ({len(values):,} in all)" if len(values) > n else ""
    return (", ".join(str(value) for value in values[:n]) or "none") + more


def identifiers(values: pd.Series) -> pd.Series:
    """Turn identifiers into strings, and what stands for a missing one into None."""
    if pd.api.types.is_float_dtype(values) and (values.dropna() % 1 == 0).all():
        values = values.astype("Int64")  # whole numbers beside missing values: 34, not "34.0"
    text = pd.Series([str(value).strip() for value in values], index=values.index, dtype=object)
    text[values.isna().to_numpy() | text.isin(MISSING).to_numpy()] = None
    return text


def _read_strings(path: str | PathLike[str]) -> tuple[pd.DataFrame, bool]:
    """All cells as strings, and whether this is homologene.data."""
    with open(path, "rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
    with (gzip.open if is_gzip else open)(path, "rt", encoding="utf-8-sig", newline="") as file:
        first = file.readline().rstrip("\r\n")
        sep = "\t" if "\t" in first else ","
        cells = next(csv.reader([first], delimiter=sep), [])
        if not any(cells):
            raise ValueError(f"{path} is empty: expected an orthologue table. Known formats: {_FORMATS}.")
        file.seek(0)
        is_long = len(cells) >= 4 and all(cell.isdigit() for cell in cells[:3])
        # nobody names two columns like this, so the first pair is not lost as a header
        is_bare = len(cells) == 2 and all(re.fullmatch(ENSEMBL_GENE, cell) for cell in cells)
        header = None if is_long or is_bare else 0
        table = pd.read_csv(file, sep=sep, dtype=str, keep_default_na=False, header=header).reset_index(drop=True)
    if is_long:
        return table.iloc[:, :4].set_axis(["hid", "taxid", "entrez", "symbol"], axis=1), True
    if is_bare:
        return table.set_axis(["context", "target"], axis=1), False
    table.columns = [str(column).strip() for column in table.columns]
    if table.columns[0].startswith("Unnamed:"):  # an index that was written along
        table = table.iloc[:, 1:]
    return table, False


def _recognise(rows: pd.DataFrame, is_long: bool, path: object) -> _Table:
    names = list(rows.columns)
    if is_long:
        columns = {taxid: {"symbol": "symbol", "entrez": "entrez"} for taxid in rows["taxid"].unique()}
        return _Table(rows, columns, "long")
    if {"context", "target"} <= set(names):
        return _plain(rows, ["context", "target"])

    columns = {}
    if any(name.lower() in _BIOMART_QUERY or _BIOMART_HOMOLOG.fullmatch(name) for name in names):
        query = _query_species(rows)
        for name in names:
            if name.lower() in _BIOMART_QUERY:
                columns.setdefault(query, {}).setdefault(_BIOMART_QUERY[name.lower()], name)
            elif match := _BIOMART_HOMOLOG.fullmatch(name):
                kind = "symbol" if match["kind"].lower() == "name" else "ensembl"
                columns.setdefault(match["species"], {})[kind] = name
        table = _Table(rows, columns, "biomart", query)
    elif matches := [match for name in names if (match := _WIDE.fullmatch(name))]:
        for match in matches:
            columns.setdefault(match["species"], {}).setdefault(match["kind"].lower(), match.string)
        layout = "wide"
        if "ortholog_species" in names and "ortholog_species" in columns:
            layout, kinds = "hcop_all", columns.pop("ortholog_species")
            columns |= dict.fromkeys(rows["ortholog_species"].unique(), kinds)
        table = _Table(rows, columns, layout)
    elif len(pair := [name for name in names if name != "score"]) == 2:
        return _plain(rows, pair)
    else:
        raise ValueError(
            f"{path} is not an orthologue table of a known format. Columns found: {examples(names)}. "
            f"Known formats: {_FORMATS}."
        )
    if len(columns) < 2:
        raise ValueError(
            f"{path} has genes of one species only ({examples(map(_label, columns))}; columns found: "
            f"{examples(names)}); expected those of two. Export the orthologues' columns too. Known formats: "
            f"{_FORMATS}."
        )
    return table


def _plain(rows: pd.DataFrame, pair: list[str]) -> _Table:
    return _Table(rows, {name: dict.fromkeys(get_args(GeneId), name) for name in pair}, "plain")


def _query_species(rows: pd.DataFrame) -> str:
    for name in rows.columns:
        if name.lower().startswith("gene stable id") and len(rows):
            prefix = re.match(r"ENS[A-Z]*G(?=\d)", rows[name].iloc[0])
            return _ENSEMBL_SPECIES.get(prefix[0], _UNNAMED) if prefix else _UNNAMED
    return _UNNAMED


def _canonical(species: str | int) -> str:
    name = str(species).strip().lower().replace("_", " ")
    return _ALIASES.get(name, name)


def _label(species: str) -> str:
    return f"{_TAXIDS[species][0]} ({species})" if species in _TAXIDS else species


def _choose_species(
    table: _Table, context: str | int | None, target: str | int | None, path: object
) -> tuple[str, str]:
    known = {_canonical(species): species for species in table.columns}
    listed = examples(map(_label, table.columns), n=20)

    def find(argument: str, species: str | int | None) -> str | None:
        if species is None:
            return None
        found = known.get(_canonical(species), _UNNAMED)
        if found not in table.columns:
            raise ValueError(f"{argument}={species!r} is not in {path}. Species found: {listed}.")
        return found

    chosen = [find("context_species", context), find("target_species", target)]
    if chosen[0] is not None and chosen[0] == chosen[1]:
        raise ValueError(
            f"context_species={context!r} and target_species={target!r} both stand for {_label(chosen[0])} in {path}; "
            f"expected two of its species: {listed}."
        )
    rest = [species for species in table.columns if species not in chosen]
    n_open = chosen.count(None)
    if n_open and len(rest) != n_open:
        raise ValueError(
            f"{path} has {len(table.columns)} species ({listed}): say which pair to read with context_species= and "
            "target_species=."
        )
    first, second = (species if species is not None else rest.pop(0) for species in chosen)
    return first, second


def _pairs(table: _Table, context: str, target: str, gene_ids: tuple[str, str], path: object) -> pd.DataFrame:
    for species, gene_id in zip((context, target), gene_ids, strict=True):
        if gene_id not in table.columns[species]:
            raise ValueError(
                f"{path} has no gene_id={gene_id!r} for {_label(species)}; it has: "
                f"{examples(table.columns[species])}. Choose another gene_id= or export that column too."
            )
    rows = table.rows
    columns = [table.columns[context][gene_ids[0]], table.columns[target][gene_ids[1]]]
    if table.layout == "long":
        sides = [
            rows.loc[rows["taxid"] == species, ["hid", column]].rename(columns={column: side})
            for side, species, column in zip(("context", "target"), (context, target), columns, strict=True)
        ]
        rows, columns = sides[0].merge(sides[1], on="hid"), ["context", "target"]
    elif table.layout == "hcop_all":
        taxids = set(rows["ortholog_species"])
        others = [species for species in (context, target) if species in taxids]
        if len(others) != 1:
            reference = next(species for species in table.columns if species not in taxids)
            raise ValueError(
                f"{path} pairs {reference} with other species: one of the two species must be {reference}."
            )
        rows = rows[rows["ortholog_species"] == others[0]]

    pairs = pd.DataFrame({"context": identifiers(rows[columns[0]]), "target": identifiers(rows[columns[1]])})
    score = _score(table, rows, (context, target))
    if score is not None:
        pairs["score"] = score
    pairs = pairs.dropna(subset=["context", "target"])
    if score is None:
        pairs = pairs.drop_duplicates()
    else:
        pairs = pairs.groupby(["context", "target"], sort=False, as_index=False)["score"].max()
    if pairs.empty:
        raise ValueError(f"{path} has no row with a gene of both {_label(context)} and {_label(target)}.")
    # from lists: the constructor infers the string dtype of the installed pandas
    return pd.DataFrame({name: pairs[name].to_list() for name in pairs.columns})


def _score(table: _Table, rows: pd.DataFrame, pair: tuple[str, str]) -> pd.Series | None:
    if table.layout == "biomart":
        scores = [_biomart_score(rows, species) for species in pair if species != table.query]
        scores = [score for score in scores if score is not None]
        return pd.concat(scores, axis=1).mean(axis=1) if scores else None
    if table.layout in ("wide", "hcop_all") and "support" in rows:
        # an empty cell names no source
        return (rows["support"].str.count(",") + rows["support"].str.strip().ne("")).astype(float)
    if table.layout == "plain" and "score" in rows:
        return pd.to_numeric(rows["score"].mask(rows["score"].isin(MISSING))).astype(float)
    return None


def _biomart_score(rows: pd.DataFrame, species: str) -> pd.Series | None:
    names = (
        f"%id. target {species} gene identical to query gene",
        f"%id. query gene identical to target {species} gene",
    )
    confidence = [name for name in rows if name.startswith(f"{species} orthology confidence")]
    numbers = {name: pd.to_numeric(rows[name], errors="coerce") for name in (*names, *confidence) if name in rows}
    if not numbers:
        return None
    identity = [numbers[name] for name in names if name in numbers]
    score = pd.concat(identity, axis=1).mean(axis=1) if identity else pd.Series(0.0, index=rows.index)
    return score + 100 * numbers[confidence[0]].fillna(0) if confidence else score
