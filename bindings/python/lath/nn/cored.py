# SPDX-License-Identifier: Apache-2.0
"""What the layers with weights in orthogonal bases share: their tensors, checkpoints, and the copy for inference."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from ..factor import Decomposition
from .core import Core, check_core_rank, triplets
from .factored import check_dense_shape, draw
from .freezable import Freezable


class Cored(Freezable):
    """A layer with one or more weights ``U S Vh``.

    U and Vh are buffers, so that no optimizer, no clipping and no weight decay sees them; S is a parameter. Nothing
    here ever changes a ``requires_grad``: a core that its user has frozen stays so.

    A state dict may have other ranks than the layer, which then takes them over: its parameters stay the same objects.
    Of a dense weight in it the layer takes as many singular triplets as it has ranks.
    """

    def _make_core(self, name: str, out: int, fan_in: int, rank: int, device, dtype) -> None:
        """Register the three tensors of a weight, uninitialized.

        Raises:
            TypeError: the rank is not an int.
            ValueError: it is below 1, or more than the smaller side of the weight.
        """
        check_core_rank(rank, min(out, fan_in), type(self).__name__)
        kind = {"device": device, "dtype": dtype}
        self.register_buffer(f"{name}u", torch.empty(out, rank, **kind))
        self.register_buffer(f"{name}vh", torch.empty(rank, fan_in, **kind))
        self.register_parameter(f"{name}s", Parameter(torch.empty(rank, rank, **kind)))

    def cores(self) -> tuple[Core, ...]:
        """Its weights, but those of layers within."""
        return (Core(self),)

    def _dense_shape(self, core: Core) -> tuple[int, ...]:
        """Of the dense weight."""
        return core.shape

    # ---- the copy for inference -------------------------------------------------------------------------------------

    def _own_parameters(self) -> tuple[Tensor, ...]:
        return (*self.parameters(), *self.buffers())

    def _keeps_copy(self) -> bool:
        return True  # two factors are cheaper than three, whatever the rank

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors) -> None:
        ranks = {}
        for core in self.cores():
            try:
                ranks[core] = _rank_in(state_dict, prefix + core.name, core, self._dense_shape(core))
            except (TypeError, ValueError) as error:
                errors.append(str(error))
                return
        for core, rank in ranks.items():
            if rank != core.rank:
                core.resize_(rank)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)


class OneCore(Cored):
    """A layer with one weight, ``weight_u weight_s weight_vh``, and a bias."""

    @property
    def rank(self) -> int:
        return self.weight_s.shape[0]

    def reset_parameters(self) -> None:
        """Draw the dense layer as torch would, with the same random numbers, and take its singular value decomposition.

        At full rank that is the function of the dense layer of the same seed. On the meta device nothing happens.
        """
        if self.weight_s.is_meta:
            return
        (core,) = self.cores()
        weight = torch.empty(self._dense_shape(core), device=core.s.device, dtype=core.s.dtype)
        draw(weight, self.bias)
        core.factor_(Decomposition.of(weight.reshape(core.shape), f"{type(self).__name__}.reset_parameters"))

    def _make_bias(self, size: int, bias: bool, device, dtype) -> None:
        self.register_parameter("bias", Parameter(torch.empty(size, device=device, dtype=dtype)) if bias else None)

    def _operands(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """weight_vh, weight_s, weight_u and bias, past Module.__getattr__ where nothing is parametrized."""
        own, bases = self._parameters, self._buffers
        try:
            return bases["weight_vh"], own["weight_s"], bases["weight_u"], own["bias"]
        except KeyError:
            return self.weight_vh, self.weight_s, self.weight_u, self.bias

    def _dense_is_cheaper(self) -> bool:
        raise NotImplementedError

    def _merge(self) -> tuple[Tensor | None, Tensor]:
        return frozen_weight(self.cores()[0], self._dense_is_cheaper())

    def _kind(self) -> dict:
        """Device and type, as arguments."""
        return {"device": self.weight_s.device, "dtype": self.weight_s.dtype}

    # ---- dense and back ---------------------------------------------------------------------------------------------

    def _take_over(self, module: Module, decomposition: Decomposition | None):
        """Become the layer closest to the dense ``module``, as ``from_dense`` promises; self."""
        (core,) = self.cores()
        if not module.weight.is_meta:
            matrix = module.weight.reshape(core.shape)
            core.factor_(decomposition or Decomposition.of(matrix, f"{type(self).__name__}.from_dense"))
        self.bias = module.bias
        self.weight_s.requires_grad_(module.weight.requires_grad)
        return self.train(module.training)

    def _hand_over(self, dense: Module) -> Module:
        """Fill the dense layer of ``to_dense``."""
        (core,) = self.cores()
        with torch.no_grad():
            dense.weight.copy_(core.dense().reshape(dense.weight.shape))
        dense.weight.requires_grad_(self.weight_s.requires_grad)
        return self._hand_over_bias(dense)

    def _hand_over_bias(self, layer: Module) -> Module:
        if self.bias is not None:
            with torch.no_grad():
                layer.bias.copy_(self.bias)
            layer.bias.requires_grad_(self.bias.requires_grad)
        return layer.train(self.training)

    def _hand_over_factors(self, first: Parameter, second: Parameter, copies: int = 1) -> None:
        """Fill two factors, of which the first holds Vh so many times."""
        (core,) = self.cores()
        with torch.no_grad():
            first.copy_(core.vh.repeat(copies, 1).reshape(first.shape))
            second.copy_(core.folded().reshape(second.shape))
        for parameter in (first, second):
            parameter.requires_grad_(self.weight_s.requires_grad)


def frozen_weight(core: Core, dense: bool) -> tuple[Tensor | None, Tensor]:
    """What inference needs of a weight: Vh and ``U S``, or None and the dense one."""
    return (None, core.dense()) if dense else (core.vh, core.folded())


def _rank_in(state_dict: dict, name: str, core: Core, dense_shape: tuple[int, ...]) -> int:
    """The rank that a layer needs to load its core; a dense weight is replaced by factors in ``state_dict``.

    That of the layer itself where entries are missing or fit no weight of its size, which torch reports better.
    """
    dense, keys = name[:-1], [f"{name}{part}" for part in ("u", "s", "vh")]
    if dense in state_dict and not any(key in state_dict for key in keys):
        weight = state_dict[dense]
        check_dense_shape(dense, weight, dense_shape)
        found = Decomposition.of(weight.reshape(core.shape), dense)
        del state_dict[dense]
        state_dict.update(zip(keys, triplets(found, core.rank), strict=True))
        return core.rank
    if not all(key in state_dict for key in keys):
        return core.rank
    shapes = [tuple(state_dict[key].shape) for key in keys]
    rank = shapes[1][0] if shapes[1] else 0
    out, fan_in = core.shape
    if shapes != [(out, rank), (rank, rank), (rank, fan_in)]:
        return core.rank
    return check_core_rank(rank, core.limit, keys[1])


def oialr_cores(model: Module) -> dict[str, Core]:
    """Every weight in an orthogonal basis, by name, in the order of ``model.named_modules()``; shared layers once.

    The name is that of the layer; in attention "in_proj", or "q_proj", "k_proj" and "v_proj", come after it. A model
    that is itself such a layer has the name "".
    """
    found = {}
    for name, module in model.named_modules():
        for core in module.cores() if isinstance(module, Cored) else ():
            part = core.name.removesuffix("weight_").removesuffix("_")
            found[".".join(filter(None, (name, part)))] = core
    return found
