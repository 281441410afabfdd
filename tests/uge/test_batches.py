"""Mini-batches: which samples and genes are in them, what they are shown as, and what is read of them."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from transverse.uge._batches import BatchDataset, BatchSampler, BatchSplitter, bin_values

from .conftest import build, dense

SIZES = (13, 7, 4)
GENE_SPECIES = np.repeat([0, 1, 2], (20, 15, 10))
ROWS = np.split(np.random.default_rng(0).permutation(30)[:24], np.cumsum(SIZES)[:-1])
SPECIES_OF = {int(row): s for s, rows in enumerate(ROWS) for row in rows}
GENES = [np.flatnonzero(GENE_SPECIES == s) for s in range(3)]
TOKENS = [np.sort(np.random.default_rng(1).choice(genes, len(genes) - 3, replace=False)) for genes in GENES]


def sampler(**kwargs):
    options = {"rows": ROWS, "tokens": TOKENS, "genes": GENES, "batch_size": 6, "n_tokens": 9, "n_genes": 12} | kwargs
    return BatchSampler(**options)


def epoch(of, number=0):
    of.set_epoch(number)
    return list(of)


def blocks(batches):
    return [block for samples, _ in batches for block in samples]


def rows_of(batches):
    return Counter(int(row) for rows, *_ in blocks(batches) for row in rows)


def text(batches):
    """Batches as something that can be compared."""
    return repr(
        [[[np.asarray(part).tolist() for part in block] for block in part] for batch in batches for part in batch]
    )


def make_counterparts(n_draws=6):
    """Genes of every species for every gene, of which its own species has what is no gene at all."""
    rng = np.random.default_rng(2)
    found = np.stack([rng.choice(genes, (len(GENE_SPECIES), n_draws)) for genes in GENES], axis=1)
    found[np.arange(len(GENE_SPECIES)), GENE_SPECIES] = -1
    return found


# ---- samples and genes of an epoch


@pytest.mark.parametrize("batch_size", [3, 6, 24, 100])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_sample_once_an_epoch(shuffle, batch_size):
    one = sampler(shuffle=shuffle, batch_size=batch_size)
    for number in range(3):
        batches = epoch(one, number)
        assert rows_of(batches) == Counter(SPECIES_OF.keys())
        assert len(batches) == len(one) == -(-24 // batch_size)
        for samples, _ in batches:
            assert 0 < sum(len(rows) for rows, *_ in samples) < batch_size + 3  # as even as whole samples can be


def test_blocks_are_of_one_species():
    for samples, genes in epoch(sampler()):
        own = [{SPECIES_OF[int(row)] for row in rows} for rows, *_ in samples]
        assert all(len(of_block) == 1 for of_block in own)
        assert len(set.union(*own)) == len(samples)  # and each species has one
        for (species,), (rows, tokens, shown_species, shown) in zip(own, samples, strict=True):
            assert shown_species == species and shown is tokens
            assert len(set(tokens)) == 9 - 2 * (species == 2) and set(tokens) <= set(TOKENS[species])
            assert (np.diff(rows) > 0).all()  # as a file gives them
        assert [s for s, _ in genes] == [0, 1, 2]
        for s, chosen in genes:
            assert len(set(chosen)) == min(12, len(GENES[s])) and set(chosen) <= set(GENES[s])


def test_species_are_in_all_batches_where_they_can():
    batches = epoch(sampler(batch_size=8))
    assert [len(samples) for samples, _ in batches] == [3, 3, 3]
    sizes = np.array([[len(rows) for rows, *_ in samples] for samples, _ in batches])
    assert np.ptp(sizes.sum(axis=1)) <= 1 and np.ptp(sizes, axis=0).max() <= 2


@pytest.mark.parametrize("translated", [0.0, 0.5])
def test_batches_are_those_of_seed_and_epoch(translated):
    def make(seed=3):
        return sampler(seed=seed, translated=translated, counterparts=make_counterparts())

    first, again, other = make(), make(), make(4)
    epochs = [text(epoch(first, number)) for number in range(3)]
    assert epochs == [text(epoch(again, number)) for number in range(3)]
    assert text(epoch(first, 1)) == epochs[1]  # whatever came before
    assert len(set(epochs)) == 3
    assert text(epoch(other)) != epochs[0]
    # samples come together with other samples, genes and tokens are others
    one, two = epoch(first, 0), epoch(first, 1)
    for part in range(2):
        assert text([[batch[part]] for batch in one]) != text([[batch[part]] for batch in two])
    assert any(not np.array_equal(a[1], b[1]) for a, b in zip(blocks(one), blocks(two), strict=True))


def test_global_random_numbers_are_left_alone():
    one = sampler()
    expected = text(epoch(one))
    np.random.seed(1)
    state, of_torch = np.random.get_state()[1].copy(), torch.get_rng_state()
    assert text(epoch(one)) == expected
    assert np.array_equal(np.random.get_state()[1], state) and torch.equal(torch.get_rng_state(), of_torch)


def test_tokens_are_drawn_anew_for_every_block_and_all_the_same():
    one = sampler()
    tokens = [block[1] for number in range(40) for block in blocks(epoch(one, number)) if block[2] == 0]
    assert len({tuple(chosen) for chosen in tokens}) > 100
    counts = np.bincount(np.concatenate(tokens), minlength=20)[TOKENS[0]] / len(tokens)
    np.testing.assert_allclose(counts, 9 / 17, atol=0.16)  # four standard errors of 160 draws


def test_no_more_tokens_and_genes_than_there_are():
    for samples, genes in epoch(sampler(n_tokens=1000, n_genes=1000)):
        for _, tokens, species, _ in samples:
            assert np.array_equal(tokens, TOKENS[species])
        for s, chosen in genes:
            assert np.array_equal(chosen, GENES[s])


def test_batches_of_genes_alone():
    one = sampler(rows=None, n_batches=5)
    batches = epoch(one)
    assert len(batches) == len(one) == 5
    assert all(samples == [] and len(genes) == 3 for samples, genes in batches)
    assert len({tuple(genes[0][1]) for _, genes in batches}) == 5
    assert text(epoch(one, 1)) != text(batches)


def test_batches_of_samples_alone():
    assert all(genes == [] for _, genes in epoch(sampler(n_genes=0)))


def test_species_without_samples_or_features():
    """Their samples are all held out, or they have no genes with features."""
    no_rows = [ROWS[0], ROWS[1], np.array([], dtype=int)]
    batches = epoch(sampler(rows=no_rows))
    assert rows_of(batches) == Counter([*ROWS[0].tolist(), *ROWS[1].tolist()])
    assert all(len(samples) == 2 and len(genes) == 3 for samples, genes in batches)
    no_genes = [GENES[0], np.array([], dtype=int), GENES[2]]
    assert all([s for s, _ in genes] == [0, 2] for _, genes in epoch(sampler(genes=no_genes)))


def test_validation_is_always_the_same():
    one = sampler(shuffle=False, seed=1, translated=1.0, counterparts=make_counterparts())
    other = sampler(shuffle=False, seed=2)
    expected = epoch(one)
    assert text(expected) == text(epoch(one, 5)) == text(epoch(other))
    for _, tokens, species, shown in blocks(expected):  # nothing is translated
        assert np.array_equal(tokens, TOKENS[species][:9]) and np.array_equal(shown, tokens)
    for s, rows in enumerate(ROWS):
        found = [block[0] for block in blocks(expected) if block[2] == s]
        assert set(np.concatenate(found)) == set(rows)


# ---- several processes


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("batch_size", [3, 6])
@pytest.mark.parametrize("n", [2, 3])
def test_processes_share_the_samples(n, batch_size, shuffle):
    shares = [sampler(num_replicas=n, rank=rank, shuffle=shuffle, batch_size=batch_size) for rank in range(n)]
    for number in range(2):
        batches = [epoch(one, number) for one in shares]
        rows = [rows_of(of_process) for of_process in batches]
        assert sum(rows, Counter()) == Counter(SPECIES_OF.keys())
        # all wait for one another after each
        assert (
            {len(of_process) for of_process in batches} == {len(one) for one in shares} == {-(-24 // (n * batch_size))}
        )
        sizes = [sum(of_process.values()) for of_process in rows]
        assert max(sizes) - min(sizes) <= 3  # one of each species
    assert rows_of(epoch(shares[0], 0)) != rows_of(epoch(shares[0], 1)) or not shuffle


def test_one_process_by_default():
    assert text(epoch(sampler(num_replicas=1, rank=0))) == text(epoch(sampler()))


@pytest.mark.parametrize("batch_size", [1, 2])
def test_no_batch_without_samples(batch_size):
    """Fewer samples in a mini-batch than species: each still has some, and not more than asked for."""
    sizes = [sum(len(rows) for rows, *_ in samples) for samples, _ in epoch(sampler(batch_size=batch_size))]
    assert min(sizes) > 0 and max(sizes) <= batch_size


def test_every_process_has_samples_where_there_are_enough():
    rows = [np.array([0]), np.array([1])]
    for rank in range(2):
        one = sampler(rows=rows, tokens=TOKENS[:2], genes=GENES[:2], num_replicas=2, rank=rank)
        assert sum(rows_of(epoch(one)).values()) == 1


# ---- samples that are shown as another species'


@pytest.mark.parametrize("translated", [0.0, 0.3, 1.0])
def test_the_share_of_translated_blocks(translated):
    one = sampler(translated=translated, counterparts=make_counterparts())
    found, towards = [], Counter()
    for number in range(40):
        for rows, _, shown_species, _ in blocks(epoch(one, number)):
            species = SPECIES_OF[int(rows[0])]
            found.append(species != shown_species)
            towards[species, shown_species] += 1
    assert len(found) == 40 * 4 * 3
    np.testing.assert_allclose(np.mean(found), translated, atol=4 * np.sqrt(0.25 / len(found)) * (translated == 0.3))
    if translated == 1:  # the other species take turns
        assert set(towards) == {(s, t) for s in range(3) for t in range(3) if s != t}
        assert min(towards.values()) > 0.35 * 160


def test_translated_genes_are_counterparts():
    counterparts = make_counterparts()
    one = sampler(translated=0.7, counterparts=counterparts)
    drawn = {}
    for number in range(40):
        batches = epoch(one, number)
        assert rows_of(batches) == Counter(SPECIES_OF.keys())  # each is shown once all the same
        for rows, tokens, shown_species, shown in blocks(batches):
            species = SPECIES_OF[int(rows[0])]
            assert set(tokens) <= set(TOKENS[species])  # what is read is of its own species
            assert (GENE_SPECIES[shown] == shown_species).all() and shown.shape == tokens.shape
            if shown_species == species:
                assert np.array_equal(shown, tokens)
                continue
            for token, gene in zip(tokens, shown, strict=True):
                assert gene in counterparts[token, shown_species]
                drawn.setdefault((token, shown_species), Counter())[gene] += 1
    # every draw of a gene has its turn, as often as it was drawn
    for (token, species), found in drawn.items():
        n = found.total()
        if n >= 30:
            expected = Counter(counterparts[token, species].tolist())
            for gene, times in expected.items():
                assert abs(found[gene] / n - times / 6) < 0.4
    assert sum(found.keys() == set(counterparts[key]) for key, found in drawn.items()) > 0.8 * len(drawn)


def test_without_counterparts_nothing_is_translated():
    for rows, _, shown_species, _ in blocks(epoch(sampler(translated=1.0))):
        assert shown_species == SPECIES_OF[int(rows[0])]


# ---- what a batch holds


@pytest.fixture(params=["sparse", "dense", "layer"])
def data(request, stacked):
    """Registered data, its values, and what there is of genes and samples; in one of the ways that data are kept."""
    setup = {"animal_key": "animal"}
    values = dense(stacked.X)
    if request.param == "dense":
        stacked.X = values
    if request.param == "layer":
        setup["layer"] = "logs"
        stacked.layers["logs"] = stacked.X.copy()
        stacked.X = stacked.layers["counts"].copy()
    model = build(stacked, setup=setup)
    rng = np.random.default_rng(0)
    known = {
        "features": rng.normal(size=(120, 4)).astype(np.float32),
        "centers": rng.normal(size=120),
        "labels": {key: rng.integers(-1, 4, size=96) for key in ("organ", "drug")},
    }
    return model.adata_manager, values, known


def test_what_a_batch_holds(data):
    manager, values, known = data
    dataset = BatchDataset(manager, **known)
    assert len(dataset) == 96
    rows, tokens = np.array([[3, 8, 40], [50, 51, 70]]), np.array([[7, 2, 119], [90, 0, 4]])
    shown = np.array([61, 119, 61])  # two genes may have the same counterpart
    samples = [(rows[0], tokens[0], 0, tokens[0]), (rows[1], tokens[1], 1, shown)]
    batch = dataset[samples, [(0, np.array([5, 9])), (1, np.array([100]))]]
    assert set(batch) == {"samples", "genes"}
    for block, own, read, species, as_genes in zip(
        batch["samples"], rows, tokens, (0, 1), (tokens[0], shown), strict=True
    ):
        assert set(block) == {"species", "tokens", "values", "organ", "drug"}
        assert int(block["species"]) == species
        np.testing.assert_array_equal(block["tokens"].numpy(), as_genes)
        # of the genes that were read, not of those that they are shown as
        expected = np.array([[values[i, g] - known["centers"][g] for g in read] for i in own])
        np.testing.assert_allclose(block["values"].numpy(), expected, rtol=1e-5, atol=1e-6)
        assert block["values"].dtype == torch.float32
        for key in ("organ", "drug"):
            np.testing.assert_array_equal(block[key].numpy(), known["labels"][key][own])
    for block, species, genes in zip(batch["genes"], (0, 1), ([5, 9], [100]), strict=True):
        assert int(block["species"]) == species
        np.testing.assert_array_equal(block["tokens"].numpy(), genes)
        np.testing.assert_array_equal(block["values"].numpy(), known["features"][genes])


def test_batches_may_lack_samples_or_genes(data):
    manager, _, known = data
    dataset = BatchDataset(manager, **known)
    assert set(dataset[[], [(0, np.array([1]))]]) == {"genes"}
    block = (np.array([1]), np.array([1]), 0, np.array([1]))
    assert set(dataset[[block], []]) == {"samples"}


def test_bins_and_conditions(data):
    manager, values, known = data
    conditions = np.random.default_rng(1).integers(5, size=(96, 2))
    dataset = BatchDataset(manager, **known, conditions=conditions, n_bins=6)
    rows, tokens = np.array([2, 9, 33]), np.arange(4, 30)
    (block,) = dataset[[(rows, tokens, 1, tokens + 60)], []]["samples"]
    np.testing.assert_array_equal(block["conditions"].numpy(), conditions[rows])
    expected = np.stack([numpy_bins(values[i, tokens], 6) for i in rows])
    np.testing.assert_array_equal(block["bins"].numpy(), expected)  # of values that are not relative to anything
    assert expected.max() > 1


def test_a_translated_epoch_through_the_dataset(trained):
    """With a trained model's own counterparts, values and labels are those of the rows and genes that were read."""
    manager, values = trained.adata_manager, dense(trained.adata.X)
    of_gene = (trained.adata.var["species"] == "rat").to_numpy().astype(int)
    of_sample = (trained.adata.obs["species"] == "rat").to_numpy().astype(int)
    rng = np.random.default_rng(0)
    labels = {key: rng.integers(-1, 4, size=96) for key in ("organ", "drug")}
    centers = trained.gene_means_
    dataset = BatchDataset(manager, trained.features_, centers, labels)
    own = [np.flatnonzero(of_gene == s) for s in range(2)]
    found = rng.choice(60, (120, 2, 5)) + np.array([0, 60])[None, :, None]
    one = BatchSampler(
        [np.flatnonzero(of_sample == s) for s in range(2)],
        own,
        own,
        batch_size=16,
        n_tokens=10,
        n_genes=5,
        counterparts=found,
        translated=0.5,
    )
    kinds = Counter()
    for batch in one:
        for (rows, tokens, species, shown), block in zip(batch[0], dataset[batch]["samples"], strict=True):
            own_species = of_sample[rows[0]]
            kinds[own_species == species] += 1
            assert int(block["species"]) == species
            assert (of_gene[tokens] == own_species).all() and (of_gene[block["tokens"].numpy()] == species).all()
            np.testing.assert_array_equal(block["tokens"].numpy(), shown)
            np.testing.assert_allclose(
                block["values"].numpy(), values[np.ix_(rows, tokens)] - centers[tokens], rtol=1e-5, atol=1e-5
            )
            for key in ("organ", "drug"):
                np.testing.assert_array_equal(block[key].numpy(), labels[key][rows])
    assert len(kinds) == 2


