# SPDX-License-Identifier: Apache-2.0
"""The controller of OIALR training: its schedule, its rules, exact trajectories, state, and bad input."""

from __future__ import annotations

import copy
import json
import math
import warnings

import lath
import pytest
import torch
from lath import basis
from oialr_training import F64, batches, idle, mlp, train, with_spectrum
from torch import nn, optim

pytestmark = pytest.mark.usefixtures("one_thread")

STEEP = [1.0, 0.9, 0.8, 0.05, 0.04, 0.03, 0.02, 0.01]


def sgd(net, lr=0.0, **options):
    return optim.SGD(net.parameters(), lr=lr, **options)


def controlled(net, optimizer=None, delay=1, frequency=1, **options):
    """Everything is converted, all layers are updated together, unless options say otherwise."""
    options = {"keep_last": False, "layer_share": 1.0, **options}
    return lath.OIALRController(net, optimizer or sgd(net), delay, frequency, **options)


def layers(net):
    return [m for m in net.modules() if hasattr(m, "cores")]


def cores(net):
    return [core for layer in layers(net) for core in layer.cores()]


# ---- the schedule ----------------------------------------------------------------------------------------------------


def test_warm_up_is_plain_training_to_the_bit():
    plain, net = mlp(6, 8, 8, 4, dtype=torch.float32), mlp(6, 8, 8, 4, dtype=torch.float32)
    data = list(batches(10, 16, 6, 4, torch.float32))
    expected = train(plain, optim.AdamW(plain.parameters()), data)
    optimizer = optim.AdamW(net.parameters())
    controller = controlled(net, optimizer, delay=10)
    losses = train(net, optimizer, data[:9], controller)
    assert losses == expected[:9]
    assert not controller.converted
    train(plain := mlp(6, 8, 8, 4, dtype=torch.float32), optim.AdamW(plain.parameters()), data[:9])
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), net.parameters(), strict=True))


def test_conversion_after_the_delay_and_updates_at_their_frequency(monkeypatch):
    net = mlp(8, 8, 8)
    controller = controlled(net, delay=5, frequency=3)
    updates = []
    real = controller.update
    monkeypatch.setattr(controller, "update", lambda: updates.append(controller.steps) or real())
    found = []
    for _ in range(15):
        controller.step()
        found.append(controller.converted)
    assert found == [False] * 4 + [True] * 11
    assert updates == [5, 8, 11, 14]


def test_conversion_and_an_update_without_cuts_leave_the_function():
    net = mlp(6, 8, 5, 3)
    x = torch.randn(4, 6, dtype=F64)
    expected = net(x)
    controller = controlled(net, cutoff=1e-9)
    assert idle(controller, 3) == [True, False, False]
    torch.testing.assert_close(net(x), expected)
    assert controller.ranks == {"0": 6, "2": 5, "4": 3}


def test_step_says_when_parameters_have_another_size():
    net = mlp(8, 8, 8)
    with_spectrum(net[0], [1.0] + [1e-4] * 7)
    controller = controlled(net, frequency=2)
    assert idle(controller, 9) == [True, False, True, False, True, False, False, False, False]
    assert controller.ranks["0"] == 1


def test_evaluation_does_not_count():
    net = mlp(8, 8, 8)
    controller = controlled(net, delay=3)
    net.eval()
    for _ in range(10):
        net(torch.randn(2, 8, dtype=F64))
    assert (controller.steps, controller.converted) == (0, False)


def test_without_warm_up():
    net = mlp(8, 8, 8)
    with_spectrum(net[0], STEEP)
    controller = controlled(net, delay=3, frequency=2, warmup=False)
    assert controller.converted
    assert controller.ranks["0"] == 8
    assert idle(controller, 3) == [False, False, True]
    assert controller.ranks["0"] == 4


def test_a_model_that_is_converted_already_is_taken_as_it_is():
    net = mlp(8, 8, 8)
    lath.convert(net, lath.OIALR(keep_last=False))
    before = [core.s for core in cores(net)]
    controller = controlled(net, sgd(net), warmup=False)
    assert all(a is b.s for a, b in zip(before, cores(net), strict=True))
    assert list(controller.ranks) == ["0", "2"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"keep_last": True}, ["0", "2"]), ({"keep_first": True}, ["2", "4"]), ({"include": "2"}, ["2"]),
     ({"exclude": ["0", "4"]}, ["2"]), ({"aspect": 1.5}, ["2"])],
)  # fmt: skip
def test_which_layers(options, expected):
    net = mlp(4, 8, 8, 5)
    controller = controlled(net, **options)
    idle(controller)
    assert list(controller.ranks) == expected


def test_fixed_rank():
    net = mlp(8, 8, 8)
    with_spectrum(net[0], STEEP)
    controller = controlled(net, fixed_rank=True, rank_ratio=0.75)
    idle(controller)
    before = [core.u for core in cores(net)]
    assert idle(controller, 3) == [False] * 3
    assert controller.ranks == {"0": 6, "2": 6}
    assert all(a is core.u for a, core in zip(before, cores(net), strict=True))


