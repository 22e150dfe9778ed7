# SPDX-License-Identifier: Apache-2.0
"""What only CUDA tensors bring: streams, graphs, several devices, float16, TF32, and tracing without a GPU.

The operators themselves are tested by the files that run on every device. Tests marked ``cuda`` need a GPU; the others
run wherever torch is a CUDA build.
"""

from __future__ import annotations

import lath
import operator_cases
import pytest
import torch
from conftest import need_cuda
from lath import _cuda
from operator_cases import CASES, NOT_NARROW, TENSOR_CASES, assert_same, every_operator
from oracles import assert_close_lowrank
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

pytestmark = pytest.mark.skipif(not _cuda.status.loaded, reason=f"CUDA is off: {_cuda.status.reason}")
NONE = torch.empty(0)
ops = torch.ops.lath
SHAPES = ((64, 96), (16, 96), (80, 16), (80,), (16,))


every_operator_in_two_types = pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (n, d)
        for n in TENSOR_CASES
        for d in (torch.float32, torch.bfloat16)
        if n not in NOT_NARROW or d is torch.float32
    ],
)


def gpu(test):
    return pytest.mark.cuda(pytest.mark.usefixtures("cuda")(test))


@pytest.fixture
def cuda():
    """As the fixture ``device`` for tests that make sense there only."""
    need_cuda()
    torch.set_default_device("cuda")
    yield
    torch.set_default_device(None)


def operands(dtype=torch.float32, shapes=SHAPES, device=None):
    return [(torch.randn(s, dtype=torch.float32, device=device) / s[-1] ** 0.5).to(dtype) for s in shapes]


# ---- without a GPU -------------------------------------------------------------------------------------------------


@every_operator
def test_every_operator_has_a_kernel_for_cuda(name):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"lath::{name}", "CUDA")


def fake(arguments: list) -> list:
    """The arguments as CUDA tensors without data; inside a FakeTensorMode."""
    return [torch.empty_strided(a.shape, a.stride(), dtype=a.dtype, device="cuda") if isinstance(a, Tensor) else a
            for a in arguments]  # fmt: skip


