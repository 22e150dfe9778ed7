# SPDX-License-Identifier: Apache-2.0
"""Pictures of a run: realized share against rank, and how far every row is from its floor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rows import Row
from tables import SECTIONS, by_section

# Properties of a row and how they are drawn.
_LINES = {
    "share": {"marker": "o", "linestyle": "-"},
    "share_own": {"marker": ".", "linestyle": ":"},
    "share_two": {"marker": ".", "linestyle": "--", "alpha": 0.6},
}
_LABELS = {
    "share": "lath",
    "share_own": "lath, against its own\ndense product",
    "share_two": "two nn.Linear",
}
_MARKS = {"target": ("o", "tab:green"), "floor": ("o", "tab:orange"), "below": ("X", "tab:red")}


def draw(folder: Path, rows: Sequence[Row]) -> list[Path]:
    """Draw what the rows allow; the files written."""
    import matplotlib

    matplotlib.use("Agg")
    figures = {"share_against_rank.png": _share_against_rank(rows), "goals.png": _goals(rows)}
    written = []
    for name, figure in figures.items():
        (folder / name).unlink(missing_ok=True)
        if figure is not None:
            figure.savefig(folder / name, dpi=110)
            written.append(folder / name)
    return written


def _share_against_rank(rows: Sequence[Row]):
    """A panel per batch size: a colour per shape, a line style per comparison, full share as the line at 1."""
    from matplotlib.figure import Figure

    swept = [row for row in rows if row.section == "plan" and row.mode == "as is"]
    wide = [row for row in rows if row.section == "forward" and row.mode == "rotating" and row.rows > 256]
    found = [*swept, *wide]
    if not found:
        return None
    counts = sorted({row.rows for row in found})
    colours = {case: f"C{i}" for i, case in enumerate(dict.fromkeys(row.case for row in found))}
    figure = Figure(figsize=(3.6 * len(counts) + 2.4, 4.0), layout="constrained")
    for axis, count in zip(figure.subplots(1, len(counts), squeeze=False)[0], counts, strict=True):
        for case, colour in colours.items():
            points = sorted((row for row in found if (row.rows, row.case) == (count, case)), key=lambda row: row.rank)
            narrow = min(map(int, case.split("->")))
            for name, style in _LINES.items():
                shares = [(row.rank / narrow, getattr(row, name)) for row in points if getattr(row, name) is not None]
                axis.plot(*zip(*shares, strict=True) if shares else ([], []), color=colour, **style)
        axis.axhline(1.0, color="black", linewidth=1)
        axis.set_xscale("log", base=2)
        axis.set_ylim(bottom=0)
        axis.set_title(f"{count} row{'s' if count > 1 else ''}")
        axis.set_xlabel("rank / min(in, out)")
        axis.grid(alpha=0.3)
    figure.axes[0].set_ylabel("realized share = speed-up / MAC ratio")
    figure.legend(handles=_legend(colours), loc="outside right center", fontsize="small")
    figure.suptitle("How much of the saved work becomes saved time")
    return figure


def _legend(colours: dict[str, str]) -> list:
    from matplotlib.lines import Line2D

    shapes = [Line2D([], [], color=colour, linewidth=4, label=case) for case, colour in colours.items()]
    return shapes + [Line2D([], [], color="gray", label=_LABELS[name], **style) for name, style in _LINES.items()]


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
