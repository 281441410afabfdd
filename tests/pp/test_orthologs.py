"""Reading orthologue tables, and matching genes by them."""

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy.sparse import csr_matrix, issparse

from transverse.pp import OrthologMatch, match_orthologs, read_orthologs

BIOMART = """\
Gene stable ID,Gene name,Human gene stable ID,Human gene name,Human homology type,\
%id. target Human gene identical to query gene,%id. query gene identical to target Human gene,\
"Human orthology confidence [0 low, 1 high]"
ENSMUSG00000032093,Cd3e,ENSG00000198851,CD3E,ortholog_one2one,60,70,1
ENSMUSG00000069516,Lyz2,ENSG00000090382,LYZ,ortholog_one2many,80,80,0
ENSMUSG00000069515,Lyz1,ENSG00000090382,LYZ,ortholog_one2many,76,76,0
ENSMUSG00000069515,Lyz1,ENSG00000090382,LYZ,ortholog_one2many,70,70,0
ENSMUSG00000000001,Gm1,,,,,,
ENSMUSG00000000002,,ENSG00000000002,NEW,ortholog_one2one,90,90,1
"""
HCOP = """\
human_entrez_gene\thuman_ensembl_gene\thgnc_id\thuman_symbol\tmouse_entrez_gene\tmouse_ensembl_gene\tmouse_symbol\tsupport
916\tENSG00000198851\tHGNC:1674\tCD3E\t12501\tENSMUSG00000032093\tCd3e\tEnsembl,OMA,OrthoDB
4069\tENSG00000090382\tHGNC:6740\tLYZ\t17105\tENSMUSG00000069516\tLyz2\tEnsembl,OMA
4069\tENSG00000090382\tHGNC:6740\tLYZ\t17110\tENSMUSG00000069515\tLyz1\tEnsembl
1\t-\t-\tA1BG\t-\t-\t-\tOMA
"""
HCOP_ALL = """\
ortholog_species\thuman_entrez_gene\thuman_symbol\tortholog_species_entrez_gene\tortholog_species_symbol\tsupport
10090\t916\tCD3E\t12501\tCd3e\tEnsembl,OMA
10116\t916\tCD3E\t315609\tCd3e\tOMA
10090\t4069\tLYZ\t17105\tLyz2\tOMA
"""
HOMOLOGENE_WIDE = """\
hid,human_symbol,human_entrez,mouse_symbol,mouse_entrez
3,ACADM,34,Acadm,11364
5,ACADVL,37,Acadvl,11370
5,ACADVL,37,Acadvl,11370
6,ACAT1,38,,
"""
HOMOLOGENE_DATA = """\
3\t9606\t34\tACADM\t4557231\tNP_000007.1
3\t9598\t469356\tACADM\t160961497\tNP_001104286.1
3\t10090\t11364\tAcadm\t6680618\tNP_031408.1
5\t9606\t37\tACADVL\t4557235\tNP_000009.1
5\t10090\t11370\tAcadvl\t23956084\tNP_059062.1
7\t9606\t90\tACVR1\t10862690\tNP_001104537.1
"""

# a1-b1 alone; a2 and a3 share b2, a3 also has b3; a4 has b4 and b5; a5's b9 and x's b1 are not measured
CONTEXT = ["a5", "a3", "a1", "a2", "a4"]
TARGET = ["b1", "b2", "b3", "b4", "b5", "b6"]
TABLE = pd.DataFrame(
    [
        ("a1", "b1", 1.0),
        ("a2", "b2", 5.0),
        ("a3", "b2", 9.0),
        ("a3", "b3", 2.0),
        ("a4", "b4", 3.0),
        ("a4", "b5", 4.0),
        ("a5", "b9", 9.0),
        ("x", "b1", 9.0),
    ],
    columns=["context", "target", "score"],
)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def pairs_of(table: pd.DataFrame) -> list[tuple[str, str]]:
    return list(zip(table["context"], table["target"], strict=True))


def groups_of(match: OrthologMatch) -> list[tuple[set[str], set[str]]]:
    return [(set(rows["context"]), set(rows["target"])) for _, rows in match.pairs.groupby("group")]


