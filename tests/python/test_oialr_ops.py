# SPDX-License-Identifier: Apache-2.0
"""lath.ops.oialr_linear: values, gradients, what a training step keeps, and torch's transformations."""

import lath
import pytest
import torch
from operator_cases import OperatorLog, every_device
from torch.autograd import gradcheck, gradgradcheck

pytestmark = every_device
ROUTES = ("auto", "chained", "folded", "merged")


def operands(*leading, n=12, r=4, m=10, dtype=torch.float64, requires_grad=True):
    """x, vh, s, u, bias; the bases do not train."""
    x = torch.randn(*leading, n, dtype=dtype, requires_grad=requires_grad)
    s = torch.randn(r, r, dtype=dtype, requires_grad=requires_grad)
    bias = torch.randn(m, dtype=dtype, requires_grad=requires_grad)
    return x, torch.randn(r, n, dtype=dtype), s, torch.randn(m, r, dtype=dtype), bias


def composition(x, vh, s, u, bias):
    return torch.nn.functional.linear(x, u @ s @ vh, bias)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (0,), (2, 70)])
def test_values_and_gradients(leading, route):
    for dtype in (torch.float32, torch.float64):
        args = operands(*leading, n=37, r=19, m=53, dtype=dtype)
        leaves = [args[0], args[2], args[4]]
        y, expected = lath.ops.oialr_linear(*args, route=route), composition(*args)
        rtol, atol = (1e-4, 2e-3) if dtype is torch.float32 else (1e-11, 1e-11)
        torch.testing.assert_close(y, expected, rtol=rtol, atol=atol)
        dy = torch.randn_like(y)
        got, want = torch.autograd.grad(y, leaves, dy), torch.autograd.grad(expected, leaves, dy)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=rtol, atol=atol * (1 + b.abs().max().item() if b.numel() else 1))


@pytest.mark.parametrize("route", ROUTES)
def test_gradcheck(route):
    def function(x, s, bias):
        return lath.ops.oialr_linear(x, vh, s, u, bias, route)

    x, vh, s, u, bias = operands(2, 3)
    assert gradcheck(function, (x, s, bias), check_batched_grad=True)
    assert gradgradcheck(function, (x, s, bias))


@pytest.mark.parametrize(
    "wanted", [(True, False, False), (False, True, False), (False, False, True), (False, True, True)]
)
def test_only_the_gradients_that_are_wanted(wanted):
    args = operands(5, 3)
    leaves = [args[i].requires_grad_(want) for i, want in zip((0, 2, 4), wanted, strict=True) if args[i] is not None]
    leaves = [leaf for leaf in leaves if leaf.requires_grad]
    got = torch.autograd.grad(lath.ops.oialr_linear(*args).square().sum(), leaves)
    torch.testing.assert_close(got, torch.autograd.grad(composition(*args).square().sum(), leaves))


def test_a_training_step_keeps_t_and_not_x():
    """Rows times rank numbers, whatever the width of x."""
    x, vh, s, u, bias = operands(64, n=512, r=16, m=256, dtype=torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        lath.ops.oialr_linear(x, vh, s, u, bias)
    weights = {t.data_ptr() for t in (vh, s, u)}
    activations = [t for t in kept if t.data_ptr() not in weights]
    assert [tuple(t.shape) for t in activations] == [(64, 16)]


def test_above_break_even_it_keeps_x():
    x, vh, s, u, bias = operands(4096, n=40, r=40, m=40, dtype=torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = lath.ops.oialr_linear(x, vh, s, u, bias)
    assert any(t.data_ptr() == x.data_ptr() for t in kept)
    (ds,) = torch.autograd.grad(y.sum(), s)
    (expected,) = torch.autograd.grad(composition(x, vh, s, u, bias).sum(), s)
    torch.testing.assert_close(ds, expected, rtol=1e-3, atol=1e-1)


def test_operators_that_run():
    args = operands(2, 3)
    with OperatorLog() as log:
        lath.ops.oialr_linear(*args).sum().backward()
    assert log.names == ["oialr_linear_forward", "oialr_linear_backward"]
    with OperatorLog() as log, torch.no_grad():
        lath.ops.oialr_linear(*args)
    assert log.names == ["oialr_linear"]


def test_bases_that_train_get_their_gradients():
    args = operands(5)
    leaves = [a.requires_grad_() for a in args]
    got = torch.autograd.grad(lath.ops.oialr_linear(*args).square().sum(), leaves)
    torch.testing.assert_close(got, torch.autograd.grad(composition(*args).square().sum(), leaves))


def test_torch_func():
    x, vh, s, u, bias = operands(5, requires_grad=False)

    def loss(s, x):
        return lath.ops.oialr_linear(x, vh, s, u, bias).square().sum()

    def expected(s, x):
        return composition(x, vh, s, u, bias).square().sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), (None, 0))(s, x)
    torch.testing.assert_close(per_sample, torch.func.vmap(torch.func.grad(expected), (None, 0))(s, x))
    tangents = torch.func.jvp(lambda s: loss(s, x), (s,), (torch.ones_like(s),))
    torch.testing.assert_close(tangents, torch.func.jvp(lambda s: expected(s, x), (s,), (torch.ones_like(s),)))


