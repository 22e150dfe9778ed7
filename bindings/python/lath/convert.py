# SPDX-License-Identifier: Apache-2.0
"""Swapping the layers of a model for thin ones, and back."""

from __future__ import annotations

import re
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from functools import cache, lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from . import _attention, _fast_path, _oialr, _recurrent
from .costs import break_even
from .factor import Decomposition, conv_matrix
from .nn import LowRankConv2d, LowRankConv2dNorm, LowRankLinear, LowRankLSTM, LowRankMultiheadAttention
from .nn.cored import Cored
from .report import LayerReport, Report, describe
from .specs import OIALR, LowRank
from .survey import DENSE, THIN, Site, survey

Predicate = Callable[[str, nn.Module], bool]
Pattern = str | re.Pattern | Predicate
Selection = Pattern | Iterable[Pattern] | None

_HOOKS = (
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks",
    "_forward_hooks_always_called",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_is_full_backward_hook",
    "_load_state_dict_post_hooks",
    "_load_state_dict_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
)

# Arguments of the smallest layer of each class.
_SMALLEST = {
    nn.Linear: (1, 1),
    LowRankLinear: (1, 1, 1),
    nn.Conv2d: (1, 1, 1),
    LowRankConv2d: (1, 1, 1, 1),
    nn.MultiheadAttention: (1, 1),
    LowRankMultiheadAttention: (1, 1, 1),
    nn.LSTM: (1, 1),
    LowRankLSTM: (1, 1, 1),
    nn.Conv1d: (1, 1, 1),
    nn.Conv3d: (1, 1, 1),
    _oialr.OIALRLinear: (1, 1, 1),
    _oialr.OIALRConv1d: (1, 1, 1, 1),
    _oialr.OIALRConv2d: (1, 1, 1, 1),
    _oialr.OIALRConv3d: (1, 1, 1, 1),
    _oialr.OIALRMultiheadAttention: (1, 1, 1),
}

# The layers that each spec makes.
_FORMS: dict[type, dict[type[nn.Module], type[nn.Module]]] = {
    LowRank: {
        nn.Linear: LowRankLinear,
        nn.Conv2d: LowRankConv2d,
        nn.MultiheadAttention: LowRankMultiheadAttention,
        nn.LSTM: LowRankLSTM,
    },
    OIALR: _oialr.FORMS,
}

Spec = LowRank | OIALR


def convert(model: nn.Module, spec: Spec, include: Selection = None, exclude: Selection = None) -> Report:
    """Replace ``nn.Linear``, ``nn.Conv2d``, attention and ``nn.LSTM`` in ``model`` by low-rank layers, in place.

    With ``lath.OIALR`` linear layers, convolutions of one to three dimensions and attention get orthogonal bases and a
    core that trains; their biases stay the same parameters.

    A layer stays as it is, with the reason in the report, when the form would not make it cheaper, when it is a
    depthwise convolution, when its weight is tied or parametrized, when it is lazy, quantized or a subclass with a
    forward of its own, and inside modules that read the weights of their children, like the fused modules of
    ``torch.ao.nn.intrinsic``. Encoders of torch with a converted layer leave their fused inference path. A module that
    is registered in several places is converted once and stays shared. Hooks, ``requires_grad``, training mode, dtype
    and device are carried over; hooks on parameters are not, and an optimizer must be made anew, because the parameters
    are new. Converting again is harmless.

    All new layers are built before the first one is put in: after an error the model is as it was.

    Args:
        model: a module that contains linear layers or convolutions.
        spec: the form and the rank: ``lath.LowRank`` or ``lath.OIALR``.
        include: only layers whose qualified name matches: a glob, a compiled regular expression (which has to match the
            whole name), a callable ``(name, module) -> bool``, or a list of these.
        exclude: not these layers; the same forms. :func:`lath.decom_rule` makes one that keeps early layers dense.

    Returns:
        One entry per layer, with multiply-adds for one row or output pixel.

    Raises:
        TypeError: an argument of a wrong type.
        ValueError: ``model`` itself is a layer, which cannot be replaced in place (wrap it in ``nn.Sequential``, or
            call ``from_dense`` of the low-rank layer); ``include`` matches nothing; a ratio that gives rank 0; a weight
            with NaN.
    """
    if not isinstance(spec, Spec):
        raise TypeError(f"lath.convert: spec is {type(spec).__name__}, expected lath.LowRank or lath.OIALR")
    _check_model(model, "convert", _FORMS[type(spec)])
    selected = _selector(include, "include"), _selector(exclude, "exclude")
    if isinstance(spec, OIALR):
        sites = survey(model, _oialr.KINDS)
        reasons = [site.reason or _already(site) or _oialr.obstacle(site.module, spec) for site in sites]
        ends, mode = (int(spec.keep_first), int(spec.keep_last)), "pointwise"
    else:
        sites = survey(model)
        reasons = [site.reason or _already(site) for site in sites]
        ends, mode = (spec.skip_first, spec.skip_last), spec.conv
    _select(sites, reasons, *selected)
    _skip_ends(reasons, *ends)

    rows: list[LayerReport] = []
    replacements: list[tuple[Site, nn.Module]] = []
    for site, reason in zip(sites, reasons, strict=True):
        built = None
        if reason is None:
            built, reason = _build(site, spec)
        if built is not None:
            replacements.append((site, built))
        rows.append(describe(site.name, built or site.module, reason=reason, mode=mode))
    for site, built in replacements:
        _carry_over(site.module, built)
        site.put(built)
    _fast_path.update(model, THIN)
    return Report(rows, model)


