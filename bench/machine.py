# SPDX-License-Identifier: Apache-2.0
"""The machine under the benchmark: what it is, and what one of its cores can do at most.

The limits come from ``limits.c``, compiled by the C compiler of the system into a temporary folder. Without a compiler
they are what torch reaches, which is less than what the core can do; :attr:`Machine.method` says which it was.
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import lath
import torch

SOURCE = Path(__file__).with_name("limits.c")
LEVELS = ("L2", "L3", "DRAM")
MIB = 1 << 20


@dataclass(frozen=True)
class Machine:
    """Identity and measured limits; rates are of one core.

    Attributes:
        cpu, vendor: names that the processor gives itself.
        cores: that this process may use.
        memory: bytes.
        caches: bytes of L2 and L3 as the operating system reports them.
        torch: version.
        blas: what torch's dense products run on.
        torch_isa: what torch dispatches its own kernels to.
        lath: version.
        isa: what lath's kernels use.
        load: average number of running processes over the minute before the start.
        peak: instruction set to GFLOP/s of fp32 multiply-adds.
        read, write: level of the memory hierarchy to GB/s.
        method: how the limits were measured.
    """

    cpu: str
    vendor: str
    cores: int
    memory: int
    caches: dict[str, int]
    torch: str
    blas: str
    torch_isa: str
    lath: str
    isa: str
    load: float
    peak: dict[str, float]
    read: dict[str, float]
    write: dict[str, float]
    method: str

    @property
    def short_name(self) -> str:
        """The name of the processor, fit for a file name."""
        name = re.sub(r"\((r|tm|c)\)|@.*|\bcpu\b|\bprocessor\b|\b\d+-core\b", " ", self.cpu.lower())
        return re.sub(r"[^a-z0-9]+", "-", name).strip("-") or "cpu"

    @property
    def isa_peak(self) -> float:
        """GFLOP/s that lath's kernels could reach on one core."""
        return self.peak.get(self.isa, max(self.peak.values()))

    def level(self, footprint: float) -> str:
        """Where data stays that comes round again after ``footprint`` bytes."""
        for name in ("L2", "L3"):
            if footprint <= self.caches[name]:
                return name
        return "DRAM"

    def read_seconds(self, size: float, footprint: float) -> float:
        """Least time to read ``size`` bytes that come round again after ``footprint`` bytes."""
        return size / (1e9 * self.read[self.level(footprint)])

    def write_seconds(self, size: float, footprint: float) -> float:
        """Least time to write ``size`` bytes, ``footprint`` as for reading."""
        return size / (1e9 * self.write[self.level(footprint)])

    def lines(self) -> list[str]:
        """The description that stands above the tables."""
        peaks = ", ".join(f"{name} {value:.0f}" for name, value in self.peak.items())
        rates = ", ".join(f"{level} {self.read[level]:.0f} / {self.write[level]:.0f}" for level in LEVELS)
        sizes = ", ".join(f"{level} {size / MIB:g} MiB" for level, size in self.caches.items())
        return [
            f"processor    {self.cpu}, {self.cores} cores in use, {sizes}, memory {self.memory / (1 << 30):.0f} GiB",
            f"software     torch {self.torch} ({self.torch_isa}; {self.blas}), lath {self.lath} ({self.isa})",
            f"one core     multiply-adds, GFLOP/s: {peaks}; reading / writing, GB/s: {rates}",
            f"measured by  {self.method}; load average at the start {self.load:.2f}",
        ]

    def remarks(self) -> list[str]:
        """What a reader of the figures has to know about this machine."""
        remarks = []
        if self.vendor == "AuthenticAMD" and self.isa == "avx512":
            remarks.append(
                "MKL, torch's BLAS, takes its AVX2 kernels on AMD processors, while lath uses AVX-512. Shares and "
                "ratios against torch then flatter lath: go by share/own, the share against lath's own dense product."
            )
        if self.load > 0.5:
            remarks.append(
                f"The load average was {self.load:.2f} at the start. Other processes take cache, bandwidth and clock "
                "rate even from CPU-time measurements, and two-thread figures are worth little."
            )
        return remarks


