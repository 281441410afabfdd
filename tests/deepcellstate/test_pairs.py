"""Pairs: which there are, the mini-batches that come of them, and which signatures are left to the validation."""

from collections import Counter
from itertools import groupby
from math import ceil

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

import transverse as tv
from transverse.deepcellstate._pairs import (
    DECODER,
    SOURCE,
    TARGET,
    Grid,
    PairDataset,
    PairDataSplitter,
    TurnSampler,
    WholeTargetSampler,
    split,
)

from .conftest import build

KINDS = ("self", "cross", "both")
# D5 is measured in one cell type alone, and twice; D0 twice in C1
PAIRS = [(0, 0), (0, 1), (0, 0), (1, 2), (1, 0), (1, 1), (2, 1), (2, 2), (3, 0), (3, 2), (4, 1), (4, 0), (5, 2), (5, 2)]


def make_grid(pairs=PAIRS, seed=0):
    order = np.random.default_rng(seed).permutation(len(pairs))
    return Grid(*np.array(pairs, dtype=np.int64)[order].T)


def large_grid(n_drugs=40, n_cell_types=3, n_replicates=2, seed=0):
    """Drugs in some cell types each, every fifth in a single one."""
    rng = np.random.default_rng(seed)
    pairs = []
    for drug in range(n_drugs):
        n = 1 if drug % 5 == 0 else rng.integers(2, n_cell_types + 1)
        pairs += [(drug, c) for c in rng.permutation(n_cell_types)[:n] for _ in range(n_replicates)]
    return make_grid(pairs, seed)


def every(grid):
    return np.arange(len(grid.perturbations))


def rows_of(table):
    return Counter(map(tuple, np.asarray(table).tolist()))


def by_loop(grid, targets, kind, decoders, sources):
    found = []
    for t in targets:
        for s in targets if sources is None else sources:
            if grid.perturbations[s] != grid.perturbations[t]:
                continue
            if decoders is not None and grid.cell_types[t] not in decoders:
                continue
            if (kind != "cross" and s == t) or (kind != "self" and grid.cell_types[s] != grid.cell_types[t]):
                found.append((s, t, grid.cell_types[t]))
    return Counter(found)


# ---- which pairs there are


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=25),
    st.sampled_from(KINDS),
    st.sampled_from([None, [1], [0, 3], []]),
    st.booleans(),
    st.integers(0, 5),
)
def test_pairs_by_a_loop(pairs, kind, decoders, own_sources, seed):
    grid = Grid(*np.array(pairs, dtype=np.int64).T)
    rng = np.random.default_rng(seed)
    targets, sources = (rng.permutation(len(pairs))[: rng.integers(0, len(pairs) + 1)] for _ in range(2))
    sources = sources if own_sources else None
    found = grid.pairs(targets, kind, decoders, sources)
    expected = by_loop(grid, targets, kind, decoders, sources)
    if kind != "cross" and sources is not None:  # a target that is not a source itself has no pair with itself
        expected = Counter({pair: n for pair, n in expected.items() if pair[0] != pair[1] or pair[0] in sources})
    assert rows_of(found) == expected
    assert found.shape == (sum(expected.values()), 3)
    keys = found[:, [DECODER, TARGET]].tolist()
    assert keys == sorted(keys)


def test_pairs_of_kinds():
    grid = make_grid()
    tables = {kind: grid.pairs(every(grid), kind) for kind in KINDS}
    assert len(tables["self"]) == len(PAIRS)
    assert rows_of(tables["both"]) == rows_of(tables["self"]) + rows_of(tables["cross"])
    # replicates are predicted from other cell types, and not from one another
    of_first = tables["cross"][grid.perturbations[tables["cross"][:, TARGET]] == 0]
    assert len(of_first) == 4
    assert not (grid.perturbations[tables["cross"]][:, [SOURCE, TARGET]] == 5).any()


