# SPDX-License-Identifier: Apache-2.0
"""convert, restore and dense_state_dict: what is swapped, what is left and why, what is carried over."""

from __future__ import annotations

import copy
import gc
import re
import warnings

import lath
import pytest
import torch
from lath.nn import LowRankConv2d, LowRankLinear
from lath.nn.factored import Factored
from lath.specs import RANK_RULES, tuned_rank
from torch import nn
from torch.nn.utils import parametrizations, prune


def mlp():
    return nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 10))


def cnn():
    """Two convolutions, the second with stride, batch norm between them, and a head; for 3 x 12 x 12 images."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, stride=2, padding=1, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 10),
    )


def kinds(model):
    layers = (nn.Linear, nn.Conv2d, Factored)
    return {name: type(m).__name__ for name, m in model.named_modules() if isinstance(m, layers)}


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
        ({"rank": 2, "skip_first": -1}, ValueError, "skip_first is -1"),
        ({"rank": 2, "skip_last": 1.0}, TypeError, "skip_last is 1.0"),
        ({"rank": 2, "skip_last": True}, TypeError, "skip_last is True"),
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


# ---- convolutions -------------------------------------------------------------------------------------------------


def test_convolutions_beside_linear_layers():
    model = cnn()
    report = lath.convert(model, lath.LowRank(ratio=0.25))
    assert kinds(model) == {"0": "LowRankConv2d", "3": "LowRankConv2d", "6": "LowRankLinear"}
    assert [row.rank for row in report] == [int(9 * 0.25), int(48 * 0.25), int(10 * 0.25)]
    assert (model[0].mode, model[3].stride) == ("separable", (2, 2))
    assert (model[0].bias is None, model[3].bias is None) == (False, True)
    assert model(torch.randn(2, 3, 12, 12)).shape == (2, 10)


@pytest.mark.parametrize(
    ("conv", "rule", "rank"),
    [
        ("separable", "min", int(18 * 0.3)),  # in 6 * 3, out 20 * 5
        ("separable", "in", int(18 * 0.3)),
        ("separable", "out", int(100 * 0.3)),
        ("separable", "round", 5),
        ("pointwise", "min", int(20 * 0.3)),  # in 6 * 5 * 3, out 20
        ("pointwise", "in", int(90 * 0.3)),
        ("pointwise", "out", int(20 * 0.3)),
        ("pointwise", "round", 6),
    ],
)
@pytest.mark.parametrize("groups", [1, 2])
def test_rank_rules_of_a_convolution(conv, rule, rank, groups):
    """On the matrix of one group."""
    dense = nn.Conv2d(6 * groups, 20 * groups, (5, 3), groups=groups)
    model = nn.Sequential(dense)
    row = lath.convert(model, lath.LowRank(ratio=0.3, rule=rule, conv=conv))["0"]
    if rank > row.break_even:
        assert row.reason == f"rank {rank} is not cheaper: break-even is {row.break_even}"
    else:
        assert model[0].rank == rank
        assert model[0].groups == groups


# The ranks of VGG-11 at ratio 0.2, whose convolutions are 3 x 3.
@pytest.mark.parametrize(
    ("n", "m", "rank"), [(3, 64, 1), (64, 128, 38), (128, 256, 76), (256, 512, 153), (512, 512, 307)]
)
def test_ranks_of_the_reference(n, m, rank):
    model = nn.Sequential(nn.Conv2d(n, m, 3, device="meta"))
    lath.convert(model, lath.LowRank(ratio=0.2, init="fresh"))
    assert model[0].rank == rank


GEOMETRIES = {
    "stride": {"stride": (2, 3), "padding": 1},
    "dilation": {"dilation": (1, 2), "padding": (1, 2)},
    "same": {"padding": "same"},
    "valid": {"padding": "valid"},
    "even kernel": {"kernel_size": (4, 2), "padding": "same"},
    "rectangular": {"kernel_size": (1, 5), "padding": (0, 2)},
    "1 x 1": {"kernel_size": 1, "stride": 2},
    "groups": {"groups": 4, "padding": 1},
    "circular": {"padding": 1, "padding_mode": "circular"},
    "reflect": {"padding": (1, 2), "padding_mode": "reflect", "stride": 2},
    "replicate": {"padding": "same", "padding_mode": "replicate"},
    "no bias": {"bias": False},
}


@pytest.mark.parametrize("conv", ["separable", "pointwise"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_the_function_survives_both_ways(geometry, conv):
    """A convolution whose weight has rank 1 per group, so that factors of rank 1 are exact."""
    arguments = {"kernel_size": 3, **GEOMETRIES[geometry]}
    thin = LowRankConv2d(8, 12, rank=1, mode=conv, dtype=torch.float64, **arguments)
    dense = thin.to_dense()
    model, x = nn.Sequential(dense), torch.randn(2, 8, 9, 11, dtype=torch.float64)
    y = model(x)
    lath.convert(model, lath.LowRank(rank=1, conv=conv))
    assert isinstance(model[0], LowRankConv2d)
    torch.testing.assert_close(model(x), y)
    torch.testing.assert_close(model(x[0]), y[0])
    assert lath.restore(model) == ["0"]
    torch.testing.assert_close(model(x), y)
    assert repr(model[0]) == repr(dense)


def test_energy_of_a_convolution():
    model = nn.Sequential(LowRankConv2d(8, 12, 3, 2).to_dense())
    lath.convert(model, lath.LowRank(energy=0.99999))
    assert model[0].rank == 2


def test_the_truncation_error_is_that_of_the_matrix():
    """Eckart and Young: the singular values that are left out."""
    dense = nn.Conv2d(6, 8, (3, 5), dtype=torch.float64)
    matrix = dense.weight.detach().permute(0, 2, 1, 3).reshape(24, 30)
    model = nn.Sequential(dense)
    lath.convert(model, lath.LowRank(rank=4))
    lath.restore(model)
    expected = torch.linalg.svdvals(matrix)[4:].square().sum()
    torch.testing.assert_close((model[0].weight - dense.weight).square().sum(), expected)


def test_tune_a_convolution():
    model = nn.Sequential(nn.Conv2d(64, 64, 3))
    lath.convert(model, lath.LowRank(rank=39, tune=True))
    assert model[0].rank == 32


def test_freeze_a_network():
    """Layers above break-even keep the dense weight, which no convert would have made low-rank."""
    model = nn.Sequential(
        LowRankConv2d(4, 8, 3, 64, padding=1), LowRankConv2d(8, 8, 3, 2), nn.Flatten(), LowRankLinear(128, 8, 100)
    ).eval()
    x = torch.randn(2, 4, 6, 6)
    expected = model(x)
    assert lath.freeze(model) == ["0", "3"]
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected)
    lath.unfreeze(model)
    assert model[0]._frozen is None


def test_channels_last_model():
    model = cnn().to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 12, 12).to(memory_format=torch.channels_last)
    lath.convert(model, lath.LowRank(ratio=0.25))
    assert model[:4](x).is_contiguous(memory_format=torch.channels_last)
    expected = model.eval()(x)
    model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("bias", [False, True])
def test_inner_bias_of_a_convolution(bias):
    model = nn.Sequential(nn.Conv2d(6, 8, 3, bias=bias), nn.Conv2d(8, 8, 3, padding=1, bias=bias)).double()
    lath.convert(model, lath.LowRank(rank=2, inner_bias=True, conv="pointwise"))
    with torch.no_grad():
        for layer in model:
            layer.inner_bias.normal_()
    x = torch.randn(2, 6, 9, 9, dtype=torch.float64)
    y = model(x)
    lath.restore(model)
    torch.testing.assert_close(model(x), y)


# ---- torch.compile ------------------------------------------------------------------------------------------------


def test_converted_then_compiled():
    model, x = cnn(), torch.randn(2, 3, 12, 12)
    lath.convert(model, lath.LowRank(ratio=0.25))
    expected = copy.deepcopy(model)(x)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    y = compiled(x)
    torch.testing.assert_close(y, expected)
    y.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_compiled_then_converted():
    model, x = cnn(), torch.randn(2, 3, 12, 12)
    compiled = torch.compile(model, backend="aot_eager")
    compiled(x)
    report = lath.convert(compiled, lath.LowRank(ratio=0.25))
    assert [row.name for row in report] == ["_orig_mod.0", "_orig_mod.3", "_orig_mod.6"]
    assert set(kinds(model).values()) == {"LowRankConv2d", "LowRankLinear"}
    y = compiled(x)
    torch.testing.assert_close(y, model(x), rtol=1e-4, atol=1e-4)


def test_compiled_in_place_then_converted():
    """What was compiled is the call of the layer that is gone."""
    model, x = mlp(), torch.randn(4, 20)
    model[0].compile(backend="eager")
    model(x)
    lath.convert(model, lath.LowRank(rank=2))
    torch.testing.assert_close(model[0](x), model[0].to_dense()(x))


# ---- what is left, and why ----------------------------------------------------------------------------------------


class Subclass(nn.Linear):
    pass


def pruned():
    return prune.random_unstructured(nn.Linear(20, 30), "weight", 0.5)


class Normalized(nn.Conv2d):
    """A forward of its own, as in many libraries of networks."""

    def forward(self, x):
        return self._conv_forward(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


def fused():
    return torch.ao.nn.intrinsic.ConvBn2d(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))


def fused_for_training():
    layer = fused().train()
    layer.qconfig = torch.ao.quantization.get_default_qat_qconfig("x86")
    return torch.ao.nn.intrinsic.qat.ConvBn2d.from_float(layer)


def replaced_forward():
    layer = nn.Linear(20, 30)
    layer.forward = lambda x: x
    return layer


def tiled():
    """How image generators make pictures whose borders fit together."""
    layer = nn.Conv2d(8, 8, 3)
    layer._conv_forward = lambda x, weight, bias: x
    return layer


def weight_norm():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(nn.Conv2d(8, 8, 3))


LEFT = {
    "subclass": (lambda: Subclass(20, 30), "a subclass of nn.Linear: Subclass"),
    "lazy": (lambda: nn.LazyLinear(30), "lazy"),
    "parametrized": (lambda: parametrizations.weight_norm(nn.Linear(20, 30)), "parametrized"),
    "pruned": (pruned, "computed from other tensors"),
    "forward": (replaced_forward, "its forward was replaced"),
    "conv subclass": (lambda: Normalized(8, 8, 3), "a subclass of nn.Conv2d: Normalized"),
    "lazy conv": (lambda: nn.LazyConv2d(8, 3), "lazy"),
    "parametrized conv": (lambda: parametrizations.spectral_norm(nn.Conv2d(8, 8, 3)), "parametrized"),
    "weight norm": (weight_norm, "computed from other tensors"),
    "half conv": (lambda: nn.Conv2d(8, 8, 3).half(), "torch.float16"),
    "depthwise": (lambda: nn.Conv2d(8, 8, 3, groups=8), "depthwise: one input channel per group"),
    "depthwise to more": (lambda: nn.Conv2d(8, 16, 3, groups=8), "depthwise"),
    "conv not cheaper": (lambda: nn.Conv2d(2, 2, 1), "rank 2 is not cheaper: break-even is 0"),
    "tiled": (tiled, "its forward was replaced"),
    "fused": (fused, "part of a fused ConvBn2d"),
    "fused for training": (fused_for_training, "a subclass of nn.Conv2d: ConvBn2d"),
    "quantized": (lambda: torch.ao.nn.quantized.Conv2d(8, 8, 3), "quantized"),
    "quantized linear": (lambda: torch.ao.nn.quantized.dynamic.Linear(8, 8), "quantized"),
    "half": (lambda: nn.Linear(20, 30).half(), "torch.float16"),
    "not cheaper": (lambda: nn.Linear(2, 30), "rank 2 is not cheaper: break-even is 1"),
    "no elements": (lambda: nn.Linear(0, 30), "no elements"),
    "attention": (lambda: nn.MultiheadAttention(32, 2, dtype=torch.half), "its weight is torch.float16"),
}


@pytest.mark.parametrize("case", LEFT)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors", "ignore:torch.quantize_per_tensor")
def test_left_with_a_reason(case):
    make, reason = LEFT[case]
    model = nn.Sequential(make(), nn.Linear(40, 40))
    report = lath.convert(model, lath.LowRank(rank=2))
    assert {name for name, kind in kinds(model).items() if kind == "LowRankLinear"} == {"1"}
    assert any(reason in row.reason for row in report if row.reason)
    assert reason in str(report)


class Reader(nn.Module):
    """What the attention of a Swin transformer does, and many a model for the dtype of its first layer."""

    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(8, 8)
        self.embed = nn.Sequential()
        self.embed.conv = nn.Conv2d(8, 8, 3)
        self.other = nn.Linear(8, 8)

    @property
    def dtype(self):
        return self.embed.conv.weight.dtype

    def project(self, x):
        return nn.functional.linear(x, self.proj.weight, self.proj.bias)

    def reset_parameters(self):
        self.other.weight.data.zero_()

    def forward(self, x):
        return self.other(self.project(x.to(self.dtype)))


class OwnReader(Reader):
    pass


@pytest.mark.parametrize("reader", [Reader, OwnReader])
def test_a_weight_that_a_forward_reads_is_left(reader):
    model = nn.Sequential(reader())
    report = lath.convert(model, lath.LowRank(rank=2))
    read = f"{reader.__name__} reads its weight directly"
    assert [row.reason for row in report] == [read, read, None]
    assert model(torch.randn(2, 8)).shape == (2, 8)


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


def test_tied_convolutions_are_left():
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))
    model[1].weight = model[0].weight
    report = lath.convert(model, lath.LowRank(rank=2))
    assert [row.reason for row in report] == ["its weight is tied: 0.weight, 1.weight"] * 2


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


def test_attributes_of_convolutions():
    """What a user has set is carried over, what only the class needs is not."""
    model = cnn()
    model[0].note = "mine"
    attributes = set(vars(model[0]))
    lath.convert(model, lath.LowRank(rank=2))
    assert set(vars(model[0])) - set(vars(LowRankConv2d(3, 16, 3, 2))) == {"note"}
    lath.restore(model)
    assert set(vars(model[0])) == attributes
    assert model[0].note == "mine"


def test_restoring_a_subclass_of_a_low_rank_layer():
    class Mine(LowRankLinear):
        pass

    model = nn.Sequential(Mine(6, 5, 2))
    x = torch.randn(3, 6)
    y = model(x)
    lath.restore(model)
    assert type(model[0]) is nn.Linear
    torch.testing.assert_close(model(x), y)


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


@pytest.mark.parametrize(
    ("spoil", "spec", "message"),
    [
        (lambda m: m[3].weight.data[1, 2].fill_(float("inf")), {"ratio": 0.25}, "layer '3': .*NaN or infinity"),
        (lambda m: None, {"ratio": 0.1}, r"layer '0' \(9 to 48\): ratio 0.1 with rule 'min' gives rank 0"),
    ],
)
def test_failure_on_a_convolution_changes_nothing(spoil, spec, message):
    model = cnn()
    spoil(model)
    modules = snapshot(model)[0]
    with pytest.raises(ValueError, match=message):
        lath.convert(model, lath.LowRank(**spec))
    assert snapshot(model)[0] == modules


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
    with pytest.raises(ValueError, match=r"model is itself a Conv2d.*LowRankConv2d\.from_dense"):
        lath.convert(nn.Conv2d(8, 8, 3), lath.LowRank(rank=2))


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


@pytest.mark.parametrize("conv", ["separable", "pointwise"])
@pytest.mark.parametrize("inner_bias", [False, True])
def test_dense_state_dict_of_convolutions(conv, inner_bias):
    def make():
        return nn.Sequential(nn.Conv2d(6, 8, (3, 5)), nn.BatchNorm2d(8), nn.Conv2d(8, 12, 3, groups=2)).double()

    model, x = make(), torch.randn(2, 6, 9, 9, dtype=torch.float64)
    lath.convert(model, lath.LowRank(rank=2, conv=conv, inner_bias=inner_bias, init="fresh"))
    y = model.eval()(x)
    state = lath.dense_state_dict(model)
    assert not any(t.requires_grad for t in state.values())
    dense = make().eval()
    dense.load_state_dict(state)
    torch.testing.assert_close(dense(x), y)
    model.load_state_dict(state)
    torch.testing.assert_close(model(x), y)
    model.load_state_dict(dense.state_dict())
    torch.testing.assert_close(model(x), y)


def test_a_border_effect_cannot_be_restored():
    """The rows of padding of a separable pair are zeros behind the inner bias."""
    model = cnn()
    lath.convert(model, lath.LowRank(rank=2, inner_bias=True))
    before = snapshot(model)[0]
    for back in (lath.restore, lath.dense_state_dict):
        with pytest.raises(ValueError, match=r"layer '0': .*border effect"):
            back(model)
    assert snapshot(model)[0] == before


def test_dense_state_dict_of_a_layer():
    layer = LowRankLinear(6, 5, 2, inner_bias=True)
    nn.Linear(6, 5).load_state_dict(lath.dense_state_dict(layer))
    nn.Conv2d(6, 5, 3).load_state_dict(lath.dense_state_dict(LowRankConv2d(6, 5, 3, 2)))


def test_dense_checkpoint_into_a_converted_model():
    trained, model = cnn(), cnn()
    lath.convert(model, lath.LowRank(ratio=0.25, init="fresh"))
    model.load_state_dict(trained.state_dict())
    expected = copy.deepcopy(trained)
    lath.convert(expected, lath.LowRank(ratio=0.25))
    x = torch.randn(2, 3, 12, 12)
    torch.testing.assert_close(model.eval()(x), expected.eval()(x))
    wrong = trained.state_dict() | {"3.weight": torch.zeros(24, 16, 5, 5)}
    with pytest.raises(RuntimeError, match=r"size mismatch for 3\.weight"):
        model.load_state_dict(wrong)
