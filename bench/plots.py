# SPDX-License-Identifier: Apache-2.0
"""Pictures of a run: shares of layers and convolutions, LSTMs, orthogonal bases, and how far rows are from floors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rows import LESS_IS_BETTER, Row
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
_CONVOLUTIONS = ("conv-forward", "conv-training", "conv-1x1")
_LSTMS = ("lstm-forward", "lstm-training", "lstm-plan")
_ORTHOGONAL = {  # title of a panel to its sections
    "Linear layers in orthogonal bases, training step": ("oialr-training",),
    "Linear layers in orthogonal bases, inference": ("oialr-inference",),
    "Convolutions, attention, models": ("oialr-conv", "oialr-attention", "oialr-model"),
}
# What stands beside a bar: how it is drawn, and a speed-up over the same baseline.
_BESIDE_LSTMS = {
    "ratio of multiply-adds": ({"marker": "|", "markersize": 11}, lambda row: row.mac_ratio),
    "TorchScript loop": ({"marker": "x", "markersize": 7}, lambda row: row.rival_speedup("loop")),
    "projected nn.LSTM": ({"marker": "o", "fillstyle": "none"}, lambda row: row.rival_speedup("projected")),
    "nn.LSTM": ({"marker": "D", "fillstyle": "none"}, lambda row: row.rival_speedup("torch")),
}
_BESIDE_ORTHOGONAL = {
    "ratio of multiply-adds": _BESIDE_LSTMS["ratio of multiply-adds"],
    "two layers of torch": ({"marker": "D", "fillstyle": "none"}, lambda row: row.baseline / row.two),
    "weight formed": ({"marker": "x", "markersize": 7}, lambda row: row.rival_speedup("recompose")),
    "factors by torch": ({"marker": "o", "fillstyle": "none"}, lambda row: row.rival_speedup("factors")),
}
_MARKS = {"target": ("o", "tab:green"), "floor": ("o", "tab:orange"), "below": ("X", "tab:red")}


def draw(folder: Path, rows: Sequence[Row]) -> list[Path]:
    """Draw what the rows allow; the files written."""
    import matplotlib

    matplotlib.use("Agg")
    figures = {
        "share_against_rank.png": _share_against_rank(rows),
        "convolutions.png": _convolutions(rows),
        "lstm.png": _lstm(rows),
        "orthogonal_bases.png": _oialr(rows),
        "goals.png": _goals(rows),
    }
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


def _convolutions(rows: Sequence[Row]):
    """A panel per section, a line per row: the shares of lath and of two nn.Conv2d, and the floor."""
    from matplotlib.figure import Figure

    sections = {name: [row for row in found if row.share is not None] for name, found in by_section(rows).items()}
    sections = {name: found for name, found in sections.items() if name in _CONVOLUTIONS and found}
    if not sections:
        return None
    height = 1.4 + 0.19 * max(map(len, sections.values()))
    figure = Figure(figsize=(5.2 * len(sections), height), layout="constrained")
    for axis, (name, found) in zip(figure.subplots(1, len(sections), squeeze=False)[0], sections.items(), strict=True):
        places = range(len(found))
        marks = [_MARKS.get(row.verdict, ("o", "gray")) for row in found]
        axis.barh(places, [row.share for row in found], color=[colour for _, colour in marks], alpha=0.7)
        axis.plot([row.share_two for row in found], places, "|", color="black", markersize=9, label="two nn.Conv2d")
        for place, row in zip(places, found, strict=True):
            axis.plot([row.floor] * 2, [place - 0.4, place + 0.4], ":", color="black", label="" if place else "floor")
        axis.axvline(1.0, color="black", linewidth=1)
        axis.set_yticks(places, [f"{row.case} {row.mode}, rank {row.rank}" for row in found], fontsize="x-small")
        axis.set_ylim(len(found) - 0.4, -0.6)
        axis.set_title(SECTIONS[name].title, fontsize="medium")
        axis.set_xlabel("realized share = speed-up / MAC ratio")
    figure.suptitle("Bars: lath, green where the target is reached, orange: accepted, red: below")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize="small")
    return figure


def _lstm(rows: Sequence[Row]):
    """A panel per section, a line per row."""
    panels = {name: found for name, found in by_section(rows).items() if name in _LSTMS}
    return _speedups(
        {SECTIONS[name].title: found for name, found in panels.items()},
        _BESIDE_LSTMS,
        ["speed-up over " + ("lath's own dense path" if name == "lstm-plan" else "nn.LSTM") for name in panels],
    )


def _oialr(rows: Sequence[Row]):
    """Training steps and inference of linear layers with hot weights, and all else."""
    found = by_section(rows)
    panels = {
        title: [row for name in names for row in found.get(name, []) if row.mode != "rotating"]
        for title, names in _ORTHOGONAL.items()
    }
    panels = {title: shown for title, shown in panels.items() if shown}
    figure = _speedups(panels, _BESIDE_ORTHOGONAL, ["speed-up over dense"] * len(panels))
    for axis in figure.axes if figure else ():
        axis.set_xlim(left=0.125)
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
    return figure


def _speedups(panels: Mapping[str, Sequence[Row]], beside: Mapping[str, tuple], labels: Sequence[str]):
    """A bar per row: the speed-up of lath, with those of what else there is, and the floor."""
    from matplotlib.figure import Figure

    if not panels:
        return None
    height = 1.6 + 0.24 * max(map(len, panels.values()))
    figure = Figure(figsize=(5.4 * len(panels), height), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, found), label in zip(axes, panels.items(), labels, strict=True):
        for place, row in enumerate(found):
            _, colour = _MARKS.get(row.verdict, ("o", "gray"))
            axis.barh(place, row.speedup, color=colour, alpha=0.7)
            if row.floor is not None:
                floor = row.floor * (row.mac_ratio if row.goal.quantity == "share" else 1)
                axis.plot([floor] * 2, [place - 0.4, place + 0.4], ":", color="black")
            for style, value_of in beside.values():
                if value_of(row) is not None:
                    axis.plot(value_of(row), place, color="black", linestyle="", **style)
        axis.axvline(1.0, color="black", linewidth=1)
        axis.set_yticks(range(len(found)), [_name(row) for row in found], fontsize="x-small")
        axis.set_ylim(len(found) - 0.4, -0.6)
        axis.set_xlim(left=0)
        axis.set_title(title, fontsize="medium")
        axis.set_xlabel(label)
    figure.suptitle("Bars: lath, green where the target is reached, orange: accepted, red: below")
    figure.legend(handles=_marks_legend(beside), loc="outside lower center", ncols=5, fontsize="small")
    return figure


def _name(row: Row) -> str:
    parts = [row.case, "" if row.mode == "hot" else row.mode, f"{row.rows} rows" if row.mode == "hot" else ""]
    return " ".join(filter(None, parts)) + (f", rank {row.rank}" if row.rank else "")


def _marks_legend(beside: Mapping[str, tuple]) -> list:
    from matplotlib.lines import Line2D

    marks = [Line2D([], [], color="black", linestyle="", label=label, **style) for label, (style, _) in beside.items()]
    return [*marks, Line2D([], [], color="black", linestyle=":", label="floor")]


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
            beyond = row.floor / row.value if row.goal.quantity in LESS_IS_BETTER else row.value / row.floor
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
