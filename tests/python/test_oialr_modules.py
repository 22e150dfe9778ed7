# SPDX-License-Identifier: Apache-2.0
"""OIALRLinear and OIALRConv1d, 2d, 3d: the function, its gradients, what is kept for them, checkpoints and copies."""

from __future__ import annotations

import copy
import io
import math
import pickle

import lath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lath.nn import LowRankConv2d, LowRankLinear, OIALRConv1d, OIALRConv2d, OIALRConv3d, OIALRLinear
from oialr_cases import (
    LAYERS,
    ONE_WEIGHT,
    assert_orthonormal,
    assert_storage_is_exact,
    dense,
    images,
    thin,
    weight_of,
)
from torch import nn

CLOSE = {"rtol": 1e-11, "atol": 1e-12}
every_layer = pytest.mark.parametrize("case", ONE_WEIGHT)
every_conv = pytest.mark.parametrize("case", [case for case in ONE_WEIGHT if case.startswith("conv")])


def limit(case):
    out, *rest = dense(case).weight.shape
    return min(out, math.prod(rest))


# ---- factoring ------------------------------------------------------------------------------------------------------


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 30))
def test_truncation_error_is_the_tail(n, m, rank):
    """Eckart and Young, in both norms; at full rank nothing is lost."""
    source = nn.Linear(n, m, dtype=torch.float64)
    rank = min(rank, n, m)
    layer = OIALRLinear.from_dense(source, rank)
    assert_orthonormal(layer)
    error, tail = weight_of(layer) - source.weight, torch.linalg.svdvals(source.weight.detach())[rank:]
    torch.testing.assert_close(error.norm(), tail.square().sum().sqrt(), rtol=1e-9, atol=1e-12)
    largest = tail[0] if tail.numel() else tail.new_zeros(())
    torch.testing.assert_close(torch.linalg.matrix_norm(error.detach(), 2), largest, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["rank one", "zero", "deficient"])
def test_degenerate_weights(kind):
    source = nn.Linear(6, 8, dtype=torch.float64)
    with torch.no_grad():
        if kind == "zero":
            source.weight.zero_()
        else:
            inner = 1 if kind == "rank one" else 3
            source.weight.copy_(torch.randn(8, inner) @ torch.randn(inner, 6))
    layer = OIALRLinear.from_dense(source)
    assert_orthonormal(layer)
    torch.testing.assert_close(weight_of(layer), source.weight.detach(), **CLOSE)


@every_layer
def test_the_core_has_the_norms_of_the_weight(case):
    layer = thin(case, 3)
    weight, core = weight_of(layer), layer.weight_s.detach()
    for order in ("fro", "nuc", 2):
        torch.testing.assert_close(torch.linalg.matrix_norm(core, order), torch.linalg.matrix_norm(weight, order))


@every_layer
@pytest.mark.parametrize("bias", [False, True])
def test_full_rank_is_the_dense_function(case, bias):
    source = dense(case, bias=bias)
    layer, x = LAYERS[case][1].from_dense(source), images(case)
    assert layer.rank == limit(case)
    assert_storage_is_exact(layer)
    torch.testing.assert_close(layer(x), source(x), **CLOSE)


@every_layer
def test_a_new_layer_is_the_dense_one_of_the_same_seed(case):
    _, kind, arguments, _ = LAYERS[case]
    full = limit(case)
    torch.manual_seed(5)
    source = dense(case)
    torch.manual_seed(5)
    layer = kind(*arguments, full, dtype=torch.float64)
    assert torch.equal(layer.bias, source.bias)
    torch.testing.assert_close(weight_of(layer), source.weight.detach().flatten(1), **CLOSE)


@every_layer
def test_names_shapes_and_what_trains(case):
    layer = thin(case, 2)
    out, *rest = dense(case).weight.shape
    shapes = {"weight_s": (2, 2), "bias": (out,), "weight_u": (out, 2), "weight_vh": (2, math.prod(rest))}
    assert {name: tuple(t.shape) for name, t in layer.state_dict().items()} == shapes
    assert [name for name, _ in layer.named_parameters()] == ["weight_s", "bias"]
    assert (layer.rank, layer.cores()[0].shape) == (2, (out, math.prod(rest)))


