"""What all figures of results have in common: ``show``, ``save``, ``ax``, and input that stays as it is."""

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scanpy as sc

import transverse as tv

GROUPS = ["B cell", "T cell", "NK cell"]
RNG = np.random.default_rng(0)


def _lfc():
    table = pd.DataFrame({"group": np.repeat(GROUPS, 30), "target_gene": [f"GENE{i}" for i in range(30)] * 3})
    return table.assign(lfc=RNG.normal(0, 3, 90), probability=RNG.uniform(size=90))


def _relevance():
    tables = []
    for species, other in (("context", "target"), ("target", "context")):
        table = pd.DataFrame({"group": np.repeat(GROUPS, 20), "gene": [f"{species}{i}" for i in range(20)] * 3})
        table = table.assign(species=species, ortholog=table["gene"].str.replace(species, other))
        table["relevance"] = RNG.normal(size=60)
        tables.append(table.assign(absolute_relevance=table["relevance"].abs(), expression=RNG.gamma(1, size=60)))
    return pd.concat(tables, ignore_index=True)


def _curves():
    index = pd.MultiIndex.from_product([range(20), GROUPS, GROUPS], names=["step", "target_type", "context_type"])
    return pd.DataFrame({"negative_log_likelihood": RNG.normal(size=len(index))}, index=index).reset_index()


def _gene_map():
    table = pd.DataFrame({"source": np.repeat([f"m{i}" for i in range(6)], 3), "rank": [1, 2, 3] * 6})
    table = table.assign(target=[f"r{i}" for i in RNG.permutation(18)], is_mutual_best=table["rank"] == 1)
    return table.assign(score=RNG.normal(size=18), probability=RNG.uniform(size=18))


LABELS = pd.Series(RNG.choice(GROUPS, 50), index=[f"cell{i}" for i in range(50)])
CASES = {  # the function, its input, and the number of axes
    "calibration": (tv.pl.calibration, (pd.Series(RNG.uniform(size=50)), pd.Series(RNG.uniform(size=50) < 0.5)), 1),
    "gene_map": (tv.pl.gene_map, (_gene_map(),), 1),
    "label_accuracy": (tv.pl.label_accuracy, (LABELS.astype("category"), LABELS.sample(frac=1, random_state=0)), 1),
    "label_confusion": (tv.pl.label_confusion, (LABELS.astype("category"), LABELS.sample(frac=1, random_state=0)), 1),
    "lfc_volcano": (tv.pl.lfc_volcano, (_lfc(),), 3),
    "prototype_curves": (tv.pl.prototype_curves, (_curves(),), 3),
    "relevance_scatter": (tv.pl.relevance_scatter, (_relevance(),), 3),
    "similarity_heatmap": (tv.pl.similarity_heatmap, (pd.DataFrame(RNG.normal(size=(3, 4))),), 1),
}
GRIDS = [name for name, case in CASES.items() if case[2] > 1]


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def test_all_are_exported():
    assert set(tv.pl.__all__) == {
        *CASES,
        "species_umap",
        "benchmark",
        "prediction_scatter",
        "change_boxplot",
        "prediction_umap",
        "score_boxplot",
        "ablation",
        "signature_strips",
        "signature_scatter",
        "fold_over_baseline",
        "latent_agreement",
        "reactome_heatmap",
    }


def test_axes_are_returned_and_the_input_is_left_alone(case):
    function, args, n_axes = case
    before = [arg.copy() for arg in args]
    result = function(*args, show=False)
    assert len(plt.get_fignums()) == 1
    if n_axes == 1:
        assert isinstance(result, plt.Axes)
    else:
        assert isinstance(result, list)
        assert len(result) == n_axes
    for arg, copy in zip(args, before, strict=True):
        (pd.testing.assert_frame_equal if isinstance(arg, pd.DataFrame) else pd.testing.assert_series_equal)(arg, copy)


def test_own_axes(case):
    function, args, n_axes = case
    figure, own = plt.subplots(1, n_axes)
    result = function(*args, ax=own, show=False)
    assert plt.get_fignums() == [figure.number]
    assert list(np.ravel(result)) == list(np.ravel(own))
    assert all(axes.has_data() for axes in np.ravel(own))


