"""Splits of perturbation data: what must be out of training is, what must stay does, and planted leaks are named."""

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal, assert_series_equal
from scipy import sparse

import transverse as tv
from transverse.pp._perturbations import canonical, parts

PERTURBATIONS = ("control", "A", "B", "C", "D", "A+B", "C + A")
CONTEXTS = ("X", "Y", "Z", "W")
MODES = ("perturbation", "condition", "context", "combination", "animal")


def make(perturbations=PERTURBATIONS, contexts=CONTEXTS, animals="abcdef", n=2, skip=(), fmt=sparse.csr_matrix):
    rows = [(p, c, a) for c in contexts for p in perturbations if (p, c) not in skip for a in animals for _ in range(n)]
    obs = pd.DataFrame(rows, columns=["perturbation", "cell_type", "animal"]).astype("category")
    obs.index = [f"cell{i}" for i in range(len(obs))]
    obs["barcode"] = [f"barcode{i}" for i in range(len(obs))]
    values = np.random.default_rng(0).poisson(1.5, (len(obs), 30)).astype("float32")
    return ad.AnnData(fmt(values), obs=obs, uns={"kept": [1, 2]})


@pytest.fixture
def adata():
    return make()


def split(adata, by="condition", **kwargs):
    kwargs.setdefault("animal_key", "animal" if by == "animal" else None)
    return tv.pp.split_responses(adata, by, key_added=None, **kwargs)


def frame(adata, labels):
    """One row per cell, with names in canonical order."""
    table = adata.obs[["perturbation", "cell_type", "animal"]].astype(str).assign(split=labels.astype(str))
    table["perturbation"] = [canonical(name) for name in table["perturbation"]]
    return table


def on(table, side):
    treated = table[(table["split"] == side) & (table["perturbation"] != "control")]
    return {*zip(treated["perturbation"], treated["cell_type"], strict=True)}


def refused(adata, match, error=ValueError, function=tv.pp.split_responses, **kwargs):
    """The call is refused and leaves no trace."""
    obs, uns = adata.obs.copy(deep=True), dict(adata.uns)
    with pytest.raises(error, match=match):
        function(adata, **kwargs)
    assert_frame_equal(adata.obs, obs)
    assert adata.uns == uns


# names


@pytest.mark.parametrize(
    ("name", "expected"),
    [("A", ("A",)), (" B + A", ("A", "B")), ("C+A+B", ("A", "B", "C")), ("Ca2+", ("Ca2+",)), ("A+A", ("A", "A"))],
)
def test_parts(name, expected):
    assert parts(name) == expected


def test_parts_of_other_delimiters():
    assert parts("B_A", "_") == ("A", "B")
    assert parts("(+)-catechin", None) == ("(+)-catechin",)


def test_canonical():
    assert canonical("B+A") == canonical(["B", "A"]) == canonical(("A", "B")) == canonical(" A + B ") == "A+B"
    assert canonical(["C", "B+A"]) == "A+B+C"
    assert canonical("B+A", None) == "B+A"
    with pytest.raises(ValueError, match="combination, but delimiter=None"):
        canonical(["A", "B"], None)


# what each mode holds out


def test_condition(adata):
    table = frame(adata, split(adata))
    train, valid, test = (on(table, side) for side in ("train", "valid", "test"))
    assert not train & test and not train & valid and not valid & test
    assert (len(test), len(valid)) == (5, 2)  # of 24
    for perturbation, _ in test | valid:
        assert perturbation in {p for p, _ in train}


def test_condition_is_stratified(adata):
    for seed in range(5):
        table = frame(adata, split(adata, test_size=8, valid_size=4, seed=seed))
        for side, n in (("test", 2), ("valid", 1)):
            counts = pd.Series([context for _, context in on(table, side)]).value_counts()
            assert counts.to_dict() == dict.fromkeys(CONTEXTS, n)


def test_condition_is_stratified_by_share():
    adata = make([f"p{i}" for i in range(12)] + ["control"], skip=[(f"p{i}", "W") for i in range(6)])
    table = frame(adata, split(adata, test_size=7, valid_size=0))
    counts = pd.Series([context for _, context in on(table, "test")]).value_counts()
    assert counts.to_dict() == {"X": 2, "Y": 2, "Z": 2, "W": 1}


def test_condition_given(adata):
    expected = {("A", "X"), ("A+B", "Y")}
    forms = [
        [("A", "X"), ("B+A", "Y")],
        {("A", "X"), ("A + B", "Y")},
        (("A", "X"), ["A+B", "Y"]),
        {"X": "A", "Y": ["B+A"]},
        {"X": ["A"], "Y": ("A+B",)},
    ]
    for holdout in forms:
        table = frame(adata, split(adata, holdout=holdout, valid=("C", "Z")))
        assert on(table, "test") == expected
        assert on(table, "valid") == {("C", "Z")}
    assert on(frame(adata, split(adata, holdout=("A", "X"))), "test") == {("A", "X")}


def test_given_validation_and_random_test(adata):
    table = frame(adata, split(adata, valid=[("A", "X"), ("B", "X")], test_size=20 / 24 - 0.25))
    assert on(table, "valid") == {("A", "X"), ("B", "X")}
    assert len(on(table, "test")) == 14


def test_condition_with_a_perturbation_of_one_context():
    adata = make(skip=[("D", context) for context in "YZW"])
    for seed in range(10):
        assert ("D", "X") in on(frame(adata, split(adata, test_size=0.5, seed=seed)), "train")
    refused(adata, r"in training in no context: 'D in X'\. .*allow_unseen=True", holdout=[("D", "X"), ("A", "X")])
    refused(adata, "in no context: 'D in X'", valid=[("D", "X")])
    assert ("D", "X") in on(frame(adata, split(adata, holdout=[("D", "X")], allow_unseen=True)), "test")


