# SPDX-License-Identifier: Apache-2.0
"""The masks of ``nn.MultiheadAttention`` as one tensor that is added to the scores."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad


def merge_masks(
    scores: tuple[int, int, int, int],
    dtype: torch.dtype,
    attn_mask: Tensor | None,
    key_padding_mask: Tensor | None,
    extra: int,
) -> Tensor | None:
    """What is added to the scores, of a shape that broadcasts to theirs; None if there is no mask.

    Args:
        scores: batch, heads, queries and keys.
        dtype: of the scores.
        attn_mask: (queries, keys) or (batch * heads, queries, keys); True, or minus infinity, forbids a position.
        key_padding_mask: (batch, keys), with the same meaning.
        extra: keys beyond those of ``scores``, which no mask forbids.
    """
    total = None
    if attn_mask is not None:
        _, _, queries, keys = scores
        single = attn_mask.dim() == 2
        total = _additive(attn_mask, dtype).reshape((1, 1, queries, keys) if single else scores)
    if key_padding_mask is not None:
        padding = _additive(key_padding_mask, dtype)[:, None, None, :]
        total = padding if total is None else total + padding
    return pad(total, (0, extra)) if total is not None and extra else total


def check_masks(
    what: str, scores: tuple[int, int, int, int], batched: bool, attn_mask: object, key_padding_mask: object
) -> None:
    """Raise an error for a mask whose type or shape does not fit; the scores of an unbatched call have batch 1."""
    batch, heads, queries, keys = scores
    _check_mask(what, "attn_mask", attn_mask, (queries, keys), (batch * heads, queries, keys))
    _check_mask(what, "key_padding_mask", key_padding_mask, (batch, keys) if batched else (keys,))


def causal_mask(queries: int, keys: int, device: torch.device) -> Tensor:
    """True where a query would see a later key."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).triu(1)


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """0 and minus infinity for a bool mask; a float mask as it is."""
    if mask.dtype is torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf"))
    return mask.to(dtype)


def _check_mask(what: str, name: str, mask: object, *shapes: tuple[int, ...]) -> None:
    if mask is None:
        return
    if not isinstance(mask, Tensor):
        raise TypeError(f"{what}: {name} is {type(mask).__name__}, expected torch.Tensor or None")
    if mask.dtype is not torch.bool and not mask.is_floating_point():
        raise TypeError(f"{what}: {name} is {mask.dtype}, expected torch.bool or a floating-point type")
    if tuple(mask.shape) not in shapes:
        expected = " or ".join(map(str, shapes))
        raise RuntimeError(f"{what}: {name} has shape {tuple(mask.shape)}, expected {expected}")