def test_repr():
    assert repr(OIALRLinear(7, 5, 3)) == "OIALRLinear(in_features=7, out_features=5, rank=3, bias=True)"
    text = "OIALRConv2d(4, 6, kernel_size=(3, 3), rank=2, stride=(1, 1), padding=(1, 1), bias=True)"
    assert repr(OIALRConv2d(4, 6, 3, 2, padding=1)) == text


@every_layer
def test_from_dense_carries_everything_over(case):
    source = dense(case, torch.bfloat16).eval()
    source.weight.requires_grad_(False)
    layer = LAYERS[case][1].from_dense(source, 2)
    assert layer.bias is source.bias  # so that an optimizer goes on training it
    assert not layer.training
    assert {t.dtype for t in layer.state_dict().values()} == {torch.bfloat16}
    assert (layer.weight_s.requires_grad, layer.bias.requires_grad) == (False, True)
    back = layer.to_dense()
    assert (back.weight.requires_grad, back.bias.requires_grad, back.training) == (False, True, False)
    assert back.bias is not layer.bias


@every_layer
def test_the_bias_trains_on_in_the_optimizer_that_has_it(case):
    """Public defect: a copy of the bias is in no optimizer."""
    source = dense(case)
    optimizer = torch.optim.SGD(source.parameters(), lr=0.1)
    layer = LAYERS[case][1].from_dense(source)
    before = layer.bias.detach().clone()
    layer(images(case)).square().sum().backward()
    optimizer.step()
    assert (layer.bias != before).all()


@every_layer
def test_a_frozen_core_stays_frozen(case):
    """Public defect: every forward flips requires_grad."""
    layer = thin(case).requires_grad_(False)
    layer.bias.requires_grad_(True)
    layer(images(case)).sum().backward()
    assert (layer.weight_s.requires_grad, layer.bias.requires_grad) == (False, True)
    assert layer.weight_s.grad is None
    assert not layer.weight_u.requires_grad


# ---- the function and its gradients ---------------------------------------------------------------------------------


@every_layer
@pytest.mark.parametrize("rank", [1, 2, None])
def test_gradients_follow_from_the_dense_ones(case, rank):
    """The gradient of S is U^T dW V, all others the same, on both sides of break-even."""
    layer = thin(case, rank)
    back, x = layer.to_dense(), images(case).requires_grad_()
    z = x.detach().clone().requires_grad_()
    y, expected = layer(x), back(z)
    torch.testing.assert_close(y, expected, **CLOSE)
    g = torch.randn_like(y)
    y.backward(g)
    expected.backward(g)
    torch.testing.assert_close(x.grad, z.grad, **CLOSE)
    torch.testing.assert_close(layer.bias.grad, back.bias.grad, **CLOSE)
    core = layer.weight_u.T @ back.weight.grad.flatten(1) @ layer.weight_vh.T
    torch.testing.assert_close(layer.weight_s.grad, core, **CLOSE)


@every_layer
@pytest.mark.parametrize("rank", [1, None])
def test_finite_differences(case, rank):
    layer = thin(case, rank)

    def call(x, s, bias):
        return torch.func.functional_call(layer, {"weight_s": s, "bias": bias}, x)

    leaves = [t.detach().clone().requires_grad_() for t in (images(case), layer.weight_s, layer.bias)]
    assert torch.autograd.gradcheck(call, leaves)


@every_layer
def test_linear_in_x(case):
    layer, (x, y) = thin(case), (images(case), images(case))
    zero = layer(torch.zeros_like(x))
    torch.testing.assert_close(layer(2 * x - 3 * y) - zero, 2 * (layer(x) - zero) - 3 * (layer(y) - zero), **CLOSE)


@every_layer
@pytest.mark.parametrize("bias", [False, True])
def test_a_core_of_zeros_leaves_the_bias(case, bias):
    layer = thin(case, bias=bias)
    with torch.no_grad():
        layer.weight_s.zero_()
        y = layer(images(case))
        expected = torch.zeros_like(y)
        if bias:
            expected += layer.bias if y.dim() < 3 or case == "wide" else layer.bias.view(-1, *[1] * (y.dim() - 2))
    assert torch.equal(y, expected)


