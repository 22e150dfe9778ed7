# SPDX-License-Identifier: Apache-2.0
"""WarmupThenFactor: dense training untouched, the switch, the optimizer's entries, resuming."""

from __future__ import annotations

import copy
import io
import itertools
import math

import lath
import pytest
import torch
from lath.nn import LowRankConv2d, LowRankConv2dNorm, LowRankLinear, LowRankLSTM, LowRankMultiheadAttention
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-3, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=1e-3, foreach=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.5, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "Adadelta": lambda p: torch.optim.Adadelta(p),
}


def mlp():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 4))


def cnn():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)
    )


def batches(*shape):
    generator = torch.Generator().manual_seed(7)
    while True:
        x = torch.randn(8, *(shape or (12,)), generator=generator)
        yield x, torch.randint(4, (8,), generator=generator)


def train(model, optimizer, data, steps=1):
    for x, target in itertools.islice(data, steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), target).backward()
        optimizer.step()


def entries(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def low_rank(**options):
    return lath.LowRank(**{"ratio": 0.25, "conv": "pointwise", **options})


# ---- the warm-up --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [low_rank(), lath.StableRank()])
def test_before_the_switch_training_is_that_of_the_dense_model(spec):
    """To the bit, random numbers included."""
    runs = []
    for watched in (False, True):
        model = nn.Sequential(mlp(), nn.Dropout(0.5))
        optimizer, data = OPTIMIZERS["SGD"](model.parameters()), batches()
        warmup = lath.WarmupThenFactor(model, optimizer, spec, lath.RankSwitch(50)) if watched else None
        torch.manual_seed(1)
        for _ in range(4):
            train(model, optimizer, data, 3)
            if watched:
                assert warmup.epoch() is False
        runs.append((model.state_dict(), optimizer.state_dict()["state"], torch.get_rng_state()))
    torch.testing.assert_close(runs[0], runs[1], rtol=0, atol=0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_with_every_optimizer(name):
    model, data = mlp(), batches()
    optimizer = OPTIMIZERS[name](model.parameters())
    warmup = lath.WarmupThenFactor(model, optimizer, low_rank(), 2, exclude="4")
    for epoch in range(5):
        train(model, optimizer, data, 4)
        assert warmup.epoch() is (epoch == 1)
        assert warmup.switched is (epoch >= 1)
    assert isinstance(model[0], LowRankLinear)
    assert type(model[4]) is nn.Linear
    trained = {id(p) for p in model.parameters()}
    assert {id(p) for p in entries(optimizer)} == trained
    assert len(entries(optimizer)) == len(trained)
    before = copy.deepcopy(model.state_dict())
    train(model, optimizer, data)
    assert all(not torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_factors_are_those_of_the_trained_weights():
    model, data = mlp(), batches()
    optimizer = OPTIMIZERS["Adam"](model.parameters())
    warmup = lath.WarmupThenFactor(model, optimizer, low_rank(), lath.AfterSteps(5), exclude="4")
    for _ in range(5):
        assert not warmup.switched
        train(model, optimizer, data)
        expected = copy.deepcopy(model)
        warmup.step()
    lath.convert(expected, low_rank(), exclude="4")
    assert warmup.switched
    assert warmup.epochs == 0
    torch.testing.assert_close(model.state_dict(), expected.state_dict(), rtol=0, atol=0)
    assert [row.rank for row in warmup.report] == [3, 6, None]


def test_the_first_step_is_that_of_a_new_optimizer():
    """State is dropped: moments, and step counts with them."""
    model, data = mlp(), batches()
    optimizer = OPTIMIZERS["Adam"](model.parameters())
    warmup = lath.WarmupThenFactor(model, optimizer, low_rank(), 1, exclude="4")
    train(model, optimizer, data, 20)
    warmup.epoch()
    assert not optimizer.state
    other = copy.deepcopy(model)
    new = OPTIMIZERS["Adam"](other.parameters())
    x, target = next(data)
    for net, opt in ((model, optimizer), (other, new)):
        train(net, opt, iter([(x, target)]))
    torch.testing.assert_close(model.state_dict(), other.state_dict(), rtol=0, atol=0)


def test_state_of_what_stays_may_be_kept():
    model, data = mlp(), batches()
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    warmup = lath.WarmupThenFactor(model, optimizer, low_rank(), 1, exclude="4", keep_state=True)
    train(model, optimizer, data, 3)
    kept = {p: optimizer.state[p]["momentum_buffer"].clone() for p in model[4].parameters()}
    warmup.epoch()
    assert set(optimizer.state) == set(kept)
    for parameter, momentum in kept.items():
        torch.testing.assert_close(optimizer.state[parameter]["momentum_buffer"], momentum, rtol=0, atol=0)


def test_zero_epochs_factor_at_once():
    model = mlp()
    warmup = lath.WarmupThenFactor(model, OPTIMIZERS["SGD"](model.parameters()), low_rank(), 0)
    assert warmup.switched
    assert isinstance(model[2], LowRankLinear)
    assert warmup.epoch() is False
    assert warmup.step() is False


def test_steps_may_count_epochs():
    model = mlp()
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    warmup = lath.WarmupThenFactor(model, optimizer, low_rank(), 2, steps_per_epoch=3)
    assert [warmup.step() for _ in range(8)] == [False] * 5 + [True, False, False]
    assert (warmup.epochs, warmup.steps) == (2, 8)
    with pytest.raises(RuntimeError, match="steps_per_epoch is 3"):
        warmup.epoch()


# ---- the optimizer's entries --------------------------------------------------------------------------------------


def test_same_group_and_same_position():
    model = mlp()
    groups = [
        {"params": [model[4].bias, model[0].weight], "lr": 0.1},
        {"params": [model[0].bias, model[2].weight, model[2].bias, model[4].weight], "lr": 0.2, "weight_decay": 0.3},
    ]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    kept = model[4].weight, model[4].bias
    lath.WarmupThenFactor(model, optimizer, low_rank(), 0, exclude="4")
    one, two = optimizer.param_groups
    for found, expected in (
        (one["params"], [kept[1], model[0].weight_v, model[0].weight_u]),
        (two["params"], [model[0].bias, model[2].weight_v, model[2].weight_u, model[2].bias, kept[0]]),
    ):
        assert list(map(id, found)) == list(map(id, expected))
    assert (one["lr"], two["lr"], two["weight_decay"]) == (0.1, 0.2, 0.3)


def test_what_the_optimizer_did_not_train_stays_out():
    model = mlp()
    model[0].bias.requires_grad_(False)
    optimizer = torch.optim.SGD([model[0].weight, model[2].weight], lr=0.1)
    lath.WarmupThenFactor(model, optimizer, low_rank(), 0)
    expected = [model[0].weight_v, model[0].weight_u, model[2].weight_v, model[2].weight_u]
    assert list(map(id, entries(optimizer))) == list(map(id, expected))
    assert not model[0].bias.requires_grad


def test_an_inner_bias_goes_with_the_weight():
    model = mlp()
    groups = [{"params": [model[i].weight for i in (0, 2, 4)]}, {"params": [model[i].bias for i in (0, 2, 4)]}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    lath.WarmupThenFactor(model, optimizer, low_rank(inner_bias=True), 0, exclude="4")
    weights, biases = ({id(p) for p in group["params"]} for group in optimizer.param_groups)
    assert {id(model[0].inner_bias), id(model[2].inner_bias)} <= weights
    assert biases == {id(model[i].bias) for i in (0, 2, 4)}


def test_names_of_parameters_follow():
    model = mlp()
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1, weight_decay=0.1)
    lath.WarmupThenFactor(model, optimizer, low_rank(), 0, exclude="0", frobenius_decay=0.1)
    parameters = dict(model.named_parameters())
    for group in optimizer.param_groups:
        assert [id(parameters[name]) for name in group["param_names"]] == list(map(id, group["params"]))
    assert optimizer.param_groups[0]["param_names"] == ["0.weight", "0.bias", "2.bias", "4.bias"]
    assert optimizer.param_groups[1]["param_names"] == ["2.weight_v", "2.weight_u", "4.weight_v", "4.weight_u"]


class Several(nn.Module):
    def __init__(self):
        super().__init__()
        self.packed = nn.MultiheadAttention(16, 2, batch_first=True)
        self.separate = nn.MultiheadAttention(16, 2, kdim=12, vdim=16, add_bias_kv=True, batch_first=True)
        self.lstm = nn.LSTM(16, 16, num_layers=2, bidirectional=True, batch_first=True)
        self.conv = nn.Conv2d(1, 8, 3, bias=False)
        self.linear = nn.Linear(16, 16, bias=False)

    def forward(self, x):
        y = self.packed(x, x, x)[0]
        y = self.separate(y, y[..., :12], y)[0]
        y = self.linear(self.lstm(y)[0][..., :16])
        return y.sum() + self.conv(y.unsqueeze(1)).sum()


@pytest.mark.parametrize("inner_bias", [False, True])
def test_every_kind_of_layer(inner_bias):
    """Each new parameter is in the optimizer once, with weights where the weights were and biases where they were."""
    model = Several()
    weights = [p for name, p in model.named_parameters() if "bias" not in name]
    biases = [p for name, p in model.named_parameters() if "bias" in name]
    optimizer = torch.optim.SGD([{"params": weights}, {"params": biases}], lr=0.01)
    warmup = lath.WarmupThenFactor(
        model,
        optimizer,
        low_rank(inner_bias=inner_bias),
        1,
        norms=not inner_bias,
        exclude="conv" if inner_bias else None,
    )
    optimizer.zero_grad()
    model(torch.randn(2, 5, 16)).backward()
    optimizer.step()
    assert warmup.epoch()
    kinds = {type(module) for module in model.children()}
    assert kinds >= {LowRankMultiheadAttention, LowRankLSTM, LowRankLinear}
    assert (LowRankConv2dNorm in kinds) is not inner_bias
    found = [{id(p) for p in group["params"]} for group in optimizer.param_groups]
    assert len(entries(optimizer)) == len(list(model.parameters())) == len(found[0] | found[1])
    for name, parameter in model.named_parameters():
        # An inner bias goes with the weight, and so does a norm where the layer has no bias.
        is_bias = "bias" in name and "inner_bias" not in name and not name.startswith("conv.norm")
        assert (id(parameter) in found[1]) is is_bias, name
    model(torch.randn(2, 5, 16)).backward()
    optimizer.step()


# ---- norms and Frobenius decay ------------------------------------------------------------------------------------


def test_norms_between_the_factors_of_convolutions():
    model, data = cnn(), batches(3, 8, 8)
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    warmup = lath.pufferfish(model, optimizer, epochs=1, keep_first=0, keep_last=1)
    train(model, optimizer, data, 2)
    warmup.epoch()
    assert [type(model[i]) for i in (0, 2, 5)] == [LowRankConv2dNorm, LowRankConv2dNorm, nn.Linear]
    assert {id(p) for p in entries(optimizer)} == {id(p) for p in model.parameters()}
    before = model[2].norm.weight.detach().clone()
    train(model, optimizer, data, 2)
    assert not torch.equal(model[2].norm.weight, before)


def test_norms_only_where_it_has_factored():
    model = cnn()
    lath.convert(model, low_rank(), include="2")
    lath.WarmupThenFactor(model, OPTIMIZERS["SGD"](model.parameters()), low_rank(), 0, norms=True, include="0")
    assert [type(model[i]) for i in (0, 2)] == [LowRankConv2dNorm, LowRankConv2d]


class TestFrobeniusDecay:
    def test_takes_the_place_of_weight_decay(self):
        """Against gradients by hand; the dense layer and the biases keep their weight decay."""
        model, data = mlp(), batches()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.02)
        lath.WarmupThenFactor(model, optimizer, low_rank(), 0, exclude="4", frobenius_decay=0.3)
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0.02, 0.0]
        other = copy.deepcopy(model)
        x, target = next(data)
        nn.functional.cross_entropy(other(x), target).backward()
        expected = {}
        with torch.no_grad():
            for name, p in other.named_parameters():
                layer = other[int(name[0])]
                if name.endswith("weight_v"):
                    extra = 0.3 * layer.weight_u.mT @ layer.weight_u @ layer.weight_v
                elif name.endswith("weight_u"):
                    extra = 0.3 * layer.weight_u @ (layer.weight_v @ layer.weight_v.mT)
                else:
                    extra = 0.02 * p
                expected[name] = p - 0.1 * (p.grad + extra)
        train(model, optimizer, iter([(x, target)]))
        torch.testing.assert_close(dict(model.named_parameters()), expected)

    def test_no_new_group_without_weight_decay(self):
        """So that a scheduler goes on."""
        model, data = mlp(), batches()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        warmup = lath.WarmupThenFactor(model, optimizer, low_rank(), 1, frobenius_decay=0.3)
        for _ in range(2):
            train(model, optimizer, data)
            scheduler.step()
            warmup.epoch()
        assert len(optimizer.param_groups) == 1
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.025)
        norm = model[2].to_dense().weight.norm().item()
        warmup.frobenius_decay = 2.0
        train(model, optimizer, data, 20)
        assert model[2].to_dense().weight.norm().item() < 0.6 * norm

    def test_gradients_that_a_scaler_has_scaled(self):
        """A fused optimizer divides by the scale, of the decay too."""
        model, runs = mlp(), []
        for scaled in (False, True):
            net = copy.deepcopy(model)
            optimizer = torch.optim.SGD(net.parameters(), lr=0.1, fused=True)
            lath.WarmupThenFactor(net, optimizer, low_rank(), 0, frobenius_decay=0.3)
            x, target = next(batches())
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x), target)
            if scaled:
                scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
            else:
                loss.backward()
                optimizer.step()
            runs.append(net.state_dict())
        torch.testing.assert_close(*runs)
        assert not torch.equal(runs[0]["0.bias"], model[0].bias)


