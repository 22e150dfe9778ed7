# SPDX-License-Identifier: Apache-2.0
"""OIALRMultiheadAttention: the function of ``nn.MultiheadAttention`` with merged weights, and the layer around it."""

from __future__ import annotations

import copy
import io
import math
import pickle

import lath
import pytest
import torch
from attention_cases import additive, forbidden, inputs, padding
from lath.nn import LowRankMultiheadAttention, OIALRLinear, OIALRMultiheadAttention
from oialr_cases import ATTENTION, EMBED, HEADS, assert_orthonormal, assert_storage_is_exact, attention, thin_attention
from torch import nn

CLOSE = {"rtol": 1e-10, "atol": 1e-11}
every_case = pytest.mark.parametrize("case", ATTENTION)


def qkv(made, **options):
    """Query, key and value; the helper reads the type from a low-rank layer."""
    twin = LowRankMultiheadAttention(
        EMBED,
        HEADS,
        1,
        kdim=made.kdim,
        vdim=made.vdim,
        batch_first=made.batch_first,
        dtype=made.out_proj.weight_s.dtype,
    )
    return inputs(twin, **options)


def assert_same(results, expected, **close):
    for ours, theirs in zip(results, expected, strict=True):
        if theirs is None:
            assert ours is None
        else:
            torch.testing.assert_close(ours, theirs, **(close or CLOSE))


# ---- the function ---------------------------------------------------------------------------------------------------

MASKS = {
    "none": {},
    "no weights": {"need_weights": False},
    "of every head": {"average_attn_weights": False},
    "padding": {"key_padding_mask": padding()},
    "bool": {"attn_mask": forbidden(5, 7)},
    "additive": {"attn_mask": additive(forbidden(2 * HEADS, 5, 7))},
    "both": {"attn_mask": forbidden(5, 7), "key_padding_mask": padding(), "need_weights": False},
}


@every_case
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("rank", [3, None])
@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
def test_every_option_with_every_mask(case, mask, rank):
    made = thin_attention(case, rank)
    back, given = made.to_dense(), qkv(made)
    assert_same(made(*given, **MASKS[mask]), back(*given, **MASKS[mask]))


@pytest.mark.parametrize(
    ("case", "shared"),
    [(case, "none") for case in ATTENTION] + [(c, s) for c in ("packed", "all") for s in ("self", "key is value")],
)
@pytest.mark.parametrize("rank", [2, None])
def test_gradients_follow_from_the_dense_ones(case, shared, rank):
    made = thin_attention(case, rank)
    back = made.to_dense()
    results = []
    for layer in (made, back):
        torch.manual_seed(3)
        q, k, v = qkv(made, keys=5, requires_grad=True)
        given = {"self": (q, q, q), "key is value": (q, k, k), "none": (q, k, v)}[shared]
        y, weights = layer(*given)
        (y.square().sum() + weights.square().sum()).backward()
        results.append([y, *(t.grad for t in dict.fromkeys(given))])
    assert_same(*results)
    for core in made.cores():
        dense_grad = getattr(back, core.name[:-1]).grad
        torch.testing.assert_close(core.s.grad, core.u.T @ dense_grad @ core.vh.T, **CLOSE)
    core = made.out_proj.cores()[0]
    torch.testing.assert_close(core.s.grad, core.u.T @ back.out_proj.weight.grad @ core.vh.T, **CLOSE)
    for name, bias in made.named_parameters():
        if "bias" in name:
            torch.testing.assert_close(bias.grad, back.get_parameter(name).grad, **CLOSE)


@every_case
def test_finite_differences(case):
    made = thin_attention(case, 2)
    names = [name for name, _ in made.named_parameters()]
    given = [t.requires_grad_() for t in qkv(made, queries=2, keys=3, batch=1)]

    def call(*tensors):
        parameters = dict(zip(names, tensors[3:], strict=True))
        return torch.func.functional_call(made, parameters, tensors[:3])

    leaves = [*given, *(p.detach().clone().requires_grad_() for p in made.parameters())]
    assert torch.autograd.gradcheck(call, leaves)


@every_case
def test_unbatched(case):
    made = thin_attention(case)
    back, given = made.to_dense(), qkv(made, batch=None)
    assert_same(made(*given), back(*given))