def make_adata(genes: list[str], n_obs: int = 4, **var: list) -> AnnData:
    counts = np.random.default_rng(0).poisson(3.0, (n_obs, len(genes))).astype(np.float32)
    return AnnData(csr_matrix(counts), var=pd.DataFrame(var, index=genes))


# reading


def test_biomart_symbols_and_score(tmp_path):
    table = read_orthologs(write(tmp_path / "mart.csv", BIOMART), context_species="mouse", target_species="Human")
    assert list(table.columns) == ["context", "target", "score"]
    assert pairs_of(table) == [("Cd3e", "CD3E"), ("Lyz2", "LYZ"), ("Lyz1", "LYZ")]
    # mean identity, 100 more for high confidence, the best of the repeated row
    assert table["score"].tolist() == [165.0, 80.0, 76.0]


def test_biomart_tab_separated_ensembl_reversed(tmp_path):
    text = BIOMART.replace('"Human orthology confidence [0 low, 1 high]"', "Human orthology confidence").replace(
        ",", "\t"
    )
    table = read_orthologs(write(tmp_path / "mart.txt", text), context_species="HUMAN", gene_id="ensembl")
    assert pairs_of(table)[0] == ("ENSG00000198851", "ENSMUSG00000032093")
    assert ("ENSG00000000002", "ENSMUSG00000000002") in pairs_of(table)


def test_biomart_query_species_is_known_by_its_ids(tmp_path):
    path = write(tmp_path / "mart.csv", BIOMART)
    with pytest.raises(ValueError, match=r"context_species='rat' is not in .*Species found: mouse, Human\."):
        read_orthologs(path, context_species="rat")
    unknown = write(tmp_path / "fish.csv", BIOMART.replace("ENSMUSG", "ENSORLG"))
    assert pairs_of(read_orthologs(unknown, context_species="medaka"))[0] == ("Cd3e", "CD3E")
    with pytest.raises(ValueError, match="'rat' and target_species='medaka' both stand for"):
        read_orthologs(unknown, context_species="rat", target_species="medaka")


def test_biomart_of_several_species_needs_a_choice(tmp_path):
    text = "Gene stable ID,Gene name,Human gene name,Rat gene name\nENSMUSG01,Cd3e,CD3E,Cd3e_r\n"
    path = write(tmp_path / "mart.csv", text)
    with pytest.raises(ValueError, match="has 3 species .mouse, Human, Rat.: say which pair"):
        read_orthologs(path, context_species="mouse")
    assert pairs_of(read_orthologs(path, context_species="Rat", target_species="human")) == [("Cd3e_r", "CD3E")]


def test_biomart_without_orthologues_is_refused(tmp_path):
    path = write(tmp_path / "mart.csv", "Gene stable ID,Gene name\nENSMUSG01,Cd3e\n")
    with pytest.raises(ValueError, match="genes of one species only"):
        read_orthologs(path)


@pytest.mark.parametrize(
    ("gene_id", "expected"),
    [
        ("symbol", ("CD3E", "Cd3e")),
        ("ensembl", ("ENSG00000198851", "ENSMUSG00000032093")),
        ("entrez", ("916", "12501")),
        (("ensembl", "symbol"), ("ENSG00000198851", "Cd3e")),
        (["symbol", "entrez"], ("CD3E", "12501")),
    ],
)
def test_hcop_identifiers(tmp_path, gene_id, expected):
    table = read_orthologs(write(tmp_path / "hcop.txt", HCOP), gene_id=gene_id)
    assert pairs_of(table)[0] == expected
    assert len(table) == 3  # the row of "-" names no mouse gene
    assert table["score"].tolist() == [3.0, 2.0, 1.0]  # the number of sources


def test_hcop_species_order(tmp_path):
    path = write(tmp_path / "hcop.txt", HCOP)
    forward, back = read_orthologs(path), read_orthologs(path, context_species="Mus musculus", target_species="human")
    assert pairs_of(back) == [(target, context) for context, target in pairs_of(forward)]


def test_hcop_of_all_species(tmp_path):
    path = write(tmp_path / "hcop_all.txt", HCOP_ALL)
    table = read_orthologs(path, context_species="mouse", target_species="human")
    assert pairs_of(table) == [("Cd3e", "CD3E"), ("Lyz2", "LYZ")]
    assert table["score"].tolist() == [2.0, 1.0]
    assert pairs_of(read_orthologs(path, context_species=10116, target_species=9606)) == [("Cd3e", "CD3E")]
    with pytest.raises(ValueError, match="one of the two species must be human"):
        read_orthologs(path, context_species="mouse", target_species="rat")


