# SPDX-License-Identifier: Apache-2.0
"""Exact sizes of the published low-rank VGGs and ResNets, as they were published and as they were meant.

    python examples/lowrank/reference_counts.py

FLOPs are what fvcore calls so: multiply-adds, and a few for norms and pools, of one 3 x 32 x 32 image in training mode.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from count import fvcore_flops, parameters  # isort: skip
from lowrank.reference_models import IMAGE, PUBLISHED_RATIO, VGG, reference

PUBLISHED = {  # millions of parameters, millions of FLOPs: dense, low-rank
    "vgg11": ("9.76 / 154", "4.01 / 55.96"),
    "vgg16": ("15.25 / 315", "6.21 / 120"),
    "resnet18": ("11.17 / 559", "4.42 / 229"),
    "resnet101": ("41.35 / 2451", "16.46 / 985"),
}
RATIOS = (0.05, 0.25, 0.5)
RESNET_RULES = ((0, 0), (0, 1), (1, 0), (2, 0), (3, 0), (4, 0))
VGG11_STARTS = range(12)


def count(name: str, **options) -> tuple[int, int]:
    """Parameters and FLOPs of ``reference(name, **options)``, which gets no memory for its values."""
    with torch.device("meta"):
        model = reference(name, **options)
    return parameters(model), fvcore_flops(model, IMAGE)


def published() -> Iterator[str]:
    """Dense and at ratio 0.2, beside the printed figures."""
    thin = {"ratio": PUBLISHED_RATIO}
    for name, (dense_figures, thin_figures) in PUBLISHED.items():
        yield row(name, count(name), dense_figures)
        yield row(f"{name} low-rank", count(name, **thin, as_published=True), thin_figures)
        if name in VGG:
            yield row(f"{name} low-rank, 10 classes", count(name, **thin))
            yield row(f"{name} low-rank, 10 classes, conv1 dense", count(name, **thin, rule=(0, 2)))


def ratios() -> Iterator[str]:
    """Other ratios: the published code, which ignores them in convolutions, and what was meant."""
    for name in PUBLISHED:
        rule, remark = ((0, 2), ", conv1 dense") if name in VGG else ((0, 0), "")
        for ratio in RATIOS:
            yield row(f"{name}, ratio {ratio}, as published", count(name, ratio=ratio, as_published=True))
            yield row(f"{name}, ratio {ratio}{remark}", count(name, ratio=ratio, rule=rule))


def hybrids() -> Iterator[str]:
    """Some layers left dense, ratio 0.2."""
    thin = {"ratio": PUBLISHED_RATIO}
    for a, b in RESNET_RULES:
        yield row(f"resnet18, rule {a} {b}", count("resnet18", **thin, rule=(a, b)))
    for start in VGG11_STARTS:
        for remark, as_published in ((", as published", True), ("", False)):
            counts = count("vgg11", **thin, rule=(0, start), as_published=as_published)
            yield row(f"vgg11, rule 0 {start}{remark}", counts)


def row(label: str, counts: tuple[int, int], remark: str = "") -> str:
    return f"  {label:<43}{counts[0]:>12,}{counts[1]:>16,}   {remark}".rstrip()


def main() -> None:
    tables = {
        "ratio 0.2; published, in millions": published,
        "other ratios": ratios,
        "hybrids, ratio 0.2": hybrids,
    }
    print(__doc__.split("\n\n")[-1])
    for title, rows in tables.items():
        print(f"{title:<45}{'parameters':>12}{'FLOPs':>16}")
        for line in rows():
            print(line, flush=True)
        print()


if __name__ == "__main__":
    main()
