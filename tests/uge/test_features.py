"""Features of genes: derived again with pandas, from the samples that they may be of, and from no others."""

import itertools

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData

from transverse.uge._features import gene_features

from .conftest import build, dense, same, train

SPECIES, ORGANS, DRUGS = ["mouse", "rat"], ["brain", "gut", "liver", "skin"], ["A", "B", "C"]
# skin has no controls in the rat and the gut none in the mouse; C is a drug of the rat's skin alone
MISSING = {("rat", "skin", "control"), ("mouse", "gut", "control"), ("rat", "liver", "B"), ("mouse", "skin", "A")}
N_CHANGES = len(ORGANS) * len(DRUGS)


def make(seed=0, dtype=np.float32):
    """Samples of both species with their genes in turns; animals with one, two or three samples of a condition."""
    rng = np.random.default_rng(seed)
    rows = []
    for species, organ, drug in itertools.product(SPECIES, ORGANS, ["control", *DRUGS]):
        if (species, organ, drug) in MISSING or (drug == "C" and (species, organ) != ("rat", "skin")):
            continue
        for animal in range(rng.integers(2, 4)):
            # an animal has samples of several conditions
            rows += [(species, organ, drug, f"{species[0]}{animal}")] * rng.integers(1, 4)
    obs = pd.DataFrame(rows, columns=["species", "organ", "drug", "animal"])
    obs = obs.iloc[rng.permutation(len(obs))].reset_index(drop=True)
    obs.index = "s" + obs.index.astype(str)
    var = pd.DataFrame({"species": np.tile(SPECIES, 7)[:13]}, index=[f"g{i}" for i in range(13)])
    own = obs["species"].to_numpy()[:, None] == var["species"].to_numpy()
    x = rng.gamma(2.0, rng.uniform(0.2, 1.5, 13), size=own.shape) * (rng.random(own.shape) < 0.8) * own
    x += own * obs["organ"].map({o: i for i, o in enumerate(ORGANS)}).to_numpy()[:, None] * rng.normal(size=13) ** 2 / 4
    return AnnData(sp.csr_matrix(x.astype(dtype)), obs=obs, var=var)


def features(adata, samples=None, drugs=DRUGS, **kwargs):
    options = {
        "species_key": "species",
        "organ_key": "organ",
        "drug_key": "drug",
        "control": "control",
        "animal_key": "animal",
        "layer": None,
        "samples": np.ones(adata.n_obs, dtype=bool) if samples is None else samples,
        "profile_weight": 0.8,
        "level_weight": 2.5,
    } | kwargs
    of_gene = np.array([SPECIES.index(name) for name in adata.var["species"]])
    return gene_features(adata, of_gene, SPECIES, ORGANS, drugs, **options)


def by_hand(adata, samples=None, animals=True, units=None):
    """Changes, control means, means over organs, profiles and levels as tables, each gene by itself; and their units."""
    x = pd.DataFrame(dense(adata.X).astype(float), index=adata.obs_names, columns=adata.var_names)
    obs = adata.obs if samples is None else adata.obs[samples]
    changes = pd.DataFrame(index=adata.var_names, columns=pd.MultiIndex.from_product([ORGANS, DRUGS]), dtype=float)
    controls = pd.DataFrame(index=adata.var_names, columns=ORGANS, dtype=float)
    for species in SPECIES:
        genes = adata.var_names[adata.var["species"] == species]
        here = obs[obs["species"] == species]
        values = x.loc[here.index, genes]
        if animals:
            values = values.groupby([here["organ"], here["drug"], here["animal"]], observed=True).mean()
            means = values.groupby(level=["organ", "drug"], observed=True).mean()
        else:
            means = values.groupby([here["organ"], here["drug"]], observed=True).mean()
        for organ in ORGANS:
            if (organ, "control") not in means.index:
                continue
            controls.loc[genes, organ] = means.loc[(organ, "control")]
            for drug in DRUGS:
                if (organ, drug) in means.index:
                    changes.loc[genes, (organ, drug)] = means.loc[(organ, drug)] - means.loc[(organ, "control")]
    of_gene = adata.var["species"].astype(str)
    if units is None:
        units = {
            "change": np.sqrt(np.nanmean(changes.to_numpy() ** 2)),
            "organs": [o for o in ORGANS if controls[o].notna().all()],
        }
    means = controls[units["organs"]].mean(axis=1)
    profile = controls.sub(means, axis=0)
    units.setdefault("centers", profile.groupby(of_gene).mean())
    units.setdefault("level", means.groupby(of_gene).agg(["mean", lambda v: v.std(ddof=0)]))
    for gene in adata.var_names:
        profile.loc[gene] -= units["centers"].loc[of_gene[gene]]
    units.setdefault("profile", np.sqrt(np.nanmean(profile.to_numpy() ** 2)))
    level = (means - of_gene.map(units["level"].iloc[:, 0])) / of_gene.map(units["level"].iloc[:, 1])
    return changes, means, profile, level, units


