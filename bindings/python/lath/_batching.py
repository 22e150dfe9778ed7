# SPDX-License-Identifier: Apache-2.0
"""Batching rules for torch.vmap, shared by the raw operators and the autograd.Functions over them.

A rule takes the callable to batch, then what torch hands to a vmap rule: ``info.batch_size``, one batch dimension or
None per argument, and the arguments. A batch of x alone is just more rows; everything else is a loop.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def loop(call, info, in_dims, *args):
    """Correct for any function: one call per element of the batch, outputs stacked."""
    results = [
        call(*(a if dim is None else a.select(dim, i) for a, dim in zip(args, in_dims, strict=True)))
        for i in range(info.batch_size)
    ]
    if isinstance(results[0], Tensor):
        return torch.stack(results), 0
    return tuple(torch.stack(outputs) for outputs in zip(*results, strict=True)), (0,) * len(results[0])


def linear(call, info, in_dims, x, *rest):
    """One output with x's leading dimensions: ``linear`` and ``lowrank_linear``."""
    if in_dims[0] is None or any(dim is not None for dim in in_dims[1:]):
        return loop(call, info, in_dims, x, *rest)
    return call(x.movedim(in_dims[0], 0), *rest), 0


def lowrank_linear_forward(call, info, in_dims, x, *rest):
    """As ``linear``, and the intermediate (rows, rank) is cut into one piece per element of the batch."""
    if in_dims[0] is None or any(dim is not None for dim in in_dims[1:]):
        return loop(call, info, in_dims, x, *rest)
    x = x.movedim(in_dims[0], 0)
    y, p = call(x, *rest)
    if p.dim() == 1:  # not kept
        return (y, p), (0, None)
    return (y, p.reshape(x.shape[0], math.prod(x.shape[1:-1]), p.shape[-1])), (0, 0)


def _fold(t: Tensor) -> Tensor:
    """(vmap batch, batch, ...) as (product of both, ...)."""
    return t.reshape(t.shape[0] * t.shape[1], *t.shape[2:])


def lowrank_conv2d(call, info, in_dims, x, *rest):
    """A batch of x alone is just more images."""
    if in_dims[0] is None or any(dim is not None for dim in in_dims[1:]):
        return loop(call, info, in_dims, x, *rest)
    x = x.movedim(in_dims[0], 0)
    return call(_fold(x), *rest).unflatten(0, x.shape[:2]), 0


def lowrank_conv2d_forward(call, info, in_dims, x, *rest):
    """The same, with the intermediate."""
    if in_dims[0] is None or any(dim is not None for dim in in_dims[1:]):
        return loop(call, info, in_dims, x, *rest)
    x = x.movedim(in_dims[0], 0)
    y, p = call(_fold(x), *rest)
    if p.dim() == 1:  # not kept
        return (y.unflatten(0, x.shape[:2]), p), (0, None)
    return (y.unflatten(0, x.shape[:2]), p.unflatten(0, x.shape[:2])), (0, 0)


def _register(name, rule):
    """The rule for a raw operator; without one torch falls back to a loop of its own and warns about it."""
    operator = getattr(torch.ops.lath, name).default

    @torch.library.register_vmap(f"lath::{name}")
    def batched(info, in_dims, *args):
        return rule(operator, info, in_dims, *args)


_register("linear", linear)
_register("lowrank_linear", linear)
_register("lowrank_linear_forward", lowrank_linear_forward)
_register("lowrank_linear_backward", loop)
_register("lowrank_conv2d", lowrank_conv2d)
_register("lowrank_conv2d_forward", lowrank_conv2d_forward)
_register("lowrank_conv2d_backward", loop)
_register("lowrank_lstm_forward", loop)
_register("lowrank_lstm_backward", loop)
_register("frobenius_decay", loop)
_register("frobenius_decay_backward", loop)
