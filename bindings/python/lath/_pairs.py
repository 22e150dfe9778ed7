# SPDX-License-Identifier: Apache-2.0
"""The factor pairs of a model: every weight that is a product, whatever layer holds it.

A pair is two parameters of one layer, named alike but for a ``v`` and a ``u``: ``weight_v`` and ``weight_u`` of a
linear layer or a convolution, ``weight_hh_v_l0`` and ``weight_hh_u_l0`` of an LSTM. Where v has more rows than u has
columns, it holds several products on top of each other, as of the groups of a convolution or of query, key and value.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import Module

from .factor import conv_factor_matrices, conv_factors
from .nn import LowRankConv2d
from .nn.factored import Factored

_PACKAGE = "lath.nn."


def pair_names(module: Module) -> list[tuple[str, str]]:
    """Names of the parameters v and u of each pair that ``module`` holds itself."""
    if isinstance(module, Factored):
        return [("weight_v", "weight_u")]
    if not type(module).__module__.startswith(_PACKAGE):
        return []
    pairs = []
    for name in module._parameters:
        other = f"{name}_".replace("_v_", "_u_", 1)[:-1]
        if other != name and module._parameters[name] is not None and module._parameters.get(other) is not None:
            pairs.append((name, other))
    return pairs


def pairs(model: Module) -> Iterator[tuple[Module, str, str]]:
    """Each pair once: the layer and the names of its two parameters."""
    return ((module, v, u) for module in model.modules() for v, u in pair_names(module))


def dense_name(name_v: str) -> str:
    """What the layer calls the product of its parameter ``name_v``: ``weight_hh_l0`` for ``weight_hh_v_l0``."""
    return f"{name_v}_".replace("_v_", "_", 1)[:-1]


def matrices(module: Module, weight_v: Tensor, weight_u: Tensor) -> list[tuple[Tensor, Tensor]]:
    """V (rank, in) and U (out, rank) of each product in a pair of ``module``."""
    if isinstance(module, LowRankConv2d):
        return list(zip(*conv_factor_matrices(weight_v, weight_u, module.groups), strict=True))
    rank = weight_u.shape[1]
    count = weight_v.shape[0] // rank
    if count <= 1:
        return [(weight_v, weight_u)]
    return list(zip(weight_v.split(rank), weight_u.split(weight_u.shape[0] // count), strict=True))


def assembled(module: Module, each: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The inverse of :func:`matrices`: tensors in the shapes of the two parameters."""
    if isinstance(module, LowRankConv2d):
        stacked = (torch.stack(several) for several in zip(*each, strict=True))
        return conv_factors(*stacked, module.mode, module.kernel_size)
    if len(each) == 1:
        return each[0]
    v, u = (torch.cat(several) for several in zip(*each, strict=True))
    return v, u
