# SPDX-License-Identifier: Apache-2.0
"""What layers in orthogonal bases are held against, on the same numbers, in torch alone.

Three variants: ``recompose`` forms the weight in every call, as the public code of the method does; ``factors``
multiplies by one after the other, the best that can be written without lath; ``two`` are two layers of the same rank,
which train both of their factors.
"""

from __future__ import annotations

import copy

import torch
from lath.nn import OIALRConv2d, OIALRLinear, OIALRMultiheadAttention
from layers import two_modules
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear, scaled_dot_product_attention

VARIANTS = ("two", "recompose", "factors")


def recomposed(x: Tensor, vh: Tensor, s: Tensor, u: Tensor, bias: Tensor | None) -> Tensor:
    """The product with the weight, formed in the cheaper order."""
    return linear(x, torch.linalg.multi_dot((u, s, vh)), bias)


def chained(x: Tensor, vh: Tensor, s: Tensor, u: Tensor, bias: Tensor | None) -> Tensor:
    """Three products."""
    return linear(linear(linear(x, vh), s), u, bias)


PRODUCTS = {"recompose": recomposed, "factors": chained}


class TorchLinear(nn.Module):
    """``OIALRLinear`` in one of ``PRODUCTS``: bases are buffers, core and bias are parameters."""

    def __init__(self, vh: Tensor, s: Tensor, u: Tensor, bias: Tensor | None, variant: str) -> None:
        super().__init__()
        self.product = PRODUCTS[variant]
        self.register_buffer("vh", vh)
        self.register_buffer("u", u)
        self.s = nn.Parameter(s)
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.vh, self.s, self.u, self.bias)


class TorchConv2d(nn.Module):
    """``OIALRConv2d`` in one of ``PRODUCTS``; of one group, and padded by zeros."""

    def __init__(self, layer: OIALRConv2d, variant: str) -> None:
        super().__init__()
        self.variant = variant
        self.window = {name: getattr(layer, name) for name in ("stride", "padding", "dilation")}
        # Four dimensions, so that a change of the memory format reaches the basis with the window.
        self.register_buffer("vh", layer.weight_vh.unflatten(1, (layer.in_channels, *layer.kernel_size)).clone())
        self.register_buffer("u", layer.weight_u.clone())
        self.s = nn.Parameter(layer.weight_s.detach().clone())
        self.bias = _copied(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.variant == "recompose":
            weight = torch.linalg.multi_dot((self.u, self.s, self.vh.flatten(1)))
            return conv2d(x, weight.unflatten(1, self.vh.shape[1:]), self.bias, **self.window)
        core, u = (matrix[:, :, None, None] for matrix in (self.s, self.u))
        return conv2d(conv2d(conv2d(x, self.vh, **self.window), core), u, self.bias)


class TorchAttention(nn.Module):
    """Self-attention of an ``OIALRMultiheadAttention`` with batches first; its projections in one of ``VARIANTS``."""

    def __init__(self, layer: OIALRMultiheadAttention, variant: str) -> None:
        super().__init__()
        (core,) = layer.cores()
        self.heads = layer.num_heads
        self.in_proj = _linear(core.vh, core.s, core.u, layer.in_proj_bias, variant)
        self.out_proj = as_torch(layer.out_proj, variant)

    def forward(self, x: Tensor, key: Tensor, value: Tensor, need_weights: bool = False) -> tuple[Tensor, None]:
        q, k, v = self.in_proj(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out_proj(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)), None


def as_torch(model: nn.Module, variant: str) -> nn.Module:
    """A copy with the same function, whose layers in orthogonal bases are of torch, in one of ``VARIANTS``."""
    return _replaced(copy.deepcopy(model), variant)


def _replaced(module: nn.Module, variant: str) -> nn.Module:
    if isinstance(module, OIALRMultiheadAttention):
        return TorchAttention(module, variant)
    if isinstance(module, OIALRLinear):
        return _linear(module.weight_vh, module.weight_s, module.weight_u, module.bias, variant)
    if isinstance(module, OIALRConv2d):
        return _conv_pair(module) if variant == "two" else TorchConv2d(module, variant)
    for name, child in list(module.named_children()):
        setattr(module, name, _replaced(child, variant))
    return module


def _linear(vh: Tensor, s: Tensor, u: Tensor, bias: Tensor | None, variant: str) -> nn.Module:
    vh, s, u, bias = (t if t is None else t.detach().clone() for t in (vh, s, u, bias))
    return two_modules(vh, u @ s, bias) if variant == "two" else TorchLinear(vh, s, u, bias, variant)


def _conv_pair(layer: OIALRConv2d) -> nn.Sequential:
    window = layer.kernel_size, layer.stride, layer.padding, layer.dilation
    first = nn.Conv2d(layer.in_channels, layer.rank, *window, bias=False)
    second = nn.Conv2d(layer.rank, layer.out_channels, 1, bias=layer.bias is not None)
    with torch.no_grad():
        first.weight.copy_(layer.weight_vh.view_as(first.weight))
        second.weight.copy_((layer.weight_u @ layer.weight_s).view_as(second.weight))
    second.bias = _copied(layer.bias)
    return nn.Sequential(first, second)


def _copied(bias: Tensor | None) -> nn.Parameter | None:
    return None if bias is None else nn.Parameter(bias.detach().clone())
