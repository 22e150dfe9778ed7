# SPDX-License-Identifier: Apache-2.0
"""What a low-rank LSTM costs in bits per character and saves in time, on the novels of Jane Austen.

    python examples/lowrank/char_lstm_study.py            # an hour or more on two cores
    python examples/lowrank/char_lstm_study.py --quick    # a minute: whether it works, no result

The character LSTM of "Low-rank Model Training From Scratch", embedding 8 and two layers of 256: dense; at three ranks,
each with and without Frobenius decay; and in the shape that the public code calls low-rank at its default ratio, which
is larger than the dense one. All variants of a seed see the same windows in the same order, for the same number of
steps, and take turns step by step, so that a change of load meets them alike.

Two tables are written: ``char_lstm.csv`` with every look at the held-out text, ``char_lstm_summary.csv`` with one line
per variant; and a figure.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from count import inference_macs, parameters  # isort: skip
import lath
from data import DataError
from lowrank import reference_lstm, tasks
from matplotlib.axes import Axes
from style import BLANK, COLOURS, DASHES, INK, STYLE, pyplot
from torch import Tensor, nn
from tqdm import tqdm

RANKS = (25, 51, 102)
DECODER_RANK = 20
PUBLISHED_RATIO = 0.2
SEEDS = (1, 2, 3)
LOOKS = 10  # at the held-out text, over a run
COLOURS_OF = {"dense": COLOURS[0], "low-rank": COLOURS[2], "decay": COLOURS[1], "published": "#7a3b69"}


@dataclass(frozen=True)
class Variant:
    """A model and how it is trained.

    Attributes:
        kind: "dense", "low-rank" or "published".
        rank: of the recurrent weights, None for dense.
        decay: coefficient of Frobenius decay, 0 for none.
    """

    kind: str
    rank: int | None = None
    decay: float = 0.0

    @property
    def name(self) -> str:
        if self.kind == "dense":
            return "dense"
        return f"{self.kind} {self.rank}{' + decay' if self.decay else ''}"

    def build(self, spectral: bool) -> nn.Module:
        if self.kind == "dense":
            model = reference_lstm.dense()
            model.draw()
            return model
        if self.kind == "published":
            return reference_lstm.as_published(PUBLISHED_RATIO)
        return reference_lstm.low_rank(self.rank, DECODER_RANK, spectral=spectral)


@dataclass
class Trained:
    """A variant in training, and what has been seen of it.

    Attributes:
        curve: (steps, seconds of training so far, bits per character of the held-out text).
        seconds: of each step: zero_grad, forward, loss, backward, decay, clipping and the optimizer.
    """

    variant: Variant
    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    decay: lath.FrobeniusDecay | None
    seconds: list[float] = field(default_factory=list)
    curve: list[tuple[int, float, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Result:
    """One variant over all seeds: medians, and the ends of the range over the seeds.

    Attributes:
        parameters: of the whole model.
        macs: multiply-adds for a character.
        bits, bits_least, bits_most: per held-out character, after training.
        milliseconds, milliseconds_least, milliseconds_most: of a training step; of each seed the median of its steps.
    """

    name: str
    kind: str
    rank: int | None
    decay: float
    seeds: int
    steps: int
    parameters: int
    macs: int
    bits: float
    bits_least: float
    bits_most: float
    milliseconds: float
    milliseconds_least: float
    milliseconds_most: float


def variants(ranks: Iterable[int], decay: float) -> list[Variant]:
    low_rank = [Variant("low-rank", rank, c) for rank in ranks for c in (0.0, decay)]
    published = reference_lstm.as_published_rank(PUBLISHED_RATIO)
    return [Variant("dense"), *low_rank, Variant("published", published)]


# ---- training --------------------------------------------------------------------------------------------------------


def train(chosen: list[Variant], task: tasks.CharacterTask, args: argparse.Namespace, seed: int) -> list[Trained]:
    """All variants of a seed, in turns."""
    runs = [start(variant, args, seed) for variant in chosen]
    torch.manual_seed(seed)
    held_out = list(itertools.islice(task.held_out(args.batch), args.held_out))
    look = max(1, args.steps // LOOKS)
    batches = endless(task, args.batch)
    for done in tqdm(range(1, args.steps + 1), desc=f"seed {seed}", leave=False, disable=None):
        x, y = next(batches)
        for run in runs if done % 2 else reversed(runs):
            begin = time.perf_counter()
            step(run, x, y)
            run.seconds.append(time.perf_counter() - begin)
        if done % look == 0 or done == args.steps:
            for run in runs:
                run.curve.append((done, sum(run.seconds), bits(run.model, held_out)))
    return runs


def start(variant: Variant, args: argparse.Namespace, seed: int) -> Trained:
    torch.manual_seed(seed)
    model = variant.build(args.init == "SI")
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps)
    decay = lath.FrobeniusDecay(model, variant.decay) if variant.decay else None
    return Trained(variant, model.train(), optimizer, schedule, decay)


def endless(task: tasks.CharacterTask, batch: int):
    while True:
        yield from task.training(batch)


def step(run: Trained, x: Tensor, y: Tensor) -> None:
    run.optimizer.zero_grad()
    tasks.loss_of(run.model(x), y).backward()
    if run.decay is not None:
        run.decay.step()
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    run.optimizer.step()
    run.schedule.step()


@torch.no_grad()
def bits(model: nn.Module, held_out: list[tasks.Batch]) -> float:
    """Per character."""
    model.eval()
    score = tasks.Score()
    for x, y in held_out:
        output = model(x)
        score.add(tasks.loss_of(output, y), output, y)
    model.train()
    return score.figures()["bits"]


# ---- what came of it -------------------------------------------------------------------------------------------------


def summary(chosen: list[Variant], runs: list[list[Trained]]) -> list[Result]:
    """``runs``: of each seed, in the order of the variants."""
    results = []
    for i, variant in enumerate(chosen):
        mine = [of_seed[i] for of_seed in runs]
        ends = [run.curve[-1][2] for run in mine]
        steps = [1e3 * statistics.median(run.seconds) for run in mine]
        model, window = mine[0].model, (1, reference_lstm.WINDOW)
        macs = inference_macs(model, window, torch.int64) // reference_lstm.WINDOW
        results.append(
            Result(
                variant.name,
                variant.kind,
                variant.rank,
                variant.decay,
                len(mine),
                mine[0].curve[-1][0],
                parameters(model),
                macs,
                *median_and_ends(ends),
                *median_and_ends(steps),
            )
        )
    return results


def median_and_ends(values: list[float]) -> tuple[float, float, float]:
    return statistics.median(values), min(values), max(values)


def table(results: list[Result]) -> str:
    dense = results[0]
    head = (
        f"{'variant':<22}{'parameters':>12}{'MACs':>10}{'bits per character':>26}{'ms of a step':>24}{'speed-up':>10}"
    )
    lines = [head + f"{'share':>7}"]
    for r in results:
        speedup = dense.milliseconds / r.milliseconds
        share = speedup / (dense.macs / r.macs)
        bits = f"{r.bits:.3f} ({r.bits_least:.3f} to {r.bits_most:.3f})"
        steps = f"{r.milliseconds:.1f} ({r.milliseconds_least:.1f} to {r.milliseconds_most:.1f})"
        lines.append(f"{r.name:<22}{r.parameters:>12,}{r.macs:>10,}{bits:>26}{steps:>24}{speedup:>9.2f}x{share:>7.2f}")
    return "\n".join(lines)


def write(folder: Path, chosen: list[Variant], seeds: Iterable[int], runs: list[list[Trained]]) -> list[Result]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "char_lstm.csv").open("w", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(["variant", "rank", "decay", "seed", "steps", "training_seconds", "bits"])
        for seed, of_seed in zip(seeds, runs, strict=True):
            for variant, run in zip(chosen, of_seed, strict=True):
                for steps, seconds, value in run.curve:
                    row = [variant.name, variant.rank, variant.decay, seed, steps, f"{seconds:.3f}", f"{value:.5f}"]
                    lines.writerow(row)
    results = summary(chosen, runs)
    with (folder / "char_lstm_summary.csv").open("w", newline="") as file:
        rows = csv.DictWriter(file, [f.name for f in fields(Result)], lineterminator="\n")
        rows.writeheader()
        rows.writerows(asdict(r) for r in results)
    return results


def draw(folder: Path, results: list[Result], title: str) -> Path:
    """Write ``char_lstm.png`` and return its path."""
    highest, lowest = max(r.bits for r in results), min(r.bits_least for r in results)
    with pyplot.rc_context(STYLE):
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 5.6), sharey=True)
        figure.subplots_adjust(left=0.07, right=0.98, bottom=0.11, top=0.84, wspace=0.08)
        figure.text(0.02, 0.94, title, fontsize=14, fontweight="bold")
        left.set_ylim(lowest - 0.25 * (highest - lowest), highest + 0.5 * (highest - lowest))
        draw_panel(left, results, "milliseconds", "milliseconds of a training step, median")
        draw_panel(right, results, "parameters", "parameters of the whole model")
        left.set_ylabel("bits per held-out character")
        left.set_title("left of the cross: faster than dense; below: better", fontsize=10, fontweight="normal")
        right.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=4, frameon=False)
        path = folder / "char_lstm.png"
        figure.savefig(path, dpi=160)
        pyplot.close(figure)
    return path


def draw_panel(axis: Axes, results: list[Result], across: str, label: str) -> None:
    """Bits against an attribute of the results."""
    dense = results[0]
    curves = {
        "dense": [dense],
        "low-rank": [r for r in results if r.kind == "low-rank" and not r.decay],
        "decay": [r for r in results if r.kind == "low-rank" and r.decay],
        "published": [r for r in results if r.kind == "published"],
    }
    names = {"decay": "low-rank, Frobenius decay", "published": "“low-rank” as published"}
    for kind, mine in curves.items():
        colour = COLOURS_OF[kind]
        axis.plot(
            [getattr(r, across) for r in mine], [r.bits for r in mine], "o-", color=colour, label=names.get(kind, kind)
        )
        for r in mine:
            draw_range(axis, getattr(r, across), r, colour)
            if r.rank:
                options = {"textcoords": "offset points", "color": colour, "va": "center", "bbox": BLANK}
                side = {"ha": "right", "xytext": (-8, 0)} if r.decay else {"ha": "left", "xytext": (8, 0)}
                axis.annotate(str(r.rank), (getattr(r, across), r.bits), **options, **side)
    axis.axhline(dense.bits, color=INK, linewidth=0.8, linestyle=DASHES)
    axis.axvline(getattr(dense, across), color=INK, linewidth=0.8, linestyle=DASHES)
    axis.set_xlim(left=0)
    axis.margins(x=0.08)
    axis.set_xlabel(f"{label}; at the points: the rank")
    if across == "parameters":
        axis.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g} M")


def draw_range(axis: Axes, x: float, result: Result, colour: str) -> None:
    """Of the seeds; an arrow and the figure where it leaves the panel."""
    top = axis.get_ylim()[1]
    axis.plot([x, x], [result.bits_least, min(result.bits_most, top)], "-", marker="_", color=colour, linewidth=1.2)
    if result.bits_most > top:
        axis.plot([x], [top], "^", color=colour, clip_on=False)
        axis.annotate(
            f"one seed: {result.bits_most:.2f}",
            (x, top),
            xytext=(-8, -8),
            textcoords="offset points",
            ha="right",
            va="top",
            color=colour,
            bbox=BLANK,
        )


# ---- from the command line -------------------------------------------------------------------------------------------


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two seeds, few steps, to see whether it works")
    parser.add_argument("--steps", type=int, help="(2000; quick: 10)")
    parser.add_argument("--seeds", type=int, nargs="+", help=f"({' '.join(map(str, SEEDS))}; quick: 1 2)")
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS, help=f"({' '.join(map(str, RANKS))})")
    parser.add_argument(
        "--decay", type=float, default=1e-4, help="coefficient of Frobenius decay, convention half (1e-4)"
    )
    parser.add_argument("--init", choices=("none", "SI"), default="SI", help="of the low-rank variants (SI)")
    parser.add_argument("--batch", type=int, default=64, help="windows in a step (64)")
    parser.add_argument("--lr", type=float, default=3e-3, help="of Adam, along a cosine (3e-3)")
    parser.add_argument("--held-out", type=int, help="batches of held-out text to look at (40; quick: 1)")
    parser.add_argument("--threads", type=int, help="as torch.set_num_threads (default: as torch has them)")
    parser.add_argument("--output", type=Path, default=Path("build/char_lstm"), help="folder (build/char_lstm)")
    args = parser.parse_args(argv)
    args.steps = args.steps or (10 if args.quick else 2000)
    args.held_out = args.held_out or (1 if args.quick else 40)
    args.seeds = args.seeds or ((1, 2) if args.quick else SEEDS)
    args.ranks = sorted(set(args.ranks))
    if min(args.ranks) < 1 or args.steps < 1 or args.batch < 1:
        parser.error("--ranks, --steps and --batch: expected 1 or more")
    if not (math.isfinite(args.decay) and args.decay > 0):
        parser.error(f"--decay: {args.decay}, expected a number above 0")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        task = tasks.task("austen")
    except DataError as error:
        print(f"char_lstm_study: {error}", file=sys.stderr)
        return 1
    chosen = variants(args.ranks, args.decay)
    print(f"{len(chosen)} variants, {len(args.seeds)} seeds, {args.steps:,} steps of {args.batch} windows")
    runs: list[list[Trained]] = []
    results: list[Result] = []
    for i, seed in enumerate(args.seeds):
        runs.append(train(chosen, task, args, seed))
        results = write(args.output, chosen, args.seeds[: i + 1], runs)  # what is there is kept if a seed is cut off
        print(f"after seed {seed}:\n{table(results)}\n", flush=True)
    title = f"Character LSTM on the Austen novels: {args.steps:,} steps, median and range of {len(args.seeds)} seeds"
    print(f"figure: {draw(args.output, results, title)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
