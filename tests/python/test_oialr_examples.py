# SPDX-License-Identifier: Apache-2.0
"""The examples of OIALR: the study on a small stand-in for its data, and the loop of one's own."""

from __future__ import annotations

import copy
import csv
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import lath
import pytest
import torch
from example_cases import examples, write_clothes
from torch import nn

for package in ("matplotlib", "timm", "tqdm"):
    pytest.importorskip(package)


@pytest.fixture(autouse=True)
def _examples(monkeypatch):
    with examples(monkeypatch):
        yield


@pytest.fixture
def folder(tmp_path, monkeypatch):
    clothes = tmp_path / "clothes"
    clothes.mkdir()
    write_clothes(clothes)
    monkeypatch.setenv("LATH_FASHION_MNIST", str(clothes))
    return tmp_path / "out"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def tiny() -> nn.Sequential:
    """Two layers that can be converted, and a head that cannot."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 48), nn.ReLU(), nn.Linear(48, 4, bias=False)
    )


@pytest.fixture
def network():
    from oialr.networks import Network

    return Network("tiny", "tiny", tiny, False, 4, 3, 1e-3, 0.05, 0.6)


@pytest.fixture
def data(folder):
    from data import fashion_mnist

    data = fashion_mnist()
    data.train.labels.remainder_(4)
    data.test.labels.remainder_(4)
    return data


# ---- the plan --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "epochs", "steps", "block", "delay"),
    [(60_000, 10, 4680, 156, 780), (48, 3, 36, 1, 5), (47, 1, 11, 1, 5), (8, 1, 2, 1, 1)],
)
def test_plan_has_steps_and_a_conversion_between_two_blocks(network, images, epochs, steps, block, delay):
    from oialr.runs import Plan

    batch = 128 if images == 60_000 else 4
    plan = Plan.of(replace(network, batch=batch, epochs=epochs), images, glance=8)
    assert (plan.steps, plan.block, plan.delay) == (steps, block, delay)
    looks = [done for done in range(1, steps + 1) if plan.looks_after(done)]
    assert looks[-1] == steps
    assert all(b - a >= block for a, b in pairwise([0, *looks]))
    assert delay in looks


def test_learning_rate_rises_and_falls():
    from oialr.runs import FIRST, LOWEST, RISE, rate

    rates = [rate(done / 1000) for done in range(1001)]
    top = rates.index(max(rates))
    assert top == 1000 * RISE
    assert rates[0] == FIRST
    assert rates[top] == 1
    assert rates[-1] == pytest.approx(LOWEST)
    assert all(a < b for a, b in pairwise(rates[: top + 1]))
    assert all(a > b for a, b in pairwise(rates[top:]))


# ---- training --------------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(network, data):
    from oialr.runs import Plan, train

    plan = Plan.of(network, 48, glance=16)
    return plan, train(network, plan, data, seed=3)


def test_three_ways_from_the_same_weights(trained):
    """Until the conversion OIALR is the dense training, and afterwards its ranks only fall."""
    plan, runs = trained
    dense, adaptive, thin = (runs[name] for name in ("dense", "OIALR", "low-rank"))
    assert [look.step for look in dense.looks] == [look.step for look in adaptive.looks]
    before = [look for look in adaptive.looks if look.step < plan.delay]
    assert len(before) == plan.delay - 1
    for mine, other in zip(before, dense.looks, strict=False):
        assert (mine.accuracy, mine.trainable, mine.held, mine.ranks) == (
            other.accuracy,
            other.trainable,
            other.held,
            {},
        )

    after = [look for look in adaptive.looks if look.step >= plan.delay]
    assert set(after[0].ranks) == {"1", "3"}
    assert after[0].ranks["1"] == 128  # the first update is for the last layer alone
    assert after[-1].ranks["1"] < 128
    for a, b in pairwise(after):
        assert all(b.ranks[layer] <= a.ranks[layer] for layer in a.ranks)
        assert (b.trainable, b.stored) <= (a.trainable, a.stored)
    assert after[-1].held < after[0].held
    assert len(adaptive.updates) == plan.steps - plan.delay + 1
    assert dense.updates == thin.updates == []

    found = after[-1].ranks
    even = {"1": 784 * 128 / (784 + 128), "3": 128 * 48 / (128 + 48)}
    assert thin.looks[0].ranks == {layer: rank for layer, rank in found.items() if rank < even[layer]}
    assert "1" in thin.looks[0].ranks
    assert thin.looks[0].ranks == thin.looks[-1].ranks


def test_seed_decides_weights_and_batches(network, data):
    from oialr.runs import Plan, endless, train

    plan = Plan.of(replace(network, epochs=1), 48, glance=16)
    weights = [train(network, plan, data, seed)["dense"].model[1].weight for seed in (1, 1, 2)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])

    batches = endless(10, 4, seed=1)
    one, two, three = next(batches), next(batches), next(batches)
    assert len(one) == len(two) == len(three) == 4
    assert len(set(one.tolist() + two.tolist())) == 8  # a pass: each image at most once


def test_numbers_and_bytes_of_a_look(network):
    """Shapes by hand: what trains, what is stored, and what memory was taken for."""
    from oialr.runs import Plan, cut, look, start

    plan = Plan.of(network, 48, glance=16)
    model = tiny()
    lath.convert(model, lath.OIALR(keep_last=False))
    cut(model, {"1": 10, "3": 6})
    run = start(network, plan, model)
    run.model(torch.randn(4, 1, 28, 28)).sum().backward()
    run.optimizer.step()
    run.seconds = [0.5, 0.1, 0.2]
    from data import Split

    seen = look(run, Split(torch.randn(2, 1, 28, 28), torch.zeros(2, dtype=torch.int64)))
    trainable = 10 * 10 + 128 + 6 * 6 + 48 + 4 * 48
    bases = 10 * (784 + 128) + 6 * (128 + 48)
    assert seen.trainable == trainable
    assert seen.stored == trainable + bases
    assert seen.ranks == {"1": 10, "3": 6}
    counters = 4 * len(list(model.parameters()))  # of the steps of each parameter
    assert seen.held == 4 * (4 * trainable + bases) + counters
    assert (seen.step, seen.seconds, seen.milliseconds) == (3, pytest.approx(0.8), pytest.approx(200))


def test_multiply_adds_of_orthogonal_bases():
    """By hand: of a frozen basis no gradient, and of the input neither."""
    from count import products, training_macs

    model = tiny()
    lath.convert(model, lath.OIALR(0.25, keep_last=False))
    each = [784 * 32, 32 * 32, 32 * 128, 128 * 12, 12 * 12, 12 * 48, 48 * 4]
    vh, s, u, *second, head = each
    assert products(model, (1, 784)) == each
    assert training_macs(model, (5, 784)) == 5 * (
        (vh + 3 * s + 2 * u) + (2 * second[0] + 3 * second[1] + 2 * second[2]) + 3 * head
    )
    conv = lath.nn.OIALRConv2d(6, 8, 3, 4, stride=2, groups=2)
    positions = 2 * 5 * 5
    assert products(conv, (2, 6, 12, 12)) == [2 * 4 * 27 * positions, 2 * 16 * positions, 8 * 4 * positions]


def test_a_step_of_a_trained_network_leaves_it_as_it_is(network):
    from data import Split
    from oialr.runs import training_step

    model = tiny()
    lath.convert(model, lath.OIALR(keep_last=False))
    before = copy.deepcopy(model.state_dict())
    loss = training_step(network, model, Split(torch.randn(4, 1, 28, 28), torch.zeros(4, dtype=torch.int64)))
    assert loss() == pytest.approx(loss().item(), rel=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_vit_is_all_low_rank_but_for_patches_and_head():
    from oialr.networks import DEPTH, vit

    model = vit()
    report = lath.convert(model, lath.OIALR(keep_last=False))
    blocks = [f"blocks.{i}.{part}" for i in range(DEPTH) for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
    assert [row.name for row in report if row.rank] == ["patch_embed.proj", *blocks]
    assert model(torch.randn(2, 1, 28, 28)).shape == (2, 10)


# ---- the script ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_study_writes_tables_and_a_figure_and_goes_on_where_it_was(folder, monkeypatch, capsys):
    from oialr import study

    options = f"--quick --batch 4 --images 40 --seconds 0 --no-memory --output {folder}".split()
    assert study.main([*options, "--networks", "mlp", "vgg", "vit"]) == 0
    out, _ = capsys.readouterr()
    assert "10 steps of 4, the first 5 dense" in out
    lines = rows(folder / "oialr_summary.csv")
    names = [(n, v) for n in ("mlp", "vgg", "vit") for v in ("dense", "OIALR", "low-rank")]
    assert [(line["network"], line["variant"]) for line in lines] == names
    for dense, adaptive, thin in zip(lines[::3], lines[1::3], lines[2::3], strict=True):
        assert int(adaptive["trainable"]) < int(thin["trainable"]) <= int(dense["trainable"])
        assert float(adaptive["updates"]) > 0
        assert int(adaptive["macs"]) < int(dense["macs"])
        assert dense["updates"] == thin["updates"] == ""
        assert all(0 <= float(line["accuracy"]) <= 1 for line in (dense, adaptive, thin))
        assert all(float(line["milliseconds"]) > 0 for line in (dense, adaptive, thin))
    assert int(lines[0]["trainable"]) == 785 * 1024 + 1025 * 1024 + 1025 * 10
    assert len(rows(folder / "oialr.csv")) == 9 * 10
    ranks = {(row["layer"], row["step"]): int(row["rank"]) for row in rows(folder / "oialr_ranks.csv")}
    assert ranks["3", "10"] < ranks["3", "5"] <= 1024
    assert min(int(step) for _, step in ranks) == 5
    figure = folder / "oialr.png"
    assert f"figure: {figure}" in out
    assert figure.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"

    before = (folder / "oialr.csv").read_text()
    trained = []
    monkeypatch.setattr(study, "train", lambda network, *rest: trained.append(network.name) or pytest.fail("trained"))
    assert study.main([*options, "--networks", "mlp", "vgg", "vit"]) == 0
    assert capsys.readouterr().out.count("taken from") == 3
    assert (folder / "oialr.csv").read_text() == before
    with pytest.raises(pytest.fail.Exception):  # other settings: what is kept does not count
        study.main([*options, "--networks", "mlp", "--cutoff", "0.5"])
    assert trained == ["mlp"]


@pytest.mark.slow
def test_memory_is_measured_at_full_and_at_the_final_rank(folder, network, monkeypatch):
    from oialr import study
    from oialr.runs import training_memory

    command = study.memory_command(replace(study.NETWORKS["mlp"], batch=8))
    full, thin = (training_memory(command, "OIALR", ranks) for ranks in ({}, {"1": 8, "3": 8}))
    if full is None:
        pytest.skip("this kernel does not tell")
    smaller = 4 * ((784 - 8) * (784 + 1024) + (1024 - 8) * 2048)  # of the bases alone
    assert full - thin > smaller


def test_missing_data_set_is_one_line_and_exit_code_1(tmp_path, monkeypatch, capsys):
    from oialr.study import main

    monkeypatch.setenv("LATH_FASHION_MNIST", str(tmp_path))
    assert main([]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "LATH_FASHION_MNIST" in err


def test_too_few_images_are_one_line_and_exit_code_1(folder, capsys):
    from oialr.study import main

    assert main(["--networks", "mlp", "--batch", "49"]) == 1
    assert capsys.readouterr().err == "study: --batch 49: there are 48 training images\n"


@pytest.mark.parametrize("options", ["--epochs 0", "--cutoff 2", "--cutoff nan", "--networks rnn", "--images -1"])
def test_nonsense_is_refused(options, capsys):
    from oialr.study import main

    with pytest.raises(SystemExit) as caught:
        main(options.split())
    assert caught.value.code == 2
    assert options.split()[0] in capsys.readouterr().err


# ---- a loop of one's own ---------------------------------------------------------------------------------------------


def test_train_your_model_runs(capsys):
    from oialr.train_your_model import main

    main(steps=6, delay=2, frequency=2)
    out = capsys.readouterr().out
    assert re.search(r"step   1: .* 100% of the numbers train, dense", out)
    shares = [int(share) for share in re.findall(r"(\d+)% of the numbers train, ranks", out)]
    assert len(shares) == 5
    assert shares[0] < 100
    assert shares == sorted(shares, reverse=True)
    assert "after saving and loading, outputs differ by 0.0e+00" in out
    differences = [float(d) for d in re.findall(r"outputs differ by (\S+)", out)]
    assert len(differences) == 3
    assert max(differences) < 1e-3
