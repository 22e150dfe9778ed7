# SPDX-License-Identifier: Apache-2.0
"""The fused inference path of torch's transformer encoders, which converted layers must not take.

In evaluation without gradients ``nn.TransformerEncoderLayer`` hands the dense weights of its children to one operator,
and ``nn.TransformerEncoder`` makes nested tensors of padded input for it. Both ask an attribute of their own first,
which is switched off here and back on when the last low-rank layer below is gone.
"""

from __future__ import annotations

from typing import Any

from torch import nn

_SWITCHES: dict[type[nn.Module], tuple[str, Any]] = {
    nn.TransformerEncoderLayer: ("activation_relu_or_gelu", 0),  # the fused operator knows these two; 0 is for others
    nn.TransformerEncoder: ("use_nested_tensor", False),
}

_SAVED = "_lath_fast_path"  # what the attribute was


def update(model: nn.Module, thin: tuple[type[nn.Module], ...]) -> None:
    """Keep the encoders in ``model`` that have a layer of the classes ``thin`` off the fused path, and no others."""
    for module in model.modules():
        for kind, (name, off) in _SWITCHES.items():
            if isinstance(module, kind) and name in module.__dict__:
                _switch(module, name, off, any(isinstance(below, thin) for below in module.modules()))


def _switch(module: nn.Module, name: str, off: Any, is_off: bool) -> None:
    own = module.__dict__
    if is_off and _SAVED not in own:
        own[_SAVED] = own[name]
        own[name] = off
    elif not is_off and _SAVED in own:
        own[name] = own.pop(_SAVED)
