# SPDX-License-Identifier: Apache-2.0
"""Singular values of whole models: spectral initialization, the spectrum of each weight, ranks for a budget."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ._pairs import assembled, dense_name, matrices, pair_names, pairs
from .convert import Selection, _selector
from .costs import break_even, dense_numel
from .factor import CONV_MODES, Decomposition, conv_matrix
from .nn.cored import oialr_cores
from .nn.factored import Factored
from .nn.thin_attention import dense_weights
from .survey import Site, survey

_ONE_RANK = (nn.Linear, nn.Conv2d, nn.MultiheadAttention)
_BISECTIONS = 60  # of an interval of doubles between 0 and 1


@torch.no_grad()
def spectral_init(model: nn.Module, init: Callable[[Tensor], object] | None = None) -> list[str]:
    """Start every low-rank layer of ``model`` where a dense one would start, in place.

    A dense weight is drawn and factored, ``U = U_r sqrt(S_r)`` and ``V = sqrt(S_r) V_r^T``, so that outputs and
    gradients begin at the scale of the dense network: the spectral initialization of Khodak et al., ICLR 2021. A dense
    network that has its weights already takes them along with ``lath.convert(model, lath.LowRank(..., init="svd"))``.

    Biases stay as they are, only those between factors become 0.

    Args:
        model: a model with low-rank layers.
        init: fills a dense weight in place: any function of ``torch.nn.init``, say. Of an LSTM it gets each weight as
            ``nn.LSTM`` has it. None draws as the dense layer itself would.

    Returns:
        The qualified names of the dense weights that were drawn.
    """
    done = []
    names = {id(module): name for name, module in model.named_modules()}
    for module, name_v, name_u in pairs(model):
        weight_v, weight_u = getattr(module, name_v), getattr(module, name_u)
        weight = torch.empty(_dense_shape(module, weight_v, weight_u), device=weight_v.device, dtype=weight_v.dtype)
        if init is not None:
            init(weight)
        else:
            bound = _bound(module, weight)
            weight.uniform_(-bound, bound)
        prefix = f"{names[id(module)]}." if names[id(module)] else ""
        name = prefix + dense_name(name_v)
        done.append(name)
        if weight.is_meta:
            continue
        if isinstance(module, Factored):
            module._set_factors(module._decompose(weight, name))
            continue
        count = weight_v.shape[0] // weight_u.shape[1]
        factors = [Decomposition.of(w, name).factors(weight_u.shape[1]) for w in weight.chunk(count)]
        for parameter, value in zip((weight_v, weight_u), assembled(module, factors), strict=True):
            parameter.copy_(value)
    return done


def _dense_shape(module: nn.Module, weight_v: Tensor, weight_u: Tensor) -> tuple[int, ...]:
    if isinstance(module, Factored):
        return module._dense_shape()
    return weight_u.shape[0], weight_v.shape[1]


def _bound(module: nn.Module, weight: Tensor) -> float:
    """Of the uniform distribution of torch's own layer; recurrent layers take one bound for all their weights."""
    fan_in = getattr(module, "hidden_size", None) or math.prod(weight.shape[1:])
    return 1 / math.sqrt(fan_in) if fan_in > 0 else 0.0


@torch.no_grad()
def singular_values(model: nn.Module, conv: str = "separable") -> dict[str, Tensor]:
    """The singular values of every weight matrix, largest first; by the qualified name of the dense weight.

    Those of a low-rank layer are of the product of its factors, from matrices no larger than the rank; those of a
    weight in orthogonal bases are those of its core. Of a convolution they are of the matrix that factoring sees, one
    row of values for each group; in orthogonal bases all groups, and a packed query, key and value, are one matrix.

    Args:
        model: dense, low-rank or mixed: linear layers, 2-d convolutions, attention and recurrent layers. Queries, keys
            and values that share a weight have a row of values each.
        conv: the form in which a dense convolution is seen, "separable" or "pointwise".

    Raises:
        ValueError: an unknown form.
    """
    if conv not in CONV_MODES:
        raise ValueError(f"lath.singular_values: conv is {conv!r}, expected one of {CONV_MODES}")
    names = {id(module): f"{name}." if name else "" for name, module in model.named_modules()}
    found = {}
    for module, name_v, name_u in pairs(model):
        each = [_of_product(v, u) for v, u in matrices(module, getattr(module, name_v), getattr(module, name_u))]
        found[names[id(module)] + dense_name(name_v)] = each[0] if len(each) == 1 else torch.stack(each)
    for core in oialr_cores(model).values():
        found[names[id(core.module)] + core.name[:-1]] = torch.linalg.svdvals(_wide(core.s))
    for module in model.modules():
        for name, matrix in _dense_matrices(module, conv):
            values = torch.linalg.svdvals(_wide(matrix))
            found[names[id(module)] + name] = values[0] if values.dim() == 2 and len(values) == 1 else values
    return found


def _of_product(v: Tensor, u: Tensor) -> Tensor:
    """Of ``u v``: those of the product of their triangular factors."""
    right = torch.linalg.qr(_wide(v).mT, mode="r").R
    left = torch.linalg.qr(_wide(u), mode="r").R
    return torch.linalg.svdvals(left @ right.mT)


