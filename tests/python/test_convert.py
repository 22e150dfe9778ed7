# SPDX-License-Identifier: Apache-2.0
"""convert, restore and dense_state_dict: what is swapped, what is left and why, what is carried over."""

from __future__ import annotations

import copy
import gc
import re

import lath
import pytest
import torch
from lath.nn import LowRankLinear
from lath.specs import RANK_RULES, tuned_rank
from torch import nn
from torch.nn.utils import parametrizations, prune


def mlp():
    return nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 10))


def kinds(model):
    return {name: type(m).__name__ for name, m in model.named_modules() if isinstance(m, (nn.Linear, LowRankLinear))}


# ---- the spec -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "m", "ratio", "rank"),
    [
        (192, 192, 0.2, 38), (1024, 2048, 0.2, 204), (1536, 1536, 0.2, 307), (768, 3072, 0.2, 153), (384, 384, 0.2, 76),
        (9, 64, 0.2, 1), (512, 512, 0.2, 102), (128, 2048, 0.2, 25), (35, 35, 0.2, 7), (30, 30, 0.1, 3),
        (100, 100, 0.29, 28), (50, 50, 0.58, 28),
    ],
)  # fmt: skip
def test_rank_rule_truncates_doubles(n, m, ratio, rank):
    assert RANK_RULES["min"](n, m, ratio) == rank


def test_other_rank_rules():
    assert RANK_RULES["round"](100, 200, 0.29) == 29
    assert RANK_RULES["out"](256, 100, 0.2) == 20
    assert RANK_RULES["in"](256, 100, 0.25) == 64


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({}, ValueError, "got none, expected exactly one"),
        ({"ratio": 0.2, "rank": 3}, ValueError, "got ratio and rank"),
        ({"ratio": 0.0}, ValueError, "ratio is 0.0"),
        ({"ratio": 1.5}, ValueError, "ratio is 1.5"),
        ({"ratio": float("nan")}, ValueError, "ratio is nan"),
        ({"ratio": "0.2"}, TypeError, "ratio is '0.2'"),
        ({"energy": -0.5}, ValueError, "energy is -0.5"),
        ({"rank": 0}, ValueError, "rank is 0"),
        ({"rank": 2.0}, TypeError, "rank is 2.0"),
        ({"rank": {"0": -1}}, ValueError, "layer '0': rank is -1"),
        ({"rank": 2, "rule": "max"}, ValueError, "rule is 'max'"),
        ({"rank": 2, "init": "qr"}, ValueError, "init is 'qr'"),
        ({"rank": 2, "conv": "tucker"}, ValueError, "conv is 'tucker'"),
        ({"rank": 2, "inner_bias": 1}, TypeError, "inner_bias is 1"),
    ],
)
def test_spec_is_checked_when_made(fields, error, message):
    with pytest.raises(error, match=message):
        lath.LowRank(**fields)


def test_tuned_rank_goes_down_to_the_next_size():
    for rank in range(1, 300):
        step = 16 if rank >= 64 else 8 if rank >= 16 else 1
        tuned = tuned_rank(rank)
        assert tuned % step == 0
        assert 0 <= rank - tuned < step


def test_tune_in_convert():
    model = nn.Sequential(nn.Linear(200, 200))
    lath.convert(model, lath.LowRank(rank=75, tune=True))
    assert model[0].rank == 64


# ---- what is converted --------------------------------------------------------------------------------------------


def test_every_layer_with_counts():
    model = mlp()
    report = lath.convert(model, lath.LowRank(ratio=0.2))
    assert {name: m.rank for name, m in model.named_modules() if isinstance(m, LowRankLinear)} == {
        "0": 4,
        "2": 6,
        "4": 2,
    }
    assert report.parameters == 4 * 50 + 30 + 6 * 60 + 30 + 2 * 40 + 10 == sum(p.numel() for p in model.parameters())
    assert report.dense_parameters == 20 * 30 + 30 + 30 * 30 + 30 + 30 * 10 + 10
    assert report.macs == 4 * 50 + 6 * 60 + 2 * 40
    assert report.dense_macs == 20 * 30 + 30 * 30 + 30 * 10
    assert [row.reason for row in report] == [None] * 3


