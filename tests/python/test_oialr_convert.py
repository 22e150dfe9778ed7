# SPDX-License-Identifier: Apache-2.0
"""lath.OIALR in convert, restore, report and dense_state_dict: what is swapped, what is left and why."""

from __future__ import annotations

import copy
import gc
import json
import math
import weakref

import lath
import pytest
import torch
from lath.nn import LowRankConv2d, LowRankLinear, OIALRConv2d, OIALRLinear, OIALRMultiheadAttention
from lath.nn.cored import Cored
from oialr_cases import assert_orthonormal, assert_storage_is_exact, network
from torch import nn
from torch.nn.utils import parametrizations, prune

ALL = lath.OIALR(keep_last=False)
NAMES = ["0", "3", "6.0", "6.2", "8"]


def thin_names(model):
    return [name for name, module in model.named_modules() if isinstance(module, Cored)]


def images(dtype=torch.float32):
    return torch.randn(2, 3, 12, 12, dtype=dtype)


# ---- the spec -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"rank_ratio": 0.0}, ValueError, r"OIALR: rank_ratio is 0\.0, expected a number above 0"),
        ({"rank_ratio": 1.5}, ValueError, "OIALR: rank_ratio is 1.5"),
        ({"rank_ratio": None}, TypeError, "OIALR: rank_ratio is None"),
        ({"keep_first": 1}, TypeError, "OIALR: keep_first is 1, expected a bool"),
        ({"keep_last": None}, TypeError, "OIALR: keep_last is None"),
        ({"wide_convolutions": 0}, TypeError, "OIALR: wide_convolutions is 0"),
        ({"aspect": "10"}, TypeError, "OIALR: aspect is '10'"),
        ({"aspect": 1}, ValueError, "OIALR: aspect is 1, expected more than 1"),
        ({"aspect": math.nan}, ValueError, "OIALR: aspect is nan"),
    ],
)
def test_spec_is_checked_when_made(fields, error, message):
    with pytest.raises(error, match=message):
        lath.OIALR(**fields)


@pytest.mark.parametrize("ratio", [1.0, 0.5, 0.29])
def test_rank_is_a_share_of_the_smaller_side(ratio):
    model = nn.Sequential(nn.Linear(100, 60), nn.Linear(60, 100), nn.Conv2d(100, 50, 2))
    lath.convert(model, lath.OIALR(ratio, keep_last=False))
    assert [layer.rank for layer in model] == [int(60 * ratio), int(60 * ratio), int(50 * ratio)]
    assert_orthonormal(model, 1e-4)


def test_rank_zero_names_the_layer():
    model = nn.Sequential(nn.Linear(30, 20), nn.Linear(9, 4))
    before = list(model)
    with pytest.raises(ValueError, match=r"layer '1' \(9 to 4\): rank_ratio 0.2 gives rank 0"):
        lath.convert(model, lath.OIALR(0.2, keep_last=False))
    assert list(model) == before


# ---- what is converted ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "left"),
    [
        ({"keep_last": False}, set()),
        ({}, {"8"}),
        ({"keep_first": True}, {"0", "8"}),
        ({"keep_first": True, "keep_last": False}, {"0"}),
        ({"keep_last": False, "aspect": 4.0}, {"3"}),  # 16 x 72; the others are below 4
        ({"keep_last": False, "aspect": 4.0, "wide_convolutions": True}, set()),
        ({"keep_first": True, "keep_last": False, "aspect": 2.4}, {"0", "3", "6.0", "8"}),
    ],
)
def test_which_layers(fields, left):
    """The ends are of the layers that the aspect leaves."""
    model = network()
    report = lath.convert(model, lath.OIALR(**fields))
    assert set(NAMES) - set(thin_names(model)) == left
    assert {row.name for row in report if row.reason} == left
    assert [row.name for row in report] == NAMES


@pytest.mark.parametrize(("out", "left"), [(79, False), (80, True)])
def test_aspect_is_strict(out, left):
    """Converted only if the shorter side is more than a tenth of the longer one."""
    for layer in (nn.Linear(8, out), nn.Linear(out, 8), nn.Conv1d(4, out, 2), nn.Conv1d(out, 8, 1)):
        model = nn.Sequential(layer)
        (row,) = lath.convert(model, ALL)
        assert bool(row.reason) == left
        assert "too long for aspect 10" in (row.reason or "too long for aspect 10")


