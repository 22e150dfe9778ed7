# SPDX-License-Identifier: Apache-2.0
"""LowRankLinear: parameters, initialization, factoring and merging, checkpoints, and weights that change."""

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
from lath.nn import LowRankLinear
from operator_cases import every_device
from oracles import DTYPES, assert_close_lowrank
from torch import nn

pytestmark = every_device


def expected(layer, x):
    return x.double() @ dense_weight(layer).T + dense_bias(layer)


def dense_weight(layer):
    return layer.weight_u.detach().double() @ layer.weight_v.detach().double()


def dense_bias(layer):
    bias = torch.zeros(layer.out_features, dtype=torch.float64)
    if layer.bias is not None:
        bias += layer.bias.detach().double()
    if layer.inner_bias is not None:
        bias += layer.weight_u.detach().double() @ layer.inner_bias.detach().double()
    return bias


def assert_right(layer, rows=5):
    """The layer computes what its parameters say now."""
    x = torch.randn(rows, layer.in_features, dtype=layer.weight_v.dtype)
    with torch.no_grad():
        torch.testing.assert_close(layer(x).double(), expected(layer, x), rtol=1e-4, atol=1e-4)


# ---- parameters ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("inner_bias", [False, True])
def test_parameters(bias, inner_bias):
    layer = LowRankLinear(7, 5, 3, bias, inner_bias)
    shapes = {"weight_v": (3, 7), "weight_u": (5, 3)}
    shapes |= {"inner_bias": (3,)} if inner_bias else {}
    shapes |= {"bias": (5,)} if bias else {}
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == shapes
    assert list(layer.state_dict()) == list(shapes)
    assert sum(p.numel() for p in layer.parameters()) == 3 * (7 + 5) + 5 * bias + 3 * inner_bias
    assert (layer.bias is None) == (not bias)
    assert (layer.inner_bias is None) == (not inner_bias)
    assert_right(layer)


@pytest.mark.cpu_only
def test_repr():
    text = "LowRankLinear(in_features=7, out_features=5, rank=3, bias=True, inner_bias=False)"
    assert repr(LowRankLinear(7, 5, 3)) == text


@pytest.mark.cpu_only
@pytest.mark.parametrize(("rank", "error"), [(0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError)])
def test_bad_rank(rank, error):
    with pytest.raises(error, match=f"rank is {rank!r}"):
        LowRankLinear(4, 4, rank)


@pytest.mark.cpu_only
def test_bad_sizes():
    with pytest.raises(ValueError, match="must not be negative"):
        LowRankLinear(-1, 4, 2)


@pytest.mark.parametrize(
    ("n", "r", "m"), [(1, 1, 1), (1, 3, 5), (5, 3, 1), (6, 9, 4), (0, 2, 3), (3, 2, 0), (33, 1, 17)]
)
def test_odd_sizes(n, r, m):
    layer = LowRankLinear(n, m, r, inner_bias=True)
    assert_right(layer)
    assert_right(layer, rows=1)
    assert layer(torch.randn(0, n)).shape == (0, m)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype):
    layer = LowRankLinear(7, 5, 3, inner_bias=True, dtype=dtype)
    x = torch.randn(4, 7, dtype=dtype)
    assert layer(x).dtype == dtype
    assert_close_lowrank(layer(x), x, layer.weight_v, layer.weight_u, layer.bias, layer.inner_bias)


@pytest.mark.cpu_only
def test_half_is_refused_at_the_call():
    layer = LowRankLinear(7, 5, 3).half()
    with pytest.raises(
        RuntimeError, match=r"lath::lowrank_linear\w*: x: got dtype torch.float16, expected torch.float32"
    ):
        layer(torch.randn(2, 7).half())


# ---- initialization -----------------------------------------------------------------------------------------------