# ---- which ranks -----------------------------------------------------------------------------------------------------


def test_ranks_of_the_cutoff():
    net = mlp(8, 8, 8, 8)
    spectra = (
        STEEP,
        [1, 0.5, 0.4, 0.3, 0.2, 0.15, 0.12, 0.11],
        [1, 0.1001, 0.1001, 0.1001, 0.1001, 0.1001, 0.09, 0.09],
    )
    for layer, sigma in zip(net[::2], spectra, strict=True):
        with_spectrum(layer, sigma)
    controller = controlled(net)
    idle(controller)
    assert controller.ranks == {"0": 4, "2": 8, "4": 6}
    for core, sigma in zip(cores(net), spectra, strict=True):
        torch.testing.assert_close(core.s, torch.tensor(sigma[: core.rank], dtype=F64).diag())


def test_half_at_a_time_down_to_the_floor():
    net = mlp(50, 50)
    with_spectrum(net[0], [1.0] + [1e-4] * 49)
    controller = controlled(net)
    found = []
    for _ in range(8):
        controller.step()
        found.append(controller.ranks["0"])
    assert found == [25, 12, 6, 3, 1, 1, 1, 1]


def test_last_layers_first():
    net = mlp(*[8] * 13)
    for layer in net[::2]:
        with_spectrum(layer, STEEP)
    controller = controlled(net, layer_share=0.1)
    cut = []
    for _ in range(7):
        controller.step()
        names = [name for name, rank in controller.ranks.items() if rank < 8]
        assert names == list(controller.ranks)[12 - len(names) :]
        cut.append(len(names))
    assert cut == [2, 4, 6, 8, 10, 12, 12]


@pytest.mark.parametrize(("count", "expected"), [(12, [1, 2, 3, 4]), (3, [3, 3, 3, 3])])
def test_growth_over_layers_as_the_reference_has_it(count, expected):
    net = mlp(*[8] * (count + 1))
    for layer in net[::2]:
        with_spectrum(layer, STEEP)
    controller = controlled(net, layer_share=0.1, compat="growth")
    cut = []
    for _ in expected:
        controller.step()
        cut.append(sum(rank < 8 for rank in controller.ranks.values()))
    assert cut == expected


def test_skipped_updates():
    net = mlp(50, 50)
    with_spectrum(net[0], [1.0] + [1e-4] * 49)
    for compat, expected in (((), [25, 25, 25, 12, 12, 12, 6]), ("skips", [25, 25, 12, 12, 6, 6, 3])):
        controller = controlled(copied := copy.deepcopy(net), sgd(copied), skip_updates=2, compat=compat)
        found = []
        for _ in expected:
            controller.step()
            found.append(controller.ranks["0"])
        assert found == expected


def test_values_per_layer():
    net = mlp(*[8] * 5)
    for layer in net[::2]:
        with_spectrum(layer, [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.04, 0.03])
    controller = controlled(net, cutoff={"0": 0.01, "[24]": 0.85}, max_rank={"4": 3}, min_rank={"2": 7})
    idle(controller)
    assert controller.ranks == {"0": 8, "2": 7, "4": 3, "6": 6}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"energy": 0.94}, 5),
        ({"energy": {"0": 0.999999999}}, 8),
        ({"stable_rank": 3.0}, 6),
        ({"stable_rank": 0.1}, 4),  # half at a time
        ({"max_rank": 2}, 2),
        ({"cutoff": 0.45, "multiple": 4}, 8),
        ({"cutoff": 0.65, "multiple": 3}, 6),
    ],
)
def test_other_rules(options, expected):
    net = mlp(8, 8)
    with_spectrum(net[0], [v**0.5 for v in (1.0, 0.5, 0.3, 0.05, 0.05, 0.04, 0.03, 0.03)] if "energy" in options or
                  "stable_rank" in options else [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3])  # fmt: skip
    controller = controlled(net, **options)
    idle(controller)
    assert controller.ranks == {"0": expected}


def test_target_compression():
    net = mlp(64, 64, 64, 64)
    for layer, power in zip(net[::2], (1.0, 1.5, 2.0), strict=True):
        with_spectrum(layer, [(i + 1) ** -power for i in range(64)])
    controller = controlled(net, target=0.3)
    idle(controller, 4)
    found = list(controller.ranks.values())
    assert found == sorted(found, reverse=True)
    stored = sum(r * (128 + r) for r in found)
    assert 0.27 * 3 * 64 * 64 < stored <= 0.3 * 3 * 64 * 64
    numbers = controller.numbers()
    biases = 3 * 64
    assert numbers.stored == stored + biases
    assert numbers.dense_stored == 3 * 64 * 64 + biases
    assert numbers.trainable == sum(r * r for r in found) + biases
    assert numbers.trainable_share == numbers.trainable / numbers.dense_trainable
    assert numbers.stored_share < 0.32


