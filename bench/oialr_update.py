# SPDX-License-Identifier: Apache-2.0
"""What a basis update costs, of one layer and of whole models, in training steps of what is converted.

Every update finds cores that have moved on from diagonal ones. It keeps the ranks, and turns the state of AdamW, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import lath
import torch
from cases import label
from context import Context
from convolutions import training_step as layer_step
from lath.factor import Decomposition
from lath.nn import OIALRLinear
from layers import filled
from measure import Contender
from network import training_step
from oialr import RANKS
from oialr_models import IMAGE, MODELS
from rows import Goal, Row, disturbance
from torch import Tensor, nn

GOAL = Goal("steps", 20, 20)
LAYER_ROWS, BATCH = 1024, 16
LAYER_RANKS = (96, 192, 384)
RATIOS = {"ranks / 8": 1 / 8, "full rank": 1.0}  # of models: after their ranks have fallen, and at the first update,
AT_FIRST = "ViT"  # which of one model says enough
MOVED = 1e-2  # norm of what training adds to a core between two updates, beside its largest value


def update(context: Context) -> Iterator[Row]:
    """Layers, then models."""
    for shape in list(RANKS)[1:2] if context.quick else RANKS:
        dense = nn.Linear(*shape)
        svd = Decomposition.of(dense.weight, "the benchmark")
        x, dy = filled(LAYER_ROWS, shape[0]).requires_grad_(), filled(LAYER_ROWS, shape[1])
        for rank in LAYER_RANKS[:2] if context.quick else LAYER_RANKS:
            model = nn.Sequential(OIALRLinear.from_dense(dense, rank, decomposition=svd))
            yield _row(context, label(shape), model, layer_step(model, x, dy), rows=LAYER_ROWS, rank=rank)
    for title, model in list(MODELS.items())[: 1 if context.quick else None]:
        dense = model.dense()
        for name, ratio in list(RATIOS.items())[: 1 if context.quick or title != AT_FIRST else None]:
            thin = model.thin(dense, ratio)
            step = training_step(thin, filled(BATCH, *IMAGE))
            yield _row(context, f"{title}, {name}", thin, step, rows=BATCH, rank=None, goal=GOAL)


def _row(context: Context, case: str, model: nn.Module, step: Callable[[], object], **values) -> Row:
    controller = controller_of(model)
    calls = {"dense": step, "lath": Contender(controller.update, before=lambda: move(controller.model))}
    timings = context.compare(f"oialr-update {case}", calls)
    return Row(
        section="oialr-update",
        case=case,
        mode="",
        threads=context.threads,
        isa=context.machine.isa,
        baseline=timings["dense"].median,
        lath=timings["lath"].median,
        **disturbance(timings.values()),
        **values,
    )


def controller_of(model: nn.Module) -> lath.OIALRController:
    """One that updates all layers each time and keeps their ranks, with an optimizer that has been at work."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    for parameter in model.parameters():
        parameter.grad = filled(*parameter.shape)
    optimizer.step()
    optimizer.zero_grad()
    return lath.OIALRController(model, optimizer, delay=1, warmup=False, layer_share=1.0, min_rank=1 << 30)


@torch.no_grad()
def move(model: nn.Module) -> None:
    """Add a little to every core."""
    for core in lath.oialr_cores(model).values():
        largest: Tensor = core.s.abs().max()
        core.s.add_(filled(*core.s.shape, scale=MOVED * float(largest) * core.rank**-0.5))
