# SPDX-License-Identifier: Apache-2.0
"""``make gpu`` and its benchmark, as far as they go without a GPU: stages, limits, missing programs, results."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


def load(path: Path):
    """A script as a module; those beside it can be imported by it."""
    sys.path.insert(0, str(path.parent))
    try:
        spec = importlib.util.spec_from_file_location(path.stem + "_script", path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


@pytest.fixture(scope="module")
def tool():
    return load(ROOT / "tools" / "gpu.py")


@pytest.fixture(scope="module")
def bench():
    return load(ROOT / "bench" / "gpu.py")


@pytest.fixture
def run(tool, tmp_path):
    run = tool.Run(tool.parse(["--rehearse", "--out", str(tmp_path), "--seconds", "60"]))
    run.machine = {
        "devices": [],
        "programs": dict.fromkeys(("nvcc", "cmake", "ctest", "ninja", "g++", "compute-sanitizer")),
        "packages": {"pytest": True, "numpy": True, "hypothesis": False},
    }
    return run


def program(folder: Path, name: str, text: str) -> None:
    """A shell script that stands in for a program."""
    path = folder / name
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)


# ---- the machine ---------------------------------------------------------------------------------------------------


def test_what_is_there_is_found(tool, tmp_path, monkeypatch):
    program(tmp_path, "nvidia-smi", 'echo "name, driver"; echo "NVIDIA Board, 999.1"\n')
    program(tmp_path, "nvcc", "exit 0\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    machine = tool.look(sys.executable)
    assert machine["torch"] == torch.__version__
    assert machine["nvidia-smi"].splitlines() == ["name, driver", "NVIDIA Board, 999.1"]
    assert machine["programs"]["nvcc"] == str(tmp_path / "nvcc")
    assert machine["packages"]["pytest"]
    assert len(machine["devices"]) == torch.cuda.device_count()


@pytest.mark.parametrize("text", [None, "echo broken driver >&2; exit 9\n"])
def test_nvidia_smi_that_does_not_help(tool, tmp_path, monkeypatch, text):
    if text is not None:
        program(tmp_path, "nvidia-smi", text)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert tool.nvidia_smi() == ("nvidia-smi not found" if text is None else "broken driver")


def test_python_without_torch(tool, tmp_path):
    program(tmp_path, "python", "echo \"ModuleNotFoundError: No module named 'torch'\" >&2; exit 1\n")
    with pytest.raises(tool.StageError, match="cannot import torch: ModuleNotFoundError"):
        tool.look(str(tmp_path / "python"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_run(tmp_path):
    command = [sys.executable, ROOT / "tools" / "gpu.py", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "so there is nothing to run. --rehearse goes through the motions." in done.stderr


# ---- stages --------------------------------------------------------------------------------------------------------


def test_output_of_a_stage_is_kept(run):
    run.check("work", [sys.executable, "-c", "import os; print('done', os.environ['LATH_LIBRARY'])"], 30)
    log = (run.folder / "work.log").read_text()
    assert f"done {run.build / 'liblath_cpu.so'}" in log


def test_stage_that_takes_too_long_is_stopped_with_its_children(tool, run):
    code = "import subprocess, sys, time; print('begun', flush=True); subprocess.run(['sleep', '1000'])"
    start = time.monotonic()
    with pytest.raises(tool.StageError, match="stopped after 1 s"):
        run.execute("slow", [sys.executable, "-c", code], 1)
    assert time.monotonic() - start < 30
    assert "begun" in (run.folder / "slow.log").read_text()


def test_command_that_fails(tool, run):
    with pytest.raises(tool.StageError, match=r"ended with 3, see .*bad\.log"):
        run.check("bad", [sys.executable, "-c", "raise SystemExit(3)"], 30)


def test_missing_programs_and_packages(tool, run, monkeypatch):
    monkeypatch.setattr(tool, "googletest", lambda: None)
    run.machine["packages"]["pytest"] = False
    results = {name: tool.perform(run, name, 0) for name in ("build", "kernels", "tests", "sanitizer")}
    assert (results["build"].result, results["build"].text) == ("failed", "not found: nvcc, cmake, g++")
    assert results["kernels"].text.startswith("GoogleTest is not at hand")
    assert results["tests"].text == "Python packages are missing: pytest"
    assert results["sanitizer"].text == "compute-sanitizer not found"
    assert {results[name].result for name in ("kernels", "tests", "sanitizer")} == {"left out"}


def test_limits_of_the_stages(tool, run, monkeypatch):
    """A stage gets its own limit or what later ones leave, the last one the rest; without time there is none."""
    given = {}
    stages = {
        name: tool.Stage(lambda run, seconds, n=name: given.setdefault(n, seconds) and "", 100, 20) for name in "abc"
    }
    monkeypatch.setattr(tool, "STAGES", stages)
    run.options.seconds = 60
    assert tool.perform(run, "a", 40).result == "passed"
    assert given["a"] == pytest.approx(20, abs=2)
    tool.perform(run, "c", 0)
    assert given["c"] == pytest.approx(60, abs=2)
    assert tool.perform(run, "b", 58).result == "out of time"
    assert "b" not in given


def test_results_of_stages_are_written_at_once(tool, run):
    run.outcomes.append(tool.Outcome("build", "passed", 1.5, "text"))
    run.write()
    (stage,) = json.loads((run.folder / "stages.json").read_text())["stages"]
    assert stage == {"stage": "build", "result": "passed", "seconds": 1.5, "text": "text"}
    assert "build      passed" in tool.summary(run)


def test_pytest_of_the_stage_needs_no_settings_of_the_project(run, tool, tmp_path):
    """And it finds the tests on CUDA, without a GPU and without plugins."""
    command = tool.pytest_command(run, "-m", "cuda", "--collect-only", str(ROOT / "tests" / "python" / "test_cuda.py"))
    environment = {**os.environ, "LATH_TEST_DEVICES": "cuda", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_work_goes_to_the_current_stream" in done.stdout
    assert "test_plan_needs_a_device" not in done.stdout


def test_tests_without_hypothesis(tmp_path):
    """The files still load, and what needs it is skipped."""
    tmp_path.joinpath("hypothesis.py").write_text("raise ModuleNotFoundError(name='hypothesis')\n")
    files = [ROOT / "tests" / "python" / name for name in ("test_ops.py", "test_conv_ops.py")]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        "against_float64 or leading",
        *files,
    ]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    environment |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "LATH_TEST_DEVICES": "cpu"}
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "hypothesis is not installed" in done.stdout
    assert "5 passed, 4 skipped" in done.stdout


# ---- the benchmark -------------------------------------------------------------------------------------------------


def small(bench):
    return bench.Effort(("bf16", "tf32"), ((48, 32),), (1, 5), (8,), 64, 1 << 20)


def test_rehearsal_writes_results(bench, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "TINY", small(bench))
    assert bench.main(["--rehearse", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert result["complete"]
    assert len(result["rows"]) == 8
    assert not any(row["wrong"] for row in result["rows"])
    text = (tmp_path / "gpu.md").read_text()
    for heading in ("### Forward, bf16", "### Training step, tf32", "## Aims"):
        assert heading in text
    assert "right results: 8 of 8" in capsys.readouterr().out


def test_time_that_is_over(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "TINY", small(bench))
    assert bench.main(["--rehearse", "--seconds", "0", "--out", str(tmp_path)]) == 1
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert not result["complete"]
    assert result["notes"] == ["The time was over before all cases were measured."]
    assert "Incomplete" in (tmp_path / "gpu.md").read_text()


def test_cases_that_fail_are_noted(bench, tmp_path, monkeypatch):
    def fails(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.\nmore")

    monkeypatch.setattr(bench, "measure", fails)
    result = bench.run(bench.HostClock(), small(bench), tmp_path, time.monotonic() + 60)
    assert len(result["notes"]) == bench.MOST_FAILURES + 1
    assert result["notes"][0].endswith("CUDA out of memory.")


def test_wrong_results_are_noticed(bench, tmp_path, monkeypatch):
    monkeypatch.setitem(bench.PRODUCTS, "lath", lambda x, v, u, bias: bench.two(x, v, u, bias) * 1.1)
    monkeypatch.setattr(bench, "TINY", small(bench))
    assert bench.main(["--rehearse", "--out", str(tmp_path)]) == 1
    assert all(row["wrong"] for row in json.loads((tmp_path / "gpu.json").read_text())["rows"])


class FakeStream:
    def wait_stream(self, other):
        pass

    def synchronize(self):
        pass

    def __enter__(self):
        pass

    def __exit__(self, *_):
        pass


class FakeGraph:
    """Counts; a replay does nothing."""

    log: list[str] = []  # noqa: RUF012

    def capture_begin(self):
        self.log.append("begin")

    def capture_end(self):
        self.log.append("end")

    def replay(self):
        self.log.append("replay")


class FakeEvent:
    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.time = time.perf_counter()

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return 1e3 * (end.time - self.time)


def test_clock_of_the_gpu(bench, monkeypatch):
    """Every line of it, on stand-ins for what needs a device."""
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    clock = bench.GpuClock()
    replay = clock.captured(lambda: FakeGraph.log.append("call"))
    assert FakeGraph.log == ["call"] * 3 + ["begin", "call", "end"]
    replay()
    assert FakeGraph.log[-1] == "replay"
    times = bench.compare(clock, {"short": lambda: time.sleep(1e-4), "long": lambda: time.sleep(4e-4)}, rounds=3)
    assert 1e-4 < times["short"] < times["long"]


def test_description_of_a_gpu(bench, monkeypatch, tmp_path):
    class Properties:
        name, major, minor, multi_processor_count, total_memory, L2_cache_size = "Board", 9, 0, 132, 1 << 36, 50 << 20

    program(tmp_path, "nvidia-smi", "echo Board, 999.1\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties)
    machine = bench.describe(bench.GpuClock())
    assert (machine["device"], machine["capability"], machine["cache"]) == ("Board", "9.0", 50 << 20)
    assert machine["nvidia-smi"] == "Board, 999.1"
    assert bench.folder_of("NVIDIA H200 (80GB)").name.endswith("-nvidia-h200-80gb")


def test_files_with_tests_on_cuda_are_all_listed(tool):
    """By the marker or the fixture that brings a test there."""
    here = Path(__file__).parent
    found = {p.stem for p in here.glob("test_*.py") if "every_device" in p.read_text() or "mark.cuda" in p.read_text()}
    assert {f"test_{name}" for name in tool.ON_DEVICES} == found - {Path(__file__).stem}
