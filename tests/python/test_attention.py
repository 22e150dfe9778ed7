# SPDX-License-Identifier: Apache-2.0
"""LowRankMultiheadAttention as a function: against nn.MultiheadAttention with merged weights, and what must hold."""

from __future__ import annotations

import itertools
import math

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
    additive,
    forbidden,
    inputs,
    layer,
    merged,
    oracle,
    padding,
)
from lath.nn import LowRankMultiheadAttention
from lath.nn import attention as module_under_test
from torch import nn

CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def option_name(options):
    return "-".join(name if value is True else f"{name}{value}" for name, value in options.items() if value) or "plain"


every_option = pytest.mark.parametrize("options", OPTIONS, ids=option_name)


def masks():
    """Pairs of attn_mask and key_padding_mask of every kind; mixed types are apart, torch warns of them."""
    single, each, pad = forbidden(QUERIES, KEYS), forbidden(BATCH * HEADS, QUERIES, KEYS), padding()
    floats = torch.randn(QUERIES, KEYS, dtype=torch.float64), torch.randn(BATCH, KEYS, dtype=torch.float64)
    return [
        (None, None),
        (single, None),
        (each, None),
        (None, pad),
        (single, pad),
        (each, pad),
        (floats[0], None),
        (None, floats[1]),
        (floats[0], floats[1]),
        (additive(each), additive(pad)),
    ]


# ---- against the dense layer ----------------------------------------------------------------------------------------


@every_option
def test_every_option_with_every_mask(options):
    made = layer(**options)
    qkv = inputs(made)
    for (attn_mask, key_padding_mask), need, average in itertools.product(masks(), (False, True), (False, True)):
        kwargs = {"attn_mask": attn_mask, "key_padding_mask": key_padding_mask, "need_weights": need}
        kwargs["average_attn_weights"] = average
        y, weights = made(*qkv, **kwargs)
        expected, expected_weights = oracle(made, *qkv, **kwargs)
        torch.testing.assert_close(y, expected, **CLOSE)
        if need:
            torch.testing.assert_close(weights, expected_weights, **CLOSE)
        else:
            assert weights is None


@every_option
def test_gradients_of_every_option(options):
    made = layer(**options)
    pad, single = padding(), forbidden(QUERIES, KEYS)
    for need, mask in itertools.product((False, True), ({}, {"attn_mask": single, "key_padding_mask": pad})):
        grads, qkv = [], inputs(made, requires_grad=True)
        shares = torch.rand(BATCH, QUERIES, KEYS + options["add_bias_kv"] + options["add_zero_attn"])
        for function in (made, lambda *args, **kwargs: oracle(made, *args, **kwargs)):
            y, weights = function(*qkv, need_weights=need, **mask)
            loss = y.square().sum()
            if need:
                loss = loss + (weights * shares).sum()
            grads.append(torch.autograd.grad(loss, [*qkv, *made.parameters()], allow_unused=True))
        assert all(grad is not None for grad in grads[0])
        largest = max(grad.abs().max().item() for grad in grads[1])
        torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-12 * largest)


@every_option
def test_unbatched(options):
    made = layer(**options)
    qkv = inputs(made, batch=None)
    each = forbidden(HEADS, QUERIES, KEYS)
    for attn_mask, pad, need, average in itertools.product(
        (None, each, each[0]), (None, padding()[0]), (False, True), (False, True)
    ):
        kwargs = {"attn_mask": attn_mask, "key_padding_mask": pad, "need_weights": need}
        kwargs["average_attn_weights"] = average
        y, weights = made(*qkv, **kwargs)
        expected, expected_weights = oracle(made, *qkv, **kwargs)
        torch.testing.assert_close((y, weights) if need else y, (expected, expected_weights) if need else expected)
        assert need or weights is None


@pytest.mark.parametrize("shared", ["all", "key and value", "query and key", "none"])
@pytest.mark.parametrize("recorded", [False, True])
def test_shared_inputs(shared, recorded):
    """Whichever of query, key and value are one tensor, and by whichever route."""
    made = layer().requires_grad_(recorded)
    query, key, value = inputs(made, keys=QUERIES)
    if shared == "all":
        key = value = query
    elif shared == "key and value":
        value = key
    elif shared == "query and key":
        key = query
    torch.testing.assert_close(made(query, key, value), oracle(made, query, key, value), **CLOSE)


