# SPDX-License-Identifier: Apache-2.0
"""Images of 3 x 32 x 32 that the published networks learn from, read from files of this machine.

``cifar10`` and ``cifar100`` are the folders that torchvision unpacks. ``fashion-mnist`` is its 28 x 28 grey images with
a margin, three times over, so that networks of the published sizes take them; it is the data set to try things out on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from data import DataError, Split, fashion_mnist
from torch import Tensor
from torch.nn.functional import pad

SIZE, MARGIN = 32, 4
NORMALIZATION = {  # mean and deviation of each channel, as the reference has them
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.507, 0.487, 0.441), (0.267, 0.256, 0.276)),
}


@dataclass(frozen=True)
class Pictures:
    """Images (count, 3, 32, 32), standardized, and their classes."""

    train: Split
    test: Split
    classes: int


def cifar(name: str, folder: Path) -> Pictures:
    """CIFAR-10 or CIFAR-100, in the files that torchvision reads.

    Raises:
        DataError: torchvision is missing, or the folder lacks the files.
    """
    try:
        from torchvision import datasets
    except ImportError as error:
        raise DataError(f"{name} is read with torchvision, which is not installed: {error}") from error
    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    try:
        train, test = (kind(str(folder), train=training, download=False) for training in (True, False))
    except (RuntimeError, OSError) as error:
        raise DataError(f"no {name} in {folder}: {error}; --data names the folder above {kind.base_folder}") from error
    mean, deviation = (torch.tensor(values).reshape(3, 1, 1) for values in NORMALIZATION[name])

    def split(images) -> Split:
        pixels = torch.from_numpy(images.data).permute(0, 3, 1, 2).float() / 255
        return Split((pixels - mean) / deviation, torch.tensor(images.targets))

    return Pictures(split(train), split(test), len(train.classes))


def clothes() -> Pictures:
    """Fashion-MNIST as 3 x 32 x 32; errors as for ``data.fashion_mnist``."""
    data = fashion_mnist()

    def split(part: Split) -> Split:
        frame = (SIZE - part.images.shape[-1]) // 2
        background = float(part.images.min())
        images = pad(part.images, (frame,) * 4, value=background)
        return Split(images.expand(-1, 3, -1, -1), part.labels)  # three channels, held once

    return Pictures(split(data.train), split(data.test), 10)


def augmented(images: Tensor) -> Tensor:
    """Each image moved by up to four pixels in each direction, and turned over left to right or not."""
    count, _, height, width = images.shape
    wide = pad(images, (MARGIN,) * 4)
    tops, lefts = torch.randint(0, 2 * MARGIN + 1, (2, count)).tolist()
    crops = [wide[i, :, t : t + height, s : s + width] for i, (t, s) in enumerate(zip(tops, lefts, strict=True))]
    moved = torch.stack(crops)
    turned = torch.rand(count) < 0.5
    moved[turned] = moved[turned].flip(-1)
    return moved
