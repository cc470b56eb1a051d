"""`train` and `eval`: sessions on a data set."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wageubn_onnx.cli.group import INTERRUPTED
from wageubn_onnx.cli.options import (
    PATH,
    data_option,
    example,
    float_option,
    json_option,
    numbers,
    print_json,
    threads_option,
    working,
)
from wageubn_onnx.terminal import say

if TYPE_CHECKING:
    from wageubn_onnx.runtime.session import Session


def _open_session(folder: Path, in_float: bool, threads: int | None) -> Session:
    from wageubn_onnx.runtime.session import FloatSession, TrainingSession

    return (FloatSession if in_float else TrainingSession)(folder, threads)


RATE_HELP = """Peak learning rate [default: 0.01, or 0.003 with --float]. Integer updates are normalised: refine a
trained network at about 0.01, since ten times as much destroys what it knows; on data on which it fails, 0.1 to 0.4 learns
faster, and from scratch 1 to 4."""


@click.command(epilog=example("wageubn-onnx train r20 --data cifar10.npz --epochs 5 --lr-schedule cosine"))
@click.argument("folder", metavar="DIR", type=PATH)
@data_option
@click.option("--epochs", required=True, type=click.IntRange(min=1), help="Times to go through the training images.")
@click.option("--lr", type=float, help=RATE_HELP)
@click.option(
    "--lr-schedule",
    type=click.Choice(["constant", "cosine", "step"]),
    default="constant",
    show_default=True,
    help="cosine: down to 0; step: a tenth from 1/2 of the run on, a hundredth from 3/4. An integer rate that "
    "would round to 0 is held at the smallest, 2^-9.",
)
@click.option(
    "--gradient-range",
    type=numbers(int),
    metavar="LIST",
    help=("Range of the weight gradients, a power of two in 2..128 [default: 128]; 128,32,8: equal parts of the run."),
)
@click.option(
    "--out",
    type=PATH,
    metavar="FOLDER",
    help=("For checkpoint.safetensors and metrics.jsonl [default: DIR/run, or DIR/fp_run with --float]."),
)
@click.option("--state", type=PATH, metavar="FILE", help="Start from this state or checkpoint [default: DIR's own state].")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint in FOLDER, to the same bits as without a break.")
@click.option(
    "--checkpoint-every",
    type=click.IntRange(min=1),
    metavar="N",
    help="Steps between two checkpoints [default: one an epoch].",
)
@click.option("--seed", default=0, show_default=True, help="Of the order of images and the stochastic roundings.")
@click.option("--log-every", default=50, show_default=True, help="Steps between two step lines of the metrics.")
@click.option("--health", is_flag=True, help="Show each epoch's worst quantizers (DIR is of `convert --health`).")
@threads_option
@float_option
@json_option
@click.pass_context
def train(
    ctx: click.Context,
    folder: Path,
    data_path: Path,
    epochs: int,
    lr: float | None,
    lr_schedule: str,
    gradient_range: tuple[int, ...] | None,
    out: Path | None,
    state: Path | None,
    resume: bool,
    checkpoint_every: int | None,
    seed: int,
    log_every: int,
    health: bool,
    threads: int | None,
    in_float: bool,
    as_json: bool,
) -> None:
    """Train the network of DIR with its integer step (or its FP32 step).

    The state starts from DIR, or from --state, and ends in FOLDER/checkpoint.safetensors; DIR's own state stays as it is. Ctrl-C
    saves a checkpoint and exits with 130; --resume goes on from it. --state starts a new run from where another one ended, with
    other data, epochs or batch.
    """
    from wageubn_onnx.training.data import load_data
    from wageubn_onnx.training.train import Plan
    from wageubn_onnx.training.train import train as run

    for option, given in (("--gradient-range", gradient_range is not None), ("--health", health)):
        if in_float and given:
            raise click.UsageError(f"{option} has no meaning with --float", ctx)
    if state is not None and resume:
        raise click.UsageError("--resume goes on from the checkpoint in FOLDER, --state starts a new run; give one", ctx)
    session = _open_session(folder, in_float, threads)
    if state is not None:
        session.load(state)
    rate = session.default_rate if lr is None else lr
    plan = Plan(epochs, rate, lr_schedule, gradient_range or (128,), seed, log_every)
    target = out or folder / ("fp_run" if in_float else "run")
    result = run(session, load_data(data_path), plan, target, resume, health=health, checkpoint_every=checkpoint_every)
    if as_json:
        print_json(asdict(result))
    else:
        accuracy = "not tested yet" if result.test_accuracy is None else f"test accuracy {result.test_accuracy:.2%}"
        say(f"{result.steps} steps, {result.epochs} epochs, {accuracy}; state in {result.checkpoint}")
    if not result.finished:
        say(f"interrupted; the same command with --resume{' in place of --state' if state else ''} goes on", err=True)
        ctx.exit(INTERRUPTED)


@click.command("eval", epilog=example("wageubn-onnx eval r20 --data cifar10.npz --state r20/run/checkpoint.safetensors"))
@click.argument("folder", metavar="DIR", type=PATH)
@data_option
@click.option("--state", type=PATH, metavar="FILE", help="A state or checkpoint [default: DIR's own].")
@threads_option
@float_option
@json_option
def evaluate(folder: Path, data_path: Path, state: Path | None, threads: int | None, in_float: bool, as_json: bool) -> None:
    """Test the network of DIR, in integers (or FP32), on the test images of DATA."""
    from wageubn_onnx.training.data import described, load_data

    session = _open_session(folder, in_float, threads)
    if state is not None:
        session.load(state)
    data = load_data(data_path)
    session.check_classes(data.classes)
    with working(f"testing on {len(data.x_test)} images"):
        result = session.evaluate(data.x_test, data.y_test)
    if as_json:
        answer = {"accuracy": result.accuracy, "correct": result.correct, "images": len(data.x_test)}
        print_json(answer | ({"classes": data.classes} if data.classes else {}))
    else:
        if data.classes:
            say(described(data.classes))
        say(f"accuracy {result.accuracy:.2%} ({result.correct} of {len(data.x_test)})")