@pytest.mark.parametrize("options", [{}, {"batch_first": True, "inner_bias": True}, {"kdim": 6, "vdim": 10}])
def test_in_float32(device, options):
    made = layer(torch.float32, **options)
    qkv = [x.requires_grad_() for x in inputs(made)]
    results = []
    for function in (made, lambda *args, **kwargs: oracle(made, *args, **kwargs)):
        y, _ = function(*qkv, key_padding_mask=padding(), need_weights=False)
        results.append([y, *torch.autograd.grad(y.sum(), [*qkv, *made.parameters()])])
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)


def test_finite_differences():
    made = LowRankMultiheadAttention(4, 2, 1, dtype=torch.float64, add_bias_kv=True)
    names = [name for name, _ in made.named_parameters()]

    def function(x, *parameters):
        return torch.func.functional_call(made, dict(zip(names, parameters, strict=True)), (x, x, x))

    x = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (x, *made.parameters()))
    assert torch.autograd.gradgradcheck(lambda *args: function(*args)[0], (x, *made.parameters()))


# ---- the causal hint ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"add_bias_kv": True}, {"add_zero_attn": True}, {"batch_first": True}])
@pytest.mark.parametrize("need", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("queries", "keys"), [(5, 5), (4, 7), (7, 4)])
def test_causal_with_and_without_its_mask(options, need, padded, queries, keys):
    made = layer(**options)
    qkv = inputs(made, queries, keys)
    kwargs = {"need_weights": need, "key_padding_mask": padding(keys=keys) if padded else None}
    causal = torch.ones(queries, keys, dtype=torch.bool).triu(1)
    expected = oracle(made, *qkv, attn_mask=causal, **kwargs)
    for given in ({"attn_mask": causal}, {"attn_mask": causal, "is_causal": True}, {"is_causal": True}):
        torch.testing.assert_close(made(*qkv, **given, **kwargs)[0], expected[0], **CLOSE)
        if need:
            torch.testing.assert_close(made(*qkv, **given, **kwargs)[1], expected[1], **CLOSE)


def test_no_gradient_from_later_positions():
    made = layer()
    x = torch.randn(6, 1, EMBED, dtype=torch.float64, requires_grad=True)
    y, _ = made(x, x, x, need_weights=False, is_causal=True)
    for t in range(6):
        (grad,) = torch.autograd.grad(y[t].sum(), x, retain_graph=True)
        assert (grad[t + 1 :] == 0).all()
        assert (grad[: t + 1] != 0).all()


# ---- what must hold -------------------------------------------------------------------------------------------------


def test_weights_are_probabilities():
    made = layer(add_zero_attn=True)
    _, weights = made(*inputs(made), average_attn_weights=False, key_padding_mask=padding())
    assert weights.shape == (BATCH, HEADS, QUERIES, KEYS + 1)
    torch.testing.assert_close(weights.sum(-1), torch.ones(BATCH, HEADS, QUERIES, dtype=torch.float64))
    assert (weights[padding()[:, None, None, :].expand(-1, HEADS, QUERIES, -1).nonzero(as_tuple=True)] == 0).all()


def test_order_of_keys_does_not_matter():
    made = layer()
    query, key, value = inputs(made)
    order = torch.randperm(KEYS)
    torch.testing.assert_close(made(query, key[order], value[order])[0], made(query, key, value)[0], **CLOSE)


def test_order_of_queries_is_kept():
    made = layer()
    query, key, value = inputs(made)
    order = torch.randperm(QUERIES)
    torch.testing.assert_close(made(query[order], key, value)[0], made(query, key, value)[0][order], **CLOSE)


def test_padding_is_not_seen():
    made = layer()
    query, key, value = inputs(made)
    before, _ = made(query, key, value, key_padding_mask=padding())
    key[padding().T], value[padding().T] = 3.0, -5.0
    after, _ = made(query, key, value, key_padding_mask=padding())
    torch.testing.assert_close(after, before, **CLOSE)


