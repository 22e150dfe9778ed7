# SPDX-License-Identifier: Apache-2.0
"""Low-rank convolutions: how a window moves, which route a call takes, and the same function in torch operators."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import has_static_value
from torch.nn.functional import conv2d, pad
from torch.utils._python_dispatch import _disable_current_modes

from ._fake import check_conv_shapes
from ._frozen_conv import frozen_conv
from ._padding import same_padding
from .factor import CONV_MODES, conv_break_even_rank, merge_conv, merge_conv_bias

PLANNED = ("plain", "fused", "linear", "pair", "merged")  # enum lath_conv_kernel
DTYPES = (torch.float32, torch.float64, torch.bfloat16)  # enum lath_dtype

_plan = torch.ops.lath.lowrank_conv2d_plan.default

Pair = int | tuple[int, int]

FEWEST_THIN_CHANNELS, FEWEST_CHANNELS = 9, 64  # of what a library fills its vectors with


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


# ---- geometry -----------------------------------------------------------------------------------------------------


def two(value: Pair, what: str) -> tuple[int, int]:
    """``value`` for both axes, vertical first.

    Raises:
        TypeError: neither an int nor two of them.
    """
    if isinstance(value, int):
        return value, value
    if isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(v, int) for v in value):
        return value[0], value[1]
    raise TypeError(f"lath.lowrank_conv2d: {what} is {value!r}, expected an int or two of them")


def geometry(
    kernel_size: tuple[int, int], stride: Pair, padding: Pair | str, dilation: Pair, groups: int, mode: str
) -> Geometry:
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
        rows, columns = same_padding(kernel_size[0], dilation[0]), same_padding(kernel_size[1], dilation[1])
    elif isinstance(padding, str):
        if padding != "valid":
            raise ValueError(f"lath.lowrank_conv2d: padding is {padding!r}, expected numbers, 'same' or 'valid'")
        rows = columns = (0, 0)
    else:
        pad_h, pad_w = two(padding, "padding")
        rows, columns = (pad_h, pad_h), (pad_w, pad_w)
    return Geometry(*stride, *rows, *columns, *dilation, groups, mode == "separable")


def kernel_size(shape_v: torch.Size, shape_u: torch.Size, mode: str) -> tuple[int, int]:
    """Of the dense convolution that two weights of four dimensions multiply to."""
    return (shape_u if mode == "separable" else shape_v)[2], shape_v[3]


# ---- in torch operators -------------------------------------------------------------------------------------------


class Stage(NamedTuple):
    """One convolution: the arguments of conv2d, and what has to be padded before it."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    pad: tuple[int, int, int, int] | None  # left, right, top, bottom, where the sides differ


def _stage(rows: tuple[int, int, int, int], columns: tuple[int, int, int, int]) -> Stage:
    (stride_h, top, bottom, dilation_h), (stride_w, left, right, dilation_w) = rows, columns
    stride, dilation = (stride_h, stride_w), (dilation_h, dilation_w)
    if top == bottom and left == right:
        return Stage(stride, (top, left), dilation, None)
    return Stage(stride, (0, 0), dilation, (left, right, top, bottom))


def stages(g: Geometry, merged: bool = False) -> tuple[Stage, ...]:
    """The two convolutions, each axis with the one that has its taps; of the dense one if ``merged``."""
    rows = (g.stride_h, g.pad_top, g.pad_bottom, g.dilation_h)
    columns = (g.stride_w, g.pad_left, g.pad_right, g.dilation_w)
    still = (1, 0, 0, 1)
    if merged:
        return (_stage(rows, columns),)
    if g.separable:
        return _stage(still, columns), _stage(rows, still)
    return _stage(rows, columns), _stage(still, still)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stage: Stage, groups: int) -> Tensor:
    if stage.pad is not None:
        x = pad(x, stage.pad)
    return conv2d(x, weight, bias, stage.stride, stage.padding, stage.dilation, groups)