# ---- learning rates -----------------------------------------------------------------------------------------------


def test_factor_of_the_learning_rate_and_a_scheduler_made_anew():
    model, data = mlp(), batches()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.4)
    schedulers = [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0)]

    def on_switch(warmup):
        assert warmup.switched
        assert warmup.optimizer is optimizer
        schedulers[0] = torch.optim.lr_scheduler.LinearLR(optimizer, 0.5, 1.0, 2)

    warmup = lath.WarmupThenFactor(model, optimizer, low_rank(), 2, lr_factor=0.25, on_switch=on_switch)
    rates = []
    for _ in range(5):
        rates.append(optimizer.param_groups[0]["lr"])
        train(model, optimizer, data)
        schedulers[0].step()
        warmup.epoch()
    assert rates == pytest.approx([0.4, 0.4, 0.05, 0.075, 0.1])


def test_a_scheduler_made_at_the_switch_starts_from_the_new_rate():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.4)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0)
    lath.WarmupThenFactor(model, optimizer, low_rank(), 0, lr_factor=0.25)
    assert optimizer.param_groups[0]["initial_lr"] == pytest.approx(0.1)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)


# ---- Cuttlefish ---------------------------------------------------------------------------------------------------


class TestCuttlefish:
    def make(self, **options):
        model = mlp()
        optimizer = OPTIMIZERS["SGD"](model.parameters())
        rule = lath.RankSwitch(window=3, last=2, threshold=0.4, relaxation=())
        return model, lath.WarmupThenFactor(model, optimizer, lath.StableRank(), rule, exclude="4", **options)

    def test_switches_at_the_epoch_after_all_have_settled(self):
        model, warmup = self.make()
        ranks = {"0": [], "2": []}
        switched = None
        for epoch in range(1, 20):
            for name in ranks:
                rank = max(3, 11 - 2 * epoch) if name == "0" else 6
                u, _, vh = torch.linalg.svd(model[int(name)].weight.detach(), full_matrices=False)
                values = torch.zeros(u.shape[1])
                values[:rank], values[rank] = 1.0, 0.5  # a stable rank of rank + 1/4
                model[int(name)].weight.data.copy_(u * values @ vh)
                ranks[name].append(rank)
            if warmup.epoch():
                switched = epoch
                break
            assert warmup.step() is False  # the epoch goes on
        history = warmup.detector.history
        assert history["0"][1:6] == [9, 7, 5, 3, 3]
        assert history["2"][1:6] == [6, 6, 6, 6, 6]
        settled = warmup.detector.settled
        rule = warmup.switch
        for name, epoch in settled.items():
            assert rule.slope(history[name][: epoch + 1]) <= 0.4
            assert epoch == 3 or rule.slope(history[name][:epoch]) > 0.4
        assert settled["2"] < settled["0"]
        assert switched == settled["0"] + 1
        assert len(history["0"]) == switched  # epochs 0 to settled: the switch itself is not observed

    def test_ranks_at_the_switch(self):
        model, warmup = self.make()
        start = {name: max(1, int(rank)) for name, rank in lath.stable_ranks(model, exclude="4").items()}
        data = batches()
        while not warmup.switched:
            train(model, warmup.optimizer, data, 2)
            now = {name: max(1, int(rank)) for name, rank in lath.stable_ranks(model, exclude="4").items()}
            expected = warmup.ranks()
            warmup.epoch()
        assert expected == {
            name: min(full, math.ceil(full * now[name] / start[name] - 1e-9)) for name, full in (("0", 12), ("2", 24))
        }
        for row, name in zip(warmup.report, ("0", "2"), strict=False):
            limit = {"0": 7, "2": 11}[name]
            if expected[name] <= limit:
                assert row.rank == expected[name]
            else:
                assert f"rank {expected[name]} is not cheaper" in row.reason
        assert warmup.ranks() == {}

    def test_low_ranks_are_found(self):
        """A weight whose directions die out during the warm-up gets a low rank."""
        model, warmup = self.make()
        for _ in range(6):
            with torch.no_grad():
                u, s, vh = torch.linalg.svd(model[2].weight, full_matrices=False)
                s[2:] *= 0.3
                model[2].weight.copy_(u * s @ vh)
            if warmup.epoch():
                break
        assert warmup.switched
        assert isinstance(model[2], LowRankLinear)
        assert model[2].rank < 11
        assert type(model[0]) is nn.Linear  # its scaled stable rank is the full one

    def test_published_settings(self):
        model = cnn()
        for setting, (switch, floor, factor) in {
            "cifar": (lath.RankSwitch(), None, 1.0),
            "imagenet": (lath.RankSwitch(5, 5, 0.33, ((3, 5.0), (6, 2.5))), 5, 1.0),
            "transformer": (lath.RankSwitch(5, 5, 0.411, ((4, 5.0), (9, 2.5))), 2, 1 / 3),
        }.items():
            warmup = lath.cuttlefish(model, OPTIMIZERS["SGD"](model.parameters()), setting)
            assert warmup.switch == switch
            assert warmup.spec == lath.StableRank("scaled", floor, skip_first=1, skip_last=1)
            assert warmup.lr_factor == factor
            assert not warmup.norms
            assert list(warmup.detector.history) == ["2"]
        glue = lath.cuttlefish(model, OPTIMIZERS["SGD"](model.parameters()), "glue", lr_factor=0.5)
        assert glue.switch == lath.AfterEpochs(1)
        assert glue.spec == low_rank(ratio=0.45, skip_first=1, skip_last=1)
        assert (glue.lr_factor, glue.detector) == (0.5, None)
        with pytest.raises(ValueError, match="setting is 'mnist'"):
            lath.cuttlefish(model, OPTIMIZERS["SGD"](model.parameters()), "mnist")


