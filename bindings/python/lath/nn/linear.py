# SPDX-License-Identifier: Apache-2.0
"""The low-rank form of ``torch.nn.Linear``."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Linear

from ..factor import Decomposition, break_even_rank, merge, merge_bias
from ..ops import linear, lowrank_linear
from .factored import Factored, check_from_dense, check_sizes

# Up to so many rows lath's own dense product beats torch's: it reads the weight where it lies, torch's packs it first.
_FEW_ROWS = 32


class LowRankLinear(Factored):
    r"""A linear layer whose weight is a product of two thin factors.

    .. math:: y = (x V^T + b_1) U^T + b_2

    A row costs ``rank * (in_features + out_features)`` multiply-adds instead of ``in_features * out_features``. Above
    the rank where that is no gain the factors are multiplied first, so that the layer stays close to the dense one; the
    function and its gradients are the same.

    Args:
        in_features: size of the last dimension of x.
        out_features: size of the last dimension of y.
        rank: inner size; 1 or more, also above min(in_features, out_features).
        bias: learn :math:`b_2`.
        inner_bias: learn :math:`b_1`. It adds nothing that :math:`b_2` cannot express.
        device, dtype: of the parameters. float32, bfloat16 and float64 can be computed with.

    Shape:
        x (\*, in_features) to y (\*, out_features).

    Attributes:
        weight_v: (rank, in_features).
        weight_u: (out_features, rank).
        inner_bias: (rank), or None.
        bias: (out_features), or None.

    No packed copy of a weight is kept, so every way of writing to one is seen by the next call; :meth:`freeze` is the
    explicit exception. ``load_state_dict`` also takes a dense ``weight``, which it factors to the rank of the layer,
    and the names ``linear.0.weight`` and ``linear.1.weight`` of a ``Sequential`` of two ``nn.Linear``.

    The layer as two factors trained from scratch: Khodak et al., "Initialization and Regularization of Factorized
    Neural Layers", ICLR 2021.
    """

    in_features: int
    out_features: int

    _pair_name = "linear"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool = True,
        inner_bias: bool = False,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        check_sizes(LowRankLinear, rank, in_features=in_features, out_features=out_features)
        self.in_features = in_features
        self.out_features = out_features
        shapes = (rank, in_features), (out_features, rank)
        self._make_parameters(rank, *shapes, rank, bias, inner_bias, device, dtype)
        self.reset_parameters()

    @classmethod
    def from_dense(
        cls,
        module: Linear,
        rank: int,
        inner_bias: bool = False,
        *,
        init: str = "svd",
        decomposition: Decomposition | None = None,
    ) -> LowRankLinear:
        """The low-rank layer closest to ``module``, which stays as it is.

        The bias, ``requires_grad``, training mode, dtype and device are carried over; the inner bias starts at zero.

        Args:
            module: a layer with the ``weight`` and ``bias`` of ``nn.Linear``.
            rank: of the result; beyond min(in, out) the factors are filled up with zeros.
            inner_bias: give the layer an inner bias.
            init: "svd" factors the weight of ``module``; "fresh" keeps nothing but its sizes.
            decomposition: of ``module.weight``, if the caller has it already.

        Raises:
            TypeError: ``module`` has no real matrix as weight, or ``rank`` is not an int.
            ValueError: a rank below 1, an unknown init, or NaN or infinity in the weight.
        """
        check_from_dense(cls, module, Linear, init)
        weight, bias = module.weight, module.bias
        out_features, in_features = weight.shape
        kind = {"device": weight.device, "dtype": weight.dtype}
        layer = cls(in_features, out_features, rank, bias=bias is not None, inner_bias=inner_bias, **kind)
        return layer._take_over(module, init, decomposition)

    def to_dense(self) -> Linear:
        """The ``nn.Linear`` with the same function; its bias is ``bias + weight_u @ inner_bias``.

        This layer stays as it is. ``requires_grad``, training mode, dtype and device are carried over.
        """
        has_bias = self.bias is not None or self.inner_bias is not None
        kind = {"device": self.weight_v.device, "dtype": self.weight_v.dtype}
        return self._hand_over(
            torch.nn.utils.skip_init(Linear, self.in_features, self.out_features, bias=has_bias, **kind)
        )

    def merged(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the dense layer with the same function."""
        return merge(self.weight_v, self.weight_u), self._merged_bias(self.weight_u, self.bias, self.inner_bias)

    def forward(self, x: Tensor) -> Tensor:
        if self._frozen is not None:
            copy = self._frozen_copy(x)
            if copy is not None:
                return self._forward_dense(x, *copy)
        return lowrank_linear(x, *self._operands())

    def _dense_shape(self) -> tuple[int, ...]:
        return self.out_features, self.in_features

    def _decompose(self, weight: Tensor, what: str) -> Decomposition:
        return Decomposition.of(weight, what)

    def _factors(self, decomposition: Decomposition) -> tuple[Tensor, Tensor]:
        return decomposition.factors(self.rank)

    def _merged_bias(self, weight_u: Tensor, bias: Tensor | None, inner_bias: Tensor | None) -> Tensor | None:
        return merge_bias(weight_u, bias, inner_bias)

    def _dense_is_cheaper(self) -> bool:
        return self.rank > break_even_rank(self.in_features, self.out_features)

    def _forward_dense(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return dense_product(x, weight, bias)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}, "
            f"bias={self.bias is not None}, inner_bias={self.inner_bias is not None}"
        )


def dense_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x weight^T + bias`` by the faster one of lath and torch; for inference."""
    if x.numel() <= _FEW_ROWS * weight.shape[1] and x.dtype is torch.float32 and x.is_cpu:
        return linear(x, weight, bias)
    return torch.nn.functional.linear(x, weight, bias)
