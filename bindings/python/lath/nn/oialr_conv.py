# SPDX-License-Identifier: Apache-2.0
"""Convolutions of torch in an orthogonal basis."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import Conv1d, Conv2d, Conv3d, Module, Parameter, Sequential
from torch.nn.functional import conv1d, conv2d, conv3d

from .._frozen_conv import frozen_conv, is_channels_last
from ..factor import Decomposition, conv_break_even_rank, merge
from ..ops import conv2d_is_of_torch, lowrank_conv2d, oialr_conv2d
from ._geometry import check_window, pad_ahead, tuple_of, window_repr
from .conv import LowRankConv2d
from .core import Core
from .cored import OneCore
from .factored import check_from_dense, check_sizes

_WINDOW = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")


class OIALRConv(OneCore):
    r"""A convolution whose weight is :math:`U S V^T`: its matrix of ``out_channels`` rows, all else along the columns.

    Computed as a convolution with :math:`V^T` to ``rank`` channels, which keeps the window, and a 1x1 convolution with
    :math:`U S`. All groups of channels share V: with g groups there are ``g rank`` channels between. At ranks where the
    dense weight costs less it is formed at each call: with many groups almost always, and always where each group has
    one channel. The function and its gradients are the same.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups: as for torch's layer.
        rank: of the weight; from 1 to min(out_channels, in_channels / groups * the taps of the kernel).
        bias: learn a bias of the output.
        padding_mode: as for torch's layer.
        device, dtype: of the parameters. float32, bfloat16 and float64 can be computed with.
        norm, activation: applied to the output, in this order, or None; what some libraries attach to a convolution.

    Shape:
        As for torch's layer; the batch may be absent.

    Attributes:
        weight_u: (out_channels, rank), a buffer.
        weight_s: (rank, rank), the parameter.
        weight_vh: (rank, in_channels / groups * taps), a buffer.
        bias: (out_channels), or None.

    ``load_state_dict`` takes over the rank of a checkpoint, where ``weight_s`` stays the same object, and factors a
    dense ``weight``.

    Raises:
        TypeError: a rank that is not an int, or a window of another number of dimensions.
        ValueError: a rank or a window outside of its range.

    The form: Coquelin et al., arXiv 2401.08505, section 3.
    """

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str
    bias: Parameter | None

    _dense_class: ClassVar[type[Module]]
    _dims: ClassVar[int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        rank: int,
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] | str = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device=None,
        dtype=None,
        *,
        norm: Module | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        what = type(self).__name__
        check_sizes(type(self), rank, in_channels=in_channels, out_channels=out_channels)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = tuple_of(kernel_size, self._dims, f"{what}: kernel_size")
        self.stride = tuple_of(stride, self._dims, f"{what}: stride")
        self.padding = padding if isinstance(padding, str) else tuple_of(padding, self._dims, f"{what}: padding")
        self.dilation = tuple_of(dilation, self._dims, f"{what}: dilation")
        self.groups = groups
        self.padding_mode = padding_mode
        check_window(self)
        fan_in = in_channels // groups * torch.Size(self.kernel_size).numel()
        self._make_core("weight_", out_channels, fan_in, rank, device, dtype)
        self._make_bias(out_channels, bias, device, dtype)
        self.norm = norm
        self.activation = activation
        self.reset_parameters()

    @classmethod
    def from_dense(
        cls, module: Module, rank: int | None = None, *, decomposition: Decomposition | None = None
    ) -> OIALRConv:
        """The layer closest to ``module``, whose weight stays as it is.

        The new layer holds the bias of ``module`` itself, not a copy, so that an optimizer which has it trains it on;
        so it does with ``norm`` and ``activation``, if ``module`` is of a class that applies them. ``requires_grad``,
        training mode, dtype and device are carried over.

        Args:
            module: torch's layer, or one with its weight and geometry.
            rank: of the result; None for full rank.
            decomposition: of the weight as a matrix of ``out_channels`` rows, if the caller has it already.

        Raises:
            TypeError: ``module`` is no such layer with a real weight, or ``rank`` is not an int.
            ValueError: a rank below 1 or above the smaller side of that matrix, or NaN or infinity in the weight.
        """
        check_from_dense(cls, module, cls._dense_class, "svd")
        out, *rest = module.weight.shape
        first = (module.in_channels, module.out_channels, module.kernel_size)
        kept = min(out, torch.Size(rest).numel()) if rank is None else rank
        layer = torch.nn.utils.skip_init(
            cls,
            *first,
            kept,
            module.stride,
            module.padding,
            module.dilation,
            module.groups,
            bias=False,
            padding_mode=module.padding_mode,
            device=module.weight.device,
            dtype=module.weight.dtype,
        )
        if type(module).forward is not cls._dense_class.forward:  # otherwise these are no part of the function
            layer.norm = getattr(module, "norm", None)
            layer.activation = getattr(module, "activation", None)
        return layer._take_over(module, decomposition)

    def to_dense(self) -> Module:
        """Torch's layer with the same function, which holds a copy of the bias; this layer stays as it is.

        ``requires_grad``, training mode, dtype and device are carried over.

        Raises:
            ValueError: torch's layer has no ``norm`` and ``activation``.
        """
        self._check_bare("to_dense")
        window = (getattr(self, name) for name in _WINDOW)
        options = {"bias": self.bias is not None, "padding_mode": self.padding_mode}
        return self._hand_over(torch.nn.utils.skip_init(self._dense_class, *window, **options, **self._kind()))

    def to_lowrank(self) -> Module:
        """Two factors with the same function: Vh, once for each group, and ``U S``.

        Of two dimensions they are a pointwise ``LowRankConv2d``, else two convolutions of torch.

        Raises:
            ValueError: these have no ``norm`` and ``activation``.
        """
        self._check_bare("to_lowrank")
        ranks, window = self.groups * self.rank, (self.stride, self.padding, self.dilation, self.groups)
        skip_init, kind = torch.nn.utils.skip_init, {**self._kind(), "padding_mode": self.padding_mode}
        pair = Sequential(
            skip_init(self._dense_class, self.in_channels, ranks, self.kernel_size, *window, bias=False, **kind),
            skip_init(
                self._dense_class, ranks, self.out_channels, 1, groups=self.groups, bias=self.bias is not None,
                **self._kind(),
            ),
        )  # fmt: skip
        self._hand_over_factors(pair[0].weight, pair[1].weight, self.groups)
        self._hand_over_bias(pair[1])
        return pair.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        x, padding = pad_ahead(self, x)
        vh, s, u, bias = self._operands()
        copy = None if self._frozen is None else self._frozen_copy(x)
        if copy is not None:
            y = self._forward_frozen(x, *copy, bias, padding)
        elif self._dense_is_cheaper():
            y = self._convolve(x, merge(vh, u @ s).reshape(self._dense_shape()), bias, padding)
        else:
            y = self._convolve_core(x, self._first_weight(vh), s, u, bias, padding)
        if self.norm is not None:
            y = self.norm(y)
        return y if self.activation is None else self.activation(y)

    def _first_weight(self, vh: Tensor) -> Tensor:
        """Of the convolution to ``rank`` channels of each group."""
        vh = vh.reshape(-1, self.in_channels // self.groups, *self.kernel_size)
        return vh if self.groups == 1 else vh.repeat(self.groups, *(1,) * (self._dims + 1))

    def _merge(self) -> tuple[Tensor | None, Tensor]:
        first, second = super()._merge()
        return (None, second.reshape(self._dense_shape())) if first is None else (self._first_weight(first), second)

    def _forward_frozen(self, x: Tensor, first: Tensor | None, second: Tensor, bias: Tensor | None, padding) -> Tensor:
        if first is None:
            return self._convolve(x, second, bias, padding)
        suited = first.contiguous(memory_format=self._best_format(x, first, second, padding))
        if suited is not first:  # kept, for the calls to come
            self._frozen = (*self._frozen[:2], suited, second)
        return self._convolve_twice(x, suited, second, bias, padding)

    def _best_format(self, x: Tensor, first: Tensor, second: Tensor, padding) -> torch.memory_format:
        """Of the first weight: torch's convolutions would turn it at each call into that of the images."""
        return torch.contiguous_format

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, padding) -> Tensor:
        raise NotImplementedError

    def _convolve_core(self, x: Tensor, first: Tensor, s: Tensor, u: Tensor, bias: Tensor | None, padding) -> Tensor:
        """With the core where it trains."""
        return self._convolve_twice(x, first, u @ s, bias, padding)

    def _convolve_twice(self, x: Tensor, first: Tensor, second: Tensor, bias: Tensor | None, padding) -> Tensor:
        """With ``first`` of ``groups rank`` channels, then pixel by pixel with ``second``, (out, rank)."""
        raise NotImplementedError

    def _dense_shape(self, core: Core | None = None) -> tuple[int, ...]:
        return self.out_channels, self.in_channels // self.groups, *self.kernel_size

    def _dense_is_cheaper(self) -> bool:
        channels = self.in_channels, self.out_channels
        return self.rank > conv_break_even_rank(*channels, self.kernel_size, "pointwise", self.groups)

    def _check_bare(self, what: str) -> None:
        if self.norm is not None or self.activation is not None:
            raise ValueError(
                f"{type(self).__name__}.{what}: the layer has a norm or an activation, which the result could not "
                "have; set both to None and apply them after it"
            )

    def extra_repr(self) -> str:
        return window_repr(self)


