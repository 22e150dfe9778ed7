# SPDX-License-Identifier: Apache-2.0
"""The formulas of Cuttlefish, Pufferfish, and spectral initialization with Frobenius decay; the layer choice."""

from __future__ import annotations

import copy
import math

import lath
import pytest
import torch
from lath.factor import Decomposition
from lath.neighbours import RankDetector, presets, profile
from lath.neighbours.candidates import candidates, full_rank, weight_matrices
from lath.neighbours.stable_rank import Estimate, estimates
from lath.nn import LowRankConv2d, LowRankLinear, OIALRLinear
from torch import nn

F64 = torch.float64


def with_values(*values, rows=None, columns=None):
    """A matrix in random bases with these singular values."""
    k = len(values)
    left = torch.linalg.qr(torch.randn(rows or k, k, dtype=F64)).Q
    right = torch.linalg.qr(torch.randn(columns or k, k, dtype=F64)).Q
    return left @ torch.tensor(values, dtype=F64).diag() @ right.mT


def network():
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))


# ---- the stable rank ----------------------------------------------------------------------------------------------


class TestStableRank:
    @pytest.mark.parametrize("shape", [(4, 4), (9, 4), (4, 9)])
    def test_of_given_singular_values(self, shape):
        weight = with_values(3.0, 2.0, 1.0, 1.0, rows=shape[0], columns=shape[1])
        torch.testing.assert_close(lath.stable_rank(weight), torch.tensor(15 / 9, dtype=F64))

    @pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("shape", [(7, 30), (30, 7), (1, 5), (5, 1), (6, 6)])
    def test_is_the_quotient_of_the_norms(self, dtype, shape):
        weight = torch.randn(shape).to(dtype)
        wide = weight.double()
        expected = wide.square().sum() / torch.linalg.matrix_norm(wide, 2) ** 2
        found = lath.stable_rank(weight)
        assert found.dtype == (F64 if dtype == F64 else torch.float32)
        torch.testing.assert_close(found.double(), expected, rtol=1e-11 if dtype == F64 else 1e-5, atol=0)

    def test_bounds_and_scale(self):
        weight = torch.randn(8, 20, dtype=F64)
        found = lath.stable_rank(weight)
        assert 1 <= found <= 8
        torch.testing.assert_close(lath.stable_rank(-1e-3 * weight), found)
        torch.testing.assert_close(lath.stable_rank(torch.eye(5)), torch.tensor(5.0))
        torch.testing.assert_close(lath.stable_rank(torch.ones(5, 3)), torch.tensor(1.0))

    def test_numbers_whose_squares_overflow(self):
        weight = torch.randn(6, 9)
        torch.testing.assert_close(lath.stable_rank(weight * 1e30), lath.stable_rank(weight))
        torch.testing.assert_close(lath.stable_rank(weight * 1e-30), lath.stable_rank(weight))

    def test_a_stack_and_zeros(self):
        stack = torch.stack([torch.randn(4, 6), torch.zeros(4, 6), torch.randn(4, 6)])
        found = lath.stable_rank(stack)
        assert found.shape == (3,)
        assert found[1] == 0
        torch.testing.assert_close(found[2], lath.stable_rank(stack[2]))

    @pytest.mark.parametrize(
        ("weight", "error", "message"),
        [
            (torch.ones(3), TypeError, "shape (3,)"),
            (torch.ones(3, 3, dtype=torch.int64), TypeError, "torch.int64"),
            (torch.ones(0, 3), ValueError, "shape (0, 3)"),
            (torch.ones(2, 2, device="meta"), ValueError, "on meta"),
            (torch.full((2, 2), math.nan), ValueError, "NaN or infinity"),
            (torch.full((2, 2), -math.inf), ValueError, "NaN or infinity"),
        ],
    )
    def test_refuses(self, weight, error, message):
        with pytest.raises(error) as caught:
            lath.stable_rank(weight)
        assert message in str(caught.value)

    @pytest.mark.parametrize(
        ("shape", "tolerance"),
        [((64, 64), 0.07), ((64, 576), 0.05), ((256, 64), 0.05), ((96, 200), 0.05), ((256, 256), 0.05)],
    )
    @pytest.mark.parametrize("draw", ["normal", "uniform"])
    def test_of_independent_numbers(self, shape, tolerance, draw):
        """At the start of training the factor xi is near (1 + sqrt(m/n))^2 for m <= n; below it in small matrices."""
        weights = torch.empty(40, *shape)
        weights.normal_() if draw == "normal" else weights.uniform_(-1, 1)
        m, n = min(shape), max(shape)
        xi = (m / lath.stable_rank(weights)).mean().item()
        assert xi == pytest.approx((1 + math.sqrt(m / n)) ** 2, rel=tolerance)

    def test_of_the_layers_of_a_model(self):
        model = nn.ModuleDict({"conv": nn.Conv2d(4, 6, 3, groups=2), "norm": nn.BatchNorm2d(6), "out": nn.Linear(9, 5)})
        found = lath.stable_ranks(model)
        assert list(found) == ["conv", "out"]
        groups = model["conv"].weight.detach().reshape(2, 3, 18)
        assert found["conv"] == pytest.approx(lath.stable_rank(groups).max().item(), rel=1e-6)
        assert found["out"] == pytest.approx(lath.stable_rank(model["out"].weight).item(), rel=1e-6)
        assert lath.stable_ranks(model, "separable")["conv"] != pytest.approx(found["conv"], rel=1e-3)
        assert list(lath.stable_ranks(model, exclude="out")) == ["conv"]
        with pytest.raises(ValueError, match="conv is 'tucker'"):
            lath.stable_ranks(model, "tucker")
        model["out"].weight.data[0, 0] = math.nan
        with pytest.raises(ValueError, match=r"layer 'out': .*NaN"):
            lath.stable_ranks(model)

    def test_of_attention_and_lstm(self):
        model = nn.ModuleDict({"a": nn.MultiheadAttention(8, 2, kdim=5), "l": nn.LSTM(20, 6, num_layers=2)})
        found = lath.stable_ranks(model)
        a, recurrent = model["a"], (model["l"].weight_hh_l0, model["l"].weight_hh_l1)
        of_attention = [lath.stable_rank(w).item() for w in (a.q_proj_weight, a.k_proj_weight, a.v_proj_weight)]
        of_attention.append(lath.stable_rank(a.out_proj.weight).item())
        assert found["a"] == pytest.approx(max(of_attention))
        assert found["l"] == pytest.approx(max(lath.stable_rank(w).item() for w in recurrent))
        assert full_rank(weight_matrices(model["l"], "pointwise")) == 6
        assert full_rank(weight_matrices(a, "pointwise")) == 8

    def test_without_a_layer(self):
        with pytest.raises(ValueError, match=r"no layer to factor .*depthwise"):
            lath.stable_ranks(nn.Sequential(nn.Conv2d(4, 4, 3, groups=4)))
        with pytest.raises(ValueError, match="no layer of a known kind"):
            lath.stable_ranks(nn.Sequential(nn.ReLU()))
        with pytest.raises(TypeError, match="model is int"):
            lath.stable_ranks(3)


