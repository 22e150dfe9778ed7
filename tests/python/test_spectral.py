# SPDX-License-Identifier: Apache-2.0
"""Spectral initialization, singular values of whole models, ranks for a budget."""

from __future__ import annotations

import math

import lath
import pytest
import torch
from lath.nn import LowRankConv2d, LowRankLinear, LowRankLSTM, LowRankMultiheadAttention
from torch import nn

F64 = torch.float64


def network(dtype=F64):
    return nn.Sequential(
        nn.Conv2d(4, 6, 3, groups=2, dtype=dtype), nn.ReLU(), nn.Flatten(), nn.Linear(24, 20, dtype=dtype)
    )


def thin(rank=2, conv="separable"):
    model = network()
    lath.convert(model, lath.LowRank(rank=rank, conv=conv, init="fresh"))
    return model


class TestSpectralInit:
    def test_is_the_truncated_svd_of_what_init_draws(self):
        """Eckart and Young: the error is what the left out singular values hold."""
        model, drawn = thin(), []

        def init(weight):
            nn.init.normal_(weight)
            drawn.append(weight.clone())

        assert lath.spectral_init(model, init) == ["0.weight", "3.weight"]
        assert [w.shape for w in drawn] == [(6, 2, 3, 3), (20, 24)]
        values = torch.linalg.svdvals(drawn[1])
        error = (model[3].to_dense().weight - drawn[1]).norm()
        torch.testing.assert_close(error, values[2:].square().sum().sqrt())
        dense = nn.Conv2d(4, 6, 3, groups=2, dtype=F64)
        dense.weight.data.copy_(drawn[0])
        torch.testing.assert_close(model[0].weight_v, LowRankConv2d.from_dense(dense, 2).weight_v)
        torch.testing.assert_close(model[3].weight_u.mT @ model[3].weight_u, values[:2].diag())

    def test_starts_at_the_scale_of_the_dense_layer(self):
        """At full rank every entry is uniform in 1 / sqrt(fan_in)."""
        layer = LowRankLinear(300, 300, 300)
        lath.spectral_init(nn.Sequential(layer))
        weight, bound = layer.to_dense().weight, 1 / math.sqrt(300)
        assert weight.abs().max() <= bound * 1.001
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)

    def test_draws_the_same_as_reset_parameters(self):
        a, b = LowRankLinear(9, 7, 3, bias=False), LowRankLinear(9, 7, 3, bias=False)
        torch.manual_seed(5)
        a.reset_parameters("spectral")
        torch.manual_seed(5)
        lath.spectral_init(b)
        torch.testing.assert_close(a.weight_v, b.weight_v, rtol=0, atol=0)
        torch.testing.assert_close(a.weight_u, b.weight_u, rtol=0, atol=0)

    def test_biases_stay_and_inner_biases_become_zero(self):
        layer = LowRankLinear(9, 7, 3, inner_bias=True)
        bias = layer.bias.detach().clone()
        assert lath.spectral_init(layer) == ["weight"]
        assert torch.equal(layer.bias, bias)
        assert not layer.inner_bias.any()

    def test_several_products_in_one_pair(self):
        class Stack(nn.Module):
            __module__ = "lath.nn.stack"  # where the layers of lath are

        net, drawn = Stack(), []
        net.in_proj_weight_v = nn.Parameter(torch.empty(6, 7, dtype=F64))
        net.in_proj_weight_u = nn.Parameter(torch.empty(9, 2, dtype=F64))
        assert lath.spectral_init(net, lambda w: drawn.append(nn.init.normal_(w))) == ["in_proj_weight"]
        assert drawn[0].shape == (9, 7)
        for i, w in enumerate(drawn[0].split(3)):
            product = net.in_proj_weight_u[3 * i : 3 * i + 3] @ net.in_proj_weight_v[2 * i : 2 * i + 2]
            error = torch.linalg.svdvals(w)[2:].square().sum().sqrt()
            torch.testing.assert_close((product - w).norm().detach(), error)

    def test_an_lstm_and_attention(self):
        lstm = LowRankLSTM(5, 16, 3, num_layers=2, bidirectional=True, input_rank=(0, 4), dtype=F64)
        attention = LowRankMultiheadAttention(12, 2, 3, dtype=F64)
        dense = lstm.weight_ih_l0.detach().clone()
        drawn = {}

        def init(weight):
            nn.init.normal_(weight)
            drawn[len(drawn)] = weight.clone()

        names = lath.spectral_init(nn.ModuleDict({"lstm": lstm, "attention": attention}), init)
        assert len(names) == 2 * 3 + 2
        assert {"lstm.weight_hh_l1_reverse", "attention.in_proj_weight", "attention.out_proj.weight"} <= set(names)
        assert "lstm.weight_ih_l0" not in names
        assert torch.equal(lstm.weight_ih_l0, dense)
        weights = lstm.merged()
        for weight, name in zip(drawn.values(), names, strict=True):
            if name.startswith("lstm"):
                name = name.removeprefix("lstm.")
                rank = getattr(lstm, name.replace("h_l", "h_v_l")).shape[0]
                error = torch.linalg.svdvals(weight)[rank:].square().sum().sqrt()
                torch.testing.assert_close((weights[name].detach() - weight).norm(), error)
        full = drawn[names.index("attention.in_proj_weight")]
        products = attention.to_dense().in_proj_weight.detach()
        for product, weight in zip(products.chunk(3), full.chunk(3), strict=True):
            error = torch.linalg.svdvals(weight)[3:].square().sum().sqrt()
            torch.testing.assert_close((product - weight).norm(), error)

    def test_an_lstm_draws_in_the_bound_of_its_hidden_size(self):
        lstm = LowRankLSTM(300, 64, 64, input_rank=256)
        lath.spectral_init(lstm)
        weights = lstm.merged()
        assert {"weight_ih_l0", "weight_hh_l0"} <= weights.keys()
        for name in ("weight_ih_l0", "weight_hh_l0"):
            assert weights[name].abs().max() <= 1.001 / 8
            assert weights[name].std().item() == pytest.approx(1 / 8 / math.sqrt(3), rel=0.02)

    def test_a_model_without_low_rank_layers(self):
        model = network()
        before = model[3].weight.clone()
        assert lath.spectral_init(model) == []
        assert torch.equal(model[3].weight, before)

    def test_on_the_meta_device(self):
        with torch.device("meta"):
            model = nn.Sequential(LowRankLinear(9, 7, 3))
        assert lath.spectral_init(model) == ["0.weight"]


