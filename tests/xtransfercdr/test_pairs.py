"""Pairs: what may be paired, how often, with which controls, and the mini-batches that come of it."""

from collections import Counter
from math import ceil

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

import transverse as tv
from transverse.xtransfercdr._constants import COMBINATION, SAME_CONTEXT, SAME_PERTURBATION
from transverse.xtransfercdr._design import Condition, canonical_names, make_design, resolve_pairing
from transverse.xtransfercdr._pairs import (
    DOUBLE,
    KIND,
    LEFT,
    LEFT_CONTROL,
    RIGHT,
    RIGHT_CONTROL,
    PairDataset,
    PairSampler,
    draw_pairs,
)

CONTROL = "control"
# unequal numbers of cells; C3 has no controls, and B in C2 no other perturbation beside it
FULL = {
    ("A", "C1"): 7,
    ("B", "C1"): 4,
    ("A+B", "C1"): 5,
    ("C", "C1"): 1,
    (CONTROL, "C1"): 9,
    ("B", "C2"): 6,
    (CONTROL, "C2"): 3,
    ("A", "C3"): 8,
    ("C", "C3"): 2,
}
PAIRINGS = ("perturbation", "context", "mixed")


class Toy:
    """Cells of conditions in random order, and their design."""

    def __init__(self, sizes, n_batches=None, delimiter="+", cells=None, seed=0):
        rng = np.random.default_rng(seed)
        names = [condition for condition, n in sizes.items() for _ in range(n)]
        names = [names[i] for i in rng.permutation(len(names))]
        self.perturbation, self.context = np.array(names, dtype=object).reshape(-1, 2).T
        self.batch = None if n_batches is None else rng.integers(n_batches, size=len(names)).astype(str).astype(object)
        self.cells = np.arange(len(names)) if cells is None else cells
        self.delimiter = delimiter
        self.design = make_design(self.perturbation, self.context, self.batch, CONTROL, delimiter, self.cells)
        self._of = {}

    def of(self, perturbation, context):
        """Cells of a condition."""
        if (perturbation, context) not in self._of:
            found = np.flatnonzero((self.perturbation == perturbation) & (self.context == context))
            self._of[perturbation, context] = np.intersect1d(found, self.cells)
        return self._of[perturbation, context]

    def own(self, pairs):
        """The cell that brought each pair, and its condition."""
        own = np.where(pairs[:, KIND] == COMBINATION, pairs[:, DOUBLE], pairs[:, LEFT])
        return own, list(zip(self.perturbation[own], self.context[own], strict=True))


@pytest.fixture(scope="module")
def toy():
    return Toy(FULL)


def draw(toy, epoch=0, seed=0, pairing="mixed", **options):
    return draw_pairs(toy.design, epoch, seed, pairing=pairing, **options)


def check(toy, pairs):
    """Everything that must hold of any pair."""
    p, c = toy.perturbation, toy.context
    left, right, double, kind = (pairs[:, column] for column in (LEFT, RIGHT, DOUBLE, KIND))
    assert (left != right).all()
    assert np.isin(pairs[:, [LEFT, RIGHT]], toy.cells).all()
    assert set(kind) <= {SAME_CONTEXT, SAME_PERTURBATION, COMBINATION}
    same_perturbation = kind == SAME_PERTURBATION
    assert (p[left] == p[right])[same_perturbation].all() and (c[left] != c[right])[same_perturbation].all()
    assert (p[left] != p[right])[~same_perturbation].all() and (c[left] == c[right])[~same_perturbation].all()
    combination = kind == COMBINATION
    assert (double[~combination] == -1).all()
    for row in pairs[combination]:
        assert row[DOUBLE] in toy.cells
        assert sorted(p[row[[LEFT, RIGHT]]]) == p[row[DOUBLE]].split(toy.delimiter)
        assert c[row[DOUBLE]] == c[row[LEFT]]
    for side, control in ((LEFT, LEFT_CONTROL), (RIGHT, RIGHT_CONTROL)):
        for cell, matched in pairs[:, [side, control]]:
            possible = toy.of(CONTROL, c[cell])
            if toy.batch is not None:
                in_batch = possible[toy.batch[possible] == toy.batch[cell]]
                possible = in_batch if len(in_batch) else possible
            if p[cell] == CONTROL:
                assert matched == cell
            elif len(possible):
                assert matched in possible
            else:
                assert matched == -1


