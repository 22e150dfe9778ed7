# SPDX-License-Identifier: Apache-2.0
"""Gradients: autograd.Functions that join the forward operators to the backward ones.

Each ``backward`` has two ways. The plain one calls the backward operator. When the backward pass itself is to be
differentiated (``create_graph=True``, gradgradcheck, torch.func) the same formulas are written in torch operators,
which autograd can follow. A compiled graph has no second derivative, so there the operator is always taken.

torch.func needs a Function with ``setup_context``, for which ``apply`` binds arguments in Python: 16 us a call, as much
as the whole forward of a small layer. Plain eager calls go through a twin without it, which costs 3 us.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import _batching, _conv, _lstm
from ._frozen_conv import is_channels_last, unread

_linear = torch.ops.lath.linear.default
_forward = torch.ops.lath.lowrank_linear_forward.default
_backward = torch.ops.lath.lowrank_linear_backward.default
_conv2d_forward = torch.ops.lath.lowrank_conv2d_forward.default
_conv2d_backward = torch.ops.lath.lowrank_conv2d_backward.default
_lstm_forward = torch.ops.lath.lowrank_lstm_forward.default
_lstm_backward = torch.ops.lath.lowrank_lstm_backward.default
_oialr_forward = torch.ops.lath.oialr_linear_forward.default
_oialr_backward = torch.ops.lath.oialr_linear_backward.default
_frobenius = torch.ops.lath.frobenius_decay.default
_frobenius_backward = torch.ops.lath.frobenius_decay_backward.default


def _differentiating_backward() -> bool:
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def _rows(t: Tensor) -> Tensor:
    """(..., n) as the matrix (rows, n); unlike reshape(-1, n) also for zero-size tensors."""
    return t.reshape(math.prod(t.shape[:-1]), t.shape[-1])


def _needs_setup_context() -> bool:
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def lowrank_linear(x, weight_v, weight_u, bias, inner_bias, save, association) -> Tensor:
    """y, with gradients. Absent biases are tensors without elements, ``association`` is a number."""
    if _needs_setup_context():
        return LowRankLinearFunction.apply(x, weight_v, weight_u, bias, inner_bias, save, association)[0]
    return EagerLowRankLinearFunction.apply(x, weight_v, weight_u, bias, inner_bias, save, association)


class LowRankLinearFunction(torch.autograd.Function):
    """``(y, p) = apply(x, weight_v, weight_u, bias, inner_bias, save, association)``; p is not differentiable."""

    @staticmethod
    def forward(x, weight_v, weight_u, bias, inner_bias, save, association):
        return _forward(x, weight_v, weight_u, bias, inner_bias, save, association)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight_v, weight_u, _, inner_bias, _, association = inputs
        p = output[1]
        ctx.association = association
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(p)
        ctx.save_for_backward(x, weight_v, weight_u, inner_bias, p)

    @staticmethod
    def backward(ctx, dy, _):
        if dy is None:
            return (None,) * 7
        x, weight_v, weight_u, inner_bias, p = ctx.saved_tensors
        need_x, need_v, need_u, need_bias, need_inner_bias = needs = ctx.needs_input_grad[:5]
        if dy.dtype is not x.dtype:
            dy = dy.to(x.dtype)
        if _differentiating_backward():
            return (*_lowrank_grads(dy, x, weight_v, weight_u, inner_bias, needs), None, None)
        mask = need_x | need_v << 1 | need_u << 2 | need_bias << 3 | need_inner_bias << 4
        dx, dv, du, d_bias, d_inner_bias = _backward(dy, x, weight_v, weight_u, inner_bias, p, mask, ctx.association)
        return (
            dx if need_x else None,
            dv if need_v else None,
            du if need_u else None,
            d_bias if need_bias else None,
            d_inner_bias if need_inner_bias else None,
            None,
            None,
        )

    @staticmethod
    def vmap(info, in_dims, *args):
        return _batching.lowrank_linear_forward(LowRankLinearFunction.apply, info, in_dims, *args)


class EagerLowRankLinearFunction(torch.autograd.Function):
    """``y = apply(...)``, the same arguments."""

    @staticmethod
    def forward(ctx, x, weight_v, weight_u, bias, inner_bias, save, association):
        y, p = _forward(x, weight_v, weight_u, bias, inner_bias, save, association)
        ctx.association = association
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight_v, weight_u, inner_bias, p)
        return y

    @staticmethod
    def backward(ctx, dy):
        return LowRankLinearFunction.backward(ctx, dy, None)


def _lowrank_grads(dy, x, weight_v, weight_u, inner_bias, needs):
    """The five gradients in torch operators, None where not needed."""
    need_x, need_v, need_u, need_bias, need_inner_bias = needs
    dy, flat_x = _rows(dy), _rows(x)
    dp = dy @ weight_u
    dx = (dp @ weight_v).reshape(x.shape) if need_x else None
    dv = dp.mT @ flat_x if need_v else None
    du = None
    if need_u:
        p = flat_x @ weight_v.mT
        du = dy.mT @ (p + inner_bias if inner_bias.numel() else p)
    d_bias = dy.sum(0) if need_bias else None
    d_inner_bias = dp.sum(0) if need_inner_bias else None
    return dx, dv, du, d_bias, d_inner_bias


def lowrank_conv2d(x, weight_v, weight_u, bias, inner_bias, save, geometry, keep_input=True) -> Tensor:
    """y, with gradients. Absent biases are tensors without elements.

    Without ``keep_input`` an eager call keeps x only where the gradient of weight_v needs it.
    """
    if _needs_setup_context():
        return LowRankConv2dFunction.apply(x, weight_v, weight_u, bias, inner_bias, *geometry, save)[0]
    return EagerLowRankConv2dFunction.apply(x, weight_v, weight_u, bias, inner_bias, save, geometry, keep_input)


def _conv_backward(ctx, dy):
    """The gradients of the five tensors, None where not needed."""
    x, weight_v, weight_u, inner_bias, p = ctx.saved_tensors
    need_x, need_v, need_u, need_bias, need_inner_bias = needs = ctx.needs_input_grad[:5]
    if ctx.unread is not None:
        if _differentiating_backward():
            raise RuntimeError(
                "lath.lowrank_conv2d: second derivatives need x, which a call with keep_input=False has not kept; "
                "torch.func, as in torch.func.hessian, keeps it"
            )
        x = unread(ctx.unread[0], weight_v, ctx.unread[1])
    if dy.dtype is not x.dtype:
        dy = dy.to(x.dtype)
    if _differentiating_backward():
        p = _conv.intermediate(x, weight_v, inner_bias, ctx.geometry)
        return _conv.composite_grads(dy, x, weight_v, weight_u, p, ctx.geometry, needs)
    mask = need_x | need_v << 1 | need_u << 2 | need_bias << 3 | need_inner_bias << 4
    grads = _conv2d_backward(dy, x, weight_v, weight_u, inner_bias, p, *ctx.geometry, mask)
    return tuple(grad if need else None for grad, need in zip(grads, needs, strict=True))


class LowRankConv2dFunction(torch.autograd.Function):
    """``(y, p) = apply(x, weight_v, weight_u, bias, inner_bias, *geometry, save)``; p is not differentiable."""

    @staticmethod
    def forward(x, weight_v, weight_u, bias, inner_bias, *numbers):
        return _conv2d_forward(x, weight_v, weight_u, bias, inner_bias, *numbers)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight_v, weight_u, _, inner_bias, *geometry, _ = inputs
        p = output[1]
        ctx.geometry, ctx.unread = _conv.Geometry(*geometry), None
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(p)
        ctx.save_for_backward(x, weight_v, weight_u, inner_bias, p)

    @staticmethod
    def backward(ctx, dy, _):
        return (*((None,) * 5 if dy is None else _conv_backward(ctx, dy)), *(None,) * 11)

    @staticmethod
    def vmap(info, in_dims, *args):
        return _batching.lowrank_conv2d_forward(LowRankConv2dFunction.apply, info, in_dims, *args)


class EagerLowRankConv2dFunction(torch.autograd.Function):
    """``y = apply(x, weight_v, weight_u, bias, inner_bias, save, geometry, keep_input)``."""

    @staticmethod
    def forward(ctx, x, weight_v, weight_u, bias, inner_bias, save, geometry, keep_input):
        y, p = _conv2d_forward(x, weight_v, weight_u, bias, inner_bias, *geometry, save)
        ctx.geometry, ctx.unread = geometry, None
        ctx.set_materialize_grads(False)
        _, need_v, need_u, *_ = ctx.needs_input_grad
        if not (keep_input or need_v or (need_u and p.numel() == 0)):
            ctx.unread, x = (x.shape, is_channels_last(x)), None
        ctx.save_for_backward(x, weight_v, weight_u, inner_bias, p)
        return y

    @staticmethod
    def backward(ctx, dy):
        return (*((None,) * 5 if dy is None else _conv_backward(ctx, dy)), None, None, None)


class LowRankLSTMFunction(torch.autograd.Function):
    """``(y, hn, cn, c, gates) = apply(x, h0, c0, *weights, batch_sizes, reverse, batch_first, save, association)``.

    The arguments are those of the operator, ``weights`` are six tensors; c and gates are not differentiable. A call
    takes long enough for this class to serve eager calls too.
    """

    @staticmethod
    def forward(*args):
        return _lstm_forward(*args)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, reverse, batch_first, _, association = inputs
        y, _, _, c, gates = output
        ctx.flags, ctx.association = (reverse, batch_first), association
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(c, gates)
        ctx.save_for_backward(*tensors, y, c, gates)

    @staticmethod
    def backward(ctx, dy, dhn, dcn, *_):
        *needs, need_bias_in, need_bias = ctx.needs_input_grad[:9]
        grads = dy, dhn, dcn
        if all(grad is None for grad in grads):
            return (None,) * 14
        needs.append(need_bias_in or need_bias)
        results = _lstm_grads(ctx, grads, needs)
        results = [result if need else None for result, need in zip(results, needs, strict=True)]
        return (*results, results[-1], *(None,) * 5)  # both biases have the same gradient

    @staticmethod
    def vmap(info, in_dims, *args):
        return _batching.loop(LowRankLSTMFunction.apply, info, in_dims, *args)


def _lstm_grads(ctx, grads, needs) -> tuple:
    """The eight gradients; those that are not needed are of no use."""
    x, h0, c0, *weights, batch_sizes, y, c, gates = ctx.saved_tensors
    grads = [grad if grad is None or grad.dtype is x.dtype else grad.to(x.dtype) for grad in grads]
    if _differentiating_backward():
        h0, c0, *weights = (t if t.numel() else None for t in (h0, c0, *weights))
        layout = _lstm.Layout.of(batch_sizes if x.dim() == 2 else None, *ctx.flags)
        return _lstm.composite_grads(grads, x, h0, c0, _lstm.Weights(*weights), layout)
    mask = sum(need << bit for bit, need in enumerate(needs))
    grads = [x.new_empty(0) if grad is None else grad for grad in grads]
    return _lstm_backward(*grads, x, h0, c0, y, c, gates, *weights, batch_sizes, *ctx.flags, mask, ctx.association)


def oialr_linear(x, weight_vh, weight_s, weight_u, bias, save, route) -> Tensor:
    """y, with gradients of x, weight_s and bias. An absent bias is a tensor without elements, ``route`` is a number."""
    function = OIALRLinearFunction if _needs_setup_context() else EagerOIALRLinearFunction
    return function.apply(x, weight_vh, weight_s, weight_u, bias, save, route)[0]


def _oialr_save(ctx, inputs, t) -> None:
    """Keep x, by far the largest, only where the backward reads it."""
    x, weight_vh, weight_s, weight_u, _, ctx.keeps_t, ctx.route = inputs
    ctx.x_shape = x.shape
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(t if ctx.keeps_t else x, weight_vh, weight_s, weight_u)


def _oialr_grads(ctx, dy):
    """dx, ds and d_bias from dy, None where not needed."""
    kept, weight_vh, weight_s, weight_u = ctx.saved_tensors
    need_x, _, need_s, _, need_bias = ctx.needs_input_grad[:5]
    if dy.dtype is not weight_s.dtype:
        dy = dy.to(weight_s.dtype)
    if _differentiating_backward():
        h, t = _rows(dy) @ weight_u, kept.to(dy.dtype) if ctx.keeps_t else _rows(kept) @ weight_vh.mT
        dx = (h @ weight_s @ weight_vh).reshape(*dy.shape[:-1], weight_vh.shape[1]) if need_x else None
        return dx, h.mT @ t if need_s else None, _rows(dy).sum(0) if need_bias else None
    absent = dy.new_empty(0)
    x, t = (absent, kept) if ctx.keeps_t else (kept, absent)
    mask = need_x | need_s << 1 | need_bias << 2
    dx, ds, d_bias = _oialr_backward(dy, x, weight_vh, weight_s, weight_u, t, mask, ctx.route)
    return dx if need_x else None, ds if need_s else None, d_bias if need_bias else None


class OIALRLinearFunction(torch.autograd.Function):
    """``(y, t) = apply(x, weight_vh, weight_s, weight_u, bias, save, route)``.

    t is differentiable, for the second derivative: the gradient of weight_s depends on x through t alone, as x itself
    is not kept.
    """

    @staticmethod
    def forward(x, weight_vh, weight_s, weight_u, bias, save, route):
        return _oialr_forward(x, weight_vh, weight_s, weight_u, bias, save, route)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _oialr_save(ctx, inputs, output[1])

    @staticmethod
    def backward(ctx, dy, dt):
        dx, ds, d_bias = (None,) * 3 if dy is None else _oialr_grads(ctx, dy)
        if dt is not None and ctx.keeps_t and ctx.needs_input_grad[0]:
            weight_vh = ctx.saved_tensors[1]
            through_t = dt.to(weight_vh.dtype) @ weight_vh
            dx = through_t.reshape(ctx.x_shape) if dx is None else dx + through_t.reshape(dx.shape)
        return dx, None, ds, None, d_bias, None, None


class EagerOIALRLinearFunction(torch.autograd.Function):
    """The same function."""

    @staticmethod
    def forward(ctx, *inputs):
        y, t = _oialr_forward(*inputs)
        _oialr_save(ctx, inputs, t)
        return y, t

    @staticmethod
    def backward(ctx, dy, dt):
        return OIALRLinearFunction.backward(ctx, dy, dt)


class LinearFunction(torch.autograd.Function):
    """``y = apply(x, weight, bias)``; the gradients are plain products, which torch's own operators compute."""

    @staticmethod
    def forward(x, weight, bias):
        return _linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, _ = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx, dy):
        if dy is None:
            return None, None, None
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad
        dy = dy.to(x.dtype)
        dx = dy @ weight if need_x else None
        d_weight = _rows(dy).mT @ _rows(x) if need_weight else None
        d_bias = _rows(dy).sum(0) if need_bias else None
        return dx, d_weight, d_bias

    @staticmethod
    def vmap(info, in_dims, *args):
        return _batching.linear(LinearFunction.apply, info, in_dims, *args)


class FrobeniusDecayFunction(torch.autograd.Function):
    """``(value, gram_v, gram_u) = apply(weight_v, weight_u)``; the Gram matrices are not differentiable."""

    @staticmethod
    def forward(weight_v, weight_u):
        return _frobenius(weight_v, weight_u)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, gram_v, gram_u = output
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(gram_v, gram_u)
        ctx.save_for_backward(*inputs, gram_v, gram_u)

    @staticmethod
    def backward(ctx, grad, *_):
        if grad is None:
            return None, None
        weight_v, weight_u, gram_v, gram_u = ctx.saved_tensors
        if _differentiating_backward():
            scale = (2 * grad).to(weight_v.dtype)
            dv = scale * (weight_u.mT @ weight_u @ weight_v)
            du = scale * (weight_u @ (weight_v @ weight_v.mT))
        else:
            dv, du = _frobenius_backward(grad, weight_v, weight_u, gram_v, gram_u)
        need_v, need_u = ctx.needs_input_grad
        return dv if need_v else None, du if need_u else None

    @staticmethod
    def vmap(info, in_dims, *args):
        return _batching.loop(FrobeniusDecayFunction.apply, info, in_dims, *args)
