# SPDX-License-Identifier: Apache-2.0
"""One layer against the dense layer and two ``nn.Linear``, forward, at every batch size."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import lath
import torch
from bounds import FLOAT, Work, least_seconds
from context import Context, Shape
from layers import (
    Layers,
    call_module,
    contenders,
    dense_module,
    filled,
    kept_results,
    round_robin,
    thin_module,
    two_modules,
)
from measure import Timing
from rows import Goal, Row, disturbance
from torch.nn import functional

own_linear = torch.ops.lath.linear.default

OWN_DENSE_GOAL = Goal("speed-up", 0.90, 0.97)


class Case(NamedTuple):
    """What one comparison measures: layers of one shape, at all their ranks."""

    section: str
    layers: Layers
    mode: str
    rows: int
    training: bool = False


def ranks(context: Context, shape: Shape) -> tuple[int, ...]:
    """The ranks of this run for layers of ``shape``."""
    return tuple(min(shape) // divisor for divisor in context.effort.divisors)


def label(shape: Shape) -> str:
    return f"{shape[0]}->{shape[1]}"


def two_goal(shape: Shape, rank: int) -> Goal:
    """Against two nn.Linear: never slower; clearly faster at thin ranks."""
    return Goal("vs two", 0.97, 1.2 if rank <= min(shape) // 8 else 1.1)


def forward_goal(rows: int) -> Goal:
    """Of 256 rows and more."""
    return Goal("share", 0.85, 1.0 if rows <= 256 else 0.95, own=True)


def bound(context: Context, case: Case, rank: int) -> tuple[float, bool]:
    """:func:`bounds.least_seconds` of one layer of the case."""
    n_in, n_out = case.layers.shape
    work = Work(
        FLOAT * case.rows * n_in,
        FLOAT * case.rows * n_out,
        FLOAT * rank * (n_in + n_out),
        case.rows * rank * (n_in + n_out),
    )
    return least_seconds(context, work, case.training, case.layers.count(case.mode))


def rows_of(
    context: Context, case: Case, timings: dict[object, Timing], goals: dict[int, Goal | None]
) -> Iterator[Row]:
    """A row for each rank. A training step of lath's own dense product is taken as three forward products."""
    n_in, n_out = case.layers.shape
    passes = 3 if case.training else 1
    own = timings.get("own")
    for rank in case.layers.ranks:
        seconds, traffic_limited = bound(context, case, rank)
        timed = [timings["dense"], timings["two", rank], timings["lath", rank]]
        yield Row(
            section=case.section,
            case=label(case.layers.shape),
            mode=case.mode,
            rows=case.rows,
            rank=rank,
            threads=context.threads,
            isa=context.machine.isa,
            baseline=timings["dense"].median,
            lath=timings["lath", rank].median,
            two=timings["two", rank].median,
            own=own.median * passes if own else None,
            dense_macs=passes * case.rows * n_in * n_out,
            macs=passes * case.rows * rank * (n_in + n_out),
            peak=context.peak,
            bound=seconds,
            traffic_limited=traffic_limited,
            **disturbance(timed),
            goal=goals[rank],
            two_goal=two_goal(case.layers.shape, rank) if goals[rank] else None,
        )


# ---- forward ---------------------------------------------------------------------------------------------------------


def time_forward(context: Context, case: Case) -> dict[object, Timing]:
    """Dense, own dense, two and lath on functions of tensors, under ``inference_mode``."""
    x = filled(case.rows, case.layers.shape[0])
    kept = kept_results(context, case.mode, (case.rows, case.layers.shape[1]))
    calls = contenders(
        case.layers,
        case.mode,
        kept,
        dense=partial(functional.linear, x),
        own=partial(own_linear, x),
        two=lambda v, u, b: functional.linear(functional.linear(x, v), u, b),
        thin=partial(lath.ops.lowrank_linear, x),
    )
    what = f"{case.section} {label(case.layers.shape)}, {case.rows} rows, {case.mode}"
    with torch.inference_mode():
        return context.compare(what, calls, hot=case.mode == "hot")


def forward(context: Context) -> Iterator[Row]:
    """256 rows and more; and lath's own dense product on the same operands."""
    for shape in context.effort.shapes:
        layers = Layers.for_context(context, shape, ranks(context, shape))
        for rows in context.effort.large_rows:
            for mode in context.effort.modes:
                case = Case("forward", layers, mode, rows)
                timings = time_forward(context, case)
                yield from rows_of(context, case, timings, dict.fromkeys(layers.ranks, forward_goal(rows)))
                yield own_dense_row(context, case, timings)


def query_key_value(context: Context) -> Iterator[Row]:
    """The layer of a ViT that makes queries, keys and values, of 128 images of 65 tokens."""
    layers, goal = Layers((512, 1536), (102,), 1), Goal("share", 0.85, 0.95, own=True)
    case = Case("qkv", layers, "hot", 8320)
    yield from rows_of(context, case, time_forward(context, case), {102: goal})


def own_dense_row(context: Context, case: Case, timings: dict[object, Timing]) -> Row:
    n_in, n_out = case.layers.shape
    macs = case.rows * n_in * n_out
    return Row(
        section="dense",
        case=label(case.layers.shape),
        mode=case.mode,
        rows=case.rows,
        rank=None,
        threads=context.threads,
        isa=context.machine.isa,
        baseline=timings["dense"].median,
        lath=timings["own"].median,
        dense_macs=macs,
        macs=macs,
        peak=context.peak,
        **disturbance(timings[name] for name in ("dense", "own")),
        goal=OWN_DENSE_GOAL,
    )


def small(context: Context) -> Iterator[Row]:
    """16 to 64 rows."""
    goals = {"hot": Goal("share", 1.9, 2.5), "rotating": Goal("share", 1.0, 1.25)}
    for shape in context.effort.shapes:
        layers = Layers.for_context(context, shape, ranks(context, shape))
        for rows in context.effort.small_rows:
            for mode in context.effort.modes:
                case = Case("small", layers, mode, rows)
                yield from rows_of(context, case, time_forward(context, case), dict.fromkeys(layers.ranks, goals[mode]))


def one_row(context: Context) -> Iterator[Row]:
    """One row through ``module(x)``; the goals go up to a rank of min/8."""
    goals = {"hot": Goal("share", 1.5, 3.0), "rotating": Goal("share", 1.0, 1.6)}
    for shape in context.effort.shapes:
        layers = Layers.for_context(context, shape, ranks(context, shape))
        through_module = partial(call_module, x=filled(1, shape[0]))
        for mode in context.effort.modes:
            count = layers.count(mode)
            kept = kept_results(context, mode, (1, shape[1]))
            dense = [(dense_module(*weights),) for weights in layers.dense[:count]]
            calls = {"dense": round_robin(through_module, dense, kept)}
            calls["own"] = round_robin(partial(own_linear, filled(1, shape[0])), layers.dense[:count], kept)
            for rank, factors in layers.factors.items():
                two = [(two_modules(*weights),) for weights in factors[:count]]
                thin = [(thin_module(*weights),) for weights in factors[:count]]
                calls["two", rank] = round_robin(through_module, two, kept)
                calls["lath", rank] = round_robin(through_module, thin, kept)
            with torch.inference_mode():
                timings = context.compare(f"one-row {label(shape)}, {mode}", calls, hot=mode == "hot")
            goal_of = {rank: goals[mode] if rank <= min(shape) // 8 else None for rank in layers.ranks}
            yield from rows_of(context, Case("one-row", layers, mode, 1), timings, goal_of)
