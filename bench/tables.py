# SPDX-License-Identifier: Apache-2.0
"""Rows as text, Markdown and CSV."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from machine import Machine
from rows import LESS_IS_BETTER, Goal, Row


@dataclass(frozen=True)
class Section:
    """What stands above a table.

    Attributes:
        title: its heading.
        caption: what was measured, as a reader of the figures has to know it.
    """

    title: str
    caption: str


SECTIONS = {
    "forward": Section("Forward, 256 rows and more", "F.linear against lath.ops.lowrank_linear under inference_mode."),
    "dense": Section("lath's own dense product against torch", "torch.ops.lath.linear against F.linear."),
    "qkv": Section(
        "Queries, keys and values of a ViT",
        "F.linear against lath.ops.lowrank_linear under inference_mode, 128 images of 65 tokens; y is 51 MB, "
        "more than the allocator keeps.",
    ),
    "small": Section("Forward, 16 to 64 rows", "As above. Weights are packed anew in every call where that pays."),
    "one-row": Section("Forward, one row", "nn.Linear against LowRankLinear, module(x) under inference_mode."),
    "training": Section(
        "Training step, 256 rows and more",
        "Forward, dx and all gradients through autograd. share/own: lath's dense step is taken as three forward "
        "products (at 16 rows as well).",
    ),
    "training-16": Section(
        "Training step, 16 rows, weights changing each step",
        "In-place SGD before every step, outside of the measured time; rows with +sgd have the update in it.",
    ),
    "compiled": Section(
        "Forward against two nn.Linear, compiled",
        "vs two: torch.compile with inductor's freezing, which packs weights. lath eager, module(x) under no_grad.",
    ),
    "frobenius": Section(
        "Frobenius decay, value and gradient",
        "Dense: forming U V through autograd. vs two: the Gram form in torch operators.",
    ),
    "plan": Section(
        "Every rank, against dense",
        "module(x) under inference_mode, as it is and after freeze(). Above break-even a layer that is not frozen has "
        "more arithmetic to do than a dense one; lath.convert leaves such layers dense.",
    ),
    "threads": Section(
        "Two threads against one", "Wall clock: one thread (baseline) and two, of lath and of torch's dense layer."
    ),
    "avx2": Section("Held to AVX2", "torch and lath both held to AVX2 in a process of their own; hot weights."),
    "overhead": Section("Overhead of a call", "8 rows, 8x8, rank 4; limits in microseconds of lath."),
    "conv-forward": Section(
        "Convolutions, forward, batch 16",
        "nn.Conv2d against LowRankConv2d of the same window, module(x) under inference_mode, in the better of both "
        "memory formats each. Separable: ranks of ratio 0.2.",
    ),
    "conv-training": Section(
        "Convolutions, training step, batch 16", "Forward, dx and all gradients through autograd; formats as above."
    ),
    "conv-1x1": Section(
        "1x1 convolutions of ResNet-50, batch 8",
        "Images of 224 pixels, ratio 0.25; the size is that of x, /2 the stride. share/own: lath's dense product of "
        "the same pixels on channels-last memory; a training step of it is taken as three.",
    ),
    "conv-plan": Section(
        "Convolutions, every rank, against dense",
        "module(x) under inference_mode, as it is and after freeze(), and training steps; batch 16. lath.convert "
        "leaves layers dense whose factors need as many multiply-adds.",
    ),
    "conv-model": Section(
        "Whole convolutional networks, 32x32, batch 32",
        "ResNet-18 and VGG-11 of examples/lowrank at ratio 0.2, as there: separable, first convolution and shortcuts "
        "of the ResNet dense. The training step includes the SGD update.",
    ),
    "lstm-forward": Section(
        "LSTMs, forward",
        "nn.LSTM against LowRankLSTM, module(x) under inference_mode, batch b, T steps, d inputs, hidden size h, L "
        "layers. vs loop: cells compiled by TorchScript; vs proj.: nn.LSTM with projections, where it is possible.",
    ),
    "lstm-training": Section(
        "LSTMs, training step", "Forward, dx and all gradients through autograd, with the gates kept in between."
    ),
    "lstm-plan": Section(
        "LSTMs, ranks from break-even on",
        "dense: lath's own kernel on dense weights, which are merged from rank 1 in the call; vs torch: nn.LSTM. After "
        "freeze() the inference of a layer above break-even is that of nn.LSTM.",
    ),
    "lstm-threads": Section(
        "LSTMs, two threads against one", "Wall clock: one thread (baseline) and two, of lath and of nn.LSTM."
    ),
    "lstm-memory": Section(
        "LSTMs, memory of a training step",
        "Numbers of 4 bytes a token and layer: growth of the resident memory of a process up to its peak in the step, "
        "less the gradients that are returned. Goal: those of y, c and both thin intermediates, 2 h + ranks. In memory "
        "mode the gates are formed again.",
    ),
    "oialr-training": Section(
        "Layers in orthogonal bases, training step",
        "Forward, dx and the gradients of what trains: F.linear, and lath.ops.oialr_linear, whose bases are frozen. "
        "MACs of lath: one factor after the other, 2 rank (in + out) + 3 rank^2 a row, or the formed weight. Ranks of "
        "416 and 720 and more are above break-even. share/own: lath's dense step is taken as three forward products.",
    ),
    "oialr-inference": Section(
        "Layers in orthogonal bases, inference",
        "nn.Linear against OIALRLinear after freeze(), which keeps two factors or the dense weight, module(x) under "
        "inference_mode.",
    ),
    "oialr-conv": Section(
        "Convolutions in orthogonal bases, batch 16",
        "nn.Conv2d against OIALRConv2d, 3x3, each contender in its better memory format; inference after freeze(). "
        "MACs as torch counts them in its own operators.",
    ),
    "oialr-attention": Section(
        "Self-attention in orthogonal bases",
        "nn.MultiheadAttention against OIALRMultiheadAttention, 2 images of 197 tokens, no weights returned; inference "
        "after freeze(). MACs as torch counts them, scores and sums of attention included.",
    ),
    "oialr-model": Section(
        "Whole models in orthogonal bases, 32x32, at ranks / 8",
        "A ViT of 6 layers, 384 wide, with 65 tokens, and ResNet-18; first and last layer dense. The step includes the "
        "SGD update. MACs as above.",
    ),
    "oialr-memory": Section(
        "Layers in orthogonal bases, what is kept for the backward pass",
        "Numbers a row of x, or a place of y of a convolution, that autograd keeps beside weights. Goal: the rank; of "
        "a convolution also the product of u and s, once a layer.",
    ),
    "oialr-update": Section(
        "Basis updates",
        "dense: a training step of the converted layer at 1024 rows, of the converted model at batch 16; lath: the "
        "update of all of its bases by lath.OIALRController, with the state of AdamW. A model is to take less than 20 "
        "steps.",
    ),
    "model": Section(
        "A whole model: 784-1024-1024-10",
        "Rank an eighth of min(in, out), last layer dense. The step includes the SGD update.",
    ),
}


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.4g}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f}"


def _whole(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def _goal(row: Row) -> str:
    if row.goal is None or row.floor is None:
        return ""
    if row.goal.quantity in LESS_IS_BETTER:
        return f"{row.floor:g}/{row.goal.target:g} {row.goal.quantity}"
    return f"{row.floor:.2f}/{row.goal.target:.2f}"


def _plain(goal: Goal | None) -> str:
    return f"{goal.floor:g}/{goal.target:g}" if goal else ""


def _theirs(row: Row) -> str:
    """Goals for rivals, with the name of the rival where it is not all of them."""
    names = (goal.quantity.removeprefix("vs ").replace("rivals", "") for goal in row.rival_goals)
    return ", ".join(f"{_plain(goal)} {name}".rstrip() for goal, name in zip(row.rival_goals, names, strict=True))


def _in_steps(row: Row) -> str:
    return _ratio(row.lath / row.baseline) if row.section == "oialr-update" else ""


# Heading to the text of a row, in the order of the table. A column that is empty for all rows of a table is left out.
COLUMNS: dict[str, Callable[[Row], str]] = {
    "case": lambda row: row.case,
    "mode": lambda row: row.mode,
    "rows": lambda row: _whole(row.rows),
    "rank": lambda row: _whole(row.rank),
    "dense ms": lambda row: _ms(row.baseline),
    "lath ms": lambda row: _ms(row.lath),
    "speed-up": lambda row: _ratio(row.speedup),
    "tokens/s": lambda row: "" if row.tokens_per_second is None else f"{row.tokens_per_second:,.0f}",
    "layout": lambda row: row.layouts,
    "route": lambda row: row.route,
    "MACs": lambda row: _ratio(row.mac_ratio),
    "share": lambda row: _ratio(row.share),
    "share/own": lambda row: _ratio(row.share_own),
    "GFLOP/s": lambda row: _whole(row.gflops),
    "% peak": lambda row: _percent(row.peak_share),
    "dense %": lambda row: _percent(row.dense_peak_share),
    "bound": lambda row: (
        "" if row.bound_share is None else f"{row.bound_share:.2f}{'t' if row.traffic_limited else ''}"
    ),
    "in steps": _in_steps,
    "dense floats": lambda row: _whole(row.dense_floats),
    "floats": lambda row: _whole(row.floats),
    "a further": lambda row: _whole(row.more_floats),
    "goal": lambda row: _goal(row),
    "ok?": lambda row: row.verdict,
    "own ok?": lambda row: row.own_verdict,
    "vs two": lambda row: _ratio(row.vs_two),
    "two goal": lambda row: _plain(row.two_goal),
    "two ok?": lambda row: row.two_verdict,
    "vs torch": lambda row: _ratio(row.versus("torch")),
    "vs loop": lambda row: _ratio(row.versus("loop")),
    "vs proj.": lambda row: _ratio(row.versus("projected")),
    "vs recomp.": lambda row: _ratio(row.versus("recompose")),
    "vs factors": lambda row: _ratio(row.versus("factors")),
    "their goal": _theirs,
    "their ok?": lambda row: row.rival_verdict,
    "": lambda row: "~" if row.disturbed else "",
}

LEGEND = """\
dense, lath   milliseconds per call: torch's dense product (or what the caption names), and lath
MACs          multiply-adds of the dense call over those of lath's
share         realized share, speed-up / MACs, against torch; share/own: against lath's own dense product at the same
              instruction set