def test_own_axes_of_a_subfigure(case, tmp_path):
    function, args, n_axes = case
    subfigure = plt.figure().subfigures(1, 2)[0]
    function(*args, ax=subfigure.subplots(1, n_axes), show=False, save=tmp_path / "figure.png")
    assert (tmp_path / "figure.png").exists()


def test_wrong_number_of_axes(case):
    function, args, n_axes = case
    with pytest.raises(ValueError, match=f"an Axes for each of the {n_axes} .*, but holds 4"):
        function(*args, ax=plt.subplots(1, 4)[1])


@pytest.mark.parametrize("suffix", ["png", "pdf"])
def test_save(case, tmp_path, suffix):
    function, args, _ = case
    path = tmp_path / f"figure.{suffix}"
    function(*args, show=False, save=path)
    assert path.stat().st_size > 1000


@pytest.mark.parametrize(
    ("show", "own_axes", "autoshow", "expected"),
    [
        (False, False, True, 0),
        (True, False, False, 1),
        (True, True, False, 1),
        (None, False, True, 1),
        (None, False, False, 0),
        (None, True, True, 0),
    ],
)
def test_show(case, monkeypatch, show, own_axes, autoshow, expected):
    function, args, n_axes = case
    calls = []
    monkeypatch.setattr(plt, "show", lambda *args, **kwargs: calls.append(1))
    monkeypatch.setattr(sc, "settings", SimpleNamespace(autoshow=autoshow))
    function(*args, show=show, ax=plt.subplots(1, n_axes)[1] if own_axes else None)
    assert len(calls) == expected


@pytest.mark.parametrize("name", GRIDS)
def test_grid(name):
    function, args, _ = CASES[name]
    axes = function(*args, ncols=2, show=False)
    assert [panel.get_title().split("\n")[0] for panel in axes] == GROUPS
    places = [panel.get_subplotspec() for panel in axes]
    assert [(place.rowspan.start, place.colspan.start) for place in places] == [(0, 0), (0, 1), (1, 0)]
    with pytest.raises(ValueError, match="ncols=0"):
        function(*args, ncols=0)


@pytest.mark.parametrize("name", GRIDS)
def test_chosen_groups(name):
    function, (table,), _ = CASES[name]
    for chosen, expected in [
        ("T cell", ["T cell"]),
        (["NK cell", "B cell"], ["NK cell", "B cell"]),
        (["T cell", "T cell"], ["T cell"]),
    ]:
        axes = function(table, chosen, show=False)
        assert [panel.get_title().split("\n")[0] for panel in axes] == expected
    group = "target_type" if name == "prototype_curves" else "group"
    ordered = table.assign(**{group: pd.Categorical(table[group], [*GROUPS[::-1], "absent"])})
    assert [panel.get_title().split("\n")[0] for panel in function(ordered, show=False)] == GROUPS[::-1]


@pytest.mark.parametrize("name", GRIDS)
def test_errors_of_tables(name):
    function, (table,), _ = CASES[name]
    group = "target_type" if name == "prototype_curves" else "group"
    with pytest.raises(TypeError, match="table must be a pandas.DataFrame, but got dict"):
        function(table.to_dict())
    with pytest.raises(KeyError, match=rf"table lacks the columns \['{group}'\]"):
        function(table.drop(columns=group))
    with pytest.raises(ValueError, match="table is empty"):
        function(table.iloc[:0])
    with pytest.raises(KeyError, match="not in the table: 'hepatocyte'. Known: 'B cell', 'T cell', 'NK cell'"):
        function(table, ["B cell", "hepatocyte"])
    with pytest.raises(ValueError, match="must name at least one"):
        function(table, [])
    many = pd.concat([table.assign(**{group: f"type {i}"}) for i in range(7)])
    with pytest.raises(KeyError, match=r"'type 4', \.\.\. \(7 in all\)"):
        function(many, "hepatocyte")
    assert not plt.get_fignums()  # no empty figure stays behind
