# SPDX-License-Identifier: Apache-2.0
"""The networks of the public code "Low-rank Model Training From Scratch", made low-rank with lath.

VGG-11 and VGG-16 with batch norm, ResNet-18 and "101", which is made of 33 basic blocks, and a vision transformer, all
for 32 x 32 images; a transformer that restores masked words; a character LSTM; and a small "mlp" and "cnn", names that
the public code accepts and does not build. :func:`reference` builds them dense or low-rank. The published low-rank
networks differ from what their options say, and so do the published figures; ``as_published=True`` builds them as they
were:

* a low-rank VGG ends in a layer for 512 classes instead of 10;
* the ratio is ignored by all convolutions and by the transformer of words, which always take 0.2;
* the LSTM takes a rank of ``int(4 * hidden * ratio)``, which makes it larger than the dense one.

The first VGG convolution has 3 channels and so rank 1; ``rule=(0, 2)`` leaves it dense.
"""

from __future__ import annotations

from collections import OrderedDict

import lath
import torch
from classifiers import features
from lath.nn import LowRankConv2d, LowRankLinear
from lowrank import reference_lstm
from lowrank.reference_transformers import TOKENS, Transformer, ViT
from torch import Tensor, nn

IMAGE = (1, 3, 32, 32)
WORDS = (1, 64)  # also the characters for which the reference counts an LSTM
CLASSES = 10
PUBLISHED_RATIO = 0.2
PUBLISHED_VGG_CLASSES = 512

VGG = {  # channels; M is a max-pool that halves the image
    "vgg11": "64 M 128 M 256 256 M 512 512 M 512 512 M",
    "vgg16": "64 64 M 128 128 M 256 256 256 M 512 512 512 M 512 512 512 M",
}
RESNET = {"resnet18": (2, 2, 2, 2), "resnet101": (3, 4, 23, 3)}  # blocks of each stage
WIDTHS = (64, 128, 256, 512)
SMALL = ("mlp", "cnn")
TEXTS = ("transformer", "lstm")
NAMES = (*VGG, *RESNET, "vit", *TEXTS, *SMALL)
INITS = ("none", "SI")


# ---- dense -----------------------------------------------------------------------------------------------------------


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


def mlp(classes: int = CLASSES) -> nn.Sequential:
    width = 512
    layers = [nn.Linear(3 * 32 * 32, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes)]
    return nn.Sequential(nn.Flatten(), *layers)


def cnn(classes: int = CLASSES) -> nn.Sequential:
    """Four convolutions with batch norm, an average, and a head."""
    return nn.Sequential(
        features("64 M 128 M 256 256 M", 3, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, classes)
    )


def dense_network(name: str, classes: int, tokens: int) -> nn.Module:
    """With torch's own initial values."""
    if name in VGG:
        return vgg(VGG[name], classes)
    if name in RESNET:
        return resnet(RESNET[name], classes)
    others = {
        "vit": lambda: ViT(classes),
        "transformer": lambda: Transformer(tokens),
        "lstm": reference_lstm.dense,
        "mlp": lambda: mlp(classes),
        "cnn": lambda: cnn(classes),
    }
    if name not in others:
        raise ValueError(f"there is no network {name!r}, expected one of {', '.join(NAMES)}")
    return others[name]()


# ---- low-rank --------------------------------------------------------------------------------------------------------


