"""Simulated species: what was asked for is there, and what is stored as truth is what made the counts."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.metrics import balanced_accuracy_score
from sklearn.preprocessing import normalize

from transverse.datasets import simulate_species


@pytest.fixture(scope="module")
def pair():
    return simulate_species("tiny", many_to_many=0.25, seed=1)


def per_10k(adata):
    """Mean counts per 10,000 of a set of cells, genes in order."""
    return 1e4 * np.asarray(adata.X.sum(0)).ravel() / adata.X.sum()


def one_to_one(adatas, context="mouse", target="human"):
    """Names of the one-to-one pairs, (context, target), from the truth in `.var`."""
    var = adatas[target].var.query("orthology == 'one2one'")
    return var["ortholog"].to_numpy(), var.index.to_numpy()


def vote(adatas, k=25):
    """Balanced accuracy of the majority label of the k context cells next by cosine on log1p counts."""
    context, target = adatas.values()
    left, right = one_to_one(adatas)
    similarity = normalize(target[:, right].X.log1p()) @ normalize(context[:, left].X.log1p()).T
    nearest = np.argsort(-similarity.toarray(), axis=1)[:, :k]
    votes = np.stack([(context.obs["cell_type"].cat.codes.to_numpy()[nearest] == i).sum(1) for i in range(4)], 1)
    return balanced_accuracy_score(target.obs["cell_type"].cat.codes, votes.argmax(1))


def centred(values):
    return values - values.mean(axis=1, keepdims=True)


def test_shapes_and_counts(pair):
    assert list(pair) == ["mouse", "human"]
    assert pair["mouse"].shape == (400, 300)
    assert pair["human"].shape == (300, 280)
    for adata in pair.values():
        assert sparse.issparse(adata.X)
        assert adata.X.format == "csr"
        assert adata.X.dtype == np.float32
        assert adata.X.has_canonical_format
        assert (adata.X.data == np.round(adata.X.data)).all()
        assert adata.X.data.min() >= 1
        assert 0.2 < adata.X.nnz / np.prod(adata.shape) < 0.45
        assert adata.obs["cell_type"].cat.categories.tolist() == ["T1a", "T1b", "T2a", "T2b"]
        assert adata.obs["batch"].nunique() == 2
        assert adata.var["is_shared"].sum() == 200
        assert adata.obs_names.is_unique
        assert adata.var_names.is_unique
        pairs = adata.obs["cell_type"].astype(str).str[:2]
        assert (pairs == adata.obs["sibling_pair"].astype(str)).all()
        sizes = adata.obs["cell_type"].value_counts()
        assert sizes.max() / sizes.min() == pytest.approx(3, rel=0.1)
    assert not set(pair["mouse"].obs_names) & set(pair["human"].obs_names)


@pytest.mark.parametrize("preset", ["easy", "medium", "hard"])
def test_presets_have_the_sizes_of_the_medium_pair(preset):
    adatas = simulate_species(preset, n_cells=60)
    assert adatas["mouse"].shape == (60, 1500)
    assert adatas["human"].shape == (60, 1400)
    assert adatas["human"].var["is_shared"].sum() == 1000
    assert adatas["mouse"].obs["cell_type"].nunique() == 8 + (preset == "hard")


def test_seed():
    first, again, other = (simulate_species("tiny", seed=seed) for seed in (3, 3, 4))
    for name in first:
        assert (first[name].X != again[name].X).nnz == 0
        assert first[name].var_names.equals(again[name].var_names)
        np.testing.assert_array_equal(first[name].varm["true_log_mean"], again[name].varm["true_log_mean"])
        pd.testing.assert_frame_equal(first[name].obs, again[name].obs)
        assert (first[name].X != other[name].X).nnz > 0
    pd.testing.assert_frame_equal(first["human"].uns["orthologs"], again["human"].uns["orthologs"])


def test_global_generator_is_left_alone():
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    simulate_species("tiny")
    np.testing.assert_array_equal(before, np.random.get_state()[1])


def test_divergence_leaves_the_context_as_it_was():
    near, far = (simulate_species("tiny", divergence=d)["mouse"] for d in (0, 2))
    assert (near.X != far.X).nnz == 0


def test_names_carry_nothing_across_species(pair):
    mouse, human = pair.values()
    assert not set(mouse.var_names.str.casefold()) & set(human.var_names.str.casefold())
    left, right = one_to_one(pair)
    number = [np.array([int(name[-5:]) for name in names]) for names in (left, right)]
    position = [mouse.var_names.get_indexer(left), human.var_names.get_indexer(right)]
    for a, b in (number, position):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.3
        assert (a == b).mean() < 0.1


def test_table_pairs_the_right_genes():
    adatas = simulate_species("tiny", divergence=0, marker_share=0.6, unmeasured_share=0.1)
    mouse, human = adatas.values()
    table = human.uns["orthologs"]
    assert list(table.columns) == ["context", "target"]
    assert not table.duplicated().any()
    measured = table[table["context"].isin(mouse.var_names) & table["target"].isin(human.var_names)]
    assert len(table) - len(measured) == 20
    counts = measured["context"].map(measured["context"].value_counts()) * measured["target"].map(
        measured["target"].value_counts()
    )
    one = measured[counts == 1]
    assert len(one) > len(measured) / 2
    assert set(zip(*one_to_one(adatas), strict=True)) == set(one.itertuples(index=False, name=None))

    left, right = (
        centred(adata[:, one[column]].varm["true_log_mean"])
        for adata, column in ((mouse, "context"), (human, "target"))
    )
    # A constant per type, the other genes of a species, is all that may differ.
    left, right = left - left.mean(0), right - right.mean(0)
    np.testing.assert_allclose(left, right, atol=1e-10)
    mispaired = [np.corrcoef(a, b)[0, 1] for a, b in zip(left, np.roll(right, 1, axis=0), strict=True)]
    assert abs(np.mean(mispaired)) < 0.3


def test_pairs_correlate_across_types_after_divergence():
    adatas = simulate_species(n_cells=20)
    left, right = (
        centred(adata[:, genes].varm["true_log_mean"])
        for adata, genes in zip(adatas.values(), one_to_one(adatas), strict=True)
    )
    varies = left.std(1) > 0.5
    left, right = left[varies], right[varies]
    paired, mispaired = (
        np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(left, other, strict=True)])
        for other in (right, np.roll(right, 1, axis=0))
    )
    assert paired > 0.6
    assert abs(mispaired) < 0.2


def test_unmeasured_rows_touch_no_shared_gene(pair):
    mouse, human = pair.values()
    table = human.uns["orthologs"]
    left, right = table["context"].isin(mouse.var_names), table["target"].isin(human.var_names)
    partial = table[~(left & right)]
    assert (left & ~right).any()
    assert (~left & right).any()
    assert (~left & ~right).any()
    assert not partial["context"].isin(mouse.var_names[mouse.var["is_shared"]]).any()
    assert not partial["target"].isin(human.var_names[human.var["is_shared"]]).any()


@pytest.mark.parametrize(("share", "genes"), [(0, 0), (0.25, 50), (1, 200)])
def test_share_of_many_to_many_genes(share, genes):
    human = simulate_species("tiny", many_to_many=share)["human"]
    kinds = human.var.query("is_shared")["orthology"].value_counts()
    assert kinds.sum() == 200
    assert kinds.drop("one2one", errors="ignore").sum() == genes
    if genes:
        assert kinds["one2many"] == 2 * kinds["many2one"] == kinds["many2many"]


@pytest.mark.parametrize("divergence", [0, 1])
def test_sums_of_paralogues_follow_the_programme(divergence):
    adatas = simulate_species("tiny", many_to_many=1, marker_share=0.6, divergence=divergence)
    mouse, human = adatas.values()
    sums, single = [], []
    for _, members in human.var.query("is_shared").groupby("ortholog"):
        context = mouse[:, members["ortholog"].iloc[0].split(";")].varm["true_log_mean"]
        target = human[:, members.index].varm["true_log_mean"]
        total = np.log(np.exp(target).sum(0)) - np.log(np.exp(context).sum(0))
        truth = human[:, members.index].varm["true_log_fold_change"]
        np.testing.assert_allclose(truth, np.tile(total, (len(members), 1)))
        np.testing.assert_allclose(members["log_fold_change"], total.mean())
        sums.append(total.std())
        single.append((target[0] - context[0]).std())
    if divergence == 0:
        # What is left in the sums is one constant a type: the other genes of the two species.
        assert np.mean(sums) < 0.3 * np.mean(single)
    else:
        assert np.mean(sums) > 0.2


@pytest.mark.parametrize("divergence", [0.2, 1])
def test_log_fold_changes_are_in_the_counts(divergence):
    adatas = simulate_species("tiny", n_cells=2000, divergence=divergence, batch_sd=0.05)
    mouse, human = adatas.values()
    left, right = one_to_one(adatas)
    types = mouse.uns["simulation"]["types"]
    for adata in (mouse, human):
        np.testing.assert_allclose(np.exp(adata.varm["true_log_mean"]).sum(0), 1e4)
    estimate = {}
    for name, adata, genes in (("mouse", mouse, left), ("human", human, right)):
        column = adata.var_names.get_indexer(genes)
        estimate[name] = np.stack([per_10k(adata[adata.obs["cell_type"] == label])[column] for label in types], 1)
    seen = (estimate["mouse"] > 5) & (estimate["human"] > 5)
    ratio = np.log(estimate["human"][seen] / estimate["mouse"][seen])
    truth = human[:, right].varm["true_log_fold_change"][seen]
    assert np.corrcoef(ratio, truth)[0, 1] > 0.9
    assert np.abs(ratio - truth).mean() < 0.2

    gene = seen.all(1)
    mean_ratio = np.log(estimate["human"][gene] / estimate["mouse"][gene]).mean(1)
    assert np.corrcoef(mean_ratio, human[:, right].var["log_fold_change"][gene])[0, 1] > 0.9
    np.testing.assert_allclose(
        mouse[:, left].var["log_fold_change_human"].to_numpy(), human[:, right].var["log_fold_change"].to_numpy()
    )
    alone = ~human.var["is_shared"]
    assert human.var.loc[alone, "log_fold_change"].isna().all()
    assert (human.var.loc[alone, "ortholog"] == "").all()
    assert (human.var.loc[alone, "orthology"] == "none").all()


def test_expression_shift_has_the_asked_spread():
    human = simulate_species(
        n_cells=20, divergence=0.5, species_sd=1.0, type_shift_share=0, marker_turnover=0, many_to_many=0
    )["human"]
    assert human.var["log_fold_change"].std() == pytest.approx(0.5, rel=0.1)
    assert human.varm["true_log_fold_change"][human.var["is_shared"]].std(1).mean() < 0.2


def test_markers_are_raised_where_they_are_said_to_be(pair):
    mouse = pair["mouse"]
    types = list(mouse.uns["simulation"]["types"])
    contrast = centred(mouse.varm["true_log_mean"])
    for label in mouse.var["marker_of"].unique():
        if label:
            columns = [i for i, name in enumerate(types) if name.startswith(label)]
            assert contrast[np.ix_(mouse.var["marker_of"] == label, columns)].mean() > 0.15
    assert (mouse.var["marker_of"] == "").any()


def test_types_of_one_species():
    adatas = simulate_species("tiny", context_only_types=2, target_only_types=1)
    mouse, human = (set(adata.obs["cell_type"].cat.categories) for adata in adatas.values())
    assert mouse - human == {"mouse_only_1", "mouse_only_2"}
    assert human - mouse == {"human_only_1"}
    assert len(mouse & human) == 4
    for adata in adatas.values():
        types = list(adata.uns["simulation"]["types"])
        assert types == adata.obs["cell_type"].cat.categories.tolist()
        assert adata.varm["true_log_mean"].shape == (adata.n_vars, len(types))
        assert adata.obs["cell_type"].value_counts().min() > 0
    truth = adatas["human"].varm["true_log_fold_change"]
    own = list(adatas["human"].uns["simulation"]["types"]).index("human_only_1")
    shared = adatas["human"].var["is_shared"]
    assert np.isnan(truth[:, own]).all()
    assert np.isfinite(np.delete(truth, own, axis=1)[shared]).all()


def test_divergence_makes_the_vote_fail():
    none, easy, wide = (vote(simulate_species("tiny", divergence=d)) for d in (0, None, 1.5))
    assert none > 0.95
    assert easy > 0.9
    assert wide < none - 0.2


def test_library_sizes():
    adatas = simulate_species("tiny", n_cells=1000, library_size={"human": 150.0}, library_sd=0.5)
    default = simulate_species("tiny")
    for adata in adatas.values():
        total = np.asarray(adata.X.sum(1)).ravel()
        assert np.corrcoef(np.log(total + 1), np.log(adata.obs["library_size"]))[0, 1] > 0.9
        assert np.log(adata.obs["library_size"]).groupby(adata.obs["batch"], observed=True).std().mean() > 0.4
    assert adatas["human"].obs["library_size"].mean() == pytest.approx(150, rel=0.1)
    expected = default["mouse"].obs["library_size"].mean()
    assert adatas["mouse"].obs["library_size"].mean() == pytest.approx(expected, rel=0.15)


def test_batch_effects_are_in_the_counts():
    mouse = simulate_species("tiny", n_cells=3000, batch_sd=0.5)["mouse"]
    batches = list(mouse.uns["simulation"]["batches"])
    assert batches == mouse.obs["batch"].cat.categories.tolist() == ["mouse_batch_1", "mouse_batch_2"]
    first, second = (per_10k(mouse[mouse.obs["batch"] == name]) for name in batches)
    seen = (first > 5) & (second > 5)
    planted = np.diff(mouse.varm["batch_effect"], axis=1).ravel()
    assert np.corrcoef(np.log(second / first)[seen], planted[seen])[0, 1] > 0.9
    assert planted.std() == pytest.approx(0.5 * np.sqrt(2), rel=0.15)
    size = mouse.obs.groupby("batch", observed=True)["library_size"].mean()
    assert abs(np.log(size.iloc[0] / size.iloc[1])) > 0.02


def test_counts_are_overdispersed():
    mouse = simulate_species("tiny", n_cells=2000, library_sd=0, batch_sd=0, n_batches=1, inverse_dispersion=0.5)[
        "mouse"
    ]
    cells = mouse[mouse.obs["cell_type"] == "T1a"].X.toarray()
    mean, inverse = cells.mean(0), mouse.var["inverse_dispersion"].to_numpy()
    seen = mean > 0.5
    expected = mean + mean**2 / inverse
    assert np.median(cells.var(0)[seen] / expected[seen]) == pytest.approx(1, abs=0.1)


def test_three_species():
    adatas = simulate_species(
        "tiny",
        species=("mouse", "human", "zebrafish"),
        n_cells={"zebrafish": 120},
        n_shared_genes={"human": 200, "zebrafish": 60},
        n_batches={"zebrafish": 1},
    )
    mouse, human, fish = adatas.values()
    assert [adata.n_obs for adata in adatas.values()] == [400, 300, 120]
    assert [adata.n_vars for adata in adatas.values()] == [300, 280, 140]
    assert fish.obs["batch"].nunique() == 1
    assert "orthologs" not in mouse.uns
    for name, n_shared in (("human", 200), ("zebrafish", 60)):
        adata = adatas[name]
        table = adata.uns["orthologs"]
        assert adata.var["is_shared"].sum() == n_shared
        assert (mouse.var[f"orthology_{name}"] != "none").sum() == n_shared
        measured = table[table["context"].isin(mouse.var_names) & table["target"].isin(adata.var_names)]
        assert set(measured["target"]) == set(adata.var_names[adata.var["is_shared"]])
    either = (mouse.var["orthology_human"] != "none") | (mouse.var["orthology_zebrafish"] != "none")
    assert (either == mouse.var["is_shared"]).all()
    assert len({name for adata in adatas.values() for name in adata.obs_names}) == 820


def test_h5ad_round_trip(pair, tmp_path):
    for name, adata in pair.items():
        path = tmp_path / f"{name}.h5ad"
        adata.write_h5ad(path)
        back = ad.read_h5ad(path)
        assert (back.X != adata.X).nnz == 0
        for left, right in ((back.obs, adata.obs), (back.var, adata.var)):
            pd.testing.assert_frame_equal(
                left, right, check_dtype=False, check_index_type=False, check_categorical=False
            )
            assert list(left.columns) == list(right.columns)
        assert set(back.varm) == set(adata.varm)
        for key in adata.varm:
            np.testing.assert_array_equal(back.varm[key], adata.varm[key])
        assert set(back.uns) == set(adata.uns)
        before, after = adata.uns["simulation"], back.uns["simulation"]
        assert set(before) == set(after)
        assert after["preset"] == "tiny"
        assert after["seed"] == 1
        assert after["many_to_many"] == 0.25
        assert list(after["types"]) == list(before["types"])
        assert {key: int(value) for key, value in after["n_cells"].items()} == before["n_cells"]
        if "orthologs" in adata.uns:
            table = back.uns["orthologs"].reset_index(drop=True)
            assert table.astype(str).equals(adata.uns["orthologs"].astype(str))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "huge"}, "preset: expected one of tiny, easy, medium, hard, but got 'huge'"),
        ({"species": ("mouse",)}, "species: expected at least two"),
        ({"species": "mouse"}, "species: expected at least two"),
        ({"species": ("mouse", "Mouse")}, "species: expected names that differ"),
        ({"species": ("mouse", "")}, "species: expected non-empty"),
        ({"n_cells": 0}, "n_cells: expected a whole number of at least 1, but got 0"),
        ({"n_cells": {"human": 2.5}}, "n_cells: expected a whole number"),
        ({"n_cells": {"rat": 10}}, "n_cells: expected the species .* but got .'rat'."),
        ({"n_cells": {"human": 3}}, "n_cells: expected at least one cell for each of the 4 cell types of 'human'"),
        ({"n_shared_genes": -5}, "n_shared_genes: expected"),
        ({"n_shared_genes": {"mouse": 5}}, "n_shared_genes: expected the species"),
        ({"n_specific_genes": -1}, "n_specific_genes: expected a whole number of at least 0"),
        ({"n_types": 0}, "n_types: expected"),
        ({"n_batches": 0}, "n_batches: expected"),
        ({"context_only_types": -1}, "context_only_types: expected"),
        ({"target_only_types": True}, "target_only_types: expected"),
        ({"divergence": -0.1}, "divergence: expected a number of at least 0"),
        ({"species_sd": np.nan}, "species_sd: expected"),
        ({"library_size": 0}, "library_size: expected a positive number"),
        ({"inverse_dispersion": 0}, "inverse_dispersion: expected a positive number"),
        ({"size_ratio": -1}, "size_ratio: expected a positive number"),
        *[
            ({key: 1.5}, f"{key}: expected a share from 0 to 1, but got 1.5")
            for key in ("many_to_many", "marker_share", "marker_turnover", "sibling_share", "type_shift_share")
        ],
    ],
)
def test_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        simulate_species(**({"preset": "tiny"} | arguments))


@pytest.mark.parametrize(
    "arguments",
    [
        {"n_types": 1},
        {"n_types": 3},
        {"n_specific_genes": 0},
        {"n_shared_genes": 1},
        {"unmeasured_share": 0},
        {"n_cells": 4},
        {"many_to_many": 0},
    ],
)
def test_small_settings(arguments):
    adatas = simulate_species("tiny", **arguments)
    for adata in adatas.values():
        assert adata.obs["cell_type"].value_counts().min() >= 1
        assert np.isfinite(adata.varm["true_log_mean"]).all()
    assert len(adatas["human"].uns["orthologs"]) >= 1


def test_chunks_of_cells_have_no_seam():
    mouse = simulate_species("tiny", n_cells=4500)["mouse"]
    assert mouse.n_obs == 4500
    total = np.asarray(mouse.X.sum(1)).ravel() / mouse.obs["library_size"].to_numpy()
    assert total[:2000].mean() == pytest.approx(total[4000:].mean(), rel=0.05)