@pytest.mark.parametrize("need", [False, True])
def test_a_sequence_alone_gives_what_it_gives_in_a_batch(need):
    made = layer(batch_first=True)
    query, key, value = inputs(made)
    together, _ = made(query, key, value, need_weights=need)
    for i in range(BATCH):
        alone, _ = made(query[i], key[i], value[i], need_weights=need)
        torch.testing.assert_close(alone, together[i], **CLOSE)


def test_gauge():
    """The factors can be changed by any invertible matrix between them."""
    made = layer()
    qkv = inputs(made)
    before = made(*qkv)
    with torch.no_grad():
        for v, u in [*made.in_proj_factors(), (made.out_proj.weight_v, made.out_proj.weight_u)]:
            g = torch.randn(RANK, RANK, dtype=torch.float64) + 2 * torch.eye(RANK, dtype=torch.float64)
            v.copy_(g @ v)
            u.copy_(u @ g.inverse())
    torch.testing.assert_close(made(*qkv), before, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("need", [False, True])
@pytest.mark.parametrize(("queries", "keys", "batch"), [(0, 3, 2), (3, 4, 0), (1, 1, 1)])
def test_small_and_empty(need, queries, keys, batch):
    made = layer()
    qkv = inputs(made, queries, keys, batch)
    y, weights = made(*qkv, need_weights=need)
    assert y.shape == (queries, batch, EMBED)
    assert weights is None or weights.shape == (batch, queries, keys)


def test_nan_stays_in_its_sequence():
    made = layer(batch_first=True)
    x = torch.randn(3, 4, EMBED, dtype=torch.float64)
    x[1, 2] = math.nan
    for need in (False, True):
        y, _ = made(x, x, x, need_weights=need)
        assert y[1].isnan().any()
        assert y[[0, 2]].isfinite().all()


def test_strided_inputs():
    made = layer()
    query, key, value = (x.repeat_interleave(2, 0)[::2] for x in inputs(made))
    assert not query.is_contiguous()
    expected = made(query.contiguous(), key.contiguous(), value.contiguous())
    torch.testing.assert_close(made(query, key, value), expected, **CLOSE)


# ---- one product for several projections ----------------------------------------------------------------------------


@pytest.fixture
def products(monkeypatch):
    """Shapes of the weights that ``linear`` is called with, and of the first factors of ``lowrank_linear``."""
    shapes = {"linear": [], "lowrank_linear": []}
    for name in shapes:
        original = getattr(module_under_test, name)

        def call(x, weight, *rest, original=original, name=name):
            shapes[name].append(tuple(weight.shape))
            return original(x, weight, *rest)

        monkeypatch.setattr(module_under_test, name, call)
    return shapes


def test_self_attention_multiplies_by_all_first_factors_at_once(products):
    made = layer(torch.float32)
    x = torch.randn(5, 2, EMBED)
    with torch.no_grad():
        made(x, x, x)
    assert products == {"linear": [(3 * RANK, EMBED), *[(EMBED, RANK)] * 3], "lowrank_linear": []}


def test_cross_attention_shares_key_and_value(products):
    made = layer(torch.float32)
    x, memory = torch.randn(5, 2, EMBED), torch.randn(7, 2, EMBED)
    with torch.no_grad():
        made(x, memory, memory)
    one, two = (RANK, EMBED), (2 * RANK, EMBED)
    assert products["linear"] == [one, (EMBED, RANK), two, *[(EMBED, RANK)] * 2]


@pytest.mark.parametrize("why", ["gradient", "rank above break-even", "large", "three tensors", "separate"])
def test_otherwise_each_projection_is_one_operator(products, monkeypatch, why):
    made = layer(torch.float32, **({"kdim": 6, "vdim": 6} if why == "separate" else {}))
    if why == "rank above break-even":
        made = LowRankMultiheadAttention(EMBED, HEADS, 6)
    if why == "large":
        monkeypatch.setattr(module_under_test, "_CACHED", 5 * 2 * 3 * RANK * 4 - 1)
    x = torch.randn(5, 2, EMBED)
    args = (x, x.clone(), x.clone()) if why == "three tensors" else (x, x, x)
    if why == "separate":
        memory = torch.randn(7, 2, 6)
        args = (x, memory, memory)
    with torch.set_grad_enabled(why == "gradient"):
        made(*args)
    assert len(products["lowrank_linear"]) == 3
    assert products["linear"] == []


# ---- dropout --------------------------------------------------------------------------------------------------------


def test_dropout_is_that_of_torch():
    made = layer(dropout=0.4)
    qkv = inputs(made)
    torch.manual_seed(7)
    y, weights = made(*qkv, average_attn_weights=False)
    made.dropout = 0.0
    _, kept = made(*qkv, average_attn_weights=False)
    dropped = weights == 0
    assert 0 < dropped.sum() < weights.numel()
    torch.testing.assert_close(weights[~dropped], kept[~dropped] / 0.6, **CLOSE)
    p = merged(dict(made.named_parameters()))
    value = nn.functional.linear(qkv[2], p["in_proj_weight"][-EMBED:], p["in_proj_bias"][-EMBED:])
    heads = value.view(KEYS, BATCH, HEADS, EMBED // HEADS).permute(1, 2, 0, 3)
    joined = (weights @ heads).permute(2, 0, 1, 3).reshape(QUERIES, BATCH, EMBED)
    torch.testing.assert_close(y, nn.functional.linear(joined, p["out_proj.weight"], p["out_proj.bias"]), **CLOSE)


@pytest.mark.parametrize("need", [False, True])
def test_dropout_is_for_training(need):
    made = layer(dropout=0.5)
    qkv = inputs(made)
    assert not torch.equal(made(*qkv, need_weights=need)[0], made(*qkv, need_weights=need)[0])
    made.eval()
    torch.testing.assert_close(made(*qkv, need_weights=need)[0], oracle(made, *qkv)[0], **CLOSE)


# ---- as torch's other features see it -------------------------------------------------------------------------------


@pytest.mark.parametrize("need", [False, True])
def test_autocast(need):
    made = LowRankMultiheadAttention(32, 4, 8)
    x = torch.randn(6, 2, 32)
    mask = torch.ones(6, 6, dtype=torch.bool).triu(1)
    expected, _ = made(x, x, x, attn_mask=mask)
    for grad in (False, True):
        with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(grad):
            y, _ = made(x, x, x, attn_mask=mask, need_weights=need)
        assert y.dtype is torch.bfloat16
        torch.testing.assert_close(y.float(), expected, rtol=0.1, atol=0.05)
    y.float().sum().backward()
    assert all(p.grad.dtype is torch.float32 for p in made.parameters())


@pytest.mark.parametrize("need", [False, True])
def test_bfloat16(need):
    made = LowRankMultiheadAttention(32, 4, 8, add_bias_kv=True)
    x = torch.randn(6, 2, 32)
    expected, _ = made(x, x, x, key_padding_mask=padding(2, 6))
    y, _ = made.bfloat16()(*[x.bfloat16()] * 3, key_padding_mask=padding(2, 6), need_weights=need)
    assert y.dtype is torch.bfloat16
    torch.testing.assert_close(y.float(), expected, rtol=0.1, atol=0.05)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_functional_transforms():
    made = layer(torch.float64)
    x = torch.randn(4, 5, BATCH, EMBED, dtype=torch.float64)

    def loss(parameters, x):
        return torch.func.functional_call(made, parameters, (x, x, x), {"need_weights": False})[0].square().sum()

    parameters = dict(made.named_parameters())
    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    for i in range(4):
        grads = torch.autograd.grad(loss(parameters, x[i]), list(parameters.values()))
        torch.testing.assert_close([each[name][i] for name in parameters], list(grads), rtol=1e-8, atol=1e-8)


def test_decay_counts_every_projection():
    for options in ({}, {"kdim": 6, "vdim": 10}):
        made = layer(**options)
        dense = merged(dict(made.named_parameters()))
        expected = sum(w.square().sum() for name, w in dense.items() if name.endswith("weight"))
        torch.testing.assert_close(lath.frobenius_decay(made), expected, **CLOSE)
