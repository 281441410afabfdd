"""Valid data of every model, spoilt at random: it works, or is refused by us, with a reason, and nothing is changed.

``TRANSVERSE_CORRUPTIONS=2000 pytest tests/test_corruptions.py`` tries more of them.
"""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .cases import CASES
from .corruptions import ARGUMENTS, DATA, attempt

N_EXAMPLES = int(os.environ.get("TRANSVERSE_CORRUPTIONS", 60))
several = st.lists(st.sampled_from(list(DATA)), min_size=1, max_size=3, unique=True)
seeds = st.integers(0, 2**31 - 1)


@pytest.fixture(scope="module", params=list(CASES))
def case(request):
    return CASES[request.param]


@pytest.fixture(scope="module")
def model(case):
    return case.trained()


@pytest.mark.slow
def test_data_to_train_on(case):
    @settings(max_examples=N_EXAMPLES)
    @given(several, seeds)
    def check(names, seed):
        _, wrong = attempt(case, names, seed)
        assert wrong is None

    check()


def test_new_data(case, model):
    @settings(max_examples=N_EXAMPLES)
    @given(several, seeds)
    def check(names, seed):
        _, wrong = attempt(case, names, seed, model=model)
        assert wrong is None

    check()


def test_arguments(case):
    @settings(max_examples=N_EXAMPLES // 4)
    @given(st.lists(st.sampled_from(list(DATA)), max_size=1), st.sampled_from(list(ARGUMENTS)), seeds)
    def check(names, argument, seed):
        _, wrong = attempt(case, names, seed, argument)
        assert wrong is None

    check()


@pytest.mark.parametrize("name", DATA)
def test_every_corruption_alone(case, model, name):
    for of in (None, model):
        _, wrong = attempt(case, [name], seed=0, model=of)
        assert wrong is None


#: What is refused always, and what the message says.
REFUSED = {
    "NaN": "NaN",
    "infinite": "infinite",
    "no matrix": "empty|X",
    "no cells": "empty",
    "no genes": "empty",
    "obs_names repeat": "obs_names must be unique.*Call adata.obs_names_make_unique",
    "var_names repeat": "var_names must be unique.*Call adata.var_names_make_unique",
    "text": "must hold numbers",
    "all missing": "missing for",
    "no column": "is not in adata.obs",
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_say_why(case, name):
    for seed in range(5):
        adata = case.data()
        DATA[name](adata, case.keys, np.random.default_rng(seed))
        with pytest.raises((ValueError, KeyError), match=REFUSED[name]):
            case.cls.setup_anndata(adata, **case.keys, **case.setup)
