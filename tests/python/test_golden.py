# SPDX-License-Identifier: Apache-2.0
"""Values that an independent float64 implementation gave, to eleven digits."""

from __future__ import annotations

import lath
import pytest
import torch
from lath.factor import merge_conv
from oracles import checksums, gen


def close(t, *expected):
    return checksums(t) == pytest.approx(expected, rel=1e-10)


def test_generator():
    first = [0.820718984585255, -0.192663071677089, 0.00816801749169827, 0.950012705754489]
    assert gen(1, 4).tolist() == pytest.approx(first, rel=1e-13)


@pytest.mark.parametrize("association", ["auto", "factored", "merged"])
def test_linear(association):
    x, v, u, b1, b2 = (t.requires_grad_() for t in (gen(1, 4, 7), gen(2, 3, 7), gen(3, 5, 3), gen(4, 3), gen(5, 5)))
    y = lath.ops.lowrank_linear(x, v, u, b2, b1, association)
    (y * gen(6, 4, 5)).sum().backward()
    assert close(y, 12.2577475163, -13.8284176765, 43.7777792741)
    assert close(x.grad, -4.26689036791, -4.94783205243, 15.4687410369)
    assert close(v.grad, -2.50410601615, -5.75257881671, 14.1343304223)
    assert close(u.grad, 0.867622962363, 7.95126052133, 18.727296559)
    assert close(b1.grad, -3.0563908127, 7.63346021596, 10.2400418322)
    assert torch.allclose(b2.grad, gen(6, 4, 5).sum(0), rtol=1e-14)


# dtype -> how far a checksum may be off, as a share of what its terms could add up to.
TOLERANCES = {torch.float64: 1e-11, torch.float32: 1e-6, torch.bfloat16: 1e-2}
KERNELS = [*(("fused", dtype) for dtype in TOLERANCES), *((kernel, torch.float64) for kernel in ("auto", "pair"))]


def close_in(dtype, t, *expected):
    """The checksums agree as closely as the dtype of the computation allows."""
    size = (4 * t.numel() * expected[2]) ** 0.5  # Cauchy and Schwarz, with weights up to 3
    scales = (size, 3 * size, expected[2])
    got = checksums(t)
    return all(abs(g - e) <= TOLERANCES[dtype] * s for g, e, s in zip(got, expected, scales, strict=True))


def leaves(dtype, *tensors):
    return [t.to(dtype).requires_grad_() for t in tensors]


@pytest.mark.parametrize(("kernel", "dtype"), [*KERNELS, ("merged", torch.float64)])
def test_conv2d_with_stride(kernel, dtype):
    x, v, u = leaves(dtype, gen(11, 2, 3, 7, 8), gen(12, 2, 3, 1, 3), gen(13, 5, 2, 3, 1))
    y = lath.ops.lowrank_conv2d(x, v, u, stride=2, padding=1, kernel=kernel)
    assert y.shape == (2, 5, 4, 4)
    (y * gen(16, 2, 5, 4, 4).to(dtype)).sum().backward()
    assert close_in(dtype, y, -2.24674906973, 2.32092804534, 194.637728343)
    assert close_in(dtype, x.grad, 16.482011876, 65.3533709458, 318.802814772)
    assert close_in(dtype, v.grad, 16.7932486463, 10.2130275701, 332.181806571)
    assert close_in(dtype, u.grad, 1.25693642073, -8.28244409438, 106.231388391)
    assert close_in(dtype, merge_conv(v, u), -1.51817794704, 7.9822346875, 28.3496164934)


@pytest.mark.parametrize(("kernel", "dtype"), KERNELS)
def test_conv2d_with_dilation_and_both_biases(kernel, dtype):
    """The inner bias stops at the vertical padding."""
    x, v, u, b1, b2 = leaves(
        dtype, gen(11, 2, 3, 6, 5), gen(12, 3, 3, 1, 3), gen(13, 4, 3, 3, 1), gen(14, 3), gen(15, 4)
    )
    y = lath.ops.lowrank_conv2d(x, v, u, b2, b1, padding=2, dilation=2, kernel=kernel)
    (y * gen(16, *y.shape).to(dtype)).sum().backward()
    assert close_in(dtype, y, 18.257688624, -40.8444584218, 340.519023816)
    assert close_in(dtype, x.grad, 17.5947717924, 38.0154216604, 258.682957096)
    assert close_in(dtype, b1.grad, -12.5886439579, 21.8666729926, 446.482837081)
    assert close_in(dtype, b2.grad, -24.4848131048, 42.658101141, 172.012087138)


@pytest.fixture
def factors():
    layer = lath.nn.LowRankLinear(5, 6, 2, bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight_u.copy_(gen(31, 6, 2))
        layer.weight_v.copy_(gen(32, 2, 5))
    return layer


def test_frobenius_decay(factors):
    value = lath.frobenius_decay(factors)
    value.backward()
    assert value.item() == pytest.approx(7.65436499021, rel=1e-11)
    assert close(factors.weight_u.grad, -3.86203515062, -6.1106617213, 52.5022942223)
    assert close(factors.weight_v.grad, -1.70155522677, -7.90596313515, 117.267980247)


def test_other_decays(factors):
    assert lath.kronecker_decay(factors).item() == pytest.approx(12.3698876251, rel=1e-11)
    assert lath.l2_decay(factors).item() == pytest.approx(7.28433415122, rel=1e-11)
