# SPDX-License-Identifier: Apache-2.0
"""The window of a convolution layer, in any number of dimensions: what it may be, padding that copies x."""

from __future__ import annotations

from torch import Tensor
from torch.nn import Module
from torch.nn.functional import pad

from .._padding import same_padding

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


def tuple_of(value: object, dims: int, what: str) -> tuple[int, ...]:
    """``value`` for each dimension.

    Raises:
        TypeError: neither an int nor ``dims`` of them.
    """
    if isinstance(value, int):
        return (value,) * dims
    if isinstance(value, (tuple, list)) and len(value) == dims and all(isinstance(v, int) for v in value):
        return tuple(value)
    raise TypeError(f"{what} is {value!r}, expected an int or {dims} of them")


def check_window(layer: Module) -> None:
    """ValueError where the attributes of a convolution fit no window."""

    def expect(condition: bool, name: str, expected: str) -> None:
        if not condition:
            raise ValueError(f"{type(layer).__name__}: {name} is {getattr(layer, name)!r}, expected {expected}")

    expect(layer.padding_mode in PADDING_MODES, "padding_mode", f"one of {PADDING_MODES}")
    expect(min(layer.kernel_size) >= 1, "kernel_size", "at least 1")
    expect(min(layer.stride) >= 1, "stride", "at least 1")
    expect(min(layer.dilation) >= 1, "dilation", "at least 1")
    expect(layer.groups >= 1, "groups", "at least 1")
    expect(layer.in_channels % layer.groups == 0, "in_channels", f"a multiple of groups, {layer.groups}")
    expect(layer.out_channels % layer.groups == 0, "out_channels", f"a multiple of groups, {layer.groups}")
    if isinstance(layer.padding, str):
        expect(layer.padding in ("same", "valid"), "padding", "numbers, 'same' or 'valid'")
        expect(layer.padding == "valid" or max(layer.stride) == 1, "stride", "1 for padding 'same'")
    else:
        expect(min(layer.padding) >= 0, "padding", "0 or more")


def pad_ahead(layer: Module, x: Tensor) -> tuple[Tensor, tuple[int, ...] | str]:
    """Pad x where convolutions of torch cannot; x and the padding that is left to them."""
    if layer.padding_mode == "zeros" or layer.padding == "valid":
        return x, layer.padding
    if layer.padding == "same":
        axes = [same_padding(k, d) for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
    else:
        axes = [(p, p) for p in layer.padding]
    sides = tuple(p for axis in reversed(axes) for p in axis)
    return pad(x, sides, layer.padding_mode), (0,) * len(axes)


def window_repr(layer: Module, *more: str) -> str:
    """The arguments of a convolution layer; ``more`` comes before the padding mode."""
    parts = [f"{layer.in_channels}, {layer.out_channels}, kernel_size={layer.kernel_size}, rank={layer.rank}"]
    parts.append(f"stride={layer.stride}")
    dims = len(layer.kernel_size)
    defaults = {"padding": (0,) * dims, "dilation": (1,) * dims, "groups": 1}
    parts += [f"{name}={getattr(layer, name)}" for name, value in defaults.items() if getattr(layer, name) != value]
    parts += [f"bias={layer.bias is not None}", *more]
    if layer.padding_mode != "zeros":
        parts.append(f"padding_mode={layer.padding_mode}")
    return ", ".join(parts)
