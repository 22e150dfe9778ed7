# SPDX-License-Identifier: Apache-2.0
"""LowRankLSTM: the call surface of nn.LSTM, factoring and merging, checkpoints, and what it refuses."""

from __future__ import annotations

import copy
import io
import itertools
import math
import pickle
import re

import lath
import pytest
import torch
from lath.nn import LowRankLSTM
from lstm_cases import assert_close, assert_same_function, packed
from operator_cases import random
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence

F64 = torch.float64


def lstm(*sizes, rank=3, dtype=F64, **options):
    torch.manual_seed(2)
    return LowRankLSTM(*(sizes or (5, 8)), rank, dtype=dtype, **options)


def states(module, batch=3, dtype=F64):
    count = module.num_layers * (2 if module.bidirectional else 1)
    sizes = module.proj_size or module.hidden_size, module.hidden_size
    return tuple(random(count, batch, size, dtype=dtype, seed=i) for i, size in enumerate(sizes))


# ---- the call surface of nn.LSTM ------------------------------------------------------------------------------------

OPTIONS = [
    dict(zip(("num_layers", "bias", "batch_first", "bidirectional", "proj_size"), values, strict=True))
    for values in itertools.product((1, 3), (True, False), (True, False), (True, False), (0, 4))
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
def test_same_function_as_the_merged_lstm(options):
    module = lstm(**options)
    dense = module.to_dense()
    x = random(3, 3, 5, dtype=F64)
    inputs = [x, x[:, 0], packed(), packed((1, 1)), pack_sequence([random(n, 5, dtype=F64) for n in (3, 2)])]
    for given in inputs:
        batch = int(given.batch_sizes[0]) if isinstance(given, PackedSequence) else 3
        hx = states(module, batch)
        if given.__class__ is torch.Tensor and given.dim() == 2:
            hx = tuple(t[:, 0] for t in hx)
        assert_same_function(module, dense, given)
        assert_same_function(module, dense, given, hx)


def test_positional_arguments_are_those_of_the_design():
    module = LowRankLSTM(5, 8, 3, 2, False, True, 0.5, True, 4, 2)
    assert repr(module) == (
        "LowRankLSTM(5, 8, rank=3, input_rank=2, proj_size=4, num_layers=2, bias=False, batch_first=True, dropout=0.5, "
        "bidirectional=True)"
    )
    assert repr(LowRankLSTM(5, 8, 3)) == "LowRankLSTM(5, 8, rank=3, input_rank=3)"
    assert repr(LowRankLSTM(2, 8, (3, 2), 2, input_rank=(0, 1))) == (
        "LowRankLSTM(2, 8, rank=(3, 2), input_rank=(0, 1), num_layers=2)"
    )


@pytest.mark.parametrize("proj_size", [0, 4])
@pytest.mark.parametrize("bias", [True, False])
def test_parameters(bias, proj_size):
    module = LowRankLSTM(3, 8, 3, num_layers=2, bias=bias, bidirectional=True, proj_size=proj_size)
    h, width = 8, proj_size or 8
    expected = {}
    for layer, end in itertools.product(range(2), ("", "_reverse")):
        suffix = f"_l{layer}{end}"
        if layer == 0:  # rank 3 of 3 features would cost more
            expected |= {f"weight_ih{suffix}": (4 * h, 3)}
        else:
            expected |= {f"weight_ih_v{suffix}": (3, 2 * width), f"weight_ih_u{suffix}": (4 * h, 3)}
        expected |= {f"weight_hh_v{suffix}": (3, width), f"weight_hh_u{suffix}": (4 * h, 3)}
        if bias:
            expected |= {f"bias_ih{suffix}": (4 * h,), f"bias_hh{suffix}": (4 * h,)}
        if proj_size:
            expected |= {f"weight_hr{suffix}": (proj_size, h)}
    assert {name: tuple(p.shape) for name, p in module.named_parameters()} == expected
    assert list(module.state_dict()) == list(expected)
    assert [p for several in module.all_weights for p in several] == list(module.parameters())
    assert module.flatten_parameters() is None


def test_published_numbers_of_parameters():
    """The character model: an embedding of 800 and a decoder of 7,240 numbers beside an LSTM from 8 to 256."""
    counts = {
        260_608: {"rank": 51, "input_rank": 51},
        133_936: {"rank": 25, "input_rank": 25},
        209_008: {"rank": 51, "input_rank": (1, 51)},
        216_168: {"rank": 51},
        1_006_024: {"rank": 204, "input_rank": 204},
    }
    for count, ranks in counts.items():
        module = LowRankLSTM(8, 256, num_layers=2, device="meta", **ranks)
        assert sum(p.numel() for p in module.parameters()) + 800 + 7_240 == count


def test_default_input_rank_is_dense_where_that_is_cheaper():
    module = LowRankLSTM(8, 256, 51, 2, device="meta")
    assert (module.ranks, module.input_ranks, module.rank) == ((51, 51), (0, 51), 51)
    assert LowRankLSTM(8, 256, (7, 8), 2, device="meta").input_ranks == (7, 8)
    assert LowRankLSTM(8, 256, 8, device="meta").input_ranks == (0,)  # 8 * (8 + 1024) > 8 * 1024


def test_initialization():
    module = LowRankLSTM(64, 64, 16, num_layers=2)
    for parameter in module.parameters():
        assert parameter.abs().max() <= 1 / 8
        assert parameter.std().item() == pytest.approx(1 / 8 / 3**0.5, rel=0.15)
    module.reset_parameters("spectral")
    for pair in module.pairs():
        weight = getattr(module, pair.u) @ getattr(module, pair.v)
        singular = torch.linalg.svdvals(weight)
        assert (singular[16:] < 1e-5).all()
        assert singular[0] > 1  # of a dense draw of this size; that of the product of two draws is 0.4
    with pytest.raises(ValueError, match=r"LowRankLSTM\.reset_parameters: init is 'zeros', expected"):
        module.reset_parameters("zeros")


def test_dropout():
    x = random(6, 3, 5, dtype=F64)
    plain, dropped = lstm(num_layers=3), lstm(num_layers=3, dropout=0.5)
    dropped.load_state_dict(plain.state_dict())
    expected, _ = plain(x)
    assert torch.equal(dropped.eval()(x)[0], expected)
    dropped.train()
    torch.manual_seed(1)
    first, _ = dropped(x)
    torch.manual_seed(1)
    assert torch.equal(dropped(x)[0], first)
    assert not torch.allclose(dropped(x)[0], first)
    dropped.dropout = 1.0  # every layer but the last gives zeros
    alone = LowRankLSTM(8, 8, 3, dtype=F64)
    alone.load_state_dict({k.replace("_l2", "_l0"): v for k, v in plain.state_dict().items() if "_l2" in k})
    assert_close(dropped(x)[0], alone(torch.zeros(6, 3, 8, dtype=F64))[0], F64)
    with pytest.warns(UserWarning, match=r"LowRankLSTM: dropout is 0\.5, but"):
        LowRankLSTM(5, 8, 3, dropout=0.5)


def test_bidirectional_equals_two_runs_with_a_flip():
    module = lstm(bidirectional=True)
    forward, backward = lstm(), lstm()
    state = module.state_dict()
    forward.load_state_dict({k: v for k, v in state.items() if not k.endswith("_reverse")})
    backward.load_state_dict({k.removesuffix("_reverse"): v for k, v in state.items() if k.endswith("_reverse")})
    x, (h, c) = random(4, 3, 5, dtype=F64), states(module)
    y, (hn, cn) = module(x, (h, c))
    y_one, (h_one, c_one) = forward(x, (h[:1], c[:1]))
    y_two, (h_two, c_two) = backward(x.flip(0), (h[1:], c[1:]))
    assert torch.equal(y, torch.cat([y_one, y_two.flip(0)], -1))
    assert torch.equal(hn, torch.cat([h_one, h_two]))
    assert torch.equal(cn, torch.cat([c_one, c_two]))


@pytest.mark.parametrize("proj_size", [0, 3])
def test_packed_sequences_equal_samples_alone(proj_size):
    module = lstm(num_layers=2, bidirectional=True, proj_size=proj_size)
    lengths = (2, 5, 1, 5)
    sequences = [random(n, 5, dtype=F64, seed=i) for i, n in enumerate(lengths)]
    hx = states(module, 4)
    y, (hn, cn) = module(pack_sequence(sequences, enforce_sorted=False), hx)
    padded, found = pad_packed_sequence(y)
    assert found.tolist() == list(lengths)
    for i, sequence in enumerate(sequences):
        one, (h, c) = module(sequence, tuple(t[:, i] for t in hx))
        assert_close(padded[: lengths[i], i], one, F64)
        assert_close((hn[:, i], cn[:, i]), (h, c), F64)
        assert not padded[lengths[i] :, i].any()


def test_projected_lstm_is_the_low_rank_one():
    """The low-rank stack with a factored decoder is an LSTM with projections, without any merging of weights."""
    d, h, r, r_next, out = 5, 9, 3, 2, 6
    module = lstm(d, h, num_layers=2, input_rank=(4, r_next))
    decoder_v, decoder_u = random(r_next, h, dtype=F64), random(out, r_next, dtype=F64)
    projected = nn.LSTM(d, h, 2, proj_size=r + r_next, dtype=F64)
    nexts = module.weight_ih_v_l1, decoder_v
    with torch.no_grad():
        projected.weight_ih_l0.copy_(module.weight_ih_u_l0 @ module.weight_ih_v_l0)
        zeros = torch.zeros(4 * h, r, dtype=F64)
        projected.weight_ih_l1.copy_(torch.cat([zeros, module.weight_ih_u_l1], 1))
        for layer in range(2):
            u, v = (getattr(module, f"weight_hh_{name}_l{layer}") for name in "uv")
            getattr(projected, f"weight_hr_l{layer}").copy_(torch.cat([v, nexts[layer]]))
            getattr(projected, f"weight_hh_l{layer}").copy_(torch.cat([u, torch.zeros(4 * h, r_next, dtype=F64)], 1))
            for name in (f"bias_ih_l{layer}", f"bias_hh_l{layer}"):
                getattr(projected, name).copy_(getattr(module, name))
    x, (h0, c0) = random(7, 3, d, dtype=F64), states(module)
    h0_projected = torch.stack([h0[layer] @ getattr(projected, f"weight_hr_l{layer}").mT for layer in range(2)])
    y, (_, cn) = module(x, (h0, c0))
    y_projected, (_, cn_projected) = projected(x, (h0_projected, c0))
    assert_close(y @ decoder_v.mT @ decoder_u.mT, y_projected[..., r:] @ decoder_u.mT, F64)
    assert_close(cn, cn_projected, F64)


def test_low_rank_of_the_published_training_code():
    """Its cell, step by step: two products for x and two for h."""
    module = lstm(8, 20, rank=6, input_rank=6, num_layers=2)
    x = random(7, 3, 8, dtype=F64)
    rows = x
    for layer in range(2):
        v_in, u_in, v, u, bias_in, bias = module.all_weights[layer]
        h = c = torch.zeros(3, 20, dtype=F64)
        ys = []
        for step in rows:
            a = step @ v_in.T @ u_in.T + bias_in + h @ v.T @ u.T + bias
            i, f, g, o = a.chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            ys.append(h)
        rows = torch.stack(ys)
    assert_close(module(x)[0], rows, F64)


@pytest.mark.parametrize("hidden", [1, 7, 15, 17, 48])
def test_float32(hidden):
    module = LowRankLSTM(6, hidden, 4, num_layers=2, bidirectional=True)
    x = random(9, 5, 6)
    assert_same_function(module, module.to_dense(), x, dtype=torch.float32)
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    dense = module.to_dense()
    for leaf, layer in zip(leaves, (module, dense), strict=True):
        layer(leaf)[0].square().sum().backward()
    assert_close(leaves[0].grad, leaves[1].grad, torch.float32)
    for pair in module.pairs():
        if pair.rank:
            weight = getattr(dense, pair.dense).grad
            v, u = getattr(module, pair.v), getattr(module, pair.u)
            assert_close(u.grad / 10, weight @ v.detach().mT / 10, torch.float32)
            assert_close(v.grad / 10, u.detach().mT @ weight / 10, torch.float32)


def test_memory_mode_has_the_same_gradients():
    x = random(12, 7, 6)
    grads = []
    for keep_gates in (True, False):
        torch.manual_seed(0)
        module = LowRankLSTM(6, 18, 4, num_layers=2, keep_gates=keep_gates)
        module(x)[0].square().sum().backward()
        grads.append([p.grad for p in module.parameters()])
    assert_close(*grads, torch.float32)
    assert "keep_gates=False" in repr(module)


def test_empty_batch():
    module = lstm(num_layers=2)
    y, (h, c) = module(torch.zeros(4, 0, 5, dtype=F64))
    assert (y.shape, h.shape, c.shape) == ((4, 0, 8), (2, 0, 8), (2, 0, 8))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types(dtype):
    module = LowRankLSTM(6, 10, 4, dtype=dtype)
    x = random(5, 3, 6, dtype=dtype)
    y, (h, c) = module(x)
    assert {y.dtype, h.dtype, c.dtype} == {dtype}
    torch.testing.assert_close(y.float(), module.float()(x.float())[0], rtol=1e-2, atol=1e-2)


def test_copies():
    module = lstm(num_layers=2).eval()
    x = random(4, 3, 5, dtype=F64)
    expected = module(x)[0]
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(x)[0], expected)
        assert not other.training
    assert module.to("meta")(x.to("meta"))[0].shape == expected.shape


