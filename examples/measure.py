# SPDX-License-Identifier: Apache-2.0
"""Measuring networks: time in turns, memory of tensors, multiply-adds."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from lath.nn import LowRankLinear
from torch import nn

_BATCH_SECONDS = 2e-3  # one timed batch of calls, long against the grain of the clock


@dataclass(frozen=True)
class Workload:
    """One way of using the networks: median seconds and multiply-adds of each, by name."""

    name: str
    seconds: dict[str, float]
    macs: dict[str, int]

    def speedup(self, name: str, dense: str) -> float:
        return self.seconds[dense] / self.seconds[name]

    def saving(self, name: str, dense: str) -> float:
        """How many times fewer multiply-adds."""
        return self.macs[dense] / self.macs[name]

    def share(self, name: str, dense: str) -> float:
        """The realized share of the saving."""
        return self.speedup(name, dense) / self.saving(name, dense)


def time_in_turns(calls: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Median seconds of each call.

    The calls take turns, and the order is turned round from one round to the next, so that a change of clock rate or of
    load meets them alike. Before each timed batch comes one untimed call, which brings the weights into cache.

    Args:
        calls: by name.
        seconds: rounds go on until so much time has gone by; there are five at least.
    """
    repeats = {name: _repeats(call) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    end = time.perf_counter() + seconds
    while len(samples[order[0]]) < 5 or time.perf_counter() < end:
        for name in order:
            calls[name]()
            samples[name].append(_time(calls[name], repeats[name]))
        order.reverse()
    return {name: statistics.median(taken) for name, taken in samples.items()}


def _repeats(call: Callable[[], object]) -> int:
    call()
    return max(1, int(_BATCH_SECONDS / max(_time(call, 1), 1e-7)))


def _time(call: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def peak_memory(run: Callable[[], object]) -> int:
    """The most bytes that tensors made by ``run`` take at one time, as torch's profiler of allocations sees it.

    That is what ``torch.cuda.max_memory_allocated`` tells on a GPU: weights, gradients, activations, the state of the
    optimizer and the workspaces of lath, provided that ``run`` makes them. The interpreter, the code of the libraries
    and buffers that a BLAS allocates for itself are not in it, so the figure is the same in every run.
    """
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        with _silent_profiler():
            with torch.profiler.profile(
                activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
            ) as profiler:
                run()
            profiler.export_chrome_trace(str(trace))
        events = [e for e in json.loads(trace.read_text())["traceEvents"] if e.get("name") == "[memory]"]
    taken = peak = 0
    for event in sorted(events, key=lambda e: e["ts"]):
        taken += event["args"]["Bytes"]
        peak = max(peak, taken)
    return peak


@contextlib.contextmanager
def _silent_profiler() -> Iterator[None]:
    """The profiler reports its start, its stop and a missing GPU on the file descriptors of the process."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(descriptor) for descriptor in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for descriptor in (1, 2):
            os.dup2(nowhere, descriptor)
        yield
    finally:
        for descriptor, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, descriptor)
            os.close(copy)
        os.close(nowhere)


def products(model: nn.Module) -> list[int]:
    """Multiply-adds of each matrix product for one row of input, in the order of the modules."""
    found: list[int] = []
    for module in model.modules():
        if isinstance(module, nn.Linear):
            found.append(module.in_features * module.out_features)
        elif isinstance(module, LowRankLinear):
            found += [module.in_features * module.rank, module.rank * module.out_features]
    return found


def inference_macs(model: nn.Module) -> int:
    """Multiply-adds of a chain of linear layers for one row."""
    return sum(products(model))


def training_macs(model: nn.Module) -> int:
    """The same for a training step: three products for each one, but no gradient of the input data."""
    each = products(model)
    return 3 * sum(each) - each[0]