@pytest.mark.parametrize("shape", [(6,), (0, 6), (3, 0, 6), (2, 3, 4, 6)])
def test_leading_dimensions(shape):
    layer = thin("tall")
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(layer(x), nn.functional.linear(x, weight_of(layer), layer.bias), **CLOSE)


def test_rows_with_strides():
    layer, wide = thin("tall"), torch.randn(5, 12, dtype=torch.float64)
    for x in (wide[:, ::2], wide[:, :6], wide[:, :6].expand(3, 5, 6), wide.T[:6].T):
        torch.testing.assert_close(layer(x), layer(x.contiguous()), **CLOSE)


GEOMETRIES = {
    "stride": {"stride": (2, 3), "padding": 1},
    "dilation": {"dilation": (1, 2), "padding": (1, 2)},
    "same": {"padding": "same"},
    "same, dilated": {"padding": "same", "dilation": 2},
    "valid": {"padding": "valid", "stride": 2},
    "even kernel": {"kernel_size": (4, 2), "padding": "same"},
    "rectangular": {"kernel_size": (1, 5), "padding": (0, 2)},
    "1 x 1": {"kernel_size": 1},
    "1 x 1, stride": {"kernel_size": 1, "stride": 2},
    "groups": {"groups": 2, "padding": 1},
    "many groups": {"groups": 4, "padding": 1},
    "depthwise": {"groups": 8, "padding": 1},
    "circular": {"padding": 1, "padding_mode": "circular"},
    "reflect": {"padding": (1, 2), "padding_mode": "reflect", "stride": 2},
    "replicate": {"padding": "same", "padding_mode": "replicate"},
    "no bias": {"bias": False},
}


def squeezed(options, dims):
    """The options of two dimensions for one, or for three."""
    take = {1: lambda t: t[-1:], 2: lambda t: t, 3: lambda t: (1 if t[0] > 0 else 0, *t)}[dims]
    return {name: take(value) if isinstance(value, tuple) else value for name, value in options.items()}


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("rank", [1, None])
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_every_window(geometry, dims, rank):
    """Against torch's convolution with the same weight: values, gradients, images without a batch."""
    kinds = {1: (nn.Conv1d, OIALRConv1d), 2: (nn.Conv2d, OIALRConv2d), 3: (nn.Conv3d, OIALRConv3d)}[dims]
    options = {"kernel_size": 3, **squeezed(GEOMETRIES[geometry], dims)}
    layer = kinds[1].from_dense(kinds[0](8, 16, dtype=torch.float64, **options), rank)
    back = layer.to_dense()
    assert type(back) is kinds[0]
    x = torch.randn(2, 8, *(4, 9, 8)[-dims:], dtype=torch.float64, requires_grad=True)
    z = x.detach().clone().requires_grad_()
    y, expected = layer(x), back(z)
    torch.testing.assert_close(y, expected, **CLOSE)
    torch.testing.assert_close(layer(x[0]), expected[0], **CLOSE)
    g = torch.randn_like(y)
    y.backward(g)
    expected.backward(g)
    torch.testing.assert_close(x.grad, z.grad, **CLOSE)
    core = layer.weight_u.T @ back.weight.grad.flatten(1) @ layer.weight_vh.T
    torch.testing.assert_close(layer.weight_s.grad, core, **CLOSE)
    torch.testing.assert_close(layer.to_lowrank()(x), y, **CLOSE)


@pytest.mark.parametrize(("groups", "dense_is_cheaper"), [(1, False), (2, False), (4, True), (16, True)])
def test_groups_are_factored_while_it_pays(groups, dense_is_cheaper):
    """Vh is shared, so that every group costs its whole first convolution again."""
    layer = OIALRConv2d.from_dense(nn.Conv2d(16, 16, 3, groups=groups), 5)
    assert layer._dense_is_cheaper() == dense_is_cheaper
    assert (5 * (groups * layer.weight_vh.shape[1] + 16) >= 16 * layer.weight_vh.shape[1]) == dense_is_cheaper


