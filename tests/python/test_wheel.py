# SPDX-License-Identifier: Apache-2.0
"""The wheel: one file for every Python and every torch, with the library and the package in it and nothing else."""

from __future__ import annotations

import email
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "bindings" / "python" / "lath"
VERSION = re.search(r'#define LATH_VERSION "(.+)"', (ROOT / "ops" / "lath.h").read_text()).group(1)
PLATFORM = re.sub(r"[-.]", "_", sysconfig.get_platform())

# What a user's first lines do, in a process that knows nothing of this checkout.
FIRST_LINES = """
import sys
from pathlib import Path
import torch
import lath

environment = Path(sys.prefix).resolve()
assert environment in Path(lath.__file__).resolve().parents, lath.__file__
libraries = {line.split()[-1] for line in open("/proc/self/maps") if "liblath_cpu" in line}
assert libraries == {str(Path(lath.__file__).resolve().with_name("liblath_cpu.so"))}, libraries

torch.manual_seed(0)
x, v, u, bias = torch.randn(5, 12), torch.randn(3, 12), torch.randn(7, 3), torch.randn(7)
torch.testing.assert_close(lath.ops.lowrank_linear(x, v, u, bias), x @ v.T @ u.T + bias)
layer = lath.nn.LowRankLinear(12, 7, rank=3)
layer(x).sum().backward()
assert all(parameter.grad is not None for parameter in layer.parameters())
print("version", lath.__version__)
"""


def run(*command: object, **options) -> str:
    """Runs a command outside the checkout, without the variables that would point back into it."""
    clean = {k: v for k, v in os.environ.items() if k not in {"LATH_LIBRARY", "PYTHONPATH", "PYTHONHOME"}}
    done = subprocess.run([str(part) for part in command], env=clean, capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel that `make wheel` left in dist/, else a fresh one."""
    folder = ROOT / "dist"
    if not list(folder.glob(f"lath-{VERSION}-*.whl")):
        if importlib.util.find_spec("scikit_build_core") is None:
            pytest.skip("no wheel in dist/ and no scikit-build-core to build one: run `make wheel`")
        folder = tmp_path_factory.mktemp("dist")
        run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, ROOT)
    (path,) = folder.glob(f"lath-{VERSION}-*.whl")
    return path


def nvcc() -> str | None:
    """The compiler that the build finds, too."""
    folders = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    path = os.pathsep.join([os.environ["PATH"], *(f"{folder}/bin" for folder in folders if folder)])
    return os.environ.get("CUDACXX") or shutil.which("nvcc", path=path)


@pytest.fixture(scope="module")
def members(wheel) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}


def test_tag_serves_every_python(wheel, members):
    assert wheel.name == f"lath-{VERSION}-py3-none-{PLATFORM}.whl"
    tags = email.message_from_bytes(members[f"lath-{VERSION}.dist-info/WHEEL"])
    assert tags.get_all("Tag") == [f"py3-none-{PLATFORM}"]
    assert tags["Root-Is-Purelib"] == "false"


def test_contents_are_the_package_and_the_libraries(members):
    sources = {f"lath/{path.relative_to(PACKAGE)}" for path in PACKAGE.rglob("*") if path.suffix in {".py", ".typed"}}
    records = {f"lath-{VERSION}.dist-info/{name}" for name in ("METADATA", "RECORD", "WHEEL", "licenses/LICENSE")}
    libraries = {"lath/liblath_cpu.so"} | ({"lath/liblath_cuda.so"} if nvcc() else set())
    assert set(members) == sources | records | libraries
    for name in sources:
        assert members[name] == (PACKAGE.parent / name).read_bytes(), f"{name} differs: run `make wheel`"


def test_metadata(members):
    metadata = email.message_from_bytes(members[f"lath-{VERSION}.dist-info/METADATA"])
    assert metadata["Name"] == "lath"
    assert metadata["Version"] == VERSION
    needed = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert needed == ["torch>=2.10"]


def test_libraries_carry_no_trace_of_the_build(members):
    libraries = [name for name in members if name.endswith(".so")]
    assert "lath/liblath_cpu.so" in libraries
    assert [name for name in libraries if members[name].find(f"{ROOT}/".encode()) != -1] == []


def test_runs_in_an_empty_environment(wheel, tmp_path):
    environment = tmp_path / "environment"
    run(sys.executable, "-m", "venv", "--without-pip", environment)
    python = environment / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel)
    # torch is too large to install again: the environment borrows the folders where this process finds it.
    (packages,) = environment.glob("lib/python3*/site-packages")
    folders = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages / "_torch.pth").write_text("\n".join(folders) + "\n")
    assert run(python, "-c", FIRST_LINES, cwd=tmp_path) == f"version {VERSION}\n"