def describe(seconds: float) -> Machine:
    """This machine, each limit measured for about ``seconds``."""
    load = os.getloadavg()[0]
    caches = {"L2": _cache_bytes(2) or MIB, "L3": _cache_bytes(3) or 32 * MIB}
    peak, read, write, method = _measure(caches, seconds)
    return Machine(
        cpu=_processor("model name") or platform.processor() or platform.machine(),
        vendor=_processor("vendor_id"),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        caches=caches,
        torch=torch.__version__,
        blas=_blas(),
        torch_isa=torch.backends.cpu.get_cpu_capability(),
        lath=lath.__version__,
        isa=lath.ops.cpu_isa(),
        load=load,
        peak=peak,
        read=read,
        write=write,
        method=method,
    )


def _processor(field: str) -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
    found = re.search(rf"^{field}\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else ""


def _cache_bytes(level: int) -> int:
    """Size of the data cache of this level, of the first core; 0 if the system does not say."""
    for folder in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            found, kind, size = ((folder / name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        if found == str(level) and kind != "Instruction":
            return int(size[:-1]) * {"K": 1 << 10, "M": MIB}[size[-1]]
    return 0


def _blas() -> str:
    config = torch.__config__.show()
    versions = [r"Math Kernel Library Version (\S+)", r"(?:oneDNN|MKL-DNN) v(\S+)"]
    mkl, onednn = (found.group(1) if (found := re.search(v, config)) else None for v in versions)
    name = found.group(1) if (found := re.search(r"BLAS_INFO=(\w+)", config)) else "unknown BLAS"
    parts = [f"MKL {mkl}" if mkl else name, f"oneDNN {onednn}" if onednn else None]
    return ", ".join(part for part in parts if part)


def _measure(caches: dict[str, int], seconds: float) -> tuple[dict, dict, dict, str]:
    """Peaks, read rates, write rates, and how they were measured."""
    # Half a cache leaves room for what else lives there; the largest is beyond every cache, but within reason.
    sizes = {
        "L2": caches["L2"] // 2,
        "L3": max(2 * caches["L2"], caches["L3"] // 2),
        "DRAM": min(max(4 * caches["L3"], 256 * MIB), 1024 * MIB),
    }
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    if compiler:
        with tempfile.TemporaryDirectory() as folder:
            library = Path(folder) / "limits.so"
            command = [compiler, "-O2", "-ffp-contract=fast", "-shared", "-fPIC", str(SOURCE), "-o", str(library)]
            if subprocess.run(command, capture_output=True).returncode == 0:
                return (*_measure_compiled(library, sizes, seconds), f"limits.c, {Path(compiler).name}")
    return (*_measure_torch(sizes, seconds), "torch (no C compiler): the core can do more")


def _measure_compiled(library: Path, sizes: dict[str, int], seconds: float) -> tuple[dict, dict, dict]:
    limits = ctypes.CDLL(str(library))
    limits.limits_multiply_add.restype = limits.limits_bandwidth.restype = ctypes.c_double
    limits.limits_multiply_add.argtypes = [ctypes.c_int, ctypes.c_double]
    limits.limits_bandwidth.argtypes = [ctypes.c_int, ctypes.c_size_t, ctypes.c_int, ctypes.c_double]
    best = limits.limits_best_isa()
    peak = {name: limits.limits_multiply_add(isa, seconds) for isa, name in enumerate(lath.ops.ISA_NAMES[: best + 1])}
    rates = [
        {level: limits.limits_bandwidth(best, size, writing, seconds) for level, size in sizes.items()}
        for writing in (0, 1)
    ]
    return peak, rates[0], rates[1]


def _measure_torch(sizes: dict[str, int], seconds: float) -> tuple[dict, dict, dict]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    a = torch.ones(1024, 1024)
    peak = {lath.ops.cpu_isa(): 2e-9 * 1024**3 / _fastest(lambda: a @ a, seconds)}
    read, write = {}, {}
    for level, size in sizes.items():
        buffer = torch.zeros(math.ceil(size / 4))
        read[level] = 1e-9 * size / _fastest(buffer.sum, seconds)
        write[level] = 1e-9 * size / _fastest(lambda buffer=buffer: buffer.fill_(1.0), seconds)
    torch.set_num_threads(threads)
    return peak, read, write


def _fastest(call: Callable[[], object], seconds: float) -> float:
    call()
    taken = []
    while sum(taken) < seconds:
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return min(taken)
