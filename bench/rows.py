# SPDX-License-Identifier: Apache-2.0
"""One line of a table: what was measured, and what follows from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from measure import QUIET_OTHERS, QUIET_SPREAD, Timing

NEAR_BOUND = 0.85  # where traffic is the limit, the floor is this part of the bound
LESS_IS_BETTER = ("us", "floats", "steps")  # quantities of a goal


@dataclass(frozen=True)
class Goal:
    """What a row is to reach.

    Attributes:
        quantity: "share", "speed-up", "vs two", "vs rivals", which is the fastest of them, or "vs" one of their names;
            or, where less is better, "us": microseconds of lath, "floats": numbers of memory, "steps": times the
            baseline.
        floor: accepted from here on.
        target: aimed at.
        own: the same figures hold for the share, or the speed-up, against lath's own dense product. They do not at few
            rows, where they count on what torch's product loses there.
    """

    quantity: str
    floor: float
    target: float
    own: bool = False

    def verdict(self, value: float, floor: float | None = None) -> str:
        """What to print: "target", "floor" or "below". The argument ``floor`` replaces that of the goal."""
        floor = self.floor if floor is None else floor
        sign = -1 if self.quantity in LESS_IS_BETTER else 1
        if sign * value >= sign * self.target:
            return "target"
        return "floor" if sign * value >= sign * floor else "below"


@dataclass(frozen=True)
class Row:
    """Measured seconds of the contenders for one case, with its arithmetic.

    Attributes:
        section: the table it belongs to.
        case: what is computed, such as "1024->3072".
        mode: "hot", "rotating", or what else tells rows of a case apart.
        rows, rank: of the call, where there are such.
        threads, isa: that lath used.
        baseline, lath: seconds.
        two, own: seconds of two library layers and of lath's own dense product, where measured.
        dense_macs, macs: multiply-adds of the baseline and of lath; 0 where the ratio says nothing.
        peak: GFLOP/s that lath's instruction set could reach on these threads.
        bound: least seconds for the multiply-adds and the traffic of lath's call, 0 if not worked out.
        traffic_limited: the traffic takes longer than the multiply-adds in that bound.
        spread: the largest median / minimum among the contenders.
        others: cores that other processes took meanwhile.
        layouts: of images for the baseline, two and lath, where the better one counts; "" elsewhere.
        route: what the planner took for lath's call, where it has a choice.
        tokens: steps of all samples in the call of an LSTM, else 0.
        rivals: seconds of what else lath is held against, by name: of an LSTM "loop", "projected" or "torch", of layers
            in orthogonal bases "factors" or "recompose".
        floats, dense_floats: memory of lath's call and of the baseline's, in numbers a token and layer.
        more_floats: what a further token adds to ``floats`` times the tokens.
        goal, two_goal: what the row and its ratio to two library layers are to reach.
        rival_goals: what the ratios to its rivals are to reach.
    """

    section: str
    case: str
    mode: str
    rows: int | None
    rank: int | None
    threads: int
    isa: str
    baseline: float
    lath: float
    two: float | None = None
    own: float | None = None
    dense_macs: int = 0
    macs: int = 0
    peak: float = 0.0
    bound: float = 0.0
    traffic_limited: bool = False
    spread: float = 1.0
    others: float = 0.0
    layouts: str = ""
    route: str = ""
    tokens: int = 0
    rivals: Mapping[str, float] = field(default_factory=dict)
    floats: float | None = None
    dense_floats: float | None = None
    more_floats: float | None = None
    goal: Goal | None = field(default=None)
    two_goal: Goal | None = field(default=None)
    rival_goals: tuple[Goal, ...] = ()

    @property
    def speedup(self) -> float:
        return self.baseline / self.lath

    @property
    def mac_ratio(self) -> float | None:
        return self.dense_macs / self.macs if self.macs and self.dense_macs else None

    def _share_of(self, seconds: float | None, dense: float | None) -> float | None:
        """Realized share of a contender that takes ``seconds`` where the dense one takes ``dense``."""
        if not seconds or not dense or self.mac_ratio is None:
            return None
        return dense / seconds / self.mac_ratio

    @property
    def share(self) -> float | None:
        """Realized share: speed-up over torch's dense product, divided by the ratio of multiply-adds."""
        return self._share_of(self.lath, self.baseline)

    @property
    def share_own(self) -> float | None:
        """The same against lath's own dense product, at the same instruction set."""
        return self._share_of(self.lath, self.own)

    @property
    def share_two(self) -> float | None:
        """The realized share of two library layers."""
        return self._share_of(self.two, self.baseline)

    @property
    def bound_share(self) -> float | None:
        """The share of a call that takes exactly the bound."""
        return self._share_of(self.bound, self.baseline)

    @property
    def gflops(self) -> float | None:
        return 2e-9 * self.macs / self.lath if self.macs else None

    @property
    def peak_share(self) -> float | None:
        return self.gflops / self.peak if self.macs and self.peak else None

    @property
    def dense_peak_share(self) -> float | None:
        return 2e-9 * self.dense_macs / self.baseline / self.peak if self.dense_macs and self.peak else None

    @property
    def vs_two(self) -> float | None:
        return self.two / self.lath if self.two else None

    def versus(self, rival: str) -> float | None:
        """Time of a rival over lath's."""
        return self.rivals[rival] / self.lath if rival in self.rivals else None

    def rival_speedup(self, rival: str) -> float | None:
        """Speed-up of a rival over the baseline."""
        return self.baseline / self.rivals[rival] if rival in self.rivals else None

    @property
    def vs_rivals(self) -> float | None:
        """Time of the fastest rival over lath's."""
        return min(self.rivals.values()) / self.lath if self.rivals else None

    @property
    def tokens_per_second(self) -> float | None:
        return self.tokens / self.lath if self.tokens else None

    @property
    def value(self) -> float | None:
        """What the goal speaks of."""
        if self.goal is None:
            return None
        values = {
            "share": self.share,
            "speed-up": self.speedup,
            "vs two": self.vs_two,
            "us": 1e6 * self.lath,
            "floats": self.floats,
            "steps": self.lath / self.baseline,
        }
        quantity = self.goal.quantity
        return values[quantity] if quantity in values else self._against(quantity)

    def _against(self, quantity: str) -> float | None:
        """What a goal for rivals speaks of."""
        return self.vs_rivals if quantity == "vs rivals" else self.versus(quantity.removeprefix("vs "))

    @property
    def floor(self) -> float | None:
        """The floor in force: where traffic is the limit, what is near its bound is accepted."""
        if self.goal is None:
            return None
        if self.goal.quantity == "share" and self.traffic_limited and self.bound_share is not None:
            return min(self.goal.floor, NEAR_BOUND * self.bound_share)
        return self.goal.floor

    @property
    def verdict(self) -> str:
        return "" if self.goal is None or self.value is None else self.goal.verdict(self.value, self.floor)

    @property
    def own_verdict(self) -> str:
        """The verdict if lath's own dense product were torch's."""
        if self.goal is None or not self.goal.own or self.share_own is None:
            return ""
        floor = self.goal.floor
        if self.goal.quantity == "speed-up":
            return self.goal.verdict(self.own / self.lath, floor)
        if self.traffic_limited and self.bound:
            floor = min(floor, NEAR_BOUND * self._share_of(self.bound, self.own))
        return self.goal.verdict(self.share_own, floor)

    @property
    def two_verdict(self) -> str:
        return "" if self.two_goal is None or self.vs_two is None else self.two_goal.verdict(self.vs_two)

    @property
    def rival_verdict(self) -> str:
        """Of each goal for rivals, in their order."""
        values = [(goal, self._against(goal.quantity)) for goal in self.rival_goals]
        return " ".join(goal.verdict(value) for goal, value in values if value is not None)

    @property
    def disturbed(self) -> bool:
        return self.spread >= QUIET_SPREAD or (self.threads > 1 and self.others >= QUIET_OTHERS)

    def replace(self, **changes) -> Row:
        return dataclasses.replace(self, **changes)

    def as_dict(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> Row:
        goals = {name: Goal(**values[name]) if values[name] else None for name in ("goal", "two_goal")}
        return cls(**{**values, **goals, "rival_goals": tuple(Goal(**goal) for goal in values["rival_goals"])})


def disturbance(timings: Iterable[Timing]) -> dict[str, float]:
    """The fields ``spread`` and ``others`` of a row that these timings make up."""
    timings = list(timings)
    return {"spread": max(t.spread for t in timings), "others": max(t.others for t in timings)}