def reference(
    name: str,
    ratio: float | None = None,
    rule: tuple[int, int] = (0, 0),
    as_published: bool = False,
    classes: int = CLASSES,
    tokens: int = TOKENS,
    init: str = "none",
) -> nn.Module:
    """One of the networks, freshly initialized.

    Args:
        name: one of ``NAMES``.
        ratio: rank of a layer as a share of the smaller side of its matrix; None for the dense network.
        rule: early layers that stay dense: blocks of a transformer before the second number, layers of the others as
            ``lath.decom_rule`` says. Shortcuts, the last layer, embeddings and the first convolution of a ResNet always
            do; an LSTM has no use for the rule.
        as_published: with the defects of the published code, see above.
        classes: of images.
        tokens: different words, for the transformer of words.
        init: "none" draws each factor on its own, "SI" factors the values that the dense network would start from.
    """
    if init not in INITS:
        raise ValueError(f"init is {init!r}, expected one of {INITS}")
    if ratio is not None and name == "lstm":
        return low_rank_lstm(ratio, as_published, init == "SI")
    low_rank = ratio is not None
    if low_rank and as_published and name in VGG:
        classes = PUBLISHED_VGG_CLASSES
    model = dense_network(name, classes, tokens)
    if init == "SI":
        draw(model)
    if low_rank:
        # As published these take 0.2 whatever the option says.
        deaf = (nn.Conv2d, nn.Linear) if name == "transformer" else nn.Conv2d
        layers = {path: model.get_submodule(path) for path in low_rank_layers(model, rule)}
        ranks = {
            path: rank_of(layer, PUBLISHED_RATIO if as_published and isinstance(layer, deaf) else ratio)
            for path, layer in layers.items()
        }
        factor(model, ranks, "svd" if init == "SI" else "fresh")
    if init == "none":
        draw(model)
    return model


def low_rank_lstm(ratio: float, as_published: bool, spectral: bool) -> nn.Module:
    if as_published:
        return reference_lstm.as_published(ratio, spectral)
    return reference_lstm.low_rank(*reference_lstm.ranks_of(ratio), spectral=spectral)


def low_rank_layers(model: nn.Module, rule: tuple[int, int]) -> list[str]:
    """Names of the layers that the rule makes low-rank."""
    if isinstance(model, (Transformer, ViT)):
        return model.low_rank(rule[1])
    stays_dense = lath.decom_rule(model, *rule)
    return [
        path
        for path, layer in model.named_modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and not stays_dense(path, layer)
    ]


def rank_of(layer: nn.Module, ratio: float) -> int:
    """The share of the smaller side of the layer's matrix, cut off: rule "min" of ``lath.LowRank``."""
    if isinstance(layer, nn.Conv2d):
        return int(min(layer.in_channels, layer.out_channels) * layer.kernel_size[0] * ratio)
    return int(min(layer.in_features, layer.out_features) * ratio)


def factor(model: nn.Module, ranks: dict[str, int], init: str = "fresh") -> None:
    """Give the named layers factors of these ranks, with an inner bias where a layer has a bias.

    ``lath.convert`` leaves a layer dense whose factors would cost as much as its weight. The reference factors it all
    the same, a square one at ratio 0.5 for instance, so these are put in by hand.
    """
    for has_bias in (True, False):
        layers = {name: model.get_submodule(name) for name in ranks}
        layers = {name: layer for name, layer in layers.items() if (layer.bias is not None) == has_bias}
        if not layers:
            continue
        chosen = {name: ranks[name] for name in layers}
        lath.convert(model, lath.LowRank(rank=chosen, init=init, conv="separable", inner_bias=has_bias))
        for name, layer in layers.items():
            if model.get_submodule(name) is layer:
                form = LowRankConv2d if isinstance(layer, nn.Conv2d) else LowRankLinear
                model.set_submodule(name, form.from_dense(layer, ranks[name], has_bias, init=init))


def draw(model: nn.Module) -> None:
    """The values that the published networks start from, for each factor on its own.

    Convolutions have normal values of variance 2 / (outputs of one input), and biases of zero; the transformers say for
    themselves. In the published code a dense VGG kept torch's values instead, and so did the second factor of some
    feed-forward layers, by accident.
    """
    if hasattr(model, "draw"):
        model.draw()
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, LowRankConv2d)):
            for name, parameter in module.named_parameters():
                if "bias" in name:
                    nn.init.zeros_(parameter)
                else:
                    nn.init.kaiming_normal_(parameter, mode="fan_out", nonlinearity="relu")


def inputs_of(name: str) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and dtype of the input for which the reference counts."""
    return (WORDS, torch.int64) if name in TEXTS else (IMAGE, torch.float32)
