# SPDX-License-Identifier: Apache-2.0
"""Which rank each weight of a model has after an update: a rule for the spectrum, guards, and a user's bounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from . import ranks
from ._cores import Weight

_WHAT = "lath.OIALRController"


@dataclass(frozen=True)
class RankPolicy:
    """The arguments of ``lath.OIALRController`` about ranks, checked; see there.

    Raises:
        TypeError, ValueError: at construction.
    """

    cutoff: float | Mapping[str, float] = 0.1
    energy: float | Mapping[str, float] | None = None
    stable_rank: float | Mapping[str, float] | None = None
    target: float | None = None
    max_rank: int | Mapping[str, int] | None = None
    min_rank: int | Mapping[str, int] | None = None
    multiple: int = 1
    growth: int = 0

    def __post_init__(self) -> None:
        _each("cutoff", self.cutoff, share)
        if sum(rule is not None for rule in (self.energy, self.stable_rank, self.target)) > 1:
            raise ValueError(f"{_WHAT}: expected at most one of energy, stable_rank and target")
        _each("energy", self.energy, share)
        _each("stable_rank", self.stable_rank, positive)
        if self.target is not None:
            share(f"{_WHAT}: target", self.target)
        for name in ("max_rank", "min_rank"):
            _each(name, getattr(self, name), lambda what, value: count(what, value, 1))
        count(f"{_WHAT}: multiple", self.multiple, 1)
        count(f"{_WHAT}: growth", self.growth, 0)

    def choose(self, weights: list[Weight], spectra: dict[str, Tensor]) -> dict[str, int]:
        """The rank of each weight that has a spectrum here, by name; ``weights`` are all that there are."""
        active = [w for w in weights if w.key in spectra]
        if self.target is None:
            wanted = [self._wanted(w, spectra[w.key]) for w in active]
        else:
            wanted = self._within_target(weights, active, spectra)
        return {w.key: self._bounded(w, rank) for w, rank in zip(active, wanted, strict=True)}

    def _wanted(self, weight: Weight, sigma: Tensor) -> int:
        if self.energy is not None:
            return ranks.energy_rank(sigma, ranks.of_layer(self.energy, weight.names, 1.0))
        if self.stable_rank is not None:
            factor = ranks.of_layer(self.stable_rank, weight.names)
            return sigma.numel() if factor is None else ranks.stable_rank_rank(sigma, factor)
        return ranks.above_cutoff(sigma, ranks.of_layer(self.cutoff, weight.names, 0.1))

    def _within_target(self, weights: list[Weight], active: list[Weight], spectra: dict[str, Tensor]) -> list[int]:
        budget = self.target * sum(math.prod(w.core.shape) for w in weights)
        budget -= sum(ranks.stored(w.rank, w.core.shape) for w in weights if w.key not in spectra)
        return ranks.budget_ranks([spectra[w.key] for w in active], [w.core.shape for w in active], budget)

    def _bounded(self, weight: Weight, wanted: int) -> int:
        """Guards, then the user's bounds; more than the rank before if all is wanted and there may be growth."""
        before, side = weight.rank, weight.small_side
        floor = min(before, ranks.of_layer(self.min_rank, weight.names) or 1)
        rank = max(ranks.guarded(wanted, before, side), floor)
        if self.growth and wanted >= before:
            rank = before + self.growth
        rank = -(-rank // self.multiple) * self.multiple
        cap = ranks.of_layer(self.max_rank, weight.names) or side
        return min(rank, cap, side if self.growth else before)


def _each(name: str, given: Any, check: Callable[[str, Any], Any]) -> None:
    """Check a value, or those of a mapping of globs; None is fine."""
    if isinstance(given, Mapping):
        for glob, value in given.items():
            check(f"{_WHAT}: {name} of {glob!r}", value)
    elif given is not None:
        check(f"{_WHAT}: {name}", given)


def count(what: str, value: Any, least: int) -> int:
    """``value`` if it is an int of ``least`` or more; ``what`` names it in errors."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} is {value!r}, expected an int")
    if value < least:
        raise ValueError(f"{what} is {value}, expected {least} or more")
    return value


def number(what: str, value: Any) -> float:
    """``value`` if it is a number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{what} is {value!r}, expected a number")
    if math.isnan(value):
        raise ValueError(f"{what} is {value!r}, expected a number")
    return value


def share(what: str, value: Any) -> float:
    """``value`` if it is above 0 and at most 1."""
    if not 0.0 < number(what, value) <= 1.0:
        raise ValueError(f"{what} is {value!r}, expected a number above 0 and at most 1")
    return value


def positive(what: str, value: Any) -> float:
    """``value`` if it is above 0."""
    if not number(what, value) > 0:
        raise ValueError(f"{what} is {value!r}, expected a number above 0")
    return value
