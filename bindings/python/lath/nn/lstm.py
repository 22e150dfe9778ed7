# SPDX-License-Identifier: Apache-2.0
"""The low-rank form of ``torch.nn.LSTM``."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import LSTM, Parameter
from torch.nn.functional import dropout
from torch.nn.utils.rnn import PackedSequence

from ..factor import Decomposition, break_even_rank, check_rank, merge
from ..ops import lowrank_lstm
from .factored import check_dense_shape, check_from_dense
from .freezable import Freezable

State = tuple[Tensor, Tensor]
Ranks = int | Sequence[int]

# Keys of the public low-rank training code: layers.0.cell.weight_ih_VT, or those of one cell alone.
_REFERENCE_KEY = re.compile(
    r"(?:layers\.(?P<layer>\d+)\.)?(?:cell\.)?(?P<kind>weight|bias)_(?P<of>ih|hh)(?:_(?P<factor>VT|U))?"
)


class Pair(NamedTuple):
    """One weight of the dense layer, and the parameters that stand for it."""

    dense: str  # name in nn.LSTM, and here if it is not factored
    v: str | None  # names of the factors; None if it is not
    u: str | None
    in_size: int
    rank: int  # 0 if it is not factored


class LowRankLSTM(Freezable):
    r"""``nn.LSTM`` whose weights are products of two thin factors; the four gates share them.

    .. math::
        a_t = U_{ih} (V_{ih} x_t) + b_{ih} + U_{hh} (V_{hh} h_{t-1}) + b_{hh}

    A step costs ``rank * 5 * hidden_size`` multiply-adds for h instead of ``4 * hidden_size ** 2``, and
    ``input_rank * (in + 4 * hidden_size)`` for x instead of ``4 * hidden_size * in``. Above the rank where that is no
    gain the factors are multiplied first, once per call; the function and its gradients are the same.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size: as for ``nn.LSTM``.
        rank: of the recurrent weights: one number, or one per layer.
        input_rank: of the input weights: one number, or one per layer; 0 keeps a weight dense. None takes ``rank``, but
            keeps a weight dense where factors of this rank would not make it cheaper.
        device, dtype: of the parameters.
        keep_gates: in training keep the activated gates for the backward, ``4 * hidden_size`` numbers a row. Without
            them only h and c are kept, and the backward takes about a third longer.

    Call:
        As ``nn.LSTM``: ``(output, (h_n, c_n)) = lstm(input, (h_0, c_0))``, with a sequence of any batch, an unbatched
        one or a ``PackedSequence``; the state is zero if it is not given.

    Attributes:
        weight_ih_v_l[k], weight_ih_u_l[k]: (input_rank, in), (4 * hidden_size, input_rank); ``in`` as for ``nn.LSTM``.
        weight_ih_l[k]: (4 * hidden_size, in), in their place where the input weight is dense.
        weight_hh_v_l[k], weight_hh_u_l[k]: (rank, hidden_size), or (rank, proj_size); (4 * hidden_size, rank).
        bias_ih_l[k], bias_hh_l[k]: (4 * hidden_size).
        weight_hr_l[k]: (proj_size, hidden_size), with a projection.
        rank: the largest one of ``ranks``.
        ranks, input_ranks: of each layer; 0 for a dense input weight.

    All of them with ``_reverse`` as well if bidirectional. ``load_state_dict`` also takes the state of an ``nn.LSTM``,
    whose weights it factors to the ranks of the layer, and ``layers.[k].cell.weight_ih_VT`` and ``weight_ih_U`` of the
    public low-rank training code. No packed copy of a weight is kept: every way of writing to one is seen by the next
    call.

    On the CPU, float32 is computed by lath's own kernel, float64 in plain loops, bfloat16 and float16 in float32. On
    CUDA torch's LSTM takes the merged weights. A projection is merged with the recurrent factors, so that it costs one
    product per call and no more in a step.
    """

    mode = "LSTM"

    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    bidirectional: bool
    proj_size: int
    rank: int
    ranks: tuple[int, ...]
    input_ranks: tuple[int, ...]
    keep_gates: bool

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        rank: Ranks,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        input_rank: Ranks | None = None,
        device=None,
        dtype=None,
        *,
        keep_gates: bool = True,
    ) -> None:
        super().__init__()
        _check_sizes(input_size, hidden_size, num_layers, dropout, proj_size)
        for name, value in {"bias": bias, "batch_first": batch_first, "bidirectional": bidirectional}.items():
            if not isinstance(value, bool):
                raise TypeError(f"LowRankLSTM: {name} is {value!r}, expected a bool")
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self.proj_size = proj_size
        self.keep_gates = keep_gates
        self.ranks = _per_layer(rank, num_layers, "rank", least=1)
        self.rank = max(self.ranks)
        self.input_ranks = self._resolve(input_rank)
        for name, shape in self._shapes():
            self.register_parameter(name, Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.reset_parameters()

    # ---- sizes and names --------------------------------------------------------------------------------------------

    @property
    def num_directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def output_size(self) -> int:
        """Of h: proj_size if there is a projection, else hidden_size."""
        return self.proj_size or self.hidden_size

    def layer_input_size(self, layer: int) -> int:
        return self.input_size if layer == 0 else self.output_size * self.num_directions

    def _resolve(self, input_rank: Ranks | None) -> tuple[int, ...]:
        if input_rank is not None:
            return _per_layer(input_rank, self.num_layers, "input_rank", least=0)
        limits = (break_even_rank(self.layer_input_size(k), 4 * self.hidden_size) for k in range(self.num_layers))
        return tuple(rank if rank <= limit else 0 for rank, limit in zip(self.ranks, limits, strict=True))

    def _suffixes(self) -> Iterator[tuple[int, str]]:
        """Number of the layer and end of the names, for every layer and direction, in the order of h_n."""
        for layer in range(self.num_layers):
            for direction in ("", "_reverse")[: self.num_directions]:
                yield layer, f"_l{layer}{direction}"

    def _pairs_of(self, layer: int, suffix: str) -> tuple[Pair, Pair]:
        sizes = (
            ("ih", self.layer_input_size(layer), self.input_ranks[layer]),
            ("hh", self.output_size, self.ranks[layer]),
        )
        return tuple(
            Pair(
                f"weight_{of}{suffix}",
                f"weight_{of}_v{suffix}" if rank else None,
                f"weight_{of}_u{suffix}" if rank else None,
                size,
                rank,
            )
            for of, size, rank in sizes
        )

    def pairs(self) -> Iterator[Pair]:
        """Every weight of the dense layer, in its order."""
        for layer, suffix in self._suffixes():
            yield from self._pairs_of(layer, suffix)

    def _shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes of the parameters, in the order of nn.LSTM."""
        gates = 4 * self.hidden_size
        for layer, suffix in self._suffixes():
            for pair in self._pairs_of(layer, suffix):
                if pair.rank:
                    yield pair.v, (pair.rank, pair.in_size)
                    yield pair.u, (gates, pair.rank)
                else:
                    yield pair.dense, (gates, pair.in_size)
            if self.bias:
                yield f"bias_ih{suffix}", (gates,)
                yield f"bias_hh{suffix}", (gates,)
            if self.proj_size:
                yield f"weight_hr{suffix}", (self.proj_size, self.hidden_size)

    # ---- parameters -------------------------------------------------------------------------------------------------

    def reset_parameters(self, init: str = "default") -> None:
        """Draw new parameters, uniform in 1 / sqrt(hidden_size) as for ``nn.LSTM``.

        Args:
            init: "default" draws the factors; "spectral" draws the dense weights and takes their truncated SVD, so that
                outputs and gradients start at the dense scale.
        """
        what = "LowRankLSTM.reset_parameters"
        if init not in ("default", "spectral"):
            raise ValueError(f"{what}: init is {init!r}, expected 'default' or 'spectral'")
        bound = 1 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            torch.nn.init.uniform_(parameter, -bound, bound)
        if init == "default" or next(self.parameters()).is_meta:
            return
        for pair in self.pairs():
            if pair.rank:
                u = getattr(self, pair.u)
                weight = torch.empty((u.shape[0], pair.in_size), device=u.device, dtype=u.dtype)
                self._set_factors(pair, Decomposition.of(weight.uniform_(-bound, bound), what))

    def _set_factors(self, pair: Pair, decomposition: Decomposition) -> None:
        with torch.no_grad():
            weight_v, weight_u = decomposition.factors(pair.rank)
            getattr(self, pair.v).copy_(weight_v)
            getattr(self, pair.u).copy_(weight_u)

    @property
    def all_weights(self) -> list[list[Parameter]]:
        """The parameters of every layer and direction, as of ``nn.LSTM``."""
        names = [name for name, _ in self._shapes()]
        return [[getattr(self, name) for name in names if name.endswith(suffix)] for _, suffix in self._suffixes()]

    def flatten_parameters(self) -> None:
        """Nothing: no kernel here wants its weights in one block. For code that was written for ``nn.LSTM``."""

    @classmethod
    def from_dense(
        cls,
        module: LSTM,
        rank: Ranks,
        input_rank: Ranks | None = None,
        *,
        init: str = "svd",
        decompositions: dict[str, Decomposition] | None = None,
    ) -> LowRankLSTM:
        """The low-rank layer closest to ``module``, which stays as it is.

        Biases, projections, dense input weights, ``requires_grad``, training mode, dtype and device are carried over.

        Args:
            module: an ``nn.LSTM``.
            rank: as for the constructor; beyond the size of a weight its factors are filled up with zeros.
            input_rank: likewise.
            init: "svd" factors the weights of ``module``; "fresh" keeps nothing but its sizes.
            decompositions: of its weights by name, if the caller has some already.

        Raises:
            TypeError: ``module`` is no ``nn.LSTM``, or a rank is not an int.
            ValueError: a rank below 1, an unknown init, or NaN or infinity in a weight.
        """
        check_from_dense(cls, module, LSTM, init)
        first = module.weight_ih_l0
        layer = cls(
            module.input_size, module.hidden_size, rank, module.num_layers, module.bias, module.batch_first, 0.0,
            module.bidirectional, module.proj_size, input_rank, device=first.device, dtype=first.dtype,
        )  # fmt: skip
        layer.dropout = module.dropout  # without the warning about it, which the user has had
        if init == "svd" and not first.is_meta:
            layer._take_over(module, decompositions or {})
        factored = {name: pair.dense for pair in layer.pairs() if pair.rank for name in (pair.v, pair.u)}
        for name, parameter in layer.named_parameters():
            parameter.requires_grad_(getattr(module, factored.get(name, name)).requires_grad)
        return layer.train(module.training)

    def _take_over(self, module: LSTM, decompositions: dict[str, Decomposition]) -> None:
        for pair in self.pairs():
            if pair.rank:
                found = decompositions.get(pair.dense)
                weight = getattr(module, pair.dense)
                self._set_factors(pair, found or Decomposition.of(weight, f"LowRankLSTM.from_dense: {pair.dense}"))
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if hasattr(module, name):
                    parameter.copy_(getattr(module, name))

    def merged(self) -> dict[str, Tensor]:
        """The parameters of the ``nn.LSTM`` with the same function, under its names and in its order."""
        dense: dict[str, Tensor] = {}
        factors = {pair.v: None for pair in self.pairs()} | {pair.u: pair for pair in self.pairs()}
        for name, _ in self._shapes():
            pair = factors.get(name)
            if pair is not None:
                dense[pair.dense] = merge(getattr(self, pair.v), getattr(self, pair.u))
            elif name not in factors:
                dense[name] = getattr(self, name).detach()
        return dense

    def to_dense(self) -> LSTM:
        """The ``nn.LSTM`` with the same function.

        This layer stays as it is. ``requires_grad``, training mode, dtype and device are carried over.
        """
        some = next(self.parameters())
        dense = LSTM(
            self.input_size, self.hidden_size, self.num_layers, self.bias, self.batch_first, 0.0, self.bidirectional,
            self.proj_size, device="meta", dtype=some.dtype,
        ).to_empty(device=some.device)  # fmt: skip
        dense.dropout = self.dropout
        factors = {pair.dense: (pair.v, pair.u) for pair in self.pairs() if pair.rank}
        with torch.no_grad():
            for name, value in self.merged().items():
                parameter = getattr(dense, name)
                parameter.copy_(value)
                own = (getattr(self, own) for own in factors.get(name, (name,)))
                parameter.requires_grad_(any(p.requires_grad for p in own))
        return dense.train(self.training)

    # ---- call -------------------------------------------------------------------------------------------------------

    def forward(self, input: Tensor | PackedSequence, hx: State | None = None) -> tuple[Tensor | PackedSequence, State]:
        copy = self._frozen_copy(input.data if isinstance(input, PackedSequence) else input)
        if copy is not None:
            return copy[0](input, hx)
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, hx)
        if not isinstance(input, Tensor):
            raise TypeError(f"LowRankLSTM: input is {type(input).__name__}, expected a tensor or a PackedSequence")
        if input.dim() not in (2, 3):
            raise ValueError(f"LowRankLSTM: input: got shape {tuple(input.shape)}, expected 2 or 3 dimensions")
        axis = 0 if self.batch_first else 1
        batched = input.dim() == 3
        x = input if batched else input.unsqueeze(axis)
        if x.shape[1 - axis] == 0:
            raise RuntimeError(f"LowRankLSTM: input: got shape {tuple(input.shape)}, expected at least one step")
        if hx is not None:
            hx = self._check_state(hx, x, x.shape[axis], batched)
        self._check_input(x)
        y, (h, c) = self._run(x, hx, None)
        return (y, (h, c)) if batched else (y.squeeze(axis), (h.squeeze(1), c.squeeze(1)))

    def _forward_packed(self, packed: PackedSequence, hx: State | None) -> tuple[PackedSequence, State]:
        x, batch_sizes, order, back = packed
        if hx is not None:
            hx = self._check_state(hx, x, int(batch_sizes[0]), True)
            if order is not None:
                hx = hx[0].index_select(1, order), hx[1].index_select(1, order)
        self._check_input(x)
        y, (h, c) = self._run(x, hx, batch_sizes)
        if back is not None:
            h, c = h.index_select(1, back), c.index_select(1, back)
        return PackedSequence(y, batch_sizes, order, back), (h, c)

    def _check_input(self, x: Tensor) -> None:
        if x.shape[-1] != self.input_size:
            raise RuntimeError(
                f"LowRankLSTM: input: got shape {tuple(x.shape)}, expected {self.input_size} in the last place"
            )
        weight = self.weight_hh_u_l0
        if x.dtype is not weight.dtype and not (x.is_meta or torch.is_autocast_enabled(x.device.type)):
            raise ValueError(
                f"LowRankLSTM: input: got dtype {x.dtype}, expected {weight.dtype} as of the weights; "
                f"input.to({weight.dtype}), or model.to({x.dtype})"
            )

    def _check_state(self, hx: object, x: Tensor, batch: int, batched: bool) -> State:
        """(h_0, c_0) of three dimensions."""
        if not isinstance(hx, (tuple, list)) or len(hx) != 2 or not all(isinstance(t, Tensor) for t in hx):
            raise TypeError(f"LowRankLSTM: hx is {type(hx).__name__}, expected a tuple of two tensors, (h_0, c_0)")
        states = []
        for name, state, size in zip(("h_0", "c_0"), hx, (self.output_size, self.hidden_size), strict=True):
            shape = (self.num_layers * self.num_directions, batch, size)
            expected = shape if batched else (shape[0], size)
            if tuple(state.shape) != expected:
                raise RuntimeError(f"LowRankLSTM: {name}: got shape {tuple(state.shape)}, expected {expected}")
            if state.device != x.device:
                raise RuntimeError(
                    f"LowRankLSTM: {name}: got a tensor on {state.device}, expected {x.device} like input"
                )
            states.append(state if batched else state.unsqueeze(1))
        return states[0], states[1]

    def _run(self, x: Tensor, hx: State | None, batch_sizes: Tensor | None) -> tuple[Tensor, State]:
        states: list[tuple[Tensor, Tensor]] = []
        ys: list[Tensor] = []
        for layer, suffix in self._suffixes():
            number = len(states)
            h0, c0 = (None, None) if hx is None else (hx[0][number], hx[1][number])
            y, *state = self._run_layer(layer, suffix, x, h0, c0, batch_sizes)
            states.append(state)
            ys.append(y)
            if len(ys) == self.num_directions:
                x = ys[0] if len(ys) == 1 else torch.cat(ys, -1)
                ys = []
                if self.dropout and layer < self.num_layers - 1:
                    x = dropout(x, self.dropout, self.training)
        h, c = (torch.stack(several) for several in zip(*states, strict=True))
        return x, (h, c)

    def _run_layer(self, layer: int, suffix: str, x: Tensor, h0: Tensor | None, c0: Tensor | None, batch_sizes):
        dense = not self.input_ranks[layer]
        return lowrank_lstm(
            x,
            None if dense else getattr(self, f"weight_ih_v{suffix}"),
            getattr(self, f"weight_ih{suffix}" if dense else f"weight_ih_u{suffix}"),
            getattr(self, f"weight_hh_v{suffix}"),
            getattr(self, f"weight_hh_u{suffix}"),
            getattr(self, f"bias_ih{suffix}") if self.bias else None,
            getattr(self, f"bias_hh{suffix}") if self.bias else None,
            h0,
            c0,
            batch_sizes=batch_sizes,
            reverse=suffix.endswith("_reverse"),
            batch_first=self.batch_first,
            projection=getattr(self, f"weight_hr{suffix}") if self.proj_size else None,
            keep_gates=self.keep_gates,
        )

    # ---- the merged copy --------------------------------------------------------------------------------------------

    def _dense_is_cheaper(self) -> bool:
        """Every recurrent weight costs less than its factors."""
        return min(self.ranks) > break_even_rank(self.output_size, 4 * self.hidden_size)

    def _merge(self) -> tuple[LSTM]:
        return (self.to_dense().eval(),)

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors) -> None:
        self._rename_reference_entries(state_dict, prefix)
        for pair in self.pairs():
            error = self._fit_entries(state_dict, prefix, pair)
            if error:
                errors.append(error)
                return
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)

    @staticmethod
    def _rename_reference_entries(state_dict: dict, prefix: str) -> None:
        for key in [key for key in state_dict if key.startswith(prefix)]:
            match = _REFERENCE_KEY.fullmatch(key[len(prefix) :])
            if match is None:
                continue
            factor = {None: "", "VT": "_v", "U": "_u"}[match["factor"]]
            name = f"{match['kind']}_{match['of']}{factor}_l{match['layer'] or 0}"
            state_dict[f"{prefix}{name}"] = state_dict.pop(key)

    def _fit_entries(self, state_dict: dict, prefix: str, pair: Pair) -> str | None:
        """Factor a dense weight of the checkpoint, or merge its factors, as this layer has it; or an error message."""
        name = f"{prefix}{pair.dense}"
        v, u = (f"{prefix}{pair.dense.replace('_l', f'_{factor}_l', 1)}" for factor in "vu")
        if not pair.rank and v in state_dict and u in state_dict and name not in state_dict:
            state_dict[name] = merge(state_dict.pop(v), state_dict.pop(u))
        if not pair.rank or name not in state_dict or v in state_dict:
            return None
        try:
            check_dense_shape(name, state_dict[name], (4 * self.hidden_size, pair.in_size))
            state_dict[v], state_dict[u] = Decomposition.of(state_dict[name], name).factors(pair.rank)
        except (TypeError, ValueError) as error:
            return str(error)
        del state_dict[name]
        return None

    def extra_repr(self) -> str:
        parts = [
            f"{self.input_size}, {self.hidden_size}, rank={_short(self.ranks)}, input_rank={_short(self.input_ranks)}"
        ]
        defaults = {
            "proj_size": 0,
            "num_layers": 1,
            "bias": True,
            "batch_first": False,
            "dropout": 0.0,
            "bidirectional": False,
            "keep_gates": True,
        }
        parts += [f"{name}={getattr(self, name)}" for name, value in defaults.items() if getattr(self, name) != value]
        return ", ".join(parts)


