# SPDX-License-Identifier: Apache-2.0
"""The decay terms: values and gradients against the product, invariants, and the step without a loss term."""

from __future__ import annotations

import lath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lath.factor import merge_conv
from torch import nn

DECAYS = (lath.frobenius_decay, lath.kronecker_decay, lath.l2_decay)
DIRECT = {
    lath.frobenius_decay: lambda v, u: (u @ v).square().sum(),
    lath.kronecker_decay: lambda v, u: u.square().sum() * v.square().sum(),
    lath.l2_decay: lambda v, u: u.square().sum() + v.square().sum(),
}


def model(dtype=torch.float64, n=9, m=7, r=3):
    return nn.Sequential(
        lath.nn.LowRankLinear(n, m, r, dtype=dtype),
        nn.Linear(m, m, dtype=dtype),
        lath.nn.LowRankLinear(m, n, 1, dtype=dtype),
    )


def factors(net):
    return [(m.weight_v, m.weight_u) for m in net if isinstance(m, lath.nn.LowRankLinear)]


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize(("convention", "scale"), [("reference", 1.0), ("half", 0.5)])
def test_value_and_gradient_against_the_formula(decay, convention, scale):
    net = model()
    expected = scale * sum(DIRECT[decay](v, u) for v, u in factors(net))
    leaves = [t for pair in factors(net) for t in pair]
    expected_grads = torch.autograd.grad(expected, leaves)
    value = decay(net, convention)
    assert value.shape == ()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, leaves), expected_grads)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 20))
def test_gram_value_in_float32(n, m, r):
    layer = lath.nn.LowRankLinear(n, m, r, bias=False)
    expected = (layer.weight_u.double() @ layer.weight_v.double()).square().sum()
    size = (layer.weight_u.double().abs() @ layer.weight_v.double().abs()).square().sum()
    assert abs(lath.frobenius_decay(layer).double() - expected) <= 1e-5 * size


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 6))
def test_order_of_the_terms(n, m, r):
    net = nn.Sequential(lath.nn.LowRankLinear(n, m, r, dtype=torch.float64))
    frobenius, kronecker, l2 = (decay(net).item() for decay in DECAYS)
    assert 0 <= frobenius <= kronecker * (1 + 1e-12)
    assert l2 * (1 + 1e-12) >= 2 * kronecker**0.5


def test_only_frobenius_decay_is_gauge_invariant():
    net = nn.Sequential(lath.nn.LowRankLinear(9, 7, 3, dtype=torch.float64))
    before = [decay(net) for decay in DECAYS]
    gauge = torch.randn(3, 3, dtype=torch.float64) + 3 * torch.eye(3)
    with torch.no_grad():
        net[0].weight_u.copy_(net[0].weight_u @ gauge)
        net[0].weight_v.copy_(torch.linalg.solve(gauge, net[0].weight_v))
    after = [decay(net) for decay in DECAYS]
    torch.testing.assert_close(after[0], before[0])
    assert not torch.isclose(after[1], before[1])
    assert not torch.isclose(after[2], before[2])


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_zero_factors(decay, dtype):
    net = model(dtype)
    with torch.no_grad():
        for pair in factors(net):
            for t in pair:
                t.zero_()
    value = decay(net)
    value.backward()
    assert value.item() == 0
    assert all(t.grad.count_nonzero() == 0 for pair in factors(net) for t in pair)


@pytest.mark.parametrize("decay", DECAYS)
def test_bfloat16_sums_in_float32(decay):
    layer = lath.nn.LowRankLinear(300, 300, 4, dtype=torch.bfloat16)
    value = decay(nn.Sequential(layer))
    assert value.dtype == torch.float32
    wide = DIRECT[decay](layer.weight_v.double(), layer.weight_u.double())
    torch.testing.assert_close(value.double(), wide, rtol=1e-4, atol=0)
    value.backward()
    assert layer.weight_v.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("decay", DECAYS)
def test_model_without_low_rank_layers(decay):
    assert decay(nn.Linear(3, 3)).item() == 0
    assert decay(nn.Module()).item() == 0


def test_shared_layer_counts_once():
    layer = lath.nn.LowRankLinear(6, 6, 2)
    torch.testing.assert_close(lath.frobenius_decay(nn.Sequential(layer, layer)), lath.frobenius_decay(layer))


@pytest.mark.parametrize("decay", [*DECAYS, lambda net, c: lath.FrobeniusDecay(net, 0.1, c)])
def test_unknown_convention(decay):
    with pytest.raises(ValueError, match="convention is 'double'"):
        decay(model(), "double")


