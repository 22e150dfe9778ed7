# SPDX-License-Identifier: Apache-2.0
"""Compiles every CUDA kernel and holds it to what cuda/budget.txt says of it; needs nvcc, not a GPU.

    python3 tools/cuda_budget.py            compares
    python3 tools/cuda_budget.py --write    rewrites the table

A stack frame, a spill, a kernel of which no block fits and a table that changed are errors. The table has, for each
kernel and architecture, registers and blocks of a multiprocessor, and the instructions that the kernel was written for,
so that a change of any of them is seen and looked at. It was made by one version of nvcc: under another one, only the
hard rules hold, and an instruction that is in the table must still occur.

Each file is compiled to PTX once, for the oldest architecture, and that is assembled for all of them. What is known of
a file is kept under build/cuda-budget until something that it may include changes.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "cuda" / "budget.txt"
CACHE = ROOT / "build" / "cuda-budget"
NVCC_FLAGS = ["-std=c++17", "-O3", f"-I{ROOT / 'ops'}", f"-I{ROOT / 'cuda'}"]

MAX_THREADS = 1024
WARP = 32
PARTITIONS = 4  # of a multiprocessor, with a quarter of its registers and warps each
REGISTERS = 65536
REGISTER_UNIT = 256  # registers are given to a warp in units of this
SHARED_UNIT = 128
SHARED_RESERVED = 1024  # bytes of each block that the system takes

# What to look for in the PTX of a kernel: the instructions that make it fast.
INSTRUCTIONS = {
    "mma.sync": r"\bmma\.sync\.",
    "ldmatrix": r"\bldmatrix\.",
    "cp.async": r"\bcp\.async\.c[ag]\.",
    "16-byte loads": r"\bld\.global[.\w:]*\.(?:v4\.[bfsu]32|v2\.[bfsu]64|b128)\b",
}


class BudgetError(RuntimeError):
    """A kernel breaks a rule, or its launch is not described; the message names it."""


@dataclass(frozen=True)
class Device:
    """Limits of a multiprocessor: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"."""

    threads: int
    blocks: int
    shared: int  # bytes
    block_shared: int  # bytes, with cudaFuncSetAttribute


DEVICES = {
    "sm_80": Device(2048, 32, 164 << 10, 163 << 10),
    "sm_90": Device(2048, 32, 228 << 10, 227 << 10),
    "sm_100": Device(2048, 32, 228 << 10, 227 << 10),
}


@dataclass(frozen=True)
class Launch:
    """How the host launches a kernel.

    Attributes:
        threads: in a block.
        shared: bytes of dynamic shared memory by template argument; the key None is for all others. The bytes are None
            where the host computes them.
    """

    threads: int
    shared: dict[str | None, int | None]

    def shared_bytes(self, arguments: list[str]) -> int | None:
        for argument in arguments:
            if argument in self.shared:
                return self.shared[argument]
        if None not in self.shared:
            raise BudgetError(f"no shared memory is given for the template arguments {', '.join(arguments)}")
        return self.shared[None]


@dataclass(frozen=True)
class Usage:
    """What ptxas says of one kernel on one architecture; bytes."""

    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int


def parse_launches(source: str) -> dict[str, Launch]:
    """The launches that a .cu file declares.

    /* launch: NAME threads=N shared=BYTES */
    /* launch: NAME threads=N shared=BYTES,BYTES for PARAMETER VALUE,VALUE */
    /* launch: NAME threads=N shared=dynamic (FUNCTION) */

    The second form is for templates whose argument PARAMETER decides how much dynamic shared memory the host asks for;
    with the third, FUNCTION computes it, and the blocks that fit are counted without it.
    """
    launches = {}
    pattern = r"/\* launch: (\w+) threads=(\d+) shared=(?:([\d,]+)(?: for \w+ ([\w,]+))?|dynamic \(\w+\)) \*/"
    for name, threads, shared, values in re.findall(pattern, source):
        amounts = [int(amount) for amount in shared.split(",")] if shared else [None]
        keys = values.split(",") if values else [None]
        if len(keys) != len(amounts) or name in launches:
            raise BudgetError(
                f"launch of {name}: {len(amounts)} amounts of shared memory for {len(keys)} values, or a second launch"
            )
        launches[name] = Launch(int(threads), dict(zip(keys, amounts, strict=True)))
    if len(launches) != source.count("/* launch:"):
        raise BudgetError("a launch comment that cannot be read")
    return launches