# ---- ranks from it ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("full", "start", "now", "expected"),
    [
        (4, 2, 1, 2),  # the published example: stable ranks 2.6 and 1.667
        (512, 128, 128, 512),
        (512, 128, 129, 512),
        (512, 127, 60, 242),  # 4.03 * 60 = 241.9
        (10, 3, 2, 7),  # 6.67
        (12, 4, 3, 9),  # exactly
        (7, 2, 2, 7),
        (49, 15, 15, 49),  # in doubles 49 / 15 * 15 is 49.000000000000007
        (10, 3, 4, 10),  # floor(13.3) > 10
        (512, 300, 1, 2),
    ],
)
def test_scaled_rank(full, start, now, expected):
    assert lath.StableRank().rank(Estimate(full, now), Estimate(full, start)) == expected


def test_no_rank_above_the_full_one():
    """floor(xi sr) = full is not above full, its ceiling may be."""
    assert lath.StableRank().rank(Estimate(10, 21), Estimate(10, 20)) == 10


@pytest.mark.parametrize(("floor", "expected"), [(None, 5), (5, 20), (2, 51)])
def test_floors(floor, expected):
    assert lath.StableRank(floor=floor).rank(Estimate(103, 1), Estimate(103, 25)) == expected
    vanilla = lath.StableRank("vanilla", floor).rank(Estimate(103, 1), Estimate(103, 25))
    assert vanilla == (1 if floor is None else expected)


def test_vanilla_rank_is_the_stable_rank():
    assert lath.StableRank("vanilla").rank(Estimate(100, 17), Estimate(100, 30)) == 17


