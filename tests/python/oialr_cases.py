# SPDX-License-Identifier: Apache-2.0
"""What the tests of layers in orthogonal bases share: layers of every kind, and what holds for all of their weights."""

from __future__ import annotations

import lath
import torch
from lath.nn import OIALRConv1d, OIALRConv2d, OIALRConv3d, OIALRLinear, OIALRMultiheadAttention
from torch import Tensor, nn

# Dense layers and inputs: (layer class, thin class, arguments, shape of x).
LAYERS = {
    "tall": (nn.Linear, OIALRLinear, (6, 9), (4, 6)),
    "wide": (nn.Linear, OIALRLinear, (9, 6), (2, 3, 9)),
    "square": (nn.Linear, OIALRLinear, (7, 7), (4, 7)),
    "conv1d": (nn.Conv1d, OIALRConv1d, (4, 6, 3), (2, 4, 9)),
    "conv2d": (nn.Conv2d, OIALRConv2d, (4, 6, (3, 2)), (2, 4, 8, 7)),
    "conv3d": (nn.Conv3d, OIALRConv3d, (2, 6, (1, 3, 2)), (2, 2, 3, 5, 4)),
}
ONE_WEIGHT = list(LAYERS)


def dense(case: str, dtype=torch.float64, **options) -> nn.Module:
    kind, _, arguments, _ = LAYERS[case]
    return kind(*arguments, dtype=dtype, **options)


def thin(case: str, rank: int | None = 2, dtype=torch.float64, **options) -> nn.Module:
    """With a core that is not diagonal."""
    made = LAYERS[case][1].from_dense(dense(case, dtype, **options), rank)
    with torch.no_grad():
        made.weight_s.normal_()
    return made


def images(case: str, dtype=torch.float64) -> Tensor:
    return torch.randn(LAYERS[case][3], dtype=dtype)


def weight_of(layer: nn.Module) -> Tensor:
    """The dense weight as a matrix, in float64."""
    return layer.weight_u.detach().double() @ layer.weight_s.detach().double() @ layer.weight_vh.detach().double()


def assert_orthonormal(model: nn.Module, bound: float = 1e-12) -> None:
    for name, core in lath.oialr_cores(model).items():
        eye = torch.eye(core.rank, dtype=torch.float64)
        for basis in (core.u.T.double() @ core.u.double(), core.vh.double() @ core.vh.T.double()):
            assert (basis - eye).abs().max() <= bound, name


def assert_storage_is_exact(model: nn.Module) -> None:
    """No tensor is a view of a larger one."""
    for name, t in (*model.named_parameters(), *model.named_buffers()):
        assert t.is_contiguous(), name
        assert t.untyped_storage().nbytes() == t.numel() * t.element_size(), name


def network() -> nn.Sequential:
    """For 3 x 12 x 12 images: two convolutions, a group of two linear layers, a head."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 24)),
        nn.ReLU(),
        nn.Linear(24, 10),
    )


ATTENTION = {
    "packed": {},
    "separate": {"kdim": 6, "vdim": 10},
    "all": {"add_bias_kv": True, "add_zero_attn": True, "batch_first": True},
    "no bias": {"bias": False, "kdim": 5},
}
EMBED, HEADS = 12, 3


def attention(case: str, dtype=torch.float64, **options) -> nn.MultiheadAttention:
    """Dense, without a zero in it."""
    made = nn.MultiheadAttention(EMBED, HEADS, dtype=dtype, **ATTENTION[case], **options)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_()
    return made


def thin_attention(case: str, rank: int | None = 3, dtype=torch.float64, **options) -> OIALRMultiheadAttention:
    made = OIALRMultiheadAttention.from_dense(attention(case, dtype, **options), rank)
    with torch.no_grad():
        for core in (*made.cores(), *made.out_proj.cores()):
            core.s.normal_()
    return made
