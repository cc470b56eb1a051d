"""The conversion benchmark: time and memory of `convert`, stage by stage, beside onnxsim and onnxruntime-training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import convert_worker as worker
from models import resnet
from wageubn_onnx.checkout import ROOT
from wageubn_onnx.errors import WageubnError

NAMES = {"wageubn": "wageubn-onnx", "onnxsim": "onnxsim", "artifacts": "generate_artifacts"}
BUILT: dict[str, dict[str, Any]] = {  # of models/resnet.py: ImageNet's ResNets
    "resnet18": {"depths": (2, 2, 2, 2)},
    "resnet50": {"depths": (3, 4, 6, 3), "bottleneck": True},
    "resnet152": {"depths": (3, 8, 36, 3), "bottleneck": True},
}


@dataclass(frozen=True)
class Cost:
    """Medians over the rounds. peak_bytes: greatest resident memory (of a stage: while it ran)."""

    name: str
    seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class Contender(Cost):
    """A whole conversion, from file to files; imports are not timed. cpu_seconds: of all threads; nodes: of all that it makes."""

    cpu_seconds: float
    nodes: int


@dataclass(frozen=True)
class Ratio:
    """Our cost over another's: medians over rounds of the ratio within a round; below 1 we win."""

    against: str
    seconds: float
    cpu_seconds: float
    peak_bytes: float


@dataclass(frozen=True)
class ConvertResult:
    """One model's conversion: ratios first, they are what a noisy machine still gets right."""

    model: str
    ratios: list[Ratio]
    contenders: list[Contender]
    stages: list[Cost]

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON-able values."""
        return asdict(self)


def bench_convert(
    models: Sequence[str | os.PathLike[str]] = (),
    rounds: int = 3,
    batch: int = 16,
    training_python: str | os.PathLike[str] | None = None,
) -> list[ConvertResult]:
    """Convert each of ``models`` (default: `BUILT`, untrained), all contenders in turns (A B A B ...), each in its own process.

    onnxsim takes part where it is installed; generate_artifacts where ``training_python``, the interpreter of an environment with
    onnxruntime-training, is given. Raises WageubnError where a contender fails, or there is no model.
    """
    with tempfile.TemporaryDirectory() as scratch:
        files = [Path(model) for model in models] or built(Path(scratch))
        kinds = ["wageubn", *(["onnxsim"] if find_spec("onnxsim") else []), *(["artifacts"] if training_python else [])]
        return [_measured(file, kinds, rounds, batch, training_python, Path(scratch)) for file in files]


def built(folder: Path, names: Sequence[str] = ()) -> list[Path]:
    """The default models, or those of these names, made by models/resnet.py."""
    files = []
    for name in names or BUILT:
        architecture = resnet.Architecture(
            widths=(64, 128, 256, 512), classes=1000, image=(3, 224, 224), large_stem=True, **BUILT[name]
        )
        files.append(folder / f"{name}.onnx")
        files[-1].write_bytes(resnet.build(architecture).SerializeToString(deterministic=True))
    return files


def _measured(
    file: Path, kinds: list[str], rounds: int, batch: int, training_python: str | os.PathLike[str] | None, scratch: Path
) -> ConvertResult:
    if not file.is_file():
        raise WageubnError(f"{file}: no such file; give an ONNX model")
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind in kinds:
            with tempfile.TemporaryDirectory(dir=scratch) as out:
                found[kind].append(run_once(kind, file, Path(out) / "out", batch, training_python))
    contenders = [_contender(kind, found[kind]) for kind in kinds]
    ours = found["wageubn"]
    stages = [
        Cost(stage, median(r["stages"][stage][0] for r in ours), int(median(r["stages"][stage][1] for r in ours)))
        for stage in worker.STAGES
    ]
    return ConvertResult(file.name, [_ratio(k, ours, found[k]) for k in kinds[1:]], contenders, stages)


def _contender(kind: str, runs: list[dict[str, Any]]) -> Contender:
    seconds, cpu, peak = (median(run[key] for run in runs) for key in ("seconds", "cpu_seconds", "peak_bytes"))
    return Contender(NAMES[kind], seconds, int(peak), cpu, runs[0]["nodes"])


def _ratio(kind: str, ours: list[dict[str, Any]], others: list[dict[str, Any]]) -> Ratio:
    keys = ("seconds", "cpu_seconds", "peak_bytes")
    return Ratio(NAMES[kind], *(median(a[key] / b[key] for a, b in zip(ours, others, strict=True)) for key in keys))


def run_once(kind: str, file: Path, out: Path, batch: int, training_python: str | os.PathLike[str] | None) -> dict[str, Any]:
    """One conversion in a process of its own; raises WageubnError where it fails."""
    if kind == "artifacts" and training_python is not None:
        command = [str(training_python), "-I", str(worker.__file__)]  # none of this environment's packages
    else:
        command = [sys.executable, "-m", worker.__name__]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    try:
        done = subprocess.run([*command, kind, file.resolve(), out, str(batch)], text=True, capture_output=True, env=environment)
    except OSError as error:
        raise WageubnError(f"{training_python}: cannot be run ({error.strerror}); give a Python interpreter") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["its process ended without a word"])[-1]
        raise WageubnError(f"conversion of {file.name} by {NAMES[kind]}: {last}")
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer
