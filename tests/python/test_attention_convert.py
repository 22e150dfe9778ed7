# SPDX-License-Identifier: Apache-2.0
"""convert, restore and report for attention, and the fused inference path of torch's encoders."""

from __future__ import annotations

import copy
import re

import lath
import pytest
import torch
from attention_cases import additive, forbidden, padding
from lath.nn import LowRankLinear, LowRankMultiheadAttention
from torch import nn
from torch.nn.utils import parametrizations, prune

SPEC = lath.LowRank(rank=3)
SIZE, HEADS, FORWARD = 24, 4, 40


class Attends(nn.Module):
    """Attention in a model, with a head behind it."""

    def __init__(self, make=nn.MultiheadAttention, **options):
        super().__init__()
        self.attention = make(SIZE, HEADS, **options)
        self.head = nn.Linear(SIZE, SIZE)

    def forward(self, query, key=None, value=None, **kwargs):
        key = query if key is None else key
        return self.head(self.attention(query, key, key if value is None else value, **kwargs)[0])


def attentions(model):
    return [name for name, m in model.named_modules() if isinstance(m, LowRankMultiheadAttention)]


def copies(model):
    """The model, and the dense one of the same function."""
    restored = copy.deepcopy(model)
    lath.restore(restored)
    assert not attentions(restored)
    return model, restored


# ---- convert and restore --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"bias": False, "batch_first": True}, {"add_bias_kv": True, "add_zero_attn": True, "dropout": 0.1}]
)
def test_there_and_back(options):
    model = Attends(**options).eval()
    model.attention.out_proj.weight.requires_grad_(False)
    names = list(model.state_dict())
    original = model.attention
    report = lath.convert(model, SPEC)
    assert type(model.attention) is LowRankMultiheadAttention
    assert model.attention.rank == model.attention.out_proj.rank == 3
    assert not model.attention.training
    assert [row.name for row in report] == ["attention", "head"]
    assert report["attention"].reason is None

    x = torch.randn(5, 2, SIZE)
    expected = LowRankMultiheadAttention.from_dense(original, 3)(x, x, x)[0]
    torch.testing.assert_close(model.attention(x, x, x)[0], expected)
    before, dense_state = model(x), lath.dense_state_dict(model)

    assert lath.restore(model) == ["attention", "head"]
    assert type(model.attention) is nn.MultiheadAttention
    assert list(model.state_dict()) == list(dense_state) == names
    for name, value in model.state_dict().items():
        torch.testing.assert_close(dense_state[name], value, rtol=0, atol=0)
    assert not model.attention.out_proj.weight.requires_grad
    assert model.attention.in_proj_weight.requires_grad
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)


def test_dense_state_dict_loads_back():
    model = nn.Sequential(Attends(kdim=10, vdim=12), Attends())
    lath.convert(model, SPEC)
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    other.load_state_dict(lath.dense_state_dict(model))
    x, memory = torch.randn(5, 2, SIZE), torch.randn(4, 2, 22)
    for a, b in zip(model, other, strict=True):
        args = (x,) if a is model[1] else (x, memory[..., :10], memory[..., 10:])
        torch.testing.assert_close(a(*args), b(*args), rtol=1e-4, atol=1e-4)


def test_converting_again_is_harmless():
    model = Attends()
    lath.convert(model, SPEC)
    first = model.attention
    report = lath.convert(model, SPEC)
    assert model.attention is first
    assert report["attention"].reason == "already low-rank"


def test_hooks_and_own_attributes_are_carried_over():
    model, seen = Attends(), []
    handle = model.attention.register_forward_hook(lambda *args: seen.append("forward"))
    model.attention.note = "mine"
    for change in (lambda: lath.convert(model, SPEC), lambda: lath.restore(model)):
        change()
        model(torch.randn(2, 1, SIZE))
        assert model.attention.note == "mine"
    assert seen == ["forward"] * 2
    handle.remove()
    model(torch.randn(2, 1, SIZE))
    assert len(seen) == 2


def test_shared_attention_stays_shared():
    model = nn.Sequential(Attends(), Attends())
    model[1].attention = model[0].attention
    report = lath.convert(model, SPEC, include="*attention")
    assert model[0].attention is model[1].attention
    assert attentions(model) == ["0.attention"]
    assert len(report) == 3


