"""Our scores against pertpy's, stored and, where it is installed, computed anew."""

import numpy as np
import pytest

import transverse as tv

# pertpy 1.0.3 (numpy 2.4.6, scipy 1.17.1, scikit-learn 1.9.1): pertpy.tools.Distance(name)(true cells, predicted cells);
# the first argument of its R2 is the truth.
STORED = {
    "edistance": 4.901390009212633,
    "r2_distance": 66.88128761259264,
    "pearson_distance": 1.2405384873807315,
    "spearman_distance": 1.33,
    "mse": 1.5055354014254987,
    "euclidean": 6.135013042825375,
}


def cells():
    rng = np.random.default_rng(0)
    truth = rng.gamma(1.0, 1.0, (40, 25))
    return truth, rng.gamma(1.2, 0.9, (30, 25)) + rng.normal(size=25)


def ours():
    truth, pred = cells()
    scores = tv.metrics.response_scores(truth, pred).set_index("metric")["value"]
    return {
        "edistance": tv.metrics.energy_distance(truth, pred, unbiased=False)["value"].item(),
        "r2_distance": 1 - scores["r2"],
        "pearson_distance": 1 - scores["pearson"],
        "spearman_distance": 1 - scores["spearman"],
        "mse": scores["rmse"] ** 2,
        "euclidean": scores["rmse"] * 5,
    }


@pytest.mark.parametrize("name", STORED)
def test_pertpy_stored(name):
    assert ours()[name] == pytest.approx(STORED[name], rel=1e-10)


def test_pertpy_live():
    pertpy = pytest.importorskip("pertpy", reason="pertpy is not installed")
    for name, value in ours().items():
        assert float(pertpy.tl.Distance(name)(*cells())) == pytest.approx(value, rel=1e-10), name
