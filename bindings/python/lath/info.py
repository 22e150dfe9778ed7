# SPDX-License-Identifier: Apache-2.0
"""What is installed and what this machine gives: the text to put into a bug report."""

from __future__ import annotations

import platform
from dataclasses import dataclass

import torch

from . import LIBRARY, _cuda, ops
from ._version import __version__


@dataclass(frozen=True)
class Info:
    """Versions and settings in force; ``print`` it for a readable form."""

    lath: str
    torch: str
    python: str
    platform: str
    library: str
    isa: str
    threads: int
    cuda: str

    def __str__(self) -> str:
        lines = [f"{name + ':':10} {value}" for name, value in vars(self).items()]
        lines += [
            "",
            "To report a bug, open an issue with this text, the full error message, and the shortest script that shows",
            "it. If results differ from those of torch, say whether LATH_ISA=generic changes them.",
        ]
        return "\n".join(lines)


def info() -> Info:
    """Versions, path of the library, instruction set and threads in use, and which GPUs are served or why none is."""
    return Info(
        lath=__version__,
        torch=torch.__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        library=str(LIBRARY),
        isa=ops.cpu_isa(),
        threads=torch.get_num_threads(),
        cuda=_cuda.describe(_cuda.status),
    )
