# SPDX-License-Identifier: Apache-2.0
"""OIALR training in two processes: equal in every bit, with work split or not, in DistributedDataParallel."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from torch import distributed

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not distributed.is_gloo_available(), reason="torch without gloo")]

PRELUDE = """
import hashlib, json, os, sys, warnings
from datetime import timedelta
import torch
from torch import distributed, nn, optim
from torch.nn.parallel import DistributedDataParallel as DDP
import lath
from oialr_training import mlp, batches, with_spectrum

torch.set_num_threads(1)
rank = int(sys.argv[1])
distributed.init_process_group("gloo", "tcp://127.0.0.1:" + sys.argv[2], timedelta(seconds=60), 2, rank)

def digest(*tensors):
    whole = hashlib.sha256()
    for t in tensors:
        whole.update(repr(tuple(t.shape)).encode())
        whole.update(t.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()

def state(net, optimizer):
    kept = [v for p in net.parameters() for v in optimizer.state.get(p, {}).values() if torch.is_tensor(v)]
    return digest(*net.parameters(), *net.buffers(), *(v.reshape(-1) for v in kept))
"""

# Threads of gloo that ask for the interpreter while it comes to its end abort the process, so it ends without that.
END = """
distributed.destroy_process_group()
sys.stdout.flush()
os._exit(0)
"""


def two(code: str) -> list[str]:
    """What two processes print; both have to come to an end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = PRELUDE + textwrap.dedent(code) + END
    here = str(Path(__file__).parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(rank), str(port)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        ends = [process.communicate(timeout=300) for process in running]
    finally:
        for process in running:
            process.kill()
    for process, (_, errors) in zip(running, ends, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return [output.strip() for output, _ in ends]


@pytest.mark.parametrize(
    "options", [{}, {"distributed_updates": False}, {"growth": 1}, {"shrink": False}, {"compat": "reference"}], ids=str
)
def test_processes_stay_equal_to_the_bit(options):
    """On different data; parameters, bases and the optimizer's state after every step."""
    code = """
    net = mlp(8, 16, 16, 16, 4, dtype=torch.float32)
    optimizer = optim.AdamW(net.parameters(), 0.01)
    model = DDP(net)
    controller = lath.OIALRController(
        model, optimizer, 6, 3, **{"keep_last": False, "cutoff": 0.3, "layer_share": 0.5, **OPTIONS}
    )
    wrapped = 1
    for x, y in batches(30, 16, 8, 4, torch.float32, seed=rank):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
        before = [p.shape for p in net.parameters()]
        changed = controller.step()
        assert changed == (before != [p.shape for p in net.parameters()])
        again = controller.rewrap(DDP)
        assert (again is not model) == changed
        model, wrapped = again, wrapped + changed
        print(state(net, optimizer))
    print(controller.ranks, wrapped)
    """.replace("OPTIONS", repr(options))
    first, second = two(code)
    assert first == second
    *digests, last = first.splitlines()
    assert len(set(digests)) == len(digests) == 30
    assert 2 <= int(last.split()[-1]) <= 10


def test_split_work_gives_what_one_process_gives():
    """The same data in both: no gradient differs, so the run has to be that of a process alone."""
    code = """
    runs = []
    for together in (True, False):
        net = mlp(8, 16, 16, 16, 4)
        optimizer = optim.SGD(net.parameters(), 0.05, momentum=0.9)
        controller = lath.OIALRController(
            net, optimizer, 4, 3, keep_last=False, cutoff=0.3, layer_share=1.0, distributed_updates=together
        )
        for x, y in batches(20, 16, 8, 4):
            optimizer.zero_grad()
            nn.functional.mse_loss(net(x), y).backward()
            optimizer.step()
            controller.step()
        runs.append((controller.ranks, [core.dense() for core in lath.oialr_cores(net).values()]))
    assert runs[0][0] == runs[1][0]
    for a, b in zip(runs[0][1], runs[1][1]):
        torch.testing.assert_close(a, b)
    print(sum(runs[0][0].values()))
    """
    first, second = two(code)
    assert first == second
    assert int(first) < 44


def test_work_is_split():
    """Each process decomposes every other core, and none more than once."""
    code = """
    net = mlp(8, 8, 8, 8, 8)
    controller = lath.OIALRController(
        net, optim.SGD(net.parameters(), 0.0), 1, 1, keep_last=False, layer_share=1.0, cutoff=1e-9
    )
    controller.step()
    real, count = torch.linalg.svd, []
    torch.linalg.svd = lambda a, **options: count.append(a.shape[0]) or real(a, **options)
    controller.step()
    print(count)
    """
    assert two(code) == ["[2]", "[2]"]


def test_a_core_that_is_not_finite_is_left_by_both():
    code = """
    net = mlp(8, 8, 8)
    for layer in net[::2]:
        with_spectrum(layer, [1.0] + [1e-4] * 7)
    controller = lath.OIALRController(
        net, optim.SGD(net.parameters(), 0.0), 1, 1, keep_last=False, layer_share=1.0
    )
    controller.convert()
    with torch.no_grad():
        net[0].weight_s[0, 0] = float("nan")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        controller.update()
    print(controller.ranks, [str(w.message) for w in caught])
    """
    first, second = two(code)
    assert first == second
    assert "{'0': 8, '2': 4}" in first
    assert "0: the core is not finite" in first


def test_validation_does_not_advance_and_an_outdated_wrapper_refuses():
    code = """
    net = mlp(8, 8, 8)
    model = DDP(net)
    controller = lath.OIALRController(model, optim.SGD(net.parameters(), 0.0), 2, 1, keep_last=False)
    x = torch.randn(2, 8, dtype=torch.float64)
    model.eval()
    for _ in range(5):
        model(x)
    assert (controller.steps, controller.converted) == (0, False)
    model.train()
    assert [controller.step() for _ in range(2)] == [False, True]
    try:
        model(x)
    except RuntimeError as error:
        assert "controller.rewrap" in str(error)
    else:
        raise AssertionError("no error")
    new = controller.rewrap(DDP)
    new(x).sum().backward()
    new.eval()
    assert not net.training
    new(x)
    print(controller.steps)
    """
    assert two(code) == ["2", "2"]


def test_a_resumed_run_goes_on_in_both():
    code = """
    import copy
    def build():
        net = mlp(8, 16, 16, 4)
        optimizer = optim.AdamW(net.parameters(), 0.01)
        return net, optimizer, lath.OIALRController(
            net, optimizer, 4, 3, keep_last=False, cutoff=0.3, layer_share=0.5
        )
    def run(net, optimizer, controller, data):
        model = DDP(net)
        for x, y in data:
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
            if controller.step():
                model = DDP(net)
        return state(net, optimizer)
    data = list(batches(24, 16, 8, 4, seed=rank))
    expected = run(*build(), data)
    first = build()
    run(*first, data[:13])
    second = build()
    for i in (2, 0, 1):
        second[i].load_state_dict(copy.deepcopy(first[i].state_dict()))
    assert run(*second, data[13:]) == expected
    print(expected)
    """
    first, second = two(code)
    assert first == second


def test_sharding_of_converted_layers():
    """FSDP2 at fixed ranks: the losses are those of one process with both halves of each batch."""
    code = """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    def build():
        net = mlp(8, 16, 16, 4)
        lath.convert(net, lath.OIALR(rank_ratio=0.5, keep_last=False))
        return net
    def run(net, mine):
        optimizer = optim.AdamW(net.parameters(), 0.01)
        losses = []
        for x, y in batches(30, 16, 8, 4):
            x, y = (x[rank::2], y[rank::2]) if mine else (x, y)
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(net(x), y)
            loss.backward()
            optimizer.step()
            total = loss.detach().clone()
            if mine:
                distributed.all_reduce(total)
            losses.append(total / (2 if mine else 1))
        return torch.stack(losses)
    net, mesh = build(), init_device_mesh("cpu", (2,))
    for layer in net[::2]:
        fully_shard(layer, mesh=mesh)
    fully_shard(net, mesh=mesh)
    assert type(net[0].weight_s.data).__name__ == "DTensor"
    losses = run(net, True)
    torch.testing.assert_close(losses, run(build(), False))
    print((losses[-5:].mean() < losses[:5].mean()).item())
    """
    assert two(code) == ["True", "True"]
