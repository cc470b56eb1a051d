"""The training loop: schedules, metrics, checkpoints, and a resume to the same bits."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from wageubn_onnx.errors import WageubnError
from wageubn_onnx.runtime.data import Dataset, batches
from wageubn_onnx.runtime.schedules import gradient_range, learning_rate
from wageubn_onnx.runtime.session import FloatSession, Session, StepResult, TrainingSession
from wageubn_onnx.runtime.train import CHECKPOINT, METRICS, Plan, train

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
        "checkpoint": str(tmp_path / "run" / CHECKPOINT), "health": None,
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
    with pytest.raises(WageubnError, match="only a checkpoint can be resumed"):
        train(TrainingSession(folder), data, PLAN, tmp_path / "run", resume=True, console=quiet())
    other = dataclasses.replace(data, x_train=data.x_train[::-1].copy())
    with pytest.raises(WageubnError, match="the run has data"):
        train(TrainingSession(folder), data, PLAN, tmp_path / "fresh", console=quiet())
        train(TrainingSession(folder), other, PLAN, tmp_path / "fresh", resume=True, console=quiet())