@pytest.mark.cpu_only
def test_autocast():
    args = operands(4, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = lath.ops.oialr_linear(*args)
    assert y.dtype is torch.bfloat16
    y.float().sum().backward()
    assert args[2].grad.dtype is torch.float32
    torch.testing.assert_close(y.float(), composition(*args), rtol=5e-2, atol=0.5)


def test_compiled_without_a_break():
    args = operands(6, dtype=torch.float32)
    leaves = [args[0], args[2], args[4]]
    compiled = torch.compile(lath.ops.oialr_linear, fullgraph=True, backend="aot_eager")
    y, expected = compiled(*args), composition(*args)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-3)
    got = torch.autograd.grad(y.square().sum(), leaves)
    torch.testing.assert_close(got, torch.autograd.grad(expected.square().sum(), leaves), rtol=1e-3, atol=1e-1)


def test_bad_arguments():
    x, vh, s, u, bias = operands(4, dtype=torch.float32, requires_grad=False)
    none = torch.empty(0)
    with pytest.raises(ValueError, match="route is 'sideways'"):
        lath.ops.oialr_linear(x, vh, s, u, bias, "sideways")
    with pytest.raises(TypeError, match="x is list"):
        lath.ops.oialr_linear([1.0], vh, s, u)
    with pytest.raises(RuntimeError, match=r"weight_s: got .*expected"):
        lath.ops.oialr_linear(x, vh, s[:2], u, bias)
    with pytest.raises(RuntimeError, match=r"weight_vh: got rank 0, expected at least 1"):
        lath.ops.oialr_linear(x, vh[:0], s[:0, :0], u[:, :0], bias)
    backward = torch.ops.lath.oialr_linear_backward
    dy = torch.randn(4, 10)
    with pytest.raises(RuntimeError, match="x: got no elements, expected x itself"):
        backward(dy, none, vh, s, u, none)
    with pytest.raises(RuntimeError, match="x: got no elements, expected x itself"):
        backward(dy, none, vh, s, u, x @ vh.mT, 2, 3)
    dx, ds, d_bias = backward(dy, none, vh, s, u, none, 5)  # neither x nor t is needed for these
    torch.testing.assert_close((dx, d_bias), (dy @ u @ s @ vh, dy.sum(0)), rtol=1e-4, atol=1e-4)
    assert ds.shape == (0,)


def test_the_plan():
    plan = lath.ops.oialr_linear_plan(256, 768, 96, 1024, training=True)
    assert plan == lath.ops.OIALRPlan("chained", 256 * (2 * 96 * 1792 + 3 * 96**2), 3 * 256 * 768 * 1024, True)
    assert lath.ops.oialr_linear_plan(4096, 768, 96, 768).route == "folded"
    assert lath.ops.oialr_linear_plan(4096, 768, 700, 768).route == "merged"
    assert not lath.ops.oialr_linear_plan(4096, 768, 700, 768, training=True).keeps_t
    with pytest.raises(ValueError, match="route is 'sideways'"):
        lath.ops.oialr_linear_plan(1, 1, 1, 1, "sideways")
    with pytest.raises(RuntimeError, match="rank: got 0, expected at least 1"):
        lath.ops.oialr_linear_plan(1, 1, 0, 1)
