# SPDX-License-Identifier: Apache-2.0
"""What tests of the benchmark share: its modules, its command line with the machine measured once, its tables."""

from __future__ import annotations

import contextlib
import csv
import functools
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def bench_modules() -> Iterator[None]:
    """The modules of bench/ can be imported, and are gone afterwards: some of examples/ have the same names."""
    names = {path.stem for path in (ROOT / "bench").glob("*.py")}
    others = {name: sys.modules.pop(name) for name in names & set(sys.modules)}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "examples"))
        patch.syspath_prepend(str(ROOT / "bench"))
        yield
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update(others)


@functools.cache
def described():
    """This machine; one measurement of its limits is enough for all tests."""
    import machine

    return machine.describe(0.001)


def run_benchmark(monkeypatch, folder: Path, *arguments: str) -> None:
    import run

    found = described()
    monkeypatch.setattr(run.machine, "describe", lambda seconds: found)
    monkeypatch.setattr(sys, "argv", ["run.py", "--seconds", "0", "--out", str(folder), *arguments])
    threads = torch.get_num_threads()
    try:
        run.main()
    finally:
        torch.set_num_threads(threads)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
