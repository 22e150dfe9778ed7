# SPDX-License-Identifier: Apache-2.0
"""Train one network on Fashion-MNIST three ways side by side: dense, as two nn.Linear per layer, and with lath.

    make demo                      # sets everything up first
    make demo ARGS="--rank 32"     # any option of this script

All three start from the same seed and see the same batches in the same order. The two low-rank networks start from the
same factors and compute the same function, so their loss curves have to agree; what differs is the time.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data import DataError, FashionMNIST, Split, fashion_mnist  # isort: skip
import lath
from lowrank.figure import draw
from measure import EXACT_MEMORY, Workload, inference_macs, peak_memory, time_in_turns, training_macs

DENSE, PAIR, LATH = "dense", "two nn.Linear", "lath"
INPUT, HIDDEN, CLASSES = 784, 1024, 10
LARGEST_RANK = (INPUT * HIDDEN - 1) // (INPUT + HIDDEN)  # beyond it the first layer would not get cheaper
INFERENCE_BATCHES = (1, 64, 1024)
TURNS_PER_EPOCH = 20  # the networks take turns: so many batches each, then the next one
TURNS_PER_TEST = 5
DISTURBED = 1.5


@dataclass
class Contestant:
    """A network in training, and what has been seen of it.

    Attributes:
        seconds, losses: of each training step; a step is zero_grad, forward, loss, backward and the optimizer.
        curve: (seconds of training so far, test accuracy).
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    curve: list[tuple[float, float]] = field(default_factory=list)


# ---- the networks ----------------------------------------------------------------------------------------------------


def networks(rank: int, seed: int) -> tuple[dict[str, nn.Module], lath.Report]:
    """The three networks by name, and what ``lath.convert`` says about its layers."""
    torch.manual_seed(seed)
    dense = nn.Sequential(
        nn.Linear(INPUT, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES)
    )
    thin = copy.deepcopy(dense)
    report = lath.convert(thin, lath.LowRank(rank=rank))
    return {DENSE: dense, PAIR: as_pairs(thin), LATH: thin}, report


def as_pairs(model: nn.Sequential) -> nn.Sequential:
    """The same function without lath: each low-rank layer as two nn.Linear with its factors."""

    def pair(layer: lath.nn.LowRankLinear) -> nn.Sequential:
        first = nn.Linear(layer.in_features, layer.rank, bias=False)
        second = nn.Linear(layer.rank, layer.out_features)
        with torch.no_grad():
            first.weight.copy_(layer.weight_v)
            second.weight.copy_(layer.weight_u)
            second.bias.copy_(layer.bias)
        return nn.Sequential(first, second)

    return nn.Sequential(*(pair(m) if isinstance(m, lath.nn.LowRankLinear) else copy.deepcopy(m) for m in model))


def adam(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=rate, fused=True)


# ---- training --------------------------------------------------------------------------------------------------------


def step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> Tensor:
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    return loss.detach()


def accuracy(model: nn.Module, split: Split) -> float:
    with torch.inference_mode():
        hits = sum(
            int((model(images).argmax(1) == labels).sum())
            for images, labels in zip(split.images.split(1000), split.labels.split(1000), strict=True)
        )
    return hits / len(split.labels)


def train(models: dict[str, nn.Module], data: FashionMNIST, args: argparse.Namespace) -> dict[str, Contestant]:
    """Train all networks on the same batches. They take turns, so that a change of load meets them alike."""
    steps = len(data.train.labels) // args.batch
    contestants = {}
    for name, model in models.items():
        optimizer = adam(model, args.rate)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, total_iters=steps * args.epochs)
        contestants[name] = Contestant(model, optimizer, schedule)
        warm_up(model, data.train, args)
    shuffle = torch.Generator().manual_seed(args.seed)
    with tqdm(total=len(models) * steps * args.epochs, desc="training", unit="step", disable=None) as bar:
        for epoch in range(args.epochs):
            batches = torch.randperm(len(data.train.labels), generator=shuffle)[: steps * args.batch].split(args.batch)
            train_epoch(contestants, batches, data, bar)
            now = {name: c.curve[-1] for name, c in contestants.items()}
            scores = "   ".join(f"{name} {score:.3f} ({seconds:.1f} s)" for name, (seconds, score) in now.items())
            tqdm.write(f"epoch {epoch + 1} of {args.epochs}: test accuracy (training time)   {scores}")
    return contestants


