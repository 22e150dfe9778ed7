# SPDX-License-Identifier: Apache-2.0
"""The operators: contracts with torch (opcheck), values against float64, layouts, autocast, bad input."""

from __future__ import annotations

import subprocess
import sys

import lath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from operator_cases import CUDA_OPERATORS, every_device
from oracles import DTYPES, assert_close_lowrank, lowrank

NONE = torch.empty(0)
ops = torch.ops.lath
pytestmark = every_device


# ---- opcheck ------------------------------------------------------------------------------------------------------


def layouts(shape, dtype):
    """Tensors of the shape in every layout that a caller may bring."""
    padded = [n + 2 for n in shape]
    offset = torch.randn(padded, dtype=dtype)[tuple(slice(1, n + 1) for n in shape)]
    return {
        "contiguous": torch.randn(shape, dtype=dtype),
        "transposed": torch.randn(*shape[:-2], shape[-1], shape[-2], dtype=dtype).mT,
        "sliced": offset,
        "expanded": torch.randn(1, shape[-1], dtype=dtype).expand(shape),
        "stepped": torch.randn(*shape[:-1], 2 * shape[-1], dtype=dtype)[..., ::2],
    }


def lowrank_samples():
    """Tuples (x, v, u, bias, inner_bias) that cover dtypes, layouts, sizes and absent biases."""
    for dtype in DTYPES:
        yield [torch.randn(n, dtype=dtype) for n in ((2, 3, 7), (4, 7), (5, 4), (5,), (4,))]
    xs, vs, us = layouts((6, 7), torch.float32), layouts((4, 7), torch.float32), layouts((5, 4), torch.float32)
    for layout in xs:
        yield [xs[layout], vs[layout], us[layout], NONE, NONE]
    for rows, n, r, m in ((0, 7, 4, 5), (3, 1, 1, 1), (1, 7, 9, 5), (2, 0, 1, 3), (2, 3, 1, 0)):
        yield [torch.randn(rows, n), torch.randn(r, n), torch.randn(m, r), torch.randn(m), torch.randn(r)]
    yield [torch.randn(7), torch.randn(4, 7), torch.randn(5, 4), NONE, torch.randn(4)]


def forward_samples():
    for args in lowrank_samples():
        for save, association in ((True, 0), (False, 0), (True, 1), (True, 2)):
            yield (*args, save, association)


def backward_samples():
    for x, v, u, bias, inner_bias in lowrank_samples():
        y, p = ops.lowrank_linear_forward(x, v, u, bias, inner_bias, True, 1)
        for mask, kept, association in ((31, p, 1), (13, NONE, 0), (2, p, 2), (0, NONE, 0)):
            yield (torch.randn_like(y), x, v, u, inner_bias, kept.to(p.dtype), mask, association)


def decay_backward_samples():
    for _, v, u, _, _ in lowrank_samples():
        value, gram_v, gram_u = ops.frobenius_decay(v, u)
        yield (torch.ones_like(value), v, u, gram_v, gram_u)


def dense_weight(v, u):
    return torch.randn(u.shape[0], v.shape[1], dtype=v.dtype)


def images(shape, dtype):
    """A batch of images in every layout that a caller may bring."""
    padded = torch.randn(*(n + 2 for n in shape), dtype=dtype)
    plain = torch.randn(shape, dtype=dtype)
    return {
        "contiguous": plain,
        "channels_last": plain.to(memory_format=torch.channels_last),
        "sliced": padded[tuple(slice(1, n + 1) for n in shape)],
        "sliced channels_last": padded.to(memory_format=torch.channels_last)[tuple(slice(1, n + 1) for n in shape)],
        "transposed": torch.randn(*shape[:2], shape[3], shape[2], dtype=dtype).mT,
        "batch inside": torch.randn(*shape[1:], shape[0], dtype=dtype).movedim(-1, 0),
        "expanded": torch.randn(1, shape[1], 1, shape[3], dtype=dtype).expand(shape),
    }


