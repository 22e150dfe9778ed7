# SPDX-License-Identifier: Apache-2.0
"""The published experiments: data, recipe, the training script and the study, on small stand-ins for their data."""

from __future__ import annotations

import csv
import math
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace

import lath
import pytest
import torch
from example_cases import examples
from torch import nn

for package in ("matplotlib", "tqdm"):
    pytest.importorskip(package)

VERSES = [
    "  It is a truth universally acknowledged, that a single man in possession",
    "of a good fortune, must be in want",
    "",
]


@pytest.fixture(autouse=True)
def _examples(monkeypatch):
    with examples(monkeypatch):
        yield


def rdb(*vectors: list[str | None]) -> bytes:
    """R's lazy-load database of character vectors; None is R's missing string."""
    records = []
    for strings in vectors:
        record = b"X\n" + struct.pack(">iii", 3, 0x030500, 0x030500) + struct.pack(">i", 5) + b"UTF-8"
        record += struct.pack(">ii", 16, len(strings))
        for text in strings:
            data = b"" if text is None else text.encode()
            record += struct.pack(">ii", 0x00040009, -1 if text is None else len(data)) + data
        records.append(struct.pack(">I", len(record)) + zlib.compress(record))
    return b"".join(records)


@pytest.fixture
def austen(tmp_path, monkeypatch):
    """Two short novels."""
    folder = tmp_path / "austen"
    folder.mkdir()
    novels = [
        [f"{i} {line}" for i in range(20) for line in VERSES],
        [f"{line} £{i}é" for i in range(20) for line in VERSES],
    ]
    (folder / "Rdata.rdb").write_bytes(rdb(["not a novel"], *novels))
    monkeypatch.setenv("LATH_AUSTEN", str(folder))
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# ---- texts -----------------------------------------------------------------------------------------------------------


class TestTexts:
    def test_novels_are_read_as_written(self, austen):
        from lowrank.texts import austen as read

        train, test = (part.split("\n") for part in read())
        assert len(train) == 2 * 54
        assert len(test) == 2 * 6
        assert train[:3] == [f"0 {line}" for line in VERSES]
        assert train[54:56] == [f"{line} £0é" for line in VERSES[:2]]
        assert test[-1] == " £19é"

    def test_a_missing_string_is_an_empty_line(self, austen):
        from lowrank.texts import austen as read

        (austen / "Rdata.rdb").write_bytes(rdb(["a", None, "b"] * 10))
        assert read()[0].startswith("a\n\nb\na")

    @pytest.mark.parametrize(
        "damage",
        [
            lambda data: data[:-30],
            lambda data: b"\0\0\0\1" + data[4:],
            lambda data: data[:4] + b"<html>",
            lambda data: b"",
            lambda data: rdb(["only one"]),
            lambda data: (9).to_bytes(4, "big") + zlib.compress(b"A\nnothing"),
        ],
    )
    def test_damaged_novels(self, austen, damage):
        from data import DataError
        from lowrank.texts import austen as read

        path = austen / "Rdata.rdb"
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(DataError, match=r"Rdata\.rdb"):
            read()

    def test_missing_novels(self, tmp_path, monkeypatch):
        from data import DataError
        from lowrank.texts import austen as read

        monkeypatch.setenv("LATH_AUSTEN", str(tmp_path / "nowhere"))
        with pytest.raises(DataError, match=r"nowhere.*tools/fetch\.py austen"):
            read()

    def test_characters(self):
        import string

        from lowrank.texts import characters

        indices = characters("a  b   c\nd\n\n\té£Z")
        assert "".join(string.printable[i] for i in indices) == "a b c d  \teZ"
        assert indices.dtype == torch.uint8
        everything = characters(string.printable.replace("\n", ""))
        assert everything.tolist() == [i for i in range(100) if string.printable[i] != "\n"]

    def test_words_and_their_numbers(self):
        from lowrank.texts import separate, tokens, vocabulary

        numbers = vocabulary(" = the cat = \n \n the <unk> sat\n")
        assert numbers == {"<ukn>": 0, "<eos>": 1, "=": 2, "the": 3, "cat": 4, "<unk>": 5, "sat": 6}
        assert tokens(" the dog \n\n sat", numbers).tolist() == [3, 0, 1, 6, 1]
        assert separate("Yes, it's 5!") == ["Yes", ",", "it", "'", "s", "5", "!"]

    def test_shakespeare_from_a_folder(self, tmp_path):
        from data import DataError
        from lowrank.texts import shakespeare

        with pytest.raises(DataError, match=r"train\.txt and test\.txt, or one \.txt file, found 0"):
            shakespeare(tmp_path)
        (tmp_path / "input.txt").write_text("".join(f"line {i}\n" for i in range(40_000)))
        train, test = shakespeare(tmp_path)
        assert test.count("\n") == 7_999  # as the public code rounds
        assert train.count("\n") == 32_001
        assert train.endswith("line 32000\n")
        (tmp_path / "train.txt").write_text("to be")
        (tmp_path / "test.txt").write_text("or not")
        assert shakespeare(tmp_path) == ("to be", "or not")

    def test_wikitext2_from_a_folder(self, tmp_path):
        from data import DataError
        from lowrank.texts import wikitext2

        (tmp_path / "wiki.train.tokens").write_text("a")
        with pytest.raises(DataError, match=r"wiki\.test\.tokens"):
            wikitext2(tmp_path)
        (tmp_path / "wiki.test.tokens").write_bytes(b"\xff")
        with pytest.raises(DataError, match="cannot read"):
            wikitext2(tmp_path)


