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

    def dense(self) -> Tensor:
        """W."""
        with torch.no_grad():
            return self.u @ self.s @ self.vh

    def replace_(self, u: Tensor, s: Tensor, vh: Tensor) -> None:
        """Take other tensors, perhaps of another rank, into memory of exactly their size.

        The parameter stays the same object; its gradient is dropped, and so is what ``freeze`` keeps.
        """
        for key, given in ((f"{self.name}u", u), (f"{self.name}vh", vh)):
            old = getattr(self.module, key)
            setattr(self.module, key, given.detach().to(old.device, old.dtype, copy=True).contiguous())
        parameter = self.s
        parameter.data = s.detach().to(parameter.device, parameter.dtype, copy=True).contiguous()
        parameter.grad = None
        self.module.unfreeze()
