# SPDX-License-Identifier: Apache-2.0
"""nn.LSTM in convert, restore, dense_state_dict, report and the decay terms."""

from __future__ import annotations

import copy

import lath
import pytest
import torch
from lath.nn import LowRankLSTM
from lstm_cases import assert_close, packed
from operator_cases import random
from torch import nn
from torch.nn.utils import parametrizations


class CharacterModel(nn.Module):
    """Embedding 100 to 8, LSTM of two layers of 256, head of 100."""

    def __init__(self, hidden=256):
        super().__init__()
        self.embedding = nn.Embedding(100, 8)
        self.lstm = nn.LSTM(8, hidden, 2)
        self.head = nn.Linear(hidden, 100)

    def forward(self, x, hx=None):
        y, hx = self.lstm(self.embedding(x), hx)
        return self.head(y), hx


def model(hidden=16):
    torch.manual_seed(1)
    return CharacterModel(hidden)


TOKENS = torch.arange(64).reshape(16, 4)


# ---- conversion -----------------------------------------------------------------------------------------------------


def test_convert_train_and_restore():
    net = model()
    report = lath.convert(net, lath.LowRank(ratio=0.5))
    assert isinstance(net.lstm, LowRankLSTM)
    assert (net.lstm.ranks, net.lstm.input_ranks) == ((8, 8), (4, 8))
    assert report["lstm"].kind == "LowRankLSTM"
    optimizer = torch.optim.SGD(net.parameters(), 0.5)
    losses = []
    for _ in range(5):
        loss = nn.functional.cross_entropy(net(TOKENS)[0].flatten(0, 1), TOKENS.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    expected = net(TOKENS)[0]
    assert lath.restore(net) == ["lstm", "head"]
    assert type(net.lstm) is nn.LSTM
    assert_close(net(TOKENS)[0], expected, torch.float32)


@pytest.mark.parametrize(
    ("spec", "ranks", "input_ranks", "parameters"),
    [
        ({"ratio": 0.2}, (51, 51), (1, 51), 209_008),
        ({"rank": 51}, (51, 51), (0, 51), 216_168),
        ({"ratio": 0.2, "rule": "out"}, (204, 204), (0, 204), None),
        ({"rank": {"lstm": 25}}, (25, 25), (0, 25), None),
        ({"rank": 51, "tune": True}, (48, 48), (0, 48), None),
        ({"ratio": 0.1}, (25, 25), (0, 25), None),  # rank 0 of the 8 features: their weight stays dense
    ],
)
def test_ranks(spec, ranks, input_ranks, parameters):
    with torch.device("meta"):
        net = CharacterModel()
    lath.convert(net, lath.LowRank(init="fresh", **spec), include="lstm")
    assert (net.lstm.ranks, net.lstm.input_ranks) == (ranks, input_ranks)
    if parameters:
        assert sum(p.numel() for p in net.lstm.parameters()) + 800 + 7_240 == parameters


def test_energy_gives_each_layer_its_own_ranks():
    lstm = nn.LSTM(6, 8, 2, bidirectional=True)
    with torch.no_grad():  # rank 2 in one direction, 1 in the other
        for name, rank in (("weight_hh_l0", 2), ("weight_hh_l0_reverse", 1), ("weight_hh_l1", 3)):
            getattr(lstm, name).copy_(random(32, rank) @ random(rank, 8))
        lstm.weight_hh_l1_reverse.copy_(lstm.weight_hh_l1)
    net = nn.ModuleList([lstm])
    x = random(4, 3, 6)
    expected = lstm(x)[0]
    lath.convert(net, lath.LowRank(energy=1 - 1e-9))
    assert net[0].ranks == (2, 3)
    assert net[0].input_ranks == (0, 0)  # full spectra
    assert_close(net[0](x)[0], expected, torch.float32)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: nn.LSTM(5, 8), "rank 7 is not cheaper: break-even is 6"),
        (lambda: type("Mine", (nn.LSTM,), {})(5, 8), "a subclass of nn.LSTM: Mine"),
        (lambda: parametrizations.weight_norm(nn.LSTM(5, 8), "weight_hh_l0"), "parametrized"),
        (lambda: nn.LSTM(5, 8, dtype=torch.float16), "its weight is torch.float16, torch.strided"),
    ],
    ids=["rank", "subclass", "parametrized", "float16"],
)
def test_layers_that_are_left(make, reason):
    net = nn.ModuleList([make()])
    before = net[0]
    report = lath.convert(net, lath.LowRank(rank=7))
    assert report["0"].reason == reason
    assert net[0] is before


