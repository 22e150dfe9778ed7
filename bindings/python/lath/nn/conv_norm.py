# SPDX-License-Identifier: Apache-2.0
"""A low-rank convolution with a batch norm between its factors, as Pufferfish and Cuttlefish train them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import BatchNorm2d, Conv2d

from .._conv import convolve, geometry, stages
from ..factor import merge_conv
from ..ops import lowrank_conv2d
from ._geometry import pad_ahead
from .conv import LowRankConv2d


class LowRankConv2dNorm(LowRankConv2d):
    """A :class:`LowRankConv2d` whose channels between the factors are normalized over the batch.

    The extra norm of Wang et al., "Pufferfish: Communication-efficient Models At No Extra Cost" (MLSys 2021), and
    "Cuttlefish: Low-rank Model Training without All The Tuning" (MLSys 2023): the first factor, ``norm``, the second
    factor. In training these are three operators of torch. In evaluation the norm is a scale and a shift of each
    channel, which go into the first factor and an inner bias, so that a call is one of the low-rank operator.

    The product of the factors alone is not the weight of the layer any more: :meth:`merged`, ``to_dense`` and
    ``lath.restore`` give the function of evaluation.

    Args:
        in_channels, out_channels, kernel_size, rank, stride, padding, dilation, groups, bias, mode, padding_mode,
            device, dtype: as for :class:`LowRankConv2d`; there is no inner bias, the norm has one.
        eps, momentum: of the norm.

    Shape:
        As for :class:`LowRankConv2d`.

    Attributes:
        weight_v, weight_u, bias: as for :class:`LowRankConv2d`.
        norm: an ``nn.BatchNorm2d`` of groups * rank channels.
    """

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
        mode: str = "pointwise",
        padding_mode: str = "zeros",
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        device=None,
        dtype=None,
    ) -> None:
        window = (stride, padding, dilation, groups)
        options = {"mode": mode, "padding_mode": padding_mode, "device": device, "dtype": dtype}
        super().__init__(in_channels, out_channels, kernel_size, rank, *window, bias, **options)
        self.norm = BatchNorm2d(groups * rank, eps, momentum, device=device, dtype=dtype)

    @classmethod
    def from_low_rank(cls, layer: LowRankConv2d) -> LowRankConv2dNorm:
        """The layer with a new norm between the factors of ``layer``, whose very parameters it takes over.

        Training mode, dtype and device are carried over.

        Raises:
            TypeError: ``layer`` is no LowRankConv2d, or has a norm already.
            ValueError: it has an inner bias, which the norm would take away.
        """
        if type(layer) is not LowRankConv2d:
            raise TypeError(f"{cls.__name__}.from_low_rank: layer is {type(layer).__name__}, expected LowRankConv2d")
        if layer.inner_bias is not None:
            raise ValueError(f"{cls.__name__}.from_low_rank: the layer has an inner bias, expected none before a norm")
        new = cls(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            layer.rank,
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups,
            bias=layer.bias is not None,
            mode=layer.mode,
            padding_mode=layer.padding_mode,
            device="meta",
            dtype=layer.weight_v.dtype,
        )
        new.weight_v, new.weight_u, new.bias = layer.weight_v, layer.weight_u, layer.bias
        new.norm = BatchNorm2d(layer.groups * layer.rank, device=layer.weight_v.device, dtype=layer.weight_v.dtype)
        new.norm.requires_grad_(layer.weight_v.requires_grad)
        return new.train(layer.training)

    @classmethod
    def from_dense(cls, module: Conv2d, rank: int, *, mode: str = "pointwise", init: str = "svd", decomposition=None):
        """As :meth:`LowRankConv2d.from_dense`, with a new norm between the factors."""
        return cls.from_low_rank(
            LowRankConv2d.from_dense(module, rank, mode=mode, init=init, decomposition=decomposition)
        )

    def folded(self) -> LowRankConv2d:
        """The layer without a norm that has the function of this one in evaluation, for inference or export.

        Its inner bias is what the norm adds, its ``weight_v`` a copy scaled by what it multiplies with.
        """
        plain = LowRankConv2d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.rank,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            bias=self.bias is not None,
            inner_bias=True,
            mode=self.mode,
            padding_mode=self.padding_mode,
            device=self.weight_v.device,
            dtype=self.weight_v.dtype,
        )
        with torch.no_grad():
            weight_v, shift = self._scaled()
            plain.weight_v.copy_(weight_v)
            plain.weight_u.copy_(self.weight_u)
            plain.inner_bias.copy_(shift)
            if self.bias is not None:
                plain.bias.copy_(self.bias)
        for name in ("weight_v", "weight_u", "bias"):
            own = getattr(self, name)
            if own is not None:
                getattr(plain, name).requires_grad_(own.requires_grad)
        plain.inner_bias.requires_grad_(self.norm.bias.requires_grad)
        return plain.train(self.training)

    def to_dense(self) -> Conv2d:
        """The ``nn.Conv2d`` that has the function of this layer in evaluation; errors as in :class:`LowRankConv2d`."""
        return self.folded().to_dense()

    def merged(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of :meth:`to_dense`."""
        weight_v, shift = self._scaled()
        bias = self._merged_bias(self.weight_u, self.bias, shift)
        return merge_conv(weight_v, self.weight_u, self.groups), bias

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and self._frozen is not None:
            copy = self._frozen_copy(x)
            if copy is not None:
                return self._forward_dense(x, *copy)
        x, padding = pad_ahead(self, x)
        window = (self.stride, padding, self.dilation, self.groups, self.mode)
        if not self.training:
            weight_v, shift = self._scaled()
            return lowrank_conv2d(x, weight_v, self.weight_u, self.bias, shift, *window)
        first, second = stages(geometry(self.kernel_size, *window))
        batch = x if x.dim() == 4 else x.unsqueeze(0)
        p = self.norm(convolve(batch, self.weight_v, None, first, self.groups))
        y = convolve(p, self.weight_u, self.bias, second, self.groups)
        return y if x.dim() == 4 else y.squeeze(0)

    def _scaled(self) -> tuple[Tensor, Tensor]:
        """The first factor and the inner bias that stand for it and the norm in evaluation."""
        norm = self.norm
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        return self.weight_v * scale[:, None, None, None], norm.bias - norm.running_mean * scale

    def _own_parameters(self):
        """What a frozen copy depends on."""
        norm = self.norm
        return *super()._own_parameters(), norm.weight, norm.bias, norm.running_mean, norm.running_var

    def _dense_is_cheaper(self) -> bool:
        return super()._dense_is_cheaper() and not self._pads_rows()
