# SPDX-License-Identifier: Apache-2.0
"""Trains one model of "Low-rank Model Training From Scratch", dense or low-rank, with the published recipe.

    python examples/lowrank/train.py --model lstm --ratio 0.2 --limit 500
    python examples/lowrank/train.py --model resnet18 --dataset cifar10 --data ~/data --epochs 200 --lr 0.1 \
        --regularization frobenius --coef-decay 1e-4
    python examples/lowrank/train.py --model vit --count

The flags have the names and the meaning of the public code; both ``--lr-scheduler`` and ``--lr_scheduler`` are taken.
Each epoch adds a line to a CSV file whose name tells the options, and replaces the checkpoint beside it, from which
``--resume`` goes on. docs/lowrank.md has the published command lines.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from count import fvcore_flops, inference_macs, parameters  # isort: skip
from data import DataError
from lowrank import recipe, reference_models, tasks
from lowrank.tasks import Score, Task, loss_of
from torch import nn
from tqdm import tqdm

COLUMNS = ("loss", "accuracy", "perplexity", "bits")
# Options that do not change what is learned.
BESIDE = ("batch_limit_held_out", "compile", "count", "data", "device", "output", "resume", "threads", "until")


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why."""


@dataclass
class Run:
    """A training run between two epochs."""

    args: argparse.Namespace
    task: Task
    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    regularizer: recipe.Regularizer
    done: int = 0  # epochs


# ---- one epoch -------------------------------------------------------------------------------------------------------


def train_epoch(run: Run, call: nn.Module) -> Score:
    """``call`` is the model, or what torch.compile made of it."""
    args, score = run.args, Score()
    run.model.train()
    count = min_of(run.task.batches(args.batch)[0], args.limit)
    for x, y in shown(run.task.training(args.batch), count, f"epoch {run.done + 1}/{args.epochs}"):
        x, y = x.to(args.device), y.to(args.device)
        run.optimizer.zero_grad()
        with autocast(args):
            output = call(x)
            loss = loss_of(output, y)
        run.regularizer.add_to(loss, run.model).backward()
        run.regularizer.after_backward(run.model)
        run.optimizer.step()
        score.add(loss.detach(), output.detach(), y)
        if not math.isfinite(score.loss):
            raise TrainingError(f"the loss is no longer finite, in epoch {run.done + 1}: try a smaller --lr")
    return score


@torch.no_grad()
def evaluate(run: Run, call: nn.Module) -> Score:
    args, score = run.args, Score()
    run.model.eval()
    count = min_of(run.task.batches(args.batch)[1], args.batch_limit_held_out)
    for x, y in shown(run.task.held_out(args.batch), count, "held out"):
        x, y = x.to(args.device), y.to(args.device)
        with autocast(args):
            output = call(x)
        score.add(loss_of(output, y), output, y)
    return score


def shown(batches: Iterator[tasks.Batch], count: int, what: str) -> Iterator[tasks.Batch]:
    """The first ``count``, with a progress bar if somebody is looking."""
    return iter(tqdm(itertools.islice(batches, count), total=count, desc=what, leave=False, disable=None))


def min_of(count: int, limit: int | None) -> int:
    return count if limit is None else min(count, limit)


def autocast(args: argparse.Namespace):
    return torch.autocast(torch.device(args.device).type, torch.bfloat16) if args.amp else nullcontext()


# ---- all of them -----------------------------------------------------------------------------------------------------


def train(run: Run, log: Log) -> None:
    args = run.args
    call = torch.compile(run.model) if args.compile else run.model
    until = min_of(args.epochs, args.until)
    while run.done < until:
        start, rate = time.perf_counter(), run.optimizer.param_groups[0]["lr"]
        trained = train_epoch(run, call)
        seconds = time.perf_counter() - start
        run.schedule.step()
        run.done += 1
        due = run.done % args.eval_freq == 0 or run.done == args.epochs
        held_out = evaluate(run, call).figures() if due else {}
        decay = float(run.regularizer.value(run.model).detach()) if run.regularizer else 0.0
        log.add(run.done, seconds, rate, trained.figures(), held_out, decay)
        save(run, log.checkpoint)