def test_export_and_compile():
    module = LowRankLSTM(5, 8, 3, num_layers=2, bidirectional=True)
    x, hx = random(4, 3, 5), states(module, dtype=torch.float32)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    results = []
    for layer in (module, compiled):
        module.zero_grad()
        y, (h, c) = layer(x, hx)
        (y.square().sum() + h.sum() + c.sum()).backward()
        results.append([y.detach(), h.detach(), c.detach(), *(p.grad for p in module.parameters())])
    assert_close(*results, torch.float32)
    program = torch.export.export(module, (x, hx))
    assert_close(program.module()(x, hx)[0], module(x, hx)[0], torch.float32)


def test_one_graph_for_every_length_and_batch():
    module = LowRankLSTM(5, 8, 3, num_layers=2)
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=counter)
    for steps, batch in ((4, 3), (7, 5), (9, 6)):
        x = random(steps, batch, 5)
        assert_close(compiled(x)[0], module(x)[0], torch.float32)
    assert counter.frame_count == 1


# ---- factoring and merging ------------------------------------------------------------------------------------------


def dense_lstm(*sizes, **options):
    torch.manual_seed(4)
    return nn.LSTM(*(sizes or (5, 8)), dtype=F64, **options)


@pytest.mark.parametrize("proj_size", [0, 4])
def test_from_dense_at_full_rank_is_the_same_function(proj_size):
    dense = dense_lstm(num_layers=2, bidirectional=True, proj_size=proj_size)
    module = LowRankLSTM.from_dense(dense, 8, (5, 16 if not proj_size else 8))
    assert_same_function(module, dense, random(4, 3, 5, dtype=F64))
    assert_same_function(module.to_dense(), dense, random(4, 3, 5, dtype=F64))


