# SPDX-License-Identifier: Apache-2.0
"""Linear layers in orthogonal bases, in training and inference, against dense ones and what torch makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import lath
import torch
from bounds import FLOAT, Work, least_seconds, least_step_seconds
from cases import forward_goal, label, own_linear
from context import Context, Shape
from lath.nn import OIALRLinear
from layers import Layers, call_module, dense_module, filled, kept_results, round_robin, two_modules
from measure import Timing
from oialr_baselines import PRODUCTS, TorchLinear
from rows import Goal, Row, disturbance
from steps import gradients, two_products
from torch import Tensor, nn
from torch.nn import functional

# Ranks from a sixteenth of the smaller side to a half, then beyond the ranks where a training step has as many
# multiply-adds as a dense one, 411 of the square layer and 719 of the others; and all of them.
RANKS: dict[Shape, tuple[int, ...]] = {
    (768, 768): (48, 96, 192, 384, 416, 768),
    (768, 3072): (48, 96, 192, 384, 720),
    (3072, 768): (48, 96, 192, 384, 720),
}
ROWS = (64, 256, 1024, 4096)
INFERENCE_ROWS = (64, 1024, 4096)
MANY = 4096  # rows at which two ranks are measured, and no weights formed: that is nothing beside the dense product
QUICK_ROWS = (64, 1024)
ROTATING = 64  # up to so many rows the weights are a good part of what a call touches, and layers rotate, too

SHARE_GOAL = Goal("share", 0.88, 0.97, own=True)
PAIR_GOAL = Goal("vs two", 1.1, 1.4)
FACTORS_GOAL = Goal("vs factors", 1.0, 1.15)
DENSE_GOAL = Goal("speed-up", 0.97, 1.0, own=True)  # above break-even
FROZEN_GOAL = Goal("speed-up", 0.97, 1.0)  # the same, where torch's dense product is what is called
RECOMPOSE_GOALS = {  # by shape, rows and rank
    ((768, 3072), 1024, 192): Goal("vs recompose", 3.0, 5.0),
    ((768, 3072), 1024, 384): Goal("vs recompose", 1.5, 2.0),
    **{(shape, 64, 96): Goal("vs recompose", 8.0, 15.0) for shape in RANKS},
}


class Case(NamedTuple):
    """Layers of one shape at all their ranks.

    Attributes:
        layers: dense ones, and two factors for each rank, which train.
        cores: for each rank (vh, s, u, bias) of each layer; the bases are those factors, and frozen.
    """

    layers: Layers
    cores: Mapping[int, list[tuple[Tensor, ...]]]
    mode: str
    rows: int

    @property
    def shape(self) -> Shape:
        return self.layers.shape


def training(context: Context) -> Iterator[Row]:
    """Forward, dx and the gradients of core and bias."""
    for case in _cases(context, ROWS, requires_grad=True):
        yield from training_rows(context, case, _time_training(context, case))


def inference(context: Context) -> Iterator[Row]:
    """``module(x)`` after ``freeze()``: two factors, or the dense weight where that is cheaper."""
    for case in _cases(context, INFERENCE_ROWS, requires_grad=False):
        with torch.inference_mode():
            yield from inference_rows(context, case, _time_inference(context, case))


def _cases(context: Context, counts: Sequence[int], requires_grad: bool) -> Iterator[Case]:
    for shape in [(768, 3072)] if context.quick else RANKS:
        for rows in counts:
            mirrored = rows >= MANY and shape[0] > shape[1]  # of many rows that takes as long as the other way round
            if mirrored or (context.quick and rows not in QUICK_ROWS):
                continue
            ranks = RANKS[shape][1:5:2] if context.quick else RANKS[shape][1:3] if rows >= MANY else RANKS[shape]
            modes = context.effort.modes if rows <= ROTATING else ("hot",)
            yield from cases_of(context, shape, rows, ranks, modes, requires_grad)


def cases_of(
    context: Context, shape: Shape, rows: int, ranks: Sequence[int], modes: Sequence[str], requires_grad: bool
) -> Iterator[Case]:
    """One for each mode, on the same layers."""
    count = 1
    if "rotating" in modes:
        count = context.copies(FLOAT * (shape[0] * shape[1] + sum(ranks) * (sum(shape) + max(ranks))))
    layers = Layers(shape, ranks, count, requires_grad)
    cores = {
        rank: [
            (v.detach(), filled(rank, rank, scale=rank**-0.5).requires_grad_(requires_grad), u.detach(), bias)
            for v, u, bias in factors
        ]
        for rank, factors in layers.factors.items()
    }
    for mode in modes:
        yield Case(layers, cores, mode, rows)


# ---- training steps --------------------------------------------------------------------------------------------------


def _time_training(context: Context, case: Case) -> dict[object, Timing]:
    n_in, n_out = case.shape
    x, dy = filled(case.rows, n_in).requires_grad_(), filled(case.rows, n_out)
    kept = kept_results(context, case.mode, (case.rows, n_in), (n_out, n_in))
    count = case.layers.count(case.mode)

    def turns(product: Callable[..., Tensor], weights: Sequence[tuple]) -> Callable[[], None]:
        return round_robin(partial(gradients, product, x, dy), weights[:count], kept)

    calls: dict[object, Callable[[], None]] = {"dense": turns(functional.linear, case.layers.dense)}
    own = torch.no_grad()(partial(own_linear, x.detach()))
    calls["own"] = round_robin(own, case.layers.dense[:count], kept)
    for rank, cores in case.cores.items():
        calls["two", rank] = turns(two_products, case.layers.factors[rank])
        calls["lath", rank] = turns(lath.ops.oialr_linear, cores)
        calls |= {(name, rank): turns(product, cores) for name, product in _products(case, rank).items()}
    what = f"oialr-training {label(case.shape)}, {case.rows} rows, {case.mode}"
    return context.compare(what, calls, hot=case.mode == "hot")


def _products(case: Case, rank: int) -> dict[str, Callable[..., Tensor]]:
    """What else is timed at this rank; forming the weight takes about as long at all of them."""
    formed = case.rows < MANY and min(case.shape) // 8 <= rank <= min(case.shape) // 2
    return {name: product for name, product in PRODUCTS.items() if formed or name != "recompose"}


def step_macs(shape: Shape, rows: int, rank: int) -> tuple[str, int]:
    """The route of a training step, and its multiply-adds: of the factors one by one, or of the formed weight."""
    n_in, n_out = shape
    plan = lath.ops.oialr_linear_plan(rows, n_in, rank, n_out, training=True)
    return plan.route, plan.macs if plan.route == "merged" else rows * (2 * rank * (n_in + n_out) + 3 * rank**2)


def training_rows(context: Context, case: Case, timings: Mapping[object, Timing]) -> Iterator[Row]:
    """A row for each rank."""
    n_in, n_out = case.shape
    for rank in case.cores:
        route, macs = step_macs(case.shape, case.rows, rank)
        goal, two_goal, rival_goals = training_goals(case.shape, case.rows, rank, timings)
        work = Work(
            FLOAT * case.rows * n_in,
            FLOAT * case.rows * n_out,
            FLOAT * rank * (n_in + n_out + rank),
            macs,
            FLOAT * case.rows * (n_in if route == "merged" else rank),
        )
        bound, traffic_limited = least_step_seconds(context, work, case.layers.count(case.mode))
        yield _row(
            context, "oialr-training", case, rank, timings, training=True, macs=macs, route=route, bound=bound,
            traffic_limited=traffic_limited, goal=goal, two_goal=two_goal, rival_goals=rival_goals,
        )  # fmt: skip


def training_goals(
    shape: Shape, rows: int, rank: int, timed: Mapping[object, object]
) -> tuple[Goal | None, Goal | None, tuple[Goal, ...]]:
    """Of the row itself, against two layers, and against those rivals that are timed."""
    n_in, n_out = shape
    goal = two_goal = None
    rival_goals = [RECOMPOSE_GOALS[shape, rows, rank]] if (shape, rows, rank) in RECOMPOSE_GOALS else []
    if 2 * rank * (n_in + n_out) + 3 * rank**2 > 3 * n_in * n_out:
        goal = DENSE_GOAL
    elif rows >= 256 and max(64, min(shape) // 16) <= rank <= min(shape) // 4:
        goal, two_goal = SHARE_GOAL, PAIR_GOAL
        rival_goals.append(FACTORS_GOAL)
    return goal, two_goal, tuple(g for g in rival_goals if (g.quantity.removeprefix("vs "), rank) in timed)


# ---- inference -------------------------------------------------------------------------------------------------------


def _time_inference(context: Context, case: Case) -> dict[object, Timing]:
    kept = kept_results(context, case.mode, (case.rows, case.shape[1]))
    count = case.layers.count(case.mode)
    x = filled(case.rows, case.shape[0])

    def turns(make: Callable[..., nn.Module], weights: Sequence[tuple]) -> Callable[[], None]:
        return round_robin(partial(call_module, x=x), [(make(*given).eval(),) for given in weights[:count]], kept)

    calls: dict[object, Callable[[], None]] = {"dense": turns(dense_module, case.layers.dense)}
    calls["own"] = round_robin(partial(own_linear, x), case.layers.dense[:count], kept)
    for rank, cores in case.cores.items():
        calls["two", rank] = turns(two_modules, case.layers.factors[rank])
        calls["lath", rank] = turns(frozen_module, cores)
        calls |= {(name, rank): turns(partial(TorchLinear, variant=name), cores) for name in _products(case, rank)}
    what = f"oialr-inference {label(case.shape)}, {case.rows} rows, {case.mode}"
    return context.compare(what, calls, hot=case.mode == "hot")


def module_of(vh: Tensor, s: Tensor, u: Tensor, bias: Tensor) -> OIALRLinear:
    """``OIALRLinear`` on these very tensors."""
    (rank, n_in), n_out = vh.shape, u.shape[0]
    module = nn.utils.skip_init(OIALRLinear, n_in, n_out, rank)
    module.weight_vh, module.weight_u = vh, u
    module.weight_s, module.bias = nn.Parameter(s), nn.Parameter(bias)
    return module


def frozen_module(vh: Tensor, s: Tensor, u: Tensor, bias: Tensor) -> OIALRLinear:
    """The same, frozen for inference."""
    module = module_of(vh, s, u, bias).eval()
    module.freeze()
    return module


def inference_rows(context: Context, case: Case, timings: Mapping[object, Timing]) -> Iterator[Row]:
    """A row for each rank."""
    n_in, n_out = case.shape
    for rank in case.cores:
        above = rank * (n_in + n_out) > n_in * n_out
        weights = n_in * n_out if above else rank * (n_in + n_out)
        work = Work(FLOAT * case.rows * n_in, FLOAT * case.rows * n_out, FLOAT * weights, case.rows * weights)
        bound, traffic_limited = least_seconds(context, work, training=False, count=case.layers.count(case.mode))
        thin = case.rows >= 256 and rank <= min(case.shape) // 4
        yield _row(
            context, "oialr-inference", case, rank, timings, training=False, macs=work.macs,
            route="dense" if above else "factored", bound=bound, traffic_limited=traffic_limited,
            goal=FROZEN_GOAL if above else forward_goal(case.rows) if thin else None,
        )  # fmt: skip


def _row(
    context: Context, section: str, case: Case, rank: int, timings: Mapping[object, Timing], training: bool, **values
) -> Row:
    n_in, n_out = case.shape
    timed = {name: timings[name, rank] for name in ("two", "lath", *_products(case, rank))}
    passes = 3 if training else 1
    return Row(
        section=section,
        case=label(case.shape),
        mode=case.mode,
        rows=case.rows,
        rank=rank,
        threads=context.threads,
        isa=context.machine.isa,
        baseline=timings["dense"].median,
        lath=timed["lath"].median,
        two=timed["two"].median,
        own=passes * timings["own"].median,
        rivals={name: timed[name].median for name in _products(case, rank)},
        dense_macs=passes * case.rows * n_in * n_out,
        peak=context.peak,
        **disturbance([timings["dense"], *timed.values()]),
        **values,
    )