def test_full_rank_energy_keeps_the_function():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30))
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(30, 4) @ torch.randn(4, 20))
    x = torch.randn(5, 20)
    y = model(x)
    lath.convert(model, lath.LowRank(energy=0.999999))
    assert model[0].rank == 4
    torch.testing.assert_close(model(x), y, rtol=1e-3, atol=1e-3)


def test_energy_takes_the_smallest_rank_that_holds_it():
    model = nn.Sequential(nn.Linear(40, 50))
    squares = torch.linalg.svdvals(model[0].weight.detach()).double().square()
    lath.convert(model, lath.LowRank(energy=0.5))
    rank = model[0].rank
    assert squares[:rank].sum() >= 0.5 * squares.sum() > squares[: rank - 1].sum()


def test_rank_by_name():
    model = mlp()
    report = lath.convert(model, lath.LowRank(rank={"0": 5, "[02]": 7}))
    assert (model[0].rank, model[2].rank) == (5, 7)
    assert report["4"].reason == "the spec gives no rank for it"


@pytest.mark.parametrize(
    ("include", "exclude", "converted"),
    [
        ("0", None, {"0"}),
        ("[02]", None, {"0", "2"}),
        (["0", re.compile("[34]")], None, {"0", "4"}),
        (None, "4", {"0", "2"}),
        (lambda name, module: module.out_features == 30, lambda name, module: name == "2", {"0"}),
    ],
)
def test_include_and_exclude(include, exclude, converted):
    model = mlp()
    report = lath.convert(model, lath.LowRank(rank=2), include=include, exclude=exclude)
    assert {name for name, kind in kinds(model).items() if kind == "LowRankLinear"} == converted
    assert all((row.reason is None) == (row.name in converted) for row in report)


def test_fresh_factors_and_inner_bias():
    model = mlp()
    bias = model[0].bias.clone()
    lath.convert(model, lath.LowRank(rank=2, init="fresh", inner_bias=True))
    assert model[0].inner_bias.shape == (2,)
    assert not torch.equal(model[0].bias, bias)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_is_kept(dtype):
    model = mlp().to(dtype)
    lath.convert(model, lath.LowRank(ratio=0.2))
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert model(torch.randn(3, 20, dtype=dtype)).dtype == dtype


def test_converting_twice_changes_nothing():
    model = mlp()
    lath.convert(model, lath.LowRank(rank=2))
    before = dict(model.named_modules())
    report = lath.convert(model, lath.LowRank(rank=3))
    assert dict(model.named_modules()) == before
    assert {row.reason for row in report} == {"already low-rank"}


def test_meta_model():
    with torch.device("meta"):
        model = mlp()
    lath.convert(model, lath.LowRank(ratio=0.2))
    model.to_empty(device="cpu").load_state_dict(mlp().state_dict())
    assert model(torch.randn(2, 20)).isfinite().all()


# ---- what is left, and why ----------------------------------------------------------------------------------------


class Subclass(nn.Linear):
    pass


def pruned():
    return prune.random_unstructured(nn.Linear(20, 30), "weight", 0.5)


def replaced_forward():
    layer = nn.Linear(20, 30)
    layer.forward = lambda x: x
    return layer


LEFT = {
    "subclass": (lambda: Subclass(20, 30), "a subclass of nn.Linear: Subclass"),
    "lazy": (lambda: nn.LazyLinear(30), "lazy"),
    "parametrized": (lambda: parametrizations.weight_norm(nn.Linear(20, 30)), "parametrized"),
    "pruned": (pruned, "computed from other tensors"),
    "forward": (replaced_forward, "its forward was replaced"),
    "half": (lambda: nn.Linear(20, 30).half(), "torch.float16"),
    "not cheaper": (lambda: nn.Linear(2, 30), "rank 2 is not cheaper: break-even is 1"),
    "no elements": (lambda: nn.Linear(0, 30), "no elements"),
    "attention": (lambda: nn.MultiheadAttention(32, 2), "MultiheadAttention reads its weight directly"),
    "encoder": (lambda: nn.TransformerEncoderLayer(32, 2), "TransformerEncoderLayer reads its weight directly"),
}