% peak        multiply-adds of lath's call, of the measured limit of one core (of all threads in use); dense %: the same
              of the dense call. The share is the ratio of the two
layout        better memory format of dense, two and lath: nchw (contiguous) or nhwc (channels-last)
route         what the planner took in lath's place: its own kernels (fused, linear), two library convolutions (pair) or
              the merged weight
bound         the share of a call that takes max(multiply-adds / peak, bytes / bandwidth); t: traffic is the limit, and
              the floor is at most 0.85 of it
vs two        time of two nn.Linear or nn.Conv2d of the same rank over lath's
vs loop       time of an LSTM as a loop compiled by TorchScript over lath's; vs proj.: of nn.LSTM with projections;
              their ok?: for the lesser of both
vs recomp.    time of a layer in an orthogonal basis that forms its weight in every call, as the public code of the
              method does, over lath's; vs factors: of its three factors, applied by torch; their ok?: in the order of
              their goals
in steps      time of a basis update over that of a training step
tokens/s      steps of all samples of an LSTM, per second of lath
floats        peak memory of a training step of an LSTM, or what other layers keep for their backward pass, in numbers
              a token or row and layer; dense floats: of the dense layer;
              a further: what one more token takes
goal          floor/target
ok?           target, floor (accepted) or below: for the share, or else vs two, the speed-up or microseconds;
              own ok?: if lath's own dense product were torch's; two ok?: vs two, where it has a goal of its own
