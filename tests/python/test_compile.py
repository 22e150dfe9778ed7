# SPDX-License-Identifier: Apache-2.0
"""torch.compile, torch.export and AOTInductor."""

from __future__ import annotations

import functools
import shutil

import lath
import pytest
import torch
from lath import _conv
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._functorch.aot_autograd import make_boxed_func


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()


def network(inner_bias=False, ratio=0.25):
    torch.manual_seed(5)
    net = nn.Sequential(nn.Linear(24, 32), nn.GELU(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 8))
    lath.convert(net, lath.LowRank(ratio=ratio, inner_bias=inner_bias))
    return net


needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in ("c++", "g++", "clang++")), reason="inductor needs a C++ compiler"
)


def compare_training(net, compiled, x):
    results = []
    for function in (net, compiled):
        net.zero_grad()
        loss = function(x).square().mean() + 0.01 * lath.frobenius_decay(net)
        loss.backward()
        results.append([loss.detach(), *(p.grad.clone() for p in net.parameters())])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("inner_bias", [False, True])
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=needs_compiler)])
def test_training_and_inference_without_breaks(inner_bias, backend):
    net = network(inner_bias)
    compiled = torch.compile(net, fullgraph=True, backend=backend)
    compare_training(net, compiled, torch.randn(6, 24))
    x = torch.randn(6, 24)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            torch.testing.assert_close(compiled(x), net(x), rtol=1e-4, atol=1e-5)


def test_loss_term_is_traced_too():
    net = network()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def loss(x):
        return net(x).square().mean() + lath.frobenius_decay(net) + lath.kronecker_decay(net) + lath.l2_decay(net)

    x = torch.randn(6, 24)
    loss(x).backward()
    got = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    (
        net(x).square().mean() + sum(d(net) for d in (lath.frobenius_decay, lath.kronecker_decay, lath.l2_decay))
    ).backward()
    torch.testing.assert_close(got, [p.grad for p in net.parameters()], rtol=1e-4, atol=1e-5)


def test_one_graph_for_every_number_of_rows():
    net = network()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(net, fullgraph=True, dynamic=True, backend=counter)
    for rows in (3, 5, 17, 64):
        compare_training(net, compiled, torch.randn(rows, 24))
    assert counter.frame_count == 1


def test_backward_of_a_compiled_graph_uses_the_operator():
    graphs = []

    def keep(graph, _):
        graphs.append(str(graph.code))
        return make_boxed_func(graph)

    net = network()
    backend = torch._dynamo.backends.common.aot_autograd(fw_compiler=keep, bw_compiler=keep)
    torch.compile(net, fullgraph=True, backend=backend)(torch.randn(6, 24)).sum().backward()
    forward, backward = graphs
    assert forward.count("lath.lowrank_linear_forward") == 3
    assert backward.count("lath.lowrank_linear_backward") == 3


def test_rank_above_break_even_keeps_nothing():
    layer = lath.nn.LowRankLinear(16, 16, 12)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(5, 16)
    compiled(x).square().sum().backward()
    got = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    layer(x).square().sum().backward()
    torch.testing.assert_close(got, [p.grad for p in layer.parameters()], rtol=1e-4, atol=1e-4)


def test_autocast():
    net = network()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    x = torch.randn(6, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = compiled(x)
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y, net(x), rtol=0.05, atol=0.05)
    y.float().sum().backward()
    assert net[0].weight_v.grad.dtype == torch.float32


def test_func_transforms_inside_a_graph():
    weights = [torch.randn(n) for n in ((4, 24), (8, 4))]

    def per_sample(x):
        return torch.func.vmap(lambda row: lath.ops.lowrank_linear(row, *weights))(x)

    x = torch.randn(3, 24)
    torch.testing.assert_close(torch.compile(per_sample, fullgraph=True, backend="aot_eager")(x), per_sample(x))


