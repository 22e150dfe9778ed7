# SPDX-License-Identifier: Apache-2.0
"""What the layers of a model cost, beside what the dense ones would."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import _attention, _oialr, _recurrent
from .costs import Call, break_even, dense_numel, is_conv, sizes, work
from .nn.cored import Cored
from .nn.factored import Factored
from .survey import THIN, survey


@dataclass(frozen=True)
class LayerReport:
    """One linear layer, convolution, attention or LSTM.

    Attributes:
        name: qualified name, the first one if the module is shared.
        kind: class of the module.
        in_features, out_features: features of a linear layer, channels of a convolution, the embedding of attention,
            of x and h of an LSTM; a lazy module has 0 before its first call.
        kernel_size, stride, groups: of a convolution, else None.
        mode: form of a thin convolution, else None.
        rank: None for a dense layer; that of one group for a convolution, of each projection for attention, the
            largest one of the recurrent weights of an LSTM, and of query, key and value in orthogonal bases.
        break_even: the largest rank at which factors cost less than the dense weight; for a dense convolution in the
            form that ``lath.convert`` was asked for, else separable; of an LSTM for its recurrent weights; in
            orthogonal bases that of a forward call, of attention for all its weights together.
        parameters, dense_parameters: numbers now, and in the dense layer of the same function. Orthogonal bases count.
        trainable: those of the parameters that require a gradient.
        bytes, dense_bytes: memory of these.
        rows: rows, output pixels, queries, or steps of all samples, per run of the model, over all calls of the layer;
            None if it was not run.
        input_shape: of the first call, or None.
        macs, dense_macs: multiply-adds per run of the model; for one row or output pixel if the model was not run. Of
            attention, those of the projections.
        kernel: the route the planner takes for the first call ("dense" for a dense layer), or None.
        why: what speaks for the route of a low-rank layer, or None.
        reason: why the layer is dense or was left, or None.
    """

    name: str
    kind: str
    in_features: int
    out_features: int
    kernel_size: tuple[int, ...] | None
    stride: tuple[int, ...] | None
    groups: int | None
    mode: str | None
    rank: int | None
    break_even: int
    parameters: int
    dense_parameters: int
    trainable: int
    bytes: int
    dense_bytes: int
    rows: int | None
    input_shape: tuple[int, ...] | None
    macs: int
    dense_macs: int
    kernel: str | None
    why: str | None
    reason: str | None


class Report:
    """The layers of a model. ``print`` it for a table; iterate, or read ``rows`` or ``as_dict()``, for the values.

    Attributes:
        rows: one LayerReport per layer.
        parameters: numbers of the whole model, layers of other kinds and orthogonal bases included.
        trainable: those of the parameters that require a gradient.
    """

    def __init__(self, rows: list[LayerReport], model: nn.Module) -> None:
        self.rows = rows
        parameters = _initialized(model)
        self.parameters = sum(p.numel() for p in parameters) + _oialr.bases_numel(model)
        self.trainable = sum(p.numel() for p in parameters if p.requires_grad)

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
            "trainable": self.trainable,
            "macs": self.macs,
            "dense_macs": self.dense_macs,
        }

    def __str__(self) -> str:
        columns = [column for column in _COLUMNS if column.needed is None or any(map(column.needed, self.rows))]
        table = [[column.head for column in columns], *([column.cell(row) for column in columns] for row in self.rows)]
        widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
        lines = [_line(columns, cells, widths) for cells in table]
        lines.insert(1, "-" * max(map(len, lines)))
        return "\n".join([*lines, self._summary()])

    def _summary(self) -> str:
        text = f"model: {self.parameters:,} parameters, {self.dense_parameters:,} dense; "
        if any(row.kind.startswith("OIALR") for row in self.rows):
            text = f"model: {self.parameters:,} numbers, {self.trainable:,} train, {self.dense_parameters:,} dense; "
        if any(row.rows is not None for row in self.rows):
            return f"{text}layers: {self.macs:,} multiply-adds, {self.dense_macs:,} dense"
        if any(row.kernel_size for row in self.rows):
            return f"{text}multiply-adds are for one row or output pixel"
        return f"{text}layers: {self.macs:,} multiply-adds per row, {self.dense_macs:,} dense"


@dataclass(frozen=True)
class _Column:
    """Of the printed table; left out where ``needed`` holds for no row."""

    head: str
    cell: Callable[[LayerReport], str]
    left: bool = False
    needed: Callable[[LayerReport], object] | None = None


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _by(extents: tuple[int, ...] | None) -> str:
    return "-" if extents is None else "x".join(map(str, extents))


def _window(row: LayerReport) -> str:
    """3x3, with the stride after a slash and the groups; both windows of a low-rank convolution."""
    if row.kernel_size is None:
        return "-"
    ones = (1,) * len(row.kernel_size)
    first, second = row.kernel_size, ones
    if row.mode == "separable":
        first, second = (1, row.kernel_size[1]), (row.kernel_size[0], 1)
    text = _by(row.kernel_size) if row.mode is None else f"{_by(first)}, {_by(second)}"
    if row.stride != ones:
        text += f" /{row.stride[0]}" if len(set(row.stride)) == 1 else f" /{_by(row.stride)}"
    return text if row.groups == 1 else f"{text} g{row.groups}"


_COLUMNS = (
    _Column("layer", lambda row: row.name, left=True),
    _Column("kind", lambda row: row.kind, left=True),
    _Column("in", lambda row: _number(row.in_features)),
    _Column("out", lambda row: _number(row.out_features)),
    _Column("window", _window, left=True, needed=lambda row: row.kernel_size),
    _Column("rank", lambda row: _number(row.rank)),
    _Column("even", lambda row: _number(row.break_even)),
    _Column("parameters", lambda row: _number(row.parameters)),
    _Column("dense", lambda row: _number(row.dense_parameters)),
    _Column("trainable", lambda row: _number(row.trainable), needed=lambda row: row.kind.startswith("OIALR")),
    _Column("input", lambda row: _by(row.input_shape), needed=lambda row: row.input_shape),
    _Column("MACs", lambda row: _number(row.macs)),
    _Column("dense", lambda row: _number(row.dense_macs)),
    _Column("KiB", lambda row: f"{row.bytes / 1024:,.1f}"),
    _Column("kernel", lambda row: row.kernel or "-", left=True),
    _Column("note", lambda row: row.reason or row.why or "", left=True),
)


def _line(columns: list[_Column], cells: list[str], widths: list[int]) -> str:
    padded = (
        cell.ljust(width) if column.left else cell.rjust(width)
        for column, cell, width in zip(columns, cells, widths, strict=True)
    )
    return "  ".join(padded).rstrip()


def report(model: nn.Module, example_inputs: Any = None) -> Report:
    """Parameters, multiply-adds, memory, planned kernel and break-even rank of every linear layer and convolution.

    Args:
        model: any module.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments. The model is run on them once,
            in evaluation mode and without gradients, to learn the shapes that each layer meets; its training flags are
            put back. Without inputs the multiply-adds are for one row or output pixel and no kernel is planned.

    Raises:
        TypeError: ``model`` is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"lath.report: model is {type(model).__name__}, expected torch.nn.Module")
    sites = survey(model)
    calls = None if example_inputs is None else _run(model, [site.module for site in sites], example_inputs)
    rows = [
        describe(site.name, site.module, None if calls is None else calls[id(site.module)], site.reason)
        for site in sites
    ]
    return Report(rows, model)


