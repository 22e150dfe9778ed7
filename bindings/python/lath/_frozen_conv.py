# SPDX-License-Identifier: Apache-2.0
"""A convolution whose weight needs no gradient, which therefore keeps nothing of its input for the backward pass.

torch's own convolutions save their input whatever needs a gradient.
"""

from __future__ import annotations

import torch
import torch.autograd.forward_ad as _forward_ad
from torch import Tensor
from torch.nn.functional import conv1d, conv2d, conv3d

from ._padding import in_numbers

_CONVOLUTIONS = {3: conv1d, 4: conv2d, 5: conv3d}  # by dimensions of the weight
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def frozen_conv(
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, ...],
    padding: tuple[int, ...] | str,
    dilation: tuple[int, ...],
    groups: int,
) -> Tensor:
    """The function of ``conv1d``, ``conv2d`` or ``conv3d`` without a bias, with gradients for x alone where it can.

    That is in eager mode, for a weight that requires no gradient; otherwise it is torch's function.
    """
    convolve = _CONVOLUTIONS[weight.dim()]
    eager = not (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or _forward_ad._current_level >= 0
        or x.dim() != weight.dim()
    )
    if not eager or weight.requires_grad or not (x.requires_grad and torch.is_grad_enabled()):
        return convolve(x, weight, None, stride, padding, dilation, groups)
    if isinstance(padding, str):
        x, padding = in_numbers(x, weight.shape[2:], padding, dilation)
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = (t if t.dtype is torch.float64 else t.to(dtype) for t in (x, weight))
    return FrozenConvFunction.apply(x, weight, stride, padding, dilation, groups)


def unread(shape: torch.Size, like: Tensor, channels_last: bool) -> Tensor:
    """A tensor of this shape for functions that look at the shape alone; its memory is never touched."""
    format = _CHANNELS_LAST[len(shape)] if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=format)


def is_channels_last(x: Tensor) -> bool:
    format = _CHANNELS_LAST.get(x.dim())
    return format is not None and not x.is_contiguous() and x.is_contiguous(memory_format=format)


class FrozenConvFunction(torch.autograd.Function):
    """``y = apply(x, weight, stride, padding, dilation, groups)``; the weight gets no gradient."""

    @staticmethod
    def forward(ctx, x, weight, stride, padding, dilation, groups):
        ctx.save_for_backward(weight)
        ctx.shape, ctx.channels_last = x.shape, is_channels_last(x)
        ctx.window = stride, padding, dilation, False, (0,) * len(stride), groups
        return _CONVOLUTIONS[weight.dim()](x, weight, None, stride, padding, dilation, groups)

    @staticmethod
    def backward(ctx, dy):
        (weight,) = ctx.saved_tensors
        x = unread(ctx.shape, dy, ctx.channels_last)
        if dy.numel() == 0 or x.numel() == 0:  # the library refuses them
            return torch.zeros_like(x), *(None,) * 5
        dx, _, _ = torch.ops.aten.convolution_backward(dy, x, weight, None, *ctx.window, (True, False, False))
        return dx, *(None,) * 5
