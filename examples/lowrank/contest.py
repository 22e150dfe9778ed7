# SPDX-License-Identifier: Apache-2.0
"""Networks side by side: trained on the same batches in turns, then measured."""

from __future__ import annotations

import copy
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from count import inference_macs, training_macs
from data import FashionMNIST, Split
from lowrank.networks import IMAGE, Task, networks
from measure import EXACT_MEMORY, Workload, glance, peak_memory, time_in_turns
from torch import Tensor, nn
from tqdm import tqdm
from training import LAYOUTS, accuracy, adam, step

TURNS_PER_EPOCH = 20  # the networks take turns: so many batches each, then the next one


@dataclass
class Contestant:
    """A network in training, and what has been seen of it.

    Attributes:
        layout: of the images and of the weights of convolutions.
        seconds, losses: of each training step; a step is zero_grad, forward, loss, backward and the optimizer.
        curve: (seconds of training so far, test accuracy).
    """

    model: nn.Module
    layout: torch.memory_format
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    curve: list[tuple[float, float]] = field(default_factory=list)


# ---- training --------------------------------------------------------------------------------------------------------


def train(
    task: Task,
    models: dict[str, nn.Module],
    data: FashionMNIST,
    seed: int,
    tell: Callable[[str], None] = tqdm.write,
) -> dict[str, Contestant]:
    """Train all networks on the same batches. They take turns, so that a change of load meets them alike.

    ``tell`` gets a line after each epoch.
    """
    steps = task.images // task.batch
    contestants = {}
    for name, layout in training_layouts(task, models, data.train.first(task.batch)).items():
        model = models[name].to(memory_format=layout)
        optimizer = adam(model, task.rate)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, total_iters=steps * task.epochs)
        contestants[name] = Contestant(model, layout, optimizer, schedule)
    shuffle = torch.Generator().manual_seed(seed)
    with tqdm(total=len(models) * steps * task.epochs, desc="training", unit="step", disable=None) as bar:
        for epoch in range(task.epochs):
            batches = torch.randperm(task.images, generator=shuffle)[: steps * task.batch].split(task.batch)
            train_epoch(task, contestants, batches, data, bar)
            if epoch + 1 == task.epochs and task.glance < len(data.test):
                test(contestants.values(), data.test)
            now = {name: c.curve[-1] for name, c in contestants.items()}
            scores = "   ".join(f"{name} {score:.3f} ({seconds:.1f} s)" for name, (seconds, score) in now.items())
            tell(f"epoch {epoch + 1} of {task.epochs}: test accuracy (training time)   {scores}")
    return contestants


def training_layouts(task: Task, models: dict[str, nn.Module], split: Split) -> dict[str, torch.memory_format]:
    """The layout in which each network takes its steps in less time, found with copies; also warms everything up."""
    steps = {
        (name, layout): training_step(model, layout, split, task.rate)
        for name, model in models.items()
        for layout in task.layouts
    }
    seconds = glance(steps)
    return {name: min(task.layouts, key=lambda layout: seconds[name, layout]) for name in models}


def training_step(model: nn.Module, layout: torch.memory_format, split: Split, rate: float) -> Callable[[], Tensor]:
    """A call that trains a copy of the network for a step."""
    twin = copy.deepcopy(model).to(memory_format=layout)
    optimizer, images = adam(twin, rate), split.images.to(memory_format=layout)
    return lambda: step(twin, optimizer, images, split.labels)


