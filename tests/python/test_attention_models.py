# SPDX-License-Identifier: Apache-2.0
"""Attention of torchvision, timm and Hugging Face transformers, as it is: converted, trained for a step, restored."""

from __future__ import annotations

import importlib
import os

import lath
import pytest
import torch
from lath.nn import LowRankLinear, LowRankMultiheadAttention
from torch import nn

SPEC = lath.LowRank(ratio=0.25)
CLASSES = 10


def package(name):
    """A package of the test group; where continuous integration runs, its absence is no excuse."""
    return importlib.import_module(name) if os.environ.get("CI") else pytest.importorskip(name)


def count(model, kind):
    return sum(isinstance(m, kind) for m in model.modules())


def convert_train_restore(model, call, excluded=()):
    """Convert; a step of training that reaches every parameter; restore to the same function. The report."""
    state, kinds = list(model.state_dict()), [type(m) for m in model.modules()]
    report = lath.convert(model, SPEC, exclude=list(excluded))
    model.train()
    call(model).square().mean().backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not missing
    torch.optim.SGD(model.parameters(), lr=1e-3).step()
    model.eval()
    with torch.no_grad():
        expected = call(model)
        assert lath.restore(model) == [row.name for row in report if row.reason is None]
        assert list(model.state_dict()) == state
        assert [type(m) for m in model.modules()] == kinds
        torch.testing.assert_close(call(model), expected, rtol=0, atol=1e-4 * expected.abs().max().item())
    return report


def test_torchvision_vit():
    vision = package("torchvision").models.VisionTransformer
    model = vision(
        image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=64, num_classes=CLASSES
    )
    nn.init.normal_(model.heads.head.weight, std=0.1)  # torchvision starts with zeros
    probe = vision(32, 8, 2, 4, 32, 64, num_classes=CLASSES)
    lath.convert(probe, SPEC)
    assert count(probe, LowRankMultiheadAttention) == 2
    assert count(probe, LowRankLinear) == 2 * (1 + 2) + 1  # the output projections, the two of each block, the head
    x = torch.randn(2, 3, 32, 32)
    report = convert_train_restore(model, lambda m: m(x))
    assert {row.kind for row in report if "self_attention" in row.name} == {"LowRankMultiheadAttention"}
    assert not any(row.reason for row in report)


def test_torchvision_swin_keeps_what_it_reads():
    swin = package("torchvision").models.swin_transformer.SwinTransformer
    options = {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": [4, 4], "num_classes": CLASSES}
    x = torch.randn(2, 3, 32, 32)
    report = convert_train_restore(swin(patch_size=[4, 4], **options), lambda m: m(x))
    left = [row.reason for row in report if row.reason]
    assert left == ["ShiftedWindowAttention reads its weight directly"] * 4


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_224", {"img_size": 32, "depth": 2}),
        ("deit_tiny_distilled_patch16_224", {"img_size": 32, "depth": 2}),
        ("vit_tiny_patch16_224", {"img_size": 32, "depth": 1, "qk_norm": True, "init_values": 1e-5}),
    ],
)
def test_timm_vit(name, options):
    model = package("timm").create_model(name, num_classes=CLASSES, **options)
    heads = [m for n, m in model.named_modules() if n in ("head", "head_dist")]
    for head in heads:
        nn.init.normal_(head.weight, std=0.1)  # timm starts with zeros
    x = torch.randn(2, 3, 32, 32)
    report = convert_train_restore(model, lambda m: m(x), excluded=["head*"])
    converted = [row.name for row in report if row.reason is None]
    blocks = [f"blocks.{i}.{name}" for i in range(options["depth"]) for name in ("attn.qkv", "attn.proj")]
    assert set(blocks) <= set(converted)
    assert {row.reason for row in report if row.reason} == {"not selected"}


# ---- Hugging Face ---------------------------------------------------------------------------------------------------

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50}


def small(config, model, **options):
    """A network of random numbers; nothing is downloaded."""

    def make():
        transformers = pytest.importorskip("transformers")
        return getattr(transformers, model)(getattr(transformers, config)(**options))

    return make


TEXT = {
    "bert": (small("BertConfig", "BertModel", **SMALL), 2 * 6 + 1),
    "roberta": (small("RobertaConfig", "RobertaModel", **SMALL), 2 * 6 + 1),
    "distilbert": (
        small("DistilBertConfig", "DistilBertModel", vocab_size=50, dim=32, hidden_dim=48, n_layers=2, n_heads=4),
        2 * 6,
    ),
    "llama": (small("LlamaConfig", "LlamaModel", **SMALL, num_key_value_heads=2), 2 * 7),
}


@pytest.mark.parametrize("name", TEXT)
def test_transformers_of_text(name):
    make, converted = TEXT[name]
    model = make()
    if hasattr(model, "pooler"):  # the loss has to reach it
        call = lambda m: m(tokens, attention_mask=mask).pooler_output + m(tokens).last_hidden_state[:, 0]  # noqa: E731
    else:
        call = lambda m: m(tokens, attention_mask=mask).last_hidden_state  # noqa: E731
    tokens, mask = torch.randint(2, 50, (2, 7)), torch.ones(2, 7, dtype=torch.long)
    mask[0, -2:] = 0
    report = convert_train_restore(model, call)
    assert sum(row.reason is None for row in report) == converted
    assert not any(row.reason for row in report)


def test_transformers_vit():
    options = {name: value for name, value in SMALL.items() if name != "vocab_size"}
    model = small(
        "ViTConfig", "ViTForImageClassification", **options, image_size=32, patch_size=8, num_labels=CLASSES
    )()
    x = torch.randn(2, 3, 32, 32)
    report = convert_train_restore(model, lambda m: m(pixel_values=x).logits)
    assert sum(row.kind == "LowRankLinear" for row in report) == 2 * 6 + 1
    assert {row.kind: row.reason for row in report if row.reason} == {"Conv2d": "ViTModel reads its weight directly"}


def test_transformers_with_a_tied_head():
    model = small("LlamaConfig", "LlamaForCausalLM", **SMALL, tie_word_embeddings=True)()
    tokens = torch.randint(0, 50, (2, 7))
    report = convert_train_restore(model, lambda m: m(tokens).logits)
    assert "tied" in report["lm_head"].reason
    assert sum(row.reason is None for row in report) == 2 * 7


def test_transformers_generate():
    """With the cache of keys and values: one token at a time gives what the whole sequence gives."""
    model = small("LlamaConfig", "LlamaForCausalLM", **SMALL)()
    lath.convert(model, SPEC)
    model.eval()
    tokens = torch.randint(3, 50, (1, 5))
    out = model.generate(tokens, max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=0)
    with torch.no_grad():
        logits = model(out).logits
    assert out[0, 5:].tolist() == logits[0, 4:-1].argmax(-1).tolist()
