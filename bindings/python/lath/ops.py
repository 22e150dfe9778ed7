# SPDX-License-Identifier: Apache-2.0
"""Typed functions over the operators ``torch.ops.lath.*``.

What a function here adds to the raw operator of the same name: optional biases, autograd, autocast, forward-mode
differentiation, and names instead of numbers. Without a gradient to record it is a thin wrapper of one operator call.

The operators work without this package as well, for inference::

    torch.ops.load_library("liblath_cpu.so")
    none = torch.empty(0)                                        # an absent bias is a tensor without elements
    y = torch.ops.lath.lowrank_linear(x, weight_v, weight_u, bias, none)

Used so, they have no gradient formula, no shape functions for ``torch.compile`` and no batching rules: those are Python
and come with ``import lath``.

Supported types: float32; bfloat16 (stored as such, accumulated in float32); float64 (on the CPU in plain loops, for
checking); on CUDA float16 too (as bfloat16). All tensors of a call are on one device.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
import torch.autograd.forward_ad as _forward_ad
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from . import _autograd, _conv, _cuda, _lstm
from ._load import ISA_NAMES
from .factor import break_even_rank

__all__ = [
    "ConvPlan",
    "OIALRPlan",
    "Plan",
    "cpu_isa",
    "frobenius_decay",
    "linear",
    "lowrank_conv2d",
    "lowrank_conv2d_plan",
    "lowrank_linear",
    "lowrank_linear_plan",
    "lowrank_lstm",
    "oialr_conv2d",
    "oialr_linear",
    "oialr_linear_plan",
]

ASSOCIATIONS = ("auto", "factored", "merged")  # enum lath_association
KERNELS = ("plain", "rows", "tiles", "merged", "products", "fused", "few")  # enum lath_lowrank_kernel
DTYPE_CODE = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}  # enum lath_dtype
OIALR_ROUTES = ("auto", "chained", "folded", "merged")  # enum lath_oialr_route
CONV_KERNELS = ("auto", "fused", "pair", "merged")

_ASSOCIATION_CODE = {name: code for code, name in enumerate(ASSOCIATIONS)}
_OIALR_ROUTE_CODE = {name: code for code, name in enumerate(OIALR_ROUTES)}
_OIALR_MERGED = _OIALR_ROUTE_CODE["merged"]

# Looked up once: the overload objects skip the overload resolution of torch.ops.lath.<name>.
_linear = torch.ops.lath.linear.default
_lowrank_linear = torch.ops.lath.lowrank_linear.default
_lowrank_conv2d = torch.ops.lath.lowrank_conv2d.default
_lowrank_lstm_forward = torch.ops.lath.lowrank_lstm_forward.default
_oialr_linear = torch.ops.lath.oialr_linear.default
_oialr_linear_plan = torch.ops.lath.oialr_linear_plan.default
_lowrank_linear_plan = torch.ops.lath.lowrank_linear_plan.default

# Inside torch.vmap a tensor hides whether the one it wraps requires a gradient, so there the answer is yes.
_in_functorch = torch._C._are_functorch_transforms_active

# Stands for an absent bias, of any dtype, in eager calls.
_ABSENT = torch.empty(0, device="cpu")


@dataclass(frozen=True)
class Plan:
    """How a call of a low-rank linear layer is carried out.

    Attributes:
        association: "factored" or "merged".
        kernel: the route: on the CPU "plain", "rows", "tiles" or "merged"; on CUDA "products", "fused", "few" or
            "merged".
        macs: multiply-adds of the call.
        dense_macs: multiply-adds of the dense layer for the same call.
        save_intermediate: in training, keeping the intermediate costs less time than computing it again.
    """

    association: str
    kernel: str
    macs: int
    dense_macs: int
    save_intermediate: bool


@dataclass(frozen=True)
class ConvPlan:
    """How a call of a low-rank convolution is carried out.

    Attributes:
        kernel: "plain", "fused" or "linear", lath's own; "pair", two convolutions of torch; or "merged", one of torch
            with the dense weight.
        macs: multiply-adds of the call.
        dense_macs: multiply-adds of the dense convolution.
        save_intermediate: in training, keeping the intermediate costs less time than computing it again.
    """

    kernel: str
    macs: int
    dense_macs: int
    save_intermediate: bool


@dataclass(frozen=True)
class OIALRPlan:
    """How calls of a linear layer in an orthogonal basis are carried out.

    Attributes:
        route: "chained", "folded" or "merged", see :func:`oialr_linear`; of the forward.
        macs: multiply-adds of the forward, or of a training step.
        dense_macs: those of the dense layer.
        keeps_t: a training step keeps ``x weight_vh^T`` instead of x.
    """

    route: str
    macs: int
    dense_macs: int
    keeps_t: bool


def lowrank_linear(
    x: Tensor,
    weight_v: Tensor,
    weight_u: Tensor,
    bias: Tensor | None = None,
    inner_bias: Tensor | None = None,
    association: str = "auto",
) -> Tensor:
    """``y = (x weight_v^T + inner_bias) weight_u^T + bias``.

    Args:
        x: (..., in_features).
        weight_v: (rank, in_features), the first factor.
        weight_u: (out_features, rank), the second factor.
        bias: (out_features), or None.
        inner_bias: (rank), or None.
        association: "factored" multiplies by one factor after the other, "merged" forms ``weight_u @ weight_v`` first,
            "auto" takes the cheaper. Values and gradients are the same up to rounding.

    Returns:
        (..., out_features), contiguous, in the type of x; under autocast in the autocast type, as for
        ``torch.nn.functional.linear``.

    Raises:
        RuntimeError: a shape, dtype, layout or device does not fit; or autocast to float16 on the CPU.
        TypeError: x is not a tensor.
        ValueError: an unknown association.
    """
    code = _ASSOCIATION_CODE.get(association)
    if code is None:
        raise ValueError(f"lath.lowrank_linear: association is {association!r}, expected one of {ASSOCIATIONS}")
    if not isinstance(x, Tensor):
        raise TypeError(f"lath.lowrank_linear: x is {type(x).__name__}, expected torch.Tensor")
    if _autocasts(x):
        x, weight_v, weight_u, bias, inner_bias = _autocast("lowrank_linear", x, weight_v, weight_u, bias, inner_bias)
    if _forward_ad._current_level >= 0 or _in_traced_functorch():
        return _composite_lowrank_linear(x, weight_v, weight_u, bias, inner_bias)
    if bias is None:
        bias = _absent(x)
    if inner_bias is None:
        inner_bias = _absent(x)
    if _in_functorch() or (
        torch.is_grad_enabled()
        and (
            weight_v.requires_grad
            or x.requires_grad
            or weight_u.requires_grad
            or bias.requires_grad
            or inner_bias.requires_grad
        )
    ):
        save, code = _training_plan(x, weight_v, weight_u, code)
        return _autograd.lowrank_linear(x, weight_v, weight_u, bias, inner_bias, save, code)
    return _lowrank_linear(x, weight_v, weight_u, bias, inner_bias, code)


def lowrank_conv2d(
    x: Tensor,
    weight_v: Tensor,
    weight_u: Tensor,
    bias: Tensor | None = None,
    inner_bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    mode: str = "separable",
    kernel: str = "auto",
    keep_input: bool = True,
) -> Tensor:
    """A thin convolution of x to ``rank`` channels for every group, plus inner_bias, then one to ``out``, plus bias.

    Args:
        x: (batch, in, height, width), or (in, height, width).
        weight_v: the first factor: (groups * rank, in / groups, 1, kw) if separable, (groups * rank, in / groups, kh,
            kw) if pointwise.
        weight_u: the second factor: (out, rank, kh, 1) if separable, (out, rank, 1, 1) if pointwise.
        bias: (out), or None.
        inner_bias: (groups * rank), or None.
        stride: of the dense convolution, as for ``torch.nn.functional.conv2d``, like the next three. Each axis belongs
            to the factor that has its taps.
        padding: numbers, "same" or "valid". The rows of padding of a separable pair are zeros of the intermediate,
            without the inner bias.
        dilation: distance of the taps.
        groups: groups of channels, each factored on its own.
        mode: "separable" or "pointwise".
        kernel: "fused" runs lath's own, "pair" two convolutions of torch, "merged" one with the dense weight, "auto"
            the fastest by plan. Values and gradients are the same up to rounding.
        keep_input: False keeps the intermediate for the backward pass, and of x nothing, where weight_v requires no
            gradient. ``create_graph=True`` is then an error where lath's own kernel ran.

    Returns:
        (batch, out, out_height, out_width) in the type of x, channels-last if x is; under autocast in the autocast
        type.

    Raises:
        RuntimeError: a shape, dtype, layout or device does not fit; or autocast to float16 on the CPU.
        TypeError: x is not a tensor; stride, padding or dilation is neither an int nor two of them.
        ValueError: an unknown mode, kernel or padding; padding "same" with a stride; "merged" with an inner bias and
            rows of padding in a separable pair, which no dense convolution can express.
    """
    if kernel not in CONV_KERNELS:
        raise ValueError(f"lath.lowrank_conv2d: kernel is {kernel!r}, expected one of {CONV_KERNELS}")
    if not isinstance(x, Tensor):
        raise TypeError(f"lath.lowrank_conv2d: x is {type(x).__name__}, expected torch.Tensor")
    if x.dim() == 3:
        numbers = (stride, padding, dilation, groups, mode, kernel, keep_input)
        return lowrank_conv2d(x.unsqueeze(0), weight_v, weight_u, bias, inner_bias, *numbers).squeeze(0)
    if _autocasts(x):
        x, weight_v, weight_u, bias, inner_bias = _autocast("lowrank_conv2d", x, weight_v, weight_u, bias, inner_bias)
    training = _in_functorch() or (
        torch.is_grad_enabled()
        and (
            weight_v.requires_grad
            or x.requires_grad
            or weight_u.requires_grad
            or (bias is not None and bias.requires_grad)
            or (inner_bias is not None and inner_bias.requires_grad)
        )
    )
    window = stride, padding, dilation, groups, mode
    taken = _route_of(kernel, training, x, weight_v.shape, weight_u.shape, inner_bias is not None, *window)
    if taken.kernel == "linear":
        return _pixelwise(x, weight_v, weight_u, bias, inner_bias)
    if taken.stages:
        return _conv.composite(x, weight_v, weight_u, bias, inner_bias, taken.stages, groups, keep_input)
    g = taken.geometry
    if _forward_ad._current_level >= 0 or _in_traced_functorch():
        return _conv.composite(x, weight_v, weight_u, bias, inner_bias, _conv.stages(g), groups)
    if bias is None:
        bias = _absent(x)
    if inner_bias is None:
        inner_bias = _absent(x)
    if training:
        save = (taken.save or not keep_input) and weight_u.requires_grad
        return _autograd.lowrank_conv2d(x, weight_v, weight_u, bias, inner_bias, save, g, keep_input)
    return _lowrank_conv2d(x, weight_v, weight_u, bias, inner_bias, *g)


def lowrank_lstm(
    x: Tensor,
    v_in: Tensor | None,
    u_in: Tensor,
    v: Tensor,
    u: Tensor,
    bias_in: Tensor | None = None,
    bias: Tensor | None = None,
    h0: Tensor | None = None,
    c0: Tensor | None = None,
    *,
    batch_sizes: Tensor | None = None,
    reverse: bool = False,
    batch_first: bool = False,
    projection: Tensor | None = None,
    association: str = "auto",
    keep_gates: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer of a low-rank LSTM in one direction; gates in the order i, f, g, o of ``torch.nn.LSTM``.

    ``a_t = u_in v_in x_t + bias_in + u v h_before + bias``, then the cell of ``nn.LSTM``.

    Args:
        x: (steps, batch, in), with ``batch_first`` (batch, steps, in), packed (rows, in).
        v_in: (in_rank, in), or None for a dense input weight.
        u_in: (4 * hidden, in_rank), or (4 * hidden, in) without v_in.
        v: (rank, hidden); with a projection (rank, proj).
        u: (4 * hidden, rank).
        bias_in: (4 * hidden), or None.
        bias: the same; they are added.
        h0: (batch, hidden), with a projection (batch, proj); None for zeros.
        c0: (batch, hidden), or None for zeros.
        batch_sizes: of a packed sequence, as in ``torch.nn.utils.rnn.PackedSequence``: int64, on the CPU.
        reverse: take the steps from the last one to the first.
        batch_first: the batch is the first dimension of x and y; without meaning for a packed sequence.
        projection: (proj, hidden), ``weight_hr`` of ``nn.LSTM``, or None.
        association: "factored" multiplies by one factor after the other, "merged" forms the products of the factors
            first, "auto" takes the cheaper for either pair. Values and gradients are the same up to rounding.
        keep_gates: in training keep the activated gates for the backward, ``4 * hidden`` numbers a row beside h and c.
            Without them the backward forms them again, which takes about a quarter of its time.

    Returns:
        y, h of every row: like x but for the last dimension; hn and cn, shaped as h0 and c0: the state after the last
        step of each sample. In the type of x; under autocast in the autocast type.

    On the CPU, float32 is computed by lath's own kernel, float64 in plain loops, bfloat16 and float16 in float32. On
    CUDA lath's own kernels compute float32 and float64 where the recurrent factors save multiply-adds; elsewhere, under
    autocast and in narrower types torch's LSTM takes the merged weights.

    Raises:
        RuntimeError: a shape, dtype, layout or device does not fit.
        TypeError: x is not a tensor.
        ValueError: an unknown association.
    """
    code = _ASSOCIATION_CODE.get(association)
    if code is None:
        raise ValueError(f"lath.lowrank_lstm: association is {association!r}, expected one of {ASSOCIATIONS}")
    if not isinstance(x, Tensor):
        raise TypeError(f"lath.lowrank_lstm: x is {type(x).__name__}, expected torch.Tensor")
    weights = _lstm.Weights(v_in, u_in, v, u, bias_in, bias)
    autocasts = _autocasts(x)
    tensors = (x, h0, c0, projection, *weights)
    if (x.is_cpu or x.is_meta) and x.dtype is not torch.float64 and (autocasts or x.dtype in _NARROW):
        dtype = torch.get_autocast_dtype("cpu") if autocasts else x.dtype
        tensors = _widen(x.dtype, autocasts, tensors)
        with torch.autocast("cpu", enabled=False):
            results = _project_lstm(*tensors, batch_sizes, reverse, batch_first, code, keep_gates)
        return tuple(t.to(dtype) for t in results)
    return _project_lstm(*tensors, batch_sizes, reverse, batch_first, code, keep_gates)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``y = x weight^T + bias`` by lath's own dense engine; the same function as ``torch.nn.functional.linear``.

    Args:
        x: (..., in_features).
        weight: (out_features, in_features).
        bias: (out_features), or None.

    Returns:
        (..., out_features), contiguous, in the type of x (under autocast, in the autocast type).

    Raises:
        RuntimeError: a shape, dtype, layout or device does not fit; or autocast to float16 on the CPU.
        TypeError: x is not a tensor.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"lath.linear: x is {type(x).__name__}, expected torch.Tensor")
    if _autocasts(x):
        x, weight, bias = _autocast("linear", x, weight, bias)
    if _forward_ad._current_level >= 0 or _in_traced_functorch():
        return torch.nn.functional.linear(x, weight, bias)
    if bias is None:
        bias = _absent(x)
    if _in_functorch() or (torch.is_grad_enabled() and (weight.requires_grad or x.requires_grad or bias.requires_grad)):
        return _autograd.LinearFunction.apply(x, weight, bias)
    return _linear(x, weight, bias)