def test_context(adata):
    table = frame(adata, split(adata, "context"))
    held = {context for _, context in on(table, "test")}
    assert len(held) == 1
    rest = table[table["cell_type"].isin(held) & (table["split"] == "train")]
    assert set(rest["perturbation"]) == {"control"}
    assert len(on(table, "train")) == 18


def test_context_given(adata):
    table = frame(adata, split(adata, "context", holdout="X", valid=["Y"]))
    assert {context for _, context in on(table, "test")} == {"X"}
    assert {context for _, context in on(table, "valid")} == {"Y"}
    assert {context for _, context in on(table, "train")} == {"Z", "W"}


def test_context_warns_of_unseen_perturbations():
    adata = make(skip=[("D", context) for context in "YZW"])
    with pytest.warns(UserWarning, match="Perturbations of held-out contexts that are not in training: 'D'."):
        split(adata, "context", holdout="X")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)  # of other packages
        split(adata, "context", holdout="X", allow_unseen=True)
        split(adata, "context", holdout="Y")


def test_perturbation(adata):
    for seed in range(6):
        table = frame(adata, split(adata, "perturbation", seed=seed))
        held = {p for p, _ in on(table, "test")}
        singles = {p for p in held if len(parts(p)) == 1}
        assert len(singles) == 1
        assert held == {p for p in map(canonical, PERTURBATIONS) if singles & set(parts(p))}
        assert not held & {p for p, _ in on(table, "train")}
        assert len(on(table, "test")) == 4 * len(held)


def test_perturbation_takes_its_combinations_along(adata):
    table = frame(adata, split(adata, "perturbation", holdout="B", valid="A"))
    assert {p for p, _ in on(table, "test")} == {"B", "A+B"}
    assert {p for p, _ in on(table, "valid")} == {"A", "A+C"}
    assert {p for p, _ in on(table, "train")} == {"C", "D"}


def test_perturbation_measured_only_in_combinations():
    adata = make(("control", "B", "C", "A+B"))
    table = frame(adata, split(adata, "perturbation", holdout="A", valid_size=0))
    assert {p for p, _ in on(table, "test")} == {"A+B"}
    refused(adata, r"Nothing is left of these in valid.*: 'A'", by="perturbation", holdout="B", valid="A")


def test_perturbation_given_as_combination():
    adata = make((*PERTURBATIONS, "A+B+C"))
    table = frame(adata, split(adata, "perturbation", holdout=[("B", "A")], valid_size=0))
    assert {p for p, _ in on(table, "test")} == {"A+B", "A+B+C"}
    assert {"A", "B"} <= {p for p, _ in on(table, "train")}


def test_combination(adata):
    for seed in range(4):
        table = frame(adata, split(adata, "combination", seed=seed))
        held = {p for p, _ in on(table, "test")}
        assert held in ({"A+B"}, {"A+C"})
        assert {p for p, _ in on(table, "train")} == {"A", "B", "C", "D", "A+B", "A+C"} - held
    for holdout in ("C+A", ["A+C"], [("C", "A")], [["A", " C"]]):
        assert {p for p, _ in on(frame(adata, split(adata, "combination", holdout=holdout)), "test")} == {"A+C"}


def test_combination_in_both_orders_is_one():
    adata = make((*PERTURBATIONS, "B+A", "A+C"))
    table = frame(adata, split(adata, "combination", holdout=["A+B"]))
    assert {p for p, _ in on(table, "test")} == {"A+B"}
    assert (table.loc[table["perturbation"] == "A+B", "split"] == "test").sum() == 2 * 4 * 12


def test_combination_needs_its_singles():
    adata = make((*PERTURBATIONS, "A+E"))
    for seed in range(8):
        assert "A+E" in {p for p, _ in on(frame(adata, split(adata, "combination", test_size=2, seed=seed)), "train")}
    refused(adata, "singles that are not measured alone: 'A\\+E'", by="combination", holdout=["E+A", "A+B"])
    table = frame(adata, split(adata, "combination", holdout="E+A", allow_unseen=True, valid_size=0))
    assert {p for p, _ in on(table, "test")} == {"A+E"}


def test_control_within_a_combination_does_not_count():
    adata = make(("control", "A", "A+control", "B", "control+control"))
    table = frame(adata, split(adata, "perturbation", holdout="A+control", valid_size=0))
    assert set(table.loc[table["perturbation"].isin(["A", "A+control"]), "split"]) == {"test"}
    assert set(table.loc[table["perturbation"] == "control+control", "split"]) == {"test", "train"}


def test_control_label_with_the_delimiter():
    adata = make(("non+targeting", "A", "B"))
    table = frame(adata, split(adata, "perturbation", holdout="A", control="non+targeting", valid_size=0))
    assert (table.loc[table["perturbation"] == "non+targeting", "split"] == "test").mean() == 0.5


def test_doses_of_one_label_stay_together():
    adata = make()
    adata.obs["dose"] = np.arange(adata.n_obs) % 3
    for by in ("perturbation", "condition"):
        table = frame(adata, split(adata, by)).assign(dose=adata.obs["dose"].to_numpy())
        keys = ["perturbation"] if by == "perturbation" else ["perturbation", "cell_type"]
        treated = table[table["perturbation"] != "control"]
        assert (treated.groupby(keys)["dose"].nunique() == 3).all()
        assert (treated.groupby(keys)["split"].nunique() == 1).all()


def test_animal(adata):
    table = frame(adata, split(adata, "animal"))
    assert (table.groupby("animal")["split"].nunique() == 1).all()
    assert table.groupby("split")["animal"].nunique().to_dict() == {"train": 4, "valid": 1, "test": 1}
    assert on(table, "train") == on(table, "test") == on(table, "valid")
    table = frame(adata, split(adata, "animal", holdout=["a", "c"], valid="b"))
    assert table.groupby("split")["animal"].unique().map(list).to_dict() == {
        "test": ["a", "c"],
        "valid": ["b"],
        "train": ["d", "e", "f"],
    }


