# SPDX-License-Identifier: Apache-2.0
"""Defects of the reference package in training (docs/oialr.md lists them): one test each that shows its absence."""

from __future__ import annotations

import copy
import math

import lath
import pytest
import torch
from lath import optimizer_state
from oialr_training import F64, batches, idle, mlp, train, with_spectrum
from torch import nn, optim

pytestmark = pytest.mark.usefixtures("one_thread")


def controlled(net, optimizer, delay=5, frequency=5, **options):
    return lath.OIALRController(net, optimizer, delay, frequency, **{"keep_last": False, "layer_share": 1.0, **options})


def bases(n):
    return torch.linalg.qr(torch.randn(n, n, dtype=F64)).Q


@pytest.mark.parametrize("kind", ["linear", "convolution", "attention"])
def test_b2_biases_train_after_conversion(kind):
    """There a bias was a new parameter that no optimizer held, and the old one a dead entry."""
    net = {
        "linear": lambda: nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)),
        "convolution": lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3)),
        "attention": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), 1),
    }[kind]()
    x = torch.randn(4, 2, 8, 8) if kind == "convolution" else torch.randn(4, 3, 8)
    biases = {name: p for name, p in net.named_parameters() if "bias" in name}
    optimizer = optim.SGD(net.parameters(), 0.1)
    controller = controlled(net, optimizer, delay=1, frequency=100)
    assert controller.step()
    before = {name: p.detach().clone() for name, p in biases.items()}
    for _ in range(3):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
        controller.step()
    assert before
    now = dict(net.named_parameters())
    for name, p in biases.items():
        assert now[name] is p, name
        assert not torch.equal(p, before[name]), name
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in net.parameters())


def longest_step(compat):
    """Of AdamW's first 30 on a core, in units of the rate, after a long warm-up with a steady trend."""
    net = nn.Sequential(nn.Linear(16, 16, bias=False, dtype=F64))
    optimizer = optim.AdamW(net.parameters(), 1e-3, weight_decay=0.0)
    torch.manual_seed(4)
    noise = torch.Generator().manual_seed(4)

    def gradient():
        return torch.randn(16, 16, generator=noise, dtype=F64)

    optimizer.state[net[0].weight] = {
        "step": torch.tensor(1e5), "exp_avg": 0.1 * gradient(), "exp_avg_sq": torch.ones(16, 16, dtype=F64),
    }  # fmt: skip
    controller = controlled(net, optimizer, delay=1, frequency=1000, cutoff=1e-12, compat=compat)
    controller.step()
    core = net[0].weight_s
    longest = []
    for _ in range(30):
        core.grad = gradient()
        before = core.detach().clone()
        optimizer.step()
        longest.append(((core.detach() - before).abs().max() / 1e-3).item())
    return longest


def test_b3_moments_and_step_count_stay_together():
    """There the moments became zeros and the count went on: first steps of 3.16 and up to 6.5 times the rate."""
    assert max(longest_step(())) < 2.5
    reference = longest_step("moments")
    assert reference[0] == pytest.approx(0.1 / math.sqrt(1e-3), rel=1e-3)
    assert max(reference) > 4


def final_weight(compat, updates=True):
    net = mlp(8, 8)
    optimizer = optim.SGD(net.parameters(), 0.05, momentum=0.9)
    frequency = 7 if updates else 1000
    if compat is not None:
        controller = controlled(net, optimizer, 5, frequency, cutoff=1e-12, compat=compat)
        train(net, optimizer, batches(60, 50, 8, 8), controller)
        return net[0].cores()[0].dense()
    train(net, optimizer, batches(60, 50, 8, 8))
    return net[0].weight.detach()


def test_b4_momentum_turns_with_the_basis():
    """There it was only cut, and then pointed along other directions."""
    expected = final_weight(None)
    torch.testing.assert_close(final_weight(()), expected, rtol=0, atol=1e-11)
    assert (final_weight("moments") - expected).abs().max() > 1e-3


def test_b5_skipped_updates_are_as_many_as_said():
    """There one fewer."""
    for compat, expected in (((), [25, 25, 12, 12, 6, 6]), ("skips", [25, 12, 6, 3, 1, 1])):
        net = mlp(50, 50)
        with_spectrum(net[0], [1.0] + [1e-4] * 49)
        controller = controlled(net, optim.SGD(net.parameters(), 0.0), 1, 1, skip_updates=1, compat=compat)
        found = []
        for _ in range(6):
            controller.step()
            found.append(controller.ranks["0"])
        assert found == expected


