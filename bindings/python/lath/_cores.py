# SPDX-License-Identifier: Apache-2.0
"""The weights of a model in orthogonal bases, as a training controller keeps book of them; and how they come to be."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import Module, Parameter
from torch.optim import Optimizer

from . import _fast_path, _oialr, optimizer_state
from .basis import wide
from .convert import convert
from .nn.core import Core
from .survey import THIN, survey


@dataclass
class Weight:
    """One weight ``W = U S Vh``.

    Attributes:
        key: the name that the user sees: of the layer, in attention with the projection.
        layer: qualified name of the layer.
        dense_name: qualified name of the parameter that W is in the dense model.
        core: the tensors.
        rank: in use; less than that of the tensors where tails are zeros.
        skips: how many updates it is still left out of.
        since: updates since its bases were made orthonormal.
        stability: measured last, or None.
    """

    key: str
    layer: str
    dense_name: str
    core: Core
    rank: int
    skips: int = 0
    since: int = 0
    stability: float | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return self.key, self.layer

    @property
    def small_side(self) -> int:
        return min(self.core.shape)

    def factors(self) -> tuple[Tensor, Tensor, Tensor]:
        """U, S and Vh as far as they are in use."""
        core, r = self.core, self.rank
        return core.u[:, :r], core.s.detach()[:r, :r], core.vh[:r]


def weights(model: Module) -> list[Weight]:
    """In the order of ``named_modules()``; shared layers once."""
    found = []
    for name, module in model.named_modules():
        for core in module.cores() if hasattr(module, "cores") else ():
            dense = core.name.removesuffix("_")
            part = dense.removesuffix("weight").removesuffix("_")
            key = ".".join(filter(None, (name, part)))
            found.append(Weight(key, name, ".".join(filter(None, (name, dense))), core, core.rank))
    return found


def not_finite(model: Module) -> list[str]:
    """Names of the layers that could be converted but for NaN or infinity in a weight; the host waits once."""
    names, checks = [], []
    for site in survey(model, _oialr.KINDS):
        if site.reason is None and not isinstance(site.module, THIN):
            values = [p for p in site.module.parameters() if p.dim() > 1 and not p.is_meta]
            if values:
                names.append(site.names)
                checks.append(torch.stack([torch.isfinite(v.detach()).all() for v in values]).all().cpu())
    finite = torch.stack(checks).tolist() if checks else []
    return [name for several, good in zip(names, finite, strict=True) if not good for name in several]


def converted(
    model: Module,
    spec: object,
    include: object,
    exclude: Callable[[str, Module], bool] | None,
    optimizers: Iterable[Optimizer],
    hand_over: Callable[[Optimizer, Parameter, Weight], None],
    prepare: Callable[[list[Weight]], None] = lambda found: None,
) -> list[Weight]:
    """Convert the model and put each core where the optimizers had its weight; the new weights.

    After an error the model and the optimizers are as they were.

    Args:
        model: as for ``lath.convert``.
        spec: as there.
        include: as there.
        exclude: as there.
        optimizers: of the model.
        hand_over: makes the optimizer's state for the old parameter that of the new one.
        prepare: is called with the weights before that.

    Raises:
        RuntimeError: no layer is converted; no optimizer holds a weight that trains.
        Whatever ``lath.convert`` raises.
    """
    dense = dict(model.named_parameters())
    tree = [(module, key, child) for module in model.modules() for key, child in module._modules.items()]
    convert(model, spec, include, exclude)
    found = weights(model)
    try:
        if not found:
            raise RuntimeError("lath.OIALRController: there is no layer to convert; lath.convert's report says why")
        missing = [w.dense_name for w in found if _is_missing(dense[w.dense_name], optimizers)]
        if missing:
            raise RuntimeError(
                f"lath.OIALRController: the optimizer does not hold {', '.join(missing)}, so nothing would train them; "
                "exclude these layers, or set requires_grad to False"
            )
        prepare(found)
    except BaseException:
        for module, key, child in tree:
            if module._modules[key] is not child:
                _put_back(module, key, child)
        _fast_path.update(model, THIN)
        raise
    for weight in found:
        old = dense[weight.dense_name]
        for optimizer in optimizer_state.swap(optimizers, old, weight.core.s, "_s"):
            hand_over(optimizer, old, weight)
        old.grad = None
    return found


def _put_back(parent: Module, key: str, child: Module) -> None:
    """Undo a replacement; hooks that the two layers share point to the first one again."""
    parent._modules[key] = child
    for hook in child._load_state_dict_pre_hooks.values():
        if hook.with_module:
            hook.module = weakref.ref(child)


def check_held(found: Iterable[Weight], optimizers: Iterable[Optimizer]) -> None:
    """RuntimeError where no optimizer holds a core that trains."""
    missing = [w.key for w in found if _is_missing(w.core.s, optimizers)]
    if missing:
        raise RuntimeError(f"lath.OIALRController: the optimizer does not hold the cores of {', '.join(missing)}")


def _is_missing(parameter: Parameter, optimizers: Iterable[Optimizer]) -> bool:
    return parameter.requires_grad and next(optimizer_state.places(optimizers, parameter), None) is None


def project_state(optimizer: Optimizer, old: Parameter, weight: Weight, second_moment: str) -> None:
    """State of a dense weight becomes that of its core."""
    core = weight.core
    optimizer_state.carry(optimizer, old, core.s, wide(core.u), wide(core.vh), second_moment=second_moment)


def resize(core: Core, size: int) -> None:
    """Cut, or fill up with zeros, to another rank; values are to follow."""
    kept = min(size, core.rank)
    core.replace_(*filled(core.u[:, :kept], core.s.detach()[:kept, :kept], core.vh[:kept], size))


def filled(u: Tensor, s: Tensor, vh: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same weight with zeros up to rank ``size``."""
    missing = size - s.shape[0]
    if not missing:
        return u, s, vh
    pad = nn.functional.pad
    return pad(u, (0, missing)), pad(s, (0, missing, 0, missing)), pad(vh, (0, 0, 0, missing))
