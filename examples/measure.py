# SPDX-License-Identifier: Apache-2.0
"""Measuring networks: time in turns, peak memory, multiply-adds."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lath.nn import LowRankLinear
from torch import nn

EXACT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # blocks from this size on come from the system and go back to it
ATTEMPTS = 3
QUIET = 1.3  # a measurement is undisturbed while medians stay below this multiple of the minimum
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
    load meets them alike. Before each timed batch comes one untimed call, which brings the weights into cache. A
    measurement that other processes disturbed is repeated, and the quietest counts.

    Args:
        calls: by name.
        seconds: rounds go on until so much time has gone by; there are five at least.
    """
    attempts: list[tuple[float, dict[str, float]]] = []
    while len(attempts) < ATTEMPTS and (not attempts or attempts[-1][0] > QUIET):
        samples = _rounds(calls, seconds)
        medians = {name: statistics.median(taken) for name, taken in samples.items()}
        attempts.append((max(medians[name] / min(taken) for name, taken in samples.items()), medians))
    return min(attempts, key=lambda attempt: attempt[0])[1]


def _rounds(calls: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
    """Seconds per call of each timed batch."""
    repeats = {name: _repeats(call) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    end = time.perf_counter() + seconds
    while len(samples[order[0]]) < 5 or time.perf_counter() < end:
        for name in order:
            calls[name]()
            samples[name].append(_time(calls[name], repeats[name]))
        order.reverse()
    return samples


def _repeats(call: Callable[[], object]) -> int:
    call()
    return max(1, int(_BATCH_SECONDS / max(_time(call, 1), 1e-7)))


def _time(call: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def peak_memory(run: Callable[[], object]) -> int | None:
    """Bytes by which the process grows at most while ``run`` runs, as the kernel counts resident memory.

    That is all there is: tensors, scratch memory of lath, buffers that a BLAS keeps for itself. Call it in a process of
    its own with :data:`EXACT_MEMORY` in its environment, lest memory that was freed earlier and kept by the allocator
    serves ``run`` unseen.

    Returns:
        None where the kernel does not tell, or does not allow to reset its high-water mark.
    """
    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        run()
        return max(0, _status("VmHWM") - before)
    except OSError:
        return None


def _status(field: str) -> int:
    """A number of bytes in /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


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
