import numpy as np
import pytest
import torch
from scipy.special import softmax

from transverse.nn import SplitSoftmax


def test_each_group_is_a_softmax_with_its_share_of_the_genes():
    logits = np.random.default_rng(0).normal(size=(4, 7)).astype(np.float32)
    shared = np.array([True, False, True, True, False, False, True])
    expected = np.empty_like(logits)
    expected[:, shared] = 4 / 7 * softmax(logits[:, shared], axis=1)
    expected[:, ~shared] = 3 / 7 * softmax(logits[:, ~shared], axis=1)
    result = SplitSoftmax(torch.from_numpy(shared))(torch.from_numpy(logits)).numpy()
    np.testing.assert_allclose(result, expected, rtol=1e-5)
    np.testing.assert_allclose(result.sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize("value", [True, False])
def test_one_group_alone_is_the_ordinary_softmax(value):
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    result = SplitSoftmax(torch.full((5,), value))(logits)
    torch.testing.assert_close(result, torch.softmax(logits, -1))
    (result**2).sum().backward()
    assert torch.isfinite(logits.grad).all()
