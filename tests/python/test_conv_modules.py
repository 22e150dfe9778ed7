# SPDX-License-Identifier: Apache-2.0
"""LowRankConv2d: parameters, initialization, factoring and merging, padding, checkpoints, and weights that change."""

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
from lath.factor import conv_break_even_rank, conv_factors, conv_matrix, merge_conv
from lath.nn import LowRankConv2d
from operator_cases import every_device
from oracles import DTYPES
from torch import nn
from torch.nn.functional import conv2d

pytestmark = every_device
MODES = ("separable", "pointwise")
every_mode = pytest.mark.parametrize("mode", MODES)
every_group = pytest.mark.parametrize("groups", [1, 2])
# stride, padding, dilation: of a 3 x 2 kernel
GEOMETRIES = [(1, 0, 1), (1, 1, 1), ((2, 1), (1, 2), (1, 3)), (2, "valid", (2, 1)), (1, "same", 1), (1, "same", 2)]
every_geometry = pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)


def make(mode="separable", groups=1, rank=3, geometry=(1, 1, 1), **others):
    stride, padding, dilation = geometry
    others = {"inner_bias": True, "dtype": torch.float64, **others}
    return LowRankConv2d(4, 6, (3, 2), rank, stride, padding, dilation, groups, mode=mode, **others)


def images(dtype=torch.float64, batch=2):
    return torch.randn(batch, 4, 9, 8, dtype=dtype)


def two_convolutions(layer):
    """The layer as users would write it by hand."""
    (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w) = layer.stride, layer.padding, layer.dilation
    first, second = (layer.stride, layer.padding, layer.dilation), ()
    if layer.mode == "separable":
        first, second = ((1, stride_w), (0, pad_w), (1, dilation_w)), ((stride_h, 1), (pad_h, 0), (dilation_h, 1))
    v, u = layer.weight_v, layer.weight_u
    kind = {"groups": layer.groups, "dtype": v.dtype}
    pair = nn.Sequential(
        nn.Conv2d(layer.in_channels, v.shape[0], v.shape[2:], *first, **kind),
        nn.Conv2d(v.shape[0], layer.out_channels, u.shape[2:], *second, **kind),
    )
    with torch.no_grad():
        for parameter, ours in zip(pair.parameters(), (v, layer.inner_bias, u, layer.bias), strict=True):
            parameter.copy_(ours)
    return pair


def assert_right(layer):
    """The layer computes what its parameters say now."""
    x = images(layer.weight_v.dtype)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), two_convolutions(layer)(x), rtol=1e-4, atol=1e-4)


# ---- parameters ---------------------------------------------------------------------------------------------------