hot           the previous call used the same weights and output; rotating: 24 distinct layers (fewer where the memory
              would not hold them), outputs kept as long
~             disturbed: the median of a contender is 1.3 times its minimum or more, or with several threads other
              processes took 0.12 of a core or more"""


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """Headings and the text of each row, without the columns that are empty throughout."""
    table = [[text(row) for text in COLUMNS.values()] for row in rows]
    used = [i for i in range(len(COLUMNS)) if any(line[i] for line in table)]
    headings = list(COLUMNS)
    return [[headings[i] for i in used], *([line[i] for i in used] for line in table)]


def as_text(rows: Sequence[Row]) -> str:
    """The table in columns."""
    return aligned(cells(rows), left=2)


def aligned(lines: Sequence[Sequence[str]], left: int) -> str:
    """``lines`` in columns, the first ``left`` of them and all with "ok?" flush left, the others flush right."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    to_left = [i < left or "ok?" in heading for i, heading in enumerate(lines[0])]

    def joined(line: Sequence[str]) -> str:
        fields = zip(line, widths, to_left, strict=True)
        return "  ".join(text.ljust(width) if flush else text.rjust(width) for text, width, flush in fields).rstrip()

    return "\n".join(joined(line) for line in lines)


def as_markdown(lines: Sequence[Sequence[str]]) -> str:
    """``lines`` as a Markdown table, the first one being the headings."""
    rule = ["---"] * len(lines[0])
    return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:]))