def restore(model: nn.Module) -> list[str]:
    """Replace every thin layer of ``model`` by the dense one of the same function, in place.

    Hooks, ``requires_grad``, training mode, dtype and device are carried over, the inner bias goes into the bias. After
    an error the model is as it was.

    Returns:
        The qualified names of the layers that were replaced.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: ``model`` itself is a thin layer; call its ``to_dense``. Or no dense layer has the function of a
            thin one: a separable convolution with vertical padding and an inner bias, a convolution with a norm.
    """
    _check_model(model, "restore")
    thin = [site for site in survey(model) if isinstance(site.module, THIN)]
    return _swap(model, thin, lambda module: module.to_dense())


def oialr_to_lowrank(model: nn.Module) -> list[str]:
    """Replace every layer ``U S Vh`` of ``model`` by two factors, ``U S`` and ``Vh``, in place: the same function.

    For inference and export, or to train both factors on. The new layers are those of ``lath.LowRank``, and two
    convolutions of torch where there are none, of one or three dimensions. What :func:`convert` carries over is carried
    over. After an error the model is as it was.

    Returns:
        The qualified names of the layers that were replaced.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: ``model`` itself is such a layer; call its ``to_lowrank``. Or a convolution has a norm or an
            activation of its own.
    """
    if isinstance(model, Cored):
        raise ValueError(
            f"lath.oialr_to_lowrank: model is itself a {type(model).__name__}, which cannot be replaced in place; call "
            "model.to_lowrank()"
        )
    _check_model(model, "oialr_to_lowrank")
    cored = [site for site in survey(model) if isinstance(site.module, Cored)]
    return _swap(model, cored, lambda module: module.to_lowrank())


def _swap(model: nn.Module, sites: list[Site], make: Callable[[nn.Module], nn.Module]) -> list[str]:
    """Replace layers by what ``make`` returns, once all are made; their names."""
    made = [_named(site.name, partial(make, site.module)) for site in sites]
    for site, new in zip(sites, made, strict=True):
        _carry_over(site.module, new)
        site.put(new)
    _fast_path.update(model, THIN)
    return [site.name for site in sites]


def dense_state_dict(model: nn.Module) -> OrderedDict[str, Tensor]:
    """The state dict that ``model`` would have after :func:`restore`; the model stays as it is.

    The factors of each thin layer appear as ``weight``, its biases as ``bias``. A converted model loads it back
    with ``load_state_dict``, up to the rounding of one decomposition; only a layer with an inner bias and no other
    cannot.

    Raises:
        ValueError: no dense layer has the function of a low-rank one, see :func:`restore`.
    """
    layers = {f"{name}." if name else "": m for name, m in model.named_modules(remove_duplicate=False)}
    layers = {prefix: module for prefix, module in layers.items() if isinstance(module, THIN)}
    state = model.state_dict()
    dense: OrderedDict[str, Any] = OrderedDict()
    for key, value in state.items():
        prefix, leaf = key[: key.rfind(".") + 1], key[key.rfind(".") + 1 :]
        if prefix not in layers:
            if not _is_norm(prefix, layers):
                dense[key] = value
        elif isinstance(layers[prefix], Cored):
            entries = _named(prefix[:-1], partial(_oialr.dense_entries, layers[prefix], leaf))
            dense.update((f"{prefix}{name}", entry) for name, entry in entries.items())
        elif _attention.is_attention(layers[prefix]):
            entries = _attention.dense_entries(layers[prefix], leaf)
            dense.update((f"{prefix}{name}", entry) for name, entry in entries.items())
        elif _recurrent.is_lstm(layers[prefix]):
            entries = _recurrent.dense_entries(layers[prefix], leaf)
            dense.update((f"{prefix}{name}", entry) for name, entry in entries.items())
        elif leaf == "weight_v":
            with torch.no_grad():
                weight, bias = _named(prefix[:-1], layers[prefix].merged)
            dense[f"{prefix}weight"] = weight
            if bias is not None:
                dense[f"{prefix}bias"] = bias
    if hasattr(state, "_metadata"):
        dense._metadata = state._metadata
    return dense


def _is_norm(prefix: str, layers: dict[str, nn.Module]) -> bool:
    """Whether entries that begin like this are of the norm of a low-rank convolution, which its dense weight has."""
    owner, _, child = prefix[:-1].rpartition(".")
    return child == "norm" and isinstance(layers.get(f"{owner}." if owner else ""), LowRankConv2dNorm)


def _named(name: str, make: Callable[[], Any]) -> Any:
    """``make()``, with the name of the layer in its ValueError."""
    try:
        return make()
    except ValueError as error:
        raise ValueError(f"layer {name!r}: {error}") from error


