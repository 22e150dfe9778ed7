# SPDX-License-Identifier: Apache-2.0
"""Which layers are worth factoring: the blocks of a network are timed, dense and low-rank, before it is trained."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ..convert import Selection, convert
from ..factor import CONV_MODES
from ..specs import LowRank
from .candidates import candidates, full_rank, weight_matrices

_WHAT = "lath.profile_blocks"
_NAME = "block"  # of the copy of a block in the module around it


@dataclass(frozen=True)
class BlockProfile:
    """The times of one block.

    Attributes:
        name: qualified name of the module.
        layers: those in it that could be factored.
        dense_seconds: of a training step's forward and backward pass.
        seconds: the same with factors, by ratio; without an entry where no layer was factored.
    """

    name: str
    layers: tuple[str, ...]
    dense_seconds: float
    seconds: dict[float, float]

    def speedup(self, ratio: float) -> float:
        """Over dense; 1 where no layer was factored at this ratio."""
        return self.dense_seconds / self.seconds[ratio] if ratio in self.seconds else 1.0


class Profile:
    """Times of the blocks of a network. ``print`` it for a table.

    Attributes:
        blocks: in model order.
        ratios: at which they were timed.
    """

    def __init__(self, blocks: list[BlockProfile], ratios: tuple[float, ...]) -> None:
        self.blocks = blocks
        self.ratios = ratios

    def dense(self, threshold: float = 1.5, ratio: float | None = None) -> list[str]:
        """The layers of blocks that are less than ``threshold`` times as fast low-rank, to be excluded.

        Args:
            threshold: least speed-up that is worth it.
            ratio: at which; None for the first one.

        Raises:
            ValueError: a ratio that was not timed.
        """
        ratio = self.ratios[0] if ratio is None else ratio
        if ratio not in self.ratios:
            raise ValueError(f"Profile.dense: ratio is {ratio!r}, expected one of {self.ratios}")
        return [name for block in self.blocks if block.speedup(ratio) < threshold for name in block.layers]

    def __str__(self) -> str:
        head = ["block", "layers", "dense ms", *(f"x at {ratio:g}" for ratio in self.ratios)]
        rows = [
            [b.name, str(len(b.layers)), f"{b.dense_seconds * 1e3:.3f}", *(f"{b.speedup(r):.2f}" for r in self.ratios)]
            for b in self.blocks
        ]
        widths = [max(map(len, cells)) for cells in zip(head, *rows, strict=True)]
        lines = [
            "  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
            for cells in (head, *rows)
        ]
        return "\n".join(lines)


def profile_blocks(
    model: nn.Module,
    example_inputs: Any,
    blocks: Iterable[str] | None = None,
    ratios: Iterable[float] = (0.25,),
    *,
    conv: str = "pointwise",
    include: Selection = None,
    exclude: Selection = None,
    repeats: int = 10,
) -> Profile:
    """Time the blocks of ``model`` dense and low-rank, on the inputs that they meet in it.

    The layer choice of Cuttlefish (Wang et al., MLSys 2023): the layers of a block whose low-rank form brings no clear
    speed-up stay dense::

        profile = lath.profile_blocks(model, images, ["layer1", "layer2", "layer3", "layer4"])
        warmup = lath.cuttlefish(model, optimizer, exclude=profile.dense(1.5))

    The model runs once in evaluation mode to see the inputs; it stays as it is, copies of the blocks are timed, forward
    and backward in training mode, in turns. Use the batch size of training and an otherwise idle machine.

    Args:
        model: dense.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments.
        blocks: qualified names of modules; none inside of another. None takes every layer for itself.
        ratios: ranks as shares of the full rank, ``int(full * ratio)``; a layer without rank there, or for which it is
            not cheaper, stays dense in the copy.
        conv: form of convolutions, as in ``lath.LowRank``.
        include: as for ``lath.convert``.
        exclude: as for ``lath.convert``.
        repeats: timed runs of each contender, after one that is not; the median counts.

    Raises:
        TypeError: an argument of a wrong type.
        ValueError: a block that the model does not have, does not run or that holds no layer to factor; a number
            outside of its range.
    """
    ratios = tuple(ratios)
    if not ratios or not all(0.0 < ratio <= 1.0 for ratio in ratios):
        raise ValueError(f"{_WHAT}: ratios are {ratios}, expected numbers above 0 and at most 1")
    if conv not in CONV_MODES:
        raise ValueError(f"{_WHAT}: conv is {conv!r}, expected one of {CONV_MODES}")
    if repeats < 1:
        raise ValueError(f"{_WHAT}: repeats is {repeats}, expected 1 or more")
    sites = candidates(model, LowRank(rank=1), include, exclude, _WHAT)
    full = {site.name: full_rank(weight_matrices(site.module, conv)) for site in sites}
    names = list(full) if blocks is None else [blocks] if isinstance(blocks, str) else list(blocks)
    modules = dict(model.named_modules())
    inside = {}
    for name in names:
        layers = tuple(layer for layer in full if layer == name or layer.startswith(f"{name}."))
        if name not in modules or not layers:
            got = "holds no layer to factor" if name in modules else "is no module of the model"
            raise ValueError(f"{_WHAT}: block {name!r} {got}")
        inside[name] = layers
    inputs = _inputs(model, {name: modules[name] for name in names}, example_inputs)
    return Profile([_profile(n, modules[n], inside[n], full, ratios, conv, inputs[n], repeats) for n in names], ratios)


def _profile(name, module, layers, full, ratios, conv, inputs, repeats) -> BlockProfile:
    contenders: dict[float | None, nn.Module] = {None: copy.deepcopy(module)}
    for ratio in ratios:
        ranks = {_NAME + layer[len(name) :]: int(full[layer] * ratio) for layer in layers}
        thin = _low_rank(module, {layer: rank for layer, rank in ranks.items() if rank}, conv)
        if thin is not None:
            contenders[ratio] = thin
    calls = {key: _pass(contender.train(), inputs) for key, contender in contenders.items()}
    seconds = _in_turns(calls, repeats, _synchronize(module))
    return BlockProfile(name, layers, seconds.pop(None), seconds)


def _low_rank(module: nn.Module, ranks: dict[str, int], conv: str) -> nn.Module | None:
    """A copy with these layers factored; None if none of them was."""
    around = nn.ModuleDict({_NAME: copy.deepcopy(module)})
    if not ranks:
        return None
    report = convert(around, LowRank(rank=ranks, conv=conv, init="fresh"), include=lambda name, layer: name in ranks)
    return around[_NAME] if any(row.reason is None for row in report) else None


def _inputs(model: nn.Module, blocks: dict[str, nn.Module], example_inputs: Any) -> dict[str, tuple[tuple, dict]]:
    """Arguments of the first call of each block."""
    found: dict[str, tuple[tuple, dict]] = {}

    def recorder(name: str) -> Callable:
        def record(module: nn.Module, args: tuple, kwargs: dict) -> None:
            if name not in found:
                found[name] = tree_map(lambda t: t.detach().clone() if isinstance(t, Tensor) else t, (args, kwargs))

        return record

    with ExitStack() as stack:
        for name, block in blocks.items():
            stack.callback(block.register_forward_pre_hook(recorder(name), with_kwargs=True).remove)
        for module in model.modules():
            stack.callback(setattr, module, "training", module.training)
            module.training = False
        stack.enter_context(torch.no_grad())
        if isinstance(example_inputs, dict):
            model(**example_inputs)
        elif isinstance(example_inputs, (tuple, list)):
            model(*example_inputs)
        else:
            model(example_inputs)
    for name in blocks:
        if name not in found:
            raise ValueError(f"{_WHAT}: block {name!r} is not called by the model")
    return found


def _pass(module: nn.Module, inputs: tuple[tuple, dict]) -> Callable[[], None]:
    """One forward and backward pass, with gradients of the floating-point inputs too."""

    def leaf(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.detach().requires_grad_()
        return value

    def run() -> None:
        args, kwargs = tree_map(leaf, inputs)
        with torch.enable_grad():
            outputs = [t for t in tree_leaves(module(*args, **kwargs)) if isinstance(t, Tensor) and t.requires_grad]
            torch.autograd.backward(outputs, [torch.ones_like(t) for t in outputs])
        module.zero_grad(set_to_none=True)

    return run


def _synchronize(module: nn.Module) -> Callable[[], None]:
    """Waits for what the device of the module has been given to do."""
    device = next(module.parameters()).device
    return (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else (lambda: None)


def _in_turns(calls: dict[Any, Callable], repeats: int, synchronize: Callable[[], None]) -> dict[Any, float]:
    """Median seconds of each; the order is turned round from one round to the next."""
    order = list(calls)
    taken: dict[Any, list[float]] = {key: [] for key in order}
    for key in order:
        calls[key]()
    for _ in range(repeats):
        for key in order:
            synchronize()
            start = time.perf_counter()
            calls[key]()
            synchronize()
            taken[key].append(time.perf_counter() - start)
        order.reverse()
    return {key: statistics.median(values) for key, values in taken.items()}