# ---- tasks -----------------------------------------------------------------------------------------------------------


class TestTasks:
    def test_every_window_of_characters_once(self):
        from lowrank.tasks import CharacterTask

        text = torch.arange(50, dtype=torch.uint8)
        task = CharacterTask("x", train=text, test=text, window=8)
        seen = []
        for x, y in task.training(4):
            assert x.shape == y.shape == (4, 8)
            assert x.dtype == torch.int64
            torch.testing.assert_close(y, x + 1)
            seen += x[:, 0].tolist()
        assert len(seen) == 4 * task.batches(4)[0] == 40
        assert sorted(set(seen)) == sorted(seen)
        assert set(seen) <= set(range(42))
        held_out = [x for x, _ in task.held_out(4)]
        assert torch.cat(held_out).flatten().tolist() == list(range(48))
        assert len(held_out) == task.batches(4)[1]

    def test_masked_words(self):
        from lowrank.tasks import WordTask

        text = torch.arange(1000)
        task = WordTask("x", {"tokens": 1000}, train=text, test=text, window=64)
        batches = list(task.training(3))
        assert len(batches) == task.batches(3)[0] == 6
        whole = torch.cat(sorted((y for _, y in batches), key=lambda y: int(y[0, 0])), dim=1)
        torch.testing.assert_close(whole, text[:999].reshape(3, 333))
        hidden = sum(int((x != y).sum()) for x, y in batches)
        assert 0.1 < hidden / 999 < 0.2
        assert all(set(x[x != y].tolist()) == {1000} for x, y in batches)
        first, again = (torch.cat([x for x, _ in task.held_out(3)], dim=1) for _ in range(2))
        assert torch.equal(first, again)
        state = torch.get_rng_state()
        list(task.held_out(3))
        assert torch.equal(torch.get_rng_state(), state)

    def test_images_of_a_training_epoch_once(self):
        from data import Split
        from lowrank.tasks import ImageTask

        images = torch.ones(10, 3, 32, 32) * torch.arange(1.0, 11)[:, None, None, None]
        split = Split(images, torch.arange(10))
        task = ImageTask("x", {"classes": 10}, train=split, test=split)
        seen = []
        for x, y in task.training(3):
            torch.testing.assert_close(x.amax((1, 2, 3)), y + 1.0)
            seen += y.tolist()
        assert len(set(seen)) == 9 == 3 * task.batches(3)[0]
        assert torch.cat([y for _, y in task.held_out(3)]).tolist() == list(range(10))
        assert task.batches(3)[1] == 4

    def test_augmentation_moves_and_mirrors(self):
        from lowrank.pictures import augmented

        image = torch.arange(1.0, 3 * 32 * 32 + 1).reshape(1, 3, 32, 32)
        wide = nn.functional.pad(image, (4,) * 4)[0]
        every = {tuple(wide[0, i, j : j + 32].tolist()) for i in range(9) for j in range(9)}
        mirrored = 0
        for result in augmented(image.expand(64, -1, -1, -1)):
            row = tuple(result[0, 0].tolist())
            mirrored += row not in every
            assert row in every or row[::-1] in every
        assert 16 < mirrored < 48

    def test_cifar_is_read_through_torchvision(self, monkeypatch, tmp_path):
        from lowrank import tasks

        datasets = pytest.importorskip("torchvision.datasets")

        class Stub:
            def __init__(self, root, train, download):
                assert not download
                assert root == str(tmp_path)
                self.data = torch.full((20 if train else 5, 32, 32, 3), 255, dtype=torch.uint8).numpy()
                self.targets, self.classes = list(range(len(self.data))), ["x"] * 100

        monkeypatch.setattr(datasets, "CIFAR100", Stub)
        task = tasks.task("cifar100", tmp_path)
        assert task.sizes == {"classes": 100}
        (x, y), *_ = task.held_out(8)
        assert x.shape == (5, 3, 32, 32)
        torch.testing.assert_close(
            x[0, :, 0, 0], (1 - torch.tensor([0.507, 0.487, 0.441])) / torch.tensor([0.267, 0.256, 0.276])
        )
        assert y.tolist() == list(range(5))
        split = tasks.task("cifar100", tmp_path, validation=0.25)
        assert (len(split.train), len(split.test)) == (15, 5)
        assert sorted([*split.train.labels.tolist(), *split.test.labels.tolist()]) == list(range(20))

    def test_cifar_that_is_not_there(self, tmp_path):
        pytest.importorskip("torchvision")
        from data import DataError
        from lowrank.tasks import task

        with pytest.raises(DataError, match=r"no cifar10 in .*cifar-10-batches-py"):
            task("cifar10", tmp_path)

    def test_validation_is_the_end_of_the_training_text(self, austen):
        from lowrank.tasks import task

        whole, split = task("austen"), task("austen", validation=0.1)
        assert torch.equal(torch.cat([split.train, split.test]), whole.train)
        assert len(split.test) == int(0.1 * len(whole.train))

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("svhn", "svhn is not supported"),
            ("imagenet", "there is no data set 'imagenet'"),
            ("wikiText2", "cannot be fetched: name the folder that has it with --data"),
        ],
    )
    def test_data_sets_that_are_not_there(self, name, message):
        from data import DataError
        from lowrank.tasks import task

        with pytest.raises(DataError, match=message):
            task(name)

    def test_texts_too_short_for_a_window(self, tmp_path):
        from data import DataError
        from lowrank.tasks import task

        for name in ("train.txt", "test.txt"):
            (tmp_path / name).write_text("x" * 80)
        with pytest.raises(DataError, match="training text has 80 symbols"):
            task("shakespeare", tmp_path)

    def test_figures_of_merit(self):
        from lowrank.tasks import Score, loss_of

        score, losses = Score(), []
        for count in (2, 3):
            output, target = torch.randn(count, 4, 7), torch.randint(7, (count, 4))
            loss = loss_of(output, target)
            losses.append((loss.item(), count * 4, (output.argmax(-1) == target).sum().item()))
            torch.testing.assert_close(loss, nn.functional.cross_entropy(output.mT, target))
            score.add(loss, output, target)
        figures = score.figures()
        mean = sum(value * n for value, n, _ in losses) / 20
        assert figures["loss"] == pytest.approx(mean)
        assert figures["bits"] == pytest.approx(mean / math.log(2))
        assert figures["accuracy"] == sum(hits for *_, hits in losses) / 20
        assert figures["perplexity"] == pytest.approx(sum(math.exp(value) for value, *_ in losses) / 2)


