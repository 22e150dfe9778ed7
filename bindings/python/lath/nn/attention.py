# SPDX-License-Identifier: Apache-2.0
"""The low-rank form of ``torch.nn.MultiheadAttention``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import Module, MultiheadAttention, Parameter
from torch.nn.init import xavier_normal_, xavier_uniform_

from ..factor import Decomposition, break_even_rank, merge, merge_bias
from ..ops import linear, lowrank_linear
from .factored import check_dense_shape, check_from_dense
from .linear import LowRankLinear
from .thin_attention import PARTS, ThinAttention, dense_weights, projections

_NAME = "LowRankMultiheadAttention"

# q, k and v from one product with the stacked first factors, while its result stays in cache until it is used: above
# this size (bytes) three operators that keep theirs in cache are faster. Measured: 1.16 times as fast as three at 8192
# rows of 128 features and rank 25 (2.3 MiB), 0.92 at 8320 rows of 512 and rank 102 (9.7 MiB).
_CACHED = 4 << 20


class LowRankMultiheadAttention(ThinAttention):
    r"""Attention whose four projections are products of two thin factors.

    The function of ``nn.MultiheadAttention`` with :math:`W_q = U_q V_q` and so on; each of the projections of query,
    key, value and output has ``rank`` rows in its first factor. Attention itself is
    ``torch.nn.functional.scaled_dot_product_attention`` where no weights are asked for.

    Args:
        embed_dim: features of query and output.
        num_heads: heads, a divisor of ``embed_dim``.
        rank: of each projection; 1 or more.
        dropout: probability for each attention weight, in training.
        bias: learn a bias of each projection.
        add_bias_kv: learn one more key and value.
        add_zero_attn: attend to one more key and value of zeros.
        kdim, vdim: features of key and value, if not ``embed_dim``.
        batch_first: inputs are (batch, sequence, features) instead of (sequence, batch, features).
        device, dtype: of the parameters. float32, bfloat16 and float64 can be computed with.
        inner_bias: learn a bias between the factors of each projection. It adds nothing that ``bias`` cannot express.

    Shape:
        See :meth:`forward`.

    Attributes:
        in_proj_weight_v: (3 rank, embed_dim), the first factors of q, k and v, one above the other. Self-attention
            multiplies by all of them at once where no gradient is recorded.
        in_proj_weight_u: (3 embed_dim, rank), their second factors.
        q_proj_weight_v, q_proj_weight_u, k_proj_weight_v, ...: in the place of these two, if ``kdim`` or ``vdim`` is
            not ``embed_dim``: (rank, features) and (embed_dim, rank).
        in_proj_bias: (3 embed_dim), or None.
        in_proj_inner_bias: (3 rank), or None.
        bias_k, bias_v: (1, 1, embed_dim), or None.
        out_proj: a LowRankLinear.

    ``load_state_dict`` also takes the names of ``nn.MultiheadAttention`` and factors its weights to the rank of the
    layer.

    In ``nn.TransformerEncoderLayer`` the layer takes the ordinary path, never the fused inference path, which would
    read a dense weight. ``lath.convert`` tells an ``nn.TransformerEncoder`` above as well; if you put the layer into
    one yourself, set its ``use_nested_tensor = False``.
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
        *,
        inner_bias: bool = False,
    ) -> None:
        super().__init__()
        self._set_up(embed_dim, num_heads, rank, dropout, add_zero_attn, kdim, vdim, batch_first)
        self.rank = rank

        def parameter(*shape: int) -> Parameter:
            return Parameter(torch.empty(shape, device=device, dtype=dtype))

        if self._packed:
            self.in_proj_weight_v = parameter(3 * rank, embed_dim)
            self.in_proj_weight_u = parameter(3 * embed_dim, rank)
        else:
            for part, features in zip(PARTS, self._features(), strict=True):
                setattr(self, f"{part}_proj_weight_v", parameter(rank, features))
                setattr(self, f"{part}_proj_weight_u", parameter(embed_dim, rank))
        self.register_parameter("in_proj_inner_bias", parameter(3 * rank) if inner_bias else None)
        self.register_parameter("in_proj_bias", parameter(3 * embed_dim) if bias else None)
        self.out_proj = LowRankLinear(embed_dim, embed_dim, rank, bias, inner_bias, device, dtype)
        self.register_parameter("bias_k", parameter(1, 1, embed_dim) if add_bias_kv else None)
        self.register_parameter("bias_v", parameter(1, 1, embed_dim) if add_bias_kv else None)
        self.reset_parameters()

    # ---- parameters -------------------------------------------------------------------------------------------------

    def reset_parameters(self, init: str = "default") -> None:
        """Draw new parameters; all biases of projections become zero, as in ``nn.MultiheadAttention``.

        Args:
            init: "default" draws each factor as an ``nn.Linear`` of its shape would; "spectral" draws the dense weights
                as ``nn.MultiheadAttention`` does and takes their truncated SVD.
        """
        self.out_proj.reset_parameters(init)  # knows the choices
        with torch.no_grad():
            if init == "spectral" and not self.out_proj.weight_v.is_meta:
                self._set_factors([Decomposition.of(w, f"{_NAME}.reset_parameters") for w in self._draw_dense()])
            else:
                for weight in (weight for pair in self.in_proj_factors() for weight in pair):
                    bound = 1 / math.sqrt(max(1, weight.shape[1]))
                    weight.uniform_(-bound, bound)
            for bias in self._projection_biases():
                bias.zero_()
            for bias in (self.bias_k, self.bias_v):
                if bias is not None:
                    xavier_normal_(bias)

    def _draw_dense(self) -> list[Tensor]:
        """Weights of q, k and v: Xavier's, of all three together if they have the same input."""
        kind = {"device": self.out_proj.weight_v.device, "dtype": self.out_proj.weight_v.dtype}
        if self._packed:
            return list(xavier_uniform_(torch.empty(3 * self.embed_dim, self.embed_dim, **kind)).chunk(3))
        return [xavier_uniform_(torch.empty(self.embed_dim, n, **kind)) for n in self._features()]

    def _projection_biases(self) -> list[Parameter]:
        biases = self.in_proj_bias, self.in_proj_inner_bias, self.out_proj.bias, self.out_proj.inner_bias
        return [bias for bias in biases if bias is not None]

    def in_proj_factors(self) -> list[tuple[Tensor, Tensor]]:
        """The first factor (rank, features) and the second one (embed_dim, rank) of q, k and v; views."""
        if self._packed:
            return list(zip(self._parts(self.in_proj_weight_v), self._parts(self.in_proj_weight_u), strict=True))
        return [(getattr(self, f"{part}_proj_weight_v"), getattr(self, f"{part}_proj_weight_u")) for part in PARTS]

    def _set_factors(self, decompositions: Sequence[Decomposition]) -> None:
        """Of q, k and v."""
        with torch.no_grad():
            for pair, decomposition in zip(self.in_proj_factors(), decompositions, strict=True):
                for weight, factor in zip(pair, decomposition.factors(self.rank), strict=True):
                    weight.copy_(factor)

    # ---- dense and back ---------------------------------------------------------------------------------------------

    @classmethod
    def from_dense(
        cls,
        module: MultiheadAttention,
        rank: int,
        inner_bias: bool = False,
        *,
        init: str = "svd",
        decompositions: Sequence[Decomposition] | None = None,
    ) -> LowRankMultiheadAttention:
        """The low-rank layer closest to ``module``, which stays as it is.

        Biases, ``requires_grad``, training mode, dtype and device are carried over; inner biases start at zero.

        Args:
            module: an ``nn.MultiheadAttention``.
            rank: of each projection; beyond its sizes the factors are filled up with zeros.
            inner_bias: give the projections inner biases.
            init: "svd" factors the weights of ``module``; "fresh" keeps nothing but its sizes.
            decompositions: of the weights of q, k, v and the output, if the caller has them already.

        Raises:
            TypeError: ``module`` is no ``nn.MultiheadAttention``, or ``rank`` is not an int.
            ValueError: a rank below 1, an unknown init, or NaN or infinity in a weight.
        """
        check_from_dense(cls, module, MultiheadAttention, init)
        weights = dense_weights(module)
        layer = cls(
            module.embed_dim,
            module.num_heads,
            rank,
            dropout=module.dropout,
            bias=module.in_proj_bias is not None,
            add_bias_kv=module.bias_k is not None,
            add_zero_attn=module.add_zero_attn,
            kdim=module.kdim,
            vdim=module.vdim,
            batch_first=module.batch_first,
            inner_bias=inner_bias,
            device=weights[0].device,
            dtype=weights[0].dtype,
        )
        if init == "svd" and not weights[0].is_meta:
            if decompositions is None:
                decompositions = [Decomposition.of(weight, f"{_NAME}.from_dense") for weight in weights]
            *in_proj, out_proj = decompositions
            layer._set_factors(in_proj)
            layer._copy_plain(module)
            layer.out_proj = LowRankLinear.from_dense(module.out_proj, rank, inner_bias, decomposition=out_proj)
        layer._copy_requires_grad(module)
        return layer.train(module.training)

    def _copy_plain(self, source: Module) -> None:
        """The parameters that are the same in the dense layer."""
        with torch.no_grad():
            for name in ("in_proj_bias", "bias_k", "bias_v"):
                bias = getattr(self, name)
                if bias is not None:
                    bias.copy_(getattr(source, name))
            if self.in_proj_inner_bias is not None:
                self.in_proj_inner_bias.zero_()

    def _copy_requires_grad(self, module: MultiheadAttention) -> None:
        for name, parameter in self.named_parameters(recurse=False):
            dense = getattr(module, name, None)
            if dense is None:  # a factor, or an inner bias
                dense = module.in_proj_weight
            if dense is None:
                dense = getattr(module, f"{name[0]}_proj_weight", module.q_proj_weight)
            parameter.requires_grad_(dense.requires_grad)
        for name, parameter in self.out_proj.named_parameters():
            dense = module.out_proj.bias if name == "bias" else module.out_proj.weight
            parameter.requires_grad_(dense.requires_grad)

    def to_dense(self) -> MultiheadAttention:
        """The ``nn.MultiheadAttention`` with the same function; inner biases go into the biases.

        This layer stays as it is. ``requires_grad``, training mode, dtype and device are carried over.
        """
        dense = torch.nn.utils.skip_init(
            MultiheadAttention,
            self.embed_dim,
            self.num_heads,
            dropout=self.dropout,
            bias=self.in_proj_bias is not None or self.in_proj_inner_bias is not None,
            add_bias_kv=self.bias_k is not None,
            add_zero_attn=self.add_zero_attn,
            kdim=self.kdim,
            vdim=self.vdim,
            batch_first=self.batch_first,
            device=self.out_proj.weight_v.device,
            dtype=self.out_proj.weight_v.dtype,
        )
        with torch.no_grad():
            for name, value in self.merged().items():
                dense.get_parameter(name).copy_(value)
        for name, parameter in dense.named_parameters():
            parameter.requires_grad_(any(p.requires_grad for p in self._sources(name)))
        return dense.train(self.training)

    def _sources(self, name: str) -> Iterator[Parameter]:
        """The parameters that a parameter of the dense layer is made of."""
        *path, leaf = name.split(".")
        owner = self.get_submodule(".".join(path))
        own = owner._parameters
        if leaf.endswith("weight"):
            names = f"{leaf}_v", f"{leaf}_u"
        elif own.get(leaf) is not None:
            names = (leaf,)
        else:
            names = (leaf.replace("bias", "inner_bias"),)
        return (own[n] for n in names)

    def merged(self) -> dict[str, Tensor]:
        """The parameters of the ``nn.MultiheadAttention`` with the same function, by name."""
        factors = self.in_proj_factors()
        weights = [merge(v, u) for v, u in factors]
        dense = dict(zip((f"{part}_proj_weight" for part in PARTS), weights, strict=True))
        if self._packed:
            dense = {"in_proj_weight": torch.cat(weights)}
        biases = [
            merge_bias(u, bias, inner_bias)
            for (_, u), bias, inner_bias in zip(
                factors, self._parts(self.in_proj_bias), self._parts(self.in_proj_inner_bias), strict=True
            )
        ]
        if biases[0] is not None:
            dense["in_proj_bias"] = torch.cat(biases)
        for name in ("bias_k", "bias_v"):
            if getattr(self, name) is not None:
                dense[name] = getattr(self, name).clone()
        dense["out_proj.weight"], bias = self.out_proj.merged()
        if bias is not None:
            dense["out_proj.bias"] = bias
        return dense

    # ---- the merged copy --------------------------------------------------------------------------------------------

    def _dense_is_cheaper(self) -> bool:
        sizes = projections(self)
        return self.rank * sum(n + m for n, m in sizes) >= sum(n * m for n, m in sizes)

    def _merge(self) -> tuple[MultiheadAttention]:
        return (self.to_dense().eval(),)

    def _dense_copy(self, query: Tensor, key: Tensor, value: Tensor) -> MultiheadAttention | None:
        copy = self._frozen_copy(query, key, value)
        return None if copy is None else copy[0]

    # ---- the projections --------------------------------------------------------------------------------------------

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """q, k and v, in the shapes of the inputs."""
        if key is value and self._shares_product(key, 3 if query is key else 2):
            if query is key:
                return self._project_at_once(query, 0, 3)
            return self._project_at_once(query, 0, 1) + self._project_at_once(key, 1, 2)
        biases, inner_biases = self._parts(self.in_proj_bias), self._parts(self.in_proj_inner_bias)
        operands = zip((query, key, value), self.in_proj_factors(), biases, inner_biases, strict=True)
        return [lowrank_linear(x, *factors, bias, inner_bias) for x, factors, bias, inner_bias in operands]

    def _shares_product(self, x: Tensor, parts: int) -> bool:
        """Whether one product with all first factors is the fastest way.

        With gradients it is not: the operator of a whole projection has a backward pass that reads everything once.
        Nor at ranks where the planner would merge the factors.
        """
        if not self._packed or self.rank > break_even_rank(self.embed_dim, self.embed_dim):
            return False
        if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in self.parameters(False))):
            return False
        return x.numel() // self.embed_dim * parts * self.rank * x.element_size() <= _CACHED

    def _project_at_once(self, x: Tensor, first: int, parts: int) -> list[Tensor]:
        """So many of q, k and v."""

        def part(stacked: Tensor | None, size: int) -> Tensor | None:
            return None if stacked is None else stacked[first * size : (first + parts) * size]

        def each(stacked: Tensor | None) -> Sequence[Tensor | None]:
            return (None,) * parts if stacked is None else stacked.unflatten(0, (parts, -1)).unbind(0)

        v, inner_bias = part(self.in_proj_weight_v, self.rank), part(self.in_proj_inner_bias, self.rank)
        us = each(part(self.in_proj_weight_u, self.embed_dim))
        biases = each(part(self.in_proj_bias, self.embed_dim))
        ps = linear(x, v, inner_bias).unflatten(-1, (parts, self.rank)).unbind(-2)
        return [linear(p, u, bias) for p, u, bias in zip(ps, us, biases, strict=True)]

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors) -> None:
        error = self._factor_dense_entries(state_dict, prefix)
        if error:
            errors.append(error)
            return
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)

    def _factor_dense_entries(self, state_dict: dict, prefix: str) -> str | None:
        """Replace the dense weights in ``state_dict`` by factors; an error message if one does not fit."""
        names = ["in_proj_weight"] if self._packed else [f"{part}_proj_weight" for part in PARTS]
        shapes = [(3 * self.embed_dim, self.embed_dim)]
        if not self._packed:
            shapes = [(self.embed_dim, features) for features in self._features()]
        for name, shape in zip(names, shapes, strict=True):
            key = f"{prefix}{name}"
            if key not in state_dict or f"{key}_v" in state_dict:
                continue
            try:
                check_dense_shape(key, state_dict[key], shape)
                dense = state_dict[key].chunk(3 if self._packed else 1)
                pairs = [Decomposition.of(weight, key).factors(self.rank) for weight in dense]
            except (TypeError, ValueError) as error:
                return str(error)
            del state_dict[key]
            state_dict[f"{key}_v"], state_dict[f"{key}_u"] = (
                torch.cat(several) for several in zip(*pairs, strict=True)
            )
            if self.in_proj_inner_bias is not None:
                inner_bias = pairs[0][0].new_zeros(3 * self.rank)
                state_dict.setdefault(f"{prefix}in_proj_inner_bias", inner_bias)
        return None

    def _more_options(self) -> dict[str, tuple[object, object]]:
        return {"inner_bias": (self.in_proj_inner_bias is not None, False)}