def test_ranks_may_grow_and_directions_that_nothing_uses_go_again():
    net = mlp(8, 8)
    with_spectrum(net[0], [1.0] * 4)
    controller = controlled(net, rank_ratio=0.5, growth=2, max_rank=7)
    x = torch.randn(3, 8, dtype=F64)
    expected = net(x)
    found = []
    for _ in range(4):
        controller.step()
        torch.testing.assert_close(net(x), expected)
        assert basis.drift(cores(net)[0].u) < 1e-14
        found.append(controller.ranks["0"])
    assert found == [6, 4, 6, 4]
    idle(controller)
    core = cores(net)[0]
    with torch.no_grad():
        core.s.add_(torch.eye(core.rank, dtype=F64) * 0.5)
    idle(controller)
    assert controller.ranks == {"0": 7}


def test_new_directions_train():
    net = mlp(8, 8, 8)
    controller = controlled(
        net, optimizer := optim.Adam(net.parameters(), 0.01), 2, 20, rank_ratio=0.5, growth=1, cutoff=0.01
    )
    train(net, optimizer, batches(30, 32, 8, 8), controller)
    core = cores(net)[0]
    assert core.rank > 4
    assert (core.s.detach()[:, -1].abs() > 1e-4).any()


# ---- trajectories ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
        {"foreach": True, "momentum": 0.5},
    ],
    ids=str,
)
def test_sgd_goes_where_dense_sgd_goes(options):
    """Square weights at full rank, updates every seven steps: the rotation of all state is exact."""
    plain, net = mlp(6, 6, 6, 6), mlp(6, 6, 6, 6)
    data = list(batches(60, 16, 6, 6))
    expected = train(plain, sgd(plain, 0.1, **options), data)
    optimizer = sgd(net, 0.1, **options)
    controller = controlled(net, optimizer, 10, 7, cutoff=1e-12)
    losses = train(net, optimizer, data, controller)
    assert controller.ranks == {"0": 6, "2": 6, "4": 6}
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected), rtol=1e-10, atol=1e-12)
    for core, layer in zip(cores(net), plain[::2], strict=True):
        torch.testing.assert_close(core.dense(), layer.weight.detach(), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_zeros_train_as_what_is_cut(kind):
    results = []
    for shrink in (True, False):
        net = mlp(8, 8, 8, 8)
        for layer in net[::2]:
            with_spectrum(layer, STEEP)
        optimizer = sgd(net, 0.05, momentum=0.9) if kind == "sgd" else optim.AdamW(net.parameters(), 0.01, amsgrad=True)
        controller = controlled(net, optimizer, 5, 5, shrink=shrink, cutoff=0.2)
        losses = train(net, optimizer, batches(40, 16, 8, 8), controller)
        results.append((losses, controller.ranks))
        assert all(core.s.shape == (8, 8) for core in cores(net)) is not shrink
    assert results[0][1] == results[1][1]
    assert min(results[0][1].values()) < 8
    torch.testing.assert_close(torch.tensor(results[0][0]), torch.tensor(results[1][0]), rtol=1e-8, atol=1e-10)


def test_the_weight_does_not_move_in_an_update_and_its_bases_stay_orthonormal():
    net = mlp(10, 12, 9, 9)
    optimizer = optim.Adam(net.parameters(), 0.01)
    controller = controlled(net, optimizer, 2, 1000, cutoff=1e-12)
    train(net, optimizer, batches(12, 16, 10, 9), controller)
    before = [core.dense() for core in cores(net)]
    controller.update()
    for core, dense in zip(cores(net), before, strict=True):
        torch.testing.assert_close(core.dense(), dense)
        assert max(basis.drift(core.u), basis.drift(core.vh)) < 1e-13
        diagonal = core.s.detach().diagonal()
        assert torch.equal(core.s.detach(), diagonal.diag())
        assert (diagonal.diff() <= 0).all()


def test_bases_that_have_drifted_are_made_orthonormal_at_an_update():
    net = mlp(10, 12, 9)
    controller = controlled(net, cutoff=1e-12)
    idle(controller)
    with torch.no_grad():
        for core in cores(net):
            core.u.add_(1e-3 * torch.randn_like(core.u))
    before = [core.dense() for core in cores(net)]
    controller.update()
    for core, dense in zip(cores(net), before, strict=True):
        torch.testing.assert_close(core.dense(), dense)
        assert basis.drift(core.u) < 1e-13


def test_every_hundredth_update_makes_them_orthonormal_anyway(monkeypatch):
    net = mlp(4, 4)
    mended = []
    real = basis.orthonormal
    controller = controlled(net, cutoff=1e-12)
    monkeypatch.setattr(basis, "orthonormal", lambda *factors: mended.append(controller.steps) or real(*factors))
    idle(controller, 210)
    assert mended == [101, 202]


# ---- stability and blur ----------------------------------------------------------------------------------------------


def test_a_basis_that_has_hardly_turned_is_left():
    net = mlp(8, 8, 8)
    controller = controlled(net, cutoff=1e-12, stability=0.99)
    idle(controller)
    first, second = cores(net)
    with torch.no_grad():
        first.s.add_(0.3 * torch.randn_like(first.s))
        second.s.mul_(2.0)
    before = [t.clone() for t in (first.u, second.u, second.s)]
    u, _, vh = torch.linalg.svd(first.dense(), full_matrices=False)
    expected = basis.stability(first.u, first.vh, u, vh).item()
    controller.update()
    assert controller.stabilities == pytest.approx({"0": expected, "2": 1.0})
    assert expected < 0.99
    assert not torch.equal(first.u, before[0])
    assert torch.equal(second.u, before[1])
    assert torch.equal(second.s, before[2])


def test_the_update_at_conversion_truncates_whatever_the_stability():
    net = mlp(8, 8)
    with_spectrum(net[0], STEEP)
    controller = controlled(net, stability=0.5)
    idle(controller, 3)
    assert controller.ranks == {"0": 4}
    assert controller.stabilities == pytest.approx({"0": 1.0})


def test_turning_adds_up_until_the_basis_follows():
    net = mlp(8, 8)
    controller = controlled(net, cutoff=1e-12, stability=0.98)
    idle(controller)
    core = cores(net)[0]
    generator, bases, found = torch.randn_like(core.s), core.u.clone(), []
    for _ in range(60):
        with torch.no_grad():
            core.s.add_(0.01 * generator)
        controller.update()
        found.append(controller.stabilities["0"])
        if not torch.equal(core.u, bases):
            break
    assert found == sorted(found, reverse=True)
    assert found[-1] < 0.98 <= found[-2]


def test_blur():
    net = mlp(8, 8, 8)
    optimizer = optim.Adam(net.parameters(), 0.01)
    controller = controlled(net, optimizer, 3, 100, cutoff=1e-12)
    train(net, optimizer, batches(5, 16, 8, 8), controller)
    first, second = cores(net)
    values, other = torch.linalg.svdvals(first.s.detach()), second.s.detach().clone()
    controller.blur(0.5, include="0")
    torch.testing.assert_close(first.s.detach(), basis.blurred(values, 0.5))
    assert torch.equal(second.s.detach(), other)
    train(net, optimizer, batches(2, 16, 8, 8), controller)
    with pytest.raises(ValueError, match="width is 0, expected a number above 0"):
        controller.blur(0)


def test_conversion_waits_for_bases_to_settle():
    net = mlp(8, 8, 8, 8)
    controller = controlled(net, delay=2, frequency=3, warmup_stability=0.9995, exclude="4")
    direction = {layer: torch.randn_like(layer.weight) for layer in net[::2]}
    looks, before = [], None
    for step in range(1, 30):
        with torch.no_grad():
            for layer in net[::2]:
                layer.weight.add_(direction[layer], alpha=0.5 * 0.7**step)
        now = [torch.linalg.svd(layer.weight.detach())[::2] for layer in (net[0], net[2])]
        changed = controller.step()
        if step % 3 == 2:
            if before is not None:
                expected = [basis.stability(*a, *b).item() for a, b in zip(before, now, strict=True)]
                looks.append(sum(expected) / 2)
                if not changed:
                    assert list(controller.stabilities.values()) == pytest.approx(expected)
            before = now
        else:
            assert not changed
        if controller.converted:
            break
    assert looks[-1] >= 0.9995 > looks[-2]
    assert list(controller.ranks) == ["0", "2"]


def test_a_dense_weight_that_is_not_finite_has_not_settled():
    net = mlp(8, 8, 8)
    with torch.no_grad():
        net[0].weight[0, 0] = math.nan
    controller = controlled(net, warmup_stability=0.9)
    idle(controller, 3)
    assert controller.stabilities == pytest.approx({"0.weight": -1.0, "2.weight": 1.0})
    assert not controller.converted


# ---- what an ordinary loop does beside -------------------------------------------------------------------------------

KINDS = {
    "sgd": lambda p: optim.SGD(p, 0.05, momentum=0.9, nesterov=True),
    "adam": lambda p: optim.Adam(p, 0.01, amsgrad=True),
    "adamw_fused": lambda p: optim.AdamW(p, 0.01, fused=True),
    "adamw_foreach": lambda p: optim.AdamW(p, 0.01, foreach=True),
    "nadam": lambda p: optim.NAdam(p, 0.01),
    "radam": lambda p: optim.RAdam(p, 0.01),
    "adamax": lambda p: optim.Adamax(p, 0.01),
    "rmsprop": lambda p: optim.RMSprop(p, 0.002, momentum=0.5, centered=True),
    "adagrad": lambda p: optim.Adagrad(p, 0.05),
    "adadelta": lambda p: optim.Adadelta(p, 1.0),
}


@pytest.mark.parametrize("mode", ["project", "reset", "keep"])
@pytest.mark.parametrize("kind", KINDS)
def test_any_optimizer_goes_on_learning(kind, mode):
    net = mlp(8, 16, 16, 4)
    optimizer = KINDS[kind](net.parameters())
    controller = controlled(net, optimizer, 30, 10, cutoff=0.3, second_moment=mode)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        losses = train(net, optimizer, batches(95, 32, 8, 4), controller)
    assert sum(controller.ranks.values()) < 8 + 16 + 4
    assert sum(losses[-10:]) < sum(losses[20:30])
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert [id(p) for p in held] == [id(p) for layer in layers(net) for p in (layer.weight_s, layer.bias)]
    assert {id(p) for p in optimizer.state} == {id(p) for p in held}


def test_several_groups_optimizers_and_schedulers():
    net = mlp(8, 16, 16, 4)
    first = optim.SGD([{"params": net[0].parameters(), "lr": 0.1}, {"params": [net[2].weight]}], 0.2, momentum=0.9)
    second = optim.AdamW([net[2].bias, *net[4].parameters()], 0.01, weight_decay=0.0)
    schedulers = [optim.lr_scheduler.CosineAnnealingLR(first, 40), optim.lr_scheduler.StepLR(second, 10, 0.5)]
    controller = controlled(net, [first, second], 10, 10, cutoff=0.3)

    def after(step):
        second.step()
        for scheduler in schedulers:
            scheduler.step()

    train(net, first, batches(40, 32, 8, 4), controller, after)
    a, b, c = layers(net)
    assert [p for g in first.param_groups for p in g["params"]] == [a.weight_s, a.bias, b.weight_s]
    assert second.param_groups[0]["params"] == [b.bias, c.weight_s, c.bias]
    assert [g["lr"] for g in first.param_groups] == pytest.approx([0.0, 0.0], abs=1e-12)
    assert second.param_groups[0]["lr"] == pytest.approx(0.01 / 16)


def test_scaling_accumulation_and_clipping():
    net = mlp(8, 16, 16, 4, dtype=torch.float32)
    optimizer = optim.AdamW(net.parameters(), 0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    controller = controlled(net, optimizer, 5, 5, cutoff=0.3)
    losses = []
    for i, (x, y) in enumerate(batches(80, 32, 8, 4, torch.float32)):
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.mse_loss(net(x).float(), y) / 2
        scaler.scale(loss).backward()
        losses.append(loss.item())
        if i % 2:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            controller.step()
            optimizer.zero_grad()
    assert (controller.steps, controller.converted) == (40, True)
    assert sum(losses[-10:]) < sum(losses[:10])
    assert all(p.dtype == torch.float32 for p in net.parameters())


def test_convolutions_and_attention():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, groups=2), nn.Flatten(2),
        nn.Linear(49, 16), nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True), nn.Linear(16, 4),
    )  # fmt: skip
    optimizer = optim.AdamW(net.parameters(), 0.003)
    controller = controlled(net, optimizer, 5, 5, cutoff=0.3, keep_last=True)
    assert controller.step() is False
    x, y = torch.randn(16, 3, 16, 16), torch.randn(16, 16, 4)
    frozen = {}
    losses = []
    for step in range(40):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(net(x), y)
        loss.backward()
        optimizer.step()
        controller.step()
        losses.append(loss.item())
        if step == 10:
            frozen = {name: p.detach().clone() for name, p in net.named_parameters()}
    assert "5.self_attn.in_proj" in controller.ranks
    assert losses[-1] < losses[0]
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    trainable = [id(p) for p in net.parameters() if p.requires_grad]
    assert sorted(held) == sorted(trainable)
    for name, p in net.named_parameters():  # nothing is left behind
        assert p.shape != frozen[name].shape or not torch.equal(p, frozen[name]), name


