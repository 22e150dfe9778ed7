# SPDX-License-Identifier: Apache-2.0
"""The published models: every size to the last digit, with and without the defects of the published code."""

from __future__ import annotations

import lath
import pytest
import torch
from example_cases import examples
from lath.nn import LowRankConv2d, LowRankLinear


@pytest.fixture(autouse=True)
def _examples(monkeypatch):
    with examples(monkeypatch):
        yield


@pytest.fixture
def count():
    from lowrank.reference_counts import count

    return count


@pytest.fixture
def reference():
    from lowrank.reference_models import reference

    return reference


def layers(model: torch.nn.Module) -> list[LowRankConv2d | LowRankLinear]:
    return [m for m in model.modules() if isinstance(m, (LowRankConv2d, LowRankLinear))]


# ---- parameters and FLOPs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "dense", "as_published", "corrected"),
    [
        ("vgg11", (9_756_426, 154_051_584), (4_008_851, 55_956_480), (3_751_325, 55_699_456)),
        ("vgg16", (15_253_578, 315_108_352), (6_208_324, 120_368_128), (5_950_798, 120_111_104)),
        ("resnet18", (11_173_962, 558_502_912), (4_418_250, 228_594_688), (4_418_250, 228_594_688)),
        ("resnet101", (41_353_546, 2_450_772_992), (16_462_282, 984_962_048), (16_462_282, 984_962_048)),
    ],
)
def test_published_ratio(count, name, dense, as_published, corrected):
    assert count(name) == dense
    assert count(name, ratio=0.2, as_published=True) == as_published
    assert count(name, ratio=0.2) == corrected


@pytest.mark.parametrize(
    ("name", "rule", "counts"),
    [
        ("vgg11", (0, 2), [(941_128, 16_051_200), (4_694_682, 71_214_080), (9_373_226, 139_895_808)]),
        ("vgg16", (0, 2), [(1_489_122, 32_355_328), (7_446_570, 152_054_784), (14_872_586, 300_952_576)]),
        ("resnet18", (0, 0), [(1_236_234, 64_427_008), (5_487_690, 284_824_576), (10_786_890, 558_502_912)]),
        ("resnet101", (0, 0), [(4_244_746, 255_644_672), (20_589_898, 1_233_376_256), (40_966_474, 2_450_772_992)]),
    ],
)
def test_other_ratios(count, name, rule, counts):
    assert [count(name, ratio=ratio, rule=rule) for ratio in (0.05, 0.25, 0.5)] == counts


def test_published_code_ignores_the_ratio_in_convolutions(count):
    assert count("vgg11", ratio=0.1, as_published=True)[0] == 3_904_301
    assert count("vgg11", ratio=0.5, as_published=True)[0] == 4_324_551
    for ratio in (0.05, 0.5):
        assert count("resnet18", ratio=ratio, as_published=True) == (4_418_250, 228_594_688)
        assert count("resnet101", ratio=ratio, as_published=True) == (16_462_282, 984_962_048)


@pytest.mark.parametrize(
    ("rule", "counts"),
    [
        ((-1, 0), (4_418_250, 228_594_688)),
        ((0, 0), (4_418_250, 228_594_688)),
        ((0, 1), (4_462_794, 274_207_744)),
        ((1, 0), (4_507_338, 319_820_800)),
        ((2, 0), (4_826_442, 399_643_648)),
        ((3, 0), (6_098_250, 479_171_584)),
        ((4, 0), (11_173_962, 558_502_912)),
    ],
)
def test_hybrid_resnet18(count, rule, counts):
    assert count("resnet18", ratio=0.2, rule=rule) == counts


@pytest.mark.parametrize(
    ("name", "dense", "as_published"),
    [
        ("vit", (9_523_722, 642_952_704), (3_221_814, 233_209_344)),
        ("transformer", (10_357_119, 390_389_760), (8_981_338, 302_309_376)),
        ("lstm", (825_220, 1_638_400), (1_006_024, 64 * 20 * 356)),  # fvcore sees the decoder alone
    ],
)
def test_published_ratio_of_the_others(count, name, dense, as_published):
    assert count(name) == dense
    assert count(name, ratio=0.2, as_published=True) == as_published
    if name != "lstm":
        assert count(name, ratio=0.2) == as_published


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("vit", [(854_988, 79_455_744), (4_021_002, 285_126_144), (7_955_466, 540_716_544)]),
        ("transformer", [(8_669_681, 282_386_432), (9_096_159, 309_649_408), (9_621_055, 343_203_840)]),
    ],
)
def test_other_ratios_of_transformers(count, name, counts):
    assert [count(name, ratio=ratio) for ratio in (0.05, 0.25, 0.5)] == counts


