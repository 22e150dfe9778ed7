# SPDX-License-Identifier: Apache-2.0
"""Modules whose weights are thin."""

from .linear import LowRankLinear

__all__ = ["LowRankLinear"]