def test_default_initialization_is_that_of_two_linear_layers():
    torch.manual_seed(3)
    pair = nn.Sequential(nn.Linear(7, 3), nn.Linear(3, 5))
    torch.manual_seed(3)
    layer = LowRankLinear(7, 5, 3, inner_bias=True)
    for ours, theirs in zip(
        (layer.weight_v, layer.inner_bias, layer.weight_u, layer.bias), pair.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_spectral_initialization_has_the_dense_scale():
    torch.manual_seed(3)
    dense = nn.Linear(30, 20)
    layer = LowRankLinear(30, 20, 20, inner_bias=True)
    torch.manual_seed(3)
    layer.reset_parameters("spectral")
    torch.testing.assert_close(dense_weight(layer), dense.weight.detach().double(), rtol=1e-4, atol=1e-5)
    assert torch.equal(layer.bias, dense.bias)
    assert layer.inner_bias.count_nonzero() == 0


def test_unknown_initialization():
    with pytest.raises(ValueError, match="init is 'orthogonal'"):
        LowRankLinear(4, 4, 2).reset_parameters("orthogonal")


# ---- factoring and merging ----------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 50))
def test_truncation_error_is_that_of_the_singular_values_left_out(n, m, rank):
    """Eckart and Young: no approximation of that rank is closer."""
    dense = nn.Linear(n, m, dtype=torch.float64)
    layer = LowRankLinear.from_dense(dense, rank)
    error = (dense_weight(layer) - dense.weight).norm()
    left_out = torch.linalg.svdvals(dense.weight.detach())[rank:].square().sum().sqrt()
    torch.testing.assert_close(error.detach(), left_out, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(layer.weight_u.norm(), layer.weight_v.norm())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("inner_bias", [False, True])
def test_to_dense_is_the_same_function(bias, inner_bias):
    layer = LowRankLinear(7, 5, 3, bias, inner_bias, dtype=torch.float64).eval()
    before = copy.deepcopy(layer.state_dict())
    dense = layer.to_dense()
    assert type(dense) is nn.Linear
    assert (dense.bias is None) == (not bias and not inner_bias)
    assert not dense.training
    x = torch.randn(4, 7, dtype=torch.float64)
    torch.testing.assert_close(dense(x), layer(x))
    assert all(torch.equal(before[name], t) for name, t in layer.state_dict().items())
    again = LowRankLinear.from_dense(dense, 3).to_dense()
    torch.testing.assert_close(again.weight, dense.weight)


def test_from_dense_carries_everything_over():
    dense = nn.Linear(7, 5, dtype=torch.bfloat16).eval()
    dense.weight.requires_grad_(False)
    layer = LowRankLinear.from_dense(dense, 2, inner_bias=True)
    assert not layer.training
    assert layer.weight_v.dtype == torch.bfloat16
    required = {name: p.requires_grad for name, p in layer.named_parameters()}
    assert required == {"weight_v": False, "weight_u": False, "inner_bias": False, "bias": True}
    assert layer.bias.data_ptr() != dense.bias.data_ptr()
    assert layer.to_dense().weight.requires_grad is False


def test_from_dense_with_fresh_factors():
    dense = nn.Linear(7, 5)
    torch.manual_seed(1)
    layer = LowRankLinear.from_dense(dense, 2, init="fresh")
    torch.manual_seed(1)
    assert torch.equal(layer.weight_v, LowRankLinear(7, 5, 2).weight_v)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_from_dense_refuses_weights_without_values(value):
    dense = nn.Linear(7, 5)
    with torch.no_grad():
        dense.weight[1, 2] = value
    with pytest.raises(ValueError, match="contains NaN or infinity"):
        LowRankLinear.from_dense(dense, 2)


def test_from_dense_refuses_other_arguments():
    with pytest.raises(TypeError, match=r"module is Conv2d, expected torch.nn.Linear"):
        LowRankLinear.from_dense(nn.Conv2d(1, 1, 1), 2)
    with pytest.raises(ValueError, match="init is 'qr'"):
        LowRankLinear.from_dense(nn.Linear(3, 3), 2, init="qr")
    with pytest.raises(ValueError, match="rank is 0"):
        LowRankLinear.from_dense(nn.Linear(3, 3), 0)


def test_gauge():
    """(U G, G^-1 V) is the same layer for every invertible G."""
    layer = LowRankLinear(9, 8, 4, dtype=torch.float64)
    x = torch.randn(6, 9, dtype=torch.float64)
    y = layer(x)
    gauge = torch.randn(4, 4, dtype=torch.float64) + 4 * torch.eye(4)
    with torch.no_grad():
        layer.weight_u.copy_(layer.weight_u @ gauge)
        layer.weight_v.copy_(torch.linalg.solve(gauge, layer.weight_v))
    torch.testing.assert_close(layer(x), y)


# ---- weights that change ------------------------------------------------------------------------------------------


def write_data(layer):
    layer.weight_v.data = torch.randn(3, 7)


def write_in_data(layer):
    layer.weight_u.data.mul_(-2)


def write_numpy(layer):
    if layer.weight_v.is_cuda:
        pytest.skip("numpy sees main memory only")
    layer.weight_v.detach().numpy()[:] = 0.5


def write_optimizer(layer):
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    layer(torch.randn(4, 7)).square().sum().backward()
    optimizer.step()


def write_checkpoint(layer):
    layer.load_state_dict(LowRankLinear(7, 5, 3, inner_bias=True).state_dict())


def write_assigned_checkpoint(layer):
    layer.load_state_dict(LowRankLinear(7, 5, 3, inner_bias=True).state_dict(), assign=True)


def write_parameter(layer):
    layer.bias = nn.Parameter(torch.randn(5))


def write_average(layer):
    torch._foreach_lerp_(list(layer.parameters()), [torch.randn_like(p) for p in layer.parameters()], 0.5)


COUNTED_WRITES = [write_data, write_optimizer, write_checkpoint, write_assigned_checkpoint, write_parameter]


@pytest.mark.parametrize("write", [*COUNTED_WRITES, write_in_data, write_numpy, write_average])
def test_every_write_is_seen(write):
    layer = LowRankLinear(7, 5, 3, inner_bias=True)
    assert_right(layer)
    with torch.no_grad() if write is write_average else torch.enable_grad():
        write(layer)
    assert_right(layer)


@pytest.mark.parametrize("write", COUNTED_WRITES)
def test_counted_writes_are_seen_by_a_frozen_layer(write):
    layer = LowRankLinear(7, 5, 3, inner_bias=True).eval()
    assert layer.freeze()
    write(layer)
    assert_right(layer)


@pytest.mark.parametrize("write", [write_in_data, write_numpy])
def test_freezing_again_sees_uncounted_writes(write):
    layer = LowRankLinear(7, 5, 3, inner_bias=True).eval()
    layer.freeze()
    write(layer)
    layer.freeze()
    assert_right(layer)


def frozen_weight_is_used(layer):
    """Whether calls go through the merged copy: spoil the copy and see."""
    layer._frozen[2].fill_(math.nan)
    with torch.no_grad():
        return bool(layer(torch.randn(2, layer.in_features)).isnan().any())


def test_freeze_serves_inference_only():
    layer = LowRankLinear(7, 5, 3).eval()
    assert layer.freeze()
    assert frozen_weight_is_used(layer)
    assert not layer(torch.randn(2, 7)).isnan().any()  # records gradients, so takes the factors
    layer.unfreeze()
    assert_right(layer)


def test_freeze_keeps_nothing_below_break_even():
    layer = LowRankLinear(7, 5, 2).eval()  # 2 * 12 < 35 <= 3 * 12
    assert not layer.freeze()
    assert layer._frozen is None


@pytest.mark.parametrize(
    "change", [lambda m: m.train(), lambda m: m.double().float(), lambda m: m.load_state_dict(m.state_dict())]
)
def test_freeze_is_dropped(change):
    layer = LowRankLinear(7, 5, 3).eval()
    layer.freeze()
    change(layer)
    assert layer._frozen is None


def test_freeze_survives_eval_and_is_not_copied():
    layer = LowRankLinear(7, 5, 3).eval()
    layer.freeze()
    assert layer.eval()._frozen is not None
    assert copy.deepcopy(layer)._frozen is None
    assert pickle.loads(pickle.dumps(layer))._frozen is None


def test_freeze_of_a_model():
    model = nn.Sequential(LowRankLinear(7, 5, 3), LowRankLinear(5, 5, 1)).eval()
    assert lath.freeze(model) == ["0"]
    lath.unfreeze(model)
    assert model[0]._frozen is None


def test_frozen_layer_under_functional_call():
    layer = LowRankLinear(7, 5, 3).eval()
    layer.freeze()
    other = {name: torch.randn_like(p) for name, p in layer.named_parameters()}
    x = torch.randn(4, 7)
    with torch.no_grad():
        y = torch.func.functional_call(layer, other, x)
    torch.testing.assert_close(y, x @ other["weight_v"].T @ other["weight_u"].T + other["bias"], rtol=1e-4, atol=1e-4)


# ---- copies and checkpoints ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "copy_of", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_copies(copy_of):
    layer = LowRankLinear(7, 5, 3, inner_bias=True)
    twin = copy_of(layer)
    x = torch.randn(4, 7)
    assert torch.equal(twin(x), layer(x))
    with torch.no_grad():
        twin.weight_v.zero_()
    assert_right(layer)
    assert_right(twin)


def test_torch_save_with_weights_only():
    layer, other = LowRankLinear(7, 5, 3), LowRankLinear(7, 5, 3)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.weight_v, layer.weight_v)


def test_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    model, other = (nn.Sequential(LowRankLinear(7, 5, 3, inner_bias=True)) for _ in range(2))
    safetensors.save_model(model, str(tmp_path / "model.safetensors"))
    safetensors.load_model(other, str(tmp_path / "model.safetensors"))
    x = torch.randn(4, 7)
    assert torch.equal(model(x), other(x))


@pytest.mark.cpu_only
def test_meta_device():
    layer = LowRankLinear(7, 5, 3, inner_bias=True, device="meta")
    assert layer(torch.randn(2, 7, device="meta")).shape == (2, 5)
    layer.reset_parameters("spectral")
    source = LowRankLinear(7, 5, 3, inner_bias=True)
    layer.to_empty(device="cpu").load_state_dict(source.state_dict())
    assert_right(layer)
    shell = LowRankLinear.from_dense(nn.Linear(7, 5, device="meta"), 3)
    shell.load_state_dict(nn.Linear(7, 5).state_dict(), assign=True)
    assert_right(shell)


@pytest.mark.parametrize("inner_bias", [False, True])
def test_dense_checkpoint_is_factored(inner_bias):
    dense = nn.Linear(7, 5)
    model = nn.Sequential(LowRankLinear(7, 5, 5, inner_bias=inner_bias))
    checkpoint = nn.Sequential(dense).state_dict()
    model.load_state_dict(checkpoint)
    assert set(checkpoint) == {"0.weight", "0.bias"}
    x = torch.randn(4, 7)
    torch.testing.assert_close(model(x), dense(x), rtol=1e-4, atol=1e-5)


def test_dense_checkpoint_without_a_parent():
    dense, layer = nn.Linear(7, 5, bias=False), LowRankLinear(7, 5, 2, bias=False)
    layer.load_state_dict(dense.state_dict())
    torch.testing.assert_close(dense_weight(layer), dense_weight(LowRankLinear.from_dense(dense, 2)))


def test_dense_checkpoint_that_does_not_fit():
    layer = LowRankLinear(7, 5, 2)
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(
        RuntimeError, match=r"size mismatch for weight: the checkpoint has \(5, 8\), the layer needs \(5, 7\)"
    ):
        layer.load_state_dict(nn.Linear(8, 5).state_dict())
    with pytest.raises(RuntimeError, match="contains NaN"):
        layer.load_state_dict({"weight": torch.full((5, 7), math.nan), "bias": torch.zeros(5)})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        LowRankLinear(7, 5, 2, bias=False).load_state_dict(nn.Linear(7, 5).state_dict())
    assert all(torch.equal(before[name], t) for name, t in layer.state_dict().items())


class Pair(nn.Module):
    """The layer of the public low-rank training code."""

    def __init__(self, bias):
        super().__init__()
        self.linear = nn.Sequential(nn.Linear(7, 3, bias=bias), nn.Linear(3, 5, bias=bias))

    def forward(self, x):
        return self.linear(x)


@pytest.mark.parametrize(("bias", "inner_bias"), [(True, True), (True, False), (False, False)])
def test_checkpoint_of_two_linear_layers(bias, inner_bias):
    source, layer = Pair(bias), LowRankLinear(7, 5, 3, bias=bias, inner_bias=inner_bias)
    layer.load_state_dict(source.state_dict())
    x = torch.randn(4, 7)
    torch.testing.assert_close(layer(x), source(x), rtol=1e-4, atol=1e-5)


# ---- training -----------------------------------------------------------------------------------------------------


def test_training_equals_two_linear_layers():
    pair = Pair(True).double()
    layer = LowRankLinear(7, 5, 3, inner_bias=True, dtype=torch.float64)
    layer.load_state_dict(pair.state_dict())
    x, target = torch.randn(16, 7, dtype=torch.float64), torch.randn(16, 5, dtype=torch.float64)
    for model in (pair, layer):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
        for _ in range(20):
            optimizer.zero_grad()
            (model(x) - target).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(layer(x), pair(x))
