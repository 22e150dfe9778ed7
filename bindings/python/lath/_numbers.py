# SPDX-License-Identifier: Apache-2.0
"""How many numbers a model with weights in orthogonal bases has, and how many train."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch.nn import Module

from .nn.core import Core


@dataclass(frozen=True)
class Numbers:
    """How many numbers a model has, now and as a dense one.

    Attributes:
        trainable: in parameters that require a gradient.
        dense_trainable: the same for the dense model.
        stored: in parameters and bases.
        dense_stored: in the parameters of the dense model.
    """

    trainable: int
    dense_trainable: int
    stored: int
    dense_stored: int

    @classmethod
    def of(cls, model: Module, cores: Iterable[Core]) -> Numbers:
        """Those of a model that has these cores."""
        parameters, cores = list(model.parameters()), list(cores)
        trainable = sum(p.numel() for p in parameters if p.requires_grad)
        total = sum(p.numel() for p in parameters)
        gone = [(math.prod(c.shape) - c.s.numel(), c.s.requires_grad) for c in cores]
        return cls(
            trainable,
            trainable + sum(numel for numel, trains in gone if trains),
            total + sum(c.u.numel() + c.vh.numel() for c in cores),
            total + sum(numel for numel, _ in gone),
        )

    @property
    def trainable_share(self) -> float:
        return self.trainable / max(1, self.dense_trainable)

    @property
    def stored_share(self) -> float:
        """More than 1 right after a conversion at full rank."""
        return self.stored / max(1, self.dense_stored)