# ---- recipe ----------------------------------------------------------------------------------------------------------


class TestRecipe:
    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("None", lambda e: 1.0),
            ("Linear", lambda e: 1 / max(1, e)),
            ("Sqrt", lambda e: 1 / math.sqrt(max(1, e))),
            ("MultiStepLR", lambda e: 1.0 if e < 10 else 0.1 if e < 15 else 0.01),
            ("CosineAnnealingLR", lambda e: 1e-5 + (1 - 1e-5) * (1 + math.cos(math.pi * e / 20)) / 2),
        ],
    )
    @pytest.mark.parametrize("warmup", [False, True])
    def test_schedules(self, name, expected, warmup):
        from lowrank import recipe

        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = recipe.schedule(name, optimizer, 20, warmup)
        rates = []
        for _ in range(20):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        rise = [(e + 1) / 10 for e in range(10)] if warmup else []
        assert rates == pytest.approx([*rise, *(expected(e) for e in range(20 - len(rise)))], rel=1e-6)

    @pytest.mark.parametrize("name", ["SGD", "Adam", "RMSprop", "Adamax"])
    def test_optimizers(self, name):
        from lowrank import recipe

        model = nn.Sequential(lath.nn.LowRankLinear(4, 4, 2))
        optimizer = recipe.optimizer(name, model, 0.01)
        assert type(optimizer) is getattr(torch.optim, name)
        (group,) = optimizer.param_groups
        assert (group["lr"], group["weight_decay"]) == (0.01, 5e-4)
        assert group.get("momentum", 0.9) == 0.9
        instead = recipe.optimizer(name, model, 0.01, factors_decay=False)
        assert [group["weight_decay"] for group in instead.param_groups] == [5e-4, 0.0]
        assert len(instead.param_groups[1]["params"]) == 2

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("none", {}),
            ("frobenius", {"frobenius": 0.1}),
            ("kronecker", {"kronecker": 0.1}),
            ("L2", {"l2": 0.1}),
            ("L2-FD", {"l2": 0.2, "frobenius": 0.4}),
            ("L2-KD", {"l2": 0.2, "kronecker": 0.3}),
            ("FD-KD", {"frobenius": 0.4, "kronecker": 0.3}),
        ],
    )
    @pytest.mark.parametrize("convention", ["reference", "half"])
    def test_regularizers(self, name, expected, convention):
        from lowrank import recipe

        model = nn.Sequential(lath.nn.LowRankLinear(4, 5, 2, dtype=torch.float64))
        wanted = lath.mixed_decay(model, **expected, convention=convention)
        gradients = []
        for fused in (False, True):
            term = recipe.regularizer(name, 0.1, 0.2, 0.3, 0.4, convention, fused)
            assert bool(term) == bool(expected)
            model.zero_grad()
            loss = model(torch.ones(1, 4, dtype=torch.float64)).sum()
            total = term.add_to(loss, model)
            torch.testing.assert_close(total, loss if fused else loss + wanted)
            total.backward()
            term.after_backward(model)
            gradients.append([p.grad.clone() for p in model.parameters()])
        torch.testing.assert_close(*gradients)


