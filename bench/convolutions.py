# SPDX-License-Identifier: Apache-2.0
"""Low-rank convolutions against the dense one and two ``nn.Conv2d``, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import lath
import torch
from bounds import FLOAT, Work, least_seconds
from cases import own_linear
from context import Context
from formats import better, in_both_formats, row_of
from lath.nn import LowRankConv2d
from layers import filled
from lowrank.networks import as_pair
from measure import Timing
from rows import Goal, Row
from torch import Tensor, nn

FORMS = ("separable", "pointwise")
TWO_GOAL = Goal("vs two", 1.0, 1.2)
SEPARABLE_GOAL = Goal("share", 0.70, 0.90)
TRAINING_GOAL = Goal("share", 0.70, 0.85)
PLAN_GOAL = Goal("speed-up", 0.97, 1.0)
RATIO = 0.2
POINTWISE_RATIO = 0.25  # of 1x1 convolutions


class Layer(NamedTuple):
    """A convolution of square images with a square window, padded by half of it."""

    n_in: int
    n_out: int
    size: int
    stride: int = 1
    kernel: int = 3
    batch: int = 16

    @property
    def label(self) -> str:
        return f"{self.n_in}->{self.n_out} {self.size}x{self.size}{f' /{self.stride}' if self.stride > 1 else ''}"

    @property
    def x_shape(self) -> tuple[int, ...]:
        return self.batch, self.n_in, self.size, self.size

    @property
    def y_shape(self) -> tuple[int, ...]:
        size = (self.size - 1) // self.stride + 1
        return self.batch, self.n_out, size, size

    @property
    def window(self) -> tuple[int, int, int]:
        """Kernel, stride and padding, as nn.Conv2d takes them."""
        return self.kernel, self.stride, self.kernel // 2

    def full_rank(self, form: str) -> int:
        """The smaller side of the weight as a matrix."""
        if form == "separable":
            return min(self.n_in, self.n_out) * self.kernel
        return min(self.n_in * self.kernel**2, self.n_out)

    def dense(self) -> nn.Conv2d:
        return nn.Conv2d(self.n_in, self.n_out, *self.window)

    def thin(self, rank: int, form: str) -> LowRankConv2d:
        kernel, stride, padding = self.window
        return LowRankConv2d(self.n_in, self.n_out, kernel, rank, stride, padding, mode=form)


# Those of a ResNet-18 for images of 32x32 that differ.
RESNET_18 = (
    Layer(64, 64, 32),
    Layer(128, 128, 16),
    Layer(256, 256, 8),
    Layer(512, 512, 4),
    Layer(512, 512, 2),
    Layer(64, 128, 32, stride=2),
    Layer(256, 512, 8, stride=2),
)
# The 1x1 ones of a ResNet-50 for images of 224x224 that differ: in, out, size, stride.
RESNET_50 = tuple(
    Layer(*extents, kernel=1, batch=8)
    for extents in (
        (64, 64, 56, 1),
        (64, 256, 56, 1),
        (256, 64, 56, 1),
        (256, 128, 56, 1),
        (256, 512, 56, 2),
        (128, 512, 28, 1),
        (512, 128, 28, 1),
        (512, 256, 28, 1),
        (512, 1024, 28, 2),
        (256, 1024, 14, 1),
        (1024, 256, 14, 1),
        (1024, 512, 14, 1),
        (1024, 2048, 14, 2),
        (512, 2048, 7, 1),
        (2048, 512, 7, 1),
    )
)


# ---- sections --------------------------------------------------------------------------------------------------------


def forward(context: Context) -> Iterator[Row]:
    """Pointwise at thin ranks, then separable at the ratio of the reference."""
    floors = {Layer(64, 64, 32): (Goal("share", 0.80, 0.90), Goal("share", 0.70, 0.80))}
    floors[Layer(256, 256, 8)] = (Goal("share", 0.65, 0.80), Goal("share", 0.55, 0.70))
    for layer, goals in floors.items():
        found = compare(context, "conv-forward", layer, "pointwise", (16, 8))
        yield from rows_of(context, found, dict(zip((16, 8), goals, strict=True)))
    for layer in RESNET_18[:3] if context.quick else RESNET_18:
        rank = int(layer.full_rank("separable") * RATIO)
        found = compare(context, "conv-forward", layer, "separable", (rank,))
        yield from rows_of(context, found, {rank: SEPARABLE_GOAL})


def training(context: Context) -> Iterator[Row]:
    """Both forms at ranks from 16 to half the channels, then the layers of ``forward``."""
    for layer in (Layer(64, 64, 32), Layer(256, 256, 8)):
        ranks = sorted({16, layer.n_in // 4, layer.n_in // 2})
        for form in FORMS:
            found = compare(context, "conv-training", layer, form, ranks, training=True)
            yield from rows_of(context, found, dict.fromkeys(ranks, TRAINING_GOAL))
    for layer in RESNET_18[:1] if context.quick else RESNET_18:
        rank = int(layer.full_rank("separable") * RATIO)
        found = compare(context, "conv-training", layer, "separable", (rank,), training=True)
        yield from rows_of(context, found, {rank: TRAINING_GOAL})


def one_by_one(context: Context) -> Iterator[Row]:
    """Forward and training steps of 1x1 convolutions; both forms are the same thing."""
    goals = {False: Goal("share", 0.80, 0.95, own=True), True: Goal("share", 0.80, 0.90, own=True)}
    for layer in RESNET_50[::5] if context.quick else RESNET_50:
        rank = int(layer.full_rank("pointwise") * POINTWISE_RATIO)
        for with_gradients, goal in goals.items():
            found = compare(context, "conv-1x1", layer, "pointwise", (rank,), with_gradients)
            for row in rows_of(context, found, {rank: goal}):
                yield row.replace(mode="training" if with_gradients else "forward")


def plan(context: Context) -> Iterator[Row]:
    """Ranks up to full against dense. Beyond break-even a training step has no goal: the factors hold more than W."""
    parts = (1 / 4, 1) if context.quick else (1 / 4, 1 / 2, 1)
    layers = Layer(128, 128, 16), Layer(512, 512, 4)
    for layer in layers[:1] if context.quick else layers:
        for form in FORMS:
            ranks = [int(layer.full_rank(form) * part) for part in parts]
            yield from _plan_inference(context, layer, form, ranks)
            found = compare(context, "conv-plan", layer, form, ranks, training=True)
            for row in rows_of(context, found, dict.fromkeys(ranks, PLAN_GOAL)):
                cheaper = row.mac_ratio > 1
                yield row.replace(mode=f"{form}, training", goal=PLAN_GOAL if cheaper else None, two_goal=None)


def _plan_inference(context: Context, layer: Layer, form: str, ranks: Sequence[int]) -> Iterator[Row]:
    found = compare(context, "conv-plan", layer, form, ranks, frozen=True)
    for row in rows_of(context, found, dict.fromkeys(ranks, PLAN_GOAL)):
        yield row.replace(mode=f"{form}, as is", two_goal=None)
        if (("frozen", row.rank), "nchw") in found.timings:
            # A frozen layer is the dense convolution; the bound of the factors says nothing about it.
            yield row_of(
                context,
                found.timings,
                ("dense", ("two", row.rank), ("frozen", row.rank)),
                section=row.section,
                case=row.case,
                mode=f"{form}, frozen",
                rows=row.rows,
                rank=row.rank,
                dense_macs=row.dense_macs,
                macs=row.dense_macs,
                goal=PLAN_GOAL,
            )


# ---- one comparison --------------------------------------------------------------------------------------------------


class Comparison(NamedTuple):
    """A layer in one form, timed.

    Attributes:
        modules: low-rank, by rank.
        timings: of ("dense", format), (("two", rank), format), (("lath", rank), format), (("frozen", rank), format)
            where freezing pays, and "own" of 1x1 convolutions.
    """

    section: str
    layer: Layer
    form: str
    training: bool
    modules: Mapping[int, LowRankConv2d]
    timings: Mapping[object, Timing]


def compare(
    context: Context,
    section: str,
    layer: Layer,
    form: str,
    ranks: Sequence[int],
    training: bool = False,
    frozen: bool = False,
) -> Comparison:
    """Dense, two and lath, on request lath frozen, all in both memory formats; lath's own dense product if 1x1."""
    modules = {rank: layer.thin(rank, form).train(training) for rank in ranks}
    in_formats = partial(
        in_both_formats, images=(filled(*layer.x_shape).requires_grad_(training), filled(*layer.y_shape))
    )
    call_of = training_step if training else inference
    calls: dict[object, Callable[[], object]] = in_formats("dense", layer.dense(), call_of)
    for rank, module in modules.items():
        calls |= in_formats(("two", rank), as_pair(module), call_of)
        calls |= in_formats(("lath", rank), module, call_of)
        if frozen and module.freeze():
            calls |= in_formats(("frozen", rank), module, frozen_inference)
    if layer.kernel == 1:
        calls["own"] = _own_dense(layer)
    what = f"{section} {layer.label}, {form}{', training' if training else ''}"
    with torch.inference_mode(not training):
        timings = context.compare(what, calls)
    return Comparison(section, layer, form, training, modules, timings)


