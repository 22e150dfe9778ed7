# SPDX-License-Identifier: Apache-2.0
"""Gradients: first and second order against finite differences, torch.func, dtypes, and what is saved."""

from __future__ import annotations

import itertools

import lath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from operator_cases import OperatorLog, every_device
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.functional import linear

pytestmark = every_device
NAMES = ("x", "weight_v", "weight_u", "bias", "inner_bias")
SHAPES = {"x": (2, 3, 6), "weight_v": (4, 6), "weight_u": (5, 4), "bias": (5,), "inner_bias": (4,)}


def arguments(dtype=torch.float64, requires=NAMES, without=()):
    """The five arguments; those named in ``requires`` are leaves, those in ``without`` are None."""
    return [None if n in without else torch.randn(SHAPES[n], dtype=dtype, requires_grad=n in requires) for n in NAMES]


def composition(x, v, u, bias=None, inner_bias=None):
    return linear(linear(x, v, inner_bias), u, bias)


# ---- first and second order ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("association", lath.ops.ASSOCIATIONS)
@pytest.mark.parametrize("without", [(), ("bias",), ("inner_bias",), ("bias", "inner_bias")])
def test_gradcheck(association, without):
    args = arguments(without=without)

    def function(*given):
        return lath.ops.lowrank_linear(*given, association)

    assert gradcheck(function, args, check_batched_grad=True)
    assert gradgradcheck(function, args)


@pytest.mark.parametrize("requires", [c for n in range(1, 5) for c in itertools.combinations(NAMES, n)])
def test_every_subset_of_gradients(requires):
    args = arguments(requires=requires)
    dy = torch.randn(2, 3, 5, dtype=torch.float64)
    leaves = [a for a in args if a.requires_grad]
    got = torch.autograd.grad(lath.ops.lowrank_linear(*args), leaves, dy)
    expected = torch.autograd.grad(composition(*args), leaves, dy)
    torch.testing.assert_close(got, expected)


def test_linear():
    x, w, b = (torch.randn(n, dtype=torch.float64, requires_grad=True) for n in ((3, 6), (5, 6), (5,)))
    for args in ((x, w, b), (x, w)):
        assert gradcheck(lath.ops.linear, args, check_batched_grad=True, check_forward_ad=True)
        assert gradgradcheck(lath.ops.linear, args)


def test_frobenius_decay():
    v, u = (torch.randn(n, dtype=torch.float64, requires_grad=True) for n in ((4, 6), (5, 4)))
    assert gradcheck(lath.ops.frobenius_decay, (v, u), check_batched_grad=True, check_forward_ad=True)
    assert gradgradcheck(lath.ops.frobenius_decay, (v, u))


def test_operators_carry_first_order_and_torch_carries_second():
    args = arguments()
    with OperatorLog() as log:
        lath.ops.lowrank_linear(*args).sum().backward()
    assert log.names == ["lowrank_linear_forward", "lowrank_linear_backward"]
    with OperatorLog() as log:
        torch.autograd.grad(lath.ops.lowrank_linear(*args).sum(), args, create_graph=True)
    assert log.names == ["lowrank_linear_forward"]
    with OperatorLog() as log, torch.no_grad():
        lath.ops.lowrank_linear(*args)
    assert log.names == ["lowrank_linear"]


def test_gradient_penalty_agrees_with_composition():
    args = arguments()
    results = []
    for function in (lath.ops.lowrank_linear, composition):
        (dx,) = torch.autograd.grad(function(*args).square().sum(), args[0], create_graph=True)
        results.append(torch.autograd.grad(dx.square().sum(), args))
    torch.testing.assert_close(*results)


def value_and_grads(function, base, dy):
    args = [a.detach().clone().requires_grad_() for a in base]
    y = function(*args)
    return [t.detach().double() for t in (y, *torch.autograd.grad(y, args, dy))]


@given(st.integers(0, 90), st.integers(1, 60), st.integers(1, 30), st.integers(1, 60), st.booleans())
def test_associations_have_the_same_gradients(rows, n, r, m, bf16):
    """Both within the rounding of their sums: eps times the gradients of the absolute values."""
    dtype = torch.bfloat16 if bf16 else torch.float32
    base = [torch.randn(s, dtype=dtype) for s in ((rows, n), (r, n), (m, r), (m,), (r,))]
    dy = torch.randn(rows, m, dtype=dtype)
    wide = [a.double() for a in base]
    expected = value_and_grads(composition, wide, dy.double())
    sizes = value_and_grads(composition, [a.abs() for a in wide], dy.double().abs())
    eps = (rows + n + r + m) * 2.0**-24 + (3 * 2.0**-8 if bf16 else 0.0)
    for association in lath.ops.ASSOCIATIONS:
        got = value_and_grads(lambda *args, a=association: lath.ops.lowrank_linear(*args, a), base, dy)
        for t, e, size in zip(got, expected, sizes, strict=True):
            assert ((t - e).abs() <= eps * size).all()


# ---- incoming gradients -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.ones(()).expand(2, 3, 5),
        lambda: torch.randn(2, 5, 3).mT,
        lambda: torch.randn(2, 3, 10)[..., ::2],
        lambda: torch.randn(3, 2, 5).transpose(0, 1),
    ],
    ids=["expanded", "transposed", "stepped", "permuted"],
)
def test_layouts_of_the_incoming_gradient(make):
    args, dy = arguments(torch.float32), make()
    got = torch.autograd.grad(lath.ops.lowrank_linear(*args), args, dy)
    expected = torch.autograd.grad(composition(*args), args, dy)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_output_that_is_not_used():
    args = arguments()
    y = lath.ops.lowrank_linear(*args)
    assert torch.autograd.grad((y * 0).sum(), args)[0].count_nonzero() == 0
    value = lath.ops.frobenius_decay(args[1], args[2])
    assert torch.autograd.grad(value * 0, args[1])[0].count_nonzero() == 0