# ---- what may be paired


@pytest.mark.parametrize("n_batches", [None, 2, 5])
@pytest.mark.parametrize("balance", [True, False])
@pytest.mark.parametrize("control_share", [0, 0.5, 1])
@pytest.mark.parametrize("pairing", PAIRINGS)
def test_pairs_are_what_they_should_be(pairing, control_share, balance, n_batches):
    toy = Toy(FULL, n_batches)
    kinds = set()
    for epoch in range(6):
        pairs = draw(toy, epoch, pairing=pairing, control_share=control_share, balance=balance)
        check(toy, pairs)
        kinds |= set(pairs[:, KIND])
    assert (
        kinds
        == {
            "perturbation": {SAME_CONTEXT, COMBINATION},
            "context": {SAME_PERTURBATION},
            "mixed": {SAME_CONTEXT, SAME_PERTURBATION, COMBINATION},
        }[pairing]
    )


@settings(max_examples=40)
@given(
    sizes=st.dictionaries(
        st.tuples(st.sampled_from(["A", "B", "C", "A+B", "A+C", CONTROL]), st.sampled_from(["C1", "C2", "C3"])),
        st.integers(1, 7),
        min_size=2,
    ),
    n_batches=st.sampled_from([None, 1, 3]),
    pairing=st.sampled_from(PAIRINGS),
    control_share=st.sampled_from([0.0, 0.3, 1.0]),
    balance=st.booleans(),
    n_multiple=st.integers(1, 3),
    seed=st.integers(0, 5),
)
def test_any_design(sizes, n_batches, pairing, control_share, balance, n_multiple, seed):
    toy = Toy(sizes, n_batches, seed=seed)
    partners = toy.design.all_partners(pairing, control_share)
    if not partners:
        return
    options = {"pairing": pairing, "control_share": control_share, "balance": balance, "n_multiple": n_multiple}
    n_cells = sum(len(toy.design.cells[i]) for i in partners)
    counts, seen = Counter(), Counter()
    for epoch in range(2):
        pairs = draw(toy, epoch, seed, **options)
        check(toy, pairs)
        assert len(pairs) == ceil(n_cells / n_multiple) * n_multiple
        own, conditions = toy.own(pairs)
        counts.update(conditions)
        # all conditions with a partner, and no other
        possible = {(toy.design.conditions[i].perturbation, toy.design.conditions[i].context) for i in partners}
        assert set(conditions) == possible
        if balance:
            assert max(counts.values()) - min(counts.values()) <= 1
        elif n_multiple == 1:
            assert len(set(own)) == len(own)
        seen.update(own.tolist())
        for i in partners:  # no cell comes again before all others of its condition have come
            times = [seen[cell] for cell in toy.design.cells[i]]
            assert max(times) - min(times) <= 1


def test_kinds_are_drawn_equally_and_partners_too():
    toy = Toy({("A", "C1"): 300, ("B", "C1"): 30, ("C", "C1"): 30, ("A", "C2"): 30, ("A", "C3"): 30, ("D", "C3"): 5})
    pairs = np.concatenate([draw(toy, epoch, balance=False) for epoch in range(4)])
    pairs = pairs[np.isin(pairs[:, LEFT], toy.of("A", "C1"))]
    kinds = Counter(pairs[:, KIND])
    assert abs(kinds[SAME_CONTEXT] - 600) < 80 and abs(kinds[SAME_PERTURBATION] - 600) < 80
    partners = Counter(zip(toy.perturbation[pairs[:, RIGHT]], toy.context[pairs[:, RIGHT]], strict=True))
    assert set(partners) == {("B", "C1"), ("C", "C1"), ("A", "C2"), ("A", "C3")}
    assert all(abs(n - 300) < 70 for n in partners.values())


