# SPDX-License-Identifier: Apache-2.0
"""Modules whose weights are thin."""

from .attention import LowRankMultiheadAttention
from .conv import LowRankConv2d
from .conv_norm import LowRankConv2dNorm
from .linear import LowRankLinear
from .lstm import LowRankLSTM
from .oialr import OIALRLinear
from .oialr_attention import OIALRMultiheadAttention
from .oialr_conv import OIALRConv1d, OIALRConv2d, OIALRConv3d

__all__ = [
    "LowRankConv2d",
    "LowRankConv2dNorm",
    "LowRankLSTM",
    "LowRankLinear",
    "LowRankMultiheadAttention",
    "OIALRConv1d",
    "OIALRConv2d",
    "OIALRConv3d",
    "OIALRLinear",
    "OIALRMultiheadAttention",
]