def test_the_rules_of_the_reference():
    net = mlp(8, 16, 16, 4)
    with_spectrum(net[2], [1.0] * 8 + [1e-4] * 8)
    optimizer = optim.AdamW(net.parameters(), 0.01)
    controller = controlled(net, optimizer, 4, 4, layer_share=0.1, compat="reference", cutoff=0.3)
    train(net, optimizer, batches(3, 16, 8, 4), controller)
    optimizer.zero_grad()
    net(torch.randn(4, 8, dtype=F64)).sum().backward()
    optimizer.step()
    idle(controller)
    state = optimizer.state[layers(net)[1].weight_s]
    assert state["step"] == 4
    assert (state["exp_avg"] == 0).all()
    assert controller.ranks["2"] == state["exp_avg"].shape[0] < 16  # all three layers at once
    train(net, optimizer, batches(3, 16, 8, 4), controller)
    core = layers(net)[1].cores()[0]
    with torch.no_grad():
        core.s.copy_(core.s * torch.linspace(1, 0.01, core.rank, dtype=F64))
    before = state["exp_avg"].clone()
    idle(controller)
    rank = controller.ranks["2"]
    assert rank < before.shape[0]
    assert torch.equal(optimizer.state[core.s]["exp_avg"], before[:rank, :rank])


