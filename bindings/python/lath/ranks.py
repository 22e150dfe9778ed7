# SPDX-License-Identifier: Apache-2.0
"""How many singular values a weight keeps: rules on its spectrum.

The rule of the method is a cutoff, a share of the largest singular value (Coquelin et al., arXiv 2401.08505; the guards
are those of its reference package). The others take its place where a user asks for them: a share of the energy, a
multiple of the stable rank (Wang et al., "Cuttlefish", MLSys 2023), and a budget of numbers for all weights together.

Spectra are vectors in descending order, in main memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor

_FLOOR = 0.01  # of the smaller side of the weight
_GUARD = 0.5  # of the rank before
_BISECTIONS = 60  # as many as the digits of a double need


def above_cutoff(sigma: Tensor, cutoff: float, reference: int = 0) -> int:
    """How many values come before the first one that is less than ``cutoff`` times that at position ``reference``."""
    if not sigma.numel():
        return 0
    below = sigma < cutoff * sigma[min(reference, sigma.numel() - 1)]
    return int(below.int().argmax()) if below.any() else sigma.numel()


def floor_rank(small_side: int) -> int:
    """What a weight with so many rows or columns, the smaller number, keeps whatever its spectrum; it may be 0."""
    return int(_FLOOR * small_side)


def guarded(wanted: int, rank: int, small_side: int) -> int:
    """``wanted`` within the guards: never less than half of ``rank`` in one step, never below the floor, never more.

    Args:
        wanted: what a rule gives.
        rank: the rank before.
        small_side: of the weight.
    """
    floor = floor_rank(small_side)
    half = _GUARD * rank
    if wanted < half and half > floor:
        wanted = int(half)
    elif wanted < floor:
        wanted = floor
    return max(1, min(wanted, rank))


def cutoff_rank(sigma: Tensor, cutoff: float, small_side: int) -> int:
    """The rank that a basis update leaves: above the cutoff, within the guards (section "rank reduction").

    >>> cutoff_rank(torch.tensor([1, 0.9, 0.8, 0.05, 0.04, 0.03, 0.02, 0.01]), 0.1, 8)
    4
    """
    return guarded(above_cutoff(sigma, cutoff), sigma.numel(), small_side)


def energy_rank(sigma: Tensor, energy: float) -> int:
    """The smallest rank that holds the share ``energy`` of the sum of squares; 1 for a zero weight."""
    squares = sigma.double().square().cumsum(0)
    if not squares.numel() or squares[-1] == 0:
        return 1
    return 1 + int((squares < energy * squares[-1]).sum())


def stable_rank(sigma: Tensor) -> float:
    """``||W||_F^2 / ||W||_2^2``, between 1 and the rank; 0 for a zero weight.

    With orthonormal bases that of W is that of its core.
    """
    squares = sigma.double().square()
    return float(squares.sum() / squares[0]) if squares.numel() and squares[0] > 0 else 0.0


def stable_rank_rank(sigma: Tensor, factor: float) -> int:
    """``ceil(factor * stable rank)``, between 1 and the number of values."""
    return max(1, min(sigma.numel(), math.ceil(factor * stable_rank(sigma))))


def stored(rank: int, shape: tuple[int, int]) -> int:
    """Numbers in U, S and Vh."""
    return rank * (shape[0] + shape[1] + rank)


def budget_ranks(spectra: Sequence[Tensor], shapes: Sequence[tuple[int, int]], numbers: float) -> list[int]:
    """Ranks at which all weights together store at most ``numbers``: the same share of the energy everywhere.

    Where rank 1 everywhere is too much already, the ranks are 1.
    """

    def ranks(energy: float) -> list[int]:
        return [min(energy_rank(sigma, energy), sigma.numel()) for sigma in spectra]

    def fits(energy: float) -> bool:
        return sum(map(stored, ranks(energy), shapes)) <= numbers

    if fits(1.0):
        return ranks(1.0)
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return ranks(low)


def layers_due(layers: int, updates: int, share: float, reference: bool = False) -> int:
    """How many layers, the last ones of the model first, take part in update number ``updates``, counted from 1.

    Each update adds ``ceil((layers - 1) * share)``, at least one. The reference truncates instead, and where that gives
    none, as for 10 layers and fewer at its share of 0.1, an empty slice makes it take all.
    """
    if reference:
        grown = updates * int((layers - 1) * share)
        return min(grown, layers) if grown else layers
    if share >= 1.0:
        return layers
    # 100 * 0.07 is 7.000000000000001, whose ceiling is not meant.
    return min(layers, updates * max(1, math.ceil((layers - 1) * share - 1e-9)))


def of_layer(given: Any, names: Sequence[str], default: Any = None) -> Any:
    """The value for a layer: ``given`` itself, or what a mapping of globs has for one of its names.

    An exact name comes first, then the first glob that matches, then ``default``.
    """
    if not isinstance(given, Mapping):
        return given
    for name in names:
        if name in given:
            return given[name]
    return next((v for glob, v in given.items() if any(fnmatchcase(name, glob) for name in names)), default)
