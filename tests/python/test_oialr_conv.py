# SPDX-License-Identifier: Apache-2.0
"""lath.ops.oialr_conv2d on every way it can go, and the memory format of what a frozen layer keeps."""

import lath
import pytest
import torch
from lath.nn import OIALRConv2d, OIALRConv3d
from operator_cases import OperatorLog, every_device
from torch.nn.functional import conv2d

pytestmark = every_device

# in, out, rank, groups, window. Ranks that fill vectors let torch take channels-last images first.
CASES = {
    "library": (32, 24, 16, 1, (1, 1, 1)),
    "strided": (32, 24, 16, 1, (2, (0, 1), 1)),
    "even window, same": (32, 24, 16, 1, (1, "same", 1)),
    "library, any rank": (64, 24, 9, 1, (1, 1, 1)),
    "own": (32, 24, 5, 1, (1, 1, 1)),
    "groups": (32, 24, 4, 2, (1, 1, (2, 1))),
}
FORMATS = (torch.contiguous_format, torch.channels_last)


def operands(case, dtype=torch.float32, form=torch.contiguous_format, size=6):
    """x, vh, s, u, bias; the bases do not train."""
    n, m, r, groups, (_, padding, _) = CASES[case]
    kernel = 2 if padding == "same" else 3
    x = torch.randn(2, n, size, size + 1, dtype=dtype).contiguous(memory_format=form).requires_grad_()
    vh = torch.randn(r, n // groups, kernel, kernel, dtype=dtype).repeat(groups, 1, 1, 1)
    s = torch.randn(r, r, dtype=dtype, requires_grad=True)
    return x, vh, s, torch.randn(m, r, dtype=dtype), torch.randn(m, dtype=dtype, requires_grad=True)


def window_of(case):
    return *CASES[case][4], CASES[case][3]


def composition(x, vh, s, u, bias, stride=1, padding=0, dilation=1, groups=1):
    """With the weight formed; in float64."""
    x, vh, s, u, bias = (t.double() for t in (x, vh, s, u, bias))
    first = vh[: s.shape[0]]
    weight = (u @ s @ first.flatten(1)).reshape(u.shape[0], *first.shape[1:])
    return conv2d(x, weight, bias, stride, padding, dilation, groups)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("wanted", [(0, 2, 4), (2, 4), (0,), (4,)])
def test_values_and_gradients(case, form, wanted):
    args = operands(case, form=form)
    for i in (0, 2, 4):
        args[i].requires_grad_(i in wanted)
    leaves = [args[i] for i in wanted]
    y, expected = (function(*args, *window_of(case)) for function in (lath.ops.oialr_conv2d, composition))
    dy = torch.randn_like(y)
    got = torch.autograd.grad(y, leaves, dy)
    want = torch.autograd.grad(expected, leaves, dy.double())
    for a, b in zip((y, *got), (expected, *want), strict=True):
        scale = b.abs().max().item()
        torch.testing.assert_close(a.double(), b.double(), rtol=1e-4, atol=1e-5 * (1 + scale))
    assert y.is_contiguous(memory_format=form)


@pytest.mark.cpu_only
@pytest.mark.parametrize("case", ["library", "library, any rank"])
def test_which_operators_run(case):
    x, *rest = operands(case, form=torch.channels_last)
    with OperatorLog() as log:
        lath.ops.oialr_conv2d(x, *rest, 1, 1).sum().backward()
    assert log.names == ["lowrank_linear_forward", "lowrank_linear_backward"]  # the second stage; the first is torch's
    with OperatorLog() as log:
        lath.ops.oialr_conv2d(x.detach().contiguous().requires_grad_(), *rest, 1, 1).sum().backward()
    assert log.names == ["lowrank_conv2d_forward", "lowrank_conv2d_backward"]
    with OperatorLog() as log, torch.no_grad():
        lath.ops.oialr_conv2d(x, *rest, 1, 1)
    assert log.names == ([] if case == "library" else ["lowrank_conv2d"])  # two convolutions of torch


@pytest.mark.parametrize("case", ["library", "library, any rank", "own"])
@pytest.mark.parametrize("form", FORMATS)
def test_a_training_step_keeps_thin_images_and_not_x(case, form):
    x, vh, s, u, bias = operands(case, form=form, size=14)
    own = {t.untyped_storage().data_ptr() for t in (vh, s, u)}
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.update({t.untyped_storage().data_ptr(): t.numel()}) or t, lambda t: t
    ):
        y = lath.ops.oialr_conv2d(x, vh, s, u, bias, 1, 1)
    images = s.shape[0] * y.numel() // u.shape[0]
    assert sum(n for address, n in kept.items() if address not in own) <= images + u.numel()  # the product u s, too


