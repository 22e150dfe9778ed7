# SPDX-License-Identifier: Apache-2.0
"""The batch norm between the factors of a convolution: training, evaluation, and the way back to a dense layer."""

from __future__ import annotations

import copy
import pickle

import lath
import pytest
import torch
from lath.neighbours import insert_norms
from lath.nn import LowRankConv2d, LowRankConv2dNorm
from torch import nn

F64 = torch.float64

GEOMETRIES = [
    {"padding": 1},
    {"stride": 2, "padding": (0, 1)},
    {"stride": (2, 1), "dilation": 2, "padding": 2},
    {"groups": 2, "padding": 1},
    {"padding": "same", "bias": False},
    {"padding": "valid"},
    {"padding": (2, 1), "padding_mode": "reflect"},
    {"padding": "same", "padding_mode": "circular"},
]


def layer(mode="pointwise", dtype=F64, **options):
    made = LowRankConv2dNorm(4, 6, 3, 3, mode=mode, dtype=dtype, **options)
    with torch.no_grad():  # a norm that has seen something
        made.norm.weight.uniform_(0.5, 2)
        made.norm.bias.normal_()
        made.norm.running_mean.normal_()
        made.norm.running_var.uniform_(0.5, 2)
    return made


def two_convolutions(made):
    """The same in layers of torch, which share the parameters."""
    g = made.groups
    (kh, kw), (sh, sw), (dh, dw) = made.kernel_size, made.stride, made.dilation
    separable = made.mode == "separable"
    padding = made.padding
    if made.padding_mode == "zeros" and not isinstance(padding, str) and separable:
        first_pad, second_pad = (0, padding[1]), (padding[0], 0)
    elif made.padding_mode == "zeros" and separable:
        first_pad = second_pad = padding
    else:
        first_pad, second_pad = padding, 0
    whole = made.padding_mode != "zeros"  # padded on both sides before the first
    if separable and whole:
        ph, pw = (1, 1) if padding == "same" else padding
        pad = nn.Identity()
        pad.forward = lambda x: nn.functional.pad(x, (pw, pw, ph, ph), made.padding_mode)
        first_pad = second_pad = 0
    else:
        pad = nn.Identity()
    padding_mode = made.padding_mode if not separable else "zeros"
    if separable:
        first = nn.Conv2d(4, g * 3, (1, kw), (1, sw), first_pad, (1, dw), g, bias=False, padding_mode=padding_mode)
        second = nn.Conv2d(g * 3, 6, (kh, 1), (sh, 1), second_pad, (dh, 1), g, bias=made.bias is not None)
    else:
        first = nn.Conv2d(4, g * 3, (kh, kw), (sh, sw), first_pad, (dh, dw), g, bias=False, padding_mode=padding_mode)
        second = nn.Conv2d(g * 3, 6, 1, groups=g, bias=made.bias is not None)
    first.weight, second.weight, second.bias = made.weight_v, made.weight_u, made.bias
    return nn.Sequential(pad, first, copy.deepcopy(made.norm), second).train(made.training)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mode", ["pointwise", "separable"])
@pytest.mark.parametrize("options", GEOMETRIES)
def test_is_two_convolutions_with_a_norm_between(options, mode, training):
    made = layer(mode, **options).train(training)
    expected = two_convolutions(made)
    x = torch.randn(3, 4, 9, 8, dtype=F64)
    y = made(x)
    torch.testing.assert_close(y, expected(x))
    torch.testing.assert_close(made.norm.running_mean, expected[2].running_mean)
    torch.testing.assert_close(made.norm.running_var, expected[2].running_var)
    weights = [made.weight_v, made.weight_u]
    gradients = torch.autograd.grad(y.square().sum(), [*weights, made.norm.weight, made.norm.bias])
    again = two_convolutions(made) if not training else expected
    if training:
        again[2].load_state_dict(made.norm.state_dict())
    of_norm = [again[2].weight, again[2].bias]
    torch.testing.assert_close(gradients, torch.autograd.grad(again(x).square().sum(), [*weights, *of_norm]))


