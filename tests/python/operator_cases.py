# SPDX-License-Identifier: Apache-2.0
"""One valid call of every operator, for the tests that go over all of them."""

from __future__ import annotations

from collections.abc import Callable

import lath  # noqa: F401  (loads the operators and their shape functions)
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

NONE = torch.empty(0)
ROWS, IN, RANK, OUT = 6, 12, 4, 10


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(seed + sum((i + 1) * n for i, n in enumerate(shape)))
    numbers = torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu").to(dtype)
    return numbers.to(torch.get_default_device())


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def p_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of the intermediate, on the default device."""
    return dtype if torch.get_default_device().type == "cuda" else sum_dtype(dtype)


def assert_same(expected: Tensor, result: Tensor, message: str = "") -> None:
    """The same bits; on a GPU, where the route depends on strides and alignment, the same up to rounding."""
    if not expected.is_cuda:
        assert torch.equal(expected, result), message
        return
    rtol = {torch.float64: 1e-12, torch.float32: 1e-4}.get(expected.dtype, 3e-2)
    torch.testing.assert_close(result, expected, rtol=rtol, atol=rtol * 10, msg=lambda text: f"{message}: {text}")


def factors(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    leading = (2, ROWS // 2)
    return random(*leading, IN, dtype=dtype), random(RANK, IN, dtype=dtype), random(OUT, RANK, dtype=dtype)


def backward_arguments(dtype: torch.dtype) -> list:
    x, v, u = factors(dtype)
    inner_bias = random(RANK, dtype=dtype)
    sums = sum_dtype(dtype)
    p = (x.reshape(ROWS, IN).to(sums) @ v.to(sums).mT + inner_bias.to(sums)).to(p_dtype(dtype)).contiguous()
    return [random(2, ROWS // 2, OUT, dtype=dtype, seed=1), x, v, u, inner_bias, p, 31, 0]


def decay_backward_arguments(dtype: torch.dtype) -> list:
    _, v, u = factors(dtype)
    sums = sum_dtype(dtype)
    wide_v, wide_u = v.to(sums), u.to(sums)
    return [torch.tensor(0.5, dtype=sums), v, u, wide_v @ wide_v.mT, wide_u.mT @ wide_u]


# Two groups, all strides, paddings and extents different from each other.
GROUPS, SIZES = 2, [2, 4, 3, 6, 7, 8, 3, 2]  # batch, channels, rank, channels, height, width, kernel
GEOMETRY = [2, 1, 1, 2, 0, 1, 1, 2, GROUPS, True]


def conv_operands(dtype: torch.dtype) -> list[Tensor]:
    batch, n, r, m, height, width, kernel_h, kernel_w = SIZES
    x = random(batch, n, height, width, dtype=dtype)
    return [
        x,
        random(GROUPS * r, n // GROUPS, 1, kernel_w, dtype=dtype),
        random(m, r, kernel_h, 1, dtype=dtype),
        random(m, dtype=dtype),
        random(GROUPS * r, dtype=dtype),
    ]


def conv_backward_arguments(dtype: torch.dtype) -> list:
    x, v, u, bias, inner_bias = conv_operands(dtype)
    y, p = torch.ops.lath.lowrank_conv2d_forward(x, v, u, bias, inner_bias, *GEOMETRY)
    return [random(*y.shape, dtype=dtype, seed=1), x, v, u, inner_bias, p, *GEOMETRY, 31]


# A packed LSTM whose extents are all different: three samples of 3, 2 and 1 steps.
SAMPLES, FEATURES, IN_RANK, HIDDEN = [3, 2, 1], 5, 2, 7


def lstm_operands(dtype: torch.dtype) -> list[Tensor]:
    """x, h0, c0, the six weights and the batch sizes."""
    batch, gates = SAMPLES[0], 4 * HIDDEN
    shapes = [(sum(SAMPLES), FEATURES), (batch, HIDDEN), (batch, HIDDEN), (IN_RANK, FEATURES), (gates, IN_RANK)]
    shapes += [(RANK, HIDDEN), (gates, RANK), (gates,), (gates,)]
    operands = [random(*shape, dtype=dtype, seed=i) for i, shape in enumerate(shapes)]
    return [*operands, torch.tensor(SAMPLES, device="cpu")]


def lstm_backward_arguments(dtype: torch.dtype) -> list:
    operands = lstm_operands(dtype)
    y, hn, cn, c, gates = torch.ops.lath.lowrank_lstm_forward(*operands, False, False, 2, 0)
    grads = [random(*t.shape, dtype=dtype, seed=i) for i, t in enumerate((y, hn, cn), 20)]
    return [*grads, *operands[:3], y, c, gates, *operands[3:], False, False, 255, 0]


def basis(dtype: torch.dtype) -> list[Tensor]:
    """weight_vh, weight_s and weight_u; nothing in the operators needs them to be orthonormal."""
    return [random(RANK, IN, dtype=dtype), random(RANK, RANK, dtype=dtype), random(OUT, RANK, dtype=dtype)]


def oialr_backward_arguments(dtype: torch.dtype) -> list:
    x, weights = factors(dtype)[0], basis(dtype)
    t = (x.reshape(ROWS, IN).to(sum_dtype(dtype)) @ weights[0].to(sum_dtype(dtype)).mT).to(p_dtype(dtype)).contiguous()
    return [random(2, ROWS // 2, OUT, dtype=dtype, seed=1), x, *weights, t, 7, 0]


# What the object for CUDA defines, where it is loaded; test_cuda.py has the cases.
CUDA_OPERATORS = {"cuda_lowrank_linear_plan", "cuda_oialr_linear_plan"}

# Name of the operator -> its arguments for a dtype.
CASES: dict[str, Callable[[torch.dtype], list]] = {
    "linear": lambda d: [factors(d)[0], random(OUT, IN, dtype=d), random(OUT, dtype=d)],
    "lowrank_linear": lambda d: [*factors(d), random(OUT, dtype=d), random(RANK, dtype=d), 0],
    "lowrank_linear_forward": lambda d: [*factors(d), random(OUT, dtype=d), random(RANK, dtype=d), True, 0],
    "lowrank_linear_backward": backward_arguments,
    "lowrank_conv2d": lambda d: [*conv_operands(d), *GEOMETRY],
    "lowrank_conv2d_forward": lambda d: [*conv_operands(d), *GEOMETRY, True],
    "lowrank_conv2d_backward": conv_backward_arguments,
    "lowrank_lstm_forward": lambda d: [*lstm_operands(d), False, False, 2, 0],
    "lowrank_lstm_backward": lstm_backward_arguments,
    "oialr_linear": lambda d: [factors(d)[0], *basis(d), random(OUT, dtype=d), 0],
    "oialr_linear_forward": lambda d: [factors(d)[0], *basis(d), random(OUT, dtype=d), True, 0],
    "oialr_linear_backward": oialr_backward_arguments,
    "frobenius_decay": lambda d: list(factors(d)[1:]),
    "frobenius_decay_backward": decay_backward_arguments,
    "lowrank_linear_plan": lambda d: [ROWS, IN, RANK, OUT, 0, False],
    "lowrank_conv2d_plan": lambda d: [*SIZES, *GEOMETRY, False, 0, False],
    "oialr_linear_plan": lambda d: [ROWS, IN, RANK, OUT, 0, False],
    "cpu_isa": lambda d: [],
}
TENSOR_CASES = [
    name for name, arguments in CASES.items() if any(isinstance(a, Tensor) for a in arguments(torch.float32))
]
DTYPES = [torch.float32, torch.float64, torch.bfloat16]

# Without a kernel for bfloat16: lath.ops deals with it.
NOT_NARROW = {"lowrank_lstm_forward", "lowrank_lstm_backward"}

every_device = pytest.mark.usefixtures("device")
every_operator = pytest.mark.parametrize("name", TENSOR_CASES)
every_operator_and_dtype = pytest.mark.parametrize(
    ("name", "dtype"),
    [(n, d) for n in TENSOR_CASES for d in DTYPES if n not in NOT_NARROW or d != torch.bfloat16],
    ids=lambda value: str(value).removeprefix("torch."),
)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))


def call(name: str, arguments: list) -> tuple:
    results = getattr(torch.ops.lath, name)(*arguments)
    return results if isinstance(results, tuple) else (results,)


def argument_name(name: str, index: int) -> str:
    return getattr(torch.ops.lath, name).default._schema.arguments[index].name


class OperatorLog(TorchDispatchMode):
    """Names of the lath operators that ran, but for questions to the planner: their answers may be remembered."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        if func.namespace == "lath" and not name.endswith("_plan"):
            self.names.append(name.removeprefix("lath::"))
        return func(*args, **(kwargs or {}))