def test_aspect_of_convolutions_as_published():
    """The public code tests them for too many rows alone."""
    wide, tall = nn.Sequential(nn.Conv2d(8, 4, 5)), nn.Sequential(nn.Conv2d(2, 80, 2))
    spec = lath.OIALR(keep_last=False, wide_convolutions=True)
    assert lath.convert(wide, spec)["0"].reason is None
    assert "80 x 8 is too long" in lath.convert(tall, spec)["0"].reason
    assert "4 x 200 is too long" in lath.convert(nn.Sequential(nn.Conv2d(8, 4, 5)), ALL)["0"].reason
    linear = nn.Sequential(nn.Linear(200, 4))
    assert lath.convert(linear, spec)["0"].reason is not None
    assert lath.convert(linear, lath.OIALR(keep_last=False, aspect=math.inf))["0"].reason is None


def test_convolutions_of_all_dimensions():
    model = nn.ModuleList([nn.Conv1d(4, 6, 3), nn.Conv3d(2, 6, 2), nn.ConvTranspose2d(4, 4, 3), nn.Conv2d(4, 4, 3)])
    report = lath.convert(model, ALL)
    kinds = ["OIALRConv1d", "OIALRConv3d", "ConvTranspose2d", "OIALRConv2d"]
    assert [type(layer).__name__ for layer in model] == kinds
    assert [row.kind for row in report] == ["OIALRConv1d", "OIALRConv3d", "OIALRConv2d"]
    assert "3, 1 " in str(report)
    assert "2x2x2, 1x1x1" in str(report)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_function_is_kept(dtype):
    model, x = network().to(dtype).eval(), images(dtype)
    expected = model(x)
    lath.convert(model, ALL)
    assert thin_names(model) == NAMES
    close = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]
    torch.testing.assert_close(model(x), expected, rtol=close, atol=close)
    assert_storage_is_exact(model)
    assert lath.restore(model) == NAMES
    assert [type(m) for m in model.modules()] == [type(m) for m in network().modules()]
    torch.testing.assert_close(model(x), expected, rtol=close, atol=close)


def test_biases_stay_the_same_parameters():
    model = network()
    before = {name: p for name, p in model.named_parameters() if name.endswith("bias")}
    lath.convert(model, ALL)
    after = dict(model.named_parameters())
    assert before
    assert all(after[name] is p for name, p in before.items())


def subclass():
    class Mine(nn.Linear):
        pass

    return Mine(20, 20)


def replaced_forward():
    layer = nn.Conv1d(8, 8, 3)
    layer.forward = lambda x: x
    return layer


LEFT = {
    "subclass": (subclass, "a subclass of nn.Linear: Mine"),
    "lazy": (lambda: nn.LazyConv1d(8, 3), "a subclass of nn.Conv1d|lazy"),
    "parametrized": (lambda: parametrizations.weight_norm(nn.Conv3d(4, 8, 2)), "parametrized"),
    "pruned": (lambda: prune.random_unstructured(nn.Linear(20, 20), "weight", 0.5), "computed from other tensors"),
    "forward": (replaced_forward, "its forward was replaced"),
    "half": (lambda: nn.Conv1d(8, 8, 3).half(), "torch.float16"),
    "depthwise": (lambda: nn.Conv1d(8, 8, 3, groups=8), "depthwise"),
    "recurrent": (lambda: nn.LSTM(8, 8), "it has no form of this layer"),
}


@pytest.mark.parametrize("case", LEFT)
def test_left_with_a_reason(case):
    """Public defect: such layers were replaced, and what they did was lost."""
    make, reason = LEFT[case]
    model = nn.Sequential(make(), nn.Linear(40, 40))
    report = lath.convert(model, ALL)
    assert thin_names(model) == ["1"]
    assert report["0"].reason
    assert any(part in report["0"].reason for part in reason.split("|"))


def test_tied_weights_are_left():
    model = nn.ModuleDict({"embedding": nn.Embedding(30, 20), "head": nn.Linear(20, 30), "other": nn.Linear(20, 30)})
    model["head"].weight = model["embedding"].weight
    report = lath.convert(model, ALL)
    assert report["head"].reason == "its weight is tied: embedding.weight, head.weight"
    assert model["head"].weight is model["embedding"].weight
    assert type(model["other"]) is OIALRLinear


def test_include_and_exclude():
    model = network()
    lath.convert(model, ALL, include=["6.*", "0"], exclude="6.2")
    assert thin_names(model) == ["0", "6.0"]