@pytest.mark.parametrize(("setting", "epochs"), [("cifar", 80), ("imagenet", 15), ("transformer", 10)])
def test_published_settings_of_pufferfish(setting, epochs):
    model = cnn()
    warmup = lath.pufferfish(model, OPTIMIZERS["SGD"](model.parameters()), setting)
    assert warmup.switch == lath.AfterEpochs(epochs)
    assert warmup.spec == low_rank(skip_first=1, skip_last=1)
    assert warmup.norms
    for _ in range(epochs - 1):
        assert not warmup.epoch()
    assert warmup.epoch()
    assert [type(model[i]) for i in (0, 2, 5)] == [nn.Conv2d, LowRankConv2dNorm, nn.Linear]
    assert model[2].rank == 2


def test_pufferfish_keeps_the_first_layers_dense():
    model = nn.Sequential(*(nn.Linear(16, 16) for _ in range(6)))
    warmup = lath.pufferfish(model, OPTIMIZERS["SGD"](model.parameters()), epochs=0, keep_first=3)
    assert [row.rank for row in warmup.report] == [None, None, None, 4, 4, None]


# ---- resuming -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [2, 5])
@pytest.mark.parametrize(
    ("spec", "options"),
    [
        (low_rank(), {"norms": True}),
        (low_rank(energy=0.6, ratio=None), {"frobenius_decay": 0.01}),
        (lath.StableRank("vanilla"), {}),
    ],
)
def test_resumed_training_is_the_same(spec, options, stop):
    """To the bit, from before the switch and from after it."""

    def start(constant=None):
        model = cnn()
        if constant is not None:
            for p in model.parameters():
                nn.init.constant_(p, constant)
        optimizer = OPTIMIZERS["Adam"](model.parameters())
        rule = lath.RankSwitch(window=2, last=2, threshold=50.0)
        switch = rule if isinstance(spec, lath.StableRank) else 3
        return model, optimizer, lath.WarmupThenFactor(model, optimizer, spec, switch, exclude="0", **options)

    data = [list(itertools.islice(batches(3, 8, 8), 8 * i, 8 * i + 4)) for i in range(8)]

    def go_on(model, optimizer, warmup, epochs):
        for epoch in epochs:
            train(model, optimizer, iter(data[epoch]), 4)
            warmup.epoch()

    one = start()
    go_on(*one, range(stop))
    saved = copy.deepcopy([part.state_dict() for part in one])
    assert saved[2]["switched"] is (stop == 5)
    go_on(*one, range(stop, 8))
    other = start(constant=0.1)  # whose weights have other ranks than those of the checkpoint
    other[2].load_state_dict(saved[2])
    other[0].load_state_dict(saved[0])
    other[1].load_state_dict(saved[1])
    go_on(*other, range(stop, 8))
    assert one[2].switched
    torch.testing.assert_close(one[0].state_dict(), other[0].state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(one[1].state_dict()["state"], other[1].state_dict()["state"], rtol=0, atol=0)
    assert {**one[2].state_dict(), "spec": 0} == {**other[2].state_dict(), "spec": 0}


def test_a_state_is_plain_and_a_dense_one_does_not_go_into_a_factored_model():
    model = mlp()
    warmup = lath.WarmupThenFactor(model, OPTIMIZERS["SGD"](model.parameters()), lath.StableRank(), 1)
    state = warmup.state_dict()
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    assert torch.load(buffer, weights_only=True) == state
    warmup.epoch()
    with pytest.raises(RuntimeError, match="this one is factored already"):
        warmup.load_state_dict(state)


# ---- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": 3}, TypeError, "model is int"),
        ({"model": DataParallel(mlp())}, TypeError, "wrapped in DataParallel"),
        ({"optimizer": "SGD"}, TypeError, "optimizer is str"),
        ({"spec": 0.25}, TypeError, "spec is float"),
        ({"switch": 2.0}, TypeError, "switch is float"),
        ({"switch": -1}, ValueError, "epochs is -1"),
        ({"switch": True}, TypeError, "epochs is True"),
        ({"spec": low_rank(ratio=0.01)}, ValueError, "layer '0' .*gives rank 0"),
        ({"include": "7"}, ValueError, "include matches no layer"),
        ({"exclude": "*"}, ValueError, "no layer to factor"),
        ({"optimizer": torch.optim.SGD([nn.Parameter(torch.ones(3))], lr=0.1)}, ValueError, "holds no parameter"),
        ({"norms": True, "frobenius_decay": 0.1}, ValueError, "norms and frobenius_decay"),
        ({"norms": True, "spec": low_rank(inner_bias=True)}, ValueError, "norms and a spec with inner_bias"),
        ({"frobenius_decay": -1.0}, ValueError, "frobenius_decay is -1.0"),
        ({"lr_factor": 0.0}, ValueError, "lr_factor is 0.0"),
        ({"steps_per_epoch": 0}, ValueError, "steps_per_epoch is 0"),
        ({"steps_per_epoch": 1.5}, TypeError, "steps_per_epoch is 1.5"),
    ],
)
def test_refused_before_the_warm_up(change, error, message):
    model = mlp()
    before = copy.deepcopy(model.state_dict())
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    arguments = {"model": model, "optimizer": optimizer, "spec": low_rank(), "switch": 1, **change}
    with pytest.raises(error, match=message):
        lath.WarmupThenFactor(**arguments)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert len(entries(optimizer)) == 6