def test_what_was_measured_elsewhere():
    grid = make_grid()
    np.testing.assert_array_equal(grid.shared, grid.perturbations != 5)
    crossing = np.isin(every(grid), grid.pairs(every(grid), "cross")[:, TARGET])
    np.testing.assert_array_equal(grid.shared, crossing)


def test_grid_of_a_model(sig):
    adata = sig.copy()
    kinds = np.random.default_rng(0).choice(["drug", "gene"], adata.n_obs)
    adata.obs["kind"] = kinds
    names, cell_types = (adata.obs[key].astype(str).to_numpy() for key in ("perturbation", "cell_type"))
    for setup, same_name in (({}, names), ({"perturbation_type_key": "kind"}, np.char.add(names, kinds))):
        model = build(adata, setup=setup)
        grid = model._grid()
        expected = {
            (i, j, model.cell_types_.index(cell_types[j]))
            for i in range(adata.n_obs)
            for j in range(adata.n_obs)
            if same_name[i] == same_name[j] and cell_types[i] != cell_types[j]
        }
        assert set(rows_of(grid.pairs(every(grid), "cross"))) == expected


# ---- mini-batches of the training


def turns_of(sampler, epoch=0):
    """Mini-batches, and those of every decoder's turn."""
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    assert all((batch[:, DECODER] == batch[0, DECODER]).all() for batch in batches)
    return batches, [(i, list(turn)) for i, turn in groupby(batches, lambda batch: int(batch[0, DECODER]))]


@pytest.mark.parametrize("n_passes", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 7, 1000])
def test_every_decoder_goes_through_its_pairs_in_its_turn(batch_size, n_passes):
    pairs = large_grid().pairs(every(large_grid()), "both")
    sampler = TurnSampler(pairs, batch_size, n_passes=n_passes)
    for epoch in range(3):
        batches, turns = turns_of(sampler, epoch)
        assert rows_of(np.concatenate(batches)) == Counter(dict.fromkeys(rows_of(pairs), n_passes))
        assert sorted(i for i, _ in turns) == [0, 1, 2]
        for i, turn in turns:
            own = pairs[pairs[:, DECODER] == i]
            sizes = [len(batch) for batch in turn]
            assert len(sizes) == n_passes * ceil(len(own) / batch_size)
            assert max(sizes) <= batch_size and max(sizes) - min(sizes) <= 1
            passes = np.split(np.concatenate(turn), n_passes)
            assert all(rows_of(one) == rows_of(own) for one in passes)
            assert all(not np.array_equal(one, passes[0]) for one in passes[1:])


def test_order_is_of_epoch_and_seed():
    pairs = large_grid().pairs(every(large_grid()), "cross")

    def order(epoch, seed):
        return np.concatenate(turns_of(TurnSampler(pairs, 8, seed), epoch)[0])

    first = order(2, 1)
    np.random.seed(7)
    np.testing.assert_array_equal(order(2, 1), first)
    for other in (order(3, 1), order(2, 2), order(1, 2)):
        assert not np.array_equal(other, first)
    orders = {tuple(i for i, _ in turns_of(TurnSampler(pairs, 8), epoch)[1]) for epoch in range(30)}
    assert len(orders) == 6


@pytest.mark.parametrize("n_passes", [1, 2])
@pytest.mark.parametrize("batch_size", [1, 5, 1000])
@pytest.mark.parametrize("num_replicas", [2, 3])
def test_processes_share_every_mini_batch(num_replicas, batch_size, n_passes):
    pairs = large_grid().pairs(every(large_grid()), "both")
    shares = [
        TurnSampler(pairs, batch_size, n_passes=n_passes, num_replicas=num_replicas, rank=rank)
        for rank in range(num_replicas)
    ]
    for epoch in range(2):
        of_process = [turns_of(share, epoch)[0] for share in shares]
        for parts in zip(*of_process, strict=True):
            assert len({int(part[0, DECODER]) for part in parts}) == 1
            # larger by one, rather than that a process is left without a pair
            sizes = [len(part) for part in parts]
            assert 1 <= min(sizes) <= max(sizes) <= batch_size + (batch_size == 1) and max(sizes) - min(sizes) <= 1
        everything = np.concatenate([part for parts in of_process for part in parts])
        assert rows_of(everything) == Counter(dict.fromkeys(rows_of(pairs), n_passes))


