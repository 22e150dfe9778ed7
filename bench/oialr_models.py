# SPDX-License-Identifier: Apache-2.0
"""Training steps of whole models after their ranks have fallen to an eighth."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import NamedTuple

import lath
import torch
from context import Context
from formats import in_both_formats, row_of
from layers import filled
from lowrank.reference_models import reference
from network import training_step
from oialr_baselines import as_torch
from oialr_layers import multiply_adds, row_from
from rows import Goal, Row
from torch import Tensor, nn
from torch.nn import functional

RATIO = 1 / 8
IMAGE = (3, 32, 32)
VARIANTS = ("two", "factors")  # at these rows forming a weight is little beside the dense product


class Block(nn.Module):
    """Attention and two layers with GELU between, each behind a norm and beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Of images of 32x32 in patches of 4x4: 64 tokens and one for the class."""

    def __init__(self, width: int = 384, depth: int = 6, heads: int = 6, patch: int = 4, classes: int = 10) -> None:
        super().__init__()
        self.patch = patch
        channels, height, across = IMAGE
        self.patches = nn.Linear(channels * patch**2, width)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 1 + height * across // patch**2, width) / width**0.5)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = functional.unfold(images, self.patch, stride=self.patch).mT
        x = torch.cat([self.token.expand(len(x), -1, -1), self.patches(x)], 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


class Model(NamedTuple):
    """A dense model, its batch, and what its training step is to reach in the thin form.

    Attributes:
        both_formats: images may be better in channels-last memory.
    """

    dense: Callable[[], nn.Module]
    batch: int
    both_formats: bool
    goal: Goal | None

    def thin(self, dense: nn.Module, ratio: float) -> nn.Module:
        """A converted copy; the layer that images enter and, by the rule of sides, the last one stay dense."""
        twin = copy.deepcopy(dense)
        lath.convert(twin, lath.OIALR(rank_ratio=ratio, keep_first=True, keep_last=False))
        return twin


MODELS = {
    "ViT": Model(VisionTransformer, 64, False, Goal("speed-up", 1.8, 2.5)),
    "ResNet-18": Model(lambda: reference("resnet18"), 8, True, None),
}


def models(context: Context) -> Iterator[Row]:
    """A step with its SGD update."""
    for title, model in list(MODELS.items())[: 1 if context.quick else None]:
        dense = model.dense()
        thin = model.thin(dense, RATIO)
        twins = {"dense": dense, **{name: as_torch(thin, name) for name in VARIANTS}, "lath": thin}
        count = min(model.batch, 8) if context.quick else model.batch
        macs = {name: count * multiply_adds(twins[name], filled(1, *IMAGE), True) for name in ("dense", "factors")}
        fields = {
            "section": "oialr-model",
            "case": title,
            "mode": "training",
            "rows": count,
            "rank": None,
            "dense_macs": macs["dense"],
            "macs": macs["factors"],
            "goal": model.goal,
        }
        images = filled(count, *IMAGE)
        yield (_in_formats if model.both_formats else _as_they_are)(context, title, twins, images, fields)


def _as_they_are(context: Context, title: str, twins: dict[str, nn.Module], images: Tensor, fields: dict) -> Row:
    calls: dict[object, Callable] = {
        name if name == "dense" else (name, ""): training_step(twin, images) for name, twin in twins.items()
    }
    return row_from(context, context.compare(f"oialr-model {title}", calls), "", VARIANTS, **fields)


def _in_formats(context: Context, title: str, twins: dict[str, nn.Module], images: Tensor, fields: dict) -> Row:
    calls: dict[object, Callable] = {}
    for name, twin in twins.items():
        calls |= in_both_formats(name, twin, training_step, [images])
    timings = context.compare(f"oialr-model {title}", calls)
    row = row_of(context, timings, ("dense", "two", "lath"), **fields)
    factors = min(timings[key].median for key in timings if key[0] == "factors")
    return row.replace(rivals={"factors": factors})