@pytest.mark.cpu_only
def test_second_derivatives_of_the_mixed_way():
    args = operands("library", form=torch.channels_last)

    def twice(function):
        (ds,) = torch.autograd.grad(function(*args, 1, 1).square().sum(), args[2], create_graph=True)
        return torch.autograd.grad(ds.square().sum(), (args[0], args[2], args[4]))

    for a, b in zip(twice(lath.ops.oialr_conv2d), twice(composition), strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=1e-3, atol=1e-4 * b.abs().max().item())


def test_bases_that_train_get_their_gradients():
    x, vh, s, u, bias = operands("library", form=torch.channels_last)
    leaves = [t.requires_grad_() for t in (x, vh, s, u, bias)]
    got = torch.autograd.grad(lath.ops.oialr_conv2d(*leaves, 1, 1).square().sum(), leaves)
    want = torch.autograd.grad(composition(*leaves, 1, 1).square().sum(), leaves)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=1e-3, atol=1e-4 * b.abs().max().item())


@pytest.mark.parametrize("form", FORMATS)
def test_torch_func(form):
    x, vh, s, u, bias = (t.detach() for t in operands("library", form=form))

    def loss(s, function):
        return function(x, vh, s, u, bias, 1, 1).square().sum()

    got, want = (torch.func.grad(loss)(s, function) for function in (lath.ops.oialr_conv2d, composition))
    torch.testing.assert_close(got.double(), want.double(), rtol=1e-3, atol=1e-4 * want.abs().max().item())


def test_an_image_without_a_batch():
    x, *rest = operands("library")
    y = lath.ops.oialr_conv2d(x[0], *rest, 1, 1)
    torch.testing.assert_close(y.double(), composition(x, *rest, 1, 1)[0], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("form", FORMATS)
def test_not_a_number_stays_in_its_image(form):
    x, *rest = (t.detach() for t in operands("library", form=form))
    x[1, 3, 2, 2] = float("nan")
    rest[1].requires_grad_()
    y = lath.ops.oialr_conv2d(x, *rest, 1, 1)
    assert y[1].isnan().any()
    assert not y[0].isnan().any()


def test_bad_arguments():
    x, vh, s, u, bias = operands("library")
    with pytest.raises(TypeError, match="oialr_conv2d: x is list"):
        lath.ops.oialr_conv2d([1.0], vh, s, u, bias)
    for bad in (s[:3], s[:3, :3], s[0]):
        with pytest.raises(RuntimeError, match=r"oialr_conv2d: weight_s: got shape .*expected \(rank, rank\)"):
            lath.ops.oialr_conv2d(x, vh, bad, u, bias)
    for form in FORMATS:
        images = x.contiguous(memory_format=form)
        for bad in (vh[:3], vh[0]):
            with pytest.raises(RuntimeError, match=r"oialr_conv2d: weight_vh: got shape .*1 groups and rank 16"):
                lath.ops.oialr_conv2d(images, bad, s, u, bias)
        with pytest.raises(RuntimeError, match=r"weight_v: got .* to match 3 channels of x"):
            lath.ops.oialr_conv2d(images[:, :3], vh, s, u, bias)
        with pytest.raises(RuntimeError, match="bias: got"):
            lath.ops.oialr_conv2d(images, vh, s, u, bias[:3], 1, 1)
    with pytest.raises(TypeError, match="stride is 'two'"):
        lath.ops.oialr_conv2d(x, vh, s, u, bias, "two")


# ---- a frozen layer --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [2, 3])
@torch.inference_mode()
def test_a_frozen_layer_keeps_its_window_in_the_format_of_the_images(dims):
    kind, last = {2: (OIALRConv2d, torch.channels_last), 3: (OIALRConv3d, torch.channels_last_3d)}[dims]
    layer = kind(32, 32, 3, 16, padding=1).eval()
    x = torch.randn(2, 32, *(6,) * dims)
    expected = layer(x)
    layer.freeze()
    for form in (torch.contiguous_format, last, torch.contiguous_format):
        images = x.contiguous(memory_format=form)
        torch.testing.assert_close(layer(images), expected, rtol=1e-4, atol=1e-4)
        kept = layer._frozen[2]
        assert kept.is_contiguous(memory_format=form)
        layer(images)
        assert layer._frozen[2] is kept


@pytest.mark.cpu_only
@torch.inference_mode()
def test_a_frozen_window_stays_as_it_is_for_own_kernels():
    layer = OIALRConv2d(32, 32, 3, 5, padding=1).eval()
    layer.freeze()
    kept = layer._frozen[2]
    layer(torch.randn(2, 32, 6, 6).contiguous(memory_format=torch.channels_last))
    assert layer._frozen[2] is kept