def test_homologene_wide(tmp_path):
    path = write(tmp_path / "wide.csv", HOMOLOGENE_WIDE)
    table = read_orthologs(path, target_species="Human")
    assert pairs_of(table) == [("Acadm", "ACADM"), ("Acadvl", "ACADVL")]
    assert list(table.columns) == ["context", "target"]
    assert pairs_of(read_orthologs(path, gene_id="entrez"))[0] == ("34", "11364")


def test_homologene_long(tmp_path):
    path = write(tmp_path / "homologene.data", HOMOLOGENE_DATA)
    by_name = read_orthologs(path, context_species="Mouse", target_species="human")
    assert pairs_of(by_name) == [("Acadm", "ACADM"), ("Acadvl", "ACADVL")]
    pd.testing.assert_frame_equal(by_name, read_orthologs(path, context_species=10090, target_species="9606"))
    entrez = read_orthologs(path, context_species="human", target_species="mouse", gene_id="entrez")
    assert pairs_of(entrez) == [("34", "11364"), ("37", "11370")]
    mixed = read_orthologs(path, context_species="human", target_species="mouse", gene_id=("symbol", "entrez"))
    assert pairs_of(mixed) == [("ACADM", "11364"), ("ACADVL", "11370")]
    with pytest.raises(ValueError, match=r"has 3 species \(human \(9606\), chimpanzee \(9598\), mouse \(10090\)\)"):
        read_orthologs(path)


def test_two_plain_columns(tmp_path):
    text = "mouse\thuman\nnan\tNAN1\nCd3e\tCD3E\nGm1\t-\nGm2\tNaN\nGm3\t\nCd3e\tCD3E\n"
    path = write(tmp_path / "plain.tsv", text)
    # "nan" is a symbol, "NaN" is not
    assert pairs_of(read_orthologs(path)) == [("nan", "NAN1"), ("Cd3e", "CD3E")]
    assert pairs_of(read_orthologs(path, context_species="Human"))[1] == ("CD3E", "Cd3e")


def test_two_plain_columns_of_ensembl_ids_without_header(tmp_path):
    path = write(tmp_path / "bare.csv", "ENSMUSG01,ENSG01\nENSMUSG02,ENSG02\n")
    assert pairs_of(read_orthologs(path)) == [("ENSMUSG01", "ENSG01"), ("ENSMUSG02", "ENSG02")]


@pytest.mark.parametrize("name", ["hcop.txt.gz", "hcop_without_suffix"])
def test_gzip(tmp_path, name):
    (tmp_path / name).write_bytes(gzip.compress(HCOP.encode()))
    plain = read_orthologs(write(tmp_path / "hcop.txt", HCOP))
    pd.testing.assert_frame_equal(read_orthologs(tmp_path / name), plain)


