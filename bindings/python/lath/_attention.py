# SPDX-License-Identifier: Apache-2.0
"""Attention in a survey, a conversion and a report: ``nn.MultiheadAttention`` is one layer of four projections."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from . import _oialr, ops
from .factor import Decomposition
from .nn import LowRankMultiheadAttention, OIALRMultiheadAttention
from .nn.thin_attention import ThinAttention, dense_weights, projections
from .specs import LowRank

KINDS = (nn.MultiheadAttention, ThinAttention)

# The weights of a dense layer, as a module above would read them.
WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight")

_PARAMETERS = {*WEIGHTS, "in_proj_bias", "bias_k", "bias_v"}


def is_attention(module: nn.Module) -> bool:
    return isinstance(module, KINDS)


def owns_projection(module: nn.Module) -> bool:
    """Whether its ``out_proj`` is a part of it and no layer of its own; a subclass may use it in any way."""
    return type(module) is nn.MultiheadAttention or isinstance(module, ThinAttention)


def parts(module: nn.Module) -> tuple[nn.Module, ...]:
    """The modules that hold the parameters of a layer: attention has a second one for its output projection."""
    return (module, module.out_proj) if isinstance(module, nn.MultiheadAttention) else (module,)


def is_altered(module: nn.MultiheadAttention) -> bool:
    """Whether there is more, or less, in it than its constructor put there."""
    out = module.out_proj
    projection = isinstance(out, nn.Linear) and type(out).forward is nn.Linear.forward
    return (
        not set(module._parameters) <= _PARAMETERS
        or set(module._modules) != {"out_proj"}
        or not projection
        or set(out._parameters) != {"weight", "bias"}
        or bool(module._buffers or out._buffers or out._modules)
    )


# ---- sizes and costs ------------------------------------------------------------------------------------------------


def dense_numel(module: nn.Module) -> int:
    """Numbers in the dense weights."""
    return sum(n * m for n, m in projections(module))


def macs_of_a_row(module: nn.Module) -> int:
    """Multiply-adds for one query, key and value."""
    dense = dense_numel(module)
    if not isinstance(module, LowRankMultiheadAttention):
        return dense
    return min(dense, module.rank * sum(n + m for n, m in projections(module)))


def break_even(module: nn.Module) -> int:
    """The largest rank of the four projections whose factors cost less than the dense weights; 0 for none."""
    return max(0, (dense_numel(module) - 1) // sum(n + m for n, m in projections(module)))


def dense_parameters(module: LowRankMultiheadAttention) -> int:
    """Numbers in the dense layer of the same function."""
    has_bias = module.in_proj_bias is not None or module.in_proj_inner_bias is not None
    extra = 0 if module.bias_k is None else 2 * module.embed_dim
    return dense_numel(module) + 4 * module.embed_dim * has_bias + extra


@dataclass(frozen=True)
class AttentionCall:
    """What attention was called with."""

    x_shape: tuple[int, ...]  # of the query
    rows: tuple[int, int, int, int]  # of query, key, value and output
    dtype: torch.dtype
    device: torch.device
    sources: int  # different tensors among query, key and value; where key and value differ, 3

    @classmethod
    def of(cls, args: tuple, kwargs: Mapping[str, Any]) -> AttentionCall | None:
        """Of a call with these arguments; None for those of a subclass with a forward of its own."""
        given = dict(zip(("query", "key", "value"), args, strict=False)) | dict(kwargs)
        query, key, value = (given.get(name) for name in ("query", "key", "value"))
        if not all(isinstance(t, Tensor) for t in (query, key, value)):
            return None
        rows = tuple(math.prod(t.shape[:-1]) for t in (query, key, value, query))
        sources = 3 if key is not value else 1 if query is key else 2
        return cls(tuple(query.shape), rows, query.dtype, query.device, sources)


def dense_macs(module: nn.Module, calls: list[AttentionCall]) -> int:
    """Multiply-adds of the projections if they were dense."""
    return sum(r * n * m for call in calls for r, (n, m) in zip(call.rows, projections(module), strict=True))


def core_plans(module: OIALRMultiheadAttention, call: AttentionCall) -> list[tuple[str, int]]:
    """Kernel and multiply-adds of each weight; of a packed one, Vh meets every input once."""
    *cores, last = *module.cores(), *module.out_proj.cores()
    *inputs, output = call.rows
    if len(cores) == 1:
        plans = [_oialr.plan(cores[0], sum(inputs[: call.sources]), module.embed_dim * sum(inputs))]
    else:
        plans = [_oialr.plan(core, n, n * module.embed_dim) for core, n in zip(cores, inputs, strict=True)]
    return [*plans, _oialr.plan(last, output, output * module.embed_dim)]


def rows_and_macs(module: nn.Module, calls: list[AttentionCall]) -> tuple[int, int, int, str]:
    """Queries, multiply-adds of the projections, those of the dense ones, and the kernel of the first projection."""
    dense = dense_macs(module, calls)
    queries = sum(call.rows[0] for call in calls)
    if not isinstance(module, LowRankMultiheadAttention):
        return queries, dense, dense, "dense"
    plans = [
        ops.lowrank_linear_plan(r, n, module.rank, m, device=call.device, dtype=call.dtype)
        for call in calls
        for r, (n, m) in zip(call.rows, projections(module), strict=True)
    ]
    return queries, sum(plan.macs for plan in plans), dense, plans[0].kernel


# ---- conversion -----------------------------------------------------------------------------------------------------


def build(
    name: str, module: nn.MultiheadAttention, spec: LowRank
) -> tuple[LowRankMultiheadAttention | None, str | None]:
    """The replacement of a layer, or None and the reason why there is none."""
    weights = [weight.detach() for weight in dense_weights(module)]
    decompose = cache(lambda: [Decomposition.of(weight, f"layer {name!r}") for weight in weights])
    in_size = min(weight.shape[1] for weight in weights)
    rank = spec.rank_for(name, in_size, module.embed_dim, lambda: _spectrum(decompose()))
    if rank is None:
        return None, "the spec gives no rank for it"
    limit = break_even(module)
    if rank > limit:
        return None, f"rank {rank} is not cheaper: break-even is {limit}"
    factored = spec.init == "svd" and not weights[0].is_meta
    options = {"decompositions": decompose()} if factored else {}
    return LowRankMultiheadAttention.from_dense(module, rank, spec.inner_bias, init=spec.init, **options), None


def _spectrum(decompositions: list[Decomposition]) -> Decomposition:
    """The singular values of all projections in one, which all have the same rank."""
    first = decompositions[0]
    s = pad_sequence([decomposition.s for decomposition in decompositions], batch_first=True)
    return Decomposition(first.u, s, first.vh, first.dtype)


def dense_entries(module: LowRankMultiheadAttention, leaf: str) -> dict[str, Tensor]:
    """What stands in a dense state dict for the entry ``leaf`` of the module itself: everything for the first one."""
    if leaf not in ("in_proj_weight_v", "q_proj_weight_v"):
        return {}
    with torch.no_grad():
        return {name: value for name, value in module.merged().items() if not name.startswith("out_proj.")}
