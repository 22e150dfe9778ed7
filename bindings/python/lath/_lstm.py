# SPDX-License-Identifier: Apache-2.0
"""One low-rank LSTM layer in one direction, in torch operators.

:func:`composite` and :func:`composite_grads` loop over the steps; autograd can follow both, so they serve second
derivatives and forward mode. :func:`library` hands the merged weights to torch's own LSTM; :func:`cuda_route` says when
that serves CUDA, and when lath's own kernels do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear


class Weights(NamedTuple):
    """Of one layer; None where absent. Without v_in the input weight is dense and u_in."""

    v_in: Tensor | None
    u_in: Tensor
    v: Tensor
    u: Tensor
    bias_in: Tensor | None
    bias: Tensor | None


# Up to this hidden size cuDNN keeps dense float32 weights on the chip for all steps (docs/cuda.md).
_KEPT_BY_CUDNN = 192


def cuda_route(dtype: torch.dtype, hidden: int, rank: int, association: int, served: bool) -> str:
    """What runs a layer on CUDA: "steps", lath's own kernels, or "library".

    Args:
        dtype: of x.
        hidden: units.
        rank: of the recurrent factors, without a projection or merged with it.
        association: code of the operators; a forced one settles the route.
        served: whether the operators have kernels for CUDA here.
    """
    if not served or dtype not in (torch.float32, torch.float64):
        return "library"
    if association != 0:
        return "steps" if association == 1 else "library"
    # Multiply-adds of a sample's step; those of x can be taken for all steps at once.
    saves = rank * 5 * hidden < 4 * hidden * hidden
    on_chip = dtype == torch.float32 and hidden <= _KEPT_BY_CUDNN
    return "steps" if saves and not on_chip else "library"


class Layout(NamedTuple):
    """How the rows of a sequence lie: step by step as in nn.LSTM, or packed with so many rows in each step."""

    sizes: tuple[int, ...] | None
    reverse: bool
    batch_first: bool

    @classmethod
    def of(cls, batch_sizes: Tensor | None, reverse: bool, batch_first: bool) -> Layout:
        return cls(None if batch_sizes is None else tuple(batch_sizes.tolist()), reverse, batch_first)

    def split(self, t: Tensor) -> list[Tensor]:
        """The rows of each step."""
        if self.sizes is not None:
            return list(t.split(self.sizes)) if self.sizes else []
        return list(t.unbind(1 if self.batch_first else 0))

    def join(self, steps: list[Tensor], like: Tensor, width: int) -> Tensor:
        """The inverse; ``like`` has the leading dimensions, which count where there is no step."""
        if not steps:
            return like.new_empty((*like.shape[:-1], width))
        return torch.cat(steps) if self.sizes is not None else torch.stack(steps, 1 if self.batch_first else 0)

    def order(self, steps: int) -> range:
        """The steps as the LSTM takes them."""
        return range(steps - 1, -1, -1) if self.reverse else range(steps)


def _replace(state: Tensor, rows: Tensor) -> Tensor:
    """``state`` with other first rows: shorter samples of a packed sequence keep theirs."""
    return rows if rows.shape[0] == state.shape[0] else torch.cat([rows, state[rows.shape[0] :]])


class _Step(NamedTuple):
    """What the backward needs of one step."""

    h_before: Tensor
    c_before: Tensor
    gates: tuple[Tensor, ...]  # i, f, g, o
    c: Tensor


def _expand(x: Tensor, w: Weights) -> Tensor:
    """What x and the biases add to the gates, of all rows at once."""
    a = linear(x if w.v_in is None else linear(x, w.v_in), w.u_in, w.bias_in)
    return a if w.bias is None else a + w.bias


def _unroll(x: Tensor, h0: Tensor, c0: Tensor, w: Weights, layout: Layout):
    """Of every step h and what the backward needs, and the last state."""
    h, c = h0, c0
    inputs = layout.split(_expand(x, w))
    hs: list[Tensor] = [x] * len(inputs)
    steps: list[_Step | None] = [None] * len(inputs)
    for t in layout.order(len(inputs)):
        n = inputs[t].shape[0]
        h_before, c_before = h[:n], c[:n]
        i, f, g, o = (inputs[t] + linear(linear(h_before, w.v), w.u)).chunk(4, -1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        c_new = f * c_before + i * g
        hs[t] = o * c_new.tanh()
        steps[t] = _Step(h_before, c_before, (i, f, g, o), c_new)
        h, c = _replace(h, hs[t]), _replace(c, c_new)
    return hs, h, c, steps


def _initial(state: Tensor | None, x: Tensor, hidden: int, layout: Layout) -> Tensor:
    if state is not None:
        return state
    if layout.sizes is not None:
        batch = layout.sizes[0] if layout.sizes else 0
    else:
        batch = x.shape[0 if layout.batch_first else 1]
    return x.new_zeros((batch, hidden))


def composite(x: Tensor, h0: Tensor | None, c0: Tensor | None, w: Weights, layout: Layout):
    """``(y, hn, cn)``."""
    hidden = w.v.shape[1]
    h0, c0 = (_initial(state, x, hidden, layout) for state in (h0, c0))
    hs, hn, cn, _ = _unroll(x, h0, c0, w, layout)
    return layout.join(hs, x, hidden), hn, cn


def _gates_back(step: _Step, dh: Tensor, dc: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the gates before their activation, and of c of the step before."""
    i, f, g, o = step.gates
    tanh_c = step.c.tanh()
    dc = dc + dh * o * (1 - tanh_c * tanh_c)
    da = (
        dc * g * i * (1 - i),
        dc * step.c_before * f * (1 - f),
        dc * i * (1 - g * g),
        dh * tanh_c * o * (1 - o),
    )
    return torch.cat(da, -1), dc * f


