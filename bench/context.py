# SPDX-License-Identifier: Apache-2.0
"""What every section of the benchmark is given: the machine, the extents to run, and the time to spend."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from machine import Machine
from measure import Contender, Pace, Timing, compare

Shape = tuple[int, int]  # in, out

ROTATING_LAYERS = 24


@dataclass(frozen=True)
class Effort:
    """Extents and time.

    Attributes:
        seconds: of one comparison; a long one takes its five rounds.
        shapes: (in, out) of the layers.
        large_rows, small_rows, training_rows: of the sections that are named so.
        divisors: ranks, as min(in, out) over each.
        sweep: ranks of the sweep, as parts of min(in, out).
        modes: "hot" and "rotating", or one of them.
        limit_seconds: for each limit of the machine.
    """

    seconds: float
    shapes: tuple[Shape, ...]
    large_rows: tuple[int, ...]
    small_rows: tuple[int, ...]
    training_rows: tuple[int, ...]
    divisors: tuple[int, ...]
    sweep: tuple[float, ...]
    modes: tuple[str, ...]
    limit_seconds: float


EFFORTS = {
    "full": Effort(
        seconds=0.8,
        shapes=((1024, 1024), (768, 3072), (3072, 768), (4096, 4096)),
        large_rows=(256, 2048),
        small_rows=(16, 32, 64),
        training_rows=(256, 2048),
        divisors=(16, 8, 4),
        sweep=(1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 1),
        modes=("hot", "rotating"),
        limit_seconds=0.3,
    ),
    "quick": Effort(
        seconds=0.15,
        shapes=((1024, 1024), (768, 3072)),
        large_rows=(256,),
        small_rows=(16,),
        training_rows=(256,),
        divisors=(16, 4),
        sweep=(1 / 16, 1 / 4, 1 / 2, 1),
        modes=("hot", "rotating"),
        limit_seconds=0.05,
    ),
    # What the section "avx2" has its own process run.
    "probe": Effort(
        seconds=0.3,
        shapes=((1024, 1024), (768, 3072)),
        large_rows=(256,),
        small_rows=(16,),
        training_rows=(256,),
        divisors=(16, 8, 4),
        sweep=(),
        modes=("hot",),
        limit_seconds=0.1,
    ),
}


@dataclass
class Context:
    """Handed to every section.

    Attributes:
        machine: measured limits.
        effort: extents and time.
        quick: a section that has extents of its own is to be short as well.
        threads: that torch and lath use.
        notes: what a section could not do; printed below the tables.
        progress: called with a few words before each comparison.
    """

    machine: Machine
    effort: Effort
    quick: bool
    threads: int
    progress: Callable[[str], None]
    notes: list[str] = field(default_factory=list)

    def compare(
        self,
        what: str,
        contenders: Mapping[object, Callable[[], object] | Contender],
        hot: bool = True,
        threads: int | None = None,
    ) -> dict[object, Timing]:
        """:func:`measure.compare` at the pace of this run."""
        self.progress(what)
        return compare(contenders, Pace(self.effort.seconds), threads or self.threads, hot)

    def copies(self, size: int) -> int:
        """How many distinct things of ``size`` bytes rotate: 24, or what an eighth of the memory holds."""
        return max(2, min(ROTATING_LAYERS, self.machine.memory // 8 // max(size, 1)))

    @property
    def peak(self) -> float:
        """GFLOP/s of lath's instruction set on the threads of this run."""
        return self.machine.isa_peak * self.threads
