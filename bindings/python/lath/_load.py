# SPDX-License-Identifier: Apache-2.0
"""Find the operator library and load it into torch.

``LATH_LIBRARY`` names the file; without it the library lies beside this module, where the wheel puts it.
"""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path

LIBRARY_NAME = "liblath_cpu.so"
MINIMUM_TORCH = (2, 10)
ISA_NAMES = ("generic", "avx2", "avx512")  # enum lath_isa


def check_torch(version: str) -> None:
    """Raise ImportError if ``version`` (the text of ``torch.__version__``) is below the oldest supported release."""
    found = re.match(r"(\d+)\.(\d+)", version)
    if found and tuple(map(int, found.groups())) >= MINIMUM_TORCH:
        return
    wanted = ".".join(map(str, MINIMUM_TORCH))
    raise ImportError(f"lath needs torch >= {wanted}, but torch {version} is installed: pip install 'torch>={wanted}'")


def library_path() -> Path:
    """Where the library is expected, whether or not the file exists."""
    override = os.environ.get("LATH_LIBRARY")
    return Path(override).absolute() if override else Path(__file__).with_name(LIBRARY_NAME)


def check_isa() -> None:
    """Warn about a wish in LATH_ISA that the library does not know and therefore ignores."""
    wish = os.environ.get("LATH_ISA")
    if wish is not None and wish not in ISA_NAMES:
        warnings.warn(f"lath: LATH_ISA is {wish!r}, expected one of {ISA_NAMES}; it is ignored", stacklevel=2)


def load() -> Path:
    """Load the operators into ``torch.ops.lath`` and return the path of the library. Loading twice is harmless.

    Raises:
        ImportError: torch is missing or too old, the file is missing, or the dynamic linker refuses it.
    """
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise  # torch is there, but one of its own dependencies is not
        raise ImportError("lath needs torch >= 2.10, but torch is not installed: pip install torch") from error
    check_torch(torch.__version__)
    check_isa()

    path = library_path()
    if not path.is_file():
        hint = (
            "LATH_LIBRARY points there"
            if os.environ.get("LATH_LIBRARY")
            else "reinstall lath, or build it with `make build`"
        )
        raise ImportError(f"lath: the operator library {path} does not exist ({hint})")
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        raise ImportError(f"lath: cannot load {path} into torch {torch.__version__}: {error}") from error
    if not hasattr(torch.ops.lath, "lowrank_linear"):
        raise ImportError(
            f"lath: {path} was loaded into torch {torch.__version__}, but it registered no lath operators"
        )
    return path
