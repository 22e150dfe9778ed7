# SPDX-License-Identifier: Apache-2.0
"""The convolutional networks of the public code "Low-rank Model Training From Scratch", made low-rank with lath.

VGG-11 and VGG-16 with batch norm, and ResNet-18 and "101", which is made of 33 basic blocks, for 32 x 32 images in 10
classes. :func:`reference` builds them dense or low-rank. The published low-rank networks differ from what their options
say, and so do the published figures; ``as_published=True`` builds them as they were:

* a low-rank VGG ends in a layer for 512 classes instead of 10;
* the ratio is ignored by all convolutions, which always take 0.2.

Their first VGG convolution has 3 channels and so rank 1; ``rule=(0, 2)`` leaves it dense.
"""

from __future__ import annotations

from collections import OrderedDict

import lath
from lath.nn import LowRankConv2d, LowRankLinear
from torch import Tensor, nn

IMAGE = (1, 3, 32, 32)
CLASSES = 10
PUBLISHED_RATIO = 0.2
PUBLISHED_VGG_CLASSES = 512

VGG = {  # channels; M is a max-pool that halves the image
    "vgg11": "64 M 128 M 256 256 M 512 512 M 512 512 M",
    "vgg16": "64 64 M 128 128 M 256 256 256 M 512 512 512 M 512 512 512 M",
}
RESNET = {"resnet18": (2, 2, 2, 2), "resnet101": (3, 4, 23, 3)}  # blocks of each stage
WIDTHS = (64, 128, 256, 512)


# ---- dense -----------------------------------------------------------------------------------------------------------


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


def vgg(plan: str, classes: int = CLASSES) -> nn.Sequential:
    """Convolutions, two hidden layers of 512, and a head."""
    width = int(plan.split()[-2])
    hidden = [m for _ in range(2) for m in (nn.Dropout(0.5), nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(
        OrderedDict(
            features=features(plan, 3, bias=True),
            flatten=nn.Flatten(),
            hidden=nn.Sequential(*hidden),
            head=nn.Linear(width, classes),
        )
    )


class Block(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut, which is a 1 x 1 convolution where the shape changes."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.norm1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = norm(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != width:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), norm(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(self.conv1(x)).relu()
        return (self.norm2(self.conv2(y)) + self.shortcut(x)).relu()


def resnet(depths: tuple[int, ...], classes: int = CLASSES) -> nn.Sequential:
    """A 3 x 3 head, four stages of basic blocks, the last three of which halve the image, and a linear tail."""
    stages, channels = [], WIDTHS[0]
    for i, (width, depth) in enumerate(zip(WIDTHS, depths, strict=True)):
        strides = [1 if i == 0 else 2] + [1] * (depth - 1)
        stages.append(nn.Sequential(*(Block(channels if j == 0 else width, width, s) for j, s in enumerate(strides))))
        channels = width
    head = nn.Sequential(nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False), norm(WIDTHS[0]), nn.ReLU())
    return nn.Sequential(
        OrderedDict(
            head=head,
            stages=nn.Sequential(*stages),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            tail=nn.Linear(channels, classes),
        )
    )


def norm(channels: int) -> nn.BatchNorm2d:
    """The ResNets take the statistics of the batch at hand, also in evaluation."""
    return nn.BatchNorm2d(channels, momentum=0, track_running_stats=False)


# ---- low-rank --------------------------------------------------------------------------------------------------------


def reference(
    name: str, ratio: float | None = None, rule: tuple[int, int] = (0, 0), as_published: bool = False
) -> nn.Sequential:
    """One of the networks, freshly initialized.

    Args:
        name: "vgg11", "vgg16", "resnet18" or "resnet101".
        ratio: rank of a layer as a share of the smaller side of its matrix; None for the dense network.
        rule: early layers that stay dense, see ``lath.decom_rule``. Shortcuts, the last layer, and the first
            convolution of a ResNet always do.
        as_published: with the defects of the published code, see above.
    """
    low_rank = ratio is not None
    classes = PUBLISHED_VGG_CLASSES if low_rank and as_published else CLASSES
    model = vgg(VGG[name], classes) if name in VGG else resnet(RESNET[name])
    if low_rank:
        conv_ratio = PUBLISHED_RATIO if as_published else ratio
        stays_dense = lath.decom_rule(model, *rule)
        ranks = {
            path: rank_of(layer, ratio, conv_ratio)
            for path, layer in model.named_modules()
            if isinstance(layer, (nn.Conv2d, nn.Linear)) and not stays_dense(path, layer)
        }
        factor(model, ranks)
    draw_convolutions(model)
    return model


def rank_of(layer: nn.Module, ratio: float, conv_ratio: float) -> int:
    """The share of the smaller side of the layer's matrix, cut off: rule "min" of ``lath.LowRank``."""
    if isinstance(layer, nn.Conv2d):
        return int(min(layer.in_channels, layer.out_channels) * layer.kernel_size[0] * conv_ratio)
    return int(min(layer.in_features, layer.out_features) * ratio)


def factor(model: nn.Module, ranks: dict[str, int]) -> None:
    """Give the named layers new factors of these ranks, with an inner bias where the layers have a bias.

    ``lath.convert`` leaves a layer dense whose factors would cost as much as its weight. The reference factors it all
    the same, a square one at ratio 0.5 for instance, so these are put in by hand.
    """
    layers = {name: model.get_submodule(name) for name in ranks}
    inner_bias = any(layer.bias is not None for layer in layers.values())
    lath.convert(model, lath.LowRank(rank=ranks, init="fresh", conv="separable", inner_bias=inner_bias))
    for name, layer in layers.items():
        if model.get_submodule(name) is layer:
            form = LowRankConv2d if isinstance(layer, nn.Conv2d) else LowRankLinear
            model.set_submodule(name, form.from_dense(layer, ranks[name], inner_bias, init="fresh"))


def draw_convolutions(model: nn.Module) -> None:
    """Normal values of variance 2 / (outputs of one input), for each factor on its own; biases start at zero.

    In the published code a dense VGG kept torch's values instead, by accident.
    """
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, LowRankConv2d)):
            for name, parameter in module.named_parameters():
                if "bias" in name:
                    nn.init.zeros_(parameter)
                else:
                    nn.init.kaiming_normal_(parameter, mode="fan_out", nonlinearity="relu")
