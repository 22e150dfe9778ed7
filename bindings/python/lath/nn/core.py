# SPDX-License-Identifier: Apache-2.0
"""A weight in an orthogonal basis, ``W = U S Vh``: what training controllers see of the layers that hold one.

The form of Coquelin et al., "Harnessing Orthogonality to Train Low-Rank Neural Networks" (OIALR), arXiv 2401.08505: U
and Vh have orthonormal columns and rows and are frozen, the core S trains.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from ..factor import Decomposition, check_rank, merge


@dataclass(frozen=True)
class Core:
    """One ``W = U S Vh`` of a layer; its tensors are looked up at each access.

    Attributes:
        module: the layer.
        name: what the names of the three tensors begin with, "weight_" for a layer with one weight.
    """

    module: Module
    name: str = "weight_"

    @property
    def u(self) -> Tensor:
        """(out, rank), a buffer."""
        return getattr(self.module, f"{self.name}u")

    @property
    def s(self) -> Parameter:
        """(rank, rank), the parameter."""
        return getattr(self.module, f"{self.name}s")

    @property
    def vh(self) -> Tensor:
        """(rank, fan_in), a buffer."""
        return getattr(self.module, f"{self.name}vh")

    @property
    def rank(self) -> int:
        return self.s.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Of W: (out, fan_in)."""
        return self.u.shape[0], self.vh.shape[1]

    @property
    def limit(self) -> int:
        """The largest rank that W can have."""
        return min(self.shape)

    def dense(self) -> Tensor:
        """W; summed in float32 at least and rounded once."""
        with torch.no_grad():
            wide = torch.promote_types(self.s.dtype, torch.float32)
            return (self.u.to(wide) @ self.s.to(wide) @ self.vh.to(wide)).to(self.s.dtype)

    def folded(self) -> Tensor:
        """U S, (out, rank): with Vh the two factors of W."""
        with torch.no_grad():
            return merge(self.s.detach(), self.u)

    def replace_(self, u: Tensor, s: Tensor, vh: Tensor) -> None:
        """Take other tensors, perhaps of another rank, into memory of exactly their size.

        The parameter stays the same object; its gradient is dropped, and so is what ``freeze`` keeps.
        """
        for key, given in ((f"{self.name}u", u), (f"{self.name}vh", vh)):
            setattr(self.module, key, _own(given, getattr(self.module, key)))
        parameter = self.s
        _assign(parameter, _own(s, parameter))
        parameter.grad = None
        self.module.unfreeze()

    def resize_(self, rank: int) -> None:
        """Have another rank, and no values yet. All else as :meth:`replace_`."""
        out, fan_in = self.shape
        self.replace_(self.u.new_empty(out, rank), self.s.new_empty(rank, rank), self.vh.new_empty(rank, fan_in))

    def factor_(self, found: Decomposition) -> None:
        """Take the first ``rank`` singular triplets of a weight."""
        self.replace_(*triplets(found, self.rank))


def triplets(found: Decomposition, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The first ``rank`` singular triplets of a weight as u, s (a diagonal matrix) and vh, in its type."""
    cut = found.u[:, :rank], found.s[:rank].diag(), found.vh[:rank]
    u, s, vh = (t.to(found.dtype, copy=True, memory_format=torch.contiguous_format) for t in cut)
    return u, s, vh


def check_core_rank(rank: object, limit: int, what: str) -> int:
    """A rank that orthonormal bases can have.

    Raises:
        TypeError: not an int.
        ValueError: below 1, or above ``limit``, the smaller side of the weight.
    """
    check_rank(rank, what)
    if rank > limit:
        raise ValueError(f"{what}: rank is {rank}, expected at most {limit}, the smaller side of the weight")
    return rank


def _own(given: Tensor, like: Tensor) -> Tensor:
    """A contiguous copy, of the device and type of ``like``."""
    return given.detach().to(like.device, like.dtype, copy=True, memory_format=torch.contiguous_format)


def _assign(parameter: Parameter, given: Tensor) -> None:
    """``parameter.data = given``, so that gradients have the new shape too.

    Where a graph of an earlier call is alive still, as through a ``loss`` that a training loop holds, the node that
    accumulates the gradient is kept, with the shape that it had. torch makes a new one only for another type.
    """
    if given.shape != parameter.shape:
        other = torch.float32 if parameter.dtype == torch.float64 else torch.float64
        parameter.data = torch.empty(0, dtype=other, device=parameter.device)
    parameter.data = given
