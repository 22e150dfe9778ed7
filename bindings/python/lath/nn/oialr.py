# SPDX-License-Identifier: Apache-2.0
"""``torch.nn.Linear`` in an orthogonal basis."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Linear, Parameter

from ..factor import Decomposition, break_even_rank
from ..ops import lowrank_linear, oialr_linear
from .cored import OneCore
from .factored import check_from_dense, check_sizes
from .linear import LowRankLinear, dense_product


class OIALRLinear(OneCore):
    r"""A linear layer whose weight is :math:`U S V^T`, of which the small core :math:`S` trains.

    .. math:: y = x (U S V^T)^T + b

    U has orthonormal columns and :math:`V^T` orthonormal rows. Both stay as they are while the layer trains, and turn
    only in the basis updates of ``lath.OIALRController``, where the rank may change as well. A row of a training step
    costs ``2 rank (in_features + out_features) + 3 rank^2`` multiply-adds instead of
    ``3 in_features out_features``, and keeps ``rank`` numbers for the backward pass instead of ``in_features``. Above
    the rank where that is no gain the operator forms the dense weight; the function and its gradients are the same.

    Args:
        in_features: size of the last dimension of x.
        out_features: size of the last dimension of y.
        rank: of the weight; from 1 to min(in_features, out_features).
        bias: learn a bias.
        device, dtype: of the parameters. float32, bfloat16 and float64 can be computed with.

    Shape:
        x (\*, in_features) to y (\*, out_features).

    Attributes:
        weight_u: (out_features, rank), a buffer.
        weight_s: (rank, rank), the parameter.
        weight_vh: (rank, in_features), a buffer.
        bias: (out_features), or None.

    ``load_state_dict`` takes over the rank of a checkpoint, where ``weight_s`` stays the same object, and factors a
    dense ``weight``.

    Raises:
        TypeError: a rank that is not an int.
        ValueError: a rank below 1 or above min(in_features, out_features), or a negative size.

    The form: Coquelin et al., arXiv 2401.08505, section 3.
    """

    in_features: int
    out_features: int
    bias: Parameter | None

    def __init__(
        self, in_features: int, out_features: int, rank: int, bias: bool = True, device=None, dtype=None
    ) -> None:
        super().__init__()
        check_sizes(OIALRLinear, rank, in_features=in_features, out_features=out_features)
        self.in_features, self.out_features = in_features, out_features
        self._make_core("weight_", out_features, in_features, rank, device, dtype)
        self._make_bias(out_features, bias, device, dtype)
        self.reset_parameters()

    @classmethod
    def from_dense(
        cls, module: Linear, rank: int | None = None, *, decomposition: Decomposition | None = None
    ) -> OIALRLinear:
        """The layer closest to ``module``, whose weight stays as it is.

        The new layer holds the bias of ``module`` itself, not a copy, so that an optimizer which has it trains it on.
        ``requires_grad``, training mode, dtype and device are carried over.

        Args:
            module: a layer with the ``weight`` and ``bias`` of ``nn.Linear``.
            rank: of the result; None for full rank.
            decomposition: of ``module.weight``, if the caller has it already.

        Raises:
            TypeError: ``module`` is no ``nn.Linear`` with a real weight, or ``rank`` is not an int.
            ValueError: a rank below 1 or above the smaller side of the weight, or NaN or infinity in it.
        """
        check_from_dense(cls, module, Linear, "svd")
        out_features, in_features = module.weight.shape
        kept = min(in_features, out_features) if rank is None else rank
        kind = {"device": module.weight.device, "dtype": module.weight.dtype}
        layer = torch.nn.utils.skip_init(cls, in_features, out_features, kept, bias=False, **kind)
        return layer._take_over(module, decomposition)

    def to_dense(self) -> Linear:
        """The ``nn.Linear`` with the same function, which holds a copy of the bias; this layer stays as it is.

        ``requires_grad``, training mode, dtype and device are carried over.
        """
        sizes = self.in_features, self.out_features, self.bias is not None
        return self._hand_over(torch.nn.utils.skip_init(Linear, *sizes, **self._kind()))

    def to_lowrank(self) -> LowRankLinear:
        """The ``LowRankLinear`` with the same function: its factors are ``weight_vh`` and ``weight_u weight_s``."""
        sizes = self.in_features, self.out_features, self.rank, self.bias is not None
        layer = torch.nn.utils.skip_init(LowRankLinear, *sizes, **self._kind())
        self._hand_over_factors(layer.weight_v, layer.weight_u)
        return self._hand_over_bias(layer)

    def forward(self, x: Tensor) -> Tensor:
        if self._frozen is not None:
            copy = self._frozen_copy(x)
            if copy is not None:
                return frozen_product(x, *copy, self.bias)
        return oialr_linear(x, *self._operands())

    def _dense_is_cheaper(self) -> bool:
        return self.rank > break_even_rank(self.in_features, self.out_features)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}, "
            f"bias={self.bias is not None}"
        )


def frozen_product(x: Tensor, first: Tensor | None, second: Tensor, bias: Tensor | None) -> Tensor:
    """The layer with what ``frozen_weight`` gave."""
    return dense_product(x, second, bias) if first is None else lowrank_linear(x, first, second, bias)