def test_estimates_cut_off_to_integers():
    model = nn.Sequential(nn.Linear(4, 9, dtype=F64), nn.Linear(9, 3, dtype=F64))
    model[0].weight.data.copy_(with_values(3.0, 2.0, 1.0, 1.0, rows=9))
    model[1].weight.data.zero_()
    sites = candidates(model, lath.LowRank(rank=1), None, None, "test")
    assert estimates(sites, "pointwise") == {"0": Estimate(4, 1), "1": Estimate(3, 1)}


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"metric": "energy"}, ValueError, "metric is 'energy'"),
        ({"floor": 0}, ValueError, "floor is 0"),
        ({"floor": 2.0}, TypeError, "floor is 2.0"),
        ({"conv": "tucker"}, ValueError, "conv is 'tucker'"),
        ({"skip_first": -1}, ValueError, "skip_first is -1"),
        ({"tune": 1}, TypeError, "tune is 1"),
    ],
)
def test_bad_stable_rank(fields, error, message):
    with pytest.raises(error, match=message):
        lath.StableRank(**fields)


# ---- when the ranks have settled ----------------------------------------------------------------------------------


def falling(epoch):
    return math.floor(20 + 40 * math.exp(-epoch / 5))


def first_settled(detector, names, ranks, epochs=80):
    for epoch in range(epochs):
        detector.observe({name: ranks[name](epoch) for name in names})
        if detector.done:
            return epoch
    return None


class TestDetector:
    @pytest.mark.parametrize(("layers", "expected"), [(1, 30), (2, 35), (3, 42), (5, 42)])
    def test_published_setting_of_cifar(self, layers, expected):
        names = [f"l{i}" for i in range(layers)]
        detector = RankDetector.of(lath.RankSwitch(), names)
        assert first_settled(detector, names, dict.fromkeys(names, falling)) == expected
        assert detector.settled == dict.fromkeys(names, expected)

    def test_the_number_left_is_that_before_the_epoch(self):
        """Two settle at epoch 15; what is left, one layer, meets the relaxed threshold at epoch 30 only."""
        ranks = {"flat": lambda epoch: 7, "other": lambda epoch: 9, "falls": falling}
        detector = RankDetector.of(lath.RankSwitch(), ranks)
        assert first_settled(detector, ranks, ranks) == 30
        assert detector.settled == {"flat": 15, "other": 15, "falls": 30}

    def test_nothing_before_the_window(self):
        detector = RankDetector.of(lath.RankSwitch(window=5, last=5, threshold=0.33, relaxation=()), ["a"])
        assert first_settled(detector, ["a"], {"a": lambda epoch: 3}) == 5

    def test_settled_stays_settled(self):
        ranks = {"a": lambda epoch: 7 if epoch < 20 else epoch**2, "b": lambda epoch: 5 * epoch}
        detector = RankDetector.of(lath.RankSwitch(), ranks)
        assert first_settled(detector, ranks, ranks, 30) is None
        assert detector.settled == {"a": 15}

    def test_slope_is_that_of_the_smoothed_ranks(self):
        """By hand: weight 1/2, ranks 4, 8, 8, 0 give 4, 6, 7, 3.5; slopes 2, 1.5, -1.25, -3.5."""
        rule = lath.RankSwitch(window=3, last=3)
        assert rule.slope([4, 8, 8, 0]) == pytest.approx((1.5 + 1.25 + 3.5) / 3)
        assert lath.RankSwitch(window=3, last=9).slope([4, 8, 8, 0]) == pytest.approx((2 + 1.5 + 1.25 + 3.5) / 4)
        assert rule.slope([4]) == math.inf
        assert rule.slope([4, 8]) == pytest.approx(2)

    @pytest.mark.parametrize(
        ("setting", "thresholds"),
        [
            ("cifar", {10: 0.1, 3: 0.1, 2: 0.25, 1: 0.5}),
            ("imagenet", {7: 0.33, 6: 0.825, 4: 0.825, 3: 1.65, 1: 1.65}),
            ("transformer", {10: 0.411, 9: 1.0275, 5: 1.0275, 4: 2.055, 1: 2.055}),
        ],
    )
    def test_published_thresholds(self, setting, thresholds):
        rule = presets.CUTTLEFISH[setting].switch
        assert (rule.window, rule.last) == ((15, 11) if setting == "cifar" else (5, 5))
        for left, expected in thresholds.items():
            assert rule.threshold_for(left) == pytest.approx(expected)

    def test_state_goes_on(self):
        ranks = {"a": falling, "b": lambda epoch: 3}
        one, other = (RankDetector.of(lath.RankSwitch(), ranks) for _ in range(2))
        for epoch in range(20):
            one.observe({name: rank(epoch) for name, rank in ranks.items()})
        other.load_state_dict(one.state_dict())
        for epoch in range(20, 40):
            for detector in (one, other):
                detector.observe({name: rank(epoch) for name, rank in ranks.items()})
        assert one.settled == other.settled == {"a": 30, "b": 15}
        with pytest.raises(ValueError, match=r"other layers.*: b"):
            RankDetector.of(lath.RankSwitch(), ["a"]).load_state_dict(one.state_dict())

    def test_other_layers(self):
        detector = RankDetector.of(lath.RankSwitch(), ["a", "b"])
        with pytest.raises(ValueError, match=r"other layers than before.*: b, c"):
            detector.observe({"a": 1, "c": 2})
        assert detector.history == {"a": [], "b": []}

    @pytest.mark.parametrize(
        ("fields", "error", "message"),
        [
            ({"window": 0}, ValueError, "window is 0"),
            ({"last": 1.5}, TypeError, "last is 1.5"),
            ({"threshold": 0.0}, ValueError, "threshold is 0.0"),
            ({"threshold": math.nan}, ValueError, "threshold is nan"),
            ({"relaxation": ((0, 2.0),)}, ValueError, "relaxation is 0"),
            ({"relaxation": ((2, -1.0),)}, ValueError, "relaxation is -1.0"),
        ],
    )
    def test_bad_rules(self, fields, error, message):
        with pytest.raises(error, match=message):
            lath.RankSwitch(**fields)

    def test_bad_times(self):
        with pytest.raises(ValueError, match=r"epochs is -1"):
            lath.AfterEpochs(-1)
        with pytest.raises(TypeError, match=r"steps is 2.0"):
            lath.AfterSteps(2.0)


