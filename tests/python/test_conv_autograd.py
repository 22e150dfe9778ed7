# SPDX-License-Identifier: Apache-2.0
"""Gradients of low-rank convolutions: both orders, torch.func, memory formats, and what is saved."""

from __future__ import annotations

import itertools

import lath
import pytest
import torch
from lath import _conv
from operator_cases import OperatorLog, every_device
from oracles import lowrank_conv2d
from torch.autograd import gradcheck, gradgradcheck

pytestmark = every_device
NAMES = ("x", "weight_v", "weight_u", "bias", "inner_bias")
MODES = ("separable", "pointwise")
every_mode = pytest.mark.parametrize("mode", MODES)
every_kernel = pytest.mark.parametrize("kernel", ["auto", "fused", "pair"])


def arguments(mode="separable", groups=1, dtype=torch.float64, requires=NAMES, without=()):
    """The five tensors; those named in ``requires`` are leaves, those in ``without`` are None."""
    taps_v, taps_u = (1, 3) if mode == "separable" else (3, 1)
    shapes = (2, 2, 4, 3), (groups * 2, 2 // groups, taps_v, 2), (4, 2, taps_u, 1), (4,), (groups * 2,)
    return [
        None if name in without else torch.randn(shape, dtype=dtype, requires_grad=name in requires)
        for name, shape in zip(NAMES, shapes, strict=True)
    ]


def layer(mode="separable", groups=1, kernel="fused", padding=1, stride=(2, 1)):
    """The operator as a function of its tensors."""

    def function(x, v, u, bias=None, inner_bias=None):
        return lath.ops.lowrank_conv2d(x, v, u, bias, inner_bias, stride, padding, 1, groups, mode, kernel)

    return function


def composition(mode="separable", groups=1, padding=1, stride=(2, 1)):
    g = _conv.geometry((3, 2), stride, padding, 1, groups, mode)

    def function(x, v, u, bias=None, inner_bias=None):
        return _conv.composite(x, v, u, bias, inner_bias, _conv.stages(g), groups)

    return function


# ---- first and second order ---------------------------------------------------------------------------------------


@every_mode
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("without", [(), ("bias",), ("inner_bias",), ("bias", "inner_bias")])
@pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # torch's own forward mode of convolutions
def test_gradcheck(mode, groups, without):
    args = arguments(mode, groups, without=without)
    function = layer(mode, groups)
    assert gradcheck(function, args, check_batched_grad=True, check_forward_ad=True)
    assert gradgradcheck(function, args)


@every_mode
def test_gradcheck_with_uneven_padding(mode):
    args = arguments(mode)
    function = layer(mode, padding="same", stride=1)  # a window of 2 is padded on the right alone
    assert gradcheck(function, args)
    assert gradgradcheck(function, args)


@pytest.mark.parametrize("kernel", ["pair", "merged"])
def test_gradcheck_of_the_other_kernels(kernel):
    args = arguments(without=("inner_bias",))
    assert gradcheck(layer(kernel=kernel), args)
    assert gradgradcheck(layer(kernel=kernel), args)


@every_mode
@pytest.mark.parametrize("requires", [c for n in range(1, 5) for c in itertools.combinations(NAMES, n)])
def test_every_subset_of_gradients(mode, requires):
    args = arguments(mode, requires=requires)
    leaves = [a for a in args if a.requires_grad]
    y = layer(mode)(*args)
    dy = torch.randn_like(y)
    expected = torch.autograd.grad(composition(mode)(*args), leaves, dy)
    torch.testing.assert_close(torch.autograd.grad(y, leaves, dy, retain_graph=True), expected)
    torch.testing.assert_close(torch.autograd.grad(y, leaves, dy, create_graph=True), expected)


def test_operators_carry_first_order_and_torch_carries_second():
    args = arguments()
    with OperatorLog() as log:
        layer()(*args).sum().backward()
    assert log.names == ["lowrank_conv2d_forward", "lowrank_conv2d_backward"]
    with OperatorLog() as log:
        torch.autograd.grad(layer()(*args).sum(), args, create_graph=True)
    assert log.names == ["lowrank_conv2d_forward"]
    with OperatorLog() as log, torch.no_grad():
        layer()(*args)
    assert log.names == ["lowrank_conv2d"]


def test_gradient_penalty_agrees_with_composition():
    args = arguments()
    results = []
    for function in (layer(), composition()):
        (dx,) = torch.autograd.grad(function(*args).square().sum(), args[0], create_graph=True)
        results.append(torch.autograd.grad(dx.square().sum(), args))
    torch.testing.assert_close(*results)


# ---- incoming gradients -------------------------------------------------------------------------------------------


@every_kernel
@every_mode
@pytest.mark.parametrize(
    "make",
    [
        lambda s: torch.ones(()).expand(s),
        lambda s: torch.randn(s[0], s[1], 1, 1).expand(s),
        lambda s: torch.randn(s).to(memory_format=torch.channels_last),
        lambda s: torch.randn(s[1], s[0], s[3], s[2]).permute(1, 0, 3, 2),
        lambda s: torch.randn(*s[:3], 2 * s[3])[..., ::2],
    ],
    ids=["expanded", "mean", "channels_last", "permuted", "stepped"],
)
def test_layouts_of_the_incoming_gradient(make, mode, kernel):
    args = arguments(mode, dtype=torch.float32)
    y = layer(mode, kernel=kernel)(*args)
    dy = make(y.shape)
    expected = torch.autograd.grad(composition(mode)(*args), args, dy)
    torch.testing.assert_close(torch.autograd.grad(y, args, dy), expected, rtol=1e-4, atol=1e-5)


@every_mode
@pytest.mark.parametrize("dy_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("x_format", [torch.contiguous_format, torch.channels_last])
def test_gradient_has_the_memory_format_of_x(x_format, dy_format, mode):
    args = arguments(mode, dtype=torch.float32)
    x = args[0] = args[0].detach().to(memory_format=x_format).requires_grad_()
    y = layer(mode)(*args)
    y.backward(torch.randn_like(y).to(memory_format=dy_format))
    assert x.grad.stride() == x.stride()
    assert args[1].grad.is_contiguous()


def test_output_that_is_not_used():
    args = arguments()
    y = layer()(*args)
    assert torch.autograd.grad((y * 0).sum(), args)[0].count_nonzero() == 0


@every_mode
@every_kernel
def test_empty_batch(mode, kernel):
    args = arguments(mode, dtype=torch.float32)
    args[0] = torch.randn(0, 2, 4, 3, requires_grad=True)
    layer(mode, kernel=kernel)(*args).sum().backward()
    assert all(a.grad.shape == a.shape and a.grad.count_nonzero() == 0 for a in args)


def test_unbatched_input():
    args = arguments(dtype=torch.float32)
    x = args[0].detach()[0].requires_grad_()
    y = layer()(x, *args[1:])
    expected = composition()(x[None], *args[1:])[0]
    assert y.shape == expected.shape
    dy = torch.randn_like(y)
    got, wanted = (torch.autograd.grad(t, [x, *args[1:]], dy) for t in (y, expected))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


# ---- what is saved ------------------------------------------------------------------------------------------------


def saved_shapes(y):
    return [tuple(t.shape) for t in y.grad_fn.saved_tensors]


@pytest.mark.cpu_only
@every_mode
def test_intermediate_is_kept_only_where_it_helps(mode):
    """For the gradient of weight_u, and if the plan says so."""
    for channels in (1, 64):
        x = torch.randn(2, channels, 8, 8)
        taps_v, taps_u = (1, 3) if mode == "separable" else (3, 1)
        v = torch.randn(4, channels, taps_v, 3, requires_grad=True)
        u = torch.randn(6, 4, taps_u, 1, requires_grad=True)
        plan = lath.ops.lowrank_conv2d_plan(2, channels, 4, 6, 8, 8, 3, padding=1, mode=mode, backward=True)
        kept = (2, 4, 8, 8) if plan.save_intermediate else (0,)
        assert saved_shapes(lath.ops.lowrank_conv2d(x, v, u, padding=1, mode=mode, kernel="fused"))[-1] == kept
        frozen = lath.ops.lowrank_conv2d(x, v, u.detach(), padding=1, mode=mode, kernel="fused")
        assert saved_shapes(frozen)[-1] == (0,)


@every_mode
def test_backward_with_and_without_the_intermediate_agree(mode):
    x, v, u, bias, inner_bias = (a.detach() for a in arguments(mode, dtype=torch.float32))
    g = _conv.geometry((3, 2), 1, 1, 1, 1, mode)
    y, p = torch.ops.lath.lowrank_conv2d_forward(x, v, u, bias, inner_bias, *g)
    dy = torch.randn_like(y)
    kept = torch.ops.lath.lowrank_conv2d_backward(dy, x, v, u, inner_bias, p, *g)
    computed = torch.ops.lath.lowrank_conv2d_backward(dy, x, v, u, inner_bias, p.new_empty(0), *g)
    torch.testing.assert_close(kept, computed)


def test_write_to_a_saved_tensor_is_noticed():
    args = arguments()
    y = layer()(*args)
    with torch.no_grad():
        args[2].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_second_backward_through_a_kept_graph():
    args = arguments()
    y = layer()(*args)
    first = torch.autograd.grad(y.sum(), args, retain_graph=True)
    torch.testing.assert_close(first, torch.autograd.grad(y.sum(), args))


def test_checkpointing():
    args = arguments()
    y = torch.utils.checkpoint.checkpoint(layer(), *args, use_reentrant=False)
    got = torch.autograd.grad(y.sum(), args)
    torch.testing.assert_close(got, torch.autograd.grad(composition()(*args).sum(), args))


# ---- torch.func ---------------------------------------------------------------------------------------------------


@every_mode
def test_func_grad_and_jacobians(mode):
    x, v, *others = (a.detach() for a in arguments(mode))
    for transform in (torch.func.jacrev, torch.func.jacfwd, torch.func.hessian):
        results = [
            transform(lambda v, f=f: f(x, v, *others).square().sum((1, 2, 3)))(v)
            for f in (layer(mode), composition(mode))
        ]
        torch.testing.assert_close(*results)


@every_mode
def test_per_sample_gradients(mode):
    x, *parameters = (a.detach() for a in arguments(mode))

    def loss(function):
        return lambda parameters, x: function(x, *parameters).square().sum()

    results = [
        torch.func.vmap(torch.func.grad(loss(f)), in_dims=(None, 0))(tuple(parameters), x)
        for f in (layer(mode), composition(mode))
    ]
    torch.testing.assert_close(*results)


@every_kernel
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("in_dims", [(0, None, None, None), (2, None, None, None), (None, 0, None, 0), (1, 0, 2, 0)])
@pytest.mark.filterwarnings("error")
def test_vmap(in_dims, grad, kernel):
    args = []
    for t, dim in zip(arguments(without=("inner_bias",))[:4], in_dims, strict=True):
        shape = list(t.shape)
        if dim is not None:
            shape.insert(dim, 3)
        args.append(torch.randn(shape, dtype=torch.float64, requires_grad=grad))
    got = torch.func.vmap(layer(kernel=kernel), in_dims=in_dims)(*args)
    expected = torch.func.vmap(composition(), in_dims=in_dims)(*args)
    torch.testing.assert_close(got, expected)
    if grad:
        dy = torch.randn_like(got)
        torch.testing.assert_close(torch.autograd.grad(got, args, dy), torch.autograd.grad(expected, args, dy))


@every_kernel
def test_forward_mode(kernel):
    args = tuple(a.detach() for a in arguments())
    tangents = tuple(torch.randn_like(a) for a in args)
    got = torch.func.jvp(layer(kernel=kernel), args, tangents)
    torch.testing.assert_close(got, torch.func.jvp(composition(), args, tangents))


def test_composition_is_the_oracle():
    args = [a.detach() for a in arguments()]
    g = _conv.geometry((3, 2), (2, 1), 1, 1, 1, "separable")
    torch.testing.assert_close(composition()(*args), lowrank_conv2d(*args, *g))