@every_mode
@every_group
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("inner_bias", [False, True])
def test_parameters(mode, groups, bias, inner_bias):
    layer = make(mode, groups, bias=bias, inner_bias=inner_bias)
    shapes = {
        "weight_v": (groups * 3, 4 // groups, 1 if mode == "separable" else 3, 2),
        "weight_u": (6, 3, 3 if mode == "separable" else 1, 1),
    }
    shapes |= {"inner_bias": (groups * 3,)} if inner_bias else {}
    shapes |= {"bias": (6,)} if bias else {}
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == shapes
    assert list(layer.state_dict()) == list(shapes)
    assert (layer.bias is None) == (not bias)
    assert (layer.inner_bias is None) == (not inner_bias)


def test_attributes_are_those_of_conv2d():
    layer, dense = LowRankConv2d(4, 6, 3, 2, 2, 1), nn.Conv2d(4, 6, 3, 2, 1)
    for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"):
        assert getattr(layer, name) == getattr(dense, name), name
    assert layer.padding_mode == "zeros"
    assert (layer.rank, layer.mode) == (2, "separable")


@pytest.mark.cpu_only
def test_repr():
    text = (
        "LowRankConv2d(4, 6, kernel_size=(3, 3), rank=2, stride=(1, 1), padding=(1, 1), bias=True, inner_bias=False, "
        "mode=separable)"
    )
    assert repr(LowRankConv2d(4, 6, 3, 2, padding=1)) == text
    assert "groups=2" in repr(make(groups=2))
    assert "padding=same" in repr(make(geometry=(1, "same", 1)))
    assert "padding_mode=reflect" in repr(make(padding_mode="reflect"))


@pytest.mark.cpu_only
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"rank": 0}, ValueError, "rank is 0"),
        ({"rank": 2.0}, TypeError, r"rank is 2\.0"),
        ({"in_channels": -4}, ValueError, "in_channels -4 and out_channels 6 must not be negative"),
        ({"groups": 0}, ValueError, "groups is 0, expected at least 1"),
        ({"groups": 3}, ValueError, "in_channels is 4, expected a multiple of groups, 3"),
        ({"groups": 4}, ValueError, "out_channels is 6, expected a multiple of groups, 4"),
        ({"kernel_size": 0}, ValueError, r"kernel_size is \(0, 0\), expected at least 1"),
        ({"stride": (1, 0)}, ValueError, r"stride is \(1, 0\), expected at least 1"),
        ({"dilation": 0}, ValueError, r"dilation is \(0, 0\), expected at least 1"),
        ({"padding": -1}, ValueError, r"padding is \(-1, -1\), expected 0 or more"),
        ({"padding": "full"}, ValueError, "padding is 'full', expected numbers, 'same' or 'valid'"),
        ({"padding": "same", "stride": 2}, ValueError, r"stride is \(2, 2\), expected 1 for padding 'same'"),
        ({"mode": "winograd"}, ValueError, "mode is 'winograd', expected one of"),
        ({"padding_mode": "mirror"}, ValueError, "padding_mode is 'mirror', expected one of"),
        ({"stride": (1, 2, 3)}, TypeError, r"stride is \(1, 2, 3\), expected an int or two of them"),
    ],
)
def test_bad_arguments(changes, error, message):
    with pytest.raises(error, match=message):
        LowRankConv2d(**{"in_channels": 4, "out_channels": 6, "kernel_size": 3, "rank": 2, **changes})


@every_mode
@every_group
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(mode, groups, dtype):
    layer = make(mode, groups, dtype=dtype)
    x = images(dtype)
    y = layer(x)
    assert y.dtype == dtype
    tolerance = {"rtol": 0.05, "atol": 0.05} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(y.double(), copy.deepcopy(layer).double()(x.double()), **tolerance)


@pytest.mark.cpu_only
def test_half_is_refused_at_the_call():
    with pytest.raises(RuntimeError, match=r"lath::lowrank_conv2d\w*: x: got dtype torch.float16, expected"):
        make().half()(images().half())


def test_no_channels():
    assert LowRankConv2d(4, 0, 3, 2)(torch.randn(2, 4, 5, 5)).shape == (2, 0, 3, 3)
    y = LowRankConv2d(0, 4, 3, 2, dtype=torch.float32)(torch.randn(2, 0, 5, 5))
    assert y.shape == (2, 4, 3, 3)


# ---- initialization -----------------------------------------------------------------------------------------------