def test_float32_and_one_image():
    made = layer(dtype=torch.float32, padding=1).eval()
    x = torch.randn(2, 4, 9, 9)
    torch.testing.assert_close(made(x), two_convolutions(made)(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made(x[0]), made(x)[0], rtol=1e-4, atol=1e-5)
    made.train()
    assert made(x[0]).shape == (6, 9, 9)


def test_evaluation_is_one_call_of_the_low_rank_operator():
    made = layer(dtype=torch.float32, padding=1).eval()
    with torch.profiler.profile() as profile, torch.no_grad():
        made(torch.randn(2, 4, 9, 9))
    names = {event.key for event in profile.key_averages()}
    assert any(name.startswith("lath::lowrank_conv2d") for name in names)
    assert not any("batch_norm" in name for name in names)


@pytest.mark.parametrize("options", GEOMETRIES)
def test_dense_twin_and_folded_layer(options):
    made = layer(**options).eval()
    x = torch.randn(2, 4, 9, 9, dtype=F64)
    dense, folded = made.to_dense(), made.folded()
    assert type(dense) is nn.Conv2d
    assert type(folded) is LowRankConv2d
    torch.testing.assert_close(dense(x), made(x))
    torch.testing.assert_close(folded(x), made(x))
    weight, bias = made.merged()
    torch.testing.assert_close((weight, bias), (dense.weight, dense.bias))


def test_no_dense_twin_with_vertical_padding():
    """The separable form pads rows after the norm's shift."""
    made = layer("separable", padding=1)
    with pytest.raises(ValueError, match="border effect"):
        made.to_dense()
    layer("separable", padding=(0, 1)).to_dense()


@pytest.mark.parametrize("changed", ["running_mean", "running_var", "weight", "bias"])
def test_a_frozen_copy_knows_the_norm(changed):
    made = LowRankConv2dNorm(4, 6, 3, 6, padding=1, dtype=F64).eval()
    x = torch.randn(2, 4, 9, 9, dtype=F64)
    with torch.no_grad():
        before = made(x)
        assert made.freeze()
        torch.testing.assert_close(made(x), before)
        getattr(made.norm, changed).add_(1)
        after = made(x)
    assert (after - before).abs().max() > 0.01
    made.unfreeze()
    torch.testing.assert_close(made(x).detach(), after)


def test_no_frozen_copy_where_there_is_no_dense_twin():
    made = LowRankConv2dNorm(4, 6, 3, 9, padding=1, mode="separable").eval()
    assert made.freeze() is False
    assert LowRankConv2dNorm(4, 6, 3, 9, padding=(0, 1), mode="separable").eval().freeze() is True


def test_copies_and_checkpoints():
    made = layer(padding=1).eval()
    x = torch.randn(2, 4, 9, 9, dtype=F64)
    for twin in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        torch.testing.assert_close(twin(x), made(x), rtol=0, atol=0)
    other = LowRankConv2dNorm(4, 6, 3, 3, padding=1, dtype=F64).eval()
    other.load_state_dict(made.state_dict())
    torch.testing.assert_close(other(x), made(x), rtol=0, atol=0)
    assert set(made.state_dict()) == {
        "weight_v", "weight_u", "bias", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var",
        "norm.num_batches_tracked",
    }  # fmt: skip


def test_compiles_in_one_graph():
    made = layer(dtype=torch.float32, padding=1).eval()
    x = torch.randn(2, 4, 9, 9)
    compiled = torch.compile(made, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), made(x))
    made.train()
    other = copy.deepcopy(made)
    torch.testing.assert_close(torch.compile(other, backend="eager", fullgraph=True)(x), made(x))


# ---- in a model ---------------------------------------------------------------------------------------------------


def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, bias=False), nn.ReLU(), nn.Conv2d(8, 8, 1)
    )


class TestInsert:
    def test_parameters_and_hooks_stay_the_same_objects(self):
        model = network()
        calls = []
        model[2].register_forward_hook(lambda *args: calls.append(1))
        lath.convert(model, lath.LowRank(rank=2, conv="pointwise"), exclude="0")
        kept = {name: (model[int(name)].weight_v, model[int(name)].weight_u) for name in ("2", "4")}
        assert insert_norms(model) == ["2", "4"]
        for name, factors in kept.items():
            made = model[int(name)]
            assert type(made) is LowRankConv2dNorm
            assert made.weight_v is factors[0]
            assert made.weight_u is factors[1]
            assert made.norm.num_features == 2
        assert model[2].bias is None
        model(torch.randn(2, 3, 8, 8))
        assert calls == [1]
        assert insert_norms(model) == []

    def test_only_some_layers(self):
        model = network()
        lath.convert(model, lath.LowRank(rank=2, conv="pointwise"))
        assert insert_norms(model, {"2"}) == ["2"]
        assert type(model[0]) is LowRankConv2d

    def test_an_inner_bias_is_refused_before_anything_changes(self):
        model = network()
        lath.convert(model, lath.LowRank(rank=2, conv="pointwise"), exclude="2")
        lath.convert(model, lath.LowRank(rank=2, conv="pointwise", inner_bias=True), include="2")
        with pytest.raises(ValueError, match="inner bias"):
            insert_norms(model)
        assert [type(model[i]) for i in (0, 2, 4)] == [LowRankConv2d] * 3

    def test_restore_and_dense_state_dict(self):
        model = network()
        keys = set(model.state_dict())
        lath.convert(model, lath.LowRank(rank=2, conv="pointwise"))
        insert_norms(model)
        for _ in range(3):
            model(torch.randn(4, 3, 8, 8))
        model.eval()
        x = torch.randn(2, 3, 8, 8)
        expected = model(x).detach()
        state = lath.dense_state_dict(model)
        assert set(state) == keys | {"2.bias"}  # the shift of the norm
        assert lath.restore(model) == ["0", "2", "4"]
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.state_dict(), state)

    def test_report(self):
        model = network()
        lath.convert(model, lath.LowRank(rank=2, conv="pointwise"))
        insert_norms(model)
        row = lath.report(model, torch.randn(2, 3, 8, 8))["2"]
        assert row.kind == "LowRankConv2dNorm"
        assert row.rank == 2
        assert row.parameters == 2 * 8 * 9 + 8 * 2 + 4

    def test_refuses_other_layers(self):
        with pytest.raises(TypeError, match="layer is Conv2d"):
            LowRankConv2dNorm.from_low_rank(nn.Conv2d(3, 3, 3))
        with pytest.raises(TypeError, match="layer is LowRankConv2dNorm"):
            LowRankConv2dNorm.from_low_rank(layer())

    def test_from_dense(self):
        dense = nn.Conv2d(4, 6, 3, padding=1).requires_grad_(False)
        made = LowRankConv2dNorm.from_dense(dense, 3)
        assert not any(p.requires_grad for p in made.parameters())
        torch.testing.assert_close(made.weight_v, LowRankConv2d.from_dense(dense, 3, mode="pointwise").weight_v)