# ---- the script ------------------------------------------------------------------------------------------------------


def train(*options: object) -> int:
    from lowrank.train import main

    return main([str(option) for option in options])


SHORT = ("--batch", 4, "--limit", 2, "--held-out-limit", 1)


class TestTrain:
    @pytest.mark.parametrize(
        ("options", "name"),
        [
            (["--model", "lstm"], "lstm_austen_low_rank_0.2_0-0_none_SGD_0.01_CosineAnnealingLR_none_seed12345"),
            (
                ["--model", "lstm", "--method", "original"],
                "lstm_austen_original_SGD_0.01_CosineAnnealingLR_none_seed12345",
            ),
            (
                ["--model", "transformer", "--decom-rule", 0, 1, "--regularization", "FD-KD", "--optim", "Adam"],
                "transformer_austen-words_low_rank_0.2_0-1_none_Adam_0.01_CosineAnnealingLR_FD-KD_seed12345",
            ),
        ],
    )
    def test_writes_a_line_per_epoch(self, austen, tmp_path, capsys, options, name):
        assert train(*options, *SHORT, "--epochs", 3, "--eval-freq", 2, "--output", tmp_path / "out") == 0
        assert {p.name for p in (tmp_path / "out").iterdir()} == {f"{name}.csv", f"{name}.pt"}
        lines = rows(tmp_path / "out" / f"{name}.csv")
        assert [line["epoch"] for line in lines] == ["1", "2", "3"]
        assert [bool(line["held_out_loss"]) for line in lines] == [False, True, True]
        for line in lines:
            assert float(line["train_perplexity"]) > 1
            assert (float(line["decay"]) > 0) == ("FD-KD" in name)
        out, err = capsys.readouterr()
        assert len([line for line in out.splitlines() if line.startswith("epoch ")]) == 3
        assert err == ""

    @pytest.mark.parametrize("schedule", [("--lr-scheduler", "MultiStepLR", "--warmup"), ("--optim", "Adam")])
    def test_resumed_is_as_if_it_had_not_been_interrupted(self, austen, tmp_path, schedule):
        options = (*schedule, *SHORT, "--epochs", 3)
        assert train(*options, "--output", tmp_path / "whole") == 0
        assert train(*options, "--output", tmp_path / "parts", "--until", 1) == 0
        (log,) = (tmp_path / "parts").glob("*.csv")
        with log.open("a") as file:
            file.write("2,of a crash before the checkpoint\n")
        for _ in range(2):  # the second time there is nothing left to do
            assert train(*options, "--output", tmp_path / "parts", "--resume") == 0
        whole, parts = (rows(next((tmp_path / d).glob("*.csv"))) for d in ("whole", "parts"))
        for line in (*whole, *parts):
            del line["seconds"]
        assert whole == parts
        a, b = (torch.load(next((tmp_path / d).glob("*.pt"))) for d in ("whole", "parts"))
        assert all(torch.equal(a["model"][name], b["model"][name]) for name in a["model"])

    def test_resume_without_a_checkpoint_starts(self, austen, tmp_path):
        assert train(*SHORT, "--epochs", 1, "--output", tmp_path / "out", "--resume") == 0

    def test_resume_with_other_options_is_refused(self, austen, tmp_path, capsys):
        options = (*SHORT, "--output", tmp_path / "out")
        assert train(*options, "--epochs", 2, "--until", 1) == 0
        assert train(*options, "--epochs", 3, "--resume") == 1
        assert "written with other options: epochs was 2" in capsys.readouterr().err

    def test_learns(self, austen, tmp_path):
        options = (
            "--optim",
            "Adam",
            "--lr",
            0.01,
            "--epochs",
            2,
            "--batch",
            8,
            "--limit",
            30,
            "--output",
            tmp_path / "out",
        )
        assert train(*options, "--regularization", "frobenius", "--fused", "--init", "SI") == 0
        first, last = rows(next((tmp_path / "out").glob("*.csv")))
        assert float(last["train_bits"]) < float(first["train_bits"]) < math.log2(100)
        assert float(last["held_out_accuracy"]) > 0.1

    @pytest.mark.slow
    @pytest.mark.parametrize("model", ["mlp", "cnn", "vgg11", "resnet18", "vit"])
    def test_networks_for_images(self, monkeypatch, tmp_path, model):
        from data import FashionMNIST, Split
        from lowrank import pictures

        def split(count: int) -> Split:
            return Split(torch.randn(count, 1, 28, 28), torch.arange(count) % 10)

        monkeypatch.setattr(pictures, "fashion_mnist", lambda: FashionMNIST(split(12), split(4)))
        rule = ("--decom-rule", 0, 2) if model in ("vgg11", "cnn") else ()
        options = ("--model", model, *rule, "--regularization", "L2-FD", "--epochs", 1, "--lr", 1e-3)
        assert train(*options, *SHORT, "--output", tmp_path) == 0
        (line,) = rows(next(tmp_path.glob("*.csv")))
        assert 0 <= float(line["held_out_accuracy"]) <= 1
        assert float(line["decay"]) > 0

    @pytest.mark.parametrize("option", ["--amp", "--decay-instead"])
    def test_other_ways(self, austen, tmp_path, option):
        assert train(option, *SHORT, "--epochs", 1, "--validation", 0.2, "--output", tmp_path / "out") == 0

    @pytest.mark.slow
    def test_compiled_it_learns_the_same(self, monkeypatch, tmp_path):
        from data import FashionMNIST, Split
        from lowrank import pictures

        images, labels = torch.randn(12, 1, 28, 28), torch.arange(12) % 10
        monkeypatch.setattr(
            pictures, "fashion_mnist", lambda: FashionMNIST(Split(images, labels), Split(images, labels))
        )
        losses = []
        for option in ((), ("--compile",)):
            folder = tmp_path / str(len(losses))
            assert train("--model", "mlp", *option, *SHORT, "--epochs", 2, "--output", folder) == 0
            losses.append([float(line["train_loss"]) for line in rows(next(folder.glob("*.csv")))])
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)

    def test_a_loss_that_overflows_is_one_line_and_exit_code_1(self, austen, tmp_path, capsys):
        assert train("--lr", 1e30, *SHORT, "--limit", 20, "--epochs", 1, "--output", tmp_path / "out") == 1
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert "no longer finite, in epoch 1" in err

    @pytest.mark.parametrize(
        ("options", "line"),
        [
            ("--model vit", "3,221,814 parameters, 233,209,344 FLOPs"),
            ("--model vit --method original", "9,523,722 parameters, 642,952,704 FLOPs"),
            ("--model lstm --as-published", "1,006,024 parameters, 455,680 FLOPs"),
            ("--model lstm", "216,168 parameters, 455,680 FLOPs"),
            ("--model vgg11 --as-published --ratio_LR 0.1", "3,904,301 parameters, "),
        ],
    )
    def test_count_needs_no_data(self, options, line, capsys, monkeypatch):
        monkeypatch.setenv("LATH_AUSTEN", "nowhere")
        assert train(*options.split(), "--count") == 0
        assert capsys.readouterr().out.startswith(line)

    def test_the_published_spellings_are_taken(self):
        from lowrank.train import parse

        published = (
            "--B 8 --T 3 --lr_scheduler Sqrt --ratio_LR 0.3 --decom_rule 0 1 --coef_decay 1 --coef_L2 2 --coef_KD 3"
        )
        args = parse([*published.split(), "--coef_FD", "4", "--eval_freq", "5"])
        assert (args.batch, args.epochs, args.lr_scheduler, args.ratio, args.decom_rule) == (8, 3, "Sqrt", 0.3, [0, 1])
        assert (args.coef_decay, args.coef_L2, args.coef_KD, args.coef_FD, args.eval_freq) == (1, 2, 3, 4, 5)

    def test_the_published_defaults(self):
        from lowrank.train import parse

        expected = {
            "method": "low_rank", "model": "lstm", "batch": 128, "lr": 0.01, "epochs": 10, "optim": "SGD",
            "warmup": False, "lr_scheduler": "CosineAnnealingLR", "eval_freq": 1, "seed": 12345, "ratio": 0.2,
            "decom_rule": [0, 0], "regularization": "none", "init": "none",
            "coef_decay": 1e-4, "coef_L2": 1e-3, "coef_KD": 1e-4, "coef_FD": 1e-4,
        }  # fmt: skip
        args = vars(parse([]))
        assert {name: args[name] for name in expected} == expected

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ("--model vit --dataset austen", "--dataset: vit learns from fashion-mnist"),
            ("--batch 0", "--batch: 0"),
            ("--ratio 0", "--ratio: 0.0"),
            ("--validation 1", "--validation: 1.0"),
            ("--method original --regularization L2", "--regularization: there are no factors"),
            ("--model gpt", "invalid choice"),
        ],
    )
    def test_nonsense_is_refused(self, options, message, capsys):
        with pytest.raises(SystemExit) as caught:
            train(*options.split())
        assert caught.value.code == 2
        assert message in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ("--model vit --dataset svhn", "svhn is not supported"),
            ("--model vit --dataset cifar10", "cifar10 cannot be fetched"),
            ("--ratio 0.001", "rank"),
            ("--model vit --decom-rule 0 9", "names block 9"),
        ],
    )
    def test_what_cannot_be_done_is_one_line_and_exit_code_1(self, austen, tmp_path, options, message, capsys):
        if "vit" in options and "dataset" not in options:
            options += " --count"
        assert train(*options.split(), "--output", tmp_path / "out") == 1
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert message in err