def test_a_compiled_model():
    net = mlp(8, 16, 16, 4)
    model = torch.compile(net, backend="eager", fullgraph=True)
    optimizer = optim.AdamW(model.parameters(), 0.01)
    controller = controlled(model, optimizer, 5, 5, cutoff=0.3)
    assert controller.model is net
    losses = train(model, optimizer, batches(40, 32, 8, 4), controller)
    plain = mlp(8, 16, 16, 4)
    optimizer = optim.AdamW(plain.parameters(), 0.01)
    expected = train(plain, optimizer, batches(40, 32, 8, 4), controlled(plain, optimizer, 5, 5, cutoff=0.3))
    assert losses == pytest.approx(expected)
    assert sum(controller.ranks.values()) < 28


def test_memory_falls_with_the_ranks():
    net = mlp(32, 32, dtype=torch.float32)
    with_spectrum(net[0], [1.0] + [1e-4] * 31)
    optimizer = optim.Adam(net.parameters(), 0.0)
    train(net, optimizer, batches(1, 4, 32, 32, torch.float32), controller := controlled(net, optimizer))
    idle(controller, 2)
    core = cores(net)[0]
    state = [v for v in optimizer.state[core.s].values() if v.dim() > 1]
    assert core.rank == 4
    assert len(state) == 2
    for t, numel in [(core.u, 128), (core.vh, 128), (core.s, 16), *((v, 16) for v in state)]:
        assert (t.numel(), t.untyped_storage().nbytes()) == (numel, 4 * numel)


