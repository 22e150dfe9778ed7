# SPDX-License-Identifier: Apache-2.0
"""LowRankMultiheadAttention as a module: parameters, factoring and merging, checkpoints, compilers, bad input."""

from __future__ import annotations

import copy
import io
import math
import pickle
import re

import lath
import pytest
import torch
from attention_cases import (
    BATCH,
    EMBED,
    HEADS,
    KEYS,
    OPTIONS,
    QUERIES,
    RANK,
    forbidden,
    inputs,
    layer,
    merged,
    oracle,
    padding,
)
from lath.factor import Decomposition
from lath.nn import LowRankLinear, LowRankMultiheadAttention
from torch import nn
from torch.nested import nested_tensor

CLOSE = {"rtol": 1e-10, "atol": 1e-12}
SEPARATE = {"kdim": 6, "vdim": 10}


def dense(**options):
    """An ``nn.MultiheadAttention`` without a zero in it."""
    made = nn.MultiheadAttention(EMBED, HEADS, dtype=torch.float64, **options)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_()
    return made


def without_inner_bias(options):
    return {name: value for name, value in options.items() if name != "inner_bias"}


def weights_of(made):
    """Of q, k, v and the output of a dense layer, by name."""
    if made.in_proj_weight is not None:
        return [*made.in_proj_weight.chunk(3), made.out_proj.weight]
    return [made.q_proj_weight, made.k_proj_weight, made.v_proj_weight, made.out_proj.weight]


# ---- parameters -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS)
def test_names_and_shapes(options):
    made = layer(**options)
    r, e = RANK, EMBED
    if options["kdim"] is None:
        shapes = {"in_proj_weight_v": (3 * r, e), "in_proj_weight_u": (3 * e, r)}
    else:
        shapes = {f"{part}_proj_weight_v": (r, n) for part, n in zip("qkv", (e, 6, 10), strict=True)}
        shapes |= {f"{part}_proj_weight_u": (e, r) for part in "qkv"}
    shapes |= {"in_proj_inner_bias": (3 * r,), "out_proj.inner_bias": (r,)} if options["inner_bias"] else {}
    shapes |= {"in_proj_bias": (3 * e,), "out_proj.bias": (e,)} if options["bias"] else {}
    shapes |= {"bias_k": (1, 1, e), "bias_v": (1, 1, e)} if options["add_bias_kv"] else {}
    shapes |= {"out_proj.weight_v": (r, e), "out_proj.weight_u": (e, r)}
    assert {name: tuple(p.shape) for name, p in made.named_parameters()} == shapes
    assert set(made.state_dict()) == set(shapes)
    assert made.rank == r
    assert type(made.out_proj) is LowRankLinear


def test_repr():
    made = LowRankMultiheadAttention(12, 3, 2, dropout=0.1, bias=False, kdim=6, batch_first=True)
    text = "embed_dim=12, num_heads=3, rank=2, dropout=0.1, bias=False, kdim=6, batch_first=True"
    assert made.extra_repr() == text
    assert LowRankMultiheadAttention(12, 3, 2).extra_repr() == "embed_dim=12, num_heads=3, rank=2"


@pytest.mark.parametrize("options", [{}, SEPARATE])
def test_default_initialization(options):
    made = LowRankMultiheadAttention(64, 4, 16, add_bias_kv=True, inner_bias=True, **options)
    for v, u in [*made.in_proj_factors(), (made.out_proj.weight_v, made.out_proj.weight_u)]:
        for weight in (v, u):
            bound = 1 / math.sqrt(weight.shape[1])
            assert 0.8 * bound < weight.abs().max() <= bound
    for bias in (made.in_proj_bias, made.in_proj_inner_bias, made.out_proj.bias, made.out_proj.inner_bias):
        assert (bias == 0).all()
    assert (made.bias_k != 0).all()
    before = made.in_proj_factors()[0][0].clone()
    made.reset_parameters()
    assert not torch.equal(made.in_proj_factors()[0][0], before)