# ---- the study -------------------------------------------------------------------------------------------------------


class TestStudy:
    def test_quick(self, austen, tmp_path, capsys):
        from lowrank.char_lstm_study import main

        options = (
            "--quick",
            "--steps",
            3,
            "--batch",
            2,
            "--held-out",
            1,
            "--ranks",
            25,
            8,
            "--output",
            tmp_path / "out",
        )
        assert main([str(option) for option in options]) == 0
        lines = rows(tmp_path / "out" / "char_lstm_summary.csv")
        names = ["dense", "low-rank 8", "low-rank 8 + decay", "low-rank 25", "low-rank 25 + decay", "published 204"]
        assert [line["name"] for line in lines] == names
        parameters = [int(line["parameters"]) for line in lines]
        assert parameters[0] == 825_220
        assert parameters[-1] == 1_006_024
        assert parameters[1] == parameters[2] < parameters[3] == parameters[4] < parameters[0]
        for line in lines:
            assert 0 < float(line["bits"]) < 8
            assert float(line["milliseconds"]) > 0
            assert line["seeds"] == "2"
        looks = rows(tmp_path / "out" / "char_lstm.csv")
        assert len(looks) == 2 * 6 * 3
        assert (tmp_path / "out" / "char_lstm.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert "published 204" in capsys.readouterr().out

    def test_multiply_adds_of_a_character(self):
        from lowrank.char_lstm_study import Trained, Variant, summary, variants

        chosen = variants([51], 1e-4)
        runs = [
            [Trained(v, v.build(False), None, None, None, [0.1, seconds, 0.6], [(3, 0.9, bits)]) for v in chosen]
            for seconds, bits in ((0.2, 2.5), (0.3, 9.0), (0.2, 2.0))
        ]
        dense, thin, decayed, published = summary(chosen, runs)
        assert dense.macs == 794_624 + 25_600
        assert thin.macs == decayed.macs == 8 * 1024 + 51 * 1280 + 2 * 51 * 1280 + 20 * 356
        assert published.macs == 993_888 + 7_120
        assert (dense.bits_least, dense.bits, dense.bits_most) == (2.0, 2.5, 9.0)
        assert (dense.milliseconds_least, dense.milliseconds, dense.milliseconds_most) == (200.0, 200.0, 300.0)
        assert (thin.decay, decayed.decay) == (0.0, 1e-4)
        assert Variant("low-rank", 51, 1e-4).name == "low-rank 51 + decay"

    def test_decay_is_that_of_the_method_that_replaces_weight_decay(self):
        from lowrank.char_lstm_study import Variant, start, step

        args = SimpleNamespace(init="SI", lr=0.0, steps=4)
        plain, decayed = (start(Variant("low-rank", 8, decay), args, seed=1) for decay in (0.0, 1e-3))
        assert plain.decay is None
        assert (decayed.decay.coefficient, decayed.decay.scale) == (1e-3, 0.5)
        assert all(group["weight_decay"] == 0 for group in decayed.optimizer.param_groups)
        x = torch.randint(100, (2, 6))
        for run in (plain, decayed):
            step(run, x, x)
        name = "recurrent.weight_hh_v_l0"
        (a, b) = (dict(run.model.named_parameters())[name].grad for run in (plain, decayed))
        assert not torch.equal(a, b)

    def test_missing_novels_are_one_line_and_exit_code_1(self, tmp_path, monkeypatch, capsys):
        from lowrank.char_lstm_study import main

        monkeypatch.setenv("LATH_AUSTEN", str(tmp_path))
        assert main(["--quick"]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert "tools/fetch.py austen" in err

    @pytest.mark.parametrize("options", ["--steps -1", "--ranks 0", "--decay 0", "--decay nan"])
    def test_nonsense_is_refused(self, options):
        from lowrank.char_lstm_study import main

        with pytest.raises(SystemExit) as caught:
            main(options.split())
        assert caught.value.code == 2
