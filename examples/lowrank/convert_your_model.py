# SPDX-License-Identifier: Apache-2.0
"""Swap the linear layers of a model of your own, train it, save it, load it, and go back to nn.Linear.

    python examples/lowrank/convert_your_model.py

The model is a small transformer that learns to reverse a sequence of symbols; no data set is needed. What belongs to
lath are the lines with a number.
"""

import copy
import io

import lath  # 1
import torch
from torch import Tensor, nn

SYMBOLS, LENGTH, WIDTH, HEADS, BLOCKS = 16, 8, 256, 4, 2


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, HEADS, WIDTH // HEADS)).transpose(1, 3).unbind(2)
        x = x + self.proj(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class Reverser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(SYMBOLS, WIDTH)
        self.position = nn.Parameter(torch.randn(LENGTH, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(BLOCKS)))
        self.head = nn.Linear(WIDTH, SYMBOLS)

    def forward(self, symbols: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(symbols) + self.position))


def batch(rows: int = 64) -> Tensor:
    return torch.randint(SYMBOLS, (rows, LENGTH))


def main(steps: int = 100) -> None:
    torch.manual_seed(0)
    model = Reverser()
    lath.convert(model, lath.LowRank(ratio=0.25), exclude="head")  # 2: in place, each layer factored to a thin one
    print(lath.report(model, batch()))  # 3: what each layer costs now, and the route it takes

    optimizer = torch.optim.Adam(model.parameters(), 1e-3)  # after convert: the parameters are new
    for i in range(steps):
        symbols = batch()
        loss = nn.functional.cross_entropy(model(symbols).flatten(0, 1), symbols.flip(1).flatten())
        decay = 1e-5 * lath.frobenius_decay(model)  # 4, if you like: weight decay on the product of the factors
        optimizer.zero_grad()
        (loss + decay).backward()
        optimizer.step()
        if i % 20 == 0 or i == steps - 1:
            print(f"step {i:3}: loss {loss.item():.3f}")

    file = io.BytesIO()  # stands for a path
    torch.save(model.state_dict(), file)
    file.seek(0)
    loaded = Reverser()
    lath.convert(loaded, lath.LowRank(ratio=0.25, init="fresh"), exclude="head")  # 5: the same shapes, then load
    loaded.load_state_dict(torch.load(file))

    dense = copy.deepcopy(loaded)
    lath.restore(dense)  # 6: plain nn.Linear again, for whoever does not have lath
    symbols = batch()
    with torch.inference_mode():
        right = (model(symbols).argmax(-1) == symbols.flip(1)).float().mean()
        print(f"symbols in the right place: {right:.1%}")
        print(f"after saving and loading, outputs differ by {(loaded(symbols) - model(symbols)).abs().max():.1e}")
        print(f"after restore, outputs differ by {(dense(symbols) - model(symbols)).abs().max():.1e}")


if __name__ == "__main__":
    main()