@pytest.mark.parametrize("case", LEFT)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_left_with_a_reason(case):
    make, reason = LEFT[case]
    model = nn.Sequential(make(), nn.Linear(40, 40))
    report = lath.convert(model, lath.LowRank(rank=2))
    assert {name for name, kind in kinds(model).items() if kind == "LowRankLinear"} == {"1"}
    assert any(reason in row.reason for row in report if row.reason)
    assert reason in str(report)


def test_transformer_still_runs_in_evaluation():
    model = nn.Sequential(nn.TransformerEncoderLayer(32, 2, batch_first=True), nn.Linear(32, 32)).eval()
    lath.convert(model, lath.LowRank(rank=2))
    with torch.no_grad():
        assert model(torch.randn(2, 3, 32)).shape == (2, 3, 32)


def test_tied_weights_are_left():
    model = nn.ModuleDict({"embedding": nn.Embedding(30, 20), "head": nn.Linear(20, 30), "other": nn.Linear(20, 30)})
    model["head"].weight = model["embedding"].weight
    report = lath.convert(model, lath.LowRank(rank=2))
    assert type(model["head"]) is nn.Linear
    assert report["head"].reason == "its weight is tied: embedding.weight, head.weight"
    assert type(model["other"]) is LowRankLinear


def test_tie_through_memory_is_left():
    model = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20))
    model[1].weight = nn.Parameter(model[0].weight.data)
    report = lath.convert(model, lath.LowRank(rank=2))
    assert all("tied" in row.reason for row in report)


def test_shared_module_stays_shared():
    layer = nn.Linear(20, 20)
    model = nn.ModuleDict({"a": nn.Sequential(layer), "b": nn.Sequential(nn.ReLU(), layer), "c": layer})
    report = lath.convert(model, lath.LowRank(rank=2))
    assert len(report) == 1
    assert model["a"][0] is model["b"][1] is model["c"]
    assert type(model["c"]) is LowRankLinear
    assert lath.restore(model) == ["a.0"]
    assert model["a"][0] is model["b"][1] is model["c"]
    assert type(model["c"]) is nn.Linear


# ---- what is carried over -----------------------------------------------------------------------------------------


def test_flags_and_attributes():
    model = mlp().eval()
    model[0].requires_grad_(False)
    model[2].train()
    model[0].note = "mine"
    lath.convert(model, lath.LowRank(rank=2))
    assert [p.requires_grad for p in model[0].parameters()] == [False] * 3
    assert (model[0].training, model[2].training) == (False, True)
    assert model[0].note == "mine"
    lath.restore(model)
    assert [p.requires_grad for p in model[0].parameters()] == [False] * 2
    assert (model[0].training, model[2].training) == (False, True)
    assert model[0].note == "mine"
    assert not hasattr(model[0], "rank")


def test_hooks_and_their_handles():
    model, calls = mlp(), []
    handles = [
        model[0].register_forward_hook(lambda *_: calls.append("forward")),
        model[0].register_forward_pre_hook(lambda *_: calls.append("pre")),
        model[0].register_full_backward_hook(lambda *_: calls.append("backward")),
        model[0].register_state_dict_post_hook(lambda *_: calls.append("state")),
        model[0].register_load_state_dict_pre_hook(lambda module, *_: calls.append(type(module).__name__)),
    ]

    def use():
        calls.clear()
        model(torch.randn(2, 20, requires_grad=True)).sum().backward()
        model.load_state_dict(model.state_dict())
        return calls

    lath.convert(model, lath.LowRank(rank=2))
    gc.collect()
    assert use() == ["pre", "forward", "backward", "state", "LowRankLinear"]
    lath.restore(model)
    gc.collect()
    assert use() == ["pre", "forward", "backward", "state", "Linear"]
    for handle in handles:
        handle.remove()
    assert use() == []


