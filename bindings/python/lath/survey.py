# SPDX-License-Identifier: Apache-2.0
"""Finding the layers of a model, and the reasons in the model itself for which one has to stay as it is."""

from __future__ import annotations

import dis
import inspect
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import nn
from torch.nn.utils import parametrize

from . import _attention, _recurrent
from .nn import LowRankLSTM
from .nn.cored import Cored
from .nn.factored import Factored
from .nn.thin_attention import ThinAttention

DENSE = (nn.Linear, nn.Conv2d, nn.MultiheadAttention, nn.LSTM)
THIN = (Factored, Cored, ThinAttention, LowRankLSTM)

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

_DTYPES = (torch.float32, torch.float64, torch.bfloat16)

# What ends a chain of attributes that reads a weight.
_READ = {"weight", *_attention.WEIGHTS}

# Packages of torch known by name, because loading them is slow and they are on their way out of torch.
_FUSED = "torch.ao.nn.intrinsic."
_QUANTIZED = "torch.ao.nn.quantized."


@dataclass
class Site:
    """One layer and every place where the model holds it."""

    module: nn.Module
    names: list[str] = field(default_factory=list)  # qualified; more than one if the module is shared
    places: list[tuple[nn.Module, str]] = field(default_factory=list)  # (parent, key in parent._modules)
    reason: str | None = None  # why the model does not allow to replace it

    @property
    def name(self) -> str:
        return self.names[0]

    def put(self, module: nn.Module) -> None:
        """Replace the layer everywhere."""
        for parent, key in self.places:
            parent._modules[key] = module


def survey(model: nn.Module, kinds: tuple[type[nn.Module], ...] = DENSE) -> list[Site]:
    """Every linear layer, 2-d convolution, attention and LSTM below ``model``, or every layer of other ``kinds``.

    Dense ones (subclasses too), thin and quantized ones; each module once, in model order. The output projection of
    attention is part of it.
    """
    sites: dict[int, Site] = {}
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, module in modules.items():
        if name and (isinstance(module, (*kinds, *THIN)) or _is_quantized(module)):
            parent, _, key = name.rpartition(".")
            if key == "out_proj" and _attention.owns_projection(modules[parent]):
                continue
            site = sites.setdefault(id(module), Site(module))
            site.names.append(name)
            site.places.append((modules[parent], key))
    owners = _owners(model)
    for site in sites.values():
        if not isinstance(site.module, THIN):
            site.reason = _reader(site, modules) or _obstacle(site, owners, kinds)
    return list(sites.values())


def _is_quantized(module: nn.Module) -> bool:
    classes = type(module).__mro__
    return any(c.__module__.startswith(_QUANTIZED) and c.__name__ in ("Linear", "Conv2d") for c in classes)


def _identities(parameter: nn.Parameter) -> list[object]:
    """What two registrations of the same values have in common: the object, or the memory."""
    if isinstance(parameter, nn.parameter.UninitializedParameter) or parameter.is_meta:
        return [id(parameter)]
    try:
        address = parameter.data_ptr()
    except RuntimeError:  # a tensor subclass without memory of its own
        address = 0
    return [id(parameter), ("memory", address)] if address else [id(parameter)]


def _owners(model: nn.Module) -> dict[object, set[str]]:
    """Identity of a parameter to the qualified names of the parameters that have it."""
    owners = defaultdict(set)
    for module_name, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                for identity in _identities(parameter):
                    owners[identity].add(f"{module_name}.{key}" if module_name else key)
    return owners


def _reader(site: Site, modules: dict[str, nn.Module]) -> str | None:
    """A module above that would look for the weight in vain, as the attention of a Swin transformer."""
    weights = _weights_of(site.module)
    for name in site.names:
        parts = name.split(".")
        for i in range(len(parts)):
            kind = type(modules[".".join(parts[:i])])
            if not _weights_read(kind).isdisjoint(".".join([*parts[i:], weight]) for weight in weights):
                return f"{kind.__name__} reads its weight directly"
    return None