def test_which_published_models_hear_the_ratio(count):
    assert count("transformer", ratio=0.5, as_published=True) == (8_981_338, 302_309_376)
    assert [count("vit", ratio=r, as_published=True)[0] for r in (0.1, 0.5)] == [1_654_176, 7_955_466]
    assert [count("lstm", ratio=r, as_published=True)[0] for r in (0.1, 0.5)] == [505_510, 2_517_310]


def test_hybrid_transformers(count):
    vit = [count("vit", ratio=0.2, rule=(0, start))[0] for start in range(7)]
    assert vit == [3_221_814 + 1_050_318 * n for n in range(7)]
    assert count("vit", ratio=0.2, rule=(0, 6)) == count("vit")
    words = [count("transformer", ratio=0.2, rule=(0, start))[0] for start in range(4)]
    assert words == [8_981_338, 9_436_612, 9_891_886, 10_347_160]  # the decoder is always low-rank
    for name, start in (("vit", 7), ("transformer", 4), ("vit", -1)):
        with pytest.raises(ValueError, match=f"names block {start}"):
            count(name, ratio=0.2, rule=(0, start))


@pytest.mark.parametrize(("length", "dense", "published"), [(64, 52_494_336, 64_064_512), (80, 65_617_920, 80_080_640)])
def test_every_multiply_add_of_the_lstm(length, dense, published):
    from lowrank import reference_lstm
    from lowrank.reference_counts import count_lstm

    with torch.device("meta"):
        models = reference_lstm.dense(), reference_lstm.as_published(0.2)
    assert count_lstm(models[0], length) == (825_220, dense)
    assert count_lstm(models[1], length) == (1_006_024, published)


@pytest.mark.parametrize(
    ("rank", "input_ranks", "parameters"),
    [(51, (51, 51), 260_608), (25, (25, 25), 133_936), (51, (1, 51), 209_008), (51, (0, 51), 216_168)],
)
def test_lstm_at_other_rules(rank, input_ranks, parameters):
    from lowrank.reference_counts import count_lstm_rule

    assert count_lstm_rule(rank, input_ranks)[0] == parameters


def test_the_lstm_of_the_ratio_keeps_its_few_inputs_dense(count, reference):
    assert count("lstm", ratio=0.2)[0] == 216_168
    with torch.device("meta"):
        model = reference("lstm", ratio=0.2)
    assert model.recurrent.weight_ih_l0.shape == (1024, 8)
    assert (model.recurrent.ranks, model.recurrent.input_ranks) == ((51, 51), (0, 51))
    assert model.decoder.rank == 20


def test_hybrid_vgg11(count):
    published = [4_008_851, 4_008_851, 4_010_377, 4_062_179, 4_269_463, 4_624_126]
    published += [5_451_109, 6_866_994, 8_282_879, 9_698_764, 9_856_358, 10_013_952]
    wrong_head = (512 - 10) * (512 + 1)
    for start, parameters in enumerate(published):
        assert count("vgg11", ratio=0.2, rule=(0, start), as_published=True)[0] == parameters
        assert count("vgg11", ratio=0.2, rule=(0, start))[0] == parameters - wrong_head
    assert count("vgg11", ratio=0.2, rule=(0, 11)) == count("vgg11")


# ---- layer by layer --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "ranks"),
    [
        ("vgg11", [1, 38, 76, 153, 153, 307, 307, 307, 102, 102]),
        ("vgg16", [1, 38, 38, 76, 76, 153, 153, 153, *[307] * 5, 102, 102]),
        ("resnet18", [*[38] * 5, 76, 76, 76, 76, 153, 153, 153, 153, 307, 307, 307]),
        ("resnet101", [*[38] * 7, *[76] * 8, *[153] * 46, *[307] * 5]),
    ],
)
def test_ranks(reference, name, ranks):
    with torch.device("meta"):
        model = reference(name, ratio=0.2)
    assert [layer.rank for layer in layers(model)] == ranks


def test_factors_of_vgg11(reference):
    """Parameters of both factors with their biases, and their multiply-adds."""
    from count import products

    with torch.device("meta"):
        model = reference("vgg11", ratio=0.2)
    sizes = [
        (layer.weight_v.numel() + layer.inner_bias.numel(), layer.weight_u.numel() + layer.bias.numel())
        for layer in layers(model)
    ]
    assert sizes == [
        (10, 256),
        (7_334, 14_720),
        (29_260, 58_624),
        (117_657, 117_760),
        (117_657, 235_520),
        *[(471_859, 472_064)] * 3,
        *[(52_326, 52_736)] * 2,
    ]
    convs = products(model, (1, 3, 32, 32))[:16]
    assert list(zip(convs[::2], convs[1::2], strict=True)) == [
        (9_216, 196_608),
        *[(1_867_776, 3_735_552)] * 2,
        (7_520_256, 7_520_256),
        (1_880_064, 3_760_128),
        *[(7_544_832, 7_544_832)],
        *[(1_886_208, 1_886_208)] * 2,
    ]