def composite_grads(grads, x: Tensor, h0: Tensor | None, c0: Tensor | None, w: Weights, layout: Layout):
    """Gradients of x, h0, c0, v_in, u_in, v, u and of either bias; ``grads`` are those of y, hn, cn, or None."""
    hidden = w.v.shape[1]
    h0, c0 = (_initial(state, x, hidden, layout) for state in (h0, c0))
    _, _, _, steps = _unroll(x, h0, c0, w, layout)
    dy, dh, dc = grads
    dys = [None] * len(steps) if dy is None else layout.split(dy)
    dh, dc = (torch.zeros_like(h0) if d is None else d for d in (dh, dc))
    das: list[Tensor] = [x] * len(steps)
    for t in reversed(layout.order(len(steps))):
        n = steps[t].c.shape[0]
        dh_step = dh[:n] if dys[t] is None else dh[:n] + dys[t]
        das[t], dc_before = _gates_back(steps[t], dh_step, dc[:n])
        dh, dc = _replace(dh, das[t] @ w.u @ w.v), _replace(dc, dc_before)
    d_gates = layout.join(das, x, 4 * hidden)
    h_before = layout.join([step.h_before for step in steps], x, hidden)
    dx, dv_in, du_in = _pair_grads(d_gates, x, w.v_in, w.u_in)
    _, dv, du = _pair_grads(d_gates, h_before, w.v, w.u)
    return dx, dh, dc, dv_in, du_in, dv, du, d_gates.flatten(0, -2).sum(0)


def _pair_grads(da: Tensor, x: Tensor, v: Tensor | None, u: Tensor):
    """Gradients of x, v and u in ``a = x v^T u^T``."""
    rows_a, rows_x = da.flatten(0, -2), x.flatten(0, -2)
    if v is None:
        return da @ u, None, rows_a.mT @ rows_x
    dp = rows_a @ u
    return (dp @ v).reshape(x.shape), dp.mT @ rows_x, rows_a.mT @ (rows_x @ v.mT)