def unpaired(n_control=3):
    """Each animal has one treatment, in all organs."""
    adata = make(animals="x", n=12)
    group = adata.obs["perturbation"].astype(str)
    within = adata.obs.groupby(["perturbation", "cell_type"], observed=True).cumcount()
    n_animals = np.where(group == "control", n_control, 3)
    adata.obs["animal"] = group + "_" + (within % n_animals).astype(str)
    return adata


def test_animal_with_one_treatment_each():
    adata = unpaired()
    for seed in range(5):
        table = frame(adata, split(adata, "animal", seed=seed, valid_size=0.2))
        controls = table[table["perturbation"] == "control"]
        assert controls.groupby("animal")["split"].nunique().eq(1).all()
        assert controls.groupby("split")["animal"].nunique().to_dict() == {"train": 1, "valid": 1, "test": 1}
        assert on(table, "test") <= on(table, "train")
    for holdout in tv.pp.leave_out(adata, "animal", animal_key="animal").values():
        table = frame(adata, split(adata, "animal", holdout=holdout, valid_size=0))
        assert set(table.loc[table["split"] == "test", "animal"]) > set(holdout)
    with pytest.raises(ValueError, match="W .no control is 'test'."):
        split(unpaired(1), "animal", holdout="A_1", valid_size=0)
    with pytest.raises(ValueError, match="test_size=0.2 asks for 4 animals, but only 0 can be held out: treated cells"):
        split(unpaired(1), "animal")


def test_animal_warns_of_conditions_that_training_lacks():
    adata = make()
    adata = adata[~((adata.obs["perturbation"] == "D") & (adata.obs["animal"] != "a"))].copy()
    with pytest.warns(UserWarning, match="Conditions of held-out animals that are not in training: 'D in W', "):
        split(adata, "animal", holdout="a")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)  # of other packages
        for seed in range(10):
            assert (
                "a" not in frame(adata, split(adata, "animal", seed=seed)).query("split == 'test'")["animal"].unique()
            )


# controls


def controls(table):
    table = table[table["perturbation"] == "control"]
    return table.groupby(["cell_type", "split"]).size().unstack(fill_value=0).to_dict("index")


def test_controls_are_divided_where_something_is_held_out(adata):
    table = frame(adata, split(adata, holdout=[("A", "X"), ("A", "Y")], valid=[("B", "Y"), ("B", "Z")]))
    assert controls(table) == {
        "X": {"train": 6, "valid": 0, "test": 6},
        "Y": {"train": 3, "valid": 3, "test": 6},
        "Z": {"train": 6, "valid": 6, "test": 0},
        "W": {"train": 12, "valid": 0, "test": 0},
    }


@pytest.mark.parametrize(("share", "n"), [(0.25, 3), (0.9, 11), (0.01, 1), (0.999, 11)])
def test_control_test_share(adata, share, n):
    table = frame(adata, split(adata, "context", holdout="X", control_test_share=share, valid_size=0))
    assert controls(table)["X"] == {"train": 12 - n, "test": n}


def test_controls_by_whole_animals(adata):
    table = frame(adata, split(adata, animal_key="animal", test_size=8, valid_size=4))
    table = table[table["perturbation"] == "control"]
    assert (table.groupby(["cell_type", "animal"])["split"].nunique() == 1).all()
    assert (table.groupby("animal")["split"].nunique() == 1).all()  # all contexts have tests and the same animals
    assert table.groupby("split")["animal"].nunique().to_dict() == {"train": 1, "valid": 2, "test": 3} or (
        table.groupby("split")["animal"].nunique().to_dict() == {"train": 2, "valid": 1, "test": 3}
    )


def test_controls_by_cell_with_equal_shares_of_too_few_animals():
    adata = make(animals="ab", n=6)
    table = frame(adata, split(adata, "context", holdout="X", valid="Y", animal_key="animal"))
    counts = table[table["perturbation"] == "control"].groupby(["cell_type", "animal", "split"]).size()
    assert counts["X"].groupby("split").sum().to_dict() == {"test": 6, "train": 6}
    adata = make(animals="a", n=8)
    table = frame(adata, split(adata, "context", holdout="X", animal_key="animal"))
    assert controls(table)["X"]["test"] == 4
    adata = make(animals="ab", n=6)
    table = frame(adata, split(adata, holdout=[("A", "X")], valid=[("B", "X")], animal_key="animal"))
    counts = (
        table[(table["perturbation"] == "control") & (table["cell_type"] == "X")].groupby(["animal", "split"]).size()
    )
    assert counts.xs("test", level="split").to_dict() == {"a": 3, "b": 3}


def test_controls_of_a_context_do_not_depend_on_others(adata):
    first = frame(adata, split(adata, holdout=[("A", "X")], valid_size=0))
    second = frame(adata, split(adata, holdout=[("B", "X"), ("A", "Y")], valid_size=0))
    here = (first["perturbation"] == "control") & (first["cell_type"] == "X")
    assert_series_equal(first.loc[here, "split"], second.loc[here, "split"])