def test_a_loss_that_is_alive_still_does_not_disturb():
    """The graph of the last call holds on to the node that accumulates the gradient, whose shape is the old one."""
    net = mlp(8, 8)
    with_spectrum(net[0], STEEP)
    controller = controlled(net)
    controller.convert()
    loss = net(torch.randn(2, 8, dtype=F64)).sum()
    controller.update()
    again = net(torch.randn(2, 8, dtype=F64)).sum()
    again.backward()
    assert cores(net)[0].s.grad.shape == (4, 4)
    assert loss.requires_grad


def test_frozen_weights_stay_frozen_and_out_of_the_optimizer():
    net = mlp(8, 8, 8)
    net[0].weight.requires_grad_(False)
    optimizer = optim.SGD([net[0].bias, *net[2].parameters()], 0.1)
    controller = controlled(net, optimizer)
    train(net, optimizer, batches(3, 4, 8, 8), controller)
    first, second = layers(net)
    assert not first.weight_s.requires_grad
    assert optimizer.param_groups[0]["params"] == [first.bias, second.weight_s, second.bias]


# ---- state -----------------------------------------------------------------------------------------------------------


def build(kind="adam", **options):
    net = mlp(8, 16, 16, 4, seed=3)
    optimizer = KINDS[kind](net.parameters())
    return net, optimizer, controlled(net, optimizer, 10, 5, **{"cutoff": 0.3, "layer_share": 0.3, **options})


@pytest.mark.parametrize("kind", ["sgd", "adam"])
@pytest.mark.parametrize("at", [5, 10, 17, 33])
@pytest.mark.parametrize("options", [{}, {"shrink": False, "skip_updates": 1}, {"growth": 1}], ids=str)
def test_a_resumed_run_goes_on_exactly(kind, at, options):
    data = list(batches(45, 16, 8, 4))
    net, optimizer, controller = build(kind, **options)
    expected = train(net, optimizer, data, controller)
    first = build(kind, **options)
    train(first[0], first[1], data[:at], first[2])
    saved = [copy.deepcopy(part.state_dict()) for part in first]
    second = build(kind, **options)
    second[2].load_state_dict(saved[2])
    second[0].load_state_dict(saved[0])
    second[1].load_state_dict(saved[1])
    assert second[2].ranks == first[2].ranks
    assert train(second[0], second[1], data[at:], second[2]) == expected[at:]
    assert second[2].ranks == controller.ranks
    assert second[2].state_dict() == controller.state_dict()


def test_the_optimizer_may_have_been_loaded_before():
    data = list(batches(30, 16, 8, 4))
    first = build()
    train(*first[:2], data[:20], first[2])
    saved = [copy.deepcopy(part.state_dict()) for part in first]
    second = build()
    second[1].load_state_dict(saved[1])
    second[2].load_state_dict(saved[2])
    second[0].load_state_dict(saved[0])
    assert train(*second[:2], data[20:], second[2]) == train(*first[:2], data[20:], first[2])


