# SPDX-License-Identifier: Apache-2.0
"""The benchmark of orthogonal bases: baselines compute what lath computes, counts are right, sections give rows."""

from __future__ import annotations

import copy
import json
import math

import lath
import pytest
import torch
from benching import bench_modules, read, run_benchmark
from lath.nn import OIALRConv2d, OIALRLinear, OIALRMultiheadAttention
from torch import nn

pytestmark = pytest.mark.cpu_only
VARIANTS = ("two", "recompose", "factors")


@pytest.fixture(autouse=True, scope="module")
def _bench_modules():
    with bench_modules():
        yield


@pytest.fixture
def oialr():
    import oialr

    return oialr


# ---- the baselines ---------------------------------------------------------------------------------------------------


class OnItself(nn.Module):
    """Attention of x with itself."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


LAYERS = {
    "linear": (lambda: OIALRLinear(10, 7, 3), (5, 10)),
    "linear without bias": (lambda: OIALRLinear(7, 10, 3, bias=False), (2, 3, 7)),
    "convolution": (lambda: OIALRConv2d(4, 6, 3, 5, padding=1), (2, 4, 8, 8)),
    "strided convolution": (lambda: OIALRConv2d(4, 6, (3, 1), 2, (2, 1), (0, 1), (1, 2), bias=False), (2, 4, 8, 8)),
    "attention": (lambda: OnItself(OIALRMultiheadAttention(12, 3, 4, batch_first=True)), (2, 5, 12)),
}


def with_spread_cores(module: nn.Module) -> nn.Module:
    """No core is a diagonal matrix."""
    with torch.no_grad():
        for core in lath.oialr_cores(module).values():
            core.s.add_(torch.randn_like(core.s))
    return module


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", LAYERS)
def test_variants_are_the_same_function(name, variant):
    from oialr_baselines import as_torch

    make, shape = LAYERS[name]
    module = with_spread_cores(make())
    twin = as_torch(module, variant)
    assert not [part for part in twin.modules() if type(part).__module__.startswith("lath")]
    x = torch.randn(shape, requires_grad=True)
    expected, got = module(x), twin(x)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    dy = torch.randn_like(got)
    torch.testing.assert_close(
        torch.autograd.grad(got, x, dy), torch.autograd.grad(expected, x, dy), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_trains_in_a_variant(variant):
    """Cores and biases as in lath, where two layers train both factors; the gradients of cores are those of lath."""
    from oialr_baselines import as_torch

    module = with_spread_cores(nn.Sequential(OIALRConv2d(3, 6, 3, 4), nn.Flatten(), OIALRLinear(96, 8, 5)))
    twin = as_torch(module, variant)
    sizes = [p.numel() for p in twin.parameters()]
    if variant == "two":
        assert sizes == [4 * 27, 6 * 4, 6, 5 * 96, 8 * 5, 8]
        return
    assert sorted(sizes) == sorted([4 * 4, 6, 5 * 5, 8])
    x = torch.randn(2, 3, 6, 6)
    for model in (module, twin):
        model(x).square().sum().backward()
    for here, there in ((module[0], twin[0]), (module[2], twin[2])):
        torch.testing.assert_close(there.s.grad, here.weight_s.grad, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(there.bias.grad, here.bias.grad, rtol=1e-4, atol=1e-3)


def test_variants_are_copies():
    from oialr_baselines import as_torch

    model = nn.Sequential(OIALRLinear(6, 4, 2), nn.Linear(4, 4))
    before = copy.deepcopy(model.state_dict())
    twin = as_torch(model, "factors")
    with torch.no_grad():
        for tensor in (*twin.parameters(), *twin.buffers()):
            tensor.zero_()
    assert isinstance(model[0], OIALRLinear)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_frozen_and_trained_layers_hold_the_tensors_they_are_given(oialr):
    vh, s, u, bias = torch.randn(3, 6), torch.randn(3, 3), torch.randn(5, 3), torch.randn(5)
    x = torch.randn(4, 6)
    expected = x @ (u @ s @ vh).mT + bias
    with torch.no_grad():
        torch.testing.assert_close(oialr.module_of(vh, s, u, bias)(x), expected)
        torch.testing.assert_close(oialr.frozen_module(vh, s, u, bias)(x), expected)


# ---- counts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "training", "expected"),
    [
        ("factors", True, 2 * 8 * (40 + 24) + 3 * 8**2),
        ("two", True, 3 * 8 * (40 + 24)),
        ("two", False, 8 * (40 + 24)),
    ],
)
def test_multiply_adds_of_a_row(variant, training, expected):
    from oialr_baselines import as_torch
    from oialr_layers import multiply_adds

    twin = as_torch(OIALRLinear(40, 24, 8), variant)
    assert multiply_adds(twin, torch.randn(5, 40, requires_grad=True), training) == 5 * expected
    assert not any(p.grad is not None for p in twin.parameters())


def test_multiply_adds_of_a_convolution():
    from oialr_baselines import as_torch
    from oialr_layers import multiply_adds

    module = OIALRConv2d(4, 6, 3, 5, padding=1)
    places, x = 2 * 7 * 7, torch.randn(2, 4, 7, 7, requires_grad=True)
    assert multiply_adds(as_torch(module, "factors"), x, True) == places * (2 * 5 * (36 + 6) + 3 * 5**2)
    assert multiply_adds(module.to_dense(), x, True) == 3 * places * 36 * 6


def test_multiply_adds_of_a_step(oialr):
    """One factor after the other up to break-even, and the formed weight where there are rows enough."""
    assert oialr.step_macs((768, 3072), 1024, 96)[1] == 1024 * (2 * 96 * 3840 + 3 * 96**2)
    route, macs = oialr.step_macs((768, 768), 4096, 768)
    assert route == "merged"
    assert macs > 3 * 4096 * 768**2


def test_ranks_end_beyond_break_even(oialr):
    for (n_in, n_out), ranks in oialr.RANKS.items():
        dearer = [2 * r * (n_in + n_out) + 3 * r**2 > 3 * n_in * n_out for r in ranks]
        assert dearer[:4] == [False] * 4
        assert all(dearer[4:])


def test_goals_are_those_of_the_row(oialr):
    def floors(shape, rows, rank, timed=("recompose", "factors")):
        goal, two, rivals = oialr.training_goals(shape, rows, rank, {(name, rank): 0.0 for name in timed})
        return goal and (goal.quantity, goal.floor), two and two.floor, [(g.quantity, g.floor) for g in rivals]

    share = ("share", 0.88)
    assert floors((768, 768), 256, 96) == (share, 1.1, [("vs factors", 1.0)])
    assert floors((768, 3072), 1024, 192) == (share, 1.1, [("vs recompose", 3.0), ("vs factors", 1.0)])
    assert floors((768, 3072), 1024, 384) == (None, None, [("vs recompose", 1.5)])
    assert floors((3072, 768), 64, 96) == (None, None, [("vs recompose", 8.0)])
    assert floors((768, 768), 1024, 48) == (None, None, [])  # thinner than 64
    assert floors((768, 768), 64, 416) == (("speed-up", 0.97), None, [])
    assert floors((768, 3072), 4096, 192, timed=("factors",)) == (share, 1.1, [("vs factors", 1.0)])


def test_goals_for_each_rival_survive_json():
    from rows import Goal, Row

    goals = Goal("vs recompose", 3.0, 5.0), Goal("vs factors", 1.0, 1.15), Goal("vs rivals", 1.0, 2.0)
    row = Row(
        section="oialr-training", case="x", mode="hot", rows=4, rank=2, threads=1, isa="avx2", baseline=3.0, lath=1.0,
        rivals={"recompose": 4.0, "factors": 0.9}, rival_goals=goals,
    )  # fmt: skip
    again = Row.from_dict(json.loads(json.dumps(row.as_dict())))
    assert again == row
    assert again.rival_verdict == "floor below below"
    assert [row.replace(goal=goal).value for goal in goals] == [4.0, 0.9, 0.9]


def test_steps_are_times_the_baseline():
    from rows import Goal, Row

    row = Row(
        section="oialr-update", case="x", mode="", rows=4, rank=2, threads=1, isa="avx2", baseline=2.0, lath=30.0,
        goal=Goal("steps", 20, 20),
    )  # fmt: skip
    assert (row.value, row.verdict) == (15.0, "target")
    assert row.replace(lath=42.0).verdict == "below"


def test_speed_over_the_own_dense_product():
    from rows import Goal, Row

    row = Row(
        section="oialr-training", case="x", mode="hot", rows=4, rank=2, threads=1, isa="avx2", baseline=3.0, lath=1.0,
        own=0.98, dense_macs=8, macs=10, goal=Goal("speed-up", 0.97, 1.0, own=True),
    )  # fmt: skip
    assert (row.verdict, row.own_verdict) == ("target", "floor")
    assert row.replace(own=0.9).own_verdict == "below"
    assert row.replace(goal=Goal("speed-up", 0.97, 1.0)).own_verdict == ""


# ---- memory and updates ----------------------------------------------------------------------------------------------


def test_saved_numbers_are_those_beside_the_weights():
    from oialr_memory import saved_numbers

    x = torch.randn(64, 40, requires_grad=True)
    assert saved_numbers(nn.Linear(40, 24), x) == 64 * 40
    assert saved_numbers(nn.Sequential(nn.Linear(40, 8), nn.Linear(8, 24)), x) == 64 * (40 + 8)
    assert saved_numbers(OIALRLinear(40, 24, 8), x) == 64 * 8


def test_a_timed_update_keeps_ranks_and_weights():
    import oialr_update

    model = nn.Sequential(OIALRLinear(24, 16, 6), nn.ReLU(), OIALRLinear(16, 20, 4))
    controller = oialr_update.controller_of(model)
    for _ in range(3):
        oialr_update.move(model)
        cores = list(lath.oialr_cores(model).values())
        dense = [core.dense() for core in cores]
        assert all(off_diagonal(core.s) > 1e-4 for core in cores)
        controller.update()
        assert [core.rank for core in cores] == [6, 4]
        for core, expected in zip(cores, dense, strict=True):
            assert off_diagonal(core.s) == 0.0
            torch.testing.assert_close(core.dense(), expected, rtol=1e-4, atol=1e-5)


def off_diagonal(s: torch.Tensor) -> float:
    return float((s - s.diagonal().diag()).detach().abs().max())


# ---- models ----------------------------------------------------------------------------------------------------------


def test_the_transformer_of_images():
    import oialr_models

    dense = oialr_models.VisionTransformer(width=128, depth=2, heads=2)
    assert dense(torch.randn(3, 3, 32, 32)).shape == (3, 10)
    assert dense.positions.shape == (1, 65, 128)
    thin = oialr_models.MODELS["ViT"].thin(dense, 1 / 16)
    assert {name: core.rank for name, core in lath.oialr_cores(thin).items()} == {
        f"blocks.{i}.{name}": 8
        for i in range(2)
        for name in ("attention.in_proj", "attention.out_proj", "mlp.0", "mlp.2")
    }
    assert not lath.oialr_cores(dense)


def test_the_ranks_of_the_resnet():
    import oialr_models

    model = oialr_models.MODELS["ResNet-18"]
    dense = model.dense()
    thin = model.thin(dense, 1 / 8)
    convolutions = [m for m in dense.modules() if isinstance(m, nn.Conv2d)]
    cores = lath.oialr_cores(thin)
    assert len(cores) == len(convolutions) - 1  # the first one stays
    assert all(core.rank == min(core.shape) // 8 for core in cores.values())


# ---- sections --------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(oialr, monkeypatch):
    """Sections of tiny cases."""
    import oialr_layers
    import oialr_memory
    import oialr_models
    import oialr_update
    from convolutions import Layer

    def network() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 16, 3, 2), nn.BatchNorm2d(16), nn.Conv2d(16, 32, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )

    ranks = {(32, 32): (2, 4, 8, 16, 20), (48, 32): (2, 4, 8, 16, 28)}
    layer = Layer(16, 16, 6, batch=2)
    monkeypatch.setattr(oialr, "RANKS", ranks)
    for rows in ("ROWS", "INFERENCE_ROWS"):
        monkeypatch.setattr(oialr, rows, (8, 16))
    monkeypatch.setattr(oialr, "MANY", 16)
    monkeypatch.setattr(oialr, "ROTATING", 8)
    for module in (oialr_memory, oialr_update):
        monkeypatch.setattr(module, "RANKS", ranks)
    monkeypatch.setattr(oialr_layers, "CONVOLUTIONS", {layer: (4,)})
    monkeypatch.setattr(oialr_layers, "WIDTH", 24)
    monkeypatch.setattr(oialr_layers, "ATTENTION_RANKS", (4, 8))
    monkeypatch.setattr(oialr_layers, "TOKENS", (2, 5))
    monkeypatch.setattr(oialr_memory, "CONVOLUTION", layer)
    monkeypatch.setattr(oialr_memory, "CONVOLUTION_RANKS", (2, 4))
    monkeypatch.setattr(oialr_memory, "ROWS", 64)
    monkeypatch.setattr(oialr_update, "LAYER_ROWS", 8)
    monkeypatch.setattr(oialr_update, "LAYER_RANKS", (4, 32))
    monkeypatch.setattr(oialr_update, "BATCH", 2)
    vit, resnet = oialr_models.MODELS.values()
    models = {
        "ViT": vit._replace(dense=lambda: oialr_models.VisionTransformer(32, 1, 2), batch=3),
        "convolutions": resnet._replace(dense=network, batch=2),
    }
    for module in (oialr_models, oialr_update):
        monkeypatch.setattr(module, "MODELS", models)


def test_the_group_has_all_its_sections():
    import run

    assert run.parse(["--only", "oialr"]).only == [
        "oialr-training", "oialr-inference", "oialr-conv", "oialr-attention", "oialr-model", "oialr-memory",
        "oialr-update",
    ]  # fmt: skip


def test_training_and_inference(small, monkeypatch, tmp_path):
    run_benchmark(monkeypatch, tmp_path, "--only", "oialr-training", "oialr-inference")
    for section in ("oialr-training", "oialr-inference"):
        rows = read(tmp_path / f"{section}.csv")
        cases = [(row["case"], row["mode"], row["rows"]) for row in rows]
        few = [(case, mode, "8") for case in ("32->32", "48->32") for mode in ("hot", "rotating")]
        assert list(dict.fromkeys(cases)) == [*few[:2], ("32->32", "hot", "16"), *few[2:]]
        assert [row["rank"] for row in rows[:5]] == ["2", "4", "8", "16", "20"]
        assert [row["rank"] for row in rows if row["rows"] == "16"] == ["4", "8"]
        assert all(float(row[name]) > 0 for row in rows for name in ("lath", "two", "own", "factors"))
        assert all(bool(row["recompose"]) == (row["rows"] == "8" and 4 <= int(row["rank"]) <= 16) for row in rows)
        assert {row["verdict"] for row in rows if int(row["rank"]) >= 20} <= {"target", "floor", "below"}
        expected = 3 if section == "oialr-training" else 1
        row = rows[1]
        factored = 4 * 64 + (4 * 64 + 3 * 16 if expected == 3 else 0)
        assert float(row["mac_ratio"]) == pytest.approx(expected * 1024 / factored, rel=1e-4)
    page = (tmp_path / "summary.md").read_text()
    assert "vs recomp. | vs factors" in page


def test_convolutions_and_attention(small, monkeypatch, tmp_path):
    run_benchmark(monkeypatch, tmp_path, "--only", "oialr-conv", "oialr-attention")
    rows = read(tmp_path / "oialr-conv.csv")
    assert [(row["mode"], row["rank"]) for row in rows] == [("training", "4"), ("inference", "4")]
    assert all(set(row["layouts"].split()) <= {"nchw", "nhwc"} for row in rows)
    assert float(rows[0]["mac_ratio"]) == pytest.approx(3 * 144 * 16 / (2 * 4 * 160 + 3 * 16), rel=1e-4)
    assert float(rows[1]["mac_ratio"]) == pytest.approx(144 * 16 / (4 * 160), rel=1e-4)
    rows += read(tmp_path / "oialr-attention.csv")
    assert [(row["mode"], row["rank"]) for row in rows[2:]] == [
        ("training", "4"), ("training", "8"), ("inference", "4"), ("inference", "8")
    ]  # fmt: skip
    assert all(float(row[name]) > 0 for row in rows for name in ("lath", "two", "recompose", "factors"))


def test_models(small, monkeypatch, tmp_path):
    run_benchmark(monkeypatch, tmp_path, "--only", "oialr-model")
    vit, convolutions = read(tmp_path / "oialr-model.csv")
    assert (vit["case"], vit["rows"], vit["layouts"]) == ("ViT", "3", "")
    assert vit["verdict"] in ("target", "floor", "below")
    assert (convolutions["rows"], len(convolutions["layouts"].split())) == ("2", 3)
    for row in (vit, convolutions):
        assert float(row["mac_ratio"]) > 1
        assert float(row["factors"]) > 0


def test_memory(small, monkeypatch, tmp_path):
    run_benchmark(monkeypatch, tmp_path, "--only", "oialr-memory")
    rows = read(tmp_path / "oialr-memory.csv")
    assert [(row["case"], row["rank"]) for row in rows] == [
        (case, rank) for case in ("32->32", "48->32") for rank in ("2", "4", "8", "16")
    ] + [("16->16 6x6", "2"), ("16->16 6x6", "4")]
    assert all(row["verdict"] == "target" for row in rows)
    assert [float(row["floats"]) for row in rows[:4]] == [2, 4, 8, 16]
    assert float(rows[0]["dense_floats"]) == 32


def test_updates(small, monkeypatch, tmp_path):
    run_benchmark(monkeypatch, tmp_path, "--only", "oialr-update")
    rows = read(tmp_path / "oialr-update.csv")
    assert [(row["case"], row["rank"]) for row in rows[:4]] == [
        ("32->32", "4"), ("32->32", "32"), ("48->32", "4"), ("48->32", "32")
    ]  # fmt: skip
    assert [row["case"] for row in rows[4:]] == ["ViT, ranks / 8", "ViT, full rank", "convolutions, ranks / 8"]
    for row in rows[4:]:
        assert math.isclose(float(row["value"]), float(row["lath"]) / float(row["baseline"]), rel_tol=1e-3)
        assert row["verdict"] in ("target", "below")
    assert "in steps" in (tmp_path / "summary.md").read_text()


def test_a_picture(small, monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    run_benchmark(monkeypatch, tmp_path, "--quick", "--only", "oialr-conv", "oialr-attention")
    assert (tmp_path / "orthogonal_bases.png").stat().st_size > 0
    assert "![orthogonal bases](orthogonal_bases.png)" in (tmp_path / "summary.md").read_text()
