# SPDX-License-Identifier: Apache-2.0
"""The networks of the demo, of linear layers and of convolutions, and their three variants."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, fields

import lath
import torch
from classifiers import CLASSES, HIDDEN, IMAGE, PIXELS, features, mlp
from lath.nn import LowRankConv2d, LowRankLinear
from torch import nn
from training import CHANNELS_LAST, CONTIGUOUS

DENSE, LATH = "dense", "lath"
LARGEST_RANK = (PIXELS * HIDDEN - 1) // (PIXELS + HIDDEN)  # beyond it the first layer would not get cheaper
SMALLEST_RATIO = 1 / 64
PLAN = "64 64 M 128 M 256 256"  # channels of the convolutions; M halves the image
CHANNELS = PLAN.replace("M ", "").split()


@dataclass(frozen=True)
class Task:
    """A network, how it is made thin, and what is done with it.

    Attributes:
        name: for the command line.
        title: for the figure.
        build: makes the dense network.
        spec, exclude: arguments of ``lath.convert``.
        pair: name of the network in which each low-rank layer is two layers of torch.
        layouts: of images and weights; each network gets the one that is faster for it.
        batch: images in a training step.
        rate: learning rate of Adam at the start; it falls linearly.
        epochs: passes over the training images.
        images: training images, the first ones.
        tests: how often an epoch is interrupted by a test.
        glance: test images of such a test; the last test takes all.
        inference: batch sizes.
    """

    name: str
    title: str
    build: Callable[[], nn.Sequential]
    spec: lath.LowRank
    exclude: tuple[str, ...]
    pair: str
    layouts: tuple[torch.memory_format, ...]
    batch: int
    rate: float
    epochs: int
    images: int
    tests: int
    glance: int
    inference: tuple[int, ...]


def mlp_task(rank: int) -> Task:
    return Task(
        name="mlp",
        title=f"MLP {PIXELS}-{HIDDEN}-{HIDDEN}-{CLASSES} on Fashion-MNIST, rank {rank}",
        build=mlp,
        spec=lath.LowRank(rank=rank),
        exclude=(),
        pair="two nn.Linear",
        layouts=(CONTIGUOUS,),
        batch=128,
        rate=2e-3,
        epochs=5,
        images=60_000,
        tests=4,
        glance=10_000,
        inference=(1, 64, 1024),
    )


def cnn_task(ratio: float, form: str) -> Task:
    return Task(
        name="cnn",
        title=f"CNN {'-'.join(CHANNELS)} (3x3) on Fashion-MNIST, {form}, ratio {ratio:g}",
        build=cnn,
        spec=lath.LowRank(ratio=ratio, conv=form),
        exclude=("features.0", "head"),  # one channel in, ten classes out: nothing to save
        pair="two nn.Conv2d",
        layouts=(CONTIGUOUS, CHANNELS_LAST),
        batch=32,
        rate=2e-3,
        epochs=1,
        images=9_600,
        tests=5,
        glance=1_000,
        inference=(1, 16, 64),
    )


def cnn() -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            features=features(PLAN, IMAGE[1], bias=False),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            head=nn.Linear(int(CHANNELS[-1]), CLASSES),
        )
    )


def networks(task: Task, seed: int) -> tuple[dict[str, nn.Module], lath.Report]:
    """The three networks by name, and what ``lath.convert`` says about its layers."""
    torch.manual_seed(seed)
    dense = task.build()
    thin = copy.deepcopy(dense)
    report = lath.convert(thin, task.spec, exclude=task.exclude)
    return {DENSE: dense, task.pair: as_pairs(thin), LATH: thin}, report


def as_call(spec: lath.LowRank) -> str:
    """The spec as one would write it."""
    given = {f.name: getattr(spec, f.name) for f in fields(spec) if getattr(spec, f.name) != f.default}
    return f"lath.LowRank({', '.join(f'{name}={value!r}' for name, value in given.items())})"


def as_pairs(model: nn.Module) -> nn.Module:
    """A copy with the same function without lath: each low-rank layer as two layers of torch with its factors."""
    twin = copy.deepcopy(model)
    for name, layer in model.named_modules():
        if isinstance(layer, (LowRankLinear, LowRankConv2d)):
            twin.set_submodule(name, as_pair(layer))
    return twin


def as_pair(layer: LowRankLinear | LowRankConv2d) -> nn.Sequential:
    biases = layer.inner_bias is not None, layer.bias is not None
    if isinstance(layer, LowRankLinear):
        pair = nn.Linear(layer.in_features, layer.rank, biases[0]), nn.Linear(layer.rank, layer.out_features, biases[1])
    else:
        pair = conv_pair(layer, *biases)
    sources = (layer.weight_v, layer.inner_bias), (layer.weight_u, layer.bias)
    with torch.no_grad():
        for part, (weight, bias) in zip(pair, sources, strict=True):
            part.weight.copy_(weight)
            if bias is not None:
                part.bias.copy_(bias)
    return nn.Sequential(*pair)


def conv_pair(layer: LowRankConv2d, inner_bias: bool, bias: bool) -> tuple[nn.Conv2d, nn.Conv2d]:
    """Two convolutions of the shapes of its factors; padding in numbers, and by zeros."""
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = layer.kernel_size, layer.stride, layer.padding, layer.dilation
    if layer.mode == "separable":
        first, second = ((1, kw), (1, sw), (0, pw), (1, dw)), ((kh, 1), (sh, 1), (ph, 0), (dh, 1))
    else:
        first, second = (layer.kernel_size, layer.stride, layer.padding, layer.dilation), (1, 1, 0, 1)
    middle = layer.groups * layer.rank
    return (
        nn.Conv2d(layer.in_channels, middle, *first, layer.groups, inner_bias),
        nn.Conv2d(middle, layer.out_channels, *second, layer.groups, bias),
    )
