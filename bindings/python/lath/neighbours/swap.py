# SPDX-License-Identifier: Apache-2.0
"""Handing the parameters of converted layers to an optimizer, in the place of the dense ones."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from .._pairs import dense_name, pair_names


@dataclass
class Layer:
    """One layer that is about to be converted.

    Attributes:
        name: qualified.
        old: its dense parameters by name.
    """

    name: str
    old: dict[str, nn.Parameter]

    @classmethod
    def of(cls, name: str, module: nn.Module) -> Layer:
        return cls(name, dict(module.named_parameters()))

    def successors(self, module: nn.Module) -> dict[int, list[tuple[str, nn.Parameter]]]:
        """Of each old parameter, by its id: those of ``module`` that take its place, with their qualified names."""
        found: dict[int, list[tuple[str, nn.Parameter]]] = {id(p): [] for p in self.old.values()}
        for name, parameter in module.named_parameters():
            found[id(self.old[self._source(name)])].append((f"{self.name}.{name}", parameter))
        return found

    def _source(self, name: str) -> str:
        """The old parameter to whose group a new one belongs."""
        prefix, _, leaf = name.rpartition(".")
        dot = f"{prefix}." if prefix else ""
        for other in (name, dot + _without_factor(leaf), dot + leaf.replace("inner_bias", "weight"), "bias"):
            if other in self.old:
                return other
        return next(iter(self.old))  # an inner bias of separate projections, a norm of a layer without bias


def _without_factor(leaf: str) -> str:
    """``weight_hh_l0`` for ``weight_hh_u_l0`` and ``weight_hh_v_l0``."""
    return dense_name(f"{leaf}_".replace("_u_", "_v_", 1)[:-1])


def holds_any(optimizer: Optimizer, layers: list[Layer]) -> bool:
    """Whether the optimizer trains one of their parameters."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return any(id(p) in held for layer in layers for p in layer.old.values())


def swap(optimizer: Optimizer, layers: list[Layer], model: nn.Module, keep_state: bool, free_factors: bool) -> None:
    """Put the new parameters of converted ``layers`` where the old ones were: same group, same position.

    A parameter that the optimizer did not have gets no successor in it.

    Args:
        optimizer: of ``torch.optim``, changed in place.
        layers: as they were before the conversion.
        model: as it is now.
        keep_state: keep the state of the parameters that stay; else all state is dropped.
        free_factors: move the factors of a group with weight decay to a group of their own, without it, at the end.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    successors: dict[int, list[tuple[str, nn.Parameter]]] = {}
    for layer in layers:
        successors.update(layer.successors(modules[layer.name]))
    factors = _factors(modules[layer.name] for layer in layers)
    for group in list(optimizer.param_groups):
        names = group.get("param_names") or [""] * len(group["params"])
        entries = [
            entry
            for name, old in zip(names, group["params"], strict=True)
            for entry in successors.get(id(old), [(name, old)])
        ]
        freed: list[tuple[str, nn.Parameter]] = []
        if free_factors and group.get("weight_decay"):
            freed = [entry for entry in entries if id(entry[1]) in factors]
            entries = [entry for entry in entries if id(entry[1]) not in factors]
        for old in group["params"]:
            if not keep_state or id(old) in successors:
                optimizer.state.pop(old, None)
        group["params"][:] = [parameter for _, parameter in entries]
        if "param_names" in group:
            group["param_names"] = [name for name, _ in entries]
        if freed:
            options = {k: v for k, v in group.items() if k not in ("params", "param_names")}
            own = freed if "param_names" in group else [parameter for _, parameter in freed]
            optimizer.add_param_group({**options, "params": own, "weight_decay": 0.0})


def _factors(layers) -> set[int]:
    """Ids of the parameters that are a factor of a weight."""
    return {
        id(getattr(module, name))
        for layer in layers
        for module in layer.modules()
        for names in pair_names(module)
        for name in names
    }