@every_operator
def test_shape_functions_on_cuda(name):
    arguments = CASES[name](torch.float32)
    with FakeTensorMode():
        results = operator_cases.call(name, fake(arguments))
    for expected, result in zip(operator_cases.call(name, arguments), results, strict=True):
        assert result.device == torch.device("cuda:0")
        assert (result.shape, result.stride(), result.dtype) == (expected.shape, expected.stride(), expected.dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_intermediate_has_the_type_of_x(dtype):
    with FakeTensorMode(allow_non_fake_inputs=True):
        x, v, u, bias, inner_bias = operands(dtype, device="cuda")
        y, p = ops.lowrank_linear_forward(x, v, u, bias, inner_bias)
        assert (y.dtype, p.dtype) == (dtype, dtype)
        images, v, u = (torch.empty(s, dtype=dtype, device="cuda") for s in ((2, 4, 8, 8), (3, 4, 1, 3), (5, 3, 3, 1)))
        images = images.to(memory_format=torch.channels_last)
        y, p = ops.lowrank_conv2d_forward(images, v, u, NONE, NONE, 1, 1, 1, 1, 1, 1, 1, 1, 1, True)
        assert (y.dtype, p.dtype) == (dtype, dtype)
        assert p.is_contiguous(memory_format=torch.channels_last)


def test_tensors_on_different_devices_are_named_when_traced():
    with FakeTensorMode(allow_non_fake_inputs=True):
        x, v, u, *_ = operands(device="cuda")
        with pytest.raises(
            RuntimeError, match=r"lowrank_linear: weight_v: got a tensor on cpu, expected cuda:0 like x"
        ):
            lath.ops.lowrank_linear(x, torch.empty(16, 96, device="cpu"), u)
        with pytest.raises(RuntimeError, match=r"bias: got a tensor on cuda:1, expected cuda:0 like x"):
            ops.lowrank_linear(x, v, u, torch.empty(80, device="cuda:1"), NONE)


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_other_types_are_refused_when_traced(kind):
    expected = "torch.float32, torch.float64, torch.bfloat16 or torch.float16"
    if kind == "cpu":
        expected = "torch.float32, torch.float64 or torch.bfloat16"
    with FakeTensorMode():
        x, v, u = (torch.empty(s, dtype=torch.int8, device=kind) for s in SHAPES[:3])
        with pytest.raises(RuntimeError, match=f"x: got dtype torch.int8, expected {expected}"):
            lath.ops.lowrank_linear(x, v, u)


class Network(nn.Module):
    def __init__(self, **kind):
        super().__init__()
        self.pixels = lath.nn.LowRankConv2d(4, 8, 1, 2, mode="pointwise", **kind)
        self.conv = lath.nn.LowRankConv2d(8, 12, 3, 3, padding=1, **kind)
        self.linear = lath.nn.LowRankLinear(12 * 36, 10, 4, inner_bias=True, **kind)

    def forward(self, x):
        return self.linear(self.conv(self.pixels(x)).flatten(1))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_export_of_a_model_on_cuda(memory_format):
    """One graph, without a GPU: convolutions are torch's, 1x1 ones in channels-last and linear layers lath's."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = Network(device="cuda", dtype=torch.bfloat16)
        x = torch.empty(2, 4, 6, 6, device="cuda", dtype=torch.bfloat16).to(memory_format=memory_format)
        with torch.no_grad():
            program = torch.export.export(model, (x,))
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    linear = 2 if memory_format == torch.channels_last else 1
    assert sum("lath.lowrank_linear" in name for name in names) == linear
    assert sum("aten.conv2d" in name for name in names) == 2 + 2 * (linear == 1)
    (y,) = (node for node in program.graph.nodes if node.op == "output")
    assert y.args[0][0].meta["val"].device == torch.device("cuda:0")


@pytest.mark.parametrize(
    ("dtype", "kernel"), [(torch.float32, "lath.lowrank_lstm_forward"), (torch.bfloat16, "aten.lstm")]
)
@pytest.mark.parametrize("hidden", [256, 1024])
def test_export_of_an_lstm_on_cuda(dtype, kernel, hidden):
    """One kernel for each layer and direction; torch's for types that lath has none for."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = lath.nn.LowRankLSTM(8, hidden, 51, num_layers=2, bidirectional=True, device="cuda", dtype=dtype)
        x = torch.empty(6, 3, 8, device="cuda", dtype=dtype)
        with torch.no_grad():
            program = torch.export.export(model, (x,))
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert sum(kernel in name for name in names) == 4
    (y,) = (node for node in program.graph.nodes if node.op == "output")
    assert y.args[0][0].meta["val"].device == torch.device("cuda:0")


def test_plan_needs_a_device():
    if torch.cuda.is_available():
        plan = lath.ops.lowrank_linear_plan(4096, 1024, 64, 1024, device="cuda", dtype=torch.bfloat16)
        assert plan.kernel in ("products", "fused", "merged")
        assert lath.ops.lowrank_linear_plan(1, 1024, 64, 1024, device="cuda").macs == 64 * 2048
        return
    with pytest.raises(RuntimeError, match="cuda_lowrank_linear_plan: torch cannot make cuda:0 the current device"):
        lath.ops.lowrank_linear_plan(1, 2, 1, 2, device="cuda")


def test_plan_of_impossible_arguments():
    with pytest.raises(ValueError, match=r"dtype is torch\.int8"):
        lath.ops.lowrank_linear_plan(1, 2, 1, 2, device="cuda", dtype=torch.int8)
    with pytest.raises(RuntimeError, match=r"cuda_lowrank_linear_plan: rank: got 0, expected at least 1"):
        lath.ops.lowrank_linear_plan(1, 2, 0, 2, device="cuda")
    with pytest.raises(RuntimeError, match=r"cuda_lowrank_linear_plan: dtype: got 4, expected 0 to 3"):
        ops.cuda_lowrank_linear_plan(1, 2, 1, 2, 0, False, 4)


def test_oialr_plan_needs_a_device():
    with pytest.raises(RuntimeError, match=r"cuda_oialr_linear_plan: rank: got 0, expected at least 1"):
        ops.cuda_oialr_linear_plan(1, 2, 0, 2)
    with pytest.raises(RuntimeError, match=r"cuda_oialr_linear_plan: route: got 4, expected 0 to 3"):
        ops.cuda_oialr_linear_plan(1, 2, 1, 2, 4)
    with pytest.raises(RuntimeError, match=r"cuda_oialr_linear_plan: dtype: got 4, expected 0 to 3"):
        ops.cuda_oialr_linear_plan(1, 2, 1, 2, 0, False, 4)
    if torch.cuda.is_available():
        extents = 32768, 1024, 64, 1024
        assert ops.cuda_oialr_linear_plan(*extents, 0, True, 2)[2:] == (3 * 32768 * 1024 * 1024, True)
        assert not ops.cuda_oialr_linear_plan(32768, 1024, 1000, 1024, 0, True, 2)[3]
        return
    with pytest.raises(RuntimeError, match="cuda_oialr_linear_plan: torch cannot make cuda:0 the current device"):
        ops.cuda_oialr_linear_plan(1, 2, 1, 2)


def test_oialr_keeps_t_in_the_type_of_x_when_traced():
    """Half the bytes of what the CPU keeps, for matrix units read nothing wider."""
    with FakeTensorMode():
        kind = {"device": "cuda", "dtype": torch.bfloat16}
        x, vh, s, u = (torch.empty(shape, **kind) for shape in ((2, 5, 96), (16, 96), (16, 16), (80, 16)))
        y, t = ops.oialr_linear_forward(x, vh, s, u, torch.empty(80, **kind))
        assert (y.shape, t.shape, t.dtype) == ((2, 5, 80), (10, 16), torch.bfloat16)
        dx, ds, d_bias = ops.oialr_linear_backward(y, torch.empty(0, **kind), vh, s, u, t)
        assert (dx.shape, ds.shape, d_bias.shape) == (x.shape, s.shape, (80,))


# ---- one device ----------------------------------------------------------------------------------------------------


@gpu
@pytest.mark.sanitizer
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [1, 7, 64, 333])
def test_operators_on_the_device(rows, dtype):
    """Forward, backward and decay at sizes of every route, aligned and not."""
    for n, r, m in ((96, 16, 80), (130, 33, 77)):
        x, v, u, bias, inner_bias = operands(dtype, ((rows, n), (r, n), (m, r), (m,), (r,)))
        for association in (1, 2):
            y, p = ops.lowrank_linear_forward(x, v, u, bias, inner_bias, True, association)
            assert_close_lowrank(y, x, v, u, bias, inner_bias)
            dy = torch.randn_like(y)
            grads = ops.lowrank_linear_backward(dy, x, v, u, inner_bias, p, 31, association)
            wide = [t.double().requires_grad_() for t in (x, v, u, bias, inner_bias)]
            product = (wide[0] @ wide[1].mT + wide[4]) @ wide[2].mT + wide[3]
            expected = torch.autograd.grad(product, wide, dy.double())
            rtol = {torch.float64: 1e-10, torch.float32: 1e-4}.get(dtype, 3e-2)
            for grad, e in zip(grads, expected, strict=True):
                error = (grad.double() - e).norm() / e.norm()
                assert error < rtol
        value, gram_v, gram_u = ops.frobenius_decay(v, u)
        torch.testing.assert_close(value.double(), (u.double() @ v.double()).square().sum(), rtol=1e-3, atol=0)
        dv, du = ops.frobenius_decay_backward(torch.full_like(value, 0.5), v, u, gram_v, gram_u)
        assert dv.isfinite().all()
        torch.testing.assert_close(du.double(), (u.double() @ v.double() @ v.double().mT), rtol=3e-2, atol=3e-2)


