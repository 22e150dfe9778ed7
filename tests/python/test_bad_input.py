# SPDX-License-Identifier: Apache-2.0
"""What the raw operators refuse, and in which words.

Each refusal is one error that names the operator, the argument, what came and what was expected.
"""

from __future__ import annotations

import re

import pytest
import torch
from operator_cases import (
    CASES,
    NONE,
    OUT,
    ROWS,
    TENSOR_CASES,
    argument_name,
    backward_arguments,
    call,
    factors,
)
from torch import Tensor


def tensor_indices(name: str) -> list[int]:
    """Of the tensors of numbers; test_lstm_ops.py has those of batch sizes."""
    return [i for i, a in enumerate(CASES[name](torch.float32)) if isinstance(a, Tensor) and a.is_floating_point()]


EVERY_ARGUMENT = [(name, index) for name in TENSOR_CASES for index in tensor_indices(name)]


def arguments_of_dim(least: int):
    chosen = [(name, index) for name, index in EVERY_ARGUMENT if CASES[name](torch.float32)[index].dim() >= least]
    ids = [f"{name}-{argument_name(name, index)}" for name, index in chosen]
    return pytest.mark.parametrize(("name", "index"), chosen, ids=ids)


every_argument = arguments_of_dim(0)


NOT_STRIDED = "a sparse or otherwise non-strided layout"


def assert_refused(name: str, index: int, replacement: Tensor, got: str) -> None:
    """One error that names the operator, the argument, what came and what was expected."""
    arguments = CASES[name](torch.float32)
    arguments[index] = replacement
    with pytest.raises(RuntimeError) as caught:
        call(name, arguments)
    message = str(caught.value)
    # Where the leading operand changes its dtype or shape, the next one may be the first that does not fit.
    assert re.match(rf"lath::{name}: \w+: got .*, expected ", message), message
    assert "\n" not in message
    if got:
        assert message.startswith(f"lath::{name}: {argument_name(name, index)}: got {got}"), message


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn], ids=str
)
@every_argument
def test_wrong_dtype(name, index, dtype):
    replacement = CASES[name](torch.float32)[index].to(dtype)
    assert_refused(name, index, replacement, "dtype unknown" if dtype == torch.float8_e4m3fn else f"dtype {dtype}")


@every_argument
def test_mixed_dtypes(name, index):
    assert_refused(name, index, CASES[name](torch.float32)[index].double(), "")


@every_argument
def test_wrong_number_of_dimensions(name, index):
    argument = CASES[name](torch.float32)[index]
    # An x of rows may have any other number of dimensions.
    scalar_is_wrong = argument_name(name, index) == "x" and argument.dim() != 4
    assert_refused(name, index, torch.tensor(1.0) if scalar_is_wrong else argument[None, None], "shape (")


@arguments_of_dim(1)
def test_wrong_extent(name, index):
    argument = CASES[name](torch.float32)[index]
    any_width = name.startswith("frobenius") and argument_name(name, index) == "weight_v"
    axis = 0 if any_width else 1 if argument.dim() == 4 else -1  # images may have any height and width
    assert_refused(name, index, torch.cat([argument, argument], axis), "")


@every_argument
def test_sparse_tensors(name, index):
    assert_refused(name, index, CASES[name](torch.float32)[index].to_sparse(), NOT_STRIDED)


@arguments_of_dim(2)
@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_compressed_sparse_tensors(name, index):
    assert_refused(name, index, CASES[name](torch.float32)[index].to_sparse_csr(), NOT_STRIDED)


@arguments_of_dim(1)
def test_mkldnn_tensors(name, index):
    assert_refused(name, index, CASES[name](torch.float32)[index].to_mkldnn(), NOT_STRIDED)


@every_argument
@pytest.mark.filterwarnings("ignore")
def test_quantized_tensors(name, index):
    argument = CASES[name](torch.float32)[index]
    assert_refused(
        name, index, torch.quantize_per_tensor(argument, 0.1, 0, torch.qint8), "dtype unknown to lath (quantized"
    )


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("lowrank_linear", 1),
        ("lowrank_linear_forward", 1),
        ("lowrank_linear_backward", 2),
        ("lowrank_conv2d", 1),
        ("lowrank_conv2d_forward", 1),
        ("lowrank_conv2d_backward", 2),
        ("frobenius_decay", 0),
    ],
)
def test_rank_zero(name, index):
    arguments = CASES[name](torch.float32)
    arguments[index], arguments[index + 1] = arguments[index][:0], arguments[index + 1][:, :0]
    with pytest.raises(RuntimeError, match=f"lath::{name}: weight_v: got rank 0, expected at least 1"):
        call(name, arguments)


