"""The training loop: schedules, metrics, checkpoints, and a resume to the same bits."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from rich.console import Console

from wageubn_onnx.artifacts.checkpoint import load_state
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.runtime.session import FloatSession, Session, StepResult, TrainingSession
from wageubn_onnx.training.data import Dataset, batches
from wageubn_onnx.training.schedules import gradient_range, learning_rate
from wageubn_onnx.training.train import CHECKPOINT, METRICS, Plan, train

PLAN = Plan(epochs=3, lr=0.05, schedule="cosine", gradient_ranges=(128, 32, 8), seed=5, log_every=2)
STEPS = 3  # an epoch: 14 images in batches of 4


def quiet() -> Console:
    return Console(file=io.StringIO())


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / METRICS).read_text().splitlines()]


def interrupt_after(session: Session, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Ctrl-C arrive within the ``steps``-th step of ``session``."""
    inner, count = session.step, 0

    def step(*args: Any, **kwargs: Any) -> StepResult:
        nonlocal count
        count += 1
        if count == steps:
            signal.raise_signal(signal.SIGINT)
        return inner(*args, **kwargs)

    monkeypatch.setattr(session, "step", step)


def test_schedules() -> None:
    def rates(name: str, smallest: float = 0.0) -> list[float]:
        return [learning_rate(name, 0.8, smallest, index, 8) for index in range(8)]

    assert rates("constant") == [0.8] * 8
    np.testing.assert_allclose(rates("cosine"), [0.4 * (1 + math.cos(math.pi * i / 8)) for i in range(8)])
    np.testing.assert_allclose(rates("step"), [0.8] * 4 + [0.08] * 2 + [0.008] * 2)
    np.testing.assert_allclose(rates("step", smallest=0.05), [0.8] * 4 + [0.08] * 2 + [0.05] * 2)
    assert [gradient_range((128, 32, 8), i, 9) for i in range(9)] == [128] * 3 + [32] * 3 + [8] * 3
    assert [gradient_range((128, 8), i, 3) for i in range(3)] == [128, 128, 8]


