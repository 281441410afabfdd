"""Scores of responses, against their formulas written out, and what keeps noise from looking like skill."""

import re
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import transverse as tv

score = tv.metrics.response_scores
METRICS = ["r2", "explained_variance", "pearson", "spearman", "rmse"]
KINDS = ["dense", "csr", "csc", "layer", "view", "backed dense", "backed sparse"]


def ranks(x):
    return np.array([(x < v).sum() + ((x == v).sum() + 1) / 2 for v in x])


def pearson(x, y):
    x, y = x - x.mean(), y - y.mean()
    with np.errstate(invalid="ignore"):
        return (x * y).sum() / np.sqrt((x**2).sum() * (y**2).sum())


def by_hand(y, p):
    e = y - p
    return {
        "r2": 1 - (e**2).sum() / ((y - y.mean()) ** 2).sum(),
        "explained_variance": 1 - ((e - e.mean()) ** 2).sum() / ((y - y.mean()) ** 2).sum(),
        "pearson": pearson(y, p),
        "spearman": pearson(ranks(y), ranks(p)),
        "rmse": np.sqrt((e**2).mean()),
    }


def mean(adata, **where):
    rows = np.ones(adata.n_obs, dtype=bool)
    for key, value in where.items():
        rows &= (adata.obs[key] == value).to_numpy()
    return np.asarray(adata.X, dtype=float)[rows].mean(0), rows.sum()


def expected(data, sizes=(), chosen=None):
    rows = []
    for (p, c), _ in data.pred.obs.groupby(["perturbation", "cell_type"], observed=True):
        y, n = mean(data.truth, perturbation=p, cell_type=c)
        x, _ = mean(data.pred, perturbation=p, cell_type=c)
        dy, dx = y - mean(data.control, cell_type=c)[0], x - mean(data.pred_control, cell_type=c)[0]
        genes = {"all": np.arange(len(y))}
        genes |= {f"top {k}": sorted(range(len(y)), key=lambda g: -abs(dy[g]))[:k] for k in sizes}
        if chosen:
            genes["chosen"] = [list(data.truth.var_names).index(g) for g in chosen[p, c]]
        for of, pair in {"expression": (y, x), "change": (dy, dx)}.items():
            for name, g in genes.items():
                for metric, value in by_hand(pair[0][g], pair[1][g]).items():
                    rows.append([p, c, of, name, metric, value, n])
    return pd.DataFrame(rows, columns=["perturbation", "cell_type", "of", "genes", "metric", "value", "n_cells"])


