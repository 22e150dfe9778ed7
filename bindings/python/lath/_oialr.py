# SPDX-License-Identifier: Apache-2.0
"""Layers in orthogonal bases in a conversion and a report: which weights get one, and what the layers cost."""

from __future__ import annotations

import math

from torch import Tensor, nn

from .factor import Decomposition
from .nn import OIALRConv1d, OIALRConv2d, OIALRConv3d, OIALRLinear, OIALRMultiheadAttention
from .nn.core import Core
from .nn.cored import Cored
from .nn.oialr_attention import dense_matrices
from .nn.oialr_conv import OIALRConv
from .specs import OIALR

FORMS: dict[type[nn.Module], type[Cored]] = {
    nn.Linear: OIALRLinear,
    nn.Conv1d: OIALRConv1d,
    nn.Conv2d: OIALRConv2d,
    nn.Conv3d: OIALRConv3d,
    nn.MultiheadAttention: OIALRMultiheadAttention,
}

# What a conversion looks at: recurrent layers, too, to say that they stay.
KINDS = (*FORMS, nn.LSTM)


# ---- conversion -----------------------------------------------------------------------------------------------------


def obstacle(module: nn.Module, spec: OIALR) -> str | None:
    """Why the spec leaves a layer dense, or None."""
    if isinstance(module, Cored) or not isinstance(module, tuple(FORMS)):
        return "it has no form of this layer"
    if isinstance(module, nn.MultiheadAttention):
        return None
    out, fan_in = _matrix(module.weight).shape
    if spec.is_too_long(out, fan_in, not isinstance(module, nn.Linear)):
        return f"its weight of {out} x {fan_in} is too long for aspect {spec.aspect:g}"
    return None


def build(name: str, module: nn.Module, spec: OIALR) -> Cored:
    """The replacement of a layer."""
    if isinstance(module, nn.MultiheadAttention):
        weights = dense_matrices(module)
        ranks = [spec.rank_for(name, *weight.shape) for weight in weights]
        found = None if weights[0].is_meta else [Decomposition.of(weight, f"layer {name!r}") for weight in weights]
        return OIALRMultiheadAttention.from_dense(module, ranks, decompositions=found)
    matrix = _matrix(module.weight)
    found = None if matrix.is_meta else Decomposition.of(matrix, f"layer {name!r}")
    return FORMS[type(module)].from_dense(module, spec.rank_for(name, *matrix.shape), decomposition=found)


def _matrix(weight: Tensor) -> Tensor:
    return weight.detach().flatten(1)


def dense_entries(module: Cored, leaf: str) -> dict[str, Tensor]:
    """What stands in a dense state dict for the entry ``leaf`` of the module itself."""
    for core in module.cores():
        if leaf == f"{core.name}s":
            weight = core.dense()
            return {core.name[:-1]: weight.reshape(module._dense_shape(core))}
    basis = any(leaf in (f"{core.name}u", f"{core.name}vh") for core in module.cores())
    return {} if basis else {leaf: getattr(module, leaf).detach()}


# ---- sizes and costs ------------------------------------------------------------------------------------------------


def cores_of(module: nn.Module) -> list[Core]:
    """Its weights, with those of layers within it."""
    return [core for layer in module.modules() if isinstance(layer, Cored) for core in layer.cores()]


def bases_numel(module: nn.Module) -> int:
    """Numbers that do not train."""
    return sum(core.u.numel() + core.vh.numel() for core in cores_of(module))


def dense_parameters(module: Cored) -> int:
    """Numbers in the dense layer of the same function."""
    cores = sum(core.s.numel() for core in cores_of(module))
    return sum(p.numel() for p in module.parameters()) - cores + sum(math.prod(c.shape) for c in cores_of(module))


def macs_of_a_row(module: Cored) -> int:
    """Multiply-adds for one row, output pixel, or query, key and value that are the same."""
    return sum(_macs(core) for core in cores_of(module))


def break_even(module: Cored) -> int:
    """The largest rank of all weights whose factors cost less than the dense weights; 0 for none."""
    shapes = [core.shape for core in cores_of(module)]
    pairs = sum(out + fan_in for out, fan_in in shapes)
    return max(0, (sum(out * fan_in for out, fan_in in shapes) - 1) // max(1, pairs))


def plan(core: Core, rows: int, outputs: int) -> tuple[str, int]:
    """Kernel and multiply-adds of calls with so many rows and numbers of output.

    Those of the factors, or of the dense weight, and of forming either once.
    """
    out, fan_in = core.shape
    fold = out * core.rank**2
    if _is_merged(core):
        return "merged", outputs * fan_in + fold + out * core.rank * fan_in
    return "factored", core.rank * (rows * _groups(core) * fan_in + outputs) + fold


def _groups(core: Core) -> int:
    """Of a convolution: each has channels of its own between the factors."""
    return core.module.groups if isinstance(core.module, OIALRConv) else 1


def _factored_macs(core: Core) -> int:
    """Of one row."""
    out, fan_in = core.shape
    return core.rank * (_groups(core) * fan_in + out)


def _is_merged(core: Core) -> bool:
    return _factored_macs(core) >= math.prod(core.shape)


def _macs(core: Core) -> int:
    return min(_factored_macs(core), math.prod(core.shape))
