# SPDX-License-Identifier: Apache-2.0
"""A dense warm-up, then low-rank factors: one object beside the user's own training loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import Optimizer

from ..convert import Selection, convert
from ..decay import FrobeniusDecay
from ..report import Report
from ..specs import LowRank
from .candidates import candidates, weight_matrices
from .norms import insert_norms
from .stable_rank import Estimate, StableRank, estimates
from .swap import Layer, holds_any, swap
from .switches import AfterEpochs, AfterSteps, RankDetector, RankSwitch

_WHAT = "lath.WarmupThenFactor"


class WarmupThenFactor:
    """Trains a dense model for a while, then factors it and goes on with the factors.

    The scheme of Wang et al., "Pufferfish: Communication-efficient Models At No Extra Cost" (MLSys 2021), and
    "Cuttlefish: Low-rank Model Training without All The Tuning" (MLSys 2023), as a training loop would have it::

        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        warmup = lath.WarmupThenFactor(model, optimizer, lath.LowRank(ratio=0.25, conv="pointwise"), switch=80)
        for epoch in range(300):
            for x, target in batches:
                ...
                optimizer.step()
            warmup.epoch()          # at the end of each epoch; True when it has factored the model

    Until the switch nothing is written, neither to the model nor to the optimizer nor to torch's random numbers. At the
    switch the model is converted in place by ``lath.convert``, from the singular values of the trained weights, and the
    new parameters take the places of the old ones in the groups of the optimizer. Its state (momentum, moments, step
    counts) is dropped, as published.

    A scheduler of the learning rate goes on as it is, unless Frobenius decay adds a group (below). Where each process
    of a data-parallel run has its own object, all of them switch at the same time, because they see the same weights;
    hand over the module itself and wrap it anew when :meth:`epoch` returns True.

    Args:
        model: holds the dense layers.
        optimizer: of ``torch.optim``, with parameters of these layers.
        spec: ranks and form: a ``lath.LowRank``, or a ``lath.StableRank`` for those that Cuttlefish estimates.
        switch: an int or ``lath.AfterEpochs``, ``lath.AfterSteps``, or ``lath.RankSwitch``.
        include: as for ``lath.convert``.
        exclude: as for ``lath.convert``; these layers stay dense, which makes the network a hybrid one.
        norms: put a batch norm between the factors of convolutions, see ``lath.nn.LowRankConv2dNorm``.
        frobenius_decay: coefficient of Frobenius decay of the factors, which ``optimizer.step()`` then adds by itself
            (see ``lath.FrobeniusDecay``, convention "half"); it takes the place of weight decay on them, so that the
            factors of a group with weight decay move to a new group at the end. Schedulers count groups: make a new one
            in ``on_switch``. Not together with ``norms``, whose scale would undo it.
        lr_factor: what the learning rates of all groups are multiplied with at the switch; 1/3 for transformers in
            Cuttlefish. A scheduler that computes each rate from the first one, like LambdaLR, does not know of it: make
            a new one in ``on_switch``.
        keep_state: keep the optimizer's state of the parameters that stay.
        steps_per_epoch: count an epoch every so many calls of :meth:`step`, instead of calls of :meth:`epoch`.
        on_switch: called with this object after the switch, to make a scheduler, say.

    Attributes:
        epochs, steps: that have gone by.
        switched: whether the model is factored.
        report: of the conversion, or None before it.
        detector: of a ``lath.RankSwitch``, or None: the ranks so far, and which layers have settled.
        decay: the ``lath.FrobeniusDecay`` after the switch, or None.

    Raises:
        TypeError: an argument of a wrong type, or a wrapped model.
        ValueError: no layer to factor; a ratio that gives a layer rank 0; an optimizer that holds no parameter of the
            layers; norms together with Frobenius decay or an inner bias; a number outside of its range. All of this is
            found at construction, before the warm-up.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        spec: LowRank | StableRank,
        switch: int | AfterEpochs | AfterSteps | RankSwitch,
        *,
        include: Selection = None,
        exclude: Selection = None,
        norms: bool = False,
        frobenius_decay: float = 0.0,
        lr_factor: float = 1.0,
        keep_state: bool = False,
        steps_per_epoch: int | None = None,
        on_switch: Callable[[WarmupThenFactor], object] | None = None,
    ) -> None:
        self.switch = AfterEpochs(switch) if isinstance(switch, int) else switch
        _check(model, optimizer, spec, self.switch)
        _check_options(spec, norms, frobenius_decay, lr_factor, steps_per_epoch)
        self.model, self.optimizer, self.spec = model, optimizer, spec
        self.include, self.exclude = include, exclude
        self.norms, self.frobenius_decay, self.lr_factor = norms, frobenius_decay, lr_factor
        self.keep_state, self.steps_per_epoch, self.on_switch = keep_state, steps_per_epoch, on_switch
        self.epochs, self.steps, self.switched = 0, 0, False
        self.report: Report | None = None
        self.decay: FrobeniusDecay | None = None
        self._factored_as: LowRank | None = None

        self._sites = candidates(model, spec, include, exclude, _WHAT)
        if isinstance(spec, LowRank):
            _check_ranks(self._sites, spec)
        if not holds_any(optimizer, self._layers()):
            names = ", ".join(site.name for site in self._sites[:5])
            raise ValueError(f"{_WHAT}: the optimizer holds no parameter of the layers to factor: {names}")
        watched = isinstance(self.switch, RankSwitch)
        self._start = self._estimate() if watched or isinstance(spec, StableRank) else {}
        self.detector = RankDetector.of(self.switch, self._start) if watched else None
        if self.detector is not None:
            self.detector.observe(_stable(self._start))
        if self._is_due():
            self._factor(self._resolved())

    def step(self) -> bool:
        """Once per training step, after ``optimizer.step()``; True when it has factored the model."""
        self.steps += 1
        if self.steps_per_epoch is not None and self.steps % self.steps_per_epoch == 0:
            return self._end_of_epoch()
        return self._switch_if_due()

    def epoch(self) -> bool:
        """Once per epoch, at its end; True when it has factored the model.

        Raises:
            RuntimeError: ``steps_per_epoch`` is given, so that :meth:`step` counts the epochs.
        """
        if self.steps_per_epoch is not None:
            given = f"steps_per_epoch is {self.steps_per_epoch}"
            raise RuntimeError(f"{_WHAT}.epoch: {given}, expected None; step() counts the epochs")
        return self._end_of_epoch()

    def ranks(self) -> dict[str, int]:
        """Those of a ``lath.StableRank`` for the weights as they are; empty for other specs and after the switch."""
        if self.switched or not isinstance(self.spec, StableRank):
            return {}
        now = self._estimate()
        return {name: self.spec.rank(now[name], self._start[name]) for name in now}

    # ---- resuming ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What it takes to go on: plain values, small."""
        return {
            "epochs": self.epochs,
            "steps": self.steps,
            "switched": self.switched,
            "start": {name: asdict(estimate) for name, estimate in self._start.items()},
            "detector": None if self.detector is None else self.detector.state_dict(),
            "spec": None if self._factored_as is None else asdict(self._factored_as),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state`` was; call it before ``load_state_dict`` of the model and of the optimizer.

        After a switch the model gets layers of the same ranks first, whose values then come from its own state; the
        groups of the optimizer change with it, and ``on_switch`` is called.

        Raises:
            RuntimeError: the state is from before the switch, and the model is factored already.
            ValueError: it is of other layers.
        """
        if self.switched and not state["switched"]:
            raise RuntimeError(f"{_WHAT}.load_state_dict: the state is of a dense model, this one is factored already")
        if self.detector is not None and state["detector"] is not None:
            self.detector.load_state_dict(state["detector"])
        self.epochs, self.steps = state["epochs"], state["steps"]
        self._start = {name: Estimate(**values) for name, values in state["start"].items()}
        if state["switched"] and not self.switched:
            self._factor(replace(LowRank(**state["spec"]), init="fresh"))

    # ---- inside -----------------------------------------------------------------------------------------------------

    def _layers(self) -> list[Layer]:
        return [Layer.of(site.name, site.module) for site in self._sites]

    def _estimate(self) -> dict[str, Estimate]:
        conv = self.spec.conv
        return estimates(self._sites, conv)

    def _end_of_epoch(self) -> bool:
        self.epochs += 1
        if self._switch_if_due():
            return True
        if self.detector is not None and not self.switched:
            self.detector.observe(_stable(self._estimate()))
        return False

    def _is_due(self) -> bool:
        if isinstance(self.switch, AfterEpochs):
            return self.epochs >= self.switch.epochs
        if isinstance(self.switch, AfterSteps):
            return self.steps >= self.switch.steps
        return self.detector.done and self.epochs > max(self.detector.settled.values())

    def _switch_if_due(self) -> bool:
        if self.switched or not self._is_due():
            return False
        self._factor(self._resolved())
        return True

    def _resolved(self) -> LowRank:
        """The spec for ``lath.convert``."""
        return self.spec.low_rank(self.ranks()) if isinstance(self.spec, StableRank) else self.spec

    def _factor(self, spec: LowRank) -> None:
        layers = self._layers()
        self.report = convert(self.model, spec, self.include, self.exclude)
        done = {row.name: row.rank for row in self.report if row.reason is None}
        layers = [layer for layer in layers if layer.name in done]
        if self.norms:
            insert_norms(self.model, set(done))
        swap(self.optimizer, layers, self.model, self.keep_state, self.frobenius_decay > 0.0)
        for group in self.optimizer.param_groups:
            for key in ("lr", "initial_lr"):
                if key in group:
                    group[key] *= self.lr_factor
        if self.frobenius_decay > 0.0:
            self._start_decay()
        # For resuming: the same energy would give weights that have changed other ranks.
        self._factored_as = replace(spec, energy=None, rank=done) if spec.energy is not None else spec
        self._sites, self.switched = [], True
        if self.on_switch is not None:
            self.on_switch(self)

    def _start_decay(self) -> None:
        self.decay = FrobeniusDecay(self.model, self.frobenius_decay)

        def add(optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
            # A fused optimizer divides gradients by the scale of the GradScaler itself, ours with them.
            scale = getattr(optimizer, "grad_scale", None)
            self.decay.coefficient = self.frobenius_decay * (1.0 if scale is None else float(scale))
            self.decay.step()

        self.optimizer.register_step_pre_hook(add)


def _stable(found: Mapping[str, Estimate]) -> dict[str, int]:
    return {name: estimate.stable for name, estimate in found.items()}


def _check(model: object, optimizer: object, spec: object, switch: object) -> None:
    if isinstance(model, (DistributedDataParallel, DataParallel)):
        kind = type(model).__name__
        raise TypeError(f"{_WHAT}: model is wrapped in {kind}, expected the module inside; wrap it anew at the switch")
    kinds = (
        ("model", model, nn.Module, "torch.nn.Module"),
        ("optimizer", optimizer, Optimizer, "torch.optim.Optimizer"),
        ("spec", spec, (LowRank, StableRank), "lath.LowRank or lath.StableRank"),
        ("switch", switch, (AfterEpochs, AfterSteps, RankSwitch), "an int, AfterEpochs, AfterSteps or RankSwitch"),
    )
    for name, value, kind, expected in kinds:
        if not isinstance(value, kind):
            raise TypeError(f"{_WHAT}: {name} is {type(value).__name__}, expected {expected}")


def _check_options(spec, norms: object, frobenius_decay: float, lr_factor: float, steps_per_epoch: object) -> None:
    if not 0.0 <= frobenius_decay < math.inf:
        raise ValueError(f"{_WHAT}: frobenius_decay is {frobenius_decay!r}, expected a finite number >= 0")
    if not 0.0 < lr_factor < math.inf:
        raise ValueError(f"{_WHAT}: lr_factor is {lr_factor!r}, expected a finite number above 0")
    if norms and frobenius_decay:
        raise ValueError(f"{_WHAT}: got norms and frobenius_decay {frobenius_decay}, expected one of them")
    if norms and spec.inner_bias:
        raise ValueError(f"{_WHAT}: got norms and a spec with inner_bias, expected one of them")
    if steps_per_epoch is not None:
        if isinstance(steps_per_epoch, bool) or not isinstance(steps_per_epoch, int):
            raise TypeError(f"{_WHAT}: steps_per_epoch is {steps_per_epoch!r}, expected an int or None")
        if steps_per_epoch < 1:
            raise ValueError(f"{_WHAT}: steps_per_epoch is {steps_per_epoch}, expected 1 or more")


def _check_ranks(sites, spec: LowRank) -> None:
    """What ``lath.convert`` would raise at the switch, when it is too late: a ratio that leaves a layer no rank."""
    if spec.ratio is None:
        return
    for site in sites:
        for matrix in weight_matrices(site.module, spec.conv):
            spec.rank_for(site.name, matrix.shape[-1], matrix.shape[-2], lambda: None)
