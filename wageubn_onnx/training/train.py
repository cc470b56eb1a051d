"""The training loop: epochs of steps with metrics, checkpoints, and a resume that reaches the same bits."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from wageubn_onnx.artifacts.checkpoint import load_state
from wageubn_onnx.artifacts.locks import only_one
from wageubn_onnx.artifacts.state import check_classes
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.runtime.session import GRADIENT_RANGES, Session
from wageubn_onnx.terminal import Terminal
from wageubn_onnx.training.data import Dataset, batches, described
from wageubn_onnx.training.health import Health, table
from wageubn_onnx.training.interrupt import interruptible
from wageubn_onnx.training.metrics import MetricsFile, check_metrics
from wageubn_onnx.training.schedules import SCHEDULES, gradient_range, learning_rate

CHECKPOINT = "checkpoint.safetensors"
METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class Plan:
    """Everything that decides a run's bits beside the network and the data.

    lr: the peak rate. schedule: a name in SCHEDULES. gradient_ranges: each serves an equal part of the run. log_every:
    steps between two step lines of the metrics.
    """

    epochs: int
    lr: float
    schedule: str = "constant"
    gradient_ranges: tuple[int, ...] = (128,)
    seed: int = 0
    log_every: int = 50

    def __post_init__(self) -> None:
        """Raise WageubnError for a value that no run can have."""
        if self.epochs < 1:
            raise WageubnError(f"epochs {self.epochs}: must be at least 1")
        if self.schedule not in SCHEDULES:
            raise WageubnError(f"learning-rate schedule {self.schedule}: unknown; choose one of {', '.join(SCHEDULES)}")
        wrong = [value for value in self.gradient_ranges if value not in GRADIENT_RANGES]
        if wrong or not self.gradient_ranges:
            raise WageubnError(f"gradient range {wrong[0] if wrong else 'list is empty'}: give powers of two in 2..128")
        if not 0 <= self.seed < 2**31:
            raise WageubnError(f"seed {self.seed}: must be in 0..2147483647")
        if self.log_every < 1:
            raise WageubnError(f"log interval {self.log_every}: must be at least 1")


@dataclass(frozen=True)
class Position:
    """How far a run is: steps done in all, the sums of the current epoch, the last test accuracy, the metrics' length.

    correct is None in float, where the step does not count.
    """

    step: int = 0
    loss_sum: float = 0.0
    correct: int | None = None
    test_accuracy: float | None = None
    metrics_bytes: int = 0


@dataclass(frozen=True)
class TrainResult:
    """How a run ended: ``finished`` or interrupted after ``steps``; test_accuracy is that of the last whole epoch.

    health: the worst quantizers (`Health.worst`) of the last epoch that this call ended, where they were asked for. classes: what
    the labels stand for, where the data says so.
    """

    finished: bool
    epochs: int
    steps: int
    dropped_per_epoch: int
    test_accuracy: float | None
    checkpoint: str
    health: list[dict[str, Any]] | None = None
    classes: list[str] | None = None


def train(
    session: Session,
    data: Dataset,
    plan: Plan,
    out: str | os.PathLike[str],
    resume: bool = False,
    console: Console | None = None,
    health: bool = False,
    checkpoint_every: int | None = None,
) -> TrainResult:
    """Train ``session`` on ``data`` and leave ``out/checkpoint.safetensors`` and ``out/metrics.jsonl``.

    The run starts from the session's state: the folder's own, or one that was loaded. The checkpoint is a state file
    (`Session.load` reads it) that also holds the position in the run; it is written at the start, after every epoch and every
    ``checkpoint_every`` steps, and on Ctrl-C or SIGTERM, which let the step at hand finish. ``resume`` goes on from it to the
    same bits, state and metrics, as a run without a break; it asks for the same plan, data and step. One process at a time
    trains in ``out``.
    The last partial batch of an epoch is dropped; ``console`` (None: stderr) and the metrics say how many images.
    ``health`` tells both of every epoch's saturated and all-zero tensors; it needs a step converted with health counters. Of an
    error that was all zero, such a step always warns.
    Raises WageubnError, before anything is written, for a plan, data or folder that do not fit.
    """
    console = console or Terminal(stderr=True)
    if checkpoint_every is not None and checkpoint_every < 1:
        raise WageubnError(f"checkpoint interval {checkpoint_every}: must be at least 1 step")
    if health and not session.health:
        raise WageubnError(f"{session.folder.path}: its step has no health counters; convert the model with `convert --health`")
    run = _Run(session, data, plan, Path(out), console, health, checkpoint_every)
    run.check_place(resume)
    with only_one(run.folder, f"{run.folder}: another process trains there; wait for its end, or give another --out"):
        run.begin(resume)
        if data.classes:
            console.print(described(data.classes), soft_wrap=True, markup=False, highlight=False)
        if run.dropped:
            images = f"{run.dropped} of {len(data.x_train)} training images"
            console.print(f"each epoch drops {images}: a step takes exactly {session.batch}")
        with interruptible() as stop, MetricsFile(run.folder / METRICS, run.position.metrics_bytes) as metrics:
            if not metrics.size:
                metrics.write({"kind": "run", **run.identity, "classes": session.class_names})
            with _bar(console) as bar:
                task = bar.add_task("training", total=run.total, completed=run.position.step)
                while run.position.step < run.total and not stop.is_set():
                    loss = run.step(metrics)
                    bar.update(task, advance=1, description=f"epoch {run.epoch}/{plan.epochs}  loss {loss:.4f}")
            if stop.is_set():
                run.checkpoint(metrics)
    return run.result()


class _Run:
    """One run: what it works on, and its position."""

    def __init__(
        self, session: Session, data: Dataset, plan: Plan, folder: Path, console: Console, tells_health: bool, every: int | None
    ) -> None:
        self.session, self.data, self.plan, self.folder = session, data, plan, folder
        self.console, self.tells_health, self.every = console, tells_health, every
        self.health = Health.none(session.health)  # of the current epoch
        self.worst: list[dict[str, Any]] | None = None
        self.steps, self.dropped = divmod(len(data.x_train), session.batch)
        self.total = plan.epochs * self.steps
        self.position = Position()
        self._order = lru_cache(maxsize=1)(self._shuffle)
        if not self.steps:
            raise WageubnError(f"{len(data.x_train)} training images: fewer than the {session.batch} of one step")
        session.effective_rate(plan.lr)
        for images, labels in ((data.x_train, data.y_train), (data.x_test, data.y_test)):
            session.check_labels(labels, len(session.check_images(images)))

    def check_place(self, resume: bool) -> None:
        """Make the folder of a new run, or see that there is a checkpoint to resume."""
        file = self.folder / CHECKPOINT
        if resume and not file.is_file():
            raise WageubnError(f"{file}: no such checkpoint; leave out --resume to start a new run")
        if not resume:
            self.session.check_classes(self.data.classes)
            self.folder.mkdir(parents=True, exist_ok=True)

    def begin(self, resume: bool) -> None:
        """Write the first checkpoint of a new run, or take state and position from that of a broken one."""
        file = self.folder / CHECKPOINT
        if resume:
            self._resume(file)
        elif file.exists():
            raise WageubnError(f"{file}: already there; pass --resume to go on from it, or another --out, with --state {file}")
        if self.data.classes:
            self.session.class_names = list(self.data.classes)
        if not resume:
            self.checkpoint(None)

    def _resume(self, file: Path) -> None:
        tensors, metadata = load_state(file)
        if "position" not in metadata:
            raise WageubnError(f"{file}: a state without a position in a run; start a new run from it: --state {file}")
        check_classes(str(file), metadata.get("classes"), self.data.classes)
        recorded = metadata["run"]
        for name, value in self.identity.items():
            if recorded.get(name) != value:
                change = f"the run has {name} {recorded.get(name)}, not {value}"
                other = f"to start a new run from its state, give --state {file} and another --out instead"
                raise WageubnError(f"{file}: {change}; resume with the same options, data and step; {other}")
        self.position = Position(**metadata["position"])
        if self.position.step > self.total:
            raise WageubnError(f"{file}: {self.position.step} steps done of {self.total}; restore it from a copy")
        check_metrics(self.folder / METRICS, self.position.metrics_bytes)
        self.session.take(str(file), tensors, metadata)
        sums = metadata.get("health")  # none where DIR had no counters until now
        if sums and all(len(column) == len(self.session.health) for name, column in sums.items() if name != "steps"):
            self.health = Health.from_json(self.session.health, sums)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Return what a resumed run must share with the broken one, JSON-able: the plan, and hashes of data and step."""
        plan = {**asdict(self.plan), "gradient_ranges": list(self.plan.gradient_ranges)}
        folder = self.session.folder
        step = folder.files[folder.model(self.session.step_section).name]
        return {**plan, "batch": self.session.batch, "data": fingerprint(self.data), "step": step}

    def checkpoint(self, metrics: MetricsFile | None) -> None:
        """Write state and position in one atomic file, when the metrics that it counts on are safe."""
        if metrics:
            metrics.sync()
        health = {"health": self.health.to_json()} if self.session.health else {}
        self.session.save(self.folder / CHECKPOINT, {"run": self.identity, "position": asdict(self.position), **health})

    def result(self) -> TrainResult:
        """How the run ended."""
        done, accuracy, classes = self.position.step, self.position.test_accuracy, self.data.classes
        place, named = str(self.folder / CHECKPOINT), list(classes) if classes else None
        return TrainResult(done == self.total, done // self.steps, done, self.dropped, accuracy, place, self.worst, named)

    @property
    def epoch(self) -> int:
        """The epoch under way, counted from 1."""
        return min(self.position.step // self.steps + 1, self.plan.epochs)

    def _shuffle(self, epoch: int) -> NDArray[np.int64]:
        return batches(len(self.data.x_train), self.session.batch, epoch, self.plan.seed)

    def step(self, metrics: MetricsFile) -> float:
        """Do the next step, with whatever is due after it (metrics, the end of an epoch), and return its loss."""
        plan, before = self.plan, self.position
        epoch, index = divmod(before.step, self.steps)
        rows = self._order(epoch)[index]
        rate = learning_rate(plan.schedule, plan.lr, self.session.smallest_rate, before.step, self.total)
        drange = gradient_range(plan.gradient_ranges, before.step, self.total)
        result = self.session.step(self.data.x_train[rows], self.data.y_train[rows], rate, drange, plan.seed)

        if result.health is not None:
            self.health = self.health.add(result.health)

        done, loss_sum = before.step + 1, before.loss_sum + result.loss
        correct = None if result.correct is None else (before.correct or 0) + result.correct
        line = {"epoch": epoch + 1, "step": done, "lr": self.session.effective_rate(rate), "gradient_range": drange}
        if done % plan.log_every == 0:
            accuracy = _ratio(result.correct, self.session.batch)
            metrics.write({"kind": "step", **line, "loss": result.loss, "train_accuracy": accuracy})
        self.position = Position(done, loss_sum, correct, before.test_accuracy, metrics.size)
        if index + 1 == self.steps:
            self._end_epoch(metrics, line)
        elif self.every and done % self.every == 0:
            self.checkpoint(metrics)
        return result.loss

    def _end_epoch(self, metrics: MetricsFile, line: dict[str, Any]) -> None:
        """Test, write the epoch's line, start the sums anew, and save."""
        sums = self.position
        tested = self.session.evaluate(self.data.x_test, self.data.y_test).accuracy
        trained = _ratio(sums.correct, self.steps * self.session.batch)
        scores = {"loss": sums.loss_sum / self.steps, "train_accuracy": trained, "test_accuracy": tested}
        metrics.write({"kind": "epoch", **line, **scores, "dropped": self.dropped})
        if self.session.health:
            self._tell_health(metrics, line)
        self.position = Position(sums.step, test_accuracy=tested, metrics_bytes=metrics.size)
        self.checkpoint(metrics)

    def _tell_health(self, metrics: MetricsFile, line: dict[str, Any]) -> None:
        """Warn of lost errors; on request write the epoch's line and print the worst quantizers. Then start anew."""
        health, lost = self.health, self.health.lost_errors()
        self.health = Health.none(self.session.health)
        if lost is not None:
            self.console.print(f"warning: epoch {line['epoch']}: {lost}", soft_wrap=True, markup=False, highlight=False)
        if self.tells_health:
            metrics.write({"kind": "health", **line, "steps": health.steps, "quantizers": health.rows()})
            self.worst = health.worst()
            title = f"epoch {line['epoch']}: the worst of {len(health.entries)} quantizers"
            self.console.print(table(self.worst, title) if self.worst else f"epoch {line['epoch']}: no quantizer saturated")


def _ratio(correct: int | None, count: int) -> float | None:
    return None if correct is None else correct / count


def fingerprint(data: Dataset) -> str:
    """Return a hash of the images and labels, with their shapes."""
    digest = hashlib.sha256()
    for array in (data.x_train, data.y_train, data.x_test, data.y_test):
        digest.update(json.dumps(array.shape).encode())
        digest.update(np.asarray(array, order="C").data)
    return digest.hexdigest()


def _bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, *times, console=console, transient=True, disable=not console.is_terminal)
