# SPDX-License-Identifier: Apache-2.0
"""lath.ops.lowrank_lstm: values and gradients against torch's LSTM, its invariants, and what it refuses."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path
from types import SimpleNamespace

import lath
import pytest
import torch
from lath import _cuda, _lstm, ops
from lath._recurrent import LSTMCall, rows_and_macs
from lath.ops import lowrank_lstm
from lstm_cases import RTOL, assert_close, dense_lstm, leaves, packed, samples, weights
from operator_cases import NONE, OperatorLog, lstm_backward_arguments, lstm_operands, random
from oracles import checksums, gen
from torch.autograd import gradcheck, gradgradcheck

DTYPES = list(RTOL)
every_association = pytest.mark.parametrize("association", lath.ops.ASSOCIATIONS)


def sequence(steps, batch, d, batch_first=False, dtype=torch.float64):
    return random(*((batch, steps) if batch_first else (steps, batch)), d, dtype=dtype)


def states(batch, h, dtype=torch.float64):
    return random(batch, h, dtype=dtype, seed=50), random(batch, h, dtype=dtype, seed=51)


# ---- values and gradients --------------------------------------------------------------------------------------------


# steps, batch, in, hidden, rank, input rank: both sides of the vector registers' widths, rank above size, dense input.
SIZES = [
    (1, 1, 1, 1, 1, 1),
    (5, 3, 4, 7, 3, 2),
    (3, 2, 8, 16, 5, 0),
    (4, 17, 3, 33, 40, 5),
    (2, 1, 6, 20, 4, 3),
    (7, 130, 5, 15, 2, 0),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch_first", [False, True])
@every_association
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_against_the_lstm_of_torch(size, association, batch_first, dtype):
    steps, batch, d, h, r, in_rank = size
    x, w = sequence(steps, batch, d, batch_first, dtype), weights(d, h, r, in_rank, dtype)
    state = states(batch, h, dtype)
    given = leaves(x, *state, *w)
    got = lowrank_lstm(x, *w, *state, batch_first=batch_first, association=association)
    expected = dense_lstm(x, *state, *w, batch_first=batch_first)
    assert_close(got, expected, dtype)
    dys = [random(*t.shape, dtype=dtype, seed=70 + i) for i, t in enumerate(got)]
    scale = max(1.0, (steps * batch) ** 0.5)
    grads = (torch.autograd.grad(results, given, dys) for results in (got, expected))
    for got_grad, expected_grad in zip(*grads, strict=True):
        assert_close(got_grad / scale, expected_grad / scale, dtype)


@every_association
def test_golden_values(association):
    x, h0, c0 = gen(90, 5, 2, 3), gen(91, 2, 4, scale=0.5), gen(92, 2, 4, scale=0.5)
    w = [gen(21 + i, *s, scale=0.7) for i, s in enumerate(((2, 3), (16, 2), (3, 4), (16, 3)))]
    w += [gen(25 + i, 16, scale=0.3) for i in range(2)]
    leaves(x, h0, *w)
    y, hn, cn = lowrank_lstm(x, *w, h0, c0, association=association)
    loss = (y * gen(93, 5, 2, 4)).sum() + (hn * gen(94, 2, 4)).sum() + (cn * gen(95, 2, 4)).sum()
    loss.backward()
    assert loss.item() == pytest.approx(0.39396300789, rel=1e-10)
    expected = {
        "y": (y, -1.9750077904, 0.652726480024, 0.351492106376),
        "cn": (cn, -1.2135751334, 2.34062537829, 1.05682822529),
        "dx": (x.grad, 2.1750506085, 0.273024313137, 0.344392785819),
        "dh0": (h0.grad, 0.51145757286, -1.07826290528, 0.174274850031),
        "dv_in": (w[0].grad, -0.975586519196, -1.38591237865, 0.388928466214),
        "du_in": (w[1].grad, -0.199658633581, -2.50941473553, 2.01264999585),
        "dv": (w[2].grad, 0.331897429159, 0.35572651659, 0.0638635899207),
        "du": (w[3].grad, -0.11242987724, 0.526694673378, 0.152467642502),
        "d_bias_in": (w[4].grad, 0.967063129356, -1.26911637953, 7.09833075044),
        "d_bias": (w[5].grad, 0.967063129356, -1.26911637953, 7.09833075044),
    }
    for name, (t, *values) in expected.items():
        assert checksums(t) == pytest.approx(values, rel=1e-9), name


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("in_rank", [0, 2])
@pytest.mark.parametrize("sizes", [None, [3, 2, 1]])
def test_gradcheck(sizes, in_rank, reverse):
    x = random(6, 3, dtype=torch.float64) if sizes else sequence(2, 3, 3)
    given = [x, *weights(3, 4, 2, in_rank), *states(3, 4)]
    leaves(*given)
    batch_sizes = torch.tensor(sizes) if sizes else None

    def function(*given):
        return lowrank_lstm(*given, batch_sizes=batch_sizes, reverse=reverse)

    assert gradcheck(function, given, check_batched_grad=sizes is None)
    assert gradgradcheck(function, given)


@pytest.mark.parametrize("absent", [(), (4,), (5,), (4, 5)])
def test_absent_biases_and_states(absent):
    x, w = sequence(3, 2, 5), weights(5, 6, 2, 3)
    w = [None if i in absent else t for i, t in enumerate(w)]
    zeros = torch.zeros(2, 6, dtype=torch.float64)
    given = leaves(x, *w)
    got, expected = lowrank_lstm(x, *w), dense_lstm(x, zeros, zeros, *w)
    assert_close(got, expected, torch.float64)
    loss = [sum(t.square().sum() for t in results) for results in (got, expected)]
    assert_close(*(torch.autograd.grad(total, given) for total in loss), torch.float64)


NAMES = ("x", "v_in", "u_in", "v", "u", "bias_in", "bias", "h0", "c0")


@pytest.mark.parametrize("requires", [NAMES[:1], *itertools.combinations(NAMES, 2), *itertools.combinations(NAMES, 8)])
def test_subsets_of_gradients(requires):
    given = [sequence(3, 2, 5), *weights(5, 6, 2, 3), *states(2, 6)]
    asked = leaves(*(t for name, t in zip(NAMES, given, strict=True) if name in requires))
    x, *w, h0, c0 = given
    got, expected = lowrank_lstm(*given), dense_lstm(x, h0, c0, *w)
    grads = (torch.autograd.grad(y.square().sum() + cn.sum(), asked) for y, _, cn in (got, expected))
    assert_close(*grads, torch.float64)


@pytest.mark.parametrize("output", range(3))
def test_gradient_of_one_output(output):
    """The gradients of the two others are undefined."""
    x, w, state = sequence(3, 2, 5), weights(5, 6, 2, 3), states(2, 6)
    given = leaves(x, *w, *state)
    results = lowrank_lstm(x, *w, *state), dense_lstm(x, *state, *w)
    assert_close(*(torch.autograd.grad(r[output].sin().sum(), given) for r in results), torch.float64)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_without_kept_gates(dtype):
    x, w, state = sequence(40, 9, 5, dtype=dtype), weights(5, 23, 4, 3, dtype), states(9, 23, dtype)
    given = leaves(x, *w, *state)
    results = [lowrank_lstm(x, *w, *state, keep_gates=keep) for keep in (True, False)]
    kept, formed = (torch.autograd.grad([y, cn], given, [y.sign(), cn]) for y, _, cn in results)
    for one, other in zip(kept, formed, strict=True):
        assert_close(one / 20, other / 20, dtype)


def test_memory_that_is_kept():
    """Saved: the arguments, y, and c of every row; with the gates 4 hidden numbers a row more."""
    x, w = sequence(6, 3, 5, dtype=torch.float32), leaves(*weights(5, 8, 2, 3, torch.float32))
    for keep_gates, per_row in ((False, 2 * 8), (True, 6 * 8)):
        saved = {}

        def keep(t, saved=saved):
            return saved.setdefault(t.data_ptr(), t)

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            y = lowrank_lstm(x, *w, keep_gates=keep_gates)
        assert y[0].requires_grad
        own = x.numel() + sum(t.numel() for t in w)
        assert sum(t.numel() for t in saved.values()) == own + 18 * per_row


def test_operators_carry_first_order_and_torch_carries_second():
    x, w = sequence(2, 2, 3), leaves(*weights(3, 4, 2, 2))
    with OperatorLog() as log:
        lowrank_lstm(x, *w)[0].sum().backward()
    assert log.names == ["lowrank_lstm_forward", "lowrank_lstm_backward"]
    with OperatorLog() as log:
        torch.autograd.grad(lowrank_lstm(x, *w)[0].sum(), w, create_graph=True)
    assert log.names == ["lowrank_lstm_forward"]
    with OperatorLog() as log, torch.no_grad():
        lowrank_lstm(x, *w)
    assert log.names == ["lowrank_lstm_forward"]


# ---- invariants -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reverse", [False, True])
def test_packed_equals_samples_alone(reverse, dtype):
    lengths = (4, 1, 3, 4)
    sequences, w, (h0, c0) = samples(lengths, dtype=dtype), weights(5, 7, 3, 2, dtype), states(4, 7, dtype)
    batch = packed(lengths, dtype=dtype)
    order = batch.sorted_indices
    given = leaves(batch.data, h0, c0, *w)
    y, hn, cn = lowrank_lstm(batch.data, *w, h0[order], c0[order], batch_sizes=batch.batch_sizes, reverse=reverse)
    together, _ = torch.nn.utils.rnn.pad_packed_sequence(batch._replace(data=y))
    singles = []
    for i, sample in enumerate(sequences):
        alone = leaves(sample, h0, c0, *w)
        one = lowrank_lstm(sample[:, None], *w, h0[i : i + 1], c0[i : i + 1], reverse=reverse)
        singles.append((one, alone))
        back = batch.unsorted_indices[i]
        assert_close((together[: lengths[i], i], hn[back], cn[back]), (one[0][:, 0], one[1][0], one[2][0]), dtype)
    got = torch.autograd.grad([y.sum() + hn.square().sum() + cn.sum()], given)
    total = sum(y.sum() + hn.square().sum() + cn.sum() for (y, hn, cn), _ in singles)
    expected = torch.autograd.grad(total, [h0, c0, *w, *sequences])
    for one, other in zip(got[1:], expected, strict=False):
        assert_close(one, other, dtype)
    dx, _ = torch.nn.utils.rnn.pad_packed_sequence(batch._replace(data=got[0]))
    for i, one in enumerate(expected[-len(lengths) :]):
        assert_close(dx[: lengths[i], i], one, dtype)


@pytest.mark.parametrize("batch_first", [False, True])
def test_reverse_equals_flipped_steps(batch_first):
    x, w, state = sequence(5, 3, 4, batch_first), weights(4, 6, 2, 3), states(3, 6)
    axis = 1 if batch_first else 0
    y, hn, cn = lowrank_lstm(x, *w, *state, reverse=True, batch_first=batch_first)
    flipped, hn_flipped, cn_flipped = lowrank_lstm(x.flip(axis), *w, *state, batch_first=batch_first)
    assert torch.equal(y, flipped.flip(axis))
    assert torch.equal(hn, hn_flipped)
    assert torch.equal(cn, cn_flipped)


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_runs_with_the_state_between_equal_one(dtype):
    x, w = sequence(9, 20, 6, dtype=dtype), weights(6, 19, 4, 3, dtype)
    y, *state = lowrank_lstm(x, *w)
    first, *between = lowrank_lstm(x[:4], *w)
    second, *last = lowrank_lstm(x[4:], *w, *between)
    assert_close(torch.cat([first, second]), y, dtype)
    assert_close(last, state, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_do_not_meet(dtype):
    """A sample alone is the same sample in a batch; NaN stays in its row; later steps do not change earlier ones."""
    x, w, state = sequence(6, 21, 6, dtype=dtype), weights(6, 18, 4, 3, dtype), states(21, 18, dtype)
    y, hn, _ = lowrank_lstm(x, *w, *state)
    alone = lowrank_lstm(x[:, 4:5], *w, *(t[4:5] for t in state))
    assert_close(alone[0][:, 0], y[:, 4], dtype)
    broken = x.clone()
    broken[3, 4, 1] = math.nan
    y_broken, hn_broken, cn_broken = lowrank_lstm(broken, *w, *state)
    others = [i for i in range(21) if i != 4]
    assert y_broken[3:, 4].isnan().all()
    assert cn_broken[4].isnan().all()
    assert torch.equal(y_broken[:, others], y[:, others])
    assert torch.equal(hn_broken[others], hn[others])
    assert torch.equal(y_broken[:3], y[:3])


def test_gradient_with_nan_stays_in_its_row():
    x, w = leaves(sequence(3, 20, 4, dtype=torch.float32))[0], weights(4, 17, 2, 2, torch.float32)
    dy = torch.ones(3, 20, 17)
    dy[1, 5] = math.nan
    (dx,) = torch.autograd.grad(lowrank_lstm(x, *w)[0], x, dy)
    assert dx[:2, 5].isnan().all()
    assert dx.isnan().sum() == 2 * 4


@every_association
@pytest.mark.parametrize("keep_gates", [True, False])
@pytest.mark.parametrize(("steps", "batch"), [(30, 5), (8, 40), (3, 200)])
def test_thread_count_changes_no_bit(steps, batch, keep_gates, association):
    x, w = sequence(steps, batch, 12, dtype=torch.float32), weights(12, 50, 9, 7, torch.float32)
    state = states(batch, 50, torch.float32)
    given = leaves(x, *w, *state)

    def everything():
        results = lowrank_lstm(x, *w, *state, association=association, keep_gates=keep_gates)
        return [*results, *torch.autograd.grad(results, given, [t.detach().sin() for t in results])]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = everything()
        for count in (2, 3):
            torch.set_num_threads(count)
            for one, many in zip(expected, everything(), strict=True):
                assert torch.equal(one, many), count
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_saturation(dtype):
    x, w = 1e4 * sequence(5, 4, 3, dtype=dtype), weights(3, 18, 2, 0, dtype)
    given = leaves(x, *w)
    y, _, cn = lowrank_lstm(x, *w)
    assert (y.abs() <= 1).all()
    assert cn.isfinite().all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(y.sum(), given))


def test_ranks_of_zeros_and_a_change_of_basis_change_nothing():
    x, (v_in, u_in, v, u, *biases) = sequence(4, 3, 5), weights(5, 6, 3, 2)
    expected = lowrank_lstm(x, v_in, u_in, v, u, *biases)
    wide = torch.cat([v, v.new_zeros(2, 6)]), torch.cat([u, random(24, 2, dtype=torch.float64)], 1)
    basis = random(3, 3, dtype=torch.float64) + 3 * torch.eye(3, dtype=torch.float64)
    for other in (wide, (basis.inverse() @ v, u @ basis)):
        assert_close(lowrank_lstm(x, v_in, u_in, *other, *biases), expected, torch.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("steps", "batch"), [(3, 0), (0, 2), (0, 0)])
def test_nothing_to_do(steps, batch, dtype):
    x, w = sequence(steps, batch, 4, dtype=dtype), weights(4, 5, 2, 2, dtype)
    state = states(batch, 5, dtype)
    given = leaves(x, *w, *state)
    y, hn, cn = lowrank_lstm(x, *w, *state)
    assert y.shape == (steps, batch, 5)
    assert torch.equal(hn, state[0]) if not steps else hn.shape == (0, 5)
    grads = torch.autograd.grad(y.sum() + hn.sum() + 2 * cn.sum(), given)
    assert all(not g.any() for g in grads[:-2])
    assert torch.equal(grads[-1], torch.full((batch, 5), 2.0, dtype=dtype))


# ---- projection -----------------------------------------------------------------------------------------------------


def projected_oracle(x, h0, c0, w, w_hr):
    v_in, u_in, v, u, bias_in, bias = w
    params = [u_in if v_in is None else u_in @ v_in, u @ v, bias_in, bias, w_hr]
    y, hn, cn = torch.lstm(x, (h0[None], c0[None]), params, True, 1, 0.0, True, False, False)
    return y, hn[0], cn[0]


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [2, 5])
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("steps", [1, 6])
def test_projection(steps, with_state, rank, dtype):
    batch, d, h, p = 4, 5, 9, 3
    x, w_hr, c0 = sequence(steps, batch, d, dtype=dtype), random(p, h, dtype=dtype), random(batch, h, dtype=dtype)
    w = weights(d, h, rank, 2, dtype)
    w[2] = random(rank, p, dtype=dtype)
    h0 = random(batch, p, dtype=dtype) if with_state else torch.zeros(batch, p, dtype=dtype)
    given = leaves(x, w_hr, *w, *([h0, c0] if with_state else []))
    got = lowrank_lstm(x, *w, *((h0, c0) if with_state else ()), projection=w_hr)
    expected = projected_oracle(x, h0, c0 if with_state else torch.zeros_like(c0), w, w_hr)
    assert_close(got, expected, dtype)
    grads = (torch.autograd.grad(y.square().sum() + hn.sum() + cn.sum(), given) for y, hn, cn in (got, expected))
    for one, other in zip(*grads, strict=True):
        assert_close(one / 10, other / 10, dtype)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_projection_of_packed_and_reversed_sequences(batch_first, reverse):
    """Against a loop over the samples, each of them alone and put into its order."""
    lengths, p, h = (4, 3, 1), 3, 9
    w, w_hr = weights(5, h, 2, 2), random(p, h, dtype=torch.float64)
    w[2] = random(2, p, dtype=torch.float64)
    h0, c0 = random(3, p, dtype=torch.float64), random(3, h, dtype=torch.float64)
    batch = packed(lengths)
    options = {"reverse": reverse, "projection": w_hr}
    y, hn, cn = lowrank_lstm(batch.data, *w, h0, c0, batch_sizes=batch.batch_sizes, **options)
    padded, _ = torch.nn.utils.rnn.pad_packed_sequence(batch._replace(data=y))
    for i, sample in enumerate(samples(lengths)):
        turned = sample.flip(0) if reverse else sample
        one, h_one, c_one = projected_oracle(turned[:, None], h0[i : i + 1], c0[i : i + 1], w, w_hr)
        expected = one[:, 0].flip(0) if reverse else one[:, 0]
        assert_close((padded[: lengths[i], i], hn[i], cn[i]), (expected, h_one[0], c_one[0]), torch.float64)
        x = sample[None] if batch_first else sample[:, None]
        y_padded, *_ = lowrank_lstm(x, *w, h0[i : i + 1], c0[i : i + 1], batch_first=batch_first, **options)
        assert_close(y_padded.squeeze(0 if batch_first else 1), expected, torch.float64)


# ---- other routes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_rank", [0, 2])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("layout", ["steps", "batch_first", "packed"])
def test_routes_agree(layout, reverse, in_rank):
    """The operator; the loop in torch operators with its own gradients; the library with merged weights, as on CUDA."""
    x = packed().data if layout == "packed" else sequence(4, 3, 5, layout == "batch_first")
    sizes = packed().batch_sizes if layout == "packed" else None
    w, state = weights(5, 7, 3, in_rank), states(3, 7)
    w[5] = None
    flags = reverse, layout == "batch_first"
    given = leaves(x, *w, *state)
    expected = lowrank_lstm(x, *w, *state, batch_sizes=sizes, reverse=flags[0], batch_first=flags[1])
    dys = [random(*t.shape, dtype=torch.float64, seed=9 + i) for i, t in enumerate(expected)]
    expected_grads = torch.autograd.grad(expected, given, dys)
    numbers = _lstm.Weights(*w), _lstm.Layout.of(sizes, *flags)
    loop = _lstm.composite(x, *state, *numbers)
    library = _lstm.library(x, *state, _lstm.Weights(*w), sizes, *flags)
    for results in (loop, library):
        assert_close(results, expected, torch.float64)
        assert_close(torch.autograd.grad(results, given, dys), expected_grads, torch.float64)
    dx, dh0, dc0, dv_in, *others = _lstm.composite_grads(dys, x, *state, *numbers)
    grads = [dx, *([] if dv_in is None else [dv_in]), *others, dh0, dc0]
    assert_close(grads, list(expected_grads), torch.float64)


ROUTES = {
    "saves": ((torch.float32, 256, 51, 0, True), "steps"),
    "just saves": ((torch.float32, 1024, 819, 0, True), "steps"),
    "saves nothing": ((torch.float32, 1000, 800, 0, True), "library"),
    "cuDNN keeps the weights": ((torch.float32, 192, 20, 0, True), "library"),
    "it does not in double": ((torch.float64, 192, 20, 0, True), "steps"),
    "narrow": ((torch.bfloat16, 1024, 51, 0, True), "library"),
    "no kernels": ((torch.float32, 1024, 51, 0, False), "library"),
    "asked for factors": ((torch.float32, 64, 60, 1, True), "steps"),
    "asked for merged ones": ((torch.float32, 1024, 51, 2, True), "library"),
}


@pytest.mark.parametrize("case", ROUTES)
def test_route_on_cuda(case):
    arguments, route = ROUTES[case]
    assert _lstm.cuda_route(*arguments) == route


def test_autocast_leaves_cuda_to_the_library(monkeypatch):
    """Without a GPU: what the route asks of x is whether and where it is."""
    monkeypatch.setattr(_cuda, "status", _cuda.Status(Path("liblath_cuda.so"), ""))
    x = SimpleNamespace(is_cuda=True, dtype=torch.float32)
    w = _lstm.Weights(*weights(5, 256, 51, 2, torch.float32))
    assert ops._lstm_route(x, w, 0) == "steps"
    x.is_cuda = False
    assert ops._lstm_route(x, w, 0) == "library"
    x.is_cuda = True
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: kind == "cuda")
    assert ops._lstm_route(x, w, 0) == "library"


@pytest.mark.parametrize(("hidden", "kernel"), [(256, "steps"), (128, "library")])
def test_report_names_the_route_on_cuda(hidden, kernel, monkeypatch):
    monkeypatch.setattr(_cuda, "status", _cuda.Status(Path("liblath_cuda.so"), ""))
    lstm = lath.nn.LowRankLSTM(8, hidden, 25, num_layers=2, input_rank=(0, 25))
    call = LSTMCall((6, 3, 8), torch.float32, torch.device("cuda"))
    rows, macs, dense, name = rows_and_macs(lstm, [call])
    assert (rows, name, macs < dense) == (18, kernel, kernel == "steps")


def test_library_without_a_step_to_take():
    w = _lstm.Weights(*weights(5, 7, 3, 2))
    y, hn, cn = _lstm.library(sequence(0, 3, 5), None, None, w, None, True, False)
    assert (y.shape, hn.shape, cn.shape) == ((0, 3, 7), (3, 7), (3, 7))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script. is deprecated")
def test_forward_mode():
    x, w = sequence(3, 2, 4), weights(4, 5, 2, 2)
    tangent = random(*x.shape, dtype=torch.float64, seed=3)
    _, (dy, _, _) = torch.func.jvp(lambda x: lowrank_lstm(x, *w), (x,), (tangent,))
    jacobian = torch.autograd.functional.jacobian(lambda x: lowrank_lstm(x, *w)[0], x)
    assert_close(dy, (jacobian * tangent).flatten(3).sum(-1), torch.float64)


def test_torch_func():
    """Vmap over sequences and over weights, gradients of each sample, and a Hessian."""
    xs, w = random(3, 4, 2, 5, dtype=torch.float64), weights(5, 6, 2, 2)
    v = random(3, 2, 6, dtype=torch.float64)

    def function(x, v):
        return lowrank_lstm(x, *w[:2], v, *w[3:])[0]

    expected = torch.stack([function(x, one) for x, one in zip(xs, v, strict=True)])
    assert_close(torch.vmap(function)(xs, v), expected, torch.float64)
    grad = torch.func.grad(lambda v, x: function(x, v).square().sum())
    got = torch.vmap(grad, in_dims=(None, 0))(w[2], xs)
    for one, x in zip(got, xs, strict=True):
        leaf = w[2].clone().requires_grad_()
        assert_close(one, torch.autograd.grad(function(x, leaf).square().sum(), leaf)[0], torch.float64)
    hessian = torch.func.hessian(lambda v: function(xs[0], v).square().sum())(w[2])
    again = torch.autograd.functional.hessian(lambda v: function(xs[0], v).square().sum(), w[2])
    assert_close(hessian, again, torch.float64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types_are_computed_in_float32(dtype):
    x, w = sequence(4, 3, 5, dtype=dtype), weights(5, 6, 2, 2, dtype)
    wide = [None if t is None else t.float() for t in w]
    leaves(*w)
    got, expected = lowrank_lstm(x, *w), lowrank_lstm(x.float(), *wide)
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one, other.to(dtype))
    got[0].sum().backward()
    assert all(t.grad.dtype == dtype for t in w)
    with pytest.raises(
        RuntimeError, match=rf"lath\.lowrank_lstm: v_in: got dtype torch.float32, expected {dtype} like x"
    ):
        lowrank_lstm(x, *wide)


@pytest.mark.parametrize("dtype", DTYPES)
def test_autocast_acts_as_for_the_lstm_of_torch(dtype):
    x, w = sequence(4, 3, 5, dtype=dtype), leaves(*weights(5, 6, 2, 2, dtype))
    expected = lowrank_lstm(x, *w)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, hn, cn = lowrank_lstm(x, *w)
    kept = torch.float64 if dtype == torch.float64 else torch.bfloat16
    assert {y.dtype, hn.dtype, cn.dtype} == {kept}
    torch.testing.assert_close(y.to(dtype), expected[0], rtol=1e-2, atol=1e-2)
    y.sum().backward()
    assert all(t.grad.dtype == dtype for t in w)


def test_meta_tensors():
    x, w = sequence(4, 3, 5).to("meta"), [t.to("meta") for t in weights(5, 6, 2, 2)]
    y, hn, cn = lowrank_lstm(x, *w)
    assert y.is_meta
    assert (y.shape, hn.shape, cn.shape) == ((4, 3, 6), (3, 6), (3, 6))


def test_any_layout_of_operands():
    x, w, state = (
        sequence(4, 3, 5, dtype=torch.float32),
        weights(5, 6, 2, 2, torch.float32),
        states(3, 6, torch.float32),
    )
    expected = lowrank_lstm(x, *w, *state)
    strided = torch.zeros(8, 3, 11)[::2, :, :5].copy_(x)
    step_inside = x.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    for layout in (strided, step_inside, x.transpose(0, 1).contiguous().transpose(0, 1)):
        for one, other in zip(lowrank_lstm(layout, *w, *state), expected, strict=True):
            assert torch.equal(one, other)
    constant = x[:1, :1].expand(4, 3, 5)
    for one, other in zip(lowrank_lstm(constant, *w), lowrank_lstm(constant.contiguous(), *w), strict=True):
        assert torch.equal(one, other)


def test_every_operand_needs_a_copy():
    """As many handles as a call can come to own."""
    arguments = lstm_backward_arguments(torch.float32)
    spaced = [
        t
        if not isinstance(t, torch.Tensor)
        else torch.stack([t, t], -1)[..., 0]
        if t.dim() == 1
        else t.mT.contiguous().mT
        for t in arguments
    ]
    assert not any(t.is_contiguous() for t in spaced if isinstance(t, torch.Tensor))
    expected = torch.ops.lath.lowrank_lstm_backward(*arguments)
    for one, other in zip(torch.ops.lath.lowrank_lstm_backward(*spaced), expected, strict=True):
        assert torch.equal(one, other)


def test_batch_sizes_of_any_layout():
    *operands, batch_sizes = lstm_operands(torch.float32)
    spaced = torch.stack([batch_sizes, batch_sizes + 7], 1)[:, 0]
    expected = torch.ops.lath.lowrank_lstm_forward(*operands, batch_sizes)
    assert torch.equal(torch.ops.lath.lowrank_lstm_forward(*operands, spaced)[0], expected[0])


# ---- bad input ------------------------------------------------------------------------------------------------------


BATCH_SIZES = {
    "grow": ([2, 3, 1], "got 2 for the first step, expected 3 as h0 has rows"),
    "grow later": ([3, 1, 2], "got 2 for step 2, expected 1 to 1, as of the step before"),
    "zero": ([3, 3, 0], "got 0 for step 2, expected 1 to 3, as of the step before"),
    "negative": ([3, -1, 4], "got -1 for step 1, expected 1 to 3, as of the step before"),
    "too few": ([3, 2], "got sizes that add up to 5, expected 6 as x has rows"),
    "other dtype": (torch.tensor([3, 2, 1], dtype=torch.int32), "got dtype torch.int32, expected torch.int64"),
    "two dimensions": (torch.tensor([[3, 2, 1]]), "got shape (1, 3), expected (steps,)"),
}


@pytest.mark.parametrize("case", BATCH_SIZES)
def test_bad_batch_sizes(case):
    sizes, message = BATCH_SIZES[case]
    *operands, _ = lstm_operands(torch.float32)
    with pytest.raises(RuntimeError, match=re.escape(f"lath::lowrank_lstm_forward: batch_sizes: {message}")):
        torch.ops.lath.lowrank_lstm_forward(*operands, torch.as_tensor(sizes))


def test_packed_or_not():
    x, *operands, batch_sizes = lstm_operands(torch.float32)
    forward = torch.ops.lath.lowrank_lstm_forward
    with pytest.raises(
        RuntimeError, match=r"x: got shape \(6, 5\), expected 3 dimensions, as there are no batch_sizes"
    ):
        forward(x, *operands, NONE)
    with pytest.raises(
        RuntimeError, match=r"batch_sizes: got shape \(3,\), expected no elements for x of 3 dimensions"
    ):
        forward(x.reshape(2, 3, 5), *operands, batch_sizes)
    with pytest.raises(
        RuntimeError, match=r"h0: got shape \(0,\), expected \(batch, 7\), which a packed sequence needs"
    ):
        forward(x, NONE, *operands[1:], batch_sizes)


BAD = {
    "hidden size": (6, lambda t: t[:27], "u: got shape (27, 4), expected (4 * hidden, rank)"),
    "rank 0": (6, lambda t: t[:, :0], "v: got rank 0, expected at least 1"),
    "h0 of another batch": (1, lambda t: t[:2], "got 3 for the first step, expected 2 as h0 has rows"),
    "c0 of another batch": (2, lambda t: t[:2], "c0: got shape (2, 7), expected (3, 7), batch by hidden size"),
    "rank of v_in": (3, lambda t: t[:1], "u_in: got shape (28, 2), expected (28, 1) to match u and the rank of v_in"),
    "no v_in": (3, lambda t: t[:0], "u_in: got shape (28, 2), expected (28, 5) to match u and the last dimension of x"),
    "bias": (8, lambda t: t[:4], "bias: got shape (4,), expected (28,) to match the rows of u"),
    "bfloat16": (0, lambda t: t.bfloat16(), "x: got dtype torch.bfloat16, expected torch.float32 or torch.float64"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_operands(case):
    index, change, message = BAD[case]
    operands = lstm_operands(torch.float32)
    operands[index] = change(operands[index])
    with pytest.raises(RuntimeError, match=re.escape(message)):
        torch.ops.lath.lowrank_lstm_forward(*operands)


@pytest.mark.parametrize(
    "shape", [(2**31, 2**31, 1), (2**40, 2**20, 1), (2**45, 1, 1), (1, 2**45, 1)], ids=lambda shape: str(shape[:2])
)
def test_sizes_that_no_memory_holds(shape):
    x, (_, *w) = torch.zeros(1, 1, 1).expand(shape), weights(1, 4, 2, 0, torch.float32)
    with pytest.raises(
        RuntimeError, match=r"lath::lowrank_lstm_forward: (x|y): .*(overflow|exceeds|out of memory|fewer)"
    ):
        lowrank_lstm(x, None, *w)


def test_bad_arguments():
    x, w = sequence(2, 2, 3), weights(3, 4, 2, 2)
    with pytest.raises(ValueError, match=r"lath\.lowrank_lstm: association is 'fast', expected one of"):
        lowrank_lstm(x, *w, association="fast")
    with pytest.raises(TypeError, match=r"lath\.lowrank_lstm: x is list, expected torch\.Tensor"):
        lowrank_lstm([x], *w)