def test_no_mini_batch_is_empty():
    """A decoder with a single pair, or with one more pair than a mini-batch has: no process is left without any."""
    for n in (1, 2, 7):
        pairs = np.column_stack([np.arange(n), np.arange(n), np.zeros(n, dtype=int)])
        batches = [list(TurnSampler(pairs, 2, num_replicas=3, rank=rank)) for rank in range(3)]
        assert len({len(share) for share in batches}) == 1
        assert all(len(batch) for share in batches for batch in share)
        assert set(rows_of(np.concatenate([batch for share in batches for batch in share]))) == set(rows_of(pairs))


# ---- mini-batches of the validation


@pytest.mark.parametrize("batch_size", [1, 3, 10, 1000])
@pytest.mark.parametrize("kind", KINDS)
def test_targets_are_whole(batch_size, kind):
    grid = large_grid()
    pairs = grid.pairs(every(grid), kind)
    sampler = WholeTargetSampler(pairs, batch_size)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    assert rows_of(np.concatenate(batches)) == rows_of(pairs)
    largest = max(Counter(pairs[:, TARGET].tolist()).values())
    in_batch = Counter()
    for batch in batches:
        assert 0 < len(batch) < batch_size + largest
        assert (batch[:, DECODER] == batch[0, DECODER]).all()
        in_batch.update(set(batch[:, TARGET].tolist()))
    assert set(in_batch.values()) == {1} and len(in_batch) == len(np.unique(pairs[:, TARGET]))
    for one, other in zip(batches, sampler, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("num_replicas", [2, 3, 7])
def test_processes_share_the_targets(num_replicas):
    grid = large_grid()
    pairs = grid.pairs(every(grid), "cross")

    def shares(batch_size):
        return [list(WholeTargetSampler(pairs, batch_size, num_replicas, rank)) for rank in range(num_replicas)]

    everything = [batch for share in shares(2) for batch in share]
    assert rows_of(np.concatenate(everything)) == rows_of(pairs)
    # with less to do than processes, none is idle, and every pair counts the same
    few = [np.concatenate(share) for share in shares(1000)]
    counts = rows_of(np.concatenate(few))
    assert set(counts) == set(rows_of(pairs)) and len(set(counts.values())) == 1


# ---- profiles


FORMATS = {"csr": sp.csr_matrix, "csc": sp.csc_matrix, "csr_array": sp.csr_array, "dense": np.asarray}


def dataset(adata, **kwargs):
    tv.DeepCellState.setup_anndata(adata, **kwargs)
    return PairDataset(tv.DeepCellState._get_most_recent_anndata_manager(adata, required=True))


def check_profiles(rows, x, pairs):
    tensors = rows[pairs]
    assert set(tensors) == {"X", "target", "decoder", "group"}
    for key, column in (("X", SOURCE), ("target", TARGET)):
        assert tensors[key].numpy().dtype == np.float32
        np.testing.assert_array_equal(tensors[key].numpy(), x[pairs[:, column]])
    assert tensors["decoder"].item() == pairs[0, DECODER]
    group = tensors["group"].numpy()
    np.testing.assert_array_equal(np.unique(group), np.arange(len(np.unique(pairs[:, TARGET]))))
    np.testing.assert_array_equal(group[:, None] == group, pairs[:, [TARGET]] == pairs[:, TARGET])


@pytest.fixture
def some_pairs(sig):
    grid = build(sig)._grid()
    pairs = grid.pairs(every(grid), "both", [1])
    return pairs[np.random.default_rng(0).permutation(len(pairs))[:25]]


@pytest.mark.filterwarnings("ignore:Training will be faster when sparse matrix is formatted as CSR")
@pytest.mark.parametrize("kind", FORMATS)
def test_profiles_are_those_of_the_pairs(sig, some_pairs, kind, tmp_path):
    adata = sig.copy()
    x = adata.X.copy()
    adata.X = FORMATS[kind](x)
    adata.layers["half"] = FORMATS[kind](x.astype(np.float64) / 2)
    check_profiles(dataset(adata), x, some_pairs)
    check_profiles(dataset(adata), x, some_pairs[:1])
    check_profiles(dataset(adata, layer="half"), x / 2, some_pairs)
    if kind in ("csr", "dense"):
        adata.write_h5ad(tmp_path / "signatures.h5ad")
        backed = ad.read_h5ad(tmp_path / "signatures.h5ad", backed="r")
        check_profiles(dataset(backed), x, some_pairs)
        check_profiles(dataset(backed, layer="half"), x / 2, some_pairs)
        backed.file.close()


def splitter(model, train, validation, **kwargs):
    kwargs = {"kind": "both", "validation_kind": "cross", "batch_size": 8} | kwargs
    return PairDataSplitter(model.adata_manager, model._grid(), train, validation, **kwargs)


@pytest.fixture(scope="module")
def unfitted(sig):
    return build(sig)


def test_loaders(unfitted):
    grid = unfitted._grid()
    train, validation = split(grid, 0.8, None, True, 0)
    data = splitter(unfitted, train, validation, n_passes=2)
    x = unfitted.adata.X
    seen = list(data.train_dataloader())
    assert sum(len(batch["X"]) for batch in seen) == 2 * len(grid.pairs(train, "both"))
    trained = {row.tobytes() for row in x[train]}
    for batch in seen:
        assert all(row.numpy().tobytes() in trained for row in [*batch["X"], *batch["target"]])
    assert rows_of(data.validation_pairs) == rows_of(grid.pairs(validation, "cross"))
    targets = [row.numpy().tobytes() for batch in data.val_dataloader() for row in batch["target"]]
    assert set(targets) == {row.tobytes() for row in x[validation]}
    assert data.test_dataloader() is None
    np.testing.assert_array_equal(data.train_idx, train)
    np.testing.assert_array_equal(data.val_idx, validation)
    assert splitter(unfitted, train, validation[:0]).val_dataloader() is None


def test_all_through_one_decoder(unfitted):
    grid = unfitted._grid()
    train, validation = split(grid, 0.8, None, True, 0)
    data = splitter(unfitted, train, validation, kind="self", validation_kind="self", shared=True)
    for pairs, rows in ((data.train_pairs, train), (data.validation_pairs, validation)):
        assert (pairs[:, DECODER] == 0).all()
        np.testing.assert_array_equal(pairs[:, SOURCE], pairs[:, TARGET])
        np.testing.assert_array_equal(np.sort(pairs[:, TARGET]), rows)
    assert len({len(batch["X"]) for batch in data.train_dataloader()}) <= 2


def test_some_decoders(unfitted):
    grid = unfitted._grid()
    data = splitter(unfitted, every(grid), every(grid)[:0], decoders=[2])
    assert rows_of(data.train_pairs) == by_loop(grid, every(grid), "both", [2], None)


def test_validation_is_from_what_is_known(unfitted):
    """A pair left out is predicted from the same drug elsewhere, in the training or not; a third part is not shown."""
    grid = unfitted._grid()
    shared = np.flatnonzero(grid.shared)
    validation, rest = shared[::4], shared[1::4]
    train = np.setdiff1d(every(grid), np.union1d(validation, rest))
    data = splitter(unfitted, train, validation)
    known = np.union1d(train, validation)
    assert rows_of(data.validation_pairs) == by_loop(grid, validation, "cross", None, known)
    assert np.isin(data.validation_pairs[:, SOURCE], train).any()
    assert not np.isin(data.train_pairs[:, :DECODER], np.union1d(validation, rest)).any()


# ---- splits


def conditions(grid):
    return grid.perturbations * 100 + grid.cell_types


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("train_size", "validation_size"), [(None, None), (0.7, None), (0.5, 0.25), (0.9, 0.0)])
def test_whole_perturbations(train_size, validation_size, shuffle):
    grid = large_grid()
    train, validation = split(grid, train_size, validation_size, shuffle, 0)
    assert not np.intersect1d(train, validation).size
    names = grid.perturbations
    several = np.unique(names[grid.shared])
    assert len(several) == 32
    trained, validated = np.unique(names[train]), np.unique(names[validation])
    assert not set(trained) & set(validated)
    # those of one cell type alone cannot be validated by, and are all trained on
    assert set(validated) <= set(several) <= set(names)
    assert set(names) - set(several) <= set(trained)
    for rows, chosen in ((train, trained), (validation, validated)):
        np.testing.assert_array_equal(rows, np.flatnonzero(np.isin(names, chosen)))
    n_train = round((train_size or 0.95) * 32)
    assert len(set(several) & set(trained)) == n_train
    assert len(validated) == (32 - n_train if validation_size is None else round(validation_size * 32))
    if not shuffle:
        assert list(validated) == list(several[n_train : n_train + len(validated)])