def test_singles_of_a_double(toy):
    pairs = np.concatenate([draw(toy, epoch, pairing="perturbation") for epoch in range(20)])
    combination = pairs[pairs[:, KIND] == COMBINATION]
    assert set(combination[:, DOUBLE]) == set(toy.of("A+B", "C1"))
    # either single is left or right
    assert set(toy.perturbation[combination[:, LEFT]]) == set(toy.perturbation[combination[:, RIGHT]]) == {"A", "B"}
    # a double is also a perturbation among others
    assert set(pairs[np.isin(pairs[:, LEFT], toy.of("A+B", "C1"))][:, KIND]) == {SAME_CONTEXT}


def test_doubles_without_singles_are_perturbations_like_others():
    for sizes, delimiter in [
        ({("A+B", "C1"): 4, ("A", "C1"): 4, (CONTROL, "C1"): 4}, "+"),  # one single is missing
        ({("A+B", "C1"): 4, ("A", "C1"): 4, ("B", "C2"): 4, (CONTROL, "C1"): 4}, "+"),  # or is in another context
        ({("A+A", "C1"): 4, ("A", "C1"): 4, (CONTROL, "C1"): 4}, "+"),
        ({("A+B+C", "C1"): 4, ("A", "C1"): 4, ("B", "C1"): 4, ("C", "C1"): 4}, "+"),
        ({("A+B", "C1"): 4, ("A", "C1"): 4, ("B", "C1"): 4}, None),  # not a combination at all
    ]:
        toy = Toy(sizes, delimiter=delimiter)
        pairs = draw(toy, pairing="perturbation")
        assert set(pairs[:, KIND]) == {SAME_CONTEXT}
        assert toy.design.n_pairs["combination"] == 0


def test_names_are_canonical_before_pairing():
    names = np.array(["B+A", "A+B", " A", "A+control", "control", "control+control", "Ca2+"], dtype=object)
    assert list(canonical_names(names, CONTROL, "+")) == ["A+B", "A+B", "A", "A", CONTROL, CONTROL, "Ca2+"]
    assert list(canonical_names(names, CONTROL, None))[:2] == ["B+A", "A+B"]


# ---- controls as partners


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_share_of_control_partners(share):
    toy = Toy({("A", "C1"): 200, ("B", "C1"): 200, ("C", "C1"): 200, (CONTROL, "C1"): 50})
    pairs = np.concatenate([draw(toy, epoch, control_share=share, pairing="perturbation") for epoch in range(3)])
    treated = toy.perturbation[pairs[:, LEFT]] != CONTROL
    found = (toy.perturbation[pairs[treated, RIGHT]] == CONTROL).mean()
    assert abs(found - share) < (0.05 if 0 < share < 1 else 1e-12)
    # a control cell's partner is always a treated one, and without a share it has none
    assert (toy.perturbation[pairs[~treated, RIGHT]] != CONTROL).all()
    assert (~treated).any() == (share > 0)


@pytest.mark.parametrize("share", [0.1, 1.0])
def test_a_context_with_one_perturbation_has_control_partners_alone(share):
    toy = Toy({("A", "C1"): 10, (CONTROL, "C1"): 4, ("A", "C2"): 3, ("B", "C2"): 3})
    pairs = draw(toy, pairing="perturbation", control_share=share)
    pairs = pairs[np.isin(pairs[:, LEFT], toy.of("A", "C1"))]
    assert len(pairs) and np.isin(pairs[:, RIGHT], toy.of(CONTROL, "C1")).all()
    without = draw(toy, pairing="perturbation", control_share=0)
    assert not np.isin(without[:, [LEFT, RIGHT]], np.flatnonzero(toy.context == "C1")).any()


