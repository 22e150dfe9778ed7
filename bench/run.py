# SPDX-License-Identifier: Apache-2.0
"""Benchmarks of lath against PyTorch: tables on the screen, and CSV, plots and a summary in bench/results.

    python bench/run.py [--quick] [--only SECTION ...] [--threads N]

Nothing here fails because something is slow: the tables say what was measured, and what was aimed at.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

try:
    import lath  # noqa: F401  (tried here for a message; the modules below need it)
except ImportError as error:
    sys.exit(f"{error}\nInstall lath (`make bench` does), or name a build: see bench/README.md.")

sys.path.append(str(Path(__file__).parents[1] / "examples"))  # its networks, and its counts of multiply-adds

import cases
import convolutions
import lstm
import lstm_memory
import machine
import network
import oialr
import oialr_layers
import oialr_memory
import oialr_models
import oialr_update
import plots
import special
import steps
import tables
import torch
from context import EFFORTS, Context
from rows import Row

RESULTS = Path(__file__).with_name("results")

RUNS: dict[str, Callable[[Context], Iterator[Row]]] = {
    "forward": cases.forward,
    "qkv": cases.query_key_value,
    "small": cases.small,
    "one-row": cases.one_row,
    "training": steps.training,
    "training-16": steps.training_few_rows,
    "plan": special.plan,
    "frobenius": special.frobenius,
    "overhead": special.overhead,
    "model": network.network,
    "threads": special.threads,
    "avx2": special.avx2,
    "compiled": special.compiled,
    "conv-forward": convolutions.forward,
    "conv-training": convolutions.training,
    "conv-1x1": convolutions.one_by_one,
    "conv-plan": convolutions.plan,
    "conv-model": network.convolutional,
    "lstm-forward": lstm.forward,
    "lstm-training": lstm.training,
    "lstm-plan": lstm.plan,
    "lstm-threads": lstm.threads,
    "lstm-memory": lstm_memory.memory,
    "oialr-training": oialr.training,
    "oialr-inference": oialr.inference,
    "oialr-conv": oialr_layers.convolution,
    "oialr-attention": oialr_layers.attention,
    "oialr-model": oialr_models.models,
    "oialr-memory": oialr_memory.memory,
    "oialr-update": oialr_update.update,
}
GROUPS = {group: [name for name in RUNS if name.startswith(f"{group}-")] for group in ("conv", "lstm", "oialr")}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--effort", choices=EFFORTS, default="full", help="how many cases, and how long each")
    parser.add_argument(
        "--quick", action="store_const", dest="effort", const="quick", help="a sample of cases in a minute"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=[*RUNS, *GROUPS],
        metavar="SECTION",
        default=list(RUNS),
        help=f"sections to run: {', '.join(RUNS)} (the table of lath's dense product comes with forward), or all of a "
        f"group: {', '.join(GROUPS)}",
    )
    parser.add_argument("--seconds", type=float, help="time of one comparison, if five rounds take less than that")
    parser.add_argument(
        "--threads", type=int, default=1, help="threads; more than one is timed by wall clock (default: 1)"
    )
    parser.add_argument(
        "--out", type=Path, help="folder of the results (default: in bench/results, by date and processor)"
    )
    parser.add_argument("--rows-to", type=Path, metavar="FILE", help="write the rows as JSON to FILE, and nothing else")
    options = parser.parse_args(arguments)
    if options.threads < 1:
        parser.error(f"--threads is {options.threads}, expected 1 or more")
    options.only = [name for chosen in options.only for name in GROUPS.get(chosen, [chosen])]
    return options


def main() -> None:
    options = parse()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    effort = EFFORTS[options.effort]
    if options.seconds is not None:
        effort = dataclasses.replace(effort, seconds=options.seconds)
    start = time.perf_counter()
    show = _Progress(start)
    show("limits of the machine")
    context = Context(machine.describe(effort.limit_seconds), effort, options.effort != "full", options.threads, show)
    rows = run(context, options.only, quiet=options.rows_to is not None)
    show("")
    if options.rows_to is not None:
        options.rows_to.write_text(json.dumps([row.as_dict() for row in rows]))
        return
    complete = options.effort == "full" and set(options.only) == set(RUNS) and options.threads == 1
    folder = options.out or _folder(context.machine.short_name, complete)
    finish(context, rows, folder, time.perf_counter() - start)


def run(context: Context, names: list[str], quiet: bool) -> list[Row]:
    """Run sections one after the other, and print the tables of each when it is done."""
    if not quiet:
        print("\n".join(context.machine.lines()))
        for remark in context.machine.remarks():
            print(f"! {remark}")
        print("\n" + tables.LEGEND)
    rows: list[Row] = []
    for name in names:
        notes = len(context.notes)
        found = list(RUNS[name](context))
        rows += found
        context.progress("")
        if quiet:
            continue
        for section, lines in tables.by_section(found).items():
            print(
                f"\n{tables.SECTIONS[section].title}\n{tables.SECTIONS[section].caption}\n{tables.as_text(lines)}",
                flush=True,
            )
        for note in context.notes[notes:]:
            print(f"\n! {note}", flush=True)
    return rows


def finish(context: Context, rows: list[Row], folder: Path, seconds: float) -> None:
    """Print the summary and write the results."""
    lines = tables.summary(rows)
    print("\nSummary\n" + tables.aligned(lines, left=2))
    remark = tables.dense_remark(context.machine, rows)
    if remark:
        print(remark)
    folder.mkdir(parents=True, exist_ok=True)
    found = tables.by_section(rows)
    for section in tables.SECTIONS:
        (folder / f"{section}.csv").unlink(missing_ok=True)
        if section in found:
            tables.write_csv(folder / f"{section}.csv", found[section])
    title = f"Benchmark of {datetime.date.today():%Y-%m-%d}, {context.machine.cpu}, {context.threads} thread(s)"
    pictures: list[Path] = []
    try:
        pictures = plots.draw(folder, rows)
    except ImportError as error:
        print(f"no plots: {error} (pip install matplotlib)")
    tables.write_markdown(folder / "summary.md", title, context.machine, rows, context.notes, pictures)
    print(f"\n{seconds:.0f} s; results in {folder}")


def _folder(processor: str, complete: bool) -> Path:
    """Where the results go; git keeps those of complete runs."""
    return RESULTS / f"{datetime.date.today():%Y-%m-%d}-{processor}" if complete else RESULTS / "partial"


class _Progress:
    """One line on a terminal that says what is being measured; silent elsewhere."""

    def __init__(self, start: float) -> None:
        self.start = start
        self.terminal = sys.stderr.isatty()

    def __call__(self, what: str) -> None:
        if self.terminal:
            text = f"[{time.perf_counter() - self.start:4.0f} s] {what}" if what else ""
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