def test_state_goes_back_to_an_earlier_one_of_the_same_model():
    data = list(batches(40, 16, 8, 4))
    net, optimizer, controller = build()
    train(net, optimizer, data[:15], controller)
    saved = [copy.deepcopy(part.state_dict()) for part in (controller, net, optimizer)]
    expected = train(net, optimizer, data[15:], controller)
    for part, state in zip((controller, net, optimizer), saved, strict=True):
        part.load_state_dict(copy.deepcopy(state))
    assert train(net, optimizer, data[15:], controller) == expected


def test_state_is_plain_and_is_checked():
    net, optimizer, controller = build()
    train(net, optimizer, batches(12, 16, 8, 4), controller)
    state = controller.state_dict()
    assert json.loads(json.dumps(state)) == state
    other = controlled(mlp(8, 8, 8), delay=10)
    before = list(other.model.modules())
    with pytest.raises(ValueError, match=r"other converted layers: 4"):
        other.load_state_dict(state)
    assert all(a is b for a, b in zip(before, other.model.modules(), strict=True))
    assert not other.converted
    with pytest.raises(ValueError, match="next not in the state"):
        other.load_state_dict({k: v for k, v in state.items() if k != "next"})
    with pytest.raises(ValueError, match="rank, since, size, skips, stability of '0' missing"):
        other.load_state_dict({**state, "weights": {"0": {"layer": "0"}}})
    fresh = build()[2].state_dict()
    with pytest.raises(ValueError, match="other converted layers: 0, 2, 4"):
        controller.load_state_dict(fresh)


# ---- bad input -------------------------------------------------------------------------------------------------------


def test_a_core_that_is_not_finite_is_left_and_named():
    net = mlp(8, 8, 8)
    for layer in net[::2]:
        with_spectrum(layer, STEEP)
    controller = controlled(net)
    controller.convert()
    with torch.no_grad():
        cores(net)[0].s[1, 2] = math.nan
    before = cores(net)[0].u
    with pytest.warns(UserWarning, match="step 0: 0: the core is not finite"):
        controller.update()
    assert controller.ranks == {"0": 8, "2": 4}
    assert cores(net)[0].u is before
    with torch.no_grad():
        cores(net)[0].s[1, 2] = 0.0
    controller.update()
    assert controller.ranks["0"] == 4


def test_a_weight_that_is_not_finite_stays_dense_and_is_named():
    net = mlp(8, 8, 8)
    with torch.no_grad():
        net[0].weight[1, 1] = math.inf
    controller = controlled(net)
    with pytest.warns(UserWarning, match="0: NaN or infinity in the weight; the layer stays dense"):
        idle(controller)
    assert list(controller.ranks) == ["2"]


def test_an_optimizer_without_a_weight_is_found_out_before_anything_changes():
    net = mlp(8, 8, 8)
    optimizer = optim.SGD([net[0].weight, net[2].bias], 0.1, momentum=0.9)
    controller = controlled(net, optimizer, delay=2)
    train(net, optimizer, batches(1, 4, 8, 8), controller)
    before, state = list(net.modules()), copy.deepcopy(optimizer.state_dict())
    loaded = []
    net[0].register_load_state_dict_pre_hook(lambda module, *_: loaded.append(module))
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"does not hold 2\.weight, so nothing would train"):
            controller.step()
        assert controller.steps == 1
    assert all(a is b for a, b in zip(before, net.modules(), strict=True))
    assert optimizer.state_dict()["state"].keys() == state["state"].keys()
    net.load_state_dict(net.state_dict())
    assert loaded == [net[0]]
    net[2].weight.requires_grad_(False)
    assert controller.step()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"delay": 0}, ValueError, "delay is 0, which leaves no dense warm-up; give warmup=False"),
        ({"delay": -1}, ValueError, "delay is -1, expected 0 or more"),
        ({"delay": 1.5}, TypeError, "delay is 1.5, expected an int"),
        ({"frequency": 0}, ValueError, "frequency is 0, expected 1 or more"),
        ({"cutoff": 0.0}, ValueError, "cutoff is 0.0, expected a number above 0"),
        ({"cutoff": {"0": 2.0}}, ValueError, "cutoff of '0' is 2.0"),
        ({"cutoff": "0.1"}, TypeError, "cutoff is '0.1', expected a number"),
        ({"energy": 0.9, "target": 0.5}, ValueError, "at most one of energy, stable_rank and target"),
        ({"target": {"0": 0.5}}, TypeError, "target is .*expected a number"),
        ({"stable_rank": -1.0}, ValueError, "stable_rank is -1.0, expected a number above 0"),
        ({"max_rank": 0}, ValueError, "max_rank is 0, expected 1 or more"),
        ({"min_rank": {"0": 1.5}}, TypeError, "min_rank of '0' is 1.5, expected an int"),
        ({"multiple": 0}, ValueError, "multiple is 0"),
        ({"growth": -1}, ValueError, "growth is -1"),
        ({"layer_share": 0.0}, ValueError, "layer_share is 0.0"),
        ({"skip_updates": -1}, ValueError, "skip_updates is -1"),
        ({"stability": math.nan}, ValueError, "stability is nan"),
        ({"warmup_stability": "high"}, TypeError, "warmup_stability is 'high', expected a number"),
        ({"second_moment": "rotate"}, ValueError, "second_moment is 'rotate', expected one of"),
        ({"compat": ["biases"]}, ValueError, "compat has 'biases', expected some of"),
        ({"include": 3}, TypeError, "include"),
    ],
)
def test_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        controlled(mlp(8, 8, 8), **arguments)


