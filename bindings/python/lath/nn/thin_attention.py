# SPDX-License-Identifier: Apache-2.0
"""What the attention layers with thin weights share: arguments, masks, and the call around their projections."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import Module, MultiheadAttention, Parameter
from torch.nn.functional import dropout, scaled_dot_product_attention

from .._masks import causal_mask, check_masks, merge_masks
from .factored import check_sizes
from .freezable import Freezable

PARTS = ("q", "k", "v")


class ThinAttention(Freezable):
    """The function of ``nn.MultiheadAttention`` around projections that a subclass has.

    A subclass registers ``in_proj_bias``, ``bias_k``, ``bias_v`` and ``out_proj``, projects query, key and value
    (``_project``), and may have a whole dense layer to stand in for a call (``_dense_copy``). Attention itself is
    ``torch.nn.functional.scaled_dot_product_attention`` where no weights are asked for.
    """

    in_proj_bias: Parameter | None
    bias_k: Parameter | None
    bias_v: Parameter | None
    out_proj: Module

    # What nn.TransformerEncoderLayer and nn.TransformerEncoder ask before they take the fused path.
    _qkv_same_embed_dim = False

    _what: ClassVar[str]  # in errors

    def _set_up(
        self,
        embed_dim: int,
        num_heads: int,
        rank: int,
        dropout: float,
        add_zero_attn: bool,
        kdim: int | None,
        vdim: int | None,
        batch_first: bool,
    ) -> None:
        """Check and keep the arguments that are no parameters."""
        self.embed_dim = embed_dim
        self.kdim = embed_dim if kdim is None else kdim
        self.vdim = embed_dim if vdim is None else vdim
        self._check_arguments(num_heads, rank, dropout)
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads
        self.dropout = dropout
        self.batch_first = batch_first
        self.add_zero_attn = add_zero_attn
        self._packed = self.kdim == self.vdim == embed_dim

    def _check_arguments(self, num_heads: int, rank: int, dropout: float) -> None:
        if self.embed_dim <= 0 or num_heads <= 0:
            got = f"embed_dim {self.embed_dim} and num_heads {num_heads}"
            raise ValueError(f"{self._what}: {got} must be greater than 0")
        if self.embed_dim % num_heads:
            raise ValueError(f"{self._what}: embed_dim {self.embed_dim} is not divisible by num_heads {num_heads}")
        if not 0.0 <= dropout <= 1.0:
            raise ValueError(f"{self._what}: dropout is {dropout!r}, expected a number from 0 to 1")
        check_sizes(type(self), rank, kdim=self.kdim, vdim=self.vdim)

    def _features(self) -> tuple[int, int, int]:
        """Of query, key and value."""
        return self.embed_dim, self.kdim, self.vdim

    @staticmethod
    def _parts(stacked: Tensor | None) -> Sequence[Tensor | None]:
        """Of q, k and v. The gradients of an unbind are put together once, those of slices are added up in full."""
        return (None,) * 3 if stacked is None else stacked.unflatten(0, (3, -1)).unbind(0)

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> Sequence[Tensor]:
        """q, k and v, in the shapes of the inputs."""
        raise NotImplementedError

    def _dense_copy(self, query: Tensor, key: Tensor, value: Tensor) -> MultiheadAttention | None:
        """The dense layer that serves this call, if there is one."""
        return None

    # ---- the call ---------------------------------------------------------------------------------------------------

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend to ``value`` by the likeness of ``query`` and ``key``.

        Args:
            query: (queries, batch, embed_dim), or (batch, queries, embed_dim) with ``batch_first``, or
                (queries, embed_dim).
            key: (keys, batch, kdim), or as above.
            value: (keys, batch, vdim), or as above.
            key_padding_mask: (batch, keys), or (keys) for unbatched input; True, or minus infinity, leaves a key out.
                Other floats are added to the scores.
            need_weights: return the attention weights as well. Calls without them are faster.
            attn_mask: (queries, keys) or (batch * num_heads, queries, keys), with the same meaning.
            average_attn_weights: return the mean of the weights over the heads.
            is_causal: ``attn_mask`` is the causal one, which then need not be read. Unlike ``nn.MultiheadAttention``,
                this layer does not need the mask beside it.

        Returns:
            Output, of the shape of ``query``; weights (batch, queries, keys), or (batch, num_heads, queries, keys) if
            they are not averaged, or None. Unbatched, these have no batch dimension. With ``add_bias_kv`` and
            ``add_zero_attn`` there are so many keys more.

        Raises:
            RuntimeError: a shape does not fit, or an input is a nested tensor.
            TypeError: an input is not a tensor, or a mask neither bool nor floating-point.
        """
        batched = self._check_inputs(query, key, value)
        scores = self._scores_shape(query, key, batched)
        check_masks(self._what, scores, batched, attn_mask, key_padding_mask)
        dense = self._dense_copy(query, key, value)
        if dense is not None:
            if is_causal and attn_mask is None:
                attn_mask = causal_mask(*scores[2:], query.device)
            return dense(query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights)
        extra = (self.bias_k is not None) + bool(self.add_zero_attn)
        q, k, v = (self._heads(t, batched) for t in self._project(query, key, value))

        # The hint speaks of the keys that were given.
        hint = is_causal and not need_weights and key_padding_mask is None and not extra
        if hint:
            attn_mask = None
        elif is_causal and attn_mask is None:
            attn_mask = causal_mask(*scores[2:], q.device)
        if key_padding_mask is not None and not batched:
            key_padding_mask = key_padding_mask.unsqueeze(0)
        mask = merge_masks(scores, q.dtype, attn_mask, key_padding_mask, extra)
        if extra:
            k, v = self._append(k, self.bias_k), self._append(v, self.bias_v)

        rate, weights = self.dropout if self.training else 0.0, None
        if need_weights:
            y, weights = _attend(q, k, v, mask, rate)
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights.squeeze(0)
        else:
            y = scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=rate, is_causal=hint)
        return self.out_proj(self._join(y, batched)), weights

    def _check_inputs(self, query: Tensor, key: Tensor, value: Tensor) -> bool:
        """Whether the call is batched; an error if the inputs do not fit."""
        inputs = {"query": query, "key": key, "value": value}
        for name, x in inputs.items():
            if not isinstance(x, Tensor):
                raise TypeError(f"{self._what}: {name} is {type(x).__name__}, expected torch.Tensor")
            if x.is_nested:
                raise RuntimeError(
                    f"{self._what}: {name} is a nested tensor, expected a padded one with a key_padding_mask; "
                    "an nn.TransformerEncoder above makes them unless its use_nested_tensor is False"
                )
        if query.dim() not in (2, 3):
            raise RuntimeError(f"{self._what}: query has shape {tuple(query.shape)}, expected 2 or 3 dimensions")
        for (name, x), features in zip(inputs.items(), self._features(), strict=True):
            if x.dim() != query.dim() or x.shape[-1] != features:
                expected = f"{query.dim()} dimensions as query has and the last one {features}"
                raise RuntimeError(f"{self._what}: {name} has shape {tuple(x.shape)}, expected {expected}")
        if key.shape[:-1] != value.shape[:-1]:
            got = f"key has shape {tuple(key.shape)} and value {tuple(value.shape)}"
            raise RuntimeError(f"{self._what}: {got}, expected the same batch and sequence")
        batch = 0 if self.batch_first else 1
        if query.dim() == 3 and query.shape[batch] != key.shape[batch]:
            got = f"query has shape {tuple(query.shape)} and key {tuple(key.shape)}"
            raise RuntimeError(f"{self._what}: {got}, expected the same batch in dimension {batch}")
        return query.dim() == 3

    def _scores_shape(self, query: Tensor, key: Tensor, batched: bool) -> tuple[int, int, int, int]:
        """(batch, heads, queries, keys)."""
        if not batched:
            return 1, self.num_heads, query.shape[0], key.shape[0]
        steps = 1 if self.batch_first else 0
        return query.shape[1 - steps], self.num_heads, query.shape[steps], key.shape[steps]

    def _heads(self, t: Tensor, batched: bool) -> Tensor:
        """A projection as (batch, heads, sequence, head_dim)."""
        t = t.unflatten(-1, (self.num_heads, self.head_dim))
        if not batched:
            return t.transpose(0, 1).unsqueeze(0)
        return t.transpose(1, 2) if self.batch_first else t.permute(1, 2, 0, 3)

    def _join(self, y: Tensor, batched: bool) -> Tensor:
        """(batch, heads, queries, head_dim) in the shape of the query."""
        if not batched:
            return y.squeeze(0).transpose(0, 1).flatten(1)
        return (y.transpose(1, 2) if self.batch_first else y.permute(2, 0, 1, 3)).flatten(2)

    def _append(self, t: Tensor, bias: Tensor | None) -> Tensor:
        """Keys or values with the learned one and the one of zeros behind them."""
        batch, heads, _, head_dim = t.shape
        more = [t]
        if bias is not None:
            more.append(bias.to(t.dtype).view(1, heads, 1, head_dim).expand(batch, -1, -1, -1))
        if self.add_zero_attn:
            more.append(t.new_zeros(batch, heads, 1, head_dim))
        return torch.cat(more, 2)

    # ---- in words ---------------------------------------------------------------------------------------------------

    def _more_options(self) -> dict[str, tuple[object, object]]:
        """Arguments of the subclass, each with its value and its default."""
        return {}

    def extra_repr(self) -> str:
        text = f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, rank={self.rank}"
        options = {
            "dropout": (self.dropout, 0.0),
            "bias": (self.in_proj_bias is not None, True),
            "add_bias_kv": (self.bias_k is not None, False),
            "add_zero_attn": (self.add_zero_attn, False),
            "kdim": (self.kdim, self.embed_dim),
            "vdim": (self.vdim, self.embed_dim),
            "batch_first": (self.batch_first, False),
            **self._more_options(),
        }
        return ", ".join([text, *(f"{name}={got}" for name, (got, default) in options.items() if got != default)])


def projections(module: Module) -> list[tuple[int, int]]:
    """In and out of q, k, v and the output, of a dense or a low-rank layer."""
    size = module.embed_dim
    return [(size, size), (module.kdim, size), (module.vdim, size), (size, size)]


def dense_weights(module: MultiheadAttention) -> list[Tensor]:
    """The weights of q, k, v and the output."""
    if module.in_proj_weight is not None:
        return [*module.in_proj_weight.chunk(3), module.out_proj.weight]
    return [module.q_proj_weight, module.k_proj_weight, module.v_proj_weight, module.out_proj.weight]


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, rate: float) -> tuple[Tensor, Tensor]:
    """Output and weights; as in torch, the weights that are returned have gone through dropout."""
    scores = (q * (1 / math.sqrt(q.shape[-1]))) @ k.mT
    weights = (scores if mask is None else scores + mask).softmax(-1)
    if rate > 0.0:
        weights = dropout(weights, rate)
    return weights @ v, weights