def assert_features(found, expected, profile_weight=0.8, level_weight=2.5):
    changes, means, profile, level, units = expected
    parts = np.split(found.values, [N_CHANGES, N_CHANGES + len(ORGANS)], axis=1)
    np.testing.assert_allclose(parts[0], changes / units["change"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(parts[1], profile_weight * profile / units["profile"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(parts[2][:, 0], level_weight * level, rtol=1e-5, atol=1e-6)
    assert found.values.dtype == np.float32
    np.testing.assert_allclose(found.mean, means, rtol=1e-6)
    assert found.units.change == pytest.approx(units["change"])
    assert found.units.profile == pytest.approx(units["profile"])
    assert found.units.organs == units["organs"] == ["brain", "liver"]
    for species in SPECIES:
        assert found.units.level[species] == pytest.approx(tuple(units["level"].loc[species]))
        centers = units["centers"].loc[species].dropna()
        assert found.units.organ_means[species] == pytest.approx(centers.to_dict(), rel=1e-6, abs=1e-9)


# ---- values and units


@pytest.mark.parametrize("animals", [True, False])
def test_features_by_hand(animals):
    adata = make()
    found = features(adata, animal_key="animal" if animals else None)
    expected = by_hand(adata, animals=animals)
    assert_features(found, expected)
    # what there is of a species, it has of all of its genes
    measured = expected[0].notna().groupby(adata.var["species"].astype(str)).all().to_numpy()
    np.testing.assert_array_equal(found.is_measured, measured.reshape(2, len(ORGANS), len(DRUGS)))
    np.testing.assert_array_equal(np.isnan(found.values), np.isnan(np.column_stack(expected[0:1] + expected[2:4])))


def test_animals_are_averaged_first():
    """An animal with many samples of a condition counts no more than another."""
    adata = make()
    one, other = (features(adata, animal_key=key).values for key in ("animal", None))
    assert not np.allclose(one, other, equal_nan=True, atol=1e-3)
    # an animal's samples repeated three times change nothing
    rows = np.repeat(np.arange(adata.n_obs), np.where(adata.obs["animal"] == "m1", 3, 1))
    more = AnnData(adata.X[rows], obs=adata.obs.iloc[rows].reset_index(drop=True).rename(index=str), var=adata.var)
    np.testing.assert_allclose(features(more).values, one, rtol=1e-4, atol=1e-5)
    assert not np.allclose(features(more, animal_key=None).values, other, equal_nan=True, atol=1e-3)


def test_what_is_missing_and_where():
    adata = make()
    found = features(adata)
    rat = (adata.var["species"] == "rat").to_numpy()
    changes, profile, level = np.split(found.values, [N_CHANGES, N_CHANGES + len(ORGANS)], axis=1)
    changes = changes.reshape(-1, len(ORGANS), len(DRUGS))
    missing = np.isnan(changes)
    assert missing[rat].all(axis=0).tolist() == missing[rat].any(axis=0).tolist()
    expected = {
        "mouse": {("gut", "A"), ("gut", "B"), ("skin", "A")},
        "rat": {("skin", "A"), ("skin", "B"), ("liver", "B")},
    }
    for species, of_species in (("mouse", missing[~rat]), ("rat", missing[rat])):
        lacking = {(ORGANS[o], DRUGS[k]) for o, k in np.argwhere(of_species.all(axis=0))}
        # C has no controls beside it
        assert lacking == expected[species] | {(organ, "C") for organ in ORGANS}
        np.testing.assert_array_equal(found.is_measured[SPECIES.index(species)], ~of_species[0])
    np.testing.assert_array_equal(np.isnan(profile[rat]).all(axis=0), [False, False, False, True])
    np.testing.assert_array_equal(np.isnan(profile[~rat]).all(axis=0), [False, True, False, False])
    assert not np.isnan(level).any() and not np.isnan(found.mean).any()


def test_units_of_features():
    adata = make()
    changes, profile, level = np.split(features(adata).values.astype(float), [N_CHANGES, N_CHANGES + 4], axis=1)
    assert np.nanmean(changes**2) == pytest.approx(1, rel=1e-5)
    assert np.nanmean(profile**2) == pytest.approx(0.8**2, rel=1e-5)
    for species in SPECIES:
        own = (adata.var["species"] == species).to_numpy()
        np.testing.assert_allclose(np.nansum(profile[own], axis=0), 0, atol=1e-5)
        np.testing.assert_allclose([level[own].mean(), level[own].std()], [0, 2.5], atol=1e-5)


@pytest.mark.parametrize(("profile_weight", "level_weight"), [(1.0, 1.0), (0.0, 3.0), (2.0, 0.0)])
def test_weights_of_features(profile_weight, level_weight):
    adata = make()
    found = features(adata, profile_weight=profile_weight, level_weight=level_weight)
    assert_features(found, by_hand(adata), profile_weight, level_weight)


def test_genes_are_measured_over_the_organs_that_all_species_have():
    """A species' means do not differ from another's for want of an organ."""
    adata = make()
    rows = ((adata.obs["organ"] == "gut") & (adata.obs["drug"] == "control")).to_numpy()
    other = adata.copy()
    x = dense(adata.X)
    x[rows] *= 3
    other.X = sp.csr_matrix(x)
    one, two = features(adata), features(other)
    assert same(one.mean, two.mean) and same(one.values[:, -1], two.values[:, -1])
    assert not same(one.values[:, N_CHANGES + 1], two.values[:, N_CHANGES + 1])


def test_species_without_an_organ_in_common():
    """Each is then relative to what it has."""
    adata = make()
    keep = ((adata.obs["species"] == "mouse") == adata.obs["organ"].isin(["brain", "skin"])).to_numpy()
    found = features(adata, keep)
    assert found.units.organs == []
    controls = adata[keep & (adata.obs["drug"] == "control").to_numpy()]
    for species, organs in (("mouse", ["brain", "skin"]), ("rat", ["gut", "liver"])):
        own = (adata.var["species"] == species).to_numpy()
        here = controls[(controls.obs["species"] == species).to_numpy(), own]
        table = here.to_df().groupby([here.obs["organ"], here.obs["animal"]], observed=True).mean()
        expected = table.groupby(level=0, observed=True).mean()
        assert expected.index.tolist() == organs
        np.testing.assert_allclose(found.mean[own], expected.mean(), rtol=1e-5)


def test_a_species_with_controls_alone():
    adata = make()
    keep = ((adata.obs["species"] == "mouse") | (adata.obs["drug"] == "control")).to_numpy()
    found = features(adata, keep)
    rat = (adata.var["species"] == "rat").to_numpy()
    assert not found.is_measured[1].any() and np.isnan(found.values[rat, :N_CHANGES]).all()
    expected = features(adata)
    # everything else is as it was, changes but for their unit
    assert same(found.values[:, N_CHANGES:], expected.values[:, N_CHANGES:])
    np.testing.assert_allclose(
        found.values[~rat, :N_CHANGES] * found.units.change,
        expected.values[~rat, :N_CHANGES] * expected.units.change,
        rtol=1e-5,
    )


def test_no_drugs():
    adata = make()
    controls = adata[(adata.obs["drug"] == "control").to_numpy()].copy()
    expected = features(adata)
    for of_controls in (features(controls, drugs=[], drug_key=None), features(controls, drugs=[])):
        assert of_controls.values.shape == (13, len(ORGANS) + 1)
        np.testing.assert_allclose(of_controls.values, expected.values[:, N_CHANGES:], rtol=1e-5, atol=1e-6)
        assert of_controls.units.change == 1 and of_controls.is_measured.shape == (2, 4, 0)


def test_nothing_that_changes():
    """Genes and conditions that are all alike have features of 0, not of NaN."""
    adata = make()
    own = adata.obs["species"].to_numpy()[:, None] == adata.var["species"].to_numpy()
    adata.X = own * np.float32(1.5)
    found = features(adata).values
    assert same(np.isnan(found), np.isnan(features(make()).values))
    np.testing.assert_allclose(np.nan_to_num(found), 0, atol=1e-6)


# ---- units of other samples


def test_units_of_other_samples():
    """With the units of some samples, features of others are what they would be beside them."""
    first, second = make(), make(seed=1)
    units = features(first).units
    expected = by_hand(second, units=by_hand(first)[-1])
    assert_features(features(second, units=units), expected)


def test_the_units_of_the_same_samples_change_nothing():
    adata = make()
    one = features(adata)
    assert same(features(adata, units=one.units).values, one.values)


def test_units_of_more_organs_and_species_are_added():
    adata = make()
    keep = ((adata.obs["species"] == "mouse") & (adata.obs["organ"] != "skin")).to_numpy()
    mouse = AnnData(adata.X[keep], obs=adata.obs[keep], var=adata.var)
    units = gene_features(
        mouse[:, (adata.var["species"] == "mouse").to_numpy()],
        np.zeros(7, dtype=int),
        ["mouse"],
        ORGANS,
        DRUGS,
        species_key="species",
        organ_key="organ",
        drug_key="drug",
        control="control",
        animal_key="animal",
        layer=None,
        samples=np.ones(mouse.n_obs, dtype=bool),
        profile_weight=0.8,
        level_weight=2.5,
    ).units
    assert units.organs == ["brain", "liver"] and set(units.level) == {"mouse"}
    change, profile, level = units.change, units.profile, units.level["mouse"]
    found = features(adata, units=units)
    assert set(units.level) == set(units.organ_means) == {"mouse", "rat"}
    assert set(units.organ_means["mouse"]) == {"brain", "liver", "skin"}
    # what there was, stays
    assert (units.change, units.profile, units.level["mouse"]) == (change, profile, level)
    changes, means, profiles, levels, _ = by_hand(adata)
    np.testing.assert_allclose(found.values[:, :N_CHANGES], changes / change, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.values[:, N_CHANGES:-1], 0.8 * profiles / profile, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.values[:, -1], 2.5 * levels, rtol=1e-5, atol=1e-6)


# ---- which samples


def wild(adata, rows, seed=0):
    """The data with values of some samples that are nothing like they were."""
    x = dense(adata.X).copy()
    x[rows] = 40 * np.random.default_rng(seed).random(x[rows].shape) * (x[rows] > 0) + (x[rows] > 0)
    other = adata.copy()
    other.X = sp.csr_matrix(x) if sp.issparse(adata.X) else x
    return other


@pytest.mark.parametrize("animal_key", ["animal", None])
@pytest.mark.parametrize("is_sparse", [True, False])
def test_samples_that_are_left_out_are_in_no_value(is_sparse, animal_key):
    adata = make()
    if not is_sparse:
        adata.X = dense(adata.X)
    obs = adata.obs
    out = ((obs["species"] == "rat") & (obs["organ"] == "brain") & (obs["drug"] == "A")).to_numpy()
    out = out | (np.random.default_rng(0).random(adata.n_obs) < 0.3)  # of an animal some samples, too
    one, other = (features(data, ~out, animal_key=animal_key) for data in (adata, wild(adata, out)))
    assert same(one.values, other.values) and same(one.mean, other.mean) and one.units == other.units
    without = adata[~out].copy()
    np.testing.assert_allclose(features(without, animal_key=animal_key).values, one.values, rtol=1e-4, atol=1e-5)
    # a sample that is in it is in it
    used = np.flatnonzero(~out & ((obs["organ"] == "liver") & (obs["drug"] == "control")).to_numpy())[:1]
    assert not same(features(wild(adata, used), ~out, animal_key=animal_key).values, one.values)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sparse_and_dense_are_the_same(dtype):
    adata = make(dtype=dtype)
    one = features(adata)
    for matrix in (dense(adata.X), sp.csc_matrix(adata.X)):
        other = AnnData(matrix, obs=adata.obs, var=adata.var)
        for animal_key in ("animal", None):
            np.testing.assert_allclose(
                features(other, animal_key=animal_key).values,
                features(adata, animal_key=animal_key).values,
                rtol=1e-5,
                atol=1e-6,
            )
    other = AnnData(sp.csr_matrix(adata.shape, dtype=dtype), obs=adata.obs, var=adata.var, layers={"logs": adata.X})
    assert same(features(other, layer="logs").values, one.values)


def test_in_blocks_of_samples_or_at_once(monkeypatch):
    adata = make()
    one = features(adata)
    monkeypatch.setattr("transverse._reactome._ROWS", 5)
    np.testing.assert_allclose(features(adata).values, one.values, rtol=1e-5, atol=1e-6)


# ---- of a model


def test_features_of_a_model(trained, held_out):
    """Reactomes are in the order of organs and drugs; what is held out is in none of them."""
    adata = trained.adata
    assert (trained.species_, trained.drugs_) == (["mouse", "rat"], ["control", "drug A", "drug B"])
    x = adata.to_df()
    keep = ~pd.MultiIndex.from_frame(adata.obs[["species", "organ", "drug"]].astype(str)).isin(held_out)
    means = x[keep].groupby([adata.obs[key][keep].astype(str) for key in ("species", "organ", "drug")]).mean()
    raw = np.full((120, 4, 2), np.nan)
    for i, (gene, species) in enumerate(adata.var["species"].astype(str).items()):
        for o, organ in enumerate(trained.organs_):
            for k, drug in enumerate(trained.drugs_[1:]):
                if (species, organ, drug) in means.index:
                    raw[i, o, k] = means.at[(species, organ, drug), gene] - means.at[(species, organ, "control"), gene]
    unit = np.sqrt(np.nanmean(raw**2))
    np.testing.assert_allclose(trained.features_[:, :8], raw.reshape(120, 8) / unit, rtol=1e-3, atol=1e-4)
    assert trained.features_.shape == (120, 8 + 4 + 1)
    where = np.zeros((2, 4, 2), dtype=bool)
    for species, organ, drug in held_out:
        where[trained.species_.index(species), trained.organs_.index(organ), trained.drugs_.index(drug) - 1] = True
    np.testing.assert_array_equal(trained.is_measured_, ~where)
    np.testing.assert_array_equal(np.isnan(raw).all(axis=2).any(), False)


def test_a_held_out_condition_is_in_nothing(stacked, held_out):
    """Whatever the expression of what is held out, features, tokens and all weights are the same to the last bit."""
    conditions = pd.MultiIndex.from_frame(stacked.obs[["species", "organ", "drug"]].astype(str))
    out = conditions.isin(held_out)
    assert out.sum() == 4
    one, other = (
        train(data, hold_out=held_out, network={"n_top_genes": 20}, epochs={"genes": 1, "samples": 1})
        for data in (stacked, wild(stacked, out))
    )
    assert same(one.features_, other.features_) and same(one.gene_means_, other.gene_means_)
    assert one.units_ == other.units_
    assert all(same(a, b) for a, b in zip(one.tokens_, other.tokens_, strict=True))
    weights, others = one.module.state_dict(), other.module.state_dict()
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    # and without holding it out they would not be
    third = build(wild(stacked, out), n_top_genes=20)
    third.train(stages=["genes"], max_epochs=1, accelerator="cpu")
    assert not same(third.features_, one.features_)


def fit(adata, setup=None, **kwargs):
    """A model that has its features and is trained no further."""
    model = build(adata, setup=setup)
    model.train(stages=["genes"], max_epochs=1, accelerator="cpu", **kwargs)
    return model


def test_validation_samples_are_in_no_feature(stacked):
    rng = np.random.default_rng(0)
    validation = np.flatnonzero(rng.random(stacked.n_obs) < 0.2)
    training = np.setdiff1d(np.arange(stacked.n_obs), validation)
    kwargs = {"datasplitter_kwargs": {"external_indexing": [training, validation]}}
    one, other = (fit(data, **kwargs).features_ for data in (stacked, wild(stacked, validation)))
    assert same(one, other)
    assert not same(one, fit(stacked).features_)


@pytest.mark.parametrize("key", ["organ", "drug"])
def test_samples_without_a_label_are_in_no_feature(stacked, key):
    unknown = np.random.default_rng(0).random(stacked.n_obs) < 0.2
    labels = stacked.obs[key].astype(str).to_numpy(dtype=object)
    labels[unknown] = "unknown"
    stacked.obs[key] = labels
    model = fit(stacked)
    assert "unknown" not in model.organs_ + model.drugs_
    assert same(model.features_, fit(wild(stacked, unknown)).features_)


@pytest.mark.filterwarnings("ignore:Category . in adata.obs:UserWarning")
def test_animals_are_of_the_setup(stacked):
    # one animal of a condition gives all of its samples but one
    stacked.obs["animal"] = stacked.obs["animal"].astype(str)
    for _, rows in stacked.obs.groupby(["species", "organ", "drug"], observed=True).indices.items():
        stacked.obs.iloc[rows[:-1], stacked.obs.columns.get_loc("animal")] = "one"
    with_animals, without = fit(stacked), fit(stacked, setup={})
    assert not np.allclose(with_animals.gene_means_, without.gene_means_, atol=1e-3)
    x = stacked.to_df()
    obs = stacked.obs[["organ", "drug", "animal"]].astype(str)
    control = (obs["drug"] == "control").to_numpy()
    for species in SPECIES:
        rows = control & (stacked.obs["species"] == species).to_numpy()
        genes = (stacked.var["species"] == species).to_numpy()
        of_animals = x.loc[rows, genes].groupby([obs["organ"][rows], obs["animal"][rows]]).mean()
        expected = of_animals.groupby(level=0).mean().mean()
        np.testing.assert_allclose(with_animals.gene_means_[genes], expected, rtol=1e-5)


def test_a_species_of_which_nothing_is_known_is_refused(stacked):
    organs = stacked.obs["organ"].astype(str).to_numpy(dtype=object)
    organs[(stacked.obs["species"] == "rat").to_numpy()] = "unknown"
    stacked.obs["organ"] = organs
    model = build(stacked)
    with pytest.raises(ValueError, match=r"no control samples of a known organ of 'rat'.*Label some in obs\['organ'\]"):
        model.train(stages=["genes"], max_epochs=1, accelerator="cpu")
    assert not model.is_trained_


def test_held_out_controls_are_in_no_mean(stacked):
    rows = ((stacked.obs["species"] == "rat") & (stacked.obs["organ"] == "liver")).to_numpy()
    rows = rows & (stacked.obs["drug"] == "control").to_numpy()
    options = {"hold_out": [("rat", "liver", "control")]}
    one, other = (fit(data, **options) for data in (stacked, wild(stacked, rows)))
    assert same(one.features_, other.features_) and same(one.gene_means_, other.gene_means_)
    liver = one.organs_.index("liver")
    assert not one.is_measured_[1, liver].any() and one.is_measured_[0].all()
