# SPDX-License-Identifier: Apache-2.0
"""The shared object itself: what it links, what it exports, and how it loads.

A plugin that is bound to one build of torch breaks with the next one. These tests hold the object to the few names that
torch promises to keep, and load it in every way that people load libraries. Each load happens in a fresh process.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lath import _cuda
from lath._load import library_path

ROOT = Path(__file__).resolve().parents[2]
SHIM = ROOT / "bindings" / "torch" / "shim.h"
STUB = ROOT / "bindings" / "torch" / "stub.c"
GUARD = ROOT / "tests" / "abi" / "guard.cc"

# What the C library and the linker's own start-up code may be asked for, besides torch.
LIBC = {
    *("aligned_alloc", "free", "madvise", "memcpy", "memmove", "memset", "strcmp", "strlen", "strncmp"),
    *("getenv", "snprintf", "vsnprintf", "fprintf", "fputc", "fputs", "fwrite", "stderr"),
    *("exp", "expf", "log", "sqrt", "sqrtf", "tanh", "tanhf"),
    *("__cxa_finalize", "__gmon_start__", "_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable"),
    # The same functions as distributions harden them.
    *("__fprintf_chk", "__memcpy_chk", "__memset_chk", "__snprintf_chk", "__stack_chk_fail", "__vsnprintf_chk"),
}


def tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def output_of(*command: object) -> str:
    return subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True).stdout


# The object for CUDA asks for what the runtime of CUDA, which is linked into it, needs of the C library: names with a
# version of that library. Besides, for these.
CUDA_LIBC = {
    "__cxa_guard_acquire@CXXABI_1.3",
    "__cxa_guard_release@CXXABI_1.3",
    "_ITM_deregisterTMCloneTable",
    "_ITM_registerTMCloneTable",
    "__gmon_start__",
}


@pytest.fixture(scope="module")
def cuda_library() -> Path:
    """The object for CUDA, whether or not this torch can load it."""
    path = _cuda.library_path(library_path())
    if path is None or not path.is_file():
        pytest.skip(f"there is no {_cuda.LIBRARY_NAME}: built without nvcc")
    return path


@pytest.fixture(scope="module")
def cuda_torch(cuda_library) -> Path:
    if torch.version.cuda is None:
        pytest.skip("torch is built without CUDA")
    return cuda_library


def shim_names(macro: str = "SHIM_FUNCTIONS_[A-Z]+") -> set[str]:
    """The functions in a list of shim.h: lines of the form X(type, name, (parameters))."""
    names = set()
    for body in re.findall(rf"#define {macro}\(X\)((?:.*\\\n)*.*\n)", SHIM.read_text()):
        names |= set(re.findall(r"\bX\([^,]+?,\s*(\w+),", body))
    return names


def versioned_symbols(kind: str, library: Path) -> list[str]:
    lines = output_of(tool("nm"), "--dynamic", f"--{kind}-only", library).splitlines()
    return [line.split()[-1] for line in lines]


def dynamic_symbols(kind: str, library: Path | None = None) -> set[str]:
    return {name.split("@")[0] for name in versioned_symbols(kind, library or library_path())}


def dynamic_section(tag: str, library: Path | None = None) -> list[str]:
    text = output_of(tool("readelf"), "--dynamic", "--wide", library or library_path())
    return re.findall(rf"\({tag}\).*\[(.*)\]", text)


def documented_names(*header: str) -> set[str]:
    return set(re.findall(r"LATH_API [^;]*?\b(lath_\w+)\s*[(;]", ROOT.joinpath(*header).read_text()))


# ---- what the object asks of its surroundings ----------------------------------------------------------------------


def test_needed_libraries():
    needed = dynamic_section("NEEDED")
    assert "libtorch_cpu.so" in needed
    assert set(needed) <= {"libtorch_cpu.so", "libc.so.6", "libm.so.6"}


@pytest.mark.parametrize("tag", ["RPATH", "RUNPATH"])
def test_no_search_path(tag):
    assert dynamic_section(tag) == []


def test_imports_only_listed_names():
    listed = shim_names()
    assert {"aoti_torch_check", "torch_library_impl"} <= listed, "the list was not understood"
    imported = dynamic_symbols("undefined")
    assert imported - listed - LIBC == set()
    # These two are for the object for CUDA, but every libtorch_cpu.so has them.
    unused = listed - imported - {"aoti_torch_device_type_cuda", "aoti_torch_get_device_index"}
    assert unused == set(), "listed, but not used"


def test_listed_names_exist_in_torch():
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    assert shim_names() - dynamic_symbols("defined", library) == set()


def test_listed_names_exist_in_the_cuda_library_of_torch():
    library = Path(torch.__file__).parent / "lib" / "libtorch_cuda.so"
    if not library.is_file():
        pytest.skip("torch is built without CUDA")
    listed = shim_names("SHIM_CUDA_FUNCTIONS_[A-Z]+")
    assert len(listed) > 3, "the list was not understood"
    assert listed - dynamic_symbols("defined", library) == set()


def test_exports_only_the_documented_interface():
    documented = documented_names("ops", "lath.h")
    assert {"lath_linear", "lath_serial_host"} <= documented, "lath.h was not understood"
    assert dynamic_symbols("defined") == documented


def test_no_executable_stack_and_no_text_relocations():
    assert re.search(r"GNU_STACK.* RW ", output_of(tool("readelf"), "--segments", "--wide", library_path()))
    assert dynamic_section("TEXTREL") == []


# ---- the object for CUDA -------------------------------------------------------------------------------------------


def test_cuda_object_needs_torch_and_the_c_library(cuda_library):
    """No library of CUDA: one file serves the builds of torch for every CUDA version.

    nvcc guards a variable in the host code of each kernel template with two functions of the C++ runtime.
    """
    needed = dynamic_section("NEEDED", cuda_library)
    assert {"libtorch_cpu.so", "libtorch_cuda.so"} <= set(needed)
    c_library = {"libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "ld-linux-x86-64.so.2"}
    c_library |= {"libstdc++.so.6"}
    assert set(needed) - c_library == {"libtorch_cpu.so", "libtorch_cuda.so"}
    assert [dynamic_section(tag, cuda_library) for tag in ("RPATH", "RUNPATH", "TEXTREL")] == [[], [], []]


def test_cuda_object_imports_only_listed_names(cuda_library):
    listed = shim_names("SHIM(?:_CUDA)?_FUNCTIONS_[A-Z]+")
    imported = versioned_symbols("undefined", cuda_library)
    others = {name for name in imported if "@GLIBC_" not in name} - CUDA_LIBC
    assert others - listed == set()
    assert shim_names("SHIM_CUDA_FUNCTIONS_[A-Z]+") - others == set(), "listed, but not used"


def test_cuda_object_exports_only_the_documented_interface(cuda_library):
    documented = documented_names("cuda", "lath_cuda.h") | documented_names("bindings", "torch", "targets_cuda.h")
    assert {"lath_cuda_linear", "lath_cuda_targets"} <= documented, "the headers were not understood"
    assert dynamic_symbols("defined", cuda_library) == documented


def test_cuda_object_loads_without_a_device(cuda_torch):
    """And so it does without the Python package, twice, and in a child that does not inherit the context of CUDA."""
    assert_loads(
        """