def assert_tables(found, wanted):
    keys = list(wanted.columns[:-2])
    assert list(found.columns) == list(wanted.columns)
    found, wanted = (table.sort_values(keys).reset_index(drop=True) for table in (found, wanted))
    assert found[keys].astype(str).to_numpy().tolist() == wanted[keys].astype(str).to_numpy().tolist()
    np.testing.assert_allclose(found["value"], wanted["value"], rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(found["n_cells"], wanted["n_cells"])


def pick(table, metric="pearson", of="change", genes="all"):
    rows = table[(table["metric"] == metric) & (table["of"] == of) & (table["genes"] == genes)]
    assert len(rows)
    return rows["value"].to_numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_against_formulas(screen, as_kind, unchanged, kind):
    layer = "values" if kind == "layer" else None
    sides = [screen.truth, screen.control, screen.pred_control]
    truth, control, pred_control = (as_kind(side, kind, str(i)) for i, side in enumerate(sides))
    # predictions are in X
    pred = as_kind(screen.pred, "dense" if layer else kind, "pred")
    with unchanged(*(side for side in (truth, pred, control, pred_control) if not side.isbacked)):
        found = score(truth, pred, control, pred_control=pred_control, n_top=[3, 5], layer=layer)
    assert_tables(found, expected(screen, sizes=(3, 5)))


def test_without_contexts(screen):
    for side in vars(screen).values():
        side.obs["cell_type"] = "A"
    wanted = expected(screen).drop(columns="cell_type")
    found = score(
        screen.truth, screen.pred, screen.control, pred_control=screen.pred_control, context_key=None, n_top=None
    )
    assert_tables(found, wanted)


def test_other_columns_and_other_types_of_labels(screen):
    options = {"pred_control": screen.pred_control, "n_top": None}
    wanted = score(screen.truth, screen.pred, screen.control, **options)["value"]
    for side in vars(screen).values():
        side.obs = side.obs.rename(columns={"perturbation": "drug", "cell_type": "line"})
        side.obs["line"] = side.obs["line"].map({"A": 1, "B": 2})
        if "drug" in side.obs:
            side.obs["drug"] = pd.Categorical(side.obs["drug"], ["P3", "P2", "unused", "P1"])
    found = score(screen.truth, screen.pred, screen.control, perturbation_key="drug", context_key="line", **options)
    assert list(found.columns[:2]) == ["drug", "line"]
    assert set(found["drug"]) == {"P1", "P2", "P3"} and set(found["line"]) == {"1", "2"}
    np.testing.assert_allclose(found["value"], wanted)


def test_numbers_of_top_genes(screen):
    sides = (screen.truth, screen.pred, screen.control)

    def genes(n_top):
        return list(score(*sides, pred_control=screen.pred_control, n_top=n_top)["genes"].unique())

    assert genes(None) == ["all"]
    assert genes(4) == genes([4, 4]) == ["all", "top 4"]
    assert genes((4, 11, 12, 500)) == ["all", "top 4", "top 11"]
    assert genes(np.array([4, 2])) == ["all", "top 4", "top 2"]
    assert set(score(*sides[:2], n_top=4)["genes"]) == {"all"}
    for wrong in (1, 0, [5, 1], 2.5, True, "50"):
        with pytest.raises(ValueError, match="n_top must be whole numbers of at least 2"):
            score(*sides, n_top=wrong)


def test_chosen_genes(screen):
    names = list(screen.truth.var_names)
    rng = np.random.default_rng(3)
    conditions = [(p, c) for p in ("P1", "P2", "P3") for c in "AB"]
    chosen = {condition: list(rng.choice(names, 3 + i, False)) for i, condition in enumerate(conditions)}
    sides = (screen.truth, screen.pred, screen.control)
    options = {"pred_control": screen.pred_control}
    assert_tables(score(*sides, top_genes=chosen, **options), expected(screen, chosen=chosen))
    by_name = {"P1": names[:3], "P2": names[3:7], "P3": names[1:9]}
    both = {(p, c): by_name[p] for p, c in conditions}
    assert_tables(score(*sides, top_genes=by_name, **options), expected(screen, chosen=both))
    # the pair goes first, and a gene that is named twice counts once
    mixed = by_name | {("P1", "B"): names[5:] + names[5:7]}
    both["P1", "B"] = names[5:]
    assert_tables(score(*sides, top_genes=mixed, **options), expected(screen, chosen=both))
    with pytest.raises(KeyError, match="top_genes has no genes for 'P3 | A'"):
        score(*sides, top_genes={"P1": names, "P2": names}, **options)
    with pytest.raises(KeyError, match=r"top_genes of 'P2 \| A' are not in the data: 'nope'"):
        score(*sides, top_genes=by_name | {"P2": ["nope", *names[:2]]}, **options)
    with pytest.raises(ValueError, match=r"top_genes of 'P2 \| A' must be at least 2, but got 1"):
        score(*sides, top_genes=by_name | {"P2": names[:1]}, **options)


def test_clip(screen):
    pred = screen.pred.copy()
    pred.X = pred.X[:, ::-1].copy()
    plain = score(screen.truth, pred, screen.control, pred_control=screen.pred_control)
    clipped = score(screen.truth, pred, screen.control, pred_control=screen.pred_control, clip=True)
    variance = plain["metric"].isin(["r2", "explained_variance"])
    assert (plain.loc[variance, "value"] < 0).any() and (plain.loc[~variance, "value"] < 0).any()
    np.testing.assert_array_equal(clipped.loc[variance, "value"], plain.loc[variance, "value"].clip(lower=0))
    np.testing.assert_array_equal(clipped.loc[~variance, "value"], plain.loc[~variance, "value"])


def test_constant_profiles():
    rng = np.random.default_rng(0)
    y, flat = rng.normal(size=8), np.full(8, 0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        scores = score(y, flat)
        of_flat = score(flat, y)
        of_both = score(flat, flat)
    assert pick(scores, "pearson", "expression") == pick(scores, "spearman", "expression") == 0
    np.testing.assert_allclose(pick(scores, "r2", "expression"), by_hand(y, flat)["r2"])
    np.testing.assert_allclose(pick(scores, "explained_variance", "expression"), 0, atol=1e-12)
    for table in (of_flat, of_both):
        assert np.isnan([pick(table, metric, "expression") for metric in METRICS[:-1]]).all()
    np.testing.assert_allclose(pick(of_flat, "rmse", "expression"), np.sqrt(((y - 0.1) ** 2).mean()))
    assert pick(of_both, "rmse", "expression") == 0


def test_conditions(screen):
    some = screen.pred[(screen.pred.obs["perturbation"] == "P2").to_numpy()]
    found = score(screen.truth, some, screen.control, pred_control=screen.pred_control)
    every = score(screen.truth, screen.pred, screen.control, pred_control=screen.pred_control)
    pd.testing.assert_frame_equal(found, every[every["perturbation"] == "P2"].reset_index(drop=True))
    extra = screen.pred.copy()
    extra.obs["perturbation"] = extra.obs["perturbation"].replace("P2", "new")
    with pytest.raises(
        ValueError, match=r"truth has no cells of 2 of the predicted perturbation and cell_type groups: "
    ):
        score(screen.truth, extra)
    with pytest.raises(ValueError, match=re.escape("'new | A', 'new | B'")):
        score(screen.truth, extra)
    only_a = screen.control[(screen.control.obs["cell_type"] == "A").to_numpy()]
    with pytest.raises(ValueError, match="control has no cells of 1 of the predicted cell_type groups: 'B'"):
        score(screen.truth, screen.pred, only_a, pred_control=screen.pred_control)
    with pytest.raises(ValueError, match="pred_control has no cells of 1 of the predicted cell_type groups: 'B'"):
        score(screen.truth, screen.pred, screen.control, pred_control=only_a, allow_shared_controls=True)


def test_genes_are_put_in_order(screen):
    wanted = score(screen.truth, screen.pred, screen.control, pred_control=screen.pred_control)
    rng = np.random.default_rng(1)
    extra = ad.AnnData(
        np.full((screen.pred.n_obs, 2), 50.0), obs=screen.pred.obs, var=pd.DataFrame(index=["extra1", "extra2"])
    )
    pred = ad.concat([screen.pred, extra], axis="var", merge="same")
    pred = pred[:, rng.permutation(pred.n_vars)]
    control = screen.control[:, rng.permutation(screen.control.n_vars)]
    found = score(screen.truth, pred, control, pred_control=screen.pred_control)
    pd.testing.assert_frame_equal(found, wanted)
    with pytest.raises(ValueError, match="1 of the 12 genes of truth are missing in pred: 'G03'"):
        score(screen.truth, screen.pred[:, screen.pred.var_names != "G03"])
    with pytest.raises(ValueError, match="1 of the 12 genes of truth are missing in control: 'G00'"):
        score(screen.truth, screen.pred, screen.control[:, 1:])


def test_backed_genes_in_another_order(screen, as_kind):
    wanted = score(screen.truth, screen.pred, screen.control, pred_control=screen.pred_control)
    sides = [screen.truth, screen.pred[:, ::-1], screen.control[:, ::-1], screen.pred_control]
    truth, pred, control, pred_control = (as_kind(side, "backed sparse", str(i)) for i, side in enumerate(sides))
    found = score(truth, pred, control, pred_control=pred_control)
    pd.testing.assert_frame_equal(found, wanted)


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix, sp.csr_array, lambda x: x.tolist(), pd.DataFrame])
def test_arrays_are_one_condition(form):
    rng = np.random.default_rng(0)
    y, x, c, k = (rng.gamma(2, size=(n, 9)) * (rng.random((n, 9)) > 0.3) for n in (5, 4, 6, 7))
    found = score(form(y), form(x), form(c), pred_control=form(k), n_top=4)
    assert list(found.columns) == ["of", "genes", "metric", "value", "n_cells"] and set(found["n_cells"]) == {5}
    dy, dx = y.mean(0) - c.mean(0), x.mean(0) - k.mean(0)
    top = np.argsort(-np.abs(dy))[:4]
    for of, (a, b) in {"expression": (y.mean(0), x.mean(0)), "change": (dy, dx)}.items():
        for genes, g in {"all": slice(None), "top 4": top}.items():
            for metric, value in by_hand(a[g], b[g]).items():
                np.testing.assert_allclose(pick(found, metric, of, genes), value, atol=1e-12)