@pytest.mark.parametrize("make", [nn.MultiheadAttention, LowRankMultiheadAttention])
def test_a_model_that_is_itself_attention(make):
    model = make(SIZE, HEADS) if make is nn.MultiheadAttention else make(SIZE, HEADS, 2)
    advice = "LowRankMultiheadAttention.from_dense(model, rank)"
    with pytest.raises(ValueError, match=re.escape(advice)):
        lath.convert(model, SPEC)
    with pytest.raises(ValueError, match=r"call model.to_dense\(\)"):
        lath.restore(model)


def test_an_error_leaves_the_model_as_it_was():
    model = nn.Sequential(Attends(), Attends())
    model[1].attention.in_proj_weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"layer '1.attention': the weight contains NaN"):
        lath.convert(model, SPEC)
    assert not attentions(model)


# ---- the rank -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "rank"),
    [
        (lath.LowRank(ratio=0.2), 4),
        (lath.LowRank(rank={"attention": 5}), 5),
        (lath.LowRank(rank={"*": 2}), 2),
        (lath.LowRank(ratio=0.2, init="fresh"), 4),
        (lath.LowRank(ratio=0.2, inner_bias=True), 4),
    ],
)
def test_rank_of_the_spec(spec, rank):
    model = Attends()
    lath.convert(model, spec)
    assert model.attention.rank == model.attention.out_proj.rank == rank
    has_inner_bias = model.attention.in_proj_inner_bias is not None, model.attention.out_proj.inner_bias is not None
    assert has_inner_bias == (spec.inner_bias,) * 2


def test_ratio_is_of_the_smallest_input():
    model = Attends(kdim=11, vdim=17)
    lath.convert(model, lath.LowRank(ratio=0.5))
    assert model.attention.rank == 5


def test_energy_is_of_all_projections_together():
    model = Attends(kdim=10)
    weights = [model.attention.q_proj_weight, model.attention.k_proj_weight, model.attention.v_proj_weight]
    weights.append(model.attention.out_proj.weight)
    with torch.no_grad():
        for weight, base in zip(weights, (0.5, 0.8, 0.6, 0.7), strict=True):
            u, s, vh = torch.linalg.svd(weight, full_matrices=False)
            weight.copy_(u * base ** torch.arange(len(s)) @ vh)
    squares = sum(nn.functional.pad(torch.linalg.svdvals(w).square(), (0, SIZE - min(w.shape))) for w in weights)
    expected = int((squares.cumsum(0) < 0.98 * squares.sum()).sum()) + 1
    alone = {int((s.cumsum(0) < 0.98 * s.sum()).sum()) + 1 for s in (torch.linalg.svdvals(w).square() for w in weights)}
    assert expected not in alone
    lath.convert(model, lath.LowRank(energy=0.98))
    assert model.attention.rank == expected


def test_rank_zero_names_the_layer():
    with pytest.raises(ValueError, match=r"layer 'attention' \(24 to 24\): ratio 0.01 .* gives rank 0"):
        lath.convert(Attends(), lath.LowRank(ratio=0.01), include="attention")


# ---- layers that are left -------------------------------------------------------------------------------------------


class OwnAttention(nn.MultiheadAttention):
    pass


class OneInput(nn.MultiheadAttention):
    """With layers and a forward of its own."""

    def __init__(self, *args):
        super().__init__(*args)
        self.extra = nn.Linear(SIZE, SIZE)

    def forward(self, x):
        return self.out_proj(self.extra(x))


class Reader(Attends):
    """What models do that hand the weights of attention to a function."""

    def forward(self, x):
        attention = self.attention
        y, _ = nn.functional.multi_head_attention_forward(
            x, x, x, SIZE, HEADS, self.attention.in_proj_weight, attention.in_proj_bias, None, None, False, 0.0,
            attention.out_proj.weight, attention.out_proj.bias,
        )  # fmt: skip
        return y


class ReadsOutput(Attends):
    def dtype(self):
        return self.attention.out_proj.weight.dtype

    def forward(self, x):
        return super().forward(x.to(self.dtype()))


def changed(change, make=Attends):
    def made():
        model = make()
        change(model.attention)
        return model

    return made


def tie(attention):
    attention.out_proj.weight = nn.Parameter(attention.in_proj_weight.data[:SIZE])


def tied_output():
    model = Attends()
    model.alias = model.attention.out_proj.weight
    return model


def replace_forward(attention):
    attention.forward = lambda *args, **kwargs: nn.MultiheadAttention.forward(attention, *args, **kwargs)


