# SPDX-License-Identifier: Apache-2.0
"""What the tests of attention share: layers, inputs, and the dense layer with merged weights as an oracle."""

from __future__ import annotations

import itertools

import torch
from lath.nn import LowRankMultiheadAttention
from torch import Tensor, nn

EMBED, HEADS, RANK, BATCH, QUERIES, KEYS = 12, 3, 2, 2, 5, 7

# Every combination of the constructor's options; 6 and 10 are features of key and value.
OPTIONS = [
    {
        "bias": bias,
        "add_bias_kv": add_bias_kv,
        "add_zero_attn": add_zero_attn,
        "kdim": kdim,
        "vdim": vdim,
        "batch_first": batch_first,
        "inner_bias": inner_bias,
    }
    for bias, add_bias_kv, add_zero_attn, (kdim, vdim), batch_first, inner_bias in itertools.product(
        (False, True), (False, True), (False, True), ((None, None), (6, 10)), (False, True), (False, True)
    )
]


def layer(dtype=torch.float64, **options) -> LowRankMultiheadAttention:
    """With normal numbers in every parameter: nothing is zero by accident."""
    made = LowRankMultiheadAttention(EMBED, HEADS, RANK, dtype=dtype, **options)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_()
    return made


def inputs(made: nn.Module, queries=QUERIES, keys=KEYS, batch=BATCH, requires_grad=False) -> list[Tensor]:
    """Query, key and value for a layer; unbatched for ``batch=None``."""
    dtype = made.out_proj.weight_v.dtype
    tensors = []
    for length, features in ((queries, made.embed_dim), (keys, made.kdim), (keys, made.vdim)):
        shape = (length, features) if batch is None else (length, batch, features)
        x = torch.randn(shape, dtype=dtype)
        tensors.append(x.transpose(0, 1).contiguous() if made.batch_first and batch is not None else x)
    return [x.requires_grad_(requires_grad) for x in tensors]


def merged(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """The parameters of ``nn.MultiheadAttention`` from those of the low-rank layer, by plain products."""
    p = parameters
    dense = {name: p[name] for name in ("bias_k", "bias_v") if name in p}
    if "in_proj_weight_v" in p:
        factors = list(zip(p["in_proj_weight_v"].chunk(3), p["in_proj_weight_u"].chunk(3), strict=True))
        dense["in_proj_weight"] = torch.cat([u @ v for v, u in factors])
    else:
        factors = [(p[f"{part}_proj_weight_v"], p[f"{part}_proj_weight_u"]) for part in "qkv"]
        dense |= {f"{part}_proj_weight": u @ v for part, (v, u) in zip("qkv", factors, strict=True)}
    factors.append((p["out_proj.weight_v"], p["out_proj.weight_u"]))
    dense["out_proj.weight"] = factors[3][1] @ factors[3][0]

    biases = [torch.zeros(u.shape[0], dtype=u.dtype) for _, u in factors]
    if "in_proj_bias" in p:
        outer = *p["in_proj_bias"].chunk(3), p["out_proj.bias"]
        biases = [a + b for a, b in zip(biases, outer, strict=True)]
    if "in_proj_inner_bias" in p:
        inner = *p["in_proj_inner_bias"].chunk(3), p["out_proj.inner_bias"]
        biases = [a + u @ b for a, (_, u), b in zip(biases, factors, inner, strict=True)]
    if "in_proj_bias" in p or "in_proj_inner_bias" in p:
        dense["in_proj_bias"], dense["out_proj.bias"] = torch.cat(biases[:3]), biases[3]
    return dense


def oracle(made: LowRankMultiheadAttention, *args, **kwargs):
    """What ``nn.MultiheadAttention`` returns with the merged weights; gradients reach the factors of ``made``."""
    parameters = dict(made.named_parameters())
    dense = nn.MultiheadAttention(
        made.embed_dim,
        made.num_heads,
        bias="in_proj_bias" in merged(parameters),
        add_bias_kv=made.bias_k is not None,
        add_zero_attn=made.add_zero_attn,
        kdim=made.kdim,
        vdim=made.vdim,
        batch_first=made.batch_first,
        dtype=made.out_proj.weight_v.dtype,
    )
    assert set(merged(parameters)) == set(dict(dense.named_parameters()))
    return torch.func.functional_call(dense, merged(parameters), args, kwargs)


def padding(batch=BATCH, keys=KEYS) -> Tensor:
    """The last two keys of the first sequence, the last one of the others; no row is without a key."""
    mask = torch.zeros(batch, keys, dtype=torch.bool)
    mask[:, -1] = True
    mask[0, -2] = True
    return mask


def forbidden(*shape: int) -> Tensor:
    """Some positions at random, never the first key."""
    mask = torch.rand(shape) > 0.6
    mask[..., 0] = False
    return mask


def additive(mask: Tensor, dtype=torch.float64) -> Tensor:
    """0 and minus infinity."""
    return torch.zeros(mask.shape, dtype=dtype).masked_fill(mask, float("-inf"))