def _check_model(model: object, what: str, forms: dict[type[nn.Module], type[nn.Module]] | None = None) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"lath.{what}: model is {type(model).__name__}, expected torch.nn.Module")
    forms = forms or {}
    if isinstance(model, (*DENSE, *THIN, *forms)):
        thin = next((thin for dense, thin in forms.items() if isinstance(model, dense)), type(model))
        other = f"{thin.__name__}.from_dense(model, rank)" if what == "convert" else "model.to_dense()"
        raise ValueError(
            f"lath.{what}: model is itself a {type(model).__name__}, which cannot be replaced in place; "
            f"wrap it in nn.Sequential, or call {other}"
        )


def _selector(selection: Selection, what: str) -> Predicate | None:
    """One predicate for any form of ``include`` and ``exclude``."""
    if selection is None or callable(selection):
        return selection
    several = isinstance(selection, Iterable) and not isinstance(selection, str)
    predicates = [_predicate(pattern, what) for pattern in (selection if several else [selection])]
    return lambda name, module: any(predicate(name, module) for predicate in predicates)


def _predicate(pattern: object, what: str) -> Predicate:
    if isinstance(pattern, str):
        return lambda name, module: fnmatchcase(name, pattern)
    if isinstance(pattern, re.Pattern):
        return lambda name, module: pattern.fullmatch(name) is not None
    if callable(pattern):
        return pattern
    raise TypeError(
        f"lath.convert: {what} contains {pattern!r}, expected a glob, a compiled regular expression or a callable"
    )


def _already(site: Site) -> str | None:
    return "already low-rank" if isinstance(site.module, THIN) else None


def _select(
    sites: list[Site], reasons: list[str | None], included: Predicate | None, excluded: Predicate | None
) -> None:
    """Note in ``reasons`` which layers are not selected."""

    def matches(predicate: Predicate, site: Site) -> bool:
        return any(predicate(name, site.module) for name in site.names)

    chosen = [included is None or matches(included, site) for site in sites]
    if sites and not any(chosen):
        names = ", ".join(site.name for site in sites[:10])
        raise ValueError(f"lath.convert: include matches no layer of the model; it has: {names}")
    for i, site in enumerate(sites):
        if not chosen[i] or (excluded is not None and matches(excluded, site)):
            reasons[i] = "not selected"


def _skip_ends(reasons: list[str | None], first: int, last: int) -> None:
    """Note in ``reasons`` which layers at either end the spec leaves."""
    left = [i for i, reason in enumerate(reasons) if reason is None]
    for i in left[:first]:
        reasons[i] = f"one of the first {first}"
    for i in left[max(0, len(left) - last) :]:
        reasons[i] = f"one of the last {last}"


def _build(site: Site, spec: Spec) -> tuple[nn.Module | None, str | None]:
    """The replacement of a layer, or None and the reason why there is none."""
    module = site.module
    if isinstance(spec, OIALR):
        return _oialr.build(site.name, module, spec), None
    if isinstance(module, nn.MultiheadAttention):
        return _attention.build(site.name, module, spec)
    if isinstance(module, nn.LSTM):
        return _recurrent.build(site.name, module, spec)
    is_conv = isinstance(module, nn.Conv2d)
    weight = module.weight.detach()
    matrix = conv_matrix(weight, spec.conv, module.groups) if is_conv else weight
    decompose = lru_cache(maxsize=1)(lambda: Decomposition.of(matrix, f"layer {site.name!r}"))
    rank = spec.rank_for(site.name, matrix.shape[-1], matrix.shape[-2], decompose)
    if rank is None:
        return None, "the spec gives no rank for it"
    limit = break_even(module, spec.conv)
    if rank > limit:
        return None, f"rank {rank} is not cheaper: break-even is {limit}"
    options: dict[str, Any] = {"mode": spec.conv} if is_conv else {}
    if spec.init == "svd" and not weight.is_meta:
        options["decomposition"] = decompose()
    low_rank = LowRankConv2d if is_conv else LowRankLinear
    return low_rank.from_dense(module, rank, spec.inner_bias, init=spec.init, **options), None


def _carry_over(old: nn.Module, new: nn.Module) -> None:
    """Hand over hooks and the attributes that a user has set.

    The hook dictionaries themselves move, so that handles from ``register_*_hook`` still remove their hook.
    """
    for name in _HOOKS:
        if name in old.__dict__:
            new.__dict__[name] = old.__dict__[name]
    for hook in new._load_state_dict_pre_hooks.values():
        if hook.with_module:
            hook.module = weakref.ref(new)
    own = _own_attributes(next(kind for kind in _SMALLEST if isinstance(old, kind)))
    for name, value in old.__dict__.items():
        if name not in new.__dict__ and name not in own:
            new.__dict__[name] = value


@cache
def _own_attributes(kind: type[nn.Module]) -> frozenset[str]:
    """What every layer of this class has, so that a user has not added it; and the call that ``compile()`` bound."""
    return frozenset(vars(kind(*_SMALLEST[kind], device="meta"))) | {"_compiled_call_impl"}
