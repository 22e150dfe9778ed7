# SPDX-License-Identifier: Apache-2.0
"""A merged copy of a layer for inference: when it is kept, and when it may stand in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Module


class Freezable(Module):
    """A layer that can keep the dense one.

    A subclass says when the dense layer would be cheaper (``_dense_is_cheaper``) and what to keep of it (``_merge``),
    and asks ``_frozen_copy`` before each call. One that has something to keep at other ranks too says so
    (``_keeps_copy``).
    """

    _frozen: tuple | None  # parameters, their stamps, and what _merge() gave

    def __init__(self) -> None:
        super().__init__()
        self._frozen = None

    def _dense_is_cheaper(self) -> bool:
        raise NotImplementedError

    def _keeps_copy(self) -> bool:
        return self._dense_is_cheaper()

    def _merge(self) -> tuple:
        """What calls of the dense layer need."""
        raise NotImplementedError

    def _own_parameters(self) -> tuple[Tensor, ...]:
        """What the copy is made of."""
        return tuple(self.parameters())

    def freeze(self) -> bool:
        """Keep the merged dense layer for inference, if the ranks are so high that it is cheaper.

        A layer ``U S Vh`` keeps its two factors ``U S`` and ``Vh`` at other ranks.

        The copy serves calls that record no gradient. It is dropped by ``train()``, ``load_state_dict`` and ``to``, and
        ignored after an in-place write to a parameter. A write that torch does not count (``.data``, a numpy view) goes
        unseen: call ``freeze`` again after it.

        Returns:
            Whether a copy is kept. At ranks below break-even two factors gain nothing by it and nothing is kept.
        """
        self._frozen = None
        parameters = self._own_parameters()
        if parameters[0].is_meta or not self._keeps_copy():
            return False
        with torch.no_grad():
            self._frozen = (parameters, _stamps(parameters), *self._merge())
        return True

    def unfreeze(self) -> None:
        """Drop what :meth:`freeze` keeps."""
        self._frozen = None

    def _frozen_copy(self, *inputs: Tensor) -> tuple[Any, ...] | None:
        """What ``_merge`` gave, or None where it does not apply."""
        if self._frozen is None or torch.compiler.is_compiling():
            return None
        parameters, stamps, *copy = self._frozen
        now = self._own_parameters()
        if torch.is_grad_enabled() and any(t.requires_grad for t in (*inputs, *now)):
            return None
        same = len(now) == len(parameters) and all(p is q for p, q in zip(now, parameters, strict=True))
        return tuple(copy) if same and stamps == _stamps(now) else None

    def train(self, mode: bool = True):
        if mode:
            self._frozen = None
        return super().train(mode)

    def _apply(self, fn, recurse: bool = True):
        self._frozen = None
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args) -> None:
        self._frozen = None
        super()._load_from_state_dict(*args)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_frozen": None}


def _stamps(parameters: tuple[Tensor, ...]) -> list[tuple[int, int]]:
    """Changes with every write that torch counts, and when ``.data`` is set to another tensor."""
    return [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in parameters]
