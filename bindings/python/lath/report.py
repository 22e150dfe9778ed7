# SPDX-License-Identifier: Apache-2.0
"""What the linear layers of a model cost, beside what the dense ones would."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import ops
from .factor import break_even_rank
from .nn import LowRankLinear
from .survey import survey


@dataclass(frozen=True)
class LayerReport:
    """One linear layer.

    Attributes:
        name: qualified name, the first one if the module is shared.
        kind: class of the module.
        in_features, out_features: sizes; a lazy module has 0 before its first call.
        rank: None for a dense layer.
        break_even: the largest rank at which factors cost less than the dense weight.
        parameters, dense_parameters: numbers now, and in the dense layer of the same function.
        bytes, dense_bytes: memory of these.
        rows: rows per run of the model, over all calls of the layer; None if the model was not run.
        input_shape: of the first call, or None.
        macs, dense_macs: multiply-adds per run of the model; for one row if the model was not run.
        kernel: the route the planner takes for the first call ("dense" for a dense layer), or None.
        reason: why the layer is dense or was left, or None.
    """

    name: str
    kind: str
    in_features: int
    out_features: int
    rank: int | None
    break_even: int
    parameters: int
    dense_parameters: int
    bytes: int
    dense_bytes: int
    rows: int | None
    input_shape: tuple[int, ...] | None
    macs: int
    dense_macs: int
    kernel: str | None
    reason: str | None


class Report:
    """The layers of a model. ``print`` it for a table; iterate, or read ``rows`` or ``as_dict()``, for the values.

    Attributes:
        rows: one LayerReport per linear layer.
        parameters: numbers of the whole model, layers of other kinds included.
    """

    def __init__(self, rows: list[LayerReport], model: nn.Module) -> None:
        self.rows = rows
        self.parameters = sum(p.numel() for p in _initialized(model))

    @property
    def dense_parameters(self) -> int:
        """Numbers of the whole model if every low-rank layer were dense."""
        return self.parameters + sum(row.dense_parameters - row.parameters for row in self.rows)

    @property
    def macs(self) -> int:
        """Multiply-adds of all rows of the table."""
        return sum(row.macs for row in self.rows)

    @property
    def dense_macs(self) -> int:
        """Multiply-adds of all rows of the table, if every layer were dense."""
        return sum(row.dense_macs for row in self.rows)

    def __iter__(self) -> Iterator[LayerReport]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> LayerReport:
        """The row of the layer with this qualified name."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    def as_dict(self) -> dict[str, Any]:
        """Plain values only, ready for JSON."""
        return {
            "layers": [asdict(row) for row in self.rows],
            "parameters": self.parameters,
            "dense_parameters": self.dense_parameters,
            "macs": self.macs,
            "dense_macs": self.dense_macs,
        }

    def __str__(self) -> str:
        head = (
            "layer",
            "kind",
            "in",
            "out",
            "rank",
            "even",
            "parameters",
            "dense",
            "MACs",
            "dense",
            "KiB",
            "kernel",
            "note",
        )
        table = [head, *(_cells(row) for row in self.rows)]
        widths = [max(len(line[i]) for line in table) for i in range(len(head))]
        left = {0, 1, 11, 12}
        lines = [
            "  ".join(
                c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in table
        ]
        lines.insert(1, "-" * max(map(len, lines)))
        per = "" if any(row.rows is not None for row in self.rows) else " per row"
        lines.append(
            f"model: {self.parameters:,} parameters, {self.dense_parameters:,} dense; "
            f"linear layers: {self.macs:,} multiply-adds{per}, {self.dense_macs:,} dense"
        )
        return "\n".join(lines)


def _cells(row: LayerReport) -> tuple[str, ...]:
    def number(value: int | None) -> str:
        return "-" if value is None else f"{value:,}"

    return (
        row.name,
        row.kind,
        number(row.in_features),
        number(row.out_features),
        number(row.rank),
        number(row.break_even),
        number(row.parameters),
        number(row.dense_parameters),
        number(row.macs),
        number(row.dense_macs),
        f"{row.bytes / 1024:,.1f}",
        row.kernel or "-",
        row.reason or "",
    )


def report(model: nn.Module, example_inputs: Any = None) -> Report:
    """Parameters, multiply-adds, memory, planned kernel and break-even rank of every linear layer.

    Args:
        model: any module.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments. The model is run on them once,
            in evaluation mode and without gradients, to learn the number of rows of each layer; its training flags are
            put back. Without inputs the multiply-adds are for one row and no kernel is planned.

    Raises:
        TypeError: ``model`` is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"lath.report: model is {type(model).__name__}, expected torch.nn.Module")
    sites = survey(model)
    shapes = None if example_inputs is None else _input_shapes(model, [s.module for s in sites], example_inputs)
    rows = [
        describe(site.name, site.module, None if shapes is None else shapes[id(site.module)], site.reason)
        for site in sites
    ]
    return Report(rows, model)


def describe(
    name: str,
    module: nn.Module,
    input_shapes: list[tuple[int, ...]] | None = None,
    reason: str | None = None,
) -> LayerReport:
    """The entry of one layer; ``input_shapes`` has one shape per call, or is None if the model was not run."""
    in_features, out_features = module.in_features, module.out_features
    parameters = _initialized(module)
    count, size = sum(p.numel() for p in parameters), sum(p.numel() * p.element_size() for p in parameters)
    dense_count, dense_size = count, size
    if isinstance(module, LowRankLinear):
        has_bias = module.bias is not None or module.inner_bias is not None
        dense_count = out_features * (in_features + has_bias)
        dense_size = dense_count * module.weight_v.element_size()
    calls = None if input_shapes is None else [torch.Size(shape[:-1]).numel() for shape in input_shapes]
    macs, kernel = _work(module, calls)
    return LayerReport(
        name=name,
        kind=type(module).__name__,
        in_features=in_features,
        out_features=out_features,
        rank=module.rank if isinstance(module, LowRankLinear) else None,
        break_even=break_even_rank(in_features, out_features),
        parameters=count,
        dense_parameters=dense_count,
        bytes=size,
        dense_bytes=dense_size,
        rows=None if calls is None else sum(calls),
        input_shape=input_shapes[0] if input_shapes else None,
        macs=macs,
        dense_macs=(1 if calls is None else sum(calls)) * in_features * out_features,
        kernel=kernel,
        reason=reason,
    )


def _work(module: nn.Module, calls: list[int] | None) -> tuple[int, str | None]:
    """Multiply-adds over calls of so many rows each, or of one row; kernel of the first call, if there was one."""
    dense = module.in_features * module.out_features
    if not isinstance(module, LowRankLinear):
        return (dense, None) if calls is None else (sum(calls) * dense, "dense" if calls else None)
    if calls is None:
        return min(module.rank * (module.in_features + module.out_features), dense), None
    plans = [ops.lowrank_linear_plan(n, module.in_features, module.rank, module.out_features) for n in calls]
    return sum(plan.macs for plan in plans), plans[0].kernel if plans else None


def _initialized(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that have a size already: those of a lazy module have none before its first call."""
    return [p for p in module.parameters() if not isinstance(p, nn.parameter.UninitializedParameter)]


def _input_shapes(model: nn.Module, modules: list[nn.Module], inputs: Any) -> dict[int, list[tuple[int, ...]]]:
    """Run the model once; id of a module to the shape of x in each of its calls."""
    shapes: dict[int, list[tuple[int, ...]]] = defaultdict(list)

    def record(module: nn.Module, args: tuple, kwargs: dict) -> None:
        x = args[0] if args else next(iter(kwargs.values()))
        shapes[id(module)].append(tuple(x.shape))

    with contextlib.ExitStack() as stack:
        for module in modules:
            handle = module.register_forward_pre_hook(record, with_kwargs=True)
            stack.callback(handle.remove)
        for module in model.modules():
            stack.callback(setattr, module, "training", module.training)
            module.training = False
        stack.enter_context(torch.no_grad())
        if isinstance(inputs, Tensor):
            model(inputs)
        elif isinstance(inputs, dict):
            model(**inputs)
        elif isinstance(inputs, (tuple, list)):
            model(*inputs)
        else:
            model(inputs)
    return shapes
