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
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


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
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


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


# ---- convolutions -------------------------------------------------------------------------------------------------


@pytest.fixture
def cnn():
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.Conv2d(32, 32, (3, 5), padding="same", groups=32),
        nn.Conv2d(32, 48, 3, groups=2, bias=False),
        nn.Flatten(),
        nn.Linear(48 * 4, 10),
    )
    lath.convert(model, lath.LowRank(rank=4, conv="pointwise"), include="1")
    lath.convert(model, lath.LowRank(rank=2), exclude="0")
    return model


def test_convolutions_without_inputs(cnn):
    report = lath.report(cnn)
    first, pointwise, depthwise, grouped, head = report
    assert (first.kind, first.in_features, first.out_features, first.rank) == ("Conv2d", 3, 16, None)
    assert (first.kernel_size, first.stride, first.groups, first.mode) == ((3, 3), (1, 1), 1, None)
    assert (pointwise.kind, pointwise.rank, pointwise.mode) == ("LowRankConv2d", 4, "pointwise")
    assert (pointwise.stride, grouped.groups, grouped.mode) == ((2, 2), 2, "separable")
    assert (head.kernel_size, head.stride, head.groups, head.mode) == (None,) * 4
    assert pointwise.parameters == 4 * (16 * 9 + 32) + 32
    assert pointwise.dense_parameters == 16 * 32 * 9 + 32
    assert grouped.parameters == 2 * 2 * (16 * 3 + 24 * 3)
    assert grouped.dense_parameters == 2 * 16 * 24 * 9
    assert (pointwise.macs, pointwise.dense_macs) == (4 * (16 * 9 + 32), 16 * 32 * 9)
    assert (grouped.macs, grouped.dense_macs) == (grouped.parameters, grouped.dense_parameters)
    assert depthwise.reason == "depthwise: one input channel per group"
    assert {row.rows for row in report} == {row.kernel for row in report} == {None}
    assert str(report).endswith("multiply-adds are for one row or output pixel")


@pytest.mark.parametrize("mode", ["separable", "pointwise"])
@pytest.mark.parametrize("stride", [(1, 1), (2, 1), (1, 2)])
def test_break_even_of_a_convolution(mode, stride):
    """A separable pair computes all rows of the image before its second half skips some."""
    layer = nn.Conv2d(8, 12, (3, 5), stride=stride)
    pair = 8 * 5 * stride[0] + 12 * 3 if mode == "separable" else 8 * 3 * 5 + 12
    row = lath.convert(nn.Sequential(layer), lath.LowRank(rank=1, conv=mode))["0"]
    assert row.break_even * pair < 8 * 12 * 15 <= (row.break_even + 1) * pair
    assert row.macs == pair


def test_convolutions_with_inputs(cnn):
    report = lath.report(cnn, torch.randn(5, 3, 8, 8))
    first, pointwise, depthwise, grouped, _ = report
    assert [row.rows for row in report] == [5 * 64, 5 * 16, 5 * 16, 5 * 4, 5]
    assert [row.input_shape for row in report][1:] == [(5, 16, 8, 8), (5, 32, 4, 4), (5, 32, 4, 4), (5, 192)]
    assert [row.dense_macs for row in report] == [
        5 * 64 * 3 * 16 * 9, 5 * 16 * 16 * 32 * 9, 5 * 16 * 32 * 15, 5 * 4 * 16 * 48 * 9, 5 * 192 * 10,
    ]  # fmt: skip
    assert (first.macs, depthwise.macs) == (first.dense_macs, depthwise.dense_macs)
    assert pointwise.macs == 5 * 16 * 4 * (16 * 9 + 32)
    assert grouped.macs == 5 * 2 * 2 * 2 * (4 * 16 * 3 + 2 * 24 * 3)  # 4 rows in the first half, 2 in the second
    assert (first.kernel, first.why, depthwise.kernel) == ("dense", None, "dense")
    assert {pointwise.kernel, grouped.kernel} <= {"fused", "linear", "pair", "merged"}
    assert pointwise.why
    assert "linear layers" not in str(report)


def test_one_image_without_a_batch(cnn):
    batch = lath.report(cnn[:4], torch.randn(1, 3, 8, 8))
    image = lath.report(cnn[:4], torch.randn(3, 8, 8))
    assert [row.macs for row in batch] == [row.macs for row in image]
    assert image["1"].input_shape == (16, 8, 8)


@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
def test_padding_is_counted_as_it_is_done(padding_mode):
    """Other paddings than zeros come before the first half, which then has more rows."""
    layer = lath.nn.LowRankConv2d(4, 6, 3, 2, padding=1, padding_mode=padding_mode)
    row = lath.report(nn.Sequential(layer), torch.randn(1, 4, 8, 8))["0"]
    rows = 8 if padding_mode == "zeros" else 10
    assert row.macs == 2 * 3 * 8 * (4 * rows + 6 * 8)


def test_a_subclass_counts_what_comes_out():
    class Same(nn.Conv2d):
        def forward(self, x):
            return super().forward(nn.functional.pad(x, (0, 1, 0, 1)))

    row = lath.report(nn.Sequential(Same(3, 4, 3, stride=2)), torch.randn(2, 3, 8, 8))["0"]
    assert (row.rows, row.macs) == (2 * 16, 2 * 16 * 3 * 4 * 9)
    assert row.reason == "a subclass of nn.Conv2d: Same"


def test_kernel_of_float64_and_above_break_even():
    def kernel(layer, x):
        row = lath.report(nn.Sequential(layer), x)["0"]
        return row.kernel, row.why

    x = torch.randn(2, 8, 16, 16, dtype=torch.float64)
    kind, why = kernel(lath.nn.LowRankConv2d(8, 8, 3, 2, dtype=torch.float64), x)
    assert (kind, why) == ("pair", "two library convolutions are faster here")
    high = {"rank": 64, "padding": 1, "dtype": torch.float64}
    assert kernel(lath.nn.LowRankConv2d(8, 8, 3, **high), x)[0] == "merged"
    assert kernel(lath.nn.LowRankConv2d(8, 8, 3, inner_bias=True, **high), x)[0] == "pair"


def test_window_and_input_columns(cnn, model):
    text = str(lath.report(cnn, torch.randn(5, 3, 8, 8)))
    head, _, *lines, last = text.splitlines()
    assert head.split() == [
        "layer", "kind", "in", "out", "window", "rank", "even", "parameters", "dense", "input", "MACs", "dense", "KiB",
        "kernel", "note",
    ]  # fmt: skip
    windows = ["3x3", "3x3, 1x1 /2", "3x5 g32", "1x3, 3x1 g2", "-"]
    start = head.index("window")
    assert [line[start:].split("  ")[0] for line in lines] == windows
    assert "5x16x8x8" in lines[1]
    assert last.startswith("model: ")
    assert not {"window", "input"} & set(str(lath.report(model)).splitlines()[0].split())


def test_values_of_convolutions_as_json(cnn):
    layers = json.loads(json.dumps(lath.report(cnn, torch.randn(1, 3, 8, 8)).as_dict()))["layers"]
    assert layers[1]["kernel_size"] == [3, 3]
    assert layers[1]["mode"] == "pointwise"