def test_from_dense_is_the_best_approximation():
    dense = dense_lstm()
    module = LowRankLSTM.from_dense(dense, 3, 2)
    for pair in module.pairs():
        weight = getattr(dense, pair.dense)
        error = torch.linalg.norm(getattr(module, pair.u) @ getattr(module, pair.v) - weight)
        expected = torch.linalg.svdvals(weight)[pair.rank :].square().sum().sqrt()
        assert error.item() == pytest.approx(expected.item(), rel=1e-10)


def test_from_dense_carries_everything_over():
    dense = dense_lstm(num_layers=2, batch_first=True, dropout=0.25, bidirectional=True, proj_size=3).eval()
    dense.weight_hh_l1.requires_grad_(False)
    dense.bias_ih_l0_reverse.requires_grad_(False)
    module = LowRankLSTM.from_dense(dense, 3)
    assert (module.dropout, module.batch_first, module.training) == (0.25, True, False)
    frozen = {name for name, p in module.named_parameters() if not p.requires_grad}
    assert frozen == {"weight_hh_v_l1", "weight_hh_u_l1", "bias_ih_l0_reverse"}
    for name in ("bias_hh_l1", "weight_hr_l0_reverse"):
        assert torch.equal(getattr(module, name), getattr(dense, name))
    back = module.to_dense()
    assert {n for n, p in back.named_parameters() if not p.requires_grad} == {"weight_hh_l1", "bias_ih_l0_reverse"}
    assert repr(back) == repr(dense)
    assert not back.training
    single = nn.LSTM(5, 8, dtype=F64)
    single.dropout = 0.5
    assert LowRankLSTM.from_dense(single, 3).to_dense().dropout == 0.5