def test_single_profiles_and_named_genes():
    rng = np.random.default_rng(0)
    y, x, c, k = rng.normal(size=(4, 9))
    names = [f"gene{i}" for i in range(9)]
    wanted = score(y, x, c, pred_control=k)
    np.testing.assert_allclose(pick(wanted, "r2"), by_hand(y - c, x - k)["r2"])
    pd.testing.assert_frame_equal(score(y[None], x, c[None], pred_control=k), wanted)
    order = rng.permutation(9)
    series = [pd.Series(v, index=names) for v in (y, x, c, k)]
    shuffled = pd.concat([series[1].iloc[order], pd.Series({"extra": 7.0})])
    pd.testing.assert_frame_equal(score(series[0], shuffled, series[2], pred_control=series[3]), wanted)
    frames = [one.to_frame().T for one in series]
    frames[1] = shuffled.to_frame().T
    pd.testing.assert_frame_equal(score(frames[0], frames[1], frames[2], pred_control=k), wanted)
    chosen = score(*series[:2], series[2], pred_control=series[3], top_genes={(): ["gene1", "gene4", "gene5"]})
    np.testing.assert_allclose(
        pick(chosen, "rmse", genes="chosen"), by_hand((y - c)[[1, 4, 5]], (x - k)[[1, 4, 5]])["rmse"]
    )
    with pytest.raises(ValueError, match="1 of the 9 genes of truth are missing in pred: 'gene3'"):
        score(series[0], series[1].drop("gene3"))
    with pytest.raises(ValueError, match="pred must have the 9 genes of truth, but has 8"):
        score(y, x[:8])


