# SPDX-License-Identifier: Apache-2.0
"""What an optimizer keeps of a parameter, when the parameter changes its coordinates.

At conversion the core takes the place of the weight, ``S = U^T W Vh^T``; at a basis update it becomes ``A^T S B^T`` for
orthonormal A and B, cut to fewer columns. Gradients change as the parameters do, so for what an optimizer keeps

===============  =============================================  =======================================
kind             it is                                          in the new coordinates
===============  =============================================  =======================================
``"linear"``     a sum of gradients: momentum, first moments    ``A^T M B^T``, exact
``"squared"``    a sum of squares of gradients, by element      ``(A*A)^T V (B*B)^T``, with squares by
                                                                element: not negative, of the same sum;
                                                                exact for independent gradients
``"magnitude"``  sizes of gradients or steps, by element        root of the same for its squares
===============  =============================================  =======================================

Zero-dimensional entries, as step counts, stay. Zeros in the place of moments whose step count goes on, as in the
reference package of the method, make Adam's next steps up to 6.5 times too long; not rotating momentum sends it into
directions where it does not belong.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import (
    ASGD,
    LBFGS,
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
    Rprop,
    SparseAdam,
)

LINEAR, SQUARED, MAGNITUDE = "linear", "squared", "magnitude"
KINDS = (LINEAR, SQUARED, MAGNITUDE)
SECOND_MOMENTS = ("project", "reset", "keep")

_ADAM = {"exp_avg": LINEAR, "exp_avg_sq": SQUARED, "max_exp_avg_sq": SQUARED}

_ENTRIES: dict[type[Optimizer], dict[str, str]] = {
    SGD: {"momentum_buffer": LINEAR},
    Adam: _ADAM,
    AdamW: _ADAM,
    NAdam: _ADAM,
    RAdam: _ADAM,
    Adamax: {"exp_avg": LINEAR, "exp_inf": MAGNITUDE},
    RMSprop: {"square_avg": SQUARED, "momentum_buffer": LINEAR, "grad_avg": LINEAR},
    Adagrad: {"sum": SQUARED},
    Adadelta: {"square_avg": SQUARED, "acc_delta": SQUARED},
    ASGD: {"ax": LINEAR},
    Rprop: {"prev": LINEAR, "step_size": MAGNITUDE},
}
if hasattr(torch.optim, "Muon"):
    _ENTRIES[torch.optim.Muon] = {"momentum_buffer": LINEAR}

# These keep state of another form than a tensor for each parameter, or take no dense gradients.
_REFUSED = (LBFGS, SparseAdam)


def register(optimizer: type[Optimizer], **entries: str) -> None:
    """Say what an optimizer that is not one of torch's keeps for a parameter.

    For example ``register(Lion, exp_avg="linear")``. What is not said is dropped, with a warning, when a parameter
    changes its coordinates. Subclasses of a registered class, and of torch's own, need it only for further entries.

    Raises:
        TypeError: ``optimizer`` is not a class of optimizers.
        ValueError: a kind other than "linear", "squared" and "magnitude".
    """
    if not (isinstance(optimizer, type) and issubclass(optimizer, Optimizer)):
        raise TypeError(
            f"lath.optimizer_state.register: got {optimizer!r}, expected a subclass of torch.optim.Optimizer"
        )
    for key, kind in entries.items():
        if kind not in KINDS:
            raise ValueError(f"lath.optimizer_state.register: {key} is {kind!r}, expected one of {KINDS}")
    _ENTRIES[optimizer] = {**_ENTRIES.get(optimizer, {}), **entries}


def check_optimizer(optimizer: object, what: str) -> None:
    """TypeError for something that is not an optimizer, or is one whose state cannot be carried over."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"{what}: optimizer is {type(optimizer).__name__}, expected torch.optim.Optimizer")
    by_name = "ZeroRedundancyOptimizer" in (kind.__name__ for kind in type(optimizer).__mro__)  # slow to import
    if by_name or isinstance(optimizer, _REFUSED):
        raise TypeError(f"{what}: {type(optimizer).__name__} keeps state that cannot follow a change of parameters")


