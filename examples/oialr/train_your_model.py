# SPDX-License-Identifier: Apache-2.0
"""OIALR in a training loop of your own: two lines, and the step gets faster while the model trains.

    python examples/oialr/train_your_model.py

The model is torch's transformer encoder, which learns to sort a sequence of symbols; no data set is needed. What
belongs to lath are the lines with a number. Everything else is a loop as it stands in any project: schedule, gradient
clipping, checkpoints.
"""

import io
import statistics
import time

import lath  # 1
import torch
from torch import Tensor, nn

SYMBOLS, LENGTH, WIDTH, HEADS, BLOCKS = 64, 16, 256, 4, 2
DELAY, FREQUENCY = 100, 20  # steps of dense training first; steps between two basis updates
CUTOFF = 0.3  # singular values below this share of the largest go


class Sorter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(SYMBOLS, WIDTH)
        self.position = nn.Parameter(torch.randn(LENGTH, WIDTH))
        block = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, BLOCKS, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, SYMBOLS)

    def forward(self, symbols: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(symbols) + self.position))


def batch(rows: int = 32) -> Tensor:
    return torch.randint(SYMBOLS, (rows, LENGTH))


def main(steps: int = 480, delay: int = DELAY, frequency: int = FREQUENCY) -> None:
    torch.manual_seed(0)
    model = Sorter()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    controller = lath.OIALRController(
        model, optimizer, delay, frequency, cutoff=CUTOFF, exclude="head"
    )  # 2: first line

    seconds = []
    for done in range(1, steps + 1):
        symbols = batch()
        begin = time.perf_counter()
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(symbols).flatten(0, 1), symbols.sort(1).values.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        controller.step()  # 3: second line, after the optimizer
        seconds.append(time.perf_counter() - begin)
        if done % (steps // min(steps, 12)) == 0:
            print(tell(done, loss, seconds, controller))
            seconds.clear()

    file = io.BytesIO()  # stands for a path
    torch.save({key: part.state_dict() for key, part in parts(model, optimizer, schedule, controller)}, file)
    file.seek(0)
    again = Sorter()
    optimizer = torch.optim.AdamW(again.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    controller = lath.OIALRController(again, optimizer, delay, frequency, cutoff=CUTOFF, exclude="head")
    saved = torch.load(file, weights_only=True)
    controller.load_state_dict(
        saved.pop("controller")
    )  # 4: first of all, since it gives the model its layers and ranks
    for key, part in parts(again, optimizer, schedule):
        part.load_state_dict(saved[key])

    symbols = batch()
    model.eval()
    again.eval()
    with torch.inference_mode():
        expected = model(symbols)
        print(f"symbols in the right place: {(expected.argmax(-1) == symbols.sort(1).values).float().mean():.1%}")
        print(f"after saving and loading, outputs differ by {(again(symbols) - expected).abs().max():.1e}")
        dense = Sorter().eval()
        dense.load_state_dict(lath.dense_state_dict(model))  # 5: a plain checkpoint, for whoever does not have lath
        print(f"as a dense model, outputs differ by {(dense(symbols) - expected).abs().max():.1e}")
        lath.freeze(model)  # 6: for inference: each core multiplied into a basis
        print(f"after freeze, outputs differ by {(model(symbols) - expected).abs().max():.1e}")


def parts(*several: object) -> list[tuple[str, object]]:
    return list(zip(("model", "optimizer", "schedule", "controller"), several, strict=False))


def tell(done: int, loss: Tensor, seconds: list[float], controller: lath.OIALRController) -> str:
    numbers, ranks = controller.numbers(), list(controller.ranks.values())
    state = f"ranks {min(ranks)} to {max(ranks)}" if ranks else "dense"
    return (
        f"step {done:3}: loss {loss.item():.3f}, {1e3 * statistics.median(seconds):5.1f} ms a step, "
        f"{numbers.trainable_share:4.0%} of the numbers train, {state}"
    )


if __name__ == "__main__":
    main()
