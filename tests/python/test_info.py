# SPDX-License-Identifier: Apache-2.0
"""Versions, the text for bug reports, and what an import says that cannot work."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import lath
import pytest
import torch
from lath import _cuda, _load

ROOT = Path(__file__).resolve().parents[2]


def import_lath(**environment):
    """The last line that ``import lath`` prints in a fresh process."""
    run = subprocess.run(
        [sys.executable, "-c", "import lath"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode != 0
    return run.stderr.strip().splitlines()[-1]


def test_version_is_that_of_the_library():
    header = (ROOT / "ops" / "lath.h").read_text()
    assert re.search(r'#define LATH_VERSION "([^"]+)"', header)[1] == lath.__version__


def test_public_names_exist():
    assert all(hasattr(lath, name) for name in lath.__all__)
    assert all(hasattr(lath.ops, name) for name in lath.ops.__all__)


def test_info():
    info = lath.info()
    assert info.lath == lath.__version__
    assert info.torch == torch.__version__
    assert Path(info.library).is_file()
    assert info.isa in lath.ops.ISA_NAMES
    assert info.cuda.startswith(("on: cuda:0 is ", "off: "))
    assert all(str(value) in str(info) for value in vars(info).values())


def test_command_line():
    run = subprocess.run([sys.executable, "-m", "lath"], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == str(lath.info())


@pytest.mark.parametrize("isa", ["generic", "avx2"])
def test_isa_can_be_lowered(isa):
    script = "import lath; print(lath.ops.cpu_isa())"
    run = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "LATH_ISA": isa}, capture_output=True, text=True, check=True
    )
    assert lath.ops.ISA_NAMES.index(run.stdout.strip()) <= lath.ops.ISA_NAMES.index(isa)


def test_unknown_isa_is_ignored_with_a_warning():
    script = "import lath; print(lath.ops.cpu_isa())"
    environment = {**os.environ, "LATH_ISA": "sse9"}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert "LATH_ISA is 'sse9', expected one of ('generic', 'avx2', 'avx512'); it is ignored" in run.stderr
    assert run.stdout.strip() in lath.ops.ISA_NAMES


# ---- the CUDA side -------------------------------------------------------------------------------------------------

SAY = "import lath; print(lath.info().cuda)"
CALL = """
import torch, lath
from torch._subclasses.fake_tensor import FakeTensorMode
print(lath.info().cuda)
x, v, u = torch.ones(4, 3), torch.ones(2, 3), torch.ones(5, 2)
assert torch.equal(lath.ops.lowrank_linear(x, v, u), torch.full((4, 5), 6.0))
with FakeTensorMode():
    x, v, u = (torch.empty(n, device="cuda") for n in ((4, 3), (2, 3), (5, 2)))
    assert lath.ops.lowrank_linear(x, v, u).shape == (4, 5)
"""
needs_cuda_torch = pytest.mark.skipif(torch.version.cuda is None, reason="torch is built without CUDA")


def say(script=SAY, **environment):
    """What the script prints in a fresh process, which ends well."""
    run = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return run.stdout.strip()


def test_info_without_cuda_torch(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    status = _cuda.load(lath.LIBRARY)
    assert _cuda.describe(status) == f"off: torch {torch.__version__} is built without CUDA"
    assert _cuda.refuse(status) is None


@needs_cuda_torch
def test_cuda_library_that_is_not_there(tmp_path):
    missing = tmp_path / "nowhere.so"
    text = say(CALL, LATH_CUDA_LIBRARY=str(missing))
    assert text == f"off: {missing} does not exist: this lath was built without nvcc"


@needs_cuda_torch
def test_cuda_library_that_is_switched_off():
    assert say(CALL, LATH_CUDA_LIBRARY="") == "off: LATH_CUDA_LIBRARY is empty, which switches it off"


@needs_cuda_torch
def test_cuda_library_that_does_not_load(tmp_path):
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"not a shared object")
    text = say(CALL, LATH_CUDA_LIBRARY=str(broken))
    assert text.startswith(f"off: cannot load {broken} into torch {torch.__version__}: ")


@needs_cuda_torch
def test_cuda_library_that_registers_nothing():
    other = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    text = say(CALL, LATH_CUDA_LIBRARY=str(other))
    assert text == f"off: {other} was loaded into torch {torch.__version__}, but it registered no kernels"


@needs_cuda_torch
def test_operators_say_why_cuda_is_off():
    """What a user would see with a GPU: the kernel that stands in for the missing one is called as torch would."""
    script = """