def test_channels_last():
    layer = OIALRConv2d.from_dense(nn.Conv2d(8, 16, 3, padding=1), 3)
    x = torch.randn(2, 8, 6, 5)
    expected = layer(x)
    layer.to(memory_format=torch.channels_last)
    assert layer.weight_vh.is_contiguous()
    z = x.to(memory_format=torch.channels_last).requires_grad_()
    y = layer(z)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    y.sum().backward()
    assert z.grad.is_contiguous(memory_format=torch.channels_last)


def attached(kind):
    """A convolution that applies two attributes, as some libraries have it."""

    class Attached(kind):
        def forward(self, x):
            return self.activation(self.norm(super().forward(x)))

    return Attached


@every_conv
@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_norm_and_activation_come_after_every_padding(case, mode):
    """Public defect: other paddings than zeros returned before them."""
    kind, _, arguments, _ = LAYERS[case]
    source = attached(kind)(*arguments, dtype=torch.float64, padding=1, padding_mode=mode)
    norms = {"conv1d": nn.BatchNorm1d, "conv2d": nn.BatchNorm2d, "conv3d": nn.BatchNorm3d}
    source.norm, source.activation = norms[case](6, dtype=torch.float64), torch.relu
    layer, x = LAYERS[case][1].from_dense(source), images(case)
    torch.testing.assert_close(layer(x), source(x), **CLOSE)
    for refused in (layer.to_dense, layer.to_lowrank):
        with pytest.raises(ValueError, match="has a norm or an activation"):
            refused()


@every_conv
def test_attributes_of_an_ordinary_convolution_are_not_applied(case):
    source, x = dense(case), images(case)
    source.activation = "relu"
    torch.testing.assert_close(LAYERS[case][1].from_dense(source)(x), source(x), **CLOSE)


# ---- what is kept for the backward pass -----------------------------------------------------------------------------


def kept(layer, x):
    """Numbers that autograd keeps, without the tensors of the layer."""
    own = {t.untyped_storage().data_ptr() for t in (*layer.parameters(), *layer.buffers())}
    found = {}

    def pack(t):
        found[t.untyped_storage().data_ptr()] = t.numel()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = layer(x)
    return sum(n for address, n in found.items() if address not in own), y


def test_a_linear_layer_keeps_rank_numbers_a_row():
    layer = OIALRLinear(64, 48, 5)
    count, y = kept(layer, torch.randn(100, 64, requires_grad=True))
    assert y.requires_grad
    assert count <= 100 * 5 + 48 * 5  # and U S


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_convolution_keeps_its_intermediate_alone(dims, channels_last):
    kind, side = {2: (OIALRConv2d, 14), 3: (OIALRConv3d, 6)}[dims]
    layer = kind(32, 32, 3, 4, padding=1)
    x = torch.randn(2, 32, *(side,) * dims)
    if channels_last:
        x = x.to(memory_format=torch.channels_last if dims == 2 else torch.channels_last_3d)
    count, _ = kept(layer, x.requires_grad_())
    assert count <= 4 * x.numel() // 32 + 32 * 4
    assert count < x.numel() / 4


@pytest.mark.parametrize("case", ["conv2d", "conv3d"])
def test_second_derivatives_or_a_clear_error(case):
    layer, x = thin(case, 1, torch.float32), images(case, torch.float32).requires_grad_()

    def twice():
        (gradient,) = torch.autograd.grad(layer(x).square().sum(), layer.weight_s, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), x)[0]

    if case == "conv2d":
        with pytest.raises(RuntimeError, match=r"second derivatives need x.*torch\.func"):
            twice()
        return
    reference = layer.to_dense()
    gradient = twice()
    s = layer.weight_s.detach().clone().requires_grad_()
    weight = (layer.weight_u @ s @ layer.weight_vh).reshape(reference.weight.shape)
    y = nn.functional.conv3d(x, weight, layer.bias)
    (first,) = torch.autograd.grad(y.square().sum(), s, create_graph=True)
    torch.testing.assert_close(gradient, torch.autograd.grad(first.square().sum(), x)[0], rtol=1e-3, atol=1e-3)