def test_parts_of_resnet18(reference):
    with torch.device("meta"):
        model = reference("resnet18", ratio=0.2)
    sizes = [(layer.weight_v.numel(), layer.weight_u.numel()) for layer in layers(model)]
    assert sizes == [
        *[(7_296, 7_296)] * 4,
        (7_296, 14_592),
        *[(29_184, 29_184)] * 3,
        (29_184, 58_368),
        *[(117_504, 117_504)] * 3,
        (117_504, 235_008),
        *[(471_552, 471_552)] * 3,
    ]
    assert all(layer.bias is None and layer.inner_bias is None for layer in layers(model))
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    assert sizes["head.0.weight"] == 1_728
    assert [sizes[f"stages.{i}.0.shortcut.0.weight"] for i in (1, 2, 3)] == [8_192, 32_768, 131_072]
    assert sizes["tail.weight"] + sizes["tail.bias"] == 5_130
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert sum(p.numel() for norm in norms for p in norm.parameters()) == 9_600


@pytest.mark.parametrize("name", ["vgg11", "resnet18"])
def test_a_state_dict_holds_every_parameter_once(reference, name):
    with torch.device("meta"):
        model = reference(name, ratio=0.2)
    held = sum(v.numel() for k, v in model.state_dict().items() if "running" not in k and "num_batches" not in k)
    assert held == sum(p.numel() for p in model.parameters())