def inference(module: nn.Module, x: Tensor, dy: Tensor) -> Callable[[], Tensor]:
    """The call ``module(x)``."""
    return partial(module, x)


def frozen_inference(module: nn.Module, x: Tensor, dy: Tensor) -> Callable[[], Tensor]:
    """The same of a layer of lath, frozen."""
    module.freeze()  # copies are not frozen
    return partial(module, x)


def training_step(module: nn.Module, x: Tensor, dy: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    """Forward, dx and the gradients of all parameters."""
    operands = x, *module.parameters()
    return lambda: torch.autograd.grad(module(x), operands, dy)


def _own_dense(layer: Layer) -> Callable[[], Tensor]:
    """The dense product of lath of all pixels of y, without gradients."""
    batch, n_out, height, width = layer.y_shape
    pixels = filled(batch * height * width, layer.n_in)
    return torch.no_grad()(partial(own_linear, pixels, filled(n_out, layer.n_in), filled(n_out)))


def rows_of(context: Context, found: Comparison, goals: Mapping[int, Goal]) -> Iterator[Row]:
    """A row for each rank. A training step is taken as three forward passes."""
    layer, passes = found.layer, 3 if found.training else 1
    own = found.timings.get("own")
    x_bytes, y_bytes = FLOAT * math.prod(layer.x_shape), FLOAT * math.prod(layer.y_shape)
    for rank, module in found.modules.items():
        plan, route = _plan(found, rank), _plan(found, rank, found.training).kernel
        weights = FLOAT * (module.weight_v.numel() + module.weight_u.numel())
        bound, traffic_limited = least_seconds(context, Work(x_bytes, y_bytes, weights, plan.macs), found.training)
        yield row_of(
            context,
            found.timings,
            ("dense", ("two", rank), ("lath", rank)),
            section=found.section,
            case=layer.label,
            mode=found.form,
            rows=layer.batch,
            rank=rank,
            own=own.median * passes if own else None,
            dense_macs=passes * plan.dense_macs,
            macs=passes * plan.macs,
            bound=0.0 if plan.kernel == "merged" else bound,  # that of the factors
            traffic_limited=traffic_limited,
            route=route,
            goal=goals[rank],
            two_goal=None if route == "pair" else TWO_GOAL,  # a pair is the same two calls
        )


def _plan(found: Comparison, rank: int, backward: bool = False) -> lath.ops.ConvPlan:
    """What the planner says, in the format in which lath is faster."""
    layer, channels_last = found.layer, better(found.timings, ("lath", rank)) == "nhwc"
    extents = layer.batch, layer.n_in, rank, layer.n_out, layer.size, layer.size, *layer.window
    return lath.ops.lowrank_conv2d_plan(*extents, mode=found.form, channels_last=channels_last, backward=backward)
