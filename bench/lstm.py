# SPDX-License-Identifier: Apache-2.0
"""Low-rank LSTMs against ``nn.LSTM``, a scripted loop of cells and projected LSTMs; every rank; threads."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from context import Context
from lath.nn import LowRankLSTM
from layers import filled
from lstm_baselines import DenseLSTM, OwnDenseLSTM, ProjectedLSTM, faster, loop
from measure import Contender, Timing
from rows import Goal, Row, disturbance
from torch import Tensor, nn

RIVAL_GOAL = Goal("vs rivals", 1.3, 2.5)
PLAN_GOAL = Goal("speed-up", 0.95, 1.0)
THREADS_GOAL = Goal("speed-up", 1.6, 1.9)
PLAN_PARTS = (0.8, 0.9, 1.0)  # of the hidden size; break-even is 0.8


class Case(NamedTuple):
    """A call of a stack of layers."""

    batch: int
    steps: int
    n_in: int
    hidden: int
    layers: int
    rank: int

    @property
    def label(self) -> str:
        return f"b{self.batch} T{self.steps} d{self.n_in} h{self.hidden} L{self.layers}"

    @property
    def tokens(self) -> int:
        return self.batch * self.steps

    def lstm(self, **options) -> LowRankLSTM:
        """The stack, as a user builds it."""
        return LowRankLSTM(self.n_in, self.hidden, self.rank, self.layers, **options)

    def x(self, requires_grad: bool = False) -> Tensor:
        return filled(self.steps, self.batch, self.n_in).requires_grad_(requires_grad)

    @property
    def dense_macs(self) -> int:
        inputs = self.n_in + (self.layers - 1) * self.hidden
        return self.tokens * 4 * self.hidden * (inputs + self.layers * self.hidden)

    @property
    def macs(self) -> int:
        """Of the factors, or of merging and the merged weight where that is less."""
        lstm, gates, total = self.lstm(device="meta"), 4 * self.hidden, 0
        for pair in lstm.pairs():
            merged = (self.tokens + pair.rank) * gates * pair.in_size
            factored = self.tokens * pair.rank * (pair.in_size + gates)
            total += min(factored, merged) if pair.rank else merged
        return total


# The character LSTM of the published experiments at two ranks, the same for one sample, and larger layers; what the
# forward and a training step are to reach.
CASES = {
    Case(128, 80, 8, 256, 2, 51): (Goal("speed-up", 3.0, 4.0), Goal("speed-up", 3.5, 5.0)),
    Case(128, 80, 8, 256, 2, 204): (Goal("speed-up", 1.0, 1.2), Goal("speed-up", 1.2, 1.6)),
    Case(1, 80, 8, 256, 2, 51): (Goal("speed-up", 2.5, 5.0), Goal("speed-up", 4.0, 8.0)),
    Case(32, 35, 1024, 1024, 1, 204): (Goal("speed-up", 3.0, 3.8), Goal("speed-up", 3.0, 4.5)),
    Case(32, 35, 2048, 2048, 1, 409): (Goal("speed-up", 3.0, 3.8), Goal("speed-up", 3.5, 6.0)),
}
CHARACTERS, _, ONE_SAMPLE, WIDE, _ = CASES


# ---- forward and training --------------------------------------------------------------------------------------------


def forward(context: Context) -> Iterator[Row]:
    """Calls under ``inference_mode``."""
    with torch.inference_mode():
        for case in _cases(context):
            yield _compare(context, "lstm-forward", case, _inference, CASES[case][0])


def training(context: Context) -> Iterator[Row]:
    """Forward, dx and all gradients; the gates are kept in between, as by default."""
    for case in _cases(context):
        yield _compare(context, "lstm-training", case, training_step, CASES[case][1])


def _cases(context: Context) -> Sequence[Case]:
    return (CHARACTERS, ONE_SAMPLE) if context.quick else tuple(CASES)


def _inference(module: nn.Module, case: Case) -> Callable[[], Tensor]:
    return partial(_output, module.eval(), case.x())


def training_step(module: nn.Module, case: Case) -> Callable[[], tuple[Tensor, ...]]:
    """Forward, dx and all gradients."""
    x = case.x(requires_grad=True)
    operands = x, *module.parameters()
    width = case.rank if isinstance(module, ProjectedLSTM) else case.hidden
    dy = filled(case.steps, case.batch, width)
    return lambda: torch.autograd.grad(_output(module, x), operands, dy)


def _output(module: nn.Module, x: Tensor) -> Tensor:
    y = module(x)
    return y[0] if isinstance(y, tuple) else y


def _compare(context: Context, section: str, case: Case, call_of: Callable, goal: Goal) -> Row:
    lstm = case.lstm()
    calls = {"dense": call_of(DenseLSTM(lstm), case), "lath": call_of(lstm, case)}
    calls |= _rivals(context, f"{section} {case.label}", lstm, partial(call_of, case=case))
    timings = context.compare(f"{section} {case.label}, rank {case.rank}", calls)
    rivals = {name: timings[name].median for name in calls if name not in ("dense", "lath")}
    passes = 3 if section == "lstm-training" else 1
    return lstm_row(
        context, case, section, timings, passes, goal=goal, rivals=rivals, rival_goals=(RIVAL_GOAL,) if rivals else ()
    )


def _rivals(context: Context, what: str, lstm: LowRankLSTM, call_of: Callable) -> dict[str, Callable]:
    """The faster one of both loops of cells, and the projected LSTM where there is one."""
    found: dict[str, Callable] = {}
    context.progress(f"{what}: compiling the loop of cells")
    try:
        loops = {hoisted: call_of(loop(lstm, hoisted)) for hoisted in (False, True)}
        found["loop"] = loops[faster(loops)]
    except Exception as error:  # TorchScript is deprecated: some day, or on some Python, it is gone
        first = (str(error).strip().splitlines() or [""])[0]
        context.notes.append(f"{what}: no loop of cells: {type(error).__name__}: {first}")
    if ProjectedLSTM.possible(lstm):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
            found["projected"] = call_of(ProjectedLSTM(lstm))
            found["projected"]()  # torch warns once
    return found


def lstm_row(context: Context, case: Case, section: str, timings: dict, passes: int, **values) -> Row:
    """What the contenders "dense" and "lath" make of a case; ``values`` are other fields, or replace what is here."""
    fields = {
        "section": section,
        "case": case.label,
        "mode": "",
        "rows": None,
        "rank": case.rank,
        "threads": context.threads,
        "isa": context.machine.isa,
        "baseline": timings["dense"].median,
        "lath": timings["lath"].median,
        "dense_macs": passes * case.dense_macs,
        "macs": passes * case.macs,
        "peak": context.peak,
        "tokens": case.tokens,
        **disturbance(timings.values()),
    }
    return Row(**{**fields, **values})


# ---- every rank ------------------------------------------------------------------------------------------------------


def plan(context: Context) -> Iterator[Row]:
    """Ranks from break-even to full against lath's own dense path."""
    shapes = (CHARACTERS,) if context.quick else (CHARACTERS, ONE_SAMPLE, WIDE)
    for shape in shapes:
        with torch.inference_mode():
            yield from _plan(context, shape, "forward", _inference, 1)
        if not context.quick:
            yield from _plan(context, shape, "training", training_step, 3)


