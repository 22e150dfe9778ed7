# SPDX-License-Identifier: Apache-2.0
"""Decay terms of factored layers, summed over every low-rank layer of a model.

========================  =========================  ==========================================
function                  value per layer            gradients of U and V
========================  =========================  ==========================================
:func:`frobenius_decay`   ``|| U V ||^2``            ``2 U (V V^T)``, ``2 (U^T U) V``
:func:`kronecker_decay`   ``|| U ||^2 || V ||^2``    ``2 ||V||^2 U``, ``2 ||U||^2 V``
:func:`l2_decay`          ``|| U ||^2 + || V ||^2``  ``2 U``, ``2 V``
========================  =========================  ==========================================

U and V are the matrices of the layer, see ``lath.LowRank``; a convolution with groups counts the value of each group.

That is the convention "reference". The convention "half" is half of each, so that the gradient of the Frobenius term is
that of weight decay on the product. Khodak et al., ICLR 2021, put Frobenius decay in the place of weight decay, with
the "half" gradient; then set the optimizer's ``weight_decay`` of the factors to 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import Module

from . import ops
from .factor import conv_factor_matrices, conv_factors
from .nn import LowRankConv2d
from .nn.factored import Factored

_SCALES = {"reference": 1.0, "half": 0.5}


def _scale(convention: str, what: str) -> float:
    if convention not in _SCALES:
        raise ValueError(f"lath.{what}: convention is {convention!r}, expected one of {tuple(_SCALES)}")
    return _SCALES[convention]


def _layers(model: Module) -> Iterator[Factored]:
    return (module for module in model.modules() if isinstance(module, Factored))


def _matrices(layer: Factored) -> list[tuple[Tensor, Tensor]]:
    """V (rank, in) and U (out, rank); of a convolution, those of each group."""
    if isinstance(layer, LowRankConv2d):
        return list(zip(*conv_factor_matrices(layer.weight_v, layer.weight_u, layer.groups), strict=True))
    return [(layer.weight_v, layer.weight_u)]


def _total(model: Module, convention: str, what: str, term: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    scale = _scale(convention, what)
    values = [term(v, u) for layer in _layers(model) for v, u in _matrices(layer)]
    if not values:
        first = next(model.parameters(), None)
        return torch.zeros((), device=None if first is None else first.device)
    total = torch.stack(values).sum() if len(values) > 1 else values[0]
    return total if scale == 1.0 else scale * total


def _square(t: Tensor) -> Tensor:
    """Sum of squares, in float32 at least."""
    wide = t if t.dtype == torch.float64 else t.float()
    return wide.square().sum()


def frobenius_decay(model: Module, convention: str = "reference") -> Tensor:
    """Sum of ``|| U V ||_F^2`` over the low-rank layers, in Gram form; a scalar to add to the loss.

    Args:
        model: any module. Without a low-rank layer the value is 0.
        convention: "reference", or "half" for half the value and gradient.

    Raises:
        ValueError: an unknown convention.
    """
    return _total(model, convention, "frobenius_decay", ops.frobenius_decay)


def kronecker_decay(model: Module, convention: str = "reference") -> Tensor:
    """Sum of ``|| U ||_F^2 || V ||_F^2``, never less than :func:`frobenius_decay`. Arguments and errors as there."""
    return _total(model, convention, "kronecker_decay", lambda v, u: _square(u) * _square(v))


def l2_decay(model: Module, convention: str = "reference") -> Tensor:
    """Sum of ``|| U ||_F^2 + || V ||_F^2``. Arguments and errors as for :func:`frobenius_decay`."""
    return _total(model, convention, "l2_decay", lambda v, u: _square(u) + _square(v))


class FrobeniusDecay:
    """Adds the gradient of Frobenius decay straight to ``.grad``, without a loss term and without a graph.

    Call :meth:`step` between ``backward()`` and ``optimizer.step()``; with a ``GradScaler`` after ``unscale_``::

        decay = lath.FrobeniusDecay(model, coefficient=1e-4)
        loss.backward()
        decay.step()
        optimizer.step()

    Args:
        model: layers are looked up at each step, so it may be converted afterwards.
        coefficient: factor of the term; 0 or more.
        convention: "half" adds ``coefficient * (U V V^T, U^T U V)`` as in Khodak et al., ICLR 2021; "reference" adds
            twice that, the gradient of ``coefficient * lath.frobenius_decay(model)``.

    Raises:
        ValueError: an unknown convention, or a coefficient that is negative or not finite.
    """

    def __init__(self, model: Module, coefficient: float, convention: str = "half") -> None:
        if not 0.0 <= coefficient < float("inf"):
            raise ValueError(f"lath.FrobeniusDecay: coefficient is {coefficient!r}, expected a finite number >= 0")
        self.model = model
        self.coefficient = coefficient
        self.scale = _scale(convention, "FrobeniusDecay")

    @torch.no_grad()
    def step(self) -> None:
        """Add the gradient to ``.grad`` of every factor that requires one. Biases have no part in the term."""
        for layer in _layers(self.model):
            weights = layer.weight_v, layer.weight_u
            if not any(weight.requires_grad for weight in weights):
                continue
            for weight, gradient in zip(weights, self._gradients(layer), strict=True):
                if not weight.requires_grad:
                    continue
                if weight.grad is None:
                    weight.grad = gradient
                else:
                    weight.grad.add_(gradient)

    def _gradients(self, layer: Factored) -> tuple[Tensor, Tensor]:
        """Of the two weights, in their shapes."""
        gradients = []
        for v, u in _matrices(layer):
            value, gram_v, gram_u = torch.ops.lath.frobenius_decay(v, u)
            grad = torch.full_like(value, self.coefficient * self.scale)
            gradients.append(torch.ops.lath.frobenius_decay_backward(grad, v, u, gram_v, gram_u))
        if not isinstance(layer, LowRankConv2d):
            return gradients[0]
        stacked = (torch.stack(several) for several in zip(*gradients, strict=True))
        return conv_factors(*stacked, layer.mode, layer.kernel_size)
