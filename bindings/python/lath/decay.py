# SPDX-License-Identifier: Apache-2.0
"""Decay terms of factored weights, summed over every low-rank layer of a model, LSTMs and attention included.

========================  =========================  ==========================================
function                  value per weight           gradients of U and V
========================  =========================  ==========================================
:func:`frobenius_decay`   ``|| U V ||^2``            ``2 U (V V^T)``, ``2 (U^T U) V``
:func:`kronecker_decay`   ``|| U ||^2 || V ||^2``    ``2 ||V||^2 U``, ``2 ||U||^2 V``
:func:`l2_decay`          ``|| U ||^2 + || V ||^2``  ``2 U``, ``2 V``
========================  =========================  ==========================================

U and V are the matrices of the weight, see ``lath.LowRank``. A convolution with groups counts the value of each group,
an LSTM that of each input and recurrent weight that is factored, attention that of each projection.
:func:`mixed_decay` is a weighted sum of them.

A weight U S V in orthogonal bases (``lath.OIALR``) has the norm of its core, ``|| U S V || = || S ||``: its Frobenius
term is that of S alone and the gradient is that of weight decay on S. It has no part in the other two.

That is the convention "reference". The convention "half" is half of each, so that the gradient of the Frobenius term is
that of weight decay on the product. Two schemes are published:

* in addition: the "reference" term joins the loss, and the optimizer's weight decay stays on, for the factors as well;
* instead (Khodak et al., ICLR 2021): the "half" gradient takes the place of weight decay on the factors, with the same
  coefficient. :func:`decay_groups` gives the optimizer the parameters in this way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from . import ops
from ._pairs import assembled, matrices, pair_names, pairs
from .nn.cored import oialr_cores

_SCALES = {"reference": 1.0, "half": 0.5}


def _scale(convention: str, what: str) -> float:
    if convention not in _SCALES:
        raise ValueError(f"lath.{what}: convention is {convention!r}, expected one of {tuple(_SCALES)}")
    return _SCALES[convention]


def _coefficient(name: str, value: float, what: str) -> float:
    if not 0.0 <= value < float("inf"):
        raise ValueError(f"lath.{what}: {name} is {value!r}, expected a finite number >= 0")
    return value


def _total(
    model: Module, convention: str, what: str, term: Callable[[Tensor, Tensor], Tensor], of_cores: float = 0.0
) -> Tensor:
    """The sum of ``term`` over all pairs, and of the squares of all cores times ``of_cores``."""
    scale = _scale(convention, what)
    values = [
        term(v, u)
        for module, name_v, name_u in pairs(model)
        for v, u in matrices(module, getattr(module, name_v), getattr(module, name_u))
    ]
    if of_cores:
        values += [of_cores * _square(core.s) for core in oialr_cores(model).values()]
    if not values:
        first = next(model.parameters(), None)
        return torch.zeros((), device=None if first is None else first.device)
    total = torch.stack(values).sum() if len(values) > 1 else values[0]
    return total if scale == 1.0 else scale * total


def _square(t: Tensor) -> Tensor:
    """Sum of squares, in float32 at least."""
    wide = t if t.dtype == torch.float64 else t.float()
    return wide.square().sum()


def _add_gradient(parameter: Parameter, gradient: Tensor) -> None:
    if parameter.grad is None:
        parameter.grad = gradient
    else:
        parameter.grad.add_(gradient)


def frobenius_decay(model: Module, convention: str = "reference") -> Tensor:
    """Sum of ``|| U V ||_F^2`` over the factored weights, in Gram form; a scalar to add to the loss.

    Args:
        model: any module. Without a thin layer the value is 0.
        convention: "reference", or "half" for half the value and gradient.

    Raises:
        ValueError: an unknown convention.
    """
    return _total(model, convention, "frobenius_decay", ops.frobenius_decay, of_cores=1.0)


def kronecker_decay(model: Module, convention: str = "reference") -> Tensor:
    """Sum of ``|| U ||_F^2 || V ||_F^2``, never less than :func:`frobenius_decay`. Arguments and errors as there."""
    return _total(model, convention, "kronecker_decay", lambda v, u: _square(u) * _square(v))


def l2_decay(model: Module, convention: str = "reference") -> Tensor:
    """Sum of ``|| U ||_F^2 + || V ||_F^2``. Arguments and errors as for :func:`frobenius_decay`."""
    return _total(model, convention, "l2_decay", lambda v, u: _square(u) + _square(v))


def mixed_decay(
    model: Module,
    *,
    frobenius: float = 0.0,
    kronecker: float = 0.0,
    l2: float = 0.0,
    convention: str = "reference",
) -> Tensor:
    """The three terms with their coefficients, added up; a term with coefficient 0 is not computed.

    The published pairs are "FD-KD" (``frobenius`` and ``kronecker``), "L2-FD" and "L2-KD".

    Raises:
        ValueError: an unknown convention, or a coefficient that is negative or not finite.
    """
    coefficients = {"frobenius": frobenius, "kronecker": kronecker, "l2": l2}
    for name, value in coefficients.items():
        _coefficient(name, value, "mixed_decay")

    def term(v: Tensor, u: Tensor) -> Tensor:
        parts = []
        if frobenius:
            parts.append(frobenius * ops.frobenius_decay(v, u))
        if kronecker or l2:
            square_v, square_u = _square(v), _square(u)
            parts.append(kronecker * square_u * square_v + l2 * (square_u + square_v))
        return sum(parts) if parts else v.new_zeros((), dtype=torch.promote_types(v.dtype, torch.float32))

    return _total(model, convention, "mixed_decay", term, of_cores=frobenius)


def decay_groups(model: Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer whose weight decay leaves the factors alone, because Frobenius decay has them.

    Each group comes with its ``weight_decay``; the second one, that of the factors, with 0::

        optimizer = torch.optim.SGD(lath.decay_groups(model, 5e-4), lr=0.1, momentum=0.9)
        decay = lath.FrobeniusDecay(model, coefficient=5e-4)

    Raises:
        ValueError: a weight decay that is negative or not finite.
    """
    _coefficient("weight_decay", weight_decay, "decay_groups")
    factors = {
        id(module._parameters[name])
        for module in model.modules()
        for names in pair_names(module)
        for name in names
        if name in module._parameters
    }
    factors |= {id(core.s) for core in oialr_cores(model).values()}
    others = [p for p in model.parameters() if id(p) not in factors]
    thin = [p for p in model.parameters() if id(p) in factors]
    return [{"params": others, "weight_decay": weight_decay}, {"params": thin, "weight_decay": 0.0}]


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
        kronecker, l2: coefficients of the other two terms, for the published pairs; their gradients in the same
            convention.

    Raises:
        ValueError: an unknown convention, or a coefficient that is negative or not finite.
    """

    def __init__(
        self,
        model: Module,
        coefficient: float,
        convention: str = "half",
        *,
        kronecker: float = 0.0,
        l2: float = 0.0,
    ) -> None:
        self.model = model
        self.coefficient = _coefficient("coefficient", coefficient, "FrobeniusDecay")
        self.kronecker = _coefficient("kronecker", kronecker, "FrobeniusDecay")
        self.l2 = _coefficient("l2", l2, "FrobeniusDecay")
        self.scale = _scale(convention, "FrobeniusDecay")

    @torch.no_grad()
    def step(self) -> None:
        """Add the gradient to ``.grad`` of every factor that requires one. Biases have no part in the term."""
        for module, name_v, name_u in pairs(self.model):
            weights = getattr(module, name_v), getattr(module, name_u)
            if not any(weight.requires_grad for weight in weights):
                continue
            each = [self._gradients(v, u) for v, u in matrices(module, *weights)]
            for weight, gradient in zip(weights, assembled(module, each), strict=True):
                if not weight.requires_grad:
                    continue
                _add_gradient(weight, gradient)
        for core in oialr_cores(self.model).values():
            if core.s.requires_grad:
                _add_gradient(core.s, 2 * self.scale * self.coefficient * core.s)

    def _gradients(self, v: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Of V and U."""
        value, gram_v, gram_u = torch.ops.lath.frobenius_decay(v, u)
        grad = torch.full_like(value, self.coefficient * self.scale)
        of_v, of_u = torch.ops.lath.frobenius_decay_backward(grad, v, u, gram_v, gram_u)
        if self.kronecker or self.l2:
            # The traces of the Gram matrices are the squared norms.
            kronecker, l2 = 2 * self.scale * self.kronecker, 2 * self.scale * self.l2
            of_v += (kronecker * gram_u.trace() + l2).to(v.dtype) * v
            of_u += (kronecker * gram_v.trace() + l2).to(u.dtype) * u
        return of_v, of_u
