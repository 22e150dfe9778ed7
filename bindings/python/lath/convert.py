# SPDX-License-Identifier: Apache-2.0
"""Swapping the layers of a model for thin ones, and back."""

from __future__ import annotations

import re
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

from torch import Tensor, nn

from .factor import Decomposition, break_even_rank, merge, merge_bias
from .nn import LowRankLinear
from .report import LayerReport, Report, describe
from .specs import LowRank
from .survey import Site, survey

Pattern = str | re.Pattern
Selection = Pattern | Iterable[Pattern] | Callable[[str, nn.Module], bool] | None

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
_OWN_ATTRIBUTES = ("_frozen", "rank")  # of LowRankLinear, not to be carried over to nn.Linear


def convert(model: nn.Module, spec: LowRank, include: Selection = None, exclude: Selection = None) -> Report:
    """Replace the ``nn.Linear`` layers of ``model`` by low-rank ones, in place.

    A layer stays as it is, with the reason in the report, when the form would not make it cheaper, when its weight is
    tied or parametrized, when it is lazy or a subclass of ``nn.Linear``, and inside ``nn.MultiheadAttention`` and
    ``nn.TransformerEncoderLayer``, which read the weights of their children. A module that is registered in several
    places is converted once and stays shared. Hooks, ``requires_grad``, training mode, dtype and device are carried
    over; hooks on parameters are not, and an optimizer must be made anew, because the parameters are new. Converting
    again is harmless.

    All new layers are built before the first one is put in: after an error the model is as it was.

    Args:
        model: a module that contains linear layers.
        spec: the form and the rank.
        include: only layers whose qualified name matches: a glob, a compiled regular expression (which has to match the
            whole name), a list of these, or a callable ``(name, module) -> bool``.
        exclude: not these layers; the same forms.

    Returns:
        One entry per linear layer, with multiply-adds for one row.

    Raises:
        TypeError: an argument of a wrong type.
        ValueError: ``model`` itself is a linear layer, which cannot be replaced in place (wrap it in ``nn.Sequential``,
            or call ``LowRankLinear.from_dense``); ``include`` matches nothing; a ratio that gives rank 0; a weight with
            NaN.
    """
    _check_model(model, "convert")
    if not isinstance(spec, LowRank):
        raise TypeError(f"lath.convert: spec is {type(spec).__name__}, expected lath.LowRank")
    included, excluded = _selector(include, "include"), _selector(exclude, "exclude")
    sites = survey(model)
    chosen = [included is None or any(included(name, site.module) for name in site.names) for site in sites]
    if sites and not any(chosen):
        names = ", ".join(site.name for site in sites[:10])
        raise ValueError(f"lath.convert: include matches no linear layer of the model; it has: {names}")

    rows: list[LayerReport] = []
    replacements: list[tuple[Site, LowRankLinear]] = []
    for site, selected in zip(sites, chosen, strict=True):
        if selected and excluded is not None:
            selected = not any(excluded(name, site.module) for name in site.names)
        built, reason = _build(site, spec) if selected else (None, "not selected")
        if built is not None:
            replacements.append((site, built))
        rows.append(describe(site.name, built or site.module, reason=reason))
    for site, built in replacements:
        _carry_over(site.module, built)
        site.put(built)
    return Report(rows, model)


def restore(model: nn.Module) -> list[str]:
    """Replace every low-rank layer of ``model`` by the ``nn.Linear`` of the same function, in place.

    Hooks, ``requires_grad``, training mode, dtype and device are carried over, the inner bias goes into the bias.

    Returns:
        The qualified names of the layers that were replaced.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: ``model`` itself is a low-rank layer; call its ``to_dense``.
    """
    _check_model(model, "restore")
    replacements = [(site, site.module.to_dense()) for site in survey(model) if isinstance(site.module, LowRankLinear)]
    for site, dense in replacements:
        _carry_over(site.module, dense)
        site.put(dense)
    return [site.name for site, _ in replacements]


def dense_state_dict(model: nn.Module) -> OrderedDict[str, Tensor]:
    """The state dict that ``model`` would have after :func:`restore`; the model stays as it is.

    The factors of each low-rank layer appear as ``weight``, its biases as ``bias``. A converted model loads it back
    with ``load_state_dict``, up to the rounding of one decomposition; only a layer with an inner bias and no other
    cannot.
    """
    layers = {f"{name}." if name else "": m for name, m in model.named_modules(remove_duplicate=False)}
    layers = {prefix: module for prefix, module in layers.items() if isinstance(module, LowRankLinear)}
    state = model.state_dict()
    dense: OrderedDict[str, Any] = OrderedDict()
    for key, value in state.items():
        prefix, leaf = key[: key.rfind(".") + 1], key[key.rfind(".") + 1 :]
        if prefix not in layers:
            dense[key] = value
        elif leaf == "weight_v":
            weight_u = state[f"{prefix}weight_u"]
            dense[f"{prefix}weight"] = merge(value, weight_u)
            bias = merge_bias(weight_u, state.get(f"{prefix}bias"), state.get(f"{prefix}inner_bias"))
            if bias is not None:
                dense[f"{prefix}bias"] = bias
    if hasattr(state, "_metadata"):
        dense._metadata = state._metadata
    return dense


def _check_model(model: object, what: str) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"lath.{what}: model is {type(model).__name__}, expected torch.nn.Module")
    if isinstance(model, (nn.Linear, LowRankLinear)):
        other = "LowRankLinear.from_dense(model, rank)" if what == "convert" else "model.to_dense()"
        raise ValueError(
            f"lath.{what}: model is itself a {type(model).__name__}, which cannot be replaced in place; "
            f"wrap it in nn.Sequential, or call {other}"
        )


def _selector(selection: Selection, what: str) -> Callable[[str, nn.Module], bool] | None:
    """One predicate for any form of ``include`` and ``exclude``."""
    if selection is None or callable(selection):
        return selection
    several = isinstance(selection, Iterable) and not isinstance(selection, str)
    patterns = list(selection) if several else [selection]
    for pattern in patterns:
        if not isinstance(pattern, (str, re.Pattern)):
            raise TypeError(
                f"lath.convert: {what} contains {pattern!r}, expected a glob or a compiled regular expression"
            )

    def matches(name: str, module: nn.Module) -> bool:
        return any(fnmatchcase(name, p) if isinstance(p, str) else bool(p.fullmatch(name)) for p in patterns)

    return matches


def _build(site: Site, spec: LowRank) -> tuple[LowRankLinear | None, str | None]:
    """The replacement of a layer, or None and the reason why there is none."""
    module = site.module
    if isinstance(module, LowRankLinear):
        return None, "already low-rank"
    if site.reason is not None:
        return None, site.reason
    decompose = lru_cache(maxsize=1)(lambda: Decomposition.of(module.weight, f"layer {site.name!r}"))
    rank = spec.rank_for(site.name, module.in_features, module.out_features, decompose)
    if rank is None:
        return None, "the spec gives no rank for it"
    break_even = break_even_rank(module.in_features, module.out_features)
    if rank > break_even:
        return None, f"rank {rank} is not cheaper: break-even is {break_even}"
    needs_values = spec.init == "svd" and not module.weight.is_meta
    layer = LowRankLinear.from_dense(
        module, rank, spec.inner_bias, init=spec.init, decomposition=decompose() if needs_values else None
    )
    return layer, None


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
    for name, value in old.__dict__.items():
        if name not in new.__dict__ and name not in _OWN_ATTRIBUTES:
            new.__dict__[name] = value