def _plan(context: Context, shape: Case, mode: str, call_of: Callable, passes: int) -> Iterator[Row]:
    parts = PLAN_PARTS[::2] if context.quick or passes > 1 else PLAN_PARTS
    cases = [shape._replace(rank=int(part * shape.hidden)) for part in parts]
    lstms = {case: case.lstm() for case in cases}
    calls: dict[object, Callable] = {case: call_of(lstm, case) for case, lstm in lstms.items()}
    calls["dense"] = call_of(OwnDenseLSTM(lstms[cases[0]]), shape)
    calls["torch"] = call_of(DenseLSTM(lstms[cases[0]]), shape)
    timings: dict[object, Timing] = context.compare(f"lstm-plan {shape.label}, {mode}", calls)
    for case in cases:
        timed = {"dense": timings["dense"], "lath": timings[case], "torch": timings["torch"]}
        rivals = {"torch": timings["torch"].median}
        yield lstm_row(context, case, "lstm-plan", timed, passes, mode=mode, goal=PLAN_GOAL, rivals=rivals)


# ---- threads ---------------------------------------------------------------------------------------------------------


def threads(context: Context) -> Iterator[Row]:
    """Two threads against one, wall clock, of lath and of ``nn.LSTM``."""
    if context.machine.cores < 2:
        context.notes.append("lstm-threads: this process may use one core only")
        return
    try:
        with torch.inference_mode():
            yield from _scaling(context, CHARACTERS, "forward", _inference, 1)
        if not context.quick:
            yield from _scaling(context, CHARACTERS, "training", training_step, 3)
    finally:
        torch.set_num_threads(context.threads)


def _scaling(context: Context, case: Case, mode: str, call_of: Callable, passes: int) -> Iterator[Row]:
    lstm = case.lstm()
    stacks = {"torch": (DenseLSTM(lstm), case.dense_macs), "lath": (lstm, case.macs)}
    calls = {
        (kind, count): Contender(call_of(module, case), before=partial(torch.set_num_threads, count))
        for kind, (module, _) in stacks.items()
        for count in (1, 2)
    }
    timings = context.compare(f"lstm-threads {case.label}, {mode}", calls, threads=2)
    for kind, (_, macs) in stacks.items():
        timed = {"dense": timings[kind, 1], "lath": timings[kind, 2]}
        yield lstm_row(
            context,
            case,
            "lstm-threads",
            timed,
            passes,
            mode=f"{kind}, {mode}",
            rank=case.rank if kind == "lath" else None,
            threads=2,
            dense_macs=passes * macs,
            macs=passes * macs,
            peak=2 * context.machine.isa_peak,
            goal=THREADS_GOAL if kind == "lath" else None,
        )