def test_layers_that_are_left_for_what_is_around_them():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(5, 8)

        def forward(self, x):
            return self.lstm(x)[0] + self.lstm.weight_hh_l0.sum()

    assert lath.convert(Reader(), lath.LowRank(rank=2))["lstm"].reason == "Reader reads its weight directly"
    tied = nn.ModuleList([nn.LSTM(8, 8), nn.LSTM(8, 8)])
    tied[1].weight_hh_l0 = tied[0].weight_hh_l0
    assert "its weight_hh_l0 is tied" in lath.convert(tied, lath.LowRank(rank=2))["0"].reason
    named = model()
    report = lath.convert(named, lath.LowRank(rank={"head": 2}))
    assert report["lstm"].reason == "the spec gives no rank for it"
    assert lath.convert(named, lath.LowRank(rank=2), exclude="lstm")["lstm"].reason == "not selected"


def test_conversion_carries_everything_over():
    net = model().eval()
    net.lstm.note = "mine"
    net.lstm.weight_hh_l1.requires_grad_(False)
    calls = []
    net.lstm.register_forward_hook(lambda *_: calls.append(1))
    lath.convert(net, lath.LowRank(rank=3))
    net(TOKENS)
    assert calls == [1]
    assert net.lstm.note == "mine"
    assert not net.lstm.training
    assert not net.lstm.weight_hh_u_l1.requires_grad
    assert lath.convert(net, lath.LowRank(rank=3))["lstm"].reason == "already low-rank"
    lath.restore(net)
    assert net.lstm.note == "mine"
    assert not net.lstm.weight_hh_l1.requires_grad
    assert set(vars(net.lstm)) - {"note"} == set(vars(nn.LSTM(1, 1)))


def test_shared_module_is_converted_once():
    shared = nn.LSTM(8, 16)
    net = nn.ModuleList([shared, shared])
    lath.convert(net, lath.LowRank(rank=3))
    assert net[0] is net[1]
    assert isinstance(net[0], LowRankLSTM)


def test_a_model_that_is_itself_a_layer():
    with pytest.raises(ValueError, match=r"model is itself a LSTM.*LowRankLSTM\.from_dense\(model, rank\)"):
        lath.convert(nn.LSTM(5, 8), lath.LowRank(rank=2))
    with pytest.raises(ValueError, match=r"model is itself a LowRankLSTM.*model\.to_dense\(\)"):
        lath.restore(LowRankLSTM(5, 8, 2))


def test_error_leaves_the_model_as_it_was():
    net = model()
    with torch.no_grad():
        net.lstm.weight_hh_l1[0, 0] = torch.nan
    before = dict(net.named_modules())
    with pytest.raises(ValueError, match=r"layer 'lstm': weight_hh_l1: the weight contains NaN"):
        lath.convert(net, lath.LowRank(rank=2))
    assert dict(net.named_modules()) == before


def test_dense_state_dict():
    net = model()
    keys = list(net.state_dict())
    lath.convert(net, lath.LowRank(rank=3))
    state = lath.dense_state_dict(net)
    assert list(state) == keys
    other = copy.deepcopy(net)
    lath.restore(other)
    assert all(torch.equal(state[name], value) for name, value in other.state_dict().items())
    expected = net(TOKENS)[0]
    net.load_state_dict(state)
    assert_close(net(TOKENS)[0], expected, torch.float32)


# ---- report ---------------------------------------------------------------------------------------------------------


