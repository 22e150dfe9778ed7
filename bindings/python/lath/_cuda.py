# SPDX-License-Identifier: Apache-2.0
"""The CUDA half of the operators: load it where it can serve, and know why where it cannot.

``liblath_cuda.so`` lies beside ``liblath_cpu.so``; ``LATH_CUDA_LIBRARY`` names another file, or none if it is empty. It
is loaded on every CUDA build of torch, with or without a GPU: that takes milliseconds, asks nothing of the driver, and
gives tracing the same operators everywhere. Whatever goes wrong is kept as a sentence and never stops the import.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch

LIBRARY_NAME = "liblath_cuda.so"
OPERATORS = (
    *("linear", "lowrank_linear", "lowrank_linear_forward", "lowrank_linear_backward"),
    *("oialr_linear", "oialr_linear_forward", "oialr_linear_backward"),
    *("frobenius_decay", "frobenius_decay_backward"),
    *("lowrank_lstm_forward", "lowrank_lstm_backward"),
)


@dataclass(frozen=True)
class Status:
    """Whether CUDA tensors are served.

    Attributes:
        path: of the library, if it is loaded.
        reason: why not, if it is not loaded.
    """

    path: Path | None
    reason: str

    @property
    def loaded(self) -> bool:
        return self.path is not None


status = Status(None, "lath is not imported yet")  # of this process, once lath is imported
_refusals: torch.library.Library | None = None


def library_path(cpu_library: Path) -> Path | None:
    """Where the library is expected, whether or not the file exists; None if it is switched off."""
    override = os.environ.get("LATH_CUDA_LIBRARY")
    if override is None:
        return cpu_library.with_name(LIBRARY_NAME)
    return Path(override).absolute() if override else None


def has_kernels() -> bool:
    """Whether the operators have kernels for CUDA tensors."""
    return all(torch._C._dispatch_has_kernel_for_dispatch_key(f"lath::{name}", "CUDA") for name in OPERATORS)


def start(cpu_library: Path) -> None:
    """Load the library, or see to it that its absence is explained. Never raises."""
    global status, _refusals
    status = load(cpu_library)
    _refusals = refuse(status)


def load(cpu_library: Path) -> Status:
    """Load the library beside that of the CPU, which is loaded already. Loading twice is harmless."""
    if torch.version.cuda is None:
        return Status(None, f"torch {torch.__version__} is built without CUDA")
    path = library_path(cpu_library)
    if path is None:
        return Status(None, "LATH_CUDA_LIBRARY is empty, which switches it off")
    if not path.is_file():
        return Status(None, f"{path} does not exist: this lath was built without nvcc")
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return Status(None, f"cannot load {path} into torch {torch.__version__}: {error}")
    if not has_kernels():
        return Status(None, f"{path} was loaded into torch {torch.__version__}, but it registered no kernels")
    return Status(path, "")


def refuse(status: Status) -> torch.library.Library | None:
    """Kernels that say why there are none; for a CUDA build of torch, which otherwise lists every backend it knows."""
    if status.loaded or torch.version.cuda is None:
        return None
    library = torch.library.Library("lath", "IMPL")
    for name in OPERATORS:
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"lath::{name}", "CUDA"):
            library.impl(name, functools.partial(_refuse, name, status.reason), "CUDA")
    return library


def _refuse(name: str, reason: str, *args, **kwargs):
    raise RuntimeError(f"lath::{name}: got CUDA tensors, but the CUDA side of lath is off: {reason}")


# ---- which GPUs ----------------------------------------------------------------------------------------------------


def targets(path: Path) -> str:
    """What the library at ``path`` holds code for: "sm_80, sm_90 and PTX of compute_90"."""
    function = ctypes.CDLL(str(path)).lath_cuda_targets
    function.restype = ctypes.c_char_p
    return function().decode()


def serves(held: str, capability: tuple[int, int]) -> bool:
    """Whether code for ``held`` runs on a GPU of this compute capability.

    Machine code runs within its major version, from its own minor version on; PTX on everything that is not older.
    """
    machine = [divmod(int(number), 10) for number in re.findall(r"sm_(\d+)", held)]
    portable = [divmod(int(number), 10) for number in re.findall(r"compute_(\d+)", held)]
    return any(c[0] == capability[0] and c[1] <= capability[1] for c in machine) or any(
        c <= capability for c in portable
    )


def describe(status: Status) -> str:
    """One sentence: "on" with the GPUs that are served, or "off" and why."""
    if not status.loaded:
        return f"off: {status.reason}"
    held = targets(status.path)
    if not torch.cuda.is_available():
        return f"off: torch sees no device ({status.path} is loaded, with code for {held})"
    devices = [_describe_device(index, held) for index in range(torch.cuda.device_count())]
    served = any(ok for ok, _ in devices)
    texts = "; ".join(text for _, text in devices)
    return f"{'on' if served else 'off'}: {texts} ({status.path}, with code for {held})"


def _describe_device(index: int, held: str) -> tuple[bool, str]:
    try:
        capability, name = torch.cuda.get_device_capability(index), torch.cuda.get_device_name(index)
    except (RuntimeError, AssertionError) as error:  # a driver that is too old, a device in use by somebody else
        return False, f"cuda:{index} cannot be used: {str(error).splitlines()[0]}"
    text = f"cuda:{index} is {name} with compute capability {capability[0]}.{capability[1]}"
    ok = serves(held, capability)
    return ok, text if ok else f"{text}, for which the library holds no code"