import lath, torch
from lath import _cuda
name = "lath::lowrank_linear"
assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA")
try:
    _cuda._refuse("lowrank_linear", _cuda.status.reason, None)
except RuntimeError as error:
    print(error)
try:
    lath.ops.lowrank_linear_plan(1, 2, 1, 2, device="cuda")
except RuntimeError as error:
    print(error)
"""
    reason = "the CUDA side of lath is off: LATH_CUDA_LIBRARY is empty, which switches it off"
    lines = say(script, LATH_CUDA_LIBRARY="").splitlines()
    assert lines[0] == f"lath::lowrank_linear: got CUDA tensors, but {reason}"
    assert lines[1] == f"lath.lowrank_linear_plan: {reason}"


@pytest.mark.skipif(not _cuda.status.loaded, reason="liblath_cuda.so is not loaded")
def test_loaded_library_says_what_it_holds_code_for():
    held = _cuda.targets(_cuda.status.path)
    assert re.fullmatch(r"sm_\d+(, sm_\d+)* and PTX of compute_\d+", held)
    assert held in lath.info().cuda
    if not torch.cuda.is_available():
        assert lath.info().cuda.startswith("off: torch sees no device")


@pytest.mark.parametrize(
    ("capability", "served"),
    [
        ((7, 5), False),
        ((8, 0), True),
        ((8, 9), True),
        ((9, 0), True),
        ((10, 0), False),
        ((12, 0), True),
        ((13, 1), True),
    ],
)
def test_capabilities_that_are_served(capability, served):
    assert _cuda.serves("sm_80, sm_86, sm_90 and PTX of compute_120", capability) == served


@pytest.mark.skipif(not _cuda.status.loaded, reason="liblath_cuda.so is not loaded")
def test_info_of_devices(monkeypatch):
    monkeypatch.setattr(_cuda, "targets", lambda path: "sm_90 and PTX of compute_90")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"Board {index}")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9 - 2 * index, 5 * index))
    old = "cuda:1 is Board 1 with compute capability 7.5, for which the library holds no code"
    path = _cuda.status.path
    held = f"({path}, with code for sm_90 and PTX of compute_90)"
    assert lath.info().cuda == f"on: cuda:0 is Board 0 with compute capability 9.0; {old} {held}"

    def fails(index):
        raise RuntimeError("The NVIDIA driver is too old\nmore text")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", fails)
    assert lath.info().cuda == f"off: cuda:0 cannot be used: The NVIDIA driver is too old {held}"


# ---- imports that cannot work ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["2.10.0", "2.10.0+cu128", "2.15.1", "3.0.0a0+git1234"])
def test_torch_new_enough(version):
    _load.check_torch(version)


@pytest.mark.parametrize("version", ["2.9.1", "1.13.0", "unknown"])
def test_torch_too_old(version):
    with pytest.raises(ImportError, match=rf"lath needs torch >= 2.10, but torch {version} is installed"):
        _load.check_torch(version)


def test_missing_library(tmp_path):
    missing = tmp_path / "nowhere.so"
    message = import_lath(LATH_LIBRARY=str(missing))
    assert message == f"ImportError: lath: the operator library {missing} does not exist (LATH_LIBRARY points there)"


def test_library_that_does_not_load(tmp_path):
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"not a shared object")
    message = import_lath(LATH_LIBRARY=str(broken))
    assert message.startswith(f"ImportError: lath: cannot load {broken} into torch {torch.__version__}: ")


def test_library_of_something_else():
    other = next((Path(torch.__file__).parent / "lib").glob("libtorch_cpu.so"))
    assert "registered no lath operators" in import_lath(LATH_LIBRARY=str(other))