def reversed_rows(batch_sizes: Tensor) -> Tensor:
    """Where each row of a packed sequence lies when every sample runs backwards; it is its own inverse."""
    starts = batch_sizes.cumsum(0) - batch_sizes
    steps = torch.arange(batch_sizes.shape[0]).repeat_interleave(batch_sizes)
    samples = torch.arange(steps.shape[0]) - starts[steps]
    lengths = (batch_sizes > torch.arange(int(batch_sizes[0]))[:, None]).sum(1)
    return starts[lengths[samples] - 1 - steps] + samples


def library(x: Tensor, h0, c0, w: Weights, batch_sizes: Tensor | None, reverse: bool, batch_first: bool):
    """``(y, hn, cn)`` by torch's LSTM with the merged weights, which knows no single backward direction."""
    hidden = w.v.shape[1]
    layout = Layout(None if batch_sizes is None else tuple(batch_sizes.tolist()), reverse, batch_first)
    h0, c0 = (_initial(state, x, hidden, layout) for state in (h0, c0))
    if x.shape[:-1].numel() == 0:  # no step to take
        return x.new_empty((*x.shape[:-1], hidden)), h0, c0
    turned = turn(x.device, batch_sizes, batch_first) if reverse else lambda t: t
    with torch.autocast(x.device.type, enabled=False):
        weights = [w.u_in if w.v_in is None else w.u_in @ w.v_in, w.u @ w.v]
    if w.bias_in is not None or w.bias is not None:
        weights += [torch.zeros_like(w.u[:, 0]) if b is None else b for b in (w.bias_in, w.bias)]
    state, numbers = (h0[None], c0[None]), (len(weights) == 4, 1, 0.0, torch.is_grad_enabled(), False)
    if batch_sizes is None:
        y, hn, cn = torch.lstm(turned(x), state, weights, *numbers, batch_first)
    else:
        y, hn, cn = torch.lstm(turned(x), batch_sizes, state, weights, *numbers)
    return turned(y), hn[0], cn[0]


def turn(device: torch.device, batch_sizes: Tensor | None, batch_first: bool) -> Callable[[Tensor], Tensor]:
    """What puts the steps of every sample into the opposite order."""
    if batch_sizes is None:
        return lambda t: t.flip(1 if batch_first else 0)
    rows = reversed_rows(batch_sizes).to(device)
    return lambda t: t[rows]


def projected(run, x: Tensor, h0: Tensor | None, c0: Tensor | None, w: Weights, w_hr: Tensor, batch_sizes, batch_first):
    """``(y, hn, cn)`` of a layer from its first step on, whose h is ``w_hr (o tanh c)``.

    In terms of the numbers before the projection, m, the recurrent weight is ``u (v w_hr)`` or ``(u v) w_hr``: a layer
    without projection. Only an initial h0 has no m; with one the first step is taken here.

    ``run(x, m0, c0, weights, batch_sizes) -> (m, mn, cn)`` is the layer without projection.
    """
    narrow = w.v.shape[0] <= w_hr.shape[0]
    inner = w._replace(v=w.v @ w_hr) if narrow else w._replace(v=w_hr, u=w.u @ w.v)
    if h0 is None or x.shape[:-1].numel() == 0:
        m, mn, cn = run(x, None, c0, inner, batch_sizes)
        return linear(m, w_hr), linear(mn, w_hr) if h0 is None else h0, cn
    packed = batch_sizes is not None
    axis = 1 if batch_first and not packed else 0
    first = int(batch_sizes[0]) if packed else 1
    head, tail = x.narrow(axis, 0, first), x.narrow(axis, first, x.shape[axis] - first)
    layout = Layout((first,) if packed else None, False, batch_first)
    (m1,), _, c1, _ = _unroll(head, h0, _initial(c0, x, w_hr.shape[1], layout), w, layout)
    rest = batch_sizes[1:] if packed else None
    n = (int(rest[0]) if rest.numel() else 0) if packed else m1.shape[0]
    m, mn, cn = run(tail, m1[:n], c1[:n], inner, rest)
    m = torch.cat([m1 if packed else m1.unsqueeze(axis), m], axis)
    return linear(m, w_hr), linear(_replace(m1, mn), w_hr), _replace(c1, cn)
