# SPDX-License-Identifier: Apache-2.0
"""Measuring networks: time in turns, peak memory."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

EXACT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # blocks from this size on come from the system and go back to it
ATTEMPTS = 3
QUIET = 1.3  # a measurement is undisturbed while medians stay below this multiple of the minimum
Key = TypeVar("Key", bound=Hashable)
_BATCH_SECONDS = 2e-3  # one timed batch of calls, long against the grain of the clock


@dataclass(frozen=True)
class Workload:
    """One way of using the networks.

    Attributes:
        seconds: median, of each network by name.
        macs: multiply-adds.
        layouts: of images and weights, where networks have a choice.
    """

    name: str
    seconds: dict[str, float]
    macs: dict[str, int]
    layouts: dict[str, str] = field(default_factory=dict)

    def speedup(self, name: str, dense: str) -> float:
        return self.seconds[dense] / self.seconds[name]

    def saving(self, name: str, dense: str) -> float:
        """How many times fewer multiply-adds."""
        return self.macs[dense] / self.macs[name]

    def share(self, name: str, dense: str) -> float:
        """The realized share of the saving."""
        return self.speedup(name, dense) / self.saving(name, dense)


def time_in_turns(calls: Mapping[Key, Callable[[], object]], seconds: float) -> dict[Key, float]:
    """Median seconds of each call.

    The calls take turns, and the order is turned round from one round to the next, so that a change of clock rate or of
    load meets them alike. Before each timed batch comes one untimed call, which brings the weights into cache. A
    measurement that other processes disturbed is repeated, and the quietest counts.

    Args:
        calls: by name, or by anything else.
        seconds: rounds go on until so much time has gone by; there are five at least.
    """
    attempts: list[tuple[float, dict[Key, float]]] = []
    while len(attempts) < ATTEMPTS and (not attempts or attempts[-1][0] > QUIET):
        samples = _rounds(calls, seconds, least=5)
        medians = {name: statistics.median(taken) for name, taken in samples.items()}
        attempts.append((max(medians[name] / min(taken) for name, taken in samples.items()), medians))
    return min(attempts, key=lambda attempt: attempt[0])[1]


def glance(calls: Mapping[Key, Callable[[], object]]) -> dict[Key, float]:
    """Least seconds of each call, of a few in turns: enough to choose by, not to report."""
    return {key: min(taken) for key, taken in _rounds(calls, 0.0, least=3).items()}


def _rounds(calls: Mapping[Key, Callable[[], object]], seconds: float, least: int) -> dict[Key, list[float]]:
    """Seconds per call of each timed batch, ``least`` batches or more."""
    repeats = {key: _repeats(call) for key, call in calls.items()}
    samples: dict[Key, list[float]] = {key: [] for key in calls}
    order = list(calls)
    end = time.perf_counter() + seconds
    while len(samples[order[0]]) < least or time.perf_counter() < end:
        for key in order:
            calls[key]()
            samples[key].append(_time(calls[key], repeats[key]))
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
