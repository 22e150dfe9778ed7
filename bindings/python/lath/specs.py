# SPDX-License-Identifier: Apache-2.0
"""What ``lath.convert`` is to make of a layer: small frozen dataclasses, checked when they are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from .factor import CONV_MODES, Decomposition, check_rank

# Every formula truncates or rounds a product of doubles, in this order of operations: int(100 * 0.29) is 28. The sizes
# are those of the matrix that is factored, see LowRank.
RANK_RULES: dict[str, Callable[[int, int, float], int]] = {
    "min": lambda in_size, out_size, ratio: int(min(in_size, out_size) * ratio),
    "round": lambda in_size, out_size, ratio: round(ratio * min(out_size, in_size)),
    "in": lambda in_size, out_size, ratio: int(in_size * ratio),
    "out": lambda in_size, out_size, ratio: int(out_size * ratio),
}


@dataclass(frozen=True)
class LowRank:
    """Low-rank factors in the place of a dense weight. Exactly one of ratio, rank and energy says how thin.

    ``in`` and ``out`` below are the sizes of the matrix that is factored. Of a linear layer they are its features; of a
    convolution, whose groups are factored each on its own, with c_in and c_out channels per group

    ==============  ================  ==========
    form            in                out
    ==============  ================  ==========
    ``separable``   ``c_in kw``       ``c_out kh``
    ``pointwise``   ``c_in kh kw``    ``c_out``
    ==============  ================  ==========

    Attributes:
        ratio: rank as a share of a size of the layer, above 0 and at most 1; ``rule`` names the size.
        rank: the rank itself, or a mapping of qualified layer names to ranks. The names may be globs; an exact name
            comes first, then the first glob that matches, and a layer that none matches stays dense.
        energy: the smallest rank whose singular values hold this share of the sum of squares, above 0 and at most 1.
        rule: "min" ``int(min(in, out) * ratio)``; "round" ``int(round(ratio * min(out, in)))``; "in"
            ``int(in * ratio)``; "out" ``int(out * ratio)``. All in double precision.
        init: "svd" starts from the dense weight; "fresh" draws new factors as two ordinary layers would.
        conv: "separable" (1 x kw, then kh x 1) or "pointwise" (kh x kw, then 1 x 1); for convolutions only.
        inner_bias: a bias between the factors as well. A separable convolution with vertical padding then has a border
            effect that no dense one has, so ``lath.restore`` refuses it.
        tune: lower the rank to a size that fills the vector registers: a multiple of 16 from 64 on, of 8 from 16 on.
        skip_first, skip_last: leave so many layers at either end of the model dense, of those that are selected and
            that the model allows to replace; the order is that of ``model.named_modules()``.

    Raises:
        TypeError, ValueError: at construction, for a value outside of the above.
    """

    ratio: float | None = None
    rank: int | Mapping[str, int] | None = None
    energy: float | None = None
    rule: str = "min"
    init: str = "svd"
    conv: str = "separable"
    inner_bias: bool = False
    tune: bool = False
    skip_first: int = 0
    skip_last: int = 0

    def __post_init__(self) -> None:
        given = [name for name in ("ratio", "rank", "energy") if getattr(self, name) is not None]
        if len(given) != 1:
            got = " and ".join(given) or "none"
            raise ValueError(f"LowRank: got {got}, expected exactly one of ratio, rank and energy")
        for name in ("ratio", "energy"):
            if getattr(self, name) is not None:
                _check_share("LowRank", name, getattr(self, name))
        if isinstance(self.rank, Mapping):
            for pattern, rank in self.rank.items():
                check_rank(rank, f"LowRank, layer {pattern!r}")
        elif self.rank is not None:
            check_rank(self.rank, "LowRank")
        self._check_choice("rule", tuple(RANK_RULES))
        self._check_choice("init", ("svd", "fresh"))
        self._check_choice("conv", CONV_MODES)
        for name in ("inner_bias", "tune"):
            _check_bool("LowRank", name, getattr(self, name))
        for name in ("skip_first", "skip_last"):
            self._check_count(name, getattr(self, name))

    @staticmethod
    def _check_count(name: str, value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"LowRank: {name} is {value!r}, expected an int")
        if value < 0:
            raise ValueError(f"LowRank: {name} is {value}, expected 0 or more")

    def _check_choice(self, name: str, choices: tuple[str, ...]) -> None:
        if getattr(self, name) not in choices:
            raise ValueError(f"LowRank: {name} is {getattr(self, name)!r}, expected one of {choices}")

    def ratio_rank(self, in_size: int, out_size: int) -> int:
        """The rank that the ratio gives; it may be 0."""
        return RANK_RULES[self.rule](in_size, out_size, self.ratio)

    def rank_for(self, name: str, in_size: int, out_size: int, decompose: Callable[[], Decomposition]) -> int | None:
        """The rank of the layer ``name``; None if the mapping of ranks does not name it.

        The sizes are those of the matrix that is factored. ``decompose`` gives its SVD and is called only where the
        energy asks for it.

        Raises:
            ValueError: the ratio gives rank 0.
        """
        if self.ratio is not None:
            rank = self.ratio_rank(in_size, out_size)
            if rank < 1:
                raise ValueError(
                    f"layer {name!r} ({in_size} to {out_size}): ratio {self.ratio} with rule {self.rule!r} "
                    "gives rank 0; raise the ratio or exclude the layer"
                )
        elif self.energy is not None:
            rank = decompose().rank_for_energy(self.energy)
        elif isinstance(self.rank, Mapping):
            rank = self.rank.get(name)
            if rank is None:
                rank = next((r for pattern, r in self.rank.items() if fnmatchcase(name, pattern)), None)
            if rank is None:
                return None
        else:
            rank = self.rank
        return tuned_rank(rank) if self.tune else rank


@dataclass(frozen=True)
class OIALR:
    """Orthogonal bases and a core that trains, ``W = U S Vh``, in the place of a dense weight.

    For linear layers, convolutions and attention. The weight of a convolution is one matrix of ``out_channels`` rows;
    query, key and value have one together, of ``3 embed_dim`` rows, where ``nn.MultiheadAttention`` has. Layers are
    converted at any rank, also where the factors are no gain yet: ranks fall while the model trains.

    Attributes:
        rank_ratio: rank of each weight as a share of its smaller side, above 0 and at most 1, rounded down.
        keep_first, keep_last: leave the first, the last layer of the model dense, of those that would be converted; in
            the order of ``model.named_modules()``.
        aspect: leave weights dense whose longer side is this many times the shorter one or more. Those of attention are
            converted whatever their sides. Infinity converts all.
        wide_convolutions: convert convolutions with many more columns than rows, as the published code does, which
            tests them for the opposite alone.

    Raises:
        TypeError, ValueError: at construction, for a value outside of the above.

    The form and the defaults: Coquelin et al., arXiv 2401.08505, and its public code.
    """

    rank_ratio: float = 1.0
    keep_first: bool = False
    keep_last: bool = True
    aspect: float = 10.0
    wide_convolutions: bool = False

    def __post_init__(self) -> None:
        _check_share("OIALR", "rank_ratio", self.rank_ratio)
        for name in ("keep_first", "keep_last", "wide_convolutions"):
            _check_bool("OIALR", name, getattr(self, name))
        if isinstance(self.aspect, bool) or not isinstance(self.aspect, (int, float)):
            raise TypeError(f"OIALR: aspect is {self.aspect!r}, expected a number")
        if not self.aspect > 1:
            raise ValueError(f"OIALR: aspect is {self.aspect!r}, expected more than 1")

    def is_too_long(self, out: int, fan_in: int, conv: bool) -> bool:
        """Whether a weight of this shape stays dense."""
        if out < fan_in and conv and self.wide_convolutions:
            return False
        return min(out, fan_in) * self.aspect <= max(out, fan_in)

    def rank_for(self, name: str, out: int, fan_in: int) -> int:
        """The rank of a weight of the layer ``name``.

        Raises:
            ValueError: the ratio gives rank 0.
        """
        rank = int(min(out, fan_in) * self.rank_ratio)
        if rank < 1:
            raise ValueError(
                f"layer {name!r} ({fan_in} to {out}): rank_ratio {self.rank_ratio} gives rank 0; raise it or exclude "
                "the layer"
            )
        return rank


def _check_share(spec: str, name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{spec}: {name} is {value!r}, expected a float")
    if not 0.0 < value <= 1.0:
        raise ValueError(f"{spec}: {name} is {value!r}, expected a number above 0 and at most 1")


def _check_bool(spec: str, name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{spec}: {name} is {value!r}, expected a bool")


def tuned_rank(rank: int) -> int:
    """The next size downwards that fills the vector registers; below 16 the rank itself."""
    step = 16 if rank >= 64 else 8 if rank >= 16 else 1
    return rank - rank % step
