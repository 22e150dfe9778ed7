# SPDX-License-Identifier: Apache-2.0
"""What the tests compare with: plain formulas in float64, error bounds, and the generator of the golden values."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
EPS = {torch.float32: 2.0**-24, torch.float64: 2.0**-53, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def lowrank(x: Tensor, v: Tensor, u: Tensor, bias: Tensor | None = None, inner_bias: Tensor | None = None) -> Tensor:
    """(x v^T + inner_bias) u^T + bias in float64."""
    y = x.double() @ v.double().mT
    if inner_bias is not None:
        y = y + inner_bias.double()
    y = y @ u.double().mT
    return y if bias is None else y + bias.double()


def assert_close_lowrank(y: Tensor, x: Tensor, v: Tensor, u: Tensor, bias=None, inner_bias=None) -> None:
    """Within the bound of an inner product: a multiple of eps times the same sums over absolute values.

    Sums are kept in float32 at least, so bfloat16 adds the rounding of the result, and of the merged weight.
    """
    size = lowrank(*(None if t is None else t.double().abs() for t in (x, v, u, bias, inner_bias)))
    sums = EPS[torch.float64 if y.dtype == torch.float64 else torch.float32]
    terms = x.shape[-1] + v.shape[0] + 4
    bound = (terms * sums + (2 * EPS[y.dtype] if y.dtype.itemsize == 2 else 0)) * size
    error = (y.double() - lowrank(x, v, u, bias, inner_bias)).abs()
    worst = (error - bound).max().item() if error.numel() else -math.inf
    assert worst <= 0, f"error exceeds its bound by {worst:.3g}"


def lowrank_conv2d(
    x: Tensor, v: Tensor, u: Tensor, bias: Tensor | None, inner_bias: Tensor | None, *geometry
) -> Tensor:
    """Two convolutions in float64, all padding done beforehand; geometry as in bindings/torch/operators.h."""
    stride_h, stride_w, top, bottom, left, right, dilation_h, dilation_w, groups, separable = geometry
    rows = {"stride": (stride_h, 1), "dilation": (dilation_h, 1)}
    columns = {"stride": (1, stride_w), "dilation": (1, dilation_w)}
    both = {"stride": (stride_h, stride_w), "dilation": (dilation_h, dilation_w)}
    x, v, u, bias, inner_bias = (None if t is None else t.double() for t in (x, v, u, bias, inner_bias))
    x = pad(x, (left, right, 0, 0) if separable else (left, right, top, bottom))
    p = conv2d(x, v, inner_bias, **columns if separable else both, groups=groups)
    p = pad(p, (0, 0, top, bottom)) if separable else p
    return conv2d(p, u, bias, **rows if separable else {}, groups=groups)


LIBRARY_SLACK = 16  # convolutions of a library may transform images and filters, which costs a few bits


def conv_bound(dtype: torch.dtype, terms: int, size: Tensor) -> Tensor:
    """What rounding may do to sums of so many terms, whose absolute values add up to ``size``.

    bfloat16 adds the rounding of a result, of an intermediate or merged weight, and of a bias.
    """
    sums = EPS[torch.float64 if dtype == torch.float64 else torch.float32]
    sums *= LIBRARY_SLACK if size.is_cuda else 1
    return ((terms + 4) * sums + (4 * EPS[dtype] if dtype.itemsize == 2 else 0)) * size


def assert_close_conv(y: Tensor, x: Tensor, v: Tensor, u: Tensor, bias, inner_bias, *geometry) -> None:
    """As assert_close_lowrank, for a convolution."""
    size = lowrank_conv2d(*(None if t is None else t.double().abs() for t in (x, v, u, bias, inner_bias)), *geometry)
    expected = lowrank_conv2d(x, v, u, bias, inner_bias, *geometry)
    assert y.shape == expected.shape
    error = (y.double() - expected).abs() - conv_bound(y.dtype, v[0].numel() + u[0].numel(), size)
    worst = error.max().item() if error.numel() else -math.inf
    assert worst <= 0, f"error exceeds its bound by {worst:.3g}"


def gen(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    """Numbers in [-scale, scale) from a 32-bit mix of seed and position: the same everywhere and forever."""
    import numpy as np

    mask = 0xFFFFFFFF
    x = (seed * 100003 + np.arange(math.prod(shape), dtype=np.uint64)) & mask
    x ^= x >> 16
    x = x * 0x7FEB352D & mask
    x ^= x >> 15
    x = x * 0x846CA68B & mask
    x ^= x >> 16
    return torch.from_numpy(2 * scale * (x / 2.0**32 - 0.5)).reshape(shape)


def checksums(t: Tensor) -> tuple[float, float, float]:
    """Sum, sum weighted by ((k mod 7) - 3), sum of squares."""
    t = t.detach().double().flatten()
    weights = torch.arange(t.numel(), dtype=torch.float64) % 7 - 3
    return t.sum().item(), (t * weights).sum().item(), t.square().sum().item()