@pytest.mark.parametrize("options", [{}, SEPARATE])
def test_spectral_initialization(options):
    """The products are truncated SVDs of Xavier's weights: balanced factors, and the scale of the dense layer."""
    made = LowRankMultiheadAttention(64, 4, 64, dtype=torch.float64, **options)
    made.reset_parameters("spectral")
    for v, u in made.in_proj_factors():
        torch.testing.assert_close(v @ v.mT, u.mT @ u, rtol=1e-6, atol=1e-9)
        limit = math.sqrt(6 / (4 * 64 if not options else 64 + v.shape[1]))
        assert 0.8 * limit < (u @ v).abs().max() < 1.0001 * limit


def test_unknown_initialization():
    with pytest.raises(ValueError, match="init is 'zeros'"):
        LowRankMultiheadAttention(4, 2, 1).reset_parameters("zeros")


def test_device_and_dtype():
    made = LowRankMultiheadAttention(4, 2, 1, device="meta", dtype=torch.bfloat16, add_bias_kv=True)
    assert all(p.is_meta and p.dtype is torch.bfloat16 for p in made.parameters())
    assert all(not p.is_meta for p in made.to_empty(device="cpu").parameters())


# ---- dense and back -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS)
def test_to_dense_has_the_same_function(options):
    made = layer(dropout=0.0, **options).eval().requires_grad_(False)
    made.out_proj.weight_u.requires_grad_(True)
    back = made.to_dense()
    assert type(back) is nn.MultiheadAttention
    assert not back.training
    expected = merged(dict(made.named_parameters()))
    assert set(expected) == set(dict(back.named_parameters()))
    for name, parameter in back.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name].detach(), **CLOSE)
        assert parameter.requires_grad == (name == "out_proj.weight")
    qkv = inputs(made)
    torch.testing.assert_close(made(*qkv), back(*qkv), **CLOSE)
    names = ("embed_dim", "num_heads", "head_dim", "kdim", "vdim", "dropout", "batch_first", "add_zero_attn")
    assert all(getattr(back, name) == getattr(made, name) for name in names)


@pytest.mark.parametrize("options", OPTIONS)
def test_from_dense_at_full_rank_has_the_same_function(options):
    original = dense(dropout=0.0, **without_inner_bias(options)).eval()
    if options["bias"]:
        original.out_proj.bias.requires_grad_(False)
    made = LowRankMultiheadAttention.from_dense(original, EMBED, options["inner_bias"])
    assert made.rank == EMBED
    assert not made.training
    qkv = inputs(made)
    torch.testing.assert_close(made(*qkv), original.train()(*qkv), rtol=1e-9, atol=1e-9)
    for name, parameter in made.named_parameters():
        assert parameter.requires_grad == (name != "out_proj.bias"), name


@pytest.mark.parametrize("options", [{}, SEPARATE])
def test_truncation_error_is_that_of_the_singular_values(options):
    original = dense(**options)
    back = LowRankMultiheadAttention.from_dense(original, 4).to_dense()
    for w, near in zip(weights_of(original), weights_of(back), strict=True):
        tail = torch.linalg.svdvals(w)[4:]
        torch.testing.assert_close((w - near).norm(), tail.square().sum().sqrt(), **CLOSE)


def test_from_dense_beyond_full_rank():
    original = dense(**SEPARATE)
    made = LowRankMultiheadAttention.from_dense(original, EMBED + 3)
    qkv = inputs(made)
    torch.testing.assert_close(made(*qkv), original(*qkv), rtol=1e-9, atol=1e-9)


def test_from_dense_takes_decompositions():
    original = dense()
    found = [Decomposition.of(2 * w.detach(), "weight") for w in weights_of(original)]
    made = LowRankMultiheadAttention.from_dense(original, EMBED, decompositions=found)
    for w, doubled in zip(weights_of(original), weights_of(made.to_dense()), strict=True):
        torch.testing.assert_close(doubled, 2 * w, **CLOSE)


def test_from_dense_fresh():
    original = dense()
    made = LowRankMultiheadAttention.from_dense(original, 4, init="fresh")
    assert (made.in_proj_bias == 0).all()
    near = LowRankMultiheadAttention.from_dense(original, 4)
    assert not torch.allclose(made.in_proj_weight_v, near.in_proj_weight_v)