def test_weights_that_are_not_finite_leave_everything_as_it_was():
    for spec in (low_rank(), lath.StableRank()):
        model = mlp()
        optimizer = OPTIMIZERS["SGD"](model.parameters())
        warmup = lath.WarmupThenFactor(model, optimizer, spec, 1)
        old = entries(optimizer)
        model[2].weight.data[1, 1] = math.nan
        with pytest.raises(ValueError, match=r"layer '2'.*NaN"):
            warmup.epoch()
        assert not warmup.switched
        assert list(map(id, entries(optimizer))) == list(map(id, old)) == list(map(id, model.parameters()))


def test_a_model_that_is_factored_already():
    model = mlp()
    lath.convert(model, low_rank())
    with pytest.raises(ValueError, match="already low-rank"):
        lath.WarmupThenFactor(model, OPTIMIZERS["SGD"](model.parameters()), low_rank(), 1)


def test_a_convolution_without_norms_is_a_plain_low_rank_one():
    model = cnn()
    lath.WarmupThenFactor(model, OPTIMIZERS["SGD"](model.parameters()), low_rank(), 0, include="2")
    assert type(model[2]) is LowRankConv2d


# ---- data-parallel ------------------------------------------------------------------------------------------------


def _parallel_run(rank, address, results):
    """One of two processes, each with batches of its own; the module is wrapped anew at the switch."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    try:
        model = mlp()
        optimizer = OPTIMIZERS["SGD"](model.parameters())
        rule = lath.RankSwitch(window=2, last=2, threshold=50.0)
        warmup = lath.WarmupThenFactor(model, optimizer, lath.StableRank("vanilla"), rule, exclude="4")
        wrapped, data = DistributedDataParallel(model), batches()
        for epoch in range(6):
            for x, target in itertools.islice(data, 4):
                optimizer.zero_grad()
                nn.functional.cross_entropy(wrapped(x[rank::2]), target[rank::2]).backward()
                optimizer.step()
            if warmup.epoch():
                switched, wrapped = epoch, DistributedDataParallel(model)
        results.put((rank, switched, {name: t.tolist() for name, t in model.state_dict().items()}))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")
def test_two_processes_switch_together_and_stay_equal(tmp_path):
    context = torch.multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    address = f"file://{tmp_path / 'meeting'}"
    processes = [context.Process(target=_parallel_run, args=(rank, address, results)) for rank in range(2)]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(120)
            assert process.exitcode == 0
        (_, switched, state), (_, other_switched, other_state) = sorted(results.get() for _ in processes)
    finally:
        for process in processes:
            process.kill()
    assert switched == other_switched == 2
    assert "0.weight_v" in state
    assert state == other_state
