# SPDX-License-Identifier: Apache-2.0
"""The figure of the demo: accuracy against training time, the time of a step, and the realized share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter
from measure import Workload
from style import BLANK, COLOURS, DASHES, INK, STYLE, pyplot


@dataclass(frozen=True)
class Part:
    """A row of the figure: one network.

    Attributes:
        curves: (training seconds, test accuracy) of each variant by name, the dense one first, lath last.
        loads: training first.
    """

    title: str
    curves: dict[str, list[tuple[float, float]]]
    loads: list[Workload]


def draw(folder: Path, parts: list[Part]) -> Path:
    """Write ``fashion_mnist.png`` into ``folder``, which is made if it does not exist, and return its path."""
    with pyplot.rc_context(STYLE):
        figure = pyplot.figure(figsize=(15, 5.4 * len(parts)))
        rows = figure.subfigures(len(parts), 1, squeeze=False)[:, 0]
        for row, part in zip(rows, parts, strict=True):
            draw_part(row, part)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "fashion_mnist.png"
        figure.savefig(path, dpi=160)
        pyplot.close(figure)
    return path


def draw_part(row: SubFigure, part: Part) -> None:
    names = list(part.curves)
    axes = row.subplots(1, 3, width_ratios=(1.3, 0.8, 1.1))
    row.subplots_adjust(left=0.04, right=0.985, bottom=0.14, top=0.81, wspace=0.24)
    row.text(0.04, 0.93, part.title, fontsize=14, fontweight="bold")
    patches = [Patch(color=colour, label=name) for name, colour in zip(names, COLOURS, strict=True)]
    row.legend(handles=patches, loc="upper right", bbox_to_anchor=(0.99, 0.985), ncols=3, frameon=False)
    draw_curves(axes[0], names, part.curves)
    draw_steps(axes[1], names, part.loads[0])
    draw_shares(axes[2], names, part.loads)


def draw_curves(axis: Axes, names: list[str], curves: dict[str, list[tuple[float, float]]]) -> None:
    for i, (name, colour) in enumerate(zip(names, COLOURS, strict=True)):
        seconds, accuracies = zip(*curves[name], strict=True)
        axis.plot(seconds, accuracies, color=colour, linewidth=2.2)
        axis.plot(seconds[-1:], accuracies[-1:], "o", color=colour, markersize=7)
        axis.text(
            0.99,
            0.04 + 0.07 * (len(names) - 1 - i),
            f"{name}: {accuracies[-1]:.1%} after {seconds[-1]:.1f} s",
            transform=axis.transAxes,
            ha="right",
            color=colour,
            fontweight="bold",
        )
    lowest = min(points[0][1] for points in curves.values())
    highest = max(accuracy for points in curves.values() for _, accuracy in points)
    margin = 0.1 * max(0.02, highest - lowest)
    axis.set_ylim(max(0.0, lowest - margin), highest + margin)
    axis.set_xlim(0, 1.05 * max(points[-1][0] for points in curves.values()))
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axis.set_xlabel("seconds spent in training steps")
    axis.set_title("Test accuracy against training time")


def draw_steps(axis: Axes, names: list[str], load: Workload) -> None:
    dense, thin = names[0], names[-1]
    heights = [1e3 * load.seconds[name] for name in names]
    axis.bar(range(len(names)), heights, color=COLOURS, width=0.62)
    bound, right = heights[0] / load.saving(thin, dense), len(names) - 0.5
    for i, (name, height) in enumerate(zip(names, heights, strict=True)):
        factor = "" if name == dense else f"{load.speedup(name, dense):.1f}x as fast\n"
        above = max(height, bound) + 0.012 * max(heights)
        axis.text(i, above, f"{factor}{height:.{2 if height < 10 else 1}f} ms", ha="center", va="bottom")
    axis.plot([0.55, right], [bound, bound], color=INK, linewidth=1.4, linestyle=DASHES)
    label = 0.88 if max(heights[-1], bound) < 0.6 * max(heights) else 1.2  # above the last bar and its text
    axis.annotate(
        f"what {load.saving(thin, dense):.1f}x fewer\nmultiply-adds promise",
        xy=(right, bound),
        xytext=(right, label * max(heights)),
        ha="right",
        arrowprops={"arrowstyle": "-", "color": INK, "linewidth": 0.8, "relpos": (1, 0), "shrinkA": 2, "shrinkB": 0},
    )
    axis.set_xticks(range(len(names)), names)
    axis.set_xlim(-0.5, right)
    axis.set_ylim(0, max(1.1, 1.1 * label) * max(heights))
    axis.set_ylabel("milliseconds, median")
    axis.grid(axis="x", visible=False)
    axis.set_title(f"One step of {load.name}")


def draw_shares(axis: Axes, names: list[str], loads: list[Workload]) -> None:
    dense, thin = names[0], names[1:]
    height = 0.36
    largest = max(load.share(name, dense) for load in loads for name in thin)
    for k, (name, colour) in enumerate(zip(thin, COLOURS[1:], strict=True)):
        at = [i + (k - 0.5) * height for i in range(len(loads))]
        shares = [load.share(name, dense) for load in loads]
        axis.barh(at, shares, height=0.9 * height, color=colour)
        for y, share in zip(at, shares, strict=True):
            axis.text(share + 0.012 * largest, y, f"{share:.2f}", va="center", bbox=BLANK)
    axis.axvline(1.0, color=INK, linewidth=1.4, linestyle=DASHES)
    axis.set_yticks(range(len(loads)), [load.name.replace(", ", ",\n") for load in loads])
    axis.invert_yaxis()
    axis.set_xlim(0, 1.15 * max(1.0, largest))
    axis.set_xlabel("speed-up over dense / saving in multiply-adds\n(at 1, saved work became saved time)")
    axis.grid(axis="y", visible=False)
    axis.set_title("Realized share of the saving")