def test_models_and_optimizers_that_do_not_fit():
    net = mlp(8, 8, 8)
    with pytest.raises(TypeError, match="model is int"):
        lath.OIALRController(3, sgd(net))
    with pytest.raises(TypeError, match="optimizer is Sequential"):
        lath.OIALRController(net, net)
    with pytest.raises(TypeError, match="optimizer is an empty list"):
        lath.OIALRController(net, [])
    with pytest.raises(TypeError, match="LBFGS keeps state that cannot follow"):
        lath.OIALRController(net, optim.LBFGS(net.parameters()))
    layer = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="model is itself a Linear"):
        lath.OIALRController(layer, sgd(layer))
    with pytest.raises(ValueError, match="the optimizer holds no weight of the model"):
        lath.OIALRController(net, sgd(mlp(8, 8)))
    with pytest.raises(RuntimeError, match="not converted yet"):
        controlled(net).update()


def test_an_update_that_fails_leaves_everything(monkeypatch):
    net = mlp(8, 8, 8)
    for layer in net[::2]:
        with_spectrum(layer, STEEP)
    controller = controlled(net, frequency=2)
    controller.convert()
    before = controller.state_dict(), [t.clone() for t in net.state_dict().values()]
    monkeypatch.setattr(controller.policy.__class__, "choose", lambda *_: 1 / 0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            controller.step()
    monkeypatch.undo()
    assert (controller.state_dict(), controller.steps) == (before[0], 0)
    assert all(torch.equal(a, b) for a, b in zip(before[1], net.state_dict().values(), strict=True))
    assert controller.step()
    assert controller.ranks == {"0": 4, "2": 4}


def test_layers_that_are_gone_are_found_out():
    net = mlp(8, 8, 8)
    controller = controlled(net, frequency=2)
    idle(controller)
    lath.restore(net)
    with pytest.raises(RuntimeError, match="OIALR layers of the model are not those that it had"):
        idle(controller, 2)


def test_a_checkpoint_of_another_rank_in_the_midst():
    net, small = mlp(8, 8, 8), mlp(8, 8, 8)
    controller, other = controlled(net, cutoff=1e-9), controlled(small, max_rank=3)
    idle(controller)
    idle(other)
    net.load_state_dict(small.state_dict())
    x = torch.randn(2, 8, dtype=F64)
    idle(controller)
    assert controller.ranks == {"0": 3, "2": 3}
    torch.testing.assert_close(net(x), small(x))


def test_another_optimizer():
    net = mlp(8, 8, 8)
    for layer in net[::2]:
        with_spectrum(layer, STEEP)
    controller = controlled(net, frequency=2)
    controller.convert()
    with pytest.raises(RuntimeError, match="does not hold the cores of 0, 2"):
        controller.set_optimizer(sgd(mlp(8, 8)))
    optimizer = optim.Adam(net.parameters(), 0.001)
    controller.set_optimizer(optimizer)
    train(net, optimizer, batches(3, 4, 8, 8), controller)
    assert [v.shape for v in optimizer.state[layers(net)[0].weight_s].values() if v.dim()] == [
        (controller.ranks["0"],) * 2
    ] * 2


def test_a_change_by_hand_is_told_at_the_next_step():
    controller = controlled(mlp(8, 8, 8), delay=10)
    controller.convert()
    assert idle(controller, 5) == [True, False, False, False, False]


def test_a_model_is_converted_once():
    net = mlp(8, 8, 8)
    first, second = controlled(net), controlled(net)
    idle(first)
    with pytest.raises(RuntimeError, match=r"converted already; it has OIALR layers \(0\)"):
        first.convert()
    with pytest.raises(RuntimeError, match="converted already"):
        idle(second)
    assert second.steps == 0
    with pytest.raises(ValueError, match=r"has OIALR layers already \(0\).*warmup=False"):
        controlled(net)


def test_nothing_to_convert():
    net = mlp(8, 8)
    controller = lath.OIALRController(net, sgd(net), 1)  # the only layer is the last one
    with pytest.raises(RuntimeError, match="there is no layer to convert"):
        controller.step()
    assert type(net[0]) is nn.Linear
