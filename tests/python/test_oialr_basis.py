# SPDX-License-Identifier: Apache-2.0
"""Basis updates of ``W = U S Vh``: rank rules against tables, identities of the decomposition, stability."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lath import basis, ranks

pytestmark = pytest.mark.usefixtures("one_thread")

F64 = torch.float64


def orthonormal(rows, columns, dtype=F64):
    return torch.linalg.qr(torch.randn(rows, columns, dtype=F64)).Q.to(dtype)


def weight(out, fan_in, rank, dtype=F64):
    """U, S and Vh."""
    u, vh = orthonormal(out, rank, dtype), orthonormal(fan_in, rank, dtype).mT.contiguous()
    return u, torch.randn(rank, rank, dtype=dtype), vh


def rotated(u, s, vh, rank=None):
    (spectrum,) = basis.decompose([(u, s, vh)])
    return spectrum.update(s.shape[0] if rank is None else rank)


def product(update):
    return update.u * update.sigma @ update.vh


# ---- rank rules ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sigma", "expected"),
    [
        ([1, 0.9, 0.8, 0.05, 0.04, 0.03, 0.02, 0.01], 4),  # 3 are above the cutoff, half of the rank holds
        ([1, 0.05, 0.04, 0.03, 0.02, 0.01, 0.01, 0.01], 4),
        ([1, 0.5, 0.4, 0.3, 0.2, 0.15, 0.12, 0.11], 8),
        ([1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.09, 0.09], 6),  # at the cutoff is not below it
        ([0.0] * 8, 8),
        ([3.0], 1),
    ],
)
def test_cutoff_table(sigma, expected):
    assert ranks.cutoff_rank(torch.tensor(sigma), 0.1, 8) == expected


@pytest.mark.parametrize(
    ("size", "expected"),
    [(50, [25, 12, 6, 3, 1, 1, 1, 1]), (1000, [500, 250, 125, 62, 31, 15, 10, 10, 10])],
)
def test_cutoff_over_updates(size, expected):
    rank, found = size, []
    for _ in expected:
        sigma = torch.full((rank,), 1e-4)
        sigma[0] = 1
        rank = ranks.cutoff_rank(sigma, 0.1, size)
        found.append(rank)
    assert found == expected


@given(st.integers(1, 300), st.integers(0, 300), st.integers(1, 2000))
def test_guards_hold(rank, wanted, side):
    kept = ranks.guarded(min(wanted, rank), rank, side)
    assert 1 <= kept <= rank
    assert kept >= min(rank, int(rank / 2), ranks.floor_rank(side)) or kept == 1
    if wanted >= rank / 2 and wanted >= ranks.floor_rank(side):
        assert kept == max(1, min(wanted, rank))


def test_energy_and_stable_rank():
    sigma = torch.tensor([3.0, 2, 1, 1])
    assert ranks.stable_rank(sigma) == pytest.approx(15 / 9)
    assert ranks.stable_rank_rank(sigma, 1.0) == 2
    assert ranks.stable_rank_rank(sigma, 100.0) == 4
    assert [ranks.energy_rank(sigma, e) for e in (0.6, 0.61, 13 / 15, 14 / 15, 1.0)] == [1, 2, 2, 3, 4]
    zero = torch.zeros(4)
    assert (ranks.stable_rank(zero), ranks.energy_rank(zero, 0.9), ranks.stable_rank_rank(zero, 2.0)) == (0.0, 1, 1)


def test_budget_gives_the_same_energy_to_all_and_fits():
    steep = torch.tensor([1.0] + [1e-3] * 31)
    flat = torch.ones(32)
    shapes = [(32, 32), (32, 32)]
    for share in (0.1, 0.3, 0.6, 1.0):
        budget = share * 2 * 32 * 32
        chosen = ranks.budget_ranks([steep, flat], shapes, budget)
        assert sum(map(ranks.stored, chosen, shapes)) <= budget
        assert chosen[0] <= chosen[1]
        if chosen[1] < 32 and chosen[0] == 1:  # one more would be too much
            assert ranks.stored(1, (32, 32)) + ranks.stored(chosen[1] + 1, (32, 32)) > budget
    assert ranks.budget_ranks([steep, flat], shapes, 1.0) == [1, 1]
    assert ranks.budget_ranks([steep, flat], shapes, 1e9) == [32, 32]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (12, [2, 4, 6, 8, 10, 12, 12]),
        (25, [3, 6, 9, 12, 15, 18, 21, 24, 25, 25]),
        (10, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10]),
        (2, [1, 2, 2]),
        (1, [1, 1]),
    ],
)
def test_growth_over_layers(layers, expected):
    assert [ranks.layers_due(layers, u, 0.1) for u in range(1, len(expected) + 1)] == expected


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (12, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 12]),
        (25, [2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 25, 25]),
        (10, [10, 10]),
        (3, [3, 3]),
    ],
)
def test_growth_as_the_reference_has_it(layers, expected):
    assert [ranks.layers_due(layers, u, 0.1, reference=True) for u in range(1, len(expected) + 1)] == expected


def test_growth_is_not_rounded_up_for_the_last_digit():
    assert 100 * 0.07 > 7  # in doubles
    assert ranks.layers_due(101, 1, 0.07) == 7


def test_all_layers_at_once():
    assert ranks.layers_due(7, 1, 1.0) == 7


def test_values_of_a_layer():
    given_ = {"blocks.0.*": 1, "*": 3, "blocks.0.fc": 2}
    assert ranks.of_layer(given_, ["blocks.0.fc"]) == 2
    assert ranks.of_layer(given_, ["blocks.0.qkv"]) == 1
    assert ranks.of_layer(given_, ["head"]) == 3
    assert ranks.of_layer({"head": 1}, ["fc"], 9) == 9
    assert ranks.of_layer(0.5, ["fc"], 9) == 0.5


# ---- decomposition ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("out", "fan_in", "rank"), [(9, 6, 6), (6, 9, 6), (9, 6, 3), (1, 7, 1), (7, 1, 1), (8, 8, 8)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (F64, 1e-13)])
def test_an_update_leaves_the_weight(out, fan_in, rank, dtype, tolerance):
    u, s, vh = weight(out, fan_in, rank, dtype)
    update = rotated(u, s, vh)
    dense = u @ s @ vh
    torch.testing.assert_close(product(update), dense, rtol=0, atol=tolerance * 10)
    assert basis.drift(update.u) < tolerance
    assert basis.drift(update.vh) < tolerance
    assert (update.sigma >= 0).all()
    assert (update.sigma.diff() <= 0).all()
    expected = torch.linalg.svdvals(dense)[:rank]
    torch.testing.assert_close(update.sigma, expected, rtol=0, atol=tolerance * 10)
    torch.testing.assert_close(update.u, u @ update.left)
    torch.testing.assert_close(update.vh, update.right @ vh)


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_truncation_is_the_best_approximation(rank):
    u, s, vh = weight(9, 7, 6)
    update = rotated(u, s, vh, rank)
    sigma = torch.linalg.svdvals(s)
    lost = u @ s @ vh - product(update)
    torch.testing.assert_close(lost.square().sum(), sigma[rank:].square().sum())
    torch.testing.assert_close(torch.linalg.matrix_norm(lost, 2), sigma[rank])
    assert update.u.shape == (9, rank)
    assert update.left.shape == (6, rank)


def test_norms_are_those_of_the_core():
    u, s, vh = weight(9, 7, 6)
    dense = u @ s @ vh
    for kind in ("fro", 2, "nuc"):
        torch.testing.assert_close(torch.linalg.matrix_norm(dense, kind), torch.linalg.matrix_norm(s, kind))
    values = torch.linalg.svdvals(dense)
    assert ranks.stable_rank(torch.linalg.svdvals(s)) == pytest.approx(ranks.stable_rank(values))


def test_a_diagonal_core_is_not_rotated():
    u, _, vh = weight(9, 7, 6)
    sigma = torch.tensor([5.0, 4, 3, 2, 1, 0.5], dtype=F64)
    update = rotated(u, sigma.diag(), vh, 4)
    torch.testing.assert_close(update.left, torch.eye(6, dtype=F64)[:, :4], rtol=0, atol=1e-15)
    torch.testing.assert_close(update.u, u[:, :4], rtol=0, atol=1e-15)
    torch.testing.assert_close(update.sigma, sigma[:4])


def test_a_zero_and_a_rank_deficient_core():
    u, s, vh = weight(9, 7, 6)
    for core in (torch.zeros_like(s), s[:, :2] @ s[:2]):
        update = rotated(u, core, vh)
        torch.testing.assert_close(product(update), u @ core @ vh, rtol=0, atol=1e-13)
        assert basis.drift(update.u) < 1e-13


def test_cores_of_one_size_are_decomposed_together(monkeypatch):
    calls = []
    real = torch.linalg.svd
    monkeypatch.setattr(torch.linalg, "svd", lambda a, **kw: calls.append(tuple(a.shape)) or real(a, **kw))
    weights = [weight(9, 7, r) for r in (6, 3, 6, 6)]
    found = basis.decompose(weights)
    assert calls == [(3, 6, 6), (1, 3, 3)]
    for (u, s, vh), spectrum in zip(weights, found, strict=True):
        torch.testing.assert_close(product(spectrum.update(s.shape[0])), u @ s @ vh)


def test_a_core_that_is_not_finite_spoils_no_other():
    weights = [weight(9, 7, 4) for _ in range(3)]
    weights[1][1][2, 2] = math.nan
    weights[2][1][0, 1] = math.inf
    found = basis.decompose(weights)
    assert [bool(torch.isfinite(f.sigma).all()) for f in found] == [True, False, False]
    assert found[1].sigma.isnan().all()


def test_a_decomposition_that_fails_is_tried_in_float64_and_then_given_up(monkeypatch):
    real, refused = torch.linalg.svd, []

    def svd(a, **kw):
        if a.dim() == 3 or a.dtype == torch.float32 or a[0, 0] == 7.0:
            refused.append(a.dtype)
            raise torch.linalg.LinAlgError("did not converge")
        return real(a, **kw)

    monkeypatch.setattr(torch.linalg, "svd", svd)
    weights = [weight(9, 7, 4, torch.float32) for _ in range(2)]
    weights[1][1][0, 0] = 7.0
    good, bad = basis.decompose(weights)
    u, s, vh = weights[0]
    torch.testing.assert_close(product(good.update(4)), u @ s @ vh, rtol=1e-5, atol=1e-5)
    assert bad.sigma.isnan().all()
    assert refused == [torch.float32] * 3 + [F64]


def test_bfloat16_is_computed_in_float32():
    u, s, vh = weight(9, 7, 6, torch.bfloat16)
    update = rotated(u, s, vh)
    assert update.u.dtype == torch.float32
    torch.testing.assert_close(product(update), u.float() @ s.float() @ vh.float(), rtol=1e-5, atol=1e-5)


# ---- drift -----------------------------------------------------------------------------------------------------------


def test_orthonormal_again():
    u, s, vh = weight(9, 7, 6)
    u, vh = u + 1e-3 * torch.randn_like(u), vh + 1e-3 * torch.randn_like(vh)
    assert basis.drift(u) > basis.drift_bound(6, F64)
    (q, core, ph), (left, right) = basis.orthonormal(u, s, vh)
    torch.testing.assert_close(q @ core @ ph, u @ s @ vh)
    assert max(basis.drift(q), basis.drift(ph)) < 1e-14
    torch.testing.assert_close(u @ left, q)
    torch.testing.assert_close(right @ vh, ph)
    assert (q - u).abs().max() < 1e-2  # no sign has flipped
    (spectrum,) = basis.decompose([(q, core, ph)])
    update = spectrum.update(4, (left, right))
    torch.testing.assert_close(u @ update.left, update.u)
    torch.testing.assert_close(update.right @ vh, update.vh)


def test_drift_of_a_thousand_updates_stays_within_what_is_mended():
    """In float32; an update that finds more than the bound mends it first, as the controller does."""
    u, s, vh = weight(24, 16, 8, torch.float32)
    dense = u @ s @ vh
    worst = 0.0
    for _ in range(1000):
        s = s + 1e-3 * torch.randn_like(s)
        dense = u @ s @ vh
        if max(basis.drift(u), basis.drift(vh)) > basis.drift_bound(8, torch.float32):
            (u, s, vh), _ = basis.orthonormal(u, s, vh)
        update = rotated(u, s, vh)
        u, s, vh = update.u, update.sigma.diag(), update.vh
        worst = max(worst, (u @ s @ vh - dense).abs().max().item())
    assert max(basis.drift(u), basis.drift(vh)) < 2 * basis.drift_bound(8, torch.float32)
    assert worst < 1e-4


# ---- stability -------------------------------------------------------------------------------------------------------


def svd(w):
    u, _, vh = torch.linalg.svd(w, full_matrices=False)
    return u, vh


@pytest.mark.parametrize(("out", "fan_in"), [(9, 6), (6, 9), (7, 7)])
def test_stability_is_the_mean_cosine_of_the_columns_of_the_polar_factor(out, fan_in):
    before, after = (svd(torch.randn(out, fan_in, dtype=F64)) for _ in range(2))
    polar = [u @ vh if out >= fan_in else (u @ vh).mT for u, vh in (before, after)]
    expected = torch.nn.functional.cosine_similarity(*polar, dim=0).mean()
    torch.testing.assert_close(basis.stability(*before, *after), expected)


def test_stability_of_a_scaled_a_negated_and_a_resigned_weight():
    w = torch.randn(9, 6, dtype=F64)
    u, vh = svd(w)
    one = torch.ones((), dtype=F64)
    torch.testing.assert_close(basis.stability(u, vh, *svd(3.7 * w)), one)
    torch.testing.assert_close(basis.stability(u, vh, *svd(-w)), -one)
    sign = torch.tensor([1, -1, -1, 1, -1, 1.0], dtype=F64)
    order = torch.randperm(6)
    torch.testing.assert_close(basis.stability(u, vh, (u * sign)[:, order], (sign[:, None] * vh)[order]), one)


def test_stability_is_bounded_and_falls_with_noise():
    w = torch.randn(40, 30, dtype=F64)
    noise = torch.randn(40, 30, dtype=F64)
    found = [basis.stability(*svd(w), *svd(w + scale * noise)).item() for scale in (0.0, 0.1, 0.3, 1.0, 3.0, 30.0)]
    assert found == sorted(found, reverse=True)
    assert found[0] == pytest.approx(1.0)
    assert all(-1 <= f <= 1 + 1e-12 for f in found)


def test_stability_of_a_core_is_that_of_its_weight():
    u, _, vh = weight(9, 7, 5)
    s = torch.diag(torch.tensor([5.0, 4, 3, 2, 1], dtype=F64)) + 0.3 * torch.randn(5, 5, dtype=F64)
    (spectrum,) = basis.decompose([(u, s, vh)])
    update = spectrum.update(5)
    torch.testing.assert_close(spectrum.stability, basis.stability(u, vh, update.u, update.vh))
    assert spectrum.stability < 1


# ---- growth and blur -------------------------------------------------------------------------------------------------


def test_new_directions_leave_the_weight_and_are_orthonormal():
    u, s, vh = weight(9, 7, 4)
    update = basis.grown(rotated(u, s, vh), 2, seed=3)
    assert (update.rank, update.grown) == (6, 2)
    torch.testing.assert_close(product(update), u @ s @ vh)
    assert max(basis.drift(update.u), basis.drift(update.vh)) < 1e-14
    assert update.left.shape == (4, 6)
    assert update.right.shape == (6, 4)
    again = basis.grown(rotated(u, s, vh), 2, seed=3)
    assert torch.equal(again.u, update.u)
    assert basis.grown(rotated(u, s, vh), 100, seed=3).rank == 7
    assert basis.grown(rotated(u, s, vh), 0, seed=3).rank == 4


def test_blur_keeps_the_diagonal_and_mixes_neighbours():
    sigma = torch.tensor([4.0, 3, 2, 1], dtype=F64)
    core = basis.blurred(sigma, 1.0)
    torch.testing.assert_close(core.diagonal(), sigma)
    assert (core.tril(-1) == 0).all()
    assert core[0, 1] == pytest.approx(4 * math.exp(-0.5))
    assert core[0, 2] == pytest.approx(4 * math.exp(-2))
