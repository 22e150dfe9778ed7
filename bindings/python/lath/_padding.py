# SPDX-License-Identifier: Apache-2.0
"""Padding "same" and "valid" of a convolution, in numbers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import pad


def same_padding(kernel: int, dilation: int) -> tuple[int, int]:
    """Before and after, so that the output is as large as the input; an odd pixel goes after."""
    total = dilation * (kernel - 1)
    return total // 2, total - total // 2


def in_numbers(
    x: Tensor, kernel_size: Sequence[int], padding: str, dilation: Sequence[int]
) -> tuple[Tensor, tuple[int, ...]]:
    """X, padded where the sides of an axis differ, and the padding that is left."""
    if padding == "valid":
        return x, (0,) * len(kernel_size)
    sides = [same_padding(k, d) for k, d in zip(kernel_size, dilation, strict=True)]
    if any(before != after for before, after in sides):
        x = pad(x, [side for before, after in reversed(sides) for side in (0, after - before)])
    return x, tuple(before for before, _ in sides)