def test_too_few_controls_in_a_context(adata):
    few = adata.obs_names[(adata.obs["perturbation"] == "control") & (adata.obs["cell_type"] == "X")]
    adata = adata[~adata.obs_names.isin(few[1:])].copy()
    refused(adata, r"too few control cells: 'X \(has 1, needs 2\)'", holdout=[("A", "X")], valid_size=0)
    refused(adata, r"too few control cells: 'X \(has 1, needs 2\)'", by="context", holdout="X", valid_size=0)
    refused(adata, r"too few control cells: 'X \(has 1, needs 2\)'", by="perturbation", holdout="A", valid_size=0)
    with pytest.warns(UserWarning, match="Nothing is drawn from contexts with fewer than 2 control cells: 'X'"):
        table = frame(adata, split(adata, test_size=0.4))
    assert "X" not in {context for _, context in on(table, "test") | on(table, "valid")}
    with pytest.warns(UserWarning, match="fewer than 2"), pytest.raises(ValueError, match="only 0 can be held out"):
        split(adata, "perturbation")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)  # of other packages
        split(adata, holdout=[("A", "Y")], valid=[("A", "Z")])


def test_too_few_controls_for_test_and_validation(adata):
    few = adata.obs_names[(adata.obs["perturbation"] == "control") & (adata.obs["cell_type"] == "X")]
    adata = adata[~adata.obs_names.isin(few[2:])].copy()
    refused(adata, r"'X \(has 2, needs 3\)'", holdout=[("A", "X")], valid=[("B", "X")])
    split(adata, holdout=[("A", "X")])
    for seed in range(10):
        split(adata, test_size=8, valid_size=4, seed=seed)


def test_without_controls():
    adata = make(PERTURBATIONS[1:], animals="a", n=1)
    for by in ("perturbation", "condition", "context", "combination"):
        table = frame(adata, split(adata, by, control=None))
        assert on(table, "test") and on(table, "train")
    labels = split(make(PERTURBATIONS[1:]), "animal", control=None)
    assert labels.nunique() == 3


def test_one_context():
    adata = make(contexts="X")
    del adata.obs["cell_type"]
    table = tv.pp.split_responses(adata, "perturbation", context_key=None, key_added=None)
    assert set(table) == {"train", "valid", "test"} or set(table) == {"train", "test"}
    tv.pp.split_responses(adata, "combination", context_key=None)
    summary = tv.pp.check_split(adata, by="combination", context_key=None)
    assert summary.columns.tolist() == ["perturbation", "split", "n_cells"]
    tv.pp.check_split(adata, context_key=None)
    for by in ("condition", "context"):
        refused(adata, f"by='{by}' needs context_key", by=by, context_key=None)
    refused(adata, r"context_key='cell_type' is not in adata.obs.*context_key=None", KeyError, by="perturbation")


# sizes and seeds


@pytest.mark.parametrize("by", MODES)
def test_deterministic(adata, by):
    assert_series_equal(split(adata, by, seed=3), split(adata, by, seed=3))
    assert len({tuple(split(adata, by, seed=seed)) for seed in range(5)}) > 1


@pytest.mark.parametrize(
    ("test_size", "valid_size", "expected"),
    [
        (0.5, 0.25, (12, 6)),
        (3, 0, (3, 0)),
        (3, 1, (3, 1)),
        (0.001, 0.0, (1, 0)),
        (np.int64(2), np.float64(0.1), (2, 2)),
    ],
)
def test_sizes(adata, test_size, valid_size, expected):
    table = frame(adata, split(adata, test_size=test_size, valid_size=valid_size))
    assert (len(on(table, "test")), len(on(table, "valid"))) == expected


def test_sizes_that_training_cannot_spare(adata):
    refused(adata, "test_size=19 asks for 19 conditions, but only 18 can be held out: each perturb", test_size=19)
    refused(adata, "test_size=0.9 asks for 22 conditions, but only 18", test_size=0.9)
    refused(adata, "valid_size=5 asks for 5 conditions, but only 4", test_size=14, valid_size=5)
    refused(adata, "test_size=4 asks for 4 contexts, but only 3", by="context", test_size=4)
    refused(adata, "test_size=3 asks for 3 combinations, but only 2", by="combination", test_size=3)
    refused(adata, "asks for 6 animals, but only 5", by="animal", test_size=6, animal_key="animal")
    table = frame(adata, split(adata, test_size=17, valid_size=0.9))
    assert len(on(table, "valid")) == 1
    refused(make(("control", "A")), "only 0 can be held out: another perturbation", by="perturbation")
    refused(make(contexts="X"), "only 0 can be held out: each perturbation must stay in", by="condition")
    refused(make(("control", "A")), "only 0 can be held out: every single of a combination", by="combination")


@pytest.mark.parametrize("size", [0, 0.0, 1.0, -1, -0.1, 1.5, True, "0.2", None])
def test_bad_sizes(adata, size):
    refused(adata, "test_size=.* must be a share below 1, or a whole number of at least 1", test_size=size)
    if size not in (0, 0.0) or size is True:
        refused(adata, "valid_size=.* must be a share below 1, or a whole number of at least 0", valid_size=size)


# what is written


def test_written(adata):
    assert tv.pp.split_responses(adata) is None
    column = adata.obs["split"]
    assert column.cat.categories.tolist() == ["train", "valid", "test"]
    assert column.tolist() == split(adata).tolist()
    before = make()
    labels = tv.pp.split_responses(before, key_added=None)
    assert labels.index.equals(before.obs_names)
    assert_frame_equal(before.obs, make().obs)
    tv.pp.split_responses(adata, "combination", valid_size=0, key_added="other")
    assert adata.obs["other"].cat.categories.tolist() == ["train", "valid", "test"]


@pytest.mark.parametrize("by", MODES)
@pytest.mark.parametrize("kind", ["dense", "csc", "backed dense", "backed csr", "view"])
def test_formats_agree(by, kind, tmp_path):
    adata = make()
    other = make(fmt=np.asarray if "dense" in kind else sparse.csc_matrix if kind == "csc" else sparse.csr_matrix)
    if "backed" in kind:
        other.write_h5ad(tmp_path / "data.h5ad")
        other = ad.read_h5ad(tmp_path / "data.h5ad", backed="r")
    other = other[:] if kind == "view" else other
    assert_series_equal(split(adata, by), split(other, by))
    key = "animal" if by == "animal" else None
    if "backed" in kind:
        tv.pp.split_responses(other, by, animal_key=key)
        tv.pp.split_responses(adata, by, animal_key=key)
        expected = tv.pp.check_split(adata, by=by, animal_key=key)
        assert_frame_equal(tv.pp.check_split(other, by=by, animal_key=key), expected)


