# SPDX-License-Identifier: Apache-2.0
"""Low-rank convolutions: the numbers that say how a window moves, and the same function in torch operators."""

from __future__ import annotations

import functools
from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import conv2d, pad

from .factor import CONV_MODES, merge_conv, merge_conv_bias


class Geometry(NamedTuple):
    """How the window moves, in the order of the operators' arguments."""

    stride_h: int
    stride_w: int
    pad_top: int
    pad_bottom: int
    pad_left: int
    pad_right: int
    dilation_h: int
    dilation_w: int
    groups: int
    separable: bool


class Stage(NamedTuple):
    """One of the two convolutions: the arguments of conv2d, and what has to be padded before it."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    pad: tuple[int, int, int, int] | None  # left, right, top, bottom, where the sides differ


def two(value: int | tuple[int, int], what: str) -> tuple[int, int]:
    """``value`` for both axes, vertical first.

    Raises:
        TypeError: neither an int nor two of them.
    """
    if isinstance(value, int):
        return value, value
    if isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(v, int) for v in value):
        return value[0], value[1]
    raise TypeError(f"lath.lowrank_conv2d: {what} is {value!r}, expected an int or two of them")


def same_padding(kernel: int, dilation: int) -> tuple[int, int]:
    """Before and after, so that the output is as large as the input; an odd pixel goes after."""
    total = dilation * (kernel - 1)
    return total // 2, total - total // 2


def geometry(kernel_size: tuple[int, int], stride, padding, dilation, groups: int, mode: str) -> Geometry:
    """The numbers of a convolution from the arguments of ``torch.nn.functional.conv2d``.

    Raises:
        TypeError: stride, padding or dilation is neither an int nor two of them.
        ValueError: an unknown mode or padding, or padding "same" with a stride.
    """
    if mode not in CONV_MODES:
        raise ValueError(f"lath.lowrank_conv2d: mode is {mode!r}, expected one of {CONV_MODES}")
    stride, dilation = two(stride, "stride"), two(dilation, "dilation")
    if padding == "same":
        if stride != (1, 1):
            raise ValueError(f"lath.lowrank_conv2d: padding 'same' needs stride 1, got {stride}")
        rows, columns = (same_padding(k, d) for k, d in zip(kernel_size, dilation, strict=True))
    elif isinstance(padding, str):
        if padding != "valid":
            raise ValueError(f"lath.lowrank_conv2d: padding is {padding!r}, expected numbers, 'same' or 'valid'")
        rows = columns = (0, 0)
    else:
        rows, columns = ((p, p) for p in two(padding, "padding"))
    return Geometry(*stride, *rows, *columns, *dilation, groups, mode == "separable")


def kernel_size(weight_v: Tensor, weight_u: Tensor, mode: str) -> tuple[int, int]:
    """Of the dense convolution that the two multiply to."""
    return (weight_u if mode == "separable" else weight_v).shape[2], weight_v.shape[3]


@functools.lru_cache(maxsize=1024)
def stages(g: Geometry) -> tuple[Stage, Stage]:
    """The two convolutions: each axis belongs to the one that has its taps."""
    rows = (g.stride_h, g.pad_top, g.pad_bottom, g.dilation_h)
    columns = (g.stride_w, g.pad_left, g.pad_right, g.dilation_w)
    still = (1, 0, 0, 1)
    return (
        (_stage(still, columns), _stage(rows, still)) if g.separable else (_stage(rows, columns), _stage(still, still))
    )


def dense_stage(g: Geometry) -> Stage:
    """The dense convolution."""
    return stages(g._replace(separable=False))[0]


def _stage(rows: tuple[int, int, int, int], columns: tuple[int, int, int, int]) -> Stage:
    stride_h, top, bottom, dilation_h = rows
    stride_w, left, right, dilation_w = columns
    even = top == bottom and left == right
    return Stage(
        (stride_h, stride_w),
        (top, left) if even else (0, 0),
        (dilation_h, dilation_w),
        None if even else (left, right, top, bottom),
    )


def _run(x: Tensor, weight: Tensor, bias: Tensor | None, stage: Stage, groups: int) -> Tensor:
    if stage.pad is not None:
        x = pad(x, stage.pad)
    return conv2d(x, weight, bias, stage.stride, stage.padding, stage.dilation, groups)


def pair(
    x: Tensor, weight_v: Tensor, weight_u: Tensor, bias: Tensor | None, inner_bias: Tensor | None, g: Geometry
) -> Tensor:
    """Two convolutions of torch."""
    first, second = stages(g)
    return _run(_run(x, weight_v, inner_bias, first, g.groups), weight_u, bias, second, g.groups)


def can_merge(g: Geometry, inner_bias: bool) -> bool:
    """Whether a dense convolution is the same function.

    The rows of padding of a separable pair are zeros of the intermediate, which the inner bias is not added to.
    """
    return not (inner_bias and g.separable and (g.pad_top or g.pad_bottom))


def merged(
    x: Tensor, weight_v: Tensor, weight_u: Tensor, bias: Tensor | None, inner_bias: Tensor | None, g: Geometry
) -> Tensor:
    """One convolution of torch with the dense weight; see :func:`can_merge`."""
    weight = merge_conv(weight_v, weight_u, g.groups)
    if inner_bias is not None:
        bias = merge_conv_bias(weight_u, bias, inner_bias, g.groups)
    return _run(x, weight, bias, dense_stage(g), g.groups)
