# SPDX-License-Identifier: Apache-2.0
"""Shape functions of the operators, for meta tensors, torch.compile and torch.export.

They check what the C kernels check, in terms that hold for symbolic extents, and return empty tensors of the shape,
dtype and strides that the kernels return.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

_DTYPES = {
    "cpu": ((torch.float32, torch.float64, torch.bfloat16), "torch.float32, torch.float64 or torch.bfloat16"),
    "cuda": (
        (torch.float32, torch.float64, torch.bfloat16, torch.float16),
        "torch.float32, torch.float64, torch.bfloat16 or torch.float16",
    ),
}


def _p_dtype(t: Tensor) -> torch.dtype:
    """The type of the intermediate."""
    return t.dtype if t.device.type == "cuda" else _sum_dtype(t)


def _sum_dtype(t: Tensor) -> torch.dtype:
    """The type that sums are kept in."""
    return torch.float64 if t.dtype == torch.float64 else torch.float32


def _expect(condition, operator: str, name: str, message: Callable[[], str]) -> None:
    """Raise RuntimeError in the words of the C kernels."""
    torch._check(condition, lambda: f"lath::{operator}: {name}: {message()}")


def check_dtypes(operator: str, first: str, reference: Tensor, **others: Tensor) -> None:
    dtypes, text = _DTYPES.get(reference.device.type, _DTYPES["cpu"])
    _expect(reference.dtype in dtypes, operator, first, lambda: f"got dtype {reference.dtype}, expected {text}")
    for name, t in others.items():
        _expect(
            t.device == reference.device,
            operator,
            name,
            lambda t=t: f"got a tensor on {t.device}, expected {reference.device} like {first}",
        )
        _expect(
            t.dtype == reference.dtype,
            operator,
            name,
            lambda t=t: f"got dtype {t.dtype}, expected {reference.dtype} like {first}",
        )


def _check_matrix(operator: str, name: str, t: Tensor) -> None:
    _expect(t.dim() == 2, operator, name, lambda: f"got shape {tuple(t.shape)}, expected 2 dimensions")


def check_bias(operator: str, name: str, t: Tensor, extent, like: Tensor) -> None:
    """A vector of the extent, or any tensor without elements."""
    if t.numel() == 0:
        return
    check_dtypes(operator, "x", like, **{name: t})
    _expect(
        t.dim() == 1 and t.shape[0] == extent,
        operator,
        name,
        lambda: f"got shape {tuple(t.shape)}, expected ({extent},), or no elements for none",
    )


def _check_last(operator: str, name: str, t: Tensor, extent) -> None:
    _expect(t.dim() >= 1, operator, name, lambda: "got shape (), expected (..., features)")
    _expect(
        t.shape[-1] == extent,
        operator,
        name,
        lambda: f"got shape {tuple(t.shape)}, expected {extent} in the last place",
    )


def _check_factors(operator: str, weight_v: Tensor, weight_u: Tensor) -> None:
    _check_matrix(operator, "weight_v", weight_v)
    _check_matrix(operator, "weight_u", weight_u)
    rank = weight_v.shape[0]
    _expect(rank >= 1, operator, "weight_v", lambda: "got rank 0, expected at least 1")
    _expect(
        weight_u.shape[1] == rank,
        operator,
        "weight_u",
        lambda: f"got shape {tuple(weight_u.shape)}, expected (out_features, {rank}) to match the rank of weight_v",
    )


def _check_lowrank(operator, x, weight_v, weight_u, bias, inner_bias) -> None:
    check_dtypes(operator, "x", x, weight_v=weight_v, weight_u=weight_u)
    _check_factors(operator, weight_v, weight_u)
    _check_last(operator, "x", x, weight_v.shape[1])
    check_bias(operator, "bias", bias, weight_u.shape[0], x)
    check_bias(operator, "inner_bias", inner_bias, weight_v.shape[0], x)


@torch.library.register_fake("lath::linear")
def _(x, weight, bias):
    check_dtypes("linear", "x", x, weight=weight)
    _check_matrix("linear", "weight", weight)
    _check_last("linear", "x", x, weight.shape[1])
    check_bias("linear", "bias", bias, weight.shape[0], x)
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@torch.library.register_fake("lath::lowrank_linear")
def _(x, weight_v, weight_u, bias, inner_bias, association=0):
    _check_lowrank("lowrank_linear", x, weight_v, weight_u, bias, inner_bias)
    return x.new_empty((*x.shape[:-1], weight_u.shape[0]))


@torch.library.register_fake("lath::lowrank_linear_forward")
def _(x, weight_v, weight_u, bias, inner_bias, save=True, association=0):
    _check_lowrank("lowrank_linear_forward", x, weight_v, weight_u, bias, inner_bias)
    y = x.new_empty((*x.shape[:-1], weight_u.shape[0]))
    merged = association == 2  # then there is no intermediate to keep
    kept = (math.prod(x.shape[:-1]), weight_v.shape[0]) if save and not merged else (0,)
    return y, x.new_empty(kept, dtype=_p_dtype(x))


@torch.library.register_fake("lath::lowrank_linear_backward")
def _(dy, x, weight_v, weight_u, inner_bias, p, mask=31, association=0):
    name = "lowrank_linear_backward"
    check_dtypes(name, "x", x, dy=dy, weight_v=weight_v, weight_u=weight_u)
    _check_factors(name, weight_v, weight_u)
    _check_last(name, "x", x, weight_v.shape[1])
    _check_last(name, "dy", dy, weight_u.shape[0])
    check_bias(name, "inner_bias", inner_bias, weight_v.shape[0], x)
    _expect(
        dy.shape[:-1] == x.shape[:-1],
        name,
        "dy",
        lambda: f"got shape {tuple(dy.shape)}, expected the leading dimensions of x, {tuple(x.shape[:-1])}",
    )
    _expect(0 <= mask <= 31, name, "mask", lambda: f"got {mask}, expected 0 to 31")
    (rank, in_features), out_features = weight_v.shape, weight_u.shape[0]
    shapes = (x.shape, (rank, in_features), (out_features, rank), (out_features,), (rank,))
    return tuple(x.new_empty(shape if mask >> bit & 1 else (0,)) for bit, shape in enumerate(shapes))


def check_conv_shapes(operator, x, v, u, *geometry) -> tuple:
    """Check the shapes of a convolution, given as sizes: height of p, height and width of y."""
    stride_h, stride_w, top, bottom, left, right, dilation_h, dilation_w, groups, separable = geometry
    names = ("stride_h", "stride_w", "pad_top", "pad_bottom", "pad_left", "pad_right", "dilation_h", "dilation_w")
    for name, value in zip((*names, "groups"), geometry[:9], strict=True):
        low = 0 if name.startswith("pad") else 1
        _expect(value >= low, operator, name, lambda v=value, low=low: f"got {v}, expected at least {low}")

    def expect(condition, name: str, shape, expected: Callable[[], str]) -> None:
        _expect(condition, operator, name, lambda: f"got shape {tuple(shape)}, expected {expected()}")

    expect(len(x) == 4, "x", x, lambda: "(batch, in_channels, height, width)")
    expect(x[2] > 0, "x", x, lambda: "images of at least one pixel")
    expect(x[3] > 0, "x", x, lambda: "images of at least one pixel")
    expect(x[1] % groups == 0, "x", x, lambda: f"channels that are a multiple of groups, {groups}")
    for name, shape in (("weight_v", v), ("weight_u", u)):
        expect(len(shape) == 4, name, shape, lambda: "4 dimensions")
        expect(shape[2] > 0 and shape[3] > 0, name, shape, lambda: "at least one tap")
    _expect(v[0] > 0, operator, "weight_v", lambda: "got rank 0, expected at least 1")
    expect(
        v[0] % groups == 0 and v[1] * groups == x[1] and (not separable or v[2] == 1),
        "weight_v",
        v,
        lambda: (
            f"({groups} * rank, {x[1] // groups}, {'1' if separable else 'kernel_h'}, kernel_w) to match "
            f"{x[1]} channels of x in {groups} groups"
        ),
    )
    expect(
        u[0] % groups == 0 and u[1] == v[0] // groups and (separable or u[2] == 1) and u[3] == 1,
        "weight_u",
        u,
        lambda: (
            f"(out_channels, {v[0] // groups}, {'kernel_h' if separable else '1'}, 1) to match the rank of "
            f"weight_v, out_channels a multiple of {groups} groups"
        ),
    )
    kernel_h, kernel_w = (u if separable else v)[2], v[3]
    reach_h, reach_w = (kernel_h - 1) * dilation_h + 1, (kernel_w - 1) * dilation_w + 1
    for extent, reach in ((x[2] + top + bottom, reach_h), (x[3] + left + right, reach_w)):
        expect(
            extent >= reach,
            "x",
            x,
            lambda: (
                f"at least {reach_h} x {reach_w} pixels with padding ({top}, {bottom}, {left}, {right}), the reach "
                f"of a {kernel_h} x {kernel_w} kernel"
            ),
        )
    height = (x[2] + top + bottom - reach_h) // stride_h + 1
    return x[2] if separable else height, height, (x[3] + left + right - reach_w) // stride_w + 1


def check_conv(operator, x, weight_v, weight_u, inner_bias, geometry) -> tuple:
    """The shapes of y and p."""
    check_dtypes(operator, "x", x, weight_v=weight_v, weight_u=weight_u)
    p_height, height, width = check_conv_shapes(operator, x.shape, weight_v.shape, weight_u.shape, *geometry)
    check_bias(operator, "inner_bias", inner_bias, weight_v.shape[0], x)
    batch, ranks, out = x.shape[0], weight_v.shape[0], weight_u.shape[0]
    return (batch, out, height, width), (batch, ranks, p_height, width)


def _images(x: Tensor, shape) -> Tensor:
    """An output in the memory format of x."""
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=suggest_memory_format(x))


@torch.library.register_fake("lath::lowrank_conv2d")
def _(x, weight_v, weight_u, bias, inner_bias, *geometry):
    y, _ = check_conv("lowrank_conv2d", x, weight_v, weight_u, inner_bias, geometry)
    check_bias("lowrank_conv2d", "bias", bias, weight_u.shape[0], x)
    return _images(x, y)


@torch.library.register_fake("lath::lowrank_conv2d_forward")
def _(x, weight_v, weight_u, bias, inner_bias, *numbers):
    geometry, save = numbers[:10], all(numbers[10:])
    y, p = check_conv("lowrank_conv2d_forward", x, weight_v, weight_u, inner_bias, geometry)
    check_bias("lowrank_conv2d_forward", "bias", bias, weight_u.shape[0], x)
    if save and x.is_cuda:
        return _images(x, y), _images(x, p)
    return _images(x, y), x.new_empty(p if save else (0,), dtype=_p_dtype(x))


@torch.library.register_fake("lath::lowrank_conv2d_backward")
def _(dy, x, weight_v, weight_u, inner_bias, p, *numbers):
    name = "lowrank_conv2d_backward"
    geometry, mask = numbers[:10], (*numbers[10:], 31)[0]
    y, _ = check_conv(name, x, weight_v, weight_u, inner_bias, geometry)
    check_dtypes(name, "x", x, dy=dy)
    _expect(
        dy.dim() == 4 and all(n == m for n, m in zip(dy.shape, y, strict=True)),
        name,
        "dy",
        lambda: f"got shape {tuple(dy.shape)}, expected {y}, the shape of the output",
    )
    _expect(0 <= mask <= 31, name, "mask", lambda: f"got {mask}, expected 0 to 31")
    shapes = (weight_v.shape, weight_u.shape, weight_u.shape[:1], weight_v.shape[:1])
    dx = _images(x, x.shape) if mask & 1 else x.new_empty(0)
    return dx, *(x.new_empty(shape if mask >> bit & 1 else (0,)) for bit, shape in enumerate(shapes, 1))


_MERGED_ROUTE = 3  # enum lath_oialr_route


def _check_basis(
    operator: str, first: str, like: Tensor, weight_vh: Tensor, weight_s: Tensor, weight_u: Tensor
) -> None:
    check_dtypes(operator, first, like, weight_vh=weight_vh, weight_s=weight_s, weight_u=weight_u)
    for name, weight in (("weight_vh", weight_vh), ("weight_s", weight_s), ("weight_u", weight_u)):
        _check_matrix(operator, name, weight)
    rank = weight_vh.shape[0]
    _expect(rank >= 1, operator, "weight_vh", lambda: "got rank 0, expected at least 1")
    _expect(
        weight_s.shape[0] == rank and weight_s.shape[1] == rank,
        operator,
        "weight_s",
        lambda: f"got shape {tuple(weight_s.shape)}, expected ({rank}, {rank}) to match the rank of weight_vh",
    )
    _expect(
        weight_u.shape[1] == rank,
        operator,
        "weight_u",
        lambda: f"got shape {tuple(weight_u.shape)}, expected (out_features, {rank}) to match the rank of weight_vh",
    )


def _oialr_output(operator: str, x, weight_vh, weight_s, weight_u, bias) -> Tensor:
    _check_basis(operator, "x", x, weight_vh, weight_s, weight_u)
    _check_last(operator, "x", x, weight_vh.shape[1])
    check_bias(operator, "bias", bias, weight_u.shape[0], x)
    return x.new_empty((*x.shape[:-1], weight_u.shape[0]))


@torch.library.register_fake("lath::oialr_linear")
def _(x, weight_vh, weight_s, weight_u, bias, route=0):
    return _oialr_output("oialr_linear", x, weight_vh, weight_s, weight_u, bias)


@torch.library.register_fake("lath::oialr_linear_forward")
def _(x, weight_vh, weight_s, weight_u, bias, save=True, route=0):
    y = _oialr_output("oialr_linear_forward", x, weight_vh, weight_s, weight_u, bias)
    kept = (math.prod(x.shape[:-1]), weight_vh.shape[0]) if save and route != _MERGED_ROUTE else (0,)
    return y, x.new_empty(kept, dtype=_p_dtype(x))


@torch.library.register_fake("lath::oialr_linear_backward")
def _(dy, x, weight_vh, weight_s, weight_u, t, mask=7, route=0):
    name = "oialr_linear_backward"
    _check_basis(name, "dy", dy, weight_vh, weight_s, weight_u)
    _check_last(name, "dy", dy, weight_u.shape[0])
    shapes = ((*dy.shape[:-1], weight_vh.shape[1]), weight_s.shape, (weight_u.shape[0],))
    return tuple(dy.new_empty(shape if mask >> bit & 1 else (0,)) for bit, shape in enumerate(shapes))


@torch.library.register_fake("lath::frobenius_decay")
def _(weight_v, weight_u):
    check_dtypes("frobenius_decay", "weight_v", weight_v, weight_u=weight_u)
    _check_factors("frobenius_decay", weight_v, weight_u)
    rank, dtype = weight_v.shape[0], _sum_dtype(weight_v)
    gram_v, gram_u = (weight_v.new_empty((rank, rank), dtype=dtype) for _ in range(2))
    return weight_v.new_empty((), dtype=dtype), gram_v, gram_u


@torch.library.register_fake("lath::frobenius_decay_backward")
def _(grad, weight_v, weight_u, gram_v, gram_u):
    name = "frobenius_decay_backward"
    check_dtypes(name, "weight_v", weight_v, weight_u=weight_u)
    _check_factors(name, weight_v, weight_u)
    _expect(
        grad.dim() == 0, name, "grad", lambda: f"got shape {tuple(grad.shape)}, expected (), the gradient of a scalar"
    )
    return weight_v.new_empty(weight_v.shape), weight_u.new_empty(weight_u.shape)


def _check_shape(operator: str, name: str, t: Tensor, shape: tuple, expected: str) -> None:
    same = t.dim() == len(shape) and all(n == m for n, m in zip(t.shape, shape, strict=True))
    _expect(same, operator, name, lambda: f"got shape {tuple(t.shape)}, expected {expected.format(*shape)}")


def _check_lstm(operator, x, h0, c0, v_in, u_in, v, u, bias_in, bias, batch_sizes, batch_first):
    """Check the operands of an LSTM: rows of all steps, batch, hidden size."""
    _expect(
        x.dtype in (torch.float32, torch.float64),
        operator,
        "x",
        lambda: f"got dtype {x.dtype}, expected torch.float32 or torch.float64",
    )
    check_dtypes(operator, "x", x, u_in=u_in, v=v, u=u)
    leading = "batch, steps" if batch_first else "steps, batch"
    _expect(
        x.dim() in (2, 3),
        operator,
        "x",
        lambda: f"got shape {tuple(x.shape)}, expected ({leading}, in_features), or packed (rows, in_features)",
    )
    _check_matrix(operator, "u", u)
    (gates, rank), in_features = u.shape, x.shape[-1]
    _expect(
        gates % 4 == 0 and gates >= 4,
        operator,
        "u",
        lambda: f"got shape {tuple(u.shape)}, expected (4 * hidden, rank)",
    )
    hidden = gates // 4
    _expect(rank >= 1, operator, "v", lambda: "got rank 0, expected at least 1")
    _check_shape(operator, "v", v, (rank, hidden), "({}, {}), the rank of u by the hidden size")
    columns = in_features
    if v_in.numel() != 0:
        check_dtypes(operator, "x", x, v_in=v_in)
        _check_matrix(operator, "v_in", v_in)
        columns = v_in.shape[0]
        _check_shape(operator, "v_in", v_in, (columns, in_features), "({}, {}) to match the last dimension of x")
    _check_shape(operator, "u_in", u_in, (gates, columns), "({}, {}) to match u and what is before it")
    check_bias(operator, "bias_in", bias_in, gates, x)
    check_bias(operator, "bias", bias, gates, x)
    if x.dim() == 2:
        _expect(
            h0.dim() == 2,
            operator,
            "h0",
            lambda: f"got shape {tuple(h0.shape)}, expected (batch, {hidden}), which a packed sequence needs",
        )
        rows, batch = x.shape[0], h0.shape[0]
    else:
        _expect(
            batch_sizes.numel() == 0,
            operator,
            "batch_sizes",
            lambda: f"got shape {tuple(batch_sizes.shape)}, expected no elements for x of 3 dimensions",
        )
        rows, batch = x.shape[0] * x.shape[1], x.shape[0 if batch_first else 1]
    for name, state in (("h0", h0), ("c0", c0)):
        _check_state(operator, name, state, batch, hidden, x)
    return rows, batch, hidden


def _check_state(operator: str, name: str, state: Tensor, batch, hidden, like: Tensor) -> None:
    """(batch, hidden), or any tensor without elements."""
    if state.numel() == 0:
        return
    check_dtypes(operator, "x", like, **{name: state})
    _check_shape(operator, name, state, (batch, hidden), "({}, {}), batch by hidden size, or no elements")


@torch.library.register_fake("lath::lowrank_lstm_forward")
def _(x, h0, c0, v_in, u_in, v, u, bias_in, bias, batch_sizes, reverse=False, batch_first=False, save=0, association=0):
    name = "lowrank_lstm_forward"
    rows, batch, hidden = _check_lstm(name, x, h0, c0, v_in, u_in, v, u, bias_in, bias, batch_sizes, batch_first)
    _expect(0 <= save <= 2, name, "save", lambda: f"got {save}, expected 0 to 2")
    return (
        x.new_empty((*x.shape[:-1], hidden)),
        x.new_empty((batch, hidden)),
        x.new_empty((batch, hidden)),
        x.new_empty((rows, hidden) if save >= 1 else (0,)),
        x.new_empty((rows, 4 * hidden) if save >= 2 else (0,)),
    )


@torch.library.register_fake("lath::lowrank_lstm_backward")
def _(
    dy, dhn, dcn, x, h0, c0, y, c, gates, v_in, u_in, v, u, bias_in, bias, batch_sizes, reverse=False,
    batch_first=False, mask=255, association=0,
):  # fmt: skip
    name = "lowrank_lstm_backward"
    rows, batch, hidden = _check_lstm(name, x, h0, c0, v_in, u_in, v, u, bias_in, bias, batch_sizes, batch_first)
    check_dtypes(name, "x", x, y=y)
    _check_shape(name, "y", y, (*x.shape[:-1], hidden), "the leading dimensions of x, then the units")
    if dy.numel() != 0:
        check_dtypes(name, "x", x, dy=dy)
        _check_shape(name, "dy", dy, (*x.shape[:-1], hidden), "the leading dimensions of x, then the units")
    _check_state(name, "dhn", dhn, batch, hidden, x)
    _check_state(name, "dcn", dcn, batch, hidden, x)
    if rows != 0:
        check_dtypes(name, "x", x, c=c)
        _check_shape(name, "c", c, (rows, hidden), "({}, {}) as the forward kept it")
    if gates.numel() != 0:
        check_dtypes(name, "x", x, gates=gates)
        _check_shape(name, "gates", gates, (rows, 4 * hidden), "({}, {}) as the forward kept it, or no elements")
    _expect(0 <= mask <= 255, name, "mask", lambda: f"got {mask}, expected 0 to 255")
    state, no_v_in = (batch, hidden), v_in.numel() == 0
    shapes = (x.shape, state, state, (0,) if no_v_in else v_in.shape, u_in.shape, v.shape, u.shape, u.shape[:1])
    return tuple(x.new_empty(shape if mask >> bit & 1 else (0,)) for bit, shape in enumerate(shapes))
