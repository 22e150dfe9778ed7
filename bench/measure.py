# SPDX-License-Identifier: Apache-2.0
"""Timing of several calls against each other in one process.

Contenders take turns: each round times every one of them once, and the order is turned round from one to the next,
so that a change of clock rate or of load meets them alike. The figure of a contender is the median of its rounds.

With one thread the clock is the CPU time of the process, which does not count what other processes take. With more
threads it is wall-clock time, because waiting for the other thread is part of the cost. Then a third busy process turns
microseconds into milliseconds, so a comparison that was disturbed is repeated.
"""

from __future__ import annotations

import contextlib
import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

QUIET_SPREAD = 1.3  # a contender is undisturbed while its median stays below this multiple of its minimum,
QUIET_OTHERS = 0.12  # and several threads while other processes take less than this part of one core
ATTEMPTS = 3
BATCH_SECONDS = 2e-3  # one timed batch, long against the grain and the cost of reading the clock
WARM_SECONDS = 2e-2  # a longer call fills the caches by itself


@dataclass(frozen=True)
class Contender:
    """What is timed.

    Attributes:
        call: the timed part.
        before: runs before each call and is not timed.
    """

    call: Callable[[], object]
    before: Callable[[], object] | None = None


@dataclass(frozen=True)
class Timing:
    """Seconds per call.

    Attributes:
        median: over the rounds.
        spread: median / minimum over the rounds.
        others: cores that other processes took during the comparison; 0 where the system does not say.
    """

    median: float
    spread: float
    others: float


@dataclass(frozen=True)
class Pace:
    """How long a comparison lasts.

    Attributes:
        seconds: rounds go on until this much wall-clock time has gone by ...
        rounds: ... and there were at least so many of them.
    """

    seconds: float
    rounds: int = 5


def compare(
    contenders: Mapping[str, Callable[[], object] | Contender], pace: Pace, threads: int = 1, hot: bool = True
) -> dict[str, Timing]:
    """Time every contender; the keys of the result are those of ``contenders``.

    Args:
        contenders: plain callables or :class:`Contender`.
        pace: how long.
        threads: 1 chooses CPU time; more, wall-clock time with retries.
        hot: make an untimed call before each batch, so that the caches hold what the contender left there.
    """
    runs = {name: c if isinstance(c, Contender) else Contender(c) for name, c in contenders.items()}
    clock = time.process_time if threads == 1 else time.perf_counter
    best: dict[str, Timing] = {}
    for _ in range(1 if threads == 1 else ATTEMPTS):
        with _without_garbage_collection():
            timings = _compare_once(runs, pace, clock, hot)
        if not best or _disturbance(timings) < _disturbance(best):
            best = timings
        if _disturbance(best) < 1.0:
            break
    return best


def _disturbance(timings: Mapping[str, Timing]) -> float:
    """1 where a comparison starts to count as disturbed."""
    spread = max((timing.spread - 1.0) / (QUIET_SPREAD - 1.0) for timing in timings.values())
    return max(spread, next(iter(timings.values())).others / QUIET_OTHERS)


def _compare_once(
    runs: Mapping[str, Contender], pace: Pace, clock: Callable[[], float], hot: bool
) -> dict[str, Timing]:
    repeats = {name: _repeats(run, clock) for name, run in runs.items()}
    samples: dict[str, list[float]] = {name: [] for name in runs}
    order = list(runs)
    start, busy, own = time.perf_counter(), _busy_seconds(), time.process_time()
    end = start + pace.seconds
    done = 0
    while done < pace.rounds or time.perf_counter() < end:
        for name in order:
            if hot and (not samples[name] or samples[name][-1] < WARM_SECONDS):
                _batch(runs[name], 1, clock)
            samples[name].append(_batch(runs[name], repeats[name], clock))
        order.reverse()
        done += 1
    others = (_busy_seconds() - busy - (time.process_time() - own)) / (time.perf_counter() - start)
    return {name: _timing(taken, max(0.0, others)) for name, taken in samples.items()}


def _busy_seconds() -> float:
    """CPU time that all processes have taken since the machine started; the process's own where that is not known."""
    try:
        with open("/proc/stat") as file:
            user, nice, system, _, _, irq, softirq = map(int, file.readline().split()[1:8])
    except OSError:
        return time.process_time()
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def _repeats(run: Contender, clock: Callable[[], float]) -> int:
    """Calls that fill a batch, from a warm call."""
    _batch(run, 1, clock)
    once = _batch(run, 1, clock)
    return max(1, int(BATCH_SECONDS / max(once, 1e-7)))


def _batch(run: Contender, repeats: int, clock: Callable[[], float]) -> float:
    """Seconds per call over ``repeats`` calls."""
    call, before = run.call, run.before
    if before is None:
        start = clock()
        for _ in range(repeats):
            call()
        return (clock() - start) / repeats
    total = 0.0
    for _ in range(repeats):
        before()
        start = clock()
        call()
        total += clock() - start
    return total / repeats


def _timing(samples: list[float], others: float) -> Timing:
    median = statistics.median(samples)
    return Timing(median, median / max(min(samples), 1e-9), others)


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