def test_converting_twice_changes_nothing():
    model = network()
    lath.convert(model, ALL)
    before = dict(model.named_modules())
    for spec in (ALL, lath.LowRank(ratio=0.5)):
        assert {row.reason for row in lath.convert(model, spec)} == {"already low-rank"}
    assert dict(model.named_modules()) == before


def test_a_mixed_model_is_restored_whole():
    model, x = network().double().eval(), images(torch.float64)
    lath.convert(model, lath.LowRank(rank=2), include="6.0")
    lath.convert(model, ALL)
    expected = model(x)
    assert (type(model[6][0]), type(model[8])) == (LowRankLinear, OIALRLinear)
    assert lath.restore(model) == NAMES
    torch.testing.assert_close(model(x), expected)


def test_shared_module_stays_shared():
    layer = nn.Linear(20, 20)
    model = nn.ModuleDict({"a": nn.Sequential(layer), "b": layer})
    assert len(lath.convert(model, ALL)) == 1
    assert model["a"][0] is model["b"]
    assert list(lath.oialr_cores(model)) == ["a.0"]


# ---- what is carried over -------------------------------------------------------------------------------------------


def test_hooks_flags_and_attributes():
    """Public defect: hooks and requires_grad of the source were lost."""
    model, calls = network().eval(), []
    model[8].requires_grad_(False)
    model[8].note = "mine"
    model[8].train()
    handles = [
        model[8].register_forward_hook(lambda *_: calls.append("forward")),
        model[8].register_full_backward_hook(lambda *_: calls.append("backward")),
        model[8].register_state_dict_post_hook(lambda *_: calls.append("state")),
    ]
    for change, kind in ((lambda m: lath.convert(m, ALL), OIALRLinear), (lath.restore, nn.Linear)):
        change(model)
        gc.collect()
        assert type(model[8]) is kind
        assert (model[8].note, model[8].training, model[0].training) == ("mine", True, False)
        assert not any(p.requires_grad for p in model[8].parameters())
        calls.clear()
        model(images()).sum().backward()
        model.state_dict()
        assert calls == ["forward", "backward", "state"]
    assert set(vars(model[8])) == set(vars(nn.Linear(1, 1))) | {"note"}
    for handle in handles:
        handle.remove()
    calls.clear()
    model(images())
    assert calls == []


def test_the_dense_layers_are_let_go():
    model = network()
    weights = [weakref.ref(m.weight) for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    lath.convert(model, ALL)
    gc.collect()
    assert [ref() for ref in weights] == [None] * 5


def test_failure_on_a_later_layer_changes_nothing():
    model = network()
    model[8].weight.data[1, 2] = math.nan
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    with pytest.raises(ValueError, match=r"layer '8': the weight contains NaN or infinity"):
        lath.convert(model, ALL)
    assert dict(model.named_modules()) == modules
    assert all(parameters[name] is p for name, p in model.named_parameters())


def test_wrong_arguments():
    with pytest.raises(TypeError, match=r"spec is str, expected lath\.LowRank or lath\.OIALR"):
        lath.convert(network(), "oialr")
    with pytest.raises(ValueError, match=r"model is itself a Conv1d.*OIALRConv1d\.from_dense"):
        lath.convert(nn.Conv1d(4, 4, 1), ALL)
    with pytest.raises(ValueError, match=r"model is itself a OIALRLinear.*to_dense"):
        lath.restore(OIALRLinear(4, 4, 2))
    with pytest.raises(ValueError, match=r"model is itself a OIALRLinear.*to_lowrank"):
        lath.oialr_to_lowrank(OIALRLinear(4, 4, 2))
    with pytest.raises(ValueError, match="include matches no layer"):
        lath.convert(network(), ALL, include="layer9")


# ---- checkpoints ----------------------------------------------------------------------------------------------------


def truncate(model, rank):
    for core in lath.oialr_cores(model).values():
        core.replace_(core.u[:, :rank], core.s.detach()[:rank, :rank], core.vh[:rank])


@pytest.mark.parametrize("strict", [True, False])
def test_checkpoint_into_a_fresh_model_at_other_ranks(strict):
    """Public defect: loading had another signature, and failed on every rank but the first."""
    source, x = network().eval(), images()
    lath.convert(source, ALL)
    truncate(source, 3)
    fresh = network().eval()
    lath.convert(fresh, lath.OIALR(0.5, keep_last=False))
    optimizer = torch.optim.SGD(fresh.parameters(), lr=0.1)
    result = fresh.load_state_dict(source.state_dict(), strict=strict)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert torch.equal(fresh(x), source(x))
    assert {core.rank for core in lath.oialr_cores(fresh).values()} == {3}
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in fresh.parameters()}


