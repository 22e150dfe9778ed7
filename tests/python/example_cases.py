# SPDX-License-Identifier: Apache-2.0
"""What tests of the examples share: their modules for a while, and a small stand-in for a data set."""

from __future__ import annotations

import gzip
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
_FAMILIES = ("lowrank", "oialr")


@contextmanager
def examples(monkeypatch, *folders: str) -> Iterator[None]:
    """The examples can be imported, those in ``folders`` by their short names; none stays behind for other tests.

    With one thread: several for so little work only get into each other's way.
    """
    for folder in ("", *folders):
        monkeypatch.syspath_prepend(str(EXAMPLES / folder))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(EXAMPLES)) or name in _FAMILIES:
            del sys.modules[name]


def write_idx(path: Path, values: torch.Tensor) -> None:
    header = struct.pack(f">HBB{values.dim()}I", 0, 8, values.dim(), *values.shape)
    path.write_bytes(gzip.compress(header + bytes(values.flatten().tolist())))


def write_clothes(folder: Path) -> None:
    """As Fashion-MNIST: 48 training and 16 test images whose class is the row of their only bright line."""
    for name, count in (("train", 48), ("t10k", 16)):
        labels = torch.arange(count) % 10
        images = torch.zeros(count, 28, 28, dtype=torch.uint8)
        images[torch.arange(count), 2 * labels] = 255
        write_idx(folder / f"{name}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{name}-labels-idx1-ubyte.gz", labels.to(torch.uint8))