class TestSingularValues:
    @pytest.mark.parametrize("conv", ["separable", "pointwise"])
    def test_of_low_rank_layers_are_those_of_the_dense_ones(self, conv):
        model = thin(2, conv)
        low = lath.singular_values(model)
        lath.restore(model)
        dense = lath.singular_values(model, conv)
        assert low.keys() == dense.keys() == {"0.weight", "3.weight"}
        assert low["0.weight"].shape == (2, 2)
        for name, values in low.items():
            torch.testing.assert_close(values, dense[name][..., :2])
            assert dense[name][..., 2:].abs().max() < 1e-12

    def test_a_rank_above_the_sides(self):
        layer = LowRankLinear(4, 5, 9, dtype=F64)
        values = lath.singular_values(nn.Sequential(layer))["0.weight"]
        torch.testing.assert_close(values, torch.linalg.svdvals(layer.to_dense().weight).detach())

    def test_recurrent_layers(self):
        lstm = nn.LSTM(3, 4)
        assert {n: len(v) for n, v in lath.singular_values(lstm).items()} == {"weight_ih_l0": 3, "weight_hh_l0": 4}

    def test_low_rank_lstm_and_attention(self):
        lstm = LowRankLSTM(5, 16, 3, num_layers=2, input_rank=(0, 4), dtype=F64)
        dense = lath.singular_values(lstm.to_dense())
        for name, values in lath.singular_values(lstm).items():
            torch.testing.assert_close(values, dense.pop(name)[: len(values)])
        assert dense == {}
        attention = LowRankMultiheadAttention(12, 2, 3, dtype=F64)
        values = lath.singular_values(attention)
        assert values.keys() == {"in_proj_weight", "out_proj.weight"}
        for row, weight in zip(values["in_proj_weight"], attention.to_dense().in_proj_weight.chunk(3), strict=True):
            torch.testing.assert_close(row, torch.linalg.svdvals(weight)[:3].detach())

    @pytest.mark.parametrize("features", [None, 6])
    def test_attention_dense_and_low_rank(self, features):
        dense = nn.MultiheadAttention(8, 2, kdim=features, vdim=features, dtype=F64)
        expected = lath.singular_values(dense)
        full = lath.singular_values(LowRankMultiheadAttention.from_dense(dense, 8))
        assert full.keys() == expected.keys()
        for name, values in expected.items():
            torch.testing.assert_close(full[name][..., : values.shape[-1]], values)
        if features is None:
            assert expected["in_proj_weight"].shape == (3, 8)

    def test_unknown_form(self):
        with pytest.raises(ValueError, match="conv is 'round'"):
            lath.singular_values(network(), conv="round")