def conv_samples():
    """Tuples (x, v, u, bias, inner_bias, *geometry) that cover dtypes, layouts, sizes, forms and absent biases."""
    pointwise = (1, 1, 0, 0, 0, 0, 1, 1, 1, False)
    for dtype in DTYPES:
        shapes = ((2, 4, 7, 8), (6, 2, 1, 2), (6, 3, 3, 1), (6,), (6,))
        yield [*(torch.randn(n, dtype=dtype) for n in shapes), 2, 1, 1, 2, 0, 1, 1, 2, 2, True]
    for x in images((2, 3, 5, 4), torch.float32).values():
        yield [x, torch.randn(2, 3, 3, 2), torch.randn(4, 2, 1, 1), NONE, NONE, *pointwise]
    v = torch.randn(2, 3, 3, 2).to(memory_format=torch.channels_last)
    yield [torch.randn(1, 3, 3, 2), v, torch.randn(4, 2, 1, 1), torch.randn(4), NONE, *pointwise]
    for x in ((0, 3, 5, 4), (2, 3, 1, 1), (1, 1, 1, 1), (3, 0, 2, 2), (1, 2, 1, 5)):
        for out in (4, 0):
            weights = torch.randn(2, x[1], 1, 1), torch.randn(out, 2, 1, 1)
            for form in (torch.contiguous_format, torch.channels_last):
                yield [torch.randn(x).to(memory_format=form), *weights, torch.randn(out), NONE, *pointwise]


def conv_backward_samples():
    for x, v, u, bias, inner_bias, *geometry in conv_samples():
        y, p = ops.lowrank_conv2d_forward(x, v, u, bias, inner_bias, *geometry)
        for mask, kept in ((31, p), (13, NONE), (2, p), (0, NONE)):
            yield (torch.randn_like(y), x, v, u, inner_bias, kept.to(p.dtype), *geometry, mask)


def lstm_samples():
    """Operands of an LSTM up to the flags: dtypes, layouts, absent operands, packed and padded, small sizes."""

    def weights(n, h, r, s, dtype=torch.float32):
        shapes = ((s, n), (4 * h, s), (r, h), (4 * h, r), (4 * h,), (4 * h,))
        return [torch.randn(n, dtype=dtype) for n in shapes]

    for dtype in (torch.float32, torch.float64):
        states = [torch.randn(3, 7, dtype=dtype) for _ in range(2)]
        batch_sizes = torch.tensor([3, 2, 1])
        yield [torch.randn(6, 5, dtype=dtype), *states, *weights(5, 7, 4, 2, dtype), batch_sizes, True, False]
    for x in layouts((4, 3, 5), torch.float32).values():
        yield [x, NONE, NONE, *weights(5, 7, 4, 2), NONE, False, False]
        yield [x, NONE, torch.randn(4, 7), *weights(5, 7, 4, 2), NONE, True, True]
    for steps, batch in ((1, 1), (0, 2), (2, 0)):
        _, _, v, u, _, _ = weights(1, 1, 1, 1)
        x = torch.randn(steps, batch, 1)
        yield [x, NONE, NONE, NONE, torch.randn(4, 1), v, u, NONE, NONE, NONE, False, False]


def lstm_backward_samples():
    for sample in lstm_samples():
        y, hn, cn, c, gates = ops.lowrank_lstm_forward(*sample, 2)
        x, h0, c0, *weights = sample
        kept = x, h0, c0, y, c
        yield (torch.randn_like(y), torch.randn_like(hn), torch.randn_like(cn), *kept, gates, *weights, 255)
        yield (torch.randn_like(y), NONE, NONE, *kept, NONE, *weights, 0b10101001, 2)
        yield (NONE, NONE, torch.randn_like(cn), *kept, gates, *weights, 0b01010110, 1)


def oialr_samples():
    """Tuples (x, vh, s, u, bias): dtypes, layouts, small sizes and absent biases."""
    for x, v, u, bias, _ in lowrank_samples():
        yield x, v, torch.randn(v.shape[0], v.shape[0], dtype=v.dtype), u, bias


def oialr_backward_samples():
    for x, vh, s, u, bias in oialr_samples():
        y, t = ops.oialr_linear_forward(x, vh, s, u, bias)
        for mask, read, kept, route in ((7, NONE, t, 0), (7, x, NONE, 3), (2, x, NONE, 1), (5, x, t, 2), (0, x, t, 0)):
            yield (torch.randn_like(y), read.to(x.dtype), vh, s, u, kept.to(t.dtype), mask, route)


