# SPDX-License-Identifier: Apache-2.0
"""What users of operator plugins complain about, as tests on the raw operators torch.ops.lath.*.

Memory, layouts, sizes at both ends, cost, threads. Every operator of bindings/torch/operators.h takes part: CASES has
an entry for each, and a test says so. docs/reliability.md maps the complaints to the tests; test_bad_input.py has those
about input that must be refused.
"""

from __future__ import annotations

import gc
import math
import mmap
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from operator_cases import (
    CASES,
    CUDA_OPERATORS,
    GEOMETRY,
    IN,
    NONE,
    OUT,
    RANK,
    ROWS,
    TENSOR_CASES,
    argument_name,
    assert_same,
    backward_arguments,
    call,
    conv_backward_arguments,
    conv_operands,
    every_device,
    every_dtype,
    every_operator,
    every_operator_and_dtype,
    factors,
    random,
    sum_dtype,
)
from torch import Tensor

OPERATORS_H = Path(__file__).resolve().parents[2] / "bindings" / "torch" / "operators.h"
MAP_NORESERVE = 0x4000  # of Linux; Python names it from 3.13 on


def test_every_operator_has_a_case():
    listed = set(re.findall(r"^\s*X\((\w+),", OPERATORS_H.read_text(), flags=re.MULTILINE))
    registered = {n.removeprefix("lath::") for n in torch._C._dispatch_get_all_op_names() if n.startswith("lath::")}
    assert set(CASES) | CUDA_OPERATORS == listed == registered | CUDA_OPERATORS


def test_documented_tests_exist():
    here = Path(__file__).parent
    named = re.findall(r"`(test_\w+\.py)::(\w+)`", (here.parents[1] / "docs" / "reliability.md").read_text())
    assert len(named) > 50
    assert [f"{file}::{name}" for file, name in named if f"def {name}(" not in (here / file).read_text()] == []


# ---- memory --------------------------------------------------------------------------------------------------------