def _weights_of(module: nn.Module) -> tuple[str, ...]:
    if isinstance(module, nn.MultiheadAttention):
        return _attention.WEIGHTS
    return _recurrent.weights_read(module) if isinstance(module, nn.LSTM) else ("weight",)


@lru_cache(maxsize=256)
def _weights_read(kind: type[nn.Module]) -> frozenset[str]:
    """The weights of modules below that ``forward`` and what it calls of the class read.

    ``self.proj.weight`` in the code gives "proj.weight". That of nn.TransformerEncoderLayer reads weights for the fused
    path alone, which converted layers do not take.
    """
    found, names = set(), ["forward"]
    for name in names:  # grows on the way
        for ancestor in kind.__mro__[: kind.__mro__.index(nn.Module)]:
            member = ancestor.__dict__.get(name)
            for chain in _attributes(member):
                end = next((i for i, link in enumerate(chain, 1) if link in _READ or _recurrent.is_weight(link)), None)
                if end and member is not nn.TransformerEncoderLayer.forward:
                    found.add(".".join(chain[:end]))
                if chain[0] not in names:
                    names.append(chain[0])
    return frozenset(found)


def _attributes(member: object) -> Iterator[list[str]]:
    """Chains of names in the code of a method or property: ``self.proj.weight.dtype`` gives proj, weight, dtype."""
    function = inspect.unwrap(member.fget if isinstance(member, property) else member)
    chain: list[str] = []
    for instruction in dis.get_instructions(function) if inspect.isfunction(function) else ():
        if instruction.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            chain.append(instruction.argval)
        elif chain:
            yield chain
            chain = []


def _obstacle(site: Site, owners: dict[object, set[str]], kinds: tuple[type[nn.Module], ...]) -> str | None:
    """Why the layer cannot be replaced without changing what the model does, or None."""
    module = site.module
    for parent, _ in site.places:
        if type(parent).__module__.startswith(_FUSED):
            return f"part of a fused {type(parent).__name__}"
    if _is_quantized(module):
        return "quantized"
    parts = _attention.parts(module)
    if any(map(parametrize.is_parametrized, parts)):
        return "parametrized"
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        return "lazy: its sizes are unknown before the first call"
    if type(module) not in kinds:
        dense = next(kind for kind in kinds if isinstance(module, kind))
        return f"a subclass of nn.{dense.__name__}: {type(module).__name__}"
    if _is_altered(module):
        return "its weight is computed from other tensors (weight norm, pruning)"
    if any(not {"forward", "_conv_forward"}.isdisjoint(part.__dict__) for part in parts):
        return "its forward was replaced on the instance"
    weights = (p for part in parts for key, p in part._parameters.items() if p is not None and "bias" not in key)
    reasons = *map(_weight_obstacle, weights), *(_tie(part, owners) for part in parts), _form_obstacle(module)
    return next(filter(None, reasons), None)


def _is_altered(module: nn.Module) -> bool:
    if isinstance(module, nn.MultiheadAttention):
        return _attention.is_altered(module)
    if isinstance(module, nn.LSTM):
        return _recurrent.is_altered(module)
    return set(module._parameters) != {"weight", "bias"} or bool(module._buffers or module._modules)


def _form_obstacle(module: nn.Module) -> str | None:
    """Why factors make no sense at any rank."""
    if isinstance(module, _CONVS) and module.groups == module.in_channels > 1:
        return "depthwise: one input channel per group"
    return None


def _weight_obstacle(weight: nn.Parameter) -> str | None:
    if type(weight) is not nn.Parameter:
        return f"its weight is a {type(weight).__name__}"
    if weight.dtype not in _DTYPES or weight.layout is not torch.strided:
        return f"its weight is {weight.dtype}, {weight.layout}"
    if weight.numel() == 0:
        return "its weight has no elements"
    return None


def _tie(module: nn.Module, owners: dict[object, set[str]]) -> str | None:
    for key, parameter in module._parameters.items():
        if parameter is None:
            continue
        names = set().union(*(owners[identity] for identity in _identities(parameter)))
        if len(names) > 1:
            return f"its {key} is tied: {', '.join(sorted(names))}"
    return None