def _short(ranks: tuple[int, ...]) -> int | tuple[int, ...]:
    return ranks[0] if len(set(ranks)) == 1 else ranks


def _check_sizes(input_size: object, hidden_size: object, num_layers: object, rate: object, proj_size: object) -> None:
    sizes = {"input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers, "proj_size": proj_size}
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"LowRankLSTM: {name} is {value!r}, expected an int")
        least = 0 if name == "proj_size" else 1
        if value < least:
            raise ValueError(f"LowRankLSTM: {name} is {value}, expected {least} or more")
    if proj_size >= hidden_size:
        raise ValueError(f"LowRankLSTM: proj_size is {proj_size}, expected less than hidden_size, {hidden_size}")
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate <= 1:
        raise ValueError(f"LowRankLSTM: dropout is {rate!r}, expected a number from 0 to 1")
    if rate > 0 and num_layers == 1:
        warnings.warn(
            f"LowRankLSTM: dropout is {rate}, but it comes after every layer but the last, and there is one layer",
            stacklevel=3,
        )


def _per_layer(ranks: object, num_layers: int, name: str, least: int) -> tuple[int, ...]:
    """One rank per layer, each of at least ``least``."""
    several = tuple(ranks) if isinstance(ranks, (tuple, list)) else (ranks,) * num_layers
    if len(several) != num_layers:
        raise ValueError(
            f"LowRankLSTM: {name} has {len(several)} numbers, expected one, or one for each layer: {num_layers}"
        )
    for rank in several:
        if least == 1 or isinstance(rank, bool) or rank != 0:
            check_rank(rank, "LowRankLSTM" if name == "rank" else f"LowRankLSTM, {name}")
    return several
