"""The runner of the accuracy experiments: one JSON file a run, and whatever is there is not run again.

Every run has a process of its own with one thread, keeps its checkpoints in a scratch folder, and writes its file when it
is complete. So the runner may be stopped at any time: it goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from rich.console import Console

from benchmarks.experiments import Arm, Experiment
from benchmarks.transforms import training_part, transformed, tuning_part
from models import resnet
from wageubn_onnx.artifacts.files import write_text
from wageubn_onnx.config import Config
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.profiles import Profile, load_profile
from wageubn_onnx.runtime.session import FloatSession, QuantizedSession, Session, TrainingSession
from wageubn_onnx.training.data import Dataset, load_data
from wageubn_onnx.training.train import CHECKPOINT, METRICS, Plan, fingerprint, train

PHASES = ("tune", "final")
QUANTIZED = "quant:"  # prefix of an arm that simulates its profile in float
STATISTICS_IMAGES = 512  # that give an untrained network its running statistics
INTERRUPTED = 130
Record = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One training: of ``arm`` in ``phase`` (tune, final) with one peak rate, schedule and seed."""

    phase: str
    arm: str
    schedule: str
    rate: float
    seed: int

    @property
    def key(self) -> str:
        """The name of its file, without ``.json``."""
        arm = self.arm.replace("/", "+").replace(":", "_")
        return f"{self.phase}-{arm}-{self.schedule}-{self.rate:.6g}-seed{self.seed}"


@dataclass(frozen=True)
class Place:
    """Where an experiment's files are: DATA, the network (None: made here), the folder of results, and of checkpoints."""

    data: Path
    model: Path | None
    results: Path
    scratch: Path


# -- what there is to do --------------------------------------------------------------------------------------------------


def tuning_runs(experiment: Experiment, arm: Arm) -> list[Run]:
    """Return a run for every schedule and rate of ``arm``, all with the first seed; none where another arm's rate serves."""
    pairs = [(schedule, rate) for schedule in arm.schedules for rate in arm.rates]
    return [Run("tune", arm.name, schedule, rate, experiment.seeds[0]) for schedule, rate in pairs]


def best_run(experiment: Experiment, arm: Arm, records: Sequence[Record]) -> Run | None:
    """Return the tuning run with the greatest accuracy on the held-out images (ties: the first); None until all are done.

    It is that of the arm whose rate serves.
    """
    done = {record["key"]: record["test_accuracy"] for record in records}
    tuned = next(other for other in experiment.arms if other.name == (arm.rates_of or arm.name))
    runs = tuning_runs(experiment, tuned)
    if any(run.key not in done for run in runs):
        return None
    return max(runs, key=lambda run: float(done[run.key]))


def final_runs(experiment: Experiment, arm: Arm, records: Sequence[Record]) -> list[Run]:
    """Return a run a seed at the tuned rate of ``arm``; none until its tuning is complete."""
    best = best_run(experiment, arm, records)
    seeds = experiment.seeds if best else ()
    return [Run("final", arm.name, best.schedule, best.rate, seed) for seed in seeds if best]


def settings(experiment: Experiment, run: Run) -> Record:
    """Return what a run's file must say of it, JSON-able; a file that says anything else is of another experiment."""
    tuning = run.phase == "tune"
    part = {"held_out": experiment.tuning.held_out} if tuning else {}
    return {
        "experiment": experiment.name,
        "key": run.key,
        **asdict(run),
        "network": asdict(experiment.network) | _listed(experiment.network) if experiment.network else None,
        "transform": experiment.transform,
        "epochs": experiment.tuning.epochs if tuning else experiment.epochs,
        "batch": experiment.batch,
        "gradient_ranges": list(experiment.gradient_ranges),
        "images": experiment.tuning.images if tuning else experiment.images,
        **part,
    }


def _listed(value: Any) -> Record:
    return {name: list(entry) for name, entry in asdict(value).items() if isinstance(entry, tuple)}