def test_control_share_is_one_of_pairs_within_a_context(toy):
    pairs = np.concatenate([draw(toy, epoch, control_share=1.0) for epoch in range(4)])
    # effects across contexts and doubles keep their partners
    treated = toy.perturbation[pairs[:, LEFT]] != CONTROL
    partner_is_control = toy.perturbation[pairs[:, RIGHT]] == CONTROL
    for kind in (SAME_PERTURBATION, COMBINATION):
        chosen = treated & (pairs[:, KIND] == kind)
        assert chosen.any() and not partner_is_control[chosen].any()
    has_controls = np.isin(toy.context[pairs[:, LEFT]], ["C1", "C2"])
    assert partner_is_control[treated & has_controls & (pairs[:, KIND] == SAME_CONTEXT)].all()
    # the controls' own effect is compared across contexts as well
    assert set(pairs[~treated, KIND]) == {SAME_CONTEXT, SAME_PERTURBATION}


# ---- how often


@pytest.mark.parametrize("options", [{}, {"control_share": 0}, {"n_multiple": 4}, {"pairing": "context"}], ids=str)
def test_balance_gives_every_condition_the_same_share(toy, options):
    counts = Counter()
    sizes = [len(draw(toy, epoch, **options)) for epoch in range(7)]
    for epoch in range(7):
        counts.update(toy.own(draw(toy, epoch, **options))[1])
        # to one pair, and over all epochs together
        assert max(counts.values()) - min(counts.values()) <= 1
    assert len(set(sizes)) == 1 and sum(counts.values()) == sum(sizes)
    assert all(c in counts for c in FULL if options.get("control_share") != 0 and "pairing" not in options)


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_no_cell_is_lost_to_balance(toy, pairing):
    """A condition goes through all of its cells before one comes again, from epoch to epoch."""
    seen = Counter()
    n_conditions = len(toy.design.all_partners(pairing, 0.5))
    quota = len(draw(toy, pairing=pairing)) // n_conditions
    largest = max(len(toy.design.cells[i]) for i in toy.design.all_partners(pairing, 0.5))
    assert largest > quota > 1
    for epoch in range(12):
        seen.update(toy.own(draw(toy, epoch, pairing=pairing))[0].tolist())
        for i in toy.design.all_partners(pairing, 0.5):
            times = [seen[cell] for cell in toy.design.cells[i]]
            assert max(times) - min(times) <= 1
            if epoch + 1 >= ceil((len(times) + 1) / quota):
                assert min(times) >= 1
    # in an order of its own for every turn and seed
    condition = toy.of("A", "C3")

    def order(seed):
        pairs = np.concatenate([draw(toy, e, seed, pairing=pairing, balance=False) for e in range(2)])
        own = toy.own(pairs)[0]
        return own[np.isin(own, condition)].tolist()

    assert order(0) == order(0)
    assert order(0) != order(1)
    assert order(0)[: len(condition)] != order(0)[len(condition) :]


def test_without_balance_every_cell_brings_one_pair(toy):
    for epoch in range(3):
        own, _ = toy.own(draw(toy, epoch, balance=False))
        assert sorted(own) == list(toy.cells)
    own, _ = toy.own(draw(toy, control_share=0, balance=False))
    assert sorted(own) == list(np.flatnonzero(toy.perturbation != CONTROL))


@pytest.mark.parametrize("balance", [True, False])
@pytest.mark.parametrize("n_multiple", [1, 2, 7, 16])
def test_pairs_can_be_divided_among_processes(n_multiple, balance):
    # more processes than conditions
    toy = Toy({("A", "C1"): 6, ("B", "C1"): 5})
    pairs = draw(toy, n_multiple=n_multiple, balance=balance, pairing="perturbation")
    assert len(pairs) == ceil(11 / n_multiple) * n_multiple
    check(toy, pairs)


