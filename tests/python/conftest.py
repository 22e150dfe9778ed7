# SPDX-License-Identifier: Apache-2.0
"""Set-up that every test shares."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, settings

# No deadline: a busy machine is no bug. Fixed examples: a red build must be red for everyone.
settings.register_profile(
    "lath", deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("lath")


@pytest.fixture(autouse=True)
def _same_random_numbers():
    torch.manual_seed(0)
