# SPDX-License-Identifier: Apache-2.0
"""Convolutions and attention in orthogonal bases: training steps and inference."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence

import torch
from context import Context
from convolutions import Layer, frozen_inference, inference, training_step
from formats import better, in_both_formats, row_of
from lath.nn import OIALRConv2d, OIALRMultiheadAttention
from layers import filled, filled_module
from measure import Timing
from oialr_baselines import VARIANTS, as_torch
from rows import Goal, Row, disturbance
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

RIVALS = VARIANTS[1:]
# Weights of 256 x 2304 and 512 x 4608, at ranks from a sixteenth of the smaller side to a half.
CONVOLUTIONS = {Layer(256, 256, 14): (64,), Layer(512, 512, 7): (32, 64, 256)}
CONVOLUTION_GOALS = {(Layer(256, 256, 14), 64): Goal("share", 0.75, 0.90)}
WIDTH, HEADS = 768, 12
TOKENS = 2, 197  # images and their tokens
ATTENTION_RANKS = (48, 96, 192, 384)


def multiply_adds(module: nn.Module, x: Tensor, training: bool) -> int:
    """What torch counts in its own operators, in a forward pass or a training step of everything that trains."""
    module, x = copy.deepcopy(module).train(), x.detach().clone().requires_grad_(x.requires_grad)
    with torch.set_grad_enabled(training), FlopCounterMode(display=False) as counter:
        y = module(x)
        if training:
            y.backward(torch.ones_like(y))
    return counter.get_total_flops() // 2


# ---- convolutions ----------------------------------------------------------------------------------------------------


def convolution(context: Context) -> Iterator[Row]:
    """Training steps, then inference, each contender in its better memory format."""
    for layer, ranks in list(CONVOLUTIONS.items())[: 1 if context.quick else None]:
        modules = {rank: in_a_basis(layer, rank) for rank in ranks}
        for training in (True, False):
            with torch.inference_mode(not training):
                yield from _convolution(context, layer, modules, training)


def in_a_basis(layer: Layer, rank: int) -> OIALRConv2d:
    """The layer, in bases that are not orthogonal: finding such ones would take longer than all else."""
    kernel, *window = layer.window
    return filled_module(nn.utils.skip_init(OIALRConv2d, layer.n_in, layer.n_out, kernel, rank, *window))


def _convolution(context: Context, layer: Layer, modules: dict[int, OIALRConv2d], training: bool) -> Iterator[Row]:
    images = filled(*layer.x_shape).requires_grad_(training), filled(*layer.y_shape)
    call_of = training_step if training else inference
    dense = layer.dense()
    calls = in_both_formats("dense", dense, call_of, images)
    counts = {}
    for rank, module in modules.items():
        twins = {name: as_torch(module, name).train(training) for name in VARIANTS}
        counts[rank] = multiply_adds(twins["factors" if training else "two"], images[0], training)
        for name, twin in twins.items():
            calls |= in_both_formats((name, rank), twin, call_of, images)
        made = training_step if training else frozen_inference
        calls |= in_both_formats(("lath", rank), module.train(training), made, images)
    mode = "training" if training else "inference"
    dense_macs = multiply_adds(dense, images[0], training)
    timings = context.compare(f"oialr-conv {layer.label}, {mode}", calls)
    for rank in modules:
        yield row_of(
            context,
            timings,
            ("dense", ("two", rank), ("lath", rank)),
            section="oialr-conv",
            case=layer.label,
            mode=mode,
            rows=layer.batch,
            rank=rank,
            rivals={name: timings[(name, rank), better(timings, (name, rank))].median for name in RIVALS},
            dense_macs=dense_macs,
            macs=counts[rank],
            goal=CONVOLUTION_GOALS.get((layer, rank)) if training else None,
        )


# ---- attention -------------------------------------------------------------------------------------------------------


class SelfAttention(nn.Module):
    """Of a module that is called as ``nn.MultiheadAttention`` is; the output alone."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]

    def freeze(self) -> bool:
        """For inference, if it is of lath."""
        return self.attention.freeze()


def attention(context: Context) -> Iterator[Row]:
    """Self-attention without weights, training steps and inference."""
    dense = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    ranks = ATTENTION_RANKS[1:2] if context.quick else ATTENTION_RANKS
    thin = {rank: OIALRMultiheadAttention.from_dense(dense, rank) for rank in ranks}
    for training in (True, False):
        with torch.inference_mode(not training):
            yield from _attention(context, dense, thin, training)


def _attention(
    context: Context, dense: nn.Module, thin: dict[int, OIALRMultiheadAttention], training: bool
) -> Iterator[Row]:
    x, dy = filled(*TOKENS, WIDTH).requires_grad_(training), filled(*TOKENS, WIDTH)
    call_of = training_step if training else inference
    dense_macs = multiply_adds(SelfAttention(dense), x, training)
    calls: dict[object, Callable] = {"dense": call_of(SelfAttention(dense).train(training), x, dy)}
    counts = {}
    for rank, module in thin.items():
        twins = {name: SelfAttention(as_torch(module, name)).train(training) for name in VARIANTS}
        calls |= {(name, rank): call_of(twin, x, dy) for name, twin in twins.items()}
        counts[rank] = multiply_adds(twins["factors" if training else "two"], x, training)
        made = training_step if training else frozen_inference
        calls["lath", rank] = made(SelfAttention(module).train(training), x, dy)
    mode = "training" if training else "inference"
    case = f"{WIDTH}, {HEADS} heads"
    timings = context.compare(f"oialr-attention {case}, {mode}", calls)
    for rank in thin:
        yield row_from(
            context,
            timings,
            rank,
            VARIANTS,
            section="oialr-attention",
            case=case,
            mode=mode,
            rows=TOKENS[0] * TOKENS[1],
            rank=rank,
            dense_macs=dense_macs,
            macs=counts[rank],
        )


def row_from(context: Context, timings: dict[object, Timing], key: object, variants: Sequence[str], **values) -> Row:
    """What the contenders "dense", (variant, key) and ("lath", key) make of a case; ``values`` are the other fields."""
    timed = {name: timings[name, key] for name in (*variants, "lath")}
    return Row(
        threads=context.threads,
        isa=context.machine.isa,
        peak=context.peak,
        baseline=timings["dense"].median,
        lath=timed["lath"].median,
        two=timed["two"].median,
        rivals={name: timed[name].median for name in variants if name != "two"},
        **disturbance([timings["dense"], *timed.values()]),
        **values,
    )
