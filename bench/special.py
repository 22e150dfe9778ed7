# SPDX-License-Identifier: Apache-2.0
"""What is not one layer at one batch size: every rank, compiled baselines, decay, threads, AVX2 and the call itself."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import lath
import torch
from cases import Case, label, own_linear, rows_of
from context import Context, Shape
from layers import Layers, call_module, dense_module, filled, thin_module, two_modules
from measure import Contender
from rows import Goal, Row, disturbance
from torch import Tensor, nn
from torch.nn import functional

# ---- every rank ------------------------------------------------------------------------------------------------------

PLAN_GOAL = Goal("speed-up", 0.97, 1.0)


def plan(context: Context) -> Iterator[Row]:
    """``module(x)`` at ranks up to full against ``nn.Linear``: in inference as it is and frozen, and in training."""
    for shape in ((1024, 1024), (768, 3072)):
        layers = Layers(shape, [max(1, round(min(shape) * part)) for part in context.effort.sweep], 1)
        for rows in (1, 16, 256):
            with torch.inference_mode():
                yield from _plan_inference(context, layers, rows)
        yield from _plan_training(context, layers, 256)


def _plan_inference(context: Context, layers: Layers, rows: int) -> Iterator[Row]:
    x = filled(rows, layers.shape[0])
    calls: dict[object, Callable] = {
        "dense": partial(call_module, dense_module(*layers.dense[0]), x),
        "own": partial(own_linear, x, *layers.dense[0]),
    }
    for rank, (factors,) in layers.factors.items():
        calls["two", rank] = partial(call_module, two_modules(*factors), x)
        calls["lath", rank] = partial(call_module, thin_module(*factors).eval(), x)
        frozen = thin_module(*factors).eval()
        if frozen.freeze():
            calls["frozen", rank] = partial(call_module, frozen, x)
    timings = context.compare(f"plan {label(layers.shape)}, {rows} rows", calls)
    case = Case("plan", layers, "hot", rows)
    for row in rows_of(context, case, timings, dict.fromkeys(layers.ranks, PLAN_GOAL)):
        yield row.replace(mode="as is", two_goal=None)
        if ("frozen", row.rank) in timings:
            # A frozen layer is a dense product; the bound of the factored one says nothing about it.
            seconds = timings["frozen", row.rank].median
            yield row.replace(mode="frozen", lath=seconds, macs=row.dense_macs, bound=0.0, two_goal=None)


def _plan_training(context: Context, layers: Layers, rows: int) -> Iterator[Row]:
    """Up to break-even there is a goal; beyond, the factors hold more weights than the dense layer."""
    x, dy = filled(rows, layers.shape[0]).requires_grad_(), filled(rows, layers.shape[1])

    def step(module: nn.Module):
        return torch.autograd.grad(module(x), (x, *module.parameters()), dy)

    calls: dict[object, Callable] = {"dense": partial(step, dense_module(*layers.dense[0]))}
    for rank, (factors,) in layers.factors.items():
        calls["two", rank] = partial(step, two_modules(*factors))
        calls["lath", rank] = partial(step, thin_module(*factors))
    timings = context.compare(f"plan {label(layers.shape)}, training", calls)
    case = Case("plan", layers, "hot", rows, training=True)
    goals = {rank: PLAN_GOAL if rank * sum(layers.shape) < math.prod(layers.shape) else None for rank in layers.ranks}
    for row in rows_of(context, case, timings, goals):
        yield row.replace(mode="training", two_goal=None)


# ---- two nn.Linear, compiled -----------------------------------------------------------------------------------------


def compiled(context: Context) -> Iterator[Row]:
    """Eager lath against two ``nn.Linear`` under ``torch.compile`` with inductor's freezing, which packs weights."""
    shapes: tuple[Shape, ...] = ((1024, 1024),) if context.quick else ((1024, 1024), (768, 3072))
    for shape in shapes:
        rank = min(shape) // 8
        layers = Layers(shape, (rank,), 1)
        dense, factors = dense_module(*layers.dense[0]), layers.factors[rank][0]
        for rows in (16,) if context.quick else (16, 256):
            x = filled(rows, shape[0])
            context.progress(f"compiling two nn.Linear {label(shape)}, {rows} rows")
            try:
                two = _compile(two_modules(*factors).eval(), x)
            except Exception as error:  # whatever inductor and the compiler behind it come up with
                reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
                context.notes.append(f"compiled {label(shape)}, {rows} rows: {type(error).__name__}: {reason}")
                continue
            calls = {
                "dense": partial(call_module, dense, x),
                "own": partial(own_linear, x, *layers.dense[0]),
                ("two", rank): partial(two, x),
                ("lath", rank): partial(call_module, thin_module(*factors).eval(), x),
            }
            with torch.no_grad():
                timings = context.compare(f"compiled {label(shape)}, {rows} rows", calls)
            goals = {rank: Goal("vs two", 1.0, 2.0 if rows <= 16 else 1.15)}
            for row in rows_of(context, Case("compiled", layers, "hot", rows), timings, goals):
                yield row.replace(two_goal=None)