# ---- convolutions -------------------------------------------------------------------------------------------------

CONVOLUTIONS = [(mode, groups) for mode in ("separable", "pointwise") for groups in (1, 3)]


def conv(mode, groups, dtype=torch.float64):
    return lath.nn.LowRankConv2d(6, 9, (3, 5), 2, groups=groups, mode=mode, dtype=dtype)


def conv_matrices(layer):
    """V and U of each group, tap by tap."""
    g, r = layer.groups, layer.rank
    for v, u in zip(layer.weight_v.split(r), layer.weight_u.split(layer.out_channels // g), strict=True):
        yield v.flatten(1), torch.cat([u[:, :, i, 0] for i in range(u.shape[2])])


@pytest.mark.parametrize(("mode", "groups"), CONVOLUTIONS)
def test_frobenius_decay_is_the_norm_of_the_dense_weight(mode, groups):
    layer = conv(mode, groups)
    weight = merge_conv(layer.weight_v, layer.weight_u, groups)
    torch.testing.assert_close(lath.frobenius_decay(layer), weight.square().sum())
    torch.testing.assert_close(lath.frobenius_decay(layer), layer.to_dense().weight.square().sum())


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize(("mode", "groups"), CONVOLUTIONS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_convolution_against_the_formula(decay, mode, groups, memory_format):
    net = nn.Sequential(conv(mode, groups), *model()).to(memory_format=memory_format)
    expected = sum(DIRECT[decay](v, u) for v, u in [*conv_matrices(net[0]), *factors(net[1:])])
    leaves = [net[0].weight_v, net[0].weight_u]
    expected_grads = torch.autograd.grad(expected, leaves)
    value = decay(net)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, leaves), expected_grads)


@pytest.mark.parametrize(("mode", "groups"), CONVOLUTIONS)
def test_convolution_in_bfloat16_sums_in_float32(mode, groups):
    layer = conv(mode, groups, torch.bfloat16)
    value = lath.frobenius_decay(layer)
    assert value.dtype == torch.float32
    wide = sum(DIRECT[lath.frobenius_decay](v.double(), u.double()) for v, u in conv_matrices(layer))
    torch.testing.assert_close(value.double(), wide, rtol=1e-4, atol=0)


# ---- FrobeniusDecay -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("convention", ["half", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_step_adds_the_gradient_of_the_term(convention, dtype):
    net = model(dtype)
    x = torch.randn(4, 9, dtype=dtype)
    (net(x).square().sum() + 0.3 * lath.frobenius_decay(net, convention)).backward()
    expected = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    net(x).square().sum().backward()
    lath.FrobeniusDecay(net, 0.3, convention).step()
    torch.testing.assert_close([p.grad for p in net.parameters()], expected)


@pytest.mark.parametrize("convention", ["half", "reference"])
@pytest.mark.parametrize(("mode", "groups"), CONVOLUTIONS)
def test_step_of_a_convolution(convention, mode, groups):
    net = nn.Sequential(conv(mode, groups))
    x = torch.randn(2, 6, 8, 8, dtype=torch.float64)
    (net(x).square().sum() + 0.3 * lath.frobenius_decay(net, convention)).backward()
    expected = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    net(x).square().sum().backward()
    lath.FrobeniusDecay(net, 0.3, convention).step()
    torch.testing.assert_close([p.grad for p in net.parameters()], expected)
    net.zero_grad()
    net[0].weight_v.requires_grad_(False)
    lath.FrobeniusDecay(net, 0.3, convention).step()
    assert net[0].weight_v.grad is None
    (gradient,) = torch.autograd.grad(0.3 * lath.frobenius_decay(net, convention), [net[0].weight_u])
    torch.testing.assert_close(net[0].weight_u.grad, gradient)


def test_step_without_a_gradient_so_far_and_with_frozen_factors():
    net = model()
    net[0].weight_v.requires_grad_(False)
    net[2].requires_grad_(False)
    lath.FrobeniusDecay(net, 0.5).step()
    (v, u), last = factors(net)[0], factors(net)[1]
    torch.testing.assert_close(u.grad, 0.5 * u.detach() @ v @ v.T)
    assert v.grad is None
    assert last[0].grad is None
    assert net[0].bias.grad is None


def test_step_sees_layers_converted_later():
    net = nn.Sequential(nn.Linear(20, 20))
    decay = lath.FrobeniusDecay(net, 0.5)
    lath.convert(net, lath.LowRank(rank=2))
    decay.step()
    assert net[0].weight_v.grad is not None


@pytest.mark.parametrize("coefficient", [-1.0, float("nan"), float("inf")])
def test_bad_coefficient(coefficient):
    with pytest.raises(ValueError, match="coefficient is"):
        lath.FrobeniusDecay(model(), coefficient)


# ---- several terms, several products in one pair ------------------------------------------------------------------


PAIRS = [{"frobenius": 0.3, "kronecker": 0.2}, {"l2": 0.5, "frobenius": 0.3}, {"l2": 0.5, "kronecker": 0.2}]


@pytest.mark.parametrize("coefficients", [*PAIRS, {"frobenius": 0.3, "kronecker": 0.2, "l2": 0.5}])
@pytest.mark.parametrize("convention", ["reference", "half"])
def test_mixed_decay_is_the_weighted_sum(coefficients, convention):
    net = model()
    terms = {"frobenius": lath.frobenius_decay, "kronecker": lath.kronecker_decay, "l2": lath.l2_decay}
    expected = sum(value * terms[name](net, convention) for name, value in coefficients.items())
    mixed = lath.mixed_decay(net, **coefficients, convention=convention)
    torch.testing.assert_close(mixed, expected)
    leaves = [t for pair in factors(net) for t in pair]
    torch.testing.assert_close(torch.autograd.grad(mixed, leaves), torch.autograd.grad(expected, leaves))


def test_mixed_decay_of_nothing_is_zero():
    assert lath.mixed_decay(model()).item() == 0
    assert lath.mixed_decay(nn.Linear(3, 3), frobenius=1.0).item() == 0


@pytest.mark.parametrize("name", ["frobenius", "kronecker", "l2"])
def test_bad_coefficient_of_a_term(name):
    with pytest.raises(ValueError, match=f"mixed_decay: {name} is -1"):
        lath.mixed_decay(model(), **{name: -1.0})
    if name != "frobenius":
        with pytest.raises(ValueError, match=f"FrobeniusDecay: {name} is nan"):
            lath.FrobeniusDecay(model(), 0.1, **{name: float("nan")})


@pytest.mark.parametrize("convention", ["half", "reference"])
@pytest.mark.parametrize(("mode", "groups"), CONVOLUTIONS)
def test_step_adds_the_gradient_of_a_pair(convention, mode, groups):
    net = nn.Sequential(conv(mode, groups), *model())
    expected = lath.mixed_decay(net, frobenius=0.3, kronecker=0.2, l2=0.5, convention=convention)
    expected.backward()
    grads = [p.grad for p in net.parameters() if p.grad is not None]
    net.zero_grad()
    lath.FrobeniusDecay(net, 0.3, convention, kronecker=0.2, l2=0.5).step()
    torch.testing.assert_close([p.grad for p in net.parameters() if p.grad is not None], grads)
    assert len(grads) == 6


class Stack(nn.Module):
    """Holds pairs as an LSTM and an attention layer do, one of them with three products on top of each other."""

    __module__ = "lath.nn.stack"  # where the layers of lath are

    def __init__(self):
        super().__init__()
        for name, shape in {
            "weight_ih_l0": (8, 5),  # dense, no part of it
            "weight_hh_v_l0": (2, 4),
            "weight_hh_u_l0": (8, 2),
            "weight_hh_v_l0_reverse": (2, 4),
            "weight_hh_u_l0_reverse": (8, 2),
            "in_proj_weight_v": (6, 7),
            "in_proj_weight_u": (9, 2),
        }.items():
            setattr(self, name, nn.Parameter(torch.randn(shape, dtype=torch.float64)))
        self.register_parameter("bias_v", None)

    def products(self):
        yield self.weight_hh_v_l0, self.weight_hh_u_l0
        yield self.weight_hh_v_l0_reverse, self.weight_hh_u_l0_reverse
        for i in range(3):
            yield self.in_proj_weight_v[2 * i : 2 * i + 2], self.in_proj_weight_u[3 * i : 3 * i + 3]


@pytest.mark.parametrize("decay", DECAYS)
def test_pairs_of_layers_that_hold_several(decay):
    net = nn.Sequential(Stack(), *model())
    expected = sum(DIRECT[decay](v, u) for v, u in [*net[0].products(), *factors(net)])
    torch.testing.assert_close(decay(net), expected)


def test_step_of_layers_that_hold_several():
    net = Stack()
    (0.5 * lath.frobenius_decay(net, "half")).backward()
    expected = {name: p.grad for name, p in net.named_parameters()}
    net.zero_grad()
    lath.FrobeniusDecay(net, 0.5).step()
    torch.testing.assert_close({name: p.grad for name, p in net.named_parameters()}, expected)
    assert net.weight_ih_l0.grad is None
    assert sum(grad is not None for grad in expected.values()) == 6


@pytest.mark.parametrize("decay", DECAYS)
def test_attention_counts_each_projection(decay):
    layer = lath.nn.LowRankMultiheadAttention(12, 2, 3, dtype=torch.float64)
    v, u = layer.in_proj_weight_v, layer.in_proj_weight_u
    pairs = [*zip(v.chunk(3), u.chunk(3), strict=True), (layer.out_proj.weight_v, layer.out_proj.weight_u)]
    torch.testing.assert_close(decay(layer), sum(DIRECT[decay](v, u) for v, u in pairs))
    dense = layer.to_dense()
    if decay is lath.frobenius_decay:
        total = dense.in_proj_weight.square().sum() + dense.out_proj.weight.square().sum()
        torch.testing.assert_close(decay(layer), total)


@pytest.mark.parametrize("decay", DECAYS)
def test_an_lstm_counts_each_factored_weight(decay):
    layer = lath.nn.LowRankLSTM(5, 8, 3, num_layers=2, input_rank=(0, 2), dtype=torch.float64)
    names = ("weight_hh_{}_l0", "weight_ih_{}_l1", "weight_hh_{}_l1")
    pairs = [(getattr(layer, name.format("v")), getattr(layer, name.format("u"))) for name in names]
    torch.testing.assert_close(decay(layer), sum(DIRECT[decay](v, u) for v, u in pairs))


# ---- in the place of weight decay ---------------------------------------------------------------------------------


def test_decay_groups_leave_the_factors_alone():
    net = nn.Sequential(*model(), Stack())
    others, thin = lath.decay_groups(net, 0.1)
    assert (others["weight_decay"], thin["weight_decay"]) == (0.1, 0.0)
    names = {id(p): name for name, p in net.named_parameters()}
    assert {names[id(p)] for p in others["params"]} == {n for n in names.values() if "_v" not in n and "_u" not in n}
    assert sorted(names[id(p)] for group in (others, thin) for p in group["params"]) == sorted(names.values())
    with pytest.raises(ValueError, match="weight_decay is -1"):
        lath.decay_groups(net, -1.0)


def test_frobenius_decay_at_full_rank_moves_the_product_as_weight_decay_would():
    """Khodak et al.: the half gradient of coefficient c on both factors, to first order, is weight decay on U V."""
    net = nn.Sequential(lath.nn.LowRankLinear(6, 6, 6, bias=False, dtype=torch.float64))
    u, v = (torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q for _ in range(2))
    with torch.no_grad():  # orthogonal factors: both gradients are the factor itself
        net[0].weight_u.copy_(u)
        net[0].weight_v.copy_(v)
    before = net[0].to_dense().weight.detach()
    rate, coefficient = 1e-6, 0.1
    optimizer = torch.optim.SGD(lath.decay_groups(net, 5e-4), lr=rate)
    lath.FrobeniusDecay(net, coefficient).step()
    optimizer.step()
    after = net[0].to_dense().weight.detach()
    torch.testing.assert_close((after - before) / rate, -2 * coefficient * before, rtol=1e-5, atol=1e-9)


def test_of_orthogonal_bases_is_weight_decay_of_the_core():
    model = torch.nn.Sequential(torch.nn.Linear(12, 16), torch.nn.Linear(16, 16), torch.nn.Linear(16, 4)).double()
    lath.convert(model, lath.OIALR(rank_ratio=0.5))
    dense = [core.dense() for core in lath.oialr_cores(model).values()]
    assert len(dense) == 2
    torch.testing.assert_close(lath.frobenius_decay(model), sum(w.square().sum() for w in dense))
    torch.testing.assert_close(lath.mixed_decay(model, frobenius=0.5, l2=0.3), 0.5 * lath.frobenius_decay(model))
    assert lath.kronecker_decay(model) == lath.l2_decay(model) == 0
    lath.FrobeniusDecay(model, 0.25).step()
    lath.FrobeniusDecay(model, 0.25).step()
    for core in lath.oialr_cores(model).values():
        torch.testing.assert_close(core.s.grad, 0.5 * core.s)
    groups = lath.decay_groups(model, 0.1)
    assert {id(p) for p in groups[1]["params"]} == {id(core.s) for core in lath.oialr_cores(model).values()}
