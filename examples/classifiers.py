# SPDX-License-Identifier: Apache-2.0
"""Networks that several examples train, and what they are made of."""

from __future__ import annotations

from torch import nn

IMAGE = (1, 1, 28, 28)  # of Fashion-MNIST, as a batch of one
PIXELS, HIDDEN, CLASSES = 784, 1024, 10


def mlp() -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(PIXELS, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, CLASSES),
    )


def features(plan: str, channels: int, bias: bool) -> nn.Sequential:
    """3 x 3 convolutions with batch norm and ReLU; ``plan`` has their channels, and M for a max-pool."""
    layers: list[nn.Module] = []
    for entry in plan.split():
        if entry == "M":
            layers.append(nn.MaxPool2d(2))
        else:
            conv = nn.Conv2d(channels, int(entry), 3, padding=1, bias=bias)
            channels = conv.out_channels
            layers += [conv, nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*layers)