@pytest.mark.parametrize("need", [False, True])
def test_causal(need):
    made = thin_attention("packed")
    back, (q, _, _) = made.to_dense(), qkv(made)
    mask = nn.Transformer.generate_square_subsequent_mask(len(q), dtype=torch.float64)
    expected = back(q, q, q, attn_mask=mask, need_weights=need)
    assert_same(made(q, q, q, need_weights=need, is_causal=True), expected)
    assert_same(made(q, q, q, attn_mask=mask, need_weights=need, is_causal=True), expected)


def test_dropout_is_for_training():
    made = thin_attention("packed", dropout=0.5)
    q, _, _ = qkv(made)
    assert not torch.equal(made(q, q, q)[0], made(q, q, q)[0])
    made.eval()
    assert torch.equal(made(q, q, q)[0], made(q, q, q)[0])


def test_self_attention_multiplies_by_the_basis_once(monkeypatch):
    calls = []
    operator = lath.nn.oialr_attention.oialr_linear

    def counted(x, *operands):
        calls.append(operands[2].shape[0])
        return operator(x, *operands)

    monkeypatch.setattr(lath.nn.oialr_attention, "oialr_linear", counted)
    made = thin_attention("packed")
    q, k, v = qkv(made)
    for given, rows in (((q, q, q), [36]), ((q, k, k), [12, 24]), ((q, k, v), [12, 12, 12])):
        calls.clear()
        made(*given)
        assert calls == rows


def test_autocast_and_bfloat16():
    made = thin_attention("packed", None, torch.float32)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(0.3)
    q, _, _ = qkv(made)
    expected = made(q, q, q)[0]
    with torch.autocast("cpu", torch.bfloat16):
        y = made(q, q, q)[0]
    assert y.dtype is torch.bfloat16
    torch.testing.assert_close(y.float(), expected, rtol=5e-2, atol=5e-2)
    half = OIALRMultiheadAttention.from_dense(nn.MultiheadAttention(EMBED, HEADS, dtype=torch.bfloat16))
    assert half(*[q.bfloat16()] * 3)[0].dtype is torch.bfloat16


# ---- dense and back -------------------------------------------------------------------------------------------------


@every_case
def test_full_rank_is_the_dense_function(case):
    """Public defect: the layer could not be built at all."""
    source = attention(case)
    made = OIALRMultiheadAttention.from_dense(source)
    assert_orthonormal(made)
    assert_storage_is_exact(made)
    given = qkv(made)
    assert_same(made(*given), source(*given), rtol=1e-8, atol=1e-9)
    for name, parameter in source.named_parameters():
        if "bias" in name:
            assert made.get_parameter(name) is parameter  # so that an optimizer goes on training it


@every_case
def test_names_and_shapes(case):
    made = thin_attention(case, 7)
    cores = {"in_proj_weight_": (36, 12)} if made._packed else {
        "q_proj_weight_": (12, 12), "k_proj_weight_": (12, made.kdim), "v_proj_weight_": (12, made.vdim)
    }  # fmt: skip
    shapes = {}
    for name, (out, fan_in) in {**cores, "out_proj.weight_": (12, 12)}.items():
        r = min(7, fan_in)
        shapes |= {f"{name}u": (out, r), f"{name}s": (r, r), f"{name}vh": (r, fan_in)}
    shapes |= {} if case == "no bias" else {"in_proj_bias": (36,), "out_proj.bias": (12,)}
    shapes |= {"bias_k": (1, 1, 12), "bias_v": (1, 1, 12)} if case == "all" else {}
    assert {name: tuple(t.shape) for name, t in made.state_dict().items()} == shapes
    assert {name for name, _ in made.named_parameters()} == {n for n in shapes if not n.endswith(("_u", "_vh"))}
    assert made.rank == 7
    assert type(made.out_proj) is OIALRLinear
    names = [name.removesuffix("_weight_") for name in cores]
    assert list(lath.oialr_cores(nn.Sequential(made))) == [*(f"0.{name}" for name in names), "0.out_proj"]