def test_control_layer_of_the_prediction(screen):
    rng = np.random.default_rng(5)
    pred = screen.pred.copy()
    pred.layers["control"] = sp.csr_matrix(rng.gamma(1, size=pred.shape))
    start = ad.AnnData(pred.layers["control"].toarray(), obs=pred.obs, var=pred.var)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = score(screen.truth, pred[:, ::-1], screen.control, n_top=None)
    for i, (p, c) in enumerate([(p, c) for p in ("P1", "P2", "P3") for c in "AB"]):
        where = {"perturbation": p, "cell_type": c}
        dy = mean(screen.truth, **where)[0] - mean(screen.control, cell_type=c)[0]
        dx = mean(screen.pred, **where)[0] - mean(start, **where)[0]
        for metric, value in by_hand(dy, dx).items():
            np.testing.assert_allclose(pick(found, metric)[i], value, rtol=1e-6)
    # what is chosen by hand goes first
    chosen = score(screen.truth, pred, screen.control, pred_control=screen.pred_control, n_top=None)
    assert_tables(chosen, expected(screen))
    pred.layers["control"] = np.full(pred.shape, np.nan)
    with pytest.raises(ValueError, match=r"pred.layers\['control'\] has missing or infinite values"):
        score(screen.truth, pred, screen.control)


def test_halving_is_announced_and_seeded(screen, unchanged):
    sides = (screen.truth, screen.pred, screen.control)
    with unchanged(*sides), pytest.warns(UserWarning, match="controls are halved at random"):
        first = score(*sides, seed=1)
    with pytest.warns(UserWarning, match="Pass pred_control to choose"):
        again, other = score(*sides, seed=1), score(*sides, seed=2)
    pd.testing.assert_frame_equal(first, again)
    assert not np.allclose(pick(first), pick(other))
    np.testing.assert_array_equal(pick(first, of="expression"), pick(other, of="expression"))
    alone = screen.control[~screen.control.obs["cell_type"].duplicated().to_numpy()]
    message = "control must have at least 2 cells of each cell_type to be halved, but some have 1: 'A', 'B'"
    with pytest.warns(UserWarning), pytest.raises(ValueError, match=message):
        score(screen.truth, screen.pred, alone)
    rng = np.random.default_rng(0)
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="control must have at least 2 cells to be halved"):
        score(rng.normal(size=5), rng.normal(size=5), rng.normal(size=5))


