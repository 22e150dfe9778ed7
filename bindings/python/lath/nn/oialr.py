# SPDX-License-Identifier: Apache-2.0
"""Layers whose weight is ``U S Vh`` with frozen orthonormal bases and a core that trains."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Linear, Parameter

from ..factor import Decomposition
from ..ops import oialr_linear
from .core import Core
from .freezable import Freezable


class OIALRLinear(Freezable):
    """A linear layer in an orthogonal basis."""

    def __init__(
        self, in_features: int, out_features: int, rank: int, bias: bool = True, device=None, dtype=None
    ) -> None:
        super().__init__()
        kind = {"device": device, "dtype": dtype}
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer("weight_u", torch.empty(out_features, rank, **kind))
        self.register_buffer("weight_vh", torch.empty(rank, in_features, **kind))
        self.weight_s = Parameter(torch.empty(rank, rank, **kind))
        self.register_parameter("bias", Parameter(torch.empty(out_features, **kind)) if bias else None)

    @property
    def rank(self) -> int:
        return self.weight_s.shape[0]

    @classmethod
    def from_dense(cls, module: Linear, rank: int | None = None, *, decomposition=None) -> OIALRLinear:
        """The layer closest to ``module``; it takes over the bias itself."""
        found = decomposition or Decomposition.of(module.weight, "OIALRLinear.from_dense")
        kept = found.s.numel() if rank is None else rank
        kind = {"device": module.weight.device, "dtype": module.weight.dtype}
        layer = cls(module.in_features, module.out_features, kept, bias=False, **kind)
        layer.cores()[0].replace_(found.u[:, :kept], found.s[:kept].diag(), found.vh[:kept])
        layer.bias = module.bias
        return layer.train(module.training)

    def to_dense(self) -> Linear:
        kind = {"device": self.weight_s.device, "dtype": self.weight_s.dtype}
        dense = Linear(self.in_features, self.out_features, self.bias is not None, **kind)
        with torch.no_grad():
            dense.weight.copy_(self.cores()[0].dense())
            if self.bias is not None:
                dense.bias.copy_(self.bias)
        return dense.train(self.training)

    def cores(self) -> tuple[Core, ...]:
        return (Core(self),)

    def forward(self, x: Tensor) -> Tensor:
        return oialr_linear(x, self.weight_vh, self.weight_s, self.weight_u, self.bias)