# ---- spectral initialization and Frobenius decay ------------------------------------------------------------------


class TestSpectralFrobenius:
    def test_factors_are_balanced_and_the_best_of_their_rank(self):
        weight = torch.randn(9, 14, dtype=F64)
        values = torch.linalg.svdvals(weight)
        v, u = Decomposition.of(weight, "test").factors(4)
        torch.testing.assert_close((u @ v - weight).norm(), values[4:].square().sum().sqrt())
        torch.testing.assert_close(torch.linalg.matrix_norm(u @ v - weight, 2), values[4])
        torch.testing.assert_close(u.mT @ u, values[:4].diag(), atol=1e-12, rtol=0)
        torch.testing.assert_close(v @ v.mT, values[:4].diag(), atol=1e-12, rtol=0)

    def test_nuclear_norm_bounds_plain_decay(self):
        """(|U|^2 + |V|^2) / 2 >= |U V|_*, with equality for balanced factors: the hidden penalty on rank."""
        v, u = Decomposition.of(torch.randn(9, 14, dtype=F64), "test").factors(4)

        def plain(v, u):
            return (u.square().sum() + v.square().sum()) / 2

        nuclear = torch.linalg.matrix_norm(u @ v, "nuc")
        torch.testing.assert_close(plain(v, u), nuclear)
        mixing = torch.randn(4, 4, dtype=F64)
        other = plain(torch.linalg.solve(mixing, v), u @ mixing)  # the same product
        assert other > nuclear * 1.01

    def test_frobenius_decay_by_finite_differences(self):
        """Of lambda / 2 ||U V||^2."""
        layer = LowRankLinear(7, 5, 3, bias=False, dtype=F64)
        lath.FrobeniusDecay(layer, 0.3).step()

        def value():
            return 0.15 * (layer.weight_u @ layer.weight_v).square().sum()

        for weight in (layer.weight_v, layer.weight_u):
            flat, gradient = weight.data.view(-1), weight.grad.view(-1)
            for i in range(0, flat.numel(), 4):
                before, step = flat[i].clone(), 1e-5
                flat[i] = before + step
                above = value()
                flat[i] = before - step
                slope = (above - value()) / (2 * step)
                flat[i] = before
                torch.testing.assert_close(gradient[i], slope.detach(), rtol=1e-7, atol=1e-9)

    def test_three_factors_in_an_orthogonal_basis(self):
        """Frobenius decay of U S Vh is weight decay of S: the formula gives lambda S, the norms are equal."""
        layer = OIALRLinear.from_dense(nn.Linear(11, 8, dtype=F64), 5)
        u, s, vh = (t.detach().requires_grad_() for t in (layer.weight_u, layer.weight_s, layer.weight_vh))
        value = 0.15 * (u @ s @ vh).square().sum()
        of_u, of_s, of_vh = torch.autograd.grad(value, [u, s, vh])
        torch.testing.assert_close(of_s, 0.3 * s.detach())
        torch.testing.assert_close(s.norm(), (u @ s @ vh).norm())
        m, v = s.detach(), vh.detach().mT
        torch.testing.assert_close(of_u, 0.3 * u.detach() @ m @ (v.mT @ v) @ m.mT)
        torch.testing.assert_close(of_vh, 0.3 * (v @ m.mT @ (u.detach().mT @ u.detach()) @ m).mT)

    def test_preset(self):
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.Conv2d(8, 16, 3, padding=1, dtype=F64),
            nn.Linear(30, 20, dtype=F64),
            nn.Linear(20, 4),
        )
        weights = [model[i].weight.detach().clone() for i in range(4)]
        report, groups, decay = lath.spectral_frobenius(model, 0.1, 1e-2)
        assert isinstance(model[1], LowRankConv2d)
        assert model[1].mode == "separable"
        assert model[1].rank == round(0.1 * 16 * 3) == 5
        assert model[2].rank == 2
        assert [row.rank for row in report] == [None, 5, 2, None]
        values = torch.linalg.svdvals(weights[1].permute(0, 2, 1, 3).reshape(48, 24))
        error = (model[1].to_dense().weight - weights[1]).norm()
        torch.testing.assert_close(error.detach(), values[5:].square().sum().sqrt())
        assert [group["weight_decay"] for group in groups] == [1e-2, 0.0]
        factors = {id(p) for i in (1, 2) for p in (model[i].weight_v, model[i].weight_u)}
        assert {id(p) for p in groups[1]["params"]} == factors
        assert len(groups[0]["params"]) == 4 + 2
        decay.step()
        torch.testing.assert_close(
            model[2].weight_u.grad, 1e-2 * model[2].weight_u @ (model[2].weight_v @ model[2].weight_v.mT)
        )

    def test_preset_has_at_least_rank_one_and_at_most_the_full_one(self):
        model = nn.Sequential(nn.Linear(16, 24), nn.Linear(24, 24))
        lath.spectral_frobenius(model, 0.001, 0.0, keep_first=0, keep_last=0)
        assert (model[0].rank, model[1].rank) == (1, 1)
        model = nn.Sequential(nn.Linear(4, 64), nn.Linear(64, 64))
        report = lath.spectral_frobenius(model, 0.3, 0.0, keep_first=0, keep_last=0).report
        assert report["0"].rank is None
        assert "rank 4 is not cheaper" in report["0"].reason
        assert model[1].rank == 19

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ((0.0, 1e-4), ValueError, "scale is 0.0"),
            (("0.1", 1e-4), TypeError, "scale is '0.1'"),
            ((0.1, -1.0), ValueError, "coefficient is -1.0"),
        ],
    )
    def test_bad_arguments_leave_the_model(self, arguments, error, message):
        model = network()
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(error, match=message):
            lath.spectral_frobenius(model, *arguments)
        assert all(isinstance(m, (nn.Linear, nn.ReLU)) for m in model)
        torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


