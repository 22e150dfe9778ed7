# SPDX-License-Identifier: Apache-2.0
"""Models and loops that the tests of OIALR training share."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

F64 = torch.float64


def mlp(*sizes: int, dtype=F64, seed: int = 0) -> nn.Sequential:
    """Linear layers "0", "2", "4", ... of these sizes, tanh between them."""
    torch.manual_seed(seed)
    layers = [nn.Linear(n, m, dtype=dtype) for n, m in pairwise(sizes)]
    parts = [part for layer in layers for part in (layer, nn.Tanh())]
    return nn.Sequential(*parts[:-1])


def batches(count: int, rows: int, features: int, targets: int, dtype=F64, seed: int = 1):
    """Pairs of x and y that a network can learn something of."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(features, targets, generator=generator, dtype=F64)
    for _ in range(count):
        x = torch.randn(rows, features, generator=generator, dtype=F64)
        yield x.to(dtype), torch.sin(x @ truth).to(dtype)


def train(model, optimizer, data, controller=None, after=None) -> list[float]:
    """The losses; ``after(step)`` is called at the end of each step, counted from 1."""
    losses = []
    for step, (x, y) in enumerate(data, 1):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        if controller is not None:
            controller.step()
        losses.append(loss.item())
        if after is not None:
            after(step)
    return losses


def with_spectrum(layer: nn.Module, sigma) -> None:
    """Give a dense layer these singular values."""
    with torch.no_grad():
        matrix = layer.weight.flatten(1)
        u, _, vh = torch.linalg.svd(torch.randn_like(matrix), full_matrices=False)
        sigma = torch.as_tensor(sigma, dtype=matrix.dtype)
        layer.weight.copy_((u[:, : len(sigma)] * sigma @ vh[: len(sigma)]).reshape(layer.weight.shape))


def idle(controller, steps: int = 1) -> list[bool]:
    """Steps of a loop in which nothing trains."""
    return [controller.step() for _ in range(steps)]
