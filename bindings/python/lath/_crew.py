# SPDX-License-Identifier: Apache-2.0
"""The processes that share a piece of work; one alone where torch.distributed is not in use."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed


class Crew:
    """Work item i belongs to process ``i mod size``.

    Every process has to make the same calls in the same order. A crew of one communicates nothing.

    Args:
        split: share the work; otherwise each process is a crew of one.
        group: the process group, or None for all processes.
    """

    def __init__(self, split: bool, group: distributed.ProcessGroup | None = None) -> None:
        self.group = group
        together = split and distributed.is_available() and distributed.is_initialized()
        self.rank = distributed.get_rank(group) if together else 0
        self.size = distributed.get_world_size(group) if together else 1

    def owns(self, item: int) -> bool:
        return item % self.size == self.rank

    def add_(self, values: Tensor) -> None:
        """The sum over all processes, in place."""
        if self.size > 1:
            distributed.all_reduce(values, group=self.group)

    def share_(self, tensors: Sequence[Tensor], owners: Sequence[int] | None = None) -> None:
        """Overwrite each tensor by that of the process that owns its item; of the first one without ``owners``."""
        if self.size == 1:
            return
        pending = []
        for i, t in enumerate(tensors):
            source = 0 if owners is None else owners[i] % self.size
            if self.group is not None:
                source = distributed.get_global_rank(self.group, source)
            pending.append(distributed.broadcast(t, source, group=self.group, async_op=True))
        for work in pending:
            work.wait()


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All numbers in one vector."""
    return torch.cat([t.reshape(-1) for t in tensors])


def unflat(vector: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """The inverse of :func:`flat`: views."""
    sizes = [torch.Size(shape).numel() for shape in shapes]
    return [part.view(shape) for part, shape in zip(vector.split(sizes), shapes, strict=True)]
