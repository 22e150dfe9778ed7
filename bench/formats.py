# SPDX-License-Identifier: Apache-2.0
"""Calls on images in both memory formats; what counts is the better one of each contender."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from context import Context
from measure import Timing
from rows import Row, disturbance
from torch import Tensor, nn

FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}


def in_both_formats(
    name: object, module: nn.Module, call_of: Callable[..., Callable[[], object]], images: Sequence[Tensor]
) -> dict[tuple, Callable[[], object]]:
    """``call_of(module, *images)`` by (name, format), on copies of the module and of the images in that format."""
    calls = {}
    for text, form in FORMATS.items():
        converted = [image.detach().to(memory_format=form, copy=True) for image in images]
        for image, source in zip(converted, images, strict=True):
            image.requires_grad_(source.requires_grad)
        calls[name, text] = call_of(copy.deepcopy(module).to(memory_format=form), *converted)
    return calls


def better(timings: Mapping[tuple, Timing], name: object) -> str:
    """The format in which the contender is faster."""
    return min(FORMATS, key=lambda text: timings[name, text].median)


def row_of(context: Context, timings: Mapping[tuple, Timing], names: Sequence[object], **values) -> Row:
    """What the contenders ``names`` (dense, two, lath) make of a case; ``values`` are the other fields of the row."""
    formats = [better(timings, name) for name in names]
    dense, two, thin = found = [timings[name, text] for name, text in zip(names, formats, strict=True)]
    return Row(
        threads=context.threads,
        isa=context.machine.isa,
        peak=context.peak,
        baseline=dense.median,
        two=two.median,
        lath=thin.median,
        layouts=" ".join(formats),
        **disturbance(found),
        **values,
    )