LEFT = {
    "subclass": (lambda: Attends(OwnAttention), "a subclass of nn.MultiheadAttention: OwnAttention"),
    "reader": (Reader, "Reader reads its weight directly"),
    "reader of the output": (ReadsOutput, "ReadsOutput reads its weight directly"),
    "half": (changed(lambda a: a.half()), "its weight is torch.float16"),
    "parametrized": (changed(lambda a: parametrizations.spectral_norm(a.out_proj)), "parametrized"),
    "parametrized in": (changed(lambda a: parametrizations.spectral_norm(a, "in_proj_weight")), "parametrized"),
    "pruned": (changed(lambda a: prune.l1_unstructured(a, "in_proj_weight", 3)), "computed from other tensors"),
    "pruned output": (changed(lambda a: prune.l1_unstructured(a.out_proj, "weight", 3)), "computed from other tensors"),
    "tied": (changed(tie), "is tied: attention.in_proj_weight, attention.out_proj.weight"),
    "tied output": (tied_output, "its weight is tied: alias, attention.out_proj.weight"),
    "forward": (changed(replace_forward), "its forward was replaced"),
    "not cheaper": (lambda: Attends(kdim=1, vdim=1), "rank 9 is not cheaper: break-even is 8"),
}


@pytest.mark.parametrize("case", LEFT)
def test_left_with_a_reason(case):
    make, reason = LEFT[case]
    model = make()
    kind = type(model.attention)
    rank = 9 if case == "not cheaper" else 3
    report = lath.convert(model, lath.LowRank(rank=rank))
    assert type(model.attention) is kind
    assert reason in report["attention"].reason
    if "attention.out_proj" in [row.name for row in report]:  # torch makes a subclass of what is parametrized
        assert case in ("subclass", "parametrized in")
        assert "reads its weight directly" in report["attention.out_proj"].reason
    assert type(model.head) is LowRankLinear


def test_layers_of_a_subclass_are_layers_of_their_own():
    model = nn.Sequential(OneInput(SIZE, HEADS))
    report = lath.convert(model, SPEC)
    assert "a subclass of nn.MultiheadAttention: OneInput" in report["0"].reason
    assert report["0.out_proj"].reason == "OneInput reads its weight directly"
    assert type(model[0].extra) is LowRankLinear
    row = lath.report(model, torch.randn(5, 2, SIZE))["0"]
    assert (row.rows, row.macs) == (0, 0)
    before = model(torch.ones(5, 2, SIZE))
    assert lath.restore(model) == ["0.extra"]
    torch.testing.assert_close(model(torch.ones(5, 2, SIZE)), before, rtol=1e-4, atol=1e-5)


def test_include_and_exclude():
    for options in (
        {"include": "head"},
        {"exclude": "attention"},
        {"exclude": lambda name, m: hasattr(m, "num_heads")},
    ):
        model = Attends()
        report = lath.convert(model, SPEC, **options)
        assert report["attention"].reason == "not selected"
        assert type(model.attention) is nn.MultiheadAttention
        assert type(model.head) is LowRankLinear


# ---- the report -----------------------------------------------------------------------------------------------------


def test_report_counts_the_projections():
    model = Attends(kdim=10, vdim=12, add_bias_kv=True)
    dense = lath.report(model)["attention"]
    macs = 24 * (24 + 10 + 12 + 24)
    assert dense.dense_macs == dense.macs == macs
    assert dense.parameters == sum(p.numel() for p in model.attention.parameters()) == dense.dense_parameters
    assert (dense.in_features, dense.out_features, dense.rank) == (24, 24, None)
    assert dense.break_even == (macs - 1) // (48 + 34 + 36 + 48)

    lath.convert(model, SPEC)
    row = lath.report(model)["attention"]
    assert (row.rank, row.macs, row.dense_macs) == (3, 3 * (48 + 34 + 36 + 48), macs)
    assert row.parameters == sum(p.numel() for p in model.attention.parameters())
    assert (row.dense_parameters, row.dense_bytes) == (dense.parameters, 4 * dense.parameters)
    assert row.bytes == 4 * row.parameters

    inputs = torch.randn(5, 2, 24), torch.randn(7, 2, 10), torch.randn(7, 2, 12)
    row = lath.report(model, inputs)["attention"]
    assert (row.rows, row.input_shape) == (10, (5, 2, 24))
    assert row.dense_macs == 24 * (10 * (24 + 24) + 14 * (10 + 12))
    assert row.macs == 3 * (10 * (48 + 48) + 14 * (34 + 36))
    assert row.kernel is not None
    assert "fewer multiply-adds" in row.why
    assert "LowRankMultiheadAttention" in str(lath.report(model, inputs))

    lath.restore(model)
    row = lath.report(model, inputs)["attention"]
    assert (row.kernel, row.macs, row.rows) == ("dense", row.dense_macs, 10)


