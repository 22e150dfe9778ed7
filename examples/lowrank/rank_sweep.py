# SPDX-License-Identifier: Apache-2.0
"""What a rank costs in accuracy and saves in time, both measured, rank by rank.

    python examples/lowrank/rank_sweep.py            # a few minutes on two cores
    python examples/lowrank/rank_sweep.py --quick    # under one

The convolutional network of the demo is trained for one short pass over Fashion-MNIST: dense, and at a grid of ratios
in both forms of a low-rank convolution. All start from the same dense weights, see the same images, and take turns.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from count import training_macs  # isort: skip
import lath
from data import DataError, FashionMNIST, fashion_mnist
from lowrank.contest import Contestant, train
from lowrank.networks import IMAGE, SMALLEST_RATIO, cnn_task
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter
from style import BLANK, COLOURS, DASHES, STYLE, pyplot
from torch import nn

GREY = COLOURS[0]
FORMS = {"separable": COLOURS[1], "pointwise": COLOURS[2]}
RATIOS = (0.0625, 0.125, 0.25, 0.375)
QUICK_RATIOS = (0.0625, 0.25)


@dataclass(frozen=True)
class Result:
    """What was measured of one variant.

    Attributes:
        form: "dense", "separable" or "pointwise".
        ratio: None for the dense network.
        accuracy: on the test images, after training.
        seconds: median of a training step.
        macs: multiply-adds of a training step for one image.
    """

    form: str
    ratio: float | None
    accuracy: float
    seconds: float
    macs: int


def sweep(ratios: tuple[float, ...], images: int, batch: int, data: FashionMNIST, seed: int) -> list[Result]:
    """Train all variants side by side."""
    torch.manual_seed(seed)
    task = replace(cnn_task(ratios[0], "separable"), images=images, batch=batch, tests=1, glance=len(data.test))
    dense = task.build()
    models: dict[tuple[str, float | None], nn.Module] = {("dense", None): dense}
    for form in FORMS:
        for ratio in ratios:
            thin, spec = copy.deepcopy(dense), cnn_task(ratio, form).spec
            lath.convert(thin, spec, exclude=task.exclude)
            models[form, ratio] = thin
    contestants = train(task, models, data, seed, tell=lambda line: None)
    return [result(form, ratio, contestant) for (form, ratio), contestant in contestants.items()]


def result(form: str, ratio: float | None, trained: Contestant) -> Result:
    seconds = statistics.median(trained.seconds)
    return Result(form, ratio, trained.curve[-1][1], seconds, training_macs(trained.model, IMAGE))


def table(results: list[Result]) -> str:
    dense = results[0]
    lines = [f"{'form':<11}{'ratio':>7}{'accuracy':>11}{'step':>12}{'speed-up':>11}{'fewer multiply-adds':>22}"]
    for r in results:
        ratio = "" if r.ratio is None else f"{r.ratio:g}"
        compared = f"{dense.seconds / r.seconds:>10.2f}x{dense.macs / r.macs:>21.2f}x"
        lines.append(f"{r.form:<11}{ratio:>7}{r.accuracy:>11.4f}{1e3 * r.seconds:>9.1f} ms{compared}")
    return "\n".join(lines)


def draw(folder: Path, results: list[Result], title: str) -> Path:
    """Write ``rank_sweep.png`` into ``folder``, which is made if it does not exist, and return its path."""
    with pyplot.rc_context(STYLE):
        figure, axis = pyplot.subplots(figsize=(10, 5.6))
        figure.subplots_adjust(left=0.09, right=0.97, bottom=0.11, top=0.84)
        figure.text(0.03, 0.94, title, fontsize=14, fontweight="bold")
        draw_results(axis, results)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "rank_sweep.png"
        figure.savefig(path, dpi=160)
        pyplot.close(figure)
    return path


def draw_results(axis: Axes, results: list[Result]) -> None:
    dense = results[0]
    for form, colour in FORMS.items():
        mine = [r for r in results if r.form == form]
        points = [(1e3 * r.seconds, r.accuracy) for r in mine]
        axis.plot(*zip(*points, strict=True), "o-", color=colour, linewidth=2, markersize=7, label=form)
        label = {"textcoords": "offset points", "ha": "center", "color": colour, "bbox": BLANK}
        shift = (0, 10) if form == "separable" else (0, -18)
        for r, point in zip(mine, points, strict=True):
            axis.annotate(f"{r.ratio:g}", point, shift, **label)
    axis.plot([1e3 * dense.seconds], [dense.accuracy], "s", color=GREY, markersize=9, label="dense")
    axis.axhline(dense.accuracy, color=GREY, linewidth=1, linestyle=DASHES)
    axis.axvline(1e3 * dense.seconds, color=GREY, linewidth=1, linestyle=DASHES)
    axis.set_xlim(left=0)
    axis.margins(y=0.15)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
    axis.set_xlabel("milliseconds of a training step, median; at the points: the ratio")
    axis.set_ylabel("test accuracy")
    axis.set_title("left of the cross: faster than dense; above: more accurate", fontsize=10, fontweight="normal")
    axis.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, frameon=False)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two ratios, few images")
    parser.add_argument("--ratios", type=float, nargs="+", help=f"({' '.join(map(str, RATIOS))})")
    parser.add_argument("--images", type=int, help="training images (6400; quick: 1920)")
    parser.add_argument("--batch", type=int, default=32, help="images in a training step (32)")
    parser.add_argument("--test-images", type=int, default=4000, help="(4000)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of the order of images (0)")
    parser.add_argument("--threads", type=int, help="as torch.set_num_threads (default: as torch has them)")
    parser.add_argument("--output", type=Path, default=Path("build/sweep"), help="folder of the figure (build/sweep)")
    args = parser.parse_args(argv)
    args.ratios = tuple(sorted(args.ratios or (QUICK_RATIOS if args.quick else RATIOS)))
    args.images = args.images or (1920 if args.quick else 6400)
    if not SMALLEST_RATIO <= args.ratios[0] <= args.ratios[-1] <= 1:
        parser.error(f"--ratios: choose numbers from {SMALLEST_RATIO} (rank 1) to 1")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        data = fashion_mnist()
    except DataError as error:
        print(f"rank_sweep: {error}", file=sys.stderr)
        return 1
    images = min(args.images, len(data.train))
    data = FashionMNIST(data.train, data.test.first(args.test_images))
    print(
        f"{1 + len(FORMS) * len(args.ratios)} networks, each trained on {images:,} images, tested on {len(data.test):,}"
    )
    results = sweep(args.ratios, images, args.batch, data, args.seed)
    print(f"\n{table(results)}\n")
    error = max(r.accuracy * (1 - r.accuracy) for r in results) ** 0.5 / len(data.test) ** 0.5
    print(f"Accuracies on so few images are good to {2 * error:.1%} or so (two standard errors).")
    title = f"Accuracy against time: one pass over {images:,} images, threads: {torch.get_num_threads()}"
    print(f"figure: {draw(args.output, results, title)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
