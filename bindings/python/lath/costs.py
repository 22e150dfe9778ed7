# SPDX-License-Identifier: Apache-2.0
"""What one layer costs: numbers, multiply-adds and the route of a call, now and as the dense layer of its function.

A *row* is what the weight is multiplied with once: a row of x for a linear layer, an output pixel for a convolution, a
step of a sample for an LSTM.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import _attention, _conv, _oialr, _recurrent, ops
from .factor import break_even_rank, conv_break_even_rank
from .nn import LowRankConv2d
from .nn._geometry import pad_ahead
from .nn.cored import Cored
from .nn.factored import Factored

# What speaks for a kernel; for those that are not here, the multiply-adds that they save.
_WHY = {
    "plain": "float64: plain loops",
    "few": "few rows: each weight is read once",
    "linear": "1x1: one product over all pixels",
    "pair": "two library convolutions are faster here",
    "merged": "factors cost more here than the dense weight",
    "library": "torch's LSTM with merged weights",
}


@dataclass(frozen=True)
class Call:
    """What a layer was called with, and the shape of what it returned."""

    x_shape: tuple[int, ...]
    y_shape: tuple[int, ...]
    dtype: torch.dtype
    channels_last: bool
    device: torch.device

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> Call:
        """Of a call with x that returned y."""
        return cls(tuple(x.shape), tuple(y.shape), x.dtype, x.dim() > 2 and x.stride(-3) == 1, x.device)


@dataclass(frozen=True)
class Work:
    """Of a layer in a run of the model, or for one row where ``rows`` is None.

    Attributes:
        rows: over all calls.
        macs, dense_macs: multiply-adds, and those of the dense layer.
        kernel: the route of the first call; "dense" for a dense layer, None if there was no call.
        why: what speaks for it, in a few words; None for a dense layer or without a call.
    """

    rows: int | None
    macs: int
    dense_macs: int
    kernel: str | None
    why: str | None = None


def is_conv(module: nn.Module) -> bool:
    return hasattr(module, "kernel_size")


def sizes(module: nn.Module) -> tuple[int, int]:
    """Features, or channels, of x and of y."""
    if _attention.is_attention(module):
        return module.embed_dim, module.embed_dim
    if _recurrent.is_lstm(module):
        return _recurrent.sizes(module)
    if is_conv(module):
        return module.in_channels, module.out_channels
    return module.in_features, module.out_features


def dense_numel(module: nn.Module) -> int:
    """Numbers in the dense weight, which are its multiply-adds for a row."""
    if _attention.is_attention(module):
        return _attention.dense_numel(module)
    if _recurrent.is_lstm(module):
        return _recurrent.dense_numel(module)
    in_size, out_size = sizes(module)
    if not is_conv(module):
        return in_size * out_size
    return out_size * (in_size // module.groups) * math.prod(module.kernel_size)


def break_even(module: nn.Module, mode: str = "separable") -> int:
    """The largest rank whose factors cost less than the dense weight; ``mode`` is for convolutions that are dense."""
    if isinstance(module, Cored) and not is_conv(module):
        return _oialr.break_even(module)
    if _attention.is_attention(module):
        return _attention.break_even(module)
    if _recurrent.is_lstm(module):
        return _recurrent.break_even(module)
    if not is_conv(module):
        return break_even_rank(*sizes(module))
    if isinstance(module, Cored) or len(module.kernel_size) != 2:
        mode = "pointwise"
    mode = getattr(module, "mode", mode)
    return conv_break_even_rank(*sizes(module), module.kernel_size, mode, module.groups, module.stride)


def work(module: nn.Module, calls: list[Call] | None) -> Work:
    """Of these calls; None if the model was not run."""
    dense = dense_numel(module)
    if calls is None:
        return Work(None, _macs_of_a_row(module), dense, None)
    if not calls:
        return Work(0, 0, 0, None)
    if isinstance(module, Cored):
        rows, macs, dense, kernel = _work_of_cores(module, calls)
        return Work(rows, macs, dense, kernel, _why(kernel, macs, dense))
    if _attention.is_attention(module) or _recurrent.is_lstm(module):
        family = _recurrent if _recurrent.is_lstm(module) else _attention
        rows, macs, dense, kernel = family.rows_and_macs(module, calls)
        return Work(rows, macs, dense, kernel, None if kernel == "dense" else _why(kernel, macs, dense))
    rows = sum(_rows(module, call) for call in calls)
    if not isinstance(module, Factored):
        return Work(rows, rows * dense, rows * dense, "dense")
    plan = _plan_conv if is_conv(module) else _plan_linear
    plans = [plan(module, call) for call in calls]
    kernel, macs = plans[0][0], sum(macs for _, macs in plans)
    return Work(rows, macs, rows * dense, kernel, _why(kernel, macs, rows * dense))


def _work_of_cores(module: Cored, calls: list) -> tuple[int, int, int, str]:
    """Rows, multiply-adds, those of the dense layer, and the kernel of the first call."""
    if _attention.is_attention(module):
        rows, dense = sum(call.rows[0] for call in calls), _attention.dense_macs(module, calls)
        plans = [plan for call in calls for plan in _attention.core_plans(module, call)]
    else:
        each = [_rows(module, call) for call in calls]
        rows, dense = sum(each), sum(each) * dense_numel(module)
        plans = [_plan_core(module, n, call) for n, call in zip(each, calls, strict=True)]
    return rows, sum(macs for _, macs in plans), dense, plans[0][0]


def _why(kernel: str, macs: int, dense_macs: int) -> str:
    """What speaks for the kernel of a low-rank layer."""
    return _WHY.get(kernel, f"{dense_macs / max(1, macs):.1f}x fewer multiply-adds")


def _rows(module: nn.Module, call: Call) -> int:
    if is_conv(module):
        return math.prod(call.y_shape) // max(1, module.out_channels)
    return math.prod(call.x_shape[:-1])


def _plan_linear(module: nn.Module, call: Call) -> tuple[str, int]:
    """Kernel and multiply-adds of a call."""
    extents = _rows(module, call), module.in_features, module.rank, module.out_features
    plan = ops.lowrank_linear_plan(*extents, device=call.device, dtype=call.dtype)
    return plan.kernel, plan.macs


def _plan_core(module: Cored, rows: int, call: Call) -> tuple[str, int]:
    """Kernel and multiply-adds of a call."""
    (core,) = module.cores()
    out, fan_in = core.shape
    if is_conv(module):
        return _oialr.plan(core, rows, rows * out)
    plan = ops.oialr_linear_plan(rows, fan_in, core.rank, out, device=call.device, dtype=call.dtype)
    return plan.route, plan.macs


def _plan_conv(module: LowRankConv2d, call: Call) -> tuple[str, int]:
    """Kernel and multiply-adds of a call."""
    x, padding = pad_ahead(module, torch.empty(call.x_shape, device="meta"))
    batch, channels, height, width = shape = x.shape if x.dim() == 4 else (1, *x.shape)
    numbers = (module.stride, padding, module.dilation, module.groups, module.mode)
    # Where the plan is not carried out: float64, and inner biases that no dense convolution can express.
    weights = module.weight_v.shape, module.weight_u.shape, module.inner_bias is not None
    cuda = call.device.type == "cuda"
    route = _conv.route("auto", False, cuda, call.dtype, call.channels_last, shape, *weights, *numbers)
    if cuda:
        return route.kernel, _conv.cuda_macs(route.kernel, shape, *weights[:2], route.geometry)
    plan = ops.lowrank_conv2d_plan(
        batch, channels, module.rank, module.out_channels, height, width, module.kernel_size, *numbers,
        channels_last=call.channels_last, dtype=call.dtype,
    )  # fmt: skip
    return plan.kernel if route.kernel == "fused" else route.kernel, plan.macs


def _macs_of_a_row(module: nn.Module) -> int:
    """Away from borders; a separable pair computes the rows that the vertical stride skips in its second half."""
    if isinstance(module, Cored):
        return _oialr.macs_of_a_row(module)
    if _attention.is_attention(module):
        return _attention.macs_of_a_row(module)
    if _recurrent.is_lstm(module):
        return _recurrent.macs_of_a_row(module)
    if not isinstance(module, Factored) or module._dense_is_cheaper():
        return dense_numel(module)
    separable = isinstance(module, LowRankConv2d) and module.mode == "separable"
    return module.weight_v.numel() * (module.stride[0] if separable else 1) + module.weight_u.numel()