def test_frozen_layers():
    net = network(ratio=0.25).eval()
    net[0] = lath.nn.LowRankLinear(24, 32, 24).eval()
    assert lath.freeze(net) == ["0"]
    x = torch.randn(6, 24)
    with torch.no_grad():
        torch.testing.assert_close(
            torch.compile(net, fullgraph=True, backend="aot_eager")(x), net(x), rtol=1e-4, atol=1e-5
        )


def test_export_keeps_the_operator():
    net = network(inner_bias=True).eval()
    rows = torch.export.Dim("rows", min=1, max=512)
    with torch.no_grad():
        program = torch.export.export(net, (torch.randn(4, 24),), dynamic_shapes=({0: rows},))
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert targets.count(torch.ops.lath.lowrank_linear.default) == 3
    for n in (1, 9, 300):
        x = torch.randn(n, 24)
        torch.testing.assert_close(program.module()(x), net(x), rtol=1e-4, atol=1e-5)


def test_exported_program_is_saved_and_loaded(tmp_path):
    net = network().eval()
    x = torch.randn(4, 24)
    with torch.no_grad():
        torch.export.save(torch.export.export(net, (x,)), tmp_path / "net.pt2")
    loaded = torch.export.load(tmp_path / "net.pt2").module()
    torch.testing.assert_close(loaded(x), net(x))


@needs_compiler
def test_aot_inductor_package(tmp_path):
    net = network().eval()
    x = torch.randn(4, 24)
    with torch.no_grad():
        program = torch.export.export(net, (x,))
        package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "net.pt2"))
        torch.testing.assert_close(torch._inductor.aoti_load_package(package)(x), net(x), rtol=1e-4, atol=1e-5)


# ---- convolutions -------------------------------------------------------------------------------------------------


def images(batch=4, size=10, memory_format=torch.contiguous_format):
    return torch.randn(batch, 3, size, size).to(memory_format=memory_format)


def convolutions(inner_bias=False, mode="separable"):
    torch.manual_seed(5)
    conv = functools.partial(lath.nn.LowRankConv2d, inner_bias=inner_bias, mode=mode)
    return nn.Sequential(
        conv(3, 12, 3, 2, padding=1),
        nn.GELU(),
        conv(12, 12, (3, 2), 3, stride=2, padding=1, groups=2),
        nn.BatchNorm2d(12),
        conv(12, 8, 3, 2, padding="same", padding_mode="reflect"),
        nn.ReLU(),
        conv(8, 8, 1, 2),
    )


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("inner_bias", "mode"), [(False, "separable"), (True, "separable"), (True, "pointwise")])
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=needs_compiler)])
def test_convolutions_without_breaks(backend, inner_bias, mode, memory_format):
    net = convolutions(inner_bias, mode)
    compiled = torch.compile(net, fullgraph=True, backend=backend)
    x = images(memory_format=memory_format)
    compare_training(net, compiled, x)
    net.eval()
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            torch.testing.assert_close(compiled(x), net(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["separable", "pointwise"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=needs_compiler)])
def test_memory_format_of_a_compiled_convolution(backend, mode, memory_format):
    layer = lath.nn.LowRankConv2d(3, 12, 3, 2, padding=1, mode=mode)
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    x = images(memory_format=memory_format)
    with torch.no_grad():
        assert compiled(x).stride() == layer(x).stride()
    assert compiled(x).is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("dynamic", [False, True])
def test_traced_convolutions_take_the_planned_route(dynamic, monkeypatch):
    asked = []
    monkeypatch.setattr(_conv, "plan", lambda *question: asked.append(question) or ("pair", 1, 1, True))
    counter = CompileCounterWithBackend("eager")
    layer = lath.nn.LowRankConv2d(3, 12, 3, 2, padding=1, groups=3)
    torch.compile(layer, fullgraph=True, dynamic=dynamic, backend=counter)(images())
    sizes, geometry, channels_last, dtype, training = asked[0]
    assert sizes[1:4] == (3, 2, 12)
    assert (geometry.groups, channels_last, dtype, training) == (3, False, torch.float32, True)
    called = [node.target for node in counter.graphs[0].graph.nodes if node.op == "call_function"]
    assert called.count(torch.conv2d) == 2


