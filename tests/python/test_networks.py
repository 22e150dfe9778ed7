# SPDX-License-Identifier: Apache-2.0
"""Networks of torchvision, timm and others, as they are: converted, trained for a step, restored."""

from __future__ import annotations

import importlib
import os

import lath
import pytest
import torch
from lath.nn.factored import Factored
from torch import nn

CLASSES = 10
IMAGES = (2, 3, 64, 64)


def package(name):
    """A package of the test group; where continuous integration runs, its absence is no excuse."""
    return importlib.import_module(name) if os.environ.get("CI") else pytest.importorskip(name)


def torchvision(name):
    return lambda: getattr(package("torchvision").models, name)(num_classes=CLASSES)


def timm(name, **options):
    return lambda: package("timm").create_model(name, num_classes=CLASSES, **options)


# Name, network, form, spec, layers that are converted, reasons for those that are left. A decomposition of wide layers
# takes longer than all the rest, so most start from fresh factors.
SVD, FRESH = {"ratio": 0.25}, {"ratio": 0.25, "init": "fresh"}
NETWORKS = [
    ("resnet18", torchvision("resnet18"), "separable", FRESH, 21, set()),
    ("resnet18-pointwise", torchvision("resnet18"), "pointwise", FRESH, 21, set()),
    ("resnet50", torchvision("resnet50"), "separable", FRESH, 54, set()),
    ("vgg11", torchvision("vgg11"), "pointwise", FRESH, 11, set()),
    ("vgg11_bn", torchvision("vgg11_bn"), "separable", FRESH, 11, set()),
    ("vgg16", torchvision("vgg16"), "separable", FRESH, 16, set()),
    ("mobilenet_v3_small", torchvision("mobilenet_v3_small"), "pointwise", SVD, 43, {"depthwise"}),
    ("efficientnet_b0", torchvision("efficientnet_b0"), "separable", FRESH, 66, {"depthwise"}),
    ("convnext_tiny", torchvision("convnext_tiny"), "pointwise", FRESH, 41, {"depthwise"}),
    ("densenet121", torchvision("densenet121"), "separable", FRESH, 121, set()),
    ("timm-resnet18", timm("resnet18"), "pointwise", FRESH, 21, set()),
    ("timm-vit_tiny", timm("vit_tiny_patch16_224", img_size=64), "separable", FRESH, 50, set()),
]


def train_step(model, x):
    """Every parameter gets a finite gradient and moves along it."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    loss = nn.functional.cross_entropy(model(x), torch.arange(len(x)))
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    optimizer.step()


def logits(model, x):
    with torch.no_grad():
        return model.eval()(x)


def assert_same_logits(y, expected):
    """Within 1e-4 of the largest logit: float32, and a product of factors that is summed in another order."""
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize(
    ("make", "form", "spec", "converted", "left"), [case[1:] for case in NETWORKS], ids=[case[0] for case in NETWORKS]
)
def test_convert_train_restore(make, form, spec, converted, left):
    model, x = make(), torch.randn(IMAGES)
    report = lath.convert(model, lath.LowRank(**spec, conv=form))
    assert sum(isinstance(m, Factored) for m in model.modules()) == converted
    assert {row.reason.split(":")[0] for row in report if row.reason} == left
    train_step(model, x)
    expected = logits(model, x)
    assert lath.restore(model) == [row.name for row in report if row.reason is None]
    assert_same_logits(logits(model, x), expected)
    with torch.device("meta"):
        original = make()
    original.load_state_dict(model.state_dict(), strict=True, assign=True)
    assert {type(m) for m in original.modules()} == {type(m) for m in model.modules()}


def efficientnet_lite():
    options = {"num_classes": CLASSES, "image_size": IMAGES[-1]}
    return package("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0", **options)


SAME_PADDING = {
    "Conv2dStaticSamePadding": (efficientnet_lite, 49),
    "Conv2dSame": (timm("tf_mobilenetv3_small_minimal_100"), 5),
}


@pytest.mark.parametrize("kind", SAME_PADDING)
def test_convolutions_with_a_forward_of_their_own_are_left(kind):
    make, count = SAME_PADDING[kind]
    model, x = make(), torch.randn(IMAGES)
    own = {name: module for name, module in model.named_modules() if type(module).__name__ == kind}
    report = lath.convert(model, lath.LowRank(**FRESH))
    assert len(own) == count
    assert {row.name for row in report if row.reason == f"a subclass of nn.Conv2d: {kind}"} == set(own)
    assert all(model.get_submodule(name) is module for name, module in own.items())
    assert any(isinstance(module, Factored) for module in model.modules())
    train_step(model, x)
    expected = logits(model, x)
    lath.restore(model)
    assert_same_logits(logits(model, x), expected)
    make().load_state_dict(model.state_dict(), strict=True)


@pytest.mark.parametrize(
    ("make", "converted"),
    [(torchvision("mobilenet_v3_small"), 41), (timm("vit_tiny_patch16_224", img_size=64), 48)],
    ids=["mobilenet_v3_small", "timm-vit_tiny"],
)
def test_networks_in_orthogonal_bases(make, converted):
    """At full rank the dense function; trained at an eighth of it; restored with what was learned."""
    model, x = make().eval(), torch.randn(IMAGES)
    with torch.no_grad():
        expected = model(x)
        report = lath.convert(model, lath.OIALR())
        assert sum(row.reason is None for row in report) == converted
        torch.testing.assert_close(model(x), expected, rtol=1e-3, atol=1e-4)
    for core in lath.oialr_cores(model).values():
        rank = max(1, core.rank // 8)
        core.replace_(core.u[:, :rank], core.s.detach()[:rank, :rank], core.vh[:rank])
    train_step(model, x)
    with torch.no_grad():
        expected = model.eval()(x)
        assert len(lath.restore(model)) == converted
        torch.testing.assert_close(model(x), expected, rtol=1e-3, atol=1e-4)
