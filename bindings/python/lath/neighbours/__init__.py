# SPDX-License-Identifier: Apache-2.0
"""Training dense first and low-rank afterwards: Pufferfish, Cuttlefish, spectral initialization with Frobenius decay.

Each of them is a choice of four: which layers are factored, at which ranks, when, and how the factors are trained.
:class:`WarmupThenFactor` takes the choices one by one, :func:`pufferfish` and :func:`cuttlefish` take the published
ones, :func:`spectral_frobenius` needs no warm-up.
"""

from .norms import insert_norms
from .presets import SpectralFrobenius, cuttlefish, pufferfish, spectral_frobenius
from .profile import BlockProfile, Profile, profile_blocks
from .stable_rank import StableRank, stable_rank, stable_ranks
from .switches import AfterEpochs, AfterSteps, RankDetector, RankSwitch
from .warmup import WarmupThenFactor

__all__ = [
    "AfterEpochs",
    "AfterSteps",
    "BlockProfile",
    "Profile",
    "RankDetector",
    "RankSwitch",
    "SpectralFrobenius",
    "StableRank",
    "WarmupThenFactor",
    "cuttlefish",
    "insert_norms",
    "profile_blocks",
    "pufferfish",
    "spectral_frobenius",
    "stable_rank",
    "stable_ranks",
]