@gpu
@every_operator_in_two_types
def test_same_result_as_on_the_cpu(name, dtype):
    with torch.device("cpu"):
        arguments = CASES[name](dtype)
        expected = operator_cases.call(name, arguments)
    on_cuda = [a.cuda() if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments]
    if "backward" in name and "decay" not in name:
        on_cuda[5] = on_cuda[5].to(dtype)
    rtol = 1e-4 if dtype == torch.float32 else 3e-2
    for e, result in zip(expected, operator_cases.call(name, on_cuda), strict=True):
        torch.testing.assert_close(result.cpu().double(), e.double(), rtol=rtol, atol=10 * rtol)


@gpu
@pytest.mark.sanitizer
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [1, 7, 64, 333])
def test_oialr_on_the_device(rows, dtype):
    """Every route, t kept and formed again, aligned and not, against torch in double."""
    rtol = {torch.float64: 1e-10, torch.float32: 1e-4}.get(dtype, 3e-2)
    for n, r, m in ((96, 16, 80), (130, 33, 77)):
        x, vh, s, u, bias = operands(dtype, ((rows, n), (r, n), (r, r), (m, r), (m,)))
        wide = [t.double().requires_grad_() for t in (x, s, bias)]
        product = wide[0] @ vh.double().mT @ wide[1].mT @ u.double().mT + wide[2]
        dy = torch.randn(rows, m, dtype=torch.float64).to(dtype)
        expected = torch.autograd.grad(product, wide, dy.double())
        for route in range(4):
            y, t = ops.oialr_linear_forward(x, vh, s, u, bias, True, route)
            assert (y.double() - product).norm() / product.norm() < rtol
            for kept in ((NONE.to(x), x),) if route == 3 else ((t, NONE.to(x)), (NONE.to(x), x)):
                grads = ops.oialr_linear_backward(dy, kept[1], vh, s, u, kept[0], 7, route)
                for grad, e in zip(grads, expected, strict=True):
                    assert (grad.double() - e).norm() / e.norm() < rtol


