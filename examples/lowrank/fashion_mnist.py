# SPDX-License-Identifier: Apache-2.0
"""Train two networks on Fashion-MNIST three ways side by side: dense, as two layers of torch per layer, and with lath.

    make demo                      # sets everything up first
    make demo ARGS="--rank 32"     # any option of this script

The first network is an MLP, the second one convolutional. All three ways start from the same seed and see the same
batches in the same order. The two low-rank networks start from the same factors and compute the same function, so their
loss curves have to agree; what differs is the time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from count import inference_macs, parameters  # isort: skip
import lath
from data import DataError, FashionMNIST, fashion_mnist
from lowrank.contest import Contestant, print_training_memory, train, training_memory, workloads
from lowrank.figure import Part, draw
from lowrank.networks import (
    DENSE,
    IMAGE,
    LARGEST_RANK,
    LATH,
    SMALLEST_RATIO,
    Task,
    as_call,
    cnn_task,
    mlp_task,
    networks,
)
from measure import Workload
from training import LAYOUTS

DISTURBED = 1.5


def run(task: Task, data: FashionMNIST, args: argparse.Namespace) -> Part:
    """Train, measure and tell about one network."""
    models, report = networks(task, args.seed)
    arguments = as_call(task.spec) + (f", exclude={list(task.exclude)}" if task.exclude else "")
    routes = {row.kernel for row in lath.report(models[LATH], data.train.images[: task.batch]) if row.rank}
    print(f"{task.title}\n\nlath.convert(model, {arguments})\n{report}")
    print(f"kernels that the planner takes for a batch of {task.batch}: {', '.join(sorted(routes))}\n")
    if task.images < len(data.train):
        print(f"trained on {task.images:,} of the {len(data.train):,} images, to keep the demo short")
    contestants = train(task, models, data, args.seed)
    print("\nmeasuring memory and inference ...")
    command = [sys.executable, __file__, f"--only={task.name}", *settings(task, args)]
    memory = {name: training_memory([*command, f"--memory-of={name}"], c) for name, c in contestants.items()}
    loads = workloads(task, contestants, data, args.seconds)
    print(f"\n{table(contestants, loads, memory)}\n")
    pair = contestants[task.pair]
    print(f"{agreement(task.pair, contestants[LATH].losses, pair.losses)}{disturbance(contestants)}\n")
    return Part(
        f"{task.title}, threads: {torch.get_num_threads()}", {n: c.curve for n, c in contestants.items()}, loads
    )


def settings(task: Task, args: argparse.Namespace) -> list[str]:
    """Options that make the same network in another process."""
    options = {"rank": args.rank, "ratio": args.ratio, "form": args.form, "batch": task.batch, "rate": task.rate}
    return [f"--{key}={value}" for key, value in {**options, "threads": torch.get_num_threads()}.items()]


# ---- telling ---------------------------------------------------------------------------------------------------------


def table(contestants: dict[str, Contestant], loads: list[Workload], memory: dict[str, int | None]) -> str:
    """One column per network."""
    names = list(contestants)
    macs = (inference_macs(c.model, IMAGE) for c in contestants.values())
    lines: list[tuple[str, ...]] = [
        ("", *names),
        ("test accuracy", *(f"{c.curve[-1][1]:.4f}" for c in contestants.values())),
        ("parameters", *(f"{parameters(c.model):,}" for c in contestants.values())),
        ("multiply-adds for one image", *(f"{count:,}" for count in macs)),
        ("peak memory of training", *(mebibytes(memory[name]) for name in names)),
    ]
    for load in loads:
        compared = [
            ("  speed-up over dense", load.speedup, "x"),
            ("  fewer multiply-adds", load.saving, "x"),
            ("  realized share", load.share, ""),
        ]
        lines.append(("",) * (len(names) + 1))
        lines.append((load.name, *(milliseconds(load.seconds[name]) for name in names)))
        if load.layouts:
            lines.append(("  better layout", *(load.layouts[name] for name in names)))
        for label, figure, unit in compared:
            lines.append((label, "", *(f"{figure(name, DENSE):.2f}{unit}" for name in names if name != DENSE)))
    widths = [max(len(line[i]) for line in lines) for i in range(len(names) + 1)]
    aligned = ([cell.rjust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join(
        "   ".join([line[0].ljust(widths[0]), *cells[1:]]).rstrip() for line, cells in zip(lines, aligned, strict=True)
    )


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.{3 if seconds < 1e-3 else 2 if seconds < 1e-2 else 1}f} ms"


def mebibytes(size: int | None) -> str:
    return "not known" if size is None else f"{size / 2**20:.1f} MiB"


def shortest(path: str) -> str:
    return min(path, os.path.relpath(path), key=len)


def disturbance(contestants: dict[str, Contestant]) -> str:
    """A line for the case that other processes took the processor, else nothing."""
    excess = max(statistics.fmean(c.seconds) / statistics.median(c.seconds) for c in contestants.values())
    if excess < DISTURBED:
        return ""
    return (
        f"\nOther processes were at work: a mean training step took up to {excess:.1f} times the median one. "
        "Repeat on a\nquiet machine, or with --threads 1, which suffers less."
    )


def agreement(pair: str, lath_losses: list[float], pair_losses: list[float]) -> str:
    """How far two runs of the same function drift apart.

    Rounding differs, and Adam divides a gradient by its size: one that is nothing but rounding becomes a full step.
    """
    differences = [abs(a - b) for a, b in zip(lath_losses, pair_losses, strict=True)]
    tail = max(1, len(differences) // 10)
    last = abs(statistics.fmean(lath_losses[-tail:]) - statistics.fmean(pair_losses[-tail:]))
    first, early, any_step = differences[0], max(differences[:20]), max(differences)
    return (
        f"Loss of {LATH} against {pair}, the same function on the same batches: differs by {first:.0e} in the first\n"
        f"step, by {early:.0e} at most in the first 20, by {any_step:.0e} at most in all {len(differences)} (Adam\n"
        f"amplifies rounding). The means over the last {tail} steps differ by {last:.0e}."
    )


EXPLANATION = """\
Times are medians; the networks took turns. Realized share = speed-up / saving in multiply-adds. At 1, saved work
became saved time; above, torch's dense product did not use what this processor can do. Training is a whole step
with loss and optimizer; what is no product in it (norms, activations, pools) takes every network the same time.
Memory is what a process grows by while it trains: weights, gradients, optimizer, activations, scratch.
"""
NEXT = """What to try next
  make demo ARGS="--only mlp --rank 32"
                                   thinner: faster, less exact; --rank 256: the other way (break-even is {even})
  make demo ARGS="--only cnn --form pointwise"
                                   the other form of low-rank convolutions; --ratio 0.25: less thin
  make demo ARGS="--threads 1"     one thread, the steadier clock
  {python} examples/lowrank/resnet18_finetune.py
                                   a ResNet-18 trained, converted, fine-tuned, restored, exported
  {python} examples/lowrank/rank_sweep.py
                                   accuracy against measured time, rank by rank
  make bench                       layer by layer against PyTorch, with the limits of this machine
  README.md, docs/planner.md       what is behind the figures"""


def parse(argv: list[str] | None) -> argparse.Namespace:
    def positive(text: str) -> int:
        value = int(text)
        if value < 1:
            raise argparse.ArgumentTypeError(f"{value} is not a positive number")
        return value

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=("mlp", "cnn"), help="one network (default: both)")
    parser.add_argument("--rank", type=positive, default=64, help=f"of the MLP's layers, up to {LARGEST_RANK} (64)")
    parser.add_argument("--ratio", type=float, default=0.125, help="rank of the CNN's layers by their size (0.125)")
    parser.add_argument("--form", choices=("separable", "pointwise"), default="separable", help="of the CNN's layers")
    parser.add_argument("--images", type=positive, help="training images (MLP: all, CNN: 9,600)")
    parser.add_argument("--epochs", type=positive, help="passes over the training images (MLP 5, CNN 1)")
    parser.add_argument("--batch", type=positive, help="images in a training step (MLP 128, CNN 32)")
    parser.add_argument("--rate", type=float, help="learning rate of Adam, falling linearly (2e-3)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of the order of images (0)")
    parser.add_argument("--threads", type=positive, help="as torch.set_num_threads (default: as torch has them)")
    parser.add_argument("--seconds", type=float, default=2.0, help="time spent on each inference measurement (2)")
    parser.add_argument("--output", type=Path, default=Path("build/demo"), help="folder of the figure (build/demo)")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    parser.add_argument("--layout", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.rank > LARGEST_RANK:
        parser.error(f"--rank {args.rank}: factors are cheaper than the dense layers up to rank {LARGEST_RANK}")
    if not SMALLEST_RATIO <= args.ratio <= 1:
        parser.error(f"--ratio {args.ratio}: choose a number from {SMALLEST_RATIO} (rank 1) to 1")
    return args


def tasks(args: argparse.Namespace) -> list[Task]:
    """What the options ask for."""
    chosen = [mlp_task(args.rank), cnn_task(args.ratio, args.form)]
    given = {key: getattr(args, key) for key in ("images", "epochs", "batch", "rate")}
    given = {key: value for key, value in given.items() if value is not None}
    return [replace(task, **given) for task in chosen if args.only in (None, task.name)]


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    chosen = tasks(args)
    if args.memory_of:
        layout = next(layout for layout, name in LAYOUTS.items() if name == args.layout)
        print_training_memory(chosen[0], args.memory_of, layout)
        return 0
    try:
        data = fashion_mnist()
    except DataError as error:
        print(f"lath demo: {error}", file=sys.stderr)
        return 1
    chosen = [replace(task, images=min(task.images, len(data.train))) for task in chosen]
    for task in chosen:
        if task.batch > task.images:
            print(f"lath demo: --batch {task.batch}: there are {task.images} training images", file=sys.stderr)
            return 1

    print(
        f"Fashion-MNIST, {len(data.train):,} training and {len(data.test):,} test images; torch {torch.__version__}, "
        f"lath {lath.__version__} ({lath.ops.cpu_isa()}), threads: {torch.get_num_threads()}\n"
    )
    parts = [run(task, data, args) for task in chosen]
    print(EXPLANATION)
    print(f"figure: {draw(args.output, parts)}\n")
    print(NEXT.format(even=LARGEST_RANK, python=shortest(sys.executable)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
