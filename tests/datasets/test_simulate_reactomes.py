"""Simulated reactomes: what was asked for is there, and what is stored as truth is what made the samples."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from transverse.datasets import simulate_reactomes

SMALL = {"n_genes": 120, "n_organs": 4, "n_drugs": 2, "n_animals": 3}


@pytest.fixture(scope="module")
def pair():
    return simulate_reactomes(seed=1)


@pytest.fixture(scope="module")
def small():
    return simulate_reactomes(**SMALL, missing=[("brain", "drug A"), ("liver", "drug B")], seed=2)


def reactome(adata, layer=None):
    """Mean of treated less mean of control, genes x "organ|drug", of X or a layer."""
    values = pd.DataFrame(adata.to_df(layer).astype(float).to_numpy(), columns=adata.var_names)
    mean = values.groupby([adata.obs["organ"].astype(str).to_numpy(), adata.obs["drug"].astype(str).to_numpy()]).mean()
    return pd.DataFrame(
        {f"{o}|{d}": mean.loc[(o, d)] - mean.loc[(o, "control")] for o, d in mean.index if d != "control"}
    )


def correlations(left, right):
    """Pearson correlation of every row of one with every row of the other."""
    left, right = (values - values.mean(1, keepdims=True) for values in (np.asarray(left), np.asarray(right)))
    left, right = (values / np.linalg.norm(values, axis=1, keepdims=True) for values in (left, right))
    return left @ right.T


def by_symbol(source, target):
    """The namesake in the target of every gene of the source."""
    return pd.Series(target.var_names, index=target.var["symbol"].str.casefold())[
        source.var["symbol"].str.casefold()
    ].to_numpy()


def counterparts(source, target):
    return target.uns["gene_map"].set_index("source").loc[source.var_names, "target"].to_numpy()


def test_shapes_and_scales(pair):
    assert list(pair) == ["mouse", "rat"]
    for name, adata in pair.items():
        assert adata.shape == (480, 600)
        assert adata.X.dtype == adata.layers["counts"].dtype == adata.layers["expected"].dtype == np.float32
        counts = adata.layers["counts"]
        assert (counts == np.round(counts)).all()
        assert counts.min() >= 0
        per_10k = 1e4 * counts / counts.sum(1, keepdims=True, dtype=float)
        np.testing.assert_allclose(adata.X, np.log1p(per_10k), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(np.expm1(adata.layers["expected"].astype(float)).sum(1), 1e4, rtol=1e-4)
        assert counts.sum(1).mean() == pytest.approx(1e6, rel=0.1)
        assert np.corrcoef(counts.sum(1), adata.obs["library_size"])[0, 1] > 0.9
        assert list(adata.obs) == ["species", "organ", "drug", "animal", "library_size"]
        assert all(isinstance(adata.obs[key].dtype, pd.CategoricalDtype) for key in list(adata.obs)[:4])
        assert adata.obs["species"].eq(name).all()
        assert adata.obs["drug"].cat.categories.tolist() == ["control", "drug A", "drug B", "drug C"]
        assert adata.obs["organ"].nunique() == 10
        assert adata.obs_names.is_unique
        assert adata.var_names.is_unique
        assert adata.uns["true_reactome"].shape == (600, 30)
    assert not set(pair["mouse"].obs_names) & set(pair["rat"].obs_names)
    assert not set(pair["mouse"].var_names) & set(pair["rat"].var_names)


def test_animals_have_one_treatment_and_give_every_organ(pair):
    for adata in pair.values():
        by_animal = adata.obs.groupby("animal", observed=True)
        assert (by_animal["drug"].nunique() == 1).all()
        assert (by_animal["organ"].nunique() == 10).all()
        assert (by_animal.size() == 10).all()
        assert adata.obs.groupby("drug", observed=True)["animal"].nunique().tolist() == [12] * 4
    assert not set(pair["mouse"].obs["animal"]) & set(pair["rat"].obs["animal"])


def test_true_reactome_is_the_difference_of_expected_values(pair):
    for adata in pair.values():
        truth = adata.uns["true_reactome"]
        assert truth.index.equals(adata.var_names)
        measured = reactome(adata, "expected")[truth.columns]
        np.testing.assert_allclose(measured, truth, atol=1e-5)
        by_state = adata.to_df("expected").groupby([adata.obs["organ"], adata.obs["drug"]], observed=True)
        assert (by_state.nunique() == 1).to_numpy().all()


def test_samples_follow_the_expected_values(pair):
    for adata in pair.values():
        responds = (adata.var["module"] != "none").to_numpy()
        truth = adata.uns["true_reactome"]
        measured = reactome(adata)[truth.columns]
        assert np.median(np.diag(correlations(measured[responds], truth[responds]))) > 0.85
        mean = adata.to_df().mean(), adata.to_df("expected").mean()
        assert np.corrcoef(*mean)[0, 1] > 0.995


def test_log_response_is_what_its_parameters_say():
    mouse, rat = simulate_reactomes(n_genes=1500, response_sd=0.4, response_divergence=0.25, seed=3).values()
    left = mouse.uns["true_log_response"]
    right = rat.uns["true_log_response"].loc[counterparts(mouse, rat)]
    responds = (mouse.var["module"] != "none").to_numpy()
    assert responds.mean() == 0.7
    assert (left[~responds] == 0).to_numpy().all()
    assert (right.to_numpy()[~responds] == 0).all()
    assert left[responds].std(axis=1).mean() == pytest.approx(0.4, rel=0.2)
    left, right = left.to_numpy()[responds].ravel(), right.to_numpy()[responds].ravel()
    assert left @ right / (left @ left) == pytest.approx(0.75, abs=0.02)
    assert (right @ right) / (left @ left) == pytest.approx(1, rel=0.2)


def test_genes_of_a_module_respond_alike(pair):
    truth, module = pair["mouse"].uns["true_log_response"], pair["mouse"].var["module"]
    responds = (module != "none").to_numpy()
    r = correlations(truth[responds], truth[responds])
    same = module[responds].to_numpy()[:, None] == module[responds].to_numpy()
    off = ~np.eye(len(r), dtype=bool)
    assert r[same & off].mean() > 0.3
    assert abs(r[~same].mean()) < 0.1


def test_organ_specificity():
    shared = simulate_reactomes(**SMALL, organ_specificity=0)["mouse"].uns["true_log_response"]
    for drug in ("drug A", "drug B"):
        columns = [column for column in shared if column.endswith(drug)]
        np.testing.assert_allclose(shared[columns].std(axis=1), 0, atol=1e-12)


def test_counterparts_respond_alike_and_namesakes_of_diverged_genes_do_not(pair):
    mouse, rat = pair.values()
    table = rat.uns["gene_map"]
    assert list(table.columns) == ["source", "target", "is_diverged"]
    assert set(table["source"]) == set(mouse.var_names)
    assert set(table["target"]) == set(rat.var_names)
    rows = table.set_index("target").loc[rat.var_names]
    assert (rows["source"] == rat.var["counterpart"]).all()
    assert (rows["is_diverged"] == rat.var["is_diverged"]).all()
    assert (mouse.var["counterpart"] == "").all()
    assert (mouse.var["is_diverged"].to_numpy() == table.set_index("source").loc[mouse.var_names, "is_diverged"]).all()

    functional, symbol = counterparts(mouse, rat), by_symbol(mouse, rat)
    responds = (mouse.var["module"] != "none").to_numpy()
    left, right = mouse.uns["true_reactome"], rat.uns["true_reactome"]
    r = np.diag(correlations(left[responds], right.loc[functional[responds]]))
    assert r.mean() > 0.8
    chosen = responds & mouse.var["is_diverged"].to_numpy()
    r = np.diag(correlations(left[chosen], right.loc[symbol[chosen]]))
    assert abs(r.mean()) < 0.1
    assert (mouse.var["module"].to_numpy() == rat.var.loc[functional, "module"].to_numpy()).all()
    chosen = mouse.var["is_diverged"].to_numpy()
    assert (mouse.var["module"].to_numpy()[chosen] != rat.var.loc[symbol[chosen], "module"].to_numpy()).all()


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_symbols_are_wrong_on_exactly_the_diverged_genes(share):
    mouse, rat = simulate_reactomes(**SMALL, diverged_share=share).values()
    right = by_symbol(mouse, rat) == counterparts(mouse, rat)
    assert right.mean() == pytest.approx(1 - share)
    assert (right == ~mouse.var["is_diverged"]).all()
    assert mouse.var["symbol"].str.fullmatch(r"Gene\d{4}").all()
    assert rat.var["symbol"].str.fullmatch(r"GENE\d{4}").all()
    assert mouse.var["symbol"].is_unique
    assert set(mouse.var["symbol"].str.upper()) == set(rat.var["symbol"])


def test_diverged_genes_of_few_modules_change_their_namesake_all_the_same():
    for settings in ({"n_modules": 1, "response_share": 1.0}, {"response_share": 0.1}, {"diverged_share": 2 / 120}):
        mouse, rat = simulate_reactomes(**SMALL, **settings).values()
        wrong = by_symbol(mouse, rat) != counterparts(mouse, rat)
        assert wrong.sum() == mouse.var["is_diverged"].sum() > 0
        assert np.isfinite(mouse.uns["true_reactome"]).to_numpy().all()


def test_names_and_positions_carry_nothing(pair):
    mouse, rat = pair.values()
    functional = counterparts(mouse, rat)
    position = rat.var_names.get_indexer(functional)
    number = [np.array([int(name[-5:]) for name in names]) for names in (mouse.var_names, functional)]
    for a, b in ((np.arange(600), position), number, (np.arange(600), number[0])):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.2
        assert (a == b).mean() < 0.02
    symbol = mouse.var["symbol"].str[4:].astype(int)
    assert abs(np.corrcoef(symbol, np.arange(600))[0, 1]) < 0.2
    order = pair["mouse"].obs["organ"].cat.codes
    assert (order.diff() == 0).mean() < 0.3


def test_defaults_are_neither_trivial_nor_hopeless(pair):
    mouse, rat = pair.values()
    r = correlations(reactome(mouse), reactome(rat).loc[counterparts(mouse, rat), reactome(mouse).columns])
    assert 0.15 < (r.argmax(1) == np.arange(600)).mean() < 0.5


def organ_accuracy(train, train_organ, test, test_organ):
    """Accuracy of the organ mean that correlates best, genes centred in each set."""
    train, test = train - train.mean(0), test - test.mean(0)
    organs = np.unique(train_organ)
    centroids = np.stack([train[train_organ == organ].mean(0) for organ in organs])
    return (organs[correlations(test, centroids).argmax(1)] == test_organ).mean()


def test_organs_stand_apart(pair):
    mouse, rat = pair.values()
    for adata in pair.values():
        half = (adata.obs["animal"].cat.codes % 2 == 0).to_numpy()
        organ = adata.obs["organ"].to_numpy()
        assert organ_accuracy(adata.X[half], organ[half], adata.X[~half], organ[~half]) > 0.98
    organs = mouse.obs["organ"].to_numpy(), rat.obs["organ"].to_numpy()
    functional = rat[:, counterparts(mouse, rat)].X
    assert organ_accuracy(mouse.X, organs[0], functional, organs[1]) > 0.9
    assert organ_accuracy(mouse.X, organs[0], rat.X, organs[1]) < 0.4


def test_animals_share_an_effect_over_their_organs():
    adata = simulate_reactomes(**SMALL, animal_sd=0.5, inverse_dispersion=1e4)["mouse"]
    residual = adata.X - adata.layers["expected"]
    animal = adata.obs["animal"].to_numpy()
    r = np.corrcoef(residual)
    same = (animal[:, None] == animal) & ~np.eye(len(animal), dtype=bool)
    assert r[same].mean() > 0.8
    assert abs(r[animal[:, None] != animal].mean()) < 0.2


def test_missing_cells_are_absent_in_targets_only(small):
    whole = simulate_reactomes(**SMALL, seed=2)
    mouse, rat = small.values()
    assert mouse.n_obs == whole["mouse"].n_obs == 36
    state = rat.obs["organ"].astype(str) + "|" + rat.obs["drug"].astype(str)
    assert not state.isin(["brain|drug A", "liver|drug B"]).any()
    assert rat.n_obs == 36 - 2 * 3
    assert rat.uns["simulation"]["missing"].tolist() == ["brain|drug A", "liver|drug B"]
    assert mouse.uns["simulation"]["missing"].tolist() == []
    assert "brain|drug A" in rat.uns["true_reactome"]
    np.testing.assert_array_equal(whole["rat"][rat.obs_names].layers["counts"], rat.layers["counts"])


def test_share_of_missing_cells():
    adatas = simulate_reactomes(**SMALL, species=("mouse", "rat", "human"), missing=0.5, seed=4)
    lost = {name: set(adata.uns["simulation"]["missing"]) for name, adata in adatas.items()}
    assert [len(lost[name]) for name in adatas] == [0, 4, 4]
    assert lost["rat"] != lost["human"]
    for name in ("rat", "human"):
        assert (adatas[name].obs["drug"] == "control").sum() == 12
    controls = simulate_reactomes(**SMALL, missing=1.0)["rat"]
    assert controls.obs["drug"].cat.categories.tolist() == ["control"]
    assert controls.obs["animal"].nunique() == len(controls.obs["animal"].cat.categories) == 3


def test_several_targets():
    mouse, rat, human = simulate_reactomes(**SMALL, species=("mouse", "rat", "human"), seed=5).values()
    for target in (rat, human):
        wrong = by_symbol(mouse, target) != counterparts(mouse, target)
        assert wrong.sum() == target.var["is_diverged"].sum() == 36
    either = set(rat.var["counterpart"][rat.var["is_diverged"]]) | set(
        human.var["counterpart"][human.var["is_diverged"]]
    )
    assert set(mouse.var_names[mouse.var["is_diverged"]]) == either
    assert 36 < len(either) < 72


def test_seed():
    first, again, other = (simulate_reactomes(**SMALL, seed=seed) for seed in (3, 3, 4))
    for name in first:
        for layer in (None, "counts", "expected"):
            pd.testing.assert_frame_equal(first[name].to_df(layer), again[name].to_df(layer))
        pd.testing.assert_frame_equal(first[name].obs, again[name].obs)
        pd.testing.assert_frame_equal(first[name].var, again[name].var)
        pd.testing.assert_frame_equal(first[name].uns["true_reactome"], again[name].uns["true_reactome"])
        assert (first[name].X != other[name].X).any()
    pd.testing.assert_frame_equal(first["rat"].uns["gene_map"], again["rat"].uns["gene_map"])


def test_divergence_and_animals_leave_the_rest_as_it_was():
    base = simulate_reactomes(**SMALL)
    far = simulate_reactomes(**SMALL, response_divergence=0.5, organ_divergence=0.9, diverged_share=0.6, species_sd=1)
    np.testing.assert_array_equal(base["mouse"].X, far["mouse"].X)
    more = simulate_reactomes(**SMALL | {"n_animals": 5})
    for name in base:
        pd.testing.assert_frame_equal(base[name].uns["true_reactome"], more[name].uns["true_reactome"])
        pd.testing.assert_frame_equal(base[name].var, more[name].var)


def test_global_generator_is_left_alone():
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    simulate_reactomes(**SMALL)
    np.testing.assert_array_equal(before, np.random.get_state()[1])


def test_round_trip(small, tmp_path):
    for name, adata in small.items():
        adata.write_h5ad(tmp_path / f"{name}.h5ad")
        back = ad.read_h5ad(tmp_path / f"{name}.h5ad")
        np.testing.assert_array_equal(back.X, adata.X)
        np.testing.assert_array_equal(back.layers["expected"], adata.layers["expected"])
        np.testing.assert_array_equal(back.layers["counts"], adata.layers["counts"])
        assert back.var_names.tolist() == adata.var_names.tolist()
        assert back.obs["drug"].cat.categories.equals(adata.obs["drug"].cat.categories)
        assert back.var["counterpart"].astype(str).tolist() == adata.var["counterpart"].tolist()
        assert back.uns["simulation"]["missing"].tolist() == adata.uns["simulation"]["missing"].tolist()
        assert back.uns["simulation"]["drugs"].tolist() == ["drug A", "drug B"]
        np.testing.assert_array_equal(back.uns["true_reactome"], adata.uns["true_reactome"])
        assert back.uns["true_reactome"].columns.tolist() == adata.uns["true_reactome"].columns.tolist()
    assert back.uns["gene_map"]["is_diverged"].tolist() == small["rat"].uns["gene_map"]["is_diverged"].tolist()
    assert back.uns["gene_map"]["target"].astype(str).tolist() == small["rat"].uns["gene_map"]["target"].tolist()


def test_many_organs_and_drugs_have_names():
    mouse = simulate_reactomes(n_genes=20, n_organs=12, n_drugs=27, n_animals=1)["mouse"]
    assert mouse.obs["organ"].cat.categories[-2:].tolist() == ["organ 11", "organ 12"]
    assert "drug 27" in mouse.obs["drug"].cat.categories


@pytest.mark.parametrize(
    ("argument", "value", "found"),
    [
        ("species", ("mouse",), "at least two"),
        ("species", "mouse", "at least two"),
        ("species", ("mouse", "Mouse"), "more than case"),
        ("n_organs", 0, "at least 1"),
        ("n_drugs", 0, "at least 1"),
        ("n_drugs", 2.5, "2.5"),
        ("n_animals", True, "True"),
        ("n_genes", 1, "at least 2"),
        ("n_modules", 0, "at least 1"),
        ("module_mixing", 1.1, "0 to 1"),
        ("response_share", -0.1, "0 to 1"),
        ("organ_specificity", 2, "0 to 1"),
        ("diverged_share", float("nan"), "0 to 1"),
        ("diverged_share", 0.01, "single gene"),
        ("response_divergence", "high", "0 to 1"),
        ("organ_divergence", -1, "0 to 1"),
        ("response_sd", -1, "at least 0"),
        ("organ_effect_sd", float("inf"), "at least 0"),
        ("species_sd", -1, "at least 0"),
        ("animal_sd", -1, "at least 0"),
        ("base_sd", -1, "at least 0"),
        ("library_sd", -1, "at least 0"),
        ("library_size", 0, "positive"),
        ("inverse_dispersion", 0, "positive"),
        ("missing", 1.5, "0 to 1"),
        ("missing", True, "list of pairs"),
        ("missing", "brain", "list of pairs"),
        ("missing", [("brain", "control")], "'drug A', 'drug B'"),
        ("missing", [("skin", "drug A")], "'brain', 'heart'"),
        ("missing", ["brain"], "pairs of an organ"),
        ("missing", [("brain", "drug A")] * 2, "repeat"),
    ],
)
def test_refused(argument, value, found):
    settings = SMALL | {"n_genes": 100} | {argument: value}
    with pytest.raises(ValueError, match=f"^{argument}: .*{found}"):
        simulate_reactomes(**settings)
