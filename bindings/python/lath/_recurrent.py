# SPDX-License-Identifier: Apache-2.0
"""``nn.LSTM`` in a survey, a conversion and a report: one layer, whatever layers and directions are in it.

A *row* is one step of one sample.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import _cuda
from ._lstm import cuda_route
from .factor import Decomposition, break_even_rank
from .nn import LowRankLSTM
from .specs import LowRank

KINDS = (nn.LSTM, LowRankLSTM)


def is_lstm(module: nn.Module) -> bool:
    return isinstance(module, KINDS)


def weights_read(module: nn.LSTM) -> tuple[str, ...]:
    """The attributes that the low-rank layer lacks, as a module above would read them."""
    return (*(name for name in module._flat_weights_names if name.startswith("weight_")), "_flat_weights")


def is_weight(name: str) -> bool:
    """Whether an attribute of this name may be one of :func:`weights_read`."""
    return name.startswith(("weight_ih_l", "weight_hh_l", "weight_hr_l")) or name == "_flat_weights"


def is_altered(module: nn.LSTM) -> bool:
    """Whether there is more, or less, in it than its constructor put there."""
    return set(module._parameters) != set(module._flat_weights_names) or bool(module._buffers or module._modules)


# ---- sizes and costs ------------------------------------------------------------------------------------------------


def sizes(module: nn.Module) -> tuple[int, int]:
    """Features of x and of h."""
    return module.input_size, module.proj_size or module.hidden_size


def _directions(module: nn.Module) -> int:
    return 2 if module.bidirectional else 1


def _input_size(module: nn.Module, layer: int) -> int:
    return module.input_size if layer == 0 else sizes(module)[1] * _directions(module)


def _projections(module: nn.Module) -> int:
    """Numbers in all projections."""
    return module.num_layers * _directions(module) * module.proj_size * module.hidden_size


def dense_numel(module: nn.Module) -> int:
    """Numbers in the dense weights, which are their multiply-adds for a row."""
    from_h = sizes(module)[1]
    each = (_input_size(module, layer) + from_h for layer in range(module.num_layers))
    return _directions(module) * 4 * module.hidden_size * sum(each) + _projections(module)


def dense_parameters(module: nn.Module) -> int:
    """Numbers in the dense layer of the same function."""
    biases = 8 * module.hidden_size * module.num_layers * _directions(module) if module.bias else 0
    return dense_numel(module) + biases


def break_even(module: nn.Module) -> int:
    """The largest rank whose factors of a recurrent weight cost less than the weight."""
    return break_even_rank(sizes(module)[1], 4 * module.hidden_size)


def _products(module: LowRankLSTM) -> list[tuple[int, int]]:
    """Columns and rank of every weight as it is multiplied; rank 0 for a dense one.

    A projection is merged with the recurrent factors, which then take the numbers before it.
    """
    recurrent = [min(rank, module.proj_size) if module.proj_size else rank for rank in module.ranks]
    inputs = [(_input_size(module, layer), rank) for layer, rank in enumerate(module.input_ranks)]
    return (inputs + [(module.hidden_size, rank) for rank in recurrent]) * _directions(module)


def _is_merged(columns: int, rank: int, gates: int, rows: float = math.inf) -> bool:
    """Whether a call with so many rows multiplies the factors first, as ops/lowrank/lstm_weights.c decides."""
    return rank > 0 and rows > 0 and 1.03 * rank * (columns + gates) > (1 + rank / rows) * gates * columns


def macs_of_a_row(module: nn.Module, factored: bool = False, rows: float = math.inf) -> int:
    """Multiply-adds for each of ``rows``; with ``factored`` those of the factors where they are merged, too."""
    if not isinstance(module, LowRankLSTM):
        return dense_numel(module)
    gates, total = 4 * module.hidden_size, _projections(module)
    for columns, rank in _products(module):
        dense = rank == 0 or (not factored and _is_merged(columns, rank, gates, rows))
        total += gates * columns if dense else rank * (columns + gates)
    return total


def _macs_of_a_call(module: LowRankLSTM, rows: int) -> int:
    """Multiply-adds for so many rows, and for merging factors once."""
    gates = 4 * module.hidden_size
    merged = (gates * rank * columns for columns, rank in _products(module) if _is_merged(columns, rank, gates, rows))
    projected = (min(rank, module.proj_size) * module.hidden_size * module.proj_size for rank in module.ranks)
    once = sum(merged) + _directions(module) * sum(projected)
    return rows * macs_of_a_row(module, rows=rows) + once


@dataclass(frozen=True)
class LSTMCall:
    """What an LSTM was called with; of a packed sequence the shape of its data."""

    x_shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, args: tuple, kwargs: Mapping[str, Any]) -> LSTMCall:
        """Of a call with these arguments."""
        x = args[0] if args else kwargs["input"]
        data = x.data if isinstance(x, PackedSequence) else x
        return cls(tuple(data.shape), data.dtype, data.device)


def _on_steps(module: LowRankLSTM, dtype: torch.dtype) -> bool:
    """Whether lath's own kernels run every layer on CUDA; a mixed one is counted as torch's."""
    ranks = [min(rank, module.proj_size) if module.proj_size else rank for rank in module.ranks]
    served = _cuda.status.loaded
    return all(cuda_route(dtype, module.hidden_size, rank, 0, served) == "steps" for rank in ranks)


def rows_and_macs(module: nn.Module, calls: list[LSTMCall]) -> tuple[int, int, int, str]:
    """Rows, multiply-adds, those of the dense layer, and the kernel of the first call."""
    each = [math.prod(call.x_shape[:-1]) for call in calls]
    rows = sum(each)
    dense = rows * dense_numel(module)
    if not isinstance(module, LowRankLSTM):
        return rows, dense, dense, "dense"
    on_cuda, gates = calls[0].device.type == "cuda", 4 * module.hidden_size
    if on_cuda and not _on_steps(module, calls[0].dtype):
        merging = sum(gates * pair.rank * pair.in_size for pair in module.pairs())
        return rows, dense + len(calls) * merging, dense, "library"
    macs = sum(_macs_of_a_call(module, n) for n in each)
    if on_cuda:
        return rows, macs, dense, "steps"
    if calls[0].dtype == torch.float64:
        return rows, rows * macs_of_a_row(module, factored=True), dense, "plain"
    merged = all(rank == 0 or _is_merged(columns, rank, gates, each[0]) for columns, rank in _products(module))
    return rows, macs, dense, "merged" if merged else "fused"


# ---- conversion -----------------------------------------------------------------------------------------------------


def build(name: str, module: nn.LSTM, spec: LowRank) -> tuple[LowRankLSTM | None, str | None]:
    """The replacement of a layer, or None and the reason why there is none.

    Both directions of a layer have the same ranks. An input weight stays dense where factors are no gain.
    """
    decompose = cache(lambda weight: Decomposition.of(getattr(module, weight).detach(), f"layer {name!r}: {weight}"))

    def rank_of(kind: str, layer: int, columns: int) -> int | None:
        """The larger one of both directions; an energy gives each its own."""
        ends = ("", "_reverse")[: _directions(module)]
        names = [f"weight_{kind}_l{layer}{end}" for end in ends]
        ranks = [spec.rank_for(name, columns, 4 * module.hidden_size, lambda n=n: decompose(n)) for n in names]
        return None if None in ranks else max(ranks)

    ranks = [rank_of("hh", layer, sizes(module)[1]) for layer in range(module.num_layers)]
    if None in ranks:
        return None, "the spec gives no rank for it"
    limit = break_even(module)
    if max(ranks) > limit:
        return None, f"rank {max(ranks)} is not cheaper: break-even is {limit}"
    input_ranks = []
    for layer in range(module.num_layers):
        columns = _input_size(module, layer)
        rank = 0 if _has_no_rank(spec, columns, 4 * module.hidden_size) else rank_of("ih", layer, columns)
        input_ranks.append(rank if rank <= break_even_rank(columns, 4 * module.hidden_size) else 0)
    decompositions = {}
    if spec.init == "svd" and not module.weight_hh_l0.is_meta:
        factored = {"hh": ranks, "ih": input_ranks}
        for weight in module._flat_weights_names:
            kind, layer = weight.split("_")[1], int(weight.split("_")[2][1:])
            if weight.startswith("weight_") and kind in factored and factored[kind][layer]:
                decompositions[weight] = decompose(weight)
    ranks, input_ranks = tuple(ranks), tuple(input_ranks)
    return LowRankLSTM.from_dense(module, ranks, input_ranks, init=spec.init, decompositions=decompositions), None


def _has_no_rank(spec: LowRank, in_size: int, out_size: int) -> bool:
    """Whether the ratio gives rank 0, which for an input weight means that it stays dense."""
    return spec.ratio is not None and spec.ratio_rank(in_size, out_size) < 1


def dense_entries(module: LowRankLSTM, leaf: str) -> dict[str, Tensor]:
    """What stands in a dense state dict for the entry ``leaf``: everything for the first one."""
    if leaf != next(iter(module._parameters)):
        return {}
    with torch.no_grad():
        return module.merged()
