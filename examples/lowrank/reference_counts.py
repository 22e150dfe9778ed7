# SPDX-License-Identifier: Apache-2.0
"""Exact sizes of the models of "Low-rank Model Training From Scratch", as they were published and as they were meant.

    python examples/lowrank/reference_counts.py

FLOPs are what fvcore calls so: multiply-adds, and a few for norms and pools, of one 3 x 32 x 32 image or of 64 words or
characters, in training mode. fvcore counts nothing for an LSTM; a second table has all its multiply-adds.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from count import fvcore_flops, inference_macs, parameters  # isort: skip
from lowrank import reference_lstm
from lowrank.reference_models import PUBLISHED_RATIO, VGG, inputs_of, reference

PUBLISHED = {  # millions of parameters, millions of FLOPs: dense, low-rank
    "vgg11": ("9.76 / 154", "4.01 / 55.96"),
    "vgg16": ("15.25 / 315", "6.21 / 120"),
    "resnet18": ("11.17 / 559", "4.42 / 229"),
    "resnet101": ("41.35 / 2451", "16.46 / 985"),
    "vit": ("9.52 / 643", "3.22 / 233"),
    "transformer": ("10.36 / 390", "8.98 / 302"),
    "lstm": ("0.825 / 1.638", "none printed"),
}
RATIOS = (0.05, 0.25, 0.5)
RESNET_RULES = ((0, 0), (0, 1), (1, 0), (2, 0), (3, 0), (4, 0))
STARTS = {"vgg11": range(12), "vit": range(7), "transformer": range(4)}

# Ranks of the recurrent weights and of the input weights, 0 for a dense one; the decoder's is 20.
LSTM_RULES = {
    "every rank 51": (51, (51, 51)),
    "every rank 25": (25, (25, 25)),
    "0.2 of the smaller side, 8 inputs too": (51, (1, 51)),
    "0.2 of the smaller side": (51, (0, 51)),
}
Counts = tuple[int, int]


def count(name: str, **options) -> Counts:
    """Parameters and FLOPs of ``reference(name, **options)``, which gets no memory for its values."""
    with torch.device("meta"):
        model = reference(name, **options)
    return parameters(model), fvcore_flops(model, *inputs_of(name))


def count_lstm(model: nn.Module, length: int = 64) -> Counts:
    """Parameters and multiply-adds, the recurrent ones included, of a sequence of so many characters."""
    return parameters(model), inference_macs(model, (1, length), torch.int64)


def count_lstm_rule(rank: int, input_ranks: tuple[int, ...], length: int = 64) -> Counts:
    with torch.device("meta"):
        return count_lstm(reference_lstm.low_rank(rank, 20, input_ranks), length)


def published() -> Iterator[str]:
    """Dense and at ratio 0.2, beside the printed figures."""
    thin = {"ratio": PUBLISHED_RATIO}
    for name, (dense_figures, thin_figures) in PUBLISHED.items():
        yield row(name, count(name), dense_figures)
        yield row(f"{name} low-rank", count(name, **thin, as_published=True), thin_figures)
        if name in VGG:
            yield row(f"{name} low-rank, 10 classes", count(name, **thin))
            yield row(f"{name} low-rank, 10 classes, conv1 dense", count(name, **thin, rule=(0, 2)))


def lstms() -> Iterator[str]:
    """With the multiply-adds of the recurrence, at 64 characters."""
    with torch.device("meta"):
        models = {"lstm": reference_lstm.dense(), "lstm low-rank": reference_lstm.as_published(PUBLISHED_RATIO)}
    for name, model in models.items():
        yield row(name, count_lstm(model))
    for name, ranks in LSTM_RULES.items():
        yield row(f"lstm, {name}", count_lstm_rule(*ranks))


def ratios() -> Iterator[str]:
    """Other ratios: the published code, which ignores them here and there, and what was meant."""
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
    for name, starts in STARTS.items():
        for start in starts:
            if name in VGG:
                yield row(
                    f"{name}, rule 0 {start}, as published", count(name, **thin, rule=(0, start), as_published=True)
                )
            yield row(f"{name}, rule 0 {start}", count(name, **thin, rule=(0, start)))


def row(label: str, counts: Counts, remark: str = "") -> str:
    return f"  {label:<45}{counts[0]:>12,}{counts[1]:>16,}   {remark}".rstrip()


def main() -> None:
    tables = {
        "ratio 0.2; published, in millions": published,
        "LSTM, all multiply-adds": lstms,
        "other ratios": ratios,
        "hybrids, ratio 0.2": hybrids,
    }
    print(__doc__.split("\n\n")[-1])
    for title, rows in tables.items():
        print(f"{title:<47}{'parameters':>12}{'FLOPs':>16}")
        for line in rows():
            print(line, flush=True)
        print()


if __name__ == "__main__":
    main()