def _dense_matrices(module: nn.Module, conv: str) -> list[tuple[str, Tensor]]:
    if isinstance(module, nn.Linear):
        return [("weight", module.weight)]
    if isinstance(module, nn.Conv2d):
        return [("weight", conv_matrix(module.weight, conv, module.groups))]
    if isinstance(module, nn.MultiheadAttention):
        packed, names = module.in_proj_weight, ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        if packed is not None:
            return [("in_proj_weight", torch.stack(packed.chunk(3)))]
        return [(name, getattr(module, name)) for name in names]
    if isinstance(module, nn.RNNBase) or pair_names(module):
        factors = {name for names in pair_names(module) for name in names}
        return [
            (name, p)
            for name, p in module._parameters.items()
            if p is not None and p.dim() == 2 and name.startswith("weight") and name not in factors
        ]
    return []


def _wide(t: Tensor) -> Tensor:
    return t.detach().to(torch.float64 if t.dtype == torch.float64 else torch.float32)


@dataclass(frozen=True)
class _Candidate:
    """A dense layer that factors could make cheaper.

    Attributes:
        shares: of the sum of squares, that each rank keeps: shares[r - 1] for rank r.
        numel, numel_of_rank: numbers in the dense weight, and in the factors for each unit of rank.
        limit: the largest rank at which they are cheaper.
    """

    name: str
    shares: Tensor
    numel: int
    numel_of_rank: int
    limit: int

    def rank(self, energy: float) -> int | None:
        """The smallest rank that keeps so much; None if that is not cheaper than the dense weight."""
        rank = 1 + int((self.shares < energy).sum())
        return rank if rank <= self.limit else None

    def cost(self, energy: float) -> int:
        rank = self.rank(energy)
        return self.numel if rank is None else rank * self.numel_of_rank


def ranks_for_budget(
    model: nn.Module,
    share: float,
    conv: str = "separable",
    include: Selection = None,
    exclude: Selection = None,
) -> dict[str, int]:
    """Ranks at which the weights of the selected layers have at most ``share`` of the numbers they have dense.

    One share of the singular values' sum of squares holds for all layers, the largest that fits, so that a layer whose
    spectrum falls off soon gets a small rank. A layer that would not be cheaper at that energy stays dense and has no
    entry, so that the result goes straight into a spec::

        ranks = lath.ranks_for_budget(model, 0.3, exclude="head")
        lath.convert(model, lath.LowRank(rank=ranks))

    Args:
        model: with dense linear layers, 2-d convolutions and attention, which stay as they are. Recurrent layers are
            not looked at: their input and recurrent weights have ranks of their own.
        share: of the numbers in the selected weights, above 0 and at most 1.
        conv: as in ``lath.LowRank``.
        include: as for ``lath.convert``.
        exclude: as for ``lath.convert``.

    Raises:
        TypeError: an argument of a wrong type.
        ValueError: a share outside of its range, or that rank 1 everywhere exceeds; ``include`` matches nothing; a
            weight with NaN.
    """
    if isinstance(share, bool) or not isinstance(share, (int, float)):
        raise TypeError(f"lath.ranks_for_budget: share is {share!r}, expected a float")
    if not 0.0 < share <= 1.0:
        raise ValueError(f"lath.ranks_for_budget: share is {share!r}, expected a number above 0 and at most 1")
    if conv not in CONV_MODES:
        raise ValueError(f"lath.ranks_for_budget: conv is {conv!r}, expected one of {CONV_MODES}")
    sites = _selected(model, include, exclude)
    candidates = [_candidate(site.name, site.module, conv) for site in sites]
    budget = share * sum(c.numel for c in candidates)

    def cost(energy: float) -> int:
        return sum(c.cost(energy) for c in candidates)

    if cost(0.0) > budget:
        least = cost(0.0) / max(1, sum(c.numel for c in candidates))
        raise ValueError(f"lath.ranks_for_budget: share is {share!r}, but rank 1 everywhere takes {least:.4g}")
    energy = _largest(lambda energy: cost(energy) <= budget)
    ranks = {c.name: c.rank(energy) for c in candidates}
    return {name: rank for name, rank in ranks.items() if rank is not None}


def _selected(model: nn.Module, include: Selection, exclude: Selection) -> list[Site]:
    """The dense layers with one rank that ``lath.convert`` could replace."""
    included, excluded = _selector(include, "include"), _selector(exclude, "exclude")

    def matches(predicate: Callable[[str, nn.Module], bool], site: Site) -> bool:
        return any(predicate(name, site.module) for name in site.names)

    sites = [s for s in survey(model) if isinstance(s.module, _ONE_RANK) and s.reason is None]
    chosen = [s for s in sites if included is None or matches(included, s)]
    if sites and not chosen:
        names = ", ".join(site.name for site in sites[:10])
        raise ValueError(f"lath.ranks_for_budget: include matches no layer of the model; it has: {names}")
    return [s for s in chosen if excluded is None or not matches(excluded, s)]


def _candidate(name: str, module: nn.Module, conv: str) -> _Candidate:
    if isinstance(module, nn.MultiheadAttention):
        weights = dense_weights(module)
    else:
        weights = [conv_matrix(module.weight, conv, module.groups) if isinstance(module, nn.Conv2d) else module.weight]
    decompositions = [Decomposition.of(matrix, f"layer {name!r}") for matrix in weights]
    squares = pad_sequence([d.s.double().square().reshape(-1, d.s.shape[-1]).sum(0) for d in decompositions]).sum(1)
    total = squares.sum()
    shares = squares.cumsum(0) / total if total else torch.ones_like(squares)
    per_rank = sum(math.prod(m.shape[:-2]) * (m.shape[-1] + m.shape[-2]) for m in weights)
    return _Candidate(name, shares.cpu(), dense_numel(module), per_rank, break_even(module, conv))


def _largest(fits: Callable[[float], bool]) -> float:
    """The largest number in [0, 1] that fits, as closely as doubles can say; 0 does."""
    if fits(1.0):
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
