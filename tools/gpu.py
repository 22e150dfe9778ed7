# SPDX-License-Identifier: Apache-2.0
"""Everything that a GPU is needed for, in one command: build, tests on the device, sanitizer, benchmark.

    python3 tools/gpu.py [--seconds 540] [--only STAGE ...] [--rehearse]

Needs a Python with a CUDA build of torch, nvcc and cmake, and no network. What else is missing is said and done
without. The build goes to build/gpu and takes only the architectures of the GPUs at hand. Each stage has a limit of its
own, and what it prints goes to a log in the folder of results while it runs: bench/results/<date>-<GPU>. A stage that
fails does not keep the next from running, but for the build.

--rehearse runs the stages on a machine without a GPU, as far as they go.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CUDA_FOLDERS = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
CUDA_FOLDERS.append(Path("/usr/local/cuda"))

# Printed by the Python that is going to run everything: what its torch sees.
PROBE = """
import json, torch
found = {"torch": torch.__version__, "cuda": torch.version.cuda, "devices": []}
if torch.version.cuda and torch.cuda.is_available():
    for i in range(torch.cuda.device_count()):
        found["devices"].append([torch.cuda.get_device_name(i), *torch.cuda.get_device_capability(i)])
print(json.dumps(found))
"""


class StageError(RuntimeError):
    """The stage could not do its work; the message says why."""


@dataclasses.dataclass
class Outcome:
    """What became of a stage: "passed", "failed", "left out" or "out of time"."""

    stage: str
    result: str
    seconds: float
    text: str = ""


class Run:
    """The time that is left, where results go, and what was found on the machine."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.start = time.monotonic()
        self.python = sys.executable
        self.machine: dict = {}
        self.folder = options.out
        self.build = options.build.resolve()
        self.outcomes: list[Outcome] = []

    def left(self) -> float:
        return self.options.seconds - (time.monotonic() - self.start)

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.start:4.0f} s] {text}", flush=True)

    def environment(self) -> dict[str, str]:
        """For programs that import lath: the build, and the package of this checkout."""
        paths = [str(ROOT / "bindings" / "python"), os.environ.get("PYTHONPATH", "")]
        library = str(self.build / "liblath_cpu.so")
        # The object for CUDA is the one beside it, whatever the caller has set.
        own = {name: value for name, value in os.environ.items() if name != "LATH_CUDA_LIBRARY"}
        return {**own, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "LATH_LIBRARY": library}

    def execute(self, name: str, command: list, seconds: float, **variables: str) -> int:
        """Run a command with its output on the screen and in <name>.log.

        Raises:
            StageError: it did not end in time. It and its children are stopped then.
        """
        seconds = max(1.0, seconds)
        self.say("$ " + " ".join(map(str, command)))
        with open(self.folder / f"{name}.log", "a", encoding="utf-8") as log:
            log.write("$ " + " ".join(map(str, command)) + "\n")
            log.flush()
            process = subprocess.Popen(
                [str(part) for part in command],
                cwd=ROOT,
                env={**self.environment(), **variables},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
            reader = threading.Thread(target=_copy, args=(process.stdout, log), daemon=True)
            reader.start()
            try:
                code = process.wait(seconds)
            except subprocess.TimeoutExpired:
                _stop(process)
                raise StageError(f"stopped after {seconds:.0f} s") from None
            finally:
                if process.poll() is None:  # this program itself is being stopped
                    _stop(process)
                reader.join(5)
        return code

    def check(self, name: str, command: list, seconds: float, **variables: str) -> None:
        """As execute(); a command that fails is an error."""
        code = self.execute(name, command, seconds, **variables)
        if code:
            raise StageError(f"{Path(command[0]).name} ended with {code}, see {self.folder / name}.log")

    def write(self) -> None:
        """What is known so far."""
        text = {"machine": self.machine, "stages": [dataclasses.asdict(outcome) for outcome in self.outcomes]}
        new = self.folder / ".stages.new"
        new.write_text(json.dumps(text, indent=1) + "\n")
        os.replace(new, self.folder / "stages.json")


def _copy(source, log) -> None:
    for line in source:
        log.write(line)
        log.flush()
        sys.stdout.write(line)
        sys.stdout.flush()


def _stop(process: subprocess.Popen) -> None:
    """The process and its children: first with a chance to write what they have."""
    for sign, seconds in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
        try:
            os.killpg(process.pid, sign)
            process.wait(seconds)
            return
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            return


# ---- the machine ---------------------------------------------------------------------------------------------------


def find_program(name: str, *folders: Path) -> str | None:
    """In PATH, beside this Python, or in a folder."""
    path = os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent), *map(str, folders)])
    return shutil.which(name, path=path)


