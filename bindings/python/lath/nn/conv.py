# SPDX-License-Identifier: Apache-2.0
"""The low-rank forms of ``torch.nn.Conv2d``."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Conv2d
from torch.nn.functional import conv2d

from .._conv import two
from ..factor import (
    CONV_MODES,
    Decomposition,
    conv_break_even_rank,
    conv_factors,
    conv_matrix,
    merge_conv,
    merge_conv_bias,
)
from ..ops import lowrank_conv2d
from ._geometry import check_window, pad_ahead, window_repr
from .factored import Factored, check_from_dense, check_sizes


class LowRankConv2d(Factored):
    r"""A convolution whose weight is a product of two thin factors: one to ``rank`` channels, then one to the output's.

    ==============  =========================  ==============================
    mode            first factor               second factor
    ==============  =========================  ==============================
    ``separable``   1 x kw, along the rows     kh x 1, along the columns
    ``pointwise``   kh x kw                    1 x 1
    ==============  =========================  ==============================

    Each group of channels is factored on its own. An output pixel costs, at stride 1 and for every group,
    ``rank * (in * kw + out * kh)`` multiply-adds if separable and ``rank * (in * kh * kw + out)`` if pointwise, instead
    of ``in * out * kh * kw``. Where the factors are no gain the dense weight is formed first; the function and its
    gradients are the same.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups: as for ``nn.Conv2d``.
        rank: channels between the factors, for each group.
        bias: learn a bias of the output.
        inner_bias: learn a bias between the factors. In the separable form the vertical padding comes after it, so at
            the upper and lower border it does what no dense convolution does.
        mode: "separable" or "pointwise".
        padding_mode: as for ``nn.Conv2d``. Other than "zeros", x is padded both ways before the first factor, so that
            an inner bias has no border effect.
        device, dtype: of the parameters. float32, bfloat16 and float64 can be computed with.

    Shape:
        x (N, in_channels, H, W) to y (N, out_channels, H', W'), or the same without N; H' and W' are those of
        ``nn.Conv2d``. y is channels-last if x is.

    Attributes:
        weight_v: (groups * rank, in_channels / groups, 1, kw) if separable, (groups * rank, in_channels / groups, kh,
            kw) if pointwise.
        weight_u: (out_channels, rank, kh, 1) if separable, (out_channels, rank, 1, 1) if pointwise.
        inner_bias: (groups * rank), or None.
        bias: (out_channels), or None.

    ``load_state_dict`` also takes a dense ``weight``, which it factors to the rank of the layer, and the names
    ``conv.0.weight`` and ``conv.1.weight`` of a ``Sequential`` of two ``nn.Conv2d``.

    The forms: Jaderberg et al., "Speeding up Convolutional Neural Networks with Low Rank Expansions", 2014 (separable);
    Denton et al., "Exploiting Linear Structure Within Convolutional Networks for Efficient Evaluation", 2014.
    """

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] | str
    dilation: tuple[int, int]
    groups: int
    mode: str
    padding_mode: str

    _pair_name = "conv"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        rank: int,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        inner_bias: bool = False,
        mode: str = "separable",
        padding_mode: str = "zeros",
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        check_sizes(LowRankConv2d, rank, in_channels=in_channels, out_channels=out_channels)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = kernel_h, kernel_w = two(kernel_size, "kernel_size")
        self.stride = two(stride, "stride")
        self.padding = padding if isinstance(padding, str) else two(padding, "padding")
        self.dilation = two(dilation, "dilation")
        self.groups = groups
        self.mode = mode
        self.padding_mode = padding_mode
        self._check()
        taps_v, taps_u = (1, kernel_h) if mode == "separable" else (kernel_h, 1)
        shapes = (groups * rank, in_channels // groups, taps_v, kernel_w), (out_channels, rank, taps_u, 1)
        self._make_parameters(rank, *shapes, groups * rank, bias, inner_bias, device, dtype)
        self.reset_parameters()

    def _apply(self, fn, recurse: bool = True):
        """As for any module, but ``to(memory_format=torch.channels_last)`` leaves the weights contiguous.

        The kernels read them along their rows whatever the format of x; others would be copied at every call.
        """
        super()._apply(fn, recurse)
        for name in ("weight_v", "weight_u"):
            weight = self._parameters.get(name)  # none where it is parametrized
            if weight is not None and not weight.is_contiguous():
                weight.data = weight.data.contiguous()
        return self

    def _check(self) -> None:
        if self.mode not in CONV_MODES:
            raise ValueError(f"LowRankConv2d: mode is {self.mode!r}, expected one of {CONV_MODES}")
        check_window(self)

    @classmethod
    def from_dense(
        cls,
        module: Conv2d,
        rank: int,
        inner_bias: bool = False,
        *,
        mode: str = "separable",
        init: str = "svd",
        decomposition: Decomposition | None = None,
    ) -> LowRankConv2d:
        """The low-rank layer closest to ``module``, which stays as it is.

        The bias, ``requires_grad``, training mode, dtype and device are carried over; the inner bias starts at zero.

        Args:
            module: a layer with the ``weight``, ``bias`` and geometry of ``nn.Conv2d``.
            rank: of the result, for each group; beyond the size of the matrix the factors are filled up with zeros.
            inner_bias: give the layer an inner bias.
            mode: "separable" or "pointwise".
            init: "svd" factors the weight of ``module``; "fresh" keeps nothing but its sizes.
            decomposition: of ``conv_matrix(module.weight, mode, module.groups)``, if the caller has it already.

        Raises:
            TypeError: ``module`` is no ``nn.Conv2d`` with real weights, or ``rank`` is not an int.
            ValueError: a rank below 1, an unknown init or mode, or NaN or infinity in the weight.
        """
        check_from_dense(cls, module, Conv2d, init)
        layer = cls(
            module.in_channels,
            module.out_channels,
            module.kernel_size,
            rank,
            module.stride,
            module.padding,
            module.dilation,
            module.groups,
            bias=module.bias is not None,
            inner_bias=inner_bias,
            mode=mode,
            padding_mode=module.padding_mode,
            device=module.weight.device,
            dtype=module.weight.dtype,
        )
        return layer._take_over(module, init, decomposition)

    def to_dense(self) -> Conv2d:
        """The ``nn.Conv2d`` with the same function; its bias is ``bias`` plus what ``inner_bias`` adds.

        This layer stays as it is. ``requires_grad``, training mode, dtype and device are carried over.

        Raises:
            ValueError: a separable layer with vertical padding by zeros and an inner bias; no dense one is the same.
        """
        self._check_inner_bias(self.inner_bias)
        dense = torch.nn.utils.skip_init(
            Conv2d,
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            bias=self.bias is not None or self.inner_bias is not None,
            padding_mode=self.padding_mode,
            device=self.weight_v.device,
            dtype=self.weight_v.dtype,
        )
        return self._hand_over(dense)

    def forward(self, x: Tensor) -> Tensor:
        if self._frozen is not None:
            copy = self._frozen_copy(x)
            if copy is not None:
                return self._forward_dense(x, *copy)
        x, padding = pad_ahead(self, x)
        return lowrank_conv2d(x, *self._operands(), self.stride, padding, self.dilation, self.groups, self.mode)

    def merged(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the dense layer with the same function.

        Raises:
            ValueError: a separable layer with vertical padding by zeros and an inner bias; no dense one is the same.
        """
        bias = self._merged_bias(self.weight_u, self.bias, self.inner_bias)
        return merge_conv(self.weight_v, self.weight_u, self.groups), bias

    def _pads_rows(self) -> bool:
        """Whether the vertical taps of the second factor meet padding."""
        if self.mode == "pointwise" or self.padding_mode != "zeros" or self.padding == "valid":
            return False
        return self.kernel_size[0] > 1 if self.padding == "same" else self.padding[0] > 0

    def _check_inner_bias(self, inner_bias: Tensor | None) -> None:
        if inner_bias is not None and self._pads_rows():
            raise ValueError(
                "LowRankConv2d: no dense convolution has the border effect of an inner bias in a separable layer with "
                f"vertical padding (padding {self.padding!r}); zero the inner bias or pad x beforehand"
            )

    def _dense_shape(self) -> tuple[int, ...]:
        return self.out_channels, self.in_channels // self.groups, *self.kernel_size

    def _decompose(self, weight: Tensor, what: str) -> Decomposition:
        if weight.dim() != 4:
            raise TypeError(f"{what}: cannot factor a tensor of shape {tuple(weight.shape)}, expected 4 dimensions")
        return Decomposition.of(conv_matrix(weight, self.mode, self.groups), what)

    def _factors(self, decomposition: Decomposition) -> tuple[Tensor, Tensor]:
        return conv_factors(*decomposition.factors(self.rank), self.mode, self.kernel_size)

    def _merged_bias(self, weight_u: Tensor, bias: Tensor | None, inner_bias: Tensor | None) -> Tensor | None:
        self._check_inner_bias(inner_bias)
        return merge_conv_bias(weight_u, bias, inner_bias, self.groups)

    def _dense_is_cheaper(self) -> bool:
        if self.inner_bias is not None and self._pads_rows():
            return False
        channels = self.in_channels, self.out_channels
        return self.rank > conv_break_even_rank(*channels, self.kernel_size, self.mode, self.groups, self.stride)

    def _forward_dense(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x, padding = pad_ahead(self, x)
        return conv2d(x, weight, bias, self.stride, padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        return window_repr(self, f"inner_bias={self.inner_bias is not None}", f"mode={self.mode}")
