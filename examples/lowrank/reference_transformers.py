# SPDX-License-Identifier: Apache-2.0
"""The transformers of the public code "Low-rank Model Training From Scratch": masked reconstruction, and images.

Both are written with ordinary ``nn.Linear`` layers; ``reference_models.reference`` makes them low-rank.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

TOKENS, WINDOW = 33_279, 64
WIDTH, HEADS, FEED_FORWARD, LAYERS = 128, 8, 2048, 3
DROPOUT = 0.1

VIT_WIDTH, VIT_HEADS, VIT_DEPTH, VIT_PATCH = 512, 8, 6, 4
IMAGE_SIZE = 32
FEED_FORWARD_DEVIATION = 0.02


class Attend(nn.Module):
    """Softmax attention over heads: q, k and v (batch, length, width) to the same shape."""

    def __init__(self, heads: int, causal: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.causal, self.dropout = heads, causal, dropout

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        dropout = self.dropout if self.training else 0.0
        # The mask is made by the indices: none of (batch * heads, length, length) is.
        y = nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=self.causal)
        return y.transpose(1, 2).flatten(-2)


# ---- masked reconstruction of text -----------------------------------------------------------------------------------


class SelfAttention(nn.Module):
    """Query, key, value and output, a layer each; what comes later is not seen."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.attend = Attend(heads, causal=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.attend(self.q(x), self.k(x), self.v(x)))


class EncoderLayer(nn.Module):
    """Attention and a feed-forward pair, each added to what comes in and then normalized."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.attention = SelfAttention(width, heads)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.dropout(self.attention(x)))
        y = self.linear2(self.dropout(nn.functional.gelu(self.linear1(x))))
        return self.norm2(x + self.dropout(y))


class Embedding(nn.Module):
    """Of words, one of which stands for a masked word, and of positions."""

    def __init__(self, tokens: int, width: int, window: int, dropout: float) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(tokens + 1, width), nn.Embedding(window, width)
        self.norm, self.dropout = nn.LayerNorm(width), nn.Dropout(dropout)

    def forward(self, words: Tensor) -> Tensor:
        places = torch.arange(words.shape[1], device=words.device)
        return self.dropout(self.norm(self.words(words) + self.places(places)))


class Transformer(nn.Module):
    """Words (batch, length), some of them masked, to scores of all words at each place (batch, length, tokens)."""

    def __init__(self, tokens: int = TOKENS, window: int = WINDOW) -> None:
        super().__init__()
        self.window = window
        self.embedding = Embedding(tokens, WIDTH, window, DROPOUT)
        self.layers = nn.ModuleList(EncoderLayer(WIDTH, HEADS, FEED_FORWARD, DROPOUT) for _ in range(LAYERS))
        self.decoder = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, tokens)

    def forward(self, words: Tensor) -> Tensor:
        x = self.embedding(words)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(nn.functional.gelu(self.decoder(x))))

    def low_rank(self, block: int) -> list[str]:
        """The layers that the rule ``0 block`` makes low-rank: those of the blocks from there on, and the decoder."""
        return [*_linears(self, "layers", block), "decoder"]

    @torch.no_grad()
    def draw(self) -> None:
        """Narrow normal values for the feed-forward layers, of which each factor counts as one; biases of 0."""
        for layer in self.layers:
            draw_narrow(layer.linear1, layer.linear2)
        for name, parameter in self.named_parameters():
            if "bias" in name and "norm" not in name:
                parameter.zero_()


# ---- images ----------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Attention with one layer for query, key and value, and a feed-forward pair; normalized before, added after."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.attend = Attend(heads, causal=False)
        self.linear1, self.linear2 = nn.Linear(width, width), nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.out(self.attend(*self.qkv(self.norm1(x)).chunk(3, dim=-1))))
        y = self.dropout(nn.functional.gelu(self.linear1(self.norm2(x))))
        return x + self.dropout(self.linear2(y))


class ViT(nn.Module):
    """Images (batch, 3, 32, 32) to scores of classes: patches of 4 x 4 and a token that gathers what they hold."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        patches = (IMAGE_SIZE // VIT_PATCH) ** 2
        self.patches = nn.Linear(3 * VIT_PATCH**2, VIT_WIDTH)
        self.places = nn.Parameter(torch.randn(1, patches + 1, VIT_WIDTH))
        self.gather = nn.Parameter(torch.randn(1, 1, VIT_WIDTH))
        self.dropout = nn.Dropout(DROPOUT)
        self.blocks = nn.ModuleList(Block(VIT_WIDTH, VIT_HEADS, DROPOUT) for _ in range(VIT_DEPTH))
        self.norm = nn.LayerNorm(VIT_WIDTH)
        self.head = nn.Linear(VIT_WIDTH, classes)

    def forward(self, images: Tensor) -> Tensor:
        tiles = images.unfold(2, VIT_PATCH, VIT_PATCH).unfold(3, VIT_PATCH, VIT_PATCH)
        x = self.patches(tiles.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2))
        x = torch.cat([self.gather.expand(len(x), -1, -1), x], dim=1) + self.places
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))

    def low_rank(self, block: int) -> list[str]:
        """The layers that the rule ``0 block`` makes low-rank: those of the blocks from there on."""
        return _linears(self, "blocks", block)

    @torch.no_grad()
    def draw(self) -> None:
        """Narrow normal values for the feed-forward layers, of which each factor counts as one."""
        for block in self.blocks:
            draw_narrow(block.linear1, block.linear2)


# ---- both ------------------------------------------------------------------------------------------------------------


def _linears(model: nn.Module, blocks: str, first: int) -> list[str]:
    depth = len(getattr(model, blocks))
    if not 0 <= first <= depth:
        raise ValueError(f"the rule names block {first}, but there are {depth}")
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(blocks) and int(name.split(".")[1]) >= first
    ]


def draw_narrow(*layers: nn.Module) -> None:
    for layer in layers:
        for name, parameter in layer.named_parameters():
            if "bias" not in name:
                nn.init.normal_(parameter, std=FEED_FORWARD_DEVIATION)
