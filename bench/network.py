# SPDX-License-Identifier: Apache-2.0
"""A whole model: the multi-layer perceptron 784-1024-1024-10, trained and used, in three forms."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial

import lath
import torch
from context import Context
from layers import filled
from rows import Row, disturbance
from torch import Tensor, nn
from torch.nn import functional

RATIO = 1 / 8
TRAINING_BATCH = 128
INFERENCE_BATCHES = (1, 64, 1024)


def perceptron() -> nn.Sequential:
    """784-1024-1024-10 with ReLU."""
    return nn.Sequential(nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10))


def pairs(model: nn.Sequential) -> nn.Sequential:
    """A copy in which every low-rank layer is two ``nn.Linear`` with the same factors."""
    model = copy.deepcopy(model)
    for name, layer in model.named_children():
        if isinstance(layer, lath.nn.LowRankLinear):
            first = nn.Linear(layer.in_features, layer.rank, bias=False)
            second = nn.Linear(layer.rank, layer.out_features)
            first.weight, second.weight, second.bias = layer.weight_v, layer.weight_u, layer.bias
            setattr(model, name, nn.Sequential(first, second))
    return model


def macs_per_row(model: nn.Module) -> int:
    """Multiply-adds of a forward pass: one for each number of a weight matrix."""
    return sum(p.numel() for p in model.parameters() if p.dim() == 2)


def network(context: Context) -> Iterator[Row]:
    """A training step with SGD, and inference, of the dense model, two ``nn.Linear`` a layer, and ``lath.convert``."""
    dense = perceptron()
    thin = copy.deepcopy(dense)
    lath.convert(thin, lath.LowRank(ratio=RATIO, init="fresh"), exclude="4")
    models = {"dense": dense, "two": pairs(thin), "lath": thin}
    x, labels = filled(TRAINING_BATCH, 784), torch.arange(TRAINING_BATCH) % 10
    steps = {
        name: partial(train_step, m, torch.optim.SGD(m.parameters(), lr=1e-3), x, labels) for name, m in models.items()
    }
    yield _row(context, models, "training step", TRAINING_BATCH, 3, steps)
    for model in models.values():
        model.eval()
    with torch.inference_mode():
        for batch in INFERENCE_BATCHES:
            x = filled(batch, 784)
            yield _row(context, models, "inference", batch, 1, {name: partial(m, x) for name, m in models.items()})


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, labels: Tensor) -> None:
    optimizer.zero_grad()
    functional.cross_entropy(model(x), labels).backward()
    optimizer.step()


def _row(
    context: Context, models: dict[str, nn.Module], case: str, batch: int, passes: int, calls: dict[str, Callable]
) -> Row:
    """Multiply-adds of a training step are taken as three forward passes; the first layer needs a little less."""
    timings = context.compare(f"model, {case}, batch {batch}", calls)
    return Row(
        section="model",
        case=case,
        mode="",
        rows=batch,
        rank=None,
        threads=context.threads,
        isa=context.machine.isa,
        baseline=timings["dense"].median,
        lath=timings["lath"].median,
        two=timings["two"].median,
        dense_macs=passes * batch * macs_per_row(models["dense"]),
        macs=passes * batch * macs_per_row(models["lath"]),
        peak=context.peak,
        **disturbance(timings.values()),
    )