def test_functional_hessian_of_a_convolution():
    layer, x = thin("conv2d", 1), images("conv2d")

    def loss(s):
        return torch.func.functional_call(layer, {"weight_s": s}, x).square().sum()

    hessian = torch.func.hessian(loss)(layer.weight_s.detach())
    basis = torch.func.functional_call(layer, {"weight_s": torch.ones(1, 1, dtype=torch.float64)}, x)
    shift = torch.func.functional_call(layer, {"weight_s": torch.zeros(1, 1, dtype=torch.float64)}, x)
    torch.testing.assert_close(hessian.flatten()[0], 2 * (basis - shift).square().sum().detach(), **CLOSE)


def test_x_without_a_gradient_gets_none():
    for case in ONE_WEIGHT:
        layer, x = thin(case), images(case)
        layer(x).sum().backward()
        assert x.grad is None
        assert layer.weight_s.grad.abs().max() > 0


# ---- types ----------------------------------------------------------------------------------------------------------


@every_layer
def test_construction_in_bfloat16(case):
    """Public defect: there is no decomposition of such types."""
    source = dense(case, torch.bfloat16)
    layer, x = LAYERS[case][1].from_dense(source), images(case, torch.bfloat16)
    assert layer(x).dtype is torch.bfloat16
    torch.testing.assert_close(layer(x), source(x), rtol=5e-2, atol=5e-2)
    assert_orthonormal(layer, 2e-2)
    assert type(layer).from_dense(source, 2).rank == 2


@every_layer
def test_autocast(case):
    layer, x = thin(case, 1, torch.float32), images(case, torch.float32)
    expected = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype is torch.bfloat16
    torch.testing.assert_close(y.float(), expected, rtol=2e-2, atol=5e-2)
    y.sum().backward()
    assert layer.weight_s.grad.dtype is torch.float32


@every_layer
def test_meta_device(case):
    kind = LAYERS[case][1]
    with torch.device("meta"):
        layer = kind.from_dense(dense(case), 2)
    assert all(t.is_meta for t in layer.state_dict().values())
    assert layer.rank == 2
    assert not layer.freeze()
    source = thin(case, 2)
    layer.to_empty(device="cpu").load_state_dict(source.state_dict())
    x = images(case)
    torch.testing.assert_close(layer(x), source(x), **CLOSE)


# ---- the copy for inference -----------------------------------------------------------------------------------------


@every_layer
@pytest.mark.parametrize("rank", [1, None])
def test_freeze(case, rank):
    layer, x = thin(case, rank).eval(), images(case)
    expected = layer(x).detach()
    assert layer.freeze()
    first, second = layer._frozen[2:]
    assert (first is None) == layer._dense_is_cheaper()
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected, **CLOSE)
        second.fill_(math.nan)
        assert layer(x).isnan().any()
    assert not layer(x).isnan().any()  # records gradients
    with torch.no_grad():
        layer.weight_vh.mul_(1)  # a basis is part of the copy
        assert not layer(x).isnan().any()
    layer.freeze()
    layer.cores()[0].resize_(1)
    assert layer._frozen is None


@pytest.mark.parametrize(
    "change", [lambda m: m.train(), lambda m: m.float(), lambda m: m.load_state_dict(m.state_dict())]
)
def test_freeze_is_dropped(change):
    layer = thin("tall").eval()
    layer.freeze()
    assert layer.eval()._frozen is not None
    assert copy.deepcopy(layer)._frozen is None
    change(layer)
    assert layer._frozen is None


# ---- two factors ----------------------------------------------------------------------------------------------------


@every_layer
def test_to_lowrank(case):
    layer, x = thin(case).eval(), images(case)
    layer.weight_s.requires_grad_(False)
    pair = layer.to_lowrank()
    expected = {"conv1d": nn.Sequential, "conv2d": LowRankConv2d, "conv3d": nn.Sequential}.get(case, LowRankLinear)
    assert type(pair) is expected
    assert not pair.training
    torch.testing.assert_close(pair(x), layer(x), **CLOSE)
    assert {name for name, p in pair.named_parameters() if p.requires_grad} in ({"bias"}, {"1.bias"})


# ---- cores ----------------------------------------------------------------------------------------------------------


