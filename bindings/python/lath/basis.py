# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of a basis update: ``W = U S Vh`` in the basis where its core is diagonal.

With the singular value decomposition ``S = A diag(sigma) B`` of the small core,

    U <- U A,   Vh <- B Vh,   S <- diag(sigma)

leaves W as it is; dropping the last columns and rows truncates it in the best way (Coquelin et al., arXiv 2401.08505,
"absorb sigma"). The decomposition and the products are done in float32 at least, whatever the weights are stored in.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_DRIFT = 1e-5  # per column: how far from orthonormal a basis may get


@dataclass(frozen=True)
class Spectrum:
    """The core of one weight, decomposed; not truncated yet.

    Attributes:
        sigma: (rank), descending.
        left: (rank, rank): the new U is ``u @ left``.
        right: (rank, rank): the new Vh is ``right @ vh``.
        u, vh: the bases that these apply to, in float32 at least.
        stability: how far the basis has turned, see :func:`stability`; a scalar tensor.
    """

    sigma: Tensor
    left: Tensor
    right: Tensor
    u: Tensor
    vh: Tensor
    stability: Tensor

    def update(self, rank: int, before: tuple[Tensor, Tensor] | None = None) -> Update:
        """The new factors, cut to ``rank``; ``before`` brings the maps from U and Vh to the bases here."""
        left, right = self.left[:, :rank], self.right[:rank]
        u, vh = self.u @ left, right @ self.vh
        if before is not None:
            left, right = before[0] @ left, right @ before[1]
        return Update(u, self.sigma[:rank], vh, left, right)


@dataclass(frozen=True)
class Update:
    """New factors ``u diag(sigma) vh`` and how they come from the old ones: ``u = u_old left``, ``vh = right vh_old``.

    Attributes:
        u, sigma, vh: (out, rank), (rank), (rank, fan_in).
        left, right: (old rank, rank), (rank, old rank). Directions that are new have zeros.
        grown: how many are new, at the end.
    """

    u: Tensor
    sigma: Tensor
    vh: Tensor
    left: Tensor
    right: Tensor
    grown: int = 0

    @property
    def rank(self) -> int:
        return self.sigma.numel()


def wide(t: Tensor) -> Tensor:
    """In float64 if it is, in float32 otherwise."""
    return t.detach() if t.dtype in (torch.float32, torch.float64) else t.detach().float()


def drift(basis: Tensor) -> Tensor:
    """``max |Q^T Q - I|`` for a basis with more rows than columns, ``max |Q Q^T - I|`` for others; a scalar tensor."""
    q = wide(basis)
    gram = q.mT @ q if q.shape[0] >= q.shape[1] else q @ q.mT
    if not gram.numel():
        return gram.new_zeros(())
    return (gram - torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)).abs().max()


def drift_bound(rank: int, dtype: torch.dtype) -> float:
    """What drift calls for new bases: 1e-5 a column, or what storage in a 16-bit type causes by itself."""
    rounding = 4 * torch.finfo(dtype).eps if dtype.itemsize == 2 else 0.0
    return max(_DRIFT * rank, rounding)