def places(optimizers: Iterable[Optimizer], parameter: Parameter) -> Iterator[tuple[Optimizer, dict[str, Any], int]]:
    """Every optimizer, group and position that holds the parameter."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for i, held in enumerate(group["params"]):
                if held is parameter:
                    yield optimizer, group, i


def swap(optimizers: Iterable[Optimizer], old: Parameter, new: Parameter, suffix: str = "") -> list[Optimizer]:
    """Put ``new`` in every place of ``old``; those that held it. What they keep of ``old`` stays under ``old``.

    Groups stay the same objects, so that schedulers go on; ``suffix`` is appended to the name that a group has for it.
    """
    holders = []
    for optimizer, group, i in list(places(optimizers, old)):
        group["params"][i] = new
        if "param_names" in group:
            group["param_names"][i] += suffix
        holders.append(optimizer)
    return holders


def carry(
    optimizer: Optimizer,
    old: Parameter,
    new: Parameter,
    left: Tensor,
    right: Tensor,
    *,
    second_moment: str = "project",
    grown: int = 0,
    size: int | None = None,
) -> None:
    """What ``optimizer`` keeps of ``old`` becomes that of ``new``, which may be the same object.

    Entries are new tensors of exactly their size, in the dtype that they had.

    Args:
        optimizer: one that has, or had, both.
        old: (out, fan_in) or more dimensions, all but the first together.
        new: (rank, rank).
        left: (out, rank), the new coordinates of the rows.
        right: (rank, fan_in), those of the columns. Rows and columns of an entry beyond these sizes count as zeros.
        second_moment: for entries that are squares or magnitudes: "project" as above; "keep" leaves them where they
            are, cut to size, and at conversion, where they have no place in the core, projects them; "reset" drops all
            that is kept for the parameter, step counts included, so that the optimizer starts over with it, unless
            nothing is squared.
        grown: how many directions are new, at the end. They get the mean of the others as squares.
        size: extent of the result if more than the rank, filled up with zeros.

    A tensor that nothing is known about, see :func:`register`, is reason to drop all that is kept for the parameter,
    with a warning; only of one number it stays as it is.
    """
    state = optimizer.state.get(old)
    if not state:
        return
    kinds = {key: _kind(optimizer, key, value) for key, value in state.items()}
    unknown = [key for key, kind in kinds.items() if kind == ""]
    if unknown:
        warnings.warn(
            f"lath: {type(optimizer).__name__} keeps {', '.join(unknown)}, whose meaning is not known; the state of "
            "the parameter starts anew. lath.optimizer_state.register says what it is",
            stacklevel=2,
        )
    squared = any(kind in (SQUARED, MAGNITUDE) for kind in kinds.values())
    if unknown or (second_moment == "reset" and squared):
        _start_over(optimizer, old, new, size or left.shape[1])
        return
    keep = second_moment == "keep" and old is new
    entries = {}
    for key, value in state.items():
        if kinds[key] is None:
            entries[key] = value
            continue
        matrix = value.detach().flatten(1)[: left.shape[0], : right.shape[1]]
        if keep and kinds[key] != LINEAR:
            moved = _cut(matrix, left.shape[1], grown)
        else:
            moved = _moved(matrix, left, right, kinds[key], grown)
        entries[key] = _filled(moved, size).to(value.dtype)
    if old is not new:
        optimizer.state.pop(old)
    optimizer.state[new] = entries


def zeroed(optimizer: Optimizer, old: Parameter, new: Parameter) -> None:
    """As the reference package does it at conversion: zeros for what is kept, step counts go on."""
    state = optimizer.state.pop(old, None)
    if state:
        optimizer.state[new] = {
            key: torch.zeros_like(new, dtype=value.dtype) if _is_matrix(value) else value
            for key, value in state.items()
        }


def sliced(optimizer: Optimizer, parameter: Parameter, rank: int, size: int | None = None) -> None:
    """As the reference package does it at a truncation: the first rows and columns, whatever the basis is now.

    Filled up with zeros to ``size``, also where the rank has grown.
    """
    state = optimizer.state.get(parameter, {})
    for key, value in state.items():
        if _is_matrix(value):
            cut = value[:rank, :rank]
            state[key] = _filled(cut, size or rank).clone(memory_format=torch.contiguous_format)


def adopt(optimizer: Optimizer, old: Parameter, new: Parameter) -> None:
    """State that was loaded from a checkpoint under ``old`` already, if it has the sizes of ``new``; else drop it."""
    state = optimizer.state.pop(old, None)
    if state and all(value.shape == new.shape for value in state.values() if _is_matrix(value)):
        optimizer.state[new] = state


def _start_over(optimizer: Optimizer, old: Parameter, new: Parameter, size: int) -> None:
    """As if the parameter had just come to the optimizer, which makes its state at the next step."""
    state = optimizer.state.pop(old)
    if isinstance(optimizer, Adagrad) and {"step", "sum"} <= state.keys():  # makes it when it is made itself
        start = optimizer.defaults["initial_accumulator_value"]
        step = state["step"] * 0
        optimizer.state[new] = {**state, "step": step, "sum": state["sum"].new_full((size, size), start)}


def _is_matrix(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 1


def _kind(optimizer: Optimizer, key: str, value: Any) -> str | None:
    """What an entry is; None for one that does not depend on coordinates, "" if that is not known."""
    for base in type(optimizer).__mro__:
        if key in _ENTRIES.get(base, {}):
            return _ENTRIES[base][key] if isinstance(value, Tensor) and value.dim() else None
    return "" if isinstance(value, Tensor) and value.numel() > 1 else None


def _moved(matrix: Tensor, left: Tensor, right: Tensor, kind: str, grown: int) -> Tensor:
    dtype = torch.promote_types(matrix.dtype, left.dtype)
    matrix, left, right = (t.to(matrix.device, dtype) for t in (matrix, left, right))
    if kind == LINEAR:
        return left.mT @ matrix @ right.mT
    squares = matrix.square() if kind == MAGNITUDE else matrix
    moved = _with_mean(left.square().mT @ squares @ right.square().mT, grown)
    return moved.sqrt() if kind == MAGNITUDE else moved


def _cut(matrix: Tensor, rank: int, grown: int) -> Tensor:
    kept = rank - grown
    cut = matrix.new_zeros(rank, rank)
    cut[:kept, :kept] = matrix[:kept, :kept]
    return _with_mean(cut, grown)


def _with_mean(matrix: Tensor, grown: int) -> Tensor:
    """The mean of the rest in the last rows and columns: a zero there would make the first steps long."""
    if grown:
        kept = matrix.shape[0] - grown
        mean = matrix[:kept, :kept].mean()
        matrix[kept:] = mean
        matrix[:, kept:] = mean
    return matrix


def _filled(matrix: Tensor, size: int | None) -> Tensor:
    missing = 0 if size is None else size - matrix.shape[0]
    return torch.nn.functional.pad(matrix, (0, missing, 0, missing)) if missing else matrix.contiguous()
