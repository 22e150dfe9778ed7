# SPDX-License-Identifier: Apache-2.0
"""What the layers with two thin factors share: parameters, checkpoints, conversion from and to the dense layer."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from ..factor import Decomposition, check_rank
from .freezable import Freezable


class Factored(Freezable):
    """A layer whose weight is the product of ``weight_v`` and ``weight_u``.

    A subclass says what the product is (:meth:`merged`), how a dense weight is factored (``_dense_shape``,
    ``_decompose``, ``_factors``), when the dense layer would be cheaper (``_dense_is_cheaper``) and how it is called
    (``_forward_dense``).

    Attributes:
        rank: inner size.
        weight_v, weight_u: the factors.
        inner_bias: added between the factors, or None.
        bias: added at the end, or None.
    """

    rank: int

    # Name of the Sequential that holds two ordinary layers in checkpoints of the public low-rank training code.
    _pair_name: str

    def _make_parameters(
        self, rank: int, shape_v: tuple, shape_u: tuple, ranks: int, bias: bool, inner_bias: bool, device, dtype
    ) -> None:
        """Register the parameters, uninitialized; ``ranks`` is the extent of the inner bias."""

        def parameter(*shape: int) -> Parameter:
            return Parameter(torch.empty(shape, device=device, dtype=dtype))

        self.rank = rank
        self.weight_v = parameter(*shape_v)
        self.weight_u = parameter(*shape_u)
        self.register_parameter("inner_bias", parameter(ranks) if inner_bias else None)
        self.register_parameter("bias", parameter(shape_u[0]) if bias else None)

    def reset_parameters(self, init: str = "default") -> None:
        """Draw new parameters.

        Args:
            init: "default" draws each factor and its bias as the ordinary layer of its shape would; "spectral" draws
                the dense layer and takes its truncated SVD, so that outputs and gradients start at the dense scale.
        """
        what = f"{type(self).__name__}.reset_parameters"
        if init not in ("default", "spectral"):
            raise ValueError(f"{what}: init is {init!r}, expected 'default' or 'spectral'")
        if init == "spectral" and not self.weight_v.is_meta:
            weight = torch.empty(self._dense_shape(), device=self.weight_v.device, dtype=self.weight_v.dtype)
            draw(weight, self.bias)
            self._set_factors(self._decompose(weight, what))
            return
        draw(self.weight_v, self.inner_bias)
        draw(self.weight_u, self.bias)

    # ---- for subclasses ---------------------------------------------------------------------------------------------

    def _dense_shape(self) -> tuple[int, ...]:
        """Of the dense weight."""
        raise NotImplementedError

    def _decompose(self, weight: Tensor, what: str) -> Decomposition:
        """Of a dense weight, which has to be finite; ``what`` names it in errors."""
        raise NotImplementedError

    def _factors(self, decomposition: Decomposition) -> tuple[Tensor, Tensor]:
        """``(weight_v, weight_u)`` of this layer's shapes."""
        raise NotImplementedError

    def merged(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the dense layer with the same function.

        Raises:
            ValueError: no dense layer is the same function.
        """
        raise NotImplementedError

    def _merged_bias(self, weight_u: Tensor, bias: Tensor | None, inner_bias: Tensor | None) -> Tensor | None:
        """The bias of the dense layer; ValueError where there is none."""
        raise NotImplementedError

    # ---- parameters -------------------------------------------------------------------------------------------------

    def _operands(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """weight_v, weight_u, bias, inner_bias, past Module.__getattr__: four calls of it cost as much as a product."""
        own = self._parameters
        try:
            return own["weight_v"], own["weight_u"], own["bias"], own["inner_bias"]
        except KeyError:  # one of them is parametrized, or was replaced by a plain attribute
            return self.weight_v, self.weight_u, self.bias, self.inner_bias

    def _own_parameters(self) -> tuple[Parameter, ...]:
        return tuple(p for p in self._operands() if p is not None)

    def _set_factors(self, decomposition: Decomposition) -> None:
        with torch.no_grad():
            weight_v, weight_u = self._factors(decomposition)
            self.weight_v.copy_(weight_v)
            self.weight_u.copy_(weight_u)
            if self.inner_bias is not None:
                self.inner_bias.zero_()

    def _take_over(self, module: Module, init: str, decomposition: Decomposition | None):
        """Become the layer closest to the dense ``module``, as ``from_dense`` promises; self."""
        weight, bias = module.weight, module.bias
        if init == "svd" and not weight.is_meta:
            self._set_factors(decomposition or self._decompose(weight, f"{type(self).__name__}.from_dense"))
            if bias is not None:
                with torch.no_grad():
                    self.bias.copy_(bias)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(bias.requires_grad if name == "bias" else weight.requires_grad)
        return self.train(module.training)

    def _hand_over(self, dense: Module) -> Module:
        """Fill the dense layer of ``to_dense``."""
        with torch.no_grad():
            weight, bias = self.merged()
            dense.weight.copy_(weight)
            if bias is not None:
                dense.bias.copy_(bias)
        dense.weight.requires_grad_(self.weight_v.requires_grad or self.weight_u.requires_grad)
        if dense.bias is not None:
            source = self.bias if self.bias is not None else self.inner_bias
            dense.bias.requires_grad_(source.requires_grad)
        return dense.train(self.training)

    def _merge(self) -> tuple[Tensor, Tensor | None]:
        return self.merged()

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors) -> None:
        error = None
        if f"{prefix}weight" in state_dict and f"{prefix}weight_v" not in state_dict:
            error = self._factor_dense_entry(state_dict, prefix)
        elif f"{prefix}{self._pair_name}.0.weight" in state_dict:
            error = self._rename_pair_entries(state_dict, prefix)
        if error:
            errors.append(error)
            return
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)

    def _factor_dense_entry(self, state_dict: dict, prefix: str) -> str | None:
        """Replace the dense weight in ``state_dict`` by factors; an error message if it does not fit."""
        name = f"{prefix}weight"
        try:
            check_dense_shape(name, state_dict[name], self._dense_shape())
            weight_v, weight_u = self._factors(self._decompose(state_dict[name], name))
        except (TypeError, ValueError) as error:
            return str(error)
        del state_dict[f"{prefix}weight"]
        state_dict[f"{prefix}weight_v"], state_dict[f"{prefix}weight_u"] = weight_v, weight_u
        if self.inner_bias is not None:
            state_dict.setdefault(f"{prefix}inner_bias", weight_v.new_zeros(weight_v.shape[0]))
        return None

    def _rename_pair_entries(self, state_dict: dict, prefix: str) -> str | None:
        """Map the names of two ordinary layers to ours; an inner bias that this layer lacks goes into its bias."""
        names = {"0.weight": "weight_v", "1.weight": "weight_u", "0.bias": "inner_bias", "1.bias": "bias"}
        for theirs, ours in names.items():
            key = f"{prefix}{self._pair_name}.{theirs}"
            if key in state_dict:
                state_dict[f"{prefix}{ours}"] = state_dict.pop(key)
        bias, inner_bias = state_dict.get(f"{prefix}bias"), state_dict.get(f"{prefix}inner_bias")
        if self.inner_bias is None and bias is not None and inner_bias is not None:
            try:
                bias = self._merged_bias(state_dict[f"{prefix}weight_u"], bias, inner_bias)
            except ValueError as error:
                return f"{prefix}{self._pair_name}.0.bias: {error}"
            state_dict[f"{prefix}bias"] = bias
            del state_dict[f"{prefix}inner_bias"]
        return None


def check_from_dense(cls: type, module: object, dense: type[Module], init: str) -> None:
    """The arguments that ``from_dense`` of every layer has."""
    if init not in ("svd", "fresh"):
        raise ValueError(f"{cls.__name__}.from_dense: init is {init!r}, expected 'svd' or 'fresh'")
    if not isinstance(module, dense):
        got = type(module).__name__
        raise TypeError(f"{cls.__name__}.from_dense: module is {got}, expected torch.nn.{dense.__name__}")


def check_dense_shape(name: str, weight: Tensor, shape: tuple[int, ...]) -> None:
    """ValueError where a dense weight of a checkpoint has another shape."""
    if tuple(weight.shape) != shape:
        got = tuple(weight.shape)
        raise ValueError(f"size mismatch for {name}: the checkpoint has {got}, the layer needs {shape}.")


def check_sizes(cls: type, rank: object, **sizes: int) -> None:
    """A rank of 1 or more, and other sizes that are not negative."""
    if any(size < 0 for size in sizes.values()):
        got = " and ".join(f"{name} {size}" for name, size in sizes.items())
        raise ValueError(f"{cls.__name__}: {got} must not be negative")
    check_rank(rank, cls.__name__)


def draw(weight: Tensor, bias: Tensor | None) -> None:
    """Fill weight, then bias, as torch's layers do: uniform in 1 / sqrt(fan_in), the same order of random numbers."""
    fan_in = math.prod(weight.shape[1:])
    bound = 1 / math.sqrt(fan_in) if fan_in > 0 else 0.0
    torch.nn.init.uniform_(weight, -bound, bound)
    if bias is not None:
        torch.nn.init.uniform_(bias, -bound, bound)
