"""Suggested experiments: the covariance of conditions, the greedy choice, and what is told of it."""

import functools
import itertools

import numpy as np
import pandas as pd
import pytest

import transverse as tv
from transverse.uge._experiments import condition_covariance, condition_on, share_carried

from .conftest import train
from .helpers import completed, genes_of, soft_map

COLUMNS = [
    "species",
    "organ",
    "drug",
    "gain",
    "variance",
    "n_organs_of_drug",
    "n_drugs_of_organ",
    "measured_in",
    "reason",
]
VARIANCES = {"drug": 0.7, "organ": 0.2, "both": 0.5, "noise": 0.15}


def cells_of(n_species=2, n_organs=3, n_drugs=3):
    return np.array(list(itertools.product(range(n_species), range(n_organs), range(n_drugs))))


def covariance_by_hand(cells, v, carried):
    found = np.zeros((len(cells), len(cells)))
    for i, (s, o, k) in enumerate(cells):
        for j, (t, q, m) in enumerate(cells):
            found[i, j] += v["drug"] if k == m else 0
            found[i, j] += v["organ"] if o == q else 0
            found[i, j] += v["both"] if (o, k) == (q, m) else 0
            found[i, j] *= 1 if s == t else carried
    return found


def remaining(covariance, observed, noise):
    """Covariance that is left after measurements, by the precision of a Gaussian."""
    precision = np.linalg.inv(covariance + 1e-9 * np.eye(len(covariance)))
    precision[observed, observed] += 1 / noise
    return np.linalg.inv(precision)


def carried_by(cells, observed):
    """Share of a change that another species tells, the larger the more conditions species have in common."""
    times = pd.Series([tuple(cells[i][1:]) for i in observed]).value_counts()
    n = (times > 1).sum()
    return (2 + n) / (10 + n)


def left_after(cells, v, observed, extra=None):
    """As all that was measured, and one more, tells how much species tell of each other."""
    shares = carried_by(cells, [*observed, *([] if extra is None else [extra])])
    return remaining(covariance_by_hand(cells, v, shares), observed, v["noise"]), shares


# ---- arithmetic