@every_case
def test_a_new_layer_is_the_dense_one_of_the_same_seed(case):
    torch.manual_seed(5)
    source = nn.MultiheadAttention(EMBED, HEADS, dtype=torch.float64, **ATTENTION[case])
    torch.manual_seed(5)
    made = OIALRMultiheadAttention(EMBED, HEADS, EMBED, dtype=torch.float64, **ATTENTION[case])
    for name, parameter in made.to_dense().named_parameters():
        torch.testing.assert_close(parameter, source.get_parameter(name), **CLOSE)


@every_case
def test_ranks_of_each_weight(case):
    source = attention(case)
    count = 1 if source.in_proj_weight is not None else 3
    ranks = [2, 3, 4][:count]
    made = OIALRMultiheadAttention.from_dense(source, [*ranks, 5])
    assert [core.rank for core in made.cores()] == ranks
    assert made.out_proj.rank == 5
    assert made.rank == max(ranks)


@every_case
def test_what_trains_is_carried_over(case):
    source = attention(case).eval().requires_grad_(False)
    source.out_proj.weight.requires_grad_(True)
    if source.in_proj_bias is not None:
        source.in_proj_bias.requires_grad_(True)
    made = OIALRMultiheadAttention.from_dense(source, 3)
    expected = {"out_proj.weight_s"} | ({"in_proj_bias"} if source.in_proj_bias is not None else set())
    assert {name for name, p in made.named_parameters() if p.requires_grad} == expected
    back = made.to_dense()
    assert {n for n, p in back.named_parameters() if p.requires_grad} == {
        n for n, p in source.named_parameters() if p.requires_grad
    }
    assert not made.training
    assert not back.training


@every_case
def test_to_lowrank(case):
    made = thin_attention(case, 4)
    made.out_proj.cores()[0].replace_(*(t.detach() for t in narrowed(made.out_proj.cores()[0], 2)))
    pair, given = made.to_lowrank(), qkv(made)
    assert type(pair) is LowRankMultiheadAttention
    assert pair.rank == 4
    assert_same(pair(*given), made(*given))


def narrowed(core, rank):
    return core.u[:, :rank], core.s[:rank, :rank], core.vh[:rank]


@every_case
@pytest.mark.parametrize("rank", [2, None])
def test_freeze(case, rank):
    made = thin_attention(case, rank).eval()
    given = qkv(made)
    expected = [t.detach() for t in made(*given)]
    assert lath.freeze(made) == ["", "out_proj"]
    with torch.no_grad():
        assert_same(made(*given), expected)
        for _, second in made._frozen[2:]:
            second.fill_(math.nan)
        assert made(*given)[0].isnan().any()
    assert not made(*given)[0].isnan().any()  # records gradients
    made.unfreeze()
    assert (made._frozen, made.out_proj._frozen) == (None, None)


def test_freeze_of_self_attention():
    made = thin_attention("packed", 2).eval()
    q, k, _ = qkv(made)
    expected = [made(q, q, q)[0].detach(), made(q, k, k)[0].detach()]
    made.freeze()
    assert made.out_proj._frozen is not None
    with torch.no_grad():
        assert_same([made(q, q, q)[0], made(q, k, k)[0]], expected)


# ---- checkpoints and copies -----------------------------------------------------------------------------------------


@every_case
@pytest.mark.parametrize("rank", [2, 5])
def test_a_checkpoint_of_any_rank(case, rank):
    source, made = thin_attention(case, rank), thin_attention(case, 3)
    parameters = [core.s for core in made.cores()]
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    made.load_state_dict(torch.load(file, weights_only=True))
    assert all(core.s is p for core, p in zip(made.cores(), parameters, strict=True))
    assert (made.rank, made.out_proj.rank) == (rank, rank)
    assert_storage_is_exact(made)
    given = qkv(made)
    assert_same(made(*given), source(*given))


@every_case
def test_a_dense_checkpoint_is_factored(case):
    source, made = attention(case), thin_attention(case, None)
    made.load_state_dict(source.state_dict())
    given = qkv(made)
    assert_same(made(*given), source(*given), rtol=1e-8, atol=1e-9)


