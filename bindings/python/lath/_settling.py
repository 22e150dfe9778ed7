# SPDX-License-Identifier: Apache-2.0
"""How far the bases of dense weights still turn while a model trains."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import Module

from . import _oialr
from ._crew import Crew
from .basis import stability, wide
from .nn.cored import Cored
from .specs import OIALR
from .survey import survey


class Settling:
    """Compares the bases of the weights that would be converted with those at the look before.

    Between two looks it keeps U and Vh of each weight.

    Args:
        model: dense.
        spec: of the conversion.
        selected: whether a layer takes part, by name and module.
    """

    def __init__(self, model: Module, spec: OIALR, selected: Callable[[str, Module], bool]) -> None:
        self._model, self._spec, self._selected = model, spec, selected
        self._before: dict[str, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def look(self, crew: Crew) -> dict[str, float]:
        """The stability of each weight since the last look, -1 where it is not finite; nothing at the first look.

        Every process gets the values of the first one.
        """
        now = {name: _bases(weight) for name, weight in self._weights().items()}
        before, self._before = self._before, now
        if not now or before.keys() != now.keys():
            return {}
        turned = torch.stack([stability(*before[name], *now[name]).double() for name in now]).nan_to_num(-1.0)
        crew.share_([turned])
        return dict(zip(now, turned.tolist(), strict=True))

    def forget(self) -> None:
        """Let go of what was seen."""
        self._before = {}

    def _weights(self) -> dict[str, Tensor]:
        found = {}
        for site in survey(self._model, _oialr.KINDS):
            module = site.module
            if site.reason or isinstance(module, Cored) or _oialr.obstacle(module, self._spec):
                continue
            if any(self._selected(name, module) for name in site.names):
                several = {name: p for name, p in module.named_parameters() if p.dim() > 1 and "bias" not in name}
                found.update({f"{site.name}.{name}": p for name, p in several.items()})
        return found


def _bases(weight: Tensor) -> tuple[Tensor, Tensor]:
    """U and Vh; NaN for a weight that is not finite."""
    matrix = wide(weight).flatten(1)
    finite = torch.isfinite(matrix).all()
    u, _, vh = torch.linalg.svd(torch.where(finite, matrix, 0.0), full_matrices=False)
    return torch.where(finite, u, torch.nan), vh
