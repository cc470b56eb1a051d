"""Run-time health: sums of the counters, the metrics' lines, the warnings, and a resume to the same bytes."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from networks import BATCH, MEAN, STD, images, labels
from wageubn_onnx.artifacts.contents import peek, seal
from wageubn_onnx.artifacts.files import load_tensors, save_tensors
from wageubn_onnx.cli import cli
from wageubn_onnx.config import Config
from wageubn_onnx.errors import WageubnError
from wageubn_onnx.pipeline import convert
from wageubn_onnx.runtime.session import StepResult, TrainingSession
from wageubn_onnx.training.data import Dataset, batches, save_data
from wageubn_onnx.training.health import WORST, Health
from wageubn_onnx.training.train import CHECKPOINT, METRICS, Plan, train

PLAN = Plan(epochs=2, lr=0.05, seed=3)
STEPS = 3  # an epoch


@pytest.fixture(scope="module")
def healthy(tiny_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("healthy") / "tiny"
    convert(tiny_file, Config(batch=BATCH, mean=MEAN, std=STD, health=True), folder)
    return folder


@pytest.fixture
def data() -> Dataset:
    return Dataset(images(STEPS * BATCH), labels(STEPS * BATCH), images(5, seed=1), labels(5, seed=1))


@pytest.fixture
def deaf(healthy: Path, tmp_path: Path) -> Path:
    """Its last layer has no weights at first, so that no error comes back through it in the first step."""
    folder = tmp_path / "deaf"
    shutil.copytree(healthy, folder)
    tensors, _ = load_tensors(folder / "state.safetensors")
    save_tensors(folder / "state.safetensors", tensors | {"fc.weight": np.zeros_like(tensors["fc.weight"])})
    seal(folder, peek(folder))
    return folder


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def said(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def told(out: Path) -> list[dict[str, Any]]:
    return [line for text in (out / METRICS).read_text().splitlines() if (line := json.loads(text))["kind"] == "health"]


def test_sums_of_two_steps() -> None:
    entries = [{"node": n, "layer": f"l{n}", "role": role, "elements": 4} for n, role in (("a", "E1"), ("b", "W"), ("c", "E2"))]
    health = Health.none(entries)
    for rows in ([[1, 0, -5], [0, 1, -7], [0, 1, -9]], [[2, 0, -3], [0, 1, -7], [0, 0, -2]]):
        health = health.add(np.array(rows, np.int32))
    assert health.rows() == [
        {"node": "a", "layer": "la", "role": "E1", "saturated": 3 / 8, "all_zero": 0.0, "exponent": [-5, -3]},
        {"node": "b", "layer": "lb", "role": "W", "saturated": 0.0, "all_zero": 1.0, "exponent": [-7, -7]},
        {"node": "c", "layer": "lc", "role": "E2", "saturated": 0.0, "all_zero": 0.5, "exponent": [-9, -2]},
    ]
    assert [row["node"] for row in health.worst()] == ["b", "c", "a"]
    assert health.lost_errors() == "the error E2 of layer lc was all zero in 1 of 2 steps: nothing was learned through it then"
    again = Health.from_json(entries, json.loads(json.dumps(health.to_json())))
    assert again.rows() == health.rows() and again.steps == 2


def test_healthy_errors_are_not_lost() -> None:
    entries = [{"node": "b", "layer": "b", "role": "W", "elements": 4}, {"node": "e", "layer": "e", "role": "E1", "elements": 4}]
    health = Health.none(entries).add(np.array([[0, 1, 0], [0, 0, 0]], np.int32))
    assert health.lost_errors() is None


def test_a_step_carries_its_counters(healthy: Path, tiny_folder: Path) -> None:
    session, plain = TrainingSession(healthy), TrainingSession(tiny_folder)
    result = session.step(images(), labels())
    assert result.health is not None and result.health.dtype == np.int32
    assert result.health.shape == (len(session.health), 3)
    assert session.extra_outputs == []
    assert plain.step(images(), labels()).health is None and plain.health == []
    for key, value in plain.state().items():
        np.testing.assert_array_equal(session.state()[key], value)


def test_lines_of_the_metrics_are_the_steps_sums(healthy: Path, data: Dataset, tmp_path: Path) -> None:
    console, reference = quiet(), TrainingSession(healthy)
    result = train(TrainingSession(healthy), data, PLAN, tmp_path / "run", console=console, health=True)
    for epoch, line in enumerate(told(tmp_path / "run")):
        health = Health.none(reference.health)
        for rows in batches(len(data.x_train), BATCH, epoch, PLAN.seed):
            counters = reference.step(data.x_train[rows], data.y_train[rows], PLAN.lr, seed=PLAN.seed).health
            assert counters is not None
            health = health.add(counters)
        assert (line["epoch"], line["steps"]) == (epoch + 1, STEPS)
        assert line["quantizers"] == health.rows()
    assert result.health == health.worst() and len(health.worst()) == WORST
    assert "epoch 2: the worst of 200 quantizers" in said(console)
    assert "warning" not in said(console)


def test_health_is_told_on_request_only_and_changes_no_bit(healthy: Path, data: Dataset, tmp_path: Path) -> None:
    console = quiet()
    result = train(TrainingSession(healthy), data, PLAN, tmp_path / "silent", console=console)
    assert result.health is None and told(tmp_path / "silent") == [] and said(console) == ""
    train(TrainingSession(healthy), data, PLAN, tmp_path / "told", console=console, health=True)
    states = [load_tensors(tmp_path / name / CHECKPOINT)[0] for name in ("silent", "told")]
    for key, value in states[0].items():
        np.testing.assert_array_equal(states[1][key], value)


def test_a_lost_error_is_warned_of(deaf: Path, data: Dataset, tmp_path: Path) -> None:
    console = quiet()
    plan = replace(PLAN, lr=0.9)  # so that one step moves weights away from 0
    train(TrainingSession(deaf), data, plan, tmp_path / "run", console=console)
    (line,) = said(console).splitlines()
    assert line.startswith("warning: epoch 1: the error E1 of layer gap was all zero in 1 of 3 steps (and ")


@pytest.mark.parametrize("stop", [2, 4])
def test_a_resumed_run_tells_the_same(
    stop: int, deaf: Path, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import signal

    whole, broken, consoles = tmp_path / "whole", tmp_path / "broken", [quiet(), quiet()]
    train(TrainingSession(deaf), data, PLAN, whole, console=consoles[0], health=True)
    session = TrainingSession(deaf)
    inner = session.step

    def step(*args: Any) -> StepResult:
        result = inner(*args)
        if session.state()["step"] == stop:
            signal.raise_signal(signal.SIGINT)
        return result

    monkeypatch.setattr(session, "step", step)
    assert not train(session, data, PLAN, broken, console=consoles[1], health=True).finished
    train(TrainingSession(deaf), data, PLAN, broken, resume=True, console=consoles[1], health=True)
    for name in (METRICS, CHECKPOINT):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()
    assert said(consoles[0]) == said(consoles[1])


# -- the command line -----------------------------------------------------------------------------------------------------


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args])


def test_train_prints_a_table(healthy: Path, data: Dataset, tmp_path: Path) -> None:
    save_data(data, tmp_path / "data.npz")
    result = run("train", healthy, "--data", tmp_path / "data.npz", "--epochs", "1", "--out", tmp_path / "run", "--health")
    assert result.exit_code == 0, result.output
    assert "epoch 1: the worst of 200 quantizers" in result.stderr and "E1" in result.stderr
    assert result.stdout.startswith("3 steps, 1 epochs")


def test_train_answers_in_json(healthy: Path, data: Dataset, tmp_path: Path) -> None:
    save_data(data, tmp_path / "data.npz")
    args = ("train", healthy, "--data", tmp_path / "data.npz", "--epochs", "1", "--out", tmp_path / "run", "--health", "--json")
    result = run(*args)
    rows = json.loads(result.stdout)["health"]
    assert [set(row) for row in rows] == [{"node", "layer", "role", "saturated", "all_zero", "exponent"}] * WORST
    (line,) = told(tmp_path / "run")
    assert all(row in line["quantizers"] for row in rows)


def test_a_folder_without_counters_is_refused(tiny_folder: Path, data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(WageubnError, match="no health counters; convert the model with `convert --health`"):
        train(TrainingSession(tiny_folder), data, PLAN, tmp_path / "run", health=True)
    assert not (tmp_path / "run").exists()
    save_data(data, tmp_path / "data.npz")
    result = run("train", tiny_folder, "--data", tmp_path / "data.npz", "--epochs", "1", "--float", "--health")
    assert result.exit_code == 2 and "--health has no meaning with --float" in result.stderr


def test_a_manifest_that_names_no_output_is_refused(healthy: Path, tmp_path: Path) -> None:
    shutil.copytree(healthy, tmp_path / "net")
    manifest = peek(tmp_path / "net")
    del manifest["step"]["health_output"]
    seal(tmp_path / "net", manifest)
    with pytest.raises(WageubnError, match="'step' lacks 'health_output'"):
        TrainingSession(tmp_path / "net")