def test_checkpoints_that_do_not_fit():
    made = thin_attention("packed")
    wrong = nn.MultiheadAttention(8, 2).double().state_dict()
    with pytest.raises(
        RuntimeError, match=r"size mismatch for in_proj_weight: the checkpoint has \(24, 8\), the layer"
    ):
        made.load_state_dict(wrong)
    state = attention("packed").state_dict()
    state["in_proj_weight"][3, 3] = math.nan
    with pytest.raises(RuntimeError, match="in_proj_weight: the weight contains NaN"):
        made.load_state_dict(state)
    assert made.rank == 3


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
@every_case
def test_copies(case, copied):
    made = thin_attention(case)
    twin, given = copied(made), qkv(made)
    assert torch.equal(made(*given)[0], twin(*given)[0])
    assert all(core.module is twin for core in twin.cores())


def test_meta_device():
    with torch.device("meta"):
        made = OIALRMultiheadAttention.from_dense(nn.MultiheadAttention(EMBED, HEADS), 3)
        fresh = OIALRMultiheadAttention(EMBED, HEADS, 2)
    assert all(t.is_meta for layer in (made, fresh) for t in layer.state_dict().values())
    source = thin_attention("packed", 4, torch.float32)
    made.to_empty(device="cpu").load_state_dict(source.state_dict())
    q = torch.randn(3, 2, EMBED)
    assert torch.equal(made(q, q, q)[0], source(q, q, q)[0])


# ---- compilers ------------------------------------------------------------------------------------------------------


class SelfAttention(nn.Module):
    def __init__(self, case):
        super().__init__()
        self.attention = thin_attention(case, 3, torch.float32)

    def forward(self, x, mask=None):
        return self.attention(x, x, x, attn_mask=mask, need_weights=mask is not None)[0]


@pytest.mark.parametrize("case", ["packed", "all"])
def test_compiled_without_breaks(case):
    torch._dynamo.reset()
    made = SelfAttention(case)
    compiled, x = torch.compile(made, fullgraph=True, backend="aot_eager"), torch.randn(5, 2, EMBED)
    results = []
    for function in (made, compiled):
        made.zero_grad()
        y = function(x)
        y.square().sum().backward()
        results.append([y.detach(), *(p.grad.clone() for p in made.parameters())])
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)


def test_exported():
    made, x = SelfAttention("packed").eval(), torch.randn(5, 2, EMBED)
    program = torch.export.export(made, (x,))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), made(x), rtol=1e-4, atol=1e-4)


# ---- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: OIALRMultiheadAttention(12, 3, 13), ValueError, "rank is 13, expected at most 12"),
        (lambda: OIALRMultiheadAttention(12, 3, 0), ValueError, "OIALRMultiheadAttention: rank is 0"),
        (lambda: OIALRMultiheadAttention(12, 3, 2.0), TypeError, r"rank is 2\.0, expected an int"),
        (lambda: OIALRMultiheadAttention(12, 5, 2), ValueError, "embed_dim 12 is not divisible by num_heads 5"),
        (lambda: OIALRMultiheadAttention(12, 3, 2, dropout=2.0), ValueError, r"dropout is 2\.0"),
        (
            lambda: OIALRMultiheadAttention.from_dense(nn.Linear(2, 2)),
            TypeError,
            "expected torch.nn.MultiheadAttention",
        ),
        (
            lambda: OIALRMultiheadAttention.from_dense(nn.MultiheadAttention(12, 3), [3]),
            ValueError,
            "rank has 1 entries, expected one for each of 2 weights",
        ),
        (
            lambda: OIALRMultiheadAttention.from_dense(nn.MultiheadAttention(12, 3, kdim=4), [3, 5, 3, 3]),
            ValueError,
            "rank is 5, expected at most 4",
        ),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_bad_calls():
    made = thin_attention("packed")
    q = torch.zeros(3, 2, 12, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"OIALRMultiheadAttention: key has shape \(3, 2, 11\)"):
        made(q, q[..., :11], q)
    with pytest.raises(TypeError, match="OIALRMultiheadAttention: query is list"):
        made([1.0], q, q)
    with pytest.raises(RuntimeError, match="attn_mask has shape"):
        made(q, q, q, attn_mask=torch.zeros(4, 4, dtype=torch.bool))
