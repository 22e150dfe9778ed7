# SPDX-License-Identifier: Apache-2.0
"""The operators of low-rank convolutions for CUDA tensors: two convolutions of torch's library.

A thin convolution is what cuDNN is good at, so there is no kernel of lath's own. :func:`lath.ops.lowrank_conv2d` calls
the two convolutions itself, under torch's autograd; these kernels give the raw operators the same contract as on the
CPU, for exported programs and for ``kernel="fused"``. The intermediate has the type and the memory format of x.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from . import _conv
from ._fake import check_bias, check_conv, check_dtypes


def _biased(shape: tuple[int, ...], like: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution without terms: the bias in every pixel."""
    y = like.new_zeros(shape)
    return y if bias is None else y + bias[:, None, None]


def _convolve(x: Tensor, weight: Tensor, bias: Tensor, stage: _conv.Stage, groups: int, shape) -> Tensor:
    bias = bias if bias.numel() else None
    if x.numel() == 0 or weight.numel() == 0:  # the library refuses them
        return _biased(shape, x, bias)
    return _conv.convolve(x, weight, bias, stage, groups)


def _in_format_of(x: Tensor, t: Tensor) -> Tensor:
    return t.contiguous(memory_format=suggest_memory_format(x))


def _check_layout(x: Tensor) -> None:
    if x.layout is not torch.strided:
        raise RuntimeError("lath::lowrank_conv2d: x: got a sparse tensor, expected a dense one (try .to_dense())")


def _intermediate(x, weight_v, inner_bias, g: _conv.Geometry, shape) -> Tensor:
    return _in_format_of(x, _convolve(x, weight_v, inner_bias, _conv.stages(g)[0], g.groups, shape))


def _output(x, p, weight_u, bias, g: _conv.Geometry, shape) -> Tensor:
    return _in_format_of(x, _convolve(p, weight_u, bias, _conv.stages(g)[1], g.groups, shape))


def _forward(name: str, x, weight_v, weight_u, bias, inner_bias, geometry) -> tuple[Tensor, Tensor]:
    g = _conv.Geometry(*geometry)
    _check_layout(x)
    y_shape, p_shape = check_conv(name, x, weight_v, weight_u, inner_bias, g)
    check_bias(name, "bias", bias, weight_u.shape[0], x)
    p = _intermediate(x, weight_v, inner_bias, g, p_shape)
    return _output(x, p, weight_u, bias, g, y_shape), p


def lowrank_conv2d(x, weight_v, weight_u, bias, inner_bias, *geometry) -> Tensor:
    return _forward("lowrank_conv2d", x, weight_v, weight_u, bias, inner_bias, geometry)[0]


def lowrank_conv2d_forward(x, weight_v, weight_u, bias, inner_bias, *numbers) -> tuple[Tensor, Tensor]:
    geometry, save = numbers[:10], all(numbers[10:])
    y, p = _forward("lowrank_conv2d_forward", x, weight_v, weight_u, bias, inner_bias, geometry)
    return y, p if save else p.new_empty(0)


def lowrank_conv2d_backward(dy, x, weight_v, weight_u, inner_bias, p, *numbers) -> tuple[Tensor, ...]:
    name = "lowrank_conv2d_backward"
    g, mask = _conv.Geometry(*numbers[:10]), (*numbers[10:], 31)[0]
    _check_layout(x)
    y_shape, p_shape = check_conv(name, x, weight_v, weight_u, inner_bias, g)
    check_dtypes(name, "x", x, dy=dy)
    if tuple(dy.shape) != y_shape:
        raise RuntimeError(
            f"lath::{name}: dy: got shape {tuple(dy.shape)}, expected {y_shape}, the shape of the output"
        )
    if not 0 <= mask <= 31:
        raise RuntimeError(f"lath::{name}: mask: got {mask}, expected 0 to 31")
    if p.numel() == 0:
        p = _intermediate(x, weight_v, inner_bias, g, p_shape)
    else:
        check_dtypes(name, "x", x, p=p)
        if tuple(p.shape) != p_shape:
            raise RuntimeError(f"lath::{name}: p: got shape {tuple(p.shape)}, expected {p_shape}, or no elements")
    needs = [bool(mask >> bit & 1) for bit in range(5)]
    grads = _conv.composite_grads(dy, x, weight_v, weight_u, p, g, needs)
    dx, *rest = (grad if need else x.new_empty(0) for grad, need in zip(grads, needs, strict=True))
    return _in_format_of(x, dx) if needs[0] else dx, *(t.contiguous() for t in rest)


def register() -> torch.library.Library:
    """The kernels, for the life of the returned object."""
    library = torch.library.Library("lath", "IMPL")
    for kernel in (lowrank_conv2d, lowrank_conv2d_forward, lowrank_conv2d_backward):
        library.impl(kernel.__name__, kernel, "CUDA")
    return library


_library = register() if torch.version.cuda is not None else None