assert not torch.cuda.is_initialized()
[torch.ops.load_library(path) for path in (sys.argv[1], sys.argv[2], sys.argv[2])]
works()
names = ["linear", "lowrank_linear", "lowrank_linear_forward", "lowrank_linear_backward"]
names += ["frobenius_decay", "frobenius_decay_backward"]
assert all(torch._C._dispatch_has_kernel_for_dispatch_key("lath::" + name, "CUDA") for name in names)
assert not torch.cuda.is_initialized()
child = os.fork()
if child == 0:
    works()
    os._exit(42)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
""",
        cuda_torch,
    )


def test_second_copy_of_the_cuda_object_is_told_and_changes_nothing(cuda_torch, tmp_path):
    code = """
[torch.ops.load_library(path) for path in sys.argv[1:3]]
shutil.copy(sys.argv[2], sys.argv[3])
torch.ops.load_library(sys.argv[3])
works()
"""
    lines = assert_loads(code, cuda_torch, tmp_path / "liblath_cuda.so").splitlines()
    lines = [line for line in lines if line.startswith("lath: ")]
    assert len(lines) == 1
    assert "another copy of lath is loaded already and stays in use" in lines[0]


def test_cuda_object_without_a_cuda_torch_names_the_missing_library(cuda_library, tmp_path):
    """In a process that has no libtorch_cuda.so, here one with a stand-in for libtorch_cpu.so."""
    fake = tmp_path / "libtorch_cpu.so"
    output_of(tool("cc"), "-shared", "-fPIC", "-Wl,-soname,libtorch_cpu.so", "-o", fake, STUB)
    code = "ctypes.CDLL(sys.argv[2]); ctypes.CDLL(sys.argv[3])"
    done = run_python(code, fake, cuda_library, prelude="import ctypes, sys\n")
    assert done.returncode == 1
    assert "OSError: libtorch_cuda.so" in done.stderr


def test_build_uses_no_header_of_torch():
    sources = sorted(p for folder in ("ops", "cuda", "bindings/torch") for p in (ROOT / folder).rglob("*.[chi]*"))
    assert SHIM in sources
    included = {name for p in sources for name in re.findall(r"#\s*include\s*[<\"]([^>\"]+)", p.read_text())}
    assert "stdint.h" in included
    assert [name for name in included if name.startswith(("torch/", "ATen/", "c10/"))] == []


# ---- our prototypes against torch's headers ------------------------------------------------------------------------


def compile_guard(*flags: str) -> subprocess.CompletedProcess:
    includes = ["-isystem", str(Path(torch.__file__).parent / "include"), "-I", str(SHIM.parent)]
    target = "-DTORCH_TARGET_VERSION=0x020a000000000000"
    command = [tool("g++"), "-std=c++20", "-fsyntax-only", target, *includes, *flags, str(GUARD)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("flags", [[], ["-DUSE_CUDA"]], ids=["cpu", "cuda"])
def test_prototypes_match_the_headers_of_torch(flags):
    done = compile_guard("-Wall", "-Werror", *flags)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-DGUARD_BREAK_TYPE"], "shim.h and torch disagree on aoti_torch_get_dim"),
        (["-DGUARD_BREAK_NAME"], "aoti_torch_no_such_function"),
        (["-DUSE_CUDA", "-DGUARD_BREAK_CUDA_TYPE"], "shim.h and torch disagree on aoti_torch_get_current_cuda_stream"),
    ],
)
def test_guard_notices_a_wrong_prototype(flags, message):
    done = compile_guard(*flags)
    assert done.returncode != 0
    assert message in done.stderr


# ---- ways to load it -----------------------------------------------------------------------------------------------

PRELUDE = """
import ctypes, os, shutil, sys, threading
import torch