def test_split_is_of_the_seed():
    grid = large_grid()
    found = [tuple(split(grid, 0.8, None, True, seed)[1]) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]


def test_few_perturbations_are_split_by_cell_type():
    """Ten drugs in four cell types; D0 and D5 in one alone, and the lone signature of C9 has no others to learn from."""
    pairs = [(drug, c) for drug in range(10) for c in ([0] if drug % 5 == 0 else range(4)) for _ in range(2)]
    grid = make_grid([*pairs, (1, 9)])
    seen = Counter()
    for seed in range(150):
        train, validation = split(grid, None, None, True, seed)
        assert sorted([*train, *validation]) == list(every(grid))
        # replicates stay together
        assert not set(conditions(grid)[train]) & set(conditions(grid)[validation])
        validated = np.unique(conditions(grid)[validation])
        assert len(validated) == 32 - round(0.9 * 32) == 3
        seen.update(validated.tolist())
    assert set(seen) == {100 * drug + c for drug in (1, 2, 3, 4, 6, 7, 8, 9) for c in range(4)}
    train, validation = split(grid, 0.5, 0.25, False, 0)
    assert len(np.unique(conditions(grid)[validation])) == 8
    assert len(train) + len(validation) == len(every(grid)) - 2 * 8


def test_very_few_signatures_are_all_trained_on():
    grid = make_grid([(drug, c) for drug in range(9) for c in range(2)])
    train, validation = split(grid, None, None, True, 0)
    np.testing.assert_array_equal(train, every(grid))
    assert len(validation) == 0
    assert len(np.unique(conditions(grid)[split(grid, 0.5, None, True, 0)[1]])) == 9


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0.0, None), "train_size=0.0 must be above 0 and at most 1"),
        ((1.1, None), "train_size=1.1 must be above 0"),
        ((np.nan, None), "train_size=nan must be above 0"),
        ((0.8, 0.3), "validation_size=0.3 must be between 0 and what train_size=0.8 leaves"),
        ((0.8, -0.1), "validation_size=-0.1 must be between 0"),
    ],
    ids=str,
)
def test_sizes_that_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        split(large_grid(), *sizes, True, 0)


def test_no_cell_type_is_left_without_training():
    """Three perturbations in many cell types, of which most have two."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        table = np.array([(p, c) for c in range(15) for p in rng.permutation(3)[:2]])
        grid = Grid(*table.T)
        train, validation = split(grid, 0.6, None, True, seed)
        assert len(validation) == 12
        assert set(grid.cell_types[train]) == set(range(15))