@every_mode
def test_default_initialization_is_that_of_two_convolutions(mode):
    torch.manual_seed(3)
    layer = make(mode)
    torch.manual_seed(3)
    pair = nn.Sequential(
        nn.Conv2d(4, 3, layer.weight_v.shape[2:], dtype=torch.float64),
        nn.Conv2d(3, 6, layer.weight_u.shape[2:], dtype=torch.float64),
    )
    parameters = (layer.weight_v, layer.inner_bias, layer.weight_u, layer.bias)
    for ours, theirs in zip(parameters, pair.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


@every_mode
@every_group
def test_spectral_initialization_has_the_dense_scale(mode, groups):
    torch.manual_seed(3)
    dense = nn.Conv2d(4, 6, (3, 2), groups=groups, dtype=torch.float64)
    layer = make(mode, groups, rank=12)
    torch.manual_seed(3)
    layer.reset_parameters("spectral")
    torch.testing.assert_close(merge_conv(layer.weight_v, layer.weight_u, groups), dense.weight)
    torch.testing.assert_close(layer.bias, dense.bias)
    assert layer.inner_bias.count_nonzero() == 0


def test_unknown_initialization():
    with pytest.raises(ValueError, match=r"LowRankConv2d\.reset_parameters: init is 'orthogonal'"):
        make().reset_parameters("orthogonal")


# ---- factoring and merging ----------------------------------------------------------------------------------------


@given(
    *[st.integers(1, 6)] * 4,
    st.integers(1, 3),
    st.integers(1, 30),
    st.sampled_from(MODES),
)
def test_truncation_error_is_that_of_the_singular_values_left_out(n, m, kernel_h, kernel_w, groups, rank, mode):
    """Eckart and Young, for every group: no approximation of that rank is closer."""
    dense = nn.Conv2d(groups * n, groups * m, (kernel_h, kernel_w), groups=groups, dtype=torch.float64)
    layer = LowRankConv2d.from_dense(dense, rank, mode=mode)
    error = (layer.merged()[0] - dense.weight).norm()
    left_out = torch.linalg.svdvals(conv_matrix(dense.weight.detach(), mode, groups))[:, rank:].square().sum().sqrt()
    torch.testing.assert_close(error.detach(), left_out, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(layer.weight_u.norm(), layer.weight_v.norm())


def test_matrix_of_a_separable_layer_pairs_taps_with_their_own_channels():
    """Row (o, i), column (c, j): the vertical taps belong to the output, the horizontal ones to the input."""
    weight = torch.arange(5 * 4 * 3 * 2).reshape(5, 4, 3, 2)
    matrix = conv_matrix(weight, "separable")
    assert matrix.shape == (1, 15, 8)
    for o, c, i, j in ((0, 0, 0, 0), (4, 3, 2, 1), (1, 2, 0, 1), (3, 0, 2, 0)):
        assert matrix[0, o * 3 + i, c * 2 + j] == weight[o, c, i, j]
    assert torch.equal(conv_matrix(weight, "pointwise")[0], weight.reshape(5, 24))


@every_mode
@every_group
def test_factors_multiply_to_the_matrix(mode, groups):
    layer = make(mode, groups)
    matrix = conv_matrix(merge_conv(layer.weight_v, layer.weight_u, groups), mode, groups)
    v, u = torch.randn(groups, 3, matrix.shape[2]), torch.randn(groups, matrix.shape[1], 3)
    weight_v, weight_u = conv_factors(v, u, mode, (3, 2))
    assert weight_v.shape == layer.weight_v.shape
    assert weight_u.shape == layer.weight_u.shape
    torch.testing.assert_close(conv_matrix(merge_conv(weight_v, weight_u, groups), mode, groups), u @ v)


@every_mode
@every_group
@every_geometry
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_full_rank_is_the_dense_layer(mode, groups, geometry, padding_mode):
    dense = nn.Conv2d(4, 6, (3, 2), *geometry, groups, padding_mode=padding_mode, dtype=torch.float64)
    layer = LowRankConv2d.from_dense(dense, 12, mode=mode, inner_bias=True)
    x = images()
    torch.testing.assert_close(layer(x), dense(x))
    torch.testing.assert_close(layer(x[0]), dense(x[0]))


@every_mode
@every_group
@every_geometry
@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
@pytest.mark.parametrize(("bias", "inner_bias"), [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_to_dense_is_the_same_function(mode, groups, geometry, padding_mode, bias, inner_bias):
    layer = make(mode, groups, 3, geometry, bias=bias, inner_bias=inner_bias, padding_mode=padding_mode).eval()
    padded = padding_mode == "zeros" and geometry[1] not in (0, "valid")
    if inner_bias and mode == "separable" and padded:
        with pytest.raises(ValueError, match="no dense convolution has the border effect of an inner bias"):
            layer.to_dense()
        return
    before = copy.deepcopy(layer.state_dict())
    dense = layer.to_dense()
    assert type(dense) is nn.Conv2d
    assert (dense.bias is None) == (not bias and not inner_bias)
    assert not dense.training
    x = images()
    torch.testing.assert_close(dense(x), layer(x))
    assert all(torch.equal(before[name], t) for name, t in layer.state_dict().items())
    again = LowRankConv2d.from_dense(dense, 3, mode=mode).to_dense()
    torch.testing.assert_close(again.weight, dense.weight)


def test_inner_bias_stops_at_the_vertical_padding():
    """Rows whose window leaves the image lack the taps that meet padding."""
    layer = LowRankConv2d(2, 2, 3, 1, padding=1, bias=False, inner_bias=True, dtype=torch.float64)
    with torch.no_grad():
        layer.weight_v.zero_()
    y = layer(torch.randn(1, 2, 4, 4, dtype=torch.float64))[0, :, :, 0].detach()
    taps = (layer.weight_u[:, 0, :, 0] * layer.inner_bias).detach()
    torch.testing.assert_close(y[:, 1], taps.sum(1))
    torch.testing.assert_close(y[:, 0], taps[:, 1:].sum(1))
    torch.testing.assert_close(y[:, 3], taps[:, :2].sum(1))


@every_mode
def test_from_dense_carries_everything_over(mode):
    dense = nn.Conv2d(4, 6, 3, 2, 1, 2, 2, padding_mode="reflect", dtype=torch.bfloat16).eval()
    dense.weight.requires_grad_(False)
    layer = LowRankConv2d.from_dense(dense, 2, inner_bias=True, mode=mode)
    assert not layer.training
    assert layer.weight_v.dtype == torch.bfloat16
    required = {name: p.requires_grad for name, p in layer.named_parameters()}
    assert required == {"weight_v": False, "weight_u": False, "inner_bias": False, "bias": True}
    assert layer.bias.data_ptr() != dense.bias.data_ptr()
    back = LowRankConv2d.from_dense(dense, 2, mode=mode).to_dense()
    assert back.weight.requires_grad is False
    assert repr(back) == repr(dense)


def test_from_dense_with_fresh_factors():
    dense = nn.Conv2d(4, 6, 3)
    torch.manual_seed(1)
    layer = LowRankConv2d.from_dense(dense, 2, init="fresh")
    torch.manual_seed(1)
    assert torch.equal(layer.weight_v, LowRankConv2d(4, 6, 3, 2).weight_v)


def test_from_dense_with_a_decomposition_at_hand():
    dense = nn.Conv2d(4, 6, 3)
    known = lath.factor.Decomposition.of(conv_matrix(dense.weight, "pointwise"), "test")
    layer = LowRankConv2d.from_dense(dense, 2, mode="pointwise", decomposition=known)
    assert torch.equal(layer.weight_v, LowRankConv2d.from_dense(dense, 2, mode="pointwise").weight_v)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_from_dense_refuses_weights_without_values(value):
    dense = nn.Conv2d(4, 6, 3)
    with torch.no_grad():
        dense.weight[1, 2, 0, 1] = value
    with pytest.raises(ValueError, match="contains NaN or infinity"):
        LowRankConv2d.from_dense(dense, 2)


def test_from_dense_refuses_other_arguments():
    with pytest.raises(TypeError, match=r"LowRankConv2d.from_dense: module is Linear, expected torch.nn.Conv2d"):
        LowRankConv2d.from_dense(nn.Linear(3, 3), 2)
    with pytest.raises(ValueError, match="init is 'qr'"):
        LowRankConv2d.from_dense(nn.Conv2d(3, 3, 3), 2, init="qr")
    with pytest.raises(ValueError, match="mode is 'depthwise'"):
        LowRankConv2d.from_dense(nn.Conv2d(3, 3, 3), 2, mode="depthwise")
    with pytest.raises(ValueError, match="rank is 0"):
        LowRankConv2d.from_dense(nn.Conv2d(3, 3, 3), 0)


@every_mode
def test_gauge(mode):
    """(U G, G^-1 V) is the same layer for every invertible G."""
    layer = make(mode, inner_bias=False)
    x = images()
    y = layer(x)
    gauge = torch.randn(3, 3, dtype=torch.float64) + 4 * torch.eye(3)
    with torch.no_grad():
        layer.weight_u.copy_(torch.einsum("orij,rs->osij", layer.weight_u, gauge))
        layer.weight_v.copy_(torch.einsum("sr,rcij->scij", gauge.inverse(), layer.weight_v))
    torch.testing.assert_close(layer(x), y)


@given(
    *[st.integers(1, 20)] * 2, *[st.integers(1, 4)] * 2, st.integers(1, 3), st.integers(1, 2), st.sampled_from(MODES)
)
def test_break_even_rank_is_the_last_that_saves(n, m, kernel_h, kernel_w, groups, stride, mode):
    """Multiply-adds of a layer whose output has one pixel: weights times the pixels that each is applied to."""
    rank = conv_break_even_rank(groups * n, groups * m, (kernel_h, kernel_w), mode, groups, (stride, stride))

    def saves(rank):
        options = {"stride": stride, "groups": groups, "mode": mode, "device": "meta"}
        layer = LowRankConv2d(groups * n, groups * m, (kernel_h, kernel_w), rank, **options)
        rows = stride if mode == "separable" else 1  # of the intermediate, for each row of the output
        return layer.weight_v.numel() * rows + layer.weight_u.numel() < groups * n * m * kernel_h * kernel_w

    assert rank == 0 or saves(rank)
    assert not saves(rank + 1)


# ---- inputs -------------------------------------------------------------------------------------------------------


@every_mode
@every_group
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_against_two_convolutions(mode, groups, memory_format):
    layer = make(mode, groups, geometry=((2, 1), (1, 2), (1, 3)), dtype=torch.float32)
    pair = two_convolutions(layer)
    for batch in (1, 3):
        x = images(torch.float32, batch).to(memory_format=memory_format)
        y = layer(x)
        torch.testing.assert_close(y, pair(x), rtol=1e-4, atol=1e-5)
        assert y.is_contiguous(memory_format=memory_format)


def test_unbatched_input():
    layer = make()
    x = images()
    torch.testing.assert_close(layer(x[0]), layer(x)[0])
    with pytest.raises(RuntimeError, match=r"x: got shape \(9, 8\), expected \(batch, in_channels, height, width\)"):
        layer(x[0, 0])


def test_channels_last_model():
    layer = make(dtype=torch.float32)
    weights = layer.weight_v, layer.weight_u
    layer.to(memory_format=torch.channels_last)
    for name, weight in zip(("weight_v", "weight_u"), weights, strict=True):
        assert getattr(layer, name) is weight
        assert weight.is_contiguous()  # as the kernels read them
    x = images(torch.float32).to(memory_format=torch.channels_last)
    y = layer(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    y.sum().backward()
    assert_right(layer)


def test_image_smaller_than_the_kernel():
    with pytest.raises(RuntimeError, match=r"x: got shape \(2, 4, 1, 8\), expected at least 3 x 2 pixels"):
        make(geometry=(1, 0, 1))(torch.randn(2, 4, 1, 8, dtype=torch.float64))


def test_geometry_that_is_changed_later():
    layer = make(dtype=torch.float32)
    layer.stride, layer.dilation, layer.padding = (2, 2), (2, 1), (2, 0)
    assert_right(layer)


# ---- weights that change ------------------------------------------------------------------------------------------


def write_data(layer):
    layer.weight_v.data = torch.randn_like(layer.weight_v)


def write_numpy(layer):
    if layer.weight_v.is_cuda:
        pytest.skip("numpy sees main memory only")
    layer.weight_v.detach().numpy()[:] = 0.5


def write_optimizer(layer):
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    layer(images(torch.float32)).square().mean().backward()
    optimizer.step()


def write_checkpoint(layer):
    layer.load_state_dict(make(rank=layer.rank, dtype=torch.float32, mode=layer.mode).state_dict())


def write_parameter(layer):
    layer.bias = nn.Parameter(torch.randn(6))


COUNTED_WRITES = [write_data, write_optimizer, write_checkpoint, write_parameter]


@pytest.mark.parametrize("write", [*COUNTED_WRITES, write_numpy])
def test_every_write_is_seen(write):
    layer = make(dtype=torch.float32)
    assert_right(layer)
    write(layer)
    assert_right(layer)


def frozen_layer(**changes):
    """Above break-even, and without the border effect of an inner bias."""
    return make(**{"mode": "pointwise", "rank": 12, "dtype": torch.float32, **changes}).eval()


@pytest.mark.parametrize("write", COUNTED_WRITES)
def test_counted_writes_are_seen_by_a_frozen_layer(write):
    layer = frozen_layer()
    assert layer.freeze()
    write(layer)
    assert_right(layer)


@every_mode
@every_geometry
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_freeze_serves_inference_only(mode, geometry, padding_mode):
    layer = frozen_layer(mode=mode, geometry=geometry, padding_mode=padding_mode, inner_bias=mode == "pointwise")
    x = images(torch.float32)
    expected = layer(x).detach()
    assert layer.freeze()
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
        layer._frozen[2].fill_(math.nan)  # whether calls go through the merged copy
        assert layer(x).isnan().any()
    assert not layer(x).isnan().any()  # records gradients, so takes the factors
    layer.unfreeze()
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected)


def test_freeze_keeps_nothing_below_break_even_or_at_a_border():
    assert not frozen_layer(rank=4).freeze()  # 4 (4 * 6 + 6) < 144 <= 5 (4 * 6 + 6)
    assert frozen_layer(rank=5).freeze()
    assert not frozen_layer(mode="separable").freeze()
    assert frozen_layer(mode="separable", geometry=(1, 0, 1)).freeze()


@every_mode
def test_merged_weight_is_contiguous(mode):
    weight, _ = make(mode=mode, inner_bias=False).merged()
    assert weight.is_contiguous()


def test_freeze_of_a_model():
    model = nn.Sequential(frozen_layer(rank=5), make(dtype=torch.float32)).eval()
    assert lath.freeze(model) == ["0"]
    lath.unfreeze(model)
    assert model[0]._frozen is None


@pytest.mark.parametrize(
    "change", [lambda m: m.train(), lambda m: m.double(), lambda m: m.load_state_dict(m.state_dict())]
)
def test_freeze_is_dropped(change):
    layer = frozen_layer()
    layer.freeze()
    change(layer)
    assert layer._frozen is None


# ---- copies and checkpoints ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "copy_of", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_copies(copy_of):
    layer = frozen_layer()
    layer.freeze()
    twin = copy_of(layer)
    assert twin._frozen is None
    x = images(torch.float32)
    assert torch.equal(twin(x), layer(x))
    with torch.no_grad():
        twin.weight_v.zero_()
    assert_right(layer)
    assert_right(twin)


def test_torch_save_with_weights_only():
    layer, other = make(), make()
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.weight_v, layer.weight_v)


def test_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    model, other = (nn.Sequential(make()) for _ in range(2))
    safetensors.save_model(model, str(tmp_path / "model.safetensors"))
    safetensors.load_model(other, str(tmp_path / "model.safetensors"))
    x = images()
    assert torch.equal(model(x), other(x))


@pytest.mark.cpu_only
@every_mode
def test_meta_device(mode):
    layer = make(mode, device="meta", dtype=torch.float32)
    assert layer(images(torch.float32).to("meta")).shape == (2, 6, 9, 9)
    layer.reset_parameters("spectral")
    layer.to_empty(device="cpu").load_state_dict(make(mode, dtype=torch.float32).state_dict())
    assert_right(layer)
    shell = LowRankConv2d.from_dense(nn.Conv2d(4, 6, 3, device="meta"), 12, mode=mode)
    dense = nn.Conv2d(4, 6, 3)
    shell.load_state_dict(dense.state_dict(), assign=True)
    x = images(torch.float32)
    torch.testing.assert_close(shell(x), dense(x), rtol=1e-4, atol=1e-5)


@every_mode
@every_group
@pytest.mark.parametrize("inner_bias", [False, True])
def test_dense_checkpoint_is_factored(mode, groups, inner_bias):
    dense = nn.Conv2d(4, 6, (3, 2), padding=1, groups=groups, dtype=torch.float64)
    model = nn.Sequential(make(mode, groups, rank=12, inner_bias=inner_bias))
    checkpoint = nn.Sequential(dense).state_dict()
    model.load_state_dict(checkpoint)
    assert set(checkpoint) == {"0.weight", "0.bias"}
    torch.testing.assert_close(model(x := images()), dense(x))


def test_dense_checkpoint_that_does_not_fit():
    layer = make()
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(RuntimeError, match=r"the checkpoint has \(6, 4, 3, 3\), the layer needs \(6, 4, 3, 2\)"):
        layer.load_state_dict(nn.Conv2d(4, 6, 3).state_dict())
    with pytest.raises(RuntimeError, match="contains NaN"):
        layer.load_state_dict({"weight": torch.full((6, 4, 3, 2), math.nan), "bias": torch.zeros(6)})
    assert all(torch.equal(before[name], t) for name, t in layer.state_dict().items())


class Pair(nn.Module):
    """The layer of the public low-rank training code."""

    def __init__(self, bias, padding=1):
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(4, 3, (1, 2), padding=(0, padding), bias=bias, dtype=torch.float64),
            nn.Conv2d(3, 6, (3, 1), padding=(padding, 0), bias=bias, dtype=torch.float64),
        )

    def forward(self, x):
        return self.conv(x)


@pytest.mark.parametrize(
    ("bias", "inner_bias", "padding"), [(True, True, 1), (True, False, 0), (False, False, 1), (True, True, 0)]
)
def test_checkpoint_of_two_convolutions(bias, inner_bias, padding):
    source, layer = Pair(bias, padding), make(bias=bias, inner_bias=inner_bias, geometry=(1, padding, 1))
    layer.load_state_dict(source.state_dict())
    torch.testing.assert_close(layer(x := images()), source(x))


def test_checkpoint_with_an_inner_bias_that_the_layer_cannot_express():
    with pytest.raises(RuntimeError, match=r"conv\.0\.bias: .*no dense convolution has the border effect"):
        make(inner_bias=False).load_state_dict(Pair(True).state_dict())


# ---- training -----------------------------------------------------------------------------------------------------


@every_mode
def test_training_equals_two_convolutions(mode):
    layer = make(mode, geometry=(1, (1, 1), 1))
    pair = two_convolutions(layer)
    x, target = images(), torch.randn(2, 6, 9, 9, dtype=torch.float64)
    for model in (pair, layer):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
        for _ in range(10):
            optimizer.zero_grad()
            (model(x) - target).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(layer(x), pair(x))


def test_inference_mode_then_training():
    layer = make(dtype=torch.float32)
    x = images(torch.float32)
    with torch.inference_mode():
        assert layer(x).is_inference()
    layer(x).sum().backward()
    assert layer.weight_v.grad is not None


def test_parametrized_weight():
    layer = make(dtype=torch.float32)
    nn.utils.parametrizations.weight_norm(layer, "weight_v")
    expected = conv2d(
        conv2d(x := images(torch.float32), layer.weight_v, layer.inner_bias, padding=(0, 1)),
        layer.weight_u,
        layer.bias,
        padding=(1, 0),
    )
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
