# SPDX-License-Identifier: Apache-2.0
"""A stack of low-rank LSTMs and a low-rank decoder is an ``nn.LSTM`` with projections: an oracle that merges nothing.

The projection of a layer is its recurrent first factor on top of the first factor of what reads it; the second factors
take their rows of it, and the others meet zeros.
"""

from __future__ import annotations

import pytest
import torch
from lath.nn import LowRankLinear, LowRankLSTM
from torch import Tensor, nn

INPUT, HIDDEN, OUTPUT = 5, 20, 7


def projected(lstm: LowRankLSTM, decoder: LowRankLinear) -> nn.LSTM:
    """The ``nn.LSTM`` of one direction whose last layer hands ``decoder`` what its first factor would make."""
    readers = [getattr(lstm, f"weight_ih_v_l{k}") for k in range(1, lstm.num_layers)] + [decoder.weight_v]
    width = max(r + len(reader) for r, reader in zip(lstm.ranks, readers, strict=True))
    twin = nn.LSTM(INPUT, HIDDEN, lstm.num_layers, proj_size=width, dtype=decoder.weight_v.dtype)
    with torch.no_grad():
        for k, (rank, reader) in enumerate(zip(lstm.ranks, readers, strict=True)):
            of_twin = {name: getattr(twin, f"{name}_l{k}") for name in ("weight_ih", "weight_hh", "weight_hr")}
            for weight in of_twin.values():
                weight.zero_()
            of_twin["weight_hr"][:rank] = getattr(lstm, f"weight_hh_v_l{k}")
            of_twin["weight_hr"][rank : rank + len(reader)] = reader
            of_twin["weight_hh"][:, :rank] = getattr(lstm, f"weight_hh_u_l{k}")
            u = getattr(lstm, f"weight_ih_u_l{k}")
            if k == 0:
                of_twin["weight_ih"].copy_(u @ lstm.weight_ih_v_l0)
            else:
                above = lstm.ranks[k - 1]
                of_twin["weight_ih"][:, above : above + u.shape[1]] = u
            for name in ("bias_ih", "bias_hh"):
                getattr(twin, f"{name}_l{k}").copy_(getattr(lstm, f"{name}_l{k}"))
    return twin


def run_twin(twin: nn.LSTM, lstm: LowRankLSTM, decoder: LowRankLinear, x: Tensor, h0: Tensor, c0: Tensor) -> Tensor:
    start = torch.stack([getattr(twin, f"weight_hr_l{k}") @ h0[k].mT for k in range(lstm.num_layers)]).mT
    states, _ = twin(x, (start.contiguous(), c0))
    rank = lstm.ranks[-1]
    inner = states[..., rank : rank + decoder.rank] + decoder.inner_bias
    return inner @ decoder.weight_u.mT + decoder.bias


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize(("ranks", "input_ranks"), [((4,), (2,)), ((4, 3), (2, 6)), ((1, 5, 2), (3, 1, 4))])
def test_the_projected_lstm_is_the_same_function(dtype, tolerance, ranks, input_ranks):
    lstm = LowRankLSTM(INPUT, HIDDEN, ranks, len(ranks), input_rank=input_ranks, dtype=dtype)
    decoder = LowRankLinear(HIDDEN, OUTPUT, 5, inner_bias=True, dtype=dtype)
    twin = projected(lstm, decoder)
    x = torch.randn(9, 3, INPUT, dtype=dtype, requires_grad=True)
    h0, c0 = torch.randn(2, len(ranks), 3, HIDDEN, dtype=dtype)
    y = decoder(lstm(x, (h0, c0))[0])
    expected = run_twin(twin, lstm, decoder, x, h0, c0)
    torch.testing.assert_close(y, expected, rtol=tolerance, atol=tolerance)
    direction = torch.randn_like(y)
    gradients = [torch.autograd.grad((out * direction).sum(), x)[0] for out in (y, expected)]
    torch.testing.assert_close(*gradients, rtol=tolerance, atol=10 * tolerance)
