# SPDX-License-Identifier: Apache-2.0
"""The layers that a conversion to come would look at, and the matrices that their ranks are read from."""

from __future__ import annotations

from torch import Tensor, nn

from ..convert import Selection, _already, _select, _selector, _skip_ends
from ..factor import conv_matrix
from ..nn.thin_attention import dense_weights
from ..survey import Site, survey


def candidates(model: nn.Module, spec, include: Selection, exclude: Selection, what: str) -> list[Site]:
    """The layers that ``lath.convert`` with these arguments would try to factor, in model order.

    Of ``spec`` only ``skip_first`` and ``skip_last`` count.

    Raises:
        TypeError: ``model`` is no module, or a selection of a wrong form.
        ValueError: there is no such layer.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"{what}: model is {type(model).__name__}, expected torch.nn.Module")
    sites = survey(model)
    reasons = [site.reason or _already(site) for site in sites]
    _select(sites, reasons, _selector(include, "include"), _selector(exclude, "exclude"))
    _skip_ends(reasons, spec.skip_first, spec.skip_last)
    chosen = [site for site, reason in zip(sites, reasons, strict=True) if reason is None]
    if not chosen:
        notes = "; ".join(f"{site.name}: {reason}" for site, reason in zip(sites[:5], reasons[:5], strict=True))
        raise ValueError(f"{what}: the model has no layer to factor ({notes or 'it has no layer of a known kind'})")
    return chosen


def weight_matrices(module: nn.Module, conv: str) -> list[Tensor]:
    """What the rank of a dense layer is the rank of: matrices, or stacks of one per group of a convolution.

    Attention has one rank for its four projections, an LSTM that of its recurrent weights.
    """
    if isinstance(module, nn.Conv2d):
        return [conv_matrix(module.weight.detach(), conv, module.groups)]
    if isinstance(module, nn.MultiheadAttention):
        return [weight.detach() for weight in dense_weights(module)]
    if isinstance(module, nn.LSTM):
        return [p.detach() for name, p in module._parameters.items() if name.startswith("weight_hh")]
    return [module.weight.detach()]


def full_rank(matrices: list[Tensor]) -> int:
    """The largest rank that one of them can have."""
    return max(min(matrix.shape[-2:]) for matrix in matrices)
