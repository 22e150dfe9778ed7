# SPDX-License-Identifier: Apache-2.0
"""Take a trained ResNet-18 through everything: convert, report, fine-tune, restore, save, export.

    python examples/lowrank/resnet18_finetune.py            # a few minutes on two cores
    python examples/lowrank/resnet18_finetune.py --quick    # under one

The network is torchvision's, for Fashion-MNIST: three equal channels, and a first convolution of 3 x 3 without stride,
because the images are small. Its weights are not downloaded: it is trained here first, briefly.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import resnet18
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data import DataError, Split, fashion_mnist  # isort: skip
import lath
from lowrank.networks import as_call
from training import CHANNELS_LAST, CONTIGUOUS, accuracy, adam, step

CLASSES = 10
STAYS_DENSE = ["conv1", "fc", "*.downsample.*"]  # few channels in, few classes out, shortcuts: as is usual


def network() -> nn.Module:
    model = resnet18(num_classes=CLASSES)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    return model.to(memory_format=CHANNELS_LAST)


def in_colour(split: Split) -> Split:
    """The images with three equal channels, as a view."""
    return Split(split.images.expand(-1, 3, -1, -1), split.labels)


def train(model: nn.Module, split: Split, steps: int, batch: int, rate: float, what: str) -> float:
    """Train on random batches, with a learning rate that falls linearly. Returns median seconds of a step."""
    optimizer = adam(model, rate)  # made after convert: the parameters are new
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, total_iters=steps)
    taken = []
    with tqdm(range(steps), desc=what, unit="step", disable=None) as bar:
        for _ in bar:
            chosen = torch.randint(len(split), (batch,))
            images, labels = split.images[chosen].to(memory_format=CHANNELS_LAST), split.labels[chosen]
            start = time.perf_counter()
            loss = step(model, optimizer, images, labels)
            taken.append(time.perf_counter() - start)
            schedule.step()
            bar.set_postfix(loss=f"{loss.item():.3f}")
    return statistics.median(taken)


def export(model: nn.Module, images: Tensor, folder: Path) -> tuple[Path, Path]:
    """Write the weights, and the program that torch.export makes of the network for any batch size."""
    folder.mkdir(parents=True, exist_ok=True)
    weights, program = folder / "resnet18_weights.pt", folder / "resnet18.pt2"
    torch.save(model.state_dict(), weights)
    plain = copy.deepcopy(model).to(memory_format=CONTIGUOUS)  # torch warns of weights in another layout, without need
    exported = torch.export.export(plain, (images.contiguous(),), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    torch.export.save(exported, program)
    return weights, program


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few steps and few test images")
    parser.add_argument("--steps", type=int, help="of the training, dense and low-rank (300; quick: 40)")
    parser.add_argument("--batch", type=int, default=64, help="images in a step (64)")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate of Adam at the start (1e-3)")
    parser.add_argument("--ratio", type=float, default=0.2, help="rank as a share of the layer's size (0.2)")
    parser.add_argument("--form", choices=("separable", "pointwise"), default="separable", help="of the convolutions")
    parser.add_argument("--output", type=Path, default=Path("build/resnet18"), help="folder (build/resnet18)")
    args = parser.parse_args(argv)
    args.steps = args.steps or (40 if args.quick else 300)
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    try:
        data = fashion_mnist()
    except DataError as error:
        print(f"resnet18_finetune: {error}", file=sys.stderr)
        return 1
    training, test = in_colour(data.train), in_colour(data.test.first(1000 if args.quick else 4000))
    torch.manual_seed(0)
    model = network()

    def tested() -> str:
        return f"{accuracy(model, test, CHANNELS_LAST):.1%} of {len(test):,} test images right"

    print(f"1. Train the dense network, {args.steps} steps of {args.batch} images.")
    dense_seconds = train(model, training, args.steps, args.batch, args.rate, "dense")
    print(f"   {tested()}; a step takes {1e3 * dense_seconds:.0f} ms\n")

    spec = lath.LowRank(ratio=args.ratio, conv=args.form)
    print(f"2. lath.convert(model, {as_call(spec)}, exclude={STAYS_DENSE})")
    lath.convert(model, spec, exclude=STAYS_DENSE)
    print(lath.report(model, test.images[: args.batch].to(memory_format=CHANNELS_LAST)))
    print(f"   right after it, before any training: {tested()}\n")

    print(f"3. Fine-tune, {args.steps} steps.")
    seconds = train(model, training, args.steps, args.batch, args.rate, "low-rank")
    print(f"   {tested()}; a step takes {1e3 * seconds:.0f} ms, {dense_seconds / seconds:.2f}x as fast as dense\n")

    print("4. lath.restore: plain nn.Conv2d again, for whoever does not have lath.")
    model.eval()
    restored = copy.deepcopy(model)
    count = len(lath.restore(restored))
    images = test.images[:8].to(memory_format=CHANNELS_LAST)
    with torch.inference_mode():
        logits = model(images)
        print(f"   {count} layers; logits differ by {(restored(images) - logits).abs().max():.1e}\n")

    print("5. Save and export the low-rank network.")
    weights, program = export(model, images, args.output)
    loaded = network().eval()
    lath.convert(loaded, lath.LowRank(ratio=args.ratio, conv=args.form, init="fresh"), exclude=STAYS_DENSE)
    loaded.load_state_dict(torch.load(weights))
    ran = torch.export.load(program).module()
    with torch.inference_mode():
        print(f"   {weights}: logits after loading differ by {(loaded(images) - logits).abs().max():.1e}")
        print(f"   {program}: logits of one image differ by {(ran(images[:1]) - logits[:1]).abs().max():.1e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