def test_report_of_keyword_arguments():
    model = nn.TransformerDecoderLayer(SIZE, HEADS, FORWARD)
    lath.convert(model, SPEC)
    report = lath.report(model, {"tgt": torch.randn(5, 2, SIZE), "memory": torch.randn(7, 2, SIZE)})
    assert report["self_attn"].rows == report["multihead_attn"].rows == 10
    assert report["multihead_attn"].dense_macs == SIZE * SIZE * (10 + 14 + 14 + 10)


# ---- encoders: the fused path ---------------------------------------------------------------------------------------


@pytest.fixture
def fused_calls(monkeypatch):
    """How often torch's fused operators have run."""
    calls = []
    for name in ("_transformer_encoder_layer_fwd", "_native_multi_head_attention"):
        original = getattr(torch, name)

        def call(*args, original=original, name=name):
            calls.append(name)
            return original(*args)

        monkeypatch.setattr(torch, name, call)
    return calls


def encoder(layers=2, nested=True, **options):
    options = {"dim_feedforward": FORWARD, "batch_first": True, "dropout": 0.2, **options}
    made = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(SIZE, HEADS, **options), layers, enable_nested_tensor=nested
    )
    for parameter in made.parameters():
        nn.init.normal_(parameter, 1.0 if parameter.dim() == 1 else 0.0, 0.3)
    return made.eval()


LENGTH, BATCH = 6, 3
ENCODER_MASKS = {
    "none": {},
    "mask": {"mask": forbidden(LENGTH, LENGTH)},
    "padding": {"src_key_padding_mask": padding(BATCH, LENGTH)},
    "both": {"mask": forbidden(LENGTH, LENGTH), "src_key_padding_mask": padding(BATCH, LENGTH)},
    "floats": {"mask": additive(forbidden(LENGTH, LENGTH), torch.float32)},
    "causal": {"mask": torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1), "is_causal": True},
}