def test_fresh_factors_keep_the_sizes_alone():
    torch.manual_seed(3)
    expected = LowRankLSTM(5, 8, 3, dtype=F64).state_dict()
    dense = dense_lstm()
    torch.manual_seed(3)
    fresh = LowRankLSTM.from_dense(dense, 3, init="fresh").state_dict()
    assert all(torch.equal(fresh[name], value) for name, value in expected.items())


def test_merging_changes_nothing():
    module = lstm(num_layers=2, bidirectional=True)
    before = copy.deepcopy(module.state_dict())
    once = module.to_dense()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    again = LowRankLSTM.from_dense(once, 3).to_dense()
    assert_close(list(again.parameters()), list(once.parameters()), F64)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda m: nn.GRU(5, 8), TypeError, "LowRankLSTM.from_dense: module is GRU, expected torch.nn.LSTM"),
        (
            lambda m: m.weight_hh_l0.data.fill_(math.nan) is None or m,
            ValueError,
            "weight_hh_l0: the weight contains NaN",
        ),
    ],
)
def test_from_dense_refuses(change, error, message):
    with pytest.raises(error, match=re.escape(message)):
        LowRankLSTM.from_dense(change(dense_lstm()), 3)


def test_freeze():
    x = random(4, 3, 5)
    low, high = LowRankLSTM(5, 8, 3).eval(), LowRankLSTM(5, 8, 7).eval()
    assert not low.freeze()
    assert high.freeze()
    with torch.no_grad():
        expected = high(x)[0]
        high.bias_ih_l0.add_(1)  # seen, so that the copy is not used
        assert_close(high(x)[0], high.to_dense()(x)[0], torch.float32)
        assert not torch.allclose(high(x)[0], expected)
    assert high.freeze()
    high(x)[0].sum().backward()
    assert high.weight_hh_v_l0.grad is not None
    high.train()
    assert high._frozen is None
    model = nn.ModuleList([high.eval(), low])
    assert lath.freeze(model) == ["0"]
    lath.unfreeze(model)
    assert high._frozen is None