@pytest.mark.parametrize("init", ["svd", "fresh"])
@pytest.mark.parametrize("options", [{"add_bias_kv": True}, {"add_bias_kv": True, **SEPARATE}])
def test_from_dense_carries_requires_grad_over(init, options):
    original = dense(**options).requires_grad_(False)
    weight = "k_proj_weight" if "kdim" in options else "in_proj_weight"
    trained = {"in_proj_bias", "bias_v", "out_proj.weight", weight}
    for name in trained:
        original.get_parameter(name).requires_grad_(True)
    made = LowRankMultiheadAttention.from_dense(original, 2, init=init)
    got = {name for name, p in made.named_parameters() if p.requires_grad}
    assert got == trained - {weight, "out_proj.weight"} | {
        f"{name}_{factor}" for name in (weight, "out_proj.weight") for factor in "vu"
    }
    assert {name for name, p in made.to_dense().named_parameters() if p.requires_grad} == trained


def test_from_dense_on_meta():
    made = LowRankMultiheadAttention.from_dense(nn.MultiheadAttention(4, 2, device="meta"), 1)
    assert all(p.is_meta for p in made.parameters())


def test_from_dense_leaves_the_dense_layer_as_it_is():
    original = dense()
    before = copy.deepcopy(original.state_dict())
    LowRankMultiheadAttention.from_dense(original, 2)
    assert all(torch.equal(value, before[name]) for name, value in original.state_dict().items())


# ---- checkpoints and copies -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS)
def test_loads_a_dense_checkpoint(options):
    original = dense(**without_inner_bias(options))
    made = layer(**options)
    state = original.state_dict()
    before = dict(state)
    made.load_state_dict(state)
    assert {name: id(value) for name, value in state.items()} == {name: id(value) for name, value in before.items()}
    near = LowRankMultiheadAttention.from_dense(original, RANK, options["inner_bias"])
    qkv = inputs(made)
    torch.testing.assert_close(made(*qkv), near(*qkv), **CLOSE)


@pytest.mark.parametrize("options", OPTIONS)
def test_round_trip_of_its_own_checkpoint(options):
    made, other = layer(**options), layer(**options)
    buffer = io.BytesIO()
    torch.save(made.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer))
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), other.parameters(), strict=True))


def test_a_checkpoint_that_does_not_fit():
    made = layer()
    with pytest.raises(
        RuntimeError, match=r"size mismatch for in_proj_weight: the checkpoint has \(24, 8\), the layer"
    ):
        made.load_state_dict(nn.MultiheadAttention(8, 2).double().state_dict())
    state = dense().state_dict()
    state["in_proj_weight"][3, 3] = math.nan
    with pytest.raises(RuntimeError, match="in_proj_weight: the weight contains NaN"):
        made.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"Missing key.*in_proj_bias"):
        made.load_state_dict(dense(bias=False).state_dict())


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), copy.copy], ids=["deepcopy", "pickle", "copy"]
)
def test_copies(copied):
    made = layer(add_bias_kv=True, **SEPARATE)
    other = copied(made)
    qkv = inputs(made)
    assert torch.equal(made(*qkv)[0], other(*qkv)[0])


def test_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    made, other = layer(inner_bias=True), layer(inner_bias=True)
    safetensors.save_model(made, tmp_path / "model.safetensors")
    safetensors.load_model(other, tmp_path / "model.safetensors")
    qkv = inputs(made)
    assert torch.equal(made(*qkv)[0], other(*qkv)[0])


# ---- compilers ------------------------------------------------------------------------------------------------------


class SelfAttention(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.attention = layer(torch.float32, **options)

    def forward(self, x, mask=None):
        return self.attention(x, x, x, attn_mask=mask, need_weights=mask is not None)[0]


@pytest.mark.parametrize("options", [{}, {"add_bias_kv": True, "add_zero_attn": True, "inner_bias": True}])
@pytest.mark.parametrize("masked", [False, True])
def test_compiled_without_breaks(options, masked):
    torch._dynamo.reset()
    made = SelfAttention(**options)
    compiled = torch.compile(made, fullgraph=True, backend="aot_eager")
    x, mask = torch.randn(QUERIES, BATCH, EMBED), forbidden(QUERIES, QUERIES) if masked else None
    results = []
    for function in (made, compiled):
        made.zero_grad()
        y = function(x, mask)
        y.square().sum().backward()
        results.append([y.detach(), *(p.grad.clone() for p in made.parameters())])
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, mask), made(x, mask), rtol=1e-3, atol=1e-3)