# steps, batch, in, hidden, rank, input rank: one launch for all steps, one a step, two a step; rows off 16 bytes.
LSTMS = [(9, 5, 8, 256, 51, 0), (6, 3, 8, 64, 60, 4), (7, 33, 48, 264, 51, 17), (4, 1, 9, 515, 130, 0)]


@gpu
@pytest.mark.sanitizer
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("association", ["auto", "factored", "merged"])
@pytest.mark.parametrize("size", LSTMS, ids=str)
def test_lstm_on_the_device(size, association, packed):
    """Values and gradients, gates kept and formed again, against plain loops in double on the CPU."""
    steps, batch, d, h, r, in_rank = size
    sizes = torch.tensor([max(1, batch - t) for t in range(steps)], device="cpu")
    leading = (int(sizes.sum()),) if packed else (steps, batch)
    shapes = [
        (*leading, d),
        (in_rank, d),
        (4 * h, in_rank or d),
        (r, h),
        (4 * h, r),
        (4 * h,),
        (4 * h,),
        (batch, h),
        (batch, h),
    ]
    given = [torch.randn(s, dtype=torch.float64) / s[-1] ** 0.5 if s[0] else None for s in shapes]
    code = lath.ops.ASSOCIATIONS.index(association)
    numbers = sizes if packed else NONE, True, False

    def run(device, dtype, keep):
        tensors = [NONE.to(device, dtype) if t is None else t.to(device, dtype) for t in given]
        x, *weights, h0, c0 = tensors
        y, hn, cn, c, gates = ops.lowrank_lstm_forward(x, h0, c0, *weights, *numbers, keep, code)
        dys = [torch.ones_like(t) for t in (y, hn, cn)]
        grads = ops.lowrank_lstm_backward(*dys, x, h0, c0, y, c, gates, *weights, *numbers, 255, code)
        return [y, hn, cn, *grads]

    expected = run("cpu", torch.float64, 2)
    for dtype, keep in ((torch.float32, 2), (torch.float32, 1), (torch.float64, 2)):
        for e, result in zip(expected, run("cuda", dtype, keep), strict=True):
            if e.numel():
                error = (result.cpu().double() - e).norm() / e.norm()
                assert error < (1e-10 if dtype is torch.float64 else 1e-4)