# ---- checkpoints ----------------------------------------------------------------------------------------------------


def test_own_state_dict():
    module, other = (
        lstm(num_layers=2, bidirectional=True, proj_size=3),
        LowRankLSTM(5, 8, 3, 2, bidirectional=True, proj_size=3, dtype=F64),
    )
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer))
    assert_same_function(other, module, random(4, 3, 5, dtype=F64))


def test_state_dict_of_a_dense_lstm():
    dense = dense_lstm(num_layers=2, bidirectional=True, proj_size=4)
    model = nn.ModuleDict(
        {"rnn": LowRankLSTM(5, 8, 4, 2, bidirectional=True, proj_size=4, input_rank=(0, 4), dtype=F64)}
    )
    assert not any(model.load_state_dict({f"rnn.{name}": t for name, t in dense.state_dict().items()}))
    expected = LowRankLSTM.from_dense(dense, 4, (0, 4))
    assert_same_function(model["rnn"], expected, random(4, 3, 5, dtype=F64))


def test_state_dict_of_the_published_training_code():
    rank, theirs = 6, {}
    for layer, d in enumerate((8, 20)):
        shapes = {"weight_ih_VT": (rank, d), "weight_ih_U": (80, rank), "weight_hh_VT": (rank, 20)}
        shapes |= {"weight_hh_U": (80, rank), "bias_ih": (80,), "bias_hh": (80,)}
        theirs |= {f"rnn.layers.{layer}.cell.{n}": random(*s, dtype=F64, seed=layer) for n, s in shapes.items()}
    model = nn.ModuleDict({"rnn": LowRankLSTM(8, 20, rank, 2, input_rank=rank, dtype=F64)})
    model.load_state_dict(theirs)
    assert torch.equal(model["rnn"].weight_ih_v_l1, theirs["rnn.layers.1.cell.weight_ih_VT"])
    dense_input = nn.ModuleDict({"rnn": LowRankLSTM(8, 20, rank, 2, input_rank=(0, rank), dtype=F64)})
    dense_input.load_state_dict(theirs)
    assert_same_function(dense_input["rnn"], model["rnn"], random(4, 3, 8, dtype=F64))
    cell = LowRankLSTM(8, 20, rank, input_rank=rank, dtype=F64)
    cell.load_state_dict({k.removeprefix("rnn.layers.0.cell."): v for k, v in theirs.items() if ".0." in k})
    assert torch.equal(cell.weight_hh_u_l0, theirs["rnn.layers.0.cell.weight_hh_U"])
    dense = {"layers.0.cell.weight_ih": (80, 8), "layers.0.cell.weight_hh": (80, 20)}
    dense = {name: random(*shape, dtype=F64) for name, shape in dense.items()}
    biases = {f"layers.0.cell.{name}": torch.zeros(80) for name in ("bias_ih", "bias_hh")}
    cell = LowRankLSTM(8, 20, 20, input_rank=8, dtype=F64)
    cell.load_state_dict({**dense, **biases})
    assert_close(cell.weight_hh_u_l0 @ cell.weight_hh_v_l0, dense["layers.0.cell.weight_hh"], F64)