def _compile(model: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    import torch._dynamo
    import torch._inductor.config

    torch._dynamo.reset()
    with torch._inductor.config.patch(freezing=True, compile_threads=1), torch.no_grad():
        fast = torch.compile(model)
        fast(x)
    return fast


# ---- Frobenius decay -------------------------------------------------------------------------------------------------


def frobenius(context: Context) -> Iterator[Row]:
    """Value and gradient of ``|| U V ||^2`` against forming U V; "two" is the Gram form in torch operators."""
    n, rank = 1536, 307
    weight_v = filled(rank, n, scale=n**-0.5).requires_grad_()
    weight_u = filled(n, rank, scale=rank**-0.5).requires_grad_()

    def value_and_gradient(value: Callable[[Tensor, Tensor], Tensor]):
        return torch.autograd.grad(value(weight_v, weight_u), (weight_v, weight_u))

    calls = {
        "dense": partial(value_and_gradient, lambda v, u: (u @ v).square().sum()),
        "two": partial(value_and_gradient, lambda v, u: ((v @ v.mT) * (u.mT @ u)).sum()),
        "lath": partial(value_and_gradient, lath.ops.frobenius_decay),
    }
    timings = context.compare(f"frobenius {n}, rank {rank}", calls)
    yield Row(
        section="frobenius",
        case=f"{n}->{n}",
        mode="hot",
        rows=None,
        rank=rank,
        threads=context.threads,
        isa=context.machine.isa,
        baseline=timings["dense"].median,
        lath=timings["lath"].median,
        two=timings["two"].median,
        dense_macs=3 * rank * n * n,
        macs=2 * rank * rank * 2 * n,
        peak=context.peak,
        **disturbance(timings.values()),
        goal=Goal("speed-up", 2.3, 4.0),
    )


# ---- threads ---------------------------------------------------------------------------------------------------------


def threads(context: Context) -> Iterator[Row]:
    """Two threads against one, wall clock. "torch" rows: how the dense layer of torch scales in the same minute."""
    if context.machine.cores < 2:
        context.notes.append("threads: this process may use one core only")
        return
    try:
        for shape in context.effort.shapes[:3]:
            rank = min(shape) // 8
            layers = Layers(shape, (rank,), 1)
            for rows in context.effort.large_rows:
                yield from _scaling(context, layers, rank, rows)
    finally:
        torch.set_num_threads(context.threads)


def _scaling(context: Context, layers: Layers, rank: int, rows: int) -> Iterator[Row]:
    (n_in, n_out), x = layers.shape, filled(rows, layers.shape[0])
    products = {
        "torch": (partial(functional.linear, x, *layers.dense[0]), n_in * n_out),
        "lath": (partial(lath.ops.lowrank_linear, x, *layers.factors[rank][0]), rank * (n_in + n_out)),
    }
    calls = {
        (kind, count): Contender(call, before=partial(torch.set_num_threads, count))
        for kind, (call, _) in products.items()
        for count in (1, 2)
    }
    with torch.inference_mode():
        timings = context.compare(f"threads {label(layers.shape)}, {rows} rows", calls, threads=2)
    for kind, (_, macs) in products.items():
        one, two = timings[kind, 1], timings[kind, 2]
        yield Row(
            section="threads",
            case=label(layers.shape),
            mode=kind,
            rows=rows,
            rank=rank if kind == "lath" else None,
            threads=2,
            isa=context.machine.isa,
            baseline=one.median,
            lath=two.median,
            dense_macs=rows * macs,
            macs=rows * macs,
            peak=2 * context.machine.isa_peak,
            **disturbance((one, two)),
            goal=Goal("speed-up", 1.8, 1.9) if kind == "lath" else None,
        )


# ---- AVX2 ------------------------------------------------------------------------------------------------------------

AVX2 = {
    "LATH_ISA": "avx2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
}


def avx2(context: Context) -> Iterator[Row]:
    """The forward and training sections, shortened, in a process where torch and lath are held to AVX2."""
    if context.machine.isa != "avx512":
        context.notes.append(f"avx2: nothing to force, lath uses {context.machine.isa} here anyway")
        return
    context.progress("starting a process held to AVX2")
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.json"
        command = [sys.executable, str(Path(__file__).with_name("run.py")), "--effort", "probe", "--rows-to", str(rows)]
        command += ["--threads", str(context.threads), "--only", "forward", "small", "training"]
        done = subprocess.run(command, env={**os.environ, **AVX2}, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            context.notes.append(f"avx2: the process ended with status {done.returncode}: {last}")
            return
        for row in map(Row.from_dict, json.loads(rows.read_text())):
            yield row.replace(section="avx2", case=f"{row.section} {row.case}")


# ---- the call itself ----------------------------------------------------------------------------------------------


def overhead(context: Context) -> Iterator[Row]:
    """Calls so small that nothing but the way to the kernel counts: 8x8, rank 4, 8 rows."""
    shape, rank = (8, 8), 4
    layers = Layers(shape, (rank,), 1)
    factors, x = layers.factors[rank][0], filled(8, 8)
    none = torch.empty(0)
    dense, two, thin = dense_module(*layers.dense[0]), two_modules(*factors), thin_module(*factors)
    raw = torch.ops.lath.lowrank_linear.default

    def step(module: nn.Module):
        return torch.autograd.grad(module(x), tuple(module.parameters()), dy)

    dy = filled(8, 8)
    calls = {
        "dense": partial(call_module, dense, x),
        "two": partial(call_module, two, x),
        "lath": partial(call_module, thin, x),
    }
    with torch.no_grad():
        timings = {"module(x)": context.compare("overhead of module(x)", calls)}
        calls = {"dense": partial(functional.linear, x, *layers.dense[0]), "lath": partial(raw, x, *factors, none)}
        timings["raw operator"] = context.compare("overhead of the operator", calls)
    calls = {"dense": partial(step, dense), "two": partial(step, two), "lath": partial(step, thin)}
    timings["training step"] = context.compare("overhead of a training step", calls)
    goals = {
        "module(x)": Goal("us", 12.0, 6.0),
        "raw operator": Goal("us", 4.0, 2.0),
        "training step": Goal("vs two", 1.0, 1.1),
    }
    for case, timed in timings.items():
        yield Row(
            section="overhead",
            case=case,
            mode="hot",
            rows=8,
            rank=rank,
            threads=context.threads,
            isa=context.machine.isa,
            baseline=timed["dense"].median,
            lath=timed["lath"].median,
            two=timed["two"].median if "two" in timed else None,
            **disturbance(timed.values()),
            goal=goals[case],
        )
