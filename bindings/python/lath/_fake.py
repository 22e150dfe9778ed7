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

_DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def _sum_dtype(t: Tensor) -> torch.dtype:
    """The type that sums are kept in."""
    return torch.float64 if t.dtype == torch.float64 else torch.float32


def _expect(condition, operator: str, name: str, message: Callable[[], str]) -> None:
    """Raise RuntimeError in the words of the C kernels."""
    torch._check(condition, lambda: f"lath::{operator}: {name}: {message()}")


def _check_dtypes(operator: str, first: str, reference: Tensor, **others: Tensor) -> None:
    _expect(
        reference.dtype in _DTYPES,
        operator,
        first,
        lambda: f"got dtype {reference.dtype}, expected torch.float32, torch.float64 or torch.bfloat16",
    )
    for name, t in others.items():
        _expect(
            t.dtype == reference.dtype,
            operator,
            name,
            lambda t=t: f"got dtype {t.dtype}, expected {reference.dtype} like {first}",
        )


def _check_matrix(operator: str, name: str, t: Tensor) -> None:
    _expect(t.dim() == 2, operator, name, lambda: f"got shape {tuple(t.shape)}, expected 2 dimensions")


def _check_bias(operator: str, name: str, t: Tensor, extent, like: Tensor) -> None:
    """A vector of the extent, or any tensor without elements."""
    if t.numel() == 0:
        return
    _check_dtypes(operator, "x", like, **{name: t})
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
    _check_dtypes(operator, "x", x, weight_v=weight_v, weight_u=weight_u)
    _check_factors(operator, weight_v, weight_u)
    _check_last(operator, "x", x, weight_v.shape[1])
    _check_bias(operator, "bias", bias, weight_u.shape[0], x)
    _check_bias(operator, "inner_bias", inner_bias, weight_v.shape[0], x)


@torch.library.register_fake("lath::linear")
def _(x, weight, bias):
    _check_dtypes("linear", "x", x, weight=weight)
    _check_matrix("linear", "weight", weight)
    _check_last("linear", "x", x, weight.shape[1])
    _check_bias("linear", "bias", bias, weight.shape[0], x)
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
    return y, x.new_empty(kept, dtype=_sum_dtype(x))


@torch.library.register_fake("lath::lowrank_linear_backward")
def _(dy, x, weight_v, weight_u, inner_bias, p, mask=31, association=0):
    name = "lowrank_linear_backward"
    _check_dtypes(name, "x", x, dy=dy, weight_v=weight_v, weight_u=weight_u)
    _check_factors(name, weight_v, weight_u)
    _check_last(name, "x", x, weight_v.shape[1])
    _check_last(name, "dy", dy, weight_u.shape[0])
    _check_bias(name, "inner_bias", inner_bias, weight_v.shape[0], x)
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


@torch.library.register_fake("lath::frobenius_decay")
def _(weight_v, weight_u):
    _check_dtypes("frobenius_decay", "weight_v", weight_v, weight_u=weight_u)
    _check_factors("frobenius_decay", weight_v, weight_u)
    rank, dtype = weight_v.shape[0], _sum_dtype(weight_v)
    gram_v, gram_u = (weight_v.new_empty((rank, rank), dtype=dtype) for _ in range(2))
    return weight_v.new_empty((), dtype=dtype), gram_v, gram_u


@torch.library.register_fake("lath::frobenius_decay_backward")
def _(grad, weight_v, weight_u, gram_v, gram_u):
    name = "frobenius_decay_backward"
    _check_dtypes(name, "weight_v", weight_v, weight_u=weight_u)
    _check_factors(name, weight_v, weight_u)
    _expect(
        grad.dim() == 0, name, "grad", lambda: f"got shape {tuple(grad.shape)}, expected (), the gradient of a scalar"
    )
    return weight_v.new_empty(weight_v.shape), weight_u.new_empty(weight_u.shape)