@pytest.mark.parametrize("carried", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("shape", [(2, 3, 3), (1, 2, 4), (3, 1, 1)], ids=str)
def test_covariance_pair_by_pair(shape, carried):
    cells = cells_of(*shape)
    found = condition_covariance(cells, VARIANCES, carried)
    np.testing.assert_allclose(found, covariance_by_hand(cells, VARIANCES, carried))
    assert np.linalg.eigvalsh(found).min() > -1e-9
    order = np.random.default_rng(0).permutation(len(cells))
    np.testing.assert_allclose(condition_covariance(cells[order], VARIANCES, carried), found[np.ix_(order, order)])


def test_covariance_part_by_part():
    cells = cells_of()
    nothing = dict.fromkeys(VARIANCES, 0.0)
    parts = [condition_covariance(cells, nothing | {key: VARIANCES[key]}, 0.3) for key in ("drug", "organ", "both")]
    np.testing.assert_allclose(sum(parts), condition_covariance(cells, VARIANCES, 0.3))
    same = np.array([[tuple(a[1:]) == tuple(b[1:]) for a in cells] for b in cells])
    own = np.array([[a[0] == b[0] for a in cells] for b in cells])
    np.testing.assert_allclose(parts[2], VARIANCES["both"] * same * np.where(own, 1, 0.3))


def test_what_species_tell_of_each_other():
    """More, the more conditions both have; and never all."""
    assert [share_carried(n) for n in (0, 1, 6, 30)] == pytest.approx([2 / 10, 3 / 11, 8 / 16, 32 / 40])
    cells = cells_of()
    assert carried_by(cells, [0, 1, 4]) == share_carried(0) and carried_by(cells, [0, 1, 9, 10, 12]) == share_carried(2)


@pytest.mark.parametrize("observed", [[0], [3, 7], [0, 1, 2, 9, 10, 11], []], ids=str)
@pytest.mark.parametrize("noise", [0.05, 2.0])
def test_conditioning_as_by_precision(observed, noise):
    prior = condition_covariance(cells_of(), VARIANCES, 0.4)
    found = condition_on(prior, np.array(observed, dtype=int), noise)
    np.testing.assert_allclose(found, remaining(prior, observed, noise), atol=1e-6)
    assert (np.diagonal(found) <= np.diagonal(prior) + 1e-12).all()


def test_conditioning_one_by_one_or_at_once():
    prior = condition_covariance(cells_of(), VARIANCES, 0.4)
    at_once = condition_on(prior, np.array([1, 4, 13]), 0.3)
    one_by_one = prior
    for i in (13, 1, 4):
        one_by_one = condition_on(one_by_one, np.array([i]), 0.3)
    np.testing.assert_allclose(one_by_one, at_once, atol=1e-12)


def test_conditioning_leaves_what_is_independent():
    v = dict.fromkeys(VARIANCES, 0.0) | {"drug": 1.0}
    cells = cells_of()
    found = condition_on(condition_covariance(cells, v, 0.4), np.array([0]), 0.5)
    other = cells[:, 2] != cells[0, 2]
    np.testing.assert_allclose(found[np.ix_(other, other)], condition_covariance(cells[other], v, 0.4))
    np.testing.assert_allclose(found[0, 0], 1 - 1 / 1.5)


# ---- variances of a model


def variances_by_hand(model, ambiguity_weight):
    """From products of every two changes that were measured in a species."""
    n_drugs = len(model.drugs_) - 1
    products = {"all": [], "drug": [], "organ": [], "neither": []}
    for s, species in enumerate(model.species_):
        x = model.features_[genes_of(model, species)].astype(float)
        weights = 1 + ambiguity_weight * ambiguity(model, species)
        there = np.flatnonzero(np.asarray(model.is_measured_)[s].ravel())
        for i, j in itertools.product(there, repeat=2):
            same = (i // n_drugs == j // n_drugs, i % n_drugs == j % n_drugs)
            kind = {(True, True): "all", (False, True): "drug", (True, False): "organ", (False, False): "neither"}[same]
            products[kind].append(np.average(x[:, i] * x[:, j], weights=weights))
    mean = {key: np.mean(values) for key, values in products.items()}
    common = max(mean["neither"], 0)
    of_drug = np.clip(mean["drug"] - common, 0, mean["all"])
    of_organ = np.clip(mean["organ"] - common, 0, mean["all"] - of_drug)
    rest = max(mean["all"] - of_drug - of_organ, 0.1 * mean["all"])
    return {"drug": of_drug, "organ": of_organ, "both": 0.75 * rest, "noise": 0.25 * rest}


def ambiguity(model, species):
    """Entropy of the map to each other species, relative to its largest, and their mean."""
    found = []
    for other in model.species_:
        if other != species:
            p = soft_map(model, species, other, 0.02)
            terms = np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0)
            found.append(-terms.sum(axis=1) / np.log(p.shape[1]))
    return np.mean(found, axis=0)


@pytest.mark.parametrize("ambiguity_weight", [0, 1.0, 3.0])
def test_variances_by_hand(trained, ambiguity_weight):
    for model in (trained, sparse()[0]):
        found = model._variances(ambiguity_weight)
        expected = variances_by_hand(model, ambiguity_weight)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert found[key] == pytest.approx(value, rel=1e-3), key
    assert not np.asarray(model.is_measured_).any(axis=0).all()


def test_ambiguous_genes_count_more(trained):
    weights = trained._ambiguity(2.0)
    for species, own in zip(("mouse", "rat"), weights, strict=True):
        np.testing.assert_allclose(own, 1 + 2 * ambiguity(trained, species), rtol=1e-3)
        assert (own >= 1).all() and (own <= 3).all() and own.std() > 0.01
    assert all((own == 1).all() for own in trained._ambiguity(0))


# ---- the choice


@functools.cache
def sparse():
    """Four organs and three drugs, a third of which were measured in the rat and two thirds in the mouse."""
    data = tv.datasets.simulate_reactomes(n_genes=40, n_organs=4, n_drugs=3, n_animals=3)
    adata = tv.pp.stack_species(data)
    hold_out = [
        (species, organ, drug)
        for species, organ, drug in itertools.product(
            ("mouse", "rat"), ("brain", "heart", "kidney", "liver"), ("drug A", "drug B", "drug C")
        )
        if (hash_of(organ, drug) % 3 == 0 if species == "mouse" else hash_of(organ, drug) % 3 != 1)
    ]
    return train(adata, stages=["genes"], hold_out=hold_out), set(hold_out)


def hash_of(organ, drug):
    return 5 * "bhkl".index(organ[0]) + 2 * "ABC".index(drug[-1])


def given(model, **options):
    v = model._variances(options.pop("ambiguity_weight", 0)) | options
    measured = np.asarray(model.is_measured_)
    cells = np.argwhere(np.ones_like(measured))
    return cells, list(np.flatnonzero(measured[tuple(cells.T)])), v


def outcomes(cells, v, observed):
    """Of every experiment, the variance that would be left, and that of the experiment itself."""
    after, own = np.empty(len(cells)), np.empty(len(cells))
    for i in range(len(cells)):
        left, carried = left_after(cells, v, observed, i)
        own[i] = left[i, i]
        after[i] = np.trace(remaining(covariance_by_hand(cells, v, carried), [*observed, i], v["noise"]))
    return after, own


@pytest.mark.parametrize(
    ("options", "species"), [({}, None), ({}, "rat"), ({"noise": 2.0}, None), ({"noise": 1e-2}, ["mouse"])]
)
def test_the_choice_is_greedy(options, species):
    """Each is one after which the least is left, of those that are possible; every one was tried."""
    model, _ = sparse()
    cells, observed, v = given(model, **options)
    wanted = [species] if isinstance(species, str) else species or model.species_
    names = [(model.species_[s], model.organs_[o], model.drugs_[k + 1]) for s, o, k in cells]
    found = model.suggest_experiments(5, species, ambiguity_weight=0, **options)
    assert len(found) > 3
    total = np.trace(left_after(cells, v, observed)[0])
    for row in found.itertuples():
        before = np.trace(left_after(cells, v, observed)[0])
        after, own = outcomes(cells, v, observed)
        i = names.index((row.species, row.organ, row.drug))
        possible = [j for j, name in enumerate(names) if name[0] in wanted and j not in observed]
        assert i in possible and after[i] <= after[possible].min() + 1e-6 * total
        assert (row.gain, row.variance) == pytest.approx(((before - after[i]) / total, own[i] / total), rel=1e-3)
        observed.append(i)


def test_the_table():
    model, hold_out = sparse()
    found = model.suggest_experiments(7, ambiguity_weight=0)
    assert found.columns.tolist() == COLUMNS and found.index.equals(pd.RangeIndex(7))
    chosen = set(zip(found["species"], found["organ"], found["drug"], strict=True))
    assert len(chosen) == 7 and chosen <= hold_out
    assert (found["gain"] > 0).all() and found["gain"].sum() < 1
    assert (found["variance"] > 0).all() and (found["variance"] < 1).all()
    for key in ("n_organs_of_drug", "n_drugs_of_organ"):
        assert found[key].dtype.kind == "i"


def test_the_first_choices_do_not_depend_on_how_many():
    model, _ = sparse()
    pd.testing.assert_frame_equal(
        model.suggest_experiments(3, ambiguity_weight=0), model.suggest_experiments(8, ambiguity_weight=0).iloc[:3]
    )


def test_counts_and_reasons():
    model, hold_out = sparse()
    every = set(itertools.product(model.species_, model.organs_, model.drugs_[1:]))
    measured = every - hold_out
    found = model.suggest_experiments(10, ambiguity_weight=0)
    for i, row in found.iterrows():
        organs = {o for _, o, k in measured if k == row["drug"]}
        drugs = {k for _, o, k in measured if o == row["organ"]}
        having = [s for s in model.species_ if (s, row["organ"], row["drug"]) in measured]
        assert (row["n_organs_of_drug"], row["n_drugs_of_organ"]) == (len(organs), len(drugs))
        assert row["measured_in"] == ", ".join(having)
        where = f"measured in {having[0]}, not in {row['species']}" if having else "measured in no species"
        n_before = (found["drug"][:i] == row["drug"]).sum()
        before = f", and {n_before} suggested before" if n_before else ""
        assert row["reason"] == (
            f"{where}; {row['drug']} in {len(organs)} of 4 organs{before}; {row['organ']} with {len(drugs)} of 3 drugs"
        )


def test_no_more_than_there_is():
    model, hold_out = sparse()
    found = model.suggest_experiments(1000, ambiguity_weight=0)
    assert set(zip(found["species"], found["organ"], found["drug"], strict=True)) == hold_out
    assert len(found) == len(hold_out)


def test_only_species_that_are_possible():
    model, hold_out = sparse()
    for species in ("mouse", "rat"):
        found = model.suggest_experiments(1000, species, ambiguity_weight=0)
        assert set(found["species"]) == {species} and len(found) == sum(s == species for s, *_ in hold_out)
        pd.testing.assert_frame_equal(found, model.suggest_experiments(1000, [species], ambiguity_weight=0))
    both = model.suggest_experiments(5, ["mouse", "rat"], ambiguity_weight=0)
    pd.testing.assert_frame_equal(both, model.suggest_experiments(5, ambiguity_weight=0))


def test_nothing_is_left(stacked):
    model = train(stacked, stages=["genes"], max_epochs=1)
    found = model.suggest_experiments()
    assert found.empty and found.columns.tolist() == COLUMNS


def test_noise_that_drowns_all_makes_gains_small():
    model, _ = sparse()
    gains = [model.suggest_experiments(1, noise=noise, ambiguity_weight=0)["gain"].iloc[0] for noise in (1e-3, 1, 1e3)]
    assert gains[0] > gains[1] > gains[2] and gains[2] < 0.01


def test_defaults():
    """Weighted by how hard genes are to map, with the noise that the changes tell of."""
    model, _ = sparse()
    found = model.suggest_experiments()
    assert len(found) == 5 and np.isfinite(found["gain"]).all() and (found["gain"] > 0).all()
    cells, observed, _ = given(model)
    v = variances_by_hand(model, 1.0)
    after, _ = outcomes(cells, v, observed)
    total = np.trace(left_after(cells, v, observed)[0])
    best = np.delete(after, observed).min()
    assert found["gain"].iloc[0] == pytest.approx((total - best) / total, rel=1e-3)


# ---- planted


@pytest.mark.parametrize("ambiguity_weight", [0, 1.0])
def test_a_drug_of_which_nothing_is_known_comes_first(stacked, ambiguity_weight):
    """Drug B was measured nowhere, all else but a heart everywhere; and then in another organ or species."""
    hold_out = list(itertools.product(("mouse", "rat"), ("brain", "heart", "kidney", "liver"), ["drug B"]))
    model = train(stacked, stages=["genes"], hold_out=[*hold_out, ("rat", "heart", "drug A")])
    found = model.suggest_experiments(9, ambiguity_weight=ambiguity_weight)
    assert len(found) == 9 and found["drug"].iloc[0] == "drug B"
    assert found["reason"].iloc[0].startswith("measured in no species; drug B in 0 of 4 organs; ")
    assert "drug B in 0 of 4 organs, and 1 suggested before" in found["reason"].iloc[1]
    where = found[found["drug"] == "drug B"]
    assert set(where["organ"].iloc[:4]) == {"brain", "heart", "kidney", "liver"}


@pytest.mark.filterwarnings("ignore:Mean of empty slice:RuntimeWarning")
def test_a_species_of_which_there_are_controls_alone(stacked):
    keep = (stacked.obs["species"] == "mouse") | (stacked.obs["drug"] == "control")
    model = train(stacked[keep.to_numpy()].copy(), stages=["genes"])
    found = model.suggest_experiments(8, ambiguity_weight=0)
    assert set(found["species"]) == {"rat"} and len(found) == 8
    assert np.isfinite(found["gain"]).all() and (found["gain"] > 0).all()


# ---- what is refused


def test_suggestions_refuse(trained):
    for options, error, message in (
        ({"n": 0}, ValueError, "n=0 must be a whole number of at least 1"),
        ({"n": 1.5}, ValueError, "n=1.5 must be a whole number of at least 1"),
        ({"species": "cow"}, KeyError, "Unknown species 'cow'. Known: 'mouse', 'rat'"),
        ({"species": ["mouse", "cow"]}, KeyError, "Unknown species 'cow'"),
        ({"ambiguity_weight": -1}, ValueError, "ambiguity_weight=-1 must not be negative"),
        ({"ambiguity_weight": np.nan}, ValueError, "ambiguity_weight=nan must not be negative"),
        ({"noise": 0}, ValueError, "noise=0 must be positive"),
        ({"noise": -0.5}, ValueError, "noise=-0.5 must be positive"),
    ):
        with pytest.raises(error, match=message):
            trained.suggest_experiments(**options)


def test_without_drugs_there_is_nothing_to_suggest(stacked):
    controls = stacked[(stacked.obs["drug"] == "control").to_numpy()].copy()
    model = train(controls, setup={"drug_key": None}, stages=["genes"], max_epochs=1)
    with pytest.raises(ValueError, match="The model was set up without drugs: there is nothing to suggest"):
        model.suggest_experiments()
    assert not np.isnan(completed(model, "rat")).any()