path = sys.argv[1]

def works():
    x, v, u = torch.ones(4, 3), torch.ones(2, 3), torch.ones(5, 2)
    none = torch.empty(0)
    y = torch.ops.lath.lowrank_linear(x, v, u, none, none)
    assert torch.equal(y, torch.full((4, 5), 6.0)), y
"""


def run_python(code: str, *arguments: object, prelude: str = PRELUDE) -> subprocess.CompletedProcess:
    """Runs the code in a fresh interpreter that has not imported lath; sys.argv[1] is the library."""
    command = [sys.executable, "-c", prelude + code, str(library_path()), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def assert_loads(code: str, *arguments: object) -> str:
    done = run_python(code, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_loads_without_the_python_package():
    assert_loads("torch.ops.load_library(path); works(); assert 'lath' not in sys.modules")


def test_package_imports_torch_by_itself():
    done = run_python("import lath; print(sys.modules['torch'].__version__)", prelude="import sys\n")
    assert done.stdout.strip() == torch.__version__, done.stderr


def test_without_torch_the_error_names_the_missing_library():
    done = run_python("ctypes.CDLL(sys.argv[1])", prelude="import ctypes, sys\n")
    assert done.returncode == 1
    assert "OSError: libtorch_cpu.so" in done.stderr


def test_loads_twice():
    stderr = assert_loads("torch.ops.load_library(path); torch.ops.load_library(path); works()")
    assert "lath:" not in stderr


def test_second_copy_of_the_file_is_told_and_changes_nothing(tmp_path):
    code = "torch.ops.load_library(path); shutil.copy(path, sys.argv[2]); torch.ops.load_library(sys.argv[2]); works()"
    stderr = assert_loads(code, tmp_path / "liblath_cpu.so")
    lines = [line for line in stderr.splitlines() if line.startswith("lath: ")]
    assert len(lines) == 1
    assert "another copy of lath is loaded already and stays in use" in lines[0]


def test_package_after_plain_load():
    assert_loads("torch.ops.load_library(path); import lath; works()")


def test_loads_in_a_thread():
    assert_loads(
        """