def test_halves_are_disjoint_and_within_contexts(screen):
    # cell i of a context has 2^i: means tell which cells were taken
    control = screen.control.copy()
    control.X = np.repeat(2.0 ** control.obs.groupby("cell_type").cumcount().to_numpy()[:, None], 12, 1)
    control.X += np.linspace(0, 1, 12)
    truth, pred = screen.truth.copy(), screen.pred.copy()
    truth.X, pred.X = np.zeros(truth.shape), np.zeros(pred.shape)
    truth.X[:, 0] = pred.X[:, 0] = 1e-9
    with pytest.warns(UserWarning):
        found = score(truth, pred, control, n_top=None)
    sizes = control.obs["cell_type"].value_counts()
    for i, context in enumerate("AB" * 3):
        n = sizes[context]
        first, second = n // 2, n - n // 2
        gaps = set()
        for code in range(2**n):
            chosen = [2.0**j for j in range(n) if code >> j & 1]
            if len(chosen) == first:
                gaps.add(round(abs(sum(chosen) / first - (2**n - 1 - sum(chosen)) / second), 6))
        assert round(pick(found, "rmse")[i], 6) in gaps


def test_shared_controls_are_refused(screen):
    named = screen.pred.copy()
    names = list(screen.control.obs_names)
    named.obs["control_cell"] = pd.Categorical([names[i % 2] for i in range(named.n_obs)])
    sides = (screen.truth, named, screen.control)
    message = f"2 of the {len(names)} control cells that score are also those that predict: '{names[0]}', '{names[1]}'"
    with pytest.raises(ValueError, match=message):
        score(*sides, pred_control=screen.pred_control)
    with pytest.raises(ValueError, match="pass allow_shared_controls=True"):
        score(*sides)
    options = {"pred_control": screen.pred_control, "allow_shared_controls": True}
    assert_tables(score(*sides, n_top=None, **options), expected(screen))
    named.obs["control_cell"] = "other"
    assert_tables(score(*sides, pred_control=screen.pred_control, n_top=None), expected(screen))

    sides = (screen.truth, screen.pred, screen.control)
    overlapping = ad.concat([screen.pred_control, screen.control[:1]])
    with pytest.raises(ValueError, match=f"1 of the {len(names)} control cells .* predict: '{names[0]}'"):
        score(*sides, pred_control=overlapping)
    score(*sides, pred_control=overlapping, allow_shared_controls=True)
    # without a control, nothing is subtracted
    score(screen.truth, named)


def test_shared_controls_without_names_are_refused(screen):
    message = "have the same mean in 6 of 6 conditions, so they are the same cells"
    renamed = screen.control.copy()
    renamed.obs_names = [str(i) for i in range(renamed.n_obs)]
    with pytest.raises(ValueError, match=message):
        score(screen.truth, screen.pred, screen.control, pred_control=renamed)
    pred = screen.pred.copy()
    means = {c: mean(screen.control, cell_type=c)[0] for c in "AB"}
    pred.layers["control"] = np.stack([means[c] for c in pred.obs["cell_type"]]).astype(np.float32)
    with pytest.raises(ValueError, match=message):
        score(screen.truth, pred, screen.control)
    score(screen.truth, pred, screen.control, allow_shared_controls=True)
    rng = np.random.default_rng(0)
    for shape in (5, (4, 5)):
        y, x, c = (rng.normal(size=shape) for _ in range(3))
        with pytest.raises(ValueError, match="same mean in 1 of 1 conditions"):
            score(y, x, c, pred_control=c)
        score(y, x, c, pred_control=c, allow_shared_controls=True)
    # without noise, sharing does no harm
    score(rng.normal(size=5), rng.normal(size=5), np.zeros(5), pred_control=np.zeros(5))
    exact = np.full((3, 5), 0.1)
    score(rng.normal(size=(2, 5)), rng.normal(size=(2, 5)), exact, pred_control=exact)


