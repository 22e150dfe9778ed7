# SPDX-License-Identifier: Apache-2.0
"""What optimizers keep, carried over to a core and through basis updates: formulas, exact trajectories, every class."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from lath import basis, optimizer_state
from torch import nn, optim

pytestmark = pytest.mark.usefixtures("one_thread")

F64 = torch.float64
SGDS = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.9, "dampening": 0.3},
    {"weight_decay": 0.01},
    {"momentum": 0.9, "weight_decay": 0.01, "nesterov": True},
]
OPTIMIZERS = {
    "sgd": (optim.SGD, {"lr": 0.01, "momentum": 0.9}),
    "nesterov": (optim.SGD, {"lr": 0.01, "momentum": 0.9, "nesterov": True}),
    "adam": (optim.Adam, {}),
    "adamw": (optim.AdamW, {}),
    "amsgrad": (optim.AdamW, {"amsgrad": True}),
    "nadam": (optim.NAdam, {}),
    "radam": (optim.RAdam, {}),
    "adamax": (optim.Adamax, {}),
    "rmsprop": (optim.RMSprop, {}),
    "centered": (optim.RMSprop, {"centered": True, "momentum": 0.9}),
    "adagrad": (optim.Adagrad, {}),
    "adadelta": (optim.Adadelta, {}),
    "asgd": (optim.ASGD, {}),
    "rprop": (optim.Rprop, {}),
}
LINEAR = {"momentum_buffer", "exp_avg", "grad_avg", "ax", "prev"}
SQUARED = {"exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "acc_delta"}
FUSED = ["sgd", "nesterov", "adam", "adamw", "amsgrad", "adagrad"]


def trained(name, *shape, steps=3, dtype=F64, **more):
    """An optimizer that has taken steps with a parameter, and the parameter."""
    kind, options = OPTIMIZERS[name]
    parameter = nn.Parameter(torch.randn(shape, dtype=dtype))
    optimizer = kind([parameter], **options, **more)
    for _ in range(steps):
        parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    return optimizer, parameter


def bases(out, fan_in, rank, dtype=F64):
    u, v = (torch.linalg.qr(torch.randn(n, rank, dtype=F64)).Q.to(dtype) for n in (out, fan_in))
    return u, v.mT.contiguous()


def matrices(state):
    return {key: value for key, value in state.items() if torch.is_tensor(value) and value.dim() > 1}


def moved(optimizer, old, u, vh, **options):
    """The core, after it has taken the place of ``old``."""
    new = nn.Parameter(u.mT @ old.detach().flatten(1) @ vh.mT)
    assert optimizer_state.swap([optimizer], old, new) == [optimizer]
    optimizer_state.carry(optimizer, old, new, u, vh, **options)
    return new


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("shape", [(9, 7), (6, 3, 2, 2)])
def test_every_entry_follows_its_formula(name, shape):
    optimizer, old = trained(name, *shape)
    before = {k: v.clone() if torch.is_tensor(v) else v for k, v in optimizer.state[old].items()}
    u, vh = bases(shape[0], math.prod(shape[1:]), 4)
    new = moved(optimizer, old, u, vh)
    assert old not in optimizer.state
    after = optimizer.state[new]
    assert after.keys() == before.keys()
    assert matrices(before)
    for key, value in before.items():
        if key not in matrices(before):
            assert after[key] == value, key
            continue
        m = value.flatten(1)
        if key in LINEAR:
            expected = u.mT @ m @ vh.mT
        elif key in SQUARED:
            expected = u.square().mT @ m @ vh.square().mT
        else:
            expected = (u.square().mT @ m.square() @ vh.square().mT).sqrt()
        torch.testing.assert_close(after[key], expected)
        assert after[key].is_contiguous()
        assert after[key].untyped_storage().nbytes() == after[key].numel() * 8
        if key not in LINEAR:
            assert (after[key] >= 0).all()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("mode", optimizer_state.SECOND_MOMENTS)
def test_training_goes_on_after_each_change(name, mode):
    """At conversion, at an update, at one that grows; warnings would be unknown entries."""
    optimizer, old = trained(name, 9, 7)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parameter = moved(optimizer, old, *bases(9, 7, 5), second_moment=mode)
        for rank, grown in ((3, 0), (4, 1)):
            parameter.grad = torch.randn_like(parameter)
            optimizer.step()
            left, right = bases(parameter.shape[0], parameter.shape[0], rank - grown)
            left, right = nn.functional.pad(left, (0, grown)), nn.functional.pad(right, (0, 0, 0, grown))
            optimizer_state.carry(optimizer, parameter, parameter, left, right, second_moment=mode, grown=grown)
            parameter.data, parameter.grad = torch.randn(rank, rank, dtype=F64), None
        parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    assert parameter.isfinite().all()
    assert optimizer.state.keys() == {parameter}
    assert all(m.shape == (4, 4) for m in matrices(optimizer.state[parameter]).values())


@pytest.mark.parametrize(("name", "variant"), [*((n, "foreach") for n in OPTIMIZERS), *((n, "fused") for n in FUSED)])
def test_variants_of_the_implementation_agree(name, variant):
    results = []
    for on in (False, True):
        torch.manual_seed(3)
        optimizer, old = trained(name, 9, 7, **({variant: True} if on else {"foreach": False}))
        parameter = moved(optimizer, old, *bases(9, 7, 5))
        for _ in range(3):
            parameter.grad = torch.randn_like(parameter)
            optimizer.step()
        results.append(parameter.detach())
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("name", ["adam", "amsgrad", "rmsprop", "adagrad", "adadelta"])
def test_a_rotation_keeps_the_sum_of_squares(name):
    optimizer, parameter = trained(name, 6, 6)
    before = {k: v.sum() for k, v in matrices(optimizer.state[parameter]).items() if k in SQUARED}
    assert before
    optimizer_state.carry(optimizer, parameter, parameter, *bases(6, 6, 6))
    for key, total in before.items():
        torch.testing.assert_close(optimizer.state[parameter][key].sum(), total)


def test_second_moments_of_one_size_stay_that_size_in_fewer_coordinates():
    optimizer, old = trained("adam", 9, 7)
    optimizer.state[old]["exp_avg_sq"].fill_(0.25)
    new = moved(optimizer, old, *bases(9, 7, 3))
    torch.testing.assert_close(optimizer.state[new]["exp_avg_sq"], torch.full((3, 3), 0.25, dtype=F64))


def test_modes_of_the_second_moment():
    for mode in ("keep", "reset"):
        optimizer, old = trained("adam", 9, 7)
        u, vh = bases(9, 7, 5)
        expected = u.square().mT @ optimizer.state[old]["exp_avg_sq"] @ vh.square().mT
        parameter = moved(optimizer, old, u, vh, second_moment=mode)
        if mode == "reset":
            assert not optimizer.state
            continue
        torch.testing.assert_close(optimizer.state[parameter]["exp_avg_sq"], expected)
        first = optimizer.state[parameter]["exp_avg"].clone()
        left, right = bases(5, 5, 3)
        optimizer_state.carry(optimizer, parameter, parameter, left, right, second_moment=mode)
        torch.testing.assert_close(optimizer.state[parameter]["exp_avg_sq"], expected[:3, :3])
        torch.testing.assert_close(optimizer.state[parameter]["exp_avg"], left.mT @ first @ right.mT)


def test_reset_leaves_momentum_where_nothing_is_squared():
    optimizer, old = trained("sgd", 9, 7)
    u, vh = bases(9, 7, 5)
    expected = u.mT @ optimizer.state[old]["momentum_buffer"] @ vh.mT
    new = moved(optimizer, old, u, vh, second_moment="reset")
    torch.testing.assert_close(optimizer.state[new]["momentum_buffer"], expected)


def test_new_directions_have_no_momentum_and_the_mean_of_the_squares():
    optimizer, parameter = trained("adam", 4, 4)
    left, right = bases(4, 4, 4)
    expected = (left.square().mT @ optimizer.state[parameter]["exp_avg_sq"] @ right.square().mT).mean()
    left, right = nn.functional.pad(left, (0, 2)), nn.functional.pad(right, (0, 0, 0, 2))
    optimizer_state.carry(optimizer, parameter, parameter, left, right, grown=2)
    state = optimizer.state[parameter]
    assert (state["exp_avg"][4:] == 0).all()
    assert (state["exp_avg"][:, 4:] == 0).all()
    torch.testing.assert_close(state["exp_avg_sq"][4:], expected.expand(2, 6))
    torch.testing.assert_close(state["exp_avg_sq"][:, 4:], expected.expand(6, 2))


def test_zeros_fill_up_to_the_size():
    optimizer, parameter = trained("adam", 6, 6)
    optimizer_state.carry(optimizer, parameter, parameter, *bases(6, 6, 4), size=6)
    for value in matrices(optimizer.state[parameter]).values():
        assert value.shape == (6, 6)
        assert (value[4:] == 0).all()
        assert (value[:, 4:] == 0).all()
        assert (value[:4, :4] != 0).all()


def test_the_dtype_of_an_entry_is_kept():
    optimizer, parameter = trained("adam", 6, 6, dtype=torch.bfloat16)
    optimizer_state.carry(optimizer, parameter, parameter, *bases(6, 6, 4, torch.float32))
    assert {v.dtype for v in matrices(optimizer.state[parameter]).values()} == {torch.bfloat16}


# ---- trajectories ----------------------------------------------------------------------------------------------------


def problem(out, fan_in):
    """The gradient of a quadratic loss in W."""
    torch.manual_seed(5)
    inputs, targets = torch.randn(50, fan_in, dtype=F64), torch.randn(50, out, dtype=F64)
    return lambda w: (w @ inputs.mT - targets.mT) @ inputs / 50


def dense_run(gradient, start, steps, **options):
    w = nn.Parameter(start.clone())
    optimizer = optim.SGD([w], lr=0.05, **options)
    for _ in range(steps):
        w.grad = gradient(w.detach())
        optimizer.step()
    return w.detach()


def core_run(gradient, start, steps, every=None, rotate=True, **options):
    u, sigma, vh = torch.linalg.svd(start, full_matrices=False)
    s = nn.Parameter(sigma.diag())
    optimizer = optim.SGD([s], lr=0.05, **options)
    for step in range(1, steps + 1):
        s.grad = u.mT @ gradient(u @ s.detach() @ vh) @ vh.mT
        optimizer.step()
        if every and step % every == 0:
            (spectrum,) = basis.decompose([(u, s, vh)])
            update = spectrum.update(len(sigma))
            u, vh, s.data = update.u, update.vh, update.sigma.diag()
            if rotate:
                optimizer_state.carry(optimizer, s, s, update.left, update.right)
    return u @ s.detach() @ vh


@pytest.mark.parametrize("options", SGDS, ids=str)
def test_sgd_on_a_square_full_core_is_sgd_on_the_weight(options):
    gradient, start = problem(8, 8), torch.randn(8, 8, dtype=F64)
    expected = dense_run(gradient, start, 60, **options)
    torch.testing.assert_close(core_run(gradient, start, 60, **options), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", SGDS, ids=str)
def test_updates_every_seven_steps_change_nothing(options):
    gradient, start = problem(8, 8), torch.randn(8, 8, dtype=F64)
    expected = dense_run(gradient, start, 60, **options)
    torch.testing.assert_close(core_run(gradient, start, 60, every=7, **options), expected, rtol=0, atol=1e-12)


def test_momentum_that_is_not_rotated_goes_astray():
    gradient, start = problem(8, 8), torch.randn(8, 8, dtype=F64)
    expected = dense_run(gradient, start, 60, momentum=0.9)
    astray = core_run(gradient, start, 60, every=7, rotate=False, momentum=0.9)
    assert (astray - expected).abs().max() > 0.1


def test_a_tall_weight_moves_within_its_column_space():
    gradient, start = problem(12, 8), torch.randn(12, 8, dtype=F64)
    u = torch.linalg.svd(start, full_matrices=False).U
    after = core_run(gradient, start, 1)
    torch.testing.assert_close(after - start, -0.05 * u @ u.mT @ gradient(start), rtol=0, atol=1e-13)
    far = core_run(gradient, start, 40, every=7, momentum=0.9)
    torch.testing.assert_close(u @ (u.mT @ far), far, rtol=0, atol=1e-12)


def test_decoupled_decay_of_the_core_is_that_of_the_weight():
    u, vh = bases(9, 7, 4)
    s = nn.Parameter(torch.randn(4, 4, dtype=F64))
    before = torch.linalg.matrix_norm(u @ s.detach() @ vh)
    optimizer = optim.AdamW([s], lr=0.1, weight_decay=0.5)
    s.grad = torch.zeros_like(s)
    optimizer.step()
    torch.testing.assert_close(torch.linalg.matrix_norm(u @ s.detach() @ vh), before * (1 - 0.1 * 0.5))


def longest_step(change, **options):
    """Of Adam in its first 30 steps on the core, in units of the rate; gradients as noisy as they were before."""
    torch.manual_seed(1)
    rate = 1e-3
    old = nn.Parameter(torch.randn(16, 16, dtype=F64))
    optimizer = optim.AdamW([old], lr=rate, weight_decay=0.0)
    trend = torch.randn(16, 16, dtype=F64)
    state = {"step": torch.tensor(1e5), "exp_avg": trend.clone(), "exp_avg_sq": trend.square() + 0.01}
    optimizer.state[old] = state  # what it comes to after many steps
    u, vh = bases(16, 16, 16)
    new = nn.Parameter(u.mT @ old.detach() @ vh.mT)
    optimizer_state.swap([optimizer], old, new)
    change(optimizer, old, new, u, vh, **options) if options else change(optimizer, old, new)
    steps = []
    for _ in range(30):
        new.grad = u.mT @ (trend + 0.1 * torch.randn_like(old)) @ vh.mT
        before = new.detach().clone()
        optimizer.step()
        steps.append(((new.detach() - before).abs().max() / rate).item())
    return steps


def test_adam_takes_no_long_steps_after_a_change():
    reset = longest_step(optimizer_state.carry, second_moment="reset")
    assert reset[0] <= 1.01
    assert max(reset) <= 1.2
    project = longest_step(optimizer_state.carry, second_moment="project")
    assert max(project) < 4  # gradients that all agree, the worst case: their squares are not independent
    reference = longest_step(optimizer_state.zeroed)  # zeros, but the step count goes on
    assert reference[0] == pytest.approx(0.1 / math.sqrt(1e-3), rel=1e-3)
    assert max(reference) > 6


# ---- the reference's rules -------------------------------------------------------------------------------------------


def test_zeroed_and_sliced():
    optimizer, old = trained("amsgrad", 9, 7)
    new = nn.Parameter(torch.zeros(5, 5, dtype=F64))
    optimizer_state.zeroed(optimizer, old, new)
    state = optimizer.state[new]
    assert state["step"] == 3
    assert all((m == 0).all() and m.shape == (5, 5) for m in matrices(state).values())
    state["exp_avg"].copy_(torch.arange(25).reshape(5, 5))
    optimizer_state.sliced(optimizer, new, 3)
    torch.testing.assert_close(state["exp_avg"], torch.arange(25, dtype=F64).reshape(5, 5)[:3, :3])
    assert state["exp_avg"].untyped_storage().nbytes() == 9 * 8


# ---- places ----------------------------------------------------------------------------------------------------------


def test_swap_keeps_position_group_and_schedule():
    layers = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    groups = [{"params": list(layers[0].named_parameters(prefix="0"))}, {"params": [("1.weight", layers[1].weight)]}]
    optimizer = optim.AdamW(groups, lr=0.1)
    scheduler = optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    objects = list(optimizer.param_groups)
    new = nn.Parameter(torch.zeros(2, 2))
    assert optimizer_state.swap([optimizer], layers[0].weight, new, "_s") == [optimizer]
    assert optimizer.param_groups[0]["params"][0] is new
    assert optimizer.param_groups[0]["params"][1] is layers[0].bias
    assert optimizer.param_groups[0]["param_names"] == ["0.weight_s", "0.bias"]
    assert all(a is b for a, b in zip(objects, optimizer.param_groups, strict=True))
    optimizer.step()
    scheduler.step()
    assert [g["lr"] for g in optimizer.param_groups] == [0.05, 0.05]
    assert optimizer_state.swap([optimizer], layers[0].weight, new) == []


def test_adopt_takes_what_fits():
    optimizer, old = trained("adam", 5, 5)
    fits, other = nn.Parameter(torch.zeros(5, 5)), nn.Parameter(torch.zeros(4, 4))
    optimizer_state.adopt(optimizer, old, fits)
    assert optimizer.state[fits]["step"] == 3
    optimizer_state.adopt(optimizer, fits, other)
    assert not optimizer.state


# ---- optimizers of others --------------------------------------------------------------------------------------------


class Lion(optim.Optimizer):
    """The sign of the momentum."""

    def __init__(self, params, lr=1e-3):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                average = self.state[p].setdefault("average", torch.zeros_like(p))
                self.state[p]["count"] = self.state[p].get("count", 0) + 1
                average.lerp_(p.grad, 0.1)
                p.sub_(average.sign(), alpha=group["lr"])


def lion():
    parameter = nn.Parameter(torch.randn(6, 6, dtype=F64))
    optimizer = Lion([parameter])
    parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return optimizer, parameter


def test_unknown_entries_start_anew_with_a_warning():
    optimizer, parameter = lion()
    with pytest.warns(UserWarning, match=r"Lion keeps average, whose meaning.*optimizer_state\.register"):
        optimizer_state.carry(optimizer, parameter, parameter, *bases(6, 6, 4))
    assert not optimizer.state


def test_registered_entries_are_carried_over(monkeypatch):
    monkeypatch.setattr(optimizer_state, "_ENTRIES", dict(optimizer_state._ENTRIES))
    optimizer_state.register(Lion, average="linear")
    optimizer, parameter = lion()
    u, vh = bases(6, 6, 4)
    expected = u.mT @ optimizer.state[parameter]["average"] @ vh.mT
    optimizer_state.carry(optimizer, parameter, parameter, u, vh)
    torch.testing.assert_close(optimizer.state[parameter]["average"], expected)
    assert optimizer.state[parameter]["count"] == 1
    with pytest.raises(ValueError, match="average is 'cubic', expected one of"):
        optimizer_state.register(Lion, average="cubic")
    with pytest.raises(TypeError, match=r"expected a subclass of torch\.optim\.Optimizer"):
        optimizer_state.register(nn.Linear, average="linear")


def test_a_subclass_is_known_by_its_base():
    class Mine(optim.AdamW):
        pass

    parameter = nn.Parameter(torch.randn(6, 6, dtype=F64))
    optimizer = Mine([parameter])
    parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer_state.carry(optimizer, parameter, parameter, *bases(6, 6, 4))
    assert optimizer.state[parameter]["exp_avg"].shape == (4, 4)


def test_optimizers_that_cannot_follow():
    parameter = nn.Parameter(torch.randn(3, 3))
    with pytest.raises(TypeError, match="LBFGS keeps state that cannot follow"):
        optimizer_state.check_optimizer(optim.LBFGS([parameter]), "here")
    with pytest.raises(TypeError, match=r"here: optimizer is list, expected torch\.optim\.Optimizer"):
        optimizer_state.check_optimizer([parameter], "here")
    optimizer_state.check_optimizer(optim.SGD([parameter], 0.1), "here")
