# SPDX-License-Identifier: Apache-2.0
"""report: counts per layer, from shapes alone and from a run of the model."""

from __future__ import annotations

import json

import lath
import pytest
import torch
from torch import nn


@pytest.fixture
def model():
    model = nn.Sequential(nn.Linear(64, 128), nn.Dropout(), nn.Linear(128, 128), nn.BatchNorm1d(128), nn.Linear(128, 3))
    lath.convert(model, lath.LowRank(rank=8), exclude="4")
    return model


def test_without_inputs(model):
    report = lath.report(model)
    row = report["0"]
    assert (row.kind, row.in_features, row.out_features, row.rank) == ("LowRankLinear", 64, 128, 8)
    assert (row.parameters, row.dense_parameters) == (8 * 192 + 128, 64 * 128 + 128)
    assert (row.bytes, row.dense_bytes) == (4 * row.parameters, 4 * row.dense_parameters)
    assert (row.macs, row.dense_macs) == (8 * 192, 64 * 128)
    assert (row.rows, row.input_shape, row.kernel) == (None, None, None)
    assert report["4"].rank is None
    assert report["4"].macs == report["4"].dense_macs == 128 * 3


def test_break_even_is_the_last_rank_that_saves(model):
    for row in lath.report(model):
        n, m = row.in_features, row.out_features
        assert row.break_even * (n + m) < n * m <= (row.break_even + 1) * (n + m)


def test_with_inputs(model):
    model.train()
    model[2].eval()
    statistics = model[3].running_mean.clone()
    report = lath.report(model, torch.randn(256, 64))
    row = report["0"]
    assert (row.rows, row.input_shape) == (256, (256, 64))
    assert (row.macs, row.dense_macs) == (256 * 8 * 192, 256 * 64 * 128)
    assert row.kernel == lath.ops.lowrank_linear_plan(256, 64, 8, 128).kernel
    assert report["4"].kernel == "dense"
    assert [m.training for m in model] == [True, True, False, True, True]
    assert torch.equal(model[3].running_mean, statistics)
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_calls_add_up_and_unused_layers_count_nothing():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.used = lath.nn.LowRankLinear(16, 16, 2)
            self.unused = nn.Linear(16, 16)

        def forward(self, x, *, times):
            for _ in range(times):
                x = self.used(x)
            return x

    report = lath.report(Loop(), {"x": torch.randn(2, 5, 16), "times": 3})
    assert report["used"].rows == 30
    assert report["used"].macs == 30 * 2 * 32
    assert (report["unused"].rows, report["unused"].macs, report["unused"].kernel) == (0, 0, None)


def test_training_flags_come_back_after_an_error(model):
    with pytest.raises(RuntimeError, match="65"):
        lath.report(model.train(), (torch.randn(4, 65),))
    assert all(m.training for m in model.modules())
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_table_and_values(model):
    report = lath.report(model, torch.randn(4, 64))
    text = str(report)
    assert all(row.name in text and row.kind in text for row in report)
    assert "model: 4,483 parameters" in text
    values = json.loads(json.dumps(report.as_dict()))
    assert [layer["name"] for layer in values["layers"]] == ["0", "2", "4"]
    assert values["parameters"] == sum(p.numel() for p in model.parameters()) == 4483
    assert len(report) == 3
    with pytest.raises(KeyError):
        report["7"]


def test_low_rank_layer_at_a_high_rank_costs_no_more_than_dense():
    layer = lath.nn.LowRankLinear(64, 64, 64)
    row = lath.report(nn.Sequential(layer), torch.randn(100000, 64))["0"]
    assert row.macs <= row.dense_macs + 64**3
    assert row.kernel == "merged"


def test_wrong_model():
    with pytest.raises(TypeError, match="model is int"):
        lath.report(3)
