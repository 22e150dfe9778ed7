# SPDX-License-Identifier: Apache-2.0
"""Low-rank LSTMs in small, and torch's own of the same function."""

from __future__ import annotations

import torch
from operator_cases import random
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

RTOL = {torch.float64: 1e-11, torch.float32: 2e-5}


def weights(d: int, h: int, r: int, in_rank: int, dtype=torch.float64, scale: float = 1.0) -> list[Tensor | None]:
    """v_in, u_in, v, u, bias_in, bias, of the size that keeps gates in the range of 1; in_rank 0 for a dense input."""
    shapes = [(in_rank, d), (4 * h, in_rank or d), (r, h), (4 * h, r), (4 * h,), (4 * h,)]
    tensors = [scale * random(*s, dtype=dtype, seed=i) / max(1, s[-1]) ** 0.5 for i, s in enumerate(shapes[:4])]
    tensors += [random(*s, dtype=dtype, seed=i) for i, s in enumerate(shapes[4:], 4)]
    return tensors if in_rank else [None, *tensors[1:]]


def leaves(*tensors: Tensor | None) -> list[Tensor]:
    """Those that are there, made to require gradients."""
    return [t.requires_grad_() for t in tensors if t is not None]


def merged(v_in: Tensor | None, u_in: Tensor, v: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of the dense layer."""
    return u_in if v_in is None else u_in @ v_in, u @ v


def dense_lstm(x, h0, c0, v_in, u_in, v, u, bias_in, bias, batch_first=False):
    """(y, hn, cn) by torch's LSTM in terms of the factors, so that autograd gives their gradients."""
    w_ih, w_hh = merged(v_in, u_in, v, u)
    biases = [torch.zeros_like(w_hh[:, 0]) if b is None else b for b in (bias_in, bias)]
    numbers = True, 1, 0.0, True, False, batch_first
    y, hn, cn = torch.lstm(x, (h0[None], c0[None]), [w_ih, w_hh, *biases], *numbers)
    return y, hn[0], cn[0]


def samples(lengths=(4, 1, 3), d=5, dtype=torch.float64) -> list[Tensor]:
    """A sequence of each length."""
    return [random(length, d, dtype=dtype, seed=i) for i, length in enumerate(lengths)]


def packed(lengths=(4, 1, 3), d=5, dtype=torch.float64) -> PackedSequence:
    return pack_sequence(samples(lengths, d, dtype), enforce_sorted=False)


def assert_close(got, expected, dtype, **kwargs) -> None:
    tolerance = RTOL[dtype]
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance, **kwargs)


def assert_same_function(got: nn.Module, expected: nn.Module, x, hx=None, dtype=torch.float64) -> None:
    """Output and state of two LSTM modules."""
    (y, state), (y_expected, state_expected) = got(x, hx), expected(x, hx)
    if isinstance(x, PackedSequence):
        assert torch.equal(y.batch_sizes, y_expected.batch_sizes)
        y, y_expected = y.data, y_expected.data
    assert_close(y, y_expected, dtype)
    assert_close(state, state_expected, dtype)