@every_layer
def test_replacing_a_core(case):
    layer = thin(case, 3)
    core, parameter = layer.cores()[0], layer.weight_s
    parameter.grad = torch.ones_like(parameter)
    u, s, vh = core.u[:, :2], core.s.detach()[:2, :2], core.vh[:2]
    expected = u @ s @ vh
    core.replace_(u, s, vh)
    assert layer.weight_s is parameter
    assert (parameter.grad, core.rank, layer.rank) == (None, 2, 2)
    assert_storage_is_exact(layer)
    torch.testing.assert_close(core.dense(), expected, **CLOSE)
    torch.testing.assert_close(core.folded() @ core.vh, expected, **CLOSE)


def test_names_of_cores():
    shared = OIALRLinear(4, 4, 2)
    model = nn.ModuleDict({"a": nn.Sequential(shared, OIALRConv1d(4, 4, 1, 2)), "b": shared, "c": nn.Linear(4, 4)})
    assert list(lath.oialr_cores(model)) == ["a.0", "a.1"]
    assert lath.oialr_cores(model)["a.0"].module is shared
    assert list(lath.oialr_cores(shared)) == [""]


# ---- copies and checkpoints -----------------------------------------------------------------------------------------


@every_layer
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies(case, copied):
    layer, x = thin(case), images(case)
    twin = copied(layer)
    assert torch.equal(twin(x), layer(x))
    with torch.no_grad():
        twin.weight_s.zero_()
    assert layer.weight_s.abs().max() > 0
    assert twin.cores()[0].module is twin


@every_layer
@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_a_checkpoint_of_any_rank(case, assign, rank):
    source, layer = thin(case, rank), thin(case, 2)
    parameter = layer.weight_s
    parameter.grad = torch.ones_like(parameter)
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    layer.load_state_dict(torch.load(file, weights_only=True), assign=assign)
    assert layer.rank == rank
    assert (layer.weight_s is parameter) == (not assign)
    if rank != 2 and not assign:
        assert parameter.grad is None
    assert_storage_is_exact(layer)
    x = images(case)
    torch.testing.assert_close(layer(x), source(x), **CLOSE)
    assert layer.weight_s.requires_grad


@every_layer
def test_a_dense_checkpoint_is_factored(case):
    source, x = dense(case), images(case)
    layer, full = thin(case, 2), thin(case, None)
    state = source.state_dict()
    for made in (layer, full):
        made.load_state_dict(state)
    assert list(state) == ["weight", "bias"]
    torch.testing.assert_close(full(x), source(x), **CLOSE)
    torch.testing.assert_close(weight_of(layer), weight_of(type(layer).from_dense(source, 2)), **CLOSE)
    assert_orthonormal(layer)


def test_checkpoints_that_do_not_fit():
    layer = thin("tall", 2)
    before = copy.deepcopy(layer.state_dict())
    good = thin("tall", 3).state_dict()
    cases = [
        (
            dense("wide").state_dict(),
            r"size mismatch for weight: the checkpoint has \(6, 9\), the layer needs \(9, 6\)",
        ),
        ({"weight": torch.full((9, 6), math.nan), "bias": torch.zeros(9)}, "weight: the weight contains NaN"),
        (thin("wide", 2).state_dict(), "size mismatch for weight_u"),
        ({name: t for name, t in good.items() if name != "weight_vh"}, "Missing key.*weight_vh"),
        ({**good, "weight_s": torch.zeros(2, 3)}, "size mismatch for weight_s"),
        ({**good, "weight_s": torch.tensor(1.0)}, "size mismatch for weight_s"),
        (
            {
                "weight_u": torch.zeros(9, 7),
                "weight_s": torch.zeros(7, 7),
                "weight_vh": torch.zeros(7, 6),
                "bias": good["bias"],
            },
            "weight_s: rank is 7, expected at most 6",
        ),
    ]
    for state, message in cases:
        with pytest.raises(RuntimeError, match=f"(?s){message}"):
            layer.load_state_dict(state)
        assert layer.rank == 2
    assert layer.weight_s.shape == before["weight_s"].shape


def test_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    model, other = nn.Sequential(thin("tall", 3), nn.ReLU()), nn.Sequential(thin("tall", 1), nn.ReLU())
    safetensors.save_model(model, str(tmp_path / "model.safetensors"))
    other.load_state_dict(safetensors.load_file(str(tmp_path / "model.safetensors")))
    x = images("tall")
    assert torch.equal(model(x), other(x))


