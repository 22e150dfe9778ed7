# SPDX-License-Identifier: Apache-2.0
"""Batch norms between the factors of low-rank convolutions."""

from __future__ import annotations

from torch import nn

from ..convert import _carry_over
from ..nn import LowRankConv2d
from ..nn.conv_norm import LowRankConv2dNorm
from ..survey import survey


def insert_norms(model: nn.Module, names: set[str] | None = None) -> list[str]:
    """Give the low-rank convolutions of ``model`` a batch norm between their factors, in place.

    Hooks and parameters are carried over, so an optimizer has to learn of the new parameters of the norms alone. The
    function changes: a norm that is new divides by the deviation of the batch.

    Args:
        model: after ``lath.convert``.
        names: only the layers of these qualified names.

    Returns:
        The qualified names of the layers that have one now and had none.

    Raises:
        ValueError: one of them has an inner bias; the model is as it was.
    """
    sites = [
        site
        for site in survey(model)
        if type(site.module) is LowRankConv2d and (names is None or not names.isdisjoint(site.names))
    ]
    built = [LowRankConv2dNorm.from_low_rank(site.module) for site in sites]
    for site, new in zip(sites, built, strict=True):
        _carry_over(site.module, new)
        site.put(new)
    return [site.name for site in sites]
