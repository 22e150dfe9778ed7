# SPDX-License-Identifier: Apache-2.0
"""Training steps of one layer: forward, dx and the gradients of weights and bias, through autograd."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import lath
import torch
from cases import Case, label, own_linear, ranks, rows_of
from context import Context
from layers import Layers, Product, contenders, filled, kept_results, round_robin
from measure import Contender, Timing
from rows import Goal, Row
from torch import Tensor
from torch.nn import functional

LARGE_STEP = 1 << 35  # multiply-adds: a dense step beyond takes a second, and is left out
FEW_ROWS = 16


def two_products(x: Tensor, weight_v: Tensor, weight_u: Tensor, bias: Tensor) -> Tensor:
    return functional.linear(functional.linear(x, weight_v), weight_u, bias)


def gradients(product: Product, x: Tensor, dy: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """Of x and of the weights that require one."""
    wanted = [operand for operand in (x, *weights) if operand.requires_grad]
    return torch.autograd.grad(product(x, *weights), wanted, dy)


def _goal(rank: int) -> Goal | None:
    if rank >= 64:
        return Goal("share", 0.85, 0.95, own=True)
    return Goal("share", 0.75, 0.85, own=True) if rank == 48 else None


def training(context: Context) -> Iterator[Row]:
    """256 rows and more, with the same weights at every step."""
    for shape in context.effort.shapes:
        layers = Layers.for_context(context, shape, ranks(context, shape), requires_grad=True)
        for rows in context.effort.training_rows:
            if 3 * rows * shape[0] * shape[1] > LARGE_STEP:
                continue
            for mode in context.effort.modes:
                case = Case("training", layers, mode, rows, training=True)
                goals = {rank: _goal(rank) for rank in layers.ranks}
                yield from rows_of(context, case, _time_gradients(context, case), goals)


def _time_gradients(context: Context, case: Case) -> dict[object, Timing]:
    n_in, n_out = case.layers.shape
    x, dy = filled(case.rows, n_in).requires_grad_(), filled(case.rows, n_out)
    kept = kept_results(context, case.mode, (case.rows, n_in), (n_out, n_in))
    calls = contenders(
        case.layers,
        case.mode,
        kept,
        dense=partial(gradients, functional.linear, x, dy),
        own=torch.no_grad()(partial(own_linear, x.detach())),
        two=partial(gradients, two_products, x, dy),
        thin=partial(gradients, lath.ops.lowrank_linear, x, dy),
    )
    what = f"training {label(case.layers.shape)}, {case.rows} rows, {case.mode}"
    return context.compare(what, calls, hot=case.mode == "hot")


class Trainer:
    """Steps that change the weights in place: each call takes the next layer, each update is that of plain SGD."""

    def __init__(self, product: Callable[..., Tensor], layers: Sequence[tuple], x: Tensor, dy: Tensor) -> None:
        self.product, self.x, self.dy = product, x, dy
        self.following = itertools.cycle([(w, torch.optim.SGD(w, lr=1e-6)) for w in layers]).__next__
        self.optimizer: torch.optim.SGD | None = None

    def differentiate(self) -> None:
        """Forward and backward of the next layer."""
        weights, self.optimizer = self.following()
        self.product(self.x, *weights).backward(self.dy)

    def update(self) -> None:
        """The optimizer step of the layer that was differentiated last."""
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.x.grad = None

    def step(self) -> None:
        self.differentiate()
        self.update()


def training_few_rows(context: Context) -> Iterator[Row]:
    """16 rows, where the weights change before every step; the step without the update, and with it."""
    for shape in context.effort.shapes:
        layers = Layers.for_context(context, shape, ranks(context, shape), requires_grad=True)
        x, dy = filled(FEW_ROWS, shape[0]).requires_grad_(), filled(FEW_ROWS, shape[1])
        for mode in context.effort.modes:
            trainers = _trainers(layers, layers.count(mode), x, dy)
            own = round_robin(partial(own_linear, x.detach()), layers.dense[: layers.count(mode)], deque(maxlen=0))
            for suffix, goal in (("", Goal("share", 0.9, 1.2)), ("+sgd", None)):
                calls: dict[object, object] = {
                    name: Contender(trainer.step) if suffix else Contender(trainer.differentiate, trainer.update)
                    for name, trainer in trainers.items()
                }
                if not suffix:
                    calls["own"] = torch.no_grad()(own)
                what = f"training-16 {label(shape)}, {mode}{suffix}"
                timings = context.compare(what, calls, hot=mode == "hot")
                case = Case("training-16", layers, mode, FEW_ROWS, training=True)
                for row in rows_of(context, case, timings, dict.fromkeys(layers.ranks, goal)):
                    yield row.replace(mode=mode + suffix)


def _trainers(layers: Layers, count: int, x: Tensor, dy: Tensor) -> dict[object, Trainer]:
    trainers: dict[object, Trainer] = {"dense": Trainer(functional.linear, layers.dense[:count], x, dy)}
    for rank, factors in layers.factors.items():
        trainers["two", rank] = Trainer(two_products, factors[:count], x, dy)
        trainers["lath", rank] = Trainer(lath.ops.lowrank_linear, factors[:count], x, dy)
    return trainers