def composite(
    x: Tensor,
    weight_v: Tensor,
    weight_u: Tensor,
    bias: Tensor | None,
    inner_bias: Tensor | None,
    stages: tuple[Stage, ...],
    groups: int,
    keep_input: bool = True,
) -> Tensor:
    """The function as two convolutions of torch, or as one with the dense weight, as there are stages.

    Without ``keep_input`` the first of two keeps nothing of x where weight_v requires no gradient.
    """
    if len(stages) == 2 and inner_bias is None and not keep_input:
        p = first_of_two(x, weight_v, stages[0], groups)
        return convolve(p, weight_u, bias, stages[1], groups)
    if len(stages) == 2:
        p = convolve(x, weight_v, inner_bias, stages[0], groups)
        return convolve(p, weight_u, bias, stages[1], groups)
    if inner_bias is not None:
        bias = merge_conv_bias(weight_u, bias, inner_bias, groups)
    return convolve(x, merge_conv(weight_v, weight_u, groups), bias, stages[0], groups)


def first_of_two(x: Tensor, weight_v: Tensor, stage: Stage, groups: int) -> Tensor:
    """The convolution to thin images, which keeps nothing of x where weight_v requires no gradient."""
    padded = x if stage.pad is None else pad(x, stage.pad)
    return frozen_conv(padded, weight_v, stage.stride, stage.padding, stage.dilation, groups)


def _convolve_back(dy: Tensor, x: Tensor, weight: Tensor, stage: Stage, groups: int, need_x: bool, need_weight: bool):
    """The gradients of x and weight, in operators that autograd can follow."""
    if dy.numel() == 0 or x.numel() == 0 or weight.numel() == 0:  # the library refuses them; sums without terms
        return torch.zeros_like(x), torch.zeros_like(weight)
    padded = x if stage.pad is None else pad(x, stage.pad)
    needs = (need_x, need_weight, False)
    numbers = (stage.stride, stage.padding, stage.dilation, False, (0, 0), groups)
    dx, d_weight, _ = torch.ops.aten.convolution_backward(dy, padded, weight, None, *numbers, needs)
    if need_x and stage.pad is not None:
        dx = pad(dx, [-n for n in stage.pad])
    return dx, d_weight


def intermediate(x: Tensor, weight_v: Tensor, inner_bias: Tensor, g: Geometry) -> Tensor:
    """What is between the two convolutions."""
    return convolve(x, weight_v, inner_bias if inner_bias.numel() else None, stages(g)[0], g.groups)


def composite_grads(dy, x, weight_v, weight_u, p, g: Geometry, needs):
    """The five gradients of the pair with the intermediate p, None where not needed."""
    need_x, need_v, need_u, need_bias, need_inner_bias = needs
    first, second = stages(g)
    dx = dv = du = d_inner_bias = None
    need_p = need_x or need_v or need_inner_bias
    if need_p or need_u:
        dp, du = _convolve_back(dy, p, weight_u, second, g.groups, need_p, need_u)
    if need_x or need_v:
        dx, dv = _convolve_back(dp, x, weight_v, first, g.groups, need_x, need_v)
    if need_inner_bias:
        d_inner_bias = dp.sum((0, 2, 3))
    return dx, dv, du, dy.sum((0, 2, 3)) if need_bias else None, d_inner_bias


def suits_a_library_first(kernel: str, shape_v: torch.Size) -> bool:
    """Of channels-last images in training with a frozen first factor: whether torch convolves with that one.

    ``kernel`` is what the planner takes where both factors train. The limits were measured, see docs/planner.md.
    """
    rank, channels, *taps = shape_v
    wide = math.prod(taps) > 1 and rank >= FEWEST_THIN_CHANNELS and channels >= FEWEST_CHANNELS
    return kernel == "pair" or (kernel == "fused" and wide)


# ---- route --------------------------------------------------------------------------------------------------------


