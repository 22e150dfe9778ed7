# SPDX-License-Identifier: Apache-2.0
"""Freezing a whole model for inference."""

from __future__ import annotations

from torch.nn import Module

from .nn.freezable import Freezable


def _layers(model: Module):
    return [(name, module) for name, module in model.named_modules() if isinstance(module, Freezable)]


def freeze(model: Module) -> list[str]:
    """Call ``freeze()`` on every thin layer; the names of those that keep a merged weight.

    Those are the layers whose rank is so high that the dense layer is cheaper, and all layers in orthogonal bases,
    which keep two factors for three at lower ranks. The merged copy serves calls without gradients until ``train()``,
    ``load_state_dict`` or ``to`` drops it. Writes to a weight through ``.data`` or a numpy view after freezing go
    unseen: freeze again.
    """
    return [name for name, layer in _layers(model) if layer.freeze()]


def unfreeze(model: Module) -> None:
    """Drop every merged copy that :func:`freeze` keeps."""
    for _, layer in _layers(model):
        layer.unfreeze()
