# SPDX-License-Identifier: Apache-2.0
"""Training and testing a classifier of images, as plainly as it goes."""

from __future__ import annotations

import torch
from data import Split
from torch import Tensor, nn

CONTIGUOUS, CHANNELS_LAST = torch.contiguous_format, torch.channels_last
LAYOUTS = {CONTIGUOUS: "contiguous", CHANNELS_LAST: "channels-last"}


def adam(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=rate, fused=True)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> Tensor:
    """One step of training: gradients cleared, forward, loss, backward, optimizer. Returns the loss."""
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    return loss.detach()


def accuracy(model: nn.Module, split: Split, layout: torch.memory_format = CONTIGUOUS, batch: int = 100) -> float:
    """Share of the images that get their own label, in evaluation mode; the mode is put back."""
    training = model.training
    model.eval()
    with torch.inference_mode():
        hits = sum(
            int((model(images.to(memory_format=layout)).argmax(1) == labels).sum())
            for images, labels in zip(split.images.split(batch), split.labels.split(batch), strict=True)
        )
    model.train(training)
    return hits / len(split)