def compare_encoders(model, masks):
    """In evaluation without gradients, where the dense twin may take the fused path."""
    model, dense = copies(model)
    x = torch.randn(BATCH, LENGTH, SIZE)
    kept = ~masks.get("src_key_padding_mask", torch.zeros(BATCH, LENGTH, dtype=torch.bool))
    for context in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with context():
            torch.testing.assert_close(model(x, **masks)[kept], dense(x, **masks)[kept], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("mask", ENCODER_MASKS)
@pytest.mark.parametrize("options", [{}, {"norm_first": True}, {"activation": "gelu"}, {"nested": False}])
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True", "ignore:The PyTorch API of nested tensors")
def test_converted_encoders_compute_what_their_factors_say(mask, options):
    model = encoder(**options)
    lath.convert(model, SPEC)
    assert len(attentions(model)) == 2
    compare_encoders(model, ENCODER_MASKS[mask])


@pytest.mark.parametrize("mask", ["none", "padding"])
@pytest.mark.parametrize(
    "select",
    [
        {"include": "*linear1"},
        {"include": "*linear2"},
        {"include": "*self_attn"},
        {"include": "layers.0.*"},
        {"include": "layers.1.*"},
        {"include": "layers.1.linear1"},
        {"exclude": "*self_attn"},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_encoders_of_which_a_part_is_converted(select, mask):
    model = encoder()
    lath.convert(model, SPEC, **select)
    compare_encoders(model, ENCODER_MASKS[mask])


@pytest.mark.parametrize("mask", ["none", "mask", "padding"])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_the_fused_path_is_left_and_taken_again(fused_calls, mask):
    model, x = encoder(), torch.randn(BATCH, LENGTH, SIZE)

    def fused():
        fused_calls.clear()
        with torch.no_grad():
            model(x, **ENCODER_MASKS[mask])
        return len(fused_calls)

    assert fused() == 2
    lath.convert(model, SPEC, include="layers.1.*")
    assert fused() == 1  # that of the layer that is dense
    lath.convert(model, SPEC)
    assert fused() == 0
    lath.restore(model)
    assert fused() == 2
    assert not any(name.startswith("_lath") for m in model.modules() for name in m.__dict__)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
def test_switches_are_put_back_as_they_were():
    model = encoder(activation=torch.tanh)
    model.use_nested_tensor = False
    lath.convert(model, SPEC)
    lath.restore(model)
    assert (model.use_nested_tensor, model.layers[0].activation_relu_or_gelu) == (False, 0)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_copies_of_converted_encoders():
    model = encoder()
    lath.convert(model, SPEC)
    compare_encoders(copy.deepcopy(model), ENCODER_MASKS["padding"])


@pytest.mark.parametrize("select", [{}, {"include": "linear1"}])
def test_an_encoder_made_of_a_converted_layer(select):
    layer = encoder(1).layers[0]
    lath.convert(layer, SPEC, **select)
    with pytest.warns(UserWarning, match="enable_nested_tensor is True"):
        model = nn.TransformerEncoder(layer, 2).eval()
    compare_encoders(model, ENCODER_MASKS["padding"])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_attention_put_into_an_encoder_by_hand():
    model = encoder()
    for layer in model.layers:
        layer.self_attn = LowRankMultiheadAttention.from_dense(layer.self_attn, 3)
    compare_encoders(model, {})
    model.use_nested_tensor = False
    compare_encoders(model, ENCODER_MASKS["padding"])


def test_a_single_layer():
    model = encoder(1).layers[0]
    lath.convert(model, SPEC)
    model, dense = copies(model)
    x = torch.randn(BATCH, LENGTH, SIZE)
    for masks in ({}, {"src_mask": forbidden(LENGTH, LENGTH)}, {"src_key_padding_mask": padding(BATCH, LENGTH)}):
        with torch.no_grad():
            torch.testing.assert_close(model(x, **masks), dense(x, **masks), rtol=1e-3, atol=1e-4)


def test_a_layer_of_an_own_class_that_reads_weights_is_left():
    class Own(nn.TransformerEncoderLayer):
        def _ff_block(self, x):
            return nn.functional.linear(self.linear1(x).relu(), self.linear2.weight)

    model = nn.Sequential(Own(SIZE, HEADS, FORWARD, batch_first=True)).eval()
    report = lath.convert(model, SPEC)
    assert {row.name: row.reason for row in report} == {
        "0.self_attn": None,
        "0.linear1": None,
        "0.linear2": "Own reads its weight directly",
    }
    with torch.no_grad():
        assert model(torch.randn(BATCH, LENGTH, SIZE)).isfinite().all()


# ---- training, decoders and whole transformers ----------------------------------------------------------------------


def train_step(model, *args, **kwargs):
    model.train()
    y = model(*args, **kwargs)
    y.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_encoder_trains():
    model = encoder()
    lath.convert(model, SPEC)
    train_step(model, torch.randn(BATCH, LENGTH, SIZE), **ENCODER_MASKS["both"])


@pytest.mark.parametrize("batch_first", [False, True])
def test_decoder(batch_first):
    layer = nn.TransformerDecoderLayer(SIZE, HEADS, FORWARD, batch_first=batch_first)
    model = nn.TransformerDecoder(layer, 2)
    report = lath.convert(model, SPEC)
    assert len(report) == 8
    assert all(row.reason is None for row in report)
    tgt, memory = torch.randn(BATCH, 5, SIZE), torch.randn(BATCH, 7, SIZE)
    args = (tgt, memory) if batch_first else (tgt.transpose(0, 1), memory.transpose(0, 1))
    kwargs = {"tgt_mask": torch.ones(5, 5, dtype=torch.bool).triu(1), "tgt_is_causal": True}
    kwargs["memory_key_padding_mask"] = padding(BATCH, 7)
    train_step(model, *args, **kwargs)
    model, dense = copies(model.eval())
    with torch.no_grad():
        torch.testing.assert_close(model(*args, **kwargs), dense(*args, **kwargs), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True", "ignore:The PyTorch API of nested tensors")
def test_whole_transformer():
    model = nn.Transformer(SIZE, HEADS, 1, 1, FORWARD, batch_first=True).eval()
    lath.convert(model, SPEC)
    assert len(attentions(model)) == 3
    model, dense = copies(model)
    src, tgt = torch.randn(BATCH, 7, SIZE), torch.randn(BATCH, 5, SIZE)
    kwargs = {"src_key_padding_mask": padding(BATCH, 7), "memory_key_padding_mask": padding(BATCH, 7)}
    with torch.no_grad():
        torch.testing.assert_close(model(src, tgt, **kwargs), dense(src, tgt, **kwargs), rtol=1e-4, atol=1e-4)