SAMPLES = {
    "linear": lambda: ((x, dense_weight(v, u), bias) for x, v, u, bias, _ in lowrank_samples()),
    "lowrank_linear": lambda: ((*args, association) for args in lowrank_samples() for association in range(3)),
    "lowrank_linear_forward": forward_samples,
    "lowrank_linear_backward": backward_samples,
    "lowrank_conv2d": conv_samples,
    "lowrank_conv2d_forward": lambda: ((*args, save) for args in conv_samples() for save in (True, False)),
    "lowrank_conv2d_backward": conv_backward_samples,
    "lowrank_lstm_forward": lambda: ((*args, save) for args in lstm_samples() for save in range(3)),
    "lowrank_lstm_backward": lstm_backward_samples,
    "oialr_linear": lambda: ((*args, route) for args in oialr_samples() for route in range(4)),
    "oialr_linear_forward": lambda: (
        (*args, *rest) for args in oialr_samples() for rest in ((True, 0), (False, 0), (True, 3))
    ),
    "oialr_linear_backward": oialr_backward_samples,
    "frobenius_decay": lambda: ((v, u) for _, v, u, _, _ in lowrank_samples()),
    "frobenius_decay_backward": decay_backward_samples,
    "lowrank_linear_plan": lambda: [(64, 32, 8, 48), (1, 1, 1, 1, 2, True)],
    "lowrank_conv2d_plan": lambda: [(2, 4, 3, 6, 7, 8, 3, 3, *(1,) * 8, 2, True, True, 2, True)],
    "oialr_linear_plan": lambda: [(64, 32, 8, 48), (1, 1, 1, 1, 3, True)],
    "cpu_isa": lambda: [()],
}


def registered():
    return {name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("lath::")}


@pytest.mark.cpu_only
def test_every_operator_has_samples():
    assert registered() - CUDA_OPERATORS == set(SAMPLES)


@pytest.mark.parametrize("name", SAMPLES)
def test_opcheck(name):
    operator = getattr(ops, name).default
    for args in SAMPLES[name]():
        torch.library.opcheck(
            operator, args, test_utils=("test_schema", "test_autograd_registration", "test_faketensor")
        )


@pytest.mark.cpu_only
@pytest.mark.parametrize("name", SAMPLES)
def test_opcheck_dynamic_shapes(name):
    """Compiling with symbolic sizes takes seconds a sample: the first one of each operator stands for all."""
    args = next(iter(SAMPLES[name]()))
    torch.library.opcheck(getattr(ops, name).default, args, test_utils="test_aot_dispatch_dynamic")


# ---- values -------------------------------------------------------------------------------------------------------

sizes = st.integers(0, 70) | st.sampled_from([127, 128, 200])
ranks = st.integers(1, 40)


def make(data, shape, dtype):
    """A random tensor of the shape in one of the layouts."""
    layout = data.draw(st.sampled_from(["contiguous", "transposed", "sliced", "expanded", "stepped"]))
    return layouts(shape, dtype)[layout]


@given(st.data(), sizes, sizes, ranks, sizes, st.sampled_from(DTYPES), st.sampled_from(lath.ops.ASSOCIATIONS))
def test_lowrank_linear_against_float64(data, rows, n, r, m, dtype, association):
    x, v, u = make(data, (rows, n), dtype), make(data, (r, n), dtype), make(data, (m, r), dtype)
    bias = data.draw(st.none() | st.just(torch.randn(m, dtype=dtype)))
    inner_bias = data.draw(st.none() | st.just(torch.randn(r, dtype=dtype)))
    y = lath.ops.lowrank_linear(x, v, u, bias, inner_bias, association)
    assert y.shape == (rows, m)
    assert y.dtype == dtype
    assert y.is_contiguous()
    assert_close_lowrank(y, x, v, u, bias, inner_bias)


@given(st.data(), sizes, sizes, sizes, st.sampled_from(DTYPES))
def test_linear_against_float64(data, rows, n, m, dtype):
    x, w = make(data, (rows, n), dtype), make(data, (m, n), dtype)
    bias = data.draw(st.none() | st.just(torch.randn(m, dtype=dtype)))
    y = lath.ops.linear(x, w, bias)
    assert y.shape == (rows, m)
    # A dense layer is a low-rank one whose first factor is the identity.
    assert_close_lowrank(y, x, torch.eye(n, dtype=dtype), w, bias)


@given(st.data(), sizes, ranks, sizes, st.sampled_from(DTYPES))
def test_frobenius_decay_against_product(data, n, r, m, dtype):
    v, u = make(data, (r, n), dtype), make(data, (m, r), dtype)
    value = lath.ops.frobenius_decay(v, u)
    expected = (u.double() @ v.double()).square().sum()
    size = (u.double().abs() @ v.double().abs()).square().sum()
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    assert value.dtype == sums
    assert abs(value.double() - expected) <= (n + m + r * r) * torch.finfo(sums).eps * size