def nvidia_smi() -> str:
    program = find_program("nvidia-smi")
    if program is None:
        return "nvidia-smi not found"
    fields = "name,driver_version,memory.total,clocks.sm,clocks.max.sm,power.limit,temperature.gpu,utilization.gpu"
    try:
        command = [program, f"--query-gpu={fields}", "--format=csv"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nvidia-smi: {error}"
    return (done.stdout or done.stderr).strip()


def look(python: str) -> dict:
    """What is installed.

    Raises:
        StageError: without torch there is nothing to do.
    """
    done = subprocess.run([python, "-c", PROBE], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise StageError(f"{python} cannot import torch: {last}")
    cuda_bin = [folder / "bin" for folder in CUDA_FOLDERS]
    programs = {name: find_program(name, *cuda_bin) for name in ("nvcc", "cmake", "ctest", "ninja", "g++")}
    sanitizers = [*cuda_bin, *(folder / "compute-sanitizer" for folder in CUDA_FOLDERS)]
    programs["compute-sanitizer"] = find_program("compute-sanitizer", *sanitizers)
    packages = {name: importlib.util.find_spec(name) is not None for name in ("pytest", "numpy", "hypothesis")}
    return {
        **json.loads(done.stdout.strip().splitlines()[-1]),
        "python": sys.version.split()[0],
        "programs": programs,
        "packages": packages,
        "nvidia-smi": nvidia_smi(),
    }


def describe(run: Run) -> str:
    """What is there, and what is missing."""
    machine = run.machine
    lines = [f"Python {machine['python']}, torch {machine['torch']}, built with CUDA {machine['cuda']}"]
    lines += [f"GPU: {name}, compute capability {major}.{minor}" for name, major, minor in machine["devices"]]
    lines += [f"{name}: {path or 'not found'}" for name, path in machine["programs"].items()]
    missing = [name for name, there in machine["packages"].items() if not there]
    if missing:
        lines.append(f"Python packages that are missing: {', '.join(missing)}")
    return "\n".join([*lines, machine["nvidia-smi"]])


# ---- stages --------------------------------------------------------------------------------------------------------


def googletest() -> str | None:
    """The sources, where they are at hand."""
    candidates = [os.environ.get("LATH_GOOGLETEST"), ROOT / ".deps" / "googletest", "/usr/src/googletest"]
    for folder in filter(None, candidates):
        if (Path(folder) / "googletest" / "CMakeLists.txt").is_file():
            return str(folder)
    return None


def build(run: Run, seconds: float) -> str:
    programs = run.machine["programs"]
    needed = [name for name in ("nvcc", "cmake", "g++") if not programs[name]]
    if needed:
        raise StageError(f"not found: {', '.join(needed)}")
    architectures = sorted({10 * major + minor for _, major, minor in run.machine["devices"]})
    sources = googletest()
    command = [programs["cmake"], "-S", ROOT, "-B", run.build, "-DCMAKE_BUILD_TYPE=Release", "-DLATH_CUDA=ON"]
    command += [f"-DCMAKE_CUDA_COMPILER={programs['nvcc']}"]
    command += ["-DLATH_CUDA_ARCHITECTURES=" + ";".join(map(str, architectures or [90]))]
    command += [f"-DLATH_TESTS={'ON' if sources else 'OFF'}", f"-DLATH_TESTS_ON_GPU={'ON' if sources else 'OFF'}"]
    command += [f"-DLATH_GOOGLETEST={sources}"] if sources else []
    if programs["ninja"]:
        command += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={programs['ninja']}"]
    # Newer compilers warn about more.
    command += ["-DCMAKE_COMPILE_WARNING_AS_ERROR=OFF"]
    started = time.monotonic()
    if run.options.fresh:
        shutil.rmtree(run.build, ignore_errors=True)
    run.check("build", command, seconds)
    left = seconds - (time.monotonic() - started)
    make = [programs["cmake"], "--build", run.build, "--parallel", run.options.jobs, "--target"]
    run.check("build", [*make, "lath_plugin"], left)
    megabytes = (run.build / "liblath_cuda.so").stat().st_size / 1e6
    return f"liblath_cuda.so: {megabytes:.1f} MB in {time.monotonic() - started:.0f} s"


def kernels(run: Run, seconds: float) -> str:
    if googletest() is None:
        raise LeftOutError("GoogleTest is not at hand (LATH_GOOGLETEST may name its sources)")
    programs = run.machine["programs"]
    if not programs["ctest"]:
        raise LeftOutError("ctest not found")
    started = time.monotonic()
    make = [programs["cmake"], "--build", run.build, "--parallel", run.options.jobs, "--target", "gpu_tests"]
    run.check("kernels", make, seconds)
    if run.options.rehearse:
        return "built, not run: rehearsal"
    left = seconds - (time.monotonic() - started)
    options = ["-L", "gpu", "--output-on-failure", "--no-tests=error"]
    run.check("kernels", [programs["ctest"], "--test-dir", run.build, *options], left)
    return ""


def pytest_command(run: Run, *arguments: str) -> list[str]:
    """Without the settings of the project, which ask for a recent pytest, and without plugins."""
    settings = run.folder.joinpath("pytest.ini").resolve()
    markers = ["slow: long", "cpu_only: not here", "cuda: on a GPU", "sanitizer: under it, too"]
    settings.write_text("\n    ".join(["[pytest]\nmarkers =", *markers]) + "\n")
    options = ["-c", str(settings), f"--rootdir={ROOT}", "-p", "no:cacheprovider", "-ra", "--tb=short", "-q"]
    return [run.python, "-m", "pytest", *options, *arguments]


def need_pytest(run: Run) -> None:
    missing = [name for name in ("pytest", "numpy") if not run.machine["packages"][name]]
    if missing:
        raise LeftOutError(f"Python packages are missing: {', '.join(missing)}")


# Files of tests that run on every device. What only CUDA has comes first: out of time, a stage has the rest missing.
ON_DEVICES = (
    *("cuda", "ops", "autograd", "reliability", "modules"),
    *("conv_ops", "conv_autograd", "conv_modules", "oialr_ops", "oialr_conv"),
)


def tests(run: Run, seconds: float) -> str:
    need_pytest(run)
    started = time.monotonic()
    listing = ["--collect-only"] if run.options.rehearse else []
    report = [] if run.options.rehearse else [f"--junitxml={run.folder / 'tests.xml'}"]
    files = [str(ROOT / "tests" / "python" / f"test_{name}.py") for name in ON_DEVICES]
    command = pytest_command(run, "-m", "cuda and not slow", *listing, *report, *files)
    code = run.execute("tests", command, seconds, LATH_TEST_DEVICES="cuda")
    left = seconds - (time.monotonic() - started)
    slow = pytest_command(run, "-m", "cuda and slow", *listing, files[0])
    run.check("tests", slow, left, LATH_TEST_DEVICES="cuda")
    if code:
        raise StageError(f"pytest ended with {code}, see {run.folder / 'tests'}.log")
    return "" if run.machine["packages"]["hypothesis"] else "without the tests that need hypothesis"


def sanitizer(run: Run, seconds: float) -> str:
    program = run.machine["programs"]["compute-sanitizer"]
    if program is None:
        raise LeftOutError("compute-sanitizer not found")
    need_pytest(run)
    if run.options.rehearse:
        raise LeftOutError("rehearsal")
    started = time.monotonic()
    # Blocks of torch's cache would hide what lies between them.
    plain = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    trial = [program, run.python, "-c", "import torch; print(torch.ones(3, device='cuda').sum().item())"]
    if run.execute("sanitizer", trial, seconds / 2, **plain):
        raise LeftOutError("compute-sanitizer does not work here, see sanitizer.log")
    left = seconds - (time.monotonic() - started)
    test = pytest_command(run, "-x", "-m", "sanitizer", str(ROOT / "tests" / "python" / "test_cuda.py"))
    run.check("sanitizer", [program, "--error-exitcode", "9", *test], left, **plain)
    return ""


def bench(run: Run, seconds: float) -> str:
    command = [run.python, ROOT / "bench" / "gpu.py", "--out", run.folder]
    if run.options.rehearse:
        command.append("--rehearse")
    # Time for the case that is being measured, and for the import of torch.
    run.check("bench", [*command, "--seconds", str(int(max(5, seconds - 25)))], seconds)
    return ""


class LeftOutError(RuntimeError):
    """The stage cannot run on this machine, which is no failure."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """``limit``: seconds at most; ``kept``: that later stages leave to this one."""

    work: Callable[[Run, float], str]
    limit: float
    kept: float


STAGES = {
    "build": Stage(build, 240, 60),
    "kernels": Stage(kernels, 100, 0),
    "tests": Stage(tests, 150, 60),
    "sanitizer": Stage(sanitizer, 60, 0),
    "bench": Stage(bench, 300, 120),
}


def perform(run: Run, name: str, later: float) -> Outcome:
    """Run a stage within its limit, and within what it must leave to later ones."""
    stage = STAGES[name]
    # The last stage may take all that is left.
    limit = run.left() if later == 0 else min(stage.limit, run.left() - later)
    started = time.monotonic()
    if limit < 5:
        return Outcome(name, "out of time", 0.0, "the stages before it took everything")
    run.say(f"== {name}, at most {limit:.0f} s")
    try:
        result, text = "passed", stage.work(run, limit)
    except LeftOutError as reason:
        result, text = "left out", str(reason)
    except StageError as error:
        result, text = "failed", str(error)
    return Outcome(name, result, round(time.monotonic() - started, 1), text)


def summary(run: Run) -> str:
    lines = [f"{o.stage:10} {o.result:12} {o.seconds:6.1f} s  {o.text}".rstrip() for o in run.outcomes]
    return "\n".join([*lines, f"results in {run.folder}"])


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=540, help="for everything (default: 540)")
    parser.add_argument(
        "--only", nargs="+", choices=STAGES, metavar="STAGE", default=list(STAGES), help=", ".join(STAGES)
    )
    parser.add_argument("--jobs", default=str(os.cpu_count() or 1), help="parallel jobs of the build")
    parser.add_argument("--out", type=Path, help="folder of the results (default: in bench/results, by date and GPU)")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "gpu", help="folder of the build")
    parser.add_argument("--fresh", action="store_true", help="throw away what an earlier run has built")
    parser.add_argument("--rehearse", action="store_true", help="go through the motions without a GPU")
    return parser.parse_args(arguments)


def folder_of(machine: dict, rehearse: bool) -> Path:
    if rehearse or not machine["devices"]:
        return ROOT / "bench" / "results" / "partial"
    name = re.sub(r"[^a-z0-9]+", "-", machine["devices"][0][0].lower()).strip("-")
    return ROOT / "bench" / "results" / f"{datetime.date.today():%Y-%m-%d}-{name}"


def main(arguments: list[str] | None = None) -> int:
    run = Run(parse(arguments))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped; the logs hold what was done"))
    try:
        run.machine = look(run.python)
    except StageError as error:
        print(error, file=sys.stderr)
        return 1
    run.folder = (run.folder or folder_of(run.machine, run.options.rehearse)).resolve()
    run.folder.mkdir(parents=True, exist_ok=True)
    run.say(describe(run))
    if not run.machine["devices"] and not run.options.rehearse:
        reason = "sees no GPU" if run.machine["cuda"] else "is built without CUDA"
        print(f"torch {reason}, so there is nothing to run. --rehearse goes through the motions.", file=sys.stderr)
        return 1
    chosen = [name for name in STAGES if name in run.options.only]
    for i, name in enumerate(chosen):
        later = sum(STAGES[other].kept for other in chosen[i + 1 :])
        run.outcomes.append(perform(run, name, later))
        run.write()
        if name == "build" and run.outcomes[-1].result != "passed":
            break
    print("\n" + summary(run), flush=True)
    return 0 if all(outcome.result in ("passed", "left out") for outcome in run.outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