@pytest.mark.parametrize(
    ("name", "index", "value", "message"),
    [
        ("lowrank_linear", 5, 3, "association: got 3, expected 0 to 2"),
        ("lowrank_linear", 5, -1, "association: got -1, expected 0 to 2"),
        ("lowrank_linear_forward", 6, 3, "association: got 3, expected 0 to 2"),
        ("lowrank_linear_backward", 6, 32, "mask: got 32, expected 0 to 31"),
        ("lowrank_linear_backward", 6, -1, "mask: got -1, expected 0 to 31"),
        ("lowrank_linear_backward", 7, 3, "association: got 3, expected 0 to 2"),
        ("lowrank_linear_plan", 0, -1, "rows: got -1, expected at least 0"),
        ("lowrank_linear_plan", 1, -1, "in_features: got -1, expected at least 0"),
        ("lowrank_linear_plan", 2, 0, "rank: got 0, expected at least 1"),
        ("lowrank_linear_plan", 3, -1, "out_features: got -1, expected at least 0"),
        ("lowrank_linear_plan", 4, 3, "association: got 3, expected 0 to 2"),
        ("lowrank_conv2d", 5, 0, "stride_h: got 0, expected at least 1"),
        ("lowrank_conv2d", 6, -1, "stride_w: got -1, expected at least 1"),
        ("lowrank_conv2d", 7, -1, "pad_top: got -1, expected at least 0"),
        ("lowrank_conv2d", 10, -3, "pad_right: got -3, expected at least 0"),
        ("lowrank_conv2d_forward", 11, 0, "dilation_h: got 0, expected at least 1"),
        ("lowrank_conv2d", 13, 0, "groups: got 0, expected at least 1"),
        ("lowrank_conv2d_backward", 16, 32, "mask: got 32, expected 0 to 31"),
        ("lowrank_lstm_forward", 12, 3, "save: got 3, expected 0 to 2"),
        ("lowrank_lstm_forward", 13, -1, "association: got -1, expected 0 to 2"),
        ("lowrank_lstm_backward", 18, 256, "mask: got 256, expected 0 to 255"),
        ("lowrank_lstm_backward", 19, 3, "association: got 3, expected 0 to 2"),
        ("lowrank_conv2d_plan", 0, -1, "batch: got -1, expected at least 0"),
        ("lowrank_conv2d_plan", 2, 0, "rank: got 0, expected at least 1"),
        ("lowrank_conv2d_plan", 4, 0, "height: got 0, expected at least 1"),
        ("lowrank_conv2d_plan", 7, 0, "kernel_w: got 0, expected at least 1"),
        ("lowrank_conv2d_plan", 8, 0, "stride_h: got 0, expected at least 1"),
        ("lowrank_conv2d_plan", 19, 3, "dtype: got 3, expected 0 to 2"),
    ],
)
def test_numbers_out_of_range(name, index, value, message):
    arguments = CASES[name](torch.float32)
    arguments[index] = value
    with pytest.raises(RuntimeError, match=re.escape(f"lath::{name}: {message}")):
        call(name, arguments)


def test_gradient_with_other_leading_dimensions():
    dy, *others = backward_arguments(torch.float32)
    with pytest.raises(
        RuntimeError, match=re.escape("lath::lowrank_linear_backward: dy: got shape (6, 10), expected the leading")
    ):
        call("lowrank_linear_backward", [dy.reshape(ROWS, OUT), *others])


def test_message_is_the_documented_one():
    x, _, u = factors(torch.float32)
    message = "lath::lowrank_linear: weight_v: got shape (3, 4), expected (rank, 12) to match the last dimension of x"
    with pytest.raises(RuntimeError, match=rf"^{re.escape(message)}$"):
        torch.ops.lath.lowrank_linear(x, torch.zeros(3, 4), u, NONE, NONE)