def test_object_and_integer_columns(adata):
    expected = split(adata)
    adata.obs["perturbation"] = adata.obs["perturbation"].astype(object)
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(str).astype("category").cat.reorder_categories(list("WXZY"))
    assert_series_equal(split(adata), expected)
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(str).map({"W": 0, "X": 1, "Y": 2, "Z": 3})
    assert_series_equal(split(adata), expected)
    assert on(frame(adata, split(adata, holdout=[("A", 2)])), "test") == {("A", "2")}


def test_summary(adata):
    tv.pp.split_responses(adata, holdout=[("A", "X")], valid_size=0)
    summary = tv.pp.check_split(adata)
    assert summary.columns.tolist() == ["perturbation", "context", "split", "n_cells"]
    assert summary["n_cells"].sum() == adata.n_obs
    assert summary["n_cells"].gt(0).all()
    assert not summary.duplicated(["perturbation", "context", "split"]).any()
    rows = summary.set_index(["perturbation", "context"]).sort_index()
    assert rows.loc[[("A", "X")], ["split", "n_cells"]].to_numpy().tolist() == [["test", 12]]
    assert dict(zip(*rows.loc[("control", "X")][["split", "n_cells"]].to_numpy().T, strict=True)) == {
        "train": 6,
        "test": 6,
    }
    assert "A+C" in set(summary["perturbation"])


# planted leaks


def planted(by, side="train", select=None, n=3, **kwargs):
    """Split, then move a few cells to another side."""
    adata = make()
    kwargs.setdefault("animal_key", "animal" if by == "animal" else None)
    tv.pp.split_responses(adata, by, **kwargs)
    cells = adata.obs_names[adata.obs.eval(select)][:n]
    assert len(cells)
    adata.obs.loc[cells, "split"] = side
    return adata


def leak(adata, match, **kwargs):
    refused(adata, match, function=tv.pp.check_split, **kwargs)


@pytest.mark.parametrize("side", ["train", "valid"])
@pytest.mark.parametrize("by", ["condition", None])
def test_leak_of_a_condition(by, side):
    adata = planted(
        "condition", side, "perturbation == 'A' and cell_type == 'X'", holdout=[("A", "X")], valid=("B", "X")
    )
    leak(adata, rf"Held-out conditions leak in adata.obs\['split'\]: 'A in X \({side} and test\)'\.", by=by)


def test_leak_of_a_validation_condition():
    adata = planted(
        "condition", "train", "perturbation == 'B' and cell_type == 'X'", holdout=("A", "X"), valid=("B", "X")
    )
    leak(adata, r"conditions leak .*: 'B in X \(train and valid\)'")


def test_at_most_five_examples():
    adata = make()
    tv.pp.split_responses(adata, "context", holdout="X", valid_size=0)
    for perturbation in PERTURBATIONS[1:]:
        chosen = (adata.obs["cell_type"] == "X") & (adata.obs["perturbation"] == perturbation)
        adata.obs.loc[adata.obs_names[chosen][0], "split"] = "train"
    with pytest.raises(ValueError, match=r"\(6 in all\)") as error:
        tv.pp.check_split(adata)
    assert str(error.value).count(" in X (") == 5


def test_leak_of_a_context():
    # each condition is on one side, but the context is on both
    adata = planted("context", "train", "perturbation == 'A' and cell_type == 'X'", n=99, holdout="X", valid_size=0)
    leak(adata, r"Held-out contexts leak .*: 'X \(train and test\)'", by="context")
    tv.pp.check_split(adata, by="condition")


def test_leak_of_a_perturbation_in_another_context():
    adata = planted("perturbation", "train", "perturbation == 'D' and cell_type == 'Z'", n=99, holdout="D")
    leak(adata, r"Held-out perturbations leak .*: 'D \(train and test\)'", by="perturbation")
    tv.pp.check_split(adata, by="condition")


@pytest.mark.parametrize("side", ["train", "valid"])
def test_leak_of_a_perturbation_within_a_combination(side):
    adata = planted("perturbation", side, "perturbation == 'C + A'", n=999, holdout="C", valid="B")
    leak(adata, rf"through combinations: 'C \(test\) within A\+C \({side}\)'", by="perturbation")


def test_leak_of_a_combination_in_another_order():
    adata = make((*PERTURBATIONS, "B+A"))
    tv.pp.split_responses(adata, "combination", holdout="A+B")
    adata.obs.loc[(adata.obs["perturbation"] == "B+A") & (adata.obs["cell_type"] == "Y"), "split"] = "train"
    leak(adata, r"conditions leak .*: 'A\+B in Y \(train and test\)'", by="combination")
    # no condition is on both sides
    adata = adata[(adata.obs["perturbation"] != "A+B") | (adata.obs["cell_type"] != "Y")].copy()
    leak(adata, r"Held-out combinations leak .*: 'A\+B \(train and test\)'", by="combination")
    tv.pp.check_split(adata, by="condition")


def test_leak_of_an_animal():
    adata = planted("animal", "train", "animal == 'b'", holdout="b")
    leak(adata, r"Animals are on several sides .*: 'b \(train and test\)'", by="animal", animal_key="animal")
    adata = make(PERTURBATIONS[1:])
    tv.pp.split_responses(adata, control=None)
    tv.pp.check_split(adata, by=None, control=None)
    leak(adata, r"several sides .*: 'a \(train and .*'b \(.*6 in all", by=None, control=None, animal_key="animal")