def describe(
    name: str,
    module: nn.Module,
    calls: list[Call] | None = None,
    reason: str | None = None,
    mode: str = "separable",
) -> LayerReport:
    """The entry of one layer; ``calls`` is None if the model was not run.

    ``mode`` is the form that the break-even rank of a dense convolution is for.
    """
    in_size, out_size = sizes(module)
    parameters = _initialized(module)
    count, size = sum(p.numel() for p in parameters), sum(p.numel() * p.element_size() for p in parameters)
    dense_count, dense_size = count, size
    if isinstance(module, Cored):
        width = module.cores()[0].s.element_size()
        bases, dense_count = _oialr.bases_numel(module), _oialr.dense_parameters(module)
        count, size, dense_size = count + bases, size + bases * width, dense_count * width
    elif isinstance(module, Factored):
        has_bias = module.bias is not None or module.inner_bias is not None
        dense_count = dense_numel(module) + out_size * has_bias
        dense_size = dense_count * module.weight_v.element_size()
    elif _attention.is_attention(module) and isinstance(module, THIN):
        dense_count = _attention.dense_parameters(module)
        dense_size = dense_count * module.out_proj.weight_v.element_size()
    elif _recurrent.is_lstm(module) and isinstance(module, THIN):
        dense_count = _recurrent.dense_parameters(module)
        dense_size = dense_count * parameters[0].element_size()
    done = work(module, calls)
    conv = is_conv(module)
    return LayerReport(
        name=name,
        kind=type(module).__name__,
        in_features=in_size,
        out_features=out_size,
        kernel_size=tuple(module.kernel_size) if conv else None,
        stride=tuple(module.stride) if conv else None,
        groups=module.groups if conv else None,
        mode=_mode(module) if conv else None,
        rank=module.rank if isinstance(module, THIN) else None,
        break_even=break_even(module, mode),
        parameters=count,
        dense_parameters=dense_count,
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        bytes=size,
        dense_bytes=dense_size,
        rows=done.rows,
        input_shape=calls[0].x_shape if calls else None,
        macs=done.macs,
        dense_macs=done.dense_macs,
        kernel=done.kernel,
        why=done.why,
        reason=reason,
    )


def _mode(module: nn.Module) -> str | None:
    """Of a convolution."""
    return "pointwise" if isinstance(module, Cored) else getattr(module, "mode", None)


def _initialized(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that have a size already: those of a lazy module have none before its first call."""
    return [p for p in module.parameters() if not isinstance(p, nn.parameter.UninitializedParameter)]


def _run(model: nn.Module, modules: list[nn.Module], inputs: Any) -> dict[int, list[Call]]:
    """Run the model once; id of a module to its calls."""
    calls: dict[int, list[Call]] = defaultdict(list)

    def record(module: nn.Module, args: tuple, kwargs: dict, y: Any) -> None:
        if _attention.is_attention(module):
            call = _attention.AttentionCall.of(args, kwargs)
            calls[id(module)].extend([call] if call else [])
            return
        if _recurrent.is_lstm(module):
            calls[id(module)].append(_recurrent.LSTMCall.of(args, kwargs))
            return
        x = args[0] if args else next(iter(kwargs.values()))
        if isinstance(y, Tensor):  # a subclass may return anything
            calls[id(module)].append(Call.of(x, y))

    with contextlib.ExitStack() as stack:
        for module in modules:
            handle = module.register_forward_hook(record, with_kwargs=True, prepend=True)
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
    return calls