def resident_bytes() -> int:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def growth(action: Callable[[], None], times: int) -> int:
    """Bytes that the process has grown by, after a warm-up that fills the allocators' caches."""
    for _ in range(times // 10):
        action()
    before = resident_bytes()
    for _ in range(times):
        action()
    return resident_bytes() - before


def flags_of_mapping(address: int) -> list[str]:
    """What the system notes about the mapping that holds an address."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        bounds = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
        if bounds:
            inside = int(bounds[1], 16) <= address < int(bounds[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return line.split()[1:]
    return []


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").is_dir(), reason="a system without huge pages")
def test_large_output_lies_in_huge_pages():
    """Torch gets such a block from the system at each call: with small pages its page faults double the time."""
    large = torch.ops.lath.lowrank_linear(random(12_000, IN), random(RANK, IN), random(1024, RANK), NONE, NONE, 0)
    assert "hg" in flags_of_mapping(large.data_ptr() + large.nbytes // 2)
    same_size = torch.empty(large.shape)
    assert "hg" not in flags_of_mapping(same_size.data_ptr() + same_size.nbytes // 2)


SLACK = 2 << 20  # allocators breathe by half of it; one lost 32-byte handle per call makes 3 MB


def test_memory_stays_flat_over_100000_calls():
    calls = [(getattr(torch.ops.lath, name), arguments(torch.float32)) for name, arguments in CASES.items()]
    # Strided arguments too: their contiguous copies and a heap workspace must go as well.
    x, v, u = random(300, IN), random(RANK, IN), random(OUT, RANK)
    calls.append((torch.ops.lath.lowrank_linear, [x.mT.contiguous().mT, v.mT.contiguous().mT, u, NONE, NONE, 0]))
    calls.append((torch.ops.lath.lowrank_linear, [x.expand(4, 300, IN), v, u, NONE, NONE, 2]))
    images, v, *rest = (channels_last(t) if t.dim() == 4 else t for t in conv_operands(torch.float32))
    calls.append((torch.ops.lath.lowrank_conv2d_forward, [images, v, *rest, *GEOMETRY, False]))
    calls.append((torch.ops.lath.lowrank_conv2d, [random(2, 4, 40, 40), v, *rest, *GEOMETRY]))

    def once():
        for operator, arguments in calls:
            operator(*arguments)

    assert growth(once, 100_000 // len(calls)) < SLACK


def test_memory_stays_flat_over_10000_raised_errors():
    """The inputs are fresh and of 4 KiB each: a handle that an error path forgets would keep 40 MB alive."""
    base = random(32, 32)
    bad_bias = random(7)
    # Passes every check of the binding, but not of the library; by then dv and d_inner_bias (4 KiB each) are allocated.
    rows = 2**58
    late = [
        torch.zeros(rows, 0),
        torch.zeros(1).expand(rows, 1),
        torch.zeros(1024, 1),
        torch.zeros(0, 1024),
        NONE,
        NONE,
        2 | 16,
    ]

    images, *weights, bias, inner_bias = conv_operands(torch.float32)

    def once():
        x, v, u = base.clone(), base.clone(), base.clone()
        for arguments in ([x, v, u, bad_bias, NONE], [x.mT, v.mT, u.double(), NONE, NONE], [x.mT, v, u, NONE, NONE, 9]):
            with pytest.raises(RuntimeError, match="lath::lowrank_linear"):
                torch.ops.lath.lowrank_linear(*arguments)
        with pytest.raises(RuntimeError, match="lath::lowrank_linear_backward"):
            torch.ops.lath.lowrank_linear_backward(x.mT, x, v, u, NONE, NONE, 99)
        with pytest.raises(RuntimeError, match="lath::frobenius_decay"):
            torch.ops.lath.frobenius_decay(x, u[:, :3])
        with pytest.raises(RuntimeError, match="lath::lowrank_linear_backward: size overflow"):
            torch.ops.lath.lowrank_linear_backward(*late)
        larger, w = images.new_zeros(2, 4, 16, 16), [channels_last(t) for t in weights]  # weights that are copied
        with pytest.raises(RuntimeError, match="lath::lowrank_conv2d_forward: inner_bias"):
            torch.ops.lath.lowrank_conv2d_forward(larger, *w, bias, bad_bias, *GEOMETRY)
        dy = images.new_zeros(2, 6, 9, 15)
        with pytest.raises(RuntimeError, match="lath::lowrank_conv2d_backward: mask"):
            torch.ops.lath.lowrank_conv2d_backward(dy, larger, *w, inner_bias, NONE, *GEOMETRY, 99)

    assert growth(once, 2_000) < SLACK


# ---- layouts -------------------------------------------------------------------------------------------------------


def transposed(t: Tensor) -> Tensor:
    return t.movedim(-1, 0).contiguous().movedim(0, -1)


def sliced(t: Tensor) -> Tensor:
    """Every second element of a larger tensor, from an odd offset."""
    larger = t.new_full([2 * n + 1 for n in t.shape], math.nan)
    view = larger[tuple(slice(1, None, 2) for _ in t.shape)]
    return view.copy_(t)


def row_gaps(t: Tensor) -> Tensor:
    """Adjacent elements, rows further apart than their length; not aligned to anything but the element."""
    larger = t.new_full((*t.shape[:-1], t.shape[-1] + 3), math.nan)
    return larger[..., 1:-2].copy_(t)


def permuted(t: Tensor) -> Tensor:
    """Leading dimensions that no single row stride describes."""
    return t if t.dim() < 3 else t.transpose(0, 1).contiguous().transpose(0, 1)


def channels_last(t: Tensor) -> Tensor:
    return t.to(memory_format=torch.channels_last) if t.dim() == 4 else t


LAYOUTS = {
    "transposed": transposed,
    "sliced": sliced,
    "row_gaps": row_gaps,
    "permuted": permuted,
    "channels_last": channels_last,
}


@every_device
@pytest.mark.parametrize("layout", LAYOUTS)
@every_operator_and_dtype
def test_layout_changes_no_bit(name, layout, dtype):
    arguments = CASES[name](dtype)
    plain = call(name, arguments)
    for index, argument in enumerate(arguments):
        if not isinstance(argument, Tensor) or argument.dim() == 0 or not argument.is_floating_point():
            continue
        changed = [*arguments]
        changed[index] = LAYOUTS[layout](argument)
        for expected, result in zip(plain, call(name, changed), strict=True):
            assert_same(expected, result, argument_name(name, index))


@every_device
@every_operator
def test_results_are_fresh_and_contiguous(name):
    arguments = CASES[name](torch.float32)
    copies = [a.clone() if isinstance(a, Tensor) else a for a in arguments]
    pointers = {a.data_ptr() for a in arguments if isinstance(a, Tensor)}
    for result in call(name, arguments):
        assert result.is_contiguous()
        assert result.numel() == 0 or result.data_ptr() not in pointers
    for argument, copy in zip(arguments, copies, strict=True):
        assert not isinstance(argument, Tensor) or torch.equal(argument, copy)


@every_device
@every_dtype
def test_expanded_rows_match_copied_rows(dtype):
    _, v, u = factors(dtype)
    x = random(1, IN, dtype=dtype).expand(5, IN)
    expected = torch.ops.lath.lowrank_linear(x.contiguous(), v, u, NONE, NONE)
    assert_same(expected, torch.ops.lath.lowrank_linear(x, v, u, NONE, NONE))
    v = v[:1].expand(RANK, IN)
    expected = torch.ops.lath.lowrank_linear(x.contiguous(), v.contiguous(), u, NONE, NONE)
    assert_same(expected, torch.ops.lath.lowrank_linear(x, v, u, NONE, NONE))


@every_device
@every_dtype
@pytest.mark.parametrize(
    "make", [lambda t: t[0, 0, 0].expand_as(t), lambda t: t[:1, :, :1].expand_as(t)], ids=["one", "some"]
)
def test_expanded_gradient_matches_copied_gradient(make, dtype):
    """The gradient of a sum is one number, expanded to the shape of the output."""
    dy, *others = backward_arguments(dtype)
    expanded = make(dy)
    for expected, result in zip(
        call("lowrank_linear_backward", [expanded.contiguous(), *others]),
        call("lowrank_linear_backward", [expanded, *others]),
        strict=True,
    ):
        assert_same(expected, result)


@every_device
@every_dtype
@pytest.mark.parametrize(
    "make", [lambda t: t[0, 0, 0, 0].expand_as(t), lambda t: t[:, :, :1, :1].expand_as(t)], ids=["sum", "mean"]
)
def test_expanded_gradient_of_images_matches_copied_gradient(make, dtype):
    """The gradients of a sum, and of global average pooling."""
    dy, *others = conv_backward_arguments(dtype)
    expanded = make(dy)
    for expected, result in zip(
        call("lowrank_conv2d_backward", [expanded.contiguous(), *others]),
        call("lowrank_conv2d_backward", [expanded, *others]),
        strict=True,
    ):
        assert_same(expected, result)


@every_device
def test_overlapping_rows_match_copied_rows():
    x = random(40).unfold(0, IN, 1)  # row i starts at element i
    _, v, u = factors(torch.float32)
    expected = torch.ops.lath.lowrank_linear(x.contiguous(), v, u, NONE, NONE)
    assert_same(expected, torch.ops.lath.lowrank_linear(x, v, u, NONE, NONE))


@every_device
def test_lazily_negated_input_matches_plain_input():
    x, v, u = factors(torch.float32)
    expected = torch.ops.lath.lowrank_linear(-x, v, u, NONE, NONE)
    assert_same(expected, torch.ops.lath.lowrank_linear(torch._neg_view(x), v, u, NONE, NONE))


@every_device
def test_copying_an_input_records_no_graph():
    x, v, u = factors(torch.float32)
    x = transposed(x).requires_grad_()
    before = torch.is_grad_enabled()
    torch.ops.lath.lowrank_linear(x, v, u, NONE, NONE)
    assert torch.is_grad_enabled() == before
    with torch.inference_mode():
        assert torch.ops.lath.lowrank_linear(x, v, u, NONE, NONE).is_inference()


# ---- sizes at both ends --------------------------------------------------------------------------------------------


@every_device
@every_dtype
@pytest.mark.parametrize("leading", [(), (0,), (3,), (2, 0, 3)], ids=str)
@pytest.mark.parametrize("in_features", [0, 5])
@pytest.mark.parametrize("out_features", [0, 4])
def test_zero_size_extents(leading, in_features, out_features, dtype):
    rank = 2
    x = random(*leading, in_features, dtype=dtype).requires_grad_()
    v, u = (
        random(rank, in_features, dtype=dtype).requires_grad_(),
        random(out_features, rank, dtype=dtype).requires_grad_(),
    )
    bias, inner_bias = random(out_features, dtype=dtype).requires_grad_(), random(rank, dtype=dtype).requires_grad_()
    expected = (x @ v.mT + inner_bias) @ u.mT + bias
    dy = random(*expected.shape, dtype=dtype)
    expected_grads = torch.autograd.grad(expected, (x, v, u, bias, inner_bias), dy)
    with torch.no_grad():
        y, p = torch.ops.lath.lowrank_linear_forward(x, v, u, bias, inner_bias)
        inference = torch.ops.lath.lowrank_linear(x, v, u, bias, inner_bias)
        grads = torch.ops.lath.lowrank_linear_backward(dy, x, v, u, inner_bias, p)
        dense = torch.ops.lath.linear(x, u @ v, bias)
        value, gram_v, gram_u = torch.ops.lath.frobenius_decay(v, u)
    tolerance = {"rtol": 3e-2, "atol": 3e-2} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(y, expected, **tolerance)
    torch.testing.assert_close(inference, expected, **tolerance)
    torch.testing.assert_close(grads, expected_grads, **tolerance)
    torch.testing.assert_close(dense, x @ (u @ v).mT + bias, **tolerance)
    sums = sum_dtype(dtype)
    torch.testing.assert_close(gram_v, v.to(sums) @ v.to(sums).mT)
    torch.testing.assert_close(value, (gram_v * gram_u).sum())


@pytest.mark.parametrize("backward", [False, True])
def test_plan_of_overflowing_extents_is_an_error(backward):
    with pytest.raises(RuntimeError, match=r"lath::lowrank_linear_plan: .*overflow"):
        torch.ops.lath.lowrank_linear_plan(2**40, 2**40, 2**10, 2**10, 0, backward)


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (
            torch.zeros(1, 1).expand(2**31, 2**31),
            "x: got shape (2147483648, 2147483648), expected fewer than 2^60 elements",
        ),
        (
            torch.zeros(1, 1, 0).expand(2**61, 4, 0),
            "x: got shape (2305843009213693952, 4, 0), expected fewer than 2^63 rows",
        ),
        (torch.zeros(IN).expand(2**56, IN), "output: a contiguous tensor of its shape exceeds 2^63 bytes"),
    ],
    ids=["elements", "rows", "output"],
)
def test_overflowing_sizes_are_errors(x, expected):
    """An expanded tensor has a logical size that no memory holds."""
    v, u = torch.zeros(1, 1).expand(2, x.shape[-1]), torch.zeros(1000, 2)
    with pytest.raises(RuntimeError, match=re.escape(f"lath::lowrank_linear: {expected}")):
        torch.ops.lath.lowrank_linear(x, v if x.shape[-1] < 100 else v[:, :1], u, NONE, NONE)
    with pytest.raises(RuntimeError, match=re.escape(f"lath::linear: {expected}")):
        torch.ops.lath.linear(x, torch.zeros(1000, min(x.shape[-1], 100)), NONE)


@every_device
def test_running_out_of_memory_is_an_error():
    x = torch.zeros(IN).expand(2**45, IN)
    with pytest.raises(RuntimeError, match="lath::linear: output: out of memory for 351843720888320 elements"):
        torch.ops.lath.linear(x, torch.zeros(OUT, IN), NONE)
    # And the process goes on.
    assert torch.ops.lath.linear(x[:2], torch.zeros(OUT, IN), NONE).shape == (2, OUT)


def far_rows(t: Tensor) -> Tensor:
    """The tensor with its rows more than 2^31 elements apart, in memory of which only the used pages exist."""
    stride = 2**31 + 3
    size = ((t.shape[0] - 1) * stride + t[0].numel()) * t.element_size()
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    return torch.frombuffer(memory, dtype=t.dtype).as_strided(t.shape, (stride, *t.stride()[1:])).copy_(t)


@every_operator_and_dtype
def test_offsets_beyond_32_bits(name, dtype):
    arguments = [a.flatten(0, -2) if isinstance(a, Tensor) and a.dim() == 3 else a for a in CASES[name](dtype)]
    far = [far_rows(a) if isinstance(a, Tensor) and a.dim() >= 2 else a for a in arguments]
    for expected, result in zip(call(name, arguments), call(name, far), strict=True):
        assert torch.equal(expected, result)


@pytest.mark.slow
def test_output_beyond_32_bits():
    """2^31 elements and a few more are written; the last ones are looked at."""
    rows, width = 2**21 + 9, 1024
    available = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    if not available or int(available[1]) < 8 << 20:
        pytest.skip("needs 8 GiB of free memory")
    x = torch.ones(rows, 1, dtype=torch.bfloat16)
    x[-3:] = torch.tensor([[2.0], [3.0], [4.0]])
    weight = (torch.arange(width) % 7).to(torch.bfloat16).reshape(width, 1)
    y = torch.ops.lath.lowrank_linear(x, torch.ones(1, 1, dtype=torch.bfloat16), weight, NONE, NONE, 1)
    assert y.numel() > 2**31
    assert torch.equal(y[-4:], x[-4:] * weight.mT)


def test_more_dimensions_than_supported_is_an_error():
    x = torch.zeros(*[1] * 64, IN)
    with pytest.raises(RuntimeError, match="got 65 dimensions, expected at most 64"):
        torch.ops.lath.linear(x, torch.zeros(OUT, IN), NONE)


# ---- results that may be absent --------------------------------------------------


def test_meta_tensors_give_the_shapes_of_real_tensors():
    for name in TENSOR_CASES:
        arguments = CASES[name](torch.float32)
        on_meta = [a.to("meta") if isinstance(a, Tensor) else a for a in arguments]
        for expected, result in zip(call(name, arguments), call(name, on_meta), strict=True):
            assert result.is_meta
            assert (result.shape, result.stride(), result.dtype) == (
                expected.shape,
                expected.stride(),
                expected.dtype,
            ), name


@every_device
@pytest.mark.parametrize("mask", range(32))
def test_gradients_that_were_not_asked_for_are_empty(mask):
    arguments = backward_arguments(torch.float32)
    everything = call("lowrank_linear_backward", arguments)
    arguments[6] = mask
    for bit, (result, full) in enumerate(zip(call("lowrank_linear_backward", arguments), everything, strict=True)):
        if mask >> bit & 1:
            torch.testing.assert_close(result, full)
        else:
            assert result.shape == (0,)


@every_device
@pytest.mark.parametrize("mask", [*range(8), 8, 16, 24, 31])
def test_gradients_of_a_convolution_that_were_not_asked_for_are_empty(mask):
    *arguments, _ = conv_backward_arguments(torch.float32)
    everything = call("lowrank_conv2d_backward", [*arguments, 31])
    for bit, (result, full) in enumerate(
        zip(call("lowrank_conv2d_backward", [*arguments, mask]), everything, strict=True)
    ):
        if mask >> bit & 1:
            torch.testing.assert_close(result, full)
        else:
            assert result.shape == (0,)


@every_device
@pytest.mark.parametrize(
    ("save", "association", "kept"),
    [(True, 0, True), (True, 1, True), (True, 2, False), (False, 0, False), (False, 1, False)],
)
def test_intermediate_is_kept_by_the_arguments_alone(save, association, kept):
    x, v, u = factors(torch.float32)
    y, p = torch.ops.lath.lowrank_linear_forward(x, v, u, NONE, random(RANK), save, association)
    assert p.shape == ((ROWS, RANK) if kept else (0,))
    if kept:
        torch.testing.assert_close(p, x.reshape(ROWS, IN) @ v.mT + random(RANK))
    torch.testing.assert_close(y, (x @ v.mT + random(RANK)) @ u.mT)


# ---- cost of a call -------------------------------------------------------------------------------------------------


def dispatched(action: Callable[[], object]) -> list[str]:
    """Names of the operators that torch dispatches, in order."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        action()
    return [event.name for event in profile.events() if "::" in event.name]


@every_operator
def test_contiguous_call_dispatches_nothing_else(name):
    arguments = CASES[name](torch.float32)
    assert dispatched(lambda: call(name, arguments)) == [f"lath::{name}"]


def test_awkward_layout_costs_one_copy():
    x, v, u = factors(torch.float32)
    names = dispatched(lambda: torch.ops.lath.lowrank_linear(transposed(x), row_gaps(v), u, NONE, NONE))
    names = names[names.index("lath::lowrank_linear") :]
    assert names == ["lath::lowrank_linear", "aten::copy_"]


# ---- numbers and threads -------------------------------------------------------------------------------------------


@every_device
@every_dtype
def test_not_a_number_stays_in_its_row(dtype):
    x, v, u = random(9, IN, dtype=dtype), random(RANK, IN, dtype=dtype), random(OUT, RANK, dtype=dtype)
    x[4, 3] = math.nan
    y = torch.ops.lath.lowrank_linear(x, v, u, NONE, NONE)
    assert y[4].isnan().all()
    assert not y[[0, 1, 2, 3, 5, 6, 7, 8]].isnan().any()


@pytest.fixture
def threads():
    """Sets torch's number of threads; the old one comes back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@every_dtype
@pytest.mark.parametrize("association", [1, 2], ids=["factored", "merged"])
@pytest.mark.parametrize("rows", [1, 5, 64, 333])
def test_thread_count_changes_no_bit(rows, association, dtype, threads):
    in_features, rank, out_features = 129, 33, 190
    x, dy = random(rows, in_features, dtype=dtype), random(rows, out_features, dtype=dtype)
    v, u = random(rank, in_features, dtype=dtype), random(out_features, rank, dtype=dtype)
    bias, inner_bias = random(out_features, dtype=dtype), random(rank, dtype=dtype)

    def everything():
        y, p = torch.ops.lath.lowrank_linear_forward(x, v, u, bias, inner_bias, True, association)
        grads = torch.ops.lath.lowrank_linear_backward(dy, x, v, u, inner_bias, p, 31, association)
        decay = torch.ops.lath.frobenius_decay(v, u)
        decay_grads = torch.ops.lath.frobenius_decay_backward(decay[0], v, u, *decay[1:])
        return [y, p, *grads, torch.ops.lath.linear(x, v, inner_bias), *decay, *decay_grads]

    threads(1)
    expected = everything()
    for count in (2, 3, 4):
        threads(count)
        for one, many in zip(expected, everything(), strict=True):
            assert torch.equal(one, many), count


@every_dtype
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("form", ["separable", "pointwise", "1x1"])
@pytest.mark.parametrize("batch", [1, 5])
def test_thread_count_changes_no_bit_of_a_convolution(batch, form, memory_format, dtype, threads):
    in_channels, rank, out_channels = 37, 19, 45
    kernel, above, below = {"separable": (3, 1, 3), "pointwise": (3, 3, 1), "1x1": (1, 1, 1)}[form]
    x = random(batch, in_channels, 14, 17, dtype=dtype).to(memory_format=memory_format)
    v, u = random(rank, in_channels, above, kernel, dtype=dtype), random(out_channels, rank, below, 1, dtype=dtype)
    bias, inner_bias = random(out_channels, dtype=dtype), random(rank, dtype=dtype)
    pad = kernel // 2
    geometry = [1, 1, pad, pad, pad, pad, 1, 1, 1, form != "pointwise"]
    dy = random(batch, out_channels, 14, 17, dtype=dtype).to(memory_format=memory_format)

    def everything():
        y, p = torch.ops.lath.lowrank_conv2d_forward(x, v, u, bias, inner_bias, *geometry)
        kept, computed = (
            torch.ops.lath.lowrank_conv2d_backward(dy, x, v, u, inner_bias, t, *geometry) for t in (p, p[:0])
        )
        return [y, p, *kept, *computed]

    threads(1)
    expected = everything()
    for count in (2, 3, 4):
        threads(count)
        for one, many in zip(expected, everything(), strict=True):
            assert torch.equal(one, many), count


@every_device
def test_repeated_calls_agree_to_the_bit():
    for name in TENSOR_CASES:
        arguments = CASES[name](torch.float32)
        for first, second in zip(call(name, arguments), call(name, arguments), strict=True):
            assert torch.equal(first, second), name


def test_denormal_numbers_survive():
    tiny = torch.full((3, 2), 1e-40)
    one = torch.ones(1, 2)
    assert torch.equal(torch.ops.lath.linear(tiny, one, NONE), tiny[:, :1] * 2)


@pytest.mark.parametrize("flush", [True, False])
def test_denormal_mode_of_the_user_is_kept(flush):
    try:
        if not torch.set_flush_denormal(flush):
            pytest.skip("this processor cannot flush denormal numbers")
        for name, arguments in CASES.items():
            call(name, arguments(torch.float32))
        assert (5e-324 * 1.0 == 0) == flush
    finally:
        torch.set_flush_denormal(False)
