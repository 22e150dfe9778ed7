# SPDX-License-Identifier: Apache-2.0
"""The examples run, on small stand-ins for their data, and say clearly what they lack."""

from __future__ import annotations

import gzip
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(autouse=True)
def _examples_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.syspath_prepend(str(EXAMPLES / "lowrank"))


def write_idx(path: Path, values: torch.Tensor) -> None:
    header = struct.pack(f">HBB{values.dim()}I", 0, 8, values.dim(), *values.shape)
    path.write_bytes(gzip.compress(header + bytes(values.flatten().tolist())))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """48 training and 16 test images whose class is the row of their only bright line."""
    for name, count in (("train", 48), ("t10k", 16)):
        labels = torch.arange(count) % 10
        images = torch.zeros(count, 28, 28, dtype=torch.uint8)
        images[torch.arange(count), 2 * labels] = 255
        write_idx(tmp_path / f"{name}-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / f"{name}-labels-idx1-ubyte.gz", labels.to(torch.uint8))
    monkeypatch.setenv("LATH_FASHION_MNIST", str(tmp_path))
    return tmp_path


def test_fashion_mnist_is_read_as_written(folder):
    from data import fashion_mnist

    data = fashion_mnist()
    assert data.train.images.shape == (48, 784)
    assert data.test.labels.tolist() == [i % 10 for i in range(16)]
    bright = data.train.images[3].reshape(28, 28) > 0
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


def test_missing_data_set_is_one_line_and_exit_code_1(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    pytest.importorskip("tqdm")
    from fashion_mnist import main

    monkeypatch.setenv("LATH_FASHION_MNIST", str(tmp_path))
    assert main([]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    for part in (str(tmp_path), "LATH_FASHION_MNIST", "make demo", "dataset-fashion-mnist"):
        assert part in err


def test_demo_trains_measures_and_draws(folder, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    pytest.importorskip("tqdm")
    from fashion_mnist import main

    output = tmp_path / "figures"
    options = f"--rank 16 --epochs 2 --batch 24 --seconds 0 --output {output}"
    assert main(options.split()) == 0
    out, _ = capsys.readouterr()
    assert "rank 16 is not cheaper: break-even is 9" in out  # the head stays dense, and the report says so
    assert float(re.search(r"differs by (\S+) in the first\nstep", out)[1]) < 1e-5  # lath and its baseline
    for row in (
        "test accuracy",
        "peak memory of training",
        "training, batch 24",
        "inference, batch 1024",
        "realized share",
    ):
        assert row in out
    figure = output / "fashion_mnist.png"
    assert f"figure: {figure}" in out
    assert figure.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_networks_are_the_same_function_from_the_same_weights():
    pytest.importorskip("matplotlib")
    pytest.importorskip("tqdm")
    from fashion_mnist import DENSE, LATH, PAIR, networks
    from measure import inference_macs, training_macs

    models, report = networks(rank=16, seed=3)
    x = torch.randn(5, 784)
    torch.testing.assert_close(models[LATH](x), models[PAIR](x), rtol=1e-5, atol=1e-6)
    assert [row.rank for row in report] == [16, 16, None]
    torch.testing.assert_close(models[LATH][4].weight, models[DENSE][4].weight, rtol=0, atol=0)

    thin = [784 * 16, 16 * 1024, 1024 * 16, 16 * 1024, 1024 * 10]
    for name in (LATH, PAIR):
        assert inference_macs(models[name]) == sum(thin)
        assert training_macs(models[name]) == 3 * sum(thin) - thin[0]
    assert training_macs(models[DENSE]) == 2 * 784 * 1024 + 3 * (1024 * 1024 + 1024 * 10)


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
    assert 12 * 2**20 <= int(done.stdout) < 14 * 2**20


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


@pytest.fixture(autouse=True)
def _forget_example_modules():
    """The examples are scripts with short names; none may stay behind for other tests."""
    yield
    for name in ("convert_your_model", "data", "fashion_mnist", "measure", "lowrank", "lowrank.figure"):
        sys.modules.pop(name, None)