def parse_ptxas(log: str) -> dict[str, Usage]:
    """Usage by symbol, from what `ptxas -v` prints."""
    usages = {}
    for entry in log.split("Compiling entry function '")[1:]:
        symbol = entry[: entry.index("'")]
        sizes = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", entry)
        registers = re.search(r"Used (\d+) registers", entry)
        shared = re.search(r"(\d+) bytes smem", entry)
        if not sizes or not registers:
            raise BudgetError(f"ptxas says nothing of {symbol}")
        usages[symbol] = Usage(
            int(registers[1]), *(int(size) for size in sizes.groups()), int(shared[1]) if shared else 0
        )
    return usages


def count_instructions(ptx: str) -> dict[str, dict[str, int]]:
    """How often each of INSTRUCTIONS stands in each kernel of a PTX file, by symbol."""
    counts = {}
    for body in re.split(r"\.entry\s+", ptx)[1:]:
        symbol = re.match(r"[\w$]+", body)[0]
        counts[symbol] = {name: len(re.findall(pattern, body)) for name, pattern in INSTRUCTIONS.items()}
    return counts


def split_name(signature: str) -> tuple[str, list[str]]:
    """Name and template arguments of a kernel: "void k<64, false>(int)" gives ("k", ["64", "false"])."""
    name = re.match(r"(?:void )?(?:\(anonymous namespace\)::)?(\w+)", signature)[1]
    rest = signature[signature.index(name) + len(name) :]
    if not rest.startswith("<"):
        return name, []
    depth, arguments, start = 0, [], 1
    for i, letter in enumerate(rest):
        depth += {"<": 1, "(": 1, ">": -1, ")": -1}.get(letter, 0)
        if (letter == "," and depth == 1) or depth == 0:
            arguments.append(re.sub(r"^\((\w+)\)", "", rest[start:i].strip()))
            start = i + 1
        if depth == 0:
            break
    return name, arguments


