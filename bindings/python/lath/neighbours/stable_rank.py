# SPDX-License-Identifier: Apache-2.0
"""Ranks by the stable rank, as Cuttlefish estimates them while the dense network trains (Wang et al., MLSys 2023).

The stable rank ``||W||_F^2 / ||W||_2^2`` says how many directions carry a weight. It is small even for weights that
were just drawn, (1 + sqrt(m/n))^-2 of the full rank for m x n independent numbers, so Cuttlefish scales it: with the
factor that makes it the full rank at the start of training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..convert import Selection
from ..factor import CONV_MODES
from ..specs import LowRank
from ..survey import Site
from .candidates import candidates, full_rank, weight_matrices

_METRICS = ("scaled", "vanilla")


@torch.no_grad()
def stable_rank(weight: Tensor) -> Tensor:
    """``||W||_F^2 / ||W||_2^2`` of a matrix, or of each one of a stack.

    From the eigenvalues of the smaller Gram matrix, which costs a fraction of a singular value decomposition; that
    small ones are inexact does not matter to the sum.

    Args:
        weight: (..., m, n), real; computed in float64 if it is float64, else in float32.

    Returns:
        (...): from 1 to min(m, n); 0 for a matrix of zeros.

    Raises:
        TypeError: fewer than two dimensions, or not floating-point.
        ValueError: NaN or infinity in the weight, or no elements.
    """
    if weight.dim() < 2 or not weight.is_floating_point():
        got = f"shape {tuple(weight.shape)} and {weight.dtype}"
        raise TypeError(f"lath.stable_rank: weight has {got}, expected real matrices")
    if weight.numel() == 0 or weight.is_meta:
        got = f"shape {tuple(weight.shape)} on {weight.device}"
        raise ValueError(f"lath.stable_rank: weight has {got}, expected a matrix with values")
    wide = weight.detach().to(torch.float64 if weight.dtype == torch.float64 else torch.float32)
    largest = wide.abs().amax((-2, -1), keepdim=True)
    if not torch.isfinite(largest).all():
        raise ValueError("lath.stable_rank: the weight contains NaN or infinity")
    wide = wide / torch.where(largest == 0, torch.ones_like(largest), largest)  # squares must not overflow
    gram = wide @ wide.mT if wide.shape[-2] <= wide.shape[-1] else wide.mT @ wide
    squares = torch.linalg.eigvalsh(gram).clamp_(min=0)
    top = squares.amax(-1)
    return torch.where(top == 0, torch.zeros_like(top), squares.sum(-1) / torch.where(top == 0, 1, top))


@torch.no_grad()
def stable_ranks(
    model: nn.Module, conv: str = "pointwise", include: Selection = None, exclude: Selection = None
) -> dict[str, float]:
    """The stable rank of every layer that ``lath.convert`` could factor, by qualified name.

    A layer with several matrices (groups, projections of attention, recurrent weights) has that of the largest.

    Args:
        model: with dense layers, which stay as they are.
        conv: form in which a convolution is a matrix, as in ``lath.LowRank``.
        include: as for ``lath.convert``.
        exclude: as for ``lath.convert``.

    Raises:
        TypeError: an argument of a wrong type.
        ValueError: an unknown form, no such layer, or NaN in a weight.
    """
    if conv not in CONV_MODES:
        raise ValueError(f"lath.stable_ranks: conv is {conv!r}, expected one of {CONV_MODES}")
    sites = candidates(model, LowRank(rank=1), include, exclude, "lath.stable_ranks")
    return {site.name: _of_layer(site, conv) for site in sites}


def _of_layer(site: Site, conv: str) -> float:
    try:
        return max(float(stable_rank(matrix).max()) for matrix in weight_matrices(site.module, conv))
    except ValueError as error:
        raise ValueError(f"layer {site.name!r}: {error}") from error


@dataclass(frozen=True)
class Estimate:
    """The rank of one layer at one time.

    Attributes:
        full: the largest rank that its weight can have.
        stable: its stable rank, cut off to an integer; 1 at least.
    """

    full: int
    stable: int


def estimates(sites: list[Site], conv: str) -> dict[str, Estimate]:
    """Of these layers, by name."""
    return {
        site.name: Estimate(full_rank(weight_matrices(site.module, conv)), max(1, int(_of_layer(site, conv))))
        for site in sites
    }


@dataclass(frozen=True)
class StableRank:
    """Ranks from the stable rank at the time of the switch, for ``lath.WarmupThenFactor``.

    With sr the stable rank cut off to an integer, full = min(m, n) and xi = full / sr of the weight at the start:

    ===========  ==========================
    metric       rank
    ===========  ==========================
    ``scaled``   ``ceil(xi sr)``, at most full
    ``vanilla``  ``sr``
    ===========  ==========================

    A layer whose rank would not be cheaper than its dense weight stays dense.

    Attributes:
        metric: "scaled" or "vanilla".
        floor: ranks are full // floor at least: 5 for the CNNs on ImageNet, 2 for DeiT and ResMLP; None for no bound.
        conv, inner_bias, tune, skip_first, skip_last: as in ``lath.LowRank``.

    Raises:
        TypeError, ValueError: at construction, for a value outside of the above.
    """

    metric: str = "scaled"
    floor: int | None = None
    conv: str = "pointwise"
    inner_bias: bool = False
    tune: bool = False
    skip_first: int = 0
    skip_last: int = 0

    def __post_init__(self) -> None:
        if self.metric not in _METRICS:
            raise ValueError(f"StableRank: metric is {self.metric!r}, expected one of {_METRICS}")
        if self.floor is not None:
            if isinstance(self.floor, bool) or not isinstance(self.floor, int):
                raise TypeError(f"StableRank: floor is {self.floor!r}, expected an int or None")
            if self.floor < 1:
                raise ValueError(f"StableRank: floor is {self.floor}, expected 1 or more")
        self.low_rank({"": 1})  # the checks of the fields that it shares

    def rank(self, now: Estimate, start: Estimate) -> int:
        """Of a layer, from what was estimated now and at the start of training."""
        rank = now.stable
        if self.metric == "scaled":
            # In whole numbers: a factor in doubles could lift a product that is exact above its integer.
            rank = -(-now.full * now.stable // start.stable)
        least = 1 if self.floor is None else now.full // self.floor
        return min(now.full, max(rank, least, 1))

    def low_rank(self, ranks: Mapping[str, int]) -> LowRank:
        """The spec for ``lath.convert`` with these ranks."""
        return LowRank(
            rank=dict(ranks),
            conv=self.conv,
            inner_bias=self.inner_bias,
            tune=self.tune,
            skip_first=self.skip_first,
            skip_last=self.skip_last,
        )