def test_a_run_is_its_steps(folder: Path, data: Dataset, tmp_path: Path) -> None:
    session, reference = TrainingSession(folder), TrainingSession(folder)
    result = train(session, data, PLAN, tmp_path / "run", console=quiet())
    losses, corrects, accuracies = [], [], []
    for done in range(9):
        rows = batches(14, 4, done // STEPS, seed=5)[done % STEPS]
        rate = max(0.05 * 0.5 * (1 + math.cos(math.pi * done / 9)), 2**-9)
        step = reference.step(data.x_train[rows], data.y_train[rows], rate, (128, 32, 8)[done // STEPS], seed=5)
        losses.append(step.loss)
        corrects.append(step.correct)
        if done % STEPS == 2:
            accuracies.append(reference.evaluate(data.x_test, data.y_test).accuracy)
    for key, value in reference.state().items():
        np.testing.assert_array_equal(session.state()[key], value)
    assert dataclasses.asdict(result) == {
        "finished": True, "epochs": 3, "steps": 9, "dropped_per_epoch": 2, "test_accuracy": accuracies[-1],
        "checkpoint": str(tmp_path / "run" / CHECKPOINT), "health": None, "classes": None,
    }  # fmt: skip
    epochs = [line for line in lines(tmp_path / "run") if line["kind"] == "epoch"]
    assert [line["step"] for line in epochs] == [3, 6, 9]
    assert [line["test_accuracy"] for line in epochs] == accuracies
    assert [line["dropped"] for line in epochs] == [2, 2, 2]
    assert [line["gradient_range"] for line in epochs] == [128, 32, 8]
    np.testing.assert_allclose([line["loss"] for line in epochs], np.reshape(losses, (3, 3)).mean(axis=1))
    counts = np.reshape(np.array(corrects, float), (3, 3)).sum(axis=1)
    np.testing.assert_allclose([line["train_accuracy"] for line in epochs], counts / 12)
    steps = [line for line in lines(tmp_path / "run") if line["kind"] == "step"]
    assert [line["step"] for line in steps] == [2, 4, 6, 8]
    assert [line["loss"] for line in steps] == losses[1::2]
    assert steps[-1]["lr"] == round(0.05 * 0.5 * (1 + math.cos(math.pi * 7 / 9)) * 512) / 512


@pytest.mark.parametrize("kind", [TrainingSession, FloatSession])
@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_resumed_run_ends_in_the_same_bytes(
    kind: type[Session], stop: int, folder: Path, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(kind(folder), data, PLAN, whole, console=quiet())
    session = kind(folder)
    interrupt_after(session, stop, monkeypatch)
    result = train(session, data, PLAN, broken, console=quiet())
    assert not result.finished
    assert result.steps == stop
    # what a killed process may leave behind the checkpoint
    with (broken / METRICS).open("ab") as metrics:
        metrics.write(b'{"kind": "step", "st')
    train(kind(folder), data, PLAN, broken, resume=True, console=quiet())
    assert (broken / METRICS).read_bytes() == (whole / METRICS).read_bytes()
    assert (broken / CHECKPOINT).read_bytes() == (whole / CHECKPOINT).read_bytes()


def test_a_failure_between_checkpoints_resumes_from_the_last(
    folder: Path, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(TrainingSession(folder), data, PLAN, tmp_path / "whole", console=quiet())
    session = TrainingSession(folder)
    inner = session.step

    def fail(*args: Any, **kwargs: Any) -> StepResult:
        if session.state()["step"] == 5:
            raise MemoryError
        return inner(*args, **kwargs)

    monkeypatch.setattr(session, "step", fail)
    with pytest.raises(MemoryError):
        train(session, data, PLAN, tmp_path / "broken", console=quiet())
    train(TrainingSession(folder), data, PLAN, tmp_path / "broken", resume=True, console=quiet())
    for name in (METRICS, CHECKPOINT):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_finished_run_resumes_to_itself(folder: Path, data: Dataset, tmp_path: Path) -> None:
    first = train(TrainingSession(folder), data, PLAN, tmp_path / "run", console=quiet())
    before = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}
    assert train(TrainingSession(folder), data, PLAN, tmp_path / "run", resume=True, console=quiet()) == first
    assert {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()} == before
    assert before.keys() == {CHECKPOINT, METRICS}


def test_a_checkpoint_is_a_state(folder: Path, data: Dataset, tmp_path: Path) -> None:
    session, other = TrainingSession(folder), TrainingSession(folder)
    train(session, data, PLAN, tmp_path / "run", console=quiet())
    other.load(tmp_path / "run" / CHECKPOINT)
    assert other.state()["step"] == 9
    np.testing.assert_array_equal(other.state()["linear.weight"], session.state()["linear.weight"])


def test_dropped_images_are_said(folder: Path, data: Dataset, tmp_path: Path) -> None:
    console = quiet()
    train(TrainingSession(folder), data, PLAN, tmp_path / "run", console=console)
    assert console.file.getvalue() == "each epoch drops 2 of 14 training images: a step takes exactly 4\n"  # type: ignore[attr-defined]


def test_a_diverged_loss_is_null(folder: Path, data: Dataset, tmp_path: Path) -> None:
    plan = dataclasses.replace(PLAN, lr=3e38, schedule="constant")
    train(FloatSession(folder), data, plan, tmp_path / "run", console=quiet())
    assert lines(tmp_path / "run")[-1]["loss"] is None
    assert lines(tmp_path / "run")[-1]["train_accuracy"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 4}, "epochs 3, not 4"),
        ({"lr": 0.1}, "lr 0.05, not 0.1"),
        ({"schedule": "step"}, "schedule cosine, not step"),
        ({"gradient_ranges": (128,)}, "gradient_ranges"),
        ({"seed": 6}, "seed 5, not 6"),
    ],
)
def test_resuming_another_run_is_refused(
    folder: Path, data: Dataset, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    train(TrainingSession(folder), data, PLAN, tmp_path / "run", console=quiet())
    with pytest.raises(WageubnError, match=message):
        train(TrainingSession(folder), data, dataclasses.replace(PLAN, **change), tmp_path / "run", resume=True)


def test_refusals_write_nothing(folder: Path, data: Dataset, tmp_path: Path) -> None:
    def refused(message: str, data: Dataset = data, resume: bool = False, **change: Any) -> None:
        with pytest.raises(WageubnError, match=message) as caught:
            session = TrainingSession(folder)
            train(session, data, dataclasses.replace(PLAN, **change), tmp_path / "run", resume, quiet())
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "run").exists()

    refused("rounds to 0", lr=1e-9)
    refused("too great", lr=4.0)
    refused("epochs 0", epochs=0)
    refused("schedule linear: unknown", schedule="linear")
    refused("gradient range 5", gradient_ranges=(128, 5))
    refused("list is empty", gradient_ranges=())
    refused("seed -1", seed=-1)
    refused("log interval 0", log_every=0)
    with pytest.raises(WageubnError, match="checkpoint interval 0"):
        train(TrainingSession(folder), data, PLAN, tmp_path / "run", checkpoint_every=0)
    refused("no such checkpoint", resume=True)
    refused("3 training images: fewer than the 4", dataclasses.replace(data, x_train=data.x_train[:3]))
    refused("labels.0. is 9", dataclasses.replace(data, y_test=np.full(6, 9)))
    refused("images are uint8", dataclasses.replace(data, x_test=data.x_test[:, :, :1]))


def test_an_occupied_folder_is_refused(folder: Path, data: Dataset, tmp_path: Path) -> None:
    train(TrainingSession(folder), data, PLAN, tmp_path / "run", console=quiet())
    with pytest.raises(WageubnError, match="already there; pass --resume"):
        train(TrainingSession(folder), data, PLAN, tmp_path / "run", console=quiet())
    (tmp_path / "run" / METRICS).write_text("")
    with pytest.raises(WageubnError, match=r"metrics.jsonl: has 0 bytes, the checkpoint counts"):
        train(TrainingSession(folder), data, PLAN, tmp_path / "run", resume=True, console=quiet())
    TrainingSession(folder).save(tmp_path / "run" / CHECKPOINT)
    with pytest.raises(WageubnError, match="a state without a position in a run; start a new run from it: --state"):
        train(TrainingSession(folder), data, PLAN, tmp_path / "run", resume=True, console=quiet())
    other = dataclasses.replace(data, x_train=data.x_train[::-1].copy())
    with pytest.raises(WageubnError, match="the run has data"):
        train(TrainingSession(folder), data, PLAN, tmp_path / "fresh", console=quiet())
        train(TrainingSession(folder), other, PLAN, tmp_path / "fresh", resume=True, console=quiet())


# -- one run at a time, and its checkpoints ----------------------------------------------------------------------------------


def train_in(folder: Path, data_file: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    """Start the command in a process of its own."""
    words = ["train", folder, "--data", data_file, "--epochs", "3", "--lr", "0.05", "--out", out, *options]
    command = [sys.executable, "-m", "wageubn_onnx.cli", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_do_not_train_in_one_folder(folder: Path, data: Dataset, data_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    session = TrainingSession(folder)
    inner, seen = session.step, list[tuple[int, str]]()

    def step(*args: Any) -> StepResult:
        if not seen:
            for options in ((), ("--resume",)):
                other = train_in(folder, data_file, out, *options)
                seen.append((other.wait(), other.stderr.read()))  # type: ignore[union-attr]
        return inner(*args)

    session.step = step  # type: ignore[method-assign, assignment]
    train(session, data, PLAN, out, console=quiet())
    assert seen == [(2, f"error: {out}: another process trains there; wait for its end, or give another --out\n")] * 2
    assert {file.name for file in out.iterdir()} == {CHECKPOINT, METRICS}
    assert [line["step"] for line in lines(out) if line["kind"] == "epoch"] == [3, 6, 9]


def test_a_lock_ends_with_its_process(folder: Path, data: Dataset, tmp_path: Path) -> None:
    """Its file may stay behind; what counts is who holds it."""
    out = tmp_path / "run"
    out.mkdir()
    hold = "import sys, time; from pathlib import Path; from wageubn_onnx.artifacts.locks import lock; lock(Path(sys.argv[1])); "
    (out / ".lock").touch()
    other = subprocess.Popen(
        [sys.executable, "-c", hold + "print('held', flush=True); time.sleep(60)", str(out / ".lock")], stdout=subprocess.PIPE
    )
    assert other.stdout is not None and other.stdout.readline() == b"held\n"
    with pytest.raises(WageubnError, match="another process trains there"):
        train(TrainingSession(folder), data, PLAN, out, console=quiet())
    other.kill()
    other.wait()
    (out / f".{CHECKPOINT}.0123456789ab.tmp").write_text("half a checkpoint")
    train(TrainingSession(folder), data, PLAN, out, console=quiet())
    assert {file.name for file in out.iterdir()} == {CHECKPOINT, METRICS}


def train_until_killed(kind: type[Session], folder: Path, data: Dataset, out: Path, every: int | None) -> None:
    """Train, and die by SIGKILL in the fifth step."""
    session, count = kind(folder), 0
    inner = session.step

    def step(*args: Any) -> StepResult:
        nonlocal count
        count += 1
        if count == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return inner(*args)

    session.step = step  # type: ignore[method-assign, assignment]
    train(session, data, PLAN, out, console=quiet(), checkpoint_every=every)


@pytest.mark.parametrize("kind", [TrainingSession, FloatSession])
@pytest.mark.parametrize(("every", "last"), [(1, 4), (2, 4), (5, 3), (None, 3)])
def test_a_killed_run_goes_on_from_its_last_checkpoint(
    kind: type[Session], every: int | None, last: int, folder: Path, data: Dataset, tmp_path: Path
) -> None:
    """Nothing that Python would do on its way out is done."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(kind(folder), data, PLAN, whole, console=quiet(), checkpoint_every=every)
    child = multiprocessing.get_context("spawn").Process(target=train_until_killed, args=(kind, folder, data, broken, every))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert load_state(broken / CHECKPOINT)[1]["position"]["step"] == last
    train(kind(folder), data, PLAN, broken, resume=True, console=quiet(), checkpoint_every=every)
    for name in (METRICS, CHECKPOINT):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()


# -- from a trained state, with named classes ----------------------------------------------------------------------------------


def test_a_new_run_starts_from_a_trained_state(folder: Path, data: Dataset, tmp_path: Path) -> None:
    train(TrainingSession(folder), data, PLAN, tmp_path / "one", console=quiet())
    other = dataclasses.replace(data, x_train=data.x_train[:8], y_train=data.y_train[:8])
    plan, session = Plan(epochs=1, lr=0.1), TrainingSession(folder)
    session.load(tmp_path / "one" / CHECKPOINT)
    train(session, other, plan, tmp_path / "two", console=quiet())
    reference = TrainingSession(folder)
    reference.load(tmp_path / "one" / CHECKPOINT)
    for rows in batches(8, 4, 0, seed=0):
        reference.step(other.x_train[rows], other.y_train[rows], 0.1)
    for key, value in reference.state().items():
        np.testing.assert_array_equal(session.state()[key], value)
    assert session.state()["step"] == 11
    with pytest.raises(WageubnError, match="has epochs 3, not 1; .* new run from its state, give --state .*/one/checkpoint"):
        train(TrainingSession(folder), other, plan, tmp_path / "one", resume=True, console=quiet())


def test_the_step_of_a_resumed_run_is_the_same(
    folder: Path, data: Dataset, tmp_path: Path, edit_manifest: Callable[..., None]
) -> None:
    train(TrainingSession(folder), data, PLAN, tmp_path / "run", console=quiet())
    model = onnx.load(folder / "int_training.onnx")
    model.producer_name = "another conversion"
    onnx.save(model, folder / "int_training.onnx")
    edit_manifest()
    with pytest.raises(WageubnError, match="the run has step [0-9a-f]{64}, not"):
        train(TrainingSession(folder), data, PLAN, tmp_path / "run", resume=True, console=quiet())


def test_classes_are_kept_and_held_to(folder: Path, data: Dataset, tmp_path: Path) -> None:
    named = dataclasses.replace(data, classes=("ant", "bee", "cow"))
    other = dataclasses.replace(data, classes=("ant", "cow", "bee"))
    console = quiet()
    result = train(TrainingSession(folder), named, PLAN, tmp_path / "run", console=console)
    assert result.classes == ["ant", "bee", "cow"]
    assert console.file.getvalue().startswith("3 classes: 0 ant, 1 bee, 2 cow\n")  # type: ignore[attr-defined]
    assert lines(tmp_path / "run")[0]["classes"] == ["ant", "bee", "cow"]
    with pytest.raises(WageubnError, match="checkpoint.safetensors: class 1 is 'bee', but in the data 'cow'"):
        train(TrainingSession(folder), other, PLAN, tmp_path / "run", resume=True, console=quiet())
    session = TrainingSession(folder)
    session.load(tmp_path / "run" / CHECKPOINT)
    with pytest.raises(WageubnError, match="class 1 is 'bee', but in the data 'cow'"):
        train(session, other, PLAN, tmp_path / "next", console=quiet())
    assert not (tmp_path / "next").exists()
    session.save(tmp_path / "state")
    session.load(folder / "state.safetensors")
    session.check_classes(other.classes)
    session.load(tmp_path / "state")
    session.check_classes(data.classes)  # without names
    session.check_classes(named.classes)
    with pytest.raises(WageubnError, match="state: class 1 is"):
        session.check_classes(other.classes)


def test_the_metrics_begin_with_what_the_run_is(folder: Path, data: Dataset, tmp_path: Path) -> None:
    train(TrainingSession(folder), data, PLAN, tmp_path / "run", console=quiet())
    first = lines(tmp_path / "run")[0]
    assert first["kind"] == "run" and first["epochs"] == 3 and first["batch"] == 4 and first["classes"] is None
    assert first["step"] == hashlib.sha256((folder / "int_training.onnx").read_bytes()).hexdigest()