@pytest.mark.parametrize("balance", [True, False])
def test_partners_and_controls_go_through_all_cells(balance):
    toy = Toy(
        {("A", "C1"): 40, ("B", "C1"): 40, ("A+B", "C1"): 30, (CONTROL, "C1"): 7, ("A", "C2"): 40, (CONTROL, "C2"): 9}
    )
    pairs = draw(toy, balance=balance)
    # cells that were drawn as somebody's partner, each as often as the others of its condition
    own, _ = toy.own(pairs)
    drawn = Counter(pairs[:, RIGHT].tolist())
    drawn.update(pairs[pairs[:, KIND] == COMBINATION, LEFT].tolist())
    for cells in toy.design.cells:
        times = [drawn[cell] for cell in cells]
        assert max(times) - min(times) <= 1
    # and matched controls, but for the cells that are their own
    for context in ("C1", "C2"):
        matched = Counter()
        for side, control in ((LEFT, LEFT_CONTROL), (RIGHT, RIGHT_CONTROL)):
            treated = toy.perturbation[pairs[:, side]] != CONTROL
            matched.update(pairs[treated & (toy.context[pairs[:, side]] == context), control].tolist())
        assert set(matched) == set(toy.of(CONTROL, context))
        assert max(matched.values()) - min(matched.values()) <= 1


def test_which_cells_are_partners_once_more_is_chance():
    toy = Toy({("A", "C1"): 3, ("B", "C1"): 20})
    drawn = Counter()
    for epoch in range(200):
        pairs = draw(toy, epoch, pairing="perturbation", balance=False)
        drawn.update(pairs[np.isin(pairs[:, LEFT], toy.of("A", "C1")), RIGHT].tolist())
    times = [drawn[cell] for cell in toy.of("B", "C1")]
    assert sum(times) == 600 and 12 < min(times) <= max(times) < 52


# ---- chance


@pytest.mark.parametrize("balance", [True, False])
@pytest.mark.parametrize("pairing", PAIRINGS)
def test_an_epochs_pairs_are_a_function_of_epoch_and_seed(toy, pairing, balance):
    def drawn(epoch, seed):
        return draw(toy, epoch, seed, pairing=pairing, balance=balance)

    first = drawn(3, 1)
    np.random.seed(5)
    np.testing.assert_array_equal(drawn(3, 1), first)
    np.testing.assert_array_equal(draw(Toy(FULL), 3, 1, pairing=pairing, balance=balance), first)
    rows = {tuple(row) for row in first}
    for other in (drawn(4, 1), drawn(3, 2), drawn(1, 3)):
        assert len(other) == len(first)
        assert not np.array_equal(other, first)
        assert {tuple(row) for row in other} != rows


def test_pairs_are_in_random_order():
    toy = Toy({("A", "C1"): 100, ("B", "C1"): 100})
    left = toy.perturbation[draw(toy, pairing="perturbation")[:, LEFT]] == "A"
    assert 30 < left[:100].sum() < 70


# ---- designs


def test_design(toy):
    design = toy.design
    assert design.conditions == [Condition(*key) for key in sorted(FULL)]
    for condition, cells in zip(design.conditions, design.cells, strict=True):
        np.testing.assert_array_equal(np.sort(cells), toy.of(condition.perturbation, condition.context))
    # C1: A, B, A+B, C; C2: B; C3: A, C. Across contexts: A twice, B twice, C twice.
    assert design.n_pairs == {"perturbation": 6 + 0 + 1, "context": 3, "combination": 1}
    np.testing.assert_array_equal(design.is_control_cell, toy.perturbation == CONTROL)


def test_design_of_some_cells():
    whole = Toy(FULL)
    rng = np.random.default_rng(0)
    cells = np.sort(rng.choice(len(whole.perturbation), size=30, replace=False))
    cells = np.setdiff1d(cells, whole.of(CONTROL, "C2"))
    toy = Toy(FULL, cells=cells)
    assert set(np.concatenate(toy.design.cells)) == set(cells)
    for epoch in range(5):
        pairs = draw(toy, epoch)
        check(toy, pairs)
        assert np.isin(pairs[:, :KIND], [-1, *cells]).all()
    # controls outside are no controls
    assert (draw(toy)[toy.context[draw(toy)[:, LEFT]] == "C2", LEFT_CONTROL] == -1).all()


