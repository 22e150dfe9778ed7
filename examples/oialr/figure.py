# SPDX-License-Identifier: Apache-2.0
"""The figure of the study: accuracy, trainable numbers, memory, time of a step and ranks over the training."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.ticker import NullLocator, PercentFormatter
from oialr.networks import Network
from oialr.runs import DENSE, LOW_RANK, OIALR, VARIANTS, Look, Outcome, Plan
from style import COLOURS, DASHES, INK, STYLE, pyplot

COLOURS_OF = dict(zip((DENSE, LOW_RANK, OIALR), COLOURS, strict=True))
ABOVE = dict(zip((DENSE, LOW_RANK, OIALR), (1, 2, 3), strict=True))  # which line hides which
ROOM = 1.5  # of the axis of times, as a multiple of the slowest median: what is above was a disturbance

Row = tuple[Network, dict[int, dict[str, Outcome]], Plan]


def draw(folder: Path, rows: Sequence[Row]) -> Path:
    """Write ``oialr.png`` and return its path; a row for each network, which has its outcomes by seed."""
    with pyplot.rc_context(STYLE):
        figure = pyplot.figure(figsize=(22, 4.4 * len(rows)))
        parts = figure.subfigures(len(rows), 1, squeeze=False)[:, 0]
        for part, row in zip(parts, rows, strict=True):
            draw_row(part, *row)
        path = folder / "oialr.png"
        figure.savefig(path, dpi=130)
        pyplot.close(figure)
    return path


def draw_row(part: SubFigure, network: Network, done: dict[int, dict[str, Outcome]], plan: Plan) -> None:
    axes = part.subplots(1, 5)
    part.subplots_adjust(left=0.035, right=0.99, bottom=0.13, top=0.80, wspace=0.22)
    seeds = f"{len(done)} seeds: medians and ranges" if len(done) > 1 else "one seed"
    part.text(0.035, 0.94, f"{network.title} on Fashion-MNIST, {seeds}", fontsize=14, fontweight="bold")
    dense = done[next(iter(done))][DENSE].looks[0]
    over_time(axes[0], done, lambda look: look.accuracy)
    over_time(axes[1], done, lambda look: look.trainable / dense.trainable)
    over_time(axes[2], done, lambda look: look.held / 2**20)
    over_time(axes[3], done, lambda look: look.milliseconds)
    draw_ranks(axes[4], done)
    axes[0].set_title(f"Accuracy on {plan.glance:,} test images")
    axes[1].set_title("Trainable numbers, share of dense")
    axes[2].set_title("MiB of weights, gradients, optimizer")
    axes[3].set_title("Milliseconds of a training step")
    axes[4].set_title("Ranks under OIALR, layer by layer")
    axes[0].set_ylim(bottom=max(0.0, least_at_the_end(done) - 0.08))
    axes[1].set_ylim(0, 1.06)
    axes[2].set_ylim(bottom=0)
    axes[3].set_ylim(0, ROOM * slowest(done))
    for axis in axes[:2]:
        axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    for axis in axes:
        axis.axvline(plan.delay, color=INK, linewidth=0.8, linestyle=DASHES)
        axis.set_xlim(0, plan.steps)
        axis.set_xlabel("training steps; dashes: conversion")
    part.legend(*axes[0].get_legend_handles_labels(), loc="upper right", ncols=3, frameon=False)


def over_time(axis: Axes, done: dict[int, dict[str, Outcome]], figure: Callable[[Look], float]) -> None:
    """The median over the seeds, and the range behind it."""
    for variant in VARIANTS:
        looks = list(zip(*(of_variants[variant].looks for of_variants in done.values()), strict=True))
        steps = [several[0].step for several in looks]
        values = [[figure(look) for look in several] for several in looks]
        options = {"color": COLOURS_OF[variant], "zorder": 2 + ABOVE[variant]}
        axis.plot(steps, [statistics.median(v) for v in values], linewidth=2, label=variant, **options)
        if len(done) > 1:
            axis.fill_between(steps, [min(v) for v in values], [max(v) for v in values], alpha=0.2, **options)


def least_at_the_end(done: dict[int, dict[str, Outcome]]) -> float:
    return min(outcome.looks[-1].accuracy for of_variants in done.values() for outcome in of_variants.values())


def slowest(done: dict[int, dict[str, Outcome]]) -> float:
    """Milliseconds: of each training the median of its looks, the largest of these."""
    everyone = (outcome for of_variants in done.values() for outcome in of_variants.values())
    return max(statistics.median(look.milliseconds for look in outcome.looks) for outcome in everyone)


def draw_ranks(axis: Axes, done: dict[int, dict[str, Outcome]]) -> None:
    """Of the first seed."""
    looks = [look for look in next(iter(done.values()))[OIALR].looks if look.ranks]
    layers = list(looks[0].ranks) if looks else []
    shades = pyplot.get_cmap("viridis")
    for i, layer in enumerate(layers):
        colour = shades(0.9 * i / max(1, len(layers) - 1))
        axis.plot([look.step for look in looks], [look.ranks[layer] for look in looks], color=colour, linewidth=1.6)
    axis.set_yscale("log", base=2)
    axis.yaxis.set_minor_locator(NullLocator())
    axis.set_ylim(0.9, 1.1 * max((max(look.ranks.values()) for look in looks), default=1))
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_ylabel("dark: first layers, light: last ones")