def by_section(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows of each section, in the order of SECTIONS."""
    rows = list(rows)
    grouped = {name: [row for row in rows if row.section == name] for name in SECTIONS}
    return {name: found for name, found in grouped.items() if found}


def summary(rows: Iterable[Row]) -> list[list[str]]:
    """Headings and one line per section: how its goals are met."""
    headings = ["section", "judged by", "rows", "worst", "median", "target", "floor", "below"]
    lines = [[*headings, "share/own: worst", "median", "below", "vs two: worst", "median", "below"]]
    for name, found in by_section(rows).items():
        quantities: dict[str, list[Row]] = {}
        for row in found:
            quantities.setdefault(row.goal.quantity if row.goal else "", []).append(row)
        lines += [_summary_line(name, quantity, judged) for quantity, judged in quantities.items()]
        rivalled: dict[str, list[Row]] = {}
        for row in found:
            for goal in row.rival_goals:
                rivalled.setdefault(goal.quantity, []).append(row.replace(goal=goal, own=None, two=None))
        lines += [_summary_line(name, quantity, judged) for quantity, judged in rivalled.items()]
    return lines


def _summary_line(name: str, quantity: str, rows: list[Row]) -> list[str]:
    values = [row.value for row in rows if row.value is not None]
    worst, median = (
        (max(values) if quantity in LESS_IS_BETTER else min(values), statistics.median(values))
        if values
        else (None, None)
    )
    verdicts = [row.verdict for row in rows]
    own = [row.share_own for row in rows if row.share_own is not None]
    own_verdicts = [row.own_verdict for row in rows if row.own_verdict]
    two = [row.vs_two for row in rows if row.vs_two is not None]
    return [
        name,
        quantity or "(no goal)",
        str(len(rows)),
        _ratio(worst),
        _ratio(median),
        *(str(verdicts.count(verdict)) if quantity else "" for verdict in ("target", "floor", "below")),
        _ratio(min(own)) if own else "",
        _ratio(statistics.median(own)) if own else "",
        str(own_verdicts.count("below")) if own_verdicts else "",
        _ratio(min(two)) if two else "",
        _ratio(statistics.median(two)) if two else "",
        str([row.two_verdict for row in rows].count("below")) if any(row.two_goal for row in rows) else "",
    ]


def dense_remark(machine: Machine, rows: Iterable[Row]) -> str:
    """How fast torch's dense product ran, in terms of the peaks: what the shares are measured against."""
    rates = [2e-9 * row.dense_macs / row.baseline / row.threads for row in rows if row.section == "dense"]
    if not rates:
        return ""
    best = max(rates)
    parts = ", ".join(f"{100 * best / peak:.0f} % of the {name} peak" for name, peak in machine.peak.items())
    return f"torch's dense product reached {best:.0f} GFLOP/s a core at best: {parts}."


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """One line per row: seconds and all that follows from them, unrounded enough to compute with."""
    fields = [
        "case",
        "mode",
        "rows",
        "rank",
        "threads",
        "isa",
        "baseline",
        "lath",
        "two",
        "own",
        "speedup",
        "mac_ratio",
    ]
    fields += [
        "layouts",
        "route",
        "share",
        "share_own",
        "share_two",
        "gflops",
        "peak_share",
        "dense_peak_share",
        "bound_share",
        "traffic_limited",
        "vs_two",
        "tokens_per_second",
        "floats",
        "dense_floats",
        "more_floats",
    ]
    fields += ["value", "floor", "verdict", "own_verdict", "two_verdict", "rival_verdict", "spread", "others"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        rivals = list(dict.fromkeys(name for row in rows for name in row.rivals))
        writer.writerow([*fields, *rivals])
        for row in rows:
            values = [*(getattr(row, name) for name in fields), *(row.rivals.get(name) for name in rivals)]
            writer.writerow([f"{v:.5g}" if isinstance(v, float) else "" if v is None else v for v in values])


def write_markdown(
    path: Path,
    title: str,
    machine: Machine,
    rows: Sequence[Row],
    notes: Sequence[str],
    pictures: Sequence[Path],
) -> None:
    """The whole run as a page."""
    remarks = [*machine.remarks(), dense_remark(machine, rows), *notes]
    parts = [f"# {title}", "```\n" + "\n".join(machine.lines()) + "\n```"]
    parts += [f"- {remark}" for remark in remarks if remark]
    parts += ["## Summary", as_markdown(summary(rows))]
    parts += [f"![{picture.stem.replace('_', ' ')}]({picture.name})" for picture in pictures]
    parts += ["```\n" + LEGEND + "\n```"]
    for name, found in by_section(rows).items():
        parts += [f"## {SECTIONS[name].title}", SECTIONS[name].caption, as_markdown(cells(found))]
    path.write_text("\n\n".join(parts) + "\n")
