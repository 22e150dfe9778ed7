# SPDX-License-Identifier: Apache-2.0
"""Factoring a dense weight: truncated singular value decomposition, split evenly between the two factors.

``W ~ U V`` with ``U = U_r sqrt(S_r)`` and ``V = sqrt(S_r) V_r^T``: the best approximation of that rank in the Frobenius
norm (Eckart and Young 1936), and the "spectral" initialization of Khodak et al., ICLR 2021.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def check_rank(rank: object, what: str) -> int:
    """``rank`` if it is a positive int.

    Raises:
        TypeError: not an int (bool is none).
        ValueError: zero or negative.
    """
    if isinstance(rank, bool) or not isinstance(rank, int):
        raise TypeError(f"{what}: rank is {rank!r}, expected an int")
    if rank < 1:
        raise ValueError(f"{what}: rank is {rank}, expected 1 or more")
    return rank


def break_even_rank(in_features: int, out_features: int) -> int:
    """The largest rank whose factors cost less than the dense weight, in multiply-adds and in numbers; 0 for none."""
    return max(0, (in_features * out_features - 1) // max(1, in_features + out_features))


@dataclass(frozen=True)
class Decomposition:
    """``weight = u diag(s) vh``, computed in float64 for float64 weights and in float32 for all others."""

    u: Tensor
    s: Tensor
    vh: Tensor
    dtype: torch.dtype  # of the weight

    @classmethod
    def of(cls, weight: Tensor, what: str) -> Decomposition:
        """Decompose ``weight``; ``what`` names it in errors.

        Raises:
            TypeError: not a floating-point matrix.
            ValueError: NaN or infinity in the weight, or a weight without data.
        """
        if weight.dim() != 2 or not weight.is_floating_point():
            got = f"shape {tuple(weight.shape)} and {weight.dtype}"
            raise TypeError(f"{what}: cannot factor a tensor of {got}, expected a real matrix")
        if weight.is_meta:
            raise ValueError(f"{what}: the weight is on the meta device and has no values to factor")
        with torch.no_grad():
            wide = weight.detach().to(torch.float64 if weight.dtype == torch.float64 else torch.float32)
            if not torch.isfinite(wide).all():
                raise ValueError(f"{what}: the weight contains NaN or infinity and cannot be factored")
            u, s, vh = torch.linalg.svd(wide, full_matrices=False)
        return cls(u, s, vh, weight.dtype)

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """``(weight_v, weight_u)`` of shapes (rank, in) and (out, rank); zero beyond min(in, out)."""
        kept = min(rank, self.s.numel())
        root = self.s[:kept].sqrt()
        weight_v = self.vh.new_zeros(rank, self.vh.shape[1], dtype=self.dtype)
        weight_u = self.u.new_zeros(self.u.shape[0], rank, dtype=self.dtype)
        weight_v[:kept] = root[:, None] * self.vh[:kept]
        weight_u[:, :kept] = self.u[:, :kept] * root
        return weight_v, weight_u

    def rank_for_energy(self, energy: float) -> int:
        """The smallest rank whose singular values hold the share ``energy`` of the sum of squares."""
        squares = self.s.double().square().cumsum(0)
        if squares.numel() == 0 or squares[-1] == 0:
            return 1
        reached = squares >= energy * squares[-1]
        return int(reached.int().argmax()) + 1


def merge(weight_v: Tensor, weight_u: Tensor) -> Tensor:
    """``weight_u @ weight_v``, summed in float32 at least and rounded once."""
    if weight_v.dtype in (torch.float32, torch.float64):
        return weight_u @ weight_v
    return (weight_u.float() @ weight_v.float()).to(weight_v.dtype)


def merge_bias(weight_u: Tensor, bias: Tensor | None, inner_bias: Tensor | None) -> Tensor | None:
    """``bias + weight_u @ inner_bias``: the bias of the dense layer, None if there is neither."""
    if inner_bias is None:
        return None if bias is None else bias.clone()
    wide = torch.float64 if weight_u.dtype == torch.float64 else torch.float32
    total = weight_u.to(wide) @ inner_bias.to(wide)
    return (total if bias is None else total + bias.to(wide)).to(weight_u.dtype)