def oialr_linear(
    x: Tensor,
    weight_vh: Tensor,
    weight_s: Tensor,
    weight_u: Tensor,
    bias: Tensor | None = None,
    route: str = "auto",
) -> Tensor:
    """``y = x (weight_u weight_s weight_vh)^T + bias``: a weight in an orthogonal basis, of which the core trains.

    x, weight_s and bias get gradients. For them a training step keeps ``x weight_vh^T``, (rows, rank), and not x,
    except where the rank is so high that forming the weight is cheaper. Bases that require a gradient are computed with
    in torch operators. Form and update rules: Coquelin et al., arXiv 2401.08505.

    Args:
        x: (..., in_features).
        weight_vh: (rank, in_features), the right basis.
        weight_s: (rank, rank), the core.
        weight_u: (out_features, rank), the left basis.
        bias: (out_features), or None.
        route: "chained" multiplies by one after the other, "folded" multiplies the core into a basis first, "merged"
            forms the weight, "auto" takes the cheapest. Values and gradients are the same up to rounding.

    Returns:
        (..., out_features), contiguous, in the type of x; under autocast in the autocast type.

    Raises:
        RuntimeError: a shape, dtype, layout or device does not fit; or autocast to float16 on the CPU.
        TypeError: x is not a tensor.
        ValueError: an unknown route.
    """
    code = _OIALR_ROUTE_CODE.get(route)
    if code is None:
        raise ValueError(f"lath.oialr_linear: route is {route!r}, expected one of {OIALR_ROUTES}")
    if not isinstance(x, Tensor):
        raise TypeError(f"lath.oialr_linear: x is {type(x).__name__}, expected torch.Tensor")
    if _autocasts(x):
        x, weight_vh, weight_s, weight_u, bias = _autocast("oialr_linear", x, weight_vh, weight_s, weight_u, bias)
    bases_train = torch.is_grad_enabled() and (weight_u.requires_grad or weight_vh.requires_grad)
    if bases_train or _forward_ad._current_level >= 0 or _in_functorch():
        return _composite_oialr_linear(x, weight_vh, weight_s, weight_u, bias)
    if bias is None:
        bias = _absent(x)
    if torch.is_grad_enabled() and (weight_s.requires_grad or x.requires_grad or bias.requires_grad):
        save = _oialr_keeps_t(x, weight_vh, weight_u, code)
        return _autograd.oialr_linear(x, weight_vh, weight_s, weight_u, bias, save, code if save else _OIALR_MERGED)
    return _oialr_linear(x, weight_vh, weight_s, weight_u, bias, code)