def test_controls_are_of_the_batch_where_it_has_any():
    sizes = {("A", "C1"): 30, ("B", "C1"): 30, (CONTROL, "C1"): 12, ("A", "C2"): 9, (CONTROL, "C2"): 4}
    toy = Toy(sizes, n_batches=3)
    toy.batch[toy.of(CONTROL, "C1")[:2]] = "9"  # a batch of controls alone
    toy.batch[toy.of("A", "C1")[:3]] = "8"  # and one that has none
    toy.design = make_design(toy.perturbation, toy.context, toy.batch, CONTROL, "+", toy.cells)
    strays = Counter()
    for epoch in range(10):
        pairs = draw(toy, epoch)
        check(toy, pairs)
        strays.update(pairs[np.isin(pairs[:, LEFT], toy.of("A", "C1")[:3]), LEFT_CONTROL].tolist())
    # without controls in the batch, those of the whole context
    assert len({toy.batch[cell] for cell in strays}) > 2
    assert set(strays) <= set(toy.of(CONTROL, "C1"))


# ---- what is asked for, and what the data allow

SEVERAL_IN_ONE = {("A", "C1"): 2, ("B", "C1"): 2, (CONTROL, "C1"): 2}
ONE_IN_SEVERAL = {("A", "C1"): 2, ("A", "C2"): 2, (CONTROL, "C1"): 2}
ONE_IN_ONE = {("A", "C1"): 2, (CONTROL, "C1"): 2}
BOTH = {**SEVERAL_IN_ONE, ("A", "C2"): 2}


@pytest.mark.parametrize(
    ("sizes", "pairing", "control_share", "expected"),
    [
        (SEVERAL_IN_ONE, "auto", 0.5, "perturbation"),
        (SEVERAL_IN_ONE, "auto", 0, "perturbation"),
        (SEVERAL_IN_ONE, "mixed", 0.5, "perturbation"),
        (SEVERAL_IN_ONE, "perturbation", 0, "perturbation"),
        (ONE_IN_SEVERAL, "auto", 0, "context"),
        (ONE_IN_SEVERAL, "auto", 0.5, "mixed"),
        (ONE_IN_SEVERAL, "context", 0.5, "context"),
        (ONE_IN_SEVERAL, "perturbation", 0.5, "perturbation"),
        (BOTH, "auto", 0, "mixed"),
        (BOTH, "auto", 0.5, "mixed"),
        (BOTH, "perturbation", 0.5, "perturbation"),
        (BOTH, "context", 0, "context"),
        ({("A", "C1"): 2, ("A", "C2"): 2}, "auto", 0.5, "context"),
    ],
    ids=str,
)
def test_pairing_is_resolved(sizes, pairing, control_share, expected):
    toy = Toy(sizes)
    assert resolve_pairing(toy.design, pairing, control_share) == expected
    pairs = draw(toy, pairing=expected, control_share=control_share)
    assert len(pairs)
    check(toy, pairs)


@pytest.mark.parametrize(
    ("sizes", "pairing", "control_share", "message"),
    [
        (BOTH, "random", 0.5, "pairing='random' must be 'auto', 'perturbation', 'context' or 'mixed'"),
        ({(CONTROL, "C1"): 3, (CONTROL, "C2"): 3}, "auto", 0.5, "no treated cells to train on, only 'control'"),
        *[
            (ONE_IN_ONE, pairing, share, "There is nothing to transfer: .*no context has two perturbations.*'A in C1'")
            for pairing in ("auto", *PAIRINGS)
            for share in (0, 0.5)
        ],
        ({("A", "C1"): 2, ("B", "C2"): 2, (CONTROL, "C1"): 2}, "auto", 0.5, "'A in C1', 'B in C2'"),
        (SEVERAL_IN_ONE, "context", 0.5, "pairing='context' needs a perturbation that was measured in two contexts"),
        (
            ONE_IN_SEVERAL,
            "perturbation",
            0,
            r"pairing='perturbation' needs two perturbations in one context, or control",
        ),
    ],
    ids=str,
)
def test_pairing_is_refused(sizes, pairing, control_share, message):
    with pytest.raises(ValueError, match=message):
        resolve_pairing(Toy(sizes).design, pairing, control_share)


