# SPDX-License-Identifier: Apache-2.0
"""What follows from the times of a case on a GPU, and the files of results."""

from __future__ import annotations

import json
import os
from pathlib import Path

LEGEND = """\
Microseconds of one layer: eager calls of one layer, and replays of a CUDA graph that goes round among `layers` of them,
whose weights exceed the cache together. The other columns are about the graph:

- *vs dense*, *vs two*: times as fast as the dense layer, and as two `nn.Linear`.
- *share*: speed-up over the dense layer, divided by the ratio of multiply-adds.
- *TFLOP/s*, *GB/s*: two operations for each multiply-add of the factors; least traffic, every operand once a pass.
- *limit*: the larger of the two, as a part of what the library's largest product and a copy reach on this GPU.
- *error*: relative to float64; of a training step the larger one of that and the difference to two `nn.Linear`. `!` is
  beyond the tolerance of the type.
"""


def derive(
    eager: dict[str, float],
    graph: dict[str, float],
    macs: int,
    dense_macs: int,
    traffic: int,
    limits: dict[str, float],
    dtype: str,
) -> dict:
    """Ratios and rates."""
    seconds = graph["lath"]
    computing, moving = 2 * macs / seconds, traffic / seconds
    compute_part, memory_part = computing / limits[dtype], moving / limits["copy"]
    return {
        "vs_dense": graph["dense"] / seconds,
        "vs_two": graph["two"] / seconds,
        "eager_vs_two": eager["two"] / eager["lath"],
        "share": graph["dense"] / seconds * macs / dense_macs,
        "tflops": computing * 1e-12,
        "gbs": moving * 1e-9,
        "limit": max(compute_part, memory_part),
        "bound": "memory" if memory_part > compute_part else "compute",
    }


def micro(seconds: float) -> str:
    return f"{1e6 * seconds:.1f}"


COLUMNS = {
    "in x out": lambda r: f"{r['shape'][0]} x {r['shape'][1]}",
    "rank": lambda r: str(r["rank"]),
    "rows": lambda r: str(r["rows"]),
    "kernel": lambda r: r["kernel"],
    "dense": lambda r: micro(r["eager"]["dense"]),
    "two": lambda r: micro(r["eager"]["two"]),
    "lath": lambda r: micro(r["eager"]["lath"]),
    "layers": lambda r: str(r["layers"]),
    "dense, graph": lambda r: micro(r["graph"]["dense"]),
    "two, graph": lambda r: micro(r["graph"]["two"]),
    "lath, graph": lambda r: micro(r["graph"]["lath"]),
    "vs dense": lambda r: f"{r['vs_dense']:.2f}",
    "vs two": lambda r: f"{r['vs_two']:.2f}",
    "share": lambda r: f"{r['share']:.2f}",
    "TFLOP/s": lambda r: f"{r['tflops']:.1f}",
    "GB/s": lambda r: f"{r['gbs']:.0f}",
    "limit": lambda r: f"{r['limit']:.2f} {r['bound']}",
    "error": lambda r: f"{r['error']:.1e}{'!' if r['wrong'] else ''}",
}


def table(rows: list[dict]) -> list[str]:
    """Markdown."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(cell(row) for cell in COLUMNS.values()) + " |" for row in rows]
    return lines


def goals(rows: list[dict]) -> list[str]:
    """What was aimed at, and how many cases are there."""

    def line(text: str, chosen: list[dict], reached) -> str:
        if not chosen:
            return f"- {text}: not measured"
        return f"- {text}: {sum(map(reached, chosen))} of {len(chosen)}"

    large = [r for r in rows if r["dtype"] == "bf16" and r["rows"] >= 4096 and 8 * r["rank"] <= r["shape"][0]]
    few = [r for r in rows if r["rows"] <= 16 and not r["training"]]
    text = "bf16, 4096 rows and more, rank up to in / 8, forward and training"
    return [
        line(f"{text}: 0.8 of the share or of the limit", large, lambda r: max(r["share"], r["limit"]) >= 0.8),
        line(f"{text}: 1.2 times as fast as two `nn.Linear`", large, lambda r: r["vs_two"] >= 1.2),
        line("1 to 16 rows, forward, in a CUDA graph: 0.8 of the bandwidth", few, lambda r: r["limit"] >= 0.8),
        line("no slower than dense by more than 3 %", rows, lambda r: r["vs_dense"] >= 0.97),
        line("no slower than two `nn.Linear` by more than 3 %", rows, lambda r: r["vs_two"] >= 0.97),
        line("right results", rows, lambda r: not r["wrong"]),
    ]


def markdown(result: dict) -> str:
    machine = result["machine"]
    lines = [f"# Benchmark of {machine['date']}, {machine['device']}", ""]
    if not result["complete"]:
        lines += ["**Incomplete**: cut off, or still running.", ""]
    limits = machine["limits"]
    rates = [f"{name} {rate * 1e-12:.1f} TFLOP/s" for name, rate in limits.items() if name != "copy"]
    lines += [f"- {name}: {value}" for name, value in machine.items() if name not in ("limits", "nvidia-smi")]
    lines += [f"- measured limits: {', '.join(rates)}; copy {limits['copy'] * 1e-9:.0f} GB/s"]
    if "nvidia-smi" in machine:
        lines += ["", "```", machine["nvidia-smi"], "```"]
    lines += ["", "## Aims", "", *goals(result["rows"]), "", "## Cases", "", LEGEND]
    for training in (False, True):
        for dtype in limits:
            rows = [r for r in result["rows"] if r["training"] == training and r["dtype"] == dtype]
            if rows:
                rows.sort(key=lambda r: (r["shape"], r["rank"], r["rows"]))
                lines += [f"### {'Training step' if training else 'Forward'}, {dtype}", "", *table(rows), ""]
    if result["notes"]:
        lines += ["## Notes", "", *(f"- {note}" for note in result["notes"]), ""]
    return "\n".join(lines)


def write(folder: Path, result: dict) -> None:
    """Both files; a reader, and a kill in the middle, always find a whole one."""
    for name, text in (("gpu.json", json.dumps(result, indent=1)), ("gpu.md", markdown(result))):
        new = folder / f".{name}.new"
        new.write_text(text)
        os.replace(new, folder / name)


def summary(result: dict) -> str:
    return "\n".join([f"{len(result['rows'])} cases on {result['machine']['device']}", *goals(result["rows"])])