@gpu
def test_tensors_on_different_devices_are_named():
    x, v, u, bias, _ = operands()
    with pytest.raises(RuntimeError, match=r"weight_v: got a tensor on the CPU, expected cuda:0 like x"):
        ops.lowrank_linear(x, v.cpu(), u, NONE, NONE)
    with pytest.raises(RuntimeError, match=r"x: got a tensor on the CPU, expected a CUDA device like another argument"):
        ops.lowrank_linear(x.cpu(), v, u, NONE, NONE)
    with pytest.raises(RuntimeError, match=r"bias: got a tensor on the CPU, expected cuda:0 like x"):
        ops.lowrank_linear(x, v, u, bias.cpu(), NONE)


@gpu
def test_tf32_follows_the_switch_of_torch():
    before = torch.get_float32_matmul_precision()
    x, v, u = operands(shapes=((1024, 1024), (128, 1024), (1024, 128)))
    expected = x.double() @ v.double().mT @ u.double().mT
    errors = {}
    try:
        for precision in ("highest", "high"):
            torch.set_float32_matmul_precision(precision)
            errors[precision] = float((lath.ops.lowrank_linear(x, v, u).double() - expected).norm() / expected.norm())
    finally:
        torch.set_float32_matmul_precision(before)
    assert errors["highest"] < 3e-6
    assert errors["high"] < 2e-3


@gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_on_cuda(dtype):
    layer, x = lath.nn.LowRankLinear(96, 80, 16), torch.randn(8, 96)
    with torch.autocast("cuda", dtype=dtype):
        y = layer(x)
    assert y.dtype == dtype
    y.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in layer.parameters())


@gpu
def test_memory_of_the_allocator_stays_flat():
    x, v, u, bias, inner_bias = operands()

    def once():
        y, p = ops.lowrank_linear_forward(x, v, u, bias, inner_bias)
        ops.lowrank_linear_backward(y, x, v, u, inner_bias, p)
        with pytest.raises(RuntimeError, match="bias: got shape"):
            ops.lowrank_linear(x, v, u, inner_bias, NONE)

    once()
    before = torch.cuda.memory_allocated()
    for _ in range(100):
        once()
    assert torch.cuda.memory_allocated() == before


@gpu
def test_calls_do_not_wait_for_the_device():
    x, v, u, bias, inner_bias = operands()
    y, p = ops.lowrank_linear_forward(x, v, u, bias, inner_bias)
    decay = ops.frobenius_decay(v, u)
    torch.cuda.set_sync_debug_mode("error")
    try:
        ops.linear(x, v, inner_bias)
        ops.lowrank_linear(x.mT.contiguous().mT, v, u, bias, inner_bias)
        ops.lowrank_linear_backward(y, x, v, u, inner_bias, p)
        ops.frobenius_decay_backward(decay[0], v, u, *decay[1:])
    finally:
        torch.cuda.set_sync_debug_mode("default")


# ---- streams and graphs --------------------------------------------------------------------------------------------


@gpu
@pytest.mark.parametrize("rows", [1, 64, 2048])
def test_work_goes_to_the_current_stream(rows):
    """The producer on a side stream is slow: work on any other stream would read what was there before."""
    x, v, u, *_ = operands(shapes=((rows, 1024), (64, 1024), (512, 64)))
    expected = lath.ops.lowrank_linear(2 * x, v, u)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    for _ in range(3):
        given = x.clone()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            torch.cuda._sleep(20_000_000)
            given.mul_(2)
            y = lath.ops.lowrank_linear(given, v, u)
        torch.cuda.current_stream().wait_stream(side)
        assert_same(expected, y)