def test_leak_of_a_control_animal():
    adata = make()
    tv.pp.split_responses(adata, "context", holdout="X", valid_size=0, animal_key="animal")
    here = adata.obs.query("perturbation == 'control' and cell_type == 'X' and split == 'test'")
    adata.obs.loc[here.index[0], "split"] = "train"
    name = here["animal"].iloc[0]
    leak(adata, rf"Control cells of one animal .*: '{name} in X \(train and test\)'", by="context", animal_key="animal")
    tv.pp.check_split(adata, by="context")


def copied(adata, what):
    """Make a cell of a held-out condition the same as one in training."""
    held = adata.obs_names[(adata.obs["perturbation"] == "A") & (adata.obs["cell_type"] == "X")][0]
    other = adata.obs_names[(adata.obs["perturbation"] == "B") & (adata.obs["cell_type"] == "Y")][0]
    if what == "name":
        adata.obs_names = [held if name == other else name for name in adata.obs_names]
    elif what == "key":
        adata.obs.loc[other, "barcode"] = adata.obs.loc[held, "barcode"]
    else:
        rows = np.arange(adata.n_obs)
        rows[adata.obs_names.get_loc(other)] = adata.obs_names.get_loc(held)
        adata.X = adata.X[rows]
    return adata, held, other


@pytest.mark.parametrize("what", ["name", "key", "profile"])
def test_leak_of_a_cell(what):
    adata, held, other = copied(make(), what)
    match = {
        "name": rf"Cells of one name .*: '{held} \(train and test\)'.*obs_names_make_unique",
        "key": rf"Cells of one adata.obs\['barcode'\] \(cell_key\) .*: 'barcode{held[4:]} \(train and test\)'",
        "profile": rf"identical profiles in adata.X .*: '{other} \(train\) = {held} \(test\)'.*identical_cells='ignore'",
    }[what]
    arguments = {"holdout": [("A", "X")], "cell_key": "barcode", "valid_size": 0}
    refused(adata, match, **arguments)
    labels = split(make(), **arguments)
    adata.obs["split"] = labels.array
    leak(adata, match, cell_key="barcode")
    if what == "profile":
        tv.pp.check_split(adata, identical_cells="ignore")
        tv.pp.split_responses(adata, **arguments, identical_cells="ignore")
    if what == "key":
        tv.pp.check_split(adata)
    # on one side the same cells are no leak
    tv.pp.split_responses(adata, holdout=[("D", "Z")], cell_key="barcode", valid_size=0)


