"""The step benchmark: the integer step beside the FP32 step in onnxruntime and, where installed, beside PyTorch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import onnx

from wageubn_onnx.artifacts.folder import ArtifactFolder
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.graph import load_model

PAUSE = 0.1  # seconds in which threads that spin go to sleep: onnxruntime's take tens of milliseconds
NAMES = {
    "int": "integer, onnxruntime",
    "fp32": "FP32, onnxruntime",
    "torch": "FP32, PyTorch",
    "training": "FP32, onnxruntime-training",
}


@dataclass(frozen=True)
class Contender:
    """What was measured of one step: seconds a step (their median, and those of each round), memory and state."""

    name: str
    median: float
    seconds: list[float]
    peak_bytes: int
    state_bytes: int


@dataclass(frozen=True)
class Ratio:
    """Integer time over another's: the median over rounds, with the least and greatest; below 1 the integers win."""

    against: str
    median: float
    least: float
    greatest: float


@dataclass(frozen=True)
class BenchResult:
    """The step benchmark: ratios first, they are what a noisy machine still gets right."""

    batch: int
    threads: int
    ratios: list[Ratio]
    contenders: list[Contender]

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON-able values."""
        return asdict(self)


def bench_step(
    folder: str | os.PathLike[str],
    rounds: int = 9,
    steps: int = 3,
    threads: int = 1,
    torch: bool | None = None,
    training_python: str | os.PathLike[str] | None = None,
) -> BenchResult:
    """Time the training steps of ``folder`` on random images, each contender in its own process.

    A round times ``steps`` steps of every contender in turn (A B C A B C ...), and a ratio compares times of one round,
    so that what the machine does meanwhile strikes all. torch: None takes PyTorch where it is installed. training_python: the
    interpreter of an environment with onnxruntime-training, which then takes part.
    Raises WageubnError where the folder lacks a step or a contender fails.
    """
    artifacts = ArtifactFolder(folder)
    use_torch = find_spec("torch") is not None if torch is None else torch
    kinds = ["int", "fp32", *(["torch"] if use_torch else []), *(["training"] if training_python else [])]
    batch, contenders = race([Entry(NAMES[kind], kind, artifacts) for kind in kinds], rounds, steps, threads, training_python)
    return BenchResult(batch, threads, [ratio(contenders[0], other) for other in contenders[1:]], contenders)


@dataclass(frozen=True)
class Entry:
    """A step to time. kind: int, fp32, torch or training, of the artifact ``folder``."""

    name: str
    kind: str
    folder: ArtifactFolder


def race(
    entries: Sequence[Entry], rounds: int, steps: int, threads: int, training_python: str | os.PathLike[str] | None = None
) -> tuple[int, list[Contender]]:
    """Time every entry in turn, ``rounds`` times; the first one's batch, and a contender an entry.

    Raises WageubnError where a folder lacks a step or a contender fails.
    """
    for name, value in (("rounds", rounds), ("steps", steps), ("threads", threads)):
        if value < 1:
            raise WageubnError(f"{name} {value}: must be at least 1")
    for entry in entries:
        entry.folder.model("step" if entry.kind == "int" else "fp_step")
    with ExitStack() as stack:
        workers = []
        for entry in entries:
            command = [sys.executable, "-m", "wageubn_onnx.bench.step_worker", entry.kind, str(entry.folder.path)]
            if entry.kind == "training" and training_python is not None:
                scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                command = _training_command(training_python, entry.folder, scratch)
            worker = _Worker(entry.name, [*command, str(threads), str(steps)])
            stack.callback(worker.stop)
            workers.append(worker)
        ready = [worker.read() for worker in workers]
        turns = [[worker.time_round() for worker in workers] for _ in range(rounds)]
        peaks = [worker.finish() for worker in workers]
    times = [list(column) for column in zip(*turns, strict=True)]
    made = zip(entries, times, peaks, ready, strict=True)
    return ready[0]["batch"], [Contender(e.name, median(t), t, peak, said["state_bytes"]) for e, t, peak, said in made]


def ratio(one: Contender, other: Contender) -> Ratio:
    """The time of ``one`` over that of ``other``, round by round."""
    ratios = [a / b for a, b in zip(one.seconds, other.seconds, strict=True)]
    return Ratio(other.name, median(ratios), min(ratios), max(ratios))


def _training_command(python: str | os.PathLike[str], folder: ArtifactFolder, scratch: Path) -> list[str]:
    """onnxruntime-training on the folder's forward model, whose weights must be no inputs there."""
    forward = load_model(folder.model("fp_eval"))
    del forward.graph.input[1:]  # behind the images
    onnx.save(forward, scratch / "forward.onnx")
    inputs = load_model(folder.model("fp_step")).graph.input
    images = next(value for value in inputs if value.name == folder.section("fp_step", "images")["images"])
    batch = images.type.tensor_type.shape.dim[0].dim_value
    return [str(python), str(Path(__file__).with_name("training_worker.py")), str(scratch / "forward.onnx"), str(batch)]


class _Worker:
    """A contender's process: it answers one JSON object a line."""

    def __init__(self, name: str, command: list[str]) -> None:
        self.name = name
        here = str(Path(__file__).resolve().parents[2])  # the same package in the process, installed or not
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])}
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by stop)
        pipe = subprocess.PIPE
        try:
            self._process = subprocess.Popen(command, text=True, env=environment, stdin=pipe, stdout=pipe, stderr=self._errors)
        except OSError as error:
            raise WageubnError(f"{command[0]}: cannot be run ({error.strerror}); give a Python interpreter") from None

    def read(self) -> dict[str, Any]:
        """Wait for the next answer; raises WageubnError where the process reports an error or ends."""
        line = self._process.stdout.readline() if self._process.stdout else ""
        answer: dict[str, Any] = json.loads(line) if line else {"error": self._last_words()}
        if "error" in answer:
            raise WageubnError(f"benchmark of {self.name}: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        return lines[-1] if lines else "its process ended without a word"

    def time_round(self) -> float:
        """Run one round and return its seconds a step, once no thread of the one before waits for work any more."""
        time.sleep(PAUSE)
        with suppress(BrokenPipeError):  # a dead process: read() says why
            if self._process.stdin:
                self._process.stdin.write("round\n")
                self._process.stdin.flush()
        return float(self.read()["seconds"])

    def finish(self) -> int:
        """Let the process end and return its peak memory in bytes."""
        if self._process.stdin:
            self._process.stdin.close()
        return int(self.read()["peak_bytes"])

    def stop(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            with suppress(BrokenPipeError):  # closing flushes
                if stream:
                    stream.close()