def test_published_multiply_adds():
    """52,494,336 of the dense model at 64 steps, 25,600 a step of them in the head."""
    net = CharacterModel()
    tokens = torch.zeros(64, 1, dtype=torch.int64)
    row = lath.report(net, tokens)["lstm"]
    assert (row.rows, row.macs, row.kernel) == (64, 64 * 794_624, "dense")
    assert sum(r.macs for r in lath.report(net, tokens)) == 52_494_336
    assert (row.in_features, row.out_features, row.break_even, row.rank) == (8, 256, 204, None)
    net.lstm = LowRankLSTM(8, 256, 204, 2, input_rank=204)
    row = lath.report(net, tokens)["lstm"]
    merging = 1024 * 204 * 8  # the input weight of the first layer, once per call
    assert (row.macs, row.dense_macs) == (64 * 791_552 + merging, 64 * 794_624)
    assert row.dense_parameters == sum(p.numel() for p in nn.LSTM(8, 256, 2).parameters())
    assert (row.rank, row.kernel) == (204, "fused")
    assert lath._recurrent.macs_of_a_row(net.lstm, factored=True) == 993_888


def test_multiply_adds_of_every_form():
    for options in (
        {},
        {"num_layers": 2, "bidirectional": True},
        {"proj_size": 3},
        {"bias": False, "batch_first": True},
    ):
        net = nn.ModuleList([nn.LSTM(6, 8, **options)])
        dense = lath.report(net)["0"]
        assert (
            dense.macs == dense.dense_macs == sum(p.numel() for name, p in net.named_parameters() if "weight" in name)
        )
        lath.convert(net, lath.LowRank(rank=2))
        row = lath.report(net)["0"]
        assert row.parameters == sum(p.numel() for p in net.parameters())
        assert row.dense_parameters == dense.parameters
        assert row.dense_macs == dense.macs
        if "proj_size" not in options:
            assert row.macs == sum(p.numel() for name, p in net.named_parameters() if "weight" in name)


def test_rows_of_every_kind_of_input():
    net = nn.ModuleList([LowRankLSTM(5, 8, 2)])
    for x, rows, shape in (
        (random(4, 3, 5), 12, (4, 3, 5)),
        (random(4, 5), 4, (4, 5)),
        (packed((4, 1, 3), dtype=torch.float32), 8, (8, 5)),
    ):
        row = lath.report(nn.Sequential(net[0]), (x,))["0"]
        assert (row.rows, row.input_shape) == (rows, shape)
        assert row.macs == rows * (2 * (5 + 32) + 2 * (8 + 32))
    assert lath.report(nn.Sequential(net[0].double()), random(4, 3, 5, dtype=torch.float64))["0"].kernel == "plain"
    merged = nn.Sequential(LowRankLSTM(5, 8, 8, input_rank=5))
    row = lath.report(merged, random(40, 3, 5))["0"]
    assert row.kernel == "merged"
    assert row.macs == 120 * 32 * 13 + 32 * (8 * 8 + 5 * 5)
    row = lath.report(merged, random(4, 3, 5))["0"]  # merging would cost more than so few rows save
    assert (row.kernel, row.macs) == ("fused", 12 * (8 * (8 + 32) + 5 * (5 + 32)))


def test_report_can_be_printed():
    net = model()
    lath.convert(net, lath.LowRank(rank=3))
    text = str(lath.report(net, TOKENS))
    assert "lstm" in text
    assert "LowRankLSTM" in text
    assert "fewer multiply-adds" in text


# ---- decay ----------------------------------------------------------------------------------------------------------


def test_decay_terms_cover_every_factored_weight():
    module = LowRankLSTM(5, 8, 2, 2, bidirectional=True, input_rank=(0, 2), dtype=torch.float64)
    products = [getattr(module, p.u) @ getattr(module, p.v) for p in module.pairs() if p.rank]
    assert len(products) == 6
    expected = sum(w.square().sum() for w in products)
    assert_close(lath.frobenius_decay(module), expected, torch.float64)
    weights = [p for name, p in module.named_parameters() if "_v_" in name or "_u_" in name]
    gradients = torch.autograd.grad(expected, weights)
    lath.FrobeniusDecay(module, 0.5, "reference").step()
    assert_close([w.grad for w in weights], [0.5 * g for g in gradients], torch.float64)
    assert module.weight_ih_l0.grad is None
    assert module.bias_ih_l0.grad is None
    assert lath.kronecker_decay(module) > lath.frobenius_decay(module)
    assert_close(lath.l2_decay(module), sum(w.square().sum() for w in weights), torch.float64)
