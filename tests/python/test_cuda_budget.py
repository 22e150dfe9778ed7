# SPDX-License-Identifier: Apache-2.0
"""tools/cuda_budget.py on made-up output of the compiler: what it reads, what it counts, what it refuses."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).resolve().parents[2] / "tools" / "cuda_budget.py"
SPEC = importlib.util.spec_from_file_location("cuda_budget", FILE)
budget = importlib.util.module_from_spec(SPEC)
sys.modules["cuda_budget"] = budget
SPEC.loader.exec_module(budget)

LOG = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z3oneILi64EEvPf' for 'sm_80'
ptxas info    : Function properties for _Z3oneILi64EEvPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 1024 bytes smem, 360 bytes cmem[0]
ptxas info    : Compiling entry function '_Z3twov' for 'sm_80'
ptxas info    : Function properties for _Z3twov
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, 360 bytes cmem[0]
"""

PTX = """\
.visible .entry _Z3oneILi64EEvPf(
 cp.async.cg.shared.global [%r1], [%rd1], 16, %r2;
 cp.async.commit_group;
 ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r3, %r4, %r5, %r6}, [%r7];
 mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f1}, {%r3}, {%r4}, {%f1};
 mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f1}, {%r3}, {%r4}, {%f1};
 ld.global.nc.v4.u32 {%r1, %r2, %r3, %r4}, [%rd1];
 ld.global.v2.u64 {%rd1, %rd2}, [%rd1];
 ld.global.v2.u32 {%r1, %r2}, [%rd1];
}
.entry _Z3twov()
{ ret; }
"""


def kernel(
    usage: budget.Usage, threads: int = 128, dynamic: int | None = 0, counts: dict | None = None
) -> budget.Kernel:
    counts = dict.fromkeys(budget.INSTRUCTIONS, 0) | (counts or {})
    return budget.Kernel("a.cu: k", threads, dynamic, counts, {"sm_80": usage})


def test_reads_what_ptxas_says():
    assert budget.parse_ptxas(LOG) == {
        "_Z3oneILi64EEvPf": budget.Usage(40, 0, 0, 0, 1024),
        "_Z3twov": budget.Usage(255, 16, 8, 12, 0),
    }


def test_says_so_when_ptxas_says_nothing():
    with pytest.raises(budget.BudgetError, match="_Z3onev"):
        budget.parse_ptxas("Compiling entry function '_Z3onev' for 'sm_80'\n")


def test_counts_instructions_of_each_kernel():
    counts = budget.count_instructions(PTX)
    assert counts["_Z3oneILi64EEvPf"] == {"mma.sync": 2, "ldmatrix": 1, "cp.async": 1, "16-byte loads": 2}
    assert set(counts["_Z3twov"].values()) == {0}


def test_reads_launch_comments():
    source = "/* launch: a threads=64 shared=0 */ /* launch: b threads=32 shared=8,16 for R 1,2 */"
    source += "/* launch: c threads=32 shared=dynamic (c_bytes) */"
    launches = budget.parse_launches(source)
    assert launches["a"].shared_bytes([]) == 0
    assert launches["b"].shared_bytes(["2", "float"]) == 16
    assert launches["c"].shared_bytes(["float"]) is None
    with pytest.raises(budget.BudgetError, match="template arguments 3"):
        launches["b"].shared_bytes(["3"])


@pytest.mark.parametrize(
    "source",
    [
        "/* launch: a threads=64 */",
        "/* launch: a threads=64 shared=8,16 for R 1 */",
        "/* launch: a threads=64 shared=0 */ /* launch: a threads=32 shared=0 */",
    ],
)
def test_refuses_launch_comments_that_it_cannot_use(source):
    with pytest.raises(budget.BudgetError, match="launch"):
        budget.parse_launches(source)


@pytest.mark.parametrize(
    ("signature", "name", "arguments"),
    [
        ("k(float*)", "k", []),
        ("void k<64, false, __half>(args<__half>)", "k", ["64", "false", "__half"]),
        ("void k<shape<64, 32>, float>(int)", "k", ["shape<64, 32>", "float"]),
        ("void (anonymous namespace)::k<(bool)1>(int)", "k", ["1"]),
    ],
)
def test_splits_names_of_kernels(signature, name, arguments):
    assert budget.split_name(signature) == (name, arguments)


# Worked by hand from the limits of compute capability 8.0: 2048 threads, 32 blocks, 65536 registers, 164 KiB of shared
# memory.
@pytest.mark.parametrize(
    ("registers", "static", "dynamic", "threads", "blocks"),
    [
        (32, 0, 0, 256, 8),  # threads
        (16, 0, 0, 32, 32),  # blocks
        (128, 0, 0, 256, 2),  # registers
        (129, 0, 0, 256, 1),  # registers, in units of 8 a thread
        (255, 0, 0, 512, 0),  # more registers than there are
        (32, 40 << 10, 0, 128, 4),  # shared memory, with 1 KiB for the system
        (32, 0, 163 << 10, 128, 1),
        (32, 8, 163 << 10, 128, 0),  # static and dynamic together
        (32, 0, 0, 1056, 0),
    ],
)
def test_counts_blocks_that_fit(registers, static, dynamic, threads, blocks):
    usage = budget.Usage(registers, 0, 0, 0, static)
    assert budget.blocks_that_fit(budget.DEVICES["sm_80"], usage, threads, dynamic) == blocks


def test_faults_name_stack_spills_and_blocks_that_do_not_fit():
    assert kernel(budget.Usage(40, 0, 0, 0, 0)).faults() == []
    assert "16 bytes of stack" in kernel(budget.Usage(40, 16, 0, 0, 0)).faults()[0]
    assert "8 of spill stores" in kernel(budget.Usage(40, 0, 8, 0, 0)).faults()[0]
    assert "no block fits" in kernel(budget.Usage(40, 0, 0, 0, 0), dynamic=1 << 20).faults()[0]


def test_a_changed_table_is_shown_as_a_difference():
    old = budget.table("nvcc 1", [kernel(budget.Usage(40, 0, 0, 0, 0))])
    kernels = [kernel(budget.Usage(48, 0, 0, 0, 0))]
    new = budget.table("nvcc 1", kernels)
    assert budget.compare(new, new, "nvcc 1", kernels) == []
    (fault,) = budget.compare(old, new, "nvcc 1", kernels)
    assert "-  sm_80   40 registers" in fault
    assert "+  sm_80   48 registers" in fault
    assert "make cuda-budget" in fault


def test_under_another_compiler_only_lost_instructions_count():
    usage = budget.Usage(40, 0, 0, 0, 0)
    old = budget.table("nvcc 1", [kernel(usage, counts={"mma.sync": 8, "cp.async": 4})])
    kernels = [kernel(usage, counts={"mma.sync": 16})]
    assert budget.compare(old, budget.table("nvcc 2", kernels), "nvcc 2", kernels) == ["a.cu: k: no cp.async any more"]