def oialr_conv2d(
    x: Tensor,
    weight_vh: Tensor,
    weight_s: Tensor,
    weight_u: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Tensor:
    """A convolution with a weight in an orthogonal basis, of which the core trains.

    The weight is ``weight_u weight_s weight_vh`` as a matrix of ``out`` rows, with weight_vh likewise. Computed as
    :func:`lowrank_conv2d` with the second factor ``weight_u weight_s``. On channels-last images, in training, torch
    convolves with weight_vh where it is faster at that, and the rest is lath's own, pixel by pixel. x, weight_s
    and bias get gradients, for which a training step keeps ``rank`` numbers of each group and output pixel, and not x.

    Args:
        x: (batch, in, height, width), or (in, height, width).
        weight_vh: (groups * rank, in / groups, kh, kw), the right basis, for every group.
        weight_s: (rank, rank), the core.
        weight_u: (out, rank), the left basis.
        bias: (out), or None.
        stride: as for ``torch.nn.functional.conv2d``, like the next three.
        padding: numbers, "same" or "valid".
        dilation: distance of the taps.
        groups: groups of channels.

    Returns:
        (batch, out, out_height, out_width) in the type of x, channels-last if x is; under autocast in the autocast
        type.

    Raises:
        RuntimeError: a shape, dtype, layout or device does not fit; or autocast to float16 on the CPU.
        TypeError: x is not a tensor; stride, padding or dilation is neither an int nor two of them.
        ValueError: an unknown padding, or padding "same" with a stride.

    As with :func:`lowrank_conv2d`, ``create_graph=True`` is an error where lath's own convolution ran.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"lath.oialr_conv2d: x is {type(x).__name__}, expected torch.Tensor")
    if weight_u.dim() != 2 or weight_s.shape != (weight_u.shape[1], weight_u.shape[1]):
        raise RuntimeError(
            f"lath::oialr_conv2d: weight_s: got shape {tuple(weight_s.shape)} with weight_u of shape "
            f"{tuple(weight_u.shape)}, expected (rank, rank) with (out, rank)"
        )
    if weight_vh.dim() != 4 or weight_vh.shape[0] != groups * weight_s.shape[0]:
        raise RuntimeError(
            f"lath::oialr_conv2d: weight_vh: got shape {tuple(weight_vh.shape)}, expected (groups * rank, in / groups, "
            f"kh, kw) with {groups} groups and rank {weight_s.shape[0]}"
        )
    window = stride, padding, dilation, groups, "pointwise"
    if _trains_the_core_alone(x, weight_vh, weight_s, weight_u, bias) and groups == 1 and _has_adjacent_channels(x):
        taken = _route_of("auto", True, x, weight_vh.shape, (*weight_u.shape, 1, 1), False, *window)
        if x.is_cpu and x.dtype is torch.float32 and _conv.suits_a_library_first(taken.kernel, weight_vh.shape):
            t = _conv.first_of_two(x, weight_vh, _conv.stages(taken.geometry)[0], groups)
            return _pixelwise(t, weight_s, weight_u, bias, None)
    second = (weight_u @ weight_s)[..., None, None]
    return lowrank_conv2d(x, weight_vh, second, bias, None, *window, "auto", False)


def frobenius_decay(weight_v: Tensor, weight_u: Tensor) -> Tensor:
    """``|| weight_u weight_v ||_F^2`` as a scalar tensor, from the Gram matrices of the factors.

    ``|| U V ||_F^2 = < U^T U, V V^T >`` costs rank^2 (in + out) multiply-adds and forms no (out, in) matrix. The
    gradients are ``2 U (V V^T)`` and ``2 (U^T U) V``.

    Args:
        weight_v: (rank, in_features).
        weight_u: (out_features, rank).

    Returns:
        A scalar in float32, or in float64 for float64 factors.
    """
    if _forward_ad._current_level >= 0 or _in_traced_functorch():
        return ((weight_v @ weight_v.mT) * (weight_u.mT @ weight_u)).sum()
    return _autograd.FrobeniusDecayFunction.apply(weight_v, weight_u)[0]


def lowrank_linear_plan(
    rows: int,
    in_features: int,
    rank: int,
    out_features: int,
    association: str = "auto",
    backward: bool = False,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Plan:
    """What a call of these extents does: arithmetic on the shape, without touching a tensor.

    ``dtype`` matters on CUDA only, and so does which GPU it is.

    Raises:
        RuntimeError: a negative extent, a product of extents that overflows, or a CUDA device that is not served.
        ValueError: an unknown association or dtype.
    """
    code = _ASSOCIATION_CODE.get(association)
    if code is None:
        raise ValueError(f"lath.lowrank_linear_plan: association is {association!r}, expected one of {ASSOCIATIONS}")
    index = _gpu_index("lowrank_linear_plan", device, dtype)
    if index is None:
        return _cached_plan(rows, in_features, rank, out_features, code, backward)
    return _cached_cuda_plan(rows, in_features, rank, out_features, code, backward, dtype, index)


def oialr_linear_plan(
    rows: int,
    in_features: int,
    rank: int,
    out_features: int,
    route: str = "auto",
    training: bool = False,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> OIALRPlan:
    """What a forward of these extents does, or with ``training`` a forward and a backward, without touching a tensor.

    ``dtype`` matters on CUDA only, and so does which GPU it is.

    Raises:
        RuntimeError: a negative extent, a product of extents that overflows, or a CUDA device that is not served.
        ValueError: an unknown route or dtype.
    """
    code = _OIALR_ROUTE_CODE.get(route)
    if code is None:
        raise ValueError(f"lath.oialr_linear_plan: route is {route!r}, expected one of {OIALR_ROUTES}")
    index = _gpu_index("oialr_linear_plan", device, dtype)
    if index is None:
        return _cached_oialr_plan(rows, in_features, rank, out_features, code, training)
    return _cached_cuda_oialr_plan(rows, in_features, rank, out_features, code, training, dtype, index)


def lowrank_conv2d_plan(
    batch: int,
    in_channels: int,
    rank: int,
    out_channels: int,
    height: int,
    width: int,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    mode: str = "separable",
    channels_last: bool = False,
    dtype: torch.dtype = torch.float32,
    backward: bool = False,
) -> ConvPlan:
    """What the planner says about a convolution: arithmetic on the extents, without touching a tensor.

    Raises:
        RuntimeError: an impossible extent, or a product of extents that overflows.
        TypeError: kernel_size, stride, padding or dilation is neither an int nor two of them.
        ValueError: an unknown mode, padding or dtype.
    """
    if dtype not in _conv.DTYPES:
        raise ValueError(f"lath.lowrank_conv2d_plan: dtype is {dtype}, expected one of {_conv.DTYPES}")
    size = _conv.two(kernel_size, "kernel_size")
    g = _conv.geometry(size, stride, padding, dilation, groups, mode)
    sizes = (batch, in_channels, rank, out_channels, height, width, *size)
    return ConvPlan(*_conv.plan(sizes, g, channels_last, dtype, backward))


def cpu_isa() -> str:
    """The instruction set that the kernels use: "generic", "avx2" or "avx512"."""
    return ISA_NAMES[torch.ops.lath.cpu_isa()]


def _gpu_index(operator: str, device: torch.device | str, dtype: torch.dtype) -> int | None:
    """The number of the GPU that a plan is asked for, None for the processor; a GPU's plan depends on the dtype too."""
    device = torch.device(device)
    if device.type != "cuda":
        return None
    if dtype not in DTYPE_CODE:
        raise ValueError(f"lath.{operator}: dtype is {dtype}, expected one of {tuple(DTYPE_CODE)}")
    return device.index or 0


@functools.lru_cache(maxsize=4096)
def _cached_plan(rows: int, in_features: int, rank: int, out_features: int, code: int, backward: bool) -> Plan:
    taken, kernel, macs, dense_macs, save = _lowrank_linear_plan(rows, in_features, rank, out_features, code, backward)
    return Plan(ASSOCIATIONS[taken], KERNELS[kernel], macs, dense_macs, bool(save))


@functools.lru_cache(maxsize=4096)
def _cached_cuda_plan(
    rows: int, in_features: int, rank: int, out_features: int, code: int, backward: bool, dtype: torch.dtype, index: int
) -> Plan:
    if not _cuda.status.loaded:
        raise RuntimeError(f"lath.lowrank_linear_plan: the CUDA side of lath is off: {_cuda.status.reason}")
    extents = (rows, in_features, rank, out_features)
    taken, kernel, *macs, save = torch.ops.lath.cuda_lowrank_linear_plan(
        *extents, code, backward, DTYPE_CODE[dtype], index
    )
    return Plan(ASSOCIATIONS[taken], KERNELS[kernel], *macs, bool(save))


_cached_conv_route = functools.lru_cache(maxsize=4096)(_conv.route)


def _conv_route(*arguments) -> _conv.Route:
    """The route of a call, looked up once for every set of sizes."""
    if torch.compiler.is_compiling():
        return _conv.traced_route(*arguments)
    try:
        return _cached_conv_route(*arguments)
    except TypeError:  # a list among the numbers, or a symbolic size
        symbolic = any(type(n) is not int for n in arguments[5])
        return (_conv.traced_route if symbolic else _conv.route)(*arguments)


def _route_of(
    kernel: str,
    training: bool,
    x: Tensor,
    shape_v: tuple[int, ...],
    shape_u: tuple[int, ...],
    inner_bias: bool,
    *window,
) -> _conv.Route:
    kind = kernel, training, x.is_cuda, x.dtype, _has_adjacent_channels(x)
    return _conv_route(*kind, x.shape, shape_v, shape_u, inner_bias, *window)


def conv2d_is_of_torch(x: Tensor, weight_v: Tensor, weight_u: Tensor, *window) -> bool:
    """Whether :func:`lowrank_conv2d` without a gradient hands these to convolutions of torch."""
    return bool(_route_of("auto", False, x, weight_v.shape, weight_u.shape, False, *window).stages)


def _has_adjacent_channels(x: Tensor) -> bool:
    return x.dim() == 4 and x.layout is torch.strided and x.stride(1) == 1


def _trains_the_core_alone(
    x: Tensor, weight_vh: Tensor, weight_s: Tensor, weight_u: Tensor, bias: Tensor | None
) -> bool:
    """In an eager call that records gradients, outside of autocast and of what differentiates otherwise."""
    if not torch.is_grad_enabled() or weight_vh.requires_grad or weight_u.requires_grad:
        return False
    if torch.compiler.is_compiling() or _in_functorch() or _forward_ad._current_level >= 0 or _autocasts(x):
        return False
    return x.requires_grad or weight_s.requires_grad or (bias is not None and bias.requires_grad)


def _training_plan(x: Tensor, weight_v: Tensor, weight_u: Tensor, code: int) -> tuple[bool, int]:
    """Whether forward keeps the intermediate, and the association that forward and backward share.

    Keeping the intermediate settles for "factored". While a graph is traced, where the number of rows may be symbolic
    and the GPU elsewhere, the rank alone decides; above break-even nothing is kept and the planner chooses inside the
    operators.
    """
    if x.dim() == 0 or weight_v.dim() != 2 or weight_u.dim() != 2 or weight_v.shape[0] == 0:
        return False, code  # the operator is about to say what is wrong
    (rank, in_features), out_features = weight_v.shape, weight_u.shape[0]
    extents = (math.prod(x.shape[:-1]), in_features, rank, out_features)
    if torch.compiler.is_compiling() or isinstance(x, FakeTensor) or any(type(n) is not int for n in extents):
        return weight_u.requires_grad and rank <= break_even_rank(in_features, out_features), code
    if x.is_cuda:
        if x.dtype not in DTYPE_CODE or not _cuda.status.loaded:
            return False, code  # likewise
        plan = _cached_cuda_plan(*extents, code, False, x.dtype, x.device.index)
    else:
        plan = _cached_plan(*extents, code, False)
    factored = plan.association == "factored"
    return factored and plan.save_intermediate and weight_u.requires_grad, _ASSOCIATION_CODE[plan.association]


@functools.lru_cache(maxsize=4096)
def _cached_oialr_plan(
    rows: int, in_features: int, rank: int, out_features: int, code: int, training: bool
) -> OIALRPlan:
    route, *rest = _oialr_linear_plan(rows, in_features, rank, out_features, code, training)
    return OIALRPlan(OIALR_ROUTES[route], *rest)


@functools.lru_cache(maxsize=4096)
def _cached_cuda_oialr_plan(
    rows: int, in_features: int, rank: int, out_features: int, code: int, training: bool, dtype: torch.dtype, index: int
) -> OIALRPlan:
    if not _cuda.status.loaded:
        raise RuntimeError(f"lath.oialr_linear_plan: the CUDA side of lath is off: {_cuda.status.reason}")
    extents = (rows, in_features, rank, out_features)
    route, *rest = torch.ops.lath.cuda_oialr_linear_plan(*extents, code, training, DTYPE_CODE[dtype], index)
    return OIALRPlan(OIALR_ROUTES[route], *rest)


def _oialr_keeps_t(x: Tensor, weight_vh: Tensor, weight_u: Tensor, code: int) -> bool:
    """Whether a training step keeps t instead of x; the route is then one that uses it.

    While a graph is traced, where the number of rows may be symbolic, the ranks alone decide, as for many rows.
    """
    if x.dim() == 0 or weight_vh.dim() != 2 or weight_u.dim() != 2 or weight_vh.shape[0] == 0:
        return True  # the operator is about to say what is wrong
    (rank, in_features), out_features = weight_vh.shape, weight_u.shape[0]
    extents = (math.prod(x.shape[:-1]), in_features, rank, out_features)
    if torch.compiler.is_compiling() or isinstance(x, FakeTensor) or any(type(n) is not int for n in extents):
        factored = 2 * rank * (in_features + out_features) + rank * rank
        return code != _OIALR_MERGED and (code != 0 or factored < 3 * in_features * out_features)
    if not x.is_cuda:
        return _cached_oialr_plan(*extents, code, True).keeps_t
    if x.dtype not in DTYPE_CODE or not _cuda.status.loaded:
        return True  # likewise
    return _cached_cuda_oialr_plan(*extents, code, True, x.dtype, x.device.index).keeps_t


def _composite_oialr_linear(
    x: Tensor, weight_vh: Tensor, weight_s: Tensor, weight_u: Tensor, bias: Tensor | None
) -> Tensor:
    """The same function in torch operators, for bases that train, forward-mode derivatives and torch.func."""
    t = torch.nn.functional.linear(x, weight_vh)
    return torch.nn.functional.linear(t, weight_u @ weight_s, bias)


def _in_traced_functorch() -> bool:
    """Inside torch.func inside torch.compile, where torch knows no batching rule of an autograd.Function."""
    return torch.compiler.is_compiling() and _in_functorch()


def _absent(x: Tensor) -> Tensor:
    """A tensor without elements: the one at hand, or one of the kind of x for subclasses, devices and tracing modes."""
    if type(x) is Tensor and (x.is_cpu or x.is_cuda) and not torch.compiler.is_compiling():
        return _ABSENT
    return x.new_empty(0)


def _autocasts(x: Tensor) -> bool:
    """Whether autocast is on for the device of x; asking x for its device type costs more than all else here."""
    if x.is_cpu:
        return torch.is_autocast_enabled("cpu")
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)


