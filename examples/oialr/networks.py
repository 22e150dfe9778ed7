# SPDX-License-Identifier: Apache-2.0
"""The networks of the study, and how each is trained."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from classifiers import CLASSES, IMAGE, PIXELS, features, mlp
from torch import nn

PLAN = "32 M 64 M 128 128 M 256 256"  # channels of the convolutions; M halves the image
PATCH, WIDTH, DEPTH = 7, 192, 6


@dataclass(frozen=True)
class Network:
    """A network, and what is the same for its dense, its OIALR and its low-rank training.

    Attributes:
        name: for the command line.
        title: for tables and figures.
        build: makes the dense network.
        keep_first: leave the first layer dense: it reads images of one channel, so there is nothing to save.
        batch: images in a training step.
        epochs: passes over the training images.
        rate: learning rate of AdamW at its highest.
        weight_decay: of AdamW. On a core it is Frobenius decay of the whole weight, whose norm is that of the core.
        cutoff: of OIALR: singular values below this share of the largest go. The weight of a convolution, far wider
            than it is high, begins with singular values that are all but equal, the square weight of an MLP with small
            ones among them: what cuts half of the one cuts nothing of the other.
    """

    name: str
    title: str
    build: Callable[[], nn.Module]
    keep_first: bool
    batch: int
    epochs: int
    rate: float
    weight_decay: float
    cutoff: float


def vgg() -> nn.Sequential:
    """A VGG for images of 28 x 28."""
    return nn.Sequential(
        OrderedDict(
            features=features(PLAN, IMAGE[1], bias=False),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            head=nn.Linear(int(PLAN.split()[-1]), CLASSES),
        )
    )


def vit() -> nn.Module:
    """Timm's tiny ViT on 16 patches, half as deep."""
    from timm import create_model

    sizes = {"img_size": IMAGE[-1], "in_chans": IMAGE[1], "patch_size": PATCH, "num_classes": CLASSES, "depth": DEPTH}
    return create_model("vit_tiny_patch16_224", **sizes)


NETWORKS = {
    network.name: network
    for network in (
        Network("mlp", f"MLP {PIXELS}-1024-1024-{CLASSES}", mlp, False, 128, 10, 1e-3, 0.05, 0.2),
        Network("vgg", f"VGG {PLAN.replace(' M', '').replace(' ', '-')}", vgg, True, 128, 4, 1e-3, 0.05, 0.5),
        Network("vit", f"ViT, {DEPTH} blocks of {WIDTH}", vit, False, 128, 4, 1e-3, 0.05, 0.4),
    )
}
