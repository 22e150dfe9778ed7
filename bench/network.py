# SPDX-License-Identifier: Apache-2.0
"""Whole models, trained and used, in three forms: dense, two library layers for each low-rank one, and lath."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial

import lath
import torch
from context import Context
from count import inference_macs, training_macs
from formats import in_both_formats, row_of
from layers import filled
from lowrank.networks import as_pairs
from lowrank.reference_models import reference
from rows import Goal, Row, disturbance
from torch import Tensor, nn
from torch.nn import functional

RATIO = 1 / 8
TRAINING_BATCH = 128
INFERENCE_BATCHES = (1, 64, 1024)


def perceptron() -> nn.Sequential:
    """784-1024-1024-10 with ReLU."""
    return nn.Sequential(nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10))


def network(context: Context) -> Iterator[Row]:
    """A training step with SGD, and inference, of the dense model, two ``nn.Linear`` a layer, and ``lath.convert``."""
    dense = perceptron()
    thin = copy.deepcopy(dense)
    lath.convert(thin, lath.LowRank(ratio=RATIO, init="fresh"), exclude="4")
    models = {"dense": dense, "two": as_pairs(thin), "lath": thin}
    x = filled(TRAINING_BATCH, 784)
    steps = {name: training_step(model, x) for name, model in models.items()}
    yield _row(context, models, "training step", x.shape, steps, training_macs)
    for model in models.values():
        model.eval()
    with torch.inference_mode():
        for batch in INFERENCE_BATCHES:
            x = filled(batch, 784)
            calls = {name: partial(model, x) for name, model in models.items()}
            yield _row(context, models, "inference", x.shape, calls, inference_macs)


def training_step(model: nn.Module, x: Tensor) -> Callable[[], None]:
    """Forward, backward and SGD, with classes 0, 1, 2, ... as labels."""
    optimizer, labels = torch.optim.SGD(model.parameters(), lr=1e-3), torch.arange(len(x)) % 10

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(model(x), labels).backward()
        optimizer.step()

    return step


def _row(
    context: Context,
    models: dict[str, nn.Module],
    case: str,
    shape: torch.Size,
    calls: dict[str, Callable],
    macs_of: Callable[[nn.Module, torch.Size], int],
) -> Row:
    timings = context.compare(f"model, {case}, batch {shape[0]}", calls)
    return Row(
        section="model",
        case=case,
        mode="",
        rows=shape[0],
        rank=None,
        threads=context.threads,
        isa=context.machine.isa,
        baseline=timings["dense"].median,
        lath=timings["lath"].median,
        two=timings["two"].median,
        dense_macs=macs_of(models["dense"], shape),
        macs=macs_of(models["lath"], shape),
        peak=context.peak,
        **disturbance(timings.values()),
    )


# ---- convolutional networks ------------------------------------------------------------------------------------------

CONV_RATIO = 0.2
NETWORKS = {"ResNet-18": "resnet18", "VGG-11": "vgg11"}  # title to the name in examples/lowrank/reference_models.py
IMAGES = (32, 3, 32, 32)
STEP_GOAL, TWO_GOAL = Goal("speed-up", 1.8, 2.2), Goal("vs two", 1.0, 1.2)


def convolutional(context: Context) -> Iterator[Row]:
    """As ``network``, of the networks of the public reference at its ratio; each in the better memory format."""
    for title, name in list(NETWORKS.items())[-1:] if context.quick else NETWORKS.items():
        thin = reference(name, CONV_RATIO)
        models = {"dense": reference(name), "two": as_pairs(thin), "lath": thin}
        yield _conv_row(context, title, "training", models, training_step, training_macs, STEP_GOAL)
        for model in models.values():
            model.eval()
        with torch.inference_mode():
            yield _conv_row(context, title, "inference", models, partial, inference_macs, None)


def _conv_row(
    context: Context,
    title: str,
    mode: str,
    models: dict[str, nn.Module],
    call_of: Callable[[nn.Module, Tensor], Callable[[], object]],
    macs_of: Callable[[nn.Module, tuple[int, ...]], int],
    goal: Goal | None,
) -> Row:
    calls: dict[object, Callable] = {}
    for name, model in models.items():
        calls |= in_both_formats(name, model, call_of, [filled(*IMAGES)])
    return row_of(
        context,
        context.compare(f"conv-model {title}, {mode}", calls),
        tuple(models),
        section="conv-model",
        case=title,
        mode=mode,
        rows=IMAGES[0],
        rank=None,
        dense_macs=macs_of(models["dense"], IMAGES),
        macs=macs_of(models["lath"], IMAGES),
        goal=goal,
        two_goal=TWO_GOAL,
    )
