# SPDX-License-Identifier: Apache-2.0
"""``torch.nn.MultiheadAttention`` in orthogonal bases."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import MultiheadAttention, Parameter
from torch.nn.init import xavier_normal_, xavier_uniform_

from ..factor import Decomposition, break_even_rank
from ..ops import oialr_linear
from .attention import LowRankMultiheadAttention
from .core import Core, check_core_rank, triplets
from .cored import Cored, frozen_weight
from .factored import check_from_dense
from .oialr import OIALRLinear, frozen_product
from .thin_attention import PARTS, ThinAttention

_NAME = "OIALRMultiheadAttention"


class OIALRMultiheadAttention(Cored, ThinAttention):
    r"""Attention whose projections have weights :math:`U S V^T`, of which the small cores :math:`S` train.

    The function of ``nn.MultiheadAttention``. Its packed weight of query, key and value is one matrix of
    ``3 embed_dim`` rows in one basis, so that self-attention multiplies by :math:`V^T` once for all three. Attention
    itself is ``torch.nn.functional.scaled_dot_product_attention`` where no weights are asked for.

    Args:
        embed_dim: features of query and output.
        num_heads: heads, a divisor of ``embed_dim``.
        rank: of each weight, from 1 to ``embed_dim``; of one with a smaller side, that side at most.
        dropout: probability for each attention weight, in training.
        bias: learn a bias of each projection.
        add_bias_kv: learn one more key and value.
        add_zero_attn: attend to one more key and value of zeros.
        kdim, vdim: features of key and value, if not ``embed_dim``.
        batch_first: inputs are (batch, sequence, features) instead of (sequence, batch, features).
        device, dtype: of the parameters. float32, bfloat16 and float64 can be computed with.

    Shape:
        See :meth:`forward`.

    Attributes:
        in_proj_weight_u, in_proj_weight_s, in_proj_weight_vh: (3 embed_dim, rank), (rank, rank), (rank, embed_dim); the
            second one is the parameter, the others are buffers.
        q_proj_weight_u, q_proj_weight_s, q_proj_weight_vh, k_proj_weight_u, ...: in the place of these three, if
            ``kdim`` or ``vdim`` is not ``embed_dim``: (embed_dim, rank), (rank, rank), (rank, features).
        in_proj_bias: (3 embed_dim), or None.
        bias_k, bias_v: (1, 1, embed_dim), or None.
        out_proj: an OIALRLinear, with a rank of its own.

    ``load_state_dict`` takes over the ranks of a checkpoint, where the parameters stay the same objects, and factors
    the weights of ``nn.MultiheadAttention``.

    In ``nn.TransformerEncoderLayer`` the layer takes the ordinary path, never the fused inference path, which would
    read a dense weight. ``lath.convert`` tells an ``nn.TransformerEncoder`` above as well; if you put the layer into
    one yourself, set its ``use_nested_tensor = False``.

    Raises:
        TypeError: a rank that is not an int.
        ValueError: an argument outside of its range.

    The form: Coquelin et al., arXiv 2401.08505, section 3.
    """

    _what = _NAME

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        rank: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        self._set_up(embed_dim, num_heads, rank, dropout, add_zero_attn, kdim, vdim, batch_first)
        check_core_rank(rank, embed_dim, _NAME)

        def parameter(*shape: int) -> Parameter:
            return Parameter(torch.empty(shape, device=device, dtype=dtype))

        if self._packed:
            self._make_core("in_proj_weight_", 3 * embed_dim, embed_dim, rank, device, dtype)
        else:
            for part, features in zip(PARTS, self._features(), strict=True):
                self._make_core(f"{part}_proj_weight_", embed_dim, features, min(rank, features), device, dtype)
        self.register_parameter("in_proj_bias", parameter(3 * embed_dim) if bias else None)
        self.out_proj = OIALRLinear(embed_dim, embed_dim, rank, bias, device, dtype)
        self.register_parameter("bias_k", parameter(1, 1, embed_dim) if add_bias_kv else None)
        self.register_parameter("bias_v", parameter(1, 1, embed_dim) if add_bias_kv else None)
        self._reset_inputs()

    @property
    def rank(self) -> int:
        """Of the weights of query, key and value, the largest one."""
        return max(core.rank for core in self.cores())

    def cores(self) -> tuple[Core, ...]:
        """Its weights, but that of the output, which ``out_proj`` has."""
        if self._packed:
            return (Core(self, "in_proj_weight_"),)
        return tuple(Core(self, f"{part}_proj_weight_") for part in PARTS)

    def reset_parameters(self) -> None:
        """Draw the dense layer as torch would, with the same random numbers, and decompose its weights.

        At full rank that is the function of the dense layer of the same seed. On the meta device nothing happens.
        """
        self.out_proj.reset_parameters()
        self._reset_inputs()

    def _reset_inputs(self) -> None:
        """All but the weight of the output, which torch draws first."""
        for core in self.cores():
            if not core.s.is_meta:
                weight = xavier_uniform_(torch.empty(core.shape, device=core.s.device, dtype=core.s.dtype))
                core.factor_(Decomposition.of(weight, f"{_NAME}.reset_parameters"))
        with torch.no_grad():
            for bias in (self.in_proj_bias, self.out_proj.bias):
                if bias is not None:
                    bias.zero_()
            for bias in (self.bias_k, self.bias_v):
                if bias is not None:
                    xavier_normal_(bias)

    # ---- dense and back ---------------------------------------------------------------------------------------------

    @classmethod
    def from_dense(
        cls,
        module: MultiheadAttention,
        rank: int | Sequence[int] | None = None,
        *,
        decompositions: Sequence[Decomposition] | None = None,
    ) -> OIALRMultiheadAttention:
        """The layer closest to ``module``, whose weights stay as they are.

        The new layer holds the biases of ``module`` themselves, not copies, so that an optimizer which has them trains
        them on. ``requires_grad``, training mode, dtype and device are carried over.

        Args:
            module: an ``nn.MultiheadAttention``.
            rank: of each weight, at most its smaller side; or one rank for each, in the order of
                :func:`dense_matrices`; None for full rank.
            decompositions: of the weights in that order, if the caller has them already.

        Raises:
            TypeError: ``module`` is no ``nn.MultiheadAttention``, or a rank is not an int.
            ValueError: a rank below 1 or too large, or NaN or infinity in a weight.
        """
        check_from_dense(cls, module, MultiheadAttention, "svd")
        weights = dense_matrices(module)
        ranks = _ranks(rank, [min(weight.shape) for weight in weights], module.embed_dim)
        layer = torch.nn.utils.skip_init(
            cls,
            module.embed_dim,
            module.num_heads,
            1,
            dropout=module.dropout,
            bias=False,
            add_zero_attn=module.add_zero_attn,
            kdim=module.kdim,
            vdim=module.vdim,
            batch_first=module.batch_first,
            device=weights[0].device,
            dtype=weights[0].dtype,
        )
        found = decompositions or [None] * len(weights)
        for core, weight, kept, svd in zip(layer.cores(), weights[:-1], ranks[:-1], found[:-1], strict=True):
            if weight.is_meta:
                core.resize_(kept)
            else:
                core.replace_(*triplets(svd or Decomposition.of(weight, f"{_NAME}.from_dense"), kept))
            core.s.requires_grad_(weight.requires_grad)
        layer.out_proj = OIALRLinear.from_dense(module.out_proj, ranks[-1], decomposition=found[-1])
        for name in ("in_proj_bias", "bias_k", "bias_v"):
            setattr(layer, name, getattr(module, name))
        return layer.train(module.training)

    def to_dense(self) -> MultiheadAttention:
        """The ``nn.MultiheadAttention`` with the same function, which holds copies of the biases.

        This layer stays as it is. ``requires_grad``, training mode, dtype and device are carried over.
        """
        return self._hand_over(torch.nn.utils.skip_init(MultiheadAttention, *self._arguments(), **self._options()))

    def merged(self) -> dict[str, Tensor]:
        """The parameters of the ``nn.MultiheadAttention`` with the same function, by name."""
        dense = {core.name[:-1]: core.dense() for core in self.cores()}
        for name in ("in_proj_bias", "bias_k", "bias_v"):
            if getattr(self, name) is not None:
                dense[name] = getattr(self, name).detach().clone()
        dense["out_proj.weight"] = self.out_proj.cores()[0].dense()
        if self.out_proj.bias is not None:
            dense["out_proj.bias"] = self.out_proj.bias.detach().clone()
        return dense

    def to_lowrank(self) -> LowRankMultiheadAttention:
        """The ``LowRankMultiheadAttention`` with the same function.

        Its projections have one rank, so that factors of a smaller one are filled up with zeros, and each of query, key
        and value has a first factor of its own: in packed weights all three are Vh.
        """
        cores = [*self.cores(), *self.out_proj.cores()]
        rank = max(core.rank for core in cores)
        arguments = (*self._arguments(), rank)
        layer = torch.nn.utils.skip_init(LowRankMultiheadAttention, *arguments, **self._options())
        for core in cores:
            owner, copies = (layer.out_proj, 1) if core.module is self.out_proj else (layer, 3 if self._packed else 1)
            first, second = getattr(owner, f"{core.name}v"), getattr(owner, f"{core.name}u")
            with torch.no_grad():
                first.zero_().unflatten(0, (copies, rank))[:, : core.rank] = core.vh
                second.zero_()[:, : core.rank] = core.folded()
            for parameter in (first, second):
                parameter.requires_grad_(core.s.requires_grad)
        self._hand_over_biases(layer)
        return layer.train(self.training)

    def _arguments(self) -> tuple[int, int]:
        return self.embed_dim, self.num_heads

    def _options(self) -> dict:
        return {
            "dropout": self.dropout,
            "bias": self.in_proj_bias is not None,
            "add_bias_kv": self.bias_k is not None,
            "add_zero_attn": self.add_zero_attn,
            "kdim": self.kdim,
            "vdim": self.vdim,
            "batch_first": self.batch_first,
            "device": self.out_proj.weight_s.device,
            "dtype": self.out_proj.weight_s.dtype,
        }

    def _hand_over(self, dense: MultiheadAttention) -> MultiheadAttention:
        for core in (*self.cores(), *self.out_proj.cores()):
            owner = dense.out_proj if core.module is self.out_proj else dense
            weight = getattr(owner, core.name[:-1])
            with torch.no_grad():
                weight.copy_(core.dense())
            weight.requires_grad_(core.s.requires_grad)
        self._hand_over_biases(dense)
        return dense.train(self.training)

    def _hand_over_biases(self, layer: torch.nn.Module) -> None:
        for name in ("in_proj_bias", "bias_k", "bias_v", "out_proj.bias"):
            *owner, leaf = name.split(".")
            bias = getattr(self.get_submodule(".".join(owner)), leaf)
            if bias is not None:
                copy = layer.get_parameter(name)
                with torch.no_grad():
                    copy.copy_(bias)
                copy.requires_grad_(bias.requires_grad)

    # ---- the copy for inference -------------------------------------------------------------------------------------

    def freeze(self) -> bool:
        self.out_proj.freeze()
        return super().freeze()

    def unfreeze(self) -> None:
        self.out_proj.unfreeze()
        super().unfreeze()

    def _merge(self) -> tuple:
        return tuple(frozen_weight(core, _dense_is_cheaper(core)) for core in self.cores())

    # ---- the projections --------------------------------------------------------------------------------------------

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """q, k and v, in the shapes of the inputs."""
        frozen = self._frozen_copy(query, key, value)
        if not self._packed:
            biases = self._parts(self.in_proj_bias)
            cores = zip((query, key, value), self.cores(), biases, frozen or PARTS, strict=True)
            return [
                oialr_linear(x, core.vh, core.s, core.u, bias) if frozen is None else frozen_product(x, *copy, bias)
                for x, core, bias, copy in cores
            ]
        if key is not value:
            return [self._product(x, part, 1, frozen)[0] for part, x in enumerate((query, key, value))]
        if query is key:
            return self._product(query, 0, 3, frozen)
        return self._product(query, 0, 1, frozen) + self._product(key, 1, 2, frozen)

    def _product(self, x: Tensor, first: int, parts: int, frozen: tuple | None) -> list[Tensor]:
        """So many of q, k and v, from ``first`` on, with the packed weight."""
        rows, all_rows = parts * self.embed_dim, parts == 3

        def part(stacked: Tensor | None) -> Tensor | None:
            return stacked if stacked is None or all_rows else stacked.narrow(0, first * self.embed_dim, rows)

        if frozen is not None:
            v, weight = frozen[0]
            y = frozen_product(x, v, part(weight), part(self.in_proj_bias))
        else:
            u = part(self.in_proj_weight_u)
            y = oialr_linear(x, self.in_proj_weight_vh, self.in_proj_weight_s, u, part(self.in_proj_bias))
        return list(y.unflatten(-1, (parts, self.embed_dim)).unbind(-2))


def dense_matrices(module: MultiheadAttention) -> list[Tensor]:
    """The weights of a dense layer: the packed one, or those of query, key and value; then that of the output."""
    if module.in_proj_weight is not None:
        return [module.in_proj_weight, module.out_proj.weight]
    return [module.q_proj_weight, module.k_proj_weight, module.v_proj_weight, module.out_proj.weight]


def _ranks(rank: int | Sequence[int] | None, limits: list[int], embed_dim: int) -> list[int]:
    """Of each weight."""
    what = f"{_NAME}.from_dense"
    if rank is None:
        return limits
    if isinstance(rank, Sequence):
        if len(rank) != len(limits):
            raise ValueError(f"{what}: rank has {len(rank)} entries, expected one for each of {len(limits)} weights")
        return [check_core_rank(r, limit, what) for r, limit in zip(rank, limits, strict=True)]
    check_core_rank(rank, embed_dim, what)
    return [min(rank, limit) for limit in limits]


def _dense_is_cheaper(core: Core) -> bool:
    out, fan_in = core.shape
    return core.rank > break_even_rank(fan_in, out)