def test_b6_ten_layers_and_fewer_grow_too():
    """There an empty slice selected all of them at each update."""
    net = mlp(*[8] * 11)
    for layer in net[::2]:
        with_spectrum(layer, [1.0] + [1e-4] * 7)
    controller = controlled(net, optim.SGD(net.parameters(), 0.0), 1, 1, layer_share=0.1)
    cut = []
    for _ in range(11):
        controller.step()
        cut.append(sum(rank < 8 for rank in controller.ranks.values()))
    assert cut == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10]


@pytest.mark.parametrize(
    "options", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True, "foreach": True}], ids=str
)
def test_b7_sgd_converts(options):
    """There a look-up of a tensor among numbers raised."""
    net = mlp(8, 8, 8)
    optimizer = optim.SGD(net.parameters(), 0.05, **options)
    controller = controlled(net, optimizer, cutoff=0.3)
    losses = train(net, optimizer, batches(40, 32, 8, 8), controller)
    assert controller.converted
    assert losses[-1] < losses[0]


def test_b8_validation_does_not_advance_the_schedule():
    """There the counter was in the forward call, and mode switches did not reach the wrapper of the moment."""
    net = mlp(8, 8, 8)
    controller = controlled(net, optim.SGD(net.parameters(), 0.05))
    for mode in (False, True):
        net.train(mode)
        for x, _ in batches(20, 4, 8, 8):
            net(x)
    assert (controller.steps, controller.converted) == (0, False)
    idle(controller, 5)
    net.eval()
    assert not any(module.training for module in net.modules())
    assert controller.model is net


def test_b10_without_a_delay_ranks_adapt():
    """There the test for equality with the count of calls was never true."""
    net = mlp(16, 16)
    with_spectrum(net[0], [1.0] + [1e-4] * 15)
    controller = controlled(net, optim.SGD(net.parameters(), 0.0), 0, 3, warmup=False)
    assert controller.ranks == {"0": 8}
    idle(controller, 3)
    assert controller.ranks == {"0": 4}


def test_b11_restored_counters_go_on():
    """There counters were in no state, and beyond the next update nothing adapted any more."""
    net = mlp(16, 16)
    with_spectrum(net[0], [1.0] + [1e-4] * 15)
    controller = controlled(net, optim.SGD(net.parameters(), 0.0), 2, 3)
    idle(controller, 4)
    late = {**controller.state_dict(), "step": 100}
    states = copy.deepcopy((late, net.state_dict()))
    other = mlp(16, 16)
    resumed = controlled(other, optim.SGD(other.parameters(), 0.0), 2, 3)
    resumed.load_state_dict(states[0])
    other.load_state_dict(states[1])
    assert (resumed.steps, resumed.ranks) == (100, {"0": 8})
    found = []
    for _ in range(4):
        resumed.step()
        found.append(resumed.ranks["0"])
    assert found == [4, 4, 4, 2]


def test_b17_a_core_that_is_not_finite_does_not_end_the_job():
    """There the decomposition raised."""
    net = mlp(8, 8, 8, 8)
    optimizer = optim.AdamW(net.parameters(), 0.01)
    controller = controlled(net, optimizer, cutoff=0.3)
    train(net, optimizer, batches(6, 16, 8, 8), controller)
    with torch.no_grad():
        net[2].weight_s[0, 0] = math.nan
    with pytest.warns(UserWarning, match="2: the core is not finite"):
        idle(controller, 4)
    with torch.no_grad():
        net[2].weight_s.nan_to_num_()
    losses = train(net, optimizer, batches(60, 16, 8, 8), controller)
    assert sum(losses[-10:]) < sum(losses[:10])
    assert controller.ranks["2"] < 8


def test_frozen_cores_stay_frozen():
    """There each forward call switched requires_grad on."""
    net = mlp(8, 8, 8)
    optimizer = optim.SGD(net.parameters(), 0.1)
    controller = controlled(net, optimizer, 1, 2, cutoff=1e-12)
    idle(controller)
    net[0].weight_s.requires_grad_(False)
    before = net[0].cores()[0].dense()
    train(net, optimizer, batches(6, 8, 8, 8), controller)
    assert not net[0].weight_s.requires_grad
    assert net[0].weight_s.grad is None
    torch.testing.assert_close(net[0].cores()[0].dense(), before)


def test_state_of_the_optimizer_is_no_view_of_larger_memory():
    """There a truncation kept the memory of what it cut."""
    parameter = nn.Parameter(torch.randn(64, 64, dtype=F64))
    optimizer = optim.Adam([parameter])
    parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    left, right = bases(64)[:, :6].contiguous(), bases(64)[:6].contiguous()
    optimizer_state.carry(optimizer, parameter, parameter, left, right)
    for value in optimizer.state[parameter].values():
        assert value.untyped_storage().nbytes() <= 6 * 6 * 8