@pytest.mark.parametrize("kind", ["dense", "csr", "csc", "backed", "unsorted", "explicit zeros"])
def test_identical_profiles_in_every_form(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("transverse._validation.iter_rows.__defaults__", (None, 50))  # the copies are in two blocks
    adata, held, other = copied(make(), "profile")
    if kind == "dense":
        adata.X = adata.X.toarray()
    elif kind == "csc":
        adata.X = sparse.csc_matrix(adata.X)
    elif kind == "backed":
        adata.write_h5ad(tmp_path / "data.h5ad")
        adata = ad.read_h5ad(tmp_path / "data.h5ad", backed="r")
    else:
        matrix = adata.X.tolil()
        row = adata.obs_names.get_loc(other)
        matrix = matrix.tocsr()
        here = slice(matrix.indptr[row], matrix.indptr[row + 1])
        if kind == "unsorted":
            matrix.indices[here] = matrix.indices[here][::-1].copy()
            matrix.data[here] = matrix.data[here][::-1].copy()
            matrix.has_sorted_indices = False
        else:
            zero = np.flatnonzero(matrix[row].toarray().ravel() == 0)[0]
            position = np.searchsorted(matrix.indices[here], zero) + here.start
            indptr = matrix.indptr + (np.arange(len(matrix.indptr)) > row)
            data, indices = np.insert(matrix.data, position, 0), np.insert(matrix.indices, position, zero)
            matrix = sparse.csr_matrix((data, indices, indptr), shape=matrix.shape)
        adata.X = matrix
    n_stored = adata.X.nnz if kind in ("unsorted", "explicit zeros") else None
    refused(adata, rf"'{other} \(train\) = {held} \(test\)'", holdout=[("A", "X")], valid_size=0)
    if n_stored:
        assert adata.X.nnz == n_stored
        assert kind != "unsorted" or not sparse.csr_matrix(adata.X).has_sorted_indices


def test_profiles_that_are_not_compared():
    adata = make()
    values = np.zeros((adata.n_obs, 30), dtype="float32")
    values[:, :9] = 1
    adata.X = sparse.csr_matrix(values)
    tv.pp.split_responses(adata)
    values[:, 9] = 1
    adata.X = sparse.csr_matrix(values)
    refused(adata, "identical profiles")
    values[:, 9] = np.arange(adata.n_obs) + 1
    adata.X = values
    tv.pp.split_responses(adata)
    adata.X = None
    tv.pp.split_responses(adata)


def test_copied_control_cells_are_refused():
    adata = make()
    cells = np.flatnonzero((adata.obs["perturbation"] == "control") & (adata.obs["cell_type"] == "X"))
    rows = np.arange(adata.n_obs)
    rows[cells] = cells[0]
    adata.X = adata.X[rows]
    refused(adata, "identical profiles", by="context", holdout="X")


@pytest.mark.parametrize(("old", "new", "role"), [("test", "train", "test"), ("train", "test", "train")])
def test_no_control_left(old, new, role):
    adata = planted(
        "context", new, f"perturbation == 'control' and cell_type == 'X' and split == '{old}'", n=99, holdout="X"
    )
    leak(adata, rf"lack control cells .*: \"X \(no control is '{role}'\)\"", by="context")
    tv.pp.check_split(make_signatures(adata), by="context", control=None)


def make_signatures(adata):
    return adata[adata.obs["perturbation"] != "control"].copy()


def test_no_control_left_for_validation():
    adata = planted(
        "context",
        "train",
        "perturbation == 'control' and cell_type == 'Y' and split == 'valid'",
        n=99,
        holdout="X",
        valid="Y",
    )
    leak(adata, r"lack control cells .*Y \(no control is 'valid'\)", by="context")


def test_labels_of_a_split(adata):
    leak(adata, "key='split' is not in adata.obs", error=KeyError)
    tv.pp.split_responses(adata, valid_size=0)
    good = adata.obs["split"].astype(object)
    tv.pp.check_split(adata.copy())
    adata.obs["split"] = good.replace("test", "Test")
    leak(adata, r"unknown labels: 'Test'\. Each cell must be one of 'train', 'valid', 'test'")
    adata.obs["split"] = good.replace("test", "train")
    leak(adata, "has no test cells: no cell is labelled 'test'")
    adata.obs["split"] = good.replace("train", "valid")
    leak(adata, "has no training cells: no cell is labelled 'train'")
    adata.obs["split"] = good.where((good == "test") | (adata.obs["perturbation"] == "control"), "valid")
    leak(adata, "has no training cells but controls")
    adata.obs["split"] = good.where((good == "train") | (adata.obs["perturbation"] == "control"), "valid")
    leak(adata, "has no test cells but controls")
    adata.obs["split"] = good.where(np.arange(adata.n_obs) != 7, None)
    leak(adata, r"adata.obs\['split'\] \(key\) is missing for 1 cells: 'cell7'")


# arguments


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"by": "cell"}, r"by='cell' is unknown\. Choose one of 'perturbation', 'condition'"),
        ({"by": None}, "by=None is for check_split only"),
        ({"by": "animal"}, "by='animal' needs animal_key"),
        ({"identical_cells": "keep"}, "identical_cells='keep' is unknown. Choose 'refuse' or 'ignore'"),
        ({"control_test_share": 0}, "control_test_share=0 must be above 0 and below 1"),
        ({"control_test_share": 1.0}, "control_test_share=1.0 must be above 0"),
        ({"delimiter": ""}, "delimiter='' must be text"),
        ({"control": "DMSO"}, r"control='DMSO' is not in adata.obs\['perturbation'\], which has: 'A', .*control=None"),
        ({"key_added": "cell_type"}, "key_added='cell_type' would overwrite"),
        ({"holdout": []}, "holdout is empty. Name at least one condition"),
        ({"holdout": ["A"]}, r"holdout must hold \(perturbation, context\) pairs with by='condition', but has 'A'"),
        (
            {"holdout": [("A", "Q")]},
            r"holdout has conditions that are not in adata: 'A in Q'\. adata has, for example: 'A in",
        ),
        ({"holdout": [("E", "X"), ("A", "X")]}, "holdout has conditions that are not in adata: 'E in X'"),
        ({"valid": [("E", "X")]}, "valid has conditions that are not in adata: 'E in X'"),
        ({"holdout": [("control", "X")]}, "holdout has the control 'control', which cannot be held out"),
        ({"holdout": ("A", "X"), "valid": [("A", "X")]}, "holdout and valid both have 'A in X'"),
        ({"by": "perturbation", "holdout": ["A", "E"]}, "holdout has perturbations that are not in adata: 'E'"),
        ({"by": "perturbation", "holdout": "control"}, "holdout has the control"),
        ({"by": "perturbation", "holdout": {"X": "A"}}, "map contexts to perturbations with by='condition' only"),
        ({"by": "context", "holdout": "Q"}, r"holdout has contexts that are not in adata: 'Q'\. .*'W', 'X', 'Y', 'Z'"),
        ({"by": "context", "holdout": list("WXYZ")}, "the split has no training cells but controls"),
        (
            {"by": "combination", "holdout": "A"},
            r"holdout has combinations that are not in adata: 'A'\. .*'A\+B', 'A\+C'",
        ),
        ({"by": "animal", "holdout": "q", "animal_key": "animal"}, "holdout has animals that are not in adata: 'q'"),
        ({"by": "animal", "holdout": list("abcdef"), "animal_key": "animal"}, "has no training cells"),
    ],
)
def test_refused(adata, kwargs, match):
    refused(adata, match, **kwargs)


@pytest.mark.parametrize("key", ["perturbation_key", "context_key", "animal_key", "cell_key"])
def test_columns(adata, key):
    refused(adata, f"{key}='nothing' is not in adata.obs", KeyError, **{key: "nothing"})
    adata.obs["gap"] = adata.obs["animal"].astype(object).where(np.arange(adata.n_obs) != 3, None)
    refused(adata, rf"adata.obs\['gap'\] \({key}\) is missing for 1 cells: 'cell3'", **{key: "gap"})


def test_not_an_adata(adata):
    with pytest.raises(TypeError, match="adata must be an AnnData, but got DataFrame"):
        tv.pp.split_responses(adata.obs)
    with pytest.raises(ValueError, match="adata has no cells"):
        tv.pp.split_responses(adata[:0])
    with pytest.raises(ValueError, match="no perturbation but the control"):
        tv.pp.split_responses(adata[adata.obs["perturbation"] == "control"])


# leave out


def test_leave_out(adata):
    found = tv.pp.leave_out(adata)
    assert len(found) == 24
    assert found["A+C in X"] == [("A+C", "X")]
    found = tv.pp.leave_out(adata, "context")
    assert list(found) == ["W", "X", "Y", "Z"]
    assert found["X"] == [(p, "X") for p in ("A", "A+B", "A+C", "B", "C", "D")]
    assert tv.pp.leave_out(adata, "perturbation") == {name: [name] for name in "ABCD"}
    assert tv.pp.leave_out(adata, "combination") == {"A+B": ["A+B"], "A+C": ["A+C"]}
    assert tv.pp.leave_out(adata, "animal", animal_key="animal") == {name: [name] for name in "abcdef"}


