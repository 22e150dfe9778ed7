# SPDX-License-Identifier: Apache-2.0
"""The least time that a low-rank layer can take on this machine."""

from __future__ import annotations

from typing import NamedTuple

from context import Context

FLOAT = 4  # bytes


class Work(NamedTuple):
    """What a forward call has to do: bytes of input, output and weights, and multiply-adds.

    Of a layer in an orthogonal basis ``kept`` are the bytes that a training step keeps, and ``macs`` those of the step.
    """

    x: int
    y: int
    weights: int
    macs: int
    kept: int = 0


def least_seconds(context: Context, work: Work, training: bool, count: int = 1) -> tuple[float, bool]:
    """Least seconds of a call on one thread, and whether the traffic sets it rather than the multiply-adds.

    Every operand crosses once for each pass that needs it, at the rate of the level where it stays between two uses.
    Several threads: no bound.

    Args:
        context: of the run.
        work: of one layer.
        training: a step, with all gradients.
        count: layers that take turns.
    """
    if context.threads > 1:
        return 0.0, False
    machine = context.machine
    x, y, weights, macs, _ = work
    once = x + weights + y
    cycle = x + count * (weights + y)
    traffic = machine.read_seconds(x, once) + machine.read_seconds(weights, cycle) + machine.write_seconds(y, cycle)
    if training:
        once += y + x + weights  # dy, dx, gradients of the weights
        cycle = 2 * x + y + count * (2 * weights + x)
        traffic = machine.read_seconds(2 * x + y, once) + machine.read_seconds(2 * weights, cycle)
        traffic += machine.write_seconds(y, once) + machine.write_seconds(x + weights, cycle)
        macs *= 3
    multiply_adds = 2e-9 * macs / machine.isa_peak
    return max(traffic, multiply_adds), traffic > multiply_adds


def least_step_seconds(context: Context, work: Work, count: int = 1) -> tuple[float, bool]:
    """The same for a step with frozen bases: they get no gradients, and the backward reads what was kept, not x.

    Args:
        context: of the run.
        work: of one layer.
        count: layers that take turns.
    """
    if context.threads > 1:
        return 0.0, False
    machine = context.machine
    x, y, weights, macs, kept = work
    once = 2 * (x + y + weights + kept)
    cycle = 2 * (x + y) + kept + count * (2 * weights + x + y)
    traffic = machine.read_seconds(x + y + kept, once) + machine.read_seconds(2 * weights, cycle)
    traffic += machine.write_seconds(y + kept, once) + machine.write_seconds(x, cycle)
    multiply_adds = 2e-9 * macs / machine.isa_peak
    return max(traffic, multiply_adds), traffic > multiply_adds
