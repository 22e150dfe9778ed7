# SPDX-License-Identifier: Apache-2.0
"""The benchmark of LSTMs: its baselines compute what lath computes, its counts are right, its sections give rows."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from benching import ROOT, bench_modules, read, run_benchmark
from lath.nn import LowRankLSTM
from torch import nn

TINY = {"batch": 2, "steps": 3, "n_in": 5, "hidden": 32, "layers": 2, "rank": 4}

pytestmark = [
    pytest.mark.cpu_only,
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
]


@pytest.fixture(autouse=True, scope="module")
def _bench_modules():
    with bench_modules():
        yield


@pytest.fixture
def lstm():
    import lstm

    return lstm


def outputs(*modules: nn.Module, width: int):
    """Output and the gradient of x, of each module."""
    x = torch.randn(7, 3, width, requires_grad=True)
    direction = None
    for module in modules:
        y = module(x)
        y = y[0] if isinstance(y, tuple) else y
        direction = torch.randn_like(y) if direction is None else direction
        yield y, torch.autograd.grad((y * direction).sum(), x)[0]


# ---- the baselines ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hoisted", [False, True])
@pytest.mark.parametrize("input_rank", [0, 3, (0, 3)])
def test_the_loop_of_cells_is_the_same_function(input_rank, hoisted):
    from lstm_baselines import loop

    module = LowRankLSTM(5, 16, 4, 2, input_rank=input_rank)
    scripted = loop(module, hoisted)
    assert isinstance(scripted, torch.jit.ScriptModule)
    expected, got = outputs(module, scripted, width=5)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("ranks", "input_ranks"), [((4,), (0,)), ((4,), (2,)), ((4, 3), (0, 6)), ((1, 5, 2), (3, 1, 4))]
)
def test_the_projected_lstm_returns_v_h(ranks, input_ranks):
    from lstm_baselines import ProjectedLSTM

    module = LowRankLSTM(5, 16, ranks, len(ranks), input_rank=input_ranks)
    assert ProjectedLSTM.possible(module)
    v = getattr(module, f"weight_hh_v_l{len(ranks) - 1}")
    expected, got = outputs(lambda x: module(x)[0] @ v.mT, ProjectedLSTM(module), width=5)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_the_projected_lstm_multiplies_nothing_by_zero_that_it_can_slice_away():
    from lstm_baselines import ProjectedLSTM

    twin = ProjectedLSTM(LowRankLSTM(5, 16, (4, 3), 2, input_rank=(2, 6)))
    assert [(layer.input_size, layer.proj_size) for layer in twin.layers] == [(2, 10), (6, 3)]


@pytest.mark.parametrize(
    ("ranks", "input_ranks", "possible"),
    [
        ((4, 4), (0, 0), False),  # the second layer reads h
        ((10, 4), (0, 6), False),  # as wide as h
        ((9, 4), (0, 6), True),
        ((16,), (0,), False),
        ((15,), (9,), True),
    ],
)
def test_where_a_projected_lstm_is_possible(ranks, input_ranks, possible):
    from lstm_baselines import ProjectedLSTM

    assert ProjectedLSTM.possible(LowRankLSTM(5, 16, ranks, len(ranks), input_rank=input_ranks)) is possible


def test_the_dense_baselines():
    from lstm_baselines import DenseLSTM, OwnDenseLSTM

    module = LowRankLSTM(5, 16, 4, 2)
    expected, got = outputs(module, DenseLSTM(module), width=5)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)

    own = OwnDenseLSTM(module)
    twin = nn.LSTM(5, 16, 2)
    with torch.no_grad():
        for k, layer in enumerate(own.layers):
            values = {
                "weight_ih": layer["u_in"],
                "weight_hh": layer["u"] @ layer["v"],
                "bias_ih": layer["bias_in"],
                "bias_hh": layer["bias"],
            }
            for name, value in values.items():
                getattr(twin, f"{name}_l{k}").copy_(value)
    expected, got = outputs(twin, own, width=5)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_the_faster_call_is_taken():
    from lstm_baselines import faster

    assert faster({"slow": lambda: torch.randn(300, 300).svd(), "fast": lambda: None}) == "fast"


# ---- counts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rank", "macs_of_a_token", "merging"),
    [
        (51, 204_032, 0),  # as published, with the first input weight dense
        # Two products of the factors cost as much as merging them, once for 10,240 tokens, and the merged one.
        (204, 8 * 1024 + 3 * 204 * (256 + 1024), 0),
        (256, 794_624, 2 * 256 * 1024 * 256),  # input weights are dense, for factors would cost more
    ],
)
def test_multiply_adds_of_the_character_lstm(lstm, rank, macs_of_a_token, merging):
    case = lstm.CHARACTERS._replace(rank=rank)
    assert case.dense_macs == case.tokens * 794_624
    assert case.macs == case.tokens * macs_of_a_token + merging


def test_a_goal_where_less_is_better():
    from rows import Goal

    goal = Goal("floats", 100.0, 80.0)
    assert [goal.verdict(value) for value in (80.0, 100.0, 101.0)] == ["target", "floor", "below"]


def test_rows_survive_json(lstm):
    from rows import Goal, Row

    row = Row(
        section="lstm-forward", case="x", mode="", rows=None, rank=4, threads=1, isa="avx2", baseline=3.0, lath=1.0,
        tokens=8, rivals={"loop": 2.0, "projected": 4.0}, rival_goals=(Goal("vs rivals", 1.3, 2.5),),
    )  # fmt: skip
    again = Row.from_dict(json.loads(json.dumps(row.as_dict())))
    assert again == row
    assert (again.versus("loop"), again.versus("torch"), again.rival_speedup("projected")) == (2.0, None, 0.75)
    assert (again.vs_rivals, again.rival_verdict, again.tokens_per_second) == (2.0, "floor", 8.0)


# ---- sections --------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(lstm, monkeypatch):
    """Sections of tiny cases."""
    import lstm_memory

    case = lstm.Case(**TINY)
    monkeypatch.setattr(lstm, "CASES", {case: next(iter(lstm.CASES.values()))})
    for name in ("CHARACTERS", "ONE_SAMPLE", "WIDE"):
        monkeypatch.setattr(lstm, name, case)
    monkeypatch.setattr(lstm_memory, "CASES", (case,))
    return case


def test_the_group_has_all_its_sections():
    import run

    assert run.parse(["--only", "lstm"]).only == [
        "lstm-forward", "lstm-training", "lstm-plan", "lstm-threads", "lstm-memory"
    ]  # fmt: skip


def test_forward_and_training(small, lstm, monkeypatch, tmp_path):
    monkeypatch.setattr(lstm, "_cases", lambda context: (small,))
    run_benchmark(monkeypatch, tmp_path, "--quick", "--only", "lstm-forward", "lstm-training")
    for section in ("lstm-forward", "lstm-training"):
        (row,) = read(tmp_path / f"{section}.csv")
        assert row["case"] == "b2 T3 d5 h32 L2"
        assert float(row["tokens_per_second"]) == pytest.approx(6 / float(row["lath"]), rel=1e-3)
        assert float(row["loop"]) > 0
        assert float(row["projected"]) > 0
        assert row["verdict"] in ("target", "floor", "below")
        assert row["rival_verdict"] in ("target", "floor", "below")
    page = (tmp_path / "summary.md").read_text()
    assert "vs loop | vs proj." in page
    assert "| lstm-forward | vs rivals | 1 |" in page


def test_without_torchscript_the_rest_is_measured(small, lstm, monkeypatch, tmp_path):
    def gone(*args):
        raise RuntimeError("TorchScript is no more")

    monkeypatch.setattr(lstm, "_cases", lambda context: (small,))
    monkeypatch.setattr(lstm, "loop", gone)
    run_benchmark(monkeypatch, tmp_path, "--quick", "--only", "lstm-forward")
    (row,) = read(tmp_path / "lstm-forward.csv")
    assert "loop" not in row
    assert float(row["projected"]) > 0
    assert "no loop of cells: RuntimeError: TorchScript is no more" in (tmp_path / "summary.md").read_text()


def test_every_rank(small, monkeypatch, tmp_path):
    run_benchmark(monkeypatch, tmp_path, "--only", "lstm-plan")
    rows = read(tmp_path / "lstm-plan.csv")
    assert {(row["mode"], row["rank"]) for row in rows} == {
        ("forward", "25"), ("forward", "28"), ("forward", "32"), ("training", "25"), ("training", "32")
    }  # fmt: skip
    assert all(row["verdict"] and float(row["torch"]) > 0 for row in rows)


def test_threads(small, lstm, monkeypatch):
    from types import SimpleNamespace

    from context import EFFORTS, Context

    counts = []
    monkeypatch.setattr(torch, "set_num_threads", counts.append)  # a test leaves the pool of threads alone
    machine = SimpleNamespace(cores=2, isa="avx2", isa_peak=100.0)
    context = Context(machine, EFFORTS["probe"], True, 1, lambda text: None)
    rows = list(lstm.threads(context))
    assert [(row.mode, row.threads, row.peak) for row in rows] == [
        ("torch, forward", 2, 200.0), ("lath, forward", 2, 200.0)
    ]  # fmt: skip
    assert {1, 2} == set(counts)
    assert counts[-1] == 1
    machine.cores = 1
    assert list(lstm.threads(context)) == []
    assert context.notes == ["lstm-threads: this process may use one core only"]


def test_pictures(small, lstm, monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    import plots

    monkeypatch.setattr(lstm, "_cases", lambda context: (small,))
    run_benchmark(monkeypatch, tmp_path, "--quick", "--only", "lstm-forward", "lstm-plan")
    assert (tmp_path / "lstm.png").stat().st_size > 0
    assert "![lstm](lstm.png)" in (tmp_path / "summary.md").read_text()
    assert plots.draw(tmp_path, []) == []
    assert not (tmp_path / "lstm.png").exists()


# ---- memory ----------------------------------------------------------------------------------------------------------


def measures_memory() -> bool:
    """Whether the peak of this process can be reset; asked of another one."""
    ask = "import pathlib; pathlib.Path('/proc/self/clear_refs').write_text('5')"
    return subprocess.run([sys.executable, "-c", ask], capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not measures_memory(), reason="the system does not reset the peak of a process")
def test_memory_of_a_step(lstm):
    """Kept gates take 4 h numbers a token more than h and c do, and h and c take 2 h."""
    import lstm_memory

    case = lstm.Case(64, 64, 8, 256, 1, 16)
    kept, formed_again = (lstm_memory._measured_bytes(name, case, 1) for name in lstm_memory.LATH)
    unit = 4 * case.tokens
    assert (kept - formed_again) / unit == pytest.approx(4 * case.hidden, rel=0.1)
    assert 2 * case.hidden < 1.1 * formed_again / unit < 3 * case.hidden


def test_a_process_that_fails_leaves_a_note(small, monkeypatch):
    import lstm_memory
    from context import EFFORTS, Context

    monkeypatch.setattr(lstm_memory, "__file__", str(ROOT / "bench" / "no_such_file.py"))
    context = Context(None, EFFORTS["probe"], False, 1, lambda text: None)
    assert list(lstm_memory.memory(context)) == []
    assert len(context.notes) == 1
    assert "the process of nn.LSTM ended with status 2" in context.notes[0]
