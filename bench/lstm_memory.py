# SPDX-License-Identifier: Apache-2.0
"""Memory of a training step of a low-rank LSTM, beside its time.

Counted is the resident memory of a process of its own, which is all that it touches: tensors, what the plugin keeps
for itself, and the memory of libraries. Run as a script, with a contender and a case in JSON, this is that process.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from context import Context
from lstm import CHARACTERS, WIDE, Case, lstm_row, training_step
from lstm_baselines import DenseLSTM
from rows import Goal, Row
from torch import nn

# Every tensor in a mapping of its own, which goes back to the system when it is freed: nothing hides in old pages.
UNPOOLED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
PROC = Path("/proc/self")
FLOAT = 4  # bytes

CONTENDERS: dict[str, Callable[[Case], nn.Module]] = {
    "nn.LSTM": lambda case: DenseLSTM(case.lstm()),
    "gates kept": lambda case: case.lstm(),
    "memory mode": lambda case: case.lstm(keep_gates=False),
}
LATH = list(CONTENDERS)[1:]
CASES = (CHARACTERS._replace(layers=1), CHARACTERS, WIDE)


def memory(context: Context) -> Iterator[Row]:
    """What a step takes beyond its operands and the gradients that it returns, and how long it takes."""
    for case in CASES[:1] if context.quick else CASES:
        context.progress(f"lstm-memory {case.label}")
        try:
            measured = {name: _measured_bytes(name, case, context.threads) for name in CONTENDERS}
            longer = case._replace(steps=2 * case.steps)
            several = () if context.quick else LATH
            twice = {name: _measured_bytes(name, longer, context.threads) for name in several}
        except (OSError, RuntimeError) as error:
            context.notes.append(f"lstm-memory: {error}")
            return
        unit = FLOAT * case.tokens * case.layers
        calls = {name: training_step(make(case), case) for name, make in CONTENDERS.items()}
        timings = context.compare(f"lstm-memory {case.label}, time", calls)
        for name in LATH:
            yield lstm_row(
                context,
                case,
                "lstm-memory",
                {"dense": timings["nn.LSTM"], "lath": timings[name]},
                3,
                mode=name,
                floats=measured[name] / unit,
                more_floats=(twice[name] - measured[name]) / unit if name in twice else None,
                dense_floats=measured["nn.LSTM"] / unit,
                goal=_budget(case) if name == "memory mode" else None,
            )


def _budget(case: Case) -> Goal:
    """h, c and what stands between two factors, on the average of the layers."""
    lstm = case.lstm(device="meta")
    floats = 2 * case.hidden + (sum(lstm.ranks) + sum(lstm.input_ranks)) / case.layers
    return Goal("floats", floats, floats)


def _measured_bytes(name: str, case: Case, threads: int) -> int:
    """What a process of its own has to say."""
    question = json.dumps({"name": name, "case": case, "threads": threads})
    done = subprocess.run(
        [sys.executable, __file__, question], env={**os.environ, **UNPOOLED}, capture_output=True, text=True
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"the process of {name} ended with status {done.returncode}: {last}")
    return json.loads(done.stdout)["bytes"]


# ---- the process -----------------------------------------------------------------------------------------------------


def extra_bytes(name: str, case: Case) -> int:
    """Growth of the resident memory up to its peak in a step, less the gradients that the step returns."""
    tiny = Case(2, 3, 32, 32, 1, 4)
    training_step(CONTENDERS[name](tiny), tiny)()  # its code is in memory now
    step = training_step(CONTENDERS[name](case), case)
    gc.collect()
    (PROC / "clear_refs").write_text("5")  # the peak starts again from here
    before = _resident("VmRSS")
    gradients = step()
    peak = _resident("VmHWM")
    return peak - before - sum(FLOAT * gradient.numel() for gradient in gradients)


def _resident(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    for line in (PROC / "status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}")


def main() -> None:
    question = json.loads(sys.argv[1])
    torch.set_num_threads(question["threads"])
    print(json.dumps({"bytes": extra_bytes(question["name"], Case(*question["case"]))}))


if __name__ == "__main__":
    main()
