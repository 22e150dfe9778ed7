# SPDX-License-Identifier: Apache-2.0
"""What a low-rank LSTM is held against, on the same numbers.

A loop of cells that TorchScript compiles, torch's LSTM with projections, and lath's own dense path.
"""

from __future__ import annotations

import io
import time
import warnings
from collections.abc import Callable, Mapping
from typing import NamedTuple

import lath
import torch
from lath.nn import LowRankLSTM
from torch import Tensor, nn
from torch.nn.functional import linear

WARM_CALLS = 3  # the first two are profiled and compiled


class Factors(NamedTuple):
    """Of one layer; ``v_in`` is None where the input weight is dense, and ``u_in`` then that weight."""

    v_in: Tensor | None
    u_in: Tensor
    v: Tensor
    u: Tensor
    bias_in: Tensor
    bias: Tensor

    @classmethod
    def of(cls, lstm: LowRankLSTM) -> list[Factors]:
        """Copies of the parameters of every layer; of one direction, with biases and without projections."""
        dense = None, "weight_ih"
        factored = "weight_ih_v", "weight_ih_u"
        found = []
        for layer, rank in enumerate(lstm.input_ranks):
            names = (*(factored if rank else dense), "weight_hh_v", "weight_hh_u", "bias_ih", "bias_hh")
            found.append(cls(*(name and getattr(lstm, f"{name}_l{layer}").detach().clone() for name in names)))
        return found


class DenseLSTM(nn.Module):
    """``nn.LSTM`` of the merged weights; a call returns the output alone, as of everything here."""

    def __init__(self, lstm: LowRankLSTM) -> None:
        super().__init__()
        self.lstm = lstm.to_dense()

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]


# ---- the loop of cells -----------------------------------------------------------------------------------------------


class _Cell(nn.Module):
    __constants__ = ("hoisted",)  # what TorchScript folds

    def __init__(self, factors: Factors, hoisted: bool) -> None:
        super().__init__()
        self.hoisted = hoisted
        self.v_in = None if factors.v_in is None else nn.Parameter(factors.v_in)
        self.u_in, self.bias_in = nn.Parameter(factors.u_in), nn.Parameter(factors.bias_in)
        self.v, self.u, self.bias = (nn.Parameter(t) for t in (factors.v, factors.u, factors.bias))

    def expand(self, x: Tensor) -> Tensor:
        """What x adds to the gates."""
        v_in = self.v_in
        return linear(x if v_in is None else linear(x, v_in), self.u_in, self.bias_in)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        a = x if self.hoisted else self.expand(x)
        i, f, g, o = (a + linear(linear(h, self.v), self.u, self.bias)).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class _Loop(nn.Module):
    """A layer: one cell a step, with the input product in it, or hoisted: taken for all steps beforehand."""

    __constants__ = ("hoisted",)

    def __init__(self, factors: Factors, hoisted: bool) -> None:
        super().__init__()
        self.hoisted = hoisted
        self.cell = _Cell(factors, hoisted)

    def forward(self, x: Tensor) -> Tensor:
        steps = self.cell.expand(x).unbind(0) if self.hoisted else x.unbind(0)
        h = torch.zeros(x.size(1), self.cell.v.size(1), dtype=x.dtype)
        c = h
        outputs: list[Tensor] = []
        for a in steps:
            h, c = self.cell(a, h, c)
            outputs += [h]
        return torch.stack(outputs)


def loop(lstm: LowRankLSTM, hoisted: bool) -> nn.Module:
    """The layers of ``lstm`` as loops that TorchScript compiles."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript is deprecated
        torch.jit.save(
            torch.jit.script(nn.Sequential(*(_Loop(factors, hoisted) for factors in Factors.of(lstm)))), file
        )
        file.seek(0)
        return torch.jit.load(file)  # a copy that shares no profile, and so no compiled code, with other loops


def faster(calls: Mapping[object, Callable[[], object]]) -> object:
    """The key of the call that takes least time, after warming all of them up."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds = {}
    for key, call in calls.items():
        for _ in range(WARM_CALLS):
            start = clock()
            call()
            seconds[key] = clock() - start
    return min(seconds, key=seconds.__getitem__)


# ---- torch's LSTM with projections -----------------------------------------------------------------------------------


class ProjectedLSTM(nn.Module):
    """``lstm`` as layers of ``nn.LSTM`` whose projections are its first factors; returns ``v h`` of the last layer.

    A layer projects h to what its own recurrence and the layer above read of it, so its first factors cost one product
    a step. What a layer above reads is sliced from the output.
    """

    def __init__(self, lstm: LowRankLSTM) -> None:
        super().__init__()
        layers = Factors.of(lstm)
        first = layers[0].v_in
        self.front = nn.Identity() if first is None else _linear(first)
        self.layers = nn.ModuleList()
        for layer, above in zip(layers, [*layers[1:], None], strict=True):
            self.layers.append(_projected(layer, above and above.v_in))
        self.ranks = lstm.ranks

    @staticmethod
    def possible(lstm: LowRankLSTM) -> bool:
        """Whether the projections are narrower than h, and no layer above reads h itself."""
        above = (*lstm.input_ranks[1:], 0)
        widths = (rank + read for rank, read in zip(lstm.ranks, above, strict=True))
        return all(above[:-1]) and all(width < lstm.hidden_size for width in widths)

    def forward(self, x: Tensor) -> Tensor:
        x = self.front(x)
        for layer, rank in zip(self.layers, self.ranks, strict=True):
            y = layer(x)[0]
            x = y[..., rank:]
        return y[..., : self.ranks[-1]]


def _linear(weight: Tensor) -> nn.Linear:
    module = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias=False)
    module.weight = nn.Parameter(weight)
    return module


def _projected(layer: Factors, v_above: Tensor | None) -> nn.LSTM:
    projection = layer.v if v_above is None else torch.cat([layer.v, v_above])
    hidden, columns = layer.v.shape[1], layer.u_in.shape[1]
    module = nn.LSTM(columns, hidden, proj_size=len(projection), dtype=layer.u.dtype)
    with torch.no_grad():
        module.weight_hh_l0.zero_()
        module.weight_hh_l0[:, : layer.u.shape[1]] = layer.u
        module.weight_ih_l0.copy_(layer.u_in)
        module.weight_hr_l0.copy_(projection)
        module.bias_ih_l0.copy_(layer.bias_in)
        module.bias_hh_l0.copy_(layer.bias)
    return module


# ---- lath's own dense path -------------------------------------------------------------------------------------------


class OwnDenseLSTM(nn.Module):
    """lath's kernel on dense weights: merged ones of rank 1, whose merging costs nothing beside the recurrence.

    Of the sizes of ``lstm``, not of its function.
    """

    def __init__(self, lstm: LowRankLSTM) -> None:
        super().__init__()
        hidden = lstm.hidden_size
        thin = LowRankLSTM(lstm.input_size, hidden, 1, lstm.num_layers, input_rank=0)
        self.layers = nn.ModuleList(
            nn.ParameterDict({name: value for name, value in layer._asdict().items() if value is not None})
            for layer in Factors.of(thin)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            weights = (layer[name] for name in Factors._fields[1:])
            x = lath.ops.lowrank_lstm(x, None, *weights, association="merged")[0]
        return x