def blocks_that_fit(device: Device, usage: Usage, threads: int, dynamic: int) -> int:
    """Blocks of one kernel that a multiprocessor holds at a time; 0: it cannot be launched."""
    if threads > MAX_THREADS or usage.shared + dynamic > device.block_shared:
        return 0
    warps = -(-threads // WARP)
    warp_registers = -(-usage.registers * WARP // REGISTER_UNIT) * REGISTER_UNIT
    register_warps = (
        REGISTERS // PARTITIONS // warp_registers * PARTITIONS if warp_registers else device.threads // WARP
    )
    shared = -(-(usage.shared + dynamic + SHARED_RESERVED) // SHARED_UNIT) * SHARED_UNIT
    return min(device.blocks, device.threads // WARP // warps, register_warps // warps, device.shared // shared)


@dataclass
class Kernel:
    """One kernel: an instance, if it is a template."""

    title: str
    launch_threads: int
    dynamic: int | None
    counts: dict[str, int]
    usages: dict[str, Usage]

    def blocks(self, arch: str) -> int:
        return blocks_that_fit(DEVICES[arch], self.usages[arch], self.launch_threads, self.dynamic or 0)

    def lines(self) -> list[str]:
        found = (
            ", ".join(f"{count} {name}" for name, count in self.counts.items() if count) or "none of the instructions"
        )
        dynamic = "dynamic shared memory" if self.dynamic is None else f"{self.dynamic} bytes of dynamic shared memory"
        lines = [f"{self.title}: {self.launch_threads} threads, {dynamic}, {found}"]
        for arch, usage in self.usages.items():
            blocks = self.blocks(arch)
            most = "at most " if self.dynamic is None else ""
            share = blocks * self.launch_threads * 100 // DEVICES[arch].threads
            lines.append(
                f"  {arch:6} {usage.registers:3} registers, {usage.shared:5} bytes of shared memory,"
                f" {most}{blocks} blocks = {share} % of the threads"
            )
        return lines

    def faults(self) -> list[str]:
        faults = []
        for arch, usage in self.usages.items():
            if usage.stack or usage.spill_stores or usage.spill_loads:
                faults.append(
                    f"{self.title}, {arch}: {usage.stack} bytes of stack, {usage.spill_stores} of spill stores, "
                    f"{usage.spill_loads} of spill loads; none is allowed"
                )
            if self.blocks(arch) == 0:
                faults.append(
                    f"{self.title}, {arch}: no block fits ({self.launch_threads} threads, {usage.registers} registers, "
                    f"{usage.shared} + {self.dynamic or 0} bytes of shared memory)"
                )
        return faults


def describe(file: str, launches: dict[str, Launch], compiled: dict) -> list[Kernel]:
    """The kernels of a file, in the order of their titles."""
    kernels = []
    for symbol, signature in compiled["signatures"].items():
        name, arguments = split_name(signature)
        if name not in launches:
            raise BudgetError(f"{file}: kernel {name} has no launch comment (cuda/README.md)")
        launch = launches[name]
        title = f"{file}: {name}" + (f"<{', '.join(arguments)}>" if arguments else "")
        usages = {arch: Usage(**usage[symbol]) for arch, usage in compiled["usages"].items()}
        kernels.append(
            Kernel(title, launch.threads, launch.shared_bytes(arguments), compiled["counts"][symbol], usages)
        )
    unused = set(launches) - {split_name(signature)[0] for signature in compiled["signatures"].values()}
    if unused:
        raise BudgetError(f"{file}: launch comments of {', '.join(sorted(unused))}, but no such kernel")
    return sorted(kernels, key=lambda kernel: kernel.title)


# ---- the compiler --------------------------------------------------------------------------------------------------


def find_nvcc() -> Path | None:
    folders = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)] + ["/usr/local/cuda"]
    found = shutil.which(
        "nvcc", path=os.pathsep.join([os.environ.get("PATH", "")] + [f"{folder}/bin" for folder in folders])
    )
    return Path(found).resolve() if found else None


def run(command: list[str | Path]) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        raise BudgetError(f"{' '.join(str(part) for part in command)}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def demangle(symbols: list[str]) -> dict[str, str]:
    if not symbols:
        return {}
    done = subprocess.run(["c++filt"], input="\n".join(symbols) + "\n", capture_output=True, text=True, check=True)
    return dict(zip(symbols, done.stdout.splitlines(), strict=True))


def compile_kernels(nvcc: Path, source: Path, archs: list[str]) -> dict:
    """Signatures, instruction counts and usages of a file, as what JSON can hold."""
    CACHE.mkdir(parents=True, exist_ok=True)
    ptx_file = CACHE / f"{source.parent.name}-{source.stem}.ptx"
    run([nvcc, *NVCC_FLAGS, f"-arch=compute_{archs[0].removeprefix('sm_')}", "-ptx", source, "-o", ptx_file])
    ptx = ptx_file.read_text()
    counts = count_instructions(ptx)
    usages = {}
    for arch in archs if counts else []:
        log = run([nvcc.parent / "ptxas", "-v", "-O3", f"-arch={arch}", ptx_file, "-o", os.devnull])
        usages[arch] = {symbol: asdict(usage) for symbol, usage in parse_ptxas(log).items()}
    return {"signatures": demangle(list(counts)), "counts": counts, "usages": usages}


def cached(nvcc: Path, version: str, source: Path, archs: list[str]) -> dict:
    """compile_kernels, unless the same sources have been compiled by the same compiler."""
    headers = sorted([*(ROOT / "cuda").rglob("*.h"), *(ROOT / "ops").rglob("*.h")])
    state = hashlib.sha256(f"{version} {NVCC_FLAGS} {archs} {Path(__file__).read_text()}".encode())
    for file in [source, *headers]:
        state.update(file.read_bytes())
    record = CACHE / f"{source.parent.name}-{source.stem}.json"
    if record.is_file():
        known = json.loads(record.read_text())
        if known["state"] == state.hexdigest():
            return known["compiled"]
    compiled = compile_kernels(nvcc, source, archs)
    record.write_text(json.dumps({"state": state.hexdigest(), "compiled": compiled}))
    return compiled


def survey(nvcc: Path, version: str) -> list[Kernel]:
    known = run([nvcc, "--list-gpu-code"]).split()
    archs = [arch for arch in DEVICES if arch in known]
    sources = sorted((ROOT / "cuda").rglob("*.cu"))
    with ThreadPoolExecutor(int(os.environ.get("JOBS") or os.cpu_count() or 1)) as pool:
        results = list(pool.map(lambda source: cached(nvcc, version, source, archs), sources))
    kernels = []
    for source, compiled in zip(sources, results, strict=True):
        kernels += describe(str(source.relative_to(ROOT)), parse_launches(source.read_text()), compiled)
    return kernels


# ---- the table -----------------------------------------------------------------------------------------------------


def table(version: str, kernels: list[Kernel]) -> str:
    head = [
        "# What nvcc makes of each kernel. Written by `make cuda-budget`, compared by `make test`; cuda/README.md.",
        f"# {version}",
    ]
    return "\n".join(head + [line for kernel in kernels for line in ["", *kernel.lines()]]) + "\n"


def lost_instructions(old: str, kernels: list[Kernel]) -> list[str]:
    """Kernels that, by the table, had an instruction which they have no more."""
    lost = []
    for kernel in kernels:
        before = next((line for line in old.splitlines() if line.startswith(f"{kernel.title}: ")), "")
        lost += [
            f"{kernel.title}: no {name} any more"
            for name, count in kernel.counts.items()
            if not count and f" {name}" in before
        ]
    return lost


def compare(old: str, new: str, version: str, kernels: list[Kernel]) -> list[str]:
    """What is wrong with the checked-in table."""
    if f"# {version}" not in old.splitlines():
        print(f"cuda/budget.txt is of another compiler than {version}: registers and occupancy are not compared")
        return lost_instructions(old, kernels)
    difference = list(
        difflib.unified_diff(old.splitlines(), new.splitlines(), "cuda/budget.txt", "compiled now", lineterm="", n=1)
    )
    return ["\n".join([*difference, "if this is as it should be: make cuda-budget"])] if difference else []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="rewrite cuda/budget.txt")
    options = parser.parse_args()
    nvcc = find_nvcc()
    if nvcc is None:
        print("nvcc not found: the CUDA kernels are not compiled, cuda/budget.txt is not compared")
        return 1 if options.write else 0
    version = "nvcc " + re.search(r"V([\d.]+)", run([nvcc, "--version"]))[1]
    try:
        kernels = survey(nvcc, version)
        new = table(version, kernels)
        faults = [fault for kernel in kernels for fault in kernel.faults()]
        if options.write:
            TABLE.write_text(new)
        else:
            faults += compare(TABLE.read_text() if TABLE.is_file() else "", new, version, kernels)
    except BudgetError as error:
        faults = [str(error)]
    for fault in faults:
        print(fault, file=sys.stderr)
    if not faults:
        print(
            f"{len(kernels)} CUDA kernels on {len(DEVICES)} architectures: no stack, no spills, as in cuda/budget.txt"
        )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
