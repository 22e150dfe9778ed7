# SPDX-License-Identifier: Apache-2.0
"""The examples run, on small stand-ins for their data, and say clearly what they lack."""

from __future__ import annotations

import gzip
import importlib
import os
import re
import struct
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from example_cases import EXAMPLES, examples, write_clothes


@pytest.fixture(autouse=True)
def _examples(monkeypatch):
    with examples(monkeypatch, "lowrank"):
        yield


@pytest.fixture
def folder(tmp_path, monkeypatch):
    write_clothes(tmp_path)
    monkeypatch.setenv("LATH_FASHION_MNIST", str(tmp_path))
    return tmp_path


def test_fashion_mnist_is_read_as_written(folder):
    from data import fashion_mnist

    data = fashion_mnist()
    assert data.train.images.shape == (48, 1, 28, 28)
    assert data.test.labels.tolist() == [i % 10 for i in range(16)]
    bright = data.train.images[3, 0] > 0
    assert bright.nonzero()[:, 0].unique().tolist() == [6]
    assert data.train.images[3].max().item() == pytest.approx((1 - 0.2860) / 0.3530)


def test_uncompressed_files_are_read_too(folder):
    from data import fashion_mnist

    before = fashion_mnist().train.images
    for path in folder.glob("*.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    torch.testing.assert_close(fashion_mnist().train.images, before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not gzip", "cannot read"),
        (gzip.compress(b"\0\0\x08\x03" + bytes(100))[:-20], "cannot read"),
        (gzip.compress(b"<html>"), "not an idx file"),
        (gzip.compress(b""), "not an idx file"),
        (gzip.compress(struct.pack(">HBBIII", 0, 8, 3, 48, 28, 28)), "damaged"),
        (gzip.compress(struct.pack(">HBBI", 0, 8, 1, 4) + bytes(4)), r"images \(4,\)"),
    ],
)
def test_damaged_file_is_named(folder, content, message):
    from data import DataError, fashion_mnist

    (folder / "train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        fashion_mnist()
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("script", ["fashion_mnist", "rank_sweep", "resnet18_finetune"])
def test_missing_data_set_is_one_line_and_exit_code_1(script, tmp_path, monkeypatch, capsys):
    _need("matplotlib", "tqdm", "torchvision")
    main = importlib.import_module(script).main

    monkeypatch.setenv("LATH_FASHION_MNIST", str(tmp_path))
    assert main([]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    for part in (str(tmp_path), "LATH_FASHION_MNIST", "make demo", "dataset-fashion-mnist"):
        assert part in err


# ---- the demo --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_demo_trains_measures_and_draws(folder, tmp_path, monkeypatch, capsys):
    _need("matplotlib", "tqdm")
    import fashion_mnist
    from lowrank.networks import cnn_task

    monkeypatch.setattr(fashion_mnist, "cnn_task", lambda *options: replace(cnn_task(*options), inference=(1, 2)))
    measured = fashion_mnist.training_memory  # starts a process for each network: here for one of three
    monkeypatch.setattr(
        fashion_mnist,
        "training_memory",
        lambda command, contestant: measured(command, contestant) if "--memory-of=lath" in command else None,
    )
    output = tmp_path / "figures"
    options = f"--rank 16 --ratio 0.05 --epochs 2 --batch 4 --images 12 --seconds 0 --output {output}"
    assert fashion_mnist.main(options.split()) == 0
    out, _ = capsys.readouterr()
    assert "rank 16 is not cheaper: break-even is 9" in out  # the head stays dense, and the report says so
    for pair in ("two nn.Linear", "two nn.Conv2d"):  # lath and its baseline
        assert float(re.search(rf"against {pair}, .* differs by (\S+) in the first\nstep", out)[1]) < 1e-5
    rows = ("test accuracy", "peak memory of training", "training, batch 4", "inference, batch 1 ", "realized share")
    for row in rows:
        assert out.count(f"\n{row}") + out.count(f"\n  {row}") >= 2  # in both tables
    assert "trained on 12 of the 48 images" in out
    assert "better layout" in out
    assert len(re.findall(r"peak memory of training +not known +not known +[\d.]+ MiB", out)) == 2
    figure = output / "fashion_mnist.png"
    assert f"figure: {figure}" in out
    assert figure.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("options", ["--rank 445", "--ratio 0.001", "--ratio 1.5", "--images 0", "--only rnn"])
def test_demo_refuses_what_makes_no_sense(options, capsys):
    _need("matplotlib", "tqdm")
    from fashion_mnist import main

    with pytest.raises(SystemExit) as caught:
        main(options.split())
    assert caught.value.code == 2
    assert options.split()[0] in capsys.readouterr().err


def test_demo_refuses_a_batch_beyond_the_images(folder, capsys):
    _need("matplotlib", "tqdm")
    from fashion_mnist import main

    assert main(["--batch", "49"]) == 1
    assert "there are 48 training images" in capsys.readouterr().err


def test_mlps_of_the_demo_are_the_same_function_from_the_same_weights():
    from count import inference_macs, training_macs
    from lowrank.networks import DENSE, IMAGE, LATH, mlp_task, networks

    models, report = networks(mlp_task(rank=16), seed=3)
    pair = "two nn.Linear"
    x = torch.randn(5, *IMAGE[1:])
    torch.testing.assert_close(models[LATH](x), models[pair](x), rtol=1e-5, atol=1e-6)
    assert [row.rank for row in report] == [16, 16, None]
    torch.testing.assert_close(models[LATH][5].weight, models[DENSE][5].weight, rtol=0, atol=0)

    thin = [784 * 16, 16 * 1024, 1024 * 16, 16 * 1024, 1024 * 10]
    for name in (LATH, pair):
        assert inference_macs(models[name], IMAGE) == sum(thin)
        assert training_macs(models[name], IMAGE) == 3 * sum(thin) - thin[0]
    assert training_macs(models[DENSE], IMAGE) == 2 * 784 * 1024 + 3 * (1024 * 1024 + 1024 * 10)


@pytest.mark.parametrize(
    ("form", "ranks", "first"),
    [("separable", [24, 24, 48, 96], 24 * 64 * 3), ("pointwise", [8, 16, 32, 32], 8 * 64 * 9)],
)
def test_cnns_of_the_demo_are_the_same_function_from_the_same_weights(form, ranks, first):
    from count import products
    from lowrank.networks import DENSE, IMAGE, LATH, cnn_task, networks

    models, report = networks(cnn_task(ratio=0.125, form=form), seed=3)
    pair = "two nn.Conv2d"
    x = torch.randn(3, *IMAGE[1:])
    torch.testing.assert_close(models[LATH](x), models[pair](x), rtol=1e-4, atol=1e-5)
    assert [row.rank for row in report] == [None, *ranks, None]

    assert products(models[LATH], IMAGE) == products(models[pair], IMAGE)
    assert products(models[LATH], IMAGE)[:2] == [64 * 9 * 28**2, first * 28**2]
    dense = [64 * 9 * 28**2, 64 * 64 * 9 * 28**2, 64 * 128 * 9 * 14**2, 128 * 256 * 9 * 7**2, 256 * 256 * 9 * 7**2]
    assert products(models[DENSE], IMAGE) == [*dense, 256 * 10]


def test_pairs_have_what_a_layer_can_have():
    """Inner biases, groups, stride, padding and dilation."""
    from lath.nn import LowRankConv2d, LowRankLinear
    from lowrank.networks import as_pairs

    conv = {"stride": (2, 1), "padding": (2, 1), "dilation": (2, 1), "groups": 2, "inner_bias": True}
    for mode in ("separable", "pointwise"):
        model = torch.nn.Sequential(
            LowRankConv2d(4, 6, (3, 2), 2, mode=mode, **conv), LowRankLinear(9, 4, 2, bias=False, inner_bias=True)
        )
        x = torch.randn(2, 4, 11, 8)
        torch.testing.assert_close(as_pairs(model)(x), model(x), rtol=1e-5, atol=1e-6)


def test_a_layout_reaches_every_layer():
    """Also from images with one channel, which look the same in both layouts."""
    from lowrank.networks import IMAGE, cnn
    from training import CHANNELS_LAST, CONTIGUOUS

    images, model = torch.randn(3, *IMAGE[1:]), cnn()
    for layout in (CONTIGUOUS, CHANNELS_LAST):
        model.to(memory_format=layout)
        assert model.features(images.to(memory_format=layout)).is_contiguous(memory_format=layout)


# ---- the other scripts -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_resnet18_goes_through_everything(folder, tmp_path, capsys):
    _need("tqdm", "torchvision")
    from resnet18_finetune import main

    output = tmp_path / "resnet18"
    assert main(f"--quick --steps 2 --batch 4 --ratio 0.1 --output {output}".split()) == 0
    out, _ = capsys.readouterr()
    assert "layer4.1.conv2         LowRankConv2d" in out
    assert "16 layers; logits differ by" in out
    differences = [float(d) for d in re.findall(r"differ by (\S+)", out)]
    assert len(differences) == 3
    assert max(differences) < 1e-3
    assert {path.name for path in output.iterdir()} == {"resnet18_weights.pt", "resnet18.pt2"}


@pytest.mark.slow
def test_rank_sweep_tells_and_draws(folder, tmp_path, capsys):
    _need("matplotlib", "tqdm")
    from rank_sweep import main

    assert main(f"--quick --images 8 --batch 4 --ratios 0.25 0.05 --output {tmp_path}".split()) == 0
    out, _ = capsys.readouterr()
    rows = re.findall(r"^(dense|separable|pointwise) +([\d.]*) +[\d.]+ +[\d.]+ ms", out, re.MULTILINE)
    assert rows == [
        ("dense", ""),
        *((form, ratio) for form in ("separable", "pointwise") for ratio in ("0.05", "0.25")),
    ]
    assert (tmp_path / "rank_sweep.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_peak_memory_is_what_is_alive_at_once():
    script = """
import sys; sys.path.insert(0, sys.argv[1])
import torch
from measure import peak_memory
def run():
    for _ in range(3):
        kept = torch.ones(2**20)
        both = torch.stack([kept, kept])
        del kept, both
torch.stack([torch.ones(8), torch.ones(8)])
print(peak_memory(run))
"""
    from measure import EXACT_MEMORY

    done = subprocess.run(
        [sys.executable, "-c", script, str(EXAMPLES)],
        env={**os.environ, **EXACT_MEMORY},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert 11.5 * 2**20 <= int(done.stdout) < 14 * 2**20  # pages that were there before may serve a part


def test_time_in_turns_gives_everyone_five_rounds():
    from measure import time_in_turns

    seen = []
    times = time_in_turns({name: lambda name=name: seen.append(name) for name in "ab"}, seconds=0.0)
    assert set(times) == {"a", "b"}
    assert all(t > 0 for t in times.values())
    assert min(seen.count("a"), seen.count("b")) >= 5


def test_convert_your_model_runs(capsys):
    from convert_your_model import main

    main(steps=2)
    out = capsys.readouterr().out
    assert "after saving and loading, outputs differ by 0.0e+00" in out
    assert "blocks.1.mlp.2  LowRankLinear" in out


def _need(*packages: str) -> None:
    for package in packages:
        pytest.importorskip(package)
