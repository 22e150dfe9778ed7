# SPDX-License-Identifier: Apache-2.0
"""Stands in for hypothesis where it is not installed: tests that need it are skipped, all others in their files run."""

from __future__ import annotations

import pytest


class _Strategy:
    """Whatever a strategy is asked for when a file is imported."""

    def __getattr__(self, name):
        return self

    def __call__(self, *args, **kwargs):
        return self

    def __or__(self, other):
        return self

    __ror__ = __or__


strategies = _Strategy()
assume = example = note = strategies


def given(*args, **kwargs):
    """A test without its arguments, which is skipped."""

    def decorate(test):
        @pytest.mark.skip(reason="hypothesis is not installed")
        def skipped():
            pass

        skipped.__name__ = test.__name__
        return skipped

    return decorate


def settings(*args, **kwargs):
    return lambda test: test


def __getattr__(name):
    """``from hypothesis import strategies as st``, and what is imported from it by name."""
    return strategies