def _autocast(operator: str, x: Tensor, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    """Cast as autocast does for F.linear: every floating-point tensor of the device except double."""
    device_type = x.device.type
    dtype = torch.get_autocast_dtype(device_type)
    if dtype == torch.float16 and device_type == "cpu":
        raise RuntimeError(
            f"lath.{operator}: autocast to torch.float16 is not supported on the CPU, "
            "expected torch.autocast('cpu', dtype=torch.bfloat16)"
        )

    def cast(t: Tensor | None) -> Tensor | None:
        keep = t is None or not t.is_floating_point() or t.dtype == torch.float64 or t.device.type != device_type
        return t if keep else t.to(dtype)

    return tuple(cast(t) for t in (x, *others))


def _pixelwise(x: Tensor, weight_v: Tensor, weight_u: Tensor, bias: Tensor | None, inner_bias: Tensor | None) -> Tensor:
    """A 1x1 convolution of channels-last images: the linear layer over all pixels."""
    y = lowrank_linear(x.movedim(1, -1), weight_v.flatten(1), weight_u.flatten(1), bias, inner_bias)
    return y.movedim(-1, 1)


def _composite_lowrank_linear(
    x: Tensor, weight_v: Tensor, weight_u: Tensor, bias: Tensor | None, inner_bias: Tensor | None
) -> Tensor:
    """The same function in torch operators, for forward-mode derivatives and for torch.func inside torch.compile."""
    return torch.nn.functional.linear(torch.nn.functional.linear(x, weight_v, inner_bias), weight_u, bias)


# ---- LSTM ---------------------------------------------------------------------------------------------------------

_NARROW = (torch.bfloat16, torch.float16)  # computed in float32


def _widen(dtype: torch.dtype, any_dtype: bool, tensors: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    """In float32. Without autocast all have to have the type of x."""
    names = ("x", "h0", "c0", "projection", *_lstm.Weights._fields)
    wide = []
    for name, t in zip(names, tensors, strict=True):
        if t is not None and not any_dtype and t.dtype is not dtype:
            raise RuntimeError(f"lath.lowrank_lstm: {name}: got dtype {t.dtype}, expected {dtype} like x")
        wide.append(t if t is None or t.dtype is torch.float64 or not t.is_floating_point() else t.float())
    return wide


def _project_lstm(x, h0, c0, projection, *rest) -> tuple[Tensor, Tensor, Tensor]:
    """With the projection, if there is one, put together from a layer without."""
    *weights, batch_sizes, reverse, batch_first, code, keep_gates = rest
    weights = _lstm.Weights(*weights)
    if projection is None:
        return _run_lstm(x, h0, c0, weights, batch_sizes, reverse, batch_first, code, keep_gates)
    turn = None
    if reverse and h0 is not None:  # the first step is taken apart from the others
        turn, reverse = _lstm.turn(x.device, batch_sizes, batch_first), False
        x = turn(x)

    def run(x: Tensor, m0: Tensor | None, c0: Tensor | None, weights: _lstm.Weights, batch_sizes: Tensor | None):
        return _run_lstm(x, m0, c0, weights, batch_sizes, reverse, batch_first, code, keep_gates)

    y, hn, cn = _lstm.projected(run, x, h0, c0, weights, projection, batch_sizes, batch_first)
    return y if turn is None else turn(y), hn, cn


def _lstm_route(x: Tensor, weights: _lstm.Weights, code: int) -> str:
    """Of a layer that is not on the CPU."""
    served = x.is_cuda and _cuda.status.loaded and not torch.is_autocast_enabled("cuda")
    gates, rank = weights.u.shape[0], weights.u.shape[-1]
    return _lstm.cuda_route(x.dtype, gates // 4, rank, code, served)


def _run_lstm(
    x, h0, c0, weights: _lstm.Weights, batch_sizes, reverse: bool, batch_first: bool, code: int, keep_gates: bool
) -> tuple[Tensor, Tensor, Tensor]:
    if _forward_ad._current_level >= 0 or _in_traced_functorch():
        return _lstm.composite(x, h0, c0, weights, _lstm.Layout.of(batch_sizes, reverse, batch_first))
    if not (x.is_cpu or x.is_meta) and _lstm_route(x, weights, code) == "library":
        return _lstm.library(x, h0, c0, weights, batch_sizes, reverse, batch_first)
    if h0 is None and batch_sizes is not None:
        h0 = x.new_zeros((int(batch_sizes[0]) if batch_sizes.numel() else 0, weights.v.shape[-1]))
    # While a graph is traced, each absent operand needs a tensor of its own.
    *operands, batch_sizes = (_absent(x) if t is None else t for t in (x, h0, c0, *weights, batch_sizes))
    numbers = batch_sizes, reverse, batch_first
    if _in_functorch() or (torch.is_grad_enabled() and any(t.requires_grad for t in operands)):
        save = 2 if keep_gates else 1
        return _autograd.LowRankLSTMFunction.apply(*operands, *numbers, save, code)[:3]
    return _lowrank_lstm_forward(*operands, *numbers, 0, code)[:3]
