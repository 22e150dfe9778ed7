# SPDX-License-Identifier: Apache-2.0
"""What a layer in an orthogonal basis keeps from its forward to its backward pass, and the time of such a step.

Counted are the tensors that autograd saves, each block of memory once, without parameters and bases.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from cases import label
from context import Context
from convolutions import Layer, training_step
from lath.nn import OIALRLinear
from layers import filled, filled_module
from oialr import RANKS
from oialr_layers import in_a_basis
from rows import Goal, Row, disturbance
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

ROWS = 1024
CONVOLUTION, CONVOLUTION_RANKS = Layer(256, 256, 14), (32, 64, 128)


def saved_numbers(module: nn.Module, x: Tensor) -> int:
    """Numbers that a forward pass keeps beside the module's own."""
    own = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
    found: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes() // t.element_size()
        return t

    with saved_tensors_hooks(pack, lambda t: t):
        module(x)
    return sum(found.values())


def memory(context: Context) -> Iterator[Row]:
    """Linear layers at ranks up to a half of the smaller side, and a convolution.

    Above break-even, as at the start of a training, the weight is formed and x is kept, as by a dense layer.
    """
    for shape in list(RANKS)[1:2] if context.quick else RANKS:
        ranks = [rank for rank in RANKS[shape] if rank <= min(shape) // 2]
        thin = {rank: filled_module(nn.utils.skip_init(OIALRLinear, *shape, rank)) for rank in ranks}
        x, dy = filled(ROWS, shape[0]), filled(ROWS, shape[1])
        goals = {rank: rank for rank in ranks}
        yield from _rows(context, label(shape), nn.Linear(*shape), thin, x, dy, ROWS, goals)
    layer = CONVOLUTION
    x, dy = filled(*layer.x_shape), filled(*layer.y_shape)
    convolutions = {rank: in_a_basis(layer, rank) for rank in CONVOLUTION_RANKS[:: 3 if context.quick else 1]}
    places = math.prod(layer.y_shape) // layer.n_out
    goals = {rank: (places * rank + layer.n_out * rank) / places for rank in convolutions}
    yield from _rows(context, layer.label, layer.dense(), convolutions, x, dy, places, goals)


def _rows(
    context: Context,
    case: str,
    dense: nn.Module,
    thin: Mapping[int, nn.Module],
    x: Tensor,
    dy: Tensor,
    places: int,
    goals: Mapping[int, float],
) -> Iterator[Row]:
    """A row for each rank; numbers are of one row of x, or one place of y."""
    x.requires_grad_()
    calls: dict[object, object] = {"dense": training_step(dense, x, dy)}
    calls |= {rank: training_step(module, x, dy) for rank, module in thin.items()}
    timings = context.compare(f"oialr-memory {case}", calls)
    for rank, module in thin.items():
        yield Row(
            section="oialr-memory",
            case=case,
            mode="",
            rows=len(x),
            rank=rank,
            threads=context.threads,
            isa=context.machine.isa,
            baseline=timings["dense"].median,
            lath=timings[rank].median,
            floats=saved_numbers(module, x) / places,
            dense_floats=saved_numbers(dense, x) / places,
            goal=Goal("floats", goals[rank], goals[rank]),
            **disturbance([timings["dense"], timings[rank]]),
        )
