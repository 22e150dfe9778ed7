# SPDX-License-Identifier: Apache-2.0
"""Pictures of a run: realized share against rank, and how far every row is from its floor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rows import Row
from tables import SECTIONS, by_section

_MARKS = {"target": ("o", "tab:green"), "floor": ("o", "tab:orange"), "below": ("X", "tab:red")}


def draw(folder: Path, rows: Sequence[Row]) -> list[Path]:
    """Draw what the rows allow; the files written."""
    import matplotlib

    matplotlib.use("Agg")
    figures = {"share_against_rank.png": _share_against_rank(rows), "goals.png": _goals(rows)}
    written = []
    for name, figure in figures.items():
        if figure is not None:
            figure.savefig(folder / name, dpi=110)
            written.append(folder / name)
    return written


def _share_against_rank(rows: Sequence[Row]):
    """A panel per batch size: lath in full lines, two nn.Linear dashed, full share as the line at 1."""
    from matplotlib.figure import Figure

    swept = [row for row in rows if row.section == "plan" and row.mode == "as is"]
    wide = [row for row in rows if row.section == "forward" and row.mode == "rotating" and row.rows > 256]
    panels = {
        count: [row for row in (*swept, *wide) if row.rows == count]
        for count in sorted({r.rows for r in (*swept, *wide)})
    }
    if not panels:
        return None
    figure = Figure(figsize=(4.2 * len(panels), 4.0), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (count, found) in zip(axes, panels.items(), strict=True):
        for colour, case in enumerate(dict.fromkeys(row.case for row in found)):
            points = sorted((row.rank, row.share, row.share_own, row.share_two) for row in found if row.case == case)
            n_in, n_out = map(int, case.split("->"))
            x = [point[0] / min(n_in, n_out) for point in points]
            axis.plot(x, [point[1] for point in points], "o-", color=f"C{colour}", label=f"lath {case}")
            axis.plot(
                x, [point[3] for point in points], ".--", color=f"C{colour}", alpha=0.6, label=f"two nn.Linear {case}"
            )
        axis.axhline(1.0, color="black", linewidth=1)
        axis.set_xscale("log", base=2)
        axis.set_ylim(bottom=0)
        axis.set_title(f"{count} row{'s' if count > 1 else ''}")
        axis.set_xlabel("rank / min(in, out)")
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    axes[0].set_ylabel("realized share = speed-up / MAC ratio")
    figure.suptitle("How much of the saved work becomes saved time")
    return figure


def _goals(rows: Sequence[Row]):
    """Every row that has a goal: its value over its floor, a strip per section."""
    from matplotlib.figure import Figure

    sections = {name: [r for r in found if r.verdict] for name, found in by_section(rows).items()}
    sections = {name: found for name, found in sections.items() if found}
    if not sections:
        return None
    figure = Figure(figsize=(9, 1.2 + 0.5 * len(sections)), layout="constrained")
    axis = figure.subplots()
    for height, found in enumerate(reversed(sections.values())):
        for i, row in enumerate(found):
            marker, colour = _MARKS[row.verdict]
            beyond = row.floor / row.value if row.goal.quantity == "us" else row.value / row.floor
            axis.plot(
                beyond, height + 0.5 * (i / max(1, len(found) - 1) - 0.5), marker, color=colour, markersize=4, alpha=0.8
            )
    axis.axvline(1.0, color="black", linewidth=1)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_yticks(range(len(sections)), [SECTIONS[name].title for name in reversed(sections)])
    axis.set_xlabel("value / floor (green: target reached, orange: accepted, red: below)")
    axis.grid(axis="x", alpha=0.3)
    return figure