class Route(NamedTuple):
    """How a call is carried out: "fused" by lath's own operator, "linear" by that of a linear layer over all pixels.

    Others by torch's convolutions in ``stages``.
    """

    kernel: str
    geometry: Geometry
    save: bool  # in training, keeping the intermediate costs less than computing it again
    stages: tuple[Stage, ...]


def plan(sizes: tuple[int, ...], g: Geometry, channels_last: bool, dtype: torch.dtype, backward: bool):
    """``(kernel, macs, dense_macs, save_intermediate)``; sizes are the first eight arguments of the operator."""
    kernel, macs, dense_macs, save = _plan(*sizes, *g, channels_last, DTYPES.index(dtype), backward)
    return PLANNED[kernel], macs, dense_macs, bool(save)


def _choose(sizes: tuple[int, ...], g: Geometry, channels_last: bool, dtype: torch.dtype, training: bool):
    """The kernel that "auto" stands for, and whether to keep the intermediate."""
    kernel, macs, dense_macs, save = plan(sizes, g, channels_last, dtype, training)
    if not (sizes[1] and sizes[3]):  # torch refuses convolutions without channels
        kernel = "fused"
    elif kernel == "plain":  # loops of lath's own, for checking
        kernel = "merged" if macs > dense_macs else "pair"
    return kernel, save


def _choose_cuda(shape_x: tuple, shape_v: tuple, shape_u: tuple, channels_last: bool, g: Geometry) -> tuple[str, bool]:
    """The same for CUDA tensors: convolutions of the library by their multiply-adds, 1x1 by lath's linear operators."""
    if not (shape_x[1] and shape_u[0]):
        return "fused", True
    mode = "separable" if g.separable else "pointwise"
    size = kernel_size(shape_v, shape_u, mode)
    if size == (1, 1) and channels_last and g[:9] == (1, 1, 0, 0, 0, 0, 1, 1, 1):
        return "linear", True
    strides = g.stride_h, g.stride_w
    even = conv_break_even_rank(shape_x[1], shape_u[0], size, mode, g.groups, strides)
    return "merged" if shape_u[1] > even else "pair", True


