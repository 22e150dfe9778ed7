# SPDX-License-Identifier: Apache-2.0
"""The character LSTM of the public code "Low-rank Model Training From Scratch", dense and low-rank.

The public code takes ``int(4 * hidden * ratio)`` for the rank, 204 of 256 at its default ratio, and factors the 8
inputs of the first layer too: its low-rank LSTM is larger than the dense one. :func:`as_published` builds it in these
shapes. :func:`low_rank` takes the share of the smaller side, as for any other layer, and factors what that makes
cheaper.
"""

from __future__ import annotations

import math

import torch
from lath.nn import LowRankLinear, LowRankLSTM
from torch import Tensor, nn

CHARACTERS, EMBEDDING, HIDDEN, LAYERS, WINDOW = 100, 8, 256, 2, 80


class CharLSTM(nn.Module):
    """Characters (batch, length) to scores of the next one at each place (batch, length, 100).

    Args:
        recurrent: ``nn.LSTM``, or one with its call signature.
        decoder: from the hidden state to scores.
    """

    def __init__(self, recurrent: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CHARACTERS, EMBEDDING)
        self.recurrent = recurrent
        self.decoder = decoder

    def forward(self, characters: Tensor) -> Tensor:
        states, _ = self.recurrent(self.embedding(characters.mT))
        return self.decoder(states).transpose(0, 1)

    @torch.no_grad()
    def draw(self) -> None:
        """Uniform values in 1 / sqrt(hidden) for every recurrent parameter, of which each factor counts as one."""
        bound = 1 / math.sqrt(HIDDEN)
        for parameter in self.recurrent.parameters():
            parameter.uniform_(-bound, bound)


def dense() -> CharLSTM:
    return CharLSTM(nn.LSTM(EMBEDDING, HIDDEN, LAYERS), nn.Linear(HIDDEN, CHARACTERS))


def low_rank(
    rank: int, decoder_rank: int, input_rank: int | tuple[int, ...] | None = None, spectral: bool = False
) -> CharLSTM:
    """Both layers at this rank.

    Args:
        rank: of the recurrent weights.
        decoder_rank: of the decoder, which has an inner bias as in the public code.
        input_rank: of the input weights, see ``lath.nn.LowRankLSTM``; None keeps that of the 8 inputs dense.
        spectral: start from the singular values of a dense network.
    """
    if not spectral:
        recurrent = LowRankLSTM(EMBEDDING, HIDDEN, rank, LAYERS, input_rank=input_rank)
        model = CharLSTM(recurrent, LowRankLinear(HIDDEN, CHARACTERS, decoder_rank, inner_bias=True))
        model.draw()
        return model
    model = dense()
    model.draw()
    model.recurrent = LowRankLSTM.from_dense(model.recurrent, rank, input_rank)
    model.decoder = LowRankLinear.from_dense(model.decoder, decoder_rank, inner_bias=True)
    return model


def ranks_of(ratio: float) -> tuple[int, int]:
    """Of the recurrent layers and of the decoder: the share of the smaller side of each matrix, cut off."""
    return int(HIDDEN * ratio), int(min(HIDDEN, CHARACTERS) * ratio)


def as_published(ratio: float, spectral: bool = False) -> CharLSTM:
    """With the public code's ranks, for the input weights as well, and a share of the outputs for the decoder."""
    rank = as_published_rank(ratio)
    return low_rank(rank, int(CHARACTERS * ratio), rank, spectral)


def as_published_rank(ratio: float) -> int:
    """A share of the four gates together."""
    return int(4 * HIDDEN * ratio)
