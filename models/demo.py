"""The whole journey on a digits network, in less than a minute: `python models/demo.py OUT_DIR`.

A trained FP32 ResNet is converted and audited. Then its digits are turned by a quarter, as it has never seen them, and the
integer graph learns them, with the FP32 graph of the same conversion beside it: the same images in the same order.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from digits import MEAN, STD, digits
from shift import shifted
from wageubn_onnx import Config, FloatSession, TrainingSession, audit, convert
from wageubn_onnx.runtime.session import Session
from wageubn_onnx.training.data import Dataset, save_data
from wageubn_onnx.training.train import CHECKPOINT, Plan, train

MODEL = Path(__file__).with_name("digits_resnet.onnx")
EPOCHS, SCHEDULE = 8, "cosine"
# Each side at the best rate of a few tried. Turned digits are a new task, so the integer rate is one for training from scratch
FLOAT_RATE, INTEGER_RATE = 0.03, 0.4


@dataclass(frozen=True)
class Outcome:
    """How one side fared: its test accuracies, the learning rate, and how long it trained."""

    known: float  # the digits as they were learned
    before: float  # turned, before training
    after: float  # turned, after training
    rate: float
    seconds: float


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description="Convert, audit and train a digits network, in integers and in FP32.")
    parser.add_argument("out", type=Path, metavar="OUT_DIR", help="the folder for everything that the demo writes")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"of both trainings (default: {EPOCHS})")
    options = parser.parse_args()
    out: Path = options.out
    folder = out / "digits"
    out.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False)

    say(console, "Convert: a trained FP32 ResNet becomes a training step in integers")
    show_conversion(console, folder)

    say(console, "Audit: not one float in the step, nor in the inference model")
    show_audit(console, folder)

    say(console, "Train: the digits are turned by a quarter, and both graphs learn them")
    known = digits()
    turned = shifted(known, rotate=1)
    save_data(known, out / "digits.npz")
    save_data(turned, out / "turned.npz")
    in_float = learn(console, FloatSession(folder), FLOAT_RATE, known, turned, options.epochs, out / "fp32_run")
    in_integers = learn(console, TrainingSession(folder), INTEGER_RATE, known, turned, options.epochs, out / "integer_run")

    say(console, f"Before and after, on {len(turned.y_test)} test images")
    show_outcomes(console, in_float, in_integers)
    show_next(console, out, options.epochs)


def say(console: Console, headline: str) -> None:
    """Print a headline."""
    console.print(f"\n[bold]{headline}[/bold]")


def show_conversion(console: Console, folder: Path) -> None:
    """Convert MODEL to ``folder`` and print its stages."""
    with console.status("converting"):
        artifacts = convert(MODEL, Config(batch=32, mean=MEAN, std=STD), folder)
    table = Table("stage")
    for column in ("nodes", "quantizers", "bytes"):
        table.add_column(column, justify="right")
    for stage, *numbers in artifacts.summary():
        table.add_row(stage, *(f"{number:,}" for number in numbers))
    console.print(table)


def show_audit(console: Console, folder: Path) -> None:
    """Print what the audit says of both integer models; exit with 1 where it found anything."""
    for stage in ("int_training", "int_eval"):
        report = audit(folder / f"{stage}.onnx")
        if not report.ok:
            sys.exit(f"{stage}: {len(report.findings)} findings, the first: {report.findings[0].message}")
        count = report.coverage
        seen = f"{count['tensors']:,} tensors, {count['quantizers']} quantizers, {count['products']} integer products"
        console.print(f"{stage:<12}  passed  {seen}")


def learn(console: Console, session: Session, rate: float, known: Dataset, turned: Dataset, epochs: int, run: Path) -> Outcome:
    """Train ``session`` on the ``turned`` digits into a new folder ``run``, and test it before and after."""
    seen, before = accuracy(session, known), accuracy(session, turned)
    name = "FP32" if isinstance(session, FloatSession) else "integers"
    console.print(f"{name}: {epochs} epochs, learning rate {rate} with a {SCHEDULE} schedule")
    shutil.rmtree(run, ignore_errors=True)  # of an earlier demo
    start = time.perf_counter()
    result = train(session, turned, Plan(epochs, rate, SCHEDULE), run, console=console)
    if not result.finished:
        sys.exit("interrupted")
    return Outcome(seen, before, accuracy(session, turned), rate, time.perf_counter() - start)


def accuracy(session: Session, data: Dataset) -> float:
    """Return how much of the test images ``session`` gets right."""
    return float((session.evaluate(data.x_test).predictions == data.y_test).mean())


def show_outcomes(console: Console, in_float: Outcome, in_integers: Outcome) -> None:
    """Print both sides of the table."""
    sides = (in_float, in_integers)
    table = Table("test accuracy")
    for name in ("FP32", "integers"):
        table.add_column(name, justify="right")
    table.add_row("the digits as the network learned them", *(f"{side.known:.1%}" for side in sides))
    table.add_row("turned, before training", *(f"{side.before:.1%}" for side in sides))
    table.add_row("turned, after training", *(f"{side.after:.1%}" for side in sides), style="bold")
    table.add_section()
    table.add_row("learning rate", *(str(side.rate) for side in sides))
    table.add_row("training took", *(f"{side.seconds:.0f} s" for side in sides))
    console.print(table)


def show_next(console: Console, out: Path, epochs: int) -> None:
    """Print where everything is, and commands to go on with."""
    folder, data, program = out / "digits", out / "turned.npz", command()
    say(console, f"Everything is in {out}")
    console.print("  digits/                  the conversion: the stages, their states, a manifest")
    console.print("  integer_run/, fp32_run/  checkpoints and metrics of the two trainings")
    console.print("  digits.npz, turned.npz   the images")
    say(console, "To try next")
    trained = out / "integer_run" / CHECKPOINT
    schedule = f"--epochs {epochs} --lr {INTEGER_RATE} --lr-schedule {SCHEDULE}"
    for line in (
        f"{program} eval {folder} --data {data} --state {trained}",
        f"{program} train {folder} --data {data} {schedule}",
        f"{program} passes",
    ):
        console.print(f"  {line}", soft_wrap=True, markup=False)


def command() -> str:
    """Return how a shell calls this environment's command line from here."""
    beside = Path(sys.executable).with_name("wageubn-onnx")
    if not beside.is_file() or shutil.which("wageubn-onnx") == str(beside):
        return "wageubn-onnx"
    return min(os.path.relpath(beside), str(beside), key=len)


if __name__ == "__main__":
    main()