def test_dense_state_dict():
    model = network()
    lath.convert(model, ALL)
    truncate(model, 4)
    state, restored = lath.dense_state_dict(model), copy.deepcopy(model)
    lath.restore(restored)
    assert list(state) == list(restored.state_dict()) == list(network().state_dict())
    for name, t in restored.state_dict().items():
        assert torch.equal(state[name], t)
    assert thin_names(model) == NAMES
    plain, x = network().eval(), images()
    plain.load_state_dict(state)
    torch.testing.assert_close(plain(x), model.eval()(x), rtol=1e-4, atol=1e-5)
    model.load_state_dict(state)  # and back
    torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("copied", ["deepcopy", "average"])
def test_copies_of_a_model(copied):
    """Public defect: layers held what cannot be copied."""
    model, x = network().eval(), images()
    lath.convert(model, ALL)
    twin = copy.deepcopy(model) if copied == "deepcopy" else torch.optim.swa_utils.AveragedModel(model)
    assert torch.equal(twin(x), model(x))


# ---- two factors ----------------------------------------------------------------------------------------------------


def test_two_factors():
    model, x, calls = network().double().eval(), images(torch.float64), []
    lath.convert(model, lath.OIALR())
    truncate(model, 3)
    model[0].register_forward_hook(lambda *_: calls.append(1))
    expected = model(x)
    assert lath.oialr_to_lowrank(model) == NAMES[:-1]
    assert {type(model[0]), type(model[3])} == {LowRankConv2d}
    torch.testing.assert_close(model(x), expected, rtol=1e-11, atol=1e-12)
    assert len(calls) == 2
    assert lath.restore(model) == NAMES[:-1]
    torch.testing.assert_close(model(x), expected, rtol=1e-11, atol=1e-12)


def test_two_factors_of_a_convolution_with_a_norm_are_refused():
    model = nn.Sequential(nn.Linear(4, 4), OIALRConv2d(4, 4, 3, 2, norm=nn.BatchNorm2d(4)))
    lath.convert(model, ALL)
    before = list(model)
    for change in (lath.oialr_to_lowrank, lath.restore):
        with pytest.raises(ValueError, match=r"layer '1': .*has a norm or an activation"):
            change(model)
        assert list(model) == before


# ---- the report -----------------------------------------------------------------------------------------------------


def test_report_counts_bases_and_what_trains():
    model = nn.Sequential(nn.Linear(20, 30), nn.Conv2d(8, 16, 3, stride=2, bias=False))
    report = lath.convert(model, lath.OIALR(0.25, keep_last=False))
    linear, conv = report["0"], report["1"]
    assert (linear.rank, conv.rank) == (5, 4)
    assert linear.parameters == 5 * 50 + 25 + 30
    assert (linear.trainable, linear.dense_parameters) == (25 + 30, 20 * 30 + 30)
    assert conv.parameters == 4 * (16 + 72) + 16
    assert (conv.trainable, conv.dense_parameters) == (16, 16 * 72)
    assert (linear.macs, conv.macs) == (5 * 50, 4 * (16 + 72))
    assert (linear.break_even, conv.break_even) == (11, 13)
    assert (linear.bytes, linear.dense_bytes) == (4 * linear.parameters, 4 * linear.dense_parameters)
    assert report.parameters == linear.parameters + conv.parameters
    assert (report.trainable, report.dense_parameters) == (25 + 30 + 16, 630 + 1152)
    assert json.loads(json.dumps(report.as_dict()))["trainable"] == report.trainable
    assert "trainable" in str(report)
    assert "71 train" in str(report)
    model[0].requires_grad_(False)
    assert lath.report(model)["0"].trainable == 0


@pytest.mark.parametrize(
    ("rows", "rank", "kernel", "macs"),
    [
        (7, 4, "chained", 7 * (4 * 50 + 4**2)),
        (200, 4, "folded", 200 * 4 * 50 + 30 * 4**2),
        (200, 20, "merged", 200 * 600 + 20 * 600 + 20 * 20**2),
    ],
)
def test_report_of_a_run(rows, rank, kernel, macs):
    model = nn.Sequential(OIALRLinear(20, 30, rank))
    row = lath.report(model, torch.randn(rows, 20))["0"]
    assert (row.rows, row.kernel, row.macs, row.dense_macs) == (rows, kernel, macs, rows * 600)