@gpu
def test_workspace_is_not_shared_between_streams():
    x, v, u, bias, inner_bias = operands(shapes=((512, 1024), (64, 1024), (512, 64), (512,), (64,)))
    y, p = ops.lowrank_linear_forward(x, v, u, bias, inner_bias)
    expected = ops.lowrank_linear_backward(y, x, v, u, inner_bias, p)
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(4)]
    results = []
    for _ in range(5):
        for stream in streams:
            with torch.cuda.stream(stream):
                results.append(ops.lowrank_linear_backward(y, x, v, u, inner_bias, p))
    torch.cuda.synchronize()
    for grads in results:
        for e, grad in zip(expected, grads, strict=True):
            assert torch.equal(e, grad)


def captured(action):
    """The replay of what the action enqueues, and what it returned while it was captured."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            action()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = action()
    return graph, result


@gpu
@every_operator_in_two_types
def test_capture_and_replay_of_every_operator(name, dtype):
    arguments = CASES[name](dtype)
    graph, results = captured(lambda: operator_cases.call(name, arguments))
    for a in arguments:  # the graph reads what lies there when it is replayed
        if isinstance(a, Tensor) and a.is_cuda and a.numel():
            a.copy_(a * 0.5)
    expected = operator_cases.call(name, arguments)
    graph.replay()
    for e, result in zip(expected, results, strict=True):
        assert_same(e, result)


@gpu
@pytest.mark.parametrize("rows", [1, 16, 300])
def test_capture_of_a_training_step(rows):
    layer = lath.nn.LowRankLinear(256, 192, 32, inner_bias=True)
    x = torch.randn(rows, 256)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
    twin = lath.nn.LowRankLinear(256, 192, 32, inner_bias=True)

    def step(model=layer, optimizer=optimizer):
        optimizer.zero_grad(set_to_none=False)
        model(x).square().mean().backward()
        optimizer.step()

    graph, _ = captured(step)
    twin.load_state_dict(layer.state_dict())
    eager = torch.optim.SGD(twin.parameters(), lr=0.01)
    for _ in range(4):
        graph.replay()
        step(twin, eager)
    for ours, theirs in zip(layer.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@gpu
@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_model_on_cuda(dynamic):
    model = Network(dtype=torch.float32)
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic)
    for batch in (2, 5):
        x = torch.randn(batch, 4, 6, 6)
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-2, atol=1e-2)
    compiled(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


# ---- several devices -----------------------------------------------------------------------------------------------


@pytest.fixture
def second():
    need_cuda()
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device: tests of several did not run")
    return torch.device("cuda:1")


@pytest.mark.cuda
def test_second_device_while_the_first_is_current(second):
    x, v, u, bias, inner_bias = operands(device=second)
    assert torch.cuda.current_device() == 0
    y = lath.ops.lowrank_linear(x, v, u, bias, inner_bias)
    assert y.device == second
    assert torch.cuda.current_device() == 0
    assert_close_lowrank(y, x, v, u, bias, inner_bias)
    with pytest.raises(RuntimeError, match="weight_v: got a tensor on cuda:0, expected cuda:1 like x"):
        ops.lowrank_linear(x, v.to("cuda:0"), u, NONE, NONE)


@pytest.mark.cuda
def test_side_stream_of_the_second_device(second):
    x, v, u, *_ = operands(device=second, shapes=((64, 1024), (64, 1024), (512, 64)))
    expected = lath.ops.lowrank_linear(2 * x, v, u)
    torch.cuda.synchronize(second)
    with torch.cuda.device(second):
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            torch.cuda._sleep(20_000_000)
            y = lath.ops.lowrank_linear(x.mul_(2), v, u)
    side.synchronize()
    assert_same(expected, y)