def test_controls_elsewhere_are_no_partners():
    """Control cells in a context without treated ones make no pairs within a context."""
    sizes = {("A", "C1"): 2, ("A", "C2"): 2, (CONTROL, "C3"): 2}
    with pytest.raises(ValueError, match="pairing='perturbation' needs"):
        resolve_pairing(Toy(sizes).design, "perturbation", 0.5)


# ---- mini-batches


def sampler(toy, batch_size=4, seed=0, pairing="mixed", **options):
    return PairSampler(toy.design, seed, batch_size, pairing=pairing, **options)


def test_mini_batches_are_the_epochs_pairs(toy):
    batches = sampler(toy, seed=3)
    for epoch in (0, 1, 5):
        batches.set_epoch(epoch)
        np.testing.assert_array_equal(np.concatenate(list(batches)), draw(toy, epoch, 3))
    batches.set_epoch(0)
    np.testing.assert_array_equal(np.concatenate(list(batches)), draw(toy, 0, 3))
    options = {"control_share": 0.0, "balance": False, "pairing": "context"}
    np.testing.assert_array_equal(np.concatenate(list(sampler(toy, **options))), draw(toy, **options))


def test_without_resampling_every_epoch_has_the_same_pairs(toy):
    fixed = sampler(toy, resample=False)
    first = list(fixed)
    fixed.set_epoch(4)
    for one, other in zip(fixed, first, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(np.concatenate(first), draw(toy, 0))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 11, 22, 43, 44, 45, 46, 1000])
@pytest.mark.parametrize("num_replicas", [None, 1, 2, 3])
def test_mini_batches_are_of_equal_size(toy, batch_size, num_replicas):
    rank = None if num_replicas is None else num_replicas - 1
    batches = sampler(toy, batch_size, num_replicas=num_replicas, rank=rank)
    sizes = [len(batch) for batch in batches]
    share = ceil(45 / (num_replicas or 1))
    assert sum(sizes) == share
    assert len(sizes) == len(batches) == ceil(share / batch_size)
    assert max(sizes) - min(sizes) <= 1 and 1 <= min(sizes) and max(sizes) <= batch_size


@pytest.mark.parametrize("balance", [True, False])
@pytest.mark.parametrize("batch_size", [1, 4, 10])
@pytest.mark.parametrize("num_replicas", [2, 3, 16])
def test_processes_divide_the_same_pairs(toy, num_replicas, batch_size, balance):
    for epoch in range(2):
        shares = []
        for rank in range(num_replicas):
            batches = sampler(toy, batch_size, num_replicas=num_replicas, rank=rank, balance=balance)
            batches.set_epoch(epoch)
            assert len(list(batches)) == len(batches)
            shares.append(list(batches))
        assert len({len(share) for share in shares}) == 1
        assert len({sum(map(len, share)) for share in shares}) == 1
        everything = np.concatenate([batch for share in shares for batch in share])
        expected = draw(toy, epoch, n_multiple=num_replicas, balance=balance)
        assert Counter(map(tuple, everything)) == Counter(map(tuple, expected))


def test_more_processes_than_conditions():
    toy = Toy({("A", "C1"): 5, ("B", "C1"): 4})
    for balance in (True, False):
        sizes = {
            tuple(map(len, sampler(toy, 1, pairing="perturbation", balance=balance, num_replicas=4, rank=rank)))
            for rank in range(4)
        }
        assert sizes == {(1, 1, 1)}


# ---- profiles


@pytest.fixture(scope="module")
def responses():
    return tv.datasets.simulate_responses(
        n_contexts=2, n_perturbations=3, n_doubles=1, n_genes=20, n_cells_per_condition=5, n_control_cells_per_context=7
    )


def dataset(adata, **kwargs):
    tv.XTransferCDR.setup_anndata(adata, **kwargs)
    return PairDataset(tv.XTransferCDR._get_most_recent_anndata_manager(adata, required=True))