# ---- errors leave the model alone ---------------------------------------------------------------------------------


def snapshot(model):
    return {name: id(m) for name, m in model.named_modules()}, {n: p.clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("spoil", "spec", "error", "message"),
    [
        (lambda m: m[4].weight.data.fill_(float("nan")), {"ratio": 0.2}, ValueError, "layer '4': .*NaN or infinity"),
        (lambda m: None, {"ratio": 0.09}, ValueError, "layer '4' .*gives rank 0"),
        (lambda m: m.to("meta"), {"energy": 0.5}, ValueError, "layer '0': .*meta device"),
    ],
)
def test_failure_on_a_later_layer_changes_nothing(spoil, spec, error, message):
    model = mlp()
    spoil(model)
    modules, parameters = snapshot(model)
    with pytest.raises(error, match=message):
        lath.convert(model, lath.LowRank(**spec))
    assert snapshot(model)[0] == modules
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), parameters[name].detach(), equal_nan=True, rtol=0, atol=0)


def test_wrong_arguments():
    with pytest.raises(TypeError, match="model is list"):
        lath.convert([], lath.LowRank(rank=2))
    with pytest.raises(TypeError, match=r"spec is float, expected lath\.LowRank"):
        lath.convert(mlp(), 0.2)
    with pytest.raises(TypeError, match="include contains 3"):
        lath.convert(mlp(), lath.LowRank(rank=2), include=[3])
    with pytest.raises(TypeError, match="exclude contains 3"):
        lath.convert(mlp(), lath.LowRank(rank=2), exclude=3)
    with pytest.raises(ValueError, match=r"include matches no layer of the model; it has: 0, 2, 4"):
        lath.convert(mlp(), lath.LowRank(rank=2), include="layer*")


def test_a_layer_cannot_replace_itself():
    with pytest.raises(ValueError, match=r"model is itself a Linear.*wrap it in nn.Sequential"):
        lath.convert(nn.Linear(20, 20), lath.LowRank(rank=2))
    with pytest.raises(ValueError, match=r"model is itself a LowRankLinear.*to_dense"):
        lath.restore(LowRankLinear(20, 20, 2))


# ---- and back -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inner_bias", [False, True])
def test_restore_keeps_the_function(inner_bias):
    model = mlp().double()
    lath.convert(model, lath.LowRank(ratio=0.2, inner_bias=inner_bias, init="fresh"))
    x = torch.randn(6, 20, dtype=torch.float64)
    y = model(x)
    assert lath.restore(model) == ["0", "2", "4"]
    assert set(kinds(model).values()) == {"Linear"}
    torch.testing.assert_close(model(x), y)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("inner_bias", [False, True])
def test_dense_state_dict(bias, inner_bias):
    model = nn.Sequential(nn.Linear(20, 30, bias=bias), nn.BatchNorm1d(30), nn.Sequential(nn.Linear(30, 30, bias=bias)))
    lath.convert(model, lath.LowRank(rank=3, inner_bias=inner_bias, init="fresh"))
    state = lath.dense_state_dict(model)
    restored = copy.deepcopy(model)
    lath.restore(restored)
    assert list(state) == list(restored.state_dict())
    for name, t in restored.state_dict().items():
        torch.testing.assert_close(state[name], t)
    if inner_bias and not bias:
        return  # such a layer has no place for the bias of a dense checkpoint
    y = model.eval()(x := torch.randn(4, 20))
    model.load_state_dict(state)
    torch.testing.assert_close(model(x), y, rtol=1e-4, atol=1e-4)


def test_dense_state_dict_of_a_layer():
    layer = LowRankLinear(6, 5, 2, inner_bias=True)
    nn.Linear(6, 5).load_state_dict(lath.dense_state_dict(layer))