# ---- bins


def numpy_bins(x, n_bins):
    bins = np.zeros(len(x), dtype=int)
    if (x > 0).any():
        edges = np.quantile(x[x > 0].astype(np.float32), np.linspace(0, 1, n_bins, dtype=np.float32)[1:-1])
        bins[x > 0] = 1 + np.digitize(x[x > 0], edges.astype(np.float32))
    return bins


@pytest.mark.parametrize("n_bins", [3, 5, 51])
def test_bins_row_by_row(n_bins):
    rng = np.random.default_rng(0)
    x = rng.gamma(1.0, size=(8, 200)).astype(np.float32) * (rng.random((8, 200)) < np.linspace(0.02, 1, 8)[:, None])
    x[2] = 0
    found = bin_values(torch.from_numpy(x), n_bins).numpy()
    expected = np.array([numpy_bins(row, n_bins) for row in x])
    # where a quantile is one of the values, its rounding decides
    assert np.abs(found - expected).max() <= 1 and (found == expected).mean() > 0.99
    if n_bins < 51:
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found == 0, x == 0)
    assert found.max() == n_bins - 1 and (found[2] == 0).all()
    for row, bins in zip(x, found, strict=True):  # larger values have no lower bins
        assert (np.diff(bins[np.argsort(row)]) >= 0).all()
    # those of a sample with many different values are of the same size
    sizes = np.bincount(found[-1][x[-1] > 0], minlength=n_bins)[1:]
    assert np.ptp(sizes) <= 1 + (n_bins == 51)


