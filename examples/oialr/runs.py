# SPDX-License-Identifier: Apache-2.0
"""One network trained three ways: dense, with OIALR, and low-rank from the start at the ranks that OIALR found."""

from __future__ import annotations

import copy
import json
import math
import os
import statistics
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain

import lath
import torch
from classifiers import IMAGE
from count import training_macs
from data import FashionMNIST, Split
from measure import EXACT_MEMORY, peak_memory, time_in_turns
from oialr.networks import Network
from torch import Tensor, nn
from tqdm import tqdm
from training import accuracy, step

DENSE, OIALR, LOW_RANK = VARIANTS = ("dense", "OIALR", "low-rank")
BLOCKS, DENSE_BLOCKS = 30, 5  # of a training; after each, a look, and in OIALR a basis update
RISE = 0.05  # share of the steps in which the learning rate rises
FIRST, LOWEST = 0.1, 0.01  # where it begins and ends, as a share of the highest


@dataclass(frozen=True)
class Plan:
    """How long training takes, and where it is looked at.

    Attributes:
        images: training images, the first ones.
        steps: in all.
        block: steps between two looks, and between two basis updates.
        glance: test images of a look, the first ones.
    """

    images: int
    steps: int
    block: int
    glance: int

    @classmethod
    def of(cls, network: Network, images: int, glance: int) -> Plan:
        steps = network.epochs * (images // network.batch)
        return cls(images, steps, max(1, steps // BLOCKS), glance)

    def looks_after(self, done: int) -> bool:
        """The last look may come after a longer block."""
        return done == self.steps or (done % self.block == 0 and self.steps - done >= self.block)

    @property
    def delay(self) -> int:
        """Steps of dense training before OIALR begins."""
        return min(DENSE_BLOCKS, self.steps // self.block - 1) * self.block


@dataclass(frozen=True)
class Look:
    """What is seen at a moment of training.

    Attributes:
        step: so many are done.
        seconds: spent in them so far, basis updates included.
        milliseconds: of a step, median of those since the last look.
        accuracy: on the first test images.
        trainable: numbers that the optimizer changes.
        stored: numbers in parameters and frozen bases.
        held: bytes of weights, gradients and the state of the optimizer, as their memory was taken.
        ranks: of the weights by layer; empty while the network is dense.
    """

    step: int
    seconds: float
    milliseconds: float
    accuracy: float
    trainable: int
    stored: int
    held: int
    ranks: dict[str, int]


@dataclass(frozen=True)
class Outcome:
    """What came of a network trained one way.

    Attributes:
        looks: over the training.
        accuracy: on all test images, at its end.
        macs: multiply-adds of a step with the weights at its end, for one image.
        milliseconds: of a step of the trained network, the three of them in turns.
        updates: milliseconds of each basis update.
        peak: bytes of memory of training at the final ranks, None where it was not measured.
        full_peak: the same for OIALR right after the conversion, at full rank.
    """

    looks: list[Look]
    accuracy: float
    macs: int
    milliseconds: float
    updates: list[float]
    peak: int | None
    full_peak: int | None


@dataclass
class Trained:
    """A network in training."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    controller: lath.OIALRController | None = None
    seconds: list[float] = field(default_factory=list)
    updates: list[float] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)


# ---- training --------------------------------------------------------------------------------------------------------


def train(network: Network, plan: Plan, data: FashionMNIST, seed: int) -> dict[str, Trained]:
    """Train all three from the same weights on the same batches.

    The dense network and OIALR take turns, step by step, so that a change of load meets them alike. The low-rank one
    has to wait until the ranks are known.
    """
    torch.manual_seed(seed)
    dense = network.build()
    runs = {name: start(network, plan, copy.deepcopy(dense), adaptive=name == OIALR) for name in (DENSE, OIALR)}
    take_turns(network, plan, list(runs.values()), data, seed, f"{network.name}, seed {seed}: {DENSE}, {OIALR}")
    thin = low_rank(dense, runs[OIALR].looks[-1].ranks)
    runs[LOW_RANK] = start(network, plan, thin)
    take_turns(network, plan, [runs[LOW_RANK]], data, seed, f"{network.name}, seed {seed}: {LOW_RANK}")
    return runs


def start(network: Network, plan: Plan, model: nn.Module, adaptive: bool = False) -> Trained:
    optimizer = torch.optim.AdamW(model.parameters(), network.rate, weight_decay=network.weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: rate(done / plan.steps))
    controller = None
    if adaptive:
        controller = lath.OIALRController(
            model,
            optimizer,
            delay=plan.delay,
            frequency=plan.block,
            cutoff=network.cutoff,
            keep_first=network.keep_first,
            keep_last=False,  # the heads are too narrow to be converted; the layer before them is not
        )
    return Trained(model.train(), optimizer, schedule, controller)


def rate(done: float) -> float:
    """The learning rate after this share of the training, as a share of the highest: a short rise, then a cosine."""
    if done < RISE:
        return FIRST + (1 - FIRST) * done / RISE
    rest = min(1.0, (done - RISE) / (1 - RISE))
    return LOWEST + (1 - LOWEST) * (1 + math.cos(math.pi * rest)) / 2


def low_rank(dense: nn.Module, ranks: Mapping[str, int]) -> nn.Module:
    """A copy with two factors in the place of each weight that has a rank and gets smaller by it."""
    thin = copy.deepcopy(dense)
    lath.convert(thin, lath.LowRank(rank=ranks, conv="pointwise"))
    return thin


def take_turns(network: Network, plan: Plan, runs: list[Trained], data: FashionMNIST, seed: int, title: str) -> None:
    batches = endless(plan.images, network.batch, seed)
    for done in tqdm(range(1, plan.steps + 1), desc=title, leave=False, disable=None):
        chosen = next(batches)
        images, labels = data.train.images[chosen], data.train.labels[chosen]
        for run in runs if done % 2 else reversed(runs):
            one_step(run, images, labels)
        if plan.looks_after(done):
            for run in runs:
                run.looks.append(look(run, data.test.first(plan.glance)))


def endless(images: int, batch: int, seed: int) -> Iterator[Tensor]:
    """Batches of indices; in each pass every image at most once."""
    shuffle = torch.Generator().manual_seed(seed)
    whole = images - images % batch
    while True:
        yield from torch.randperm(images, generator=shuffle)[:whole].split(batch)


def one_step(run: Trained, images: Tensor, labels: Tensor) -> None:
    """A step and its seconds; those of a basis update are kept apart, lest they hide in a median."""
    begin = time.perf_counter()
    step(run.model, run.optimizer, images, labels)
    run.schedule.step()
    end = time.perf_counter()
    run.seconds.append(end - begin)
    if run.controller is not None:
        run.controller.step()
        if is_update(run.controller):
            run.updates.append(time.perf_counter() - end)


def is_update(controller: lath.OIALRController) -> bool:
    """Whether the last step converted the model or updated its bases."""
    since = controller.steps - controller.delay
    return since >= 0 and since % controller.frequency == 0


def look(run: Trained, test: Split) -> Look:
    before = run.looks[-1].step if run.looks else 0
    parameters = list(run.model.parameters())
    return Look(
        len(run.seconds),
        sum(run.seconds) + sum(run.updates),
        1e3 * statistics.median(run.seconds[before:]),
        accuracy(run.model, test),
        sum(p.numel() for p in parameters if p.requires_grad),
        sum(p.numel() for p in parameters) + sum(t.numel() for t in bases(run.model)),
        held(run.model, run.optimizer),
        ranks(run.model),
    )


def ranks(model: nn.Module) -> dict[str, int]:
    """Of the layers that have one, by name."""
    return {name: m.rank for name, m in model.named_modules() if isinstance(getattr(m, "rank", None), int)}


def bases(model: nn.Module) -> list[Tensor]:
    """The frozen factors of OIALR layers."""
    return [t for core in lath.oialr_cores(model).values() for t in (core.u, core.vh)]


def held(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Bytes of memory behind the weights, buffers, gradients and optimizer state between two steps."""
    parameters = list(model.parameters())
    state = (t for values in optimizer.state.values() for t in values.values() if isinstance(t, Tensor))
    storages = (t.untyped_storage() for t in chain(parameters, model.buffers(), state))
    gradients = sum(p.nbytes for p in parameters if p.requires_grad)
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values()) + gradients


# ---- what came of it -------------------------------------------------------------------------------------------------


def outcomes(
    network: Network, runs: Mapping[str, Trained], data: FashionMNIST, seconds: float, command: Iterable[str] | None
) -> dict[str, Outcome]:
    """``command`` runs :func:`print_training_memory` in a process of its own; None where that is not asked for."""
    times = step_times(network, runs, data.train.first(network.batch), seconds)
    found = runs[OIALR].looks[-1].ranks
    return {
        name: Outcome(
            run.looks,
            accuracy(run.model, data.test),
            training_macs(run.model, IMAGE),
            1e3 * times[name],
            [1e3 * taken for taken in run.updates],
            training_memory(command, name, found) if command else None,
            training_memory(command, OIALR, {}) if command and name == OIALR else None,
        )
        for name, run in runs.items()
    }


def step_times(network: Network, runs: Mapping[str, Trained], batch: Split, seconds: float) -> dict[str, float]:
    """Seconds of a training step of the networks as they are now, in turns; taken on copies."""
    steps = {name: training_step(network, run.model, batch) for name, run in runs.items()}
    return time_in_turns(steps, seconds)


def training_step(network: Network, model: nn.Module, batch: Split):
    """A call that is a step of a copy, at a learning rate of 0, so that it can be repeated without end."""
    twin = copy.deepcopy(model).train()
    optimizer = torch.optim.AdamW(twin.parameters(), 0.0, weight_decay=network.weight_decay, fused=True)
    return lambda: step(twin, optimizer, batch.images, batch.labels)


def training_memory(command: Iterable[str], variant: str, found: Mapping[str, int]) -> int | None:
    """Bytes that training takes beyond the libraries: weights, gradients, optimizer, activations, scratch.

    None where this machine does not tell.
    """
    done = subprocess.run(
        [*command, f"--variant={variant}"],
        input=json.dumps(found),
        env={**os.environ, **EXACT_MEMORY},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def print_training_memory(network: Network, variant: str, found: Mapping[str, int]) -> None:
    """What that process does: a few steps on random images, at these ranks; for OIALR with none, at full ranks."""
    torch.manual_seed(0)
    model = network.build()
    if variant == LOW_RANK:
        model = low_rank(model, found)
    elif variant == OIALR:
        lath.convert(model, lath.OIALR(keep_first=network.keep_first, keep_last=False))
        cut(model, found)
    batch = Split(torch.randn(network.batch, *IMAGE[1:]), torch.zeros(network.batch, dtype=torch.int64))
    training_step(network, model, batch.first(2))()  # loads code

    def run() -> None:
        train_step = training_step(network, model, batch)
        for _ in range(3):
            train_step()

    print(json.dumps(peak_memory(run)))


def cut(model: nn.Module, found: Mapping[str, int]) -> None:
    """Give OIALR layers smaller ranks."""
    for name, rank in found.items():
        (core,) = model.get_submodule(name).cores()
        core.replace_(core.u[:, :rank], core.s.detach()[:rank, :rank], core.vh[:rank])
