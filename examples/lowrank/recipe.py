# SPDX-License-Identifier: Apache-2.0
"""The training recipe of the published experiments: optimizers, schedules and regularizers, by their names.

Momentum 0.9, weight decay 5e-4, a cosine down to 1e-5, steps by 0.1 at half and at three quarters, and ten epochs of
warm-up, as published.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import lath
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4
LOWEST_RATE, STEP_FACTOR = 1e-5, 0.1
WARMUP = 10  # epochs

OPTIMIZERS = ("SGD", "Adam", "RMSprop", "Adamax")
SCHEDULES = ("None", "Linear", "Sqrt", "MultiStepLR", "CosineAnnealingLR")
REGULARIZATIONS = ("none", "frobenius", "kronecker", "L2", "L2-FD", "L2-KD", "FD-KD")


def optimizer(name: str, model: nn.Module, rate: float, factors_decay: bool = True) -> torch.optim.Optimizer:
    """``factors_decay``: weight decay on the factors as well, and not on everything else only."""
    groups = model.parameters() if factors_decay else lath.decay_groups(model, WEIGHT_DECAY)
    options = {"lr": rate, "weight_decay": WEIGHT_DECAY}
    if name in ("SGD", "RMSprop"):
        options["momentum"] = MOMENTUM
    return getattr(torch.optim, name)(groups, **options)


def schedule(name: str, optimizer: torch.optim.Optimizer, epochs: int, warmup: bool) -> lr_scheduler.LRScheduler:
    """To be stepped once per epoch. The warm-up rises evenly to the full rate; the schedule begins after it."""
    makers: dict[str, Callable[[], lr_scheduler.LRScheduler]] = {
        "None": lambda: lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0),
        "Linear": lambda: lr_scheduler.LambdaLR(optimizer, lambda epoch: 1 / max(1, epoch)),
        "Sqrt": lambda: lr_scheduler.LambdaLR(optimizer, lambda epoch: max(1, epoch) ** -0.5),
        "MultiStepLR": lambda: lr_scheduler.MultiStepLR(optimizer, [epochs // 2, 3 * (epochs // 4)], STEP_FACTOR),
        "CosineAnnealingLR": lambda: lr_scheduler.CosineAnnealingLR(optimizer, epochs, LOWEST_RATE),
    }
    if not warmup:
        return makers[name]()
    rise = lr_scheduler.LinearLR(optimizer, 1 / WARMUP, 1.0, WARMUP - 1)
    return lr_scheduler.SequentialLR(optimizer, [rise, makers[name]()], [WARMUP])


@dataclass(frozen=True)
class Regularizer:
    """A decay of the factors, as a term of the loss or straight into the gradients.

    Attributes:
        frobenius, kronecker, l2: coefficients.
        convention: "reference" or "half", see ``lath.frobenius_decay``.
        fused: into the gradients.
    """

    frobenius: float = 0.0
    kronecker: float = 0.0
    l2: float = 0.0
    convention: str = "reference"
    fused: bool = False

    def __bool__(self) -> bool:
        return bool(self.frobenius or self.kronecker or self.l2)

    def value(self, model: nn.Module) -> Tensor:
        coefficients = {"frobenius": self.frobenius, "kronecker": self.kronecker, "l2": self.l2}
        return lath.mixed_decay(model, **coefficients, convention=self.convention)

    def add_to(self, loss: Tensor, model: nn.Module) -> Tensor:
        """The loss to go backward from."""
        return loss + self.value(model) if self and not self.fused else loss

    def after_backward(self, model: nn.Module) -> None:
        """Before the optimizer's step."""
        if self and self.fused:
            decay = lath.FrobeniusDecay(
                model, self.frobenius, self.convention, kronecker=self.kronecker, l2=self.l2
            )  # looks the layers up at each step anyway
            decay.step()


def regularizer(
    name: str, decay: float, l2: float, kd: float, fd: float, convention: str = "reference", fused: bool = False
) -> Regularizer:
    """By its published name: alone with the coefficient ``decay``, in a pair with those of the two."""
    terms = {
        "none": {},
        "frobenius": {"frobenius": decay},
        "kronecker": {"kronecker": decay},
        "L2": {"l2": decay},
        "L2-FD": {"l2": l2, "frobenius": fd},
        "L2-KD": {"l2": l2, "kronecker": kd},
        "FD-KD": {"frobenius": fd, "kronecker": kd},
    }
    return Regularizer(**terms[name], convention=convention, fused=fused)