def test_exported():
    made = SelfAttention(batch_first=True).eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(made, (torch.randn(3, QUERIES, EMBED),), dynamic_shapes={"x": {0: batch}})
    x = torch.randn(7, QUERIES, EMBED)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), made(x), rtol=1e-3, atol=1e-3)


# ---- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        ((10, 3, 2), {}, ValueError, "embed_dim 10 is not divisible by num_heads 3"),
        ((0, 3, 2), {}, ValueError, "embed_dim 0 and num_heads 3 must be greater than 0"),
        ((12, 0, 2), {}, ValueError, "embed_dim 12 and num_heads 0 must be greater than 0"),
        ((12, -3, 2), {}, ValueError, "must be greater than 0"),
        ((12, 3, 0), {}, ValueError, "rank is 0, expected 1 or more"),
        ((12, 3, -1), {}, ValueError, "rank is -1"),
        ((12, 3, 2.0), {}, TypeError, "rank is 2.0, expected an int"),
        ((12, 3, True), {}, TypeError, "rank is True"),
        ((12, 3, 2), {"dropout": 1.5}, ValueError, "dropout is 1.5, expected a number from 0 to 1"),
        ((12, 3, 2), {"kdim": -1}, ValueError, "kdim -1 and vdim 12 must not be negative"),
    ],
)
def test_bad_arguments(args, options, error, message):
    with pytest.raises(error, match=f"LowRankMultiheadAttention: .*{message}"):
        LowRankMultiheadAttention(*args, **options)


def test_bad_dense_modules():
    with pytest.raises(TypeError, match=r"module is Linear, expected torch.nn.MultiheadAttention"):
        LowRankMultiheadAttention.from_dense(nn.Linear(4, 4), 2)
    with pytest.raises(ValueError, match="init is 'zeros'"):
        LowRankMultiheadAttention.from_dense(dense(), 2, init="zeros")
    with pytest.raises(ValueError, match="rank is 0"):
        LowRankMultiheadAttention.from_dense(dense(), 0)
    broken = dense()
    broken.in_proj_weight.data[0, 0] = math.inf
    with pytest.raises(ValueError, match="contains NaN or infinity"):
        LowRankMultiheadAttention.from_dense(broken, 2)


def zeros(*shape, **options):
    return torch.zeros(shape, **{"dtype": torch.float64, **options})