thread = threading.Thread(target=torch.ops.load_library, args=(path,))
thread.start(); thread.join(); works()
results = []
threads = [threading.Thread(target=lambda: results.append(works())) for _ in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
assert results == [None] * 4
"""
    )


@pytest.mark.parametrize("load_first", [True, False])
def test_works_in_a_forked_child(load_first):
    assert_loads(
        f"""
torch.set_num_threads(1)
if {load_first}: torch.ops.load_library(path); works()
child = os.fork()
if child == 0:
    if not {load_first}: torch.ops.load_library(path)
    works()
    os._exit(42)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
"""
    )


def test_load_and_calls_leave_the_floating_point_mode_alone():
    """Objects linked with -ffast-math switch denormal numbers off for the whole process when they are loaded."""
    assert_loads(
        """
def mode():
    tiny = float("2.2250738585072014e-308")  # the smallest normal number
    bits = b""
    if os.uname().machine == "x86_64":  # fenv_t holds the x87 control word first and MXCSR last
        env = ctypes.create_string_buffer(32)
        ctypes.CDLL("libm.so.6").fegetenv(env)
        mxcsr = int.from_bytes(env.raw[28:32], "little") & ~0x3F  # the low bits are sticky flags, not modes
        bits = env.raw[:2] + mxcsr.to_bytes(4, "little")
    return bits, tiny / 2 > 0, 5e-324 * 1.0 > 0

before = mode()
assert before[1:] == (True, True)
torch.ops.load_library(path)
assert mode() == before
works()
assert mode() == before
"""
    )


# ---- a torch that is too old ---------------------------------------------------------------------------------------


def load_beside_fake_torch(folder: Path, *flags: str) -> subprocess.CompletedProcess:
    """Loads the library beside a libtorch_cpu.so made from the link-time stub."""
    fake = folder / "libtorch_cpu.so"
    output_of(tool("cc"), "-shared", "-fPIC", "-Wl,-soname,libtorch_cpu.so", *flags, "-o", fake, STUB)
    code = "ctypes.CDLL(sys.argv[2]); ctypes.CDLL(sys.argv[1]); print('still here')"
    return run_python(code, fake, prelude="import ctypes, sys\n")


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (
            ["-DSTUB_RETURN=0x0209000000000000"],
            "lath: found torch 2.9, expected 2.10 or newer (pip install --upgrade torch); no operator was registered",
        ),
        (
            ["-DSTUB_LIST=SHIM_FUNCTIONS_BASE"],
            "lath: found torch older than 2.9, expected 2.10 or newer (pip install --upgrade torch);"
            " no operator was registered",
        ),
        (
            ["-DSTUB_RETURN=0x020f000000000000", "-Daoti_torch_library_def=renamed"],
            "lath: this torch lacks the function aoti_torch_library_def; this copy registered no operator",
        ),
        (
            ["-DSTUB_RETURN=0x020f000000000001"],
            "lath: torch refused the namespace lath; this copy registered no operator",
        ),
    ],
    ids=["2.9", "older", "function-gone", "refusing"],
)
def test_unsuitable_torch_gets_one_clear_line(tmp_path, flags, line):
    done = load_beside_fake_torch(tmp_path, *flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "still here"
    assert done.stderr.splitlines() == [line]


def test_names_newer_than_the_oldest_load_are_weak():
    """Else the linker stops at an old torch with "undefined symbol", before the library can say what is wrong."""
    lines = output_of(tool("nm"), "--dynamic", "--undefined-only", library_path()).splitlines()
    weak = {line.split()[-1] for line in lines if line.split()[0] in ("w", "v")}
    assert shim_names("SHIM_FUNCTIONS_STABLE") <= weak
    assert not shim_names("SHIM_FUNCTIONS_BASE") & weak


def test_the_library_under_test_is_the_one_that_is_loaded():
    loaded = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "liblath_cpu" in line}
    assert loaded == {os.path.realpath(library_path())}
