# SPDX-License-Identifier: Apache-2.0
"""Benchmark of low-rank linear layers on a GPU, against the dense layer and against two ``nn.Linear``.

    python bench/gpu.py [--seconds N] [--out FOLDER] [--rehearse]

Every case is timed twice: eager calls of one layer, and replays of a CUDA graph that goes round among layers whose
weights exceed the cache together, as a network does. Rates are held against limits that are measured at the start: the
largest product of the library in each type, and a copy. Results are written while they come: a run that is cut off has
lost nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import itertools
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

try:
    import lath
except ImportError as error:
    sys.exit(f"{error}\nInstall lath, or name a build: see bench/README.md.")

import gpu_tables
import torch
from gpu_clock import Call, GpuClock, HostClock, compare
from torch import Tensor
from torch.nn import functional

RESULTS = Path(__file__).with_name("results")
MIB = 1 << 20
WRITE_EVERY = 5.0  # seconds
MOST_FAILURES = 6  # in a row: then the device is lost

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16}
# Of the Frobenius norm of the result, against float64: a few roundings of the type.
TOLERANCES = {"bf16": 2e-2, "fp16": 3e-3, "tf32": 5e-3, "fp32": 1e-4}


@dataclasses.dataclass(frozen=True)
class Effort:
    """What is run.

    Attributes:
        dtypes: names in DTYPES.
        shapes: (in, out).
        rows: of x.
        divisors: ranks, as min(in, out) over each; the first ones are of most interest.
        limit_size: edge of the matrices for the measured limits.
        copy_bytes: for the limit of the memory.
    """

    dtypes: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]
    rows: tuple[int, ...]
    divisors: tuple[int, ...]
    limit_size: int
    copy_bytes: int


FULL = Effort(
    dtypes=("bf16", "tf32", "fp32"),
    shapes=((4096, 4096), (1024, 1024), (768, 3072), (3072, 768)),
    rows=(1, 16, 256, 4096, 16384),
    divisors=(8, 16, 4, 2),
    limit_size=8192,
    copy_bytes=1024 * MIB,
)
TINY = Effort(
    dtypes=("bf16", "tf32", "fp32"),
    shapes=((48, 32), (32, 64)),
    rows=(1, 5),
    divisors=(8, 4),
    limit_size=64,
    copy_bytes=MIB,
)


# ---- the machine ---------------------------------------------------------------------------------------------------


def describe(clock: GpuClock | HostClock) -> dict:
    """What the numbers belong to."""
    machine = {
        "date": f"{datetime.datetime.now():%Y-%m-%d %H:%M}",
        "lath": lath.__version__,
        "torch": torch.__version__,
    }
    machine["cuda side"] = lath.info().cuda
    if not clock.graphs:
        return {**machine, "device": "rehearsal on the processor", "cache": 1 << 12}
    properties = torch.cuda.get_device_properties(0)
    machine["device"] = properties.name
    machine["capability"] = f"{properties.major}.{properties.minor}"
    machine["multiprocessors"] = properties.multi_processor_count
    machine["memory"] = properties.total_memory
    machine["cache"] = getattr(properties, "L2_cache_size", 0) or 50 * MIB
    machine["CUDA of torch"] = torch.version.cuda
    machine["nvidia-smi"] = nvidia_smi()
    return machine


def nvidia_smi() -> str:
    """Driver, clocks, power and temperature, as the driver's own tool gives them."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return "not found"
    fields = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,temperature.gpu"
    try:
        command = [program, f"--query-gpu={fields}", "--format=csv"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return (done.stdout or done.stderr).strip()


def set_tf32(name: str) -> None:
    """The switch of torch that lath follows; a plan may depend on it."""
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    lath.ops._cached_cuda_plan.cache_clear()


def limits(clock: GpuClock | HostClock, effort: Effort) -> dict[str, float]:
    """Operations per second of the largest product in each type, and bytes per second of a copy."""
    found = {}
    n = effort.limit_size
    for name in effort.dtypes:
        set_tf32(name)
        a, b = (torch.randn(n, n, device=clock.device).to(DTYPES[name]) for _ in range(2))
        found[name] = 2 * n**3 / compare(clock, {"product": lambda a=a, b=b: a @ b})["product"]
        del a, b
    source = torch.ones(effort.copy_bytes // 4, device=clock.device)
    target = torch.empty_like(source)
    found["copy"] = 2 * effort.copy_bytes / compare(clock, {"copy": lambda: target.copy_(source)})["copy"]
    return found


# ---- the contenders ------------------------------------------------------------------------------------------------


def dense(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return functional.linear(x, weight, bias)


def two(x: Tensor, weight_v: Tensor, weight_u: Tensor, bias: Tensor) -> Tensor:
    return functional.linear(functional.linear(x, weight_v), weight_u, bias)


PRODUCTS = {"dense": dense, "two": two, "lath": lath.ops.lowrank_linear}


@dataclasses.dataclass(frozen=True)
class Case:
    """One line of a table."""

    dtype: str
    shape: tuple[int, int]
    rank: int
    rows: int
    training: bool

    @property
    def macs(self) -> int:
        """Multiply-adds of the factors; a training step has three times those of the forward pass."""
        return self.rows * self.rank * sum(self.shape) * (3 if self.training else 1)

    @property
    def dense_macs(self) -> int:
        return self.rows * self.shape[0] * self.shape[1] * (3 if self.training else 1)

    @property
    def bytes(self) -> int:
        """Least traffic: every operand crosses once in each pass that needs it."""
        (n, m), rows, weights = self.shape, self.rows, self.rank * sum(self.shape)
        elements = rows * (n + m) + weights
        if self.training:  # p written and read; x, dy, the weights read again; dx and the gradients written
            elements += 2 * rows * self.rank + rows * (2 * n + m) + 2 * weights
        return elements * DTYPES[self.dtype].itemsize


class Layers:
    """Weights of one shape, rank and type, several times, so that they exceed the cache together."""

    def __init__(self, clock: GpuClock | HostClock, case: Case, count: int) -> None:
        n, m = case.shape
        kind = {"device": clock.device, "dtype": DTYPES[case.dtype]}

        def weights(*shapes: tuple[int, ...]) -> list[list[Tensor]]:
            return [[torch.randn(s, **kind).div_(s[-1] ** 0.5) for s in shapes] for _ in range(count)]

        factors = weights((case.rank, n), (m, case.rank), (m,))
        self.weights = {"dense": weights((m, n), (m,)), "two": factors, "lath": factors}
        self.x = torch.randn(case.rows, n, **kind)
        self.dy = torch.randn(case.rows, m, **kind)

    def call(self, name: str, training: bool, index: int = 0) -> Call:
        product, weights, x, dy = PRODUCTS[name], self.weights[name][index], self.x, self.dy
        if not training:
            return torch.no_grad()(lambda: product(x, *weights))
        leaves = [t.detach().requires_grad_() for t in (x, *weights)]
        return lambda: torch.autograd.grad(product(*leaves), leaves, dy)

    def round(self, name: str, training: bool) -> Call:
        """A call of every layer, one after the other."""
        calls = [self.call(name, training, i) for i in range(len(self.weights[name]))]

        def run() -> None:
            for call in calls:
                call()

        return run


def layer_count(case: Case, cache: int) -> int:
    """Layers whose factors are four times as large as the cache; fewer where the activations alone exceed it."""
    weights = case.rank * sum(case.shape) * DTYPES[case.dtype].itemsize
    activations = case.rows * sum(case.shape) * DTYPES[case.dtype].itemsize
    wanted = 4 * cache // (weights + activations) + 1
    return max(1, min(wanted, 32 if case.rows <= 256 else 4))


def error_of(layers: Layers, case: Case) -> float:
    """Of the result of lath, relative to float64; the first rows stand for all."""
    x, (v, u, bias) = layers.x[:64].double(), (t.double() for t in layers.weights["lath"][0])
    expected = x @ v.mT @ u.mT + bias
    got = layers.call("lath", training=False)()[:64].double()
    error = float((got - expected).norm() / expected.norm())
    if case.training:  # against the same step of two layers, whose roundings are of the same size
        ours, theirs = (layers.call(name, training=True)() for name in ("lath", "two"))
        pairs = zip(ours, theirs, strict=True)
        error = max(error, *(float((a.double() - b.double()).norm() / b.double().norm()) for a, b in pairs))
    return error


def measure(clock: GpuClock | HostClock, case: Case, machine: dict) -> dict:
    """The row of a case."""
    set_tf32(case.dtype)
    layers = Layers(clock, case, layer_count(case, machine["cache"]))
    error = error_of(layers, case)
    eager = compare(clock, {name: layers.call(name, case.training) for name in PRODUCTS})
    count = len(layers.weights["lath"])
    rounds = {name: clock.captured(layers.round(name, case.training)) for name in PRODUCTS}
    graph = {name: taken / count for name, taken in compare(clock, rounds).items()}
    return {
        **dataclasses.asdict(case),
        "kernel": planned(clock, case),
        "layers": count,
        "eager": eager,
        "graph": graph,
        "error": error,
        **gpu_tables.derive(eager, graph, case.macs, case.dense_macs, case.bytes, machine["limits"], case.dtype),
        "wrong": error > TOLERANCES[case.dtype] * (2 if case.training else 1),
    }


def planned(clock: GpuClock | HostClock, case: Case) -> str:
    extents = case.rows, case.shape[0], case.rank, case.shape[1]
    kind = {"device": clock.device, "dtype": DTYPES[case.dtype]}
    kernels = [lath.ops.lowrank_linear_plan(*extents, backward=b, **kind).kernel for b in (False, True)]
    return "+".join(kernels) if case.training else kernels[0]


# ---- the run -------------------------------------------------------------------------------------------------------


def cases(effort: Effort) -> Iterator[Case]:
    """What matters most comes first: a run that is out of time has the rest missing."""
    steps = (False, True)
    for divisor, training, dtype, rows, shape in itertools.product(
        effort.divisors, steps, effort.dtypes, effort.rows, effort.shapes
    ):
        yield Case(dtype, shape, max(1, min(shape) // divisor), rows, training)


def run(clock: GpuClock | HostClock, effort: Effort, folder: Path, deadline: float) -> dict:
    """Measure until all is done or the time is over."""
    machine = describe(clock)
    machine["limits"] = limits(clock, effort)
    result = {"machine": machine, "rows": [], "notes": [], "complete": False}
    gpu_tables.write(folder, result)
    written, failures = time.monotonic(), 0
    try:
        for case in cases(effort):
            if time.monotonic() > deadline:
                result["notes"].append("The time was over before all cases were measured.")
                break
            try:
                result["rows"].append(measure(clock, case, machine))
                failures = 0
            except RuntimeError as error:  # torch's out-of-memory error is one
                failures += 1
                result["notes"].append(f"{case}: {str(error).splitlines()[0]}")
                if failures == MOST_FAILURES:
                    result["notes"].append("Stopped: one case after the other fails.")
                    break
            if time.monotonic() - written > WRITE_EVERY:
                gpu_tables.write(folder, result)
                written = time.monotonic()
        else:
            result["complete"] = True
    finally:
        gpu_tables.write(folder, result)
    return result


def folder_of(device: str) -> Path:
    name = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    return RESULTS / f"{datetime.date.today():%Y-%m-%d}-{name}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=240, help="stop after so long (default: 240)")
    parser.add_argument("--out", type=Path, help="folder of the results (default: in bench/results, by date and GPU)")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes on the processor; the numbers mean nothing")
    options = parser.parse_args(arguments)
    deadline = time.monotonic() + options.seconds
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped: what was measured is written"))
    torch.manual_seed(0)
    if not options.rehearse and not torch.cuda.is_available():
        print("no GPU: torch sees none. --rehearse goes through the motions on the processor.", file=sys.stderr)
        return 1
    clock = HostClock() if options.rehearse else GpuClock()
    device = "rehearsal" if options.rehearse else torch.cuda.get_device_name()
    folder = options.out or (RESULTS / "partial" if options.rehearse else folder_of(device))
    folder.mkdir(parents=True, exist_ok=True)
    result = run(clock, TINY if options.rehearse else FULL, folder, deadline)
    print(gpu_tables.summary(result))
    print(f"results in {folder}")
    return 1 if any(row["wrong"] for row in result["rows"]) or not result["rows"] else 0


if __name__ == "__main__":
    sys.exit(main())
