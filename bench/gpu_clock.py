# SPDX-License-Identifier: Apache-2.0
"""Timing on a GPU: CUDA events around eager calls, and around replays of a CUDA graph.

All contenders of a comparison take turns, in an order that is reversed every round, so that a clock rate that changes
meets them alike; the figure of each is the median of its rounds. :class:`HostClock` stands in where there is no GPU, to
rehearse everything but the numbers.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch

Call = Callable[[], object]

MOST_REPEATS = 2000
ROUNDS = 5
WARM_CALLS = 3


class GpuClock:
    """Of the current CUDA device."""

    device = torch.device("cuda")
    graphs = True
    batch_seconds = 1e-3  # of one timed batch: long against the grain of an event, which is half a microsecond

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def seconds(self, call: Call, repeats: int) -> float:
        """Of one call, as the device sees it."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3 / repeats

    def captured(self, call: Call) -> Call:
        """Replays what ``call`` enqueues. What it allocates belongs to the graph."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # the first calls load kernels, which a capture cannot
            for _ in range(WARM_CALLS):
                call()
            side.synchronize()
            graph = torch.cuda.CUDAGraph()
            graph.capture_begin()  # torch.cuda.graph() also collects garbage, which takes longer than the measurement
            try:
                call()
            finally:
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(side)
        return graph.replay


class HostClock:
    """Of the processor, for rehearsals: a graph is the call itself."""

    device = torch.device("cpu")
    graphs = False
    batch_seconds = 1e-5

    def synchronize(self) -> None:
        pass

    def seconds(self, call: Call, repeats: int) -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - start) / repeats

    def captured(self, call: Call) -> Call:
        return call


def compare(clock: GpuClock | HostClock, contenders: Mapping[str, Call], rounds: int = ROUNDS) -> dict[str, float]:
    """Seconds of a call of each contender."""
    repeats = {}
    for name, call in contenders.items():
        for _ in range(WARM_CALLS):
            call()
        clock.synchronize()
        once = clock.seconds(call, 2)
        repeats[name] = max(1, min(MOST_REPEATS, round(clock.batch_seconds / max(once, 1e-7))))
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    for _ in range(rounds):
        for name in order:
            samples[name].append(clock.seconds(contenders[name], repeats[name]))
        order.reverse()
    return {name: statistics.median(taken) for name, taken in samples.items()}