def warm_up(model: nn.Module, split: Split, args: argparse.Namespace) -> None:
    """A few steps with a copy: first calls set up threads and load code."""
    twin = copy.deepcopy(model)
    optimizer = adam(twin, args.rate)
    for _ in range(3):
        step(twin, optimizer, split.images[: args.batch], split.labels[: args.batch])


def train_epoch(contestants: dict[str, Contestant], batches: tuple[Tensor, ...], data: FashionMNIST, bar: tqdm) -> None:
    length = -(-len(batches) // TURNS_PER_EPOCH)
    order = list(contestants.values())
    for turn, start in enumerate(range(0, len(batches), length), start=1):
        mine = batches[start : start + length]
        for contestant in order:
            run_turn(contestant, mine, data.train)
            bar.update(len(mine))
        order.append(order.pop(0))
        if turn % TURNS_PER_TEST == 0 or start + length >= len(batches):
            for contestant in order:
                contestant.curve.append((sum(contestant.seconds), accuracy(contestant.model, data.test)))
        bar.set_postfix({name: f"{statistics.fmean(c.losses[-50:]):.3f}" for name, c in contestants.items()})


def run_turn(contestant: Contestant, batches: Iterable[Tensor], split: Split) -> None:
    for chosen in batches:
        images, labels = split.images[chosen], split.labels[chosen]
        start = time.perf_counter()
        loss = step(contestant.model, contestant.optimizer, images, labels)
        contestant.seconds.append(time.perf_counter() - start)
        contestant.losses.append(loss.item())
        contestant.schedule.step()


# ---- measuring -------------------------------------------------------------------------------------------------------


def workloads(contestants: dict[str, Contestant], data: FashionMNIST, args: argparse.Namespace) -> list[Workload]:
    """Training as it went, then inference at several batch sizes."""
    found = [
        Workload(
            f"training, batch {args.batch}",
            {name: statistics.median(c.seconds) for name, c in contestants.items()},
            {name: training_macs(c.model) for name, c in contestants.items()},
        )
    ]
    macs = {name: inference_macs(c.model) for name, c in contestants.items()}
    with torch.inference_mode():
        for count in INFERENCE_BATCHES:
            images = data.test.images[:1].expand(count, -1).contiguous()
            calls = {name: lambda model=c.model, x=images: model(x) for name, c in contestants.items()}
            found.append(Workload(f"inference, batch {count}", time_in_turns(calls, args.seconds), macs))
    return found


def print_training_memory(name: str, args: argparse.Namespace) -> int:
    """What a process of :func:`training_memory` does: a few steps of one network on random images."""
    models, _ = networks(args.rank, args.seed)
    model = models.pop(name)
    models.clear()
    images, labels = torch.randn(args.batch, INPUT), torch.randint(CLASSES, (args.batch,))

    def run() -> None:
        twin = copy.deepcopy(model)
        optimizer = adam(twin, args.rate)
        for _ in range(3):
            step(twin, optimizer, images, labels)

    small = nn.Sequential(nn.Linear(8, 8), lath.nn.LowRankLinear(8, 8, 1))
    step(small, adam(small, args.rate), torch.randn(8, 8), torch.zeros(8, dtype=torch.int64))  # loads code
    print(json.dumps(peak_memory(run)))
    return 0


def training_memory(name: str, args: argparse.Namespace) -> int | None:
    """Bytes that training one network takes beyond the libraries: weights, gradients, optimizer, activations, scratch.

    None where this machine does not tell.
    """
    options = {"rank": args.rank, "batch": args.batch, "threads": torch.get_num_threads(), "memory-of": name}
    command = [sys.executable, __file__, *(f"--{key}={value}" for key, value in options.items())]
    done = subprocess.run(command, env={**os.environ, **EXACT_MEMORY}, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


# ---- telling ---------------------------------------------------------------------------------------------------------


def table(contestants: dict[str, Contestant], loads: list[Workload], memory: dict[str, int | None]) -> str:
    """One column per network."""
    names = list(contestants)
    macs = {name: inference_macs(c.model) for name, c in contestants.items()}
    lines: list[tuple[str, ...]] = [
        ("", *names),
        ("test accuracy", *(f"{c.curve[-1][1]:.4f}" for c in contestants.values())),
        ("parameters", *(f"{sum(p.numel() for p in c.model.parameters()):,}" for c in contestants.values())),
        ("multiply-adds for one image", *(f"{macs[name]:,}" for name in names)),
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


def agreement(lath_losses: list[float], pair_losses: list[float]) -> str:
    """How far two runs of the same function drift apart.

    Rounding differs, and Adam divides a gradient by its size: one that is nothing but rounding becomes a full step.
    """
    differences = [abs(a - b) for a, b in zip(lath_losses, pair_losses, strict=True)]
    tail = max(1, len(differences) // 10)
    last = abs(statistics.fmean(lath_losses[-tail:]) - statistics.fmean(pair_losses[-tail:]))
    first, early, any_step = differences[0], max(differences[:20]), max(differences)
    return (
        f"Loss of {LATH} against {PAIR}, the same function on the same batches: differs by {first:.0e} in the first\n"
        f"step, by {early:.0e} at most in the first 20, by {any_step:.0e} at most in all {len(differences)} (Adam\n"
        f"amplifies rounding). The means over the last {tail} steps differ by {last:.0e}."
    )


NEXT = """What to try next
  make demo ARGS="--rank 32"       thinner: faster, less exact; --rank 256: the other way (break-even is {even})
  make demo ARGS="--threads 1"     one thread, the steadier clock
  {python} examples/lowrank/convert_your_model.py
                                   the same swap in a transformer of your own, in ten lines
  make bench                       layer by layer against PyTorch, with the limits of this machine
  README.md, docs/planner.md       what is behind the figures"""


def parse(argv: list[str] | None) -> argparse.Namespace:
    def positive(text: str) -> int:
        value = int(text)
        if value < 1:
            raise argparse.ArgumentTypeError(f"{value} is not a positive number")
        return value

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rank", type=positive, default=64, help=f"of the converted layers, up to {LARGEST_RANK} (64)")
    parser.add_argument("--epochs", type=positive, default=5, help="passes over the training images (5)")
    parser.add_argument("--batch", type=positive, default=128, help="images in a training step (128)")
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate of Adam, falling linearly (2e-3)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of the order of images (0)")
    parser.add_argument("--threads", type=positive, help="as torch.set_num_threads (default: as torch has them)")
    parser.add_argument("--seconds", type=float, default=3.0, help="time spent on each inference measurement (3)")
    parser.add_argument("--output", type=Path, default=Path("build/demo"), help="folder of the figure (build/demo)")
    parser.add_argument("--memory-of", choices=(DENSE, PAIR, LATH), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.rank > LARGEST_RANK:
        parser.error(f"--rank {args.rank}: factors are cheaper than the dense layers up to rank {LARGEST_RANK}")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.memory_of:
        return print_training_memory(args.memory_of, args)
    try:
        data = fashion_mnist()
    except DataError as error:
        print(f"lath demo: {error}", file=sys.stderr)
        return 1
    if args.batch > len(data.train.labels):
        print(f"lath demo: --batch {args.batch}: there are {len(data.train.labels)} training images", file=sys.stderr)
        return 1

    models, report = networks(args.rank, args.seed)
    print(
        f"Fashion-MNIST, {len(data.train.labels):,} training and {len(data.test.labels):,} test images; torch "
        f"{torch.__version__}, lath {lath.__version__} ({lath.ops.cpu_isa()}), threads: {torch.get_num_threads()}\n\n"
        f"lath.convert(model, lath.LowRank(rank={args.rank}))\n{report}\n"
    )
    contestants = train(models, data, args)
    print("\nmeasuring memory and inference ...")
    memory = {name: training_memory(name, args) for name in contestants}
    loads = workloads(contestants, data, args)

    threads = torch.get_num_threads()
    print(f"\n{table(contestants, loads, memory)}\n")
    print(
        f"Medians, threads: {threads}; the networks took turns. Realized share = speed-up / saving in multiply-adds.\n"
        "At 1, saved work became saved time; above, torch's dense product did not use what this processor can do.\n"
        "Training is a whole step with loss and optimizer. Memory is what a process grows by while it trains:\n"
        "weights, gradients, optimizer, activations, scratch." + disturbance(contestants)
    )
    print(f"\n{agreement(contestants[LATH].losses, contestants[PAIR].losses)}\n")
    title = f"MLP {INPUT}-{HIDDEN}-{HIDDEN}-{CLASSES} on Fashion-MNIST, rank {args.rank}, threads: {threads}"
    curves = {name: c.curve for name, c in contestants.items()}
    print(f"figure: {draw(args.output, title, curves, loads)}\n")
    print(NEXT.format(even=LARGEST_RANK, python=shortest(sys.executable)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