def cuda_macs(kernel: str, shape_x: tuple, shape_v: tuple, shape_u: tuple, g: Geometry) -> int:
    """Multiply-adds of a forward call that takes this route on CUDA."""
    p_height, height, width = check_conv_shapes("lowrank_conv2d", shape_x, shape_v, shape_u, *g)
    if kernel == "merged":
        taps = math.prod(kernel_size(shape_v, shape_u, "separable" if g.separable else "pointwise"))
        weight = shape_u[0] * (shape_x[1] // g.groups) * taps
        return shape_x[0] * height * width * weight + shape_u[1] * weight
    return shape_x[0] * width * (p_height * math.prod(shape_v) + height * math.prod(shape_u))


def route(
    kernel: str,
    training: bool,
    cuda: bool,
    dtype: torch.dtype,
    channels_last: bool,
    shape_x: torch.Size,
    shape_v: torch.Size,
    shape_u: torch.Size,
    inner_bias: bool,
    *arguments,
) -> Route:
    """Check the shapes, and settle how the call is carried out. The same arguments always give the same route.

    Args:
        kernel: as for ``lath.ops.lowrank_conv2d``.
        training: gradients are recorded.
        cuda: x is on a CUDA device.
        dtype: of x.
        channels_last: the channels of x are adjacent.
        shape_x: of x.
        shape_v: of weight_v.
        shape_u: of weight_u.
        inner_bias: there is one.
        arguments: stride, padding, dilation, groups, mode.

    Raises:
        RuntimeError: shapes that do not fit, in the words of the operator.
        TypeError, ValueError: as :func:`geometry`, and "merged" where no dense convolution is the same function.
    """
    size, g = _window(shape_v, shape_u, arguments)
    check_conv_shapes("lowrank_conv2d", shape_x, shape_v, shape_u, *g)
    chosen, save = "fused", False
    if cuda:
        chosen, save = _choose_cuda(shape_x, shape_v, shape_u, channels_last, g)
    elif dtype in DTYPES:  # the operator is about to refuse others
        sizes = (*shape_x[:2], shape_u[1], shape_u[0], *shape_x[2:], *size)
        try:
            chosen, save = _choose(sizes, g, channels_last, dtype, training)
        except RuntimeError as error:  # the shapes fit each other, so it is their size
            raise RuntimeError(
                f"lath::lowrank_conv2d: x: got shape {tuple(shape_x)}, expected images, kernels and padding of fewer "
                "than 2^60 elements"
            ) from error
    return _settle(kernel, chosen, cuda, inner_bias, g, save)


def traced_route(
    kernel: str,
    training: bool,
    cuda: bool,
    dtype,
    channels_last,
    shape_x,
    shape_v,
    shape_u,
    inner_bias: bool,
    *arguments,
) -> Route:
    """The same while a graph is traced; there the shape functions of the operators check the shapes.

    A graph may serve images of any size, so it is planned for a batch of a common one. Weights of symbolic size leave
    nothing to plan with.
    """
    size, g = _window(shape_v, shape_u, arguments)
    chosen, save = "fused", True
    static = all(has_static_value(n) for n in (*shape_v, *shape_u, *g))
    if cuda and static:
        channels = shape_v[1] * g.groups  # those of x, of which the batch alone may be symbolic in what follows
        channels_last = True if channels_last else False  # noqa: SIM210  (bool() leaves a symbol, a branch does not)
        chosen, save = _choose_cuda((1, channels), shape_v, shape_u, channels_last, g)
    elif not cuda and dtype in DTYPES and static:
        height, width = 32 + size[0] * g.dilation_h, 32 + size[1] * g.dilation_w
        sizes = 16, shape_v[1] * g.groups, shape_u[1], shape_u[0], height, width, *size
        channels_last = True if channels_last else False  # noqa: SIM210  (bool() leaves a symbol, a branch does not)
        chosen, save = _constant_choice(channels_last, dtype, training, *sizes, *g)
    return _settle(kernel, chosen, cuda, inner_bias, g, save)


@torch.compiler.assume_constant_result
def _constant_choice(channels_last: bool, dtype: torch.dtype, training: bool, *numbers: int) -> tuple[str, bool]:
    with _disable_current_modes():  # the question is no part of the graph
        try:
            return _choose(numbers[:8], Geometry(*numbers[8:]), channels_last, dtype, training)
        except RuntimeError:  # the shape function is about to say what is wrong
            return "fused", False


def _window(shape_v: torch.Size, shape_u: torch.Size, arguments: tuple) -> tuple[tuple[int, int], Geometry]:
    """Kernel size and geometry; of a kernel of one tap for weights that the checks are about to refuse."""
    size = kernel_size(shape_v, shape_u, arguments[-1]) if len(shape_v) == len(shape_u) == 4 else (1, 1)
    return size, geometry(size, *arguments)


def _settle(kernel: str, chosen: str, cuda: bool, inner_bias: bool, g: Geometry, save: bool) -> Route:
    # The rows of padding of a separable pair are zeros of the intermediate, which no inner bias is added to.
    border = inner_bias and g.separable and (g.pad_top or g.pad_bottom)
    if kernel == "merged" and border:
        raise ValueError(
            "lath.lowrank_conv2d: kernel is 'merged', but no dense convolution has the border effect of an inner bias "
            "with rows of padding in a separable pair; expected 'auto', 'fused' or 'pair'"
        )
    if kernel == "auto":
        kernel = "pair" if chosen == "merged" and border else chosen
    if kernel not in ("pair", "merged"):
        return Route(kernel if kernel == "linear" and cuda else "fused", g, save, ())
    return Route(kernel, g, save, stages(g, kernel == "merged"))