def test_traced_weights_of_symbolic_size():
    compiled = torch.compile(lath.ops.lowrank_conv2d, fullgraph=True, dynamic=True, backend="aot_eager")
    for rank, size in ((2, 8), (3, 9)):
        x, v, u = torch.randn(5, 4, size, size), torch.randn(rank, 4, 1, 3), torch.randn(7, rank, 3, 1)
        torch.testing.assert_close(compiled(x, v, u, padding=1), lath.ops.lowrank_conv2d(x, v, u, padding=1))


def test_one_graph_for_every_batch_and_size_of_images():
    # BatchNorm2d brings graphs of its own, so it stays out.
    net = nn.Sequential(*(layer for layer in convolutions() if not isinstance(layer, nn.BatchNorm2d)))
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(net, fullgraph=True, dynamic=True, backend=counter)
    for batch, size in ((6, 9), (5, 11), (17, 16)):
        compare_training(net, compiled, images(batch, size))
    assert counter.frame_count == 1


def test_backward_of_compiled_convolutions_uses_the_operator():
    graphs = []

    def keep(graph, _):
        graphs.append(str(graph.code))
        return make_boxed_func(graph)

    backend = torch._dynamo.backends.common.aot_autograd(fw_compiler=keep, bw_compiler=keep)
    torch.compile(convolutions(), fullgraph=True, backend=backend)(images()).sum().backward()
    forward, backward = graphs
    assert forward.count("lath.lowrank_conv2d_forward") == 4
    assert backward.count("lath.lowrank_conv2d_backward") == 4


@pytest.mark.parametrize("inner_bias", [False, True])
def test_convolution_above_break_even(inner_bias):
    layer = lath.nn.LowRankConv2d(4, 4, 3, 9, padding=1, inner_bias=inner_bias)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 4, 6, 6)
    compiled(x).square().sum().backward()
    got = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    layer(x).square().sum().backward()
    torch.testing.assert_close(got, [p.grad for p in layer.parameters()], rtol=1e-4, atol=1e-3)


def test_bad_images_are_refused_while_tracing():
    compiled = torch.compile(convolutions(), backend="aot_eager")
    with pytest.raises(RuntimeError, match=r"expected \(\d \* rank, \d, 1, kernel_w\) to match 5 channels"):
        compiled(torch.randn(2, 5, 8, 8))


def test_autocast_of_convolutions():
    net = convolutions()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = compiled(images())
        assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert net[0].weight_v.grad.dtype == torch.float32


def test_func_transforms_of_a_convolution_inside_a_graph():
    v, u = torch.randn(2, 3, 1, 3), torch.randn(4, 2, 3, 1)

    def per_sample(x):
        return torch.func.vmap(lambda image: lath.ops.lowrank_conv2d(image, v, u, padding=1))(x)

    x = images()
    torch.testing.assert_close(torch.compile(per_sample, fullgraph=True, backend="aot_eager")(x), per_sample(x))


def test_export_keeps_the_convolution():
    net = convolutions(inner_bias=True).eval()
    batch, size = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("size", min=6, max=64)
    with torch.no_grad():
        program = torch.export.export(net, (images(),), dynamic_shapes=({0: batch, 2: size, 3: size},))
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert targets.count(torch.ops.lath.lowrank_conv2d.default) == 4
    for x in (images(1, 7), images(9, 16)):
        torch.testing.assert_close(program.module()(x), net(x), rtol=1e-4, atol=1e-5)


@needs_compiler
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_aot_inductor_package_of_convolutions(memory_format, tmp_path):
    net = convolutions(inner_bias=True).eval()
    x = images(memory_format=memory_format)
    with torch.no_grad():
        program = torch.export.export(net, (x,))
        torch.export.save(program, tmp_path / "program.pt2")
        package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "net.pt2"))
        torch.testing.assert_close(torch._inductor.aoti_load_package(package)(x), net(x), rtol=1e-4, atol=1e-5)
        loaded = torch.export.load(tmp_path / "program.pt2").module()
        torch.testing.assert_close(loaded(x), net(x))
