# SPDX-License-Identifier: Apache-2.0
"""OIALR training: when a model becomes low-rank, when its bases turn, and how its ranks fall.

The method of Coquelin et al., "Harnessing Orthogonality to Train Low-Rank Neural Networks", arXiv 2401.08505: dense
training until the bases of the weights have settled, then training of the cores alone, with basis updates now and then.
What differs from its reference package by default, and can be had back with ``compat``, is in docs/oialr.md.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import Module, Parameter
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from . import _cores, _oialr, basis, optimizer_state, ranks
from ._cores import Weight
from ._crew import Crew, flat, unflat
from ._numbers import Numbers
from ._policy import RankPolicy, count, number, positive, share
from ._settling import Settling
from .basis import Spectrum, Update
from .convert import Selection, _check_model, _selector
from .specs import OIALR

COMPAT = ("moments", "growth", "skips", "wide_convolutions")
_MEND_EVERY = 100  # updates of a weight between two times that its bases are made orthonormal
_WHAT = "lath.OIALRController"
_SAVED = {"layer", "rank", "size", "skips", "since", "stability"}  # of each weight


class OIALRController:
    """Makes the training of a model that of OIALR.

    Two lines in a training loop that stays as it is otherwise::

        controller = lath.OIALRController(model, optimizer, delay=1000, frequency=100)
        for x, y in loader:
            optimizer.zero_grad()
            loss_function(model(x), y).backward()
            optimizer.step()
            scheduler.step()
            controller.step()

    * The first ``delay`` steps train the dense model and are bit for bit what they are without the controller.
    * Then ``lath.convert`` makes the layers low-rank, and the optimizer gets each core in the place of its weight, in
      the same group, with its state in the new coordinates. Biases, norms and all other parameters go on as they are.
    * At once, and then every ``frequency`` steps, the bases of some layers, the last ones first and more of them each
      time, turn to where their core is diagonal. Singular values below the cutoff go, and memory with them.

    Gradients are dropped where a core changes, so the step belongs where they have been used. Schedulers, gradient
    scaling, clipping and accumulation need nothing. Validation does not count, because it makes no step.

    Args:
        model: with layers that ``lath.convert`` can replace. A DistributedDataParallel around it is looked through, see
            :meth:`rewrap`.
        optimizer: of the model's parameters; one of ``torch.optim`` or a subclass (for others see
            ``lath.optimizer_state.register``), but not LBFGS; or several.
        delay: steps before the conversion.
        frequency: steps between updates.
        cutoff: singular values below this share of the largest go; a number, or a mapping of globs over layer names.
            For all rules: no update takes more than half of a rank, or goes below 1 % of the smaller side.
        energy: instead of the cutoff: keep this share of the sum of squares; a number or a mapping.
        stable_rank: instead of the cutoff: keep this multiple of the stable rank; a number or a mapping.
        target: instead of the cutoff: ranks at which the converted weights have this share of their dense numbers, the
            same energy in all.
        max_rank, min_rank: bounds, or mappings of globs; the first one also against the guard of half the rank.
        multiple: ranks are rounded up to multiples of it, for kernels, and so that ``torch.compile`` sees few.
        growth: directions that an update adds to a weight of which the rule would take none.
        rank_ratio, keep_first, keep_last, aspect: of the conversion, see ``lath.OIALR``.
        include, exclude: as for ``lath.convert``.
        warmup: False converts at once, and the first update is after ``delay`` steps; a model that is converted already
            is then taken as it is.
        warmup_stability: convert when the bases of the dense weights have settled: from step ``delay`` on they are
            looked at every ``frequency`` steps, until the mean of their stabilities since the look before is at least
            this. A resumed run begins with a first look again.
        fixed_rank: convert, and leave bases and ranks alone afterwards.
        layer_share: how many layers join at each update, as a share of all.
        skip_updates: how many updates a layer is left out of after each of its own.
        shrink: False fills with zeros what would be cut, so that no shape changes and nothing is saved.
        stability: leave a basis as it is in an update while it has turned less than this since it was last changed: the
            cosine of ``lath.basis.stability``, for example 0.999. None updates always.
        second_moment: what becomes of squares of gradients in the optimizer: "project", "reset" or "keep", see
            ``lath.optimizer_state``.
        distributed_updates: where torch.distributed is in use, each process decomposes its part of the weights and
            broadcasts it. False: every process does all of them and nothing is sent.
        process_group: of those processes; None for all.
        compat: rules of the reference package: any of "moments" (zeros in the optimizer at conversion, not rotated at
            updates), "growth" (of the layers, truncated; of ten layers and fewer all at once), "skips" (one fewer) and
            "wide_convolutions" (see ``lath.OIALR``); or "reference" for all of them.

    Raises:
        TypeError: an argument of a wrong type; an optimizer that cannot follow a change of its parameters.
        ValueError: a value out of range; ``delay=0`` without ``warmup=False``; a model that is converted already; an
            optimizer that holds no weight of the model.
        RuntimeError: at conversion: an optimizer that does not hold a weight that trains; nothing to convert. The model
            is as it was then.
    """

    def __init__(
        self,
        model: Module,
        optimizer: Optimizer | Iterable[Optimizer],
        delay: int = 1000,
        frequency: int = 100,
        *,
        cutoff: float | Mapping[str, float] = 0.1,
        energy: float | Mapping[str, float] | None = None,
        stable_rank: float | Mapping[str, float] | None = None,
        target: float | None = None,
        max_rank: int | Mapping[str, int] | None = None,
        min_rank: int | Mapping[str, int] | None = None,
        multiple: int = 1,
        growth: int = 0,
        rank_ratio: float = 1.0,
        keep_first: bool = False,
        keep_last: bool = True,
        aspect: float = 10,
        include: Selection = None,
        exclude: Selection = None,
        warmup: bool = True,
        warmup_stability: float | None = None,
        fixed_rank: bool = False,
        layer_share: float = 0.1,
        skip_updates: int = 0,
        shrink: bool = True,
        stability: float | None = None,
        second_moment: str = "project",
        distributed_updates: bool = True,
        process_group: distributed.ProcessGroup | None = None,
        compat: str | Iterable[str] = (),
    ) -> None:
        if not isinstance(model, Module):
            raise TypeError(f"{_WHAT}: model is {type(model).__name__}, expected torch.nn.Module")
        self.optimizers = _optimizers(optimizer)
        self.delay, self.frequency = count(f"{_WHAT}: delay", delay, 0), count(f"{_WHAT}: frequency", frequency, 1)
        self.policy = RankPolicy(cutoff, energy, stable_rank, target, max_rank, min_rank, multiple, growth)
        self.fixed_rank, self.shrink = bool(fixed_rank), bool(shrink)
        self.layer_share = share(f"{_WHAT}: layer_share", layer_share)
        self.skip_updates = count(f"{_WHAT}: skip_updates", skip_updates, 0)
        self.stability = None if stability is None else number(f"{_WHAT}: stability", stability)
        if warmup_stability is not None:
            number(f"{_WHAT}: warmup_stability", warmup_stability)
        self.warmup_stability = warmup_stability
        if second_moment not in optimizer_state.SECOND_MOMENTS:
            expected = optimizer_state.SECOND_MOMENTS
            raise ValueError(f"{_WHAT}: second_moment is {second_moment!r}, expected one of {expected}")
        self.second_moment = second_moment
        self.compat = _compat(compat)
        self._spec = OIALR(
            rank_ratio, keep_first, keep_last, aspect, wide_convolutions="wide_convolutions" in self.compat
        )
        self._include, self._exclude = _selector(include, "include"), _selector(exclude, "exclude")
        self._split, self._group = bool(distributed_updates), process_group
        self._wrapper: DistributedDataParallel | None = None
        self._stale = False
        self._model = self._unwrapped(model)
        self._settling = Settling(self._model, self._spec, self._is_selected)
        self._dense_stabilities: dict[str, float] = {}

        self._weights: list[Weight] = []
        self._step = self._updates = 0
        self._next = self.delay
        self._changed = False
        self._begin(bool(warmup))
        self._changed = False

    def _begin(self, warmup: bool) -> None:
        present = _cores.weights(self._model)
        if warmup:
            if present:
                raise ValueError(
                    f"{_WHAT}: the model has OIALR layers already ({present[0].key}); to train them from where they "
                    "are, give warmup=False"
                )
            if self.delay == 0:
                raise ValueError(
                    f"{_WHAT}: delay is 0, which leaves no dense warm-up; give warmup=False to start without one"
                )
            _check_model(self._model, "OIALRController", _oialr.FORMS)
            _check_held(self._model, self.optimizers)
            return
        if present:
            _cores.check_held(present, self.optimizers)
            self._weights = present
        else:
            _check_model(self._model, "OIALRController", _oialr.FORMS)
            _check_held(self._model, self.optimizers)
            self.convert()
        if self.delay == 0:
            self._advance()

    # ---- what the user sees -----------------------------------------------------------------------------------------

    @property
    def model(self) -> Module:
        """The model, without a DistributedDataParallel around it."""
        return self._model

    @property
    def converted(self) -> bool:
        return bool(self._weights)

    @property
    def ranks(self) -> dict[str, int]:
        """Of each converted weight, by name; with ``shrink=False`` the rank in use."""
        return {weight.key: weight.rank for weight in self._weights}

    @property
    def stabilities(self) -> dict[str, float]:
        """What was measured at the last update of each weight; before the conversion, at the last look at it."""
        measured = {w.key: w.stability for w in self._weights if w.stability is not None}
        return measured or dict(self._dense_stabilities)

    @property
    def steps(self) -> int:
        """How often :meth:`step` has been called."""
        return self._step

    def step(self) -> bool:
        """To be called once for each training step, after that of the optimizer.

        Returns:
            Whether parameters have been replaced, or have another size, since the last call: what was built on the old
            ones, a DistributedDataParallel or a CUDA graph, has to be built anew.
        """
        self._step += 1
        try:
            if self._step >= self._next:
                self._advance()
        except BaseException:
            self._step -= 1
            raise
        changed, self._changed = self._changed, False
        return changed

    def convert(self) -> None:
        """Convert the model now, without waiting for the delay.

        Raises:
            RuntimeError: it is converted already; an optimizer does not hold a weight that trains; nothing to convert.
        """
        present = self._weights or _cores.weights(self._model)
        if present:
            raise RuntimeError(f"{_WHAT}: the model is converted already; it has OIALR layers ({present[0].key})")
        broken = set(_cores.not_finite(self._model))
        if broken:
            self._warn(f"{', '.join(sorted(broken))}: NaN or infinity in the weight; the layer stays dense")

        def excluded(name: str, module: Module) -> bool:
            return name in broken or (self._exclude is not None and self._exclude(name, module))

        arguments = self._model, self._spec, self._include, excluded, self.optimizers
        self._weights = _cores.converted(*arguments, self._hand_over, self._synchronize)
        self._settling.forget()
        self._parameters_changed()

    def update(self) -> bool:
        """Update the bases of the layers whose turn it is, now; whether a parameter has another size.

        A core that is not finite, or that cannot be decomposed, stays as it is until the next update, with a warning
        that names it.

        Raises:
            RuntimeError: the model is not converted yet, or its OIALR layers are others than they were.
        """
        if not self._weights:
            raise RuntimeError(f"{_WHAT}: the model is not converted yet, so there are no bases to update")
        self._look_again()
        due = self._due()
        changed = self._turn(due, lambda spectra: self.policy.choose(self._weights, spectra))
        self._updates += 1
        for weight in self._weights:
            weight.skips = max(0, weight.skips - 1)
        for weight in due:
            weight.skips = max(0, self.skip_updates - ("skips" in self.compat))
        if changed:
            self._parameters_changed()
        return changed

    def set_optimizer(self, optimizer: Optimizer | Iterable[Optimizer]) -> None:
        """Go on with another optimizer of the model's present parameters.

        Raises:
            TypeError, ValueError, RuntimeError: as at construction and conversion.
        """
        several = _optimizers(optimizer)
        if self._weights:
            _cores.check_held(self._weights, several)
        else:
            _check_held(self._model, several)
        self.optimizers = several

    def blur(self, width: float = 1.0, include: Selection = None) -> None:
        """Mix neighbouring singular values: cores become the upper triangle of ``diag(sigma) K``, ``basis.blurred``.

        Args:
            width: of the kernel, in positions.
            include: layers, as for ``lath.convert``; None for all.
        """
        positive(f"{_WHAT}: width", width)
        chosen = _selector(include, "include")
        several = [w for w in self._weights if chosen is None or any(chosen(n, w.core.module) for n in w.names)]
        self._turn(several, lambda found: {w.key: w.rank for w in several}, width)

    def numbers(self) -> Numbers:
        """Numbers of the model, trainable and stored, beside those of the dense one."""
        return Numbers.of(self._model, [w.core for w in self._weights])

    def rewrap(self, make: Callable[[Module], DistributedDataParallel]) -> DistributedDataParallel:
        """The wrapper to go on with: the one there is, or ``make(model)`` if parameters have changed under it.

        In a loop: ``if controller.step(): model = controller.rewrap(DistributedDataParallel)``. Training with a wrapper
        whose buckets are those of old parameters would not average gradients, so it raises.
        """
        if self._wrapper is None or self._stale:
            self._unwrapped(make(self._model))
        return self._wrapper

    # ---- state ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Counters and ranks, of plain numbers; the tensors are in those of the model and the optimizer."""
        weights = {
            w.key: {
                "layer": w.layer, "rank": w.rank, "size": w.core.rank, "skips": w.skips, "since": w.since,
                "stability": w.stability,
            }
            for w in self._weights
        }  # fmt: skip
        return {"step": self._step, "updates": self._updates, "next": self._next, "weights": weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`: to be called first, before those of the model and the optimizer.

        A model that is dense yet gets the layers and ranks of the checkpoint, and the optimizer their cores, so that
        the two fit what is loaded into them afterwards. State that the optimizer has loaded before stays.

        Raises:
            ValueError: not a state of a controller; of a model with other layers; of a dense model, for a converted
                one. All is as it was then.
        """
        missing = [key for key in ("step", "updates", "next", "weights") if key not in state]
        if missing:
            raise ValueError(f"{_WHAT}.load_state_dict: {', '.join(missing)} not in the state")
        given = state["weights"]
        for key, saved in given.items():
            if not saved.keys() >= _SAVED:
                raise ValueError(
                    f"{_WHAT}.load_state_dict: {', '.join(sorted(_SAVED - saved.keys()))} of {key!r} missing"
                )
        if self._weights:
            self._check_same(given, [w.key for w in self._weights])
        elif given:
            self._weights = self._structure(given)
            self._parameters_changed()
        for weight in self._weights:
            saved = given[weight.key]
            weight.rank, weight.skips, weight.since = saved["rank"], saved["skips"], saved["since"]
            weight.stability = saved["stability"]
            if weight.core.rank != saved["size"]:
                _cores.resize(weight.core, saved["size"])
                for optimizer, _, _ in optimizer_state.places(self.optimizers, weight.core.s):
                    optimizer_state.adopt(optimizer, weight.core.s, weight.core.s)
                self._parameters_changed()
        self._step, self._updates, self._next = state["step"], state["updates"], state["next"]
        self._changed = False

    def _structure(self, given: Mapping[str, Any]) -> list[Weight]:
        layers = {saved["layer"] for saved in given.values()}
        spec = OIALR(self._spec.rank_ratio, keep_first=False, keep_last=False, aspect=math.inf)

        def hand_over(optimizer: Optimizer, old: Parameter, weight: Weight) -> None:
            optimizer_state.adopt(optimizer, old, weight.core.s)

        def prepare(found: list[Weight]) -> None:
            self._check_same(given, [w.key for w in found])
            for weight in found:
                _cores.resize(weight.core, given[weight.key]["size"])

        return _cores.converted(
            self._model, spec, lambda name, module: name in layers, None, self.optimizers, hand_over, prepare
        )

    def _check_same(self, given: Mapping[str, Any], present: list[str]) -> None:
        if list(given) != present:
            difference = sorted(set(given).symmetric_difference(present)) or ["another order"]
            raise ValueError(
                f"{_WHAT}.load_state_dict: the state is of a model with other converted layers: {', '.join(difference)}"
            )

    # ---- the schedule -----------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Conversion if it is time, and the update."""
        if self._weights or self._has_settled():
            if not self._weights:
                self.convert()
            if not self.fixed_rank:
                self.update()
        self._next = max(self._step, self._next) + self.frequency

    def _look_again(self) -> None:
        """The layers are in the user's hands between updates."""
        if [w.core for w in _cores.weights(self._model)] != [w.core for w in self._weights]:
            raise RuntimeError(
                f"{_WHAT}: the OIALR layers of the model are not those that it had; make a new controller"
            )
        for weight in self._weights:
            if self.shrink or weight.rank > weight.core.rank:
                weight.rank = weight.core.rank

    def _has_settled(self) -> bool:
        if self.warmup_stability is None:
            return True
        found = self._dense_stabilities = self._settling.look(Crew(self._split, self._group))
        return bool(found) and sum(found.values()) / len(found) >= self.warmup_stability

    def _due(self) -> list[Weight]:
        """The weights that take part in the next update: those of the last layers that are not left out."""
        layers = list(dict.fromkeys(w.layer for w in self._weights))
        count = ranks.layers_due(len(layers), self._updates + 1, self.layer_share, "growth" in self.compat)
        chosen = set(layers[len(layers) - count :])
        return [w for w in self._weights if w.layer in chosen and w.skips == 0]

    # ---- an update --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _turn(
        self, due: list[Weight], choose: Callable[[dict[str, Tensor]], dict[str, int]], blur: float | None = None
    ) -> bool:
        """Diagonalize the cores, cut them to the ranks that ``choose`` makes of their spectra; whether a size changed.

        Everything is computed before the first tensor is replaced.
        """
        if not due:
            return False
        crew = Crew(self._split, self._group)
        own = self._decompose({i: w for i, w in enumerate(due) if crew.owns(i)})
        found = self._measure(due, own, crew)
        self._report(due, found)
        spectra = {due[i].key: sigma for i, (sigma, turned) in found.items() if self._is_loose(sigma, turned, blur)}
        chosen = choose(spectra)
        active = [(i, w, chosen[w.key]) for i, w in enumerate(due) if w.key in spectra]
        updates = [
            self._build(*own[i], w, rank) if crew.owns(i) else _blank(w, rank, found[i][0]) for i, w, rank in active
        ]
        parts = [(u.u, u.left, u.right, u.vh) for u in updates]
        vectors = [flat(several) for several in parts] if crew.size > 1 else []
        crew.share_(vectors, [i for i, _, _ in active])
        for j, vector in enumerate(vectors):
            u, left, right, vh = unflat(vector, [t.shape for t in parts[j]])
            updates[j] = Update(u, updates[j].sigma, vh, left, right, updates[j].grown)
        sizes = [w.core.rank for w in self._weights]
        for i, (_, turned) in found.items():
            due[i].stability = turned
        for (_, weight, _), update in zip(active, updates, strict=True):
            self._apply(weight, update, blur)
        return sizes != [w.core.rank for w in self._weights]

    def _decompose(self, mine: dict[int, Weight]) -> dict[int, tuple[Spectrum, tuple[Tensor, Tensor] | None]]:
        """The spectra of these weights, in bases that are orthonormal; with the maps to those where they were not."""
        factors = {i: w.factors() for i, w in mine.items()}
        maps: dict[int, tuple[Tensor, Tensor]] = {}
        for i, drift in zip(mine, self._drifts(list(factors.values())), strict=True):
            u, s, vh = factors[i]
            bound = basis.drift_bound(mine[i].rank, u.dtype)
            if (drift > bound or mine[i].since >= _MEND_EVERY) and bool(torch.isfinite(s).all()):
                factors[i], maps[i] = basis.orthonormal(u, s, vh)
        found = basis.decompose(list(factors.values()))
        return {i: (spectrum, maps.get(i)) for i, spectrum in zip(factors, found, strict=True)}

    def _drifts(self, factors: list[tuple[Tensor, Tensor, Tensor]]) -> list[float]:
        """How far the bases are from orthonormal; read by the host at once."""
        if not factors:
            return []
        device = factors[0][0].device
        drifts = [torch.maximum(basis.drift(u), basis.drift(vh)).to(device, torch.float64) for u, _, vh in factors]
        return torch.stack(drifts).tolist()

    def _measure(
        self, due: list[Weight], own: dict[int, tuple[Spectrum, Any]], crew: Crew
    ) -> dict[int, tuple[Tensor, float]]:
        """Singular values of every weight, in main memory, and how far its basis has turned; the host waits once."""
        device = due[0].core.s.device
        lengths = [1 + w.rank for w in due]
        values = torch.zeros(sum(lengths), dtype=torch.float64, device=device)
        for i, part in enumerate(values.split(lengths)):
            if i in own:
                part[0], part[1:] = own[i][0].stability, own[i][0].sigma
        crew.add_(values)
        dtypes = [basis.wide(w.core.s).dtype for w in due]
        parts = values.cpu().split(lengths)
        return {i: (part[1:].to(dtypes[i]), float(part[0])) for i, part in enumerate(parts)}

    def _report(self, due: list[Weight], found: dict[int, tuple[Tensor, float]]) -> None:
        broken = [due[i].key for i, (sigma, _) in found.items() if not torch.isfinite(sigma).all()]
        if broken:
            self._warn(f"{', '.join(broken)}: the core is not finite or has no decomposition; it stays as it is")

    def _is_loose(self, sigma: Tensor, turned: float, blur: float | None) -> bool:
        """Whether an update is to touch a weight with this spectrum."""
        if not torch.isfinite(sigma).all():
            return False
        just_converted = self._updates == 0  # nothing can have turned yet
        return blur is not None or self.stability is None or just_converted or turned < self.stability

    def _build(self, spectrum: Spectrum, maps: tuple[Tensor, Tensor] | None, weight: Weight, rank: int) -> Update:
        update = spectrum.update(min(rank, weight.rank), maps)
        more = rank - weight.rank
        return basis.grown(update, more, self._seed(weight)) if more > 0 else update

    def _seed(self, weight: Weight) -> int:
        """Other directions at each update and in each weight, the same ones in every process."""
        return self._updates * len(self._weights) + self._weights.index(weight)

    def _apply(self, weight: Weight, update: Update, blur: float | None) -> None:
        core, rank, before = weight.core, update.rank, weight.core.rank
        u, vh = update.u, update.vh
        s = update.sigma.diag() if blur is None else basis.blurred(update.sigma, blur)
        size = rank if self.shrink else max(rank, before)
        core.replace_(*_cores.filled(u, s, vh, size))
        for optimizer, _, _ in list(optimizer_state.places(self.optimizers, core.s)):
            if "moments" in self.compat:
                optimizer_state.sliced(optimizer, core.s, rank, size)
            else:
                optimizer_state.carry(
                    optimizer, core.s, core.s, update.left, update.right,
                    second_moment=self.second_moment, grown=update.grown, size=size,
                )  # fmt: skip
        mended = weight.since >= _MEND_EVERY
        weight.rank, weight.since = rank, 0 if mended else weight.since + 1

    # ---- processes and wrappers -------------------------------------------------------------------------------------

    def _is_selected(self, name: str, module: Module) -> bool:
        included = self._include is None or self._include(name, module)
        return included and not (self._exclude is not None and self._exclude(name, module))

    def _hand_over(self, optimizer: Optimizer, old: Parameter, weight: Weight) -> None:
        if "moments" in self.compat:
            optimizer_state.zeroed(optimizer, old, weight.core.s)
        else:
            _cores.project_state(optimizer, old, weight, self.second_moment)

    def _synchronize(self, found: list[Weight]) -> None:
        """The factors of the first process for all, so that they agree in every bit."""
        crew = Crew(self._split, self._group)
        tensors = [t.detach() for w in found for t in (w.core.u, w.core.s, w.core.vh)]
        crew.share_(tensors)

    def _unwrapped(self, model: Module) -> Module:
        """The model itself; remembers a DistributedDataParallel around it, and has it raise when it is outdated."""
        inner = model
        while True:
            if isinstance(inner, DistributedDataParallel):
                self._wrapper, self._stale = inner, False
                inner.register_forward_pre_hook(self._refuse_stale)
                inner = inner.module
            elif hasattr(inner, "_orig_mod"):  # torch.compile
                inner = inner._orig_mod
            else:
                return inner

    def _parameters_changed(self) -> None:
        self._stale, self._changed = self._wrapper is not None, True

    def _refuse_stale(self, wrapper: Module, inputs: object) -> None:
        if wrapper.training and (wrapper is not self._wrapper or self._stale):
            raise RuntimeError(
                f"{_WHAT}: parameters have changed under this DistributedDataParallel, which would average nothing; go "
                "on with model = controller.rewrap(DistributedDataParallel) whenever controller.step() returns True"
            )

    def _warn(self, message: str) -> None:
        warnings.warn(f"{_WHAT}, step {self._step}: {message}", stacklevel=2)


def _blank(weight: Weight, rank: int, sigma: Tensor) -> Update:
    """What another process is about to send."""
    core, kept = weight.core, min(rank, weight.rank)
    like = basis.wide(core.s).new_empty(0)
    (out, fan_in), before = core.shape, weight.rank
    more = min(rank, weight.small_side) - kept
    sigma = torch.nn.functional.pad(sigma[:kept], (0, more)).to(like)
    rank = kept + more
    factors = (like.new_empty(out, rank), sigma, like.new_empty(rank, fan_in))
    return Update(*factors, like.new_empty(before, rank), like.new_empty(rank, before), more)


def _optimizers(given: Optimizer | Iterable[Optimizer]) -> tuple[Optimizer, ...]:
    several = tuple(given) if isinstance(given, (list, tuple)) else (given,)
    if not several:
        raise TypeError(f"{_WHAT}: optimizer is an empty {type(given).__name__}, expected torch.optim.Optimizer")
    for optimizer in several:
        optimizer_state.check_optimizer(optimizer, _WHAT)
    return several


def _check_held(model: Module, optimizers: Iterable[Optimizer]) -> None:
    held = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    if not any(id(p) in held for p in model.parameters() if p.dim() > 1):
        raise ValueError(f"{_WHAT}: the optimizer holds no weight of the model")


def _compat(given: str | Iterable[str]) -> frozenset[str]:
    names = (given,) if isinstance(given, str) else tuple(given)
    if "reference" in names:
        return frozenset(COMPAT)
    unknown = [name for name in names if name not in COMPAT]
    if unknown:
        raise ValueError(f"{_WHAT}: compat has {unknown[0]!r}, expected some of {COMPAT}, or 'reference'")
    return frozenset(names)
