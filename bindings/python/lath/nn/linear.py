# SPDX-License-Identifier: Apache-2.0
"""The low-rank form of ``torch.nn.Linear``."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import Linear, Module, Parameter

from ..factor import Decomposition, break_even_rank, check_rank, merge, merge_bias
from ..ops import linear, lowrank_linear

# Up to so many rows lath's own dense product beats torch's: it reads the weight where it lies, torch's packs it first.
_FEW_ROWS = 32

# Names in checkpoints of two nn.Linear in a Sequential called `linear`, as in the public low-rank training code.
_PAIR_NAMES = {
    "linear.0.weight": "weight_v",
    "linear.1.weight": "weight_u",
    "linear.0.bias": "inner_bias",
    "linear.1.bias": "bias",
}


class LowRankLinear(Module):
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
    rank: int

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
        if in_features < 0 or out_features < 0:
            sizes = f"in_features {in_features} and out_features {out_features}"
            raise ValueError(f"LowRankLinear: {sizes} must not be negative")
        self.in_features = in_features
        self.out_features = out_features
        self.rank = check_rank(rank, "LowRankLinear")
        self._frozen = None

        def parameter(*shape: int) -> Parameter:
            return Parameter(torch.empty(shape, device=device, dtype=dtype))

        self.weight_v = parameter(rank, in_features)
        self.weight_u = parameter(out_features, rank)
        self.register_parameter("inner_bias", parameter(rank) if inner_bias else None)
        self.register_parameter("bias", parameter(out_features) if bias else None)
        self.reset_parameters()

    def reset_parameters(self, init: str = "default") -> None:
        """Draw new parameters.

        Args:
            init: "default" draws each factor and its bias as ``nn.Linear`` would; "spectral" draws a dense layer as
                ``nn.Linear`` would and takes its truncated SVD, so that outputs and gradients start at the dense scale.
        """
        if init not in ("default", "spectral"):
            raise ValueError(f"LowRankLinear.reset_parameters: init is {init!r}, expected 'default' or 'spectral'")
        if init == "spectral" and not self.weight_v.is_meta:
            weight = torch.empty(
                self.out_features, self.in_features, device=self.weight_v.device, dtype=self.weight_v.dtype
            )
            _draw(weight, self.bias, self.in_features)
            with torch.no_grad():
                weight_v, weight_u = Decomposition.of(weight, "LowRankLinear.reset_parameters").factors(self.rank)
                self.weight_v.copy_(weight_v)
                self.weight_u.copy_(weight_u)
                if self.inner_bias is not None:
                    self.inner_bias.zero_()
            return
        _draw(self.weight_v, self.inner_bias, self.in_features)
        _draw(self.weight_u, self.bias, self.rank)

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
        if init not in ("svd", "fresh"):
            raise ValueError(f"LowRankLinear.from_dense: init is {init!r}, expected 'svd' or 'fresh'")
        if not isinstance(module, Linear):
            raise TypeError(f"LowRankLinear.from_dense: module is {type(module).__name__}, expected torch.nn.Linear")
        weight, bias = module.weight, module.bias
        layer = cls(
            weight.shape[1],
            weight.shape[0],
            rank,
            bias=bias is not None,
            inner_bias=inner_bias,
            device=weight.device,
            dtype=weight.dtype,
        )
        if init == "svd" and not weight.is_meta:
            decomposition = decomposition or Decomposition.of(weight, "LowRankLinear.from_dense")
            with torch.no_grad():
                weight_v, weight_u = decomposition.factors(rank)
                layer.weight_v.copy_(weight_v)
                layer.weight_u.copy_(weight_u)
                if inner_bias:
                    layer.inner_bias.zero_()
                if bias is not None:
                    layer.bias.copy_(bias)
        for name, parameter in layer.named_parameters():
            parameter.requires_grad_(bias.requires_grad if name == "bias" else weight.requires_grad)
        return layer.train(module.training)

    def to_dense(self) -> Linear:
        """The ``nn.Linear`` with the same function; its bias is ``bias + weight_u @ inner_bias``.

        This layer stays as it is. ``requires_grad``, training mode, dtype and device are carried over.
        """
        has_bias = self.bias is not None or self.inner_bias is not None
        dense = torch.nn.utils.skip_init(
            Linear,
            self.in_features,
            self.out_features,
            bias=has_bias,
            device=self.weight_v.device,
            dtype=self.weight_v.dtype,
        )
        with torch.no_grad():
            dense.weight.copy_(merge(self.weight_v, self.weight_u))
            if has_bias:
                dense.bias.copy_(merge_bias(self.weight_u, self.bias, self.inner_bias))
        dense.weight.requires_grad_(self.weight_v.requires_grad or self.weight_u.requires_grad)
        if has_bias:
            source = self.bias if self.bias is not None else self.inner_bias
            dense.bias.requires_grad_(source.requires_grad)
        return dense.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        if self._frozen is not None:
            y = self._forward_frozen(x)
            if y is not None:
                return y
        return lowrank_linear(x, *self._operands())

    def _operands(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """weight_v, weight_u, bias, inner_bias, past Module.__getattr__: four calls of it cost as much as a product."""
        own = self._parameters
        try:
            return own["weight_v"], own["weight_u"], own["bias"], own["inner_bias"]
        except KeyError:  # one of them is parametrized, or was replaced by a plain attribute
            return self.weight_v, self.weight_u, self.bias, self.inner_bias

    def freeze(self) -> bool:
        """Keep the merged dense weight for inference, if the rank is so high that the dense product is cheaper.

        The copy serves calls that record no gradient. It is dropped by ``train()``, ``load_state_dict`` and ``to``, and
        ignored after an in-place write to a parameter. A write that torch does not count (``.data``, a numpy view) goes
        unseen: call ``freeze`` again after it.

        Returns:
            Whether a copy is kept. At a rank below break-even there is nothing to gain and nothing is kept.
        """
        self._frozen = None
        if self.weight_v.is_meta or self.rank <= break_even_rank(self.in_features, self.out_features):
            return False
        with torch.no_grad():
            weight = merge(self.weight_v, self.weight_u)
            bias = merge_bias(self.weight_u, self.bias, self.inner_bias)
        parameters = self._own_parameters()
        self._frozen = (parameters, _stamps(parameters), weight, bias)
        return True

    def unfreeze(self) -> None:
        """Drop what :meth:`freeze` keeps."""
        self._frozen = None

    def _own_parameters(self) -> tuple[Parameter, ...]:
        return tuple(p for p in self._operands() if p is not None)

    def _forward_frozen(self, x: Tensor) -> Tensor | None:
        """The call through the merged weight, or None where it does not apply."""
        if torch.compiler.is_compiling():
            return None
        parameters = self._own_parameters()
        if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in parameters)):
            return None
        frozen, stamps, weight, bias = self._frozen
        same = len(parameters) == len(frozen) and all(p is q for p, q in zip(parameters, frozen, strict=True))
        if not same or stamps != _stamps(parameters):
            return None
        if x.numel() <= _FEW_ROWS * self.in_features and x.dtype is torch.float32 and x.is_cpu:
            return linear(x, weight, bias)
        return torch.nn.functional.linear(x, weight, bias)

    def train(self, mode: bool = True) -> LowRankLinear:
        if mode:
            self._frozen = None
        return super().train(mode)

    def _apply(self, fn, recurse: bool = True):
        self._frozen = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_frozen": None}

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors) -> None:
        self._frozen = None
        if f"{prefix}weight" in state_dict and f"{prefix}weight_v" not in state_dict:
            error = self._factor_dense_entry(state_dict, prefix)
            if error:
                errors.append(error)
                return
        elif f"{prefix}linear.0.weight" in state_dict:
            self._rename_pair_entries(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)

    def _factor_dense_entry(self, state_dict: dict, prefix: str) -> str | None:
        """Replace the dense weight in ``state_dict`` by factors; an error message if it does not fit."""
        weight, shape = state_dict[f"{prefix}weight"], (self.out_features, self.in_features)
        if tuple(weight.shape) != shape:
            got = tuple(weight.shape)
            return f"size mismatch for {prefix}weight: the checkpoint has {got}, the layer needs {shape}."
        try:
            weight_v, weight_u = Decomposition.of(weight, f"{prefix}weight").factors(self.rank)
        except (TypeError, ValueError) as error:
            return str(error)
        del state_dict[f"{prefix}weight"]
        state_dict[f"{prefix}weight_v"], state_dict[f"{prefix}weight_u"] = weight_v, weight_u
        if self.inner_bias is not None:
            state_dict.setdefault(f"{prefix}inner_bias", weight_v.new_zeros(self.rank))
        return None

    def _rename_pair_entries(self, state_dict: dict, prefix: str) -> None:
        """Map the names of two nn.Linear to ours; an inner bias that this layer lacks goes into its bias."""
        for theirs, ours in _PAIR_NAMES.items():
            if f"{prefix}{theirs}" in state_dict:
                state_dict[f"{prefix}{ours}"] = state_dict.pop(f"{prefix}{theirs}")
        bias = state_dict.get(f"{prefix}bias")
        if self.inner_bias is None and bias is not None and f"{prefix}inner_bias" in state_dict:
            inner_bias = state_dict.pop(f"{prefix}inner_bias")
            state_dict[f"{prefix}bias"] = merge_bias(state_dict[f"{prefix}weight_u"], bias, inner_bias)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}, "
            f"bias={self.bias is not None}, inner_bias={self.inner_bias is not None}"
        )


def _stamps(parameters: tuple[Parameter, ...]) -> list[tuple[int, int]]:
    """Changes with every write that torch counts, and when ``.data`` is set to another tensor."""
    return [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in parameters]


def _draw(weight: Tensor, bias: Tensor | None, fan_in: int) -> None:
    """Fill weight, then bias, as nn.Linear does, in the same order of random numbers: uniform in 1 / sqrt(fan_in)."""
    bound = 1 / math.sqrt(fan_in) if fan_in > 0 else 0.0
    torch.nn.init.uniform_(weight, -bound, bound)
    if bias is not None:
        torch.nn.init.uniform_(bias, -bound, bound)