def train_epoch(
    task: Task, contestants: dict[str, Contestant], batches: tuple[Tensor, ...], data: FashionMNIST, bar: tqdm
) -> None:
    length = -(-len(batches) // TURNS_PER_EPOCH)
    pause = -(-TURNS_PER_EPOCH // task.tests)
    order = list(contestants.values())
    for turn, start in enumerate(range(0, len(batches), length), start=1):
        mine = batches[start : start + length]
        for contestant in order:
            run_turn(contestant, mine, data.train)
            bar.update(len(mine))
        order.append(order.pop(0))
        if turn % pause == 0 or start + length >= len(batches):
            test(order, data.test.first(task.glance))
        losses = [statistics.fmean(c.losses[-50:]) for c in order]
        bar.set_postfix(loss=f"{min(losses):.3f} to {max(losses):.3f}")


def run_turn(contestant: Contestant, batches: Iterable[Tensor], split: Split) -> None:
    for chosen in batches:
        images, labels = split.images[chosen].to(memory_format=contestant.layout), split.labels[chosen]
        start = time.perf_counter()
        loss = step(contestant.model, contestant.optimizer, images, labels)
        contestant.seconds.append(time.perf_counter() - start)
        contestant.losses.append(loss.item())
        contestant.schedule.step()


def test(contestants: Iterable[Contestant], split: Split) -> None:
    """Add a point to each curve, or put it right if there was no training since the last one."""
    for contestant in contestants:
        trained = sum(contestant.seconds)
        if contestant.curve and contestant.curve[-1][0] == trained:
            contestant.curve.pop()
        contestant.curve.append((trained, accuracy(contestant.model, split, contestant.layout)))


# ---- measuring -------------------------------------------------------------------------------------------------------


def workloads(task: Task, contestants: dict[str, Contestant], data: FashionMNIST, seconds: float) -> list[Workload]:
    """Training as it went, then inference at several batch sizes, each network in its better layout."""
    found = [
        Workload(
            f"training, batch {task.batch}",
            {name: statistics.median(c.seconds) for name, c in contestants.items()},
            {name: training_macs(c.model, IMAGE) for name, c in contestants.items()},
            described(task, {name: c.layout for name, c in contestants.items()}),
        )
    ]
    macs = {name: inference_macs(c.model, IMAGE) for name, c in contestants.items()}
    models = {
        (name, layout): copy.deepcopy(c.model).to(memory_format=layout).eval()
        for name, c in contestants.items()
        for layout in task.layouts
    }
    for count in task.inference:
        images = data.test.images[:1].expand(count, -1, -1, -1).contiguous()
        with torch.inference_mode():
            taken = time_in_turns({key: inference(model, images, key[1]) for key, model in models.items()}, seconds)
        best = {name: min(task.layouts, key=lambda layout, name=name: taken[name, layout]) for name in contestants}
        medians = {name: taken[name, layout] for name, layout in best.items()}
        found.append(Workload(f"inference, batch {count}", medians, macs, described(task, best)))
    return found


def inference(model: nn.Module, images: Tensor, layout: torch.memory_format) -> Callable[[], Tensor]:
    images = images.to(memory_format=layout)
    return lambda: model(images)


def described(task: Task, layouts: dict[str, torch.memory_format]) -> dict[str, str]:
    """Names of the layouts, where there is a choice."""
    return {name: LAYOUTS[layout] for name, layout in layouts.items()} if len(task.layouts) > 1 else {}


def training_memory(command: list[str], contestant: Contestant) -> int | None:
    """Bytes that training one network takes beyond the libraries: weights, gradients, optimizer, activations, scratch.

    None where this machine does not tell. ``command`` runs :func:`print_training_memory` for this network, in a process
    of its own; the layout is added here.
    """
    command = [*command, f"--layout={LAYOUTS[contestant.layout]}"]
    done = subprocess.run(command, env={**os.environ, **EXACT_MEMORY}, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def print_training_memory(task: Task, name: str, layout: torch.memory_format) -> None:
    """What that process does: a few steps of one network on random images."""
    models, _ = networks(task, seed=0)
    model = models.pop(name)
    models.clear()
    split = Split(torch.randn(task.batch, *IMAGE[1:]), torch.zeros(task.batch, dtype=torch.int64))
    training_step(model, layout, split.first(2), task.rate)()  # loads code

    def run() -> None:
        train_step = training_step(model, layout, split, task.rate)
        for _ in range(3):
            train_step()

    print(json.dumps(peak_memory(run)))