# ---- layer choice by time -----------------------------------------------------------------------------------------


class Clock:
    """Time that passes only in forward passes: a layer takes its multiply-adds, or more if the test says so."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(profile, "time", clock)

    def slow_down(kind, seconds):
        forward = kind.forward

        def timed(self, *args, **kwargs):
            clock.now += seconds(self)
            return forward(self, *args, **kwargs)

        monkeypatch.setattr(kind, "forward", timed)

    slow_down(nn.Linear, lambda m: m.in_features * m.out_features)
    slow_down(LowRankLinear, lambda m: m.rank * (m.in_features + m.out_features) * (5 if m.in_features == 16 else 1))
    return clock


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Sequential(nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU())
        self.two = nn.Sequential(nn.Linear(32, 16), nn.Linear(16, 16))
        self.head = nn.Linear(16, 16)

    def forward(self, x, scale=1.0):
        return self.head(self.two(self.one(x))) * scale


class TestProfile:
    def test_layers_for_themselves(self, clock):
        found = lath.profile_blocks(Blocks(), torch.randn(5, 32))
        assert [block.name for block in found.blocks] == ["one.0", "two.0", "two.1", "head"]
        assert found.blocks[0].dense_seconds == 32 * 32
        assert found.blocks[0].seconds == {0.25: 8 * 64}
        assert [round(block.speedup(0.25), 3) for block in found.blocks] == [2.0, 2.667, 0.4, 0.4]
        assert found.dense() == ["two.1", "head"]
        assert found.dense(2.1) == ["one.0", "two.1", "head"]
        assert "two.1" in str(found)
        assert "2.67" in str(found)

    def test_blocks_of_several_layers_and_ratios(self, clock):
        found = lath.profile_blocks(Blocks(), torch.randn(5, 32), ["two", "one"], (0.25, 0.125, 0.01), exclude="two.1")
        assert [block.layers for block in found.blocks] == [("two.0",), ("one.0",)]
        two = found.blocks[0]
        assert two.dense_seconds == 32 * 16 + 16 * 16
        assert two.seconds == {0.25: 4 * 48 + 256, 0.125: 2 * 48 + 256}
        assert two.speedup(0.01) == 1.0
        assert found.dense(1.75) == ["two.0"]
        assert found.dense(1.75, 0.125) == []
        assert found.dense(1.0, 0.01) == []
        with pytest.raises(ValueError, match=r"ratio is 0.5"):
            found.dense(ratio=0.5)

    def test_contenders_take_turns(self):
        order = []
        calls = {key: lambda key=key: order.append(key) for key in "ab"}
        assert set(profile._in_turns(calls, 3, lambda: None)) == {"a", "b"}
        assert "".join(order) == "ab" + "ab" + "ba" + "ab"

    def test_leaves_the_model_as_it_was(self):
        model = Blocks().train()
        model.one[1].eval()
        before = copy.deepcopy(model.state_dict())
        lath.profile_blocks(model, {"x": torch.randn(5, 32), "scale": 2.0}, repeats=1)
        torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
        assert model.training
        assert not model.one[1].training
        assert model.two[0].training
        assert all(p.grad is None for p in model.parameters())
        assert not any(m._forward_pre_hooks for m in model.modules())

    def test_goes_into_a_conversion(self, clock):
        model = Blocks()
        lath.convert(model, lath.LowRank(ratio=0.25), exclude=lath.profile_blocks(model, torch.randn(5, 32)).dense())
        assert isinstance(model.one[0], LowRankLinear)
        assert isinstance(model.two[0], LowRankLinear)
        assert type(model.two[1]) is type(model.head) is nn.Linear

    def test_real_time_attention_and_convolutions(self):
        """Nothing is asserted of the time itself but that there is one."""
        convolutions = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.ReLU())
        found = lath.profile_blocks(convolutions, torch.randn(2, 3, 9, 9), repeats=2)
        assert [block.name for block in found.blocks] == ["0", "2"]
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        several = lath.profile_blocks(nn.Sequential(layer), torch.randn(2, 4, 16), ["0"], repeats=2)
        assert several.blocks[0].layers == ("0.self_attn", "0.linear1", "0.linear2")
        for block in (*found.blocks, *several.blocks):
            assert block.dense_seconds > 0
            assert block.seconds[0.25] > 0

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"blocks": ["three"]}, "'three' is no module"),
            ({"blocks": ["one.1"]}, "'one.1' holds no layer"),
            ({"ratios": ()}, r"ratios are \(\)"),
            ({"ratios": (1.5,)}, "ratios are"),
            ({"conv": "tucker"}, "conv is 'tucker'"),
            ({"repeats": 0}, "repeats is 0"),
        ],
    )
    def test_refuses(self, options, message):
        with pytest.raises(ValueError, match=message):
            lath.profile_blocks(Blocks(), torch.randn(5, 32), **options)

    def test_a_block_that_is_not_called(self):
        model = Blocks()
        model.spare = nn.Linear(8, 8)
        with pytest.raises(ValueError, match="'spare' is not called"):
            lath.profile_blocks(model, torch.randn(5, 32))