@pytest.mark.parametrize(("sources", "rows"), [(1, 5), (2, 5 + 7), (3, 5 + 7 + 7)])
def test_report_of_attention(sources, rows):
    """Vh meets each input once."""
    model = nn.ModuleDict({"attention": OIALRMultiheadAttention(16, 4, 3)})
    x, y, z = torch.randn(5, 1, 16), torch.randn(7, 1, 16), torch.randn(7, 1, 16)
    given = {1: (x, x, x), 2: (x, y, y), 3: (x, y, z)}[sources]
    model.forward = lambda *inputs: model["attention"](*inputs)
    row = lath.report(model, given)["attention"]
    outputs = 16 * (15 if sources == 1 else 5 + 7 + 7)
    assert row.macs == 3 * (16 * rows + outputs) + 48 * 9 + 5 * 3 * 32 + 16 * 9


def test_singular_values_are_those_of_the_core():
    model = nn.Sequential(nn.Linear(9, 6), nn.Conv2d(3, 5, 2)).double()
    dense = {"0.weight": model[0].weight.detach(), "1.weight": model[1].weight.detach().flatten(1)}
    lath.convert(model, ALL)
    found = lath.singular_values(model)
    assert set(found) == set(dense)
    for name, weight in dense.items():
        torch.testing.assert_close(found[name], torch.linalg.svdvals(weight))


def test_freeze_a_network():
    model, x = network().eval(), images()
    lath.convert(model, ALL)
    truncate(model, 3)
    expected = model(x)
    assert lath.freeze(model) == NAMES
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    lath.unfreeze(model)
    assert all(model.get_submodule(name)._frozen is None for name in NAMES)


# ---- encoders -------------------------------------------------------------------------------------------------------


def encoder(**options):
    layer = nn.TransformerEncoderLayer(24, 4, 48, dropout=0.0, batch_first=True, dtype=torch.float64, **options)
    return nn.Sequential(nn.TransformerEncoder(layer, 2), nn.Linear(24, 5, dtype=torch.float64)).eval()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True", "ignore:The PyTorch API of nested tensors")
def test_encoders_leave_the_fused_path(masked, grad):
    """It would read dense weights that are not there."""
    model = encoder()
    x = torch.randn(3, 6, 24, dtype=torch.float64)
    mask = torch.zeros(3, 6, dtype=torch.bool)
    mask[0, 4:] = masked
    kept = ~mask
    with torch.set_grad_enabled(grad):
        expected = model[0](x, src_key_padding_mask=mask)[kept]
        report = lath.convert(model, lath.OIALR())
        assert [row.name for row in report if row.reason] == ["1"]
        assert len(thin_names(model)) == 8
        torch.testing.assert_close(model[0](x, src_key_padding_mask=mask)[kept], expected, rtol=1e-9, atol=1e-10)
        lath.restore(model)
        torch.testing.assert_close(model[0](x, src_key_padding_mask=mask)[kept], expected, rtol=1e-9, atol=1e-10)


def test_encoder_checkpoints():
    model, fresh, x = encoder(), encoder(), torch.randn(3, 6, 24, dtype=torch.float64)
    dense = model.state_dict()
    lath.convert(model, lath.OIALR(0.5))
    lath.convert(fresh, lath.OIALR())
    fresh.load_state_dict(dense)
    state = lath.dense_state_dict(fresh)
    assert list(state) == list(dense)
    for name, t in dense.items():
        torch.testing.assert_close(state[name], t, rtol=1e-9, atol=1e-10)
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(fresh(x), model(x), rtol=1e-9, atol=1e-10)


def test_an_encoder_trains():
    """Cores and biases move, bases do not."""
    model = encoder().train()
    lath.convert(model, lath.OIALR(0.5))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model(torch.randn(3, 6, 24, dtype=torch.float64)).square().sum().backward()
    optimizer.step()
    moved = {name for name, t in model.state_dict().items() if not torch.equal(t, before[name])}
    assert {name for name in before if name.endswith(("_u", "_vh"))}.isdisjoint(moved)
    assert moved == {name for name, _ in model.named_parameters()}