@pytest.mark.parametrize("by", MODES)
def test_leave_out_goes_to_split_responses(adata, by):
    key = "animal" if by == "animal" else None
    to = "condition" if by == "context" else by
    for name, holdout in tv.pp.leave_out(adata, by, animal_key=key).items():
        tv.pp.split_responses(adata, to, holdout=holdout, animal_key=key, key_added=f"split_{name}")
        tv.pp.check_split(adata, f"split_{name}", by=to, animal_key=key)
        if by == "context":
            table = frame(adata, adata.obs[f"split_{name}"])
            assert {p for p, c in on(table, "test") if c == name} == {"A", "B", "C", "D", "A+B", "A+C"}
            assert {c for _, c in on(table, "test")} == {name}


def test_leave_out_selected(adata):
    assert tv.pp.leave_out(adata, perturbations=["B+A"], contexts="X") == {"A+B in X": [("A+B", "X")]}
    assert tv.pp.leave_out(adata, "context", perturbations=["A"], contexts=["Y", "X"]) == {
        "X": [("A", "X")],
        "Y": [("A", "Y")],
    }
    assert tv.pp.leave_out(adata, "perturbation", perturbations="A+B") == {"A+B": ["A+B"]}
    assert tv.pp.leave_out(adata, "combination", perturbations=["B+A", "D"]) == {"A+B": ["A+B"]}
    sparse_design = make(skip=[("D", c) for c in "YZW"] + [("A+B", c) for c in "XYZ"])
    assert "D" not in tv.pp.leave_out(sparse_design, "perturbation", contexts="Y")
    assert list(tv.pp.leave_out(sparse_design, "combination", contexts="X")) == ["A+C"]
    few = adata[(adata.obs["animal"] != "b") | (adata.obs["perturbation"] != "A")]
    assert "b" not in tv.pp.leave_out(few, "animal", animal_key="animal", perturbations="A")


def test_leave_out_of_what_is_measured_once():
    adata = make((*PERTURBATIONS, "A+E"), skip=[("D", c) for c in "YZW"])
    assert "D in X" not in tv.pp.leave_out(adata)
    assert "D in X" in tv.pp.leave_out(adata, allow_unseen=True)
    assert "A+E" not in tv.pp.leave_out(adata, "combination")
    assert "A+E" in tv.pp.leave_out(adata, "combination", allow_unseen=True)
    with pytest.raises(ValueError, match=r"measured in no other context: 'D in X'\. .*allow_unseen=True"):
        tv.pp.leave_out(adata, "context")
    assert ("D", "X") in tv.pp.leave_out(adata, "context", allow_unseen=True)["X"]
    assert len(tv.pp.leave_out(adata, "context", perturbations=["A", "B"])["X"]) == 2


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"by": "cell"}, "by='cell' is unknown"),
        ({"by": None}, "by=None"),
        ({"by": "animal"}, "needs animal_key"),
        ({"context_key": None}, "by='condition' needs context_key"),
        ({"by": "perturbation", "context_key": None, "contexts": "X"}, "contexts needs context_key"),
        ({"perturbations": ["A", "E"]}, "perturbations has perturbations that are not in adata: 'E'"),
        ({"contexts": "Q"}, "contexts has contexts that are not in adata: 'Q'"),
        ({"by": "combination", "perturbations": "A"}, "nothing to leave out with by='combination'"),
    ],
)
def test_leave_out_refused(adata, kwargs, match):
    refused(adata, match, function=tv.pp.leave_out, **kwargs)


# any design


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_random_split_leaks(data):
    singles = list("ABCDE")[: data.draw(st.integers(1, 5), "singles")]
    pairs = [f"{a}+{b}" for a in "ABCDEF" for b in "ABCDEF" if a != b]
    names = singles + data.draw(st.lists(st.sampled_from(pairs), max_size=4, unique=True), "combinations")
    contexts = [f"ctx{i}" for i in range(data.draw(st.integers(1, 4), "contexts"))]
    with_controls = data.draw(st.booleans(), "with controls")
    by = data.draw(st.sampled_from(MODES), "by")
    rng = np.random.default_rng(data.draw(st.integers(0, 10_000), "design"))
    sizes = {
        "test_size": data.draw(st.sampled_from([0.1, 0.2, 0.5, 1, 2]), "test_size"),
        "valid_size": data.draw(st.sampled_from([0, 0.1, 0.3, 1]), "valid_size"),
    }
    n = int(rng.integers(20, 120))
    labels = [*names, *["control"] * (with_controls * 3)]
    obs = pd.DataFrame({"perturbation": rng.choice(labels, n), "cell_type": rng.choice(contexts, n)})
    obs["animal"] = rng.choice(list("abcdef"), n)
    if data.draw(st.booleans(), "one treatment per animal"):
        obs["animal"] += obs["perturbation"]
    adata = ad.AnnData(rng.poisson(3.0, (n, 40)).astype("float32"), obs=obs.set_index(obs.index.astype(str)))
    control = "control" if (obs["perturbation"] == "control").any() else None
    animal_key = "animal" if by == "animal" or data.draw(st.booleans(), "animal_key") else None
    keys = {"by": by, "control": control, "animal_key": animal_key}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tv.pp.split_responses(adata, **keys, **sizes, seed=int(rng.integers(100)))
        except ValueError as error:
            # too little to hold out is the only reason; never a leak of its own making
            if "can be held out" not in str(error):
                raise
            reject()
    summary = tv.pp.check_split(adata, **keys)
    assert summary["n_cells"].sum() == n