class Log:
    """A line per epoch on the console and in a CSV file, with a checkpoint beside it."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.checkpoint = folder / f"{name}.csv", folder / f"{name}.pt"

    def start(self, done: int) -> None:
        """Keep the lines of the epochs that are done, if any: one more may have been written before a crash."""
        kept = self.path.read_text().splitlines()[1 : 1 + done] if done and self.path.is_file() else []
        header = ["epoch", "seconds", "rate", *(f"{part}_{c}" for part in ("train", "held_out") for c in COLUMNS)]
        self.path.write_text("\n".join([",".join([*header, "decay"]), *kept]) + "\n")

    def add(
        self, epoch: int, seconds: float, rate: float, train: dict[str, float], held_out: dict[str, float], decay: float
    ) -> None:
        figures = [part.get(c, "") for part in (train, held_out) for c in COLUMNS]
        with self.path.open("a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow([epoch, f"{seconds:.3f}", rate, *figures, decay])
        told = f"loss {train['loss']:.4f}, accuracy {train['accuracy']:.4f}"
        if held_out:
            told += f"; held out: loss {held_out['loss']:.4f}, accuracy {held_out['accuracy']:.4f}"
            told += f", perplexity {held_out['perplexity']:.3f}, {held_out['bits']:.4f} bits"
        print(f"epoch {epoch:>3}  {seconds:7.1f} s  rate {rate:.2e}  {told}", flush=True)


def save(run: Run, path: Path) -> None:
    """Write the checkpoint; the old one stays until the new one is whole."""
    state = {
        "done": run.done,
        "options": options_of(run.args),
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "schedule": run.schedule.state_dict(),
        "random": torch.get_rng_state(),
    }
    beside = path.with_suffix(".part")
    torch.save(state, beside)
    os.replace(beside, path)


def resume(run: Run, path: Path) -> None:
    """Go on where the checkpoint was written.

    Raises:
        TrainingError: it was written with other options.
    """
    state = torch.load(path, map_location=run.args.device, weights_only=True)
    now, then = options_of(run.args), state["options"]
    other = [f"{name} was {then.get(name)!r}" for name in now if now[name] != then.get(name)]
    if other:
        raise TrainingError(f"{path} was written with other options: {', '.join(other)}")
    run.model.load_state_dict(state["model"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.schedule.load_state_dict(state["schedule"])
    torch.set_rng_state(state["random"].cpu())
    run.done = state["done"]


def options_of(args: argparse.Namespace) -> dict[str, object]:
    return {name: value for name, value in vars(args).items() if name not in BESIDE}


def name_of(args: argparse.Namespace) -> str:
    """Tells the options that one would compare runs by."""
    low_rank = f"low_rank_{args.ratio:g}_{args.decom_rule[0]}-{args.decom_rule[1]}_{args.init}"
    form = low_rank if args.method == "low_rank" else "original"
    reg = args.regularization if args.method == "low_rank" else "none"
    recipe_name = f"{args.optim}_{args.lr:g}_{args.lr_scheduler}{'_warmup' if args.warmup else ''}_{reg}"
    return f"{args.model}_{args.dataset}_{form}_{recipe_name}_seed{args.seed}"


# ---- from the command line -------------------------------------------------------------------------------------------


def build(args: argparse.Namespace, task: Task) -> Run:
    """Seeds torch, then makes the model and what trains it."""
    torch.manual_seed(args.seed)
    model = model_of(args, task.sizes).to(args.device)
    optimizer = recipe.optimizer(args.optim, model, args.lr, factors_decay=not args.decay_instead)
    schedule = recipe.schedule(args.lr_scheduler, optimizer, args.epochs, args.warmup)
    coefficients = args.coef_decay, args.coef_L2, args.coef_KD, args.coef_FD
    regularizer = recipe.regularizer(args.regularization, *coefficients, args.convention, args.fused)
    return Run(args, task, model, optimizer, schedule, regularizer)


def model_of(args: argparse.Namespace, sizes: dict[str, int]) -> nn.Module:
    ratio = args.ratio if args.method == "low_rank" else None
    rule = tuple(args.decom_rule)
    return reference_models.reference(args.model, ratio, rule, args.as_published, **sizes, init=args.init)


def sizes_of(name: str, model: nn.Module) -> str:
    """Parameters and work, as the published table has them."""
    shape, dtype = reference_models.inputs_of(name)
    flops, macs = fvcore_flops(model, shape, dtype), inference_macs(model, shape, dtype)
    return f"{parameters(model):,} parameters, {flops:,} FLOPs as fvcore counts, {macs:,} multiply-adds for one input"


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])

    def flag(name: str, *published: str, **options) -> None:
        spellings = dict.fromkeys([f"--{name}", f"--{name.replace('-', '_')}", *published])
        parser.add_argument(*spellings, **options)

    flag("model", choices=reference_models.NAMES, default="lstm", help="(lstm)")
    flag("method", choices=("original", "low_rank"), default="low_rank", help="(low_rank)")
    flag("dataset", choices=(*tasks.DATA_SETS, *tasks.REFUSED), help="(what suits the model and can be fetched)")
    flag("data", type=Path, help="folder of a data set that cannot be fetched")
    flag("batch", "--B", type=int, default=128, help="(128)")
    flag("lr", type=float, default=0.01, help="rate to begin with (0.01)")
    flag("epochs", "--T", type=int, default=10, help="(10)")
    flag("lr-scheduler", choices=recipe.SCHEDULES, default="CosineAnnealingLR", help="(CosineAnnealingLR)")
    flag("optim", choices=recipe.OPTIMIZERS, default="SGD", help="(SGD)")
    flag("warmup", action="store_true", help=f"{recipe.WARMUP} epochs of rising rate before the schedule")
    flag("eval-freq", type=int, default=1, help="epochs between two looks at the held-out data (1)")
    flag("seed", type=int, default=12345, help="(12345)")
    flag("device", default="cpu", help="cpu, cuda or cuda:1 (cpu)")
    flag("ratio", "--ratio_LR", type=float, default=0.2, help="rank as a share of the smaller side (0.2)")
    flag("decom-rule", type=int, nargs=2, default=[0, 0], metavar=("A", "B"), help="early layers stay dense (0 0)")
    flag("init", choices=reference_models.INITS, default="none", help="SI: singular values of a dense start (none)")
    flag("regularization", choices=recipe.REGULARIZATIONS, default="none", help="of the factors (none)")
    flag("coef-decay", type=float, default=1e-4, help="of a single regularizer (1e-4)")
    for name, value in (("L2", 1e-3), ("KD", 1e-4), ("FD", 1e-4)):
        flag(f"coef-{name}", type=float, default=value, help=f"of {name} in a pair ({value:g})")
    flag("convention", choices=("reference", "half"), default="reference", help="half: half of each regularizer")
    flag("fused", action="store_true", help="regularizers add to the gradients, not to the loss")
    flag("decay-instead", action="store_true", help="no weight decay on the factors")
    flag("as-published", action="store_true", help="with the published models' defects")
    flag("validation", type=float, default=0.0, help="share of the training data to hold out, not the test data (0)")
    flag("amp", action="store_true", help="bfloat16 autocast")
    flag("compile", action="store_true", help="through torch.compile")
    flag("limit", type=int, help="batches of an epoch (all)")
    flag("batch-limit-held-out", "--held-out-limit", type=int, help="batches to look at (all)")
    flag("threads", type=int, help="as torch.set_num_threads")
    flag("output", type=Path, default=Path("build/experiments"), help="folder (build/experiments)")
    flag("resume", action="store_true", help="from the checkpoint, if there is one")
    flag("until", type=int, help="stop after this epoch; --resume goes on")
    flag("count", action="store_true", help="print the sizes of the model and stop; needs no data")
    args = parser.parse_args(argv)
    check(parser, args)
    return args


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Fill in the data set, and refuse what makes no sense."""
    args.dataset = args.dataset or tasks.DEFAULTS.get(args.model, "fashion-mnist")
    suited = tasks.SUITED.get(args.model, tasks.IMAGES)
    if args.dataset not in (*suited, *tasks.REFUSED):
        parser.error(f"--dataset: {args.model} learns from {', '.join(suited)}, not from {args.dataset}")
    for name in ("batch", "epochs", "eval_freq", "limit", "batch_limit_held_out", "threads", "until"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')}: {value}, expected 1 or more")
    if not 0 < args.ratio <= 1:
        parser.error(f"--ratio: {args.ratio}, expected a number above 0 and at most 1")
    if not 0 <= args.validation < 1:
        parser.error(f"--validation: {args.validation}, expected a share below 1")
    if args.method == "original":
        for name, unused in (("regularization", "none"), ("init", "none")):
            if getattr(args, name) != unused:
                parser.error(f"--{name}: there are no factors in the original model")


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        if args.count:
            with torch.device("meta"):
                model = model_of(args, {})
            print(sizes_of(args.model, model))
            return 0
        run = build(args, tasks.task(args.dataset, args.data, args.validation))
        log = Log(args.output, name_of(args))
        if args.resume and log.checkpoint.is_file():
            resume(run, log.checkpoint)
        log.start(run.done)
        print(f"{name_of(args)}: {parameters(run.model):,} parameters, {run.task.batches(args.batch)[0]:,} batches")
        train(run, log)
    except (DataError, TrainingError, ValueError) as error:
        print(f"train: {error}", file=sys.stderr)
        return 1
    print(f"log: {log.path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
