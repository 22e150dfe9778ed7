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
from lath import _load

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
    assert info.cuda.startswith("off")
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
