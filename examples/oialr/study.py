# SPDX-License-Identifier: Apache-2.0
"""What OIALR costs in accuracy and saves in parameters, time and memory while it trains, on Fashion-MNIST.

    python examples/oialr/study.py            # some hours on one core
    python examples/oialr/study.py --quick    # a minute or two: whether it works, no result
    python examples/oialr/study.py --networks mlp --seeds 1 --threads 1

An MLP, a VGG and a tiny ViT, each dense, with OIALR, and low-rank from the start at the ranks that OIALR ended with:
the same initial weights, batches, optimizer, schedule and number of epochs. The first sixth of OIALR's training is
dense; then 26 basis updates cut the ranks, and the step gets faster.

A network and seed that is done is in ``runs`` and is not done again, so a study that was cut off goes on where it was.
Three tables are written: ``oialr.csv`` with every look at the networks in training, ``oialr_ranks.csv`` with the rank
of each layer at each of them, ``oialr_summary.csv`` with medians over the seeds; and a figure.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data import DataError, FashionMNIST, fashion_mnist  # isort: skip
import lath
from oialr.figure import draw
from oialr.networks import NETWORKS, Network
from oialr.runs import (
    DENSE,
    OIALR,
    VARIANTS,
    Look,
    Outcome,
    Plan,
    outcomes,
    print_training_memory,
    train,
)

SEEDS = (1, 2, 3)
QUICK = {"mlp": 30, "vgg": 12, "vit": 12}  # steps
QUICK_BATCH = 32
QUICK_CUTOFF = 0.9  # so that ranks fall in so few steps
QUICK_TEST = 512
Chosen = tuple[Network, Plan]
Done = dict[int, dict[str, Outcome]]  # by seed, by variant


@dataclass(frozen=True)
class Result:
    """A network trained one way, over all seeds: medians, and the ends of the range.

    Attributes:
        epochs: passes over the training images; less than one counts as one.
        trainable, stored: numbers at the end that the optimizer changes, and that the model consists of.
        macs: multiply-adds of a step with the weights at the end, for one image.
        accuracy, accuracy_least, accuracy_most: on all test images, after training.
        milliseconds, milliseconds_least, milliseconds_most: of a step of the trained network.
        training_seconds: in all steps and basis updates.
        updates: in steps of the trained network: what a basis update takes, median.
        held: bytes of weights, gradients and optimizer state at the end; ``held_most``: at any look.
        peak, full_peak: bytes of memory of training, at the final ranks and right after the conversion, of one seed.
    """

    network: str
    variant: str
    seeds: int
    epochs: int
    steps: int
    trainable: int
    stored: int
    macs: int
    accuracy: float
    accuracy_least: float
    accuracy_most: float
    milliseconds: float
    milliseconds_least: float
    milliseconds_most: float
    training_seconds: float
    updates: float | None
    held: int
    held_most: int
    peak: int | None
    full_peak: int | None


# ---- runs that are kept ----------------------------------------------------------------------------------------------


def settings(network: Network, plan: Plan) -> dict[str, object]:
    """What a kept run must have in common with this study."""
    plain = {f.name: getattr(network, f.name) for f in fields(network) if f.name not in ("title", "build")}
    versions = {"torch": torch.__version__, "lath": lath.__version__, "threads": torch.get_num_threads()}
    return {**plain, **asdict(plan), **versions, "of each": [f.name for f in fields(Outcome)]}


def load(path: Path, wanted: dict[str, object]) -> dict[str, Outcome] | None:
    """A run that was kept, None where there is none with these settings."""
    try:
        kept = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    if kept["settings"] != wanted:
        return None
    return {
        name: Outcome(**{**found, "looks": [Look(**look) for look in found["looks"]]})
        for name, found in kept["outcomes"].items()
    }


def keep(path: Path, wanted: dict[str, object], found: dict[str, Outcome]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"settings": wanted, "outcomes": {name: asdict(outcome) for name, outcome in found.items()}})
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(path)


def run(network: Network, plan: Plan, data: FashionMNIST, args: argparse.Namespace, seed: int) -> dict[str, Outcome]:
    """Train the three, unless that has been done."""
    path, wanted = args.output / "runs" / f"{network.name}-{seed}.json", settings(network, plan)
    found = load(path, wanted)
    if found is not None:
        print(f"{network.name}, seed {seed}: taken from {path}", flush=True)
        return found
    runs = train(network, plan, data, seed)
    command = memory_command(network) if args.memory and seed == args.seeds[0] else None
    found = outcomes(network, runs, data, args.seconds, command)
    keep(path, wanted, found)
    return found


def memory_command(network: Network) -> list[str]:
    sizes = f"--batch={network.batch}", f"--threads={torch.get_num_threads()}"
    return [sys.executable, str(Path(__file__).resolve()), f"--memory-of={network.name}", *sizes]


# ---- tables ----------------------------------------------------------------------------------------------------------


def summary(network: Network, plan: Plan, done: Done) -> list[Result]:
    results = []
    for variant in VARIANTS:
        mine = [outcomes[variant] for outcomes in done.values()]
        ends = [outcome.looks[-1] for outcome in mine]
        updates = [statistics.median(o.updates) / o.milliseconds for o in mine if o.updates]
        results.append(
            Result(
                network.name,
                variant,
                len(mine),
                network.epochs,
                plan.steps,
                middle(end.trainable for end in ends),
                middle(end.stored for end in ends),
                middle(outcome.macs for outcome in mine),
                *median_and_ends([outcome.accuracy for outcome in mine]),
                *median_and_ends([outcome.milliseconds for outcome in mine]),
                statistics.median(end.seconds for end in ends),
                statistics.median(updates) if updates else None,
                middle(end.held for end in ends),
                middle(max(look.held for look in outcome.looks) for outcome in mine),
                mine[0].peak,
                mine[0].full_peak,
            )
        )
    return results


def median_and_ends(values: Sequence[float]) -> tuple[float, float, float]:
    return statistics.median(values), min(values), max(values)


def middle(values: Iterable[int]) -> int:
    return round(statistics.median(values))


def table(results: list[Result]) -> str:
    """A line for each network and variant, compared with the dense one."""
    head = (
        f"{'network':<9}{'variant':<10}{'accuracy':>26}{'trainable':>12}{'stored':>12}{'ms of a step':>27}"
        f"{'speed-up':>10}{'fewer MACs':>12}{'share':>7}{'training':>12}{'update':>12}{'peak':>12}"
    )
    lines = [head]
    for r in results:
        dense = next(other for other in results if (other.network, other.variant) == (r.network, DENSE))
        accuracy = f"{r.accuracy:.2%} ({r.accuracy_least:.2%} to {r.accuracy_most:.2%})"
        step = f"{r.milliseconds:.1f} ({r.milliseconds_least:.1f} to {r.milliseconds_most:.1f})"
        update = "" if r.updates is None else f"{r.updates:.1f} steps"
        speedup, saving = dense.milliseconds / r.milliseconds, dense.macs / r.macs
        compared = f"{speedup:>9.2f}x{saving:>11.2f}x{speedup / saving:>7.2f}"
        taken = f"{r.training_seconds:>10.1f} s{update:>12}{mebibytes(r.peak):>12}"
        numbers = f"{r.trainable:>12,}{r.stored:>12,}"
        lines.append(f"{r.network:<9}{r.variant:<10}{accuracy:>26}{numbers}{step:>27}{compared}{taken}")
    full = [f"{r.network} {mebibytes(r.full_peak)}" for r in results if r.full_peak is not None]
    if full:
        lines.append(f"peak of OIALR right after the conversion, at full rank: {', '.join(full)}")
    return "\n".join(lines)


def mebibytes(size: int | None) -> str:
    return "" if size is None else f"{size / 2**20:.1f} MiB"


def write(folder: Path, chosen: dict[str, Chosen], done: dict[str, Done]) -> list[Result]:
    folder.mkdir(parents=True, exist_ok=True)
    write_looks(folder, done)
    results = [r for name, of_seeds in done.items() for r in summary(*chosen[name], of_seeds)]
    with (folder / "oialr_summary.csv").open("w", newline="") as file:
        rows = csv.DictWriter(file, [f.name for f in fields(Result)], lineterminator="\n")
        rows.writeheader()
        rows.writerows(asdict(r) for r in results)
    return results


def write_looks(folder: Path, done: dict[str, Done]) -> None:
    names = [f.name for f in fields(Look) if f.name != "ranks"]
    with (folder / "oialr.csv").open("w", newline="") as of_looks, (folder / "oialr_ranks.csv").open("w") as of_ranks:
        looks, ranks = (csv.writer(file, lineterminator="\n") for file in (of_looks, of_ranks))
        looks.writerow(["network", "variant", "seed", *names])
        ranks.writerow(["network", "seed", "step", "layer", "rank"])
        for network, of_seeds in done.items():
            for seed, of_variants in of_seeds.items():
                for variant, outcome in of_variants.items():
                    for look in outcome.looks:
                        looks.writerow([network, variant, seed, *(rounded(getattr(look, name)) for name in names)])
                for look in of_variants[OIALR].looks:
                    ranks.writerows([network, seed, look.step, layer, rank] for layer, rank in look.ranks.items())


def rounded(value: float) -> float | str:
    return f"{value:.4f}" if isinstance(value, float) else value


# ---- from the command line -------------------------------------------------------------------------------------------


def parse(argv: list[str] | None) -> argparse.Namespace:
    def positive(text: str) -> int:
        value = int(text)
        if value < 1:
            raise argparse.ArgumentTypeError(f"{value} is not a positive number")
        return value

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one seed, few steps, to see whether it works")
    parser.add_argument("--networks", nargs="+", choices=tuple(NETWORKS), default=tuple(NETWORKS), help="(all)")
    parser.add_argument("--seeds", type=int, nargs="+", help=f"({' '.join(map(str, SEEDS))}; quick: 1)")
    parser.add_argument("--epochs", type=positive, help="passes over the images (mlp 10, vgg and vit 4; quick: 1)")
    parser.add_argument("--images", type=positive, help="training images, the first ones (all; quick: few)")
    parser.add_argument("--batch", type=positive, help=f"images in a step (128; quick: {QUICK_BATCH})")
    parser.add_argument("--cutoff", type=float, help="singular values below this share of the largest go")
    parser.add_argument("--glance", type=positive, default=2000, help="test images of a look, the first ones (2000)")
    parser.add_argument("--seconds", type=float, help="spent on the final time of a step (5; quick: 0.5)")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="do not measure peak memory")
    parser.add_argument("--threads", type=positive, help="as torch.set_num_threads (default: as torch has them)")
    parser.add_argument("--output", type=Path, default=Path("build/oialr"), help="folder (build/oialr)")
    parser.add_argument("--memory-of", choices=tuple(NETWORKS), help=argparse.SUPPRESS)
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.seeds = tuple(args.seeds or ((1,) if args.quick else SEEDS))
    args.seconds = (0.5 if args.quick else 5.0) if args.seconds is None else args.seconds
    if args.cutoff is not None and not 0 <= args.cutoff <= 1:
        parser.error(f"--cutoff: {args.cutoff}, expected a number from 0 to 1")
    return args


def network_of(args: argparse.Namespace, name: str) -> Network:
    """With what the options change."""
    given = {key: getattr(args, key) for key in ("epochs", "batch", "cutoff")}
    if args.quick:
        few = {"epochs": 1, "batch": QUICK_BATCH, "cutoff": QUICK_CUTOFF}
        given = {key: few[key] if value is None else value for key, value in given.items()}
    return replace(NETWORKS[name], **{key: value for key, value in given.items() if value is not None})


def choose(args: argparse.Namespace, name: str, data: FashionMNIST) -> Chosen:
    """ValueError where there are too few images for a step."""
    network = network_of(args, name)
    images = args.images or (QUICK[name] * network.batch if args.quick else len(data.train))
    images = min(images, len(data.train))
    if images < network.batch:
        raise ValueError(f"--batch {network.batch}: there are {images} training images")
    return network, Plan.of(network, images, min(args.glance, len(data.test)))


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.memory_of:
        print_training_memory(network_of(args, args.memory_of), args.variant, json.load(sys.stdin))
        return 0
    try:
        data = fashion_mnist()
        if args.quick:
            data = FashionMNIST(data.train, data.test.first(QUICK_TEST))
        chosen = {name: choose(args, name, data) for name in args.networks}
    except (DataError, ValueError) as error:
        print(f"study: {error}", file=sys.stderr)
        return 1
    print(
        f"torch {torch.__version__}, lath {lath.__version__} ({lath.ops.cpu_isa()}), threads {torch.get_num_threads()}"
    )
    done: dict[str, Done] = {}
    for name, (network, plan) in chosen.items():
        print(f"\n{network.title}: {plan.steps:,} steps of {network.batch}, the first {plan.delay:,} dense", flush=True)
        for seed in args.seeds:
            done.setdefault(name, {})[seed] = run(network, plan, data, args, seed)
            results = write(args.output, chosen, done)  # what is there is kept if the study is cut off
            figure = draw(args.output, [(chosen[n][0], done[n], chosen[n][1]) for n in done])
            print(f"\nafter seed {seed}:\n{table([r for r in results if r.network == name])}", flush=True)
    print(f"\n{table(results)}\n\nfigure: {figure}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
