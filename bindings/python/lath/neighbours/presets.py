# SPDX-License-Identifier: Apache-2.0
"""The published settings of Pufferfish, Cuttlefish, and spectral initialization with Frobenius decay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn
from torch.optim import Optimizer

from ..convert import Selection, convert
from ..decay import FrobeniusDecay, decay_groups
from ..report import Report
from ..specs import LowRank
from .candidates import candidates, weight_matrices
from .stable_rank import StableRank
from .switches import AfterEpochs, RankSwitch
from .warmup import WarmupThenFactor

# Epochs of dense training in Pufferfish: of 300, of 90 and of 400.
PUFFERFISH_EPOCHS = {"cifar": 80, "imagenet": 15, "transformer": 10}


@dataclass(frozen=True)
class CuttlefishSetting:
    """One row of the published settings of Cuttlefish.

    Attributes:
        switch: when; ranks settle at different thresholds.
        floor: ranks are full // floor at least.
        lr_factor: of the learning rate at the switch.
        ratio: of the full rank, where it is fixed and not estimated.
    """

    switch: RankSwitch | AfterEpochs
    floor: int | None = None
    lr_factor: float = 1.0
    ratio: float | None = None


CUTTLEFISH = {
    "cifar": CuttlefishSetting(RankSwitch(15, 11, 0.1, ((1, 5.0), (2, 2.5)))),
    "imagenet": CuttlefishSetting(RankSwitch(5, 5, 0.33, ((3, 5.0), (6, 2.5))), floor=5),
    "transformer": CuttlefishSetting(RankSwitch(5, 5, 0.411, ((4, 5.0), (9, 2.5))), floor=2, lr_factor=1 / 3),
    "glue": CuttlefishSetting(AfterEpochs(1), ratio=0.45, lr_factor=1 / 3),
}


def _choice(what: str, setting: str, settings: dict[str, Any]) -> Any:
    if setting not in settings:
        raise ValueError(f"{what}: setting is {setting!r}, expected one of {tuple(settings)}")
    return settings[setting]


def pufferfish(
    model: nn.Module,
    optimizer: Optimizer,
    setting: str = "cifar",
    *,
    epochs: int | None = None,
    ratio: float = 0.25,
    keep_first: int = 1,
    keep_last: int = 1,
    norms: bool = True,
    **options: Any,
) -> WarmupThenFactor:
    """Pufferfish: dense for a fixed time, then every layer but the first ones and the last at one share of its rank.

    Wang et al., MLSys 2021: the hybrid network, whose first K - 1 layers stay dense, after a vanilla warm-up, and the
    global rank ratio of a quarter.

    Args:
        model: dense.
        optimizer: of ``torch.optim``.
        setting: "cifar" (80 epochs of warm-up), "imagenet" (15) or "transformer" (10).
        epochs: of warm-up, if another number.
        ratio: the rank is ``int(min(m, n) * ratio)``.
        keep_first: layers that stay dense, K - 1 in the paper.
        keep_last: layers that stay dense at the other end.
        norms: a batch norm between the factors of convolutions.
        options: of :class:`lath.WarmupThenFactor`: include, exclude, frobenius_decay, on_switch, ...

    Raises:
        TypeError, ValueError: as :class:`lath.WarmupThenFactor`, or an unknown setting.
    """
    published = _choice("lath.pufferfish", setting, PUFFERFISH_EPOCHS)
    spec = LowRank(ratio=ratio, conv="pointwise", skip_first=keep_first, skip_last=keep_last)
    switch = AfterEpochs(published if epochs is None else epochs)
    return WarmupThenFactor(model, optimizer, spec, switch, norms=norms, **options)


def cuttlefish(
    model: nn.Module,
    optimizer: Optimizer,
    setting: str = "cifar",
    *,
    metric: str = "scaled",
    keep_first: int = 1,
    keep_last: int = 1,
    norms: bool = False,
    **options: Any,
) -> WarmupThenFactor:
    """Cuttlefish: dense until the stable ranks have settled, then each layer at its own estimated rank.

    Wang et al., MLSys 2023. Which layers are worth it is measured beforehand: hand over what
    ``lath.profile_blocks(...).dense()`` names as ``exclude``. What is left to the training loop: CIFAR begins again at
    the rate of its warm-up, ``torch.optim.lr_scheduler.LinearLR(optimizer, 1 / 4, 1.0, 5)`` in ``on_switch``.

    Args:
        model: dense, with the weights that training starts from.
        optimizer: of ``torch.optim``.
        setting: "cifar" (ResNet-18, VGG-19), "imagenet" (ResNet-50 and wider), "transformer" (DeiT, ResMLP) or "glue"
            (BERT, which is fine-tuned: one dense epoch and a fixed ratio of 0.45).
        metric: "scaled" or "vanilla", see :class:`lath.StableRank`; no meaning for "glue".
        keep_first: layers that stay dense.
        keep_last: layers that stay dense at the other end.
        norms: a batch norm between the factors of convolutions; or ``frobenius_decay`` among the options, not both.
        options: of :class:`lath.WarmupThenFactor`: include, exclude, frobenius_decay, lr_factor, on_switch, ...

    Raises:
        TypeError, ValueError: as :class:`lath.WarmupThenFactor`, or an unknown setting.
    """
    found: CuttlefishSetting = _choice("lath.cuttlefish", setting, CUTTLEFISH)
    ends = {"conv": "pointwise", "skip_first": keep_first, "skip_last": keep_last}
    spec = StableRank(metric, found.floor, **ends) if found.ratio is None else LowRank(ratio=found.ratio, **ends)
    options.setdefault("lr_factor", found.lr_factor)
    return WarmupThenFactor(model, optimizer, spec, found.switch, norms=norms, **options)


class SpectralFrobenius(NamedTuple):
    """What :func:`spectral_frobenius` gives.

    Attributes:
        report: of the conversion.
        groups: parameters for a new optimizer, each group with its weight decay.
        decay: to be stepped between ``backward()`` and ``optimizer.step()``.
    """

    report: Report
    groups: list[dict[str, Any]]
    decay: FrobeniusDecay


def spectral_frobenius(
    model: nn.Module,
    scale: float,
    weight_decay: float,
    *,
    include: Selection = None,
    exclude: Selection = None,
    keep_first: int = 1,
    keep_last: int = 1,
) -> SpectralFrobenius:
    """Low-rank from the start, as Khodak et al. train it: spectral initialization and Frobenius decay (ICLR 2021).

    The dense weights that ``model`` was just initialized with are factored, ``U = U_r sqrt(S_r)``, ``V = sqrt(S_r)
    V_r^T``; a convolution as one of 1 x kw and one of kh x 1, so that a row of its matrix is an output channel and a
    vertical tap. In the place of weight decay the factors get the gradient of ``weight_decay / 2 ||U V||_F^2``::

        report, groups, decay = lath.spectral_frobenius(model, 0.1, 1e-4)
        optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
        ...
        loss.backward()
        decay.step()
        optimizer.step()

    Args:
        model: dense, converted in place.
        scale: the rank is ``max(round(scale * rows), 1)`` of a matrix with so many rows (``out``, or ``c_out kh``), and
            at most its full rank; above 0.
        weight_decay: coefficient of both decays.
        include: as for ``lath.convert``.
        exclude: as for ``lath.convert``.
        keep_first: layers that stay dense.
        keep_last: layers that stay dense at the other end.

    Raises:
        TypeError: an argument of a wrong type.
        ValueError: no layer to factor, or a number outside of its range; the model is as it was.
    """
    what = "lath.spectral_frobenius"
    if isinstance(scale, bool) or not isinstance(scale, (int, float)):
        raise TypeError(f"{what}: scale is {scale!r}, expected a float")
    if not 0.0 < scale < float("inf"):
        raise ValueError(f"{what}: scale is {scale!r}, expected a finite number above 0")
    ends = LowRank(rank=1, skip_first=keep_first, skip_last=keep_last)
    ranks = {}
    for site in candidates(model, ends, include, exclude, what):
        matrices = weight_matrices(site.module, "separable")
        ranks[site.name] = max(min(max(round(scale * m.shape[-2]), 1), *m.shape[-2:]) for m in matrices)
    decay = FrobeniusDecay(model, weight_decay)  # its layers are looked up later; checks the number
    spec = LowRank(rank=ranks, conv="separable", skip_first=keep_first, skip_last=keep_last)
    report = convert(model, spec, include, exclude)
    return SpectralFrobenius(report, decay_groups(model, weight_decay), decay)
