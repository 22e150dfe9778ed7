# SPDX-License-Identifier: Apache-2.0
"""Low-rank convolutions: values against float64, memory formats, routes, autocast, bad input."""

from __future__ import annotations

import re

import lath
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from lath import _conv
from operator_cases import assert_same, every_device, p_dtype
from oracles import DTYPES, LIBRARY_SLACK, assert_close_conv, lowrank_conv2d
from test_ops import images
from torch.nn.functional import conv2d

NONE = torch.empty(0)
ops = torch.ops.lath
pytestmark = every_device
FORMATS = [torch.contiguous_format, torch.channels_last]
every_mode = pytest.mark.parametrize("mode", ["separable", "pointwise"])


def weights(n, r, m, kernel, groups, mode, dtype=torch.float32):
    """weight_v, weight_u, bias, inner_bias."""
    taps_v, taps_u = (1, kernel[0]) if mode == "separable" else (kernel[0], 1)
    shapes = (groups * r, n // groups, taps_v, kernel[1]), (m, r, taps_u, 1), (m,), (groups * r,)
    return [torch.randn(shape, dtype=dtype) for shape in shapes]


# ---- values -------------------------------------------------------------------------------------------------------

few = st.integers(1, 3)


@st.composite
def problems(draw):
    """X in any layout, the weights, and a geometry whose window fits."""
    separable, groups, dtype = draw(st.booleans()), draw(few), draw(st.sampled_from(DTYPES))
    n, m = (groups * draw(st.integers(1, 9) | st.sampled_from([16, 33])) for _ in range(2))
    r = draw(st.integers(1, 9) | st.sampled_from([16, 21]))
    batch, height, width = draw(st.integers(0, 3)), draw(st.integers(1, 13)), draw(st.integers(1, 18))
    kernel, dilation = (draw(st.integers(1, 4)), draw(st.integers(1, 4))), (draw(few), draw(few))
    pads = draw(st.tuples(*[st.integers(0, 3)] * 4))
    assume(height + pads[0] + pads[1] > (kernel[0] - 1) * dilation[0])
    assume(width + pads[2] + pads[3] > (kernel[1] - 1) * dilation[1])
    x = images((batch, n, height, width), dtype)
    v, u, bias, inner_bias = weights(n, r, m, kernel, groups, "separable" if separable else "pointwise", dtype)
    return (
        x[draw(st.sampled_from(sorted(x)))],
        v if draw(st.booleans()) else v.to(memory_format=torch.channels_last),
        u,
        bias if draw(st.booleans()) else None,
        inner_bias if draw(st.booleans()) else None,
        *(draw(few), draw(few), *pads, *dilation, groups, separable),
    )


@given(problems())
def test_operator_against_float64(problem):
    x, v, u, bias, inner_bias, *geometry = problem
    biases = [NONE if b is None else b for b in (bias, inner_bias)]
    y, p = ops.lowrank_conv2d_forward(x, v, u, *biases, *geometry)
    assert y.dtype == x.dtype
    assert_close_conv(y, x, v, u, bias, inner_bias, *geometry)
    assert_same(y, ops.lowrank_conv2d(x, v, u, *biases, *geometry))
    assert p.dtype == p_dtype(x.dtype)
    assert p.is_contiguous() or (p.is_cuda and p.is_contiguous(memory_format=torch.channels_last))


@given(problems())
def test_gradients_against_float64(problem):
    """Within the rounding of their sums: eps times the gradients of the absolute values."""
    x, v, u, bias, inner_bias, *geometry = problem
    absent = NONE if inner_bias is None else inner_bias

    def reference(change):
        leaves = [change(t.double()).requires_grad_() for t in (x, v, u)]
        leaves += [None if t is None else change(t.double()).requires_grad_() for t in (bias, inner_bias)]
        y = lowrank_conv2d(*leaves, *geometry)
        grads = iter(torch.autograd.grad(y, [t for t in leaves if t is not None], change(dy.double())))
        return [None if t is None else next(grads) for t in leaves]

    _, p = ops.lowrank_conv2d_forward(x, v, u, NONE, absent, *geometry)
    dy = torch.randn_like(ops.lowrank_conv2d(x, v, u, NONE, NONE, *geometry))
    expected, sizes = reference(lambda t: t.clone()), reference(torch.abs)
    terms = dy.shape[0] * dy.shape[2] * dy.shape[3] + x.shape[1] + u.shape[0] + 40
    sums = 2.0**-53 if x.dtype == torch.float64 else 2.0**-24
    eps = terms * sums * (LIBRARY_SLACK if x.is_cuda else 1) + (4 * 2.0**-8 if x.dtype == torch.bfloat16 else 0)
    for kept in (p, p.new_empty(0)):
        got = ops.lowrank_conv2d_backward(dy, x, v, u, absent, kept, *geometry)
        for grad, e, size in zip(got, expected, sizes, strict=True):
            if e is not None:
                assert ((grad.double() - e).abs() <= eps * size).all()


@given(st.data(), problems(), st.sampled_from(lath.ops.CONV_KERNELS))
def test_every_kernel_is_the_same_function(data, problem, kernel):
    x, v, u, bias, inner_bias, *numbers = problem
    g = _conv.Geometry(*numbers)
    padding = data.draw(st.sampled_from(["valid", "same", (g.pad_top, g.pad_left)]))
    stride = 1 if padding == "same" else (g.stride_h, g.stride_w)
    dilation, mode = (g.dilation_h, g.dilation_w), "separable" if g.separable else "pointwise"
    size = _conv.kernel_size(v.shape, u.shape, mode)
    g = _conv.geometry(size, stride, padding, dilation, g.groups, mode)
    assume(x.shape[2] + g.pad_top + g.pad_bottom > (size[0] - 1) * g.dilation_h)
    assume(x.shape[3] + g.pad_left + g.pad_right > (size[1] - 1) * g.dilation_w)
    assume(kernel != "merged" or inner_bias is None or not g.separable or g.pad_top + g.pad_bottom == 0)
    y = lath.ops.lowrank_conv2d(x, v, u, bias, inner_bias, stride, padding, dilation, g.groups, mode, kernel)
    assert_close_conv(y, x, v, u, bias, inner_bias, *g)
    if padding == "same":
        assert y.shape[2:] == x.shape[2:]
    if x.shape[0] > 0:
        numbers = (stride, padding, dilation, g.groups, mode, kernel)
        one = lath.ops.lowrank_conv2d(x[-1], v, u, bias, inner_bias, *numbers)
        assert_close_conv(one[None], x[-1:], v, u, bias, inner_bias, *g)


@every_mode
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kernel", lath.ops.CONV_KERNELS)
def test_dense_convolution_of_the_merged_weight(mode, groups, kernel):
    v, u, bias, _ = weights(4, 3, 6, (3, 2), groups, mode, torch.float64)
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    weight = lath.factor.merge_conv(v, u, groups)
    got = lath.ops.lowrank_conv2d(x, v, u, bias, None, (2, 1), (1, 2), (1, 2), groups, mode, kernel)
    torch.testing.assert_close(got, conv2d(x, weight, bias, (2, 1), (1, 2), (1, 2), groups))


@pytest.mark.parametrize("kernel", lath.ops.CONV_KERNELS)
@pytest.mark.parametrize("layout", sorted(images((2, 3, 5, 4), torch.float32)))
def test_output_has_the_memory_format_that_torch_gives(layout, kernel):
    x = images((2, 3, 5, 4), torch.float32)[layout]
    v, u, *_ = weights(3, 2, 4, (3, 3), 1, "separable")
    y = lath.ops.lowrank_conv2d(x, v, u, padding=1, kernel=kernel)
    assert y.stride() == conv2d(x, torch.randn(4, 3, 3, 3), padding=1).stride()


@every_mode
def test_intermediate(mode):
    """Full height if separable, and without the padding of the second half."""
    v, u, bias, inner_bias = weights(4, 3, 6, (3, 3), 2, mode)
    x = torch.randn(2, 4, 9, 8)
    geometry = _conv.geometry((3, 3), (2, 1), 1, 1, 2, mode)
    _, p = ops.lowrank_conv2d_forward(x, v, u, bias, inner_bias, *geometry)
    first, _ = _conv.stages(geometry)
    expected = conv2d(x, v, inner_bias, first.stride, first.padding, first.dilation, 2)
    assert p.shape == expected.shape == ((2, 6, 9, 8) if mode == "separable" else (2, 6, 5, 8))
    torch.testing.assert_close(p, expected, rtol=1e-4, atol=1e-5)
    _, p = ops.lowrank_conv2d_forward(x, v, u, bias, inner_bias, *geometry, False)
    assert p.shape == (0,)


def test_zero_ranks_change_nothing():
    x, (v, u, bias, _) = torch.randn(2, 4, 9, 8), weights(4, 3, 6, (3, 3), 1, "separable")
    padded_v, padded_u = torch.cat([v, torch.zeros(5, 4, 1, 3)]), torch.cat([u, torch.randn(6, 5, 3, 1)], 1)
    expected = lath.ops.lowrank_conv2d(x, v, u, bias, padding=1, kernel="fused")
    got = lath.ops.lowrank_conv2d(x, padded_v, padded_u, bias, padding=1, kernel="fused")
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


@every_mode
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_stays_in_its_image(mode, dtype):
    x = torch.randn(3, 4, 9, 8, dtype=dtype)
    x[1, 2, 4, 3] = float("nan")
    v, u, *_ = weights(4, 3, 6, (3, 3), 1, mode, dtype)
    y = lath.ops.lowrank_conv2d(x, v, u, padding=1, mode=mode, kernel="fused")
    reached = y.isnan().any(1)
    assert reached[1].sum() == 9
    assert reached[1, 3:6, 2:5].all()
    assert not reached[[0, 2]].any()


@every_mode
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_channels(mode, dtype):
    """Empty sums: what is left are the biases."""
    v, u, bias, inner_bias = weights(0, 3, 6, (3, 3), 1, mode, dtype)
    x = torch.randn(2, 0, 9, 8, dtype=dtype)
    g = _conv.geometry((3, 3), 1, 0, 1, 1, mode)
    y, p = ops.lowrank_conv2d_forward(x, v, u, bias, inner_bias, *g)
    expected = bias.double() + u.double().sum((2, 3)) @ inner_bias.double()
    torch.testing.assert_close(y.double(), expected[:, None, None].expand(2, 6, 7, 6), rtol=0.02, atol=0.02)
    dx, dv, du, d_bias, _ = ops.lowrank_conv2d_backward(torch.ones_like(y), x, v, u, inner_bias, p, *g)
    assert (dx.shape, dv.shape) == (x.shape, v.shape)
    torch.testing.assert_close(
        du, (84 * inner_bias.double())[:, None, None].expand(u.shape).to(dtype), rtol=0.01, atol=0
    )
    assert (d_bias == 84).all()
    y, p = ops.lowrank_conv2d_forward(torch.randn(2, 4, 9, 8), *weights(4, 3, 0, (3, 3), 1, mode), *g)
    assert y.shape == (2, 0, 7, 6)
    assert p.isfinite().all()


@every_mode
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("size", [1, 3])
def test_gradients_of_an_empty_batch_are_zero(mode, memory_format, size):
    v, u, _, inner_bias = weights(4, 3, 6, (size, size), 1, mode)
    x = torch.randn(0, 4, 9, 8).to(memory_format=memory_format)
    g = _conv.geometry((size, size), 1, 0, 1, 1, mode)
    y, p = ops.lowrank_conv2d_forward(x, v, u, NONE, inner_bias, *g)
    garbage = [torch.full_like(t, float("nan")) for t in (v, u) for _ in range(50)]
    del garbage  # for the allocator to hand out again
    for kept in (p, NONE):
        for grad in ops.lowrank_conv2d_backward(torch.randn_like(y), x, v, u, inner_bias, kept, *g):
            assert grad.count_nonzero() == 0


@pytest.mark.cpu_only
def test_meta_tensors():
    x, v, u = (torch.randn(n, device="meta") for n in ((2, 3, 7, 8), (4, 3, 1, 3), (5, 4, 3, 1)))
    for kernel in lath.ops.CONV_KERNELS:
        y = lath.ops.lowrank_conv2d(x, v, u, stride=2, padding=1, kernel=kernel)
        assert y.is_meta
        assert y.shape == (2, 5, 4, 4)


# ---- routes -------------------------------------------------------------------------------------------------------


@pytest.fixture
def planned(monkeypatch):
    """Makes the planner say what a test wants to hear."""

    def answer(kernel):
        lath.ops._cached_conv_route.cache_clear()
        monkeypatch.setattr(_conv, "plan", lambda *_: (kernel, 1, 1, True))

    yield answer
    monkeypatch.undo()
    lath.ops._cached_conv_route.cache_clear()


def route(dtype=torch.float32, inner_bias=False, rank=2, kernel="auto", mode="separable", grad=False):
    v, u = (rank, 4, 1, 3), (4, rank, 3, 1)
    if mode == "pointwise":
        v, u = (rank, 4, 3, 3), (4, rank, 1, 1)
    shapes = (torch.Size(s) for s in ((2, 4, 8, 8), v, u))
    return lath.ops._conv_route(kernel, grad, False, dtype, False, *shapes, inner_bias, 1, 1, 1, 1, mode)


@pytest.mark.cpu_only
@pytest.mark.parametrize(
    ("answer", "kernel"),
    [("fused", "fused"), ("linear", "fused"), ("pair", "pair"), ("merged", "merged"), ("plain", "pair")],
)
def test_auto_follows_the_plan(planned, answer, kernel):
    planned(answer)
    assert route().kernel == kernel
    assert route(kernel="fused").kernel == "fused"
    assert route(kernel="pair").kernel == "pair"


@pytest.mark.cpu_only
def test_float64_goes_to_torch():
    assert route(torch.float64).kernel == "pair"
    assert route(torch.float64, rank=20).kernel == "merged"
    assert route(torch.float64, kernel="fused").kernel == "fused"


@pytest.mark.cpu_only
def test_merged_cannot_have_the_border_effect_of_an_inner_bias(planned):
    planned("merged")
    assert route(inner_bias=True).kernel == "pair"
    assert route(inner_bias=True, mode="pointwise").kernel == "merged"
    with pytest.raises(ValueError, match="no dense convolution has the border effect of an inner bias"):
        route(inner_bias=True, kernel="merged")


@pytest.mark.cpu_only
def test_routes_are_looked_up_once(monkeypatch):
    calls = []
    monkeypatch.setattr(_conv, "_plan", lambda *a: calls.append(a) or (1, 1, 1, True))
    lath.ops._cached_conv_route.cache_clear()
    v, u, *_ = weights(4, 3, 6, (3, 3), 1, "separable")
    for batch in (2, 2, 2, 3):
        lath.ops.lowrank_conv2d(torch.randn(batch, 4, 8, 8), v, u)
    assert len(calls) == 2
    lath.ops._cached_conv_route.cache_clear()


def test_lists_for_numbers():
    x, (v, u, *_) = torch.randn(2, 4, 9, 8), weights(4, 3, 6, (3, 3), 1, "separable")
    got = lath.ops.lowrank_conv2d(x, v, u, stride=[2, 1], padding=[1, 0], dilation=[1, 2])
    torch.testing.assert_close(got, lath.ops.lowrank_conv2d(x, v, u, stride=(2, 1), padding=(1, 0), dilation=(1, 2)))


@pytest.mark.cpu_only
@given(st.integers(0, 64), st.integers(1, 512), st.integers(1, 512), st.integers(1, 64), st.booleans(), st.booleans())
def test_plan_counts_multiply_adds(batch, n, m, size, separable, backward):
    mode = "separable" if separable else "pointwise"
    plan = lath.ops.lowrank_conv2d_plan(batch, n, 7, m, size, size, (3, 5), 2, (1, 2), mode=mode, backward=backward)
    out = (size + 1) // 2
    passes = 2 if backward else 1
    assert plan.kernel in _conv.PLANNED
    assert plan.dense_macs == passes * batch * n * m * 15 * out * out
    if plan.kernel != "merged":
        first = n * 5 * size if separable else n * 15 * out
        assert plan.macs == passes * batch * 7 * out * (first + m * (3 if separable else 1) * out)


@pytest.mark.cpu_only
def test_plan_of_impossible_sizes():
    with pytest.raises(RuntimeError, match=r"lath::lowrank_conv2d_plan: .*overflow"):
        lath.ops.lowrank_conv2d_plan(2**40, 2**20, 1, 2**20, 64, 64, 3)
    with pytest.raises(RuntimeError, match="lowrank_conv2d_plan"):
        lath.ops.lowrank_conv2d_plan(1, 1, 1, 1, 2, 2, 3)
    with pytest.raises(ValueError, match=r"dtype is torch\.float16, expected one of"):
        lath.ops.lowrank_conv2d_plan(1, 1, 1, 1, 2, 2, 1, dtype=torch.float16)


# ---- autocast -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", lath.ops.CONV_KERNELS)
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_autocast_acts_as_for_conv2d(dtype, grad, kernel):
    x, (v, u, bias, _) = torch.randn(2, 4, 9, 8, dtype=dtype), weights(4, 3, 6, (3, 3), 1, "separable", dtype)
    for t in (v, u, bias):
        t.requires_grad_(grad)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = lath.ops.lowrank_conv2d(x, v, u, bias, padding=1, kernel=kernel)
        assert y.dtype == conv2d(x, torch.randn(6, 4, 3, 3, dtype=dtype)).dtype
    expected = lath.ops.lowrank_conv2d(x.double(), v.double(), u.double(), bias.double(), padding=1)
    torch.testing.assert_close(y.double(), expected, rtol=0.05, atol=0.5)
    if grad:
        y.sum().backward()
        assert all(t.grad.dtype == dtype for t in (v, u, bias))


@pytest.mark.cpu_only
def test_autocast_to_float16_is_refused():
    v, u, *_ = weights(4, 3, 6, (3, 3), 1, "separable")
    with (
        torch.autocast("cpu", dtype=torch.float16),
        pytest.raises(RuntimeError, match=r"autocast to torch\.float16 is not supported on the CPU"),
    ):
        lath.ops.lowrank_conv2d(torch.randn(2, 4, 9, 8), v, u)


# ---- bad input ----------------------------------------------------------------------------------------------------


def arguments(**changes):
    """Arguments of lath.ops.lowrank_conv2d, valid but for the changes."""
    shapes = {"x": (2, 4, 5, 6), "weight_v": (6, 2, 1, 3), "weight_u": (8, 3, 3, 1), "bias": (8,), "inner_bias": (6,)}
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    return {**tensors, "groups": 2, **changes}


t = torch.zeros
BAD_SHAPES = {
    "x of two dimensions": ({"x": t(5, 6)}, "x: got shape (5, 6), expected (batch, in_channels, height, width)"),
    "x of five dimensions": ({"x": t(1, 2, 4, 5, 6)}, "x: got shape (1, 2, 4, 5, 6), expected (batch"),
    "no rows": ({"x": t(2, 4, 0, 6)}, "x: got shape (2, 4, 0, 6), expected images of at least one pixel"),
    "no columns": ({"x": t(2, 4, 5, 0), "padding": 2}, "x: got shape (2, 4, 5, 0), expected images of at least one"),
    "channels and groups": (
        {"x": t(2, 5, 5, 6)},
        "x: got shape (2, 5, 5, 6), expected channels that are a multiple of groups, 2",
    ),
    "channels and weight": (
        {"x": t(2, 6, 5, 6)},
        "weight_v: got shape (6, 2, 1, 3), expected (2 * rank, 3, 1, kernel_w) to match 6 channels of x in 2 groups",
    ),
    "rank and groups": ({"weight_v": t(5, 2, 1, 3)}, "weight_v: got shape (5, 2, 1, 3), expected (2 * rank, 2, 1, "),
    "rank zero": ({"weight_v": t(0, 2, 1, 3)}, "weight_v: got rank 0, expected at least 1"),
    "weight_v of the other form": (
        {"weight_v": t(6, 2, 3, 3)},
        "weight_v: got shape (6, 2, 3, 3), expected (2 * rank,",
    ),
    "weight_v a matrix": ({"weight_v": t(6, 2)}, "weight_v: got shape (6, 2), expected 4 dimensions"),
    "weight_u a matrix": ({"weight_u": t(8, 3)}, "weight_u: got shape (8, 3), expected 4 dimensions"),
    "no taps": ({"weight_v": t(6, 2, 1, 0)}, "weight_v: got shape (6, 2, 1, 0), expected at least one tap"),
    "ranks differ": (
        {"weight_u": t(8, 4, 3, 1)},
        "weight_u: got shape (8, 4, 3, 1), expected (out_channels, 3, kernel_h, 1) to match the rank of weight_v",
    ),
    "output and groups": ({"weight_u": t(7, 3, 3, 1)}, "weight_u: got shape (7, 3, 3, 1), expected (out_channels, 3, "),
    "weight_u of the other form": (
        {"weight_v": t(6, 2, 3, 3), "mode": "pointwise"},
        "weight_u: got shape (8, 3, 3, 1), expected (out_channels, 3, 1, 1)",
    ),
    "kernel too high": (
        {"x": t(2, 4, 2, 6)},
        "x: got shape (2, 4, 2, 6), expected at least 3 x 3 pixels with padding (0, 0, 0, 0), "
        "the reach of a 3 x 3 kernel",
    ),
    "kernel too wide": (
        {"x": t(2, 4, 5, 4), "dilation": (1, 4), "padding": (0, 2)},
        "x: got shape (2, 4, 5, 4), expected at least 3 x 9 pixels with padding (0, 0, 2, 2)",
    ),
    "negative padding": ({"padding": (1, -1)}, "pad_left: got -1, expected at least 0"),
    "no stride": ({"stride": (0, 1)}, "stride_h: got 0, expected at least 1"),
    "negative dilation": ({"dilation": -2}, "dilation_h: got -2, expected at least 1"),
    "no groups": ({"groups": 0}, "groups: got 0, expected at least 1"),
}
BAD_TENSORS = {
    "bias too long": ({"bias": t(9)}, "bias: got shape (9,), expected (8,)"),
    "inner bias too long": ({"inner_bias": t(7)}, "inner_bias: got shape (7,), expected (6,)"),
    "integers": ({"x": t(2, 4, 5, 6).long()}, "x: got dtype torch.int64, expected torch.float32"),
    "mixed types": ({"weight_u": t(8, 3, 3, 1).double()}, "weight_u: got dtype torch.float64, expected torch.float32"),
    "mixed bias": ({"bias": t(8).double()}, "bias: got dtype torch.float64, expected torch.float32"),
}


@pytest.mark.parametrize("kernel", lath.ops.CONV_KERNELS)
@pytest.mark.parametrize("case", BAD_SHAPES)
def test_bad_shapes(case, kernel):
    """The same words, whoever carries the call out, and in the shape functions."""
    changes, message = BAD_SHAPES[case]
    given = arguments(**changes, inner_bias=None, kernel=kernel)
    with pytest.raises(RuntimeError, match=rf"^lath::lowrank_conv2d: {re.escape(message)}"):
        lath.ops.lowrank_conv2d(**given)
    given = {name: a.to("meta") if isinstance(a, torch.Tensor) else a for name, a in given.items()}
    with pytest.raises(RuntimeError, match=rf"lath::lowrank_conv2d: {re.escape(message)}"):
        lath.ops.lowrank_conv2d(**given)


@pytest.mark.parametrize("case", BAD_SHAPES)
def test_raw_operator_refuses_bad_shapes_itself(case):
    changes, message = BAD_SHAPES[case]
    a = {"stride": 1, "padding": 0, "dilation": 1, "mode": "separable", **arguments(**changes)}
    g = _conv.geometry((3, 3), a["stride"], a["padding"], a["dilation"], a["groups"], a["mode"])
    for device in ("cpu", "meta"):
        tensors = [a[name].to(device) for name in ("x", "weight_v", "weight_u", "bias", "inner_bias")]
        with pytest.raises(RuntimeError, match=rf"lath::lowrank_conv2d: {re.escape(message)}"):
            ops.lowrank_conv2d(*tensors, *g)


@pytest.mark.cpu_only  # on CUDA they are convolutions of torch, which say it in its words
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("case", BAD_TENSORS)
def test_bad_tensors(case, grad):
    changes, message = BAD_TENSORS[case]
    given = arguments(**changes, kernel="fused")
    given["weight_v"].requires_grad_(grad)
    with pytest.raises(RuntimeError, match=rf"^lath::lowrank_conv2d\w*: {re.escape(message)}"):
        lath.ops.lowrank_conv2d(**given)
    meta = {name: a.to("meta") if isinstance(a, torch.Tensor) else a for name, a in given.items()}
    with pytest.raises(RuntimeError, match=rf"lath::lowrank_conv2d\w*: {re.escape(message)}"):
        lath.ops.lowrank_conv2d(**meta)


@pytest.mark.cpu_only
@pytest.mark.parametrize("name", ["x", "weight_v", "weight_u", "bias"])
def test_sparse_tensors(name):
    given = arguments(kernel="fused")
    given[name] = given[name].to_sparse()
    with pytest.raises(RuntimeError, match=f"lath::lowrank_conv2d: {name}: got a sparse or otherwise non-strided"):
        lath.ops.lowrank_conv2d(**given)


@pytest.mark.cpu_only
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"kernel": "winograd"}, ValueError, "kernel is 'winograd', expected one of"),
        ({"mode": "depthwise"}, ValueError, "mode is 'depthwise', expected one of"),
        ({"padding": "full"}, ValueError, "padding is 'full', expected numbers, 'same' or 'valid'"),
        ({"padding": "same", "stride": 2}, ValueError, r"padding 'same' needs stride 1, got \(2, 2\)"),
        ({"stride": (1, 2, 3)}, TypeError, r"stride is \(1, 2, 3\), expected an int or two of them"),
        ({"dilation": 1.5}, TypeError, "dilation is 1.5, expected an int or two of them"),
        ({"x": [[1.0]]}, TypeError, r"x is list, expected torch\.Tensor"),
    ],
)
def test_bad_python_arguments(changes, error, message):
    with pytest.raises(error, match=f"lath.lowrank_conv2d: {message}"):
        lath.ops.lowrank_conv2d(**arguments(**changes))


@pytest.mark.cpu_only
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": t(1, 1, 1, 1).expand(2**28, 4, 2**29, 6)}, "x: got shape (268435456, 4, 536870912, 6), expected"),
        ({"padding": (2**61, 0)}, "x: got shape (2, 4, 5, 6), expected"),
        ({"padding": (2**31, 2**31)}, "x: got shape (2, 4, 5, 6), expected"),
        ({"x": t(1, 1, 1, 1).expand(2**42, 4, 5, 6)}, "output: out of memory for"),
    ],
    ids=["input", "padding", "output", "memory"],
)
def test_overflowing_sizes(changes, message):
    a = arguments(**changes)
    with pytest.raises(RuntimeError, match=re.escape(f"lath::lowrank_conv2d: {message}")):
        lath.ops.lowrank_conv2d(**a, kernel="fused")
    tensors = [a[name] for name in ("x", "weight_v", "weight_u", "bias", "inner_bias")]
    geometry = _conv.geometry((3, 3), 1, a.get("padding", 0), 1, 2, "separable")
    with pytest.raises(RuntimeError, match=re.escape(f"lath::lowrank_conv2d: {message}")):
        ops.lowrank_conv2d(*tensors, *geometry)