def real_pairs(adata, epoch=0):
    names = (adata.obs[key].astype(str).to_numpy(dtype=object) for key in ("perturbation", "cell_type"))
    design = make_design(*names, None, CONTROL, "+", np.arange(adata.n_obs))
    pairs = draw_pairs(design, epoch, 0, pairing="mixed")
    # some without a control, and some that come twice
    pairs[::5, RIGHT_CONTROL] = -1
    pairs[1::7, LEFT_CONTROL] = -1
    return np.concatenate([pairs, pairs[:9], pairs[:3, [RIGHT, LEFT, DOUBLE, RIGHT_CONTROL, LEFT_CONTROL, KIND]]])


def check_profiles(tensors, x, pairs):
    n = len(pairs)
    got = tensors["X"].numpy()
    assert got.dtype == np.float32
    doubles = pairs[pairs[:, KIND] == COMBINATION, DOUBLE]
    assert len(doubles) and len(got) == 4 * n + len(doubles)
    np.testing.assert_array_equal(got[:n], x[pairs[:, LEFT]])
    np.testing.assert_array_equal(got[n : 2 * n], x[pairs[:, RIGHT]])
    has_control = tensors["has_control"].numpy()
    controls = np.concatenate([pairs[:, LEFT_CONTROL], pairs[:, RIGHT_CONTROL]])
    np.testing.assert_array_equal(has_control, controls >= 0)
    np.testing.assert_array_equal(got[2 * n : 4 * n][has_control], x[controls[has_control]])
    np.testing.assert_array_equal(got[4 * n :], x[doubles])
    np.testing.assert_array_equal(tensors["pair_kind"].numpy(), pairs[:, KIND])


FORMATS = {"csr": sp.csr_matrix, "csc": sp.csc_matrix, "csr_array": sp.csr_array, "dense": lambda x: x.toarray()}


@pytest.mark.filterwarnings("ignore:Training will be faster when sparse matrix is formatted as CSR")
@pytest.mark.parametrize("kind", FORMATS)
def test_profiles_are_those_of_the_pairs(responses, kind):
    adata = responses.copy()
    x = adata.X.toarray()
    adata.X = FORMATS[kind](adata.X)
    rows = dataset(adata)
    assert len(rows) == adata.n_obs
    for epoch in range(2):
        pairs = real_pairs(adata, epoch)
        check_profiles(rows[pairs], x, pairs)
        # whatever the order of the cells, and of the memory
        backwards = pairs[::-2]
        check_profiles(rows[backwards], x, backwards)


def test_profiles_of_a_layer_and_of_other_types(responses):
    adata = responses.copy()
    adata.layers["double"] = adata.X.astype(np.float64) / 2
    pairs = real_pairs(adata)
    expected = adata.layers["double"].toarray().astype(np.float32)
    check_profiles(dataset(adata, layer="double")[pairs], expected, pairs)


@pytest.mark.parametrize("kind", ["csr", "dense"])
def test_profiles_of_a_file(responses, tmp_path, kind):
    adata = responses.copy()
    x = adata.X.toarray()
    adata.X = FORMATS[kind](adata.X)
    adata.layers["half"] = adata.X / 2
    adata.write_h5ad(tmp_path / "responses.h5ad")
    backed = ad.read_h5ad(tmp_path / "responses.h5ad", backed="r")
    pairs = real_pairs(adata)
    check_profiles(dataset(backed)[pairs], x, pairs)
    memory, file = dataset(adata)[pairs], dataset(backed)[pairs]
    for key in memory:
        np.testing.assert_array_equal(memory[key].numpy(), file[key].numpy())
    check_profiles(dataset(backed, layer="half")[pairs], x / 2, pairs)


def test_one_pair(responses):
    adata = responses.copy()
    pairs = real_pairs(adata)
    pairs = pairs[pairs[:, KIND] == COMBINATION][:1]
    check_profiles(dataset(adata)[pairs], adata.X.toarray(), pairs)