def orthonormal(u: Tensor, s: Tensor, vh: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The same weight in bases that are orthonormal again, and the maps ``(left, right)`` from the old ones.

    ``U = Q R`` with positive diagonal of R, so that a basis that has hardly drifted hardly moves; R goes into the core.
    """
    (q_u, r_u), (q_v, r_v) = _positive_qr(wide(u)), _positive_qr(wide(vh).mT)
    eye = torch.eye(r_u.shape[0], dtype=r_u.dtype, device=r_u.device)
    left = torch.linalg.solve_triangular(r_u, eye, upper=True)
    right = torch.linalg.solve_triangular(r_v, eye, upper=True).mT
    return (q_u, r_u @ wide(s) @ r_v.mT, q_v.mT.contiguous()), (left, right)


def _positive_qr(a: Tensor) -> tuple[Tensor, Tensor]:
    q, r = torch.linalg.qr(a)
    sign = torch.where(r.diagonal() < 0, -1.0, 1.0).to(a.dtype)
    return q * sign, sign[:, None] * r


def stability(u_before: Tensor, vh_before: Tensor, u: Tensor, vh: Tensor) -> Tensor:
    """Cosine between the orthogonal polar factors ``U Vh`` of a weight at two times, between -1 and 1; a scalar tensor.

    At full rank it is the mean of the cosines of their columns, the measure of the method. It does not depend on signs
    and order of the singular vectors. By traces: no matrix of the weight's size is formed.

    Args:
        u_before: (out, rank_before).
        vh_before: (rank_before, fan_in).
        u: (out, rank).
        vh: (rank, fan_in).
    """
    u_before, vh_before, u, vh = map(wide, (u_before, vh_before, u, vh))
    trace = ((u_before.mT @ u) * (vh_before @ vh.mT)).sum()
    return trace / (u_before.shape[1] * u.shape[1]) ** 0.5


def decompose(weights: Sequence[tuple[Tensor, Tensor, Tensor]]) -> list[Spectrum]:
    """Decompose the core of each ``(u, s, vh)``; cores of one size go through the library in one call.

    Singular vectors get the signs that make the rotation closest to none. A core that is not finite, or that the
    library cannot decompose, has NaN as singular values. Nothing is read by the host, except what the library reads.
    """
    groups = defaultdict(list)
    for i, (_, s, _) in enumerate(weights):
        groups[s.shape, wide(s).dtype, s.device].append(i)
    found: list[Spectrum | None] = [None] * len(weights)
    for members in groups.values():
        cores = torch.stack([wide(weights[i][1]) for i in members])
        finite = torch.isfinite(cores).flatten(1).all(1)
        left, sigma, right = _svd(torch.where(finite[:, None, None], cores, 0.0))
        sign = torch.where(left.diagonal(dim1=1, dim2=2) < 0, -1.0, 1.0).to(cores.dtype)
        left, right = left * sign[:, None, :], sign[:, :, None] * right
        sigma = torch.where(finite[:, None], sigma, torch.nan)
        turned = (left * right.mT).sum((1, 2)) / max(1, cores.shape[-1])
        for j, i in enumerate(members):
            u, _, vh = weights[i]
            found[i] = Spectrum(sigma[j], left[j], right[j], wide(u), wide(vh), turned[j])
    return found


def _svd(stack: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    try:
        return torch.linalg.svd(stack, full_matrices=False)
    except torch.linalg.LinAlgError:
        each = [_svd_of_one(core) for core in stack]
        return tuple(torch.stack(parts) for parts in zip(*each, strict=True))


def _svd_of_one(core: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """In the precision of the core, then in float64 on the processor; NaN as singular values where that fails too."""
    for attempt in (core, core.double().cpu()):
        try:
            return tuple(t.to(core) for t in torch.linalg.svd(attempt, full_matrices=False))
        except torch.linalg.LinAlgError:
            continue
    eye = torch.eye(core.shape[0], dtype=core.dtype, device=core.device)
    return eye, torch.full_like(core[0], torch.nan), eye


def grown(update: Update, count: int, seed: int) -> Update:
    """``count`` more directions, or as many as the sizes allow: random, orthonormal to all others, with zeros as core.

    The weight stays what it is; the new entries of the core get gradients and train.

    Args:
        update: of which the bases grow.
        count: 0 or more.
        seed: of the directions, so that every process draws the same.
    """
    count = min(count, min(update.u.shape[0], update.vh.shape[1]) - update.rank)
    if count <= 0:
        return update
    generator = torch.Generator().manual_seed(seed)
    u = _extended(update.u, count, generator)
    vh = _extended(update.vh.mT, count, generator).mT.contiguous()
    pad = torch.nn.functional.pad
    sigma, left, right = (
        pad(update.sigma, (0, count)),
        pad(update.left, (0, count)),
        pad(update.right, (0, 0, 0, count)),
    )
    return Update(u, sigma, vh, left, right, count)


def _extended(basis: Tensor, count: int, generator: torch.Generator) -> Tensor:
    new = torch.randn(basis.shape[0], count, generator=generator, dtype=torch.float64).to(basis)
    for _ in range(2):  # once more for the digits that the first projection lost
        new = torch.linalg.qr(new - basis @ (basis.mT @ new)).Q
    return torch.cat([basis, new], 1)


def blurred(sigma: Tensor, width: float) -> Tensor:
    """A core that mixes neighbours: the upper triangle of ``diag(sigma) K``, ``K_ij = exp(-(i - j)^2 / (2 width^2))``.

    Args:
        sigma: (rank), the singular values.
        width: of the kernel, in positions; above 0.

    Returns:
        (rank, rank), with ``sigma`` as diagonal.
    """
    position = torch.arange(sigma.numel(), dtype=sigma.dtype, device=sigma.device)
    kernel = torch.exp(-(position[:, None] - position).square() / (2 * width**2))
    return (sigma[:, None] * kernel).triu()
