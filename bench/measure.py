# SPDX-License-Identifier: Apache-2.0
"""Timing of several calls against each other in one process.

Contenders take turns: each round times every one of them once, and the order is turned round from one round to the next,
so that a change of clock rate or of load meets them alike. The figure of a contender is the median of its rounds.

With one thread the clock is the CPU time of the process, which does not count what other processes take. With more
threads it is wall-clock time, because waiting for the other thread is part of the cost. Then a third busy process turns
microseconds into milliseconds, so a comparison whose median is far above its minimum is repeated.
"""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

QUIET = 1.3  # a contender is undisturbed while its median stays below this multiple of its minimum
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
        spread: median / minimum.
        rounds: how many there were.
    """

    median: float
    spread: float
    rounds: int


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
        if not best or _worst_spread(timings) < _worst_spread(best):
            best = timings
        if _worst_spread(best) < QUIET:
            break
    return best


def _worst_spread(timings: Mapping[str, Timing]) -> float:
    return max(timing.spread for timing in timings.values())


def _compare_once(
    runs: Mapping[str, Contender], pace: Pace, clock: Callable[[], float], hot: bool
) -> dict[str, Timing]:
    repeats = {name: _repeats(run, clock) for name, run in runs.items()}
    samples: dict[str, list[float]] = {name: [] for name in runs}
    order = list(runs)
    end = time.perf_counter() + pace.seconds
    done = 0
    while done < pace.rounds or time.perf_counter() < end:
        for name in order:
            if hot and (not samples[name] or samples[name][-1] < WARM_SECONDS):
                _batch(runs[name], 1, clock)
            samples[name].append(_batch(runs[name], repeats[name], clock))
        order.reverse()
        done += 1
    return {name: _timing(taken) for name, taken in samples.items()}


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


def _timing(samples: list[float]) -> Timing:
    median = statistics.median(samples)
    return Timing(median, median / max(min(samples), 1e-9), len(samples))


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