def test_noise_looks_like_skill_with_shared_controls_only():
    """The mean of the other perturbations, where no perturbation does anything."""
    shared, separate = [], []
    for seed in range(3):
        data = tv.datasets.simulate_responses(
            n_contexts=1, n_perturbations=6, n_genes=300, effect_sd=0.0, n_cells_per_condition=30,
            n_control_cells_per_context=30, noise="poisson", library_size=20000.0, seed=seed,
        )  # fmt: skip
        is_control = (data.obs["perturbation"] == "control").to_numpy()
        control, treated = data[is_control].copy(), data[~is_control].copy()
        first, second = control[:15], control[15:]
        for name in treated.obs["perturbation"].unique():
            own = (treated.obs["perturbation"] == name).to_numpy()
            pred = treated[~own].copy()
            pred.obs["perturbation"] = name
            truth = treated[own]
            options = {"n_top": None, "allow_shared_controls": True}
            shared += list(pick(score(truth, pred, first, pred_control=first, **options)))
            separate += list(pick(score(truth, pred, second, pred_control=first, n_top=None)))
    # the control's noise: 1/15 of the variance of a cell in both changes, of 1/15 + 1/30 and 1/15 + 1/150
    assert np.mean(shared) > 0.6
    assert abs(np.mean(separate)) < 0.1


def test_errors(screen):
    truth, pred, control = screen.truth, screen.pred, screen.control
    with pytest.raises(
        TypeError, match="Give AnnData throughout or arrays throughout, but got truth: AnnData, pred: nd"
    ):
        score(truth, np.ones((2, 12)))
    with pytest.raises(TypeError, match="pred is needed, but is None"):
        score(truth, None)
    with pytest.raises(
        KeyError, match="perturbation_key='drug' is not in truth.obs. Columns: 'perturbation', 'cell_type'"
    ):
        score(truth, pred, perturbation_key="drug")
    with pytest.raises(KeyError, match="context_key='line' is not in truth.obs"):
        score(truth, pred, context_key="line")
    bare = control.copy()
    del bare.obs["cell_type"]
    with pytest.raises(KeyError, match="context_key='cell_type' is not in control.obs"):
        score(truth, pred, bare)
    with pytest.raises(ValueError, match="pred has no cells"):
        score(truth, pred[:0])
    with pytest.raises(KeyError, match="layer='counts' is not in truth.layers"):
        score(truth, pred, layer="counts")
    with pytest.raises(ValueError, match="layer='counts' needs AnnData, but truth is ndarray"):
        score(np.ones((2, 3)), np.ones((2, 3)), layer="counts")
    with pytest.raises(ValueError, match="pred must be cells x genes, but has 3 dimensions"):
        score(np.ones((2, 3)), np.ones((2, 3, 1)))
    with pytest.raises(ValueError, match="pred_control was given without control"):
        score(truth, pred, pred_control=control)
    with pytest.raises(ValueError, match="Profiles need at least 2 genes to be scored, but have 1"):
        score(np.ones((3, 1)), np.ones((3, 1)))
    for name in ("truth", "pred", "control"):
        sides = {"truth": truth.copy(), "pred": pred.copy(), "control": control.copy()}
        sides[name].X[0, 0] = np.nan
        with pytest.raises(ValueError, match=f"{name}.X has missing or infinite values"):
            score(**sides)
        sides[name].X[0, 0] = 0
        sides[name].obs["cell_type"] = sides[name].obs["cell_type"].astype(object)
        sides[name].obs.iloc[1, sides[name].obs.columns.get_loc("cell_type")] = None
        with pytest.raises(ValueError, match=rf"{name}.obs\['cell_type'\] is missing for 1 cells"):
            score(**sides)
    twice = truth.copy()
    twice.var_names = ["G01", *twice.var_names[1:]]
    with pytest.raises(ValueError, match="truth.var_names must be unique, but these repeat: 'G01'"):
        score(twice, pred)