def test_bins_of_samples_are_their_own():
    x = torch.from_numpy(np.random.default_rng(0).gamma(1.0, size=(4, 30)))
    alone = torch.cat([bin_values(row[None], 6) for row in x])
    assert torch.equal(bin_values(x, 6), alone)
    assert torch.equal(bin_values(x * torch.tensor([[1.0], [3.0], [0.5], [10.0]]), 6), alone)  # ranks alone count


def test_bins_of_what_does_not_differ():
    x = torch.zeros(3, 10)
    x[1] = 2.5
    x[2, 3] = 0.7  # a single value
    found = bin_values(x, 7)
    assert found.dtype == torch.long and (found[0] == 0).all()
    assert len(found[1].unique()) == 1 and 1 <= int(found[1, 0]) < 7
    assert found[2].count_nonzero() == 1 and 1 <= int(found[2, 3]) < 7


def test_equal_values_have_the_same_bin():
    x = torch.tensor([[0.0, 1, 1, 1, 2, 2, 3, 0, 3, 3]])
    found = bin_values(x, 4)[0].numpy()
    for value in range(4):
        assert len(set(found[x[0].numpy() == value])) == 1
    np.testing.assert_array_equal(found, numpy_bins(x[0].numpy(), 4))


def test_two_bins_are_zero_and_the_rest():
    x = torch.tensor([[0.0, 1.0, 2.0], [0.0, 0.0, 0.0]])
    assert bin_values(x, 2).tolist() == [[0, 1, 1], [0, 0, 0]]