Q, K, N = QUERIES, KEYS, BATCH
BAD_CALLS = {
    "query of one dimension": ({"query": zeros(EMBED)}, "query has shape (12,), expected 2 or 3 dimensions"),
    "query of four": ({"query": zeros(1, Q, N, EMBED)}, "query has shape (1, 5, 2, 12), expected 2 or 3"),
    "query features": ({"query": zeros(Q, N, 11)}, "query has shape (5, 2, 11), expected 3 dimensions as query has"),
    "key features": ({"key": zeros(K, N, 13)}, "key has shape (7, 2, 13), expected 3 dimensions as query has and the"),
    "key dimensions": ({"key": zeros(K, EMBED)}, "key has shape (7, 12), expected 3 dimensions"),
    "value features": ({"value": zeros(K, N, 13)}, "value has shape (7, 2, 13), expected 3 dimensions"),
    "lengths": ({"value": zeros(6, N, EMBED)}, "key has shape (7, 2, 12) and value (6, 2, 12), expected the same"),
    "batch": (
        {"query": zeros(Q, 3, EMBED)},
        "query has shape (5, 3, 12) and key (7, 2, 12), expected the same batch in dimension 1",
    ),
    "attn_mask transposed": ({"attn_mask": zeros(K, Q)}, "attn_mask has shape (7, 5), expected (5, 7) or (6, 5, 7)"),
    "attn_mask batch": ({"attn_mask": zeros(N, Q, K)}, "attn_mask has shape (2, 5, 7), expected (5, 7) or (6, 5, 7)"),
    "attn_mask dims": ({"attn_mask": zeros(K)}, "attn_mask has shape (7,), expected (5, 7)"),
    "padding transposed": ({"key_padding_mask": zeros(K, N)}, "key_padding_mask has shape (7, 2), expected (2, 7)"),
    "padding dims": ({"key_padding_mask": zeros(K)}, "key_padding_mask has shape (7,), expected (2, 7)"),
    "hint and wrong mask": ({"attn_mask": zeros(Q, Q), "is_causal": True, "need_weights": False}, "has shape (5, 5)"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_shapes(case):
    changed, message = BAD_CALLS[case]
    made = layer()
    good = dict(zip(("query", "key", "value"), inputs(made), strict=True))
    made(**good)
    with pytest.raises(RuntimeError, match=f"LowRankMultiheadAttention: .*{re.escape(message)}"):
        made(**good | changed)


def test_bad_unbatched_masks():
    made = layer()
    qkv = inputs(made, batch=None)
    with pytest.raises(RuntimeError, match=r"key_padding_mask has shape \(2, 7\), expected \(7,\)"):
        made(*qkv, key_padding_mask=padding())
    with pytest.raises(RuntimeError, match=r"attn_mask has shape \(6, 5, 7\), expected \(5, 7\) or \(3, 5, 7\)"):
        made(*qkv, attn_mask=zeros(6, 5, 7))


def test_bad_types():
    made = layer()
    query, key, value = inputs(made)
    with pytest.raises(TypeError, match=r"key is list, expected torch.Tensor"):
        made(query, [key], value)
    with pytest.raises(TypeError, match=r"attn_mask is torch.int64, expected torch.bool or a floating-point type"):
        made(query, key, value, attn_mask=torch.zeros(Q, K, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"key_padding_mask is list, expected torch.Tensor or None"):
        made(query, key, value, key_padding_mask=[[False]])
    with pytest.raises(RuntimeError, match=r"lath.*dtype|lath.*float"):
        made(query.float(), key, value)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_refused():
    made = layer(batch_first=True).eval()
    x = nested_tensor([torch.randn(3, EMBED), torch.randn(5, EMBED)], dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"query is a nested tensor, expected a padded one with a key_padding_mask"):
        made(x, x, x)


def test_an_error_leaves_the_layer_usable():
    made = layer()
    qkv = inputs(made)
    with pytest.raises(RuntimeError):
        made(*qkv, attn_mask=zeros(1, 1))
    torch.testing.assert_close(made(*qkv), oracle(made, *qkv), **CLOSE)


# ---- the merged copy ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kdim", [None, 6])
def test_frozen_attention_is_the_same_function(kdim):
    layer = LowRankMultiheadAttention(8, 2, 8, kdim=kdim, vdim=kdim, batch_first=True, inner_bias=True).eval()
    query, key = torch.randn(3, 5, 8), torch.randn(3, 5, kdim or 8)
    padding = torch.tensor([[False] * 4 + [True]] * 3)
    calls = [
        {},
        {"need_weights": False},
        {"average_attn_weights": False, "key_padding_mask": padding},
        {"is_causal": True, "need_weights": False},
        {"attn_mask": torch.randn(5, 5)},
    ]
    with torch.no_grad():
        expected = [layer(query, key, key, **call) for call in calls]
        assert layer.freeze()
        for call, (y, weights) in zip(calls, expected, strict=True):
            got, got_weights = layer(query, key, key, **call)
            torch.testing.assert_close(got, y)
            assert (got_weights is None) == (weights is None)
            if weights is not None:
                torch.testing.assert_close(got_weights, weights)


def test_frozen_attention_serves_inference_only_and_sees_writes():
    layer = LowRankMultiheadAttention(8, 2, 8).eval()
    x = torch.randn(5, 3, 8)
    assert lath.freeze(nn.Sequential(layer)) == ["0", "0.out_proj"]
    with torch.no_grad():
        layer._frozen[2].in_proj_weight.fill_(math.nan)  # whether calls go through the copy
        assert layer(x, x, x)[0].isnan().any()
    assert not layer(x, x, x)[0].isnan().any()  # records gradients, so takes the factors
    with torch.no_grad():
        layer.out_proj.weight_u.mul_(2)
        assert not layer(x, x, x)[0].isnan().any()
    assert copy.deepcopy(layer)._frozen is None
    assert layer.train()._frozen is None


def test_freeze_of_attention_keeps_nothing_below_break_even():
    assert not LowRankMultiheadAttention(8, 2, 3).eval().freeze()
    assert LowRankMultiheadAttention(8, 2, 4).eval().freeze()
