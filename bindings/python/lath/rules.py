# SPDX-License-Identifier: Apache-2.0
"""Which layers stay dense by their place in the network, as predicates for ``exclude=`` of ``lath.convert``."""

from __future__ import annotations

import re
from collections.abc import Callable

from torch import nn

from .survey import survey

# layer2.0.conv1 (torchvision, timm), stages.1.0.conv1, stages.1.blocks.0.conv1
_BLOCKS = re.compile(r"(?:.*\.)?(?:layer|stages?\.?)(?P<stage>\d+)\.(?:blocks\.)?(?P<block>\d+)\..+")
_SHORTCUT = re.compile(r"(?:.*\.)?(?:down_?sample|shortcut|skip)(?:\..*)?")


def decom_rule(
    model: nn.Module, stage: int, block: int, blocks: str | re.Pattern | None = None
) -> Callable[[str, nn.Module], bool]:
    r"""The rule ``--decom_rule A B`` of the public low-rank training code: early layers of a network stay dense.

    To be used as ``exclude=`` of ``lath.convert``, also in a list::

        lath.convert(model, lath.LowRank(ratio=0.2), exclude=lath.decom_rule(model, 2, 1))

    What counts as early depends on the names of the layers:

    * In blocks like those of a ResNet (``layer1.0.conv1``, ``stages.0.1.conv2``, ``stages.0.blocks.1.conv2``) stages
      and blocks count from 0: all stages before ``stage`` stay dense and, of this stage, the blocks before ``block``.
      ``-1, 0`` makes every block low-rank, ``4, 0`` none of four stages. The layers outside of blocks and the
      convolutions of shortcuts always stay dense.
    * In any other network, like a VGG, layers count from 1 in model order, and those before number ``block`` stay
      dense; so does the last one, the head. ``stage`` has no meaning.

    Args:
        model: the network, dense or converted.
        stage: A of the rule.
        block: B of the rule.
        blocks: for other names of blocks: a regular expression that matches the whole name of a layer in a block, with
            the group ``block`` and, if there are stages, ``stage``. For a vision transformer of timm, for example,
            ``r"blocks\.(?P<block>\d+)\..*"``; its patch embedding and its head, which do not match, stay dense.

    Returns:
        A predicate: whether the layer of this name stays dense.

    Raises:
        TypeError: ``stage`` or ``block`` is not an int.
        ValueError: ``blocks`` has no group ``block``, or matches no layer of the model.
    """
    for name, value in (("stage", stage), ("block", block)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"lath.decom_rule: {name} is {value!r}, expected an int")
    sites = survey(model)
    names = [name for site in sites for name in site.names]
    places = _places(names, stage, _BLOCKS if blocks is None else _pattern(blocks))
    if places:
        low_rank = {name for name, place in places.items() if place >= (stage, block)}
    elif blocks is None:
        low_rank = {name for site in sites[max(0, block - 1) : -1] for name in site.names}
    else:
        raise ValueError(f"lath.decom_rule: blocks matches no layer of the model; it has: {', '.join(names[:10])}")
    return lambda name, module: name not in low_rank


def _pattern(blocks: str | re.Pattern) -> re.Pattern:
    pattern = re.compile(blocks)
    if "block" not in pattern.groupindex:
        raise ValueError(f"lath.decom_rule: blocks is {pattern.pattern!r}, expected a group (?P<block>...)")
    return pattern


def _places(names: list[str], only_stage: int, pattern: re.Pattern) -> dict[str, tuple[int, int]]:
    """Stage and block of each layer in a block, counted from 0 in model order; shortcuts have none.

    Without a group ``stage`` in the pattern every block is in ``only_stage``.
    """
    stages: dict[str, list[str]] = {}  # blocks of each
    places = {}
    for name in names:
        match = pattern.fullmatch(name)
        if match is None or _SHORTCUT.fullmatch(name):
            continue
        here = match.groupdict()
        seen = stages.setdefault(here.get("stage"), [])
        if here["block"] not in seen:
            seen.append(here["block"])
        stage = list(stages).index(here["stage"]) if "stage" in here else only_stage
        places[name] = stage, seen.index(here["block"])
    return places