class OIALRConv1d(OIALRConv):
    __doc__ = OIALRConv.__doc__

    _dense_class, _dims = Conv1d, 1

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, padding) -> Tensor:
        return conv1d(x, weight, bias, self.stride, padding, self.dilation, self.groups)

    def _convolve_twice(self, x: Tensor, first: Tensor, second: Tensor, bias: Tensor | None, padding) -> Tensor:
        """As images of one row."""
        if not isinstance(padding, str):
            padding = (0, *padding)
        window = (1, *self.stride), padding, (1, *self.dilation), self.groups, "pointwise", "auto", False
        return lowrank_conv2d(
            x.unsqueeze(-2), first.unsqueeze(-2), second[..., None, None], bias, None, *window
        ).squeeze(-2)


class OIALRConv2d(OIALRConv):
    __doc__ = OIALRConv.__doc__

    _dense_class, _dims = Conv2d, 2

    def to_lowrank(self) -> LowRankConv2d:
        self._check_bare("to_lowrank")
        window = self.stride, self.padding, self.dilation, self.groups
        layer = torch.nn.utils.skip_init(
            LowRankConv2d,
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.rank,
            *window,
            bias=self.bias is not None,
            mode="pointwise",
            padding_mode=self.padding_mode,
            **self._kind(),
        )
        self._hand_over_factors(layer.weight_v, layer.weight_u, self.groups)
        return self._hand_over_bias(layer)

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, padding) -> Tensor:
        return conv2d(x, weight, bias, self.stride, padding, self.dilation, self.groups)

    def _convolve_core(self, x: Tensor, first: Tensor, s: Tensor, u: Tensor, bias: Tensor | None, padding) -> Tensor:
        return oialr_conv2d(x, first, s, u, bias, self.stride, padding, self.dilation, self.groups)

    def _convolve_twice(self, x: Tensor, first: Tensor, second: Tensor, bias: Tensor | None, padding) -> Tensor:
        window = self.stride, padding, self.dilation, self.groups, "pointwise"
        return lowrank_conv2d(x, first, second[..., None, None], bias, None, *window, "auto", False)

    def _best_format(self, x: Tensor, first: Tensor, second: Tensor, padding) -> torch.memory_format:
        window = self.stride, padding, self.dilation, self.groups, "pointwise"
        if is_channels_last(x) and conv2d_is_of_torch(x, first, second[..., None, None], *window):
            return torch.channels_last
        return torch.contiguous_format


class OIALRConv3d(OIALRConv):
    __doc__ = OIALRConv.__doc__

    _dense_class, _dims = Conv3d, 3

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, padding) -> Tensor:
        return conv3d(x, weight, bias, self.stride, padding, self.dilation, self.groups)

    def _convolve_twice(self, x: Tensor, first: Tensor, second: Tensor, bias: Tensor | None, padding) -> Tensor:
        t = frozen_conv(x, first, self.stride, padding, self.dilation, self.groups)
        return conv3d(t, second[..., None, None, None], bias, groups=self.groups)

    def _best_format(self, x: Tensor, first: Tensor, second: Tensor, padding) -> torch.memory_format:
        return torch.channels_last_3d if is_channels_last(x) else torch.contiguous_format
