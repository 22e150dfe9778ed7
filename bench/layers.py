# SPDX-License-Identifier: Apache-2.0
"""The layers that are compared, and the calls that go round among them.

A call takes the next layer of a list each time and keeps its output while as many further calls are made. With one
layer and nothing kept, weights and output stay in cache: the case "hot". With many layers and as many outputs kept,
every call meets weights and an output that the cache has forgotten, as the layers of a network do: the case "rotating".
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Sequence

import lath
import torch
from context import Context, Shape
from torch import Tensor, nn

Product = Callable[..., object]
_PATTERN = torch.randn(1 << 18, generator=torch.Generator().manual_seed(0))


def filled(*shape: int, scale: float = 1.0) -> Tensor:
    """Normal random numbers, the same block again and again: as good for timing, and fast for gigabytes."""
    flat = torch.empty(shape).view(-1)
    for start in range(0, flat.numel(), _PATTERN.numel()):
        block = flat[start : start + _PATTERN.numel()]
        torch.mul(_PATTERN[: block.numel()], scale, out=block)
    return flat.view(shape)


def filled_module(module: nn.Module) -> nn.Module:
    """``module`` itself, with such numbers in all of its parameters and buffers."""
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.detach().copy_(filled(*tensor.shape, scale=tensor.shape[-1] ** -0.5))
    return module


class Layers:
    """Distinct dense layers of one shape, and low-rank layers of each rank.

    Attributes:
        shape: (in, out).
        dense: (weight, bias) of each layer.
        factors: rank to (weight_v, weight_u, bias) of each layer.
    """

    def __init__(self, shape: Shape, ranks: Sequence[int], count: int, requires_grad: bool = False) -> None:
        n_in, n_out = self.shape = shape
        self.dense = [(filled(n_out, n_in, scale=n_in**-0.5), filled(n_out)) for _ in range(count)]
        self.factors = {
            rank: [
                (filled(rank, n_in, scale=n_in**-0.5), filled(n_out, rank, scale=rank**-0.5), filled(n_out))
                for _ in range(count)
            ]
            for rank in ranks
        }
        for weights in itertools.chain(self.dense, *self.factors.values()):
            for weight in weights:
                weight.requires_grad_(requires_grad)

    @classmethod
    def for_context(cls, context: Context, shape: Shape, ranks: Sequence[int], requires_grad: bool = False) -> Layers:
        """As many as rotate in this run."""
        size = 4 * (shape[0] * shape[1] + sum(ranks) * sum(shape))
        count = context.copies(size) if "rotating" in context.effort.modes else 1
        return cls(shape, ranks, count, requires_grad)

    @property
    def ranks(self) -> tuple[int, ...]:
        return tuple(self.factors)

    def count(self, mode: str) -> int:
        return len(self.dense) if mode == "rotating" else 1


def kept_results(context: Context, mode: str, *shapes: tuple[int, ...]) -> deque:
    """Where calls put their results: when hot nothing stays; when rotating, 24 of them if the memory allows.

    It is full from the start, so that no timed call has to ask the operating system for memory.

    Args:
        context: of the run.
        mode: "hot" or "rotating".
        shapes: of the tensors in one result.
    """
    if mode == "hot":
        return deque(maxlen=0)
    count = context.copies(4 * sum(math.prod(shape) for shape in shapes))
    return deque(([filled(*shape) for shape in shapes] for _ in range(count)), maxlen=count)


def round_robin(product: Product, layers: Sequence[tuple], kept: deque) -> Callable[[], None]:
    """A call of ``product(*layer)`` for the next layer, whose result goes into ``kept``."""
    following = itertools.cycle(layers).__next__
    keep = kept.append

    def call() -> None:
        keep(product(*following()))

    return call


def contenders(
    layers: Layers, mode: str, kept: deque, dense: Product, own: Product | None, two: Product, thin: Product
) -> dict[object, Callable[[], None]]:
    """Calls named "dense", "own", ("two", rank) and ("lath", rank)."""
    count = layers.count(mode)
    calls: dict[object, Callable[[], None]] = {"dense": round_robin(dense, layers.dense[:count], kept)}
    if own is not None:
        calls["own"] = round_robin(own, layers.dense[:count], kept)
    for rank, factors in layers.factors.items():
        calls["two", rank] = round_robin(two, factors[:count], kept)
        calls["lath", rank] = round_robin(thin, factors[:count], kept)
    return calls


def call_module(module: nn.Module, x: Tensor) -> Tensor:
    """``module(x)``."""
    return module(x)


def dense_module(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """``nn.Linear`` on these very tensors."""
    module = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0])
    module.weight, module.bias = nn.Parameter(weight), None if bias is None else nn.Parameter(bias)
    return module


def two_modules(weight_v: Tensor, weight_u: Tensor, bias: Tensor | None) -> nn.Sequential:
    """Two ``nn.Linear`` on these very tensors."""
    first = nn.utils.skip_init(nn.Linear, weight_v.shape[1], weight_v.shape[0], bias=False)
    first.weight = nn.Parameter(weight_v)
    return nn.Sequential(first, dense_module(weight_u, bias))


def thin_module(weight_v: Tensor, weight_u: Tensor, bias: Tensor) -> lath.nn.LowRankLinear:
    """``LowRankLinear`` on these very tensors."""
    (rank, n_in), n_out = weight_v.shape, weight_u.shape[0]
    module = nn.utils.skip_init(lath.nn.LowRankLinear, n_in, n_out, rank)
    module.weight_v, module.weight_u = nn.Parameter(weight_v), nn.Parameter(weight_u)
    module.bias = nn.Parameter(bias)
    return module