class TestRanksForBudget:
    @pytest.mark.parametrize("conv", ["separable", "pointwise"])
    @pytest.mark.parametrize("share", [0.2, 0.4, 0.8])
    def test_keeps_the_budget_and_could_not_keep_more(self, share, conv):
        model = nn.Sequential(nn.Conv2d(8, 12, 3), nn.Conv2d(12, 16, 3), nn.Linear(64, 48), nn.Linear(48, 32))
        dense = sum(m.weight.numel() for m in model)
        ranks = lath.ranks_for_budget(model, share, conv)
        report = lath.convert(model, lath.LowRank(rank=ranks, conv=conv))
        assert {row.name: row.rank for row in report if row.rank} == ranks
        used = sum(row.parameters - row.out_features for row in report)  # without the biases
        assert used <= share * dense
        assert used > share * dense - sum((row.parameters - row.out_features) // row.rank for row in report)

    def test_the_layer_whose_spectrum_falls_off_gets_the_smaller_rank(self):
        model = nn.Sequential(nn.Linear(40, 40, dtype=F64), nn.Linear(40, 40, dtype=F64))
        with torch.no_grad():
            u, _, vh = torch.linalg.svd(model[0].weight)
            model[0].weight.copy_(u @ torch.diag(0.5 ** torch.arange(40, dtype=F64)) @ vh)
        ranks = lath.ranks_for_budget(model, 0.5)
        assert ranks["0"] * 2 < ranks["1"]

    @pytest.mark.parametrize("features", [None, 24])
    def test_attention_is_one_layer_of_four_weights(self, features):
        attention = nn.MultiheadAttention(32, 4, kdim=features, vdim=features, bias=False)
        model = nn.ModuleDict({"attention": attention, "head": nn.Linear(32, 20, bias=False)})
        dense = sum(p.numel() for p in model.parameters())
        ranks = lath.ranks_for_budget(model, 0.4)
        assert ranks.keys() == {"attention", "head"}
        lath.convert(model, lath.LowRank(rank=ranks))
        assert model["attention"].rank == ranks["attention"]
        used = sum(p.numel() for p in model.parameters())
        assert 0.4 * dense - sum(p.numel() for p in model.parameters()) / min(ranks.values()) < used <= 0.4 * dense

    def test_selection_and_layers_that_stay(self):
        model = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40), nn.Conv2d(4, 4, 3, groups=4))
        assert lath.ranks_for_budget(model, 0.5, exclude="1").keys() == {"0"}
        assert lath.ranks_for_budget(model, 0.5, include=lambda name, m: name == "1").keys() == {"1"}
        assert lath.ranks_for_budget(model, 1.0) == {}  # at full energy no factors are cheaper

    def test_a_weight_of_zeros(self):
        model = nn.Sequential(nn.Linear(40, 40))
        nn.init.zeros_(model[0].weight)
        assert lath.ranks_for_budget(model, 1.0) == {"0": 1}

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"share": 0.01}, ValueError, "rank 1 everywhere takes 0.05"),
            ({"share": 0.0}, ValueError, "share is 0.0"),
            ({"share": 1.5}, ValueError, "share is 1.5"),
            ({"share": float("nan")}, ValueError, "share is nan"),
            ({"share": "half"}, TypeError, "share is 'half'"),
            ({"share": 0.5, "conv": "round"}, ValueError, "conv is 'round'"),
            ({"share": 0.5, "include": "nothing"}, ValueError, "include matches no layer"),
        ],
    )
    def test_refusals(self, options, error, message):
        with pytest.raises(error, match=message):
            lath.ranks_for_budget(nn.Sequential(nn.Linear(40, 40)), **options)
