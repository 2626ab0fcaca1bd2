from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from torchrl_flow.functional import activation, mish


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_are_those_of_pytorch(dtype):
    x = torch.cat([torch.linspace(-120, 120, 6001, dtype=dtype), torch.tensor([0.0, -0.0, 1e-8], dtype=dtype)])
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    upstream = torch.linspace(-2, 2, x.numel(), dtype=dtype)
    torch.testing.assert_close(mish(ours), F.mish(theirs), rtol=1e-6, atol=1e-6)
    ours_grad = torch.autograd.grad(mish(ours), ours, upstream)[0]
    torch.testing.assert_close(
        ours_grad, torch.autograd.grad(F.mish(theirs), theirs, upstream)[0], rtol=1e-5, atol=1e-6
    )


def test_gradients_of_first_and_second_order_pass_finite_differences(monkeypatch):
    x = torch.tensor([-3.0, -1.0, -0.2, 0.3, 2.0, 9.0], dtype=torch.float64, requires_grad=True)
    monkeypatch.setattr(activation, "_SMALL", 0)
    assert torch.autograd.gradcheck(mish, x)
    assert torch.autograd.gradgradcheck(mish, x)


def test_it_works_under_vmap_and_grad_transforms():
    x = torch.randn(4, 5)
    torch.testing.assert_close(torch.vmap(mish)(x), F.mish(x), rtol=1e-6, atol=1e-6)
    per_row = torch.vmap(torch.func.grad(lambda row: mish(row).sum()))(x)
    wanted = torch.vmap(torch.func.grad(lambda row: F.mish(row).sum()))(x)
    torch.testing.assert_close(per_row, wanted, rtol=1e-5, atol=1e-6)


def test_half_precision_is_pytorchs_own():
    x = torch.randn(7, dtype=torch.bfloat16)
    assert torch.equal(mish(x), F.mish(x))


def test_value_is_the_same_to_the_bit_with_and_without_gradient():
    x = torch.randn(300, 17) * 8
    with_gradient = mish(x.clone().requires_grad_())
    kept = x.clone()
    assert torch.equal(mish(kept), with_gradient.detach())
    assert torch.equal(kept, x)
    with torch.no_grad():
        assert torch.equal(mish(x.clone().requires_grad_()), with_gradient)
    assert torch.equal(torch.vmap(mish)(x), with_gradient.detach())


def test_pytorch_tells_whether_a_transform_runs():
    """Under a private name: where it is gone, every call takes the slower form."""
    seen = []
    torch.vmap(lambda row: seen.append(activation._is_transformed()) or row)(torch.zeros(2, 1))
    assert seen == [True]
    assert not activation._is_transformed()
