# SPDX-License-Identifier: Apache-2.0
"""Values that an independent float64 implementation gave, to eleven digits."""

from __future__ import annotations

import lath
import pytest
import torch
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