def test_zero_rows():
    args = arguments(torch.float32)
    args[0] = torch.randn(0, 6, requires_grad=True)
    lath.ops.lowrank_linear(*args).sum().backward()
    assert args[0].grad.shape == (0, 6)
    assert all(a.grad.shape == a.shape and a.grad.count_nonzero() == 0 for a in args)


# ---- what is saved ------------------------------------------------------------------------------------------------


def saved_shapes(y):
    node = y.grad_fn
    return [tuple(t.shape) for t in node.saved_tensors]


@pytest.mark.cpu_only
def test_intermediate_is_kept_only_where_it_helps():
    with_u = saved_shapes(lath.ops.lowrank_linear(*arguments(torch.float32), "factored"))
    without_u = saved_shapes(lath.ops.lowrank_linear(*arguments(torch.float32, requires=("x", "weight_v")), "factored"))
    merged = saved_shapes(lath.ops.lowrank_linear(*arguments(torch.float32), "merged"))
    keeps = lath.ops.lowrank_linear_plan(6, 6, 4, 5, "factored").save_intermediate
    assert with_u[-1] == ((6, 4) if keeps else (0,))
    assert without_u[-1] == (0,)
    assert merged[-1] == (0,)


def test_backward_with_and_without_the_intermediate_agree():
    x, v, u, bias, inner_bias = (a.detach() for a in arguments(torch.float32))
    dy = torch.randn(2, 3, 5)
    _, p = torch.ops.lath.lowrank_linear_forward(x, v, u, bias, inner_bias, True, 1)
    kept = torch.ops.lath.lowrank_linear_backward(dy, x, v, u, inner_bias, p, 31, 1)
    computed = torch.ops.lath.lowrank_linear_backward(dy, x, v, u, inner_bias, p.new_empty(0), 31, 1)
    torch.testing.assert_close(kept, computed)


def test_write_to_a_saved_tensor_is_noticed():
    args = arguments()
    y = lath.ops.lowrank_linear(*args)
    with torch.no_grad():
        args[2].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_second_backward_through_a_kept_graph():
    args = arguments()
    y = lath.ops.lowrank_linear(*args)
    first = torch.autograd.grad(y.sum(), args, retain_graph=True)
    torch.testing.assert_close(first, torch.autograd.grad(y.sum(), args))


def test_checkpointing():
    args = arguments()
    y = torch.utils.checkpoint.checkpoint(lath.ops.lowrank_linear, *args, use_reentrant=False)
    got = torch.autograd.grad(y.sum(), args)
    torch.testing.assert_close(got, torch.autograd.grad(composition(*args).sum(), args))


def test_inference_mode_then_training():
    layer = lath.nn.LowRankLinear(6, 5, 2)
    x = torch.randn(3, 6)
    with torch.inference_mode():
        assert layer(x).is_inference()
    layer(x).sum().backward()
    assert layer.weight_v.grad is not None


# ---- torch.func ---------------------------------------------------------------------------------------------------


def test_func_grad_and_jacobians():
    x, *parameters = (a.detach() for a in arguments())
    for transform in (torch.func.jacrev, torch.func.jacfwd, torch.func.hessian):
        got = transform(lambda v: lath.ops.lowrank_linear(x, v, *parameters[1:]).square().sum(0))(parameters[0])
        expected = transform(lambda v: composition(x, v, *parameters[1:]).square().sum(0))(parameters[0])
        torch.testing.assert_close(got, expected)


def test_per_sample_gradients():
    x, *parameters = (a.detach() for a in arguments())

    def loss(function):
        return lambda parameters, x: function(x, *parameters).square().sum()

    results = [
        torch.func.vmap(torch.func.grad(loss(f)), in_dims=(None, 0))(tuple(parameters), x)
        for f in (lath.ops.lowrank_linear, composition)
    ]
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("in_dims", [(0, None, None, None), (1, None, None, None), (None, 0, None, 0), (1, 0, 2, 0)])
@pytest.mark.filterwarnings("error")
def test_vmap(in_dims, grad):
    batch = 3
    shapes = [(2, 6), (4, 6), (5, 4), (5,)]
    args = []
    for shape, dim in zip(shapes, in_dims, strict=True):
        full = list(shape)
        if dim is not None:
            full.insert(dim, batch)
        args.append(torch.randn(full, dtype=torch.float64, requires_grad=grad))
    got = torch.func.vmap(lath.ops.lowrank_linear, in_dims=in_dims)(*args)
    expected = torch.func.vmap(composition, in_dims=in_dims)(*args)
    torch.testing.assert_close(got, expected)
    if grad:
        dy = torch.randn_like(got)
        torch.testing.assert_close(torch.autograd.grad(got, args, dy), torch.autograd.grad(expected, args, dy))


@pytest.mark.filterwarnings("error")
def test_vmap_of_the_other_operators():
    x, w = torch.randn(3, 2, 6), torch.randn(5, 6)
    torch.testing.assert_close(torch.func.vmap(lath.ops.linear, in_dims=(0, None))(x, w), linear(x, w))
    v, u = torch.randn(3, 4, 6), torch.randn(3, 5, 4)
    expected = (u @ v).square().sum((1, 2))
    torch.testing.assert_close(torch.func.vmap(lath.ops.frobenius_decay)(v, u), expected)


def test_forward_mode():
    args = tuple(a.detach() for a in arguments())
    tangents = tuple(torch.randn_like(a) for a in args)
    got = torch.func.jvp(lath.ops.lowrank_linear, args, tangents)
    torch.testing.assert_close(got, torch.func.jvp(composition, args, tangents))