def read_records(experiment: Experiment, results: Path) -> list[Record]:
    """Return what the files in ``results/EXPERIMENT`` say, by file name.

    Raises WageubnError for a file that is not JSON, or that another definition of the experiment made.
    """
    records = []
    for file in sorted((results / experiment.name).glob("*.json")):
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            run = Run(*(record[name] for name in ("phase", "arm", "schedule", "rate", "seed")))
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise WageubnError(f"{file}: not a result of this program ({error!r}); remove it") from error
        for name, value in settings(experiment, run).items():
            if record.get(name) != value:
                change = f"{name} {record.get(name)}, but the experiment says {value}"
                raise WageubnError(f"{file}: was made with {change}; remove it, and it is made again")
        records.append(record)
    return records


def choose_arms(experiment: Experiment, only: str | None) -> list[Arm]:
    """Return the arms of ``experiment``, or the one named ``only``."""
    arms = [arm for arm in experiment.arms if only in (None, arm.name)]
    if not arms:
        names = ", ".join(arm.name for arm in experiment.arms)
        raise WageubnError(f"arm {only}: not in experiment {experiment.name}; choose one of {names}")
    return arms


def pending(experiment: Experiment, arms: Sequence[Arm], phase: str, records: Sequence[Record]) -> list[Run]:
    """Return the runs of ``phase`` that have no file, seed by seed, so that an early stop leaves pairs to compare.

    Raises WageubnError for a final phase whose rates are not tuned.
    """
    if phase == "tune":
        runs = [run for arm in arms for run in tuning_runs(experiment, arm)]
    else:
        untuned = [arm.rates_of or arm.name for arm in arms if best_run(experiment, arm, records) is None]
        if untuned:
            raise WageubnError(f"{experiment.name}: the rate of {untuned[0]} is not tuned yet; run --phase tune first")
        runs = sorted((run for arm in arms for run in final_runs(experiment, arm, records)), key=lambda run: run.seed)
    done = {record["key"] for record in records}
    return [run for run in runs if run.key not in done]


# -- doing it -------------------------------------------------------------------------------------------------------------


def run_experiment(
    experiment: Experiment, place: Place, arms: Sequence[Arm], phases: Sequence[str], jobs: int, console: Console
) -> None:
    """Do every run that has no file yet, ``jobs`` at a time, and say so of each.

    Raises WageubnError where a run fails (those beside it are stopped with a checkpoint), and KeyboardInterrupt likewise.
    """
    if (experiment.network is None) != (place.model is not None):
        what = "trains a network of yours: pass --model FILE" if place.model is None else "makes its network: leave out --model"
        raise WageubnError(f"{experiment.name} {what}")
    for phase in phases:
        runs = pending(experiment, arms, phase, read_records(experiment, place.results))
        _run_all(experiment, place, runs, jobs, console)


def _run_all(experiment: Experiment, place: Place, runs: list[Run], jobs: int, console: Console) -> None:
    waiting, running = list(reversed(runs)), dict[int, tuple[SpawnProcess, Run]]()
    context, done = multiprocessing.get_context("spawn"), 0
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.pop()
                process = context.Process(target=_child, args=(experiment, place, run))
                process.start()
                running[process.sentinel] = process, run
            for sentinel in wait(list(running)):
                assert isinstance(sentinel, int)
                process, run = running.pop(sentinel)
                process.join()
                if process.exitcode:
                    raise WageubnError(f"{experiment.name}/{run.key}: failed, see above; the same command tries again")
                done += 1
                record = json.loads(_file(experiment, place, run).read_text(encoding="utf-8"))
                console.print(f"{experiment.name}/{run.key}: {record['test_accuracy']:.2%} ({done} of {len(runs)} in this phase)")
    finally:
        for process, _ in running.values():
            os.kill(process.pid or 0, signal.SIGINT)
        for process, _ in running.values():
            process.join()


def _file(experiment: Experiment, place: Place, run: Run) -> Path:
    return place.results / experiment.name / f"{run.key}.json"


def _child(experiment: Experiment, place: Place, run: Run) -> None:
    """The process of one run: it ends with 0, with 2 after an error in one line, and with 130 when told to stop."""
    os.setpgrp()  # Ctrl-C is for the runner, which passes it on once
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a runner in the background may have been told to ignore it
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    try:
        finished = execute(experiment, place, run)
    except KeyboardInterrupt:
        finished = False
    except WageubnError as error:
        print(f"error: {experiment.name}/{run.key}: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0 if finished else INTERRUPTED)


def _stop_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGINT)


