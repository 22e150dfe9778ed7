# SPDX-License-Identifier: Apache-2.0
"""Layers that stay dense by their place in the network: skip_first, skip_last and decom_rule."""

from __future__ import annotations

import lath
import pytest
from lath.survey import survey
from torch import nn


def low_rank(model):
    return [site.name for site in survey(model) if type(site.module).__name__.startswith("LowRank")]


def low_rank_by(rule, model):
    return [site.name for site in survey(model) if not rule(site.name, site.module)]


@pytest.mark.parametrize(
    ("first", "last", "dense"),
    [(0, 0, set()), (1, 0, {"1"}), (0, 1, {"6"}), (2, 1, {"1", "3", "6"}), (9, 9, {"1", "3", "5", "6"})],
)
def test_skip_first_and_last(first, last, dense):
    """The depthwise layer and the excluded one do not count."""
    model = nn.Sequential(
        nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten(),
        nn.Linear(8, 8), nn.Linear(8, 8),
    )  # fmt: skip
    spec = lath.LowRank(rank=2, skip_first=first, skip_last=last)
    report = lath.convert(model, spec, exclude="2")
    assert set(low_rank(model)) == {"1", "3", "5", "6"} - dense
    assert {row.name for row in report if str(row.reason).startswith("one of the ")} == dense
    before = low_rank(model)
    lath.convert(model, spec, exclude="2")
    assert low_rank(model) == before


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
        self.downsample = nn.Sequential(nn.Conv2d(4, 4, 1))


def resnet(depths=(2, 2, 2, 2)):
    stages = {f"layer{i + 1}": nn.Sequential(*(Block() for _ in range(n))) for i, n in enumerate(depths)}
    return nn.ModuleDict({"stem": nn.Conv2d(3, 4, 3), **stages, "fc": nn.Linear(4, 4)})


@pytest.mark.parametrize(
    ("stage", "block", "first"),
    [(-1, 0, (0, 0)), (0, 0, (0, 0)), (0, 1, (0, 1)), (2, 1, (2, 1)), (2, 2, (3, 0)), (3, 1, (3, 1)), (4, 0, (4, 0))],
)
def test_decom_rule_of_a_resnet(stage, block, first):
    model = resnet()
    expected = [
        f"layer{i + 1}.{j}.conv{k}" for i in range(4) for j in range(2) for k in (1, 2) if (i, j) >= first
    ]  # fmt: skip
    rule = lath.decom_rule(model, stage, block)
    assert low_rank_by(rule, model) == expected
    lath.convert(model, lath.LowRank(rank=1), exclude=rule)
    assert low_rank(model) == expected
    assert low_rank_by(lath.decom_rule(model, stage, block), model) == expected


@pytest.mark.parametrize("name", ["stages.{}.{}.conv", "backbone.stages.{}.blocks.{}.conv", "stage{}.{}.conv"])
def test_decom_rule_by_other_names_of_blocks(name):
    model = nn.Module()
    for i in range(2):
        for j in range(2):
            *path, leaf = name.format(i, j).split(".")
            place = model
            for part in path:
                if part not in place._modules:
                    place.add_module(part, nn.Module())
                place = place._modules[part]
            place.add_module(leaf, nn.Linear(2, 2))
    assert low_rank_by(lath.decom_rule(model, 0, 1), model) == [name.format(*p) for p in ((0, 1), (1, 0), (1, 1))]


@pytest.mark.parametrize(("number", "dense"), [(-1, 0), (0, 0), (1, 0), (2, 1), (4, 3), (5, 4), (99, 4)])
def test_decom_rule_of_a_vgg(number, dense):
    """Layers count from 1; the last one stays dense."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    rule = lath.decom_rule(model, 7, number)
    assert low_rank_by(rule, model) == [str(i) for i in range(dense, 4)]


def test_decom_rule_with_a_pattern_of_its_own():
    model = nn.ModuleDict({"patch": nn.Conv2d(3, 4, 4), "blocks": nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])})
    model.blocks = nn.ModuleList([nn.Sequential(layer) for layer in model.blocks])
    rule = lath.decom_rule(model, 0, 1, r"blocks\.(?P<block>\d+)\..*")
    assert low_rank_by(rule, model) == ["blocks.1.0", "blocks.2.0"]
    with pytest.raises(ValueError, match=r"expected a group \(\?P<block>"):
        lath.decom_rule(model, 0, 1, r"blocks\.(\d+)")
    with pytest.raises(ValueError, match="blocks matches no layer of the model; it has: patch, blocks"):
        lath.decom_rule(model, 0, 1, r"layers\.(?P<block>\d+)")
    with pytest.raises(TypeError, match=r"stage is 1\.5, expected an int"):
        lath.decom_rule(model, 1.5, 0)


def test_rules_in_a_list():
    model = resnet()
    lath.convert(model, lath.LowRank(rank=1), exclude=[lath.decom_rule(model, 3, 0), "*.conv2"])
    assert low_rank(model) == ["layer4.0.conv1", "layer4.1.conv1"]