# ---- compilers ------------------------------------------------------------------------------------------------------


@every_layer
@pytest.mark.parametrize("rank", [1, None])
def test_compiled_without_breaks(case, rank):
    torch._dynamo.reset()
    layer, x = thin(case, rank, torch.float32), images(case, torch.float32)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    results = []
    for function in (layer, compiled):
        layer.zero_grad()
        y = function(x)
        y.square().sum().backward()
        results.append([y.detach(), layer.weight_s.grad.clone(), layer.bias.grad.clone()])
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)


def test_another_rank_compiles_once_again():
    torch._dynamo.reset()
    layer, graphs = OIALRLinear(24, 16, 12), []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled, x = torch.compile(layer, backend=backend, fullgraph=True), torch.randn(4, 24)
    for rank in (12, 12, 7, 7, 5):
        core = layer.cores()[0]
        if rank != core.rank:
            core.replace_(core.u[:, :rank], core.s.detach()[:rank, :rank], core.vh[:rank])
        torch.testing.assert_close(compiled(x), layer(x), rtol=1e-4, atol=1e-5)
    assert len(graphs) <= 3


@every_layer
def test_exported(case):
    layer, x = thin(case, 1, torch.float32).eval(), images(case, torch.float32)
    program = torch.export.export(layer, (x,))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), layer(x), rtol=1e-4, atol=1e-4)


# ---- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: OIALRLinear(4, 6, 0), ValueError, "OIALRLinear: rank is 0"),
        (lambda: OIALRLinear(4, 6, 5), ValueError, "OIALRLinear: rank is 5, expected at most 4, the smaller side"),
        (lambda: OIALRLinear(4, 6, 2.0), TypeError, r"OIALRLinear: rank is 2\.0, expected an int"),
        (lambda: OIALRLinear(-1, 6, 1), ValueError, "must not be negative"),
        (lambda: OIALRConv2d(4, 6, 3, 7), ValueError, "OIALRConv2d: rank is 7, expected at most 6"),
        (lambda: OIALRConv2d(4, 6, 3, 1, groups=3), ValueError, "OIALRConv2d: in_channels is 4, expected a multiple"),
        (lambda: OIALRConv3d(4, 6, 3, 1, stride=0), ValueError, r"OIALRConv3d: stride is \(0, 0, 0\)"),
        (lambda: OIALRConv1d(4, 6, (3, 3), 1), TypeError, r"OIALRConv1d: kernel_size is \(3, 3\), expected an int"),
        (lambda: OIALRConv1d(4, 6, 3, 1, padding="full"), ValueError, "OIALRConv1d: padding is 'full'"),
        (lambda: OIALRConv2d(4, 6, 3, 1, padding="same", stride=2), ValueError, "stride is .* 1 for padding 'same'"),
        (lambda: OIALRConv2d(4, 6, 3, 1, padding_mode="mirror"), ValueError, "padding_mode is 'mirror'"),
        (lambda: OIALRLinear.from_dense(nn.Conv2d(1, 1, 1)), TypeError, "module is Conv2d, expected torch.nn.Linear"),
        (lambda: OIALRConv1d.from_dense(nn.Conv2d(1, 1, 1)), TypeError, "module is Conv2d, expected torch.nn.Conv1d"),
        (lambda: OIALRLinear.from_dense(nn.Linear(3, 5), 4), ValueError, "rank is 4, expected at most 3"),
        (lambda: OIALRConv2d.from_dense(nn.Conv2d(1, 5, 2), 5), ValueError, "rank is 5, expected at most 4"),
    ],
)  # fmt: skip
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


@every_layer
def test_a_weight_without_values(case):
    source = dense(case)
    source.weight.data.flatten()[1] = math.nan
    before = dict(source.named_parameters())
    with pytest.raises(ValueError, match=r"from_dense: the weight contains NaN or infinity"):
        LAYERS[case][1].from_dense(source)
    assert {name: id(p) for name, p in source.named_parameters()} == {name: id(p) for name, p in before.items()}
