# SPDX-License-Identifier: Apache-2.0
"""When the dense warm-up ends: after a fixed time, or when the ranks of the layers have settled (Cuttlefish)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


def _check_count(what: str, name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what}: {name} is {value!r}, expected an int")
    if value < least:
        raise ValueError(f"{what}: {name} is {value}, expected {least} or more")


@dataclass(frozen=True)
class AfterEpochs:
    """After so many epochs of dense training; 0 is at once."""

    epochs: int

    def __post_init__(self) -> None:
        _check_count("AfterEpochs", "epochs", self.epochs, 0)


@dataclass(frozen=True)
class AfterSteps:
    """After so many steps of dense training; 0 is at once."""

    steps: int

    def __post_init__(self) -> None:
        _check_count("AfterSteps", "steps", self.steps, 0)


@dataclass(frozen=True)
class RankSwitch:
    """At the epoch after the one in which the stable rank of every layer had settled.

    The stable ranks of a layer, one per epoch and cut off to integers, are smoothed by an exponential moving average
    with weight ``2 / (window + 1)``. The layer has settled when the absolute slopes of that (central differences,
    one-sided at the ends) average to ``threshold`` or less over the last epochs; once settled, it stays so. Nothing is
    tested before epoch ``window``, counted from 0. The defaults are those of the CNNs on CIFAR.

    Attributes:
        window: of the moving average.
        last: epochs whose slopes are averaged.
        threshold: of the average slope.
        relaxation: pairs of a number and a factor: while so many layers or fewer have not settled at the beginning of a
            test, the threshold is multiplied by the factor. The smallest number that holds decides.

    Raises:
        TypeError, ValueError: at construction, for a value outside of the above.
    """

    window: int = 15
    last: int = 11
    threshold: float = 0.1
    relaxation: tuple[tuple[int, float], ...] = ((1, 5.0), (2, 2.5))

    def __post_init__(self) -> None:
        _check_count("RankSwitch", "window", self.window, 1)
        _check_count("RankSwitch", "last", self.last, 1)
        for layers, factor in self.relaxation:
            _check_count("RankSwitch", "relaxation", layers, 1)
            _check_positive("relaxation", factor)
        _check_positive("threshold", self.threshold)

    def threshold_for(self, left: int) -> float:
        """While ``left`` layers have not settled."""
        return self.threshold * next((factor for most, factor in sorted(self.relaxation) if left <= most), 1.0)

    def slope(self, ranks: Sequence[float]) -> float:
        """The average that is compared with the threshold; infinite for a single rank."""
        if len(ranks) < 2:
            return math.inf
        weight = 2 / (self.window + 1)
        smooth = [float(ranks[0])]
        for rank in ranks[1:]:
            smooth.append(rank * weight + smooth[-1] * (1 - weight))
        inner = [(after - before) / 2 for before, after in zip(smooth, smooth[2:], strict=False)]
        slopes = [smooth[1] - smooth[0], *inner, smooth[-1] - smooth[-2]]
        recent = slopes[-self.last :]
        return sum(map(abs, recent)) / len(recent)


def _check_positive(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 < value < math.inf:
        raise ValueError(f"RankSwitch: {name} is {value!r}, expected a finite number above 0")


@dataclass
class RankDetector:
    """Follows the ranks of some layers, epoch by epoch, until all have settled.

    Attributes:
        rule: what settled means.
        history: ranks of each layer so far.
        settled: epoch in which each settled layer was found to be so.
    """

    rule: RankSwitch
    history: dict[str, list[int]]
    settled: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, rule: RankSwitch, names: Iterable[str]) -> RankDetector:
        """For the layers of these names."""
        return cls(rule, {name: [] for name in names})

    @property
    def done(self) -> bool:
        """Whether every layer has settled."""
        return len(self.settled) == len(self.history)

    def observe(self, ranks: Mapping[str, int]) -> list[str]:
        """Take the ranks of the next epoch; the names of the layers that have settled in it.

        Raises:
            ValueError: ranks of other layers than those that are followed.
        """
        if ranks.keys() != self.history.keys():
            odd = ", ".join(sorted(ranks.keys() ^ self.history.keys()))
            raise ValueError(f"RankDetector.observe: ranks of other layers than before; the difference: {odd}")
        for name, rank in ranks.items():
            self.history[name].append(rank)
        epoch = len(next(iter(self.history.values()), ())) - 1
        if epoch < self.rule.window:
            return []
        threshold = self.rule.threshold_for(len(self.history) - len(self.settled))
        new = [
            name
            for name, seen in self.history.items()
            if name not in self.settled and self.rule.slope(seen) <= threshold
        ]
        self.settled.update((name, epoch) for name in new)
        return new

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"history": {name: list(seen) for name, seen in self.history.items()}, "settled": dict(self.settled)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state`` was.

        Raises:
            ValueError: it is of other layers.
        """
        if state["history"].keys() != self.history.keys():
            odd = ", ".join(sorted(state["history"].keys() ^ self.history.keys()))
            raise ValueError(f"RankDetector.load_state_dict: the state is of other layers; the difference: {odd}")
        self.history = {name: list(seen) for name, seen in state["history"].items()}
        self.settled = dict(state["settled"])