def test_the_counter_leaves_the_network_alone(reference):
    from count import fvcore_flops

    model = reference("vgg11", ratio=0.2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fvcore_flops(model, (1, 3, 32, 32))
    assert model.training
    assert not any(m._forward_hooks for m in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# ---- the networks run ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "rule"), [("vgg11", (0, 2)), ("resnet18", (0, 0))])
def test_low_rank_network_trains(reference, name, rule):
    model = reference(name, ratio=0.05, rule=rule)
    y = model(torch.randn(2, 3, 32, 32))
    assert y.shape == (2, 10)
    torch.nn.functional.cross_entropy(y, torch.tensor([1, 2])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", ["vgg11", "vgg16", "resnet18", "resnet101"])
def test_convert_alone_gives_the_same_shapes(reference, name):
    """At ratio 0.2 every layer is cheaper factored, so nothing has to be put in by hand."""
    rule = (0, 2)
    with torch.device("meta"):
        model, converted = reference(name, ratio=0.2, rule=rule), reference(name)
        spec = lath.LowRank(ratio=0.2, init="fresh", inner_bias=name.startswith("vgg"))
        lath.convert(converted, spec, exclude=lath.decom_rule(converted, *rule))
    assert {k: v.shape for k, v in converted.state_dict().items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }


def test_restore_gives_back_the_dense_size(reference):
    from count import fvcore_flops, parameters

    with torch.device("meta"):
        model = reference("resnet18", ratio=0.2)
        assert len(lath.restore(model)) == 16
    assert (parameters(model), fvcore_flops(model, (1, 3, 32, 32))) == (11_173_962, 558_502_912)


@pytest.mark.parametrize(
    ("name", "ranks"),
    [
        ("vit", [102] * 24),
        ("transformer", [25] * 19),
        ("mlp", [102, 102]),
        ("cnn", [1, 38, 76, 153]),
    ],
)
def test_ranks_of_the_others(reference, name, ranks):
    with torch.device("meta"):
        model = reference(name, ratio=0.2)
    assert [layer.rank for layer in layers(model)] == ranks


def test_full_layers_of_transformers(reference):
    with torch.device("meta"):
        for name, full in (("vit", {"patches", "head"}), ("transformer", {"head"})):
            model = reference(name, ratio=0.2)
            assert {path for path, m in model.named_modules() if type(m) is torch.nn.Linear} == full
    qkv = reference("vit", ratio=0.05, rule=(0, 5)).blocks[5].qkv
    assert qkv.bias is None
    assert qkv.inner_bias is None


def test_transformer_sees_no_later_words(reference):
    model = reference("transformer", ratio=0.2, tokens=50).eval()
    words = torch.randint(50, (1, 8))
    other = words.clone()
    other[0, 5] = (words[0, 5] + 1) % 50
    a, b = model(words), model(other)
    assert a.shape == (1, 8, 50)
    torch.testing.assert_close(a[:, :5], b[:, :5])
    assert not torch.isclose(a[:, 5:], b[:, 5:]).all(-1).any()


def test_attention_against_the_formula(reference):
    from lowrank.reference_transformers import Attend

    q, k, v = torch.randn(3, 2, 5, 12, dtype=torch.float64)
    for causal in (False, True):
        heads = []
        for i in range(3):
            part = slice(4 * i, 4 * i + 4)
            scores = q[..., part] @ k[..., part].mT / 2
            if causal:
                scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
            heads.append(scores.softmax(-1) @ v[..., part])
        torch.testing.assert_close(Attend(3, causal)(q, k, v), torch.cat(heads, -1))


def test_vit_patches_are_squares(reference):
    """A patch is seen by the layer that reads it, and only there."""
    model, image = reference("vit").eval(), torch.zeros(1, 3, 32, 32)
    seen = []
    model.patches.register_forward_hook(lambda module, args, y: seen.append(args[0]))
    image[0, 1, 8:12, 20:24] = 1.0
    model(image)
    (patches,) = seen
    assert patches.shape == (1, 64, 48)
    assert patches[0].sum(1).nonzero().flatten().tolist() == [2 * 8 + 5]
    assert patches[0, 21].reshape(16, 3).sum(0).tolist() == [0, 16, 0]


def test_initial_values(reference):
    std = {
        "vit.linear1": [p.std() for p in factors(reference("vit", ratio=0.2).blocks[0].linear1)],
        "words.linear2": [p.std() for p in factors(reference("transformer", ratio=0.2, tokens=9).layers[1].linear2)],
        "dense": [reference("vit").blocks[0].linear2.weight.std()],
    }
    for values in std.values():
        for value in values:
            assert value.item() == pytest.approx(0.02, rel=0.05)
    assert not any(
        p.any()
        for n, p in reference("transformer", tokens=9).named_parameters()
        if n.endswith(".bias") and "norm" not in n
    )
    lstm = reference("lstm", ratio=0.2).recurrent
    assert lstm.weight_hh_u_l0.abs().max() <= 1 / 16
    assert lstm.weight_hh_u_l0.std().item() == pytest.approx(1 / 16 / 3**0.5, rel=0.05)


def factors(layer):
    return layer.weight_v, layer.weight_u


@pytest.mark.parametrize("name", ["transformer", "lstm", "mlp", "cnn"])
def test_spectral_initialization_is_the_truncated_dense_network(reference, name):
    """From the same random numbers as the dense network, each product is as close to it as its rank allows."""
    sizes = {"tokens": 9} if name == "transformer" else {}
    torch.manual_seed(3)
    dense = reference(name, **sizes, init="none")
    torch.manual_seed(3)
    thin = reference(name, ratio=0.2, **sizes, init="SI")
    spectra, left = lath.singular_values(thin), lath.singular_values(dense)
    assert spectra.keys() == left.keys()
    for key, values in spectra.items():
        torch.testing.assert_close(values, left[key][..., : values.shape[-1]], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["vit", "transformer", "lstm", "mlp", "cnn"])
def test_the_others_train(reference, name):
    from lowrank.reference_models import inputs_of

    model = reference(name, ratio=0.2, tokens=50)
    shape, dtype = inputs_of(name)
    y = model(torch.randn(2, *shape[1:]) if dtype.is_floating_point else torch.randint(50, (2, 12)))
    y.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    held = sum(v.numel() for k, v in model.state_dict().items() if "running" not in k and "num_batches" not in k)
    assert held == sum(p.numel() for p in model.parameters())


def test_frobenius_decay_of_every_low_rank_model(reference):
    for name in ("vgg11", "vit", "transformer", "lstm"):
        sizes = {"tokens": 9} if name == "transformer" else {}
        assert lath.frobenius_decay(reference(name, ratio=0.05, rule=(0, 2), **sizes)) > 0
    for rule in ((0, 0), (3, 0)):
        assert lath.frobenius_decay(reference("resnet18", ratio=0.2, rule=rule)) > 0
    assert lath.frobenius_decay(reference("resnet18", ratio=0.2, rule=(4, 0))) == 0


def test_unknown_names(reference):
    with pytest.raises(ValueError, match="there is no network 'gpt'"):
        reference("gpt")
    with pytest.raises(ValueError, match="init is 'SVD'"):
        reference("mlp", init="SVD")
