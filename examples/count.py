# SPDX-License-Identifier: Apache-2.0
"""Counting what a network computes, from the shapes that pass through it; nothing is calculated.

A *product* is one multiplication of a weight with values: a dense layer has one, a low-rank layer two, one in an
orthogonal basis three, of which only the core in the middle trains.
"""

from __future__ import annotations

import copy
import math

import torch
from lath.nn import LowRankConv2d, LowRankLinear, LowRankLSTM, OIALRConv2d, OIALRLinear
from torch import nn

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm)
_POOLS = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)
_BASES = (OIALRConv2d, OIALRLinear)
_PRODUCTS = (nn.Conv2d, nn.Linear, LowRankConv2d, LowRankLinear, *_BASES)

Call = tuple[nn.Module, torch.Size, torch.Size]


def products(model: nn.Module, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[int]:
    """Multiply-adds of each product for one input of this shape (batch first), in the order in which they are done.

    Those of an LSTM are one for each weight over the whole sequence; those of attention over heads, a module with
    ``heads``, are the scores and the weighted sums. ``dtype`` is that of the input: int64 for words.
    """
    return [macs for call in _calls(model, shape, dtype) for macs in _products(*call)]


def inference_macs(model: nn.Module, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> int:
    """Multiply-adds of a forward pass for an input of this shape."""
    return sum(products(model, shape, dtype))


def training_macs(model: nn.Module, shape: tuple[int, ...]) -> int:
    """The same for a training step: three products for each one, two for a frozen basis; no gradient of the input."""
    calls = _calls(model, shape, torch.float32)
    each = [macs for call in calls for macs in _products(*call)]
    frozen = sum(vh + u for vh, _, u in (_products(*call) for call in calls if isinstance(call[0], _BASES)))
    return 3 * sum(each) - frozen - each[0]


def fvcore_flops(model: nn.Module, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> int:
    """What fvcore's counter calls the FLOPs of a network in training mode.

    The multiply-adds, 5 for each value that enters a batch or layer norm, 1 for each that enters an adaptive average
    pool. Biases, activations, max-pools, dropout, residual sums and LSTMs count nothing.
    """
    calls = _calls(model, shape, dtype)
    return sum(sum(_products(*call)) + _passes(*call) for call in calls if not _is_lstm(call[0]))


def parameters(model: nn.Module) -> int:
    """Numbers that are learned; one that is registered in several places counts once."""
    return sum(p.numel() for p in model.parameters())


def _calls(model: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> list[Call]:
    """Every call of a counted module with the shapes of its input and output, seen on a copy without values."""
    calls: list[Call] = []
    twin = copy.deepcopy(model).to("meta").eval()

    def record(module: nn.Module, args: tuple, y: torch.Tensor | tuple) -> None:
        calls.append((module, args[0].shape, (y[0] if isinstance(y, tuple) else y).shape))

    for module in twin.modules():
        if isinstance(module, (*_PRODUCTS, *_NORMS, *_POOLS)) or _is_lstm(module) or _is_attention(module):
            module.register_forward_hook(record)
    with torch.no_grad():
        twin(torch.empty(shape, dtype=dtype, device="meta"))
    return calls


def _is_lstm(module: nn.Module) -> bool:
    return isinstance(module, (nn.LSTM, LowRankLSTM))


def _is_attention(module: nn.Module) -> bool:
    return hasattr(module, "heads") and not any(module.parameters())


def _products(module: nn.Module, x: torch.Size, y: torch.Size) -> tuple[int, ...]:
    """Of one call: every weight is used once for each position of what it makes."""
    if isinstance(module, LowRankLinear):
        rows = math.prod(x[:-1])
        return module.weight_v.numel() * rows, module.weight_u.numel() * rows
    if isinstance(module, LowRankConv2d):
        batch, _, height, width = y
        middle = x[2] if module.mode == "separable" else height  # 1 x kw leaves the height to kh x 1
        return module.weight_v.numel() * batch * middle * width, module.weight_u.numel() * batch * height * width
    if isinstance(module, _BASES):
        positions, groups = math.prod(y) // module.weight_u.shape[0], getattr(module, "groups", 1)
        thin = groups * positions  # a basis on the side of x serves each group of channels
        return module.weight_vh.numel() * thin, module.weight_s.numel() * thin, module.weight_u.numel() * positions
    if _is_lstm(module):
        return tuple(p.numel() * math.prod(x[:-1]) for p in module.parameters() if p.dim() == 2)
    if _is_attention(module):
        return (math.prod(x) * x[-2],) * 2
    if isinstance(module, nn.Conv2d):
        return (module.weight.numel() * y[0] * y[2] * y[3],)
    if isinstance(module, nn.Linear):
        return (module.weight.numel() * math.prod(x[:-1]),)
    return ()


def _passes(module: nn.Module, x: torch.Size, y: torch.Size) -> int:
    if isinstance(module, _NORMS):
        return 5 * x.numel()
    return x.numel() if isinstance(module, _POOLS) else 0