def test_state_dicts_that_do_not_fit():
    module = LowRankLSTM(5, 8, 3)
    with pytest.raises(
        RuntimeError, match=r"size mismatch for weight_ih_l0: the checkpoint has \(36, 5\), the layer needs"
    ):
        module.load_state_dict(nn.LSTM(5, 9).state_dict())
    with pytest.raises(RuntimeError, match="size mismatch for weight_hh_v_l0"):
        module.load_state_dict(LowRankLSTM(5, 8, 2, input_rank=3).state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        module.load_state_dict({})
    broken = nn.LSTM(5, 8).state_dict()
    broken["weight_ih_l0"][0, 0] = math.nan
    with pytest.raises(RuntimeError, match="weight_ih_l0: the weight contains NaN or infinity"):
        module.load_state_dict(broken)


# ---- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((5, 8, 0), ValueError, "LowRankLSTM: rank is 0, expected 1 or more"),
        ((5, 8, 2.0), TypeError, "LowRankLSTM: rank is 2.0, expected an int"),
        ((5, 8, True), TypeError, "LowRankLSTM: rank is True, expected an int"),
        ((5, 8, (2, 2)), ValueError, "LowRankLSTM: rank has 2 numbers, expected one, or one for each layer: 1"),
        ((5, 0, 1), ValueError, "LowRankLSTM: hidden_size is 0, expected 1 or more"),
        ((0, 5, 1), ValueError, "LowRankLSTM: input_size is 0, expected 1 or more"),
        ((5, 8.0, 1), TypeError, "LowRankLSTM: hidden_size is 8.0, expected an int"),
        ((5, 8, 1, 0), ValueError, "LowRankLSTM: num_layers is 0, expected 1 or more"),
        ((5, 8, 1, 2, 1), TypeError, "LowRankLSTM: bias is 1, expected a bool"),
        ((5, 8, 1, 2, True, False, 1.5), ValueError, "LowRankLSTM: dropout is 1.5, expected a number from 0 to 1"),
        ((5, 8, 1, 1, True, False, 0.0, False, 8), ValueError, "proj_size is 8, expected less than hidden_size, 8"),
        ((5, 8, 1, 1, True, False, 0.0, False, 0, -1), ValueError, "LowRankLSTM, input_rank: rank is -1"),
    ],
)
def test_bad_sizes(arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        LowRankLSTM(*arguments)


def zeros(*shape, **kwargs):
    return torch.zeros(shape, **kwargs)


@pytest.mark.parametrize(
    ("x", "hx", "error", "message"),
    [
        (zeros(4, 3, 6), None, RuntimeError, "input: got shape (4, 3, 6), expected 5 in the last place"),
        (zeros(5), None, ValueError, "input: got shape (5,), expected 2 or 3 dimensions"),
        (zeros(0, 3, 5), None, RuntimeError, "input: got shape (0, 3, 5), expected at least one step"),
        (zeros(0, 5), None, RuntimeError, "input: got shape (0, 5), expected at least one step"),
        (
            zeros(4, 3, 5, dtype=F64),
            None,
            ValueError,
            "input: got dtype torch.float64, expected torch.float32 as of the",
        ),
        ([1.0], None, TypeError, "input is list, expected a tensor or a PackedSequence"),
        (zeros(4, 3, 5), zeros(2, 1, 3, 8), TypeError, "hx is Tensor, expected a tuple of two tensors, (h_0, c_0)"),
        (zeros(4, 3, 5), (zeros(1, 3, 8),), TypeError, "hx is tuple, expected a tuple of two tensors, (h_0, c_0)"),
        (
            zeros(4, 3, 5),
            (zeros(1, 2, 8), zeros(1, 3, 8)),
            RuntimeError,
            "h_0: got shape (1, 2, 8), expected (1, 3, 8)",
        ),
        (zeros(4, 3, 5), (zeros(1, 3, 8), zeros(3, 8)), RuntimeError, "c_0: got shape (3, 8), expected (1, 3, 8)"),
        (zeros(4, 5), (zeros(1, 8), zeros(1, 1, 8)), RuntimeError, "c_0: got shape (1, 1, 8), expected (1, 8)"),
        (
            zeros(4, 3, 5),
            (zeros(1, 3, 8, device="meta"), zeros(1, 3, 8)),
            RuntimeError,
            "h_0: got a tensor on meta, expected cpu like input",
        ),
        (zeros(4, 3, 5), (zeros(1, 3, 8), zeros(1, 3, 8, dtype=F64)), RuntimeError, "c0: got dtype torch.float64"),
    ],
    ids=range(13),
)
def test_bad_calls(x, hx, error, message):
    with pytest.raises(error, match=re.escape(message)):
        LowRankLSTM(5, 8, 3)(x, hx)


def test_lengths_of_packed_sequences():
    """Torch refuses to pack sequences that are not sorted, or empty; what is packed by hand reaches the operator."""
    module = LowRankLSTM(5, 8, 3)
    with pytest.raises(RuntimeError, match="sorted in decreasing order"):
        module(pack_sequence([zeros(2, 5), zeros(3, 5)]))
    with pytest.raises(RuntimeError, match="greater than 0"):
        module(pack_sequence([zeros(2, 5), zeros(0, 5)]))
    for sizes, message in (
        ([2, 3], "got 3 for step 1, expected 1 to 2"),
        ([3, 2, 0], "got 0 for step 2, expected 1 to 2"),
    ):
        with pytest.raises(RuntimeError, match=f"batch_sizes: {message}"):
            module(PackedSequence(zeros(5, 5), torch.tensor(sizes)))
    with pytest.raises(RuntimeError, match=r"h_0: got shape \(1, 3, 8\), expected \(1, 2, 8\)"):
        module(packed((2, 1), dtype=torch.float32), (zeros(1, 3, 8), zeros(1, 3, 8)))