@pytest.mark.parametrize("shape", [(7,), (1, 7), (2, 3, 7), (2, 0, 7), (2, 1, 3, 2, 7)])
def test_leading_dimensions(shape):
    x, v, u = torch.randn(shape), torch.randn(3, 7), torch.randn(5, 3)
    y = lath.ops.lowrank_linear(x, v, u)
    assert y.shape == (*shape[:-1], 5)
    assert_close_lowrank(y, x, v, u)


@pytest.mark.cpu_only
@pytest.mark.parametrize("rows", [1, 5, 300])
@pytest.mark.parametrize("association", ["factored", "merged"])
def test_result_does_not_depend_on_threads(rows, association):
    x, v, u = torch.randn(rows, 130), torch.randn(33, 130), torch.randn(150, 33)
    threads = torch.get_num_threads()
    try:
        results = []
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(lath.ops.lowrank_linear(x, v, u, association=association))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_zero_ranks_change_nothing():
    x, v, u = torch.randn(20, 30), torch.randn(5, 30), torch.randn(40, 5)
    padded_v, padded_u = torch.cat([v, torch.zeros(9, 30)]), torch.cat([u, torch.randn(40, 9)], 1)
    expected = lath.ops.lowrank_linear(x, v, u)
    torch.testing.assert_close(lath.ops.lowrank_linear(x, padded_v, padded_u), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("rows", [4, 64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_stays_in_its_row(rows, dtype):
    x = torch.randn(rows, 20, dtype=dtype)
    x[2, 3] = float("nan")
    y = lath.ops.lowrank_linear(x, torch.randn(4, 20, dtype=dtype), torch.randn(9, 4, dtype=dtype))
    assert y[2].isnan().all()
    assert y.isnan().sum() == 9


@pytest.mark.cpu_only
def test_meta_tensors():
    args = [torch.randn(n, device="meta") for n in ((2, 3, 7), (4, 7), (5, 4))]
    y = lath.ops.lowrank_linear(*args)
    assert y.is_meta
    assert y.shape == (2, 3, 5)


# ---- the planner --------------------------------------------------------------------------------------------------


@pytest.mark.cpu_only
@given(st.integers(1, 4096), st.integers(1, 4096), st.integers(1, 4096), st.integers(1, 4096))
def test_plan_counts_multiply_adds(rows, n, r, m):
    plan = lath.ops.lowrank_linear_plan(rows, n, r, m)
    assert plan.dense_macs == rows * n * m
    expected = {"factored": rows * r * (n + m), "merged": rows * n * m + r * n * m}
    assert plan.macs == expected[plan.association]
    assert lath.ops.lowrank_linear_plan(rows, n, r, m, "factored").association == "factored"
    assert lath.ops.lowrank_linear_plan(rows, n, r, m, "merged").kernel == "merged"


@pytest.mark.cpu_only
def test_plan_takes_the_cheaper_association():
    assert lath.ops.lowrank_linear_plan(256, 1024, 128, 1024).association == "factored"
    assert lath.ops.lowrank_linear_plan(65536, 1024, 1024, 1024).association == "merged"
    assert lath.ops.lowrank_linear_plan(1, 1024, 1024, 1024).association == "factored"


@pytest.mark.cpu_only
def test_plan_of_impossible_sizes():
    with pytest.raises(RuntimeError, match="lowrank_linear_plan"):
        lath.ops.lowrank_linear_plan(2**62, 2**62, 1, 1)
    with pytest.raises(RuntimeError, match=r"rank: got 0, expected at least 1"):
        lath.ops.lowrank_linear_plan(1, 1, 0, 1)


# ---- autocast -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(
    ("x_dtype", "weight_dtype"),
    [
        (torch.float32, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float32),
        (torch.float64, torch.float64),  # autocast leaves float64 alone
    ],
)
def test_autocast_acts_as_for_linear(x_dtype, weight_dtype, grad):
    x = torch.randn(6, 9, dtype=x_dtype)
    v, u, bias, inner_bias = (torch.randn(n, dtype=weight_dtype) for n in ((4, 9), (7, 4), (7,), (4,)))
    for t in (v, u, bias, inner_bias):
        t.requires_grad_(grad)
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        y = lath.ops.lowrank_linear(x, v, u, bias, inner_bias)
        assert y.dtype == torch.nn.functional.linear(x, v).dtype
        assert lath.ops.linear(x, v, inner_bias).dtype == y.dtype
    expected = lowrank(x, v, u, bias, inner_bias)
    torch.testing.assert_close(y.double(), expected, rtol=0.05, atol=0.3)
    if grad:
        y.sum().backward()
        assert all(t.grad.dtype == weight_dtype for t in (v, u, bias, inner_bias))


@pytest.mark.cpu_only
def test_autocast_to_float16_is_refused():
    with torch.autocast("cpu", dtype=torch.float16):
        for call in (lambda: lath.ops.lowrank_linear(*factors()), lambda: lath.ops.linear(*factors()[:2])):
            with pytest.raises(RuntimeError, match=r"autocast to torch\.float16 is not supported on the CPU"):
                call()


def test_autocast_switched_off():
    with torch.autocast(torch.get_default_device().type, enabled=False):
        assert lath.ops.lowrank_linear(*factors()).dtype == torch.float32


# ---- bad input ----------------------------------------------------------------------------------------------------


def factors():
    return torch.randn(6, 7), torch.randn(4, 7), torch.randn(5, 4)


BAD = {
    "x of no dimensions": (lambda x, v, u: (torch.tensor(1.0), v, u), "x: got shape"),
    "x too narrow": (lambda x, v, u: (x[:, 1:], v, u), "(weight_v|x): got shape"),
    "factors do not meet": (lambda x, v, u: (x, v, u[:, 1:]), "weight_u: got shape"),
    "weight_v a vector": (lambda x, v, u: (x, v[0], u), "weight_v: got shape"),
    "rank zero": (lambda x, v, u: (x, v[:0], u[:, :0]), "weight_v: got rank 0"),
    "bias too long": (lambda x, v, u: (x, v, u, torch.randn(6)), "bias: got shape"),
    "inner bias too long": (lambda x, v, u: (x, v, u, None, torch.randn(5)), "inner_bias: got shape"),
    "integers": (lambda x, v, u: (x.long(), v, u), "x: got dtype"),
    "half": (lambda x, v, u: (x.half(), v.half(), u.half()), "x: got dtype"),
    "mixed types": (lambda x, v, u: (x, v.double(), u), "weight_v: got dtype"),
    "sparse": (lambda x, v, u: (x, v.to_sparse(), u), "weight_v: got a sparse"),
}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("case", BAD)
def test_bad_tensors(case, grad):
    change, message = BAD[case]
    x, v, u = factors()
    if case == "half" and x.is_cuda:
        pytest.skip("CUDA has kernels for it")
    with pytest.raises(RuntimeError, match=rf"lath::lowrank_linear\w*: {message}.*expected"):
        lath.ops.lowrank_linear(*change(x, v, u.requires_grad_(grad)))


@pytest.mark.cpu_only
@pytest.mark.parametrize("case", [case for case in BAD if case != "sparse"])
def test_shape_functions_refuse_the_same(case):
    change, message = BAD[case]
    args = [None if t is None else t.to("meta") for t in change(*factors())]
    with pytest.raises(RuntimeError, match=rf"lath::lowrank_linear: {message}.*expected"):
        lath.ops.lowrank_linear(*args)


@pytest.mark.cpu_only
def test_bad_python_arguments():
    with pytest.raises(ValueError, match="association is 'sideways'"):
        lath.ops.lowrank_linear(*factors(), association="sideways")
    with pytest.raises(ValueError, match="association is 'sideways'"):
        lath.ops.lowrank_linear_plan(1, 1, 1, 1, "sideways")
    for call in (lath.ops.lowrank_linear, lath.ops.linear):
        with pytest.raises(TypeError, match=r"x is list, expected torch\.Tensor"):
            call([1.0], *factors()[1:])


# ---- without the package ------------------------------------------------------------------------------------------


@pytest.mark.cpu_only
def test_library_alone_is_enough_for_inference():
    script = f"""
import sys, torch
torch.ops.load_library({str(lath.LIBRARY)!r})
torch.ops.load_library({str(lath.LIBRARY)!r})
x, v, u, none = torch.randn(3, 4), torch.randn(2, 4), torch.randn(5, 2), torch.empty(0)
torch.testing.assert_close(torch.ops.lath.lowrank_linear(x, v, u, none, none), x @ v.T @ u.T)
assert "lath" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)
