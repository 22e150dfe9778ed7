# SPDX-License-Identifier: Apache-2.0
"""Factoring a dense weight: truncated singular value decomposition, split evenly between the two factors.

``W ~ U V`` with ``U = U_r sqrt(S_r)`` and ``V = sqrt(S_r) V_r^T``: the best approximation of that rank in the Frobenius
norm (Eckart and Young 1936), and the "spectral" initialization of Khodak et al., ICLR 2021.

The weight of a convolution is one matrix per group of channels, see :func:`conv_matrix`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

CONV_MODES = ("separable", "pointwise")  # enum lath_conv_form


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


def conv_break_even_rank(
    in_channels: int,
    out_channels: int,
    kernel_size: tuple[int, ...],
    mode: str = "separable",
    groups: int = 1,
    stride: tuple[int, ...] = (1, 1),
) -> int:
    """The same for a convolution, in multiply-adds for an output pixel: the largest rank of a group; 0 for none.

    A separable pair computes every row of the image before its second half leaves out what the vertical stride skips.
    Pointwise pairs may have any number of dimensions, and groups may share their first factor.
    """
    n, m, taps = in_channels // groups, out_channels // groups, math.prod(kernel_size)
    pair = n * kernel_size[1] * stride[0] + m * kernel_size[0] if mode == "separable" else n * taps + m
    return max(0, (n * m * taps - 1) // max(1, pair))


@dataclass(frozen=True)
class Decomposition:
    """``weight = u diag(s) vh``, computed in float64 for float64 weights and in float32 for all others.

    Attributes:
        u, s, vh: of a matrix, or of a stack of them, which all have the same rank then.
        dtype: of the weight.
    """

    u: Tensor
    s: Tensor
    vh: Tensor
    dtype: torch.dtype

    @classmethod
    def of(cls, weight: Tensor, what: str) -> Decomposition:
        """Decompose ``weight``, a matrix or a stack of matrices; ``what`` names it in errors.

        Raises:
            TypeError: not floating-point, or of other dimensions.
            ValueError: NaN or infinity in the weight, or a weight without data.
        """
        if weight.dim() not in (2, 3) or not weight.is_floating_point():
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
        """``(weight_v, weight_u)`` of shapes (..., rank, in) and (..., out, rank); zero beyond min(in, out)."""
        kept = min(rank, self.s.shape[-1])
        root = self.s[..., :kept].sqrt()
        *stack, _, in_features = self.vh.shape
        weight_v = self.vh.new_zeros(*stack, rank, in_features, dtype=self.dtype)
        weight_u = self.u.new_zeros(*self.u.shape[:-1], rank, dtype=self.dtype)
        weight_v[..., :kept, :] = root[..., :, None] * self.vh[..., :kept, :]
        weight_u[..., :kept] = self.u[..., :kept] * root[..., None, :]
        return weight_v, weight_u

    def rank_for_energy(self, energy: float) -> int:
        """The smallest rank whose singular values hold the share ``energy`` of the sum of squares (of all matrices)."""
        squares = self.s.double().square().reshape(-1, self.s.shape[-1]).sum(0).cumsum(0)
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


def conv_matrix(weight: Tensor, mode: str, groups: int = 1) -> Tensor:
    """The matrices of a convolution (out, in / groups, kh, kw) that its two factors multiply to, one per group.

    Returns:
        "separable" (groups, out / groups * kh, in / groups * kw): a row is an output channel and a vertical tap, a
        column an input channel and a horizontal one. "pointwise" (groups, out / groups, in / groups * kh * kw).
    """
    out, n, kernel_h, kernel_w = weight.shape
    m = out // groups
    if mode == "pointwise":
        return weight.reshape(groups, m, n * kernel_h * kernel_w)
    # The axes of a row first: a plain reshape would pair vertical taps with input channels.
    rows = weight.reshape(groups, m, n, kernel_h, kernel_w).permute(0, 1, 3, 2, 4)
    return rows.reshape(groups, m * kernel_h, n * kernel_w)


def conv_factors(v: Tensor, u: Tensor, mode: str, kernel_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Factors of :func:`conv_matrix`, (groups, rank, cols) and (groups, rows, rank), as weights of two convolutions.

    Returns:
        ``(weight_v, weight_u)``: "separable" (groups * rank, in / groups, 1, kw) and (out, rank, kh, 1); "pointwise"
        (groups * rank, in / groups, kh, kw) and (out, rank, 1, 1).
    """
    (groups, rank, cols), rows = v.shape, u.shape[1]
    kernel_h, kernel_w = kernel_size
    if mode == "pointwise":
        weight_v = v.reshape(groups * rank, cols // (kernel_h * kernel_w), kernel_h, kernel_w)
        return weight_v, u.reshape(groups * rows, rank, 1, 1)
    weight_u = u.reshape(groups * rows // kernel_h, kernel_h, rank).permute(0, 2, 1)
    return v.reshape(groups * rank, cols // kernel_w, 1, kernel_w), weight_u.unsqueeze(-1).contiguous()


def conv_factor_matrices(weight_v: Tensor, weight_u: Tensor, groups: int = 1) -> tuple[Tensor, Tensor]:
    """The inverse of :func:`conv_factors`: ``(v, u)``, (groups, rank, cols) and (groups, rows, rank), contiguous."""
    ranks, n, taps_v, kernel_w = weight_v.shape
    out, rank, taps_u, _ = weight_u.shape
    v = weight_v.reshape(groups, ranks // groups, n * taps_v * kernel_w)
    u = weight_u.reshape(groups, out // groups, rank, taps_u).permute(0, 1, 3, 2)
    return v.contiguous(), u.reshape(groups, out // groups * taps_u, rank).contiguous()


def merge_conv(weight_v: Tensor, weight_u: Tensor, groups: int = 1) -> Tensor:
    """The dense weight (out, in / groups, kh, kw) of the two convolutions, summed as :func:`merge` does."""
    (_, n, taps_v, kernel_w), (out, _, taps_u, _) = weight_v.shape, weight_u.shape
    product = merge(*conv_factor_matrices(weight_v, weight_u, groups))
    # Either taps_u or taps_v is 1, whatever the form: together they are the vertical taps.
    weight = product.reshape(groups, out // groups, taps_u, n, taps_v, kernel_w).permute(0, 1, 3, 2, 4, 5)
    # A reshape may be a view of adjacent vertical taps, which torch's convolutions turn at every call.
    return weight.reshape(out, n, taps_u * taps_v, kernel_w).contiguous()


def merge_conv_bias(weight_u: Tensor, bias: Tensor | None, inner_bias: Tensor | None, groups: int = 1) -> Tensor | None:
    """The bias of the dense convolution, None if there is neither.

    Exact where no vertical tap of ``weight_u`` meets padding: the inner bias is not added to zeros of padding.
    """
    if inner_bias is None:
        return merge_bias(weight_u, bias, None)
    out, rank = weight_u.shape[:2]
    taps = weight_u.double().sum((2, 3)).reshape(groups, out // groups, rank)
    total = (taps @ inner_bias.double().reshape(groups, rank, 1)).reshape(out)
    return (total if bias is None else total + bias.double()).to(weight_u.dtype)