# ---- loaders


def make_splitter(model, with_samples=True, validation=(), **kwargs):
    of_sample = (model.adata.obs["species"] == "rat").to_numpy().astype(int)
    validation = np.asarray(validation, dtype=int)
    train = np.setdiff1d(np.arange(0, 96, 2), validation)
    genes = [np.arange(60), np.arange(60, 120)]
    labels = {key: np.zeros(96, dtype=np.int64) for key in ("organ", "drug")}
    dataset = BatchDataset(model.adata_manager, np.zeros((120, 3), dtype=np.float32), np.zeros(120), labels)
    options = {"tokens": genes, "genes": genes, "batch_size": 10, "n_tokens": 8, "n_genes": 5}
    splitter = BatchSplitter(
        model.adata_manager, dataset, train, validation, of_sample, with_samples, options, **kwargs
    )
    return splitter, train, of_sample


def found_rows(model, loader):
    """Which samples a loader gives, by what is read of them."""
    values = dense(model.adata.X)
    names = Counter()
    for batch in loader:
        for block in batch["samples"]:
            read = block["values"].numpy()
            for x in read:
                (row,) = np.flatnonzero((values[:, block["tokens"].numpy()] == x).all(axis=1))
                names[int(row)] += 1
    return names


def test_loaders(trained):
    splitter, train, of_sample = make_splitter(trained, validation=np.arange(1, 96, 9))
    loader, validation = splitter.train_dataloader(), splitter.val_dataloader()
    assert isinstance(loader, DataLoader) and len(loader) == -(-len(train) // 10) and len(validation) == 2
    assert splitter.test_dataloader() is None
    for batch in loader:
        assert set(batch) == {"samples", "genes"}
        assert [int(block["species"]) for block in batch["samples"]] == [0, 1]
        assert all(block["values"].shape[1] == 8 for block in batch["samples"])
        assert [block["values"].shape for block in batch["genes"]] == [(5, 3), (5, 3)]
    assert found_rows(trained, loader) == Counter(train.tolist())
    # of the validation, samples alone, and each time the same
    first = list(validation)
    validation.sampler.set_epoch(3)
    second = list(validation)
    assert all(set(batch) == {"samples"} for batch in first)
    assert found_rows(trained, validation) == Counter(np.arange(1, 96, 9).tolist())
    for one, other in zip(first, second, strict=True):
        for a, b in zip(one["samples"], other["samples"], strict=True):
            assert all(torch.equal(a[key], b[key]) for key in a)
    # samples that are in neither are read by none
    assert len(splitter.test_idx) == 96 - len(train) - 11


def test_loaders_of_a_stage_of_genes(trained):
    splitter, *_ = make_splitter(trained, with_samples=False, validation=[1, 3])
    loader = splitter.train_dataloader()
    assert len(loader) == 50 and splitter.val_dataloader() is None
    assert all(set(batch) == {"genes"} for batch in loader)


def test_no_loader_of_no_validation(trained):
    assert make_splitter(trained)[0].val_dataloader() is None


def test_a_loader_takes_the_data_loaders_arguments(trained):
    splitter, *_ = make_splitter(trained, persistent_workers=False, distributed_sampler=True)
    loader = splitter.train_dataloader()
    assert loader.batch_size is None and not loader.persistent_workers
    assert isinstance(loader.sampler, BatchSampler)