def test_byte_order_mark(tmp_path):
    (tmp_path / "plain.csv").write_text("human,mouse\nCD3E,Cd3e\n", encoding="utf-8-sig")
    assert pairs_of(read_orthologs(tmp_path / "plain.csv", target_species="human")) == [("Cd3e", "CD3E")]


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("columns", [["context", "target"], ["context", "target", "score"]])
@pytest.mark.parametrize("sep", [",", "\t"])
def test_round_trip(tmp_path, index, columns, sep):
    table = TABLE[columns]
    table.to_csv(tmp_path / "table.csv", index=index, sep=sep)
    pd.testing.assert_frame_equal(read_orthologs(tmp_path / "table.csv"), table)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gene,chromosome,start\na,1,2\n", "Columns found: gene, chromosome, start. Known formats: Ensembl BioMart"),
        ("", "is empty"),
        ("human,mouse\n,Cd3e\n", "has no row with a gene of both human and mouse"),
    ],
)
def test_unreadable_files(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_orthologs(write(tmp_path / "bad.csv", text))


def test_read_argument_errors(tmp_path):
    path = write(tmp_path / "wide.csv", HOMOLOGENE_WIDE)
    with pytest.raises(ValueError, match=r"target_species='rat' is not in .*Species found: human, mouse\."):
        read_orthologs(path, context_species="human", target_species="rat")
    with pytest.raises(ValueError, match="both stand for human"):
        read_orthologs(path, context_species="human", target_species="homo_sapiens")
    with pytest.raises(ValueError, match="no gene_id='ensembl' for human; it has: symbol, entrez"):
        read_orthologs(path, gene_id="ensembl")
    with pytest.raises(
        ValueError, match="gene_id must be one of symbol, ensembl, entrez, or a pair of them, but got 'refseq'"
    ):
        read_orthologs(path, gene_id="refseq")
    with pytest.raises(ValueError, match=r"or a pair of them, but got \('symbol',\)"):
        read_orthologs(path, gene_id=("symbol",))
    with pytest.raises(ValueError, match="no gene_id='ensembl' for human"):
        read_orthologs(path, gene_id=("ensembl", "entrez"))


# policies


def test_one2one_counts_measured_genes_only():
    match = match_orthologs(CONTEXT, TARGET, TABLE)
    # x-b1 does not make b1 ambiguous: x is not measured
    assert pairs_of(match.pairs) == [("a1", "b1")]
    assert (match.n_table_pairs, match.n_measured_pairs, match.n_dropped_pairs, match.n_groups) == (8, 6, 5, 1)
    row = match.pairs.iloc[0]
    assert (row["context_index"], row["target_index"], row["group"]) == (2, 0, 0)
    assert {str(match.pairs[name].dtype) for name in ("context_index", "target_index", "group")} == {"int64"}


def test_best_follows_the_score():
    match = match_orthologs(CONTEXT, TARGET, TABLE, policy="best")
    # a3-b2 (9) goes first, which leaves a2 nothing; a4-b5 (4) beats a4-b4 (3)
    assert pairs_of(match.pairs) == [("a3", "b2"), ("a1", "b1"), ("a4", "b5")]
    assert match.pairs["group"].tolist() == [0, 1, 2]
    assert match.n_dropped_pairs == 3


def test_best_without_score_prefers_equal_symbols_then_table_order():
    table = {"Lyz1": ["LYZ"], "Lyz": ["LYZ"], "Saa1": ["SAA4", "SAA2"]}
    match = match_orthologs(["Lyz1", "Lyz", "Saa1"], ["SAA2", "SAA4", "LYZ"], table, policy="best")
    assert pairs_of(match.pairs) == [("Lyz", "LYZ"), ("Saa1", "SAA4")]


def test_best_puts_missing_scores_last():
    table = pd.DataFrame({"context": ["A", "a2"], "target": ["A", "A"], "score": [None, -1.0]})
    assert pairs_of(match_orthologs(["A", "a2"], ["A"], table, policy="best").pairs) == [("a2", "A")]


def test_sum_groups_are_connected_components():
    match = match_orthologs(CONTEXT, TARGET, TABLE, policy="sum")
    assert groups_of(match) == [({"a2", "a3"}, {"b2", "b3"}), ({"a1"}, {"b1"}), ({"a4"}, {"b4", "b5"})]
    assert pairs_of(match.pairs)[:3] == [("a3", "b2"), ("a3", "b3"), ("a2", "b2")]  # by position in the context
    assert match.n_dropped_pairs == 0


@pytest.mark.parametrize("policy", ["one2one", "best", "sum"])
def test_matrices_give_summed_counts(policy):
    context, target = make_adata(CONTEXT), make_adata(TARGET)
    match = match_orthologs(context, target, TABLE, policy=policy)
    for data, matrix, side in ((context, match.context_matrix(), 0), (target, match.target_matrix(), 1)):
        assert issparse(matrix) and matrix.format == "csr" and matrix.dtype == np.float32
        expected = [data.to_df()[sorted(group[side])].sum(axis=1) for group in groups_of(match)]
        np.testing.assert_allclose((data.X @ matrix).toarray(), np.column_stack(expected))


def test_repeated_table_rows_count_once():
    match = match_orthologs(CONTEXT, TARGET, pd.concat([TABLE, TABLE]))
    assert pairs_of(match.pairs) == [("a1", "b1")]
    assert match.n_table_pairs == len(TABLE)
    versions = match_orthologs(["ENSG01"], ["t"], {"ENSG01.1": "t", "ENSG01.2": "t"})
    assert (versions.n_groups, versions.n_table_pairs, versions.n_measured_pairs) == (1, 2, 1)


def test_order_of_a_set_of_targets_is_fixed():
    targets = {f"T{i:02d}" for i in range(20)}
    assert pairs_of(match_orthologs(["a"], sorted(targets), {"a": targets}, policy="best").pairs) == [("a", "T00")]


def test_sum_agrees_with_a_search_by_hand():
    rng = np.random.default_rng(1)
    edges = {(f"a{rng.integers(40)}", f"b{rng.integers(40)}") for _ in range(35)}
    expected: list[tuple[set, set]] = []
    for a, b in edges:
        touching = [group for group in expected if a in group[0] or b in group[1]]
        expected = [group for group in expected if group not in touching]
        expected.append(({a}.union(*(g[0] for g in touching)), {b}.union(*(g[1] for g in touching))))
    names = [f"a{i}" for i in range(40)], [f"b{i}" for i in range(40)]
    found = groups_of(match_orthologs(*names, pd.DataFrame(sorted(edges)), policy="sum"))
    assert sorted(map(str, ([sorted(a), sorted(b)] for a, b in found))) == sorted(
        map(str, ([sorted(a), sorted(b)] for a, b in expected))
    )


# where the orthologues come from


def test_mapping_and_table_agree():
    mapping = {"a1": "b1", "a2": ["b2"], "a3": ("b2", "b3"), "a4": {"b4", "b5"}, "a5": [], "a6": None}
    by_mapping = match_orthologs(CONTEXT, TARGET, mapping, policy="sum")
    assert groups_of(by_mapping) == groups_of(match_orthologs(CONTEXT, TARGET, TABLE, policy="sum"))
    assert by_mapping.source == "table"


def test_first_two_columns_of_another_table():
    table = pd.DataFrame({"mouse": [34, 37], "human": [1.0, np.nan], "note": ["x", "y"]})
    # numbers stand for the strings that gene names are
    assert pairs_of(match_orthologs(["34", "37"], ["1", "2"], table).pairs) == [("34", "1")]


def test_categorical_table():
    assert pairs_of(match_orthologs(CONTEXT, TARGET, TABLE.astype({"context": "category"})).pairs) == [("a1", "b1")]


@pytest.mark.parametrize("kind", [list, tuple, np.array, pd.Index, pd.Series, pd.array, make_adata])
def test_kinds_of_gene_names(kind):
    match = match_orthologs(kind(CONTEXT), kind(TARGET), TABLE, policy="best")
    assert pairs_of(match.pairs) == [("a3", "b2"), ("a1", "b1"), ("a4", "b5")]
    assert match.context_genes.tolist() == CONTEXT


def test_var_column_of_the_target_names_context_genes():
    target = make_adata(["T1", "T2", "T3", "T4"], mouse=["c2", "c1", None, ""])
    match = match_orthologs(["c1", "c2"], target, "mouse")
    assert pairs_of(match.pairs) == [("c1", "T2"), ("c2", "T1")]
    assert match.source == ".var['mouse']" and match.n_table_pairs == 2


def test_var_column_of_the_context_names_target_genes():
    context = make_adata(["c1", "c2", "c3"], human=pd.Categorical(["T2", "T1", np.nan]))
    assert pairs_of(match_orthologs(context, ["T1", "T2"], "human").pairs) == [("c1", "T2"), ("c2", "T1")]


def test_var_column_of_both_is_a_group_id():
    context = make_adata(["c1", "c2", "c3", "c4"], group=[1.0, 2.0, 2.0, np.nan])
    target = make_adata(["t1", "t2", "t3"], group=["2", "1", ""])
    match = match_orthologs(context, target, "group", policy="sum")
    assert groups_of(match) == [({"c1"}, {"t2"}), ({"c2", "c3"}, {"t1"})]
    assert pairs_of(match_orthologs(context, target, "group").pairs) == [("c1", "t2")]


def test_names_exact_first_then_without_case():
    match = match_orthologs(["Cd3e", "Actb", "ACTB", "Gm1"], ["CD3E", "ACTB", "LYZ"])
    # ACTB is taken by its equal, so Actb finds nothing
    assert pairs_of(match.pairs) == [("Cd3e", "CD3E"), ("ACTB", "ACTB")]
    assert match.source == "names"
    assert match.unmatched_context.tolist() == ["Actb", "Gm1"] and match.unmatched_target.tolist() == ["LYZ"]


def test_ambiguous_case_is_left_to_the_policy():
    names = ["Actb", "actb", "Cd3e"], ["ACTB", "CD3E"]
    assert pairs_of(match_orthologs(*names).pairs) == [("Cd3e", "CD3E")]
    assert pairs_of(match_orthologs(*names, policy="best").pairs) == [("Actb", "ACTB"), ("Cd3e", "CD3E")]
    assert groups_of(match_orthologs(*names, policy="sum"))[0] == ({"Actb", "actb"}, {"ACTB"})


def test_ensembl_versions():
    table = {"ENSMUSG01.3": "ENSG01", "ENSMUSG02": "ENSG02.7", "AC1.1": "AC2"}
    match = match_orthologs(["ENSMUSG01.5", "ENSMUSG02.1", "AC1.2"], ["ENSG02", "ENSG01.2", "AC2"], table)
    # AC1.2 is a symbol with a dot, not a version of AC1.1
    assert pairs_of(match.pairs) == [("ENSMUSG01.5", "ENSG01.2"), ("ENSMUSG02.1", "ENSG02")]


def test_ensembl_version_is_kept_where_it_matches():
    match = match_orthologs(["ENSG01.1", "ENSG01.2"], ["T"], {"ENSG01.2": "T"})
    assert pairs_of(match.pairs) == [("ENSG01.2", "T")]
    assert pairs_of(match_orthologs(["ENSG01.1", "X.1"], ["ENSG01", "X"]).pairs) == [("ENSG01.1", "ENSG01")]


# report


def test_report():
    match = match_orthologs(CONTEXT, TARGET, TABLE, policy="best")
    report = match.report()
    assert "3 shared features" in report
    assert "table pairs: 8; both genes measured: 6; dropped by the policy: 3" in report
    assert "context genes matched: 3 of 5 (60.0%); unmatched: a5, a2" in report
    assert "hint" not in report and repr(match) == report
    assert match.context_share == pytest.approx(0.6) and match.target_share == pytest.approx(0.5)


def test_hint_when_few_match():
    many = [f"c{i}" for i in range(50)], [f"t{i}" for i in range(50)]
    table = pd.DataFrame({"context": [*many[1], "c0"], "target": [*many[0], "t0"]})
    match = match_orthologs(*many, table)
    assert "unmatched: c1, c2, c3, c4, c5, ... (49 in all)" in match.report()
    assert "swapped" in match.hint and match.hint in match.report()
    # a panel of which all genes match is no mistake
    assert match_orthologs(["t0", "x"], many[1][:9]).hint == ""
    assert match_orthologs(["T0"], many[1]).hint == ""


def test_match_is_frozen():
    with pytest.raises(AttributeError):
        match_orthologs(CONTEXT, TARGET, TABLE).policy = "sum"


# refusals


def test_duplicate_names():
    names = [f"g{i}" for i in range(7)] * 2
    with pytest.raises(
        ValueError, match=r"context must be unique.*g0, g1, g2, g3, g4, \.\.\. \(7 in all\).*make_unique"
    ):
        match_orthologs(names, TARGET, TABLE)
    with pytest.warns(UserWarning, match="not unique"):
        adata = make_adata(["b1", "b1"])
    with pytest.raises(ValueError, match="target must be unique.*b1"):
        match_orthologs(CONTEXT, adata, TABLE)


def test_no_shared_genes_shows_both_sides_and_the_table():
    with pytest.raises(ValueError) as error:
        match_orthologs([f"p{i}" for i in range(6)], ["q0"], TABLE)
    message = str(error.value)
    for part in (
        "p0, p1, p2, p3, p4, ...",
        "target: q0",
        "context: a1, a2, a3, a4, a5, ...",
        "target: b1, b2, b3, b4, b5",
    ):
        assert part in message
    assert "p5" not in message


def test_min_genes():
    assert match_orthologs(CONTEXT, TARGET, TABLE, policy="sum", min_genes=3).n_groups == 3
    with pytest.raises(
        ValueError, match="(?s)^1 genes are shared.*at least 2 are needed.*dropped 5 pairs: policy='best'"
    ):
        match_orthologs(CONTEXT, TARGET, TABLE, min_genes=2)


def test_hint_swapped_table():
    with pytest.raises(ValueError, match="(?s)hint: context and target seem to be swapped in the table: 6 pairs"):
        match_orthologs(TARGET, CONTEXT, TABLE)


def test_hint_kind_of_identifier():
    ensembl, symbols = ["ENSMUSG01", "ENSMUSG02"], ["CD3E", "LYZ"]
    with pytest.raises(
        ValueError, match="context's genes look like Ensembl ids, those of the table's context column like s"
    ):
        match_orthologs(ensembl, symbols, {"Cd3e": "CD3E"})
    with pytest.raises(ValueError, match="context's genes look like Ensembl ids, the target's like symbols"):
        match_orthologs(ensembl, symbols)
    with pytest.raises(ValueError, match="two species, give an orthologue table"):
        match_orthologs(ensembl, ["ENSG01", "ENSG02"])


def test_argument_errors():
    with pytest.raises(ValueError, match="policy must be one of one2one, best, sum, but got 'all'"):
        match_orthologs(CONTEXT, TARGET, TABLE, policy="all")
    with pytest.raises(ValueError, match="table is empty"):
        match_orthologs(CONTEXT, TARGET, TABLE.iloc[:0])
    with pytest.raises(ValueError, match="table is empty"):
        match_orthologs(CONTEXT, TARGET, {})
    with pytest.raises(ValueError, match="needs two columns .*it has 1: context"):
        match_orthologs(CONTEXT, TARGET, TABLE[["context"]])
    with pytest.raises(ValueError, match="'score' of the orthologue table must be numeric"):
        match_orthologs(CONTEXT, TARGET, TABLE.assign(score="high"))
    with pytest.raises(ValueError, match="context has no genes"):
        match_orthologs([], TARGET, TABLE)
    with pytest.raises(TypeError, match="orthologs must be a DataFrame.*but got int"):
        match_orthologs(CONTEXT, TARGET, 3)
    with pytest.raises(TypeError, match="names of target must be strings, but got int: 1, 2"):
        match_orthologs(CONTEXT, [1, 2], TABLE)
    with pytest.raises(TypeError, match="context must be an AnnData or a sequence of gene names, but got str"):
        match_orthologs("a1", TARGET, TABLE)


def test_missing_var_column():
    with pytest.raises(
        KeyError, match="'hom' is a .var column of neither.*context.var: mouse, id; target is a sequence"
    ):
        match_orthologs(make_adata(["c"], mouse=["t"], id=["1"]), TARGET, "hom")


def test_inputs_are_unchanged():
    context, target = make_adata(CONTEXT, group=[1.0, 2.0, np.nan, 3.0, 3.0]), make_adata(TARGET, group=list("123456"))
    table, mapping = TABLE.copy(), {"a1": ["b1"], "a2": ["b2", "b3"]}
    before = [context.to_df(), context.var.copy(), target.to_df(), target.var.copy()]
    for orthologs in (table, mapping, "group"):
        match_orthologs(context, target, orthologs, policy="sum").context_matrix()
    after = [context.to_df(), context.var, target.to_df(), target.var]
    for old, new in zip(before, after, strict=True):
        pd.testing.assert_frame_equal(old, new)
    pd.testing.assert_frame_equal(table, TABLE)
    assert mapping == {"a1": ["b1"], "a2": ["b2", "b3"]}


# real data


def test_real_homologene_table(real_data_dir):
    path = real_data_dir / "orthologs_human_mouse.csv.gz"
    table = read_orthologs(path, context_species="mouse", target_species="human")
    assert len(table) >= 16_000
    assert table.loc[table["context"] == "Cd3e", "target"].tolist() == ["CD3E"]
    assert table.loc[table["target"] == "CD3E", "context"].tolist() == ["Cd3e"]
    match = match_orthologs(table["context"].unique(), table["target"].unique(), table, min_genes=15_000)
    assert match.context_matrix().sum(axis=0).max() == 1
