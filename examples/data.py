# SPDX-License-Identifier: Apache-2.0
"""Data sets that the examples read from files of this machine; nothing is downloaded here."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

FASHION_MNIST_VARIABLE = "LATH_FASHION_MNIST"
FASHION_MNIST_FOLDERS = (
    Path("/usr/share/datasets/fashion-mnist"),  # the Debian package dataset-fashion-mnist
    Path(__file__).resolve().parent.parent / "data" / "fashion-mnist",  # where `make demo` unpacks it without root
)
_MEAN, _DEVIATION = 0.2860, 0.3530  # of the pixels of the training images, scaled to [0, 1]


class DataError(RuntimeError):
    """A data set is missing or damaged; the message says where it was looked for and what to do."""


@dataclass(frozen=True)
class Split:
    """One half of a data set of images.

    Attributes:
        images: (count, 1, 28, 28) float32, standardized.
        labels: (count,) int64.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int) -> Split:
        """The first ``count`` images."""
        return Split(self.images[:count], self.labels[:count])


@dataclass(frozen=True)
class FashionMNIST:
    """60,000 training and 10,000 test images of clothes in 10 classes (Xiao, Rasul and Vollgraf 2017, MIT licence)."""

    train: Split
    test: Split


def fashion_mnist() -> FashionMNIST:
    """Read Fashion-MNIST from the first folder that has it.

    Looked up in this order: the folder that ``LATH_FASHION_MNIST`` names, the place of the Debian package, the folder
    of this checkout that ``make demo`` fills.

    Raises:
        DataError: no folder has it, the named one lacks it, or a file is damaged.
    """
    folder = find_fashion_mnist()
    return FashionMNIST(_split(folder, "train"), _split(folder, "t10k"))


def find_fashion_mnist() -> Path:
    """The folder with the four files of Fashion-MNIST; errors as for :func:`fashion_mnist`."""
    named = os.environ.get(FASHION_MNIST_VARIABLE)
    folders = (Path(named),) if named else FASHION_MNIST_FOLDERS
    for folder in folders:
        if _idx_file(folder, "train-images-idx3-ubyte").is_file():
            return folder
    if named:
        where = f"{FASHION_MNIST_VARIABLE}={named}"
        advice = f"Name the folder with its four files, or unset {FASHION_MNIST_VARIABLE} and run `make demo`, which"
    else:
        where = " or ".join(map(str, folders))
        advice = f"Set {FASHION_MNIST_VARIABLE} to the folder with its four files, or run `make demo`, which"
    raise DataError(
        f"Fashion-MNIST not found: no train-images-idx3-ubyte.gz in {where}. {advice} fetches the Debian package "
        "dataset-fashion-mnist."
    )


def read_idx(path: Path) -> Tensor:
    """The uint8 array in an idx file, compressed or not.

    The format: two zero bytes, 8 for unsigned bytes, the number of axes, their sizes as big-endian int32, the values.

    Raises:
        DataError: the file cannot be read, or is not what its header says.
    """
    try:
        data = (gzip.decompress if path.suffix == ".gz" else bytes)(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise DataError(f"{path} is not an idx file of bytes: it starts with {data[:4].hex() or 'nothing'}")
    header = 4 + 4 * data[3]
    sizes = [int.from_bytes(data[at : at + 4], "big") for at in range(4, header, 4)]
    if len(data) != header + math.prod(sizes):
        raise DataError(f"{path} is damaged: {len(data)} bytes, but sizes {sizes} need {header + math.prod(sizes)}")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=header).reshape(sizes)


def _idx_file(folder: Path, name: str) -> Path:
    plain = folder / name
    return plain if plain.is_file() else folder / f"{name}.gz"


def _split(folder: Path, name: str) -> Split:
    images = read_idx(_idx_file(folder, f"{name}-images-idx3-ubyte"))
    labels = read_idx(_idx_file(folder, f"{name}-labels-idx1-ubyte"))
    if images.dim() != 3 or labels.shape != images.shape[:1]:
        raise DataError(f"{folder}: {name} has images {tuple(images.shape)} and labels {tuple(labels.shape)}")
    return Split(images.unsqueeze(1).float().div_(255).sub_(_MEAN).div_(_DEVIATION), labels.long())