def execute(experiment: Experiment, place: Place, run: Run) -> bool:
    """Do one run, or go on with it, and write its file; False where it was interrupted."""
    scratch = place.scratch / experiment.name / run.key
    data = dataset(experiment, place.data, run.phase)
    session = open_arm(experiment, place.model, run, data, scratch / "converted")
    done = settings(experiment, run)
    plan = Plan(done["epochs"], run.rate, run.schedule, experiment.gradient_ranges, run.seed)
    resume = (scratch / "run" / CHECKPOINT).is_file()
    start = time.perf_counter()
    result = train(session, data, plan, scratch / "run", resume, Console(quiet=True))
    if not result.finished:
        return False
    curve = _curve(scratch / "run" / METRICS)
    record = done | {
        "test_accuracy": result.test_accuracy,
        "curve": curve,
        "train_images": len(data.x_train),
        "test_images": len(data.x_test),
        "images_seen": result.steps * session.batch,
        "seconds": None if resume else round(time.perf_counter() - start, 1),
        "source_sha256": session.folder.manifest["source"]["sha256"],
        "formats_sha256": _formats(session.folder.manifest),
        "data_sha256": fingerprint(data),
        "versions": session.folder.manifest["tools"],
        "command": command(experiment, place, run),
    }
    _file(experiment, place, run).parent.mkdir(parents=True, exist_ok=True)
    write_text(_file(experiment, place, run), json.dumps(record, indent=1) + "\n")
    shutil.rmtree(scratch)
    return True


def command(experiment: Experiment, place: Place, run: Run) -> str:
    """Return the command that does this run (and its arm's others), with file names in place of paths."""
    words = ["wageubn-onnx", "bench", "accuracy", experiment.name, "--data", place.data.name]
    words += ["--model", place.model.name] if place.model else []
    return shlex.join([*words, "--phase", run.phase, "--only", run.arm])


def _formats(manifest: Record) -> str:
    """What a profile of that name said when the run was made."""
    said = json.dumps([manifest["formats"], manifest["exceptions"]], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()


def _curve(metrics: Path) -> list[Record]:
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    names = ("epoch", "loss", "train_accuracy", "test_accuracy")
    return [{name: line[name] for name in names} for line in lines if line["kind"] == "epoch"]


# -- its parts ------------------------------------------------------------------------------------------------------------


def dataset(experiment: Experiment, path: Path, phase: str) -> Dataset:
    """Return what a run of ``phase`` trains and is tested on."""
    data = load_data(path)
    tuning = experiment.tuning
    data = tuning_part(data, tuning.images, tuning.held_out) if phase == "tune" else training_part(data, experiment.images)
    return transformed(data, experiment.transform)


def open_arm(experiment: Experiment, model: Path | None, run: Run, data: Dataset, folder: Path) -> Session:
    """Convert the network of ``run`` into ``folder``, where that is not done, and return the session of its arm."""
    kind, profile = _arm(run.arm)
    if not (folder / "manifest.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        source = model or _build(experiment, run.seed, data, folder.with_name("source.onnx"))
        _convert(source, Config(experiment.batch, experiment.pixels.mean, experiment.pixels.std, profile=profile), folder)
    return kind(folder, threads=1)


def _convert(source: Path, config: Config, folder: Path) -> None:
    from wageubn_onnx.pipeline import convert  # the passes take a while to load, and the report needs none

    convert(source, config, folder)


def _arm(name: str) -> tuple[type[Session], Profile]:
    if name == "fp32":
        return FloatSession, Config().profile
    if name.startswith(QUANTIZED):
        return QuantizedSession, load_profile(name.removeprefix(QUANTIZED))
    return TrainingSession, load_profile(name)


def _build(experiment: Experiment, seed: int, data: Dataset, file: Path) -> Path:
    """Write the untrained network of ``seed``; its running statistics are those of some training images."""
    network = experiment.network
    assert network is not None
    model = resnet.build(resnet.Architecture(network.depths, network.widths, network.classes, network.image), seed)
    mean, std = (np.array(values, np.float32).reshape(-1, 1, 1) for values in (experiment.pixels.mean, experiment.pixels.std))
    images = data.x_train[:STATISTICS_IMAGES].astype(np.float32) / np.float32(255)
    resnet.fit_statistics(model, (images - mean) / std)
    onnx.save(model, file)
    return file
